-- The key of a table that has rows; that of an empty one follows its first rows.
do $$
begin
  if exists (select from public.user_page_views) then
    create unique index if not exists user_page_views_key
      on public.user_page_views (user_id, public.url_key(url) collate "C");
  end if;
end
$$

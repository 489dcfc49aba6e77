-- Asked for first: only the table's owner may make an index, even one that is there.
do $$
begin
  if to_regclass('public.user_page_views_key') is null then
    create unique index user_page_views_key
      on public.user_page_views (user_id, public.url_key(url) collate "C");
  end if;
end
$$

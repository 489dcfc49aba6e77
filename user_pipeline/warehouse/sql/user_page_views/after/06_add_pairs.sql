-- Pairs that these days did not have before: new, or known from other days. They come in the order of the key, so
-- that each page of its index is visited once.
do $$
begin
  if exists (select from old) then
    insert into public.user_page_views as v (user_id, email, url, count, last_viewed)
    select c.user_id, u.email, c.url, c.count, c.new_last
    from changes c left join public.users u on u.user_id = c.user_id
    where c.old_last is null
    order by c.user_id, public.url_key(c.url) collate "C"
    on conflict (user_id, public.url_key(url) collate "C") do update
    set count = v.count + excluded.count, last_viewed = greatest(v.last_viewed, excluded.last_viewed);
  elsif to_regclass('public.user_page_views_key') is not null then
    insert into public.user_page_views as v (user_id, email, url, count, last_viewed)
    select t.user_id, u.email, t.url, t.count, t.last_viewed
    from together t left join public.users u on u.user_id = t.user_id
    on conflict (user_id, public.url_key(url) collate "C") do update
    set count = v.count + excluded.count, last_viewed = greatest(v.last_viewed, excluded.last_viewed);
  else
    -- The table is empty. Its index is quickest made when all rows are there.
    insert into public.user_page_views (user_id, email, url, count, last_viewed)
    select t.user_id, u.email, t.url, t.count, t.last_viewed
    from together t left join public.users u on u.user_id = t.user_id;
    create unique index user_page_views_key on public.user_page_views (user_id, public.url_key(url) collate "C");
  end if;
end
$$

-- The pairs of one new day: each is there once, and they lie in the order of the key as they were copied.
insert into public.user_page_views as v (user_id, email, url, count, last_viewed)
select d.user_id, u.email, d.url, d.count, d.last_viewed
from public.user_page_views_daily d left join public.users u on u.user_id = d.user_id
where d.day = (select first_day from slice where end_day = first_day + 1 and not exists (select from old))
on conflict (user_id, public.url_key(url) collate "C") do update
set count = v.count + excluded.count, last_viewed = greatest(v.last_viewed, excluded.last_viewed)

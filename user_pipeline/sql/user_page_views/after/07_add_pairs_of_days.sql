-- The pairs of several new days, summed up and in the order of the key.
insert into public.user_page_views as v (user_id, email, url, count, last_viewed)
select p.user_id, u.email, p.url, p.count, p.last_viewed
from (
  select user_id, url collate "C" as url, sum(count)::bigint as count, max(last_viewed) as last_viewed
  from public.user_page_views_daily
  where day >= (select first_day from slice) and day < (select end_day from slice)
    and (select end_day > first_day + 1 and not exists (select from old) from slice)
  group by user_id, url collate "C"
  order by user_id, url collate "C"
) p
left join public.users u on u.user_id = p.user_id
on conflict (user_id, public.url_key(url) collate "C") do update
set count = v.count + excluded.count, last_viewed = greatest(v.last_viewed, excluded.last_viewed)

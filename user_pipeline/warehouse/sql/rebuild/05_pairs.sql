create temporary table pairs on commit drop as
select user_id, u.email, url, v.count, v.last_viewed
from (
  select user_id, url, sum(count)::bigint as count, max(last_viewed) as last_viewed
  from public.user_page_views_daily group by user_id, url
) v left join latest u using (user_id)

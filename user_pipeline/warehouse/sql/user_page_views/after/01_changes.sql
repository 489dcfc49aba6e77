-- What replacing these days changes for each pair: nothing at all for most pairs of a day that is redone. Of new
-- days every pair is a change: they are summed up where they are brought in.
create temporary table changes on commit drop as
select
  user_id, url,
  sum(count)::bigint as count,
  max(last_viewed) filter (where is_new) as new_last,
  max(last_viewed) filter (where not is_new) as old_last
from (
  select user_id, url, count, last_viewed, true as is_new from public.user_page_views_daily
  where day >= (select first_day from slice) and day < (select end_day from slice)
    and exists (select from old)
  union all
  select user_id, url, -count, last_viewed, false from old
) contributions
group by user_id, url
having sum(count) <> 0
  or max(last_viewed) filter (where is_new) is distinct from max(last_viewed) filter (where not is_new)

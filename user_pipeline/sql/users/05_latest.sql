-- A user's latest update is the one of the latest day: one index look-up each, however long the history.
create temporary table latest on commit drop as
select affected.user_id, d.email, d.name, d.updated_at
from affected
left join lateral (
  select email, name, updated_at from public.users_daily
  where users_daily.user_id = affected.user_id
  order by day desc limit 1
) d on true

-- Everyone with an update in these days, before or now. A user's latest update is the one of the latest day: one
-- index look-up each, however long the history.
create temporary table latest on commit drop as
select affected.user_id, d.email, d.name, d.updated_at, u.email as known_email
from (
  select user_id from old
  union
  select user_id from public.users_daily
  where day >= (select first_day from slice) and day < (select end_day from slice)
) affected
left join lateral (
  select email, name, updated_at from public.users_daily
  where users_daily.user_id = affected.user_id
  order by day desc limit 1
) d on true
left join public.users u on u.user_id = affected.user_id

-- Everyone who had an update in these days before.
create temporary table old on commit drop as
select user_id from public.users_daily
where day >= (select first_day from slice) and day < (select end_day from slice)

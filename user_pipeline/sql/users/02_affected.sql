-- Everyone with an update in these days, before or now.
create temporary table affected on commit drop as
select user_id from incoming
union
select user_id from public.users_daily
where day >= (select first_day from slice) and day < (select end_day from slice)

delete from public.users_daily
where day >= (select first_day from slice) and day < (select end_day from slice)

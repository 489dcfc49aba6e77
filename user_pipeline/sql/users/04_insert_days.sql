insert into public.users_daily (day, user_id, email, name, updated_at)
select day::date, user_id, email, name, updated_at from incoming order by user_id, day

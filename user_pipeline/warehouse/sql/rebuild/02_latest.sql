create temporary table latest on commit drop as
select distinct on (user_id) user_id, email, name, updated_at from public.users_daily order by user_id, day desc

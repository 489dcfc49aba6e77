-- Nothing is left of these users' updates.
delete from public.users using latest
where users.user_id = latest.user_id and latest.updated_at is null

delete from public.users u where not exists (select from latest l where l.user_id = u.user_id)

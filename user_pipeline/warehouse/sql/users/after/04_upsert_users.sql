insert into public.users as u (user_id, email, name, updated_at)
select user_id, email, name, updated_at from latest where updated_at is not null
order by user_id
on conflict (user_id) do update
set email = excluded.email, name = excluded.name, updated_at = excluded.updated_at
where (u.email, u.name, u.updated_at) is distinct from (excluded.email, excluded.name, excluded.updated_at)

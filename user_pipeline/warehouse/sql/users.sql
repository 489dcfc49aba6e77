-- users: the latest update of each user, over all days. It is kept by the changes of each day.

-- name: create
create table public.users (
  user_id bigint primary key,
  email text not null,
  name text not null,
  updated_at timestamp not null
)

-- name: lock
-- One writer at a time; readers go on. The other two tables hold a copy of each e-mail and change along.
lock table public.users, public.user_page_views, public.page_recommendations in share row exclusive mode

-- name: nobody_leaves
create temporary table leaving (user_id bigint) on commit drop

-- name: lost
-- Users whose row comes from the replaced days and who have no update there any more. Their latest update is looked for
-- in earlier days.
do $$
begin
  create temporary table lost on commit drop as
  select l.user_id from leaving l join public.users u using (user_id)
  where u.updated_at >= {first} and u.updated_at < {end};
  create temporary table found (user_id bigint, email text, name text, updated_at timestamp) on commit drop;
end
$$

-- name: latest
-- What changes, with the e-mail known before: the latest update in the replaced days, unless the table has one of a
-- later day; and of the users who have none there any more, the one found in earlier days, if any.
create temporary table latest on commit drop as
select i.user_id, i.email, i.name, i.updated_at, u.email as known_email
from arriving i left join public.users u using (user_id)
where u.user_id is null
  or (u.updated_at < {end} and (u.email, u.name, u.updated_at) is distinct from (i.email, i.name, i.updated_at))
union all
select l.user_id, f.email, f.name, f.updated_at, u.email
from lost l left join found f using (user_id) join public.users u on u.user_id = l.user_id

-- name: analyze
analyze latest

-- name: delete
-- Users of whom no day has an update any more.
delete from public.users using latest
where users.user_id = latest.user_id and latest.updated_at is null

-- name: upsert
insert into public.users as u (user_id, email, name, updated_at)
select user_id, email, name, updated_at from latest where updated_at is not null
on conflict (user_id) do update
set email = excluded.email, name = excluded.name, updated_at = excluded.updated_at

-- name: emails
-- All pairs of the few whose e-mail is another one now.
update public.user_page_views v set email = latest.email
from latest
where latest.email is distinct from latest.known_email
  and v.user_id = latest.user_id and v.email is distinct from latest.email

-- name: recommendation_emails
update public.page_recommendations r set email = latest.email
from latest
where r.user_id = latest.user_id and r.email is distinct from latest.email

-- Full refresh: ``expected`` holds the rows the table must have.

-- name: nothing_expected
create temporary table expected (like public.users) on commit drop

-- name: delete_unexpected
delete from public.users u where not exists (select from expected e where e.user_id = u.user_id)

-- name: upsert_expected
insert into public.users as u (user_id, email, name, updated_at)
select user_id, email, name, updated_at from expected
on conflict (user_id) do update
set email = excluded.email, name = excluded.name, updated_at = excluded.updated_at
where (u.email, u.name, u.updated_at) is distinct from (excluded.email, excluded.name, excluded.updated_at)

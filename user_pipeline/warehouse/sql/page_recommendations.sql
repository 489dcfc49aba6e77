-- page_recommendations: the snapshot of the newest day, and beside it why each page is recommended.

-- name: create
do $$
begin
  create table if not exists public.page_recommendations (
    user_id bigint not null,
    email text,
    recommended_url text not null,
    rank integer not null check (rank between 1 and 3),
    primary key (user_id, rank)
  );
  -- The page seen that spoke most for a recommendation, where one did. Apart, since what reads the table knows its columns.
  create table if not exists public.page_recommendations_because (
    user_id bigint not null,
    rank integer not null,
    because_url text not null,
    primary key (user_id, rank)
  );
  create or replace view public.page_recommendation_reasons as
  select r.user_id, r.rank, r.recommended_url, b.because_url
  from public.page_recommendations r
  left join public.page_recommendations_because b on b.user_id = r.user_id and b.rank = r.rank;
  -- The day page_recommendations is as of: one row, or none before the first.
  create table if not exists public.page_recommendations_day (
    day date not null,
    is_only_row boolean primary key default true check (is_only_row)
  );
end
$$

-- name: lock
lock table public.page_recommendations, public.page_recommendations_because in share row exclusive mode

-- name: emails
-- As users has them now, which may be later than when the rows were made.
update incoming i set email = u.email
from incoming j left join public.users u on u.user_id = j.user_id
where i.user_id = j.user_id and i.rank = j.rank and j.email is distinct from u.email

-- name: delete
-- Only what changes is written: most users get much the same from day to day.
delete from public.page_recommendations r
where not exists (
  select from incoming i
  where i.user_id = r.user_id and i.rank = r.rank
    and i.recommended_url = r.recommended_url and i.email is not distinct from r.email
)

-- name: insert
insert into public.page_recommendations (user_id, email, recommended_url, rank)
select user_id, email, recommended_url, rank from incoming order by user_id, rank
on conflict (user_id, rank) do nothing

-- name: delete_reasons
delete from public.page_recommendations_because b
where not exists (
  select from incoming i where i.user_id = b.user_id and i.rank = b.rank and i.because_url = b.because_url
)

-- name: insert_reasons
insert into public.page_recommendations_because (user_id, rank, because_url)
select user_id, rank, because_url from incoming where because_url is not null order by user_id, rank
on conflict (user_id, rank) do nothing

-- name: day
insert into public.page_recommendations_day (day) values ($1)
on conflict (is_only_row) do update set day = excluded.day

-- name: analyze
analyze public.page_recommendations, public.page_recommendations_because

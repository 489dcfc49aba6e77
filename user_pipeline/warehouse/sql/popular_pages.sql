-- popular_pages: the snapshot of the newest day.

-- name: create
do $$
begin
  create table if not exists public.popular_pages (
    url text not null,
    rank integer not null check (rank between 1 and 100),
    viewers bigint not null,
    first_viewers bigint not null,
    primary key (rank)
  );
  create unique index if not exists popular_pages_key on public.popular_pages (public.url_key(url) collate "C");
  -- The day popular_pages is as of: one row, or none before the first.
  create table if not exists public.popular_pages_day (
    day date not null,
    is_only_row boolean primary key default true check (is_only_row)
  );
end
$$

-- name: lock
lock table public.popular_pages in share row exclusive mode

-- name: delete
-- Only what changes is written.
delete from public.popular_pages r
where not exists (
  select from incoming i
  where i.url is not distinct from r.url
    and i.rank is not distinct from r.rank
    and i.viewers is not distinct from r.viewers
    and i.first_viewers is not distinct from r.first_viewers
)

-- name: insert
insert into public.popular_pages (url, rank, viewers, first_viewers)
select url, rank, viewers, first_viewers from incoming order by rank
on conflict do nothing

-- name: day
insert into public.popular_pages_day (day) values ($1)
on conflict (is_only_row) do update set day = excluded.day

-- name: analyze
analyze public.popular_pages

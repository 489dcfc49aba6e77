-- related_pages: the snapshot of the newest day. Urls may be too long for an index, so a page is known by its key there.

-- name: create
do $$
begin
  create table if not exists public.related_pages (
    url text not null,
    related_url text not null,
    rank integer not null check (rank between 1 and 10),
    score double precision not null
  );
  create unique index if not exists related_pages_key on public.related_pages (public.url_key(url) collate "C", rank);
  -- The day related_pages is as of: one row, or none before the first.
  create table if not exists public.related_pages_day (
    day date not null,
    is_only_row boolean primary key default true check (is_only_row)
  );
end
$$

-- name: lock
lock table public.related_pages in share row exclusive mode

-- name: delete
-- Only what changes is written.
delete from public.related_pages r
where not exists (
  select from incoming i
  where i.url is not distinct from r.url
    and i.related_url is not distinct from r.related_url
    and i.rank is not distinct from r.rank
    and i.score is not distinct from r.score
)

-- name: insert
insert into public.related_pages (url, related_url, rank, score)
select url, related_url, rank, score from incoming order by url, rank
on conflict do nothing

-- name: day
insert into public.related_pages_day (day) values ($1)
on conflict (is_only_row) do update set day = excluded.day

-- name: analyze
analyze public.related_pages

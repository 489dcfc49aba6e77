-- page_views: the page views in production, each once.

-- name: create
do $$
begin
  create table public.page_views (
    ts timestamp,
    url text,
    environment text,
    user_id bigint
  );
  create index on public.page_views (ts);
end
$$

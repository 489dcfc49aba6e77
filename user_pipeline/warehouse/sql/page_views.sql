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
  -- Days are appended whole, so a summary of each stretch of pages finds them: a thousandth of a tree's size, and a day
  -- is copied in half the time.
  create index on public.page_views using brin (ts) with (autosummarize = on);
end
$$

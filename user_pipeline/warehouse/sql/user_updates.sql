-- user_updates: the user updates in production, each once.

-- name: create
do $$
begin
  create table public.user_updates (
    updated_at timestamp,
    user_id bigint,
    email text,
    name text,
    environment text
  );
  -- Days are appended whole, so a summary of each stretch of pages finds them: a thousandth of a tree's size, and a day
  -- is copied in half the time.
  create index on public.user_updates using brin (updated_at) with (autosummarize = on);
end
$$

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
  create index on public.user_updates (updated_at);
end
$$

-- What was taken out of all that is stored: people who asked for it, and days past their retention.
do $$
begin
  -- The commits that did so. Whoever has read something before such a commit may not commit what was made of it.
  create table pipeline.removals (
    version bigint primary key,
    removed_at timestamptz not null default clock_timestamp()
  );
  -- Days whose snapshots count people who were forgotten, until they are made anew.
  create table pipeline.days_to_remake (day date primary key);
end
$$

-- What was taken out of all that is stored: people who asked for it, and days past their retention.
do $$
begin
  -- The commits that did so. What was made from rows read before such a commit must not be committed after it.
  create table pipeline.removals (
    version bigint primary key,
    removed_at timestamptz not null default clock_timestamp()
  );
  -- Days whose snapshots still count people who were forgotten, until the snapshots are computed again.
  create table pipeline.days_to_remake (day date primary key);
end
$$

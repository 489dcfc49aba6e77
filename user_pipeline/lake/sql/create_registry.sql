-- The file registry of a database: which files of the lake make up each partition, and since which commit.
do $$
begin
  create schema if not exists pipeline;
  -- The lake this database belongs to: one row, or none before the first commit.
  create table pipeline.lake (
    lake_id text not null,
    format integer not null,
    is_only_row boolean primary key default true check (is_only_row)
  );
  -- One row a commit. A transaction locks this table before it takes a version, until it commits: so commits become
  -- visible in the order of their versions.
  create table pipeline.lake_commits (
    version bigint generated always as identity primary key,
    asset text not null,
    run_id text not null,
    committed_at timestamptz not null default clock_timestamp()
  );
  -- The commit each partition was last written by.
  create table pipeline.lake_partitions (
    asset text not null,
    day date not null,
    version bigint not null,
    primary key (asset, day)
  );
  -- The files of each partition. Those that were replaced stay for two days: somebody may be reading them.
  create table pipeline.lake_files (
    asset text not null,
    day date not null,
    path text not null,
    rows bigint not null,
    size bigint not null,
    version bigint not null,
    superseded_at timestamptz,
    primary key (asset, day, path)
  );
end
$$

-- The object manifest, in the staging database: which objects were read, and what each of them brought.
do $$
begin
  -- One row an object.
  create table pipeline.ingested_objects (
    feed text not null,
    -- The first 16 bytes of the SHA-256 of the key, which may be longer than an entry of an index can be.
    object_id bytea not null,
    key text not null,
    -- About the content that was read last; start_date is null for an object that was never read.
    etag text not null,
    last_modified timestamptz not null,
    size bigint not null,
    start_date date,
    -- The command its bytes went through, and that command's version; null for none.
    filter text,
    filter_version text,
    error text,
    lines bigint not null,
    blank bigint not null,
    header bigint not null,
    rows bigint not null,
    rejects bigint not null,
    -- Rejected lines by reason, and the file of the lake that has them.
    rejected jsonb not null,
    rejects_path text,
    -- Content that could not be fetched; null when there is none.
    failed_etag text,
    failed_error text,
    failed_attempts bigint,
    retry_at timestamptz,
    -- The commit that wrote this row.
    version bigint not null,
    primary key (feed, object_id)
    -- It may have millions of rows, and a day adds thousands: with the default, a fifth of the rows, vacuum would run once
  -- a year.
  ) with (autovacuum_vacuum_insert_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);
  -- Nearly empty: what has to be found without reading the table.
  create index ingested_objects_unread on pipeline.ingested_objects (feed)
    where error is not null or start_date is null or failed_etag is not null;
  create index ingested_objects_rejects on pipeline.ingested_objects (feed) where rejects > 0;
  create index ingested_objects_unaccounted on pipeline.ingested_objects (feed)
    where lines <> rows + rejects + blank + header;
  -- One row for each day that an object ever brought rows for. A day that it no longer brings stays, with 0 rows: that
  -- rows are gone is a change, too.
  create table pipeline.ingested_days (
    feed text not null,
    object_id bytea not null,
    day date not null,
    rows bigint not null,
    digest text,
    -- The commit in which rows and digest changed last.
    version bigint not null,
    -- The part file that has the rows, and how many rows and bytes that file has.
    path text,
    file_rows bigint,
    file_size bigint,
    primary key (feed, object_id, day)
  ) with (autovacuum_vacuum_insert_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);
  create index ingested_days_day on pipeline.ingested_days (feed, day);
  create index ingested_days_version on pipeline.ingested_days (feed, version);
  -- Files that the manifest referred to until they were replaced. Somebody may still be reading them.
  create table pipeline.replaced_files (
    path text primary key,
    replaced_at timestamptz not null
  );
  -- Objects that a queue has announced and no run has looked at yet, in the order of their announcement.
  create table pipeline.announced_objects (
    number bigint generated always as identity,
    feed text not null,
    object_id bytea not null,
    key text not null,
    etag text not null,
    size bigint not null,
    last_modified timestamptz not null,
    primary key (feed, object_id)
  );
  -- The further keys and fields that rows had, with the first of these and how many lines had them so far (those of an
  -- object that is read again count again). told_in is the run that reported it.
  create table pipeline.further_fields (
    feed text not null,
    name text not null,
    lines bigint not null,
    source_object text not null,
    source_line bigint not null,
    version bigint not null,
    told_in text,
    primary key (feed, name)
  );
  -- Up to which commit what was read for a day of a feed is accepted, however much of it was rejected.
  create table pipeline.accepted_days (
    feed text not null,
    day date not null,
    version bigint not null,
    primary key (feed, day)
  );
  -- The last listing of each feed's folder by a run: when it began, how long it took, and how many objects there were.
  create table pipeline.listings (
    feed text primary key,
    listed_at timestamptz not null,
    seconds double precision not null,
    objects bigint not null
  );
end
$$

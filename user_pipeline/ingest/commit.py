"""Write to the tables of the manifest, within one transaction a batch."""

import json
from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING

from user_pipeline.ingest.entries import Entry, Failure, Unfetched, object_id
from user_pipeline.resources.postgres import literal

if TYPE_CHECKING:
    from user_pipeline.ingest.feeds import Feed
    from user_pipeline.lake.partitions import LakeFile
    from user_pipeline.resources.postgres import Transaction


def load_read(transaction: "Transaction", entries: Sequence[Entry]) -> None:
    """Copy what was read of some objects into the temporary tables ``read_objects`` and ``read_days``."""
    import pyarrow as pa

    objects = pa.schema(
        [
            ("object_id", pa.binary()),
            ("key", pa.string()),
            ("etag", pa.string()),
            ("last_modified", pa.timestamp("us", tz="UTC")),
            ("size", pa.int64()),
            ("start_date", pa.date32()),
            ("filter", pa.string()),
            ("filter_version", pa.string()),
            ("error", pa.string()),
            ("lines", pa.int64()),
            ("blank", pa.int64()),
            ("header", pa.int64()),
            ("rows", pa.int64()),
            ("rejects", pa.int64()),
            ("rejected", pa.string()),
            ("rejects_path", pa.string()),
        ]
    )
    days = pa.schema(
        [
            ("object_id", pa.binary()),
            ("day", pa.date32()),
            ("rows", pa.int64()),
            ("digest", pa.string()),
            ("path", pa.string()),
            ("file_rows", pa.int64()),
            ("file_size", pa.int64()),
        ]
    )
    rows = [
        {
            **{name: getattr(entry, name) for name in objects.names if hasattr(entry, name)},
            "object_id": object_id(entry.key),
            "rejected": json.dumps(entry.rejected),
        }
        for entry in entries
    ]
    brought = [
        {
            "object_id": object_id(entry.key),
            "day": day,
            "rows": brought.rows,
            "digest": brought.digest,
            "path": brought.file.path,
            "file_rows": brought.file.rows,
            "file_size": brought.file.size,
        }
        for entry in entries
        for day, brought in entry.days.items()
    ]
    transaction.load("read_objects", pa.Table.from_pylist(rows, objects).to_reader())
    transaction.load("read_days", pa.Table.from_pylist(brought, days).to_reader())
    # Without it the planner takes a table it knows nothing of for a large one.
    transaction.execute("analyze read_objects")
    transaction.execute("analyze read_days")


def replace_entries(transaction: "Transaction", feed: "Feed", version: int) -> None:
    """Put what :func:`load_read` copied in the place of what was known of these objects."""
    name = literal(feed.name)
    transaction.execute(
        f"""
        insert into pipeline.replaced_files (path, replaced_at)
        select path, clock_timestamp() from (
          select d.path from pipeline.ingested_days d join read_objects using (object_id) where d.feed = {name}
          union
          select o.rejects_path from pipeline.ingested_objects o join read_objects using (object_id)
          where o.feed = {name}
        ) known where path is not null
        on conflict (path) do update set replaced_at = excluded.replaced_at
        """
    )
    transaction.execute(
        f"""
        insert into pipeline.ingested_objects
          (feed, object_id, key, etag, last_modified, size, start_date, filter, filter_version, error, lines, blank,
           header, rows, rejects, rejected, rejects_path, version)
        select {name}, object_id, key, etag, last_modified, size, start_date, filter, filter_version, error, lines,
          blank, header, rows, rejects, rejected::jsonb, rejects_path, {version}
        from read_objects
        on conflict (feed, object_id) do update set
          key = excluded.key, etag = excluded.etag, last_modified = excluded.last_modified, size = excluded.size,
          start_date = excluded.start_date, filter = excluded.filter, filter_version = excluded.filter_version,
          error = excluded.error, lines = excluded.lines, blank = excluded.blank,
          header = excluded.header, rows = excluded.rows, rejects = excluded.rejects, rejected = excluded.rejected,
          rejects_path = excluded.rejects_path, failed_etag = null, failed_error = null, failed_attempts = null,
          retry_at = null, version = excluded.version
        """
    )
    transaction.execute(
        f"""
        update pipeline.ingested_days d
        set rows = 0, digest = null, version = {version}, path = null, file_rows = null, file_size = null
        from read_objects o
        where d.feed = {name} and d.object_id = o.object_id and d.rows > 0
          and not exists (select from read_days b where b.object_id = d.object_id and b.day = d.day)
        """
    )
    transaction.execute(
        f"""
        insert into pipeline.ingested_days as d
          (feed, object_id, day, rows, digest, version, path, file_rows, file_size)
        select {name}, object_id, day, rows, digest, {version}, path, file_rows, file_size from read_days
        on conflict (feed, object_id, day) do update set
          rows = excluded.rows, digest = excluded.digest, path = excluded.path, file_rows = excluded.file_rows,
          file_size = excluded.file_size,
          version = case when (d.rows, d.digest) is distinct from (excluded.rows, excluded.digest)
            then excluded.version else d.version end
        """
    )


def note_failures(
    transaction: "Transaction", feed: "Feed", failures: Sequence[tuple[Unfetched, Failure]], version: int
) -> None:
    """Note what could not be fetched beside what is known of these objects.

    Nothing is noted of content that somebody else has read meanwhile.
    """
    import pyarrow as pa

    schema = pa.schema(
        [
            ("object_id", pa.binary()),
            ("key", pa.string()),
            ("last_modified", pa.timestamp("us", tz="UTC")),
            ("size", pa.int64()),
            ("etag", pa.string()),
            ("error", pa.string()),
            ("attempts", pa.int64()),
            ("retry_at", pa.timestamp("us", tz="UTC")),
        ]
    )
    rows = [
        {
            "object_id": object_id(item.key),
            "key": item.key,
            "last_modified": item.last_modified,
            "size": item.size,
            "etag": failure.etag,
            "error": failure.error,
            "attempts": failure.attempts,
            "retry_at": failure.retry_at,
        }
        for item, failure in failures
    ]
    transaction.load("failed_objects", pa.Table.from_pylist(rows, schema).to_reader())
    transaction.execute(
        f"""
        insert into pipeline.ingested_objects as o
          (feed, object_id, key, etag, last_modified, size, lines, blank, header, rows, rejects, rejected,
           failed_etag, failed_error, failed_attempts, retry_at, version)
        select {literal(feed.name)}, object_id, key, '', last_modified, size, 0, 0, 0, 0, 0, '{{}}',
          etag, error, attempts, retry_at, {version}
        from failed_objects
        on conflict (feed, object_id) do update set
          failed_etag = excluded.failed_etag, failed_error = excluded.failed_error,
          failed_attempts = excluded.failed_attempts, retry_at = excluded.retry_at, version = excluded.version
        where o.etag <> excluded.failed_etag
        """
    )


def forget(transaction: "Transaction", feed: "Feed", keys: Sequence[str]) -> list[str]:
    """Forget objects that were never read, or are broken, unless somebody has read them meanwhile.

    Their days stay in ``ingested_days``: that rows are gone is a change that the sensor may not have seen yet.

    Returns:
        the ids of those that were forgotten, in hexadecimal.
    """
    import pyarrow as pa

    ids = pa.table({"object_id": pa.array(map(object_id, keys), pa.binary())})
    transaction.load("gone_objects", ids.to_reader())
    found = transaction.fetch(
        f"""
        delete from pipeline.ingested_objects where feed = {literal(feed.name)}
          and object_id in (select object_id from gone_objects) and (error is not null or start_date is null)
        returning encode(object_id, 'hex')
        """
    )
    return [identifier for (identifier,) in found]


def point_to(transaction: "Transaction", feed: "Feed", day: date, file: "LakeFile") -> None:
    """Note that a file has all rows of a day, in the place of the files that had them."""
    where = f"feed = {literal(feed.name)} and day = '{day}' and rows > 0"
    transaction.execute(
        f"""
        insert into pipeline.replaced_files (path, replaced_at)
        select path, clock_timestamp() from pipeline.ingested_days where {where} group by path
        on conflict (path) do update set replaced_at = excluded.replaced_at
        """
    )
    transaction.execute(
        "update pipeline.ingested_days set path = $1::text, file_rows = $2::bigint, file_size = $3::bigint "
        f"where {where}",
        (file.path, file.rows, file.size),
    )

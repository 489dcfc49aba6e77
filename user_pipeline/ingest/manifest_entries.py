"""Entries of the object manifest, as its tables have them."""

import json
from collections.abc import Sequence
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

from user_pipeline.ingest.entries import Entry, Failure, ObjectDay, Unfetched, object_id
from user_pipeline.ingest.feeds import Feed
from user_pipeline.lake.partitions import LakeFile
from user_pipeline.resources.postgres import literal

if TYPE_CHECKING:
    from user_pipeline.resources.postgres import Transaction

_PLAIN = (
    *("key", "etag", "last_modified", "size", "start_date", "filter", "filter_version"),
    *("error", "lines", "blank", "header", "rejects_path", "retired_rows"),
)
BROUGHT = "b.feed = o.feed and b.object_id = o.object_id and b.rows > 0"
"""The SQL condition that a row ``b`` of ``ingested_days`` holds rows of the object ``o``."""


def entries_sql(feed: Feed, condition: str) -> str:
    """The query for the entries of a feed, in the order of their keys; :func:`to_entry` takes its rows.

    Args:
        feed: the feed.
        condition: selects rows of ``pipeline.ingested_objects o``.
    """
    return f"""
        select o.key, o.etag, o.last_modified, o.size, o.start_date, o.filter, o.filter_version, o.error,
          o.lines, o.blank, o.header, o.rejected::text as rejected, o.rejects_path,
          o.failed_etag, o.failed_error, o.failed_attempts, o.retry_at,
          (select jsonb_agg(jsonb_build_array(b.day, b.rows, b.digest, b.path, b.file_rows, b.file_size)
            order by b.day)::text from pipeline.ingested_days b
            where {BROUGHT} and b.path is not null) as days,
          (select coalesce(sum(b.rows), 0)::bigint from pipeline.ingested_days b
            where {BROUGHT} and b.path is null) as retired_rows
        from pipeline.ingested_objects o where o.feed = {literal(feed.name)} and {condition}
        order by o.key collate "C"
    """


def of_keys(keys: Sequence[str]) -> str:
    """The SQL condition that a row ``o`` is of one of some keys; at least one."""
    ids = ", ".join(f"'\\x{object_id(key).hex()}'" for key in keys)
    return f"o.object_id in ({ids})"


def to_entry(row: dict[str, Any]) -> Entry:
    """The entry in a row of :func:`entries_sql`."""
    failure = None
    if row["failed_etag"] is not None:
        failure = Failure(row["failed_etag"], row["failed_error"], row["failed_attempts"], row["retry_at"])
    days = {
        date.fromisoformat(day): ObjectDay(rows, digest, LakeFile(path, file_rows, file_size))
        for day, rows, digest, path, file_rows, file_size in json.loads(row["days"] or "[]")
    }
    return Entry(
        **{name: row[name] for name in _PLAIN},
        rejected=dict(sorted(json.loads(row["rejected"]).items())),
        days=days,
        failure=failure,
    )


def failures(
    transaction: "Transaction", feed: Feed, unfetched: Sequence[Unfetched], now: datetime
) -> list[tuple[Unfetched, Failure]]:
    """The failure to note for each object that could not be fetched: one more than the manifest has of this content."""
    reader = transaction.stream(entries_sql(feed, of_keys([item.key for item in unfetched])))
    earlier = {entry.key: entry.failure for batch in reader for entry in map(to_entry, batch.to_pylist())}
    return [(item, Failure.after(earlier.get(item.key), item.etag, item.error, now)) for item in unfetched]

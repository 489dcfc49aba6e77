"""Read what is new in the source: every object once, in passes of bounded size."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

from user_pipeline.errors import PermanentError
from user_pipeline.ingest.batch import Pass, PublishRejects
from user_pipeline.ingest.feeds import Feed
from user_pipeline.ingest.manifest import Catalog, Entry, Failure
from user_pipeline.masking import mask_key
from user_pipeline.resources.source import Source
from user_pipeline.settings import ObjectLimits

if TYPE_CHECKING:
    import pyarrow as pa

    from user_pipeline.engines.duckdb import Engine
    from user_pipeline.resources.object_store import Store

_log = logging.getLogger(__name__)

_PASS_BYTES = 256 * 2**20
_PASS_OBJECTS = 500
"""A pass ends with a commit: a crash loses at most one, and a thousand small objects are a few."""


class UnreadObjectsError(Exception):
    """Objects that could not be fetched; all others are in, and these may be at the next attempt."""

    def __init__(self, feed: Feed, failing: Sequence[Entry]) -> None:
        named = "; ".join(f"{mask_key(entry.key)}: {entry.failure.error}" for entry in failing if entry.failure)
        super().__init__(
            f"{len(failing)} object(s) of {feed.folder} could not be fetched ({named}). All others are in."
        )


class BrokenObjectsError(PermanentError):
    """Objects that could not be read to their end; all others are in."""

    def __init__(self, feed: Feed, broken: Sequence[Entry]) -> None:
        named = "; ".join(f"{mask_key(entry.key)}: {entry.error}" for entry in broken)
        super().__init__(
            f"{len(broken)} object(s) of {feed.folder} cannot be read ({named}). All others are in. Put whole "
            "copies in their place, or leave them: they are read again when they change, and the next run goes on."
        )
        self.broken = tuple(broken)


@dataclass(slots=True)
class Ingested:
    """What one look at a feed's folder brought.

    Attributes:
        catalog: the catalog with everything read so far.
        since: the version of the catalog before that.
        entries: the objects read now, broken ones included.
        failing: the objects that could not be fetched now.
        listed: how many objects are in the folder.
    """

    catalog: Catalog
    since: int = 0
    listed: int = 0
    entries: list[Entry] = field(default_factory=list)
    failing: list[Entry] = field(default_factory=list)

    @property
    def broken(self) -> list[Entry]:
        """The objects that were found broken now."""
        return [entry for entry in self.entries if entry.error]

    def raise_for_objects(self) -> None:
        """Raise if an object could not be read, unless that is known for long: then it is the checks' to tell.

        Raises:
            UnreadObjectsError: objects could not be fetched, and may be at the next attempt.
            BrokenObjectsError: objects were found broken.
        """
        quick = [entry for entry in self.failing if entry.failure and not entry.failure.is_standing]
        if quick:
            raise UnreadObjectsError(self.catalog.feed, quick)
        if self.broken:
            raise BrokenObjectsError(self.catalog.feed, self.broken)


def read_new_objects(
    feed: Feed,
    source: Source,
    lake: "Store",
    engine: "Engine",
    *,
    limits: ObjectLimits,
    start_date: date,
    now: datetime,
    publish_rejects: PublishRejects,
) -> Ingested:
    """Bring every object that is new or changed into the lake.

    For each pass, in this order: fragments, rejects, published rejects, catalog entries. Only the last makes
    the others count, so a crash at any point leaves the lake as it was before the pass.

    Args:
        feed: which feed.
        source: where its folder is.
        lake: where fragments, rejects and catalog go.
        engine: parses.
        limits: what one object may hold.
        start_date: events before this day are out of range.
        now: events after the day that follows this moment (UTC) are out of range.
        publish_rejects: makes rejected lines queryable.

    An object that cannot be fetched, or is found broken, is an entry of the result and keeps no other one from
    being read.

    Raises:
        ObjectStoreError, ObjectStoreUnavailableError: the folder cannot be listed.
        obstore.exceptions.BaseError: the lake cannot be written to.
        UnreadObjectsError: so many objects in a row could not be fetched that it must be the store.
    """
    listing = source.list(feed.folder)
    catalog = Catalog.load(lake, feed)
    result = Ingested(catalog, since=catalog.version, listed=listing.num_rows)
    gone = catalog.gone(listing)

    def read(objects: list[dict[str, Any]]) -> tuple[Pass, list[Entry]]:
        reading = Pass(feed, source, engine, limits=limits, start_date=start_date, now=now)
        with engine.connect() as connection:
            return reading, reading.run(connection, objects, lake, publish_rejects)

    for objects in _passes(catalog.unknown(listing, start_date)):
        for reading, entries in _within_memory(read, objects, engine):
            failures = _failures(result.catalog, reading.failures, now)
            if entries or failures:
                result.catalog = result.catalog.commit(lake, entries, failures)
                result.entries += entries
                failing = result.catalog.of([item["path"] for item, _ in failures])
                result.failing += [entry for entry in failing.values() if entry.failure]
            if entries:
                _log.info(
                    "%s: read %d object(s), %d rows, %d rejected lines",
                    feed.name,
                    len(entries),
                    sum(entry.rows for entry in entries),
                    sum(entry.rejects for entry in entries),
                )
            if reading.gave_up:
                raise UnreadObjectsError(feed, result.failing)
    if gone:
        result.catalog = result.catalog.commit(lake, [], gone=gone)
    return result


def _within_memory(
    read: Callable[[list[dict[str, Any]]], tuple[Pass, list[Entry]]], objects: list[dict[str, Any]], engine: "Engine"
) -> Iterator[tuple[Pass, list[Entry]]]:
    """Read objects in one pass; one by one if together they take too much memory.

    An object that takes too much alone is a broken one.
    """
    import duckdb

    try:
        yield read(objects)
    except (duckdb.OutOfMemoryException, MemoryError):
        if len(objects) == 1 and objects[0]["problem"]:
            raise
        if len(objects) == 1:
            limit = f"USER_PIPELINE_MEMORY_LIMIT, {engine.memory_limit:,} bytes"
            objects = [{**objects[0], "problem": f"reading it takes more memory than {limit}, allows"}]
        for item in objects:
            yield from _within_memory(read, [item], engine)


def _failures(
    catalog: Catalog, failures: list[tuple[dict[str, Any], str]], now: datetime
) -> list[tuple[dict[str, Any], Failure]]:
    known = catalog.of([item["path"] for item, _ in failures])
    earlier = {key: entry.failure for key, entry in known.items()}
    return [(item, Failure.after(earlier.get(item["path"]), item["e_tag"], error, now)) for item, error in failures]


def _passes(objects: "pa.Table") -> Iterator[list[dict[str, Any]]]:
    passing: list[dict[str, Any]] = []
    size = 0
    for batch in objects.to_batches(max_chunksize=1000):
        for item in batch.to_pylist():
            if passing and (size + item["size"] > _PASS_BYTES or len(passing) == _PASS_OBJECTS):
                yield passing
                passing, size = [], 0
            passing.append(item)
            size += item["size"]
    if passing:
        yield passing

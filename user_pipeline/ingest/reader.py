"""Read what is new in the source: every object once, in ingest batches of bounded size."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from user_pipeline.engines.parquet import read_parquet
from user_pipeline.errors import PermanentError
from user_pipeline.ingest.discovery import (
    forget_announced,
    is_overdue,
    last_listing,
    look_at_announced,
    look_at_listing,
)
from user_pipeline.ingest.entries import Entry
from user_pipeline.ingest.feeds import Feed
from user_pipeline.ingest.filter import Filter, read_with
from user_pipeline.ingest.look import Again, Look, Settled
from user_pipeline.ingest.manifest import Manifest
from user_pipeline.ingest.read_objects import Brought, ReadObjects
from user_pipeline.ingest.withheld import Withheld
from user_pipeline.lake.partitions import LakeFile
from user_pipeline.lake.parts import one_by_one
from user_pipeline.masking import mask_key
from user_pipeline.resources.source import Source
from user_pipeline.setting_values import ObjectLimits

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from user_pipeline.engines.base import Engine
    from user_pipeline.resources.queue import SourceQueue

_log = logging.getLogger(__name__)

_BATCH_BYTES = 256 * 2**20
_BATCH_OBJECTS = 500
"""A batch ends with a commit: a crash loses at most one, and a thousand small objects are a few."""


class UnreadObjectsError(Exception):
    """Objects could not be fetched, and are tried again. All others are in."""

    def __init__(self, feed: Feed, failing: Sequence[Entry]) -> None:
        named = "; ".join(f"{mask_key(entry.key)}: {entry.failure.error}" for entry in failing if entry.failure)
        super().__init__(
            f"{len(failing)} object(s) of {feed.folder} could not be fetched ({named}). All others are in."
        )


class BrokenObjectsError(PermanentError):
    """Objects could not be read to their end. All others are in."""

    def __init__(self, feed: Feed, broken: Sequence[Entry]) -> None:
        named = "; ".join(f"{mask_key(entry.key)}: {entry.error}" for entry in broken)
        super().__init__(
            f"{len(broken)} object(s) of {feed.folder} cannot be read ({named}). All others are in. Put whole "
            "copies in their place, or leave them: they are read again when they or their filter change, and the next "
            "run goes on."
        )
        self.broken = tuple(broken)


@dataclass(slots=True)
class Ingested:
    """What one look at a feed's folder brought.

    Attributes:
        manifest: what is known of the feed's objects.
        since: the newest commit to the staging database before that.
        listed: how many objects are in the folder.
        settling: how many objects were left alone because they have changed lately.
        read: how many objects were read now, broken ones included.
        lines: how many ``lines``, ``rows``, ``rejected``, ``blank`` and ``header`` lines they have.
        reasons: rejected lines by reason.
        broken: the objects that were found broken now.
        failing: the objects that could not be fetched now.
    """

    manifest: Manifest
    since: int
    listed: int = 0
    settling: int = 0
    read: int = 0
    lines: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    broken: list[Entry] = field(default_factory=list)
    failing: list[Entry] = field(default_factory=list)

    def add(self, entries: Sequence[Entry]) -> None:
        """Count objects that were read."""
        self.read += len(entries)
        for entry in entries:
            self.lines.update(
                lines=entry.lines,
                rows=entry.rows,
                rejected=entry.rejects,
                blank=entry.blank,
                header=entry.header,
            )
            self.reasons.update(entry.rejected)
            if entry.error:
                self.broken.append(entry)

    def raise_for_objects(self) -> None:
        """Raise if an object could not be read. Objects that have failed for long are left to the checks.

        Raises:
            UnreadObjectsError: objects could not be fetched, and may be at the next attempt.
            BrokenObjectsError: objects were found broken.
        """
        quick = [entry for entry in self.failing if entry.failure and not entry.failure.is_standing]
        if quick:
            raise UnreadObjectsError(self.manifest.feed, quick)
        if self.broken:
            raise BrokenObjectsError(self.manifest.feed, self.broken)


def read_new_objects(
    manifest: Manifest,
    source: Source,
    engine: "Engine",
    *,
    limits: ObjectLimits,
    start_date: date,
    now: datetime,
    run_id: str,
    settle: timedelta = timedelta(),
    queue: "SourceQueue | None" = None,
    chosen: Filter | None = None,
    again: Again = Again.NONE,
) -> Ingested:
    """Bring every object that is new or changed into the lake.

    For each batch, in this order: part files, rejects, and the commit of the manifest, which brings the rejected lines
    into their table. Files count from the commit on, so a crash before it leaves everything as it was.

    An object that cannot be fetched or is found broken is in the result. The others are read all the same.

    Args:
        manifest: what is known of the feed's objects; part files and rejects go to its lake.
        source: where its folder is.
        engine: parses.
        limits: what one object may hold.
        start_date: events before this day are out of range.
        now: events after the day that follows this moment (UTC) are out of range.
        run_id: who reads.
        settle: an object that has changed within this time before ``now`` is left to a later look.
        queue: tells of new objects. The folder is listed once a day then, and otherwise not.
        chosen: the filter that objects go through, if any.
        again: which objects are read again although they have not changed.

    Raises:
        ObjectStoreError, ObjectStoreUnavailableError: the folder cannot be listed.
        QueueError, QueueUnavailableError: the queue cannot be asked.
        obstore.exceptions.BaseError: the lake cannot be written to.
        FilterError: the filter cannot be started.
        ForgottenMeanwhileError: people or days were removed meanwhile; reading again leaves them out.
        UnreadObjectsError: several objects in a row could not be fetched, so the store is taken for down.
    """
    feed = manifest.feed
    result = Ingested(manifest, since=manifest.version())
    now_with = read_with(chosen)
    withheld = Withheld.of(manifest.registry)
    unknown = engine.new_scratch("listing") / "unknown.parquet"
    settled = Settled(now, settle)
    with _look(manifest, source, queue, now) as look:
        result.listed = look.listed
        gone = look.gone()
        # Kept in a file, as there may be many: the transaction must not stay open until all are read.
        result.settling = look.settling(start_date, settled, read_with=now_with, again=again)
        _spool(look.unknown(start_date, settled=settled, read_with=now_with, again=again), unknown)

    work = ReadObjects(
        feed=feed,
        storage=manifest.registry.storage,
        limits=limits,
        start_date=start_date,
        now=now,
        expected=now_with,
        source=source,
        withheld=withheld,
        chosen=chosen,
    )
    for parts in engine.each(work, _batches(unknown, engine.parallel)):
        for brought in parts:
            _commit(manifest, engine, brought, result, run_id=run_id, now=now)
    unknown.unlink()
    if gone:
        manifest.commit([], run_id=run_id, now=now, gone=gone)
    if look.announced is not None:
        forget_announced(manifest, look.announced, settled)
    return result


def _look(
    manifest: Manifest, source: Source, queue: "SourceQueue | None", now: datetime
) -> AbstractContextManager[Look]:
    """What the queue has announced; without a queue, and once a day, all objects of the folder."""
    if queue and not is_overdue(last_listing(manifest), now):
        return look_at_announced(manifest)
    return look_at_listing(manifest, source, now)


def _commit(
    manifest: Manifest, engine: "Engine", brought: Brought, result: Ingested, *, run_id: str, now: datetime
) -> None:
    """Commit what was read.

    Raises:
        UnreadObjectsError: several objects in a row could not be fetched, so the store is taken for down.
    """
    if brought.entries or brought.unfetched:
        manifest.commit(
            brought.entries,
            _rejects(manifest, engine, brought),
            run_id=run_id,
            now=now,
            unfetched=brought.unfetched,
            further_fields=brought.further_fields,
        )
        result.add(brought.entries)
        failing = manifest.of([item.key for item in brought.unfetched])
        result.failing += [entry for entry in failing.values() if entry.failure]
    if brought.entries:
        _log.info(
            "%s: read %d object(s), %d rows, %d rejected lines",
            manifest.feed.name,
            len(brought.entries),
            sum(entry.rows for entry in brought.entries),
            sum(entry.rejects for entry in brought.entries),
        )
    if brought.gave_up:
        raise UnreadObjectsError(manifest.feed, result.failing)


def _rejects(manifest: Manifest, engine: "Engine", brought: Brought) -> "pa.RecordBatchReader | None":
    """The rejected lines, from the files that have them."""
    if not brought.rejects:
        return None
    parts = [LakeFile(path, 0, 0) for path in brought.rejects]
    return read_parquet(one_by_one(manifest.registry.storage, engine, parts))


def _spool(objects: "pa.RecordBatchReader", file: "Path") -> None:
    import pyarrow.parquet as pq

    with pq.ParquetWriter(file, objects.schema, compression="zstd") as writer:
        for batch in objects:
            writer.write_batch(batch)


def _batches(file: "Path", parallel: int) -> Iterator[list[dict[str, Any]]]:
    """The objects of a spooled listing, in batches; ``parallel`` times more and smaller ones than for one engine."""
    most_bytes, most = _BATCH_BYTES // parallel, max(1, _BATCH_OBJECTS // parallel)
    import pyarrow.parquet as pq

    waiting: list[dict[str, Any]] = []
    size = 0
    for batch in pq.ParquetFile(file).iter_batches(_BATCH_OBJECTS, use_threads=False):
        for item in batch.to_pylist():
            if waiting and (size + item["size"] > most_bytes or len(waiting) == most):
                yield waiting
                waiting, size = [], 0
            waiting.append(item)
            size += item["size"]
    if waiting:
        yield waiting

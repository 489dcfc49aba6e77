"""How new objects are found: by listing a feed's folder, or from a queue that announces them.

With a queue the announced objects are kept in ``pipeline.announced_objects`` of the staging database before their
messages are deleted, so no crash loses one. A message may come twice, late or never: once a day the folder is listed
all the same.

Listing very many objects takes longer than a tick of the sensor may: then only runs do it. How long the last listing of
a run took is in ``pipeline.listings``.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from user_pipeline.ingest.entries import object_id
from user_pipeline.ingest.look import Look, Settled
from user_pipeline.ingest.manifest import Manifest
from user_pipeline.resources.postgres import literal
from user_pipeline.resources.source_listing import is_hidden

if TYPE_CHECKING:
    import pyarrow as pa

    from user_pipeline.resources.queue import Announced, SourceQueue
    from user_pipeline.resources.source import Source

_log = logging.getLogger(__name__)

LISTED_AGAIN = timedelta(days=1)
"""With a queue, the folders are listed as often as this."""
TICK_SECONDS = 40.0
"""How long a tick of the sensor may list: Dagster ends a tick after 60 seconds."""
SLOW_SECONDS = 20.0
"""A folder that took a run longer than this to list is listed by runs alone."""
_RECEIVED_AT_ONCE = 500
_PATIENCE = 20.0
"""How many seconds messages are received from the queue; the rest is left to the next look."""


class SlowListingError(Exception):
    """A listing takes longer than it may."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The last listing of a feed's folder that a run made.

    Attributes:
        listed_at: when it began.
        seconds: how long it took.
        objects: how many there were.
    """

    listed_at: datetime
    seconds: float
    objects: int

    @property
    def is_slow(self) -> bool:
        """Whether ticks leave the listing to runs."""
        return self.seconds > SLOW_SECONDS

    @property
    def next_at(self) -> datetime:
        """When a slow listing is due again: listing takes a fifth of the time at most."""
        return self.listed_at + max(timedelta(minutes=5), 5 * timedelta(seconds=self.seconds))


def last_listing(manifest: Manifest) -> Listing | None:
    """The last listing of a feed's folder that a run made, if any."""
    found = manifest.fetch(
        f"select listed_at, seconds, objects from pipeline.listings where feed = {literal(manifest.feed.name)}"
    )
    return Listing(*found[0]) if found else None


def is_overdue(listing: Listing | None, now: datetime) -> bool:
    """Whether a folder with a queue is to be listed again."""
    return listing is None or now - listing.listed_at >= LISTED_AGAIN


def receive(queue: "SourceQueue", manifests: Sequence[Manifest]) -> int:
    """Keep the objects that the queue announces, and delete its messages; returns how many objects there are.

    Raises:
        QueueError: the queue does not exist, or refuses.
        QueueUnavailableError: it does not answer.
    """
    until = time.monotonic() + _PATIENCE
    objects: list[Announced] = []
    receipts: list[str] = []
    kept = others = 0
    for received in queue.receive():
        objects += received.objects
        receipts += received.receipts
        others += received.others
        if len(receipts) >= _RECEIVED_AT_ONCE or time.monotonic() > until:
            kept += _keep(manifests, objects)
            queue.delete(receipts)
            objects, receipts = [], []
        if time.monotonic() > until:
            break
    kept += _keep(manifests, objects)
    queue.delete(receipts)
    if others:
        _log.info("%d messages of the queue announced no new object of the source", others)
    return kept


def _keep(manifests: Sequence[Manifest], objects: "Sequence[Announced]") -> int:
    """Keep announced objects; of the same key the latest replaces what was announced before."""
    kept = 0
    for manifest in manifests:
        folder = f"{manifest.feed.folder}/"
        # If a key was announced twice, its last content counts.
        latest = {
            item.key: item
            for item in sorted(objects, key=lambda item: item.written)
            if item.key.startswith(folder) and not is_hidden(item.key, item.size, len(folder) - 1)
        }
        if latest:
            _insert(manifest, list(latest.values()))
            kept += len(latest)
    return kept


def _insert(manifest: Manifest, objects: "Sequence[Announced]") -> None:
    import pyarrow as pa

    schema = pa.schema(
        [
            ("object_id", pa.binary()),
            ("key", pa.string()),
            ("etag", pa.string()),
            ("size", pa.int64()),
            ("last_modified", pa.timestamp("us", tz="UTC")),
        ]
    )
    rows = [
        {
            "object_id": object_id(item.key),
            "key": item.key,
            "etag": item.etag,
            "size": item.size,
            "last_modified": item.written,
        }
        for item in objects
    ]
    manifest.open()
    with manifest.registry.database.transaction() as transaction:
        transaction.load("told", pa.Table.from_pylist(rows, schema).to_reader())
        # With the lock, numbers become visible in their order. So all up to a number can be deleted once looked at.
        transaction.execute("lock table pipeline.announced_objects in share row exclusive mode")
        transaction.execute(
            f"""
            insert into pipeline.announced_objects as a (feed, object_id, key, etag, size, last_modified)
            select {literal(manifest.feed.name)}, object_id, key, etag, size, last_modified from told
            on conflict (feed, object_id) do update set number = default, etag = excluded.etag,
              size = excluded.size, last_modified = excluded.last_modified
            """
        )


@contextmanager
def look_at_listing(manifest: Manifest, source: "Source", now: datetime) -> Iterator[Look]:
    """Compare a listing of a feed's folder with the manifest, and keep how long listing took for the sensor's ticks.

    Raises:
        ObjectStoreError, ObjectStoreUnavailableError: the folder cannot be listed.
    """
    begun = time.monotonic()
    with manifest.look(source.list(manifest.feed.folder)) as look:
        look.note_listing(now, time.monotonic() - begun)
        yield look


@contextmanager
def look_within(manifest: Manifest, source: "Source", seconds: float) -> Iterator[Look]:
    """Compare a listing of a feed's folder with the manifest, within some seconds.

    Raises:
        SlowListingError: it takes longer.
        ObjectStoreError, ObjectStoreUnavailableError: the folder cannot be listed.
    """
    with manifest.look(_limited(source.list(manifest.feed.folder), time.monotonic() + seconds)) as look:
        yield look


@contextmanager
def look_at_announced(manifest: Manifest) -> Iterator[Look]:
    """Compare with the manifest what was announced, and what could not be fetched before."""
    manifest.open()
    with manifest.registry.database.transaction() as transaction:
        yield Look.at_announced(transaction, manifest.feed)


def forget_announced(manifest: Manifest, number: int, settled: Settled) -> None:
    """Delete announced objects up to a number, which were looked at; those that have to settle stay."""
    with manifest.registry.database.transaction() as transaction:
        transaction.execute(
            f"delete from pipeline.announced_objects l where feed = {literal(manifest.feed.name)} "
            f"and number <= {number} and not {settled.sql}"
        )


def _limited(listing: "pa.RecordBatchReader", until: float) -> "pa.RecordBatchReader":
    import pyarrow as pa

    def batches() -> "Iterator[pa.RecordBatch]":
        for batch in listing:
            if time.monotonic() > until:
                raise SlowListingError
            yield batch

    return pa.RecordBatchReader.from_batches(listing.schema, batches())

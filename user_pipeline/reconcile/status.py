"""The state of the platform: which days there are, which objects wait, how large everything is.

Nothing is written, and the time does not grow with the number of rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

from user_pipeline.ingest.day_account import objects_of_day
from user_pipeline.ingest.discovery import SlowListingError, look_at_announced, look_within
from user_pipeline.ingest.feeds import FEEDS, Feed
from user_pipeline.ingest.filter import Filter, read_with
from user_pipeline.ingest.look import Settled
from user_pipeline.ingest.manifest import Manifest
from user_pipeline.lake.lake import Lake
from user_pipeline.settings import Settings
from user_pipeline.warehouse.tables import SNAPSHOTS

if TYPE_CHECKING:
    from user_pipeline.resources.postgres import Transaction

_LISTING = 3.0
"""Seconds for listing a feed's folder; if it takes longer, what waits there is unknown."""
DUE = timedelta(hours=3)
"""How long after midnight, UTC, the day before is overdue."""


@dataclass(frozen=True, slots=True)
class Days:
    """The days of an asset.

    Attributes:
        asset: its name.
        first: the first day that is there.
        last: the last.
        missing: days that are not there, from the first day any asset has to the last day any has; not told of
            tables of snapshots, of which a run of several days makes the last one.
        unsynced: days whose input has changed since they were materialized.
    """

    asset: str
    first: date
    last: date
    missing: int
    unsynced: int


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects of a feed.

    Attributes:
        feed: its name.
        read: how many were read.
        waiting: how many are new or changed; None if it takes too long to find out.
        failing: how many could not be fetched.
        broken: how many could not be read to their end.
    """

    feed: str
    read: int
    waiting: int | None
    failing: int
    broken: int


@dataclass(frozen=True, slots=True)
class Rejects:
    """The rejected lines of the objects that brought rows for a feed's last day, by reason."""

    feed: str
    day: date
    lines: int
    rejected: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Stored:
    """What lake and databases hold, and how it came in.

    Attributes:
        days: of each asset with files in the lake.
        objects: of each feed.
        rejects: of each feed's last day.
        overdue: assets whose partition of the day before should be there and is not.
        lake_bytes: the files that make up all partitions.
        table_bytes: the size of each database, by its setting.
    """

    days: Sequence[Days] = ()
    objects: Sequence[Objects] = ()
    rejects: Sequence[Rejects] = ()
    overdue: Sequence[str] = ()
    lake_bytes: int = 0
    table_bytes: Mapping[str, int] | None = None


def stored(current: Settings, lake: Lake, now: datetime) -> Stored:
    """What lake and databases hold; both have to answer."""
    partitions: dict[str, dict[date, datetime]] = {}
    sizes, lake_bytes = {}, 0
    for database in (lake.staging.database, lake.analytics.database):
        with database.transaction() as transaction:
            [(sizes[database.database.variable],)] = transaction.fetch("select pg_database_size(current_database())")
            if _has(transaction, "pipeline.lake_partitions"):
                partitions |= _partitions(transaction)
                [(size,)] = transaction.fetch(
                    "select coalesce(sum(size), 0)::bigint from pipeline.lake_files where superseded_at is null"
                )
                lake_bytes += int(size)
    with lake.staging.database.transaction() as transaction:
        is_new = not _has(transaction, "pipeline.ingested_objects")
    if is_new:
        return Stored(table_bytes=sizes)
    manifests = [Manifest(feed, lake.staging) for feed in FEEDS]
    return Stored(
        days=_days(partitions, manifests),
        objects=[_objects(manifest, lake, current, now) for manifest in manifests],
        rejects=[rejects for manifest in manifests for rejects in _rejects(manifest, partitions)],
        overdue=_overdue(partitions, current, now),
        lake_bytes=lake_bytes,
        table_bytes=sizes,
    )


def due_day(now: datetime) -> date:
    """The day that is to be there at a moment: from three hours after midnight, UTC, on the day before."""
    return (now.astimezone(UTC) - DUE).date() - timedelta(days=1)


def _has(transaction: "Transaction", table: str) -> bool:
    [(found,)] = transaction.fetch("select to_regclass($1) is not null", (table,))
    return bool(found)


def _partitions(transaction: "Transaction") -> dict[str, dict[date, datetime]]:
    """When each partition of each asset was written."""
    found: dict[str, dict[date, datetime]] = {}
    for asset, day, at in transaction.fetch(
        "select p.asset, p.day, c.committed_at from pipeline.lake_partitions p "
        "join pipeline.lake_commits c on c.version = p.version order by p.asset, p.day"
    ):
        found.setdefault(asset, {})[day] = at
    return found


_INPUTS = {
    "user_updates": ("raw_user_updates",),
    "page_views": ("raw_page_views",),
    "users": ("user_updates",),
    "user_page_views": ("page_views",),
}
"""The upstream assets that a day is made from the same day of; assets that need all days are left out."""


def _days(partitions: Mapping[str, Mapping[date, datetime]], manifests: Sequence[Manifest]) -> list[Days]:
    if not partitions:
        return []
    first = min(min(days) for days in partitions.values())
    last = max(max(days) for days in partitions.values())
    expected = (last - first).days + 1
    changed = {f"raw_{manifest.feed.name}": _changed(manifest) for manifest in manifests}
    return [
        Days(
            asset,
            min(days),
            max(days),
            # A run of a range makes the snapshot of its last day alone.
            missing=0 if asset in SNAPSHOTS else expected - len(days),
            unsynced=changed.get(asset, 0)
            + sum(
                any(day in partitions.get(upstream, {}) and partitions[upstream][day] > at for upstream in inputs)
                for day, at in days.items()
            ),
        )
        for asset, days in partitions.items()
        for inputs in [_INPUTS.get(asset, ())]
    ]


def _changed(manifest: Manifest) -> int:
    """Days of raw that are there, of which rows were delivered or taken back since."""
    name = manifest.feed.name
    [(count,)] = manifest.fetch(
        f"select count(*) from pipeline.lake_partitions p where p.asset = 'raw_{name}' and exists (select "
        f"from pipeline.ingested_days d where d.feed = '{name}' and d.day = p.day and d.version > p.version)"
    )
    return int(count)


def _objects(manifest: Manifest, lake: Lake, current: Settings, now: datetime) -> Objects:
    [(read, failing, broken)] = manifest.fetch(
        "select count(*) filter (where start_date is not null), count(*) filter (where failed_etag is not null), "
        f"count(*) filter (where error is not null) from pipeline.ingested_objects where feed = '{manifest.feed.name}'"
    )
    return Objects(manifest.feed.name, read, _waiting(manifest, lake, current, now), failing, broken)


def _waiting(manifest: Manifest, lake: Lake, current: Settings, now: datetime) -> int | None:
    """How many objects are new or changed, by what the queue has told of or by a listing."""
    with_now = read_with(Filter.of(manifest.feed, current))
    try:
        look = (
            look_at_announced(manifest)
            if current.source_queue_url
            else look_within(manifest, lake.storage.source, _LISTING)
        )
        with look as there:
            unknown = there.unknown(current.start_date, now, Settled(now, current.settle_time), read_with=with_now)
            return sum(int(batch.num_rows) for batch in unknown)
    except SlowListingError:
        return None


def _rejects(manifest: Manifest, partitions: Mapping[str, Mapping[date, datetime]]) -> list[Rejects]:
    feed: Feed = manifest.feed
    days = partitions.get(f"raw_{feed.name}")
    if not days:
        return []
    account = objects_of_day(manifest, max(days))
    return [Rejects(feed.name, max(days), account.lines, account.rejected)]


def _overdue(partitions: Mapping[str, Mapping[date, datetime]], current: Settings, now: datetime) -> list[str]:
    """The tables people query that end before the day before, though its run should have been over for hours."""
    day = due_day(now)
    if day < current.start_date:
        return []
    tables = ("user_page_views", "page_recommendations")
    # Not whether the day is there: a range of days makes the recommendations of its last one alone.
    return [asset for asset in tables if max(partitions.get(asset, {}), default=date.min) < day]

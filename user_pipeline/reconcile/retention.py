"""The end of retention: rows of old days leave the lake and staging, identities leave the marts, sums stay.

What goes is told by days. A rejected line has none: it goes by the day on which its object was last written. The daily
aggregates of ``user_page_views`` stay, with ids and without names: the marts are made of them.
"""

import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from user_pipeline.ingest.feeds import FEEDS, Feed
from user_pipeline.ingest.manifest_log import object_lines
from user_pipeline.ingest.manifest_tables import create_manifest
from user_pipeline.ingest.rejects import create_rejects, rejects_schema
from user_pipeline.ingest.retirement import drop_paths, retire
from user_pipeline.ingest.vacuum import KEPT, delete, is_data_file, referred
from user_pipeline.lake.log import write_log
from user_pipeline.lake.partitions import partition_lines, partitions_in, register
from user_pipeline.lake.transfer import fetch
from user_pipeline.resources.postgres import literal, quote
from user_pipeline.warehouse.incremental import SHARED_FOLDER, Merge
from user_pipeline.warehouse.snapshots import served_day
from user_pipeline.warehouse.tables import create_marts, exists

if TYPE_CHECKING:
    from user_pipeline.engines.base import Engine
    from user_pipeline.lake.lake import Lake
    from user_pipeline.resources.postgres import Transaction

ASSET = "retention"
"""What its commits are of."""
_EXPORTS = ("user_page_views", "page_recommendations")
_FOLDERS = (
    *(f"{folder}/{feed.name}" for folder in ("raw", "cleaned") for feed in FEEDS),
    "daily/users",
    SHARED_FOLDER,
    "snapshots/page_recommendations",
)
_DAY = re.compile(r"/date=(\d{4}-\d{2}-\d{2})/")


@dataclass(frozen=True, slots=True)
class Retired:
    """What went.

    Attributes:
        files: how many files of the lake.
        days: of how many days rows or identities went now.
        unfinished: those of them that raw has newer rows of than the marts: their sums lack these.
    """

    files: int
    days: int
    unfinished: Sequence[date]


def end_retention(lake: "Lake", engine: "Engine", first: date, now: datetime) -> Retired:
    """Remove what is of days before ``first``. It can be killed, and done again.

    Args:
        lake: the lake, and its databases.
        engine: compares aggregates, and writes files of rejects anew.
        first: the first day that is kept.
        now: the time of day.
    """
    days, unfinished = _in_staging(lake, engine, first)
    days |= _in_analytics(lake, engine, first)
    return Retired(_delete_files(lake, first, now), len(days), sorted(unfinished))


def _in_staging(lake: "Lake", engine: "Engine", first: date) -> tuple[set[date], set[date]]:
    registry, run_id = lake.staging, str(uuid.uuid4())
    registry.open()
    with registry.database.transaction() as transaction:
        create_manifest(transaction)
        create_rejects(transaction)
        tables = [feed for feed in FEEDS if exists(transaction, feed.name)]
        for table in ("rejected_lines", *(feed.name for feed in tables)):
            transaction.execute(f"lock table public.{quote(table)} in share row exclusive mode")
        unfinished = {day for feed in FEEDS for day in _unfinished(transaction, feed, first)}
        version = registry.begin(transaction, ASSET, run_id, removing=True)
        lines = retire(transaction, first)
        days: set[date] = set()
        for feed in FEEDS:
            lines += _split_rejects(lake, engine, transaction, feed, first)
            for asset in (f"raw_{feed.name}", feed.name):
                emptied = _empty_partitions(transaction, asset, first)
                days |= set(emptied)
                lines += [line for day, of in emptied.items() for line in partition_lines(asset, {day: []}, of)]
        drop_paths(transaction)
        for feed in tables:
            transaction.execute(f"delete from public.{quote(feed.name)} where {feed.event_time} < '{first}'")
        write_log(registry.storage, registry.name, version, {"asset": ASSET, "run_id": run_id}, lines)
    return days, unfinished


def _unfinished(transaction: "Transaction", feed: Feed, first: date) -> list[date]:
    """Days whose rows changed after they were materialized last, or that never were."""
    found = transaction.fetch(
        f"""
        select d.day from pipeline.ingested_days d
        left join pipeline.lake_partitions p on p.asset = $1 and p.day = d.day
        where d.feed = {literal(feed.name)} and d.day < '{first}' and d.path is not null
        group by d.day, p.version having max(d.version) > coalesce(p.version, 0) order by 1
        """,
        (f"raw_{feed.name}",),
    )
    return [day for (day,) in found]


def _empty_partitions(transaction: "Transaction", asset: str, first: date) -> dict[date, int]:
    """Take the files from the partitions before a day, which keep their versions; by day the version."""
    versions = dict(
        transaction.fetch(
            f"select day, version from pipeline.lake_partitions where asset = $1 and day < '{first}'", (asset,)
        )
    )
    emptied = {day: versions[day] for day, there in partitions_in(transaction, asset, list(versions)).items() if there}
    for version in sorted(set(emptied.values())):
        register(transaction, asset, {day: [] for day, of in emptied.items() if of == version}, version)
    return emptied


def _split_rejects(
    lake: "Lake", engine: "Engine", transaction: "Transaction", feed: Feed, first: date
) -> list[dict[str, Any]]:
    """Write files anew that have rejects of old objects and of others, and delete the old ones from the table."""
    name = literal(feed.name)
    has_rejects = f"feed = {name} and rejects_path is not null"
    old, young = (f"{has_rejects} and last_modified {side} '{first}'" for side in ("<", ">="))
    transaction.execute(
        f"delete from public.rejected_lines where feed = {name} "
        f"and source_object in (select key from pipeline.ingested_objects where {old})"
    )
    mixed = transaction.fetch(
        f"select rejects_path from pipeline.ingested_objects where {old} intersect "
        f"select rejects_path from pipeline.ingested_objects where {young} order by 1"
    )
    lines: list[dict[str, Any]] = []
    for (path,) in mixed:
        keys = [
            key
            for (key,) in transaction.fetch(
                f"select key from pipeline.ingested_objects where {young} and rejects_path = $1", (path,)
            )
        ]
        kept = _write_rejects(lake, engine, feed, path, keys)
        transaction.execute(
            f"update pipeline.ingested_objects set rejects_path = $1::text where {young} and rejects_path = $2::text",
            (kept, path),
        )
        lines += object_lines(transaction, f"o.feed = {name} and o.rejects_path = {literal(kept)}")
    return lines


def _write_rejects(lake: "Lake", engine: "Engine", feed: Feed, path: str, keys: Sequence[str]) -> str:
    """Store the rejects of some objects of a file as a new file; returns where it is."""
    scratch = engine.new_scratch("rejects")
    file, target = fetch(lake.storage, path, scratch / "old.parquet"), scratch / "rejects.parquet"
    with engine.connect() as connection:
        connection.execute(
            f"copy (select {', '.join(rejects_schema().names)} from read_parquet({literal(str(file))}, "
            f"hive_partitioning = false) where source_object in ({', '.join(map(literal, keys))}) order by all) "
            f"to {literal(str(target))} (format parquet, compression zstd)"
        )
    kept = f"rejected/{feed.name}/{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:12]}.parquet"
    with target.open("rb") as content:
        lake.storage.lake.put(kept, content)
    return kept


def _in_analytics(lake: "Lake", engine: "Engine", first: date) -> set[date]:
    """Identities: users without a later update go, and the e-mails that others hold of them."""
    registry, run_id = lake.analytics, str(uuid.uuid4())
    registry.open()
    with registry.database.transaction() as transaction:
        create_marts(transaction)
        users = [day for day, files in partitions_in(transaction, "users").items() if day < first and files]
        if users:
            nobody = _no_users(engine)
            Merge(transaction, engine, lake.storage).apply("users", {day: [nobody] for day in users})
        version = registry.begin(transaction, ASSET, run_id, removing=True)
        served = served_day(transaction)
        lines: list[dict[str, Any]] = []
        emptied = {"users": _empty_partitions(transaction, "users", first)}
        # The first day is measured by the snapshot of the day before; what is served is learned anew by `verify`, with
        # what its snapshot says.
        until = min(first - timedelta(days=1), served or first)
        emptied["page_recommendations"] = _empty_partitions(transaction, "page_recommendations", until)
        for asset, versions in emptied.items():
            lines += [line for day, of in versions.items() for line in partition_lines(asset, {day: []}, of)]
        write_log(registry.storage, registry.name, version, {"asset": ASSET, "run_id": run_id}, lines)
    return {day for versions in emptied.values() for day in versions}


def _no_users(engine: "Engine") -> Path:
    """A file of no users."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [("user_id", pa.int64()), ("email", pa.string()), ("name", pa.string()), ("updated_at", pa.timestamp("us"))]
    )
    file = engine.new_scratch("retention") / "users.parquet"
    pq.write_table(schema.empty_table(), file)
    return file


def _delete_files(lake: "Lake", first: date, now: datetime) -> int:
    """Delete what nothing refers to any more of the days before a day, and old exports; returns how many files.

    Nobody commits such a day any more. Of a file of rejects it cannot be told whether somebody is about to commit it,
    unless it is as old as vacuum wants it.
    """
    kept = referred(lake)
    stale = [
        path
        for folder in _FOLDERS
        for path, _ in _listed(lake, folder)
        if is_data_file(path) and path not in kept and _is_before(path, first)
    ]
    for feed in FEEDS:
        stale += [
            path
            for path, written in _listed(lake, f"rejected/{feed.name}")
            if is_data_file(path) and path not in kept and now - written > KEPT
        ]
    stale += [path for table in _EXPORTS for path, _ in _listed(lake, f"exports/{table}") if _is_before(path, first)]
    delete(lake.storage.lake, stale)
    return len(stale)


def _listed(lake: "Lake", folder: str) -> Iterator[tuple[str, datetime]]:
    for page in lake.storage.lake.list(folder, chunk_size=10_000):
        yield from ((item["path"], item["last_modified"]) for item in page)


def _is_before(path: str, first: date) -> bool:
    found = _DAY.search(path)
    return found is not None and date.fromisoformat(found[1]) < first


def first_kept(now: datetime, days: int) -> date:
    """The first day that is kept of so many days before a moment."""
    return now.astimezone(UTC).date() - timedelta(days=days)

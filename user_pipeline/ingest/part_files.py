"""What a day of raw is made of: the part files that have its rows, or one new file of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from user_pipeline.ingest import commit, manifest_log
from user_pipeline.ingest.entries import DayParts
from user_pipeline.ingest.feeds import Feed
from user_pipeline.ingest.manifest import Manifest
from user_pipeline.lake.log import write_log
from user_pipeline.lake.partitions import LakeFile, partition_lines, register
from user_pipeline.lake.transfer import fetch_all

if TYPE_CHECKING:
    import duckdb

    from user_pipeline.engines.base import Engine
    from user_pipeline.resources.storage import ObjectStorage

_TYPES = {"ts": "timestamp", "updated_at": "timestamp", "user_id": "bigint", "source_line": "bigint"}


@dataclass(frozen=True, slots=True)
class RawDay:
    """What a day of raw is to be made of.

    Attributes:
        as_of: the newest commit to the staging database when this was worked out.
        rows: how many rows it has.
        pinned: the part files that have them, if every row of these counts.
        written: otherwise a new local file of the day's rows.
        rewritten: whether ``written`` holds rows of part files; False for the file of an empty day.
    """

    as_of: int
    rows: int
    pinned: Sequence[LakeFile] = ()
    written: Path | None = None
    rewritten: bool = False


def raw_day(manifest: Manifest, engine: "Engine", day: date, parts: DayParts) -> RawDay:
    """Work out what a day is made of; its rows are written to a new file if part files do not fit.

    Args:
        manifest: what is known of the feed's objects.
        engine: reads and writes.
        day: the day.
        parts: where the manifest says that its rows are.
    """
    # A day of more part files is written to one: reading it would wait for each of them.
    if 0 < len(parts.parts) <= engine.most_files and all(part.counted == part.file.rows for part in parts.parts):
        return RawDay(parts.as_of, parts.rows, [part.file for part in parts.parts])
    found = manifest.objects(day)
    target = engine.new_scratch("raw") / f"{day}.parquet"
    rows = _write(manifest.feed, manifest.registry.storage, engine, found.objects, target)
    return RawDay(found.as_of, rows, written=target, rewritten=bool(found.objects))


def _write(
    feed: Feed, storage: "ObjectStorage", engine: "Engine", objects: Sequence[tuple[str, str]], target: Path
) -> int:
    """Write the rows of objects to a local file.

    Args:
        feed: the feed.
        storage: has the lake.
        engine: reads and writes.
        objects: the part file and the key of each.
        target: the file.

    Returns:
        how many there are.
    """
    paths = sorted({path for path, _ in objects})
    fetched = fetch_all(storage, [LakeFile(path, 0, 0) for path in paths], engine.new_scratch("parts"))
    local = dict(zip(paths, fetched, strict=True))
    with engine.connect() as connection:
        pairs = [(str(local[path]), key) for path, key in objects]
        relation = _rows(connection, pairs) if pairs else _no_rows(connection, feed)
        relation.write_parquet(str(target), compression="zstd")
        [(rows,)] = connection.read_parquet(str(target)).aggregate("count(*)").fetchall()
    for file in fetched:
        # A lake in a directory has files as well.
        if file.is_relative_to(engine.scratch):
            file.unlink()
    return int(rows)


def _rows(connection: "duckdb.DuckDBPyConnection", current: list[tuple[str, str]]) -> "duckdb.DuckDBPyRelation":
    """The rows of pairs of a part file and an object, by one join: the plan does not grow with their number."""
    import pyarrow as pa

    files, objects = zip(*current, strict=True)
    wanted = connection.from_arrow(pa.table({"filename": files, "source_object": objects}))
    return (
        connection.read_parquet(sorted(set(files)), filename=True, hive_partitioning=False)
        .set_alias("parts")
        .join(
            wanted.set_alias("wanted"),
            "parts.filename = wanted.filename and parts.source_object = wanted.source_object",
            how="semi",
        )
        .project("* exclude (filename)")
    )


def _no_rows(connection: "duckdb.DuckDBPyConnection", feed: Feed) -> "duckdb.DuckDBPyRelation":
    columns = (*feed.columns, "source_object", "source_line", "rescued")
    return connection.sql(
        "select "
        + ", ".join(f"null::{_TYPES.get(column, 'varchar')} as {column}" for column in columns)
        + " where false"
    )


def commit_raw_days(
    manifest: Manifest, days: Mapping[date, RawDay], stored: Mapping[date, LakeFile], run_id: str
) -> None:
    """Register what some days of raw are made of, in one transaction.

    For a day that was rewritten, the manifest then names the new file instead of the part files, unless the rows of the
    day have changed meanwhile. Then the day gets the version that it was made from, so that it counts as older than the
    change.

    Args:
        manifest: what is known of the feed's objects.
        days: by day, what it is made of.
        stored: the files of the lake that have the days written to a new file.
        run_id: who made them.
    """
    manifest.open()
    registry, feed, asset = manifest.registry, manifest.feed, f"raw_{manifest.feed.name}"
    files = {day: [stored[day]] if day in stored else list(made.pinned) for day, made in days.items()}
    lines: list[dict[str, object]] = []
    with registry.database.transaction() as transaction:
        version = registry.begin(transaction, asset, run_id)
        changed = manifest.changes_in(transaction, min(made.as_of for made in days.values()), list(days))
        by_version: dict[int, dict[date, list[LakeFile]]] = {}
        for day, made in days.items():
            is_changed = changed.get(day, 0) > made.as_of
            by_version.setdefault(made.as_of if is_changed else version, {})[day] = files[day]
            if made.rewritten and not is_changed:
                commit.point_to(transaction, feed, day, stored[day])
                lines.append(manifest_log.rewritten_line(feed, day, stored[day]))
        for of, partitions in by_version.items():
            register(transaction, asset, partitions, of)
            lines += partition_lines(asset, partitions, of)
        write_log(registry.storage, registry.name, version, {"asset": asset, "run_id": run_id}, lines)

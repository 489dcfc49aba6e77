"""Remove from the lake what nothing refers to any more: what was read or made again since."""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from user_pipeline.ingest import manifest_log
from user_pipeline.ingest.drift import field_lines
from user_pipeline.ingest.intake import accepted_lines
from user_pipeline.ingest.manifest_tables import create_manifest
from user_pipeline.ingest.retirement import retirement_lines
from user_pipeline.ingest.suppression import suppression_lines
from user_pipeline.lake.log import logs
from user_pipeline.lake.recover import checkpoint

if TYPE_CHECKING:
    from user_pipeline.lake.lake import Lake
    from user_pipeline.lake.registry import Registry
    from user_pipeline.resources.object_store import Store
    from user_pipeline.resources.postgres import Postgres, Transaction

KEPT = timedelta(days=2)
"""Longer than any run: a run may not have registered its files yet, and others may read files that were replaced."""
_AT_ONCE = 1_000
# The names that files of the lake get which registry or manifest refer to; exports and the like have other ones.
_NAME = re.compile(r".+/\d{8}T\d{6}-[0-9a-f]{12}\.parquet")


@dataclass(frozen=True, slots=True)
class Removed:
    """What was removed.

    Attributes:
        files: files of the lake with rows.
        size: their bytes.
        logs: logs of which the checkpoint tells what still counts.
    """

    files: int
    size: int
    logs: int


def vacuum(lake: "Lake", now: datetime, *, kept: timedelta = KEPT) -> Removed:
    """Remove files that nothing refers to, and that were written and replaced some time ago.

    They come from objects and days that changed, and from runs that were cut off before they committed. Nothing that
    counts is ever removed: a file's name is used once.

    What the logs of a database say that still counts is written into a checkpoint first; then older logs go, so that
    none is left that refers to a file which is removed.

    Args:
        lake: the lake, and the databases with registries and manifest.
        now: the time of day.
        kept: what is younger than this stays.

    Raises:
        LostRegistryError: a database does not know what it has written to the lake, so nothing may be removed.
    """
    staging, analytics, store = lake.staging.database, lake.analytics.database, lake.storage.lake
    for registry in (lake.staging, lake.analytics):
        registry.open()
    with staging.transaction() as transaction:
        create_manifest(transaction)
    # Listed first: what is written after the references were read is not in the listing.
    old = [(path, size) for path, written, size in _files(store) if now - written > kept]
    removed = fold_logs(lake)
    for database in (staging, analytics):
        _forget(database, "pipeline.lake_files", "superseded_at", now - kept)
    _forget(staging, "pipeline.replaced_files", "replaced_at", now - kept)
    kept_paths = {*_paths(staging, _FILES, _PART_FILES, _REJECTS, _REPLACED), *_paths(analytics, _FILES)}
    stale = [(path, size) for path, size in old if path not in kept_paths]
    delete(store, [path for path, _ in stale])
    return Removed(len(stale), sum(size for _, size in stale), removed)


def referred(lake: "Lake") -> set[str]:
    """The files of the lake that registries and manifest refer to now; those that were replaced are not among them."""
    current = f"{_FILES} where superseded_at is null"
    return {
        *_paths(lake.staging.database, current, _PART_FILES, _REJECTS),
        *_paths(lake.analytics.database, current),
    }


def fold_logs(lake: "Lake") -> int:
    """Replace the logs of each database by a checkpoint; returns how many logs were removed."""
    return _fold_logs(lake.staging, with_manifest=True) + _fold_logs(lake.analytics)


def is_data_file(path: str) -> bool:
    """Whether an object of the lake is a file that registry or manifest refer to, or did."""
    return _NAME.fullmatch(path) is not None


def _fold_logs(registry: "Registry", *, with_manifest: bool = False) -> int:
    """Replace the logs of a database by a checkpoint, if there are several; returns how many were removed."""
    if len(logs(registry.storage, registry.name)) <= 1:
        return 0
    made = checkpoint(registry, _manifest_lines if with_manifest else None)
    # Their commits ended before that of the checkpoint, or were never made.
    older = [log.path for log in logs(registry.storage, registry.name) if log.version < made.version]
    delete(registry.storage.lake, older)
    return len(older)


def _manifest_lines(transaction: "Transaction") -> "Iterator[dict[str, object]]":
    yield from manifest_log.object_lines(transaction, "true")
    yield from manifest_log.orphan_lines(transaction)
    yield from field_lines(transaction, "true")
    yield from accepted_lines(transaction)
    yield from suppression_lines(transaction)
    yield from retirement_lines(transaction)


_FILES = "select path from pipeline.lake_files"
_PART_FILES = "select distinct path from pipeline.ingested_days where path is not null"
_REJECTS = "select distinct rejects_path from pipeline.ingested_objects where rejects_path is not null"
_REPLACED = "select path from pipeline.replaced_files"


def _paths(database: "Postgres", *queries: str) -> Iterator[str]:
    for query in queries:
        with database.query(query) as reader:
            for batch in reader:
                yield from batch.column(0).to_pylist()


def _forget(database: "Postgres", table: str, column: str, moment: datetime) -> None:
    with database.transaction() as transaction:
        transaction.execute(f"delete from {table} where {column} < '{moment.isoformat()}'")


def _files(lake: "Store") -> Iterator[tuple[str, datetime, int]]:
    for page in lake.list(chunk_size=10_000):
        for item in page:
            if _NAME.fullmatch(item["path"]):
                yield item["path"], item["last_modified"], item["size"]


def delete(lake: "Store", paths: Sequence[str]) -> None:
    """Delete objects; it is no error that some are gone."""
    for start in range(0, len(paths), _AT_ONCE):
        some = list(paths[start : start + _AT_ONCE])
        try:
            lake.delete(some)
        except FileNotFoundError:
            # In a directory it is an error that another process has deleted one.
            for path in some:
                with suppress(FileNotFoundError):
                    lake.delete(path)

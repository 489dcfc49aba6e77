"""Full refresh: rebuild tables of Postgres from the lake, without the source."""

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from user_pipeline.ingest.feeds import FEEDS
from user_pipeline.ingest.intake import restore_accepted
from user_pipeline.ingest.manifest import Manifest
from user_pipeline.ingest.manifest_tables import restore_manifest
from user_pipeline.ingest.rejects import create_rejects, rejects_schema, replace_rejects
from user_pipeline.ingest.retirement import drop_paths, restore_retirement
from user_pipeline.ingest.suppression import restore_suppression
from user_pipeline.lake.recover import NotEmptyError, is_empty
from user_pipeline.lake.recover import recover as recover_registry
from user_pipeline.lake.transfer import fetch
from user_pipeline.warehouse.incremental import refresh
from user_pipeline.warehouse.tables import INCREMENTAL, create_marts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pyarrow as pa

    from user_pipeline.engines.base import Engine
    from user_pipeline.lake.lake import Lake
    from user_pipeline.resources.postgres import Transaction


def refresh_rejected_lines(lake: "Lake", engine: "Engine") -> int:
    """Replace all rows of ``rejected_lines`` by the rejects in the lake, feed by feed.

    Returns:
        how many there are.
    """
    count = 0
    for feed in FEEDS:
        manifest = Manifest(feed, lake.staging)
        manifest.open()
        with lake.staging.database.transaction() as transaction:
            create_rejects(transaction)
            count += replace_rejects(transaction, feed, None, _rejects(manifest, engine))
    return count


def rejects_files(manifest: Manifest) -> dict[str, list[str]]:
    """The files of the lake that have the rejected lines of a feed, and the objects whose lines in each count."""
    found: dict[str, list[str]] = defaultdict(list)
    for path, key in manifest.rejects_paths():
        found[path].append(key)
    return found


def _rejects(manifest: Manifest, engine: "Engine") -> "pa.RecordBatchReader":
    """All rejected lines of a feed that count, a file at a time."""
    import pyarrow as pa

    by_file = rejects_files(manifest)
    schema = rejects_schema()

    def batches() -> "Iterator[pa.RecordBatch]":
        target = engine.new_scratch("rejects") / "rejects.parquet"
        with engine.connect() as connection:
            for path, keys in by_file.items():
                file = fetch(manifest.registry.storage, path, target)
                yield from connection.execute(
                    f"select {', '.join(schema.names)} from read_parquet($file, hive_partitioning = false) "
                    "where list_contains($keys, source_object)",
                    {"file": str(file), "keys": keys},
                ).to_arrow_reader(10_000)

    return pa.RecordBatchReader.from_batches(schema, batches())


def recover(lake: "Lake", engine: "Engine") -> dict[str, int]:
    """Fill new databases from the lake: registries, manifest, rejected lines and incremental tables.

    A database that is not new stays as it is. The other tables are filled when their days are materialized.

    Returns:
        how many rows or commits there are, by what was filled.

    Raises:
        NotEmptyError: none of the databases is new.
    """
    new = [registry.name for registry in (lake.staging, lake.analytics) if is_empty(registry)]
    if not new:
        raise NotEmptyError(
            "neither database is empty: only new databases are filled from the lake. Of a database that is to be "
            "filled again, drop the schemas public and pipeline first."
        )
    filled = {}
    if lake.staging.name in new:
        filled["commits to the staging database"] = recover_registry(lake.staging, _restore)
        filled["rejected_lines"] = refresh_rejected_lines(lake, engine)
    if lake.analytics.name in new:
        filled["commits to the analytics database"] = recover_registry(lake.analytics)
        filled |= refresh_marts(lake, engine)
    return filled


def refresh_marts(lake: "Lake", engine: "Engine") -> dict[str, int]:
    """Bring ``users`` and ``user_page_views`` in line with their daily aggregates, in one transaction.

    Returns:
        by table, how many rows were changed.
    """
    lake.analytics.open()
    with lake.analytics.database.transaction() as transaction:
        create_marts(transaction)
        return {table: refresh(transaction, engine, lake.storage, table) for table in INCREMENTAL}


def _restore(transaction: "Transaction", lines: "Iterator[Mapping[str, Any]]") -> None:
    """Restore from the logs of staging what is not about partitions."""
    for restore in (restore_accepted, restore_suppression, restore_retirement):
        lines = restore(transaction, lines)
    restore_manifest(transaction, lines)
    drop_paths(transaction)

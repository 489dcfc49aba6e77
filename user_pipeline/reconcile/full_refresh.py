"""Make anew what materializing a day changes by the difference: from what is kept, not from the source."""

from collections import defaultdict
from importlib.resources import files
from typing import TYPE_CHECKING

from user_pipeline.ingest.feeds import FEEDS
from user_pipeline.ingest.manifest import Manifest, restore_manifest
from user_pipeline.ingest.rejects import create_rejects, rejects_schema, replace_rejects
from user_pipeline.lake.lake import Lake
from user_pipeline.lake.recover import NotEmptyError, is_empty
from user_pipeline.lake.recover import recover as recover_registry
from user_pipeline.lake.transfer import fetch
from user_pipeline.warehouse.replace import MAINTAINED, create_marts

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from user_pipeline.engines.duckdb import Engine
    from user_pipeline.resources.postgres import Databases, Postgres
    from user_pipeline.resources.storage import ObjectStorage


def rebuild_rejected_lines(storage: "ObjectStorage", engine: "Engine", databases: "Databases") -> int:
    """Put the rejects in the lake in the place of all rows of ``rejected_lines``, feed by feed.

    Returns:
        how many there are.
    """
    count = 0
    for feed in FEEDS:
        manifest = Manifest.of(feed, storage, databases)
        with databases.staging.transaction() as transaction:
            create_rejects(transaction)
            count += replace_rejects(transaction, feed, None, _rejects(manifest, storage, engine))
    return count


def rejects_files(manifest: Manifest) -> dict[str, list[str]]:
    """The files of the lake that have the rejected lines of a feed, and the objects whose lines in each count."""
    found: dict[str, list[str]] = defaultdict(list)
    for path, key in manifest.rejects_paths():
        found[path].append(key)
    return found


def _rejects(manifest: Manifest, storage: "ObjectStorage", engine: "Engine") -> "pa.RecordBatchReader":
    """All rejected lines of a feed that count, a file at a time."""
    import pyarrow as pa

    by_file = rejects_files(manifest)
    schema = rejects_schema()

    def batches() -> "Iterator[pa.RecordBatch]":
        target = engine.new_scratch("rejects") / "rejects.parquet"
        with engine.connect() as connection:
            for path, keys in by_file.items():
                file = fetch(storage, path, target)
                yield from connection.execute(
                    f"select {', '.join(schema.names)} from read_parquet($file, hive_partitioning = false) "
                    "where list_contains($keys, source_object)",
                    {"file": str(file), "keys": keys},
                ).to_arrow_reader(10_000)

    return pa.RecordBatchReader.from_batches(schema, batches())


def recover(storage: "ObjectStorage", engine: "Engine", databases: "Databases") -> dict[str, int]:
    """Fill new databases again from the lake: registries, manifest and rejected lines.

    A database that is not new stays as it is. All other tables come back when their days are materialized.

    Returns:
        what was filled, and how many there are.

    Raises:
        NotEmptyError: none of the databases is new.
    """
    lake = Lake(storage, databases)
    new = [registry for registry in (lake.staging, lake.analytics) if is_empty(registry)]
    if not new:
        raise NotEmptyError(
            "neither database is empty: only new databases are filled from the lake. Of a database that is to be "
            "filled again, drop the schemas public and pipeline first."
        )
    filled = {}
    for registry in new:
        restore = restore_manifest if registry is lake.staging else None
        filled[f"{registry.name}: commits of the lake's logs"] = recover_registry(registry, restore)
    if lake.staging in new:
        filled["staging: rejected lines"] = rebuild_rejected_lines(storage, engine, databases)
    return filled


def rebuild_marts(analytics: "Postgres") -> dict[str, int]:
    """Bring ``users`` and ``user_page_views`` in line with the contributions of their days, in one transaction.

    Returns:
        by table, how many rows were not.
    """
    sql = files("user_pipeline.warehouse").joinpath("sql")
    changed = dict.fromkeys(MAINTAINED, 0)
    with analytics.transaction() as transaction:
        create_marts(transaction)
        for script in sorted(sql.joinpath("rebuild").iterdir(), key=lambda script: script.name):
            statement = script.read_text(encoding="utf-8")
            if table := script.name.removesuffix(".sql").partition("_of_")[2]:
                counted = f"with changed as ({statement} returning 1) select count(*) from changed"
                [(rows,)] = transaction.fetch(counted)
                changed[table] += rows
            else:
                transaction.execute(statement)
    return changed

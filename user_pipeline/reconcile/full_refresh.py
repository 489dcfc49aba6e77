"""Full refresh: tables of Postgres made from what the lake holds of them, not from the source."""

from collections import defaultdict
from typing import TYPE_CHECKING

from user_pipeline.ingest.feeds import FEEDS, Feed
from user_pipeline.ingest.manifest import Catalog, rejects_path
from user_pipeline.ingest.rejects import replace_rejects
from user_pipeline.lake.transfer import fetch
from user_pipeline.warehouse.incremental import refresh
from user_pipeline.warehouse.tables import INCREMENTAL, create_marts

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from user_pipeline.engines.duckdb import Engine
    from user_pipeline.lake.lake import Lake
    from user_pipeline.resources.postgres import Postgres
    from user_pipeline.resources.storage import ObjectStorage


def refresh_rejected_lines(storage: "ObjectStorage", engine: "Engine", staging: "Postgres") -> int:
    """Put the rejects in the lake in the place of all rows of ``rejected_lines``, feed by feed.

    Returns:
        how many there are.
    """
    return sum(replace_rejects(staging, feed, None, _rejects(feed, storage, engine)) for feed in FEEDS)


def _rejects(feed: Feed, storage: "ObjectStorage", engine: "Engine") -> "pa.RecordBatchReader":
    """All rejected lines of a feed that count, a batch of the reader at a time."""
    import pyarrow as pa

    by_batch: dict[str, list[str]] = defaultdict(list)
    for entry in Catalog.load(storage.lake, feed).entries():
        if entry.rejects:
            by_batch[entry.batch].append(entry.key)
    schema = pa.schema(
        [("source_object", pa.string()), ("source_line", pa.int64()), ("reason", pa.string()), ("line", pa.string())]
    )

    def batches() -> "Iterator[pa.RecordBatch]":
        target = engine.new_scratch("rejects") / "rejects.parquet"
        with engine.connect() as connection:
            for batch, keys in by_batch.items():
                file = fetch(storage, rejects_path(feed, batch), target)
                yield from connection.execute(
                    f"select {', '.join(schema.names)} from read_parquet($file, hive_partitioning = false) "
                    "where list_contains($keys, source_object)",
                    {"file": str(file), "keys": keys},
                ).to_arrow_reader(10_000)

    return pa.RecordBatchReader.from_batches(schema, batches())


def refresh_marts(lake: "Lake", engine: "Engine") -> dict[str, int]:
    """Bring ``users`` and ``user_page_views`` in line with their daily aggregates, in one transaction.

    Returns:
        by table, how many rows were not.
    """
    lake.analytics.open()
    with lake.analytics.database.transaction() as transaction:
        create_marts(transaction)
        return {table: refresh(transaction, engine, lake.storage, table) for table in INCREMENTAL}

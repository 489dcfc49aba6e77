"""Gather the rows of a day from the fragments that hold them."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import narwhals as nw

from user_pipeline.ingest.catalog import Catalog, fragment_path
from user_pipeline.ingest.feeds import Feed
from user_pipeline.transforms import Frame

if TYPE_CHECKING:
    import duckdb

    from user_pipeline.resources.engine import Engine
    from user_pipeline.resources.object_store import ObjectStorage

_TYPES = {"ts": "timestamp", "updated_at": "timestamp", "user_id": "bigint", "source_line": "bigint"}


def gather(
    feed: Feed, catalog: Catalog, storage: "ObjectStorage", engine: "Engine", days: Sequence[date]
) -> dict[date, Frame]:
    """The rows of some days, a lazy frame each.

    Returns:
        by day, the feed's own columns, ``source_object`` string and ``source_line`` int64, in the order
        of the last two; no rows for a day without any.
    """
    connection = engine.connect()
    scratch = None if storage.lake_file("") else engine.new_scratch("gather")
    frames = {}
    for day, batches in catalog.batches(days).items():
        relations = [
            _batch(connection, _fetch(storage, fragment_path(feed, day, batch), scratch), keys)
            for batch, keys in batches.items()
        ]
        frames[day] = nw.from_native(_union(relations) if relations else _empty(connection, feed))
    return frames


def _batch(connection: "duckdb.DuckDBPyConnection", file: Path, keys: list[str]) -> "duckdb.DuckDBPyRelation":
    """The rows of a fragment whose objects were not read again since."""
    import duckdb

    current = duckdb.ColumnExpression("source_object").isin(*(duckdb.ConstantExpression(key) for key in keys))
    return connection.read_parquet(str(file), hive_partitioning=False).filter(current)


def _union(relations: "list[duckdb.DuckDBPyRelation]") -> "duckdb.DuckDBPyRelation":
    # In pairs: a chain as long as the number of fragments would be as deep a plan.
    while len(relations) > 1:
        relations = [
            relations[i].union(relations[i + 1]) if i + 1 < len(relations) else relations[i]
            for i in range(0, len(relations), 2)
        ]
    return relations[0].order("source_object, source_line")


def _empty(connection: "duckdb.DuckDBPyConnection", feed: Feed) -> "duckdb.DuckDBPyRelation":
    columns = (*feed.columns, "source_object", "source_line")
    return connection.sql(
        "select "
        + ", ".join(f"null::{_TYPES.get(column, 'varchar')} as {column}" for column in columns)
        + " where false"
    )


def _fetch(storage: "ObjectStorage", path: str, scratch: Path | None) -> Path:
    """The fragment as a local file."""
    if (file := storage.lake_file(path)) is not None:
        return file
    file = (scratch or Path()) / path.replace("/", "-")
    with file.open("wb") as target:
        for chunk in storage.lake.get(path).stream():
            target.write(chunk)
    return file

"""Gather the rows of a day from the fragments that hold them."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import TYPE_CHECKING

import narwhals as nw

from user_pipeline.ingest.feeds import Feed
from user_pipeline.ingest.manifest import Catalog, fragment_path
from user_pipeline.lake.transfer import fetch
from user_pipeline.transforms import Frame

if TYPE_CHECKING:
    import duckdb

    from user_pipeline.engines.duckdb import Engine
    from user_pipeline.resources.storage import ObjectStorage

_FETCHES = 8
"""So many fragments are fetched from a bucket at once: most of it is waiting."""
_TYPES = {"ts": "timestamp", "updated_at": "timestamp", "user_id": "bigint", "source_line": "bigint"}


class Days(Mapping[str, Frame]):
    """The rows of some days, a lazy frame each, gathered when it is asked for.

    By day as YYYY-MM-DD: the feed's own columns, ``source_object`` string and ``source_line`` int64, in the
    order of the last two; no rows for a day without any. A frame can be read until the next one is asked
    for: of a long range only one day at a time is on the local disk.
    """

    def __init__(
        self, feed: Feed, catalog: Catalog, storage: "ObjectStorage", engine: "Engine", days: Sequence[date]
    ) -> None:
        self._feed = feed
        self._storage = storage
        self._connection = engine.connect()
        self._batches = catalog.batches(days)
        self._scratch = engine.new_scratch("gather")

    def __getitem__(self, key: str) -> Frame:
        day = date.fromisoformat(key)
        batches = self._batches[day]
        files = self._fetch([fragment_path(self._feed, day, batch) for batch in batches])
        current = [(file, key) for file, keys in zip(files, batches.values(), strict=True) for key in keys]
        return nw.from_native(_rows(self._connection, current) if current else _empty(self._connection, self._feed))

    def __iter__(self) -> Iterator[str]:
        return (day.isoformat() for day in self._batches)

    def __len__(self) -> int:
        return len(self._batches)

    def _fetch(self, paths: list[str]) -> list[str]:
        """The fragments as local files; from a bucket several are fetched at once."""
        for file in self._scratch.iterdir():
            file.unlink()

        def fetched(path: str) -> str:
            return str(fetch(self._storage, path, self._scratch / path.rpartition("/")[-1]))

        with ThreadPoolExecutor(_FETCHES) as pool:
            return list(pool.map(fetched, paths))


def _rows(connection: "duckdb.DuckDBPyConnection", current: list[tuple[str, str]]) -> "duckdb.DuckDBPyRelation":
    """The rows of fragments whose objects were not read again since: of pairs of a file and an object in it.

    One plan of one size, however many fragments there are.
    """
    import pyarrow as pa

    files, objects = zip(*current, strict=True)
    wanted = connection.from_arrow(pa.table({"filename": files, "source_object": objects}))
    return (
        connection.read_parquet(sorted(set(files)), filename=True, hive_partitioning=False)
        .set_alias("fragments")
        .join(
            wanted.set_alias("wanted"),
            "fragments.filename = wanted.filename and fragments.source_object = wanted.source_object",
            how="semi",
        )
        .project("* exclude (filename)")
        .order("source_object, source_line")
    )


def _empty(connection: "duckdb.DuckDBPyConnection", feed: Feed) -> "duckdb.DuckDBPyRelation":
    columns = (*feed.columns, "source_object", "source_line")
    return connection.sql(
        "select "
        + ", ".join(f"null::{_TYPES.get(column, 'varchar')} as {column}" for column in columns)
        + " where false"
    )

"""Files of the lake, looked through for people and written anew without them."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from user_pipeline.ingest.feeds import FEEDS
from user_pipeline.ingest.suppression import SUPPRESSED, named_user
from user_pipeline.lake.partitions import LakeFile
from user_pipeline.lake.transfer import fetch, new_path, put
from user_pipeline.resources.postgres import literal
from user_pipeline.warehouse.incremental import SHARED_FOLDER

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa

    from user_pipeline.engines.base import Engine
    from user_pipeline.lake.lake import Lake

FOLDERS = (
    *(f"raw/{feed.name}" for feed in FEEDS),
    *(f"rejected/{feed.name}" for feed in FEEDS),
    *(f"cleaned/{feed.name}" for feed in FEEDS),
    "daily/users",
    "daily/user_page_views",
    SHARED_FOLDER,
    "snapshots/page_recommendations",
)
"""The folders of the lake whose files have rows of people."""
EXPORTS = ("user_page_views", "page_recommendations")
"""The exports that have rows of people, each with a column ``user_id``."""
_REJECTS_OF = {f"rejected/{feed.name}": feed for feed in FEEDS}
_DAY = re.compile(r"(.+)/date=(\d{4}-\d{2}-\d{2})/[^/]+")
_CSV = "header = true, all_varchar = true, delim = ',', quote = '\"', escape = '\"', allow_quoted_nulls = false"


class PeopleFiles:
    """The files of a lake, as far as they are about some people.

    Args:
        lake: the lake.
        engine: reads the texts of rejected lines.
        user_ids: the people.

    Attributes:
        lake: as above.
        engine: as above.
        user_ids: as above.
    """

    def __init__(self, lake: "Lake", engine: "Engine", user_ids: Sequence[int]) -> None:
        self.lake = lake
        self.engine = engine
        self.user_ids = user_ids
        self._scratch = engine.new_scratch("forgetting")
        # A file never changes.
        self._counted: dict[str, int] = {}

    @property
    def among(self) -> str:
        """The people as a list of SQL."""
        return "(" + ", ".join(map(str, self.user_ids)) + ")"

    def rows(self, path: str) -> int:
        """How many rows of a file are theirs; of rejected lines those that give their ids.

        Raises:
            FileNotFoundError: the file is gone.
        """
        if path not in self._counted:
            with self.local(path) as file:
                self._counted[path] = self._rows(path, file)
        return self._counted[path]

    def theirs(self, path: str) -> str:
        """The condition of the engine's SQL on rows of a file of rejected lines that give their ids."""
        return (
            f"(reason <> '{SUPPRESSED}' and coalesce({named_user(_REJECTS_OF[folder_of(path)], 'line')} "
            f"in {self.among}, false))"
        )

    def without(self, path: str) -> tuple[LakeFile, Path]:
        """Store the rows of a day's file that are of others, as a new file of the same day, order and metadata.

        Returns:
            the new file, and a local copy of it, which the caller removes.
        """
        import pyarrow.parquet as pq

        matched = _DAY.fullmatch(path)
        assert matched is not None  # noqa: S101 - how new_path names files
        target = self.engine.new_scratch("without") / "rows.parquet"
        rows = 0
        with self.local(path) as file:
            content = pq.ParquetFile(file)
            with pq.ParquetWriter(target, content.schema_arrow, compression="zstd") as writer:
                for batch in content.iter_batches():
                    kept = batch.filter(self._others(batch.column("user_id")))
                    writer.write_batch(kept)
                    rows += kept.num_rows
        day = date.fromisoformat(matched[2])
        return put(self.lake.storage, new_path(matched[1], day), target, rows), target

    def exports(self) -> Iterator[str]:
        """The exports there are."""
        for table in EXPORTS:
            for page in self.lake.storage.lake.list(f"exports/{table}", chunk_size=10_000):
                yield from (item["path"] for item in page if item["path"].endswith(f"/{table}.csv"))

    def rows_of_export(self, path: str) -> int:
        """How many rows of an export are theirs."""
        with self.local(path) as file, self.engine.connect() as connection:
            [(rows,)] = connection.execute(f"select count(*) from {self._csv(file)} where {self._in_csv}").fetchall()
        return int(rows)

    def clean_export(self, path: str) -> None:
        """Put an export in its place without their rows; those of others stay as they were exported."""
        target = self.engine.new_scratch("export") / "rows.csv"
        with self.local(path) as file, self.engine.connect() as connection:
            connection.execute("set preserve_insertion_order = true")
            connection.execute(
                f"copy (select * from {self._csv(file)} where not {self._in_csv}) "
                f"to {literal(str(target))} (format csv, header)"
            )
        with target.open("rb") as content:
            self.lake.storage.lake.put(path, content)
        target.unlink()

    @contextmanager
    def local(self, path: str) -> Iterator[Path]:
        """An object of the lake as a local file, for as long as the block lasts."""
        target = self._scratch / path.replace("/", "-")
        try:
            yield fetch(self.lake.storage, path, target)
        finally:
            target.unlink(missing_ok=True)

    def _rows(self, path: str, file: Path) -> int:
        if folder_of(path) in _REJECTS_OF:
            with self.engine.connect() as connection:
                [(rows,)] = connection.execute(
                    "select count(*) from read_parquet($file, hive_partitioning = false) where " + self.theirs(path),
                    {"file": str(file)},
                ).fetchall()
            return int(rows)
        import pyarrow.parquet as pq

        batches = pq.ParquetFile(file).iter_batches(columns=["user_id"])
        return sum(batch.num_rows - int(self._others(batch.column(0)).true_count) for batch in batches)

    def _others(self, user_ids: "pa.Array") -> "pa.BooleanArray":
        import pyarrow as pa
        import pyarrow.compute as pc

        is_in: Callable[..., pa.BooleanArray] = pc.is_in
        return pc.invert(is_in(user_ids, value_set=pa.array(self.user_ids, pa.int64())))

    @property
    def _in_csv(self) -> str:
        return f"coalesce(try_cast(user_id as bigint) in {self.among}, false)"

    def _csv(self, file: Path) -> str:
        return f"read_csv({literal(str(file))}, {_CSV})"


def folder_of(path: str) -> str:
    """The folder of the lake that has a file: two names."""
    return "/".join(path.split("/")[:2])

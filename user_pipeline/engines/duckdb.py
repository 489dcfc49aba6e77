"""The engine that does everything in the run's process: DuckDB within a memory limit, spilling to disk."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from user_pipeline.engines import base
from user_pipeline.engines.base import Fetch, Item, Made, Put, Result, Work
from user_pipeline.settings import variable_of
from user_pipeline.transforms import Frame


class Engine(base.Engine):
    """DuckDB, and nothing else."""

    @property
    def service(self) -> tuple[str, str]:
        """See :attr:`.base.Engine.service`."""
        return variable_of("memory_limit"), f"DuckDB, {self.memory_limit / 1e9:.1f} GB"

    def each(self, work: Work[Item, Result], items: Iterable[Item]) -> Iterator[Result]:
        """See :meth:`.base.Engine.each`."""
        for item in items:
            yield work(self, item)

    def rows(self, fetch: Fetch[Item], items: Sequence[Item]) -> Frame:
        """See :meth:`.base.Engine.rows`."""
        return self.read([file for item in items for file in fetch(self, item)])

    def make(self, frame: Frame, file: Path, put: Put[Result] | None = None) -> Made:
        """See :meth:`.base.Engine.make`."""
        del put
        return Made(self.write(frame, file), file)

    def share(self, file: Path, put: Put[Item], fetch: Fetch[Item]) -> Frame:
        """See :meth:`.base.Engine.share`."""
        del put, fetch
        return self.read([file])


def scan(files: Sequence[Path]) -> str:
    """Parquet files of the same columns, as DuckDB takes them in the place of a table."""
    quoted = ", ".join("'" + str(file).replace("'", "''") + "'" for file in files)
    return f"read_parquet([{quoted}], hive_partitioning = false)"

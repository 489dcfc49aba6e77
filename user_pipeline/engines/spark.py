"""The engine for what does not fit one machine: Spark, by Spark Connect.

The run stays the client and the only one who commits. What is worked on by executors are the rows of the lake: they
fetch and store its files through the project's own object store.
"""

import itertools
import pickle
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import narwhals as nw

from user_pipeline.engines import base
from user_pipeline.engines.base import Fetch, Item, Made, Put, Result, Work
from user_pipeline.engines.executors import RESULT, Each, Make, Place, Rows
from user_pipeline.engines.parquet import parquet_schema
from user_pipeline.engines.spark_errors import VARIABLE, ExecutorError, told
from user_pipeline.engines.spark_session import address, connect, remote_of
from user_pipeline.settings import Settings
from user_pipeline.transforms import Frame

if TYPE_CHECKING:
    from pyspark.sql.connect.dataframe import DataFrame
    from pyspark.sql.connect.session import SparkSession

_WAVE = 64
"""So many items are given out at a time; then their results are taken."""


class SparkEngine(base.Engine):
    """Executors for the rows of the lake, and DuckDB in the run's process for what is small."""

    parallel: ClassVar[int] = 8
    most_files: ClassVar[int] = 1_000

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._opened: SparkSession | None = None
        self._place: Place | None = None

    @property
    def service(self) -> tuple[str, str]:
        """See :attr:`.base.Engine.service`."""
        host, port = address(remote_of(self._settings))
        return VARIABLE, f"Spark at {host}:{port}"

    def probe(self) -> None:
        """See :meth:`.base.Engine.probe`; of the server as well."""
        super().probe()
        _ = self._session

    def close(self) -> None:
        """End the session, and what :meth:`.base.Engine.close` ends."""
        super().close()
        if self._opened is not None:
            # The server ends a session by itself that nobody uses.
            with suppress(Exception):
                self._opened.stop()
            self._opened = None

    def interrupt(self) -> None:
        """See :meth:`.base.Engine.interrupt`; Spark ends the session's jobs as well."""
        super().interrupt()
        if self._opened is not None:
            # Nothing runs on a server that is gone.
            with suppress(Exception):
                self._opened.interruptAll()

    def each(self, work: Work[Item, Result], items: Iterable[Item]) -> Iterator[Result]:
        """See :meth:`.base.Engine.each`: a task for each item, 64 at a time.

        Raises:
            ExecutorError: what an executor says has to be changed first.
            SparkTaskError: a task failed each time that it was tried.
            SparkUnavailableError: the server is gone.
        """
        remaining = iter(items)
        while wave := list(itertools.islice(remaining, _WAVE)):
            done: dict[int, Any] = {}
            for number, outcome, problem in self._results(self._numbers(len(wave)), Each(self._where, work, wave)):
                if problem is not None:
                    raise ExecutorError(outcome, problem)
                done[number] = outcome
            yield from (done[number] for number in range(len(wave)))

    def rows(self, fetch: Fetch[Item], items: Sequence[Item]) -> Frame:
        """See :meth:`.base.Engine.rows`: a task for each item."""
        from pyspark.sql.pandas.types import from_arrow_schema

        # One file is brought here for its columns: a job for that would take longer.
        files = fetch(self, items[0])
        schema = parquet_schema(files)
        for file in files:
            if file.is_relative_to(self.scratch):
                file.unlink()
        with told():
            numbers = self._numbers(len(items))
            return nw.from_native(numbers.mapInArrow(Rows(self._where, fetch, items), from_arrow_schema(schema)))

    def make(self, frame: Frame, file: Path, put: Put[Result] | None = None) -> Made:
        """See :meth:`.base.Engine.make`: a file for each task that has rows, or an empty one.

        A frame that is none of Spark's is small and written here.
        """
        if put is None or not frame.implementation.is_pyspark_connect():
            return Made(self.write(frame, file), file)
        rows, stored = 0, []
        for some, result in self._results(frame.to_native(), Make(self._where, put)):
            rows += some
            stored.append(result)
        if not stored:
            # So that whoever reads the partition knows its columns.
            self.write(frame.head(0), file)
            stored.append(put(self, file, 0))
            file.unlink()
        return Made(rows, stored=stored)

    def share(self, file: Path, put: Put[Item], fetch: Fetch[Item]) -> Frame:
        """See :meth:`.base.Engine.share`."""
        return self.rows(fetch, [put(self, file, self.count([file]))])

    @property
    def _session(self) -> "SparkSession":
        if self._opened is None:
            self._opened = connect(self._settings)
        return self._opened

    @property
    def _where(self) -> Place:
        if self._place is None:
            self._place = Place.of(self._settings)
        return self._place

    def _numbers(self, count: int) -> "DataFrame":
        """The numbers from 0, each in a task of its own."""
        with told():
            rows: DataFrame = self._session.range(0, count, 1, numPartitions=count)  # type: ignore[assignment]
            return rows

    @staticmethod
    def _results(rows: "DataFrame", work: Any) -> list[Any]:
        with told():
            results = rows.mapInArrow(work, RESULT).toArrow().column("result")
        return [pickle.loads(result) for result in results.to_pylist()]  # noqa: S301 - of our own executors

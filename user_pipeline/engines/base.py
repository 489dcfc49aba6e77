"""The interface of engines, which work on the rows of the lake. Each has DuckDB inside the run's process as well.

What an engine is given to do elsewhere (:data:`Work`, :data:`Fetch`, :data:`Put`) gets an engine to do it with: this
one, or one on another machine. So it has to be a function of a module, or an object that can be pickled.
"""

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias, TypeVar
from weakref import WeakSet

import narwhals as nw

from user_pipeline.engines.frames import to_reader
from user_pipeline.engines.scratch import Scratch
from user_pipeline.settings import Settings
from user_pipeline.transforms import Frame

if TYPE_CHECKING:
    import duckdb


Item = TypeVar("Item")
Result = TypeVar("Result")

Work: TypeAlias = Callable[["Engine", Item], Result]
"""Makes something of an item."""
Fetch: TypeAlias = Callable[["Engine", Item], Sequence[Path]]
"""Brings the Parquet files of an item to the machine that it is called on."""
Put: TypeAlias = Callable[["Engine", Path, int], Result]
"""Stores a local Parquet file, whose number of rows is given, and returns where it is."""


@dataclass(frozen=True, slots=True)
class Made:
    """The rows of a frame, written.

    Attributes:
        rows: how many there are.
        file: the local file that has them; None if ``stored`` has them.
        stored: what ``put`` told of each file that it stored.
    """

    rows: int
    file: Path | None = None
    stored: Sequence[Any] = ()


class Engine(ABC):
    """Works on rows: with DuckDB connections in this process that share one memory limit, and on its own workers.

    Use it as a context manager: leaving it closes the connections and removes the scratch directory.
    Relations and lazy frames made from a connection are valid until then.

    Attributes:
        parallel: how many times more pieces than for DuckDB work is divided into.
        most_files: a partition of more files than this is slow to read.
    """

    parallel: ClassVar[int] = 1
    most_files: ClassVar[int] = 8

    def __init__(self, settings: Settings, threads: int | None = None) -> None:
        self._settings = settings
        self._threads = threads
        self._root: duckdb.DuckDBPyConnection | None = None
        self._frames: duckdb.DuckDBPyConnection | None = None
        self._scratch: Scratch | None = None
        self._connections: WeakSet[duckdb.DuckDBPyConnection] = WeakSet()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and remove everything in the scratch directory."""
        # Closing would wait for a query that an error left behind, to its end.
        self.interrupt()
        if self._root is not None:
            self._root.close()
            self._root = self._frames = None
        if self._scratch is not None:
            self._scratch.remove()
            self._scratch = None

    def interrupt(self) -> None:
        """End what runs on any of the connections; it raises an error there. Can be called from another thread."""
        import duckdb

        for connection in list(self._connections):
            # One that was closed runs nothing.
            with suppress(duckdb.ConnectionException):
                connection.interrupt()

    @property
    @abstractmethod
    def service(self) -> tuple[str, str]:
        """The setting that says where it works, and what that is, without secrets."""

    def probe(self) -> None:
        """Check that it can work; raises the error that prevents it."""
        self.connect().execute("select 1")

    @property
    def settings(self) -> Settings:
        """What it was made with."""
        return self._settings

    @property
    def memory_limit(self) -> int:
        """``USER_PIPELINE_MEMORY_LIMIT`` in bytes: what its connections may use together."""
        return self._settings.memory_limit

    @property
    def scratch(self) -> Path:
        """A directory of this engine alone, below ``USER_PIPELINE_SCRATCH_DIR``.

        Making it removes those that processes which were killed left there.
        """
        if self._scratch is None:
            self._scratch = Scratch.make(self._settings.scratch_dir)
        return self._scratch.path

    def new_scratch(self, name: str) -> Path:
        """A new empty directory below :attr:`scratch`; the caller removes it."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.scratch))

    def read(self, files: Sequence[Path]) -> Frame:
        """The rows of Parquet files of the same columns, lazy and in no particular order."""
        if self._frames is None:
            # One for all, because only frames of one connection can be joined.
            self._frames = self.connect()
        return nw.from_native(self._frames.read_parquet([str(file) for file in files], hive_partitioning=False))

    def count(self, files: Sequence[Path]) -> int:
        """How many rows Parquet files have, by their footers."""
        import pyarrow.parquet as pq

        return sum(int(pq.ParquetFile(file).metadata.num_rows) for file in files)

    def write(self, frame: Frame, file: Path) -> int:
        """Write a frame as a Parquet file; returns how many rows it has."""
        import pyarrow.parquet as pq

        if frame.implementation.is_duckdb():
            # The engine writes with all its threads.
            frame.to_native().write_parquet(str(file), compression="zstd")
            return self.count([file])
        rows = 0
        reader = to_reader(frame)
        with pq.ParquetWriter(file, reader.schema, compression="zstd") as writer:
            for batch in reader:
                writer.write_batch(batch)
                rows += batch.num_rows
        return rows

    @abstractmethod
    def each(self, work: "Work[Item, Result]", items: Iterable[Item]) -> Iterator[Result]:
        """What work makes of each item, in the order of the items; the next ones begin when these were taken.

        Work may be done more than once, and then only one of its results is given: it must not change what is there.
        """

    @abstractmethod
    def rows(self, fetch: "Fetch[Item]", items: Sequence[Item]) -> Frame:
        """The rows of items that are Parquet files of the same columns, lazy and in no particular order.

        Args:
            fetch: brings the files of an item to where the rows are worked on.
            items: the items, at least one.
        """

    @abstractmethod
    def make(self, frame: Frame, file: Path, put: "Put[Result] | None" = None) -> Made:
        """Write a frame: as a local file, or where its rows are.

        Args:
            frame: the rows.
            file: the local file.
            put: stores files; without it the rows are written to the local file in any case.
        """

    @abstractmethod
    def share(self, file: Path, put: "Put[Item]", fetch: "Fetch[Item]") -> Frame:
        """The rows of a local Parquet file, as a frame that can be joined with those of :meth:`rows`.

        Args:
            file: the file.
            put: stores it where others can fetch it.
            fetch: does that.
        """

    def connect(self) -> "duckdb.DuckDBPyConnection":
        """A connection of its own on the shared in-memory database."""
        import duckdb

        if self._root is None:
            self._root = duckdb.connect(
                config={
                    # A quarter is left for memory that DuckDB does not count: results, and what its allocator keeps. A
                    # day of ten million views took 0.6 GB more than the limit.
                    "memory_limit": f"{self.memory_limit * 3 // 4 // 1000}KB",
                    "temp_directory": str(self.scratch / "spill"),
                    # Order is asked for where it matters: keeping it costs memory.
                    "preserve_insertion_order": False,
                    # The cache mistakes a file that is replaced within a second for the old one.
                    "enable_external_file_cache": False,
                    # Extensions come from the network, which a deployment may not have.
                    "autoinstall_known_extensions": False,
                    **({"threads": self._threads} if self._threads else {}),
                }
            )
            self._root.execute("set global TimeZone = 'UTC'")
        connection = self._root.cursor()
        self._connections.add(connection)
        return connection

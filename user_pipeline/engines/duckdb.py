"""The engine that runs transforms: DuckDB inside the process, within a memory limit, spilling to disk."""

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self
from weakref import WeakSet

import narwhals as nw

from user_pipeline.engines.frames import to_reader
from user_pipeline.engines.scratch import Scratch
from user_pipeline.settings import Settings
from user_pipeline.transforms import Frame

if TYPE_CHECKING:
    import duckdb


class Engine:
    """DuckDB connections that share one memory limit, and a scratch directory that goes with them.

    Use it as a context manager: leaving it closes the connections and removes the scratch directory.
    Relations and lazy frames made from a connection are valid until then.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
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
        """A new empty directory below :attr:`scratch`; whoever asks for it removes it when done."""
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

    def connect(self) -> "duckdb.DuckDBPyConnection":
        """A connection of its own on the shared in-memory database."""
        import duckdb

        if self._root is None:
            self._root = duckdb.connect(
                config={
                    # A quarter is left for what the engine does not count: what it hands over, and what its allocator
                    # holds back. A day of ten million views took 0.6 GB more than it was allowed.
                    "memory_limit": f"{self.memory_limit * 3 // 4 // 1000}KB",
                    "temp_directory": str(self.scratch / "spill"),
                    # Order is asked for where it matters; keeping it elsewhere costs memory.
                    "preserve_insertion_order": False,
                    # It takes a file that is replaced within a second for the one it was before.
                    "enable_external_file_cache": False,
                    # Extensions come from the network, which a deployment may not have.
                    "autoinstall_known_extensions": False,
                }
            )
            self._root.execute("set global TimeZone = 'UTC'")
        connection = self._root.cursor()
        self._connections.add(connection)
        return connection


def scan(files: Sequence[Path]) -> str:
    """Parquet files of the same columns, as DuckDB takes them in the place of a table."""
    quoted = ", ".join("'" + str(file).replace("'", "''") + "'" for file in files)
    return f"read_parquet([{quoted}], hive_partitioning = false)"

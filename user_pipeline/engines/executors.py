"""What runs in the tasks of Spark: the functions an engine was given, each with a DuckDB engine of the executor.

Executors have this package, DuckDB and pyarrow, and no Dagster. Settings travel with a task; connections and
credentials do not: an executor has its own, in its environment.
"""

import hashlib
import os
import pickle
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

from user_pipeline.engines.base import Fetch, Item, Put, Result, Work
from user_pipeline.engines.duckdb import Engine
from user_pipeline.errors import PermanentError
from user_pipeline.masking import mask
from user_pipeline.settings import Settings, variable_of

if TYPE_CHECKING:
    import pyarrow as pa

_MEMORY = "512MB"
_OWN = ("memory_limit", "scratch_dir")
"""What an executor has settings of its own for."""
_WHERE_S3_IS = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_SERVER_SIDE_ENCRYPTION",
    "AWS_SSE_KMS_KEY_ID",
    "AWS_SSE_BUCKET_KEY_ENABLED",
)
"""Variables that are no credentials: what an executor writes is to be where, and as, the run would write it."""
RESULT = "result binary"


class ExecutorMismatchError(PermanentError):
    """An executor has other versions than the run, and might make something else of the same rows."""


@dataclass(frozen=True, slots=True)
class Versions:
    """What has to be the same in the run and on executors.

    Attributes:
        python: major and minor version.
        duckdb: its hashes are what rows are told apart by.
        pyarrow: version.
        user_pipeline: a digest of the files of this package.
    """

    python: str
    duckdb: str
    pyarrow: str
    user_pipeline: str

    @classmethod
    def here(cls) -> "Versions":
        """Those of this process."""
        return _versions()

    def require(self) -> None:
        """Refuse to work where they are others.

        Raises:
            ExecutorMismatchError: they are.
        """
        wanted, here = asdict(self), asdict(Versions.here())
        others = [
            f"{name} {here[name]} where the run has {wanted[name]}" for name in wanted if here[name] != wanted[name]
        ]
        if others:
            raise ExecutorMismatchError(
                f"the executors have {', '.join(others)}. Give them an image or archive of the same release as the "
                "run; docs/spark.md says how one is made."
            )


@cache
def _versions() -> Versions:
    import duckdb
    import pyarrow as pa

    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*")):
        if file.suffix in (".py", ".sql"):
            digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    python = ".".join(platform.python_version_tuple()[:2])
    return Versions(python, duckdb.__version__, pa.__version__, digest.hexdigest()[:12])


@dataclass(frozen=True, slots=True)
class Place:
    """What a task needs to begin.

    Attributes:
        settings: those of the run, without secrets.
        versions: those of the run.
        s3: variables of the run that tell where S3 is.
    """

    settings: Settings
    versions: Versions
    s3: Mapping[str, str]

    @classmethod
    def of(cls, settings: Settings) -> "Place":
        """What tasks of this process need."""
        there = {name: os.environ[name] for name in _WHERE_S3_IS if name in os.environ}
        return cls(settings.without_secrets(Path(), 1), Versions.here(), there)

    @contextmanager
    def engine(self) -> Iterator[Engine]:
        """An engine of this machine: one thread, and the memory that it is allowed here.

        Raises:
            ExecutorMismatchError: this machine has other versions.
            SettingsError: what is set on this machine cannot be used.
        """
        self.versions.require()
        os.environ.update(self.s3)
        variables = {variable_of(name): os.environ.get(variable_of(name), "") for name in _OWN}
        memory = variable_of("memory_limit")
        own = Settings.from_environment({**variables, memory: variables[memory] or _MEMORY})
        with Engine(self.settings.without_secrets(own.scratch_dir, own.memory_limit), threads=1) as opened:
            yield opened


@dataclass(frozen=True, slots=True)
class Each(Generic[Item, Result]):
    """A task for each item: rows are the numbers of items, results come back pickled.

    What a person has to change is no failure of a task, which Spark would try again: it is a result as well.
    """

    place: Place
    work: Work[Item, Result]
    items: Sequence[Item]

    def __call__(self, batches: "Iterable[pa.RecordBatch]") -> "Iterator[pa.RecordBatch]":
        """The results of the items whose numbers come in."""
        for number in _numbers(batches):
            try:
                with self.place.engine() as engine:
                    outcome: tuple[int, Any, str | None] = (number, self.work(engine, self.items[number]), None)
            except PermanentError as error:
                outcome = (number, type(error).__name__, mask(str(error)))
            yield _pickled(outcome)


@dataclass(frozen=True, slots=True)
class Rows(Generic[Item]):
    """A task for each item: gives the rows of its files."""

    place: Place
    fetch: Fetch[Item]
    items: Sequence[Item]

    def __call__(self, batches: "Iterable[pa.RecordBatch]") -> "Iterator[pa.RecordBatch]":
        """The rows of the items whose numbers come in."""
        from user_pipeline.engines.parquet import read_parquet

        for number in _numbers(batches):
            with self.place.engine() as engine:
                yield from read_parquet(self.fetch(engine, self.items[number]))


@dataclass(frozen=True, slots=True)
class Make(Generic[Result]):
    """A file for each task that has rows: it is written here, stored, and told of."""

    place: Place
    put: Put[Result]

    def __call__(self, batches: "Iterable[pa.RecordBatch]") -> "Iterator[pa.RecordBatch]":
        """How many rows came in, and where they are now."""
        import pyarrow.parquet as pq

        with self.place.engine() as engine:
            folder = engine.new_scratch("made")
            file, writer, rows = folder / "rows.parquet", None, 0
            try:
                for batch in batches:
                    if batch.num_rows:
                        writer = writer or pq.ParquetWriter(file, batch.schema, compression="zstd")
                        writer.write_batch(batch)
                        rows += batch.num_rows
            finally:
                if writer:
                    writer.close()
            if writer:
                yield _pickled((rows, self.put(engine, file, rows)))
            shutil.rmtree(folder)


def _numbers(batches: "Iterable[pa.RecordBatch]") -> Iterator[int]:
    for batch in batches:
        yield from batch.column(0).to_pylist()


def _pickled(outcome: object) -> "pa.RecordBatch":
    import pyarrow as pa

    return pa.RecordBatch.from_pydict({"result": pa.array([pickle.dumps(outcome)], pa.binary())})

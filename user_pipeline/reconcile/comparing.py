"""Compare what a table holds with what it must hold, row by row."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from user_pipeline.errors import PermanentError
from user_pipeline.lake.transfer import fetch
from user_pipeline.masking import shorten
from user_pipeline.resources.postgres import Postgres, quote
from user_pipeline.warehouse.tables import exists

if TYPE_CHECKING:
    import duckdb

    from user_pipeline.engines.base import Engine
    from user_pipeline.lake.lake import Lake

STALE, LOST, NOT_MATERIALIZED = "stale", "lost", "not materialized"
MISSING, EXTRA, DIFFERENT = "missing", "extra", "different"
NO_SNAPSHOT = "no snapshot"
KINDS = {
    STALE: "an object of the day was read, or read again, after the day was materialized",
    LOST: "part files hold other rows than the manifest says their objects brought",
    NOT_MATERIALIZED: "the table has rows of a day that has no raw partition",
    MISSING: "rows that should be there",
    EXTRA: "rows that should not be there",
    DIFFERENT: "rows with the right key and wrong values",
    NO_SNAPSHOT: "the day's snapshot is gone, or does not say how it was made, so nothing was compared",
}
_TYPES = {
    "ts": "timestamp",
    "updated_at": "timestamp",
    "last_viewed": "timestamp",
    "day": "date",
    "user_id": "bigint",
    "count": "bigint",
    "source_line": "bigint",
}
_EXAMPLES = 5
"""How many rows of a kind are named for a day."""
_LONGEST = 200
"""How many characters of a key's value are shown: a url may be megabytes long."""


class LakeError(PermanentError):
    """The lake lacks a file that the manifest or a registry counts on."""

    def __init__(self, file: str) -> None:
        super().__init__(
            f"{file} is missing, though the manifest or the registry of files counts on it. Restore it from a backup "
            "of the lake, or put the objects it was read from into the source under other names and materialize their "
            "days again: what is delivered twice counts once."
        )


@dataclass(frozen=True, slots=True)
class Difference:
    """What is wrong with one day of a table, or with a table that has no days.

    Attributes:
        kind: one of :data:`KINDS`.
        day: the day; None for tables that are kept over all days.
        rows: how many rows.
        examples: some of them by their keys; for :data:`DIFFERENT` also which columns differ. Never a person's
            name or e-mail address.
    """

    kind: str
    day: date | None
    rows: int
    examples: Sequence[str] = ()


@dataclass(slots=True)
class Comparison:
    """One table (or raw asset) against what it must be.

    Attributes:
        table: its name.
        days: how many days were compared.
        rows: how many rows it must have in what was compared.
        differences: what is wrong.
        absent: days the lake has rows of and this has none, with no sign that it ever had: they, or some of
            their assets, were not materialized, which is no difference.
        retired: days past their retention: their rows are gone, and what the lake has of them still was taken as it is.
    """

    table: str
    days: int = 0
    rows: int = 0
    differences: list[Difference] = field(default_factory=list)
    absent: list[date] = field(default_factory=list)
    retired: list[date] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Shape:
    """How a table is read and compared.

    Attributes:
        columns: all of its columns.
        key: those that identify a row in examples; nothing personal.
        paired_by: those that pair a wrong row with the right one; all others are values.
    """

    columns: tuple[str, ...]
    key: tuple[str, ...]
    paired_by: tuple[str, ...]


class Recompute:
    """What a recompute works with, and how its results are compared with what is stored.

    The rows of a table are loaded into the temporary table ``actual``. What is needed beyond a day is kept in tables
    ``kept.<name>`` of a database file in the scratch directory.

    Attributes:
        lake: the lake, and the databases with its registries.
        engine: computes, within its memory limit.
        connection: of the engine.
    """

    def __init__(self, lake: "Lake", engine: "Engine", connection: "duckdb.DuckDBPyConnection") -> None:
        self.lake = lake
        self.engine = engine
        self.connection = connection
        self._scratch = engine.new_scratch("lake")

    def compare(self, shape: Shape, expected: str, day: date | None, comparison: Comparison) -> list[Difference]:
        """How ``actual`` differs from the relation ``expected``; the rows are left in ``differences``."""
        columns = ", ".join(shape.columns)
        comparison.rows += self.number(expected)
        # One pass over both, which spills to disk. n > 0: missing, n < 0: extra.
        self.connection.execute(
            f"""
            create or replace temp table differences as
            select {columns}, sum(n)::bigint as n from (
              select {columns}, 1 as n from {expected} union all select {columns}, -1 from actual
            ) group by {columns} having sum(n) <> 0
            """
        )
        if not self.number("differences"):
            return []
        paired = " and ".join(f"a.{name} is not distinct from e.{name}" for name in shape.paired_by)
        values = [name for name in shape.columns if name not in shape.paired_by]
        wrong = ", ".join(f"case when a.{name} is distinct from e.{name} then '{name}' end" for name in values)
        key = {side: "[" + ", ".join(f"{side}.{name}::varchar" for name in shape.key) + "]" for side in "ae"}
        queries = {
            MISSING: f"select {key['e']} as k, [] as wrong, e.n from differences e where e.n > 0 "
            f"and not exists (from differences a where a.n < 0 and {paired})",
            EXTRA: f"select {key['a']} as k, [] as wrong, -a.n as n from differences a where a.n < 0 "
            f"and not exists (from differences e where e.n > 0 and {paired})",
            DIFFERENT: f"select {key['e']} as k, list_filter([{wrong or 'null'}], x -> x is not null) as wrong, e.n "
            f"from differences e join differences a on e.n > 0 and a.n < 0 and {paired}",
        }
        found = []
        for kind, query in queries.items():
            [(rows,)] = self.connection.execute(f"select coalesce(sum(n), 0)::bigint from ({query})").fetchall()
            if rows:
                examples = self.connection.execute(f"{query} order by k limit {_EXAMPLES + 1}").fetchall()
                found.append(Difference(kind, day, rows, some([_named(shape, k, names) for k, names, _ in examples])))
        return found

    def keep(self, table: str, query: str) -> None:
        """Append the rows of a query to a table of the scratch database."""
        self.connection.execute(f"insert into kept.{table} {query}")

    def empty(self, table: str, shape: Shape) -> None:
        """Make a table without rows; it replaces one of the same name."""
        columns = ", ".join(f"{name} {_TYPES.get(name, 'varchar')}" for name in shape.columns)
        kind = "table" if table.startswith("kept.") else "temp table"
        self.connection.execute(f"create or replace {kind} {table} ({columns})")

    def number(self, table: str) -> int:
        """How many rows a table of the engine has."""
        [(rows,)] = self.connection.execute(f"select count(*) from {table}").fetchall()
        return int(rows)

    def load(self, database: Postgres, table: str, shape: Shape, where: str = "") -> None:
        """Bring rows of a table into ``actual``; none of a table that is missing."""
        self.empty("actual", shape)
        with database.transaction() as transaction:
            if exists(transaction, table):
                columns = ", ".join(map(quote, shape.columns))
                rows = transaction.stream(f"select {columns} from public.{quote(table)}{where}")
                self.connection.from_arrow(rows).insert_into("actual")

    def load_files(self, shape: Shape, paths: Sequence[str]) -> None:
        """Bring the rows of files of the lake into ``actual``.

        Raises:
            LakeError: one is not there.
        """
        self.empty("actual", shape)
        for path in paths:
            with self.file(path) as file:
                self.connection.execute(
                    f"insert into actual select {', '.join(shape.columns)} "
                    "from read_parquet($file, hive_partitioning = false)",
                    {"file": str(file)},
                )

    @contextmanager
    def file(self, path: str) -> Iterator[Path]:
        """An object of the lake as a local file, for as long as the block lasts."""
        target = self._scratch / "fetched.parquet"
        try:
            file = fetch(self.lake.storage, path, target)
        except FileNotFoundError:
            raise LakeError(self.lake.storage.lake_url(path)) from None
        try:
            yield file
        finally:
            target.unlink(missing_ok=True)


def _named(shape: Shape, key: Sequence[str | None], columns: Sequence[str]) -> str:
    named = " ".join(f"{name}={shorten(str(value), _LONGEST)}" for name, value in zip(shape.key, key, strict=True))
    return f"{named}: {', '.join(columns)}" if columns else named


def some(examples: Sequence[str]) -> tuple[str, ...]:
    """The first examples, and ``…`` if there are more."""
    return (*examples[:_EXAMPLES], *(["…"] if len(examples) > _EXAMPLES else []))

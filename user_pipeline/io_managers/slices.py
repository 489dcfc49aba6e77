"""Replace a slice of a Postgres table in one transaction, whether it holds no row or ten million."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from user_pipeline.errors import PermanentError
from user_pipeline.resources.postgres import Transaction, literal, quote

if TYPE_CHECKING:
    import pyarrow as pa

INCOMING = "incoming"
"""The temporary table that holds the new rows while a transaction puts them in place."""

_SQL = files("user_pipeline").joinpath("sql")
_FAMILIES = {
    "smallint": "integer", "integer": "integer", "bigint": "integer", "numeric": "integer",
    "real": "float", "double precision": "float",
    "text": "text", "character varying": "text", "character": "text",
    "timestamp without time zone": "timestamp", "date": "timestamp",
    "timestamp with time zone": "timestamp with time zone",
}  # fmt: skip


class TableMismatchError(PermanentError):
    """A table is not of the shape that is to be written into it."""


class SliceError(PermanentError):
    """Rows do not belong to the slice they were given for."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table by name."""

    schema: str
    name: str

    @property
    def sql(self) -> str:
        """Its quoted, qualified name."""
        return f"{quote(self.schema)}.{quote(self.name)}"

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class Slice:
    """The part of a table that belongs to some partitions.

    Attributes:
        expression: the column or SQL expression that tells the partition of a row.
        window: first moment and end (exclusive) of a time slice.
        keys: the partition keys of any other slice.
    """

    expression: str
    window: tuple[datetime, datetime] | None = None
    keys: tuple[str, ...] = ()

    def sql(self, columns: Sequence[str]) -> str:
        """The expression as SQL, which quotes the name of a column."""
        return quote(self.expression) if self.expression in columns else f"({self.expression})"

    def condition(self, columns: Sequence[str]) -> str:
        """The SQL condition of a row in the slice."""
        expression = self.sql(columns)
        if self.window is None:
            return f"{expression} in ({', '.join(literal(key) for key in self.keys)})"
        # With its offset, which a column with a zone heeds and one without ignores.
        first, end = (moment.isoformat(sep=" ") for moment in self.window)
        return f"{expression} >= '{first}' and {expression} < '{end}'"

    def __str__(self) -> str:
        if self.window is None:
            return f"{self.expression} in {', '.join(self.keys)}"
        return f"{self.expression} from {self.window[0]:%Y-%m-%d %H:%M} to before {self.window[1]:%Y-%m-%d %H:%M}"


def replace_slice(transaction: Transaction, table: Table, part: Slice | None, rows: "pa.RecordBatchReader") -> int:
    """Put rows in the place of a slice of a table, or of the whole table.

    The rows are copied to the server before the table is locked; writers of one table then follow each
    other, readers go on with the old rows until the transaction commits. A missing table is made.

    Args:
        transaction: the transaction it is part of.
        table: the table.
        part: the slice; None for the whole table.
        rows: the new rows of the slice.

    Returns:
        the number of new rows.

    Raises:
        TableMismatchError: the table has other columns than the rows.
        SliceError: a row lies outside the slice; a second run would then double it.
    """
    columns = list(rows.schema.names)
    count = stage(transaction, rows)
    ensure_table(transaction, table, rows.schema, part.expression if part and part.expression in columns else None)
    condition = part.condition(columns) if part else "true"
    check_slice(transaction, table, part, condition)
    names = ", ".join(quote(column) for column in columns)
    transaction.execute(f"lock table {table.sql} in share row exclusive mode")
    transaction.execute(f"delete from {table.sql} where {condition}")
    order = f" order by {quote(part.expression)}" if part and part.expression in columns else ""
    transaction.execute(f"insert into {table.sql} ({names}) select {names} from {INCOMING}{order}")
    return count


def merge(transaction: Transaction, name: str, window: tuple[datetime, datetime], rows: "pa.RecordBatchReader") -> int:
    """Bring the contributions of some days into a maintained table.

    Runs the statements of ``sql/<name>/`` in the order of their names: ``incoming`` holds the new contributions,
    ``slice`` (``first_day``, ``end_day`` date) the days they replace.

    Returns:
        the number of new contributions.
    """
    count = stage(transaction, rows)
    part = Slice("day", window)
    check_slice(transaction, Table("public", name), part, part.condition(rows.schema.names))
    first, end = window
    transaction.execute(
        "create temporary table slice on commit drop as "
        f"select date '{first:%Y-%m-%d}' as first_day, date '{end:%Y-%m-%d}' as end_day"
    )
    create_marts(transaction)
    for script in sorted(_SQL.joinpath(name).iterdir(), key=lambda script: script.name):
        transaction.execute(script.read_text(encoding="utf-8"))
    return count


def create_marts(transaction: Transaction) -> None:
    """Make the tables of the analytics database that are missing."""
    transaction.execute(_SQL.joinpath("create_marts.sql").read_text(encoding="utf-8"))


def count_windows(
    transaction: Transaction, part: Slice, columns: Sequence[str], starts: Mapping[str, datetime]
) -> dict[str, int]:
    """How many of the incoming rows belong to each partition of a slice.

    Args:
        transaction: the transaction the rows were staged in.
        part: the slice.
        columns: the rows' columns.
        starts: when each partition begins, if it is a time slice.
    """
    if part.window is None:
        return dict(transaction.fetch(f"select {part.sql(columns)}::text, count(*) from {INCOMING} group by 1"))
    keys = sorted(starts, key=lambda key: starts[key])
    bounds = ",".join(f'"{starts[key].isoformat(sep=" ")}"' for key in keys)
    found = transaction.fetch(
        f"select width_bucket({part.sql(columns)}, {literal('{' + bounds + '}')}), count(*) from {INCOMING} group by 1"
    )
    return {keys[bucket - 1]: count for bucket, count in found}


def stage(transaction: Transaction, rows: "pa.RecordBatchReader") -> int:
    """Copy rows into the temporary table ``incoming``."""
    count = transaction.load(INCOMING, rows)
    # A new temporary table has no statistics, and plans made without them are bad.
    transaction.execute(f"analyze {INCOMING}")
    return count


def check_slice(transaction: Transaction, table: Table, part: Slice | None, condition: str) -> None:
    """Refuse rows outside the slice.

    Raises:
        SliceError: there are some.
    """
    [(outside,)] = transaction.fetch(f"select count(*) from {INCOMING} where ({condition}) is not true")
    if outside:
        raise SliceError(
            f"{outside} of the rows for {table} lie outside the slice {part}; "
            "an asset gives only rows of its own partitions"
        )


def ensure_table(transaction: Transaction, table: Table, schema: "pa.Schema", index: str | None) -> None:
    """Make the table like ``incoming`` if it is missing; otherwise compare the two.

    Args:
        transaction: the transaction it is part of.
        table: the table.
        schema: the columns of ``incoming`` as Arrow knows them.
        index: the column its slices are found by.

    Raises:
        TableMismatchError: the table has other columns.
    """
    import pyarrow as pa

    [(exists,)] = transaction.fetch(f"select to_regclass({literal(table.sql)}) is not null")
    if not exists:
        # Two first runs at once must not both create it.
        transaction.execute("select pg_advisory_xact_lock(hashtextextended('user_pipeline create table', 0))")
        transaction.execute(f"create schema if not exists {quote(table.schema)}")
        transaction.execute(f"create table if not exists {table.sql} (like {INCOMING})")
        for field in schema:
            # ADBC makes a numeric of any precision, which nobody could read back as the decimal it was.
            if pa.types.is_decimal(field.type):
                kind = f"numeric({field.type.precision}, {field.type.scale})"
                transaction.execute(f"alter table {table.sql} alter column {quote(field.name)} type {kind}")
        if index:
            name = quote(f"{table.name}_{index}_idx")
            transaction.execute(f"create index if not exists {name} on {table.sql} ({quote(index)})")
    there, given = _columns(transaction, table.sql), _columns(transaction, INCOMING)
    problems = [f"the table lacks {name} ({kind})" for name, kind in given.items() if name not in there]
    problems += [f"the frame lacks {name} ({kind})" for name, kind in there.items() if name not in given]
    problems += [
        f"{name} is {there[name]} in the table and {kind} in the frame"
        for name, kind in given.items()
        if name in there and _family(there[name]) != _family(kind)
    ]
    if problems:
        raise TableMismatchError(
            f"the table {table} does not fit what is to be written: {'; '.join(problems)}. "
            "Alter the table to fit, or rename it and materialize all its partitions anew."
        )


def _columns(transaction: Transaction, relation: str) -> dict[str, str]:
    rows: list[tuple[Any, ...]] = transaction.fetch(
        "select attname::text, format_type(atttypid, null) from pg_attribute "
        f"where attrelid = {literal(relation)}::regclass and attnum > 0 and not attisdropped order by attnum"
    )
    return dict(rows)


def _family(kind: str) -> str:
    return _FAMILIES.get(kind, kind)

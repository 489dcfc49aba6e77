"""Replace a slice of a Postgres table in one transaction, whether it holds no row or ten million."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from user_pipeline.errors import PermanentError
from user_pipeline.resources.postgres import Transaction, literal, quote
from user_pipeline.warehouse.partition_range import Slice, Windows

if TYPE_CHECKING:
    import pyarrow as pa

INCOMING = "incoming"
"""The temporary table that holds the new rows while a transaction puts them in place."""

MAINTAINED = ("users", "user_page_views")
"""The tables that are kept from the contributions of each day, which are in ``<table>_daily``."""
_MARTS = (
    "users",
    "users_daily",
    "user_page_views",
    "user_page_views_daily_idx",
    "page_recommendations",
    "page_recommendations_day",
)
"""Of what ``sql/create_marts.sql`` makes, what tells whether all of it is there and of this version."""
_SQL = files("user_pipeline.warehouse").joinpath("sql")
_FAMILIES = {
    "smallint": "integer", "integer": "integer", "bigint": "integer", "numeric": "integer",
    "real": "float", "double precision": "float",
    "text": "text", "character varying": "text", "character": "text",
    "timestamp without time zone": "timestamp", "date": "timestamp",
    "timestamp with time zone": "timestamp with time zone",
}  # fmt: skip


class TableMismatchError(PermanentError):
    """A table is not of the shape that is to be written into it."""


class LostTableError(PermanentError):
    """A maintained table, or what it is kept from, was dropped or emptied by someone else."""


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


def replace_slice(
    transaction: Transaction,
    table: Table,
    part: Slice | None,
    rows: "pa.RecordBatchReader",
    starts: Mapping[str, datetime] | None = None,
) -> "Written":
    """Put rows in the place of a slice of a table, or of the whole table.

    Writers of one table follow each other, readers go on with the old rows until the transaction commits. A
    missing table is made. Rows whose partition a column of times tells go straight into the table; others pass
    through a temporary one, where their partition is worked out.

    Args:
        transaction: the transaction it is part of.
        table: the table.
        part: the slice; None for the whole table.
        rows: the new rows of the slice.
        starts: when each partition begins, if it is a time slice.

    Returns:
        how many rows there are now.

    Raises:
        TableMismatchError: the table has other columns than the rows.
        SliceError: a row lies outside the slice; a second run would then double it.
    """
    columns = list(rows.schema.names)
    # Of no row: only to know what Postgres makes of the columns.
    transaction.load(INCOMING, rows.schema.empty_table().to_reader())
    index = part.expression if part and part.expression in columns else None
    same_types = ensure_table(transaction, table, rows.schema, index)
    condition = part.condition(columns) if part else "true"
    if same_types and (windows := Windows.of(part, starts or {}, rows.schema)):
        _lock(transaction, table)
        transaction.execute(f"delete from {table.sql} where {condition}")
        count = transaction.append(table.name, windows.watch(rows), table.schema)
        check_windows(windows, table)
        return Written(count, windows.counts())
    transaction.execute(f"drop table {INCOMING}")
    count = stage(transaction, rows)
    check_slice(transaction, table, part, condition)
    names = ", ".join(quote(column) for column in columns)
    _lock(transaction, table)
    transaction.execute(f"delete from {table.sql} where {condition}")
    order = f" order by {quote(index)}" if index else ""
    transaction.execute(f"insert into {table.sql} ({names}) select {names} from {INCOMING}{order}")
    return Written(count, count_windows(transaction, part, columns, starts or {}) if part else {})


@dataclass(frozen=True, slots=True)
class Written:
    """What was brought into a table.

    Attributes:
        rows: how many rows.
        by_partition: how many of them by partition key; a key without any may be missing.
    """

    rows: int
    by_partition: Mapping[str, int]


def merge(
    transaction: Transaction,
    name: str,
    window: tuple[datetime, datetime],
    rows: "pa.RecordBatchReader",
    *,
    starts: Mapping[str, datetime] | None = None,
    together: "Callable[[], pa.RecordBatchReader] | None" = None,
) -> Written:
    """Bring the contributions of some days into a maintained table.

    Runs the statements of ``sql/<name>/before/``, copies the contributions into ``<name>_daily``, then runs those of
    ``sql/<name>/after/``, each in the order of their names. ``slice`` (``first_day``, ``end_day`` date) holds the
    days that are replaced.

    Args:
        transaction: the transaction it is part of.
        name: the table.
        window: first moment and end (exclusive) of the days, UTC.
        rows: their contributions; ``day`` timestamp is the midnight each begins at.
        starts: when each partition begins.
        together: gives the sum of the contributions once they have all been read, where the engine has it.

    Returns:
        how many contributions there are now.

    Raises:
        LostTableError: the table, or its contributions of other days, are gone.
        SliceError: a contribution is of another day.
    """
    import pyarrow as pa

    windows = Windows(Slice("day", window), starts or {"": window[0]})
    first, end = window
    transaction.execute(
        "create temporary table slice on commit drop as "
        f"select date '{first:%Y-%m-%d}' as first_day, date '{end:%Y-%m-%d}' as end_day"
    )
    create_marts(transaction)
    require_marts(transaction)
    run_scripts(transaction, f"{name}/before")
    days = pa.schema([field.with_type(pa.date32()) if field.name == "day" else field for field in rows.schema])
    count = transaction.append(f"{name}_daily", windows.watch(rows).cast(days), "public")
    check_windows(windows, Table("public", name))
    if together and not transaction.fetch("select from old limit 1"):
        transaction.load("together", together())
    run_scripts(transaction, f"{name}/after")
    return Written(count, windows.counts())


def _lock(transaction: Transaction, table: Table) -> None:
    """One writer at a time; readers go on."""
    transaction.execute(f"lock table {table.sql} in share row exclusive mode")


def check_windows(windows: Windows, table: Table) -> None:
    """Refuse rows outside the slice, once they have passed.

    Raises:
        SliceError: there were some.
    """
    _refuse(windows.outside, table, windows.part)


def run_scripts(transaction: Transaction, name: str) -> None:
    """Run the statements of ``sql/<name>/`` in the order of their names."""
    for script in sorted(_SQL.joinpath(name).iterdir(), key=lambda script: script.name):
        transaction.execute(script.read_text(encoding="utf-8"))


def create_marts(transaction: Transaction) -> None:
    """Make the tables of the analytics database that are missing."""
    script = _SQL.joinpath("create_marts.sql")
    transaction.make_missing(_MARTS, lambda: transaction.execute(script.read_text(encoding="utf-8")))


def require_marts(transaction: Transaction) -> None:
    """Refuse to work with maintained tables of which one was dropped or emptied.

    A day is brought in by its difference, so a run would leave the lost rows lost, or count a day twice whose
    contributions were lost. A table and its contributions get their first rows in one transaction, so one of them has
    none only if someone else has taken them.

    Raises:
        LostTableError: one was.
    """
    names = [name for table in MAINTAINED for name in (table, f"{table}_daily")]
    # Dropped by hand, a table is missing until a run has made it anew, without rows.
    found = transaction.fetch(
        "select c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace "
        f"where n.nspname = 'public' and c.relname in ({', '.join(map(literal, names))})"
    )
    there = {name for (name,) in found}
    for table in MAINTAINED:
        daily = f"{table}_daily"
        # In one statement: another transaction may commit between two.
        has = (f"exists (select from public.{name})" if name in there else "false" for name in (table, daily))
        [(kept, contributed)] = transaction.fetch(f"select {', '.join(has)}")
        if contributed and not kept:
            raise LostTableError(
                f"the table public.{table} has no rows, but public.{daily}, which it is kept from, has some: it was "
                "dropped or emptied. `user-pipeline rebuild` makes it anew; then run this again."
            )
        if kept and not contributed:
            raise LostTableError(
                f"the table public.{daily} has no rows, but public.{table}, which is kept from it, has some: it was "
                "dropped or emptied. Run `user-pipeline rebuild`, then materialize all days again; "
                "`user-pipeline verify` prints the commands."
            )


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
    return {keys[bucket - 1]: count for bucket, count in found if keys}


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
    _refuse(outside, table, part)


def _refuse(outside: int, table: Table, part: Slice | None) -> None:
    if outside:
        raise SliceError(
            f"{outside} of the rows for {table} lie outside the slice {part}; "
            "an asset gives only rows of its own partitions"
        )


def ensure_table(transaction: Transaction, table: Table, schema: "pa.Schema", index: str | None) -> bool:
    """Make the table like ``incoming`` if it is missing; otherwise compare the two.

    Args:
        transaction: the transaction it is part of.
        table: the table.
        schema: the columns of ``incoming`` as Arrow knows them.
        index: the column its slices are found by.

    Returns:
        whether the columns of the two are of the very same types.

    Raises:
        TableMismatchError: the table has other columns.
    """
    transaction.make_missing([table.name], lambda: _create(transaction, table, schema, index), table.schema)
    there, given = columns_of(transaction, table.sql), columns_of(transaction, INCOMING)
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
    return there == given


def _create(transaction: Transaction, table: Table, schema: "pa.Schema", index: str | None) -> None:
    import pyarrow as pa

    transaction.execute(f"create schema if not exists {quote(table.schema)}")
    transaction.execute(f"create table {table.sql} (like {INCOMING})")
    for field in schema:
        # ADBC makes a numeric of any precision, which nobody could read back as the decimal it was.
        if pa.types.is_decimal(field.type):
            kind = f"numeric({field.type.precision}, {field.type.scale})"
            transaction.execute(f"alter table {table.sql} alter column {quote(field.name)} type {kind}")
    if index:
        # Unnamed: the name may be that of an index of an earlier table, which was renamed.
        transaction.execute(f"create index on {table.sql} ({quote(index)})")


def columns_of(transaction: Transaction, relation: str) -> dict[str, str]:
    """The columns of a table in their order, and Postgres' name of each one's type."""
    rows: list[tuple[Any, ...]] = transaction.fetch(
        "select attname::text, format_type(atttypid, null) from pg_attribute "
        f"where attrelid = {literal(relation)}::regclass and attnum > 0 and not attisdropped order by attnum"
    )
    return dict(rows)


def _family(kind: str) -> str:
    return _FAMILIES.get(kind, kind)

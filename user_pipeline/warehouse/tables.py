"""Tables of the warehouse: make them, replace a range of days, and refuse tables that lost their rows."""

from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from user_pipeline.engines.parquet import read_parquet
from user_pipeline.errors import PermanentError
from user_pipeline.resources.postgres import Transaction, literal, quote
from user_pipeline.warehouse.statements import statements

if TYPE_CHECKING:
    import pyarrow as pa

INCREMENTAL = ("users", "user_page_views")
"""The tables that are kept by the changes of each day; their daily aggregates are files of the lake."""
SNAPSHOTS = ("page_recommendations", "related_pages", "popular_pages", "recommendation_parameters")
"""The tables that show the newest of the snapshots of all days; the snapshots are files of the lake."""
MARTS = (*INCREMENTAL, *SNAPSHOTS)
# Relations that the DDL of a table makes beside it.
_BESIDE = {
    **{table: [f"{table}_day"] for table in SNAPSHOTS},
    "page_recommendations": [
        "page_recommendations_day",
        "page_recommendations_because",
        "page_recommendation_reasons",
    ],
}
_BATCH_ROWS = 100_000
_TYPES = {
    "int32": "integer",
    "int64": "bigint",
    "double": "double precision",
    "string": "text",
    "date32[day]": "date",
    "timestamp[us]": "timestamp without time zone",
}


class TableMismatchError(PermanentError):
    """A table has other columns than the rows that are to be written."""


class LostTableError(PermanentError):
    """An incremental table, or the registry of its daily aggregates, was dropped or emptied by another program."""


class OutsidePartitionError(PermanentError):
    """Rows are of other days than those they were given for."""


def create_table(transaction: Transaction, table: str) -> None:
    """Make a table from its DDL unless it is there."""
    relations = [table, *_BESIDE.get(table, [])]
    transaction.make_missing(relations, lambda: transaction.execute(statements(table)["create"]))


def create_marts(transaction: Transaction) -> None:
    """Make the tables of the analytics database that are missing."""
    for table in MARTS:
        create_table(transaction, table)


def replace_days(transaction: Transaction, table: str, column: str, days: Sequence[date], files: Iterable[Path]) -> int:
    """Replace the rows of some days of a table by those of Parquet files.

    Writers of one table wait for each other. Readers see the old rows until the transaction commits. A missing table is
    made.

    Args:
        transaction: the transaction it is part of.
        table: the table.
        column: tells a row's day.
        days: the days, which follow each other.
        files: Parquet files with their rows, in the columns of the table; at least one. Each is opened when the one
            before it is done.

    Returns:
        how many rows there are now.

    Raises:
        TableMismatchError: the table has other columns than the files.
    """
    create_table(transaction, table)
    rows = read_parquet(files)
    require_columns(transaction, table, rows.schema)
    transaction.execute(f"lock table public.{quote(table)} in share row exclusive mode")
    first, end = min(days), max(days) + timedelta(days=1)
    transaction.execute(
        f"delete from public.{quote(table)} where {quote(column)} >= '{first}' and {quote(column)} < '{end}'"
    )
    return transaction.append(table, rows, "public")


def require_columns(transaction: Transaction, table: str, schema: "pa.Schema") -> None:
    """Refuse a table with other columns than the rows that are to be written.

    Raises:
        TableMismatchError: it has other columns.
    """
    there = columns_of(transaction, table)
    given = {field.name: _TYPES.get(str(field.type), str(field.type)) for field in schema}
    problems = [f"the table lacks {name} ({kind})" for name, kind in given.items() if name not in there]
    problems += [f"the rows lack {name} ({kind})" for name, kind in there.items() if name not in given]
    problems += [
        f"{name} is {there[name]} in the table and {kind} in the rows"
        for name, kind in given.items()
        if name in there and there[name] != kind
    ]
    if problems:
        raise TableMismatchError(
            f"the table public.{table} does not fit what is to be written: {'; '.join(problems)}. "
            "Alter the table to fit, or rename it and materialize all its partitions anew."
        )


def columns_of(transaction: Transaction, table: str) -> dict[str, str]:
    """The columns of a table in their order, and Postgres' name of each one's type."""
    rows: list[tuple[Any, ...]] = transaction.fetch(
        "select attname::text, format_type(atttypid, null) from pg_attribute "
        f"where attrelid = {literal(f'public.{quote(table)}')}::regclass and attnum > 0 and not attisdropped "
        "order by attnum"
    )
    return dict(rows)


def exists(transaction: Transaction, table: str) -> bool:
    """Whether a database has a table."""
    # Not to_regclass, which may answer from a cache that is not told of other transactions yet.
    return bool(
        transaction.fetch(
            "select from pg_class c join pg_namespace n on n.oid = c.relnamespace "
            f"where n.nspname = 'public' and c.relname = {literal(table)}"
        )
    )


def require_day(file: Path, column: str, day: date) -> None:
    """Refuse a Parquet file with rows of another day: a run of that day would write them a second time.

    Raises:
        OutsidePartitionError: it has such rows.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    content = pq.ParquetFile(file)
    outside = 0
    for batch in content.iter_batches(_BATCH_ROWS, columns=[column]):
        days = batch.column(0).cast("date32", safe=False)
        outside += batch.num_rows - (pc.sum(pc.equal(days, day)).as_py() or 0)
    if outside:
        raise OutsidePartitionError(
            f"{outside} of the rows for {day} have {column} outside of that day; an asset gives only rows of its own "
            "partitions"
        )


def require_marts(transaction: Transaction) -> None:
    """Refuse to work with an incremental table that lost its rows, or the registry of its daily aggregates.

    A run applies the difference between the new and the old aggregates of a day. So lost rows would stay lost, and a
    day whose aggregates were lost would count twice. A table and its aggregates get their first rows in one
    transaction, so one of them is empty only if another program emptied it.

    Raises:
        LostTableError: a table or its aggregates are empty, and the other is not.
    """
    for table in INCREMENTAL:
        # A table that was dropped is missing until a run makes it again, without rows.
        has = f"exists (select from public.{table})" if exists(transaction, table) else "false"
        # One statement for both: another transaction may commit between two.
        [(kept, aggregated)] = transaction.fetch(
            f"select {has}, exists (select from pipeline.lake_files "
            f"where asset = {literal(table)} and superseded_at is null and rows > 0)"
        )
        if aggregated and not kept:
            raise LostTableError(
                f"the table public.{table} has no rows, but the lake has daily aggregates of it: it was dropped or "
                "emptied. `user-pipeline rebuild` makes it anew; then run this again."
            )
        if kept and not aggregated:
            raise LostTableError(
                f"the table public.{table} has rows, but no daily aggregates are registered in pipeline.lake_files of "
                "the same database: they were deleted. Drop the schema pipeline and run `user-pipeline recover`."
            )

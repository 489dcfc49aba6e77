"""Tables of snapshots: each shows the snapshot of the newest day."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path

from user_pipeline.engines.parquet import read_parquet
from user_pipeline.resources.postgres import Transaction, quote
from user_pipeline.warehouse.statements import statements
from user_pipeline.warehouse.tables import create_marts

# Columns of the snapshot that go into another table.
_ALSO = {"page_recommendations": ("because_url",)}


def publish(transaction: Transaction, table: str, day: date, file: Path, columns: Sequence[str]) -> bool:
    """Replace the rows of a table by the snapshot of a day, unless it shows a newer day.

    Args:
        transaction: on the analytics database.
        table: the table.
        day: the day.
        file: its snapshot, a Parquet file.
        columns: those of the table.

    Returns:
        whether the table shows the day now.
    """
    sql = statements(table)
    create_marts(transaction)
    if _is_newer(transaction, table, day):
        return False
    # Copied before the table is locked, so that other writers wait for less.
    also = _ALSO.get(table, ())
    transaction.load("incoming", read_parquet([file], [*columns, *also]))
    transaction.execute("analyze incoming")
    transaction.execute(sql["lock"])
    # Another run may have published a newer day meanwhile.
    if _is_newer(transaction, table, day):
        return False
    for name in ("emails", "delete", "insert", "delete_reasons", "insert_reasons"):
        if name in sql:
            transaction.execute(sql[name])
    transaction.execute(sql["day"], (day,))
    transaction.execute(sql["analyze"])
    return True


def served_day(transaction: Transaction, table: str = "page_recommendations") -> date | None:
    """The day a table of snapshots is as of; None before the first."""
    rows = transaction.fetch(f"select day from public.{quote(table + '_day')}")
    return rows[0][0] if rows else None


def _is_newer(transaction: Transaction, table: str, day: date) -> bool:
    served = served_day(transaction, table)
    return served is not None and served > day

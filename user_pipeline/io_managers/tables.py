"""Keep an asset's partitions as files of the lake, and its rows as a table in Postgres."""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

import dagster as dg

from user_pipeline.engines.parquet import write_parquet
from user_pipeline.errors import PermanentError, never_retried
from user_pipeline.io_managers.lake import LakeIOManager
from user_pipeline.io_managers.metadata import PREVIEW_ROWS, PREVIEW_TEXT, preview
from user_pipeline.lake.parts import Part, one_by_one
from user_pipeline.resources.postgres import quote
from user_pipeline.warehouse.incremental import Merge
from user_pipeline.warehouse.tables import columns_of, exists, replace_days, require_marts

if TYPE_CHECKING:
    from user_pipeline.engines.base import Engine
    from user_pipeline.resources.postgres import Postgres, Transaction
    from user_pipeline.transforms import Frame


class MissingTableError(PermanentError):
    """A table that is to be read was never written."""


class DailyTableIOManager(LakeIOManager):
    """A table whose rows belong to a day each. The days of a run are replaced in one transaction.

    ``partition_expr`` in the asset's metadata names the column that tells a row's day. Consumers read the files of the
    lake, which hold the same rows.
    """

    def bring_in(
        self, context: dg.OutputContext, transaction: "Transaction", files: Mapping[date, Sequence[Part]]
    ) -> None:
        """Replace the days of the table."""
        table = context.asset_key.path[-1]
        column = context.definition_metadata["partition_expr"]
        parts = [part for there in files.values() for part in there]
        local = one_by_one(self.lake.storage, self.engine, parts)
        replace_days(transaction, table, column, list(files), local)
        context.add_output_metadata({"dagster/table_name": table_name(transaction, table)})


class IncrementalIOManager(LakeIOManager):
    """A table over all days. Assets give its daily aggregates; what they change is applied to the table.

    The aggregates are files of the lake; ``partition_expr`` in the asset's metadata names their column that tells the
    day. Consumers get the whole table.
    """

    def bring_in(
        self, context: dg.OutputContext, transaction: "Transaction", files: Mapping[date, Sequence[Part]]
    ) -> None:
        """Apply to the table what the aggregates of the run's days change."""
        table = context.asset_key.path[-1]
        Merge(transaction, self.engine, self.lake.storage).apply(table, files)
        context.add_output_metadata(
            {"dagster/table_name": table_name(transaction, table), **table_preview(transaction, table)}
        )

    def describe(self, file: dict[str, Any]) -> dict[str, Any]:
        """Without its first rows: those of the table are shown."""
        return {name: value for name, value in file.items() if name != "preview"}

    def load_input(self, context: dg.InputContext) -> Any:
        """The whole table, as a lazy frame."""
        with never_retried():
            with self.registry.database.transaction() as transaction:
                require_marts(transaction)
            return read_table(self.registry.database, self.engine, context.asset_key.path[-1])


def read_table(database: "Postgres", engine: "Engine", table: str) -> "Frame":
    """The rows of a table as a frame that can be read more than once and holds no connection open.

    Raises:
        MissingTableError: there is no such table.
    """
    file = engine.new_scratch(table) / f"{table}.parquet"
    with database.transaction() as transaction:
        if not exists(transaction, table):
            raise MissingTableError(
                f"the table public.{table} does not exist in the database of {database.database.variable}; "
                f"materialize the asset {table} first"
            )
        write_parquet(transaction.stream(f"select * from public.{quote(table)}"), file)
    return engine.read([file])


def table_name(transaction: "Transaction", table: str) -> str:
    """A table with its database and schema, as Dagster shows it."""
    [(database,)] = transaction.fetch("select current_database()::text")
    return f"{database}.public.{table}"


def table_preview(transaction: "Transaction", table: str) -> dict[str, Any]:
    """The first rows of a table, as metadata."""
    columns = list(columns_of(transaction, table))
    # As text: a value may be megabytes long.
    names = ", ".join(f"left({quote(column)}::text, {PREVIEW_TEXT})" for column in columns)
    rows = transaction.fetch(f"select {names} from public.{quote(table)} limit {PREVIEW_ROWS}")
    return preview(columns, [dict(zip(columns, row, strict=True)) for row in rows])

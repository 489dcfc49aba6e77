"""Keep each day's snapshot of a table in the lake, and the newest of them as the table in Postgres."""

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from user_pipeline.errors import never_retried
from user_pipeline.io_managers.base import LakeFileIOManager
from user_pipeline.io_managers.lake import parquet_head
from user_pipeline.io_managers.metadata import file_metadata
from user_pipeline.io_managers.partitioned import File, Partitioned
from user_pipeline.io_managers.postgres import PostgresIOManager
from user_pipeline.resources.postgres import Databases, quote
from user_pipeline.warehouse.replace import Table, create_marts, require_marts, run_scripts, stage

if TYPE_CHECKING:
    from user_pipeline.resources.postgres import Postgres, Transaction

BATCH_ROWS = 100_000


class SnapshotIOManager(LakeFileIOManager):
    """A snapshot a day in the lake, the newest as a table in the analytics database.

    The snapshot of a day is stored first, as ``<asset>/date=<day>/<asset>.parquet`` in the lake. Then the
    statements of ``sql/<asset>/`` bring the table to it in one transaction, unless the table is that of a newer
    day already: ``incoming`` holds the snapshot's rows, in the columns of the table, ``snapshot`` its ``day``.
    ``<asset>_day`` tells the day the table is as of. What stops in between leaves a snapshot that no table
    shows yet; running the day again ends in the same state as if nothing had happened.

    The asset gives the snapshots of some days, as Parquet files; its column schema names the table's columns. Consumers
    get the whole table.
    """

    databases: dg.ResourceDependency[Databases]

    def handle_output(self, context: dg.OutputContext, obj: Partitioned[File]) -> None:
        """Store the days one by one, oldest first, and show the last."""
        import pyarrow.parquet as pq

        table = Table("public", context.asset_key.path[-1])
        columns = [column.name for column in context.definition_metadata["dagster/column_schema"].columns]
        computed: dict[str, dict[str, Any]] = {}
        with never_retried():
            for day in sorted(obj):
                file = obj[day].path
                path = self.path(context, day)
                self.put(path, file)
                in_table = day == max(obj) and self._publish(table, columns, date.fromisoformat(day), file)
                rows = int(pq.ParquetFile(file).metadata.num_rows)
                computed[day] = {
                    **file_metadata(file, rows, self.storage.lake_url(path), parquet_head(file, columns)),
                    "in_table": in_table,
                    **obj[day].metadata,
                }
                self.remove_local(file)
                context.log.info("%s: wrote %d rows", path, rows)
        self._show(context, table, computed)

    def load_input(self, context: dg.InputContext) -> Any:
        """The whole table, as the annotated type."""
        return PostgresIOManager(self.databases.analytics, self.engine).load_input(context)

    def _publish(self, table: Table, columns: list[str], day: date, file: Path) -> bool:
        """Bring the table to a day's snapshot unless it is newer already; returns whether it was brought there."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        with self.databases.analytics.transaction() as transaction:
            create_marts(transaction)
            if _is_newer(transaction, table, day):
                return False
            content = pq.ParquetFile(file)
            kept = pa.schema([content.schema_arrow.field(name) for name in columns])
            batches = (batch.select(columns) for batch in content.iter_batches(BATCH_ROWS, columns=columns))
            # Copied before the table is locked, so that other writers wait for less.
            stage(transaction, pa.RecordBatchReader.from_batches(kept, batches))
            transaction.execute(f"create temporary table snapshot on commit drop as select date '{day}' as day")
            transaction.execute(f"lock table {table.sql} in share row exclusive mode")
            # Another run may have been quicker.
            if _is_newer(transaction, table, day):
                return False
            run_scripts(transaction, table.name)
        return True

    def _show(self, context: dg.OutputContext, table: Table, computed: Mapping[str, dict[str, Any]]) -> None:
        with self.databases.analytics.transaction() as transaction:
            create_marts(transaction)
            served = served_in(transaction, table.name, table.schema)
            [(rows, database)] = transaction.fetch(f"select count(*), current_database()::text from {table.sql}")
        context.add_output_metadata(
            {
                "dagster/table_name": f"{database}.{table}",
                "dagster/row_count": rows,
                "table_as_of": str(served),
                "computed_days": sorted(computed),
            }
        )
        for partition in context.asset_partition_keys:
            self.add_metadata(context, partition, {"computed": partition in computed, **computed.get(partition, {})})


def served_day(postgres: "Postgres", table: str = "page_recommendations") -> date | None:
    """The day a table of snapshots is as of; None before the first.

    Raises:
        LostTableError: a table that the next snapshot would be made from is gone.
    """
    with postgres.transaction() as transaction:
        create_marts(transaction)
        require_marts(transaction)
        return served_in(transaction, table)


def served_in(transaction: "Transaction", table: str, schema: str = "public") -> date | None:
    """The day a table of snapshots is as of; None before the first."""
    rows = transaction.fetch(f"select day from {quote(schema)}.{quote(table + '_day')}")
    return rows[0][0] if rows else None


def _is_newer(transaction: "Transaction", table: Table, day: date) -> bool:
    served = served_in(transaction, table.name, table.schema)
    return served is not None and served > day

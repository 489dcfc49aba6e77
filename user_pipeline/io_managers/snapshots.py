"""Keep each day's snapshot of a table in the lake, and the newest of them as the table in Postgres."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from user_pipeline.errors import never_retried
from user_pipeline.io_managers.lake import parquet_head
from user_pipeline.io_managers.metadata import file_metadata, timed
from user_pipeline.io_managers.postgres import PostgresIOManager
from user_pipeline.lake.files import partition_path
from user_pipeline.resources.postgres import quote
from user_pipeline.warehouse.replace import Table, create_marts, run_scripts, stage

if TYPE_CHECKING:
    from user_pipeline.engines.duckdb import Engine
    from user_pipeline.resources.postgres import Postgres, Transaction
    from user_pipeline.resources.storage import ObjectStorage

BATCH_ROWS = 100_000


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A day's snapshot.

    Attributes:
        rows: how many there are.
        metadata: what else to show with the day's materialisation.
    """

    rows: int
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SnapshotPerDay:
    """What an asset returns: which days to make, and a function that writes the snapshot of a day as Parquet."""

    days: Sequence[date]
    make: Callable[[date, Path], Snapshot]


class SnapshotIOManager(PostgresIOManager):
    """A table that is replaced as a whole, day by day, with every day's state kept.

    The snapshot of a day is stored first, as ``<asset>/date=<day>/<asset>.parquet`` in the lake. Then the
    statements of ``sql/<asset>/`` bring the table to it in one transaction, unless the table is that of a newer
    day already: ``incoming`` holds the snapshot's rows, in the columns of the table, ``snapshot`` its ``day``.
    ``<asset>_day`` tells the day the table is as of. What stops in between leaves a snapshot that no table
    shows yet; running the day again ends in the same state as if nothing had happened.

    The asset's column schema names the table's columns. Consumers get the whole table.

    Args:
        postgres: the database.
        engine: gives scratch directories, and hands frames to consumers.
        storage: has the lake.
    """

    def __init__(self, postgres: "Postgres", engine: "Engine", storage: "ObjectStorage") -> None:
        super().__init__(postgres, engine)
        self._storage = storage

    def handle_output(self, context: dg.OutputContext, obj: SnapshotPerDay) -> None:
        """Make and store the days one by one, oldest first, and show the last."""
        table = self._table(context, context.definition_metadata)
        columns = [column.name for column in context.definition_metadata["dagster/column_schema"].columns]
        computed: dict[str, dict[str, Any]] = {}
        days = sorted(obj.days)
        for day in days:
            file = self._engine.new_scratch(table.name) / "snapshot.parquet"
            with never_retried():
                taken: dict[str, Any] = {}
                with timed(taken, "computing"):
                    snapshot = obj.make(day, file)
                path = partition_path("/".join(context.asset_key.path), day.isoformat())
                with file.open("rb") as content:
                    self._storage.lake.put(path, content)
                in_table = day == days[-1] and self._publish(table, columns, day, file)
            computed[day.isoformat()] = {
                **file_metadata(file, snapshot.rows, self._storage.lake_url(path), parquet_head(file, columns)),
                "in_table": in_table,
                **snapshot.metadata,
                **taken,
            }
            file.unlink()
            context.log.info("%s: wrote %d rows", path, snapshot.rows)
        self._add_metadata(context, table, computed)

    def _publish(self, table: Table, columns: list[str], day: date, file: Path) -> bool:
        """Bring the table to a day's snapshot unless it is newer already; returns whether it was brought there."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        with self._postgres.transaction() as transaction:
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

    def _add_metadata(self, context: dg.OutputContext, table: Table, computed: Mapping[str, dict[str, Any]]) -> None:
        with self._postgres.transaction() as transaction:
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
            context.step_context.add_asset_metadata(
                {"computed": partition in computed, **computed.get(partition, {})},
                asset_key=context.asset_key,
                partition_key=partition,
            )


def served_day(postgres: "Postgres", table: str = "page_recommendations") -> date | None:
    """The day a table of snapshots is as of; None before the first."""
    with postgres.transaction() as transaction:
        create_marts(transaction)
        return served_in(transaction, table)


def served_in(transaction: "Transaction", table: str, schema: str = "public") -> date | None:
    """The day a table of snapshots is as of; None before the first."""
    rows = transaction.fetch(f"select day from {quote(schema)}.{quote(table + '_day')}")
    return rows[0][0] if rows else None


def _is_newer(transaction: "Transaction", table: Table, day: date) -> bool:
    served = served_in(transaction, table.name, table.schema)
    return served is not None and served > day

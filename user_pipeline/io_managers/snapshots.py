"""Keep each day's snapshot of a table in the lake, and the newest of them as the table in Postgres."""

from collections.abc import Mapping
from datetime import date
from typing import TYPE_CHECKING, Any

import dagster as dg

from user_pipeline.errors import never_retried
from user_pipeline.io_managers.base import LakeFileIOManager
from user_pipeline.io_managers.metadata import file_metadata, parquet_head
from user_pipeline.io_managers.partitioned import File, Partitioned
from user_pipeline.io_managers.tables import read_table, table_name
from user_pipeline.warehouse.snapshots import publish, served_day
from user_pipeline.warehouse.tables import create_marts

if TYPE_CHECKING:
    from user_pipeline.resources.postgres import Transaction


class SnapshotIOManager(LakeFileIOManager):
    """A snapshot a day in the lake, the newest as a table in the analytics database.

    The snapshots of a run are stored first, as files of the lake. Then one transaction registers them and replaces the
    rows of the table by the last of them, unless the table shows a newer day already. ``<asset>_day`` has the day that
    the table shows.

    The asset gives the snapshots of some days, as Parquet files; its column schema names the table's columns. Consumers
    get the whole table.
    """

    folder: str

    def handle_output(self, context: dg.OutputContext, obj: Partitioned[File]) -> None:
        """Store the snapshots, and publish the last."""
        asset = context.asset_key.path[-1]
        columns = [column.name for column in context.definition_metadata["dagster/column_schema"].columns]
        local = {date.fromisoformat(key): file for key, file in sorted(obj.items())}
        registry = self.lake.analytics
        with never_retried():
            registry.open()
            stored = {day: self.put_new(f"{self.folder}/{asset}", day, file) for day, file in local.items()}
            with registry.database.transaction() as transaction:
                last = max(local)
                in_table = publish(transaction, asset, last, local[last].path, columns)
                registry.commit(transaction, asset, {day: [file] for day, file in stored.items()}, context.run_id)
                self._show(context, transaction, asset, local)
            for day, file in local.items():
                context.log.info("%s: wrote %d rows", stored[day].path, stored[day].rows)
                # The newest day, which is made again, need not be one of the run.
                if day.isoformat() in context.asset_partition_keys:
                    url = self.lake.storage.lake_url(stored[day].path)
                    shown = file_metadata(file.path, stored[day].rows, url, parquet_head(file.path, columns))
                    told = {"computed": True, **shown, "in_table": in_table and day == last, **file.metadata}
                    self.add_metadata(context, day.isoformat(), told)
        for partition in set(context.asset_partition_keys) - set(obj):
            self.add_metadata(context, partition, {"computed": False})
        for file in local.values():
            self.remove_local(file.path)

    def load_input(self, context: dg.InputContext) -> Any:
        """The whole table, as a lazy frame."""
        with never_retried():
            return read_table(self.lake.analytics.database, self.engine, context.asset_key.path[-1])

    def _show(
        self, context: dg.OutputContext, transaction: "Transaction", table: str, computed: Mapping[date, File]
    ) -> None:
        create_marts(transaction)
        [(rows,)] = transaction.fetch(f"select count(*) from public.{table}")
        context.add_output_metadata(
            {
                "dagster/table_name": table_name(transaction, table),
                "dagster/row_count": rows,
                "table_as_of": str(served_day(transaction, table)),
                "computed_days": [day.isoformat() for day in computed],
            }
        )

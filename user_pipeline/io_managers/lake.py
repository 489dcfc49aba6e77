"""Keep an asset's partitions as Parquet files of the lake, and beside them what people query in Postgres."""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any, Literal

import dagster as dg

from user_pipeline.errors import never_retried
from user_pipeline.ingest.retirement import require_kept
from user_pipeline.io_managers.base import LakeFileIOManager
from user_pipeline.io_managers.metadata import file_metadata, parquet_head, timed
from user_pipeline.io_managers.partitioned import File, Partitioned
from user_pipeline.lake.partitions import LakeFile
from user_pipeline.lake.parts import FromLake, Part
from user_pipeline.lake.registry import Registry
from user_pipeline.warehouse.tables import OutsidePartitionError, require_day

if TYPE_CHECKING:
    from user_pipeline.resources.postgres import Transaction


class RegisteredIOManager(LakeFileIOManager):
    """Partitions of assets as files of the lake, in the registry of a database.

    Consumers get the rows of each of their partitions as a lazy frame, by partition key, in no particular order.
    """

    folder: str
    database: Literal["staging", "analytics"]

    @property
    def registry(self) -> Registry:
        """The registry the partitions are in."""
        return self.lake.registry(self.database)

    def load_input(self, context: dg.InputContext) -> Any:
        """The rows of each partition the consumer depends on."""
        days = [date.fromisoformat(key) for key in context.asset_partition_keys]
        with never_retried():
            # Opened before the rows are read: commits of what was made from them fail if any are removed meanwhile.
            self.lake.analytics.open()
            if self.database == "staging":
                require_kept(self.lake.staging, days)
            rows = self.lake.rows(self.engine, self.registry, context.asset_key.path[-1], days)
        return {day.isoformat(): there for day, there in rows.items()}


class LakeIOManager(RegisteredIOManager):
    """Parquet files in the lake: ``<folder>/<asset>/date=<day>/<name>.parquet``, registered in a database.

    Assets give the file of each partition of the run, as a :class:`Partitioned` of :class:`File`. The files are stored
    first; then they are registered, all in one transaction. ``partition_expr`` in the asset's metadata names the column
    that tells the day of a row: rows of other days are refused.
    """

    def handle_output(self, context: dg.OutputContext, obj: Partitioned[File]) -> None:
        """Store the files of the run's partitions and register them."""
        asset = context.asset_key.path[-1]
        local = {date.fromisoformat(key): file for key, file in sorted(obj.items())}
        taken: dict[str, Any] = {}
        with never_retried():
            if set(obj) != set(context.asset_partition_keys):
                raise OutsidePartitionError(f"{asset} gave the partitions {sorted(obj)}, not those of the run")
            for day, file in local.items():
                if not file.stored:
                    require_day(file.path, context.definition_metadata["partition_expr"], day)
            self.registry.open()
            with timed(taken, "writing"):
                folder = f"{self.folder}/{asset}"
                stored = {day: file.stored or [self.put_new(folder, day, file)] for day, file in local.items()}
                with self.registry.database.transaction() as transaction:
                    self.bring_in(context, transaction, {day: file.parts for day, file in local.items()})
                    self.registry.commit(transaction, asset, stored, context.run_id)
            self._describe(context, local, stored, taken)
        for file in local.values():
            self.remove_local(file.path)

    def bring_in(
        self, context: dg.OutputContext, transaction: "Transaction", files: Mapping[date, Sequence[Part]]
    ) -> None:
        """Bring the rows of the files into the table that people query, in the transaction that registers them."""

    def describe(self, file: dict[str, Any]) -> dict[str, Any]:
        """The metadata of a partition, from that of its file."""
        return file

    def _describe(
        self,
        context: dg.OutputContext,
        local: Mapping[date, File],
        stored: Mapping[date, Sequence[LakeFile]],
        taken: Mapping[str, Any],
    ) -> None:
        for day, file in local.items():
            first, *others = stored[day]
            rows = sum(part.rows for part in stored[day])
            [path] = FromLake(self.lake.storage)(self.engine, file.parts[0])
            shown = file_metadata(path, rows, self.lake.storage.lake_url(first.path), parquet_head(path))
            if others:
                shown |= {"files": len(stored[day]), "size_bytes": sum(part.size for part in stored[day])}
            self.add_metadata(context, day.isoformat(), {**self.describe(shown), **taken, **file.metadata})
            context.log.info("%s: wrote %d rows", first.path, rows)
            self.remove_local(path)

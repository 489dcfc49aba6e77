"""Keep tables as CSV in the lake: ``exports/<table>/date=<partition>/<table>.csv``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from user_pipeline.engines.frames import to_reader
from user_pipeline.errors import never_retried
from user_pipeline.io_managers.base import LakeFileIOManager
from user_pipeline.io_managers.metadata import file_metadata, first_rows, timed
from user_pipeline.lake.transfer import export_path
from user_pipeline.resources.postgres import literal

if TYPE_CHECKING:
    import pyarrow as pa


class CsvIOManager(LakeFileIOManager):
    """CSV in the lake, a file a partition: RFC 4180 in UTF-8 with a header.

    The table's name is ``table`` in the asset's metadata.

    In a run of several partitions each of them gets the same file: the table as it stands after the run.
    """

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Write the frame once and put it under each partition of the run."""
        table = context.definition_metadata["table"]
        taken: dict[str, Any] = {}
        with timed(taken, "writing"):
            file, rows, head = self._write(obj, table)
        first, *others = [export_path(table, partition) for partition in context.asset_partition_keys]
        with never_retried():
            self.put(first, file)
            for path in others:
                self.lake.storage.lake.copy(first, path)
        for path, partition in zip([first, *others], context.asset_partition_keys, strict=True):
            url = self.lake.storage.lake_url(path)
            self.add_metadata(context, partition, file_metadata(file, rows, url, head) | taken)
        self.remove_local(file)
        context.log.info("%s: wrote %d rows", first, rows)

    def _write(self, frame: Any, table: str) -> "tuple[Path, int, pa.Table]":
        """Write a frame's rows in their order to a local file; also how many there are, and the first."""
        file = self.engine.new_scratch(table) / f"{table}.csv"
        head, reader = first_rows(to_reader(frame))
        with self.engine.connect() as connection:
            connection.from_arrow(reader).create_view("rows")
            # The order of the rows is the asset's. The setting is of the whole engine, whatever connection changes it,
            # and keeping order costs memory.
            connection.execute("set preserve_insertion_order = true")
            try:
                [(rows,)] = connection.execute(f"copy rows to {literal(str(file))} (format csv, header)").fetchall()
            finally:
                connection.execute("set preserve_insertion_order = false")
        return file, rows, head

    def load_input(self, context: dg.InputContext) -> Any:
        """Exports are for people and other systems; nothing in the platform reads them back."""
        raise NotImplementedError(f"{context.asset_key.to_user_string()} is an export; read the table instead")

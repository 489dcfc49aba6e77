"""Keep tables as CSV in the lake: ``exports/<table>/date=<partition>/<table>.csv``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from user_pipeline.engines.frames import to_reader
from user_pipeline.errors import never_retried
from user_pipeline.io_managers.metadata import file_metadata, first_rows, timed
from user_pipeline.lake.files import export_path
from user_pipeline.resources.postgres import literal

if TYPE_CHECKING:
    import pyarrow as pa

    from user_pipeline.engines.duckdb import Engine
    from user_pipeline.resources.storage import ObjectStorage


class CsvIOManager(dg.IOManager):
    """RFC 4180 CSV in UTF-8 with a header; the table's name is ``table`` in the asset's metadata.

    In a run of several partitions each of them gets the same file: the table as it stands after the run.
    """

    def __init__(self, storage: "ObjectStorage", engine: "Engine") -> None:
        self._storage = storage
        self._engine = engine

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Write the frame once and put it under each partition of the run."""
        table = context.definition_metadata["table"]
        taken: dict[str, Any] = {}
        with timed(taken, "writing"):
            file, rows, head = self._write(obj, table)
        first, *others = [export_path(table, partition) for partition in context.asset_partition_keys]
        with never_retried():
            lake = self._storage.lake
            with file.open("rb") as content:
                lake.put(first, content)
            for path in others:
                lake.copy(first, path)
        for path, partition in zip([first, *others], context.asset_partition_keys, strict=True):
            context.step_context.add_asset_metadata(
                file_metadata(file, rows, self._storage.lake_url(path), head) | taken,
                asset_key=context.asset_key,
                partition_key=partition,
            )
        file.unlink()
        context.log.info("%s: wrote %d rows", first, rows)

    def _write(self, frame: Any, table: str) -> "tuple[Path, int, pa.Table]":
        """Write a frame's rows in their order to a local file; also how many there are, and the first."""
        file = self._engine.new_scratch(table) / f"{table}.csv"
        head, reader = first_rows(to_reader(frame))
        connection = self._engine.connect()
        # The order of the rows is the asset's; the engine keeps order only where it is told to.
        connection.execute("set preserve_insertion_order = true")
        connection.from_arrow(reader).create_view("rows")
        [(rows,)] = connection.execute(f"copy rows to {literal(str(file))} (format csv, header)").fetchall()
        return file, rows, head

    def load_input(self, context: dg.InputContext) -> Any:
        """Exports are for people and other systems; nothing in the platform reads them back."""
        raise NotImplementedError(f"{context.asset_key.to_user_string()} is an export; read the table instead")

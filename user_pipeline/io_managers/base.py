"""What IO managers that keep files in the lake share."""

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg

from user_pipeline.engines.base import Engine
from user_pipeline.io_managers.partitioned import File
from user_pipeline.lake.lake import Lake
from user_pipeline.lake.partitions import LakeFile
from user_pipeline.lake.transfer import new_path, put


class LakeFileIOManager(dg.ConfigurableIOManager):
    """Keeps a file of each partition in the lake, in a bucket and in a directory alike.

    A file appears whole or not at all: a bucket shows an object when its upload is complete, in a directory it is
    written beside its place and renamed.
    """

    lake: dg.ResourceDependency[Lake]
    engine: dg.ResourceDependency[Engine]

    def put(self, path: str, file: Path) -> None:
        """Store a local file under a fixed path; it replaces the file that is there."""
        with file.open("rb") as content:
            self.lake.storage.lake.put(path, content)

    def put_new(self, folder: str, day: date, file: File) -> LakeFile:
        """Store the file of a day in a folder of the lake, under a path of its own; it is registered later."""
        rows = self.engine.count([file.path]) if file.rows is None else file.rows
        return put(self.lake.storage, new_path(folder, day), file.path, rows)

    def remove_local(self, file: Path) -> None:
        """Remove a file after it was stored, if it is in the scratch directory: the lake may be a directory, too."""
        if file.is_relative_to(self.engine.scratch):
            file.unlink(missing_ok=True)

    def add_metadata(self, context: dg.OutputContext, partition: str, metadata: Mapping[str, Any]) -> None:
        """Show metadata with one partition of the run."""
        context.step_context.add_asset_metadata(metadata, asset_key=context.asset_key, partition_key=partition)

"""What the IO managers that keep files in the lake have in common."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from user_pipeline.engines.base import Engine
from user_pipeline.lake.lake import Lake


class LakeFileIOManager(dg.ConfigurableIOManager):
    """Keeps a file of each partition in the lake, in a bucket and in a directory alike.

    A file appears whole or not at all: a bucket shows an object when its upload is complete, in a directory it is
    written beside its place and renamed.
    """

    lake: dg.ResourceDependency[Lake]
    engine: dg.ResourceDependency[Engine]

    def put(self, path: str, file: Path) -> None:
        """Store a local file under a name that may be taken already."""
        with file.open("rb") as content:
            self.lake.storage.lake.put(path, content)

    def remove_local(self, file: Path) -> None:
        """Remove a file that is stored now, if it is one of the run's: a lake in a directory has files as well."""
        if file.is_relative_to(self.engine.scratch):
            file.unlink(missing_ok=True)

    def add_metadata(self, context: dg.OutputContext, partition: str, metadata: Mapping[str, Any]) -> None:
        """Show metadata with one partition of the run."""
        context.step_context.add_asset_metadata(metadata, asset_key=context.asset_key, partition_key=partition)

"""The resources and IO managers of the assets, made from the settings."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dagster as dg

from user_pipeline import settings
from user_pipeline.engines import open_engine
from user_pipeline.engines.base import Engine
from user_pipeline.interrupts import cancelled_by, watched
from user_pipeline.io_managers.exports import CsvIOManager
from user_pipeline.io_managers.files import FilesIOManager
from user_pipeline.io_managers.raw import RawIOManager
from user_pipeline.io_managers.snapshots import SnapshotIOManager
from user_pipeline.io_managers.tables import DailyTableIOManager, IncrementalIOManager
from user_pipeline.lake.lake import Lake
from user_pipeline.resources.postgres import Databases
from user_pipeline.resources.storage import ObjectStorage


class EngineResource(dg.ConfigurableResource[Engine]):
    """The engine that USER_PIPELINE_ENGINE names; its scratch files are removed at the end of the run."""

    @contextmanager
    def yield_for_execution(self, _context: dg.InitResourceContext) -> Iterator[Engine]:
        """One engine a run. While it is open, signals are watched, so that the run ends when it is told to stop."""
        with open_engine(settings.current()) as opened, watched(), cancelled_by(opened.interrupt):
            yield opened


class StorageResource(dg.ConfigurableResource[ObjectStorage]):
    """The source and the lake: S3 buckets or directories."""

    def create_resource(self, _context: dg.InitResourceContext) -> ObjectStorage:
        """The stores the settings name."""
        return ObjectStorage(settings.current())


class DatabasesResource(dg.ConfigurableResource[Databases]):
    """The staging and analytics databases."""

    @contextmanager
    def yield_for_execution(self, _context: dg.InitResourceContext) -> Iterator[Databases]:
        """The databases the settings name."""
        opened = Databases(settings.current())
        try:
            yield opened
        finally:
            opened.close()


class LakeResource(dg.ConfigurableResource[Lake]):
    """The lake, with the registries of what is where."""

    storage: dg.ResourceDependency[ObjectStorage]
    databases: dg.ResourceDependency[Databases]

    def create_resource(self, _context: dg.InitResourceContext) -> Lake:
        """The lake of these stores and databases."""
        return Lake(self.storage, self.databases)


# Configured at launch, although there is nothing to configure: so IO managers get the same objects as assets and
# checks. Of a resource that is configured already, each IO manager would make a copy. Any, because Dagster annotates
# these parameters with the resources and not with what they give.
_ENGINE: Any = EngineResource.configure_at_launch()
_STORAGE: Any = StorageResource.configure_at_launch()
_DATABASES: Any = DatabasesResource.configure_at_launch()
_LAKE: Any = LakeResource.configure_at_launch(storage=_STORAGE, databases=_DATABASES)

RESOURCES: Mapping[str, Any] = {
    "engine": _ENGINE,
    "storage": _STORAGE,
    "databases": _DATABASES,
    "lake": _LAKE,
    "raw_io_manager": RawIOManager(lake=_LAKE, engine=_ENGINE, folder="raw", database="staging"),
    "cleaned_io_manager": DailyTableIOManager(lake=_LAKE, engine=_ENGINE, folder="cleaned", database="staging"),
    "marts_io_manager": IncrementalIOManager(lake=_LAKE, engine=_ENGINE, folder="daily", database="analytics"),
    "snapshots_io_manager": SnapshotIOManager(lake=_LAKE, engine=_ENGINE, folder="snapshots"),
    "quality_io_manager": DailyTableIOManager(lake=_LAKE, engine=_ENGINE, folder="quality", database="analytics"),
    "csv_io_manager": CsvIOManager(lake=_LAKE, engine=_ENGINE),
    "files_io_manager": FilesIOManager(lake=_LAKE, engine=_ENGINE),
}

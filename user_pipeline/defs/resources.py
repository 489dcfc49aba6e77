"""The resources and IO managers of the assets, made from the settings."""

from collections.abc import Iterator

import dagster as dg

from user_pipeline import settings
from user_pipeline.engines.duckdb import Engine
from user_pipeline.io_managers.exports import CsvIOManager
from user_pipeline.io_managers.files import FilesIOManager
from user_pipeline.io_managers.lake import LakeIOManager
from user_pipeline.io_managers.postgres import PostgresIOManager
from user_pipeline.io_managers.snapshots import SnapshotIOManager
from user_pipeline.resources.postgres import Databases
from user_pipeline.resources.storage import ObjectStorage


@dg.resource(description="DuckDB within USER_PIPELINE_MEMORY_LIMIT; its scratch files go with the run.")
def engine(_: dg.InitResourceContext) -> Iterator[Engine]:
    """One engine a run."""
    with Engine(settings.current()) as opened:
        yield opened


@dg.resource(description="The source and the lake: S3 buckets or directories.")
def storage(_: dg.InitResourceContext) -> ObjectStorage:
    """The stores the settings name."""
    return ObjectStorage(settings.current())


@dg.resource(description="The staging and analytics databases.")
def databases(_: dg.InitResourceContext) -> Iterator[Databases]:
    """The databases the settings name."""
    opened = Databases(settings.current())
    try:
        yield opened
    finally:
        opened.close()


@dg.io_manager(required_resource_keys={"storage", "engine"}, description="Parquet in the lake, a file a day.")
def lake_io_manager(context: dg.InitResourceContext) -> LakeIOManager:
    """Where raw assets are kept."""
    return LakeIOManager(context.resources.storage, context.resources.engine)


@dg.io_manager(required_resource_keys={"storage", "engine"}, description="CSV in the lake, a file a day.")
def csv_io_manager(context: dg.InitResourceContext) -> CsvIOManager:
    """Where exports are kept."""
    return CsvIOManager(context.resources.storage, context.resources.engine)


@dg.io_manager(required_resource_keys={"databases", "engine"}, description="Tables in the staging database.")
def staging_io_manager(context: dg.InitResourceContext) -> PostgresIOManager:
    """Where cleaned assets are kept."""
    return PostgresIOManager(context.resources.databases.staging, context.resources.engine)


@dg.io_manager(required_resource_keys={"databases", "engine"}, description="Tables in the analytics database.")
def analytics_io_manager(context: dg.InitResourceContext) -> PostgresIOManager:
    """Where marts are kept."""
    return PostgresIOManager(context.resources.databases.analytics, context.resources.engine)


@dg.io_manager(
    required_resource_keys={"databases", "engine", "storage"},
    description="A snapshot a day in the lake, the newest as a table in the analytics database.",
)
def snapshots_io_manager(context: dg.InitResourceContext) -> SnapshotIOManager:
    """Where recommendations are kept."""
    resources = context.resources
    return SnapshotIOManager(resources.databases.analytics, resources.engine, resources.storage)


RESOURCES = {
    "engine": engine,
    "storage": storage,
    "databases": databases,
    "lake_io_manager": lake_io_manager,
    "csv_io_manager": csv_io_manager,
    "files_io_manager": FilesIOManager(),
    "staging_io_manager": staging_io_manager,
    "analytics_io_manager": analytics_io_manager,
    "snapshots_io_manager": snapshots_io_manager,
}

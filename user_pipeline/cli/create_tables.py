"""Make every table of the platform beforehand, so that what runs the pipeline needs no right to make any."""

from typing import TYPE_CHECKING

import dagster as dg

from user_pipeline.defs.cleaned import assets as cleaned
from user_pipeline.defs.recommendations import assets as recommendations
from user_pipeline.ingest.manifest import create_manifest
from user_pipeline.ingest.rejects import create_rejects
from user_pipeline.lake.registry import create_registry
from user_pipeline.warehouse.replace import Table, create_marts, ensure_table, stage

if TYPE_CHECKING:
    import pyarrow as pa

    from user_pipeline.resources.postgres import Databases, Transaction


def create_tables(databases: "Databases") -> dict[str, list[str]]:
    """Make the tables that are missing, exactly as the pipeline would; those that are there are compared.

    Returns:
        the tables of each database, by the setting that names it.

    Raises:
        TableMismatchError: a table that is there has other columns.
        DatabaseError, DatabaseUnavailableError, StatementError: a database refuses, or does not answer.
    """
    with databases.staging.transaction() as transaction:
        create_registry(transaction)
        create_manifest(transaction)
        create_rejects(transaction)
    with databases.analytics.transaction() as transaction:
        create_registry(transaction)
        create_marts(transaction)
        # The pipeline makes it after the first rows, which is quicker; it takes the table's owner.
        transaction.execute(_KEY)
    by_io_manager = {"staging_io_manager": databases.staging, "analytics_io_manager": databases.analytics}
    for asset, io_manager in _sliced_tables():
        with by_io_manager[io_manager].transaction() as transaction:
            _create_sliced(transaction, asset)
    made = {}
    for database in (databases.staging, databases.analytics):
        with database.transaction() as transaction:
            found = transaction.fetch("select tablename::text from pg_tables where schemaname = 'public' order by 1")
        made[database.database.variable] = [name for (name,) in found]
    return made


_KEY = """
create unique index if not exists user_page_views_key
  on public.user_page_views (user_id, public.url_key(url) collate "C")
"""


def _sliced_tables() -> list[tuple[dg.AssetSpec, str]]:
    """The assets that are tables replaced by the slice, and the keys of their IO managers."""
    return [
        (spec, definition.get_io_manager_key_for_asset_key(spec.key))
        for definition in dg.load_assets_from_modules([cleaned, recommendations])
        if isinstance(definition, dg.AssetsDefinition)
        for spec in definition.specs
        if "partition_expr" in spec.metadata
    ]


def _create_sliced(transaction: "Transaction", asset: dg.AssetSpec) -> None:
    schema = _arrow_schema(asset)
    stage(transaction, schema.empty_table().to_reader())
    column = asset.metadata["partition_expr"]
    ensure_table(transaction, Table("public", asset.key.path[-1]), schema, column)


def _arrow_schema(asset: dg.AssetSpec) -> "pa.Schema":
    import pyarrow as pa

    types = {
        "timestamp": pa.timestamp("us"),
        "date": pa.date32(),
        "bigint": pa.int64(),
        "double precision": pa.float64(),
        "text": pa.string(),
    }
    columns = asset.metadata["dagster/column_schema"].columns
    return pa.schema([pa.field(column.name, types[column.type]) for column in columns])

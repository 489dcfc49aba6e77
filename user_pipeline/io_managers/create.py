"""Make every table of the platform beforehand, so that what runs the pipeline needs no right to make any."""

from typing import TYPE_CHECKING

import dagster as dg

from user_pipeline.ingest.rejects import create_rejects
from user_pipeline.io_managers.slices import Table, create_marts, ensure_table, stage

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
        create_rejects(transaction)
    for asset in _sliced_tables():
        with databases.staging.transaction() as transaction:
            _create_sliced(transaction, asset)
    with databases.analytics.transaction() as transaction:
        create_marts(transaction)
    made = {}
    for database in (databases.staging, databases.analytics):
        with database.transaction() as transaction:
            found = transaction.fetch("select tablename::text from pg_tables where schemaname = 'public' order by 1")
        made[database.database.variable] = [name for (name,) in found]
    return made


def _sliced_tables() -> list[dg.AssetSpec]:
    """The assets that are tables of the staging database."""
    from user_pipeline.assets import cleaned

    assets = dg.load_assets_from_modules([cleaned])
    return [spec for definition in assets if isinstance(definition, dg.AssetsDefinition) for spec in definition.specs]


def _create_sliced(transaction: "Transaction", asset: dg.AssetSpec) -> None:
    schema = _arrow_schema(asset)
    stage(transaction, schema.empty_table().to_reader())
    column = asset.metadata["partition_expr"]
    ensure_table(transaction, Table("public", asset.key.path[-1]), schema, column)


def _arrow_schema(asset: dg.AssetSpec) -> "pa.Schema":
    import pyarrow as pa

    types = {"timestamp": pa.timestamp("us"), "bigint": pa.int64(), "text": pa.string()}
    columns = asset.metadata["dagster/column_schema"].columns
    return pa.schema([pa.field(column.name, types[column.type]) for column in columns])

"""Make every table of the platform in advance, so that the role of the pipeline needs no right to make tables."""

from typing import TYPE_CHECKING

from user_pipeline.ingest.manifest_tables import create_manifest
from user_pipeline.ingest.rejects import create_rejects
from user_pipeline.lake.registry import create_registry
from user_pipeline.warehouse.statements import statements
from user_pipeline.warehouse.tables import create_marts, create_table

if TYPE_CHECKING:
    from user_pipeline.resources.postgres import Databases


def create_tables(databases: "Databases") -> dict[str, list[str]]:
    """Make the tables that are missing, exactly as the pipeline would; those that are there stay as they are.

    Returns:
        the tables of each database, by the setting that names it.

    Raises:
        DatabaseError, DatabaseUnavailableError, StatementError: a database refuses, or does not answer.
    """
    with databases.staging.transaction() as transaction:
        create_registry(transaction)
        create_manifest(transaction)
        create_rejects(transaction)
        for table in ("user_updates", "page_views"):
            create_table(transaction, table)
    with databases.analytics.transaction() as transaction:
        create_registry(transaction)
        create_marts(transaction)
        create_table(transaction, "recommendation_quality")
        # The pipeline makes the index after the first rows, which is faster. Only the owner of the table may make it.
        transaction.execute(statements("user_page_views")["create_key"])
    made = {}
    for database in (databases.staging, databases.analytics):
        with database.transaction() as transaction:
            found = transaction.fetch(
                "select tablename::text from pg_tables where schemaname in ('public', 'pipeline') order by 1"
            )
        made[database.database.variable] = [name for (name,) in found]
    return made

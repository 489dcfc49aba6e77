"""Raw: what was delivered for a day, in whichever objects and however late."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, date, datetime

import dagster as dg

from user_pipeline import settings
from user_pipeline.defs.common import OWNERS, PERSONAL, column_schema, daily_asset
from user_pipeline.defs.ingest.data_versions import data_version, raw_key, source_key, unobserved
from user_pipeline.defs.partitions import DAILY
from user_pipeline.engines.duckdb import Engine
from user_pipeline.errors import never_retried
from user_pipeline.ingest.feeds import PAGE_VIEWS, USER_UPDATES, Feed
from user_pipeline.ingest.manifest import Catalog
from user_pipeline.ingest.part_files import Days
from user_pipeline.ingest.reader import Ingested, read_new_objects
from user_pipeline.ingest.rejects import publish_rejects
from user_pipeline.resources.postgres import Databases
from user_pipeline.resources.storage import ObjectStorage

SOURCES = [
    dg.AssetSpec(
        source_key(feed),
        description=f"The objects under {feed.folder}/ of the source, by the days of their events: what the "
        "application delivered. A day changes when an object brings it rows, other rows, or none any more.",
        group_name="source",
        kinds={"s3", kind},
        owners=OWNERS,
        partitions_def=DAILY,
    )
    for feed, kind in ((USER_UPDATES, "csv"), (PAGE_VIEWS, "json"))
]

_WHERE_FROM = (
    ("source_object", "string", "Key of the object the row was delivered in."),
    ("source_line", "bigint", "Number of its line in that object, from 1."),
)


@daily_asset(
    group_name="raw",
    kinds={"s3", "csv", "parquet"},
    tags=PERSONAL,
    io_manager_key="lake_io_manager",
    deps=[source_key(USER_UPDATES)],
    metadata=column_schema(
        ("updated_at", "timestamp", "When the user was updated, UTC; its date is the partition."),
        ("user_id", "bigint", "The user."),
        ("email", "string", "E-mail address after the update."),
        ("name", "string", "Name after the update."),
        ("environment", "string", "Where the application ran: production, staging, …"),
        *_WHERE_FROM,
    ),
)
def raw_user_updates(
    context: dg.AssetExecutionContext,
    storage: dg.ResourceParam[ObjectStorage],
    engine: dg.ResourceParam[Engine],
    databases: dg.ResourceParam[Databases],
) -> Days:
    """Every well-formed user update of the day as delivered, duplicates and all environments included."""
    return _raw(context, USER_UPDATES, storage, engine, databases)


@daily_asset(
    group_name="raw",
    kinds={"s3", "json", "parquet"},
    io_manager_key="lake_io_manager",
    deps=[source_key(PAGE_VIEWS)],
    metadata=column_schema(
        ("ts", "timestamp", "When the page was viewed, UTC; its date is the partition."),
        ("url", "string", "The page."),
        ("environment", "string", "Where the application ran: production, staging, …"),
        ("user_id", "bigint", "Who viewed it."),
        *_WHERE_FROM,
    ),
)
def raw_page_views(
    context: dg.AssetExecutionContext,
    storage: dg.ResourceParam[ObjectStorage],
    engine: dg.ResourceParam[Engine],
    databases: dg.ResourceParam[Databases],
) -> Days:
    """Every well-formed page view of the day as delivered, duplicates and all environments included."""
    return _raw(context, PAGE_VIEWS, storage, engine, databases)


def _raw(
    context: dg.AssetExecutionContext,
    feed: Feed,
    storage: ObjectStorage,
    engine: Engine,
    databases: Databases,
) -> Days:
    """Read what is new in the source, then gather the run's days from everything read so far."""
    days = [date.fromisoformat(key) for key in context.partition_keys]
    with never_retried():
        ingested = read_feed(context.instance, feed, storage, engine, databases, days=days)
        context.add_asset_metadata(_counts(ingested))
        ingested.raise_for_objects()
        # Dagster compares with what it knew of the inputs when the step began; this step has added to it. What
        # it knows now is in the catalog of now.
        context.op_execution_context.get_step_execution_context().fetch_external_input_asset_version_info()
        catalog = Catalog.load(storage.lake, feed)
        version = data_version(catalog, catalog.changes(days=days).values())
        context.set_data_version(raw_key(feed), dg.DataVersion(version))
        return Days(feed, catalog, storage, engine, days)


def read_feed(
    instance: dg.DagsterInstance,
    feed: Feed,
    storage: ObjectStorage,
    engine: Engine,
    databases: Databases,
    *,
    days: Sequence[date] = (),
) -> Ingested:
    """Read what is new in a feed's folder, and tell Dagster which days changed with it.

    Args:
        instance: is told.
        feed: which feed.
        storage: the source and the lake.
        engine: parses.
        databases: staging holds the rejected lines.
        days: make sure that Dagster knows the state of these days too, whoever changed them.
    """
    ingested = read_new_objects(
        feed,
        storage.source,
        storage.lake,
        engine,
        limits=settings.current().object_limits,
        start_date=settings.current().start_date,
        now=datetime.now(UTC),
        publish_rejects=publish_rejects(databases.staging),
    )
    changed = ingested.catalog.changes(ingested.since)
    for observation in unobserved(instance, ingested.catalog, sorted({*changed, *days})):
        instance.report_runless_asset_event(observation)
    return ingested


def _counts(ingested: Ingested) -> dict[str, int | dict[str, int]]:
    """What this run read, as numbers to plot."""
    entries = ingested.entries
    reasons: Counter[str] = Counter()
    for entry in entries:
        reasons.update(entry.rejected)
    return {
        "objects_in_source": ingested.listed,
        "objects_read": len(entries),
        "objects_not_fetched": len(ingested.failing),
        "lines_read": sum(entry.lines for entry in entries),
        "rows_read": sum(entry.rows for entry in entries),
        "blank_lines": sum(entry.blank for entry in entries),
        "header_lines": sum(entry.header for entry in entries),
        "rejected_lines": sum(entry.rejects for entry in entries),
        **{f"rejected_{reason}": lines for reason, lines in sorted(reasons.items())},
    }

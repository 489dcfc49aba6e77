"""Raw: what was delivered for a day, in whichever objects and however late."""

from datetime import date

import dagster as dg

from user_pipeline.defs.common import PERSONAL, column_schema, daily_asset
from user_pipeline.defs.ingest.data_versions import data_version, ingested_key, raw_key, source_key
from user_pipeline.engines.base import Engine
from user_pipeline.errors import never_retried
from user_pipeline.ingest.feeds import PAGE_VIEWS, USER_UPDATES, Feed
from user_pipeline.ingest.manifest import Manifest
from user_pipeline.ingest.part_files import RawDay, raw_day
from user_pipeline.ingest.retirement import require_kept
from user_pipeline.io_managers.partitioned import PARTITIONED, Partitioned
from user_pipeline.lake.lake import Lake

_WHERE_FROM = (
    ("source_object", "string", "Key of the object the row was delivered in."),
    ("source_line", "bigint", "Number of its line in that object, from 1."),
    ("rescued", "string", "Further keys or fields of the line, a JSON object; null where there are none."),
)


@daily_asset(
    code_version="1",
    group_name="raw",
    kinds={"s3", "csv", "parquet"},
    tags=PERSONAL,
    io_manager_key="raw_io_manager",
    dagster_type=PARTITIONED,
    deps=[source_key(USER_UPDATES), ingested_key(USER_UPDATES)],
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
    lake: dg.ResourceParam[Lake],
    engine: dg.ResourceParam[Engine],
) -> Partitioned[RawDay]:
    """Every well-formed user update of the day as delivered, duplicates and all environments included."""
    return _raw(context, USER_UPDATES, lake, engine)


@daily_asset(
    code_version="1",
    group_name="raw",
    kinds={"s3", "json", "parquet"},
    io_manager_key="raw_io_manager",
    dagster_type=PARTITIONED,
    deps=[source_key(PAGE_VIEWS), ingested_key(PAGE_VIEWS)],
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
    lake: dg.ResourceParam[Lake],
    engine: dg.ResourceParam[Engine],
) -> Partitioned[RawDay]:
    """Every well-formed page view of the day as delivered, duplicates and all environments included."""
    return _raw(context, PAGE_VIEWS, lake, engine)


def _raw(context: dg.AssetExecutionContext, feed: Feed, lake: Lake, engine: Engine) -> Partitioned[RawDay]:
    """What the run's days are made of, from the objects that were read so far."""
    days = [date.fromisoformat(key) for key in context.partition_keys]
    with never_retried():
        manifest = Manifest(feed, lake.staging)
        require_kept(lake.staging, days)
        parts = manifest.parts(days)
        version = data_version(manifest.lake_id, [there.changed for there in parts.values()])
        context.set_data_version(raw_key(feed), dg.DataVersion(version))
        return Partitioned({day.isoformat(): raw_day(manifest, engine, day, parts[day]) for day in days})

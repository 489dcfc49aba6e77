"""Ingest: the objects of each feed's folder, read once each; and the days of the source, as Dagster shows them."""

from collections.abc import Sequence
from datetime import UTC, datetime

import dagster as dg

from user_pipeline import settings
from user_pipeline.defs.common import OWNERS, PERSONAL, partition_range, unpartitioned_asset
from user_pipeline.defs.ingest.data_versions import ingested_key, source_key, unreported_days
from user_pipeline.defs.ingest.run_log import logged_to
from user_pipeline.defs.links import links
from user_pipeline.defs.partitions import DAILY
from user_pipeline.engines.base import Engine
from user_pipeline.errors import never_retried
from user_pipeline.ingest.discovery import receive
from user_pipeline.ingest.feeds import FEEDS, PAGE_VIEWS, USER_UPDATES, Feed
from user_pipeline.ingest.filter import Filter
from user_pipeline.ingest.manifest import Manifest
from user_pipeline.ingest.reader import Ingested, read_new_objects
from user_pipeline.lake.lake import Lake


def _source(feed: Feed, kind: str) -> dg.AssetSpec:
    return dg.AssetSpec(
        source_key(feed),
        description=f"The objects under {feed.folder}/ of the source, by the days of their events: what the "
        "application delivered. A day changes when an object brings it rows, other rows, or none any more.",
        group_name="source",
        kinds={"s3", kind},
        owners=OWNERS,
        partitions_def=DAILY,
        metadata=links(source_key(feed).to_user_string(), "source"),
    )


source_user_updates = _source(USER_UPDATES, "csv")
source_page_views = _source(PAGE_VIEWS, "json")


@unpartitioned_asset(code_version="1", group_name="ingest", kinds={"s3", "csv", "parquet"}, tags=PERSONAL)
def ingested_user_updates(
    context: dg.AssetExecutionContext,
    lake: dg.ResourceParam[Lake],
    engine: dg.ResourceParam[Engine],
) -> dg.MaterializeResult[None]:
    """The objects under UserUpdates/ that were read so far; materializing it reads those that are new or changed."""
    return _ingest(context, USER_UPDATES, lake, engine)


@unpartitioned_asset(code_version="1", group_name="ingest", kinds={"s3", "json", "parquet"})
def ingested_page_views(
    context: dg.AssetExecutionContext,
    lake: dg.ResourceParam[Lake],
    engine: dg.ResourceParam[Engine],
) -> dg.MaterializeResult[None]:
    """The objects under PageViews/ that were read so far; materializing it reads those that are new or changed."""
    return _ingest(context, PAGE_VIEWS, lake, engine)


def _ingest(context: dg.AssetExecutionContext, feed: Feed, lake: Lake, engine: Engine) -> dg.MaterializeResult[None]:
    """Read what is new in a feed's folder, and report to Dagster which days changed with it."""
    with never_retried(), logged_to(context.log):
        queue = lake.storage.queue
        if queue:
            # It may tell of objects of all feeds.
            receive(queue, [Manifest(each, lake.staging) for each in FEEDS])
        ingested = read_new_objects(
            Manifest(feed, lake.staging),
            lake.storage.source,
            engine,
            limits=settings.current().object_limits,
            start_date=settings.current().start_date,
            now=datetime.now(UTC),
            run_id=context.run.run_id,
            settle=settings.current().settle_time,
            queue=queue,
            chosen=Filter.of(feed, settings.current()),
        )
        changed = ingested.manifest.changes(ingested.since)
        # The days of the run, too: an earlier run may have changed them and was killed before it reported them.
        days = {*changed, *(datetime.fromisoformat(key).date() for key in _days_of_run(context))}
        for observation in unreported_days(context.instance, ingested.manifest, sorted(days)):
            context.instance.report_runless_asset_event(observation)
        context.log.info(
            "%s: %d of %d objects read, %d days changed",
            feed.folder,
            ingested.read,
            ingested.listed,
            len(changed),
        )
        ingested.raise_for_objects()
    return dg.MaterializeResult(
        asset_key=ingested_key(feed),
        metadata=_counts(ingested),
        # Constant for a lake. The days of the source tell which days changed: if this version changed with each object,
        # every day of the raw assets would show as out of date.
        data_version=dg.DataVersion(ingested.manifest.lake_id),
    )


def _days_of_run(context: dg.AssetExecutionContext) -> Sequence[str]:
    """The partitions that the run is for, if any: this asset has none."""
    first, last = partition_range(context.run.tags)
    return DAILY.get_partition_keys_in_range(dg.PartitionKeyRange(first, last)) if first and last else []


def _counts(ingested: Ingested) -> dict[str, int]:
    """What this run read, as numbers to plot."""
    return {
        "objects_in_source": ingested.listed,
        "objects_read": ingested.read,
        "objects_left_to_settle": ingested.settling,
        "objects_not_fetched": len(ingested.failing),
        "lines_read": ingested.lines["lines"],
        "rows_read": ingested.lines["rows"],
        "blank_lines": ingested.lines["blank"],
        "header_lines": ingested.lines["header"],
        "rejected_lines": ingested.lines["rejected"],
        **{f"rejected_{reason}": lines for reason, lines in sorted(ingested.reasons.items())},
    }

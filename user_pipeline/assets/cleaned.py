"""Cleaned: production only, every event once, in the staging database."""

import dagster as dg

from user_pipeline.assets.common import column_schema, daily_asset
from user_pipeline.transforms import Frame
from user_pipeline.transforms.cleaned import clean_page_views, clean_user_updates, count_by_day, count_by_environment


@daily_asset(
    group_name="cleaned",
    kinds={"postgres", "table"},
    io_manager_key="staging_io_manager",
    pool="staging_database",
    metadata={
        "partition_expr": "updated_at",
        **column_schema(
            ("updated_at", "timestamp", "When the user was updated, UTC; its date is the partition."),
            ("user_id", "bigint", "The user."),
            ("email", "text", "E-mail address after the update."),
            ("name", "text", "Name after the update."),
            ("environment", "text", "Always production."),
            unique=("updated_at", "user_id", "email", "name", "environment"),
        ),
    },
)
def user_updates(context: dg.AssetExecutionContext, raw_user_updates: Frame) -> Frame:
    """The day's user updates in production, each once."""
    cleaned = clean_user_updates(raw_user_updates)
    _add_counts(context, raw_user_updates, cleaned, "updated_at")
    return cleaned


@daily_asset(
    group_name="cleaned",
    kinds={"postgres", "table"},
    io_manager_key="staging_io_manager",
    pool="staging_database",
    metadata={
        "partition_expr": "ts",
        **column_schema(
            ("ts", "timestamp", "When the page was viewed, UTC; its date is the partition."),
            ("url", "text", "The page."),
            ("environment", "text", "Always production."),
            ("user_id", "bigint", "Who viewed it."),
            unique=("ts", "url", "environment", "user_id"),
        ),
    },
)
def page_views(context: dg.AssetExecutionContext, raw_page_views: Frame) -> Frame:
    """The day's page views in production, each once."""
    cleaned = clean_page_views(raw_page_views)
    _add_counts(context, raw_page_views, cleaned, "ts")
    return cleaned


def _add_counts(context: dg.AssetExecutionContext, raw: Frame, cleaned: Frame, event_time: str) -> None:
    """Where the delivered rows of each day went."""
    delivered = _by_day(count_by_environment(raw, event_time))
    kept = _by_day(count_by_day(cleaned, event_time))
    for partition in context.partition_keys:
        counts = delivered.get(partition, {"raw_rows": 0, "production_rows": 0})
        rows = kept.get(partition, {"rows": 0})["rows"]
        context.add_asset_metadata(
            {
                "raw_rows": counts["raw_rows"],
                "other_environment_rows": counts["raw_rows"] - counts["production_rows"],
                "duplicate_rows": counts["production_rows"] - rows,
                "cleaned_rows": rows,
            },
            partition_key=partition,
        )


def _by_day(counts: Frame) -> dict[str, dict[str, int]]:
    return {row.pop("day").date().isoformat(): row for row in counts.collect("pyarrow").to_native().to_pylist()}

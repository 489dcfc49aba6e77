"""Cleaned: production only, every event once, in the staging database."""

import dagster as dg

from user_pipeline.assets.common import column_schema, daily_asset
from user_pipeline.transforms import Frame
from user_pipeline.transforms.cleaned import clean_page_views, clean_user_updates, count_by_environment


@daily_asset(
    group_name="cleaned",
    kinds={"postgres", "table"},
    io_manager_key="staging_io_manager",
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
    _add_counts(context, raw_user_updates, "updated_at")
    return clean_user_updates(raw_user_updates)


@daily_asset(
    group_name="cleaned",
    kinds={"postgres", "table"},
    io_manager_key="staging_io_manager",
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
    _add_counts(context, raw_page_views, "ts")
    return clean_page_views(raw_page_views)


def _add_counts(context: dg.AssetExecutionContext, raw: Frame, event_time: str) -> None:
    """Delivered rows of each day, by whether they are production; the IO manager adds how many were kept."""
    counted = {
        row["day"].date().isoformat(): row
        for row in count_by_environment(raw, event_time).collect("pyarrow").to_native().to_pylist()
    }
    for partition in context.partition_keys:
        row = counted.get(partition, {"raw_rows": 0, "production_rows": 0})
        context.add_asset_metadata(
            {
                "raw_rows": row["raw_rows"],
                "production_rows": row["production_rows"],
                "other_environment_rows": row["raw_rows"] - row["production_rows"],
            },
            partition_key=partition,
        )

"""Cleaned: production only, every event once, in the staging database."""

from collections.abc import Callable

import dagster as dg

from user_pipeline.assets.common import column_schema, daily_asset
from user_pipeline.transforms import Frame
from user_pipeline.transforms.cleaned import clean_page_views, clean_user_updates, count_environments, count_rows


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
def user_updates(context: dg.AssetExecutionContext, raw_user_updates: dict[str, Frame]) -> dict[str, Frame]:
    """The day's user updates in production, each once."""
    return _cleaned(context, raw_user_updates, clean_user_updates)


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
def page_views(context: dg.AssetExecutionContext, raw_page_views: dict[str, Frame]) -> dict[str, Frame]:
    """The day's page views in production, each once."""
    return _cleaned(context, raw_page_views, clean_page_views)


def _cleaned(
    context: dg.AssetExecutionContext, raw: dict[str, Frame], clean: Callable[[Frame], Frame]
) -> dict[str, Frame]:
    """Each day cleaned by itself, for duplicates are of one day; also where its delivered rows went."""
    cleaned = {partition: clean(rows) for partition, rows in raw.items()}
    for partition, rows in raw.items():
        counts = _numbers(count_environments(rows))
        kept = _numbers(count_rows(cleaned[partition]))["rows"]
        context.add_asset_metadata(
            {
                "raw_rows": counts["raw_rows"],
                "other_environment_rows": counts["raw_rows"] - counts["production_rows"],
                "duplicate_rows": counts["production_rows"] - kept,
                "cleaned_rows": kept,
            },
            partition_key=partition,
        )
        context.log.info("%s: %d of %d rows are kept", partition, kept, counts["raw_rows"])
    return cleaned


def _numbers(counts: Frame) -> dict[str, int]:
    [row] = counts.collect("pyarrow").to_native().to_pylist()
    return {name: count or 0 for name, count in row.items()}

"""Cleaned: production only, every event once, in the staging database."""

from collections.abc import Callable

from user_pipeline.defs.common import PERSONAL, column_lineage, column_schema, daily_asset
from user_pipeline.io_managers.postgres import PerPartition
from user_pipeline.transforms import Frame
from user_pipeline.transforms.cleaned import clean_page_views, clean_user_updates, count_environments


@daily_asset(
    code_version="1",
    group_name="cleaned",
    kinds={"postgres", "table"},
    tags=PERSONAL,
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
        **column_lineage(
            **{name: f"raw_user_updates.{name}" for name in ("updated_at", "user_id", "email", "name", "environment")}
        ),
    },
)
def user_updates(raw_user_updates: dict[str, Frame]) -> PerPartition:
    """The day's user updates in production, each once."""
    return _cleaned(raw_user_updates, clean_user_updates)


@daily_asset(
    code_version="1",
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
        **column_lineage(**{name: f"raw_page_views.{name}" for name in ("ts", "url", "environment", "user_id")}),
    },
)
def page_views(raw_page_views: dict[str, Frame]) -> PerPartition:
    """The day's page views in production, each once."""
    return _cleaned(raw_page_views, clean_page_views)


def _cleaned(raw: dict[str, Frame], clean: Callable[[Frame], Frame]) -> PerPartition:
    """Each day cleaned by itself, for duplicates are of one day; and once it is written, where its rows went."""

    def where_rows_went(day: str, kept: int) -> dict[str, int]:
        [counts] = count_environments(raw[day]).collect("pyarrow").to_native().to_pylist()
        rows, production = counts["raw_rows"], counts["production_rows"] or 0
        return {
            "raw_rows": rows,
            "other_environment_rows": rows - production,
            "duplicate_rows": production - kept,
            "cleaned_rows": kept,
        }

    return PerPartition({day: clean(rows) for day, rows in raw.items()}, where_rows_went)

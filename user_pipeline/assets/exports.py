"""Exports: the tables people query, as files they can take away."""

import dagster as dg
import narwhals as nw

from user_pipeline.assets.common import SHARED, column_schema


@dg.asset(
    **SHARED,
    group_name="exports",
    kinds={"s3", "csv"},
    io_manager_key="csv_io_manager",
    metadata={
        "table": "user_page_views",
        **column_schema(
            ("user_id", "bigint", "Who viewed the page."),
            ("email", "text", "The user's latest e-mail address; empty if none is known."),
            ("url", "text", "The page."),
            ("count", "bigint", "How many distinct views, over all days."),
            ("last_viewed", "timestamp", "The latest of them, UTC, as YYYY-MM-DD HH:MM:SS[.ffffff]."),
            unique=("user_id", "url"),
        ),
    },
)
def user_page_views_csv(user_page_views: nw.LazyFrame) -> nw.LazyFrame:
    """user_page_views as it stands after the day, as CSV with a header, ordered by user and page."""
    return user_page_views.sort("user_id", "url")

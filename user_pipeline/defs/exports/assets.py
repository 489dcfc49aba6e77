"""Exports: the tables people query, as files they can take away."""

from user_pipeline.defs.common import PERSONAL, column_lineage, column_schema, daily_asset
from user_pipeline.transforms import Frame


@daily_asset(
    code_version="1",
    group_name="exports",
    kinds={"s3", "csv"},
    tags=PERSONAL,
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
        **column_lineage(
            **{name: f"user_page_views.{name}" for name in ("user_id", "email", "url", "count", "last_viewed")}
        ),
    },
)
def user_page_views_csv(user_page_views: Frame) -> Frame:
    """user_page_views as it stands after the day, as CSV with a header, ordered by user and page."""
    return user_page_views.sort("user_id", "url")


@daily_asset(
    code_version="1",
    group_name="exports",
    kinds={"s3", "csv"},
    tags=PERSONAL,
    io_manager_key="csv_io_manager",
    metadata={
        "table": "page_recommendations",
        **column_schema(
            ("user_id", "bigint", "Who the page is recommended to."),
            ("email", "text", "The user's latest e-mail address; empty if none is known."),
            ("recommended_url", "text", "A page the user has not viewed."),
            ("rank", "integer", "1 is best, 3 the last."),
            unique=("user_id", "rank"),
        ),
        **column_lineage(
            **{name: f"page_recommendations.{name}" for name in ("user_id", "email", "recommended_url", "rank")}
        ),
    },
)
def page_recommendations_csv(page_recommendations: Frame) -> Frame:
    """page_recommendations as it stands after the day, as CSV with a header, ordered by user and rank."""
    return page_recommendations.sort("user_id", "rank")

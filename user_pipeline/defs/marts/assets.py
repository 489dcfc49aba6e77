"""Marts: the tables people query, kept exact by replacing each day's contribution."""

import dagster as dg

from user_pipeline.defs.common import PERSONAL, column_lineage, column_schema, daily_asset
from user_pipeline.io_managers.postgres import Contributions
from user_pipeline.transforms import Frame
from user_pipeline.transforms.marts import add_up_page_views, daily_page_views, latest_updates


@daily_asset(
    code_version="1",
    group_name="marts",
    kinds={"postgres", "table"},
    tags=PERSONAL,
    io_manager_key="analytics_io_manager",
    pool="analytics_database",
    metadata={
        "maintained": True,
        **column_schema(
            ("user_id", "bigint", "The user."),
            ("email", "text", "E-mail address of the latest update."),
            ("name", "text", "Name of the latest update."),
            ("updated_at", "timestamp", "When that was, UTC."),
            unique=("user_id",),
        ),
        **column_lineage(
            user_id="user_updates.user_id",
            email="user_updates.email",
            name="user_updates.name",
            updated_at="user_updates.updated_at",
        ),
    },
)
def users(user_updates: dict[str, Frame]) -> dict[str, Frame]:
    """The latest update of each user, over all days."""
    return {day: latest_updates(updates) for day, updates in user_updates.items()}


@daily_asset(
    code_version="1",
    group_name="marts",
    kinds={"postgres", "table"},
    tags=PERSONAL,
    io_manager_key="analytics_io_manager",
    pool="analytics_database",
    deps=[users],
    ins={"page_views": dg.AssetIn(metadata={"columns": ["ts", "url", "user_id"]})},
    metadata={
        "maintained": True,
        **column_schema(
            ("user_id", "bigint", "Who viewed the page."),
            (
                "email",
                "text",
                "The user's latest e-mail address; null if no valid production update is known.",
            ),
            ("url", "text", "The page."),
            ("count", "bigint", "How many distinct views, over all days."),
            ("last_viewed", "timestamp", "The latest of them, UTC."),
            unique=("user_id", "url"),
        ),
        **column_lineage(
            user_id="page_views.user_id",
            email="users.email",
            url="page_views.url",
            count="page_views.ts",
            last_viewed="page_views.ts",
        ),
    },
)
def user_page_views(page_views: dict[str, Frame]) -> Contributions:
    """Who looked at which page, how often and when last, with the user's latest e-mail, over all days."""
    return Contributions({day: daily_page_views(views) for day, views in page_views.items()}, add_up_page_views)

"""Marts: the tables people query, kept exact by replacing the aggregates of each day."""

from collections.abc import Callable, Mapping

import dagster as dg

from user_pipeline.defs.common import PERSONAL, column_lineage, column_schema, daily_asset, day_files, file_of
from user_pipeline.engines.base import Engine
from user_pipeline.errors import never_retried
from user_pipeline.io_managers.partitioned import PARTITIONED, File, Partitioned
from user_pipeline.lake.lake import Lake
from user_pipeline.transforms import Frame
from user_pipeline.transforms.marts import daily_page_views, latest_updates
from user_pipeline.warehouse.day_files import DayFiles


@daily_asset(
    code_version="1",
    group_name="marts",
    kinds={"postgres", "table", "parquet"},
    tags=PERSONAL,
    io_manager_key="marts_io_manager",
    dagster_type=PARTITIONED,
    pool="analytics_database",
    metadata={
        "partition_expr": "updated_at",
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
def users(
    user_updates: dict[str, Frame], engine: dg.ResourceParam[Engine], lake: dg.ResourceParam[Lake]
) -> Partitioned[File]:
    """The latest update of each user, over all days."""
    return _aggregates(user_updates, latest_updates, engine, day_files(lake, "daily/users", "updated_at"))


@daily_asset(
    code_version="1",
    group_name="marts",
    kinds={"postgres", "table", "parquet"},
    tags=PERSONAL,
    io_manager_key="marts_io_manager",
    dagster_type=PARTITIONED,
    pool="analytics_database",
    deps=[users],
    metadata={
        "partition_expr": "last_viewed",
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
def user_page_views(
    page_views: dict[str, Frame], engine: dg.ResourceParam[Engine], lake: dg.ResourceParam[Lake]
) -> Partitioned[File]:
    """Who looked at which page, how often and when last, with the user's latest e-mail, over all days."""
    return _aggregates(page_views, daily_page_views, engine, day_files(lake, "daily/user_page_views", "last_viewed"))


def _aggregates(
    cleaned: Mapping[str, Frame],
    aggregate: Callable[[Frame], Frame],
    engine: Engine,
    put: Callable[[str], DayFiles],
) -> Partitioned[File]:
    """What each day adds to the table."""
    with never_retried():
        return Partitioned({day: file_of(engine, aggregate(rows), day, put(day)) for day, rows in cleaned.items()})

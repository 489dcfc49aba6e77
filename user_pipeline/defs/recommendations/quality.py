"""How good the recommendations of the day before turned out to be."""

from datetime import date

import dagster as dg

from user_pipeline.defs.common import column_schema, daily_asset, file_of
from user_pipeline.engines.base import Engine
from user_pipeline.errors import never_retried
from user_pipeline.io_managers.partitioned import PARTITIONED, File, Partitioned
from user_pipeline.lake.lake import Lake
from user_pipeline.recommendations.quality import measure, quality_row
from user_pipeline.recommender.defaults import TREND_DAYS
from user_pipeline.warehouse.tables import require_marts


@daily_asset(
    code_version="2",
    group_name="marts",
    kinds={"postgres", "table", "parquet"},
    io_manager_key="quality_io_manager",
    dagster_type=PARTITIONED,
    pool="analytics_database",
    deps=[
        dg.AssetDep(
            "page_recommendations",
            partition_mapping=dg.TimeWindowPartitionMapping(
                start_offset=-1, end_offset=-1, allow_nonexistent_upstream_partitions=True
            ),
        ),
        "user_page_views",
    ],
    metadata={
        "partition_expr": "day",
        **column_schema(
            ("day", "date", "When the users viewed pages; the recommendations are those of the end of the day before."),
            ("users", "bigint", "Who had recommendations and viewed a page they had never viewed before."),
            ("hit_rate", "double precision", "Share of them who viewed a recommended page; null without users."),
            ("hit_rate_low", "double precision", "Where the hit rate is with 95 % confidence: from here"),
            ("hit_rate_high", "double precision", "to here."),
            ("recall_at_3", "double precision", "Mean of recommended pages viewed / min(3, new pages viewed)."),
            ("ndcg_at_3", "double precision", "The same, with a hit counting less at a worse rank."),
            (
                "popularity_hit_rate",
                "double precision",
                "The hit rate had the same users been recommended the most popular pages they had not seen.",
            ),
            (
                "trend_hit_rate",
                "double precision",
                f"The same of the pages most users viewed for the first time in the last {TREND_DAYS} days.",
            ),
            ("gain", "double precision", "The hit rate less that of the better of the two."),
            ("gain_low", "double precision", "Where the gain is with 95 % confidence, paired over users: from here"),
            ("gain_high", "double precision", "to here."),
            ("mean_popularity", "double precision", "Share of active users who had viewed a recommended page, mean."),
            ("distinct_share", "double precision", "Different pages recommended, as a share of recommendations."),
            ("coverage", "double precision", "Share of the pages that may be shown which were recommended to someone."),
            ("fallback_share", "double precision", "Share of users with recommendations by popularity alone."),
            unique=("day",),
        ),
    },
)
def recommendation_quality(
    context: dg.AssetExecutionContext, engine: dg.ResourceParam[Engine], lake: dg.ResourceParam[Lake]
) -> Partitioned[File]:
    """How many users found a new page through the recommendations of the day before, beside simple baselines.

    A day has no row if the day before it has no recommendations. It has one of 0 users, with null for their shares,
    if nobody who had recommendations viewed anything new.
    """
    with never_retried():
        return Partitioned({day: _quality(day, engine, lake) for day in context.partition_keys})


def _quality(day: str, engine: Engine, lake: Lake) -> File:
    """The row of a day, or none, as a file."""
    lake.analytics.open()
    with lake.analytics.database.transaction() as transaction:
        require_marts(transaction)
    measured = measure(date.fromisoformat(day), engine, lake)
    known = {name: value for name, value in (measured or {}).items() if value is not None}
    frame = quality_row(date.fromisoformat(day), measured)
    return file_of(engine, frame, day, None, measured=measured is not None, **known)

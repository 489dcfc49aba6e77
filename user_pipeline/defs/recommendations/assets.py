"""Recommendations: three pages each user has not seen, and how good those of the day before turned out to be."""

import math
from dataclasses import asdict
from datetime import date, timedelta

import dagster as dg
import narwhals as nw
from pydantic import Field

from user_pipeline import settings
from user_pipeline.defs.common import PERSONAL, column_lineage, column_schema, daily_asset, file_of
from user_pipeline.engines.duckdb import Engine
from user_pipeline.errors import PermanentError, never_retried
from user_pipeline.io_managers.metadata import timed
from user_pipeline.io_managers.partitioned import PARTITIONED, File, Partitioned
from user_pipeline.lake.lake import Lake
from user_pipeline.recommendations.eligibility import Eligibility
from user_pipeline.recommendations.history import Window, new_page_views, read_history
from user_pipeline.recommendations.snapshot import Choices, write_recommendations
from user_pipeline.recommender.defaults import NEIGHBOURS, REGULARISATION
from user_pipeline.transforms import Frame
from user_pipeline.transforms.quality import hits, spread
from user_pipeline.warehouse.snapshots import served_day
from user_pipeline.warehouse.tables import create_marts, require_marts

_MOST_NEIGHBOURS = 500
_SHARES = ("hit_rate", "recall_at_3", "popularity_hit_rate", "coverage", "fallback_share")


class RunConfigError(PermanentError):
    """A choice made in run config cannot be used."""


class RecommendationsConfig(dg.Config):
    """How to learn, and for which days."""

    neighbours: int | None = Field(
        default=None,
        description="From how many other pages a page is predicted at most: 1 to 500; the time grows with its cube. "
        f"Left out: all pages where they are few enough for that, otherwise {NEIGHBOURS}.",
    )
    regularisation: float = Field(
        default=REGULARISATION, description="Above 0. Higher trusts pages with few viewers less."
    )
    all_days: bool = Field(
        default=False,
        description="In a run of several days: whether each of them is computed rather than the last alone.",
    )

    def check(self) -> None:
        """Refuse what cannot be used; checks of the fields themselves would be tried again like an outage.

        Raises:
            RunConfigError: it is so.
        """
        if self.neighbours is not None and not 1 <= self.neighbours <= _MOST_NEIGHBOURS:
            raise RunConfigError(
                f"neighbours={self.neighbours} cannot be used: expected a number from 1 to {_MOST_NEIGHBOURS}."
            )
        if not 0 < self.regularisation < math.inf:
            raise RunConfigError(
                f"regularisation={self.regularisation} cannot be used: expected a finite number above 0."
            )


@daily_asset(
    code_version="2",
    group_name="marts",
    kinds={"postgres", "table", "parquet"},
    tags=PERSONAL,
    io_manager_key="snapshots_io_manager",
    dagster_type=PARTITIONED,
    pool="analytics_database",
    deps=["users", "user_page_views"],
    metadata={
        **column_schema(
            ("user_id", "bigint", "Who viewed a page in the last USER_PIPELINE_RECOMMENDATION_DAYS days."),
            ("email", "text", "The user's latest e-mail address; null if no valid production update is known."),
            (
                "recommended_url",
                "text",
                "A page that enough others viewed in these days, and the user on no day so far.",
            ),
            ("rank", "integer", "1 is best, 3 the last; fewer only where fewer pages are unseen."),
            unique=("user_id", "rank"),
        ),
        **column_lineage(
            user_id="user_page_views.user_id",
            email="users.email",
            recommended_url="user_page_views.url",
            rank="user_page_views.user_id user_page_views.url",
        ),
    },
)
def page_recommendations(
    context: dg.AssetExecutionContext,
    config: RecommendationsConfig,
    engine: dg.ResourceParam[Engine],
    lake: dg.ResourceParam[Lake],
) -> Partitioned[File]:
    """The three unseen pages that suit each user best, as of the end of the day; the table is that of the newest.

    A run of days before the newest brings in what was late, which the newest day is made of as well: it is computed
    anew with them.
    """
    with never_retried():
        config.check()
        # The config, the settings and the other days of the window decide, too: each run makes something else.
        context.set_data_version(context.asset_key, dg.DataVersion(context.run.run_id))
        wanted = context.partition_keys if config.all_days else [max(context.partition_keys)]
        served = _served(lake)
        if served and served.isoformat() > max(wanted):
            wanted = [*wanted, served.isoformat()]
        return Partitioned({day: _recommended(day, config, engine, lake) for day in sorted(wanted)})


def _served(lake: Lake) -> date | None:
    """The day the table is as of; None before the first."""
    lake.analytics.open()
    with lake.analytics.database.transaction() as transaction:
        create_marts(transaction)
        require_marts(transaction)
        return served_day(transaction)


def _recommended(day: str, config: RecommendationsConfig, engine: Engine, lake: Lake) -> File:
    """The recommendations of a day, as a file."""
    file = engine.new_scratch("page_recommendations") / "snapshot.parquet"
    taken: dict[str, float] = {}
    with timed(taken, "computing"):
        window = Window(date.fromisoformat(day), settings.current().recommendation_days)
        eligibility = Eligibility.by(settings.current())
        summary = write_recommendations(
            read_history(lake, engine, window, eligibility),
            file,
            # The engine, which has read the history, may still hold some of its own memory.
            Choices(window.days, eligibility, config.neighbours, config.regularisation, engine.memory_limit // 2),
        )
    return File(file, summary.rows, {"window_days": window.days, **asdict(summary), **taken})


@daily_asset(
    code_version="1",
    group_name="marts",
    kinds={"postgres", "table", "parquet"},
    io_manager_key="quality_io_manager",
    dagster_type=PARTITIONED,
    pool="analytics_database",
    deps=[
        dg.AssetDep(
            page_recommendations,
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
            ("recall_at_3", "double precision", "Mean of recommended pages viewed / min(3, new pages viewed)."),
            (
                "popularity_hit_rate",
                "double precision",
                "The hit rate had the same users been recommended the most popular pages they had not seen.",
            ),
            ("coverage", "double precision", "Share of the pages of the window that were recommended to someone."),
            ("fallback_share", "double precision", "Share of users with recommendations by popularity alone."),
            unique=("day",),
        ),
    },
)
def recommendation_quality(
    context: dg.AssetExecutionContext, engine: dg.ResourceParam[Engine], lake: dg.ResourceParam[Lake]
) -> Partitioned[File]:
    """How many users found a new page through the recommendations of the day before, beside the most popular pages.

    A day has no row if the day before it has no recommendations. It has one of 0 users, with null for their shares,
    if nobody who had recommendations viewed anything new.
    """
    with never_retried():
        return Partitioned({day: _quality(day, engine, lake) for day in context.partition_keys})


def _quality(day: str, engine: Engine, lake: Lake) -> File:
    """The row of a day, or none, as a file."""
    import pyarrow as pa

    measured = _measure(date.fromisoformat(day), engine, lake)
    columns = [("day", pa.date32()), ("users", pa.int64()), *((name, pa.float64()) for name in _SHARES)]
    rows = [] if measured is None else [{"day": date.fromisoformat(day), **measured}]
    frame: Frame = nw.from_native(pa.Table.from_pylist(rows, schema=pa.schema(columns))).lazy()
    known = {name: value for name, value in (measured or {}).items() if value is not None}
    return file_of(engine, frame, day, measured=measured is not None, **known)


def _measure(day: date, engine: Engine, lake: Lake) -> dict[str, int | float | None] | None:
    """The quality of the recommendations of the day before; None if there are none."""
    before = day - timedelta(days=1)
    if not lake.analytics.partitions("page_recommendations", [before]):
        return None
    with lake.analytics.database.transaction() as transaction:
        require_marts(transaction)
    files = lake.fetch(engine, lake.analytics, "page_recommendations", [before])[before]
    recommended = engine.read(files)
    new = engine.read([new_page_views(lake, engine, day)])
    measured: dict[str, int | float | None] = {}
    for measure in (hits(recommended, new), spread(recommended)):
        measured |= measure.collect("pyarrow").to_native().to_pylist()[0]
    return measured

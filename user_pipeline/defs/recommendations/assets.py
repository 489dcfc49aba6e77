"""Recommendations: three pages each user has not seen, and what else is made of the same history."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import date
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from user_pipeline import settings
from user_pipeline.defs.common import RETRY
from user_pipeline.defs.partitions import DAILY
from user_pipeline.defs.recommendations.tables import OUTS
from user_pipeline.engines.base import Engine
from user_pipeline.errors import PermanentError, never_retried
from user_pipeline.io_managers.metadata import timed
from user_pipeline.io_managers.partitioned import File, Partitioned
from user_pipeline.lake.lake import Lake
from user_pipeline.recommendations.day import TABLES, choose_model, write_tables
from user_pipeline.recommendations.eligibility import Eligibility
from user_pipeline.recommendations.history import read_history
from user_pipeline.recommendations.snapshot import Choices
from user_pipeline.recommendations.window import Window
from user_pipeline.recommender.defaults import NEIGHBOURS, Parameters
from user_pipeline.warehouse.snapshots import served_day
from user_pipeline.warehouse.tables import create_marts, require_marts

if TYPE_CHECKING:
    from user_pipeline.recommender.race import Choice

_MOST_NEIGHBOURS = 500


class RunConfigError(PermanentError):
    """A choice made in run config cannot be used."""


class RecommendationsConfig(dg.Config):
    """How to learn, and for which days."""

    neighbours: int | None = Field(
        default=None,
        description="From how many other pages a page is predicted at most: 1 to 500; the time grows with its cube. "
        f"Left out: all pages where they are few enough for that, otherwise {NEIGHBOURS}.",
    )
    regularisation: float | None = Field(
        default=None,
        description="Above 0. Higher trusts pages with few viewers less. Like the next four, it fixes "
        "the model: nothing is played back then, and what is left out of the five is that of the default.",
    )
    long_range: float | None = Field(
        default=None,
        description="0 to 1: how much pages count together that a user viewed far apart. 1 is in any order.",
    )
    direction: float | None = Field(
        default=None, description="From 0: how much more a page counts for what was viewed after it than before it."
    )
    trend: float | None = Field(default=None, description="From 0: how much pages count that users discover lately.")
    personal: bool | None = Field(
        default=None, description="Whether what a user has seen counts; false is the trend or popularity alone."
    )
    all_days: bool = Field(
        default=False,
        description="In a run of several days: whether each of them is computed rather than the last alone.",
    )

    @property
    def wanted(self) -> dict[str, Any]:
        """The numbers of the model that are given."""
        names = ("regularisation", "long_range", "direction", "trend", "personal")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def check(self) -> None:
        """Refuse values that cannot be used. Errors of pydantic's own validation would be retried.

        Raises:
            RunConfigError: there is such a value.
        """
        if self.neighbours is not None and not 1 <= self.neighbours <= _MOST_NEIGHBOURS:
            raise RunConfigError(
                f"neighbours={self.neighbours} cannot be used: expected a number from 1 to {_MOST_NEIGHBOURS}."
            )
        try:
            Parameters(**self.wanted)
        except ValueError as error:
            raise RunConfigError(f"{error}.") from None


@dg.multi_asset(
    name="page_recommendations",
    can_subset=True,
    partitions_def=DAILY,
    backfill_policy=dg.BackfillPolicy.single_run(),
    retry_policy=RETRY,
    pool="analytics_database",
    deps=["users", "user_page_views"],
    outs=OUTS,
)
def page_recommendations(
    context: dg.AssetExecutionContext,
    config: RecommendationsConfig,
    engine: dg.ResourceParam[Engine],
    lake: dg.ResourceParam[Lake],
) -> Iterator[dg.Output[Partitioned[File]]]:
    """All tables made from the history of a day, in one step: views are read and weights are learned once."""
    with never_retried():
        config.check()
        tables = [table for table in TABLES if table in context.op_execution_context.selected_output_names]
        wanted = context.partition_keys if config.all_days else [max(context.partition_keys)]
        served = _served(lake, tables)
        if served and served.isoformat() > max(wanted):
            wanted = [*wanted, served.isoformat()]
        made: dict[str, dict[str, File]] = {table: {} for table in tables}
        for day in sorted(wanted):
            for table, file in _made(day, config, engine, lake, tables).items():
                made[table][day] = file
        for table, files in made.items():
            # Config, settings and the other days of the window change the result, too, so each run is a new version.
            context.set_data_version(dg.AssetKey(table), dg.DataVersion(context.run.run_id))
            yield dg.Output(Partitioned(files), table)


def _served(lake: Lake, tables: Sequence[str]) -> date | None:
    """The newest day one of the tables is as of; None before the first."""
    lake.analytics.open()
    with lake.analytics.database.transaction() as transaction:
        create_marts(transaction)
        require_marts(transaction)
        return max(filter(None, (served_day(transaction, table) for table in tables)), default=None)


def _made(
    day: str, config: RecommendationsConfig, engine: Engine, lake: Lake, tables: Sequence[str]
) -> dict[str, File]:
    """The snapshots of a day, as files."""
    current, taken = settings.current(), dict[str, Any]()
    last = date.fromisoformat(day)
    window, eligibility = Window(last, current.recommendation_days), Eligibility.by(current)
    # The engine, which has read the history, may still hold some of its own memory.
    memory_limit = engine.memory_limit // 2
    with timed(taken, "reading"):
        history = read_history(lake, engine, window, eligibility, with_past=not config.wanted)
    with timed(taken, "choosing"):
        choice = choose_model(history, last, config.wanted, memory_limit)
    choices = Choices(window.days, eligibility, choice.parameters, config.neighbours, memory_limit)
    with timed(taken, "computing"):
        snapshots = write_tables(
            history, last, choices, engine.new_scratch("recommendations"), tables=tables, choice=choice
        )
    said = {"window_days": window.days, **model_metadata(choice)}
    return {
        table: File(snapshot.path, snapshot.rows, {**said, **snapshot.said, **taken})
        for table, snapshot in snapshots.items()
    }


def model_metadata(choice: "Choice") -> dict[str, Any]:
    """What is shown of the model and how it was chosen."""
    said = {**asdict(choice.parameters), "chosen_by": choice.why, "played_back_days": choice.days}
    if choice.users:
        said["played_back_users"] = choice.users
    for trial in choice.trials:
        if trial.parameters == choice.parameters:
            said |= {"played_back_recall_at_3": trial.recall, "gain_on_default": trial.gain}
    return said

"""The tables made from the history of a day: recommendations, related and popular pages, the choice of the model."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from user_pipeline.recommendations.codes import History
from user_pipeline.recommendations.page_lists import write_popular, write_related, write_trials
from user_pipeline.recommendations.snapshot import Choices, Learned, write_recommendations
from user_pipeline.recommendations.window import day_number
from user_pipeline.recommender.defaults import DEFAULT, Parameters

if TYPE_CHECKING:
    from user_pipeline.recommender.race import Choice

TABLES = ("page_recommendations", "related_pages", "popular_pages", "recommendation_parameters")
"""The tables of snapshots that are made from the history of a day."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A file of one table.

    Attributes:
        path: where it is.
        rows: how many it has.
        said: its metadata.
    """

    path: Path
    rows: int
    said: Mapping[str, Any] = field(default_factory=dict)


def choose_model(history: History, day: date, wanted: Mapping[str, Any], memory_limit: int) -> "Choice":
    """The model to recommend with: by playback, unless something of it is wanted.

    Args:
        history: with its past, unless something is wanted.
        day: its last day.
        wanted: numbers of the model; what is not among them is that of the default.
        memory_limit: bytes.
    """
    from user_pipeline.recommender.playback import choose
    from user_pipeline.recommender.race import Choice

    if wanted or history.past is None:
        return Choice(Parameters(**{**asdict(DEFAULT), **wanted}), "run config", 0, 0)
    return choose(history.past, day_number(day), memory_limit=memory_limit)


def write_tables(
    history: History, day: date, choices: Choices, folder: Path, *, tables: Collection[str], choice: "Choice | None"
) -> dict[str, Snapshot]:
    """Write the snapshots of some tables, all learned from one history.

    Args:
        history: who viewed what.
        day: its last day.
        choices: how to learn.
        folder: where to write.
        tables: which of ``TABLES``.
        choice: how the model was chosen; needed for ``recommendation_parameters``.
    """
    learned = Learned.of(history, day, choices)
    made: dict[str, Snapshot] = {}
    for table in tables:
        file = folder / f"{table}.parquet"
        if table == "page_recommendations":
            summary = write_recommendations(learned, history, file, choices)
            made[table] = Snapshot(file, summary.rows, asdict(summary))
        elif table == "related_pages":
            made[table] = Snapshot(file, write_related(learned, history, file, choices))
        elif table == "popular_pages":
            made[table] = Snapshot(file, write_popular(learned, history, file, choices))
        elif choice is not None:
            made[table] = Snapshot(file, write_trials(choice, file, choices))
    return made

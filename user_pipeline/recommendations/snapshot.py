"""Recommendations of one day: a Parquet file of three pages for each user.

The numerics are in :mod:`user_pipeline.recommender`, what they work on in
:mod:`user_pipeline.recommendations.history`.
"""

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from user_pipeline.recommendations.eligibility import Eligibility
from user_pipeline.recommendations.window import day_number
from user_pipeline.recommender.defaults import Parameters

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import date
    from pathlib import Path

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray
    from scipy.sparse import csr_array

    from user_pipeline.recommendations.codes import History
    from user_pipeline.recommender.interactions import Interactions
    from user_pipeline.recommender.score import Recommendations

# How many rows of the result have their texts in memory at a time.
_BATCH = 100_000
_CHOICES = b"user_pipeline.recommendations.snapshot"


@dataclass(frozen=True, slots=True)
class Summary:
    """Recommendations in numbers.

    Attributes:
        users: who got at least one; everyone active has at least one unless they have seen every page.
        active_users: who viewed a page in the window.
        pages: how many could be recommended: the pages viewed in the window that may be shown.
        withheld_pages: how many pages of the window may not.
        views: pairs of user and page learned from.
        rows: how many recommendations there are.
        explained_rows: recommendations for which a page seen spoke most.
        fallback_users: users served by popularity alone.
        filled_rows: recommendations by popularity, those of such users and where too few pages scored.
    """

    users: int
    active_users: int
    pages: int
    withheld_pages: int
    views: int
    rows: int
    explained_rows: int
    fallback_users: int
    filled_rows: int


@dataclass(frozen=True, slots=True)
class Choices:
    """What was chosen for the recommendations of a day.

    Attributes:
        window_days: how many days they are learned from.
        eligibility: which pages may be shown.
        parameters: the model.
        neighbours: from how many pages each page is predicted; None leaves it to their number.
        memory_limit: bytes for what is worked with, beside the history itself and its copy by page. Of a catalog that
            is too large for it, less is counted.
    """

    window_days: int
    eligibility: Eligibility
    parameters: Parameters
    neighbours: int | None
    memory_limit: int

    @classmethod
    def of(cls, file: "Path") -> "Choices":
        """What a day's file was made with.

        Raises:
            KeyError: the file does not have it.
        """
        import pyarrow.parquet as pq

        kept = json.loads((pq.read_schema(file).metadata or {})[_CHOICES])
        typed = {"eligibility": Eligibility(**kept["eligibility"]), "parameters": Parameters(**kept["parameters"])}
        return cls(**{**kept, **typed})

    def kept_in(self, schema: "pa.Schema") -> "pa.Schema":
        """A schema with these choices in its metadata."""
        return schema.with_metadata({_CHOICES: json.dumps(asdict(self))})


@dataclass(frozen=True, slots=True)
class Learned:
    """What was learned from a history.

    Attributes:
        views: who viewed what.
        weights: how much each page speaks for each other.
        discoveries: how many users discovered each page lately.
    """

    views: "Interactions"
    weights: "csr_array"
    discoveries: "NDArray[np.int64]"

    @classmethod
    def of(cls, history: "History", day: "date", choices: Choices) -> "Learned":
        """Learn.

        Args:
            history: who viewed what.
            day: the last day of it.
            choices: how to learn.
        """
        from user_pipeline.recommender.interactions import interactions
        from user_pipeline.recommender.weights import fit

        user, page = history.viewed
        views = interactions(
            user, page, n_users=len(history.users), n_pages=len(history.pages), recency=history.recency
        )
        weights = fit(views, choices.parameters, neighbours=choices.neighbours, memory_limit=choices.memory_limit)
        return cls(views, weights, history.discoveries.lately(day_number(day)))


def schema() -> "pa.Schema":
    """The columns of a day's file: those of the table, and what its quality is measured by.

    ``because_url`` is the page seen that spoke most for the recommended one, null where popularity or the trend did;
    ``is_fallback`` tells that a page was chosen by popularity because too few had a positive score;
    ``popular_url`` and ``trending_url`` the pages that popularity and the discovery trend alone put at this rank,
    unseen as well; ``viewers`` how many users viewed the recommended page in the window; ``active`` how many users
    there are; ``candidates`` how many pages could be recommended on that day.
    """
    import pyarrow as pa

    return pa.schema(
        [
            ("user_id", pa.int64()),
            ("email", pa.string()),
            ("recommended_url", pa.string()),
            ("rank", pa.int32()),
            ("because_url", pa.string()),
            ("is_fallback", pa.bool_()),
            ("popular_url", pa.string()),
            ("trending_url", pa.string()),
            ("viewers", pa.int64()),
            ("active", pa.int64()),
            ("candidates", pa.int64()),
        ]
    )


def write_recommendations(learned: Learned, history: "History", file: "Path", choices: Choices) -> Summary:
    """Write three pages for each user of a history to a Parquet file, by user and rank.

    Args:
        learned: what was learned from it.
        history: who viewed what.
        file: where to write, see :func:`schema`.
        choices: what it was learned with; they are kept in the file.
    """
    import pyarrow.parquet as pq

    from user_pipeline.recommender.score import recommend

    parts = recommend(
        learned.views,
        learned.weights,
        choices.parameters,
        discoveries=learned.discoveries,
        seen=history.seen_before,
        everyone=True,
        with_baselines=True,
        with_reasons=True,
        memory_limit=choices.memory_limit,
    )
    users = rows = fallback_users = filled_rows = explained_rows = 0
    with pq.ParquetWriter(file, choices.kept_in(schema()), compression="zstd") as writer:
        for part in parts:
            users += int((part.rank == 1).sum())
            rows += len(part.rank)
            fallback_users += int((part.is_fallback & (part.rank == 1)).sum())
            filled_rows += int(part.is_fallback.sum())
            explained_rows += int((_there(part.because) >= 0).sum())
            for batch in _named(part, learned.views, history):
                writer.write_batch(batch)
    return Summary(
        users=users,
        active_users=len(history.users),
        pages=len(history.pages),
        withheld_pages=history.withheld,
        views=int(learned.views.matrix.nnz),
        rows=rows,
        explained_rows=explained_rows,
        fallback_users=fallback_users,
        filled_rows=filled_rows,
    )


def _named(part: "Recommendations", views: "Interactions", history: "History") -> "Iterator[pa.RecordBatch]":
    """Recommendations with ids, addresses and urls in the place of codes."""
    import numpy as np
    import pyarrow as pa

    viewers = np.zeros(len(history.pages), np.int64)
    viewers[views.pages] = views.popularity
    for start in range(0, len(part.user), _BATCH):
        user, page, rank, is_fallback, popular, trending, because = (
            _there(column)[start : start + _BATCH] for column in part
        )
        yield pa.record_batch(
            [
                pa.array(history.users[user]),
                history.emails.take(pa.array(user)),
                history.pages.take(pa.array(page)),
                pa.array(rank.astype(np.int32)),
                history.pages.take(pa.array(because, mask=because < 0)),
                pa.array(is_fallback),
                history.pages.take(pa.array(popular)),
                history.pages.take(pa.array(trending)),
                pa.array(viewers[page]),
                pa.array(np.full(len(user), len(history.users), np.int64)),
                pa.array(np.full(len(user), len(history.pages), np.int64)),
            ],
            schema=schema(),
        )


def _there(column: "NDArray[Any] | None") -> "NDArray[Any]":
    assert column is not None  # noqa: S101 - all columns are there: they were asked for
    return column

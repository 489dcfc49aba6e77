"""Recommendations of one day: a Parquet file of three pages for each user.

The numerics are in :mod:`user_pipeline.recommender`, what they work on in
:mod:`user_pipeline.recommendations.history`.
"""

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from user_pipeline.recommendations.eligibility import Eligibility

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pyarrow as pa
    from numpy.typing import NDArray

    from user_pipeline.recommendations.history import History
    from user_pipeline.recommender.interactions import Interactions
    from user_pipeline.recommender.score import Recommendations

# Rows of the result that are text at a time.
_BATCH = 100_000


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
        fallback_users: users served by popularity alone.
        filled_rows: recommendations by popularity, those of such users and where too few pages scored.
    """

    users: int
    active_users: int
    pages: int
    withheld_pages: int
    views: int
    rows: int
    fallback_users: int
    filled_rows: int


@dataclass(frozen=True, slots=True)
class Choices:
    """What was chosen for the recommendations of a day.

    Attributes:
        window_days: how many days they are learned from.
        eligibility: which pages may be shown.
        neighbours: from how many pages each page is predicted; None leaves it to their number.
        regularisation: the ridge penalty, in squared views.
        memory_limit: bytes for what is worked with, beside the history itself and its copy by page. Of a catalogue that
            is too large for it, less is counted.
    """

    window_days: int
    eligibility: Eligibility
    neighbours: int | None
    regularisation: float
    memory_limit: int

    @classmethod
    def of(cls, file: "Path") -> "Choices":
        """What a day's file was made with.

        Raises:
            KeyError: it does not say so.
        """
        import pyarrow.parquet as pq

        kept = json.loads((pq.read_schema(file).metadata or {})[_CHOICES])
        return cls(**{**kept, "eligibility": Eligibility(**kept["eligibility"])})


_CHOICES = b"user_pipeline.recommendations.snapshot"


def schema() -> "pa.Schema":
    """The columns of a day's file: those of the table, and what its quality is measured by.

    ``is_fallback`` tells that a page was chosen by popularity because too few had a positive score;
    ``popular_url`` the page that popularity alone puts at this rank, unseen as well; ``candidates`` how many pages
    could be recommended on that day.
    """
    import pyarrow as pa

    return pa.schema(
        [
            ("user_id", pa.int64()),
            ("email", pa.string()),
            ("recommended_url", pa.string()),
            ("rank", pa.int32()),
            ("is_fallback", pa.bool_()),
            ("popular_url", pa.string()),
            ("candidates", pa.int64()),
        ]
    )


def write_recommendations(history: "History", file: "Path", choices: Choices) -> Summary:
    """Learn from a history and write three pages for each of its users to a Parquet file, by user and rank.

    Args:
        history: who viewed what.
        file: where to write, see :func:`schema`.
        choices: how to learn; they are kept in the file.
    """
    import pyarrow.parquet as pq

    from user_pipeline.recommender.interactions import interactions
    from user_pipeline.recommender.score import recommend
    from user_pipeline.recommender.weights import fit

    user, page = history.viewed
    views = interactions(user, page, n_users=len(history.users), n_pages=len(history.pages))
    weights = fit(
        views,
        neighbours=choices.neighbours,
        regularisation=choices.regularisation,
        memory_limit=choices.memory_limit,
    )
    parts = recommend(
        views,
        weights,
        seen=history.seen_before,
        everyone=True,
        with_popular=True,
        memory_limit=choices.memory_limit,
    )
    users = rows = fallback_users = filled_rows = 0
    kept = schema().with_metadata({_CHOICES: json.dumps(asdict(choices))})
    with pq.ParquetWriter(file, kept, compression="zstd") as writer:
        for part in parts:
            users += int((part.rank == 1).sum())
            rows += len(part.rank)
            fallback_users += int((part.is_fallback & (part.rank == 1)).sum())
            filled_rows += int(part.is_fallback.sum())
            for batch in _named(part, history):
                writer.write_batch(batch)
    return Summary(
        users=users,
        active_users=len(history.users),
        pages=len(history.pages),
        withheld_pages=history.withheld,
        views=_n_pairs(views),
        rows=rows,
        fallback_users=fallback_users,
        filled_rows=filled_rows,
    )


def _n_pairs(views: "Interactions") -> int:
    return int(views.matrix.nnz)


def _named(part: "Recommendations", history: "History") -> "Iterator[pa.RecordBatch]":
    """Recommendations with ids, addresses and urls in the place of codes."""
    import numpy as np
    import pyarrow as pa

    for start in range(0, len(part.user), _BATCH):
        user, page, rank, is_fallback, popular = (_of(column, start) for column in part)
        yield pa.record_batch(
            [
                pa.array(history.users[user]),
                history.emails.take(pa.array(user)),
                history.pages.take(pa.array(page)),
                pa.array(rank.astype(np.int32)),
                pa.array(is_fallback),
                history.pages.take(pa.array(popular)),
                pa.array(np.full(len(user), len(history.pages), np.int64)),
            ],
            schema=schema(),
        )


def _of(column: "NDArray[Any] | None", start: int) -> "NDArray[Any]":
    # All columns are there: popularity's choice was asked for.
    assert column is not None  # noqa: S101
    return column[start : start + _BATCH]

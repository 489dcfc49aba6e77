"""Every user's best unseen pages, by learned weights and then by popularity."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, csr_matrix, hstack
from sparse_dot_topn import sp_matmul_topn

from user_pipeline.recommender.co_views import empty
from user_pipeline.recommender.defaults import EASE, MEMORY_LIMIT, Parameters
from user_pipeline.recommender.histories import Histories, trend_of
from user_pipeline.recommender.interactions import Codes, Interactions
from user_pipeline.recommender.parallel import threads
from user_pipeline.recommender.reasons import NONE, reasons

TOP_N = 3


class Recommendations(NamedTuple):
    """Recommendations of some users: one row each, users ascending, ranks ascending within a user.

    Attributes:
        user: user codes, int32.
        page: page codes, int32.
        rank: 1 is best, int8.
        is_fallback: whether the page was chosen by popularity because too few had a positive score.
        popular: the page that popularity alone puts at this rank, int32; None unless asked for.
        trending: the page that the discovery trend alone puts at this rank, int32; None unless asked for.
        because: the page seen that spoke most for it, int32, -1 where popularity or the trend did; None unless asked
            for.
    """

    user: NDArray[np.int32]
    page: NDArray[np.int32]
    rank: NDArray[np.int8]
    is_fallback: NDArray[np.bool_]
    popular: NDArray[np.int32] | None = None
    trending: NDArray[np.int32] | None = None
    because: NDArray[np.int32] | None = None


def recommend(
    views: Interactions,
    weights: csr_array,
    parameters: Parameters = EASE,
    *,
    discoveries: NDArray[np.integer[Any]] | None = None,
    seen: tuple[Codes, Codes] | None = None,
    top_n: int = TOP_N,
    everyone: bool = False,
    with_baselines: bool = False,
    with_reasons: bool = False,
    memory_limit: int = MEMORY_LIMIT,
    n_threads: int | None = None,
) -> Iterator[Recommendations]:
    """Recommend to every user who has a view, or to everyone, some users at a time.

    A user's scores are ``history @ weights``, where a seen page counts ``c + (1 - c) e^-r``, r being 1 for the page
    viewed last, 2 for the one before and so on, and c ``parameters.long_range``: all count 1 if that is 1. With a trend
    they are divided by their standard deviation over all pages, which is estimated to 4 % of it where there are more
    than 256, and ``parameters.trend`` times the discovery trend is added: 10 for the page most often discovered lately,
    in proportion for others, and nothing below 0.1.

    The best unseen pages with a positive score come first, ties broken by popularity and then by page code; the most
    popular unseen pages follow until there are ``top_n``. Only viewed pages are recommended, so a user gets
    ``min(top_n, unseen columns)`` rows.

    Args:
        views: users x columns; in order if ``parameters.long_range`` is below 1.
        weights: columns x columns with a zero diagonal, from :func:`.fit`.
        parameters: how to weigh what was seen and the trend.
        discoveries: how many users viewed each page code for the first time in the last days, shape ``(n_pages,)``;
            needed for a trend.
        seen: user and page codes of further pairs not to recommend, any order, repeats and pages without a
            column allowed.
        top_n: how many pages a user gets, at most 127.
        everyone: whether users without a view get the most popular pages.
        with_baselines: also tell what popularity and the trend alone would recommend, to compare with; this needs
            discoveries.
        with_reasons: also tell which page seen spoke most for each.
        memory_limit: bytes. Users come in chunks for about a quarter of it, at 64 bytes a view or result,
            plus 16 bytes a page for each thread. With order or trend a view takes 96.
        n_threads: threads to use, every core by default; the result does not depend on it.

    Yields:
        The recommendations of a chunk of users. All chunks together are in order of the user codes.

    Raises:
        ValueError: an order or discoveries are needed and not there.
    """
    m, n = views.matrix.shape
    if not n:
        return
    earlier = _exclusions(views, seen)
    if not parameters.personal:
        weights, parameters = empty((n, n)), replace(parameters, long_range=1.0)
    history = hstack([views.matrix, earlier], format="csr") if earlier.nnz else views.matrix
    histories = Histories.of(
        views, weights, parameters, trend_of(views, parameters, discoveries), has_earlier=earlier.nnz > 0
    )
    predictors = csr_array(weights.T) if with_reasons else weights
    by_trend = np.arange(n)
    if with_baselines:
        if discoveries is None:
            raise ValueError("baselines need discoveries: how many users viewed each page for the first time")
        by_trend = np.argsort(-discoveries[views.pages], kind="stable")
    active = (np.diff(views.matrix.indptr) > 0) | everyone
    cost = np.cumsum(64 * (np.diff(history.indptr).astype(np.int64) + top_n + 1))
    start = 0
    while start < m:
        spent = cost[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(cost, spent + memory_limit // 4, side="right")))
        past = history[start:stop]
        asked = histories.of_users(past, start, stop, n_threads=n_threads)
        columns = _best(asked, histories.gain, top_n, memory_limit=memory_limit, n_threads=n_threads)
        scored = np.count_nonzero(columns < n, axis=1)
        _fill(columns, scored, past, n)
        user, position = np.nonzero((columns < n) & active[start:stop, None])
        popular = trending = because = None
        if with_baselines:
            popular = views.pages[_first(past, np.arange(n), top_n)[user, position]]
            trending = views.pages[_first(past, by_trend, top_n)[user, position]]
        if with_reasons:
            column = columns[user, position]
            speaking = reasons(
                histories.counting(start, stop),
                predictors,
                user,
                column,
                least=histories.spread_of(asked, user),
                n_threads=n_threads,
            )
            speaking[position >= scored[user]] = NONE
            because = np.where(speaking >= 0, views.pages[speaking], NONE).astype(np.int32)
        yield Recommendations(
            user=(start + user).astype(np.int32),
            page=views.pages[columns[user, position]],
            rank=(position + 1).astype(np.int8),
            is_fallback=position >= scored[user],
            popular=popular,
            trending=trending,
            because=because,
        )
        start = stop


def _exclusions(views: Interactions, seen: tuple[Codes, Codes] | None) -> csr_array:
    """Pairs seen before, users x columns, ones."""
    shape = views.matrix.shape
    if seen is None:
        return empty(shape).astype(np.int8)
    user, column = seen[0], views.columns_of(seen[1])
    known = column >= 0
    matrix = csr_array((np.ones(np.count_nonzero(known), np.int8), (user[known], column[known])), shape=shape)
    matrix.data[:] = 1
    return matrix


def _best(
    history: csr_array, gain: csr_array, top_n: int, *, memory_limit: int, n_threads: int | None
) -> NDArray[np.int32]:
    """The columns with the best positive scores.

    Args:
        history: users x what they have seen, float32 or float64.
        gain: what they have seen x columns, of the same type: scores are ``history @ gain``.
        top_n: how many columns.
        memory_limit: bytes.
        n_threads: threads to use.

    Returns:
        Users x top_n columns, best first, ties in ascending order, completed with the number of columns.
    """
    n = gain.shape[1]
    # One more than asked for: if it scores as much as the last, then which of the equals are among the best
    # is up to the order in which they were met, and they are compared once more.
    top = sp_matmul_topn(
        csr_matrix(history),
        csr_matrix(gain),
        top_n=top_n + 1,
        threshold=0,
        sort=True,
        n_threads=threads(n_threads),
    )
    columns = np.full((history.shape[0], top_n + 1), n, np.int32)
    scores = np.zeros(columns.shape, history.dtype)
    found = np.diff(top.indptr)
    user = np.repeat(np.arange(len(found)), found)
    position = np.arange(len(user)) - top.indptr[user]
    columns[user, position], scores[user, position] = top.indices[: len(user)], top.data[: len(user)]
    order = np.lexsort((columns, -scores))
    columns, scores = np.take_along_axis(columns, order, 1), np.take_along_axis(scores, order, 1)
    tied = np.flatnonzero((scores[:, -1] > 0) & (scores[:, -1] == scores[:, -2]))
    step = max(1, memory_limit // 8 // (16 * max(n, 1)))
    for at in range(0, len(tied), step):
        users = tied[at : at + step]
        columns[users, :top_n] = _best_of_all(history[users] @ gain, scores[users, -1], top_n)
    best: NDArray[np.int32] = columns[:, :top_n]
    return best


def _best_of_all(scores: csr_array, least: NDArray[np.floating[Any]], top_n: int) -> NDArray[np.int32]:
    """The best columns of rows that have at least ``top_n`` scores of at least ``least``."""
    row = np.repeat(np.arange(scores.shape[0]), np.diff(scores.indptr))
    good = np.flatnonzero(scores.data >= least[row])
    order = good[np.lexsort((scores.indices[good], -scores.data[good], row[good]))]
    first = np.searchsorted(row[order], np.arange(scores.shape[0]))
    best: NDArray[np.int32] = scores.indices[order[first[:, None] + np.arange(top_n)]]
    return best


def _first(history: csr_array, order: NDArray[np.intp], top_n: int) -> NDArray[np.int32]:
    """The first unseen columns in an order, users x top_n, completed with the number of columns.

    Args:
        history: users x (columns, or columns twice), not zero where seen.
        order: all columns, the best first.
        top_n: how many.
    """
    n = len(order)
    place = np.empty(n, np.int32)
    place[order] = np.arange(n)
    moved = csr_array((history.data, place[history.indices % n], history.indptr), shape=(history.shape[0], n))
    out = np.full((history.shape[0], top_n), n, np.int32)
    _fill(out, np.zeros(len(out), np.intp), moved, n)
    return np.append(order, n).astype(np.int32)[out]


def _fill(columns: NDArray[np.int32], scored: NDArray[np.intp], history: csr_array, n: int) -> None:
    """Complete rows in place with the smallest columns that are in neither the row nor the history.

    Args:
        columns: users x top_n, ``n`` where there is none.
        scored: how many each user has, shape ``(n_users,)``.
        history: users x (columns, or columns twice), not zero where seen.
        n: number of columns.
    """
    top_n = columns.shape[1]
    short = np.flatnonzero(scored < top_n)
    past = history[short]
    user = np.repeat(np.arange(len(short)), np.diff(past.indptr))
    given, position = np.nonzero(columns[short] < n)
    taken = csr_array(
        (
            np.ones(len(user) + len(given), np.float32),
            (
                np.concatenate([user, given]),
                np.concatenate([past.indices % n, columns[short[given], position]]),
            ),
        ),
        shape=(len(short), n),
    )
    taken.sort_indices()
    user = np.repeat(np.arange(len(short)), np.diff(taken.indptr))
    # How many columns before this one are free: its number less the taken ones before it.
    free_before = taken.indices - (np.arange(len(user)) - taken.indptr[user])
    for ahead in range(top_n):
        column = ahead + np.bincount(user[free_before <= ahead], minlength=len(short))
        place = scored[short] + ahead
        has_room = (place < top_n) & (column < n)
        columns[short[has_room], place[has_room]] = column[has_room]

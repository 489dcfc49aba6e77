"""What users have seen, how much it counts for them, and what it is worth for other pages."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array, hstack, vstack

from user_pipeline.recommender.defaults import Parameters
from user_pipeline.recommender.interactions import Interactions
from user_pipeline.recommender.parallel import run_blocks

# What a seen page adds to its own score, far below any sum of weights, and below any trend.
SEEN, SEEN_64 = np.float32(-1e9), -1e30
# The trend of the page most often discovered.
TREND = 10.0
# Of pages discovered less than this share of its discoveries it is none: a trend of all pages would take most of the
# time of scoring.
LEAST_TREND = 0.01
# How much a page counts is a multiple of this. Like weights it makes sums exact, here in float64.
QUANTUM = 2.0**-20
# From how many sums a standard deviation is estimated; the error is 4 %.
WIDTH = 256
# Users whose scores are measured at a time.
USERS = 1024


@dataclass(frozen=True, slots=True)
class Histories:
    """Scores are ``history @ gain``, some users at a time.

    With neither order nor trend a history is 1 for a page seen now and, in as many further columns, 1 for a page seen
    before; both in float32. Otherwise it has how much each page seen now counts, 1 for all that is seen, now or before,
    and how much the trend counts; in float64, where such sums are exact but for the trend, which is added last.

    Attributes:
        views: users x columns.
        gain: what was seen x columns.
        sketch: from :func:`_sketch_of`; empty without a trend.
        parameters: how to weigh.
    """

    views: Interactions
    gain: csr_array
    sketch: NDArray[np.float64]
    parameters: Parameters

    @classmethod
    def of(
        cls,
        views: Interactions,
        weights: csr_array,
        parameters: Parameters,
        trend: NDArray[np.float64] | None,
        *,
        has_earlier: bool,
    ) -> "Histories":
        """Build the gain.

        Args:
            views: users x columns.
            weights: columns x columns with a zero diagonal.
            parameters: how to weigh.
            trend: from :func:`trend_of`.
            has_earlier: whether histories have columns for pages seen before.
        """
        n = weights.shape[0]
        if trend is None and not parameters.is_ordered:
            # Seen before and seen now are columns of one matrix, so that one product scores and excludes.
            blocked = diags_array(np.full(n, SEEN), dtype=np.float32)
            gain = vstack([weights + blocked, blocked], format="csr")
            return cls(views, gain if has_earlier else gain[:n], np.empty((n, 0)), parameters)
        if parameters.is_ordered and views.latest_first is None:
            raise ValueError("long_range below 1 needs the order of the views: pass recency to interactions()")
        weights, blocked = weights.astype(np.float64), diags_array(np.full(n, SEEN_64))
        if trend is None:
            return cls(views, vstack([weights, blocked], format="csr"), np.empty((n, 0)), parameters)
        gain = vstack([weights, blocked, csr_array(trend[None, :])], format="csr")
        return cls(views, gain, _sketch_of(weights), parameters)

    def of_users(self, past: csr_array, start: int, stop: int, *, n_threads: int | None) -> csr_array:
        """What users ``[start, stop)`` have seen and how much it counts.

        Args:
            past: these users x (columns, or columns twice), not zero where seen.
            start: first user.
            stop: user to stop before.
            n_threads: threads to use.
        """
        if self.gain.dtype == np.float32:
            return past.astype(np.float32)
        n = self.gain.shape[1]
        counting = self.counting(start, stop)
        is_seen = csr_array((np.ones(past.nnz), past.indices % n, past.indptr), shape=(stop - start, n))
        parts = [counting, is_seen]
        if self.sketch.size:
            spread = np.empty(stop - start)

            def measure(at: int) -> None:
                spread[at : at + USERS] = _spread(counting[at : at + USERS] @ self.sketch, n)

            for _ in run_blocks(measure, range(0, stop - start, USERS), n_threads):
                pass
            parts.append(csr_array(self.parameters.trend * spread[:, None]))
        return csr_array(hstack(parts, format="csr"))

    def spread_of(self, asked: csr_array, user: NDArray[np.intp]) -> NDArray[np.float64] | None:
        """The standard deviation of the scores of some users; None if there is no trend and it is not known.

        Args:
            asked: users x what they have seen, from :meth:`of_users`.
            user: rows of it.
        """
        if not self.sketch.size:
            return None
        weighted = asked[:, [self.gain.shape[0] - 1]].toarray()[:, 0]
        spread: NDArray[np.float64] = weighted[user] / self.parameters.trend
        return spread

    def counting(self, start: int, stop: int) -> csr_array:
        """How much each page that users ``[start, stop)`` have seen now counts."""
        c = self.parameters.long_range
        order = self.views.latest_first
        if order is None or not self.parameters.is_ordered:
            return self.views.matrix[start:stop].astype(np.float64)
        order = order[start:stop]
        rank = np.cumsum(order.data, dtype=np.int64)
        first = order.indptr[:-1]
        before = np.zeros(len(first), np.int64)
        before[first > 0] = rank[first[first > 0] - 1]
        rank -= np.repeat(before, np.diff(order.indptr))
        counts = np.rint((c + (1 - c) * np.exp(-rank)) / QUANTUM) * QUANTUM
        return csr_array((counts, order.indices, order.indptr), shape=order.shape)


def trend_of(
    views: Interactions, parameters: Parameters, discoveries: NDArray[np.integer[Any]] | None
) -> NDArray[np.float64] | None:
    """The discovery trend of each column; None if it counts nothing.

    Args:
        views: what the columns are.
        parameters: whether it counts.
        discoveries: how many users discovered each page code lately.
    """
    if not parameters.trend:
        return None
    if discoveries is None:
        raise ValueError("a trend needs discoveries: how many users viewed each page for the first time")
    found = discoveries[views.pages].astype(np.float64)
    most = found.max(initial=0)
    found[found < LEAST_TREND * most] = 0
    return TREND * found / most if most else None


def _sketch_of(weights: csr_array) -> NDArray[np.float64]:
    """What tells the mean and the standard deviation of a user's scores without all of them.

    A user's scores are thousands of numbers, most of the time of scoring if all are made. So each column is added to
    one of ``WIDTH``, with a random sign: the sum of squares of these sums is expected to be that of the scores, with a
    deviation of at most ``sqrt(2 / WIDTH)`` (Charikar, Chen & Farach-Colton, "Finding frequent items in data streams",
    2002; Weinberger et al., "Feature hashing for large scale multitask learning", ICML 2009). Of a catalog of no more
    pages than ``WIDTH`` they are the scores themselves.

    Returns:
        Columns x (WIDTH or fewer, and one more for the sum of all scores).
    """
    n = weights.shape[0]
    width, sign = min(n, WIDTH), np.ones(n)
    if n > width:
        sign = np.random.default_rng(0).choice([-1.0, 1.0], n)
    # Neighbours in popularity fall into different sums.
    place = csr_array((sign, np.arange(n) % width, np.arange(n + 1)), shape=(n, width))
    return np.concatenate([(weights @ place).toarray(), weights.sum(axis=1)[:, None]], axis=1)


def _spread(sketched: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """The standard deviation of each user's scores of n pages; 1 where all are equal."""
    squares, mean = (sketched[:, :-1] ** 2).sum(axis=1) / n, sketched[:, -1] / n
    variance = squares - mean**2
    # Of equal scores the difference is not zero but for rounding.
    return np.sqrt(np.where(variance > 1e-12 * squares, variance, 1))

"""Why a page was recommended: which of the pages seen spoke most for it."""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from user_pipeline.recommender.parallel import run_blocks

# Recommendations explained at a time: their pages have up to some hundred predictors each.
ROWS = 8192
NONE = -1


def reasons(
    counting: csr_array,
    predictors: csr_array,
    user: NDArray[np.intp],
    column: NDArray[np.int32],
    *,
    least: NDArray[np.float64] | None,
    n_threads: int | None,
) -> NDArray[np.int32]:
    """The page seen that adds most to the score of each recommendation.

    Args:
        counting: users x columns, how much each page seen counts.
        predictors: columns x columns, the weights transposed: in a row what speaks for its page.
        user: the user of each recommendation.
        column: its page.
        least: what all that was seen adds to its score at least if it, and not the trend, speaks for the page: one
            standard deviation of the user's scores. None where there is no trend.
        n_threads: threads to use.

    Returns:
        The column of the page seen, the first of several that add the same; ``NONE`` where all that was seen adds less
        than that, or nothing.
    """
    out = np.full(len(user), NONE, np.int32)

    def explain(start: int) -> None:
        some = slice(start, start + ROWS)
        parts = csr_array(counting[user[some]].multiply(predictors[column[some]]))
        parts.sort_indices()
        size = np.diff(parts.indptr)
        total = np.asarray(parts.sum(axis=1)).ravel()
        has = np.flatnonzero(size)
        if not len(has):
            return
        most = np.zeros(len(size))
        most[has] = np.maximum.reduceat(parts.data, parts.indptr[has])
        row = np.repeat(np.arange(len(size)), size)
        is_most = parts.data == most[row]
        place = np.where(is_most, np.arange(len(row)), len(row))
        first = np.minimum.reduceat(place, parts.indptr[has])
        speaks = (most[has] > 0) & (total[has] > 0)
        if least is not None:
            speaks &= total[has] >= least[some][has]
        out[start + has[speaks]] = parts.indices[first[speaks]]

    for _ in run_blocks(explain, range(0, len(user), ROWS), n_threads):
        pass
    return out

"""How good rankings are: splits of data and measures on them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array


class Quality(NamedTuple):
    """Means over the users who had pages held out.

    Attributes:
        users: how many there were.
        recall: hits among the first k / min(k, pages held out).
        ndcg: discounted gain, hits weighing ``1 / log2(1 + rank)``, relative to the best possible
            (Järvelin & Kekäläinen, "Cumulated gain-based evaluation of IR techniques", TOIS 2002).
        hit_rate: share with at least one hit among the first k.
        coverage: share of all pages that are among the first k of at least one of these users.
    """

    users: int
    recall: float
    ndcg: float
    hit_rate: float
    coverage: float


def leave_out(
    matrix: csr_array, *, share: float = 0.2, min_pages: int = 5, seed: int = 0
) -> tuple[csr_array, csr_array]:
    """Hold out a random share of the pages of every user who has enough of them.

    Args:
        matrix: users x pages.
        share: of each such user's pages, in (0, 1); rounded down, but at least one page.
        min_pages: users with fewer keep all of theirs.
        seed: of the random order.

    Returns:
        What remains, and what is held out: two matrices that add up to the first.
    """
    matrix = csr_array(matrix)
    n_pages = np.diff(matrix.indptr)
    n_out = np.where(n_pages >= min_pages, np.maximum(1, (share * n_pages + 1e-9).astype(n_pages.dtype)), 0)
    user = np.repeat(np.arange(matrix.shape[0]), n_pages)
    order = np.lexsort((np.random.default_rng(seed).random(matrix.nnz), user))
    is_out = np.empty(matrix.nnz, np.bool_)
    is_out[order] = np.arange(matrix.nnz) - matrix.indptr[user] < n_out[user]
    return _where(matrix, user, ~is_out), _where(matrix, user, is_out)


class Measures(NamedTuple):
    """Measures of each user who had pages held out, and the coverage of all; see :class:`Quality`."""

    recall: NDArray[np.float64]
    ndcg: NDArray[np.float64]
    hit: NDArray[np.float64]
    coverage: float


def measure(ranked: NDArray[np.integer], held_out: csr_array, k: int) -> Quality:
    """Measure rankings against what was held out.

    Args:
        ranked: users x at least k pages, best first, -1 where there is none.
        held_out: users x pages, not zero where held out. Users without any do not count.
        k: how many pages of each ranking to look at.

    Returns:
        The means; zeros if nothing was held out.
    """
    found = measure_users(ranked, held_out, k)
    if not len(found.recall):
        return Quality(0, 0.0, 0.0, 0.0, 0.0)
    return Quality(
        len(found.recall), float(found.recall.mean()), float(found.ndcg.mean()), float(found.hit.mean()), found.coverage
    )


def measure_users(ranked: NDArray[np.integer], held_out: csr_array, k: int) -> Measures:
    """The same for each user who had pages held out, in their order."""
    held_out = csr_array(held_out)
    n_out = np.diff(held_out.indptr)
    users = np.flatnonzero(n_out)
    first, n_pages = ranked[users, :k], held_out.shape[1]
    user = np.repeat(np.arange(len(users)), n_out[users])
    wanted = user * n_pages + held_out[users].indices
    is_hit = np.isin(np.arange(len(users))[:, None] * n_pages + first, wanted) & (first >= 0)
    possible = np.minimum(k, n_out[users])
    discount = 1 / np.log2(np.arange(2, k + 2))
    return Measures(
        recall=is_hit.sum(axis=1) / possible,
        ndcg=is_hit @ discount[: first.shape[1]] / np.cumsum(discount)[possible - 1],
        hit=np.asarray(is_hit.any(axis=1), np.float64),
        coverage=len(np.unique(first[first >= 0])) / n_pages,
    )


def _where(matrix: csr_array, row: NDArray[np.intp], chosen: NDArray[np.bool_]) -> csr_array:
    return csr_array((matrix.data[chosen], (row[chosen], matrix.indices[chosen])), shape=matrix.shape)

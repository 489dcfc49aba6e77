"""Page-to-page weights: the EASE^R regression of every page on a few others.

EASE^R (Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019) finds the pages x pages
matrix B with a zero diagonal that minimises ``|X - X B|^2 + regularisation * |B|^2``, in closed form but
through the inverse of a dense pages x pages matrix. Its columns are separate ridge regressions. Letting each
use only K pages chosen for it, as SLIM does to be fast (Ning & Karypis, "SLIM: Sparse Linear
Methods for Top-N Recommender Systems", ICDM 2011, section III-E), leaves a K x K system a page:
``b_j = (G[N, N] + regularisation * I)^-1 G[N, j]`` with ``G = X'X`` and N the pages chosen for j. With K
covering all pages it is EASE^R; in a small catalogue it does by default.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array, csr_matrix, vstack
from sparse_dot_topn import sp_matmul_topn

from user_pipeline.recommender.co_views import CoViews, count_co_views, empty, largest_in_rows
from user_pipeline.recommender.defaults import NEIGHBOURS, REGULARISATION
from user_pipeline.recommender.interactions import Interactions
from user_pipeline.recommender.parallel import run_blocks, single_threaded_blas, threads

MEMORY_LIMIT = 2**30
# A page passes its views on to at most this many times K pages, those it weighs most on. A very popular page
# is a neighbour of nearly every page, and without a limit scoring would cost users x pages.
FAN_OUT = 2
# Up to so many pages all predict each: the one inverse takes up to ten seconds, and no choice of predictors is better.
DENSE_PAGES = 7500
# Of a row of the inverse so many weights are kept; there are few pages, so this is dearer than FAN_OUT allows.
DENSE_FAN_OUT = 300
# The share of K that are the nearest pages. Less of it is quicker, for it is searched and solved first, and better
# where pages follow each other; of 0.2 to 0.5 none is far behind.
NEAREST = 0.2
# Systems are of so many sizes that batches are full.
STEP = 15
# What a page that is chosen already adds to the gain of choosing it, far below any sum.
KNOWN = 2.0**60
# In a catalogue of more pages than that, smaller weights than this are left out. Measured on four data sets,
# it changes recall@3 by less than 0.001 and saves a third of the time of scoring.
LEAST = 0.002
# Weights are multiples of this. Sums of such float32 numbers are exact up to 16, so equal scores are equal in
# whatever order they were summed, and ties can be broken by a rule.
QUANTUM = 2.0**-20
# Pages whose systems are solved, or rows that are searched, at a time: few, so that they stay in the cache.
BATCH = 16
ROWS = 32
# The smallest number above zero.
SMALLEST = np.finfo(np.float32).tiny


def fit(
    views: Interactions,
    *,
    neighbours: int | None = None,
    regularisation: float = REGULARISATION,
    memory_limit: int = MEMORY_LIMIT,
    n_threads: int | None = None,
) -> csr_array:
    """Learn the weights of every page on the pages that tell most about it.

    Args:
        views: users x columns.
        neighbours: K, how many pages each page is predicted from at most. None for all of them in a catalogue of at
            most ``DENSE_PAGES`` for which there is memory, otherwise ``NEIGHBOURS``.
        regularisation: the ridge penalty, in squared views.
        memory_limit: bytes to work in beside the input and its transpose, see :func:`.count_co_views`.
        n_threads: threads to use, every core by default; the result does not depend on it.

    Returns:
        Weights, columns x columns, float32 with a zero diagonal: ``scores = views @ weights``.
    """
    co_views = count_co_views(views, memory_limit=memory_limit, n_threads=n_threads)
    predictors = find_predictors(co_views, neighbours, regularisation, memory_limit=memory_limit, n_threads=n_threads)
    return solve(co_views, predictors, regularisation, n_threads=n_threads)


class Nearest(NamedTuple):
    """Some other pages for every page.

    Attributes:
        pages: n x K columns, int32. In a row the first ``size`` count, in ascending order; the rest is anything.
        co_views: n x K, how many viewers the page has in common with each, float32.
        size: how many pages there are, shape ``(n,)``.
    """

    pages: NDArray[np.int32]
    co_views: NDArray[np.float32]
    size: NDArray[np.int64]


def find_predictors(
    co_views: CoViews,
    neighbours: int | None,
    regularisation: float,
    *,
    memory_limit: int = MEMORY_LIMIT,
    n_threads: int | None = None,
) -> Nearest | None:
    """Choose the pages that each page is predicted from.

    A fifth of K are the nearest by cosine. They alone miss what tells a page by its absence: pages that are
    viewed by the same kind of users and yet not by the same users, as the pages of one step of a sequence are.
    Such a page has few viewers in common with this one, but the weights learned from the nearest predict many.
    So the others are the pages of which this is most so, for their popularity: where the gradient of the
    objective is steepest. It is looked for among the nearest pages of the nearest alone. Where it finds fewer,
    the page is predicted from fewer: more of the nearest would cost time and, measured, not help.

    Args:
        co_views: G.
        neighbours: K, or None, see :func:`fit`.
        regularisation: the ridge penalty, in squared views.
        memory_limit: bytes. A dense system takes no more than half of them.
        n_threads: threads to use, every core by default.

    Returns:
        At most K pages for each page, or None if all pages predict each.
    """
    n = co_views.n
    is_dense = n <= DENSE_PAGES if neighbours is None else neighbours >= n - 1
    # A dense solution costs 8 bytes a pair of pages.
    if is_dense and 8 * n**2 <= memory_limit // 2:
        return None
    nearest = _ranked(co_views, NEIGHBOURS if neighbours is None else neighbours, n_threads=n_threads)
    k = nearest.pages.shape[1]
    few = int(np.ceil(NEAREST * k))
    if few == k or k == n - 1:
        return _ascending(nearest)
    size = np.full(n, few)
    first = _ascending(Nearest(nearest.pages[:, :few], nearest.co_views[:, :few], size))
    overrated = _overrated(co_views, first, k - few, regularisation, n_threads=n_threads)
    size = few + np.minimum(-(-np.count_nonzero(overrated >= 0, axis=1) // STEP) * STEP, k - few)
    pages, counts = np.empty((n, k), np.int32), np.empty((n, k), np.float32)

    def complete(start: int) -> None:
        """Up to a whole number of steps the next nearest follow, unless they are chosen already."""
        rows = slice(start, start + ROWS)
        chosen, rest = overrated[rows], nearest.pages[rows, few:]
        own = np.arange(start, start + len(chosen), dtype=np.int32)[:, None]
        is_chosen = np.zeros((len(chosen), n + 1), np.bool_)
        is_chosen[own - start, chosen] = True
        is_free = ~is_chosen[own - start, rest]
        missing = size[rows] - few - np.count_nonzero(chosen >= 0, axis=1)
        more = np.where(is_free & (np.cumsum(is_free, axis=1) <= missing[:, None]), rest, n)
        every = np.concatenate([first.pages[rows], np.where(chosen < 0, n, chosen), more], axis=1)
        every = np.sort(every, axis=1)[:, :k]
        pages[rows] = np.where(every < n, every, own)
        counts[rows] = co_views.between(np.broadcast_to(own, every.shape), pages[rows])

    for _ in run_blocks(complete, range(0, n, ROWS), n_threads):
        pass
    return Nearest(pages, counts, size)


def _ascending(nearest: Nearest) -> Nearest:
    """The same pages in the order of their numbers."""
    order = np.argsort(nearest.pages, axis=1)
    return Nearest(
        np.take_along_axis(nearest.pages, order, axis=1),
        np.take_along_axis(nearest.co_views, order, axis=1),
        nearest.size,
    )


def _overrated(
    co_views: CoViews, first: Nearest, most: int, regularisation: float, *, n_threads: int | None
) -> NDArray[np.int32]:
    """For each page up to ``most`` others, then -1: those ``first`` takes most wrongly for signs of it.

    These have the largest ``(G W - G)[i, j] / sqrt(G[i, i] + regularisation)`` with W the weights on ``first``, and
    with G cut down to the same pages; the root is rounded to a power of two, and all sums are exact in float64.
    """
    n, k = first.pages.shape
    weights = _solutions(co_views, first, regularisation, n_threads=n_threads)
    own = np.arange(n, dtype=np.int32)[:, None]
    with_own = np.concatenate([first.pages, own], axis=1)
    # Each row twice, side by side: what it predicts too much, and which pages are chosen already.
    excess = np.ones((n, 2 * k + 2))
    excess[:, :k], excess[:, k] = weights, -1
    twice = np.concatenate([with_own, with_own + np.int32(n)], axis=1)
    scale = np.exp2(np.rint(-np.log2(co_views.diagonal + regularisation) / 2))
    counts = np.concatenate([first.co_views, co_views.diagonal[:, None]], axis=1, dtype=np.float64)
    counts *= scale[with_own]
    gain = np.concatenate([counts.ravel(), np.full(n, -KNOWN)])
    indptr = np.arange(n + 1, dtype=np.int32)
    top = sp_matmul_topn(
        csr_matrix((excess.ravel(), twice.ravel(), indptr * (2 * k + 2)), shape=(n, 2 * n)),
        csr_matrix(
            (
                gain,
                np.concatenate([with_own.ravel(), own.ravel()]),
                np.concatenate([indptr * (k + 1), n * (k + 1) + indptr[1:]]),
            ),
            shape=(2 * n, n),
        ),
        top_n=most,
        threshold=0,
        sort=True,
        n_threads=threads(n_threads),
    )
    out = np.full((n, most), -1, np.int32)
    found = np.diff(top.indptr)
    row = np.repeat(np.arange(n), found)
    out[row, np.arange(len(row)) - top.indptr[row]] = top.indices[: len(row)]
    return out


def _ranked(co_views: CoViews, neighbours: int, *, n_threads: int | None) -> Nearest:
    """The K pages nearest to each page by cosine, ``G[i, j] / sqrt(G[i, i] G[j, j])``, nearest first.

    Of equally near pages the more popular come first; so pages with fewer than K that share a viewer with
    them are completed by the most popular pages. If there are fewer than K other pages, it is all of them.
    """
    n = co_views.n
    k = max(0, min(neighbours, n - 1))
    nearest = Nearest(np.empty((n, k), np.int32), np.empty((n, k), np.float32), np.full(n, k))
    # The page's own factor is the same all along its row and does not change an order.
    scale = (1 / np.sqrt(co_views.diagonal)).astype(np.float32)
    # The K-th largest of every eighth number is at most the K-th largest of all, and leaves few to compare.
    stride = 8 if n >= 16 * k else 1

    def find(rows: tuple[int, int]) -> None:
        start, stop = rows
        counts = co_views.rows(start, stop)
        cosine = counts * scale
        own = np.arange(len(counts))
        cosine[own, start + own] = -1
        sample = cosine[:, ::stride]
        at_least = np.partition(sample, sample.shape[1] - k, axis=1)[:, sample.shape[1] - k]
        is_near = cosine >= np.maximum(at_least, SMALLEST)[:, None]
        # With fewer than K numbers above zero, K zeros are among the first 2 K + 1 columns.
        zeros = np.flatnonzero(at_least <= 0)
        is_near[zeros, : 2 * k + 1] |= cosine[zeros, : 2 * k + 1] == 0
        near = np.flatnonzero(is_near)
        row, column = np.divmod(near, n)
        first = np.searchsorted(row, np.arange(len(counts) + 1))
        # Floats above zero are ordered as the integers of the same bits. Below them the column, so that of equals
        # the smaller column is the larger key.
        keys = np.full((len(counts), np.diff(first).max()), -1)
        keys[row, np.arange(len(row)) - first[row]] = (cosine.ravel()[near].view(np.int32).astype(np.int64) << 32) + (
            n - 1 - column
        )
        best = np.sort(np.partition(keys, keys.shape[1] - k, axis=1)[:, keys.shape[1] - k :], axis=1)[:, ::-1]
        pages = n - 1 - (best & (2**32 - 1))
        nearest.pages[start:stop] = pages
        nearest.co_views[start:stop] = np.take_along_axis(counts, pages, axis=1)

    if k:
        for _ in run_blocks(find, _row_ranges(co_views), n_threads):
            pass
    return nearest


def solve(
    co_views: CoViews,
    predictors: Nearest | None,
    regularisation: float,
    *,
    n_threads: int | None = None,
) -> csr_array:
    """Solve every page's ridge system, in float64 and batches of 32 K^2 bytes a system on each thread.

    Args:
        co_views: G.
        predictors: the pages that each page is predicted from; None for all others, which takes one inverse.
        regularisation: the ridge penalty, in squared views.
        n_threads: threads to use, every core by default.

    Returns:
        Weights, n x n, float32: column j weighs the pages that predict j. A row keeps its ``FAN_OUT * K`` largest
        weights (``DENSE_FAN_OUT`` of all), and if that is less than all, none below ``LEAST``.
    """
    n = co_views.n
    if predictors is None:
        return _solve_dense(co_views, regularisation, n_threads=n_threads)
    k = predictors.pages.shape[1]
    if not k:
        return empty((n, n))
    weights = _solutions(co_views, predictors, regularisation, n_threads=n_threads)
    counts = np.arange(k) < predictors.size[:, None]
    indptr = np.concatenate([[0], np.cumsum(predictors.size)]).astype(np.int32)
    matrix = csc_array((weights[counts], predictors.pages[counts], indptr), shape=(n, n)).tocsr()
    if n > FAN_OUT * k:
        matrix.data[np.abs(matrix.data) < LEAST] = 0
    matrix.eliminate_zeros()
    return largest_in_rows(matrix, FAN_OUT * k)


def _solutions(
    co_views: CoViews, predictors: Nearest, regularisation: float, *, n_threads: int | None
) -> NDArray[np.float32]:
    """The weights of each page on its predictors, n x K."""
    from scipy.linalg.lapack import dpotrs

    weights = np.empty(predictors.pages.shape, np.float32)
    # Pages with a predictor in common read the same part of G: next to each other they find it in the cache,
    # which halves the time of gathering.
    middle = np.take_along_axis(predictors.pages, predictors.size[:, None] // 2, axis=1)[:, 0]
    order = np.lexsort((middle, predictors.size))

    def solve_batch(pages: NDArray[np.intp]) -> None:
        k = int(predictors.size[pages[0]])
        systems = co_views.among(predictors.pages[pages, :k])
        systems[:, np.arange(k), np.arange(k)] += regularisation
        right = predictors.co_views[pages, :k].astype(np.float64)
        found = np.empty_like(right)
        try:
            # A third of the time of np.linalg.solve.
            roots = np.linalg.cholesky(systems)
        except np.linalg.LinAlgError:
            # Counts that a memory limit has cut need not be positive definite.
            found[:] = np.linalg.solve(systems, right[:, :, None])[:, :, 0]
        else:
            for i, root in enumerate(roots):
                found[i] = dpotrs(root.T, right[i])[0]
        weights[pages, :k] = np.rint(found / QUANTUM) * QUANTUM

    with single_threaded_blas():
        for _ in run_blocks(solve_batch, _batches(order, predictors.size), n_threads):
            pass
    return weights


def _batches(order: NDArray[np.intp], size: NDArray[np.int64]) -> Iterator[NDArray[np.intp]]:
    """Pages to solve at a time, all of one size."""
    for group in np.split(order, np.flatnonzero(np.diff(size[order])) + 1):
        for start in range(0, len(group), BATCH):
            yield group[start : start + BATCH]


def _solve_dense(co_views: CoViews, regularisation: float, *, n_threads: int | None) -> csr_array:
    """The weights of all pages on all others: with ``P = (G + regularisation * I)^-1``, ``B = -P / diag(P)``."""
    from scipy.linalg.lapack import dpotrf, dpotri

    n = co_views.n
    if not n:
        return empty((0, 0))
    inverse = np.empty((n, n), order="F")
    for start, stop in _row_ranges(co_views):
        inverse[:, start:stop] = co_views.rows(start, stop).T
    inverse[np.arange(n), np.arange(n)] = co_views.diagonal + regularisation
    # Half the work of a general inverse.
    with single_threaded_blas():
        inverse, failed = dpotrf(inverse, lower=1, overwrite_a=1)
        if not failed:
            inverse, failed = dpotri(inverse, lower=1, overwrite_c=1)
    if failed:
        raise np.linalg.LinAlgError(f"regularisation={regularisation} is too small for these views")
    diagonal = np.diag(inverse).copy()
    limit = min(n, DENSE_FAN_OUT)

    def cut(rows: tuple[int, int]) -> csr_array:
        start, stop = rows
        # Only the lower triangle is there.
        block = np.concatenate([inverse[start:stop, :stop], inverse[stop:, start:stop].T], axis=1)
        own = np.tril(block[:, start:])[:, : stop - start]
        block[:, start:stop] = own + np.tril(own, -1).T
        weights = (np.rint(block / (-QUANTUM * diagonal)) * QUANTUM).astype(np.float32)
        weights[np.arange(len(weights)), np.arange(start, stop)] = 0
        if limit < n:
            size = np.abs(weights)
            least = np.partition(size, n - limit, axis=1)[:, n - limit, None]
            weights[size < np.maximum(least, LEAST)] = 0
        return largest_in_rows(csr_array(weights), limit)

    weights: csr_array = vstack(list(run_blocks(cut, _row_ranges(co_views), n_threads)), format="csr")
    return weights


def _row_ranges(co_views: CoViews) -> Iterator[tuple[int, int]]:
    """Rows to search at a time, none across the border of a panel."""
    for panel in range(0, co_views.n, co_views.block):
        end = min(panel + co_views.block, co_views.n)
        for start in range(panel, end, ROWS):
            yield start, min(start + ROWS, end)

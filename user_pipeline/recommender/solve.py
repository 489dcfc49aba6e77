"""The weights themselves: a ridge system for each page, or one inverse for all of them."""

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array, vstack

from user_pipeline.recommender.co_views import CoViews, empty, largest_in_rows
from user_pipeline.recommender.parallel import run_blocks, single_threaded_blas

# A page passes its views on to at most this many times K pages, those it weighs most on. A very popular page
# is a neighbour of nearly every page, and without a limit scoring would cost users x pages.
FAN_OUT = 2
# How many weights are kept of a row of the inverse: more than FAN_OUT allows, as there are few pages.
DENSE_FAN_OUT = 300
# In a catalog of more pages than that, smaller weights than this are left out. Measured on four data sets,
# it changes recall@3 by less than 0.001 and saves a third of the time of scoring.
LEAST = 0.002
# Weights are multiples of this. Sums of such float32 numbers are exact up to 16, so equal scores are equal in
# whatever order they were summed, and ties can be broken by a rule.
QUANTUM = 2.0**-20
# Pages whose systems are solved at a time: few, so that they stay in the cache.
BATCH = 16
# Rows ``[start, stop)`` of (R - G)', which are columns of d A: how much more other pages speak for these than for what
# comes before them.
Lead: TypeAlias = Callable[[int, int], NDArray[np.float64]]


class Nearest(NamedTuple):
    """Some other pages for every page.

    Attributes:
        pages: n x K columns, int32. In a row the first ``size`` count, in ascending order; the rest is anything.
        co_views: n x K, how many viewers the page has in common with each, or R of it in order, float32.
        size: how many pages there are, shape ``(n,)``.
    """

    pages: NDArray[np.int32]
    co_views: NDArray[np.float32]
    size: NDArray[np.int64]


def solve(
    co_views: CoViews,
    predictors: Nearest | None,
    regularisation: float,
    *,
    lead: Lead | None = None,
    n_threads: int | None = None,
) -> csr_array:
    """Solve every page's ridge system, in float64 and batches of 32 K^2 bytes a system on each thread.

    Args:
        co_views: G.
        predictors: the pages that each page is predicted from; None for all others, which takes one inverse.
        regularisation: the ridge penalty, in squared views.
        lead: rows of (R - G)'; None if R is G. The predictors have it in their numbers.
        n_threads: threads to use, every core by default.

    Returns:
        Weights, n x n, float32: column j weighs the pages that predict j. A row keeps its ``FAN_OUT * K`` largest
        weights (``DENSE_FAN_OUT`` of all), and if that is less than all, none below ``LEAST``.
    """
    n = co_views.n
    if predictors is None:
        return _solve_dense(co_views, regularisation, lead, n_threads=n_threads)
    k = predictors.pages.shape[1]
    if not k:
        return empty((n, n))
    weights = solutions(co_views, predictors, regularisation, n_threads=n_threads)
    counts = np.arange(k) < predictors.size[:, None]
    indptr = np.concatenate([[0], np.cumsum(predictors.size)]).astype(np.int32)
    matrix = csc_array((weights[counts], predictors.pages[counts], indptr), shape=(n, n)).tocsr()
    if n > FAN_OUT * k:
        matrix.data[np.abs(matrix.data) < LEAST] = 0
    matrix.eliminate_zeros()
    return largest_in_rows(matrix, FAN_OUT * k)


def solutions(
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


def _solve_dense(co_views: CoViews, regularisation: float, lead: Lead | None, *, n_threads: int | None) -> csr_array:
    """The weights of all pages on all others: the B of :mod:`.weights`."""
    from scipy.linalg.lapack import dpotrf, dpotri

    n = co_views.n
    if not n:
        return empty((0, 0))
    inverse = np.empty((n, n), order="F")
    for start, stop in co_views.row_ranges():
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
    directed = None if lead is None else _directed(co_views, inverse, lead, n_threads=n_threads)
    limit = min(n, DENSE_FAN_OUT)

    def cut(rows: tuple[int, int]) -> csr_array:
        start, stop = rows
        if directed is None:
            weights = _rounded(_symmetric_rows(inverse, start, stop) / -diagonal)
        else:
            weights = directed[start:stop]
        weights[np.arange(len(weights)), np.arange(start, stop)] = 0
        if limit < n:
            size = np.abs(weights)
            least = np.partition(size, n - limit, axis=1)[:, n - limit, None]
            weights[size < np.maximum(least, LEAST)] = 0
        return largest_in_rows(csr_array(weights), limit)

    weights: csr_array = vstack(list(run_blocks(cut, co_views.row_ranges(), n_threads)), format="csr")
    return weights


def _directed(
    co_views: CoViews, inverse: NDArray[np.float64], lead: Lead, *, n_threads: int | None
) -> NDArray[np.float32]:
    """``d P A - P diag((1 + d diag(P A)) / diag(P))``, with anything on its diagonal.

    A is made and used some columns at a time: it would be another dense matrix.
    """
    from scipy.linalg.blas import dsymm

    out = np.empty(inverse.shape, np.float32)

    def columns(pages: tuple[int, int]) -> None:
        start, stop = pages
        product = dsymm(1.0, inverse, lead(start, stop).T, lower=1).T
        own = np.arange(stop - start), np.arange(start, stop)
        rows = _symmetric_rows(inverse, start, stop)
        product -= rows * ((1 + product[own]) / rows[own])[:, None]
        out[:, start:stop] = _rounded(product).T

    with single_threaded_blas():
        for _ in run_blocks(columns, co_views.row_ranges(co_views.block), n_threads):
            pass
    return out


def _symmetric_rows(lower: NDArray[np.float64], start: int, stop: int) -> NDArray[np.float64]:
    """Rows of a symmetric matrix of which only the lower triangle is there."""
    block = np.concatenate([lower[start:stop, :stop], lower[stop:, start:stop].T], axis=1)
    own = np.tril(block[:, start:])[:, : stop - start]
    block[:, start:stop] = own + np.tril(own, -1).T
    return block


def _rounded(weights: NDArray[np.float64]) -> NDArray[np.float32]:
    return (np.rint(weights / QUANTUM) * QUANTUM).astype(np.float32)

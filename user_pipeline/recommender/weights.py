"""Page-to-page weights: the EASE^R regression of every page on its nearest neighbours.

EASE^R (Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019) finds the pages x pages
matrix B with a zero diagonal that minimises ``|X - X B|^2 + regularisation * |B|^2``, in closed form but
through the inverse of a dense pages x pages matrix. Its columns are separate ridge regressions. Letting each
use only the K pages nearest to its own, as SLIM does to be fast (Ning & Karypis, "SLIM: Sparse Linear
Methods for Top-N Recommender Systems", ICDM 2011, section III-E), leaves a K x K system a page:
``b_j = (G[N, N] + regularisation * I)^-1 G[N, j]`` with ``G = X'X`` and N the neighbours of j. With K
covering all pages it is EASE^R.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array

from user_pipeline.recommender.co_views import CoViews, count_co_views, empty, largest_in_rows
from user_pipeline.recommender.defaults import NEIGHBOURS, REGULARISATION
from user_pipeline.recommender.interactions import Interactions
from user_pipeline.recommender.parallel import run_blocks, single_threaded_blas

MEMORY_LIMIT = 2**30
# A page passes its views on to at most this many times K pages, those it weighs most on. A very popular page
# is a neighbour of nearly every page, and without a limit scoring would cost users x pages.
FAN_OUT = 2
# In a catalogue of more pages than that, smaller weights than this are left out. Measured on four data sets,
# it changes recall@3 by less than 0.001 and saves a third of the time of scoring.
LEAST = 0.002
# Weights are multiples of this. Sums of such float32 numbers are exact up to 16, so equal scores are equal in
# whatever order they were summed, and ties can be broken by a rule.
QUANTUM = 2.0**-20
# Pages whose systems are solved, or rows that are searched, at a time: few, so that they stay in the cache.
BATCH = 16
ROWS = 32


def fit(
    views: Interactions,
    *,
    neighbours: int = NEIGHBOURS,
    regularisation: float = REGULARISATION,
    memory_limit: int = MEMORY_LIMIT,
    n_threads: int | None = None,
) -> csr_array:
    """Learn the weights of every page on its nearest neighbours.

    Args:
        views: users x columns.
        neighbours: K, how many pages each page is predicted from.
        regularisation: the ridge penalty, in squared views.
        memory_limit: bytes to work in beside the input and its transpose, see :func:`.count_co_views`.
        n_threads: threads to use, every core by default; the result does not depend on it.

    Returns:
        Weights, columns x columns, float32 with a zero diagonal: ``scores = views @ weights``.
    """
    co_views = count_co_views(views, memory_limit=memory_limit, n_threads=n_threads)
    nearest = nearest_pages(co_views, neighbours, n_threads=n_threads)
    return solve(co_views, nearest, regularisation, n_threads=n_threads)


class Nearest(NamedTuple):
    """The nearest pages of every page.

    Attributes:
        pages: n x K columns, ascending in each row, int32.
        co_views: n x K, how many viewers the page has in common with each, float32.
    """

    pages: NDArray[np.int32]
    co_views: NDArray[np.float32]


def nearest_pages(co_views: CoViews, neighbours: int, *, n_threads: int | None = None) -> Nearest:
    """Find the K pages nearest to each page by cosine, ``G[i, j] / sqrt(G[i, i] G[j, j])``.

    Of equally near pages the more popular come first; so pages with fewer than K that share a viewer with
    them are completed by the most popular pages.

    Args:
        co_views: G.
        neighbours: K; all other pages if there are not that many.
        n_threads: threads to use, every core by default.

    Returns:
        The neighbours of each page.
    """
    n = co_views.n
    k = max(0, min(neighbours, n - 1))
    nearest = Nearest(np.empty((n, k), np.int32), np.empty((n, k), np.float32))
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
        at_least = np.partition(sample, sample.shape[1] - k, axis=1)[:, sample.shape[1] - k].clip(0)
        for row, values in enumerate(cosine):
            limit = at_least[row]
            above = np.flatnonzero(values > limit)
            if len(above) > k:
                largest = values[above]
                limit = np.partition(largest, -k)[-k]
                above = above[largest > limit]
            # argpartition would choose among equals by where they happen to stand.
            equal = np.flatnonzero(values == limit)[: k - len(above)]
            pages = np.sort(np.concatenate([above, equal]))
            nearest.pages[start + row] = pages
            nearest.co_views[start + row] = counts[row, pages]

    if k:
        for _ in run_blocks(find, _row_ranges(co_views), n_threads):
            pass
    return nearest


def solve(
    co_views: CoViews,
    nearest: Nearest,
    regularisation: float,
    *,
    n_threads: int | None = None,
) -> csr_array:
    """Solve every page's K x K ridge system, in float64 and batches of 32 K^2 bytes a system on each thread.

    Args:
        co_views: G.
        nearest: the neighbours of each page.
        regularisation: the ridge penalty, in squared views.
        n_threads: threads to use, every core by default.

    Returns:
        Weights, n x n, float32: column j weighs the neighbours of page j. A row keeps its ``FAN_OUT * K``
        largest weights, and if that is less than all, none below ``LEAST``.
    """
    n, k = nearest.pages.shape
    if not k:
        return empty((n, n))
    weights = np.empty((n, k), np.float32)
    # Pages with a neighbour in common read the same part of G: next to each other they find it in the cache,
    # which halves the time of gathering.
    order = np.argsort(nearest.pages[:, k // 2], kind="stable")

    def solve_batch(start: int) -> None:
        pages = order[start : start + BATCH]
        systems = co_views.among(nearest.pages[pages])
        systems[:, np.arange(k), np.arange(k)] += regularisation
        solution = np.linalg.solve(systems, nearest.co_views[pages, :, None].astype(np.float64))[:, :, 0]
        weights[pages] = np.rint(solution / QUANTUM) * QUANTUM

    with single_threaded_blas():
        for _ in run_blocks(solve_batch, range(0, n, BATCH), n_threads):
            pass
    indptr = np.arange(n + 1, dtype=np.int32) * np.int32(k)
    matrix = csc_array((weights.ravel(), nearest.pages.ravel(), indptr), shape=(n, n)).tocsr()
    if n > FAN_OUT * k:
        matrix.data[np.abs(matrix.data) < LEAST] = 0
    matrix.eliminate_zeros()
    return largest_in_rows(matrix, FAN_OUT * k)


def _row_ranges(co_views: CoViews) -> Iterator[tuple[int, int]]:
    """Rows to search at a time, none across the border of a panel."""
    for panel in range(0, co_views.n, co_views.block):
        end = min(panel + co_views.block, co_views.n)
        for start in range(panel, end, ROWS):
            yield start, min(start + ROWS, end)

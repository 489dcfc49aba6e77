"""Which pages each page is predicted from."""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sparse_dot_topn import sp_matmul_topn

from user_pipeline.recommender.co_views import ROWS, CoViews
from user_pipeline.recommender.defaults import MEMORY_LIMIT, NEIGHBOURS
from user_pipeline.recommender.parallel import run_blocks, threads
from user_pipeline.recommender.solve import Lead, Nearest, solutions

# Up to this many pages, each is predicted from all others: the one inverse takes up to ten seconds, and no choice of
# predictors is better.
DENSE_PAGES = 7500
# The share of K that are the nearest pages. Less of it is quicker, for it is searched and solved first, and better
# where pages follow each other; of 0.2 to 0.5 none is far behind.
NEAREST = 0.2
# The sizes of systems are multiples of this, so that batches of equal size are full.
STEP = 15
# In order pages less near than this share of the nearest are left out. Measured on page navigation, a travel site and
# game reviews it lowers recall@3 of the next page by 0.001 at most; of 12,000 made-up pages it solves the systems in a
# quarter of the time.
LEAST_SHARE = 0.1
# What a page that is chosen already adds to the gain of choosing it, far below any sum.
KNOWN = 2.0**60
# The smallest number above zero.
SMALLEST = np.finfo(np.float32).tiny


def find_predictors(
    co_views: CoViews,
    neighbours: int | None,
    regularisation: float,
    *,
    is_ordered: bool = False,
    lead: Lead | None = None,
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

    In order they are those of which ``R[i, j] / sqrt(G[i, i] G[j, j])`` is largest, at most K: what follows a page is
    near it. Those of which it is less than ``LEAST_SHARE`` of the largest are left out, up to a whole number of steps.

    Args:
        co_views: G.
        neighbours: K, or None, see :func:`fit`.
        regularisation: the ridge penalty, in squared views.
        is_ordered: whether G knows the order of the views.
        lead: rows of (R - G)', see :data:`.Lead`; None if R is G.
        memory_limit: bytes. A dense system takes no more than half of them, or three quarters with ``lead``.
        n_threads: threads to use, every core by default.

    Returns:
        At most K pages for each page, or None if all pages predict each.
    """
    n = co_views.n
    is_dense = n <= DENSE_PAGES if neighbours is None else neighbours >= n - 1
    # A dense solution costs 8 bytes a pair of pages, or 12 with a lead.
    if is_dense and 8 * n**2 <= memory_limit // 2:
        return None
    nearest = _ranked(co_views, NEIGHBOURS if neighbours is None else neighbours, lead=lead, n_threads=n_threads)
    k = nearest.pages.shape[1]
    few = int(np.ceil(NEAREST * k))
    if k == n - 1 or (few == k and not is_ordered):
        return _ascending(nearest)
    if is_ordered:
        return _ascending(_strong(co_views, nearest))
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


def _strong(co_views: CoViews, nearest: Nearest) -> Nearest:
    """Of the nearest, nearest first, those that are not much further than the first."""
    k = nearest.pages.shape[1]
    sign = nearest.co_views / np.sqrt(co_views.diagonal).astype(np.float32)[nearest.pages]
    is_strong = (sign >= LEAST_SHARE * sign[:, :1]) & (sign > 0)
    return nearest._replace(size=np.clip(-(-np.count_nonzero(is_strong, axis=1) // STEP) * STEP, min(STEP, k), k))


def _ascending(nearest: Nearest) -> Nearest:
    """The same pages in the order of their numbers."""
    n, k = nearest.pages.shape
    order = np.argsort(np.where(np.arange(k) < nearest.size[:, None], nearest.pages, np.int32(n)), axis=1)
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
    weights = solutions(co_views, first, regularisation, n_threads=n_threads)
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


def _ranked(co_views: CoViews, neighbours: int, *, lead: Lead | None = None, n_threads: int | None) -> Nearest:
    """The K pages nearest to each page by cosine, ``R[i, j] / sqrt(G[i, i] G[j, j])``, nearest first.

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
        if lead is not None:
            counts += lead(start, stop)
        cosine = counts * scale
        if lead is not None:
            # What speaks against the page is no nearer than what says nothing.
            np.maximum(cosine, 0, out=cosine)
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
        for _ in run_blocks(find, co_views.row_ranges(), n_threads):
            pass
    return nearest

"""How often users viewed one page shortly before another, and co-views weighed by distance.

The distinct pages of a user stand in the order of their last views; pages viewed at the same time share a position.
Two pages D positions apart count ``e^-D``, as far as ``REACH`` positions::

    E[i, j] = sum over users who viewed i before j of e^-D

Pages that share a position count half in E[i, j] and half in E[j, i]. So at distance 0 they count 1 in ``E + E'``, as
``e^0`` says, and a page counts 1 for each of its viewers on the diagonal.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack

from user_pipeline.recommender.co_views import CoViews, add_to, largest_in_rows, summed, tail_limit
from user_pipeline.recommender.interactions import Interactions
from user_pipeline.recommender.parallel import run_blocks

REACH = 7
# Multiples of 2^-30: sums of them are exact in float64 up to 2^23, so the order of the users does not show.
DECAY: NDArray[np.float64] = np.rint(np.exp(-np.arange(REACH + 1.0)) * 2.0**30) / 2.0**30
# What a page counts in a row of E + E', or of E' - E, by how much earlier than the row's page it was viewed.
NEAR = np.concatenate([DECAY[:0:-1], DECAY])
EARLIER = np.concatenate([-DECAY[:0:-1], [0.0], DECAY[1:]])
# How many numbers are summed at a time: few, so that they stay in the cache.
PIECE = 2**18


@dataclass(frozen=True, slots=True)
class Order:
    """The pages of all users in order, one array after the other, with a page's views to be found in it.

    Positions are numbered through all users, with ``REACH`` numbers between two users at which nothing was viewed:
    so no user's last pages are near another's first.

    Attributes:
        pages: columns by position, shape ``(n_pairs,)``.
        begin: which of ``pages`` is the first at each position, and at a few beyond the last.
        positions: those at which the first page was viewed, the second, and so on, shape ``(n_pairs,)``.
        bounds: where in ``positions`` those of each page begin, shape ``(n + 1,)``.
    """

    pages: NDArray[np.int32]
    begin: NDArray[np.int32]
    positions: NDArray[np.int32]
    bounds: NDArray[np.int32]

    @classmethod
    def of(cls, views: Interactions) -> "Order":
        """Arrange views of which the order is known."""
        if views.latest_first is None:
            raise ValueError("long_range below 1 needs the order of the views: pass recency to interactions()")
        sequence = views.latest_first
        step = sequence.data.astype(np.int32)
        first = sequence.indptr[:-1]
        step[first[first < len(step)]] += REACH * (np.diff(sequence.indptr) > 0)[first < len(step)]
        position = np.cumsum(step, dtype=np.int32)
        del step
        beyond = int(position[-1]) + REACH + 2 if len(position) else 2 * REACH
        begin = np.zeros(beyond, np.int32)
        np.cumsum(np.bincount(position, minlength=beyond)[:-1], out=begin[1:])
        by_page = csr_array((position, sequence.indices, sequence.indptr), shape=sequence.shape).tocsc()
        return cls(sequence.indices, begin, by_page.data, by_page.indptr)

    def rows(self, start: int, stop: int, kernel: NDArray[np.float64], first: int = 0) -> NDArray[np.float64]:
        """Rows ``[start, stop)`` of a matrix of sums over pages near each other, dense.

        Args:
            start: first row.
            stop: row to stop before.
            kernel: what a page counts, by position relative to the row's page: from ``REACH`` later to as many earlier.
            first: first column.
        """
        out = np.zeros((stop - start, len(self.bounds) - 1 - first))
        for row, part in self.pieces(start, stop, kernel, first):
            add_to(out, row, part)
        return out

    def pieces(self, start: int, stop: int, kernel: NDArray[np.float64], first: int) -> Iterator[tuple[int, csr_array]]:
        """The same as sparse matrices of bounded size to be added up, see :func:`.summed`.

        Where no times are equal, the time is 2 REACH + 1 additions a view. Where they are, it is that of the pairs of
        pages at all of these positions: at most one for every pair of pages of every user.
        """
        around = np.arange(-REACH, REACH + 2, dtype=np.int32)
        begin, end = self.bounds[start], self.bounds[stop]
        for at in range(begin, end, PIECE // len(around)):
            position = self.positions[at : min(end, at + PIECE // len(around))]
            edges = self.begin[position[:, None] + around]
            total = np.cumsum(edges[:, -1] - edges[:, 0], dtype=np.int64)
            done = 0
            while done < len(edges):
                spent = total[done - 1] if done else 0
                to = max(done + 1, int(np.searchsorted(total, spent + PIECE, side="right")))
                yield self._piece(edges[done:to], at + done, start, stop, kernel=kernel, first=first)
                done = to

    def _piece(
        self, edges: NDArray[np.int32], at: int, start: int, stop: int, *, kernel: NDArray[np.float64], first: int
    ) -> tuple[int, csr_array]:
        """One piece: some views of pages ``[start, stop)``, the first of which is number ``at``."""
        bounds = self.bounds[start : stop + 1]
        row, last = (np.searchsorted(bounds, [at, at + len(edges) - 1], side="right") - 1).tolist()
        size = edges[:, -1] - edges[:, 0]
        ends = np.concatenate([[0], np.cumsum(size)])
        columns = self.pages[np.arange(ends[-1]) + np.repeat(edges[:, 0] - ends[:-1], size)]
        data = np.repeat(np.tile(kernel, len(edges)), np.diff(edges, axis=1).ravel())
        indptr = ends[np.clip(bounds[row : last + 2] - at, 0, len(edges))]
        if first:
            is_in = columns >= first
            columns, data = columns[is_in] - np.int32(first), data[is_in]
            indptr = np.concatenate([[0], np.cumsum(is_in)])[indptr]
        shape = (last + 1 - row, len(self.bounds) - 1 - first)
        return row, csr_array((data, columns, indptr.astype(np.int32)), shape=shape)


def weigh_by_distance(
    co_views: CoViews, order: Order, long_range: float, *, memory_limit: int, n_threads: int | None = None
) -> CoViews:
    """Turn ``X'X`` into ``long_range * X'X + (1 - long_range) * (E + E')``, its diagonal as it was.

    Args:
        co_views: X'X in cells of float32, which are overwritten; any zeros if ``long_range`` is 0.
        order: where E comes from.
        long_range: the share of X'X, 0 to 1.
        memory_limit: bytes, see :class:`.CoViews`.
        n_threads: threads to use, every core by default.
    """
    n, n_head, block = co_views.n, co_views.n_head, co_views.block

    def fill_panel(start: int) -> None:
        panel = co_views.panel(start)
        near = order.rows(start, start + len(panel), NEAR, start)
        panel[:] = long_range * panel + (1 - long_range) * near

    for _ in run_blocks(fill_panel, range(0, n_head, block), n_threads):
        pass
    if n_head == n:
        return co_views

    def tail_rows(start: int) -> csr_array:
        stop = min(start + block, n)
        near = summed(order.pieces(start, stop, NEAR, n_head), (stop - start, n - n_head))
        rows = long_range * co_views.tail[start - n_head : stop - n_head] + (1 - long_range) * near
        return largest_in_rows(csr_array(rows.astype(np.float32)), tail_limit(n - n_head, memory_limit))

    tail = vstack(list(run_blocks(tail_rows, range(n_head, n, block), n_threads)), format="csr")
    return replace(co_views, tail=tail)

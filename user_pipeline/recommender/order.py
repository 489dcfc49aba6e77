"""How often users viewed one page shortly before another, and co-views weighed by distance.

The distinct pages of a user stand in the order of their last views; pages viewed at the same time share a position.
Two pages D positions apart count ``e^-D``, as far as ``REACH`` positions::

    E[i, j] = sum over users who viewed i before j of e^-D

Pages that share a position count half in E[i, j] and half in E[j, i]. So at distance 0 they count 1 in ``E + E'``, as
``e^0`` says, and a page counts 1 for each of its viewers on the diagonal.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack

from user_pipeline.recommender.co_views import CoViews, add_to, largest_in_rows, summed, tail_limit
from user_pipeline.recommender.interactions import Interactions
from user_pipeline.recommender.parallel import run_blocks

REACH = 7
DECAY: NDArray[np.float64] = np.exp(-np.arange(REACH + 1.0))
# What a page counts in a row of E + E', or of (E - E')', by how much earlier than the row's page it was viewed.
NEAR = np.concatenate([DECAY[:0:-1], DECAY])
EARLIER = np.concatenate([-DECAY[:0:-1], [0.0], DECAY[1:]])
# Sums of multiples of it are exact in float64 up to 2^23, so the order of the users does not show.
QUANTUM = 2.0**-30
AROUND = np.arange(-REACH, REACH + 2)
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
        single: the page at each position, -1 where there is none; not to be used where positions are shared.
        is_shared: of each position, whether one within reach of it is shared by several pages. Empty, as ``begin`` is,
            if there is none.
        positions: those at which the first page was viewed, the second, and so on, shape ``(n_pairs,)``.
        bounds: where in ``positions`` those of each page begin, shape ``(n + 1,)``.
    """

    pages: NDArray[np.int32]
    begin: NDArray[np.int32]
    single: NDArray[np.int32]
    is_shared: NDArray[np.bool_]
    positions: NDArray[np.int32]
    bounds: NDArray[np.int32]

    @classmethod
    def of(cls, views: Interactions) -> "Order":
        """Arrange views of which the order is known."""
        if views.latest_first is None:
            raise ValueError("long_range below 1 needs the order of the views: pass recency to interactions()")
        sequence = views.latest_first
        step = sequence.data.astype(np.int32)
        step[sequence.indptr[:-1][np.diff(sequence.indptr) > 0]] += REACH
        position = np.cumsum(step, dtype=np.int32)
        del step
        end = int(position[-1] if len(position) else 0) + REACH + 2
        begin = np.zeros(end, np.int32)
        np.cumsum(np.bincount(position, minlength=end)[:-1], out=begin[1:])
        single = np.full(end, -1, np.int32)
        single[position] = sequence.indices
        is_shared = np.zeros(0, np.bool_)
        if len(position) and not sequence.data.all():
            size = np.diff(begin, append=begin[-1:])
            is_shared = np.convolve(size > 1, np.ones(2 * REACH + 1, np.int8), "same") > 0
        else:
            begin = begin[:0]
        by_page = csr_array((position, sequence.indices, sequence.indptr), shape=sequence.shape).tocsc()
        return cls(sequence.indices, begin, single, is_shared, by_page.data, by_page.indptr)

    def rows(self, start: int, stop: int, kernel: NDArray[np.float64], first: int = 0) -> NDArray[np.float64]:
        """Rows ``[start, stop)`` of a matrix of sums over pages near each other, dense.

        Args:
            start: first row.
            stop: row to stop before.
            kernel: what a page counts, by position relative to the row's page: from ``REACH`` later to as many earlier.
            first: first column.
        """
        kernel = np.rint(kernel / QUANTUM) * QUANTUM
        # Their first column takes what belongs to none.
        out, *others = np.zeros((2 if len(self.is_shared) else 1, stop - start, len(self.bounds) - first))
        for row, part in self._pieces(start, stop, kernel, first):
            add_to(out, row, part)
        for other in others:
            for row, part in self._shared_pieces(start, stop, kernel, first):
                add_to(other, row, part)
            out += other
        return out[:, 1:]

    def summed(self, start: int, stop: int, kernel: NDArray[np.float64], first: int) -> csr_array:
        """The same, sparse."""
        kernel = np.rint(kernel / QUANTUM) * QUANTUM
        pieces = chain(self._pieces(start, stop, kernel, first), self._shared_pieces(start, stop, kernel, first))
        return summed(pieces, (stop - start, len(self.bounds) - first))[:, 1:]

    def _pieces(
        self, start: int, stop: int, kernel: NDArray[np.float64], first: int
    ) -> Iterator[tuple[int, csr_array]]:
        """What there is where no position is shared, in pieces of bounded size, see :func:`.summed`.

        The time is 2 REACH + 1 additions a view.
        """
        for row, positions, rows in self._views(start, stop, is_shared=False):
            columns = self.single.take(positions[:, None] + AROUND[:-1]).ravel()
            columns -= np.int32(first - 1)
            np.maximum(columns, 0, out=columns)
            data = np.tile(kernel, len(positions))
            yield row, self._matrix(data, columns, rows * len(kernel), first)

    def _shared_pieces(
        self, start: int, stop: int, kernel: NDArray[np.float64], first: int
    ) -> Iterator[tuple[int, csr_array]]:
        """The same where some are.

        The time is that of the pairs of pages at all of these positions: at most one for every pair of pages of every
        user.
        """
        for row, positions, rows in self._views(start, stop, is_shared=True):
            edges = self.begin.take(positions[:, None] + AROUND)
            size = edges[:, -1] - edges[:, 0]
            total = np.concatenate([[0], np.cumsum(size, dtype=np.int64)])
            at = 0
            while at < len(positions):
                to = max(at + 1, int(np.searchsorted(total, total[at] + PIECE, side="right")) - 1)
                ends = total[at : to + 1] - total[at]
                place = np.arange(ends[-1]) + np.repeat(edges[at:to, 0] - ends[:-1], size[at:to])
                columns = np.maximum(self.pages.take(place) - np.int32(first - 1), 0)
                data = np.repeat(np.tile(kernel, to - at), np.diff(edges[at:to], axis=1).ravel())
                own, last = (np.searchsorted(rows, [at, to - 1], side="right") - 1).tolist()
                indptr = ends[np.clip(rows[own : last + 2] - at, 0, to - at)]
                yield row + own, self._matrix(data, columns, indptr, first)
                at = to

    def _views(
        self, start: int, stop: int, *, is_shared: bool
    ) -> Iterator[tuple[int, NDArray[np.int32], NDArray[np.intp]]]:
        """The views of some pages, few at a time.

        Yields:
            The first row, positions, and where those of this and each further row begin, and the last end.
        """
        bounds, few = self.bounds[start : stop + 1], PIECE // len(AROUND)
        for at in range(bounds[0], bounds[-1], few):
            positions = self.positions[at : min(bounds[-1], at + few)]
            row, last = (np.searchsorted(bounds, [at, at + len(positions) - 1], side="right") - 1).tolist()
            rows = np.clip(bounds[row : last + 2] - at, 0, len(positions)).astype(np.intp)
            if len(self.is_shared):
                chosen = self.is_shared[positions] == is_shared
                positions, rows = positions[chosen], np.concatenate([[0], np.cumsum(chosen)])[rows]
            elif is_shared:
                return
            if len(positions):
                yield row, positions, rows

    def _matrix(
        self, data: NDArray[np.float64], columns: NDArray[np.int32], indptr: NDArray[np.intp], first: int
    ) -> csr_array:
        shape = (len(indptr) - 1, len(self.bounds) - first)
        return csr_array((data, columns, indptr.astype(np.int32)), shape=shape)


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
        near = order.rows(start, start + len(panel), (1 - long_range) * NEAR, start)
        panel[:] = long_range * panel + near

    for _ in run_blocks(fill_panel, range(0, n_head, block), n_threads):
        pass
    if n_head == n:
        return co_views

    def tail_rows(start: int) -> csr_array:
        stop = min(start + block, n)
        near = order.summed(start, stop, (1 - long_range) * NEAR, n_head)
        rows = long_range * co_views.tail[start - n_head : stop - n_head] + near
        return largest_in_rows(csr_array(rows.astype(np.float32)), tail_limit(n - n_head, memory_limit))

    tail = vstack(list(run_blocks(tail_rows, range(n_head, n, block), n_threads)), format="csr")
    return replace(co_views, tail=tail)

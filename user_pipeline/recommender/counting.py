"""Counting how many users viewed both of two pages, block by block."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array, vstack

from user_pipeline.recommender.co_views import Cell, CoViews, add_to, largest_in_rows, summed, tail_limit
from user_pipeline.recommender.interactions import Interactions
from user_pipeline.recommender.parallel import run_blocks

# How many numbers are summed at a time: few, so that they stay in the cache.
PIECE = 2**18


def count_co_views(
    views: Interactions,
    *,
    memory_limit: int,
    n_threads: int | None = None,
    cell: type[Cell] = np.uint16,
) -> CoViews:
    """Compute ``X'X`` block by block.

    The time is that of one addition for every pair of pages of every user. Each thread works in about a
    twentieth of the memory limit beside the result; the input is held twice, by user and by page.

    Args:
        views: users x columns.
        memory_limit: bytes, see :class:`CoViews`.
        n_threads: threads to use, every core by default.
        cell: type of the dense part.

    Returns:
        The counts.
    """
    by_page = views.matrix.tocsc()
    out = CoViews.blank(np.diff(by_page.indptr).astype(np.float64), memory_limit, cell)
    n, n_head, block, wide = out.n, out.n_head, out.block, len(out.corner)
    products = _Products(views.matrix, by_page, cell)

    def fill_panel(task: tuple[int, csr_array]) -> None:
        start, later = task
        panel = out.panel(start)
        for row, part in products.of(start, start + len(panel), start, later):
            add_to(panel, row, part)
            if start + row < wide:
                rows_left = min(part.shape[0], wide - start - row)
                end = part.indptr[rows_left]
                wider = csr_array(
                    (np.ones(end, np.float32), part.indices[:end], part.indptr[: rows_left + 1]),
                    shape=(rows_left, n - start),
                )
                out.corner[start + row : start + row + rows_left, start:] += wider.toarray()[:, : wide - start]

    position = views.matrix.indptr[:-1].copy()

    def head() -> Iterator[tuple[int, csr_array]]:
        for start in range(0, n_head, block):
            yield start, products.columns_from(position)
            pairs = slice(by_page.indptr[start], by_page.indptr[min(start + block, n)])
            position[:] += np.bincount(by_page.indices[pairs], minlength=len(position)).astype(position.dtype)

    for _ in run_blocks(fill_panel, head(), n_threads):
        pass
    # Panels hold no columns before their own.
    out.corner[:] = np.triu(out.corner) + np.triu(out.corner, 1).T
    if n_head == n:
        return out

    later = products.columns_from(position)
    limit = tail_limit(n - n_head, memory_limit)

    def tail_rows(start: int) -> csr_array:
        stop = min(start + block, n)
        parts = products.of(start, stop, n_head, later)
        single = ((row, part.astype(np.float32)) for row, part in parts)
        return largest_in_rows(summed(single, (stop - start, n - n_head)), limit)

    tail = vstack(list(run_blocks(tail_rows, range(n_head, n, block), n_threads)), format="csr")
    return replace(out, tail=tail)


@dataclass(frozen=True, slots=True)
class _Products:
    """Rows of ``X'X`` as the rows of X they are sums of, in pieces of bounded size.

    Attributes:
        by_user: X, indices sorted.
        by_page: X by column, indices sorted.
        cell: type of the ones in the pieces.
    """

    by_user: csr_array
    by_page: csc_array
    cell: type[Cell]

    def columns_from(self, position: NDArray[np.int32]) -> csr_array:
        """X cut in two at a place in each of its rows, without copying it.

        Args:
            position: where to cut, as an index into X's indices, shape ``(n_users,)``.

        Returns:
            2 n_users x columns: row 2u is what comes before the cut in row u, row 2u + 1 the rest.
        """
        bounds = np.empty(2 * len(position) + 1, np.int32)
        bounds[0::2], bounds[1::2] = self.by_user.indptr, position
        x = self.by_user
        return csr_array((x.data, x.indices, bounds), shape=(2 * len(position), x.shape[1]))

    def of(self, start: int, stop: int, first: int, later: csr_array) -> Iterator[tuple[int, csr_array]]:
        """Rows ``[start, stop)`` and columns ``[first, n)`` of ``X'X``.

        Args:
            start: first row.
            stop: row to stop before.
            first: first column.
            later: X cut at that column.

        Yields:
            A row, counted from ``start``, and what to add to the rows that begin there: a matrix in which a
            column occurs once for each user who contributes to it.
        """
        x, bounds = self.by_page, self.by_page.indptr[start : stop + 1]
        users = x.indices[bounds[0] : bounds[-1]]
        end = np.cumsum((later.indptr[2:][::2] - later.indptr[1:-1:2])[users], dtype=np.int64)
        begin = np.concatenate([[0], end])
        at = 0
        while at < len(users):
            to = max(at + 1, int(np.searchsorted(end, begin[at] + PIECE, side="right")))
            row, last = np.searchsorted(bounds, bounds[0] + np.array([at, to - 1]), side="right") - 1
            part = later[2 * users[at:to] + 1]
            data = np.ones(len(part.indices), self.cell)
            indptr = begin[np.clip(bounds[row : last + 2] - bounds[0], at, to)] - begin[at]
            shape = (int(last - row) + 1, x.shape[1] - first)
            yield (
                int(row),
                csr_array((data, part.indices - np.int32(first), indptr.astype(np.int32)), shape=shape),
            )
            at = to

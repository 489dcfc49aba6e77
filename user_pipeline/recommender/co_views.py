"""How many users viewed both of two pages, for all pairs of pages, in bounded memory."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csc_array, csr_array, vstack

from user_pipeline.recommender.interactions import Interactions
from user_pipeline.recommender.parallel import run_blocks

# The largest count that fits a cell of two bytes.
WIDEST = int(np.iinfo(np.uint16).max)
# How many numbers are summed at a time: few, so that they stay in the cache.
PIECE = 2**18


@dataclass(frozen=True, slots=True)
class CoViews:
    """The symmetric matrix ``G = X'X``, n x n, of a users x pages matrix X with pages in order of popularity.

    It is kept in two parts. The rows of the most popular pages, the head, are dense panels of the upper
    triangle: 2 bytes a cell. What remains, less popular pages among themselves, is the tail: sparse, 8 bytes
    for each pair of pages that has a viewer in common. The head is all of G if that fits in 4/5 of the memory
    limit (n^2 bytes: 20,000 pages take 0.4 GB). Otherwise it takes half of the limit, and the tail is held to
    3/10 by keeping for each page only the pages it was most often viewed with.

    Two bytes suffice because two pages have no more viewers in common than the less popular of them has
    viewers at all. Only pages with more viewers than that, the first few, need a matrix of their own.

    Attributes:
        diagonal: G[i, i], shape ``(n,)``.
        block: rows in a panel, but for the last.
        cells: the panels, one after the other: rows ``[s, e)`` of G, columns ``[s, n)``, row by row.
        offset: ``cells[offset[i] + k]`` is G[i, k] for a row i of the head and k >= i, shape ``(n_head,)``.
        corner: G[:c, :c], which replaces what ``cells`` says about these pages.
        tail: G[n_head:, n_head:].
    """

    diagonal: NDArray[np.float64]
    block: int
    cells: NDArray[np.uint16]
    offset: NDArray[np.int64]
    corner: NDArray[np.float32]
    tail: csr_array

    @property
    def n(self) -> int:
        """Number of pages."""
        return len(self.diagonal)

    @property
    def n_head(self) -> int:
        """Number of pages whose rows are dense."""
        return len(self.offset)

    def panel(self, start: int) -> NDArray[np.uint16]:
        """Rows ``[start, start + block)`` of the head, columns from ``start``; a view."""
        rows, columns = min(self.block, self.n_head - start), self.n - start
        begin = self.offset[start] + start
        return self.cells[begin : begin + rows * columns].reshape(rows, columns)

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Whole rows, dense; a copy.

        Args:
            start: first row.
            stop: row to stop before, in the same panel as the first.

        Returns:
            Rows x n.
        """
        out = np.empty((stop - start, self.n), np.float32)
        own = start // self.block * self.block
        for above in range(0, min(own, self.n_head), self.block):
            panel = self.panel(above)
            out[:, above : above + len(panel)] = panel[:, start - above : stop - above].T
        if start < self.n_head:
            out[:, own:] = self.panel(own)[start - own : stop - own]
        else:
            out[:, self.n_head :] = self.tail[start - self.n_head : stop - self.n_head].toarray()
        corner = self.corner[start:stop]
        out[: len(corner), : len(self.corner)] = corner
        return out

    def between(self, one: NDArray[np.int32], other: NDArray[np.int32]) -> NDArray[np.float32]:
        """G for pairs of two different pages.

        Args:
            one: pages, any shape.
            other: as many others.

        Returns:
            A number for each pair.
        """
        low, high = np.minimum(one, other), np.maximum(one, other)
        out = self._between(low, high).astype(np.float32)
        inside = high < len(self.corner)
        out[inside] = self.corner[low[inside], high[inside]]
        return out

    def _between(self, low: NDArray[np.int32], high: NDArray[np.int32]) -> NDArray[np.uint16] | NDArray[np.float32]:
        """The same, of the smaller and the larger page of each pair, but for the corner."""
        if self.n_head == self.n:
            found: NDArray[np.uint16] = self.cells.take(self.offset[low] + high)
            return found
        in_head = low < self.n_head
        values = np.empty(low.shape, np.float32)
        values[in_head] = self.cells[self.offset[low[in_head]] + high[in_head]]
        # The row of the less popular of the two is the shorter: the one that a limit cut less.
        rest = ~in_head
        if rest.any():
            values[rest] = self.tail[high[rest] - self.n_head, low[rest] - self.n_head]
        return values

    def among(self, pages: NDArray[np.int32]) -> NDArray[np.float64]:
        """G restricted to groups of pages.

        Args:
            pages: groups x K, each row ascending.

        Returns:
            Groups x K x K.
        """
        k = pages.shape[1]
        first, second = np.triu_indices(k, 1)
        low, high = pages.take(first, axis=1), pages.take(second, axis=1)
        if self.n_head == self.n:
            values: NDArray[np.uint16] | NDArray[np.float32] = self.cells.take(
                self.offset[pages].take(first, axis=1) + high
            )
        else:
            values = self._between(low, high)
        position = np.zeros((k, k), np.intp)
        position[first, second] = position[second, first] = np.arange(len(first))
        out = np.zeros((len(pages), k, k))
        if len(first):
            out[:] = values.take(position, axis=1)
        for group in np.flatnonzero((pages[:, :2] < len(self.corner)).all(axis=1)):
            inside = pages[group, : np.searchsorted(pages[group], len(self.corner))]
            out[group, : len(inside), : len(inside)] = self.corner[np.ix_(inside, inside)]
        out[:, np.arange(k), np.arange(k)] = self.diagonal[pages]
        return out


def count_co_views(views: Interactions, *, memory_limit: int, n_threads: int | None = None) -> CoViews:
    """Compute ``X'X`` block by block.

    The time is that of one addition for every pair of pages of every user. Each thread works in about a
    twentieth of the memory limit beside the result; the input is held twice, by user and by page.

    Args:
        views: users x columns.
        memory_limit: bytes, see :class:`CoViews`.
        n_threads: threads to use, every core by default.

    Returns:
        The counts.
    """
    by_user, by_page = views.matrix, views.matrix.tocsc()
    n = by_user.shape[1]
    block = int(np.clip(memory_limit // (256 * max(n, 1)), 1, 256))
    starts = np.arange(0, n, block)
    cells = np.minimum(block, n - starts) * (n - starts)
    panels = len(starts)
    cell = np.dtype(np.uint16)
    if cell.itemsize * cells.sum() > memory_limit // 5 * 4:
        panels = int(np.searchsorted(cell.itemsize * np.cumsum(cells), memory_limit // 2, side="right"))
    rows = np.arange(min(panels * block, n))
    first = rows // block * block
    before = np.cumsum(cells) - cells
    diagonal = np.diff(by_page.indptr).astype(np.float64)
    wide = min(len(rows), int(np.count_nonzero(diagonal > WIDEST)))
    out = CoViews(
        diagonal=diagonal,
        block=block,
        cells=np.zeros(int(cells[:panels].sum()), cell),
        offset=before[rows // block] + (rows - first) * (n - first) - first,
        corner=np.zeros((wide, wide), np.float32),
        tail=empty((n - len(rows), n - len(rows))),
    )
    products = _Products(by_user, by_page)

    def fill_panel(task: tuple[int, csr_array]) -> None:
        start, later = task
        panel = out.panel(start)
        for row, part in products.of(start, start + len(panel), start, later):
            # Only the first of these rows may have been begun by the piece before.
            begun = panel[row].copy()
            part.toarray(out=panel[row : row + part.shape[0]])
            panel[row] += begun
            if start + row < wide:
                rows_left = min(part.shape[0], wide - start - row)
                end = part.indptr[rows_left]
                wider = csr_array(
                    (np.ones(end, np.float32), part.indices[:end], part.indptr[: rows_left + 1]),
                    shape=(rows_left, n - start),
                )
                out.corner[start + row : start + row + rows_left, start:] += wider.toarray()[:, : wide - start]

    position = by_user.indptr[:-1].copy()

    def head() -> Iterator[tuple[int, csr_array]]:
        for start in starts[:panels].tolist():
            yield start, products.columns_from(position)
            pairs = slice(by_page.indptr[start], by_page.indptr[min(start + block, n)])
            position[:] += np.bincount(by_page.indices[pairs], minlength=len(position)).astype(position.dtype)

    for _ in run_blocks(fill_panel, head(), n_threads):
        pass
    # Panels hold no columns before their own.
    out.corner[:] = np.triu(out.corner) + np.triu(out.corner, 1).T
    if panels == len(starts):
        return out

    n_head, later = len(rows), products.columns_from(position)
    # 16 bytes: the parts and the whole made of them exist together for a moment.
    limit = max(1, memory_limit * 3 // 10 // (16 * (n - n_head)))

    def tail_rows(start: int) -> csr_array:
        stop = min(start + block, n)
        parts = list(products.of(start, stop, n_head, later))
        return largest_in_rows(_summed(parts, (stop - start, n - n_head)), limit)

    tail = vstack(list(run_blocks(tail_rows, starts[panels:].tolist(), n_threads)), format="csr")
    return replace(out, tail=tail)


@dataclass(frozen=True, slots=True)
class _Products:
    """Rows of ``X'X`` as the rows of X they are sums of, in pieces of bounded size.

    Attributes:
        by_user: X, indices sorted.
        by_page: X by column, indices sorted.
    """

    by_user: csr_array
    by_page: csc_array

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
            data = np.ones(len(part.indices), np.uint16)
            indptr = begin[np.clip(bounds[row : last + 2] - bounds[0], at, to)] - begin[at]
            shape = (int(last - row) + 1, x.shape[1] - first)
            yield (
                int(row),
                csr_array((data, part.indices - np.int32(first), indptr.astype(np.int32)), shape=shape),
            )
            at = to


def _summed(parts: list[tuple[int, csr_array]], shape: tuple[int, int]) -> csr_array:
    """Sum pieces of a block of rows into one sparse matrix."""
    total = empty(shape)
    for row, part in parts:
        below = shape[0] - row - part.shape[0]
        indptr = np.concatenate([np.zeros(row, np.int32), part.indptr, np.full(below, part.indptr[-1])])
        total = total + csr_array((part.data.astype(np.float32), part.indices, indptr), shape=shape)
    return total


def empty(shape: tuple[int, int]) -> csr_array:
    """A float32 matrix of zeros."""
    return csr_array(coo_array(shape, dtype=np.float32))


def largest_in_rows(matrix: csr_array, limit: int) -> csr_array:
    """Keep the ``limit`` numbers of each row largest in size, of equal ones those in the smaller columns."""
    lengths = np.diff(matrix.indptr)
    row = np.repeat(np.arange(len(lengths)), lengths)
    long = np.flatnonzero((lengths > limit)[row])
    order = long[np.lexsort((matrix.indices[long], -np.abs(matrix.data[long]), row[long]))]
    # Sorted by row, the entries of the long rows still stand in the order of the rows.
    skipped = np.cumsum(lengths * (lengths <= limit))[row[order]]
    place = np.arange(len(order)) - (matrix.indptr[row[order]] - skipped)
    kept = np.ones(matrix.nnz, np.bool_)
    kept[order[place >= limit]] = False
    return csr_array((matrix.data[kept], (row[kept], matrix.indices[kept])), shape=matrix.shape)

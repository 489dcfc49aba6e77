"""A symmetric number for every pair of pages, such as how many users viewed both, in bounded memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

# The largest count that fits in a cell of two bytes.
WIDEST = int(np.iinfo(np.uint16).max)
# Pages whose rows are searched at a time: few, so that they stay in the cache.
ROWS = 32
Cell: TypeAlias = np.uint16 | np.float32
Cells: TypeAlias = NDArray[Cell]


@dataclass(frozen=True, slots=True)
class CoViews:
    """The symmetric matrix ``G = X'X``, n x n, of a users x pages matrix X with pages in order of popularity.

    It is kept in two parts. The rows of the most popular pages, the head, are dense panels of the upper
    triangle: 2 bytes a cell for counts, 4 for weighted ones (see :mod:`.order`). What remains, less popular
    pages among themselves, is the tail: sparse, 8 bytes for each pair of pages that has a viewer in common. The
    head is all of G if that fits in 4/5 of the memory limit (20,000 pages take 0.4 GB, or 0.8). Otherwise it
    takes half of the limit, and the tail is held to 3/10 by keeping for each page only the pages it was most
    often viewed with.

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
    cells: Cells
    offset: NDArray[np.int64]
    corner: NDArray[np.float32]
    tail: csr_array

    @classmethod
    def blank(cls, diagonal: NDArray[np.float64], memory_limit: int, cell: type[Cell]) -> "CoViews":
        """Zeros off the diagonal, laid out for a memory limit in bytes; no tail yet, but of the right shape."""
        n = len(diagonal)
        block = int(np.clip(memory_limit // (256 * max(n, 1)), 1, 256))
        starts = np.arange(0, n, block)
        sizes = np.minimum(block, n - starts) * (n - starts)
        panels, width = len(starts), np.dtype(cell).itemsize
        if width * sizes.sum() > memory_limit // 5 * 4:
            panels = int(np.searchsorted(width * np.cumsum(sizes), memory_limit // 2, side="right"))
        rows = np.arange(min(panels * block, n))
        first = rows // block * block
        before = np.cumsum(sizes) - sizes
        wide = min(len(rows), int(np.count_nonzero(diagonal > WIDEST))) if cell is np.uint16 else 0
        return cls(
            diagonal=diagonal,
            block=block,
            cells=np.zeros(int(sizes[:panels].sum()), cell),
            offset=before[rows // block] + (rows - first) * (n - first) - first,
            corner=np.zeros((wide, wide), np.float32),
            tail=empty((n - len(rows), n - len(rows))),
        )

    @property
    def n(self) -> int:
        """Number of pages."""
        return len(self.diagonal)

    @property
    def n_head(self) -> int:
        """Number of pages whose rows are dense."""
        return len(self.offset)

    def row_ranges(self, most: int = ROWS) -> Iterator[tuple[int, int]]:
        """Rows to search at a time, none across the border of a panel."""
        for panel in range(0, self.n, self.block):
            end = min(panel + self.block, self.n)
            for start in range(panel, end, most):
                yield start, min(start + most, end)

    def panel(self, start: int) -> Cells:
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

    def _between(self, low: NDArray[np.int32], high: NDArray[np.int32]) -> Cells:
        """The same, of the smaller and the larger page of each pair, but for the corner."""
        if self.n_head == self.n:
            found: Cells = self.cells.take(self.offset[low] + high)
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
            values: Cells = self.cells.take(self.offset[pages].take(first, axis=1) + high)
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


def tail_limit(n_tail: int, memory_limit: int) -> int:
    """How many numbers a row of the tail may keep."""
    # 16 bytes: the parts and the whole made of them exist together for a moment.
    return max(1, memory_limit * 3 // 10 // (16 * max(n_tail, 1)))


def summed(parts: Iterator[tuple[int, csr_array]], shape: tuple[int, int]) -> csr_array:
    """Sum pieces of a block of rows into one sparse matrix, in their own precision.

    Args:
        parts: a row, and what to add to the rows that begin there; a column may occur more than once in a row.
        shape: of the block.
    """
    total = empty(shape)
    for row, part in parts:
        below = shape[0] - row - part.shape[0]
        indptr = np.concatenate([np.zeros(row, np.int32), part.indptr, np.full(below, part.indptr[-1])])
        total = total + csr_array((part.data, part.indices, indptr), shape=shape)
    return total


def add_to(panel: NDArray[Cell | np.float64], row: int, part: csr_array) -> None:
    """Add one such piece to a dense block, in which rows after the piece's first are zero so far."""
    begun = panel[row].copy()
    part.toarray(out=panel[row : row + part.shape[0]])
    panel[row] += begun


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

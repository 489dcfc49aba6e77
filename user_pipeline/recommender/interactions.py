"""Views as a sparse users x pages matrix, its pages in order of popularity."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

Codes: TypeAlias = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Interactions:
    """Who viewed what, with pages renumbered by popularity.

    Column 0 is the most popular page, so "ties by popularity, then by code" is everywhere below simply
    "the smaller column first", and the most popular unseen pages are the first columns missing in a row.

    Attributes:
        matrix: users x columns, indices sorted, int8: 1 where a user viewed a page.
        pages: the page code of each column, shape ``(n_columns,)``. A page nobody viewed has no column.
        n_pages: how many page codes there are, viewed or not.
        popularity: how many users viewed each column, shape ``(n_columns,)``, descending.
    """

    matrix: csr_array
    pages: NDArray[np.int32]
    n_pages: int
    popularity: NDArray[np.int64]

    def columns_of(self, page: Codes) -> NDArray[np.int32]:
        """The column of each page code, -1 for a page that has none."""
        column = np.full(self.n_pages, -1, dtype=np.int32)
        column[self.pages] = np.arange(len(self.pages), dtype=np.int32)
        return column[page]


def interactions(user: Codes, page: Codes, *, n_users: int, n_pages: int) -> Interactions:
    """Build the matrix from integer codes, in any order, a pair as often as it likes.

    Codes are best assigned in the sorted order of the ids they stand for: then the result is a function of
    the views alone, and pages of equal popularity come in the order of their ids. Apart from its inputs and
    result, it needs about 10 bytes a pair for a moment.

    Args:
        user: user codes in ``[0, n_users)``, shape ``(n_pairs,)``; int32 codes are used without a copy.
        page: page codes in ``[0, n_pages)``, shape ``(n_pairs,)``.
        n_users: number of rows of the matrix.
        n_pages: number of page codes.

    Returns:
        The matrix and the order of its columns.
    """
    data = np.ones(len(user), dtype=np.int8)
    pairs = coo_array((data, (_int32(user), _int32(page))), shape=(n_users, n_pages))
    # A conversion between CSR and CSC is a counting sort. Two of them sort users within pages in linear time,
    # where summing the duplicates of COO right away would sort every row by comparison.
    pairs.has_canonical_format = True
    by_page = pairs.tocsr().tocsc()
    by_page.has_canonical_format = False
    by_page.has_sorted_indices = True
    by_page.sum_duplicates()
    by_page.data[:] = 1
    viewers = np.diff(by_page.indptr)
    # A stable sort leaves pages of equal popularity in the order of their codes.
    pages = np.argsort(-viewers, kind="stable")[: np.count_nonzero(viewers)]
    return Interactions(
        matrix=by_page[:, pages].tocsr(),
        pages=pages.astype(np.int32),
        n_pages=n_pages,
        popularity=viewers[pages].astype(np.int64),
    )


def _int32(codes: Codes) -> NDArray[np.int32]:
    return codes.astype(np.int32, copy=False)

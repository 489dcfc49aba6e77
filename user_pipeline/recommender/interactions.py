"""Views as a sparse users x pages matrix, its pages in order of popularity."""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

Codes: TypeAlias = NDArray[np.integer[Any]]
Weighting: TypeAlias = Literal["binary", "log"]


@dataclass(frozen=True, slots=True)
class Interactions:
    """Who viewed what, with pages renumbered by popularity.

    Column 0 is the most popular page, so "ties by popularity, then by code" is everywhere below simply
    "the smaller column first", and the most popular unseen pages are the first columns missing in a row.

    Attributes:
        matrix: users x columns, indices sorted. int8 ones, or float32 ``log2(1 + count)``, which is one for
            a single view too, so that one regularisation suits both.
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


def interactions(
    user: Codes,
    page: Codes,
    count: NDArray[Any] | None = None,
    *,
    n_users: int,
    n_pages: int,
    weighting: Weighting = "binary",
) -> Interactions:
    """Build the matrix from integer codes, in any order, a pair as often as it likes.

    Codes are best assigned in the sorted order of the ids they stand for: then the result is a function of
    the views alone, and pages of equal popularity come in the order of their ids. Apart from its inputs and
    result, it needs about 10 bytes a pair for a moment.

    Args:
        user: user codes in ``[0, n_users)``, shape ``(n_pairs,)``; int32 codes are used without a copy.
        page: page codes in ``[0, n_pages)``, shape ``(n_pairs,)``.
        count: views of each pair, at least 1, shape ``(n_pairs,)``; counts of a repeated pair add up.
            Not read when the weighting is binary.
        n_users: number of rows of the matrix.
        n_pages: number of page codes.
        weighting: ``binary`` for 1 where a user viewed a page, ``log`` for ``log2(1 + count)``.

    Returns:
        The matrix and the order of its columns.
    """
    if weighting == "log":
        data = np.ones(len(user), np.float32) if count is None else count.astype(np.float32)
    else:
        data = np.ones(len(user), dtype=np.int8)
    pairs = coo_array((data, (_int32(user), _int32(page))), shape=(n_users, n_pages))
    # A conversion between CSR and CSC is a counting sort. Two of them sort users within pages in linear time,
    # where summing the duplicates of COO right away would sort every row by comparison.
    pairs.has_canonical_format = True
    by_page = pairs.tocsr().tocsc()
    by_page.has_canonical_format = False
    by_page.has_sorted_indices = True
    by_page.sum_duplicates()
    if weighting == "log":
        np.log2(by_page.data + np.float32(1), out=by_page.data)
    else:
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

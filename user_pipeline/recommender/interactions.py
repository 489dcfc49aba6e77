"""Views as a sparse users x pages matrix, its pages in order of popularity, and the order of each user's views."""

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csc_array, csr_array

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
        latest_first: users x columns, int8, the same entries as in ``matrix``, those of a user in the order of their
            views, the last one first: 0 for an entry that shares its position with the one before it, otherwise 1.
            None if the order is not known.
    """

    matrix: csr_array
    pages: NDArray[np.int32]
    n_pages: int
    popularity: NDArray[np.int64]
    latest_first: csr_array | None = None

    def columns_of(self, page: Codes) -> NDArray[np.int32]:
        """The column of each page code, -1 for a page that has none."""
        column = np.full(self.n_pages, -1, dtype=np.int32)
        column[self.pages] = np.arange(len(self.pages), dtype=np.int32)
        return column[page]

    def of(self, users: Codes) -> "Interactions":
        """The views of some users, pages and their popularity as they are."""
        order = None if self.latest_first is None else self.latest_first[users]
        return replace(self, matrix=self.matrix[users], latest_first=order)


def interactions(user: Codes, page: Codes, *, n_users: int, n_pages: int, recency: Codes | None = None) -> Interactions:
    """Build the matrix from integer codes, in any order, a pair as often as it likes.

    Codes are best assigned in the sorted order of the ids they stand for: then the result is a function of
    the views alone, and pages of equal popularity come in the order of their ids. Apart from its inputs and
    result, it needs about 10 bytes a pair for a moment, or 25 with an order.

    Args:
        user: user codes in ``[0, n_users)``, shape ``(n_pairs,)``; int32 codes are used without a copy.
        page: page codes in ``[0, n_pages)``, shape ``(n_pairs,)``.
        n_users: number of rows of the matrix.
        n_pages: number of page codes.
        recency: when each pair was last viewed, as a rank among the views of its user, see :func:`recency_of`: 0 for
            the page viewed last, 1 for the one before, and so on; the same for pages viewed at the same time. Gaps do
            not count. Of a pair given more than once, the smallest counts.

    Returns:
        The matrix and the order of its columns.
    """
    data = np.ones(len(user), dtype=np.int8) if recency is None else _int32(recency)
    pairs = coo_array((data, (_int32(user), _int32(page))), shape=(n_users, n_pages))
    # A conversion between CSR and CSC is a counting sort. Two of them sort users within pages in linear time,
    # where summing the duplicates of COO right away would sort every row by comparison.
    pairs.has_canonical_format = True
    by_page = pairs.tocsr().tocsc()
    by_page.has_canonical_format = False
    by_page.has_sorted_indices = True
    if recency is None:
        by_page.sum_duplicates()
        by_page.data[:] = 1
    else:
        by_page = _latest(by_page)
    viewers = np.diff(by_page.indptr)
    # A stable sort leaves pages of equal popularity in the order of their codes.
    pages = np.argsort(-viewers, kind="stable")[: np.count_nonzero(viewers)]
    matrix, latest_first = by_page[:, pages].tocsr(), None
    if recency is not None:
        latest_first = _latest_first(matrix)
        matrix = csr_array((np.ones(matrix.nnz, np.int8), matrix.indices, matrix.indptr), shape=matrix.shape)
    return Interactions(
        matrix=matrix,
        pages=pages.astype(np.int32),
        n_pages=n_pages,
        popularity=viewers[pages].astype(np.int64),
        latest_first=latest_first,
    )


def recency_of(user: Codes, time: NDArray[Any]) -> NDArray[np.int32]:
    """The rank of each view among those of its user by time, from 0 for the last, equal times sharing one.

    Args:
        user: user codes, shape ``(n_views,)``.
        time: anything that can be sorted, shape ``(n_views,)``.
    """
    order = np.lexsort((time, user))[::-1]
    begins_user, begins_rank = np.ones((2, len(order)), np.bool_)
    begins_user[1:] = user[order[1:]] != user[order[:-1]]
    begins_rank[1:] = begins_user[1:] | (time[order[1:]] != time[order[:-1]])
    rank = np.cumsum(begins_rank)
    out = np.empty(len(order), np.int32)
    out[order] = rank - np.maximum.accumulate(np.where(begins_user, rank, 0))
    return out


def _latest(by_page: csc_array) -> csc_array:
    """The smallest of the numbers given for each pair, the pairs of a page being sorted by user."""
    is_first = np.ones(by_page.nnz, np.bool_)
    is_first[1:] = by_page.indices[1:] != by_page.indices[:-1]
    begin = by_page.indptr[:-1]
    is_first[begin[begin < by_page.nnz]] = True
    if is_first.all():
        return by_page
    first = np.flatnonzero(is_first)
    indptr = np.concatenate([[0], np.cumsum(is_first)])[by_page.indptr].astype(np.int32)
    data = np.minimum.reduceat(by_page.data, first)
    return csc_array((data, by_page.indices[first], indptr), shape=by_page.shape)


def _latest_first(ranks: csr_array) -> csr_array:
    """The entries of each row in ascending order, and where a number differs from the one before it."""
    n_users = ranks.shape[0]
    user = np.repeat(np.arange(n_users, dtype=np.int32), np.diff(ranks.indptr))
    shape = (int(ranks.data.max(initial=0)) + 1, n_users)
    pairs = coo_array((ranks.indices, (ranks.data, user)), shape=shape)
    # Two counting sorts, as above.
    pairs.has_canonical_format = True
    by_user = pairs.tocsr().tocsc()
    is_new = np.ones(by_user.nnz, np.int8)
    is_new[1:] = by_user.indices[1:] != by_user.indices[:-1]
    begin = by_user.indptr[:-1]
    is_new[begin[begin < by_user.nnz]] = 1
    return csr_array((is_new, by_user.data, by_user.indptr), shape=ranks.shape)


def _int32(codes: Codes) -> NDArray[np.int32]:
    return codes.astype(np.int32, copy=False)

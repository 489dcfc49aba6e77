"""The pages that go with a page, by the weights that recommendations are made of."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from user_pipeline.recommender.interactions import Interactions

# Pages whose weights are sorted at a time.
ROWS = 1024


class Related(NamedTuple):
    """Pages by page code and rank.

    Attributes:
        page: page codes, ascending, int32.
        related: page codes, int32.
        rank: 1 goes with it best, int32.
        score: how much the first page speaks for the second, above 0, float64.
    """

    page: NDArray[np.int32]
    related: NDArray[np.int32]
    rank: NDArray[np.int32]
    score: NDArray[np.float64]


def related(views: Interactions, weights: csr_array, top_n: int) -> Related:
    """The pages each page speaks most for, ties broken by popularity and then by page code.

    Args:
        views: what the columns are.
        weights: columns x columns, from :func:`.fit`.
        top_n: how many pages each gets at most: fewer if it speaks for fewer.
    """
    by_code = np.argsort(views.pages)
    none = np.empty(0, np.int32)
    parts = [Related(none, none, none, np.empty(0))]
    for start in range(0, len(by_code), ROWS):
        columns = by_code[start : start + ROWS]
        rows = csr_array(weights[columns])
        rows.sort_indices()
        row = np.repeat(np.arange(len(columns)), np.diff(rows.indptr))
        good = np.flatnonzero(rows.data > 0)
        order = good[np.lexsort((rows.indices[good], -rows.data[good], row[good]))]
        begins = np.searchsorted(row[order], np.arange(len(columns)))
        rank = np.arange(len(order)) - begins[row[order]] + 1
        order, rank = order[rank <= top_n], rank[rank <= top_n]
        page, other = views.pages[columns[row[order]]], views.pages[rows.indices[order]]
        parts.append(Related(page, other, rank.astype(np.int32), rows.data[order].astype(np.float64)))
    return Related(*(np.concatenate(column) for column in zip(*parts, strict=True)))

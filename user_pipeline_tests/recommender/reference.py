"""The family of models as it is defined, by loops and dense matrices; shares no code with what it is compared to."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# For each user the pages viewed at the same time, the last ones first.
Histories = Sequence[Sequence[Sequence[int]]]
Matrix = NDArray[np.float64]
REACH = 7


def ordered_counts(histories: Histories, n_pages: int) -> tuple[Matrix, Matrix]:
    """F_all and E: how often a page was viewed before another; half of a pair at one position each way."""
    every, near = np.zeros((2, n_pages, n_pages))
    for positions in histories:
        for later, after in enumerate(positions):
            for i in after:
                for j in after:
                    if i != j:
                        every[i, j] += 0.5
                        near[i, j] += 0.5
            for earlier in range(later + 1, len(positions)):
                distance = earlier - later
                for i in positions[earlier]:
                    for j in after:
                        every[i, j] += 1
                        near[i, j] += np.exp(-distance) if distance <= REACH else 0
    return every, near


def family(histories: Histories, n_pages: int, c: float) -> tuple[Matrix, Matrix]:
    """G and A."""
    every, near = ordered_counts(histories, n_pages)
    pairs = c * every + (1 - c) * near
    viewers = np.zeros(n_pages)
    for positions in histories:
        for pages in positions:
            viewers[list(pages)] += 1
    return pairs + pairs.T + np.diag(viewers), (1 - c) * (near - near.T)


def dense_weights(g: Matrix, a: Matrix, penalty: float, d: float) -> Matrix:
    """B of all pages on all."""
    p = np.linalg.inv(g + penalty * np.eye(len(g)))
    pa = p @ a
    b = d * pa - p * ((1 + d * np.diag(pa)) / np.diag(p))
    np.fill_diagonal(b, 0)
    return b


def scores(history: Sequence[Sequence[int]], b: Matrix, c: float, a: float, trend: Matrix) -> Matrix:
    """A user's scores of all pages."""
    out = np.zeros(len(b))
    for recency, pages in enumerate(history, start=1):
        for i in pages:
            out += (c + (1 - c) * np.exp(-recency)) * b[i]
    return out / (out.std() or 1) + a * trend if a else out

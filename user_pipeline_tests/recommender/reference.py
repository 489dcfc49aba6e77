"""The family of models as section by section its definition says, by loops and dense matrices; shares no code."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

# For each user the pages viewed at the same time, the last ones first.
Histories = Sequence[Sequence[Sequence[int]]]
Matrix = NDArray[np.float64]
REACH = 7


def ordered_counts(histories: Histories, n_pages: int) -> tuple[Matrix, Matrix]:
    """F_all and E: pairs of pages, the first viewed before the second; half of a pair at one position each way."""
    every, near = np.zeros((2, n_pages, n_pages))
    for positions in histories:
        for later, ends in enumerate(positions):
            for earlier, begins in enumerate(positions):
                for i in begins:
                    for j in ends:
                        distance = earlier - later
                        if distance < 0 or i == j:
                            continue
                        share = 0.5 if distance == 0 else 1.0
                        every[i, j] += share
                        near[i, j] += share * np.exp(-distance) * (distance <= REACH)
    return every, near


def family(histories: Histories, n_pages: int, c: float, d: float) -> tuple[Matrix, Matrix]:
    """G and A."""
    every, near = ordered_counts(histories, n_pages)
    counted = c * every + (1 - c) * near
    viewers = np.zeros(n_pages)
    for positions in histories:
        for pages in positions:
            viewers[list(pages)] += 1
    return counted + counted.T + np.diag(viewers), (1 - c) * (near - near.T)


def dense_weights(g: Matrix, a: Matrix, penalty: float, d: float) -> Matrix:
    """B of all pages on all."""
    p = np.linalg.inv(g + penalty * np.eye(len(g)))
    pa = p @ a
    b = d * pa - p * ((1 + d * np.diag(pa)) / np.diag(p))
    np.fill_diagonal(b, 0)
    return b


def restricted_weights(g: Matrix, a: Matrix, penalty: float, d: float, k: int) -> Matrix:
    """B of each page on the K others of which R[i, j] / sqrt(G[i, i] G[j, j]) is largest."""
    r, b, n = g + d * a, np.zeros_like(g), len(g)
    for j in range(n):
        signs = np.maximum((r[:, j].astype(np.float32) / np.sqrt(np.diag(g)).astype(np.float32)), 0)
        signs[j] = -1
        near = np.sort(np.argsort(-signs, kind="stable")[:k])
        b[near, j] = np.linalg.solve(g[np.ix_(near, near)] + penalty * np.eye(len(near)), r[near, j])
    return b


def scores(history: Sequence[Sequence[int]], b: Matrix, c: float, a: float, trend: Matrix) -> Matrix:
    """A user's scores of all pages."""
    out = np.zeros(len(b))
    for recency, pages in enumerate(history, start=1):
        for i in pages:
            out += (c + (1 - c) * np.exp(-recency)) * b[i]
    return out if not a else out / (out.std() or 1) + a * trend


def pages_of(history: Sequence[Sequence[int]]) -> set[int]:
    """What a user has seen."""
    return {page for pages in history for page in pages}


def renamed(histories: Histories, users: Sequence[int], pages: Mapping[int, int]) -> list[list[list[int]]]:
    """The same histories of users in another order and pages by other numbers."""
    return [[[pages[page] for page in position] for position in histories[user]] for user in users]

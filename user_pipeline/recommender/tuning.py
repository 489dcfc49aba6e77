"""Choosing the regularisation on data that is not the test data."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.sparse import vstack

from user_pipeline.recommender.co_views import count_co_views
from user_pipeline.recommender.defaults import REGULARISATION
from user_pipeline.recommender.evaluate import leave_out, measure
from user_pipeline.recommender.interactions import Interactions
from user_pipeline.recommender.score import TOP_N, recommend
from user_pipeline.recommender.weights import (
    MEMORY_LIMIT,
    find_predictors,
    solve,
)

MIN_PAGES = 5
GRID = (5.0, 10.0, 20.0, 50.0, 100.0, 200.0)


def choose_regularisation(
    views: Interactions,
    *,
    grid: Sequence[float] = GRID,
    neighbours: int | None = None,
    max_users: int = 20_000,
    seed: int = 0,
    memory_limit: int = MEMORY_LIMIT,
    n_threads: int | None = None,
) -> float:
    """The penalty with the best recall@3 on a validation split.

    A fifth of the pages of each of some users who have at least 5 is held out, the rest and all other users'
    views are learned from. Co-views and predictors are found once, whatever the length of the grid.

    Args:
        views: users x columns, all of it training data.
        grid: penalties to try.
        neighbours: K, as for :func:`.fit`.
        max_users: users to hold pages out for, at most, chosen at random.
        seed: of that choice and of the split.
        memory_limit: bytes, as for :func:`.fit`.
        n_threads: threads to use.

    Returns:
        The best of the grid, of equals the first; the default if no user has 5 pages.
    """
    pages_seen = np.diff(views.matrix.indptr)
    able = np.random.default_rng(seed).permutation(np.flatnonzero(pages_seen >= MIN_PAGES))[:max_users]
    if not len(able):
        return REGULARISATION
    asked = np.sort(able)
    remaining, held_out = leave_out(views.matrix[asked], min_pages=MIN_PAGES, seed=seed)
    others = np.ones(views.matrix.shape[0], np.bool_)
    others[asked] = False
    # The order of users means nothing to the weights: those with pages held out move to the end.
    matrix = vstack([views.matrix[others], remaining], format="csr")
    # Columns without a view left would divide by zero.
    left = np.bincount(matrix.indices, minlength=matrix.shape[1])
    columns = np.flatnonzero(left)
    order = columns[np.argsort(-left[columns], kind="stable")]
    train = replace(
        views,
        matrix=matrix[:, order].sorted_indices(),
        pages=np.arange(len(views.pages), dtype=np.int32)[order],
        n_pages=len(views.pages),
        popularity=left[order].astype(np.int64),
    )
    co_views = count_co_views(train, memory_limit=memory_limit, n_threads=n_threads)
    predictors = find_predictors(co_views, neighbours, REGULARISATION, memory_limit=memory_limit, n_threads=n_threads)
    served = replace(train, matrix=train.matrix[-len(asked) :])

    def recall(regularisation: float) -> float:
        weights = solve(co_views, predictors, regularisation, n_threads=n_threads)
        ranked = np.full((len(asked), TOP_N), -1)
        for part in recommend(served, weights, memory_limit=memory_limit, n_threads=n_threads):
            ranked[part.user, part.rank - 1] = part.page
        return measure(ranked, held_out, TOP_N).recall

    return max(grid, key=recall)

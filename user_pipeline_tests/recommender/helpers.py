import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from user_pipeline.recommender.interactions import Interactions, interactions
from user_pipeline.recommender.score import Recommendations, recommend
from user_pipeline.recommender.weights import fit

Pairs = list[tuple[int, int]]


def views_of(pairs: Pairs, n_users: int, n_pages: int) -> Interactions:
    user, page = columns(pairs)
    return interactions(user, page, n_users=n_users, n_pages=n_pages)


def columns(pairs: Pairs) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    table = np.array(pairs, np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def rows(parts: list[Recommendations]) -> list[tuple[int, int, int, bool]]:
    return [
        (int(user), int(page), int(rank), bool(fallback))
        for part in parts
        for user, page, rank, fallback in zip(*part[:4], strict=True)
    ]


def recommended(
    pairs: Pairs, n_users: int, n_pages: int, seen: Pairs | None = None, memory_limit: int = 2**30
) -> list[tuple[int, int, int, bool]]:
    views = views_of(pairs, n_users, n_pages)
    weights = fit(views, memory_limit=memory_limit)
    return rows(list(recommend(views, weights, seen=columns(seen or []), memory_limit=memory_limit)))


def dense_ease(matrix: csr_array, regularisation: float) -> NDArray[np.float64]:
    x = matrix.toarray().astype(np.float64)
    inverse = np.linalg.inv(x.T @ x + regularisation * np.eye(x.shape[1]))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights


def random_views(seed: int, n_users: int = 400, n_pages: int = 120, n: int = 5000) -> Interactions:
    rng = np.random.default_rng(seed)
    user = rng.integers(0, n_users, n)
    page = (n_pages * rng.random(n) ** 3).astype(np.int64)
    return interactions(user, page, n_users=n_users, n_pages=n_pages)

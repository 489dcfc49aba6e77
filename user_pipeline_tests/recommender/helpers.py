import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse import csr_array

from user_pipeline.recommender.interactions import Interactions, interactions
from user_pipeline.recommender.score import Recommendations, recommend
from user_pipeline.recommender.weights import fit
from user_pipeline_tests.recommender.reference import Histories

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


def ordered_views(past: Histories, n_pages: int) -> Interactions:
    entries = [
        (user, page, recency)
        for user, positions in enumerate(past)
        for recency, pages in enumerate(positions)
        for page in pages
    ]
    user, page, recency = np.array(entries, np.int64).reshape(-1, 3).T
    return interactions(user, page, n_users=len(past), n_pages=n_pages, recency=recency)


def _positions(times: dict[int, int]) -> list[list[int]]:
    """Pages in the order of their times, the last ones first."""
    return [[page for page in times if times[page] == time] for time in sorted(set(times.values()), reverse=True)]


def histories(n_pages: int = 12, most_users: int = 8) -> st.SearchStrategy[Histories]:
    times = st.dictionaries(st.integers(0, n_pages - 1), st.integers(0, 12), max_size=n_pages)
    return st.lists(times.map(_positions), min_size=1, max_size=most_users)


def random_histories(seed: int, n_users: int, n_pages: int, n_times: int = 10_000) -> Histories:
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n_users):
        pages = np.unique((n_pages * rng.random(rng.integers(0, 30)) ** 2).astype(int))
        out.append(_positions(dict(zip(pages.tolist(), rng.integers(0, n_times, len(pages)).tolist(), strict=True))))
    return out

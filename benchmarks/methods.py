"""The methods that are compared: what each chooses from, and how it ranks."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array, csr_matrix, diags_array

from benchmarks.splits import Split
from user_pipeline.recommender.co_views import empty, largest_in_rows
from user_pipeline.recommender.counting import count_co_views
from user_pipeline.recommender.defaults import CANDIDATES, DEFAULT, EASE, MEMORY_LIMIT, Parameters
from user_pipeline.recommender.interactions import Interactions
from user_pipeline.recommender.parallel import single_threaded_blas
from user_pipeline.recommender.score import recommend
from user_pipeline.recommender.weights import fit

RANKED = 20
# What a method chooses: nothing, a number or several.
Parameter: TypeAlias = Any
REGULARISATIONS = [5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]
GRIDS: dict[str, list[Parameter]] = {
    "popularity": [None],
    "recent popularity": [None],
    "trend": [None],
    "item cosine": [20, 100, 500],
    "RP3beta": [0.0, 0.2, 0.4, 0.6, 0.8],
    "implicit cosine": [20, 100, 500],
    "implicit TF-IDF": [20, 100, 500],
    "implicit BM25": [(k, k1, b) for k in (20, 100, 500) for k1, b in ((1.2, 0.75), (100.0, 0.5))],
    "implicit ALS": [(f, alpha, r) for f in (32, 128) for alpha in (10.0, 40.0) for r in (0.01, 100.0, 300.0, 1000.0)],
    "EASE^R 20": [20.0],
    "dense EASE^R": REGULARISATIONS,
    "SLIST": [(alpha, r) for alpha in (0.2, 0.5, 0.8) for r in (10.0, 100.0)],
    "ours, defaults": [None],
    "ours": [None],
}
PARAMETERS = {
    "item cosine": "neighbours",
    "RP3beta": "beta",
    "implicit cosine": "K",
    "implicit TF-IDF": "K",
    "implicit BM25": "K, K1, B",
    "implicit ALS": "factors, alpha, regularization",
    "dense EASE^R": "regularisation",
    "SLIST": "alpha, regularisation",
}
IN_TIME = ("recent popularity", "trend", "SLIST")
"""Methods that need times."""
DENSE = ("EASE^R 20", "dense EASE^R", "SLIST")
"""Methods that work in 24 bytes x pages^2."""

Scores = Callable[[NDArray[np.int64]], NDArray[np.floating[Any]]]
Pages = NDArray[np.int64]


def candidates(split: Split) -> tuple[Sequence[Parameters], Parameters]:
    """What ours chooses from by this split, and its default."""
    if split.discoveries is not None:
        return CANDIDATES, DEFAULT
    return [Parameters(value) for value in REGULARISATIONS], replace(EASE, regularisation=DEFAULT.regularisation)


def ranked(method: str, parameter: Parameter, split: Split, users: NDArray[np.int64]) -> Pages:
    """Train a method and rank: users x RANKED page codes, -1 where it has none."""
    views = split.train
    if method.startswith("ours"):
        return ours(parameter, split, users)
    if method.startswith("implicit"):
        return _without(_implicit(method, parameter, views, users), split, users)
    models: dict[str, Callable[[Split, Any], Scores]] = {
        "popularity": _popularity,
        "recent popularity": _recent,
        "trend": _trend,
        "item cosine": _cosine,
        "RP3beta": _rp3beta,
        "EASE^R 20": _ease,
        "dense EASE^R": _ease,
        "SLIST": _slist,
    }
    scores = models[method](split, parameter)
    earlier = _earlier(split)
    parts = []
    step = max(1, 2**25 // views.matrix.shape[1])
    for start in range(0, len(users), step):
        some = users[start : start + step]
        found = scores(some) + 1e-9 * views.popularity / views.popularity.max()
        found[views.matrix[some].nonzero()] = -np.inf
        found[earlier[some].nonzero()] = -np.inf
        best = np.argsort(-found, axis=1, kind="stable")[:, :RANKED] if found.shape[1] < 1000 else _top(found)
        pages = np.where(np.isneginf(np.take_along_axis(found, best, 1)), -1, views.pages[best])
        parts.append(np.pad(pages, ((0, 0), (0, RANKED - pages.shape[1])), constant_values=-1))
    return np.concatenate(parts)


def ours(parameters: Parameters, split: Split, users: NDArray[np.int64], neighbours: int | None = None) -> Pages:
    """The same by this package."""
    weights = fit(split.train, parameters, neighbours=neighbours)
    seen = None
    if split.seen is not None:
        row = np.full(split.train.matrix.shape[0], -1)
        row[users] = np.arange(len(users))
        chosen = row[split.seen[0]] >= 0
        seen = row[split.seen[0][chosen]], split.seen[1][chosen]
    out = np.full((len(users), RANKED), -1)
    parts = recommend(
        split.train.of(users),
        weights,
        parameters,
        discoveries=split.discoveries,
        seen=seen,
        top_n=RANKED,
        everyone=True,
    )
    for part in parts:
        out[part.user, part.rank - 1] = part.page
    return out


def _earlier(split: Split) -> csr_array:
    """What was seen before what is learned from, users x columns."""
    shape = split.train.matrix.shape
    if split.seen is None:
        return empty(shape).astype(np.int8)
    column = split.train.columns_of(split.seen[1])
    known = column >= 0
    return csr_array((np.ones(np.count_nonzero(known), np.int8), (split.seen[0][known], column[known])), shape=shape)


def _without(pages: Pages, split: Split, users: NDArray[np.int64]) -> Pages:
    """Rankings without what was seen before."""
    if split.seen is None:
        return pages
    n_pages = split.held_out.shape[1]
    keys = users[:, None] * n_pages + pages
    wrong = np.isin(keys, split.seen[0] * n_pages + split.seen[1]) | (pages < 0)
    order = np.argsort(wrong, axis=1, kind="stable")
    return np.where(np.take_along_axis(wrong, order, 1), -1, np.take_along_axis(pages, order, 1))


def _top(scores: NDArray[np.floating[Any]]) -> NDArray[np.intp]:
    best = np.argpartition(-scores, RANKED, axis=1)[:, :RANKED]
    return np.take_along_axis(best, np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable"), 1)


def _popularity(split: Split, _: None) -> Scores:
    return lambda users: np.tile(split.train.popularity.astype(np.float64), (len(users), 1))


def _recent(split: Split, _: None) -> Scores:
    assert split.recent is not None  # noqa: S101 - there are times
    most = split.recent[split.train.pages].astype(np.float64)
    return lambda users: np.tile(most, (len(users), 1))


def _trend(split: Split, _: None) -> Scores:
    assert split.discoveries is not None  # noqa: S101 - there are times
    most = split.discoveries[split.train.pages].astype(np.float64)
    return lambda users: np.tile(most, (len(users), 1))


def _history(split: Split, users: NDArray[np.int64]) -> csr_array:
    return split.train.matrix[users].astype(np.float64)


def _cosine(split: Split, neighbours: int) -> Scores:
    views = split.train
    co_views = count_co_views(views, memory_limit=MEMORY_LIMIT)
    n, norm = co_views.n, np.sqrt(co_views.diagonal)
    near, pages = [], []
    for start in range(0, n, co_views.block):
        stop = min(start + co_views.block, n)
        cosine = co_views.rows(start, stop) / norm / norm[start:stop, None]
        cosine[np.arange(stop - start), np.arange(start, stop)] = -1
        # A stable sort: of equally near pages the more popular come first.
        pages.append(np.argsort(-cosine, axis=1, kind="stable")[:, : min(neighbours, n - 1)])
        near.append(np.take_along_axis(cosine, pages[-1], axis=1))
    ends = np.arange(n + 1) * min(neighbours, n - 1)
    values, rows = np.concatenate(near).ravel(), np.concatenate(pages).ravel()
    similar = csc_array((values, rows, ends), shape=(n, n)).tocsr()
    return lambda users: (_history(split, users) @ similar).toarray()


def _rp3beta(split: Split, beta: float) -> Scores:
    """Paudel et al., "Updatable, accurate, diverse, and scalable recommendations", TiiS 2017; three steps."""
    x = split.train.matrix.astype(np.float64)
    user_degree, page_degree = x.sum(axis=1), x.sum(axis=0)
    to_page = diags_array(1 / np.maximum(user_degree, 1e-12)) @ x
    walk = diags_array(1 / page_degree) @ (x.T @ to_page) @ diags_array(page_degree**-beta)
    walk = largest_in_rows(csr_array(walk), 2000)
    return lambda users: (_history(split, users) @ walk).toarray()


def _ease(split: Split, regularisation: float) -> Scores:
    """Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019."""
    x = split.train.matrix.astype(np.float64)
    # A factorisation of this size over two BLAS threads was seen to crash.
    with single_threaded_blas():
        inverse = np.linalg.inv((x.T @ x).toarray() + regularisation * np.eye(x.shape[1]))
    inverse /= -np.diag(inverse)
    np.fill_diagonal(inverse, 0)
    return lambda users: _history(split, users) @ inverse


def _slist(split: Split, parameter: tuple[float, float], *, longest: int = 30, decay: float = 1.0) -> Scores:
    """Choi et al., "Session-aware Linear Item-Item Models for Session-based Recommendation", WWW 2021.

    A user is a session, of pages in the order of their last view. ``alpha`` weighs pages of a session in any order
    against what comes after each part of it, where pages count ``e^-(distance / decay)``, as they do in scores.
    """
    alpha, regularisation = parameter
    views = split.train
    n = len(views.pages)
    order = views.latest_first
    assert order is not None  # noqa: S101 - there are times
    x = views.matrix.astype(np.float64)
    inside, onward = (x.T @ x).toarray(), np.zeros((n, n))
    within = np.zeros((n, n))
    weigh = np.exp(-np.arange(longest) / decay)
    # Latest first: what stands before a cut came after what stands behind it.
    rows_past, rows_next, count = _Triples(), _Triples(), 0
    for user in range(x.shape[0]):
        pages = order.indices[order.indptr[user] : order.indptr[user + 1]][:longest]
        for cut in range(1, len(pages)):
            rows_past.add(count, pages[cut:], weigh[: len(pages) - cut])
            rows_next.add(count, pages[:cut][::-1], weigh[:cut])
            count += 1
        if count > 50_000:
            past, following = rows_past.matrix(count, n), rows_next.matrix(count, n)
            within, onward = within + past.T @ past, onward + past.T @ following
            rows_past, rows_next, count = _Triples(), _Triples(), 0
    past, following = rows_past.matrix(count, n), rows_next.matrix(count, n)
    within, onward = np.asarray(within + past.T @ past), np.asarray(onward + past.T @ following)
    with single_threaded_blas():
        inverse = np.linalg.inv(alpha * inside + (1 - alpha) * within + regularisation * np.eye(n))
        weights = inverse @ (alpha * inside + (1 - alpha) * onward)
    weights -= inverse * (np.diag(weights) / np.diag(inverse))

    def scores(users: NDArray[np.int64]) -> NDArray[np.floating[Any]]:
        some = order[users]
        rank = np.arange(some.nnz) - np.repeat(some.indptr[:-1], np.diff(some.indptr))
        history = csr_array((np.exp(-rank / decay), some.indices, some.indptr), shape=some.shape)
        found: NDArray[np.floating[Any]] = history @ weights
        return found

    return scores


class _Triples:
    """The entries of a sparse matrix, some at a time."""

    def __init__(self) -> None:
        self._parts: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = []

    def add(self, row: int, columns: NDArray[Any], values: NDArray[Any]) -> None:
        self._parts.append((np.full(len(columns), row), columns, values))

    def matrix(self, n_rows: int, n_columns: int) -> csr_array:
        if not self._parts:
            return csr_array((n_rows, n_columns))
        row, column, value = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        return csr_array((value, (row, column)), shape=(n_rows, n_columns))


def _implicit(method: str, parameter: Parameter, views: Interactions, users: NDArray[np.int64]) -> Pages:
    from implicit.als import AlternatingLeastSquares
    from implicit.nearest_neighbours import BM25Recommender, CosineRecommender, TFIDFRecommender

    x = csr_matrix(views.matrix.astype(np.float32))
    if method != "implicit ALS":
        if method == "implicit BM25":
            k, k1, b = parameter
            model = BM25Recommender(K=k, K1=k1, B=b)
        else:
            model = {"implicit cosine": CosineRecommender, "implicit TF-IDF": TFIDFRecommender}[method](K=parameter)
        model.fit(x, show_progress=False)
    else:
        factors, alpha, regularization = parameter
        model = AlternatingLeastSquares(factors, alpha=alpha, regularization=regularization, random_state=0)
        with single_threaded_blas():
            model.fit(x, show_progress=False)
    # Its item models return pages the user has seen where nothing else scores; they are dropped here.
    ask = min(RANKED + 10, x.shape[1])
    columns, scores = model.recommend(users, x[users], N=ask, filter_already_liked_items=True)
    out = np.full((len(users), RANKED), -1)
    seen = x[users]
    for i, (line, score) in enumerate(zip(columns, scores, strict=True)):
        history = seen.indices[seen.indptr[i] : seen.indptr[i + 1]]
        good = line[(line >= 0) & np.isfinite(score) & (score > -1e30) & ~np.isin(line, history)][:RANKED]
        out[i, : len(good)] = views.pages[good]
    return out

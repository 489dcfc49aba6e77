import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse import csr_array

from user_pipeline.recommender import co_views as co_views_module
from user_pipeline.recommender import counting, predictors
from user_pipeline.recommender.co_views import CoViews, largest_in_rows
from user_pipeline.recommender.counting import count_co_views
from user_pipeline.recommender.defaults import NEIGHBOURS
from user_pipeline.recommender.interactions import Interactions, interactions
from user_pipeline.recommender.predictors import find_predictors
from user_pipeline.recommender.solve import LEAST, Nearest, solve
from user_pipeline.recommender.weights import fit
from user_pipeline_tests.recommender.helpers import dense_ease, random_views, views_of


def nearest_pages(co_views: CoViews, neighbours: int) -> Nearest:
    return predictors._ascending(predictors._ranked(co_views, neighbours, n_threads=None))


def test_two_pages_by_hand() -> None:
    # Page 0 has 3 viewers, page 1 has 2, both of whom viewed page 0: b = 2 / (3 + r) and 2 / (2 + r).
    views = views_of([(0, 0), (1, 0), (2, 0), (0, 1), (1, 1)], 3, 2)

    weights = fit(views, regularisation=1.0).toarray()

    assert weights == pytest.approx(np.array([[0, 2 / 4], [2 / 3, 0]]), abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("regularisation", [0.5, 20.0, 500.0])
def test_with_all_pages_as_neighbours_it_is_dense_ease(seed: int, regularisation: float) -> None:
    views = random_views(seed)

    weights = fit(views, neighbours=10_000, regularisation=regularisation)

    assert weights.toarray() == pytest.approx(dense_ease(views.matrix, regularisation), abs=1e-6)


def test_each_column_solves_the_ridge_regression_on_its_predictors() -> None:
    views = random_views(7)
    x = views.matrix.toarray().astype(np.float64)
    gram = x.T @ x
    predictors = find_predictors(count_co_views(views, memory_limit=2**30), 10, 20.0)
    assert predictors is not None
    expected = np.zeros_like(gram)
    for page, (some, size) in enumerate(zip(predictors.pages, predictors.size, strict=True)):
        near = some[:size]
        system = gram[np.ix_(near, near)] + 20 * np.eye(size)
        expected[near, page] = np.linalg.solve(system, gram[near, page])

    weights = fit(views, neighbours=10, regularisation=20.0).toarray()

    kept = weights != 0
    assert np.abs(weights[kept]).min() >= LEAST
    assert kept.sum(axis=0).max() <= 10
    assert kept.sum(axis=1).max() <= 20
    assert weights[kept] == pytest.approx(expected[kept], abs=1e-6)


def test_neighbours_are_the_nearest_by_cosine_and_of_equals_the_more_popular() -> None:
    views = random_views(3, n_users=30, n_pages=200, n=400)
    x = views.matrix.toarray().astype(np.float32)
    expected = np.sort(np.argsort(-_cosine(views), axis=1, kind="stable")[:, :9], axis=1)

    nearest = nearest_pages(count_co_views(views, memory_limit=2**30), 9)

    assert np.array_equal(nearest.pages, expected)
    assert np.array_equal(nearest.co_views, np.take_along_axis(x.T @ x, expected, 1))


@pytest.mark.parametrize("memory_limit", [2**30, 2**18, 30_000])
def test_co_views_are_the_same_however_little_memory(memory_limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "largest_in_rows", lambda matrix, _: matrix)
    monkeypatch.setattr(counting, "PIECE", 64)
    rng = np.random.default_rng(0)
    user, page = rng.integers(0, 300, 6000), (200 * rng.random(6000) ** 3).astype(int)
    views = interactions(user, page, n_users=300, n_pages=200)
    x = views.matrix.toarray().astype(np.float64)
    groups = np.sort([rng.permutation(x.shape[1])[:20] for _ in range(30)], axis=1).astype(np.int32)

    co_views = count_co_views(views, memory_limit=memory_limit)

    assert (co_views.n_head < co_views.n) == (memory_limit == 30_000)
    assert co_views.among(groups) == pytest.approx(np.stack([(x.T @ x)[np.ix_(g, g)] for g in groups]), rel=1e-5)
    whole = [co_views.rows(s, min(s + co_views.block, co_views.n)) for s in range(0, co_views.n, co_views.block)]
    assert np.concatenate(whole) == pytest.approx(x.T @ x, rel=1e-5)


def test_counts_too_large_for_two_bytes_are_exact() -> None:
    rng = np.random.default_rng(0)
    viewed = rng.random((150_000, 6)) < [0.95, 0.9, 0.8, 0.47, 0.4, 0.01]
    user, page = np.nonzero(viewed)
    views = interactions(user, page, n_users=len(viewed), n_pages=6)
    x = views.matrix.toarray().astype(np.float64)

    co_views = count_co_views(views, memory_limit=2**30)

    assert len(co_views.corner) == 4
    assert np.array_equal(co_views.rows(0, 6), x.T @ x)
    assert np.array_equal(co_views.among(np.arange(6, dtype=np.int32)[None])[0], x.T @ x)


def test_a_tail_over_the_limit_keeps_the_largest_counts() -> None:
    views = random_views(1, n_users=200, n_pages=700, n=20_000)

    limited = count_co_views(views, memory_limit=300_000)

    assert 0 < limited.n_head < limited.n
    assert 8 * limited.tail.nnz <= 300_000 * 3 // 10
    assert fit(views, memory_limit=300_000).nnz > 0


def test_the_largest_in_rows_are_largest_in_size_and_of_equals_the_first() -> None:
    matrix = random_views(0).matrix[:0].copy()
    assert largest_in_rows(matrix, 3).shape == matrix.shape
    views = views_of([(0, 0), (0, 1), (0, 2), (1, 1), (2, 0), (2, 1), (2, 2)], 3, 3)
    values = views.matrix.astype(np.float32)
    values.data[:] = [1, -5, 1, 9, 2, 2, 2]

    assert largest_in_rows(values, 2).toarray().tolist() == [[1, -5, 0], [9, 0, 0], [2, 2, 0]]


@pytest.mark.parametrize("neighbours", [None, 100])
def test_the_number_of_threads_does_not_show(neighbours: int | None) -> None:
    views = random_views(2, n_users=2000, n_pages=600, n=60_000)

    one, three = (fit(views, neighbours=neighbours, n_threads=n) for n in (1, 3))

    assert one.data.tobytes() == three.data.tobytes()
    assert one.indices.tobytes() == three.indices.tobytes()


def test_one_page_and_no_page_have_no_weights() -> None:
    assert fit(views_of([(0, 0)], 1, 1)).toarray().tolist() == [[0]]
    assert fit(views_of([], 1, 1)).shape == (0, 0)


def sequences(n_users: int, n_pages: int) -> Interactions:
    """Sessions in which each page leads to one of five others, the first of them most often."""
    rng = np.random.default_rng(0)
    following = rng.integers(0, n_pages, (n_pages, 5))
    here, pages = (n_pages * rng.random(n_users) ** 2).astype(int), []
    for _ in range(9):
        pages.append(here)
        here = following[here, np.minimum(rng.geometric(0.45, n_users) - 1, 4)]
    return interactions(np.tile(np.arange(n_users), 9), np.concatenate(pages), n_users=n_users, n_pages=n_pages)


def error(views: Interactions, weights: csr_array) -> float:
    """The objective that is minimized."""
    x = views.matrix.astype(np.float64)
    return float(((x - x @ weights).toarray() ** 2).sum() + 20 * (weights.astype(np.float64) ** 2).sum())


@pytest.mark.parametrize("neighbours", [100, NEIGHBOURS])
def test_predictors_explain_sequences_better_than_the_nearest_alone(neighbours: int) -> None:
    views = sequences(6000, 600)
    co_views = count_co_views(views, memory_limit=2**30)
    predictors = find_predictors(co_views, neighbours, 20.0)
    assert predictors is not None
    nearest = nearest_pages(co_views, neighbours)
    chosen, near, every = (error(views, solve(co_views, which, 20.0)) for which in (predictors, nearest, None))
    assert every < chosen < near
    assert chosen - every < 0.6 * (near - every)
    gram = (views.matrix.T.astype(np.float64) @ views.matrix).toarray()
    closest = nearest_pages(co_views, neighbours // 5).pages
    assert (predictors.size == neighbours).sum() > 500
    for page, (some, counts, size) in enumerate(zip(*predictors, strict=True)):
        pages = some[:size]
        # A page never predicts itself, nor another twice; a fifth of the predictors are the nearest.
        assert page not in pages
        assert (np.diff(pages) > 0).all()
        assert set(closest[page]) <= set(pages)
        assert np.array_equal(counts[:size], gram[page, pages])


def test_where_few_are_overrated_the_next_nearest_complete_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    views = random_views(3, n_users=300, n_pages=200, n=900)
    co_views = count_co_views(views, memory_limit=2**30)
    monkeypatch.setattr(predictors, "STEP", 1)
    alone = find_predictors(co_views, 100, 20.0)
    monkeypatch.setattr(predictors, "STEP", 15)
    completed = find_predictors(co_views, 100, 20.0)
    assert alone is not None
    assert completed is not None
    ranked = np.argsort(-_cosine(views), axis=1, kind="stable")
    assert len(np.unique(alone.size)) > 5
    assert set(completed.size) <= {20, 35, 50, 65, 80, 95, 100}
    for page, near in enumerate(ranked):
        few, more = (set(found.pages[page, : found.size[page]]) for found in (alone, completed))
        others = [other for other in near if other not in few]
        assert more == few | set(others[: len(more) - len(few)])


def _cosine(views: Interactions) -> NDArray[np.float32]:
    x = views.matrix.toarray().astype(np.float32)
    gram = x.T @ x
    cosine = gram * (1 / np.sqrt(np.diag(gram))).astype(np.float32)
    np.fill_diagonal(cosine, -1)
    return cosine


def test_a_catalogue_without_overrated_pages_is_predicted_from_the_nearest() -> None:
    # Three pages nobody views together: nothing is predicted, rightly or wrongly.
    views = views_of([(0, 0), (1, 1), (2, 2), (3, 3), (4, 0)], 5, 4)
    predictors = find_predictors(count_co_views(views, memory_limit=2**30), 2, 1.0)
    assert predictors is not None
    assert predictors.size.tolist() == [1, 1, 1, 1]
    assert predictors.pages[:, 0].tolist() == [1, 0, 0, 0]
    assert not predictors.co_views[:, 0].any()


def test_all_pages_predict_each_in_a_small_catalogue_if_there_is_memory() -> None:
    views = random_views(2, n_users=3000, n_pages=400, n=40_000)
    co_views = count_co_views(views, memory_limit=2**30)
    assert find_predictors(co_views, None, 20.0) is None
    assert fit(views).toarray() != pytest.approx(fit(views, neighbours=100).toarray(), abs=1e-6)
    little = find_predictors(co_views, None, 20.0, memory_limit=8 * 400**2)
    assert little is not None
    assert little.pages.shape == (400, NEIGHBOURS)
    # Of a row the largest are kept.
    expected = dense_ease(views.matrix, 20.0)
    weights = fit(views).toarray()
    kept = weights != 0
    assert kept.sum(axis=1).max() <= 300
    assert weights[kept] == pytest.approx(expected[kept], abs=1e-6)
    for row, stays in zip(expected, kept, strict=True):
        assert np.abs(row[~stays]).max() <= max(LEAST, np.abs(row[stays]).min()) + 1e-6


@pytest.mark.parametrize("memory_limit", [2**30, 2**18])
def test_pairs_of_pages_are_found_wherever_they_are_kept(memory_limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(co_views_module, "WIDEST", 100)
    views = random_views(4, n_pages=300)
    gram = (views.matrix.T.astype(np.float64) @ views.matrix).toarray()
    one, other = np.triu_indices(views.matrix.shape[1], 1)
    counts = count_co_views(views, memory_limit=memory_limit)
    assert np.array_equal(counts.between(other.astype(np.int32), one.astype(np.int32)), gram[one, other])

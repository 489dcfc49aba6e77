from dataclasses import replace
from math import exp
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse import csr_array

from user_pipeline.recommender import predictors, score
from user_pipeline.recommender.counting import count_co_views
from user_pipeline.recommender.defaults import EASE, Parameters
from user_pipeline.recommender.histories import _sketch_of, _spread
from user_pipeline.recommender.interactions import Interactions
from user_pipeline.recommender.order import EARLIER, Order, weigh_by_distance
from user_pipeline.recommender.predictors import find_predictors
from user_pipeline.recommender.weights import fit
from user_pipeline_tests.recommender.helpers import (
    dense_ease,
    histories,
    ordered_views,
    random_histories,
    random_views,
    rows,
)
from user_pipeline_tests.recommender.reference import Histories, Matrix, dense_weights, family, scores

N_PAGES = 12
parameters = st.builds(
    Parameters,
    regularisation=st.sampled_from([1.0, 20.0]),
    long_range=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    direction=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    trend=st.sampled_from([0.0, 0.1, 1.0]),
)


def by_column(matrix: Matrix, views: Interactions) -> Matrix:
    return matrix[np.ix_(views.pages, views.pages)]


def by_code(weights: Matrix, views: Interactions, n_pages: int) -> Matrix:
    out = np.zeros((n_pages, n_pages))
    out[np.ix_(views.pages, views.pages)] = weights
    return out


def expected_weights(past: Histories, views: Interactions, chosen: Parameters, n_pages: int) -> Matrix:
    g, a = (by_column(matrix, views) for matrix in family(past, n_pages, chosen.long_range))
    return dense_weights(g, a, chosen.regularisation, chosen.direction)


def test_three_users_by_hand() -> None:
    # The first viewed 0, 1, 2; the second 0, 2; the third 0 and 1 at once, then 2.
    views = ordered_views([[[2], [1], [0]], [[2], [0]], [[2], [0, 1]]], 3)
    chosen = Parameters(regularisation=2.0, long_range=0.25, direction=0.5)
    e01, e10, e02, e12 = exp(-1) + 1 / 2, 1 / 2, exp(-2) + 2 * exp(-1), 2 * exp(-1)
    g01, g02, g12 = 0.25 * 2 + 0.75 * (e01 + e10), 0.25 * 3 + 0.75 * e02, 0.25 * 2 + 0.75 * e12
    g = np.array([[3, g01, g02], [g01, 2, g12], [g02, g12, 3]])
    a01, a02, a12 = 0.75 * (e01 - e10), 0.75 * e02, 0.75 * e12
    r = g + 0.5 * np.array([[0, a01, a02], [-a01, 0, a12], [-a02, -a12, 0]])
    # Each page's two weights solve a system of two.
    b = np.zeros((3, 3))
    for page, others in enumerate([[1, 2], [0, 2], [0, 1]]):
        b[others, page] = np.linalg.solve(g[np.ix_(others, others)] + 2 * np.eye(2), r[others, page])

    weights = fit(views, chosen)

    assert views.pages.tolist() == [0, 2, 1]
    assert by_code(weights.toarray(), views, 3) == pytest.approx(b, abs=1e-6)
    # The second user viewed page 2 last and page 0 before it: page 1 is left, and has a positive score.
    last, before = 0.25 + 0.75 * exp(-1), 0.25 + 0.75 * exp(-2)
    assert last * b[2, 1] + before * b[0, 1] > 0
    assert rows(list(score.recommend(views, weights, chosen))) == [(1, 1, 1, False)]


def test_what_was_viewed_last_counts_most_and_a_trend_adds_to_it() -> None:
    # Page 0 speaks for 2, page 1 for 3, both for 4. One user viewed 1 after 0, another 0 after 1, a third both at once.
    past = [[[1], [0]], [[0], [1]], [[0, 1]], [[2]], [[3]], [[4]], [[5]]]
    views = ordered_views(past, 6)
    assert views.pages.tolist() == [0, 1, 2, 3, 4, 5]
    weights = np.zeros((6, 6), np.float32)
    weights[0, 2] = weights[1, 3] = 0.5
    weights[[0, 1], 4] = 0.21875
    learned = csr_array(weights)

    def pages(user: int, chosen: Parameters, discoveries: list[int] | None = None) -> list[int]:
        found = None if discoveries is None else np.array(discoveries)
        out = score.recommend(views, learned, chosen, discoveries=found)
        return [page for who, page, _, is_fallback in rows(list(out)) if who == user and not is_fallback]

    assert pages(0, EASE) == [2, 3, 4]
    # With k(1) = e^-1 and k(2) = e^-2 page 4 has 0.21875 (e^-1 + e^-2), more than 0.5 e^-2 and less than 0.5 e^-1.
    ordered = Parameters(long_range=0)
    assert [pages(user, ordered) for user in (0, 1, 2)] == [[3, 4, 2], [2, 4, 3], [2, 3, 4]]
    # All of the user's scores: 0, 0, 0.5 twice, 0.4375, 0.
    spread = np.std([0, 0, 0.5, 0.5, 0.4375, 0])
    enough = float((0.5 - 0.4375) / spread / 10)
    assert pages(2, Parameters(trend=1.01 * enough), [0, 0, 0, 0, 7, 0]) == [4, 2, 3]
    assert pages(2, Parameters(trend=0.99 * enough), [0, 0, 0, 0, 7, 0]) == [2, 3, 4]
    # Half of the largest number adds half; the pages seen are not recommended for any trend.
    assert pages(2, Parameters(trend=2.02 * enough), [14, 0, 0, 0, 7, 0]) == [4, 2, 3]
    # Who has no scores is served by the trend alone, and by popularity where there is none.
    assert pages(3, Parameters(trend=0.1), [0, 0, 9, 3, 1, 2]) == [3, 5, 4]
    assert pages(3, Parameters(trend=0.1), [0, 0, 0, 0, 0, 0]) == []


@settings(max_examples=200, deadline=None)
@given(histories(N_PAGES), parameters)
def test_weights_are_those_of_the_definition(past: Histories, chosen: Parameters) -> None:
    views = ordered_views(past, N_PAGES)

    weights = fit(views, chosen)

    if len(views.pages):
        expected = expected_weights(past, views, chosen, N_PAGES)
        assert weights.toarray() == pytest.approx(expected, abs=2e-6)


@settings(max_examples=200, deadline=None)
@given(histories(N_PAGES), parameters, st.lists(st.integers(0, 9), min_size=N_PAGES, max_size=N_PAGES))
def test_users_get_the_pages_with_the_best_positive_scores(
    past: Histories, chosen: Parameters, discoveries: list[int]
) -> None:
    views = ordered_views(past, N_PAGES)
    weights = fit(views, chosen)
    found = np.array(discoveries)

    out = rows(list(score.recommend(views, weights, chosen, discoveries=found, top_n=5)))

    # Pages nobody viewed have neither scores nor a trend.
    learned = weights.toarray().astype(np.float64)
    trend = found[views.pages] * 10 / (found[views.pages].max(initial=0) or 1)
    column = {page: place for place, page in enumerate(views.pages.tolist())}
    for user, positions in enumerate(past):
        history = [[column[page] for page in pages] for pages in positions]
        seen = [page for pages in history for page in pages]
        if not seen:
            continue
        total = scores(history, learned, chosen.long_range, chosen.trend, trend)
        total[seen] = -np.inf
        best = np.sort(total[total > 1e-5])[::-1][:5]
        got = [column[page] for who, page, _, is_fallback in out if who == user and not is_fallback]
        assert total[got][: len(best)] == pytest.approx(best, rel=1e-5, abs=1e-5)
        assert len(got) == len(best) or len(got) == 5 or total[got[len(best) :]].max() < 1e-4
        rest = [column[page] for who, page, _, is_fallback in out if who == user and is_fallback]
        assert rest == [page for page in range(len(total)) if page not in seen + got][: 5 - len(got)]


@pytest.mark.parametrize("neighbours", [None, 100])
def test_in_any_order_it_is_ease_to_the_byte(neighbours: int | None) -> None:
    views = ordered_views(random_histories(0, n_users=900, n_pages=200), 200)
    forgotten = replace(views, latest_first=None)
    plain = fit(forgotten, neighbours=neighbours, regularisation=50.0)

    for direction in (0.0, 1.0):
        chosen = Parameters(regularisation=50.0, direction=direction)
        weights = fit(views, chosen, neighbours=neighbours)
        assert weights.data.tobytes() == plain.data.tobytes()
        assert weights.indices.tobytes() == plain.indices.tobytes()
        assert rows(list(score.recommend(views, weights, chosen))) == rows(list(score.recommend(forgotten, plain)))
    if neighbours is None:
        assert plain.toarray() == pytest.approx(dense_ease(views.matrix, 50.0), abs=1e-6)


@pytest.mark.parametrize("direction", [0.0, 1.0])
def test_the_ordered_models_end_in_ease(direction: float) -> None:
    views = ordered_views(random_histories(0, n_users=900, n_pages=200), 200)

    weights = fit(views, Parameters(regularisation=50.0, long_range=1 - 1e-9, direction=direction))

    assert weights.toarray() == pytest.approx(dense_ease(views.matrix, 50.0), abs=2e-6)


@pytest.mark.parametrize("chosen", [Parameters(20, 0.3, 0.7), Parameters(20, 0, 1), Parameters(5, 0.9, 2)])
@pytest.mark.parametrize("n_times", [5, 10_000])
def test_in_a_large_catalogue_each_page_is_predicted_from_those_that_say_most(chosen: Parameters, n_times: int) -> None:
    past = random_histories(2, n_users=400, n_pages=150, n_times=n_times)
    views = ordered_views(past, 150)
    g, a = (by_column(matrix, views) for matrix in family(past, 150, chosen.long_range))
    r = g + chosen.direction * a
    sign = np.maximum(r / np.sqrt(np.outer(np.diag(g), np.diag(g))), 0)
    np.fill_diagonal(sign, -1)
    counts = count_co_views(views, memory_limit=2**30, cell=np.float32)
    order = Order.of(views)
    co_views = weigh_by_distance(counts, order, chosen.long_range, memory_limit=2**30)
    factor = chosen.direction * (1 - chosen.long_range)

    def lead(start: int, stop: int) -> NDArray[np.float64]:
        return order.rows(start, stop, factor * EARLIER)

    found = find_predictors(co_views, 40, chosen.regularisation, is_ordered=True, lead=lead)
    weights = fit(views, chosen, neighbours=40).toarray()

    assert found is not None
    assert set(found.size) <= {15, 30, 40}
    for page, size in enumerate(found.size):
        near = found.pages[page, :size]
        others = np.delete(np.arange(150), near)
        assert (np.diff(near) > 0).all()
        assert sign[near, page].min() >= sign[others, page].max() - 1e-6
        # What is left out is far less near than the nearest; if there is any such, it fills a step at most.
        strong = np.count_nonzero(sign[:, page] >= 0.1 * sign[:, page].max())
        assert size == min(40, -(-strong // 15) * 15)
        expected = np.zeros(150)
        system = g[np.ix_(near, near)] + chosen.regularisation * np.eye(size)
        expected[near] = np.linalg.solve(system, r[near, page])
        kept = weights[:, page] != 0
        assert kept.sum() > 10
        assert weights[kept, page] == pytest.approx(expected[kept], abs=2e-6)


def test_predicted_from_all_pages_without_an_inverse_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    views = ordered_views(random_histories(3, n_users=300, n_pages=60), 60)
    chosen = Parameters(20, 0.3, 0.7)
    inverted = fit(views, chosen).toarray()

    monkeypatch.setattr(predictors, "DENSE_PAGES", 10)

    assert fit(views, chosen).toarray() == pytest.approx(inverted, abs=3e-6)


@settings(max_examples=100, deadline=None)
@given(histories(N_PAGES), parameters, st.randoms(use_true_random=False))
def test_names_of_users_and_pages_do_not_matter(past: Histories, chosen: Parameters, random: Random) -> None:
    users, pages = list(range(len(past))), list(range(N_PAGES))
    random.shuffle(users)
    random.shuffle(pages)
    renamed = [[[pages[page] for page in position] for position in past[user]] for user in users]
    views, other = ordered_views(past, N_PAGES), ordered_views(renamed, N_PAGES)

    weights = by_code(fit(views, chosen).toarray(), views, N_PAGES)
    others = by_code(fit(other, chosen).toarray(), other, N_PAGES)

    assert others[np.ix_(pages, pages)] == pytest.approx(weights, abs=3e-6)


def test_of_many_pages_the_deviation_of_scores_is_estimated_closely() -> None:
    views = ordered_views(random_histories(6, n_users=300, n_pages=900), 900)
    weights = fit(views, regularisation=5.0)
    matrix = weights.astype(np.float64)
    expected = (views.matrix.astype(np.float64) @ matrix).toarray().std(axis=1)
    has_scores = expected > 0

    estimated = _spread(views.matrix.astype(np.float64) @ _sketch_of(matrix), len(views.pages))

    ratio = estimated[has_scores] / expected[has_scores]
    assert has_scores.sum() > 250
    assert np.abs(ratio - 1).max() < 0.3
    assert ratio.mean() == pytest.approx(1, abs=0.02)
    assert ratio.std() < 0.06
    assert (estimated[~has_scores] == 1).all()


def test_pages_hardly_discovered_have_no_trend() -> None:
    views = ordered_views([[[0]], [[1]], [[2]], [[3]]], 4)
    nothing = csr_array(np.zeros((4, 4), np.float32))

    out = rows(list(score.recommend(views, nothing, Parameters(trend=1.0), discoveries=np.array([1, 999, 9, 10]))))

    # 10 is a hundredth of 999 or more, 9 and 1 are not: these follow by popularity.
    assert [row[1:] for row in out if row[0] == 1] == [(3, 1, False), (0, 2, True), (2, 3, True)]
    assert [row[1:] for row in out if row[0] == 0] == [(1, 1, False), (3, 2, False), (2, 3, True)]


def test_pages_seen_before_are_not_recommended_for_any_order_or_trend() -> None:
    views = ordered_views(random_histories(7, n_users=200, n_pages=40), 40)
    chosen = Parameters(20, 0.0, 1.0, 1000.0)
    user, page = np.repeat(np.arange(200), 20), np.tile(np.arange(0, 40, 2), 200)

    weights = fit(views, chosen)
    out = rows(list(score.recommend(views, weights, chosen, discoveries=np.arange(40), seen=(user, page), top_n=50)))

    now = views.matrix.toarray()[:, views.columns_of(np.arange(40))].astype(bool)
    got = np.zeros((200, 40), bool)
    for who, what, _, _ in out:
        got[who, what] = True
    unseen = ~now & (np.arange(40) % 2 == 1)
    unseen[np.diff(views.matrix.indptr) == 0] = False
    assert np.array_equal(got, unseen)


@pytest.mark.parametrize("neighbours", [None, 100])
@pytest.mark.parametrize("memory_limit", [2**30, 600_000])
def test_the_number_of_threads_does_not_show_in_a_byte(neighbours: int | None, memory_limit: int) -> None:
    views = ordered_views(random_histories(4, n_users=1500, n_pages=600), 600)
    chosen = Parameters(20, 0.3, 0.7, 0.2)
    discoveries = np.arange(600) % 17

    made = []
    for n_threads in (1, 2, 5):
        weights = fit(views, chosen, neighbours=neighbours, memory_limit=memory_limit, n_threads=n_threads)
        out = score.recommend(
            views, weights, chosen, discoveries=discoveries, memory_limit=memory_limit, n_threads=n_threads
        )
        made.append((weights.data.tobytes(), weights.indices.tobytes(), rows(list(out))))

    assert made[0] == made[1] == made[2]
    assert len(made[0][2]) == 3 * np.count_nonzero(np.diff(views.matrix.indptr))


def test_some_users_can_be_served_by_themselves() -> None:
    views = ordered_views(random_histories(5, n_users=100, n_pages=80), 80)
    chosen = Parameters(20, 0.3, 0.7, 0.2)
    weights, discoveries = fit(views, chosen), np.arange(80)
    users = np.array([90, 3, 17, 40])

    some = rows(list(score.recommend(views.of(users), weights, chosen, discoveries=discoveries)))
    all_of_them = rows(list(score.recommend(views, weights, chosen, discoveries=discoveries)))

    assert some == [(place, *rest) for place, user in enumerate(users) for who, *rest in all_of_them if who == user]


def test_what_is_missing_is_said() -> None:
    views = random_views(0)
    weights = fit(views)

    with pytest.raises(ValueError, match="pass recency to interactions"):
        fit(views, Parameters(long_range=0.5))
    with pytest.raises(ValueError, match="pass recency to interactions"):
        list(score.recommend(views, weights, Parameters(long_range=0.5)))
    with pytest.raises(ValueError, match="a trend needs discoveries"):
        list(score.recommend(views, weights, Parameters(trend=0.1)))


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"regularisation": 0.0}, "regularisation=0.0 cannot be used: expected a finite number above 0"),
        ({"long_range": 1.5}, "long_range=1.5 cannot be used: expected a number from 0 to 1"),
        ({"direction": -1.0}, "direction=-1.0 cannot be used: expected a finite number from 0"),
        ({"trend": float("nan")}, "trend=nan cannot be used: expected a finite number from 0"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Parameters(**wrong)

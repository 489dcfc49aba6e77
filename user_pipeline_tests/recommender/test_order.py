from math import exp

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from user_pipeline.recommender import counting, order
from user_pipeline.recommender.co_views import CoViews
from user_pipeline.recommender.counting import count_co_views
from user_pipeline.recommender.interactions import Interactions
from user_pipeline.recommender.order import EARLIER, NEAR, Order, weigh_by_distance
from user_pipeline_tests.recommender.helpers import histories, ordered_views, random_histories, views_of
from user_pipeline_tests.recommender.reference import Histories, Matrix, family, ordered_counts


def all_rows(co_views: CoViews) -> Matrix:
    return np.concatenate([co_views.rows(*rows) for rows in co_views.row_ranges()]).astype(np.float64)


def weighed(views: Interactions, c: float, memory_limit: int = 2**30, n_threads: int | None = None) -> CoViews:
    co_views = count_co_views(views, memory_limit=memory_limit, cell=np.float32)
    return weigh_by_distance(co_views, Order.of(views), c, memory_limit=memory_limit, n_threads=n_threads)


def in_columns(matrix: Matrix, views: Interactions) -> Matrix:
    return matrix[np.ix_(views.pages, views.pages)]


def test_three_users_by_hand() -> None:
    # The first viewed 0, 1, 2; the second 0, 2; the third 0 and 1 at once, then 2. Pages by viewers: 0, 2, 1.
    views = ordered_views([[[2], [1], [0]], [[2], [0]], [[2], [0, 1]]], 3)
    before = np.zeros((3, 3))
    before[0, 1] = exp(-1) + 1 / 2
    before[1, 0] = 1 / 2
    before[0, 2] = exp(-2) + exp(-1) + exp(-1)
    before[1, 2] = exp(-1) + exp(-1)

    assert views.pages.tolist() == [0, 2, 1]
    near, earlier = (Order.of(views).rows(0, 3, kernel) for kernel in (NEAR, EARLIER))

    assert near == pytest.approx(in_columns(before + before.T + np.diag([3, 2, 3]), views), abs=1e-8)
    assert earlier == pytest.approx(in_columns((before - before.T).T, views), abs=1e-8)
    co_viewed = np.array([[3, 2, 3], [2, 2, 2], [3, 2, 3]])
    expected = 0.25 * co_viewed + 0.75 * (before + before.T + np.diag([3, 2, 3]))
    assert all_rows(weighed(views, 0.25)) == pytest.approx(in_columns(expected, views), abs=1e-6)


def test_pages_further_than_seven_positions_apart_are_not_near() -> None:
    views = ordered_views([[[page] for page in range(10)]], 10)

    near = Order.of(views).rows(0, 1, NEAR)[0]

    assert near[:8] == pytest.approx(np.exp(-np.arange(8.0)), abs=1e-8)
    assert near[8:].tolist() == [0, 0]


def test_pages_of_two_users_are_never_near() -> None:
    views = ordered_views([[[0]], [[1]], [], [[2], [0]]], 3)

    near = Order.of(views).rows(0, 3, NEAR)

    # Columns: page 0, then 1 and 2.
    assert near == pytest.approx(np.array([[2, 0, exp(-1)], [0, 1, 0], [exp(-1), 0, 1]]), abs=1e-8)


@settings(max_examples=150, deadline=None)
@given(histories(), st.sampled_from([0.0, 0.3, 1.0]))
def test_counts_are_those_of_the_definition(past: Histories, c: float) -> None:
    views = ordered_views(past, 12)
    _, before = ordered_counts(past, 12)
    g, _ = family(past, 12, c)

    earlier = Order.of(views).rows(0, len(views.pages), EARLIER)

    assert earlier == pytest.approx(in_columns((before - before.T).T, views), abs=1e-7)
    if len(views.pages):
        assert all_rows(weighed(views, c)) == pytest.approx(in_columns(g, views), abs=1e-5)


@pytest.mark.parametrize("memory_limit", [2**30, 2**18, 30_000])
@pytest.mark.parametrize("n_times", [5, 10_000])
def test_counts_are_the_same_however_little_memory(
    memory_limit: int, n_times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "largest_in_rows", lambda matrix, _: matrix)
    monkeypatch.setattr(order, "largest_in_rows", lambda matrix, _: matrix)
    monkeypatch.setattr(order, "PIECE", 64)
    past = random_histories(0, n_users=200, n_pages=150, n_times=n_times)
    views = ordered_views(past, 150)
    g, _ = family(past, 150, 0.4)

    co_views = weighed(views, 0.4, memory_limit)

    assert (co_views.n_head < co_views.n) == (memory_limit == 30_000)
    assert all_rows(co_views) == pytest.approx(in_columns(g, views), rel=1e-5, abs=1e-6)


def test_the_order_of_users_and_the_number_of_threads_do_not_show_in_a_byte() -> None:
    past = random_histories(1, n_users=500, n_pages=300)

    one = weighed(ordered_views(past, 300), 0.4, n_threads=1)
    other = weighed(ordered_views(past[::-1], 300), 0.4, n_threads=5)

    assert one.cells.tobytes() == other.cells.tobytes()


def test_without_an_order_there_is_nothing_to_weigh_by() -> None:
    views = views_of([(0, 0), (0, 1)], 1, 2)

    with pytest.raises(ValueError, match="pass recency to interactions"):
        Order.of(views)

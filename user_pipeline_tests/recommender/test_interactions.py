import numpy as np

from user_pipeline.recommender.interactions import Interactions, interactions, recency_of


def test_columns_are_ordered_by_viewers_and_then_by_code() -> None:
    views = interactions(np.array([0, 1, 2, 0, 1, 2, 2]), np.array([3, 3, 3, 1, 2, 2, 1]), n_users=3, n_pages=5)

    assert views.pages.tolist() == [3, 1, 2]
    assert views.popularity.tolist() == [3, 2, 2]
    assert views.matrix.toarray().tolist() == [[1, 1, 0], [1, 0, 1], [1, 1, 1]]
    assert views.columns_of(np.arange(5)).tolist() == [-1, 1, 2, 0, -1]


def test_a_repeated_pair_is_one_view_of_a_page() -> None:
    views = interactions(np.array([0] * 300), np.array([0] * 300), n_users=1, n_pages=1)

    assert views.matrix.toarray().tolist() == [[1]]
    assert views.popularity.tolist() == [1]


def test_nothing_viewed_has_no_columns() -> None:
    nothing = np.array([], dtype=np.int32)

    views = interactions(nothing, nothing, n_users=2, n_pages=3)

    assert views.matrix.shape == (2, 0)


def in_order(views: Interactions, user: int) -> list[list[int]]:
    order = views.latest_first
    assert order is not None
    out: list[list[int]] = []
    for entry in range(order.indptr[user], order.indptr[user + 1]):
        if order.data[entry]:
            out.append([])
        out[-1].append(int(views.pages[order.indices[entry]]))
    return out


def test_views_of_each_user_are_kept_in_their_order_the_last_first() -> None:
    user, page = np.array([0, 0, 0, 2, 2, 2, 2]), np.array([3, 1, 2, 2, 1, 3, 0])
    time = np.array([5, 9, 9, 1, 3, 7, 2])
    recency = recency_of(user, time)
    assert recency.tolist() == [1, 0, 0, 3, 1, 0, 2]

    views = interactions(user, page, n_users=3, n_pages=5, recency=recency)

    assert [in_order(views, who) for who in range(3)] == [[[1, 2], [3]], [], [[3], [1], [0], [2]]]
    assert np.array_equal(views.matrix.toarray(), interactions(user, page, n_users=3, n_pages=5).matrix.toarray())
    assert views.matrix.dtype == np.int8


def test_of_a_repeated_pair_the_last_view_counts_and_gaps_do_not() -> None:
    user, page = np.array([0, 0, 0, 0, 0]), np.array([4, 2, 4, 1, 2])

    views = interactions(user, page, n_users=1, n_pages=5, recency=np.array([9, 3, 5, 7, 8]))

    assert in_order(views, 0) == [[2], [4], [1]]
    assert views.matrix.toarray().tolist() == [[1, 1, 1]]


def test_the_order_of_nothing_is_empty() -> None:
    nothing = np.array([], dtype=np.int32)

    views = interactions(nothing, nothing, n_users=2, n_pages=3, recency=recency_of(nothing, nothing))

    assert views.latest_first is not None
    assert views.latest_first.shape == (2, 0)

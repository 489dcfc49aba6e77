import numpy as np

from user_pipeline.recommender.interactions import interactions


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

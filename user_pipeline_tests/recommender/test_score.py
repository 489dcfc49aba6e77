from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from user_pipeline.recommender import score
from user_pipeline.recommender.interactions import interactions
from user_pipeline.recommender.weights import fit
from user_pipeline_tests.recommender.helpers import Pairs, columns, random_views, recommended, rows, views_of

N_USERS, N_PAGES = 8, 12
pair = st.tuples(st.integers(0, N_USERS - 1), st.integers(0, N_PAGES - 1))
histories = st.lists(pair, max_size=60)


@settings(max_examples=150, deadline=None)
@given(histories, histories, st.sampled_from([1, 2**30]))
def test_everyone_active_gets_three_unseen_pages_or_all_there_are(
    pairs: Pairs, before: Pairs, memory_limit: int
) -> None:
    out = recommended(pairs, N_USERS, N_PAGES, before, memory_limit)

    candidates = {page for _, page in pairs}
    expected = {}
    for user in sorted({user for user, _ in pairs}):
        seen = {page for who, page in pairs + before if who == user}
        expected[user] = min(3, len(candidates - seen))
        pages = [page for who, page, _, _ in out if who == user]
        assert len(set(pages)) == len(pages)
        assert set(pages) <= candidates - seen
        assert [rank for who, _, rank, _ in out if who == user] == list(range(1, expected[user] + 1))
    assert {user: sum(row[0] == user for row in out) for user in expected} == expected
    assert len(out) == sum(expected.values())
    assert out == sorted(out, key=lambda row: (row[0], row[2]))


@settings(max_examples=100, deadline=None)
@given(histories, st.randoms(use_true_random=False))
def test_the_order_of_users_and_of_views_does_not_matter(pairs: Pairs, random: Random) -> None:
    users = list(range(N_USERS))
    random.shuffle(users)
    mixed = [(users[user], page) for user, page in pairs + pairs[:3]]
    random.shuffle(mixed)

    out = recommended(mixed, N_USERS, N_PAGES)

    back = {new: old for old, new in enumerate(users)}
    expected = recommended(pairs, N_USERS, N_PAGES)
    assert sorted((back[user], *rest) for user, *rest in out) == sorted(expected)


def test_the_numbering_of_pages_matters_only_for_ties() -> None:
    rng = np.random.default_rng(5)
    views = random_views(5, n_users=3000, n_pages=60, n=20_000)
    entries = views.matrix.tocoo()
    page = views.pages[entries.col]
    renumbered = rng.permutation(60)
    other = interactions(entries.row, renumbered[page], n_users=3000, n_pages=60)
    assert len(set(views.popularity.tolist())) > 40

    first = rows(list(score.recommend(views, fit(views))))
    second = rows(list(score.recommend(other, fit(other))))

    same = [a == (b[0], int(np.argsort(renumbered)[b[1]]), *b[2:]) for a, b in zip(first, second, strict=True)]
    assert np.mean(same) > 0.99


def test_scores_by_hand() -> None:
    views = views_of([(0, 0), (1, 0), (1, 1), (1, 2), (1, 3), (2, 3)], 3, 4)
    weights = np.zeros((4, 4), np.float32)
    # Columns by popularity: pages 0, 3, 1, 2.
    assert views.pages.tolist() == [0, 3, 1, 2]
    weights[0] = [0, 0.25, 0.5, 0.25]

    out = rows(list(score.recommend(views, csr_array(weights))))

    assert [row for row in out if row[0] == 0] == [(0, 1, 1, False), (0, 3, 2, False), (0, 2, 3, False)]
    assert [row for row in out if row[0] == 1] == []
    assert [row for row in out if row[0] == 2] == [(2, 0, 1, True), (2, 1, 2, True), (2, 2, 3, True)]


def test_ties_among_more_pages_than_are_kept_go_to_the_most_popular_then_the_first() -> None:
    # Everyone viewed page 20; pages 0..19 are equally related to it, page 7 has one more viewer.
    n = 20
    pairs = [(user, n) for user in range(n + 1)] + [(user, user) for user in range(n)] + [(n + 1, 7)]
    views = views_of(pairs, n + 2, n + 1)
    weights = np.zeros((n + 1, n + 1), np.float32)
    weights[0, 1:] = 0.5

    out = rows(list(score.recommend(views, csr_array(weights))))

    assert [page for user, page, _, _ in out if user == n] == [7, 0, 1]


def test_negative_scores_are_no_reason_to_recommend() -> None:
    views = views_of([(0, 0), (1, 1), (2, 1), (3, 2)], 4, 3)
    weights = csr_array(np.array([[0, 0, 0.1], [-1, 0, -2], [0, 0, 0]], np.float32))

    out = rows(list(score.recommend(views, weights)))

    assert [row for row in out if row[0] == 0] == [(0, 1, 1, True), (0, 2, 2, True)]


def test_one_page_in_the_world_leaves_nothing_to_recommend() -> None:
    assert recommended([(0, 0), (1, 0)], 2, 1) == []


def test_one_user_who_saw_all_gets_nothing() -> None:
    assert recommended([(0, 0), (0, 1), (0, 2)], 1, 3) == []


def test_nobody_gets_nothing() -> None:
    assert recommended([], 0, 0) == []
    assert recommended([], 3, 5) == []


def test_pages_seen_before_are_excluded_even_if_nobody_views_them_now() -> None:
    out = recommended([(0, 0), (1, 0), (1, 1), (1, 2)], 2, 4, seen=[(0, 1), (0, 1), (0, 3), (1, 0)])

    assert [(user, page) for user, page, _, _ in out] == [(0, 2)]


def test_threads_and_chunks_do_not_show() -> None:
    views = random_views(11, n_users=3000, n_pages=500, n=60_000)
    weights = fit(views)
    seen = columns([(user, user % 500) for user in range(3000)])

    whole = rows(list(score.recommend(views, weights, seen=seen, n_threads=1)))
    cut = rows(list(score.recommend(views, weights, seen=seen, n_threads=3, memory_limit=2**20)))

    assert whole == cut


def test_more_than_three_can_be_asked_for() -> None:
    views = random_views(1)

    out = rows(list(score.recommend(views, fit(views), top_n=20)))

    ranks = np.bincount([user for user, _, _, _ in out])
    seen = np.diff(views.matrix.indptr)
    assert ranks.tolist() == np.minimum(20, len(views.pages) - seen).tolist()

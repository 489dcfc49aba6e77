"""Why pages are recommended, and which pages go with a page: compared with plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from user_pipeline.recommender.defaults import Parameters
from user_pipeline.recommender.interactions import interactions
from user_pipeline.recommender.related import related
from user_pipeline.recommender.score import recommend
from user_pipeline.recommender.weights import fit

N_USERS, N_PAGES = 6, 9
visits = st.lists(
    st.tuples(st.integers(0, N_USERS - 1), st.integers(0, N_PAGES - 1), st.integers(0, 4)), min_size=1, max_size=50
)
models = st.sampled_from(
    [
        Parameters(1.0),
        Parameters(1.0, 0.3, 0.5),
        Parameters(1.0, 0.0, 1.0, 0.1),
        Parameters(5.0, trend=1.0),
        Parameters(trend=1.0, personal=False),
        Parameters(personal=False),
    ]
)


@settings(max_examples=150, deadline=None)
@given(visits, models)
def test_the_reason_is_the_page_seen_that_adds_most(pairs: list[tuple[int, int, int]], model: Parameters) -> None:
    user, page, ago = (np.array(column) for column in zip(*pairs, strict=True))
    views = interactions(user, page, n_users=N_USERS, n_pages=N_PAGES, recency=ago)
    weights = fit(views, model)
    found = np.bincount(page[ago == 0], minlength=N_PAGES)
    [part] = recommend(views, weights, model, discoveries=found, everyone=True, with_baselines=True, with_reasons=True)
    assert part.because is not None
    assert part.trending is not None
    last = {(u, p): min(a for v, q, a in pairs if (v, q) == (u, p)) for u, p, _ in pairs}
    dense, column = weights.toarray().astype(np.float64), views.columns_of(np.arange(N_PAGES))
    for who, what, is_fallback, reason in zip(part.user, part.page, part.is_fallback, part.because, strict=True):
        times = sorted({a for (u, _), a in last.items() if u == who})
        c = model.long_range
        adds = {
            p: (c + (1 - c) * np.exp(-1.0 - times.index(a))) * dense[column[p], column[what]]
            for (u, p), a in last.items()
            if u == who
        }
        if reason >= 0:
            assert adds[reason] == pytest.approx(max(adds.values()), abs=1e-5)
            assert adds[reason] > 0
            assert not is_fallback
            assert model.personal
        elif not is_fallback and not model.trend:
            assert not adds
    for who in set(part.user.tolist()):
        unseen = [p for p in views.pages.tolist() if (who, p) not in last]
        order = sorted(unseen, key=lambda p: (-found[p], column[p]))
        assert part.trending[part.user == who].tolist() == order[:3]


def test_where_what_was_seen_speaks_for_a_page_no_more_than_for_others_there_is_no_reason() -> None:
    views = interactions(
        np.array([0, 1, 1, 2, 2]), np.array([0, 0, 1, 0, 2]), n_users=3, n_pages=3, recency=np.zeros(5, np.int32)
    )
    weights = csr_array(np.array([[0, 0.5, 0.125], [0, 0, 0], [0, 0, 0]], np.float32))
    found = np.array([0, 0, 5])
    [part] = recommend(views, weights, Parameters(trend=1.0), discoveries=found, with_reasons=True)
    assert part.because is not None
    first = part.user == 0
    # Page 2 is in; page 1 goes with the page seen.
    assert part.page[first].tolist() == [2, 1]
    assert part.because[first].tolist() == [-1, 0]


@settings(max_examples=100, deadline=None)
@given(visits)
def test_related_pages_are_those_with_the_largest_weights(pairs: list[tuple[int, int, int]]) -> None:
    user, page, _ = (np.array(column) for column in zip(*pairs, strict=True))
    views = interactions(user, page, n_users=N_USERS, n_pages=N_PAGES)
    weights = fit(views, regularisation=1.0)
    dense = weights.toarray()
    out = related(views, weights, 2)
    expected = []
    for code in sorted(views.pages.tolist()):
        column = int(views.columns_of(np.array([code]))[0])
        order = sorted(range(len(dense)), key=lambda other: (-dense[column, other], other))
        best = [other for other in order if dense[column, other] > 0][:2]
        expected += [
            (code, int(views.pages[other]), rank, float(dense[column, other]))
            for rank, other in enumerate(best, start=1)
        ]
    columns = (out.page, out.related, out.rank, out.score)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected


def test_no_page_has_no_related_pages() -> None:
    none = np.empty(0, np.int32)
    views = interactions(none, none, n_users=0, n_pages=0)
    assert [len(column) for column in related(views, fit(views), 10)] == [0, 0, 0, 0]

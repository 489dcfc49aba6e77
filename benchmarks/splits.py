"""Splits of a data set: what is learned from, and what is to be found."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array

from benchmarks.datasets import Views
from benchmarks.evaluate import leave_out
from user_pipeline.recommender.defaults import TREND_DAYS
from user_pipeline.recommender.discoveries import Discoveries
from user_pipeline.recommender.interactions import Interactions, interactions, recency_of
from user_pipeline.recommender.playback import DAY, Past

# As USER_PIPELINE_RECOMMENDATION_DAYS.
WINDOW = 90
Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class Split:
    """What to learn from, and users x page codes to be found.

    Attributes:
        train: the views, in order if their times are known.
        held_out: to be found.
        seen: user and page codes of what is not to be recommended either.
        discoveries: how many users viewed each page for the first time in the last days; None without times.
        recent: how many users viewed each page in the last days; None without times.
        events: the views one by one; None where no further split is made of them.
        past: for playback; None where days are not played back.
        day: the last day.
    """

    train: Interactions
    held_out: csr_array
    seen: Pairs | None = None
    discoveries: NDArray[np.int64] | None = None
    recent: NDArray[np.int64] | None = None
    events: Views | None = None
    past: Past | None = None
    day: int = 0


def random_split(views: Views, seed: int) -> Split:
    """Hold out 20 % of the pages of every user with at least 5."""
    counts = csr_array((views.count, (views.user, views.page)), shape=_shape(views))
    return of_counts(*leave_out(counts, seed=seed))


def temporal_split(views: Views) -> Split:
    """Hold out what users who viewed something in the first 80 % view for the first time afterwards."""
    time = _times(views, "temporal")
    early = time <= np.quantile(time, 0.8)
    train = csr_array((views.count[early], (views.user[early], views.page[early])), shape=_shape(views))
    later = csr_array(
        (np.ones(np.count_nonzero(~early)), (views.user[~early], views.page[~early])), shape=_shape(views)
    )
    is_new = later - later.multiply(train.astype(np.bool_))
    known = diags_array((np.diff(train.indptr) > 0).astype(np.float64)) @ is_new
    held_out = csr_array(known)
    held_out.eliminate_zeros()
    return of_counts(train, held_out)


def of_counts(train: csr_array, held_out: csr_array) -> Split:
    """A split that knows no times."""
    entries = train.tocoo()
    n_users, n_pages = train.shape
    return Split(interactions(entries.row, entries.col, n_users=n_users, n_pages=n_pages), held_out)


def next_split(views: Views, share: float = 0.2, min_events: int = 5) -> Split:
    """Hold out the last pages that were new to each user with enough events.

    The last ``share`` of them is held out, at least one. All events from the first of these on are dropped, so that
    what is learned from ends before what is to be found. Events of one time stay in the order of the file.
    """
    time = _times(views, "next")
    order = np.lexsort((np.arange(len(time)), time, views.user))
    user, page = views.user[order], views.page[order]
    pair = user * (views.page.max() + 1) + page
    is_new = np.zeros(len(order), np.bool_)
    is_new[np.unique(pair, return_index=True)[1]] = True
    events, new = np.bincount(user), np.bincount(user[is_new])
    n_out = np.where(events >= min_events, np.maximum(1, (share * new + 1e-9).astype(np.int64)), 0)
    n_out = np.where(new > 1, n_out, 0)
    begin = np.concatenate([[0], np.cumsum(new)])
    number = np.cumsum(is_new) - 1 - begin[user]
    is_out = is_new & (number >= (new - n_out)[user])
    # From the first page that is held out on.
    kept = number < (new - n_out)[user]
    shape = _shape(views)
    held_out = csr_array((np.ones(np.count_nonzero(is_out)), (user[is_out], page[is_out])), shape=shape)
    which = np.zeros(len(order), np.bool_)
    which[order[kept]] = True
    events_kept = views.where(which)
    train_time = time[which]
    last = int(train_time.max() * 1_000_000 // DAY)
    return Split(
        _in_order(events_kept, shape),
        held_out,
        discoveries=_discoveries(events_kept, shape[1]).lately(last),
        recent=_recent(events_kept, shape[1], last),
        events=events_kept,
        day=last,
    )


def days_to_play(views: Views, n: int, first: float, last: float, seed: int = 0) -> Sequence[int]:
    """Days to recommend on, chosen at random from a part of the time, given by two shares of it; the next has views."""
    day = _days(views)
    begin, length = int(day.min()), int(day.max() - day.min())
    possible = [
        int(next_day) - 1
        for next_day in np.unique(day)
        if begin + first * length < next_day - 1 and next_day - 1 <= begin + last * length
    ]
    chosen = np.random.default_rng(seed).permutation(possible)[:n]
    return sorted(chosen.tolist())


def nextday_split(views: Views, day: int, min_viewers: int = 1) -> Split | None:
    """Play a day back as the product does: learn from the window, find what its users first view on the day after.

    Args:
        views: all there are.
        day: the last day to learn from.
        min_viewers: a page that fewer users have viewed in the window is not recommended.

    Returns:
        None if no user of the window views a new page on the day after.
    """
    days = _days(views)
    first = day - WINDOW + 1
    in_window = (days >= first) & (days <= day)
    users = np.unique(views.user[in_window])
    number = np.full(views.user.max() + 1, -1)
    number[users] = np.arange(len(users))
    n_users, n_pages = len(users), int(views.page.max()) + 1
    is_ours = number[views.user] >= 0
    before = is_ours & (days < first)
    window = views.where(in_window)
    window = Views(number[window.user], window.page, window.count, window.time)
    earlier = number[views.user[before]], views.page[before]
    known = np.unique(np.concatenate([_keys(number[views.user], views.page, n_pages)[is_ours & (days <= day)]]))
    after = is_ours & (days == day + 1)
    found = np.setdiff1d(_keys(number[views.user[after]], views.page[after], n_pages), known)
    if not len(found):
        return None
    since = _since(window, n_pages, min_viewers)
    shown = since[window.page] <= day
    window = window.where(shown)
    discoveries = _discoveries(window, n_pages, earlier)
    assert window.time is not None  # noqa: S101 - for the type checker
    past = Past(
        user=window.user.astype(np.int32),
        page=window.page.astype(np.int32),
        time=(window.time * 1_000_000).astype(np.int64),
        before=(earlier[0].astype(np.int32), earlier[1].astype(np.int32)),
        discoveries=discoveries,
        since=since,
        n_users=n_users,
    )
    return Split(
        _in_order(window, (n_users, n_pages)),
        csr_array((np.ones(len(found)), (found // n_pages, found % n_pages)), shape=(n_users, n_pages)),
        seen=earlier,
        discoveries=discoveries.lately(day),
        recent=_recent(window, n_pages, day),
        past=past,
        day=day,
    )


def _times(views: Views, split: str) -> NDArray[np.float64]:
    if views.time is None:
        sys.exit(f"A {split} split needs timestamps.")
    return views.time


def _days(views: Views) -> NDArray[np.int64]:
    days: NDArray[np.int64] = (_times(views, "nextday") * 1_000_000).astype(np.int64) // DAY
    return days


def _shape(views: Views) -> tuple[int, int]:
    return int(views.user.max()) + 1, int(views.page.max()) + 1


def _keys(user: NDArray[np.int64], page: NDArray[np.int64], n_pages: int) -> NDArray[np.int64]:
    return user * n_pages + page


def _in_order(views: Views, shape: tuple[int, int]) -> Interactions:
    recency = recency_of(views.user, _times(views, "next"))
    return interactions(views.user, views.page, n_users=shape[0], n_pages=shape[1], recency=recency)


def _first_days(views: Views, n_pages: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each pair once, as a key, and the day it was first viewed on."""
    keys, days = _keys(views.user, views.page, n_pages), _days(views)
    order = np.lexsort((days, keys))
    pairs, first = np.unique(keys[order], return_index=True)
    return pairs, days[order[first]]


def _discoveries(views: Views, n_pages: int, before: Pairs | None = None) -> Discoveries:
    pairs, day = _first_days(views, n_pages)
    if before is not None:
        is_new = ~np.isin(pairs, _keys(*before, n_pages))
        pairs, day = pairs[is_new], day[is_new]
    page_day, users = np.unique(np.stack([pairs % n_pages, day]), axis=1, return_counts=True)
    return Discoveries(page_day[0].astype(np.int32), page_day[1], users, n_pages)


def _recent(views: Views, n_pages: int, last: int) -> NDArray[np.int64]:
    lately = views.where(_days(views) > last - TREND_DAYS)
    pairs = np.unique(_keys(lately.user, lately.page, n_pages))
    return np.bincount(pairs % n_pages, minlength=n_pages)


def _since(views: Views, n_pages: int, min_viewers: int) -> NDArray[np.int64]:
    """The day on which each page has enough viewers; one that never comes for the others."""
    pairs, day = _first_days(views, n_pages)
    page = pairs % n_pages
    order = np.lexsort((day, page))
    begin = np.searchsorted(page[order], np.arange(n_pages))
    enough = np.bincount(page, minlength=n_pages) >= min_viewers
    since = np.full(n_pages, np.iinfo(np.int64).max)
    since[enough] = day[order[begin[enough] + min_viewers - 1]]
    return since

"""Choosing a model by a site's own past: which one would have found the pages that users viewed next.

The last days are played back. As of the end of each of them every candidate recommends to users who viewed a page for
the first time on the day after, and is judged by how many of these pages it found. What a candidate knows ends with the
day it recommends on: views, who had seen what, the discovery trend, and which pages could be shown. Weights are learned
once for two weeks of such days, as of the first of them.

It is a race: a candidate that is clearly behind the best after some hundred users drops out, which saves most of the
time.

The choice is a function of the views up to the last day, and of nothing else.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

from user_pipeline.recommender.co_views import empty
from user_pipeline.recommender.defaults import CANDIDATES, DEFAULT, MEMORY_LIMIT, Parameters
from user_pipeline.recommender.discoveries import Discoveries
from user_pipeline.recommender.interactions import Interactions, interactions, recency_of
from user_pipeline.recommender.race import Choice, decide, still_running
from user_pipeline.recommender.score import TOP_N, recommend
from user_pipeline.recommender.weights import fit

# Microseconds.
DAY = 86_400_000_000
# How many days are played back at most; fewer, once the latest days have so many users to judge by.
DAYS, USERS = 28, 4000
# How many users of a day are judged at most, so that no single day decides.
USERS_OF_DAY = 1000
# How many days share weights: learning takes most of the time.
LEARNED_DAYS = 14
# With fewer users to judge by, the default is taken.
FEWEST_USERS = 100
# A candidate may drop out once it was judged by this many users.
FIRST_USERS = 500
Int: TypeAlias = NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class Past:
    """What users viewed, day by day.

    Attributes:
        user: user codes, a row for each user, page and day (or for each view).
        page: page codes, of the same rows.
        time: when, in microseconds; the day is ``time // DAY``.
        before: user and page codes of pairs that were viewed before the first day.
        discoveries: by all users, where the rows are of some of them.
        since: the day from which on each page could be shown, shape ``(n_pages,)``.
        n_users: number of user codes.
    """

    user: NDArray[np.int32]
    page: NDArray[np.int32]
    time: NDArray[np.int64]
    before: tuple[NDArray[np.int32], NDArray[np.int32]]
    discoveries: Discoveries
    since: NDArray[np.int64]
    n_users: int

    @property
    def n_pages(self) -> int:
        """Number of page codes."""
        return len(self.since)

    def until(self, day: int) -> NDArray[np.bool_]:
        """Which rows were there at the end of a day, of pages that could be shown."""
        return (self.time < (day + 1) * DAY) & (self.since[self.page] <= day)


class _Judged(NamedTuple):
    """A day to recommend on: the views so far of the users who found new pages on the day after, and these pages."""

    day: int
    views: Interactions
    seen: tuple[Int, Int]
    discoveries: NDArray[np.int64]
    found: csr_array


def choose(
    past: Past,
    last: int,
    candidates: Sequence[Parameters] = CANDIDATES,
    *,
    default: Parameters = DEFAULT,
    memory_limit: int = MEMORY_LIMIT,
    n_threads: int | None = None,
) -> Choice:
    """Play the last days back and choose.

    Args:
        past: what happened, up to the last day.
        last: the last day.
        candidates: what to choose from; the default is one of them.
        default: what is chosen if no other is clearly better, or if there is too little to tell by.
        memory_limit: bytes, see :func:`.fit`.
        n_threads: threads to use, every core by default; the result does not depend on it.
    """
    new = _new_pages(past, last)
    days = _days(new, last)
    users = sum(len(who) for who in days.values())
    if users < FEWEST_USERS:
        return Choice(default, "too little past", len(days), users)
    recalls = np.full((len(candidates), users), np.nan)
    running, done = list(range(len(candidates))), 0
    for first in range(0, len(days), LEARNED_DAYS):
        some = list(days)[first : first + LEARNED_DAYS]
        learned = _views(past, min(some))
        for heat in _heats(some, days):
            judged = [_judged(past, new, day, days[day]) for day in heat]
            part = _recalls(learned, judged, [candidates[number] for number in running], memory_limit, n_threads)
            recalls[running, done : done + part.shape[1]] = part
            done += part.shape[1]
            running = still_running(recalls[:, :done], running, candidates.index(default))
    return decide(recalls, candidates, default, days=len(days))


def _heats(days: Sequence[int], users: Mapping[int, Int]) -> Iterator[Sequence[int]]:
    """Days in two parts: as many as it takes to tell who is clearly behind, and the others."""
    judged = np.cumsum([len(users[day]) for day in days])
    first = int(np.searchsorted(judged, FIRST_USERS)) + 1
    yield days[:first]
    if days[first:]:
        yield days[first:]


def _new_pages(past: Past, last: int) -> tuple[Int, Int, Int]:
    """User, page and day of each pair that was viewed for the first time, by a user who was there before."""
    day = past.time // DAY
    known = day <= last
    user, page, day = past.user[known].astype(np.int64), past.page[known], day[known]
    first_day = np.full(past.n_users, last + 1)
    np.minimum.at(first_day, user, day)
    pair = user * past.n_pages + page
    order = np.lexsort((day, pair))
    is_first = np.ones(len(order), np.bool_)
    is_first[1:] = pair[order[1:]] != pair[order[:-1]]
    first = order[is_first]
    is_new = ~np.isin(pair[first], past.before[0].astype(np.int64) * past.n_pages + past.before[1])
    chosen = first[is_new & (day[first] > first_day[user[first]])]
    return user[chosen], page[chosen], day[chosen]


def _days(new: tuple[Int, Int, Int], last: int) -> dict[int, Int]:
    """The days to recommend on, latest first, and the users to judge by."""
    days: dict[int, Int] = {}
    for day in range(last - 1, last - 1 - DAYS, -1):
        users = np.unique(new[0][new[2] == day + 1])
        if len(users) > USERS_OF_DAY:
            users = np.sort(np.random.default_rng(0).permutation(users)[:USERS_OF_DAY])
        if len(users):
            days[day] = users
        if sum(map(len, days.values())) >= USERS:
            break
    return days


def _views(past: Past, day: int) -> Interactions:
    """The views up to the end of a day."""
    known = past.until(day)
    user, page = past.user[known], past.page[known]
    recency = recency_of(user, past.time[known])
    return interactions(user, page, n_users=past.n_users, n_pages=past.n_pages, recency=recency)


def _judged(past: Past, new: tuple[Int, Int, Int], day: int, users: Int) -> _Judged:
    row = np.full(past.n_users, -1)
    row[users] = np.arange(len(users))
    is_wanted = (new[2] == day + 1) & (row[new[0]] >= 0)
    pairs = row[new[0][is_wanted]], new[1][is_wanted]
    seen = row[past.before[0]] >= 0
    return _Judged(
        day,
        _views(past, day).of(users),
        (row[past.before[0][seen]], past.before[1][seen]),
        past.discoveries.lately(day),
        csr_array((np.ones(len(pairs[0])), pairs), shape=(len(users), past.n_pages)),
    )


def _recalls(
    views: Interactions,
    judged: list[_Judged],
    candidates: Sequence[Parameters],
    memory_limit: int,
    n_threads: int | None,
) -> NDArray[np.float64]:
    """Candidates x users of these days: the share of their new pages that was found, by weights of these views."""
    out = np.zeros((len(candidates), sum(each.found.shape[0] for each in judged)))
    ends = np.cumsum([0, *(each.found.shape[0] for each in judged)])
    for model, numbers in _by_model(candidates):
        weights = fit(views, model, memory_limit=memory_limit, n_threads=n_threads) if model else None
        for each, start, stop in zip(judged, ends[:-1], ends[1:], strict=True):
            known = empty((len(each.views.pages),) * 2)
            if weights is not None:
                known = _moved(weights, each.views.columns_of(views.pages), len(each.views.pages))
            for number in numbers:
                parts = recommend(
                    each.views,
                    known,
                    candidates[number],
                    discoveries=each.discoveries,
                    seen=each.seen,
                    everyone=True,
                    memory_limit=memory_limit,
                    n_threads=n_threads,
                )
                for part in parts:
                    hit = each.found[part.user, part.page]
                    np.add.at(out[number], start + part.user, np.asarray(hit).ravel())
            out[list(numbers), start:stop] /= np.minimum(TOP_N, np.diff(each.found.indptr))
    return out


def _by_model(candidates: Sequence[Parameters]) -> Iterator[tuple[Parameters | None, list[int]]]:
    """The candidates by the model that their weights are learned with; None for those without weights."""
    numbers: dict[Parameters | None, list[int]] = {}
    for number, parameters in enumerate(candidates):
        model = replace(parameters, trend=0.0) if parameters.personal else None
        numbers.setdefault(model, []).append(number)
    yield from numbers.items()


def _moved(weights: csr_array, column: NDArray[np.int32], n: int) -> csr_array:
    """Weights of pages that have other columns now."""
    entries = coo_array(weights)
    return csr_array((entries.data, (column[entries.row], column[entries.col])), shape=(n, n))

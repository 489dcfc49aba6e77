"""A model is chosen by what users viewed next, and by nothing that came later."""

from dataclasses import replace

import numpy as np
import pytest

from user_pipeline.recommender import playback, race
from user_pipeline.recommender.defaults import CANDIDATES, DEFAULT, Parameters
from user_pipeline.recommender.discoveries import Discoveries
from user_pipeline.recommender.playback import DAY, Past, choose
from user_pipeline.recommender.race import decide

POPULARITY, TREND = Parameters(personal=False), Parameters(trend=1.0, personal=False)
EASE = Parameters()


def past_of(views: list[tuple[int, int, int]], n_pages: int, since: dict[int, int] | None = None) -> Past:
    """Views as user, page, day."""
    user, page, day = (np.array(column) for column in zip(*views, strict=True))
    first: dict[tuple[int, int], int] = {}
    for who, what, when in views:
        first[who, what] = min(when, first.get((who, what), when))
    found = [(what, when, 1) for (_, what), when in first.items()]
    columns = [np.array(column) for column in zip(*found, strict=True)]
    return Past(
        user=user.astype(np.int32),
        page=page.astype(np.int32),
        time=day * DAY + np.arange(len(views)) % DAY,
        before=(np.empty(0, np.int32), np.empty(0, np.int32)),
        discoveries=Discoveries(columns[0].astype(np.int32), columns[1], columns[2], n_pages),
        since=np.array([(since or {}).get(number, 0) for number in range(n_pages)]),
        n_users=int(user.max()) + 1,
    )


def news(n_users: int = 60, n_days: int = 20) -> Past:
    """Every day most of the users find a page that is new, and the others find it on the day after."""
    views = [(user, day, day) for user in range(n_users) for day in range(n_days) if (user + day) % 3]
    views += [(user, day, day + 1) for user in range(n_users) for day in range(n_days - 1) if (user + day) % 3 == 0]
    # What most have viewed long ago, which nobody goes to any more.
    views += [(user, 100 + n, 0) for n in range(30) for user in range(n_users) if (user + n) % 5]
    return past_of(views, 130)


def test_what_finds_tomorrows_pages_is_chosen() -> None:
    choice = choose(news(), 19, [POPULARITY, TREND, EASE], default=POPULARITY, n_threads=1)
    assert (choice.parameters, choice.why) == (TREND, "playback")
    trials = {trial.parameters: trial for trial in choice.trials}
    assert trials[TREND].recall > trials[POPULARITY].recall
    assert (trials[POPULARITY].gain, trials[POPULARITY].error) == (0, 0)
    assert choice.users > playback.FEWEST_USERS


def test_nothing_after_the_day_decides() -> None:
    later = news()
    known = later.time < 15 * DAY
    some = replace(later, user=later.user[known], page=later.page[known], time=later.time[known])
    chosen = [choose(past, 14, [POPULARITY, TREND, EASE], default=EASE) for past in (later, some)]
    assert chosen[0] == chosen[1]


def test_a_candidate_knows_no_view_of_the_days_it_is_judged_by(monkeypatch: pytest.MonkeyPatch) -> None:
    past, judged, learned = news(), [], []
    make, fit = playback._judged, playback._views

    def judging(past: Past, new: object, day: int, users: object) -> object:
        each = make(past, new, day, users)  # type: ignore[arg-type]
        judged.append((day, each))
        return each

    def viewing(past: Past, day: int) -> object:
        learned.append(day)
        return fit(past, day)

    monkeypatch.setattr(playback, "_judged", judging)
    monkeypatch.setattr(playback, "_views", viewing)
    choose(past, 19, [POPULARITY, TREND, EASE], default=EASE)
    first = dict.fromkeys(zip(past.user.tolist(), past.page.tolist(), strict=True), 10**6)
    for who, what, when in zip(past.user.tolist(), past.page.tolist(), (past.time // DAY).tolist(), strict=True):
        first[who, what] = min(when, first[who, what])
    assert judged
    for day, each in judged:
        # Pages of the day after that nobody viewed before have no column, and all that is to be found is of that day.
        assert all(min(when for (_, page), when in first.items() if page == what) <= day for what in each.views.pages)
        assert each.discoveries.sum() == sum(day - 7 < when <= day for when in first.values())
    days = [day for day, _ in judged]
    # Weights are of the first of some days: of none that comes later.
    assert set(learned) == {*days}
    assert days == sorted(days, reverse=True)


def test_a_page_is_known_from_the_day_it_could_be_shown_on() -> None:
    past = past_of([(0, 0, 1), (1, 0, 3), (0, 1, 1)], 2, {0: 3})
    assert past.page[past.until(2)].tolist() == [1]
    assert sorted(past.page[past.until(3)].tolist()) == [0, 0, 1]


def test_with_too_little_past_it_is_the_default() -> None:
    choice = choose(past_of([(0, 0, 1), (1, 0, 2), (1, 1, 3)], 2), 3)
    assert (choice.parameters, choice.why, choice.trials) == (DEFAULT, "too little past", ())


def test_the_default_stays_unless_another_is_clearly_better() -> None:
    rng = np.random.default_rng(0)
    recalls = (rng.random((2, 400)) < 0.3).astype(float)
    assert decide(recalls, [EASE, TREND], EASE).why == "default"
    recalls[1] = recalls[0]
    recalls[1, :3] = 1
    recalls[0, :3] = 0
    choice = decide(recalls, [EASE, TREND], EASE, days=5)
    assert (choice.parameters, choice.why, choice.days, choice.users) == (TREND, "playback", 5, 400)
    assert choice.trials[1].gain == pytest.approx(3 / 400)
    assert choice.trials[1].error == pytest.approx((recalls[1] - recalls[0]).std(ddof=1) / 20)


def test_any_number_of_threads_and_any_order_of_rows_choose_alike() -> None:
    past = news(90)
    order = np.random.default_rng(1).permutation(len(past.user))
    mixed = replace(past, user=past.user[order], page=past.page[order], time=past.time[order])
    assert choose(past, 19, n_threads=1) == choose(mixed, 19, n_threads=3)


def test_popularity_and_the_trend_alone_are_among_the_candidates() -> None:
    assert DEFAULT in CANDIDATES
    alone = {candidate.trend > 0 for candidate in CANDIDATES if not candidate.personal}
    assert alone == {True, False}


def test_who_is_clearly_behind_drops_out_and_the_choice_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    past, candidates = news(200), [POPULARITY, TREND, EASE]
    monkeypatch.setattr(race, "HOPELESS", 1e9)
    to_the_end = choose(past, 19, candidates, default=EASE, n_threads=1)
    assert [trial.users for trial in to_the_end.trials] == [to_the_end.users] * 3
    monkeypatch.undo()
    raced = choose(past, 19, candidates, default=EASE, n_threads=1)
    assert (raced.parameters, raced.users) == (to_the_end.parameters, to_the_end.users) == (TREND, raced.users)
    popularity, trend, default = raced.trials
    assert playback.FIRST_USERS <= popularity.users < trend.users == default.users == raced.users
    assert popularity.recall < trend.recall


def test_who_dropped_out_is_not_chosen_however_well_it_did_before() -> None:
    recalls = np.array([[0.0, 1.0] * 50, [1.0, 1.0] * 20 + [np.nan] * 60, [1.0, 1.0, 0.0, 1.0] * 25])
    choice = decide(recalls, [EASE, TREND, POPULARITY], EASE)
    assert choice.parameters == POPULARITY
    assert [trial.users for trial in choice.trials] == [100, 40, 100]
    assert choice.trials[1].gain == pytest.approx(0.5)


def test_equals_stay_in_the_race() -> None:
    recalls = np.tile((np.random.default_rng(0).random(600) < 0.5).astype(float), (3, 1))
    assert race.still_running(recalls, [0, 1, 2], 1) == [0, 1, 2]
    recalls[2] = 0
    assert race.still_running(recalls, [0, 1, 2], 1) == [0, 1]
    assert race.still_running(recalls, [0, 1, 2], 2) == [0, 1, 2]

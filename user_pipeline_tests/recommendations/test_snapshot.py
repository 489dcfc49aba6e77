"""Recommendations of any history equal a recompute in plain Python, whatever day they are asked for."""

from collections.abc import Iterable
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from user_pipeline.recommendations import codes
from user_pipeline.recommendations.eligibility import Eligibility
from user_pipeline.recommendations.history import NoHistoryError, new_page_views, read_history
from user_pipeline.recommendations.rules import RULES, broken_rules
from user_pipeline.recommendations.snapshot import Choices, Learned, Summary, write_recommendations
from user_pipeline.recommendations.window import Window, day_number
from user_pipeline.recommender.defaults import Parameters
from user_pipeline.recommender.playback import DAY
from user_pipeline_tests import aggregates, oracle
from user_pipeline_tests.oracle import View
from user_pipeline_tests.platform import Platform

FIRST = date(2017, 4, 1)
N_DAYS = 5
DAYS = [FIRST + timedelta(days=n) for n in range(N_DAYS)]
# Beyond 2^53 floating-point numbers skip integers: these are neighbours.
USERS = (0, 1, 2, 2**53 + 1, 2**53 + 2, 2**62 + 1, 2**63 - 1)
PAGES = ("/", "/a", "/A", "/ü;'\"\\", "/\U0001f600\n,", "/" + "long" * 800, "%s {x} $1")

visit = st.tuples(st.integers(0, N_DAYS - 1), st.sampled_from(USERS), st.sampled_from(PAGES))
histories = st.lists(visit, max_size=40)
Visits = list[tuple[int, int, str]]


def at(day: int, user: int, url: str) -> View:
    return View(datetime(2017, 4, 1 + day, 12), url, "production", user)


def bring(platform: Platform, views: Iterable[View]) -> None:
    """Make these views the ones of all five days."""
    distinct = set(views)
    aggregates.bring(
        platform, "user_page_views", {day: [view for view in distinct if view.ts.date() == day] for day in DAYS}
    )


ANY = Eligibility(1)


def make(
    platform: Platform, window: Window, eligibility: Eligibility = ANY, **options: Any
) -> tuple[list[dict[str, Any]], Summary]:
    file = snapshot_file(platform)
    with platform.engine() as engine:
        history = read_history(platform.lake, engine, window, eligibility)
    choices = Choices(
        **{
            "window_days": window.days,
            "eligibility": eligibility,
            "parameters": Parameters(1.0),
            "neighbours": 100,
            "memory_limit": 2**28,
            **options,
        }
    )
    summary = write_recommendations(Learned.of(history, window.last, choices), history, file, choices)
    assert Choices.of(file) == choices
    return pq.read_table(file).to_pylist(), summary


def snapshot_file(platform: Platform) -> Path:
    return platform.root / "snapshot.parquet"


def by_user(rows: list[dict[str, Any]], column: str = "recommended_url") -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for row in rows:
        found.setdefault(row["user_id"], []).append(row[column])
    return found


everywhere = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@everywhere
@given(histories, st.integers(1, N_DAYS + 1), st.integers(1, 3), st.sampled_from([None, "a"]))
@example([], 3, 1, None)  # nothing at all
@example([(0, 1, "/")], 3, 1, None)  # one page in the world, one user
@example([(n % 5, user, url) for n, user in enumerate(USERS) for url in PAGES], 5, 3, None)  # all seen
@example(
    [(0, 1, "/a"), (1, 1, "/"), (1, 2, "/a"), (4, 1, "/a")], 2, 1, None
)  # seen before the window, and again after it
@example([(2, 1, "/a"), (2, 2, "/"), (4, 1, "/")], 1, 1, None)  # seen only after the day
@example([(0, user, url) for user in (1, 2) for url in PAGES] + [(0, 0, "/A")], 1, 3, None)  # one page may be shown
def test_recommendations_equal_a_recompute(
    platform: Platform, visits: Visits, days: int, min_viewers: int, allowed: str | None
) -> None:
    views = [at(*visit) for visit in visits]
    bring(platform, views)
    for last in DAYS:
        rows, summary = make(platform, Window(last, days), Eligibility(min_viewers, allowed))

        expected = oracle.recommendations(views, last, days, 1.0, min_viewers=min_viewers, allowed=allowed or "")
        assert by_user(rows) == {user: expected.ranked(user)[:3] for user in expected.seen if expected.ranked(user)}
        assert by_user(rows, "popular_url") == {
            user: expected.most_popular(user)[:3] for user in expected.seen if expected.ranked(user)
        }
        assert [row["rank"] for row in rows] == [
            rank + 1 for user in sorted(expected.seen) for rank in range(min(3, len(expected.ranked(user))))
        ]
        assert [row["is_fallback"] for row in rows] == [
            expected.scores[row["user_id"], row["recommended_url"]] == 0 for row in rows
        ]
        assert {row["candidates"] for row in rows} <= {len(expected.pages)}
        assert (summary.users, summary.active_users) == (len(by_user(rows)), len(expected.seen))
        assert (summary.rows, summary.pages) == (len(rows), len(expected.pages))
        assert summary.views == sum(expected.popularity.values())
        assert summary.filled_rows == sum(row["is_fallback"] for row in rows)


@everywhere
@given(histories, st.integers(1, N_DAYS), st.data())
def test_the_rules_hold_for_what_is_made_and_for_nothing_else(
    platform: Platform, visits: Visits, days: int, data: st.DataObject
) -> None:
    views = [at(*visit) for visit in visits]
    bring(platform, views)
    window = Window(data.draw(st.sampled_from(DAYS)), days)
    rows, _ = make(platform, window)
    assert broken(platform, window) == set()
    if not rows:
        return

    spoilt = [dict(row) for row in rows]
    row = data.draw(st.sampled_from(spoilt))
    fault = data.draw(st.sampled_from(["missing", "gap", "twice", "seen", "stranger"]))
    expected = set()
    if fault == "missing":
        spoilt.remove(row)
        last = max(other["rank"] for other in rows if other["user_id"] == row["user_id"])
        expected = {"eligible_users"} | ({"ranks"} if row["rank"] < last else set())
    elif fault == "gap":
        row["rank"] += 3
        expected = {"ranks"}
    elif fault == "twice":
        spoilt.append({**row, "rank": max(other["rank"] for other in rows if other["user_id"] == row["user_id"]) + 1})
        expected = {"unique_pages"} | ({"ranks"} if spoilt[-1]["rank"] > 3 else set())
    elif fault == "seen":
        served = oracle.recommendations(views, window.last, days, 1.0)
        seen, in_window = served.seen[row["user_id"]], served.pages
        row["recommended_url"] = data.draw(st.sampled_from(sorted(seen)))
        expected = {"unseen"} | ({"safe_pages"} if row["recommended_url"] not in in_window else set())
    elif fault == "stranger":
        spoilt.append({**row, "user_id": 77, "rank": 1, "because_url": None})
        expected = {"eligible_users"}
    schema = pq.read_schema(snapshot_file(platform))
    pq.write_table(pa.Table.from_pylist(spoilt, schema=schema), snapshot_file(platform))
    assert broken(platform, window) == expected


def broken(platform: Platform, window: Window, eligibility: Eligibility = ANY) -> set[str]:
    with platform.engine() as engine, platform.analytics.transaction() as transaction:
        found = broken_rules(
            transaction,
            platform.lake,
            engine,
            snapshot_file(platform),
            window,
            eligibility=eligibility,
            in_table=False,
        )
    assert set(found) == set(RULES)
    return {name for name, offenders in found.items() if offenders}


@everywhere
@given(histories)
def test_new_page_views_are_those_of_no_day_before(platform: Platform, visits: Visits) -> None:
    views = [at(*visit) for visit in visits]
    bring(platform, views)
    for day in DAYS:
        with platform.engine() as engine:
            rows = pq.read_table(new_page_views(platform.lake, engine, day)).to_pylist()
        assert sorted((row["user_id"], row["url"]) for row in rows) == sorted(oracle.new_page_views(views, day))


@everywhere
@given(histories, st.integers(1, N_DAYS), st.integers(1, 2), st.data())
def test_the_past_is_told_day_by_day(
    platform: Platform, visits: Visits, days: int, min_viewers: int, data: st.DataObject
) -> None:
    views = [at(*visit) for visit in visits]
    bring(platform, views)
    window = Window(data.draw(st.sampled_from(DAYS)), days)
    with platform.engine() as engine:
        history = read_history(platform.lake, engine, window, Eligibility(min_viewers), with_past=True)
    past, pages = history.past, history.pages.to_pylist()
    assert past is not None

    inside = {view for view in views if window.first <= view.ts.date() <= window.last}
    latest = {(view.user_id, view.url): view.ts.date() for view in sorted(views, key=lambda view: view.ts)}
    # Of a pair with its last view in the window, no more is known.
    earlier = {
        (view.user_id, view.url)
        for view in views
        if view.ts.date() < window.first and not window.first <= latest[view.user_id, view.url] <= window.last
    }
    first: dict[tuple[int, str], date] = {}
    for view in sorted(inside):
        first.setdefault((view.user_id, view.url), view.ts.date())
    arrivals = {url: sorted(day for (_, page), day in first.items() if page == url) for _, url in first}
    since = {url: found[min_viewers - 1] for url, found in arrivals.items() if len(found) >= min_viewers}
    assert pages == sorted(since)
    assert past.since.tolist() == [day_number(since[url]) for url in pages]
    rows = sorted(zip(history.users[past.user].tolist(), (pages[code] for code in past.page), past.time, strict=True))
    assert [(user, url, time // DAY) for user, url, time in rows] == sorted(
        (view.user_id, view.url, day_number(view.ts.date())) for view in inside if view.url in since
    )
    before = zip(history.users[past.before[0]].tolist(), (pages[code] for code in past.before[1]), strict=True)
    active = {view.user_id for view in inside}
    assert sorted(before) == sorted(pair for pair in earlier if pair[0] in active and pair[1] in since)
    for day in DAYS:
        found = dict.fromkeys(pages, 0)
        for pair, when in first.items():
            if pair[1] in since and pair not in earlier and when <= day:
                found[pair[1]] += 1
        assert history.discoveries.lately(day_number(day)).tolist() == [found[url] for url in pages]
    last = {(view.user_id, view.url): view.ts for view in sorted(inside)}
    for user, page, recency in zip(*history.viewed, history.recency, strict=True):
        who = history.users[user]
        later = {
            ts for (other, url), ts in last.items() if other == who and url in since and ts > last[who, pages[page]]
        }
        assert recency == len(later)


def test_of_many_rows_some_users_are_played_back_the_same_each_time(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(platform, [at(n % 5, n % 200, f"/{n * n % 30}") for n in range(2000)])
    monkeypatch.setattr(codes, "PAST_ROWS", 100)
    chosen = []
    for _ in range(2):
        with platform.engine() as engine:
            past = read_history(platform.lake, engine, Window(DAYS[-1], 5), ANY, with_past=True).past
        assert past is not None
        assert 30 < past.n_users < 70
        assert set(past.user.tolist()) == set(range(past.n_users))
        chosen.append(sorted(zip(past.user.tolist(), past.page.tolist(), past.time.tolist(), strict=True)))
    assert chosen[0] == chosen[1]


def test_the_same_views_give_the_same_bytes(platform: Platform) -> None:
    bring(platform, [at(n % 5, n % 40, f"/{n * n % 30}") for n in range(600)])
    contents = []
    for memory_limit in (2**28, 2**22, 2**28):
        make(platform, Window(DAYS[-1], 5), memory_limit=memory_limit)
        contents.append(snapshot_file(platform).read_bytes())
    # In small chunks the same rows, though the file is cut differently.
    assert contents[0] == contents[2]
    assert pq.read_table(pa.BufferReader(contents[0])) == pq.read_table(pa.BufferReader(contents[1]))


def test_a_page_that_may_not_be_shown_is_found_if_it_is(platform: Platform) -> None:
    bring(platform, [at(0, user, url) for user in (1, 2, 3) for url in ("/a", "/b")] + [at(0, 3, "/reset?token=x")])
    window = Window(FIRST, 1)
    make(platform, window)
    assert broken(platform, window) == set()
    assert broken(platform, window, Eligibility(3)) == {"safe_pages"}
    assert broken(platform, window, Eligibility(1, exclude_urls="token=")) == {"safe_pages"}
    assert broken(platform, window, Eligibility(1, "^/[ab]$")) == {"safe_pages"}
    for eligibility in (Eligibility(3), Eligibility(1, exclude_urls="token="), Eligibility(1, "^/[ab]$")):
        rows, summary = make(platform, window, eligibility)
        assert (rows, summary.pages, summary.withheld_pages) == ([], 2, 1)
        assert broken(platform, window, eligibility) == set()


def test_who_viewed_only_pages_that_may_not_be_shown_gets_the_most_popular(platform: Platform) -> None:
    bring(platform, [at(0, user, "/a") for user in (1, 2, 3)] + [at(0, 0, "/token")])
    rows, summary = make(platform, Window(FIRST, 1), Eligibility(3))
    assert by_user(rows) == {0: ["/a"]}
    assert (summary.active_users, summary.fallback_users) == (4, 1)
    assert broken(platform, Window(FIRST, 1), Eligibility(3)) == set()


def test_a_window_may_reach_back_before_all_time() -> None:
    assert Window(date(2017, 4, 3), 3).first == date(2017, 4, 1)
    assert Window(date(2, 1, 1), 9999).first == date.min
    assert (Window(date(2017, 4, 30), 1).first, Window(date(2017, 4, 30), 1).end) == (
        date(2017, 4, 30),
        date(2017, 5, 1),
    )


def test_without_any_day_it_says_what_to_materialize(platform: Platform) -> None:
    with platform.engine() as engine, pytest.raises(NoHistoryError, match="materialize the asset user_page_views"):
        read_history(platform.lake, engine, Window(FIRST, 90), ANY)
    bring(platform, [])
    assert make(platform, Window(FIRST, 90)) == ([], Summary(0, 0, 0, 0, 0, 0, 0, 0, 0))

"""Recommendations and their quality through Dagster: days, ranges, repairs, kills."""

import csv
import subprocess
import sys
from collections.abc import Mapping
from datetime import date
from math import log2
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest

from user_pipeline.recommendations.day import TABLES
from user_pipeline_tests.platform import Platform, update, view

ONE = {1: "ab", 2: "ab", 3: "a", 4: "c"}
TWO = {1: "ca", 2: "z", 3: "bxy", 4: "b"}
DAY = ["2017-04-01", "2017-04-02", "2017-04-03", "2017-04-04"]
# EASE^R: what is recommended can be worked out by hand.
CONFIG = {"regularisation": 1.0, "long_range": 1.0, "direction": 0.0, "trend": 0.0}
RECOMMENDATIONS = ("page_recommendations", "recommendation_quality", "page_recommendations_csv")


def deliver(platform: Platform, day: str, views: Mapping[int, str], name: str = "") -> None:
    """Page views of a day: for each user the pages, a letter each."""
    lines = [view(f"{day}T12:00:00", f"/{page}", user) for user, pages in views.items() for page in pages]
    platform.put_views(f"PageViews/{day}{name}.json", lines)


def run(platform: Platform, first: str, last: str | None = None, **options: Any) -> dg.ExecuteInProcessResult:
    config = {"ops": {"page_recommendations": {"config": {**CONFIG, **options.pop("config", {})}}}}
    result = platform.materialize(first, last, run_config=config, **options)
    assert all(evaluation.passed for evaluation in result.get_asset_check_evaluations())
    return result


def table(platform: Platform) -> dict[int, str]:
    """Each user's pages in the table, best first, a letter each."""
    return letters(
        platform.rows("analytics", "select user_id, recommended_url from page_recommendations order by 1, rank")
    )


def snapshot(platform: Platform, day: str) -> dict[int, str]:
    file = platform.lake_file("page_recommendations", day)
    rows = pq.ParquetFile(file).read().to_pylist()
    return letters([(row["user_id"], row["recommended_url"]) for row in rows])


def letters(rows: list[tuple[Any, ...]]) -> dict[int, str]:
    found: dict[int, str] = {}
    for user, url in rows:
        found[user] = found.get(user, "") + url.removeprefix("/")
    return found


def as_of(platform: Platform) -> date | None:
    days = platform.rows("analytics", "select day from page_recommendations_day")
    return days[0][0] if days else None


def metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, dict[str, Any]]:
    """What each day's materialization says."""
    return {
        str(event.partition): {name: entry.value for name, entry in event.materialization.metadata.items()}
        for event in result.get_asset_materialization_events()
        if event.asset_key == dg.AssetKey(asset)
    }


def quality(platform: Platform) -> list[tuple[Any, ...]]:
    columns = "day, users, hit_rate, recall_at_3, popularity_hit_rate, coverage, fallback_share"
    return platform.rows("analytics", f"select {columns} from recommendation_quality order by day")


def test_two_days_by_hand(platform: Platform) -> None:
    deliver(platform, DAY[0], ONE)
    platform.put("UserUpdates/a.csv", update(f"{DAY[0]}T00:00:00", 3, "three@x.org"))
    first = run(platform, DAY[0])

    # a has 3 viewers, b 2, c 1. Only a and b share any: user 3 scores 2 / (3 + 1) for b; all else is by popularity.
    assert platform.table("analytics", "page_recommendations") == [
        (1, None, "/c", 1),
        (2, None, "/c", 1),
        (3, "three@x.org", "/b", 1),
        (3, "three@x.org", "/c", 2),
        (4, None, "/a", 1),
        (4, None, "/b", 2),
    ]
    said = metadata(first, "page_recommendations")[DAY[0]]
    assert {name: said[name] for name in ("users", "active_users", "pages", "views", "rows")} == {
        "users": 4,
        "active_users": 4,
        "pages": 3,
        "views": 6,
        "rows": 6,
    }
    assert (said["fallback_users"], said["filled_rows"]) == (3, 5)
    assert (said["table_as_of"], said["in_table"], said["computed"]) == (DAY[0], True, True)
    assert said["computed_days"] == [DAY[0]]
    # No recommendations of the day before: nothing to measure.
    assert quality(platform) == []
    assert metadata(first, "recommendation_quality")[DAY[0]]["measured"] is False
    with (platform.root / f"lake/exports/page_recommendations/date={DAY[0]}/page_recommendations.csv").open() as file:
        assert list(csv.reader(file))[:4] == [
            ["user_id", "email", "recommended_url", "rank"],
            ["1", "", "/c", "1"],
            ["2", "", "/c", "1"],
            ["3", "three@x.org", "/b", "1"],
        ]

    # New on the second day: c for 1 and b for 4, which were recommended; z for 2, which was not; b, x and y for 3, of
    # which b was. By popularity all the same. User 4 was recommended a first.
    deliver(platform, DAY[1], TWO)
    second = run(platform, DAY[1])
    assert quality(platform) == [(date(2017, 4, 2), 4, 0.75, pytest.approx((1 + 0 + 1 / 3 + 1) / 4), 0.75, 1.0, 0.75)]
    [more] = platform.rows(
        "analytics",
        "select ndcg_at_3, trend_hit_rate, gain, mean_popularity, distinct_share, gain_low < 0 and gain_high > 0, "
        "hit_rate_low < 0.75 and hit_rate_high > 0.75 from recommendation_quality",
    )
    # Hits at rank 1 for 1 and 3, at rank 2 for 4; 3 had three new pages. c, which 1 viewer of 4 has, three times, a and
    # b once each, b twice.
    ideal = 1 + 1 / log2(3) + 1 / 2
    assert more[:2] == (pytest.approx((1 + 1 / ideal + 1 / log2(3)) / 4), 0.75)
    assert more[2:5] == (0, pytest.approx((3 * 1 + 3 + 2 * 2) / 6 / 4), pytest.approx(3 / 6))
    assert more[5:] == (True, True)
    said = metadata(second, "recommendation_quality")[DAY[1]]
    assert (said["measured"], said["hit_rate"], said["popularity_recall_at_3"]) == (
        True,
        0.75,
        pytest.approx((1 + 0 + 1 / 3 + 1) / 4),
    )
    assert as_of(platform) == date(2017, 4, 2)


def test_related_and_popular_pages_and_reasons_by_hand(platform: Platform) -> None:
    deliver(platform, DAY[0], ONE)
    said = run(platform, DAY[0])
    # a and b have two viewers in common of 3 and 2: each is predicted from the other alone, c from none.
    related = platform.rows("analytics", "select url, related_url, rank, score from related_pages order by 1, 3")
    assert [row[:3] for row in related] == [("/a", "/b", 1), ("/b", "/a", 1)]
    assert [row[3] for row in related] == [pytest.approx(2 / (3 + 1), abs=1e-5), pytest.approx(2 / (2 + 1), abs=1e-5)]
    assert platform.rows("analytics", "select url, rank, viewers, first_viewers from popular_pages order by 2") == [
        ("/a", 1, 3, 3),
        ("/b", 2, 2, 2),
        ("/c", 3, 1, 1),
    ]
    assert platform.rows("analytics", "select * from page_recommendation_reasons order by 1, 2") == [
        (1, 1, "/c", None),
        (2, 1, "/c", None),
        (3, 1, "/b", "/a"),
        (3, 2, "/c", None),
        (4, 1, "/a", None),
        (4, 2, "/b", None),
    ]
    assert platform.rows("analytics", "select is_chosen, chosen_by, regularisation from recommendation_parameters") == [
        (True, "run config", 1.0)
    ]
    assert metadata(said, "page_recommendations")[DAY[0]]["explained_rows"] == 1
    assert metadata(said, "popular_pages")[DAY[0]]["table_as_of"] == DAY[0]
    # Another day, other reasons: none is left of those before.
    deliver(platform, DAY[1], {3: "b", 4: "a", 1: "c", 2: "c"})
    run(platform, DAY[1])
    assert platform.rows("analytics", "select * from page_recommendation_reasons order by 1, 2") == [
        (3, 1, "/c", "/a"),
        (4, 1, "/b", "/a"),
    ]


def test_one_of_the_tables_can_be_made_alone(two_days: Platform) -> None:
    run(two_days, DAY[0], select=("page_recommendations", "related_pages"))
    assert two_days.table("analytics", "popular_pages") == []
    result = two_days.materialize(DAY[1], select=("popular_pages",))
    assert result.success
    assert len(two_days.table("analytics", "popular_pages")) == 6
    assert as_of(two_days) == date(2017, 4, 1)


def test_a_day_has_one_model_whatever_was_made_before(platform: Platform) -> None:
    days = [f"2017-04-{n:02}" for n in range(1, 13)]
    for n, day in enumerate(days):
        # Two of three go to the page that is new today, the others tomorrow.
        views = {user: chr(97 + n - (user + n) % 3 // 2) for user in range(40) if n or (user + n) % 3 < 2}
        deliver(platform, day, views)
    before = ("group:raw", "group:cleaned", "users", "user_page_views")
    platform.materialize(days[0], days[-1], select=before)
    made = []
    for order in ((days[-1],), (days[5], days[-1]), (days[-1], days[5])):
        for day in order:
            assert platform.materialize(day, select="group:marts").success
        files = [platform.lake_file(table, days[-1]) for table in TABLES]
        made.append([file.read_bytes() for file in files])
    assert made[0] == made[1] == made[2]
    [(chosen_by, users)] = platform.rows(
        "analytics", "select chosen_by, users from recommendation_parameters where is_chosen"
    )
    assert users > 100
    assert chosen_by in {"playback", "default"}


def test_a_page_that_may_not_be_shown_is_recommended_to_nobody(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USER_PIPELINE_RECOMMENDATION_MIN_VIEWERS", "2")
    monkeypatch.setenv("USER_PIPELINE_RECOMMENDATION_URLS", "^/[a-z?=]+$")
    monkeypatch.setenv("USER_PIPELINE_RECOMMENDATION_EXCLUDE_URLS", "token=")
    fresh_settings()
    views = {1: ("a", "b", "reset?token=x"), 2: ("a", "b", "reset?token=x", "B"), 3: ("a", "c", "B"), 4: ("d",)}
    platform.put_views(
        "PageViews/a", [view(f"{DAY[0]}T12:00:00", f"/{page}", user) for user, pages in views.items() for page in pages]
    )
    said = metadata(run(platform, DAY[0]), "page_recommendations")[DAY[0]]
    assert table(platform) == {3: "b", 4: "ab"}
    assert (said["active_users"], said["pages"], said["withheld_pages"]) == (4, 2, 4)


def test_staging_views_and_empty_days_recommend_nothing(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    run(platform, DAY[0])
    assert (table(platform), as_of(platform)) == ({}, date(2017, 4, 1))
    deliver(platform, DAY[1], ONE)
    platform.put_views("PageViews/staging", [view(f"{DAY[1]}T12:00:00", "/s", 9, "staging")])
    run(platform, DAY[1])
    assert set(table(platform)) == {1, 2, 3, 4}
    assert "s" not in "".join(table(platform).values())
    # Nobody views anything: the window still tells, and nobody's new views can be measured.
    run(platform, DAY[2])
    assert (table(platform)[3], as_of(platform)) == ("bc", date(2017, 4, 3))
    assert quality(platform)[-1] == (date(2017, 4, 3), 0, None, None, None, 1.0, 0.75)
    # In a window of a day nobody was active.
    monkeypatch.setenv("USER_PIPELINE_RECOMMENDATION_DAYS", "1")
    fresh_settings()
    run(platform, DAY[3])
    assert (table(platform), as_of(platform)) == ({}, date(2017, 4, 4))


def fresh_settings() -> None:
    from user_pipeline import settings

    settings.current.cache_clear()


@pytest.fixture
def two_days(platform: Platform) -> Platform:
    deliver(platform, DAY[0], ONE)
    deliver(platform, DAY[1], TWO)
    platform.materialize(DAY[0], DAY[1], select=("group:raw", "group:cleaned", "users", "user_page_views"))
    return platform


def test_an_older_day_never_replaces_a_newer(two_days: Platform) -> None:
    run(two_days, DAY[1], select=RECOMMENDATIONS)
    newer = two_days.table("analytics", "page_recommendations")
    said = metadata(run(two_days, DAY[0], select=RECOMMENDATIONS), "page_recommendations")[DAY[0]]
    assert (said["computed"], said["in_table"], said["table_as_of"]) == (True, False, DAY[1])
    assert snapshot(two_days, DAY[0]) == {1: "c", 2: "c", 3: "bc", 4: "ab"}
    assert (two_days.table("analytics", "page_recommendations"), as_of(two_days)) == (newer, date(2017, 4, 2))
    # What only the older day's run makes possible.
    two_days.materialize(DAY[1], select="recommendation_quality")
    assert [row[:2] for row in quality(two_days)] == [(date(2017, 4, 2), 4)]


def test_of_a_range_the_last_day_is_computed_unless_all_are_asked_for(two_days: Platform) -> None:
    said = metadata(run(two_days, DAY[0], DAY[2], select=RECOMMENDATIONS), "page_recommendations")
    assert {day: entry["computed"] for day, entry in said.items()} == {DAY[0]: False, DAY[1]: False, DAY[2]: True}
    assert all(entry["computed_days"] == [DAY[2]] for entry in said.values())
    assert list(two_days.lake.analytics.partitions("page_recommendations")) == [date(2017, 4, 3)]
    assert as_of(two_days) == date(2017, 4, 3)
    once = table(two_days)

    said = metadata(
        run(two_days, DAY[0], DAY[2], select=RECOMMENDATIONS, config={"all_days": True}), "page_recommendations"
    )
    assert {day: (entry["computed"], entry["in_table"]) for day, entry in said.items()} == {
        DAY[0]: (True, False),
        DAY[1]: (True, False),
        DAY[2]: (True, True),
    }
    assert snapshot(two_days, DAY[0]) == {1: "c", 2: "c", 3: "bc", 4: "ab"}
    assert table(two_days) == snapshot(two_days, DAY[2]) == once
    assert [row[:2] for row in quality(two_days)] == [(date(2017, 4, 2), 4), (date(2017, 4, 3), 0)]


def test_the_asset_computes_every_day_before_one_is_stored(two_days: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    from user_pipeline.io_managers.snapshots import SnapshotIOManager

    store = SnapshotIOManager.handle_output
    given: dict[str, Any] = {}

    def watching(manager: SnapshotIOManager, context: dg.OutputContext, obj: Any) -> None:
        assert two_days.lake_files("page_recommendations") == []
        given.update({day: (file.path, file.path.read_bytes(), dict(file.metadata)) for day, file in obj.items()})
        store(manager, context, obj)

    monkeypatch.setattr(SnapshotIOManager, "handle_output", watching)
    said = metadata(
        run(two_days, DAY[0], DAY[1], select=RECOMMENDATIONS, config={"all_days": True}), "page_recommendations"
    )
    assert list(given) == DAY[:2]
    for day, (path, content, shown) in given.items():
        assert not path.exists()
        stored = two_days.lake_file("page_recommendations", day)
        assert stored.read_bytes() == content
        assert {"users", "rows", "window_days", "seconds_computing"} <= set(shown)
        assert {name: said[day][name] for name in shown} == shown
        assert said[day]["dagster/partition_row_count"] == shown["rows"]


def test_days_of_a_range_that_were_not_computed_are_not_held_to_the_views_of_today(two_days: Platform) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        run(two_days, DAY[0], select=RECOMMENDATIONS, instance=instance)
        deliver(two_days, DAY[0], {3: "b", 5: "d"}, name=" late")
        run(two_days, DAY[0], DAY[1], instance=instance)
    assert 5 not in snapshot(two_days, DAY[0])
    assert 5 in table(two_days)


def test_late_data_for_an_old_day_change_its_snapshot_and_the_newest_day_with_the_table(two_days: Platform) -> None:
    run(two_days, DAY[0], DAY[1], select=RECOMMENDATIONS, config={"all_days": True})
    assert set("ax") <= set(table(two_days)[4])
    deliver(two_days, DAY[0], {4: "ax"}, name=" late")
    said = metadata(run(two_days, DAY[0]), "page_recommendations")[DAY[0]]
    assert (said["in_table"], said["table_as_of"]) == (False, DAY[1])
    assert said["computed_days"] == [DAY[0], DAY[1]]
    assert set(snapshot(two_days, DAY[0])[1]) == set("cx")
    assert not set("ax") & set(table(two_days)[4])
    at_once = table(two_days)
    assert at_once == snapshot(two_days, DAY[1])
    run(two_days, DAY[1])
    assert table(two_days) == at_once


def test_a_later_run_of_users_brings_its_e_mails_along(two_days: Platform) -> None:
    run(two_days, DAY[1], select=RECOMMENDATIONS)
    assert {row[1] for row in two_days.table("analytics", "page_recommendations")} == {None}
    for content, expected in (
        (update(f"{DAY[1]}T01:00:00", 3, "new@x.org"), "new@x.org"),
        (update(f"{DAY[1]}T02:00:00", 3, "newer@x.org"), "newer@x.org"),
        ("", None),
    ):
        two_days.put("UserUpdates/a.csv", content)
        two_days.materialize(DAY[1], select=("raw_user_updates", "user_updates", "users"))
        brought = two_days.table("analytics", "page_recommendations")
        assert {row[1] for row in brought if row[0] == 3} == {expected}
        assert {row[1] for row in brought if row[0] != 3} == {None}
        run(two_days, DAY[1], select=RECOMMENDATIONS)
        assert two_days.table("analytics", "page_recommendations") == brought


def test_odd_urls_and_huge_user_ids_arrive_unchanged(platform: Platform) -> None:
    urls = ["/a,b", '/"q"', "/ü\U0001f600", "/new\nline", "/" + "x" * 3000, "/%s\\N", "/{y}"]
    users = [2**53 + 1, 2**53 + 2, 2**62 + 1, 2**63 - 1]
    lines = [view(f"{DAY[0]}T12:00:00", url, users[n % 4]) for n, url in enumerate(urls)]
    platform.put_views("PageViews/a", [*lines, *(view(f"{DAY[0]}T13:00:00", urls[0], user) for user in users)])
    run(platform, DAY[0])
    rows = platform.rows("analytics", "select user_id, recommended_url, rank from page_recommendations order by 1, 3")
    assert [row[0] for row in rows] == [user for user in users for _ in range(3)]
    assert {row[1] for row in rows} <= set(urls)
    file = platform.root / f"lake/exports/page_recommendations/date={DAY[0]}/page_recommendations.csv"
    with file.open(newline="") as lines_of_file:
        exported = [(int(user), url, int(rank)) for user, _, url, rank in list(csv.reader(lines_of_file))[1:]]
    assert exported == rows


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"neighbours": 0}, "neighbours=0 cannot be used: expected a number from 1 to 500"),
        ({"neighbours": 501}, "neighbours=501 cannot be used"),
        ({"regularisation": 0.0}, "regularisation=0.0 cannot be used: expected a finite number above 0"),
        ({"regularisation": float("nan")}, "regularisation=nan cannot be used"),
        ({"regularisation": float("inf")}, "regularisation=inf cannot be used"),
    ],
)
def test_a_number_that_cannot_be_used_is_named_and_not_tried_again(
    two_days: Platform, config: dict[str, Any], said: str
) -> None:
    with pytest.raises(dg.Failure, match=said):
        run(two_days, DAY[1], select=RECOMMENDATIONS, config=config)
    assert two_days.lake_files("page_recommendations") == []


@pytest.mark.parametrize("config", [{"all_days": 3}, {"neighbors": 10}])
def test_a_choice_there_is_not_is_named(two_days: Platform, config: dict[str, Any]) -> None:
    [name] = config
    with pytest.raises(dg.DagsterInvalidConfigError, match=name):
        run(two_days, DAY[1], select=RECOMMENDATIONS, config=config)


def test_fewer_neighbours_and_another_regularisation_can_be_chosen(two_days: Platform) -> None:
    run(two_days, DAY[1], select=RECOMMENDATIONS, config={"regularisation": 500.0})
    many = snapshot(two_days, DAY[1])
    run(two_days, DAY[1], select=RECOMMENDATIONS, config={"neighbours": 1})
    assert set(snapshot(two_days, DAY[1])) == set(many)
    assert snapshot(two_days, DAY[1]) != many


KILLED = """
import os, signal, sys
from pathlib import Path
from user_pipeline import settings
from user_pipeline.io_managers import snapshots
from user_pipeline.lake import registry
from user_pipeline.resources.postgres import Databases
from user_pipeline.recommendations.day import TABLES
from user_pipeline_tests.platform import Platform

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

{patch}
current = settings.current()
platform = Platform(Path(sys.argv[1]), dict(os.environ), current, Databases(current))
platform.materialize(sys.argv[2], select="page_recommendations")
"""


@pytest.mark.parametrize(
    "patch",
    [
        "snapshots.SnapshotIOManager.put_new = die",
        "snapshots.publish = die",
        "registry.register = die",
        "registry.write_log = die",
        "snapshots.SnapshotIOManager._show = die",
    ],
)
def test_killed_between_snapshot_and_table_a_second_run_ends_as_one(two_days: Platform, patch: str) -> None:
    run(two_days, DAY[0], select=RECOMMENDATIONS)
    before = two_days.table("analytics", "page_recommendations")
    done = subprocess.run(
        [sys.executable, "-c", KILLED.format(patch=patch), str(two_days.root), DAY[1]],
        env={**environment(), **two_days.environment},
        capture_output=True,
        check=False,
    )
    assert done.returncode == -9, done.stderr.decode()[-2000:]
    assert list(two_days.lake.analytics.partitions("page_recommendations")) == [date(2017, 4, 1)]
    assert (two_days.table("analytics", "page_recommendations"), as_of(two_days)) == (before, date(2017, 4, 1))

    run(two_days, DAY[1], select=RECOMMENDATIONS)
    assert as_of(two_days) == date(2017, 4, 2)
    assert table(two_days) == snapshot(two_days, DAY[1])
    assert table(two_days) != letters([(row[0], row[2]) for row in before])


def environment() -> dict[str, str]:
    import os

    return {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}


def test_readers_see_the_old_table_or_the_new(two_days: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    from user_pipeline.io_managers import snapshots
    from user_pipeline.warehouse.snapshots import publish

    run(two_days, DAY[0], select=RECOMMENDATIONS)
    before = two_days.table("analytics", "page_recommendations")
    seen: list[list[tuple[Any, ...]]] = []

    def watching(transaction: Any, *arguments: Any) -> bool:
        execute = transaction.execute

        def spying(sql: str, parameters: tuple[Any, ...] = ()) -> int:
            count: int = execute(sql, parameters)
            if not sql.startswith("analyze incoming"):
                seen.append(two_days.table("analytics", "page_recommendations"))
            return count

        with monkeypatch.context() as patch:
            patch.setattr(transaction, "execute", spying)
            return publish(transaction, *arguments)

    monkeypatch.setattr(snapshots, "publish", watching)
    run(two_days, DAY[1], select=RECOMMENDATIONS)
    assert len(seen) == 8
    assert all(rows == before for rows in seen)
    assert two_days.table("analytics", "page_recommendations") != before

"""Days of mostly rejected lines, and of unusually few or many rows."""

from datetime import date, timedelta

import pytest
from click.testing import CliRunner

from user_pipeline.cli.main import main
from user_pipeline.defs.raw.checks import reject_share_of_day, volume
from user_pipeline.ingest.intake import newly_read
from user_pipeline.reconcile.full_refresh import recover
from user_pipeline_tests.ingest.reading import FIRST, ingest, manifest_of
from user_pipeline_tests.platform import Platform, view

SECOND = FIRST + timedelta(days=1)


def put(platform: Platform, key: str, good: int, bad: int, day: date = FIRST) -> None:
    platform.put_views(
        f"PageViews/{key}", [*[view(f"{day}T10:00:00", f"/{n}") for n in range(good)], *["broken"] * bad]
    )
    ingest(platform)


def blocked(platform: Platform, *days: date, limit: float = 0.5) -> str | None:
    result = reject_share_of_day(manifest_of(platform), days or (FIRST,), limit)
    assert result.passed is (result.description is None)
    return result.description


def test_a_day_of_mostly_rejected_lines_stays_blocked_until_it_is_delivered_whole(platform: Platform) -> None:
    put(platform, "good", 3, 0)
    put(platform, "bad a@x.org", 1, 6)
    said = "2017-04-01: 6 of 10 newly read lines were rejected, 6 of them in PageViews/bad ***"
    assert blocked(platform) == blocked(platform) == said
    assert blocked(platform, limit=0.6) is None
    # Accepted now, whatever the limit is.
    assert blocked(platform) is None
    put(platform, "worse", 1, 2)
    assert blocked(platform) == "2017-04-01: 2 of 3 newly read lines were rejected, 2 of them in PageViews/worse"
    put(platform, "worse", 3, 0)
    assert blocked(platform) is None


def test_what_is_blank_does_not_count(platform: Platform) -> None:
    platform.put_views("PageViews/a", [view(f"{FIRST}T10:00:00"), *[" "] * 8, "broken", "broken"])
    ingest(platform)
    [of] = newly_read(manifest_of(platform), [FIRST])
    assert (of.lines, of.rejected) == (3, 2)


def test_a_fault_of_one_day_blocks_no_other(platform: Platform) -> None:
    put(platform, "first", 1, 9)
    put(platform, "second", 9, 1, SECOND)
    assert blocked(platform, FIRST, SECOND) == (
        "2017-04-01: 9 of 10 newly read lines were rejected, 9 of them in PageViews/first"
    )
    assert blocked(platform, SECOND) is None
    assert blocked(platform, FIRST) is not None


def test_an_object_without_any_row_counts_for_the_days_around_its_delivery(platform: Platform) -> None:
    put(platform, "all bad", 0, 5)
    with manifest_of(platform).registry.database.transaction() as transaction:
        transaction.execute("update pipeline.ingested_objects set last_modified = '2017-04-03 00:30+00'")
    days = [FIRST + timedelta(days=number) for number in range(4)]
    assert [blocked(platform, day) is None for day in days] == [True, False, False, True]


@pytest.mark.parametrize("options", [["--day", "2017-04-01"], ["--from", "2017-04-01", "--to", "2017-04-02"]])
def test_a_day_may_pass_on_purpose(platform: Platform, options: list[str]) -> None:
    put(platform, "bad", 1, 6)
    stages = ["group:raw", "group:cleaned"]
    assert not platform.materialize("2017-04-01", select=stages, raise_on_error=False).success
    assert platform.rows("staging", "select to_regclass('public.page_views')::text") == [(None,)]
    answer = CliRunner().invoke(main, ["accept", "page_views", *options])
    assert (answer.exit_code, answer.output) == (
        0,
        f"page_views: what was read until now is accepted for 2017-04-01...{options[-1]}; materialize these days now\n",
    )
    assert platform.materialize("2017-04-01", select=stages).success
    assert len(platform.table("staging", "page_views")) == 1
    for database in (platform.staging, platform.analytics):
        with database.transaction() as transaction:
            transaction.execute("drop schema if exists pipeline cascade")
            transaction.execute("drop schema public cascade")
            transaction.execute("create schema public")
    with platform.engine() as engine:
        recover(platform.lake, engine)
    assert blocked(platform) is None
    put(platform, "worse", 0, 1)
    put(platform, "worse too", 1, 2)
    assert blocked(platform) is not None


@pytest.mark.parametrize("options", [[], ["--day", "2017-04-01", "--to", "2017-04-02"], ["--from", "2017-04-02"],
                                     ["--from", "2017-04-02", "--to", "2017-04-01"]])  # fmt: skip
def test_days_that_are_none_are_refused(platform: Platform, options: list[str]) -> None:
    assert platform.root.exists()
    answer = CliRunner().invoke(main, ["accept", "page_views", *options])
    assert answer.exit_code == 2
    assert "give --day, or --from and --to in this order" in answer.output


def test_an_unusual_number_of_rows_is_told_of(platform: Platform) -> None:
    rows = [10, 0, 10, 10, 10, 11, 12, 4, 5, 20, 21, 0]
    for number, count in enumerate(rows):
        day = FIRST + timedelta(days=number)
        platform.put_views(f"PageViews/{day}", [view(f"{day}T10:00:00", f"/{n}") for n in range(count)])
    ingest(platform)
    manifest = manifest_of(platform)
    every = [FIRST + timedelta(days=number) for number in range(len(rows))]
    said = [
        "2017-04-08: 4 rows; the median of the days before it is 10",
        "2017-04-11: 21 rows; the median of the days before it is 10",
        "2017-04-12: 0 rows; the median of the days before it is 10",
    ]
    found = volume(manifest, every)
    assert (found.passed, found.description) == (False, "; ".join(said))
    assert [volume(manifest, [day]).description for day in every[6:9]] == [None, said[0], None]
    # Long after, and before anything was delivered.
    assert volume(manifest, [FIRST + timedelta(days=300), FIRST - timedelta(days=3)]).passed

"""The end of retention: old rows, rejects and identities go, sums stay, and nothing brings them back or takes these."""

import os
from datetime import UTC, date, datetime
from typing import Any

import pytest
from click.testing import CliRunner

from user_pipeline import settings
from user_pipeline.cli.main import main
from user_pipeline.defs.automation.data_retention import remove_data_past_retention
from user_pipeline.defs.resources import RESOURCES
from user_pipeline.ingest.feeds import FEEDS, USER_UPDATES
from user_pipeline.reconcile.retention import Retired, end_retention
from user_pipeline_tests.cli.test_lake_commands import lose, run
from user_pipeline_tests.ingest.reading import manifest_of
from user_pipeline_tests.platform import LOG_PIPELINE, Platform, update, view

OLD, KEPT, LAST = "2017-04-01", "2017-04-03", "2017-04-04"
FIRST = date(2017, 4, 3)


@pytest.fixture
def delivered(platform: Platform) -> Platform:
    """Old and young days of both feeds, in objects of their own and in one of both, with rejects in one file."""
    platform.put_views("PageViews/old", [view(f"{OLD}T10:00:00", f"/{n}", n) for n in (1, 2)] + ["broken old"])
    platform.put_views("PageViews/both", [view(f"{day}T11:00:00", "/1", 1) for day in (OLD, KEPT, LAST)] + ["broken"])
    platform.put(
        "UserUpdates/old", update(f"{OLD}T10:00:00", 1, "old@x.org") + update(f"{OLD}T10:00:00", 2, "two@x.org")
    )
    platform.put("UserUpdates/new", update(f"{KEPT}T10:00:00", 1, "new@x.org"))
    long_ago = datetime(2017, 4, 2, tzinfo=UTC).timestamp()
    os.utime(platform.root / "source/PageViews/old", (long_ago, long_ago))
    every_day = {"ops": {"page_recommendations": {"config": {"all_days": True}}}}
    assert platform.materialize(OLD, LAST, select=LOG_PIPELINE, run_config=every_day).success
    return platform


def end(platform: Platform, first: date = FIRST) -> Retired:
    with platform.engine() as engine:
        return end_retention(platform.lake, engine, first, datetime.now(UTC))


def views(platform: Platform) -> list[tuple[Any, ...]]:
    return platform.rows("analytics", "select user_id, email, url, count from user_page_views order by 1, 3")


SUMS = [(1, "new@x.org", "/1", 4), (2, None, "/2", 1)]


def test_rows_rejects_and_identities_go_and_sums_stay(delivered: Platform) -> None:
    assert views(delivered) == [(1, "new@x.org", "/1", 4), (2, "two@x.org", "/2", 1)]
    before = [manifest_of(delivered, feed).account() for feed in FEEDS]
    exports = delivered.lake_files("exports")
    retired = end(delivered)
    assert retired.unfinished == []
    assert retired.days == 2
    assert views(delivered) == SUMS
    assert delivered.table("analytics", "users") == [(1, "new@x.org", "Ann", datetime(2017, 4, 3, 10))]
    assert {str(ts.date()) for ts, *_ in delivered.table("staging", "page_views")} == {KEPT, LAST}
    assert {str(at.date()) for at, *_ in delivered.table("staging", "user_updates")} == {KEPT}
    assert [line for *_, line in delivered.table("staging", "rejected_lines")] == ["broken"]
    # The file had the rejects of both objects.
    assert retired.files == 2 * 2 + 2 * 2 + 2 + 1 + 2 * 2
    gone = {path for path in delivered.lake_files() if f"date={OLD}" in path or "date=2017-04-02" in path}
    assert {path.split("/")[0] + "/" + path.split("/")[1] for path in gone} == {
        "daily/user_page_views",
        # The day before the first that is kept: by it that one is measured.
        "snapshots/page_recommendations",
        *(f"snapshots/{table}" for table in ("popular_pages", "recommendation_parameters", "related_pages")),
        "quality/recommendation_quality",
        # It names nobody.
        "exports/traffic_report",
    }
    assert len(exports) - len(delivered.lake_files("exports")) == 4
    # How many rows there were is known still, object by object.
    assert [manifest_of(delivered, feed).account() for feed in FEEDS] == before
    for feed in FEEDS:
        assert all(entry.unaccounted == 0 for entry in manifest_of(delivered, feed).entries())
    said = run("verify")
    assert said[-1] == "No differences."
    assert f"  past their retention, and not compared: {OLD}...2017-04-02" in said
    assert end(delivered) == Retired(0, 0, [])
    assert delivered.materialize(KEPT, LAST).success
    assert views(delivered) == SUMS


def test_late_rows_are_rejected_and_counted_and_no_sum_is_lost(delivered: Platform) -> None:
    end(delivered)
    delivered.put_views("PageViews/late", [view(f"{OLD}T12:00:00", "/late", 5), view(f"{LAST}T12:00:00", "/late", 5)])
    # Both objects are read again as well: what they had of old days is in the sums and stays there.
    run("reread", "page_views", "--all")
    run("reread", "user_updates", "--all")
    manifest = manifest_of(delivered)
    entries = {entry.key: entry for entry in manifest.entries()}
    assert entries["PageViews/late"].rejected == {"past_retention": 1}
    assert entries["PageViews/old"].rejected == {"malformed": 1, "past_retention": 2}
    assert all(entry.unaccounted == 0 for entry in entries.values())
    rows = delivered.rows("staging", "select distinct line from rejected_lines where reason = 'past_retention'")
    assert rows == [("",)]
    assert set(manifest.changes()) == {date(2017, 4, 3), date(2017, 4, 4)}
    assert set(manifest_of(delivered, USER_UPDATES).changes()) == {date(2017, 4, 3)}
    assert delivered.materialize(KEPT, LAST).success
    assert views(delivered) == [*SUMS, (5, None, "/late", 1)]
    assert run("verify")[-1] == "No differences."


@pytest.mark.parametrize("select", ["raw_page_views", "page_views", "user_page_views", "users"])
def test_a_day_past_its_retention_is_not_materialized(delivered: Platform, select: str) -> None:
    end(delivered)
    result = delivered.materialize("2017-04-02", LAST, select=select, raise_on_error=False, ingest=False)
    assert not result.success
    [failure] = [event for event in result.all_events if event.is_step_failure]
    assert "2017-04-02 is past its retention" in str(failure.step_failure_data)
    assert "first day that can be materialized is 2017-04-03" in str(failure.step_failure_data)
    assert views(delivered) == SUMS


@pytest.mark.parametrize("vacuumed", [False, True])
def test_what_is_gone_is_known_to_the_lake(delivered: Platform, *, vacuumed: bool) -> None:
    end(delivered)
    before = [list(manifest_of(delivered, feed).entries()) for feed in FEEDS]
    if vacuumed:
        run("vacuum")
    lose(delivered, "staging", "analytics")
    run("recover")
    assert [list(manifest_of(delivered, feed).entries()) for feed in FEEDS] == before
    assert views(delivered) == SUMS
    assert delivered.materialize(KEPT, LAST).success
    assert run("verify")[-1] == "No differences."
    assert views(delivered) == SUMS


def test_days_that_were_not_materialized_are_named(delivered: Platform) -> None:
    delivered.put_views("PageViews/more", [view("2017-04-02T12:00:00", "/more", 5)])
    run("reread", "page_views")
    assert end(delivered).unfinished == [date(2017, 4, 2)]
    assert run("verify")[-1] == "No differences."


def test_everything_may_be_past_its_retention(delivered: Platform) -> None:
    end(delivered, date(2017, 5, 1))
    assert delivered.table("analytics", "users") == []
    assert views(delivered) == [(1, None, "/1", 4), (2, None, "/2", 1)]
    assert run("verify")[-1] == "No differences."
    said = CliRunner().invoke(main, ["files", "page_views"])
    assert said.output == ""


def test_the_job_removes_what_is_older_than_the_setting(delivered: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    def job(days: str) -> Any:
        monkeypatch.setenv("USER_PIPELINE_RETENTION_DAYS", days)
        settings.current.cache_clear()
        return remove_data_past_retention.execute_in_process(
            resources={name: RESOURCES[name] for name in ("engine", "storage", "databases", "lake")},
            raise_on_error=False,
        )

    unset = job("")
    assert not unset.success
    assert "USER_PIPELINE_RETENTION_DAYS is not set" in str(
        [event.step_failure_data for event in unset.all_events if event.is_step_failure]
    )
    days = (datetime.now(UTC).date() - FIRST).days
    assert job(str(days)).success
    assert views(delivered) == SUMS

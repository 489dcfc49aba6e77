"""`user-pipeline status`: one screen, and an exit code that tells healthy from not."""

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from click.testing import CliRunner, Result

from user_pipeline import settings
from user_pipeline.cli.main import main
from user_pipeline.resources.embedded_postgres import EmbeddedPostgres
from user_pipeline_tests import CHECKOUT
from user_pipeline_tests.ingest.reading import ingest
from user_pipeline_tests.platform import Platform, update, view

YESTERDAY = (datetime.now(UTC) - timedelta(days=1)).date()
BEFORE = YESTERDAY - timedelta(days=1)


@pytest.fixture
def instance(
    platform: Platform, postgres: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    """An instance that the command finds, and a platform that began the day before yesterday."""
    assert platform
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    postgres.create_database("dagster")
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", postgres.url("dagster"))
    settings.current.cache_clear()
    with dg.DagsterInstance.get() as opened:
        yield opened


def call(*options: str) -> Result:
    return CliRunner().invoke(main, ["status", *options])


def told(*options: str) -> dict[str, Any]:
    result = call("--json", *options)
    found: dict[str, Any] = json.loads(result.output)
    assert found["healthy"] == (result.exit_code == 0)
    return found


def deliver(platform: Platform, more: str = "") -> None:
    for day in (BEFORE, YESTERDAY):
        platform.put(f"UserUpdates/{day}", update(f"{day}T08:00:00", 1))
        platform.put_views(f"PageViews/{day}", [view(f"{day}T09:00:00", f"/{n}") for n in range(60)])
    if more:
        platform.put_views("PageViews/more", [more, view(f"{YESTERDAY}T09:00:00", "/more")])


def materialize(platform: Platform, instance: dg.DagsterInstance) -> None:
    assert platform.materialize(str(BEFORE), str(YESTERDAY), instance=instance).success


def test_a_healthy_platform_fits_one_screen(platform: Platform, instance: dg.DagsterInstance) -> None:
    deliver(platform)
    materialize(platform, instance)
    result = call()
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 100
    assert lines[-1] == "healthy"
    for name in ("SOURCE_URL", "LAKE_URL", "STAGING_URL", "ANALYTICS_URL"):
        assert [line for line in lines if line.startswith("ok") and f"USER_PIPELINE_{name}" in line], name
    found = told()
    days = {each.pop("asset"): each for each in found["stored"]["days"]}
    assert days["user_page_views"] == {"first": str(BEFORE), "last": str(YESTERDAY), "missing": 0, "unsynced": 0}
    assert {each["feed"]: each["waiting"] for each in found["stored"]["objects"]} == {
        "user_updates": 0,
        "page_views": 0,
    }
    assert (found["run"]["status"], found["run"]["days"]) == ("SUCCESS", f"{BEFORE}...{YESTERDAY}")
    assert found["run"]["seconds"] > 0
    assert found["stored"]["lake_bytes"] > 0
    assert set(found["stored"]["table_bytes"]) == {"USER_PIPELINE_STAGING_URL", "USER_PIPELINE_ANALYTICS_URL"}
    assert found["problems"] == []


def test_a_failing_check_needs_attention(platform: Platform, instance: dg.DagsterInstance) -> None:
    deliver(platform)
    materialize(platform, instance)
    assert call().exit_code == 0
    # The run after it fails as well: what most lines are rejected of does not flow on.
    platform.put_views("PageViews/bad", ["not json"] * 200 + [view(f"{YESTERDAY}T09:00:00", "/bad")])
    platform.materialize(str(YESTERDAY), select="raw_page_views", instance=instance, raise_on_error=False)
    result = call()
    assert result.exit_code == 1, result.output
    [line] = [line for line in result.output.splitlines() if "ERROR" in line]
    assert line.startswith(f"  ERROR raw_page_views reject_share_of_day {YESTERDAY}: ")
    # A warning is shown and changes nothing.
    assert "WARN raw_page_views reject_share " in result.output
    problems = told()["problems"]
    assert "raw_page_views: the check reject_share_of_day fails" in problems
    assert not [problem for problem in problems if "the check reject_share fails" in problem]


def test_objects_that_wait_are_counted_and_are_no_fault(platform: Platform, instance: dg.DagsterInstance) -> None:
    deliver(platform)
    materialize(platform, instance)
    platform.put_views("PageViews/new", [view(f"{YESTERDAY}T10:00:00")])
    result = call()
    assert result.exit_code == 0, result.output
    assert "1 waiting" in result.output
    # Read, but not yet in the day: the day is out of date.
    ingest(platform, now=datetime.now(UTC), start=settings.current().start_date)
    found = told()
    assert [each["unsynced"] for each in found["stored"]["days"] if each["asset"] == "raw_page_views"] == [1]
    assert found["problems"] == ["raw_page_views: 1 days unsynced"]


def test_days_that_are_missing_and_yesterday_that_is_late(platform: Platform, instance: dg.DagsterInstance) -> None:
    assert instance
    deliver(platform)
    long_ago = BEFORE - timedelta(days=3)
    for day in (long_ago, BEFORE):
        assert platform.materialize(str(day), checks=False).success
    found = told()
    assert {each["missing"] for each in found["stored"]["days"] if each["asset"] == "page_views"} == {2}
    late = {"user_page_views", "page_recommendations"}
    # Until three o'clock nobody misses yesterday; and midnight may have passed since these tests were loaded.
    due = (datetime.now(UTC) - timedelta(hours=3)).date() - timedelta(days=1)
    expected = set() if due == BEFORE else late
    assert set(found["stored"]["overdue"]) == expected
    assert call().exit_code == 1


def test_a_database_that_does_not_answer_is_named_with_its_setting(
    platform: Platform, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert instance
    assert platform
    monkeypatch.setenv("USER_PIPELINE_ANALYTICS_URL", "postgresql://writer:not-shown@127.0.0.1:1/analytics")
    settings.current.cache_clear()
    for options in ((), ("--services",)):
        result = call(*options)
        assert result.exit_code == 3, result.output
        assert [line for line in result.output.splitlines() if line.startswith("FAIL") and "ANALYTICS_URL" in line]
        assert "not-shown" not in result.output
    assert told("--services")["problems"][0].startswith("USER_PIPELINE_ANALYTICS_URL: ")


def test_rejected_lines_of_the_last_day_are_told_by_reason(platform: Platform, instance: dg.DagsterInstance) -> None:
    deliver(platform, more="not json")
    materialize(platform, instance)
    rejects = {each["feed"]: each for each in told()["stored"]["rejects"]}
    assert rejects["page_views"] == {
        "feed": "page_views",
        "day": str(YESTERDAY),
        "lines": 62,
        "rejected": {"malformed": 1},
    }


def test_in_a_checkout_runs_are_those_of_its_dagster_yaml(
    platform: Platform, postgres: EmbeddedPostgres, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert platform
    postgres.create_database("dagster")
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", postgres.url("dagster"))
    settings.current.cache_clear()
    monkeypatch.chdir(place)
    # Elsewhere Dagster has no records.
    assert told()["checks"] is None
    shutil.copy(CHECKOUT / "dagster.yaml", place)
    found = told()
    assert (found["run"], found["checks"]) == (None, [])
    assert [path.name for path in place.iterdir()] == ["dagster.yaml"]


def test_a_machine_without_anything_gets_no_database_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER_PIPELINE_DATA_DIR", str(tmp_path / "data"))
    settings.current.cache_clear()
    result = call()
    settings.current.cache_clear()
    assert result.exit_code == 3
    assert "not made yet" in result.output
    assert not (tmp_path / "data/postgres").exists()

"""`user-pipeline reread`, and what an object was read with, through Dagster, the log of a run and a recovery."""

import shutil
import sys
from pathlib import Path

import dagster as dg
import pytest

from user_pipeline import settings
from user_pipeline_tests.cli.test_lake_commands import lose, run
from user_pipeline_tests.ingest.reading import manifest_of
from user_pipeline_tests.platform import Platform, view

FILTER = "USER_PIPELINE_PAGE_VIEWS_FILTER"


def choose(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv(FILTER, command)
    settings.current.cache_clear()


def test_objects_are_read_again_when_it_is_asked_for(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("PageViews/a", "PageViews/b", "PageViews/expired"):
        platform.put_views(key, [view("2017-04-01T10:00:00", f"/{key}"), view("2017-04-02T10:00:00", f"/{key}")])
    choose(monkeypatch, "head -n 1")
    assert platform.materialize("2017-04-01", "2017-04-02").success
    (platform.root / "source/PageViews/expired").unlink()
    assert run("objects")[0] == "page_views  PageViews/a  1 rows  0 rejected  2017-04-01...2017-04-01  filtered"
    assert run("reread", "page_views") == ["PageViews: 0 of 2 objects read, 0 rows, 0 rejected lines, 0 days changed"]
    monkeypatch.delenv(FILTER)
    settings.current.cache_clear()
    done = run("reread", "page_views")
    assert done[-2:] == [
        "PageViews: 2 of 2 objects read, 4 rows, 0 rejected lines, 1 days changed",
        "The sensor has them rematerialized; by hand: --partition-range 2017-04-02...2017-04-02",
    ]
    assert platform.materialize("2017-04-02").success
    assert platform.rows("staging", "select ts::date::text, count(*) from page_views group by 1 order by 1") == [
        ("2017-04-01", 3),
        ("2017-04-02", 2),
    ]
    assert "2 of 2 objects read, 4 rows, 0 rejected lines, 0 days" in run("reread", "page_views", "--all")[-1]


def test_what_objects_were_read_with_comes_back_from_the_lake(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform.put_views("PageViews/a", [view("2017-04-01T10:00:00")])
    choose(monkeypatch, "cat")
    platform.materialize("2017-04-01", checks=False)
    platform.put_views("PageViews/b", [view("2017-04-01T10:00:00", "/b")])
    monkeypatch.delenv(FILTER)
    settings.current.cache_clear()
    platform.materialize("2017-04-01", checks=False)
    before = list(manifest_of(platform).entries())
    assert [entry.filter for entry in before] == ["cat", None]
    assert [bool(entry.filter_version) for entry in before] == [True, False]
    shutil.move(platform.root / "source", platform.root / "gone")
    for checkpoint in (False, True):
        if checkpoint:
            run("vacuum")
        lose(platform, "staging", "analytics")
        run("recover")
        assert list(manifest_of(platform).entries()) == before


def test_a_run_tells_what_the_filter_said_and_what_it_broke(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "filter.py"
    script.write_text(
        "import os, sys\nsys.stderr.write('saw ann@example.com\\n')\nsys.stdout.write(sys.stdin.read())\n"
        "sys.exit(os.environ['SOURCE_OBJECT'].endswith('b') and 'line 3: no date')\n"
    )
    for key in ("PageViews/a", "PageViews/b"):
        platform.put_views(key, [view("2017-04-01T10:00:00")])
    choose(monkeypatch, f"{sys.executable} {script}")
    with dg.DagsterInstance.ephemeral() as instance:
        result = platform.materialize("2017-04-01", select="raw_page_views", instance=instance, raise_on_error=False)
        logged = "\n".join(entry.user_message for entry in instance.all_logs(result.run_id))
        [failure] = [event for event in result.all_events if event.is_step_failure]
    assert "PageViews/a: its filter said:\nsaw ***" in logged
    assert "ann@" not in logged
    assert failure.step_failure_data.error is not None
    assert "PageViews/b: its filter exited with status 1: line 3: no date" in str(failure.step_failure_data)
    assert "All others are in" in str(failure.step_failure_data)


def test_a_filter_that_is_not_there_fails_the_run_with_the_setting(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform.put_views("PageViews/a", [view("2017-04-01T10:00:00")])
    choose(monkeypatch, "no-such-program")
    result = platform.materialize("2017-04-01", select="raw_page_views", raise_on_error=False)
    [failure] = [event for event in result.all_events if event.is_step_failure]
    assert f"{FILTER}='no-such-program': 'no-such-program' cannot be started: there is no such program in PATH=" in str(
        failure.step_failure_data
    )

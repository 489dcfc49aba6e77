"""What the command says of the objects that were read, and of what nothing refers to."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from user_pipeline.cli.main import main
from user_pipeline_tests import CHECKOUT
from user_pipeline_tests.ingest.reading import ingest
from user_pipeline_tests.platform import Platform, update, view


def run(*arguments: str) -> list[str]:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def test_objects_are_listed_with_what_they_brought(platform: Platform) -> None:
    platform.put_views("PageViews/a", [view("2017-04-01T00:00:00"), view("2017-04-03T00:00:00"), "broken"])
    platform.put_views("PageViews/b", [view("2017-04-02T00:00:00")] * 2)
    platform.put("PageViews/cut.gz", b"\x1f\x8b\x08")
    assert run("objects") == []
    platform.materialize("2017-04-01", select="raw_page_views", raise_on_error=False)
    first, second, cut = run("objects")
    assert first == "page_views  PageViews/a  2 rows  1 rejected  2017-04-01...2017-04-03"
    assert second == "page_views  PageViews/b  2 rows  0 rejected  2017-04-02...2017-04-02"
    assert run("objects", "--day", "2017-04-03") == [
        "page_views  PageViews/a  1 rows  1 rejected  2017-04-01...2017-04-03"
    ]
    assert run("objects", "--unread") == [cut]
    assert cut.startswith("page_views  PageViews/cut.gz  0 rows  0 rejected  no day  ")


def test_vacuum_says_what_it_removed(platform: Platform) -> None:
    for url in ("/a", "/b"):
        platform.put_views("PageViews/a", [view("2017-04-01T00:00:00", url)])
        platform.materialize("2017-04-01", select="raw_page_views", checks=False)
    assert len(platform.lake_files("raw")) == 2
    # The log of each ingest and of each raw day, before they become one.
    assert run("vacuum") == ["removed 0 files of 0.0 MB and 4 logs"]
    three_days_ago = time.time() - 3 * 86400
    for path in platform.lake_files("raw"):
        os.utime(platform.root / "lake" / path, (three_days_ago, three_days_ago))
    assert run("vacuum") == ["removed 0 files of 0.0 MB and 0 logs"]
    with platform.staging.transaction() as transaction:
        for table, column in (("lake_files", "superseded_at"), ("replaced_files", "replaced_at")):
            transaction.execute(f"update pipeline.{table} set {column} = {column} - interval '3 days'")
    assert run("vacuum") == ["removed 1 files of 0.0 MB and 0 logs"]
    assert [str(platform.root / "lake" / path) for path in platform.lake_files("raw")] == platform.lake.urls(
        "raw_page_views"
    )


def lose(platform: Platform, *databases: str) -> None:
    """Drop everything that is in databases."""
    for name in databases:
        with getattr(platform, name).transaction() as transaction:
            transaction.execute("drop schema public, pipeline cascade")
            transaction.execute("create schema public")


def test_two_lost_databases_are_filled_again_without_the_source(platform: Platform) -> None:
    days = ("2017-04-01", "2017-04-03")
    platform.put("UserUpdates/a", update(f"{days[0]}T00:00:00", 1) + "broken\n" + update(f"{days[1]}T00:00:00", 2))
    for number in range(3):
        platform.put_views(
            f"PageViews/{number % 2}", [view(f"{day}T0{number}:00:00", f"/{number}") for day in days] + ["broken"]
        )
        platform.materialize(*days)
        if number == 1:
            run("vacuum")
    tables = {name: platform.table("analytics", name) for name in ("users", "user_page_views", "page_recommendations")}
    shutil.move(platform.root / "source", platform.root / "gone")
    (platform.root / "source").mkdir()
    lose(platform, "staging", "analytics")
    said = CliRunner().invoke(main, ["objects"])
    assert said.exit_code == 1
    assert "user-pipeline recover" in said.output

    assert "rejected_lines: 3" in run("recover")
    assert len(run("objects")) == 3
    result = platform.materialize(*days)
    read = [
        event.materialization.metadata["objects_read"].value
        for event in result.get_asset_materialization_events()
        if "objects_read" in event.materialization.metadata
    ]
    assert read == [0, 0]
    assert {name: platform.table("analytics", name) for name in tables} == tables
    assert run("verify")[-1] == "No differences."
    # With the source in its place again, too.
    (platform.root / "source").rmdir()
    shutil.move(platform.root / "gone", platform.root / "source")
    assert ingest(platform).entries == []


@pytest.mark.parametrize("lost", ["staging", "analytics"])
def test_of_two_databases_the_lost_one_is_filled_and_the_other_one_stays(platform: Platform, lost: str) -> None:
    platform.put("UserUpdates/a", update("2017-04-01T00:00:00", 1))
    platform.put_views("PageViews/a", [view("2017-04-01T00:00:00"), "broken"])
    platform.materialize("2017-04-01")
    lose(platform, lost)
    assert run("recover")[0].startswith(f"commits to the {lost} database: ")
    assert platform.materialize("2017-04-01").success
    assert run("verify")[-1] == "No differences."


def test_databases_that_are_not_empty_are_not_filled(platform: Platform) -> None:
    platform.put_views("PageViews/a", [view("2017-04-01T00:00:00")])
    platform.materialize("2017-04-01")
    before = platform.rows("staging", "select * from pipeline.lake_commits order by 1")
    said = CliRunner().invoke(main, ["recover"])
    assert said.exit_code == 1
    assert "neither database is empty" in said.output
    assert platform.rows("staging", "select * from pipeline.lake_commits order by 1") == before


def test_an_empty_lake_fills_nothing(platform: Platform) -> None:
    assert "commits to the staging database: 0" in run("recover")
    platform.put_views("PageViews/a", [view("2017-04-01T00:00:00")])
    assert platform.materialize("2017-04-01").success


def test_a_lake_of_the_first_version_is_refused_and_left_alone(platform: Platform) -> None:
    platform.storage.lake.put("catalog/page_views/000000000001.parquet", b"x")
    for command in ("objects", "vacuum", "verify"):
        said = CliRunner().invoke(main, [command])
        assert said.exit_code == 1
        assert "/lake/catalog has format 1" in said.output
        assert "begin with an empty lake and empty databases" in said.output
    assert platform.lake_files() == ["catalog/page_views/000000000001.parquet"]


def test_a_hundred_calls_end_as_they_should(platform: Platform) -> None:
    platform.put_views("PageViews/a", [view("2017-04-01T00:00:00"), view("2017-04-03T00:00:00"), "broken"])
    platform.put_views("PageViews/b", [view("2017-04-02T00:00:00")] * 2)
    platform.materialize("2017-04-01", select="raw_page_views", checks=False)
    calls = [["objects"], ["vacuum"]] * 50
    ended = subprocess.run(
        [sys.executable, "-m", "user_pipeline_tests.cli.forked", json.dumps(calls)],
        stdout=subprocess.PIPE,
        check=True,
        cwd=CHECKOUT,
        # These would start threads when they are imported, and a fork has none.
        env={**os.environ, **platform.environment, "ARROW_DEFAULT_MEMORY_POOL": "system", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert json.loads(ended.stdout) == {"codes": [0] * 100, "said": ""}

"""A table that someone drops or empties: the run that would build on it fails at once, and says what brings it back."""

from collections.abc import Sequence

import dagster as dg
import pytest
from click.testing import CliRunner

from user_pipeline.cli.main import main
from user_pipeline_tests.defs.test_checks import sql
from user_pipeline_tests.platform import LOG_PIPELINE, Platform
from user_pipeline_tests.reconcile.test_verify import DAYS, commands, deliver, findings, repair, verify


@pytest.fixture
def sound(platform: Platform) -> Platform:
    deliver(platform)
    assert platform.materialize(DAYS[0], DAYS[2]).success
    return platform


def failure(platform: Platform, select: str | Sequence[str] = LOG_PIPELINE) -> str:
    """What the one step said that failed in a run of the second day, and was not tried again."""
    result = platform.materialize(DAYS[1], select=select, raise_on_error=False)
    assert not [event for event in result.all_events if event.event_type == dg.DagsterEventType.STEP_UP_FOR_RETRY]
    [failed] = [event for event in result.all_events if event.event_type == dg.DagsterEventType.STEP_FAILURE]
    description = failed.step_failure_data.user_failure_data
    assert description is not None
    return str(description.description)


@pytest.mark.parametrize(
    ("lost", "table"), [("drop table", "users"), ("drop table", "user_page_views"), ("truncate", "users")]
)
def test_a_lost_mart_stops_the_run_and_rebuild_brings_it_back(sound: Platform, table: str, lost: str) -> None:
    sql(sound, "analytics", f"{lost} {table}")
    for select in (LOG_PIPELINE, "user_page_views", "page_recommendations"):
        said = failure(sound, select)
        assert said.startswith(f"the table public.{table} has no rows, but the lake has daily aggregates of it")
        assert "`user-pipeline rebuild`" in said
    assert commands(verify().output)[0] == "user-pipeline rebuild"
    assert CliRunner().invoke(main, ["rebuild"]).exit_code == 0
    assert verify().exit_code == 0
    assert sound.materialize(DAYS[1]).success


def test_an_export_of_a_lost_mart_fails_and_is_not_an_empty_file(sound: Platform) -> None:
    sql(sound, "analytics", "truncate user_page_views")
    assert "`user-pipeline rebuild`" in failure(sound, "user_page_views_csv")


@pytest.mark.parametrize("table", ["users", "user_page_views"])
def test_a_lost_registry_of_aggregates_stops_the_run(sound: Platform, table: str) -> None:
    before = sound.table("analytics", table)
    sql(sound, "analytics", f"delete from pipeline.lake_files where asset = '{table}'")
    said = failure(sound)
    assert said.startswith(f"the table public.{table} has rows, but no daily aggregates are registered")
    assert "user-pipeline recover" in said
    assert sound.table("analytics", table) == before


def test_recommendations_that_were_dropped_are_made_again(sound: Platform) -> None:
    before = sound.table("analytics", "page_recommendations")
    sql(sound, "analytics", "drop table page_recommendations cascade")
    assert sound.materialize(DAYS[2]).success
    assert sound.table("analytics", "page_recommendations") == before


@pytest.mark.parametrize("table", ["user_updates", "page_views"])
def test_a_lost_staging_table_stops_nobody_and_is_found_and_made_again(sound: Platform, table: str) -> None:
    sql(sound, "staging", f"drop table {table}")
    assert sound.materialize(DAYS[1], select="users" if table == "user_updates" else "user_page_views").success
    result = verify()
    assert set(findings(result.output)) == {table}
    repair(sound, result.output)

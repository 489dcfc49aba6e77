"""A sign of life after each day's run, and a check that fails when yesterday is missing."""

import http.server
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import dagster as dg
import pytest

from user_pipeline import settings
from user_pipeline.definitions import defs
from user_pipeline.defs.automation.faults import News, news
from user_pipeline.defs.automation.jobs import daily_log_pipeline
from user_pipeline.defs.automation.watch import heartbeat, overdue_day, partitions_are_there, yesterdays_partitions
from user_pipeline.reconcile.status import due_day
from user_pipeline_tests.platform import Platform, view

MORNING = datetime(2017, 4, 3, 3, tzinfo=UTC)


class Waiting(http.server.ThreadingHTTPServer):
    """Waits for signs of life."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.signs: list[str] = []
        self.status = 200


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Waiting

    def do_GET(self) -> None:
        self.server.signs.append(self.path)
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch, platform: Platform) -> Iterator[Waiting]:
    assert platform
    with Waiting() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        monkeypatch.setenv("USER_PIPELINE_HEARTBEAT_URL", f"http://127.0.0.1:{server.server_port}/beat/hush")
        settings.current.cache_clear()
        yield server
        server.shutdown()


def beat(days_ago: int, capsys: pytest.CaptureFixture[str]) -> str:
    """What the sensor logs about a run of a day, as the daemon has it do."""
    day = (datetime.now(UTC) - timedelta(days=days_ago)).date().isoformat()
    with dg.DagsterInstance.ephemeral() as instance:
        job = defs.resolve_job_def(daily_log_pipeline.name)
        result = job.execute_in_process(
            instance=instance, partition_key=day, asset_selection=[dg.AssetKey("ingested_page_views")]
        )
        run = instance.get_run_by_id(result.run_id)
        assert run is not None
        capsys.readouterr()
        heartbeat(
            dg.build_run_status_sensor_context(
                sensor_name="heartbeat",
                dagster_event=result.get_run_success_event(),
                dagster_instance=instance,
                dagster_run=run,
                repository_def=defs.get_repository_def(),
            )
        )
        return capsys.readouterr().err


def test_a_run_of_the_day_before_gives_a_sign_of_life_and_no_other_does(
    waiting: Waiting, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "it is not of the day before" in beat(2, capsys)
    assert waiting.signs == []
    assert "a sign of life reached http://127.0.0.1" in (said := beat(1, capsys))
    assert waiting.signs == ["/beat/hush"]
    assert "hush" not in said


def test_a_sign_that_does_not_arrive_is_an_error_in_the_log(
    waiting: Waiting, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting.status = 404
    assert "did not reach http://127.0.0.1" in (said := beat(1, capsys))
    assert "it answers 404" in said
    assert "hush" not in said


def found(platform: Platform, now: datetime = MORNING) -> str | None:
    """What the check says; None where it passes."""
    result = yesterdays_partitions(platform.lake, now)
    assert result.passed == (result.description is None)
    return result.description


def test_yesterday_is_missed_whatever_other_days_came_since(platform: Platform) -> None:
    look = "see whether the runs of 00:30 UTC failed or never began"
    nothing = f"user_page_views has no partition: {look}; page_recommendations has no partition: {look}"
    assert found(platform) == nothing
    platform.put_views("PageViews/a", [view("2017-04-01T10:00:00")])
    tables = ["group:raw", "group:cleaned", "users", "user_page_views", "page_recommendations"]
    assert platform.materialize("2017-04-01", select=tables, checks=False).success
    after = nothing.replace("no partition:", "no partition after 2017-04-01:")
    assert found(platform) == after
    # A redo of an old day and a day that came before its time change nothing of it, and neither do further mornings.
    assert platform.materialize("2017-04-01", select="user_page_views", checks=False).success
    register(platform, date(2017, 4, 3))
    assert found(platform) == after
    register(platform, date(2017, 4, 2), "user_page_views")
    assert found(platform) == f"page_recommendations has no partition after 2017-04-01: {look}"
    register(platform, date(2017, 4, 2), "page_recommendations")
    assert found(platform) is None
    # Until three o'clock it is the day before that is due.
    assert found(platform, MORNING - timedelta(seconds=1)) is None
    assert found(platform, MORNING + timedelta(days=2) - timedelta(seconds=1)) is None
    assert found(platform, MORNING + timedelta(days=2)) == nothing.replace(
        "no partition:", "no partition after 2017-04-03:"
    )


def test_nothing_is_missed_before_the_first_day(platform: Platform) -> None:
    assert found(platform, datetime(2017, 4, 1, 3, tzinfo=UTC)) is None


def register(platform: Platform, day: date, *assets: str) -> None:
    """A partition of tables, as far as the registry goes."""
    for asset in assets or ("user_page_views", "page_recommendations"):
        with platform.analytics.transaction() as transaction:
            platform.lake.analytics.commit(transaction, asset, {day: []}, "of a test")


def test_the_run_of_the_morning_fails_and_is_told_of_once_until_yesterday_is_there(platform: Platform) -> None:
    platform.lake.analytics.open()
    job = defs.resolve_job_def(overdue_day.name)
    with dg.DagsterInstance.ephemeral() as instance:

        def run() -> tuple[bool, News]:
            result = job.execute_in_process(instance=instance, raise_on_error=False)
            return result.success, news(instance, result.run_id)

        success, told = run()
        assert (success, [each.check_name for each in told.failed]) == (False, ["partitions_are_there"])
        register(platform, date(2017, 4, 1))
        success, told = run()
        assert (success, len(told.failed)) == (False, 1)
        assert run() == (False, News([], []))
        register(platform, due_day(datetime.now(UTC)))
        # Midnight may pass meanwhile.
        register(platform, due_day(datetime.now(UTC)) + timedelta(days=1))
        success, told = run()
        assert (success, [each.check_name for each in told.mended]) == (True, ["partitions_are_there"])
    schedule = defs.resolve_schedule_def("overdue_day_schedule")
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("0 3 * * *", "UTC")
    assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING


@pytest.mark.parametrize("selection", ["*", "group:marts", "page_views+"])
def test_no_run_of_assets_evaluates_whether_yesterday_is_there(selection: str) -> None:
    graph = defs.resolve_asset_graph()
    selected = dg.AssetSelection.from_coercible([selection])
    evaluated = {key.name for key in selected.resolve_checks(graph)}
    assert "unique_key" in evaluated
    assert "partitions_are_there" not in evaluated
    # The run of all that is selected, as the UI and the command line make it.
    whole = defs.resolve_implicit_global_asset_job_def()
    subset = whole.get_subset(asset_selection=selected.resolve(graph))
    assert partitions_are_there.check_key not in subset.asset_layer.asset_graph.asset_check_keys
    assert subset.asset_layer.asset_graph.asset_check_keys


def test_unset_the_sensor_is_off() -> None:
    assert heartbeat.default_status == dg.DefaultSensorStatus.STOPPED

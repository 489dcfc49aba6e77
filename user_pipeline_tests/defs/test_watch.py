"""A sign of life after each day's run, and a run that fails when yesterday is missing."""

import http.server
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from user_pipeline import settings
from user_pipeline.definitions import defs
from user_pipeline.defs.automation.jobs import daily_log_pipeline
from user_pipeline.defs.automation.watch import OverdueDayError, heartbeat, overdue_day, require_day_before
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


def test_yesterday_is_missed_whatever_other_days_came_since(platform: Platform) -> None:
    with pytest.raises(OverdueDayError, match="user_page_views and page_recommendations of 2017-04-02 should"):
        require_day_before(platform.lake, MORNING)
    platform.put_views("PageViews/a", [view("2017-04-01T10:00:00")])
    assert platform.materialize("2017-04-01").success
    assert platform.materialize("2017-04-03").success
    with pytest.raises(OverdueDayError, match="2017-04-02"):
        require_day_before(platform.lake, MORNING)
    tables = ["group:raw", "group:cleaned", "users", "user_page_views"]
    assert platform.materialize("2017-04-02", select=tables).success
    with pytest.raises(OverdueDayError, match=r"^page_recommendations of 2017-04-02"):
        require_day_before(platform.lake, MORNING)
    assert platform.materialize("2017-04-02").success
    require_day_before(platform.lake, MORNING)


def test_nothing_is_missed_before_the_first_day(platform: Platform) -> None:
    require_day_before(platform.lake, datetime(2017, 4, 1, 3, tzinfo=UTC))


def test_the_run_of_the_morning_fails(platform: Platform) -> None:
    assert platform
    with dg.DagsterInstance.ephemeral() as instance:
        result = defs.resolve_job_def(overdue_day.name).execute_in_process(instance=instance, raise_on_error=False)
    assert not result.success
    schedule = defs.resolve_schedule_def("overdue_day_schedule")
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("0 3 * * *", "UTC")
    assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING


def test_unset_the_sensor_is_off() -> None:
    assert heartbeat.default_status == dg.DefaultSensorStatus.STOPPED

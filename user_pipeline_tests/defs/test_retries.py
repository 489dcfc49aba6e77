"""Retries of failed runs, on the shipped instance with Dagster's own daemon: what it misses, the sensor brings back.

The daemon's reader of events is run by hand here, at the moments that are rare and decide: between two writes of a
failure, between two commits, while no code server answers.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import dagster as dg
import psycopg2
import pytest
import yaml
from dagster._core.events import JobFailureData, RunFailureReason
from dagster._core.execution.plan.resume_retry import ReexecutionStrategy
from dagster._core.instance.ref import InstanceRef
from dagster._core.storage.tags import RETRY_NUMBER_TAG
from dagster._core.test_utils import create_run_for_test, create_test_daemon_workspace_context
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import GrpcServerTarget, PythonFileTarget
from dagster._daemon.auto_run_reexecution.event_log_consumer import EventLogConsumerDaemon

from user_pipeline.definitions import defs
from user_pipeline.defs.automation.retries import missed_retries
from user_pipeline.resources.embedded_postgres import EmbeddedPostgres
from user_pipeline_tests.deployment import DEPLOY, held_writes

LOCATION = "user_pipeline"
DEFINITIONS = """
import dagster as dg

@dg.op
def step(): pass

@dg.job(executor_def=dg.in_process_executor)
def work(): step()

defs = dg.Definitions(jobs=[work])
"""


@dataclass(frozen=True)
class Daemon:
    """The part of Dagster's daemon that requests retries, and the sensor's ticks.

    Attributes:
        instance: a deployment's, queueing what is requested.
        workspace: leads to a code server that has the job ``work``.
        url: of the instance's database.
    """

    instance: dg.DagsterInstance
    workspace: WorkspaceProcessContext
    url: str

    def read(self, workspace: WorkspaceProcessContext | None = None) -> None:
        """Read the events that are new, once."""
        for _ in EventLogConsumerDaemon().run_iteration(workspace or self.workspace):
            pass

    def tick(self) -> str:
        """Tick the sensor; returns what it says."""
        data = missed_retries.evaluate_tick(dg.build_sensor_context(instance=self.instance))
        assert not data.run_requests
        return str(data.skip_message)

    def settle(self) -> None:
        """Let both do their work until nothing is left of it."""
        for _ in range(6):
            self.tick()
            self.read()

    def start(self, job: str = "work") -> dg.DagsterRun:
        """A run that has started, as the web server and the queue would have it."""
        location = self.workspace.create_request_context().get_code_location(LOCATION)
        remote = location.get_repository("__repository__").get_full_job("work")
        plan = location.get_execution_plan(remote, {}, step_keys_to_execute=None, known_state=None)
        origin = remote.get_remote_origin()
        run: dg.DagsterRun = create_run_for_test(
            self.instance,
            job_name=job,
            status=dg.DagsterRunStatus.STARTED,
            remote_job_origin=origin,
            job_code_origin=remote.get_python_origin(),
            job_snapshot=remote.job_snapshot,
            execution_plan_snapshot=plan.execution_plan_snapshot,
        )
        return run

    def fail(self, run: dg.DagsterRun, reason: RunFailureReason = RunFailureReason.UNKNOWN) -> None:
        """Mark a run as failed, as run monitoring does (which gives no reason), or the run itself."""
        self.instance.report_run_failed(run, "it died", JobFailureData(error=None, failure_reason=reason))

    def retries(self, run: dg.DagsterRun) -> list[str]:
        """The runs that were queued as automatic retries of a run: their statuses."""
        found = self.instance.get_runs(dg.RunsFilter(tags={"dagster/parent_run_id": run.run_id}))
        return [retry.status.value for retry in found if RETRY_NUMBER_TAG in retry.tags]

    def messages(self, run: dg.DagsterRun) -> list[str]:
        """What the run's log of events says."""
        records = self.instance.get_records_for_run(run.run_id).records
        return [record.event_log_entry.get_dagster_event().message or "" for record in records]

    def execute(self, sql: str) -> None:
        """Run SQL in the instance's database."""
        with psycopg2.connect(self.url) as connection, connection.cursor() as cursor:
            cursor.execute(sql)


@pytest.fixture(scope="module")
def started(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("home")
    postgres.create_database("retries")
    shipped: dict[str, Any] = yaml.safe_load((DEPLOY / "dagster.yaml").read_text())
    shipped["storage"]["postgres"]["postgres_url"] = postgres.url("retries")
    # It wants a bucket, and no step runs here.
    del shipped["compute_logs"]
    (home / "dagster.yaml").write_text(yaml.safe_dump(shipped))
    (home / "work.py").write_text(DEFINITIONS)
    target = PythonFileTarget(str(home / "work.py"), None, str(home), LOCATION)
    with (
        dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home))) as instance,
        create_test_daemon_workspace_context(target, instance) as workspace,
    ):
        yield Daemon(instance, workspace, postgres.url("retries"))


@pytest.fixture
def daemon(started: Daemon) -> Daemon:
    """A daemon that has read all there is, and no run."""
    started.execute("truncate runs, run_tags, event_logs, kvs cascade")
    started.read()
    return started


@pytest.fixture
def unreachable(daemon: Daemon) -> Iterator[WorkspaceProcessContext]:
    """The same code location while nothing listens at its address."""
    target = GrpcServerTarget(host="127.0.0.1", port=1, socket=None, location_name=LOCATION)
    with create_test_daemon_workspace_context(target, daemon.instance) as workspace:
        yield workspace


def read_before_the_row(daemon: Daemon, run: dg.DagsterRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a run, and have the event read after it is committed and before the row of the run says so."""
    storage = daemon.instance.run_storage
    update: Callable[..., None] = storage.handle_run_event

    def late(run_id: str, *arguments: object) -> None:
        if run_id == run.run_id:
            daemon.read()
        update(run_id, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "handle_run_event", late)
        daemon.fail(run)


def test_a_failure_that_is_read_before_the_row_says_failed_is_retried(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = daemon.start()
    read_before_the_row(daemon, run, monkeypatch)
    # Dagster alone never comes back to it.
    for _ in range(3):
        daemon.read()
    assert daemon.retries(run) == []

    assert "1 runs" in daemon.tick()
    daemon.read()
    assert daemon.retries(run) == ["QUEUED"]
    assert any("missed the retry of this run" in message for message in daemon.messages(run))


def test_a_failure_that_is_committed_after_a_later_one_was_read_is_retried(daemon: Daemon) -> None:
    late, other = daemon.start(), daemon.start()
    writer = threading.Thread(target=daemon.fail, args=(late,))
    failure = f"new.run_id = '{late.run_id}' and new.dagster_event_type = 'PIPELINE_FAILURE'"
    # The event has its number and is not committed.
    with held_writes(daemon.url, "insert on event_logs", failure) as first_waits:
        writer.start()
        first_waits()
        daemon.fail(other)
        daemon.read()
        assert daemon.retries(other) == ["QUEUED"]
    writer.join()
    for _ in range(3):
        daemon.read()
    assert daemon.retries(late) == []

    daemon.settle()
    assert daemon.retries(late) == daemon.retries(other) == ["QUEUED"]


def test_a_retry_that_could_not_be_requested_is_requested_again(
    daemon: Daemon, unreachable: WorkspaceProcessContext
) -> None:
    run = daemon.start()
    daemon.fail(run)
    daemon.read(unreachable)
    for _ in range(3):
        daemon.read()
    assert daemon.retries(run) == []

    daemon.settle()
    assert daemon.retries(run) == ["QUEUED"]


def test_a_run_has_one_retry_however_often_both_look(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [daemon.start() for _ in range(4)]
    missed, seen = runs[:2], runs[2:]
    for run in missed:
        read_before_the_row(daemon, run, monkeypatch)
    for run in seen:
        daemon.fail(run)
    # What the daemon has yet to read is not for the sensor.
    assert "2 runs" in daemon.tick()
    daemon.read()
    assert [daemon.retries(run) for run in runs] == [["QUEUED"]] * 4
    # As in a deployment: at the same time, in no order.
    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(lambda look: [look() for _ in range(8)], look) for look in (daemon.read, daemon.tick)]
        for each in both:
            each.result()
    daemon.settle()
    assert [daemon.retries(run) for run in runs] == [["QUEUED"]] * 4
    assert daemon.tick() == "no retry was missed"


def test_what_dagster_decided_not_to_retry_is_left_alone(daemon: Daemon) -> None:
    step_failed = daemon.start()
    daemon.fail(step_failed, RunFailureReason.STEP_FAILURE)
    daemon.read()
    assert daemon.tick() == "no retry was missed"
    assert daemon.instance.get_runs_count() == 1


def test_a_missed_run_that_a_person_ran_again_is_left_alone(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    run = daemon.start()
    read_before_the_row(daemon, run, monkeypatch)
    # What the UI does for "Re-execute".
    context = daemon.workspace.create_request_context()
    location = context.get_code_location(LOCATION)
    daemon.instance.create_reexecuted_run(
        request_context=context,
        parent_run=daemon.instance.get_runs()[0],
        code_location=location,
        remote_job=location.get_repository("__repository__").get_full_job("work"),
        strategy=ReexecutionStrategy.FROM_FAILURE,
    )
    assert daemon.tick() == "no retry was missed"


def test_a_retry_that_a_person_deleted_is_left_alone(daemon: Daemon) -> None:
    run = daemon.start()
    daemon.fail(run)
    daemon.read()
    [retry] = daemon.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED]))
    daemon.instance.delete_run(retry.run_id)
    assert daemon.tick() == "no retry was missed"


def test_a_run_of_the_command_line_is_left_alone(daemon: Daemon) -> None:
    # It came from no code location, so Dagster has nowhere to retry it.
    run: dg.DagsterRun = create_run_for_test(daemon.instance, job_name="work", status=dg.DagsterRunStatus.STARTED)
    daemon.fail(run)
    daemon.read()
    assert daemon.instance.get_runs()[0].tags["dagster/will_retry"] == "true"
    assert daemon.tick() == "no retry was missed"


def test_a_run_that_failed_more_than_a_day_ago_is_left_alone(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    run = daemon.start()
    read_before_the_row(daemon, run, monkeypatch)
    daemon.execute("update runs set update_timestamp = update_timestamp - interval '25 hours'")
    assert daemon.tick() == "no retry was missed"


def test_what_does_not_help_is_given_up(
    daemon: Daemon, unreachable: WorkspaceProcessContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused, gone = daemon.start(), daemon.start("no_longer_there")
    daemon.fail(refused)
    daemon.read(unreachable)
    read_before_the_row(daemon, gone, monkeypatch)
    said = []
    for _ in range(6):
        said.append(daemon.tick())
        daemon.read(unreachable)
    assert ["again" in text for text in said] == [True] * 3 + [False] * 3
    for run in (refused, gone):
        assert sum("missed the retry" in message for message in daemon.messages(run)) == 3
        assert daemon.retries(run) == []


def test_without_retries_or_a_daemon_it_does_nothing(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    run = daemon.start()
    read_before_the_row(daemon, run, monkeypatch)
    before = daemon.messages(run)
    with dg.DagsterInstance.ephemeral() as instance:
        data = missed_retries.evaluate_tick(dg.build_sensor_context(instance=instance))
        assert data.skip_message == "run_retries is off"
    daemon.execute("delete from kvs")
    assert daemon.tick() == "no retry was missed"
    assert daemon.messages(run) == before


def test_the_sensor_is_on_from_the_start() -> None:
    held = defs.resolve_sensor_def("missed_retries")
    assert held.default_status is dg.DefaultSensorStatus.RUNNING
    assert held.minimum_interval_seconds == 30

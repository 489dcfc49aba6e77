"""The sensor on a real source, lake and Dagster instance: tick, run what it asks for, tick again."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest
from obstore.exceptions import PermissionDeniedError

from user_pipeline import settings
from user_pipeline.definitions import defs
from user_pipeline.defs.automation import sensor
from user_pipeline.defs.automation.sensor import new_logs
from user_pipeline.defs.ingest.data_versions import ingested_key
from user_pipeline.ingest import discovery
from user_pipeline.ingest.feeds import PAGE_VIEWS
from user_pipeline.ingest.manifest import Manifest
from user_pipeline.resources.bucket_source import BucketSource
from user_pipeline.resources.embedded_postgres import EmbeddedPostgres
from user_pipeline.resources.storage import ObjectStorage
from user_pipeline_tests.ingest.reading import ingest, manifest_of
from user_pipeline_tests.platform import Platform, update, view
from user_pipeline_tests.s3 import s3_endpoint

RANGE = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")


@dataclass
class Daemon:
    """Ticks the sensor as Dagster's daemon does: keeps its cursor, stores its events, drops run keys it knows."""

    platform: Platform
    instance: dg.DagsterInstance
    cursor: str | None = None
    skip_reason: str | None = None

    def __post_init__(self) -> None:
        self.run_keys: set[str] = set()

    def tick(self) -> list[dg.RunRequest]:
        context = dg.build_sensor_context(
            instance=self.instance, cursor=self.cursor, repository_def=defs.get_repository_def()
        )
        result = new_logs.evaluate_tick(context)
        self.cursor, self.skip_reason = result.cursor, result.skip_message
        for event in result.asset_events:
            self.instance.report_runless_asset_event(event)
        new = [request for request in result.run_requests or () if request.run_key not in self.run_keys]
        self.run_keys |= {str(request.run_key) for request in new}
        return new

    def run(self, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        return defs.resolve_job_def(str(request.job_name)).execute_in_process(
            partition_key=request.partition_key,
            tags=dict(request.tags),
            instance=self.instance,
            raise_on_error=False,
        )

    def settle(self) -> list[str]:
        """Tick and run until nothing is asked for; the days that were run, as ``first...last``."""
        days: list[str] = []
        for _ in range(10):
            requests = self.tick()
            if not requests:
                return days
            for request in requests:
                assert self.run(request).success
                if request.job_name != "ingest_new_objects":
                    days.append(str(request.run_key).partition(":")[0])
        raise AssertionError("it never settles")

    def stale(self, asset: str, *days: str) -> list[str]:
        resolver = CachingStaleStatusResolver(
            self.instance, defs.resolve_asset_graph(), LoadingContextForTest(self.instance)
        )
        return [day for day in days if resolver.get_status(dg.AssetKey(asset), day) == StaleStatus.STALE]


@pytest.fixture
def daemon(platform: Platform) -> Iterator[Daemon]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Daemon(platform, instance)


def views(*days: int, url: str = "/a") -> list[dict[str, Any]]:
    return [view(f"2017-04-{day:02}T10:00:00", url) for day in days]


def test_new_objects_are_ingested_and_their_days_are_run_as_ranges(daemon: Daemon) -> None:
    daemon.platform.put_views("PageViews/a", views(1, 2, 3, 7))
    daemon.platform.put("UserUpdates/a", update("2017-04-04T10:00:00"))
    [look] = daemon.tick()
    assert look.job_name == "ingest_new_objects"
    assert daemon.run(look).success
    first, second = daemon.tick()
    assert (first.tags[RANGE[0]], first.tags[RANGE[1]]) == ("2017-04-01", "2017-04-04")
    assert second.partition_key == "2017-04-07"
    assert daemon.run(first).success
    assert daemon.run(second).success
    assert daemon.tick() == []
    assert "PageViews: 1 objects, 0 new or changed" in str(daemon.skip_reason)
    assert daemon.platform.table("analytics", "user_page_views")[0][3] == 4


def test_late_corrected_and_repeated_objects_rematerialize_the_days_that_changed_and_no_others(daemon: Daemon) -> None:
    daemon.platform.put_views("PageViews/a", views(1, 2, 3, 4))
    assert daemon.settle() == ["2017-04-01...2017-04-04"]
    daemon.platform.put_views("PageViews/late", views(2))
    assert daemon.settle() == ["2017-04-02...2017-04-02"]
    # The same content once more: the day's rows are what they were.
    daemon.platform.put_views("PageViews/a", views(1, 2, 3, 4))
    assert daemon.settle() == []
    daemon.platform.put_views("PageViews/a", [*views(1, 2), *views(3, url="/other"), *views(4)])
    assert daemon.settle() == ["2017-04-03...2017-04-03"]
    # A day that an object brings no more, and one that it brings now.
    daemon.platform.put_views("PageViews/late", views(6))
    assert daemon.settle() == ["2017-04-02...2017-04-02", "2017-04-06...2017-04-06"]
    assert daemon.platform.rows("staging", "select ts::date::text from page_views order by 1") == [
        (f"2017-04-0{day}",) for day in (1, 2, 3, 4, 6)
    ]


def test_a_thousand_objects_are_a_few_runs(daemon: Daemon) -> None:
    for number in range(1000):
        daemon.platform.put_views(f"PageViews/{number}", views(1 + number % 20, url=f"/{number}"))
    [look] = daemon.tick()
    assert daemon.run(look).success
    [request] = daemon.tick()
    assert (request.tags[RANGE[0]], request.tags[RANGE[1]]) == ("2017-04-01", "2017-04-20")


def test_days_that_a_run_ingested_and_materialized_itself_are_not_asked_for(daemon: Daemon) -> None:
    daemon.platform.put_views("PageViews/a", views(1, 5))
    daemon.platform.materialize("2017-04-01", instance=daemon.instance)
    assert daemon.settle() == ["2017-04-05...2017-04-05"]


def test_days_of_a_run_that_has_not_ended_wait_for_it(daemon: Daemon) -> None:
    daemon.platform.put_views("PageViews/a", views(1, 2, 3))
    [look] = daemon.tick()
    daemon.run(look)
    job = defs.resolve_job_def("daily_log_pipeline")
    daemon.instance.create_run_for_job(
        job,
        tags={RANGE[0]: "2017-04-02", RANGE[1]: "2017-04-05"},
        status=dg.DagsterRunStatus.STARTED,
        run_id="5b7d0a1c-0000-4000-8000-000000000001",
    )
    [request] = daemon.tick()
    assert request.partition_key == "2017-04-01"
    daemon.run(request)
    assert daemon.tick() == []
    assert "2 days wait" in str(daemon.skip_reason)
    daemon.instance.delete_run("5b7d0a1c-0000-4000-8000-000000000001")
    [request] = daemon.tick()
    assert (request.tags[RANGE[0]], request.tags[RANGE[1]]) == ("2017-04-02", "2017-04-03")


def test_one_look_at_a_time_and_ever_later_while_looks_are_in_vain(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.platform.put_views("PageViews/a", views(1))
    [look] = daemon.tick()
    job = defs.resolve_job_def("ingest_new_objects")
    run = daemon.instance.create_run_for_job(job, tags=dict(look.tags), status=dg.DagsterRunStatus.STARTED)
    assert daemon.tick() == []
    assert f"run {run.run_id} is ingesting" in str(daemon.skip_reason)
    # It is killed before it has committed anything.
    daemon.instance.report_run_failed(run)
    assert daemon.tick() == []
    assert "trying again later" in str(daemon.skip_reason)
    monkeypatch.setattr("user_pipeline.defs.automation.sensor.may_look_again", lambda *_: True)
    [again] = daemon.tick()
    assert again.run_key != look.run_key
    assert daemon.run(again).success


class Refusing:
    """A store that does not give some of its objects."""

    def __init__(self, store: Any, refuses: Callable[[str], bool]) -> None:
        self._store = store
        self._refuses = refuses

    def get(self, path: str) -> Any:
        if self._refuses(path):
            raise PermissionDeniedError(f"no permission to read {path}")
        return self._store.get(path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def test_an_object_that_cannot_be_fetched_blocks_no_other_and_is_reported_until_it_can(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = {"PageViews/secret"}
    source = daemon.platform.storage.source
    monkeypatch.setattr(ObjectStorage, "source", Refusing(source, refused.__contains__))
    monkeypatch.setattr(dg.RetryPolicy, "calculate_delay", lambda *_: 0)
    daemon.platform.put_views("PageViews/secret", views(1))
    daemon.platform.put_views("PageViews/open", views(2))
    [look] = daemon.tick()
    # Three attempts fail, and have the step try again; then it goes on without the object.
    assert daemon.run(look).success
    failure = manifest_of(daemon.platform).of(["PageViews/secret"])["PageViews/secret"].failure
    assert failure is not None
    assert (failure.attempts, failure.is_standing) == (4, True)
    assert "no permission" in failure.error
    # Nobody is sent for it for an hour, and the others go on; a run that goes on anyway tries it again.
    [request] = daemon.tick()
    assert request.partition_key == "2017-04-02"
    result = daemon.run(request)
    assert result.success
    [check] = [
        evaluation
        for evaluation in result.get_asset_check_evaluations()
        if evaluation.asset_check_key == dg.AssetCheckKey(ingested_key(PAGE_VIEWS), "no_broken_objects")
    ]
    assert not check.passed
    assert "PageViews/secret: not fetched in 5 attempts" in str(check.description)
    assert daemon.tick() == []
    # Put there anew, it is tried at once.
    refused.clear()
    daemon.platform.put_views("PageViews/secret", views(1))
    assert daemon.settle() == ["2017-04-01...2017-04-01"]
    assert daemon.platform.rows("staging", "select count(*) from page_views") == [(2,)]


def test_a_day_whose_input_changed_is_shown_as_stale_until_it_is_rematerialized(daemon: Daemon) -> None:
    days = ("2017-04-01", "2017-04-02", "2017-04-03")
    daemon.platform.put_views("PageViews/a", views(1, 2, 3))
    # A run that ingests for itself is not stale by what it reads.
    daemon.platform.materialize(days[0], days[-1], instance=daemon.instance)
    assert daemon.stale("raw_page_views", *days) == []
    daemon.platform.put_views("PageViews/late", views(2))
    assert defs.resolve_job_def("ingest_new_objects").execute_in_process(instance=daemon.instance).success
    assert daemon.stale("raw_page_views", *days) == [days[1]]
    assert daemon.stale("raw_user_updates", *days) == []
    daemon.platform.materialize(days[1], instance=daemon.instance, select="raw_page_views")
    assert daemon.stale("raw_page_views", *days) == []
    assert daemon.stale("page_views", *days) == [days[1]]
    daemon.platform.materialize(days[1], instance=daemon.instance)
    assert daemon.stale("page_views", *days) == []


def killed(*_: object) -> None:
    raise dg.Failure("killed", allow_retries=False)


def test_a_change_that_dagster_was_not_told_of_is_told_by_the_sensor(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.platform.put_views("PageViews/a", views(1))
    daemon.settle()
    daemon.platform.put_views("PageViews/late", views(1))
    with monkeypatch.context() as patch:
        # The manifest is committed, and then the run ends.
        patch.setattr("user_pipeline.defs.ingest.assets.unreported_days", killed)
        job = defs.resolve_job_def("ingest_new_objects")
        assert not job.execute_in_process(instance=daemon.instance, raise_on_error=False).success
    assert daemon.stale("raw_page_views", "2017-04-01") == []
    daemon.tick()
    assert daemon.stale("raw_page_views", "2017-04-01") == ["2017-04-01"]


def test_a_new_lake_is_a_new_beginning(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.platform.put_views("PageViews/a", views(1))
    assert daemon.settle() == ["2017-04-01...2017-04-01"]
    shutil.rmtree(daemon.platform.root / "lake")
    for database in (daemon.platform.staging, daemon.platform.analytics):
        with database.transaction() as transaction:
            transaction.execute("drop schema public, pipeline cascade")
            transaction.execute("create schema public")
    # What earlier looks wanted in vain does not count against the first look at a new lake for long.
    monkeypatch.setattr("user_pipeline.defs.automation.sensor.may_look_again", lambda *_: True)
    assert daemon.settle() == ["2017-04-01...2017-04-01"]


def test_days_before_the_start_date_are_not_asked_for(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.platform.put_views("PageViews/a", views(1, 5))
    [look] = daemon.tick()
    daemon.run(look)
    monkeypatch.setenv("USER_PIPELINE_START_DATE", "2017-04-03")
    settings.current.cache_clear()
    [request] = daemon.tick()
    assert request.partition_key == "2017-04-05"


def test_a_tick_asks_for_no_entry_of_the_manifest(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.platform.put_views("PageViews/a", views(1))
    daemon.settle()
    daemon.platform.put_views("PageViews/b", views(2))

    def asked(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(Manifest, "_entries", asked)
    [look] = daemon.tick()
    assert look.job_name == "ingest_new_objects"


def test_a_change_that_is_committed_during_a_tick_is_seen_by_the_next_one(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.platform.put_views("PageViews/a", views(1))
    daemon.settle()
    changes = Manifest.changes

    def overtaken(self: Manifest, since: int = 0, days: Any = None) -> Any:
        found = changes(self, since, days)
        if self.feed == PAGE_VIEWS and days is None:
            monkeypatch.setattr(Manifest, "changes", changes)
            daemon.platform.put_views("PageViews/late", views(2))
            ingest(daemon.platform)
        return found

    monkeypatch.setattr(Manifest, "changes", overtaken)
    daemon.tick()
    [request] = daemon.tick()
    assert request.partition_key == "2017-04-02"


def test_an_object_that_is_still_written_is_asked_for_once_it_has_settled(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USER_PIPELINE_SETTLE_SECONDS", "600")
    settings.current.cache_clear()
    daemon.platform.put_views("PageViews/a", views(1))
    assert daemon.tick() == []
    assert daemon.skip_reason is not None
    assert "PageViews: 1 objects, 0 new or changed, 1 left to settle" in daemon.skip_reason
    assert daemon.tick() == []
    file = daemon.platform.root / "source/PageViews/a"
    os.utime(file, (file.stat().st_mtime - 600,) * 2)
    assert daemon.settle() == ["2017-04-01...2017-04-01"]
    assert daemon.tick() == []


def test_a_folder_that_takes_too_long_to_list_is_listed_by_runs(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensor, "TICK_SECONDS", -1.0)
    daemon.platform.put_views("PageViews/a", views(1))
    [request] = daemon.tick()
    assert request.job_name == "ingest_new_objects"
    monkeypatch.setattr(discovery, "SLOW_SECONDS", 0.0)
    assert daemon.run(request).success
    # The run has noted that its listing was slow: no tick tries it, and the days it brought are run.
    monkeypatch.setattr(type(daemon.platform.storage.source), "list", None)
    [request] = daemon.tick()
    assert request.partition_key == "2017-04-01"
    monkeypatch.undo()
    monkeypatch.setattr(discovery, "SLOW_SECONDS", 0.0)
    assert daemon.run(request).success
    assert daemon.tick() == []
    assert daemon.skip_reason is not None
    assert "PageViews: listing it takes longer than a tick may, so runs do it" in daemon.skip_reason
    assert "to be listed" not in daemon.skip_reason
    manifest = manifest_of(daemon.platform)
    with manifest.registry.database.transaction() as transaction:
        transaction.execute("update pipeline.listings set listed_at = listed_at - interval '6 minutes'")
    daemon.platform.put_views("PageViews/b", views(2))
    [request] = daemon.tick()
    assert request.job_name == "ingest_new_objects"
    assert daemon.run(request).success
    assert daemon.settle() == ["2017-04-02...2017-04-02"]


def test_a_queue_tells_the_sensor_of_new_objects(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    with s3_endpoint(monkeypatch, "source") as s3:
        sqs: Any = boto3.client("sqs")
        url = sqs.create_queue(QueueName="logs")["QueueUrl"]
        queues = [{"QueueArn": f"arn:aws:sqs:us-east-1:{url.split('/')[-2]}:logs", "Events": ["s3:ObjectCreated:*"]}]
        s3.client.put_bucket_notification_configuration(
            Bucket="source", NotificationConfiguration={"QueueConfigurations": queues}
        )
        locations = {"USER_PIPELINE_SOURCE_URL": "s3://source", "USER_PIPELINE_SOURCE_QUEUE_URL": url}
        with Platform.create(postgres, tmp_path / "queue", **locations) as platform:
            for name, value in platform.environment.items():
                monkeypatch.setenv(name, value)
            settings.current.cache_clear()
            daemon.platform = platform
            # The folders were never listed: a run does that first.
            [request] = daemon.tick()
            assert daemon.run(request).success
            assert daemon.tick() == []
            body = json.dumps(view("2017-04-03T10:00:00")).encode()
            s3.client.put_object(Bucket="source", Key="PageViews/a", Body=body)
            monkeypatch.setattr(BucketSource, "list", None)
            [request] = daemon.tick()
            assert request.job_name == "ingest_new_objects"
            assert daemon.run(request).success
            assert daemon.settle() == ["2017-04-03...2017-04-03"]
            assert (
                daemon.skip_reason == "0 objects announced; UserUpdates: 0 objects, 0 new or changed; "
                "PageViews: 0 objects, 0 new or changed; 0 days changed, 0 runs requested, 0 days wait"
            )

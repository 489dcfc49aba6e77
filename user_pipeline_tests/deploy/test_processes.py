"""The shipped deployment, started: code server, web server and daemon as processes, Postgres, and a bucket."""

import contextlib
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date, timedelta
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.errors
import pytest
import yaml

from user_pipeline.resources.embedded_postgres import SUPERUSER
from user_pipeline_tests import CHECKOUT
from user_pipeline_tests.deployment import (
    BUCKETS,
    DEPLOY,
    IMAGE_USER,
    PASSWORDS,
    SERVICES,
    TABLES,
    Deployment,
    contained,
    deployed,
    expected_tables,
    held_writes,
    small_logs,
    tables,
)
from user_pipeline_tests.s3 import Endpoint, s3_endpoint
from user_pipeline_tests.servers import password_server

FIRST = date(2017, 4, 1)
DAYS = [FIRST + timedelta(days=number) for number in range(6)]
INSTANCE: dict[str, Any] = yaml.safe_load((DEPLOY / "dagster.yaml").read_text())
LOGS = small_logs(FIRST, len(DAYS))
TICK = """
import dagster
import user_pipeline.definitions
from user_pipeline.defs.automation.sensor import new_logs

with dagster.DagsterInstance.get() as instance, dagster.build_sensor_context(instance) as context:
    print(new_logs(context).skip_reason)
"""
"""A tick of the sensor, which the code server does, and what it saw."""


@pytest.fixture(scope="module")
def bucket() -> Iterator[Endpoint]:
    with pytest.MonkeyPatch.context() as patch, s3_endpoint(patch, *BUCKETS) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def deployment(bucket: Endpoint) -> Iterator[Deployment]:
    directory = Path(tempfile.mkdtemp(prefix="up-"))
    directory.chmod(0o755)
    try:
        with password_server() as server, deployed(directory, server, bucket.url) as made:
            yield made
    finally:
        shutil.rmtree(directory)


def test_days_launched_at_once_are_in_the_tables_and_their_output_in_the_bucket(
    deployment: Deployment, bucket: Endpoint
) -> None:
    for key, content in LOGS.items():
        bucket.client.put_object(Bucket=BUCKETS[0], Key=key, Body=content)

    # At once: all of the first day, and the tables of the others.
    runs = [
        deployment.launch(DAYS[0].isoformat()),
        *(deployment.launch(day.isoformat(), assets=TABLES) for day in DAYS[1:]),
    ]
    for run in runs:
        deployment.wait(run, "SUCCESS")

    spans = deployment.query("dagster", "select start_time, end_time from runs where start_time is not null")
    at_once = max(sum(start <= moment < (end or moment + 1) for start, end in spans) for moment, _ in spans)
    assert 1 < at_once <= INSTANCE["concurrency"]["runs"]["max_concurrent_runs"]
    assert tables(deployment) == expected_tables(LOGS, DAYS)
    logs = [key for key in bucket.keys(BUCKETS[2]) if key.startswith("compute-logs/storage/")]
    for run in runs:
        assert [key for key in logs if run in key and key.endswith(".err")], logs
    # What the UI shows is read from there.
    shown = deployment.graphql(
        "query ($key: [String!]!) { capturedLogs(logKey: $key) { stderr } }",
        key=_log_key(next(key for key in logs if runs[0] in key and key.endswith(".err"))),
    )
    assert "daily_log_pipeline" in shown["capturedLogs"]["stderr"]


def test_the_runs_were_the_writers_on_tables_of_the_owner_and_the_analyst_reads_them(deployment: Deployment) -> None:
    owners = "select distinct tableowner from pg_tables where schemaname = 'public'"
    for database in ("staging", "analytics"):
        assert deployment.query(database, owners) == [("user_pipeline_owner",)]
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            deployment.query(database, "create table mine (a int)", "user_pipeline_writer")
    assert deployment.query("analytics", "select count(*) > 0 from users", "analyst") == [(True,)]
    with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
        deployment.query("staging", "select 1", "analyst")
    for database in ("analytics", "postgres"):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege, match="create temporary tables"):
            deployment.query(database, "begin read write; create temporary table mine (a int)", "analyst")


def test_verify_and_rebuild_run_where_the_code_server_runs(deployment: Deployment) -> None:
    for command in ("rebuild", "verify"):
        done = deployment.run("user-pipeline", command)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not contained(), reason="only root can lay out the file systems of a container")
@pytest.mark.parametrize("service", [*SERVICES, "migrate", "tables"])
def test_a_service_writes_to_its_tmpfs_and_volumes_and_nowhere_else(deployment: Deployment, service: str) -> None:
    def may_write(directory: str | Path) -> bool:
        return deployment.run("/bin/sh", "-c", f"touch {directory}/written", service=service).returncode == 0

    assert may_write("/tmp")  # noqa: S108
    assert may_write(deployment.scratch) == (service == "code")
    for elsewhere in (deployment.home, deployment.home.parent, CHECKOUT, "/var/tmp", "/opt", "/"):  # noqa: S108
        assert not may_write(elsewhere), elsewhere


@pytest.mark.skipif(not contained(), reason="only root can lay out the file systems of a container")
@pytest.mark.parametrize("service", SERVICES)
def test_a_service_is_not_root_and_cannot_become_it(deployment: Deployment, service: str) -> None:
    status = process_status(deployment, service)
    assert set(status["Uid"].split()) == {str(IMAGE_USER)}
    assert status["NoNewPrivs"] == "1"


@pytest.mark.parametrize("service", SERVICES)
def test_the_files_of_a_service_are_for_its_user_alone(deployment: Deployment, service: str) -> None:
    assert process_status(deployment, service)["Umask"] == "0077"


def process_status(deployment: Deployment, service: str) -> dict[str, str]:
    lines = Path(f"/proc/{deployment.processes[service].pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines)


@pytest.mark.parametrize("service", SERVICES)
def test_the_writers_password_is_known_to_the_code_server_alone(deployment: Deployment, service: str) -> None:
    variables = Path(f"/proc/{deployment.processes[service].pid}/environ").read_text()
    assert PASSWORDS["user_pipeline_dagster"] in variables
    assert (PASSWORDS["user_pipeline_writer"] in variables) == (service == "code")
    assert PASSWORDS["user_pipeline_owner"] not in variables


def test_a_code_server_without_marts_and_scratch_looks_for_new_logs(deployment: Deployment) -> None:
    # On Kubernetes only runs have the analytics database (test_helm.py). The daemon's container has no scratch either.
    code = {
        name: value for name, value in deployment.environment("code").items() if name != "USER_PIPELINE_ANALYTICS_URL"
    }
    given = [f"{name}={value}" for name, value in code.items()]
    done = deployment.run("env", "--ignore-environment", *given, sys.executable, "-c", TICK, service="daemon")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(DAYS)} objects, 0 new or changed" in done.stdout


def test_the_code_server_listens_on_the_address_it_is_given_and_on_no_other(deployment: Deployment) -> None:
    port = deployment.ports["4000"]
    socket.create_connection(("127.0.0.1", port), timeout=10).close()
    # An address of this machine, too.
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=10)


def test_a_run_that_dies_with_its_container_is_noticed_and_resumed(deployment: Deployment) -> None:
    run = deployment.launch("2017-04-02", "daily_fake_users")
    deployment.wait(run, "STARTED")
    deployment.kill("code")
    deployment.start("code")

    deployment.wait(run, "FAILURE")
    _assert_resumed(deployment, run)


def test_a_run_that_dies_is_resumed_even_if_the_daemon_reads_of_it_before_its_row_says_so(
    deployment: Deployment,
) -> None:
    # The event of the failure is committed; the row waits.
    condition = "new.status = 'FAILURE' and old.status <> 'FAILURE'"
    with held_writes(deployment.url(SUPERUSER, "dagster"), "update on runs", condition) as first_waits:
        run = deployment.launch("2017-04-03", "daily_fake_users")
        [(pid,)] = _until(
            deployment,
            f"select substring(event from 'Started process for run .pid: ([0-9]+)') from event_logs"
            f" where run_id = '{run}' and event like '%Started process for run%'",
        )
        deployment.wait(run, "STARTED")
        os.kill(int(pid), signal.SIGKILL)
        first_waits()
        _until(
            deployment,
            "select 1 from kvs join event_logs on event_logs.id <= kvs.value::bigint"
            " where kvs.key = 'EVENT_LOG_CONSUMER_CURSOR-PIPELINE_FAILURE'"
            f" and run_id = '{run}' and dagster_event_type = 'PIPELINE_FAILURE'",
        )
        assert deployment.status(run) == "STARTED"
    deployment.wait(run, "FAILURE")
    _assert_resumed(deployment, run)


def test_the_web_server_refuses_other_sites(deployment: Deployment) -> None:
    port = deployment.ports["3000"]

    def ask(**headers: str) -> int:
        with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            connection.request("GET", "/server_info", headers=headers)
            return connection.getresponse().status

    assert ask() == 200
    assert ask(Host="evil.example") == 403
    assert ask(Origin="http://evil.example") == 403


def test_no_process_has_written_a_password(deployment: Deployment) -> None:
    for service in SERVICES:
        text = (deployment.home.parent / f"{service}.log").read_text(errors="replace")
        assert text
        for planted in ("test-secret", *PASSWORDS.values()):
            assert planted not in text


def test_no_process_has_missed_a_place_to_write_to(deployment: Deployment, bucket: Endpoint) -> None:
    said = [(deployment.home.parent / f"{service}.log").read_text(errors="replace") for service in SERVICES]
    steps = [key for key in bucket.keys(BUCKETS[2]) if key.endswith((".err", ".out"))]
    assert steps
    said += [bucket.client.get_object(Bucket=BUCKETS[2], Key=key)["Body"].read().decode() for key in steps]
    for text in said:
        assert not re.search(r"Read-only file system|Permission denied|No space left|not writable", text)


def _log_key(key: str) -> list[str]:
    return key.removeprefix("compute-logs/storage/").removesuffix(".err").split("/")


def _assert_resumed(deployment: Deployment, run: str) -> None:
    """One new run does what a failed run of the fake users had not done, and nothing of what it had done."""
    children = f"select run_id from run_tags where key = 'dagster/parent_run_id' and value = '{run}'"
    [(resumed,)] = _until(deployment, children)
    deployment.wait(resumed, "SUCCESS")
    assert len(deployment.query("dagster", children)) == 1
    done = deployment.query(
        "dagster",
        "select step_key, count(*) from event_logs where dagster_event_type = 'STEP_SUCCESS'"
        f" and run_id in ('{run}', '{resumed}') group by 1",
    )
    assert {step for step, _ in done} >= {"fake_users_archive", "fake_users_report"}
    assert {count for _, count in done} == {1}


def _until(deployment: Deployment, sql: str, patience: float = 120.0) -> list[tuple[str]]:
    deadline = time.monotonic() + patience
    while not (rows := deployment.query("dagster", sql)):
        assert time.monotonic() < deadline, deployment.log("daemon")
        time.sleep(0.5)
    return [(str(row[0]),) for row in rows]

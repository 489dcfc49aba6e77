"""The deployment of ``deploy/`` as processes of this machine: its files, its commands, its health checks.

What the compose file gives a service of the image is what its processes get, and no more: variables, and where root
runs the tests also a root file system that cannot be written, its tmpfs and volumes, an unprivileged user and no
capabilities (container.py). Only addresses and ports differ.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import psycopg2
import yaml

from user_pipeline.resources import embedded_postgres as postgres
from user_pipeline.resources.embedded_postgres import SUPERUSER
from user_pipeline_tests import CHECKOUT, container, oracle
from user_pipeline_tests.platform import update, view
from user_pipeline_tests.servers import PasswordServer

DEPLOY = CHECKOUT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "docker-compose.yaml").read_text())
BUCKETS = ("web-logs", "lake", "dagster-logs")
SERVICES = ("code", "webserver", "daemon")
TABLES = (
    "ingested_user_updates", "ingested_page_views", "raw_user_updates", "raw_page_views",
    "user_updates", "page_views", "users", "user_page_views",
)  # fmt: skip
"""What may be done for several days at once, in any order. (A day's recommendations are of all days before it.)"""
PASSWORDS = {
    SUPERUSER: "superuser-secret",
    "user_pipeline_dagster": "dagster-secret",
    "user_pipeline_owner": "pipeline-secret-owner",
    "user_pipeline_writer": "pipeline-secret-writer",
    "analyst": "analyst-secret",
}
IMAGE_USER = 10001
"""The image's user; a test compares it with the Dockerfile."""
_PATIENCE = 240.0


def code_command() -> list[str]:
    """The image's own command."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    [found] = re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)
    command: list[str] = json.loads(found)
    return command


@cache
def contained() -> bool:
    """Whether processes can be given the file systems of a container here: root may, if the kernel lets it."""
    return (
        os.geteuid() == 0
        and sys.platform == "linux"
        and shutil.which("setpriv") is not None
        and subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode == 0
    )


def create_databases(server: PasswordServer) -> None:
    """Run what the service `roles` runs, and give the analyst the password that it leaves open."""
    server.execute(f"alter role {SUPERUSER} password '{PASSWORDS[SUPERUSER]}'")
    shell, script = COMPOSE["services"]["roles"]["command"]
    given = {
        "PGHOST": "127.0.0.1",
        "PGUSER": SUPERUSER,
        "PGPASSWORD": PASSWORDS[SUPERUSER],
        "DAGSTER_DB_PASSWORD": PASSWORDS["user_pipeline_dagster"],
        "OWNER_DB_PASSWORD": PASSWORDS["user_pipeline_owner"],
        "WRITER_DB_PASSWORD": PASSWORDS["user_pipeline_writer"],
    }
    subprocess.run(
        [shell, DEPLOY / script.lstrip("/")],
        env={
            "PATH": f"{postgres.binaries()}:{os.environ['PATH']}",
            "PGPORT": str(server.port),
            **_given("roles", given),
        },
        check=True,
        capture_output=True,
        text=True,
    )
    server.execute(f"alter role analyst password '{PASSWORDS['analyst']}'")


@dataclass
class Deployment:
    """Code server, web server and daemon of one instance.

    Attributes:
        home: DAGSTER_HOME; the processes' output is beside it, in ``<service>.log``.
        server: where the databases are.
        endpoint: of the object store; its buckets exist.
    """

    home: Path
    server: PasswordServer
    endpoint: str
    ports: Mapping[str, int] = field(default_factory=lambda: {"4000": _free_port(), "3000": _free_port()})
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def scratch(self) -> Path:
        """The volume of that name."""
        return self.home.parent / "scratch"

    def environment(self, service: str) -> dict[str, str]:
        """What the compose file and the image set for a service, for these addresses."""
        pipeline = "user_pipeline_owner" if service == "tables" else "user_pipeline_writer"
        given = {
            "DAGSTER_POSTGRES_URL": self.url("user_pipeline_dagster", "dagster"),
            "DAGSTER_COMPUTE_LOGS_BUCKET": BUCKETS[2],
            "USER_PIPELINE_STAGING_URL": self.url(pipeline, "staging"),
            "USER_PIPELINE_ANALYTICS_URL": self.url(pipeline, "analytics"),
            "USER_PIPELINE_SOURCE_URL": f"s3://{BUCKETS[0]}",
            "USER_PIPELINE_LAKE_URL": f"s3://{BUCKETS[1]}",
            "USER_PIPELINE_START_DATE": "2017-04-01",
            "USER_PIPELINE_MEMORY_LIMIT": "500MB",
            "USER_PIPELINE_CODE_HOST": "127.0.0.1",
            "USER_PIPELINE_CODE_PORT": str(self.ports["4000"]),
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test-key",
            "AWS_SECRET_ACCESS_KEY": "test-secret",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        # As the Dockerfile has it; its user's home does not exist. Of this shell nothing but where programs are.
        image = {
            "PYTHONUNBUFFERED": "1",
            "DAGSTER_HOME": str(self.home),
            "MPLCONFIGDIR": "/tmp/matplotlib" if contained() else str(self.home.parent / "matplotlib"),  # noqa: S108
            "USER_PIPELINE_SCRATCH_DIR": str(self.scratch),
        }
        outer = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": "/nonexistent"}
        return {**outer, **image, **_given(service, given)}

    def url(self, role: str, database: str) -> str:
        """A database as a role of roles.sql sees it."""
        return self.server.url(database, role, PASSWORDS[role])

    def command(self, service: str) -> list[str]:
        """What a service runs, on these ports and on loopback, in its container where there can be one."""
        return [*self._container(service), *self._here(COMPOSE["services"][service]["command"])]

    def health(self, service: str) -> subprocess.CompletedProcess[str]:
        """Run a service's health check once."""
        kind, *check = COMPOSE["services"][service]["healthcheck"]["test"]
        if kind != "CMD":
            raise AssertionError(f"{service}: a health check without a shell begins with CMD")
        return self.run(*self._here(check), service=service)

    def run(self, *command: str, service: str = "code") -> subprocess.CompletedProcess[str]:
        """Run a command as in the container of a service."""
        return subprocess.run(
            [*self._container(service), *command],
            cwd=self.home,
            env=self.environment(service),
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )

    def prepare(self) -> None:
        """What runs before the services do: everybody's tables."""
        for service in ("migrate", "tables"):
            done = self.run(*COMPOSE["services"][service]["command"], service=service)
            if done.returncode:
                raise AssertionError(f"{service}: {done.stdout}{done.stderr}")

    def start(self, service: str) -> None:
        """Start a service and wait until its health check passes."""
        with (self.home.parent / f"{service}.log").open("ab") as log:
            self.processes[service] = subprocess.Popen(
                self.command(service),
                cwd=self.home,
                env=self.environment(service),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A container: its processes can be killed together.
                start_new_session=True,
                umask=0o022,
            )
        deadline = time.monotonic() + _PATIENCE
        while (check := self.health(service)).returncode:
            if time.monotonic() > deadline or self.processes[service].poll() is not None:
                raise AssertionError(f"{service} is not healthy: {check.stdout}{check.stderr}\n{self.log(service)}")
            time.sleep(0.5)

    def kill(self, service: str, number: signal.Signals = signal.SIGKILL) -> None:
        """End every process of a service, as when a container goes."""
        process = self.processes.pop(service)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def log(self, service: str) -> str:
        """The end of what a service wrote."""
        return (self.home.parent / f"{service}.log").read_text(errors="replace")[-4000:]

    def graphql(self, query: str, **variables: Any) -> Any:
        """Ask the web server."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.ports['3000']}/graphql",
            data=json.dumps({"query": query, "variables": variables}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            content = json.load(answer)
        if content.get("errors"):
            raise AssertionError(content["errors"])
        return content["data"]

    def launch(self, day: str, job: str = "daily_log_pipeline", assets: Sequence[str] = ()) -> str:
        """Ask for one day of a job, or of some of its assets and their checks, as the UI does; returns the run's id."""
        answer = self.graphql(
            """
            mutation ($params: ExecutionParams!) {
              launchRun(executionParams: $params) {
                __typename
                ... on LaunchRunSuccess { run { runId } }
                ... on PythonError { message }
              }
            }
            """,
            params={
                "selector": {
                    "repositoryLocationName": "user_pipeline",
                    "repositoryName": "__repository__",
                    "jobName": job,
                    **({"assetSelection": [{"path": [asset]} for asset in assets]} if assets else {}),
                },
                "runConfigData": {},
                "executionMetadata": {"tags": [{"key": "dagster/partition", "value": day}]},
            },
        )["launchRun"]
        if answer["__typename"] != "LaunchRunSuccess":
            raise AssertionError(answer)
        run_id: str = answer["run"]["runId"]
        return run_id

    def status(self, run_id: str) -> str:
        """A run's status, from the web server."""
        answer = self.graphql("query ($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }", id=run_id)
        status: str = answer["runOrError"]["status"]
        return status

    def wait(self, run_id: str, *statuses: str, patience: float = 420.0) -> str:
        """Wait until a run has one of these statuses."""
        deadline = time.monotonic() + patience
        while (status := self.status(run_id)) not in statuses:
            if time.monotonic() > deadline or status in ("SUCCESS", "FAILURE", "CANCELED"):
                raise AssertionError(f"run {run_id} is {status}\n{self.log('daemon')}\n{self.log('code')}")
            time.sleep(0.2)
        return status

    def query(self, database: str, sql: str, role: str = SUPERUSER) -> list[tuple[Any, ...]]:
        """Rows of a database."""
        return self.server.execute(sql, self.url(role, database))

    def _container(self, service: str) -> list[str]:
        """What to put before a command of a service."""
        if not contained():
            return []
        declared = COMPOSE["services"][service]
        volumes = [volume.split(":")[0] for volume in declared["volumes"]]
        layout = {
            "tmpfs": [entry.split(":")[0] for entry in declared["tmpfs"]],
            "volumes": [str(self.scratch)] if "scratch" in volumes else [],
            "keep": [str(path) for path in (self.home.parent, CHECKOUT, sys.prefix, sys.base_prefix)],
            "user": IMAGE_USER,
        }
        return ["unshare", "--mount", sys.executable, container.__file__, json.dumps(layout)]

    def _here(self, command: Sequence[str]) -> list[str]:
        here = [re.sub(r"^(0\.0\.0\.0|code-server)$", "127.0.0.1", argument) for argument in command]
        for inside, outside in self.ports.items():
            here = [re.sub(rf"\b{inside}\b", str(outside), argument) for argument in here]
        return here


@contextlib.contextmanager
def deployed(directory: Path, server: PasswordServer, endpoint: str) -> Iterator[Deployment]:
    """A deployment with its tables made and its services started, which are ended when the block ends."""
    home = directory / "dagster_home"
    home.mkdir(parents=True)
    # The image's user can read them, whatever the umask of these tests and of the checkout.
    home.chmod(0o755)
    for name in ("dagster.yaml", "workspace.yaml", "migrate.sh"):
        shutil.copyfile(DEPLOY / name, home / name)
        (home / name).chmod(0o644)
    create_databases(server)
    made = Deployment(home, server, endpoint)
    made.scratch.mkdir()
    if contained():
        os.chown(made.scratch, IMAGE_USER, IMAGE_USER)
    made.prepare()
    try:
        for service in SERVICES:
            made.start(service)
        yield made
    finally:
        for service in reversed(SERVICES):
            if service in made.processes:
                made.kill(service, signal.SIGTERM)


@contextlib.contextmanager
def held_writes(url: str, writes: str, condition: str) -> Iterator[Callable[[], None]]:
    """Inside it, certain writes to a database wait, uncommitted; gives what waits until the first of them does.

    Args:
        url: the database, as its superuser.
        writes: as a trigger has it, for instance ``insert on event_logs``.
        condition: on ``new`` and ``old``: which rows.
    """
    connection = psycopg2.connect(url)
    connection.autocommit = True
    cursor = connection.cursor()

    def first_waits() -> None:
        deadline = time.monotonic() + _PATIENCE
        waiting = False
        while not waiting:
            if time.monotonic() > deadline:
                raise AssertionError(f"nobody tries to {writes}")
            cursor.execute(
                "select exists (select from pg_locks where locktype = 'advisory' and objid = 4711 and not granted)"
            )
            [(waiting,)] = cursor.fetchall()
            time.sleep(0.05)

    try:
        cursor.execute("select pg_advisory_lock(4711)")
        cursor.execute(
            f"""
            create function held_write() returns trigger language plpgsql as
              $$ begin perform pg_advisory_xact_lock(4711); return new; end $$;
            create trigger held_write before {writes} for each row when ({condition}) execute function held_write()
            """
        )
        yield first_waits
    finally:
        cursor.execute("select pg_advisory_unlock(4711); drop function if exists held_write cascade")
        connection.close()


def small_logs(first: date, days: int) -> dict[str, bytes]:
    """A few lines for each of some days, duplicates and other environments among them, by key."""
    objects = {}
    for number in range(days):
        day = first + timedelta(days=number)
        rows = [
            view(
                f"{day}T{hour:02}:00:00",
                f"/p/{(number + hour) % 5}",
                hour % 4,
                "staging" if hour == 3 else "production",
            )
            for hour in range(8)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in [*rows, rows[0]])
        objects[f"PageViews/{number:04}.json"] = lines.encode()
        objects[f"UserUpdates/{number:04}.csv"] = "".join(
            update(f"{day}T0{user}:00:00", user, f"u{user}.{number}@example.com", f"User {user}")
            for user in range(number % 4)
        ).encode()
    return objects


def expected_tables(objects: Mapping[str, bytes], days: Sequence[date]) -> dict[str, list[tuple[Any, ...]]]:
    """``users`` and ``user_page_views`` after these days, worked out by the oracle; sorted by their repr."""
    views = {key: content for key, content in objects.items() if key.startswith("PageViews/")}
    updates = {key: content for key, content in objects.items() if key.startswith("UserUpdates/")}
    all_updates = set().union(*(oracle.user_updates(updates, day) for day in days))
    all_views = set().union(*(oracle.page_views(views, day) for day in days))
    return {
        "users": sorted(oracle.users(all_updates), key=repr),
        "user_page_views": oracle.user_page_views(all_views, all_updates),
    }


def tables(deployment: Deployment) -> dict[str, list[tuple[Any, ...]]]:
    """The same tables as they are."""
    return {
        "users": sorted(deployment.query("analytics", "select user_id, email, name, updated_at from users"), key=repr),
        "user_page_views": sorted(
            deployment.query("analytics", "select user_id, email, url, count, last_viewed from user_page_views"),
            key=repr,
        ),
    }


def _given(service: str, values: Mapping[str, str]) -> dict[str, str]:
    """Of these values those that the compose file sets for a service; those without a value are only passed on."""
    names = {name for name, value in COMPOSE["services"][service]["environment"].items() if value is not None}
    if missing := names - set(values):
        raise AssertionError(f"the compose file gives {service} what is not known here: {missing}")
    return {name: values[name] for name in names}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port

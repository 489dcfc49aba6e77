"""Who else can get at what a checkout keeps: a checkout as its users run it, and other users of the machine."""

import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import pytest

from user_pipeline import settings
from user_pipeline.private_files import keep_private
from user_pipeline.resources import embedded_postgres as postgres
from user_pipeline.resources.embedded_postgres import EmbeddedPostgres
from user_pipeline_tests import CHECKOUT
from user_pipeline_tests.servers import discard

BIN = Path(sys.executable).parent
NOBODY = 65_534
DAYS = ("2017-04-01", "2017-04-02")
PATIENCE = 240.0

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def modes(root: Path) -> dict[str, str]:
    """What others may do with each file and directory below one, by its path; nothing where they may do nothing."""
    return {
        str(path.relative_to(root)): oct(path.lstat().st_mode & 0o777)
        for path in (root, *root.rglob("*"))
        if not path.is_symlink() and path.lstat().st_mode & 0o077
    }


def refused(action: Callable[[], object]) -> bool:
    """Whether another user, without any privilege, is not permitted to do something."""
    child = os.fork()
    if child == 0:
        code = 2
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            action()
            code = 0
        except PermissionError:
            code = 1
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 1), "it failed for another reason"
    return code == 1


@dataclass(frozen=True)
class Checkout:
    """What makes a directory a checkout for Dagster, with a data directory that everyone could enter."""

    root: Path
    environment: dict[str, str]
    launched: str = ""

    @property
    def data(self) -> Path:
        return self.root / "data"

    def run(self, program: str, *arguments: str, **variables: str) -> str:
        """A command of its user, in a shell with the usual umask."""
        done = subprocess.run(
            [BIN / program, *arguments],
            cwd=self.root,
            env={**self.environment, **variables},
            umask=0o022,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-5_000:]
        return done.stdout

    def materialize(self, day: str, select: str = "*", **variables: str) -> None:
        selected = ("-m", "user_pipeline.definitions", "--select", select, "--partition", day)
        self.run("dagster", "asset", "materialize", *selected, **variables)


@pytest.fixture(scope="module")
def checkout() -> Iterator[Checkout]:
    """A day materialized on the command line, another by a run that a plain `dagster dev` launched."""
    root = Path(tempfile.mkdtemp(prefix="up-"))
    root.chmod(0o755)
    for name in ("dagster.yaml", "workspace.yaml"):
        shutil.copy(CHECKOUT / name, root)
    (root / "data").mkdir()
    (root / "data").chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "HOME": str(root)}
    made = Checkout(root, environment)
    try:
        made.run("user-pipeline", "sample", "--days=2", "--users=50", "--views-per-day=200")
        made.materialize(DAYS[0])
        yield replace(made, launched=_launch(made, DAYS[1]))
    finally:
        discard(root)


def _launch(checkout: Checkout, day: str) -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (checkout.root / "dev.log").open("wb") as log:
        process = subprocess.Popen(
            [BIN / "dagster", "dev", "--port", str(port)],
            cwd=checkout.root,
            env=checkout.environment,
            umask=0o022,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def ask(query: str, **variables: Any) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/graphql",
            data=json.dumps({"query": query, "variables": variables}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return json.load(answer)["data"]

    def until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            said = (checkout.root / "dev.log").read_text(errors="replace")[-5_000:]
            assert process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.5)

    def loaded() -> bool:
        query = "{ workspaceOrError { ... on Workspace { locationEntries { loadStatus } } } }"
        try:
            entries = ask(query)["workspaceOrError"]["locationEntries"]
        except URLError:
            return False
        return [entry["loadStatus"] for entry in entries] == ["LOADED"]

    try:
        until(loaded)
        for name, value in (("Host", "evil.example"), ("Origin", "http://evil.example")):
            foreign = urllib.request.Request(f"http://127.0.0.1:{port}/server_info", headers={name: value})
            with pytest.raises(HTTPError) as refusal:
                urllib.request.urlopen(foreign, timeout=60)  # noqa: S310
            assert refusal.value.code == 403
        launched = ask(
            """mutation ($params: ExecutionParams!) {
              launchRun(executionParams: $params) { __typename ... on LaunchRunSuccess { run { id } } }
            }""",
            params={
                "selector": {
                    "repositoryLocationName": "user_pipeline",
                    "repositoryName": "__repository__",
                    "jobName": "daily_log_pipeline",
                },
                "runConfigData": {},
                "executionMetadata": {"tags": [{"key": "dagster/partition", "value": day}]},
            },
        )["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        status = "query ($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
        run: str = launched["run"]["id"]
        until(lambda: ask(status, id=run)["runOrError"]["status"] in ("SUCCESS", "FAILURE"))
        assert ask(status, id=run)["runOrError"]["status"] == "SUCCESS"
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return run


def test_what_runs_leave_is_for_their_user_alone(checkout: Checkout) -> None:
    assert modes(checkout.data) == {}
    for day in DAYS:
        for file in (f"lake/exports/user_page_views/date={day}/*.csv", f"lake/raw/page_views/date={day}/*.parquet"):
            assert list(checkout.data.glob(file)), file
    # Of the launched run, of the one on the command line.
    logs = list(checkout.data.glob("dagster/compute_logs/**/*.err"))
    assert {checkout.launched in path.parts for path in logs} == {True, False}
    assert list(checkout.data.glob("source/PageViews/*"))
    assert (checkout.data / "postgres" / "lock").exists()


@as_root
def test_another_user_can_neither_read_nor_lock_nor_connect_nor_end_the_server(checkout: Checkout) -> None:
    server = postgres.ensure_running(checkout.data)
    [export] = checkout.data.glob(f"lake/exports/user_page_views/date={DAYS[0]}/*.csv")
    log = next(checkout.data.glob("dagster/compute_logs/**/*.err"))
    postmaster = int((server.cluster / "postmaster.pid").read_text().splitlines()[0])

    def lock() -> None:
        with (server.home / "lock").open() as opened:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def connect() -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(server.socket_dir / ".s.PGSQL.5432"))

    assert refused(export.read_bytes)
    assert refused(log.read_bytes)
    assert refused((server.cluster / "pg_hba.conf").read_bytes)
    assert refused(lock)
    assert refused(connect)
    assert refused(lambda: os.kill(postmaster, 0))
    # Each for its own sake, not because nothing is permitted.
    assert not refused((checkout.root / "dagster.yaml").read_bytes)


def test_a_lake_and_a_scratch_directory_elsewhere_get_private_files(checkout: Checkout) -> None:
    elsewhere = checkout.root / "elsewhere"
    for name in ("lake", "scratch"):
        (elsewhere / name).mkdir(parents=True)
        (elsewhere / name).chmod(0o755)
    elsewhere.chmod(0o755)
    checkout.materialize(
        DAYS[0],
        "group:fake_users",
        USER_PIPELINE_LAKE_URL=str(elsewhere / "lake"),
        USER_PIPELINE_SCRATCH_DIR=str(elsewhere / "scratch"),
    )
    assert list(elsewhere.glob("lake/fake_users/*/users_report.txt"))
    # The directories themselves are as their owner made them.
    assert modes(elsewhere) == {".": "0o755", "lake": "0o755", "scratch": "0o755"}


@pytest.mark.skipif(sys.platform != "linux", reason="the access lists of Linux")
def test_a_group_that_the_lake_names_for_new_files_reads_them(checkout: Checkout) -> None:
    lake = checkout.root / "shared"
    (lake / "exports").mkdir(parents=True)
    # setfacl -m d:g:12345:rX exports
    entries = [(0x01, 7, -1), (0x04, 0, -1), (0x08, 5, 12345), (0x10, 5, -1), (0x20, 0, -1)]
    access = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    os.setxattr(lake / "exports", "system.posix_acl_default", access)
    checkout.materialize(DAYS[0], "user_page_views_csv", USER_PIPELINE_LAKE_URL=str(lake))
    [export] = lake.glob("exports/user_page_views/*/user_page_views.csv")
    named = [struct.unpack("<HHi", entry) for entry in _entries(export)]
    assert (0x08, 5, 12345) in named
    # No access list takes away what its mask lets through; nobody else is let in.
    assert [permissions & 4 for tag, permissions, _ in named if tag == 0x10] == [4]
    assert export.stat().st_mode & 0o007 == 0


def _entries(path: Path) -> list[bytes]:
    listed = os.getxattr(path, "system.posix_acl_access")[4:]
    return [listed[at : at + 8] for at in range(0, len(listed), 8)]


@pytest.fixture
def data_dir(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data directory that everyone may enter, as the setting names it."""
    made = place / "data"
    made.mkdir()
    made.chmod(0o755)
    monkeypatch.setenv("USER_PIPELINE_DATA_DIR", str(made))
    settings.current.cache_clear()
    before = os.umask(0o022)
    yield made
    os.umask(before)
    settings.current.cache_clear()


def test_a_data_directory_that_others_could_enter_is_closed_and_new_files_are_private(data_dir: Path) -> None:
    for name in ("lake", "postgres"):
        (data_dir / name).mkdir()
    (data_dir / "demo.log").touch()
    keep_private()
    assert data_dir.stat().st_mode & 0o777 == 0o700
    (data_dir / "lake" / "new").touch()
    (data_dir / "lake" / "newer").mkdir()
    assert modes(data_dir / "lake") == {".": "0o755"}


def test_a_directory_that_holds_other_things_too_stays_open_and_what_is_ours_is_closed(data_dir: Path) -> None:
    for name in ("lake", "postgres", "someone", "source"):
        (data_dir / name).mkdir()
    (data_dir / "demo.log").touch()
    keep_private()
    assert modes(data_dir) == {".": "0o755", "someone": "0o755"}


@as_root
def test_what_belongs_to_someone_else_is_left_as_it_is(data_dir: Path) -> None:
    os.chown(data_dir, 1, 1)
    keep_private()
    assert modes(data_dir) == {".": "0o755"}


@as_root
def test_a_data_directory_of_another_user_is_refused_in_a_sentence(place: Path) -> None:
    server = EmbeddedPostgres(place / "data")
    (server.data_dir / "postgres").mkdir(parents=True)
    server.data_dir.chmod(0o700)
    for action in (postgres.ensure_running, postgres.stop):

        def attempt(action: Callable[[Path], object] = action) -> None:
            with pytest.raises(postgres.EmbeddedPostgresError, match=r"data/postgres cannot be (used|stopped): .*ermi"):
                action(server.data_dir)

        assert not refused(attempt)

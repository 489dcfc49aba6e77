"""One Spark cluster for all tests here: they are in one file, which one process of pytest runs."""

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from user_pipeline import settings
from user_pipeline.cli.spark_cluster import Cluster, Shape, cluster
from user_pipeline_tests import CHECKOUT

ENVIRONMENT = CHECKOUT / ".venv-spark"
# What executors have in their environment, as they would in a deployment: credentials do not travel.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test-key", "AWS_SECRET_ACCESS_KEY": "test-secret"}
TOKEN = "the-right-token"  # noqa: S105
_SHAPE = Shape(workers=2, worker_memory="1g", executor_memory="512m")
# A task that runs longer than others is begun a second time; those of the tests' small days end before.
_CONF = [
    "spark.speculation=true",
    "spark.speculation.quantile=0.5",
    "spark.speculation.multiplier=1.1",
    "spark.speculation.minTaskRuntime=4s",
    # A task is given up sooner than after four times: two of them are killed once.
    "spark.task.maxFailures=3",
    f"spark.connect.authenticate.token={TOKEN}",
]
# These live for minutes: compiling their code as well as Java can would take longer than it saves.
QUICK_JAVA = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"


@pytest.fixture(scope="session")
def running() -> Iterator[Cluster]:
    """A master, two workers and a Connect server that asks for a token."""
    more = {**CREDENTIALS, "AWS_EC2_METADATA_DISABLED": "true", "JDK_JAVA_OPTIONS": QUICK_JAVA}
    with cluster(ENVIRONMENT, _SHAPE, more=more, conf=_CONF) as made:
        yield replace(made, remote=with_token(made.remote, TOKEN))


def with_token(remote: str, token: str) -> str:
    """The address of a server with a token, which Spark's client sends to localhost alone without TLS."""
    address = remote.partition("/;")[0].replace("127.0.0.1", "localhost")
    return f"{address}/;token={token};use_ssl=false"


@pytest.fixture
def spark(running: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Runs of the test are on the cluster."""
    use(running.remote, monkeypatch)
    yield running
    settings.current.cache_clear()


def use(remote: str | None, patch: pytest.MonkeyPatch) -> None:
    """Have runs on a cluster, or on DuckDB."""
    patch.setenv("USER_PIPELINE_ENGINE", "spark" if remote else "duckdb")
    patch.setenv("USER_PIPELINE_SPARK_REMOTE", remote or "")
    settings.current.cache_clear()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests here want the environment of the cluster."""
    here = os.path.dirname(__file__)  # noqa: PTH120 - compared as text
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(pytest.mark.spark)

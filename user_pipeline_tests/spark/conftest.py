"""One Spark cluster for all tests here: they are in one file, which one process of pytest runs."""

import os
from collections.abc import Iterator

import pytest

from user_pipeline import settings
from user_pipeline.cli.spark_cluster import Cluster, Shape, cluster
from user_pipeline_tests import CHECKOUT

ENVIRONMENT = CHECKOUT / ".venv-spark"
# What executors have in their environment, as they would in a deployment: credentials do not travel.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test-key", "AWS_SECRET_ACCESS_KEY": "test-secret"}
_SHAPE = Shape(workers=2, worker_memory="1g", executor_memory="512m")


@pytest.fixture(scope="session")
def running() -> Iterator[Cluster]:
    """A master, two workers and a Connect server."""
    more = {**CREDENTIALS, "AWS_EC2_METADATA_DISABLED": "true"}
    # So that a test can have an executor killed and see its work done again.
    with cluster(ENVIRONMENT, _SHAPE, more=more, conf=["spark.speculation=true"]) as made:
        yield made


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

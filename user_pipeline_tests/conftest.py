"""One embedded Postgres for the whole session, and for each test a platform of its own on it."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from user_pipeline.resources.embedded_postgres import EmbeddedPostgres, ensure_running, stop
from user_pipeline_tests.places import clean_environment, place, query, server
from user_pipeline_tests.platform import Platform

__all__ = ["clean_environment", "place", "query", "server"]
"""Fixtures that are defined elsewhere."""

_LONG = ("ui/test_browser.py", "test_oracle.py", "deploy/test_processes.py", "faults/test_killed.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of few tests that take minutes go first: at the end all processes but one would wait for them."""
    items.sort(key=lambda item: next((at for at, name in enumerate(_LONG) if item.path.match(name)), len(_LONG)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Loading the definitions sets this process's umask: no test may depend on whether another did that before it."""
    os.umask(0o022)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strip what the developer's shell has set: a test must never reach a real bucket or database."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "USER_PIPELINE_", "DAGSTER_", "PG")):
            monkeypatch.delenv(name)
    # Without these the credential chain asks the network of a cloud machine.
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """A server of the tests alone."""
    data_dir = Path(tempfile.mkdtemp(prefix="user-pipeline-tests-"))
    try:
        yield ensure_running(data_dir)
    finally:
        stop(data_dir)
        shutil.rmtree(data_dir, ignore_errors=True)


@pytest.fixture
def platform(postgres: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Platform]:
    """An empty platform: directories, two empty databases, and the settings that name them."""
    with Platform.create(postgres, tmp_path) as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        yield made


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--screenshots", metavar="DIRECTORY", help="keep what the browser tests see, for the documentation"
    )
    parser.addoption("--every-kill", action="store_true", help="kill runs at every boundary, not at a sample of them")

"""One embedded Postgres for the whole session, for each test a platform on it, or a server that it may stop."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
import pytest

from user_pipeline.resources.embedded_postgres import EmbeddedPostgres, ensure_running, stop
from user_pipeline_tests.in_memory import stamp_nothing
from user_pipeline_tests.platform import Platform
from user_pipeline_tests.servers import discard

# The demo of a developer has pinned its start date in the checkout's data directory: definitions are loaded without it.
_NOWHERE = "/nonexistent/user-pipeline-tests"
os.environ["USER_PIPELINE_DATA_DIR"] = _NOWHERE

stamp_nothing()

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
    monkeypatch.setenv("USER_PIPELINE_DATA_DIR", _NOWHERE)
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


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short path, as a checkout has, and open parents."""
    directory = Path(tempfile.mkdtemp(prefix="up-"))
    directory.chmod(0o755)
    yield directory
    discard(directory)


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    """One server for the tests of a module that do not mind each other."""
    directory = Path(tempfile.mkdtemp(prefix="up-"))
    yield ensure_running(directory)
    discard(directory)


@pytest.fixture
def clean_environment() -> dict[str, str]:
    """This environment without any setting of the platform, Dagster, Postgres or AWS."""
    prefixes = ("USER_PIPELINE_", "DAGSTER_", "PG", "AWS_")
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}


@pytest.fixture
def query() -> Callable[..., list[tuple[object, ...]]]:
    """Run one statement on the database of a URL and return its rows."""

    def run(url: str, statement: str) -> list[tuple[object, ...]]:
        connection = psycopg2.connect(url)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    return run


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--screenshots", metavar="DIRECTORY", help="keep what the browser tests see, for the documentation"
    )
    parser.addoption("--every-kill", action="store_true", help="kill runs at every boundary, not at a sample of them")

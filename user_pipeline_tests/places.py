"""Real servers in short-lived directories; every one that a test starts is stopped at its end."""

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psycopg2
import pytest

from user_pipeline.resources import embedded_postgres as postgres
from user_pipeline.resources.embedded_postgres import EmbeddedPostgres


def discard(directory: Path) -> None:
    """Stop every server in ``directory``, without the checkpoint of an orderly end, and remove it all."""
    for lock in directory.rglob("postgres/lock"):
        server = EmbeddedPostgres(lock.parent.parent)
        with suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((server.cluster / "postmaster.pid").read_text().splitlines()[0]), signal.SIGQUIT)
        postgres.stop(server.data_dir)
    shutil.rmtree(directory)


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
    yield postgres.ensure_running(directory)
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

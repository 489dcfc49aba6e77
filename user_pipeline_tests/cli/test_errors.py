"""The mistakes of a first week on the command line: one or two lines that name what is wrong and what would be right.

docs/errors.md lists them.
"""

import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from user_pipeline.settings import unknown_variables
from user_pipeline.short_errors import sentence
from user_pipeline_tests import CHECKOUT
from user_pipeline_tests.s3 import s3_endpoint
from user_pipeline_tests.servers import PasswordServer, password_server

BIN = Path(sys.executable).parent
NO_DATABASE = {
    "USER_PIPELINE_STAGING_URL": "postgresql://u:not-shown@127.0.0.1:1/x",
    "USER_PIPELINE_ANALYTICS_URL": "postgresql://u:not-shown@127.0.0.1:1/x",
    "DAGSTER_POSTGRES_URL": "postgresql://u:not-shown@127.0.0.1:1/x",
}
KEYS = {"AWS_ACCESS_KEY_ID": "some-key", "AWS_SECRET_ACCESS_KEY": "not-shown"}
NO_AWS = {
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/nonexistent",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
}

Fails = Callable[..., str]


@pytest.fixture
def fails(place: Path, clean_environment: dict[str, str]) -> Fails:
    def run(*command: str, code: int = 1, **variables: str) -> str:
        """What a command says that fails, in the directory of a checkout, without what Dagster warns of."""
        (place / "dagster.yaml").write_text((CHECKOUT / "dagster.yaml").read_text())
        done = subprocess.run(
            [BIN / command[0], *command[1:]],
            cwd=place,
            env={**clean_environment, **NO_AWS, **variables},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        said = done.stdout + re.sub(r".*SupersessionWarning.*\n.*\n", "", done.stderr)
        assert done.returncode == code, said
        assert "Traceback" not in said
        assert "not-shown" not in said
        assert len(said.splitlines()) <= 2, said
        return said

    return run


@pytest.mark.parametrize(
    ("variable", "value", "right"),
    [
        ("USER_PIPELINE_START_DATE", "2017-13-01", "a date not after yesterday (UTC), as YYYY-MM-DD"),
        ("USER_PIPELINE_START_DATE", "2999-01-01", "a date not after yesterday (UTC), as YYYY-MM-DD"),
        ("USER_PIPELINE_MEMORY_LIMIT", "lots", "a size of at least 256MB, such as 2GB"),
        ("USER_PIPELINE_STAGING_URL", "mysql://x/y", "postgresql://user:password@host:port/database"),
    ],
)
def test_a_setting_with_a_wrong_value(fails: Fails, variable: str, value: str, right: str) -> None:
    for command in (("user-pipeline", "objects"), ("dagster", "asset", "list", "-m", "user_pipeline.definitions")):
        said = fails(*command, **{variable: value})
        assert f"{variable}={value!r} cannot be used: expected {right}" in said


def test_a_misspelled_setting() -> None:
    assert unknown_variables({"USER_PIPELINE_SORCE_URL": "x", "USER_PIPELINE_LAKE_URL": "y", "PATH": "z"}) == {
        "USER_PIPELINE_SORCE_URL": "USER_PIPELINE_SOURCE_URL"
    }
    assert unknown_variables({"USER_PIPELINE_CODE_PORT": "4000"}) == {}


def test_a_misspelled_setting_is_told_of_by_every_command(fails: Fails) -> None:
    said = fails("user-pipeline", "objects", USER_PIPELINE_LAKE_ULR="x", **NO_DATABASE)
    assert "Warning: USER_PIPELINE_LAKE_ULR is no setting; is USER_PIPELINE_LAKE_URL meant?" in said


def test_no_credentials_for_a_bucket(fails: Fails) -> None:
    said = fails("user-pipeline", "sample", "--days=1", USER_PIPELINE_SOURCE_URL="s3://logs")
    assert "USER_PIPELINE_SOURCE_URL=s3://logs: no AWS credentials were found; set AWS_ACCESS_KEY_ID" in said


def test_a_bucket_that_does_not_exist(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_endpoint(monkeypatch, "logs") as endpoint:
        variables = {**KEYS, "AWS_ENDPOINT_URL": endpoint.url, "AWS_REGION": "us-east-1"}
        said = fails("user-pipeline", "sample", "--days=1", USER_PIPELINE_SOURCE_URL="s3://lgos", **variables)
    assert "USER_PIPELINE_SOURCE_URL=s3://lgos: the bucket 'lgos' does not exist at AWS_ENDPOINT_URL=" in said


def test_an_endpoint_where_nobody_listens(fails: Fails) -> None:
    said = fails(
        "user-pipeline",
        "sample",
        "--days=1",
        USER_PIPELINE_SOURCE_URL="s3://logs",
        AWS_ENDPOINT_URL="http://127.0.0.1:9",
        **KEYS,
    )
    assert "USER_PIPELINE_SOURCE_URL=s3://logs: AWS_ENDPOINT_URL=http://127.0.0.1:9 cannot be reached" in said


@pytest.fixture
def refusing() -> Iterator[Callable[[int, str], str]]:
    """An S3 endpoint that refuses everything, as S3 does."""
    servers: list[ThreadingHTTPServer] = []

    def serve(status: int, body: str) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *arguments: object) -> None:
                """Nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


ELSEWHERE = (
    "<Error><Code>AuthorizationHeaderMalformed</Code><Message>the region 'us-east-1' is wrong; expecting "
    "'eu-central-1'</Message><Region>eu-central-1</Region></Error>"
)


@pytest.mark.parametrize(
    ("status", "body", "right"),
    [
        (
            400,
            ELSEWHERE,
            "is in another region than requests go to; set AWS_REGION to its region (eu-central-1)",
        ),
        (
            403,
            "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>",
            "refuses the AWS credentials for the bucket 'logs'; check AWS_ACCESS_KEY_ID",
        ),
    ],
    ids=["region", "rights"],
)
def test_a_bucket_that_refuses(
    fails: Fails, refusing: Callable[[int, str], str], status: int, body: str, right: str
) -> None:
    variables = {**KEYS, "AWS_ENDPOINT_URL": refusing(status, body)}
    said = fails("user-pipeline", "sample", "--days=1", USER_PIPELINE_SOURCE_URL="s3://logs", **variables)
    assert "USER_PIPELINE_SOURCE_URL=s3://logs: " in said
    assert right in said


def test_directories_that_are_not_there_or_cannot_be_made(fails: Fails) -> None:
    said = fails("user-pipeline", "reread", "page_views", USER_PIPELINE_SOURCE_URL="/nonexistent/logs", **NO_DATABASE)
    assert "USER_PIPELINE_SOURCE_URL=/nonexistent/logs: there is no such directory; it should hold the folders" in said
    said = fails("user-pipeline", "vacuum", USER_PIPELINE_LAKE_URL="/proc/lake", **NO_DATABASE)
    assert "/proc/lake: the directory cannot be made" in said or "cannot connect to Postgres" in said


def test_a_database_where_nobody_listens(fails: Fails) -> None:
    said = fails("user-pipeline", "objects", **NO_DATABASE)
    assert 'USER_PIPELINE_STAGING_URL: cannot connect to Postgres: connection to server at "127.0.0.1", port 1' in said
    assert "Start the server, or correct host and port in the URL." in said


@pytest.fixture(scope="module")
def passwords() -> Iterator[PasswordServer]:
    with password_server() as server:
        server.execute("create role writer login password 'right'")
        server.execute("create database staging owner writer")
        yield server


def test_a_database_that_refuses(fails: Fails, passwords: PasswordServer) -> None:
    def told(database: str, password: str) -> str:
        url = passwords.url(database, "writer", password)
        return fails("user-pipeline", "objects", **{**NO_DATABASE, "USER_PIPELINE_STAGING_URL": url})

    said = told("staging", "not-shown")
    assert 'USER_PIPELINE_STAGING_URL: cannot connect to Postgres: connection to server at "127.0.0.1"' in said
    assert 'password authentication failed for user "writer". Correct user and password in the URL.' in said
    said = told("stagin", "right")
    assert 'database "stagin" does not exist. Create it (deploy/sql/roles.sql makes all databases' in said


def test_a_postgres_that_is_too_old(passwords: PasswordServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from user_pipeline.resources import postgres
    from user_pipeline.resources.postgres_errors import DatabaseError
    from user_pipeline.settings import Settings

    url = passwords.url("staging", "writer", "right")
    database = postgres.Postgres(Settings.from_environment({"USER_PIPELINE_STAGING_URL": url}).staging)
    with database.transaction() as transaction:
        assert transaction.fetch("select 1") == [(1,)]
    database.close()
    monkeypatch.setattr(postgres, "_OLDEST", 99)
    message = r"USER_PIPELINE_STAGING_URL: PostgreSQL \S+.* is too old; use PostgreSQL 99 or later"
    with pytest.raises(DatabaseError, match=message), database.transaction():
        pytest.fail("it was not refused")


def test_a_port_that_is_taken(fails: Fails, place: Path) -> None:
    (place / "workspace.yaml").write_text((CHECKOUT / "workspace.yaml").read_text())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = fails("user-pipeline", "up", f"--port={port}")
    assert f"The UI cannot have port {port} of 127.0.0.1: Address already in use." in said
    assert "choose another with --port" in said


def test_a_command_outside_of_the_checkout(fails: Fails) -> None:
    assert "There is no workspace.yaml in" in fails("user-pipeline", "up")


MATERIALIZE = ("dagster", "asset", "materialize", "-m", "user_pipeline.definitions", "--select")


@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        (("fake_users_archive", "--partition", "2017-13-45"), "there is no day '2017-13-45': write days as YYYY-MM-DD"),
        (
            ("fake_users_archive", "--partition", "2016-01-01"),
            "from 2017-04-01 (USER_PIPELINE_START_DATE) to yesterday",
        ),
        (("nothing", "--partition", "2017-04-01"), "--select: there are no assets ['nothing']; `dg list defs` lists"),
        (("fake_users_archive",), "these assets have days: add --partition 2017-04-15"),
        (
            ("fake_users_archive", "--partition-range", "2017-04-03...2017-04-01"),
            "2017-04-01...2017-04-03 is the one from the earlier day to the later",
        ),
    ],
)
def test_days_and_assets_that_are_not_there(
    fails: Fails, tmp_path: Path, arguments: tuple[str, ...], right: str
) -> None:
    # An instance of its own: that of the checkout would start the embedded Postgres.
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    assert right in fails(*MATERIALIZE, *arguments, DAGSTER_HOME=str(tmp_path))


def test_no_users_at_all(clean_environment: Mapping[str, str], tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    config = '{"ops": {"fake_users_archive": {"config": {"num_users": 0}}}}'
    done = subprocess.run(
        [
            BIN / MATERIALIZE[0],
            *MATERIALIZE[1:],
            "fake_users_archive",
            "--partition=2017-04-01",
            "--config-json",
            config,
        ],
        cwd=tmp_path,
        env={**clean_environment, "DAGSTER_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    # It is the log of a run: Dagster's.
    assert "num_users\n  Input should be greater than or equal to 1" in done.stderr
    assert not (tmp_path / "data/lake").exists() or not list((tmp_path / "data/lake").rglob("*.zip"))


def test_what_is_nobody_s_mistake_keeps_its_traceback() -> None:
    assert sentence(ZeroDivisionError("division by zero")) is None

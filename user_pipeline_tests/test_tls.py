"""TLS to Postgres: ``sslmode`` and ``sslrootcert`` of a URL decide, for our driver and for Dagster's storage alike."""

import os
import ssl
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import pytest
import trustme
from dagster_postgres.utils import DagsterPostgresException
from pydantic import SecretStr

from user_pipeline.instance.storage import PostgresStorage
from user_pipeline.resources.postgres import Postgres
from user_pipeline.resources.postgres_errors import DatabaseError
from user_pipeline.setting_values import Database
from user_pipeline_tests.servers import PasswordServer, password_server, tls_in_front

PASSWORD = "p@ss/word of:tls"  # noqa: S105 - it must not be shown


@dataclass(frozen=True)
class Tls:
    """A Postgres behind TLS, for the name localhost and for no other."""

    server: PasswordServer
    port: int
    right: Path
    wrong: Path

    def url(self, host: str = "localhost", port: int = 0, **options: str) -> str:
        url = self.server.url("postgres", "someone", PASSWORD, port or self.port)
        return url.replace("127.0.0.1", host) + "?" + urlencode(options)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tls]:
    directory = tmp_path_factory.mktemp("certificates")
    authority, other = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(directory / "right.pem")
    other.cert_pem.write_to_path(directory / "wrong.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with password_server() as server:
        server.execute(f"create role someone login password '{PASSWORD}'")
        server.execute("grant create on schema public to someone")
        with tls_in_front(server.port, context) as port:
            yield Tls(server, port, directory / "right.pem", directory / "wrong.pem")


def through_adbc(url: str) -> None:
    postgres = Postgres(Database("USER_PIPELINE_STAGING_URL", "staging", SecretStr(url)))
    try:
        with postgres.transaction() as transaction:
            assert transaction.fetch("select current_user::text, repeat('x', 100000)") == [("someone", "x" * 100_000)]
    finally:
        postgres.close()


def through_dagster(url: str) -> None:
    assert PostgresStorage(url).run_storage.get_runs() == []


@pytest.fixture(autouse=True)
def _dagster_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """It tries again for seconds, whatever the reason."""
    monkeypatch.setattr("dagster_postgres.utils.calculate_delay", lambda **_: 0)


CLIENTS = pytest.mark.parametrize("connect", [through_adbc, through_dagster])


def refusal(connect: Callable[[str], None], url: str) -> str:
    """All that is said when a connection is refused."""
    with pytest.raises((DatabaseError, DagsterPostgresException)) as raised:
        connect(url)
    assert isinstance(raised.value, DatabaseError) == (connect is through_adbc)
    return "".join(traceback.format_exception(raised.value))


@CLIENTS
@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
def test_the_right_authority_is_trusted(tls: Tls, connect: Callable[[str], None], mode: str) -> None:
    connect(tls.url(sslmode=mode, sslrootcert=str(tls.right)))


@CLIENTS
def test_without_a_word_about_authorities_the_line_is_encrypted_only(
    tls: Tls, connect: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # libpq looks for ~/.postgresql/root.crt
    connect(tls.url(sslmode="require"))


@CLIENTS
@pytest.mark.parametrize(
    ("options", "host", "reason"),
    [
        ({"sslmode": "verify-full", "sslrootcert": "wrong"}, "localhost", "certificate verify failed"),
        ({"sslmode": "verify-ca", "sslrootcert": "wrong"}, "localhost", "certificate verify failed"),
        ({"sslmode": "require", "sslrootcert": "wrong"}, "localhost", "certificate verify failed"),
        ({"sslmode": "verify-full", "sslrootcert": "right"}, "127.0.0.1", "does not match host name"),
        ({"sslmode": "verify-full", "sslrootcert": "/none.pem"}, "localhost", 'root certificate file "/none.pem"'),
    ],
)
def test_what_cannot_be_verified_is_refused_at_once_and_without_the_password(
    tls: Tls, connect: Callable[[str], None], options: dict[str, str], host: str, reason: str
) -> None:
    files = {"right": str(tls.right), "wrong": str(tls.wrong)}
    url = tls.url(host) + urlencode({name: files.get(value, value) for name, value in options.items()})
    said = refusal(connect, url)
    assert reason in said
    assert "p@ss" not in said
    assert "word of" not in said
    assert "word%20of" not in said


@CLIENTS
@pytest.mark.parametrize("mode", ["require", "verify-full"])
def test_a_server_without_tls_is_refused_where_tls_is_asked_for(
    tls: Tls, connect: Callable[[str], None], mode: str
) -> None:
    url = tls.url(port=tls.server.port, sslmode=mode, sslrootcert=str(tls.right))
    assert "server does not support SSL" in refusal(connect, url)


def test_the_standard_variables_count_where_a_url_says_nothing(tls: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    monkeypatch.setenv("PGSSLROOTCERT", str(tls.wrong))
    with pytest.raises(DatabaseError, match="certificate verify failed"):
        through_adbc(tls.url())
    monkeypatch.setenv("PGSSLROOTCERT", str(tls.right))
    through_adbc(tls.url())


@pytest.mark.parametrize("installed", [False, True])
def test_psql_is_the_installed_one_where_tls_is_asked_for(tls: Tls, installed: bool, tmp_path: Path) -> None:  # noqa: FBT001
    if installed:
        (tmp_path / "psql").write_text('#!/bin/sh\necho "$PGSSLMODE $PGHOST $*"\n')
        (tmp_path / "psql").chmod(0o755)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PG")},
        "USER_PIPELINE_ANALYTICS_URL": tls.url(sslmode="verify-full", sslrootcert=str(tls.right)),
        "PATH": f"{tmp_path}:/bin" if installed else "/nowhere",
    }
    command = [str(Path(sys.executable).with_name("user-pipeline")), "psql", "-c", "select 1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if installed:
        assert done.stdout == "verify-full localhost -c select 1\n"
    else:
        assert done.returncode == 1
        assert done.stderr == (
            "Error: USER_PIPELINE_ANALYTICS_URL asks for sslmode=verify-full, and the psql that comes along "
            "has no TLS: install PostgreSQL's psql.\n"
        )

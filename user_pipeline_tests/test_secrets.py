"""Secrets planted in every setting, addresses planted in the feeds: after a run neither is found in anything it left.

What is searched: every byte of the instance's directory (event log, run records, compute logs) or a dump of Dagster's
Postgres storage, standard output and error, Python's log records, and the ``repr`` of settings and resources.
"""

import base64
import contextlib
import http.server
import json
import logging
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import boto3
import dagster as dg
import pytest

from user_pipeline import masking, settings
from user_pipeline.cli.create_tables import create_tables
from user_pipeline.definitions import defs
from user_pipeline.defs.automation.sensor import new_logs
from user_pipeline.errors import MaskedError, PermanentError, masked, never_retried
from user_pipeline.instance.storage import PostgresStorage
from user_pipeline.resources import embedded_postgres as postgres
from user_pipeline.resources.postgres import Databases
from user_pipeline.resources.storage import ObjectStorage
from user_pipeline.settings import Settings
from user_pipeline_tests import CHECKOUT
from user_pipeline_tests.platform import LOG_PIPELINE, Platform, update, view
from user_pipeline_tests.s3 import s3_endpoint
from user_pipeline_tests.servers import PasswordServer, password_server

DAGSTER_YAML = CHECKOUT / "dagster.yaml"
PLANTED = {
    name: f"planted{name}secret"
    for name in (
        "staging", "analytics", "dagster", "sslpassword", "webhook", "webhookuser", "awssecret", "awstoken", "ssekey",
        "container", "pgpassword",
    )
}  # fmt: skip
SSE_KEY = base64.b64encode(PLANTED["ssekey"].ljust(32, "x").encode()).decode()
ADDRESS = "planted.person"
NEEDLES = {*PLANTED.values(), SSE_KEY, ADDRESS}
# Passwords that stand in a URL as something else than they are.
PASSWORDS = {name: f"p@ss {PLANTED[name]}/&?#%" for name in ("staging", "analytics", "dagster")}


@pytest.fixture(scope="module")
def server() -> Iterator[PasswordServer]:
    with password_server() as made:
        for name, password in PASSWORDS.items():
            made.execute(f"create role {name} login password '{password}'")
            made.execute(f"create database {name} owner {name}")
        yield made


@pytest.fixture
def platform(server: PasswordServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Platform]:
    """A platform on S3 and passwords, with a secret in every variable that can hold one."""
    with s3_endpoint(monkeypatch, "source", "lake"):
        environment = {
            "USER_PIPELINE_SOURCE_URL": "s3://source/logs",
            "USER_PIPELINE_LAKE_URL": "s3://lake/up",
            "USER_PIPELINE_STAGING_URL": server.url("staging", "staging", PASSWORDS["staging"])
            + f"?sslmode=prefer&sslpassword={PLANTED['sslpassword']}",
            "USER_PIPELINE_ANALYTICS_URL": server.url("analytics", "analytics", PASSWORDS["analytics"]),
            "DAGSTER_POSTGRES_URL": server.url("dagster", "dagster", PASSWORDS["dagster"]),
            "USER_PIPELINE_DATA_DIR": str(tmp_path / "data"),
            "USER_PIPELINE_SCRATCH_DIR": str(tmp_path / "scratch"),
            # Its few lines are mostly rejected ones.
            "USER_PIPELINE_BLOCK_REJECT_SHARE": "1",
            "USER_PIPELINE_ALERT_WEBHOOK_URL": f"http://u:{PLANTED['webhookuser']}@127.0.0.1:9/{PLANTED['webhook']}",
            "USER_PIPELINE_HEARTBEAT_URL": f"http://127.0.0.1:9/beat/{PLANTED['webhook']}",
            "AWS_SECRET_ACCESS_KEY": PLANTED["awssecret"],
            "AWS_SESSION_TOKEN": PLANTED["awstoken"],
            "AWS_SSE_CUSTOMER_KEY_BASE64": SSE_KEY,
            "AWS_CONTAINER_AUTHORIZATION_TOKEN": PLANTED["container"],
            "PGPASSWORD": PLANTED["pgpassword"],
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        settings.current.cache_clear()
        resolved = Settings.from_environment(environment)
        databases = Databases(resolved)
        create_tables(databases)
        for database in (databases.staging, databases.analytics):
            with database.transaction() as transaction:
                # The lake is another one, too.
                for (table,) in transaction.fetch(
                    "select format('%I.%I', schemaname, tablename) from pg_tables "
                    "where schemaname in ('public', 'pipeline')"
                ):
                    transaction.execute(f"truncate {table}")
        deliver()
        yield Platform(tmp_path, environment, resolved, databases)
        databases.close()
        settings.current.cache_clear()


def deliver() -> None:
    """An address wherever there is room for one: where it belongs, in urls, in rejected lines, in an object's name."""
    person = f"{ADDRESS}@example.com"
    lines = [
        update("2017-04-01T10:00:00", 1, person, person),
        update("2017-04-01T10:00:00", 1, person, person),
        update("2017-04-01T11:00:00", 2, f"{person}@", person),
        update(person, 3, person),
        update("2017-04-01T11:00:00", person, person),
        update("2017-04-01T11:00:00", 4, person, person, environment=person),
        f'"{person}',
        f"{person}\n",
    ]
    views = [
        view("2017-04-01T10:00:00", f"/reset?mail={person}"),
        view("2017-04-01T10:00:00", f"/reset?mail={person.replace('@', '%40')}", person),
        view(person, "/"),
        view("2017-04-01T10:00:00", "/", environment=person),
    ]
    client = boto3.client("s3")
    client.put_object(Bucket="source", Key="logs/UserUpdates/a.csv", Body="".join(lines).encode())
    body = "".join(f"{line}\n" for line in (*map(json.dumps, views), person))
    client.put_object(Bucket="source", Key=f"logs/PageViews/{person}/a.json", Body=body.encode())


@dataclass
class Left:
    """What a test's runs left behind."""

    directory: Path
    instance: dg.DagsterInstance
    texts: list[bytes] = field(default_factory=list)

    def add(self, *texts: str) -> None:
        self.texts += [text.encode() for text in texts]

    def assert_clean(self) -> None:
        everything = [path.read_bytes() for path in self.directory.rglob("*") if path.is_file()] + self.texts
        assert sum(map(len, everything)) > 10_000
        found = {needle for needle in NEEDLES for text in everything if needle.encode() in text}
        assert not found


@pytest.fixture
def left(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> Iterator[Left]:
    """Everything a test's runs leave is searched at its end."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(dg.RetryPolicy, "calculate_delay", lambda *_: 0)
    directory = tmp_path / "instance"
    directory.mkdir()
    with dg.DagsterInstance.local_temp(str(directory)) as instance:
        made = Left(directory, instance)
        yield made
    made.add(caplog.text, *(str(record.__dict__) for record in caplog.records if record.name.startswith(OURS)))
    made.add(*capfd.readouterr())
    made.assert_clean()


OURS = ("user_pipeline", "dagster", "urllib", "http")


def run(platform: Platform, left: Left, **options: object) -> dg.ExecuteInProcessResult:
    return platform.materialize("2017-04-01", raise_on_error=False, instance=left.instance, **options)  # type: ignore[arg-type]


def failure(result: dg.ExecuteInProcessResult) -> str:
    """What Dagster shows of the first failure."""
    [event, *_] = result.get_step_failure_events()
    data = event.step_failure_data
    return f"{data.user_failure_data and data.user_failure_data.description} {data.error and data.error.to_string()}"


def test_a_run_that_succeeds(platform: Platform, left: Left) -> None:
    result = run(platform, left)
    assert result.success
    assert platform.rows("staging", f"select count(*) > 3 from rejected_lines where line like '%{ADDRESS}%'") == [
        (True,)
    ]
    assert platform.rows("analytics", f"select count(*) from users where email like '{ADDRESS}%'") == [(1,)]
    left.add(repr(platform.settings), str(platform.settings), repr(platform.databases.staging), repr(platform.storage))
    left.add(repr(platform.storage.lake), str(vars(platform.storage).keys()), repr(defs))


def test_an_object_that_is_named_after_somebody_and_broken(platform: Platform, left: Left) -> None:
    key = f"logs/UserUpdates/{ADDRESS}@example.com.csv.gz"
    boto3.client("s3").put_object(Bucket="source", Key=key, Body=b"\x1f\x8b no gzip")
    assert "1 object(s) of UserUpdates cannot be read (UserUpdates/***: " in failure(run(platform, left))
    # The next run goes on without it, and its check warns.
    assert run(platform, left).success


def test_a_wrong_password(
    platform: Platform, left: Left, server: PasswordServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("staging", "analytics"):
        wrong = server.url(name, name, PASSWORDS[name] + "x")
        monkeypatch.setenv(f"USER_PIPELINE_{name.upper()}_URL", wrong)
        settings.current.cache_clear()
        result = run(platform, left)
        assert f"USER_PIPELINE_{name.upper()}_URL: cannot connect to Postgres: " in failure(result)
        assert f'password authentication failed for user "{name}"' in failure(result)
        monkeypatch.setenv(
            f"USER_PIPELINE_{name.upper()}_URL", platform.environment[f"USER_PIPELINE_{name.upper()}_URL"]
        )
    monkeypatch.setattr("dagster_postgres.utils.calculate_delay", lambda **_: 0)
    with pytest.raises(Exception, match="too many retries") as raised:
        PostgresStorage(server.url("dagster", "dagster", PASSWORDS["dagster"] + "x"))
    left.add("".join(traceback.format_exception(raised.value)))


def test_a_host_that_cannot_be_reached(platform: Platform, left: Left, monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("127.0.0.1:9", "no-such-host.invalid:5432"):
        unreachable = f"postgresql://staging:{PLANTED['staging']}@{host}/staging?connect_timeout=2"
        monkeypatch.setenv("USER_PIPELINE_STAGING_URL", unreachable)
        settings.current.cache_clear()
        with pytest.raises(Exception, match="USER_PIPELINE_STAGING_URL: cannot connect to Postgres") as raised:
            create_tables(Databases(settings.current()))
        left.add("".join(traceback.format_exception(raised.value)))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "AWS_ENDPOINT_URL=http://127.0.0.1:9 cannot be reached" in failure(run(platform, left))


class Echo(http.server.BaseHTTPRequestHandler):
    """An S3 that refuses as AWS does: with all that it was sent, in clear and in hexadecimal."""

    let_list = False
    code = "SignatureDoesNotMatch"

    def answer(self, status: int, body: str) -> None:
        content = ('<?xml version="1.0" encoding="UTF-8"?>' + body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        if self.let_list and "list-type" in self.path:
            key = "logs/PageViews/a" if "PageViews" in self.path else "logs/UserUpdates/a"
            self.answer(
                200,
                "<ListBucketResult><Name>source</Name><IsTruncated>false</IsTruncated><Contents>"
                f"<Key>{key}</Key><LastModified>2017-04-01T00:00:00.000Z</LastModified><ETag>&quot;1&quot;</ETag>"
                "<Size>5</Size></Contents></ListBucketResult>",
            )
            return
        canonical = "".join(f"{name.lower()}:{value}\n" for name, value in self.headers.items())
        self.answer(
            403,
            f"<Error><Code>{self.code}</Code><Message>The request signature does not match.</Message>"
            f"<AWSAccessKeyId>test-key</AWSAccessKeyId><StringToSign>{canonical}</StringToSign>"
            f"<Token-0>{self.headers['x-amz-security-token']}</Token-0>"
            f"<CanonicalRequest>GET\n{canonical}</CanonicalRequest>"
            f"<CanonicalRequestBytes>{canonical.encode().hex(' ')}</CanonicalRequestBytes></Error>",
        )

    do_PUT = do_HEAD = do_POST = do_GET  # noqa: N815 - the server's names

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def echo() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo) as refusing:
        threading.Thread(target=refusing.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{refusing.server_port}"
        yield url
        refusing.shutdown()


@pytest.mark.parametrize("code", ["SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "Unheard"])
def test_a_refused_key(platform: Platform, left: Left, echo: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Echo, "code", code)
    monkeypatch.setenv("AWS_ENDPOINT_URL", echo)
    settings.current.cache_clear()
    text = failure(run(platform, left, select=["raw_page_views"], checks=False))
    assert f"USER_PIPELINE_SOURCE_URL=s3://source/logs: AWS_ENDPOINT_URL={echo} refuses the AWS credentials" in text
    with pytest.raises(Exception, match="refuses the AWS credentials") as raised:
        new_logs.evaluate_tick(dg.build_sensor_context(left.instance, repository_def=defs.get_repository_def()))
    left.add("".join(traceback.format_exception(raised.value)))


def test_a_key_that_may_list_but_not_read(
    platform: Platform, left: Left, echo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Echo, "let_list", True)
    monkeypatch.setenv("AWS_ENDPOINT_URL", echo)
    settings.current.cache_clear()
    text = failure(run(platform, left, select=["raw_page_views"], checks=False))
    assert "403 Forbidden" in text


@pytest.mark.usefixtures("platform")
def test_a_run_through_the_command_line_on_the_shipped_instance(
    left: Left, server: PasswordServer, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text(DAGSTER_YAML.read_text())
    kept = {
        name: value for name, value in os.environ.items() if name.startswith(("AWS_", "USER_PIPELINE_", "DAGSTER_"))
    }
    environment = {"PATH": os.environ["PATH"], "DAGSTER_HOME": str(home), **kept}
    command = [
        str(Path(sys.executable).with_name("dagster")),
        "asset",
        "materialize",
        "-m",
        "user_pipeline.definitions",
    ]
    select = [
        "--select",
        " or ".join((*LOG_PIPELINE, "group:fake_users")),
    ]
    done = subprocess.run(
        [*command, *select, "--partition", "2017-04-01"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    left.add(done.stdout, done.stderr)
    dump = subprocess.run(
        [postgres.binaries() / "pg_dump", "--inserts", server.superuser_url.replace("/postgres?", "/dagster?")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert dump.stdout.count("INSERT INTO public.event_logs") > 50
    left.add(dump.stdout)
    logs = [path for path in (tmp_path / "data/dagster/compute_logs").rglob("*") if path.is_file()]
    assert logs
    left.add(*(path.read_text() for path in logs))


def test_wrong_settings(left: Left) -> None:
    wrong: Mapping[str, str] = {
        "USER_PIPELINE_STAGING_URL": f"postgresql://me:{PLANTED['staging']}@host:port/x",
        "USER_PIPELINE_ANALYTICS_URL": f"mysql://me:{PLANTED['analytics']}@host/x",
        "DAGSTER_POSTGRES_URL": f"{PLANTED['dagster']}",
        "USER_PIPELINE_ALERT_WEBHOOK_URL": f"hooks/{PLANTED['webhook']}",
        "USER_PIPELINE_UI_URL": f"https://me:{PLANTED['webhookuser']}@host",
        "USER_PIPELINE_SOURCE_URL": f"s3://me:{PLANTED['awssecret']}@bucket",
        "USER_PIPELINE_LAKE_URL": f"https://me:{PLANTED['awssecret']}@host/lake",
        "USER_PIPELINE_DATA_DIR": f"postgresql://me:{PLANTED['staging']}@host/x",
        "USER_PIPELINE_SCRATCH_DIR": f"postgresql://me:{PLANTED['staging']}@host/x",
    }
    left.add("x" * 10_000)
    for name, value in wrong.items():
        with pytest.raises(settings.SettingsError) as raised:
            Settings.from_environment({name: value})
        left.add("".join(traceback.format_exception(raised.value)))
    for endpoint in (f"http://me:{PLANTED['awssecret']}@host:9000", f"me:{PLANTED['awssecret']}@host"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", endpoint)
            patch.setenv("AWS_ACCESS_KEY_ID", "key")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "other")
            location = Settings.from_environment({"USER_PIPELINE_LAKE_URL": "s3://lake"})
            with pytest.raises(PermanentError, match="AWS_ENDPOINT_URL=") as refused:
                _ = ObjectStorage(location).lake
            left.add("".join(traceback.format_exception(refused.value)))


def two_errors() -> None:
    try:
        int(f"{ADDRESS}@example.com")
    except ValueError as error:
        raise OSError("the outer one says nothing") from error


@pytest.mark.usefixtures("platform")
@pytest.mark.parametrize("context", [masked, never_retried])
def test_what_others_put_into_an_error_is_masked_with_its_causes(
    context: Callable[[], contextlib.AbstractContextManager[None]],
) -> None:
    with pytest.raises(MaskedError) as raised, context():
        two_errors()
    assert str(raised.value) == "builtins.OSError: the outer one says nothing"
    assert ADDRESS not in "".join(traceback.format_exception(raised.value))
    with pytest.raises(OSError, match="nothing to hide"), context():
        raise OSError("nothing to hide")
    with pytest.raises(dg.Failure) as failed, never_retried():
        raise PermanentError(f"key (email)=({ADDRESS}@example.com) and {PLANTED['awssecret']}")
    assert failed.value.description == "key (email)=(***) and ***"
    assert failed.value.__cause__ is None
    assert masking.mask("nothing to hide") == "nothing to hide"

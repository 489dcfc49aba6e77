import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from user_pipeline.cli.sample_logs import SampleLogs
from user_pipeline.resources import embedded_postgres as postgres
from user_pipeline.resources.embedded_postgres import EmbeddedPostgres
from user_pipeline.settings import Settings, variable_of
from user_pipeline_tests import CHECKOUT

Run = Callable[..., subprocess.CompletedProcess[str]]
COMMAND = Path(sys.executable).with_name("user-pipeline")
SMALL = ("sample", "--days=2", "--users=50", "--views-per-day=200")


@pytest.fixture
def run(place: Path, clean_environment: dict[str, str]) -> Run:
    def run(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, *arguments],
            cwd=place,
            env={**clean_environment, **(env or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return run


def test_help_lists_the_commands_and_starts_nothing(run: Run, place: Path) -> None:
    result = run("--help")
    assert result.returncode == 0
    for command in ("sample", "up", "env", "down"):
        assert f"\n  {command} " in result.stdout
    assert list(place.iterdir()) == []


def test_what_env_prints_leads_psql_to_the_embedded_databases(place: Path, clean_environment: dict[str, str]) -> None:
    script = f"""
        set -eu
        eval "$({shlex.quote(str(COMMAND))} env)"
        for url in "$USER_PIPELINE_STAGING_URL" "$USER_PIPELINE_ANALYTICS_URL" "$DAGSTER_POSTGRES_URL"; do
            {shlex.quote(str(postgres.binaries() / "psql"))} "$url" -XAt -c 'select current_database()'
        done
        echo "$USER_PIPELINE_LAKE_URL $USER_PIPELINE_START_DATE"
    """
    result = subprocess.run(
        ["bash", "-c", script],
        cwd=place,
        env={**clean_environment, "USER_PIPELINE_LAKE_URL": "it's a $(lake)"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    lake = f"{place}/it's a $(lake) 2017-04-01"
    assert result.stdout.splitlines() == ["staging", "analytics", "dagster", lake]


def test_env_prints_configured_urls_as_they_are_and_starts_nothing(run: Run, place: Path) -> None:
    variables = ("USER_PIPELINE_STAGING_URL", "USER_PIPELINE_ANALYTICS_URL", "DAGSTER_POSTGRES_URL")
    given = dict.fromkeys(variables, "postgresql://me:it's@db.example.com/x")
    result = run("env", env={**given, "AWS_SECRET_ACCESS_KEY": "not to be seen"})
    for variable in variables:
        assert f"export {variable}={shlex.quote(given[variable])}\n" in result.stdout
    assert "AWS" not in result.stdout
    assert not (place / "data").exists()


def test_env_shows_that_alerts_are_set_and_not_where_to(run: Run) -> None:
    given = dict.fromkeys(
        ("USER_PIPELINE_STAGING_URL", "USER_PIPELINE_ANALYTICS_URL", "DAGSTER_POSTGRES_URL"), "postgresql://db/x"
    )
    alerts = {
        "USER_PIPELINE_ALERT_WEBHOOK_URL": "https://hooks.example.com/services/hush",
        "USER_PIPELINE_UI_URL": "https://dagster.example.com",
        "USER_PIPELINE_UI_HOSTS": "Webserver,[fd00::7]",
        "USER_PIPELINE_USER_ID_KEY": "hush" * 8,
        "USER_PIPELINE_PAGE_VIEWS_FILTER": "grep -v 'a b'",
    }
    result = run("env", env={**given, **alerts})
    assert "\n# USER_PIPELINE_ALERT_WEBHOOK_URL is set, to https://hooks.example.com/***\n" in result.stdout
    assert "\nexport USER_PIPELINE_UI_URL='https://dagster.example.com'\n" in result.stdout
    assert "\nexport USER_PIPELINE_UI_HOSTS='webserver,fd00::7'\n" in result.stdout
    assert "\n# USER_PIPELINE_USER_ID_KEY is set\n" in result.stdout
    assert """\nexport USER_PIPELINE_PAGE_VIEWS_FILTER='grep -v '"'"'a b'"'"''\n""" in result.stdout
    assert "hush" not in result.stdout + result.stderr


def test_env_says_what_each_setting_means(run: Run, place: Path) -> None:
    given = dict.fromkeys(
        ("USER_PIPELINE_STAGING_URL", "USER_PIPELINE_ANALYTICS_URL", "DAGSTER_POSTGRES_URL"), "postgresql://db/x"
    )
    sizes = {"USER_PIPELINE_MEMORY_LIMIT": "1.5gib", "USER_PIPELINE_MAX_OBJECT_SIZE": "1234567B"}
    lines = run("env", env={**given, **sizes, "USER_PIPELINE_MAX_REJECT_SHARE": "0"}).stdout.splitlines()
    unset = {"alert_webhook", "ui_url", "ui_hosts", "source_queue_url"}
    unset |= {"spark_remote", "page_views_filter", "user_updates_filter", "user_id_key", "heartbeat"}
    unset |= {"recommendation_urls", "recommendation_exclude_urls", "retention_days"}
    fields = {name: field for name, field in Settings.model_fields.items() if name not in unset}
    assert lines[::2] == [f"# {field.description}" for field in fields.values()]
    assert [line.partition("=")[0] for line in lines[1::2]] == [f"export {variable_of(name)}" for name in fields]
    for line in (
        "export USER_PIPELINE_MEMORY_LIMIT='1536MiB'",
        "export USER_PIPELINE_MAX_OBJECT_SIZE='1234567B'",
        "export USER_PIPELINE_MAX_REJECT_SHARE='0.0'",
        f"export USER_PIPELINE_SOURCE_URL='{place}/data/source'",
    ):
        assert line in lines


def test_every_setting_that_is_printed_reads_back_as_itself(run: Run, place: Path) -> None:
    first = run("env", env={"USER_PIPELINE_DATA_DIR": "elsewhere"}).stdout
    assert EmbeddedPostgres(place / "elsewhere").cluster.is_dir()
    assert not (place / "data").exists()
    exported = dict(shlex.split(line)[1].split("=", 1) for line in first.splitlines() if line.startswith("export "))
    assert run("env", env=exported).stdout == first


def test_down_stops_the_server_and_says_what_it_did(run: Run, place: Path) -> None:
    assert run("down").stdout == f"No embedded Postgres runs in {place}/data/postgres.\n"
    server = postgres.ensure_running(place / "data")
    assert run("down").stdout == f"Stopped the embedded Postgres in {place}/data/postgres.\n"
    assert not (server.cluster / "postmaster.pid").exists()


def test_up_outside_of_a_checkout_says_where_to_run_it(run: Run, place: Path) -> None:
    result = run("up")
    assert result.returncode == 1
    assert "no workspace.yaml and no dagster.yaml" in result.stderr
    assert "root of the checkout" in result.stderr
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("instance", ["", "telemetry: {enabled: false}\n", "- no mapping\n", "{", None])
def test_up_refuses_an_instance_whose_web_server_other_sites_could_use(
    run: Run, place: Path, instance: str | None
) -> None:
    for name in ("workspace.yaml", "dagster.yaml"):
        shutil.copy(CHECKOUT / name, place)
    home = place / "home"
    home.mkdir()
    if instance is not None:
        (home / "dagster.yaml").write_text(instance)
    result = run("up", env={"DAGSTER_HOME": str(home)})
    assert result.returncode == 1
    assert result.stderr.startswith(f"Error: {home}/dagster.yaml lacks the entry instance_class")
    assert "unset DAGSTER_HOME" in result.stderr
    assert not (place / "data").exists()


@pytest.mark.parametrize("command", ["sample", "env", "down"])
def test_a_wrong_setting_is_one_line_and_no_traceback(run: Run, command: str) -> None:
    result = run(command, env={"USER_PIPELINE_ENGINE": "abacus"})
    assert result.returncode == 1
    assert result.stderr.startswith("Error: USER_PIPELINE_ENGINE='abacus' cannot be used: expected ")
    assert result.stderr.count("\n") == 1


def test_a_server_that_cannot_start_is_no_traceback(run: Run, place: Path) -> None:
    (place / "data").mkdir()
    (place / "data" / "postgres").touch()
    result = run("env")
    assert result.returncode == 1
    assert result.stderr.startswith(f"Error: The embedded Postgres in {place}/data/postgres cannot be used:")
    assert "Traceback" not in result.stderr


def test_sample_writes_to_a_directory_and_leaves_what_is_there_alone(run: Run, place: Path) -> None:
    expected = dict(SampleLogs(days=2, users=50, views_per_day=200).objects())
    assert f"{len(expected)} written now" in run(*SMALL).stdout
    source = place / "data" / "source"
    paths = [path for path in source.rglob("*") if path.is_file()]
    assert {str(path.relative_to(source)): path.read_bytes() for path in paths} == expected
    for path in paths:
        os.utime(path, (0, 0))
    assert ", 0 written now" in run(*SMALL).stdout
    assert all(path.stat().st_mtime == 0 for path in paths)


def test_sample_writes_to_a_bucket_and_names_the_setting_if_it_cannot(run: Run) -> None:
    s3 = ThreadedMotoServer(port=0)
    s3.start()
    try:
        endpoint = "http://{}:{}".format(*s3.get_host_and_port())
        access = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "not to be seen"}
        environment = {**access, "AWS_ENDPOINT_URL": endpoint, "AWS_REGION": "us-east-1"}
        client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id=access["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=access["AWS_SECRET_ACCESS_KEY"],
        )
        client.create_bucket(Bucket="logs")
        environment["USER_PIPELINE_SOURCE_URL"] = "s3://logs/of/app"
        result = run(*SMALL, env=environment)
        assert "objects of" in result.stdout, result.stderr
        expected = dict(SampleLogs(days=2, users=50, views_per_day=200).objects())
        listed = {entry["Key"] for entry in client.list_objects_v2(Bucket="logs")["Contents"]}
        assert listed == {f"of/app/{key}" for key in expected}

        environment["USER_PIPELINE_SOURCE_URL"] = "s3://missing"
        result = run(*SMALL, env=environment)
        assert result.returncode == 1
        assert result.stderr.startswith(
            "Error: USER_PIPELINE_SOURCE_URL=s3://missing: the bucket 'missing' does not exist"
        )
        assert "not to be seen" not in result.stderr
    finally:
        s3.stop()


def test_sample_refuses_days_that_have_not_come(run: Run, place: Path) -> None:
    result = run("sample", "--start=2099-01-01")
    assert result.returncode == 2
    assert "end after today" in result.stderr
    assert not (place / "data").exists()


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("pass", 0, ""),
        ("raise click.ClickException('no such day')", 1, "Error: no such day\n"),
        ("raise click.BadParameter('no such day')", 2, "no such day\n"),
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('as it is')", 1, "as it is\n"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
    ],
)
def test_a_process_ends_with_its_code_and_before_the_interpreter_is_taken_apart(
    command: str, code: int, said: str
) -> None:
    """Threads of others than Python's may still be about to enter it: a late one aborts the process."""
    program = f"""
import atexit, sys
import click
from user_pipeline.cli import main

class TakenApart:
    def __del__(self):
        sys.stderr.write("taken apart")

kept = TakenApart()

@main.main.command()
def something():
    atexit.register(lambda: sys.stdout.write(" and its end"))
    sys.stdout.write("output")
    {command}

sys.argv = ["user-pipeline", "something"]
main.run()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (code, "output and its end")
    assert done.stderr.endswith(said)
    assert "taken apart" not in done.stderr

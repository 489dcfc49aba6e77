"""The backup that the docs describe, taken while days go on, and what comes back from it."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psycopg2
import pytest
from dagster._core.instance.ref import InstanceRef

from user_pipeline.local.postgres import PORT, SUPERUSER, EmbeddedPostgres, binaries
from user_pipeline_tests.deployment import DEPLOY
from user_pipeline_tests.platform import Platform, update, view

SERVICES = ("dagster", "staging", "analytics")
TABLES = [
    ("staging", "page_views"),
    ("staging", "rejected_lines"),
    ("analytics", "users"),
    ("analytics", "user_page_views"),
    ("analytics", "user_page_views_daily"),
]


@pytest.fixture
def environment(postgres: EmbeddedPostgres, tmp_path: Path) -> dict[str, str]:
    """PATH and libpq's service file, as the docs say."""
    file = tmp_path / "pg_service.conf"
    common = f"host={postgres.socket_dir}\nport={PORT}\nuser={SUPERUSER}\n"
    file.write_text("".join(f"[{name}]\n{common}dbname={database(name)}\n" for name in SERVICES))
    return {"PATH": f"{binaries()}:{os.environ['PATH']}", "PGSERVICEFILE": str(file)}


def database(service: str) -> str:
    return "backup_dagster" if service == "dagster" else service


@pytest.fixture
def instance(postgres: EmbeddedPostgres, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    postgres.create_database("backup_dagster")
    home = tmp_path / "home"
    home.mkdir()
    storage = f"storage: {{postgres: {{postgres_url: '{postgres.url('backup_dagster')}'}}}}\n"
    (home / "dagster.yaml").write_text(storage + "telemetry: {enabled: false}\n")
    with dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home))) as opened:
        yield opened


def run(script: str, directory: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = ["/bin/sh", DEPLOY / script, directory]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def state(platform: Platform) -> dict[str, object]:
    return {name: platform.table(of, name) for of, name in TABLES}


def test_databases_and_lake_come_back_and_go_on(
    platform: Platform, instance: dg.DagsterInstance, environment: dict[str, str], tmp_path: Path
) -> None:
    platform.put("UserUpdates/1", update("2017-04-01T08:00:00", 1))
    platform.put_views("PageViews/1", [view("2017-04-01T09:00:00"), view("2017-04-02T09:00:00", "/b"), "broken"])
    assert platform.materialize("2017-04-01", instance=instance).success
    before = state(platform)

    backup = tmp_path / "backup"
    done = run("backup.sh", backup, environment)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in backup.iterdir()) == sorted(f"{name}.dump" for name in SERVICES)
    assert {path.stat().st_mode & 0o777 for path in backup.iterdir()} == {0o600}
    # A day is done after the databases were dumped and before the lake is copied.
    platform.put("UserUpdates/2", update("2017-04-02T08:00:00", 1, "later@example.com"))
    assert platform.materialize("2017-04-02", instance=instance).success
    after = state(platform)
    assert after != before
    lake = platform.root / "lake"
    shutil.copytree(lake, tmp_path / "lake copy")

    # All is lost.
    shutil.rmtree(lake)
    platform.databases.close()
    for name in ("staging", "analytics"):
        with psycopg2.connect(platform.environment[f"USER_PIPELINE_{name.upper()}_URL"]) as connection:
            connection.cursor().execute("drop schema public cascade; create schema public")
    shutil.copytree(tmp_path / "lake copy", lake)
    done = run("restore.sh", backup, environment)
    assert done.returncode == 0, done.stderr

    assert state(platform) == before
    raw = dg.AssetKey("raw_page_views")
    assert instance.get_materialized_partitions(raw) == {"2017-04-01"}
    # What Dagster does not know to be done is done again, from the lake alone: the source has expired its logs.
    shutil.rmtree(platform.root / "source")
    (platform.root / "source").mkdir()
    assert platform.materialize("2017-04-02", instance=instance).success
    assert state(platform) == after


def test_a_backup_that_is_not_whole_restores_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "dagster.dump").write_bytes(b"")
    done = run("restore.sh", tmp_path, environment)
    assert done.returncode == 1
    assert "staging.dump" in done.stderr

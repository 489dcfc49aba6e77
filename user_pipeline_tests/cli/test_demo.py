"""The demo as a new user runs it: a process of its own, beside a copy of the checkout's two YAML files."""

import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from user_pipeline_tests import CHECKOUT

PROGRAM = Path(sys.executable).with_name("user-pipeline")


@pytest.fixture
def checkout(place: Path) -> Path:
    for name in ("dagster.yaml", "workspace.yaml"):
        shutil.copy(CHECKOUT / name, place)
    return place


def user_pipeline(checkout: Path, environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [PROGRAM, *arguments], cwd=checkout, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tables(checkout: Path, environment: dict[str, str]) -> list[str]:
    names = {
        "analytics": ("users", "user_page_views", "page_recommendations"),
        "staging": ("user_updates", "page_views", "rejected_lines"),
    }
    return [
        user_pipeline(checkout, environment, "psql", database, "-Atc", f"select t::text from {table} t order by 1")
        for database, of_database in names.items()
        for table in of_database
    ]


def test_the_demo_shows_the_accounts_and_a_second_one_leaves_the_same_tables(
    checkout: Path, clean_environment: dict[str, str]
) -> None:
    clean_environment["USER_PIPELINE_START_DATE"] = "2017-04-01"
    shown = user_pipeline(checkout, clean_environment, "demo", "--days", "2")
    for expected in (
        "45,826",
        "37,997",
        "malformed",
        "brunoadeyemi1@example.com",
        "recommended_url",
    ):
        assert expected in shown
    # The name of the directory and the way from it to the program are as long as they are.
    as_in_a_clone = shown.replace(os.path.relpath(PROGRAM, checkout), ".venv/bin/user-pipeline")
    assert max(len(line) for line in as_in_a_clone.splitlines() if not line.startswith("in /")) <= 100
    assert len(shown.splitlines()) <= 45
    # What is set is not pinned.
    assert not (checkout / "data/.env").exists()
    first = tables(checkout, clean_environment)
    assert all(first)
    for folder in (
        "exports/user_page_views",
        "exports/page_recommendations",
        "raw/page_views",
        "raw/user_updates",
        "cleaned/page_views",
        "daily/user_page_views",
        "snapshots/page_recommendations",
        "fake_users",
    ):
        days = sorted(path.name for path in (checkout / "data/lake" / folder).iterdir())
        assert days == ["date=2017-04-01", "date=2017-04-02"]

    user_pipeline(checkout, clean_environment, "demo", "--days", "2")
    assert tables(checkout, clean_environment) == first


def test_the_first_demo_covers_the_days_up_to_yesterday_and_every_command_knows_them(
    checkout: Path, clean_environment: dict[str, str]
) -> None:
    before = datetime.now(UTC).date()
    user_pipeline(checkout, clean_environment, "demo", "--days", "1")
    (line,) = re.findall("^USER_PIPELINE_START_DATE=(.*)$", (checkout / "data/.env").read_text(), re.MULTILINE)
    yesterday = date.fromisoformat(line)
    assert timedelta(days=1) <= datetime.now(UTC).date() - yesterday <= datetime.now(UTC).date() - before + timedelta(1)
    assert f"export USER_PIPELINE_START_DATE='{line}'" in user_pipeline(checkout, clean_environment, "env")
    partitions = subprocess.run(
        [sys.executable, "-c", "from user_pipeline.defs.partitions import DAILY; print(*DAILY.get_partition_keys())"],
        cwd=checkout, env=clean_environment, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert partitions[0] == line
    # A day later there are more days than the demo has: what it covers stays as it is.
    (checkout / "data/.env").write_text(f"USER_PIPELINE_START_DATE={yesterday - timedelta(days=1)}\n")
    shown = user_pipeline(checkout, clean_environment, "demo", "--days", "1")
    assert f"1 day from {yesterday - timedelta(days=1)} on" in shown
    done = subprocess.run(
        [PROGRAM, "demo", "--days", "9"],
        cwd=checkout,
        env=clean_environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    # Midnight may have passed since.
    assert re.search("use --days [23],", done.stderr)


def test_the_demo_outside_a_checkout_says_where_to_run_it(place: Path, clean_environment: dict[str, str]) -> None:
    done = subprocess.run(
        [PROGRAM, "demo"], cwd=place, env=clean_environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "run this in the root of the checkout" in done.stderr

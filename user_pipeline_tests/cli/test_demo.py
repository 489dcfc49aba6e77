"""The demo as a new user runs it: a process of its own, beside a copy of the checkout's two YAML files."""

import shutil
import subprocess
import sys
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
    shown = user_pipeline(checkout, clean_environment, "demo", "--days", "2")
    for expected in (
        "20,400",
        "18,998",
        "invalid_timestamp",
        "Total Raw Users: 100",
        "brunoadeyemi1@example.com",
        "recommended_url",
    ):
        assert expected in shown
    first = tables(checkout, clean_environment)
    assert all(first)
    for folder in (
        "exports/user_page_views",
        "exports/page_recommendations",
        "raw/page_views",
        "raw/user_updates",
        "cleaned/page_views",
        "daily/user_page_views",
        "fake_users",
    ):
        days = sorted(path.name for path in (checkout / "data/lake" / folder).iterdir())
        assert days == ["date=2017-04-01", "date=2017-04-02"]

    user_pipeline(checkout, clean_environment, "demo", "--days", "2")
    assert tables(checkout, clean_environment) == first


def test_the_demo_outside_a_checkout_says_where_to_run_it(place: Path, clean_environment: dict[str, str]) -> None:
    done = subprocess.run(
        [PROGRAM, "demo"], cwd=place, env=clean_environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "run this in the root of the checkout" in done.stderr

"""Forgetting somebody is killed at its boundaries, and finished by the next call."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from user_pipeline.reconcile.forgetting.forget import survey
from user_pipeline.reconcile.verify import verify
from user_pipeline_tests.faults.forked import Parent, Run
from user_pipeline_tests.platform import Platform, update, view

DAYS = ("2017-04-01", "2017-04-02")
PEOPLE = range(1, 40)


def deliver(platform: Platform) -> None:
    for day in DAYS:
        platform.put_views(
            f"PageViews/{day}",
            [view(f"{day}T10:{n:02}:00", f"/{(user + n) % 6}", user) for user in PEOPLE for n in range(3)]
            + [f'{{"user_id": {user}, "cut' for user in PEOPLE],
        )
        platform.put(
            f"UserUpdates/{day}", "".join(update(f"{day}T10:00:00", user, f"u{user}@example.com") for user in PEOPLE)
        )


def left(platform: Platform, user: int) -> int:
    with platform.engine() as engine:
        return sum(found.rows for found in survey(platform.lake, engine, [user]))


def kill_forgetting(parent: Parent, platform: Platform, file: Path, choose: Callable[[list[str]], list[int]]) -> int:
    """Forget one person whole, and further ones with a kill each, which the next call finishes.

    Args:
        parent: of the runs.
        platform: has nothing delivered yet.
        file: where a run writes its calls.
        choose: which calls to kill a run at, of those of the whole one.

    Returns:
        how many were killed.
    """
    deliver(platform)
    every_day = {"ops": {"page_recommendations": {"config": {"all_days": True}}}}
    selected = ["not key:traffic_report and not group:fake_users"]
    assert platform.materialize(*DAYS, select=selected, checks=False, run_config=every_day).success
    [counted] = parent.run(platform.environment, Run(forget=[1], calls=str(file)))
    assert counted.code == 0, counted.output
    calls = json.loads(file.read_text())
    assert {
        "put raw",
        "put rejected",
        "put cleaned",
        "put daily",
        "put snapshots",
        "put quality",
        "put exports",
    } <= set(calls)
    assert calls.count("commit") >= 5
    points = choose(calls)[: len(PEOPLE) - 2]
    for user, number in enumerate(points, start=2):
        [ended] = parent.run(platform.environment, Run(forget=[user], kill_at=number, after=bool(user % 2)))
        assert ended.killed, f"{calls[number]}: {ended.output}"
        [ended] = parent.run(platform.environment, Run(forget=[user]))
        assert ended.code == 0, ended.output
        assert left(platform, user) == 0, calls[number]
    with platform.engine() as engine:
        assert [(c.table, c.differences) for c in verify(platform.lake, engine) if c.differences] == []
    return len(points)


def visible(calls: list[str]) -> list[int]:
    """What others can see is done by puts, deletions and commits."""
    return [number for number, call in enumerate(calls) if call.startswith(("put", "delete", "commit"))]


def test_killed_at_every_boundary(
    parent: Parent, platform: Platform, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    def choose(calls: list[str]) -> list[int]:
        points = visible(calls)
        if not request.config.getoption("--every-kill"):
            points = [number for n, number in enumerate(points) if calls[number] != "commit" or n % 2][::3]
        return points

    assert kill_forgetting(parent, platform, tmp_path / "calls", choose)

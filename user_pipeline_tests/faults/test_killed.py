"""A run that is killed, wherever it was, leaves the old or the new state, and the next run finishes its work."""

import json
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from user_pipeline_tests.faults.forked import Parent, Run
from user_pipeline_tests.faults.states import DAY, State, assert_exact, assert_old_or_new
from user_pipeline_tests.platform import Platform


def complete(parent: Parent, platform: Platform, state: State) -> None:
    """Run it again: everything is in the new state."""
    [ended] = parent.run(platform.environment, Run(DAY))
    assert ended.code == 0, ended.output
    assert_exact(platform, state)


def boundaries(parent: Parent, platform: Platform, file: Path) -> list[str]:
    """The calls of an undisturbed run, in their order."""
    [counted] = parent.run(platform.environment, Run(DAY, calls=str(file)))
    assert counted.code == 0, counted.output
    calls: list[str] = json.loads(file.read_text())
    return calls


def seen_by_others(calls: list[str]) -> set[int]:
    """The numbers of the calls that may change what others see: puts, and the commits of what wrote something."""
    numbers = set()
    wrote = False
    for number, call in enumerate(calls):
        if call.startswith("put") or (call == "commit" and wrote):
            numbers.add(number)
        wrote = call != "commit" and (wrote or call.startswith(("execute", "load", "append")))
    return numbers


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_every_boundary(
    parent: Parent, platform: Platform, tmp_path: Path, request: pytest.FixtureRequest, *, after: bool
) -> None:
    """The boundaries: each object put, copied or deleted in the lake, each statement, COPY and commit."""
    state = State.number(0)
    state.deliver(platform)
    complete(parent, platform, state)
    state = State.number(1)
    state.deliver(platform)
    calls = boundaries(parent, platform, tmp_path / "calls")
    # What all of this is about: both ingests, a raw day of part files and one that is written anew, both cleaned
    # tables, both merges, the export.
    puts = Counter(call for call in calls if call.startswith("put"))
    assert puts == {
        "put raw": 5,  # part files of two days of both feeds, and the day of page views
        "put rejected": 2,
        "put cleaned": 2,
        "put daily": 2,
        "put log": 8,  # of each commit
        "put exports": 1,
    }
    # A log is the last thing before its commit.
    logged = [number for number, call in enumerate(calls) if call == "put log"]
    assert {calls[number + 1] for number in logged} == {"commit"}
    assert {"load listed", "load read_objects", "load read_days", "load new_rejects"} <= set(calls)
    assert {"append user_updates", "append page_views"} <= set(calls)
    points = list(range(len(calls)))
    if not request.config.getoption("--every-kill"):
        # After all that others can see, and before every eighth of what is inside a transaction.
        seen = seen_by_others(calls)
        assert len(seen) > sum(puts.values())
        points = sorted(seen) if after else points[::8]
    reached = set()
    for survived, number in enumerate(points):
        new = State.number(survived + 2)
        new.deliver(platform)
        [ended] = parent.run(platform.environment, Run(DAY, kill_at=number, after=after))
        where = f"{'after' if after else 'before'} call {number}, {calls[number]}"
        assert ended.killed, f"{where}: {ended.output}"
        reached.add(frozenset(assert_old_or_new(platform, state, new)))
        complete(parent, platform, new)
        state = new
    # From nothing new to everything new, table by table in the order of the graph.
    assert len(reached) >= 4


def test_killed_at_any_moment(parent: Parent, platform: Platform) -> None:
    """From outside, in the middle of whatever it does, with more rows than one batch holds."""
    draw = Random(1)  # noqa: S311 - test data
    state = State.number(0, rows=3_000)
    state.deliver(platform)
    complete(parent, platform, state)
    killed = 0
    for number in range(1, 5):
        new = State.number(number, rows=3_000)
        new.deliver(platform)
        [ended] = parent.run(platform.environment, Run(DAY), kill_after=[draw.uniform(0.2, 1.5)])
        killed += ended.killed
        assert_old_or_new(platform, state, new)
        complete(parent, platform, new)
        state = new
    assert killed

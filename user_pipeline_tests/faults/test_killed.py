"""A run that is killed, wherever it was, leaves the old or the new state, and the next run finishes its work."""

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from user_pipeline_tests.faults.forked import Parent, Run
from user_pipeline_tests.faults.states import DAY, State, assert_exact, assert_old_or_new
from user_pipeline_tests.platform import Platform


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parent]:
    with Parent.start(tmp_path_factory.mktemp("forked")) as started:
        yield started


def complete(parent: Parent, platform: Platform, state: State) -> None:
    [ended] = parent.run(platform.environment, Run(DAY))
    assert ended.code == 0, ended.output
    assert_exact(platform, state)


def test_killed_at_every_boundary(
    parent: Parent, platform: Platform, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The boundaries: each object put, copied or deleted in the lake, each statement, COPY and commit."""
    old = State.number(0)
    old.deliver(platform)
    complete(parent, platform, old)
    State.number(1).deliver(platform)
    [counted] = parent.run(platform.environment, Run(DAY, calls=str(tmp_path / "calls")))
    assert counted.code == 0, counted.output
    calls: list[str] = json.loads((tmp_path / "calls").read_text())
    print("\n".join(calls))
    assert {"put fragments", "put rejected", "put catalog", "put raw_page_views", "put exports"} <= set(calls)

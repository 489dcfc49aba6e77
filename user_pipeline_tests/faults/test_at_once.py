"""Runs of the same and of overlapping days at once, in eight processes, while others read what is new in the source."""

import json
from datetime import date, timedelta

from user_pipeline.ingest.feeds import FEEDS
from user_pipeline.ingest.manifest import Manifest
from user_pipeline_tests.faults.forked import Parent, Run
from user_pipeline_tests.faults.states import DAY, State, assert_exact, assert_old_or_new
from user_pipeline_tests.platform import Platform, update, view


def test_eight_runs_of_one_day(parent: Parent, platform: Platform) -> None:
    """Twice: from nothing, when they all make the tables, and from an old state."""
    for state in (State.number(0), State.number(1)):
        state.deliver(platform)
        ended = parent.run(platform.environment, *[Run(DAY)] * 8)
        assert [run.code for run in ended] == [0] * 8, [run.output for run in ended if run.code]
        assert_exact(platform, state)


def test_of_eight_runs_of_one_day_half_are_killed(parent: Parent, platform: Platform) -> None:
    old, new = State.number(0), State.number(1)
    old.deliver(platform)
    parent.run(platform.environment, Run(DAY))
    new.deliver(platform)
    ended = parent.run(
        platform.environment, *(Run(DAY, kill_at=at, after=True) for at in (10, 35, 50, 75)), *[Run(DAY)] * 4
    )
    assert [run.code for run in ended[4:]] == [0] * 4, [run.output for run in ended if run.code]
    # A run that finds the objects read by another one makes fewer calls, and may end before it is to die.
    assert [run for run in ended[:4] if run.killed]
    assert_old_or_new(platform, new, new)
    assert_exact(platform, new)


def test_eight_runs_of_overlapping_ranges(parent: Parent, platform: Platform) -> None:
    days = [date(2017, 4, 1) + timedelta(days=n) for n in range(6)]
    views = {
        f"PageViews/{key}": "".join(
            json.dumps(view(f"{day}T{n:02}:00:0{key}", f"/{(n * key) % 7}", n % 5)) + "\n"
            for day in days
            for n in range(20)
        ).encode()
        for key in range(1, 5)
    }
    updates = {
        f"UserUpdates/{key}": "".join(
            update(f"{day}T{n:02}:00:00", n % 5, f"{day}.{n}.{key}@x.org") for day in days for n in range(20)
        ).encode()
        for key in range(1, 3)
    }
    state = State(views, updates, tuple(map(str, days)))
    state.deliver(platform)
    ranges = [(0, 3), (1, 4), (2, 5), (0, 5), (3, 5), (0, 2), (4, 5), (2, 3)]
    runs = [Run(str(days[first]), str(days[last])) for first, last in ranges]
    ended = parent.run(platform.environment, *runs)
    assert [run.code for run in ended] == [0] * 8, [run.output for run in ended if run.code]
    assert_exact(platform, state)


def test_four_readers_of_the_source_and_four_runs(parent: Parent, platform: Platform) -> None:
    """As when a sensor has ingested what a run has just met."""
    for number in range(3):
        state = State.number(number)
        state.deliver(platform)
        ended = parent.run(platform.environment, *[Run(), Run(DAY)] * 4)
        assert [run.code for run in ended] == [0] * 8, [run.output for run in ended if run.code]
        assert_exact(platform, state)
    for feed in FEEDS:
        entries = list(Manifest(feed, platform.lake.staging).entries())
        delivered = [key for key in (*state.views, *state.updates) if key.startswith(feed.folder)]
        assert [entry.key for entry in entries] == sorted(delivered)
        assert [entry.unaccounted for entry in entries] == [0] * len(entries)

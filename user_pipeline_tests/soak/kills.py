"""Runs killed at any of their calls and at any moment, then finished: the tables are in the old or the new state."""

import shutil
import tempfile
from pathlib import Path
from random import Random

from user_pipeline.resources.embedded_postgres import EmbeddedPostgres
from user_pipeline_tests.faults.forked import Parent, Run
from user_pipeline_tests.faults.states import DAY, State, assert_exact, assert_old_or_new
from user_pipeline_tests.platform import Platform
from user_pipeline_tests.soak import COUNTS
from user_pipeline_tests.soak.secrets import search

_KILLS = 4
_CALLS = 150
"""About as many as a run makes."""


def kill(postgres: EmbeddedPostgres, parent: Parent, number: int) -> None:
    """Kill the runs of a number.

    Raises:
        AssertionError: a table is in neither state, or the next run does not finish the work.
    """
    draw = Random(number)  # noqa: S311 - test data
    root = Path(tempfile.mkdtemp(prefix="soak-kills-"))
    try:
        with Platform.create(postgres, root) as platform:
            state = State.number(0)
            for step in range(1, _KILLS + 2):
                state.deliver(platform)
                [ended] = parent.run(platform.environment, Run(DAY))
                assert ended.code == 0, ended.output
                assert_exact(platform, state)
                if step > _KILLS:
                    break
                new = State.number(step, rows=draw.choice((12, 12, 1_000)))
                new.deliver(platform)
                if draw.random() < 0.5:
                    run, moments = Run(DAY, kill_at=draw.randrange(_CALLS), after=draw.random() < 0.5), []
                else:
                    run, moments = Run(DAY), [draw.uniform(0.05, 2)]
                [ended] = parent.run(platform.environment, run, kill_after=moments)
                search(ended.output)
                assert ended.killed or ended.code == 0, ended.output
                COUNTS["kills"] += ended.killed
                assert_old_or_new(platform, state, new)
                state = new
    finally:
        shutil.rmtree(root)

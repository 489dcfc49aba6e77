"""Runs queued through the shipped deployment; ``benchmarks/run_queue.py`` says whether all of them succeeded."""

import subprocess
import sys

from user_pipeline_tests import CHECKOUT
from user_pipeline_tests.soak import COUNTS

_RUNS = 25


def queue() -> str | None:
    """Queue some runs and wait for them; what it printed, if one of them failed or a table is wrong."""
    command = [sys.executable, str(CHECKOUT / "benchmarks/run_queue.py"), "--runs", str(_RUNS)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=CHECKOUT, check=False
    )
    if done.returncode:
        return done.stdout
    COUNTS["queued runs"] += _RUNS
    return None

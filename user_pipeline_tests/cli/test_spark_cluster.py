"""The processes of a Spark cluster end when the one who started them does, however it ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from user_pipeline.cli import spark_guard
from user_pipeline.cli.spark_cluster import ClusterError, cluster

# Starts a guard that starts a shell with a child in the background, and waits.
_OWNER = """
import subprocess, sys, time
guard = subprocess.Popen(
    [sys.executable, sys.argv[1], "sh", "-c", "sleep 600 & echo $! $$ > " + sys.argv[2] + "; sleep 600"],
    stdin=subprocess.PIPE,
)
time.sleep(600)
"""


def until(true: Callable[[], bool], seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    return true()


def lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    # Gone before it was opened, or before it was read.
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc who lives")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_what_a_guard_started_ends_with_its_owner(tmp_path: Path, how: signal.Signals) -> None:
    told = tmp_path / "pids"
    with subprocess.Popen(
        [sys.executable, "-c", _OWNER, spark_guard.__file__, str(told)], stderr=subprocess.DEVNULL
    ) as owner:
        assert until(lambda: told.exists() and len(told.read_text().split()) == 2)
        started = [int(pid) for pid in told.read_text().split()]
        assert all(map(lives, started))
        os.kill(owner.pid, how)
    assert until(lambda: not any(map(lives, started)))


def test_an_environment_without_spark_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(ClusterError, match=f"{tmp_path} has no Spark and no Java; `make spark` installs"),
        cluster(tmp_path),
    ):
        pass

"""A run that is told to stop stops: its step is not tried again, and no other begins."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from user_pipeline import interrupts
from user_pipeline_tests.platform import Platform

PATIENCE = 120.0
MODULE = """
import os
import time
from pathlib import Path

import dagster as dg

from user_pipeline.defs.common import RETRY
from user_pipeline.defs.resources import RESOURCES
from user_pipeline.errors import never_retried

SEEN = Path(os.environ["SEEN"])


def work(engine, databases):
    {work}


@dg.asset(retry_policy=RETRY, required_resource_keys={{"engine", "databases"}})
def long(context):
    with SEEN.open("a") as file:
        file.write("long ")
    (context.resources.engine.new_scratch("test") / "file").touch()
    {guard}
        work(context.resources.engine, context.resources.databases)


@dg.asset(required_resource_keys={{"engine"}})
def other(context):
    with SEEN.open("a") as file:
        file.write("other ")


defs = dg.Definitions(assets=[long, other], resources=RESOURCES, executor=dg.in_process_executor)
"""
WORK = {
    "python": "time.sleep(1000)",
    "engine": "engine.connect().sql('select count(*) from range(1000000000000) t(n) where hash(n) = 1').fetchall()",
    # Longer than it takes to look, and short enough to wait for: SIGTERM does not end a statement.
    "database": "with databases.analytics.transaction() as transaction: transaction.fetch('select 1 from pg_sleep(8)')",
}


# SIGINT during a statement of Postgres ends the statement and is not seen by Python: the driver takes it for itself.
@pytest.mark.parametrize(
    ("work", "number"),
    [
        ("python", signal.SIGTERM),
        ("python", signal.SIGINT),
        ("engine", signal.SIGTERM),
        ("engine", signal.SIGINT),
        ("database", signal.SIGTERM),
    ],
)
@pytest.mark.parametrize("guard", ["with never_retried():", "if True:"])
def test_a_run_that_is_told_to_stop_tries_nothing_again(
    platform: Platform, tmp_path: Path, work: str, guard: str, number: signal.Signals
) -> None:
    (tmp_path / "stopped.py").write_text(MODULE.format(work=WORK[work], guard=guard))
    seen = tmp_path / "seen"
    seen.touch()
    process = subprocess.Popen(
        [sys.executable, "-m", "dagster", "asset", "materialize", "-f", "stopped.py", "--select", "*"],
        cwd=tmp_path,
        env={**os.environ, **platform.environment, "SEEN": str(seen)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while not seen.read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1)
        process.send_signal(number)
        output, _ = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert seen.read_text() == "long ", output[-3000:]
    assert process.returncode != 0
    assert "STEP_UP_FOR_RETRY" not in output
    assert list((platform.root / "scratch").iterdir()) == []


def test_a_signal_is_noted_inside_the_block_alone(request: pytest.FixtureRequest) -> None:
    # A shell that starts the tests in the background has them ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    assert not interrupts.is_told()
    with interrupts.watched(lambda: None):
        assert not interrupts.is_told()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert interrupts.is_told()
        with pytest.raises(KeyboardInterrupt, match="told to stop"):
            interrupts.raise_if_told()
    interrupts.raise_if_told()
    with interrupts.watched(lambda: None):
        interrupts.raise_if_told()

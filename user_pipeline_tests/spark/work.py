"""What the tests give executors to do; an executor imports this module, and has no pytest."""

import os
import signal
import subprocess
import time
from pathlib import Path

from user_pipeline.engines.base import Engine
from user_pipeline.errors import PermanentError


def double(engine: Engine, number: int) -> int:
    del engine
    return 2 * number


def refuse(engine: Engine, secret: str) -> None:
    del engine
    raise PermanentError(f"ann@example.com and {secret} cannot be used")


def fail(engine: Engine, number: int) -> None:
    del engine
    raise OSError(f"the value of ann@example.com is {number}")


def die_once(engine: Engine, item: tuple[str, int]) -> int:
    """Kill the executor, the JVM with all its Python, the first time."""
    del engine
    marker, number = item
    try:
        Path(marker).touch(exist_ok=False)
    except FileExistsError:
        return number
    os.kill(executor(), signal.SIGKILL)
    time.sleep(60)
    return number


def executor_of(engine: Engine, number: int) -> int:
    """The process of the executor."""
    del engine, number
    return executor()


def executor() -> int:
    """The JVM that this Python works for."""
    found = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in found.splitlines()]
    parent_of = {int(pid): int(ppid) for pid, ppid, *_ in rows}
    command = {int(pid): more[0] if more else "" for pid, _, *more in rows}
    process = os.getpid()
    while "CoarseGrainedExecutorBackend" not in command[process]:
        process = parent_of[process]
    return process

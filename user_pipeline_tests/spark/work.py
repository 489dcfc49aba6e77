"""What the tests give executors to do; an executor imports this module, and has no pytest."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class KillsOnce:
    """Does what it was given, and kills the executor, the JVM with all its Python, before the first result is told."""

    work: Callable[..., Any]
    marker: str

    def __call__(self, engine: Engine, *arguments: Any) -> Any:
        result = self.work(engine, *arguments)
        if _is_first(self.marker):
            os.kill(executor(), signal.SIGKILL)
            time.sleep(60)
        return result


@dataclass(frozen=True)
class DoneTwice:
    """Does what it was given; the first time it tells the result when it was done a second time beside it."""

    work: Callable[..., Any]
    marker: str

    def __call__(self, engine: Engine, *arguments: Any) -> Any:
        if not (is_first := _is_first(self.marker)):
            _is_first(f"{self.marker}-again")
        result = self.work(engine, *arguments)
        end = time.monotonic() + 60
        while is_first and not Path(f"{self.marker}-again").exists() and time.monotonic() < end:
            time.sleep(0.1)
        return result


def kill_worker_once(engine: Engine, item: tuple[str, int]) -> int:
    """Kill the worker that started the executor, the first time; the executor then ends by itself."""
    del engine
    marker, number = item
    if _is_first(marker):
        os.kill(_parents()[executor()], signal.SIGKILL)
        time.sleep(60)
    return number


def _is_first(marker: str) -> bool:
    try:
        Path(marker).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def executor() -> int:
    """The JVM that this Python works for."""
    parents, process = _parents(), os.getpid()
    while b"CoarseGrainedExecutorBackend" not in Path(f"/proc/{process}/cmdline").read_bytes():
        process = parents[process]
    return process


def _parents() -> dict[int, int]:
    """The parent of each process."""
    found = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    return {int(pid): int(parent) for pid, parent in (line.split() for line in found.splitlines())}


def may_write(engine: Engine, folder: str) -> bool:
    """Whether the executor may write to a directory."""
    del engine
    try:
        (Path(folder) / f"written-{os.getpid()}").touch()
    except OSError:
        return False
    return True


def user(engine: Engine, number: int) -> int:
    """As whom the executor works."""
    del engine, number
    return os.geteuid()

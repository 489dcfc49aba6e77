"""Which processes of a checkout are alive: runs, Dagster's daemon, its web server, ``user-pipeline up``.

Each holds an exclusive ``flock`` on a file of its own in ``<data directory>/dagster/alive``. The kernel takes it back
when the process ends, however that happens, so neither a kill nor a reboot leaves one that seems to live, and a number
that another process has got by now is not mistaken for it. A file that nobody holds is left from one that was killed.
"""

import fcntl
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from user_pipeline import settings

UP = "up"
RUN, DAEMON, WEB_SERVER = "run-", "daemon-", "webserver-"
"""What names begin with; the id of the run or the number of the process follows."""

_TEXTS = {RUN: "run {}", DAEMON: "Dagster's daemon", WEB_SERVER: "Dagster's web server", UP: "`user-pipeline up`"}
_held: dict[str, int] = {}
"""The descriptors of what this process holds, which have to stay open."""


@dataclass(frozen=True, slots=True)
class Living:
    """A process that lives.

    Attributes:
        name: what it holds.
        pid: its number; 0 for the moment in which it has not written it yet.
    """

    name: str
    pid: int

    def __str__(self) -> str:
        [(kind, text)] = [(kind, text) for kind, text in _TEXTS.items() if self.name.startswith(kind)]
        return f"{text.format(self.name.removeprefix(kind))} (process {self.pid})"


def hold(name: str, *, inherited: bool = False) -> bool:
    """Take the lock ``name`` for this process, until it ends or :func:`release` is called.

    Args:
        name: of a file in the directory.
        inherited: the program that takes this one's place (``exec``) holds it, too.

    Returns:
        False if another process holds it.
    """
    if name in _held:
        return True
    path = _path(name)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        if not _lock(descriptor, fcntl.LOCK_EX):
            os.close(descriptor)
            return False
        if _is_at(descriptor, path):
            break
        os.close(descriptor)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
    os.set_inheritable(descriptor, inherited)
    _held[name] = descriptor
    return True


def release(name: str) -> None:
    """Remove the file of ``name``, unless another process holds it."""
    path = _path(name)
    with suppress(FileNotFoundError):
        descriptor = _held.pop(name, None)
        if descriptor is None:
            descriptor = os.open(path, os.O_RDONLY)
        try:
            if _lock(descriptor, fcntl.LOCK_EX) and _is_at(descriptor, path):
                path.unlink()
        finally:
            os.close(descriptor)


def lives(name: str) -> bool | None:
    """Whether a process holds ``name``; None if there is no such file, which says nothing."""
    try:
        descriptor = os.open(_path(name), os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return not _lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def living() -> list[Living]:
    """All processes that are alive. Files of killed ones are removed, but those of runs are left to run monitoring."""
    try:
        names = sorted((path.name for path in _path("").iterdir()), key=lambda name: (name != UP, name))
    except FileNotFoundError:
        return []
    for name in names:
        if not name.startswith(RUN):
            release(name)
    return [Living(name, _pid(name)) for name in names if lives(name)]


def end(processes: Sequence[Living], patience: float) -> None:
    """End processes: with SIGTERM first; those that do not end in time are killed.

    Args:
        processes: which.
        patience: seconds.
    """
    for how, wait in ((signal.SIGTERM, patience), (signal.SIGKILL, 10.0)):
        for process in processes:
            if process.pid and lives(process.name):
                with suppress(ProcessLookupError):
                    os.kill(process.pid, how)
        deadline = time.monotonic() + wait
        while any(lives(process.name) for process in processes) and time.monotonic() < deadline:
            time.sleep(0.1)
    living()  # forgets those that have ended


def _path(name: str) -> Path:
    return settings.current().data_dir / "dagster" / "alive" / name


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """False where someone else has removed the file since it was opened."""
    try:
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False


def _pid(name: str) -> int:
    try:
        return int(_path(name).read_text())
    except (FileNotFoundError, ValueError):
        return 0

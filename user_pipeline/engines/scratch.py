"""Directories for what a process needs for a while; those of processes that were killed are removed by the next one.

A directory has a lock file beside it, ``user-pipeline-scratch-….lock``, which its process holds locked (flock) as long
as it lives. So a lock that can be taken is that of a dead process.
"""

import fcntl
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Self

_PREFIX = "user-pipeline-scratch-"
_LOCK = ".lock"


class Scratch:
    """A directory of its own, empty at first; :meth:`remove` removes it with all that is in it.

    Attributes:
        path: the directory.
    """

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def make(cls, parent: Path) -> Self:
        """A new one; what dead processes left beside it is removed first.

        Args:
            parent: the directory it is made in; made itself if it is missing.
        """
        parent.mkdir(parents=True, exist_ok=True)
        sweep(parent)
        while True:
            descriptor, name = tempfile.mkstemp(prefix=_PREFIX, suffix=_LOCK, dir=parent)
            # Not taken: another process swept here before it was locked.
            if _take(descriptor) is not False and os.fstat(descriptor).st_nlink:
                break
            os.close(descriptor)
        path = Path(name.removesuffix(_LOCK))
        path.mkdir(mode=0o700)
        return cls(path, descriptor)

    def remove(self) -> None:
        """Remove the directory; what cannot be removed is left for :func:`sweep`."""
        _remove(self.path)
        os.close(self._lock)


def sweep(parent: Path) -> None:
    """Remove the directories of dead processes of this user."""
    with os.scandir(parent) as entries:
        locks = [entry.path for entry in entries if entry.name.startswith(_PREFIX) and entry.name.endswith(_LOCK)]
    for lock in locks:
        # Gone meanwhile, or somebody else's.
        with suppress(OSError):
            descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                status = os.fstat(descriptor)
                if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and _take(descriptor):
                    _remove(Path(lock.removesuffix(_LOCK)))
            finally:
                os.close(descriptor)


def _take(descriptor: int) -> bool | None:
    """Lock a file; False if another process has it, None where the file system has no locks: then nothing is swept."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _remove(path: Path) -> None:
    """Remove a directory whose lock is held. The lock comes last: without it the directory would never be swept."""
    shutil.rmtree(path, ignore_errors=True)
    if not os.path.lexists(path):
        path.with_name(path.name + _LOCK).unlink(missing_ok=True)

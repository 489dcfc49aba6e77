"""A process that leads a session of its own: started within limits, and killed with all that it started."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, cast

MOST_PROCESSES = 256
PIPE_BYTES = 2**20
"""What a pipe holds, where that can be chosen."""
_ROUNDS = 50
_LAUNCHER = Path(__file__).with_name("filter_launcher.py")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PROC = Path("/proc")
_EXPLAINED = {
    os.strerror(errno.ENOENT): "the interpreter that its first line names is not there",
    os.strerror(errno.ENOEXEC): "it is neither a program for this machine nor a script whose first line begins with #!",
}


class NotStartedError(Exception):
    """A process could not be started."""


class Session:
    """A process and those it starts.

    Args:
        command: the absolute path of the program, and its arguments.
        environment: all its variables.
        memory: bytes of memory that each process may write to.

    Attributes:
        stdin: what it reads; not blocking, like the others.
        stdout: what it writes.
        stderr: what it says.

    Raises:
        NotStartedError: it cannot be started.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], memory: int) -> None:
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb") as report:
            try:
                self._process = subprocess.Popen(  # noqa: S603 - the command is the operator's, without a shell
                    [sys.executable, "-I", "-S", _LAUNCHER, str(writer), str(memory), str(MOST_PROCESSES), *command],
                    bufsize=0,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env=dict(environment),
                    pass_fds=[writer],
                    # Ctrl-C in a terminal is for the pipeline, which ends the process then.
                    start_new_session=True,
                )
            finally:
                os.close(writer)
            # It closes when the program has begun.
            problem = report.read().decode()
        self.stdin = cast("IO[bytes]", self._process.stdin)
        self.stdout = cast("IO[bytes]", self._process.stdout)
        self.stderr = cast("IO[bytes]", self._process.stderr)
        self._reaping = threading.Lock()
        for pipe in (self.stdin, self.stdout, self.stderr):
            os.set_blocking(pipe.fileno(), False)
            # More than this user may have in pipes, or another system than Linux: then it goes in smaller pieces.
            with suppress(OSError, AttributeError):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        if problem:
            self.close()
            raise NotStartedError(_EXPLAINED.get(problem, problem))

    def members(self) -> dict[int, int]:
        """The bytes in memory of each process, by its number; none where there is no ``/proc``."""
        found = {}
        for entry in _processes():
            # It ended meanwhile.
            with suppress(OSError):
                state, session, pages = _status(entry)
                if session == self._process.pid and state not in (b"Z", b"X"):
                    found[int(entry.name)] = pages * _PAGE
        return found

    def has_ended(self) -> bool:
        """Whether the process itself has ended; those it started may live on."""
        if not hasattr(os, "waitid"):  # macOS
            return self._process.poll() is not None
        # It is not reaped here: until it is, no other process can get its number.
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None

    def kill(self) -> None:
        """Kill all processes of the session. Can be called from another thread, and again."""
        with self._reaping:
            if self._process.returncode is not None:
                return
            # They have ended already.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            # Those with a process group of their own; in several rounds, as they may start others meanwhile.
            for _ in range(_ROUNDS):
                others = self.members().keys() - {self._process.pid}
                if not others:
                    break
                for pid in others:
                    with suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, signal.SIGKILL)

    def wait(self) -> str | None:
        """Kill what is left of it and wait for its end; how it ended, or None if it ended well."""
        self.kill()
        with self._reaping:
            code = self._process.wait()
        if code < 0:
            return f"was killed by {_signal(-code)}"
        return f"exited with status {code}" if code else None

    def close(self) -> None:
        """Kill what is left of it, and let go of the pipes."""
        self.wait()
        for pipe in (self.stdin, self.stdout, self.stderr):
            with suppress(BrokenPipeError):
                pipe.close()


def _processes() -> list[Path]:
    try:
        return [entry for entry in _PROC.iterdir() if entry.name.isdecimal()]
    except OSError:
        return []


def _status(entry: Path) -> tuple[bytes, int, int]:
    """State, session and resident pages of a process."""
    # The name, in brackets, may hold anything.
    values = entry.joinpath("stat").read_bytes().rpartition(b")")[2].split()
    return values[0], int(values[3]), int(values[21])


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

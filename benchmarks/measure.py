"""Run a command and tell what it cost: wall clock, processor and memory, its own and the database server's."""

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PAUSE = 0.05


@dataclass(frozen=True, slots=True)
class Cost:
    """What a command took.

    Attributes:
        wall: seconds by the clock.
        cpu: seconds of processor of the command and all it started.
        postgres_cpu: seconds of processor of the database server meanwhile.
        peak_mb: the greatest sum of the resident memory of the command and all it started, in 10^6 bytes.
    """

    wall: float
    cpu: float
    postgres_cpu: float
    peak_mb: float


class CommandError(RuntimeError):
    """A measured command failed."""


def run(command: Sequence[str], environment: Mapping[str, str], postmaster: int, log: Path) -> Cost:
    """Run a command to its end.

    Args:
        command: program and arguments.
        environment: all its variables.
        postmaster: the database server's process.
        log: where its output goes.

    Raises:
        CommandError: it failed; the message has the end of its output.
    """
    before = _server_cpu(postmaster)
    with log.open("wb") as output:
        began = time.perf_counter()
        process = subprocess.Popen(command, env=dict(environment), stdout=output, stderr=output)
        peak = _Peak(process.pid)
        peak.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        peak.stop()
    if process.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
        raise CommandError(f"{' '.join(command)} ended with {process.returncode}:\n{tail}")
    return Cost(
        wall=wall,
        cpu=usage.ru_utime + usage.ru_stime,
        postgres_cpu=_server_cpu(postmaster) - before,
        # Samples may miss a short peak of the greatest process, which the kernel has kept.
        peak_mb=max(peak.most, usage.ru_maxrss * 1024) / 1e6,
    )


class _Peak(threading.Thread):
    """Looks at the memory of a process and its descendants until told to stop."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._done = threading.Event()
        self.most = 0

    def run(self) -> None:
        while not self._done.wait(_PAUSE):
            self.most = max(self.most, sum(resident(pid) for pid in [self._pid, *descendants(self._pid)]))

    def stop(self) -> None:
        self._done.set()
        self.join()


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and those that these did."""
    found = []
    # A process may end while it is looked at.
    with suppress(FileNotFoundError):
        for task in list(Path(f"/proc/{pid}/task").iterdir()):
            with suppress(OSError):
                for child in map(int, (task / "children").read_text().split()):
                    found += [child, *descendants(child)]
    return found


def resident(pid: int) -> int:
    """Bytes of memory of a process; those that it shares with others count."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def _server_cpu(postmaster: int) -> float:
    """Processor seconds of a server: those of its processes that ended are kept by their parent."""
    spent = sum(ticks(postmaster)) + sum(sum(ticks(child)[:2]) for child in descendants(postmaster))
    return spent / _TICKS


def ticks(pid: int) -> tuple[int, ...]:
    """User and system time of a process, then of its children that ended."""
    try:
        # After the name, which may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return (0, 0, 0, 0)
    return tuple(int(field) for field in fields[11:15])

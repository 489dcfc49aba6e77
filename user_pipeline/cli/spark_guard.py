"""Starts a command, and ends it with all that it started when the one who asked for it is gone.

Run as a script, by :mod:`user_pipeline.cli.spark_cluster`. Its standard input is a pipe whose other end that process
holds: the kernel closes it however the process ends, with kill -9 as well.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys

_GRACE = 5.0
_LOOK = 0.2


def main(command: list[str]) -> int:
    """Run a command until it ends, or until standard input does.

    Returns:
        the exit code of the command.
    """
    # A session of its own, which is also the process group: so a Ctrl-C reaches only the one who asked.
    os.setsid()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 - whoever starts this gives the command
    while process.poll() is None:
        if select.select([0], [], [], _LOOK)[0] and not os.read(0, 1):
            break
    _end_group(process)
    return process.wait()


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    """End what is left of the group, this process excepted."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(0, signal.SIGTERM)
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
    for other in _members(os.getpgrp()):
        if other != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(other, signal.SIGKILL)


def _members(group: int) -> list[int]:
    """The processes of a group."""
    found = subprocess.run(["ps", "-eo", "pid=,pgid="], capture_output=True, text=True, check=False)  # noqa: S607
    pairs = (line.split() for line in found.stdout.splitlines())
    return [int(pid) for pid, of in pairs if int(of) == group]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

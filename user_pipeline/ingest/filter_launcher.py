"""Set limits and become another program; runs as a script, with nothing but the standard library.

Limits belong to a process from its first moment on, and setting them between fork and exec is not safe where there are
threads. Arguments: a descriptor for the error if the program cannot be started, bytes of memory, how many processes,
and the command. The descriptor closes when the program starts.
"""

import os
import resource
import sys
from contextlib import suppress

REPORT, MEMORY, PROCESSES, COMMAND = range(1, 5)


def _lower(limit: int, value: int) -> None:
    hard = resource.getrlimit(limit)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    with suppress(OSError, ValueError):
        resource.setrlimit(limit, (value, value))


def _tasks_of_user() -> int:
    """How many processes and threads this user has: the limit of processes counts those of all its programs."""
    count = 0
    with os.scandir("/proc") as entries:
        for entry in entries:
            # It ended meanwhile.
            with suppress(OSError):
                if entry.name.isdecimal() and entry.stat().st_uid == os.geteuid():
                    with os.scandir(f"{entry.path}/task") as tasks:
                        count += sum(1 for _ in tasks)
    return count


def main() -> None:
    """Set the limits and become the program."""
    report = int(sys.argv[REPORT])
    os.set_inheritable(report, False)
    _lower(resource.RLIMIT_CORE, 0)
    # Memory that is written to, not addresses: some programs reserve far more of these than they use.
    _lower(resource.RLIMIT_DATA, int(sys.argv[MEMORY]))
    with suppress(OSError):
        _lower(resource.RLIMIT_NPROC, _tasks_of_user() + int(sys.argv[PROCESSES]))
    command = sys.argv[COMMAND:]
    try:
        os.execv(command[0], command)  # noqa: S606 - without a shell, on purpose
    except OSError as error:
        os.write(report, (error.strerror or str(error)).encode())
        sys.exit(126)


if __name__ == "__main__":
    main()

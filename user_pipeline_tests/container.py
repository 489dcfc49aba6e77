"""Start a command in what a container of the compose file gives it: a read-only root, memory to write in, no rights.

    unshare --mount python container.py '{"tmpfs": …}' command …

``tmpfs`` names the directories that are empty and writable, as under ``tmpfs`` in the compose file; ``volumes`` those
that stay writable; ``keep`` those that stay visible where a ``tmpfs`` covers them; ``passwd``, which may be missing, a
file that takes the place of /etc/passwd, in which the image has its user. Whatever else there is can only be read, also
by root. The command then runs as ``user``, with no capability but that to read what is root's (a checkout in /root is
not readable for others; an image is).

It is a program of its own because it changes the mounts of its process.
"""

import json
import os
import sys
from pathlib import Path
from subprocess import run

_LEFT_ALONE = ("/proc", "/sys", "/dev")


def mount(*arguments: str | Path) -> None:
    """Run mount(8)."""
    run(["mount", *arguments], check=True)


def enter(tmpfs: list[str], volumes: list[str], keep: list[str], passwd: str | None = None) -> None:
    """Lay out the file systems."""
    here = Path.cwd()
    mount("--make-rprivate", "/")
    if passwd:
        mount("--bind", passwd, "/etc/passwd")
    kept = [(Path(path), os.open(path, os.O_PATH)) for path in [*keep, *volumes]]
    with Path("/proc/self/mountinfo").open() as file:
        points = [line.split()[4].encode().decode("unicode_escape") for line in file]
    for point in points:
        if not point.startswith(_LEFT_ALONE):
            mount("--options", "remount,bind,ro", point)
    for directory in tmpfs:
        mount("--types", "tmpfs", "--options", "mode=1777,nosuid,nodev,noexec", "tmpfs", directory)
    for path, opened in kept:
        writable = str(path) in volumes
        if any(path.is_relative_to(directory) for directory in tmpfs):
            if not path.exists():
                path.mkdir(parents=True)
        elif not writable:
            continue
        # By its number: by name it would be what covers it.
        mount("--no-canonicalize", "--bind", f"/proc/{os.getpid()}/fd/{opened}", path)
        mount("--options", f"remount,bind,{'rw' if writable else 'ro'}", path)
    os.chdir(here)


def main(layout: str, *command: str) -> None:
    """Change the mounts, then become the command."""
    # A container's, whatever the one is of who starts this.
    os.umask(0o022)
    given = json.loads(layout)
    user = str(given.pop("user"))
    enter(**given)
    readable = (
        "--inh-caps=-all,+dac_read_search --ambient-caps=-all,+dac_read_search --bounding-set=-all,+dac_read_search"
    )
    become = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups", "--no-new-privs", *readable.split(), "--"]
    os.execvp(become[0], [*become, *command])  # noqa: S606


if __name__ == "__main__":
    main(*sys.argv[1:])

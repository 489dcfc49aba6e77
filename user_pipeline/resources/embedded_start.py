"""Make the cluster of the embedded PostgreSQL server, and start the server, as a user that is not root."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from user_pipeline.resources.embedded_cluster import (
    PORT,
    SOCKET,
    SUPERUSER,
    EmbeddedPostgres,
    EmbeddedPostgresError,
    binaries,
    check_private,
)

# The user that the server runs as when root starts it: Postgres refuses to run as root. The number is in no
# /etc/passwd, so no other process has this user, as many have `nobody`. systemd and Debian leave 65520 to 65533 unused,
# and a container with 65,536 user numbers of its own includes them.
_SERVER_ID = 65_521

# Written into postgresql.conf when a cluster is made, where its owner may change them. Durability is
# Postgres's own default: fsync and synchronous_commit stay on.
_CONFIGURATION = {
    "listen_addresses": "",  # only users with access to the 0700 directory of the socket can connect
    "max_connections": "200",  # Dagster opens one per storage and process, and does not pool
    "shared_buffers": "512MB",  # a day's pages of the indexes that are being merged into
    "work_mem": "64MB",  # a day's rows are grouped and sorted
    "maintenance_work_mem": "256MB",  # indexes are built over whole tables
    "enable_parallel_hash": "off",  # it fills /dev/shm, which in a container is 64 MB
    "random_page_cost": "1.1",  # a laptop's disk does not seek
    "jit": "off",  # it costs more than it saves on statements of a few seconds
    # Nothing replicates from here, so a COPY into a table made in the same transaction skips the WAL.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    # A bulk load is not interrupted by checkpoints, each of which would log whole pages again.
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "wal_buffers": "64MB",
    # The same values and messages wherever it runs.
    "timezone": "UTC",
    "log_timezone": "UTC",
    # The log keeps errors, not the statements (and so the people's data) that caused them.
    "log_min_error_statement": "panic",
    "log_checkpoints": "off",
}


def start(server: EmbeddedPostgres, lock: int) -> None:
    """Start the server, and initialize the cluster first if there is none.

    Args:
        server: the server.
        lock: the descriptor of its lock, which the server inherits.

    Raises:
        EmbeddedPostgresError: the cluster cannot be initialized, or no user can run the server.
    """
    if not server.cluster.exists():
        _initialise(server, lock)
    elif os.geteuid() == 0 and server.uid in (0, pwd.getpwnam("nobody").pw_uid):
        # A copy that root made: the server's user gets it back.
        if server.socket_dir != server.cluster:
            shutil.rmtree(server.socket_dir, ignore_errors=True)
        _give(server.cluster, _SERVER_ID)
    user = server_user(server)

    socket_dir = server.socket_dir
    if socket_dir != server.cluster:
        with suppress(FileExistsError):
            socket_dir.mkdir(0o700)
            os.chown(socket_dir, server.uid, -1)
        check_private(server)
    # This process holds the lock, so no process of this cluster lives and these files are left from a kill. Postgres
    # would take them for those of a running server if another process has the same number by now.
    for stale in (server.cluster / "postmaster.pid", socket_dir / SOCKET, socket_dir / f"{SOCKET}.lock"):
        stale.unlink(missing_ok=True)

    # The shell exits at once, so the server is no child of this process. In a session of its own it outlives the
    # terminal and does not receive its Ctrl-C.
    with server.log.open("ab") as log:
        user.run(
            *("/bin/sh", "-c", '"$@" &', "sh", binaries() / "postgres", "-D", server.cluster),
            *("-p", str(PORT), "-k", socket_dir, "-c", "unix_socket_permissions=0700"),
            pass_fds=(lock,),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _initialise(server: EmbeddedPostgres, lock: int) -> None:
    """Make the cluster in a directory beside its place, then rename it: so it is complete or not there."""
    user = _user()
    if os.geteuid() == 0:
        # initdb needs a user with a name. Only root can reach the directory that this one writes to.
        nobody = pwd.getpwnam("nobody")
        user = _become(server, nobody.pw_uid, nobody.pw_gid)
    for abandoned in server.home.glob(".initdb-*"):
        shutil.rmtree(abandoned)
    cluster = Path(tempfile.mkdtemp(prefix=".initdb-", dir=server.home))
    os.chown(cluster, user.uid, user.gid)
    try:
        user.run(
            *(binaries() / "initdb", "-D", cluster, "--username", SUPERUSER),
            # The permissions of the socket's directory decide who may connect.
            *("--auth-local=trust", "--auth-host=reject"),
            # Text sorts by its bytes, on every machine and in every engine beside this one.
            *("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
            *(argument for name, value in _CONFIGURATION.items() for argument in ("-c", f"{name}={value}")),
            pass_fds=(lock,),
            capture_output=True,
        )
    except subprocess.CalledProcessError as error:
        shutil.rmtree(cluster, ignore_errors=True)
        details = error.stderr.decode(errors="replace")[-2000:]
        raise EmbeddedPostgresError(server, "cannot be initialized", details) from error
    if os.geteuid() == 0:
        _give(cluster, _SERVER_ID)
    cluster.rename(server.cluster)


def _give(cluster: Path, user: int) -> None:
    """Change the owner of a cluster, to a user and the group of the same number.

    Its directory comes last: the owner of the directory tells whether all of it was changed.
    """
    for directory, _, files in os.walk(cluster, topdown=False):
        for path in (*(Path(directory, name) for name in files), Path(directory)):
            os.chown(path, user, user, follow_symlinks=False)


@dataclass(frozen=True, slots=True)
class ServerUser:
    """The user that the server's programs run as, and how to become that user.

    Attributes:
        uid: its number.
        gid: the number of its group.
        prefix: a command to put in front of theirs.
        options: options of ``subprocess.run``.
    """

    uid: int
    gid: int
    prefix: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def run(self, *command: str | Path, **options: Any) -> None:  # noqa: ANN401 - subprocess.run's
        """Run a command as this user, and wait for its end.

        Args:
            command: the program and its arguments.
            options: further ones of ``subprocess.run``.

        Raises:
            subprocess.CalledProcessError: it exits with another status than 0.
        """
        subprocess.run(  # noqa: S603 - a program of the wheel, without a shell
            [*self.prefix, *command],
            **self.options,
            **options,
            check=True,
            cwd="/",  # that user may have no access to our working directory
            # Without the PG* variables, which would override what is asked for here.
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
        )


def server_user(server: EmbeddedPostgres) -> ServerUser:
    """The user of this process; if that is root, the owner of the cluster."""
    if os.geteuid() != 0:
        return _user()
    owner = server.cluster.stat()
    return _become(server, owner.st_uid, owner.st_gid)


def _user() -> ServerUser:
    return ServerUser(os.geteuid(), os.getegid())


def _become(server: EmbeddedPostgres, uid: int, gid: int) -> ServerUser:
    """Another user than root, with access to the cluster and the programs.

    The directory of the cluster is root's alone, and so may be those above it and the checkout. Rather than open them
    to everyone, the programs keep one capability of root: to search directories (``dac_read_search``), or, in a
    container without it, to ignore the permissions of files (``dac_override``).

    Raises:
        EmbeddedPostgresError: no way to become the user works.
    """
    become = f"setpriv --reuid={uid} --regid={gid} --clear-groups"
    # access(2), by which initdb and pg_ctl look for their sister programs, goes by what a user who is not root
    # could do without privileges, unless no_setuid_fixup is set.
    keep = "--securebits=+no_setuid_fixup --inh-caps=+{0} --ambient-caps=+{0} --"
    for user in (
        ServerUser(uid, gid, options={"user": uid, "group": gid, "extra_groups": []}),
        ServerUser(uid, gid, prefix=[*become.split(), *keep.format("dac_read_search").split()]),
        ServerUser(uid, gid, prefix=[*become.split(), *keep.format("dac_override").split()]),
    ):
        with suppress(OSError, subprocess.SubprocessError):
            probe = ("/bin/sh", "-c", 'cd "$1" && "$2" --version', "sh")
            user.run(*probe, server.home, binaries() / "postgres", capture_output=True)
            return user
    raise EmbeddedPostgresError(
        server,
        f"cannot run: Postgres refuses root, and user {uid} cannot reach {server.home} or {binaries()}",
        "Give root setpriv (of util-linux) and the capability dac_read_search or dac_override, or work as an ordinary"
        " user.",
    )

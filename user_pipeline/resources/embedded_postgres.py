"""The embedded PostgreSQL server: initialized, started and stopped on demand, on a Unix socket only.

Everything lives in ``<data directory>/postgres``: the cluster, ``server.log``, and ``lock``. The server inherits an
exclusive ``flock`` on ``lock`` from the process that starts it, as do its own children. So a process that gets the lock
knows that no process of this cluster, nor of its ``initdb``, is alive. Pid files cannot tell that after a kill or a
reboot.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from user_pipeline import setting_values, settings
from user_pipeline.private_files import close
from user_pipeline.resources.embedded_cluster import (
    PORT,
    SOCKET,
    SUPERUSER,
    EmbeddedPostgres,
    EmbeddedPostgresError,
    binaries,
    check_private,
    connected,
)
from user_pipeline.resources.embedded_start import start

__all__ = [
    "PORT",
    "SUPERUSER",
    "EmbeddedPostgres",
    "EmbeddedPostgresError",
    "binaries",
    "database_url",
    "ensure_running",
    "is_running",
    "stop",
]

_LOG_LIMIT = 10 * 2**20
_PATIENCE = 120.0  # seconds: initdb on a slow disk, recovery after a crash, the checkpoint of a shutdown


def ensure_running(data_dir: Path) -> EmbeddedPostgres:
    """The embedded server of ``data_dir``, initialized and started if it does not serve already.

    Any number of processes may call it at once. The server outlives the one that started it.

    Raises:
        EmbeddedPostgresError: it cannot be started, or does not answer.
    """
    server = EmbeddedPostgres(data_dir.absolute())
    started = False
    deadline = time.monotonic() + _PATIENCE
    try:
        while (silence := _silence(server)) is not None:
            with _try_lock(server) as lock:
                if lock is not None and started:
                    raise EmbeddedPostgresError(server, "stopped while starting", _log_tail(server))
                if lock is not None:
                    start(server, lock)
                    started = True
            if time.monotonic() > deadline:
                problem = f"runs, but does not answer ({silence})"
                raise EmbeddedPostgresError(server, problem, _log_tail(server))
            time.sleep(0.02)
    except (OSError, subprocess.SubprocessError) as error:
        raise EmbeddedPostgresError(server, f"cannot be used: {error}") from error
    with suppress(OSError):
        if server.log.stat().st_size > _LOG_LIMIT:
            os.truncate(server.log, 0)  # the server appends, so it goes on at the new end
    return server


def is_running(data_dir: Path) -> bool:
    """Whether anything of the embedded server of ``data_dir`` is alive."""
    server = EmbeddedPostgres(data_dir.absolute())
    if not server.home.is_dir():
        return False
    with _try_lock(server) as lock:
        return lock is None


def stop(data_dir: Path) -> bool:
    """Stop the embedded server of ``data_dir``; its clients are disconnected, nothing committed is lost.

    Returns:
        Whether one was running.

    Raises:
        EmbeddedPostgresError: it does not stop.
    """
    server = EmbeddedPostgres(data_dir.absolute())
    signaled = False
    deadline = time.monotonic() + _PATIENCE
    try:
        if not server.home.is_dir():
            return False
        while time.monotonic() < deadline:
            with _try_lock(server) as lock:
                if lock is not None:
                    with suppress(OSError):
                        if server.socket_dir != server.cluster:
                            server.socket_dir.rmdir()
                    return signaled
            # Only the pid file of a server that answers is sure to name that server.
            if not signaled and _silence(server) is None:
                with suppress(FileNotFoundError, ProcessLookupError):  # another process is stopping it
                    os.kill(_postmaster(server), signal.SIGINT)
                    signaled = True
            time.sleep(0.02)
    except OSError as error:
        raise EmbeddedPostgresError(server, f"cannot be stopped: {error}") from error
    raise EmbeddedPostgresError(server, "does not stop", _log_tail(server))


def database_url(database: setting_values.Database) -> str:
    """The URL of ``database``: as configured, or of the embedded server, which is then started."""
    if database.url is not None:
        return database.url.get_secret_value()
    server = ensure_running(settings.current().data_dir)
    server.create_database(database.name)
    return server.url(database.name)


@contextmanager
def _try_lock(server: EmbeddedPostgres) -> Iterator[int | None]:
    """The descriptor of the lock, or None while anything of this cluster is alive."""
    server.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    close(server.home)
    # A user who can open it could keep it locked.
    descriptor = os.open(server.home / "lock", os.O_RDONLY | os.O_CREAT, 0o600)
    close(server.home / "lock")
    # It stays locked after the close below if a child has inherited it.
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield descriptor
    finally:
        os.close(descriptor)


def _silence(server: EmbeddedPostgres) -> str | None:
    """Why the server does not answer for this cluster; None if it does."""
    try:
        identifier = server.identifier
        if server.socket_dir != server.cluster:
            check_private(server)
        if not (server.socket_dir / SOCKET).exists():
            return "there is no socket yet"
    except FileNotFoundError:
        return "there is no cluster yet"
    import psycopg2

    try:
        with connected(server) as connection, connection.cursor() as cursor:
            # By a relative path, as its working directory is its cluster: a server that was started before the
            # directories above were closed cannot search them, as pg_control_system() would.
            cursor.execute("SELECT pg_read_binary_file('global/pg_control', 0, 8)")
            [(its_own,)] = cursor.fetchall()
            is_ours = int.from_bytes(its_own, sys.byteorder) == identifier
            return None if is_ours else "another server answers on its socket"
    except psycopg2.OperationalError as error:
        return str(error).strip()


def _postmaster(server: EmbeddedPostgres) -> int:
    lines = (server.cluster / "postmaster.pid").read_text().splitlines()
    if len(lines) < 2 or not lines[0].isdecimal():  # noqa: PLR2004 - a line is whole when another follows
        raise EmbeddedPostgresError(server, "cannot be stopped: its postmaster.pid is truncated")
    return int(lines[0])


def _log_tail(server: EmbeddedPostgres) -> str:
    try:
        lines = server.log.read_text(errors="replace").splitlines()[-15:]
    except OSError:
        return ""
    return "\n".join([f"The end of {server.log}:", *lines])

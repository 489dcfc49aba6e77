"""A Postgres that asks for passwords and speaks TCP, TLS in front of it, and the end of any that a test started."""

import contextlib
import os
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg2

from user_pipeline.resources import embedded_postgres as postgres
from user_pipeline.resources.embedded_postgres import EmbeddedPostgres
from user_pipeline.resources.embedded_start import server_user

_HBA = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
_SSL_REQUEST = struct.pack("!ii", 8, 80877103)
_GSS_REQUEST = struct.pack("!ii", 8, 80877104)


@dataclass(frozen=True)
class PasswordServer:
    """PostgreSQL on a TCP port of this machine; over TCP everyone needs a password.

    Attributes:
        port: the port.
        socket_dir: where its Unix socket is, over which the superuser needs none.
    """

    port: int
    socket_dir: Path

    def url(self, database: str, user: str, password: str | None = None, port: int | None = None) -> str:
        access = user if password is None else f"{user}:{quote(password, safe='')}"
        return f"postgresql://{access}@127.0.0.1:{port or self.port}/{database}"

    @property
    def superuser_url(self) -> str:
        return f"postgresql://{postgres.SUPERUSER}@/postgres?host={self.socket_dir}&port={self.port}"

    def execute(self, statement: str, url: str | None = None) -> list[tuple[object, ...]]:
        """Run one statement, as the superuser unless a URL says otherwise."""
        connection = psycopg2.connect(url or self.superuser_url)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def run_file(self, path: Path, url: str) -> None:
        """Run a script through psql as its reader is told to."""
        psql = postgres.binaries() / "psql"
        done = subprocess.run(
            [psql, url, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", path], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert not done.stderr, done.stderr


@contextlib.contextmanager
def password_server(**options: str) -> Iterator[PasswordServer]:
    """A server of its own, in a directory that goes with it.

    Args:
        options: of the server, by name; without them it keeps little in memory and does not wait for the disk.
    """
    with tempfile.TemporaryDirectory(prefix="up-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        embedded = postgres.ensure_running(directory)
        postgres.stop(directory)
        with _serving(embedded, {"fsync": "off", "shared_buffers": "64MB"} | options) as server:
            yield server


@contextlib.contextmanager
def _serving(embedded: EmbeddedPostgres, given: Mapping[str, str]) -> Iterator[PasswordServer]:
    (embedded.cluster / "pg_hba.conf").write_text(_HBA)
    user = server_user(embedded)
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    options = {"listen_addresses": "127.0.0.1", **given}
    process = subprocess.Popen(
        [
            *user.prefix,
            *(postgres.binaries() / "postgres", "-D", embedded.cluster),
            *("-p", str(port), "-k", embedded.socket_dir),
            *(argument for name, value in options.items() for argument in ("-c", f"{name}={value}")),
        ],
        **user.options,
        cwd="/",
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        server = PasswordServer(port, embedded.socket_dir)
        deadline = time.monotonic() + 60
        while True:
            try:
                server.execute("select 1")
                break
            except psycopg2.OperationalError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield server
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait()


@contextlib.contextmanager
def tls_in_front(port: int, context: ssl.SSLContext) -> Iterator[int]:
    """A port that speaks TLS as Postgres does and hands on to the plain one; gives its number.

    The PostgreSQL that comes along is built without TLS. Here only the clients are on trial: they ask for TLS,
    shake hands and judge the certificate as they would with any server.
    """
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=relay, args=(client,), daemon=True).start()

    def relay(client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection(("127.0.0.1", port)) as server:
            while (start := client.recv(8, socket.MSG_WAITALL)) == _GSS_REQUEST:
                client.sendall(b"N")
            if start == _SSL_REQUEST:
                client.sendall(b"S")
                with context.wrap_socket(client, server_side=True) as encrypted:
                    _pump_both(encrypted, server)
            # Who asks for no TLS is not served: hostssl in pg_hba.conf.

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _pump_both(client: ssl.SSLSocket, server: socket.socket) -> None:
    """Bytes in both directions until either side is done; one thread, as an SSL object is not for two."""
    client.settimeout(0.0)
    server.settimeout(0.0)
    import select

    pending: dict[socket.socket, bytes] = {client: b"", server: b""}
    while True:
        moved = False
        for source, target in ((client, server), (server, client)):
            if not pending[target]:
                try:
                    data = source.recv(65536)
                except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
                    continue
                if not data:
                    return
                pending[target] = data
                moved = True
            with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
                sent = target.send(pending[target])
                pending[target] = pending[target][sent:]
                moved = True
        if not moved:
            writers = [sock for sock, data in pending.items() if data]
            select.select([client, server] if not writers else [], writers, [], 0.05)


def discard(directory: Path) -> None:
    """Stop every server in ``directory``, without the checkpoint of an orderly end, and remove it all."""
    for lock in directory.rglob("postgres/lock"):
        server = EmbeddedPostgres(lock.parent.parent)
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((server.cluster / "postmaster.pid").read_text().splitlines()[0]), signal.SIGQUIT)
        postgres.stop(server.data_dir)
    shutil.rmtree(directory)

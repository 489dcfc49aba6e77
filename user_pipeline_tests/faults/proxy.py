"""An HTTP proxy before an S3 endpoint that answers chosen requests as a store in trouble does."""

import contextlib
import http.client
import http.server
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

Matches = Callable[[str, str], bool]
KINDS = ("500", "503", "slow", "truncated", "reset", "lost answer", "silent")


@dataclass
class Trouble:
    """What goes wrong with some requests.

    Attributes:
        kind: ``500`` or ``503`` in answer; ``slow`` bytes; a body ``truncated`` halfway, which is then closed; a
            connection ``reset`` before the request is passed on; a ``lost answer``: passed on and then reset;
            ``silent``: nothing, for as long as the client waits.
        matches: which requests, by method and path.
        times: how many of them.
        happened: how often it did.
    """

    kind: str
    matches: Matches
    times: int = 1
    happened: int = 0


@dataclass
class Proxy:
    """A running proxy.

    Attributes:
        url: what ``AWS_ENDPOINT_URL`` is set to.
        troubles: what goes wrong from now on.
    """

    url: str
    troubles: list[Trouble] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def trouble(self, method: str, path: str) -> str | None:
        """What goes wrong with this request."""
        with self.lock:
            for trouble in self.troubles:
                if trouble.happened < trouble.times and trouble.matches(method, path):
                    trouble.happened += 1
                    return trouble.kind
        return None


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.closing = threading.Event()
        self.proxy = Proxy(f"http://127.0.0.1:{self.server_port}")


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kind = self.server.proxy.trouble(self.command, self.path)
        if kind in ("500", "503"):
            self.answer(int(kind), {}, b"<Error><Code>SlowDown</Code><Message>later</Message></Error>")
        elif kind == "silent":
            self.server.closing.wait(30)
            self.cut()
        elif kind == "reset":
            self.cut()
        else:
            self.pass_on(body, kind)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_any  # noqa: N815

    def pass_on(self, body: bytes, kind: str | None) -> None:
        connection = http.client.HTTPConnection(self.server.upstream, timeout=30)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        content, headers = answer.read(), dict(answer.headers)
        connection.close()
        if kind == "lost answer":
            self.cut()
        else:
            self.answer(answer.status, headers, content, kind)

    def answer(self, status: int, headers: dict[str, str], content: bytes, kind: str | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        size = headers.get("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", size or str(len(content)))
        self.end_headers()
        if kind == "truncated":
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        piece = max(1, len(content) // 20) if kind == "slow" else len(content) or 1
        for start in range(0, len(content), piece):
            self.wfile.write(content[start : start + piece])
            if kind == "slow":
                self.wfile.flush()
                time.sleep(0.02)

    def cut(self) -> None:
        """Reset the connection, rather than close it."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def handle(self) -> None:
        # The client has given up, or the connection was cut above.
        with contextlib.suppress(OSError, ValueError):
            super().handle()

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def before(endpoint: str) -> Iterator[Proxy]:
    """A proxy before an endpoint."""
    server = _Server(urlsplit(endpoint).netloc)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.proxy
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()

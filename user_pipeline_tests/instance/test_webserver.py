"""Whom the web server answers: real requests to a real one, as browsers and programs send them."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from urllib.parse import quote

import dagster
import pytest
from dagster import DagsterInstance
from dagster._core.instance.ref import InstanceRef
from dagster._core.test_utils import create_run_for_test
from dagster_webserver.webserver import DagsterWebserver
from starlette.routing import Route, WebSocketRoute
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol

from user_pipeline import settings
from user_pipeline.instance import webserver
from user_pipeline.resources.embedded_postgres import EmbeddedPostgres
from user_pipeline_tests import CHECKOUT

UI = "dagster.example.com"
HERE = "127.0.0.1:PORT"
"""The address that is asked; PORT stands for the server's."""
JSON = ("Content-Type", "application/json")
QUERY = json.dumps({"query": "{ version }"}).encode()
NAVIGATION = (("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document"), ("Accept", "text/html"))
CROSS_SITE = ("Sec-Fetch-Site", "cross-site")

Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Server:
    """A web server of the checkout's instance that is also reached as https://dagster.example.com, behind a proxy."""

    port: int
    instance: DagsterInstance

    def ask(
        self,
        method: str,
        path: str,
        headers: Headers = (),
        body: bytes | None = None,
        *,
        hosts: Sequence[str] = (HERE,),
    ) -> tuple[int, str]:
        """Send exactly these headers; returns the status and the answer."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in (*(("Host", host) for host in hosts), *headers):
                connection.putheader(name, self.here(value))
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")

    def query(self, headers: Headers = (), hosts: Sequence[str] = (HERE,)) -> tuple[int, str]:
        return self.ask("POST", "/graphql", [JSON, *headers], QUERY, hosts=hosts)

    def here(self, text: str) -> str:
        return text.replace("PORT", str(self.port))

    @contextlib.contextmanager
    def run(self) -> Iterator[str]:
        """A run that is there to be deleted, and still is when the block ends."""
        run_id = create_run_for_test(self.instance).run_id
        yield run_id
        assert self.instance.get_run_by_id(run_id), "deleted"
        self.instance.delete_run(run_id)


@contextlib.contextmanager
def serving(home: Path, *arguments: str, **environment: str) -> Iterator[int]:
    """`dagster-webserver` in a directory with the checkout's dagster.yaml, on a port of its own."""
    shutil.copy(CHECKOUT / "dagster.yaml", home)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("dagster-webserver"), "--empty-workspace", "--port", str(port), *arguments],
            cwd=home,
            env={"PATH": os.environ["PATH"], "HOME": str(home), **environment},
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), 5):
                break
            assert process.poll() is None, (home / "log").read_text()
            assert time.monotonic() < deadline, (home / "log").read_text()
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def server(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    postgres.create_database("web_server")
    environment = {
        "DAGSTER_POSTGRES_URL": postgres.url("web_server"),
        "USER_PIPELINE_UI_URL": f"https://{UI}",
        "USER_PIPELINE_UI_HOSTS": "webserver, FD00:0::7",
    }
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch, serving(home, **environment) as port:
        patch.setenv("DAGSTER_POSTGRES_URL", environment["DAGSTER_POSTGRES_URL"])
        settings.current.cache_clear()
        with DagsterInstance.from_ref(InstanceRef.from_dir(str(home))) as instance:
            settings.current.cache_clear()
            yield Server(port, instance)


def delete(run_id: str) -> str:
    return f'mutation {{ deleteRun(runId: "{run_id}") {{ __typename }} }}'


def body(query: str) -> bytes:
    return json.dumps({"query": query}).encode()


def test_programs_that_are_no_browser_go_on_as_before(server: Server) -> None:
    assert server.query() == (200, f'{{"data":{{"version":"{dagster.__version__}"}}}}')
    assert server.ask("GET", f"/graphql?query={quote('{ version }')}")[0] == 200
    assert server.ask("POST", f"/graphql?query={quote('{ version }')}", body=b"")[0] == 200
    assert server.ask("GET", "/server_info")[0] == 200
    run_id = create_run_for_test(server.instance).run_id
    status, answer = server.ask("POST", "/graphql", [JSON], body(delete(run_id)))
    assert (status, "DeletePipelineRunSuccess" in answer) == (200, True)
    assert not server.instance.get_run_by_id(run_id)


@pytest.mark.parametrize(
    "host",
    [
        HERE,
        "127.0.0.1",
        "127.0.0.2:PORT",
        "localhost:PORT",
        "LocalHost.:PORT",
        "[::1]:PORT",
        "[0:0:0:0:0:0:0:1]",
        UI,
        "DAGSTER.example.com.:443",
        "webserver:3000",
        "[fd00::7]:3000",
    ],
)
def test_it_answers_under_loopback_and_the_names_that_are_set(server: Server, host: str) -> None:
    assert server.query(hosts=[host])[0] == 200


@pytest.mark.parametrize(
    "hosts",
    [
        ["evil.example"],
        ["evil.example:PORT"],
        [f"{UI}.evil.example"],
        [f"evil.{UI}"],
        ["localhost.evil.example"],
        ["127.0.0.1.evil.example"],
        ["evil.localhost"],
        ["0.0.0.0"],  # noqa: S104
        ["10.0.0.1:PORT"],
        ["[fd00::8]"],
        ["[::1"],
        ["::1"],
        ["localhost:port"],
        ["localhost:PORT:PORT"],
        ["someone@localhost"],
        ["localhost/"],
        ["localhost.."],
        [""],
        [HERE, "evil.example"],
        ["evil.example", HERE],
    ],
)
def test_it_answers_under_no_other_name(server: Server, hosts: Sequence[str]) -> None:
    # DNS rebinding: the page's own name leads here, so that the browser takes the request for one of the same site.
    same_site = [("Origin", f"http://{hosts[0]}"), ("Sec-Fetch-Site", "same-origin")]
    with server.run() as run_id:
        status, answer = server.ask("POST", "/graphql", [JSON, *same_site], body(delete(run_id)), hosts=hosts)
        # The HTTP parser itself refuses some.
        assert status in (400, 403), answer
        assert status == 400 or "USER_PIPELINE_UI_URL" in answer
    for path in ("/", "/server_info", "/runs", "/logs/x"):
        assert server.ask("GET", path, hosts=hosts)[0] in (400, 403), path


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_request_that_does_not_say_whom_it_asks_is_refused(server: Server, version: str) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 60) as connection:
        connection.sendall(f"GET /server_info HTTP/{version}\r\nConnection: close\r\n\r\n".encode())
        answer = HTTPResponse(connection)
        answer.begin()
        assert answer.status in (400, 403)


def test_what_a_proxy_says_about_the_host_is_not_believed(server: Server) -> None:
    forwarded = [("X-Forwarded-Host", UI), ("X-Forwarded-Proto", "https"), ("Forwarded", f"host={UI};proto=https")]
    assert server.query(forwarded, hosts=["evil.example"])[0] == 403
    foreign = [("X-Forwarded-Host", "evil.example"), ("Origin", "http://evil.example")]
    assert server.query(foreign)[0] == 403


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        (HERE, f"http://{HERE}"),
        ("localhost:PORT", "http://localhost:PORT"),
        ("LOCALHOST.:PORT", "http://localhost:PORT"),
        ("[::1]:PORT", "http://[::1]:PORT"),
        # Through a tunnel from another port, or from 80 and 443.
        ("localhost:8080", "http://localhost:8080"),
        ("localhost", "http://localhost"),
        ("localhost", "https://localhost"),
        ("localhost:80", "http://localhost"),
        # Through a proxy that ends TLS and passes the host on, with its port or without, or sets its own.
        (UI, f"https://{UI}"),
        (f"{UI}:443", f"https://{UI}"),
        (HERE, f"https://{UI}"),
        # Past the proxy.
        (f"{UI}:PORT", f"http://{UI}:PORT"),
        ("webserver:3000", "http://webserver:3000"),
    ],
)
def test_the_ui_goes_on_working_at_every_address_of_its_own(server: Server, host: str, origin: str) -> None:
    headers = [("Origin", server.here(origin)), ("Sec-Fetch-Site", "same-origin")]
    assert server.query(headers, hosts=[host])[0] == 200
    with websocket(server, origin, host) as opened:
        opened.send('{"type": "connection_init"}')
        assert json.loads(opened.recv(60)) == {"type": "connection_ack"}


FOREIGN = [
    (HERE, "http://evil.example"),
    (HERE, "null"),
    (HERE, ""),
    (HERE, "file://"),
    # Another server of this machine: another port or another name is another origin.
    (HERE, "http://127.0.0.1:1"),
    (HERE, "http://127.0.0.1"),
    (HERE, "http://localhost:PORT"),
    (HERE, "chrome-extension://127.0.0.1:PORT"),
    (HERE, f"http://{HERE}@evil.example"),
    (HERE, f"http://{HERE}.evil.example"),
    # What stands in for the proxy without its certificate.
    (UI, f"http://{UI}"),
    (f"{UI}:443", f"http://{UI}:443"),
    (UI, f"https://{UI}:8443"),
    (UI, f"https://evil.{UI}"),
    (UI, f"https://{UI}.evil.example"),
    (UI, "https://evil.example"),
    (HERE, f"http://{UI}"),
]


@pytest.mark.parametrize(("host", "origin"), FOREIGN)
def test_pages_of_other_sites_change_nothing(server: Server, host: str, origin: str) -> None:
    with server.run() as run_id:
        query = delete(run_id)
        # The requests that a browser sends without asking first (text/plain), and the one it asks for first.
        for path, kind, content in (
            (f"/graphql?query={quote(query)}", "text/plain", b""),
            (f"/graphql?query={quote(query)}", "application/x-www-form-urlencoded", b""),
            ("/graphql", "text/plain; application/json", body(query)),
            ("/graphql", "application/json", body(query)),
            ("/graphql", "application/graphql", query.encode()),
            ("/report_asset_materialization/users", "application/json", b"{}"),
        ):
            headers = [("Origin", origin), ("Content-Type", kind)]
            status, answer = server.ask("POST", path, headers, content, hosts=[host])
            assert status == 403, (kind, answer)
            assert "USER_PIPELINE_UI_URL" in answer
        preflight = [("Origin", origin), ("Access-Control-Request-Method", "POST")]
        assert server.ask("OPTIONS", "/graphql", preflight, hosts=[host])[0] == 403


@pytest.mark.parametrize(("host", "origin"), [*FOREIGN, ("evil.example:PORT", "http://evil.example:PORT")])
def test_pages_of_other_sites_open_no_websocket(server: Server, host: str, origin: str) -> None:
    with pytest.raises(InvalidStatus) as refused, websocket(server, origin, host):
        pass
    assert refused.value.response.status_code == 403


def test_one_origin_of_its_own_does_not_cover_for_another(server: Server) -> None:
    own, foreign = ("Origin", f"http://{HERE}"), ("Origin", "http://evil.example")
    for origins in ([own, foreign], [foreign, own]):
        assert server.query(origins)[0] == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site", "Cross-Site", "anything"])
def test_what_the_browser_says_another_site_has_caused_is_refused(server: Server, site: str) -> None:
    caused = ("Sec-Fetch-Site", site)
    assert server.query([caused])[0] == 403
    for mode, destination in (("no-cors", "image"), ("no-cors", "script"), ("navigate", "iframe"), ("cors", "empty")):
        headers = [caused, ("Sec-Fetch-Mode", mode), ("Sec-Fetch-Dest", destination)]
        for path in ("/", "/runs", "/server_info", f"/graphql?query={quote('{ version }')}"):
            assert server.ask("GET", path, headers)[0] == 403, (path, destination)
    # A form of another site.
    assert server.ask("POST", "/runs", [caused, *NAVIGATION], b"")[0] == 403


@pytest.mark.parametrize("site", ["none", "same-origin"])
def test_what_its_user_or_the_ui_itself_has_caused_is_answered(server: Server, site: str) -> None:
    assert server.query([("Sec-Fetch-Site", site)])[0] == 200
    assert server.ask("GET", "/runs", [("Sec-Fetch-Site", site), *NAVIGATION])[0] == 200


def test_a_link_from_elsewhere_opens_a_page_of_the_ui_and_nothing_else(server: Server) -> None:
    for path in ("/", "/runs/714ba677", "/assets/users?view=partitions", "/locations/x/jobs/y"):
        status, answer = server.ask("GET", path, [CROSS_SITE, *NAVIGATION], hosts=[UI])
        assert (status, '<div id="root">' in answer) == (200, True), path
    with server.run() as run_id:
        for path in (
            f"/graphql?query={quote(delete(run_id))}",
            f"/graphql%0A?query={quote(delete(run_id))}",
            f"/%67raphql?query={quote(delete(run_id))}",
            "/graphql?query=%7Bversion%7D",
            "/logs/x.err",
            "/notebook?path=x",
            "/server_info",
            f"/download_debug/{run_id}",
        ):
            assert server.ask("GET", path, [CROSS_SITE, *NAVIGATION], hosts=[UI])[0] == 403, path


def test_every_path_of_dagster_that_is_no_page_is_known() -> None:
    made = object.__new__(DagsterWebserver)
    made._app_path_prefix = ""
    paths = {
        route.path.split("/")[1]
        for route in made.build_routes()  # type: ignore[no-untyped-call]
        if isinstance(route, Route | WebSocketRoute) and route.name != "root_static"
    }
    assert paths - {"", "{path:path}"} == webserver._NO_PAGES


@pytest.mark.parametrize("path", ["/graphql", "/graphql%0A", "/%67raphql"])
def test_an_address_changes_nothing(server: Server, path: str) -> None:
    # As an image of a page would ask for, from a browser that says nothing about it: older ones, and all over plain
    # HTTP to another machine.
    with server.run() as run_id:
        change = delete(run_id)
        for query, more in (
            (change, ""),
            (f"# query\n{change}", ""),
            (f"query q {{ version }} {change.replace('mutation', 'mutation m')}", "&operationName=m"),
        ):
            assert server.ask("GET", f"{path}?query={quote(query)}{more}")[0] == 403, query
            # The last of two is what Dagster takes.
            assert server.ask("GET", f"{path}?query={quote('{ version }')}&query={quote(query)}{more}")[0] == 403, query
        assert server.ask("HEAD", f"{path}?query={quote(change)}")[0] in (403, 405)


def test_it_is_as_closed_below_a_path(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    postgres.create_database("web_server")
    environment = {"DAGSTER_POSTGRES_URL": postgres.url("web_server")}
    with serving(tmp_path, "--path-prefix", "/dagster", "--read-only", **environment) as port:

        def get(path: str, *headers: tuple[str, str]) -> int:
            with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
                connection.request("GET", path, headers=dict(headers))
                return connection.getresponse().status

        assert get("/dagster/runs", CROSS_SITE, *NAVIGATION) == 200
        assert get("/dagster/server_info") == 200
        assert get("/dagster/server_info", ("Host", "evil.example")) == 403
        assert get("/dagster/server_info", ("Origin", "http://evil.example")) == 403
        assert get("/dagster/graphql?query=%7Bversion%7D", CROSS_SITE, *NAVIGATION) == 403
        assert get("/dagster/server_info", CROSS_SITE, *NAVIGATION) == 403
        assert get(f"/dagster/graphql?query={quote(delete('x'))}") == 403


@contextlib.contextmanager
def websocket(server: Server, origin: str, host: str) -> Iterator[ClientConnection]:
    """A websocket for the GraphQL subscriptions of the UI, as a page of an origin opens it."""
    with (
        socket.create_connection(("127.0.0.1", server.port), 60) as connection,
        connect(
            server.here(f"ws://{host}/graphql"),
            sock=connection,
            origin=Origin(server.here(origin)),
            subprotocols=[Subprotocol("graphql-ws")],
            proxy=None,
            open_timeout=60,
        ) as opened,
    ):
        yield opened

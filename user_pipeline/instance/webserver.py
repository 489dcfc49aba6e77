"""Dagster's web server, closed to the pages of other web sites.

The UI asks for no password, and a browser sends requests to it for any page that it shows: with a form, an image, a
script or a websocket, or under a name of its own that is made to resolve to this address (DNS rebinding). The browser
says in ``Host``, ``Origin`` and ``Sec-Fetch-Site`` whom it asks and for whom. Programs that are no browser send no
``Origin`` and are not concerned.
"""

import re
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import dagster_webserver.app
from dagster_webserver.webserver import DagsterWebserver
from graphql import GraphQLError, OperationDefinitionNode, OperationType, parse
from starlette.datastructures import Headers, QueryParams
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from user_pipeline import setting_values, settings

_AUTHORITY = re.compile(r"(?P<host>\[[^\]]*\]|[^:\[\]]+)(?::(?P<port>[0-9]{1,5}))?")
_DEFAULT_PORTS = {"http": 80, "https": 443}
# The first part of the paths of Dagster's web server that are no pages of the UI.
_NO_PAGES = frozenset(
    {
        "graphql",
        "logs",
        "notebook",
        "dagit",
        "dagit_info",
        "download_debug",
        "server_info",
        "report_asset_check",
        "report_asset_materialization",
        "report_asset_observation",
    }
)


def guard() -> None:
    """Make every web server that this process makes from now on a guarded one."""
    # Dagster has no setting for it.
    dagster_webserver.app.DagsterWebserver = GuardedWebserver  # type: ignore[attr-defined]


class GuardedWebserver(DagsterWebserver[Any, Any]):
    """Dagster's web server behind the guard."""

    def build_middleware(self) -> list[Middleware]:
        """The guard first, then Dagster's own."""
        return [Middleware(Guard, path_prefix=self._app_path_prefix), *super().build_middleware()]


class Guard:
    """Answers what a page of another site has asked for with 403 and the reason.

    Refused, over HTTP and over websockets:

    - any other ``Host`` than a loopback address, ``localhost``, and what ``USER_PIPELINE_UI_URL`` and
      ``USER_PIPELINE_UI_HOSTS`` name;
    - an ``Origin`` that is neither ``USER_PIPELINE_UI_URL`` nor the address that was asked;
    - what the browser says another site has caused (``Sec-Fetch-Site``), but for links to pages of the UI;
    - a change that comes by GET: a browser sends no ``Origin`` with the address of an image.
    """

    def __init__(self, app: ASGIApp, path_prefix: str = "") -> None:
        self._app = app
        self._path_prefix = path_prefix
        current = settings.current()
        self._ui = _origin(current.ui_url) if current.ui_url else None
        self._hosts = {"localhost", *current.ui_hosts, *([self._ui[1]] if self._ui else [])}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        reason = self._reason(scope) if scope["type"] in ("http", "websocket") else None
        if reason is None:
            await self._app(scope, receive, send)
        else:
            await PlainTextResponse(f"Refused: {reason}\n", status_code=403)(scope, receive, send)

    def _reason(self, scope: Scope) -> str | None:
        """Why a request is refused, or None if it is not."""
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        asked = _authority(hosts[0]) if len(hosts) == 1 else None
        if asked is None or not self._is_ours(asked[0]):
            return (
                f"{', '.join(hosts) or 'no name'!r} is no address of this web server. Its own are those of loopback and"
                " what USER_PIPELINE_UI_URL and USER_PIPELINE_UI_HOSTS name."
            )
        for origin in headers.getlist("origin"):
            if not self._is_same(origin, *asked):
                return (
                    f"a page of {origin!r} asked for it. If that is the address of this UI, set USER_PIPELINE_UI_URL to"
                    " it."
                )
        site = headers.get("sec-fetch-site", "none")
        if site not in ("none", "same-origin") and not self._opens_page(scope, headers):
            return f"a page of another site asked for it (Sec-Fetch-Site: {site})."
        if scope["type"] == "http" and scope["method"] == "GET" and _is_change(QueryParams(scope["query_string"])):
            return "a change goes by POST."
        return None

    def _is_ours(self, host: str) -> bool:
        if host in self._hosts:
            return True
        try:
            return ip_address(host).is_loopback
        except ValueError:
            return False

    def _is_same(self, text: str, host: str, port: int | None) -> bool:
        """Whether an ``Origin`` is the address that was asked, ``host`` and ``port``."""
        origin = _origin(text)
        if origin is None or origin == self._ui:
            return origin is not None
        # Behind a proxy only the URL of the UI tells http from https.
        if self._ui and (host, port or self._ui[2]) == self._ui[1:]:
            return False
        return origin[1:] == (host, port or _DEFAULT_PORTS[origin[0]])

    def _opens_page(self, scope: Scope, headers: Headers) -> bool:
        """Whether someone follows a link to a page of the UI: in an alert, or back from where they signed in."""
        return (
            scope["type"] == "http"
            and scope["method"] == "GET"
            and headers.get("sec-fetch-mode") == "navigate"
            and headers.get("sec-fetch-dest") == "document"
            and scope["path"].removeprefix(self._path_prefix).strip("/").split("/")[0] not in _NO_PAGES
        )


def _is_change(parameters: QueryParams) -> bool:
    """Whether the parameters of an address hold a GraphQL operation that is more than a query."""
    try:
        definitions = parse(parameters.get("query", "")).definitions
    except GraphQLError:
        return False  # Dagster says what is wrong with it
    return any(
        isinstance(definition, OperationDefinitionNode) and definition.operation is not OperationType.QUERY
        for definition in definitions
    )


def _authority(text: str) -> tuple[str, int | None] | None:
    """The host and the port, if there is one, of ``host[:port]``; None if it is no such thing."""
    match = _AUTHORITY.fullmatch(text)
    host = setting_values.host(match["host"]) if match else None
    if match is None or host is None:
        return None
    return host, int(match["port"]) if match["port"] else None


def _origin(text: str) -> tuple[str, str, int] | None:
    """Scheme, host and port of a URL; None if it has none (``null``)."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return None
    authority = _authority(parts.netloc)
    if parts.scheme not in _DEFAULT_PORTS or authority is None:
        return None
    return parts.scheme, authority[0], authority[1] or _DEFAULT_PORTS[parts.scheme]

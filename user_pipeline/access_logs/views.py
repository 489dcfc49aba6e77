"""Lines of access logs as lines of the feed of page views.

Nothing is lost silently: a line becomes a page view, is left out by a rule and counted, or goes through as it is, so
that it is rejected and kept.
"""

import hashlib
import hmac
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache

from user_pipeline.access_logs.formats import COMBINED, COMMON, FormatError, compile_format

ASSETS = (
    r"(?i)\.(?:css|js|mjs|map|json|xml|txt|rss|atom|ico|png|jpe?g|gif|svg|webp|avif|bmp|woff2?|ttf|otf|eot|mp[34]|"
    r"m4[av]|webm|og[gv]|wav|avi|mov|zip|gz|bz2|xz|tar|tgz|rpm|deb|exe|dmg|jar|pdf|swf|wasm)$"
)
"""Paths that are no pages, unless other rules are set."""
PAGE_VIEWS, MALFORMED, BLANK = "page views", "malformed", "blank"
_LINE = {"ip": "remote_addr", "remote_user": "remote_user"}
_MONTHS = {
    name: f"{number:02}"
    for number, name in enumerate(
        ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"), start=1
    )
}
_TIME_LOCAL = re.compile(r"(\d\d)/([A-Z][a-z]{2})/(\d{4}):(\d\d:\d\d:\d\d) ([+-]\d\d)(\d\d)")
_ESCAPE = re.compile(r'\\(?:x([0-9a-fA-F]{2})|(["\\]))')
_TARGET = re.compile(r"(\S+) (?:https?://[^/ ]+)?(/\S*)(?: HTTP/\d(?:\.\d)?)?")
_NONE = ("", "-")
LONGEST_LINE = 8 * 2**20
"""A longer line goes through unchanged: a line without an end must not fill memory."""
_LONGEST_AGENT = 512
"""How many characters of an agent are compared with the list of bots: each takes 20 microseconds, and a client
chooses how many it sends."""
_CACHED = 65_536


@dataclass(frozen=True, slots=True)
class Rules:
    """Which requests are page views, and whose.

    Attributes:
        key: of the digests that ids of users are.
        user_from: ``ip``, ``cookie`` or ``remote_user``.
        cookie: the name of the cookie, for ``cookie``.
        format: of the lines; None for combined or common.
        environment: what the views are said to be from.
        statuses: of responses that count.
        methods: of requests that count.
        only: a path has to match it.
        exclude: a path must not.
        keep_query: whether the query string is part of the url.
        keep_bots: whether bots count.
        drop_anonymous: leave requests without a user out; otherwise they are rejected as ``missing_user_id``.
    """

    key: bytes
    user_from: str = "ip"
    cookie: str = ""
    format: str | None = None
    environment: str = "production"
    statuses: frozenset[str] = frozenset({"200", "304"})
    methods: frozenset[str] = frozenset({"GET"})
    only: str = ""
    exclude: str = ASSETS
    keep_query: bool = False
    keep_bots: bool = False
    drop_anonymous: bool = False


@dataclass
class Converter:
    """Makes page views of lines.

    Attributes:
        rules: which requests count.
        counts: what became of how many lines.

    Raises:
        FormatError: the format lacks a field that the rules need.
        re.error: a rule is no regular expression.
    """

    rules: Rules
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        rules = self.rules
        self._user = _LINE.get(rules.user_from, f"cookie_{rules.cookie}")
        formats = [COMBINED, COMMON] if rules.format is None else [rules.format]
        self._patterns = [self._compile(text) for text in formats]
        self._only = re.compile(rules.only)
        self._exclude = re.compile(rules.exclude) if rules.exclude else None
        self._environment = json.dumps(rules.environment)
        self._id = lru_cache(_CACHED)(self._digest)
        self._is_bot = lru_cache(_CACHED)(_bots()) if not rules.keep_bots else None

    def _compile(self, text: str) -> re.Pattern[str]:
        if self.rules.user_from != "cookie":
            return compile_format(text, self._user)
        try:
            return compile_format(text, self._user)
        except FormatError:
            # All cookies of the request.
            return compile_format(text, "http_cookie")

    def convert(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """The lines of the feed that lines of a log become.

        Args:
            lines: each with its end. Of a longer line than :data:`LONGEST_LINE` that many bytes, and then the rest.
        """
        is_rest = False
        for line in lines:
            if is_rest or len(line) >= LONGEST_LINE:
                yield self._overlong(line, is_rest=is_rest)
                is_rest = not line.endswith(b"\n")
            elif converted := self._convert(line):
                yield converted

    def _overlong(self, piece: bytes, *, is_rest: bool) -> bytes:
        if is_rest:
            return piece
        self.counts[MALFORMED] += 1
        return b"?" + piece if piece.lstrip().startswith(b"{") else piece

    def _convert(self, line: bytes) -> bytes | None:
        try:
            text = line.decode().rstrip("\r\n")
        except UnicodeDecodeError:
            return self._malformed(line)
        if not text.strip():
            self.counts[BLANK] += 1
            return line
        for pattern in self._patterns:
            if found := pattern.fullmatch(text):
                return self._view(line, found.groupdict())
        return self._malformed(line)

    def _view(self, line: bytes, fields: dict[str, str]) -> bytes | None:
        if fields["status"] not in self.rules.statuses:
            self.counts["left out: another status"] += 1
            return None
        request = _TARGET.fullmatch(_unescape(fields["request"]))
        moment = _iso(fields)
        if not request or moment is None:
            return self._malformed(line)
        target = request[2].partition("#")[0]
        path = target.partition("?")[0]
        user = self._user_of(fields)
        if why := self._why_not(request[1], path, fields.get("http_user_agent", ""), user):
            self.counts[f"left out: {why}"] += 1
            return None
        self.counts["without a user, rejected" if user in _NONE else PAGE_VIEWS] += 1
        url = json.dumps(target if self.rules.keep_query else path)
        identity = "null" if user in _NONE else self._id(user)
        view = f'{{"ts": "{moment}", "url": {url}, "environment": {self._environment}, "user_id": {identity}}}\n'
        return view.encode()

    def _why_not(self, method: str, path: str, agent: str, user: str) -> str | None:
        """Why a request that was answered is no page view of a person."""
        if method not in self.rules.methods:
            return "another method"
        if (self._exclude and self._exclude.search(path)) or not self._only.search(path):
            return "no page"
        if self._is_bot and self._is_bot(_unescape(agent[:_LONGEST_AGENT])):
            return "a bot"
        return "nobody" if self.rules.drop_anonymous and user in _NONE else None

    def _user_of(self, fields: dict[str, str]) -> str:
        if self._user in fields:
            return fields[self._user]
        for part in _unescape(fields["http_cookie"]).split(";"):
            name, _, value = part.strip().partition("=")
            if name == self.rules.cookie:
                return value
        return ""

    def _digest(self, user: str) -> int:
        kind = self.rules.user_from.encode()
        digest = hmac.digest(self.rules.key, kind + b"\0" + user.encode(), hashlib.sha256)
        return int.from_bytes(digest[:8], "big") >> 1

    def _malformed(self, line: bytes) -> bytes:
        self.counts[MALFORMED] += 1
        # A line that is an object would be taken for a page view. As a JSON string it is none.
        if line.lstrip().startswith(b"{"):
            line = json.dumps(line.decode(errors="backslashreplace").rstrip("\r\n")).encode()
        return line if line.endswith(b"\n") else line + b"\n"


def _bots() -> Callable[[str], bool]:
    from crawlerdetect import CrawlerDetect

    detector = CrawlerDetect()
    return lambda agent: bool(detector.isCrawler(agent))


def _unescape(text: str) -> str:
    r"""A field as it was sent: ``\xHH`` are bytes of UTF-8, and of quotes and backslashes the backslash goes."""
    if "\\" not in text:
        return text
    escaped = text.encode().decode("latin-1")
    return (
        _ESCAPE.sub(lambda found: found[2] or chr(int(found[1], 16)), escaped)
        .encode("latin-1")
        .decode(errors="replace")
    )


def _iso(fields: dict[str, str]) -> str | None:
    """The moment of a request in ISO 8601; None if it is none."""
    if "time_local" not in fields:
        text = fields["time_iso8601"]
    elif (found := _TIME_LOCAL.fullmatch(fields["time_local"])) and found[2] in _MONTHS:
        text = f"{found[3]}-{_MONTHS[found[2]]}-{found[1]}T{found[4]}{found[5]}:{found[6]}"
    else:
        return None
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return None
    return text

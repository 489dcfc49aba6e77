"""Every setting of the platform: read from the environment once, checked, and typed.

A wrong value raises :class:`SettingsError`, which names the variable, the value (never a password)
and what would be right. Nothing here connects to anything.
"""

import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

PREFIX = "USER_PIPELINE_"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]")
_ODD_PREFIX = re.compile(r"[\x00-\x1f\x7f]|(?:^|/)\.{0,2}(?:/|$)")
_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?)?B", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_UNITS = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
ENGINES = ("duckdb",)


class SettingsError(ValueError):
    """A setting has a value that cannot be used."""

    def __init__(self, variable: str, value: str, expected: str) -> None:
        super().__init__(f"{variable}={hide_password(value)!r} cannot be used: expected {expected}.")
        self.variable = variable


@dataclass(frozen=True, slots=True)
class Location:
    """Where objects live: a directory, or a bucket with an optional prefix.

    Attributes:
        variable: the setting it came from, named in every error about it.
        url: ``s3://bucket[/prefix]``, or the absolute path of a directory.
    """

    variable: str
    url: str

    @property
    def is_s3(self) -> bool:
        """Whether it is a bucket rather than a directory."""
        return self.url.startswith("s3://")

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True, slots=True)
class Database:
    """A Postgres database.

    Attributes:
        variable: the setting it came from, named in every error about it.
        name: the database of the embedded server that is used when ``url`` is None.
        url: the ``postgresql://`` URL as given, or None for the embedded server.
    """

    variable: str
    name: str
    url: str | None

    def __repr__(self) -> str:
        where = hide_password(self.url) if self.url else f"embedded {self.name!r}"
        return f"Database({self.variable}, {where})"


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where alerts are posted. Whoever knows the whole URL may post there, so only its host is ever shown.

    Attributes:
        variable: the setting it came from.
        url: the ``http(s)://`` URL.
    """

    variable: str
    url: str = field(repr=False)

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/***"

    def __repr__(self) -> str:
        return f"Webhook({self.variable}, {self})"


@dataclass(frozen=True, slots=True)
class ObjectLimits:
    """What one object of the source may hold; beyond it the object is broken.

    Objects are untrusted: a few kilobytes of ``.gz`` can become as many gigabytes.

    Attributes:
        size: bytes, once it is decompressed.
        ratio: how many times its stored size that may be.
        lines: lines, blank ones included.
        rejects: rejected lines.
    """

    size: int = 50 * 10**9
    ratio: int = 200
    lines: int = 100_000_000
    rejects: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings, resolved; ``docs`` for each are in the README."""

    source: Location
    lake: Location
    staging: Database
    analytics: Database
    dagster: Database
    start_date: date
    engine: str
    memory_limit: str
    scratch_dir: Path
    data_dir: Path
    max_reject_share: float
    object_limits: ObjectLimits
    recommendation_days: int
    alert_webhook: Webhook | None
    ui_url: str | None
    ui_hosts: tuple[str, ...]

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Read and check every setting.

        Args:
            environment: variables by name; an empty value counts as unset.

        Raises:
            SettingsError: a value cannot be used.
        """
        read = _Reader(environment)
        data_dir = read.directory("DATA_DIR", Path("data"))
        limits = ObjectLimits()
        return cls(
            source=read.location("SOURCE_URL", data_dir / "source"),
            lake=read.location("LAKE_URL", data_dir / "lake"),
            staging=read.database(PREFIX + "STAGING_URL", "staging"),
            analytics=read.database(PREFIX + "ANALYTICS_URL", "analytics"),
            dagster=read.database("DAGSTER_POSTGRES_URL", "dagster"),
            start_date=read.start_date("START_DATE", date(2017, 4, 1)),
            engine=read.choice("ENGINE", ENGINES),
            memory_limit=read.memory("MEMORY_LIMIT", "2GB"),
            scratch_dir=read.directory("SCRATCH_DIR", Path(tempfile.gettempdir())),
            data_dir=data_dir,
            max_reject_share=read.share("MAX_REJECT_SHARE", 0.05),
            object_limits=ObjectLimits(
                size=read.size("MAX_OBJECT_SIZE", limits.size),
                ratio=read.count("MAX_COMPRESSION_RATIO", limits.ratio),
                lines=read.count("MAX_OBJECT_LINES", limits.lines),
                rejects=read.count("MAX_OBJECT_REJECTS", limits.rejects),
            ),
            recommendation_days=read.days("RECOMMENDATION_DAYS", 90),
            alert_webhook=read.webhook("ALERT_WEBHOOK_URL"),
            ui_url=read.ui_url("UI_URL"),
            ui_hosts=read.hosts("UI_HOSTS"),
        )

    @property
    def uses_embedded_postgres(self) -> bool:
        """Whether any database is left to the embedded server."""
        return any(database.url is None for database in (self.staging, self.analytics, self.dagster))

    @property
    def memory_limit_bytes(self) -> int:
        """``memory_limit`` in bytes."""
        return _parse_bytes(self.memory_limit)


@cache
def current() -> Settings:
    """The settings of this process, read from its environment the first time they are asked for."""
    return Settings.from_environment()


def hide_password(url: str) -> str:
    """``url`` with ``***`` for its password, wherever libpq accepts one: safe to print."""
    # Not parsed: a URL that cannot be parsed must not show its password either.
    url = re.sub(r"(://[^:/@]*:).*@", r"\1***@", url, flags=re.DOTALL)
    return re.sub(r"([?&](?:ssl)?password=)[^&]*", r"\1***", url)


def host(text: str) -> str | None:
    """A host name or an IP address, written so that two can be compared; None if it is neither.

    Without the brackets of an IPv6 address and without the dot that may end a name.
    """
    text = text.lower().removesuffix(".")
    try:
        return str(ip_address(text.removeprefix("[").removesuffix("]")))
    except ValueError:
        return text if _HOST.fullmatch(text) else None


def _parse_bytes(value: str) -> int:
    match = _BYTES.fullmatch(value.strip())
    if match is None:
        raise ValueError(value)
    unit = (match[2] or "").lower()
    return int(float(match[1]) * (_BINARY_UNITS.get(unit) or _UNITS[unit]))


@dataclass(frozen=True, slots=True)
class _Reader:
    environment: Mapping[str, str]

    def _get(self, name: str) -> tuple[str, str]:
        variable = PREFIX + name
        return variable, self.environment.get(variable, "").strip()

    def location(self, name: str, default: Path) -> Location:
        variable, value = self._get(name)
        if not value:
            return Location(variable, str(default))
        expected = "s3://bucket[/prefix] or the path of a directory"
        try:
            parts = urlsplit(value)
        except ValueError:
            raise SettingsError(variable, value, expected) from None
        if parts.scheme == "s3":
            if not _BUCKET.fullmatch(parts.netloc):
                raise SettingsError(variable, value, "s3://bucket[/prefix] with a valid bucket name")
            prefix = parts.path.strip("/")
            if _ODD_PREFIX.search(prefix) and prefix:
                raise SettingsError(variable, value, "a prefix without empty, '.' or '..' parts and control characters")
            return Location(variable, f"s3://{parts.netloc}" + (f"/{prefix}" if prefix else ""))
        if "://" in value:
            raise SettingsError(variable, value, expected)
        return Location(variable, str(Path(value).expanduser().absolute()))

    def database(self, variable: str, name: str) -> Database:
        value = self.environment.get(variable, "").strip()
        if not value:
            return Database(variable, name, None)
        expected = "postgresql://user:password@host:port/database"
        try:
            parts = urlsplit(value)
            _ = parts.port
        except ValueError:
            raise SettingsError(variable, "***", expected) from None
        if parts.scheme not in ("postgresql", "postgres") or "/" not in value.split("://", 1)[-1]:
            raise SettingsError(variable, value if "://" in value else "***", expected)
        # SQLAlchemy knows only the long name of the scheme.
        return Database(variable, name, "postgresql" + value[len(parts.scheme) :])

    def directory(self, name: str, default: Path) -> Path:
        variable, value = self._get(name)
        if "://" in value:
            raise SettingsError(variable, value, "the path of a directory")
        path = (Path(value).expanduser() if value else default).absolute()
        if path.exists() and not path.is_dir():
            raise SettingsError(variable, value or str(path), "the path of a directory, and this is a file")
        return path

    def start_date(self, name: str, default: date) -> date:
        variable, value = self._get(name)
        if not value:
            return default
        expected = "a date not after yesterday (UTC), as YYYY-MM-DD"
        if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", value):
            raise SettingsError(variable, value, expected)
        try:
            start = date.fromisoformat(value)
        except ValueError:
            raise SettingsError(variable, value, expected) from None
        if start > datetime.now(UTC).date() - timedelta(days=1):
            raise SettingsError(variable, value, expected)
        return start

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        variable, value = self._get(name)
        if value and value.lower() not in choices:
            raise SettingsError(variable, value, "one of " + ", ".join(choices))
        return value.lower() or choices[0]

    def memory(self, name: str, default: str) -> str:
        variable, value = self._get(name)
        expected = "a size of at least 256MB, such as 2GB or 512MiB"
        try:
            size = _parse_bytes(value or default)
        except ValueError:
            raise SettingsError(variable, value, expected) from None
        if size < 256 * 10**6:
            raise SettingsError(variable, value, expected)
        return value or default

    def size(self, name: str, default: int) -> int:
        variable, value = self._get(name)
        try:
            size = _parse_bytes(value) if value else default
        except ValueError:
            size = 0
        if not size:
            raise SettingsError(variable, value, "a size above 0, such as 50GB or 512MiB")
        return size

    def count(self, name: str, default: int) -> int:
        variable, value = self._get(name)
        count = int(value) if re.fullmatch(r"[0-9]{1,15}", value) else 0
        if value and not count:
            raise SettingsError(variable, value, f"a whole number from 1, such as {default}")
        return count or default

    def share(self, name: str, default: float) -> float:
        variable, value = self._get(name)
        try:
            share = float(value) if value else default
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            raise SettingsError(variable, value, "a share between 0 and 1, such as 0.05")
        return share

    def days(self, name: str, default: int) -> int:
        variable, value = self._get(name)
        days = int(value) if re.fullmatch(r"[0-9]{1,4}", value) else 0
        if value and not days:
            raise SettingsError(variable, value, "a number of days from 1 to 9999, such as 90")
        return days or default

    def webhook(self, name: str) -> Webhook | None:
        variable, value = self._get(name)
        if value and not _is_http(value):
            raise SettingsError(variable, "***", "http://host/… or https://host/…")
        return Webhook(variable, value) if value else None

    def ui_url(self, name: str) -> str | None:
        variable, value = self._get(name)
        # It goes into every alert, and a password with it.
        if value and (not _is_http(value) or set("@?#") & set(value) or not host(urlsplit(value).hostname or "")):
            expected = (
                "the address of the web server without user, password or query, such as https://dagster.example.com"
            )
            raise SettingsError(variable, value, expected)
        return value.rstrip("/") or None

    def hosts(self, name: str) -> tuple[str, ...]:
        variable, value = self._get(name)
        hosts = []
        for part in filter(None, map(str.strip, value.split(","))):
            if (found := host(part)) is None:
                expected = "host names and IP addresses, without scheme or port, such as dagster.internal,10.0.0.5"
                raise SettingsError(variable, value, expected)
            hosts.append(found)
        return tuple(hosts)


def _is_http(value: str) -> bool:
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and re.fullmatch(r"[!-~]+", value) is not None

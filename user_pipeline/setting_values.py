"""What a setting can be, and how it is read from the text of a variable.

The functions ``to_...`` raise :class:`ValueError` whose message says what would be right, in the words that follow
"expected".
"""

import re
import shlex
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import SecretStr

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]")
_ODD_PREFIX = re.compile(r"[\x00-\x1f\x7f]|(?:^|/)\.{0,2}(?:/|$)")
_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")

_OURS = ("USER_PIPELINE_", "DAGSTER_", "AWS_", "PG")
"""Prefixes of variables that only the pipeline may read."""
SHORTEST_KEY = 16
"""How many characters the key of user ids has at least."""


class SecretValueError(ValueError):
    """A wrong value that must not be shown: nobody can tell which part of it is the secret."""


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
    url: SecretStr | None


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where alerts are posted. The URL is a secret: with it one can post there. So only its host is shown.

    Attributes:
        url: the ``http(s)://`` URL.
    """

    url: SecretStr

    def __str__(self) -> str:
        parts = urlsplit(self.url.get_secret_value())
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/***"


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

    size: int
    ratio: int
    lines: int
    rejects: int


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


def is_http(value: str) -> bool:
    """Whether it is an http(s) URL with a host, of printable characters."""
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and re.fullmatch(r"[!-~]+", value) is not None


def to_location(value: str, variable: str) -> Location:
    """A bucket with an optional prefix, or a directory.

    Args:
        value: ``s3://bucket[/prefix]`` or the path of a directory.
        variable: the setting.
    """
    expected = "s3://bucket[/prefix] or the path of a directory"
    try:
        parts = urlsplit(value)
    except ValueError:
        raise ValueError(expected) from None
    if parts.scheme == "s3":
        if not _BUCKET.fullmatch(parts.netloc):
            raise ValueError("s3://bucket[/prefix] with a valid bucket name")
        prefix = parts.path.strip("/")
        if _ODD_PREFIX.search(prefix) and prefix:
            raise ValueError("a prefix without empty, '.' or '..' parts and control characters")
        return Location(variable, f"s3://{parts.netloc}" + (f"/{prefix}" if prefix else ""))
    if "://" in value:
        raise ValueError(expected)
    return Location(variable, str(Path(value).expanduser().absolute()))


def to_database(value: str, variable: str, name: str) -> Database:
    """A Postgres database; the embedded server's if the value is empty.

    Args:
        value: a ``postgresql://`` URL.
        variable: the setting.
        name: of the database on the embedded server.
    """
    if not value:
        return Database(variable, name, None)
    expected = "postgresql://user:password@host:port/database"
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        raise SecretValueError(expected) from None
    if parts.scheme not in ("postgresql", "postgres") or "/" not in value.split("://", 1)[-1]:
        raise (ValueError if "://" in value else SecretValueError)(expected)
    # SQLAlchemy knows only the long name of the scheme.
    return Database(variable, name, SecretStr("postgresql" + value[len(parts.scheme) :]))


def to_queue(value: str) -> str | None:
    """The URL of an SQS queue; None if it is empty."""
    if value and (not is_http(value) or set("@?#") & set(value) or not urlsplit(value).path.strip("/")):
        raise ValueError("the URL of an SQS queue, such as https://sqs.eu-west-1.amazonaws.com/123456789012/logs")
    return value or None


def to_expression(value: str) -> str | None:
    """A regular expression that compiles; None if it is empty."""
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(rf"a regular expression, such as ^/products/\d+/$ ({error})") from None
    return value or None


def to_kept_days(value: str) -> int | None:
    """How many days are kept; None for all."""
    if value and not (re.fullmatch("[0-9]{1,5}", value) and int(value)):
        raise ValueError("a number of days from 1 to 99999, such as 400; unset, all are kept")
    return int(value) if value else None


def to_command(value: str) -> str | None:
    """A program and its arguments, quoted as for a shell; None if it is empty."""
    try:
        words = shlex.split(value)
    except ValueError as error:
        raise ValueError(f"a program and its arguments, quoted as for a shell ({error})") from None
    if value and (not words or not words[0] or "\0" in value):
        raise ValueError("a program and its arguments, quoted as for a shell")
    return value or None


def to_names(value: str) -> tuple[str, ...]:
    """Names of variables that are not the pipeline's own."""
    names = tuple(filter(None, map(str.strip, value.split(","))))
    if not all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) for name in names):
        raise ValueError("names of variables, separated by commas, such as PATH,LANG,TZ")
    if any(name.upper().startswith(_OURS) for name in names):
        raise ValueError(f"variables whose names do not begin with {', '.join(_OURS)}: those are the pipeline's alone")
    return names


def to_remote(value: str) -> SecretStr | None:
    """The address of a Spark Connect server, which may hold a token."""
    if not value:
        return None
    try:
        parts = urlsplit(value)
        is_right = parts.scheme == "sc" and host(parts.hostname or "") and parts.port != 0
    except ValueError:
        is_right = False
    if not is_right or "@" in parts.netloc or not re.fullmatch(r"/?|/;[!-~]+", parts.path) or parts.query:
        raise SecretValueError("sc://host:15002, or sc://host:15002/;use_ssl=true;token=…")
    return SecretStr(value)


def to_key(value: str) -> SecretStr | None:
    """A secret that is long enough; None if it is empty."""
    if value and len(value) < SHORTEST_KEY:
        raise SecretValueError(f"at least {SHORTEST_KEY} characters, such as `openssl rand -hex 32` gives")
    return SecretStr(value) if value else None


def to_webhook(value: str) -> Webhook | None:
    """An address that is a secret as a whole; None if it is empty."""
    if value and not is_http(value):
        raise SecretValueError("http://host/… or https://host/…")
    return Webhook(SecretStr(value)) if value else None


def to_address(value: str) -> str | None:
    """An address without secrets; None if it is empty."""
    # It goes into every alert, and a password with it.
    if value and (not is_http(value) or set("@?#") & set(value) or not host(urlsplit(value).hostname or "")):
        raise ValueError(
            "the address of the web server without user, password or query, such as https://dagster.example.com"
        )
    return value.rstrip("/") or None


def to_hosts(value: str) -> tuple[str, ...]:
    """Host names and IP addresses, each written so that two can be compared."""
    hosts = [host(part) for part in map(str.strip, value.split(",")) if part]
    if None in hosts:
        raise ValueError("host names and IP addresses, without scheme or port, such as dagster.internal,10.0.0.5")
    return tuple(filter(None, hosts))

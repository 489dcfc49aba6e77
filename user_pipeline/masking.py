"""Keep people's e-mail addresses and the platform's secrets out of what is shown, logged or sent."""

import os
import re
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import SecretStr

from user_pipeline import settings
from user_pipeline.setting_values import Database, Webhook
from user_pipeline.settings import Settings, SettingsError

# Whatever the quoting around it; percent-encoded too, as addresses stand in urls. It is tried once for each run of
# characters, at its beginning: a search from every character of a long run would take quadratic time.
_EMAIL = re.compile(r"(?<![^\s\"<>(),;:])[^\s\"<>(),;:]+(?:@|%40)[^\s\"<>(),;:]+")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
# What S3 repeats of a request it refuses, the session token among it, in clear and in hexadecimal.
_REPEATED = re.compile(
    r"<(StringToSign(?:Bytes)?|CanonicalRequest(?:Bytes)?|SignatureProvided|AWSAccessKeyId|Token-\d+)>"
    r".*?(?:</\1>|\Z)",
    re.DOTALL,
)
_SECRET_VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SSE_CUSTOMER_KEY_BASE64",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "PGPASSWORD",
)
# What the address of a Spark Connect server holds.
_TOKEN = re.compile(r"^sc://.*[;/](?:token=|authorization=(?:Bearer%20)?)([^;]+)", re.IGNORECASE)
_SHORTEST_SECRET = 4
_LOOKED_AT = 400
"""How many characters beyond those shown are searched for an address, which is only found with its @."""


def mask_emails(text: str) -> str:
    """``text`` with ``***`` for everything that looks like an e-mail address."""
    return _EMAIL.sub("***", text)


def shorten(text: str, longest: int) -> str:
    """The beginning of a text, e-mail addresses masked, with ``…`` at its end if there is more.

    A value that was delivered may be megabytes long.

    Args:
        text: any text.
        longest: how many characters are kept at most.
    """
    shown = mask_emails(text[: longest + _LOOKED_AT])
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def mask_key(key: str) -> str:
    """An object's key, printable, with ``***`` for each folder or name that looks like an e-mail address."""
    return printable("/".join(mask_emails(part) for part in key.split("/")))


def printable(text: str) -> str:
    r"""A text on one line, with escapes such as ``\n`` for line ends, terminal controls and marks of text direction.

    Object keys are not ours: they may hold anything.
    """
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def mask(text: str, current: Settings | None = None) -> str:
    """``text`` with ``***`` for e-mail addresses and for every secret among the settings and AWS variables.

    Our own texts hold no secrets. This is for messages of S3, drivers and the engine, and for what leaves the platform.
    """
    text = _REPEATED.sub(r"<\1>***</\1>", text)
    for secret in sorted(_secrets(current), key=len, reverse=True):
        text = text.replace(secret, "***")
    return mask_emails(text)


def _secrets(current: Settings | None) -> set[str]:
    found = {os.environ.get(name, "") for name in _SECRET_VARIABLES}
    try:
        current = current or settings.current()
    except SettingsError:  # its message is what is masked, and holds no secret
        return {secret for secret in found if len(secret) >= _SHORTEST_SECRET}
    for _, setting in current:
        if isinstance(setting, SecretStr):
            found |= {setting.get_secret_value(), *_TOKEN.findall(setting.get_secret_value())}
        if isinstance(setting, Database | Webhook) and setting.url:
            url = setting.url.get_secret_value()
            parts = urlsplit(url)
            found |= {parts.password or "", unquote(parts.password or "")}
            query = parse_qs(parts.query)
            found |= {value for name in ("password", "sslpassword") for value in query.get(name, [])}
            if isinstance(setting, Webhook):
                found |= {url, parts.path, parts.query}
    # Shorter values are skipped: masking them garbles ordinary text.
    return {secret for secret in found if len(secret) >= _SHORTEST_SECRET}

"""Keep people's e-mail addresses and the platform's secrets out of what is shown or sent."""

import os
import re
from urllib.parse import parse_qs, unquote, urlsplit

from user_pipeline.settings import Settings

# Whatever the quoting around it; percent-encoded too, as addresses stand in urls.
_EMAIL = re.compile(r"[^\s\"<>(),;:]+(?:@|%40)[^\s\"<>(),;:]+", re.IGNORECASE)
_SECRET_VARIABLES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "PGPASSWORD")
_SHORTEST_SECRET = 4


def mask_emails(text: str) -> str:
    """``text`` with ``***`` for everything that looks like an e-mail address."""
    return _EMAIL.sub("***", text)


def mask(text: str, settings: Settings) -> str:
    """``text`` with ``***`` for e-mail addresses and for every secret among the settings and AWS variables.

    Nothing should hold a secret to begin with; this is for what leaves the platform.
    """
    for secret in sorted(_secrets(settings), key=len, reverse=True):
        text = text.replace(secret, "***")
    return mask_emails(text)


def _secrets(settings: Settings) -> set[str]:
    found = {os.environ.get(name, "") for name in _SECRET_VARIABLES}
    for database in (settings.staging, settings.analytics, settings.dagster):
        parts = urlsplit(database.url or "")
        found |= {parts.password or "", unquote(parts.password or "")}
        query = parse_qs(parts.query)
        found |= {value for name in ("password", "sslpassword") for value in query.get(name, [])}
    if settings.alert_webhook:
        parts = urlsplit(settings.alert_webhook.url)
        found |= {settings.alert_webhook.url, parts.path, parts.query, parts.password or ""}
    # A shorter one would make a riddle of every sentence and is no secret.
    return {secret for secret in found if len(secret) >= _SHORTEST_SECRET}

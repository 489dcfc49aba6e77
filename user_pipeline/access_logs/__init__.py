"""Access logs of web servers as page views: lines in, lines of the feed out."""

RULES = "1"
"""Whoever changes what becomes of a line raises it."""


def version() -> str:
    """Tells these rules, and the list of bots that goes with them, from any others."""
    from importlib.metadata import version as version_of

    return f"{RULES}:{version_of('crawlerdetect')}"

"""Access logs of web servers as page views: lines in, lines of the feed out."""

RULES = "1"
"""The version of the rules. It is raised when another line becomes a page view, or becomes another one."""


def version() -> str:
    """Tells these rules, and the list of bots that goes with them, from any others."""
    from importlib.metadata import version as version_of

    return f"{RULES}:{version_of('crawlerdetect')}"

"""The two feeds: where they lie, what their lines look like, and how a line becomes a row."""

from dataclasses import dataclass
from importlib.resources import files

from user_pipeline.email_address import EMAIL_PATTERN
from user_pipeline.resources.storage import SOURCE_FOLDERS

REASONS = (
    "suppressed_user",
    "malformed",
    "invalid_timestamp",
    "out_of_range",
    "missing_user_id",
    "invalid_user_id",
    "missing_url",
    "invalid_email",
    "missing_environment",
    "past_retention",
)
"""Why a line is no usable row; a line with several faults is rejected for the first of these. Of a line that is
``suppressed_user`` or ``past_retention`` the text is not kept."""


@dataclass(frozen=True, slots=True)
class Feed:
    """One kind of log.

    Attributes:
        name: the feed's name in the lake and in ``rejected_lines``.
        folder: its folder in the source.
        event_time: the column that decides a row's day.
        columns: its own columns, in the order of its files.
        quoted_newlines: whether a quoted field may go on over several lines (CSV).
    """

    name: str
    folder: str
    event_time: str
    columns: tuple[str, ...]
    quoted_newlines: bool

    def parse_sql(self) -> str:
        """The DuckDB query that turns the relation ``lines`` into rows and rejects; it needs :func:`parse_macros`.

        ``lines`` has ``object`` int, ``line`` bigint, ``text`` varchar, ``broken`` boolean (not UTF-8, or too long) and
        ``size`` bigint (bytes). The result has ``object``, ``line``, the feed's own columns, ``reason`` (null for a
        row, one of :data:`REASONS`, or ``header``), ``rescued`` (a row's further keys or fields as a JSON object; null
        where there are none) and ``text`` (null for a row; of a long line the first 64 KiB and its size).
        """
        return files(__package__).joinpath(f"{self.name}.sql").read_text(encoding="utf-8")


def parse_macros() -> str:
    """The statements that define what :meth:`Feed.parse_sql` uses."""
    macros = files(__package__).joinpath("macros.sql").read_text(encoding="utf-8")
    return macros.replace("{{email}}", EMAIL_PATTERN.replace("'", "''"))


USER_UPDATES = Feed(
    name="user_updates",
    folder=SOURCE_FOLDERS["user_updates"],
    event_time="updated_at",
    columns=("updated_at", "user_id", "email", "name", "environment"),
    quoted_newlines=True,
)
PAGE_VIEWS = Feed(
    name="page_views",
    folder=SOURCE_FOLDERS["page_views"],
    event_time="ts",
    columns=("ts", "url", "environment", "user_id"),
    quoted_newlines=False,
)
FEEDS = (USER_UPDATES, PAGE_VIEWS)

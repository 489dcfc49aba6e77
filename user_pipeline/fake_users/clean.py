"""Which users are kept: those with a last name and a well-formed e-mail address."""

from dataclasses import dataclass
from datetime import datetime

import narwhals as nw
from narwhals.typing import IntoDataFrameT

from user_pipeline.email_address import EMAIL_PATTERN

# Everything Unicode calls white space; what a backend strips when not told differs between them.
_WHITE_SPACE = "".join(filter(str.isspace, map(chr, range(0x3001))))


@dataclass(frozen=True, slots=True)
class Removed:
    """Why users were removed.

    The reasons count every user they apply to, so the users removed are
    ``missing_last_name + missing_email + invalid_email - both``.

    Attributes:
        missing_last_name: last name empty or blank.
        missing_email: e-mail address empty or blank.
        invalid_email: e-mail address present and not well-formed.
        both: last name missing, and e-mail address missing or invalid.
    """

    missing_last_name: int
    missing_email: int
    invalid_email: int
    both: int

    @property
    def total(self) -> int:
        """Users removed."""
        return self.missing_last_name + self.missing_email + self.invalid_email - self.both


def clean(raw: IntoDataFrameT, processed_at: datetime) -> tuple[IntoDataFrameT, Removed]:
    """Keep the users with a non-blank last name and a well-formed e-mail address.

    Args:
        raw: at least the columns ``last_name`` and ``email`` (string, empty when missing).
        processed_at: time to stamp the rows with.

    Returns:
        The rows kept, unchanged and in order, plus ``processed_at`` (string, ``YYYY-MM-DD HH:MM:SS``);
        and what was removed.
    """
    no_last_name = _is_blank("last_name")
    no_email = _is_blank("email")
    bad_email = ~no_email & ~nw.col("email").str.contains(EMAIL_PATTERN)
    frame = nw.from_native(raw, eager_only=True)
    counts = frame.select(
        missing_last_name=no_last_name.sum(),
        missing_email=no_email.sum(),
        invalid_email=bad_email.sum(),
        both=(no_last_name & (no_email | bad_email)).sum(),
    ).row(0)
    kept = frame.filter(~(no_last_name | no_email | bad_email)).with_columns(
        processed_at=nw.lit(f"{processed_at:%Y-%m-%d %H:%M:%S}")
    )
    return kept.to_native(), Removed(*(int(count or 0) for count in counts))


def _is_blank(column: str) -> nw.Expr:
    return nw.col(column).str.strip_chars(_WHITE_SPACE) == ""

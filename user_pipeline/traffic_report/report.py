"""What a traffic report says, as values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from statistics import fmean

DAYS_SHOWN = 14
"""The day and the thirteen before it."""
DAYS_COMPARED = 7
"""What is usual is the mean of so many days before the day."""
TOP_PAGES = 10
RISING_PAGES = 5


@dataclass(frozen=True, slots=True)
class Traffic:
    """One day.

    Attributes:
        views: distinct page views in production.
        users: different users who viewed a page.
        pages: different pages that were viewed.
        new_users: users who had never viewed a page before.
        new_pages: pages that nobody had ever viewed before.
    """

    views: int
    users: int
    pages: int
    new_users: int
    new_pages: int

    @property
    def returning_users(self) -> int:
        """Users who had viewed a page on an earlier day."""
        return self.users - self.new_users


@dataclass(frozen=True, slots=True)
class Page:
    """A page on the day; ``usual`` is its views a day in the days before, in the mean."""

    url: str
    views: int
    viewers: int
    usual: float


@dataclass(frozen=True, slots=True)
class Back:
    """How many of the users of earlier days came back."""

    before: int
    back: int

    @property
    def share(self) -> float | None:
        """The share; None of nobody."""
        return self.back / self.before if self.before else None


@dataclass(frozen=True, slots=True)
class FeedAccount:
    """Where the lines of a feed went.

    Attributes:
        feed: its name.
        objects: objects that brought rows for the day.
        lines: of these objects: rows, rejected, blank and header lines.
        rows: of any day, among these lines.
        rejected: lines by reason, the most frequent first.
        blank: lines without text, and header lines.
        delivered: rows of the day: kept, duplicates and other environments.
        kept: rows of the day in the cleaned table.
        duplicates: rows of the day that were delivered more than once.
        other_environments: rows of the day from elsewhere than production.
        further: rows of the day with keys or columns that the feed does not have.
        new_fields: names of those seen for the first time.
    """

    feed: str
    objects: int
    lines: int
    rows: int
    rejected: Mapping[str, int]
    blank: int
    delivered: int
    kept: int
    duplicates: int
    other_environments: int
    further: int
    new_fields: tuple[str, ...]

    @property
    def rejected_lines(self) -> int:
        """Of all reasons."""
        return sum(self.rejected.values())


@dataclass(frozen=True, slots=True)
class Quality:
    """How good the recommendations of the day before were; shares are null without users."""

    users: int
    hit_rate: float | None
    hit_rate_low: float | None
    hit_rate_high: float | None
    popularity_hit_rate: float | None
    trend_hit_rate: float | None
    gain: float | None
    gain_low: float | None
    gain_high: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """A day beside the days before it.

    Attributes:
        day: the day.
        made_at: when the report was made.
        days: the last :data:`DAYS_SHOWN`, the day itself last; None for one that was not materialized.
        back_after_a_day: of the users of the day before.
        back_after_a_week: of the users of the seven days before.
        top: the pages viewed most.
        rising: those that are furthest above what is usual for them.
        min_viewers: pages with fewer viewers on the day are not named.
        feeds: where the lines went.
        quality: of the same days; None where nothing was measured.
    """

    day: date
    made_at: datetime
    days: Mapping[date, Traffic | None]
    back_after_a_day: Back
    back_after_a_week: Back
    top: Sequence[Page]
    rising: Sequence[Page]
    min_viewers: int
    feeds: Sequence[FeedAccount]
    quality: Mapping[date, Quality | None]

    @property
    def today(self) -> Traffic:
        """The day itself."""
        traffic = self.days[self.day]
        if traffic is None:
            raise ValueError(f"{self.day} has no traffic")
        return traffic

    @property
    def recommendations(self) -> Quality | None:
        """How good they were on the day."""
        return self.quality.get(self.day)

    def before(self, name: str) -> int | None:
        """A number of the day before; None if that was not materialized."""
        *_, yesterday, _ = self.days.values()
        return None if yesterday is None else int(getattr(yesterday, name))

    def usual(self, name: str) -> float | None:
        """A number as it usually is: the mean of the days before that are there; None if none is."""
        known = [getattr(day, name) for day in list(self.days.values())[-1 - DAYS_COMPARED : -1] if day is not None]
        return fmean(known) if known else None

"""What the arrival of objects calls for, worked out from what is known: no store, no database, no clock.

Objects that are not in the catalog call for a look at the source. Days whose rows changed in the catalog call
for a run: once for each change, a run for days that follow each other, and none for a day that a run has in
hand or will have anyway.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

_GRACE = timedelta(hours=1)
"""A day that just ended is the daily schedule's; after this it is anyone's."""


@dataclass(frozen=True, slots=True)
class Position:
    """How far the changes of one catalog were looked at.

    Attributes:
        catalog: the catalog's id.
        version: its changes up to this version were looked at.
        waiting: changes up to then that were not called for yet, by day.
    """

    catalog: str = ""
    version: int = 0
    waiting: Mapping[date, int] = field(default_factory=dict)

    def since(self, catalog_id: str) -> "Position":
        """This position, or the very beginning if it is one of another catalog."""
        return self if self.catalog == catalog_id else Position(catalog_id)

    def to_json(self) -> dict[str, object]:
        """As plain values."""
        waiting = {day.isoformat(): version for day, version in self.waiting.items()}
        return {"catalog": self.catalog, "version": self.version, "waiting": waiting}

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> "Position":
        """The opposite of :meth:`to_json`; the beginning for values that are none of its own."""
        match values:
            case {"catalog": str(catalog), "version": int(version), "waiting": dict(waiting)}:
                return cls(catalog, version, {date.fromisoformat(day): change for day, change in waiting.items()})
        return cls()


@dataclass(frozen=True, slots=True)
class Call:
    """Days that follow each other and are to be redone in one run.

    Attributes:
        first: the first day.
        last: the last day.
        key: the same for the same changes of the same days, and for no others.
    """

    first: date
    last: date
    key: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What some changes call for.

    Attributes:
        calls: the runs to request now.
        waiting: changes to be looked at again, by feed and day.
    """

    calls: Sequence[Call]
    waiting: Mapping[str, Mapping[date, int]]


def plan(
    changes: Mapping[str, Mapping[date, int]],
    *,
    is_done: Callable[[str, date, int], bool],
    busy: Iterable[tuple[date, date]],
    now: datetime,
    identity: str,
    most: int,
) -> Plan:
    """Decide which changed days are to be redone now.

    Args:
        changes: by feed and day, the catalog version of the last change.
        is_done: whether a feed's day is materialized with a change.
        busy: first and last days of the runs that are queued or going on. Such a run may or may not see the change:
            what it left is called for when it has ended.
        now: days that end after an hour before this moment wait.
        identity: tells these catalogs from others; part of the calls' keys.
        most: so many calls at once; the other days wait.

    Returns:
        the calls, oldest days first, and what waits.
    """
    open_changes = {
        feed: {day: version for day, version in days.items() if not is_done(feed, day, version)}
        for feed, days in changes.items()
    }
    ended = (now.astimezone(UTC) - _GRACE).date()
    runs = list(busy)
    due = sorted(
        day
        for day in set().union(*open_changes.values())
        if day < ended and not any(first <= day <= last for first, last in runs)
    )
    ranges = _ranges(due)[:most]
    called = {day for first, last in ranges for day in _days(first, last)}
    calls = []
    for first, last in ranges:
        seen = [
            (feed, day.isoformat(), version)
            for feed, days in sorted(open_changes.items())
            for day, version in sorted(days.items())
            if first <= day <= last
        ]
        digest = hashlib.sha256(repr((identity, seen)).encode()).hexdigest()[:16]
        calls.append(Call(first, last, f"{first}...{last}:{digest}"))
    waiting = {
        feed: {day: version for day, version in days.items() if day not in called}
        for feed, days in open_changes.items()
    }
    return Plan(calls, waiting)


def may_look_again(ended: Sequence[datetime], now: datetime) -> bool:
    """Whether objects that runs have looked for in vain may be looked for again.

    Args:
        ended: when those runs ended.
        now: this moment.

    Returns:
        whether 1, 2, 4, … minutes, at most a day, have passed since the last of them.
    """
    if not ended:
        return True
    wait = min(timedelta(minutes=2 ** min(len(ended) - 1, 11)), timedelta(days=1))
    return now - max(ended) >= wait


def _ranges(days: Sequence[date]) -> list[tuple[date, date]]:
    """Sorted days as ranges of days that follow each other."""
    ranges: list[tuple[date, date]] = []
    for day in days:
        if ranges and day - ranges[-1][1] == timedelta(days=1):
            ranges[-1] = (ranges[-1][0], day)
        else:
            ranges.append((day, day))
    return ranges


def _days(first: date, last: date) -> list[date]:
    return [first + timedelta(days=n) for n in range((last - first).days + 1)]

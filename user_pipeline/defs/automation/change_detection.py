"""What new objects and changed days call for, worked out from what is known: no store, no database, no clock.

Objects that are not in the manifest call for a look at the source. Days whose rows changed in the manifest call for a
run: once for each change, a run for days that follow each other, and none for a day that is in progress or that a run
will have anyway.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

_GRACE = timedelta(hours=1)
"""A day that just ended is the daily schedule's; after this it is anyone's."""


@dataclass(frozen=True, slots=True)
class SensorCursor:
    """How far the changes of a lake were looked at.

    Attributes:
        lake_id: tells the lake from any other.
        version: changes up to this commit were looked at.
        waiting: changes up to then that were not called for yet, by feed and day.
    """

    lake_id: str = ""
    version: int = 0
    waiting: Mapping[str, Mapping[date, int]] = field(default_factory=dict)

    def since(self, lake_id: str) -> "SensorCursor":
        """This cursor, or the very beginning if it is one of another lake."""
        return self if self.lake_id == lake_id else SensorCursor(lake_id)

    def to_json(self) -> dict[str, object]:
        """As plain values."""
        waiting = {
            feed: {day.isoformat(): version for day, version in days.items()} for feed, days in self.waiting.items()
        }
        return {"lake_id": self.lake_id, "version": self.version, "waiting": waiting}

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> "SensorCursor":
        """The opposite of :meth:`to_json`; the beginning for values that are none of its own."""
        match values:
            case {"lake_id": str(lake_id), "version": int(version), "waiting": dict(waiting)}:
                return cls(
                    lake_id,
                    version,
                    {
                        feed: {date.fromisoformat(day): change for day, change in days.items()}
                        for feed, days in waiting.items()
                    },
                )
        return cls()


@dataclass(frozen=True, slots=True)
class Call:
    """Days that follow each other and are to be materialized again in one run.

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
    in_progress: Iterable[tuple[date, date]],
    now: datetime,
    identity: str,
    most: int,
) -> Plan:
    """Decide which changed days are to be materialized again now.

    Args:
        changes: by feed and day, the commit of the last change.
        is_done: whether a feed's day is materialized with a change.
        in_progress: first and last days of the runs that are queued or going on. Such a run may or may not see the
            change: what it left is called for when it has ended.
        now: days that end after an hour before this moment wait.
        identity: tells this lake from others; part of the calls' keys.
        most: so many calls at once; the other days wait.

    Returns:
        the calls, oldest days first, and what waits.
    """
    open_changes = {
        feed: {day: version for day, version in days.items() if not is_done(feed, day, version)}
        for feed, days in changes.items()
    }
    ended = (now.astimezone(UTC) - _GRACE).date()
    runs = list(in_progress)
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

"""What is known of an object, as the manifest keeps it."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

from user_pipeline.ingest.retirement import PAST_RETENTION
from user_pipeline.ingest.suppression import SUPPRESSED
from user_pipeline.lake.partitions import LakeFile

WITHHELD = (SUPPRESSED, PAST_RETENTION)
"""Reasons for which a line is rejected although it may be a usable row: it must not be kept."""
_QUICK_ATTEMPTS = 4
"""How often an object that cannot be fetched is tried before there is a wait."""
_LONGEST_WAIT = timedelta(days=1)


def object_id(key: str) -> bytes:
    """The first 16 bytes of the SHA-256 of a key: its id in the manifest, as a key may be too long for an index."""
    return hashlib.sha256(key.encode()).digest()[:16]


@dataclass(frozen=True, slots=True)
class Failure:
    """An object's content that could not be fetched.

    Attributes:
        etag: what the store calls that content.
        error: what the store said.
        attempts: how often it was tried.
        retry_at: the sensor asks for no attempt before this moment.
    """

    etag: str
    error: str
    attempts: int
    retry_at: datetime

    @property
    def is_standing(self) -> bool:
        """Whether it failed so often that runs succeed without it."""
        return self.attempts >= _QUICK_ATTEMPTS

    @classmethod
    def after(cls, earlier: "Failure | None", etag: str, error: str, now: datetime) -> "Failure":
        """The next failure: up to the fourth attempt retried at once, then after 1, 2, 4, … hours, at most a day."""
        attempts = earlier.attempts + 1 if earlier and earlier.etag == etag else 1
        late = attempts - _QUICK_ATTEMPTS
        wait = min(timedelta(hours=2 ** min(late, 10)), _LONGEST_WAIT) if late >= 0 else timedelta()
        return cls(etag, error, attempts, now + wait)


@dataclass(frozen=True, slots=True)
class Unfetched:
    """An object that a run could not fetch.

    Attributes:
        key: its path in the source.
        etag: what the listing calls its content.
        last_modified: when the store says it was written.
        size: bytes, as stored.
        error: what the store said.
    """

    key: str
    etag: str
    last_modified: datetime
    size: int
    error: str


@dataclass(frozen=True, slots=True)
class ObjectDay:
    """What an object brought for one day.

    Attributes:
        rows: how many rows, counted in the part file after it was written.
        digest: of those rows: equal for equal rows, whatever their order.
        file: the part file that has them, beside rows of other objects.
    """

    rows: int
    digest: str
    file: LakeFile


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of one object.

    Attributes:
        key: its path in the source.
        etag: what the store calls this content; empty for an object that was never read.
        last_modified: when the store says it was written.
        size: bytes, as stored.
        start_date: the first day that was accepted when it was read; None for an object that was never read.
        filter: the command its bytes went through before they were cut into lines; None for none. With one, line
            numbers are those of its output.
        filter_version: the version of that command.
        error: why it could not be read to its end; None for an object that was. A broken object brings no rows.
        lines: lines in it, counted when it was cut, before any parsing.
        blank: lines with nothing but white space.
        header: lines that repeat the column names.
        rejected: rejected lines by reason.
        rejects_path: the file of the lake that has them; None if there are none.
        days: what it brought, by event date.
        retired_rows: how many rows it brought for days that are past their retention.
        failure: set while the object's content, or its new content, cannot be fetched; everything else then is
            of the content read before (of none, for an object that was never read).
    """

    key: str
    etag: str
    last_modified: datetime
    size: int
    start_date: date | None
    filter: str | None = None
    filter_version: str | None = None
    error: str | None = None
    lines: int = 0
    blank: int = 0
    header: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    rejects_path: str | None = None
    days: Mapping[date, ObjectDay] = field(default_factory=dict)
    retired_rows: int = 0
    failure: Failure | None = None

    @property
    def rows(self) -> int:
        """Usable rows, of all days."""
        return self.retired_rows + sum(brought.rows for brought in self.days.values())

    @property
    def rejects(self) -> int:
        """Rejected lines, for whatever reason."""
        return sum(self.rejected.values())

    @property
    def faulty(self) -> int:
        """Rejected lines that are no usable rows: without those that only must not be kept, see :data:`WITHHELD`."""
        return self.rejects - sum(self.rejected.get(reason, 0) for reason in WITHHELD)

    @property
    def unaccounted(self) -> int:
        """How many lines are neither a row, rejected, blank nor a header; it must be 0."""
        return self.lines - self.rows - self.rejects - self.blank - self.header


@dataclass(frozen=True, slots=True)
class FurtherField:
    """A key or field that rows have beyond the feed's own columns.

    Attributes:
        name: the key; of CSV the name that the object's header gives the field, or its number, from 6.
        lines: how many lines have it.
        source_object: the object of the first of them.
        source_line: its number there.
    """

    name: str
    lines: int
    source_object: str
    source_line: int


@dataclass(frozen=True, slots=True)
class PartFile:
    """A part file that rows of a day are in.

    Attributes:
        file: the file.
        counted: how many of its rows count: all, unless an object was read again since it was written.
    """

    file: LakeFile
    counted: int


@dataclass(frozen=True, slots=True)
class DayParts:
    """Where the rows of a day are.

    Attributes:
        as_of: the newest commit to the staging database when this was so.
        changed: the commit in which the day's rows changed last; 0 for a day that never had any.
        parts: the part files with rows that count.
    """

    as_of: int
    changed: int
    parts: Sequence[PartFile]

    @property
    def rows(self) -> int:
        """How many rows the day has."""
        return sum(part.counted for part in self.parts)


@dataclass(frozen=True, slots=True)
class DayObjects:
    """Which rows of which part files make up a day.

    Attributes:
        as_of: the newest commit to the staging database when this was so.
        objects: the part file and the key of each object that brought rows.
    """

    as_of: int
    objects: Sequence[tuple[str, str]]

"""How the days of a feed arrived: how many of the newly read lines were rejected, and how many rows other days had.

A rejected line has no day. So it counts for the days that its object brought rows for; if it brought none, for
the day on which the object was written and the day before.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from statistics import median
from typing import TYPE_CHECKING, Any

from user_pipeline.ingest.entries import WITHHELD
from user_pipeline.ingest.manifest import Manifest
from user_pipeline.lake.log import write_log
from user_pipeline.lake.registry import begin_commit
from user_pipeline.resources.postgres import literal

if TYPE_CHECKING:
    from user_pipeline.resources.postgres import Transaction

ACCEPTED = "accepted_day"
"""The kind of lines in logs."""
_COMPARED = 14
"""How many days before a day its volume is compared with."""
_FIRST_WEEK = 7
"""With fewer days than this before a day, its volume is not judged."""


@dataclass(frozen=True, slots=True)
class Intake:
    """The lines of a feed that were read for a day since it was accepted last.

    Attributes:
        day: the day.
        lines: how many, blank and header lines left out.
        rejected: how many of them were rejected as no usable rows; without those that only must not be kept.
        worst: the object with most of these rejects, and how many it has.
        as_of: the newest commit to the staging database when this was so.
    """

    day: date
    lines: int
    rejected: int
    worst: tuple[str, int]
    as_of: int


def newly_read(manifest: Manifest, days: Sequence[date]) -> list[Intake]:
    """What was read for some days since they were accepted last; none for a day that nothing was read for."""
    name = literal(manifest.feed.name)
    withheld = " - ".join(f"coalesce((o.rejected ->> '{reason}')::bigint, 0)" for reason in WITHHELD)
    faulty = f"(o.rejects - {withheld})"
    found = manifest.fetch(
        f"""
        with wanted as (
          select d.day, coalesce(a.version, 0) as accepted
          from unnest(array[{", ".join(f"date '{day}'" for day in days)}]) d (day)
          left join pipeline.accepted_days a on a.feed = {name} and a.day = d.day
        ),
        read as (
          select w.day, o.*, {faulty} as faulty from wanted w
          join pipeline.ingested_days b on b.feed = {name} and b.day = w.day and b.rows > 0
          join pipeline.ingested_objects o on o.feed = {name} and o.object_id = b.object_id and o.version > w.accepted
          union all
          select w.day, o.*, {faulty} from pipeline.ingested_objects o
          join wanted w on w.day - (o.last_modified at time zone 'UTC')::date in (0, -1) and o.version > w.accepted
          where o.feed = {name} and {faulty} > 0 and o.rows = 0
        )
        select day, sum(lines - blank - header)::bigint, sum(faulty)::bigint,
          (array_agg(key order by faulty desc, key collate "C"))[1], max(faulty),
          (select max(version) from pipeline.lake_commits)
        from read where error is null group by day order by day
        """
    )
    return [Intake(day, lines, rejected, (key, most), as_of) for day, lines, rejected, key, most, as_of in found]


def accept(manifest: Manifest, versions: Mapping[date, int]) -> None:
    """Note up to which commit what was read for some days is accepted; a later commit noted before stays."""
    if not versions:
        return
    values = ", ".join(f"({literal(manifest.feed.name)}, date '{day}', {version})" for day, version in versions.items())
    with manifest.registry.database.transaction() as transaction:
        transaction.execute(f"{_ACCEPT} values {values} {_LATER}")


def accept_on_purpose(manifest: Manifest, days: Sequence[date], run_id: str) -> None:
    """Accept all that was read for some days until now, however many of the lines were rejected."""
    manifest.open()
    registry, feed = manifest.registry, manifest.feed
    with registry.database.transaction() as transaction:
        version = begin_commit(transaction, f"ingested_{feed.name}", run_id)
        lines = [{"kind": ACCEPTED, "feed": feed.name, "day": day.isoformat(), "version": version} for day in days]
        for line in lines:
            _restore(transaction, line)
        header = {"asset": f"ingested_{feed.name}", "run_id": run_id}
        write_log(registry.storage, registry.name, version, header, lines)


def accepted_lines(transaction: "Transaction") -> list[dict[str, Any]]:
    """The lines of a log for all accepted days."""
    found = transaction.fetch("select feed, day, version from pipeline.accepted_days order by feed, day")
    return [
        {"kind": ACCEPTED, "feed": feed, "day": day.isoformat(), "version": version} for feed, day, version in found
    ]


def restore_accepted(transaction: "Transaction", lines: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Restore the accepted days from lines of a log; the other lines are passed on."""
    for line in lines:
        if line["kind"] == ACCEPTED:
            _restore(transaction, line)
        else:
            yield line


def _restore(transaction: "Transaction", line: Mapping[str, Any]) -> None:
    values = f"({literal(line['feed'])}, {literal(line['day'])}::date, {int(line['version'])})"
    transaction.execute(f"{_ACCEPT} values {values} {_LATER}")


_ACCEPT = "insert into pipeline.accepted_days as a (feed, day, version)"
_LATER = "on conflict (feed, day) do update set version = greatest(a.version, excluded.version)"


@dataclass(frozen=True, slots=True)
class Volume:
    """How many rows a day has, and how many the days before it had.

    Attributes:
        day: the day.
        rows: of all its objects.
        usual: the median of the fourteen days before it, or of as many as there are.
    """

    day: date
    rows: int
    usual: float

    @property
    def problem(self) -> str | None:
        """What is unusual, if anything."""
        if self.usual > 0 and not self.usual / 2 <= self.rows <= 2 * self.usual:
            return f"{self.day}: {self.rows} rows; the median of the days before it is {self.usual:g}"
        return None


def volumes(manifest: Manifest, days: Sequence[date]) -> list[Volume]:
    """The volume of some days; none for a day of the feed's first week."""
    before = timedelta(days=_COMPARED)
    span = [min(days) - before + timedelta(days=n) for n in range((max(days) - min(days) + before).days + 1)]
    rows = manifest.rows(span)
    [(begins,)] = manifest.fetch(
        f"select min(day) from pipeline.ingested_days where feed = {literal(manifest.feed.name)} and rows > 0"
    )
    found = []
    for day in days:
        known = [
            rows[day - timedelta(days=n)] for n in range(1, _COMPARED + 1) if begins and day - timedelta(n) >= begins
        ]
        if len(known) >= _FIRST_WEEK:
            found.append(Volume(day, rows[day], median(known)))
    return found

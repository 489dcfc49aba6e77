"""What became of the lines of the objects that brought rows for a day.

A rejected line has no day. So, as in :mod:`user_pipeline.ingest.intake`, it counts for each day that its object
brought rows for; if it brought none, for the day on which the object was written and the day before.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

from user_pipeline.ingest.manifest import Manifest
from user_pipeline.resources.postgres import literal


@dataclass(frozen=True, slots=True)
class ObjectsOfDay:
    """The objects that brought rows for a day, and those that brought none at all and were written then.

    Attributes:
        objects: how many.
        lines: of all of them; rows, rejected, blank and header lines together.
        rows: of these lines, rows of any day.
        rejected: of these lines, those that are no usable row, by reason.
        blank: of these lines, those without text.
        header: of these lines, those that repeat the names of columns.
        new_fields: names of further keys or columns that were seen for the first time in one of these objects.
    """

    objects: int
    lines: int
    rows: int
    rejected: Mapping[str, int]
    blank: int
    header: int
    new_fields: tuple[str, ...]


def objects_of_day(manifest: Manifest, day: date) -> ObjectsOfDay:
    """Account for the lines of the objects of a day."""
    name = literal(manifest.feed.name)
    of_day = f"""
        with read as (
          select o.* from pipeline.ingested_days b
          join pipeline.ingested_objects o on o.feed = b.feed and o.object_id = b.object_id
          where b.feed = {name} and b.day = '{day}' and b.rows > 0
          union all
          select o.* from pipeline.ingested_objects o
          where o.feed = {name} and o.rejects > 0 and o.rows = 0
            and (o.last_modified at time zone 'UTC')::date - date '{day}' in (0, 1)
        )
    """
    columns = ", ".join(f"coalesce(sum({column}), 0)::bigint" for column in ("lines", "rows", "blank", "header"))
    [(objects, lines, rows, blank, header)] = manifest.fetch(f"{of_day} select count(*), {columns} from read")
    reasons = manifest.fetch(
        f"""
        {of_day}
        select r.reason, sum(r.lines::bigint)::bigint from read
        cross join lateral jsonb_each_text(rejected) r (reason, lines)
        where rejects > 0 group by 1 order by 2 desc, 1
        """
    )
    fields = manifest.fetch(
        f"{of_day} select name from pipeline.further_fields f where feed = {name} "
        'and source_object in (select key from read) order by name collate "C"'
    )
    return ObjectsOfDay(objects, lines, rows, dict(reasons), blank, header, tuple(name for (name,) in fields))

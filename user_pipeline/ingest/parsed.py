"""What an ingest batch parsed: a table of the engine, and how it is written to the lake."""

import uuid
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from datetime import UTC, date, datetime, time, timedelta
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from user_pipeline.ingest.drift import MOST_FURTHER_FIELDS
from user_pipeline.ingest.entries import FurtherField, ObjectDay
from user_pipeline.ingest.feeds import Feed, parse_macros
from user_pipeline.ingest.withheld import Withheld
from user_pipeline.lake.transfer import new_path, put
from user_pipeline.resources.storage import ObjectStorage

if TYPE_CHECKING:
    import pyarrow as pa

    from user_pipeline.engines.base import Engine

_LONGEST_NAME = 200
_DAYS_SCANNED = 8
"""Rows of more days than this are sorted by time first, so that writing a day does not scan all of them."""


class Parsed:
    """The rows and rejected lines of a batch, in the temporary table ``parsed`` that :meth:`.Feed.parse_sql` gives.

    Objects are known by their numbers in the batch, from 0.

    Args:
        feed: whose lines they are.
        engine: parses and writes; the connection ends with :meth:`close`.
        storage: has the lake.
    """

    def __init__(self, feed: Feed, engine: "Engine", storage: ObjectStorage) -> None:
        self._feed = feed
        self._engine = engine
        self._storage = storage
        self._connection = engine.connect()

    def close(self) -> None:
        """Close the connection, and with it what was parsed."""
        self._connection.close()

    def parse(self, lines: "pa.RecordBatchReader", first_day: date, end_of_range: date) -> None:
        """Parse lines.

        Args:
            lines: the relation ``lines`` of :meth:`.Feed.parse_sql`.
            first_day: events before this day are out of range.
            end_of_range: events of this day and later are out of range.
        """
        self._connection.execute(parse_macros())
        self._connection.register("lines", lines)
        self._connection.execute(
            "create temp table parsed as " + self._feed.parse_sql(),
            {
                "first_day": datetime.combine(first_day, time()),
                "end_of_range": datetime.combine(end_of_range, time()),
            },
        )
        self._connection.unregister("lines")

    def withhold(self, withheld: Withheld) -> None:
        """Reject what is delivered and must not be kept."""
        withheld.reject(self._connection, self._feed)

    def with_more_rejects(self, most: int) -> list[int]:
        """The objects with more rejected lines than this."""
        found = self._connection.execute(
            "select object from parsed where reason <> 'header' group by object having count(*) > $most",
            {"most": most},
        ).fetchall()
        return [number for (number,) in found]

    def drop(self, objects: Collection[int]) -> None:
        """Take objects out."""
        self._connection.execute("delete from parsed where object in $out", {"out": list(objects)})

    def name_objects(self, keys: Sequence[str]) -> None:
        """Give the keys of the objects, by which the written files name them."""
        self._connection.execute(
            "create temp table objects as "
            "select unnest($n::int[]) as object, unnest($keys::varchar[]) as source_object",
            {"n": list(range(len(keys))), "keys": keys},
        )
        self._connection.execute(
            "create temp view rejects as select source_object, line as source_line, reason, text as line "
            "from parsed join objects using (object) where reason <> 'header'"
        )

    def write_part_files(self) -> dict[str, dict[date, ObjectDay]]:
        """Write the rows to the lake, a file for each day.

        Returns:
            by the key of an object and by day: what the object brought.
        """
        import duckdb

        connection, moment = self._connection, self._feed.event_time
        # Each row's line number is part of its hash, so equal rows do not cancel each other out.
        found = connection.execute(
            f"""select {moment}::date, source_object, count(*), printf('%016x', bit_xor({row_hash(self._feed, "line")}))
            from parsed join objects using (object) where reason is null group by all order by all"""
        ).fetchall()
        by_day = {day: list(parts) for day, parts in groupby(found, key=itemgetter(0))}
        rows = "parsed"
        if len(by_day) > _DAYS_SCANNED:
            rows = "sorted"
            connection.execute(f"create temp table sorted as from parsed where reason is null order by {moment}")
        brought: dict[str, dict[date, ObjectDay]] = defaultdict(dict)
        target = self._engine.new_scratch("parts") / "part.parquet"
        for day, parts in by_day.items():
            connection.execute(
                f"""copy (
                  select {", ".join(self._feed.columns)}, source_object, line as source_line, rescued
                  from {rows} join objects using (object)
                  where reason is null and {moment} >= '{day}' and {moment} < '{day + timedelta(days=1)}'
                ) to '{_sql_text(target)}' (format parquet, compression zstd)"""
            )
            counted = self._engine.count([target])
            if counted != sum(count for _, _, count, _ in parts):
                raise RuntimeError(f"{counted} rows of {day} were written, not those that were parsed")
            file = put(self._storage, new_path(f"raw/{self._feed.name}", day), target, counted)
            for _, source_object, count, digest in parts:
                brought[source_object][day] = ObjectDay(count, f"{duckdb.__version__}:{digest}", file)
            target.unlink()
        return brought

    def count_rejects(self) -> tuple[dict[int, dict[str, int]], Counter[int]]:
        """Rejected lines by object and reason, and header lines by object."""
        rejected: dict[int, dict[str, int]] = defaultdict(dict)
        header: Counter[int] = Counter()
        for number, reason, lines in self._connection.execute(
            "select object, reason, count(*) from parsed where reason is not null group by all"
        ).fetchall():
            if reason == "header":
                header[number] = lines
            else:
                rejected[number][reason] = lines
        return rejected, header

    def further_fields(self) -> list[FurtherField]:
        """What rows have beyond the columns of the feed."""
        # Postgres cannot hold a NUL, which a JSON key may have.
        return [
            FurtherField(name, lines, first["source_object"], first["line"])
            for name, lines, first in self._connection.execute(
                r"""
                select replace(left(name, $longest), chr(0), '\x00'), count(*),
                  min(struct_pack(source_object := source_object, line := line))
                from (
                  select unnest(json_keys(rescued)) as name, source_object, line
                  from parsed join objects using (object) where rescued is not null
                ) group by 1 order by 2 desc, 1 limit $most
                """,
                {"longest": _LONGEST_NAME, "most": MOST_FURTHER_FIELDS},
            ).fetchall()
        ]

    def write_rejects(self) -> str:
        """Write the rejected lines to the lake, as one file; returns its path."""
        file = self._engine.new_scratch("rejects") / "rejects.parquet"
        self._connection.execute(
            f"copy (from rejects order by all) to '{_sql_text(file)}' (format parquet, compression zstd)"
        )
        path = f"rejected/{self._feed.name}/{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:12]}.parquet"
        with file.open("rb") as content:
            self._storage.lake.put(path, content)
        file.unlink()
        return path


def row_hash(feed: Feed, line: str = "source_line") -> str:
    """The SQL of the engine for the hash of a row. The digest of some rows is the exclusive or of their hashes.

    A digest is kept with the version of the engine, because another version may compute other hashes.

    Args:
        feed: whose row it is.
        line: the column that has the number of its line.
    """
    return f"hash({line}, rescued, {', '.join(feed.columns)})"


def _sql_text(path: Path) -> str:
    return str(path).replace("'", "''")

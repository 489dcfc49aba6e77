"""An ingest batch: a few objects are cut, parsed, and written to the lake as part files and rejects."""

import io
import logging
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from user_pipeline.ingest.compression import BrokenObjectError, open_decompressed
from user_pipeline.ingest.drift import MOST_FURTHER_FIELDS
from user_pipeline.ingest.entries import Entry, FurtherField, ObjectDay, Unfetched
from user_pipeline.ingest.feeds import Feed, parse_macros
from user_pipeline.ingest.filter import Filter, FilterError, read_with
from user_pipeline.ingest.lines import LineCounter, cut
from user_pipeline.ingest.withheld import Withheld
from user_pipeline.lake.transfer import new_path, put
from user_pipeline.masking import mask, mask_key
from user_pipeline.resources.storage import ObjectStorage
from user_pipeline.setting_values import ObjectLimits

if TYPE_CHECKING:
    import pyarrow as pa

    from user_pipeline.engines.base import Engine
    from user_pipeline.resources.source import Source
    from user_pipeline.resources.source_listing import Content

_log = logging.getLogger(__name__)

_OUTAGE = 3
"""So many objects in a row that cannot be fetched, though they may be read, are a store that is down."""
_LONGEST_NAME = 200
_DAYS_SCANNED = 8
"""Rows of more days than this are sorted first, so that not each day goes through all of them."""


class IngestBatch:
    """A few objects that are read together; a context manager that ends with the connection of the engine.

    Attributes:
        entries: what was read, to be committed; the lake has their files already.
        further_fields: what their rows have beyond the columns of the feed.
        unfetched: the objects that could not be fetched.
        gave_up: whether so many could not be that the rest was left for the next look.
    """

    def __init__(
        self,
        feed: Feed,
        source: "Source",
        storage: ObjectStorage,
        engine: "Engine",
        *,
        limits: ObjectLimits,
        start_date: date,
        now: datetime,
        chosen: Filter | None = None,
        withheld: Withheld | None = None,
    ) -> None:
        self._feed = feed
        self._source = source
        self._storage = storage
        self._engine = engine
        self._connection = engine.connect()
        self._limits = limits
        self._filter = chosen
        self._withheld = withheld
        self._read_with = read_with(chosen)
        self._stopped: BaseException | None = None
        self._start_date = start_date
        self._end_of_range = now.astimezone(UTC).date() + timedelta(days=2)
        self._counters: dict[int, LineCounter] = defaultdict(LineCounter)
        self._etags: dict[int, str] = {}
        self._errors: dict[int, str] = {}
        self._skipped: set[int] = set()
        self.entries: Sequence[Entry] = ()
        self.further_fields: Sequence[FurtherField] = ()
        self.unfetched: list[Unfetched] = []
        self.gave_up = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of what was parsed."""
        self._connection.close()

    def read(self, objects: Sequence[dict[str, Any]]) -> None:
        """Parse the objects, write what they hold to the lake, and make the entries.

        Args:
            objects: rows of the listing.

        Raises:
            FilterError: the filter cannot be started.
            KeyboardInterrupt: the process was told to stop while it waited for a filter.
        """
        connection = self._connection
        self._parse(objects)
        if self._stopped:
            raise self._stopped
        if self._withheld:
            self._withheld.reject(self._connection, self._feed)
        self._limit_rejects()
        connection.execute("delete from parsed where object in $out", {"out": [*self._errors, *self._skipped]})
        paths = [item["path"] for item in objects]
        connection.execute(
            "create temp table objects as "
            "select unnest($n::int[]) as object, unnest($paths::varchar[]) as source_object",
            {"n": list(range(len(paths))), "paths": paths},
        )
        connection.execute(
            "create temp view rejects as select source_object, line as source_line, reason, text as line "
            "from parsed join objects using (object) where reason <> 'header'"
        )
        brought = self._write_part_files()
        rejected, header = self._count_rejects()
        rejects_path = self._write_rejects() if rejected else None
        self.further_fields = self._find_further_fields()
        self.entries = [
            Entry(
                key=item["path"],
                etag=self._etags.get(number, item["e_tag"]),
                last_modified=item["last_modified"],
                size=item["size"],
                start_date=self._start_date,
                filter=self._read_with.filter,
                filter_version=self._read_with.filter_version,
                error=self._errors.get(number),
                lines=0 if number in self._errors else self._counters[number].lines,
                blank=0 if number in self._errors else self._counters[number].blank,
                header=header[number],
                rejected=rejected[number],
                rejects_path=rejects_path if rejected[number] else None,
                days=brought[item["path"]],
            )
            for number, item in enumerate(objects)
            if number not in self._skipped
        ]

    def _parse(self, objects: Sequence[dict[str, Any]]) -> None:
        import pyarrow as pa

        schema = pa.schema(
            [
                ("object", pa.int32()),
                ("line", pa.int64()),
                ("text", pa.large_string()),
                ("broken", pa.bool_()),
                ("size", pa.int64()),
            ]
        )
        self._connection.execute(parse_macros())
        lines = pa.RecordBatchReader.from_batches(schema, self._lines(objects, schema))  # noqa: F841 - by name
        self._connection.execute(
            "create temp table parsed as " + self._feed.parse_sql(),
            {
                "first_day": datetime.combine(self._start_date, time()),
                "end_of_range": datetime.combine(self._end_of_range, time()),
            },
        )

    def _lines(self, objects: Sequence[dict[str, Any]], schema: "pa.Schema") -> Iterator["pa.RecordBatch"]:
        """The lines of all objects; what goes wrong with one is noted and the next one is read."""
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

        in_a_row = 0
        for number, item in enumerate(objects):
            if in_a_row == _OUTAGE:
                # The rest waits for the next look; each would be tried for minutes.
                self.gave_up = True
                self._skipped.update(range(number, len(objects)))
                return
            if item["problem"]:
                self._errors[number] = item["problem"]
                continue
            try:
                yield from self._lines_of(number, item, schema)
                in_a_row = 0
            except BrokenObjectError as error:
                self._errors[number] = str(error)
            except (FilterError, KeyboardInterrupt) as error:
                # The engine, which asks for the lines, would make an error of its own of it.
                self._stopped = error
                return
            except FileNotFoundError:
                _log.warning("%s was deleted before it could be read", mask_key(item["path"]))
                self._skipped.add(number)
            except (BaseError, OSError) as error:
                reason = _first_line(error)
                _log.warning("%s could not be fetched: %s", mask_key(item["path"]), reason)
                self._skipped.add(number)
                self.unfetched.append(
                    Unfetched(item["path"], item["e_tag"], item["last_modified"], item["size"], reason)
                )
                if not isinstance(error, PermissionDeniedError | UnauthenticatedError | PermissionError):
                    in_a_row += 1

    def _lines_of(self, number: int, item: dict[str, Any], schema: "pa.Schema") -> Iterator["pa.RecordBatch"]:
        """The lines of one object."""
        import pyarrow as pa

        content = self._source.get(item["path"])
        self._etags[number] = content.etag or item["e_tag"]
        with self._open(content, item) as stream:
            for batch in cut(
                stream,
                stored_bytes=item["size"],
                limits=self._limits,
                quoted_newlines=self._feed.quoted_newlines,
                counter=self._counters[number],
            ):
                owner = pa.repeat(pa.scalar(number, pa.int32()), batch.num_rows)
                yield pa.RecordBatch.from_arrays([owner, *batch.columns], schema=schema)
        if self._source.is_changed(item["path"], self._etags[number]):
            _log.warning("%s changed while it was read; the next look reads it again", mask_key(item["path"]))
            self._skipped.add(number)

    def _open(self, content: "Content", item: dict[str, Any]) -> io.BufferedIOBase:
        """The bytes that are cut into lines: of the object, or what the filter makes of them."""
        if self._filter is None:
            return open_decompressed(content.chunks, item["path"])
        return self._filter.open(content.chunks, item["path"], stored_bytes=item["size"], limits=self._limits)

    def _limit_rejects(self) -> None:
        """An object with too many rejected lines is a broken one: they would fill lake and database."""
        for (number,) in self._connection.execute(
            "select object from parsed where reason <> 'header' group by object having count(*) > $most",
            {"most": self._limits.rejects},
        ).fetchall():
            self._errors[number] = (
                f"more of its lines are rejected than USER_PIPELINE_MAX_OBJECT_REJECTS allows, {self._limits.rejects:,}"
            )

    def _write_part_files(self) -> dict[str, dict[date, ObjectDay]]:
        """Write the rows, a file a day.

        Returns:
            by object and day, what it brought.
        """
        import duckdb

        connection, time = self._connection, self._feed.event_time
        # Each row's line number is part of its hash, so equal rows do not cancel each other out.
        found = connection.execute(
            f"""select {time}::date, source_object, count(*), printf('%016x', bit_xor({row_hash(self._feed, "line")}))
            from parsed join objects using (object) where reason is null group by all order by all"""
        ).fetchall()
        by_day = {day: list(parts) for day, parts in groupby(found, key=itemgetter(0))}
        rows = "parsed"
        if len(by_day) > _DAYS_SCANNED:
            rows = "sorted"
            connection.execute(f"create temp table sorted as from parsed where reason is null order by {time}")
        brought: dict[str, dict[date, ObjectDay]] = defaultdict(dict)
        target = self._engine.new_scratch("parts") / "part.parquet"
        for day, parts in by_day.items():
            connection.execute(
                f"""copy (
                  select {", ".join(self._feed.columns)}, source_object, line as source_line, rescued
                  from {rows} join objects using (object)
                  where reason is null and {time} >= '{day}' and {time} < '{day + timedelta(days=1)}'
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

    def _count_rejects(self) -> tuple[dict[int, dict[str, int]], Counter[int]]:
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

    def _find_further_fields(self) -> list[FurtherField]:
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

    def _write_rejects(self) -> str:
        """Write the rejected lines to the lake; returns where they are."""
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
    """The SQL of the engine that gives the hash of a row; a digest is that of rows by exclusive or.

    Digests are told with the version of the engine, another one of which may have other hashes.

    Args:
        feed: whose row it is.
        line: the column that has the number of its line.
    """
    return f"hash({line}, rescued, {', '.join(feed.columns)})"


def _first_line(error: Exception) -> str:
    """What a store says, without its retries and headers."""
    return (mask(str(error)).splitlines() or [type(error).__name__])[0][:300]


def _sql_text(path: Path) -> str:
    return str(path).replace("'", "''")

"""One pass of the reader over a few objects: cut, parse, write fragments, write rejects."""

import logging
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from user_pipeline.ingest.feeds import Feed, parse_macros
from user_pipeline.ingest.lines import BrokenObjectError, LineCounter, cut, open_text
from user_pipeline.ingest.manifest import Entry, fragment_path, rejects_path
from user_pipeline.masking import mask, mask_key
from user_pipeline.resources.source import Source
from user_pipeline.settings import ObjectLimits

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    from user_pipeline.engines.duckdb import Engine
    from user_pipeline.resources.object_store import Store

_log = logging.getLogger(__name__)

_OUTAGE = 3
"""So many objects in a row that cannot be fetched, though they may be read, are a store that is down."""

PublishRejects = Callable[[Feed, Sequence[str], "pa.RecordBatchReader"], None]
"""Replaces the published rejects of some objects: feed, their keys, and all their rejected lines
(``source_object``, ``source_line``, ``reason``, ``line``)."""


class Pass:
    """One pass of the reader over a few objects.

    Attributes:
        failures: the objects that could not be fetched: the row of the listing, and what the store said.
        gave_up: whether so many could not be that the rest was left for the next look.
    """

    def __init__(
        self, feed: Feed, source: Source, engine: "Engine", *, limits: ObjectLimits, start_date: date, now: datetime
    ) -> None:
        self._feed = feed
        self._source = source
        self._engine = engine
        self._limits = limits
        self._start_date = start_date
        self._end_of_range = now.astimezone(UTC).date() + timedelta(days=2)
        self._batch = f"{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex}"
        self._counters: dict[int, LineCounter] = defaultdict(LineCounter)
        self._etags: dict[int, str] = {}
        self._errors: dict[int, str] = {}
        self._skipped: set[int] = set()
        self.failures: list[tuple[dict[str, Any], str]] = []
        self.gave_up = False

    def run(
        self,
        connection: "duckdb.DuckDBPyConnection",
        objects: list[dict[str, Any]],
        lake: "Store",
        publish_rejects: PublishRejects,
    ) -> list[Entry]:
        """Parse the objects, write what they hold, and return the entries to commit."""
        self._parse(connection, objects)
        self._limit_rejects(connection)
        connection.execute("delete from parsed where object in $out", {"out": [*self._errors, *self._skipped]})
        paths = [item["path"] for item in objects]
        connection.execute(
            "create temp table objects as "
            "select unnest($n::int[]) as object, unnest($paths::varchar[]) as source_object",
            {"n": list(range(len(paths))), "paths": paths},
        )
        brought = self._write_fragments(connection, lake)
        rejected, header = self._write_rejects(connection, lake, publish_rejects, objects)
        return [
            Entry(
                key=item["path"],
                etag=self._etags.get(number, item["e_tag"]),
                last_modified=item["last_modified"],
                size=item["size"],
                batch=self._batch,
                start_date=self._start_date,
                error=self._errors.get(number),
                lines=0 if number in self._errors else self._counters[number].lines,
                blank=0 if number in self._errors else self._counters[number].blank,
                header=header[number],
                rejected=rejected[number],
                days={day: rows for day, (rows, _) in brought[item["path"]].items()},
                digests={day: digest for day, (_, digest) in brought[item["path"]].items()},
            )
            for number, item in enumerate(objects)
            if number not in self._skipped
        ]

    def _parse(self, connection: "duckdb.DuckDBPyConnection", objects: list[dict[str, Any]]) -> None:
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
        connection.execute(parse_macros())
        lines = pa.RecordBatchReader.from_batches(schema, self._lines(objects, schema))  # noqa: F841 - by name
        connection.execute(
            "create temp table parsed as " + self._feed.parse_sql(),
            {
                "first_day": datetime.combine(self._start_date, time()),
                "end_of_range": datetime.combine(self._end_of_range, time()),
            },
        )

    def _lines(self, objects: list[dict[str, Any]], schema: "pa.Schema") -> Iterator["pa.RecordBatch"]:
        """The lines of all objects; what goes wrong with one is noted and the next one is read."""
        import pyarrow as pa
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
                content = self._source.get(item["path"])
                self._etags[number] = content.etag or item["e_tag"]
                for batch in cut(
                    open_text(content.chunks, item["path"]),
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
                in_a_row = 0
            except BrokenObjectError as error:
                self._errors[number] = str(error)
            except FileNotFoundError:
                _log.warning("%s was deleted before it could be read", mask_key(item["path"]))
                self._skipped.add(number)
            except (BaseError, OSError) as error:
                reason = _first_line(error)
                _log.warning("%s could not be fetched: %s", mask_key(item["path"]), reason)
                self._skipped.add(number)
                self.failures.append((item, reason))
                if not isinstance(error, PermissionDeniedError | UnauthenticatedError | PermissionError):
                    in_a_row += 1

    def _limit_rejects(self, connection: "duckdb.DuckDBPyConnection") -> None:
        """An object with too many rejected lines is a broken one: they would fill lake and database."""
        for (number,) in connection.execute(
            "select object from parsed where reason <> 'header' group by object having count(*) > $most",
            {"most": self._limits.rejects},
        ).fetchall():
            self._errors[number] = (
                f"more of its lines are rejected than USER_PIPELINE_MAX_OBJECT_REJECTS allows, {self._limits.rejects:,}"
            )

    def _write_fragments(
        self, connection: "duckdb.DuckDBPyConnection", lake: "Store"
    ) -> dict[str, dict[date, tuple[int, str]]]:
        """Write the rows, a file a day; the rows of each object and day are counted in what was written.

        Returns:
            by object and day, how many rows there are, and their digest.
        """
        target = self._engine.new_scratch("fragments")
        columns = ", ".join(self._feed.columns)
        connection.execute(
            f"""copy (
              select {columns}, source_object, line as source_line,
                strftime({self._feed.event_time}, '%Y-%m-%d') as date
              from parsed join objects using (object) where reason is null
            ) to '{_sql_text(target)}' (format parquet, partition_by (date), compression zstd)"""
        )
        brought: dict[str, dict[date, tuple[int, str]]] = defaultdict(dict)
        files = sorted(target.glob("date=*/*.parquet"))
        for folder, parts in groupby(files, key=lambda path: path.parent):
            day = date.fromisoformat(folder.name.removeprefix("date="))
            whole = _single_file(connection, list(parts))
            with whole.open("rb") as content:
                lake.put(fragment_path(self._feed, day, self._batch), content)
            # Each row's line number is part of its hash, so equal rows do not cancel each other out.
            for source_object, rows, digest in connection.execute(
                f"""select source_object, count(*), printf('%016x', bit_xor(hash(source_line, {columns})))
                from read_parquet($file, hive_partitioning = false) group by all""",
                {"file": str(whole)},
            ).fetchall():
                brought[source_object][day] = (rows, digest)
            whole.unlink()
        return brought

    def _write_rejects(
        self,
        connection: "duckdb.DuckDBPyConnection",
        lake: "Store",
        publish_rejects: PublishRejects,
        objects: list[dict[str, Any]],
    ) -> tuple[dict[int, dict[str, int]], Counter[int]]:
        """Write the rejected lines; count them by object and reason, and header lines apart."""
        rejected: dict[int, dict[str, int]] = defaultdict(dict)
        header: Counter[int] = Counter()
        for number, reason, lines in connection.execute(
            "select object, reason, count(*) from parsed where reason is not null group by all"
        ).fetchall():
            if reason == "header":
                header[number] = lines
            else:
                rejected[number][reason] = lines
        connection.execute(
            "create temp view rejects as select source_object, line as source_line, reason, text as line "
            "from parsed join objects using (object) where reason <> 'header'"
        )
        if rejected:
            file = self._engine.new_scratch("rejects") / "rejects.parquet"
            connection.execute(
                f"copy (from rejects order by all) to '{_sql_text(file)}' (format parquet, compression zstd)"
            )
            with file.open("rb") as content:
                lake.put(rejects_path(self._feed, self._batch), content)
            file.unlink()
        read = [item["path"] for number, item in enumerate(objects) if number not in self._skipped]
        if read:
            publish_rejects(self._feed, read, connection.execute("from rejects").to_arrow_reader(10_000))
        return rejected, header


def _single_file(connection: "duckdb.DuckDBPyConnection", parts: list[Path]) -> Path:
    """One file of a day: each thread of the engine may have written its own."""
    if len(parts) == 1:
        return parts[0]
    whole = parts[0].with_name("whole.parquet")
    names = ", ".join(f"'{_sql_text(part)}'" for part in parts)
    connection.execute(
        f"copy (from read_parquet([{names}], hive_partitioning = false)) to '{_sql_text(whole)}' "
        "(format parquet, compression zstd)"
    )
    for part in parts:
        part.unlink()
    return whole


def _first_line(error: Exception) -> str:
    """What a store says, without its retries and headers."""
    return (mask(str(error)).splitlines() or [type(error).__name__])[0][:300]


def _sql_text(path: Path) -> str:
    return str(path).replace("'", "''")

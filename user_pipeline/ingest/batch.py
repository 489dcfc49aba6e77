"""An ingest batch: a few objects are cut, parsed, and written to the lake as part files and rejects."""

import io
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from user_pipeline.ingest.compression import BrokenObjectError, open_decompressed
from user_pipeline.ingest.entries import Entry, FurtherField, Unfetched
from user_pipeline.ingest.feeds import Feed
from user_pipeline.ingest.filter import Filter, FilterError, read_with
from user_pipeline.ingest.lines import LineCounter, cut
from user_pipeline.ingest.parsed import Parsed
from user_pipeline.ingest.withheld import Withheld
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
"""After this many objects in a row that could not be fetched, permissions aside, the store is taken for down."""


class IngestBatch:
    """A few objects that are read together; a context manager that closes its connection of the engine.

    Attributes:
        entries: what was read, to be committed; the lake has their files already.
        further_fields: what their rows have beyond the columns of the feed.
        unfetched: the objects that could not be fetched.
        gave_up: whether so many could not be fetched that the rest was left to the next look.
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
        self._parsed = Parsed(feed, engine, storage)
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
        self._parsed.close()

    def read(self, objects: Sequence[dict[str, Any]]) -> None:
        """Parse the objects, write what they hold to the lake, and make the entries.

        Args:
            objects: rows of the listing.

        Raises:
            FilterError: the filter cannot be started.
            KeyboardInterrupt: the process was told to stop while it waited for a filter.
        """
        self._parse(objects)
        if self._stopped:
            raise self._stopped
        parsed = self._parsed
        if self._withheld:
            parsed.withhold(self._withheld)
        for number in parsed.with_more_rejects(self._limits.rejects):
            # They would fill lake and database.
            self._errors[number] = (
                f"more of its lines are rejected than USER_PIPELINE_MAX_OBJECT_REJECTS allows, {self._limits.rejects:,}"
            )
        parsed.drop({*self._errors, *self._skipped})
        parsed.name_objects([item["path"] for item in objects])
        brought = parsed.write_part_files()
        rejected, header = parsed.count_rejects()
        rejects_path = parsed.write_rejects() if rejected else None
        self.further_fields = parsed.further_fields()
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
        lines = pa.RecordBatchReader.from_batches(schema, self._lines(objects, schema))
        self._parsed.parse(lines, self._start_date, self._end_of_range)

    def _lines(self, objects: Sequence[dict[str, Any]], schema: "pa.Schema") -> Iterator["pa.RecordBatch"]:
        """The lines of all objects. An error of one object is noted, and the next one is read."""
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

        in_a_row = 0
        for number, item in enumerate(objects):
            if in_a_row == _OUTAGE:
                # The rest is left to the next look: trying each of them would take minutes.
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
                # Raised here, it would reach the caller as an error of the engine, which reads the lines.
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


def _first_line(error: Exception) -> str:
    """The first line of what a store says: without its retries and headers."""
    return (mask(str(error)).splitlines() or [type(error).__name__])[0][:300]

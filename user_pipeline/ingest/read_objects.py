"""Reading the objects of a group, as an engine does it: in the run, or on another machine."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

from user_pipeline.ingest.batch import IngestBatch
from user_pipeline.ingest.entries import Entry, FurtherField, Unfetched
from user_pipeline.ingest.feeds import Feed
from user_pipeline.ingest.filter import Filter, FilterError, ReadWith, read_with
from user_pipeline.ingest.withheld import Withheld
from user_pipeline.resources.storage import ObjectStorage
from user_pipeline.setting_values import ObjectLimits

if TYPE_CHECKING:
    from user_pipeline.engines.base import Engine
    from user_pipeline.resources.source import Source


@dataclass(frozen=True, slots=True)
class Brought:
    """What reading some objects brought. The lake has their files already; they count once they are committed.

    Attributes:
        entries: what was read.
        further_fields: what their rows have beyond the columns of the feed.
        unfetched: the objects that could not be fetched.
        gave_up: whether so many could not be fetched that the rest was left to the next look.
    """

    entries: Sequence[Entry]
    further_fields: Sequence[FurtherField]
    unfetched: Sequence[Unfetched]
    gave_up: bool

    @property
    def rejects(self) -> list[str]:
        """The files of the lake that have the rejected lines of the entries."""
        return sorted({entry.rejects_path for entry in self.entries if entry.rejects_path})


@dataclass(frozen=True)
class ReadObjects:
    """Reads objects, and writes what they hold to the lake.

    Attributes:
        feed: whose objects they are.
        storage: has the lake, and on another machine the source.
        limits: what one object may hold.
        start_date: events before this day are out of range.
        now: events after the day that follows this moment (UTC) are out of range.
        expected: the filter and its version, as the manifest will have them.
        withheld: which of their lines are not kept.
        source: where they are. It is not pickled: on another machine the source of ``storage`` is used.
        chosen: the filter that they go through. It holds the environment of the process and is not pickled either.
    """

    feed: Feed
    storage: ObjectStorage
    limits: ObjectLimits
    start_date: date
    now: datetime
    expected: ReadWith
    withheld: Withheld = field(repr=False)
    source: "Source | None" = field(repr=False)
    chosen: Filter | None = field(repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Without what stays in the process."""
        return {**self.__dict__, "source": None, "chosen": None}

    def __call__(self, engine: "Engine", objects: Sequence[dict[str, Any]]) -> list[Brought]:
        """Read objects in one batch; one by one if together they take too much memory.

        Args:
            engine: parses.
            objects: rows of the listing.

        Raises:
            FilterError: the filter cannot be started, or differs from that of the run.
            obstore.exceptions.BaseError: the lake cannot be written to.
        """
        source, chosen = self.source, self.chosen
        if source is None:
            source = self.storage.source
            chosen = Filter.of(self.feed, engine.settings)
            if read_with(chosen) != self.expected:
                raise FilterError(
                    f"the filter {self.expected.filter!r} is another one on the executors than in the run: its "
                    "program, the files it names and USER_PIPELINE_USER_ID_KEY have to be the same. Nothing was read"
                )
        return list(self._within_memory(engine, source, chosen, list(objects)))

    def _within_memory(
        self, engine: "Engine", source: "Source", chosen: Filter | None, objects: list[dict[str, Any]]
    ) -> Iterator[Brought]:
        """Read objects; one that needs too much memory even alone is broken."""
        import duckdb

        try:
            brought = self._read(engine, source, chosen, objects)
        except (duckdb.OutOfMemoryException, MemoryError):
            if len(objects) == 1 and objects[0]["problem"]:
                raise
            if len(objects) == 1:
                limit = f"USER_PIPELINE_MEMORY_LIMIT, {engine.memory_limit:,} bytes"
                objects = [{**objects[0], "problem": f"reading it takes more memory than {limit}, allows"}]
            for item in objects:
                yield from self._within_memory(engine, source, chosen, [item])
        else:
            yield brought

    def _read(
        self, engine: "Engine", source: "Source", chosen: Filter | None, objects: list[dict[str, Any]]
    ) -> Brought:
        with IngestBatch(
            self.feed,
            source,
            self.storage,
            engine,
            limits=self.limits,
            start_date=self.start_date,
            now=self.now,
            chosen=chosen,
            withheld=self.withheld,
        ) as batch:
            batch.read(objects)
            return Brought(batch.entries, batch.further_fields, batch.unfetched, batch.gave_up)

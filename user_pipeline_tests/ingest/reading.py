"""Read what is new in the source of a platform, and look at what the manifest says of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from user_pipeline.ingest.entries import Entry
from user_pipeline.ingest.feeds import PAGE_VIEWS, Feed
from user_pipeline.ingest.filter import Filter
from user_pipeline.ingest.manifest import Manifest
from user_pipeline.ingest.part_files import raw_day
from user_pipeline.ingest.reader import Ingested, read_new_objects
from user_pipeline.setting_values import ObjectLimits
from user_pipeline_tests.platform import Platform

NOW = datetime(2017, 5, 1, 12, tzinfo=UTC)
FIRST = date(2017, 4, 1)


@dataclass(frozen=True)
class Read:
    """What one look at a feed's folder brought, with the entries as the manifest has them."""

    ingested: Ingested
    entries: Sequence[Entry]

    @property
    def broken(self) -> Sequence[Entry]:
        found = sorted(self.ingested.broken, key=lambda entry: entry.key)
        assert found == [entry for entry in self.entries if entry.error]
        return found

    @property
    def failing(self) -> Sequence[Entry]:
        return self.ingested.failing


def manifest_of(platform: Platform, feed: Feed = PAGE_VIEWS) -> Manifest:
    """The manifest of a feed, opened anew."""
    return Manifest(feed, platform.lake.staging)


def ingest(
    platform: Platform,
    feed: Feed = PAGE_VIEWS,
    *,
    now: datetime = NOW,
    start: date = FIRST,
    limits: ObjectLimits | None = None,
    source: Any = None,
    alone: bool = True,
    chosen: Filter | None = None,
    **more: Any,
) -> Read:
    """Look once; ``alone``, the entries written since are those of this look, and it has counted them right."""
    manifest = manifest_of(platform, feed)
    with platform.engine() as engine:
        ingested = read_new_objects(
            manifest,
            source or platform.storage.source,
            engine,
            limits=limits or platform.settings.object_limits,
            start_date=start,
            now=now,
            run_id="of a test",
            chosen=Filter.of(feed, platform.settings) if chosen is None else chosen,
            **more,
        )
    written = list(manifest.entries(since=ingested.since))
    read = [entry for entry in written if not entry.failure]
    if alone:
        assert ingested.read == len(read)
        for name in ("lines", "rows", "blank", "header"):
            assert ingested.lines[name] == sum(getattr(entry, name) for entry in read)
    return Read(ingested, read)


def rows(platform: Platform, feed: Feed = PAGE_VIEWS, day: date = FIRST) -> list[dict[str, Any]]:
    """The rows of a day, in the order of their lines."""
    manifest = manifest_of(platform, feed)
    with platform.engine() as engine:
        made = raw_day(manifest, engine, day, manifest.parts([day])[day])
        files = [made.written] if made.written else [platform.storage.lake_file(file.path) for file in made.pinned]
        found: list[dict[str, Any]] = (
            engine.connect()
            .read_parquet([str(file) for file in files], hive_partitioning=False)
            .order("source_object, source_line")
            .to_arrow_table()
            .to_pylist()
        )
    assert len(found) == made.rows
    return found

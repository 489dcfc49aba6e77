"""A database that restarts, or cuts connections, in the middle of a run: the run goes on by Dagster's own retries."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg2
import pyarrow as pa
import pytest
from adbc_driver_manager.dbapi import Connection

from user_pipeline.resources import embedded_postgres as embedded
from user_pipeline.resources.embedded_postgres import EmbeddedPostgres
from user_pipeline.resources.postgres import Postgres, Transaction
from user_pipeline.resources.postgres_errors import DatabaseUnavailableError
from user_pipeline_tests.faults.states import DAY, State, assert_exact, assert_old_or_new
from user_pipeline_tests.platform import Platform

ASSETS = ["raw_user_updates", "raw_page_views", "user_updates", "page_views", "users", "user_page_views"]


def restart(postgres: EmbeddedPostgres) -> None:
    """Kill every server process, as ``pg_ctl restart -m immediate`` does, and start anew."""
    pid = int((postgres.cluster / "postmaster.pid").read_text().splitlines()[0])
    os.kill(pid, signal.SIGQUIT)
    embedded.stop(postgres.data_dir)  # waits for the last of them
    embedded.ensure_running(postgres.data_dir)


def terminate(postgres: EmbeddedPostgres) -> None:
    """Cut every connection to the platform's databases."""
    connection = psycopg2.connect(postgres.url("postgres"))
    with connection.cursor() as cursor:
        cursor.execute(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname in ('staging', 'analytics')"
        )
    connection.close()


FAULTS: dict[str, Callable[[EmbeddedPostgres], None]] = {"restart": restart, "terminate": terminate}


class Faults:
    """Strikes once at each of some places, and looks at what readers see right after."""

    def __init__(self, strike: Callable[[], None]) -> None:
        self.struck: list[str] = []
        self._strike = strike
        self._looking = False

    def at(self, place: str) -> None:
        # What looks at the tables meanwhile is not part of the run.
        if place not in self.struck and not self._looking:
            self.struck.append(place)
            self._looking = True
            self._strike()
            self._looking = False

    def while_copying(self, reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        """The batches, with a strike in the middle of the first of the rejects and of the views."""
        columns = set(reader.schema.names)
        for batch in reader:
            yield batch.slice(0, batch.num_rows // 2)
            if "reason" in columns:
                self.at("COPY of rejects")
            elif "ts" in columns:
                self.at("COPY of views")
            yield batch.slice(batch.num_rows // 2)


@pytest.fixture
def old_and_new(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> tuple[State, State]:
    """The old state is in the tables, the new one in the source, with more rows than a message of COPY holds."""
    monkeypatch.setattr(dg.RetryPolicy, "calculate_delay", lambda _, attempt_num: 0.01 * attempt_num)
    old, new = State.number(0, rows=2_000), State.number(1, rows=2_000)
    old.deliver(platform)
    assert platform.materialize(DAY, select=ASSETS, checks=False).success
    new.deliver(platform)
    return old, new


def place_faults(monkeypatch: pytest.MonkeyPatch, faults: Faults) -> None:
    """One in each kind of work: COPY in and out, a statement, before and after a commit."""
    ingest, execute, commit = Transaction._ingest, Transaction.execute, Connection.commit

    def faulty_ingest(self: Transaction, table: str, reader: pa.RecordBatchReader, **options: Any) -> int:
        faulty = pa.RecordBatchReader.from_batches(reader.schema, faults.while_copying(reader))
        return ingest(self, table, faulty, **options)

    def faulty_execute(self: Transaction, sql: str, parameters: tuple[Any, ...] = ()) -> int:
        if "insert into public.users as" in sql:
            faults.at("merge of users")
        if sql.startswith('delete from public."user_updates"'):
            faults.at("slice of user_updates")
        if "on conflict (user_id, public.url_key(url)" in sql:
            rows = execute(self, sql, parameters)
            faults.at("merge of user_page_views")
            return rows
        return execute(self, sql, parameters)

    def faulty_commit(self: Connection) -> None:
        commit(self)
        if "merge of users" in faults.struck:
            faults.at("after a commit")

    monkeypatch.setattr(Transaction, "_ingest", faulty_ingest)
    monkeypatch.setattr(Transaction, "execute", faulty_execute)
    monkeypatch.setattr(Connection, "commit", faulty_commit)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_goes_on_whatever_it_was_doing(
    platform: Platform,
    postgres: EmbeddedPostgres,
    old_and_new: tuple[State, State],
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    old, new = old_and_new

    def strike() -> None:
        FAULTS[fault](postgres)
        assert_old_or_new(platform, old, new)

    faults = Faults(strike)
    with monkeypatch.context() as patch:
        place_faults(patch, faults)
        result = platform.materialize(DAY, select=ASSETS, checks=False, raise_on_error=False)
    assert result.success
    assert sorted(faults.struck) == [
        "COPY of rejects",
        "COPY of views",
        "after a commit",
        "merge of user_page_views",
        "merge of users",
        "slice of user_updates",
    ]
    assert_exact(platform, new)
    reasons = [reason(event) for event in result.all_events if event.is_step_up_for_retry]
    assert len(reasons) == len(faults.struck), (faults.struck, reasons)
    assert {kind for kind, _ in reasons} == {"DatabaseUnavailableError"}, reasons
    for _, message in reasons:
        assert message.startswith("user_pipeline.resources.postgres_errors.DatabaseUnavailableError: USER_PIPELINE_")
        assert "@example.com" not in message


def reason(event: dg.DagsterEvent) -> tuple[str | None, str]:
    """Why a step is tried again: the innermost error."""
    error = event.step_retry_data.error
    assert error
    while error.cause:
        error = error.cause
    return error.cls_name, error.message


def test_a_connection_cut_while_rows_are_read_is_told_as_such(platform: Platform, postgres: EmbeddedPostgres) -> None:
    database = Postgres(platform.settings.staging)

    def read() -> None:
        with database.query("select n, repeat('x', 1000) as text from generate_series(1, 200000) n") as reader:
            reader.read_next_batch()
            terminate(postgres)
            reader.read_all()

    with pytest.raises(DatabaseUnavailableError, match="USER_PIPELINE_STAGING_URL"):
        read()
    with database.query("select 1 as n") as reader:
        assert reader.read_all().to_pylist() == [{"n": 1}]
    database.close()


def test_a_table_whose_rows_are_cut_short_is_told_as_such(platform: Platform, tmp_path: Path) -> None:
    """The way every table that is read goes: from the database into a file."""
    from user_pipeline.engines.parquet import write_parquet

    sql = (
        "select n, repeat('x', 1000) as text, case when n = 190000 then pg_terminate_backend(pg_backend_pid()) end "
        "as cut from generate_series(1, 200000) n"
    )

    def read() -> None:
        with platform.staging.transaction() as transaction:
            write_parquet(transaction.stream(sql), tmp_path / "rows.parquet")

    with pytest.raises(DatabaseUnavailableError, match="USER_PIPELINE_STAGING_URL"):
        read()


def test_idle_connections_that_were_cut_are_not_used_again(platform: Platform, postgres: EmbeddedPostgres) -> None:
    database = Postgres(platform.settings.staging)
    for fault in FAULTS.values():
        with database.transaction() as transaction:
            [(before,)] = transaction.fetch("select pg_backend_pid()")
        fault(postgres)
        with database.transaction() as transaction:
            [(after,)] = transaction.fetch("select pg_backend_pid()")
        assert before != after
    database.close()


def test_a_database_that_is_away_is_waited_for_as_long_as_dagster_does(
    platform: Platform, postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the waits of production: the server is stopped, and comes back before the second try."""
    old, new = State.number(0), State.number(1)
    old.deliver(platform)
    assert platform.materialize(DAY, select=ASSETS, checks=False).success
    new.deliver(platform)
    stopped: list[bool] = []
    execute = Transaction.execute

    def faulty_execute(self: Transaction, sql: str, parameters: tuple[Any, ...] = ()) -> int:
        if not stopped and "insert into public.users as" in sql:
            stopped.append(embedded.stop(postgres.data_dir))
        return execute(self, sql, parameters)

    sleep = time.sleep

    def back_in_the_meantime(seconds: float) -> None:
        sleep(seconds)
        if seconds > 1:
            embedded.ensure_running(postgres.data_dir)
            assert_old_or_new(platform, old, new)

    monkeypatch.setattr(Transaction, "execute", faulty_execute)
    monkeypatch.setattr(time, "sleep", back_in_the_meantime)
    result = platform.materialize(DAY, select=ASSETS, checks=False, raise_on_error=False)
    assert stopped == [True]
    assert result.success
    [again] = [event for event in result.all_events if event.is_step_up_for_retry]
    assert again.step_key == "users"
    assert again.step_retry_data.seconds_to_wait
    assert again.step_retry_data.seconds_to_wait > 2
    assert_exact(platform, new)

"""Connections to a Postgres database, for whole transactions of Arrow batches and SQL."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING, Any

from user_pipeline.interrupts import cancelled_by, off_main_thread
from user_pipeline.resources.postgres_errors import DatabaseError, connection_error, statement_error
from user_pipeline.setting_values import Database

if TYPE_CHECKING:
    import pyarrow as pa
    from adbc_driver_manager.dbapi import Connection, Cursor

    from user_pipeline.settings import Settings


_OLDEST = 15
"""The oldest major version of PostgreSQL that works: earlier ones lack features that roles and statements use."""


class Postgres:
    """One database.

    Attributes:
        database: the setting behind it.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self._idle: list[Connection] = []

    @cached_property
    def url(self) -> str:
        """Its libpq URL; the embedded server is started if the setting leaves it to that."""
        from user_pipeline.resources.embedded_postgres import database_url

        return database_url(self.database)

    @contextmanager
    def transaction(self) -> Iterator["Transaction"]:
        """A transaction that commits when the block ends well and leaves no trace when it does not.

        Raises:
            DatabaseError: the database refuses the connection.
            DatabaseUnavailableError: it does not answer, or breaks off.
            StatementError: it cannot carry out a statement.
        """
        with self._connection() as connection, connection.cursor() as cursor:
            connection.adbc_connection.set_autocommit(False)
            transaction = Transaction(cursor)
            with self._explained_reads(transaction):
                yield transaction
            connection.commit()
            connection.adbc_connection.set_autocommit(True)

    @contextmanager
    def query(self, sql: str) -> Iterator["pa.RecordBatchReader"]:
        """The rows of a query, streamed; valid inside the block.

        Raises:
            DatabaseError, DatabaseUnavailableError, StatementError: as for :meth:`transaction`.
        """
        with self._connection() as connection, connection.cursor() as cursor:
            transaction = Transaction(cursor)
            with self._explained_reads(transaction):
                yield transaction.stream(sql)

    @contextmanager
    def _explained_reads(self, transaction: "Transaction") -> Iterator[None]:
        """Raise an error of streamed rows as one of the database: those who read the rows may have wrapped it."""
        try:
            yield
        except Exception:
            if transaction.failed_reads:
                raise statement_error(self.database.variable, transaction.failed_reads[0]) from None
            raise

    def close(self) -> None:
        """Close the connections that wait to be used again."""
        while self._idle:
            self._idle.pop().close()

    @contextmanager
    def _connection(self) -> Iterator["Connection"]:
        """A connection in autocommit mode, used again afterwards unless something went wrong with it."""
        import adbc_driver_postgresql.dbapi as adbc

        connection = self._reused() or self._connect()
        try:
            with cancelled_by(connection.adbc_cancel):
                yield connection
                with connection.cursor() as cursor:
                    _execute(cursor, "discard temporary")
        except adbc.Error as error:
            connection.close()
            raise statement_error(self.database.variable, error) from None
        except BaseException:
            # Closing an open transaction rolls it back.
            connection.close()
            raise
        self._idle.append(connection)

    def _reused(self) -> "Connection | None":
        """A waiting connection that still answers: opening one costs as much as a hundred statements."""
        import adbc_driver_postgresql.dbapi as adbc

        while self._idle:
            connection = self._idle.pop()
            try:
                with connection.cursor() as cursor:
                    _execute(cursor, "select 1")
            except adbc.Error:
                connection.close()
            else:
                return connection
        return None

    def _connect(self) -> "Connection":
        import adbc_driver_postgresql.dbapi as adbc

        try:
            connection: Connection = adbc.connect(self.url, autocommit=True)
        except adbc.Error as error:
            raise connection_error(self.database.variable, error) from None
        with connection.cursor() as cursor:
            # A moment compared with a column without a zone means its UTC clock, whatever the server's zone.
            _execute(cursor, "set time zone 'UTC'")
            _execute(cursor, "select current_setting('server_version')")
            [(version,)] = cursor.fetchall()
        if int(re.match(r"\d+", version)[0]) < _OLDEST:  # type: ignore[index] # it begins with a number
            connection.close()
            raise DatabaseError(
                f"{self.database.variable}: PostgreSQL {version} is too old; use PostgreSQL {_OLDEST} or later"
            )
        return connection


class Transaction:
    """What can be done inside one transaction.

    Attributes:
        failed_reads: the errors of rows that were streamed.
    """

    def __init__(self, cursor: "Cursor") -> None:
        self._cursor = cursor
        self.failed_reads: list[Exception] = []

    def execute(self, sql: str, parameters: tuple[Any, ...] = ()) -> int:
        """Run one statement; returns how many rows it touched, or -1 where Postgres does not say."""
        _execute(self._cursor, sql, parameters)
        return int(self._cursor.rowcount)

    def fetch(self, sql: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """All rows of one statement."""
        _execute(self._cursor, sql, parameters)
        return [tuple(row) for row in off_main_thread(self._cursor.fetchall)]

    def make_missing(self, relations: Sequence[str], make: Callable[[], object], schema: str = "public") -> None:
        """Have relations made unless all of them are there, by one transaction at a time.

        Relations are looked for again after waiting for the lock, because ``if not exists`` is no help: it locks the
        table of an index that is there already, and two transactions with such locks deadlock.

        Args:
            relations: names of tables and indexes.
            make: makes them.
            schema: that of all.
        """
        names = ", ".join(map(literal, relations))
        # Not to_regclass, which may answer from a cache that is not told of other transactions yet.
        there = (
            "select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace "
            f"where n.nspname = {literal(schema)} and c.relname in ({names})"
        )
        if self.fetch(there) == [(len(relations),)]:
            return
        self.execute("select pg_advisory_xact_lock(hashtextextended('user_pipeline create table', 0))")
        if self.fetch(there) != [(len(relations),)]:
            make()

    def stream(self, sql: str) -> "pa.RecordBatchReader":
        """The rows of one statement as batches, to be read before the next statement runs."""
        import pyarrow as pa

        _execute(self._cursor, sql)
        reader = self._cursor.fetch_record_batch()

        def batches() -> "Iterator[pa.RecordBatch]":
            try:
                yield from reader
            except Exception as error:
                self.failed_reads.append(error)
                raise

        return pa.RecordBatchReader.from_batches(reader.schema, batches())

    def load(self, table: str, reader: "pa.RecordBatchReader") -> int:
        """COPY batches into a new temporary table; returns the number of rows.

        An error of the reader is raised as it is: it says nothing about the database.
        """
        return self._ingest(table, reader, mode="create", temporary=True)

    def append(self, table: str, reader: "pa.RecordBatchReader", schema: str | None = None) -> int:
        """COPY batches into a table of exactly their types; returns the number of rows.

        Args:
            table: its name.
            reader: the rows; columns are matched by name. An error of it is raised as it is.
            schema: the table's schema; None for a temporary table.
        """
        return self._ingest(table, reader, mode="append", db_schema_name=schema, temporary=schema is None)

    def _ingest(self, table: str, reader: "pa.RecordBatchReader", **options: Any) -> int:  # noqa: ANN401 - of ADBC
        import adbc_driver_postgresql.dbapi as adbc
        import pyarrow as pa

        failures: list[Exception] = []

        def batches() -> "Iterator[pa.RecordBatch]":
            try:
                yield from reader
            except Exception as error:
                failures.append(error)
                raise

        watched = pa.RecordBatchReader.from_batches(reader.schema, batches())
        try:
            return int(off_main_thread(lambda: self._cursor.adbc_ingest(table, watched, **options)))
        except adbc.Error:
            if failures:
                raise failures[0] from None
            raise


class Databases:
    """The two databases of the platform.

    Attributes:
        staging: cleaned tables and rejected lines.
        analytics: the tables people query.
    """

    def __init__(self, settings: "Settings") -> None:
        self.staging = Postgres(settings.staging)
        self.analytics = Postgres(settings.analytics)

    def close(self) -> None:
        """Close what is open to either."""
        self.staging.close()
        self.analytics.close()


def quote(identifier: str) -> str:
    """An identifier as SQL takes it, whatever it is made of."""
    return '"' + identifier.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A string as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def among(column: str, days: Sequence[date]) -> str:
    """The SQL condition that a column of dates holds one of some days; false for no days."""
    named = ", ".join(f"'{day.isoformat()}'" for day in days)
    return f"{column} in ({named})" if days else "false"


def _execute(cursor: "Cursor", sql: str, parameters: tuple[Any, ...] = ()) -> None:
    # On the main thread the driver handles SIGINT itself: the statement ends without an error that says why.
    off_main_thread(lambda: cursor.execute(sql, parameters or None))

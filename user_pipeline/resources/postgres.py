"""Connections to a Postgres database, for whole transactions of Arrow batches and SQL."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from user_pipeline.errors import PermanentError, UnavailableError
from user_pipeline.interrupts import cancelled_by, off_main_thread
from user_pipeline.setting_values import Database

if TYPE_CHECKING:
    import pyarrow as pa
    from adbc_driver_manager.dbapi import Connection, Cursor

    from user_pipeline.settings import Settings


class DatabaseError(PermanentError):
    """A database refuses what the settings say: no such database, role or password."""


class StatementError(PermanentError):
    """A database cannot carry out a statement, and never will."""


class DatabaseUnavailableError(UnavailableError):
    """A database does not answer, or broke off; it may do better later."""


# https://www.postgresql.org/docs/current/errcodes-appendix.html: what no second try mends.
_PERMANENT_CLASSES = ("0A", "22", "23", "42")
_NOT_ALLOWED = "42501"
_OLDEST = 15
"""The first major version of PostgreSQL that is tried: earlier ones lack what roles and statements use."""
_REFUSED = ("28000", "28P01", "3D000", _NOT_ALLOWED)
_REFUSED_TEXTS = (
    "password authentication failed",
    "does not exist",
    "permission denied",
    "no pg_hba.conf entry",
    # What sslmode and sslrootcert ask for, and the server cannot show.
    "certificate verify failed",
    "does not match host name",
    "root certificate file",
    "does not support SSL",
)


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
        """Inside it, an error of rows that were streamed is one of the database, whoever read them and wrapped it."""
        try:
            yield
        except Exception:
            if transaction.failed_reads:
                raise self._explained(transaction.failed_reads[0]) from None
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
            raise self._explained(error) from None
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
            # libpq's message never holds the password.
            final = [line for line in str(error).splitlines() if any(text in line for text in _REFUSED_TEXTS)]
            reason = _remedied(final[0].strip() if final else _first_line(error))
            message = f"{self.database.variable}: cannot connect to Postgres: {reason}"
            refused = bool(final) or error.sqlstate in _REFUSED
            raise (DatabaseError if refused else DatabaseUnavailableError)(message) from None
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

    def _explained(self, error: Any) -> Exception:  # noqa: ANN401 - the driver's error, or Arrow's
        """The driver's error, without the statement and without the values Postgres quotes in details."""
        text = str(error)
        code = getattr(error, "sqlstate", None) or next(iter(re.findall(r"SQLSTATE: (\w{5})", text)), "")
        message = f"{self.database.variable}: {_said(text)}"
        if code == _NOT_ALLOWED:
            message += "; tables are made by their owner with `user-pipeline init-databases`, who also grants"
        return (StatementError if code[:2] in _PERMANENT_CLASSES else DatabaseUnavailableError)(message)


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

        Who waited for another to make them looks again rather than to rely on ``if not exists``: that locks the table
        of an index which is there already, and two who hold such locks wait for each other forever.

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


def _execute(cursor: "Cursor", sql: str, parameters: tuple[Any, ...] = ()) -> None:
    # On the main thread the driver takes SIGINT for itself: the statement ends, and nobody is told why.
    off_main_thread(lambda: cursor.execute(sql, parameters or None))


def _said(text: str) -> str:
    """What an error is about: what Postgres says, or libpq of a connection that broke off."""
    if found := re.search(r"(?:ERROR|FATAL|PANIC):\s*(.*)", text):
        return f"Postgres says: {found[1]}"
    # What comes after the last quote of a line: before it may be values.
    for line in text.splitlines():
        if found := re.search("(?:server closed|connection|could not|SSL).*", line.rpartition("'")[2]):
            return f"the connection broke off: {found[0]}"
    return text.partition("\n")[0]


_REMEDIES = {
    "password authentication failed": "correct user and password in the URL",
    "does not exist": "create it (deploy/sql/roles.sql makes all databases and roles), or correct the URL",
    "no pg_hba.conf entry": "the server does not let this machine in: add it to its pg_hba.conf",
    "could not translate host name": "correct the host in the URL",
    "failed: ": "start the server, or correct host and port in the URL",
}
"""What libpq says, and what would be right."""


def _remedied(reason: str) -> str:
    reason = reason.partition("Failed to connect: ")[2] or reason
    remedy = next((remedy for said, remedy in _REMEDIES.items() if said in reason), None)
    return f"{reason}. {remedy[0].upper()}{remedy[1:]}." if remedy else reason


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Where libpq was refused is said before it asks whether anybody is there.
    said = [line for line in lines if "failed: " in line]
    return (said or lines or [type(error).__name__])[-1]

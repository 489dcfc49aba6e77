"""What an error of the driver of Postgres means, without the statement and without the values in it."""

import re
from typing import Any

from user_pipeline.errors import PermanentError, UnavailableError


class DatabaseError(PermanentError):
    """A database refuses what the settings say: no such database, role or password."""


class StatementError(PermanentError):
    """A database cannot carry out a statement, however often it is tried."""


class DatabaseUnavailableError(UnavailableError):
    """A database does not answer, or broke off; it may do better later."""


# https://www.postgresql.org/docs/current/errcodes-appendix.html: errors that are not retried.
_PERMANENT_CLASSES = ("0A", "22", "23", "42")
_NOT_ALLOWED = "42501"
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


def connection_error(variable: str, error: Any) -> DatabaseError | DatabaseUnavailableError:  # noqa: ANN401 - the driver's
    """What is told of a connection that could not be made.

    Args:
        variable: the setting that names the database.
        error: the driver's error.
    """
    # libpq's message never holds the password.
    final = [line for line in str(error).splitlines() if any(text in line for text in _REFUSED_TEXTS)]
    reason = _remedied(final[0].strip() if final else _first_line(error))
    refused = bool(final) or error.sqlstate in _REFUSED
    return (DatabaseError if refused else DatabaseUnavailableError)(f"{variable}: cannot connect to Postgres: {reason}")


def statement_error(variable: str, error: Any) -> StatementError | DatabaseUnavailableError:  # noqa: ANN401 - Arrow's too
    """What is told of a statement that failed, or of rows that could not be read to their end.

    Args:
        variable: the setting that names the database.
        error: the driver's error, or Arrow's.
    """
    text = str(error)
    code = getattr(error, "sqlstate", None) or next(iter(re.findall(r"SQLSTATE: (\w{5})", text)), "")
    message = f"{variable}: {said(text)}"
    if code == _NOT_ALLOWED:
        message += "; tables are made by their owner with `user-pipeline init-databases`, who also grants"
    return (StatementError if code[:2] in _PERMANENT_CLASSES else DatabaseUnavailableError)(message)


def said(text: str) -> str:
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
    remedy = next((remedy for text, remedy in _REMEDIES.items() if text in reason), None)
    return f"{reason}. {remedy[0].upper()}{remedy[1:]}." if remedy else reason


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # The line with the reason comes before libpq's question whether a server is running there.
    failed = [line for line in lines if "failed: " in line]
    return (failed or lines or [type(error).__name__])[-1]

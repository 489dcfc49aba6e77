"""A session on a Spark Connect server, or an error that says what keeps it from being made."""

import socket
import sys
import warnings
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from user_pipeline.engines.spark_errors import (
    VARIABLE,
    MissingSparkError,
    SparkRefusedError,
    SparkUnavailableError,
    SparkVersionError,
    told,
)
from user_pipeline.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql.connect.session import SparkSession

_PORT = 15002
_SECONDS = 5.0
# A server that is gone is told of within seconds; the client's own policy waits for minutes.
_RETRIES = {"max_retries": 4, "max_backoff": 2_000}
_SETTINGS = {
    "spark.sql.session.timeZone": "UTC",
    # As all tables have it.
    "spark.sql.timestampType": "TIMESTAMP_NTZ",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "100000",
}


def address(remote: str) -> tuple[str, int]:
    """Host and port of a server, without the token."""
    parts = urlsplit(remote)
    return parts.hostname or "", parts.port or _PORT


def remote_of(settings: Settings) -> str:
    """The address of the settings, token and all."""
    if settings.spark_remote is None:  # which the settings refuse
        raise ValueError(f"{VARIABLE} is not set")
    return settings.spark_remote.get_secret_value()


def connect(settings: Settings) -> "SparkSession":
    """A new session on the server of the settings.

    Raises:
        MissingSparkError: the client is not installed.
        SparkUnavailableError: nobody answers there.
        SparkRefusedError: the server does not let the run in.
        SparkVersionError: the server is of another version than the client.
    """
    remote = remote_of(settings)
    try:
        with warnings.catch_warnings():
            # Pandas is not what frames are here.
            warnings.filterwarnings("ignore", category=FutureWarning, module="pyspark")
            _name_program()
            from pyspark.sql.connect.session import SparkSession
    except ImportError as error:
        raise MissingSparkError(str(error)) from error
    _reach(*address(remote))
    with told():
        session = SparkSession.builder.remote(remote).create()
    try:
        _set_up(session)
    except BaseException:
        # It would stay the client's active session, and later ones would ask its server.
        session.stop()
        raise
    return session


def _set_up(session: "SparkSession") -> None:
    """Give a new session its settings.

    Raises:
        SparkVersionError: the server is of another version than the client.
    """
    import pyspark
    from pyspark.sql.connect.client.retries import DefaultPolicy

    with told():
        session.client.set_retry_policies([DefaultPolicy(**_RETRIES)])  # type: ignore[arg-type]
        version = session.version
    if version.split(".")[:2] != pyspark.__version__.split(".")[:2]:
        raise SparkVersionError(version, pyspark.__version__)
    with told():
        for name, value in _SETTINGS.items():
            session.conf.set(name, value)


def _name_program() -> None:
    """Give a program without a file a specification.

    The client takes one that has neither for its own doctests, and ends the process: `python -c`, and with it the
    workers of multiprocessing.
    """
    program = sys.modules["__main__"]
    if program.__spec__ is None and not hasattr(program, "__file__"):
        program.__spec__ = ModuleSpec("__main__", None)


def _reach(host: str, port: int) -> None:
    """See that somebody listens there.

    Raises:
        SparkUnavailableError: nobody does.
    """
    try:
        with socket.create_connection((host, port), _SECONDS):
            return
    except OSError as error:
        raise SparkUnavailableError(f"{host}:{port} cannot be reached: {error}") from error


__all__ = ["SparkRefusedError", "connect"]

"""What goes wrong with Spark, in the terms of the settings."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from user_pipeline.errors import PermanentError
from user_pipeline.masking import mask
from user_pipeline.settings import variable_of

VARIABLE = variable_of("spark_remote")
_GONE = re.compile(
    r"UNAVAILABLE|RETRIES_EXCEEDED|SESSION_NOT_FOUND|SESSION_CLOSED|SESSION_CHANGED|OPERATION_NOT_FOUND"
    r"|SparkContext was shut down|Connection reset|Socket closed|NO_ACTIVE_SESSION"
)
_REFUSED = re.compile(r"UNAUTHENTICATED|PERMISSION_DENIED")
_NO_MODULE = re.compile(r"No module named '?([\w.]+)'?")
_OTHER_PYTHON = re.compile(r"PYTHON_VERSION_MISMATCH[^\n]*")
# The last line of a traceback of Python, wherever it stands.
_RAISED = re.compile(r"^\s*(?:[\w]+\.)*(\w+(?:Error|Exception)): (.+)$", re.MULTILINE)
_LONGEST = 500


class MissingSparkError(PermanentError):
    """The client of Spark is not installed."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            f"USER_PIPELINE_ENGINE=spark needs Spark's client, which cannot be loaded ({problem}): install the extra "
            "spark, as in `pip install 'user_pipeline[spark]'`, or set USER_PIPELINE_ENGINE=duckdb"
        )


class SparkUnavailableError(Exception):
    """The server does not answer, or not any more; it may do later."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            f"{VARIABLE}: the Spark Connect server does not answer: {mask(problem)[:_LONGEST]}. Nothing is half-done. "
            "See that it runs and that its address is right; then run this again."
        )


class SparkRefusedError(PermanentError):
    """The server does not let the run in."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            f"{VARIABLE}: the Spark Connect server refuses the run ({mask(problem)[:_LONGEST]}): set the token that it "
            "was started with, as sc://host:15002/;token=…"
        )


class SparkVersionError(PermanentError):
    """The server is of another version than the client."""

    def __init__(self, server: str, client: str) -> None:
        super().__init__(
            f"{VARIABLE}: the server is Spark {server}, and the run has pyspark-client {client}: both have to be of "
            "one minor version. Install the client of the server's, or start such a server."
        )


class ExecutorError(PermanentError):
    """An executor says what a person has to change first."""

    def __init__(self, kind: str, problem: str) -> None:
        super().__init__(f"on a Spark executor: {problem}")
        self.kind = kind


class ExecutorPackagesError(PermanentError):
    """Executors lack a package."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            f"the Spark executors cannot run the project's code: {problem}. They need Python, user_pipeline and what "
            "it works with, in the versions of the run, as an image or an archive; docs/spark.md says how one is made."
        )


class SparkTaskError(Exception):
    """A task failed as often as Spark tries it."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"a task on the Spark executors failed each time that it was tried: {problem}")


@contextmanager
def told() -> Iterator[None]:
    """Inside it, what Spark and its client say becomes one of the errors above, with no values and no secrets in it.

    Raises:
        SparkUnavailableError, SparkRefusedError, ExecutorError, ExecutorPackagesError, SparkTaskError: see there.
    """
    import grpc
    from pyspark.errors import PySparkException

    try:
        yield
    except (PySparkException, grpc.RpcError) as error:
        raise _told(str(error)) from None


def _told(text: str) -> Exception:
    raised = [(kind, said) for kind, said in _RAISED.findall(text) if kind not in ("PythonException", "RuntimeError")]
    if _REFUSED.search(text) and not raised:
        return SparkRefusedError(text.splitlines()[0])
    if "user_pipeline" in text and (lacking := _NO_MODULE.search(text)):
        return ExecutorPackagesError(f"there is no {lacking[1]}")
    if other := _OTHER_PYTHON.search(text):
        return ExecutorPackagesError(other[0])
    permanent = {kind.__name__ for kind in _below(PermanentError)}
    for kind, said in raised:
        if kind in permanent:
            return ExecutorError(kind, mask(said))
    if _GONE.search(text):
        return SparkUnavailableError(text.splitlines()[0])
    problem = f"{raised[0][0]}: {raised[0][1]}" if raised else text.splitlines()[0]
    return SparkTaskError(mask(problem)[:_LONGEST])


def _below(kind: type) -> set[type]:
    found: set[type] = {kind}
    direct: type
    for direct in kind.__subclasses__():
        found |= _below(direct)
    return found

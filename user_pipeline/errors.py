"""Non-retryable errors, and errors without e-mail addresses and secrets.

Dagster is imported in the functions that hand an error to it: the libraries that raise these errors do not need it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from user_pipeline.interrupts import raise_if_told
from user_pipeline.masking import mask
from user_pipeline.settings import SettingsError


class PermanentError(Exception):
    """A non-retryable error: a person has to change a setting, a bucket, an object or a table first."""


class UnavailableError(Exception):
    """A store, database or queue does not answer, or the connection broke off. It may answer later."""


class MaskedError(Exception):
    """Replaces an error if its message, or that of one of its causes, holds an e-mail address or a secret."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"{type(error).__module__}.{type(error).__qualname__}: {mask(str(error))}")


@contextmanager
def masked() -> Iterator[None]:
    """Inside it, errors with an e-mail address or a secret are replaced by a :class:`MaskedError`.

    S3 repeats the token of a request that it refuses, and the engine the value that it cannot convert.

    Raises:
        KeyboardInterrupt: the process was told to stop meanwhile.
    """
    from dagster import Failure, RetryRequested

    try:
        yield
        raise_if_told()
    except (Failure, RetryRequested):
        raise
    except Exception as error:
        raise_if_told(error)
        if _is_clean(error):
            raise
        raise MaskedError(error) from None


@contextmanager
def never_retried() -> Iterator[None]:
    """Inside it, a permanent error fails the step at once, whatever its retry policy; others are :func:`masked`."""
    from dagster import Failure

    with masked():
        try:
            yield
        except (PermanentError, SettingsError) as error:
            # Dagster shows the causes of an error with it.
            cause = error if _is_clean(error) else None
            raise Failure(description=mask(str(error)), allow_retries=False) from cause


def _is_clean(error: BaseException) -> bool:
    chain: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in chain:
        chain.append(following)
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)
    return all(mask(str(link)) == str(link) for link in chain)

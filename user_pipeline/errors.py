"""Errors that a second try cannot mend."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from user_pipeline.settings import SettingsError


class PermanentError(Exception):
    """Something a person has to change first: a setting, a bucket, an object, a table."""


@contextmanager
def never_retried() -> Iterator[None]:
    """Inside it, a permanent error fails the step at once, whatever its retry policy."""
    try:
        yield
    except (PermanentError, SettingsError) as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error

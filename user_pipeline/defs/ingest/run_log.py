"""Copy what ingest logs, with Python's logging, to the log of the run."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

_LOGGER = "user_pipeline.ingest"


class _Forward(logging.Handler):
    def __init__(self, log: dg.DagsterLogManager) -> None:
        super().__init__(logging.INFO)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.log(record.levelno, "%s", record.getMessage())


@contextmanager
def logged_to(log: dg.DagsterLogManager) -> Iterator[None]:
    """Inside it, what ingest logs goes to the log of the run, whatever the instance captures of Python's loggers."""
    logger = logging.getLogger(_LOGGER)
    handler, level = _Forward(log), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)

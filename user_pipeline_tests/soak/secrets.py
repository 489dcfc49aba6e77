"""Secrets planted in the settings, addresses in the feeds: looked for in every event and log of a soak."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest
from dagster_shared.serdes import serialize_value

from user_pipeline_tests.soak import COUNTS

_PLANTED = "planted-in-a-setting"
NEEDLES = (_PLANTED, "@x.org")
"""All addresses that are delivered are of this domain."""


def plant(patch: pytest.MonkeyPatch) -> None:
    """Set what may hold a secret; nothing here asks for any of it."""
    patch.setenv("USER_PIPELINE_ALERT_WEBHOOK_URL", f"http://u:{_PLANTED}-1@127.0.0.1:9/{_PLANTED}-2")
    patch.setenv("USER_PIPELINE_HEARTBEAT_URL", f"http://127.0.0.1:9/{_PLANTED}-3")
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "PGPASSWORD"):
        patch.setenv(name, f"{_PLANTED}-{name}")


def search(text: str) -> None:
    """Refuse a text that shows one of them.

    Raises:
        AssertionError: it does; with what is around it.
    """
    COUNTS["bytes searched for secrets"] += len(text)
    for needle in NEEDLES:
        at = text.find(needle)
        assert at < 0, f"shown: …{text[max(0, at - 300) : at + 100]}…"


def search_events(instance: dg.DagsterInstance, run_id: str) -> None:
    """The same for all that Dagster keeps of a run."""
    run = instance.get_run_by_id(run_id)
    search(serialize_value(run))
    for entry in instance.all_logs(run_id):
        search(serialize_value(entry))


class Logged:
    """All that this process and its children write to standard error, Dagster's log of each run above all.

    Args:
        file: where it goes as long as the block lasts.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Have it written to the file."""
        kept = os.dup(2)
        descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            os.dup2(descriptor, 2)
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(descriptor)
            os.close(kept)

    def search(self) -> str | None:
        """What of it shows a secret; it is let go of then."""
        try:
            search(self._file.read_text(encoding="utf-8", errors="replace"))
        except AssertionError as error:
            return str(error)
        finally:
            os.truncate(self._file, 0)
        return None

"""Random histories against the oracle for as long as you like: ``make soak ARGS="--minutes 60 --seed 1"``.

A history is a run of the state machine of ``test_oracle.py`` (objects delivered, changed and deleted, bad lines,
further keys and columns, days and ranges materialized), with more that may happen: people are forgotten, runs are
killed, two run at once, the lake is vacuumed, both databases are lost and filled again from the lake, and everything is
verified. A number decides ten of them. A failing one is shrunk, and what is left of its steps is printed with the
number.

The numbers that were done, and the counts, are kept in a file: the next call goes on after them. No part of CI.
"""

import argparse
import contextlib
import json
import logging
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule, run_state_machine_as_test

from user_pipeline.ingest.feeds import FEEDS
from user_pipeline.ingest.vacuum import vacuum
from user_pipeline.reconcile.forgetting.forget import forget, survey
from user_pipeline.reconcile.full_refresh import recover
from user_pipeline.reconcile.verify import verify
from user_pipeline.resources.embedded_postgres import EmbeddedPostgres, ensure_running, stop
from user_pipeline_tests.cli.test_lake_commands import lose
from user_pipeline_tests.faults.forked import Parent, Run
from user_pipeline_tests.ingest.reading import manifest_of
from user_pipeline_tests.test_oracle import DAYS, Pipeline

COUNTS: Counter[str] = Counter()
"""What happened, shrinking included."""


_AT_ONCE = 10
"""Histories of a number. The first of them are the simplest ones there are."""


class Soak(Pipeline):
    """The oracle's pipeline, and everything else that may happen to it."""

    parent: Parent
    forgotten: frozenset[int] = frozenset()

    @rule(user=st.sampled_from((1, 2, 3)))
    def forget_somebody(self, user: int) -> None:
        with self.platform.engine() as engine:
            forget(self.platform.lake, engine, [user])
            assert [found for found in survey(self.platform.lake, engine, [user]) if found.rows] == []
        self.forgotten |= {user}
        COUNTS["people forgotten"] += 1

    @rule(after=st.floats(0.1, 2.0), first=st.sampled_from(DAYS))
    def kill_a_run(self, after: float, first: date) -> None:
        last = DAYS[-1]
        [ended] = self.parent.run(self.platform.environment, Run(str(first), str(last)), kill_after=[after])
        COUNTS["kills"] += ended.killed
        self.materialize_everything(first, len(DAYS))

    @rule(first=st.sampled_from(DAYS), second=st.sampled_from(DAYS))
    def run_two_at_once(self, first: date, second: date) -> None:
        for ended in self.parent.run(self.platform.environment, Run(str(first)), Run(str(second))):
            assert ended.code == 0, ended.output
        COUNTS["runs beside another"] += 2
        self.materialize_everything(DAYS[0], len(DAYS))

    @rule()
    def lose_both_databases(self) -> None:
        lose(self.platform, "staging", "analytics")
        with self.platform.engine() as engine:
            recover(self.platform.lake, engine)
        COUNTS["recoveries"] += 1
        self.materialize_everything(DAYS[0], len(DAYS))

    @rule()
    def verify_everything(self) -> None:
        self.materialize_everything(DAYS[0], len(DAYS))
        vacuum(self.platform.lake, datetime.now(UTC), kept=timedelta())
        with self.platform.engine() as engine:
            found = {compared.table: compared.differences for compared in verify(self.platform.lake, engine)}
        assert {table: differences for table, differences in found.items() if differences} == {}
        for feed in FEEDS:
            manifest = manifest_of(self.platform, feed)
            assert manifest.unaccounted() == []
            account = manifest.account()
            assert account["lines"] == sum(account[what] for what in ("rows", "rejected", "blank", "header"))
            COUNTS["lines accounted for"] += account["lines"]
        COUNTS["verifications"] += 1

    @invariant()
    def tables_equal_a_recompute(self) -> None:
        for by_day in ("views", "counted", "updates", "known"):
            there = getattr(self, by_day, {})
            for day, rows in there.items():
                there[day] = {row for row in rows if row.user_id not in self.forgotten}
        super().tables_equal_a_recompute()
        COUNTS["comparisons"] += 1

    def teardown(self) -> None:
        super().teardown()
        COUNTS["histories"] += 1

    def _materialize(self, days: list[date], select: Any) -> None:
        super()._materialize(days, select)
        COUNTS["runs"] += 1


def history(number: int) -> str | None:
    """Go through the histories of a number; what went wrong, if anything."""

    class Numbered(Soak):
        pass

    options = settings(
        max_examples=_AT_ONCE,
        stateful_step_count=14,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    try:
        run_state_machine_as_test(seed(number)(Numbered), settings=options)
    except Exception:  # noqa: BLE001 - whatever it is, it is told, and the next history begins
        return traceback.format_exc()
    return None


@contextlib.contextmanager
def prepared() -> Iterator[None]:
    """A server and a parent of runs that can be killed, for all histories."""
    with tempfile.TemporaryDirectory(prefix="soak-") as root, pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("AWS_", "USER_PIPELINE_", "DAGSTER_", "PG")):
                patch.delenv(name)
        logging.getLogger("dagster").setLevel(logging.WARNING)
        server: EmbeddedPostgres = ensure_running(Path(root) / "data")
        try:
            with Parent.start(Path(root)) as parent:
                Soak.postgres, Soak.parent = server, parent
                yield
        finally:
            stop(Path(root) / "data")


def main() -> int:
    """Go through histories; 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1, help="another one has other histories")
    parser.add_argument("--history", type=int, help="only those of this number, to see it fail again")
    parser.add_argument("--state", type=Path, default=Path("soak.json"), help="what was done so far")
    chosen = parser.parse_args()
    state: dict[str, Any] = {"done": {}, "counts": {}, "failed": []}
    if chosen.state.is_file():
        state = json.loads(chosen.state.read_text(encoding="utf-8"))
    end = time.monotonic() + 60 * chosen.minutes
    with prepared():
        if chosen.history is not None:
            said = history(chosen.history)
            sys.stdout.write(said or "No difference.\n")
            return 1 if said else 0
        while time.monotonic() < end:
            done = state["done"].get(str(chosen.seed), 0)
            number = chosen.seed * 1_000_000 + done
            COUNTS.clear()
            said = history(number)
            state["done"][str(chosen.seed)] = done + 1
            state["counts"] = dict(Counter(state["counts"]) + COUNTS)
            if said:
                state["failed"].append(number)
                sys.stdout.write(f"history {number} failed; again: make soak ARGS='--history {number}'\n{said}\n")
            chosen.state.write_text(json.dumps(state, indent=1), encoding="utf-8")
            sys.stdout.write(f"{number}: {state['counts']}, {len(state['failed'])} failed\n")
            sys.stdout.flush()
    return 1 if state["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())

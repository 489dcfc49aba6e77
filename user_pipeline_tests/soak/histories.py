"""Histories: runs of the state machine of ``test_oracle.py``, with everything else that may happen."""

import gzip
import traceback
from datetime import UTC, date, datetime, timedelta
from random import Random
from typing import Any

import dagster as dg
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule, run_state_machine_as_test

from user_pipeline import settings as platform_settings
from user_pipeline.ingest.feeds import FEEDS
from user_pipeline.ingest.vacuum import vacuum
from user_pipeline.reconcile.forgetting.forget import forget, survey
from user_pipeline.reconcile.full_refresh import recover
from user_pipeline.reconcile.retention import end_retention
from user_pipeline.reconcile.verify import verify
from user_pipeline_tests.cli.test_lake_commands import lose
from user_pipeline_tests.faults.forked import Ended, Parent, Run
from user_pipeline_tests.ingest.reading import ingest, manifest_of
from user_pipeline_tests.platform import LOG_PIPELINE
from user_pipeline_tests.soak import COUNTS
from user_pipeline_tests.soak.secrets import search, search_events
from user_pipeline_tests.test_oracle import DAYS, Pipeline, draws, some_updates, some_views

_AT_ONCE = 4
"""Histories of a number. The first of them are the simplest ones there are."""
_PEOPLE = st.sampled_from((1, 2, 3))
_EVERYTHING = " or ".join(f"({selection})" for selection in LOG_PIPELINE)


class Soak(Pipeline):
    """The oracle's pipeline, and everything else that may happen to it.

    Attributes:
        parent: of runs in processes of their own.
        remote: a Spark cluster; None where there is none.
        forgotten: the people who were forgotten.
    """

    parent: Parent
    remote: str | None = None
    forgotten: frozenset[int] = frozenset()

    @rule(feed=st.sampled_from(FEEDS), draw=draws)
    def deliver_compressed(self, feed: Any, draw: Random) -> None:
        content = self._lines(feed, draw)
        self.platform.put(f"{feed.folder}/c.gz", gzip.compress(content))
        self.delivered[feed.folder]["c.gz"] = content

    @rule(feed=st.sampled_from(FEEDS), draw=draws)
    def corrupt_object(self, feed: Any, draw: Random) -> None:
        key = f"{feed.folder}/c.gz"
        self.platform.put(key, gzip.compress(self._lines(feed, draw))[: draw.choice((5, 30, -5))])
        read = ingest(self.platform, feed, now=datetime.now(UTC), alone=False)
        assert [entry.key for entry in read.ingested.broken] == [key]
        # It brings no rows, and what it brought before is replaced.
        self.delivered[feed.folder]["c.gz"] = b""
        self._read(feed.folder)
        COUNTS["corrupt objects"] += 1

    @rule(user=_PEOPLE)
    def forget_somebody(self, user: int) -> None:
        self._forget(user)

    @rule(user=_PEOPLE, first=st.sampled_from(DAYS))
    def forget_somebody_beside_a_run(self, user: int, first: date) -> None:
        first = max(first, self.kept_from)
        ran, forgot = self._run(Run(str(first), str(DAYS[-1])), Run(forget=[user]))
        assert forgot.code == 0, forgot.output
        # A run that reads a file at the moment it is deleted fails with its name, and is launched again.
        assert ran.code == 0 or ".parquet" in ran.output, ran.output
        COUNTS["people forgotten beside a run"] += 1
        self.materialize_everything(DAYS[0], len(DAYS))
        self._forget(user)

    @rule(first=st.sampled_from(DAYS[1:]))
    def end_retention(self, first: date) -> None:
        first = max(first, self.kept_from)
        with self.platform.engine() as engine:
            end_retention(self.platform.lake, engine, first, datetime.now(UTC))
            again = end_retention(self.platform.lake, engine, first, datetime.now(UTC))
        assert (again.files, again.days) == (0, 0)
        self.kept_from = first
        # Rows and identities go; sums stay.
        for by_day in (self.views, self.updates, self.known):
            for day in [day for day in by_day if day < first]:
                del by_day[day]
        COUNTS["ends of retention"] += 1

    @precondition(lambda self: self.remote)
    @rule(engine=st.sampled_from(("duckdb", "spark")))
    def switch_the_engine(self, engine: str) -> None:
        self.patch.setenv("USER_PIPELINE_ENGINE", engine)
        self.patch.setenv("USER_PIPELINE_SPARK_REMOTE", str(self.remote) if engine == "spark" else "")
        platform_settings.current.cache_clear()
        COUNTS[f"switches to {engine}"] += 1

    @rule(after=st.floats(0.1, 2.0), first=st.sampled_from(DAYS))
    def kill_a_run(self, after: float, first: date) -> None:
        [ended] = self._run(Run(str(max(first, self.kept_from)), str(DAYS[-1])), kill_after=[after])
        COUNTS["kills"] += ended.killed
        self.materialize_everything(first, len(DAYS))

    @rule(after=st.floats(0.05, 1.0), user=_PEOPLE)
    def kill_forgetting_somebody(self, after: float, user: int) -> None:
        [ended] = self._run(Run(forget=[user]), kill_after=[after])
        COUNTS["kills"] += ended.killed
        self._forget(user)

    @rule(first=st.sampled_from(DAYS), second=st.sampled_from(DAYS))
    def run_two_at_once(self, first: date, second: date) -> None:
        days = [str(max(day, self.kept_from)) for day in (first, second)]
        for ended in self._run(*map(Run, days)):
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
        # Recommendations and exports as well, and all checks. Charts say nothing that is compared.
        self._run_days(self.kept_from, f"({_EVERYTHING}) and not key:traffic_report", checks=True)
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
        drifted = self.platform.rows("staging", "select feed, name, lines from pipeline.further_fields order by 1")
        assert {(feed, name) for feed, name, _ in drifted} <= {("page_views", "more"), ("user_updates", "6")}
        assert all(lines > 0 for *_, lines in drifted)
        COUNTS["lines with further fields"] += sum(lines for *_, lines in drifted)
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

    def _lines(self, feed: Any, draw: Random) -> bytes:
        if feed.folder == "UserUpdates":
            return some_updates(draw).encode()
        self.platform.put_views("drafts", some_views(draw))
        draft = self.root / "source/drafts"
        content = draft.read_bytes()
        draft.unlink()
        return content

    def _forget(self, user: int) -> None:
        with self.platform.engine() as engine:
            forget(self.platform.lake, engine, [user])
            assert [found for found in survey(self.platform.lake, engine, [user]) if found.rows] == []
        self.forgotten |= {user}
        COUNTS["people forgotten"] += 1

    def _run(self, *runs: Run, kill_after: list[float] | None = None) -> list[Ended]:
        """Runs in processes of their own."""
        every = self.parent.run(self.platform.environment, *runs, kill_after=kill_after or [])
        for ended in every:
            search(ended.output)
        return every

    def _materialize(self, days: list[date], select: Any) -> None:
        self._run_days(days[0], select, last=days[-1])

    def _run_days(self, first: date, select: Any, *, last: date = DAYS[-1], checks: bool = False) -> None:
        with dg.DagsterInstance.ephemeral() as instance:
            result = self.platform.materialize(
                str(first), str(last) if last > first else None, select=select, checks=checks, instance=instance
            )
            assert result.success
            search_events(instance, result.run_id)
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

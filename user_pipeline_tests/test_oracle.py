"""Whatever arrives and is materialized, in any order: the tables equal a full recompute from the log lines."""

import shutil
import tempfile
from collections.abc import Iterable
from datetime import date, timedelta
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from user_pipeline.resources.embedded_postgres import EmbeddedPostgres
from user_pipeline_tests import oracle
from user_pipeline_tests.platform import Platform, update, view

FIRST = date(2017, 4, 1)
DAYS = [FIRST + timedelta(days=n) for n in range(4)]
ALL = ("raw_user_updates", "raw_page_views", "user_updates", "page_views", "users", "user_page_views")

PAGES = ("/a", "/b", "/ü;'\"\\")
ENVIRONMENTS = ("production", "production", "production", "production", "staging", "Production")
BROKEN_VIEWS = ("", "{broken", '{"ts": "2017-04-01T00:00:00", "url": "/x", "environment": "production"}')
BROKEN_UPDATES = ("\n", "one,two\n", '"2017-04-01T00:00:00","1","no e-mail","Ann","production"\n')


def moment(draw: Random) -> str:
    form = draw.choice(("0", "0Z", "0.25", "0+02:00", "0-01:30", "0.1234567"))
    return f"{draw.choice(DAYS)}T{draw.choice((0, 11, 23)):02}:00:0{form}"


def some_views(draw: Random) -> list[Any]:
    """Lines of page views, so few different ones that days, users and pages meet."""
    good = [
        view(
            moment(draw),
            draw.choice(PAGES),
            draw.choice((1, 2, 3, "1", "2")),
            draw.choice(ENVIRONMENTS),
            **draw.choice(({}, {}, {"more": None})),
        )
        for _ in range(draw.choice((0, 10, 20, 30)))
    ]
    return [*good, draw.choice(BROKEN_VIEWS), *good[:2]]


def some_updates(draw: Random) -> str:
    """Lines of user updates, of the same few users."""
    good = [
        update(
            moment(draw),
            draw.choice((1, 2, 3)),
            draw.choice(("a@x.org", "b@x.org", "B@x.org")),
            draw.choice(("Ann", 'A "nn"', "A\nnn", "a,b", "")),
            draw.choice(ENVIRONMENTS),
        )
        for _ in range(draw.choice((0, 5, 10, 15)))
    ]
    if draw.random() < 0.3:
        good = [line.removesuffix("\n") + ',"one, ""more"""\n' for line in good]
    return "".join([*good, draw.choice(BROKEN_UPDATES), *good[:1]])


# Hypothesis chooses what happens and shrinks that; left to choose each line, it mostly chooses none.
draws = st.randoms(use_true_random=True)
T = TypeVar("T")
keys = st.sampled_from(["a", "nested/b"])


class Pipeline(RuleBasedStateMachine):
    """The real pipeline on one side, and on the other what was delivered and what was materialized when."""

    postgres: EmbeddedPostgres
    kept_from: date = FIRST
    """Days before are past their retention."""

    @initialize()
    def start(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="user-pipeline-oracle-"))
        self.making = Platform.create(self.postgres, self.root)
        self.platform = self.making.__enter__()
        self.patch = pytest.MonkeyPatch()
        for name, value in self.platform.environment.items():
            self.patch.setenv(name, value)
        # What is in the source, and what the platform has read: a deleted object keeps what it brought.
        self.delivered: dict[str, dict[str, bytes]] = {"PageViews": {}, "UserUpdates": {}}
        self.read: dict[str, dict[str, bytes]] = {"PageViews": {}, "UserUpdates": {}}
        # What each table holds of each day, as of its own latest materialization.
        self.views: dict[date, set[oracle.View]] = {}
        self.updates: dict[date, set[oracle.Update]] = {}
        self.counted: dict[date, set[oracle.View]] = {}
        self.known: dict[date, set[oracle.Update]] = {}
        # Something to change, lose and repair from the first step on.
        draw = Random(3)  # noqa: S311 - test data
        self.deliver_views("a", draw)
        self.deliver_updates("a", draw)
        self.materialize_everything(FIRST, len(DAYS))

    @rule(key=keys, draw=draws)
    def deliver_views(self, key: str, draw: Random) -> None:
        self.platform.put_views(f"PageViews/{key}", some_views(draw))
        self.delivered["PageViews"][key] = (self.root / "source/PageViews" / key).read_bytes()

    @rule(key=keys, draw=draws)
    def deliver_updates(self, key: str, draw: Random) -> None:
        content = some_updates(draw).encode()
        self.platform.put(f"UserUpdates/{key}", content)
        self.delivered["UserUpdates"][key] = content

    @precondition(lambda self: any(self.delivered.values()))
    @rule(data=st.data())
    def delete_object(self, data: st.DataObject) -> None:
        present = [(folder, key) for folder, objects in self.delivered.items() for key in sorted(objects)]
        folder, key = data.draw(st.sampled_from(present))
        (self.root / "source" / folder / key).unlink()
        del self.delivered[folder][key]

    @rule(first=st.sampled_from(DAYS), length=st.integers(1, 4))
    def materialize_everything(self, first: date, length: int) -> None:
        days = [day for day in DAYS if max(first, self.kept_from) <= day < first + timedelta(days=length)]
        if not days:
            return
        self._materialize(days, ALL)
        self._read("PageViews", "UserUpdates")
        for day in days:
            self.views[day] = self.counted[day] = oracle.page_views(self.read["PageViews"], day)
            self.updates[day] = self.known[day] = oracle.user_updates(self.read["UserUpdates"], day)

    @rule(day=st.sampled_from(DAYS))
    def materialize_page_views_alone(self, day: date) -> None:
        day = max(day, self.kept_from)
        self._materialize([day], ["raw_page_views", "page_views"])
        self._read("PageViews")
        self.views[day] = oracle.page_views(self.read["PageViews"], day)

    @precondition(lambda self: self.views)
    @rule(data=st.data())
    def materialize_user_page_views_alone(self, data: st.DataObject) -> None:
        day = data.draw(st.sampled_from(sorted(self.views)))
        self._materialize([day], ["user_page_views"])
        self.counted[day] = self.views[day]

    @precondition(lambda self: self.updates)
    @rule(data=st.data())
    def materialize_users_alone(self, data: st.DataObject) -> None:
        day = data.draw(st.sampled_from(sorted(self.updates)))
        self._materialize([day], ["users"])
        self.known[day] = self.updates[day]

    @invariant()
    def tables_equal_a_recompute(self) -> None:
        if not hasattr(self, "platform"):
            return
        staging, analytics = ("staging", "analytics")
        assert self.platform.table(staging, "page_views") == _sorted(map(tuple, _all(self.views)))
        assert self.platform.table(staging, "user_updates") == _sorted(map(tuple, _all(self.updates)))
        assert self.platform.table(analytics, "users") == _sorted(oracle.users(_all(self.known)))
        assert self.platform.table(analytics, "user_page_views") == _sorted(
            oracle.user_page_views(_all(self.counted), _all(self.known))
        )

    def teardown(self) -> None:
        if hasattr(self, "platform"):
            self.patch.undo()
            self.making.__exit__(None, None, None)
            shutil.rmtree(self.root)

    def _materialize(self, days: list[date], select: Iterable[str]) -> None:
        first, last = str(days[0]), str(days[-1])
        assert self.platform.materialize(
            first, None if first == last else last, select=tuple(select), checks=False
        ).success

    def _read(self, *folders: str) -> None:
        for folder in folders:
            self.read[folder] |= self.delivered[folder]


def _all(by_day: dict[date, set[T]]) -> list[T]:
    return [item for items in by_day.values() for item in items]


def _sorted(rows: Iterable[tuple[object, ...]]) -> list[tuple[object, ...]]:
    return sorted(rows, key=repr)


def test_any_history_gives_the_full_recompute(postgres: EmbeddedPostgres) -> None:
    Pipeline.postgres = postgres
    run_state_machine_as_test(
        Pipeline,
        settings=settings(
            max_examples=12,
            stateful_step_count=14,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )

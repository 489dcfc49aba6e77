"""What the tables must be for each state of the source, and what readers may see between two of them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from user_pipeline_tests import oracle
from user_pipeline_tests.platform import Platform, update, view

DAY = "2017-04-01"
NEXT = "2017-04-02"
Rows = list[tuple[Any, ...]]


@dataclass(frozen=True)
class State:
    """One version of the source: objects that share users, pages and days, with lines that are no rows.

    Attributes:
        views: the objects of page views by key.
        updates: those of user updates.
        days: the days that are materialized.
    """

    views: Mapping[str, bytes]
    updates: Mapping[str, bytes]
    days: tuple[str, ...] = (DAY,)

    @classmethod
    def number(cls, number: int, rows: int = 12) -> "State":
        """Each differs from the one before in every table: rows come, go, and change."""
        views = {
            key: "".join(
                json.dumps(view(f"{day}T{n % 24:02}:{number % 60:02}:{n % 60:02}", f"/{(n + number) % 5}", n % 4))
                + "\n"
                for day in (DAY, NEXT)
                for n in range(rows)
            )
            + f"broken {key} {number}\n"
            for key in ("PageViews/a", "PageViews/b")
        }
        # It stays as it is: of a part file that has its rows and those of others some do not count any more.
        views["PageViews/c"] = "".join(json.dumps(view(f"{day}T12:00:00", "/c", 7)) + "\n" for day in (DAY, NEXT))
        updates = {
            "UserUpdates/a": "".join(
                update(f"{day}T{n % 24:02}:00:00", n % 3, f"u{n}.v{number}@example.com", f"Name {number}")
                for day in (DAY, NEXT)
                for n in range(rows)
            )
            + update(f"{DAY}T00:00:00", 1, f"none {number}")
        }
        return cls(
            {key: text.encode() for key, text in views.items()}, {key: text.encode() for key, text in updates.items()}
        )

    def deliver(self, platform: Platform) -> None:
        """Put what differs from what is there."""
        for key, content in {**self.views, **self.updates}.items():
            file = platform.root / "source" / key
            if not file.is_file() or file.read_bytes() != content:
                platform.put(key, content)

    def tables(self) -> dict[str, Rows]:
        """Every table that people may read, sorted as :meth:`Platform.table` does."""
        views = [v for day in self.days for v in oracle.page_views(self.views, date.fromisoformat(day))]
        updates = [u for day in self.days for u in oracle.user_updates(self.updates, date.fromisoformat(day))]
        return {
            "page_views": _sorted(views),
            "user_updates": _sorted(updates),
            "users": _sorted(oracle.users(updates)),
            "user_page_views": _sorted(oracle.user_page_views(views, updates)),
        }


def _sorted(rows: Any) -> Rows:
    return sorted((tuple(row) for row in rows), key=repr)


def between(old: State, new: State) -> dict[str, list[Rows]]:
    """What readers may see of each table while the old state is replaced by the new one.

    Each table is in the old or in the new state; the e-mail addresses in ``user_page_views`` are those of
    ``users``, which comes before it.
    """
    tables = [old.tables(), new.tables(), State(old.views, new.updates, new.days).tables()]
    return {
        name: [state[name] for state in (tables if name == "user_page_views" else tables[:2])] for name in tables[0]
    }


def seen(platform: Platform) -> dict[str, Rows]:
    """What readers see."""
    return {
        name: platform.table("staging" if name in ("page_views", "user_updates") else "analytics", name)
        for name in ("page_views", "user_updates", "users", "user_page_views")
    }


def assert_old_or_new(platform: Platform, old: State, new: State) -> set[str]:
    """Readers see the old or the new state of every table; returns the tables that are in the new one."""
    allowed, found, wanted = between(old, new), seen(platform), new.tables()
    for name, rows in found.items():
        assert rows in allowed[name], f"{name} is in neither state"
    return {name for name, rows in found.items() if rows == wanted[name]}


def assert_exact(platform: Platform, state: State) -> None:
    """Every table is the state's, and everything stored equals a recompute from the lake."""
    from user_pipeline.reconcile.verify import verify

    assert seen(platform) == state.tables()
    with platform.engine() as engine:
        compared = list(verify(platform.lake, engine))
    assert [(c.table, c.differences) for c in compared if c.differences] == []

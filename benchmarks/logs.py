"""Feed-format logs of any size, made by DuckDB: about two million page views a second on two cores.

    python benchmarks/logs.py FOLDER --days 30 --views 1000000

A day's page views are in ``PageViews/<day>-<n>.json``, its user updates in ``UserUpdates/<day>-<n>.csv``. Users and
pages are skewed: the first of 20,000 users and 1,000 pages are seen most, so that a day of a million views has 0.8
million pairs of user and page, and thirty such days 11 million. One view in 100 comes with an update of a user, and one
update in 100 brings another e-mail address. One view in 50 is of another environment than
production, one in 50 is delivered twice in the same object and one in 100 again in the next one. Every line is
well-formed and of its object's day, so that the simplest peer reads it too. Everything follows from the
arguments: each value is a hash of the seed, the day and the number of the event.
"""

import argparse
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import product
from pathlib import Path

import duckdb

START = date(2017, 4, 1)
FEEDS = ("PageViews", "UserUpdates")
_PRIME = 2147483647


@dataclass(frozen=True, slots=True)
class Logs:
    """What to generate.

    Attributes:
        views: distinct page views a day, those of other environments included.
        users: how many people there are; one in 100 views comes with an update of a user.
        pages: how many pages there are.
        objects: objects of each feed a day.
        seed: another seed gives other events.
    """

    views: int
    users: int = 20_000
    pages: int = 1_000
    objects: int = 4
    seed: int = 1

    def write(self, folder: Path, first: int, days: int) -> int:
        """Write some days, numbered from 0 for :data:`START`; returns how many page view lines they have."""
        for feed in FEEDS:
            (folder / feed).mkdir(parents=True, exist_ok=True)
        with duckdb.connect() as connection, ThreadPoolExecutor(os.cpu_count()) as threads:

            def write(number: int, part: int) -> int:
                day = START + timedelta(days=number)
                with connection.cursor() as cursor:
                    self._write_updates(cursor, folder / "UserUpdates" / f"{day}-{part}.csv", day, part)
                    return self._write_views(cursor, folder / "PageViews" / f"{day}-{part}.json", day, part)

            return sum(threads.map(write, *zip(*product(range(first, first + days), range(self.objects)), strict=True)))

    def _write_views(self, connection: duckdb.DuckDBPyConnection, file: Path, day: date, part: int) -> int:
        microsecond = self._random(day, 1)
        return _copy(
            connection,
            file,
            f"""
            with events as ({_numbers(self.views, self.objects, part)})
            select format(
              '{{{{"ts": "{{}}", "url": "/products/{{}}/", "environment": "{{}}", "user_id": {{}}}}}}',
              strftime(timestamp '{day}' + to_microseconds((86400e6 * {microsecond})::bigint), '%Y-%m-%dT%H:%M:%S.%f'),
              floor({self.pages} * pow({self._random(day, 2)}, 3))::bigint,
              if(n % 50 = 49, 'staging', 'production'),
              1 + floor({self.users} * pow({self._random(day, 3)}, 2))::bigint)
            from events
            """,
        )

    def _write_updates(self, connection: duckdb.DuckDBPyConnection, file: Path, day: date, part: int) -> int:
        return _copy(
            connection,
            file,
            f"""
            with events as ({_numbers(-(-self.views // 100), self.objects, part)}),
            updates as (
              select n, 1 + floor({self.users} * {self._random(day, 4)})::bigint as user_id,
                timestamp '{day}' + to_seconds(floor(86400 * {self._random(day, 5)})::bigint) as updated_at
              from events
            )
            select format('"{{}}","{{}}","user{{}}.{{}}@example.com","User {{}}","{{}}"',
              strftime(updated_at, '%Y-%m-%dT%H:%M:%S'), user_id, user_id,
              if(n % 100 = 99, n, 0), user_id,
              if(n % 50 = 49, 'staging', 'production'))
            from updates
            """,
        )

    def _random(self, day: date, stream: int) -> str:
        """An expression from 0 to below 1 for event ``n``."""
        key = self.seed * 1_000_000 + (day - START).days * 8 + stream
        # One argument: hashes of several are made from the hashes of each, so streams would depend on each other.
        return f"((hash((n + {key * 1_000_000_000})::ubigint) % {_PRIME}) / {float(_PRIME)})"


def _numbers(count: int, objects: int, part: int) -> str:
    """The events of one object: its own, some of them twice, and some of the object before it."""
    own = f"select range as n from range({part * count // objects}, {(part + 1) * count // objects})"
    again = f"select range from range({max(part - 1, 0) * count // objects}, {part * count // objects})"
    return f"{own} union all ({own} where range % 50 = 7) union all ({again} where range % 100 = 11)"


def _copy(connection: duckdb.DuckDBPyConnection, file: Path, query: str) -> int:
    """Write lines as they are: CSV of one column, of which neither quote nor delimiter occurs."""
    name = str(file).replace("'", "''")
    options = "format csv, header false, quote '', escape '', delimiter '\x01'"
    return int(connection.execute(f"copy ({query}) to '{name}' ({options})").fetchall()[0][0])


def main() -> None:
    """Write logs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--views", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--pages", type=int, default=1_000)
    parser.add_argument("--objects", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    logs = Logs(given.views, given.users, given.pages, given.objects, given.seed)
    print(f"{logs.write(given.folder, 0, given.days):,} page views")


if __name__ == "__main__":
    main()

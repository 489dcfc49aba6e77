"""What is kept by the day: raw partitions, cleaned tables and each day's contributions."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, timedelta

from user_pipeline.ingest.feeds import PAGE_VIEWS, USER_UPDATES, Feed
from user_pipeline.ingest.manifest import Catalog, fragment_path
from user_pipeline.lake.files import export_path, partition_path
from user_pipeline.reconcile.comparing import (
    LOST,
    NOT_MATERIALIZED,
    STALE,
    Comparison,
    Difference,
    Recompute,
    Shape,
    exists,
    some,
)
from user_pipeline.resources.postgres import Postgres, quote

_DAY = timedelta(days=1)
_RAW = {
    feed.name: Shape(
        (*feed.columns, "source_object", "source_line"),
        ("source_object", "source_line"),
        ("source_object", "source_line"),
    )
    for feed in (USER_UPDATES, PAGE_VIEWS)
}
_CLEANED = {
    "user_updates": Shape(USER_UPDATES.columns, ("updated_at", "user_id"), USER_UPDATES.columns),
    "page_views": Shape(PAGE_VIEWS.columns, ("ts", "url", "user_id"), PAGE_VIEWS.columns),
}
_DAILY = {
    "users": Shape(("day", "user_id", "email", "name", "updated_at"), ("day", "user_id"), ("day", "user_id")),
    "user_page_views": Shape(
        ("day", "user_id", "url", "count", "last_viewed"), ("day", "user_id", "url"), ("day", "user_id", "url")
    ),
}
_MART_OF = {"user_updates": "users", "page_views": "user_page_views"}
_CONTRIBUTIONS = {
    "user_updates": """
        select updated_at::date as day, user_id, email, name, updated_at from expected
        qualify row_number() over (partition by user_id order by updated_at desc, email desc, name desc) = 1
    """,
    "page_views": """
        select ts::date as day, user_id, url, count(*) as count, max(ts) as last_viewed from expected group by all
    """,
}


class Days:
    """The days of both feeds."""

    def __init__(self, work: Recompute) -> None:
        self._work = work

    def compare(self, feed: Feed, first: date | None, last: date | None) -> list[Comparison]:
        """Raw asset, cleaned table and contributions of a feed, day by day."""
        mart = _MART_OF[feed.name]
        raw, cleaned, daily = Comparison(f"raw_{feed.name}"), Comparison(feed.name), Comparison(f"{mart}_daily")
        staging, analytics = self._work.databases.staging, self._work.databases.analytics
        in_cleaned = _counts(staging, cleaned.table, feed.event_time)
        in_daily = _counts(analytics, daily.table, "day")
        # That a table once had a day shows in what is made from it.
        in_mart = set(_counts(analytics, mart, "updated_at" if mart == "users" else "last_viewed"))
        if mart == "user_page_views":
            in_mart |= self._stored_days(export_path(mart, ""))
        materialized = self._stored_days(partition_path(raw.table, ""))
        self._work.empty(f"kept.{daily.table}", _DAILY[mart])

        def wanted(days: Iterable[date]) -> list[date]:
            return sorted(day for day in days if (first or day) <= day <= (last or day))

        catalog = Catalog.load(self._work.storage.lake, feed)
        days = wanted(materialized)
        batches = catalog.batches(days)
        for day in days:
            self._raw(feed, raw, catalog, day, batches[day])
            self._work.connection.execute(
                f"create or replace temp table expected as select distinct {', '.join(feed.columns)} "
                "from delivered where environment = 'production'"
            )
            self._day(
                *(cleaned, _CLEANED[feed.name], staging, feed.event_time, day),
                present=in_cleaned,
                downstream=in_mart.union(in_daily),
            )
            self._work.connection.execute(f"create or replace temp table expected as {_CONTRIBUTIONS[feed.name]}")
            if self._day(daily, _DAILY[mart], analytics, "day", day, present=in_daily, downstream=in_mart):
                self._work.keep(daily.table, "from expected")
        for comparison, present in ((cleaned, in_cleaned), (daily, in_daily)):
            comparison.differences += [
                Difference(NOT_MATERIALIZED, day, present[day]) for day in wanted(set(present) - materialized)
            ]
        raw.absent = wanted(self._delivered_days(catalog) - materialized)
        return [raw, cleaned, daily]

    def _raw(
        self, feed: Feed, comparison: Comparison, catalog: Catalog, day: date, batches: Mapping[str, Sequence[str]]
    ) -> None:
        """Compare a raw partition with the fragments, and leave what the day is to be made of in ``delivered``."""
        shape = _RAW[feed.name]
        columns = ", ".join(shape.columns)
        self._work.empty("delivered", shape)
        for batch, keys in batches.items():
            with self._work.file(fragment_path(feed, day, batch)) as file:
                self._work.connection.execute(
                    f"insert into delivered select {columns} from read_parquet($file, hive_partitioning = false) "
                    "semi join (select unnest($keys::varchar[]) as source_object) using (source_object)",
                    {"file": str(file), "keys": keys},
                )
        comparison.differences += self._lost(catalog, day)
        with self._work.file(partition_path(f"raw_{feed.name}", day.isoformat())) as file:
            self._work.empty("actual", shape)
            self._work.connection.execute(
                f"insert into actual select {columns} from read_parquet($file, hive_partitioning = false)",
                {"file": str(file)},
            )
        comparison.days += 1
        found = self._work.compare(shape, "delivered", day, comparison)
        if found and (objects := self._read_since(feed, day)):
            found = [Difference(STALE, day, sum(difference.rows for difference in found), some(objects))]
            # What is made from the day is right if it fits what the day holds.
            self._work.connection.execute("create or replace temp table delivered as from actual")
        comparison.differences += found

    def _delivered_days(self, catalog: Catalog) -> set[date]:
        known = catalog.table  # noqa: F841 - DuckDB finds it by name
        days = "select distinct d.day from (select unnest(days) as d from known)"
        return {day for (day,) in self._work.connection.execute(days).fetchall()}

    def _lost(self, catalog: Catalog, day: date) -> Iterator[Difference]:
        """Objects whose rows of a day are not as many as the catalog says."""
        known = catalog.table  # noqa: F841 - DuckDB finds it by name
        rows = self._work.connection.execute(
            """
            select key, d.rows, coalesce(f.rows, 0) as found from (select key, unnest(days) as d from known)
            left join (select source_object as key, count(*) as rows from delivered group by all) f using (key)
            where d.day = $day and d.rows <> found order by key
            """,
            {"day": day},
        ).fetchall()
        if rows:
            lost = sum(abs(expected - found) for _, expected, found in rows)
            yield Difference(LOST, day, lost, some([f"{key}: {found} of {n} rows" for key, n, found in rows]))

    def _read_since(self, feed: Feed, day: date) -> list[str]:
        """The objects that differ between ``actual`` and ``delivered``, if ``actual`` is but an earlier state.

        It is one if all it has of each of these objects is what one pass of the reader found in it. Nothing removes
        the fragments of earlier passes, so an earlier state can be told from a damaged one, for which there are none.
        """
        differing = "select distinct source_object from differences order by 1"
        objects = [name for (name,) in self._work.connection.execute(differing).fetchall()]
        folder = fragment_path(feed, day, "").rpartition("/")[0]
        paths = [item["path"] for page in self._work.storage.lake.list(folder) for item in page]
        columns = ", ".join(_RAW[feed.name].columns)
        # Order does not matter, multiplicity does.
        digest = f"select source_object, count(*) as n, sum(hash({columns})::hugeint) as digest"
        self._work.connection.execute(
            f"create or replace temp table unexplained as {digest} from actual "
            "semi join differences using (source_object) group by all"
        )
        for path in paths:
            with self._work.file(path) as file:
                self._work.connection.execute(
                    f"delete from unexplained u using ({digest} from read_parquet($file, hive_partitioning = false) "
                    "group by all) f where (u.source_object, u.n, u.digest) = (f.source_object, f.n, f.digest)",
                    {"file": str(file)},
                )
        return [] if self._work.number("unexplained") else objects

    def _day(
        self,
        comparison: Comparison,
        shape: Shape,
        database: Postgres,
        column: str,
        day: date,
        *,
        present: Mapping[date, int],
        downstream: set[date],
    ) -> bool:
        """Compare a day of a table with ``expected``; False if the table was never given that day."""
        if day not in present and day not in downstream and self._work.number("expected"):
            comparison.absent.append(day)
            return False
        comparison.days += 1
        self._work.load(database, comparison.table, shape, f" where {column} >= '{day}' and {column} < '{day + _DAY}'")
        comparison.differences += self._work.compare(shape, "expected", day, comparison)
        return True

    def _stored_days(self, path: str) -> set[date]:
        """The days of which the lake has a file; ``path`` is such a file's, without the day."""
        folder, _, file = path.partition("date=")
        found = set()
        for item in (item for page in self._work.storage.lake.list(folder) for item in page):
            day = item["path"].removeprefix(f"{folder}date=").removesuffix(file)
            if re.fullmatch(r"\d{4}-\d{2}-\d{2}", day):
                found.add(date.fromisoformat(day))
        return found


def _counts(database: Postgres, table: str, day: str) -> dict[date, int]:
    """How many rows a table has of each day; none if it is missing."""
    if not exists(database, table):
        return {}
    with database.transaction() as transaction:
        return dict(transaction.fetch(f"select {day}::date, count(*) from public.{quote(table)} group by 1"))

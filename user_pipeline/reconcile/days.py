"""What is kept by the day: raw partitions, cleaned rows and daily aggregates."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, timedelta

from user_pipeline.ingest.feeds import PAGE_VIEWS, USER_UPDATES, Feed
from user_pipeline.ingest.manifest import Catalog, fragment_path
from user_pipeline.lake.registry import LakeFile
from user_pipeline.reconcile.comparing import (
    LOST,
    NOT_MATERIALIZED,
    STALE,
    Comparison,
    Difference,
    Recompute,
    Shape,
    some,
)
from user_pipeline.resources.postgres import Postgres, quote
from user_pipeline.warehouse.tables import exists

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
_AGGREGATE = {mart: Shape(shape.columns[1:], shape.key[1:], shape.paired_by[1:]) for mart, shape in _DAILY.items()}
_MART_OF = {"user_updates": "users", "page_views": "user_page_views"}
_AGGREGATES = {
    "user_updates": """
        select user_id, email, name, updated_at from expected
        qualify row_number() over (partition by user_id order by updated_at desc, email desc, name desc) = 1
    """,
    "page_views": """
        select user_id, url, count(*) as count, max(ts) as last_viewed from expected group by all
    """,
}


class Days:
    """The days of both feeds."""

    def __init__(self, work: Recompute) -> None:
        self._work = work

    def compare(self, feed: Feed, first: date | None, last: date | None) -> list[Comparison]:
        """Raw asset, cleaned files and table, and daily aggregates of a feed, day by day."""
        mart = _MART_OF[feed.name]
        raw, files, table = Comparison(f"raw_{feed.name}"), Comparison(f"files of {feed.name}"), Comparison(feed.name)
        daily = Comparison(f"files of {mart}")
        staging, analytics = self._work.lake.staging, self._work.lake.analytics
        in_table = _counts(staging.database, table.table, feed.event_time)
        materialized = staging.partitions(raw.table)
        cleaned, aggregated = staging.partitions(feed.name), analytics.partitions(mart)
        self._work.empty(f"kept.{mart}_daily", _DAILY[mart])

        def wanted(days: Iterable[date]) -> list[date]:
            return sorted(day for day in days if (first or day) <= day <= (last or day))

        catalog = Catalog.load(self._work.lake.storage.lake, feed)
        days = wanted(materialized)
        batches = catalog.batches(days)
        for day in days:
            self._raw(feed, raw, catalog, day, batches[day], materialized[day])
            self._work.connection.execute(
                f"create or replace temp table expected as select distinct {', '.join(feed.columns)} "
                "from delivered where environment = 'production'"
            )
            if self._files(files, _CLEANED[feed.name], day, cleaned):
                table.days += 1
                condition = f" where {feed.event_time} >= '{day}' and {feed.event_time} < '{day + _DAY}'"
                self._work.load(staging.database, table.table, _CLEANED[feed.name], condition)
                table.differences += self._work.compare(_CLEANED[feed.name], "expected", day, table)
            self._work.connection.execute(f"create or replace temp table expected as {_AGGREGATES[feed.name]}")
            if self._files(daily, _AGGREGATE[mart], day, aggregated):
                self._work.keep(
                    f"{mart}_daily", f"select '{day}'::date, {', '.join(_AGGREGATE[mart].columns)} from expected"
                )
        table.differences += [
            Difference(NOT_MATERIALIZED, day, in_table[day]) for day in wanted(set(in_table) - set(cleaned))
        ]
        raw.absent = wanted(self._delivered_days(catalog) - set(materialized))
        return [raw, files, table, daily]

    def _files(
        self, comparison: Comparison, shape: Shape, day: date, partitions: Mapping[date, Sequence[LakeFile]]
    ) -> bool:
        """Compare the files of a day with ``expected``; False if the day was never written."""
        if day not in partitions:
            if self._work.number("expected"):
                comparison.absent.append(day)
            return False
        comparison.days += 1
        self._work.load_files(shape, [file.path for file in partitions[day]])
        comparison.differences += self._work.compare(shape, "expected", day, comparison)
        return True

    def _raw(
        self,
        feed: Feed,
        comparison: Comparison,
        catalog: Catalog,
        day: date,
        batches: Mapping[str, Sequence[str]],
        files: Sequence[LakeFile],
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
        self._work.load_files(shape, [file.path for file in files])
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
        paths = [item["path"] for page in self._work.lake.storage.lake.list(folder) for item in page]
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


def _counts(database: Postgres, table: str, day: str) -> dict[date, int]:
    """How many rows a table has of each day; none if it is missing."""
    with database.transaction() as transaction:
        if not exists(transaction, table):
            return {}
        return dict(transaction.fetch(f"select {day}::date, count(*) from public.{quote(table)} group by 1"))

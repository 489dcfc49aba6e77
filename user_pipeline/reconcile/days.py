"""What is kept by the day: raw partitions, cleaned tables and each day's contributions."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, timedelta

from user_pipeline.ingest.batch import row_hash
from user_pipeline.ingest.feeds import PAGE_VIEWS, USER_UPDATES, Feed
from user_pipeline.ingest.manifest import Manifest
from user_pipeline.lake.files import export_path
from user_pipeline.lake.registry import LakeFile, Registry
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
        registry = Registry("staging", staging, self._work.storage)
        manifest = Manifest(feed, registry)
        made_of, versions = registry.partitions(raw.table), registry.versions(raw.table)
        materialized = set(made_of)
        self._work.empty(f"kept.{daily.table}", _DAILY[mart])

        def wanted(days: Iterable[date]) -> list[date]:
            return sorted(day for day in days if (first or day) <= day <= (last or day))

        for day in wanted(materialized):
            self._raw(manifest, raw, day, made_of[day], versions[day])
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
        raw.absent = wanted(set(manifest.changes()) - materialized)
        return [raw, cleaned, daily]

    def _raw(
        self, manifest: Manifest, comparison: Comparison, day: date, files: Sequence[LakeFile], version: int
    ) -> None:
        """Compare a raw day with what was delivered, and leave what the day is to be made of in ``delivered``.

        Args:
            manifest: says which rows of which part files count.
            comparison: of the raw asset.
            day: the day.
            files: what the raw day is made of.
            version: the commit that says so.
        """
        shape = _RAW[manifest.feed.name]
        columns = ", ".join(shape.columns)
        delivered, changed = self._delivered(manifest, day)
        self._work.empty("delivered", shape)
        by_path: dict[str, list[str]] = defaultdict(list)
        for path, key, *_ in delivered:
            by_path[path].append(key)
        for path, keys in by_path.items():
            with self._work.file(path) as file:
                self._work.connection.execute(
                    f"insert into delivered select {columns} from read_parquet($file, hive_partitioning = false) "
                    "semi join (select unnest($keys::varchar[]) as source_object) using (source_object)",
                    {"file": str(file), "keys": keys},
                )
        comparison.differences += self._lost(manifest, day, delivered)
        self._work.empty("actual", shape)
        for stored in files:
            with self._work.file(stored.path) as file:
                self._work.connection.execute(
                    f"insert into actual select {columns} from read_parquet($file, hive_partitioning = false)",
                    {"file": str(file)},
                )
        comparison.days += 1
        found = self._work.compare(shape, "delivered", day, comparison)
        if found and changed > version:
            objects = self._differing()
            found = [Difference(STALE, day, sum(difference.rows for difference in found), some(objects))]
            # What is made from the day is right if it fits what the day holds.
            self._work.connection.execute("create or replace temp table delivered as from actual")
        comparison.differences += found

    def _delivered(self, manifest: Manifest, day: date) -> tuple[list[tuple[str, str, int, str]], int]:
        """What the manifest says of a day: part file, key, rows and digest of each object; and when it changed last."""
        entries = [(entry.key, entry.days[day]) for entry in manifest.entries(day)]
        delivered = [(brought.file.path, key, brought.rows, brought.digest) for key, brought in entries]
        return delivered, manifest.changes(days=[day]).get(day, 0)

    def _lost(
        self, manifest: Manifest, day: date, delivered: Sequence[tuple[str, str, int, str]]
    ) -> Iterator[Difference]:
        """Objects whose rows of a day are not as many as the manifest says, or not those."""
        import duckdb

        found = {
            key: (rows, f"{duckdb.__version__}:{digest}")
            for key, rows, digest in self._work.connection.execute(
                f"select source_object, count(*), printf('%016x', bit_xor({row_hash(manifest.feed)})) "
                "from delivered group by all"
            ).fetchall()
        }
        lost, examples = 0, []
        for _, key, rows, digest in delivered:
            rows_found, digest_found = found.get(key, (0, ""))
            if rows_found != rows:
                lost += abs(rows - rows_found)
                examples.append(f"{key}: {rows_found} of {rows} rows")
            elif digest_found != digest and _engine_of(digest) == duckdb.__version__:
                lost += rows
                examples.append(f"{key}: other rows")
        if lost:
            yield Difference(LOST, day, lost, some(examples))

    def _differing(self) -> list[str]:
        """The objects that ``actual`` and ``delivered`` differ in."""
        differing = "select distinct source_object from differences order by 1"
        return [name for (name,) in self._work.connection.execute(differing).fetchall()]

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


def _engine_of(digest: str) -> str:
    """The version of the engine that made a digest: another one may have other hashes."""
    return digest.partition(":")[0]


def _counts(database: Postgres, table: str, day: str) -> dict[date, int]:
    """How many rows a table has of each day; none if it is missing."""
    if not exists(database, table):
        return {}
    with database.transaction() as transaction:
        return dict(transaction.fetch(f"select {day}::date, count(*) from public.{quote(table)} group by 1"))

"""Compare what has partitions: raw days, cleaned rows and daily aggregates."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, timedelta

from user_pipeline.ingest.entries import ObjectDay
from user_pipeline.ingest.feeds import PAGE_VIEWS, USER_UPDATES, Feed
from user_pipeline.ingest.manifest import Manifest
from user_pipeline.ingest.parsed import row_hash
from user_pipeline.ingest.retirement import kept_from
from user_pipeline.lake.partitions import LakeFile
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
        (*feed.columns, "source_object", "source_line", "rescued"),
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

        manifest = Manifest(feed, staging)
        versions = staging.versions(raw.table)
        first_kept = kept_from(staging) or date.min
        raw.retired = files.retired = [day for day in wanted(materialized) if day < first_kept]
        daily.retired = [day for day in wanted(aggregated) if day < first_kept]
        for day in daily.retired:
            self._work.load_files(_AGGREGATE[mart], [file.path for file in aggregated[day]])
            self._work.keep(f"{mart}_daily", f"select '{day}'::date, {', '.join(_AGGREGATE[mart].columns)} from actual")
        for day in wanted(set(materialized) - set(raw.retired)):
            self._raw(manifest, raw, day, materialized[day], versions[day])
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
        raw.absent = wanted(set(manifest.changes()) - set(materialized))
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
        self, manifest: Manifest, comparison: Comparison, day: date, files: Sequence[LakeFile], version: int
    ) -> None:
        """Compare a raw day with what was delivered, and leave what the day is to be made of in ``delivered``.

        Args:
            manifest: says which rows of which part files count.
            comparison: of the raw asset.
            day: the day.
            files: what the raw day is made of.
            version: the commit that made it so.
        """
        shape = _RAW[manifest.feed.name]
        columns = ", ".join(shape.columns)
        changed = manifest.changes(days=[day]).get(day, 0)
        brought = {entry.key: entry.days[day] for entry in manifest.entries(day)}
        keys_by_path: dict[str, list[str]] = defaultdict(list)
        for key, on_day in brought.items():
            keys_by_path[on_day.file.path].append(key)
        self._work.empty("delivered", shape)
        for path, keys in keys_by_path.items():
            with self._work.file(path) as file:
                self._work.connection.execute(
                    f"insert into delivered select {columns} from read_parquet($file, hive_partitioning = false) "
                    "semi join (select unnest($keys::varchar[]) as source_object) using (source_object)",
                    {"file": str(file), "keys": keys},
                )
        comparison.differences += self._lost(manifest.feed, day, brought)
        self._work.load_files(shape, [file.path for file in files])
        comparison.days += 1
        found = self._work.compare(shape, "delivered", day, comparison)
        if found and changed > version:
            found = [Difference(STALE, day, sum(difference.rows for difference in found), some(self._differing()))]
            # What is made from the day is right if it fits what the day holds.
            self._work.connection.execute("create or replace temp table delivered as from actual")
        comparison.differences += found

    def _lost(self, feed: Feed, day: date, brought: Mapping[str, ObjectDay]) -> Iterator[Difference]:
        """Objects whose rows of a day are not as many as the manifest says, or not those."""
        import duckdb

        found = {
            key: (rows, f"{duckdb.__version__}:{digest}")
            for key, rows, digest in self._work.connection.execute(
                f"select source_object, count(*), printf('%016x', bit_xor({row_hash(feed)})) "
                "from delivered group by all"
            ).fetchall()
        }
        lost, examples = 0, []
        for key, on_day in brought.items():
            rows, digest = found.get(key, (0, ""))
            # Another version of the engine may have other hashes.
            is_comparable = on_day.digest.startswith(f"{duckdb.__version__}:")
            if rows != on_day.rows:
                lost += abs(on_day.rows - rows)
                examples.append(f"{key}: {rows} of {on_day.rows} rows")
            elif is_comparable and digest != on_day.digest:
                lost += rows
                examples.append(f"{key}: other rows")
        if lost:
            yield Difference(LOST, day, lost, some(examples))

    def _differing(self) -> list[str]:
        """The objects that ``actual`` and ``delivered`` differ in."""
        differing = "select distinct source_object from differences order by 1"
        return [name for (name,) in self._work.connection.execute(differing).fetchall()]


def _counts(database: Postgres, table: str, day: str) -> dict[date, int]:
    """How many rows a table has of each day; none if it is missing."""
    with database.transaction() as transaction:
        if not exists(transaction, table):
            return {}
        return dict(transaction.fetch(f"select {day}::date, count(*) from public.{quote(table)} group by 1"))

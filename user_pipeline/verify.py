"""Does everything stored equal a full recompute? Worked out anew from the lake, and compared row by row.

The catalogs and fragments in the lake are the truth of what was delivered. From them the raw partitions, the
cleaned tables, each day's contributions and the tables people query are computed with one plain query each,
which share nothing with the transforms and the statements that maintain the tables. A day counts as
materialized if the lake holds its raw partition: that can be told on any machine with the settings, whatever
Dagster's own storage knows.

Days go by one at a time; what has to be kept of them is in a database file in the scratch directory, and what
does not fit into the memory limit is spilled there. It reads while others may write: a day that is redone meanwhile
may show as a difference, and does not the next time.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from user_pipeline.errors import PermanentError
from user_pipeline.ingest.catalog import Catalog, fragment_path, rejects_path
from user_pipeline.ingest.feeds import PAGE_VIEWS, USER_UPDATES, Feed
from user_pipeline.io_managers.exports import export_path
from user_pipeline.io_managers.lake import partition_path
from user_pipeline.resources.postgres import Databases, Postgres, literal, quote

if TYPE_CHECKING:
    import duckdb

    from user_pipeline.resources.engine import Engine
    from user_pipeline.resources.object_store import ObjectStorage

STALE, LOST, NOT_MATERIALIZED = "stale", "lost", "not materialized"
MISSING, EXTRA, DIFFERENT = "missing", "extra", "different"
KINDS = {
    STALE: "an object of the day was read, or read again, after the day was materialized",
    LOST: "fragments hold other rows than the catalog says their objects brought",
    NOT_MATERIALIZED: "the table has rows of a day that has no raw partition",
    MISSING: "rows that should be there",
    EXTRA: "rows that should not be there",
    DIFFERENT: "rows with the right key and wrong values",
}
_DAY = timedelta(days=1)
_TYPES = {
    "ts": "timestamp",
    "updated_at": "timestamp",
    "last_viewed": "timestamp",
    "day": "date",
    "user_id": "bigint",
    "count": "bigint",
    "source_line": "bigint",
}
_EXAMPLES = 5
"""How many rows of a kind are named for a day."""


class LakeError(PermanentError):
    """The lake lacks a file that its catalog counts on."""

    def __init__(self, file: str) -> None:
        super().__init__(
            f"{file} is missing, though the lake's catalog counts on it. Restore it from a backup of the lake, or put "
            "the objects it was read from into the source under other names and materialize their days again: what "
            "is delivered twice counts once."
        )


@dataclass(frozen=True, slots=True)
class Difference:
    """What is wrong with one day of a table, or with a table that has no days.

    Attributes:
        kind: one of :data:`KINDS`.
        day: the day; None for tables that are kept over all days.
        rows: how many rows.
        examples: some of them by their keys; for :data:`DIFFERENT` also which columns differ. Never a person's
            name or e-mail address.
    """

    kind: str
    day: date | None
    rows: int
    examples: Sequence[str] = ()


@dataclass(slots=True)
class Comparison:
    """One table (or raw asset) against what it must be.

    Attributes:
        table: its name.
        days: how many days were compared.
        rows: how many rows it must have in what was compared.
        differences: what is wrong.
        absent: days the lake has rows of and this has none, with no sign that it ever had: they, or some of
            their assets, were not materialized, which is no difference.
    """

    table: str
    days: int = 0
    rows: int = 0
    differences: list[Difference] = field(default_factory=list)
    absent: list[date] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Shape:
    """How a table is read and compared.

    Attributes:
        columns: all of its columns.
        key: those that identify a row in examples; nothing personal.
        paired_by: those that pair a wrong row with the right one; all others are values.
    """

    columns: tuple[str, ...]
    key: tuple[str, ...]
    paired_by: tuple[str, ...]


_RAW = {
    feed.name: _Shape(
        (*feed.columns, "source_object", "source_line"),
        ("source_object", "source_line"),
        ("source_object", "source_line"),
    )
    for feed in (USER_UPDATES, PAGE_VIEWS)
}
_CLEANED = {
    "user_updates": _Shape(USER_UPDATES.columns, ("updated_at", "user_id"), USER_UPDATES.columns),
    "page_views": _Shape(PAGE_VIEWS.columns, ("ts", "url", "user_id"), PAGE_VIEWS.columns),
}
_DAILY = {
    "users": _Shape(("day", "user_id", "email", "name", "updated_at"), ("day", "user_id"), ("day", "user_id")),
    "user_page_views": _Shape(
        ("day", "user_id", "url", "count", "last_viewed"), ("day", "user_id", "url"), ("day", "user_id", "url")
    ),
}
_WHOLE = {
    "users": _Shape(("user_id", "email", "name", "updated_at"), ("user_id",), ("user_id",)),
    "user_page_views": _Shape(
        ("user_id", "email", "url", "count", "last_viewed"), ("user_id", "url"), ("user_id", "url")
    ),
}
_REJECTS = _Shape(
    ("feed", "source_object", "source_line", "reason", "line"),
    ("source_object", "source_line"),
    ("feed", "source_object", "source_line"),
)
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


def verify(
    storage: "ObjectStorage",
    engine: "Engine",
    databases: Databases,
    *,
    first: date | None = None,
    last: date | None = None,
) -> Iterator[Comparison]:
    """Compare everything that is materialized with a recompute from the lake.

    Args:
        storage: where the lake is.
        engine: computes, within its memory limit.
        databases: staging and analytics.
        first: the first day to compare; with either limit set only tables that are kept by the day are compared,
            because the others need all days.
        last: the last one.

    Yields:
        each table as it is done.

    Raises:
        LakeError: the lake lacks a file that its catalog counts on.
    """
    with engine.connect() as connection:
        connection.execute(f"attach {literal(str(engine.new_scratch('verify') / 'verify.duckdb'))} as kept")
        try:
            work = _Verification(storage, engine, databases, connection)
            yield from work.days(USER_UPDATES, first, last)
            yield from work.days(PAGE_VIEWS, first, last)
            if first is None and last is None:
                yield work.rejected_lines()
                yield work.users()
                yield work.user_page_views()
                # A table that is made from the contributions of days, such as recommendations, is compared here.
        finally:
            connection.execute("detach kept")


class _Verification:
    """The state of one comparison of everything."""

    def __init__(
        self,
        storage: "ObjectStorage",
        engine: "Engine",
        databases: Databases,
        connection: "duckdb.DuckDBPyConnection",
    ) -> None:
        self._storage = storage
        self._databases = databases
        self._connection = connection
        self._scratch = engine.new_scratch("lake")

    def days(self, feed: Feed, first: date | None, last: date | None) -> list[Comparison]:
        """Raw asset, cleaned table and contributions of a feed, day by day."""
        mart = _MART_OF[feed.name]
        raw, cleaned, daily = Comparison(f"raw_{feed.name}"), Comparison(feed.name), Comparison(f"{mart}_daily")
        staging, analytics = self._databases.staging, self._databases.analytics
        in_cleaned = _counts(staging, cleaned.table, feed.event_time)
        in_daily = _counts(analytics, daily.table, "day")
        # That a table once had a day shows in what is made from it.
        in_mart = set(_counts(analytics, mart, "updated_at" if mart == "users" else "last_viewed"))
        if mart == "user_page_views":
            in_mart |= self._stored_days(export_path(mart, ""))
        materialized = self._stored_days(partition_path(raw.table, ""))
        self._empty(f"kept.{daily.table}", _DAILY[mart])

        def wanted(days: Iterable[date]) -> list[date]:
            return sorted(day for day in days if (first or day) <= day <= (last or day))

        catalog = Catalog.load(self._storage.lake, feed)
        days = wanted(materialized)
        batches = catalog.batches(days)
        for day in days:
            self._raw(feed, raw, catalog, day, batches[day])
            self._connection.execute(
                f"create or replace temp table expected as select distinct {', '.join(feed.columns)} "
                "from delivered where environment = 'production'"
            )
            self._day(
                *(cleaned, _CLEANED[feed.name], staging, feed.event_time, day),
                present=in_cleaned,
                downstream=in_mart.union(in_daily),
            )
            self._connection.execute(f"create or replace temp table expected as {_CONTRIBUTIONS[feed.name]}")
            if self._day(daily, _DAILY[mart], analytics, "day", day, present=in_daily, downstream=in_mart):
                self._keep(daily.table, "from expected")
        for comparison, present in ((cleaned, in_cleaned), (daily, in_daily)):
            comparison.differences += [
                Difference(NOT_MATERIALIZED, day, present[day]) for day in wanted(set(present) - materialized)
            ]
        raw.absent = wanted(self._delivered_days(catalog) - materialized)
        return [raw, cleaned, daily]

    def rejected_lines(self) -> Comparison:
        """The table of rejected lines against the rejects in the lake."""
        self._empty("kept.rejects", _REJECTS)
        for feed in (USER_UPDATES, PAGE_VIEWS):
            by_batch: dict[str, list[str]] = defaultdict(list)
            for entry in Catalog.load(self._storage.lake, feed).entries():
                if entry.rejects:
                    by_batch[entry.batch].append(entry.key)
            for batch, keys in by_batch.items():
                with self._files([rejects_path(feed, batch)]) as [file]:
                    self._connection.execute(
                        "insert into kept.rejects select $feed, source_object, source_line, reason, line "
                        "from read_parquet($file, hive_partitioning = false) where list_contains($keys, source_object)",
                        {"feed": feed.name, "file": file, "keys": keys},
                    )
        comparison = Comparison("rejected_lines")
        self._load(self._databases.staging, "rejected_lines", _REJECTS)
        comparison.differences += self._compare(_REJECTS, "kept.rejects", None, comparison)
        return comparison

    def users(self) -> Comparison:
        """The latest update of each user, over all days."""
        self._empty("kept.users", _WHOLE["users"])
        self._keep(
            "users",
            "select user_id, email, name, updated_at from kept.users_daily "
            "qualify row_number() over (partition by user_id order by updated_at desc, email desc, name desc) = 1",
        )
        return self._whole("users")

    def user_page_views(self) -> Comparison:
        """All views of each user and page, with the e-mail addresses of :meth:`users`, which goes first."""
        self._empty("kept.user_page_views", _WHOLE["user_page_views"])
        self._keep(
            "user_page_views",
            "select user_id, email, url, count, last_viewed from "
            "(select user_id, url, sum(count)::bigint as count, max(last_viewed) as last_viewed "
            "from kept.user_page_views_daily group by all) left join kept.users using (user_id)",
        )
        return self._whole("user_page_views")

    def _whole(self, table: str) -> Comparison:
        comparison = Comparison(table)
        self._load(self._databases.analytics, table, _WHOLE[table])
        comparison.differences += self._compare(_WHOLE[table], f"kept.{table}", None, comparison)
        return comparison

    def _raw(
        self, feed: Feed, comparison: Comparison, catalog: Catalog, day: date, batches: Mapping[str, Sequence[str]]
    ) -> None:
        """Compare a raw partition with the fragments, and leave what the day is to be made of in ``delivered``."""
        shape = _RAW[feed.name]
        columns = ", ".join(shape.columns)
        self._empty("delivered", shape)
        for batch, keys in batches.items():
            with self._files([fragment_path(feed, day, batch)]) as [file]:
                self._connection.execute(
                    f"insert into delivered select {columns} from read_parquet($file, hive_partitioning = false) "
                    "semi join (select unnest($keys::varchar[]) as source_object) using (source_object)",
                    {"file": file, "keys": keys},
                )
        comparison.differences += self._lost(catalog, day)
        with self._files([partition_path(f"raw_{feed.name}", day.isoformat())]) as [file]:
            self._empty("actual", shape)
            self._connection.execute(
                f"insert into actual select {columns} from read_parquet($file, hive_partitioning = false)",
                {"file": file},
            )
        comparison.days += 1
        found = self._compare(shape, "delivered", day, comparison)
        if found and (objects := self._read_since(feed, day)):
            found = [Difference(STALE, day, sum(difference.rows for difference in found), _some(objects))]
            # What is made from the day is right if it fits what the day holds.
            self._connection.execute("create or replace temp table delivered as from actual")
        comparison.differences += found

    def _delivered_days(self, catalog: Catalog) -> set[date]:
        known = catalog.table  # noqa: F841 - DuckDB finds it by name
        days = "select distinct d.day from (select unnest(days) as d from known)"
        return {day for (day,) in self._connection.execute(days).fetchall()}

    def _lost(self, catalog: Catalog, day: date) -> Iterator[Difference]:
        """Objects whose rows of a day are not as many as the catalog says."""
        known = catalog.table  # noqa: F841 - DuckDB finds it by name
        rows = self._connection.execute(
            """
            select key, d.rows, coalesce(f.rows, 0) as found from (select key, unnest(days) as d from known)
            left join (select source_object as key, count(*) as rows from delivered group by all) f using (key)
            where d.day = $day and d.rows <> found order by key
            """,
            {"day": day},
        ).fetchall()
        if rows:
            lost = sum(abs(expected - found) for _, expected, found in rows)
            yield Difference(LOST, day, lost, _some([f"{key}: {found} of {n} rows" for key, n, found in rows]))

    def _read_since(self, feed: Feed, day: date) -> list[str]:
        """The objects that differ between ``actual`` and ``delivered``, if ``actual`` is but an earlier state.

        It is one if all it has of each of these objects is what one pass of the reader found in it. Nothing removes
        the fragments of earlier passes, so an earlier state can be told from a damaged one, for which there are none.
        """
        differing = "select distinct source_object from differences order by 1"
        objects = [name for (name,) in self._connection.execute(differing).fetchall()]
        folder = fragment_path(feed, day, "").rpartition("/")[0]
        paths = [item["path"] for page in self._storage.lake.list(folder) for item in page]
        columns = ", ".join(_RAW[feed.name].columns)
        # Order does not matter, multiplicity does.
        digest = f"select source_object, count(*) as n, sum(hash({columns})::hugeint) as digest"
        self._connection.execute(
            f"create or replace temp table unexplained as {digest} from actual "
            "semi join differences using (source_object) group by all"
        )
        for path in paths:
            with self._files([path]) as [file]:
                self._connection.execute(
                    f"delete from unexplained u using ({digest} from read_parquet($file, hive_partitioning = false) "
                    "group by all) f where (u.source_object, u.n, u.digest) = (f.source_object, f.n, f.digest)",
                    {"file": file},
                )
        return [] if self._number("unexplained") else objects

    def _day(
        self,
        comparison: Comparison,
        shape: _Shape,
        database: Postgres,
        column: str,
        day: date,
        *,
        present: Mapping[date, int],
        downstream: set[date],
    ) -> bool:
        """Compare a day of a table with ``expected``; False if the table was never given that day."""
        if day not in present and day not in downstream and self._number("expected"):
            comparison.absent.append(day)
            return False
        comparison.days += 1
        self._load(database, comparison.table, shape, f" where {column} >= '{day}' and {column} < '{day + _DAY}'")
        comparison.differences += self._compare(shape, "expected", day, comparison)
        return True

    def _compare(self, shape: _Shape, expected: str, day: date | None, comparison: Comparison) -> list[Difference]:
        """How ``actual`` differs from the relation ``expected``; the rows are left in ``differences``."""
        columns = ", ".join(shape.columns)
        comparison.rows += self._number(expected)
        # One pass over both, which spills; of a row that is too few n is above zero, of one too many below.
        self._connection.execute(
            f"""
            create or replace temp table differences as
            select {columns}, sum(n)::bigint as n from (
              select {columns}, 1 as n from {expected} union all select {columns}, -1 from actual
            ) group by {columns} having sum(n) <> 0
            """
        )
        if not self._number("differences"):
            return []
        paired = " and ".join(f"a.{name} is not distinct from e.{name}" for name in shape.paired_by)
        values = [name for name in shape.columns if name not in shape.paired_by]
        wrong = ", ".join(f"case when a.{name} is distinct from e.{name} then '{name}' end" for name in values)
        key = {side: "[" + ", ".join(f"{side}.{name}::varchar" for name in shape.key) + "]" for side in "ae"}
        queries = {
            MISSING: f"select {key['e']} as k, [] as wrong, e.n from differences e where e.n > 0 "
            f"and not exists (from differences a where a.n < 0 and {paired})",
            EXTRA: f"select {key['a']} as k, [] as wrong, -a.n as n from differences a where a.n < 0 "
            f"and not exists (from differences e where e.n > 0 and {paired})",
            DIFFERENT: f"select {key['e']} as k, list_filter([{wrong or 'null'}], x -> x is not null) as wrong, e.n "
            f"from differences e join differences a on e.n > 0 and a.n < 0 and {paired}",
        }
        found = []
        for kind, query in queries.items():
            [(rows,)] = self._connection.execute(f"select coalesce(sum(n), 0)::bigint from ({query})").fetchall()
            if rows:
                examples = self._connection.execute(f"{query} order by k limit {_EXAMPLES + 1}").fetchall()
                found.append(Difference(kind, day, rows, _some([_named(shape, k, names) for k, names, _ in examples])))
        return found

    def _keep(self, table: str, query: str) -> None:
        """Append the rows of a query to a table of the scratch database."""
        self._connection.execute(f"insert into kept.{table} {query}")

    def _empty(self, table: str, shape: _Shape) -> None:
        """Make a table anew, without rows."""
        columns = ", ".join(f"{name} {_TYPES.get(name, 'varchar')}" for name in shape.columns)
        kind = "table" if table.startswith("kept.") else "temp table"
        self._connection.execute(f"create or replace {kind} {table} ({columns})")

    def _number(self, table: str) -> int:
        [(rows,)] = self._connection.execute(f"select count(*) from {table}").fetchall()
        return int(rows)

    def _load(self, database: Postgres, table: str, shape: _Shape, where: str = "") -> None:
        """Bring rows of a table into ``actual``; none of a table that is missing."""
        self._empty("actual", shape)
        if _exists(database, table):
            columns = ", ".join(map(quote, shape.columns))
            with database.query(f"select {columns} from public.{quote(table)}{where}") as reader:
                self._connection.from_arrow(reader).insert_into("actual")

    def _stored_days(self, path: str) -> set[date]:
        """The days of which the lake has a file; ``path`` is such a file's, without the day."""
        folder, _, file = path.partition("date=")
        found = set()
        for item in (item for page in self._storage.lake.list(folder) for item in page):
            day = item["path"].removeprefix(f"{folder}date=").removesuffix(file)
            if re.fullmatch(r"\d{4}-\d{2}-\d{2}", day):
                found.add(date.fromisoformat(day))
        return found

    @contextmanager
    def _files(self, paths: Sequence[str]) -> Iterator[list[str]]:
        """Objects of the lake as local files, for as long as the block lasts."""
        files: list[str] = []
        fetched: list[Path] = []
        try:
            for path in paths:
                file = self._storage.lake_file(path)
                if file is None:
                    file = self._scratch / f"{len(fetched)}.parquet"
                    fetched.append(file)
                    self._fetch(path, file)
                elif not file.exists():
                    raise LakeError(self._storage.lake_url(path))
                files.append(str(file))
            yield files
        finally:
            for file in fetched:
                file.unlink(missing_ok=True)

    def _fetch(self, path: str, file: Path) -> None:
        try:
            response = self._storage.lake.get(path)
        except FileNotFoundError:
            raise LakeError(self._storage.lake_url(path)) from None
        with file.open("wb") as target:
            for chunk in response.stream():
                target.write(chunk)


def _counts(database: Postgres, table: str, day: str) -> dict[date, int]:
    """How many rows a table has of each day; none if it is missing."""
    if not _exists(database, table):
        return {}
    with database.transaction() as transaction:
        return dict(transaction.fetch(f"select {day}::date, count(*) from public.{quote(table)} group by 1"))


def _exists(database: Postgres, table: str) -> bool:
    with database.transaction() as transaction:
        [(there,)] = transaction.fetch(f"select to_regclass({literal('public.' + table)}) is not null")
    return bool(there)


def _named(shape: _Shape, key: Sequence[str | None], columns: Sequence[str]) -> str:
    named = " ".join(f"{name}={value}" for name, value in zip(shape.key, key, strict=True))
    return f"{named}: {', '.join(columns)}" if columns else named


def _some(examples: Sequence[str]) -> tuple[str, ...]:
    """As many examples as are shown."""
    return (*examples[:_EXAMPLES], *(["…"] if len(examples) > _EXAMPLES else []))

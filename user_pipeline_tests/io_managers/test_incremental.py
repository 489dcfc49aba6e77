"""Incremental tables: whatever day is replaced by whatever, they equal what the aggregates of all days add up to."""

import shutil
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, timedelta
from pathlib import Path

import dagster as dg
import duckdb
import narwhals as nw
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as cases
from hypothesis import strategies as st

from user_pipeline.defs.common import file_of
from user_pipeline.defs.partitions import DAILY
from user_pipeline.engines.duckdb import Engine
from user_pipeline.io_managers.partitioned import PARTITIONED, File, Partitioned
from user_pipeline.io_managers.tables import IncrementalIOManager
from user_pipeline.lake.lake import Lake
from user_pipeline.lake.partitions import LakeFile, partitions_in
from user_pipeline.lake.transfer import LostFileError, new_path, put
from user_pipeline.resources.postgres import Databases, Transaction
from user_pipeline.resources.postgres_errors import DatabaseUnavailableError
from user_pipeline.transforms import Frame
from user_pipeline.transforms.marts import daily_page_views, latest_updates
from user_pipeline.warehouse.incremental import Merge
from user_pipeline_tests import oracle
from user_pipeline_tests.io_managers.threads import at_once
from user_pipeline_tests.oracle import Update, View
from user_pipeline_tests.platform import Platform

FIRST = date(2017, 4, 1)


def seen(day: int, hour: int = 12, url: str = "/a", user_id: int = 1) -> View:
    return View(datetime(2017, 4, 1 + day, hour), url, "production", user_id)


def known(day: int, email: str = "a@x.org", user_id: int = 1, hour: int = 12, name: str = "Ann") -> Update:
    return Update(datetime(2017, 4, 1 + day, hour), user_id, email, name, "production")


def stored_days(
    lake: Lake, engine: Engine, table: str, first: int, days: Sequence[Sequence[View]] | Sequence[Sequence[Update]]
) -> tuple[dict[date, Path], dict[date, list[LakeFile]]]:
    """The aggregates of some days, from ``first`` on: a local file of each, and the same in the lake."""
    kind, schema, transform = _TABLES[table]
    local: dict[date, Path] = {}
    there: dict[date, list[LakeFile]] = {}
    each: Iterable[Sequence[View | Update]] = days
    for day, rows in enumerate(each, first):
        assert all(isinstance(row, kind) for row in rows)
        arrow = pa.Table.from_pylist([row._asdict() for row in rows], schema=schema)
        when = FIRST + timedelta(days=day)
        file = file_of(engine, transform(nw.from_native(engine.connect().from_arrow(arrow))), when.isoformat())
        local[when] = file.path
        there[when] = [put(lake.storage, new_path(f"daily/{table}", when), file.path, file.rows or 0)]
    return local, there


def bring(
    platform: Platform,
    table: str,
    first: int,
    days: Sequence[Sequence[View]] | Sequence[Sequence[Update]],
    last_step: Callable[[Transaction], object] = lambda _: None,
) -> None:
    """Replace some days as the IO manager does: stored first, then table and registry change in one transaction.

    The database is one of its own, so several threads can do this.
    """
    databases = Databases(platform.settings)
    lake = Lake(platform.storage, databases)
    try:
        with Engine(platform.settings) as engine:
            lake.analytics.open()
            local, there = stored_days(lake, engine, table, first, days)
            with databases.analytics.transaction() as transaction:
                new = {day: [file] for day, file in local.items()}
                Merge(transaction, engine, lake.storage).apply(table, new)
                lake.analytics.commit(transaction, table, there, "run")
                last_step(transaction)
    finally:
        databases.close()


_TABLES: dict[str, tuple[type, pa.Schema, Callable[[Frame], Frame]]] = {
    "user_page_views": (
        View,
        pa.schema(
            [("ts", pa.timestamp("us")), ("url", pa.string()), ("environment", pa.string()), ("user_id", pa.int64())]
        ),
        daily_page_views,
    ),
    "users": (
        Update,
        pa.schema(
            [
                ("updated_at", pa.timestamp("us")),
                ("user_id", pa.int64()),
                ("email", pa.string()),
                ("name", pa.string()),
                ("environment", pa.string()),
            ]
        ),
        latest_updates,
    ),
}


class Marts:
    """The tables, and beside them what they must be worked out from all days anew."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self._views: dict[int, Sequence[View]] = {}
        self._updates: dict[int, Sequence[Update]] = {}

    def views(self, first: int, *days: Sequence[View]) -> None:
        """Views of a day, or of several days in a row at once."""
        bring(self.platform, "user_page_views", first, days)
        self._views |= dict(enumerate(days, first))
        self.check()

    def updates(self, first: int, *days: Sequence[Update]) -> None:
        bring(self.platform, "users", first, days)
        self._updates |= dict(enumerate(days, first))
        self.check()

    def now(self, views: dict[int, list[View]], updates: dict[int, list[Update]]) -> None:
        """Take note of days that were brought by other means."""
        self._views |= views
        self._updates |= updates

    def check(self) -> None:
        views = [view for day in self._views.values() for view in day]
        updates = [update for day in self._updates.values() for update in day]
        table = self.platform.table
        assert table("analytics", "user_page_views") == _sorted(oracle.user_page_views(views, updates))
        assert table("analytics", "users") == _sorted(oracle.users(updates))
        pairs = {day: [(row[0], *row[2:]) for row in oracle.user_page_views(of, [])] for day, of in self._views.items()}
        assert self.registered("user_page_views", "user_id, url, count, last_viewed") == _by_date(pairs)
        latest = {day: oracle.users(of) for day, of in self._updates.items()}
        assert self.registered("users", "user_id, email, name, updated_at") == _by_date(latest)

    def registered(self, table: str, columns: str) -> dict[date, list[tuple[object, ...]]]:
        """What the lake has of each day, by the registry."""
        found: dict[date, list[tuple[object, ...]]] = {}
        for day, files in self.platform.lake.analytics.partitions(table).items():
            [file] = files
            path = str(self.platform.root / "lake" / file.path)
            found[day] = _sorted(duckdb.sql(f"select {columns} from '{path}'").fetchall())
            assert file.rows == len(found[day])
        return found


def _by_date(days: Mapping[int, Iterable[tuple[object, ...]]]) -> dict[date, list[tuple[object, ...]]]:
    return {FIRST + timedelta(days=day): _sorted(rows) for day, rows in sorted(days.items())}


def _sorted(rows: Iterable[tuple[object, ...]]) -> list[tuple[object, ...]]:
    return sorted(rows, key=repr)


@pytest.fixture
def marts(platform: Platform) -> Marts:
    return Marts(platform)


def test_a_last_view_that_leaves_is_found_on_the_day_before_or_long_before(marts: Marts) -> None:
    marts.views(0, [seen(0, 7)])
    marts.views(1, [seen(1, url="/b")])
    marts.views(5, [seen(5, 9), seen(5, 8, "/b"), seen(5, 8, "/c")])
    marts.views(6, [seen(6, 9, "/b")])
    marts.views(5, [seen(5, 8, "/c")])
    marts.views(6, [])
    marts.views(5, [])


def test_a_last_view_moves_within_its_day_both_ways(marts: Marts) -> None:
    marts.views(2, [seen(2, 9), seen(2, 10)])
    marts.views(2, [seen(2, 9), seen(2, 8)])
    marts.views(2, [seen(2, 9), seen(2, 11)])
    marts.views(4, [seen(4, 9)])
    marts.views(2, [seen(2, 8)])


def test_a_last_view_leaves_a_range_of_days(marts: Marts) -> None:
    marts.views(0, [seen(0)], [], [seen(2), seen(2, url="/b")], [seen(3)], [seen(4, url="/b")], [seen(5)])
    marts.views(3, [], [], [])
    marts.views(2, [seen(2, 1)], [seen(3, url="/b")], [])
    marts.views(1, [], [], [], [], [])
    marts.views(0, [], [])


def test_a_pair_without_a_view_is_a_row_no_more(marts: Marts) -> None:
    marts.views(0, [seen(0), seen(0, url="/b")])
    marts.views(1, [seen(1)])
    marts.views(0, [])
    marts.views(1, [])
    assert marts.platform.table("analytics", "user_page_views") == []
    marts.views(1, [seen(1)])


def test_a_count_changes_while_the_last_view_stays_and_the_other_way_round(marts: Marts) -> None:
    marts.views(0, [seen(0, 1), seen(0, 2), seen(0, 12)])
    marts.views(0, [seen(0, 3), seen(0, 12)])
    marts.views(0, [seen(0, 3), seen(0, 13)])


def test_a_day_brought_again_changes_no_row_of_the_table(marts: Marts) -> None:
    marts.updates(0, [known(0)])
    marts.views(0, [seen(0), seen(0, url="/b")])
    query = "select ctid::text, xmin::text from user_page_views union all select ctid::text, xmin::text from users"
    before = sorted(marts.platform.rows("analytics", query))
    marts.views(0, [seen(0), seen(0, url="/b")])
    marts.updates(0, [known(0)])
    assert sorted(marts.platform.rows("analytics", query)) == before


def test_e_mails_follow_users_whichever_table_comes_first(marts: Marts) -> None:
    marts.views(0, [seen(0), seen(0, user_id=2)])
    marts.updates(1, [known(1), known(1, "c@x.org", user_id=3)])
    marts.views(1, [seen(1, user_id=3)])
    marts.updates(2, [known(2, "new@x.org")])
    marts.updates(0, [known(0, "old@x.org"), known(0, "two@x.org", user_id=2)])
    marts.updates(2, [])
    marts.updates(0, [], [])


def test_a_user_s_latest_update_leaves_and_an_older_one_counts_again(marts: Marts) -> None:
    marts.views(0, [seen(0)])
    marts.updates(0, [known(0, "first@x.org")])
    marts.updates(4, [known(4, "late@x.org"), known(4, "Later@x.org"), known(4, "later@x.org", hour=3)])
    marts.updates(4, [known(4, "later@x.org", hour=3)])
    marts.updates(2, [known(2, "middle@x.org")])
    marts.updates(3, [], [])
    marts.updates(2, [])
    marts.updates(0, [])
    assert marts.platform.table("analytics", "users") == []


def test_a_name_that_changes_alone_is_brought_along(marts: Marts) -> None:
    marts.updates(0, [known(0, name="Ann")])
    marts.updates(0, [known(0, name="Bob")])


def test_urls_of_any_length_and_ids_of_any_size_are_keys(marts: Marts) -> None:
    long = "/" + "".join(chr(33 + n * n % 90) for n in range(100_000))
    shared = long[:3000]
    odd = ["/'", '/"', "/\\", "/ü😀", "/u\u0308", "/A", "/a ", "/%00", shared + "1", shared + "2", long, long + "x"]
    huge = 2**62
    marts.updates(0, [known(0, user_id=huge), known(0, "b@x.org", user_id=2**63 - 1)])
    for day in (0, 1):
        marts.views(day, [seen(day, url=url, user_id=user) for url in odd for user in (huge, huge + 1, 2**63 - 1)])
    marts.views(1, [seen(1, url=shared + "2", user_id=huge)])
    marts.views(0, [])


def test_days_merged_at_once_add_up_as_if_one_after_the_other(platform: Platform) -> None:
    views = [
        [seen(day, hour, f"/{page}", user) for hour in (day, 12) for page in "ab" for user in (1, 2)]
        for day in range(8)
    ]
    updates = [[known(day, f"u{user}d{day}@x.org", user) for user in (1, 2)] for day in range(8)]
    fewer = [day[: 8 - number] for number, day in enumerate(views)]

    def work(number: int) -> None:
        for step in (views, fewer, views, fewer):
            bring(platform, "user_page_views", number, [step[number]])
            bring(platform, "users", number, [updates[number]])

    # From no tables at all: making them is part of the race.
    at_once(8, work)
    marts = Marts(platform)
    marts.now(dict(enumerate(fewer)), dict(enumerate(updates)))
    marts.check()


def test_one_day_merged_by_many_at_once_is_the_day_of_one_of_them(platform: Platform) -> None:
    at_once(8, lambda number: bring(platform, "user_page_views", 0, [[seen(0, hour) for hour in range(number + 1)]]))
    [(_, _, _, count, last)] = platform.table("analytics", "user_page_views")
    assert last == datetime(2017, 4, 1, count - 1)
    marts = Marts(platform)
    marts.now({0: [seen(0, hour) for hour in range(count)]}, {})
    marts.check()


# Any history


_views = st.lists(st.tuples(st.integers(0, 23), st.sampled_from(["/a", "/b"]), st.integers(1, 2)), max_size=3)
_updates = st.lists(
    st.tuples(st.integers(0, 23), st.sampled_from(["a@x.org", "b@x.org", "B@x.org"]), st.integers(1, 2)), max_size=2
)
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("views"), st.integers(0, 5), st.lists(_views, min_size=1, max_size=3)),
        st.tuples(st.just("updates"), st.integers(0, 5), st.lists(_updates, min_size=1, max_size=3)),
    ),
    min_size=2,
    max_size=8,
)


@cases(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(_steps)
@example(
    [("views", 0, [[(1, "/a", 1)]]), ("views", 2, [[(9, "/a", 1), (10, "/a", 1)]]), ("views", 2, [[(8, "/a", 1)]])]
)
def test_any_history_of_days_gives_what_its_last_state_adds_up_to(
    platform: Platform, steps: list[tuple[str, int, list[list[tuple[int, str, int]]]]]
) -> None:
    with platform.analytics.transaction() as transaction:
        transaction.execute("drop schema public cascade")
        transaction.execute("create schema public")
        transaction.execute("drop schema if exists pipeline cascade")
    shutil.rmtree(platform.root / "lake", ignore_errors=True)
    marts = Marts(platform)
    for kind, first, days in steps:
        if kind == "views":
            marts.views(first, *([seen(n, *view) for view in day] for n, day in enumerate(days, first)))
        else:
            marts.updates(
                first,
                *([known(n, email, user, hour) for hour, email, user in day] for n, day in enumerate(days, first)),
            )


# Lake and table together


def state(platform: Platform) -> list[object]:
    """The tables, and the registry."""
    return [
        platform.table("analytics", "users"),
        platform.table("analytics", "user_page_views"),
        platform.lake.analytics.partitions("users"),
        platform.lake.analytics.partitions("user_page_views"),
        platform.lake.analytics.versions("users"),
        platform.lake.analytics.versions("user_page_views"),
    ]


def test_a_transaction_that_fails_after_all_its_steps_leaves_table_and_registry(marts: Marts) -> None:
    marts.updates(0, [known(0)])
    marts.views(0, [seen(0), seen(0, url="/b")])
    before = state(marts.platform)

    def fail(transaction: Transaction) -> None:
        [(count,)] = transaction.fetch("select count(*) from user_page_views")
        assert count == 1
        raise RuntimeError("told to stop")

    with pytest.raises(RuntimeError, match="told to stop"):
        bring(marts.platform, "user_page_views", 0, [[seen(0, 3, "/c")]], fail)
    assert state(marts.platform) == before
    marts.views(0, [seen(0, 3, "/c")])


@pytest.mark.parametrize("table", ["users", "user_page_views"])
def test_a_commit_that_fails_leaves_table_and_registry(marts: Marts, table: str) -> None:
    marts.updates(0, [known(0)])
    marts.views(0, [seen(0)])
    before = state(marts.platform)
    with marts.platform.analytics.transaction() as transaction:
        transaction.execute(
            """
            create function refuse() returns trigger language plpgsql as
            $$ begin raise exception 'not now' using errcode = 'check_violation'; end $$
            """
        )
        transaction.execute(
            f"create constraint trigger refusal after insert or update or delete on {table} "
            "deferrable initially deferred for each row execute function refuse()"
        )
    days: dict[str, tuple[Sequence[View], ...] | tuple[Sequence[Update], ...]] = {
        "users": ([known(0, "b@x.org")], [known(1, user_id=2)]),
        "user_page_views": ([seen(0), seen(0, 1)], [seen(1)]),
    }
    with pytest.raises(DatabaseUnavailableError, match="not now"):
        bring(marts.platform, table, 0, days[table])
    assert state(marts.platform) == before
    with marts.platform.analytics.transaction() as transaction:
        transaction.execute(f"drop trigger refusal on {table}")
    bring(marts.platform, table, 0, days[table])
    assert state(marts.platform) != before


def test_a_log_that_cannot_be_written_leaves_table_and_registry(marts: Marts, monkeypatch: pytest.MonkeyPatch) -> None:
    marts.views(0, [seen(0)])
    before = state(marts.platform)

    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("user_pipeline.lake.registry.write_log", full)
        with pytest.raises(OSError, match="No space left"):
            bring(marts.platform, "user_page_views", 0, [[seen(0), seen(0, 1)]])
    assert state(marts.platform) == before
    marts.views(0, [seen(0), seen(0, 1)])


def test_a_reader_sees_table_and_registry_of_one_moment(marts: Marts) -> None:
    marts.views(0, [seen(0)])
    total = "select sum(count)::bigint from user_page_views"
    with marts.platform.analytics.transaction() as transaction:
        transaction.execute("set transaction isolation level repeatable read")
        [(before,)] = transaction.fetch(total)
        bring(marts.platform, "user_page_views", 0, [[seen(0, hour) for hour in range(5)], [seen(1)]])
        [(file,)] = partitions_in(transaction, "user_page_views").values()
        assert transaction.fetch(total) == [(before,)] == [(1,)]
        # Its file was replaced meanwhile, and is still there to be read.
        path = str(marts.platform.root / "lake" / file.path)
        assert duckdb.sql(f"select sum(count) from '{path}'").fetchall() == [(1,)]
    assert marts.platform.rows("analytics", total) == [(6,)]


def test_readers_see_table_and_lake_agree_while_days_are_replaced(platform: Platform) -> None:
    bring(platform, "user_page_views", 0, [[seen(0)]])
    seen_totals: set[tuple[int, int]] = set()
    done = threading.Event()

    def read() -> None:
        databases = Databases(platform.settings)
        while not done.is_set():
            with databases.analytics.transaction() as transaction:
                transaction.execute("set transaction isolation level repeatable read")
                [(total,)] = transaction.fetch("select sum(count)::bigint from user_page_views")
                files = partitions_in(transaction, "user_page_views")
            paths = [str(platform.root / "lake" / file.path) for there in files.values() for file in there]
            with duckdb.connect() as connection:
                [(added,)] = connection.execute("select sum(count)::bigint from read_parquet($1)", [paths]).fetchall()
            seen_totals.add((total, added))
        databases.close()

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        try:
            for number in range(12):
                bring(platform, "user_page_views", 0, [[seen(0, hour) for hour in range(1 + number % 3)], [seen(1)]])
        finally:
            done.set()
        reading.result()
    assert seen_totals
    assert all(total == added for total, added in seen_totals)


def test_the_files_that_were_replaced_stay_and_say_since_when(marts: Marts) -> None:
    marts.views(0, [seen(0)], [seen(1)])
    [old], [other] = marts.platform.lake.analytics.partitions("user_page_views").values()
    content = (marts.platform.root / "lake" / old.path).read_bytes()
    marts.views(0, [seen(0), seen(0, 1)])
    [new], [same] = marts.platform.lake.analytics.partitions("user_page_views").values()
    assert same == other
    assert (marts.platform.root / "lake" / old.path).read_bytes() == content
    noted = "select path, superseded_at is not null from pipeline.lake_files"
    assert dict(marts.platform.rows("analytics", noted)) == {old.path: True, new.path: False, other.path: False}


@pytest.mark.parametrize("table", ["users", "user_page_views"])
def test_a_lost_file_that_the_change_is_worked_out_from_is_named_and_nothing_changes(marts: Marts, table: str) -> None:
    marts.updates(0, [known(0)], [known(1)])
    marts.views(0, [seen(0)], [seen(1)])
    before = state(marts.platform)
    for day in (1, 0):
        # Of the day itself, then of the day before it, where the last view and the latest update are looked for.
        [file] = marts.platform.lake.analytics.partitions(table)[FIRST + timedelta(days=day)]
        path = marts.platform.root / "lake" / file.path
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(LostFileError) as lost:
            bring(marts.platform, table, 1, [[]])
        assert str(path) in str(lost.value)
        assert state(marts.platform) == before
        path.write_bytes(content)
    bring(marts.platform, table, 1, [[]])
    assert state(marts.platform) != before


# Through Dagster


AGGREGATE = pa.schema(
    [("user_id", pa.int64()), ("url", pa.string()), ("count", pa.int64()), ("last_viewed", pa.timestamp("us"))]
)


def materialize_views(
    platform: Platform, make: Callable[[str], list[tuple[int, str, int, datetime]]], first: str, last: str
) -> dg.ExecuteInProcessResult:
    """The asset of the page views, giving the rows made for each day."""

    @dg.asset(
        partitions_def=DAILY,
        backfill_policy=dg.BackfillPolicy.single_run(),
        dagster_type=PARTITIONED,
        required_resource_keys={"engine"},
        metadata={"partition_expr": "last_viewed"},
        retry_policy=dg.RetryPolicy(max_retries=2, delay=0),
    )
    def user_page_views(context: dg.AssetExecutionContext) -> Partitioned[File]:
        engine = context.resources.engine
        rows = {
            day: [dict(zip(AGGREGATE.names, row, strict=True)) for row in make(day)] for day in context.partition_keys
        }
        tables = {day: pa.Table.from_pylist(given_rows, schema=AGGREGATE) for day, given_rows in rows.items()}
        return Partitioned({day: file_of(engine, nw.from_native(table).lazy(), day) for day, table in tables.items()})

    with platform.engine() as engine:
        manager = IncrementalIOManager(lake=platform.lake, engine=engine, folder="daily", database="analytics")
        return dg.materialize(
            [user_page_views],
            resources={"io_manager": manager, "engine": engine},
            tags={"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last},
            raise_on_error=False,
        )


def test_dagster_is_told_the_rows_of_each_day_and_of_the_table(platform: Platform) -> None:
    def make(day: str) -> list[tuple[int, str, int, datetime]]:
        when = datetime.fromisoformat(day)
        return [] if day.endswith("02") else [(user, "/a", 2, when) for user in (1, 2)]

    result = materialize_views(platform, make, "2017-04-01", "2017-04-03")
    events = result.get_asset_materialization_events()
    noted = {
        event.partition: {
            name: entry.value for name, entry in event.materialization.metadata.items() if "dagster/" in name
        }
        for event in events
    }
    assert noted == {
        f"2017-04-0{day}": {
            "dagster/partition_row_count": rows,
            "dagster/table_name": "analytics.public.user_page_views",
            "dagster/uri": str(platform.lake_file("user_page_views", f"2017-04-0{day}")),
        }
        for day, rows in ((1, 2), (2, 0), (3, 2))
    }
    when = datetime(2017, 4, 3)
    assert platform.table("analytics", "user_page_views") == [(user, None, "/a", 4, when) for user in (1, 2)]


def test_views_of_another_day_are_refused_and_change_nothing(marts: Marts) -> None:
    marts.views(0, [seen(0)])
    before, files = state(marts.platform), marts.platform.lake_files()
    moments = [
        datetime(2017, 4, 1, 23, 59, 59, 999_999),
        datetime(2017, 4, 2),
        datetime(2017, 3, 31, 23, 59, 59, 999_999),
    ]
    result = materialize_views(
        marts.platform,
        lambda _: [(1, f"/{n}", 1, moment) for n, moment in enumerate(moments)],
        "2017-04-01",
        "2017-04-01",
    )
    [event] = result.get_step_failure_events()
    failure = event.step_failure_data.user_failure_data
    assert failure
    assert "2 of the rows for 2017-04-01 have last_viewed outside of that day" in str(failure.description)
    assert not [event for event in result.all_events if event.is_step_up_for_retry]
    assert state(marts.platform) == before
    assert marts.platform.lake_files() == files

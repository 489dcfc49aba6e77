"""Maintained tables: whatever day is replaced by whatever, they equal what the contributions of all days add up to."""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime, timedelta

import dagster as dg
import duckdb
import narwhals as nw
import pyarrow as pa
import pytest

from user_pipeline.engines.frames import to_reader
from user_pipeline.io_managers.postgres import PostgresIOManager
from user_pipeline.resources.postgres import Postgres
from user_pipeline.transforms import Frame
from user_pipeline.transforms.marts import daily_page_views, latest_updates
from user_pipeline.warehouse.replace import SliceError, merge
from user_pipeline_tests import oracle
from user_pipeline_tests.io_managers.test_postgres import at_once
from user_pipeline_tests.oracle import Update, View
from user_pipeline_tests.platform import Platform

DAYS = [date(2017, 4, 1) + timedelta(days=n) for n in range(8)]


def seen(day: int, hour: int = 12, url: str = "/a", user_id: int = 1) -> View:
    return View(datetime(2017, 4, 1 + day, hour), url, "production", user_id)


def known(day: int, email: str = "a@x.org", user_id: int = 1, hour: int = 12, name: str = "Ann") -> Update:
    return Update(datetime(2017, 4, 1 + day, hour), user_id, email, name, "production")


def bring(
    database: Postgres, table: str, first: int, days: Sequence[Sequence[View]] | Sequence[Sequence[Update]]
) -> None:
    """Replace some days, from ``first`` on, in one transaction."""
    rows: list[View | Update] = [row for day in days for row in day]
    kind, schema, transform = _TABLES[table]
    assert all(isinstance(row, kind) for row in rows)
    arrow = pa.Table.from_pylist([row._asdict() for row in rows], schema=schema)
    contributions = transform(nw.from_native(duckdb.connect().from_arrow(arrow)))
    start = datetime(2017, 4, 1, tzinfo=UTC) + timedelta(days=first)
    with database.transaction() as transaction:
        merge(transaction, table, (start, start + timedelta(days=len(days))), to_reader(contributions))


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
        bring(self.platform.analytics, "user_page_views", first, days)
        self._views |= dict(enumerate(days, first))
        self.check()

    def updates(self, first: int, *days: Sequence[Update]) -> None:
        bring(self.platform.analytics, "users", first, days)
        self._updates |= dict(enumerate(days, first))
        self.check()

    def check(self) -> None:
        views = [view for day in self._views.values() for view in day]
        updates = [update for day in self._updates.values() for update in day]
        table = self.platform.table
        assert table("analytics", "user_page_views") == _sorted(oracle.user_page_views(views, updates))
        assert table("analytics", "users") == _sorted(oracle.users(updates))


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


def test_views_of_another_day_are_refused_and_change_nothing(marts: Marts) -> None:
    marts.views(0, [seen(0)])
    with pytest.raises(SliceError, match="user_page_views lie outside"):
        bring(marts.platform.analytics, "user_page_views", 0, [[seen(0), seen(1)]])
    marts.check()


def test_days_merged_at_once_add_up_as_if_one_after_the_other(platform: Platform) -> None:
    views = [
        [seen(day, hour, f"/{page}", user) for hour in (day, 12) for page in "ab" for user in (1, 2)]
        for day in range(8)
    ]
    updates = [[known(day, f"u{user}d{day}@x.org", user) for user in (1, 2)] for day in range(8)]
    fewer = [day[: 8 - number] for number, day in enumerate(views)]

    def work(number: int) -> None:
        database = Postgres(platform.analytics.database)
        for step in (views, fewer, views, fewer):
            bring(database, "user_page_views", number, [step[number]])
            bring(database, "users", number, [updates[number]])
        database.close()

    # From no tables at all: making them is part of the race.
    at_once(8, work)
    flat_views = [view for day in fewer for view in day]
    flat_updates = [update for day in updates for update in day]
    assert platform.table("analytics", "user_page_views") == _sorted(oracle.user_page_views(flat_views, flat_updates))
    assert platform.table("analytics", "users") == _sorted(oracle.users(flat_updates))


def test_one_day_merged_by_many_at_once_is_the_day_of_one_of_them(platform: Platform) -> None:
    def work(number: int) -> None:
        database = Postgres(platform.analytics.database)
        bring(database, "user_page_views", 0, [[seen(0, hour) for hour in range(number + 1)]])
        database.close()

    at_once(8, work)
    [(_, _, _, count, last)] = platform.table("analytics", "user_page_views")
    assert last == datetime(2017, 4, 1, count - 1)
    assert platform.rows("analytics", "select count, last_viewed from user_page_views_daily") == [(count, last)]


def test_dagster_is_told_the_rows_of_each_day_and_of_the_table(platform: Platform) -> None:
    daily = dg.DailyPartitionsDefinition("2017-04-01", timezone="UTC", fmt="%Y-%m-%d")

    @dg.asset(partitions_def=daily, backfill_policy=dg.BackfillPolicy.single_run(), metadata={"maintained": True})
    def user_page_views(context: dg.AssetExecutionContext) -> pa.Table:
        days = [datetime.fromisoformat(day) for day in context.partition_keys if not day.endswith("02")]
        rows = [
            {"day": day, "user_id": user, "url": "/a", "count": 2, "last_viewed": day}
            for day in days
            for user in (1, 2)
        ]
        schema = pa.schema(
            [
                ("day", pa.timestamp("us")),
                ("user_id", pa.int64()),
                ("url", pa.string()),
                ("count", pa.int64()),
                ("last_viewed", pa.timestamp("us")),
            ]
        )
        return pa.Table.from_pylist(rows, schema=schema)

    with platform.engine() as engine:
        result = dg.materialize(
            [user_page_views],
            resources={"io_manager": PostgresIOManager(platform.analytics, engine)},
            tags={
                "dagster/asset_partition_range_start": "2017-04-01",
                "dagster/asset_partition_range_end": "2017-04-03",
            },
        )
    noted = {
        event.partition: {
            name: entry.value for name, entry in event.materialization.metadata.items() if "dagster/" in name
        }
        for event in result.get_asset_materialization_events()
    }
    assert noted == {
        f"2017-04-0{day}": {
            "dagster/partition_row_count": rows,
            "dagster/table_name": "analytics.public.user_page_views",
        }
        for day, rows in ((1, 2), (2, 0), (3, 2))
    }

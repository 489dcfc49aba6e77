"""Assets kept as files of the lake and as a table of Postgres: days replaced whole or not at all, in both at once."""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import narwhals as nw
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as cases
from hypothesis import strategies as st

from user_pipeline.defs.common import file_of
from user_pipeline.defs.partitions import DAILY
from user_pipeline.engines.duckdb import Engine
from user_pipeline.io_managers.partitioned import PARTITIONED, File, Partitioned
from user_pipeline.io_managers.tables import DailyTableIOManager, IncrementalIOManager, MissingTableError, read_table
from user_pipeline.lake.lake import Lake
from user_pipeline.lake.registry import partitions_in
from user_pipeline.lake.transfer import new_path, put
from user_pipeline.resources.postgres import Databases, StatementError, Transaction
from user_pipeline.transforms import Frame
from user_pipeline.warehouse.tables import TableMismatchError, replace_days
from user_pipeline_tests.io_managers.threads import at_once
from user_pipeline_tests.platform import Platform

SCHEMA = pa.schema(
    [("ts", pa.timestamp("us")), ("url", pa.string()), ("environment", pa.string()), ("user_id", pa.int64())]
)
DAYS = ["2017-04-01", "2017-04-02", "2017-04-03"]
Make = Callable[[str], pa.Table]


def rows_of(day: str, count: int, url: str = "/a") -> pa.Table:
    """A day's page views, of users numbered from 0."""
    first = datetime.fromisoformat(day)
    return pa.table(
        {
            "ts": [first + timedelta(milliseconds=n) for n in range(count)],
            "url": [url] * count,
            "environment": ["production"] * count,
            "user_id": list(range(count)),
        },
        schema=SCHEMA,
    )


def page_views(make: Make) -> dg.AssetsDefinition:
    """The asset, of the rows made for each day."""

    @dg.asset(
        partitions_def=DAILY,
        backfill_policy=dg.BackfillPolicy.single_run(),
        dagster_type=PARTITIONED,
        required_resource_keys={"engine"},
        metadata={"partition_expr": "ts"},
        retry_policy=dg.RetryPolicy(max_retries=2, delay=0),
    )
    def page_views(context: dg.AssetExecutionContext) -> Partitioned[File]:
        engine = context.resources.engine
        return Partitioned(
            {day: file_of(engine, nw.from_native(make(day)).lazy(), day) for day in context.partition_keys}
        )

    made: dg.AssetsDefinition = page_views
    return made


def materialize(
    platform: Platform, *assets: dg.AssetsDefinition, first: str = DAYS[0], last: str | None = None, **options: Any
) -> dg.ExecuteInProcessResult:
    with platform.engine() as engine:
        manager = DailyTableIOManager(lake=platform.lake, engine=engine, folder="cleaned", database="staging")
        return dg.materialize(
            assets,
            resources={"io_manager": manager, "engine": engine},
            tags={"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last or first},
            **options,
        )


def in_table(platform: Platform) -> dict[str, int]:
    """Rows of each day in the table."""
    return dict(
        platform.rows("staging", "select to_char(ts, 'YYYY-MM-DD'), count(*) from page_views group by 1 order by 1")
    )


def in_lake(platform: Platform) -> dict[str, int]:
    """Rows of each day in the files that are registered; days without rows left out."""
    found = platform.lake.staging.partitions("page_views")
    sizes = {
        day.isoformat(): sum(pq.read_metadata(platform.root / "lake" / file.path).num_rows for file in there)
        for day, there in found.items()
    }
    assert sizes == {day.isoformat(): sum(file.rows for file in there) for day, there in found.items()}
    return {day: size for day, size in sizes.items() if size}


def state(platform: Platform) -> list[object]:
    """The table, and the registry."""
    registry = platform.lake.staging
    return [platform.table("staging", "page_views"), registry.partitions("page_views"), registry.versions("page_views")]


def failure(result: dg.ExecuteInProcessResult) -> str:
    """What the only failed step says; it was not tried again."""
    [event] = result.get_step_failure_events()
    assert not [event for event in result.all_events if event.is_step_up_for_retry]
    shown = event.step_failure_data.user_failure_data
    assert shown
    return str(shown.description)


# Days


def test_a_day_is_replaced_by_many_rows_by_none_and_by_itself_and_other_days_stay(platform: Platform) -> None:
    sizes = dict(zip(DAYS, (3, 5, 7), strict=True))
    views = page_views(lambda day: rows_of(day, sizes[day]))

    def bring(first: str, last: str | None = None) -> None:
        materialize(platform, views, first=first, last=last)
        assert in_table(platform) == in_lake(platform) == {day: size for day, size in sizes.items() if size}

    bring(DAYS[0], DAYS[2])
    sizes[DAYS[1]] = 120_000
    bring(DAYS[1])
    bring(DAYS[1])
    sizes[DAYS[1]] = 0
    bring(DAYS[1])
    sizes |= {DAYS[0]: 0, DAYS[1]: 2}
    bring(DAYS[0], DAYS[1])


def test_a_consumer_gets_each_of_its_days_from_the_lake(platform: Platform) -> None:
    seen: dict[str, list[dict[str, Any]]] = {}

    @dg.asset(partitions_def=DAILY, backfill_policy=dg.BackfillPolicy.single_run())
    def take(page_views: dict[str, Frame]) -> None:
        for day, frame in page_views.items():
            seen[day] = frame.sort("user_id").collect("pyarrow").to_native().to_pylist()

    days = [f"2017-04-0{n}" for n in range(1, 5)]
    views = page_views(lambda day: rows_of(day, int(day[-1]), "ü'\"\\😀\n\t,"))
    materialize(platform, views, first=days[0], last=days[3])
    materialize(platform, views, take, first=days[1], last=days[2], selection=["take"])
    assert seen == {day: rows_of(day, int(day[-1]), "ü'\"\\😀\n\t,").to_pylist() for day in days[1:3]}
    assert platform.table("staging", "page_views") == sorted(
        (tuple(row.values()) for day in days for row in rows_of(day, int(day[-1]), "ü'\"\\😀\n\t,").to_pylist()),
        key=repr,
    )


def test_a_run_that_breaks_off_leaves_the_old_rows_and_says_why(platform: Platform) -> None:
    def broken(day: str) -> pa.Table:
        if day == DAYS[1]:
            raise dg.Failure("the source went away", allow_retries=False)
        return rows_of(day, 9)

    materialize(platform, page_views(lambda day: rows_of(day, 4)), last=DAYS[1])
    before = state(platform)
    result = materialize(platform, page_views(broken), last=DAYS[1], raise_on_error=False)
    assert failure(result) == "the source went away"
    assert state(platform) == before


def test_an_insert_that_fails_leaves_table_and_registry_and_is_not_retried(platform: Platform) -> None:
    materialize(platform, page_views(lambda day: rows_of(day, 4)), last=DAYS[1])
    with platform.staging.transaction() as transaction:
        transaction.execute("alter table page_views add constraint few check (user_id < 1000)")
    before = state(platform)
    message = failure(
        materialize(
            platform,
            page_views(lambda day: rows_of(day, 2000 if day == DAYS[1] else 1)),
            last=DAYS[1],
            raise_on_error=False,
        )
    )
    assert "USER_PIPELINE_STAGING_URL" in message
    assert '"few"' in message
    assert state(platform) == before


def test_a_registry_that_cannot_be_written_leaves_the_table(platform: Platform) -> None:
    materialize(platform, page_views(lambda day: rows_of(day, 4)))
    with platform.staging.transaction() as transaction:
        transaction.execute("alter table pipeline.lake_files add constraint few check (rows < 1000)")
    before = state(platform)
    result = materialize(platform, page_views(lambda day: rows_of(day, 2000)), raise_on_error=False)
    assert '"few"' in failure(result)
    assert state(platform) == before
    # The file of the run that failed is in the lake, and nothing knows of it.
    assert len(platform.lake_files("cleaned")) == 2
    assert in_table(platform) == in_lake(platform) == {DAYS[0]: 4}


@pytest.mark.parametrize("moment", [datetime(2017, 4, 2), datetime(2017, 3, 31, 23, 59, 59, 999_999), None])
def test_rows_outside_the_run_s_days_are_refused(platform: Platform, moment: datetime | None) -> None:
    row = {"ts": moment, "url": "/a", "environment": "production", "user_id": 1}
    stray = pa.concat_tables([rows_of(DAYS[0], 2), pa.Table.from_pylist([row] * 3, schema=SCHEMA)])
    result = materialize(platform, page_views(lambda _: stray), raise_on_error=False)
    assert "3 of the rows for 2017-04-01 have ts outside of that day" in failure(result)
    assert platform.rows("staging", "select to_regclass('public.page_views') is null") == [(True,)]
    assert platform.lake_files("cleaned") == []


def test_a_row_of_another_day_of_the_same_run_is_refused_too(platform: Platform) -> None:
    swapped = dict(zip(DAYS[:2], DAYS[1::-1], strict=True))
    result = materialize(platform, page_views(lambda day: rows_of(swapped[day], 2)), last=DAYS[1], raise_on_error=False)
    assert "2 of the rows for 2017-04-01 have ts outside of that day" in failure(result)
    assert platform.lake_files("cleaned") == []


def test_a_table_of_other_columns_fails_with_their_names_at_once_and_stays(platform: Platform) -> None:
    materialize(platform, page_views(lambda day: rows_of(day, 2)))
    before = state(platform)
    other = rows_of(DAYS[0], 1).rename_columns(["ts", "words", "environment", "user_id"])
    other = other.set_column(3, "user_id", pa.array(["one"]))
    message = failure(materialize(platform, page_views(lambda _: other), raise_on_error=False))
    for part in (
        "public.page_views",
        "the table lacks words (text)",
        "the rows lack url (text)",
        "user_id is bigint in the table and text in the rows",
    ):
        assert part in message
    assert state(platform) == before


def test_columns_are_matched_by_name_whatever_their_order(platform: Platform) -> None:
    turned = rows_of(DAYS[0], 2).select(["user_id", "url", "ts", "environment"])
    materialize(platform, page_views(lambda _: turned))
    materialize(platform, page_views(lambda _: turned))
    assert platform.rows("staging", "select ts, url, environment, user_id from page_views order by ts") == [
        tuple(row.values()) for row in rows_of(DAYS[0], 2).to_pylist()
    ]


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Kolkata"])
def test_a_day_is_that_of_utc_whatever_the_server_s_zone(platform: Platform, zone: str) -> None:
    hours = [datetime(2017, 4, 2, hour, 59, 59) for hour in (0, 12, 23)]
    rows = [{"ts": hour, "url": "/a", "environment": "production", "user_id": 1} for hour in hours]
    views = page_views(lambda _: pa.Table.from_pylist(rows, schema=SCHEMA))
    with platform.staging.transaction() as transaction:
        transaction.execute(f"alter role current_user in database staging set timezone = '{zone}'")
    platform.staging.close()
    try:
        for _ in range(2):
            materialize(platform, views, first=DAYS[1])
        assert [row[0] for row in platform.table("staging", "page_views")] == hours
    finally:
        with platform.staging.transaction() as transaction:
            transaction.execute("alter role current_user in database staging reset timezone")
        platform.staging.close()


# Whole tables


def test_a_table_that_was_never_written_is_told_at_once(platform: Platform) -> None:
    aggregate = {"partition_expr": "last_viewed"}

    @dg.asset(partitions_def=DAILY, dagster_type=PARTITIONED, metadata=aggregate, io_manager_key="marts")
    def user_page_views() -> Partitioned[File]:
        return Partitioned({})

    @dg.asset(partitions_def=DAILY, retry_policy=dg.RetryPolicy(max_retries=2, delay=0))
    def take(user_page_views: Frame) -> None:
        raise AssertionError(user_page_views)

    with platform.staging.transaction() as transaction:
        replace_days(transaction, "page_views", "ts", [date(2017, 4, 1)], [written(platform, rows_of(DAYS[0], 1))])
    platform.lake.analytics.open()
    with platform.engine() as engine:
        marts = IncrementalIOManager(lake=platform.lake, engine=engine, folder="daily", database="analytics")
        result = dg.materialize(
            [user_page_views, take],
            resources={"marts": marts},
            selection=["take"],
            partition_key=DAYS[0],
            raise_on_error=False,
        )
        message = failure(result)
        with pytest.raises(MissingTableError, match="USER_PIPELINE_ANALYTICS_URL"):
            read_table(platform.analytics, engine, "page_views")
    assert "public.user_page_views does not exist in the database of USER_PIPELINE_ANALYTICS_URL" in message
    assert "materialize the asset user_page_views first" in message


def test_a_whole_table_can_be_read_more_than_once_and_holds_no_connection(platform: Platform) -> None:
    table = rows_of(DAYS[0], 5, "ü'\"\\😀\n\t,")
    materialize(platform, page_views(lambda _: table))
    with platform.engine() as engine:
        frame = read_table(platform.staging, engine, "page_views")
        idle = "select count(*) from pg_stat_activity where datname = 'staging' and state like 'idle in transaction%'"
        assert platform.rows("staging", idle) == [(0,)]
        with platform.staging.transaction() as transaction:
            transaction.execute("drop table page_views")
        for _ in range(2):
            assert frame.sort("user_id").collect("pyarrow").to_native().to_pylist() == table.to_pylist()


texts = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8),
    st.sampled_from(["", "'", "\\N", "\\", "\\.", "\t", "\r\n", "😀", '""', "NULL", "%s", "$1"]),
)
moments = st.datetimes(datetime(2017, 4, 1), datetime(2017, 4, 1, 23, 59, 59, 999_999))
rows = st.lists(
    st.fixed_dictionaries(
        {
            "ts": moments,
            "url": st.one_of(st.none(), texts),
            "environment": st.one_of(st.none(), texts),
            "user_id": st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
        }
    ),
    max_size=8,
)


@cases(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(rows)
def test_values_come_back_as_they_were(platform: Platform, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    file = written(platform, table)
    with platform.staging.transaction() as transaction:
        assert replace_days(transaction, "page_views", "ts", [date(2017, 4, 1)], [file]) == len(rows)
    with platform.engine() as engine:
        back = read_table(platform.staging, engine, "page_views").collect("pyarrow").to_native()
    assert back.schema.remove_metadata() == SCHEMA
    assert sorted(back.to_pylist(), key=repr) == sorted(table.to_pylist(), key=repr)


# Several at once


def written(platform: Platform, table: pa.Table) -> Path:
    """Rows as a local Parquet file."""
    file = platform.root / f"{threading.get_ident()}.parquet"
    pq.write_table(table, file)
    return file


def replace(
    platform: Platform,
    days: Mapping[str, pa.Table],
    last_step: Callable[[Transaction], object] = lambda _: None,
) -> None:
    """Replace days as the IO manager does: stored first, then table and registry in one transaction.

    The database is one of its own, so several threads can do this.
    """
    databases = Databases(platform.settings)
    lake = Lake(platform.storage, databases)
    try:
        with Engine(platform.settings) as engine:
            lake.staging.open()
            files = {
                date.fromisoformat(day): file_of(engine, nw.from_native(table).lazy(), day)
                for day, table in days.items()
            }
            there = {
                day: [put(lake.storage, new_path("cleaned/page_views", day), file.path, file.rows or 0)]
                for day, file in files.items()
            }
            with databases.staging.transaction() as transaction:
                replace_days(transaction, "page_views", "ts", list(files), [file.path for file in files.values()])
                lake.staging.commit(transaction, "page_views", there, "run")
                last_step(transaction)
    finally:
        databases.close()


def test_of_eight_writers_of_one_day_one_is_left_in_table_and_lake(platform: Platform) -> None:
    def write(number: int) -> None:
        for _ in range(3):
            replace(platform, {DAYS[0]: rows_of(DAYS[0], 50 + number, f"w{number}")})

    # From no table at all: making it is part of the race.
    at_once(8, write)
    [(url, count)] = platform.rows("staging", "select url, count(*) from page_views group by 1")
    assert count == 50 + int(url[1:])
    assert in_lake(platform) == {DAYS[0]: count}
    path = str(platform.lake_file("page_views", DAYS[0]))
    assert duckdb.execute("select distinct url from read_parquet($1)", [path]).fetchall() == [(url,)]
    [(versions, last)] = platform.rows("staging", "select count(*), max(version) from pipeline.lake_commits")
    assert versions == 24
    assert platform.lake.staging.versions("page_views") == {date(2017, 4, 1): last}


def test_eight_writers_of_different_days_all_stay(platform: Platform) -> None:
    days = [f"2017-04-0{n}" for n in range(1, 9)]

    def write(number: int) -> None:
        for _ in range(3):
            replace(platform, {days[number]: rows_of(days[number], 50 + number)})

    at_once(8, write)
    assert in_table(platform) == in_lake(platform) == {day: 50 + number for number, day in enumerate(days)}


def test_readers_see_the_old_or_the_new_rows_and_never_wait(platform: Platform) -> None:
    replace(platform, {DAYS[0]: rows_of(DAYS[0], 10)})
    before: list[tuple[dict[str, int], dict[str, int]]] = []
    other = Databases(platform.settings)

    def look(_: Transaction) -> None:
        with other.staging.transaction() as transaction:
            transaction.execute("set local lock_timeout = '1s'")
            found = transaction.fetch("select to_char(ts, 'YYYY-MM-DD'), count(*) from page_views group by 1")
            files = partitions_in(transaction, "page_views")
        before.append((dict(found), {str(day): file.rows for day, [file] in files.items()}))

    # Asked when all is written and nothing is committed.
    replace(platform, {DAYS[0]: rows_of(DAYS[0], 5000)}, look)
    other.close()
    assert before == [({DAYS[0]: 10}, {DAYS[0]: 10})]

    seen: set[tuple[int, int]] = set()
    done = threading.Event()

    def read() -> None:
        databases = Databases(platform.settings)
        while not done.is_set():
            with databases.staging.transaction() as transaction:
                transaction.execute("set transaction isolation level repeatable read")
                [(count,)] = transaction.fetch("select count(*) from page_views")
                [[file]] = partitions_in(transaction, "page_views").values()
            seen.add((count, file.rows))
        databases.close()

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        try:
            for size in (10, 5000) * 5:
                replace(platform, {DAYS[0]: rows_of(DAYS[0], size)})
        finally:
            done.set()
        reading.result()
    assert seen
    assert seen <= {(10, 10), (5000, 5000)}


def test_a_writer_that_fails_lets_the_next_one_through(platform: Platform) -> None:
    replace(platform, {DAYS[0]: rows_of(DAYS[0], 10)})
    before = state(platform)
    with pytest.raises(StatementError):
        replace(platform, {DAYS[0]: rows_of(DAYS[0], 20)}, lambda transaction: transaction.execute("select 1/0"))
    assert state(platform) == before
    replace(platform, {DAYS[1]: rows_of(DAYS[1], 3)})
    assert in_table(platform) == in_lake(platform) == {DAYS[0]: 10, DAYS[1]: 3}


def test_a_table_that_does_not_fit_is_refused_before_a_row_is_deleted(platform: Platform) -> None:
    replace(platform, {DAYS[0]: rows_of(DAYS[0], 10)})
    with platform.staging.transaction() as transaction:
        transaction.execute("alter table page_views add column more text")
    with pytest.raises(TableMismatchError, match=r"the rows lack more \(text\)"):
        replace(platform, {DAYS[0]: rows_of(DAYS[0], 20)})
    assert in_table(platform) == in_lake(platform) == {DAYS[0]: 10}


# What Dagster is told


def noted(result: dg.ExecuteInProcessResult, *names: str) -> dict[str, Sequence[Any]]:
    """Some metadata of each day."""
    return {
        str(event.partition): [event.materialization.metadata[name].value for name in names]
        for event in result.get_asset_materialization_events()
    }


def test_each_day_s_materialization_says_how_many_rows_it_has_and_where(platform: Platform) -> None:
    sizes = dict(zip(DAYS, (3, 0, 2), strict=True))
    names = ("dagster/partition_row_count", "dagster/table_name", "dagster/uri", "size_bytes")
    views = page_views(lambda day: rows_of(day, sizes[day]))
    for first, last in ((DAYS[0], DAYS[2]), (DAYS[2], DAYS[2]), (DAYS[1], DAYS[1])):
        result = materialize(platform, views, first=first, last=last)
        files = {day: platform.lake_file("page_views", day) for day in DAYS if first <= day <= last}
        assert noted(result, *names) == {
            day: [sizes[day], "staging.public.page_views", str(file), file.stat().st_size]
            for day, file in files.items()
        }

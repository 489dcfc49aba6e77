"""Tables whose rows belong to a day each: replaced by the day, with the files of the lake, whole or not at all."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as cases
from hypothesis import strategies as st

from user_pipeline.engines.duckdb import Engine
from user_pipeline.io_managers.partitioned import PARTITIONED, File, Partitioned
from user_pipeline.io_managers.tables import DailyTableIOManager, IncrementalIOManager, MissingTableError, read_table
from user_pipeline.lake.transfer import new_path, put
from user_pipeline.resources.postgres_errors import StatementError
from user_pipeline.transforms import Frame
from user_pipeline.warehouse.tables import TableMismatchError, replace_days
from user_pipeline_tests.defs.test_checks import sql
from user_pipeline_tests.platform import Platform

DAILY = dg.DailyPartitionsDefinition("2017-04-01", timezone="UTC", fmt="%Y-%m-%d")
DAYS = [date(2017, 4, 1) + timedelta(days=n) for n in range(8)]
SCHEMA = pa.schema(
    [("ts", pa.timestamp("us")), ("url", pa.string()), ("environment", pa.string()), ("user_id", pa.int64())]
)
RETRY = dg.RetryPolicy(max_retries=2, delay=0)


def rows_of(day: date, count: int, url: str = "/") -> pa.Table:
    """A day's rows, numbered by their users."""
    first = datetime(day.year, day.month, day.day)
    return pa.table(
        {
            "ts": [first + timedelta(milliseconds=n) for n in range(count)],
            "url": [url] * count,
            "environment": ["production"] * count,
            "user_id": list(range(count)),
        },
        schema=SCHEMA,
    )


@contextmanager
def files_of(folder: Path, days: Mapping[date, pa.Table]) -> Iterator[dict[date, Path]]:
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for day, rows in days.items():
        files[day] = folder / f"{threading.get_ident()}-{day}.parquet"
        pq.write_table(rows, files[day])
    yield files
    for file in files.values():
        file.unlink()


def write(platform: Platform, days: Mapping[date, pa.Table]) -> int:
    """Replace days of ``page_views``, in the table and in the lake, as the IO manager does; returns their rows."""
    lake = platform.lake
    lake.staging.open()
    with files_of(platform.root / "local", days) as files:
        stored = {
            day: [put(lake.storage, new_path("cleaned/page_views", day), file, days[day].num_rows)]
            for day, file in files.items()
        }
        with lake.staging.database.transaction() as transaction:
            count = replace_days(transaction, "page_views", "ts", list(files), list(files.values()))
            lake.staging.commit(transaction, "page_views", stored, "test")
    return count


def counts(platform: Platform) -> dict[tuple[date, str], int]:
    """Rows by day and url."""
    rows = platform.rows("staging", "select ts::date, url, count(*) from page_views group by 1, 2 order by 1, 2")
    return {(day, url): count for day, url, count in rows}


def in_lake(platform: Platform) -> dict[date, int]:
    return {
        day: sum(file.rows for file in files) for day, files in platform.lake.staging.partitions("page_views").items()
    }


def test_a_day_is_replaced_by_many_rows_by_none_and_by_itself_and_other_days_stay(platform: Platform) -> None:
    other = {DAYS[1]: rows_of(DAYS[1], 3)}
    assert write(platform, other) == 3
    for count in (5, 250_000, 0, 7, 7):
        assert write(platform, {DAYS[0]: rows_of(DAYS[0], count)}) == count
        assert counts(platform) == {(DAYS[0], "/"): count, (DAYS[1], "/"): 3} if count else {(DAYS[1], "/"): 3}
        assert in_lake(platform) == {DAYS[0]: count, DAYS[1]: 3}
    assert write(platform, {day: rows_of(day, 2) for day in DAYS[:3]}) == 6
    assert counts(platform) == {(day, "/"): 2 for day in DAYS[:3]}


def test_rows_lie_in_the_table_as_in_the_file(platform: Platform) -> None:
    write(platform, {DAYS[0]: rows_of(DAYS[0], 150_000)})
    [(disorder,)] = platform.rows(
        "staging",
        "select count(*) from (select ts < lag(ts) over (order by ctid) as back from page_views) t where back",
    )
    assert disorder == 0


def test_an_insert_that_fails_leaves_the_old_rows_and_the_old_files(platform: Platform) -> None:
    write(platform, {DAYS[0]: rows_of(DAYS[0], 3, "/old")})
    sql(platform, "staging", "alter table page_views add check (user_id < 100)")
    with pytest.raises(StatementError, match="violates check constraint"):
        write(platform, {DAYS[0]: rows_of(DAYS[0], 1_000, "/new"), DAYS[1]: rows_of(DAYS[1], 1)})
    assert counts(platform) == {(DAYS[0], "/old"): 3}
    assert in_lake(platform) == {DAYS[0]: 3}


def test_a_commit_that_fails_leaves_table_and_registry_as_they_were(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    from user_pipeline.lake import registry

    write(platform, {DAYS[0]: rows_of(DAYS[0], 3, "/old")})

    def full(*_: Any) -> None:
        raise OSError("no space")

    monkeypatch.setattr(registry, "write_log", full)
    with pytest.raises(OSError, match="no space"):
        write(platform, {DAYS[0]: rows_of(DAYS[0], 5, "/new")})
    assert counts(platform) == {(DAYS[0], "/old"): 3}
    assert in_lake(platform) == {DAYS[0]: 3}


def test_a_reader_sees_table_and_registry_of_one_moment(platform: Platform) -> None:
    write(platform, {DAYS[0]: rows_of(DAYS[0], 3)})
    registered = (
        "select sum(rows)::bigint from pipeline.lake_files where asset = 'page_views' and superseded_at is null"
    )
    with platform.staging.transaction() as transaction:
        transaction.execute("set transaction isolation level repeatable read")
        assert transaction.fetch("select count(*) from page_views") == [(3,)]
        write(platform, {DAYS[0]: rows_of(DAYS[0], 5)})
        assert transaction.fetch(registered) == [(3,)]
    assert platform.rows("staging", registered) == [(5,)]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("drop column url", r"the table lacks url \(text\)"),
        ("add column more int", r"the rows lack more \(integer\)"),
        ("alter column user_id type text", "user_id is text in the table and bigint in the rows"),
    ],
)
def test_a_table_of_other_columns_fails_with_their_names_and_stays(
    platform: Platform, change: str, problem: str
) -> None:
    write(platform, {DAYS[0]: rows_of(DAYS[0], 3)})
    sql(platform, "staging", f"alter table page_views {change}")
    with pytest.raises(TableMismatchError, match=problem):
        write(platform, {DAYS[0]: rows_of(DAYS[0], 4)})
    assert platform.rows("staging", "select count(*) from page_views") == [(3,)]


def test_columns_are_matched_by_name_whatever_their_order(platform: Platform) -> None:
    write(platform, {DAYS[0]: rows_of(DAYS[0], 2).select(["user_id", "url", "ts", "environment"])})
    assert platform.rows("staging", "select user_id, url, environment from page_views order by 1") == [
        (0, "/", "production"),
        (1, "/", "production"),
    ]


def at_once(*calls: Any) -> list[Any]:
    """The results of calls that begin at the same moment, each in a thread."""
    barrier = threading.Barrier(len(calls))

    def begin(call: Any) -> Any:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(begin, calls))


def test_of_eight_writers_of_one_day_one_is_left(platform: Platform) -> None:
    at_once(*(lambda n=n: write(platform, {DAYS[0]: rows_of(DAYS[0], n + 1, f"/{n}")}) for n in range(8)))
    [((_, url), count)] = counts(platform).items()
    assert (url, in_lake(platform)) == (f"/{count - 1}", {DAYS[0]: count})


def test_eight_writers_of_different_days_all_stay(platform: Platform) -> None:
    at_once(*(lambda n=n, day=day: write(platform, {day: rows_of(day, n + 1)}) for n, day in enumerate(DAYS)))
    assert counts(platform) == {(day, "/"): n + 1 for n, day in enumerate(DAYS)}
    assert in_lake(platform) == {day: n + 1 for n, day in enumerate(DAYS)}


def test_readers_see_the_old_or_the_new_rows_and_never_wait(platform: Platform) -> None:
    write(platform, {DAYS[0]: rows_of(DAYS[0], 1_000)})
    done = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not done.is_set():
            with platform.staging.transaction() as transaction:
                transaction.execute("set local lock_timeout = '2s'")
                [(count,)] = transaction.fetch("select count(*) from page_views")
                seen.append(count)

    def writing() -> None:
        try:
            for n in range(5):
                write(platform, {DAYS[0]: rows_of(DAYS[0], 1_000 if n % 2 else 50_000)})
        finally:
            done.set()

    at_once(read, writing)
    assert set(seen) <= {1_000, 50_000}
    assert seen


def test_a_writer_that_fails_lets_the_next_one_through(platform: Platform) -> None:
    write(platform, {DAYS[0]: rows_of(DAYS[0], 10)})
    sql(platform, "staging", "alter table pipeline.lake_files add constraint few check (rows < 100)")
    # The table takes the rows, the registry does not.
    with pytest.raises(StatementError, match='"few"'):
        write(platform, {DAYS[0]: rows_of(DAYS[0], 200)})
    assert (counts(platform), in_lake(platform)) == ({(DAYS[0], "/"): 10}, {DAYS[0]: 10})
    write(platform, {DAYS[1]: rows_of(DAYS[1], 3)})
    assert counts(platform) == {(DAYS[0], "/"): 10, (DAYS[1], "/"): 3}
    assert in_lake(platform) == {DAYS[0]: 10, DAYS[1]: 3}


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Kolkata"])
def test_a_day_is_that_of_utc_whatever_the_server_s_zone(platform: Platform, zone: str) -> None:
    hours = [datetime(2017, 4, 2, hour, 59, 59) for hour in (0, 12, 23)]
    rows = [{"ts": hour, "url": "/", "environment": "production", "user_id": 1} for hour in hours]
    sql(platform, "staging", f"alter role current_user in database staging set timezone = '{zone}'")
    platform.staging.close()
    try:
        for _ in range(2):
            write(platform, {DAYS[1]: pa.Table.from_pylist(rows, SCHEMA)})
        assert [row[0] for row in platform.table("staging", "page_views")] == hours
    finally:
        sql(platform, "staging", "alter role current_user in database staging reset timezone")
        platform.staging.close()


# What readers get


def test_a_whole_table_can_be_read_more_than_once_and_holds_no_connection(platform: Platform) -> None:
    table = rows_of(DAYS[0], 5, "ü'\"\\😀\n\t,")
    write(platform, {DAYS[0]: table})
    with platform.engine() as engine:
        frame = read_table(platform.staging, engine, "page_views")
        sql(platform, "staging", "set local lock_timeout = '10s'", "drop table page_views")
        for _ in range(2):
            assert frame.sort("user_id").collect("pyarrow").to_native().to_pylist() == table.to_pylist()


def test_a_table_that_was_never_written_is_told_at_once(platform: Platform) -> None:
    attempts: list[int] = []

    @dg.asset(partitions_def=DAILY, dagster_type=PARTITIONED, metadata={"partition_expr": "last_viewed"})
    def user_page_views() -> Any:
        raise AssertionError

    @dg.asset(partitions_def=DAILY, retry_policy=RETRY)
    def take(user_page_views: Frame) -> None:  # noqa: ARG001 - what it would be given
        attempts.append(1)

    platform.lake.analytics.open()
    with platform.engine() as engine:
        result = dg.materialize(
            [user_page_views, take],
            resources={
                "io_manager": IncrementalIOManager(
                    lake=platform.lake, engine=engine, folder="daily", database="analytics"
                )
            },
            selection=["take"],
            partition_key=DAYS[0].isoformat(),
            raise_on_error=False,
        )
        with pytest.raises(
            MissingTableError, match=r"public\.page_views does not exist in the database of USER_PIPELINE_"
        ):
            read_table(platform.staging, engine, "page_views")
    assert reason(result) == (
        "the table public.user_page_views does not exist in the database of USER_PIPELINE_ANALYTICS_URL; "
        "materialize the asset user_page_views first"
    )
    assert attempts == []


texts = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8),
    st.sampled_from(["", "'", "\\N", "\\", "\\.", "\t", "\r\n", "😀", '""', "NULL", "%s", "$1"]),
)
made_rows = st.lists(
    st.fixed_dictionaries(
        {
            "ts": st.datetimes(datetime(2017, 4, 1), datetime(2017, 4, 1, 23, 59, 59, 999_999)),
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
@given(made_rows)
def test_values_come_back_as_they_were(platform: Platform, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows, SCHEMA)
    assert write(platform, {DAYS[0]: table}) == len(rows)
    with platform.engine() as engine:
        back = read_table(platform.staging, engine, "page_views").collect("pyarrow").to_native()
    assert back.schema.remove_metadata() == SCHEMA
    assert sorted(back.to_pylist(), key=repr) == sorted(table.to_pylist(), key=repr)


# Through Dagster.


def asset_of(days: Mapping[date, Sequence[datetime]], attempts: list[int]) -> dg.AssetsDefinition:
    """``page_views`` of some days, with these moments."""

    @dg.asset(
        name="page_views",
        partitions_def=DAILY,
        backfill_policy=dg.BackfillPolicy.single_run(),
        io_manager_key="io_manager",
        dagster_type=PARTITIONED,
        retry_policy=RETRY,
        metadata={"partition_expr": "ts"},
        required_resource_keys={"engine"},
    )
    def page_views(context: dg.AssetExecutionContext) -> Any:
        attempts.append(1)
        made = {}
        for day, moments in days.items():
            file = context.resources.engine.new_scratch("made") / "rows.parquet"
            rows = [{"ts": moment, "url": "/", "environment": "production", "user_id": 1} for moment in moments]
            pq.write_table(pa.Table.from_pylist(rows, SCHEMA), file)
            made[day.isoformat()] = File(file, len(rows), {"more": 1})
        return Partitioned(made)

    return page_views


def materialize(platform: Platform, asset: dg.AssetsDefinition, first: date, last: date) -> dg.ExecuteInProcessResult:
    with Engine(platform.settings) as engine:
        manager = DailyTableIOManager(lake=platform.lake, engine=engine, folder="cleaned", database="staging")
        return dg.materialize(
            [asset],
            resources={"io_manager": manager, "engine": engine},
            tags={
                "dagster/asset_partition_range_start": first.isoformat(),
                "dagster/asset_partition_range_end": last.isoformat(),
            },
            raise_on_error=False,
        )


def reason(result: dg.ExecuteInProcessResult) -> str:
    """What the only failed step says; it was not tried again."""
    [failed] = result.get_step_failure_events()
    assert not [event for event in result.all_events if event.is_step_up_for_retry]
    shown = failed.step_failure_data.user_failure_data
    assert shown
    return str(shown.description)


def noon(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, 12, tzinfo=UTC).replace(tzinfo=None)


def test_each_day_s_materialization_says_how_many_rows_it_has_and_where(platform: Platform) -> None:
    asset = asset_of({DAYS[0]: [noon(DAYS[0])] * 2, DAYS[1]: []}, [])
    result = materialize(platform, asset, DAYS[0], DAYS[1])
    assert result.success
    events = [event.step_materialization_data.materialization for event in result.get_asset_materialization_events()]
    said = {str(event.partition): {name: value.value for name, value in event.metadata.items()} for event in events}
    assert {day: entry["dagster/partition_row_count"] for day, entry in said.items()} == {
        "2017-04-01": 2,
        "2017-04-02": 0,
    }
    for day, entry in said.items():
        assert entry["dagster/table_name"] == "staging.public.page_views"
        assert entry["dagster/uri"] == str(platform.lake_file("page_views", day))
        assert entry["size_bytes"] == platform.lake_file("page_views", day).stat().st_size
        assert entry["more"] == 1
    assert "| ts | url | environment | user" in str(said["2017-04-01"]["preview"])


@pytest.mark.parametrize("moment", [noon(DAYS[2]), noon(DAYS[0]) - timedelta(days=1), None])
def test_rows_outside_the_run_s_days_are_refused_at_once(platform: Platform, moment: datetime | None) -> None:
    write(platform, {DAYS[0]: rows_of(DAYS[0], 3)})
    attempts: list[int] = []
    asset = asset_of({DAYS[0]: [noon(DAYS[0]), moment], DAYS[1]: []}, attempts)  # type: ignore[list-item] # on purpose
    result = materialize(platform, asset, DAYS[0], DAYS[1])
    assert not result.success
    assert len(attempts) == 1
    [failed] = result.get_step_failure_events()
    assert "1 of the rows for 2017-04-01 have ts outside of that day" in str(
        failed.step_failure_data.user_failure_data and failed.step_failure_data.user_failure_data.description
    )
    assert (counts(platform), in_lake(platform)) == ({(DAYS[0], "/"): 3}, {DAYS[0]: 3})
    # Nothing was stored for it either.
    assert len(platform.lake_files("cleaned")) == 1


def test_what_does_not_fit_the_run_s_partitions_is_refused(platform: Platform) -> None:
    result = materialize(platform, asset_of({DAYS[0]: []}, []), DAYS[0], DAYS[1])
    assert not result.success
    assert platform.lake_files("cleaned") == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("alter table page_views add check (user_id > 1)", "USER_PIPELINE_STAGING_URL: Postgres says: "),
        ("alter table pipeline.lake_files add check (rows = 3)", "USER_PIPELINE_STAGING_URL: Postgres says: "),
        ("alter table page_views add column more int", "the rows lack more (integer)"),
    ],
)
def test_what_no_second_try_mends_is_not_tried_again_and_changes_nothing(
    platform: Platform, change: str, problem: str
) -> None:
    write(platform, {DAYS[0]: rows_of(DAYS[0], 3).set_column(3, "user_id", pa.array([2, 3, 4]))})
    sql(platform, "staging", change)
    before = platform.table("staging", "page_views"), platform.lake.staging.versions("page_views")
    attempts: list[int] = []
    result = materialize(platform, asset_of({DAYS[0]: [noon(DAYS[0])]}, attempts), DAYS[0], DAYS[0])
    assert problem in reason(result)
    assert len(attempts) == 1
    assert (platform.table("staging", "page_views"), platform.lake.staging.versions("page_views")) == before
    assert in_lake(platform) == {DAYS[0]: 3}

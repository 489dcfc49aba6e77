"""Assets kept in Postgres: slices replaced whole or not at all, any kind of frame in, the asked-for kind out."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import duckdb
import narwhals as nw
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from user_pipeline.engines.frames import to_reader
from user_pipeline.io_managers.postgres import PostgresIOManager
from user_pipeline.resources.postgres import Postgres, StatementError, Transaction, quote
from user_pipeline.warehouse.partition_range import Slice
from user_pipeline.warehouse.replace import SliceError, Table, replace_slice
from user_pipeline_tests.platform import Platform

DAILY = dg.DailyPartitionsDefinition("2017-04-01", timezone="UTC", fmt="%Y-%m-%d")
SCHEMA = pa.schema([("ts", pa.timestamp("us")), ("n", pa.int64()), ("text", pa.string())])
DAYS = ["2017-04-01", "2017-04-02", "2017-04-03"]
RETRY = dg.RetryPolicy(max_retries=2, delay=0)


def rows_of(day: str, count: int, text: str = "x") -> pa.Table:
    """A day's rows, numbered."""
    first = datetime.fromisoformat(day)
    return pa.table(
        {
            "ts": [first + timedelta(milliseconds=n) for n in range(count)],
            "n": list(range(count)),
            "text": [text] * count,
        },
        schema=SCHEMA,
    )


def daily(name: str, make: Callable[[dg.AssetExecutionContext], Any], **options: Any) -> dg.AssetsDefinition:
    """A daily asset of the rows that ``make`` gives, sliced by ``ts``."""
    metadata = {"partition_expr": "ts", **options.pop("metadata", {})}
    options = {"partitions_def": DAILY, "backfill_policy": dg.BackfillPolicy.single_run(), **options}

    def asset(context: dg.AssetExecutionContext) -> Any:
        return make(context)

    made: dg.AssetsDefinition = dg.asset(name=name, metadata=metadata, **options)(asset)
    return made


def consumer(
    name: str, of: str | Sequence[str], annotation: Any, seen: dict[str, Any], **options: Any
) -> dg.AssetsDefinition:
    """An asset that takes another one as ``annotation`` and notes what it was given."""
    key = dg.AssetKey(of if isinstance(of, str) else list(of))
    metadata = options.pop("metadata", None)
    options = {"partitions_def": DAILY, "backfill_policy": dg.BackfillPolicy.single_run(), **options}

    def take(rows: Any) -> None:
        kept = rows.read_all() if isinstance(rows, pa.RecordBatchReader) else rows
        seen[name] = type(rows), _collect(kept)

    take.__annotations__ = {"rows": annotation, "return": None} if annotation else {"return": None}
    ins = {"rows": dg.AssetIn(key=key, metadata=metadata)}
    made: dg.AssetsDefinition = dg.asset(name=name, ins=ins, **options)(take)
    return made


def _collect(frame: Any) -> list[tuple[Any, ...]]:
    table = pa.Table.from_batches(reader := to_reader(frame), schema=reader.schema)
    return sorted((tuple(row.values()) for row in table.to_pylist()), key=repr)


def materialize(
    platform: Platform,
    assets: dg.AssetsDefinition | Sequence[dg.AssetsDefinition],
    first: str | None = None,
    last: str | None = None,
    *,
    raise_on_error: bool = True,
) -> dg.ExecuteInProcessResult:
    with platform.engine() as engine:
        return dg.materialize(
            [assets] if isinstance(assets, dg.AssetsDefinition) else list(assets),
            resources={"io_manager": PostgresIOManager(platform.staging, engine)},
            partition_key=first if last is None else None,
            tags={"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
            if first and last
            else None,
            raise_on_error=raise_on_error,
        )


def counts(platform: Platform, table: str = "events") -> dict[str, int]:
    """Rows of each day."""
    return dict(
        platform.rows(
            "staging", f"select to_char(ts, 'YYYY-MM-DD'), count(*) from {quote(table)} group by 1 order by 1"
        )
    )


def failure(result: dg.ExecuteInProcessResult, step: str) -> tuple[str, int]:
    """Why a step failed, and how often it was tried again."""
    [event] = [event for event in result.get_step_failure_events() if event.step_key == step]
    error = event.step_failure_data.error
    texts = []
    while error is not None:
        texts.append(error.message)
        error = error.cause
    retries = [event for event in result.all_events if event.is_step_up_for_retry and event.step_key == step]
    description = event.step_failure_data.user_failure_data
    return "\n".join([description.description or "" if description else "", *texts]), len(retries)


# Slices


def test_a_day_is_replaced_by_many_rows_by_none_and_by_itself_and_other_days_stay(platform: Platform) -> None:
    sizes = {"2017-04-01": 3, "2017-04-02": 5, "2017-04-03": 7}
    events = daily(
        "events",
        lambda context: pa.concat_tables(
            [SCHEMA.empty_table(), *(rows_of(day, sizes[day]) for day in context.partition_keys)]
        ),
    )
    materialize(platform, events, "2017-04-01", "2017-04-03")
    assert counts(platform) == sizes
    sizes["2017-04-02"] = 120_000
    materialize(platform, events, "2017-04-02")
    assert counts(platform) == sizes
    materialize(platform, events, "2017-04-02")
    assert counts(platform) == sizes
    sizes["2017-04-02"] = 0
    materialize(platform, events, "2017-04-02")
    assert counts(platform) == {"2017-04-01": 3, "2017-04-03": 7}
    sizes |= {"2017-04-01": 0, "2017-04-02": 2}
    materialize(platform, events, "2017-04-01", "2017-04-02")
    assert counts(platform) == {"2017-04-02": 2, "2017-04-03": 7}


def test_a_stream_that_breaks_off_leaves_the_old_rows_and_is_named_as_the_cause(platform: Platform) -> None:
    def batches() -> Iterator[pa.RecordBatch]:
        for _ in range(3):
            yield from rows_of("2017-04-01", 100_000).to_batches()
        raise RuntimeError("the source went away")

    broken = daily(
        "events",
        lambda _: duckdb.connect().from_arrow(pa.RecordBatchReader.from_batches(SCHEMA, batches())),
    )
    materialize(platform, daily("events", lambda _: rows_of("2017-04-01", 4)), "2017-04-01")
    result = materialize(platform, broken, "2017-04-01", raise_on_error=False)
    assert not result.success
    message, _ = failure(result, "events")
    assert "the source went away" in message
    assert "Postgres says" not in message
    assert counts(platform) == {"2017-04-01": 4}


def test_an_insert_that_fails_leaves_the_old_rows(platform: Platform) -> None:
    materialize(platform, daily("events", lambda _: rows_of("2017-04-01", 4)), "2017-04-01")
    with platform.staging.transaction() as transaction:
        transaction.execute("alter table events add constraint few check (n < 1000)")
    too_many = daily("events", lambda _: rows_of("2017-04-01", 2000), retry_policy=RETRY)
    result = materialize(platform, too_many, "2017-04-01", raise_on_error=False)
    message, retries = failure(result, "events")
    assert "USER_PIPELINE_STAGING_URL" in message
    assert '"few"' in message
    assert retries == 0
    assert counts(platform) == {"2017-04-01": 4}


def test_rows_outside_the_run_s_days_are_refused(platform: Platform) -> None:
    stray = daily("events", lambda _: pa.concat_tables([rows_of("2017-04-01", 2), rows_of("2017-04-02", 3)]))
    result = materialize(platform, stray, "2017-04-01", raise_on_error=False)
    message, _ = failure(result, "events")
    assert "3 of the rows for public.events lie outside the slice ts from 2017-04-01" in message
    assert platform.rows("staging", "select to_regclass('public.events') is null") == [(True,)]
    no_day = pa.table({"ts": [None], "n": [1], "text": ["x"]}, schema=SCHEMA)
    with pytest.raises(SliceError), platform.staging.transaction() as transaction:
        replace(transaction, "2017-04-01", no_day)


def test_a_table_of_other_columns_fails_with_their_names_at_once_and_stays(platform: Platform) -> None:
    materialize(platform, daily("events", lambda _: rows_of("2017-04-01", 2)), "2017-04-01")
    before = platform.table("staging", "events")
    other = rows_of("2017-04-01", 1).rename_columns(["ts", "n", "words"])
    other = other.set_column(1, "n", pa.array(["one"]))
    result = materialize(
        platform, daily("events", lambda _: other, retry_policy=RETRY), "2017-04-01", raise_on_error=False
    )
    message, retries = failure(result, "events")
    for part in (
        "public.events",
        "the table lacks words (text)",
        "the frame lacks text (text)",
        "n is bigint in the table and text in the frame",
    ):
        assert part in message
    assert retries == 0
    assert platform.table("staging", "events") == before


def test_columns_are_matched_by_name_whatever_their_order(platform: Platform) -> None:
    materialize(platform, daily("events", lambda _: rows_of("2017-04-01", 1)), "2017-04-01")
    turned = rows_of("2017-04-01", 2).select(["text", "ts", "n"])
    materialize(platform, daily("events", lambda _: turned), "2017-04-01")
    assert platform.rows("staging", "select ts, n, text from events order by n") == [
        (datetime(2017, 4, 1), 0, "x"),
        (datetime(2017, 4, 1, 0, 0, 0, 1000), 1, "x"),
    ]


def test_static_partitions_are_replaced_by_key_and_each_is_counted(platform: Platform) -> None:
    keys = ["a'b", "ü", "in; drop"]
    asset = daily(
        "events",
        lambda context: pa.table({"kind": [key for key in context.partition_keys for _ in key]}),
        partitions_def=dg.StaticPartitionsDefinition(keys),
        metadata={"partition_expr": "kind"},
    )
    for key in keys:
        result = materialize(platform, asset, key)
    materialize(platform, asset, "ü")
    assert dict(platform.rows("staging", "select kind, count(*) from events group by 1")) == {
        key: len(key) for key in keys
    }
    assert row_counts(result) == {"in; drop": 8}


def test_a_partition_expression_may_be_sql(platform: Platform) -> None:
    seen: dict[str, Any] = {}
    metadata = {"partition_expr": "to_timestamp(seconds) at time zone 'UTC'"}
    seconds = {day: int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) for day in DAYS}
    events = daily(
        "events",
        lambda context: pa.table({"seconds": [seconds[day] + n for day in context.partition_keys for n in range(3)]}),
        metadata=metadata,
    )
    take = consumer("take", "events", pa.Table, seen)
    result = materialize(platform, events, DAYS[0], DAYS[2])
    assert row_counts(result) == dict.fromkeys(DAYS, 3)
    materialize(platform, [events, take], DAYS[1])
    assert seen["take"] == (pa.Table, [(seconds[DAYS[1]] + n,) for n in range(3)])
    assert platform.rows("staging", "select count(*) from events") == [(9,)]


def test_an_hourly_partition_is_an_hour(platform: Platform) -> None:
    events = daily(
        "events",
        lambda context: pa.table({"ts": pa.array([context.partition_time_window.start.replace(tzinfo=None)] * 2)}),
        partitions_def=dg.HourlyPartitionsDefinition("2017-04-01-00:00", timezone="UTC"),
    )
    for hour in ("2017-04-01-00:00", "2017-04-01-01:00", "2017-04-01-00:00"):
        result = materialize(platform, events, hour)
        assert row_counts(result) == {hour: 2}
    assert counts(platform) == {"2017-04-01": 4}


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Kolkata"])
def test_moments_with_a_zone_belong_to_their_utc_day_whatever_the_server_s_zone(platform: Platform, zone: str) -> None:
    moments = [datetime(2017, 4, 2, hour, tzinfo=UTC) for hour in (0, 12, 23)]
    events = daily("events", lambda _: pa.table({"ts": pa.array(moments, pa.timestamp("us", "UTC"))}))
    seen: dict[str, Any] = {}
    with platform.staging.transaction() as transaction:
        transaction.execute(f"alter role current_user in database staging set timezone = '{zone}'")
    platform.staging.close()
    try:
        materialize(platform, events, "2017-04-02")
        materialize(platform, [events, consumer("take", "events", pa.Table, seen)], "2017-04-02")
    finally:
        with platform.staging.transaction() as transaction:
            transaction.execute("alter role current_user in database staging reset timezone")
        platform.staging.close()
    assert [moment for (moment,) in seen["take"][1]] == moments


def test_days_of_a_zone_begin_at_its_midnight(platform: Platform) -> None:
    zone = ZoneInfo("America/New_York")
    events = daily(
        "events",
        lambda context: pa.table(
            {
                "ts": pa.array(
                    [datetime.fromisoformat(day).replace(tzinfo=zone) for day in context.partition_keys],
                    pa.timestamp("us", "UTC"),
                )
            }
        ),
        partitions_def=dg.DailyPartitionsDefinition("2017-04-01", timezone="America/New_York"),
    )
    result = materialize(platform, events, "2017-04-01", "2017-04-02")
    assert row_counts(result) == {"2017-04-01": 1, "2017-04-02": 1}
    materialize(platform, events, "2017-04-02")
    assert platform.rows("staging", "select count(*) from events") == [(2,)]


def test_a_table_without_partitions_is_replaced_whole(platform: Platform) -> None:
    sizes = iter([3, 5])
    whole = dg.asset(name="whole", metadata={})(lambda: rows_of("2017-04-01", next(sizes)))
    materialize(platform, whole)
    seen: dict[str, Any] = {}
    take = consumer("take", "whole", pd.DataFrame, seen, partitions_def=None, backfill_policy=None)
    result = materialize(platform, [whole, take])
    assert counts(platform, "whole") == {"2017-04-01": 5}
    assert len(seen["take"][1]) == 5
    [event] = [e for e in result.get_asset_materialization_events() if e.asset_key == dg.AssetKey("whole")]
    metadata = event.materialization.metadata
    assert metadata["dagster/row_count"].value == 5
    assert metadata["dagster/table_name"].value == "staging.public.whole"


def test_a_partitioned_asset_without_partition_expr_is_told_so(platform: Platform) -> None:
    asset = daily("events", lambda _: rows_of("2017-04-01", 1), metadata={"partition_expr": None})
    message, _ = failure(materialize(platform, asset, "2017-04-01", raise_on_error=False), "events")
    assert "events needs partition_expr in its metadata" in message


def test_what_is_no_frame_is_refused_by_its_type(platform: Platform) -> None:
    result = materialize(platform, daily("events", lambda _: 17), "2017-04-01", raise_on_error=False)
    assert "data frame that narwhals understands, not int" in failure(result, "events")[0]


def test_a_table_that_was_never_written_is_told_at_once(platform: Platform) -> None:
    seen: dict[str, Any] = {}
    with platform.engine() as engine:
        result = dg.materialize(
            [
                daily("events", lambda _: rows_of("2017-04-01", 1)),
                consumer("take", "events", None, seen, retry_policy=RETRY),
            ],
            resources={"io_manager": PostgresIOManager(platform.staging, engine)},
            selection=["take"],
            partition_key="2017-04-01",
            raise_on_error=False,
        )
    message, retries = failure(result, "take")
    assert "public.events does not exist in the database of USER_PIPELINE_STAGING_URL" in message
    assert "materialize the asset events first" in message
    assert retries == 0


# Names


ODD_NAMES = ['quo"te', "semi;colon -- x", "s p a c e", "select", "ünï😀", "back\\slash", "Upper", "per%cent", "$1", "?"]


def test_names_may_hold_anything(platform: Platform) -> None:
    table = pa.table(
        {
            "ts": pa.array([datetime(2017, 4, 1)], pa.timestamp("us")),
            **{name: [number] for number, name in enumerate(ODD_NAMES)},
        }
    )
    for name in ODD_NAMES:
        for _ in range(2):
            with platform.staging.transaction() as transaction:
                replace(transaction, "2017-04-01", table, Table('sch"ema; ü', name), expression="ts")
        assert platform.rows("staging", f'select count(*) from "sch""ema; ü".{quote(name)}') == [(1,)]


def test_a_partition_column_may_be_named_anything(platform: Platform) -> None:
    table = pa.table({name: [datetime(2017, 4, 1)] for name in ODD_NAMES})
    for name in ODD_NAMES:
        for _ in range(2):
            with platform.staging.transaction() as transaction:
                replace(transaction, "2017-04-01", table, expression=name)
    assert counts_of(platform, "events") == 1


def test_odd_columns_are_selected_by_name(platform: Platform) -> None:
    seen: dict[str, Any] = {}
    table = rows_of("2017-04-01", 2).append_column('a "b"; c', pa.array([5, 6]))
    events = daily("events", lambda _: table)
    materialize(
        platform,
        [
            events,
            consumer("one", "events", pa.Table, seen, metadata={"columns": ['a "b"; c']}),
            consumer("two", "events", pd.DataFrame, seen, metadata={"columns": ["text", "n"]}),
        ],
        "2017-04-01",
    )
    assert seen["one"][1] == [(5,), (6,)]
    assert seen["two"][1] == [("x", 0), ("x", 1)]


def test_the_schema_is_the_metadata_s_or_the_key_prefix_or_the_manager_s(platform: Platform) -> None:
    seen: dict[str, Any] = {}
    make = lambda _: rows_of("2017-04-01", 1)  # noqa: E731
    named = daily("named", make, metadata={"schema": "from metadata"}, key_prefix="ignored")
    prefixed = daily("prefixed", make, key_prefix=["team", "area"])
    plain = daily("plain", make)
    result = materialize(
        platform,
        [
            named,
            prefixed,
            plain,
            consumer("take", ["team", "area", "prefixed"], None, seen),
            consumer("take_named", ["ignored", "named"], None, seen),
        ],
        "2017-04-01",
    )
    assert {
        event.materialization.metadata["dagster/table_name"].value
        for event in result.get_asset_materialization_events()
        if "dagster/table_name" in event.materialization.metadata and "take" not in str(event.asset_key)
    } == {"staging.from metadata.named", "staging.team_area.prefixed", "staging.public.plain"}
    assert len(seen["take"][1]) == len(seen["take_named"][1]) == 1
    for name in ('"from metadata".named', "team_area.prefixed", "public.plain"):
        assert platform.rows("staging", f"select count(*) from {name}") == [(1,)]
    with platform.staging.transaction() as transaction:
        transaction.execute('drop schema "from metadata", team_area cascade')


# Frames


def test_every_kind_of_frame_is_taken(platform: Platform) -> None:
    table = rows_of("2017-04-01", 5, "ü'\"\\😀\n\t,")
    frames: dict[str, Callable[[], Any]] = {
        "pandas": table.to_pandas,
        "pandas_indexed": lambda: table.to_pandas()[lambda frame: frame.n >= 0].sample(frac=1, random_state=1),
        "polars": lambda: pl.DataFrame(table),
        "polars_lazy": lambda: pl.DataFrame(table).lazy(),
        "arrow": lambda: table,
        "duckdb": lambda: duckdb.connect().from_arrow(table),
        "narwhals_pandas": lambda: nw.from_native(table.to_pandas()),
        "narwhals_polars": lambda: nw.from_native(pl.DataFrame(table)),
        "narwhals_polars_lazy": lambda: nw.from_native(pl.DataFrame(table).lazy()),
        "narwhals_duckdb": lambda: nw.from_native(duckdb.connect().from_arrow(table)),
        "narwhals_arrow_lazy": lambda: nw.from_native(table).lazy(),
        "categories": lambda: pl.DataFrame(table).with_columns(pl.col("text").cast(pl.Categorical)),
        "unsigned": lambda: pl.DataFrame(table).with_columns(pl.col("n").cast(pl.UInt64)),
        "nanoseconds": lambda: pl.DataFrame(table).with_columns(pl.col("ts").cast(pl.Datetime("ns"))),
        "small": lambda: pl.DataFrame(table).with_columns(pl.col("n").cast(pl.Int8)),
    }
    assets = [daily(name, lambda _, make=make: make()) for name, make in frames.items()]  # type: ignore[misc]
    # Twice: what made the table also fits it.
    materialize(platform, assets, "2017-04-01")
    materialize(platform, assets, "2017-04-01")
    for name in frames:
        assert platform.rows("staging", f"select ts, n, text from {name} order by n") == [
            tuple(row.values()) for row in table.to_pylist()
        ], name


@pytest.mark.parametrize("make", [lambda table: table.to_pandas(), pl.DataFrame, lambda table: table])
def test_no_row_makes_a_table_too(platform: Platform, make: Callable[[pa.Table], Any]) -> None:
    materialize(platform, daily("events", lambda _: make(SCHEMA.empty_table())), "2017-04-01")
    materialize(platform, daily("events", lambda _: make(rows_of("2017-04-01", 2))), "2017-04-01")
    assert counts(platform) == {"2017-04-01": 2}


def test_a_consumer_gets_its_days_as_what_its_annotation_asks_for(platform: Platform) -> None:
    kinds: dict[str, Any] = {
        "narwhals_lazy": nw.LazyFrame,
        "narwhals_eager": nw.DataFrame,
        "none": None,
        "any": Any,
        "pandas": pd.DataFrame,
        "polars": pl.DataFrame,
        "polars_lazy": pl.LazyFrame,
        "arrow": pa.Table,
        "reader": pa.RecordBatchReader,
        "duckdb": duckdb.DuckDBPyRelation,
    }
    seen: dict[str, Any] = {}
    days = [f"2017-04-0{n}" for n in range(1, 5)]
    events = daily("events", lambda context: pa.concat_tables([rows_of(day, 2) for day in context.partition_keys]))
    materialize(platform, events, days[0], days[3])
    takers = [consumer(name, "events", kind, seen) for name, kind in kinds.items()]
    materialize(platform, [events, *takers], days[1], days[2])
    expected = _collect(pa.concat_tables([rows_of(day, 2) for day in days[1:3]]))
    for name, kind in kinds.items():
        given_kind, given_rows = seen[name]
        assert issubclass(given_kind, nw.LazyFrame if kind in (None, Any) else kind), name
        assert given_rows == expected, name


def test_an_annotation_that_cannot_be_served_is_answered_with_those_that_can(platform: Platform) -> None:
    seen: dict[str, Any] = {}
    events = daily("events", lambda _: rows_of("2017-04-01", 1))
    result = materialize(platform, [events, consumer("take", "events", dict, seen)], "2017-04-01", raise_on_error=False)
    message, _ = failure(result, "take")
    assert "cannot be loaded as builtins.dict; annotate it as one of duckdb.DuckDBPyRelation, narwhals" in message


# Values


texts = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8),
    st.sampled_from(["", "'", "\\N", "\\", "\\.", "\t", "\r\n", "😀", '""', "NULL", "%s", "$1"]),
)
moments = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1))
VALUES: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "small": (pa.int16(), st.integers(-(2**15), 2**15 - 1)),
    "middle": (pa.int32(), st.integers(-(2**31), 2**31 - 1)),
    "big": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "single": (pa.float32(), st.floats(width=32, allow_nan=False)),
    "double": (pa.float64(), st.floats(allow_nan=False)),
    "truth": (pa.bool_(), st.booleans()),
    "day": (pa.date32(), st.dates(date(1900, 1, 1), date(2200, 1, 1))),
    "ts": (pa.timestamp("us"), moments),
    "tz": (pa.timestamp("us", "UTC"), moments.map(lambda moment: moment.replace(tzinfo=UTC))),
    "money": (pa.decimal128(12, 2), st.decimals(-(10**9), 10**9, places=2)),
    "exact": (pa.decimal128(38, 10), st.decimals(-(10**25), 10**25, places=10, allow_nan=False)),
    "text": (pa.string(), texts),
    "bytes": (pa.binary(), st.binary(max_size=8)),
}
values = st.lists(
    st.fixed_dictionaries({name: st.one_of(st.none(), strategy) for name, (_, strategy) in VALUES.items()}), max_size=8
)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(values)
def test_values_of_every_type_come_back_as_they_were(platform: Platform, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows, schema=pa.schema([(name, kind) for name, (kind, _) in VALUES.items()]))
    with platform.staging.transaction() as transaction:
        assert replace_slice(transaction, Table("public", "kinds"), None, to_reader(table)).rows == len(rows)
    with platform.engine() as engine:
        manager = PostgresIOManager(platform.staging, engine)
        relation = manager._spool("select * from kinds", Table("public", "kinds"))
        back = relation.to_arrow_table()
    assert [field.type for field in back.schema] == [kind for kind, _ in VALUES.values()]
    assert _collect(back) == _collect(table)


def test_decimals_stay_numbers_on_the_way_to_a_consumer(platform: Platform) -> None:
    seen: dict[str, Any] = {}
    prices = pa.table({"price": pa.array([Decimal("0.10"), None, Decimal("-12345678.99")], pa.decimal128(10, 2))})
    whole = dg.asset(name="whole")(lambda: prices)
    take = consumer("take", "whole", pa.Table, seen, partitions_def=None, backfill_policy=None)
    materialize(platform, [whole, take])
    assert seen["take"] == (pa.Table, _collect(prices))


def test_integers_beyond_a_bigint_are_refused_rather_than_cut(platform: Platform) -> None:
    huge = pl.DataFrame({"n": [2**64 - 1]}, schema={"n": pl.UInt64})
    result = materialize(platform, dg.asset(name="whole")(lambda: huge), raise_on_error=False)
    assert "18446744073709551615" in failure(result, "whole")[0]


# Several at once


def replace(
    transaction: Transaction,
    first: str,
    table: pa.Table,
    into: Table = Table("public", "events"),  # noqa: B008 - frozen
    *,
    last: str | None = None,
    expression: str = "ts",
) -> int:
    start, end = datetime.fromisoformat(first), datetime.fromisoformat(last or first) + timedelta(days=1)
    part = Slice(expression, window=(start.replace(tzinfo=UTC), end.replace(tzinfo=UTC)))
    return replace_slice(transaction, into, part, to_reader(table)).rows


def counts_of(platform: Platform, table: str) -> int:
    [(count,)] = platform.rows("staging", f"select count(*) from {table}")
    return int(count)


def at_once(workers: int, work: Callable[[int], None]) -> None:
    """Each on a thread of its own, all starting together."""
    barrier = threading.Barrier(workers)

    def start(number: int) -> None:
        barrier.wait()
        work(number)

    with ThreadPoolExecutor(workers) as pool:
        for future in [pool.submit(start, number) for number in range(workers)]:
            future.result()


def own_connection(platform: Platform, work: Callable[[Transaction], Any]) -> None:
    database = Postgres(platform.staging.database)
    with database.transaction() as transaction:
        work(transaction)
    database.close()


def test_of_eight_writers_of_one_day_one_is_left(platform: Platform) -> None:
    def write(number: int) -> None:
        for _ in range(3):
            own_connection(
                platform,
                lambda transaction: replace(
                    transaction, "2017-04-01", rows_of("2017-04-01", 50 + number, f"w{number}")
                ),
            )

    at_once(8, write)
    [(text, count)] = platform.rows("staging", "select text, count(*) from events group by 1")
    assert count == 50 + int(text[1:])


def test_eight_writers_of_different_days_all_stay(platform: Platform) -> None:
    days = [f"2017-04-0{n}" for n in range(1, 9)]

    def write(number: int) -> None:
        for _ in range(3):
            own_connection(
                platform, lambda transaction: replace(transaction, days[number], rows_of(days[number], 50 + number))
            )

    at_once(8, write)
    assert counts(platform) == {day: 50 + number for number, day in enumerate(days)}


def test_readers_see_the_old_or_the_new_rows_and_never_wait(platform: Platform) -> None:
    with platform.staging.transaction() as transaction:
        replace(transaction, "2017-04-01", rows_of("2017-04-01", 10))
    with platform.staging.transaction() as transaction:
        replace(transaction, "2017-04-01", rows_of("2017-04-01", 5000))
        own_connection(platform, lambda other: other.execute("set lock_timeout = '1s'"))
        assert counts(platform) == {"2017-04-01": 10}
    seen: set[int] = set()
    done = threading.Event()

    def read() -> None:
        database = Postgres(platform.staging.database)
        while not done.is_set():
            with database.transaction() as transaction:
                seen.update(count for (count,) in transaction.fetch("select count(*) from events"))
        database.close()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for size in (10, 5000) * 5:
            with platform.staging.transaction() as transaction:
                replace(transaction, "2017-04-01", rows_of("2017-04-01", size))
    finally:
        done.set()
        reader.join()
    assert seen <= {10, 5000}


def test_a_writer_that_fails_lets_the_next_one_through(platform: Platform) -> None:
    with platform.staging.transaction() as transaction:
        replace(transaction, "2017-04-01", rows_of("2017-04-01", 10))

    def fail(transaction: Transaction) -> None:
        replace(transaction, "2017-04-01", rows_of("2017-04-01", 20))
        transaction.execute("select 1/0")

    with pytest.raises(StatementError):
        own_connection(platform, fail)
    with platform.staging.transaction() as transaction:
        replace(transaction, "2017-04-02", rows_of("2017-04-02", 3))
    assert counts(platform) == {"2017-04-01": 10, "2017-04-02": 3}


# What Dagster is told


def row_counts(result: dg.ExecuteInProcessResult, asset: str = "events") -> dict[str, int]:
    """The row count noted for each partition."""
    return {
        str(event.partition): int(event.materialization.metadata["dagster/partition_row_count"].value)  # type: ignore[arg-type]
        for event in result.get_asset_materialization_events()
        if event.asset_key == dg.AssetKey(asset)
    }


def test_each_day_s_materialization_says_how_many_rows_it_has_and_where(platform: Platform) -> None:
    sizes: Mapping[str, int] = {DAYS[0]: 3, DAYS[1]: 0, DAYS[2]: 2}
    events = daily(
        "events", lambda context: pa.concat_tables([rows_of(day, sizes[day]) for day in context.partition_keys])
    )
    result = materialize(platform, events, DAYS[0], DAYS[2])
    assert row_counts(result) == sizes
    assert {
        event.materialization.metadata["dagster/table_name"].value
        for event in result.get_asset_materialization_events()
    } == {"staging.public.events"}
    assert row_counts(materialize(platform, events, DAYS[2])) == {DAYS[2]: 2}
    assert row_counts(materialize(platform, events, DAYS[1])) == {DAYS[1]: 0}

"""Assets kept as Parquet in the lake, be it a directory or a bucket: a file a partition, whole or not at all."""

import gc
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import narwhals as nw
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from user_pipeline.engines.duckdb import Engine
from user_pipeline.engines.frames import to_reader
from user_pipeline.io_managers.lake import LakeIOManager
from user_pipeline.resources.storage import ObjectStorage
from user_pipeline.settings import Location, Settings
from user_pipeline_tests.s3 import Endpoint, s3_endpoint

DAILY = dg.DailyPartitionsDefinition("2017-04-01", timezone="UTC", fmt="%Y-%m-%d")
DAYS = ["2017-04-01", "2017-04-02", "2017-04-03"]


class Lake:
    """A lake, and ways to use it as assets do."""

    def __init__(self, settings: Settings, endpoint: Endpoint | None) -> None:
        self.settings = settings
        self._endpoint = endpoint

    def materialize(self, *assets: dg.AssetsDefinition, days: list[str], **options: Any) -> dg.ExecuteInProcessResult:
        with Engine(self.settings) as engine:
            return dg.materialize(
                assets,
                resources={"io_manager": LakeIOManager(storage=ObjectStorage(self.settings), engine=engine)},
                tags={
                    "dagster/asset_partition_range_start": days[0],
                    "dagster/asset_partition_range_end": days[-1],
                },
                **options,
            )

    def files(self) -> list[str]:
        if self._endpoint:
            return sorted(key.removeprefix("deep/lake/") for key in self._endpoint.keys("bucket"))
        root = Path(self.settings.lake.url)
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.fixture(params=["directory", "bucket"])
def lake(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lake]:
    settings = Settings.from_environment(
        {"USER_PIPELINE_LAKE_URL": str(tmp_path / "lake"), "USER_PIPELINE_SCRATCH_DIR": str(tmp_path / "scratch")}
    )
    if request.param == "directory":
        yield Lake(settings, None)
        return
    with s3_endpoint(monkeypatch, "bucket") as endpoint:
        bucket = Location("USER_PIPELINE_LAKE_URL", "s3://bucket/deep/lake")
        yield Lake(settings.model_copy(update={"lake": bucket}), endpoint)


def frame(day: str, count: int = 3) -> pa.Table:
    return pa.table({"day": [day] * count, "n": list(range(count)), "text": ["ü'\"\n😀"] * count})


def daily(name: str, make: Callable[[list[str]], Any], **options: Any) -> dg.AssetsDefinition:
    def asset(context: dg.AssetExecutionContext) -> Any:
        return make(list(context.partition_keys))

    made: dg.AssetsDefinition = dg.asset(
        name=name, partitions_def=DAILY, backfill_policy=dg.BackfillPolicy.single_run(), **options
    )(asset)
    return made


def taker(seen: dict[str, Any], annotation: Any = None, name: str = "take", **options: Any) -> dg.AssetsDefinition:
    """An asset that notes the rows it was given of ``events``."""
    metadata = options.pop("metadata", None)

    def take(events: Any) -> None:
        reader = events if isinstance(events, pa.RecordBatchReader) else to_reader(events)
        rows = reader.read_all().to_pylist()
        seen[name] = type(events), sorted((tuple(row.values()) for row in rows), key=repr)

    take.__annotations__ = {"events": annotation, "return": None} if annotation else {"return": None}
    made: dg.AssetsDefinition = dg.asset(
        name=name,
        ins={"events": dg.AssetIn(metadata=metadata)},
        partitions_def=DAILY,
        backfill_policy=dg.BackfillPolicy.single_run(),
        **options,
    )(take)
    return made


def rows(*days: str) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for day in days for row in frame(day).to_pylist()]


def by_day(days: list[str]) -> dict[str, pa.Table]:
    return {day: frame(day) for day in days}


def test_one_day_and_a_range_of_days_come_back_as_they_were(lake: Lake) -> None:
    seen: dict[str, Any] = {}
    single = daily("events", lambda days: frame(days[0]))
    lake.materialize(single, taker(seen), days=[DAYS[0]])
    assert seen["take"][1] == rows(DAYS[0])
    several = daily("events", by_day)
    result = lake.materialize(several, taker(seen), days=DAYS)
    assert seen["take"][1] == rows(*DAYS)
    assert lake.files() == [f"events/date={day}/events.parquet" for day in DAYS]
    noted = {
        event.partition: event.materialization.metadata
        for event in result.get_asset_materialization_events()
        if event.asset_key == dg.AssetKey("events")
    }
    assert {day: metadata["dagster/partition_row_count"].value for day, metadata in noted.items()} == dict.fromkeys(
        DAYS, 3
    )
    assert noted[DAYS[1]]["dagster/uri"].value == f"{lake.settings.lake.url}/events/date={DAYS[1]}/events.parquet"


def test_frames_of_every_kind_go_in_and_come_out_as_annotated(lake: Lake) -> None:
    given: dict[str, Callable[[], Any]] = {
        DAYS[0]: lambda: frame(DAYS[0]).to_pandas(),
        DAYS[1]: lambda: pl.DataFrame(frame(DAYS[1])).lazy(),
        DAYS[2]: lambda: nw.from_native(duckdb.connect().from_arrow(frame(DAYS[2]))),
    }
    kinds: dict[str, Any] = {
        "lazy": nw.LazyFrame,
        "pandas": pd.DataFrame,
        "polars": pl.LazyFrame,
        "arrow": pa.Table,
        "reader": pa.RecordBatchReader,
        "relation": duckdb.DuckDBPyRelation,
    }
    seen: dict[str, Any] = {}
    lake.materialize(
        daily("events", lambda days: {day: given[day]() for day in days}),
        *(taker(seen, kind, name) for name, kind in kinds.items()),
        taker(seen, None, "columns", metadata={"columns": ["n", "day"]}),
        days=DAYS,
    )
    assert seen.pop("columns")[1] == sorted((n, day) for day in DAYS for n in range(3))
    assert {name: kind for name, (kind, _) in seen.items()} == kinds
    assert all(found == rows(*DAYS) for _, found in seen.values())


def test_odd_columns_are_selected_by_name(lake: Lake) -> None:
    seen: dict[str, Any] = {}
    table = pa.table({'a "b"; c': [1], "select": [2], "d.e": [3], "n + 1": [4], "n": [5]})
    lake.materialize(
        daily("events", lambda _: table),
        taker(seen, metadata={"columns": ["n + 1", "d.e", 'a "b"; c', "select"]}),
        days=[DAYS[0]],
    )
    assert seen["take"][1] == [(4, 3, 1, 2)]


def test_a_write_that_fails_leaves_the_old_file_and_those_before_it(lake: Lake) -> None:
    def broken() -> Iterator[pa.RecordBatch]:
        yield from frame(DAYS[1]).to_batches()
        raise RuntimeError("the source went away")

    def half(_: list[str]) -> dict[str, Any]:
        reader = pa.RecordBatchReader.from_batches(frame(DAYS[1]).schema, broken())
        return {DAYS[0]: frame(DAYS[0], 9), DAYS[1]: duckdb.connect().from_arrow(reader), DAYS[2]: frame(DAYS[2], 9)}

    seen: dict[str, Any] = {}
    lake.materialize(daily("events", by_day), days=DAYS)
    assert not lake.materialize(daily("events", half), days=DAYS, raise_on_error=False).success
    lake.materialize(daily("events", by_day), taker(seen), days=DAYS, selection=["take"])
    assert [day for day, n, _ in seen["take"][1]] == [DAYS[0]] * 9 + [DAYS[1]] * 3 + [DAYS[2]] * 3
    assert not [file for file in lake.files() if not file.endswith("events.parquet")]


class OneAtATime(Mapping[str, pa.Table]):
    """Frames made when they are asked for; fails if an earlier one is still held by then."""

    def __init__(self, days: list[str]) -> None:
        self._days = days
        self._made: list[weakref.ref[pa.Table]] = []

    def __iter__(self) -> Iterator[str]:
        return iter(self._days)

    def __len__(self) -> int:
        return len(self._days)

    def __getitem__(self, day: str) -> pa.Table:
        gc.collect()
        assert sum(made() is not None for made in self._made) <= 1, "the frames of several partitions are held"
        made = frame(day)
        self._made.append(weakref.ref(made))
        return made


def test_the_frames_of_several_partitions_are_never_held_together(lake: Lake) -> None:
    days = [f"2017-04-{day:02}" for day in range(1, 9)]
    assert lake.materialize(daily("events", OneAtATime), days=days).success
    assert len(lake.files()) == 8


def test_a_partition_that_was_never_written_is_named_with_the_command_that_makes_it(lake: Lake) -> None:
    seen: dict[str, Any] = {}
    events = daily("events", by_day)
    lake.materialize(events, days=DAYS[:1])
    take = taker(seen, retry_policy=dg.RetryPolicy(max_retries=2, delay=0))
    result = lake.materialize(events, take, days=DAYS[:2], selection=["take"], raise_on_error=False)
    [event] = result.get_step_failure_events()
    failure = event.step_failure_data.user_failure_data
    assert failure
    assert "events has no partition 2017-04-02" in str(failure.description)
    assert "--select events --partition 2017-04-02" in str(failure.description)
    assert not [event for event in result.all_events if event.is_step_up_for_retry]
    assert seen == {}


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda days: {days[0]: frame(days[0])}, "gave the partitions"),
        (lambda days: by_day([*days, "2017-05-01"]), "gave the partitions"),
        (lambda days: frame(days[0]), "must give a mapping"),
        (lambda _: dict.fromkeys(DAYS, 17), "data frame that narwhals understands, not int"),
    ],
)
def test_what_does_not_fit_the_run_s_partitions_is_refused(
    lake: Lake, make: Callable[[list[str]], Any], problem: str
) -> None:
    result = lake.materialize(daily("events", make), days=DAYS, raise_on_error=False)
    [event] = result.get_step_failure_events()
    error = event.step_failure_data.error
    texts = ""
    while error is not None:
        texts += error.message
        error = error.cause
    assert problem in texts
    assert lake.files() == []


def test_assets_of_one_name_in_different_groups_of_keys_keep_apart(lake: Lake) -> None:
    one = daily("events", lambda days: frame(days[0], 1), key_prefix="one")
    two = daily("events", lambda days: frame(days[0], 2), key_prefix=["two", "deep"])
    lake.materialize(one, two, days=[DAYS[0]])
    assert lake.files() == [
        f"one/events/date={DAYS[0]}/events.parquet",
        f"two/deep/events/date={DAYS[0]}/events.parquet",
    ]

"""Assets kept as Parquet files of the lake, be it a directory or a bucket: registered all together or not at all."""

import re
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import narwhals as nw
import pyarrow as pa
import pytest

from user_pipeline.defs.common import file_of
from user_pipeline.defs.partitions import DAILY
from user_pipeline.engines.duckdb import Engine
from user_pipeline.io_managers.lake import LakeIOManager
from user_pipeline.io_managers.partitioned import PARTITIONED, File, Partitioned
from user_pipeline.lake.lake import Lake
from user_pipeline.resources.storage import ObjectStorage
from user_pipeline.setting_values import Location
from user_pipeline.settings import Settings
from user_pipeline.transforms import Frame
from user_pipeline_tests.io_managers.lakes import bucket_lake, stored
from user_pipeline_tests.platform import Platform

DAYS = ["2017-04-01", "2017-04-02", "2017-04-03"]
Make = Callable[[str], pa.Table]


class Raw:
    """A lake and its registry, and ways to use them as assets do."""

    def __init__(self, platform: Platform, settings: Settings) -> None:
        self.platform = platform
        self.settings = settings
        self.lake = Lake(ObjectStorage(settings), platform.databases)

    def materialize(
        self, *assets: dg.AssetsDefinition, first: str = DAYS[0], last: str | None = None, **options: Any
    ) -> dg.ExecuteInProcessResult:
        with Engine(self.settings) as engine:
            manager = LakeIOManager(lake=self.lake, engine=engine, folder="raw", database="staging")
            return dg.materialize(
                assets,
                resources={"io_manager": manager, "engine": engine},
                tags={"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last or first},
                **options,
            )

    def files(self) -> list[str]:
        """The Parquet files of the lake."""
        return [path for path in stored(self.settings.lake.url) if path.endswith(".parquet")]

    def registered(self) -> dict[str, list[str]]:
        """The files of each day by the registry."""
        found = self.lake.staging.partitions("events")
        return {day.isoformat(): [file.path for file in there] for day, there in found.items()}


@pytest.fixture(params=["directory", "bucket"])
def raw(request: pytest.FixtureRequest, platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Iterator[Raw]:
    if request.param == "directory":
        yield Raw(platform, platform.settings)
        return
    with bucket_lake(monkeypatch) as url:
        location = Location("USER_PIPELINE_LAKE_URL", url)
        yield Raw(platform, platform.settings.model_copy(update={"lake": location}))


def rows_of(day: str, count: int = 3) -> pa.Table:
    """A day's rows, numbered."""
    first = datetime.fromisoformat(day)
    return pa.table(
        {
            "ts": pa.array([first + timedelta(milliseconds=n) for n in range(count)], pa.timestamp("us")),
            "n": pa.array(range(count), pa.int64()),
            "text": pa.array(["ü'\"\n😀"] * count, pa.string()),
        }
    )


def events(make: Make = rows_of, days: Callable[[list[str]], list[str]] = list) -> dg.AssetsDefinition:
    """An asset of the rows made for each day."""

    @dg.asset(
        name="events",
        partitions_def=DAILY,
        backfill_policy=dg.BackfillPolicy.single_run(),
        dagster_type=PARTITIONED,
        required_resource_keys={"engine"},
        metadata={"partition_expr": "ts"},
        retry_policy=dg.RetryPolicy(max_retries=2, delay=0),
    )
    def made(context: dg.AssetExecutionContext) -> Partitioned[File]:
        engine = context.resources.engine
        wanted = days(list(context.partition_keys))
        return Partitioned({day: file_of(engine, nw.from_native(make(day)).lazy(), day) for day in wanted})

    asset: dg.AssetsDefinition = made
    return asset


def taker(seen: dict[str, list[tuple[Any, ...]]]) -> dg.AssetsDefinition:
    """An asset that notes the rows it was given of each day."""

    @dg.asset(
        partitions_def=DAILY,
        backfill_policy=dg.BackfillPolicy.single_run(),
        retry_policy=dg.RetryPolicy(max_retries=2, delay=0),
    )
    def take(events: dict[str, Frame]) -> None:
        for day, frame in events.items():
            assert isinstance(frame, nw.LazyFrame)
            table = frame.sort("n").collect("pyarrow").to_native()
            seen[day] = [tuple(row.values()) for row in table.to_pylist()]

    return take


def failure(result: dg.ExecuteInProcessResult) -> str:
    """What the only failed step says; it was not tried again."""
    [event] = result.get_step_failure_events()
    assert not [event for event in result.all_events if event.is_step_up_for_retry]
    shown = event.step_failure_data.user_failure_data
    assert shown
    return str(shown.description)


def tuples(table: pa.Table) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in table.to_pylist()]


def test_one_day_and_a_range_of_days_come_back_as_they_were(raw: Raw) -> None:
    seen: dict[str, Any] = {}
    raw.materialize(events(), taker(seen))
    assert seen == {DAYS[0]: tuples(rows_of(DAYS[0]))}
    sizes = dict(zip(DAYS, (3, 0, 120_000), strict=True))
    result = raw.materialize(events(lambda day: rows_of(day, sizes[day])), taker(seen), last=DAYS[2])
    assert {day: len(rows) for day, rows in seen.items()} == sizes
    assert seen == {day: tuples(rows_of(day, sizes[day])) for day in DAYS}
    noted = {
        str(event.partition): event.materialization.metadata
        for event in result.get_asset_materialization_events()
        if event.asset_key == dg.AssetKey("events")
    }
    assert {day: metadata["dagster/partition_row_count"].value for day, metadata in noted.items()} == sizes
    registered = raw.registered()
    for day in DAYS:
        [path] = registered[day]
        assert path.startswith(f"raw/events/date={day}/")
        assert noted[day]["dagster/uri"].value == f"{raw.settings.lake.url}/{path}"
        assert raw.lake.urls("events", date.fromisoformat(day), date.fromisoformat(day)) == [
            f"{raw.settings.lake.url}/{path}"
        ]


def test_a_day_made_again_gets_a_new_file_and_the_old_one_stays(raw: Raw) -> None:
    seen: dict[str, Any] = {}
    raw.materialize(events(), last=DAYS[1])
    before = raw.registered()
    contents = stored(raw.settings.lake.url)
    raw.materialize(events(lambda day: rows_of(day, 9)), first=DAYS[1])
    after = raw.registered()
    assert after[DAYS[0]] == before[DAYS[0]]
    assert after[DAYS[1]] != before[DAYS[1]]
    assert sorted(raw.files()) == sorted([*before[DAYS[0]], *before[DAYS[1]], *after[DAYS[1]]])
    for [path] in before.values():
        assert stored(raw.settings.lake.url)[path] == contents[path]
    raw.materialize(events(), taker(seen), last=DAYS[1], selection=["take"])
    assert {day: len(rows) for day, rows in seen.items()} == {DAYS[0]: 3, DAYS[1]: 9}


def test_a_day_that_cannot_be_made_leaves_all_days_as_they_were(raw: Raw) -> None:
    def half(day: str) -> pa.Table:
        if day == DAYS[1]:
            raise dg.Failure("the source went away", allow_retries=False)
        return rows_of(day, 9)

    raw.materialize(events(), last=DAYS[2])
    before, files = raw.registered(), raw.files()
    result = raw.materialize(events(half), last=DAYS[2], raise_on_error=False)
    assert failure(result) == "the source went away"
    assert raw.registered() == before
    assert raw.files() == files


def test_a_file_that_cannot_be_stored_leaves_all_days_as_they_were(raw: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    from user_pipeline.io_managers import base
    from user_pipeline.lake.transfer import put

    plain, stored_names = put, list[str]()

    def second_fails(storage: ObjectStorage, path: str, file: Path, rows: int) -> Any:
        if len(stored_names) == 1:
            raise PermissionError("no")
        stored_names.append(path)
        return plain(storage, path, file, rows)

    raw.materialize(events(), last=DAYS[2])
    before = raw.registered()
    with monkeypatch.context() as patched:
        patched.setattr(base, "put", second_fails)
        assert not raw.materialize(events(), last=DAYS[2], raise_on_error=False).success
    assert raw.registered() == before
    # What was stored before is a file that nothing knows of.
    assert set(raw.files()) == {path for [path] in before.values()} | set(stored_names)
    # The next run begins anew.
    assert raw.materialize(events(), last=DAYS[2]).success
    assert set(raw.registered()) == set(DAYS)


def test_a_partition_that_was_never_written_is_named_with_the_command_that_makes_it(raw: Raw) -> None:
    seen: dict[str, Any] = {}
    raw.materialize(events())
    result = raw.materialize(events(), taker(seen), last=DAYS[1], selection=["take"], raise_on_error=False)
    assert failure(result) == (
        "events has no partition 2017-04-02. Materialize it first: "
        "dagster asset materialize -m user_pipeline.definitions --select events --partition 2017-04-02"
    )
    assert seen == {}


@pytest.mark.parametrize("days", [lambda days: days[:1], lambda days: [*days, "2017-05-01"], lambda _: []])
def test_other_partitions_than_those_of_the_run_are_refused(raw: Raw, days: Callable[[list[str]], list[str]]) -> None:
    result = raw.materialize(events(days=days), last=DAYS[2], raise_on_error=False)
    assert re.fullmatch(r"events gave the partitions .*, not those of the run", failure(result))
    assert raw.files() == []


@pytest.mark.parametrize(
    "stray",
    [datetime(2017, 3, 31, 23, 59, 59, 999_999), datetime(2017, 4, 2), datetime(1969, 12, 31, 23), None],
)
def test_rows_of_another_day_or_of_none_are_refused(raw: Raw, stray: datetime | None) -> None:
    raw.materialize(events())
    before, files = raw.registered(), raw.files()
    own = [datetime(2017, 4, 1), datetime(2017, 4, 1, 23, 59, 59, 999_999)]
    table = pa.table({"ts": pa.array([*own, stray, stray], pa.timestamp("us")), "n": [1, 2, 3, 4], "text": ["x"] * 4})
    result = raw.materialize(events(lambda _: table), raise_on_error=False)
    assert failure(result).startswith("2 of the rows for 2017-04-01 have ts outside of that day; an asset gives only")
    assert raw.registered() == before
    assert raw.files() == files


def test_the_rows_of_a_file_are_counted_even_if_the_asset_does_not_say_how_many(raw: Raw) -> None:
    @dg.asset(
        name="events",
        partitions_def=DAILY,
        dagster_type=PARTITIONED,
        required_resource_keys={"engine"},
        metadata={"partition_expr": "ts"},
    )
    def silent(context: dg.AssetExecutionContext) -> Partitioned[File]:
        made = file_of(context.resources.engine, nw.from_native(rows_of(DAYS[0])).lazy(), DAYS[0])
        return Partitioned({DAYS[0]: File(made.path)})

    raw.materialize(silent)
    [[file]] = raw.lake.staging.partitions("events").values()
    assert file.rows == 3


def test_what_a_run_made_is_removed_once_it_is_stored(raw: Raw) -> None:
    left: list[Path] = []

    @dg.asset(deps=["events"], required_resource_keys={"engine"})
    def after(context: dg.AssetExecutionContext) -> None:
        left.extend(path for path in context.resources.engine.scratch.rglob("*") if path.is_file())

    raw.materialize(events(), after, last=DAYS[2])
    assert left == []

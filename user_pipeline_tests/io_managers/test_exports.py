"""Tables as CSV: what any reader of RFC 4180 gets back, one file for each partition."""

import csv
import io
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as cases
from hypothesis import strategies as st

from user_pipeline.engines.duckdb import Engine
from user_pipeline.io_managers.exports import CsvIOManager
from user_pipeline.lake.lake import Lake
from user_pipeline.resources.postgres import Databases
from user_pipeline.resources.storage import ObjectStorage
from user_pipeline.settings import Settings

DAILY = dg.DailyPartitionsDefinition("2017-04-01", timezone="UTC", fmt="%Y-%m-%d")
DAYS = ["2017-04-01", "2017-04-02", "2017-04-03"]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.from_environment(
        {"USER_PIPELINE_LAKE_URL": str(tmp_path / "lake"), "USER_PIPELINE_SCRATCH_DIR": str(tmp_path / "scratch")}
    )


def manager_of(settings: Settings, engine: Engine) -> CsvIOManager:
    """It keeps files in the lake, and needs no database for that."""
    return CsvIOManager(lake=Lake(ObjectStorage(settings), Databases(settings)), engine=engine)


def export(
    settings: Settings, make: Callable[[], Any], first: str = DAYS[0], last: str | None = None
) -> dict[str, Any]:
    """Export a table for some days; the metadata of the first one."""

    @dg.asset(partitions_def=DAILY, backfill_policy=dg.BackfillPolicy.single_run(), metadata={"table": "things"})
    def things_csv() -> Any:
        return make()

    with Engine(settings) as engine:
        result = dg.materialize(
            [things_csv],
            resources={"io_manager": manager_of(settings, engine)},
            tags={"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last or first},
        )
    metadata = result.get_asset_materialization_events()[0].materialization.metadata
    return {name: entry.value for name, entry in metadata.items()}


def file(settings: Settings, day: str = DAYS[0]) -> Path:
    return Path(settings.lake.url) / f"exports/things/date={day}/things.csv"


def read(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as opened:
        return list(csv.reader(opened, strict=True))


texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=10),
    st.sampled_from(
        ["", '"', '""', ",", "\n", "\r", "\r\n", "a\nb", "#", "# x", "\\", '\\"', "'", ";", "\t", "NULL", " "]
    ),
)


@cases(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.lists(st.tuples(texts, st.one_of(st.none(), texts)), max_size=6))
@example([("x", 'one"' * 3), ("y\n" * 5, "a,b"), ("", None)])
def test_any_text_comes_back_as_it_was(settings: Settings, rows: list[tuple[str, str | None]]) -> None:
    table = pa.table(
        {"a": pa.array([a for a, _ in rows], pa.string()), "b,": pa.array([b for _, b in rows], pa.string())}
    )
    with Engine(settings) as engine:
        manager = manager_of(settings, engine)
        assert manager._write(table, "things")[1] == len(rows)
        [written] = engine.scratch.glob("things-*/things.csv")
        content = written.read_bytes().decode()
    assert list(csv.reader(io.StringIO(content, newline=""), strict=True)) == [
        ["a", "b,"],
        *([a, b or ""] for a, b in rows),
    ]


def test_the_engine_keeps_order_for_the_export_alone(settings: Settings) -> None:
    with Engine(settings) as engine:
        manager_of(settings, engine)._write(pa.table({"a": [1]}), "things")
        [(kept,)] = engine.connect().execute("select current_setting('preserve_insertion_order')").fetchall()
    assert kept is False


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_what_looks_like_a_formula_is_exported_as_it_is(start: str, settings: Settings) -> None:
    text = f"{start}cmd|'/c calc'!A1"
    export(settings, lambda: pa.table({"text": [text]}))
    assert read(file(settings)) == [["text"], [text]]
    # No apostrophe, blank or tab put before it.
    assert file(settings).read_bytes().removeprefix(b"text\n").strip(b'"\n') == text.encode()


def test_an_empty_table_is_a_header(settings: Settings) -> None:
    metadata = export(settings, lambda: pa.table({"a": pa.array([], pa.int64()), "b": pa.array([], pa.string())}))
    assert file(settings).read_text() == "a,b\n"
    assert metadata["dagster/partition_row_count"] == 0


def test_nothing_known_is_empty_and_an_empty_text_is_quoted(settings: Settings) -> None:
    table = pa.table(
        {
            "text": ["", None],
            "number": [2**63 - 1, None],
            "ts": pa.array([datetime(2017, 4, 1, 0, 0, 0, 120), None], pa.timestamp("us")),
        }
    )
    export(settings, lambda: table)
    assert file(settings).read_text().splitlines() == [
        "text,number,ts",
        '"",9223372036854775807,2017-04-01 00:00:00.00012',
        ",,",
    ]


def test_the_order_of_many_rows_is_kept(settings: Settings) -> None:
    count = 300_000
    numbers = [n * 7919 % count for n in range(count)]
    ordered = duckdb.connect()
    given_frames: list[Any] = [
        pa.table({"n": numbers}),
        ordered.from_arrow(pa.table({"n": numbers})).order("n desc"),
    ]
    for frame, expected in zip(given_frames, (numbers, range(count)[::-1]), strict=True):
        metadata = export(settings, lambda frame=frame: frame)  # type: ignore[misc]
        assert metadata["dagster/partition_row_count"] == count
        assert file(settings).read_text().split() == ["n", *map(str, expected)]


def test_a_text_of_megabytes_is_written_and_counted(settings: Settings) -> None:
    long = 'x"\n' * 1_500_000
    metadata = export(settings, lambda: pa.table({"text": [long, "short"]}))
    csv.field_size_limit(10**8)
    assert read(file(settings)) == [["text"], [long], ["short"]]
    assert metadata["dagster/partition_row_count"] == 2


@pytest.mark.parametrize("make", [lambda: pd.DataFrame({"n": [1]}), lambda: pl.LazyFrame({"n": [1]})])
def test_frames_of_other_kinds_are_written_too(settings: Settings, make: Callable[[], Any]) -> None:
    export(settings, make)
    assert file(settings).read_text() == "n\n1\n"


def test_each_day_of_a_range_has_its_file_and_keeps_it(settings: Settings) -> None:
    metadata = export(settings, lambda: pa.table({"n": [1]}), DAYS[0], DAYS[2])
    assert [file(settings, day).read_text() for day in DAYS] == ["n\n1\n"] * 3
    assert metadata["dagster/uri"] == str(file(settings))
    assert metadata["size_bytes"] == 4
    export(settings, lambda: pa.table({"n": [2]}), DAYS[1])
    assert [file(settings, day).read_text() for day in DAYS] == ["n\n1\n", "n\n2\n", "n\n1\n"]
    assert [path for path in Path(settings.lake.url).rglob("*") if path.is_file() and path.name != "things.csv"] == []


def test_an_export_that_fails_leaves_the_old_file(settings: Settings) -> None:
    def batches() -> Any:
        yield from pa.table({"n": [2]}).to_batches()
        raise RuntimeError("the source went away")

    export(settings, lambda: pa.table({"n": [1]}))
    schema = pa.schema([("n", pa.int64())])
    with pytest.raises(Exception, match="the source went away"):
        export(settings, lambda: duckdb.connect().from_arrow(pa.RecordBatchReader.from_batches(schema, batches())))
    assert file(settings).read_text() == "n\n1\n"

"""The quality of recommendations, by hand, on each engine."""

from collections.abc import Callable
from typing import Any

import duckdb
import narwhals as nw
import polars as pl
import pyarrow as pa
import pytest

from user_pipeline.transforms import Frame
from user_pipeline.transforms.quality import hits, spread

Make = Callable[[pa.Table], Any]
# Relations of different connections do not join.
CONNECTION = duckdb.connect()
ENGINES: dict[str, Make] = {
    "duckdb": CONNECTION.from_arrow,
    "polars": pl.from_arrow,
    "pandas": lambda table: table.to_pandas(),
    "pyarrow": lambda table: table,
}
every_engine = pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES.keys())

RECOMMENDED = pa.schema(
    [
        ("user_id", pa.int64()),
        ("rank", pa.int32()),
        ("recommended_url", pa.string()),
        ("popular_url", pa.string()),
        ("is_fallback", pa.bool_()),
        ("candidates", pa.int64()),
    ]
)
VIEWS = pa.schema([("user_id", pa.int64()), ("url", pa.string())])
ROWS = [
    # The ids differ by less than a floating-point number can tell.
    (2**62 + 1, 1, "/a", "/x", False, 10),
    (2**62 + 1, 2, "/b", "/y", False, 10),
    (2**62 + 1, 3, "/c", "/a", True, 10),
    (2**62 + 2, 1, "/a", "/a", True, 10),
    (3, 1, "/d", "/e", False, 10),
    (4, 1, "/a", "/x", False, 10),
]
NEW = [
    *((2**62 + 1, url) for url in ("/a", "/c", "/q", "/r", "/s")),
    (2**62 + 2, "/x"),
    (2**62 + 2, "/y"),
    (3, "/e"),
    (99, "/a"),
]


def frame(make: Make, rows: list[tuple[Any, ...]], schema: pa.Schema) -> Frame:
    table = pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema=schema)
    made: Frame = nw.from_native(make(table)).lazy()
    return made


def only_row(made: Frame) -> dict[str, Any]:
    [row] = made.collect("pyarrow").to_native().to_pylist()
    return dict(row)


@every_engine
def test_hits_of_users_with_new_views(make: Make) -> None:
    # Of three users with new views (99 was recommended nothing, 4 viewed nothing new) one viewed two of the
    # recommended pages, of at most three; by popularity that user and user 3 would have viewed one.
    assert only_row(hits(frame(make, ROWS, RECOMMENDED), frame(make, NEW, VIEWS))) == {
        "users": 3,
        "hit_rate": pytest.approx(1 / 3),
        "recall_at_3": pytest.approx((2 / 3 + 0 + 0) / 3),
        "popularity_hit_rate": pytest.approx(2 / 3),
        "popularity_recall_at_3": pytest.approx((1 / 3 + 0 + 1) / 3),
    }


@every_engine
def test_coverage_and_fallback(make: Make) -> None:
    # a, b, c and d of ten pages; one of four users has a first page by popularity.
    assert only_row(spread(frame(make, ROWS, RECOMMENDED))) == {"coverage": 0.4, "fallback_share": 0.25}


@pytest.mark.parametrize("rows", [ROWS, []])
def test_nobody_with_new_views_has_no_rates(rows: list[tuple[Any, ...]]) -> None:
    measured = only_row(hits(frame(ENGINES["duckdb"], rows, RECOMMENDED), frame(ENGINES["duckdb"], [], VIEWS)))
    assert measured.pop("users") == 0
    assert set(measured.values()) == {None}


def test_no_recommendations_have_no_coverage() -> None:
    assert only_row(spread(frame(ENGINES["duckdb"], [], RECOMMENDED))) == {"coverage": None, "fallback_share": None}

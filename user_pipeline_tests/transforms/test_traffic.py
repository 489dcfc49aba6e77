"""What the traffic report counts, by hand, on each engine."""

from collections.abc import Callable
from datetime import date, datetime
from typing import Any

import duckdb
import narwhals as nw
import polars as pl
import pyarrow as pa
import pytest

from user_pipeline.transforms import Frame
from user_pipeline.transforms.traffic import (
    arrivals,
    came_back,
    count_rescued,
    daily_traffic,
    pages_of_day,
    top,
    with_day,
)

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

DAILY = pa.schema(
    [("user_id", pa.int64()), ("url", pa.string()), ("count", pa.int64()), ("last_viewed", pa.timestamp("us"))]
)
BIG = 2**62 + 1
ROWS = [
    (1, "/a", 3, datetime(2017, 4, 1, 23, 59, 59, 999999)),
    (2, "/a", 1, datetime(2017, 4, 1)),
    (2, "/b", 2, datetime(2017, 4, 1, 12)),
    (1, "/a", 1, datetime(2017, 4, 2, 9)),
    (BIG, "/a", 4, datetime(2017, 4, 2, 10)),
    (BIG, "/c", 1, datetime(2017, 4, 3, 0, 0, 1)),
    (1, "/b", 9, datetime(2017, 4, 3, 8)),
    (4, "/b", 1, datetime(2017, 4, 3, 8)),
]
FIRST, SECOND, THIRD = (datetime(2017, 4, number) for number in (1, 2, 3))


def frame(make: Make, rows: list[tuple[Any, ...]], schema: pa.Schema) -> Frame:
    table = pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema=schema)
    made: Frame = nw.from_native(make(table)).lazy()
    return made


def views(make: Make, rows: list[tuple[Any, ...]] = ROWS) -> Frame:
    return with_day(frame(make, rows, DAILY))


def rows_of(made: Frame) -> list[tuple[Any, ...]]:
    # A pandas frame comes with its index.
    columns = made.collect_schema().names()
    return [tuple(row[name] for name in columns) for row in made.collect("pyarrow").to_native().to_pylist()]


@every_engine
def test_a_day_has_its_views_and_each_user_and_page_once(make: Make) -> None:
    assert rows_of(daily_traffic(views(make))) == [(FIRST, 6, 2, 2), (SECOND, 5, 2, 1), (THIRD, 11, 3, 2)]
    assert rows_of(daily_traffic(views(make, []))) == []


@every_engine
def test_new_is_who_has_no_view_before_these_days(make: Make) -> None:
    totals = pa.schema([("user_id", pa.int64()), ("total", pa.int64())])
    # User 1 has a view more than these days have: an earlier one. Nothing is known here of user 5.
    users = frame(make, [(1, 14), (2, 3), (BIG, 5), (4, 1), (5, 7)], totals)
    assert rows_of(arrivals(views(make), users, "user_id")) == [(FIRST, 1), (SECOND, 1), (THIRD, 1)]
    pages = frame(make, [("/a", 9), ("/b", 13), ("/c", 1)], pa.schema([("url", pa.string()), ("total", pa.int64())]))
    assert rows_of(arrivals(views(make), pages, "url")) == [(FIRST, 1), (THIRD, 1)]


@every_engine
def test_who_came_back_is_counted_among_those_who_were_there_before(make: Make) -> None:
    assert rows_of(came_back(views(make), date(2017, 4, 3), date(2017, 4, 2))) == [(2, 2)]
    assert rows_of(came_back(views(make), date(2017, 4, 3), date(2017, 4, 1))) == [(3, 2)]
    assert rows_of(came_back(views(make), date(2017, 4, 1), date(2017, 3, 25))) == [(0, 0)]


@every_engine
def test_pages_are_compared_with_what_is_usual_for_them(make: Make) -> None:
    pages = pages_of_day(views(make), date(2017, 4, 3), 2, 1)
    assert rows_of(top(pages, "views", 5)) == [
        ("/b", 10, 2, 1.0, pytest.approx(9 / 2**0.5)),
        ("/c", 1, 1, 0.0, 1.0),
    ]
    # A page of one user alone is not named.
    assert [url for url, *_ in rows_of(pages_of_day(views(make), date(2017, 4, 3), 2, 2))] == ["/b"]


@every_engine
def test_without_days_before_nothing_rises_and_ties_are_in_the_order_of_urls(make: Make) -> None:
    rows = [(1, url, 2, datetime(2017, 4, 1, 8)) for url in ("/z", "/a", "/m")]
    pages = pages_of_day(views(make, rows), date(2017, 4, 1), 0, 1)
    assert rows_of(top(pages, "rise", 2)) == [("/a", 2, 1, 0.0, 0.0), ("/m", 2, 1, 0.0, 0.0)]


@every_engine
def test_rows_with_further_fields_are_counted(make: Make) -> None:
    rows = [("{}",), (None,), ('{"a": 1}',)]
    assert rows_of(count_rescued(frame(make, rows, pa.schema([("rescued", pa.string())])))) == [(2,)]

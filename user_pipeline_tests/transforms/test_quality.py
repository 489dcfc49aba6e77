"""The quality of recommendations, by hand, on each engine."""

from collections.abc import Callable
from math import log2
from typing import Any

import duckdb
import narwhals as nw
import polars as pl
import pyarrow as pa
import pytest

from user_pipeline.transforms import Frame
from user_pipeline.transforms.quality import hits, spread, with_intervals

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
        ("trending_url", pa.string()),
        ("is_fallback", pa.bool_()),
        ("viewers", pa.int64()),
        ("active", pa.int64()),
        ("candidates", pa.int64()),
    ]
)
VIEWS = pa.schema([("user_id", pa.int64()), ("url", pa.string())])
ROWS = [
    # The ids differ by less than a floating-point number can tell.
    (2**62 + 1, 1, "/a", "/x", "/q", False, 4, 8, 10),
    (2**62 + 1, 2, "/b", "/y", "/y", False, 2, 8, 10),
    (2**62 + 1, 3, "/c", "/a", "/z", True, 2, 8, 10),
    (2**62 + 2, 1, "/a", "/a", "/u", True, 4, 8, 10),
    (3, 1, "/d", "/e", "/u", False, 1, 8, 10),
    (4, 1, "/a", "/x", "/u", False, 4, 8, 10),
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
    # recommended pages, at ranks 1 and 3, of at most three; by popularity that user, at rank 3, and user 3 would have
    # viewed one; by the trend that user alone, at rank 1.
    ideal = 1 + 1 / log2(3) + 1 / 2
    assert only_row(hits(frame(make, ROWS, RECOMMENDED), frame(make, NEW, VIEWS))) == {
        "users": 3,
        "hit_rate": pytest.approx(1 / 3),
        "recall_at_3": pytest.approx((2 / 3 + 0 + 0) / 3),
        "ndcg_at_3": pytest.approx((1 + 1 / 2) / ideal / 3),
        "popularity_hit_rate": pytest.approx(2 / 3),
        "popularity_recall_at_3": pytest.approx((1 / 3 + 0 + 1) / 3),
        "popularity_ndcg_at_3": pytest.approx((1 / 2 / ideal + 1) / 3),
        "wins_over_popularity": 0,
        "losses_to_popularity": 1,
        "trend_hit_rate": pytest.approx(1 / 3),
        "trend_recall_at_3": pytest.approx((1 / 3) / 3),
        "trend_ndcg_at_3": pytest.approx(1 / ideal / 3),
        "wins_over_trend": 0,
        "losses_to_trend": 0,
    }


@every_engine
def test_what_recommendations_are_made_of(make: Make) -> None:
    # a, b, c and d of ten pages, in six recommendations; one of four users has a first page by popularity.
    assert only_row(spread(frame(make, ROWS, RECOMMENDED))) == {
        "coverage": 0.4,
        "distinct_share": pytest.approx(4 / 6),
        "mean_popularity": pytest.approx(17 / 6 / 8),
        "fallback_share": 0.25,
    }


@pytest.mark.parametrize("rows", [ROWS, []])
def test_nobody_with_new_views_has_no_rates(rows: list[tuple[Any, ...]]) -> None:
    measured = only_row(hits(frame(ENGINES["duckdb"], rows, RECOMMENDED), frame(ENGINES["duckdb"], [], VIEWS)))
    assert measured.pop("users") == 0
    assert not any(measured.values())
    assert {measured[name] for name in ("hit_rate", "recall_at_3", "ndcg_at_3", "trend_hit_rate")} == {None}
    assert with_intervals({**measured, "users": 0})["gain_high"] is None


def test_no_recommendations_have_no_coverage() -> None:
    assert set(only_row(spread(frame(ENGINES["duckdb"], [], RECOMMENDED))).values()) == {None}


def counted(users: int, both: int, wins: int, losses: int) -> dict[str, float | None]:
    """Of so many users, how many had a hit of both, of ours alone, of the popular pages alone."""
    return with_intervals(
        {
            "users": users,
            "hit_rate": (both + wins) / users,
            "popularity_hit_rate": (both + losses) / users,
            "trend_hit_rate": 0.0,
            "wins_over_popularity": wins,
            "losses_to_popularity": losses,
            "wins_over_trend": both + wins,
            "losses_to_trend": 0,
        }
    )


def test_what_chance_leaves_open() -> None:
    measured = counted(100, 5, 5, 10)
    # By the formulas of the two papers, worked out with a calculator.
    expected = {
        "hit_rate_low": 0.0552,
        "hit_rate_high": 0.1744,
        "gain": -0.05,
        "gain_low": -0.1277,
        "gain_high": 0.0296,
    }
    assert {name: measured[name] for name in expected} == pytest.approx(expected, abs=1e-4)
    assert counted(1000, 50, 50, 100)["gain_high"] < 0  # type: ignore[operator]


@pytest.mark.parametrize("users", [1, 2, 3])
def test_of_few_users_nothing_is_certain(users: int) -> None:
    for hits_of in (0, users):
        measured = counted(users, 0, hits_of, users - hits_of)
        low, high = measured["hit_rate_low"], measured["hit_rate_high"]
        assert low is not None
        assert high is not None
        assert 0 <= low < high <= 1
        assert high - low > 0.4
        gain_low, gain_high = measured["gain_low"], measured["gain_high"]
        assert gain_low is not None
        assert gain_high is not None
        assert gain_low < gain_high
    assert counted(1, 0, 0, 1)["gain_high"] > 0  # type: ignore[operator]


def test_the_better_of_the_baselines_is_what_counts() -> None:
    base = counted(100, 0, 10, 5)
    trend = {**base, "trend_hit_rate": 0.2, "wins_over_trend": 2, "losses_to_trend": 12}
    measured = with_intervals(trend)
    assert base["gain"] == pytest.approx(0.05)
    assert measured["gain"] == pytest.approx(-0.1)
    assert measured["gain_high"] < 0  # type: ignore[operator]

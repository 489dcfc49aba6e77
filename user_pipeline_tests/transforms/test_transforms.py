"""Every transform on every engine: the same rows in, the answer of a few lines of plain Python out."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

import duckdb
import narwhals as nw
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from user_pipeline.transforms import Frame, cleaned, marts

VIEWS = pa.schema(
    [("ts", pa.timestamp("us")), ("url", pa.string()), ("environment", pa.string()), ("user_id", pa.int64())]
)
UPDATES = pa.schema(
    [
        ("updated_at", pa.timestamp("us")),
        ("user_id", pa.int64()),
        ("email", pa.string()),
        ("name", pa.string()),
        ("environment", pa.string()),
    ]
)
DAILY = pa.schema(
    [("user_id", pa.int64()), ("url", pa.string()), ("count", pa.int64()), ("last_viewed", pa.timestamp("us"))]
)
WHERE_FROM = [("source_object", pa.string()), ("source_line", pa.int64())]

Row = dict[str, Any]


ENGINES: dict[str, Callable[[pa.Table], Any]] = {
    # Of one connection: frames of several cannot be joined.
    "duckdb": lambda table: duckdb.default_connection().from_arrow(table),
    "polars": lambda table: pl.DataFrame(table).lazy(),
    "pandas": lambda table: table.to_pandas(),
    "pyarrow": lambda table: table,
}

# Few values, so that rows tie; letters whose order differs between code points and most collations.
moments = st.builds(
    lambda day, micros: datetime(2017, 4, 1) + timedelta(days=day, microseconds=micros),
    st.integers(0, 2),
    st.sampled_from([0, 1, 999_999, 86_399_999_999, 43_200_000_000]),
)
user_ids = st.sampled_from([0, 1, 2, 2**53 + 1, 2**63 - 1])
environments = st.sampled_from(["production", "production", "Production", "production ", "staging", ""])
texts = st.sampled_from(["a", "B", "b", "Z", "é", "e\u0301", "ß", "ﬀ", "😀", "\uffff", "", "_", "a b", "'\"\\"])
views = st.lists(
    st.fixed_dictionaries({"ts": moments, "url": texts, "environment": environments, "user_id": user_ids}), max_size=12
)
updates = st.lists(
    st.fixed_dictionaries(
        {
            "updated_at": moments,
            "user_id": user_ids,
            "email": texts,
            "name": texts,
            "environment": environments,
        }
    ),
    max_size=12,
)
on_every_engine = pytest.mark.parametrize("engine", list(ENGINES))
cases = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def on(engine: str, schema: pa.Schema, rows: Iterable[Row], transform: Callable[[Frame], Frame]) -> Counter[Any]:
    """A transform's answer on an engine, as a bag of rows; what it was given is as it was before."""
    given_rows = native(engine, schema, rows)
    before = _bag(given_rows)
    result = transform(given_rows)
    assert isinstance(result, nw.LazyFrame)
    answer = _bag(result)
    assert _bag(given_rows) == before
    return answer


def native(engine: str, schema: pa.Schema, rows: Iterable[Row]) -> Frame:
    """Rows as a lazy frame of an engine."""
    frame: Frame = nw.from_native(ENGINES[engine](pa.Table.from_pylist(list(rows), schema=schema))).lazy()
    return frame


def _bag(frame: Frame) -> Counter[Any]:
    # pandas gives its index along.
    rows = frame.collect("pyarrow").select(frame.collect_schema().names()).to_native().to_pylist()
    return bag(rows)


def bag(rows: Iterable[Row]) -> Counter[Any]:
    return Counter(tuple(row.items()) for row in rows)


def midnight(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)


def distinct_production(rows: Iterable[Row], columns: Iterable[str]) -> Counter[Any]:
    kept = {tuple((name, row[name]) for name in columns) for row in rows if row["environment"] == "production"}
    return Counter(kept)


def delivered(rows: list[Row]) -> list[Row]:
    """Rows as the raw tables hold them: with where they came from."""
    return [row | {"source_object": "x", "source_line": line} for line, row in enumerate(rows, 1)]


@on_every_engine
@cases
@given(views)
@example([])
def test_page_views_are_the_distinct_production_rows(engine: str, rows: list[Row]) -> None:
    answer = on(engine, pa.schema([*VIEWS, *WHERE_FROM]), delivered(rows), cleaned.clean_page_views)
    assert answer == distinct_production(rows, VIEWS.names)


@on_every_engine
@cases
@given(updates)
@example([])
def test_user_updates_are_the_distinct_production_rows(engine: str, rows: list[Row]) -> None:
    answer = on(engine, pa.schema([*UPDATES, *WHERE_FROM]), delivered(rows), cleaned.clean_user_updates)
    assert answer == distinct_production(rows, UPDATES.names)


@on_every_engine
@cases
@given(views)
@example([])
def test_delivered_rows_are_counted_and_those_of_production(engine: str, rows: list[Row]) -> None:
    production = sum(row["environment"] == "production" for row in rows)
    [answer] = on(engine, VIEWS, rows, cleaned.count_environments)
    assert dict(answer) | {"production_rows": dict(answer)["production_rows"] or 0} == {
        "raw_rows": len(rows),
        "production_rows": production,
    }


@on_every_engine
@cases
@given(updates)
@example([])
@example(
    [
        {"updated_at": datetime(2017, 4, 1), "user_id": 1, "email": email, "name": name, "environment": "production"}
        for email, name in [("b@x.org", "A"), ("B@x.org", "Z"), ("é@x.org", "a"), ("é@x.org", "B"), ("z@x.org", "😀")]
    ]
)
def test_the_latest_update_of_a_user_does_not_depend_on_collation_or_order(engine: str, rows: list[Row]) -> None:
    # Code points and UTF-8 bytes sort alike.
    latest: dict[int, tuple[datetime, bytes, bytes]] = {}
    for row in rows:
        key = row["user_id"]
        rank = row["updated_at"], row["email"].encode(), row["name"].encode()
        latest[key] = max(rank, latest.get(key, rank))
    expected = [
        {"user_id": user_id, "email": email.decode(), "name": name.decode(), "updated_at": updated_at}
        for user_id, (updated_at, email, name) in latest.items()
    ]
    assert on(engine, UPDATES, rows, marts.latest_updates) == bag(expected)
    assert on(engine, UPDATES, rows[::-1], marts.latest_updates) == bag(expected)


@on_every_engine
@cases
@given(views)
@example([])
def test_page_views_are_counted_by_user_and_page(engine: str, rows: list[Row]) -> None:
    assert on(engine, VIEWS, rows, marts.daily_page_views) == bag(aggregate(rows))


def aggregate(rows: Iterable[Row]) -> list[Row]:
    """The daily aggregate of some views, as :func:`marts.daily_page_views` gives it."""
    pairs: dict[tuple[int, str], list[datetime]] = {}
    for row in rows:
        pairs.setdefault((row["user_id"], row["url"]), []).append(row["ts"])
    return [
        {"user_id": user_id, "url": url, "count": len(ts), "last_viewed": max(ts)}
        for (user_id, url), ts in pairs.items()
    ]


def by_day(rows: Iterable[Row]) -> list[Row]:
    """The daily aggregates of views of several days, one after the other."""
    days: dict[datetime, list[Row]] = {}
    for row in rows:
        days.setdefault(midnight(row["ts"]), []).append(row)
    return [pair for day in days.values() for pair in aggregate(day)]


@on_every_engine
@cases
@given(views)
@example([])
def test_daily_aggregates_add_up_to_those_of_all_days(engine: str, rows: list[Row]) -> None:
    total = aggregate(rows)
    assert on(engine, DAILY, by_day(rows), marts.add_up_page_views) == bag(total)
    last = [{name: pair[name] for name in ("user_id", "url", "last_viewed")} for pair in total]
    assert on(engine, DAILY, by_day(rows), marts.last_views) == bag(last)


@on_every_engine
@cases
@given(views, views)
@example([], [])
def test_what_changes_is_what_is_between_the_aggregates_of_before_and_now(
    engine: str, old: list[Row], new: list[Row]
) -> None:
    before = {(pair["user_id"], pair["url"]): pair for pair in aggregate(old)}
    now = {(pair["user_id"], pair["url"]): pair for pair in aggregate(new)}
    nothing = {"count": 0, "last_viewed": None}
    expected = [
        {
            "user_id": key[0],
            "url": key[1],
            "count": now.get(key, nothing)["count"] - before.get(key, nothing)["count"],
            "last_viewed": now.get(key, nothing)["last_viewed"],
            "old_last_viewed": before.get(key, nothing)["last_viewed"],
        }
        for key in before.keys() | now.keys()
    ]
    changes = [row for row in expected if row["count"] or row["last_viewed"] != row["old_last_viewed"]]
    both = [native(engine, DAILY, by_day(rows)) for rows in (new, old)]
    assert _bag(marts.changed_page_views(*both)) == bag(changes)


@on_every_engine
@cases
@given(updates, updates)
@example([], [])
def test_users_without_an_update_any_more_are_named_once(engine: str, old: list[Row], new: list[Row]) -> None:
    expected = {row["user_id"] for row in old} - {row["user_id"] for row in new}
    both = [native(engine, UPDATES, rows) for rows in (old, new)]
    assert _bag(marts.users_without_update(*both)) == bag({"user_id": user} for user in expected)


@on_every_engine
@cases
@given(views, updates)
@example([], [])
def test_each_pair_has_the_e_mail_of_its_user_or_none(engine: str, rows: list[Row], known: list[Row]) -> None:
    users = {row["user_id"]: row for row in known}
    expected = [
        {
            "user_id": pair["user_id"],
            "email": users.get(pair["user_id"], {}).get("email"),
            **{name: pair[name] for name in ("url", "count", "last_viewed")},
        }
        for pair in aggregate(rows)
    ]
    pairs, people = native(engine, DAILY, aggregate(rows)), native(engine, UPDATES, users.values())
    assert _bag(marts.with_emails(pairs, people)) == bag(expected)


@on_every_engine
@pytest.mark.parametrize(
    ("transform", "schema", "types"),
    [
        (marts.daily_page_views, VIEWS, [nw.Int64, nw.String, nw.Int64, nw.Datetime]),
        (marts.latest_updates, UPDATES, [nw.Int64, nw.String, nw.String, nw.Datetime]),
        (marts.add_up_page_views, DAILY, [nw.Int64, nw.String, nw.Int64, nw.Datetime]),
        (cleaned.count_environments, VIEWS, [nw.Int64, nw.Int64]),
        (cleaned.clean_page_views, VIEWS, [nw.Datetime, nw.String, nw.String, nw.Int64]),
        (cleaned.clean_user_updates, UPDATES, [nw.Datetime, nw.Int64, nw.String, nw.String, nw.String]),
    ],
)
def test_types_are_the_tables_types_whether_there_are_rows_or_none(
    engine: str, transform: Callable[[Frame], Frame], schema: pa.Schema, types: list[Any]
) -> None:
    row: Row = {field.name: datetime(2017, 4, 1) if pa.types.is_timestamp(field.type) else None for field in schema}
    row |= {"environment": "production", "user_id": 2**63 - 1} | {
        name: "x" for name in ("url", "email", "name") if name in schema.names
    }
    for rows in ([], [row]):
        given_types = transform(native(engine, schema, rows)).collect_schema().dtypes()
        assert [type(kind) for kind in given_types] == types


def test_transforms_import_neither_dagster_nor_an_engine() -> None:
    code = (
        "import sys, user_pipeline.transforms.cleaned, user_pipeline.transforms.marts, user_pipeline.email_address;"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    ).stdout.split()
    assert not {"dagster", "duckdb", "polars", "pandas", "pyarrow", "pyspark", "obstore"}.intersection(loaded)

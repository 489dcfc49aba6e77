from datetime import UTC, datetime

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings

from user_pipeline.fake_users.clean import Removed, clean
from user_pipeline_tests.fake_users.tables import raw, raw_tables

NOW = datetime(2017, 4, 3, 4, 5, 6, 999_999, tzinfo=UTC)
USERS = raw(
    [
        ("Ann", "Lee", "ann@example.com", "Bern", 1),
        ("Bob", "", "bob@example.com", "Bern", 2),
        ("Cid", "\u00a0 \t\u2003", "cid@example.com", "Bern", 3),
        ("Dee", "Doe", "", "Bern", 4),
        ("Eva", "Eck", " \n", "Bern", 5),
        ("Fay", "Fox", "fay@", "Bern", 6),
        ("Gus", "Gay", "gus@example.com\n", "Bern", 7),
        ("Hal", " ", "", "Bern", 8),
        ("Ida", "", "ida", "Bern", 9),
        ("Joe", "NA", "joe@example.com", "Bern", 10),
    ]
)


def test_users_without_last_name_or_well_formed_email_are_removed() -> None:
    kept, removed = clean(USERS, NOW)
    assert kept["first_name"].to_pylist() == ["Ann", "Joe"]
    assert kept["processed_at"].to_pylist() == ["2017-04-03 04:05:06"] * 2
    assert removed == Removed(missing_last_name=4, missing_email=3, invalid_email=3, both=2)
    assert removed.total == 8


def test_other_frames_are_cleaned_the_same() -> None:
    kept, removed = clean(pl.DataFrame(USERS), NOW)
    assert kept["first_name"].to_list() == ["Ann", "Joe"]
    assert removed == clean(USERS, NOW)[1]


@pytest.mark.parametrize("rows", [[], [("Ann", "", "", "Bern", 1)]])
def test_no_user_at_all_may_be_left(rows: list[tuple[str, str, str, str, int]]) -> None:
    kept, removed = clean(raw(rows), NOW)
    assert kept.num_rows == 0
    assert kept.column_names[-1] == "processed_at"
    assert removed.total == len(rows)


@given(users=raw_tables)
@settings(deadline=None)
def test_what_is_kept_is_unchanged_and_every_user_is_accounted_for(users: pa.Table) -> None:
    kept, removed = clean(users, NOW)
    rows = [row for row in users.to_pylist() if row["id"] in kept["id"].to_pylist()]
    assert kept.drop_columns("processed_at").to_pylist() == rows
    assert kept.num_rows + removed.total == users.num_rows

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
from hypothesis import HealthCheck, given, settings

from user_pipeline.fake_users import database
from user_pipeline.fake_users.columns import CLEANED
from user_pipeline_tests.fake_users.tables import cleaned, cleaned_tables


def query(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


@given(users=cleaned_tables)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_goes_into_the_database_comes_back_unchanged(users: pa.Table, tmp_path: Path) -> None:
    path = tmp_path / "users.db"
    path.unlink(missing_ok=True)
    database.write(users, path, name="users", columns=CLEANED)
    expected = [
        tuple(value if isinstance(value, int | str) else float(value) for value in row.values())
        for row in users.to_pylist()
    ]
    assert query(path, "SELECT * FROM users ORDER BY id") == expected


def test_columns_are_typed_and_id_is_the_primary_key(tmp_path: Path) -> None:
    path = tmp_path / "users.db"
    database.write(cleaned([("Ann", "Lee", "a@b.c", "Bern", 1)]), path, name="users", columns=CLEANED)
    columns = query(path, "SELECT name, type, pk FROM pragma_table_info('users')")
    assert columns == [
        ("id", "INTEGER", 1),
        ("first_name", "TEXT", 0),
        ("last_name", "TEXT", 0),
        ("email", "TEXT", 0),
        ("city", "TEXT", 0),
        ("salary", "REAL", 0),
        ("processed_at", "TEXT", 0),
    ]
    assert query(path, "SELECT typeof(id), typeof(salary), typeof(city) FROM users") == [("integer", "real", "text")]
    assert query(path, "PRAGMA integrity_check") == [("ok",)]


def test_equal_tables_make_equal_files(tmp_path: Path) -> None:
    users = cleaned([("Ann", "Lee", "a@b.c", "Bern", 1)] * 5_000)
    for name in ("1.db", "2.db"):
        database.write(users, tmp_path / name, name="users", columns=CLEANED)
    assert (tmp_path / "1.db").read_bytes() == (tmp_path / "2.db").read_bytes()


def test_beside_the_database_nothing_is_left(tmp_path: Path) -> None:
    database.write(cleaned([]), tmp_path / "users.db", name="users", columns=CLEANED)
    assert [path.name for path in tmp_path.iterdir()] == ["users.db"]

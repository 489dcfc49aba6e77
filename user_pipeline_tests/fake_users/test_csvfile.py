import csv
import io
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings

from user_pipeline.fake_users import archive, csvfile
from user_pipeline.fake_users.columns import RAW
from user_pipeline_tests.fake_users.tables import raw, raw_tables


def written(table: pa.Table) -> bytes:
    stream = io.BytesIO()
    csvfile.write(table, stream)
    return stream.getvalue()


@given(users=raw_tables)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_goes_through_zip_and_csv_comes_back_unchanged(users: pa.Table, tmp_path: Path) -> None:
    archive.pack(tmp_path / "a.zip", "users_raw.csv", lambda stream: csvfile.write(users, stream))
    archive.unpack(tmp_path / "a.zip", "users_raw.csv", tmp_path / "users.csv", name="a.zip")
    assert csvfile.read(tmp_path / "users.csv", RAW).equals(users)
    assert csvfile.read(tmp_path / "users.csv", RAW, only=["city"]).equals(users.select(["city"]))


@given(users=raw_tables)
@settings(deadline=None)
def test_other_readers_of_csv_see_the_same(users: pa.Table) -> None:
    content = written(users).decode()
    rows = [[str(value) for value in row.values()] for row in users.to_pylist()]
    assert list(csv.reader(io.StringIO(content, newline=""))) == [users.column_names, *rows]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_what_looks_like_a_formula_is_written_as_it_is(start: str) -> None:
    text = f"{start}1+1"
    line = written(raw([(text, text, "a@b.c", "x", 1)])).removeprefix(written(raw([]))).decode()
    assert line == '1,"\r1+1","\r1+1",a@b.c,x,1.00\n' if start == "\r" else f"1,{text},{text},a@b.c,x,1.00\n"


def test_pandas_reads_a_last_name_na_as_a_name() -> None:
    content = written(raw([("Ann", "NA", "null", "", 1), ("Bob", "", "a@b.c", "x", 2)]))
    assert content.splitlines()[0] == b"id,first_name,last_name,email,city,salary"
    frame = pd.read_csv(io.BytesIO(content), keep_default_na=False, dtype=str)
    assert frame["last_name"].tolist() == ["NA", ""]
    assert frame["salary"].tolist() == ["1.00", "2.00"]


def test_an_empty_table_is_a_header(tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_bytes(written(raw([])))
    assert (tmp_path / "users.csv").read_bytes() == b"id,first_name,last_name,email,city,salary\n"
    assert csvfile.read(tmp_path / "users.csv", RAW).num_rows == 0


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("id,name\n1,Ann\n", "the header is id,name"),
        ("", "Empty CSV"),
        ("id,first_name,last_name,email,city,salary\none,a,b,c,d,1.00\n", "one"),
        ("id,first_name,last_name,email,city,salary\n1,a,b,c,d\n", "columns"),
        ("id,first_name,last_name,email,city,salary\n1,a,b,c,d,\n", "salary|decimal"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_refused(content: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text(content)
    with pytest.raises(csvfile.CsvError, match=complaint):
        csvfile.read(tmp_path / "users.csv", RAW)

from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from openpyxl.utils.escape import unescape

from user_pipeline.fake_users import workbook
from user_pipeline_tests.fake_users.tables import cleaned, cleaned_tables

ANN = ("Ann", "Lee", "ann@example.com", "Bern", "50000.25")


def read(path: Path) -> list[list[Any]]:
    sheet = openpyxl.load_workbook(path).active
    assert sheet is not None
    return [[cell.value for cell in row] for row in sheet.iter_rows()]


@given(users=cleaned_tables)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_goes_into_a_workbook_comes_back_unchanged(users: pa.Table, tmp_path: Path) -> None:
    workbook.write(users, tmp_path / "users.xlsx", title="users")
    header, *rows = read(tmp_path / "users.xlsx")
    assert header == users.column_names
    back = [
        [unescape(value) if isinstance(value, str) else "" if value is None else value for value in row] for row in rows
    ]
    assert back == [
        [value if isinstance(value, int | str) else float(value) for value in row.values()] for row in users.to_pylist()
    ]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_becomes_a_formula(start: str, tmp_path: Path) -> None:
    text = f"{start}cmd|'/c calc'!A1"
    workbook.write(cleaned([(text, text, text, text, 1)]), tmp_path / "users.xlsx", title="users")
    sheet = openpyxl.load_workbook(tmp_path / "users.xlsx")["users"]
    for cell in sheet[2][1:5]:
        assert cell.data_type == "s"
        assert cell.quotePrefix
        assert unescape(str(cell.value)) == text


def test_the_header_is_bold_and_frozen_and_numbers_are_numbers(tmp_path: Path) -> None:
    workbook.write(cleaned([ANN]), tmp_path / "users.xlsx", title="users")
    sheet = openpyxl.load_workbook(tmp_path / "users.xlsx")["users"]
    assert sheet.freeze_panes == "A2"
    assert all(cell.font.bold for cell in sheet[1])
    assert not any(cell.font.bold for cell in sheet[2])
    assert [cell.data_type for cell in sheet[2]] == ["n", "s", "s", "s", "s", "n", "s"]
    assert sheet["F2"].value == 50000.25
    assert sheet.column_dimensions["D"].width == len("ann@example.com") + 2


def test_what_does_not_fit_a_sheet_goes_on_on_the_next(tmp_path: Path) -> None:
    users = cleaned([ANN] * 7)
    assert workbook.write(users, tmp_path / "users.xlsx", title="users", rows_per_sheet=3) == 3
    book = openpyxl.load_workbook(tmp_path / "users.xlsx")
    assert book.sheetnames == ["users", "users 2", "users 3"]
    ids = [[row[0].value for row in sheet.iter_rows()] for sheet in book]
    assert ids == [["id", 1, 2, 3], ["id", 4, 5, 6], ["id", 7]]
    assert all(sheet.freeze_panes == "A2" for sheet in book)


def test_a_full_sheet_is_as_large_as_excel_allows() -> None:
    assert workbook.ROWS_PER_SHEET + 1 == 2**20


def test_no_users_make_a_sheet_with_a_header(tmp_path: Path) -> None:
    assert workbook.write(cleaned([]), tmp_path / "users.xlsx", title="users") == 1
    assert read(tmp_path / "users.xlsx") == [cleaned([]).column_names]


def test_equal_tables_make_equal_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workbook.write(cleaned([ANN]), tmp_path / "1.xlsx", title="users")
    monkeypatch.setattr("time.time", lambda: 0)
    workbook.write(cleaned([ANN]), tmp_path / "2.xlsx", title="users")
    assert (tmp_path / "1.xlsx").read_bytes() == (tmp_path / "2.xlsx").read_bytes()


def test_a_text_no_cell_can_hold_is_refused_rather_than_cut_off(tmp_path: Path) -> None:
    longest = ("x" * workbook.LONGEST_TEXT, *ANN[1:])
    workbook.write(cleaned([longest]), tmp_path / "users.xlsx", title="users")
    assert read(tmp_path / "users.xlsx")[1][1] == longest[0]
    with pytest.raises(workbook.TextTooLongError, match="32768"):
        workbook.write(cleaned([("x" + longest[0], *ANN[1:])]), tmp_path / "users.xlsx", title="users")

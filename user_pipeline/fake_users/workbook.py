"""An Excel workbook of any number of users, in which every text stays text."""

import re
import shutil
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from openpyxl import Workbook
from openpyxl.cell import WriteOnlyCell
from openpyxl.styles import Font
from openpyxl.utils import get_column_letter
from openpyxl.writer.excel import ExcelWriter

from user_pipeline.errors import PermanentError
from user_pipeline.fake_users import archive, tables

if TYPE_CHECKING:
    from openpyxl.cell import Cell
    from openpyxl.worksheet._write_only import WriteOnlyWorksheet

# A sheet ends at row 1,048,576; the first is the header.
ROWS_PER_SHEET = 1_048_575
LONGEST_TEXT = 32_767
# Characters XML cannot carry, a carriage return (XML turns it into a newline), and what looks like an escape.
_ESCAPED = re.compile("[\x00-\x08\x0b-\x1f\ufffe\uffff]|_(?=x[0-9A-Fa-f]{4}_)")
# What a spreadsheet may take for a formula, or openpyxl for an error value.
_TEXT_ONLY = ("=", "+", "-", "@", "\t", "\r", "#")


class TextTooLongError(PermanentError):
    """A text does not fit a cell; cutting it off would change it."""


def write(table: pa.Table, path: Path, *, title: str, rows_per_sheet: int = ROWS_PER_SHEET) -> int:
    """Write a workbook with a frozen bold header, going on to further sheets when one is full.

    Equal tables give equal files: nothing in them tells when they were written. Characters that XML cannot
    carry are stored as Office Open XML escapes them (``_x000D_``); Excel and LibreOffice show the character
    itself, in openpyxl it takes ``openpyxl.utils.escape.unescape``.

    Args:
        table: integers, decimals and strings; decimals are stored as numbers.
        path: the file to make.
        title: name of the sheet; further ones are called ``<title> 2`` and so on.
        rows_per_sheet: rows below the header of one sheet.

    Returns:
        The number of sheets.

    Raises:
        TextTooLongError: a text is longer than a cell can hold.
    """
    _refuse_long_texts(table)
    book = Workbook(write_only=True)
    widths = [_width(table[name], name) for name in table.column_names]
    sheets: int = max(1, -(-table.num_rows // rows_per_sheet))
    for number in range(sheets):
        sheet = book.create_sheet(title if number == 0 else f"{title} {number + 1}")
        sheet.freeze_panes = "A2"
        for index, width in enumerate(widths, start=1):
            sheet.column_dimensions[get_column_letter(index)].width = width
        sheet.append([_header(sheet, name) for name in table.column_names])
        for row in tables.rows(table.slice(number * rows_per_sheet, rows_per_sheet)):
            sheet.append([_safe(sheet, value) for value in row])
    book.properties.created = book.properties.modified = datetime(*archive.EPOCH, tzinfo=UTC)
    with _UndatedZip(path, "w") as target:
        ExcelWriter(book, target).save()
    return sheets


def _refuse_long_texts(table: pa.Table) -> None:
    for column in (column for column in table.columns if pa.types.is_string(column.type)):
        # An escape replaces one character by seven.
        candidates = column.filter(pc.greater(pc.utf8_length(column), LONGEST_TEXT // 7))
        longest = max((len(_escape(text)) for text in candidates.to_pylist()), default=0)
        if longest > LONGEST_TEXT:
            raise TextTooLongError(f"A text of {longest} characters does not fit a cell of {LONGEST_TEXT}.")


def _escape(text: str) -> str:
    return _ESCAPED.sub(lambda found: f"_x{ord(found[0]):04X}_", text)


def _header(sheet: "WriteOnlyWorksheet", name: str) -> "Cell":
    cell = WriteOnlyCell(sheet, value=name)
    cell.font = Font(bold=True)
    return cell


def _safe(sheet: "WriteOnlyWorksheet", value: "float | str") -> "float | str | Cell":
    if not isinstance(value, str):
        return value
    text = _escape(value)
    if not value.startswith(_TEXT_ONLY):
        return text
    cell = WriteOnlyCell(sheet, value=text)
    cell.data_type = "s"
    # Keeps it a text also when somebody edits the cell.
    cell.quotePrefix = True
    return cell


def _width(column: pa.ChunkedArray, name: str) -> float:
    """Wide enough for the header and the first thousand values, within reason."""
    shown = [len(str(value)) for value in column.slice(0, 1_000).to_pylist()]
    return min(max([len(name), *shown]) + 2, 60)


class _UndatedZip(zipfile.ZipFile):
    """A zip archive whose entries all have the same time."""

    def writestr(  # type: ignore[override]  # openpyxl gives a name and the content, nothing else
        self, zinfo_or_arcname: str, data: bytes | str
    ) -> None:
        super().writestr(archive.entry(zinfo_or_arcname), data)

    def write(self, filename: str, arcname: str) -> None:  # type: ignore[override]  # same reason
        with (
            Path(filename).open("rb") as source,
            self.open(archive.entry(arcname), "w", force_zip64=True) as target,
        ):
            shutil.copyfileobj(source, target)

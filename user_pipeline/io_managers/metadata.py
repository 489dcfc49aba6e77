"""What the UI shows of data that was stored: where it is, how much, how long it took, and its first rows."""

import itertools
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from user_pipeline.masking import shorten

if TYPE_CHECKING:
    import pyarrow as pa

PREVIEW_ROWS = 10
_PERSONAL = frozenset({"email", "name", "first_name", "last_name"})
_LONGEST = 80
PREVIEW_TEXT = 500
"""How many characters of a value are fetched for a preview."""
_LINK = re.compile(r"://|www\.|@", re.IGNORECASE)
_BACKTICKS = re.compile("`+")


def file_metadata(file: Path, rows: int, url: str, first: "pa.Table") -> dict[str, Any]:
    """The metadata of a partition that is a file.

    Args:
        file: a local copy of it.
        rows: how many rows it has.
        url: where it is kept.
        first: its first rows.
    """
    return {
        "dagster/partition_row_count": rows,
        "dagster/uri": url,
        "size_bytes": file.stat().st_size,
        **preview(first.column_names, first.slice(0, PREVIEW_ROWS).to_pylist()),
    }


def parquet_head(file: Path, columns: "Sequence[str] | None" = None) -> "pa.Table":
    """The first rows of a Parquet file; of some columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = pq.ParquetFile(file)
    names = list(columns or content.schema_arrow.names)
    batches = content.iter_batches(PREVIEW_ROWS, columns=names)
    schema = pa.schema([content.schema_arrow.field(name) for name in names])
    return pa.Table.from_batches([batch.select(names) for batch in itertools.islice(batches, 1)], schema)


def preview(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> dict[str, dg.MarkdownMetadataValue]:
    """A few rows as a table, e-mail addresses and names masked; nothing where there are none.

    Args:
        columns: the names of the columns, in order.
        rows: the rows, by column.
    """
    if not rows:
        return {}
    lines = [
        " | ".join(_cell(name) for name in columns),
        " | ".join("---" for _ in columns),
        *(" | ".join(_cell(_masked(name, row[name])) for name in columns) for row in rows),
    ]
    return {"preview": dg.MetadataValue.md("\n".join(f"| {line} |" for line in lines))}


def first_rows(reader: "pa.RecordBatchReader") -> "tuple[pa.Table, pa.RecordBatchReader]":
    """The first rows of a stream, and the same stream from its beginning."""
    import pyarrow as pa

    batches = iter(reader)
    first = next((batch for batch in batches if batch.num_rows), None)

    def whole() -> "Iterator[pa.RecordBatch]":
        if first is not None:
            yield first
        yield from batches

    shown = [] if first is None else [first.slice(0, PREVIEW_ROWS)]
    return pa.Table.from_batches(shown, reader.schema), pa.RecordBatchReader.from_batches(reader.schema, whole())


@contextmanager
def timed(metadata: dict[str, Any], stage: str) -> Iterator[None]:
    """Add how long a block took, as ``seconds_<stage>``."""
    start = time.monotonic()
    yield
    metadata[f"seconds_{stage}"] = round(time.monotonic() - start, 3)


def _masked(column: str, value: object) -> object:
    """The first letter of a name or e-mail address; of other texts the beginning, with addresses in it masked."""
    if not isinstance(value, str) or not value:
        return value
    if column not in _PERSONAL:
        return shorten(value, _LONGEST)
    return f"{value[0]}…@…" if column == "email" else f"{value[0]}…"


def _cell(value: object) -> str:
    """A value as Markdown that shows it as it is, on one line."""
    if value is None:
        return ""
    text = " ".join(str(value).split())
    if _LINK.search(text):
        # GitHub's Markdown makes links of bare addresses, escaped ones too; only code is left alone.
        fence = "`" * (max(map(len, _BACKTICKS.findall(text)), default=0) + 1)
        return f"{fence} {text} {fence}".replace("|", "\\|")
    return "".join("\\" + letter if letter in r"\`*_{}[]<>()#+!|~&" else letter for letter in text)

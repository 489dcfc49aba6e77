"""CSV as RFC 4180 has it: what is written is what is read back, character for character.

Arrow and pandas are not used for writing: the one quotes every text, the other (through Python's ``csv``
before 3.13) leaves a lone carriage return unquoted.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from user_pipeline.errors import PermanentError
from user_pipeline.fake_users import tables
from user_pipeline.fake_users.columns import Column

_BATCH = 100_000


class CsvError(PermanentError):
    """A CSV file is not what it should be."""


def write(table: pa.Table, stream: BinaryIO) -> None:
    """Write a header and the rows, quoting only what needs it, a batch in memory at a time."""
    stream.write((",".join(table.column_names) + "\n").encode())
    for batch in table.to_batches(max_chunksize=_BATCH):
        lines = pc.binary_join_element_wise(*(_field(column) for column in batch.columns), ",")
        stream.write("".join(f"{line}\n" for line in lines.to_pylist()).encode())


def _field(values: pa.Array) -> pa.Array:
    if not pa.types.is_string(values.type):
        return values.cast(pa.string())
    quoted = pc.binary_join_element_wise("", pc.replace_substring(values, '"', '""'), "", '"')
    return pc.if_else(pc.match_substring_regex(values, '[",\r\n]'), quoted, values)


def read(path: Path, columns: Sequence[Column], only: Sequence[str] | None = None) -> pa.Table:
    """Read a file that :func:`write` wrote.

    Args:
        path: the file.
        columns: what its header must say, in order.
        only: names of the columns to keep; None keeps all.

    Returns:
        The columns with their types. No text counts as missing: an empty one is empty, ``NA`` is ``NA``.

    Raises:
        CsvError: the header is another one, or a value does not fit its column.
    """
    try:
        with pacsv.open_csv(
            path,
            parse_options=pacsv.ParseOptions(newlines_in_values=True),
            convert_options=pacsv.ConvertOptions(
                column_types=tables.schema(columns), strings_can_be_null=False, null_values=[]
            ),
            read_options=pacsv.ReadOptions(use_threads=False),
        ) as reader:
            if (names := reader.schema.names) != [column.name for column in columns]:
                raise CsvError(f"{path.name}: the header is {','.join(names)}.")
            kept = pa.schema([reader.schema.field(name) for name in only or names])
            return pa.Table.from_batches([batch.select(kept.names) for batch in reader], kept)
    except pa.ArrowInvalid as error:
        raise CsvError(f"{path.name}: {error}") from error

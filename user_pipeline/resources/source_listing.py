"""What a listing of the source holds, whatever store it is of."""

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

Row: TypeAlias = tuple[str, str, int, datetime, str | None]
"""An object: the columns of :meth:`.Source.list`."""
_PAGE = 1_000
# Names that start with a dot or an underscore, at any depth; the parts "." and ".." of a key are no such names.
_HIDDEN = re.compile(r"(?:^|/)(?:_|\.(?!\.?(?:/|$)))")


@dataclass(frozen=True, slots=True)
class Content:
    """The content of an object.

    Attributes:
        etag: what the store calls this content.
        chunks: its bytes, in order.
    """

    etag: str
    chunks: Iterable[bytes | memoryview]


def is_hidden(key: str, size: int, start: int) -> bool:
    """Whether an object is none of the logs: its name is hidden, or it is an empty folder marker.

    Args:
        key: its key.
        size: bytes, as stored.
        start: where in the key the part below the feed's folder begins.
    """
    return bool(_HIDDEN.search(key, start)) or (key.endswith("/") and size == 0)


def in_pages(rows: Iterable[Row]) -> "pa.RecordBatchReader":
    """The rows as batches, a page at a time: a listing may have millions."""
    import pyarrow as pa

    schema = pa.schema(
        [
            ("path", pa.string()),
            ("e_tag", pa.string()),
            ("size", pa.int64()),
            ("last_modified", pa.timestamp("us", tz="UTC")),
            ("problem", pa.string()),
        ]
    )

    def pages() -> "Iterator[pa.RecordBatch]":
        remaining = iter(rows)
        while page := list(itertools.islice(remaining, _PAGE)):
            columns = zip(*page, strict=True)
            arrays = [pa.array(list(column), field.type) for column, field in zip(columns, schema, strict=True)]
            yield pa.record_batch(arrays, schema=schema)

    return pa.RecordBatchReader.from_batches(schema, pages())

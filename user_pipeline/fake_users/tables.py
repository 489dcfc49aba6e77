"""What the files have in common: users as an Arrow table."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from user_pipeline.fake_users.columns import Column

_TYPES = {"integer": pa.int64(), "text": pa.string(), "decimal(12,2)": pa.decimal128(12, 2)}
_BATCH = 10_000


def schema(columns: Sequence[Column]) -> pa.Schema:
    """The Arrow schema of ``columns``."""
    return pa.schema([(column.name, _TYPES[column.type]) for column in columns])


def floats(decimals: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """The float64 next to each decimal.

    The way over text is the exact one: Arrow's own cast turns 6.89 into 6.890000000000001.
    """
    return decimals.cast(pa.string()).cast(pa.float64())


def rows(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    """The rows as Python values, decimals as floats."""
    for batch in table.to_batches(max_chunksize=_BATCH):
        columns = (floats(column) if pa.types.is_decimal(column.type) else column for column in batch.columns)
        yield from zip(*(column.to_pylist() for column in columns), strict=True)

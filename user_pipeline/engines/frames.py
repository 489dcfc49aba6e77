"""Frames as streams of Arrow batches."""

from typing import TYPE_CHECKING, Any

import narwhals as nw

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 100_000


def to_reader(frame: Any) -> "pa.RecordBatchReader":
    """The rows of a frame, streamed in its order.

    Args:
        frame: a narwhals frame, or what narwhals makes one of.

    Raises:
        TypeError: it is no frame.
    """
    wrapped = nw.from_native(frame)
    if isinstance(wrapped, nw.LazyFrame) and wrapped.implementation.is_duckdb():
        return wrapped.to_native().to_arrow_reader(BATCH_ROWS)
    return wrapped.lazy().collect("pyarrow").to_native().to_reader(BATCH_ROWS)

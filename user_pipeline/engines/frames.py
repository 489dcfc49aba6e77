"""Frames as streams of Arrow batches."""

from typing import TYPE_CHECKING, Any

import narwhals as nw

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa
    from pyspark.sql.connect.dataframe import DataFrame

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
    if isinstance(wrapped, nw.LazyFrame) and wrapped.implementation.is_pyspark_connect():
        return _from_spark(wrapped.to_native())
    return wrapped.lazy().collect("pyarrow").to_native().to_reader(BATCH_ROWS)


def _from_spark(frame: "DataFrame") -> "pa.RecordBatchReader":
    """The rows of a frame of Spark, streamed: what narwhals and the client offer holds all of them."""
    import pyarrow as pa
    from pyspark.sql.pandas.types import to_arrow_schema

    from user_pipeline.engines.spark_errors import told

    with told():
        schema = to_arrow_schema(frame.schema)
        plan = frame._plan  # noqa: SLF001 - there is no other way to stream; a test holds it
        query = plan.to_proto(frame.sparkSession.client)

    def batches() -> "Iterator[pa.RecordBatch]":
        with told():
            for part in frame.sparkSession.client.to_table_as_iterator(query, plan.observations):
                if isinstance(part, pa.Table):
                    yield from part.cast(schema).to_batches(BATCH_ROWS)

    return pa.RecordBatchReader.from_batches(schema, batches())

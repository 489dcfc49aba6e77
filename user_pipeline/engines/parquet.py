"""Parquet files as streams of Arrow batches, in the order of their rows."""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from user_pipeline.engines.frames import BATCH_ROWS

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa


def parquet_schema(files: Sequence[Path]) -> "pa.Schema":
    """The columns of Parquet files, those of the first."""
    import pyarrow.parquet as pq

    return pq.read_schema(files[0]).remove_metadata()


def read_parquet(files: Iterable[Path], columns: Sequence[str] | None = None) -> "pa.RecordBatchReader":
    """The rows of Parquet files of the same columns, streamed one file after the other in their order.

    A file need not be there before it is its turn.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    remaining = iter(files)
    first = next(remaining)
    schema = parquet_schema([first])
    kept = schema if columns is None else pa.schema([schema.field(name) for name in columns])

    def batches() -> "Iterator[pa.RecordBatch]":
        for file in itertools.chain([first], remaining):
            for batch in pq.ParquetFile(file).iter_batches(BATCH_ROWS, columns=kept.names, use_threads=False):
                yield batch.select(kept.names).cast(kept)

    return pa.RecordBatchReader.from_batches(kept, batches())


def write_parquet(rows: "pa.RecordBatchReader", file: Path) -> None:
    """Write a stream of rows as a Parquet file."""
    import pyarrow.parquet as pq

    with pq.ParquetWriter(file, rows.schema, compression="zstd") as writer:
        for batch in rows:
            writer.write_batch(batch)

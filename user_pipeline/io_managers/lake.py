"""Keep an asset's partitions as Parquet in the lake: ``[<key prefix>/]<asset>/date=<partition>/<asset>.parquet``."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import narwhals as nw

from user_pipeline.engines.frames import hand_over, per_partition, to_reader
from user_pipeline.errors import never_retried
from user_pipeline.io_managers.base import LakeFileIOManager
from user_pipeline.io_managers.metadata import PREVIEW_ROWS, file_metadata, timed
from user_pipeline.lake.files import fetch_partitions
from user_pipeline.resources.postgres import quote

if TYPE_CHECKING:
    import pyarrow as pa


class LakeIOManager(LakeFileIOManager):
    """Parquet in the lake, a file a partition.

    Assets give a frame, or for several partitions in one run a mapping from partition key to frame; the frames
    are written one after the other, so lazy ones are never held together. Consumers get all their
    partitions as one lazy frame, or as whatever their annotation asks for; annotated ``dict[str, Frame]``, each by
    its key.
    """

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Write each partition of the run."""
        asset = "/".join(context.asset_key.path)
        frames = obj if isinstance(obj, Mapping) else dict.fromkeys(context.asset_partition_keys, obj)
        if set(frames) != set(context.asset_partition_keys):
            raise ValueError(f"{asset} gave the partitions {sorted(frames)}, not those of the run")
        if not isinstance(obj, Mapping) and len(frames) > 1:
            raise ValueError(f"{asset} must give a mapping from partition to frame for {len(frames)} partitions")
        scratch = self.engine.new_scratch(context.asset_key.path[-1])
        with never_retried():
            for partition, frame in frames.items():
                file = scratch / f"{partition}.parquet"
                path = self.path(context, partition)
                taken: dict[str, Any] = {}
                with timed(taken, "writing"):
                    rows = _write(frame, file)
                    self.put(path, file)
                url = self.storage.lake_url(path)
                self.add_metadata(context, partition, file_metadata(file, rows, url, parquet_head(file)) | taken)
                self.remove_local(file)
                context.log.info("%s: wrote %d rows", path, rows)

    def load_input(self, context: dg.InputContext) -> Any:
        """All partitions the consumer depends on, as one frame of the annotated type."""
        asset = "/".join(context.asset_key.path)
        columns = (context.definition_metadata or {}).get("columns")
        with never_retried():
            files = fetch_partitions(self.storage, self.engine, asset, context.asset_partition_keys)
        connection = self.engine.connect()

        def give(read: list[Path], annotation: Any) -> Any:
            relation = connection.read_parquet([str(file) for file in read], hive_partitioning=False)
            return hand_over(relation.project(", ".join(map(quote, columns))) if columns else relation, annotation)

        if (each := per_partition(context.dagster_type.typing_type)) is not None:
            return {key: give([file], each) for key, file in zip(context.asset_partition_keys, files, strict=True)}
        return give(files, context.dagster_type.typing_type)


def parquet_head(file: Path, columns: "Sequence[str] | None" = None) -> "pa.Table":
    """The first rows of a Parquet file; of some columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = pq.ParquetFile(file)
    names = list(columns or content.schema_arrow.names)
    batches = content.iter_batches(PREVIEW_ROWS, columns=names)
    schema = pa.schema([content.schema_arrow.field(name) for name in names])
    return pa.Table.from_batches([batch.select(names) for batch in itertools.islice(batches, 1)], schema)


def _write(frame: Any, file: Path) -> int:
    import pyarrow.parquet as pq

    wrapped = nw.from_native(frame, pass_through=True)
    if isinstance(wrapped, nw.LazyFrame) and wrapped.implementation.is_duckdb():
        # The engine writes with all its threads.
        wrapped.to_native().write_parquet(str(file), compression="zstd")
        return int(pq.ParquetFile(file).metadata.num_rows)
    reader = to_reader(frame)
    rows = 0
    with pq.ParquetWriter(file, reader.schema, compression="zstd") as writer:
        for batch in reader:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows

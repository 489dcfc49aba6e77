"""Keep raw days: the part files of ingest are theirs, and only a day that is written anew is stored."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from user_pipeline.engines.frames import hand_over, per_partition
from user_pipeline.errors import never_retried
from user_pipeline.ingest.feeds import FEEDS
from user_pipeline.ingest.manifest import Manifest
from user_pipeline.ingest.part_files import RawDay, commit_raw_days
from user_pipeline.io_managers.base import LakeFileIOManager
from user_pipeline.io_managers.lake import parquet_head
from user_pipeline.io_managers.metadata import PREVIEW_ROWS, preview, timed
from user_pipeline.io_managers.partitioned import Partitioned
from user_pipeline.lake.lake import Lake
from user_pipeline.lake.transfer import fetch, new_path, put
from user_pipeline.resources.postgres import Databases, quote

if TYPE_CHECKING:
    from user_pipeline.lake.registry import LakeFile

_FEEDS = {f"raw_{feed.name}": feed for feed in FEEDS}


class RawIOManager(LakeFileIOManager):
    """The days of raw in the lake, a few Parquet files each; the registry of the staging database tells which.

    Consumers get the rows of all their days as one lazy frame, in no order, or as whatever their annotation asks for;
    annotated ``dict[str, Frame]``, each day by its key.
    """

    databases: dg.ResourceDependency[Databases]

    def handle_output(self, context: dg.OutputContext, obj: Partitioned[RawDay]) -> None:
        """Store the days that were written anew, then register all days of the run at once."""
        asset = context.asset_key.path[-1]
        feed = _FEEDS[asset]
        days = {date.fromisoformat(key): made for key, made in obj.items()}
        taken: dict[str, Any] = {}
        stored: dict[date, LakeFile] = {}
        with never_retried(), timed(taken, "writing"):
            for day, made in days.items():
                if made.written is not None:
                    stored[day] = put(self.storage, new_path(f"raw/{feed.name}", day), made.written, made.rows)
            registry = Lake(self.storage, self.databases).staging
            commit_raw_days(Manifest(feed, registry), days, stored, context.run_id)
        for key, made in obj.items():
            files = [stored[date.fromisoformat(key)]] if made.written is not None else list(made.pinned)
            self.add_metadata(context, key, self._metadata(made, files) | taken)
            if made.written is not None:
                self.remove_local(made.written)
            context.log.info("%s of %s: %d rows in %d files", asset, key, made.rows, len(files))

    def load_input(self, context: dg.InputContext) -> Any:
        """All partitions the consumer depends on, as one frame of the annotated type."""
        asset = context.asset_key.path[-1]
        columns = (context.definition_metadata or {}).get("columns")
        lake = Lake(self.storage, self.databases)
        with never_retried():
            days = [date.fromisoformat(key) for key in context.asset_partition_keys]
            files = lake.fetch(self.engine, lake.staging, asset, days)
        connection = self.engine.connect()

        def give(read: Sequence[Path], annotation: Any) -> Any:
            relation = connection.read_parquet([str(file) for file in read], hive_partitioning=False)
            return hand_over(relation.project(", ".join(map(quote, columns))) if columns else relation, annotation)

        if (each := per_partition(context.dagster_type.typing_type)) is not None:
            return {day.isoformat(): give(files[day], each) for day in days}
        return give([file for day in days for file in files[day]], context.dagster_type.typing_type)

    def _metadata(self, made: RawDay, files: "Sequence[LakeFile]") -> dict[str, Any]:
        urls = [self.storage.lake_url(file.path) for file in files]
        if made.written is not None:
            first = parquet_head(made.written)
        else:
            target = self.engine.new_scratch("preview") / "preview.parquet"
            first = parquet_head(fetch(self.storage, min(files, key=lambda file: file.size).path, target))
            target.unlink(missing_ok=True)
        return {
            "dagster/partition_row_count": made.rows,
            "dagster/uri": urls[0],
            "files": dg.MetadataValue.text("\n".join(urls)),
            "size_bytes": sum(file.size for file in files),
            "rewritten": made.rewritten,
            **preview(first.column_names, first.slice(0, PREVIEW_ROWS).to_pylist()),
        }

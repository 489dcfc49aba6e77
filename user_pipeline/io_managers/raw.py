"""Keep raw days: the part files of ingest are registered, and only a rewritten day is stored."""

from collections.abc import Sequence
from datetime import date
from typing import Any

import dagster as dg

from user_pipeline.errors import never_retried
from user_pipeline.ingest.feeds import FEEDS
from user_pipeline.ingest.manifest import Manifest
from user_pipeline.ingest.part_files import RawDay, commit_raw_days
from user_pipeline.io_managers.lake import RegisteredIOManager
from user_pipeline.io_managers.metadata import PREVIEW_ROWS, parquet_head, preview, timed
from user_pipeline.io_managers.partitioned import Partitioned
from user_pipeline.lake.partitions import LakeFile
from user_pipeline.lake.transfer import fetch, new_path, put

_FEEDS = {f"raw_{feed.name}": feed for feed in FEEDS}


class RawIOManager(RegisteredIOManager):
    """The days of raw, a few Parquet files each; the registry of the staging database tells which.

    Assets give what each day is made of, as a :class:`Partitioned` of :class:`RawDay`.
    """

    def handle_output(self, context: dg.OutputContext, obj: Partitioned[RawDay]) -> None:
        """Store the days that were rewritten, then register all days of the run in one transaction."""
        asset = context.asset_key.path[-1]
        feed = _FEEDS[asset]
        days = {date.fromisoformat(key): made for key, made in sorted(obj.items())}
        taken: dict[str, Any] = {}
        with never_retried():
            stored: dict[date, LakeFile] = {}
            with timed(taken, "writing"):
                for day, made in days.items():
                    if made.written is not None:
                        path = new_path(f"{self.folder}/{feed.name}", day)
                        stored[day] = put(self.lake.storage, path, made.written, made.rows)
                commit_raw_days(Manifest(feed, self.registry), days, stored, context.run_id)
            for day, made in days.items():
                files = [stored[day]] if day in stored else list(made.pinned)
                self.add_metadata(context, day.isoformat(), self._metadata(made, files) | taken)
                context.log.info("%s of %s: %d rows in %d files", asset, day, made.rows, len(files))
        for made in days.values():
            if made.written is not None:
                self.remove_local(made.written)

    def _metadata(self, made: RawDay, files: Sequence[LakeFile]) -> dict[str, Any]:
        urls = [self.lake.storage.lake_url(file.path) for file in files]
        target = self.engine.new_scratch("preview") / "preview.parquet"
        smallest = min(files, key=lambda file: file.size)
        first = parquet_head(made.written or fetch(self.lake.storage, smallest.path, target))
        target.unlink(missing_ok=True)
        return {
            "dagster/partition_row_count": made.rows,
            "dagster/uri": urls[0],
            "files": dg.MetadataValue.text("\n".join(urls)),
            "size_bytes": sum(file.size for file in files),
            "rewritten": made.rewritten,
            **preview(first.column_names, first.slice(0, PREVIEW_ROWS).to_pylist()),
        }

"""Whole files in the lake, one per day: zip archives, CSV, workbooks, databases, reports, pictures."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from user_pipeline.engines.base import Engine
from user_pipeline.errors import PermanentError, never_retried
from user_pipeline.io_managers.base import LakeFileIOManager
from user_pipeline.io_managers.partitioned import File, Partitioned
from user_pipeline.lake.registry import MissingPartitionError
from user_pipeline.lake.transfer import fetch
from user_pipeline.resources.storage import ObjectStorage

_FOLDER, _FILES = "lake/folder", "lake/files"


def stored_as(folder: str, *files: str) -> dict[str, Any]:
    """Metadata that tells the IO manager where an asset's files go.

    Args:
        folder: folder of the lake; a day's file is ``<folder>/date=YYYY-MM-DD/<file>``.
        files: names the file may have; a day has one of them at a time.
    """
    return {_FOLDER: folder, _FILES: list(files)}


@dataclass(frozen=True, slots=True)
class LakeFiles:
    """What an asset receives: the files of an upstream asset, fetched a day at a time."""

    _asset: dg.AssetKey
    _place: "_Place"
    _storage: ObjectStorage
    _engine: Engine

    @contextmanager
    def file(self, day: str) -> Iterator[Path]:
        """The day's file on this machine, for as long as the block lasts; to be read and not changed.

        Raises:
            dagster.Failure: there is no such file.
        """
        target = self._engine.new_scratch(self._asset.path[-1]) / "fetched"
        with never_retried():
            file = self._fetch(day, target)
        try:
            yield file
        finally:
            target.unlink(missing_ok=True)
            target.parent.rmdir()

    def read(self, day: str) -> bytes:
        """The content of the day's file.

        Raises:
            dagster.Failure: there is no such file.
        """
        with self.file(day) as file:
            return file.read_bytes()

    def url(self, day: str) -> str:
        """Where the day's file is kept, for messages."""
        return self._storage.lake_url(self._place.paths(day)[0])

    def _fetch(self, day: str, target: Path) -> Path:
        for path in self._place.paths(day):
            with suppress(FileNotFoundError):
                return fetch(self._storage, path, target)
        raise MissingPartitionError(self._asset.to_user_string(), day)


class FilesIOManager(LakeFileIOManager):
    """Files in the lake, one a day.

    When an asset changes the name of a day's file (``report.txt`` to ``report.json``), the one under the other name is
    removed once the new one is stored.
    """

    def handle_output(self, context: dg.OutputContext, obj: Partitioned[File]) -> None:
        """Store the file of each day of the run, with metadata of its own."""
        place = _Place.of(context)
        asset = context.asset_key.to_user_string()
        if set(obj) != set(context.asset_partition_keys):
            raise ValueError(f"{asset} gave the partitions {sorted(obj)}, not those of the run")
        for file in obj.values():
            if file.path.name not in place.files:
                raise ValueError(f"{asset} gave a file {file.path.name}, not one of {', '.join(place.files)}")
        with never_retried():
            for day, file in obj.items():
                path = f"{place.folder(day)}/{file.path.name}"
                self.put(path, file.path)
                for other in place.paths(day):
                    # In a directory it is an error to delete a file that is not there; in a bucket it is not.
                    if other != path:
                        with suppress(FileNotFoundError):
                            self.lake.storage.lake.delete(other)
                rows = {} if file.rows is None else {"dagster/partition_row_count": file.rows}
                where = dg.MetadataValue.path(self.lake.storage.lake_url(path))
                size = file.path.stat().st_size
                self.add_metadata(context, day, {"path": where, "size_bytes": size, **rows, **file.metadata})
                self.remove_local(file.path)

    def load_input(self, context: dg.InputContext) -> LakeFiles | bytes:
        """Give access to the upstream files.

        Returns:
            The content, when the consumer asks for ``bytes`` (of one day); otherwise a :class:`LakeFiles`.
        """
        if context.upstream_output is None:
            raise PermanentError("Files can only be loaded from an asset.")
        files = LakeFiles(context.asset_key, _Place.of(context.upstream_output), self.lake.storage, self.engine)
        if context.dagster_type.typing_type is bytes:
            return files.read(context.asset_partition_key)
        return files


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the days of one asset are kept."""

    root: str
    files: tuple[str, ...]

    @classmethod
    def of(cls, context: dg.OutputContext) -> "_Place":
        metadata = context.definition_metadata
        if _FOLDER not in metadata:
            raise PermanentError(f"{context.asset_key.to_user_string()} lacks the metadata of stored_as().")
        return cls(metadata[_FOLDER], tuple(metadata[_FILES]))

    def folder(self, day: str) -> str:
        return f"{self.root}/date={day}"

    def paths(self, day: str) -> list[str]:
        """The paths that the day's file may have."""
        return [f"{self.folder(day)}/{file}" for file in self.files]

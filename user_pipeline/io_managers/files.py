"""Whole files in the lake, one per day: zip archives, CSV, workbooks, databases, reports, pictures.

An asset hands over a :class:`FilePerDay`: not the files, but how to make one. The IO manager asks for a day,
stores it and throws away what it took before it asks for the next, so a year in one run needs the memory and
the disk of a day. What comes back downstream is a :class:`LakeFiles`, which fetches a day when asked to.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field, PrivateAttr

from user_pipeline import settings
from user_pipeline.errors import PermanentError

if TYPE_CHECKING:
    from user_pipeline.resources.object_store import Store

_FOLDER, _FILES = "lake/folder", "lake/files"


def stored_as(folder: str, *files: str) -> dict[str, Any]:
    """Metadata that tells the IO manager where an asset's files go.

    Args:
        folder: folder of the lake; a day's file is ``<folder>/date=YYYY-MM-DD/<file>``.
        files: names the file may have. The first is the default; a day has one of them at a time.
    """
    return {_FOLDER: folder, _FILES: list(files)}


@dataclass(frozen=True, slots=True)
class Day:
    """A day whose file is being made.

    Attributes:
        key: the partition, ``YYYY-MM-DD``.
        scratch: an empty directory, gone once the file is stored.
    """

    key: str
    scratch: Path


@dataclass(frozen=True, slots=True)
class File:
    """The file of a day.

    Attributes:
        content: the bytes, or a file in the scratch directory that holds them.
        rows: rows in it, where it has rows.
        metadata: what else to show with the day's materialisation.
        name: its name, when it is not the first of the asset's names.
    """

    content: bytes | Path
    rows: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None


@dataclass(frozen=True, slots=True)
class FilePerDay:
    """What an asset returns: a function that makes the file of a day."""

    make: Callable[[Day], File]


@dataclass(frozen=True)
class _Place:
    """Where the days of one asset are kept."""

    asset: dg.AssetKey
    folder: str
    files: tuple[str, ...]

    @classmethod
    def of(cls, context: dg.OutputContext) -> "_Place":
        metadata = context.definition_metadata
        if _FOLDER not in metadata:
            raise PermanentError(f"{context.asset_key.to_user_string()} lacks the metadata of stored_as().")
        return cls(context.asset_key, metadata[_FOLDER], tuple(metadata[_FILES]))

    def key(self, day: str, file: str) -> str:
        return f"{self.folder}/date={day}/{file}"


@dataclass(frozen=True, slots=True)
class LakeFiles:
    """What an asset receives: the files of an upstream asset, fetched a day at a time."""

    _lake: "FilesIOManager"
    _place: _Place

    def path(self, day: Day) -> Path:
        """The day's file on this machine, to be read and not changed.

        For a lake in a directory it is the file itself; from a bucket it is downloaded to the scratch
        directory of the day.

        Raises:
            dagster.Failure: there is no such file.
        """
        target = day.scratch / "inputs" / self._place.asset.to_python_identifier()
        return self._lake.fetch(self._place, day.key, target)

    def read(self, day: str) -> bytes:
        """The content of the day's file.

        Raises:
            dagster.Failure: there is no such file.
        """
        return self._lake.read(self._place, day)

    def url(self, day: str) -> str:
        """Where the day's file is kept, for messages."""
        return self._lake.url(self._place.key(day, self._place.files[0]))


class FilesIOManager(dg.ConfigurableIOManager):
    """Keeps an asset's files in the lake, in a bucket and in a directory alike.

    A file appears whole or not at all: a bucket shows an object when its upload is complete, in a directory
    it is written beside its place and renamed. When an asset changes the name of a day's file (``report.txt``
    to ``report.json``), the one under the other name is removed once the new one is stored.
    """

    lake_url: str = Field(
        default="",
        description="The lake: s3://bucket[/prefix] or a directory. Empty: USER_PIPELINE_LAKE_URL.",
    )
    _opened: "Store | None" = PrivateAttr(default=None)

    def handle_output(self, context: dg.OutputContext, obj: FilePerDay) -> None:
        """Make and store the file of each day of the run, with metadata of its own."""
        place = _Place.of(context)
        for day in context.asset_partition_keys:
            context.step_context.add_asset_metadata(
                self._store_day(place, day, obj.make), asset_key=context.asset_key, partition_key=day
            )

    def load_input(self, context: dg.InputContext) -> LakeFiles | bytes:
        """Give access to the upstream files.

        Returns:
            The content, when the consumer asks for ``bytes`` (of one day); otherwise a :class:`LakeFiles`.
        """
        if context.upstream_output is None:
            raise PermanentError("Files can only be loaded from an asset.")
        files = LakeFiles(self, _Place.of(context.upstream_output))
        if context.dagster_type.typing_type is bytes:
            return files.read(context.asset_partition_key)
        return files

    def fetch(self, place: _Place, day: str, folder: Path) -> Path:
        """Bring a day's file to this machine; see :meth:`LakeFiles.path`."""
        if not self._location.is_s3:
            for file in place.files:
                if (path := Path(self._location.url, place.key(day, file))).is_file():
                    return path
            raise self._missing(place, day)
        import obstore

        for file in place.files:
            try:
                found = obstore.get(self._store(), place.key(day, file))
            except FileNotFoundError:
                continue
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / file).open("wb") as target:
                target.writelines(found.stream())
            return folder / file
        raise self._missing(place, day)

    def read(self, place: _Place, day: str) -> bytes:
        """The content of a day's file; see :meth:`LakeFiles.read`."""
        with TemporaryDirectory(dir=_scratch()) as scratch:
            return self.fetch(place, day, Path(scratch)).read_bytes()

    def url(self, key: str) -> str:
        """The full address of an object of the lake."""
        return f"{self._location}/{key}"

    def _store_day(self, place: _Place, day: str, make: Callable[[Day], File]) -> dict[str, Any]:
        import obstore

        with TemporaryDirectory(prefix="user_pipeline-", dir=_scratch()) as scratch:
            try:
                file = make(Day(day, Path(scratch)))
            except PermanentError as error:
                raise dg.Failure(f"{place.asset.to_user_string()} of {day}: {error}", allow_retries=False) from error
            name = file.name or place.files[0]
            size = file.content.stat().st_size if isinstance(file.content, Path) else len(file.content)
            obstore.put(self._store(), place.key(day, name), file.content)
            for other in place.files:
                if other != name:
                    self._remove(place.key(day, other))
        rows = {} if file.rows is None else {"dagster/partition_row_count": file.rows}
        path = dg.MetadataValue.path(self.url(place.key(day, name)))
        return {"path": path, "size_bytes": size, **rows, **file.metadata}

    def _remove(self, key: str) -> None:
        import obstore

        # A directory minds that there is nothing to delete, a bucket does not.
        with suppress(FileNotFoundError):
            obstore.delete(self._store(), key)

    def _missing(self, place: _Place, day: str) -> dg.Failure:
        asset = place.asset.to_user_string()
        return dg.Failure(
            f"{asset} has no file for {day}: {self.url(place.key(day, place.files[0]))} does not exist. "
            "Make it with: dagster asset materialize -m user_pipeline.definitions "
            f"--select {asset} --partition {day}",
            allow_retries=False,
        )

    @property
    def _location(self) -> settings.Location:
        if self.lake_url:
            return settings.Location("lake_url", self.lake_url)
        return settings.current().lake

    def _store(self) -> "Store":
        if self._opened is None:
            from user_pipeline.resources.object_store import open_store

            self._opened = open_store(self._location)
        return self._opened


def _scratch() -> Path:
    directory = settings.current().scratch_dir
    directory.mkdir(parents=True, exist_ok=True)
    return directory

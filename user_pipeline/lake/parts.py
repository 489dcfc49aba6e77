"""Files of the lake as an engine fetches and stores them, in the run or on another machine."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from user_pipeline.lake.partitions import LakeFile
from user_pipeline.lake.transfer import fetch_all, new_path, put

if TYPE_CHECKING:
    from user_pipeline.engines.base import Engine
    from user_pipeline.resources.storage import ObjectStorage

Part: TypeAlias = Path | LakeFile
"""A Parquet file: of this machine, or of the lake."""


@dataclass(frozen=True, slots=True)
class FromLake:
    """Fetches a file of the lake to the machine that it is called on; a local file is given as it is."""

    storage: "ObjectStorage"

    def __call__(self, engine: "Engine", part: Part) -> list[Path]:
        """The local file of a part."""
        if isinstance(part, Path):
            return [part]
        return fetch_all(self.storage, [part], engine.new_scratch("part"))


@dataclass(frozen=True, slots=True)
class IntoLake:
    """Stores files in a folder of the lake, each under a name of its own, as those of a day.

    Files that are never registered are removed by ``user-pipeline vacuum``.
    """

    storage: "ObjectStorage"
    folder: str
    day: date

    def __call__(self, engine: "Engine", file: Path, rows: int) -> LakeFile:
        """Store a file."""
        del engine
        return put(self.storage, new_path(self.folder, self.day), file, rows)


def one_by_one(storage: "ObjectStorage", engine: "Engine", parts: Sequence[Part]) -> Iterator[Path]:
    """The local files of parts, each fetched when it is asked for and removed when the next one is.

    Args:
        storage: has the lake.
        engine: has a place for them.
        parts: the parts.
    """
    for part in parts:
        [file] = FromLake(storage)(engine, part)
        yield file
        # A lake in a directory has files as well, and a local part is its owner's.
        if not isinstance(part, Path) and file.is_relative_to(engine.scratch):
            file.unlink()

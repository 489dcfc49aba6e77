"""Bring files of the lake to this machine, and files of this machine to the lake."""

import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from user_pipeline.errors import PermanentError
from user_pipeline.lake.partitions import LakeFile

if TYPE_CHECKING:
    from user_pipeline.resources.storage import ObjectStorage

_FETCHES = 8
"""How many files are fetched from a bucket at once: fetching is mostly waiting."""


class LostFileError(PermanentError):
    """A file that is registered is not in the lake."""


def new_path(folder: str, day: date) -> str:
    """A path that no file of the lake has or had: ``<folder>/date=<day>/<time>-<random>.parquet``."""
    return f"{folder}/date={day.isoformat()}/{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:12]}.parquet"


def export_path(table: str, partition: str) -> str:
    """The path of a table exported as CSV, in the lake."""
    return f"exports/{table}/date={partition}/{table}.csv"


def put(storage: "ObjectStorage", path: str, file: Path, rows: int) -> LakeFile:
    """Store a local file; it appears whole or not at all.

    Args:
        storage: has the lake.
        path: its path there, see :func:`new_path`.
        file: the local file.
        rows: how many rows it has.
    """
    with file.open("rb") as content:
        storage.lake.put(path, content)
    return LakeFile(path, rows, file.stat().st_size)


def fetch(storage: "ObjectStorage", path: str, target: Path) -> Path:
    """Bring an object of the lake to this machine, to be read and not changed.

    Args:
        storage: has the lake.
        path: the object.
        target: where to put it, if the lake is a bucket.

    Returns:
        ``target``; of a lake in a directory the file itself.

    Raises:
        FileNotFoundError: there is no such object.
    """
    file = storage.lake_file(path)
    if file is None:
        content = storage.lake.get(path).stream()
        with target.open("wb") as opened:
            opened.writelines(content)
        return target
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist")
    return file


def fetch_all(storage: "ObjectStorage", files: Sequence[LakeFile], folder: Path) -> list[Path]:
    """Bring files of the lake to this machine as :func:`fetch` does, several at once.

    Args:
        storage: has the lake.
        files: the files.
        folder: where to put them, if the lake is a bucket.

    Returns:
        the local files, in the same order.

    Raises:
        LostFileError: one is not there.
    """

    def one(file: LakeFile) -> Path:
        try:
            return fetch(storage, file.path, folder / file.path.replace("/", "-"))
        except FileNotFoundError:
            raise LostFileError(
                f"{storage.lake_url(file.path)} does not exist, but pipeline.lake_files has it: it was deleted. "
                "Restore it, from a backup or an earlier version of the object, and run this again."
            ) from None

    with ThreadPoolExecutor(_FETCHES) as pool:
        return list(pool.map(one, files))

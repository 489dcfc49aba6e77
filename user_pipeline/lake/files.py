"""The files of the lake: where the partitions of assets are, and how a file comes to this machine."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from user_pipeline.errors import PermanentError

if TYPE_CHECKING:
    from user_pipeline.engines.duckdb import Engine
    from user_pipeline.resources.storage import ObjectStorage


class MissingPartitionError(PermanentError):
    """A partition that is to be read was never written."""

    def __init__(self, asset: str, partition: str, where: str) -> None:
        super().__init__(
            f"{asset} has no partition {partition}: {where} does not exist. Materialize it first: "
            f"dagster asset materialize -m user_pipeline.definitions --select {asset} --partition {partition}"
        )


def partition_path(asset: str, partition: str) -> str:
    """Where the lake keeps a partition: ``[<key prefix>/]<asset>/date=<partition>/<asset>.parquet``."""
    return f"{asset}/date={partition}/{asset.rpartition('/')[-1]}.parquet"


def export_path(table: str, partition: str) -> str:
    """Where the lake keeps an export."""
    return f"exports/{table}/date={partition}/{table}.csv"


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


def fetch_partitions(storage: "ObjectStorage", engine: "Engine", asset: str, partitions: Sequence[str]) -> list[Path]:
    """Bring partitions that are Parquet files to this machine, as :func:`fetch` does.

    Raises:
        MissingPartitionError: one is not there.
    """
    scratch = engine.new_scratch(asset.rpartition("/")[-1])
    files = []
    for partition in partitions:
        path = partition_path(asset, partition)
        try:
            files.append(fetch(storage, path, scratch / f"{partition}.parquet"))
        except FileNotFoundError:
            raise MissingPartitionError(asset, partition, storage.lake_url(path)) from None
    return files

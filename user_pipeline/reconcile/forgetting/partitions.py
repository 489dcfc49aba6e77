"""Put files without some people in the place of the files of partitions that have rows of them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from user_pipeline.lake.partitions import LakeFile, partition_lines, partitions_in, register

if TYPE_CHECKING:
    from datetime import date

    from user_pipeline.reconcile.forgetting.files import PeopleFiles
    from user_pipeline.resources.postgres import Transaction


def replace_files(
    transaction: "Transaction", files: "PeopleFiles", asset: str, known: Mapping[str, LakeFile]
) -> list[dict[str, Any]]:
    """Do so for all partitions of an asset; each keeps its version, so that none counts as materialized again.

    Args:
        transaction: on the database of its registry, within a commit.
        files: says what is of the people, and writes anew.
        asset: whose partitions.
        known: new files that are there already, by the path of the old ones; others are added.

    Returns:
        the lines of the log.
    """
    moved = dict(known)
    versions: dict[date, int] = dict(
        transaction.fetch("select day, version from pipeline.lake_partitions where asset = $1", (asset,))
    )
    by_version: dict[int, dict[date, list[LakeFile]]] = {}
    for day, there in partitions_in(transaction, asset).items():
        for file in there:
            if file.path not in moved and files.rows(file.path):
                moved[file.path], local = files.without(file.path)
                local.unlink()
        if any(file.path in moved for file in there):
            new = [moved.get(file.path, file) for file in there]
            by_version.setdefault(versions[day], {})[day] = new
    lines: list[dict[str, Any]] = []
    for version, partitions in by_version.items():
        register(transaction, asset, partitions, version)
        lines += partition_lines(asset, partitions, version)
    return lines

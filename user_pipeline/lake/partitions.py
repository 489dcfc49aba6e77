"""The files of partitions, in the registry's tables and in its logs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from user_pipeline.resources.postgres import among

if TYPE_CHECKING:
    from user_pipeline.resources.postgres import Transaction


@dataclass(frozen=True, slots=True)
class LakeFile:
    """A file of a partition.

    Attributes:
        path: where the lake has it.
        rows: how many rows it has.
        size: bytes.
    """

    path: str
    rows: int
    size: int


def register(
    transaction: "Transaction", asset: str, partitions: Mapping[date, Sequence[LakeFile]], version: int
) -> None:
    """Replace the files of some partitions; a part of :meth:`.Registry.commit`.

    Args:
        transaction: on the database of the registry.
        asset: whose partitions they are.
        partitions: the files of each, which the lake has already.
        version: of the commit.
    """
    import pyarrow as pa

    days = pa.table({"day": pa.array(partitions, pa.date32())})
    columns = [(day, file.path, file.rows, file.size) for day, there in partitions.items() for file in there]
    schema = pa.schema([("day", pa.date32()), ("path", pa.string()), ("rows", pa.int64()), ("size", pa.int64())])
    new = pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in columns], schema)
    transaction.load("committed_days", days.to_reader())
    transaction.load("committed_files", new.to_reader())
    transaction.execute(
        """
        update pipeline.lake_files f set superseded_at = clock_timestamp() from committed_days d
        where f.asset = $1 and f.day = d.day and f.superseded_at is null
          and not exists (select from committed_files n where n.day = f.day and n.path = f.path)
        """,
        (asset,),
    )
    transaction.execute(
        """
        insert into pipeline.lake_files (asset, day, path, rows, size, version)
        select $1::text, day, path, rows, size, $2::bigint from committed_files
        on conflict (asset, day, path) do update set superseded_at = null
        """,
        (asset, version),
    )
    transaction.execute(
        """
        insert into pipeline.lake_partitions (asset, day, version)
        select $1::text, day, $2::bigint from committed_days
        on conflict (asset, day) do update set version = excluded.version
        """,
        (asset, version),
    )
    transaction.execute("drop table committed_days, committed_files")


def partition_lines(asset: str, partitions: Mapping[date, Sequence[LakeFile]], version: int) -> list[dict[str, Any]]:
    """The lines of a log that tell of :func:`register`."""
    return [
        {
            "kind": "partition",
            "asset": asset,
            "day": day.isoformat(),
            "version": version,
            "files": [{"path": file.path, "rows": file.rows, "size": file.size} for file in there],
        }
        for day, there in partitions.items()
    ]


def partitions_in(
    transaction: "Transaction", asset: str, days: Sequence[date] | None = None
) -> dict[date, list[LakeFile]]:
    """The files of each partition of an asset that was written, as a transaction sees them; oldest day first.

    Args:
        transaction: on the database of the registry.
        asset: its name.
        days: only these; None for all.
    """
    found: dict[date, list[LakeFile]] = {}
    chosen = "true" if days is None else among("p.day", days)
    for day, path, rows, size in transaction.fetch(
        "select p.day, f.path, f.rows, f.size from pipeline.lake_partitions p left join pipeline.lake_files f "
        "on f.asset = p.asset and f.day = p.day and f.superseded_at is null "
        f"where p.asset = $1 and {chosen} order by p.day, f.path",
        (asset,),
    ):
        there = found.setdefault(day, [])
        if path is not None:
            there.append(LakeFile(path, rows, size))
    return found

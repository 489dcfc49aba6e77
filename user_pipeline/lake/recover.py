"""Fill the registry of a new database from its logs, and replace all logs by a checkpoint."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date
from itertools import groupby
from typing import TYPE_CHECKING, Any

from user_pipeline.errors import PermanentError
from user_pipeline.lake.identity import FORMAT, FormatError
from user_pipeline.lake.log import Log, logs, read_log, write_log
from user_pipeline.lake.partitions import LakeFile, partition_lines
from user_pipeline.lake.registry import Registry, begin_commit, create_registry

if TYPE_CHECKING:
    from user_pipeline.resources.postgres import Transaction

CHECKPOINT = "checkpoint"
"""The asset in the header of a checkpoint: a log of all that still counts of the logs before it."""

Lines = Iterator[Mapping[str, Any]]


class NotEmptyError(PermanentError):
    """A database that is to be filled from the lake is not a new one."""


def is_empty(registry: Registry) -> bool:
    """Whether nothing was ever committed to a database."""
    with registry.database.transaction() as transaction:
        create_registry(transaction)
        return not transaction.fetch("select from pipeline.lake_commits limit 1")


def recover(registry: Registry, restore: Callable[["Transaction", Lines], None] | None = None) -> int:
    """Fill a new database from its logs in the lake, in one transaction.

    Args:
        registry: of the database.
        restore: brings the lines of a log that are not about partitions into their tables, in their order; None for a
            database without such lines.

    Returns:
        how many logs were read.

    Raises:
        NotEmptyError: the database is not a new one.
        FormatError, OtherLakeError: it does not go with the lake.
    """
    partitions: dict[tuple[str, date], tuple[int, list[LakeFile]]] = {}
    found = _since_checkpoint(registry)
    with registry.database.transaction() as transaction:
        create_registry(transaction)
        transaction.execute("lock table pipeline.lake_commits in share row exclusive mode")
        if transaction.fetch("select from pipeline.lake_commits limit 1"):
            raise NotEmptyError(
                f"the database of {registry.database.database.variable} is not empty: only new databases are filled "
                "from the lake. To do that, drop its schemas public and pipeline first."
            )
        registry.join(transaction, recovering=True)
        for log in found:
            lines = _read(registry, log)
            header = next(lines)
            transaction.execute(
                "insert into pipeline.lake_commits (version, asset, run_id) overriding system value "
                "values ($1, $2, $3)",
                (log.version, header["asset"], header["run_id"]),
            )
            others = _take_partitions(lines, log.version, partitions)
            if restore is None:
                for _ in others:
                    pass
            else:
                restore(transaction, others)
        _fill(transaction, partitions)
        if found:
            _go_on_after(transaction, found[-1].version)
    return len(found)


def _since_checkpoint(registry: Registry) -> list[Log]:
    """The last checkpoint and the logs after it; all logs if there is none."""
    wanted: list[Log] = []
    for log in reversed(logs(registry.storage, registry.name)):
        wanted.append(log)
        if next(_read(registry, log))["asset"] == CHECKPOINT:
            break
    return wanted[::-1]


def _read(registry: Registry, log: Log) -> Iterator[dict[str, Any]]:
    lines = read_log(registry.storage, log)
    header = next(lines)
    if header.get("format") != FORMAT:
        raise FormatError(registry.storage.lake_url(log.path), header.get("format"))
    yield header
    yield from lines


def _take_partitions(
    lines: Iterable[Mapping[str, Any]], version: int, partitions: dict[tuple[str, date], tuple[int, list[LakeFile]]]
) -> Lines:
    """Add the lines about partitions to ``partitions``; the others are passed on."""
    for line in lines:
        if line["kind"] == "partition":
            files = [LakeFile(file["path"], file["rows"], file["size"]) for file in line["files"]]
            partitions[line["asset"], date.fromisoformat(line["day"])] = (line.get("version", version), files)
        else:
            yield line


def _fill(transaction: "Transaction", partitions: Mapping[tuple[str, date], tuple[int, list[LakeFile]]]) -> None:
    import pyarrow as pa

    there = pa.schema([("asset", pa.string()), ("day", pa.date32()), ("version", pa.int64())])
    rows = [{"asset": asset, "day": day, "version": version} for (asset, day), (version, _) in partitions.items()]
    transaction.append("lake_partitions", pa.Table.from_pylist(rows, there).to_reader(), "pipeline")
    columns = pa.schema([*there, ("path", pa.string()), ("rows", pa.int64()), ("size", pa.int64())])
    files = [
        {"asset": asset, "day": day, "version": version, "path": file.path, "rows": file.rows, "size": file.size}
        for (asset, day), (version, there) in partitions.items()
        for file in there
    ]
    transaction.append("lake_files", pa.Table.from_pylist(files, columns).to_reader(), "pipeline")


def checkpoint(registry: Registry, lines: "Callable[[Transaction], Lines] | None" = None) -> Log:
    """Write a log of all that counts, as a commit of its own. Older logs are not needed any more.

    Its version is above that of every log, also if the database was restored from a backup and does not have the last
    commits.

    Args:
        registry: of the database.
        lines: gives what else the checkpoint is to hold beside the partitions.
    """
    with registry.database.transaction() as transaction:
        transaction.execute("lock table pipeline.lake_commits in share row exclusive mode")
        newest = max((log.version for log in logs(registry.storage, registry.name)), default=0)
        [(known,)] = transaction.fetch("select last_value from pipeline.lake_commits_version_seq")
        if newest > known:
            _go_on_after(transaction, newest)
        version = begin_commit(transaction, CHECKPOINT, "")

        def told() -> Lines:
            yield from _partition_lines(transaction)
            if lines:
                yield from lines(transaction)

        header = {"asset": CHECKPOINT, "run_id": ""}
        return write_log(registry.storage, registry.name, version, header, told())


def _go_on_after(transaction: "Transaction", version: int) -> None:
    """Give the next commit a version above this one."""
    transaction.fetch("select setval('pipeline.lake_commits_version_seq', $1::bigint)", (version,))


def _partition_lines(transaction: "Transaction") -> Lines:
    rows = transaction.fetch(
        "select p.asset, p.day, p.version, f.path, f.rows, f.size from pipeline.lake_partitions p "
        "left join pipeline.lake_files f on f.asset = p.asset and f.day = p.day and f.superseded_at is null "
        "order by 1, 2, 4"
    )
    for (asset, day, version), files in groupby(rows, key=lambda row: row[:3]):
        there = [LakeFile(path, count, size) for *_, path, count, size in files if path is not None]
        yield from partition_lines(asset, {day: there}, version)

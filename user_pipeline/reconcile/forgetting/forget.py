"""Forget people: in tables, in all files of the lake, and in what will be delivered.

The steps follow the flow of data: staging with its files, the marts with theirs, snapshots that counted the people,
exports, and last every file that nothing refers to any more. Each step is a transaction, or can be done again; one that
was done finds nothing. So it may be killed anywhere, and started again with the same people.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from user_pipeline.ingest.feeds import FEEDS
from user_pipeline.ingest.suppression import SUPPRESSED, Suppression, named_user
from user_pipeline.ingest.vacuum import delete, fold_logs, is_data_file, referred
from user_pipeline.reconcile.forgetting.analytics import TABLES, days_to_remake, forget_in_analytics, remake_days
from user_pipeline.reconcile.forgetting.files import FOLDERS, PeopleFiles
from user_pipeline.reconcile.forgetting.staging import forget_in_staging
from user_pipeline.resources.postgres import quote
from user_pipeline.warehouse.tables import exists

if TYPE_CHECKING:
    from user_pipeline.engines.base import Engine
    from user_pipeline.lake.lake import Lake


@dataclass(frozen=True, slots=True)
class Found:
    """What is stored of some people in one place.

    Attributes:
        place: a table, or a folder of the lake.
        rows: how many rows, or rejected lines.
        files: in how many files; None for a table.
    """

    place: str
    rows: int
    files: int | None = None


def survey(lake: "Lake", engine: "Engine", user_ids: Sequence[int]) -> Iterator[Found]:
    """All that is stored of some people, place by place; places without anything included."""
    yield from _survey(PeopleFiles(lake, engine, user_ids))


def not_suppressed(lake: "Lake", user_ids: Sequence[int]) -> int:
    """How many of some people's lines would be kept if they were delivered."""
    suppression = Suppression.of(lake.staging)
    return sum(suppression is None or user_id not in suppression for user_id in user_ids)


def forget(lake: "Lake", engine: "Engine", user_ids: Sequence[int]) -> None:
    """Take people out of all that is stored, and keep out what is delivered of them.

    A run that has read of them before, and has not committed yet, fails and reads again. Files are deleted at once,
    not after the two days in which others may still be reading them: whoever reads one of them meanwhile fails and
    has to begin again, which is better than that a person who asked to be forgotten is there for two days more.

    Raises:
        LostTableError: a mart was dropped or emptied by someone else; ``user-pipeline rebuild`` goes first.
    """
    files = PeopleFiles(lake, engine, user_ids)
    forget_in_staging(files)
    forget_in_analytics(files)
    remake_days(files)
    for path in files.exports():
        if files.rows_of_export(path):
            files.clean_export(path)
    _delete_leftovers(files)
    fold_logs(lake)


def _survey(files: PeopleFiles) -> Iterator[Found]:
    lake = files.lake
    for folder in FOLDERS:
        rows = [count for path in _data_files(lake, folder) if (count := files.rows(path))]
        yield Found(folder, sum(rows), len(rows))
    exports = [count for path in files.exports() if (count := files.rows_of_export(path))]
    yield Found("exports", sum(exports), len(exports))
    for database, tables in ((lake.staging, [feed.name for feed in FEEDS]), (lake.analytics, TABLES)):
        database.open()
        for table in tables:
            with database.database.transaction() as transaction:
                rows_there = 0
                if exists(transaction, table):
                    [(rows_there,)] = transaction.fetch(
                        f"select count(*) from public.{quote(table)} where user_id in {files.among}"
                    )
            yield Found(f"table {table}", int(rows_there))
    yield Found("table rejected_lines", _rejected_lines(files))
    yield Found("days of snapshots to be made anew", len(days_to_remake(lake)))


def _rejected_lines(files: PeopleFiles) -> int:
    """How many lines of the table give the ids of the people."""
    found = 0
    for feed in FEEDS:
        with files.lake.staging.database.transaction() as transaction, files.engine.connect() as connection:
            if not exists(transaction, "rejected_lines"):
                continue
            rows = transaction.stream(
                f"select line from public.rejected_lines where feed = '{feed.name}' and reason <> '{SUPPRESSED}'"
            )
            connection.register("rejected", rows)
            [(count,)] = connection.execute(
                f"select count(*) from rejected where {named_user(feed, 'line')} in {files.among}"
            ).fetchall()
            found += count
    return found


def _data_files(lake: "Lake", folder: str) -> Iterator[str]:
    for page in lake.storage.lake.list(folder, chunk_size=10_000):
        yield from (item["path"] for item in page if is_data_file(item["path"]))


def _delete_leftovers(files: PeopleFiles) -> None:
    """Delete every file with rows of the people that nothing refers to.

    Nothing will refer to one of them later: who has read of the people before they were forgotten does not commit any
    more.
    """
    lake = files.lake
    kept = referred(lake)
    stale = []
    for folder in FOLDERS:
        for path in _data_files(lake, folder):
            # Somebody else may have removed it.
            with suppress(FileNotFoundError):
                if path not in kept and files.rows(path):
                    stale.append(path)
    delete(lake.storage.lake, stale)

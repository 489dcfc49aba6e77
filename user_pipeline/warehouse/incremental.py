"""Incremental tables: replace the daily aggregates of some days, and apply only what that changes.

The engine compares the new aggregates with those the days had before, which are files of the lake. What differs is
copied into temporary tables, from which the statements of ``sql/<table>.sql`` bring it into the table.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import narwhals as nw

from user_pipeline.engines.frames import to_reader
from user_pipeline.engines.parquet import read_parquet, write_parquet
from user_pipeline.lake.partitions import LakeFile, partitions_in
from user_pipeline.lake.parts import FromLake, IntoLake, Part, one_by_one
from user_pipeline.lake.transfer import fetch_all
from user_pipeline.resources.postgres import Transaction
from user_pipeline.transforms.marts import (
    add_up_page_views,
    changed_page_views,
    last_views,
    latest_updates,
    users_without_update,
    with_emails,
)
from user_pipeline.warehouse.statements import statements
from user_pipeline.warehouse.tables import create_marts, require_marts

if TYPE_CHECKING:
    import pyarrow as pa

    from user_pipeline.engines.base import Engine
    from user_pipeline.resources.storage import ObjectStorage
    from user_pipeline.transforms import Frame

SHARED_FOLDER = "daily/shared"
"""Folder of the lake for rows of a query, while executors join them with aggregates in a merge."""
_FETCHED_AT_ONCE = 32
"""How many files of earlier days are searched at once at most."""


@dataclass(frozen=True, slots=True)
class Aggregates:
    """The daily aggregates of a table, as its transaction sees them.

    Attributes:
        new: the files of each day that is replaced.
        old: the files those days had before, those without rows left out.
        earlier: the files of the days before them, latest first.
        is_first: whether no other day has rows.
    """

    new: Mapping[date, Sequence[Part]]
    old: Sequence[LakeFile]
    earlier: Sequence[LakeFile]
    is_first: bool

    @property
    def files(self) -> list[Part]:
        """The new files, oldest day first."""
        return [part for day in sorted(self.new) for part in self.new[day]]

    @classmethod
    def of(cls, transaction: Transaction, table: str, new: Mapping[date, Sequence[Part]]) -> "Aggregates":
        """Those of a table whose lock the transaction holds."""
        known = {day: [file for file in there if file.rows] for day, there in partitions_in(transaction, table).items()}
        return cls(
            new=new,
            old=[file for day in new for file in known.get(day, [])],
            earlier=[file for day in sorted(known, reverse=True) if day < min(new) for file in known[day]],
            is_first=not any(there for day, there in known.items() if day not in new),
        )


class Merge:
    """Brings new daily aggregates into the incremental tables, in one transaction.

    Args:
        transaction: on the analytics database; its tables are made if they are missing.
        engine: compares the aggregates.
        storage: has the lake.
    """

    def __init__(self, transaction: Transaction, engine: "Engine", storage: "ObjectStorage") -> None:
        self._transaction = transaction
        self._engine = engine
        self._storage = storage
        self._put: list[LakeFile] = []

    def apply(self, table: str, new: Mapping[date, Sequence[Part]]) -> None:
        """Replace the aggregates of some days, which follow each other.

        Args:
            table: ``users`` or ``user_page_views``.
            new: the Parquet files of each day, as the transforms of the marts give them.

        Raises:
            LostTableError: the table, or the registry of its other days, is gone.
        """
        create_marts(self._transaction)
        self._transaction.execute(statements(table)["lock"])
        require_marts(self._transaction)
        days = Aggregates.of(self._transaction, table, new)
        if table == "users":
            self._users(days)
        elif days.is_first and not days.old:
            self._first_page_views(days)
        else:
            self._page_views(days)
        if self._put:
            # They hold ids and e-mails, and are not read again. Those of a merge that failed are removed by vacuum.
            self._storage.lake.delete([file.path for file in self._put])
            self._put.clear()

    def _users(self, days: Aggregates) -> None:
        sql = statements("users")
        first, end = f"'{min(days.new)}'", f"'{max(days.new) + timedelta(days=1)}'"
        new = self._rows(days.files)
        self._load("arriving", latest_updates(new))
        if days.old:
            self._load("leaving", users_without_update(self._rows(days.old), new))
        else:
            self._transaction.execute(sql["nobody_leaves"])
        self._transaction.execute(sql["lost"].format(first=first, end=end))
        self._find("lost", ["user_id"], days)
        self._transaction.execute(sql["latest"].format(end=end))
        for name in ("analyze", "delete", "upsert", "emails", "recommendation_emails"):
            self._transaction.execute(sql[name])

    def _first_page_views(self, days: Aggregates) -> None:
        """Fill the empty table with the sum of the days; its key is made when all rows are there."""
        emails = self._fetched("emails", "select user_id, email from public.users")
        summed = with_emails(add_up_page_views(self._rows(days.files)), self._shared(emails, days))
        self._transaction.append("user_page_views", to_reader(summed.sort("user_id", "url")), "public")
        self._transaction.execute(statements("user_page_views")["create_key"])

    def _page_views(self, days: Aggregates) -> None:
        sql = statements("user_page_views")
        self._transaction.execute(sql["create_key"])
        if not days.old:
            self._transaction.load("added", self._sum(days))
            self._transaction.execute(sql["add"])
            return
        file = self._engine.new_scratch("changes") / "changes.parquet"
        self._engine.write(changed_page_views(self._rows(days.files), self._rows(days.old)), file)
        changes = self._engine.read([file])
        is_added = nw.col("old_last_viewed").is_null()
        self._load("added", changes.filter(is_added).drop("old_last_viewed").sort("user_id", "url"))
        self._load("changed", changes.filter(~is_added).sort("user_id", "url"))
        for name in ("added", "changed"):
            self._transaction.execute(f"analyze {name}")
        for name in ("delete", "update", "add", "lost"):
            self._transaction.execute(sql[name])
        self._find("lost", ["user_id", "url"], days)
        self._transaction.execute(sql["last_viewed"])

    def _sum(self, days: Aggregates) -> "pa.RecordBatchReader":
        """The pairs of new days, added up; those of a single day are read from its file as they are."""
        if len(days.new) == 1:
            local = one_by_one(self._storage, self._engine, days.files)
            return read_parquet(local, ["user_id", "url", "count", "last_viewed"])
        return to_reader(add_up_page_views(self._rows(days.files)).sort("user_id", "url"))

    def _find(self, table: str, key: list[str], days: Aggregates) -> None:
        """Look for the keys of a temporary table in earlier days, and fill ``found`` with the latest row of each.

        The latest days are searched first, then more and more of them at once, until all keys are found.
        """
        latest = latest_updates if key == ["user_id"] else last_views
        lost = self._fetched(table, f"select * from {table}")
        folder = self._engine.new_scratch("found")
        found: list[Path] = []
        for part in _growing(days.earlier):
            if not self._engine.count([lost]):
                break
            file = folder / f"{len(found)}.parquet"
            self._engine.write(latest(self._rows(part).join(self._shared(lost, days), on=key, how="semi")), file)
            left = folder / f"lost-{len(found)}.parquet"
            self._engine.write(self._engine.read([lost]).join(self._engine.read([file]), on=key, how="anti"), left)
            found.append(file)
            lost = left
        if found:
            self._transaction.append("found", read_parquet(found))

    def _rows(self, files: Sequence[Part]) -> "Frame":
        return self._engine.rows(FromLake(self._storage), files)

    def _shared(self, file: Path, days: Aggregates) -> "Frame":
        """The rows of a local file, to be joined with aggregates; a copy in the lake is removed after the merge."""
        into = IntoLake(self._storage, SHARED_FOLDER, max(days.new))

        def put(engine: "Engine", local: Path, rows: int) -> LakeFile:
            self._put.append(into(engine, local, rows))
            return self._put[-1]

        return self._engine.share(file, put, FromLake(self._storage))

    def _fetched(self, name: str, sql: str) -> Path:
        """The rows of a query as a local file."""
        file = self._engine.new_scratch(name) / f"{name}.parquet"
        write_parquet(self._transaction.stream(sql), file)
        return file

    def _load(self, table: str, rows: "Frame") -> None:
        self._transaction.load(table, to_reader(rows))


def refresh(transaction: Transaction, engine: "Engine", storage: "ObjectStorage", table: str) -> int:
    """Bring a table in line with the daily aggregates of all days; only rows that differ are written.

    Args:
        transaction: on the analytics database. ``users`` comes first: the other table has its e-mails.
        engine: adds the aggregates up.
        storage: has the lake.
        table: ``users`` or ``user_page_views``.

    Returns:
        how many rows were changed.
    """
    sql = statements(table)
    # Locks all tables that hold e-mails, in the order in which the writers do.
    transaction.execute(statements("users")["lock"])
    files = [file for there in partitions_in(transaction, table).values() for file in there]
    if not files:
        transaction.execute(sql["nothing_expected"])
    else:
        daily = engine.read(fetch_all(storage, files, engine.new_scratch("aggregates")))
        total = latest_updates(daily) if table == "users" else add_up_page_views(daily).sort("user_id", "url")
        transaction.load("expected", to_reader(total))
    transaction.execute("analyze expected")
    changed = 0
    for name in ("delete_unexpected", "upsert_expected"):
        if name == "upsert_expected" and "create_key" in sql:
            transaction.execute(sql["create_key"])
        [(rows,)] = transaction.fetch(f"with changed as ({sql[name]} returning 1) select count(*) from changed")
        changed += rows
    transaction.execute("drop table expected")
    return changed


def _growing(files: Sequence[LakeFile]) -> Iterator[Sequence[LakeFile]]:
    """The files in parts of 1, 2, 4, … of them."""
    start, size = 0, 1
    while start < len(files):
        yield files[start : start + size]
        start, size = start + size, min(2 * size, _FETCHED_AT_ONCE)

"""The file registry: which files of the lake make up each partition.

Each database has one, in its schema ``pipeline``, for the assets whose tables it has. What a partition is made of
changes in the transaction that changes the table, so lake and table agree at every moment, and a crash leaves the old
state or the new one. A file of the lake never changes: a partition that is written again gets new files.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from user_pipeline.errors import PermanentError
from user_pipeline.lake.identity import FORMAT, FormatError, OtherLakeError, ensure_identity
from user_pipeline.lake.log import has_logs, write_log
from user_pipeline.lake.partitions import LakeFile, partition_lines, partitions_in, register
from user_pipeline.resources.postgres import among

if TYPE_CHECKING:
    from user_pipeline.resources.postgres import Postgres, Transaction
    from user_pipeline.resources.storage import ObjectStorage

_TABLES = ("lake", "lake_commits", "lake_partitions", "lake_files")
_REMOVALS = ("removals", "days_to_remake")
_SCHEMA = "pipeline"


class MissingPartitionError(PermanentError):
    """A partition that is to be read was never written."""

    def __init__(self, asset: str, day: date | str) -> None:
        super().__init__(
            f"{asset} has no partition {day}. Materialize it first: "
            f"dagster asset materialize -m user_pipeline.definitions --select {asset} --partition {day}"
        )


class LostRegistryError(PermanentError):
    """A database has no registry of a lake that it has written to before: it is a new one."""


class ForgottenMeanwhileError(Exception):
    """What is to be committed was read before people or old days were removed. The next attempt reads what is left."""

    def __init__(self) -> None:
        super().__init__(
            "data were removed from lake and tables (`user-pipeline forget`, or the end of their retention) after this "
            "was read, and it may still hold them: nothing was written, and it has to be read and made again"
        )


class Registry:
    """The file registry of one database.

    Args:
        name: ``staging`` or ``analytics``; names its logs.
        database: has the registry's tables.
        storage: has the lake.

    Attributes:
        name: as above.
        database: as above.
        storage: as above.
    """

    def __init__(self, name: str, database: "Postgres", storage: "ObjectStorage") -> None:
        self.name = name
        self.database = database
        self.storage = storage
        self._is_open = False
        self._removals = 0

    def open(self) -> None:
        """Make the tables if they are missing, and see that database and lake belong together.

        Raises:
            FormatError: one of them was written by another version of this package.
            OtherLakeError: the database belongs to another lake.
            LostRegistryError: the database is new, but has written to this lake before.
        """
        if self._is_open:
            return
        with self.database.transaction() as transaction:
            create_registry(transaction)
            self.join(transaction)
            self._removals = _removals(transaction)
        self._is_open = True

    def join(self, transaction: "Transaction", *, recovering: bool = False) -> None:
        """Note the lake in a new database, and see that a known one belongs to this lake.

        Args:
            transaction: on the database.
            recovering: whether the database is new though it has written to the lake.

        Raises:
            FormatError, OtherLakeError, LostRegistryError: see :meth:`open`.
        """
        variable = self.database.database.variable
        known = transaction.fetch("select lake_id, format from pipeline.lake")
        if known and known[0][1] != FORMAT:
            raise FormatError(f"the database of {variable}", known[0][1])
        if not known and not recovering and has_logs(self.storage, self.name):
            raise LostRegistryError(
                f"the database of {variable} knows nothing of the lake {self.storage.lake_url('')}, which it has "
                "written to: it is a new one. `user-pipeline recover` fills it again from the lake."
            )
        here = ensure_identity(self.storage)
        if known and known[0][0] != here.lake_id:
            raise OtherLakeError(
                f"the database of {variable} belongs to another lake than USER_PIPELINE_LAKE_URL names, "
                f"{self.storage.lake_url('')}. Set the lake it was filled from, or give this lake empty databases."
            )
        if not known:
            transaction.execute(
                "insert into pipeline.lake (lake_id, format) values ($1, $2) on conflict do nothing",
                (here.lake_id, FORMAT),
            )

    def assets(self) -> list[str]:
        """The assets that have partitions."""
        self.open()
        with self.database.transaction() as transaction:
            found = transaction.fetch("select distinct asset from pipeline.lake_partitions order by asset")
        return [asset for (asset,) in found]

    def partitions(self, asset: str, days: Sequence[date] | None = None) -> dict[date, list[LakeFile]]:
        """The files of each partition of an asset that was written.

        Args:
            asset: its name.
            days: only these; None for all.
        """
        self.open()
        with self.database.transaction() as transaction:
            return partitions_in(transaction, asset, days)

    def files(self, asset: str, days: Sequence[date]) -> dict[date, list[LakeFile]]:
        """The files of some partitions of an asset.

        Raises:
            MissingPartitionError: one of them was never written.
        """
        found = self.partitions(asset, days)
        for day in days:
            if day not in found:
                raise MissingPartitionError(asset, day)
        return found

    def versions(self, asset: str, days: Sequence[date] | None = None) -> dict[date, int]:
        """The commit that each partition of an asset was last written by."""
        self.open()
        with self.database.transaction() as transaction:
            chosen = "true" if days is None else among("day", days)
            return dict(
                transaction.fetch(
                    f"select day, version from pipeline.lake_partitions where asset = $1 and {chosen}", (asset,)
                )
            )

    def begin(self, transaction: "Transaction", asset: str, run_id: str, *, removing: bool = False) -> int:
        """Begin the commit of something that was made from what was read since :meth:`open`; see :func:`begin_commit`.

        Args:
            transaction: on this database.
            asset: what is committed.
            run_id: who does.
            removing: whether it removes people or days from all that is stored. Then no process commits what it read
                before that.

        Raises:
            ForgottenMeanwhileError: something was removed since then.
        """
        version = begin_commit(transaction, asset, run_id)
        known, self._removals = self._removals, _removals(transaction)
        if removing:
            transaction.execute("insert into pipeline.removals (version) values ($1::bigint)", (version,))
            self._removals = version
        elif self._is_open and known != self._removals:
            raise ForgottenMeanwhileError
        return version

    def commit(
        self,
        transaction: "Transaction",
        asset: str,
        partitions: Mapping[date, Sequence[LakeFile]],
        run_id: str,
        lines: Iterable[Mapping[str, Any]] = (),
    ) -> int:
        """Replace the registered files of some partitions, as the last step of a transaction.

        Other commits to this database wait until the transaction ends; readers do not.

        Args:
            transaction: on this database; :meth:`open` was called before it began.
            asset: whose partitions they are.
            partitions: the files of each, which the lake has already.
            run_id: who wrote them.
            lines: what else the log is to say.

        Returns:
            the version of the commit.
        """
        version = self.begin(transaction, asset, run_id)
        register(transaction, asset, partitions, version)
        told = partition_lines(asset, partitions, version)
        write_log(self.storage, self.name, version, {"asset": asset, "run_id": run_id}, [*told, *lines])
        return version


def create_registry(transaction: "Transaction") -> None:
    """Make the tables of a registry unless they are there."""
    script = files("user_pipeline.lake").joinpath("sql/create_registry.sql")
    transaction.make_missing(_TABLES, lambda: transaction.execute(script.read_text(encoding="utf-8")), _SCHEMA)
    removals = files("user_pipeline.lake").joinpath("sql/create_removals.sql")
    transaction.make_missing(_REMOVALS, lambda: transaction.execute(removals.read_text(encoding="utf-8")), _SCHEMA)


def begin_commit(transaction: "Transaction", asset: str, run_id: str) -> int:
    """Take the next version of a registry. Other commits wait until the transaction ends.

    There is no deadlock, because every transaction takes its locks in one order: first those on the tables of the
    schema ``public`` that it changes, then this one. Rows of the other tables of the schema ``pipeline`` are changed
    only after that.
    """
    transaction.execute("lock table pipeline.lake_commits in share row exclusive mode")
    [(version,)] = transaction.fetch(
        "insert into pipeline.lake_commits (asset, run_id) values ($1, $2) returning version", (asset, run_id)
    )
    return int(version)


def _removals(transaction: "Transaction") -> int:
    """The last commit that removed people or days; 0 if none did."""
    [(version,)] = transaction.fetch("select coalesce(max(version), 0) from pipeline.removals")
    return int(version)

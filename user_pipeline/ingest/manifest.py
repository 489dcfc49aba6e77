"""The object manifest: which objects were read, and what each of them brought.

It is two tables of the staging database: ``pipeline.ingested_objects`` with a row an object, and
``pipeline.ingested_days`` with a row for each object and day. They are never loaded whole: each method is a query that
reads what it needs, and a commit writes what is new.

Rows are kept in *part files*: what one batch of objects brought for a day is in
``raw/<feed>/date=D/<name>.parquet``, and what was rejected in ``rejected/<feed>/<name>.parquet``. A row of a part file
counts if the manifest says that its object's rows of the day are in this file. So a changed object replaces what it
brought before in the moment its entry is committed.

A commit is one transaction of entries, rejected lines and version. Before it ends, a log of all of it is written to the
lake, from which the manifest can be filled again. Commits to the staging database follow each other. If two runs read
the same object, the later commit counts. If that one had the older content, the next listing shows the difference and
the object is read again.

The manifest also keeps a digest of the rows of each object and day, and the version of the commit in which they last
changed. So it knows which days have changed since any earlier version.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from user_pipeline.ingest import commit, drift, manifest_log
from user_pipeline.ingest.entries import DayObjects, DayParts, Entry, FurtherField, PartFile, Unfetched
from user_pipeline.ingest.feeds import Feed
from user_pipeline.ingest.look import Look
from user_pipeline.ingest.manifest_entries import BROUGHT, entries_sql, failures, of_keys, to_entry
from user_pipeline.ingest.manifest_tables import create_manifest
from user_pipeline.ingest.rejects import create_rejects, replace_rejects
from user_pipeline.ingest.retirement import NOT_RETIRED
from user_pipeline.lake.log import write_log
from user_pipeline.lake.partitions import LakeFile
from user_pipeline.lake.registry import Registry
from user_pipeline.resources.postgres import among, literal

if TYPE_CHECKING:
    import pyarrow as pa

    from user_pipeline.resources.postgres import Transaction

_NEWEST = "(select coalesce(max(version), 0) as version from pipeline.lake_commits)"


class Manifest:
    """The objects of one feed.

    Args:
        feed: whose objects.
        registry: of the staging database, which has the tables.

    Attributes:
        feed: the feed.
        registry: the registry.
    """

    def __init__(self, feed: Feed, registry: Registry) -> None:
        self.feed = feed
        self.registry = registry
        self._name = literal(feed.name)
        self._is_open = False

    def open(self) -> None:
        """Make the tables if they are missing, and see that database and lake belong together.

        Raises:
            FormatError, OtherLakeError, LostRegistryError: they do not; see :meth:`Registry.open`.
        """
        if self._is_open:
            return
        self.registry.open()
        with self.registry.database.transaction() as transaction:
            create_manifest(transaction)
        self._is_open = True

    @cached_property
    def lake_id(self) -> str:
        """Tells the lake from any other: versions are of one lake."""
        [(lake_id,)] = self.fetch("select lake_id from pipeline.lake")
        return str(lake_id)

    def version(self) -> int:
        """The newest commit to the staging database; 0 before the first."""
        [(version,)] = self.fetch("select coalesce(max(version), 0) from pipeline.lake_commits")
        return int(version)

    @contextmanager
    def look(self, listing: "pa.RecordBatchReader") -> Iterator[Look]:
        """Compare a listing with what is known.

        The listing goes to the database as it comes, and is compared there.

        Args:
            listing: as :meth:`user_pipeline.resources.source.Source.list` gives it. An error of it is raised as it is.
        """
        self.open()
        with self.registry.database.transaction() as transaction:
            listed = transaction.load("listed", listing)
            # The planner then knows whether looking up each object or reading all of them is less.
            transaction.execute("analyze listed")
            yield Look(transaction, self.feed, listed)

    def parts(self, days: Sequence[date]) -> dict[date, DayParts]:
        """Where the rows of some days are."""
        found = self.fetch(
            f"""
            select v.version, d.day, max(d.version), d.path, d.file_rows, d.file_size, sum(d.rows)::bigint
            from {_NEWEST} v
            left join pipeline.ingested_days d on d.feed = {self._name} and {among("d.day", days)}
            group by v.version, d.day, d.path, d.file_rows, d.file_size order by d.day, d.path
            """
        )
        as_of = int(found[0][0])
        parts: dict[date, DayParts] = {day: DayParts(as_of, 0, ()) for day in days}
        for _, day, changed, path, rows, size, counted in found:
            # The day is null if none of the days has rows, the path is null where an object no longer brings the day.
            if day is not None:
                known = parts[day]
                more = () if path is None else (PartFile(LakeFile(path, rows, size), counted),)
                parts[day] = DayParts(as_of, max(known.changed, changed), (*known.parts, *more))
        return parts

    def objects(self, day: date) -> DayObjects:
        """Which objects brought the rows of a day, and in which part files they are."""
        found = self.fetch(
            f"""
            select v.version, d.path, o.key from {_NEWEST} v
            left join pipeline.ingested_days d on d.feed = {self._name} and d.day = '{day}' and d.rows > 0
            left join pipeline.ingested_objects o on o.feed = d.feed and o.object_id = d.object_id
            """
        )
        return DayObjects(int(found[0][0]), [(path, key) for _, path, key in found if path is not None])

    def rows(self, days: Sequence[date]) -> dict[date, int]:
        """How many rows each of some days has, from all objects."""
        found = self.fetch(
            "select day, sum(rows)::bigint from pipeline.ingested_days "
            f"where feed = {self._name} and {among('day', days)} group by day"
        )
        return {**dict.fromkeys(days, 0), **dict(found)}

    def changes(self, since: int = 0, days: Sequence[date] | None = None) -> dict[date, int]:
        """The days whose rows changed after some version, and the version in which each last did.

        Days past their retention change no more.

        Args:
            since: the version; 0 for every day that ever had rows.
            days: only these.
        """
        return dict(self.fetch(self._changes_sql(since, days)))

    def changes_in(self, transaction: "Transaction", since: int, days: Sequence[date]) -> dict[date, int]:
        """Like :meth:`changes`, as a transaction sees it."""
        return dict(transaction.fetch(self._changes_sql(since, days)))

    def _changes_sql(self, since: int, days: Sequence[date] | None) -> str:
        chosen = "true" if days is None else among("day", days)
        return (
            f"select day, max(version) from pipeline.ingested_days where feed = {self._name} "
            f"and version > {since} and {chosen} and day >= {NOT_RETIRED} group by day order by day"
        )

    def account(self) -> dict[str, int]:
        """How many ``objects`` there are, and how many ``lines``, ``rows``, ``rejected``, ``blank`` and ``header``."""
        names = {"lines": "lines", "rows": "rows", "rejected": "rejects", "blank": "blank", "header": "header"}
        [sums] = self.fetch(
            f"select count(*), {', '.join(f'coalesce(sum({column}), 0)::bigint' for column in names.values())} "
            f"from pipeline.ingested_objects where feed = {self._name}"
        )
        return dict(zip(("objects", *names), map(int, sums), strict=True))

    def reasons(self) -> dict[str, int]:
        """How many lines were rejected, by reason."""
        return dict(
            self.fetch(
                f"""
                select r.reason, sum(r.lines::bigint)::bigint from pipeline.ingested_objects
                cross join lateral jsonb_each_text(rejected) r (reason, lines)
                where feed = {self._name} and rejects > 0 group by 1 order by 1
                """
            )
        )

    def entries(self, day: date | None = None, *, since: int | None = None) -> Iterator[Entry]:
        """The objects in the order of their keys, as they are read from the database.

        Args:
            day: only those with rows of this day.
            since: only those whose entries were written after this version.
        """
        condition = "true"
        if day is not None:
            condition += f" and exists (select from pipeline.ingested_days b where {BROUGHT} and b.day = '{day}')"
        if since is not None:
            condition += f" and o.version > {since}"
        return self._entries(condition)

    def unaccounted(self) -> list[Entry]:
        """The objects with lines that are neither a row, rejected, blank nor a header."""
        return list(self._entries("o.lines <> o.rows + o.rejects + o.blank + o.header"))

    def with_rejects(self, days: Sequence[date]) -> Iterator[Entry]:
        """The objects with rejected lines that brought rows for some of these days.

        An object that brought no row at all counts for the day on which it was written and for the day before.
        """
        brought = f"exists (select from pipeline.ingested_days b where {BROUGHT} and {among('b.day', days)})"
        around = [*days, *(day + timedelta(days=1) for day in days)]
        written = among("(o.last_modified at time zone 'UTC')::date", around)
        return self._entries(f"o.rejects > 0 and ({brought} or o.rows = 0 and {written})")

    def unread(self) -> Iterator[Entry]:
        """The objects that could not be fetched, or not be read to their end."""
        return self._entries("(o.error is not null or o.start_date is null or o.failed_etag is not null)")

    def rejects_paths(self) -> list[tuple[str, str]]:
        """The file of the lake that has an object's rejected lines, and the object's key, for all that lost lines.

        Lines past their retention are in no file.
        """
        return [
            (path, key)
            for path, key in self.fetch(
                f"select rejects_path, key from pipeline.ingested_objects where feed = {self._name} and rejects > 0 "
                'and rejects_path is not null order by rejects_path, key collate "C"'
            )
        ]

    def of(self, keys: Sequence[str]) -> dict[str, Entry]:
        """The entries of some objects, by key; none for an object that is not known."""
        return {entry.key: entry for entry in self._entries(of_keys(keys))} if keys else {}

    def commit(
        self,
        entries: Sequence[Entry],
        rejects: "pa.RecordBatchReader | None" = None,
        *,
        run_id: str,
        now: datetime,
        unfetched: Sequence[Unfetched] = (),
        gone: Sequence[str] = (),
        further_fields: Sequence[FurtherField] = (),
    ) -> int:
        """Write what was read in the place of what was known of the same objects, in one transaction.

        Args:
            entries: what was read; the lake has their part files and rejects already.
            rejects: all rejected lines of these objects, for the table ``rejected_lines``; None for no lines.
            run_id: who read them.
            now: when that was.
            unfetched: what could not be fetched. What was known of such an object stays as it is.
            gone: what :meth:`Look.gone` found, to be forgotten unless someone has read it meanwhile.
            further_fields: what the rows have beyond the feed's columns.

        Returns:
            the version.
        """
        self.open()
        with self.registry.database.transaction() as transaction:
            if entries:
                create_rejects(transaction)
                commit.load_read(transaction, entries)
                replace_rejects(transaction, self.feed, [entry.key for entry in entries], rejects)
            version = self.registry.begin(transaction, self._asset, run_id)
            if entries:
                commit.replace_entries(transaction, self.feed, version)
            if unfetched:
                commit.note_failures(transaction, self.feed, failures(transaction, self.feed, unfetched, now), version)
            if further_fields:
                drift.note_fields(transaction, self.feed, further_fields, version)
            forgotten = commit.forget(transaction, self.feed, gone) if gone else []
            lines = manifest_log.object_lines(transaction, f"o.feed = {self._name} and o.version = {version}")
            forgotten_lines = (
                {"kind": manifest_log.GONE, "feed": self.feed.name, "object_id": identifier} for identifier in forgotten
            )
            new_fields = drift.field_lines(transaction, f"feed = {self._name} and version = {version}")
            header = {"asset": self._asset, "run_id": run_id}
            told = [*lines, *forgotten_lines, *new_fields]
            write_log(self.registry.storage, self.registry.name, version, header, told)
        return version

    @property
    def _asset(self) -> str:
        return f"ingested_{self.feed.name}"

    def fetch(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of one query of the manifest's tables."""
        self.open()
        with self.registry.database.transaction() as transaction:
            return transaction.fetch(sql)

    def _entries(self, condition: str) -> Iterator[Entry]:
        self.open()
        with self.registry.database.query(entries_sql(self.feed, condition)) as reader:
            for batch in reader:
                yield from map(to_entry, batch.to_pylist())

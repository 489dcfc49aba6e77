"""The object catalog: which objects were read, and what each of them brought.

A feed's catalog is one Parquet file per version, ``catalog/<feed>/<version>.parquet``; the greatest version
counts. A commit writes the next version under a name nobody else may have taken (a conditional put), so
it is there whole or not at all, and two writers at once cannot lose each other's entries: the one who
comes second reads the winner's version and adds its own to that.

Rows are kept by *batch*: what one pass of the reader brought, in ``fragments/<feed>/date=D/<batch>.parquet``
and ``rejected/<feed>/<batch>.parquet``. A row of a batch counts if the catalog says that this batch is the one
its object was last read in; so a changed object replaces what it brought before the moment its entry
is committed.

For every object and day the catalog also keeps a digest of the rows, and in which of its versions they last
changed. So it knows which days have changed since any earlier version, however long ago that was.
"""

import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from user_pipeline.ingest.arrow_sql import query
from user_pipeline.ingest.feeds import Feed

if TYPE_CHECKING:
    import pyarrow as pa

    from user_pipeline.resources.object_store import Store

_KEPT_VERSIONS = 20
"""Readers of an older version go on with it for a while."""
_COMMIT_ATTEMPTS = 100
_QUICK_ATTEMPTS = 4
"""An object that cannot be fetched is tried this often before it is left for later."""
_LONGEST_WAIT = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Failure:
    """An object's content that could not be fetched.

    Attributes:
        etag: what the store calls that content.
        error: what the store said.
        attempts: how often it was tried.
        retry_at: before this moment nobody is sent for it.
    """

    etag: str
    error: str
    attempts: int
    retry_at: datetime

    @property
    def is_standing(self) -> bool:
        """Whether it failed so often that nothing waits for it any more."""
        return self.attempts >= _QUICK_ATTEMPTS

    @classmethod
    def after(cls, earlier: "Failure | None", etag: str, error: str, now: datetime) -> "Failure":
        """One more failure: four attempts at once, then after 1, 2, 4, … hours, at most a day apart."""
        attempts = earlier.attempts + 1 if earlier and earlier.etag == etag else 1
        late = attempts - _QUICK_ATTEMPTS
        wait = min(timedelta(hours=2 ** min(late, 10)), _LONGEST_WAIT) if late >= 0 else timedelta()
        return cls(etag, error, attempts, now + wait)


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of one object.

    Attributes:
        key: its path in the source.
        etag: what the store calls this content.
        last_modified: when the store says it was written.
        size: bytes, as stored.
        batch: the pass that read it; names its fragments.
        start_date: the first day that was accepted when it was read.
        error: why it could not be read to its end; None for an object that was. A broken object brings no rows.
        lines: lines in it, counted when it was cut, before any parsing.
        blank: lines with nothing but white space.
        header: lines that repeat the column names.
        rejected: rejected lines by reason.
        days: rows by event date, counted in the fragments after they were written.
        digests: of those rows, by event date: equal for equal rows, whatever their order.
        failure: set while the object's content, or its new content, cannot be fetched; everything else then is
            of the content read before (of none, for an object that was never read).
    """

    key: str
    etag: str
    last_modified: datetime
    size: int
    batch: str
    start_date: date
    error: str | None = None
    lines: int = 0
    blank: int = 0
    header: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    days: dict[date, int] = field(default_factory=dict)
    digests: dict[date, str] = field(default_factory=dict)
    failure: Failure | None = None

    @property
    def rows(self) -> int:
        """Usable rows, of all days."""
        return sum(self.days.values())

    @property
    def rejects(self) -> int:
        """Rejected lines, for whatever reason."""
        return sum(self.rejected.values())

    @property
    def unaccounted(self) -> int:
        """Lines that are neither a row, rejected, blank nor a header: anything but 0 is a fault."""
        return self.lines - self.rows - self.rejects - self.blank - self.header


class Catalog:
    """One version of a feed's catalog; committing makes the next one.

    Attributes:
        feed: whose catalog it is.
        version: 0 before anything was read.
        table: one row per object, columns as in :class:`Entry`.
    """

    def __init__(self, feed: Feed, version: int, table: "pa.Table") -> None:
        self.feed = feed
        self.version = version
        self.table = table

    @property
    def id(self) -> str:
        """Tells this feed's catalog from that of any other lake; empty before anything was read."""
        return str((self.table.schema.metadata or {}).get(_ID, b""), "ascii")

    @classmethod
    def load(cls, lake: "Store", feed: Feed) -> "Catalog":
        """The newest version in the lake."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        while True:
            newest = max(_versions(lake, feed), default=0)
            if not newest:
                return cls(feed, 0, _schema().empty_table())
            try:
                content = lake.get(_path(feed, newest)).bytes()
            except FileNotFoundError:
                continue  # so many commits since the listing that it is gone: look again
            # On this thread alone: a thread of Arrow's that still holds the bytes when Python ends aborts the process.
            table = pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)
            return cls(feed, newest, table if "failure" in table.column_names else _upgraded(table, newest))

    def entries(self, where: "pa.compute.Expression | None" = None) -> list[Entry]:
        """The entries, or those that an Arrow expression selects."""
        table = self.table if where is None else self.table.filter(where)
        return [_to_entry(row) for row in table.to_pylist()]

    def unknown(self, listing: "pa.Table", start_date: date, now: datetime | None = None) -> "pa.Table":
        """The objects of a listing that are new, changed, or were read under a later start date.

        Args:
            listing: as :meth:`user_pipeline.resources.source.Source.list` gives it.
            start_date: the first day accepted now; objects that lost lines to a later one are read again.
            now: what could not be fetched and is to be tried again later than this is left out; None leaves
                nothing out.
        """
        return query(
            """
            select l.* from listed l left join known k on k.key = l.path
            where (k.key is null or k.etag <> l.e_tag
                or (k.start_date > $start
                  and list_contains(list_transform(k.rejected, r -> r.reason), 'out_of_range')))
              and not coalesce(k.failure.etag = l.e_tag and k.failure.retry_at > $now::timestamptz, false)
            order by l.last_modified, l.path
            """,
            {"start": start_date, "now": now},
            known=self.table,
            listed=listing,
        )

    def gone(self, listing: "pa.Table") -> list[str]:
        """The objects that were never read, or are broken, and are in the listing no more: nothing is left to mend."""
        missing = query(
            "select key from known anti join listed on path = key where error is not null or batch = '' order by key",
            known=self.table,
            listed=listing,
        )
        keys: list[str] = missing["key"].to_pylist()
        return keys

    def batches(self, days: Sequence[date]) -> dict[date, dict[str, list[str]]]:
        """Where the rows of some days are: for each day, the batches and in each the objects that count."""
        found: dict[date, dict[str, list[str]]] = {day: {} for day in days}
        for row in self._rows_by_day(days):
            found[row["day"]].setdefault(row["batch"], []).append(row["key"])
        return found

    def rows(self, days: Sequence[date]) -> dict[date, int]:
        """How many rows each of some days has, from all objects."""
        counts = dict.fromkeys(days, 0)
        for row in self._rows_by_day(days):
            counts[row["day"]] += row["rows"]
        return counts

    def changes(self, since: int = 0, days: Sequence[date] | None = None) -> dict[date, int]:
        """The days whose rows changed after some version, and the version in which each last did.

        Args:
            since: the version; 0 for every day that ever had rows.
            days: only these.
        """
        changed = query(
            """
            select d.day as day, max(d.version) as version from (select unnest(days) as d from known)
            where d.version > $since and ($days is null or list_contains($days, d.day)) group by 1 order by 1
            """,
            {"since": since, "days": None if days is None else list(days)},
            known=self.table,
        )
        return dict(zip(changed["day"].to_pylist(), changed["version"].to_pylist(), strict=True))

    def account(self) -> dict[str, int]:
        """How many ``objects`` there are, and how many ``lines``, ``rows``, ``rejected``, ``blank`` and ``header``."""
        [sums] = query(f"select count(*) as objects, {_SUMS} from known", {}, known=self.table).to_pylist()
        return {name: int(count or 0) for name, count in sums.items()}

    def unaccounted(self) -> list[Entry]:
        """The objects with lines that are neither a row, rejected, blank nor a header."""
        return self._entries(f"lines <> {_ROWS} + {_REJECTS} + blank + header", {})

    def with_rejects(self, days: Sequence[date]) -> list[Entry]:
        """The objects that lost lines, and brought rows for some of these days or none at all."""
        condition = f"{_REJECTS} > 0 and ({_ROWS} = 0 or list_has_any($days, list_transform({_THERE}, d -> d.day)))"
        return self._entries(condition, {"days": list(days)})

    def unread(self) -> list[Entry]:
        """The objects that could not be fetched, or not be read to their end."""
        return self._entries("error is not null or failure is not null", {})

    def _entries(self, condition: str, parameters: dict[str, Any]) -> list[Entry]:
        found = query(f"from known where {condition} order by key", parameters, known=self.table)
        return [_to_entry(row) for row in found.to_pylist()]

    def _rows_by_day(self, days: Sequence[date]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = query(
            """
            select d.day as day, batch, key, d.rows as rows from (select batch, key, unnest(days) as d from known)
            where list_contains($days, d.day) and d.rows > 0 order by 1, 2, 3
            """,
            {"days": list(days)},
            known=self.table,
        ).to_pylist()
        return rows

    def commit(
        self,
        lake: "Store",
        entries: Sequence[Entry],
        failures: Sequence[tuple[dict[str, Any], Failure]] = (),
        gone: Sequence[str] = (),
    ) -> "Catalog":
        """Write the next version, with these entries in place of older ones of the same objects.

        Of two writers that read the same object the later one's entry stands; if it was the older content
        that came second, the next listing shows the difference and the object is read again.

        Args:
            lake: where the catalog is.
            entries: what was read.
            failures: what could not be fetched: its row of the listing, and what happened. What was known of
                such an object stays as it is.
            gone: what :meth:`gone` found, to be forgotten unless someone has read it meanwhile.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        current = self
        for _ in range(_COMMIT_ATTEMPTS):
            changed = [*entries, *current._failing(failures)]
            table = _merge(current, pa.Table.from_pylist([_to_row(entry) for entry in changed], schema=_schema()), gone)
            sink = pa.BufferOutputStream()
            pq.write_table(table, sink, compression="zstd")
            try:
                lake.put(_path(self.feed, current.version + 1), sink.getvalue().to_pybytes(), mode="create")
            except (AlreadyExistsError, PreconditionError):
                current = Catalog.load(lake, self.feed)
                continue
            committed = Catalog(self.feed, current.version + 1, table)
            stale = [_path(self.feed, v) for v in _versions(lake, self.feed) if v <= committed.version - _KEPT_VERSIONS]
            if stale:
                lake.delete(stale)
            return committed
        raise RuntimeError(f"the catalog of {self.feed.name} changed {_COMMIT_ATTEMPTS} times while it was written")

    def of(self, keys: Sequence[str]) -> dict[str, Entry]:
        """The entries of some objects, by key; none for an object that is not known."""
        import pyarrow.compute as pc

        return {entry.key: entry for entry in self.entries(pc.field("key").isin(list(keys)))} if keys else {}

    def _failing(self, failures: Sequence[tuple[dict[str, Any], Failure]]) -> list[Entry]:
        """The entries of objects that could not be fetched, less those that someone else has read meanwhile."""
        known = self.of([item["path"] for item, _ in failures])
        entries = []
        for item, failure in failures:
            entry = known.get(item["path"])
            if entry is None:
                unread = Entry(item["path"], "", item["last_modified"], item["size"], batch="", start_date=date.max)
                entries.append(replace(unread, failure=failure))
            elif entry.etag != failure.etag:
                entries.append(replace(entry, failure=failure))
        return entries


def fragment_path(feed: Feed, day: date, batch: str) -> str:
    """Where the lake keeps a batch's rows of one day."""
    return f"fragments/{feed.name}/date={day.isoformat()}/{batch}.parquet"


def rejects_path(feed: Feed, batch: str) -> str:
    """Where the lake keeps a batch's rejected lines."""
    return f"rejected/{feed.name}/{batch}.parquet"


def _path(feed: Feed, version: int) -> str:
    return f"catalog/{feed.name}/{version:012d}.parquet"


def _versions(lake: "Store", feed: Feed) -> list[int]:
    names = [item["path"].rsplit("/", 1)[-1] for page in lake.list(f"catalog/{feed.name}") for item in page]
    return [int(name.removesuffix(".parquet")) for name in names if name.removesuffix(".parquet").isdigit()]


_ID = b"user_pipeline.catalog"


def _schema(catalog_id: str = "") -> "pa.Schema":
    import pyarrow as pa

    failure = [
        ("etag", pa.string()),
        ("error", pa.string()),
        ("attempts", pa.int64()),
        ("retry_at", pa.timestamp("us", tz="UTC")),
    ]
    return pa.schema(
        [
            ("key", pa.string()),
            ("etag", pa.string()),
            ("last_modified", pa.timestamp("us", tz="UTC")),
            ("size", pa.int64()),
            ("batch", pa.string()),
            ("start_date", pa.date32()),
            ("error", pa.string()),
            ("lines", pa.int64()),
            ("blank", pa.int64()),
            ("header", pa.int64()),
            ("rejected", pa.list_(pa.struct([("reason", pa.string()), ("lines", pa.int64())]))),
            # A day that an object brought rows for once stays, with no rows: that they went is a change too.
            (
                "days",
                pa.list_(
                    pa.struct(
                        [("day", pa.date32()), ("rows", pa.int64()), ("digest", pa.string()), ("version", pa.int64())]
                    )
                ),
            ),
            ("failure", pa.struct(failure)),
        ],
        metadata={_ID: catalog_id.encode()},
    )


_THERE = "list_filter(days, d -> d.rows > 0)"
_ROWS = "coalesce(list_sum(list_transform(days, d -> d.rows)), 0)"
_REJECTS = "coalesce(list_sum(list_transform(rejected, r -> r.lines)), 0)"
_SUMS = f"""sum(lines) as lines, sum({_ROWS}) as rows, sum({_REJECTS}) as rejected,
  sum(blank) as blank, sum(header) as header"""


def _merge(current: Catalog, new: "pa.Table", gone: Sequence[str] = ()) -> "pa.Table":
    """The next version's table: new entries in place of old ones, and the days of each that changed with it."""
    merged = query(
        """
        with was as (select key, unnest(days, recursive := true) from old semi join new using (key)),
        brought as (select key, unnest(days, recursive := true) from new),
        days as (
          select
            key,
            list({
              'day': day, 'rows': coalesce(b.rows, 0), 'digest': b.digest,
              'version': if((w.rows, w.digest) is not distinct from (coalesce(b.rows, 0), b.digest),
                w.version, $version)
            } order by day) as days
          from was w full join brought b using (key, day) group by key
        )
        from (
          from old anti join new using (key)
          where not (list_contains($gone, key) and (error is not null or batch = ''))
          union all by name
          select new.* exclude (days), coalesce(days.days, []) as days from new left join days using (key)
        ) order by key
        """,
        {"version": current.version + 1, "gone": list(gone)},
        old=current.table,
        new=new,
    )
    return merged.select(_schema().names).cast(_schema(current.id or uuid.uuid4().hex))


def _upgraded(table: "pa.Table", version: int) -> "pa.Table":
    """A catalog of version 0.1.0, which knew neither digests nor failures: all days last changed in this version."""
    known = query(
        """
        select * replace (list_transform(days,
            d -> {'day': d.day, 'rows': d.rows, 'digest': null::varchar, 'version': $version::bigint}) as days),
          null::struct(etag varchar, error varchar, attempts bigint, retry_at timestamptz) as failure
        from old
        """,
        {"version": version},
        old=table,
    )
    return known.select(_schema().names).cast(_schema())


def _to_row(entry: Entry) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(entry, name) for name in _schema().names}
    row["rejected"] = [{"reason": reason, "lines": lines} for reason, lines in sorted(entry.rejected.items())]
    row["days"] = [
        {"day": day, "rows": rows, "digest": entry.digests[day], "version": None}
        for day, rows in sorted(entry.days.items())
    ]
    row["failure"] = asdict(entry.failure) if entry.failure else None
    return row


def _to_entry(row: dict[str, Any]) -> Entry:
    there = [item for item in row["days"] if item["rows"]]
    return Entry(
        **row
        | {
            "rejected": {item["reason"]: item["lines"] for item in row["rejected"]},
            "days": {item["day"]: item["rows"] for item in there},
            "digests": {item["day"]: item["digest"] for item in there},
            "failure": Failure(**row["failure"]) if row["failure"] else None,
        }
    )

"""A listing of the source compared with the manifest: which objects are to be read, and which are gone."""

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import Enum, auto
from typing import TYPE_CHECKING

from user_pipeline.ingest.filter import UNFILTERED, ReadWith
from user_pipeline.resources.postgres import literal

if TYPE_CHECKING:
    import pyarrow as pa

    from user_pipeline.ingest.feeds import Feed
    from user_pipeline.resources.postgres import Transaction


@dataclass(frozen=True, slots=True)
class Settled:
    """Leaves an object alone until it has not changed for some time.

    Attributes:
        now: this moment.
        time: how long. An object whose time is further than this in the future is not waited for: it was written with
            another clock, and might never be read.
    """

    now: datetime
    time: timedelta

    @property
    def sql(self) -> str:
        """The SQL condition that the row ``l`` of a listing is of an object that has changed lately."""
        if not self.time:
            return "false"
        return (
            f"(l.last_modified > '{(self.now - self.time).isoformat()}' "
            f"and l.last_modified <= '{(self.now + self.time).isoformat()}')"
        )


class Again(Enum):
    """Which objects are read again although they have not changed."""

    NONE = auto()
    """Those that broke, if they would be read with another filter now."""
    OTHERWISE = auto()
    """Those that broke, and those that would be read with another filter now."""
    ALL = auto()
    """All."""


class Look:
    """A listing compared with the manifest; valid until its transaction ends.

    Attributes:
        listed: how many objects are in the listing.
        announced: for a listing of what was announced, the last announcement in it; None for one of all objects.
    """

    def __init__(self, transaction: "Transaction", feed: "Feed", listed: int, announced: int | None = None) -> None:
        self._transaction = transaction
        self._feed = literal(feed.name)
        self.listed = listed
        self.announced = announced

    @classmethod
    def at_announced(cls, transaction: "Transaction", feed: "Feed") -> "Look":
        """What was announced and what could not be fetched before, instead of a listing of all objects."""
        name = literal(feed.name)
        transaction.execute(
            f"""
            create temporary table listed on commit drop as
            select key as path, etag as e_tag, size, last_modified, null::text as problem
            from pipeline.announced_objects where feed = {name}
            union all
            select o.key, o.failed_etag, o.size, o.last_modified, null from pipeline.ingested_objects o
            where o.feed = {name} and o.failed_etag is not null and not exists (
              select from pipeline.announced_objects a where a.feed = o.feed and a.object_id = o.object_id)
            """
        )
        transaction.execute("analyze listed")
        [(listed, number)] = transaction.fetch(
            "select (select count(*) from listed), "
            f"(select coalesce(max(number), 0) from pipeline.announced_objects where feed = {name})"
        )
        return cls(transaction, feed, int(listed), int(number))

    def note_listing(self, listed_at: datetime, seconds: float) -> None:
        """Keep when a run made this listing, and how long it took."""
        self._transaction.execute(
            "insert into pipeline.listings (feed, listed_at, seconds, objects) "
            f"values ({self._feed}, '{listed_at.isoformat()}', {seconds:f}, {self.listed}) "
            "on conflict (feed) do update set listed_at = excluded.listed_at, seconds = excluded.seconds, "
            "objects = excluded.objects"
        )

    def unknown(
        self,
        start_date: date,
        now: datetime | None = None,
        settled: Settled | None = None,
        *,
        read_with: ReadWith = UNFILTERED,
        again: Again = Again.NONE,
    ) -> "pa.RecordBatchReader":
        """The objects of the listing that are new or changed, or are to be read again; oldest first.

        Args:
            start_date: the first day accepted now; objects that lost lines to a later one are read again.
            now: objects that could not be fetched and are not due again by this moment are left out; with None they
                are all tried.
            settled: leaves out objects that have changed lately; None leaves nothing out.
            read_with: the filter of now; objects that broke with another one are read again.
            again: which other objects are read again.

        Returns:
            the columns of the listing; to be read before the next query.
        """
        changes = settled.sql if settled else "false"
        waits = "false" if now is None else f"k.failed_etag = l.e_tag and k.retry_at > '{now.isoformat()}'"
        return self._transaction.stream(
            f"""
            select l.path, l.e_tag, l.size, l.last_modified, l.problem
            from listed l left join pipeline.ingested_objects k
              on k.feed = {self._feed} and k.object_id = substring(sha256(convert_to(l.path, 'UTF8')) for 16)
            where {_is_unknown(start_date, read_with, again)}
              and not coalesce({waits}, false) and not {changes}
            order by l.last_modified, l.path collate "C"
            """
        )

    def settling(
        self, start_date: date, settled: Settled, *, read_with: ReadWith = UNFILTERED, again: Again = Again.NONE
    ) -> int:
        """How many objects :meth:`unknown` leaves out because they have changed lately."""
        [(count,)] = self._transaction.fetch(
            f"""
            select count(*) from listed l left join pipeline.ingested_objects k
              on k.feed = {self._feed} and k.object_id = substring(sha256(convert_to(l.path, 'UTF8')) for 16)
            where {_is_unknown(start_date, read_with, again)} and {settled.sql}
            """
        )
        return int(count)

    def gone(self) -> list[str]:
        """The objects that were never read or are broken, and are no longer in the listing.

        A look at announced objects finds none.
        """
        if self.announced is not None:
            return []
        found = self._transaction.fetch(
            f"""
            select k.key from pipeline.ingested_objects k
            where k.feed = {self._feed} and (k.error is not null or k.start_date is null)
              and not exists (select from listed l where l.path = k.key)
            order by k.key collate "C"
            """
        )
        return [key for (key,) in found]


def _is_unknown(start_date: date, read_with: ReadWith, again: Again) -> str:
    """The condition on rows ``l`` of a listing and ``k`` of the manifest under which an object is to be read."""
    texts = ["null::text" if text is None else literal(text) for text in (read_with.filter, read_with.filter_version)]
    otherwise = f"(k.filter, k.filter_version) is distinct from ({', '.join(texts)})"
    others = {
        Again.NONE: f"(k.error is not null and {otherwise})",
        Again.OTHERWISE: f"(k.error is not null or {otherwise})",
        Again.ALL: "true",
    }
    return f"""(k.key is null or k.start_date is null or k.etag <> l.e_tag
                or (k.start_date > '{start_date}' and jsonb_exists(k.rejected, 'out_of_range'))
                or {others[again]})"""

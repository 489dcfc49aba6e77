"""Who viewed what: the history that recommendations are learned from and measured by.

It is read from the daily aggregates of ``user_page_views``, which are files of the lake, as of the end of a day,
however many later days there are. What was seen before the window of days comes from the table, which has a row a pair.
Files and table are read in one repeatable-read transaction, so that they fit each other.
"""

from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from user_pipeline.engines.duckdb import scan
from user_pipeline.errors import PermanentError
from user_pipeline.lake.partitions import LakeFile, partitions_in
from user_pipeline.lake.transfer import fetch_all
from user_pipeline.recommendations.codes import History, in_codes, number
from user_pipeline.recommendations.eligibility import Eligibility
from user_pipeline.recommendations.window import Window
from user_pipeline.resources.postgres import Transaction

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    from user_pipeline.engines.base import Engine
    from user_pipeline.lake.lake import Lake

_BATCH = 100_000


class NoHistoryError(PermanentError):
    """There is no day to learn from."""


class Views:
    """The daily aggregates of ``user_page_views``, as a transaction sees them.

    Args:
        transaction: on the analytics database; repeatable read, if the table is read in it as well.
        lake: has the files.
        engine: reads them.
    """

    def __init__(self, transaction: Transaction, lake: "Lake", engine: "Engine") -> None:
        self._lake = lake
        self._engine = engine
        self._files = partitions_in(transaction, "user_page_views")
        self._local: dict[date, list[Path]] = {}

    @property
    def is_empty(self) -> bool:
        """Whether no day was ever written."""
        return not self._files

    def has_before(self, day: date) -> bool:
        """Whether an earlier day has views."""
        return any(file.rows for earlier, there in self._files.items() if earlier < day for file in there)

    def has_from(self, day: date) -> bool:
        """Whether the day or a later one has views."""
        return any(file.rows for later, there in self._files.items() if later >= day for file in there)

    def table(self, first: date, end: date | None = None) -> str:
        """The aggregates of some days, as DuckDB takes it in the place of a table.

        Args:
            first: the first day.
            end: the day after the last; None for all days there are.

        Returns:
            a relation of ``user_id`` bigint, ``url`` varchar, ``count`` bigint, ``last_viewed`` timestamp.
        """
        files = [
            file
            for day in sorted(self._files)
            if day >= first and (end is None or day < end)
            for file in self._fetched(day)
        ]
        if not files:
            return (
                "(select null::bigint as user_id, null::varchar as url, null::bigint as count, "
                "null::timestamp as last_viewed where false)"
            )
        return scan(files)

    def _fetched(self, day: date) -> Sequence[Path]:
        if day not in self._local:
            wanted: list[LakeFile] = self._files[day]
            self._local[day] = fetch_all(self._lake.storage, wanted, self._engine.new_scratch("views"))
        return self._local[day]


def read_history(
    lake: "Lake", engine: "Engine", window: Window, eligibility: Eligibility, *, with_past: bool = False
) -> History:
    """Read the views of a window and what its users saw before, of pages that may be shown.

    The urls pass through files and the engine, which spills to disk. In memory are 12 bytes a pair, and users and pages
    once each.

    Raises:
        NoHistoryError: no day of user_page_views was ever materialized.
    """
    lake.analytics.open()
    scratch = engine.new_scratch("history")
    connection = engine.connect()
    try:
        with lake.analytics.database.transaction() as transaction:
            transaction.execute("set transaction isolation level repeatable read")
            views = Views(transaction, lake, engine)
            if views.is_empty:
                raise NoHistoryError("user_page_views has no partition; materialize the asset user_page_views first")
            viewed = connection.sql(f"select user_id, url, last_viewed from {views.table(window.first, window.end)}")
            number(connection, viewed, eligibility)
            transaction.load("active", connection.table("users").project("id as user_id").to_arrow_reader(_BATCH))
            transaction.execute("analyze active")
            emails = "select user_id, email from public.users where user_id in (select user_id from active)"
            spool(transaction.stream(emails), connection, scratch / "emails.parquet")
            spool(transaction.stream(_seen_elsewhere(views, window)), connection, scratch / "elsewhere.parquet")
            elsewhere = scan([scratch / "elsewhere.parquet"])
            before = connection.sql(
                f"""
                select e.user_id, e.url from {elsewhere} e
                left join (
                  select user_id, url, sum(count) as count from {views.table(window.first)} group by user_id, url
                ) since on since.user_id = e.user_id and since.url = e.url
                where e.count > coalesce(since.count, 0)
                """
                if views.has_from(window.end)
                else f"select user_id, url from {elsewhere}"
            )
            emails_of = connection.read_parquet(str(scratch / "emails.parquet"))
            return in_codes(connection, before, emails_of, window, with_past=with_past)
    finally:
        connection.close()


def _seen_elsewhere(views: Views, window: Window) -> str:
    """The query for pairs of the users in ``active`` whose last view is not in the window.

    A pair with its last view before the window was seen before it. One with its last view after the window was seen
    before it if the views since the first day of the window are not all of its views. (Of a pair with its last view in
    the window, no more has to be known.)
    """
    columns = "select v.user_id, v.url, v.count from public.user_page_views v"
    if not views.has_before(window.first):
        return f"{columns} where false"
    elsewhere = f"v.last_viewed < '{window.first}'"
    if views.has_from(window.end):
        elsewhere += f" or v.last_viewed >= '{window.end}'"
    return f"{columns} join active using (user_id) where {elsewhere}"


def new_page_views(lake: "Lake", engine: "Engine", day: date) -> Path:
    """Which users viewed which pages on a day and on no day before: ``user_id`` bigint, ``url`` text, as a file.

    All views of such a pair in the table are of this day or later ones.
    """
    end = day + timedelta(days=1)
    scratch = engine.new_scratch("new_page_views")
    file = scratch / "new_page_views.parquet"
    lake.analytics.open()
    with engine.connect() as connection, lake.analytics.database.transaction() as transaction:
        transaction.execute("set transaction isolation level repeatable read")
        views = Views(transaction, lake, engine)
        if not views.is_empty:
            totals = f"select user_id, url, count from public.user_page_views where last_viewed >= '{day}'"
            spool(transaction.stream(totals), connection, scratch / "totals.parquet")
            total = scan([scratch / "totals.parquet"])
        else:
            total = views.table(day)
        connection.sql(
            f"""
            select d.user_id, d.url from {views.table(day, end)} d
            join {total} t on t.user_id = d.user_id and t.url = d.url
            left join (
              select user_id, url, sum(count) as count from {views.table(end)} group by user_id, url
            ) later on later.user_id = d.user_id and later.url = d.url
            where t.count = d.count + coalesce(later.count, 0)
            """
        ).write_parquet(str(file))
    return file


def spool(rows: "pa.RecordBatchReader", connection: "duckdb.DuckDBPyConnection", file: Path) -> None:
    """Write the rows of a query to a local Parquet file."""
    connection.from_arrow(rows).write_parquet(str(file))

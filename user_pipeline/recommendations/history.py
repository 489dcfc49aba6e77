"""Who viewed what: the history that recommendations are learned from and measured by.

It is read from the daily aggregates of ``user_page_views``, which are files of the lake, as of the end of a day,
however many later days there are. What was seen before the window of days is told by the table, which has a row a pair.
Files and table are read in one repeatable-read transaction: they are of one moment.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from user_pipeline.engines.duckdb import scan
from user_pipeline.errors import PermanentError
from user_pipeline.lake.registry import LakeFile, partitions_in
from user_pipeline.lake.transfer import fetch_all
from user_pipeline.recommendations.eligibility import Eligibility, keep_allowed
from user_pipeline.resources.postgres import Transaction

if TYPE_CHECKING:
    import duckdb
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from user_pipeline.engines.duckdb import Engine
    from user_pipeline.lake.lake import Lake
    from user_pipeline.recommender.discoveries import Discoveries
    from user_pipeline.recommender.playback import Past

PAST_ROWS = 2_000_000
"""So many rows of daily aggregates, about, are enough to play the last days back."""
_BATCH = 100_000
_EPOCH = date(1970, 1, 1)
# The engine finds no more of the smallest values at a time.
_MOST_SORTED = 999_999


class NoHistoryError(PermanentError):
    """There is no day to learn from."""


@dataclass(frozen=True, slots=True)
class Window:
    """The days recommendations are learned from.

    Attributes:
        last: the day they are as of the end of.
        days: how many days there are, up to and with it.
    """

    last: date
    days: int

    @property
    def first(self) -> date:
        """The first of the days; the first there can be where the window begins before it."""
        return self.last - timedelta(days=min(self.days - 1, (self.last - date.min).days))

    @property
    def end(self) -> date:
        """The day after the last."""
        return self.last + timedelta(days=1)


@dataclass(frozen=True, slots=True)
class History:
    """Who viewed what in a window, in codes: users numbered by id, pages by url (by code point).

    Attributes:
        users: ids, ascending, int64.
        emails: the latest e-mail address of each user, null if none is known.
        pages: urls, ascending: every page viewed in the window that may be shown.
        withheld: how many pages of the window may not.
        viewed: user and page codes of each pair of the window, once, int32.
        recency: of each of these pairs, how many of the user's moments of viewing are later than the last view of it,
            int32: 0 for the page viewed last.
        seen_before: user and page codes of pairs of these users and pages that were viewed before the window. Some of
            them may be in the window as well.
        discoveries: how many users viewed each page for the first time, on each of the last days.
        past: the window day by day, of as many users as ``PAST_ROWS`` allow; None unless asked for.
    """

    users: "NDArray[np.int64]"
    emails: "pa.StringArray"
    pages: "pa.StringArray"
    withheld: int
    viewed: "tuple[NDArray[np.int32], NDArray[np.int32]]"
    recency: "NDArray[np.int32]"
    seen_before: "tuple[NDArray[np.int32], NDArray[np.int32]]"
    discoveries: "Discoveries"
    past: "Past | None"


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

    The urls pass through files and the engine, which spills to disk; what is held are 12 bytes a pair and the users
    and pages once.

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

    Whose last view was before the window was seen before it. Whose last view is after the window may have been: namely
    if the views since the window's first day are not all of its views. (If the last view is in the window, that is
    known already.)
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

    As in :func:`read_history` the table tells: all views of such a pair are of this day or later ones.
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
    """Keep the rows of a query as a file on this machine."""
    connection.from_arrow(rows).write_parquet(str(file))


def number(
    connection: "duckdb.DuckDBPyConnection", viewed: "duckdb.DuckDBPyRelation", eligibility: Eligibility
) -> None:
    """Number who viewed what in a window: users by id and pages by url, both from 0, as ``users`` and ``pages``.

    Args:
        connection: gets the two temporary tables, and others that :func:`in_codes` reads.
        viewed: ``user_id`` bigint, ``url`` string, ``last_viewed`` timestamp; a row for each day.
        eligibility: which pages get a number.
    """
    viewed.create_view("rows_viewed")
    for table, column, name in (("users", "user_id", "id"), ("urls", "url", "url")):
        connection.execute(
            f"create temporary table {table} as "
            f"select {column} as {name}, (row_number() over (order by {column}) - 1)::integer as code "
            f"from (select distinct {column} from rows_viewed)"
        )
    connection.execute(
        f"""
        create temporary table pairs as
        select users.code as user_code, urls.code as number,
          min({_DAY.format("r.last_viewed")}) as first_day, max(r.last_viewed) as last_viewed
        from rows_viewed r join users on users.id = r.user_id join urls on urls.url = r.url
        group by all
        """
    )
    # Since when: the day its last required viewer came.
    connection.execute(
        f"""
        create temporary table eligible as
        select urls.url, number, since
        from (
          select number, list_last(min(first_day, {min(eligibility.min_viewers, _MOST_SORTED)})) as since
          from pairs group by number having count(*) >= {eligibility.min_viewers}
        ) often
        join urls on urls.code = often.number
        """
    )
    keep_allowed(connection, "eligible", eligibility)
    connection.execute(
        "create temporary table pages as "
        "select url, number, since, (row_number() over (order by number) - 1)::integer as code from eligible"
    )


def in_codes(
    connection: "duckdb.DuckDBPyConnection",
    before: "duckdb.DuckDBPyRelation",
    emails: "duckdb.DuckDBPyRelation",
    window: Window,
    *,
    with_past: bool = False,
) -> History:
    """The history of a window that :func:`number` has put into numbers.

    Args:
        connection: has the numbers.
        before: what was viewed before the window: ``user_id`` bigint, ``url`` string; by any user, any page.
        emails: ``user_id`` bigint, ``email`` string; a user once.
        window: the days.
        with_past: whether to tell what happened day by day.
    """
    from user_pipeline.recommender.discoveries import Discoveries

    emails.create_view("emails")
    before.create_view("rows_before")
    connection.execute(
        """
        create temporary table before as
        select distinct users.code as user_code, pages.code as page
        from rows_before b join users on users.id = b.user_id join pages on pages.url = b.url
        """
    )
    [(withheld,)] = connection.sql("select (select count(*) from urls) - (select count(*) from pages)").fetchall()
    user, page, recency = _numbers(
        connection,
        """
        select user_code, pages.code,
          (dense_rank() over (partition by user_code order by last_viewed desc) - 1)::integer
        from pairs join pages using (number)
        """,
    )
    urls = _texts(connection, "select url from pages order by code")
    found = _numbers(connection, _DISCOVERED.format(since=day_number(window.last) - _TOLD))
    discoveries = Discoveries(found[0], found[1], found[2], len(urls))
    earlier = _numbers(connection, "select user_code, page from before")
    return History(
        users=_numbers(connection, "select id from users order by code")[0],
        emails=_texts(connection, "select email from users left join emails on user_id = id order by code"),
        pages=urls,
        withheld=withheld,
        viewed=(user, page),
        recency=recency,
        seen_before=(earlier[0], earlier[1]),
        discoveries=discoveries,
        past=_past(connection, discoveries) if with_past else None,
    )


def day_number(day: date) -> int:
    """The number of a day, as :class:`.Discoveries` and :class:`.Past` count them."""
    return (day - _EPOCH).days


def _past(connection: "duckdb.DuckDBPyConnection", discoveries: "Discoveries") -> "Past":
    """The rows of some users, the same for the same views."""
    from user_pipeline.recommender.playback import Past

    [(rows,)] = connection.sql("select count(*) from rows_viewed").fetchall()
    below = 2**32 if rows <= PAST_ROWS else 2**32 * PAST_ROWS // rows
    # Multiples of the golden ratio are spread evenly.
    connection.execute(
        "create temporary table chosen as "
        "select id, code, (row_number() over (order by code) - 1)::integer as number "
        f"from users where (code::bigint * 2654435769) % 4294967296 < {below}"
    )
    user, page, time = _numbers(
        connection,
        """
        select chosen.number, pages.code, epoch_us(r.last_viewed)
        from rows_viewed r join chosen on chosen.id = r.user_id join pages on pages.url = r.url
        """,
    )
    before = _numbers(
        connection, "select chosen.number, page from before join chosen on chosen.code = before.user_code"
    )
    [since] = _numbers(connection, "select since from pages order by code")
    [(n_users,)] = connection.sql("select count(*) from chosen").fetchall()
    return Past(user, page, time, (before[0], before[1]), discoveries, since, n_users)


# The number of the day of a moment.
_DAY = "(epoch_us({}) // 86400000000)"
# First views of all users, of the last days.
_DISCOVERED = """
    select pages.code, first_day, count(*)
    from pairs join pages using (number)
    anti join before on before.user_code = pairs.user_code and before.page = pages.code
    where first_day > {since}
    group by all
"""
# Of so many days they are told: those that are played back, and the week that is the trend of the first of them.
_TOLD = 40


def _numbers(connection: "duckdb.DuckDBPyConnection", sql: str) -> "list[NDArray[Any]]":
    """The columns of a query, none of them with nulls."""
    columns: dict[str, NDArray[Any]] = connection.sql(sql).fetchnumpy()  # type: ignore[assignment]
    return list(columns.values())


def _texts(connection: "duckdb.DuckDBPyConnection", sql: str) -> "pa.StringArray":
    import pyarrow as pa

    column = connection.sql(sql).to_arrow_table().column(0)
    return pa.chunked_array(column.chunks, column.type).combine_chunks()

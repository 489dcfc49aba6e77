"""Recommendations of one day: the history of its users out of the analytics database, a Parquet file of their pages.

The numerics are in :mod:`user_pipeline.recommender`; here are what they work on and where it comes from.
Everything is as of the end of a day, however many later days the database holds, and of one moment: all is
read in one repeatable-read transaction.
"""

import json
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from user_pipeline.errors import PermanentError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import duckdb
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from user_pipeline.engines.duckdb import Engine
    from user_pipeline.recommender.interactions import Interactions
    from user_pipeline.recommender.score import Recommendations
    from user_pipeline.resources.postgres import Postgres, Transaction

# Rows of the result that are text at a time.
_BATCH = 100_000


class NoHistoryError(PermanentError):
    """The tables to learn from do not exist."""


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

    @property
    def condition(self) -> str:
        """That a contribution is of these days, as SQL."""
        return f"day >= '{self.first}' and day < '{self.end}'"


@dataclass(frozen=True, slots=True)
class History:
    """Who viewed what in a window, in codes: users numbered by id, pages by url (by code point).

    Attributes:
        users: ids, ascending, int64.
        emails: the latest e-mail address of each user, null if none is known.
        pages: urls, ascending: every page viewed in the window.
        viewed: user and page codes of each pair of the window, once, int32.
        seen_before: the same of pairs of these users and pages that were viewed before the window. Some of them
            may be in the window as well.
    """

    users: "NDArray[np.int64]"
    emails: "pa.StringArray"
    pages: "pa.StringArray"
    viewed: "tuple[NDArray[np.int32], NDArray[np.int32]]"
    seen_before: "tuple[NDArray[np.int32], NDArray[np.int32]]"


@dataclass(frozen=True, slots=True)
class Summary:
    """Recommendations in numbers.

    Attributes:
        users: who got at least one; everyone active has at least one unless they have seen every page.
        active_users: who viewed a page in the window.
        pages: how many could be recommended: the pages viewed in the window.
        views: pairs of user and page learned from.
        rows: how many recommendations there are.
        fallback_users: users served by popularity alone.
        filled_rows: recommendations by popularity, those of such users and where too few pages scored.
    """

    users: int
    active_users: int
    pages: int
    views: int
    rows: int
    fallback_users: int
    filled_rows: int


def read_history(analytics: "Postgres", engine: "Engine", window: Window) -> History:
    """Read the views of a window and what its users saw before.

    The urls pass through a Parquet file and the engine, which spills to disk; what is held are 8 bytes a pair
    and the users and pages once.

    Raises:
        NoHistoryError: no day of user_page_views was ever materialized.
    """
    scratch = engine.new_scratch("history")
    connection = engine.connect()
    try:
        with analytics.transaction() as transaction:
            transaction.execute("set transaction isolation level repeatable read")
            _require_tables(transaction, analytics)
            viewed = _spooled(
                connection,
                transaction,
                f"select user_id, url from public.user_page_views_daily where {window.condition}",
                scratch / "viewed.parquet",
            )
            number(connection, viewed)
            transaction.load("active", connection.table("users").project("id as user_id").to_arrow_reader(_BATCH))
            transaction.execute("analyze active")
            before = _spooled(connection, transaction, _seen_before(transaction, window), scratch / "before.parquet")
            emails = "select user_id, email from public.users where user_id in (select user_id from active)"
            known = _spooled(connection, transaction, emails, scratch / "emails.parquet")
        return in_codes(connection, viewed, before, known)
    finally:
        connection.close()
        for file in scratch.iterdir():
            file.unlink()


def _require_tables(transaction: "Transaction", analytics: "Postgres") -> None:
    [(exists,)] = transaction.fetch("select to_regclass('public.user_page_views_daily') is not null")
    if not exists:
        raise NoHistoryError(
            f"the table public.user_page_views_daily does not exist in the database of {analytics.database.variable}; "
            "materialize the asset user_page_views first"
        )


def _seen_before(transaction: "Transaction", window: Window) -> str:
    """The query for what the users in ``active`` saw before the window.

    It reads the summary, which has a row a pair, rather than the contributions of all of history. Whose last
    view was before the window was seen before it. Whose last view is after the window may have been: namely if
    the views since the window's first day are not all of its views. (If the last view is in the window, that is
    known already.)
    """
    [(earlier, later)] = transaction.fetch(
        f"select exists (select from public.user_page_views_daily where day < '{window.first}'), "
        f"exists (select from public.user_page_views_daily where day >= '{window.end}')"
    )
    if not earlier:
        return "select user_id, url from public.user_page_views where false"
    summary = "select user_id, url from public.user_page_views join active using (user_id)"
    query = f"{summary} where last_viewed < '{window.first}'"
    if later:
        query += f"""
            union all
            select v.user_id, v.url
            from public.user_page_views v
            join active using (user_id)
            join (
              select user_id, url, sum(count) as count
              from public.user_page_views_daily join active using (user_id)
              where day >= '{window.first}'
              group by user_id, url
            ) since on since.user_id = v.user_id and since.url = v.url
            where v.last_viewed >= '{window.end}' and v.count > since.count
        """
    return query


def new_page_views(transaction: "Transaction", day: date) -> "pa.RecordBatchReader":
    """Which users viewed which pages on a day and on no day before: ``user_id`` bigint, ``url`` text.

    As in :func:`_seen_before` the summary tells: all views of such a pair are of this day or later ones.
    """
    end = day + timedelta(days=1)
    return transaction.stream(
        f"""
        with viewed as (
          select d.user_id, d.url, d.count, v.count as total, v.last_viewed
          from public.user_page_views_daily d
          join public.user_page_views v on v.user_id = d.user_id and v.url = d.url
          where d.day = '{day}'
        )
        select user_id, url from viewed where count = total
        union all
        select viewed.user_id, viewed.url
        from viewed
        join (
          select user_id, url, sum(count) as count from public.user_page_views_daily
          where day > '{day}' group by user_id, url
        ) later on later.user_id = viewed.user_id and later.url = viewed.url
        where viewed.last_viewed >= '{end}' and viewed.count + later.count = viewed.total
        """
    )


def _spooled(
    connection: "duckdb.DuckDBPyConnection", transaction: "Transaction", sql: str, file: "Path"
) -> "duckdb.DuckDBPyRelation":
    """The rows of a query as a file on this machine."""
    connection.from_arrow(transaction.stream(sql)).write_parquet(str(file))
    return connection.read_parquet(str(file))


def number(connection: "duckdb.DuckDBPyConnection", viewed: "duckdb.DuckDBPyRelation") -> None:
    """Number who viewed what in a window: users by id and pages by url, both from 0, as ``users`` and ``pages``.

    Args:
        connection: gets the two temporary tables.
        viewed: ``user_id`` bigint, ``url`` string.
    """
    viewed.create_view("viewed")
    for table, column, name in (("users", "user_id", "id"), ("pages", "url", "url")):
        connection.execute(
            f"create temporary table {table} as "
            f"select {column} as {name}, (row_number() over (order by {column}) - 1)::integer as code "
            f"from (select distinct {column} from viewed)"
        )


def in_codes(
    connection: "duckdb.DuckDBPyConnection",
    viewed: "duckdb.DuckDBPyRelation",
    before: "duckdb.DuckDBPyRelation",
    emails: "duckdb.DuckDBPyRelation",
) -> History:
    """A history in the numbers that :func:`number` has given to its users and pages.

    Args:
        connection: has the numbers.
        viewed: what was viewed in the window: ``user_id`` bigint, ``url`` string.
        before: what was viewed before it, likewise; by any user, any page.
        emails: ``user_id`` bigint, ``email`` string; a user once.
    """
    emails.create_view("emails")
    return History(
        users=_numbers(connection, "select id from users order by code")[0],
        emails=_texts(connection, "select email from users left join emails on user_id = id order by code"),
        pages=_texts(connection, "select url from pages order by code"),
        viewed=_coded(connection, viewed),
        seen_before=_coded(connection, before),
    )


def _coded(
    connection: "duckdb.DuckDBPyConnection", pairs: "duckdb.DuckDBPyRelation"
) -> "tuple[NDArray[np.int32], NDArray[np.int32]]":
    """The codes of pairs of the window's users and pages, each pair once."""
    pairs.create_view("pairs", replace=True)
    user, page = _numbers(
        connection,
        """
        select distinct users.code, pages.code as page
        from pairs join users on users.id = pairs.user_id join pages on pages.url = pairs.url
        """,
    )
    return user, page


def _numbers(connection: "duckdb.DuckDBPyConnection", sql: str) -> "list[NDArray[Any]]":
    """The columns of a query, none of them with nulls."""
    columns: dict[str, NDArray[Any]] = connection.sql(sql).fetchnumpy()  # type: ignore[assignment]
    return list(columns.values())


def _texts(connection: "duckdb.DuckDBPyConnection", sql: str) -> "pa.StringArray":
    import pyarrow as pa

    column = connection.sql(sql).to_arrow_table().column(0)
    return pa.chunked_array(column.chunks, column.type).combine_chunks()


@dataclass(frozen=True, slots=True)
class Choices:
    """What was chosen for the recommendations of a day.

    Attributes:
        window_days: how many days they are learned from.
        neighbours: from how many pages each page is predicted; None leaves it to their number.
        regularisation: the ridge penalty, in squared views.
        memory_limit: bytes for what is worked with, beside the history itself and its copy by page. Of a catalogue that
            is too large for it, less is counted.
    """

    window_days: int
    neighbours: int | None
    regularisation: float
    memory_limit: int

    @classmethod
    def of(cls, file: "Path") -> "Choices":
        """What a day's file was made with.

        Raises:
            KeyError: it does not say so.
        """
        import pyarrow.parquet as pq

        return cls(**json.loads((pq.read_schema(file).metadata or {})[_CHOICES]))


_CHOICES = b"user_pipeline.recommendations.snapshot"


def schema() -> "pa.Schema":
    """The columns of a day's file: those of the table, and what its quality is measured by.

    ``is_fallback`` tells that a page was chosen by popularity because too few had a positive score;
    ``popular_url`` the page that popularity alone puts at this rank, unseen as well; ``candidates`` how many pages
    could be recommended on that day.
    """
    import pyarrow as pa

    return pa.schema(
        [
            ("user_id", pa.int64()),
            ("email", pa.string()),
            ("recommended_url", pa.string()),
            ("rank", pa.int32()),
            ("is_fallback", pa.bool_()),
            ("popular_url", pa.string()),
            ("candidates", pa.int64()),
        ]
    )


def write_recommendations(history: History, file: "Path", choices: Choices) -> Summary:
    """Learn from a history and write three pages for each of its users to a Parquet file, by user and rank.

    Args:
        history: who viewed what.
        file: where to write, see :func:`schema`.
        choices: how to learn; they are kept in the file.
    """
    import pyarrow.parquet as pq

    from user_pipeline.recommender.interactions import interactions
    from user_pipeline.recommender.score import recommend
    from user_pipeline.recommender.weights import fit

    user, page = history.viewed
    views = interactions(user, page, n_users=len(history.users), n_pages=len(history.pages))
    weights = fit(
        views,
        neighbours=choices.neighbours,
        regularisation=choices.regularisation,
        memory_limit=choices.memory_limit,
    )
    parts = recommend(views, weights, seen=history.seen_before, with_popular=True, memory_limit=choices.memory_limit)
    users = rows = fallback_users = filled_rows = 0
    kept = schema().with_metadata({_CHOICES: json.dumps(asdict(choices))})
    with pq.ParquetWriter(file, kept, compression="zstd") as writer:
        for part in parts:
            users += int((part.rank == 1).sum())
            rows += len(part.rank)
            fallback_users += int((part.is_fallback & (part.rank == 1)).sum())
            filled_rows += int(part.is_fallback.sum())
            for batch in _named(part, history):
                writer.write_batch(batch)
    return Summary(
        users=users,
        active_users=len(history.users),
        pages=len(history.pages),
        views=_n_pairs(views),
        rows=rows,
        fallback_users=fallback_users,
        filled_rows=filled_rows,
    )


def _n_pairs(views: "Interactions") -> int:
    return int(views.matrix.nnz)


def _named(part: "Recommendations", history: History) -> "Iterator[pa.RecordBatch]":
    """Recommendations with ids, addresses and urls in the place of codes."""
    import numpy as np
    import pyarrow as pa

    for start in range(0, len(part.user), _BATCH):
        user, page, rank, is_fallback, popular = (_of(column, start) for column in part)
        yield pa.record_batch(
            [
                pa.array(history.users[user]),
                history.emails.take(pa.array(user)),
                history.pages.take(pa.array(page)),
                pa.array(rank.astype(np.int32)),
                pa.array(is_fallback),
                history.pages.take(pa.array(popular)),
                pa.array(np.full(len(user), len(history.pages), np.int64)),
            ],
            schema=schema(),
        )


def _of(column: "NDArray[Any] | None", start: int) -> "NDArray[Any]":
    # All columns are there: popularity's choice was asked for.
    assert column is not None  # noqa: S101
    return column[start : start + _BATCH]

"""A history as integer codes: users and pages are numbered in the engine."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from user_pipeline.recommendations.eligibility import Eligibility, keep_allowed
from user_pipeline.recommendations.window import Window, day_number

if TYPE_CHECKING:
    import duckdb
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from user_pipeline.recommender.discoveries import Discoveries
    from user_pipeline.recommender.playback import Past

PAST_ROWS = 2_000_000
"""About how many rows of daily aggregates are enough for playback."""
# The largest n for which the engine's min(value, n) works.
_MOST_SORTED = 999_999


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
    # ``since`` is the day on which a page reached the required number of viewers.
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
    """The history of a window, with the codes that :func:`number` has made.

    Args:
        connection: has the tables of :func:`number`.
        before: what was viewed before the window: ``user_id`` bigint, ``url`` string; by any user, any page.
        emails: ``user_id`` bigint, ``email`` string; a user once.
        window: the days.
        with_past: whether :attr:`History.past` is wanted.
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


def _past(connection: "duckdb.DuckDBPyConnection", discoveries: "Discoveries") -> "Past":
    """The window day by day, of a sample of its users that depends on the views alone."""
    from user_pipeline.recommender.playback import Past

    [(rows,)] = connection.sql("select count(*) from rows_viewed").fetchall()
    below = 2**32 if rows <= PAST_ROWS else 2**32 * PAST_ROWS // rows
    # Multiplicative hashing: multiples of the golden ratio are spread evenly.
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
# For how many days discoveries are given: those of playback, and the week of the trend of the first of them.
_TOLD = 40


def _numbers(connection: "duckdb.DuckDBPyConnection", sql: str) -> "list[NDArray[Any]]":
    """The columns of a query, which must have no nulls, as arrays."""
    columns: dict[str, NDArray[Any]] = connection.sql(sql).fetchnumpy()  # type: ignore[assignment]
    return list(columns.values())


def _texts(connection: "duckdb.DuckDBPyConnection", sql: str) -> "pa.StringArray":
    import pyarrow as pa

    column = connection.sql(sql).to_arrow_table().column(0)
    return pa.chunked_array(column.chunks, column.type).combine_chunks()

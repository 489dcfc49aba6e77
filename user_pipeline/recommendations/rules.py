"""The rules of recommendations: one statement each, on the analytics database and the daily aggregates."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from user_pipeline.engines.parquet import read_parquet
from user_pipeline.recommendations.eligibility import Eligibility, keep_allowed
from user_pipeline.recommendations.history import Views
from user_pipeline.recommendations.window import Window

if TYPE_CHECKING:
    import duckdb

    from user_pipeline.engines.base import Engine
    from user_pipeline.lake.lake import Lake
    from user_pipeline.resources.postgres import Transaction

_NAMED = 1000
_BATCH = 100_000

# Each gives users and what is wrong with their rows. The table ``recommended`` holds the day's recommendations.
_RANKS = """
    select user_id, 'ranks ' || string_agg(coalesce(rank::text, 'null'), ', ' order by rank)
    from recommended group by user_id
    having min(rank) <> 1 or max(rank) <> count(*) or count(distinct rank) <> count(*) or count(*) > 3
"""
_UNIQUE_PAGES = """
    select user_id, recommended_url || ' ' || count(*) || ' times'
    from recommended group by user_id, recommended_url having count(*) > 1
"""
_LATEST_EMAIL = """
    select distinct user_id, 'another e-mail than in users'
    from recommended left join public.users using (user_id)
    where recommended.email is distinct from users.email
"""

_TABLE = """
    create temporary view recommended as
    select r.user_id, r.email, r.recommended_url, r.rank, b.because_url
    from public.page_recommendations r
    left join public.page_recommendations_because b on b.user_id = r.user_id and b.rank = r.rank
"""
_IN_TABLES = {"ranks": _RANKS, "unique_pages": _UNIQUE_PAGES, "latest_email": _LATEST_EMAIL}

# The same, in the engine. ``met`` holds the rows of user_page_views of the recommended pairs. Where the last view is of
# a later day, the page was unseen on the day if all of its views are of later days.
_UNSEEN = """
    select met.user_id, met.url || ' was viewed'
    from met left join (
      select user_id, url, sum(count) as count from {later} group by user_id, url
    ) later on later.user_id = met.user_id and later.url = met.url
    where met.count > coalesce(later.count, 0)
"""
# ``because`` holds why pages are recommended: the page seen that spoke most for each, where one did.
_REASONS = """
    select b.user_id, b.because_url || ' was not viewed'
    from because b anti join (select distinct user_id, url from {window}) w
      on w.user_id = b.user_id and w.url = b.because_url
"""
# ``pages`` holds the pages that may be shown: with enough viewers in the window, and allowed by the rules about urls.
_SAFE_PAGES = """
    select shown.user_id, shown.url || ' may not be shown' from shown anti join pages using (url)
"""
# Who has three rows has enough. For the others, in ``short``, the unseen pages are counted; ``known`` holds their rows
# of user_page_views.
_ELIGIBLE_USERS = """
    with since as (
      select user_id, url, sum(count) as count, bool_or(in_window) as in_window
      from (
        select user_id, url, count, true as in_window from {window}
        union all
        select user_id, url, count, false from {later}
      ) semi join short using (user_id)
      group by user_id, url
    ),
    seen as (
      select known.user_id, count(*) as n
      from known join pages using (url)
      left join since on since.user_id = known.user_id and since.url = known.url
      where since.in_window or known.count > coalesce(since.count, 0)
      group by known.user_id
    )
    select user_id, short.n || ' rows, ' || unseen || ' unseen pages'
    from (
      select short.user_id, short.n, (select count(*) from pages) - coalesce(seen.n, 0) as unseen
      from short left join seen using (user_id)
    ) short
    where short.n < least(3, unseen)
    union all
    select user_id, n || ' rows, though not active' from given anti join active using (user_id)
"""

_AGAINST_VIEWS = {
    "unseen": _UNSEEN,
    "safe_pages": _SAFE_PAGES,
    "reasons": _REASONS,
    "eligible_users": _ELIGIBLE_USERS,
}
RULES = ("ranks", "unseen", "unique_pages", "safe_pages", "reasons", "eligible_users", "latest_email")


def broken_rules(
    transaction: "Transaction",
    lake: "Lake",
    engine: "Engine",
    snapshot: Path,
    window: Window,
    *,
    eligibility: Eligibility,
    in_table: bool,
) -> dict[str, list[str]]:
    """Which users' recommendations break which rule.

    The table is looked at if it is as of the day, otherwise the day's snapshot; the e-mails of a snapshot are
    those of its time and may be any.

    Args:
        transaction: on the analytics database, repeatable read.
        lake: has the daily aggregates.
        engine: reads them.
        snapshot: the day's file.
        window: the days learned from, up to the day.
        eligibility: which pages may be shown.
        in_table: whether the table is as of the day.

    Returns:
        The offenders of each rule, the first thousand of them.
    """
    if in_table:
        transaction.execute(_TABLE)
    else:
        transaction.load("recommended", read_parquet([snapshot]))
        transaction.execute("analyze recommended")
    found: dict[str, list[str]] = {name: [] for name in RULES}
    for name, sql in _IN_TABLES.items():
        if name != "latest_email" or in_table:
            found[name] = _named(transaction.fetch(_first(sql)))
    with engine.connect() as connection:
        views = Views(transaction, lake, engine)
        for name, rows in _against_views(transaction, connection, views, window, eligibility).items():
            found[name] = _named(rows)
    return found


def keep_eligible(connection: "duckdb.DuckDBPyConnection", views: str, eligibility: Eligibility) -> None:
    """Make the temporary table ``pages`` of the pages that may be shown: ``url`` and ``viewers``.

    Args:
        connection: gets it.
        views: the views of the window, as SQL to select from.
        eligibility: which may.
    """
    connection.execute(
        f"create temp table pages as select url, count(distinct user_id) as viewers from {views} "
        f"group by url having count(distinct user_id) >= {eligibility.min_viewers}"
    )
    keep_allowed(connection, "pages", eligibility)


def _against_views(
    transaction: "Transaction",
    connection: "duckdb.DuckDBPyConnection",
    views: Views,
    window: Window,
    eligibility: Eligibility,
) -> dict[str, list[tuple[Any, ...]]]:
    """The offenders of the rules that are about what was viewed when."""

    def keep(table: str, sql: str) -> None:
        connection.register(f"rows_{table}", transaction.stream(sql))
        connection.execute(f"create temp table {table} as from rows_{table}")

    tables = {"window": views.table(window.first, window.end), "later": views.table(window.end)}
    keep(
        "met",
        "select distinct v.user_id, v.url, v.count from recommended r "
        "join public.user_page_views v on v.user_id = r.user_id and v.url = r.recommended_url",
    )
    keep(
        "shown",
        "select min(user_id) as user_id, url "
        "from recommended, lateral (values (recommended_url), (because_url)) shown (url) "
        "where url is not null group by url",
    )
    keep("because", "select distinct user_id, because_url from recommended where because_url is not null")
    keep_eligible(connection, tables["window"], eligibility)
    keep("given", "select user_id, count(*) as n from recommended group by user_id")
    connection.execute(f"create temp table active as select distinct user_id from {tables['window']}")
    connection.execute(
        "create temp table short as select user_id, coalesce(n, 0) as n "
        "from active left join given using (user_id) where coalesce(n, 0) < 3"
    )
    transaction.load("short", connection.table("short").project("user_id").to_arrow_reader(_BATCH))
    keep("known", "select v.user_id, v.url, v.count from public.user_page_views v join short using (user_id)")
    return {name: connection.execute(_first(sql.format(**tables))).fetchall() for name, sql in _AGAINST_VIEWS.items()}


def _first(sql: str) -> str:
    return f"select * from ({sql}) offenders (user_id, problem) order by 1, 2 limit {_NAMED}"


def _named(rows: list[tuple[Any, ...]]) -> list[str]:
    return [f"user {user}: {problem}" for user, problem in rows]

"""The rules of related and popular pages: one statement each, on the rows of a day and the daily aggregates."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from user_pipeline.engines.duckdb import scan
from user_pipeline.recommendations.eligibility import Eligibility
from user_pipeline.recommendations.history import Views
from user_pipeline.recommendations.page_lists import POPULAR, RELATED
from user_pipeline.recommendations.rules import keep_eligible
from user_pipeline.recommendations.window import Window
from user_pipeline.resources.postgres import quote

if TYPE_CHECKING:
    from user_pipeline.engines.base import Engine
    from user_pipeline.lake.lake import Lake
    from user_pipeline.resources.postgres import Transaction

_NAMED = 1000
# Each gives what is wrong. ``listed`` holds the day's rows, ``pages`` the pages that may be shown, with their viewers.
_RELATED = {
    "ranks": f"""
        select url || ': ranks ' || string_agg(rank, ', ' order by rank) from listed group by url
        having min(rank) <> 1 or max(rank) <> count(*) or count(distinct rank) <> count(*) or count(*) > {RELATED}
    """,
    "other_pages": """
        select url || ': ' || related_url || ' ' || count(*) || ' times' from listed group by url, related_url
        having count(*) > 1 or url = related_url
    """,
    "safe_pages": """
        select distinct url || ' may not be shown'
        from (select url from listed union all select related_url from listed) anti join pages using (url)
    """,
}
_POPULAR = {
    "ranks": f"""
        select 'ranks ' || min(rank) || ' to ' || max(rank) || ' of ' || count(*) || ' rows' from listed
        having min(rank) <> 1 or max(rank) <> count(*) or count(distinct rank) <> count(*)
          or count(*) <> least({POPULAR}, (select count(*) from pages))
        union all
        select url || ' ' || count(*) || ' times' from listed group by url having count(*) > 1
    """,
    "most_viewed": """
        select url || ': ' || listed.viewers || ' viewers, not ' || pages.viewers
        from listed join pages using (url) where listed.viewers <> pages.viewers
        union all
        select url || ': more viewers than others with a lower rank' from listed
        qualify viewers > min(viewers) over (order by rank rows between unbounded preceding and 1 preceding)
        union all
        select url || ' is not listed, with ' || viewers || ' viewers' from pages anti join listed using (url)
        where viewers > (select min(viewers) from listed)
    """,
    "safe_pages": "select url || ' may not be shown' from listed anti join pages using (url)",
}
LISTS: Mapping[str, Mapping[str, str]] = {"related_pages": _RELATED, "popular_pages": _POPULAR}


def broken_list_rules(
    transaction: "Transaction",
    lake: "Lake",
    engine: "Engine",
    table: str,
    snapshot: Path,
    *,
    window: Window,
    eligibility: Eligibility,
    in_table: bool,
) -> dict[str, list[str]]:
    """What is wrong with a list of pages: with the table if it is as of the day, otherwise with the day's snapshot.

    Args:
        transaction: on the analytics database, repeatable read.
        lake: has the daily aggregates.
        engine: reads them.
        table: one of ``LISTS``.
        snapshot: the day's file.
        window: the days learned from, up to the day.
        eligibility: which pages may be shown.
        in_table: whether the table is as of the day.

    Returns:
        The offenders of each rule, the first thousand of them.
    """
    with engine.connect() as connection:
        if in_table:
            connection.register("rows_listed", transaction.stream(f"select * from public.{quote(table)}"))
            connection.execute("create temp table listed as from rows_listed")
        else:
            connection.execute(f"create temp table listed as from {scan([snapshot])}")
        views = Views(transaction, lake, engine)
        keep_eligible(connection, views.table(window.first, window.end), eligibility)
        return {
            name: [
                problem
                for (problem,) in connection.execute(
                    f"select * from ({rule}) offenders (problem) order by 1 limit {_NAMED}"
                ).fetchall()
            ]
            for name, rule in LISTS[table].items()
        }

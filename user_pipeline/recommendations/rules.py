"""What recommendations must be, looked up in the analytics database by one statement a rule."""

from pathlib import Path
from typing import TYPE_CHECKING

from user_pipeline.recommendations.snapshot import Window

if TYPE_CHECKING:
    from user_pipeline.resources.postgres import Transaction

_NAMED = 1000
_BATCH = 100_000

# Each gives a user and what is wrong. The table ``recommended`` holds the day's recommendations.
_RANKS = """
    select user_id, 'ranks ' || string_agg(coalesce(rank::text, 'null'), ', ' order by rank)
    from recommended group by user_id
    having min(rank) <> 1 or max(rank) <> count(*) or count(distinct rank) <> count(*) or count(*) > 3
"""
_UNIQUE_PAGES = """
    select user_id, recommended_url || ' ' || count(*) || ' times'
    from recommended group by user_id, recommended_url having count(*) > 1
"""
# The summary tells what was ever viewed. Where the last view is of a later day, the page was unseen on the day
# if all of its views are of later days.
_UNSEEN = """
    with met as (
      select distinct r.user_id, r.recommended_url as url, v.count, v.last_viewed
      from recommended r join public.user_page_views v on v.user_id = r.user_id and v.url = r.recommended_url
    )
    select user_id, url || ' was viewed' from met where last_viewed < '{end}'
    union all
    select met.user_id, met.url || ' was viewed'
    from met left join (
      select d.user_id, d.url, sum(d.count) as count
      from public.user_page_views_daily d join met on met.user_id = d.user_id and met.url = d.url
      where d.day >= '{end}' group by d.user_id, d.url
    ) later on later.user_id = met.user_id and later.url = met.url
    where met.last_viewed >= '{end}' and met.count > coalesce(later.count, 0)
"""
# Who has three rows has enough. For the others, few in a world of many pages, the unseen pages are counted.
_ELIGIBLE_USERS = """
    with pages as (select distinct url from public.user_page_views_daily where {window}),
    active as (select distinct user_id from public.user_page_views_daily where {window}),
    given as (select user_id, count(*) as n from recommended group by user_id),
    short as (
      select user_id, coalesce(n, 0) as n from active left join given using (user_id) where coalesce(n, 0) < 3
    ),
    since as (
      select d.user_id, d.url, sum(d.count) as count, bool_or(d.day < '{end}') as in_window
      from public.user_page_views_daily d join short using (user_id)
      where d.day >= '{first}' group by d.user_id, d.url
    ),
    seen as (
      select v.user_id, count(*) as n
      from public.user_page_views v
      join short using (user_id)
      join pages on pages.url = v.url
      left join since on since.user_id = v.user_id and since.url = v.url
      where v.last_viewed < '{end}' or since.in_window or v.count > coalesce(since.count, 0)
      group by v.user_id
    )
    select short.user_id, short.n || ' rows, ' || (select count(*) from pages) - seen.n || ' unseen pages'
    from short join seen using (user_id)
    where short.n < least(3, (select count(*) from pages) - seen.n)
    union all
    select user_id, n || ' rows, though not active' from given where not exists (
      select from active where active.user_id = given.user_id
    )
"""
_LATEST_EMAIL = """
    select distinct user_id, 'another e-mail than in users'
    from recommended left join public.users using (user_id)
    where recommended.email is distinct from users.email
"""

RULES = {
    "ranks": _RANKS,
    "unseen": _UNSEEN,
    "unique_pages": _UNIQUE_PAGES,
    "eligible_users": _ELIGIBLE_USERS,
    "latest_email": _LATEST_EMAIL,
}


def broken_rules(transaction: "Transaction", snapshot: Path, window: Window, *, in_table: bool) -> dict[str, list[str]]:
    """Which users' recommendations break which rule.

    The table is looked at if it is as of the day, otherwise the day's snapshot; the e-mails of a snapshot are
    those of its time and may be any.

    Args:
        transaction: on the analytics database.
        snapshot: the day's file.
        window: the days learned from, up to the day.
        in_table: whether the table is as of the day.

    Returns:
        The offenders of each rule, the first thousand of them.
    """
    if in_table:
        transaction.execute("create temporary view recommended as select * from public.page_recommendations")
    else:
        _load(transaction, snapshot)
    found: dict[str, list[str]] = {}
    for name, sql in RULES.items():
        if name == "latest_email" and not in_table:
            found[name] = []
            continue
        query = sql.format(window=window.condition, first=window.first, end=window.end)
        rows = transaction.fetch(f"select * from ({query}) offenders (user_id, problem) order by 1, 2 limit {_NAMED}")
        found[name] = [f"user {user}: {problem}" for user, problem in rows]
    return found


def _load(transaction: "Transaction", snapshot: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = pq.ParquetFile(snapshot)
    batches = content.iter_batches(_BATCH)
    transaction.load("recommended", pa.RecordBatchReader.from_batches(content.schema_arrow, batches))
    transaction.execute("analyze recommended")

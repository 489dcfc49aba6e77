"""Marts: one row a key, with the latest e-mail."""

from collections.abc import Iterator, Sequence
from datetime import date

import dagster as dg

from user_pipeline.defs.check_results import NAMED, evaluate_days, result_of, rows_of, spec
from user_pipeline.errors import never_retried
from user_pipeline.ingest.feeds import USER_UPDATES
from user_pipeline.reconcile.accounts import between
from user_pipeline.resources.postgres import Databases, Postgres, Transaction, literal, quote


def mart_checks(asset: str, key: tuple[str, ...]) -> dg.AssetChecksDefinition:
    """The checks of a mart with these key columns."""

    @dg.multi_asset_check(
        name=f"{asset}_checks",
        specs=[
            spec(asset, "unique_key", f"({', '.join(key)}) identifies a row."),
            spec(asset, "latest_email", "No e-mail is older than the user's latest update."),
        ],
    )
    def checks(
        context: dg.AssetCheckExecutionContext, databases: dg.ResourceParam[Databases]
    ) -> Iterator[dg.AssetCheckResult]:
        with never_retried():
            yield from evaluate_days(
                context,
                lambda days: [unique_key(asset, key, databases.analytics, days), latest_email(asset, databases, days)],
            )

    return checks


def unique_key(asset: str, key: tuple[str, ...], analytics: Postgres, days: Sequence[date]) -> dg.AssetCheckResult:
    """The key identifies each row of the users that these days say something about.

    Where the table's unique index is there, Postgres has seen to it; rows are counted only where it is not.
    """
    columns = ", ".join(quote(column) for column in key)
    with analytics.transaction() as transaction:
        guarded = transaction.fetch(_UNIQUE_INDEX.format(table=literal(f"public.{quote(asset)}"), index=_KEYS[asset]))
        rows = (
            []
            if guarded
            else transaction.fetch(
                f"select {columns}, count(*) from public.{quote(asset)} where user_id in "
                f"(select user_id from public.{quote(asset + '_daily')} where {between('day', days)}) "
                f"group by {columns} having count(*) > 1 order by {columns} limit {NAMED}",
            )
        )
    return result_of("unique_key", asset, [f"{row[:-1]}: {row[-1]} rows" for row in rows])


_KEYS = {"users": "USING btree (user_id)", "user_page_views": 'USING btree (user_id, url_key(url) COLLATE "C")'}
"""The end of the definition of the index that makes a table's key unique."""

_UNIQUE_INDEX = """
select 1 from pg_index where indrelid = to_regclass({table}) and indisunique and indisvalid and indislive
  and replace(pg_get_indexdef(indexrelid), 'public.', '') like '%{index}'
"""


def latest_email(asset: str, databases: Databases, days: Sequence[date]) -> dg.AssetCheckResult:
    """No user of these days has an e-mail other than that of an update at least as late as those of the days.

    In user_page_views that is looked up for the pairs of the days, and for all pairs of those users for whom the
    days brought another e-mail than the days before them.
    """
    updates = rows_of(USER_UPDATES, days)
    latest = (
        "select distinct on (user_id) user_id, email, updated_at from "
        f'{updates} order by user_id, updated_at desc, email collate "C" desc'
    )
    with databases.staging.query(latest) as reader, databases.analytics.transaction() as transaction:
        transaction.load("latest", reader)
        transaction.execute("analyze latest")
        rows = transaction.fetch(
            """
            select l.user_id from latest l left join public.users u using (user_id)
            where u.user_id is null or u.updated_at < l.updated_at
              or (u.updated_at = l.updated_at and u.email is distinct from l.email)
            """
            if asset == "users"
            else f"""
            {_stale_pairs(transaction, days)}
            union
            select v.user_id from latest l
            left join lateral (
              select email from public.users_daily b
              where b.user_id = l.user_id and b.day < '{min(days)}' order by day desc limit 1
            ) before on true
            join public.user_page_views v on v.user_id = l.user_id
            join public.users u on u.user_id = l.user_id
            where before.email is distinct from l.email and v.email is distinct from u.email
            """
        )
    return result_of("latest_email", asset, [f"user {user}" for (user,) in sorted(rows)])


def _stale_pairs(transaction: Transaction, days: Sequence[date]) -> str:
    """The query for users with another e-mail in one of the pairs of these days than in users.

    Looking up each pair takes as long as the days are large, reading the table as long as it is: whichever is less.
    """
    of_days = f"select user_id from public.user_page_views_daily where {between('day', days)}"
    [(pairs, rows)] = transaction.fetch(
        f"select (select count(*) from ({of_days}) d), "
        "(select reltuples::bigint from pg_class where oid = 'public.user_page_views'::regclass)"
    )
    # Measured: 0.16 microseconds of processor for a row in the order of the table, shared by its cores, and 2.5 for one
    # by the index.
    if 24 * pairs > rows:
        return f"""
            select user_id from (
              -- Found before anyone asks whose they are: there are none as long as nothing is wrong.
              select distinct v.user_id from public.user_page_views v
              left join public.users u on u.user_id = v.user_id
              where v.email is distinct from u.email offset 0
            ) stale
            where user_id in ({of_days})
        """
    return f"""
        select v.user_id from public.user_page_views_daily d
        join public.user_page_views v on v.user_id = d.user_id and {_URL_KEY.format("v")} = {_URL_KEY.format("d")}
        left join public.users u on u.user_id = v.user_id
        where {between("day", days)} and v.email is distinct from u.email
    """


_URL_KEY = 'public.url_key({}.url) collate "C"'


users_checks = mart_checks("users", ("user_id",))
user_page_views_checks = mart_checks("user_page_views", ("user_id", "url"))

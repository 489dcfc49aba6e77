"""Cleaned: every raw row is there once, or accounted for."""

from collections.abc import Iterator, Sequence
from datetime import date

import dagster as dg

from user_pipeline.defs.check_results import evaluate_days, fetch, result_of, rows_of, spec
from user_pipeline.engines.base import Engine
from user_pipeline.errors import never_retried
from user_pipeline.ingest.feeds import PAGE_VIEWS, USER_UPDATES, Feed
from user_pipeline.lake.lake import Lake
from user_pipeline.reconcile.accounts import DayAccount, account_days
from user_pipeline.resources.postgres import Postgres
from user_pipeline.transforms.cleaned import PRODUCTION


def cleaned_checks(feed: Feed) -> dg.AssetChecksDefinition:
    """The checks of a cleaned asset."""
    asset = feed.name

    @dg.multi_asset_check(
        name=f"{asset}_checks",
        specs=[
            spec(
                asset,
                "every_row_accounted",
                "For every day: raw rows = cleaned rows + duplicates + rows of other environments; and cleaned rows "
                "are those that were delivered.",
            ),
            spec(asset, "only_production", "Every row is of the production environment."),
            spec(asset, "no_duplicates", "No two rows are equal in all columns."),
        ],
    )
    def checks(
        context: dg.AssetCheckExecutionContext, lake: dg.ResourceParam[Lake], engine: dg.ResourceParam[Engine]
    ) -> Iterator[dg.AssetCheckResult]:
        def evaluate(days: Sequence[date]) -> list[dg.AssetCheckResult]:
            accounts = account_days(feed, lake, engine, days)
            return [
                every_row_accounted(feed, accounts),
                only_production(feed, lake.staging.database, accounts),
                no_duplicates(feed, lake.staging.database, accounts),
            ]

        with never_retried():
            yield from evaluate_days(context, evaluate)

    return checks


def every_row_accounted(feed: Feed, accounts: Sequence[DayAccount]) -> dg.AssetCheckResult:
    """Each day: raw rows = cleaned rows + duplicates + other environments, counted in what is stored.

    Where the numbers agree, the sums over the values of the rows must too.
    """
    return result_of(
        "every_row_accounted",
        feed.name,
        [
            f"{a.day}: {a.raw} raw, {a.cleaned} cleaned, {a.duplicates} duplicates, "
            f"{a.other_environments} other environments"
            if not a.balances
            else f"{a.day}: the {a.cleaned} rows in Postgres are not those of the lake"
            for a in accounts
            if not (a.balances and a.is_same)
        ],
        raw=sum(a.raw for a in accounts),
        cleaned=sum(a.cleaned for a in accounts),
        duplicates=sum(a.duplicates for a in accounts),
        other_environments=sum(a.other_environments for a in accounts),
    )


def only_production(feed: Feed, staging: Postgres, accounts: Sequence[DayAccount]) -> dg.AssetCheckResult:
    """No row of the days is of another environment."""
    days = [account.day for account in accounts if account.has_foreign]
    problems = []
    if days:
        rows = fetch(
            staging,
            f"select environment, count(*) from {rows_of(feed, days)} "
            f"where environment is distinct from '{PRODUCTION}' group by 1 order by 1",
        )
        problems = [f"{environment}: {count} rows" for environment, count in rows]
    return result_of("only_production", feed.name, problems)


def no_duplicates(feed: Feed, staging: Postgres, accounts: Sequence[DayAccount]) -> dg.AssetCheckResult:
    """No two rows of the days are equal in all of the feed's columns.

    They are looked for in days whose rows are not the distinct ones of the lake; in the others there can be none.
    """
    columns = ", ".join(feed.columns)
    days = [account.day for account in accounts if not account.is_same]
    problems = []
    if days:
        rows = fetch(
            staging,
            f"select day, sum(n - 1)::bigint from (select {feed.event_time}::date as day, count(*) as n "
            f"from {rows_of(feed, days)} group by {columns}) d where n > 1 group by 1 order by 1",
        )
        problems = [f"{day}: {count} rows too many" for day, count in rows]
    return result_of("no_duplicates", feed.name, problems)


user_updates_checks = cleaned_checks(USER_UPDATES)
page_views_checks = cleaned_checks(PAGE_VIEWS)

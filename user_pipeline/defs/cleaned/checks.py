"""Cleaned: every raw row is there once, or accounted for."""

from collections.abc import Iterator, Sequence
from datetime import date

import dagster as dg

from user_pipeline.defs.check_results import evaluate_days, fetch, result_of, rows_of, spec
from user_pipeline.engines.duckdb import Engine
from user_pipeline.errors import never_retried
from user_pipeline.ingest.feeds import PAGE_VIEWS, USER_UPDATES, Feed
from user_pipeline.lake.lake import Lake
from user_pipeline.reconcile.accounts import account_days
from user_pipeline.resources.postgres import Databases, Postgres
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
                "For every day: raw rows = cleaned rows + duplicates + rows of other environments.",
            ),
            spec(asset, "only_production", "Every row is of the production environment."),
            spec(asset, "no_duplicates", "No two rows are equal in all columns."),
        ],
    )
    def checks(
        context: dg.AssetCheckExecutionContext,
        lake: dg.ResourceParam[Lake],
        engine: dg.ResourceParam[Engine],
        databases: dg.ResourceParam[Databases],
    ) -> Iterator[dg.AssetCheckResult]:
        with never_retried():
            yield from evaluate_days(
                context,
                lambda days: [
                    every_row_accounted(feed, lake, engine, days),
                    only_production(feed, databases.staging, days),
                    no_duplicates(feed, databases.staging, days),
                ],
            )

    return checks


def every_row_accounted(feed: Feed, lake: Lake, engine: Engine, days: Sequence[date]) -> dg.AssetCheckResult:
    """Each day: raw rows = cleaned rows + duplicates + other environments, counted in what is stored."""
    accounts = account_days(feed, lake, engine, days)
    return result_of(
        "every_row_accounted",
        feed.name,
        [
            f"{a.day}: {a.raw} raw, {a.cleaned} cleaned, {a.duplicates} duplicates, "
            f"{a.other_environments} other environments"
            for a in accounts
            if not a.balances
        ],
        raw=sum(a.raw for a in accounts),
        cleaned=sum(a.cleaned for a in accounts),
        duplicates=sum(a.duplicates for a in accounts),
        other_environments=sum(a.other_environments for a in accounts),
    )


def only_production(feed: Feed, staging: Postgres, days: Sequence[date]) -> dg.AssetCheckResult:
    """No row of the days is of another environment."""
    rows = fetch(
        staging,
        f"select environment, count(*) from {rows_of(feed, days)} "
        f"where environment is distinct from '{PRODUCTION}' group by 1 order by 1",
    )
    return result_of("only_production", feed.name, [f"{environment}: {count} rows" for environment, count in rows])


def no_duplicates(feed: Feed, staging: Postgres, days: Sequence[date]) -> dg.AssetCheckResult:
    """No two rows of the days are equal in all of the feed's columns."""
    columns = ", ".join(feed.columns)
    # The event time comes first: its index has the rows nearly sorted, and grouping them by hash costs far more.
    rows = fetch(
        staging,
        f"select {feed.event_time}::date, count(*) from (select {feed.event_time}, row_number() over "
        f"(partition by {columns}) as n from {rows_of(feed, days)}) d where n > 1 group by 1 order by 1",
    )
    return result_of("no_duplicates", feed.name, [f"{day}: {count} rows too many" for day, count in rows])


user_updates_checks = cleaned_checks(USER_UPDATES)
page_views_checks = cleaned_checks(PAGE_VIEWS)

"""Recommendations: the rules they keep, and whether they are any good."""

from collections.abc import Iterator, Sequence
from datetime import date

import dagster as dg

from user_pipeline import settings
from user_pipeline.defs.check_results import evaluate_days, fetch, result_of, spec
from user_pipeline.engines.base import Engine
from user_pipeline.errors import never_retried
from user_pipeline.lake.lake import Lake
from user_pipeline.recommendations.eligibility import Eligibility
from user_pipeline.recommendations.page_list_rules import LISTS, broken_list_rules
from user_pipeline.recommendations.rules import RULES, broken_rules
from user_pipeline.recommendations.window import Window
from user_pipeline.reconcile.accounts import between
from user_pipeline.resources.postgres import Databases, Postgres
from user_pipeline.warehouse.snapshots import served_day


def recommendation_checks() -> list[dg.AssetChecksDefinition]:
    """The checks of recommendations, and of how good they were."""
    asset, quality = "page_recommendations", "recommendation_quality"

    @dg.multi_asset_check(
        name=f"{asset}_checks",
        specs=[
            spec(asset, "ranks", "The ranks of each user are 1, 2, 3 without a gap, each once."),
            spec(asset, "unseen", "No user has viewed a recommended page on any day so far."),
            spec(asset, "unique_pages", "No page is recommended to a user twice."),
            spec(
                asset,
                "safe_pages",
                "Every recommended page has USER_PIPELINE_RECOMMENDATION_MIN_VIEWERS viewers in the window, and "
                "its url is one that USER_PIPELINE_RECOMMENDATION_URLS and …_EXCLUDE_URLS allow.",
            ),
            spec(asset, "reasons", "Every page that a recommendation is explained by was viewed by its user."),
            spec(
                asset,
                "eligible_users",
                "Who viewed a page in the window has min(3, unseen pages that may be shown) rows, no one else any.",
            ),
            spec(asset, "latest_email", "The e-mails of the table are those of users."),
        ],
    )
    def checks(
        context: dg.AssetCheckExecutionContext,
        lake: dg.ResourceParam[Lake],
        engine: dg.ResourceParam[Engine],
    ) -> Iterator[dg.AssetCheckResult]:
        with never_retried():
            yield from evaluate_days(
                context,
                lambda days: _excused(
                    context,
                    check_recommendations(
                        lake,
                        engine,
                        [day for day in days if _is_computed(context.instance, asset, day)],
                        settings.current().recommendation_days,
                        Eligibility.by(settings.current()),
                    ),
                ),
            )

    lists = [
        _list_checks(
            "related_pages",
            ranks="The ranks of each page are 1 to 10 without a gap, each once; fewer where it speaks for fewer pages.",
            other_pages="No page goes with itself, none goes with another twice.",
            safe_pages="Every page, and every page that goes with it, may be shown to anyone.",
        ),
        _list_checks(
            "popular_pages",
            ranks="There are 100 pages, or all that may be shown, and each has a rank of its own without a gap.",
            most_viewed="Viewers are those of the window, and no page has more than one with a better rank.",
            safe_pages="Every page may be shown to anyone.",
        ),
    ]

    @dg.multi_asset_check(
        name=f"{quality}_checks",
        specs=[
            spec(
                quality,
                "beats_popularity",
                "The recommendations hit at least as often as the most popular and the most discovered pages would "
                "have, or the difference is no more than chance.",
                blocking=False,
            )
        ],
    )
    def quality_checks(
        context: dg.AssetCheckExecutionContext, databases: dg.ResourceParam[Databases]
    ) -> Iterator[dg.AssetCheckResult]:
        with never_retried():
            yield from evaluate_days(context, lambda days: [beats_popularity(databases.analytics, days)])

    return [checks, *lists, quality_checks]


def _list_checks(asset: str, **rules: str) -> dg.AssetChecksDefinition:
    """The blocking checks of a list of pages, by name with what each says."""

    @dg.multi_asset_check(name=f"{asset}_checks", specs=[spec(asset, name, said) for name, said in rules.items()])
    def checks(
        context: dg.AssetCheckExecutionContext, lake: dg.ResourceParam[Lake], engine: dg.ResourceParam[Engine]
    ) -> Iterator[dg.AssetCheckResult]:
        current = settings.current()
        with never_retried():
            yield from evaluate_days(
                context,
                lambda days: _excused(
                    context,
                    check_lists(
                        lake,
                        engine,
                        asset,
                        [day for day in days if _is_computed(context.instance, asset, day)],
                        window_days=current.recommendation_days,
                        eligibility=Eligibility.by(current),
                    ),
                ),
            )

    return checks


def check_lists(
    lake: Lake, engine: Engine, asset: str, days: Sequence[date], *, window_days: int, eligibility: Eligibility
) -> list[dg.AssetCheckResult]:
    """The rules of a list of pages, for each of the days that has one: the table's, or else those of the snapshot."""
    problems: dict[str, list[str]] = {name: [] for name in LISTS[asset]}
    checked = [day for day in lake.analytics.partitions(asset, days) if day in days]
    for day, [file] in lake.fetch(engine, lake.analytics, asset, checked).items():
        with lake.analytics.database.transaction() as transaction:
            transaction.execute("set transaction isolation level repeatable read")
            broken = broken_list_rules(
                transaction,
                lake,
                engine,
                asset,
                file,
                window=Window(day, window_days),
                eligibility=eligibility,
                in_table=served_day(transaction, asset) == day,
            )
        for name, found in broken.items():
            problems[name] += [f"{day}: {offender}" for offender in found]
    return [result_of(name, asset, found, days=len(checked)) for name, found in problems.items()]


def check_recommendations(
    lake: Lake, engine: Engine, days: Sequence[date], window_days: int, eligibility: Eligibility
) -> list[dg.AssetCheckResult]:
    """The rules of recommendations, for each of the days that has some: the table's, or else those of the snapshot."""
    problems: dict[str, list[str]] = {name: [] for name in RULES}
    checked = [day for day in lake.analytics.partitions("page_recommendations", days) if day in days]
    for day, [file] in lake.fetch(engine, lake.analytics, "page_recommendations", checked).items():
        with lake.analytics.database.transaction() as transaction:
            transaction.execute("set transaction isolation level repeatable read")
            in_table = served_day(transaction) == day
            window = Window(day, window_days)
            broken = broken_rules(transaction, lake, engine, file, window, eligibility=eligibility, in_table=in_table)
            for name, found in broken.items():
                problems[name] += [f"{day}: {offender}" for offender in found]
    return [result_of(name, "page_recommendations", found, days=len(checked)) for name, found in problems.items()]


def _excused(context: dg.AssetCheckExecutionContext, results: list[dg.AssetCheckResult]) -> list[dg.AssetCheckResult]:
    """The results, failures as warnings if another run changed the views meanwhile.

    What was recommended then is compared with views that came after it, and the other run, which computes the
    newest day anew, is the one to answer for it.
    """
    if all(result.passed for result in results) or not _another_run_since(context):
        return results
    return [result if result.passed else result._replace(severity=dg.AssetCheckSeverity.WARN) for result in results]


def _another_run_since(context: dg.AssetCheckExecutionContext) -> bool:
    """Whether another run has brought views in since this one began."""
    own = context.op_execution_context.run_id
    record = context.instance.get_run_record_by_id(own)
    if record is None or record.start_time is None:
        return False
    since = dg.AssetRecordsFilter(dg.AssetKey("user_page_views"), after_timestamp=record.start_time)
    # A range has an event for each of its days.
    events = context.instance.fetch_materializations(since, limit=len(context.partition_keys) + 1_000).records
    return any(event.run_id != own for event in events)


def _is_computed(instance: dg.DagsterInstance, asset: str, day: date) -> bool:
    """Whether the latest run of a day computed its snapshot.

    A range computes that of its last day. What earlier runs left of the others need not fit the views of today.
    """
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[day.isoformat()]), limit=1
    ).records
    materialization = records[0].asset_materialization if records else None
    return materialization is None or materialization.metadata["computed"].value is True


def beats_popularity(analytics: Postgres, days: Sequence[date]) -> dg.AssetCheckResult:
    """On no day did the better of the simple baselines hit more often than what was recommended, beyond chance."""
    rows = fetch(
        analytics,
        "select day, hit_rate, popularity_hit_rate, trend_hit_rate, gain_high, users "
        f"from public.recommendation_quality where {between('day', days)} order by day",
    )
    return result_of(
        "beats_popularity",
        "recommendation_quality",
        [
            f"{day}: hit rate {rate:.4f}, of the most popular pages {popularity:.4f}, "
            f"of the most discovered {trend:.4f}, {users} users"
            for day, rate, popularity, trend, gain_high, users in rows
            if users and gain_high < 0
        ],
        warn=True,
        measured_days=len(rows),
    )


(
    page_recommendations_checks,
    related_pages_checks,
    popular_pages_checks,
    recommendation_quality_checks,
) = recommendation_checks()

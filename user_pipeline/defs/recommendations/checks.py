"""Recommendations: the rules they keep, and whether they are any good."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date
from pathlib import Path

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
from user_pipeline.resources.postgres import Databases, Postgres, Transaction
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
    """The rules of a list of pages, see :func:`_check_snapshots`."""

    def broken(transaction: Transaction, file: Path, window: Window, *, in_table: bool) -> dict[str, list[str]]:
        return broken_list_rules(
            transaction, lake, engine, asset, file, window=window, eligibility=eligibility, in_table=in_table
        )

    windows = [Window(day, window_days) for day in days]
    return _check_snapshots(lake, engine, asset, windows, rules=LISTS[asset], broken=broken)


def check_recommendations(
    lake: Lake, engine: Engine, days: Sequence[date], window_days: int, eligibility: Eligibility
) -> list[dg.AssetCheckResult]:
    """The rules of recommendations, see :func:`_check_snapshots`."""

    def broken(transaction: Transaction, file: Path, window: Window, *, in_table: bool) -> dict[str, list[str]]:
        return broken_rules(transaction, lake, engine, file, window, eligibility=eligibility, in_table=in_table)

    windows = [Window(day, window_days) for day in days]
    return _check_snapshots(lake, engine, "page_recommendations", windows, rules=RULES, broken=broken)


def _check_snapshots(
    lake: Lake,
    engine: Engine,
    asset: str,
    windows: Sequence[Window],
    *,
    rules: Iterable[str],
    broken: Callable[..., dict[str, list[str]]],
) -> list[dg.AssetCheckResult]:
    """The rules of a table of snapshots, for each of the days that has a snapshot.

    They are about the table if it is as of the day, otherwise about the day's file. A day past its retention has none.

    Args:
        lake: has the snapshots, and the analytics database.
        engine: reads them.
        asset: the table.
        windows: of each day, the days that its snapshot is learned from.
        rules: the names of the rules.
        broken: gives the offenders of each rule for a day.
    """
    problems: dict[str, list[str]] = {name: [] for name in rules}
    written = lake.analytics.partitions(asset, [window.last for window in windows])
    files = lake.fetch(engine, lake.analytics, asset, [day for day, there in written.items() if there])
    for window in windows:
        if window.last not in files:
            continue
        day, [file] = window.last, files[window.last]
        with lake.analytics.database.transaction() as transaction:
            transaction.execute("set transaction isolation level repeatable read")
            in_table = served_day(transaction, asset) == day
            for name, found in broken(transaction, file, window, in_table=in_table).items():
                problems[name] += [f"{day}: {offender}" for offender in found]
    return [result_of(name, asset, found, days=len(files)) for name, found in problems.items()]


def _excused(context: dg.AssetCheckExecutionContext, results: list[dg.AssetCheckResult]) -> list[dg.AssetCheckResult]:
    """The results, with failures as warnings if another run changed the views meanwhile.

    The recommendations are then compared with views that arrived after they were made. The other run computes the
    newest day again, and its checks look at the result.
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

    A run of several days computes the snapshot of its last day alone. What earlier runs left of the other days need not
    fit the views of today. A materialization that somebody reported by hand does not say.
    """
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[day.isoformat()]), limit=1
    ).records
    materialization = records[0].asset_materialization if records else None
    computed = materialization.metadata.get("computed") if materialization else None
    return computed is None or computed.value is True


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

"""What checks share: evaluation by day, specs, results."""

from collections.abc import Callable, Sequence
from datetime import date
from typing import Any

import dagster as dg

from user_pipeline.defs.partitions import DAILY
from user_pipeline.ingest.feeds import Feed
from user_pipeline.masking import shorten
from user_pipeline.reconcile.accounts import between
from user_pipeline.resources.postgres import Postgres, quote

NAMED = 20
"""How many problems a result lists."""
_LONGEST = 500
"""How many characters of each are shown: a url may be megabytes long, and results are not deleted."""


def evaluate_days(
    context: dg.AssetCheckExecutionContext, evaluate: Callable[[Sequence[date]], list[dg.AssetCheckResult]]
) -> list[dg.AssetCheckResult]:
    """Evaluate checks for the days of the run, and tell Dagster the result of each single day.

    A result is of the partition of the run or of none. So after a run of a range, even of one day, Dagster would show
    each of its days as skipped. The days are evaluated one by one only if they do not pass together.
    """
    days = [date.fromisoformat(key) for key in context.partition_keys]
    results = evaluate(days)
    if not context.op_execution_context.has_partition_key:
        same = len(days) == 1 or all(result.passed for result in results)
        for day in days:
            for result in results if same else evaluate([day]):
                # result_of always sets both.
                assert result.asset_key is not None  # noqa: S101 - for the type checker
                assert result.check_name is not None  # noqa: S101 - for the type checker
                context.op_execution_context.log_event(  # taken, though its annotation leaves evaluations out
                    dg.AssetCheckEvaluation(  # type: ignore[arg-type] # see the line above
                        asset_key=result.asset_key,
                        check_name=result.check_name,
                        passed=result.passed,
                        severity=result.severity,
                        description=result.description,
                        metadata={"problems": result.metadata["problems"]},
                        partition=day.isoformat(),
                    )
                )
    return results


def spec(asset: str, name: str, description: str, *, blocking: bool = True) -> dg.AssetCheckSpec:
    """The spec of a check of a daily asset; if a blocking check fails, what is downstream is not materialized."""
    return dg.AssetCheckSpec(name, asset=asset, description=description, blocking=blocking, partitions_def=DAILY)


def rows_of(feed: Feed, days: Sequence[date]) -> str:
    """The cleaned rows of some days, as SQL to select from."""
    return f"(select * from public.{quote(feed.name)} where {between(feed.event_time, days)}) s"


def fetch(database: Postgres, sql: str) -> list[tuple[Any, ...]]:
    """The rows of one query, in a transaction of its own."""
    with database.transaction() as transaction:
        return transaction.fetch(sql)


def result_of(
    name: str,
    asset: str,
    problems: list[str],
    *,
    warn: bool = False,
    **numbers: float,
) -> dg.AssetCheckResult:
    """The result of a check.

    Args:
        name: of the check.
        asset: it is about.
        problems: what is wrong; the check passes if there is none.
        warn: a failure is a warning, not an error.
        numbers: what to show with it.
    """
    # Urls and object names may hold addresses.
    shown = [shorten(problem, _LONGEST) for problem in problems[:NAMED]]
    if len(problems) > NAMED:
        shown.append(f"and {len(problems) - NAMED} more")
    return dg.AssetCheckResult(
        asset_key=asset,
        check_name=name,
        passed=not problems,
        severity=dg.AssetCheckSeverity.WARN if warn else dg.AssetCheckSeverity.ERROR,
        description="; ".join(shown) or None,
        metadata={**numbers, "problems": len(problems)},
    )

"""Silence is heard: a sign of life after each day's run, and a check that fails when yesterday is not there in time."""

from datetime import UTC, date, datetime, timedelta

import dagster as dg

from user_pipeline import settings
from user_pipeline.defs.automation.alerts import fetch
from user_pipeline.defs.automation.jobs import daily_log_pipeline
from user_pipeline.defs.common import OWNERS, partition_range
from user_pipeline.defs.links import links
from user_pipeline.errors import never_retried
from user_pipeline.lake.lake import Lake
from user_pipeline.reconcile.status import due_day

_WATCHED = ("user_page_views", "page_recommendations")


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.SUCCESS,
    monitored_jobs=[daily_log_pipeline],
    default_status=dg.DefaultSensorStatus.RUNNING if settings.current().heartbeat else dg.DefaultSensorStatus.STOPPED,
    description="Fetches USER_PIPELINE_HEARTBEAT_URL after each successful run of daily_log_pipeline for the day "
    "before: whoever waits for it there tells of a platform that is silent. Off while that is unset.",
)
def heartbeat(context: dg.RunStatusSensorContext) -> None:
    """A sign of life for the run of a day that ended the day before."""
    url = settings.current().heartbeat
    run = context.dagster_run
    record = context.instance.get_run_record_by_id(run.run_id)
    _, last = partition_range(run.tags)
    if (
        url is None
        or record is None
        or last != _day_before(datetime.fromtimestamp(record.start_time or 0, UTC)).isoformat()
    ):
        context.log.info("run %s: no sign of life, it is not of the day before", run.run_id)
        return
    problem = fetch(url)
    if problem:
        context.log.error("run %s: its sign of life did not reach %s: %s", run.run_id, url, problem)
    else:
        context.log.info("run %s: a sign of life reached %s", run.run_id, url)


yesterday = dg.AssetSpec(
    "yesterday",
    description="What is to be there each morning: the partitions of yesterday of the tables people query. Nothing is "
    "stored here, and no run of a day evaluates the check: that is done by `overdue_day` at 03:00 UTC, and by whoever "
    "asks for it in the UI. Not partitioned.",
    group_name="marts",
    kinds={"postgres", "table"},
    owners=OWNERS,
    metadata=links("yesterday", "watch"),
)
"""An asset of its own: each run of an asset evaluates its checks, and a run of an old day has no say in this one.

It names no upstream assets: ``page_views+`` would select it with its check.
"""


@dg.asset_check(
    asset=yesterday.key,
    description="user_page_views and page_recommendations have their partitions of yesterday. Other days, however late "
    "they are materialized, play no part.",
    blocking=True,
)
def partitions_are_there(lake: dg.ResourceParam[Lake]) -> dg.AssetCheckResult:
    """Fails, and its run with it, if a partition is missing that has been due since three o'clock."""
    with never_retried():
        return yesterdays_partitions(lake, datetime.now(UTC))


def yesterdays_partitions(lake: Lake, now: datetime) -> dg.AssetCheckResult:
    """Look for the day that was to be there at this moment.

    What a failure says stays the same until the fault is mended, so it has one alert however long it lasts.
    """
    day = due_day(now)
    found = {asset: lake.analytics.partitions(asset) for asset in _WATCHED}
    missing = [asset for asset in _WATCHED if day not in found[asset]] if day >= settings.current().start_date else []
    problems = []
    for asset in missing:
        last = max((there for there in found[asset] if there < day), default=None)
        since = f"no partition after {last}" if last else "no partition"
        problems.append(f"{asset} has {since}: see whether the runs of 00:30 UTC failed or never began")
    return dg.AssetCheckResult(
        passed=not missing,
        description="; ".join(problems) or None,
        metadata={"day": day.isoformat(), "problems": len(missing)},
    )


overdue_day = dg.define_asset_job(
    "overdue_day",
    selection=dg.AssetSelection.checks(partitions_are_there),
    description="Fails if yesterday's partition of the tables is not there: materializing another day late does not "
    "help it. An alert tells of the failure, and of its end.",
    executor_def=dg.in_process_executor,
)

overdue_day_schedule = dg.ScheduleDefinition(
    job=overdue_day,
    cron_schedule="0 3 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="At 03:00 UTC.",
)


def _day_before(now: datetime) -> date:
    return now.astimezone(UTC).date() - timedelta(days=1)

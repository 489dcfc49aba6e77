"""Silence is heard: a sign of life after each day's run, and a run that fails when yesterday is not there in time."""

from datetime import UTC, date, datetime, timedelta

import dagster as dg

from user_pipeline import settings
from user_pipeline.defs.automation.alerts import fetch
from user_pipeline.defs.automation.jobs import daily_log_pipeline
from user_pipeline.defs.common import partition_range
from user_pipeline.errors import PermanentError, never_retried
from user_pipeline.lake.lake import Lake

_WATCHED = ("user_page_views", "page_recommendations")


class OverdueDayError(PermanentError):
    """Yesterday's partition is not there, though it should have been for hours."""


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


@dg.op
def require_yesterday(context: dg.OpExecutionContext, lake: dg.ResourceParam[Lake]) -> None:
    """Fail if the partition of yesterday is not there, whatever other days were materialized since."""
    with never_retried():
        require_day_before(lake, datetime.now(UTC))
    context.log.info("yesterday is there")


def require_day_before(lake: Lake, now: datetime) -> None:
    """Refuse that the partition of the day before is missing.

    Raises:
        OverdueDayError: it is.
    """
    day = _day_before(now)
    if day < settings.current().start_date:
        return
    missing = [asset for asset in _WATCHED if day not in lake.analytics.partitions(asset, [day])]
    if missing:
        raise OverdueDayError(
            f"{' and '.join(missing)} of {day} should have been there since the run of 00:30 UTC. See whether that run "
            "failed or never began (the daemon, its schedules), then materialize the day."
        )


def _day_before(now: datetime) -> date:
    return now.astimezone(UTC).date() - timedelta(days=1)


@dg.job(
    description="Fails if yesterday's partition of the tables is not there: materializing another day late does not "
    "help it. An alert tells of the failure as of any other.",
    executor_def=dg.in_process_executor,
)
def overdue_day() -> None:
    """One step."""
    require_yesterday()


overdue_day_schedule = dg.ScheduleDefinition(
    job=overdue_day,
    cron_schedule="0 3 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="At 03:00 UTC.",
)

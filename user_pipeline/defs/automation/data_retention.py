"""Personal data of old days leave the lake and staging, once a day, if USER_PIPELINE_RETENTION_DAYS is set."""

from datetime import UTC, datetime

import dagster as dg

from user_pipeline import settings
from user_pipeline.engines.duckdb import Engine
from user_pipeline.errors import PermanentError, never_retried
from user_pipeline.interrupts import cancelled_by, watched
from user_pipeline.lake.lake import Lake
from user_pipeline.reconcile.retention import end_retention, first_kept


class NoRetentionError(PermanentError):
    """Nothing says how long data are kept."""


@dg.op
def remove_old_days(context: dg.OpExecutionContext, lake: dg.ResourceParam[Lake]) -> None:
    """Remove what is older than USER_PIPELINE_RETENTION_DAYS."""
    with never_retried():
        days = settings.current().retention_days
        if days is None:
            raise NoRetentionError(
                "USER_PIPELINE_RETENTION_DAYS is not set: all data are kept, and nothing was removed."
            )
        now = datetime.now(UTC)
        first = first_kept(now, days)
        # Whatever the engine of days is: what goes is told by days, and little of it is looked into.
        with Engine(settings.current()) as engine, watched(), cancelled_by(engine.interrupt):
            retired = end_retention(lake, engine, first, now)
        context.log.info("before %s: %d files removed, of %d days", first, retired.files, retired.days)
        if retired.unfinished:
            context.log.warning(
                "these days had rows that were not materialized, and that no sum has: %s",
                ", ".join(map(str, retired.unfinished)),
            )


@dg.job(
    description="Removes raw and cleaned rows, rejected lines and identities of days older than "
    "USER_PIPELINE_RETENTION_DAYS. The marts keep their sums.",
    executor_def=dg.in_process_executor,
)
def remove_data_past_retention() -> None:
    """One step."""
    remove_old_days()


remove_data_past_retention_schedule = dg.ScheduleDefinition(
    job=remove_data_past_retention,
    cron_schedule="0 5 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING
    if settings.current().retention_days
    else dg.DefaultScheduleStatus.STOPPED,
    description="At 05:00 UTC, when the run of the day before is long done. Off while USER_PIPELINE_RETENTION_DAYS is "
    "not set.",
)

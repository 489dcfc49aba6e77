"""How long Dagster remembers runs: those that say where data came from for good, the others for a while.

Dagster deletes old ticks (``retention`` of dagster.yaml), but never runs, and the sensor alone may start hundreds a
day. A run is deleted with its events, so one that materialized, observed or checked an asset is kept: without them
the UI would show its days as missing, and the sensor would do them again.
"""

from datetime import UTC, datetime, timedelta

import dagster as dg
from pydantic import Field

_ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
_WORTH_KEEPING = {
    dg.DagsterEventType.ASSET_MATERIALIZATION,
    dg.DagsterEventType.ASSET_OBSERVATION,
    dg.DagsterEventType.ASSET_CHECK_EVALUATION,
}


class Retention(dg.Config):
    """What ``delete_old_runs`` is told."""

    days: int = Field(default=90, ge=1, description="Runs that ended before so many days are deleted.")


@dg.op
def delete_runs_without_assets(context: dg.OpExecutionContext, config: Retention) -> None:
    """Delete the runs that ended long ago and did nothing to any asset."""
    deleted = delete_runs(context.instance, datetime.now(UTC) - timedelta(days=config.days))
    context.log.info("%d runs deleted that ended more than %d days ago", deleted, config.days)


@dg.job(
    description="Deletes Dagster's records of runs that ended more than 90 days ago and materialized, observed and "
    "checked no asset: looks at the source, and runs that failed before they did anything. Tables, files and the "
    "history of assets stay.",
    executor_def=dg.in_process_executor,
)
def delete_old_runs() -> None:
    """One step."""
    delete_runs_without_assets()


delete_old_runs_schedule = dg.ScheduleDefinition(
    job=delete_old_runs,
    cron_schedule="0 4 * * *",
    description="At 04:00 UTC: deletes the records of old runs that did nothing to any asset.",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)


def delete_runs(instance: dg.DagsterInstance, before: datetime) -> int:
    """Delete the runs that ended before a moment and left no trace in any asset's history.

    Returns:
        how many.
    """
    old = instance.get_run_ids(dg.RunsFilter(statuses=_ENDED, updated_before=before))
    without = [
        run_id for run_id in old if not instance.get_records_for_run(run_id, of_type=_WORTH_KEEPING, limit=1).records
    ]
    for run_id in without:
        instance.delete_run(run_id)
    return len(without)

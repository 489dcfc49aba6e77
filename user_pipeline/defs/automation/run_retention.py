"""How long Dagster remembers runs: those that say where data came from for good, the others for a while.

Dagster deletes old ticks (``retention`` of dagster.yaml), but never runs, and the sensor alone may start hundreds a
day. A run is deleted with its events, so one that materialized, observed or checked a partition is kept: without them
the UI would show its days as missing, and the sensor would do them again. Of the runs that read new objects, an asset
without partitions, the latest is kept.

Most of what a run writes tells of its steps. Once a run is old, only what is about assets stays of it: what Dagster's
own proposal keeps (https://github.com/dagster-io/dagster/pull/33863).
"""

from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
from pydantic import Field

_ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
_WORTH_KEEPING = {
    dg.DagsterEventType.ASSET_MATERIALIZATION,
    dg.DagsterEventType.ASSET_OBSERVATION,
    dg.DagsterEventType.ASSET_CHECK_EVALUATION,
}
_ABOUT_ASSETS = (
    *_WORTH_KEEPING,
    dg.DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED,
    dg.DagsterEventType.ASSET_FAILED_TO_MATERIALIZE,
)
_FEW_EVENTS = 50
"""A run that reads new objects has fewer: two assets and their checks."""


class Retention(dg.Config):
    """What ``delete_old_runs`` is told."""

    days: int = Field(default=90, ge=1, description="Runs that ended before so many days are deleted.")


@dg.op
def delete_runs_without_assets(context: dg.OpExecutionContext, config: Retention) -> None:
    """Delete the runs that ended long ago and did nothing to any asset."""
    deleted = delete_runs(context.instance, datetime.now(UTC) - timedelta(days=config.days))
    context.log.info("%d runs deleted that ended more than %d days ago", deleted, config.days)


@dg.op(ins={"after": dg.In(dg.Nothing)})
def prune_events_of_old_runs(context: dg.OpExecutionContext, config: Retention) -> None:
    """Delete what the other runs that ended long ago wrote about anything but assets."""
    pruned = prune_events(context.instance, datetime.now(UTC) - timedelta(days=config.days))
    context.log.info("%d events deleted of runs that ended more than %d days ago", pruned, config.days)


@dg.job(
    description="Deletes Dagster's records of runs that ended more than 90 days ago and did nothing to a partition: "
    "runs that only read new objects, but for the latest, and runs that failed before they did anything. Of the others "
    "only materializations, observations and checks stay. Tables, files and the history of days stay.",
    executor_def=dg.in_process_executor,
)
def delete_old_runs() -> None:
    """Two steps."""
    prune_events_of_old_runs(after=delete_runs_without_assets())


delete_old_runs_schedule = dg.ScheduleDefinition(
    job=delete_old_runs,
    cron_schedule="0 4 * * *",
    description="At 04:00 UTC: deletes the records of old runs that did nothing to a partition.",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)


def delete_runs(instance: dg.DagsterInstance, before: datetime) -> int:
    """Delete the runs that ended before a moment and that no asset's history needs.

    Returns:
        how many.
    """
    old = instance.get_run_ids(dg.RunsFilter(statuses=_ENDED, updated_before=before))
    unneeded = [run_id for run_id in old if not _is_needed(instance, run_id)]
    for run_id in unneeded:
        instance.delete_run(run_id)
    return len(unneeded)


def prune_events(instance: dg.DagsterInstance, before: datetime) -> int:
    """Delete the events of runs that ended before a moment, but for those about assets.

    That a run was to materialize a partition stays where it did not succeed: the UI shows that partition as failed.

    Returns:
        how many.
    """
    from sqlalchemy import text

    kept = ", ".join(f"'{kind.value}'" for kind in _ABOUT_ASSETS)
    ended = ", ".join(f"'{status.value}'" for status in _ENDED)
    # The storages of Dagster that are databases have it, and no way to delete but whole runs.
    storage: Any = instance.event_log_storage
    with storage.index_connection() as connection:
        deleted = connection.execute(
            text(
                f"""
                delete from event_logs e using runs r
                where r.run_id = e.run_id and r.status in ({ended}) and r.update_timestamp < :before
                  and coalesce(e.dagster_event_type, '') not in ({kept})
                  and not (e.dagster_event_type = '{dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED.value}'
                    and r.status <> '{dg.DagsterRunStatus.SUCCESS.value}')
                """
            ),
            {"before": before.astimezone(UTC).replace(tzinfo=None)},
        )
    return int(deleted.rowcount)


def _is_needed(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether a run did anything to a partition, or was the last to materialize an asset without partitions."""
    page = instance.get_records_for_run(run_id, of_type=_WORTH_KEEPING, limit=_FEW_EVENTS)
    events = [record.event_log_entry.dagster_event for record in page.records]
    if page.has_more or any(event is None or event.partition for event in events):
        return True
    materialized = {event.asset_key for event in events if event is not None and event.is_step_materialization}
    if events and not materialized:
        return True
    latest = [instance.get_latest_materialization_event(key) for key in materialized if key is not None]
    return any(event is None or event.run_id == run_id for event in latest)

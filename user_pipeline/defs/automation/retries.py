"""Retries that Dagster's daemon missed: it is made to look again at the failures whose retry it owes.

With ``run_retries`` on, a failed run is tagged with whether it will be retried, and the daemon requests the retry when
it reads the run's failure in the log of events. It reads each event once, up to the highest number it has seen, so a
retry that goes wrong at that moment is lost for good, mostly without a word:

- The event is written a moment before the row of the run says that it failed. A daemon that reads in between finds a
  run that has not failed. Run monitoring, which fails the runs whose container died, and this reader wake up together.
- Events of processes that write at once may be committed in another order than they are numbered.
- A retry that cannot be requested, as the code server or the database does not answer, is not requested again.

So the sensor compares what was promised with what is there. What it finds it leaves to Dagster, which requests at
most one retry for a run however often it reads its failure.
"""

from datetime import UTC, datetime, timedelta

import dagster as dg

from user_pipeline.dagster_internals import (
    AUTO_RETRY_RUN_ID_TAG,
    EVENT_LOG_CONSUMER_CURSOR,
    PARENT_RUN_ID_TAG,
    RETRY_FAILED_MESSAGE,
    WILL_RETRY_TAG,
)
from user_pipeline.errors import masked

_CURSOR = EVENT_LOG_CONSUMER_CURSOR + dg.DagsterEventType.RUN_FAILURE.value
"""Where the daemon keeps the number of the last failure it read."""

_REPORT = "Dagster's daemon missed the retry of this run; it is made to read the failure again"
_MOST_REPORTS = 3
"""Of one run: what has not helped by then, such as a job that no longer exists, will not."""
_SPAN = timedelta(days=1)
"""Nobody expects the retry of a run that failed before that."""


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Looks for failed runs that were to be retried and were not, and has Dagster's daemon read their "
    "failures again. Does nothing where run_retries of dagster.yaml is off.",
)
@masked()
def missed_retries(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """One tick: runs are requested by the daemon, never by the sensor itself."""
    if not context.instance.run_retries_enabled:
        return dg.SkipReason("run_retries is off")
    missed = read_again(context.instance, datetime.now(UTC))
    if not missed:
        return dg.SkipReason("no retry was missed")
    context.log.warning("retries that Dagster's daemon missed: %s", ", ".join(missed))
    return dg.SkipReason(f"the daemon is made to read the failures of {len(missed)} runs again")


def read_again(instance: dg.DagsterInstance, now: datetime) -> list[str]:
    """Have the daemon read the failures again whose retries it missed.

    Returns:
        the ids of the runs.
    """
    cursors = instance.daemon_cursor_storage
    read = cursors.get_cursor_values({_CURSOR}).get(_CURSOR)
    if read is None:
        # It has not begun, and will leave out what is older.
        return []
    failed = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=now - _SPAN))
    found = [(run, _missed(instance, run)) for run in failed]
    # Later ones it has yet to read.
    missed = [(run, event) for run, event in found if event is not None and event <= int(read)]
    for run, _ in missed:
        instance.add_run_tags(run.run_id, {WILL_RETRY_TAG: "true"})
    if missed:
        cursors.set_cursor_values({_CURSOR: str(min(event for _, event in missed) - 1)})
    for run, _ in missed:
        # Last: a tick that fails before this does not count.
        instance.report_engine_event(_REPORT, run)
    return [run.run_id for run, _ in missed]


def _missed(instance: dg.DagsterInstance, run: dg.DagsterRun) -> int | None:
    """The number of the event in which a run failed, if its retry is due and not there; otherwise None."""
    promised = run.tags.get(WILL_RETRY_TAG)
    # Dagster can only retry what it launched from a code location.
    if promised is None or AUTO_RETRY_RUN_ID_TAG in run.tags or run.remote_job_origin is None:
        return None
    kinds = {dg.DagsterEventType.RUN_FAILURE, dg.DagsterEventType.ENGINE_EVENT}
    failure, messages = None, []
    for record in instance.get_records_for_run(run.run_id, of_type=kinds).records:
        event = record.event_log_entry.get_dagster_event()
        if event.event_type == dg.DagsterEventType.RUN_FAILURE:
            failure = record.storage_id
        messages.append(event.message)
    due = promised == "true" or RETRY_FAILED_MESSAGE in messages
    if not due or messages.count(_REPORT) >= _MOST_REPORTS:
        return None
    # Also one that a person requested.
    retried = instance.get_runs_count(dg.RunsFilter(tags={PARENT_RUN_ID_TAG: run.run_id}))
    return None if retried else failure

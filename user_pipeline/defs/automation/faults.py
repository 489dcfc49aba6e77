"""Which failed checks of a run are news, and which checks that failed before pass again.

A check is told of once for a partition, and again only when it fails for another reason; what was told before is known
from the evaluations of earlier runs, which Dagster keeps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import dagster as dg

from user_pipeline.dagster_internals import AssetCheckExecutionRecordStatus, PartitionKeyFilter

_PAGE = 1000
_TOLD_ONCE = "schema_drift"
"""Its failure is news and no fault: there is nothing to mend."""
_MOST_DAYS = 100
"""Of a run of more days the earlier evaluations are not looked for, and all that fails is news."""


@dataclass(frozen=True, slots=True)
class News:
    """What the checks of a run say that those of earlier runs did not.

    Attributes:
        failed: evaluations that failed, which had passed before, were never made, or failed for another reason.
        mended: evaluations that passed, which had failed before.
    """

    failed: Sequence[dg.AssetCheckEvaluation]
    mended: Sequence[dg.AssetCheckEvaluation]

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self.failed or self.mended)


def news(instance: dg.DagsterInstance, run_id: str) -> News:
    """Compare the evaluations of a run with those of the runs before it."""
    failed, mended = [], []
    made = list(_evaluations(instance, run_id))
    # A run of several days evaluates a check for each of them and for all: these tell nothing more.
    by_day = {(evaluation.asset_key, evaluation.check_name) for evaluation in made if evaluation.partition}
    made = [each for each in made if each.partition or (each.asset_key, each.check_name) not in by_day]
    compared = len({evaluation.partition for evaluation in made}) <= _MOST_DAYS
    for evaluation in made:
        before = _before(instance, run_id, evaluation) if compared else None
        if evaluation.passed:
            if before is not None and not before.passed and evaluation.check_name != _TOLD_ONCE:
                mended.append(evaluation)
        elif before is None or before.passed or before.description != evaluation.description:
            failed.append(evaluation)
    return News(failed, mended)


def _evaluations(instance: dg.DagsterInstance, run_id: str) -> Iterator[dg.AssetCheckEvaluation]:
    """The evaluations of a run, read a page at a time."""
    cursor, more = None, True
    while more:
        page = instance.get_records_for_run(
            run_id, cursor=cursor, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION, limit=_PAGE
        )
        for record in page.records:
            event = record.event_log_entry.dagster_event
            if event is not None:
                yield event.asset_check_evaluation_data
        cursor, more = page.cursor, page.has_more


def _before(
    instance: dg.DagsterInstance, run_id: str, evaluation: dg.AssetCheckEvaluation
) -> dg.AssetCheckEvaluation | None:
    """The evaluation of the same check for the same partition that was the last before the run."""
    cursor, is_older = None, False
    while True:
        records = instance.event_log_storage.get_asset_check_execution_history(
            dg.AssetCheckKey(evaluation.asset_key, evaluation.check_name),
            limit=10,
            cursor=cursor,
            status={AssetCheckExecutionRecordStatus.SUCCEEDED, AssetCheckExecutionRecordStatus.FAILED},
            partition_filter=PartitionKeyFilter(key=evaluation.partition),
        )
        for record in records:
            # Runs that came after it may have been evaluated already.
            if record.run_id == run_id:
                is_older = True
            elif is_older and record.event is not None and record.event.dagster_event is not None:
                found: dg.AssetCheckEvaluation = record.event.dagster_event.asset_check_evaluation_data
                return found
        if not records:
            return None
        cursor = records[-1].id

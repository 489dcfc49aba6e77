"""What Dagster knows of the last run, and of the checks that fail now."""

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import dagster as dg

from user_pipeline.dagster_internals import AssetCheckExecutionRecordStatus
from user_pipeline.defs.common import partition_range
from user_pipeline.masking import shorten

_LONGEST = 300


@dataclass(frozen=True, slots=True)
class LastRun:
    """The run that was made last.

    Attributes:
        run_id: its id.
        job: its job; ``assets`` for a run of a selection of assets.
        status: as Dagster names it, such as SUCCESS.
        days: its partition, or its range as ``first...last``; empty for none.
        seconds: how long it took; None for a run that has not begun, or not ended.
    """

    run_id: str
    job: str
    status: str
    days: str
    seconds: float | None


@dataclass(frozen=True, slots=True)
class FailedCheck:
    """A check whose latest evaluation failed.

    Attributes:
        asset: its asset.
        check: its name.
        severity: ERROR or WARN.
        day: the partition that was evaluated; None for a check without.
        description: what is wrong, shortened, with addresses masked.
    """

    asset: str
    check: str
    severity: str
    day: str | None
    description: str


@contextmanager
def opened() -> Iterator[dg.DagsterInstance | None]:
    """The instance that Dagster's commands share here; None where each would make a temporary one."""
    here = Path("dagster.yaml")
    if os.environ.get("DAGSTER_HOME"):
        with dg.DagsterInstance.get() as instance:
            yield instance
    elif here.is_file():
        # As Dagster's commands do: with its content, and another directory, as Dagster would leave files in this one.
        with TemporaryDirectory() as home:
            shutil.copy(here, home)
            with dg.DagsterInstance.from_config(home) as instance:
                yield instance
    else:
        yield None


def last_run(instance: dg.DagsterInstance) -> LastRun | None:
    """The run that was made last, if any."""
    records = instance.get_run_records(limit=1)
    if not records:
        return None
    [record] = records
    run = record.dagster_run
    first, last = partition_range(run.tags)
    began, ended = record.start_time, record.end_time
    return LastRun(
        run.run_id,
        "assets" if run.job_name.startswith("__ASSET_JOB") else run.job_name,
        run.status.value,
        first or "" if first == last else f"{first}...{last}",
        ended - began if began and ended else None,
    )


def failed_checks(instance: dg.DagsterInstance, keys: Iterable[dg.AssetCheckKey]) -> Sequence[FailedCheck]:
    """The checks whose latest evaluation failed, errors first."""
    latest = instance.event_log_storage.get_latest_asset_check_execution_by_key(list(keys))
    failed = []
    for key, record in latest.items():
        if record.status != AssetCheckExecutionRecordStatus.FAILED or record.event is None:
            continue
        event = record.event.dagster_event
        # A step that broke before it had a result has none.
        made = event.asset_check_evaluation_data if event else None
        severity = made.severity.value if made else "ERROR"
        text = shorten((made and made.description) or "", _LONGEST)
        failed.append(FailedCheck(key.asset_key.to_user_string(), key.name, severity, record.partition, text))
    return sorted(failed, key=lambda check: (check.severity != "ERROR", check.asset, check.check))

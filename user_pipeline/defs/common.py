"""What the assets of the log pipeline share."""

import sys
from collections.abc import Callable, Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import dagster as dg

from user_pipeline.dagster_internals import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
)
from user_pipeline.defs.links import links
from user_pipeline.defs.partitions import DAILY
from user_pipeline.engines.base import Engine, Put
from user_pipeline.interrupts import raise_if_told
from user_pipeline.io_managers.metadata import timed
from user_pipeline.io_managers.partitioned import File
from user_pipeline.lake.lake import Lake
from user_pipeline.lake.partitions import LakeFile
from user_pipeline.lake.parts import IntoLake
from user_pipeline.transforms import Frame
from user_pipeline.warehouse.day_files import DayFiles

OWNERS = ["team:data-platform"]


class StepRetryPolicy(dg.RetryPolicy):
    """A retry policy that does not retry a step after the run was told to stop.

    Dagster treats an interrupt like any error of a step, and asks the policy for the delay while it handles it.
    """

    def calculate_delay(self, attempt_num: int) -> float:
        """Seconds until the next attempt.

        Raises:
            KeyboardInterrupt: the run was told to stop.
        """
        raise_if_told(sys.exc_info()[1])
        return super().calculate_delay(attempt_num)


RETRY = StepRetryPolicy(max_retries=3, delay=5, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
"""For errors that may pass, such as those of a database that is restarting. Permanent errors are not retried."""


# The schedules start at 00:30 UTC. Rematerializing days with late data counts as fresh, too.
FRESHNESS = dg.FreshnessPolicy.cron(deadline_cron="0 3 * * *", lower_bound_delta=timedelta(hours=3))
"""Every day between midnight and three o'clock, UTC."""

PERSONAL = {"personal_data": "yes"}
"""The tag of assets with names or e-mail addresses."""


def unpartitioned_asset(
    *,
    code_version: str,
    **options: Any,  # noqa: ANN401 - dg.asset's
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """:func:`dagster.asset` with what all assets have in common; an option given here replaces the common one.

    Args:
        code_version: of the rule the asset is made by. It is raised when the rule changes, so that Dagster shows which
            days were made by an older one.
        options: those of :func:`dagster.asset`.
    """
    common = {
        "owners": OWNERS,
        "retry_policy": RETRY,
        "freshness_policy": FRESHNESS,
        "code_version": code_version,
        # A run costs seconds of start-up whatever it does, so a range of days is one run. Dagster's command line wants
        # it of every asset of a range, those without days included.
        "backfill_policy": dg.BackfillPolicy.single_run(),
    }

    def decorate(compute: Callable[..., Any]) -> dg.AssetsDefinition:
        code = compute.__code__
        linked = links(compute.__name__, options["group_name"], Path(code.co_filename), code.co_firstlineno)
        metadata = {**options.get("metadata", {}), **linked}
        made: dg.AssetsDefinition = dg.asset(**{**common, **options, "metadata": metadata})(compute)
        return made

    return decorate


def daily_asset(
    *,
    code_version: str,
    **options: Any,  # noqa: ANN401 - dg.asset's
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """Like :func:`unpartitioned_asset`, for an asset with a partition a day."""
    return unpartitioned_asset(code_version=code_version, **{"partitions_def": DAILY, **options})


def file_of(
    engine: Engine,
    frame: Frame,
    day: str,
    put: Put[LakeFile] | None = None,
    **metadata: Any,  # noqa: ANN401 - values to show
) -> File:
    """The rows of a day as a file in the scratch directory of the run, or as files of the lake if it works there.

    Args:
        engine: writes it.
        frame: the rows.
        day: the partition.
        put: stores files in the lake, for an engine that writes there.
        metadata: further metadata of the file.
    """
    path = engine.new_scratch(day) / "rows.parquet"
    taken: dict[str, Any] = {}
    with timed(taken, "computing"):
        made = engine.make(frame, path, put)
    return File(path, made.rows, {**metadata, **taken}, stored=made.stored)


def day_files(lake: Lake, folder: str, column: str) -> Callable[[str], DayFiles]:
    """What stores the files of a partition in the lake, by its key.

    Args:
        lake: where.
        folder: the folder of the asset.
        column: tells the day of a row; rows of other days are refused.
    """
    return lambda day: DayFiles(IntoLake(lake.storage, folder, date.fromisoformat(day)), column)


def partition_range(tags: Mapping[str, str]) -> tuple[str, str] | tuple[None, None]:
    """The first and the last partition that a run is for, by its tags; None twice if it has none."""
    only = tags.get(PARTITION_NAME_TAG)
    first = tags.get(ASSET_PARTITION_RANGE_START_TAG, only)
    last = tags.get(ASSET_PARTITION_RANGE_END_TAG, only)
    return (first, last) if first and last else (None, None)


def column_lineage(**columns: str) -> dict[str, Any]:
    """The metadata entry with the lineage of each column.

    Args:
        columns: for a column, the columns it comes from, as ``asset.column`` with blanks between them.
    """
    deps = {
        column: [dg.TableColumnDep(*source.split(".")) for source in sources.split()]
        for column, sources in columns.items()
    }
    return {"dagster/column_lineage": dg.TableColumnLineage(deps)}


def column_schema(*columns: tuple[str, str, str], unique: tuple[str, ...] = ()) -> dict[str, Any]:
    """The metadata entry that documents a table's columns.

    Args:
        columns: name, type and description of each.
        unique: the columns that are the table's key.
    """
    return {
        "dagster/column_schema": dg.TableSchema(
            columns=[dg.TableColumn(name, kind, description) for name, kind, description in columns],
            constraints=dg.TableConstraints(other=[f"unique ({', '.join(unique)})"] if unique else []),
        )
    }

"""The one daily partitions definition that every asset shares."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import dagster as dg

from user_pipeline import settings
from user_pipeline.errors import PermanentError, never_retried


class ReversedRangeError(PermanentError):
    """A range of days ends before it begins."""

    def __init__(self, first: str, last: str) -> None:
        super().__init__(
            f"the partition range {first}...{last} ends before it begins; {last}...{first} is the one from the earlier "
            "day to the later"
        )


class Days(dg.DailyPartitionsDefinition):
    """Days, without ranges that end before they begin: Dagster would take one for empty, and run nothing."""

    def get_partition_keys_in_range(self, partition_key_range: dg.PartitionKeyRange) -> Sequence[str]:
        """The days of a range; in a step, the error is not retried.

        Raises:
            ReversedRangeError: the range ends before it begins.
        """
        first, last = partition_key_range.start, partition_key_range.end
        if self.start_time_for_partition_key(last) < self.start_time_for_partition_key(first):
            with never_retried():
                raise ReversedRangeError(first, last)
        return super().get_partition_keys_in_range(partition_key_range)

    def get_partition_subset_in_time_window(self, time_window: dg.TimeWindow) -> Any:  # noqa: ANN401 - Dagster's own
        """The days of a time window. Dagster calls it before it makes a run, so the range is refused early.

        Raises:
            ReversedRangeError: the window ends before it begins.
        """
        if time_window.end <= time_window.start:
            last = time_window.end - timedelta(days=1)
            raise ReversedRangeError(f"{time_window.start:%Y-%m-%d}", f"{last:%Y-%m-%d}")
        return super().get_partition_subset_in_time_window(time_window)


DAILY = Days(start_date=settings.current().start_date.isoformat(), timezone="UTC", fmt="%Y-%m-%d")

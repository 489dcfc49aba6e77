"""Which pages are being discovered: how many users view them for the first time."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from user_pipeline.recommender.defaults import TREND_DAYS


@dataclass(frozen=True, slots=True)
class Discoveries:
    """First views by page and day.

    Attributes:
        page: page codes.
        day: numbers of days.
        users: how many users viewed the page on this day and never before.
        n_pages: number of page codes.
    """

    page: NDArray[np.int32]
    day: NDArray[np.int64]
    users: NDArray[np.int64]
    n_pages: int

    def lately(self, day: int) -> NDArray[np.int64]:
        """How many users discovered each page in the last ``TREND_DAYS`` days, as of the end of a day."""
        chosen = (self.day > day - TREND_DAYS) & (self.day <= day)
        return np.bincount(self.page[chosen], self.users[chosen], self.n_pages).astype(np.int64)

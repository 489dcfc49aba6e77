"""What can be chosen when recommendations are made, and what is chosen otherwise; imports nothing heavy."""

import math
from dataclasses import dataclass

# How many pages a page is predicted from at most, where not all of them can be.
NEIGHBOURS = 150
# The ridge penalty, in squared views.
REGULARISATION = 20.0
# Bytes to work in, beside the views and their transpose.
MEMORY_LIMIT = 2**30


@dataclass(frozen=True, slots=True)
class Parameters:
    """Which model of the family: the defaults are EASE^R, which knows neither time nor order.

    Attributes:
        regularisation: lambda, the ridge penalty, in squared views; above 0.
        long_range: c, from 0 to 1: how much two pages of a user count that are far apart in the order of their
            views. At D positions apart they count ``c + (1 - c) e^-D``. 1 is any order; 0 is what comes next.
        direction: d, 0 or more: how much more a page counts for what was viewed after it than for what was viewed
            before it. 0 is both alike, 1 is what comes after alone. With ``long_range`` 1 it has no effect.
        trend: a, 0 or more: how much the discovery trend adds, see :func:`.recommend`.
        personal: whether what a user has seen counts. Without it everyone gets what is discovered most, or with
            ``trend`` 0 the most popular pages.

    Raises:
        ValueError: a number is out of its range.
    """

    regularisation: float = REGULARISATION
    long_range: float = 1.0
    direction: float = 0.0
    trend: float = 0.0
    personal: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.regularisation < math.inf:
            raise ValueError(f"regularisation={self.regularisation} cannot be used: expected a finite number above 0")
        if not 0 <= self.long_range <= 1:
            raise ValueError(f"long_range={self.long_range} cannot be used: expected a number from 0 to 1")
        for name in ("direction", "trend"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} cannot be used: expected a finite number from 0")

    @property
    def is_ordered(self) -> bool:
        """Whether the order of the views counts."""
        return self.long_range < 1


EASE = Parameters()
# The discovery trend counts the discoveries of this many days.
TREND_DAYS = 7
# The model if playback shows no clearly better one.
DEFAULT = Parameters(100.0, 0.3, 0.5, 1.0)
# The candidates of playback: popularity, the trend alone, and some models of the family.
CANDIDATES = (
    Parameters(DEFAULT.regularisation, DEFAULT.long_range, DEFAULT.direction, personal=False),
    Parameters(DEFAULT.regularisation, DEFAULT.long_range, DEFAULT.direction, 1.0, personal=False),
    *(
        Parameters(regularisation, long_range, direction, trend)
        for regularisation, long_range, direction in (
            (20.0, 1.0, 0.0),
            (100.0, 1.0, 0.0),
            (500.0, 1.0, 0.0),
            (100.0, 0.3, 0.5),
            (500.0, 0.3, 0.5),
            (20.0, 0.0, 0.5),
        )
        for trend in (0.0, 0.1, 0.3, 1.0)
    ),
)

"""The days that recommendations are learned from."""

from dataclasses import dataclass
from datetime import date, timedelta

_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class Window:
    """The days recommendations are learned from.

    Attributes:
        last: the day they are as of the end of.
        days: how many days there are, up to and with it.
    """

    last: date
    days: int

    @property
    def first(self) -> date:
        """The first of the days; the first there can be where the window begins before it."""
        return self.last - timedelta(days=min(self.days - 1, (self.last - date.min).days))

    @property
    def end(self) -> date:
        """The day after the last."""
        return self.last + timedelta(days=1)


def day_number(day: date) -> int:
    """The number of a day, as :class:`.Discoveries` and :class:`.Past` count them."""
    return (day - _EPOCH).days

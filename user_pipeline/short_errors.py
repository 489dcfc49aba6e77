"""Short error messages instead of tracebacks on Dagster's command line.

Dagster's commands print errors of definitions, selections and partitions with a traceback. Once the definitions are
loaded, errors that a user can fix are printed as a sentence; all others keep their traceback.
"""

import re
import sys
from collections.abc import Callable
from types import TracebackType

from user_pipeline import settings
from user_pipeline.errors import PermanentError

_UNKNOWN_DAY = re.compile(
    r"passed partition keys? `?(?P<key>[^`]*)`?|Could not find a partition with key `(?P<other>[^`]*)`"
)
_UNKNOWN_ASSETS = re.compile(r"AssetKey\(s\) (?P<names>\[.*?\]) were selected")
_NO_DAY = "Asset has partitions, but no '--partition' option was provided"
_Hook = Callable[[type[BaseException], BaseException, TracebackType | None], object]


def install() -> None:
    """Print short messages for errors that end this process, from now on."""
    if not isinstance(sys.excepthook, _Short):
        sys.excepthook = _Short(sys.excepthook)


class _Short:
    def __init__(self, others: _Hook) -> None:
        self._others = others

    def __call__(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        message = sentence(error)
        if message is None:
            self._others(kind, error, trace)
        else:
            sys.stderr.write(f"Error: {message}\n")


def sentence(error: BaseException) -> str | None:
    """What is wrong and what would be right; None for an error that a user cannot fix, or that is not known."""
    if isinstance(error, settings.SettingsError | PermanentError):
        return str(error)
    if _NO_DAY in str(error):
        return "these assets have days: add --partition 2017-04-15, or --partition-range 2017-04-01...2017-04-15"
    # By name: Dagster may not be loaded yet where the settings are wrong.
    if type(error).__name__ not in ("DagsterInvalidSubsetError", "DagsterUnknownPartitionError"):
        return None
    if assets := _UNKNOWN_ASSETS.search(str(error)):
        return f"--select: there are no assets {assets['names']}; `dg list defs` lists them, and so does the UI"
    if day := _UNKNOWN_DAY.search(str(error)):
        return (
            f"there is no day {day['key'] or day['other']!r}: write days as YYYY-MM-DD, from "
            f"{settings.current().start_date} (USER_PIPELINE_START_DATE) to yesterday (UTC)"
        )
    return None

"""Print what a verification found, and the commands that repair it."""

from collections.abc import Callable, Iterable, Sequence
from datetime import date, timedelta

from user_pipeline.reconcile.comparing import KINDS, LOST, Comparison

_REBUILT = ("rejected_lines", "users", "files of users", "user_page_views", "files of user_page_views")
"""Tables that need a full refresh: materializing a day applies only its difference, or changes nothing."""
_DAYS_SHOWN = 20
_MATERIALIZE = (
    "dagster asset materialize -m user_pipeline.definitions "
    "--select 'group:ingest or group:raw or group:cleaned or group:marts or group:exports' "
)


def report(comparisons: Iterable[Comparison], say: Callable[[str], None]) -> bool:
    """Print each table as it is compared, then what to do.

    Returns:
        whether anything differs.
    """
    seen = []
    for compared in comparisons:
        seen.append(compared)
        differing = sum(difference.rows for difference in compared.differences)
        days = f"{compared.days:,} days, " if compared.days else ""
        result = f"{differing:,} rows differ" if compared.differences else "equal"
        say(f"{compared.table}: {days}{compared.rows:,} rows: {result}")
        for difference in compared.differences[:_DAYS_SHOWN]:
            day = f"{difference.day} " if difference.day else ""
            say(f"  {day}{difference.kind}: {difference.rows:,} rows")
            for example in difference.examples:
                say(f"    {example}")
        if len(compared.differences) > _DAYS_SHOWN:
            say(f"  and {len(compared.differences) - _DAYS_SHOWN} more")
        if compared.retired:
            say(f"  past their retention, and not compared: {', '.join(_ranges(compared.retired))}")
        if compared.absent:
            say(f"  not materialized, and not compared: {', '.join(_ranges(compared.absent))}")
    wrong = [compared for compared in seen if compared.differences]
    say("")
    if not wrong:
        say("No differences.")
        return False
    say("What these mean:")
    for kind in dict.fromkeys(difference.kind for compared in wrong for difference in compared.differences):
        say(f"  {kind}: {KINDS[kind]}")
    say("Repair with:")
    for command in _repairs(wrong):
        say(f"  {command}")
    return True


def _repairs(wrong: Sequence[Comparison]) -> list[str]:
    """The commands that repair the differences, in the order to run them."""
    differences = [difference for compared in wrong for difference in compared.differences]
    commands = []
    if any(difference.kind == LOST for difference in differences):
        commands.append(
            "# Restore the part files from a backup of the lake, or deliver their objects under other names."
        )
    # Before the days are materialized: these apply differences from the aggregates, which the tables must fit.
    if any(compared.table in _REBUILT for compared in wrong):
        commands.append("user-pipeline rebuild")
    for days in _ranges(sorted({difference.day for difference in differences if difference.day})):
        first, _, last = days.partition("...")
        commands.append(_MATERIALIZE + (f"--partition-range {days}" if last else f"--partition {first}"))
    return commands


def _ranges(days: Sequence[date]) -> list[str]:
    """Sorted days with consecutive ones as ``first...last``."""
    ranges: list[tuple[date, date]] = []
    for day in days:
        if ranges and ranges[-1][1] + timedelta(days=1) == day:
            ranges[-1] = (ranges[-1][0], day)
        else:
            ranges.append((day, day))
    return [f"{first}" if first == last else f"{first}...{last}" for first, last in ranges]

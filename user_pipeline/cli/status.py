"""``user-pipeline status``: the state of the platform on one screen."""

import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import click

from user_pipeline import settings
from user_pipeline.masking import printable

if TYPE_CHECKING:
    from user_pipeline.instance.status import FailedCheck, LastRun
    from user_pipeline.reconcile.services import Service
    from user_pipeline.reconcile.status import Stored

HEALTHY, ATTENTION, UNREACHABLE = 0, 1, 3
"""Exit codes; 2 is click's for a wrong option."""
_WIDTH = 100
_CHECKS_SHOWN = 6
_SHORT = 12


@dataclass(frozen=True, slots=True)
class Status:
    """All that is told.

    Attributes:
        services: what the platform needs, and whether it answers.
        stored: what lake and databases hold; None where one of them does not answer.
        run: the last run, if any.
        checks: those that fail now; None where Dagster's records were not looked at.
    """

    services: "Sequence[Service]"
    stored: "Stored | None" = None
    run: "LastRun | None" = None
    checks: "Sequence[FailedCheck] | None" = None

    @property
    def problems(self) -> list[str]:
        """What needs attention."""
        found = [f"{service.setting}: {service.problem}" for service in self.services if service.problem]
        if self.stored:
            found += [
                f"{days.asset}: {what}"
                for days in self.stored.days
                for what in _parts((days.missing, "days missing"), (days.unsynced, "days unsynced"))
            ]
            found += [f"{asset}: yesterday is not there" for asset in self.stored.overdue]
            found += [
                f"{feed.feed}: {feed.failing} objects cannot be fetched" for feed in self.stored.objects if feed.failing
            ]
        found += [
            f"{check.asset}: the check {check.check} fails" for check in self.checks or () if check.severity == "ERROR"
        ]
        if self.run and self.run.status == "FAILURE":
            found.append(f"the last run failed: {self.run.run_id}")
        return found

    @property
    def exit_code(self) -> int:
        """0 healthy, 1 something needs attention, 3 something the platform needs does not answer."""
        if any(service.problem for service in self.services):
            return UNREACHABLE
        return ATTENTION if self.problems else HEALTHY


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
@click.option("--services", "only_services", is_flag=True, help="Only whether what the platform needs answers.")
def status(*, as_json: bool, only_services: bool) -> None:
    """Show on one screen how the platform is.

    What answers, with the setting of each; the days of each asset, and which are missing or unsynced; objects that wait
    or fail; checks that fail now; the last run; rejected lines of the last day; sizes.

    Exit codes: 0 healthy; 1 something needs attention (days missing or unsynced, yesterday overdue, objects that
    cannot be fetched, an error of a check, a failed run); 3 a store or database does not answer. Waiting objects and
    warnings are shown and change nothing. With --services it fits a container's health command.
    """
    found = collect(only_services=only_services)
    if as_json:
        told = {"healthy": found.exit_code == HEALTHY, "problems": found.problems, **asdict(found)}
        click.echo(json.dumps(told, default=_plain, indent=2))
    else:
        for line in lines(found):
            click.echo(line)
    sys.exit(found.exit_code)


def collect(*, only_services: bool = False) -> Status:
    """Collect the state of everything; what needs a service only if that answers."""
    from user_pipeline.lake.lake import Lake
    from user_pipeline.reconcile.services import Service, services
    from user_pipeline.reconcile.status import stored
    from user_pipeline.resources.postgres import Databases
    from user_pipeline.resources.storage import ObjectStorage

    current = settings.current()
    embedded = current.data_dir / "postgres"
    if current.uses_embedded_postgres and not embedded.is_dir():
        # Other commands make the cluster. Showing the status does not.
        nothing = "not made yet: `user-pipeline demo` or `user-pipeline up` does"
        return Status([Service("embedded Postgres", "USER_PIPELINE_DATA_DIR", str(embedded), nothing)])
    storage = ObjectStorage(current)
    with closing(Databases(current)) as databases:
        asked = services(current, storage, databases)
        well = {service.name for service in asked if service.problem is None}
        if only_services:
            return Status(asked)
        there = None
        if {"source", "lake", "staging", "analytics"} <= well:
            there = stored(current, Lake(storage, databases), datetime.now(UTC))
        return Status(asked, there, *(_of_dagster() if "runs" in well else (None, None)))


def _of_dagster() -> "tuple[LastRun | None, Sequence[FailedCheck] | None]":
    from user_pipeline.definitions import defs
    from user_pipeline.instance.status import failed_checks, last_run, opened

    with opened() as instance:
        if instance is None:
            return None, None
        return last_run(instance), failed_checks(instance, defs.resolve_asset_graph().asset_check_keys)


def lines(found: Status) -> Iterable[str]:
    """The screen, no line longer than it is wide."""
    for line in _screen(found):
        text = printable(line)
        yield text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"


def _screen(found: Status) -> Iterable[str]:
    for service in found.services:
        mark = "FAIL" if service.problem else "ok"
        yield f"{mark:<5}{service.name:<10} {service.setting:<28} {service.value}"
        for text in (service.problem or "").splitlines():
            # The remedy is at the end of a message, so long messages are wrapped.
            for start in range(0, len(text), _WIDTH - 5):
                yield f"     {text[start : start + _WIDTH - 5]}"
    if found.stored:
        yield from _stored(found.stored)
    yield from _dagster(found)
    yield ""
    count = len(found.problems)
    yield "healthy" if not count else f"{count} {'thing needs' if count == 1 else 'things need'} attention"


def _stored(stored: "Stored") -> Iterable[str]:
    yield ""
    if not stored.days:
        yield "no day was materialized yet"
    else:
        yield f"{'days of':<26} {'first':<11} {'last':<11} {'missing':>8} {'unsynced':>9}"
    for days in stored.days:
        overdue = "  yesterday is not there" if days.asset in stored.overdue else ""
        yield f"{days.asset:<26} {days.first}  {days.last}  {days.missing:>8,} {days.unsynced:>9,}{overdue}"
    yield ""
    for feed in stored.objects:
        waiting = "unknown" if feed.waiting is None else f"{feed.waiting:,}"
        yield (
            f"objects of {feed.feed:<15} {feed.read:,} read, {waiting} waiting, {feed.failing:,} failing, "
            f"{feed.broken:,} broken"
        )
    for rejects in stored.rejects:
        reasons = ", ".join(f"{lines:,} {reason}" for reason, lines in rejects.rejected.items()) or "none"
        yield f"rejects of {rejects.feed:<15} {rejects.day}: {reasons}, of {rejects.lines:,} lines"
    sizes = {"USER_PIPELINE_LAKE_URL": stored.lake_bytes, **(stored.table_bytes or {})}
    named = (
        f"{name.removeprefix('USER_PIPELINE_').removesuffix('_URL').lower()} {size / 1e6:,.1f} MB"
        for name, size in sizes.items()
    )
    yield f"size {'of':<21} {', '.join(named)}"


def _dagster(found: Status) -> Iterable[str]:
    run = found.run
    if run:
        took = "" if run.seconds is None else f", {run.seconds:,.0f} s"
        yield f"last run {'':<17} {run.status} {run.job} {run.days}{took}, {run.run_id[:_SHORT]}"
    elif found.checks is not None:
        yield f"last run {'':<17} none yet"
    if found.checks is None:
        if found.stored:
            yield "runs and checks            not looked at: no dagster.yaml here, and DAGSTER_HOME is not set"
        return
    yield f"checks failing {'':<11} {len(found.checks) or 'none'}"
    for check in found.checks[:_CHECKS_SHOWN]:
        day = f" {check.day}" if check.day else ""
        yield f"  {check.severity} {check.asset} {check.check}{day}: {check.description}"
    if len(found.checks) > _CHECKS_SHOWN:
        yield f"  and {len(found.checks) - _CHECKS_SHOWN} more"


def _parts(*parts: tuple[int, str]) -> list[str]:
    return [f"{number} {what}" for number, what in parts if number]


def _plain(value: Any) -> str:  # noqa: ANN401 - json's
    if isinstance(value, date | datetime):
        return value.isoformat()
    raise TypeError(type(value).__name__)

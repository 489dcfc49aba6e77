"""The demo: materialize a range of days with a progress display, then show the results."""

import os
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection, Sequence
from datetime import date, timedelta
from pathlib import Path

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from user_pipeline.cli.opened import opened_lake
from user_pipeline.engines.duckdb import Engine
from user_pipeline.ingest.feeds import FEEDS, REASONS
from user_pipeline.ingest.manifest import Manifest
from user_pipeline.lake.lake import Lake
from user_pipeline.reconcile.accounts import account_days
from user_pipeline.resources.postgres import Postgres
from user_pipeline.settings import Settings

WIDTH = 100
"""Characters of a line."""
_STEP = re.compile(r" - (?P<step>\w+) - STEP_(?P<state>START|SUCCESS|FAILURE) - ")


def run_demo(settings: Settings, days: int) -> None:
    """Materialize the days through Dagster and show the accounting, the tables and where to look next.

    Args:
        settings: where everything is.
        days: how many, from the start date on.

    Raises:
        click.ClickException: the run failed; the message names its log.
    """
    # Where the output is no terminal its width is unknown: what is shown fits this one.
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    wanted = [settings.start_date + timedelta(days=number) for number in range(days)]
    _materialize(console, settings, wanted)
    with opened_lake() as lake:
        _show_objects(console, lake)
        with Engine(settings) as engine:
            _show_days(console, lake, engine, wanted)
        _show_rows(console, lake.analytics.database, "user_page_views", "user_id, url", 4)
        _show_rows(console, lake.analytics.database, "page_recommendations", "user_id, rank", 3)
    # The way it was called: without an activated environment that is .venv/bin/user-pipeline.
    program = sys.argv[0] if Path(sys.argv[0]).name == "user-pipeline" else "user-pipeline"
    program = os.path.relpath(program) if Path(program).is_absolute() else program
    console.print(
        f"The UI: {program} up, then http://127.0.0.1:3000"
        f"\nQuery:  {program} psql -c 'select * from page_recommendations limit 9'"
        f"\nStop:   {program} down",
        soft_wrap=True,
    )


def _materialize(console: Console, settings: Settings, days: Sequence[date]) -> None:
    command = [
        "dagster", "asset", "materialize", "-m", "user_pipeline.definitions", "--select", "*",
        "--partition-range", f"{days[0]}...{days[-1]}",
        # Without it a range has the recommendations of its last day alone, and no quality to plot.
        "--config-json", '{"ops": {"page_recommendations": {"config": {"all_days": true}}}}',
    ]  # fmt: skip
    lines = [shlex.join(part) for part in (command[:7], command[7:9], command[9:])]
    console.print("\n$ " + " \\\n    ".join(lines), soft_wrap=True, markup=False)
    log = settings.data_dir / "demo.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        log.open("w+", encoding="utf-8") as output,
        Progress(*columns, console=console) as progress,
        subprocess.Popen([sys.executable, "-m", *command], stdout=output, stderr=output) as process,
    ):
        task = progress.add_task("starting Dagster", total=_count_steps())
        position = 0
        while True:
            ended = process.poll() is not None
            position = _follow(log, position, progress, task)
            if ended:
                break
            time.sleep(0.1)
    if process.returncode:
        lines = log.read_text(encoding="utf-8").splitlines()
        reasons = dict.fromkeys(line for line in lines if "Failure: " in line or "Error: " in line)
        raise click.ClickException("\n".join(["the run failed", *reasons, f"The whole log is in {log}."]))
    took = time.monotonic() - started
    console.print(f"{len(days)} days in {took:.0f} s with all checks; the log is {_short(log)}", soft_wrap=True)


def _count_steps() -> int:
    from user_pipeline.definitions import defs

    return len(defs.resolve_implicit_global_asset_job_def().graph.nodes)


def _follow(log: Path, position: int, progress: Progress, task: TaskID) -> int:
    """Bring the display up to what the log says; returns how far it was read."""
    with log.open(encoding="utf-8") as lines:
        lines.seek(position)
        while (line := lines.readline()).endswith("\n"):
            position = lines.tell()
            if event := _STEP.search(line):
                progress.update(task, description=event["step"], advance=event["state"] == "SUCCESS")
    return position


def _short(path: Path) -> str:
    """A path as it is typed here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith(os.pardir) else relative


def _table(console: Console, title: str, columns: Sequence[str], words: Collection[str] = ()) -> Table:
    """A table below its title; columns of ``words`` begin at the left, numbers end at the right."""
    console.print(f"[bold]{title}[/bold]")
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name in words else "right", no_wrap=True)
    return table


def _show_objects(console: Console, lake: Lake) -> None:
    console.print()
    table = _table(
        console,
        "No line is lost: lines of all objects = rows + rejected + blank + header",
        ["feed", "objects", "lines", "rows", "rejected", "blank", "header", "most rejected as"],
        words=("feed", "most rejected as"),
    )
    for feed in FEEDS:
        manifest = Manifest(feed, lake.staging)
        account, reasons = manifest.account(), Counter(manifest.reasons())
        numbers = [account[name] for name in ("objects", "lines", "rows", "rejected", "blank", "header")]
        # Of equally frequent reasons, the one that is documented first.
        most = max(reasons, key=lambda reason: (reasons[reason], -REASONS.index(reason)), default="")
        table.add_row(feed.name, *(f"{number:,}" for number in numbers), most)
    _show(console, table)


def _show_days(console: Console, lake: Lake, engine: Engine, days: Sequence[date]) -> None:
    table = _table(
        console,
        f"No row is lost: raw rows of {len(days)} days = cleaned + duplicates + other environments",
        ["feed", "raw", "cleaned", "duplicates", "other environments"],
        words=("feed",),
    )
    for feed in FEEDS:
        total = Counter[str]()
        for account in account_days(feed, lake, engine, days):
            for name in ("raw", "cleaned", "duplicates", "other_environments"):
                total[name] += getattr(account, name)
        table.add_row(feed.name, *(f"{number:,}" for number in total.values()))
    _show(console, table)


def _show(console: Console, table: Table) -> None:
    console.print(table)
    console.print()


def _show_rows(console: Console, analytics: Postgres, name: str, order: str, rows: int) -> None:
    """The first rows of a table, and how many there are."""
    with analytics.query(f"select count(*) as rows from {name}") as reader:
        total = reader.read_all()["rows"][0].as_py()
    with analytics.query(f"select * from {name} order by {order} limit {rows}") as reader:
        first = reader.read_all()
    table = _table(console, f"{name}: {total:,} rows", first.column_names, words=first.column_names)
    for row in first.to_pylist():
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    _show(console, table)

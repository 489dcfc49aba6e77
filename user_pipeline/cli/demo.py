"""The demo: a range of days through Dagster with a progress display, then what came out."""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from user_pipeline.engines.duckdb import Engine
from user_pipeline.ingest.feeds import FEEDS, REASONS
from user_pipeline.ingest.manifest import Manifest
from user_pipeline.lake.lake import Lake
from user_pipeline.lake.transfer import export_path
from user_pipeline.reconcile.accounts import account_days
from user_pipeline.resources.postgres import Databases, Postgres
from user_pipeline.resources.storage import ObjectStorage
from user_pipeline.settings import Settings

_STEP = re.compile(r" - (?P<step>\w+) - STEP_(?P<state>START|SUCCESS|FAILURE) - ")


def run_demo(settings: Settings, days: int) -> None:
    """Materialize the days through Dagster and show the accounting, the tables and where to look next.

    Raises:
        click.ClickException: the run failed; the message names its log.
    """
    # Wide enough for the tables when the output is no terminal.
    console = Console(width=None if sys.stdout.isatty() else 130, highlight=False)
    wanted = [settings.start_date + timedelta(days=number) for number in range(days)]
    _materialize(console, settings, wanted)
    databases = Databases(settings)
    try:
        with Engine(settings) as engine:
            _show_objects(console, Lake(ObjectStorage(settings), databases))
            _show_days(console, Lake(ObjectStorage(settings), databases), engine, wanted)
        _show_report(console, ObjectStorage(settings), wanted[-1])
        _show_rows(console, databases.analytics, "select * from user_page_views order by user_id, url limit 5")
        _show_rows(console, databases.analytics, "select * from page_recommendations limit 3")
    finally:
        databases.close()
    console.print("\nAs CSV, for each of the days:")
    for table in ("user_page_views", "page_recommendations"):
        console.print("  " + ObjectStorage(settings).lake_url(export_path(table, str(wanted[-1]))), soft_wrap=True)
    # As it was called: without an activated environment it is .venv/bin/user-pipeline.
    program = sys.argv[0] if Path(sys.argv[0]).name == "user-pipeline" else "user-pipeline"
    program = os.path.relpath(program) if Path(program).is_absolute() else program
    console.print(
        f"\nThe UI:         {program} up, then http://127.0.0.1:3000"
        f"\nQuery:          {program} psql -c 'select * from page_recommendations limit 3'"
        f"\nRejected lines: {program} psql staging -c 'select * from rejected_lines limit 3'"
        f"\nStop Postgres:  {program} down",
        soft_wrap=True,
    )


def _materialize(console: Console, settings: Settings, days: Sequence[date]) -> None:
    command = [
        "dagster", "asset", "materialize", "-m", "user_pipeline.definitions",
        "--select", "*", "--partition-range", f"{days[0]}...{days[-1]}",
    ]  # fmt: skip
    console.print(f"\n$ {shlex.join(command)}", soft_wrap=True)
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
    console.print(f"{len(days)} days in {took:.0f} s, all checks included; log in {log}", soft_wrap=True)


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


def _show_objects(console: Console, lake: Lake) -> None:
    table = Table(title="Lines of all objects: lines = rows + rejected + blank + header", title_justify="left")
    for name in ("feed", "objects", "lines", "rows", "rejected", "blank", "header", "why rejected"):
        table.add_column(name, justify="left" if name in ("feed", "why rejected") else "right")
    for feed in FEEDS:
        manifest = Manifest(feed, lake.staging)
        account, reasons = manifest.account(), manifest.reasons()
        numbers = [account[name] for name in ("objects", "lines", "rows", "rejected", "blank", "header")]
        why = ", ".join(f"{reasons[reason]} {reason}" for reason in REASONS if reason in reasons)
        table.add_row(feed.name, *(f"{number:,}" for number in numbers), why)
    console.print()
    console.print(table)


def _show_days(console: Console, lake: Lake, engine: Engine, days: Sequence[date]) -> None:
    table = Table(title="Rows of each day: raw = cleaned + duplicates + other environments", title_justify="left")
    for name in ("feed", "day", "raw", "cleaned", "duplicates", "other environments"):
        table.add_column(name, justify="left" if name in ("feed", "day") else "right")
    for feed in FEEDS:
        for account in account_days(feed, lake, engine, days):
            numbers = (account.raw, account.cleaned, account.duplicates, account.other_environments)
            table.add_row(feed.name, str(account.day), *(f"{number:,}" for number in numbers))
        table.add_section()
    console.print(table)


def _show_report(console: Console, storage: ObjectStorage, day: date) -> None:
    path = f"fake_users/date={day}/users_report.txt"
    console.print(f"{storage.lake_url(path)}:", soft_wrap=True)
    console.print(bytes(storage.lake.get(path).bytes()).decode(), markup=False, style="dim")


def _show_rows(console: Console, analytics: Postgres, sql: str) -> None:
    with analytics.query(sql) as reader:
        rows = reader.read_all()
    table = Table(title=sql, title_justify="left")
    for name in rows.column_names:
        table.add_column(name)
    for row in rows.to_pylist():
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    console.print(table)

"""How long a range of years takes in one run with its checks: the seconds of each step, and what Dagster keeps of it.

    make bench BENCH=long_range.py ARGS="--days 365 1095 3650"

Small days, so that what is seen is the cost of a day as such: its events, checks, files and rows of the registry. The
range ends yesterday. ``dagster asset materialize`` materializes it twice, each time in a process of its own: into empty
databases, then again, when every day is compared with what is there. The instance keeps its records in Postgres, as
deployments do. Exports, of which each day is a copy of the whole table, are left out unless ``--select`` names them.
"""

import argparse
import sys
import tempfile
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.logs import START, Logs
from benchmarks.measure import Cost
from benchmarks.workspace import Platform, Workspace

if TYPE_CHECKING:
    import dagster

_SELECT = "group:ingest or group:raw or group:cleaned or group:marts"
_SHOWN = 12
"""So many steps are named, the longest first."""


def instance_of(home: Path, url: str) -> "dagster.DagsterInstance":
    """An instance with its storage in a database; its directory is a DAGSTER_HOME."""
    import dagster as dg

    home.mkdir(exist_ok=True)
    (home / "dagster.yaml").write_text(
        f"storage: {{postgres: {{postgres_url: '{url}'}}}}\n"
        "telemetry: {enabled: false}\npython_logs: {python_log_level: INFO}\n"
    )
    return dg.DagsterInstance.from_config(str(home))


def materialize(platform: Platform, home: Path, first: date, last: date, select: str) -> Cost:
    """The range in one run."""
    command = [
        str(Path(sys.executable).with_name("dagster")),
        "asset",
        "materialize",
        "-m",
        "user_pipeline.definitions",
    ]
    command += ["--select", select, "--partition-range", f"{first}...{last}"]
    environment = {"DAGSTER_HOME": str(home), "USER_PIPELINE_START_DATE": str(first)}
    return platform.workspace.measure(platform.name, command, platform.environment | environment)


def show(instance: "dagster.DagsterInstance") -> None:
    """The steps of the last run, and how much of the run is kept."""
    [run] = instance.get_runs(limit=1)
    steps = instance.get_run_step_stats(run.run_id)
    taken = sorted(((step.end_time or 0) - (step.start_time or 0), step.step_key) for step in steps)[::-1]
    print("  " + ", ".join(f"{step} {seconds:.1f}" for seconds, step in taken[:_SHOWN]))
    events = len(instance.all_logs(run.run_id))
    print(f"  {run.status.value}, {len(steps)} steps, {events:,} events", flush=True)


def main() -> None:
    """Print what each of the two runs of each range took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, nargs="+", default=[365, 1095, 3650])
    parser.add_argument("--views", type=int, default=200, help="page views a day")
    parser.add_argument("--select", default=_SELECT, help="the assets")
    parser.add_argument("--memory", default="2GB")
    given = parser.parse_args()
    with Workspace.create(Path(tempfile.mkdtemp(prefix="long-range-")), given.memory) as workspace:
        for days in sorted(given.days):
            last = datetime.now(UTC).date() - timedelta(days=1)
            first = last - timedelta(days=days - 1)
            platform = Platform.create(workspace, f"days_{days}")
            home = workspace.folder / f"home_{days}"
            instance = instance_of(home, workspace.database(f"dagster_{days}"))
            lines = Logs(given.views, users=500, pages=100, objects=1).write(
                platform.source, (first - START).days, days
            )
            for what in ("first", "again"):
                cost = materialize(platform, home, first, last, given.select)
                print(
                    f"{days:,} days, {lines:,} lines, {what}: {cost.wall:.0f} s, "
                    f"CPU {cost.cpu:.0f} + {cost.postgres_cpu:.0f} s, peak {cost.peak_mb:,.0f} MB"
                )
                show(instance)
            instance.dispose()


if __name__ == "__main__":
    main()

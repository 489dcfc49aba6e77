"""What the log pipeline costs, beside what people would use instead, in one run on one machine.

    python benchmarks/pipeline.py [--scenarios a b c d e] [--peers bare bare-upsert pandas dbt] [--json FILE] [sizes]

a  one new day of VIEWS page views on top of HISTORY days: ours, pandas over all logs, dbt for the day, bare doing this
   one day alone, and bare-upsert adding this day to the table of the history: the least an incremental table costs
b  HISTORY days in one range run: ours, dbt, bare
c  one day of BIG-DAY page views: ours, bare
d  a day of STEADY-VIEWS page views after so many days of history: ours
e  the sample logs' day, all assets: ours, beside a Dagster job of as many assets that do nothing; and what importing
   the definitions takes

Ours is ``dagster asset materialize`` in a process of its own, checks included, of every asset up to
``user_page_views`` (raw, cleaned, marts); the exports, which the peers do not make and which write the whole table
again, are in (e) only. ``PG CPU s`` is the database server's processor time, ``peak MB`` the memory of the process and
its children, without the server. ``events/s`` counts the page view lines of the days that were asked for. Before a time
counts, the peer's tables are compared with ours, row by row: ``page_views`` and ``user_page_views``, as far as the
peer makes them.

The defaults end in a few minutes. The sizes of docs/performance.md:

    --views 1000000 --history 30 --big-day 10000000 --steady-views 200000 --steady-history 3 30 180 365
"""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg2

from benchmarks.logs import START, Logs
from benchmarks.measure import Cost
from benchmarks.workspace import UP_TO_MARTS, Platform, Workspace, expect_same
from user_pipeline.cli.sample_logs import SampleLogs
from user_pipeline.definitions import defs

_ASSETS_UP_TO_MARTS = len(UP_TO_MARTS.split(","))
_EMPTY_UP_TO_MARTS, _EMPTY_ALL = "empty job, as up to marts", "empty job, as all assets"
_PEER_NAMES = ["bare", "bare-upsert", "pandas", "dbt"]
_PEERS = Path(__file__).with_name("peers")
_VIEWS = "ts, url, environment, user_id"
_PAIRS = "user_id, url, count, last_viewed"
_PAIRS_AND_EMAIL = "user_id, email, url, count, last_viewed"
# 1.12 fetches a part of itself from a host of its own while it is installed.
_DBT = ("dbt-postgres~=1.9", "dbt-core<1.12")


@dataclass(slots=True)
class Benchmark:
    """One run of some scenarios.

    Attributes:
        given: the command line.
        workspace: where it happens.
        results: what was measured so far.
    """

    given: argparse.Namespace
    workspace: Workspace
    results: list[dict[str, Any]] = field(default_factory=list)
    _histories: list[tuple[Platform, Cost, Cost | None]] = field(default_factory=list)

    def a(self) -> None:
        """One new day on top of a history."""
        ours, _, _ = self._history()
        day = self.given.history
        events = self._logs(self.given.views).write(ours.source, day, 1)
        text = f"{START + timedelta(days=day)}"
        if "bare-upsert" in self.given.peers:
            # A copy of the table of the history, with its key.
            upsert = self.workspace.database("bare_upsert", template=f"{ours.name}_analytics")
        self._record("a", "ours", events, [ours.materialize(UP_TO_MARTS, day)])
        self._stages(ours)
        self._record("a", "empty job", 0, [ours.empty(_ASSETS_UP_TO_MARTS)])
        if "bare" in self.given.peers:
            url, cost = self._bare(ours, text)
            expect_same(
                f"(select * from page_views where ts::date = '{text}')", ours.staging, url, _VIEWS, "page_views"
            )
            daily = (
                "(select user_id, url, count(*) as count, max(ts) as last_viewed from page_views "
                f"where ts::date = '{text}' group by 1, 2)"
            )
            expect_same(daily, ours.staging, url, _PAIRS, "user_page_views")
            self._record("a", "bare, the day alone", events, [cost])
        if "bare-upsert" in self.given.peers:
            scratch = str(self.workspace.scratch("bare_upsert"))
            more = ["--day", text, "--memory", self.workspace.memory, "--scratch", scratch]
            cost = self._peer("bare_upsert", [str(ours.source), upsert, *more], ours)
            expect_same("user_page_views", ours.analytics, upsert, _PAIRS)
            self._record("a", "bare-upsert", events, [cost])
        if "dbt" in self.given.peers:
            cost = self._dbt(ours, day, day)
            self._compare(ours, "dbt")
            self._record("a", "dbt", events, [cost])
        if "pandas" in self.given.peers:
            url = self.workspace.database("pandas")
            cost = self._peer("with_pandas", [str(ours.source), url], ours)
            expect_same("user_page_views", ours.analytics, url, _PAIRS_AND_EMAIL)
            self._record("a", "pandas", events, [cost])

    def b(self) -> None:
        """A history in one run."""
        ours, cost, dbt = self._history()
        events = self.given.history * self._lines(self.given.views)
        self._record("b", "ours", events, [cost])
        if dbt:
            self._record("b", "dbt", events, [dbt])
        if "bare" in self.given.peers:
            _, cost = self._bare(ours, "*")
            self._compare(ours, "bare")
            self._record("b", "bare", events, [cost])

    def c(self) -> None:
        """One big day."""
        ours = Platform.create(self.workspace, "big_day")
        events = self._logs(self.given.big_day).write(ours.source, 0, 1)
        self._record("c", "ours", events, [ours.materialize(UP_TO_MARTS, 0)])
        if "bare" in self.given.peers:
            _, cost = self._bare(ours, "*")
            self._compare(ours, "bare")
            self._record("c", "bare", events, [cost])

    def d(self) -> None:
        """A day's cost as history grows."""
        ours = Platform.create(self.workspace, "steady")
        logs, done = self._logs(self.given.steady_views), 0
        events = self._lines(self.given.steady_views)
        for day in self.given.steady_history:
            logs.write(ours.source, done, day - done)
            if day - 1 > done:
                ours.materialize(UP_TO_MARTS, done, day - 2)
            costs = [ours.materialize(UP_TO_MARTS, day - 1)]
            done = day
            for _ in range(self.given.repeat - 1):
                logs.write(ours.source, done, 1)
                costs.append(ours.materialize(UP_TO_MARTS, done))
                done += 1
            self._record("d", f"ours, day {day}", events, costs)

    def e(self) -> None:
        """A small day, beside nothing at all."""
        costs: dict[str, list[Cost]] = {}
        for _ in range(self.given.repeat):
            ours = Platform.create(self.workspace, "sample")
            for key, content in SampleLogs(days=1).objects():
                path = ours.source / key
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            measured = {
                "ours, up to marts": ours.materialize(UP_TO_MARTS, 0),
                "ours, all assets": ours.materialize("*", 0),
                _EMPTY_UP_TO_MARTS: ours.empty(_ASSETS_UP_TO_MARTS),
                _EMPTY_ALL: ours.empty(len(defs.resolve_asset_graph().materializable_asset_keys)),
                "import definitions": ours.python("import user_pipeline.definitions"),
                "import dagster": ours.python("import dagster"),
            }
            for name, cost in measured.items():
                costs.setdefault(name, []).append(cost)
        for name, repeated in costs.items():
            self._record("e", name, 0, repeated)

    def _stages(self, ours: Platform) -> None:
        """The seconds of each step of the last run of ours, as Dagster reports them."""
        for step, seconds in sorted(ours.steps().items()):
            print(f"     {step:32}{seconds:6.2f}")

    def _logs(self, views: int) -> Logs:
        return Logs(views, self.given.users, self.given.pages, seed=self.given.seed)

    def _lines(self, views: int) -> int:
        """How many lines a day of so many views has."""
        with tempfile.TemporaryDirectory(dir=self.workspace.folder) as folder:
            return self._logs(views).write(Path(folder), 0, 1)

    def _history(self) -> tuple[Platform, Cost, Cost | None]:
        """Ours with all days of history, and what it cost to get there for it and for dbt; made once."""
        if not self._histories:
            ours = Platform.create(self.workspace, "history")
            self._logs(self.given.views).write(ours.source, 0, self.given.history)
            cost, dbt = ours.materialize(UP_TO_MARTS, 0, self.given.history - 1), None
            self._stages(ours)
            if "dbt" in self.given.peers:
                self.workspace.database("dbt")
                dbt = self._dbt(ours, 0, self.given.history - 1)
                self._compare(ours, "dbt")
            self._histories.append((ours, cost, dbt))
        return self._histories[0]

    def _bare(self, ours: Platform, days: str) -> tuple[str, Cost]:
        url = self.workspace.database("bare")
        scratch = str(self.workspace.scratch("bare"))
        more = ["--day", days, "--memory", self.workspace.memory, "--scratch", scratch]
        return url, self._peer("bare", [str(ours.source), url, *more], ours)

    def _dbt(self, ours: Platform, first: int, last: int) -> Cost:
        program = self.workspace.folder / "dbt" / "bin" / "dbt"
        if not program.exists():
            uv = str(Path(sys.executable).with_name("uv"))
            folder = str(program.parents[1])
            subprocess.run([uv, "venv", "--quiet", folder], check=True)
            subprocess.run([uv, "pip", "install", "--quiet", "--python", folder, *_DBT], check=True)
        days = [f"{START + timedelta(days=number)}" for number in (first, last)]
        target = str(self.workspace.scratch("dbt"))
        more = ["--dbt", str(program), "--first", days[0], "--last", days[1], "--target", target]
        return self._peer("with_dbt", [str(ours.source), self.workspace.server.url("dbt"), *more], ours)

    def _peer(self, script: str, arguments: list[str], ours: Platform) -> Cost:
        command = [sys.executable, str(_PEERS / f"{script}.py"), *arguments]
        return self.workspace.measure(script, command, ours.environment)

    def _compare(self, ours: Platform, peer: str) -> None:
        url = self.workspace.server.url(peer)
        expect_same("page_views", ours.staging, url, _VIEWS)
        expect_same("user_page_views", ours.analytics, url, _PAIRS_AND_EMAIL)

    def _record(self, scenario: str, who: str, events: int, costs: list[Cost]) -> None:
        cost = sorted(costs, key=lambda cost: cost.wall)[len(costs) // 2]
        result = {"scenario": scenario, "who": who, **asdict(cost), "events": events}
        result["events_per_second"] = events / cost.wall
        if len(costs) > 1:
            result["walls"] = [cost.wall for cost in costs]
        self.results.append(result)
        rate = f"{result['events_per_second']:12,.0f}" if events else " " * 12
        print(
            f"{scenario}  {who:28}{cost.wall:9.1f}{cost.cpu:9.1f}{cost.postgres_cpu:9.1f}{cost.peak_mb:9,.0f}{rate}",
            flush=True,
        )


def targets(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ratios and limits that are aimed at, as far as they were measured."""
    wall = {(result["scenario"], result["who"]): result["wall"] for result in results}
    peak = {(result["scenario"], result["who"]): result["peak_mb"] for result in results}
    found: list[dict[str, Any]] = []

    def add(name: str, limit: float, value: Callable[[], float], *, at_least: bool = False) -> None:
        try:
            measured = value()
        except LookupError:  # not among the scenarios or peers of this run
            return
        met = measured >= limit if at_least else measured <= limit
        found.append({"target": name, "limit": limit, "measured": measured, "met": met})

    steady = [result for result in results if result["scenario"] == "d"]
    a = ("a", "ours")
    add("a: ours / bare-upsert", 1.6, lambda: wall[a] / wall["a", "bare-upsert"])
    add("a: ours / bare", 4.0, lambda: wall[a] / wall["a", "bare, the day alone"])
    add(
        "a: (ours - empty job) / bare, for information",
        4.0,
        lambda: (wall[a] - wall["a", "empty job"]) / wall["a", "bare, the day alone"],
    )
    add("a: pandas / ours", 20.0, lambda: wall["a", "pandas"] / wall[a], at_least=True)
    add("a: dbt / ours", 6.0, lambda: wall["a", "dbt"] / wall[a], at_least=True)
    add("b: ours / bare", 2.0, lambda: wall["b", "ours"] / wall["b", "bare"])
    add("b: peak MB", 2500.0, lambda: peak["b", "ours"])
    add("c: peak MB", 2500.0, lambda: peak["c", "ours"])
    add("d: last day / first day", 1.3, lambda: steady[-1]["wall"] / steady[0]["wall"])
    add(
        "e: s above the empty job",
        3.0,
        lambda: wall["e", "ours, all assets"] - wall["e", _EMPTY_ALL],
    )
    add(
        "e: s above the empty job, log pipeline up to marts",
        3.0,
        lambda: wall["e", "ours, up to marts"] - wall["e", _EMPTY_UP_TO_MARTS],
    )
    add("e: import, s above dagster", 0.7, lambda: wall["e", "import definitions"] - wall["e", "import dagster"])
    return found


def machine(server_url: str) -> dict[str, Any]:
    """What it was measured on."""
    connection = psycopg2.connect(server_url)
    postgres = connection.server_version
    connection.close()
    packages = ("dagster", "duckdb", "adbc-driver-postgresql", "narwhals", "pyarrow", "pandas")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "postgres": postgres,
        **{package: importlib.metadata.version(package) for package in packages},
        "dbt": " ".join(_DBT),
    }


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", nargs="+", choices=list("abcde"), default=list("bacde"))
    parser.add_argument("--peers", nargs="*", choices=_PEER_NAMES, default=_PEER_NAMES)
    parser.add_argument("--views", type=int, default=100_000, help="a day, in a and b")
    parser.add_argument("--history", type=int, default=5, help="days, in a and b")
    parser.add_argument("--big-day", type=int, default=1_000_000, help="views, in c")
    parser.add_argument("--steady-views", type=int, default=20_000, help="a day, in d")
    parser.add_argument("--steady-history", type=int, nargs="+", default=[3, 10, 30], help="days, in d")
    parser.add_argument("--repeat", type=int, default=3, help="times in d (days in a row) and e; the median counts")
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--pages", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--memory", default="2GB", help="USER_PIPELINE_MEMORY_LIMIT, and that of bare")
    parser.add_argument("--folder", type=Path, help="where the workspace is made; the system's by default")
    parser.add_argument("--json", type=Path, help="write all that was measured here")
    given = parser.parse_args()
    os.chdir(Path(__file__).parents[1])  # dagster.yaml is read from there
    folder = Path(tempfile.mkdtemp(prefix="user-pipeline-bench-", dir=given.folder))
    with Workspace.create(folder, given.memory) as workspace:
        about = machine(workspace.server.url("postgres"))
        print(", ".join(f"{name} {value}" for name, value in about.items()))
        print(f"{'':31}{'wall s':>9}{'CPU s':>9}{'PG CPU s':>9}{'peak MB':>9}{'events/s':>12}")
        benchmark = Benchmark(given, workspace)
        for scenario in given.scenarios:
            getattr(benchmark, scenario)()
    aims = targets(benchmark.results)
    for aim in aims:
        print(f"{aim['target']:52}{aim['measured']:9.2f}  limit {aim['limit']:<7}{'met' if aim['met'] else 'MISSED'}")
    if given.json:
        sizes = {name: value for name, value in vars(given).items() if name not in ("json", "folder")}
        report = {"machine": about, "sizes": sizes, "results": benchmark.results, "targets": aims}
        given.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Hours of random histories, kills, fuzzed lines and queued runs: ``make soak ARGS="--minutes 60 --seed 1"``.

Four parts, each of numbers that decide what happens in it:

- histories: the state machine of ``test_oracle.py`` (objects delivered, changed and deleted, bad lines, further keys
  and columns, late rows, days and ranges materialized) with corrupt objects, people forgotten, retention, runs killed,
  beside each other and beside a forgetting, both databases lost, the engine switched where `make spark` has
  installed a cluster; everything is verified, with all checks. A failing one is shrunk, and its steps are printed.
- kills: runs killed at their calls and at any moment.
- lines: mangled lines of both feeds, each counted once. Of an object that fails the fewest lines are printed.
- queue: runs queued through the shipped deployment.

What is next is the part that is furthest from its figure. Everything logged, and every event of the histories, is
searched for planted secrets and for addresses. The numbers that were done, and the counts, are kept in a file: the next
call goes on after them.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from user_pipeline.cli.spark_cluster import Shape, cluster
from user_pipeline.resources.embedded_postgres import EmbeddedPostgres, ensure_running, stop
from user_pipeline_tests import CHECKOUT
from user_pipeline_tests.faults.forked import Parent
from user_pipeline_tests.soak import COUNTS
from user_pipeline_tests.soak.histories import Soak, history
from user_pipeline_tests.soak.kills import kill
from user_pipeline_tests.soak.lines import fuzz
from user_pipeline_tests.soak.queue import queue
from user_pipeline_tests.soak.secrets import Logged, plant

_SPARK = CHECKOUT / ".venv-spark"
_FIGURES = {
    "histories": ("histories", 10_000),
    "kills": ("kills", 1_000),
    "lines": ("fuzzed lines", 1_000_000),
    "queue": ("queued runs", 500),
}
"""What each part counts, and how much of it a night should bring."""
_SEEDS = 1_000_000


@contextlib.contextmanager
def prepared(*, spark: bool) -> Iterator[dict[str, Callable[[int], str | None]]]:
    """A server, a parent of runs that can be killed, and a Spark cluster if there is one; gives what each part does."""
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name in list(os.environ):
            if name.startswith(("AWS_", "USER_PIPELINE_", "DAGSTER_", "PG")):
                patch.delenv(name)
        # Most lines of so few are rejected ones.
        patch.setenv("USER_PIPELINE_BLOCK_REJECT_SHARE", "1")
        server: EmbeddedPostgres = ensure_running(root / "data")
        stack.callback(stop, root / "data")
        if spark:
            shape = Shape(workers=1, worker_memory="1g", executor_memory="512m")
            Soak.remote = stack.enter_context(cluster(_SPARK, shape)).remote
        plant(patch)
        logged = Logged(root / "log")
        stack.enter_context(logged.taken())
        parent = stack.enter_context(Parent.start(root))
        Soak.postgres, Soak.parent = server, parent

        def searched(act: Callable[[int], str | None]) -> Callable[[int], str | None]:
            def numbered(number: int) -> str | None:
                try:
                    said = act(number)
                except Exception:  # noqa: BLE001 - whatever it is, it is told, and the next number begins
                    said = traceback.format_exc()
                return "\n".join(filter(None, [said, logged.search()])) or None

            return numbered

        yield {
            "histories": searched(history),
            "kills": searched(lambda number: kill(server, parent, number)),
            "lines": searched(lambda number: fuzz(server, number)),
            "queue": searched(lambda _: queue()),
        }


def furthest(counts: dict[str, int], parts: list[str]) -> str:
    """The part that has least of its figure."""
    return min(parts, key=lambda part: counts.get(_FIGURES[part][0], 0) / _FIGURES[part][1])


def main() -> int:
    """Go on until the time is up; 1 if something failed, now or before."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1, help="another one has other histories")
    parser.add_argument("--parts", nargs="+", choices=_FIGURES, default=list(_FIGURES), help="only these")
    parser.add_argument("--number", type=int, help="only this number of the one part, to see it fail again")
    parser.add_argument("--no-spark", action="store_true", help="stay on DuckDB, though there is a cluster")
    parser.add_argument("--state", type=Path, default=Path("soak.json"), help="what was done so far")
    chosen = parser.parse_args()
    if chosen.number is not None and len(chosen.parts) != 1:
        parser.error("--number is of one part: name it with --parts")
    state: dict[str, Any] = {"done": {}, "seconds": {}, "counts": {}, "failed": []}
    if chosen.state.is_file():
        state |= json.loads(chosen.state.read_text(encoding="utf-8"))
    with prepared(spark=(_SPARK / ".installed").is_file() and not chosen.no_spark) as acts:
        if chosen.number is not None:
            said = acts[chosen.parts[0]](chosen.number)
            sys.stdout.write(said or "Nothing failed.\n")
            return 1 if said else 0
        end = time.monotonic() + 60 * chosen.minutes
        while (started := time.monotonic()) < end:
            part = furthest(state["counts"], chosen.parts)
            key = f"{part} of seed {chosen.seed}"
            done = state["done"].get(key, 0)
            number = chosen.seed * _SEEDS + done
            COUNTS.clear()
            said = acts[part](number)
            state["done"][key] = done + 1
            state["seconds"][part] = state["seconds"].get(part, 0) + time.monotonic() - started
            state["counts"] = dict(Counter(state["counts"]) + COUNTS)
            if said:
                state["failed"].append(f"{part} {number}")
                again = f"make soak ARGS='--parts {part} --number {number}'"
                sys.stdout.write(f"{part} {number} failed; again: {again}\n{said}\n")
            chosen.state.write_text(json.dumps(state, indent=1), encoding="utf-8")
            sys.stdout.write(f"{part} {number}: {state['counts']}, {len(state['failed'])} failed\n")
            sys.stdout.flush()
    return 1 if state["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())

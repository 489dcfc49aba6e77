"""Fake users per second, beside a loop that calls Faker for each field and cleans with pandas.

Both generate, clean and write CSV, in a process of their own that has made a hundred users before, so that
imports do not count. Then the seven assets are materialized for one day of a million users.

    python benchmarks/fake_users.py [--users 100000] [--pipeline-users 1000000]
"""

import argparse
import io
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

NOW = datetime(2017, 4, 3, tzinfo=UTC)


def vectorized(users: int) -> int:
    """The project's way; returns the users kept."""
    from user_pipeline.fake_users import csvfile
    from user_pipeline.fake_users.clean import clean
    from user_pipeline.fake_users.generate import generate

    raw = generate(users, 0.10, 0.15, seed=1)
    csvfile.write(raw, io.BytesIO())
    cleaned, _ = clean(raw, NOW)
    csvfile.write(cleaned, io.BytesIO())
    return int(cleaned.num_rows)


def loop(users: int) -> int:
    """The straightforward way; returns the users kept."""
    import pandas as pd
    from faker import Faker

    from user_pipeline.email_address import EMAIL_PATTERN

    fake = Faker("en_US")
    fake.seed_instance(1)
    draw = random.Random(1)  # noqa: S311  # made-up people need no cryptography
    raw = pd.DataFrame(
        {
            "id": number,
            "first_name": fake.first_name(),
            "last_name": "" if draw.random() < 0.10 else fake.last_name(),
            "email": "" if draw.random() < 0.15 else fake.email(),
            "city": fake.city(),
            "salary": round(draw.uniform(30_000, 120_000), 2),
        }
        for number in range(1, users + 1)
    )
    raw.to_csv(io.StringIO(), index=False)
    kept = (raw["last_name"].str.strip() != "") & raw["email"].str.fullmatch(EMAIL_PATTERN)
    cleaned = raw[kept].assign(processed_at=f"{NOW:%Y-%m-%d %H:%M:%S}")
    cleaned.to_csv(io.StringIO(), index=False)
    return len(cleaned)


def pipeline(users: int) -> int:
    """The seven assets for one day, into a temporary lake; returns the files made."""
    import dagster as dg

    from user_pipeline.defs.fake_users import assets as fake_users
    from user_pipeline.engines.duckdb import Engine
    from user_pipeline.io_managers.files import FilesIOManager
    from user_pipeline.lake.lake import Lake
    from user_pipeline.resources.postgres import Databases
    from user_pipeline.resources.storage import ObjectStorage
    from user_pipeline.settings import Settings

    with tempfile.TemporaryDirectory() as lake, tempfile.TemporaryDirectory() as scratch:
        settings = Settings.from_environment({"USER_PIPELINE_LAKE_URL": lake, "USER_PIPELINE_SCRATCH_DIR": scratch})
        engine = Engine(settings)
        manager = FilesIOManager(lake=Lake(ObjectStorage(settings), Databases(settings)), engine=engine)
        result = dg.materialize(
            [asset for asset in vars(fake_users).values() if isinstance(asset, dg.AssetsDefinition)],
            resources={"engine": engine, "files_io_manager": manager, "io_manager": dg.mem_io_manager},
            run_config={
                "ops": {"fake_users_archive": {"config": {"num_users": users}}},
                "loggers": {"console": {"config": {"log_level": "ERROR"}}},
            },
            partition_key="2017-04-02",
        )
        for event in result.all_events:
            if event.is_step_success:
                seconds = event.step_success_data.duration_ms / 1_000
                print(f"  {event.step_key:<24} {seconds:6.1f} s")
        return sum(path.is_file() for path in Path(lake).rglob("*"))


def measured(work: Callable[[int], int], users: int) -> tuple[float, float]:
    """Seconds ``work`` takes and the most memory it holds, in MB."""
    if work is not pipeline:
        work(100)
    started = time.perf_counter()
    work(users)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return seconds, peak / (1e6 if sys.platform == "darwin" else 1e3)


def main() -> None:
    """Run and print."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--users", type=int, default=100_000, help="users of the comparison")
    arguments.add_argument("--pipeline-users", type=int, default=1_000_000, help="users of the day; 0 leaves it out")
    sizes = arguments.parse_args()
    # Each in a new process: what one imported or held does not count for another.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as processes:
        print(f"Generate, clean and write CSV, {sizes.users:,} users:")
        times = {}
        for name, work in (("Faker per field, pandas", loop), ("this project", vectorized)):
            times[name], peak = processes.submit(measured, work, sizes.users).result()
            rate = sizes.users / times[name]
            print(f"  {name:<24} {times[name]:6.1f} s  {rate:10,.0f} users/s  peak {peak:6,.0f} MB")
        slow, fast = times.values()
        print(f"  {slow / fast:.1f} times as fast")
        if sizes.pipeline_users:
            print(f"The seven assets, one day of {sizes.pipeline_users:,} users:", flush=True)
            seconds, peak = processes.submit(measured, pipeline, sizes.pipeline_users).result()
            print(f"  {'together':<24} {seconds:6.1f} s  peak {peak:,.0f} MB")


if __name__ == "__main__":
    main()

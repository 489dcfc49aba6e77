"""Many runs queued at once through the shipped deployment: does each succeed, and does the UI answer meanwhile?

    python benchmarks/run_queue.py [--runs 200] [--keep DIRECTORY]

Starts what ``deploy/`` describes as processes of this machine: the code server, the web server and the daemon with
``deploy/dagster.yaml`` and its limits, a Postgres of its own with three databases, and an S3 endpoint (moto) for
source, lake and step output. Delivers a few lines for each of ``--runs`` days, asks through GraphQL for one run of
``daily_log_pipeline`` for each day, from the raw assets to the tables with their checks, all at once, and waits until
all have ended. Meanwhile the queries of the UI's runs page, queue and asset graph are timed, one after the other.

In the end the tables are compared with what plain Python makes of the same lines, and by ``user-pipeline verify``
with a full recompute. The sensor runs as well, as it does in production; its runs are counted apart.
"""

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path

import boto3

from user_pipeline_tests.deployment import (
    BUCKETS,
    TABLES,
    Deployment,
    deployed,
    expected_tables,
    small_logs,
    tables,
)
from user_pipeline_tests.servers import password_server

FIRST = date(2017, 4, 1)
QUERIES = {
    "runs page": """{ runsOrError(limit: 25) { ... on Runs { results {
        runId status jobName startTime endTime tags { key value } assetSelection { path } } } } }""",
    "queue": """{ runsOrError(filter: {statuses: [QUEUED, STARTED]}) { ... on Runs { count } }
        instance { daemonHealth { allDaemonStatuses { daemonType healthy } } } }""",
    "asset graph": """{ assetNodes { assetKey { path } groupName partitionStats { numMaterialized numFailed }
        assetMaterializations(limit: 1) { runId timestamp } } }""",
}
ENDED = {"SUCCESS", "FAILURE", "CANCELED"}


def percentile(times: Sequence[float], share: float) -> float:
    """The smallest time that ``share`` of the times do not exceed."""
    return sorted(times)[min(len(times) - 1, int(len(times) * share))]


def object_store(directory: Path) -> tuple[subprocess.Popen[bytes], str]:
    """An S3 endpoint in a process of its own, and its address."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with (directory / "moto.log").open("wb") as log:
        program = Path(sys.executable).with_name("moto_server")
        process = subprocess.Popen([program, "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log)
    return process, f"http://127.0.0.1:{port}"


def deliver(endpoint: str, objects: dict[str, bytes]) -> None:
    """Make the buckets and put the objects into the source."""
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="test-key",
        aws_secret_access_key="test-secret",  # noqa: S106 - of an endpoint on this machine
    )
    for attempt in range(100):
        try:
            for bucket in BUCKETS:
                client.create_bucket(Bucket=bucket)
            break
        except Exception:
            if attempt == 99:
                raise
            time.sleep(0.2)
    for key, content in objects.items():
        client.put_object(Bucket=BUCKETS[0], Key=key, Body=content)


def watch(deployment: Deployment, wanted: set[str], started: float) -> tuple[dict[str, list[float]], int]:
    """Ask as the UI does until all runs have ended; the times of the answers by query, and the most runs at once."""
    answers: dict[str, list[float]] = {name: [] for name in QUERIES}
    most = shown = 0
    while True:
        for name, query in QUERIES.items():
            before = time.monotonic()
            deployment.graphql(query)
            answers[name].append(time.monotonic() - before)
        statuses = dict(deployment.query("dagster", "select run_id, status from runs"))
        going = Counter(statuses.values())
        most = max(most, going["STARTED"] + going["STARTING"])
        ended = sum(statuses[run] in ENDED for run in wanted)
        if ended >= shown + 20 or ended == len(wanted):
            shown = ended
            print(f"  {time.monotonic() - started:6.0f} s: {ended} of {len(wanted)} ended; {dict(going)}", flush=True)
        if ended == len(wanted):
            return answers, most
        time.sleep(2)


def measure(deployment: Deployment, days: Sequence[date], objects: dict[str, bytes]) -> bool:
    """Queue the runs, watch them, and say what came of it; whether everything is as it should be."""
    started = time.monotonic()
    wanted = {deployment.launch(day.isoformat(), assets=TABLES) for day in days}
    print(f"{len(wanted)} runs queued in {time.monotonic() - started:.1f} s", flush=True)
    answers, most = watch(deployment, wanted, started)
    took = time.monotonic() - started
    runs = deployment.query("dagster", "select run_id, status, end_time - start_time from runs")
    ours = Counter(status for run, status, _ in runs if run in wanted)
    seconds = [float(length) for run, _, length in runs if run in wanted and length is not None]
    others = Counter(status for run, status, _ in runs if run not in wanted)
    print(f"all ended in {took:.0f} s, {took / len(wanted):.1f} s a run; at most {most} at once")
    print(f"  these runs: {dict(ours)}; the sensor's: {dict(others)}")
    print(f"  a run took {statistics.median(seconds):.1f} s in the median, {max(seconds):.1f} s at most")
    for name, times in answers.items():
        print(
            f"  {name:<12} {len(times)} answers, median {statistics.median(times):.2f} s,"
            f" 95 % within {percentile(times, 0.95):.2f} s, slowest {max(times):.2f} s"
        )
    events, size = deployment.query(
        "dagster", "select count(*), pg_size_pretty(pg_database_size('dagster')) from event_logs"
    )[0]
    print(f"  Dagster's database: {events:,} events, {size}")
    expected, found = expected_tables(objects, days), tables(deployment)
    for name, rows in expected.items():
        print(f"  {name}: {len(found[name]):,} rows, {'as expected' if found[name] == rows else 'WRONG'}")
    verified = deployment.run("user-pipeline", "verify")
    print(f"  user-pipeline verify: {(verified.stdout + verified.stderr).strip().splitlines()[-1]}")
    return found == expected and ours == {"SUCCESS": len(wanted)} and verified.returncode == 0


def main() -> None:
    """Run and print; the exit code says whether all runs succeeded and all tables are right."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--runs", type=int, default=200, help="days, each a run of its own")
    arguments.add_argument("--keep", type=Path, help="leave everything in this directory")
    options = arguments.parse_args()
    directory = options.keep or Path(tempfile.mkdtemp(prefix="up-"))
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o755)
    days = [FIRST + timedelta(days=number) for number in range(options.runs)]
    objects = small_logs(FIRST, options.runs)
    for name in [name for name in os.environ if name.startswith(("AWS_", "USER_PIPELINE_", "DAGSTER_", "PG"))]:
        del os.environ[name]
    store, endpoint = object_store(directory)
    try:
        deliver(endpoint, objects)
        with (
            password_server(fsync="on", shared_buffers="512MB") as server,
            deployed(directory, server, endpoint) as deployment,
        ):
            succeeded = measure(deployment, days, objects)
    finally:
        store.send_signal(signal.SIGTERM)
        store.wait()
        if options.keep is None:
            shutil.rmtree(directory)
    sys.exit(0 if succeeded else 1)


if __name__ == "__main__":
    main()

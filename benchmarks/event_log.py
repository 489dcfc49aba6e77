"""How large Dagster's own records become in years of daily runs, with and without the job that prunes them.

    make bench BENCH=event_log.py ARGS="--years 1 3 10"

A day of the pipeline is materialized a few times on an embedded Postgres of its own. What the last of these runs left
in Dagster's tables is then written once for each day of so many years, with other ids and earlier times, and with it
the ticks that the retention of dagster.yaml keeps. The tables are rewritten before their sizes are asked for, so what
is shown is what is in them.
"""

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg2

if TYPE_CHECKING:
    import dagster
    from psycopg2.extensions import cursor as Cursor  # noqa: N812 - a class, named as a function

TABLES = ("event_logs", "runs", "run_tags", "asset_event_tags", "asset_check_executions", "job_ticks")
KEPT_DAYS = 90


@contextmanager
def workspace() -> Iterator[dict[str, str]]:
    """Directories and databases of their own, as environment variables."""
    from user_pipeline.resources.embedded_postgres import ensure_running, stop

    root = Path(tempfile.mkdtemp(prefix="event-log-"))
    server = ensure_running(root / "data")
    try:
        for name in ("staging", "analytics", "dagster"):
            server.create_database(name)
        yield {
            "USER_PIPELINE_DATA_DIR": str(root / "data"),
            "USER_PIPELINE_SCRATCH_DIR": str(root / "scratch"),
            "USER_PIPELINE_STAGING_URL": server.url("staging"),
            "USER_PIPELINE_ANALYTICS_URL": server.url("analytics"),
            "DAGSTER_POSTGRES_URL": server.url("dagster"),
        }
    finally:
        stop(root / "data")
        shutil.rmtree(root, ignore_errors=True)


def run_days(home: Path) -> "dagster.DagsterInstance":
    """Materialize a few days of sample logs, one run each; the instance that has them."""
    import dagster as dg

    from user_pipeline import settings
    from user_pipeline.cli.sample_logs import SampleLogs
    from user_pipeline.definitions import defs
    from user_pipeline.resources.object_store import open_store

    store = open_store(settings.current().source)
    for key, content in SampleLogs(days=3, users=200, views_per_day=2000).objects():
        store.put(key, content)
    (home / "dagster.yaml").write_text(
        f"storage: {{postgres: {{postgres_url: '{os.environ['DAGSTER_POSTGRES_URL']}'}}}}\n"
        "telemetry: {enabled: false}\npython_logs: {python_log_level: INFO}\n"
    )
    instance = dg.DagsterInstance.from_config(str(home))
    job = defs.resolve_job_def("daily_log_pipeline")
    for day in ("2017-04-01", "2017-04-02", "2017-04-03"):
        job.execute_in_process(partition_key=day, instance=instance)
    return instance


def quote(name: str) -> str:
    """A name as SQL takes it."""
    return f'"{name}"'


def repeat(cursor: "Cursor", days: int) -> None:
    """Write what the last run left once more for each of so many days."""
    cursor.execute("select run_id from runs order by id desc limit 1")
    [(run,)] = cursor.fetchall()
    for table in ("runs", "event_logs", "run_tags", "asset_event_tags", "asset_check_executions"):
        cursor.execute(
            "select column_name from information_schema.columns where table_schema = 'public' and table_name = %s "
            "and column_name <> 'id' order by ordinal_position",
            (table,),
        )
        columns = [name for (name,) in cursor.fetchall()]
        where = (
            "event_id in (select id from event_logs where run_id = %s)"
            if table == "asset_event_tags"
            else "run_id = %s"
        )
        values = {
            "run_id": "md5(n::text)::uuid::text",
            "partition": "case when partition is null then null else (date '2017-04-03' - n)::text end",
            "timestamp": "\"timestamp\" - n * interval '1 day'",
            "event_timestamp": "event_timestamp - n * interval '1 day'",
            "create_timestamp": "create_timestamp - n * interval '1 day'",
            "update_timestamp": "update_timestamp - n * interval '1 day'",
            "start_time": "start_time - n * 86400",
            "end_time": "end_time - n * 86400",
            "event_id": "event_id + 1000000 * n::bigint",
            "evaluation_event_storage_id": "evaluation_event_storage_id + 1000000 * n::bigint",
        }
        taken = ", ".join(values.get(name, quote(name)) for name in columns)
        cursor.execute(
            f"insert into {table} ({', '.join(quote(name) for name in columns)}) "
            f"select {taken} from (select * from {table} where {where}) t, generate_series(1, %s) n",
            (run, days),
        )


def add_ticks(cursor: "Cursor") -> None:
    """The ticks that are kept: a day of two sensors that tick twice a minute, a year of five schedules."""
    body = "repeat('x', 700)"
    cursor.execute(
        "insert into job_ticks (job_origin_id, selector_id, status, type, timestamp, tick_body) "
        f"select 'o', 's', 'SKIPPED', 'SENSOR', now(), {body} from generate_series(1, 2 * 2880)"
    )
    cursor.execute(
        "insert into job_ticks (job_origin_id, selector_id, status, type, timestamp, tick_body) "
        f"select 'o', 's', 'SUCCESS', 'SCHEDULE', now(), {body} from generate_series(1, 5 * 365)"
    )


def sizes(cursor: "Cursor") -> dict[str, int]:
    """Bytes of each table with its indexes, once it is rewritten."""
    found = {}
    for table in TABLES:
        cursor.execute(f"vacuum full {table}")
        cursor.execute("select pg_total_relation_size(%s)", (table,))
        [(found[table],)] = cursor.fetchall()
    return found


def main() -> None:
    """Print a line for each number of years, before and after pruning."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--years", type=int, nargs="+", default=[1, 3, 10])
    years = sorted(parser.parse_args().years)
    with workspace() as environment, tempfile.TemporaryDirectory() as home:
        os.environ.update(environment)
        from user_pipeline.defs.automation.run_retention import prune_events

        instance = run_days(Path(home))
        connection = psycopg2.connect(environment["DAGSTER_POSTGRES_URL"])
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("create schema kept")
            for table in TABLES:
                cursor.execute(f"create table kept.{table} as select * from {table}")
            print(f"{'years':>5} {'pruned':>7} {'MB':>8}  " + "  ".join(TABLES))
            for number in years:
                cursor.execute(f"truncate {', '.join(TABLES)} cascade")
                for table in ("runs", *(each for each in TABLES if each != "runs")):
                    cursor.execute(f"insert into {table} select * from kept.{table}")
                repeat(cursor, 365 * number)
                add_ticks(cursor)
                for pruned in (False, True):
                    if pruned:
                        before = datetime.now(UTC) - timedelta(days=KEPT_DAYS)
                        started = datetime.now(UTC)
                        events = prune_events(instance, before)
                        seconds = (datetime.now(UTC) - started).total_seconds()
                    found = sizes(cursor)
                    line = f"{number:>5} {'yes' if pruned else 'no':>7} {sum(found.values()) / 1e6:>8.1f}  "
                    line += "  ".join(f"{found[table] / 1e6:.1f}" for table in TABLES)
                    print(line + (f"  ({events:,} events in {seconds:.1f} s)" if pruned else ""), flush=True)
        connection.close()
        instance.dispose()


if __name__ == "__main__":
    main()

"""The same with dbt-postgres: raw lines COPYed into partitions by day, models that do a day at a time.

    python benchmarks/peers/with_dbt.py SOURCE DATABASE_URL --dbt DBT --first 2017-05-01 --last 2017-05-01

The models in ``dbt_project/`` are incremental: staging tables and each day's contribution are replaced by the day
(delete+insert), ``user_page_views`` by the pairs that the days touch. The first time they are built whole.
"""

import argparse
import os
import subprocess
from datetime import date, timedelta
from pathlib import Path

import psycopg2

_PROJECT = Path(__file__).with_name("dbt_project")
_RAW = """
create table if not exists raw_page_views (line json not null, day date not null) partition by list (day);
create table if not exists raw_user_updates (
  updated_at timestamp, user_id bigint, email text, name text, environment text, day date not null
) partition by list (day);
"""
# Lines are taken as they are: neither delimiter nor quote occurs in them.
_LINES = "with (format csv, delimiter E'\\x01', quote E'\\x02')"


def main() -> None:
    """COPY some days, then run the models for them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("url")
    parser.add_argument("--dbt", required=True, help="the program")
    parser.add_argument("--first", type=date.fromisoformat, required=True)
    parser.add_argument("--last", type=date.fromisoformat, required=True)
    parser.add_argument("--target", required=True, help="where dbt keeps what it compiles")
    given = parser.parse_args()

    connection = psycopg2.connect(given.url)
    with connection, connection.cursor() as cursor:
        cursor.execute(_RAW)
    for number in range((given.last - given.first).days + 1):
        _copy_day(connection, given.source, given.first + timedelta(days=number))
    with connection.cursor() as cursor:
        cursor.execute("analyze raw_page_views; analyze raw_user_updates")
    connection.commit()
    parameters = connection.get_dsn_parameters()
    connection.close()

    environment = os.environ | {
        "DBT_HOST": parameters["host"],
        "DBT_PORT": parameters["port"],
        "DBT_USER": parameters["user"],
        "DBT_DATABASE": parameters["dbname"],
        "DBT_TARGET_PATH": given.target,
        "DBT_LOG_PATH": given.target,
        "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
        "DO_NOT_TRACK": "1",
    }
    days = f'{{"first": "{given.first}", "end": "{given.last + timedelta(days=1)}"}}'
    command = [given.dbt, "--no-version-check", "run", "--project-dir", _PROJECT, "--profiles-dir", _PROJECT]
    subprocess.run([*command, "--threads", "2", "--vars", days], env=environment, check=True)


def _copy_day(connection: "psycopg2.extensions.connection", source: Path, day: date) -> None:
    with connection, connection.cursor() as cursor:
        for table, pattern, columns, options in (
            ("raw_page_views", f"PageViews/{day}-*.json", "line", _LINES),
            ("raw_user_updates", f"UserUpdates/{day}-*.csv", "updated_at, user_id, email, name, environment", _CSV),
        ):
            part = f"{table}_{day:%Y%m%d}"
            cursor.execute(f"drop table if exists {part}")
            # Filled before it is attached: in the transaction that makes it, COPY skips the log.
            cursor.execute(f"create table {part} (like {table}, check (day = '{day}'))")
            cursor.execute(f"alter table {part} alter column day set default '{day}'")
            for file in sorted(source.glob(pattern)):
                with file.open("rb") as content:
                    cursor.copy_expert(f"copy {part} ({columns}) from stdin {options}", content)
            cursor.execute(f"alter table {table} attach partition {part} for values in ('{day}')")


_CSV = "with (format csv)"

if __name__ == "__main__":
    main()

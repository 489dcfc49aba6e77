"""The floor of an exact incremental table: one new day is parsed, copied into staging, and upserted in place.

    python benchmarks/peers/bare_upsert.py SOURCE DATABASE_URL --day 2017-05-01

The database has ``user_page_views`` with its history and unique key already; its rows of the day are added to it in
one transaction. Nothing else: no look at which objects are new, no rejects, no checks, no e-mails, and a second run of
the same day counts it twice.
"""

import argparse

import adbc_driver_postgresql.dbapi as adbc
import duckdb

_ROWS = 100_000


def main() -> None:
    """Load the day."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("url")
    parser.add_argument("--day", required=True)
    parser.add_argument("--memory", default="2GB")
    parser.add_argument("--scratch", required=True)
    given = parser.parse_args()
    options = {"memory_limit": given.memory, "temp_directory": given.scratch, "preserve_insertion_order": False}
    with (
        duckdb.connect(config=options) as engine,
        adbc.connect(given.url) as connection,
        connection.cursor() as cursor,
    ):
        engine.execute(
            """
            create table views as
            select distinct ts, url, environment, user_id
            from read_json($files, format = 'newline_delimited', columns = {
              'ts': 'timestamp', 'url': 'varchar', 'environment': 'varchar', 'user_id': 'bigint'})
            where environment = 'production'
            """,
            {"files": f"{given.source}/PageViews/{given.day}-*.json"},
        )
        cursor.execute(
            "create table if not exists page_views (ts timestamp, url text, environment text, user_id bigint)"
        )
        cursor.execute("create index if not exists page_views_ts_idx on page_views (ts)")
        views = engine.execute("from views order by ts").to_arrow_reader(_ROWS)
        cursor.adbc_ingest("page_views", views, mode="append")
        pairs = engine.execute(
            "select user_id, url, count(*) as count, max(ts) as last_viewed from views group by all order by 1, 2"
        )
        cursor.adbc_ingest("added", pairs.to_arrow_reader(_ROWS), mode="create", temporary=True)
        cursor.execute(
            """
            insert into user_page_views as v (user_id, url, count, last_viewed)
            select user_id, url, count, last_viewed from added
            on conflict (user_id, url_key(url) collate "C") do update
            set count = v.count + excluded.count, last_viewed = greatest(v.last_viewed, excluded.last_viewed)
            """
        )
        connection.commit()


if __name__ == "__main__":
    main()

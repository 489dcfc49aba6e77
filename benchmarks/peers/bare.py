"""The practical floor: DuckDB parses, dedupes and aggregates, COPY loads. No manifest, no checks, no increments.

    python benchmarks/peers/bare.py SOURCE DATABASE_URL [--day 2017-05-01]

Makes ``page_views`` and ``user_page_views`` anew, with the index and the key that readers need, from all logs or
from those of one day. What is not production is dropped and not counted; a line that cannot be parsed ends it.
"""

import argparse

import adbc_driver_postgresql.dbapi as adbc
import duckdb

_ROWS = 100_000


def main() -> None:
    """Load everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("url")
    parser.add_argument("--day", default="*")
    parser.add_argument("--memory", default="2GB")
    parser.add_argument("--scratch", required=True)
    given = parser.parse_args()
    options = {"memory_limit": given.memory, "temp_directory": given.scratch, "preserve_insertion_order": False}
    with duckdb.connect(config=options) as engine:
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
        engine.execute(
            """
            create table emails as
            select user_id, max_by(email, (updated_at, email, name)) as email
            from read_csv($files, header = false, columns = {
              'updated_at': 'timestamp', 'user_id': 'bigint', 'email': 'varchar', 'name': 'varchar',
              'environment': 'varchar'})
            where environment = 'production' group by user_id
            """,
            {"files": f"{given.source}/UserUpdates/{given.day}-*.csv"},
        )
        _load(engine, given.url, "page_views", "from views order by ts", "create index on page_views (ts)")
        _load(
            engine,
            given.url,
            "user_page_views",
            """
            select user_id, email, url, count, last_viewed
            from (select user_id, url, count(*) as count, max(ts) as last_viewed from views group by all) pairs
            left join emails using (user_id) order by user_id, url
            """,
            "alter table user_page_views add primary key (user_id, url)",
        )


def _load(engine: duckdb.DuckDBPyConnection, url: str, table: str, query: str, index: str) -> None:
    with adbc.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute(f"drop table if exists {table}")
        cursor.adbc_ingest(table, engine.execute(query).to_arrow_reader(_ROWS), mode="create")
        cursor.execute(index)
        connection.commit()


if __name__ == "__main__":
    main()

"""What a first solution looks like: pandas over all logs there are, ``to_sql`` in the table's place.

    python benchmarks/peers/with_pandas.py SOURCE DATABASE_URL

Makes ``user_page_views``; the staging table, which the others make too, is left out: writing its rows the same way
would take several times as long again.
"""

import argparse
from pathlib import Path

import pandas as pd
from sqlalchemy import create_engine

_UPDATES = ["updated_at", "user_id", "email", "name", "environment"]


def main() -> None:
    """Make the table anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("url")
    given = parser.parse_args()

    files = sorted((given.source / "PageViews").glob("*.json"))
    views = pd.concat([pd.read_json(file, lines=True, convert_dates=["ts"]) for file in files], ignore_index=True)
    views = views[views["environment"] == "production"].drop_duplicates()

    files = sorted((given.source / "UserUpdates").glob("*.csv"))
    updates = pd.concat([pd.read_csv(file, names=_UPDATES, parse_dates=["updated_at"]) for file in files])
    updates = updates[updates["environment"] == "production"]
    latest = updates.sort_values(["updated_at", "email", "name"]).drop_duplicates("user_id", keep="last")

    pairs = views.groupby(["user_id", "url"])["ts"].agg(count="count", last_viewed="max").reset_index()
    table = pairs.merge(latest[["user_id", "email"]], on="user_id", how="left")
    table = table[["user_id", "email", "url", "count", "last_viewed"]]
    engine = create_engine(given.url.replace("postgresql://", "postgresql+psycopg2://", 1))
    table.to_sql("user_page_views", engine, index=False, if_exists="replace", chunksize=10_000)


if __name__ == "__main__":
    main()

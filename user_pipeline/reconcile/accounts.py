"""Where every row of a day went, counted in what is stored."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from user_pipeline.engines.duckdb import Engine, scan
from user_pipeline.ingest.feeds import Feed
from user_pipeline.lake.lake import Lake
from user_pipeline.resources.postgres import quote
from user_pipeline.transforms.cleaned import PRODUCTION


@dataclass(frozen=True, slots=True)
class DayAccount:
    """One feed on one day, in rows.

    Attributes:
        day: the day.
        raw: delivered, in the lake.
        cleaned: kept, in the staging database.
        duplicates: delivered in production more than once: all but one of each.
        other_environments: delivered from elsewhere than production.
    """

    day: date
    raw: int
    cleaned: int
    duplicates: int
    other_environments: int

    @property
    def balances(self) -> bool:
        """Whether every delivered row is accounted for."""
        return self.raw == self.cleaned + self.duplicates + self.other_environments


def account_days(feed: Feed, lake: Lake, engine: Engine, days: Sequence[date]) -> list[DayAccount]:
    """Count the rows of some materialized days, each kind apart from the others.

    Raises:
        MissingPartitionError: a day is not materialized.
    """
    files = lake.fetch(engine, lake.staging, f"raw_{feed.name}", days)
    columns = ", ".join(feed.columns)
    raw = {}
    with engine.connect() as connection:
        for day in days:
            [raw[day]] = connection.execute(
                f"""
                select sum(n), sum(n - 1) filter (production), sum(n) filter (not production)
                from (
                  select {columns}, count(*) as n, environment = '{PRODUCTION}' as production
                  from {scan(files[day])} group by all
                )
                """
            ).fetchall()
    with lake.staging.database.transaction() as transaction:
        cleaned = dict(
            transaction.fetch(
                f"select {feed.event_time}::date, count(*) from public.{quote(feed.name)} "
                f"where {between(feed.event_time, days)} group by 1"
            )
        )
    accounts = []
    for day in days:
        rows, duplicates, other = (int(count or 0) for count in raw[day])
        accounts.append(DayAccount(day, rows, int(cleaned.get(day, 0)), duplicates, other))
    return accounts


def between(column: str, days: Sequence[date]) -> str:
    """The SQL condition that a column lies in a range of days, from the first to the last of ``days``."""
    return f"{quote(column)} >= '{min(days)}' and {quote(column)} < '{max(days) + timedelta(days=1)}'"

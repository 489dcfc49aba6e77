"""What became of every row of a day, counted in what is stored."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING

from user_pipeline.engines.base import Engine
from user_pipeline.engines.duckdb import scan
from user_pipeline.ingest.feeds import Feed
from user_pipeline.lake.lake import Lake
from user_pipeline.resources.postgres import quote
from user_pipeline.transforms.cleaned import PRODUCTION

if TYPE_CHECKING:
    import duckdb

_PRIME = 65_521
"""Factors are taken modulo this prime, so that products fit in 64 bits."""
_NOTHING = (0, ())


@dataclass(frozen=True, slots=True)
class DayAccount:
    """One feed on one day, in rows.

    Attributes:
        day: the day.
        raw: delivered, in the lake.
        cleaned: kept, in the staging database.
        duplicates: delivered in production more than once: all but one of each.
        other_environments: delivered from elsewhere than production.
        has_foreign: whether the staging database has rows of other environments.
        is_same: whether the rows of the staging database are the distinct production rows of the lake, as far as their
            number and the sums of their values tell.
    """

    day: date
    raw: int
    cleaned: int
    duplicates: int
    other_environments: int
    has_foreign: bool
    is_same: bool

    @property
    def balances(self) -> bool:
        """Whether every delivered row is accounted for."""
        return self.raw == self.cleaned + self.duplicates + self.other_environments


def account_days(feed: Feed, lake: Lake, engine: Engine, days: Sequence[date]) -> list[DayAccount]:
    """Count the rows of some materialized days, each kind apart from the others.

    Lake and database are read once each. Both give sums over the values of their rows, so a row that stands twice in
    the place of another does not go unnoticed.

    Raises:
        MissingPartitionError: a day is not materialized.
    """
    files = lake.fetch(engine, lake.staging, f"raw_{feed.name}", days)
    with engine.connect() as connection:
        delivered = {day: _delivered(connection, feed, scan(files[day])) for day in days}
    with lake.staging.database.transaction() as transaction:
        microseconds = f"(date_part('epoch', {feed.event_time}) * 1000000)::bigint"
        cleaned = {
            day: (foreign, (count, tuple(map(int, sums))))
            for day, foreign, count, *sums in transaction.fetch(
                f"select {feed.event_time}::date, count(*) filter (where environment is distinct from '{PRODUCTION}'), "
                f"count(*), {_sums(feed, microseconds, '::text')} from public.{quote(feed.name)} "
                f"where {between(feed.event_time, days)} group by 1"
            )
        }
    accounts = []
    for day in days:
        (raw, duplicates, other), expected = delivered[day]
        foreign, there = cleaned.get(day, (0, _NOTHING))
        account = DayAccount(day, raw, there[0], duplicates, other, foreign > 0, there == expected)
        accounts.append(account)
    return accounts


def _delivered(
    connection: "duckdb.DuckDBPyConnection", feed: Feed, files: str
) -> tuple[tuple[int, int, int], tuple[int, tuple[int, ...]]]:
    """The rows of a raw day, which of them are duplicates and of other environments, and what cleaned must have."""
    columns = ", ".join(feed.columns)
    [(raw, duplicates, other, kept, *sums)] = connection.execute(
        f"""
        with delivered as (
          select {columns}, count(*) as n, environment = '{PRODUCTION}' as production from {files} group by all
        ),
        counted as (
          select coalesce(sum(n), 0), coalesce(sum(n - 1) filter (production), 0),
            coalesce(sum(n) filter (not production), 0)
          from delivered
        ),
        kept as (
          select count(*), {_sums(feed, f"epoch_us({feed.event_time})", "::varchar")} from delivered where production
        )
        select * from counted, kept
        """
    ).fetchall()
    return (int(raw), int(duplicates), int(other)), (kept, tuple(map(int, sums)) if kept else ())


def _sums(feed: Feed, microseconds: str, as_text: str) -> str:
    """Sums over rows that tell one set of them from another, in SQL that both databases give the same numbers for.

    Each text counts with its length, weighted by the row's time and user; the environment is looked at by itself.
    """
    time, user = f"{microseconds} % {_PRIME}", f"user_id % {_PRIME}"
    texts = [name for name in feed.columns if name not in (feed.event_time, "user_id", "environment")]
    terms = [
        "user_id",
        microseconds,
        f"({time}) * ({user})",
        *(f"coalesce(length({name}), 0) * ({time} + {user})" for name in texts),
    ]
    return ", ".join(f"sum({term}){as_text}" for term in terms)


def between(column: str, days: Sequence[date]) -> str:
    """The SQL condition that a column lies in a range of days, from the first to the last of ``days``."""
    return f"{quote(column)} >= '{min(days)}' and {quote(column)} < '{max(days) + timedelta(days=1)}'"

"""Compare everything that is stored with a full recompute from the lake, row by row.

The manifest and the part files of the lake are the truth of what was delivered. From them the raw partitions, the
cleaned rows, the daily aggregates and the tables people query are computed with one plain query each, which share
nothing with the transforms and the statements that keep the tables. Both are compared: the files of the lake and the
tables. A day counts as materialized if the registry has its raw partition: that can be told on any machine with the
settings, whatever Dagster's own storage knows.

Days go by one at a time; what has to be kept of them is in a database file in the scratch directory, and what
does not fit into the memory limit is spilled there. It reads while others may write: a day that is materialized again
meanwhile may show as a difference, and does not the next time.
"""

from collections.abc import Iterator
from datetime import date
from typing import TYPE_CHECKING

from user_pipeline.ingest.feeds import PAGE_VIEWS, USER_UPDATES
from user_pipeline.reconcile import tables
from user_pipeline.reconcile.comparing import Comparison, Recompute
from user_pipeline.reconcile.days import Days
from user_pipeline.resources.postgres import literal

if TYPE_CHECKING:
    from user_pipeline.engines.base import Engine
    from user_pipeline.lake.lake import Lake


def verify(
    lake: "Lake",
    engine: "Engine",
    *,
    first: date | None = None,
    last: date | None = None,
) -> Iterator[Comparison]:
    """Compare everything that is materialized with a recompute from the lake.

    Args:
        lake: the lake, and the databases with its registries.
        engine: computes, within its memory limit.
        first: the first day to compare; with either limit set only tables that are kept by the day are compared,
            because the others need all days.
        last: the last one.

    Yields:
        each table as it is done.

    Raises:
        LakeError: the lake lacks a file that the manifest or the registry counts on.
    """
    with engine.connect() as connection:
        connection.execute(f"attach {literal(str(engine.new_scratch('verify') / 'verify.duckdb'))} as kept")
        try:
            work = Recompute(lake, engine, connection)
            days = Days(work)
            yield from days.compare(USER_UPDATES, first, last)
            yield from days.compare(PAGE_VIEWS, first, last)
            if first is None and last is None:
                yield tables.rejected_lines(work)
                yield tables.users(work)
                yield tables.user_page_views(work)
                yield from tables.recommendations(work)
        finally:
            connection.execute("detach kept")

"""``user-pipeline verify`` and ``rebuild``: tables compared and brought in line with the lake."""

import sys
from datetime import datetime

import click

from user_pipeline import settings
from user_pipeline.cli.opened import FIRST, LAST, opened_lake


@click.command()
@FIRST
@LAST
def verify(first: datetime | None, last: datetime | None) -> None:
    """Compare what is stored with a full recompute from the lake; exit with 1 if anything differs.

    Every day whose raw partition is in the lake is computed again from what was delivered and compared with the
    tables of both databases, row by row and column by column. The differences are printed with the commands
    that repair them; people's names and e-mail addresses are not.

    With --from or --to only tables that are kept by the day are compared.
    """
    from user_pipeline.cli.verify_report import report
    from user_pipeline.engines.duckdb import Engine
    from user_pipeline.reconcile.verify import verify as compare

    if first and last and last < first:
        raise click.BadParameter(f"--to {last:%Y-%m-%d} lies before --from {first:%Y-%m-%d}.")
    with Engine(settings.current()) as engine, opened_lake() as lake:
        compared = compare(
            lake,
            engine,
            first=first.date() if first else None,
            last=last.date() if last else None,
        )
        if report(compared, click.echo):
            sys.exit(1)


@click.command()
def rebuild() -> None:
    """Bring rejected_lines, users and user_page_views in line with the lake (a full refresh).

    rejected_lines comes from the rejects in the lake, the other two from their daily aggregates. Each is changed in
    one transaction, and only where it differs; readers see the old or the new rows. Needed after someone else wrote
    to these tables.
    """
    from user_pipeline.engines.duckdb import Engine
    from user_pipeline.reconcile.full_refresh import refresh_marts, refresh_rejected_lines

    current = settings.current()
    with Engine(current) as engine, opened_lake() as lake:
        lines = refresh_rejected_lines(lake, engine)
        click.echo(f"rejected_lines: {lines:,} lines from {current.lake}")
        for table, rows in refresh_marts(lake, engine).items():
            click.echo(f"{table}: {rows:,} rows put right")

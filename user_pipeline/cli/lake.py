"""Commands on the lake: what was read into it, which files it has, and what goes out of it."""

from datetime import UTC, datetime, timedelta

import click

from user_pipeline import settings
from user_pipeline.cli.opened import DAY, FIRST, LAST, opened_lake
from user_pipeline.masking import printable


@click.command()
@click.option("--day", type=DAY, metavar="YYYY-MM-DD", help="Only those with rows of this day.")
@click.option("--unread", is_flag=True, help="Only those that could not be read, and why.")
def objects(day: datetime | None, *, unread: bool) -> None:
    """List the objects that were read, with the days they brought rows for.

    A line for each object: feed, key, rows (of the day, if one is given), rejected lines, and the days. Of one that
    went through a filter it says so: its lines are those of what the filter gave.
    """
    from user_pipeline.ingest.feeds import FEEDS
    from user_pipeline.ingest.manifest import Manifest

    with opened_lake() as lake:
        for feed in FEEDS:
            manifest = Manifest(feed, lake.staging)
            for entry in manifest.unread() if unread else manifest.entries(day.date() if day else None):
                on_day = entry.days.get(day.date()) if day else None
                if day and not on_day:
                    continue
                rows = on_day.rows if on_day else entry.rows
                days = f"{min(entry.days)}...{max(entry.days)}" if entry.days else "no day"
                problem = entry.error or (entry.failure and f"not fetched: {entry.failure.error}") or ""
                numbers = f"{rows:,} rows  {entry.rejects:,} rejected"
                filtered = "  filtered" if entry.filter else ""
                click.echo(f"{feed.name}  {printable(entry.key)}  {numbers}  {days}{filtered}  {problem}".rstrip())


@click.command()
@click.argument("feed", type=click.Choice(["user_updates", "page_views"]))
@click.option("--day", type=DAY, metavar="YYYY-MM-DD", help="Only this day.")
@FIRST
@LAST
def accept(feed: str, day: datetime | None, first: datetime | None, last: datetime | None) -> None:
    """Let days of a feed pass though most of their lines were rejected.

    What was read for the days until now does not fail the check reject_share_of_day any more; what is read later does.
    Then materialize the days.
    """
    from user_pipeline.ingest.feeds import FEEDS
    from user_pipeline.ingest.intake import accept_on_purpose
    from user_pipeline.ingest.manifest import Manifest

    begin, end = (day, day) if day else (first, last)
    if begin is None or end is None or end < begin or (day and (first or last)):
        raise click.UsageError("give --day, or --from and --to in this order")
    days = [begin.date() + timedelta(days=number) for number in range((end - begin).days + 1)]
    with opened_lake() as lake:
        [manifest] = [Manifest(each, lake.staging) for each in FEEDS if each.name == feed]
        accept_on_purpose(manifest, days, "user-pipeline accept")
    click.echo(f"{feed}: what was read until now is accepted for {days[0]}...{days[-1]}; materialize these days now")


@click.command()
@click.argument("asset")
@click.option("--day", type=DAY, metavar="YYYY-MM-DD", help="Only this day.")
@FIRST
@LAST
def files(asset: str, day: datetime | None, first: datetime | None, last: datetime | None) -> None:
    """Print the Parquet files of an asset, one a line, for DuckDB, Polars, pandas or Spark.

    \b
      user-pipeline files page_views --day 2017-04-15
      user-pipeline files user_page_views --from 2017-04-01 --to 2017-04-07

    Paths, or s3:// addresses where the lake is a bucket. A file never changes, and stays for two days after a
    partition was written again.
    """
    if day and (first or last):
        raise click.BadParameter("--day cannot be used with --from or --to.")
    first, last = day or first, day or last
    if first and last and last < first:
        raise click.BadParameter(f"--to {last:%Y-%m-%d} lies before --from {first:%Y-%m-%d}.")
    with opened_lake() as lake:
        for url in lake.urls(asset, first.date() if first else None, last.date() if last else None):
            click.echo(url)


@click.command()
def vacuum() -> None:
    """Remove from the lake what nothing refers to any more.

    When an object or a day is read or made again, what was there before stays behind in the lake; so does what a
    run wrote that was cut off. It goes two days after it was replaced: somebody may still be reading it. What all
    logs of the lake tell is put into one before.
    """
    from user_pipeline.ingest.vacuum import vacuum as remove

    with opened_lake() as lake:
        removed = remove(lake, datetime.now(UTC))
    click.echo(f"removed {removed.files:,} files of {removed.size / 1e6:,.1f} MB and {removed.logs:,} logs")


@click.command()
def recover() -> None:
    """Fill new databases again from the lake, without the source.

    What each object brought, the rejected lines, which files make up each partition, and the tables users and
    user_page_views come from the lake. Then materialize all days: the other tables come back, and no object is read
    again. A database that is not empty stays as it is.
    """
    from user_pipeline.engines.duckdb import Engine
    from user_pipeline.reconcile.full_refresh import recover as fill

    with Engine(settings.current()) as engine, opened_lake() as lake:
        for what, count in fill(lake, engine).items():
            click.echo(f"{what}: {count:,}")

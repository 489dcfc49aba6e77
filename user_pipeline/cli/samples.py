"""``user-pipeline sample`` and ``demo``: made-up logs, and the whole pipeline on them."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from user_pipeline import settings
from user_pipeline.cli.checkout import require_checkout
from user_pipeline.masking import mask

if TYPE_CHECKING:
    from user_pipeline.resources.object_store import Store


@click.command()
@click.option("--days", type=click.IntRange(1), default=7, show_default=True, help="Days of events.")
@click.option("--users", type=click.IntRange(1), default=1_000, show_default=True, help="People who visit.")
@click.option("--views-per-day", type=click.IntRange(0), default=20_000, show_default=True, help="Page views a day.")
@click.option(
    "--start",
    type=click.DateTime(["%Y-%m-%d"]),
    metavar="YYYY-MM-DD",
    help="The first day.  [default: USER_PIPELINE_START_DATE]",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Another seed, other people.")
def sample(days: int, users: int, views_per_day: int, start: datetime | None, seed: int) -> None:
    """Write sample logs of both feeds to USER_PIPELINE_SOURCE_URL.

    They look as real ones do: late events, duplicates inside and across objects, other environments, names
    that say nothing about dates, a gzipped object, and a few broken lines of each kind.

    The same options write the same bytes on any machine. An object that is already there with the same
    content is left alone, one that is not part of the sample always; more --days add to fewer.
    """
    first_day = start.date() if start else settings.current().start_date
    last_day = datetime.now(UTC).date()
    if (last_day - first_day).days + 1 < days:
        raise click.BadParameter(f"{days} days from {first_day} on end after today, {last_day}.")
    _write_sample(days, users, views_per_day, first_day, seed)


@click.command()
@click.option("--days", type=click.IntRange(1, 366), default=14, show_default=True, help="Days of sample logs.")
def demo(days: int) -> None:
    """Show it all: sample logs through the whole pipeline, then the accounting and the tables.

    Run it in the root of the checkout. It writes the logs of `user-pipeline sample` to the source,
    materializes their days in one run, and prints what came out. Doing it again changes nothing.

    The first demo takes the days up to yesterday, and keeps their first as USER_PIPELINE_START_DATE in the file .env
    of the data directory, which every command reads. A start date that is set, and a lake that is there, are kept.
    """
    from user_pipeline.cli.demo import run_demo

    require_checkout()
    if settings.current().source.is_s3:
        source = settings.current().source
        raise click.ClickException(
            f"{source.variable}={source}: the demo writes made-up logs, not into a bucket. Unset it."
        )
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    _pin_start_date(yesterday - timedelta(days=days - 1))
    first_day = settings.current().start_date
    possible = (yesterday - first_day).days + 1
    if days > possible:
        raise click.ClickException(
            f"{days} days from {settings.variable_of('start_date')}={first_day} on end after yesterday, {yesterday}: "
            f"use --days {possible}, or remove {settings.current().data_dir} for a new demo."
        )
    _write_sample(days, users=1_000, views_per_day=20_000, first_day=first_day, seed=1)
    run_demo(settings.current(), days)


def _pin_start_date(first_day: date) -> None:
    """Keep a start date for all commands to come, unless one is set or there is a lake that has another."""
    current = settings.current()
    is_set = "start_date" in current.model_fields_set
    if is_set or current.lake.is_s3 or Path(current.lake.url).exists():
        return
    file = settings.env_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.write(f"# The first day of the demo.\n{settings.variable_of('start_date')}={first_day}\n")
    settings.current.cache_clear()


def _write_sample(days: int, users: int, views_per_day: int, first_day: date, seed: int) -> None:
    """Write the sample to the source, and say what was written."""
    from user_pipeline.cli.sample_logs import SampleLogs
    from user_pipeline.resources.object_store import open_store

    current = settings.current()
    store = open_store(current.source)
    written = total = size = 0
    try:
        for key, content in SampleLogs(days, users, views_per_day, first_day, seed).objects():
            total, size = total + 1, size + len(content)
            if _content(store, key) != content:
                store.put(key, content)
                written += 1
    except Exception as error:
        reason = mask(str(error)).split("\n\nDebug source:")[0]
        message = f"{current.source.variable}={current.source}: cannot be written to: {reason}"
        raise click.ClickException(message) from error
    what = f"{days} day{'s' if days > 1 else ''} from {first_day} on, {total} objects of {size / 1e6:.1f} MB"
    click.echo(f"Sample logs: {what}, {written} written now")
    click.echo(f"in {current.source}")


def _content(store: "Store", key: str) -> bytes | None:
    try:
        return bytes(store.get(key).bytes())
    except FileNotFoundError:
        return None

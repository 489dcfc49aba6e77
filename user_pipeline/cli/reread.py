"""``user-pipeline reread``: read objects again that are in the source as they were."""

import logging
import uuid
from datetime import UTC, datetime

import click

from user_pipeline import settings
from user_pipeline.cli.opened import opened_lake


@click.command()
@click.argument("feed", type=click.Choice(["page_views", "user_updates"]))
@click.option("--all", "everything", is_flag=True, help="All objects, however they were read.")
def reread(feed: str, *, everything: bool) -> None:
    """Read objects of a feed again that would be read otherwise now.

    \b
      USER_PIPELINE_PAGE_VIEWS_FILTER='user-pipeline filter access-log' user-pipeline reread page_views

    Those are the objects that were read with another filter, or another version of it, and those that broke. What an
    object brought before is replaced by what it brings now, in the tables once its days are rematerialized: the sensor
    sees to that. An object that is not in the source any more keeps what it brought. It can be stopped, and goes on
    where it was when it is started again.
    """
    from user_pipeline.engines import open_engine
    from user_pipeline.ingest.feeds import FEEDS
    from user_pipeline.ingest.filter import Filter
    from user_pipeline.ingest.look import Again
    from user_pipeline.ingest.manifest import Manifest
    from user_pipeline.ingest.reader import read_new_objects
    from user_pipeline.interrupts import cancelled_by, raise_if_told, watched

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    current = settings.current()
    [chosen] = [known for known in FEEDS if known.name == feed]
    with open_engine(current) as engine, opened_lake() as lake, watched(), cancelled_by(engine.interrupt):
        try:
            ingested = read_new_objects(
                Manifest(chosen, lake.staging),
                lake.storage.source,
                engine,
                limits=current.object_limits,
                start_date=current.start_date,
                now=datetime.now(UTC),
                run_id=str(uuid.uuid4()),
                settle=current.settle_time,
                chosen=Filter.of(chosen, current),
                again=Again.ALL if everything else Again.OTHERWISE,
            )
        except Exception as error:
            raise_if_told(error)
            raise
        days = ingested.manifest.changes(ingested.since)
        click.echo(
            f"{chosen.folder}: {ingested.read:,} of {ingested.listed:,} objects read, "
            f"{ingested.lines['rows']:,} rows, {ingested.lines['rejected']:,} rejected lines, {len(days)} days changed"
        )
        if days:
            click.echo(f"The sensor has them rematerialized; by hand: --partition-range {min(days)}...{max(days)}")
        ingested.raise_for_objects()

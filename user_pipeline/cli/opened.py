"""What several commands share: the lake with its databases, and options for days."""

from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import click

from user_pipeline import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from user_pipeline.lake.lake import Lake

DAY = click.DateTime(["%Y-%m-%d"])
FIRST = click.option("--from", "first", type=DAY, metavar="YYYY-MM-DD", help="The first day.")
LAST = click.option("--to", "last", type=DAY, metavar="YYYY-MM-DD", help="The last day.")


@contextmanager
def opened_lake() -> "Iterator[Lake]":
    """The lake of the settings; its connections are closed at the end."""
    from user_pipeline.lake.lake import Lake
    from user_pipeline.resources.postgres import Databases
    from user_pipeline.resources.storage import ObjectStorage

    current = settings.current()
    with closing(Databases(current)) as databases:
        yield Lake(ObjectStorage(current), databases)

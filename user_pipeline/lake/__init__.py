"""The lake: where the files of each asset are.

In notebooks::

from user_pipeline.lake import files

duckdb.read_parquet(files("page_views", first="2017-04-01"))
"""

from datetime import date

__all__ = ["files"]


def files(asset: str, first: "date | str | None" = None, last: "date | str | None" = None) -> list[str]:
    """The Parquet files that an asset is made of now: paths or ``s3://`` addresses, oldest day first.

    Args:
        asset: its name.
        first: the first day, a date or YYYY-MM-DD; None for the first there is.
        last: the last day; None for the last there is.

    Raises:
        UnknownAssetError: nothing of that name was written.
        SettingsError: the environment does not say where lake and databases are.
    """
    from contextlib import closing

    from user_pipeline import settings
    from user_pipeline.lake.lake import Lake
    from user_pipeline.resources.postgres import Databases
    from user_pipeline.resources.storage import ObjectStorage

    current = settings.current()
    days = [date.fromisoformat(day) if isinstance(day, str) else day for day in (first, last)]
    with closing(Databases(current)) as databases:
        return Lake(ObjectStorage(current), databases).urls(asset, *days)

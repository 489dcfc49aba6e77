"""The lake as a whole: its store, and the registries that tell what is where."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from user_pipeline.errors import PermanentError
from user_pipeline.lake.parts import FromLake
from user_pipeline.lake.registry import Registry
from user_pipeline.lake.transfer import fetch_all

if TYPE_CHECKING:
    from user_pipeline.engines.base import Engine
    from user_pipeline.lake.partitions import LakeFile
    from user_pipeline.resources.postgres import Databases
    from user_pipeline.resources.storage import ObjectStorage
    from user_pipeline.transforms import Frame


class UnknownAssetError(PermanentError):
    """No registry has partitions of an asset."""


class Lake:
    """The store of the lake, and the registry of each database.

    Attributes:
        storage: has the store.
        staging: the registry of the raw assets, and of those with tables in the staging database.
        analytics: the registry of the marts.
    """

    def __init__(self, storage: "ObjectStorage", databases: "Databases") -> None:
        self.storage = storage
        self.staging = Registry("staging", databases.staging, storage)
        self.analytics = Registry("analytics", databases.analytics, storage)

    def registry(self, name: str) -> Registry:
        """The registry of a database: ``staging`` or ``analytics``."""
        return {"staging": self.staging, "analytics": self.analytics}[name]

    def urls(self, asset: str, first: date | None = None, last: date | None = None) -> list[str]:
        """Where the files of an asset are: paths, or ``s3://`` addresses; oldest day first.

        Args:
            asset: its name.
            first: the first day; None for the first there is.
            last: the last day; None for the last there is.

        Raises:
            UnknownAssetError: nothing of that name was written.
        """
        for registry in (self.staging, self.analytics):
            if found := registry.partitions(asset):
                return [
                    self.storage.lake_url(file.path)
                    for day, there in found.items()
                    if (first or day) <= day <= (last or day)
                    for file in there
                ]
        raise UnknownAssetError(
            f"the lake has no partition of an asset {asset!r}. Those with files in the lake are "
            f"{', '.join([*self.staging.assets(), *self.analytics.assets()]) or 'none yet'}."
        )

    def rows(self, engine: "Engine", registry: Registry, asset: str, days: Sequence[date]) -> "dict[date, Frame]":
        """The rows of some partitions of an asset as lazy frames, by day.

        Raises:
            MissingPartitionError: one of them was never written.
        """
        found = registry.files(asset, days)
        return {day: engine.rows(FromLake(self.storage), found[day]) for day in days}

    def fetch(self, engine: "Engine", registry: Registry, asset: str, days: Sequence[date]) -> dict[date, list[Path]]:
        """Bring the files of some partitions of an asset to this machine, by day.

        Raises:
            MissingPartitionError: one of them was never written.
        """
        found = registry.files(asset, days)
        wanted: list[LakeFile] = [file for day in days for file in found[day]]
        local = iter(fetch_all(self.storage, wanted, engine.new_scratch(asset)))
        return {day: [next(local) for _ in found[day]] for day in days}

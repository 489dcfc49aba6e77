"""The two places objects are kept in: the source, which is only read, and the lake."""

from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from user_pipeline.resources.object_store import ObjectStoreError, open_store
from user_pipeline.resources.source import Source, open_source
from user_pipeline.settings import Settings

if TYPE_CHECKING:
    from user_pipeline.resources.object_store import Store
    from user_pipeline.resources.queue import SourceQueue

SOURCE_FOLDERS = {"user_updates": "UserUpdates", "page_views": "PageViews"}
"""The folder of the source that each feed is read from."""


class ObjectStorage:
    """The two locations of the platform, opened when first used.

    Attributes:
        source: the store the feeds are read from.
        lake: the store everything the platform keeps is written to.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __reduce__(self) -> tuple[object, tuple[Settings]]:
        """Pickle the settings, without connections and credentials: the stores are opened again where it arrives."""
        return _opened_again, (self._settings.without_secrets(Path(), 1),)

    @cached_property
    def source(self) -> Source:
        """Where the feed folders are.

        Raises:
            ObjectStoreError: it is not there or may not be read.
        """
        location = self._settings.source
        default = self._settings.data_dir / "source"
        if not location.is_s3 and Path(location.url) != default and not Path(location.url).is_dir():
            raise ObjectStoreError(
                location,
                f"there is no such directory; it should hold the folders {' and '.join(SOURCE_FOLDERS.values())}",
            )
        return open_source(location, [*SOURCE_FOLDERS.values()])

    @cached_property
    def queue(self) -> "SourceQueue | None":
        """Where the source tells of new objects, if anywhere."""
        from user_pipeline.resources.queue import SourceQueue

        url = self._settings.source_queue_url
        return SourceQueue(url, self._settings.source) if url else None

    @cached_property
    def lake(self) -> "Store":
        """The store of the lake.

        Raises:
            ObjectStoreError: it is not there or may not be used.
        """
        return open_store(self._settings.lake)

    def lake_url(self, path: str) -> str:
        """How to name an object of the lake to a person."""
        return f"{self._settings.lake.url}/{path}"

    def lake_file(self, path: str) -> Path | None:
        """The file an object of the lake is, or None where the lake is a bucket."""
        return None if self._settings.lake.is_s3 else Path(self._settings.lake.url) / path


@lru_cache(maxsize=4)
def _opened_again(settings: Settings) -> ObjectStorage:
    """One object for all copies that arrive at a process, so that its stores are probed only once."""
    return ObjectStorage(settings)

"""Where the feeds are read from: the objects of a bucket or the files of a directory, whatever their names."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from user_pipeline.resources.bucket_source import BucketSource
from user_pipeline.resources.directory_source import DirectorySource
from user_pipeline.resources.object_store import check_directory, connect_bucket
from user_pipeline.setting_values import Location

if TYPE_CHECKING:
    import pyarrow as pa

    from user_pipeline.resources.source_listing import Content


class Source(Protocol):
    """A store of objects that are only listed and read."""

    def list(self, folder: str) -> "pa.RecordBatchReader":
        """The objects below a folder, as they are found; none if there is no such folder.

        Hidden names (a part that starts with ``.`` or ``_``) and empty folder markers are left out.

        Returns:
            ``path`` string (the key, from the folder on), ``e_tag`` string, ``size`` int64 (bytes, as stored),
            ``last_modified`` timestamp with zone UTC, ``problem`` string (why it cannot be read; null for an object
            that can). The errors below are raised when the rows are read.

        Raises:
            ObjectStoreError: the store refuses.
            ObjectStoreUnavailableError: it does not answer.
        """

    def get(self, key: str) -> "Content":
        """An object's content.

        Raises:
            FileNotFoundError: it is gone.
            PermissionError: the store refuses it.
            OSError, obstore.exceptions.BaseError: the store cannot give it.
        """

    def is_changed(self, key: str, etag: str) -> bool:
        """Whether an object was replaced, changed or deleted while its content was read."""


def open_source(location: Location, folders: Sequence[str]) -> Source:
    """Open the place the feeds are read from.

    Args:
        location: a bucket, or a directory, which is made if it is missing.
        folders: those that will be read. One key of each is listed in a bucket, so that wrong settings fail here.

    Raises:
        ObjectStoreError: the directory cannot be made, or the bucket cannot be listed.
        ObjectStoreUnavailableError: the bucket cannot be listed now.
    """
    if location.is_s3:
        bucket = connect_bucket(location, folders)
        return BucketSource(location, bucket.client(), bucket.store)
    check_directory(location)
    return DirectorySource(Path(location.url))

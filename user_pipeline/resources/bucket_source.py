"""The source as a bucket.

obstore, which keeps the lake, drops the slash at the end of a key and refuses keys with an empty, ``.`` or ``..`` part
or a control character. So boto3 lists the bucket, and fetches what obstore cannot.
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from user_pipeline.masking import mask
from user_pipeline.resources.object_store import ObjectStoreError, ObjectStoreUnavailableError
from user_pipeline.resources.source_listing import Content, in_pages, is_hidden
from user_pipeline.setting_values import Location

if TYPE_CHECKING:
    import pyarrow as pa
    from mypy_boto3_s3 import S3Client

    from user_pipeline.resources.bucket_store import BucketStore

_READ_BYTES = 4 * 2**20
# Keys that obstore would name otherwise or not at all.
_ODD = re.compile(r"[\x00-\x1f\x7f]|(?:^|/)(?:\.{0,2})(?:/|$)")


class BucketSource:
    """A bucket, or what lies below a prefix of it.

    Args:
        location: where it is.
        client: lists, and fetches what obstore cannot.
        store: fetches all else.
    """

    def __init__(self, location: Location, client: "S3Client", store: "BucketStore") -> None:
        self._location = location
        self._client = client
        self._store = store
        self._bucket, _, prefix = location.url.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix}/" if prefix else ""

    def list(self, folder: str) -> "pa.RecordBatchReader":
        """See :meth:`Source.list`."""
        return in_pages(
            (
                # Neither Postgres nor any file name can hold a NUL.
                item["Key"].removeprefix(self._prefix).replace("\0", "\\x00 (NUL)"),
                item.get("ETag", "").strip('"'),
                item["Size"],
                item["LastModified"],
                "its key holds a NUL character" if "\0" in item["Key"] else None,
            )
            for item in self._objects(f"{self._prefix}{folder}/")
            if not is_hidden(item["Key"], item["Size"], len(self._prefix) + len(folder))
        )

    def get(self, key: str) -> Content:
        """See :meth:`Source.get`."""
        try:
            return self._get_odd(key) if _ODD.search(key) else self._get_plain(key)
        except FileNotFoundError:
            if any(item["Key"] == self._prefix + key for item in self._objects(self._prefix + key)):
                raise OSError("the store lists it and says that there is no such key") from None
            raise

    def is_changed(self, key: str, etag: str) -> bool:
        """A bucket serves one content to its end."""
        del key, etag
        return False

    def _get_plain(self, key: str) -> Content:
        response = self._store.get(key)
        return Content((response.meta["e_tag"] or "").strip('"'), response.stream())

    def _get_odd(self, key: str) -> Content:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            response = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)
        except (ClientError, BotoCoreError) as error:
            raise _as_os_error(error) from error

        def chunks() -> Iterator[bytes]:
            try:
                yield from response["Body"].iter_chunks(_READ_BYTES)
            except BotoCoreError as error:
                raise OSError(str(error)) from error

        return Content(response["ETag"].strip('"'), chunks())

    def _objects(self, prefix: str) -> Iterator[Any]:
        from botocore.exceptions import BotoCoreError, ClientError

        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
        try:
            for page in pages:
                yield from page.get("Contents", [])
        except (ClientError, BotoCoreError) as error:
            problem = f"the folder {prefix!r} cannot be listed: {mask(str(error))}"
            if isinstance(_as_os_error(error), PermissionError | FileNotFoundError):
                raise ObjectStoreError(self._location, problem) from error
            raise ObjectStoreUnavailableError(self._location, problem) from error


def _as_os_error(error: Any) -> OSError:  # noqa: ANN401 - boto3's two kinds of errors have no common type
    """What boto3 says, as the built-in error of that kind."""
    response = getattr(error, "response", {})
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    code = response.get("Error", {}).get("Code", "")
    kinds = {404: FileNotFoundError, 403: PermissionError, 401: PermissionError}
    return kinds.get(status, OSError)(f"{code}: {error}" if code and code not in str(error) else str(error))

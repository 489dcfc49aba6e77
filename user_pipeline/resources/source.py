"""Where the feeds are read from: the objects of a bucket or the files of a directory, whatever their names.

The names are chosen by whoever delivers. obstore, which keeps the lake, drops the slash at the end of a key, refuses
keys with an empty, ``.`` or ``..`` part or a control character, and follows links in directories to anywhere. So boto3
lists buckets here and fetches what obstore cannot, and directories are walked by our own code.
"""

import itertools
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from user_pipeline.masking import mask
from user_pipeline.resources.object_store import (
    ObjectStoreError,
    ObjectStoreUnavailableError,
    check_directory,
    connect_bucket,
)
from user_pipeline.setting_values import Location

if TYPE_CHECKING:
    import pyarrow as pa
    from mypy_boto3_s3 import S3Client

    from user_pipeline.resources.bucket_store import BucketStore

_READ_BYTES = 4 * 2**20
_PAGE = 1_000
# Names that start with a dot or an underscore, at any depth; the parts "." and ".." of a key are no such names.
_HIDDEN = re.compile(r"(?:^|/)(?:_|\.(?!\.?(?:/|$)))")
# What obstore would name otherwise or not at all.
_ODD = re.compile(r"[\x00-\x1f\x7f]|(?:^|/)(?:\.{0,2})(?:/|$)")
_ESCAPED_BYTE = re.compile(rb"\\x([89a-f][0-9a-f])")


@dataclass(frozen=True, slots=True)
class Content:
    """The content of an object.

    Attributes:
        etag: what the store calls this content.
        chunks: its bytes, in order.
    """

    etag: str
    chunks: Iterable[bytes | memoryview]


class Source(Protocol):
    """A store of objects that are only listed and read."""

    def list(self, folder: str) -> "pa.RecordBatchReader":
        """The objects below a folder, as they are found; none if there is no such folder.

        Hidden names (a part that starts with ``.`` or ``_``) and empty folder markers are left out.

        Returns:
            ``path`` string (the key, from the folder on), ``e_tag`` string, ``size`` int64 (bytes, as stored),
            ``last_modified`` timestamp with zone UTC, ``problem`` string (why it is no object that can be
            read; null for all others). Reading them raises what follows.

        Raises:
            ObjectStoreError: the store refuses.
            ObjectStoreUnavailableError: it does not answer.
        """

    def get(self, key: str) -> Content:
        """An object's content.

        Raises:
            FileNotFoundError: it is gone.
            PermissionError: the store refuses it.
            OSError, obstore.exceptions.BaseError: the store cannot give it.
        """

    def is_changed(self, key: str, etag: str) -> bool:
        """Whether an object is another one, or gone, by the time its content was read."""


def open_source(location: Location, folders: Sequence[str]) -> Source:
    """Open the place the feeds are read from.

    Args:
        location: a bucket, or a directory, which is made if it is missing.
        folders: those that will be read. A bucket is asked for each of them at once, and for nothing else, so that what
            is wrong with the settings is said here.

    Raises:
        ObjectStoreError: the directory cannot be made, or the bucket cannot be listed.
        ObjectStoreUnavailableError: the bucket cannot be listed now.
    """
    if location.is_s3:
        bucket = connect_bucket(location, folders)
        return BucketSource(location, bucket.client(), bucket.store)
    check_directory(location)
    return DirectorySource(Path(location.url))


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


class DirectorySource:
    """A directory.

    Links are followed only to files and folders inside it, and to each folder once: what lies elsewhere on the machine
    is none of the logs.

    Args:
        root: the directory; it may be a link itself.
    """

    def __init__(self, root: Path) -> None:
        self._root = os.path.realpath(root)

    def list(self, folder: str) -> "pa.RecordBatchReader":
        """See :meth:`Source.list`."""
        return in_pages(_Walk(self._root).entries(folder))

    def get(self, key: str) -> Content:
        """See :meth:`Source.get`."""
        target = os.path.realpath(self._path(key), strict=True)
        if not _is_inside(target, self._root):
            raise PermissionError("it is a link that leads out of the source directory")
        # A pipe would keep whoever opens it waiting.
        descriptor = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        status = os.fstat(descriptor)
        file = os.fdopen(descriptor, "rb", buffering=0)
        if not stat.S_ISREG(status.st_mode):
            file.close()
            raise OSError("it is no regular file any more")

        def chunks() -> Iterator[bytes]:
            with file:
                while chunk := file.read(_READ_BYTES):
                    yield chunk

        return Content(_etag(status), chunks())

    def is_changed(self, key: str, etag: str) -> bool:
        """A file can be written to, or replaced, while it is read."""
        try:
            return _etag(os.stat(self._path(key))) != etag  # noqa: PTH116 - the name may not be text
        except OSError:
            return True

    def _path(self, key: str) -> str:
        r"""The path of a file; of a name that is not UTF-8 a key shows the other bytes as ``\xNN``."""
        path = os.path.join(self._root, key)  # noqa: PTH118 - the name may not be text
        if "\\x" in key and not os.path.lexists(path):
            name = _ESCAPED_BYTE.sub(lambda found: bytes.fromhex(found[1].decode()), key.encode())
            return os.path.join(self._root, os.fsdecode(name))  # noqa: PTH118 - as above
        return path


def is_hidden(key: str, size: int, start: int) -> bool:
    """Whether an object is none of the logs: its name is hidden, or it is an empty folder marker.

    Args:
        key: its key.
        size: bytes, as stored.
        start: where in the key the part below the feed's folder begins.
    """
    return bool(_HIDDEN.search(key, start)) or (key.endswith("/") and size == 0)


_Row = tuple[str, str, int, datetime, str | None]


class _Walk:
    """One walk through a directory."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._folders: set[tuple[int, int]] = set()
        self._links: list[tuple[str, str]] = []
        self._keys: set[str] = set()

    def entries(self, folder: str) -> Iterator[_Row]:
        """A row of the listing for each file below a folder, links last."""
        start = os.path.join(self._root, folder)  # noqa: PTH118 - names may not be text
        if not os.path.lexists(start):
            return
        if os.path.islink(start):  # noqa: PTH114 - as above
            self._links.append((start, folder))
        else:
            yield from self._folder(start, folder)
        while self._links:
            # Those found meanwhile come after all that were known.
            known, self._links = sorted(self._links), []
            for path, name in known:
                yield from self._link(path, name)

    def _folder(self, path: str, name: str) -> Iterator[_Row]:
        """A row for each file below a folder; links are left for later."""
        folders = [(path, name)]
        while folders:
            path, name = folders.pop()
            try:
                status = os.stat(path)  # noqa: PTH116 - as above
                found = sorted(os.scandir(path), key=lambda entry: entry.name)
            except OSError as error:
                yield self._problem(name, f"it cannot be listed as a folder: {error.strerror}")
                continue
            self._folders.add((status.st_dev, status.st_ino))
            for entry in found:
                child = f"{name}/{entry.name}"
                if entry.name[0] in "._":
                    continue
                if entry.is_symlink():
                    self._links.append((entry.path, child))
                elif entry.is_dir():
                    folders.append((entry.path, child))
                else:
                    yield from self._file(entry.path, child)

    def _link(self, path: str, name: str) -> Iterator[_Row]:
        try:
            target = os.path.realpath(path, strict=True)
            status = os.stat(target)  # noqa: PTH116 - as above
        except OSError as error:
            yield self._problem(name, f"it is a link that leads nowhere: {error.strerror}")
            return
        if not _is_inside(target, self._root):
            yield self._problem(name, "it is a link that leads out of the source directory, and is not followed")
        elif not stat.S_ISDIR(status.st_mode):
            yield from self._file(target, name)
        elif (status.st_dev, status.st_ino) in self._folders:
            yield self._problem(name, "it is a link to a folder that is read already, and is not followed")
        else:
            yield from self._folder(target, name)

    def _file(self, path: str, name: str) -> Iterator[_Row]:
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return  # deleted meanwhile
        if not stat.S_ISREG(status.st_mode):
            yield self._problem(name, "it is no regular file")
            return
        key = _key(name)
        if key in self._keys:
            yield self._problem(f"{key} (not UTF-8)", "its name is that of another file when shown as text; rename it")
            return
        self._keys.add(key)
        written = datetime.fromtimestamp(status.st_mtime, UTC)
        yield key, _etag(status), status.st_size, written, None

    @staticmethod
    def _problem(name: str, problem: str) -> _Row:
        # The problem is the content: another one is news.
        return _key(name), problem, 0, datetime.fromtimestamp(0, UTC), problem


def _key(name: str) -> str:
    r"""A file's name as text; bytes of it that are not UTF-8 as ``\xNN``."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _etag(status: os.stat_result) -> str:
    return f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"


def _is_inside(path: str, root: str) -> bool:
    return os.path.commonpath([path, root]) == root


def in_pages(rows: Iterable[_Row]) -> "pa.RecordBatchReader":
    """The rows a page at a time: a listing may be of millions."""
    import pyarrow as pa

    schema = pa.schema(
        [
            ("path", pa.string()),
            ("e_tag", pa.string()),
            ("size", pa.int64()),
            ("last_modified", pa.timestamp("us", tz="UTC")),
            ("problem", pa.string()),
        ]
    )

    def pages() -> "Iterator[pa.RecordBatch]":
        remaining = iter(rows)
        while page := list(itertools.islice(remaining, _PAGE)):
            columns = zip(*page, strict=True)
            arrays = [pa.array(list(column), field.type) for column, field in zip(columns, schema, strict=True)]
            yield pa.record_batch(arrays, schema=schema)

    return pa.RecordBatchReader.from_batches(schema, pages())


def _as_os_error(error: Any) -> OSError:  # noqa: ANN401 - boto3's two kinds of errors have no common type
    """What boto3 says, as the built-in error of that kind."""
    response = getattr(error, "response", {})
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    code = response.get("Error", {}).get("Code", "")
    kinds = {404: FileNotFoundError, 403: PermissionError, 401: PermissionError}
    return kinds.get(status, OSError)(f"{code}: {error}" if code and code not in str(error) else str(error))

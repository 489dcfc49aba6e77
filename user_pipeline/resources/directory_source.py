"""The source as a directory, walked by our own code: obstore follows links in directories to anywhere."""

import os
import re
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from user_pipeline.resources.source_listing import Content, Row, in_pages

if TYPE_CHECKING:
    import pyarrow as pa

_READ_BYTES = 4 * 2**20
_ESCAPED_BYTE = re.compile(rb"\\x([89a-f][0-9a-f])")


class DirectorySource:
    """A directory.

    Links are followed only to files and folders inside it, and to each folder once: files elsewhere on the machine are
    not part of the source.

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
        # Opening a pipe would block.
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


class _Walk:
    """One walk through a directory."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._folders: set[tuple[int, int]] = set()
        self._links: list[tuple[str, str]] = []
        self._keys: set[str] = set()

    def entries(self, folder: str) -> Iterator[Row]:
        """A row of the listing for each file below a folder, links last."""
        start = os.path.join(self._root, folder)  # noqa: PTH118 - names may not be text
        if not os.path.lexists(start):
            return
        if os.path.islink(start):  # noqa: PTH114 - as above
            self._links.append((start, folder))
        else:
            yield from self._folder(start, folder)
        while self._links:
            # Links found while these are followed come after all of these.
            known, self._links = sorted(self._links), []
            for path, name in known:
                yield from self._link(path, name)

    def _folder(self, path: str, name: str) -> Iterator[Row]:
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

    def _link(self, path: str, name: str) -> Iterator[Row]:
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

    def _file(self, path: str, name: str) -> Iterator[Row]:
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
    def _problem(name: str, problem: str) -> Row:
        # The text of the problem is the e-tag, so an object with another problem counts as changed.
        return _key(name), problem, 0, datetime.fromtimestamp(0, UTC), problem


def _key(name: str) -> str:
    r"""A file's name as text; bytes of it that are not UTF-8 as ``\xNN``."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _etag(status: os.stat_result) -> str:
    return f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"


def _is_inside(path: str, root: str) -> bool:
    return os.path.commonpath([path, root]) == root

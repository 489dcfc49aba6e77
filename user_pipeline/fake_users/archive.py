"""One file in a zip archive: packed reproducibly, unpacked with suspicion."""

import re
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from user_pipeline.errors import PermanentError

# The first moment a zip archive can name: archives of equal content are equal byte for byte.
EPOCH = (1980, 1, 1, 0, 0, 0)
# Some sixty million users; whatever claims to be larger is a mistake or an attack.
MAX_BYTES = 4 * 2**30
_CHUNK = 2**20


class ArchiveError(PermanentError):
    """An archive cannot be trusted or read; reading it again would not help."""


class UnreadableArchiveError(ArchiveError):
    """It is no zip archive, is damaged, encrypted or compressed in an unknown way."""


class UnsafePathError(ArchiveError):
    """A name in it leads out of the directory it would be extracted to."""


class MissingMemberError(ArchiveError):
    """It does not hold the wanted file, or holds it more than once."""


class ChecksumError(ArchiveError):
    """The content does not have the CRC the archive states."""


class SizeError(ArchiveError):
    """The content is larger than the limit, or has another size than the archive states."""


def entry(name: str) -> zipfile.ZipInfo:
    """A zip entry that says nothing about when, where and by whom it was made."""
    info = zipfile.ZipInfo(name, EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.create_system = 3
    info.external_attr = 0o644 << 16
    return info


def pack(archive: Path, member: str, write: Callable[[BinaryIO], object]) -> None:
    """Write a zip archive with one file.

    Args:
        archive: the archive to make.
        member: name of the file in it.
        write: writes the content to the stream it is given.
    """
    with zipfile.ZipFile(archive, "w") as target, target.open(entry(member), "w", force_zip64=True) as stream:
        write(stream)  # type: ignore[arg-type]  # typeshed declares IO[bytes], which is what BinaryIO is


def unpack(archive: Path, member: str, target: Path, *, name: str, max_bytes: int = MAX_BYTES) -> None:
    """Extract one file, or nothing at all.

    Args:
        archive: the archive.
        member: name of the file in it.
        target: where the content goes; removed again when the archive turns out bad.
        name: what errors call the archive.
        max_bytes: the largest content accepted.

    Raises:
        ArchiveError: one of its subclasses, by what is wrong.
    """
    try:
        with zipfile.ZipFile(archive) as source:
            info = _find(source, member, name, max_bytes)
            _copy(source, info, target, name)
    except ArchiveError:
        target.unlink(missing_ok=True)
        raise
    except (zipfile.BadZipFile, NotImplementedError, EOFError, zlib.error) as error:
        target.unlink(missing_ok=True)
        raise UnreadableArchiveError(f"{name} cannot be read as a zip archive: {error}.") from error


def _copy(source: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, name: str) -> None:
    stated_size, stated_crc = info.file_size, info.CRC
    # zipfile would cut the content off at the stated size and check only what is left; it shows all there is
    # when it knows neither size nor CRC.
    info.file_size, info.CRC = sys.maxsize, None  # type: ignore[assignment]
    size = crc = 0
    with source.open(info) as content, target.open("wb") as copy:
        while size <= stated_size and (chunk := content.read(_CHUNK)):
            copy.write(chunk)
            size += len(chunk)
            crc = zlib.crc32(chunk, crc)
    if size != stated_size:
        than = "more" if size > stated_size else "less"
        raise SizeError(f"{name}: {info.filename} holds {than} than the {stated_size} bytes the archive states.")
    if crc != stated_crc:
        raise ChecksumError(f"{name}: the content of {info.filename} does not have the CRC the archive states.")


def _find(source: zipfile.ZipFile, member: str, name: str, max_bytes: int) -> zipfile.ZipInfo:
    for other in source.namelist():
        if other.startswith(("/", "\\")) or re.match("[A-Za-z]:", other):
            raise UnsafePathError(f"{name} holds an absolute path: {other!r}.")
        if ".." in re.split(r"[/\\]", other):
            raise UnsafePathError(f"{name} holds a path that leads out of its directory: {other!r}.")
    found = [info for info in source.infolist() if info.filename == member]
    if len(found) != 1:
        raise MissingMemberError(f"{name} holds {len(found) or 'no'} {member}; one is needed.")
    (info,) = found
    if info.flag_bits & 1:
        raise UnreadableArchiveError(f"{name}: {member} is encrypted.")
    if info.file_size > max_bytes:
        raise SizeError(f"{name}: {member} is {info.file_size} bytes large; at most {max_bytes} are accepted.")
    return info

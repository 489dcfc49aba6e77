import struct
import zipfile
import zlib
from pathlib import Path

import pytest

from user_pipeline.errors import PermanentError
from user_pipeline.fake_users import archive

CONTENT = b"id,first_name\n1,Ann\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "users_raw.zip"


def zipped(path: Path, *names: str, content: bytes = CONTENT, method: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", method) as target:
        for name in names:
            target.writestr(zipfile.ZipInfo(name), content, method)


def restate(path: Path, *, size: int | None = None, crc: int | None = None, flags: int | None = None) -> None:
    """Change what the archive's directory states about its one file."""
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\x01\x02")
    for offset, form, value in ((8, "<H", flags), (16, "<L", crc), (24, "<L", size)):
        if value is not None:
            struct.pack_into(form, data, start + offset, value)
    path.write_bytes(data)


def unpack(path: Path, max_bytes: int = 1_000) -> bytes:
    target = path.with_name("users_extracted.csv")
    archive.unpack(path, "users_raw.csv", target, name="s3://lake/users_raw.zip", max_bytes=max_bytes)
    return target.read_bytes()


def test_what_is_packed_is_unpacked(path: Path) -> None:
    archive.pack(path, "users_raw.csv", lambda stream: stream.write(CONTENT))
    assert unpack(path) == CONTENT


def test_equal_content_gives_equal_archives(path: Path) -> None:
    archive.pack(path, "users_raw.csv", lambda stream: stream.write(CONTENT))
    first = path.read_bytes()
    archive.pack(path, "users_raw.csv", lambda stream: stream.write(CONTENT))
    assert path.read_bytes() == first


@pytest.mark.parametrize("name", ["../users_raw.csv", "a/../../b", "..\\users_raw.csv", ".."])
def test_a_path_that_leads_out_is_refused(path: Path, name: str) -> None:
    zipped(path, "users_raw.csv", name)
    with pytest.raises(archive.UnsafePathError, match="leads out"):
        unpack(path)


@pytest.mark.parametrize("name", ["/etc/passwd", "\\\\host\\share", "C:\\users.csv", "c:users.csv"])
def test_an_absolute_path_is_refused(path: Path, name: str) -> None:
    zipped(path, "users_raw.csv", name)
    with pytest.raises(archive.UnsafePathError, match="absolute path"):
        unpack(path)


def test_an_archive_without_the_csv_is_refused(path: Path) -> None:
    zipped(path, "other.csv", "folder/users_raw.csv")
    with pytest.raises(archive.MissingMemberError, match=r"holds no users_raw\.csv"):
        unpack(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_two_of_the_csv_is_refused(path: Path) -> None:
    zipped(path, "users_raw.csv", "users_raw.csv")
    with pytest.raises(archive.MissingMemberError, match=r"holds 2 users_raw\.csv"):
        unpack(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_wrong_crc_is_refused(path: Path, method: int) -> None:
    zipped(path, "users_raw.csv", method=method)
    restate(path, crc=zlib.crc32(CONTENT) ^ 1)
    with pytest.raises(archive.ChecksumError, match="CRC"):
        unpack(path)


def test_a_declared_size_over_the_limit_is_refused_before_anything_is_read(path: Path) -> None:
    zipped(path, "users_raw.csv")
    restate(path, size=1_001)
    with pytest.raises(archive.SizeError, match="1001 bytes large; at most 1000"):
        unpack(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_content_beyond_the_declared_size_is_refused_although_the_crc_fits_its_beginning(
    path: Path, method: int
) -> None:
    zipped(path, "users_raw.csv", content=b"0" * 10_000_000, method=method)
    restate(path, size=10, crc=zlib.crc32(b"0" * 10))
    with pytest.raises(archive.SizeError, match="holds more than the 10 bytes"):
        unpack(path)


def test_content_short_of_the_declared_size_is_refused(path: Path) -> None:
    zipped(path, "users_raw.csv")
    restate(path, size=len(CONTENT) + 1)
    with pytest.raises(archive.SizeError, match="holds less"):
        unpack(path)


def test_an_encrypted_file_is_refused(path: Path) -> None:
    zipped(path, "users_raw.csv")
    restate(path, flags=1)
    with pytest.raises(archive.UnreadableArchiveError, match="encrypted"):
        unpack(path)


def test_a_refusal_names_the_archive_is_permanent_and_leaves_nothing_behind(path: Path) -> None:
    zipped(path, "users_raw.csv")
    restate(path, crc=1)
    with pytest.raises(PermanentError, match=r"s3://lake/users_raw\.zip"):
        unpack(path)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"not a zip archive", b"PK\x03\x04 cut off"])
def test_something_else_than_an_archive_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(archive.UnreadableArchiveError, match="cannot be read"):
        unpack(path)


def test_damaged_content_is_refused(path: Path) -> None:
    zipped(path, "users_raw.csv", content=bytes(range(256)) * 3)
    data = bytearray(path.read_bytes())
    data[60:90] = b"\xff" * 30
    path.write_bytes(data)
    with pytest.raises(archive.ArchiveError):
        unpack(path)

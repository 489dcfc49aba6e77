"""The bytes of an object as they were before somebody compressed them, a block at a time and within the limits.

The first bytes tell the compression, not the name: stores and browsers may decompress an object and keep its name.
Objects are untrusted: a decompressor gets at most :data:`WINDOW_BYTES` of memory, gives a block at a time, and what it
gives in all is limited.
"""

import gzip
import io
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

from user_pipeline.setting_values import ObjectLimits

BLOCK_BYTES = 4 * 2**20
UNCHECKED_BYTES = 16 * 2**20
"""Up to this many decompressed bytes the ratio is not checked."""
WINDOW_BYTES = 128 * 2**20
"""The largest window of zstd and dictionary of xz: what ``xz -9`` and ``zstd --ultra -22`` need."""

_FED_BYTES = 256 * 2**10
"""How much a decompressor is fed at a time: it copies what it has not used yet."""
_HEAD_BYTES = 10
_ENDED = "Compressed file ended before the end-of-stream marker was reached"
_WINDOW = f"it takes more memory to decompress than {WINDOW_BYTES >> 20} MiB, which is all that {{}} needs"


class BrokenObjectError(Exception):
    """An object cannot be read to its end: it is damaged, larger than the limits allow, or its filter failed."""


class _Decompressor(Protocol):
    """What the decompressors of bz2, lzma, zstd and lz4 have in common: each is for one stream, member or frame."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes | None: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Compression:
    """A way to compress files.

    Attributes:
        name: what people call it.
        suffix: what names of such files end with.
        magic: what its first bytes match.
        examples: how a file begins. If one was cut off within that, its name tells what it should be.
        open: gives the decompressed bytes of a stream.
    """

    name: str
    suffix: str
    magic: re.Pattern[bytes]
    examples: tuple[bytes, ...]
    open: Callable[[io.BufferedReader], io.BufferedIOBase]


def open_stored(chunks: Iterable[bytes | memoryview]) -> io.BufferedReader:
    """The bytes of an object as they are stored, as a stream."""
    return io.BufferedReader(_Chunks(iter(chunks)), buffer_size=BLOCK_BYTES)


def open_decompressed(chunks: Iterable[bytes | memoryview], name: str) -> io.BufferedIOBase:
    """The decompressed bytes of an object, as a stream.

    Args:
        chunks: its bytes as stored.
        name: its name, which tells the compression of an object that ends within its first bytes.

    Raises:
        BrokenObjectError: it is compressed in a way that is not read; the stream raises it where it is damaged.
    """
    remaining = iter(chunks)
    head = b""
    while len(head) < _HEAD_BYTES and (chunk := next(remaining, None)) is not None:
        head += bytes(chunk)
    raw = open_stored(chain([head], remaining))
    for compression in COMPRESSIONS:
        if compression.magic.match(head):
            return compression.open(raw)
        if name.endswith(compression.suffix) and head and any(e.startswith(head) for e in compression.examples):
            raise BrokenObjectError(_ENDED)
    if _OLD_LZ4.match(head):
        raise BrokenObjectError("it is lz4 in the legacy format, which is not read: compress it without -l")
    return raw


class Blocks:
    """The blocks of a stream, as long as it stays within the limits.

    Args:
        stream: the stream.
        stored_bytes: how large the object is as stored.
        limits: where to stop.
    """

    def __init__(self, stream: io.BufferedIOBase, stored_bytes: int, limits: ObjectLimits) -> None:
        self._stream = stream
        self._stored_bytes = stored_bytes
        self._limits = limits
        self._size = 0

    def read(self) -> bytes:
        """The next block; empty at the end.

        Raises:
            BrokenObjectError: the stream is damaged or passes a limit.
        """
        try:
            block = _read_block(self._stream)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise BrokenObjectError(f"{error}".rstrip(".")) from error
        self._size += len(block)
        limits, stored = self._limits, self._stored_bytes
        if self._size > limits.size:
            raise BrokenObjectError(f"it is larger than USER_PIPELINE_MAX_OBJECT_SIZE allows, {limits.size:,} bytes")
        if self._size > UNCHECKED_BYTES and self._size > limits.ratio * stored:
            raise BrokenObjectError(
                f"its {stored:,} bytes become more than {limits.ratio:,} times as many, which is all that "
                "USER_PIPELINE_MAX_COMPRESSION_RATIO allows"
            )
        return block


class _Chunks(io.RawIOBase):
    """The chunks of an object store's response, readable as a file."""

    def __init__(self, chunks: Iterator[bytes | memoryview]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:  # noqa: ANN401 - a writable buffer has no narrower type in 3.11
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk).cast("B")
        size = min(len(target), len(self._rest))
        target[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


class _Streams(io.BufferedIOBase):
    """The content of compressed streams that follow each other.

    The readers of the libraries stop without an error where no further stream follows. Here each byte is decompressed,
    or the object is broken.
    """

    def __init__(self, raw: io.BufferedReader, name: str, make: Callable[[], _Decompressor]) -> None:
        self._raw = raw
        self._name = name
        self._make = make
        self._decompressor = make()
        self._unused = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to ``size`` bytes; empty at the end."""
        most = BLOCK_BYTES if size is None or size < 0 else size
        while True:
            if self._decompressor.eof and not self._next_stream():
                return b""
            data = b""
            if self._decompressor.needs_input:
                data, self._unused = self._unused or self._raw.read1(_FED_BYTES), b""
                if not data:
                    raise BrokenObjectError(_ENDED)
            if content := self._decompress(data, most):
                return content

    def _next_stream(self) -> bool:
        """Go on to the next stream, if there is one."""
        rest = self._decompressor.unused_data or b""
        while True:
            # Tape drives and xz pad with zeros.
            rest = rest.lstrip(b"\0") or self._raw.read1(_FED_BYTES)
            if not rest:
                return False
            if rest.strip(b"\0"):
                self._unused = rest.lstrip(b"\0")
                self._decompressor = self._make()
                return True

    def _decompress(self, data: bytes, most: int) -> bytes:
        try:
            return self._decompressor.decompress(data, most)
        except MemoryError:
            raise
        except Exception as error:
            # Each library raises another error.
            said = str(error)
            if "Memory usage limit" in said or "too much memory" in said:
                raise BrokenObjectError(_WINDOW.format("xz -9, or zstd without --long,")) from error
            raise BrokenObjectError(f"its {self._name} is damaged, or something else follows it: {said}") from error


def _read_block(stream: io.BufferedIOBase) -> bytes:
    """Up to a block: ``read`` of a compressed stream gives less than it is asked for."""
    parts = []
    missing = BLOCK_BYTES
    while missing and (part := stream.read(missing)):
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _open_gzip(raw: io.BufferedReader) -> io.BufferedIOBase:
    return gzip.GzipFile(fileobj=raw)


def _open_bzip2(raw: io.BufferedReader) -> io.BufferedIOBase:
    import bz2

    return _Streams(raw, "bzip2", bz2.BZ2Decompressor)


def _open_xz(raw: io.BufferedReader) -> io.BufferedIOBase:
    import lzma

    return _Streams(raw, "xz", lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=WINDOW_BYTES))


def _open_zstd(raw: io.BufferedReader) -> io.BufferedIOBase:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd

    options = {int(zstd.DecompressionParameter.window_log_max): WINDOW_BYTES.bit_length() - 1}
    return _Streams(raw, "zstd", lambda: zstd.ZstdDecompressor(options=options))


def _open_lz4(raw: io.BufferedReader) -> io.BufferedIOBase:
    import lz4.frame

    return _Streams(raw, "lz4", lz4.frame.LZ4FrameDecompressor)


_OLD_LZ4 = re.compile(rb"\x02\x21\x4c\x18")
_BZIP2_BLOCK, _BZIP2_END = b"1AY&SY", b"\x17rE8P\x90"
COMPRESSIONS = (
    Compression("gzip", ".gz", re.compile(rb"\x1f\x8b"), (b"\x1f\x8b",), _open_gzip),
    # pzstd begins its files with a skippable frame. So may lz4, but what follows such a frame is taken for zstd.
    Compression(
        "zstd", ".zst", re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"), (b"\x28\xb5\x2f\xfd",), _open_zstd
    ),
    # More than BZh is compared: a log may begin with that.
    Compression(
        "bzip2",
        ".bz2",
        re.compile(rb"BZh[1-9](?:" + re.escape(_BZIP2_BLOCK) + rb"|" + re.escape(_BZIP2_END) + rb")"),
        tuple(b"BZh%d" % level + _BZIP2_BLOCK for level in range(1, 10)),
        _open_bzip2,
    ),
    Compression("xz", ".xz", re.compile(rb"\xfd7zXZ\x00"), (b"\xfd7zXZ\x00",), _open_xz),
    Compression("lz4", ".lz4", re.compile(rb"\x04\x22\x4d\x18"), (b"\x04\x22\x4d\x18",), _open_lz4),
)

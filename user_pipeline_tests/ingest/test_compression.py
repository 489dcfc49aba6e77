"""Objects are decompressed by their first bytes, to their end or not at all."""

import bz2
import functools
import gzip
import io
import lzma
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import lz4.frame
import pytest
from backports import zstd

from user_pipeline.ingest.compression import (
    COMPRESSIONS,
    WINDOW_BYTES,
    Blocks,
    BrokenObjectError,
    open_decompressed,
)
from user_pipeline.setting_values import ObjectLimits
from user_pipeline_tests.ingest.reading import ingest, rows
from user_pipeline_tests.platform import Platform, view

LIMITS = ObjectLimits(size=10**10, ratio=10**6, lines=10**9, rejects=10**9)
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda content: gzip.compress(content, mtime=0),
    "zstd": zstd.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "lz4": lz4.frame.compress,
}
NAMES = {compression.name: f"PageViews/a{compression.suffix}" for compression in COMPRESSIONS}
TEXT = random.Random(1).randbytes(300_000).hex().encode()  # noqa: S311 - no secret


def decompress(content: bytes, name: str = "a", limits: ObjectLimits = LIMITS, chunk: int = 100_000) -> bytes:
    chunks = [content[at : at + chunk] for at in range(0, len(content), chunk)]
    blocks = Blocks(open_decompressed(chunks, name), len(content), limits)
    return b"".join(iter(blocks.read, b""))


def test_each_compression_has_a_test() -> None:
    assert list(NAMES) == list(COMPRESS)


@pytest.mark.parametrize("kind", COMPRESS)
@pytest.mark.parametrize("chunk", [1, 7, 100_000])
def test_any_number_of_streams_gives_all_content_whatever_the_name_and_the_chunks(kind: str, chunk: int) -> None:
    compress = COMPRESS[kind]
    text = TEXT[: 600 * chunk]
    content = compress(text) + compress(b"") + compress(text[:1000]) + compress(b"end\n")
    assert decompress(content, chunk=chunk) == text + text[:1000] + b"end\n"
    assert decompress(compress(b"")) == b""


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz"])
def test_padding_with_zeros_is_no_content(kind: str) -> None:
    compress = COMPRESS[kind]
    assert decompress(compress(b"a\n") + b"\0" * 512) == b"a\n"
    if kind != "gzip":
        assert decompress(compress(b"a\n") + b"\0" * 512 + compress(b"b\n") + b"\0" * 4) == b"a\nb\n"


@pytest.mark.parametrize("kind", COMPRESS)
def test_an_object_that_was_cut_anywhere_is_broken(kind: str) -> None:
    whole = COMPRESS[kind](TEXT[:2000])
    for size in [*range(1, 40), len(whole) // 2, *range(len(whole) - 20, len(whole))]:
        with pytest.raises(BrokenObjectError, match="ended before"):
            decompress(whole[:size], NAMES[kind])


@pytest.mark.parametrize("kind", COMPRESS)
def test_a_second_stream_that_was_cut_or_is_none_breaks_the_object(kind: str) -> None:
    whole = COMPRESS[kind](TEXT[:2000])
    for rest in (whole[:30], whole[:-1]):
        with pytest.raises(BrokenObjectError, match="ended before"):
            decompress(whole + rest)
    for rest in (b"and then plain text\n" * 10, b"\0\0more\n" * 10):
        with pytest.raises(BrokenObjectError, match=f"{kind} is damaged, or something else follows|Not a gzipped file"):
            decompress(whole + rest)


@pytest.mark.parametrize("kind", COMPRESS)
def test_bytes_that_were_changed_break_the_object(kind: str) -> None:
    whole = bytearray(COMPRESS[kind](TEXT))
    whole[len(whole) // 2] ^= 0xFF
    whole[len(whole) // 2 + 1] ^= 0xFF
    if kind == "zstd":
        # Frames of the library have no checksum unless asked to.
        whole = bytearray(zstd.compress(TEXT, options={zstd.CompressionParameter.checksum_flag: 1}))
        whole[-1] ^= 0xFF
    if kind == "lz4":
        whole = bytearray(lz4.frame.compress(TEXT, content_checksum=True))
        whole[-1] ^= 0xFF
    with pytest.raises(BrokenObjectError):
        decompress(bytes(whole))


@functools.cache
def bomb(kind: str) -> bytes:
    """A gigabyte of nothing, as streams of 20 MB."""
    return COMPRESS[kind](b"0" * (20 * 10**6)) * 50


@pytest.mark.parametrize("kind", COMPRESS)
def test_the_limits_hold_for_what_an_object_becomes(kind: str) -> None:
    content = bomb(kind)
    with pytest.raises(BrokenObjectError, match="USER_PIPELINE_MAX_COMPRESSION_RATIO allows"):
        decompress(content, limits=replace(LIMITS, ratio=100))
    with pytest.raises(BrokenObjectError, match="USER_PIPELINE_MAX_OBJECT_SIZE allows, 30,000,000"):
        decompress(content, limits=replace(LIMITS, size=30 * 10**6))


@pytest.mark.parametrize("kind", COMPRESS)
def test_a_bomb_is_taken_a_block_at_a_time(kind: str) -> None:
    """No read gives more than it is asked for, however few bytes it was made of."""
    stream = open_decompressed([bomb(kind)], "a")
    assert all(0 < len(stream.read(10_000)) <= 10_000 for _ in range(200))


def test_what_wants_more_memory_than_the_window_is_refused_with_what_would_be_read() -> None:
    content = b"x" * 10**6
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": 2 * WINDOW_BYTES}]
    wide = {
        "xz": lzma.compress(content, lzma.FORMAT_XZ, filters=filters),
        # Its header as `zstd --long=31` writes it: a window of 2 GiB.
        "zstd": b"\x28\xb5\x2f\xfd\x00\xa8" + b"\0" * 20,
    }
    for whole in wide.values():
        with pytest.raises(BrokenObjectError, match=r"more memory to decompress than 128 MiB.* xz -9, or zstd without"):
            decompress(whole)


def test_what_the_strongest_levels_make_is_read() -> None:
    assert decompress(lzma.compress(TEXT, preset=9)) == TEXT
    assert decompress(zstd.compress(TEXT, level=22)) == TEXT


def test_frames_to_be_skipped_are_skipped() -> None:
    skipped = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
    assert decompress(skipped + zstd.compress(b"a\n") + skipped + zstd.compress(b"b\n")) == b"a\nb\n"
    assert decompress(lz4.frame.compress(b"a\n") + skipped + lz4.frame.compress(b"b\n")) == b"a\nb\n"


def test_the_legacy_format_of_lz4_is_named() -> None:
    with pytest.raises(BrokenObjectError, match="legacy format"):
        decompress(b"\x02\x21\x4c\x18" + b"\0" * 20)


@pytest.mark.parametrize(
    "content", [b"BZh", b"BZh9 is how some lines begin\n", b"{}\n", b"\x1f", b"(\xb5", b"\xfd7zXZ", b"\n"]
)
def test_what_only_looks_a_little_like_it_is_text(content: bytes) -> None:
    assert decompress(content, "PageViews/log") == content


def test_an_error_of_the_store_stays_what_it_is() -> None:
    def chunks() -> Iterator[bytes]:
        yield COMPRESS["bzip2"](TEXT)[:1000]
        raise OSError("connection reset")

    stream = open_decompressed(chunks(), "a")
    with pytest.raises(OSError, match="connection reset"):
        Blocks(stream, 1000, LIMITS).read()


@pytest.mark.parametrize("kind", COMPRESS)
def test_objects_of_each_compression_are_read_and_a_truncated_one_brings_nothing(platform: Platform, kind: str) -> None:
    good: Any = view("2017-04-01T10:00:00")
    platform.put_views("plain", [good, "broken"] * 500)
    text = (platform.root / "source/plain").read_bytes()
    whole = COMPRESS[kind](text) + COMPRESS[kind](text)
    platform.put("PageViews/named-otherwise", whole)
    platform.put("PageViews/truncated", whole[:-10])
    platform.put("PageViews/z", text)
    read = ingest(platform)
    [broken] = read.broken
    assert broken.key == "PageViews/truncated"
    assert "ended before" in (broken.error or "")
    assert {entry.key: (entry.lines, entry.rows) for entry in read.entries if not entry.error} == {
        "PageViews/named-otherwise": (2000, 1000),
        "PageViews/z": (1000, 500),
    }
    assert len(rows(platform)) == 1500
    platform.put("PageViews/truncated", whole)
    assert [entry.rows for entry in ingest(platform).entries] == [1000]


def test_streams_can_be_read_as_files() -> None:
    stream = open_decompressed([COMPRESS["xz"](b"a\n")], "a")
    assert isinstance(stream, io.BufferedIOBase)
    assert stream.readable()
    assert stream.read() == b"a\n"

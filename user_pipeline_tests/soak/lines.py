"""Fuzzed lines of both feeds: what they are is known by how they were made, and each is counted once."""

import functools
import gzip
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

from user_pipeline.ingest.feeds import PAGE_VIEWS, USER_UPDATES, Feed
from user_pipeline.resources.embedded_postgres import EmbeddedPostgres
from user_pipeline_tests.ingest.reading import ingest, manifest_of
from user_pipeline_tests.platform import Platform, update, view
from user_pipeline_tests.soak import COUNTS

_LINES = 10_000
"""Of an object; a number has two objects of each feed."""
_BLANKS = (b"\n", b"\r\n", b"  \n", b"\t \r\n")
_WHITE = b" \t\r\n"
_MOMENTS = (
    "2017-04-01T10:00:00",
    "2017-04-01T10:00:00.5+02:00",
    "2010-01-01T00:00:00",
    "2999-01-01T00:00:00",
    "never",
    "",
)


def _mostly(draw: Random, good: Any, *others: Any) -> Any:
    """Of so many fields few lines would be rows if each value were as likely."""
    return good if draw.random() < 0.8 else draw.choice((good, *others))


def _mangled(draw: Random, line: bytes, forbidden: bytes) -> bytes:
    """A line with a few bytes changed, put in, or taken out: none of those that would make several lines of it."""
    content = bytearray(line.removesuffix(b"\n"))
    for _ in range(_mostly(draw, 0, 1, 1, 2, 5, 40)):
        at = draw.randrange(len(content) + 1)
        new = bytes(byte for byte in draw.randbytes(draw.choice((1, 1, 2, 8))) if byte not in forbidden)
        content[at : at + draw.choice((0, 1, 3))] = new
    return bytes(content) + b"\n"


def _view(draw: Random) -> bytes:
    made = view(
        _mostly(draw, *_MOMENTS),
        _mostly(draw, "/a", "/ü", "", "x" * 300),
        _mostly(draw, 1, "2", None, True, -1, 1.5, 2**63, [1]),
        _mostly(draw, "production", "staging", ""),
        **draw.choice(({}, {}, {"more": draw.choice((1, None, {"a": [1]}))})),
    )
    line = (json.dumps(made, ensure_ascii=draw.random() < 0.5) + "\n").encode()
    return _mangled(draw, line, b"\n")


def _update(draw: Random) -> bytes:
    """A record; one with a name of several lines stays as it is, others have no quote but those around the fields."""
    made = update(
        _mostly(draw, *_MOMENTS),
        _mostly(draw, 1, 2, "", "x", -1, 2**63),
        _mostly(draw, "a@x.org", "b@x.org", "none", ""),
        _mostly(draw, "Ann", "a,b", 'A "nn"', "A\nnn\r\nn", ""),
        _mostly(draw, "production", "staging", ""),
    ).encode()
    if made.count(b"\n") > 1:
        return made
    return _mangled(draw, made.replace(b'"', b""), b'"\n')


def objects(number: int) -> list[tuple[Feed, str, list[bytes]]]:
    """The objects of a number: feed, key, and the lines as the feeds' rules cut them."""
    draw = Random(number)  # noqa: S311 - test data
    found = []
    for feed, one in ((PAGE_VIEWS, _view), (USER_UPDATES, _update)):
        for name in ("a", "b.gz"):
            lines = [draw.choice(_BLANKS) if draw.random() < 0.05 else one(draw) for _ in range(_LINES)]
            found.append((feed, f"{feed.folder}/{name}", lines))
    return found


def miscounted(platform: Platform, feed: Feed, key: str, lines: Sequence[bytes]) -> str | None:
    """Read an object of these lines; what is counted wrong, if anything."""
    content = b"".join(lines)
    platform.put(key, gzip.compress(content, 1) if key.endswith(".gz") else content)
    found = ingest(platform, feed, now=datetime.now(UTC), alone=False)
    if found.broken or found.failing:
        return f"not read: {found.broken or found.failing}"
    [entry] = [entry for entry in manifest_of(platform, feed).entries() if entry.key == key]
    wanted = {"lines": len(lines), "blank": sum(not line.strip(_WHITE) for line in lines)}
    counted = {"lines": entry.lines, "blank": entry.blank}
    if counted != wanted:
        return f"{counted}, delivered {wanted}"
    became = entry.rows + sum(entry.rejected.values()) + entry.blank + entry.header
    if became != entry.lines:
        return f"{entry.lines} lines became {became}: {entry}"
    [(kept,)] = platform.rows(
        "staging", f"select count(*) from rejected_lines where feed = '{feed.name}' and source_object = '{key}'"
    )
    if kept != sum(entry.rejected.values()):
        return f"{sum(entry.rejected.values())} rejects counted, {kept} kept"
    if unaccounted := manifest_of(platform, feed).unaccounted():
        return f"unaccounted: {unaccounted}"
    COUNTS["fuzzed rows"] += entry.rows
    COUNTS["fuzzed rejects"] += kept
    COUNTS["fuzzed blanks"] += entry.blank
    COUNTS["fuzzed lines"] += entry.lines
    return None


def smallest(lines: Sequence[bytes], fails: Callable[[Sequence[bytes]], object]) -> Sequence[bytes]:
    """The fewest of the lines that still fail, by leaving out ever smaller parts of them."""
    size = len(lines) // 2
    while size:
        at = 0
        while at < len(lines):
            fewer = [*lines[:at], *lines[at + size :]]
            if fewer and fails(fewer):
                lines = fewer
            else:
                at += size
        size //= 2
    return lines


def fuzz(postgres: EmbeddedPostgres, number: int) -> str | None:
    """Read the objects of a number; what is counted wrong, with the few lines it takes."""
    root = Path(tempfile.mkdtemp(prefix="soak-lines-"))
    try:
        with Platform.create(postgres, root) as platform:
            for feed, key, lines in objects(number):
                wrong = functools.partial(miscounted, platform, feed, key)
                if said := wrong(lines):
                    few = smallest(lines, wrong)
                    return f"{key}: {said}\nand {wrong(few)} of only\n{list(few)!r}"
    finally:
        shutil.rmtree(root)
    return None

"""Cut the bytes of an object into numbered lines, without ever holding the whole object.

A line ends at a newline; in a feed with quoted newlines a quoted field may go on over several
lines, which then count as one line, numbered where it begins (RFC 4180, section 2).
"""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from user_pipeline.ingest.compression import Blocks, BrokenObjectError
from user_pipeline.setting_values import ObjectLimits

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

MAX_LINE_BYTES = 64 * 2**20
"""A longer line is rejected: a file without newlines must not fill memory."""
KEPT_LINE_BYTES = 64 * 2**10
"""Of a rejected line this much is kept."""
MAX_QUOTED_BYTES = 2**20
"""How many bytes a record with line ends in quotes may have; in a longer one, each line is a record of its own."""

_BOM = b"\xef\xbb\xbf"
_WHITE_SPACE = tuple(b" \t\r\n")
_CSV_FIELD = rb'(?:"[^"]*(?:""[^"]*)*"|[^",\r\n]*)'
_CSV_RECORD = re.compile(_CSV_FIELD + rb"(?:," + _CSV_FIELD + rb"){4,}\r?\n?")


@dataclass(slots=True)
class LineCounter:
    """How many lines an object has, counted independently of the parser.

    Attributes:
        lines: all lines.
        blank: how many of them are nothing but white space; the parser does not get these.
    """

    lines: int = 0
    blank: int = 0


def cut(
    stream: io.BufferedIOBase, *, stored_bytes: int, limits: ObjectLimits, quoted_newlines: bool, counter: LineCounter
) -> Iterator["pa.RecordBatch"]:
    r"""Yield the lines of a stream in batches.

    Args:
        stream: the decompressed bytes.
        stored_bytes: how large the object is as stored.
        limits: where to stop.
        quoted_newlines: whether a quoted field may hold line ends.
        counter: counts the lines as they pass.

    Yields:
        record batches of ``line`` int64 (the number of the physical line it begins at, from 1), ``text`` large string
        (with its line end; bytes that are not UTF-8 as ``\\xNN``), ``broken`` bool (not UTF-8, or longer than
        :data:`MAX_LINE_BYTES`; of such text :data:`KEPT_LINE_BYTES` are given) and ``size`` int64 (bytes of the line,
        its end included). Lines of nothing but white space are counted only.

    Raises:
        BrokenObjectError: the stream is damaged or passes a limit; what was yielded before is not to be used.
    """
    number = 1
    carry = b""
    first = True
    blocks = Blocks(stream, stored_bytes, limits)
    while True:
        block = blocks.read()
        at_end = not block
        if first:
            block, first = block.removeprefix(_BOM), False
        data = carry + block
        if at_end and not data:
            return
        lines = _Lines(data, number, at_end=at_end, quoted_newlines=quoted_newlines)
        carry = data[lines.used :]
        number = lines.next_number
        counter.lines += lines.count
        counter.blank += lines.blank
        if lines.count > lines.blank:
            yield lines.to_batch()
        if not at_end and len(carry) > MAX_LINE_BYTES:
            counter.lines += 1
            skipped, rest = _skip_line(blocks)
            yield _overlong_batch(carry, number, len(carry) + skipped)
            carry = rest
            number += 1
        if counter.lines > limits.lines:
            raise BrokenObjectError(f"it has more lines than USER_PIPELINE_MAX_OBJECT_LINES allows, {limits.lines:,}")
        if at_end:
            return


class _Lines:
    """The whole lines at the beginning of a piece of data.

    Attributes:
        count: how many there are.
        blank: how many of them are nothing but white space.
        used: how many bytes they take; the rest belongs to a line that is not complete yet.
        next_number: the physical line number that follows them.
    """

    def __init__(self, data: bytes, first_number: int, *, at_end: bool, quoted_newlines: bool) -> None:
        import numpy as np

        self._data = data
        octets = np.frombuffer(data, dtype=np.uint8)
        ends = np.flatnonzero(octets == ord("\n")) + 1
        if at_end and (not len(ends) or ends[-1] < len(data)):
            ends = np.append(ends, len(data))
        starts = np.concatenate([np.zeros(1, dtype=np.int64), ends[:-1]]) if len(ends) else ends
        numbers = first_number + np.arange(len(ends), dtype=np.int64)
        self.next_number = first_number + len(ends)
        if quoted_newlines and len(ends):
            keep, complete = self._join_quoted(octets, starts, ends, at_end=at_end)
            if complete < len(ends):
                self.next_number = first_number + complete
                starts, ends, numbers, keep = (
                    starts[:complete],
                    ends[:complete],
                    numbers[:complete],
                    keep[:complete],
                )
            starts, numbers = starts[keep], numbers[keep]
        self.count = len(starts)
        self.used = int(ends[-1]) if len(ends) else 0
        self._offsets = np.append(starts, self.used).astype(np.int64)
        self._numbers = numbers
        self._is_kept = ~self._find_blank(octets)
        self.blank = self.count - int(np.count_nonzero(self._is_kept))

    def _join_quoted(
        self,
        octets: "np.ndarray[Any, Any]",
        starts: "np.ndarray[Any, Any]",
        ends: "np.ndarray[Any, Any]",
        *,
        at_end: bool,
    ) -> "tuple[np.ndarray[Any, Any], int]":
        """Which lines begin a record, and how many lines are complete.

        A field that is still open at the end of its line has left an odd number of quotes behind, and the
        line that closes it has an odd number too; all between have even numbers. The two are joined only
        if the result is a well-formed record, so a stray quote costs its own line and no other.
        """
        import numpy as np

        keep = np.ones(len(starts), dtype=bool)
        quotes = np.flatnonzero(octets == ord('"'))
        if not len(quotes):
            return keep, len(starts)
        per_line = np.diff(np.searchsorted(quotes, np.append(starts, ends[-1])))
        odd = np.flatnonzero(per_line % 2)
        at = 0
        while at < len(odd):
            opening = int(odd[at])
            begin = int(starts[opening])
            if at + 1 == len(odd):
                # The closing line may be in the next block.
                if not at_end and len(self._data) - begin <= MAX_QUOTED_BYTES:
                    return keep, opening
                break
            closing = int(odd[at + 1])
            end = int(ends[closing])
            if end - begin <= MAX_QUOTED_BYTES and _CSV_RECORD.fullmatch(self._data, begin, end):
                keep[opening + 1 : closing + 1] = False
                at += 1
            at += 1
        return keep, len(starts)

    def _find_blank(self, octets: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        """Which lines are nothing but white space."""
        import numpy as np

        starts, ends = self._offsets[:-1], self._offsets[1:]
        blank = np.isin(octets[starts], _WHITE_SPACE)
        # Few lines begin with white space at all.
        if blank.any():
            inked = np.concatenate([[0], np.cumsum(~np.isin(octets[: self.used], _WHITE_SPACE), dtype=np.int32)])
            blank &= inked[starts] == inked[ends]
        return blank

    def to_batch(self) -> "pa.RecordBatch":
        """The lines that are not blank, as :func:`cut` yields them."""
        import numpy as np
        import pyarrow as pa

        text = pa.LargeStringArray.from_buffers(self.count, pa.py_buffer(self._offsets), pa.py_buffer(self._data))
        try:
            text.validate(full=True)
            broken = pa.array(np.zeros(self.count, dtype=bool))
        except pa.ArrowInvalid:
            octets = pa.LargeBinaryArray.from_buffers(
                pa.large_binary(), self.count, [None, pa.py_buffer(self._offsets), pa.py_buffer(self._data)]
            )
            decoded = [_decode(line) for line in octets.to_pylist()]
            text = pa.array([line for line, _ in decoded], pa.large_string())
            broken = pa.array([is_broken for _, is_broken in decoded], pa.bool_())
        batch = _batch(pa.array(self._numbers), text, broken, pa.array(np.diff(self._offsets)))
        return batch if not self.blank else batch.filter(pa.array(self._is_kept))


def _decode(line: bytes) -> tuple[str, bool]:
    try:
        return line.decode(), False
    except UnicodeDecodeError:
        return line[:KEPT_LINE_BYTES].decode(errors="backslashreplace"), True


def _overlong_batch(start: bytes, number: int, size: int) -> "pa.RecordBatch":
    import pyarrow as pa

    kept = start[:KEPT_LINE_BYTES].decode(errors="backslashreplace")
    return _batch(pa.array([number]), pa.array([kept], pa.large_string()), pa.array([True]), pa.array([size]))


def _batch(numbers: "pa.Array", text: "pa.Array", broken: "pa.Array", sizes: "pa.Array") -> "pa.RecordBatch":
    import pyarrow as pa

    return pa.record_batch([numbers, text, broken, sizes], names=["line", "text", "broken", "size"])


def _skip_line(blocks: Blocks) -> tuple[int, bytes]:
    """Read past the end of the current line; how many bytes of it there were, and what follows it."""
    skipped = 0
    while block := blocks.read():
        end = block.find(b"\n") + 1
        if end:
            return skipped + end, block[end:]
        skipped += len(block)
    return skipped, b""

"""What a filter says on its standard error: bounded, and without what is not to be shown."""

from collections import deque
from collections.abc import Sequence

from user_pipeline.masking import mask, printable

_KEPT = 8 * 2**10
"""Bytes of the beginning, and of the end."""
_LONGEST_SECRET = 500
_LONGEST_LINE = 300
_MOST_LINES = 20


class Said:
    """Takes everything and keeps the beginning and the end.

    Args:
        secrets: texts that are not to be shown, beside the secrets of the platform.
    """

    def __init__(self, secrets: Sequence[str] = ()) -> None:
        self._secrets = sorted(secrets, key=len, reverse=True)
        self._first = bytearray()
        self._last: deque[int] = deque(maxlen=_KEPT)
        self._size = 0

    def add(self, said: bytes) -> None:
        """Take some more."""
        missing = _KEPT - len(self._first)
        self._first += said[:missing]
        self._last.extend(said[max(missing, 0) :][-_KEPT:])
        self._size += len(said)

    def lines(self) -> list[str]:
        """The first and the last lines, masked, printable and cut; between them how much was left out."""
        if self._size <= 2 * _KEPT:
            lines = self._shown(bytes(self._first) + bytes(self._last))
            left_out = len(lines) > 2 * _MOST_LINES
            first, last = lines[:_MOST_LINES], lines[max(_MOST_LINES, len(lines) - _MOST_LINES) :]
        else:
            # A secret may be cut where the kept text is: that much of it goes.
            first = self._shown(bytes(self._first), drop_end=_LONGEST_SECRET)[:_MOST_LINES]
            last = self._shown(bytes(self._last), drop_start=_LONGEST_SECRET)[-_MOST_LINES:]
            left_out = True
        return [*first, *([f"… [{self._size:,} bytes]"] if left_out else []), *last]

    def last_line(self) -> str:
        """The last line with something in it; empty if there is none."""
        lines = self.lines()
        return lines[-1] if lines else ""

    def _shown(self, text: bytes, drop_start: int = 0, drop_end: int = 0) -> list[str]:
        shown = text.decode(errors="backslashreplace")
        for secret in self._secrets:
            shown = shown.replace(secret, "***")
        shown = mask(shown)
        shown = shown[drop_start : len(shown) - drop_end]
        lines = [printable(line.strip("\r")) for line in shown.split("\n")]
        return [line if len(line) <= _LONGEST_LINE else line[:_LONGEST_LINE] + "…" for line in lines if line.strip()]

"""A process that bytes are piped through: streaming both ways, within limits of time, memory and processes.

One thread does it all. It waits until the process takes or gives something, so neither side can wait for the other,
and no more than a block is held.
"""

import io
import logging
import os
import selectors
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import IO

from user_pipeline.ingest.compression import Blocks, BrokenObjectError
from user_pipeline.ingest.filter_output import Said
from user_pipeline.ingest.filter_session import MOST_PROCESSES, PIPE_BYTES, Session
from user_pipeline.interrupts import cancelled_by, is_told
from user_pipeline.masking import mask_key

_log = logging.getLogger(__name__)

_LOOK = 0.05
"""Seconds between two looks at the limits; more where a look takes long, so that looks take a 20th of the time."""
_SHORTEST_WAIT = 0.001


class FilterProcess(io.BufferedIOBase):
    """What a process makes of some bytes, as a stream.

    Args:
        command: the absolute path of the program, and its arguments.
        content: what it gets.
        environment: all its variables; ``SOURCE_OBJECT`` among them is named in the log.
        seconds: how long it may take.
        memory: bytes that its processes may use together, and each of them alone.
        secrets: values in its environment that must not be shown.

    Raises:
        NotStartedError: it cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        content: Blocks,
        environment: Mapping[str, str],
        *,
        seconds: int,
        memory: int,
        secrets: Sequence[str] = (),
    ) -> None:
        # First: close() needs it, also after an error in here.
        self._cleanup = ExitStack()
        self._content = content
        self._name = mask_key(environment.get("SOURCE_OBJECT", ""))
        self._seconds = seconds
        self._memory = memory
        self._said = Said(secrets)
        self._pending = memoryview(b"")
        self._taken = self._given = 0
        self._at_end = False
        self._started = time.monotonic()
        self._next_look = self._started + _LOOK
        self._session = Session(command, environment, memory)
        self._selector = self._cleanup.enter_context(selectors.DefaultSelector())
        self._cleanup.callback(self._session.close)
        self._cleanup.callback(self._log_said)
        # When the run is told to stop, it does not wait for a process that hangs.
        self._cleanup.enter_context(cancelled_by(self._session.kill))
        self._selector.register(self._session.stdin, selectors.EVENT_WRITE)
        for pipe in (self._session.stdout, self._session.stderr):
            self._selector.register(pipe, selectors.EVENT_READ)

    def readable(self) -> bool:
        """Whether it can be read: always."""
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to ``size`` bytes; empty at the end, when the process has ended well.

        Raises:
            BrokenObjectError: the process failed, or passed a limit; or what it was to get is broken.
            KeyboardInterrupt: this process was told to stop.
        """
        most = PIPE_BYTES if size is None or size < 0 else min(size, PIPE_BYTES)
        if self.closed:
            raise ValueError("it is closed")
        if self._at_end:
            return b""
        try:
            return self._read(most)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Kill what is left of it, and let go of the pipes."""
        self._cleanup.close()
        super().close()

    def _read(self, most: int) -> bytes:
        session, wait = self._session, _SHORTEST_WAIT
        while True:
            ready = [key.fileobj for key, _ in self._selector.select(wait)]
            given = b""
            if session.stderr in ready:
                self._take_said()
            if session.stdout in ready:
                given = os.read(session.stdout.fileno(), most)
                if not given:
                    self._selector.unregister(session.stdout)
            if session.stdin in ready:
                self._feed()
            self._look()
            if given:
                self._given += len(given)
                return given
            if not self._is_open(session.stdout) and session.has_ended():
                self._finish()
                return b""
            # The end of the process is looked for often at first, then less and less often.
            wait = _SHORTEST_WAIT if ready else min(2 * wait, _LOOK)

    def _is_open(self, pipe: IO[bytes]) -> bool:
        return not pipe.closed and pipe in self._selector.get_map()

    def _feed(self) -> None:
        """Give the process as much as it takes now."""
        stdin = self._session.stdin
        if not self._pending:
            self._pending = memoryview(self._content.read())
        try:
            written = os.write(stdin.fileno(), self._pending[:PIPE_BYTES]) if self._pending else 0
        except BlockingIOError:
            return
        except BrokenPipeError:
            written = 0
        self._taken += written
        self._pending = self._pending[written:]
        if not written:
            self._selector.unregister(stdin)
            with suppress(BrokenPipeError):
                stdin.close()

    def _take_said(self) -> bool:
        """Read its standard error; returns whether there was anything."""
        try:
            said = os.read(self._session.stderr.fileno(), 2**16)
        except BlockingIOError:
            return False
        if not said:
            self._selector.unregister(self._session.stderr)
        self._said.add(said)
        return bool(said)

    def _look(self) -> None:
        """Check the limits from time to time.

        Raises:
            BrokenObjectError: the process passed one.
            KeyboardInterrupt: this process was told to stop.
        """
        now = time.monotonic()
        if now < self._next_look:
            return
        if is_told():
            raise KeyboardInterrupt("the process was told to stop")
        if now - self._started > self._seconds:
            raise self._broken(f"took longer than USER_PIPELINE_FILTER_SECONDS allows, {self._seconds:,} s")
        members = self._session.members()
        self._next_look = now + max(_LOOK, 20 * (time.monotonic() - now))
        if len(members) > MOST_PROCESSES:
            raise self._broken(f"had more than {MOST_PROCESSES} processes")
        if sum(members.values()) > self._memory:
            raise self._broken(f"used more memory than USER_PIPELINE_FILTER_MEMORY allows, {self._memory:,} bytes")

    def _finish(self) -> None:
        """Wait for its end.

        Raises:
            BrokenObjectError: it failed.
            KeyboardInterrupt: this process was told to stop.
        """
        self._at_end = True
        how = self._session.wait()
        if is_told():
            raise KeyboardInterrupt("the process was told to stop")
        if how:
            raise self._broken(how)
        if self._pending or (self._is_open(self._session.stdin) and self._content.read()):
            _log.warning(
                "%s: its filter stopped reading after %s bytes and was content", self._name, f"{self._taken:,}"
            )
        elif self._taken and not self._given:
            _log.warning("%s: its filter made nothing of %s bytes", self._name, f"{self._taken:,}")

    def _broken(self, how: str) -> BrokenObjectError:
        self._take_rest()
        last = self._said.last_line()
        return BrokenObjectError(f"its filter {how}" + (f": {last}" if last else ""))

    def _take_rest(self) -> None:
        # Bounded: a process that passed a limit may still be writing.
        for _ in range(100):
            if not self._is_open(self._session.stderr) or not self._take_said():
                return

    def _log_said(self) -> None:
        self._take_rest()
        if lines := self._said.lines():
            _log.info("%s: its filter said:\n%s", self._name, "\n".join(lines))

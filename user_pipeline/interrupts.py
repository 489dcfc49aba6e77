"""Whether this process was told to stop, by SIGINT or SIGTERM.

Dagster raises an error in the main thread when a run is terminated. The error can get lost: a native call (a query, a
statement) turns it into an error of its own, the driver of Postgres cancels its statement and raises none, and Dagster
itself treats an interrupt like any error that a retry policy covers. So the signal is noted here as well, whatever
becomes of its error; what would go on or try again asks first.
"""

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_MOST = 65_536
_LOOK = 0.2
"""Seconds between two looks for a signal, and between two attempts to cancel."""
_readers: list[socket.socket] = []
"""Where the numbers of the signals arrive, of the innermost block last. Python's C code writes them there at once."""


@contextmanager
def watched(cancel: Callable[[], object]) -> Iterator[None]:
    """Inside it, signals are noted. Only the main thread can do that; on others nothing changes.

    Args:
        cancel: is called from another thread, again and again, once a signal came: native code may go on for minutes
            before Python raises anything.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    with reader, writer:
        reader.setblocking(False)
        writer.setblocking(False)
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        _readers.append(reader)
        ended = threading.Event()
        thread = threading.Thread(target=_cancel_when_told, args=(ended, cancel), name="interrupts", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            _readers.remove(reader)
            signal.set_wakeup_fd(before)


def _cancel_when_told(ended: threading.Event, cancel: Callable[[], object]) -> None:
    # A call that is cancelled just before it begins goes on, so it is cancelled again.
    while not ended.wait(_LOOK):
        if is_told():
            # What is cancelled may come to an end of its own at the same moment.
            with suppress(Exception):
                cancel()


def is_told() -> bool:
    """Whether the process was told to stop since the block began; False outside of one."""
    if not _readers:
        return False
    try:
        came = _readers[-1].recv(_MOST, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    return any(number in came for number in _SIGNALS)


def raise_if_told(error: BaseException | None = None) -> None:
    """Go no further if the process was told to stop.

    Args:
        error: what it seemed to be instead.

    Raises:
        KeyboardInterrupt: it was. Dagster ends the run then, as for its own kind of interrupt, which is not public.
    """
    if is_told():
        raise KeyboardInterrupt("the process was told to stop") from error

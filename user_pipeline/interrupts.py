"""Whether this process was told to stop, by SIGINT or SIGTERM.

Dagster raises an error in the main thread when a run is terminated. The error can get lost: a native call (a query, a
statement) turns it into an error of its own, the driver of Postgres cancels its statement and raises none, and Dagster
itself treats an interrupt like any error that a retry policy covers. So the signal is noted here as well, whatever
becomes of its error; what would go on or try again asks first, and what waits in native code is cancelled.
"""

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from typing import TypeVar

Result = TypeVar("Result")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_MOST = 65_536
_LOOK = 0.2
"""Seconds between two looks for a signal, and between two attempts to cancel."""
_readers: list[socket.socket] = []
"""Where the numbers of the signals arrive, of the innermost block last. Python's C code writes them there at once."""
_cancels: dict[object, Callable[[], object]] = {}
_cancelling = threading.Lock()
"""Held while what is in ``_cancels`` is called or changed."""


@contextmanager
def watched() -> Iterator[None]:
    """Inside it, signals are noted. Only the main thread can do that; on others nothing changes."""
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
        thread = threading.Thread(target=_cancel_when_told, args=(ended,), name="interrupts", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            _readers.remove(reader)
            signal.set_wakeup_fd(before)


def _cancel_when_told(ended: threading.Event) -> None:
    # A call that has not begun yet cannot be cancelled, so this is repeated.
    while not ended.wait(_LOOK):
        if is_told():
            with _cancelling:
                for cancel in _cancels.values():
                    # The call may end by itself at the same moment.
                    with suppress(Exception):
                        cancel()


@contextmanager
def cancelled_by(cancel: Callable[[], object]) -> Iterator[None]:
    """Inside it, what runs is cancelled if the process is told to stop while signals are :func:`watched`.

    Args:
        cancel: is called from another thread, again and again, once a signal came: native code may go on for minutes
            before Python raises anything. Afterwards it is not called any more, nor running.
    """
    key = object()
    with _cancelling:
        _cancels[key] = cancel
    try:
        yield
    finally:
        with _cancelling:
            del _cancels[key]


def off_main_thread(call: Callable[[], Result]) -> Result:
    """Make a call on a thread of its own, and wait for its end, while signals are :func:`watched`.

    For native code that puts a handler of its own in the place of Python's while it is called on the main thread.
    """
    if not _readers or threading.current_thread() is not threading.main_thread():
        return call()
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised by who waits
            future.set_exception(error)

    threading.Thread(target=run, name="off the main thread", daemon=True).start()
    interrupt: BaseException | None = None
    while not future.done():
        try:
            wait([future])
        except BaseException as error:  # noqa: BLE001 - raised below
            # Raised after the call has ended: the caller closes what the call uses.
            interrupt = error
    if interrupt:
        raise interrupt
    return future.result()


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

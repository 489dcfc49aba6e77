"""A bucket whose requests are cancelled when the process is told to stop.

obstore's plain calls block until the store answers or all attempts have failed, which may take minutes. Its
asynchronous calls can be cancelled. Here they run on a loop in a thread, and the caller waits for them.
"""

import asyncio
import functools
import os
import threading
from collections.abc import AsyncIterable, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Literal, TypeVar

from user_pipeline.interrupts import cancelled_by

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

    from obstore import Bytes, GetResult, ObjectMeta
    from obstore.store import S3Store

Result = TypeVar("Result")
_Piece = bytes


class BucketStore:
    """What the platform uses of a store of obstore, by the same names."""

    def __init__(self, store: "S3Store") -> None:
        self._store = store

    def get(self, path: str) -> "BucketObject":
        """An object; its content comes when it is read."""
        return BucketObject(_wait(lambda: self._store.get_async(path)))

    def put(
        self, path: str, file: "BinaryIO | Path | bytes", *, mode: "Literal['create', 'overwrite'] | None" = None
    ) -> None:
        """Store an object, whole or not at all."""
        _wait(lambda: self._store.put_async(path, file, mode=mode))

    def delete(self, paths: str | Sequence[str]) -> None:
        """Delete objects."""
        _wait(lambda: self._store.delete_async(paths))

    def copy(self, source: str, target: str) -> None:
        """Copy an object within the bucket."""
        _wait(lambda: self._store.copy_async(source, target))

    def list(self, prefix: str | None = None, *, chunk_size: int = 50) -> "Iterator[Sequence[ObjectMeta]]":
        """The objects below a prefix, a page at a time."""
        return _each(self._store.list(prefix, chunk_size=chunk_size))


class BucketObject:
    """An object that was found.

    Attributes:
        meta: what the store says of it.
    """

    def __init__(self, result: "GetResult") -> None:
        self._result = result
        self.meta = result.meta

    def stream(self) -> Iterator[_Piece]:
        """Its content, a piece at a time."""
        return _each(self._result.stream())

    def bytes(self) -> "Bytes":
        """All of its content."""
        return _wait(self._result.bytes_async)


def _each(stream: AsyncIterable[Result]) -> Iterator[Result]:
    """What an asynchronous stream gives."""
    pieces = aiter(stream)
    while (piece := _wait(lambda: anext(pieces, None))) is not None:
        yield piece


def _wait(request: Callable[[], Awaitable[Result]]) -> Result:
    """The result of a request, which is made on the loop.

    Raises:
        KeyboardInterrupt: it was cancelled, as the process was told to stop.
    """

    async def made() -> Result:
        return await request()

    pending = asyncio.run_coroutine_threadsafe(made(), _loop(os.getpid()))
    try:
        with cancelled_by(pending.cancel):
            return pending.result()
    except CancelledError:
        raise KeyboardInterrupt("the process was told to stop") from None
    except BaseException:
        # The error may be that of a signal, raised while the request was running.
        pending.cancel()
        raise


@functools.lru_cache(maxsize=1)
def _loop(process: int) -> asyncio.AbstractEventLoop:
    """The loop, on a thread that lives as long as the process."""
    del process  # a key of the cache: a forked process does not have the thread of its parent
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="bucket", daemon=True).start()
    return loop

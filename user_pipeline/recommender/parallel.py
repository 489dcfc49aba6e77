"""Running numeric blocks on threads without letting the number of threads show in the result."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from threadpoolctl import threadpool_limits

Item = TypeVar("Item")
Result = TypeVar("Result")


def threads(n_threads: int | None) -> int:
    """The number of threads asked for, or one for every core this process may use."""
    return n_threads or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


def run_blocks(work: Callable[[Item], Result], items: Iterable[Item], n_threads: int | None) -> Iterator[Result]:
    """``map(work, items)`` on threads, in order, with no more items alive than twice the threads.

    NumPy and SciPy release the interpreter's lock inside their loops, so threads are enough. A plain
    ``Executor.map`` would draw every item first, and with it all their memory. One item waits for each thread, so
    that no thread is idle until the oldest of the others is done.
    """
    limit = 2 * threads(n_threads)
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(limit // 2) as pool:
        for item in items:
            if len(waiting) == limit:
                yield waiting.popleft().result()
            waiting.append(pool.submit(work, item))
        while waiting:
            yield waiting.popleft().result()


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """One BLAS thread for each of ours.

    A factorisation split over BLAS threads rounds differently with their number; and two pools at once were
    measured to be five times slower than one.
    """
    with threadpool_limits(1, user_api="blas"):
        yield

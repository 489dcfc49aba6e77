"""Several writers at once."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


def at_once(workers: int, work: Callable[[int], None]) -> None:
    """Each on a thread of its own, all starting together."""
    barrier = threading.Barrier(workers)

    def start(number: int) -> None:
        barrier.wait()
        work(number)

    with ThreadPoolExecutor(workers) as pool:
        for future in [pool.submit(start, number) for number in range(workers)]:
            future.result()

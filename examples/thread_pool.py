"""Producers and consumers as tasks of a `ThreadPoolExecutor`, on a queue for threads.

`IterableQueue.threaded()` hands items over as they are: nothing is pickled, so they may be open
files, locks, or functions.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from iterable_queue import Consumer, IterableQueue, Producer

Job = Callable[[], int]


def produce(out: Producer[Job], start: int) -> None:
    with out:
        for n in range(start, start + 10):
            out.put(partial(pow, n, 2))


def consume(jobs: Consumer[Job]) -> int:
    with jobs:
        return sum(job() for job in jobs)


def main() -> None:
    with ThreadPoolExecutor(max_workers=5) as pool, IterableQueue[Job].threaded(maxsize=8) as iq:
        sums = [pool.submit(consume, iq.get_consumer()) for _ in range(2)]
        sources = [pool.submit(produce, iq.get_producer(), 10 * i) for i in range(3)]
    for source in sources:
        source.result()
    print("sum of squares:", sum(each.result() for each in sums))


if __name__ == "__main__":
    main()

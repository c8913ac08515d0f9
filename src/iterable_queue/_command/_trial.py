"""`python -m iterable_queue._command._trial METHOD`: a queue tried with one process of its own.

The doctor runs this as a program, so that whatever hangs or crashes here can be ended from outside.
It prints how many seconds the death of a process went unnoticed, or ends with a traceback.
"""

from __future__ import annotations

import multiprocessing
import sys
import threading
from multiprocessing.process import BaseProcess
from typing import Any, Final

from iterable_queue import Consumer, IterableQueue, Producer, ProducerFailed
from iterable_queue._clock import monotonic

ITEMS: Final = 1_000
DEADLINE_S: Final = 10.0
"""For each step."""


def square(numbers: Consumer[int], squares: Producer[int]) -> None:
    """The other process: it works, and then waits to be killed."""
    for number in numbers:
        squares.put(number * number)
    threading.Event().wait(3 * DEADLINE_S)


def try_method(method: str) -> float:
    """Send items there and back, kill the process, and wait to be told.

    Returns how long that took, in seconds. Raises whatever goes wrong.
    """
    context: Any = multiprocessing.get_context(method)
    with IterableQueue[int]() as numbers, IterableQueue[int](100) as squares:
        results = squares.get_consumer()
        out = numbers.get_producer()
        process: BaseProcess = context.Process(
            target=square, args=(numbers.get_consumer(), squares.get_producer()), daemon=True
        )
        process.start()
    try:
        with out:
            out.put_many(range(ITEMS))
        got = [results.get(timeout=DEADLINE_S) for _ in range(ITEMS)]
        if got != [number * number for number in range(ITEMS)]:
            raise AssertionError("other items came back than should have")
        if not numbers.join(timeout=DEADLINE_S):
            raise AssertionError("join() has not seen that all items are finished")
        process.kill()
        killed = monotonic()
        try:
            results.get(timeout=DEADLINE_S)
        except ProducerFailed:
            return monotonic() - killed
        raise AssertionError("an item came that nobody has put")
    finally:
        process.kill()
        process.join(DEADLINE_S)


if __name__ == "__main__":
    print(try_method(sys.argv[1]))

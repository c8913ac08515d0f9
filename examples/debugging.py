"""Why does nothing move? `kill -USR1 PID` has the program say it, while it goes on waiting.

Two things are written to stderr: where each thread is (`faulthandler`), and who is open, where it
was made, and who waits for what (`iq.explain()`). Below, a producer was made that nobody closes.
"""

import faulthandler
import os
import signal
import sys
from threading import Event, Thread
from types import FrameType
from typing import Any

from iterable_queue import Consumer, IterableQueue, IterableQueueError, Producer


def explain_on_signal(iq: IterableQueue[Any], signum: signal.Signals = signal.SIGUSR1) -> Event:
    """Have *signum* write both; call this in the main thread. The event is set after each time.

    Any process that has the queue may call it; processes that have only an endpoint may at least
    call `faulthandler.register(signum)`.
    """
    told = Event()

    def explain() -> None:
        try:
            text = iq.explain()
        except IterableQueueError as error:
            text = f"{type(error).__name__}: {error}"
        print(f"{iq!r}\n{text}", file=sys.stderr, flush=True)
        told.set()

    def handler(number: int, frame: FrameType | None) -> None:
        # In a thread of its own: this one may be inside a call of the queue that it asks.
        Thread(target=explain, name="explain", daemon=True).start()

    signal.signal(signum, handler)
    # Written in C, at once, also if the main thread never comes to run a handler; then that one.
    faulthandler.register(signum, all_threads=True, chain=True)
    return told


def produce(out: Producer[int]) -> None:
    with out:
        out.put(1)


def consume(numbers: Consumer[int]) -> None:
    with numbers:
        print("sum:", sum(numbers))


def main() -> None:
    with IterableQueue[int]() as iq:
        told = explain_on_signal(iq)
        forgotten = iq.get_producer()
        threads = [
            Thread(target=produce, args=(iq.get_producer(),), name="produce"),
            Thread(target=consume, args=(iq.get_consumer(),), name="consume"),
        ]
        for thread in threads:
            thread.start()
    while not (iq.statistics().finished and iq.statistics().blocked_consumers):
        iq.join(timeout=0.01)  # until all that was put has been worked off
    os.kill(os.getpid(), signal.SIGUSR1)  # what you do from a shell
    told.wait(10)
    forgotten.close()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()

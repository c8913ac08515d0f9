"""Ctrl-C that keeps what was done: the processes stop, the output is whole lines, status 130.

A terminal sends SIGINT to every process of the program. Only the main one is to act on it: the
others are started with the signal blocked. Its KeyboardInterrupt leaves the queues' `with` blocks,
which cancels the queues: each worker that puts or gets is told so, and ends.
"""

import argparse
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from itertools import count, islice
from multiprocessing import Process, resource_tracker
from typing import TextIO

from iterable_queue import Cancelled, Consumer, ConsumersGone, IterableQueue, Producer

INTERRUPTED = 130
"""The exit status that a shell expects of a program which Ctrl-C has ended."""

STOPPED = (Cancelled, ConsumersGone)
"""What a worker gets when its queue was cancelled, or all who took from it have stopped."""


def square(numbers: Consumer[int], results: Producer[tuple[int, int]]) -> None:
    try:
        with numbers, results:
            for n in numbers:
                results.put((n, n * n))
    except STOPPED:
        pass  # the main process says so, once


def feed(out: Producer[int], limit: int | None) -> None:
    try:
        with out:
            out.put_many(islice(count(), limit))
    except STOPPED:
        pass


@contextmanager
def hidden_from_ctrl_c() -> Generator[None]:
    """Processes started in this block inherit a signal mask under which they never see SIGINT."""
    resource_tracker.ensure_running()  # starting it unblocks SIGINT: do that before, not between
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def work(out: TextIO, limit: int | None) -> None:
    processes: list[Process] = []
    try:
        with (
            IterableQueue[int](100) as numbers,
            IterableQueue[tuple[int, int]](100) as results,
            results.get_consumer() as finished,
        ):
            processes = [
                Process(target=square, args=(numbers.get_consumer(), results.get_producer()))
                for _ in range(2)
            ]
            processes.append(Process(target=feed, args=(numbers.get_producer(), limit)))
            with hidden_from_ctrl_c():
                for process in processes:
                    process.start()
            numbers.close()
            results.close()
            for n, squared in finished:
                out.write(f"{n} {squared}\n")
    finally:
        for process in processes:
            if process.pid is not None:
                process.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", metavar="FILE")
    parser.add_argument("--limit", type=int, help="how many numbers to square; all, if not given")
    options = parser.parse_args()
    with open(options.output, "w", encoding="ascii") as out:
        try:
            work(out, options.limit)
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # another one would not help
            print(f"interrupted: {options.output} has what was done", file=sys.stderr)
            return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())

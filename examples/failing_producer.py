"""What the consumers see when a producer raises in the middle of its work.

They get everything that was put, by the one that failed too. Then, where the loop would have
ended as if all were well, `ProducerFailed` is raised in each of them.

The traceback on stderr is the failing process's own: multiprocessing prints it.
"""

import argparse
import multiprocessing
import sys
from multiprocessing import Process

from iterable_queue import Consumer, IterableQueue, Producer, ProducerFailed


def produce(out: Producer[int], start: int) -> None:
    with out:  # left by an exception, this tells the consumers why there will be no more
        for n in range(start, start + 5):
            if n == 13:
                raise ValueError(f"cannot make {n}")
            out.put(n)


def consume(numbers: Consumer[int], name: str) -> None:
    got: list[int] = []
    try:
        for n in numbers:
            got.append(n)
        ending = "the end: everything has been put and taken"
    except ProducerFailed as failed:
        ending = (
            f"ProducerFailed: {failed}\n"
            f"  its cause: {failed.__cause__!r}\n"
            f"  failures in all: {len(failed.failures)}"
        )
    # In one write, so that the lines of two processes do not mix.
    sys.stdout.write(f"{name} got {got}, then\n  {ending}\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--start-method", choices=multiprocessing.get_all_start_methods())
    multiprocessing.set_start_method(parser.parse_args().start_method)
    with IterableQueue[int]() as iq:
        workers = [Process(target=produce, args=(iq.get_producer(), 10 * i)) for i in range(3)]
        workers += [
            Process(target=consume, args=(iq.get_consumer(), name)) for name in ("Ann", "Bob")
        ]
        for worker in workers:
            worker.start()
    for worker in workers:
        worker.join()

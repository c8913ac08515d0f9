"""What the consumers see when a producer's process is killed in the middle of its work.

Nobody is left to say what happened, as when the system runs out of memory. The consumers still
get everything that was put, and within two seconds `ProducerFailed` instead of a normal end or
a wait for ever.
"""

import argparse
import multiprocessing
import os
import signal
import sys
from multiprocessing import Process

from iterable_queue import Consumer, IterableQueue, Producer, ProducerFailed


def produce(out: Producer[int], start: int) -> None:
    with out:
        for n in range(start, start + 5):
            if n == 13:
                os.kill(os.getpid(), signal.SIGKILL)
            out.put(n)


def consume(numbers: Consumer[int], name: str) -> None:
    got: list[int] = []
    try:
        for n in numbers:
            got.append(n)
        ending = "the end: everything has been put and taken"
    except ProducerFailed as failed:
        ending = f"ProducerFailed: {failed}"
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
    print(f"exit statuses: {[worker.exitcode for worker in workers]}")

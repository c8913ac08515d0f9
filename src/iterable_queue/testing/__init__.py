"""For test suites: whether a queue keeps the promises of `IterableQueue`.

`check_queue` runs the promises, each under its name, against queues that you make: of a channel,
a test double or a wrapper of your own. It needs no test runner and raises one `ConformanceError`
that names every promise that was broken, with what was expected and what was seen:

    from iterable_queue import IterableQueue
    from iterable_queue.testing import check_queue

    def test_my_queue() -> None:
        print(check_queue(MyQueue, fifo=True))

With a multiprocessing context the actors of each promise run in processes, and what is promised
between processes is checked as well:

    if __name__ == "__main__":
        check_queue(IterableQueue, processes=multiprocessing.get_context("spawn"))

`promises()` lists the names, so that each can be a test of its own (`only=[name]`).

An implementation of your own of one end, a double or a wrapper, is held by `check_producer` and
`check_consumer` to what one endpoint by itself promises:

    def make() -> tuple[Producer[str], Callable[[], list[str]]]:
        double = ListProducer()
        return double, lambda: double.items

    check_producer(make)
"""

from iterable_queue.testing._conformance import (
    ConformanceError,
    MadeProducer,
    Outcome,
    ProcessContext,
    ProcessLike,
    Promise,
    QueueLike,
    Report,
    Result,
    check_consumer,
    check_producer,
    check_queue,
    promises,
)

__all__ = [
    "ConformanceError",
    "MadeProducer",
    "Outcome",
    "ProcessContext",
    "ProcessLike",
    "Promise",
    "QueueLike",
    "Report",
    "Result",
    "check_consumer",
    "check_producer",
    "check_queue",
    "promises",
]

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

`races` decides, in real threads and processes, which of two calls comes first, who is slow, and
who is killed where:

    with races(iq) as race:
        race.order(race.producer(out).after_close, race.consumer(numbers).before_get)
        ...  # start the processes, and wait for their end
"""

from iterable_queue.testing._conformance import (
    ConformanceError,
    Outcome,
    ProcessContext,
    ProcessLike,
    Promise,
    QueueLike,
    Report,
    Result,
    check_queue,
    promises,
)
from iterable_queue.testing._points import (
    ConsumerPoints,
    Point,
    ProducerPoints,
    QueuePoints,
    WorkerPoints,
)
from iterable_queue.testing._race_log import Passage
from iterable_queue.testing._raced import RaceError
from iterable_queue.testing._races import Gate, Races, races

__all__ = [
    "ConformanceError",
    "ConsumerPoints",
    "Gate",
    "Outcome",
    "Passage",
    "Point",
    "ProcessContext",
    "ProcessLike",
    "ProducerPoints",
    "Promise",
    "QueueLike",
    "QueuePoints",
    "RaceError",
    "Races",
    "Report",
    "Result",
    "WorkerPoints",
    "check_queue",
    "promises",
    "races",
]

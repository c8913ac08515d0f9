"""Queues for pools of producers and pools of consumers, which know when they are done.

    from multiprocessing import Process
    from iterable_queue import Consumer, IterableQueue, Producer

    def produce(out: Producer[int], start: int) -> None:
        with out:
            for n in range(start, start + 10):
                out.put(n)

    def consume(numbers: Consumer[int]) -> None:
        for n in numbers:
            print(n)

    if __name__ == "__main__":
        with IterableQueue[int]() as iq:
            workers = [Process(target=produce, args=(iq.get_producer(), 10 * i)) for i in range(3)]
            workers += [Process(target=consume, args=(iq.get_consumer(),)) for _ in range(5)]
            for w in workers:
                w.start()
        for w in workers:
            w.join()

A consumer's iteration ends when the queue was closed (leaving `with iq:` does that), every producer
has closed, and nothing is left. If a producer failed or was killed, it ends in `ProducerFailed`
instead. `iterable_queue.testing` has what test suites need.
"""

from queue import Empty, Full

from iterable_queue._errors import (
    Cancelled,
    ChannelBroken,
    ConsumerClosed,
    ConsumerQueueClosedException,
    ConsumersGone,
    Done,
    EndpointElsewhere,
    ItemError,
    ItemsLost,
    IterableQueueError,
    IterableQueueException,
    IterableQueueIllegalStateException,
    ProducerClosed,
    ProducerFailed,
    ProducerQueueClosedException,
    QueueClosed,
    RemoteError,
    RemoteTraceback,
    WouldDeadlock,
)
from iterable_queue._protocols import (
    Consumer,
    Context,
    Endpoint,
    Producer,
    Recording,
    Statistics,
    SupportsPutGet,
    Worker,
)
from iterable_queue._queue import IterableQueue

__version__ = "2.0.0"

__all__ = [
    "Cancelled",
    "ChannelBroken",
    "Consumer",
    "ConsumerClosed",
    "ConsumerQueueClosedException",
    "ConsumersGone",
    "Context",
    "Done",
    "Empty",
    "Endpoint",
    "EndpointElsewhere",
    "Full",
    "ItemError",
    "ItemsLost",
    "IterableQueue",
    "IterableQueueError",
    "IterableQueueException",
    "IterableQueueIllegalStateException",
    "Producer",
    "ProducerClosed",
    "ProducerFailed",
    "ProducerQueueClosedException",
    "QueueClosed",
    "Recording",
    "RemoteError",
    "RemoteTraceback",
    "Statistics",
    "SupportsPutGet",
    "Worker",
    "WouldDeadlock",
]

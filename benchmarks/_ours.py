"""This library as a side: by default, with a context, for threads; item by item or in lists."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Literal

from benchmarks._crew import Crew, ProcessCrew
from benchmarks._job import Job
from benchmarks._sides import TIMED, WARM_UP, Link, Phase, Receiver, Sender, Unavailable, put_each

if TYPE_CHECKING:
    from iterable_queue import Consumer, IterableQueue, Producer

Kind = Literal["default", "context", "threaded"]
Calls = Literal["put", "put_many", "put_many, get_many"]

_LIST = 1_000


class OurSender:
    """``put`` one by one or ``put_many``, then ``close``."""

    def __init__(self, producer: Producer[object], many: bool) -> None:
        self._producer = producer
        self._many = many

    def send(self, items: Iterable[object]) -> None:
        if self._many:
            self._producer.put_many(items)
        else:
            put_each(self._producer.put, items)

    def end(self, phase: Phase) -> None:
        if phase == TIMED:
            self._producer.close()

    def put_one(self, item: object) -> None:
        self._producer.put(item)


class OurReceiver:
    """Iteration. The warm-up takes exactly its share, since only the queue's end ends the loop."""

    def __init__(self, consumer: Consumer[object]) -> None:
        self._consumer = consumer

    def runs(self, phase: Phase, share: int) -> Iterator[Iterable[object]]:
        yield islice(self._consumer, share) if phase == WARM_UP else self._consumer

    def take_one(self) -> object:
        return self._consumer.get()


class OurReceiverOfLists(OurReceiver):
    """Lists, by ``get_many``."""

    def __init__(self, consumer: Consumer[object], done: type[Exception]) -> None:
        super().__init__(consumer)
        self._done = done

    def runs(self, phase: Phase, share: int) -> Iterator[Iterable[object]]:
        if phase == WARM_UP:
            while share:
                items = self._consumer.get_many(min(share, _LIST))
                share -= len(items)
                yield items
            return
        while True:
            try:
                items = self._consumer.get_many(_LIST)
            except self._done:
                return
            yield items


class OurLink:
    """The queue, closed before its workers start: their endpoints are made by then."""

    def __init__(
        self, queue: IterableQueue[object], job: Job, calls: Calls, done: type[Exception]
    ) -> None:
        self._queue = queue
        self._calls: Calls = calls
        self._done = done
        self._producers = [queue.get_producer() for _ in range(job.producers)]
        self._consumers = [queue.get_consumer() for _ in range(job.consumers)]
        queue.close()

    def sender(self, index: int) -> Sender:
        return OurSender(self._producers[index], self._calls != "put")

    def receiver(self, index: int) -> Receiver:
        if self._calls == "put_many, get_many":
            return OurReceiverOfLists(self._consumers[index], self._done)
        return OurReceiver(self._consumers[index])


class Ours:
    """The side. Imports the library only when it is made, from the path that the job named."""

    # Of the checkout: what is installed under that name may be any other release.
    distribution = ""

    def __init__(self, kind: Kind, calls: Calls = "put") -> None:
        import iterable_queue

        if not hasattr(iterable_queue.IterableQueue, "threaded"):
            raise Unavailable("what is importable as iterable_queue is an old release")
        self._library = iterable_queue
        self._kind = kind
        self._calls: Calls = calls

    def _make(self, crew: Crew, maxsize: int) -> IterableQueue[object]:
        if self._kind == "threaded":
            return self._library.IterableQueue[object].threaded(maxsize)
        if self._kind == "context":
            assert isinstance(crew, ProcessCrew)
            return self._library.IterableQueue[object](maxsize, context=crew.context)
        return self._library.IterableQueue[object](maxsize)

    def connect(self, crew: Crew, job: Job) -> Link:
        return OurLink(self._make(crew, job.maxsize), job, self._calls, self._library.Done)

    def make_and_close(self, crew: Crew) -> None:
        self._make(crew, 0).close()

    def endpoint_maker(self, crew: Crew) -> Callable[[], None]:
        """Makes and closes one producer and one consumer."""
        queue = self._make(crew, 0)

        def make() -> None:
            queue.get_producer().close()
            queue.get_consumer().close()

        return make

"""The peers as sides, each with its quirks. Third-party modules are untyped: seen by Protocols.

Every peer is used by the call that serves it best where its calls differ, and by each call where
they differ in what they promise (quick-queue).
"""

from __future__ import annotations

import os
import pickle
import queue
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from itertools import islice
from typing import Literal, Protocol, cast

from benchmarks._crew import Crew, ProcessCrew, StdContext
from benchmarks._job import Job
from benchmarks._sides import (
    TIMED,
    WARM_UP,
    Ends,
    Link,
    Phase,
    Queueish,
    Receiver,
    Sender,
    SentinelLink,
    SentinelReceiver,
    SentinelSender,
    Unavailable,
    Workshop,
    put_each,
)


def _context(crew: Crew) -> StdContext:
    assert isinstance(crew, ProcessCrew), "this side is for processes"
    return crew.context


# --- the standard library -------------------------------------------------------------------------


class MultiprocessingQueue:
    """``multiprocessing.Queue`` with sentinels.

    Its ``put`` returns before the item is pickled (a feeder thread does that), which the others'
    doesn't; the time ends at the consumers, so that is no advantage here.
    """

    distribution = ""

    def connect(self, crew: Crew, job: Job) -> Link:
        made = _context(crew).Queue(job.maxsize)
        return SentinelLink(cast("Queueish", made), crew, job)

    def make_and_close(self, crew: Crew) -> None:
        _context(crew).Queue().close()


class ThreadQueue:
    """``queue.Queue`` with sentinels, between threads."""

    distribution = ""

    def connect(self, crew: Crew, job: Job) -> Link:
        return SentinelLink(queue.Queue[object](job.maxsize), crew, job)

    def make_and_close(self, crew: Crew) -> None:
        queue.Queue[object]()


class ThreadSimpleQueue:
    """``queue.SimpleQueue`` with sentinels: written in C, no bound, knows nothing of an end."""

    distribution = ""

    def connect(self, crew: Crew, job: Job) -> Link:
        if job.maxsize:
            raise Unavailable("queue.SimpleQueue can't be bounded")
        return SentinelLink(queue.SimpleQueue[object](), crew, job)

    def make_and_close(self, crew: Crew) -> None:
        queue.SimpleQueue[object]()


# --- faster-fifo ----------------------------------------------------------------------------------

# A ring of 1 MB is its default. More room made put_many up to a third faster and put no slower, so
# it gets more. An item must fit in whole; for large ones the ring holds 64 of them.
_RING_BYTES = 64_000_000
# 100 to 5,000 items a call were tried: no difference beyond the noise.
_FIFO_BATCH = 1_000


class _Fifo(Queueish, Protocol):
    """``faster_fifo.Queue``.

    Its calls give up after 10 s by default, which stays so here: a measurement in which nothing
    moves for 10 s ends with its Full or Empty.
    """

    def put_many(self, items: list[object], /) -> None: ...

    def get_many(self) -> list[object]: ...

    def close(self) -> None: ...


class _FifoModule(Protocol):
    def Queue(self, max_size_bytes: int, maxsize: int) -> _Fifo: ...


class FasterFifo:
    """faster-fifo: a ring in shared memory with pthread locks; ``put`` and ``get``."""

    distribution = "faster-fifo"

    def __init__(self) -> None:
        self._module = cast("_FifoModule", import_module("faster_fifo"))

    def make(self, maxsize: int) -> _Fifo:
        # maxsize counts items; it has no value for "unbounded", 10**9 is its default.
        return self._module.Queue(_RING_BYTES, maxsize or 10**9)

    def connect(self, crew: Crew, job: Job) -> Link:
        return SentinelLink(self.make(job.maxsize), crew, job)

    def make_and_close(self, crew: Crew) -> None:
        # At the size of its default: what is asked is the cost of a queue, not of 64 MB.
        self._module.Queue(1_000_000, 10**9).close()


class FasterFifoMany(FasterFifo):
    """The same by ``put_many`` and ``get_many``, for one producer and one consumer."""

    def connect(self, crew: Crew, job: Job) -> Link:
        # get_many takes whatever is there, sentinels meant for others too.
        if job.consumers != 1:
            raise Unavailable("by get_many only with one consumer")
        return _FifoManyLink(self.make(job.maxsize), crew, job)


class _FifoManyLink:
    def __init__(self, fifo: _Fifo, workshop: Workshop, job: Job) -> None:
        self._fifo = fifo
        self._ends = Ends(workshop, job)

    def sender(self, index: int) -> Sender:
        return _FifoManySender(self._fifo)

    def receiver(self, index: int) -> Receiver:
        return _FifoManyReceiver(self._fifo, self._ends)


class _FifoManySender(SentinelSender):
    def __init__(self, fifo: _Fifo) -> None:
        super().__init__(fifo)
        self._fifo = fifo

    def send(self, items: Iterable[object]) -> None:
        rest = iter(items)
        while batch := list(islice(rest, _FIFO_BATCH)):
            self._fifo.put_many(batch)


class _FifoManyReceiver(SentinelReceiver):
    def __init__(self, fifo: _Fifo, ends: Ends) -> None:
        super().__init__(fifo, ends)
        self._fifo = fifo

    def runs(self, phase: Phase, share: int) -> Iterator[Iterable[object]]:
        while True:
            batch = self._fifo.get_many()
            ends = batch.count(None)
            yield [item for item in batch if item is not None] if ends else batch
            if ends and self._ends.reached(phase, ends, self._stop):
                return


# --- quick-queue ----------------------------------------------------------------------------------

QuickCall = Literal["put", "put_iterable", "put_bucket"]

# put_bucket with 100 items: half of the rate; with 10,000: three quarters.
_BUCKET = 1_000


class _Quick(Queueish, Protocol):
    """``quick_queue.QQueue``: a multiprocessing.Queue of lists ("buckets").

    Quirks: ``put`` only collects; an item is sent when its bucket is full or ``put_remain`` is
    called, so an item may wait for ever for the next one. ``maxsize`` counts buckets. A bucket is
    full when it has one item *more* than its size. A consumer that stops loses the rest of its
    bucket. ``get`` pops from the front of a list.
    """

    def put_remain(self) -> None: ...

    def put_iterable(self, items: Iterable[object], /) -> None: ...

    def put_bucket(self, items: list[object] | None, /) -> None: ...

    def get_bucket(self) -> list[object] | None: ...

    def close(self) -> None: ...


class _QuickModule(Protocol):
    def QQueue(self, *, maxsize: int, size_bucket_list: int | None, ctx: object) -> _Quick: ...


class QuickQueue:
    """quick-queue, by one of its calls."""

    distribution = "quick-queue"

    def __init__(self, call: QuickCall) -> None:
        self._module = cast("_QuickModule", import_module("quick_queue"))
        self._call: QuickCall = call

    def connect(self, crew: Crew, job: Job) -> Link:
        if job.maxsize or job.payload != "ints":
            # A bound in items needs buckets of one item. Size 0 would mean "choose yourself", and
            # size 1 is two items in a bucket: so each put is followed by put_remain. Buckets of
            # large items gain nothing either: one copy more.
            made = self._module.QQueue(maxsize=job.maxsize, size_bucket_list=1, ctx=_context(crew))
            return _QuickLink(made, "flushed", crew, job)
        # Unbounded with buckets of 1,000 was faster for put and put_iterable than its own sensor
        # of the best size, which asks the queue's size at every bucket; for put_bucket, the
        # bound of 1,000 buckets that is its default.
        maxsize = 1_000 if self._call == "put_bucket" else 0
        made = self._module.QQueue(maxsize=maxsize, size_bucket_list=1_000, ctx=_context(crew))
        return _QuickLink(made, self._call, crew, job)

    def make_and_close(self, crew: Crew) -> None:
        self._module.QQueue(maxsize=0, size_bucket_list=None, ctx=_context(crew)).close()


class _QuickLink:
    def __init__(
        self, quick: _Quick, call: QuickCall | Literal["flushed"], workshop: Workshop, job: Job
    ) -> None:
        self._quick = quick
        self._call: QuickCall | Literal["flushed"] = call
        self._ends = Ends(workshop, job)

    def sender(self, index: int) -> Sender:
        match self._call:
            case "put":
                return _QuickSender(self._quick)
            case "put_iterable":
                return _QuickIterableSender(self._quick)
            case "put_bucket":
                return _QuickBucketSender(self._quick)
            case "flushed":
                return _QuickFlushedSender(self._quick)

    def receiver(self, index: int) -> Receiver:
        if self._call == "put_bucket":
            return _QuickBucketReceiver(self._quick, self._ends)
        return _QuickReceiver(self._quick, self._ends)


class _QuickSender:
    def __init__(self, quick: _Quick) -> None:
        self._quick = quick

    def send(self, items: Iterable[object]) -> None:
        put_each(self._quick.put, items)

    def end(self, phase: Phase) -> None:
        self._quick.put(None)
        self._quick.put_remain()

    def put_one(self, item: object) -> None:
        self._quick.put(item)
        self._quick.put_remain()


class _QuickIterableSender(_QuickSender):
    def send(self, items: Iterable[object]) -> None:
        self._quick.put_iterable(items)


class _QuickFlushedSender(_QuickSender):
    def send(self, items: Iterable[object]) -> None:
        put, put_remain = self._quick.put, self._quick.put_remain
        for item in items:
            put(item)
            put_remain()


class _QuickBucketSender(_QuickSender):
    """Hands over lists that the user made: what ``put_bucket`` sends is one item to its queue."""

    def send(self, items: Iterable[object]) -> None:
        rest = iter(items)
        while bucket := list(islice(rest, _BUCKET)):
            self._quick.put_bucket(bucket)

    def end(self, phase: Phase) -> None:
        self._quick.put_bucket(None)


class _QuickReceiver(SentinelReceiver):
    def __init__(self, quick: _Quick, ends: Ends) -> None:
        super().__init__(quick, ends)
        self._quick = quick

    def _stop(self) -> None:
        self._quick.put(None)
        self._quick.put_remain()


class _QuickBucketReceiver(_QuickReceiver):
    def runs(self, phase: Phase, share: int) -> Iterator[Iterable[object]]:
        while True:
            yield from iter(self._quick.get_bucket, None)
            if self._ends.reached(phase, 1, self._stop):
                return

    def _stop(self) -> None:
        self._quick.put_bucket(None)


# --- release 1.x of this package ------------------------------------------------------------------


class _OldProducer(Protocol):
    def put(self, item: object, /) -> object: ...

    def close(self) -> None: ...


class _OldConsumer(Protocol):
    def get(self) -> object: ...

    def __iter__(self) -> Iterator[object]: ...

    def close(self) -> None: ...


class _OldQueue(Protocol):
    def get_producer(self) -> _OldProducer: ...

    def get_consumer(self) -> _OldConsumer: ...

    def close(self) -> None: ...


class _OldModule(Protocol):
    def IterableQueue(self, maxsize: int) -> _OldQueue: ...


class Release1:
    """Release 1.2.2 of this package: a queue in a server process, and one more process that counts.

    Quirks: two processes for each queue, started when it is made. An item passes through sockets
    to the server and back. It always uses the default start method.
    """

    distribution = "iterable-queue"

    def __init__(self) -> None:
        module = import_module("iterable_queue")
        if hasattr(module, "Producer"):
            raise Unavailable("what is importable as iterable_queue is not release 1.x")
        self._module = cast("_OldModule", module)

    def connect(self, crew: Crew, job: Job) -> Link:
        return _OldLink(self._module.IterableQueue(job.maxsize), job)

    def make_and_close(self, crew: Crew) -> None:
        self._module.IterableQueue(0).close()

    def endpoint_maker(self, crew: Crew) -> Callable[[], None]:
        """Makes one producer and one consumer.

        They are not closed: its bookkeeping takes a consumer's end before the queue's as an
        illegal state, and its process dies of it.
        """
        made = self._module.IterableQueue(0)

        def make() -> None:
            made.get_producer()
            made.get_consumer()

        return make


class _OldLink:
    def __init__(self, made: _OldQueue, job: Job) -> None:
        self._queue = made
        self._producers = [made.get_producer() for _ in range(job.producers)]
        self._consumers = [made.get_consumer() for _ in range(job.consumers)]
        made.close()

    def sender(self, index: int) -> Sender:
        return _OldSender(self._producers[index])

    def receiver(self, index: int) -> Receiver:
        return _OldReceiver(self._consumers[index])


class _OldSender:
    def __init__(self, producer: _OldProducer) -> None:
        self._producer = producer

    def send(self, items: Iterable[object]) -> None:
        put_each(self._producer.put, items)

    def end(self, phase: Phase) -> None:
        if phase == TIMED:
            self._producer.close()

    def put_one(self, item: object) -> None:
        self._producer.put(item)


class _OldReceiver:
    def __init__(self, consumer: _OldConsumer) -> None:
        self._consumer = consumer

    def runs(self, phase: Phase, share: int) -> Iterator[Iterable[object]]:
        yield islice(self._consumer, share) if phase == WARM_UP else self._consumer

    def take_one(self) -> object:
        return self._consumer.get()


# --- the limit ------------------------------------------------------------------------------------

_PIPE_WRITE_BYTES = 60_000
_PIPE_READ_BYTES = 65_536


class BarePipe:
    """The limit: each item pickled by itself, gathered into large writes to a pipe.

    One producer, one consumer, no lock, no bound, nobody to wake, and nothing is visible before
    60 kB of it are there: what any queue must do beyond that is what it costs. Each record is the
    pickle's length in one byte, then the pickle. A record of length 0 ends a phase.
    """

    distribution = ""

    def connect(self, crew: Crew, job: Job) -> Link:
        if (job.producers, job.consumers, job.payload) != (1, 1, "ints"):
            raise Unavailable("the bare pipe is for small items, one producer and one consumer")
        if job.start_method != "fork":
            raise Unavailable("the bare pipe needs fork, which hands its descriptors on")
        return _PipeLink()

    def make_and_close(self, crew: Crew) -> None:
        for descriptor in os.pipe():
            os.close(descriptor)


class _PipeLink:
    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def sender(self, index: int) -> Sender:
        return _PipeSender(self._write)

    def receiver(self, index: int) -> Receiver:
        return _PipeReceiver(self._read)


class _PipeSender:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def send(self, items: Iterable[object]) -> None:
        dumps, buffer = pickle.dumps, bytearray()
        for item in items:
            record = dumps(item, 5)
            buffer.append(len(record))
            buffer += record
            if len(buffer) >= _PIPE_WRITE_BYTES:
                _write_all(self._descriptor, buffer)
                buffer.clear()
        _write_all(self._descriptor, buffer)

    def end(self, phase: Phase) -> None:
        _write_all(self._descriptor, b"\0")

    def put_one(self, item: object) -> None:
        self.send((item,))


class _PipeReceiver:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def runs(self, phase: Phase, share: int) -> Iterator[Iterable[object]]:
        # The producer begins the next phase only after the barrier: nothing follows an end.
        yield self._items()

    def _items(self) -> Iterator[object]:
        loads, rest = pickle.loads, b""
        while data := os.read(self._descriptor, _PIPE_READ_BYTES):
            data = rest + data
            here, end = 0, len(data)
            while here < end:
                size = data[here]
                if not size:
                    return
                following = here + 1 + size
                if following > end:
                    break
                yield loads(data[here + 1 : following])
                here = following
            rest = data[here:]

    def take_one(self) -> object:
        data = os.read(self._descriptor, _PIPE_READ_BYTES)
        return cast("object", pickle.loads(data[1:]))


def _write_all(descriptor: int, data: bytes | bytearray) -> None:
    while data:
        written = os.write(descriptor, data)
        if written == len(data):
            return
        data = data[written:]

"""Workers: consumers that may also put, and when they count as producers."""

from __future__ import annotations

from collections import Counter
from queue import Empty
from typing import Any

from iterable_queue._errors import (
    ConsumerClosed,
    Done,
    IterableQueueError,
    ProducerClosed,
    ProducerFailed,
)
from iterable_queue._protocols import Worker
from iterable_queue.testing import _actors
from iterable_queue.testing._stage import (
    DEATH_S,
    Stage,
    dropping,
    holds,
    promise,
    promise_between_processes,
    raises,
    same,
)


@promise
def work_that_makes_work_ends(stage: Stage) -> None:
    """Workers that walk a tree through a queue of maxsize=1 see all of it, and then the end."""
    iq = stage.make(maxsize=1)
    workers = [stage.start(_actors.expand, iq.get_worker(), 3) for _ in range(3)]
    with iq, iq.get_producer() as out:
        out.put(5)
    seen = Counter(depth for worker in workers for depth in worker.result())
    same(seen, {depth: 3 ** (5 - depth) for depth in range(6)}, "the nodes seen, by depth")
    same(iq.join(5.0), True, "join()")


@promise
def a_worker_counts_as_a_producer_until_its_first_get(stage: Stage) -> None:
    """From get_worker() to its first get a worker may put, so the queue is not done."""
    iq = stage.make()
    source, worker, other = iq.get_consumer(), iq.get_worker(), iq.get_worker()
    iq.close()
    raises(Empty, source.get_nowait)
    same(iq.join(0.01), False, "join()")
    worker.put("from the start")
    same(source.get(), "from the start", "the item taken")
    raises(Empty, worker.get_nowait)
    raises(Empty, source.get_nowait)
    raises(Done, other.get)
    raises(Done, source.get)
    raises(Done, worker.get)


@promise
def a_worker_in_the_middle_of_an_item_counts_as_a_producer(stage: Stage) -> None:
    """From each item handed to a thread to its next get a worker may put: nobody sees Done."""
    iq = stage.make()
    out, source, worker = iq.get_producer(), iq.get_consumer(), iq.get_worker()
    out.put(1)
    out.close()
    iq.close()
    same(worker.get(), 1, "the item taken by the worker")
    raises(Empty, source.get_nowait)
    worker.put(2)
    same(source.get(), 2, "the item that the worker put")
    raises(Empty, source.get_nowait)
    worker.put(3)
    same(worker.get(), 3, "the item that the worker put, and takes itself")
    raises(Empty, source.get_nowait)
    same(iq.join(0.01), False, "join()")
    raises(Done, worker.get)
    raises(Done, source.get)
    same(iq.join(1.0), True, "join()")


@promise
def each_thread_of_a_worker_counts(stage: Stage) -> None:
    """While one thread of a worker has an item, another one's get waits, and takes what it puts."""
    iq = stage.make()
    worker = iq.get_worker()
    worker.put("first")
    iq.close()
    same(worker.get(), "first", "the item taken")
    other = stage.thread(_actors.consume, worker)
    stage.until_blocked(iq, consumers=1)
    worker.put("second")
    stage.until(lambda: iq.statistics().taken == 2, "the other thread takes the item")
    same(other.role.has("end"), False, "the other thread has ended while this one may put")
    raises(Done, worker.get)
    same(other.result(), ["second"], "the items taken by the other thread")


@promise
def idle_workers_are_done(stage: Stage) -> None:
    """Workers that all wait for each other's work get Done, all of them, when there is none."""
    iq = stage.make()
    workers = [stage.start(_actors.consume, iq.get_worker()) for _ in range(3)]
    stage.until_blocked(iq, consumers=3)
    iq.close()
    for worker in workers:
        same(worker.result(), [], "the items taken")


@promise
def after_done_a_worker_may_not_put(stage: Stage) -> None:
    """After Done a worker's put raises ProducerClosed; after its close too."""
    iq = stage.make()
    worker, closed = iq.get_worker(), iq.get_worker()
    closed.close()
    for call in (closed.put, closed.put_nowait):
        error = raises(IterableQueueError, call, 1)
        holds(isinstance(error, (ProducerClosed, ConsumerClosed)), f"it says closed: {error!r}")
    raises(ConsumerClosed, closed.get)
    iq.close()
    raises(Done, worker.get)
    for call in (worker.put, worker.put_nowait):
        raises(ProducerClosed, call, 1)
    same(iq.qsize(), 0, "qsize()")


@promise
def an_idle_worker_may_put_until_done(stage: Stage) -> None:
    """Where another consumer may still get an item, claimed or not, a worker may put one."""
    iq = stage.make()
    out, source, worker = iq.get_producer(), iq.get_consumer(), iq.get_worker()
    raises(Empty, worker.get_nowait)
    out.put_many(range(50))
    out.close()
    iq.close()
    taken = [source.get() for _ in range(49)]
    worker.put("more")
    taken += list(source)
    same(Counter(taken), Counter([*range(50), "more"]), "the items taken")
    raises(ProducerClosed, worker.put, "too late")


@promise
def an_idle_worker_may_put_while_an_item_may_come_back(stage: Stage) -> None:
    """With redelivery, a queue is not done as long as a consumer has an item in hand."""
    iq = stage.make(redeliver=True)
    out, source, worker = iq.get_producer(), iq.get_consumer(), iq.get_worker()
    raises(Empty, worker.get_nowait)
    out.put("item")
    out.close()
    iq.close()
    same(source.get(), "item", "the item taken")
    raises(Empty, worker.get_nowait)
    worker.put("more")
    same(source.get(), "more", "the item taken")
    raises(Done, source.get)
    raises(ProducerClosed, worker.put, "too late")


@promise
def a_workers_put_is_never_refused_for_maxsize(stage: Stage) -> None:
    """A bounded queue of workers can't deadlock on itself: their puts always find room."""
    iq = stage.make(maxsize=2)
    worker, source = iq.get_worker(), iq.get_consumer()
    for n in range(5):
        worker.put(n)
        worker.put_nowait(n)
    worker.put_many(range(5))
    same(iq.qsize(), 15, "qsize()")
    same(iq.full(), True, "full()")
    worker.close()
    iq.close()
    same(len(list(source)), 15, "the number of items taken")


@promise
def a_worker_can_fail(stage: Stage) -> None:
    """A worker that fails tells the others that the work is not complete, and why."""
    iq = stage.make()
    worker, source = iq.get_worker(), iq.get_consumer()
    worker.put_many([1, 2])
    same(worker.get(), 1, "the item taken")
    worker.fail(LookupError("half done"))
    iq.close()
    same(source.get(), 2, "the item left")
    error = raises(ProducerFailed, source.get)
    same(repr(error.__cause__), "LookupError('half done')", "the cause")


@promise
def a_worker_that_leaves_with_by_an_exception_has_failed(stage: Stage) -> None:
    """`with worker:` left by an exception in the middle of an item is a failure, for everyone."""
    iq = stage.make()
    worker, source, out = iq.get_worker(), iq.get_consumer(), iq.get_producer()
    with out:
        out.put("too hard")
    iq.close()
    raises(LookupError, _fail_within_with, worker)
    same(worker.closed, True, "closed")
    error = raises(ProducerFailed, source.get)
    same(repr(error.__cause__), "LookupError('too hard')", "the cause")
    iq = stage.make()
    with iq.get_worker() as idle:
        raises(Empty, idle.get_nowait)
    iq.close()
    same(iq.join(1.0), True, "join() after a worker has left `with` in order")


def _fail_within_with(worker: Worker[Any]) -> None:
    with worker:
        raise LookupError(worker.get())


@promise
def a_worker_dropped_in_the_middle_of_an_item_has_failed(stage: Stage) -> None:
    """A worker that is dropped with an item in hand has failed; one that had finished has not."""
    for finished in (False, True):
        iq = stage.make()
        worker, source, out = iq.get_worker(), iq.get_consumer(), iq.get_producer()
        out.put(1)
        same(worker.get(), 1, "the item taken")
        if finished:
            raises(Empty, worker.get_nowait)
        with dropping():
            del worker
        out.close()
        iq.close()
        raises(Done if finished else ProducerFailed, source.get)


@promise_between_processes
def a_worker_killed_in_the_middle_of_an_item_has_failed(stage: Stage) -> None:
    """A worker that dies with an item in hand has failed, and everyone learns that."""
    iq = stage.make()
    worker, source, out = iq.get_worker(), iq.get_consumer(), iq.get_producer()
    out.put("fatal")
    out.close()
    actor = stage.start(_actors.take_and_be_killed, worker)
    iq.close()
    same(actor.wait("has"), "fatal", "the item taken")
    actor.gone()
    error = raises(ProducerFailed, source.get)
    holds(str(actor.pid) in str(error), f"the text names process {actor.pid}: {error}")
    raises(ProducerFailed, iq.join)


@promise_between_processes
def a_killed_workers_item_goes_to_another(stage: Stage) -> None:
    """With redelivery a worker's death is no failure: another gets its item, and all is done."""
    iq = stage.make(redeliver=True)
    worker, other, out = iq.get_worker(), iq.get_worker(), iq.get_producer()
    out.put("again")
    out.close()
    actor = stage.start(_actors.take_and_be_killed, worker)
    iq.close()
    same(actor.wait("has"), "again", "the item taken by the first")
    actor.gone()
    same(other.get(timeout=DEATH_S + 1.0), "again", "the item taken by the other")
    other.put("more")
    same(list(other), ["more"], "what is left")
    same(iq.join(5.0), True, "join()")

"""Endings: when a queue is done, and when it is closed, cancelled, joined or abandoned."""

from __future__ import annotations

from itertools import permutations
from queue import Empty, Full

from iterable_queue._errors import (
    Cancelled,
    ConsumersGone,
    Done,
    IterableQueueError,
    QueueClosed,
    WouldDeadlock,
)
from iterable_queue.testing import _actors
from iterable_queue.testing._conformance import QueueLike
from iterable_queue.testing._stage import Stage, dropping, holds, promise, raises, same, same_items


@promise
def iteration_ends_in_every_order_of_closing(stage: Stage) -> None:
    """A queue is done once it and every producer have closed, in any order, and not before."""
    for order in permutations(("queue", "first", "second")):
        iq = stage.make()
        outs = {"first": iq.get_producer(), "second": iq.get_producer()}
        source, waiting = iq.get_consumer(), iq.get_consumer()
        outs["first"].put(1)
        outs["second"].put(2)
        same_items([source.get(), source.get()], [1, 2])
        actor = stage.thread(_actors.consume, waiting)
        for what in order:
            raises(Empty, source.get_nowait)
            (iq if what == "queue" else outs[what]).close()
        raises(Done, source.get_nowait)
        same(list(source), [], f"what is left after closing {order}")
        same(actor.result(), [], f"what a waiting consumer took after closing {order}")
        same(iq.join(1.0), True, f"join() after closing {order}")


@promise
def waiting_consumers_are_told_of_the_end(stage: Stage) -> None:
    """Consumers that wait for an item end their iteration when nothing can come any more."""
    for last in ("queue", "producer"):
        iq = stage.make()
        out = iq.get_producer()
        takers = [stage.start(_actors.consume, iq.get_consumer()) for _ in range(2)]
        stage.until_blocked(iq, consumers=2)
        out.put("item")
        for close in (out.close, iq.close) if last == "queue" else (iq.close, out.close):
            close()
        same_items([item for taker in takers for item in taker.result()], ["item"])


@promise
def items_left_come_before_the_end(stage: Stage) -> None:
    """Done is raised only when nothing is left: what was put before closing is delivered."""
    iq = stage.make()
    out, source, late = iq.get_producer(), iq.get_consumer(), None
    out.put_many(range(5))
    out.close()
    iq.close()
    same([source.get() for _ in range(3)], [0, 1, 2], "the first items")
    late = iq.get_consumer()
    source.close()
    same(list(late), [3, 4], "the items left")


@promise
def done_is_final(stage: Stage) -> None:
    """Once done, a queue stays done, for every consumer and every kind of call."""
    iq = stage.make()
    source, other = iq.get_consumer(), iq.get_consumer()
    with iq, iq.get_producer() as out:
        out.put(1)
    same(list(source), [1], "the items taken")
    for consumer in (source, other, iq.get_consumer()):
        for _ in range(2):
            raises(Done, consumer.get)
            raises(Done, consumer.get_nowait)
            raises(Done, consumer.get, timeout=0.01)
            raises(Done, consumer.get_many, 5)
            same(list(consumer), [], "what an iteration gives after the end")
    same(iq.statistics().state, "done", "statistics().state")
    holds("done" in iq.explain().lower(), f"explain() says so: {iq.explain()}")


@promise
def no_producer_ever(stage: Stage) -> None:
    """A queue that is closed without ever having had a producer is done."""
    iq = stage.make()
    actor = stage.start(_actors.consume, iq.get_consumer())
    stage.until_blocked(iq, consumers=1)
    source = iq.get_consumer()
    raises(Empty, source.get_nowait)
    iq.close()
    raises(Done, source.get)
    same(actor.result(), [], "the items taken")
    same(iq.join(1.0), True, "join()")
    same(list(iq.get_consumer()), [], "what a late consumer takes")


@promise
def no_consumer_ever(stage: Stage) -> None:
    """A closed queue that never had a consumer is not abandoned: one may still come."""
    iq = stage.make(maxsize=3)
    out = iq.get_producer()
    out.put(1)
    iq.close()
    out.put(2)
    out.put(3)
    raises(Full, out.put, 4, timeout=0.01)
    same(iq.join(0.01), False, "join() with items left")
    same(iq.statistics().state, "closed", "statistics().state")
    out.close()
    same(list(iq.get_consumer()), [1, 2, 3], "the items taken by a late consumer")
    same(iq.join(1.0), True, "join()")


@promise
def consumers_may_come_late(stage: Stage) -> None:
    """get_consumer works after close(): it gets what is left, or Done where that is nothing."""
    iq = stage.make()
    with iq, iq.get_producer() as out:
        out.put_many("abc")
    same(list(iq.get_consumer()), ["a", "b", "c"], "the items taken")
    actor = stage.start(_actors.consume, iq.get_consumer())
    same(actor.result(), [], "what a later consumer takes")


@promise
def endpoints_come_and_go(stage: Stage) -> None:
    """While the queue is open, producers may come as others finish; nobody sees an end."""
    iq = stage.make()
    taker = stage.start(_actors.consume, iq.get_consumer())
    for first in range(0, 40, 10):
        maker = stage.start(_actors.produce, iq.get_producer(), range(first, first + 10))
        maker.result()
    out = iq.get_producer()
    iq.close()
    out.put_many(range(40, 50))
    same(taker.role.has("end"), False, "the consumer has ended while a producer was open")
    out.close()
    same(taker.result(), list(range(50)), "the items taken")


@promise
def no_producers_after_close(stage: Stage) -> None:
    """After close(), get_producer and get_worker raise QueueClosed and say what to do."""
    iq = stage.make()
    iq.close()
    for get in (iq.get_producer, iq.get_worker):
        error = raises(QueueClosed, get)
        holds("before" in str(error), f"the text says to make endpoints before: {error}")
    now = iq.statistics()
    same((now.open_producers, now.open_workers), (0, 0), "the open producers and workers")


@promise
def closing_again_does_nothing(stage: Stage) -> None:
    """To close is idempotent, and counted once, on the queue and on every endpoint."""
    iq = stage.make()
    out, stays, source, other = (
        iq.get_producer(),
        iq.get_producer(),
        iq.get_consumer(),
        iq.get_consumer(),
    )
    worker, last = iq.get_worker(), iq.get_worker()
    for _ in range(3):
        out.close()
        source.close()
        worker.close()
    now = iq.statistics()
    seen = (now.open_producers, now.open_consumers, now.open_workers)
    same(seen, (1, 1, 1), "the open producers, consumers and workers")
    for _ in range(3):
        iq.close()
    stays.put(1)
    same(other.get(), 1, "the item taken")
    last.close()
    stays.close()
    stays.close()
    raises(Done, other.get)


@promise
def leaving_with_closes_the_queue(stage: Stage) -> None:
    """Leaving `with iq:` closes it; leaving by an exception cancels it with that."""
    iq = stage.make()
    source = iq.get_consumer()
    with iq as same_queue:
        holds(same_queue is iq, "`with iq as x` gives the queue itself")
        raises(Empty, source.get_nowait)
    raises(Done, source.get)
    iq = stage.make()
    actor = stage.start(_actors.consume, iq.get_consumer())
    stage.until_blocked(iq, consumers=1)
    raises(LookupError, _fail_within_with, iq)
    error = actor.error(Cancelled)
    holds(isinstance(error.__cause__, LookupError), f"the cause is why: {error.__cause__!r}")


def _fail_within_with(iq: QueueLike) -> None:
    with iq:
        raise LookupError("the block went wrong")


@promise
def dropping_the_queue_closes_it(stage: Stage) -> None:
    """The queue itself, dropped by its maker without having been handed on, is closed."""
    iq = stage.make()
    out, source = iq.get_producer(), iq.get_consumer()
    out.put(1)
    with dropping():
        del iq
    out.close()
    same(list(source), [1], "the items taken")


@promise
def cancel_wakes_everybody(stage: Stage) -> None:
    """cancel(error): every blocked call, in every process, raises Cancelled from that error."""
    empty, full = stage.make(), stage.make(maxsize=1)
    keep = [empty.get_producer(), full.get_producer()]
    keep[1].put("item")
    takers = [stage.start(_actors.take_one, empty.get_consumer()) for _ in range(2)]
    putter = stage.start(_actors.put_one, full.get_producer(), "more")
    joiner = stage.thread(_actors.join, full)
    stage.until_blocked(empty, consumers=2)
    stage.until_blocked(full, producers=1)
    for iq in (empty, full):
        iq.cancel(LookupError("that will do"))
    for actor in (*takers, putter, joiner):
        error = actor.error(Cancelled)
        same(repr(error.__cause__), "LookupError('that will do')", "the cause")
    raises(Cancelled, keep[0].put, 1)


@promise
def cancel_stops_what_comes_later(stage: Stage) -> None:
    """After cancel(), items left are dropped and calls raise Cancelled; the first reason stays."""
    iq = stage.make()
    out, source, worker = iq.get_producer(), iq.get_consumer(), iq.get_worker()
    out.put_many(range(5))
    iq.cancel(LookupError("first"))
    iq.cancel(ValueError("second"))
    same(iq.qsize(), 0, "qsize()")
    for call in (out.put, worker.put):
        error = raises(Cancelled, call, 1)
        same(repr(error.__cause__), "LookupError('first')", "the cause")
    for get in (source.get, source.get_nowait, worker.get, iq.join, source.__next__):
        raises(Cancelled, get)
    raises(Cancelled, source.get, timeout=0.01)
    raises(Cancelled, out.put_many, [1, 2])
    for endpoint in (out, source, worker):
        endpoint.close()
    same(iq.statistics().state, "cancelled", "statistics().state")
    other = stage.make()
    source = other.get_consumer()
    other.cancel()
    same(raises(Cancelled, source.get).__cause__, None, "the cause where nobody said why")
    other = stage.make()
    raises(TypeError, other.cancel, "no exception")


@promise
def who_comes_after_a_cancel_is_told_by_its_calls(stage: Stage) -> None:
    """A process that is late enters its endpoint as ever, and the first call raises Cancelled."""
    iq = stage.make()
    before, out, source = iq.get_producer(), iq.get_producer(), iq.get_consumer()
    stage.start(_actors.produce, before, ["dropped"]).result()
    iq.cancel(LookupError("that will do"))
    for endpoint, call in ((out, "put"), (source, "get")):
        late = stage.start(_actors.told_within, endpoint, call, *["item"] * (call == "put"))
        same(late.result(), "Cancelled", f"what {call}() raised within `with`")


@promise
def join_waits_for_the_last_item_to_be_finished(stage: Stage) -> None:
    """In hand is an item until its thread's next get, or the close; join() waits for that."""
    iq = stage.make()
    out, source = iq.get_producer(), iq.get_consumer()
    out.put_many(["mine", "its"])
    same(iq.join(0.01), False, "join() on an open queue")
    out.close()
    iq.close()
    same(iq.join(0.01), False, "join() with items left")
    same(source.get(), "mine", "the item taken")
    other = stage.thread(_actors.consume, source)
    same(other.result(), ["its"], "the items taken by another thread")
    same(iq.statistics().finished, 1, "items finished, with another thread's still in hand")
    same(iq.join(0.01), False, "join() with an item in hand")
    joiner = stage.thread(_actors.join, iq)
    raises(Done, source.get)
    same(joiner.result(), True, "a join() that waited")
    same((iq.join(), iq.join(0)), (True, True), "join() once all is finished")
    same(iq.statistics().finished, 2, "items finished")


@promise
def closing_finishes_what_is_in_hand(stage: Stage) -> None:
    """Closing a consumer, or leaving its `with`, finishes the item in its hand."""
    iq = stage.make()
    out, source = iq.get_producer(), iq.get_consumer()
    out.put_many([1, 2])
    out.close()
    iq.close()
    late = iq.get_consumer()
    with source:
        for _ in source:
            break
    same(source.closed, True, "closed after a break inside `with`")
    same(iq.join(0.01), False, "join() with an item left")
    actor = stage.start(_actors.take_and_close, late)
    same(actor.result(), [2], "the items taken")
    same(iq.join(5.0), True, "join()")
    same(iq.statistics().finished, 2, "items finished")


@promise
def join_does_not_wait_for_itself(stage: Stage) -> None:
    """join() inside this handle's own `with iq:` raises at once and changes nothing."""
    iq = stage.make()
    with iq:
        raises(WouldDeadlock, iq.join)
        raises(WouldDeadlock, iq.join, 1.0)
    same(iq.join(1.0), True, "join() after the block")


@promise
def an_abandoned_queue_says_so(stage: Stage) -> None:
    """Closed, its last consumer gone, something left: puts and get_consumer raise ConsumersGone."""
    iq = stage.make(maxsize=1)
    source, out = iq.get_consumer(), iq.get_producer()
    out.put(1)
    blocked = stage.start(_actors.put_one, iq.get_producer(), 2)
    stage.until_blocked(iq, producers=1)
    source.close()
    raises(Full, out.put, 3, timeout=0.01)
    same(blocked.role.has("end"), False, "the blocked put has ended though a consumer may come")
    iq.close()
    blocked.error(ConsumersGone)
    for call in (out.put, out.put_nowait):
        raises(ConsumersGone, call, 4)
    raises(ConsumersGone, out.put_many, [5])
    raises(ConsumersGone, iq.get_consumer)
    raises(ConsumersGone, iq.join)
    same(iq.statistics().state, "abandoned", "statistics().state")


@promise
def a_queue_is_abandoned_with_its_last_consumer(stage: Stage) -> None:
    """The queue closed first: puts are refused when the last consumer or worker closes."""
    iq = stage.make()
    source, other, worker = iq.get_consumer(), iq.get_consumer(), iq.get_worker()
    out = iq.get_producer()
    iq.close()
    for consumer in (source, worker):
        consumer.close()
        out.put("fine")
    other.close()
    raises(ConsumersGone, out.put, "too late")


@promise
def drained_is_not_abandoned(stage: Stage) -> None:
    """With nothing left and no producer open, a queue is done though all consumers have gone."""
    iq = stage.make()
    out, source = iq.get_producer(), iq.get_consumer()
    out.put(1)
    same(source.get(), 1, "the item taken")
    out.close()
    source.close()
    iq.close()
    raises(Done, iq.get_consumer().get)
    same(iq.join(1.0), True, "join()")


@promise
def an_open_queue_waits_for_consumers(stage: Stage) -> None:
    """While the queue is open, puts go on waiting when all consumers have gone; one may come."""
    iq = stage.make(maxsize=1)
    out, source = iq.get_producer(), iq.get_consumer()
    out.put(1)
    source.close()
    actor = stage.start(_actors.put_one, iq.get_producer(), 2)
    stage.until_blocked(iq, producers=1)
    late = iq.get_consumer()
    same([late.get(), late.get()], [1, 2], "the items taken")
    actor.wait("has put")


@promise
def an_early_leaver_costs_nobody_an_item(stage: Stage) -> None:
    """What a consumer that closes was not handed goes to the others."""
    iq = stage.make()
    out = iq.get_producer()
    out.put_many(range(50))
    out.close()
    leavers = [stage.start(_actors.take_and_close, iq.get_consumer()) for _ in range(2)]
    stays = iq.get_consumer()
    iq.close()
    taken = [item for leaver in leavers for item in leaver.result()]
    same(len(taken), 2, "the number of items taken by those that took one and closed")
    same_items([*taken, *stays], range(50))
    same(iq.join(5.0), True, "join()")


@promise
def errors_have_one_base(stage: Stage) -> None:
    """The library's own errors are IterableQueueErrors; Empty and Full are the standard ones."""
    iq = stage.make(maxsize=1)
    out, source = iq.get_producer(), iq.get_consumer()
    raises(Empty, source.get_nowait)
    out.put(1)
    raises(Full, out.put_nowait, 2)
    iq.close()
    raises(IterableQueueError, iq.get_producer)
    for name, error in (("Done", Done), ("Empty", Empty), ("Full", Full)):
        holds(getattr(iq, name, None) is error, f"{name} is to be had from the queue's class")

"""Endpoints: that each counts once, is closed once, and is cloned but never copied."""

from __future__ import annotations

import copy
import gc
import os
from queue import Empty

from iterable_queue._errors import ConsumerClosed, Done, ProducerClosed
from iterable_queue.testing import _actors
from iterable_queue.testing._stage import (
    NotApplicable,
    Stage,
    dropping,
    holds,
    promise,
    raises,
    same,
    same_items,
)


@promise
def a_closed_producer_refuses(stage: Stage) -> None:
    """After its close a producer raises ProducerClosed from put."""
    iq = stage.make()
    out = iq.get_producer()
    same(out.closed, False, "closed of a new producer")
    with out as entered:
        holds(entered is out, "`with producer as x` gives the producer itself")
        out.put(1)
    same(out.closed, True, "closed after `with`")
    for call in (out.put, out.put_nowait):
        raises(ProducerClosed, call, 2)
    raises(ProducerClosed, out.put_many, [2])
    raises(ProducerClosed, out.clone)
    same(iq.qsize(), 1, "qsize()")


@promise
def a_closed_consumer_refuses(stage: Stage) -> None:
    """After its close a consumer raises ConsumerClosed from get, whatever is left."""
    for done in (False, True):
        iq = stage.make()
        out, source, other = iq.get_producer(), iq.get_consumer(), iq.get_consumer()
        out.put(1)
        with source as entered:
            holds(entered is source, "`with consumer as x` gives the consumer itself")
            same(source.closed, False, "closed of a new consumer")
        same(source.closed, True, "closed after `with`")
        if done:
            out.close()
            iq.close()
            same(list(other), [1], "what another consumer takes")
        for call in (source.get, source.get_nowait, source.__next__, source.clone):
            raises(ConsumerClosed, call)
        raises(ConsumerClosed, source.get_many, 1)
        for end in (out, other, iq):
            end.close()


@promise
def break_inside_with_closes(stage: Stage) -> None:
    """`break` inside `with consumer:` closes it, and others get the rest."""
    iq = stage.make()
    out, source, other = iq.get_producer(), iq.get_consumer(), iq.get_consumer()
    out.put_many(range(5))
    out.close()
    iq.close()
    with source:
        for item in source:
            if item == 1:
                break
    raises(ConsumerClosed, source.get)
    same(list(other), [2, 3, 4], "what is left")


@promise
def a_clone_counts_by_itself(stage: Stage) -> None:
    """clone() is one more endpoint, also after the queue's close, and outlives its original."""
    iq = stage.make()
    out, source, worker = iq.get_producer(), iq.get_consumer(), iq.get_worker()
    for closed in (False, True):
        if closed:
            iq.close()
        before = iq.statistics()
        clones = (out.clone(), source.clone(), worker.clone())
        now = iq.statistics()
        same(now.open_producers, before.open_producers + 1, "the open producers")
        same(now.open_consumers, before.open_consumers + 1, "the open consumers")
        same(now.open_workers, before.open_workers + 1, "the open workers")
        for clone in clones:
            clone.close()
        same(iq.statistics(), before, "statistics() once the clones have closed")
    worker.close()
    clone = out.clone()
    out.close()
    raises(Empty, source.get_nowait)
    clone.put("by the clone")
    heir = source.clone()
    source.close()
    same(heir.get(), "by the clone", "the item taken")
    raises(Empty, heir.get_nowait)
    clone.clone().close()
    raises(Empty, heir.get_nowait)
    clone.close()
    raises(Done, heir.get)


@promise
def clones_serve_other_actors(stage: Stage) -> None:
    """One endpoint and its clones serve as many actors, and the end comes with the last of them."""
    iq = stage.make()
    out, source = iq.get_producer(), iq.get_consumer()
    makers = [stage.start(_actors.produce, out.clone(), range(n, n + 20)) for n in (0, 20, 40)]
    makers.append(stage.start(_actors.use_clone, out, list(range(60, 80))))
    iq.close()
    takers = [stage.start(_actors.consume, source.clone()) for _ in range(2)]
    source.close()
    for maker in makers:
        maker.result()
    same_items([item for taker in takers for item in taker.result()], range(80))


@promise
def an_endpoint_cannot_be_copied(stage: Stage) -> None:
    """To copy or deepcopy an endpoint raises, names clone(), and changes no count."""
    iq = stage.make()
    ends = (iq.get_producer(), iq.get_consumer(), iq.get_worker())
    before = iq.statistics()
    for end in ends:
        for attempt in (copy.copy, copy.deepcopy):
            error = raises(TypeError, attempt, end)
            holds("clone" in str(error), f"the text names clone(): {error}")
    same(iq.statistics(), before, "statistics()")


@promise
def a_dropped_endpoint_that_was_not_used_is_closed(stage: Stage) -> None:
    """An endpoint dropped where it was made, neither used nor handed on, is closed."""
    iq = stage.make()
    source = iq.get_consumer()
    ends = [iq.get_producer(), iq.get_consumer(), iq.get_worker()]
    with dropping():
        ends.clear()
    now = iq.statistics()
    seen = (now.open_producers, now.open_consumers, now.open_workers)
    same(seen, (0, 1, 0), "the open producers, consumers and workers")
    iq.close()
    raises(Done, source.get)


@promise
def a_dropped_consumer_is_closed(stage: Stage) -> None:
    """A consumer that is dropped is closed, and what it was not handed goes to others."""
    iq = stage.make()
    out, source, other = iq.get_producer(), iq.get_consumer(), iq.get_consumer()
    out.put_many(range(10))
    same(source.get(), 0, "the item taken")
    with dropping():
        del source
    same(iq.statistics().open_consumers, 1, "the open consumers")
    out.close()
    iq.close()
    same(list(other), list(range(1, 10)), "what is left")
    same(iq.join(5.0), True, "join()")


@promise
def closing_wakes_the_calls_of_other_threads(stage: Stage) -> None:
    """To close an endpoint ends the calls in which other threads wait on it, as closed."""
    iq = stage.make(maxsize=1)
    out, source = iq.get_producer(), iq.get_consumer()
    taker = stage.thread(_actors.take_one, source)
    stage.until_blocked(iq, consumers=1)
    source.close()
    taker.error(ConsumerClosed)
    out.put("fills it")
    putter = stage.thread(_actors.put_one, out, "too much")
    stage.until_blocked(iq, producers=1)
    out.close()
    putter.error(ProducerClosed)
    late = iq.get_consumer()
    iq.close()
    same(list(late), ["fills it"], "the items taken")


@promise
def endpoints_can_be_told_apart(stage: Stage) -> None:
    """Endpoints and the queue have a repr that helps, open, closed and done."""
    iq = stage.make()
    ends = (
        iq.get_producer(),
        iq.get_producer(),
        iq.get_consumer(),
        iq.get_worker(),
        iq.get_worker(),
    )
    said = {repr(end) for end in ends}
    same(len(said), len(ends), f"the number of different texts in {said}")
    holds(repr(iq), "repr() of the queue")
    for end in ends:
        end.close()
        holds("closed" in repr(end), f"repr() of a closed endpoint says so: {end!r}")
    iq.close()
    holds(repr(iq), "repr() of the queue")


@promise
def many_endpoints_come_and_go(stage: Stage) -> None:
    """A thousand producers and as many consumers, one after another, each with one item."""
    iq = stage.make()
    source = iq.get_consumer()
    for n in range(1000):
        with iq.get_producer() as out:
            out.put(n)
        with iq.get_consumer() as taker:
            same(taker.get(), n, "the item taken")
    now = iq.statistics()
    seen = (now.open_producers, now.open_consumers, now.put, now.taken, now.finished)
    same(seen, (0, 1, 1000, 1000, 1000), "open producers and consumers, put, taken, finished")
    iq.close()
    raises(Done, source.get)


@promise
def many_endpoints_at_once(stage: Stage) -> None:
    """64 producers and 64 consumers that are open at the same time, each with its item."""
    iq = stage.make()
    outs = [iq.get_producer() for _ in range(64)]
    sources = [iq.get_consumer() for _ in range(64)]
    for n, out in enumerate(outs):
        out.put(n)
    same_items([source.get() for source in sources], range(64))
    for out in outs:
        out.close()
    iq.close()
    for source in sources:
        raises(Done, source.get)
    same(iq.join(1.0), True, "join()")


@promise
def many_queues_come_and_go(stage: Stage) -> None:
    """A hundred queues, one after another, each used and dropped."""
    for n in range(100):
        iq = stage.make()
        source = iq.get_consumer()
        with iq, iq.get_producer() as out:
            out.put(n)
        same(list(source), [n], "the items taken")


@promise
def queues_leave_no_descriptors(stage: Stage) -> None:
    """Queues that were used and dropped leave no file descriptor of this process open."""
    counts: list[int] = []
    for _ in range(2):
        for n in range(40):
            iq = stage.make()
            with iq, iq.get_producer() as out:
                out.put(n)
            same(list(iq.get_consumer()), [n], "the items taken")
            del iq, out
        gc.collect()
        counts.append(_descriptors())
    holds(
        counts[1] - counts[0] < 20,
        f"descriptors stay as many, with 40 more queues used and dropped: {counts}",
    )


def _descriptors() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except FileNotFoundError:
        raise NotApplicable("needs /proc/self/fd") from None

"""Looking: what `statistics()`, `explain()` and errors tell."""

from __future__ import annotations

import os
import pickle
import re
from typing import TypeVar

from iterable_queue._errors import (
    Cancelled,
    ConsumerClosed,
    ConsumersGone,
    Done,
    IterableQueueError,
    ProducerClosed,
    ProducerFailed,
    QueueClosed,
)
from iterable_queue._protocols import Statistics
from iterable_queue.testing import _actors
from iterable_queue.testing._stage import Stage, holds, promise, raises, same

E = TypeVar("E", bound=IterableQueueError)


@promise
def sizes_are_exact(stage: Stage) -> None:
    """qsize(), empty() and full() are exact, whoever is asked: the queue or any endpoint."""
    iq = stage.make(maxsize=4)
    out, source, worker = iq.get_producer(), iq.get_consumer(), iq.get_worker()
    for n in range(9):
        expected = n if n < 5 else 8 - n
        for asked in (iq, out, source, worker):
            seen = (asked.qsize(), asked.empty(), asked.full())
            same(seen, (expected, expected == 0, expected == 4), f"sizes of {asked!r}")
        if n < 4:
            out.put(n)
        elif n < 8:
            source.get()


@promise
def statistics_count(stage: Stage) -> None:
    """statistics() counts what is open, put, taken, finished, queued and blocked, and the state."""
    iq = stage.make(maxsize=3)
    first = iq.statistics()
    same(first.state, "open", "state")
    same(first[:13], (0,) * 13, f"all counts of a new queue: {first}")
    out, source, worker = iq.get_producer(), iq.get_consumer(), iq.get_worker()
    out.put_many(range(3))
    source.get()
    now = iq.statistics()
    seen = (now.open_producers, now.open_consumers, now.open_workers)
    same(seen, (1, 1, 1), "open producers, consumers and workers")
    items = (now.put, now.taken, now.finished, now.queued)
    same(items, (3, 1, 0, 2), "items put, taken, finished and queued")
    out.put(3)
    same(iq.statistics().highest_queued, 3, "the highest number queued")
    blocked = stage.start(_actors.put_one, iq.get_producer(), 4)
    stage.until_blocked(iq, producers=1)
    same(iq.statistics().blocked_consumers, 0, "blocked consumers")
    source.get()
    blocked.wait("has put")
    blocked.gone()
    stage.until(lambda: iq.statistics().blocked_producers == 0, "no producer is blocked")
    with source:
        for n in (2, 3, 4):
            same(source.get(), n, "the item taken")
    now = iq.statistics()
    items = (now.put, now.taken, now.finished, now.queued)
    same(
        (*items, now.open_consumers),
        (5, 5, 5, 0, 0),
        "items put, taken, finished, queued; open consumers",
    )
    iq.close()
    same(iq.statistics().state, "closed", "state, with a worker open")
    worker.close()
    same(iq.statistics().state, "abandoned", "state, with a producer open, but no consumer")
    out.close()


@promise
def a_snapshot_stays_as_it_is(stage: Stage) -> None:
    """statistics() is a snapshot: what happens later does not change it, nor can anybody."""
    iq = stage.make()
    before = iq.statistics()
    out = iq.get_producer()
    out.put(1)
    same((before.put, before.open_producers), (0, 0), "put and open producers of an old snapshot")
    same(iq.statistics().put, 1, "put of a new one")
    raises(AttributeError, setattr, before, "put", 5)
    out.close()


@promise
def statistics_never_go_back(stage: Stage) -> None:
    """While all put and take, totals only grow, and those of items are all of one moment."""
    iq = stage.make()
    before = iq.statistics()
    _only_grows(before, before)
    takers = [stage.start(_actors.consume, iq.get_consumer()) for _ in range(2)]
    for first in (0, 400):
        stage.start(_actors.produce, iq.get_producer(), range(first, first + 400))
    iq.close()
    while not all(taker.role.has("end") for taker in takers):
        now = iq.statistics()
        _only_grows(before, now)
        before = now
        stage.check_deadline("the consumers' end")
    for taker in takers:
        taker.result()
    _only_grows(before, now := iq.statistics())
    seen = (now.put, now.taken, now.finished, now.queued, now.state)
    same(seen, (800, 800, 800, 0, "done"), "put, taken, finished, queued and state at the end")


def _only_grows(before: Statistics, now: Statistics) -> None:
    for name in ("put", "taken", "finished", "highest_queued", "lost", "failures"):
        a, b = getattr(before, name), getattr(now, name)
        holds(0 <= a <= b, f"statistics().{name} never goes back: {a}, then {b}")
    holds(now.queued >= 0, f"statistics().queued is never negative: {now.queued}")
    items = f"put {now.put}, queued {now.queued}, taken {now.taken}, finished {now.finished}"
    put, gone = now.put + now.redelivered, now.taken + now.dropped
    holds(put == now.queued + gone, f"statistics() is of one moment: {items}")
    holds(now.finished <= now.taken, f"nothing is finished that was not taken: {items}")


@promise
def explain_names_what_is_open(stage: Stage) -> None:
    """explain() names each open endpoint with its number, its process and the line that made it."""
    iq = stage.make()
    out = iq.get_producer()
    source = iq.get_consumer()
    actor = stage.start(_actors.take_one, iq.get_consumer())
    stage.until_blocked(iq, consumers=1)
    said = iq.explain()
    for kind, count in (("producer", 1), ("consumer", 2)):
        numbers = set(re.findall(rf"{kind} (\d+)", said))
        same(len(numbers), count, f"the number of {kind}s with a number in: {said}")
    for pid in (os.getpid(), actor.pid):
        holds(re.search(rf"\b{pid}\b", said), f"explain() names process {pid}: {said}")
    holds(re.search(r"\.py:\d+", said), f"explain() names lines: {said}")
    holds("wait" in said, f"explain() says who waits: {said}")
    holds("close" in said, f"explain() says that the queue is not closed: {said}")
    out.put(1)
    actor.result()
    source.close()


@promise
def errors_can_be_pickled(stage: Stage) -> None:
    """Each error can be pickled with its text, its cause and its attributes."""
    iq = stage.make()
    out, source, other, failing = (
        iq.get_producer(),
        iq.get_consumer(),
        iq.get_consumer(),
        iq.get_producer(),
    )
    failing.fail(LookupError("why"))
    out.put(1)
    out.close()
    iq.close()
    errors: list[IterableQueueError] = [
        raises(QueueClosed, iq.get_producer),
        raises(ProducerClosed, out.put, 1),
    ]
    source.close()
    errors.append(raises(ConsumerClosed, source.get))
    same(other.get(), 1, "the item taken")
    failed = raises(ProducerFailed, other.get)
    same([repr(e) for e in _pickled(failed).failures], ["LookupError('why')"], ".failures")
    errors.append(failed)
    done, cancelled, gone = stage.make(), stage.make(), stage.make()
    done.close()
    errors.append(raises(Done, done.get_consumer().get))
    cancelled.cancel(ValueError("stop"))
    errors.append(raises(Cancelled, cancelled.join))
    left = gone.get_producer()
    left.put(1)
    gone.get_consumer().close()
    gone.close()
    errors.append(raises(ConsumersGone, left.put, 1))
    for error in errors:
        again = _pickled(error)
        same(type(again), type(error), "the type of an error that was pickled")
        same(str(again), str(error), "its text")
        same(repr(again.__cause__), repr(error.__cause__), f"the cause of {error!r}")
        holds(len(str(error)) > 15, f"its text names cause and remedy: {error}")


def _pickled(error: E) -> E:
    again: E = pickle.loads(pickle.dumps(error))
    return again


@promise
def a_wrong_maxsize_raises_at_once(stage: Stage) -> None:
    """A maxsize that is no int raises TypeError at once, and names the argument."""
    stage.make(maxsize=1).close()
    for maxsize in ("3", 2.5, None):
        error = raises(TypeError, stage.maker, maxsize=maxsize)
        holds("maxsize" in str(error), f"the text names maxsize: {error}")


@promise
def a_wrong_on_failure_raises_at_once(stage: Stage) -> None:
    """An on_failure that there isn't raises ValueError at once, and names the argument."""
    stage.make(on_failure="raise").close()
    error = raises(ValueError, stage.maker, on_failure="explode")
    holds("on_failure" in str(error), f"the text names on_failure: {error}")

"""Bounds and time-outs: that `maxsize` is exact, and a time-out one deadline."""

from __future__ import annotations

import math
import signal
from queue import Empty, Full

from iterable_queue._clock import monotonic
from iterable_queue._errors import Done
from iterable_queue.testing import _actors
from iterable_queue.testing._stage import (
    SLACK_S,
    Stage,
    holds,
    promise,
    promise_between_processes,
    raises,
    same,
    same_items,
    within,
)


@promise
def maxsize_is_exact(stage: Stage) -> None:
    """At most maxsize items are put and not taken, and so many there may be; full() says so."""
    for maxsize in (1, 2, 7):
        iq = stage.make(maxsize=maxsize)
        out, source = iq.get_producer(), iq.get_consumer()
        for n in range(maxsize):
            same((iq.full(), out.full(), source.full()), (False,) * 3, f"full() with {n} items")
            out.put_nowait(n)
        same((iq.full(), out.full(), source.full()), (True,) * 3, f"full() with {maxsize} items")
        raises(Full, out.put_nowait, -1)
        same(iq.qsize(), maxsize, "qsize()")
        same(source.get(), 0, "the first one taken")
        out.put_nowait(maxsize)
        raises(Full, out.put_nowait, -1)
        out.close()
        iq.close()
        same(list(source), list(range(1, maxsize + 1)), "the items taken")


@promise
def maxsize_is_exact_whoever_asks(stage: Stage) -> None:
    """Of several producers that put at once without waiting, exactly maxsize find room."""
    iq = stage.make(maxsize=5)
    makers = [stage.start(_actors.fill, iq.get_producer(), 20) for _ in range(3)]
    for maker in makers:
        maker.wait("ready")
    for maker in makers:
        maker.tell("go")
    same(sum(maker.result() for maker in makers), 5, "the puts that found room")
    same(iq.qsize(), 5, "qsize()")
    iq.close()
    same(len(list(iq.get_consumer())), 5, "the number of items taken")


@promise
def a_bounded_queue_never_holds_more(stage: Stage) -> None:
    """While all put and take at once, no more than maxsize items are ever put and not taken."""
    iq = stage.make(maxsize=3)
    takers = [stage.start(_actors.consume, iq.get_consumer()) for _ in range(2)]
    makers = [
        stage.start(act, iq.get_producer(), range(first, first + 150))
        for first, act in ((0, _actors.produce), (150, _actors.produce_many))
    ]
    iq.close()
    for maker in makers:
        maker.result()
    same_items([item for taker in takers for item in taker.result()], range(300))
    highest = iq.statistics().highest_queued
    holds(1 <= highest <= 3, f"the highest number queued lies between 1 and 3: {highest}")


@promise
def without_maxsize_there_is_always_room(stage: Stage) -> None:
    """A maxsize of 0 or less means unbounded: put never waits, full() is never true."""
    for maxsize in (0, -1):
        iq = stage.make(maxsize=maxsize)
        out = iq.get_producer()
        for n in range(3000):
            out.put_nowait(n)
        same((iq.full(), out.full()), (False, False), "full() with 3,000 items")
        same(iq.qsize(), 3000, "qsize()")
        out.close()
        iq.close()


@promise
def put_waits_for_room(stage: Stage) -> None:
    """A blocked put returns once an item has been taken, and not before."""
    iq = stage.make(maxsize=1)
    out, source = iq.get_producer(), iq.get_consumer()
    out.put("first")
    actor = stage.start(_actors.put_one, iq.get_producer(), "second")
    stage.until_blocked(iq, producers=1)
    same(actor.role.has("has put"), False, "put has returned while there was no room")
    same(source.get(), "first", "the first item")
    actor.wait("has put")
    same(source.get(), "second", "the second item")


@promise
def get_waits_for_an_item(stage: Stage) -> None:
    """A blocked get returns once an item has been put, and not before."""
    iq = stage.make()
    out = iq.get_producer()
    actor = stage.start(_actors.take_one, iq.get_consumer())
    stage.until_blocked(iq, consumers=1)
    same(actor.role.has("has"), False, "get has returned while there was no item")
    out.put("item")
    same(actor.wait("has"), "item", "the item taken")


@promise
def empty_is_not_done(stage: Stage) -> None:
    """Empty means what it does in the standard library, and never that the queue is done."""
    iq = stage.make()
    out, source = iq.get_producer(), iq.get_consumer()
    for closed in (False, True):
        if closed:
            iq.close()
        raises(Empty, source.get_nowait)
        raises(Empty, source.get, False)
        raises(Empty, source.get, timeout=0)
        raises(Empty, source.get, timeout=0.01)
        same(source.empty(), True, "empty()")
    out.put(1)
    same(source.get(timeout=0), 1, "get(timeout=0) with an item there")
    out.close()
    raises(Done, source.get_nowait)
    raises(Done, source.get, timeout=0)


@promise
def a_get_that_times_out_takes_its_time(stage: Stage) -> None:
    """get(timeout=t) on an empty queue raises Empty after t seconds, not before, not later."""
    iq = stage.make()
    out, source = iq.get_producer(), iq.get_consumer()
    began = stage.clock()
    raises(Empty, source.get, timeout=0.3)
    took = round(stage.clock() - began, 6)  # of what binary fractions can't say
    holds(took >= 0.3, f"get(timeout=0.3) waits for 0.3 s, not {took:.3f} s")
    within(0.3, took, "get(timeout=0.3)")
    out.put(1)
    began = stage.clock()
    same(source.get(timeout=60.0), 1, "the item taken")
    within(0.0, stage.clock() - began, "get(timeout=60) with an item there")


@promise
def a_put_that_times_out_takes_its_time(stage: Stage) -> None:
    """put(timeout=t) on a full queue raises Full after t seconds, and nothing was put."""
    iq = stage.make(maxsize=1)
    out, source = iq.get_producer(), iq.get_consumer()
    out.put(1)
    began = stage.clock()
    raises(Full, out.put, 2, timeout=0.3)
    took = round(stage.clock() - began, 6)  # of what binary fractions can't say
    holds(took >= 0.3, f"put(timeout=0.3) waits for 0.3 s, not {took:.3f} s")
    within(0.3, took, "put(timeout=0.3)")
    raises(Full, out.put, 2, timeout=0)
    raises(Full, out.put, 2, False)
    same(iq.qsize(), 1, "qsize()")
    same(source.get(), 1, "the item taken")
    raises(Empty, source.get_nowait)


@promise
def a_join_that_times_out_takes_its_time(stage: Stage) -> None:
    """join(timeout=t) returns False after t seconds, not before, not later."""
    iq = stage.make()
    out, source = iq.get_producer(), iq.get_consumer()
    began = stage.clock()
    same(iq.join(0.2), False, "join() of an open queue")
    took = round(stage.clock() - began, 6)  # of what binary fractions can't say
    holds(took >= 0.2, f"join(0.2) waits for 0.2 s, not {took:.3f} s")
    within(0.2, took, "join(0.2)")
    out.put(1)
    out.close()
    iq.close()
    same(list(source), [1], "the items taken")
    began = stage.clock()
    same(iq.join(60.0), True, "join() of a queue that is done")
    within(0.0, stage.clock() - began, "join(60) of a queue that is done")


@promise
def a_timeout_is_one_deadline(stage: Stage) -> None:
    """A time-out is one deadline for the whole call, never restarted by what goes on meanwhile."""
    iq = stage.make(maxsize=1)
    out, other, source = iq.get_producer(), iq.get_producer(), iq.get_consumer()
    stop = stage.role("traffic")

    def traffic(_role: object) -> None:
        # Room comes and goes; `out` below finds it taken, or is lucky.
        while not stop.has("stop"):
            try:
                other.put_nowait("traffic")
                source.get_nowait()
            except (Empty, Full):
                pass

    other.put("traffic")
    actor = stage.thread(traffic)
    for n in range(3):
        began = monotonic()
        try:
            out.put(n, timeout=0.2)
        except Full:
            pass
        within(0.2, monotonic() - began, "put(timeout=0.2) beside others' traffic")
    stop.post("stop")
    actor.result()


@promise
def a_timeout_must_make_sense(stage: Stage) -> None:
    """A negative time-out, or one that is no number, raises at once and changes nothing."""
    iq = stage.make(maxsize=1)
    out, source = iq.get_producer(), iq.get_consumer()
    for wrong in (-1, -0.001, math.nan, -math.inf):
        raises(ValueError, out.put, 1, timeout=wrong)
        raises(ValueError, source.get, timeout=wrong)
        raises(ValueError, iq.join, wrong)
    raises(TypeError, out.put, 1, timeout="1")
    raises(TypeError, source.get, timeout="1")
    same(iq.qsize(), 0, "qsize()")
    out.put(1)
    raises(ValueError, source.get, timeout=-1)
    same(iq.statistics().taken, 0, "the number of items taken")
    same(source.get(timeout=math.inf), 1, "get(timeout=inf)")
    out.put(2, timeout=math.inf)
    same(source.get(True, 1e9), 2, "the item taken")


@promise
def a_call_that_does_not_block_has_no_timeout(stage: Stage) -> None:
    """With block=False the time-out is ignored, as in the standard library."""
    iq = stage.make(maxsize=1)
    out, source = iq.get_producer(), iq.get_consumer()
    began = stage.clock()
    raises(Empty, source.get, False, 60.0)
    out.put(1, False, 60.0)
    raises(Full, out.put, 2, False, 60.0)
    same(source.get(False, 60.0), 1, "the item taken")
    within(0.0, stage.clock() - began, "four calls with block=False")


@promise_between_processes
def a_stopped_process_delays_only_itself(stage: Stage) -> None:
    """A time-out holds, and others go on, while a process that waits is stopped."""
    iq = stage.make()
    out, source = iq.get_producer(), iq.get_consumer()
    actor = stage.start(_actors.take_one, iq.get_consumer())
    stage.until_blocked(iq, consumers=1)
    actor.send(signal.SIGSTOP)
    began = monotonic()
    raises(Empty, source.get, timeout=0.2)
    within(0.2, monotonic() - began, "get(timeout=0.2) beside a stopped process")
    out.put("one")
    same(source.get(timeout=SLACK_S), "one", "the item taken beside a stopped process")
    out.put("two")
    actor.send(signal.SIGCONT)
    same(actor.wait("has"), "two", "the item taken by the process that goes on")


@promise_between_processes
def an_interrupted_get_leaves_the_queue_usable(stage: Stage) -> None:
    """Ctrl-C in a get that waits leaves the queue usable for everyone, that process too."""
    iq = stage.make()
    out = iq.get_producer()
    actor = stage.start(_actors.interrupted_get, iq.get_consumer())
    stage.until_blocked(iq, consumers=1)
    actor.send(signal.SIGINT)
    actor.wait("interrupted")
    out.put_many(range(50))
    out.close()
    iq.close()
    same(actor.result(), list(range(50)), "the items taken")


@promise_between_processes
def an_interrupted_put_happened_or_not(stage: Stage) -> None:
    """Ctrl-C in a put that waits: it happened wholly or not at all, and the queue goes on."""
    iq = stage.make(maxsize=1)
    out, source = iq.get_producer(), iq.get_consumer()
    out.put("first")
    out.close()
    actor = stage.start(_actors.interrupted_put, iq.get_producer(), "interrupted", "after")
    stage.until_blocked(iq, producers=1)
    actor.send(signal.SIGINT)
    actor.wait("interrupted")
    iq.close()
    taken = list(source)
    actor.result()
    holds(
        taken in (["first", "after"], ["first", "interrupted", "after"]),
        f"the interrupted item came whole or not at all: {taken}",
    )


@promise_between_processes
def a_put_from_a_signal_handler_never_hangs(stage: Stage) -> None:
    """A put from a signal handler that interrupts a put works or raises at once; none is lost."""
    iq = stage.make()
    source = iq.get_consumer()
    actor = stage.start(_actors.put_from_a_handler, iq.get_producer(), 60)
    iq.close()
    taken = list(source)
    count, could = actor.result()
    same([item for item in taken if item != "handler"], list(range(count)), "the items put")
    same(taken.count("handler"), could, "items taken that a handler had put")

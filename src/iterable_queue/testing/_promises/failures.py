"""Failures: that a result cut short never looks complete, and that nobody hangs."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from iterable_queue._clock import monotonic
from iterable_queue._errors import Cancelled, Done, ItemsLost, ProducerClosed, ProducerFailed
from iterable_queue.testing import _actors
from iterable_queue.testing._conformance import QueueLike
from iterable_queue.testing._stage import (
    DEATH_S,
    Actor,
    Stage,
    dropping,
    holds,
    promise,
    promise_between_processes,
    raises,
    same,
    same_items,
    within,
)


def _has_failed(iq: QueueLike, source: Any, *causes: str) -> ProducerFailed:
    """Everyone sees the failure: this consumer in every call, late ones, and join."""
    failed = raises(ProducerFailed, source.get)
    for consumer in (source, iq.get_consumer()):
        for call in (consumer.get, consumer.get_nowait, consumer.__next__):
            raises(ProducerFailed, call)
        raises(ProducerFailed, list, consumer)
        raises(ProducerFailed, consumer.get_many, 3)
        raises(ProducerFailed, consumer.get, timeout=0.01)
    raises(ProducerFailed, iq.join)
    raises(ProducerFailed, iq.join, 0.01)
    same(iq.statistics().state, "failed", "statistics().state")
    if causes:
        same([repr(error) for error in failed.failures], list(causes), ".failures")
    first = failed.failures[0] if failed.failures else None
    same(repr(failed.__cause__), repr(first), "the cause, and the first of .failures")
    return failed


@promise
def fail_replaces_done(stage: Stage) -> None:
    """After fail(error), ProducerFailed from it takes the place of Done, for everyone, for ever."""
    iq = stage.make()
    out, other, source = iq.get_producer(), iq.get_producer(), iq.get_consumer()
    out.put(1)
    out.fail(LookupError("why"))
    same(out.closed, True, "closed after fail()")
    raises(ProducerClosed, out.put, 2)
    raises(TypeError, other.fail, "no exception")
    other.put(3)
    same([source.get(), source.get()], [1, 3], "the items put before and by others")
    other.close()
    iq.close()
    _has_failed(iq, source, "LookupError('why')")
    same(iq.statistics().failures, 1, "statistics().failures")
    out.close()


@promise
def all_failures_are_told(stage: Stage) -> None:
    """The first failure is the cause of ProducerFailed; all of them are in .failures."""
    iq = stage.make()
    outs = [iq.get_producer() for _ in range(3)]
    source = iq.get_consumer()
    outs[1].fail(LookupError("first"))
    outs[0].close()
    outs[2].fail(ValueError("second"))
    iq.close()
    _has_failed(iq, source, "LookupError('first')", "ValueError('second')")


@promise
def an_exception_that_leaves_with_is_a_failure(stage: Stage) -> None:
    """`with producer:` left by an exception fails it with that, and lets the exception go on."""
    iq = stage.make()
    source = iq.get_consumer()
    waiting = stage.start(_actors.consume, iq.get_consumer())
    stage.until_blocked(iq, consumers=1)
    actor = stage.start(_actors.fail_within_with, iq.get_producer(), [])
    actor.error(LookupError)
    iq.close()
    failed = waiting.error(ProducerFailed)
    same(repr(failed.__cause__), "LookupError('the source ran dry')", "the cause")
    _has_failed(iq, source, "LookupError('the source ran dry')")


@promise_between_processes
def a_failure_comes_with_its_traceback(stage: Stage) -> None:
    """The cause of ProducerFailed brings the traceback of the process that it was raised in."""
    iq = stage.make()
    source = iq.get_consumer()
    actor = stage.start(_actors.fail_within_with, iq.get_producer(), [])
    actor.error(LookupError)
    iq.close()
    failed = raises(ProducerFailed, source.get)
    text = "".join(traceback.format_exception(failed))
    holds("in fail_within_with" in text, f"the traceback names the function that raised: {text}")


@promise
def what_a_failed_producer_put_is_delivered(stage: Stage) -> None:
    """Items put before the failure are delivered, and the failure comes after them."""
    iq = stage.make()
    source = iq.get_consumer()
    actor = stage.start(_actors.fail_within_with, iq.get_producer(), [1, 2, 3])
    iq.close()
    same([source.get() for _ in range(3)], [1, 2, 3], "the items taken")
    _has_failed(iq, source, "LookupError('the source ran dry')")
    actor.error(LookupError)


@promise
def a_dropped_producer_has_failed(stage: Stage) -> None:
    """A producer that was used and is dropped without close() has failed."""
    iq = stage.make()
    out, source = iq.get_producer(), iq.get_consumer()
    out.put(1)
    with dropping():
        del out
    iq.close()
    same(source.get(), 1, "the item put before")
    _has_failed(iq, source)


@promise
def a_failure_may_cancel(stage: Stage) -> None:
    """With on_failure="cancel" a failure stops everybody at once, with it as the cause."""
    iq = stage.make(on_failure="cancel")
    out, other = iq.get_producer(), iq.get_producer()
    taker = stage.start(_actors.consume, iq.get_consumer())
    stage.until_blocked(iq, consumers=1)
    out.fail(LookupError("stop"))
    error = taker.error(Cancelled)
    same(repr(error.__cause__), "LookupError('stop')", "the cause")
    error = raises(Cancelled, other.put, 1)
    same(repr(error.__cause__), "LookupError('stop')", "the cause")


# Deaths


def _dies(
    stage: Stage, start: Callable[[QueueLike], Actor], word: str, items: list[int]
) -> ProducerFailed:
    """A process with a producer ends; a consumer that waits is told in time, and how it ended."""
    iq = stage.make()
    source = iq.get_consumer()
    actor = start(iq)
    iq.close()
    same([source.get() for _ in items], items, "the items put before")
    actor.gone()
    began = monotonic()
    failed = raises(ProducerFailed, source.get)
    within(DEATH_S, monotonic() - began, "a consumer learns of a producer's death")
    said = f"{failed} {failed.failures}"
    holds(str(actor.pid) in said, f"ProducerFailed names process {actor.pid}: {said}")
    holds(word in said, f"ProducerFailed says how it ended ({word!r}): {said}")
    holds(".py:" in said, f"ProducerFailed names the line that made the producer: {said}")
    return _has_failed(iq, source)


@promise_between_processes
def a_process_that_returns_without_close_has_failed(stage: Stage) -> None:
    """A used producer whose process returns without close() has failed."""
    _dies(
        stage,
        lambda iq: stage.start(_actors.put_and_return, iq.get_producer(), [1, 2, 3]),
        "return",
        [1, 2, 3],
    )


@promise_between_processes
def a_process_that_ends_by_an_exception_has_failed(stage: Stage) -> None:
    """A used producer whose process ends by an uncaught exception has failed, and of what."""
    role = stage.role("raiser")
    _dies(
        stage,
        lambda iq: stage.process(role, _actors.put_and_raise, iq.get_producer(), [1, 2]),
        "ended by",
        [1, 2],
    )


@promise_between_processes
def a_process_that_exits_has_failed(stage: Stage) -> None:
    """A used producer whose process ends by os._exit has failed, exit code 0 or not."""
    for status in (0, 3):

        def start(iq: QueueLike, status: int = status) -> Actor:
            return stage.start(_actors.put_and_exit, iq.get_producer(), [1, 2], status)

        _dies(stage, start, "exit", [1, 2])


@promise_between_processes
def a_killed_process_has_failed(stage: Stage) -> None:
    """A used producer whose process is killed has failed; what it had put is delivered."""
    _dies(
        stage,
        lambda iq: stage.start(_actors.put_and_be_killed, iq.get_producer(), [1, 2, 3]),
        "kill",
        [1, 2, 3],
    )


@promise_between_processes
def a_process_killed_before_its_first_call_has_failed(stage: Stage) -> None:
    """A producer whose process is killed before it used it has failed."""

    def start(iq: QueueLike) -> Actor:
        actor = stage.start(_actors.do_nothing, iq.get_producer())
        actor.wait("ready")
        actor.kill()
        return actor

    _dies(stage, start, "kill", [])


@promise_between_processes
def a_process_killed_as_it_starts_has_failed(stage: Stage) -> None:
    """A producer whose process is killed right after its start, before it ran, has failed."""
    iq = stage.make()
    source = iq.get_consumer()
    actor = stage.start(_actors.do_nothing, iq.get_producer())
    actor.kill()
    iq.close()
    began = monotonic()
    raises(ProducerFailed, source.get)
    within(DEATH_S, monotonic() - began, "a consumer learns of a producer's death")
    _has_failed(iq, source)


@promise_between_processes
def a_process_killed_while_it_waits_in_put_has_failed(stage: Stage) -> None:
    """A producer killed while blocked in put has failed; others' items and puts go on."""
    iq = stage.make(maxsize=1)
    out, source = iq.get_producer(), iq.get_consumer()
    out.put(1)
    actor = stage.start(_actors.put_one, iq.get_producer(), "never")
    stage.until_blocked(iq, producers=1)
    actor.kill()
    same(source.get(), 1, "the item put before")
    for n in (2, 3):
        out.put(n)
        same(source.get(), n, "the item put afterwards")
    out.close()
    iq.close()
    began = monotonic()
    raises(ProducerFailed, source.get)
    within(DEATH_S, monotonic() - began, "a consumer learns of a producer's death")
    _has_failed(iq, source)


@promise_between_processes
def join_learns_of_a_death(stage: Stage) -> None:
    """join() that waits for a producer whose process dies raises ProducerFailed in time."""
    iq = stage.make()
    actor = stage.start(_actors.do_nothing, iq.get_producer())
    actor.wait("ready")
    iq.close()
    actor.kill()
    began = monotonic()
    raises(ProducerFailed, iq.join)
    within(DEATH_S, monotonic() - began, "join() learns of a producer's death")


@promise_between_processes
def a_consumer_killed_while_it_waits_takes_nothing_along(stage: Stage) -> None:
    """When a consumer is killed while it waits in get, all items go to the others."""
    iq = stage.make()
    out, source = iq.get_producer(), iq.get_consumer()
    victims = [stage.start(_actors.take_one, iq.get_consumer()) for _ in range(2)]
    stage.until_blocked(iq, consumers=2)
    for victim in victims:
        victim.kill()
    iq.close()
    out.put_many(range(20))
    out.close()
    same(list(source), list(range(20)), "the items taken")
    same(iq.join(DEATH_S + 1.0), True, "join()")


@promise_between_processes
def a_consumer_whose_process_ends_is_closed(stage: Stage) -> None:
    """A consumer whose process ends in order is closed: its item finished, the rest left."""
    iq = stage.make()
    out = iq.get_producer()
    out.put_many(range(10))
    out.close()
    actor = stage.start(_actors.take_one, iq.get_consumer())
    same(actor.result(), 0, "the item taken")
    actor.gone()
    source = iq.get_consumer()
    iq.close()
    same(list(source), list(range(1, 10)), "what is left")
    same(iq.join(DEATH_S + 1.0), True, "join()")
    same(iq.statistics().lost, 0, "items lost")


@promise_between_processes
def an_item_in_a_killed_consumers_hand_is_lost_and_told(stage: Stage) -> None:
    """A consumer killed with an item in hand makes join() raise ItemsLost; others get the rest."""
    iq = stage.make()
    out, source = iq.get_producer(), iq.get_consumer()
    out.put_many(range(10))
    out.close()
    actor = stage.start(_actors.take_and_be_killed, iq.get_consumer())
    iq.close()
    first = actor.wait("has")
    actor.gone()
    same_items([first, *source], range(10))
    began = monotonic()
    error = raises(ItemsLost, iq.join)
    within(DEATH_S, monotonic() - began, "join() learns of a consumer's death")
    same(error.count, 1, "the number of items lost")
    same(iq.statistics().lost, 1, "statistics().lost")
    raises(Done, source.get)


@promise_between_processes
def an_item_in_a_killed_consumers_hand_is_handed_out_again(stage: Stage) -> None:
    """With redelivery, what a killed consumer had in hand goes to another, and nothing is lost."""
    iq = stage.make(redeliver=True)
    out, source = iq.get_producer(), iq.get_consumer()
    out.put_many(range(5))
    out.close()
    actor = stage.start(_actors.take_and_be_killed, iq.get_consumer())
    actor.wait("has")
    iq.close()
    actor.gone()
    same_items(source, range(5))
    same(iq.join(DEATH_S + 1.0), True, "join()")
    now = iq.statistics()
    same((now.lost, now.redelivered), (0, 1), "items lost, and handed out again")


@promise_between_processes
def redelivery_has_an_end(stage: Stage) -> None:
    """An item that kills each consumer that takes it is handed out again a few times, then lost."""
    iq = stage.make(redeliver=True)
    out = iq.get_producer()
    out.put("poison")
    tries = 0
    while not iq.statistics().lost:
        holds(tries < 20, "a limit on tries below 20")
        actor = stage.start(_actors.take_and_be_killed, iq.get_consumer())
        while not (actor.role.has("has") or iq.statistics().lost):
            stage.check_deadline("the item is handed out again, or lost")
        tries += actor.role.has("has")
        actor.kill()
    holds(tries >= 2, f"the item was handed out more than once: {tries}")
    source = iq.get_consumer()
    out.put("harmless")
    out.close()
    iq.close()
    same(list(source), ["harmless"], "the items after it")
    raises(ItemsLost, iq.join)


@promise_between_processes
def a_death_may_cancel(stage: Stage) -> None:
    """With on_failure="cancel" the death of a producer's process stops everybody in time."""
    iq = stage.make(on_failure="cancel")
    source = iq.get_consumer()
    actor = stage.start(_actors.do_nothing, iq.get_producer())
    actor.wait("ready")
    actor.kill()
    began = monotonic()
    error = raises(Cancelled, source.get)
    within(DEATH_S, monotonic() - began, "a consumer learns of a producer's death")
    holds(isinstance(error.__cause__, ProducerFailed), f"the cause: {error.__cause__!r}")


@promise_between_processes
def a_maker_that_dies_counts_as_a_failed_producer(stage: Stage) -> None:
    """When the process that made the queue dies without close(), consumers get ProducerFailed."""
    here, there = stage.member("Pipe")()
    actor = stage.start_with_make(_actors.make_and_be_killed, there)
    there.close()
    actor.wait("sent")
    source = here.recv()
    here.close()
    actor.tell("go")
    actor.gone()
    began = monotonic()
    raises(ProducerFailed, source.get)
    within(DEATH_S, monotonic() - began, "a consumer learns of the maker's death")

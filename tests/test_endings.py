"""Endings: whatever producers, consumers and their processes do, everybody else comes to an end.

One suite over both channels and every start method. Who does what is told step by step (see
`tests.actors`), so each outcome is asserted exactly: which items, which exception, which counts.

The last parts are about processes that are killed or stopped, anywhere, inside the queue's lock
too. A kill costs the others nothing but the time until it is known. Where the lock is a semaphore,
everybody gets `ChannelBroken` in one case: a process died in the few instructions in which it had
the lock and its name was not on it, and another process of the queue is stopped, which might be the
one that has the lock.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from iterable_queue import (
    Cancelled,
    ChannelBroken,
    ConsumersGone,
    Done,
    Empty,
    Full,
    ItemsLost,
    IterableQueue,
    ProducerClosed,
    ProducerFailed,
    QueueClosed,
    RemoteTraceback,
    _mutex,
)
from iterable_queue import _cells as cells_
from iterable_queue._shared import SharedCore
from tests import actors
from tests.actors import Call, Ended, Puppet, Stage, context_of, on_this_machine
from tests.conftest import FORKS, START_METHODS, Context, Processes, lives, wait_until

KNOWN_WITHIN_S = 2.0
"""How long it may take until a process's end is known to all others that wait."""

PATIENCE_S = actors.PATIENCE_S

LATE_S = 0.5
"""How much later than its time-out a call may return on a machine that is busy."""

NAMELESS_S = 1.5
"""How much longer it may take where a semaphore's holder died with nobody's name on the lock."""


@pytest.fixture
def stage(context: Context, processes: Processes) -> Iterator[Stage]:
    """Processes of each start method."""
    with Stage(context, processes) as stage:
        yield stage


@pytest.fixture(params=["threads", *START_METHODS])
def any_stage(request: pytest.FixtureRequest, processes: Processes) -> Iterator[Stage]:
    """Threads, and processes of each start method."""
    param: str = request.param
    with Stage(None if param == "threads" else context_of(param), processes) as stage:
        yield stage


class Totals(NamedTuple):
    """What is left of `Statistics` once all is over."""

    put: int
    taken: int
    finished: int
    queued: int
    state: str
    lost: int = 0
    failures: int = 0


def totals(iq: IterableQueue[Any]) -> Totals:
    """The counts of *iq*, once none of its callers is counted as waiting."""
    wait_for_blocked(iq)  # a process that is killed in a call is counted until that is known
    stats = iq.statistics()
    return Totals(
        stats.put,
        stats.taken,
        stats.finished,
        stats.queued,
        stats.state,
        stats.lost,
        stats.failures,
    )


def wait_for_blocked(iq: IterableQueue[Any], *, producers: int = 0, consumers: int = 0) -> None:
    """Wait until so many callers wait in `put` and in `get`, and none of them in vain.

    One that has been woken counts as waiting until it runs.
    """

    def blocked() -> bool:
        stats = iq.statistics()
        in_vain = (consumers and not iq.empty()) or (producers and not iq.full())
        counts = (stats.blocked_producers, stats.blocked_consumers)
        return counts == (producers, consumers) and not in_vain

    wait_until(blocked, f"{producers} blocked in put and {consumers} in get")


def all_items(calls: list[Call[list[int]]]) -> list[int]:
    """What all of them returned, sorted."""
    return sorted(item for call in calls for item in call.result())


# Producers and the queue close, in every order


@pytest.mark.parametrize("queue_closes", ["before", "between", "after"])
@pytest.mark.parametrize("producers_close", ["before", "during", "after"])
def test_everything_arrives_whoever_closes_first(
    any_stage: Stage, producers_close: str, queue_closes: str
) -> None:
    """Producers close before, during or after the reading; the queue before, between or after."""
    iq = any_stage.queue()
    producers = [any_stage.cast(iq.get_producer()) for _ in range(2)]
    consumers = [any_stage.cast(iq.get_consumer()) for _ in range(2)]
    chunks = [range(start, start + 20) for start in (0, 100)]
    if queue_closes == "before":
        iq.close()

    def close_producers() -> None:
        producers[0].run(actors.close)
        if queue_closes == "between":
            iq.close()
        producers[1].run(actors.close)

    def read() -> list[Call[list[int]]]:
        return [consumer.begin(actors.drain) for consumer in consumers]

    match producers_close:
        case "before":
            for producer, chunk in zip(producers, chunks, strict=True):
                producer.run(actors.put, *chunk)
            close_producers()
            calls = read()
        case "during":
            calls = read()
            puts = [
                producer.begin(actors.put, *chunk)
                for producer, chunk in zip(producers, chunks, strict=True)
            ]
            for call in puts:
                call.result()
            close_producers()
        case _:
            calls = read()
            for producer, chunk in zip(producers, chunks, strict=True):
                producer.run(actors.put, *chunk)
            wait_for_blocked(iq, consumers=2)  # all has been read, and more is waited for
            close_producers()
    if queue_closes == "after":
        wait_for_blocked(iq, consumers=2)
        assert totals_open(iq) == (0, 2)
        iq.close()
    assert all_items(calls) == [item for chunk in chunks for item in chunk]
    assert totals(iq) == Totals(40, 40, 40, 0, "done")
    assert iq.join(0)
    for consumer in consumers:
        assert isinstance(consumer.begin(actors.get).error(), Done)  # and again


def totals_open(iq: IterableQueue[Any]) -> tuple[int, int]:
    """The numbers of open producers and consumers."""
    stats = iq.statistics()
    return stats.open_producers, stats.open_consumers


def test_one_consumer_gets_each_producers_items_in_order(any_stage: Stage) -> None:
    iq = any_stage.queue(maxsize=3)
    producers = [any_stage.cast(iq.get_producer()) for _ in range(2)]
    consumer = any_stage.cast(iq.get_consumer())
    reading = consumer.begin(actors.drain)
    puts = [
        producer.begin(actors.put_and_close, range(start, start + 200))
        for producer, start in zip(producers, (0, 1000), strict=True)
    ]
    for put in puts:
        put.result()
    iq.close()
    items = reading.result()
    assert [item for item in items if item < 1000] == list(range(200))
    assert [item for item in items if item >= 1000] == list(range(1000, 1200))
    assert totals(iq) == Totals(400, 400, 400, 0, "done")
    assert iq.statistics().highest_queued <= 3


@pytest.mark.parametrize("queue_closes", ["before", "while it waits"])
def test_no_producer_ever(any_stage: Stage, queue_closes: str) -> None:
    iq = any_stage.queue()
    consumer = any_stage.cast(iq.get_consumer())
    if queue_closes == "before":
        iq.close()
        call = consumer.begin(actors.get)
    else:
        call = consumer.begin(actors.get)
        wait_for_blocked(iq, consumers=1)
        iq.close()
    assert isinstance(call.error(), Done)
    assert consumer.run(actors.drain) == []
    assert totals(iq) == Totals(0, 0, 0, 0, "done")
    assert iq.join(0)


def test_no_consumer_ever(any_stage: Stage) -> None:
    """Nobody came, and yet somebody may: the queue keeps its items, and is not abandoned."""
    iq = any_stage.queue()
    any_stage.cast(iq.get_producer()).run(actors.put_and_close, range(5))
    assert not iq.join(0)
    iq.close()
    assert totals(iq) == Totals(5, 0, 0, 5, "closed")
    assert not iq.join(0.05)
    late = any_stage.cast(iq.get_consumer())
    assert late.run(actors.drain) == list(range(5))
    assert totals(iq) == Totals(5, 5, 5, 0, "done")
    assert iq.join(0)


def test_no_consumer_ever_leaves_a_bounded_put_waiting(any_stage: Stage) -> None:
    iq = any_stage.queue(maxsize=2)
    producer = any_stage.cast(iq.get_producer())
    iq.close()
    producer.run(actors.put, 1, 2)
    assert isinstance(producer.begin(actors.put_now, 3).error(), Full)
    assert isinstance(producer.begin(actors.put_within, 3, 0.05).error(), Full)
    call = producer.begin(actors.put, 3)
    wait_for_blocked(iq, producers=1)
    late = any_stage.cast(iq.get_consumer())
    assert late.run(actors.get, 3) == [1, 2, 3]
    call.result()
    producer.run(actors.close)
    assert isinstance(late.begin(actors.get).error(), Done)
    assert totals(iq) == Totals(3, 3, 3, 0, "done")


def test_nobody_ever(any_stage: Stage) -> None:
    iq = any_stage.queue()
    assert not iq.join(0)
    iq.close()
    assert iq.join(0)
    assert totals(iq) == Totals(0, 0, 0, 0, "done")


def test_endpoints_are_added_while_others_finish(any_stage: Stage) -> None:
    iq = any_stage.queue()
    first = any_stage.cast(iq.get_producer())
    reader = any_stage.cast(iq.get_consumer())
    first.run(actors.put_and_close, [1])
    assert reader.run(actors.get) == [1]
    waiting = reader.begin(actors.get, 2)
    wait_for_blocked(iq, consumers=1)
    assert totals_open(iq) == (0, 1)  # nobody may put, but somebody may come
    second = any_stage.cast(iq.get_producer())
    second.run(actors.put, 2)
    third = any_stage.cast(iq.get_producer())
    iq.close()
    second.run(actors.close)
    third.run(actors.put, 3)
    assert waiting.result() == [2, 3]
    other = any_stage.cast(iq.get_consumer())  # after the close
    ends = [reader.begin(actors.get), other.begin(actors.get)]
    wait_for_blocked(iq, consumers=2)
    third.run(actors.close)
    assert [type(end.error()) for end in ends] == [Done, Done]
    assert totals(iq) == Totals(3, 3, 3, 0, "done")
    with pytest.raises(QueueClosed, match="clone"):
        iq.get_producer()
    with pytest.raises(QueueClosed, match="clone"):
        iq.get_worker()
    late = any_stage.cast(iq.get_consumer())
    assert isinstance(late.begin(actors.get).error(), Done)


def test_a_consumer_that_closes_early_leaves_the_rest_to_others(any_stage: Stage) -> None:
    iq = any_stage.queue()
    producer = any_stage.cast(iq.get_producer())
    early, other = (any_stage.cast(iq.get_consumer()) for _ in range(2))
    iq.close()
    producer.run(actors.put, *range(10))
    assert early.run(actors.get, 3) == [0, 1, 2]
    assert totals(iq).finished == 2  # the third is still in hand
    early.run(actors.close)
    assert totals(iq).finished == 3
    reading = other.begin(actors.drain)
    producer.run(actors.close)
    assert reading.result() == list(range(3, 10))
    assert totals(iq) == Totals(10, 10, 10, 0, "done")


def test_the_last_consumer_of_a_closed_queue_abandons_it(any_stage: Stage) -> None:
    iq = any_stage.queue(maxsize=2)
    producer = any_stage.cast(iq.get_producer())
    consumer = any_stage.cast(iq.get_consumer())
    iq.close()
    producer.run(actors.put, 1, 2)
    assert consumer.run(actors.get) == [1]
    producer.run(actors.put, 3)
    call = producer.begin(actors.put, 4)
    wait_for_blocked(iq, producers=1)
    consumer.run(actors.close)
    assert isinstance(call.error(), ConsumersGone)
    assert isinstance(producer.begin(actors.put, 5).error(), ConsumersGone)
    with pytest.raises(ConsumersGone):
        iq.get_consumer()
    with pytest.raises(ConsumersGone):
        iq.join(PATIENCE_S)
    producer.run(actors.close)
    assert totals(iq) == Totals(3, 1, 1, 2, "abandoned")


def test_on_an_open_queue_puts_wait_for_another_consumer(any_stage: Stage) -> None:
    iq = any_stage.queue(maxsize=1)
    producer = any_stage.cast(iq.get_producer())
    any_stage.cast(iq.get_consumer()).run(actors.close)
    producer.run(actors.put, 1)
    call = producer.begin(actors.put, 2)
    wait_for_blocked(iq, producers=1)
    second = any_stage.cast(iq.get_consumer())
    assert second.run(actors.get, 2) == [1, 2]
    call.result()
    producer.run(actors.close)
    iq.close()
    assert isinstance(second.begin(actors.get).error(), Done)
    assert totals(iq) == Totals(2, 2, 2, 0, "done")


def test_the_queue_closes_after_its_last_consumer(any_stage: Stage) -> None:
    """Abandoned only by the close, and only because something is left."""
    left, drained = any_stage.queue(), any_stage.queue()
    for iq in (left, drained):
        producer = any_stage.cast(iq.get_producer())
        consumer = any_stage.cast(iq.get_consumer())
        producer.run(actors.put_and_close, [1])
        if iq is drained:
            assert consumer.run(actors.get) == [1]
        consumer.run(actors.close)
        assert totals(iq).state == "open"
        iq.close()
    assert totals(left) == Totals(1, 0, 0, 1, "abandoned")
    with pytest.raises(ConsumersGone):
        left.get_consumer()
    with pytest.raises(ConsumersGone):
        left.join(PATIENCE_S)
    assert totals(drained) == Totals(1, 1, 1, 0, "done")
    assert drained.join(0)
    late = any_stage.cast(drained.get_consumer())
    assert isinstance(late.begin(actors.get).error(), Done)


# Clones outlive their originals


def test_a_producers_clone_outlives_it(any_stage: Stage) -> None:
    iq = any_stage.queue()
    original = iq.get_producer()
    cloned = any_stage.cast(original.clone())
    producer = any_stage.cast(original)
    del original
    consumer = any_stage.cast(iq.get_consumer())
    iq.close()
    producer.run(actors.put, 1)
    producer.run(actors.keep_clone)  # after the queue's close, in the process of its own
    producer.run(actors.close)
    assert isinstance(producer.begin(actors.put, 0).error(), ProducerClosed)
    cloned.run(actors.put, 2)
    producer.run(actors.on_clone, actors.put, 3)
    assert consumer.run(actors.get, 3) == [1, 2, 3]
    end = consumer.begin(actors.get)
    cloned.run(actors.close)
    wait_for_blocked(iq, consumers=1)
    assert not end.is_over()
    producer.run(actors.on_clone, actors.close)
    assert isinstance(end.error(), Done)
    assert totals(iq) == Totals(3, 3, 3, 0, "done")


def test_a_consumers_clone_outlives_it(any_stage: Stage) -> None:
    iq = any_stage.queue()
    producer = any_stage.cast(iq.get_producer())
    consumer = any_stage.cast(iq.get_consumer())
    iq.close()
    consumer.run(actors.keep_clone)
    consumer.run(actors.close)
    producer.run(actors.put_and_close, range(3))
    assert consumer.run(actors.on_clone, actors.drain) == [0, 1, 2]
    assert totals(iq) == Totals(3, 3, 3, 0, "done")


def test_a_workers_clone_outlives_it(any_stage: Stage) -> None:
    iq = any_stage.queue()
    worker = any_stage.cast(iq.get_worker())
    iq.close()
    worker.run(actors.keep_clone)
    worker.run(actors.put, 1)
    worker.run(actors.close)
    assert totals(iq).state == "closed"  # the clone may still put
    worker.run(actors.on_clone, actors.put, 2)
    assert worker.run(actors.on_clone, actors.drain) == [1, 2]
    assert totals(iq) == Totals(2, 2, 2, 0, "done")


# Workers


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bounded_queue_of_workers_walks_a_tree(any_stage: Stage, workers: int) -> None:
    """20,000 nodes through a queue of one."""
    size = 20_000
    iq = any_stage.queue(maxsize=1)
    crew = [any_stage.cast(iq.get_worker()) for _ in range(workers)]
    root = any_stage.cast(iq.get_producer())
    iq.close()
    walks = [worker.begin(actors.grow, size) for worker in crew]
    root.run(actors.put_and_close, [0])
    assert sum(walk.result(timeout=50) for walk in walks) == size
    assert totals(iq) == Totals(size, size, size, 0, "done")
    assert iq.join(0)


def test_a_worker_keeps_the_queue_from_being_done(any_stage: Stage) -> None:
    iq = any_stage.queue(maxsize=1)
    busy, idle = (any_stage.cast(iq.get_worker()) for _ in range(2))
    any_stage.cast(iq.get_producer()).run(actors.put_and_close, [1])
    iq.close()
    assert busy.run(actors.get) == [1]
    waiting = idle.begin(actors.get, 2)
    wait_for_blocked(iq, consumers=1)
    busy.run(actors.put, 2, 3, 4)  # never refused for maxsize
    assert waiting.result() == [2, 3]
    assert busy.run(actors.get) == [4]
    ends = [busy.begin(actors.get)]
    wait_for_blocked(iq, consumers=1)  # the other one has an item in hand
    ends.append(idle.begin(actors.get))
    assert [type(end.error()) for end in ends] == [Done, Done]
    assert isinstance(busy.begin(actors.put, 5).error(), ProducerClosed)
    assert totals(iq) == Totals(4, 4, 4, 0, "done")


# Producers that fail


@pytest.mark.parametrize("way", ["fail", "with block"])
def test_a_failed_producers_items_come_before_its_failure(any_stage: Stage, way: str) -> None:
    iq = any_stage.queue()
    bad, good = (any_stage.cast(iq.get_producer()) for _ in range(2))
    readers = [any_stage.cast(iq.get_consumer()) for _ in range(2)]
    iq.close()
    if way == "fail":
        bad.run(actors.put, 1, 2)
        bad.run(actors.fail, ValueError("bad"))
    else:
        assert isinstance(
            bad.begin(actors.put_and_fail, [1, 2], ValueError("bad")).error(), ValueError
        )
    calls = [reader.begin(actors.drain_until) for reader in readers]
    wait_for_blocked(iq, consumers=2)  # it is not over: one producer is open
    good.run(actors.put_and_close, [3, 4])
    outcomes = [call.result() for call in calls]
    assert sorted(item for items, _ in outcomes for item in items) == [1, 2, 3, 4]
    late = any_stage.cast(iq.get_consumer())
    errors = [error for _, error in outcomes]
    errors.append(late.begin(actors.drain).error())
    errors.append(readers[0].begin(actors.get_now).error())
    with pytest.raises(ProducerFailed) as caught:
        iq.join(0)
    errors.append(caught.value)
    for error in errors:
        assert isinstance(error, ProducerFailed)
        assert [repr(failure) for failure in error.failures] == ["ValueError('bad')"]
        assert repr(error.__cause__) == "ValueError('bad')"
        assert "bad" in str(error)
    if way == "with block" and any_stage.context is not None:
        cause = caught.value.failures[0].__cause__
        assert isinstance(cause, RemoteTraceback)
        assert "put_and_fail" in str(cause)
    assert totals(iq) == Totals(4, 4, 4, 0, "failed", failures=1)


def test_all_failures_are_told_the_first_as_cause(any_stage: Stage) -> None:
    iq = any_stage.queue()
    producers = [any_stage.cast(iq.get_producer()) for _ in range(3)]
    consumer = any_stage.cast(iq.get_consumer())
    iq.close()
    for number, producer in enumerate(producers):
        producer.run(actors.fail, ValueError(number))
    error = consumer.begin(actors.get).error()
    assert isinstance(error, ProducerFailed)
    assert [failure.args for failure in error.failures] == [(0,), (1,), (2,)]
    assert isinstance(error.__cause__, ValueError)
    assert error.__cause__.args == (0,)
    assert totals(iq) == Totals(0, 0, 0, 0, "failed", failures=3)


def test_a_failure_stops_everybody_where_that_was_asked_for(stage: Stage) -> None:
    iq = stage.queue(maxsize=2, on_failure="cancel")
    bad, good = (stage.cast(iq.get_producer()) for _ in range(2))
    reader = stage.cast(iq.get_consumer())
    good.run(actors.put, 1, 2)
    blocked = good.begin(actors.put, 3)
    wait_for_blocked(iq, producers=1)
    bad.run(actors.fail, ValueError("bad"))
    errors = [
        blocked.error(),
        reader.begin(actors.get).error(),
        good.begin(actors.put, 4).error(),
    ]
    with pytest.raises(Cancelled) as caught:
        iq.join(PATIENCE_S)
    for error in (*errors, caught.value):
        assert isinstance(error, Cancelled)
        assert repr(error.__cause__) == "ValueError('bad')"
    assert iq.statistics().dropped == 2


def test_a_failed_worker_is_a_failed_producer(any_stage: Stage) -> None:
    iq = any_stage.queue()
    bad, good = (any_stage.cast(iq.get_worker()) for _ in range(2))
    bad.run(actors.put, 1, 2)
    iq.close()
    assert bad.run(actors.get) == [1]
    assert good.run(actors.get) == [2]
    end = good.begin(actors.get)
    wait_for_blocked(iq, consumers=1)
    bad.run(actors.fail, ValueError("bad"))
    error = end.error()
    assert isinstance(error, ProducerFailed)
    assert [repr(failure) for failure in error.failures] == ["ValueError('bad')"]
    assert totals(iq) == Totals(2, 2, 2, 0, "failed", failures=1)


# Cancel


def test_cancel_wakes_everybody(any_stage: Stage) -> None:
    iq, full = any_stage.queue(), any_stage.queue(maxsize=1)
    reader = any_stage.cast(iq.get_consumer()).begin(actors.get)
    waiting = any_stage.cast(full.get_producer()).begin(actors.put, 1, 2)
    joining = any_stage.cast(full).begin(actors.join_queue) if any_stage.context else None
    wait_for_blocked(iq, consumers=1)
    wait_for_blocked(full, producers=1)
    began = time.monotonic()
    for queue in (iq, full):
        queue.cancel(ValueError("stop"))
    calls: list[Call[Any]] = [reader, waiting]
    if joining is not None:
        calls.append(joining)
    for call in calls:
        error = call.error()
        assert isinstance(error, Cancelled)
        assert repr(error.__cause__) == "ValueError('stop')"
        assert call.outcome().at - began < on_this_machine(KNOWN_WITHIN_S)
    assert full.statistics().dropped == 1
    with pytest.raises(Cancelled):
        full.get_producer()


# Processes that end without closing


class Way(NamedTuple):
    """A way for a process to end, and what the failure's text says about it."""

    act: Callable[..., Any] | None
    args: tuple[int, ...]
    exitcode: int
    text: str
    in_order: bool = True
    """The process had a chance to say farewell."""


WAYS = {
    "returns": Way(None, (), 0, "dropped without close|when its process returned"),
    "sys.exit(0)": Way(actors.leave_by_sys_exit, (0,), 0, "when its process returned|dropped"),
    "sys.exit(4)": Way(actors.leave_by_sys_exit, (4,), 4, "SystemExit: 4|dropped"),
    "raises": Way(actors.leave_by_error, (), 1, "ValueError: boom|dropped"),
    "os._exit": Way(actors.leave_by_exit, (3,), 3, r"ended by os\._exit\(3\) without close", False),
    "is killed": Way(None, (), -signal.SIGKILL, "was killed by SIGKILL without close", False),
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    """Each way for a process to end in turn."""
    return WAYS[request.param]


def leave(puppet: Puppet[Any], way: Way) -> float:
    """Let the puppet's process end that way. Returns when it had ended."""
    if way.exitcode < 0:
        os.kill(puppet.pid, -way.exitcode)
    elif way.act is None:
        puppet.strings.send(None)
    else:
        puppet.strings.send((way.act, way.args, {}))
    wait_until(lambda: not lives(puppet.pid), "the puppet's end")  # not asked for its exit code,
    return time.monotonic()  # for then nobody else could tell how it ended


def ended_in_time(call: Call[Any], since: float) -> bool:
    """Whether the call ended soon enough after the moment *since*."""
    return call.outcome().at - since < on_this_machine(KNOWN_WITHIN_S)


def test_a_producers_process_ends_while_it_is_idle(stage: Stage, way: Way) -> None:
    iq = stage.queue()
    lost = stage.cast(iq.get_producer())
    other = stage.cast(iq.get_producer())
    reader = stage.cast(iq.get_consumer())
    iq.close()
    lost.run(actors.put, 1, 2)
    other.run(actors.put_and_close, [3])
    reading = reader.begin(actors.drain_until)
    wait_for_blocked(iq, consumers=1)
    ended = leave(lost, way)
    items, error = reading.result()
    assert ended_in_time(reading, ended)
    assert items == [1, 2, 3]
    assert_failed(error, lost, way)
    assert totals(iq) == Totals(3, 3, 3, 0, "failed", failures=1)


def assert_failed(
    error: BaseException, lost: Puppet[Any], way: Way, file: str = Path(__file__).name
) -> None:
    """*error* says that one producer failed, of which process, how, and where it was made."""
    assert isinstance(error, ProducerFailed)
    assert len(error.failures) == 1
    cause = error.failures[0]
    assert isinstance(cause, ProducerFailed)
    # A spawned process of Python 3.13 has forgotten its error when it can still tell others.
    forgotten = sys.version_info >= (3, 13) and (
        lost.method == "spawn" or "ended by an exception or sys.exit" in str(cause)
    )
    assert (
        (forgotten and way.exitcode)
        or re.search(way.text, str(cause))
        or (
            # Whose parent has waited for it, as the fork server does, of that nobody can tell more.
            not way.in_order
            and lost.method == "forkserver"
            and "was killed by a signal, or called os._exit without close()" in str(cause)
        )
    ), cause
    assert f"pid {lost.pid}" in str(cause)
    assert f"{file}:" in str(cause)
    # What the fork server has to tell may come a moment later.
    wait_until(lambda: lost.process.exitcode is not None, "the exit code")
    assert lost.process.exitcode == way.exitcode


def test_a_process_ends_before_its_producers_first_call(stage: Stage, way: Way) -> None:
    iq = stage.queue()
    lost = stage.cast(iq.get_producer())
    reader = stage.cast(iq.get_consumer())
    iq.close()
    lost.run(actors.nothing)
    reading = reader.begin(actors.drain_until)
    wait_for_blocked(iq, consumers=1)
    ended = leave(lost, way)
    items, error = reading.result()
    assert ended_in_time(reading, ended)
    assert items == []
    assert_failed(error, lost, way)
    assert totals(iq) == Totals(0, 0, 0, 0, "failed", failures=1)


def test_a_consumers_process_ends_with_an_item_in_hand(stage: Stage, way: Way) -> None:
    """That item is finished if the process ended in order, and else lost."""
    iq = stage.queue()
    producer = stage.cast(iq.get_producer())
    lost, reader = (stage.cast(iq.get_consumer()) for _ in range(2))
    iq.close()
    producer.run(actors.put_and_close, range(5))
    assert lost.run(actors.get, 2) == [0, 1]
    joining = stage.cast(iq).begin(actors.join_queue)
    assert reader.run(actors.drain) == [2, 3, 4]  # Done: what is in hand does not come back
    assert not joining.is_over()
    ended = leave(lost, way)
    if way.in_order:
        assert joining.result()
        assert totals(iq) == Totals(5, 5, 5, 0, "done")
    else:
        error = joining.error()
        assert isinstance(error, ItemsLost)
        assert error.count == 1
        assert "killed; redeliver=True on the queue hands such items out again" in str(error)
        assert totals(iq) == Totals(5, 5, 4, 0, "done", lost=1)
    assert ended_in_time(joining, ended)


def test_the_last_consumers_process_ends(stage: Stage, way: Way) -> None:
    """Whether it had ever been used or not, with a put waiting for it."""
    iq = stage.queue(maxsize=1)
    producer = stage.cast(iq.get_producer())
    lost = stage.cast(iq.get_consumer())
    lost.run(actors.nothing)
    iq.close()
    producer.run(actors.put, 1)
    waiting = producer.begin(actors.put, 2)
    wait_for_blocked(iq, producers=1)
    ended = leave(lost, way)
    assert isinstance(waiting.error(), ConsumersGone)
    assert ended_in_time(waiting, ended)
    producer.run(actors.close)
    assert totals(iq) == Totals(1, 0, 0, 1, "abandoned")
    with pytest.raises(ConsumersGone):
        iq.join(PATIENCE_S)


def test_a_workers_process_ends_in_the_middle_of_an_item(stage: Stage, way: Way) -> None:
    """What it would have put is missing, so it has failed."""
    iq = stage.queue()
    lost, other = (stage.cast(iq.get_worker()) for _ in range(2))
    lost.run(actors.put, 1, 2)
    iq.close()
    assert lost.run(actors.get) == [1]
    reading = other.begin(actors.drain_until)
    wait_for_blocked(iq, consumers=1)
    ended = leave(lost, way)
    items, error = reading.result()
    assert ended_in_time(reading, ended)
    assert items == [2]
    assert_failed(error, lost, way)
    if way.in_order:
        assert totals(iq) == Totals(2, 2, 2, 0, "failed", failures=1)
    else:
        assert totals(iq) == Totals(2, 2, 1, 0, "failed", failures=1, lost=1)


def test_a_workers_process_ends_before_it_asks_for_an_item(stage: Stage, way: Way) -> None:
    iq = stage.queue()
    lost, other = (stage.cast(iq.get_worker()) for _ in range(2))
    lost.run(actors.nothing)
    iq.close()
    reading = other.begin(actors.drain_until)
    wait_for_blocked(iq, consumers=1)
    ended = leave(lost, way)
    items, error = reading.result()
    assert ended_in_time(reading, ended)
    assert items == []
    assert_failed(error, lost, way)


def test_a_workers_process_ends_between_items(stage: Stage) -> None:
    """Killed while it waits in get: nothing is missing."""
    iq = stage.queue()
    lost, other = (stage.cast(iq.get_worker()) for _ in range(2))
    root = stage.cast(iq.get_producer())
    waiting = lost.begin(actors.get)
    wait_for_blocked(iq, consumers=1)
    kill_outside_the_lock(iq, lost)
    with pytest.raises(Ended):
        waiting.result()
    root.run(actors.put_and_close, [0])
    iq.close()
    assert other.begin(actors.grow, 10).result() == 10
    assert totals(iq) == Totals(10, 10, 10, 0, "done")


def test_the_queues_maker_ends(stage: Stage, way: Way) -> None:
    """In order, it closes the queue; else it counts as a failed producer. Endpoints live on."""
    maker = stage.cast(None)
    producer, consumer = maker.run(actors.make_queue)
    writer, reader = stage.cast(producer), stage.cast(consumer)
    del producer, consumer
    writer.run(actors.put, 1)
    reading = reader.begin(actors.drain_until)
    ended = leave(maker, way)
    writer.run(actors.put_and_close, [2, 3])
    items, error = reading.result()
    assert ended_in_time(reading, ended)
    assert items == [1, 2, 3]
    if way.in_order and way.exitcode == 0:
        assert isinstance(error, Done)
    else:
        assert_failed(error, maker, way, file="actors.py")
        assert "the queue made at" in str(error)


# Processes that are killed


def kill_outside_the_lock(iq: IterableQueue[Any], puppet: Puppet[Any]) -> float:
    """Kill the puppet's process at a moment at which it does not hold the queue's lock.

    A process that waits looks around four times a second, with the lock held. So it is stopped
    first, and goes on if somebody holds the lock then. Returns when it had ended.
    """

    stop_outside_the_lock(iq, puppet)
    os.kill(puppet.pid, signal.SIGKILL)
    wait_until(lambda: not lives(puppet.pid), "the puppet's end")
    return time.monotonic()


def state_of(pid: int) -> str:
    """R, S, D, T or Z, as the kernel has it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_producer_is_killed_while_it_waits_in_put(stage: Stage) -> None:
    iq = stage.queue(maxsize=1)
    lost, other = (stage.cast(iq.get_producer()) for _ in range(2))
    reader = stage.cast(iq.get_consumer())
    iq.close()
    lost.run(actors.put, 1)
    call = lost.begin(actors.put, 2)
    wait_for_blocked(iq, producers=1)
    waiting = other.begin(actors.put_and_close, [3, 4])
    wait_for_blocked(iq, producers=2)
    ended = kill_outside_the_lock(iq, lost)
    items, error = reader.run(actors.drain_until)
    waiting.result()
    with pytest.raises(Ended):
        call.result()
    assert items == [1, 3, 4]  # what was not put never happened
    assert_failed(error, lost, WAYS["is killed"])
    assert time.monotonic() - ended < on_this_machine(KNOWN_WITHIN_S)
    assert totals(iq) == Totals(3, 3, 3, 0, "failed", failures=1)


def test_a_consumer_is_killed_while_it_waits_in_get(stage: Stage) -> None:
    iq = stage.queue()
    producer = stage.cast(iq.get_producer())
    lost, other = (stage.cast(iq.get_consumer()) for _ in range(2))
    call = lost.begin(actors.get)
    wait_for_blocked(iq, consumers=1)
    reading = other.begin(actors.drain)
    wait_for_blocked(iq, consumers=2)
    kill_outside_the_lock(iq, lost)
    with pytest.raises(Ended):
        call.result()
    producer.run(actors.put_and_close, range(10))
    iq.close()
    assert reading.result() == list(range(10))
    assert iq.join(PATIENCE_S)
    assert totals(iq) == Totals(10, 10, 10, 0, "done")


def test_the_last_consumer_is_killed_while_it_waits_in_get(stage: Stage) -> None:
    iq = stage.queue(maxsize=1)
    producer = stage.cast(iq.get_producer())
    lost = stage.cast(iq.get_consumer())
    iq.close()
    lost.begin(actors.get)
    wait_for_blocked(iq, consumers=1)
    ended = kill_outside_the_lock(iq, lost)
    waiting = producer.begin(actors.put, 1, 2)
    assert isinstance(waiting.error(), ConsumersGone)
    assert ended_in_time(waiting, ended)


@pytest.mark.parametrize("waits_in", ["get", "put"])
def test_a_call_is_woken_although_one_that_was_woken_is_dead(stage: Stage, waits_in: str) -> None:
    """A wake-up that went to a process which is stopped, and then killed, is made up for."""
    iq = stage.queue(maxsize=1)
    producer = stage.cast(iq.get_producer())
    consumer = stage.cast(iq.get_consumer())
    if waits_in == "get":
        lost: Puppet[Any] = stage.cast(iq.get_consumer())
        lost.begin(actors.get)
        wait_for_blocked(iq, consumers=1)
        ended = kill_outside_the_lock(iq, lost)  # still counted as waiting
        reading: Call[Any] = consumer.begin(actors.get)
        wait_until(lambda: iq._core.ledger.head[cells_.WAIT_ITEM] > 1, "both are counted")
        producer.run(actors.put, 1)
        assert reading.result() == [1]
    else:
        producer.run(actors.put, 1)
        lost = stage.cast(iq.get_producer())
        lost.begin(actors.put, 0)
        wait_for_blocked(iq, producers=1)
        ended = kill_outside_the_lock(iq, lost)
        reading = producer.begin(actors.put, 2)
        wait_until(lambda: iq._core.ledger.head[cells_.WAIT_ROOM] > 1, "both are counted")
        assert consumer.run(actors.get) == [1]
        reading.result()
    assert ended_in_time(reading, ended)


@pytest.mark.parametrize("kind", ["producer", "consumer", "worker"])
def test_a_process_is_killed_as_soon_as_it_was_started(stage: Stage, kind: str) -> None:
    """Before it ran a line of Python, under spawn; somewhere on its way, under the others."""
    iq = stage.queue()
    writer = stage.cast(iq.get_producer())
    reader = stage.cast(iq.get_consumer())
    writer.run(actors.put_and_close, [1, 2])
    reading = reader.begin(actors.drain_until)
    wait_for_blocked(iq, consumers=1)
    make: Callable[[], Any] = getattr(iq, f"get_{kind}")
    lost = stage.cast(make())
    ended = leave(lost, WAYS["is killed"])
    iq.close()
    items, error = reading.result()
    assert ended_in_time(reading, ended)
    assert items == [1, 2]
    if kind == "consumer":
        assert isinstance(error, Done)
        assert totals(iq) == Totals(2, 2, 2, 0, "done")
    else:
        assert isinstance(error, ProducerFailed)
        assert len(error.failures) == 1
        assert "was killed by SIGKILL" in str(error) or "before it began to run" in str(error)
        assert totals(iq) == Totals(2, 2, 2, 0, "failed", failures=1)


def test_the_only_consumer_is_killed_as_soon_as_it_was_started(stage: Stage) -> None:
    iq = stage.queue(maxsize=1)
    producer = stage.cast(iq.get_producer())
    lost = stage.cast(iq.get_consumer())
    iq.close()
    ended = leave(lost, WAYS["is killed"])
    waiting = producer.begin(actors.put, 1, 2)
    assert isinstance(waiting.error(), ConsumersGone)
    assert ended_in_time(waiting, ended)


def test_an_item_in_a_killed_consumers_hand_is_handed_out_again(stage: Stage) -> None:
    iq = stage.queue(redeliver=True)
    stage.cast(iq.get_producer()).run(actors.put_and_close, [1, 2, 3])
    iq.close()
    lost, reader = (stage.cast(iq.get_consumer()) for _ in range(2))
    assert lost.run(actors.get, 2) == [1, 2]
    reading = reader.begin(actors.drain)
    wait_for_blocked(iq, consumers=1)  # not done: what is in hand may come back
    ended = leave(lost, WAYS["is killed"])
    assert reading.result() == [3, 2]
    assert ended_in_time(reading, ended)
    stats = iq.statistics()
    assert (stats.put, stats.taken, stats.finished, stats.lost) == (3, 4, 3, 0)
    assert (stats.redelivered, stats.state) == (1, "done")
    assert iq.join(0)


def test_an_item_that_kills_its_consumers_is_given_up(stage: Stage) -> None:
    iq = stage.queue(redeliver=True, max_deliveries=2)
    stage.cast(iq.get_producer()).run(actors.put_and_close, [1])
    for _ in range(2):
        lost = stage.cast(iq.get_consumer())
        assert lost.run(actors.get) == [1]
        leave(lost, WAYS["is killed"])
    iq.close()
    last = stage.cast(iq.get_consumer())
    assert last.run(actors.drain) == []
    with pytest.raises(ItemsLost, match=r"each was handed out 2 time.* is given up") as caught:
        iq.join(PATIENCE_S)
    assert caught.value.count == 1
    stats = iq.statistics()
    assert (stats.put, stats.taken, stats.lost, stats.redelivered) == (1, 2, 1, 1)


def test_everybody_but_one_is_killed_at_once(stage: Stage) -> None:
    iq = stage.queue()
    producers = [stage.cast(iq.get_producer()) for _ in range(2)]
    consumers = [stage.cast(iq.get_consumer()) for _ in range(2)]
    survivor = stage.cast(iq.get_consumer())
    iq.close()
    for number, producer in enumerate(producers):
        producer.run(actors.put, *range(10 * number, 10 * number + 10))
    for number, consumer in enumerate(consumers):
        assert consumer.run(actors.get) == [number]
    victims: list[Puppet[Any]] = [*producers, *consumers]
    for puppet in victims:
        os.kill(puppet.pid, signal.SIGKILL)
    items, error = survivor.run(actors.drain_until)
    assert items == list(range(2, 20))
    assert isinstance(error, ProducerFailed)
    assert len(error.failures) == 2
    assert totals(iq) == Totals(20, 20, 18, 0, "failed", lost=2, failures=2)


# Processes that are killed inside the lock


@pytest.fixture
def lock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which lock queues have: a "mutex", or a "semaphore" as where there are no such mutexes.

    The latter with fork only: other processes would find that there are some.
    """
    kind: str = request.param
    if kind == "semaphore":
        monkeypatch.setattr(_mutex, "is_supported", lambda: False)
    elif not _mutex.is_supported():
        pytest.skip("there are no robust mutexes here")
    return kind


def with_locks(names: str, *cases: tuple[object, ...]) -> pytest.MarkDecorator:
    """Run for each lock and start method of *cases*, and what else is in them under *names*.

    Not all with all: what a lock makes of a death does not hang on how its process was started.
    """
    return pytest.mark.parametrize(
        ("lock", "start_method", *names.split()),
        [pytest.param(*case, marks=FORKS if case[1] == "fork" else ()) for case in cases],
        indirect=["lock", "start_method"],
    )


named_or_not = with_locks(
    "named",
    ("mutex", "fork", True),
    ("mutex", "spawn", True),
    ("mutex", "fork", False),
    ("mutex", "forkserver", False),
    ("semaphore", "fork", True),
    ("semaphore", "fork", False),
)
"""*named*: whether the process inside the lock has said who it is, or is killed before that."""


def known_in_time(
    call: Call[Any], since: float, lock: str, *, named: bool, later: float = 0.0
) -> bool:
    """`ended_in_time` for the death of a process that had the lock."""
    told = named or lock == "mutex"
    allowed = KNOWN_WITHIN_S + later + (0.0 if told else NAMELESS_S)
    return call.outcome().at - since < on_this_machine(allowed)


@named_or_not
def test_a_producer_is_killed_inside_the_lock(
    lock: str, stage: Stage, tmp_path: Path, named: bool
) -> None:
    """For those who wait, poll, put and join it is as if it had been killed anywhere else."""
    iq, inside = stage.queue(maxsize=1), tmp_path / "inside"
    lost, other = (stage.cast(iq.get_producer()) for _ in range(2))
    getting, poller = (stage.cast(iq.get_consumer()) for _ in range(2))
    joiner = stage.cast(iq)
    iq.close()
    for puppet in (lost, other, poller, joiner):
        puppet.run(actors.nothing)
    reading = getting.begin(actors.drain_until)
    wait_for_blocked(iq, consumers=1)
    joining = joiner.begin(actors.join_queue)
    wait_until(lambda: iq._core.ledger.head[cells_.WAIT_END], "join waits")
    lost.begin(actors.stay_inside, inside, named)
    wait_until(inside.exists, "the process is inside the lock")
    putting = other.begin(actors.put_and_close, range(10))
    polling = poller.begin(actors.poll, 0.01)
    ended = leave(lost, WAYS["is killed"])
    putting.result()
    items: list[int] = []
    for call in (reading, polling):
        some, error = call.result()
        items += some
        assert_failed(error, lost, WAYS["is killed"])
    assert sorted(items) == list(range(10))
    assert_failed(joining.error(), lost, WAYS["is killed"])
    for ending in (putting, reading, polling, joining):
        assert known_in_time(ending, ended, lock, named=named)
    assert totals(iq) == Totals(10, 10, 10, 0, "failed", failures=1)


@named_or_not
def test_the_last_consumer_is_killed_inside_the_lock(
    lock: str, stage: Stage, tmp_path: Path, named: bool
) -> None:
    iq, inside = stage.queue(maxsize=1), tmp_path / "inside"
    producer = stage.cast(iq.get_producer())
    lost = stage.cast(iq.get_consumer())
    iq.close()
    producer.run(actors.put, 1)
    assert lost.run(actors.get) == [1]
    lost.begin(actors.stay_inside, inside, named)
    wait_until(inside.exists, "the process is inside the lock")
    waiting = producer.begin(actors.put, 2, 3)
    ended = leave(lost, WAYS["is killed"])
    assert isinstance(waiting.error(), ConsumersGone)
    assert known_in_time(waiting, ended, lock, named=named)
    producer.run(actors.close)
    assert totals(iq) == Totals(2, 1, 0, 1, "abandoned", lost=1)


@named_or_not
def test_a_worker_is_killed_inside_the_lock(
    lock: str, stage: Stage, tmp_path: Path, named: bool
) -> None:
    iq, inside = stage.queue(), tmp_path / "inside"
    lost, other = (stage.cast(iq.get_worker()) for _ in range(2))
    lost.run(actors.put, 1, 2)
    iq.close()
    assert lost.run(actors.get) == [1]
    reading = other.begin(actors.drain_until)
    wait_for_blocked(iq, consumers=1)
    lost.begin(actors.stay_inside, inside, named)
    wait_until(inside.exists, "the process is inside the lock")
    ended = leave(lost, WAYS["is killed"])
    items, error = reading.result()
    assert known_in_time(reading, ended, lock, named=named)
    assert items == [2]
    assert_failed(error, lost, WAYS["is killed"])
    assert totals(iq) == Totals(2, 2, 1, 0, "failed", failures=1, lost=1)


@with_locks(
    "moment",
    ("mutex", "fork", "joining"),
    ("mutex", "spawn", "joining"),
    ("mutex", "fork", "leaving"),
    ("mutex", "forkserver", "leaving"),
    ("semaphore", "fork", "joining"),
    ("semaphore", "fork", "leaving"),
)
def test_a_process_is_killed_inside_the_lock_when_it_has_no_slot(
    lock: str, stage: Stage, tmp_path: Path, moment: str
) -> None:
    """It takes part not yet, or not any more."""
    iq, inside = stage.queue(), tmp_path / "inside"
    producer = stage.cast(iq.get_producer())
    reader = stage.cast(iq.get_consumer())
    for puppet in (producer, reader):
        puppet.run(actors.nothing)
    lost: Puppet[Any]
    if moment == "joining":
        lost = stage.cast(None)
        lost.begin(actors.stay_while_joining, pickle.dumps(iq.get_consumer()), inside)
    else:
        lost = stage.cast(iq.get_consumer())
        lost.begin(actors.stay_while_leaving, inside)
    wait_until(inside.exists, "the process is inside the lock")
    reading = reader.begin(actors.drain)
    putting = producer.begin(actors.put_and_close, range(10))
    ended = leave(lost, WAYS["is killed"])
    iq.close()
    assert reading.result() == list(range(10))
    for call in (putting, reading):
        assert known_in_time(call, ended, lock, named=moment == "joining")
    assert totals(iq) == Totals(10, 10, 10, 0, "done")


@named_or_not
def test_everybody_in_the_lock_one_after_another_is_killed(
    lock: str, stage: Stage, tmp_path: Path, named: bool
) -> None:
    """Each is mended like the first."""
    iq = stage.queue()
    writer, reader = stage.cast(iq.get_producer()), stage.cast(iq.get_consumer())
    victims = [stage.cast(iq.get_consumer()) for _ in range(3)]
    writer.run(actors.put, *range(5))
    for number, victim in enumerate(victims):
        assert victim.run(actors.get) == [number]
        inside = tmp_path / f"inside.{number}"
        victim.begin(actors.stay_inside, inside, named)
        wait_until(inside.exists, "the process is inside the lock")
        ended = leave(victim, WAYS["is killed"])
        putting = writer.begin(actors.put, 10 + number)
        putting.result()
        assert known_in_time(putting, ended, lock, named=named)
    writer.run(actors.close)
    iq.close()
    assert reader.run(actors.drain) == [3, 4, 10, 11, 12]
    wait_until(
        lambda: iq.statistics().lost == 3, "three deaths are known", on_this_machine(KNOWN_WITHIN_S)
    )
    assert totals(iq) == Totals(8, 8, 5, 0, "done", lost=3)


@named_or_not
def test_one_who_seldom_polls_goes_on_after_a_kill_inside_the_lock(
    lock: str, stage: Stage, tmp_path: Path, named: bool
) -> None:
    iq, inside = stage.queue(), tmp_path / "inside"
    writer = stage.cast(iq.get_producer())
    lost, poller = (stage.cast(iq.get_consumer()) for _ in range(2))
    writer.run(actors.put_and_close, [1, 2])
    iq.close()
    poller.run(actors.nothing)
    lost.begin(actors.stay_inside, inside, named)
    wait_until(inside.exists, "the process is inside the lock")
    polling = poller.begin(actors.poll, 0.6)
    ended = leave(lost, WAYS["is killed"])
    items, error = polling.result()
    assert items == [1, 2]
    assert isinstance(error, Done)
    assert known_in_time(polling, ended, lock, named=named, later=0.6)


# Processes that are killed while another one is stopped


@with_locks("", ("mutex", "fork"), ("mutex", "spawn"), ("semaphore", "fork"))
def test_a_kill_inside_the_lock_is_mended_beside_a_stopped_process(
    lock: str, stage: Stage, tmp_path: Path
) -> None:
    """The lock says whose it is, so it can't be the stopped one's."""
    iq, inside = stage.queue(), tmp_path / "inside"
    lost, other = (stage.cast(iq.get_producer()) for _ in range(2))
    reader, stopped = (stage.cast(iq.get_consumer()) for _ in range(2))
    iq.close()
    for puppet in (lost, other, stopped):
        puppet.run(actors.nothing)
    reading = reader.begin(actors.drain_until)
    wait_for_blocked(iq, consumers=1)
    stop(stopped)
    lost.begin(actors.stay_inside, inside)
    wait_until(inside.exists, "the process is inside the lock")
    ended = leave(lost, WAYS["is killed"])
    other.run(actors.put_and_close, [1, 2])
    items, error = reading.result()
    assert items == [1, 2]
    assert ended_in_time(reading, ended)
    assert_failed(error, lost, WAYS["is killed"])
    os.kill(stopped.pid, signal.SIGCONT)
    assert isinstance(stopped.begin(actors.get).error(), ProducerFailed)


@with_locks("", ("mutex", "fork"), ("mutex", "forkserver"))
def test_a_kill_before_the_name_is_written_beside_a_stopped_process_breaks_nothing(
    lock: str, stage: Stage, tmp_path: Path
) -> None:
    """The kernel knows whose lock it was: everybody goes on."""
    iq, inside = stage.queue(maxsize=1), tmp_path / "inside"
    lost, full, late = (stage.cast(iq.get_producer()) for _ in range(3))
    getting, poller, stopped = (stage.cast(iq.get_consumer()) for _ in range(3))
    joiner = stage.cast(iq)
    for puppet in (lost, late, poller, full, joiner, stopped):
        puppet.run(actors.nothing)
    reading = getting.begin(actors.drain_until)
    wait_for_blocked(iq, consumers=1)
    joining = joiner.begin(actors.join_queue)
    wait_until(lambda: iq._core.ledger.head[cells_.WAIT_END], "join waits")
    stop(stopped)
    lost.begin(actors.stay_inside, inside, False)
    wait_until(inside.exists, "the process is inside the lock")
    putting = full.begin(actors.put_and_close, [1, 2])
    polling = poller.begin(actors.poll, 0.01)
    ended = leave(lost, WAYS["is killed"])
    putting.result()
    late.run(actors.put_and_close, [3])
    iq.close()
    items: list[int] = []
    for call in (reading, polling):
        some, error = call.result()
        items += some
        assert_failed(error, lost, WAYS["is killed"])
    assert sorted(items) == [1, 2, 3]
    assert_failed(joining.error(), lost, WAYS["is killed"])
    for ending in (putting, reading, polling, joining):
        assert known_in_time(ending, ended, lock, named=False)
    os.kill(stopped.pid, signal.SIGCONT)
    assert_failed(stopped.begin(actors.get).error(), lost, WAYS["is killed"])
    assert totals(iq) == Totals(3, 3, 3, 0, "failed", failures=1)


@with_locks("", ("semaphore", "fork"))
def test_a_kill_before_the_name_is_written_beside_a_stopped_process_breaks_the_channel(
    lock: str, stage: Stage, tmp_path: Path
) -> None:
    """Everybody gets `ChannelBroken`: who waits, who polls, and who comes later."""
    iq, inside = stage.queue(maxsize=1), tmp_path / "inside"
    lost, full, late = (stage.cast(iq.get_producer()) for _ in range(3))
    getting, poller, stopped = (stage.cast(iq.get_consumer()) for _ in range(3))
    joiner = stage.cast(iq)
    for puppet in (lost, late, poller, full, joiner, stopped):
        puppet.run(actors.nothing)
    calls: list[Call[Any]] = [getting.begin(actors.get)]
    wait_for_blocked(iq, consumers=1)
    calls.append(joiner.begin(actors.join_queue))
    wait_until(lambda: iq._core.ledger.head[cells_.WAIT_END], "join waits")
    stop(stopped)
    lost.begin(actors.stay_inside, inside, False)
    wait_until(inside.exists, "the process is inside the lock")
    calls.append(full.begin(actors.put, 1, 2))
    polling = poller.begin(actors.poll, 0.01)
    ended = leave(lost, WAYS["is killed"])
    errors = [call.error() for call in calls] + [polling.result()[1]]
    for error in errors:
        assert isinstance(error, ChannelBroken)
        assert re.search(r"a process died.*stopped.*Make a new queue", str(error))
    for call in (*calls, polling):
        assert known_in_time(call, ended, lock, named=False)
    os.kill(stopped.pid, signal.SIGCONT)
    late_calls: list[Call[Any]] = [
        late.begin(actors.put, 3),
        poller.begin(actors.get_now),
        getting.begin(actors.get_within, 5.0),
        full.begin(actors.close),
        joiner.begin(actors.close_queue),
        stopped.begin(actors.get),
    ]
    for call in late_calls:
        assert isinstance(call.error(), ChannelBroken)
        assert call.outcome().at - call.outcome().began < on_this_machine(KNOWN_WITHIN_S)
    requests: list[Callable[[], object]] = [
        iq.get_producer,
        iq.get_consumer,
        iq.get_worker,
        iq.statistics,
        iq.explain,
        iq.close,
        iq.join,
        iq.cancel,
    ]
    for request in requests:
        with pytest.raises(ChannelBroken, match="Make a new queue"):
            request()


@with_locks("", ("mutex", "fork"), ("mutex", "spawn"), ("semaphore", "fork"))
def test_nothing_breaks_where_the_process_without_a_name_is_the_stopped_one(
    lock: str, stage: Stage, tmp_path: Path
) -> None:
    """Nobody died, so it is waited for; with a time-out, until that."""
    iq = stage.queue()
    inside, out = tmp_path / "inside", tmp_path / "out"
    writer = stage.cast(iq.get_producer())
    reader, stopped = (stage.cast(iq.get_consumer()) for _ in range(2))
    for puppet in (writer, reader, stopped):
        puppet.run(actors.nothing)
    staying = stopped.begin(actors.stay_while, inside, out, named=False)
    wait_until(inside.exists, "the process is inside the lock")
    stop(stopped)
    putting = writer.begin(actors.put_and_close, [1, 2])
    assert_timed_out(reader.begin(actors.get_within, 2.0), Empty, 2.0)
    assert not putting.is_over()
    out.touch()
    os.kill(stopped.pid, signal.SIGCONT)
    staying.result()
    putting.result()
    iq.close()
    assert reader.run(actors.drain) == [1, 2]
    assert stopped.run(actors.drain) == []
    assert totals(iq) == Totals(2, 2, 2, 0, "done")


@with_locks("times", ("mutex", "fork", 2), ("semaphore", "fork", 1), ("semaphore", "fork", 2))
def test_nothing_breaks_where_the_process_without_a_name_is_only_slow(
    lock: str, stage: Stage, tmp_path: Path, times: int
) -> None:
    """On a busy machine it may not run for a while just there, more than once."""
    iq = stage.queue(maxsize=1)
    writer = stage.cast(iq.get_producer())
    slow, stopped, lost = (stage.cast(iq.get_consumer()) for _ in range(3))
    writer.run(actors.put, 1)
    for puppet in (slow, stopped, lost):
        puppet.run(actors.nothing)
    for number in range(times):
        inside, out = tmp_path / f"inside.{number}", tmp_path / f"out.{number}"
        if number == times - 1:
            stop_outside_the_lock(iq, stopped)
            kill_outside_the_lock(iq, lost)
        staying = slow.begin(actors.stay_while, inside, out, named=False)
        wait_until(inside.exists, "the process is inside the lock")
        assert isinstance(writer.begin(actors.put_within, 2, 0.02).error(), Full)
        out.touch()
        staying.result()
        for _ in range(3):
            assert isinstance(writer.begin(actors.put_within, 2, 0.3).error(), Full)
    os.kill(stopped.pid, signal.SIGCONT)
    assert slow.run(actors.get) == [1]
    writer.run(actors.put_and_close, [2])
    iq.close()
    assert stopped.run(actors.drain) == [2]


# Processes that are stopped


def stop(puppet: Puppet[Any]) -> None:
    """Stop the puppet's process, and wait until it is."""
    os.kill(puppet.pid, signal.SIGSTOP)
    wait_until(lambda: state_of(puppet.pid) == "T", "the process is stopped")


def stop_outside_the_lock(iq: IterableQueue[Any], puppet: Puppet[Any]) -> None:
    """The same, at a moment at which it does not hold the queue's lock."""

    def stopped_outside() -> bool:
        stop(puppet)
        with suppress(KeyError), iq._core.runtime.trylock:
            return True
        os.kill(puppet.pid, signal.SIGCONT)
        return False

    wait_until(stopped_outside, "a moment at which the lock is free")


def assert_timed_out(call: Call[Any], error: type[BaseException] | None, timeout: float) -> None:
    """It ended by *error* (None: returned False), and took as long as its time-out says."""
    outcome = call.outcome()
    if error is None:
        assert outcome.value is False
    else:
        assert type(outcome.error) is error
    assert timeout <= outcome.at - outcome.began < timeout + on_this_machine(LATE_S)


@pytest.mark.parametrize("stopped_in", ["nothing", "get", "put"])
def test_a_stopped_process_delays_only_itself(stage: Stage, stopped_in: str) -> None:
    iq = stage.queue(maxsize=1)
    producer, stopped_producer = (stage.cast(iq.get_producer()) for _ in range(2))
    consumer, stopped_consumer = (stage.cast(iq.get_consumer()) for _ in range(2))
    joiner = stage.cast(iq)
    waiting: Call[Any] | None = None
    match stopped_in:
        case "get":
            waiting = stopped_consumer.begin(actors.get)
            wait_for_blocked(iq, consumers=1)
            stop_outside_the_lock(iq, stopped_consumer)
        case "put":
            producer.run(actors.put, 0)
            waiting = stopped_producer.begin(actors.put, 1)
            wait_for_blocked(iq, producers=1)
            stop_outside_the_lock(iq, stopped_producer)
            assert consumer.run(actors.get) == [0]  # which wakes the one that is stopped
        case _:
            stopped_consumer.run(actors.nothing)
            stop(stopped_consumer)
    began = time.monotonic()
    reading = consumer.begin(actors.get)
    producer.run(actors.put, 2)
    assert reading.result() == [2]
    assert reading.outcome().at - began < on_this_machine(LATE_S)
    assert_timed_out(consumer.begin(actors.get_within, 0.3), Empty, 0.3)
    producer.run(actors.put, 3)
    assert_timed_out(producer.begin(actors.put_within, 4, 0.3), Full, 0.3)
    assert_timed_out(joiner.begin(actors.join_queue, 0.3), None, 0.3)
    for puppet in (stopped_producer, stopped_consumer):
        os.kill(puppet.pid, signal.SIGCONT)
    if stopped_in == "get":
        assert waiting is not None
        assert waiting.result() == [3]
        stopped_producer.run(actors.put, 5)
        assert consumer.run(actors.get) == [5]
    else:
        assert consumer.run(actors.get) == [3]
        if waiting is not None:
            waiting.result()
            assert consumer.run(actors.get) == [1]
    for puppet in (producer, stopped_producer):
        puppet.run(actors.close)
    iq.close()
    assert stopped_consumer.run(actors.drain) == consumer.run(actors.drain) == []
    put = {"nothing": 2, "get": 3, "put": 4}[stopped_in]
    assert totals(iq) == Totals(put, put, put, 0, "done")


@with_locks(
    "", ("mutex", "fork"), ("mutex", "spawn"), ("mutex", "forkserver"), ("semaphore", "fork")
)
def test_time_outs_hold_while_a_process_is_stopped_inside_the_lock(
    lock: str, stage: Stage, tmp_path: Path
) -> None:
    """Those of calls that came later, and of those that were waiting already."""
    iq, full = stage.queue(), stage.queue(maxsize=1)
    inside, out = tmp_path / "inside", tmp_path / "out"
    writer, stopped_writer = (stage.cast(full.get_producer()) for _ in range(2))
    reader, late, stopped = (stage.cast(iq.get_consumer()) for _ in range(3))
    joiner = stage.cast(iq)
    for puppet in (reader, late, stopped, stopped_writer):
        puppet.run(actors.nothing)
    writer.run(actors.put, 1)
    waiting: list[tuple[Call[Any], type[BaseException] | None]] = [
        (reader.begin(actors.get_within, 0.8), Empty),
        (writer.begin(actors.put_within, 2, 0.8), Full),
        (joiner.begin(actors.join_queue, 0.8), None),
    ]
    wait_for_blocked(iq, consumers=1)
    wait_for_blocked(full, producers=1)
    wait_until(lambda: iq._core.ledger.head[cells_.WAIT_END], "join waits")
    staying = [
        stopped.begin(actors.stay_while, inside.with_suffix(".1"), out),
        stopped_writer.begin(actors.stay_while, inside.with_suffix(".2"), out),
    ]
    wait_until(inside.with_suffix(".1").exists, "the one process is inside the lock")
    wait_until(inside.with_suffix(".2").exists, "the other process is inside the lock")
    stop(stopped)
    stop(stopped_writer)
    for call, error in waiting:
        assert_timed_out(call, error, 0.8)
    assert_timed_out(late.begin(actors.get_within, 0.4), Empty, 0.4)
    assert_timed_out(late.begin(actors.get_now), Empty, 0.0)
    assert_timed_out(writer.begin(actors.put_within, 2, 0.4), Full, 0.4)
    assert_timed_out(writer.begin(actors.put_now, 2), Full, 0.0)
    assert_timed_out(joiner.begin(actors.join_queue, 0.4), None, 0.4)
    out.touch()
    for puppet in (stopped, stopped_writer):
        os.kill(puppet.pid, signal.SIGCONT)
    for stay in staying:
        stay.result()
    full.close()
    for puppet in (writer, stopped_writer):
        puppet.run(actors.close)
    assert stage.cast(full.get_consumer()).run(actors.drain) == [1]
    assert totals(full) == Totals(1, 1, 1, 0, "done")
    iq.close()
    assert reader.run(actors.drain) == late.run(actors.drain) == stopped.run(actors.drain) == []
    assert totals(iq) == Totals(0, 0, 0, 0, "done")


# The directory is removed by somebody else


@pytest.mark.parametrize("waits_in", ["get", "put"])
def test_a_removed_directory_breaks_the_channel(stage: Stage, waits_in: str) -> None:
    """For those who wait, who come later, and who have not come yet."""
    iq = stage.queue(maxsize=1)
    writer, late_writer = (stage.cast(iq.get_producer()) for _ in range(2))
    reader, late_reader = (stage.cast(iq.get_consumer()) for _ in range(2))
    finder = stage.cast(None)
    data = pickle.dumps(iq.get_producer())
    for puppet in (late_writer, late_reader, finder):
        puppet.run(actors.nothing)
    waiting: Call[Any]
    if waits_in == "get":
        waiting = reader.begin(actors.get)
        wait_for_blocked(iq, consumers=1)
    else:
        waiting = writer.begin(actors.put, 1, 2)
        wait_for_blocked(iq, producers=1)
    assert isinstance(iq._core, SharedCore)
    shutil.rmtree(iq._core.address.path)
    removed = time.monotonic()
    assert isinstance(waiting.error(timeout=5.0), ChannelBroken)
    assert ended_in_time(waiting, removed)
    finder.run(actors.open_pickle, data)
    calls: list[Call[Any]] = [
        late_writer.begin(actors.put, 1, 2),
        late_reader.begin(actors.get, 2),
        finder.begin(actors.on_opened, actors.put, 1),
    ]
    for call in calls:
        assert isinstance(call.error(timeout=5.0), ChannelBroken)
    for request in (iq.get_producer, iq.get_consumer, iq.statistics, iq.close, iq.join):
        with pytest.raises(ChannelBroken):
            request()

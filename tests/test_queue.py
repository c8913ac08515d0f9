"""The public interface, call by call, in one process: on threads, over a given queue, on processes.

What happens between processes is in `tests/test_endings.py` and `tests/test_roads.py`. Who has to
wait here does so in a thread (see `tests.actors`), and is told step by step.
"""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import pickle
import queue
import re
import shutil
import sys
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest

from iterable_queue import (
    Cancelled,
    ChannelBroken,
    ConsumerClosed,
    ConsumersGone,
    Done,
    Empty,
    Full,
    ItemError,
    IterableQueue,
    ProducerClosed,
    ProducerFailed,
    QueueClosed,
    Statistics,
    WouldDeadlock,
)
from iterable_queue._cells import MOST_DELIVERIES, REDELIVER, TRIES_SHIFT
from tests import actors
from tests.actors import Stage
from tests.conftest import FORKS, Processes, wait_until

PATIENCE_S = 20.0

Make = Callable[..., IterableQueue[Any]]


def make_over(maxsize: int = 0) -> IterableQueue[Any]:
    return IterableQueue.over(queue.Queue[Any](maxsize))


MAKERS: dict[str, Make] = {
    "threads": IterableQueue[Any].threaded,
    "over": make_over,
    "processes": IterableQueue[Any],
}


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Make:
    """Makes queues of each kind in turn."""
    return MAKERS[request.param]


@pytest.fixture
def iq(make: Make) -> IterableQueue[Any]:
    """An unbounded queue of each kind in turn."""
    return make()


@pytest.fixture
def stage(processes: Processes) -> Iterator[Stage]:
    """Threads that act as they are told."""
    with Stage(None, processes) as stage:
        yield stage


def wait_for_blocked(iq: IterableQueue[Any], *, producers: int = 0, consumers: int = 0) -> None:
    def blocked() -> bool:
        stats = iq.statistics()
        return (stats.blocked_producers, stats.blocked_consumers) == (producers, consumers)

    wait_until(blocked, f"{producers} blocked in put and {consumers} in get")


# Making a queue


@pytest.mark.parametrize("maxsize", [0, -1, -(10**30)])
def test_a_maxsize_that_is_not_positive_is_no_bound(make: Make, maxsize: int) -> None:
    iq = make(maxsize)
    with iq.get_producer() as out:
        for n in range(1000):
            out.put_nowait(n)
        assert not out.full()
        assert not iq.full()


@pytest.mark.parametrize("maxsize", [2**62, 2**63, 10**30])
def test_a_maxsize_that_is_never_reached_is_a_maxsize(make: Make, maxsize: int) -> None:
    iq = make(maxsize)
    iq.get_producer().put_many(range(3))
    assert iq.qsize() == 3
    assert not iq.full()


def test_maxsize_is_exact(make: Make) -> None:
    iq = make(2)
    out, source = iq.get_producer(), iq.get_consumer()
    out.put(1)
    assert not out.full()
    out.put(2)
    for end in (iq, out, source):
        assert end.full()
        assert end.qsize() == 2
    with pytest.raises(Full):
        out.put_nowait(3)
    with pytest.raises(Full):
        out.put(3, block=False)
    with pytest.raises(Full):
        out.put(3, timeout=0)
    assert source.get() == 1
    out.put(3, timeout=0)
    assert [source.get(), source.get()] == [2, 3]


def test_threads_hand_items_over_as_they_are() -> None:
    for iq in (MAKERS["threads"](), MAKERS["over"]()):
        item = threading.Lock()  # it can't be pickled
        iq.get_producer().put(item)
        assert iq.get_consumer().get() is item


def test_threads_are_first_in_first_out_whoever_puts() -> None:
    iq = IterableQueue[int].threaded()
    outs = [iq.get_producer() for _ in range(3)]
    source = iq.get_consumer()
    for n in range(30):
        outs[n % 3].put(n)
    assert [source.get() for _ in range(30)] == list(range(30))


def test_the_oldest_item_comes_first_whoever_put_it(iq: IterableQueue[Any]) -> None:
    first, second, source = iq.get_producer(), iq.get_producer(), iq.get_consumer()
    second.put("oldest")
    first.put("newer")
    second.put("newest")
    assert [source.get() for _ in range(3)] == ["oldest", "newer", "newest"]


def test_a_priority_queue_underneath_gives_the_order() -> None:
    iq = IterableQueue.over(queue.PriorityQueue[tuple[int, str]]())
    with iq, iq.get_producer() as out:
        out.put_many([(2, "two"), (1, "one"), (3, "three")])
    assert list(iq.get_consumer()) == [(1, "one"), (2, "two"), (3, "three")]


def test_a_lifo_queue_underneath_gives_the_order() -> None:
    iq = IterableQueue.over(queue.LifoQueue[int]())
    with iq, iq.get_producer() as out:
        out.put_many([1, 2, 3])
    assert list(iq.get_consumer()) == [3, 2, 1]


def test_an_item_that_a_heap_can_not_compare_is_not_put() -> None:
    iq = IterableQueue.over(queue.PriorityQueue[Any]())
    out, source = iq.get_producer(), iq.get_consumer()
    out.put(1)
    with pytest.raises(TypeError, match="not supported between"):
        out.put("one")
    assert iq.qsize() == 1
    out.close()
    iq.close()
    assert list(source) == [1]


class Stack:
    """No more than what is used of a queue."""

    def __init__(self) -> None:
        self.items: list[int] = []

    def put(self, item: int) -> None:
        self.items.append(item)

    def get(self, block: bool = True) -> int:
        assert self.items  # else it would have to wait
        return self.items.pop()


def test_a_queue_of_ones_own_underneath() -> None:
    iq = IterableQueue.over(Stack())
    with iq, iq.get_producer() as out:
        out.put_many([1, 2, 3])
        assert iq.qsize() == 3
    source = iq.get_consumer()
    assert list(source) == [3, 2, 1]
    assert iq.join(timeout=PATIENCE_S)


def test_a_queue_of_ones_own_keeps_its_maxsize() -> None:
    stack = Stack()
    setattr(stack, "maxsize", 1)  # noqa: B010 - checkers know that it has none
    iq = IterableQueue.over(stack)
    out = iq.get_producer()
    out.put(1)
    with pytest.raises(Full):
        out.put_nowait(2)


@pytest.mark.parametrize("kind", [queue.Queue, queue.LifoQueue, queue.PriorityQueue])
def test_what_is_on_a_given_queue_counts_as_put(kind: type[queue.Queue[int]]) -> None:
    given = kind(3)
    given.put(1)
    given.put(2)
    iq = IterableQueue.over(given)
    assert (iq.qsize(), iq.statistics().put, iq.statistics().highest_queued) == (2, 2, 2)
    out = iq.get_producer()
    out.put(3)
    with pytest.raises(Full):
        out.put_nowait(4)
    out.close()
    iq.close()
    assert sorted(iq.get_consumer()) == [1, 2, 3]


# Arguments


def no_int() -> list[Any]:
    return ["3", 1.5, None, [3]]


@pytest.mark.parametrize("value", no_int(), ids=repr)
@pytest.mark.parametrize("call", [IterableQueue[int], IterableQueue[int].threaded])
def test_maxsize_must_be_an_int(call: Make, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"^maxsize must be .* {re.escape(repr(value))}$"):
        call(maxsize=value)


@pytest.mark.parametrize(
    "value",
    ["ignore", "", None, True, ["raise"]],
    ids=repr,
)
def test_on_failure_must_be_one_of_two(value: Any) -> None:
    text = rf"^on_failure must be 'raise' or 'cancel', not {re.escape(repr(value))}$"
    with pytest.raises(ValueError, match=text):
        IterableQueue[int](on_failure=value)


def test_max_deliveries_must_be_a_number_of_deliveries() -> None:
    for value in (0, -1, MOST_DELIVERIES + 1):
        text = rf"^max_deliveries must be 1 to {MOST_DELIVERIES}, not {value}$"
        with pytest.raises(ValueError, match=text):
            IterableQueue[int](redeliver=True, max_deliveries=value)
    with pytest.raises(TypeError, match=r"^max_deliveries must be an int, not 2\.0$"):
        IterableQueue[int](redeliver=True, max_deliveries=2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^max_deliveries is for queues with redeliver=True$"):
        IterableQueue[int](max_deliveries=2)


def test_a_tag_has_room_for_the_most_deliveries() -> None:
    iq = IterableQueue[int](redeliver=True, max_deliveries=MOST_DELIVERIES)
    assert iq._core.ledger.head[REDELIVER] == MOST_DELIVERIES
    assert MOST_DELIVERIES << TRIES_SHIFT < 1 << 63
    iq.close()


@pytest.mark.parametrize("value", [1, "yes", None], ids=repr)
def test_redeliver_must_be_a_bool(value: Any) -> None:
    with pytest.raises(
        TypeError, match=rf"^redeliver must be a bool, not {re.escape(repr(value))}$"
    ):
        IterableQueue[int](redeliver=value)


NO_CONTEXTS: dict[str, Any] = {
    "object": object(),
    "name": "spawn",
    "other module": queue,
    "threading": threading,  # its locks are not for processes
    "no call": SimpleNamespace(RLock=None),
    "no lock": SimpleNamespace(RLock=object),
}


@pytest.mark.parametrize("value", NO_CONTEXTS.values(), ids=NO_CONTEXTS)
def test_a_context_must_have_what_is_used_of_it(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^context must have .*RLock\(\)") as caught:
        IterableQueue[int](context=value)
    assert repr(value) in str(caught.value)


NO_QUEUES: dict[str, Any] = {
    "object": object(),
    "None": None,
    "list": [],
    "module": queue,
    "no get": SimpleNamespace(put=print),
    "no put": SimpleNamespace(get=print),
    "no call": SimpleNamespace(put=print, get=None),
}


@pytest.mark.parametrize("value", NO_QUEUES.values(), ids=NO_QUEUES)
def test_a_queue_underneath_must_have_what_is_used_of_it(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^queue must have put\(\) and get\(\).* has no (put|get)"):
        IterableQueue.over(value)


def test_options_are_given_by_name() -> None:
    with pytest.raises(TypeError, match="positional"):
        cast("Any", IterableQueue)(0, multiprocessing)


NO_TIMEOUTS: list[Any] = [-1, -0.001, -math.inf, math.nan, "1", [1]]

Call = Callable[[IterableQueue[Any], Any], object]

WAITING: dict[str, Call] = {
    "put": lambda iq, timeout: iq.get_producer().put(1, timeout=timeout),
    "get": lambda iq, timeout: iq.get_consumer().get(timeout=timeout),
    "worker.put": lambda iq, timeout: iq.get_worker().put(1, timeout=timeout),
    "worker.get": lambda iq, timeout: iq.get_worker().get(timeout=timeout),
    "join": lambda iq, timeout: iq.join(timeout),
}


@pytest.mark.parametrize("timeout", NO_TIMEOUTS, ids=repr)
@pytest.mark.parametrize("call", WAITING.values(), ids=WAITING)
def test_timeout_must_be_a_number_that_is_not_negative(
    make: Make, call: Call, timeout: Any
) -> None:
    iq = make(1)
    error = ValueError if isinstance(timeout, (int, float)) else TypeError
    with pytest.raises(error, match=rf"^timeout must be .*, not {re.escape(repr(timeout))}$"):
        call(iq, timeout)
    assert iq.statistics().put == 0


def test_timeout_is_checked_where_nothing_has_to_wait(iq: IterableQueue[Any]) -> None:
    out, source = iq.get_producer(), iq.get_consumer()
    out.put(1)
    with pytest.raises(ValueError, match=r"^timeout must be"):
        source.get(timeout=-1)
    assert source.get(timeout=math.inf) == 1
    out.put(2, timeout=10**400)
    assert source.get(timeout=10**400) == 2


def test_timeout_means_nothing_where_block_is_false(iq: IterableQueue[Any]) -> None:
    """As in the standard library."""
    source = iq.get_consumer()
    iq.get_producer().put(1, False, -1)
    assert source.get(False, -1) == 1


@pytest.mark.parametrize("limit", no_int(), ids=repr)
def test_limit_must_be_an_int(iq: IterableQueue[Any], limit: Any) -> None:
    for end in (iq.get_consumer(), iq.get_worker()):
        with pytest.raises(TypeError, match=r"^limit must be an int"):
            end.get_many(limit)


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_must_be_positive(iq: IterableQueue[Any], limit: int) -> None:
    with pytest.raises(ValueError, match=rf"^limit must be 1 or more items, not {limit}$"):
        iq.get_consumer().get_many(limit)


@pytest.mark.parametrize("error", ["why", ValueError, 3], ids=repr)
def test_error_must_be_an_exception(iq: IterableQueue[Any], error: Any) -> None:
    out, tree = iq.get_producer(), iq.get_worker()
    for call in (out.fail, tree.fail, iq.cancel):
        with pytest.raises(
            TypeError, match=rf"^error must be an exception, not {re.escape(repr(error))}"
        ):
            call(error)
    assert (out.closed, tree.closed, iq.statistics().state) == (False, False, "open")


def test_fail_must_say_why(iq: IterableQueue[Any]) -> None:
    with pytest.raises(TypeError, match=r"^error must be an exception, not None"):
        iq.get_producer().fail(cast("Any", None))


def test_iterable_must_be_one(iq: IterableQueue[Any]) -> None:
    with pytest.raises(TypeError, match="iterable"):
        iq.get_producer().put_many(cast("Any", 3))
    assert iq.qsize() == 0


# close


def test_close_is_idempotent(iq: IterableQueue[Any]) -> None:
    for _ in range(3):
        iq.close()
    assert iq.statistics().state == "done"


def test_leaving_with_closes(iq: IterableQueue[Any]) -> None:
    with iq as same:
        assert same is iq
        assert iq.statistics().state == "open"
    assert iq.statistics().state == "done"


def test_after_close_there_are_no_more_producers(iq: IterableQueue[Any]) -> None:
    out = iq.get_producer()
    iq.close()
    with pytest.raises(QueueClosed):
        iq.get_producer()
    with pytest.raises(QueueClosed):
        iq.get_worker()
    assert iq.statistics().open_producers == 1
    out.put(1)
    out.close()
    assert list(iq.get_consumer()) == [1]
    assert list(iq.get_consumer()) == []  # drained is not abandoned


def test_with_left_by_an_exception_cancels_with_it(iq: IterableQueue[Any]) -> None:
    source, out = iq.get_consumer(), iq.get_producer()
    out.put(1)
    why = ValueError("why")
    with pytest.raises(ValueError, match="why"), iq:
        raise why
    with pytest.raises(Cancelled) as caught:
        source.get()
    assert repr(caught.value.__cause__) == repr(why)


def test_with_may_be_entered_again(iq: IterableQueue[Any]) -> None:
    with iq:
        pass
    with iq:
        assert iq.statistics().state == "done"


# cancel


def test_cancel_drops_what_is_left(iq: IterableQueue[Any]) -> None:
    out, source = iq.get_producer(), iq.get_consumer()
    out.put_many(range(5))
    assert source.get() == 0
    iq.cancel()
    stats = iq.statistics()
    assert (stats.state, stats.dropped, stats.queued) == ("cancelled", 4, 0)
    assert (stats.put, stats.taken) == (5, 1)
    assert iq.empty()


CALLS_ON_A_CANCELLED_QUEUE: list[Callable[[Any, Any, Any, Any], object]] = [
    lambda iq, out, source, tree: out.put(1),
    lambda iq, out, source, tree: out.put_nowait(1),
    lambda iq, out, source, tree: out.put_many([1]),
    lambda iq, out, source, tree: out.put_many(n for n in [1]),
    lambda iq, out, source, tree: source.get(),
    lambda iq, out, source, tree: source.get_nowait(),
    lambda iq, out, source, tree: source.get_many(1),
    lambda iq, out, source, tree: next(source),
    lambda iq, out, source, tree: tree.get(),
    lambda iq, out, source, tree: tree.put(1),
    lambda iq, out, source, tree: iq.get_producer(),
    lambda iq, out, source, tree: iq.get_consumer(),
    lambda iq, out, source, tree: iq.get_worker(),
    lambda iq, out, source, tree: out.clone(),
    lambda iq, out, source, tree: iq.join(),
]


@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
def test_after_cancel_every_call_says_so(iq: IterableQueue[Any], used: bool) -> None:
    ends = (iq.get_producer(), iq.get_consumer(), iq.get_worker())
    if used:
        ends[0].put_many([1, 2])
        ends[1].get()
        ends[2].get()
    iq.cancel(KeyError("why"))
    iq.cancel(ValueError("too late"))
    for call in CALLS_ON_A_CANCELLED_QUEUE:
        with pytest.raises(Cancelled) as caught:
            call(iq, *ends)
        assert repr(caught.value.__cause__) == "KeyError('why')"
    for end in ends:
        end.close()
        assert end.closed
    iq.close()


def test_cancel_wakes_everybody(make: Make, stage: Stage) -> None:
    full, empty = make(1), make()
    full.get_producer().put(0)
    source = full.get_consumer()
    calls: list[actors.Call[Any]] = []
    calls.append(stage.cast(full.get_producer()).begin(actors.put, 1))
    calls.append(stage.cast(full).begin(actors.join_queue))
    calls.append(stage.cast(empty.get_consumer()).begin(actors.drain))
    calls.append(stage.cast(empty.get_worker()).begin(actors.drain))
    wait_for_blocked(full, producers=1)
    wait_for_blocked(empty, consumers=2)
    full.cancel(ValueError("why"))
    empty.cancel(ValueError("why"))
    for call in calls:
        assert isinstance(call.error(), Cancelled)
    assert not source.closed
    wait_for_blocked(full)
    wait_for_blocked(empty)


# join


def test_join_waits_for_what_is_in_hand(iq: IterableQueue[Any], stage: Stage) -> None:
    out, source = iq.get_producer(), iq.get_consumer()
    out.put(1)
    joining = stage.cast(iq).begin(actors.join_queue)
    assert not iq.join(timeout=0)  # open
    iq.close()
    assert not iq.join(timeout=0)  # a producer is
    out.close()
    assert not iq.join(timeout=0)  # an item is left
    assert source.get() == 1
    assert not iq.join(timeout=0)  # it is in hand
    assert not joining.is_over()
    with pytest.raises(Done):
        source.get()
    assert joining.result() is True
    assert iq.join() is True
    assert iq.join(timeout=0) is True


def test_closing_a_consumer_finishes_what_it_holds(iq: IterableQueue[Any]) -> None:
    out, source = iq.get_producer(), iq.get_consumer()
    out.put(1)
    out.close()
    iq.close()
    assert source.get() == 1
    assert not iq.join(timeout=0)
    source.close()
    assert iq.join(timeout=PATIENCE_S)


def test_in_hand_is_counted_for_each_thread(iq: IterableQueue[Any], stage: Stage) -> None:
    out, source = iq.get_producer(), iq.get_consumer()
    out.put_many([1, 2, 3])
    other = stage.cast(source)
    assert (source.get(), other.run(actors.get)) == (1, [2])
    assert iq.statistics().finished == 0
    assert source.get() == 3
    assert iq.statistics().finished == 1  # what the other thread holds is not
    with pytest.raises(Empty):
        other.run(actors.get_now)
    assert iq.statistics().finished == 2
    with pytest.raises(Empty):
        source.get_nowait()
    assert iq.statistics().finished == 3


def test_join_inside_the_queues_own_block_is_refused(iq: IterableQueue[Any]) -> None:
    with iq:
        for timeout in (None, 1.0):
            with pytest.raises(WouldDeadlock):
                iq.join(timeout)
        iq.close()
        assert iq.join(timeout=PATIENCE_S)


def test_join_tells_of_a_failure(iq: IterableQueue[Any]) -> None:
    iq.get_producer().fail(ValueError("why"))
    iq.close()
    for _ in range(2):
        with pytest.raises(ProducerFailed) as caught:
            iq.join(timeout=PATIENCE_S)
        assert repr(caught.value.__cause__) == "ValueError('why')"


def test_join_with_a_time_out_takes_that_long(iq: IterableQueue[Any]) -> None:
    began = time.monotonic()
    assert iq.join(timeout=0.05) is False
    assert 0.05 <= time.monotonic() - began < PATIENCE_S


# statistics


def test_every_count(make: Make, stage: Stage) -> None:
    iq = make(3)
    blank = Statistics(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, "open")
    assert iq.statistics() == blank
    first, second = iq.get_producer(), iq.get_producer()
    source = iq.get_consumer()
    tree = iq.get_worker()
    now = blank._replace(open_producers=2, open_consumers=1, open_workers=1)
    assert iq.statistics() == now

    first.put_many([1, 2, 3])
    now = now._replace(put=3, queued=3, highest_queued=3)
    assert iq.statistics() == now

    waiting = stage.cast(second).begin(actors.put, 4)
    wait_for_blocked(iq, producers=1)
    assert iq.statistics() == now._replace(blocked_producers=1)
    assert source.get() == 1
    waiting.result()
    wait_for_blocked(iq)
    now = now._replace(put=4, taken=1)
    assert iq.statistics() == now

    assert [tree.get(), tree.get()] == [2, 3]
    now = now._replace(taken=3, finished=1, queued=1)
    assert iq.statistics() == now

    tree.put_many([5, 6, 7])  # never refused for maxsize
    now = now._replace(put=7, queued=4, highest_queued=4)
    assert iq.statistics() == now

    first.fail(ValueError("why"))
    second.close()
    iq.close()
    now = now._replace(open_producers=0, failures=1, state="closed")
    assert iq.statistics() == now

    assert source.get_many(9) == [4, 5, 6, 7]
    now = now._replace(taken=7, finished=2, queued=0)
    assert iq.statistics() == now

    with pytest.raises(ProducerFailed):
        tree.get()
    now = now._replace(finished=3, state="failed")
    assert iq.statistics() == now

    tree.close()
    source.close()
    assert iq.statistics() == now._replace(open_consumers=0, open_workers=0, finished=7)


def test_blocked_consumers_are_counted(iq: IterableQueue[Any], stage: Stage) -> None:
    source = iq.get_consumer()
    calls = [stage.cast(source).begin(actors.get) for _ in range(2)]
    calls.append(stage.cast(iq.get_worker()).begin(actors.get))
    wait_for_blocked(iq, consumers=3)
    iq.get_producer().put_many([1, 2, 3])
    assert sorted(item for call in calls for item in call.result()) == [1, 2, 3]
    wait_for_blocked(iq)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("put", "get_producer"),
        ("put_nowait", "get_producer"),
        ("get", "get_consumer"),
        ("get_nowait", "get_consumer"),
        ("task_done", "finished when"),
        ("join_thread", "no feeder thread"),
    ],
)
def test_calls_of_other_queues_are_answered_with_the_way_here(
    iq: IterableQueue[Any], name: str, remedy: str
) -> None:
    with pytest.raises(AttributeError, match=f"no attribute '{name}': .*{remedy}") as caught:
        getattr(iq, name)
    assert (caught.value.name, caught.value.obj) == (name, iq)
    assert not hasattr(iq, name)


def test_what_nobody_looks_for_has_no_remedy(iq: IterableQueue[Any]) -> None:
    with pytest.raises(AttributeError, match=r"has no attribute 'other'$"):
        getattr(iq, "other")  # noqa: B009 - type checkers know, too
    with pytest.raises(AttributeError, match=r"has no attribute 'other'$"):
        getattr(iq.get_producer(), "other")  # noqa: B009


def test_a_queue_is_not_what_is_iterated_over(iq: IterableQueue[Any]) -> None:
    unknown: Any = iq
    producer: Any = iq.get_producer()
    for found in (unknown, producer):
        with pytest.raises(TypeError, match=r"not iterable: .*get_consumer"):
            iter(found)
        with pytest.raises(TypeError, match=r"not iterable: .*get_consumer"):
            aiter(found)


def test_an_endpoint_says_which_one_has_the_call(iq: IterableQueue[Any]) -> None:
    for name in ("get", "get_nowait", "get_many"):
        with pytest.raises(AttributeError, match=f"'{name}': a producer can only put; .*consumer"):
            getattr(iq.get_producer(), name)
    for name in ("put", "put_nowait", "put_many"):
        with pytest.raises(AttributeError, match=f"'{name}': a consumer can only get; .*producer"):
            getattr(iq.get_consumer(), name)


def test_a_snapshot_can_not_be_changed(iq: IterableQueue[Any]) -> None:
    stats = iq.statistics()
    with pytest.raises(AttributeError):
        stats.put = 1  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    iq.get_producer().put(1)
    assert stats.put == 0
    assert pickle.loads(pickle.dumps(stats)) == stats


def states() -> Iterator[tuple[str, Callable[[IterableQueue[Any]], object]]]:
    def abandon(iq: IterableQueue[Any]) -> None:
        iq.get_producer().put(1)
        source = iq.get_consumer()
        iq.close()
        source.close()

    def fail(iq: IterableQueue[Any]) -> None:
        iq.get_producer().fail(ValueError())
        iq.close()

    def close(iq: IterableQueue[Any]) -> object:
        out = iq.get_producer()
        iq.close()
        return out

    yield "open", IterableQueue[Any].get_producer
    yield "closed", close
    yield "done", IterableQueue[Any].close
    yield "failed", fail
    yield "cancelled", IterableQueue[Any].cancel
    yield "abandoned", abandon


@pytest.mark.parametrize(
    ("name", "reach"), list(states()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_state(iq: IterableQueue[Any], name: str, reach: Callable[[Any], object]) -> None:
    kept = reach(iq)
    assert iq.statistics().state == name
    assert iq.explain().startswith(name)
    assert f"IterableQueue {name}, " in repr(iq)
    del kept


# explain


def line_after(frame_line: int) -> str:
    return re.escape(f"{os.path.basename(__file__)}:{frame_line + 1}")


def test_explain_names_every_endpoint(make: Make, stage: Stage) -> None:
    iq = make(1)
    line = sys._getframe().f_lineno
    out = iq.get_producer()
    out_here = line_after(line)
    line = sys._getframe().f_lineno
    source = iq.get_consumer()
    source_here = line_after(line)
    line = sys._getframe().f_lineno
    tree = iq.get_worker()
    tree_here = line_after(line)
    out.put(1)
    me = rf"this process \(pid {os.getpid()}\)"
    idle = r"last active \d+\.\d s ago"

    text = iq.explain()
    summary, *lines = text.splitlines()
    assert summary.startswith("open, not done: the queue has not been closed")
    for reason in ("1 producer(s) are open", "1 worker(s) may still put", "1 item(s) are left"):
        assert reason in summary
    assert "no consumer is open" not in summary
    for pattern in (
        r"  items: 1 put, 0 taken, 0 finished, 1 queued, 0 lost",
        rf"  the queue, made at \S*test_queue\.py:\d+, open in {me}: close\(\) it.*{idle}",
        rf"  producer 1, made at \S*{out_here}, taken by {me}, {idle}",
        rf"  consumer 2, made at \S*{source_here}, made by {me}, taken by nobody yet, {idle}",
        rf"  worker 3, made at \S*{tree_here}, made by {me}, .*has not asked.*first item, {idle}",
    ):
        assert [line for line in lines if re.fullmatch(pattern, line)], (pattern, text)

    waiting = stage.cast(out).begin(actors.put, 2)
    wait_for_blocked(iq, producers=1)
    text = iq.explain()
    assert re.search(r"producer 1, .*, 1 thread\(s\) waiting in a call", text)
    assert "\n  1 caller(s) wait in put for room" in text
    assert tree.get() == 1
    waiting.result()
    assert re.search(r"worker 3, .*, 1 in hand", iq.explain())
    assert not source.closed


def test_explain_names_the_line_that_made_the_queue() -> None:
    line = sys._getframe().f_lineno
    iq = IterableQueue[int]()
    assert re.search(rf"the queue, made at \S*{line_after(line)},", iq.explain())
    line = sys._getframe().f_lineno
    iq = IterableQueue[int].threaded()
    assert re.search(rf"the queue, made at \S*{line_after(line)},", iq.explain())
    line = sys._getframe().f_lineno
    iq = IterableQueue.over(queue.Queue[int]())
    assert re.search(rf"the queue, made at \S*{line_after(line)},", iq.explain())


def test_explain_names_the_line_that_made_a_clone(iq: IterableQueue[Any]) -> None:
    out = iq.get_producer()
    line = sys._getframe().f_lineno
    other = out.clone()
    assert re.search(rf"producer 2, made at \S*{line_after(line)},", iq.explain())
    assert not other.closed


def test_explain_says_who_waits_for_an_item(iq: IterableQueue[Any], stage: Stage) -> None:
    call = stage.cast(iq.get_consumer()).begin(actors.drain)
    wait_for_blocked(iq, consumers=1)
    assert "\n  1 caller(s) wait in get for an item or the end" in iq.explain()
    iq.close()
    assert call.result() == []


def test_explain_says_what_is_missing(iq: IterableQueue[Any]) -> None:
    out = iq.get_producer()
    out.put(1)
    out.close()
    iq.close()
    assert "1 item(s) are left, no consumer is open to take them" in iq.explain()
    source = iq.get_consumer()
    source.get()
    assert iq.explain().startswith("done, but 1 item(s) are still in hand")
    source.close()
    assert iq.explain().splitlines()[0] == "done"


def test_explain_names_only_the_endpoints_that_are_open(iq: IterableQueue[Any]) -> None:
    first, second = iq.get_producer(), iq.get_producer()
    first.close()
    assert re.findall(r"producer \d+", iq.explain()) == ["producer 2"]
    third = iq.get_producer()
    assert sorted(re.findall(r"producer \d+", iq.explain())) == ["producer 2", "producer 3"]
    second.close()
    third.close()


# repr


def core_of(iq: IterableQueue[Any]) -> Any:
    return iq._core


def test_reprs_say_what_and_which(iq: IterableQueue[Any]) -> None:
    me = os.getpid()
    out, source, tree = iq.get_producer(), iq.get_consumer(), iq.get_worker()
    assert repr(out) == f"<producer 1 made by process {me}, open>"
    out.put(1)
    source.get()
    out.put(2)
    assert repr(iq) == (
        f"<IterableQueue open, 1 queued, 1 producer, 1 consumer, 1 worker, made by process {me}>"
    )
    assert [repr(end) for end in (out, source, tree)] == [
        f"<producer 1 of process {me}, open>",
        f"<consumer 2 of process {me}, open>",
        f"<worker 3 made by process {me}, open>",
    ]
    others = iq.get_producer(), iq.get_producer()
    tree.close()
    assert ", 3 producers, 1 consumer, made by " in repr(iq)
    for end in (out, source, *others):
        end.close()
    names = ["<producer 1, closed>", "<consumer 2, closed>", "<worker 3, closed>"]
    assert [repr(end) for end in (out, source, tree)] == names


def test_a_repr_says_how_many_there_may_be(make: Make) -> None:
    assert " 0 of 7 queued, 0 producers, 0 consumers, " in repr(make(7))


def test_a_repr_says_how_many_wait(iq: IterableQueue[Any], stage: Stage) -> None:
    source = iq.get_consumer()
    waiting = stage.cast(source).begin(actors.get)
    wait_for_blocked(iq, consumers=1)
    assert repr(source).endswith(", open, 1 waiting>")
    iq.get_producer().put(1)
    waiting.result()
    wait_for_blocked(iq)
    assert repr(source).endswith(", open>")


def test_a_repr_needs_no_lock(iq: IterableQueue[Any]) -> None:
    """A debugger looks while everything stands still."""
    things = [iq, iq.get_producer(), iq.get_consumer(), iq.get_worker()]
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.extend(map(repr, things)))
    with iq._core.runtime.lock:
        thread.start()
        thread.join(PATIENCE_S)
        assert len(said) == 4
    assert said == list(map(repr, things))


@FORKS
def test_reprs_in_a_forked_child(processes: Processes) -> None:
    shared, local = IterableQueue[int](), IterableQueue[int].threaded()
    things = [shared, shared.get_producer(), local, local.get_consumer()]
    used = shared.get_consumer()
    assert shared.empty()
    reader, writer = os.pipe()
    parent = os.getpid()
    with pytest.raises(Empty):
        used.get_nowait()
    child = os.fork()
    if child == 0:
        os.write(writer, "\n".join(map(repr, [*things, used])).encode())
        os._exit(0)
    processes.watch(child)
    os.close(writer)
    with os.fdopen(reader) as file:
        assert file.read().splitlines() == [
            f"<IterableQueue open, 0 queued, 1 producer, 1 consumer, made by process {parent}>",
            f"<producer 1 made by process {parent}, open>",
            f"<IterableQueue for the threads of process {parent}>",
            f"<consumer 1, for the threads of process {parent}>",
            f"<consumer 2 of process {parent}, open>",
        ]
    os.waitpid(child, 0)


def test_reprs_of_a_queue_whose_files_were_removed() -> None:
    iq = IterableQueue[int]()
    out, source = iq.get_producer(), iq.get_consumer()
    out.put(1)
    shutil.rmtree(core_of(iq).address.path)
    assert repr(iq).startswith("<IterableQueue open, 1 queued, ")
    with pytest.raises(ChannelBroken):
        iq.statistics()
    assert repr(iq).startswith("<IterableQueue broken, 1 queued, ")
    assert repr(out) == f"<producer 1 of process {os.getpid()}, open>"
    assert repr(source).startswith("<consumer 2 ")


def test_a_repr_is_kept_from_nothing(
    iq: IterableQueue[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = iq.get_producer()

    def fail(*args: object, **kwargs: object) -> NoReturn:
        raise IndexError

    monkeypatch.setattr(iq._core.ledger.__class__, "is_open", fail)
    monkeypatch.setattr(iq._core.ledger.__class__, "state_name", fail)
    assert repr(out) == "<producer 1, out of reach>"
    assert repr(iq) == f"<IterableQueue out of reach, made by process {os.getpid()}>"
    monkeypatch.undo()


# put


def test_put_in_all_its_forms(iq: IterableQueue[Any]) -> None:
    out, source = iq.get_producer(), iq.get_consumer()
    out.put(1)
    out.put(2, True)
    out.put(3, False)
    out.put(4, True, 1.5)
    out.put(item=5, block=True, timeout=None)
    out.put_nowait(6)
    out.put(None)
    assert [source.get() for _ in range(7)] == [1, 2, 3, 4, 5, 6, None]


def test_put_waits_for_room(make: Make, stage: Stage) -> None:
    iq = make(1)
    out, source = iq.get_producer(), iq.get_consumer()
    out.put(1)
    call = stage.cast(out).begin(actors.put, 2)
    wait_for_blocked(iq, producers=1)
    assert not call.is_over()
    assert source.get() == 1
    call.result()
    assert source.get() == 2


def test_put_gives_up_at_its_deadline(make: Make) -> None:
    iq = make(1)
    out = iq.get_producer()
    out.put(1)
    began = time.monotonic()
    with pytest.raises(Full):
        out.put(2, timeout=0.05)
    assert 0.05 <= time.monotonic() - began < PATIENCE_S
    assert iq.qsize() == 1
    assert iq.statistics().blocked_producers == 0


class Unpicklable:
    def __reduce__(self) -> NoReturn:
        raise TypeError("not me")


@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
def test_an_item_that_can_not_be_pickled_is_not_put(used: bool) -> None:
    iq = IterableQueue[Any]()
    out, source = iq.get_producer(), iq.get_consumer()
    if used:
        out.put(0)
        assert source.get() == 0
    for call in (out.put, out.put_nowait, iq.get_worker().put):
        with pytest.raises(TypeError, match="not me"):
            call(Unpicklable())
    assert iq.qsize() == 0
    assert iq.statistics().put == used
    out.put("fine")
    assert source.get() == "fine"


def test_an_item_is_pickled_in_put() -> None:
    """So changing it afterwards changes nothing."""
    iq = IterableQueue[list[int]]()
    item = [1]
    iq.get_producer().put(item)
    item.append(2)
    assert iq.get_consumer().get() == [1]


# put_many


def test_put_many_takes_any_iterable(iq: IterableQueue[Any]) -> None:
    out, source = iq.get_producer(), iq.get_consumer()
    out.put_many([1, 2])
    out.put_many(n for n in (3, 4))
    out.put_many(range(5, 7))
    out.put_many({7: "x"})
    out.put_many(iter([8]))
    out.put_many([])
    assert source.get_many(100) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_items_become_visible_as_put_many_goes(iq: IterableQueue[Any]) -> None:
    out, source = iq.get_producer(), iq.get_consumer()
    seen: list[Any] = []

    def items() -> Generator[int]:
        for n in range(3):
            yield n
            seen.append(source.get(timeout=PATIENCE_S))

    out.put_many(items())
    assert seen == [0, 1, 2]


class Observer:
    """Looks at the queue while it is pickled."""

    def __init__(self, look: Callable[[], int], seen: list[int]) -> None:
        self._look = look
        self._seen = seen

    def __reduce__(self) -> tuple[Any, ...]:
        self._seen.append(self._look())
        return int, ()


def test_the_items_of_a_long_list_become_visible_before_its_end() -> None:
    iq = IterableQueue[Any]()
    seen: list[int] = []
    iq.get_producer().put_many([Observer(iq.qsize, seen)] * 1000)
    assert seen[0] == 0
    assert seen[-1] > 800


def test_put_many_stops_where_its_iterable_raises(iq: IterableQueue[Any]) -> None:
    def items() -> Generator[int]:
        yield from (1, 2)
        raise KeyError("broken")

    out, source = iq.get_producer(), iq.get_consumer()
    with pytest.raises(KeyError, match="broken"):
        out.put_many(items())
    assert not out.closed
    out.put(3)
    assert [source.get() for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize(
    "of", [list[Any], tuple[Any, ...], iter], ids=["list", "tuple", "iterator"]
)
def test_put_many_keeps_what_came_before_a_bad_item(of: Callable[[list[Any]], Any]) -> None:
    iq = IterableQueue[Any]()
    out, source = iq.get_producer(), iq.get_consumer()
    with pytest.raises(TypeError, match="not me"):
        out.put_many(of([1, 2, Unpicklable(), 3]))
    assert source.get_many(9) == [1, 2]
    assert iq.qsize() == 0


def test_put_many_waits_for_room(make: Make, stage: Stage) -> None:
    iq = make(2)
    source = iq.get_consumer()
    call = stage.cast(iq.get_producer()).begin(put_all, 200)
    assert [source.get(timeout=PATIENCE_S) for _ in range(200)] == list(range(200))
    call.result()
    assert iq.statistics().highest_queued <= 2


def put_one_of_many(out: Any) -> Callable[[Any], None]:
    return lambda item: out.put_many([item])


def put_all(out: Any, count: int) -> None:
    out.put_many(list(range(count)))


# get


def test_get_in_all_its_forms(iq: IterableQueue[Any]) -> None:
    iq.get_producer().put_many(range(1, 9))
    source = iq.get_consumer()
    assert source.get() == 1
    assert source.get(True) == 2
    assert source.get(False) == 3
    assert source.get(True, 1.5) == 4
    assert source.get(block=True, timeout=None) == 5
    assert source.get_nowait() == 6
    assert next(source) == 7
    assert source.get_many(3) == [8]


def test_empty_for_now_is_not_done(iq: IterableQueue[Any]) -> None:
    out, source = iq.get_producer(), iq.get_consumer()
    for call in (source.get_nowait, lambda: source.get(False), lambda: source.get(timeout=0)):
        with pytest.raises(Empty):
            call()
    out.put(1)
    assert source.get_nowait() == 1
    out.close()
    with pytest.raises(Empty):
        source.get_nowait()
    iq.close()
    for call in (
        source.get_nowait,
        source.get,
        lambda: source.get(timeout=0),
        lambda: source.get_many(1),
    ):
        with pytest.raises(Done):
            call()


def test_get_gives_up_at_its_deadline(iq: IterableQueue[Any]) -> None:
    source = iq.get_consumer()
    began = time.monotonic()
    with pytest.raises(Empty):
        source.get(timeout=0.05)
    assert 0.05 <= time.monotonic() - began < PATIENCE_S
    assert iq.statistics().blocked_consumers == 0


def test_get_waits_for_an_item(iq: IterableQueue[Any], stage: Stage) -> None:
    call = stage.cast(iq.get_consumer()).begin(actors.get)
    wait_for_blocked(iq, consumers=1)
    assert not call.is_over()
    iq.get_producer().put(1)
    assert call.result() == [1]


def test_get_many_takes_what_is_there(iq: IterableQueue[Any], stage: Stage) -> None:
    out, source = iq.get_producer(), iq.get_consumer()
    out.put_many(range(5))
    assert source.get_many(3) == [0, 1, 2]
    assert iq.statistics().taken == 3
    assert source.get_many(3) == [3, 4]
    assert iq.statistics().finished == 3
    call = stage.cast(source).begin(get_many, 3)
    wait_for_blocked(iq, consumers=1)
    out.put(5)
    assert call.result() == [5]


def get_many(source: Any, limit: int) -> list[Any]:
    return list(source.get_many(limit))


def test_iteration_ends_when_all_is_done(iq: IterableQueue[Any]) -> None:
    out, source = iq.get_producer(), iq.get_consumer()
    out.put_many([1, 2, 3])
    out.close()
    iq.close()
    assert next(iter(source)) == 1
    assert list(source) == [2, 3]
    assert list(source) == []
    assert not source.closed  # that is for its user to say


def test_iteration_ends_in_a_failure(iq: IterableQueue[Any]) -> None:
    out, source = iq.get_producer(), iq.get_consumer()
    out.put(1)
    out.fail(ValueError("why"))
    iq.close()
    assert next(source) == 1
    for _ in range(2):
        with pytest.raises(ProducerFailed):
            next(source)


def test_a_consumer_is_neither_sized_nor_falsy(iq: IterableQueue[Any]) -> None:
    for end in (iq.get_consumer(), iq.get_worker()):
        assert bool(end)
        assert not hasattr(end, "__len__")
        assert not hasattr(end, "__length_hint__")


class Unopenable:
    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("not a number",)


@pytest.mark.parametrize("kind", ["consumer", "worker"])
def test_an_item_that_can_not_be_opened(kind: str) -> None:
    iq = IterableQueue[Any]()
    out = iq.get_producer()
    source = getattr(iq, f"get_{kind}")()
    out.put_many([1, Unopenable(), 2, Unopenable(), 3])
    assert source.get_many(9) == [1]  # those before it
    with pytest.raises(ItemError) as caught:
        source.get_many(9)
    assert caught.value.producer == 1
    assert isinstance(caught.value.__cause__, ValueError)
    assert source.get() == 2
    with pytest.raises(ItemError):
        source.get()
    assert next(source) == 3
    assert iq.statistics().taken == 5


# Closing endpoints


def test_a_closed_producer_puts_no_more(iq: IterableQueue[Any]) -> None:
    out = iq.get_producer()
    out.put(1)
    assert not out.closed
    for _ in range(2):
        out.close()
        assert out.closed
    for call in (out.put, out.put_nowait, put_one_of_many(out)):
        with pytest.raises(ProducerClosed):
            call(2)
    with pytest.raises(ProducerClosed):
        out.clone()
    with pytest.raises(ProducerClosed), out:
        pass
    assert iq.qsize() == 1
    assert iq.statistics().open_producers == 0


def test_a_closed_consumer_gets_no_more(iq: IterableQueue[Any]) -> None:
    iq.get_producer().put_many([1, 2])
    source = iq.get_consumer()
    assert source.get() == 1
    for _ in range(2):
        source.close()
        assert source.closed
    for call in (source.get, source.get_nowait, lambda: source.get_many(1), lambda: next(source)):
        with pytest.raises(ConsumerClosed):
            call()
    with pytest.raises(ConsumerClosed):
        source.clone()
    assert iq.get_consumer().get() == 2


def test_a_closed_worker_does_neither(iq: IterableQueue[Any]) -> None:
    """It fails as a producer where it is used as one, and as a consumer where as that."""
    tree = iq.get_worker()
    tree.put(1)
    tree.close()
    for get in (tree.get, tree.get_nowait, lambda: tree.get_many(1), lambda: next(tree)):
        with pytest.raises(ConsumerClosed):
            get()
    for put in (tree.put, tree.put_nowait, put_one_of_many(tree)):
        with pytest.raises(ProducerClosed):
            put(2)
    assert iq.qsize() == 1


def test_closing_wakes_other_threads_of_the_endpoint(make: Make, stage: Stage) -> None:
    iq = make(1)
    out, source = iq.get_producer(), iq.get_consumer()
    getting = stage.cast(source).begin(actors.get)
    wait_for_blocked(iq, consumers=1)
    source.close()
    assert isinstance(getting.error(), ConsumerClosed)
    out.put(1)
    putting = stage.cast(out).begin(actors.put, 2)
    wait_for_blocked(iq, producers=1)
    out.close()
    assert isinstance(putting.error(), ProducerClosed)
    assert iq.qsize() == 1


def test_leaving_with_closes_an_endpoint(iq: IterableQueue[Any]) -> None:
    for make_end in (iq.get_producer, iq.get_consumer, iq.get_worker):
        with make_end() as end:
            before = end.closed
        assert (before, end.closed) == (False, True)
    assert iq.statistics().failures == 0


def test_an_endpoint_closed_inside_its_with_stays_closed(iq: IterableQueue[Any]) -> None:
    with iq.get_producer() as out:
        out.close()
    with iq.get_producer() as out:
        out.fail(ValueError())
    assert iq.statistics().failures == 1


def test_break_closes_a_consumer(iq: IterableQueue[Any]) -> None:
    iq.get_producer().put_many([1, 2, 3])
    with iq.get_consumer() as source:
        for _ in source:
            break
    assert source.closed
    assert iq.get_consumer().get() == 2


def test_a_producers_with_left_by_an_exception_fails_it(iq: IterableQueue[Any]) -> None:
    source = iq.get_consumer()
    out = iq.get_producer()
    out.put(1)
    with pytest.raises(ValueError, match="why"), out:
        raise ValueError("why")
    assert out.closed
    iq.close()
    assert source.get() == 1
    with pytest.raises(ProducerFailed) as caught:
        source.get()
    assert repr(caught.value.__cause__) == "ValueError('why')"


def test_a_consumers_with_left_by_an_exception_only_closes_it(iq: IterableQueue[Any]) -> None:
    with pytest.raises(ValueError, match="why"), iq.get_consumer() as source:
        raise ValueError("why")
    assert source.closed
    iq.close()
    assert list(iq.get_consumer()) == []


def test_fail_replaces_done_for_all_and_for_late_comers(iq: IterableQueue[Any]) -> None:
    early = iq.get_consumer()
    first, second = iq.get_producer(), iq.get_producer()
    first.fail(ValueError("first"))
    assert first.closed
    second.put(1)
    assert early.get() == 1  # what is not over goes on
    second.fail(KeyError("second"))
    iq.close()
    for source in (early, iq.get_consumer()):
        for call in (source.get, source.get_nowait, partial(source.get_many, 2), source.__next__):
            with pytest.raises(ProducerFailed) as caught:
                call()
            failures = caught.value.failures
            assert [repr(each) for each in failures] == [
                "ValueError('first')",
                "KeyError('second')",
            ]
            assert repr(caught.value.__cause__) == "ValueError('first')"


def test_on_failure_cancel_stops_everybody() -> None:
    iq = IterableQueue[int](on_failure="cancel")
    out, other, source = iq.get_producer(), iq.get_producer(), iq.get_consumer()
    out.put(1)
    out.fail(ValueError("why"))
    for call in (source.get, lambda: other.put(2), iq.get_consumer, iq.join):
        with pytest.raises(Cancelled) as caught:
            call()
        assert repr(caught.value.__cause__) == "ValueError('why')"
    assert iq.statistics().dropped == 1


def test_the_last_consumer_of_a_closed_queue_abandons_what_is_left(iq: IterableQueue[Any]) -> None:
    out, source = iq.get_producer(), iq.get_consumer()
    out.put(1)
    source.close()
    out.put(2)  # on an open queue another consumer may come
    iq.close()
    for call in (lambda: out.put(3), lambda: out.put_many([3]), iq.get_consumer, iq.join):
        with pytest.raises(ConsumersGone):
            call()
    assert iq.qsize() == 2


def test_with_nothing_left_an_open_producer_is_enough_to_abandon(iq: IterableQueue[Any]) -> None:
    out, source = iq.get_producer(), iq.get_consumer()
    iq.close()
    source.close()
    assert iq.statistics().state == "abandoned"
    with pytest.raises(ConsumersGone):
        out.put(1)
    out.close()
    assert list(iq.get_consumer()) == []  # drained is not abandoned


# clone


def test_a_clone_counts_by_itself(iq: IterableQueue[Any]) -> None:
    out, source = iq.get_producer(), iq.get_consumer()
    iq.close()
    other_out, other_source = out.clone(), source.clone()
    stats = iq.statistics()
    assert (stats.open_producers, stats.open_consumers) == (2, 2)
    assert len({repr(end) for end in (out, source, other_out, other_source)}) == 4
    out.close()
    source.close()
    other_out.put(1)
    assert other_source.get() == 1
    other_out.close()
    with pytest.raises(Done):
        other_source.get()


def test_a_worker_clones_after_close_while_it_is_open(iq: IterableQueue[Any]) -> None:
    tree = iq.get_worker()
    iq.close()
    other = tree.clone()
    assert iq.statistics().open_workers == 2
    tree.close()
    with pytest.raises((ProducerClosed, ConsumerClosed)):
        tree.clone()
    assert list(other) == []


# Workers


def test_a_worker_holds_the_queue_open_while_it_may_put(iq: IterableQueue[Any]) -> None:
    source = iq.get_consumer()
    tree = iq.get_worker()
    iq.close()
    with pytest.raises(Empty):
        source.get_nowait()  # it has not asked yet
    tree.put("root")
    assert tree.get() == "root"
    with pytest.raises(Empty):
        source.get_nowait()  # it is in the middle of an item
    tree.put("leaf")
    assert source.get() == "leaf"
    with pytest.raises(Done):
        tree.get()
    with pytest.raises(Done):
        source.get()


def test_a_worker_puts_no_more_after_done(iq: IterableQueue[Any]) -> None:
    tree = iq.get_worker()
    iq.close()
    assert list(tree) == []
    for call in (tree.put, tree.put_nowait, put_one_of_many(tree)):
        with pytest.raises(ProducerClosed):
            call(1)
    assert iq.qsize() == 0


def test_a_workers_put_is_never_refused_for_maxsize(make: Make) -> None:
    iq = make(1)
    tree = iq.get_worker()
    out = iq.get_producer()
    tree.put(1)
    tree.put_nowait(2)
    tree.put_many([3, 4])
    tree.put(5, timeout=0)
    assert (iq.qsize(), iq.full()) == (5, True)
    with pytest.raises(Full):
        out.put_nowait(6)
    out.close()
    iq.close()
    assert list(tree) == [1, 2, 3, 4, 5]


def test_a_tree_is_walked_through_a_queue_of_one(make: Make) -> None:
    iq = make(1)
    tree = iq.get_worker()
    with iq, iq.get_producer() as root:
        root.put(0)
    assert actors.grow(tree, 1000) == 1000
    assert iq.join(timeout=PATIENCE_S)


def test_a_worker_cut_short_in_an_item_has_failed(iq: IterableQueue[Any]) -> None:
    tree, source = iq.get_worker(), iq.get_consumer()
    tree.put(1)
    iq.close()
    assert tree.get() == 1
    with pytest.raises(ValueError, match="why"), tree:
        raise ValueError("why")
    with pytest.raises(ProducerFailed):
        source.get()


# Looking


def test_sizes_are_seen_from_everywhere(make: Make) -> None:
    iq = make(2)
    ends: list[Any] = [iq, iq.get_producer(), iq.get_consumer(), iq.get_worker()]
    for count in range(3):
        assert [end.qsize() for end in ends] == [count] * 4
        assert [end.empty() for end in ends] == [count == 0] * 4
        assert [end.full() for end in ends] == [count == 2] * 4
        if count < 2:
            ends[1].put(count)


def test_the_exceptions_are_reachable_from_the_class(iq: IterableQueue[Any]) -> None:
    assert (IterableQueue.Done, IterableQueue.Empty, IterableQueue.Full) == (Done, Empty, Full)
    assert (iq.Done, iq.Empty, iq.Full) == (Done, queue.Empty, queue.Full)


# Endpoints that nobody refers to any more


def test_an_unused_endpoint_that_is_dropped_is_closed(iq: IterableQueue[Any]) -> None:
    for make_end in (iq.get_producer, iq.get_consumer, iq.get_worker):
        make_end()
    gc.collect()
    stats = iq.statistics()
    assert (stats.open_producers, stats.open_consumers) == (0, 0)


def test_a_used_producer_that_is_dropped_has_failed(iq: IterableQueue[Any]) -> None:
    source = iq.get_consumer()
    iq.get_producer().put(1)
    gc.collect()
    iq.close()
    assert source.get() == 1
    with pytest.raises(ProducerFailed, match=r"was dropped without close\(\)"):
        source.get()


def test_nothing_keeps_a_dropped_queue(make: Make) -> None:
    iq = make()
    out, source = iq.get_producer(), iq.get_consumer()
    out.put(1)
    source.get()
    gone = weakref.ref(iq)
    del iq
    gc.collect()
    assert gone() is None
    out.close()  # endpoints live on
    with pytest.raises(Done):
        source.get()

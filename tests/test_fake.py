"""`FakeQueue`: the promises that one thread can keep, and what is its own: `WouldBlock`, the
virtual clock, the history, and kills.
"""

from __future__ import annotations

import copy
import gc
import inspect
import math
import pickle
import queue
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn, cast

import pytest

from iterable_queue import (
    Cancelled,
    Consumer,
    ConsumersGone,
    Done,
    Empty,
    EndpointElsewhere,
    Full,
    ItemError,
    ItemsLost,
    IterableQueue,
    Producer,
    ProducerFailed,
    QueueClosed,
    RemoteError,
    Worker,
)
from iterable_queue.testing import (
    Closed,
    Ended,
    Failed,
    FakeQueue,
    FakeQueues,
    Finished,
    Killed,
    Lost,
    Opened,
    Put,
    Redelivered,
    Returned,
    Stopped,
    Taken,
    TimedOut,
    Unreadable,
    VirtualClock,
    WouldBlock,
    check_queue,
    promises,
)

# The promises

WAITS = "needs two actors at once: "
NOT_FOR_ONE_THREAD = {
    # An actor that waits until another comes to help it.
    "each_item_is_handed_out_exactly_once": WAITS + "consume: consumer 1 would wait for ever",
    "an_item_is_there_when_put_returns": WAITS + "produce_on_cue: produce_on_cue-0 waited in vain",
    "get_many_takes_what_is_there": WAITS + "take_from: consumer 3 would wait for ever",
    "no_consumer_sits_on_work": WAITS + "take_and_hold: take_and_hold-0 waited in vain",
    "maxsize_is_exact_whoever_asks": WAITS + "fill: fill-0 waited in vain",
    "a_bounded_queue_never_holds_more": WAITS + "consume: consumer 1 would wait for ever",
    "put_waits_for_room": WAITS + "put_one: producer 3 would wait for ever",
    "get_waits_for_an_item": WAITS + "take_one: consumer 2 would wait for ever",
    "waiting_consumers_are_told_of_the_end": WAITS + "consume: consumer 2 would wait for ever",
    "no_producer_ever": WAITS + "consume: consumer 1 would wait for ever",
    "endpoints_come_and_go": WAITS + "consume: consumer 1 would wait for ever",
    "leaving_with_closes_the_queue": WAITS + "consume: consumer 1 would wait for ever",
    "cancel_wakes_everybody": WAITS + "take_one: consumer 2 would wait for ever",
    "an_abandoned_queue_says_so": WAITS + "put_one: producer 3 would wait for ever",
    "an_open_queue_waits_for_consumers": WAITS + "put_one: producer 3 would wait for ever",
    "an_exception_that_leaves_with_is_a_failure": WAITS + "consume: consumer 2 would wait for ever",
    "a_failure_may_cancel": WAITS + "consume: consumer 3 would wait for ever",
    "work_that_makes_work_ends": WAITS + "expand: worker 1 would wait for ever",
    "idle_workers_are_done": WAITS + "consume: worker 1 would wait for ever",
    "statistics_count": WAITS + "put_one: producer 4 would wait for ever",
    "statistics_never_go_back": WAITS + "consume: consumer 1 would wait for ever",
    "explain_names_what_is_open": WAITS + "take_one: consumer 3 would wait for ever",
    # What is said of threads.
    "threads_may_share_an_endpoint": "needs a second thread",
    "a_timeout_is_one_deadline": "needs a second thread",
    "iteration_ends_in_every_order_of_closing": "needs a second thread",
    "join_waits_for_the_last_item_to_be_finished": "needs a second thread",
    "closing_wakes_the_calls_of_other_threads": "needs a second thread",
    "each_thread_of_a_worker_counts": "needs a second thread",
    # And of processes.
    **{p.name: "needs processes=" for p in promises() if p.needs == "processes"},
}
NOT_WITHOUT_PICKLING = {p.name: "needs processes=, or" for p in promises() if p.needs == "pickling"}
NOT_OVER_A_QUEUE = {
    "a_failure_may_cancel": "make can't be called with {'on_failure': 'cancel'}",
    "a_wrong_on_failure_raises_at_once": "make can't be called with {'on_failure': 'raise'}",
    "an_idle_worker_may_put_while_an_item_may_come_back": "make can't be called with "
    "{'redeliver': True}",
}


@pytest.mark.parametrize("pickled", [True, False])
def test_it_keeps_what_one_thread_can_keep(pickled: bool) -> None:
    clock = VirtualClock()
    make = partial(FakeQueue[Any], pickled=pickled, clock=clock)
    report = check_queue(make, fifo=True, threads=False, pickled=pickled, clock=lambda: clock.now)
    expected = NOT_FOR_ONE_THREAD | ({} if pickled else NOT_WITHOUT_PICKLING)
    not_applicable = {result.name: result.detail for result in report.not_applicable}
    assert not_applicable.keys() == expected.keys()
    for name, why in expected.items():
        assert not_applicable[name].startswith(why), name
    assert len(report.passed) == len(promises()) - len(expected) >= 50


def test_it_keeps_them_over_a_queue() -> None:
    clock: list[VirtualClock] = [VirtualClock()]

    def make(maxsize: int = 0) -> FakeQueue[Any]:
        mine: queue.Queue[Any] = queue.Queue(maxsize)
        made = FakeQueue.over(mine)
        clock[0] = made.clock
        return made

    report = check_queue(
        make,
        fifo=True,
        threads=False,
        clock=lambda: clock[0].now,
        skip=["a_wrong_maxsize_raises_at_once"],  # that is of `queue.Queue`
    )
    expected = NOT_FOR_ONE_THREAD | NOT_WITHOUT_PICKLING | NOT_OVER_A_QUEUE
    assert {result.name for result in report.not_applicable} == expected.keys()


def test_a_check_of_one_thread_has_no_processes() -> None:
    import multiprocessing

    with pytest.raises(TypeError, match="threads=False"):
        check_queue(FakeQueue, processes=multiprocessing, threads=False)


def test_a_promise_that_is_broken_in_one_thread_is_found() -> None:
    """Not everything that goes wrong is "not applicable"."""

    class NeverClosed(FakeQueue[Any]):
        def close(self) -> None:
            pass

    with pytest.raises(AssertionError, match=r"items_arrive(.|\n)*WouldBlock"):
        check_queue(NeverClosed, threads=False, only=["items_arrive"])


# What users write


def total(numbers: Consumer[int]) -> int:
    return sum(numbers)


def count_to(n: int, out: Producer[int]) -> None:
    with out:
        for i in range(1, n + 1):
            out.put(i)


def walk(tree: Worker[int]) -> list[int]:
    seen: list[int] = []
    for depth in tree:
        seen.append(depth)
        if depth:
            tree.put_many([depth - 1] * 2)
    return seen


def serve(iq: IterableQueue[int]) -> int:
    with iq:
        out = iq.get_producer()
        source = iq.get_consumer()
        count_to(4, out)
    return total(source)


def test_a_consumer_in_one_line() -> None:
    assert total(FakeQueue([1, 2, 3]).get_consumer()) == 6


def test_a_worker_in_one_line() -> None:
    assert walk(FakeQueue([2]).get_worker()) == [2, 1, 1, 0, 0, 0, 0]


def test_a_producer_in_three() -> None:
    fake = FakeQueue[int]()
    count_to(3, fake.get_producer())
    assert fake.put_items == [1, 2, 3]
    assert fake.taken_items == []


def test_it_serves_where_a_queue_is_asked_for() -> None:
    fake = FakeQueue[int]()
    assert isinstance(fake, IterableQueue)
    assert serve(fake) == 10
    assert fake.put_items == fake.taken_items == [1, 2, 3, 4]
    assert fake.join()


def test_what_is_public_of_a_queue_is_public_here() -> None:
    def names(of: object) -> set[str]:
        return {name for name in dir(of) if not name.startswith("_")}

    own = {"MAX_TIMEOUTS", "clock", "history", "kill", "put_items", "taken_items"}
    assert names(FakeQueue) == names(IterableQueue) | own
    assert names(FakeQueue[int]()) == names(FakeQueue)
    assert "FakeQueue open" in repr(FakeQueue[int]())


# Filled beforehand


@pytest.mark.parametrize("items", [[1, 2, 3], (1, 2, 3), range(1, 4), iter([1, 2, 3])])
def test_items_are_put_and_the_queue_is_closed(items: Any) -> None:
    fake = FakeQueue[int](items)
    assert (fake.qsize(), fake.statistics().put, fake.statistics().state) == (3, 3, "closed")
    assert fake.put_items == [1, 2, 3]
    assert list(fake.get_consumer()) == [1, 2, 3]
    assert fake.join()


def test_no_items_are_an_empty_closed_queue_and_none_is_an_open_one() -> None:
    assert list(FakeQueue[int]([]).get_consumer()) == []
    assert walk(FakeQueue[int]([]).get_worker()) == []
    assert FakeQueue[int]().statistics().state == "open"


def test_endpoints_can_be_had_of_a_filled_queue() -> None:
    fake = FakeQueue([1])
    source, more, worker = fake.get_consumer(), fake.get_producer(), fake.get_worker()
    more.put(2)
    worker.put(3)
    assert [source.get() for _ in range(3)] == [1, 2, 3]
    with pytest.raises(Empty):
        source.get_nowait()
    more.close()
    worker.close()
    with pytest.raises(Done):
        source.get_nowait()


def test_consumers_can_be_had_of_it_though_the_first_have_gone() -> None:
    fake = FakeQueue([1, 2, 3])
    with fake.get_consumer() as source:
        assert source.get() == 1
    assert fake.statistics().state == "abandoned"
    fake.kill(fake.get_consumer())
    late = fake.get_producer()
    with pytest.raises(ConsumersGone):
        late.put(4)
    late.close()
    assert list(fake.get_consumer()) == [2, 3]
    assert fake.join()


def end_by_close(fake: FakeQueue[int]) -> None:
    fake.close()


def end_by_with(fake: FakeQueue[int]) -> None:
    with fake:
        pass


def end_by_done(fake: FakeQueue[int]) -> None:
    assert list(fake.get_consumer()) == [1]


def end_by_join(fake: FakeQueue[int]) -> None:
    with fake.get_consumer() as source:
        source.get()
    assert fake.join()


@pytest.mark.parametrize("end", [end_by_close, end_by_with, end_by_done, end_by_join])
def test_but_not_after_its_end(end: Callable[[FakeQueue[int]], None]) -> None:
    fake = FakeQueue([1])
    end(fake)
    for get in (fake.get_producer, fake.get_worker):
        with pytest.raises(QueueClosed):
            get()


def test_more_items_than_maxsize_are_refused() -> None:
    assert FakeQueue([1, 2], maxsize=2).full()
    assert not FakeQueue([1, 2], maxsize=-1).full()
    with pytest.raises(ValueError, match="3 items are more than maxsize=2"):
        FakeQueue([1, 2, 3], maxsize=2)


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"maxsize": "1"}, TypeError),
        ({"pickled": 1}, TypeError),
        ({"redeliver": 1}, TypeError),
        ({"on_failure": "explode"}, ValueError),
    ],
)
def test_wrong_arguments_are_named(kwargs: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(kwargs))):
        FakeQueue(**kwargs)


# It would wait for ever


def get(fake: FakeQueue[int]) -> None:
    fake.get_consumer().get()


def get_without_end(fake: FakeQueue[int]) -> None:
    fake.get_consumer().get(timeout=math.inf)


def get_many(fake: FakeQueue[int]) -> None:
    fake.get_consumer().get_many(3)


def iterate(fake: FakeQueue[int]) -> None:
    list(fake.get_consumer())


def work(fake: FakeQueue[int]) -> None:
    fake.get_worker().get()


def put(fake: FakeQueue[int]) -> None:
    fake.get_producer().put_nowait(1)
    fake.get_producer().put(2)


def put_many(fake: FakeQueue[int]) -> None:
    fake.get_producer().put_many([1, 2, 3])


def join(fake: FakeQueue[int]) -> None:
    fake.join()


FOR_AN_ITEM = "nobody else can put an item or close what is open"
FOR_ROOM = "nobody else can take an item"
CALLS_THAT_WAIT = [
    (get, "consumer 1 would", FOR_AN_ITEM),
    (get_without_end, "consumer 1 would", FOR_AN_ITEM),
    (get_many, "consumer 1 would", FOR_AN_ITEM),
    (iterate, "consumer 1 would", FOR_AN_ITEM),
    (work, "worker 1 would", FOR_AN_ITEM),
    (put, "producer 2 would", FOR_ROOM),
    (put_many, "producer 1 would", FOR_ROOM),
    (join, "join() would", "nobody else can bring the queue to its end"),
]


@pytest.mark.time_limit(10)
@pytest.mark.parametrize(("call", "who", "help_"), CALLS_THAT_WAIT, ids=lambda x: str(x)[:20])
def test_a_call_that_would_wait_for_ever_raises(
    call: Callable[[FakeQueue[int]], None], who: str, help_: str
) -> None:
    fake = FakeQueue[int](maxsize=1)
    with pytest.raises(WouldBlock) as caught:
        call(fake)
    first, _, rest = str(caught.value).partition("\n")
    assert first.startswith(who)
    assert help_ in first
    assert rest.startswith("open, not done: the queue has not been closed")
    assert isinstance(caught.value, AssertionError)
    assert fake.clock.now == 0.0


def test_it_says_who_waits_for_what() -> None:
    fake = FakeQueue[int]()
    out = fake.get_producer()
    with pytest.raises(WouldBlock) as caught:
        fake.get_consumer().get()
    said = str(caught.value)
    line = inspect.getsourcelines(test_it_says_who_waits_for_what)[1] + 2
    assert f"producer 1, made at {__file__}:{line}" in said
    assert f"the queue, made at {__file__}:{line - 1}" in said
    assert "1 thread(s) waiting in a call" in said
    assert "1 caller(s) wait in get for an item or the end" in said
    out.close()


def test_a_filled_queue_was_made_where_the_test_made_it() -> None:
    fake = FakeQueue(["x"])
    failing = fake.get_producer()
    line = inspect.getsourcelines(test_a_filled_queue_was_made_where_the_test_made_it)[1] + 2
    assert f"producer 2, made at {__file__}:{line}" in fake.explain()
    failing.close()


def test_nothing_was_changed_by_a_call_that_would_wait() -> None:
    fake = FakeQueue[int](maxsize=1)
    out, source = fake.get_producer(), fake.get_consumer()
    out.put(1)
    before = fake.statistics()
    with pytest.raises(WouldBlock):
        out.put(2)
    assert fake.statistics() == before
    assert source.get() == 1
    with pytest.raises(WouldBlock):
        source.get()
    out.put(3)
    out.close()
    fake.close()
    assert list(source) == [3]
    assert fake.put_items == fake.taken_items == [1, 3]


def test_it_does_not_block_where_a_real_one_would_raise() -> None:
    fake = FakeQueue[int](maxsize=1)
    out, source = fake.get_producer(), fake.get_consumer()
    out.put(1)
    fake.close()
    source.close()
    with pytest.raises(ConsumersGone):
        out.put(2)
    for call in (fake.join, fake.get_consumer):
        with pytest.raises(ConsumersGone):
            call()


# Time


def test_time_passes_where_a_timeout_was_given() -> None:
    fake = FakeQueue[int](maxsize=1)
    out, source = fake.get_producer(), fake.get_consumer()
    began = time.monotonic()
    with pytest.raises(Empty):
        source.get(timeout=3600.0)
    assert fake.clock.now == 3600.0
    out.put(1)
    with pytest.raises(Full):
        out.put(2, timeout=86400.0)
    assert fake.clock.now == 90000.0
    assert fake.join(1.5) is False
    assert fake.clock.now == 90001.5
    assert time.monotonic() - began < 5.0


def test_no_time_passes_otherwise() -> None:
    fake = FakeQueue([1, 2], maxsize=2)
    source = fake.get_consumer()
    assert source.get(timeout=60.0) == 1
    out = fake.get_producer()
    out.put(3, timeout=60.0)
    with pytest.raises(Full):
        out.put(4, block=False, timeout=60.0)
    assert source.get_many(2) == [2, 3]
    with pytest.raises(Empty):
        source.get_nowait()
    with pytest.raises(Empty):
        source.get(timeout=0)
    assert fake.clock.now == 0.0


def test_the_clock_can_be_put_forward_and_shared() -> None:
    clock = VirtualClock()
    first, second = FakeQueue[int](clock=clock), FakeQueue[int](clock=clock)
    assert first.clock is second.clock is clock
    clock.advance(2.5)
    with pytest.raises(Empty):
        first.get_consumer().get(timeout=1.0)
    assert clock.now == 3.5
    assert "3.5 s" in repr(clock)
    assert "last active 3.5 s ago" in second.explain()
    for wrong in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="seconds"):
            clock.advance(wrong)
    with pytest.raises(TypeError, match="seconds must be a number of seconds, not '1'"):
        clock.advance("1")  # type: ignore[arg-type]
    assert clock.now == 3.5


def test_a_bound_is_not_taken_for_items() -> None:
    with pytest.raises(
        TypeError, match=r"items must be an iterable.*, not 10; a bound is maxsize=$"
    ):
        FakeQueue(10)  # type: ignore[arg-type]


@pytest.mark.parametrize("clock", [5, 0, time.monotonic])
def test_a_clock_must_be_a_virtual_one(clock: Any) -> None:
    with pytest.raises(TypeError, match="clock must be a VirtualClock, not"):
        FakeQueue[int](clock=clock)


def poll_get(fake: FakeQueue[int], n: int) -> None:
    source = fake.get_consumer()
    for i in range(n):
        with pytest.raises(Empty):
            source.get(timeout=0.5) if i % 2 else source.get_nowait()


def poll_put(fake: FakeQueue[int], n: int) -> None:
    fake.get_producer().put(1)
    out = fake.get_producer()
    for _ in range(n):
        with pytest.raises(Full):
            out.put(2, timeout=0.1)


def poll_join(fake: FakeQueue[int], n: int) -> None:
    for _ in range(n):
        assert not fake.join(0.1)


@pytest.mark.time_limit(20)
@pytest.mark.parametrize("poll", [poll_get, poll_put, poll_join])
def test_a_loop_that_polls_ends(poll: Callable[[FakeQueue[int], int], None]) -> None:
    poll(FakeQueue[int](maxsize=1), FakeQueue.MAX_TIMEOUTS)
    with pytest.raises(WouldBlock, match="gave up in vain, after 1000 other calls"):
        poll(FakeQueue[int](maxsize=1), FakeQueue.MAX_TIMEOUTS + 1)


def test_a_change_lets_it_go_on() -> None:
    fake = FakeQueue[int]()
    out, source = fake.get_producer(), fake.get_consumer()
    for n in range(3):
        for _ in range(FakeQueue.MAX_TIMEOUTS - 1):
            with pytest.raises(Empty):
                source.get(timeout=0.1)
        out.put(n)
        assert source.get(timeout=0.1) == n


# History


def test_the_history_of_a_producer() -> None:
    fake = FakeQueue[str]()
    with fake, fake.get_producer() as out:
        out.put("a")
        out.put_many(["b", "c"])
    assert fake.history == (
        Opened("queue", 0),
        Opened("producer", 1),
        Put("producer", 1, "a"),
        Put("producer", 1, "b"),
        Put("producer", 1, "c"),
        Closed("producer", 1),
        Closed("queue", 0),
    )


def test_the_history_of_a_consumer() -> None:
    fake = FakeQueue(["a", "b", "c"])
    filled = len(fake.history)
    source = fake.get_consumer()
    with source:
        assert source.get() == "a"
        assert source.get_many(5) == ["b", "c"]
        with pytest.raises(Done):
            source.get()
    assert fake.history[filled:] == (
        Opened("consumer", 2),
        Taken("consumer", 2, "a"),
        Finished("consumer", 2, "a"),
        Taken("consumer", 2, "b"),
        Taken("consumer", 2, "c"),
        Finished("consumer", 2, "b"),
        Finished("consumer", 2, "c"),
        Ended("consumer", 2, "Done"),
        Closed("consumer", 2),
    )


def test_the_history_of_a_worker() -> None:
    fake = FakeQueue([1])
    filled = len(fake.history)
    walk(fake.get_worker())
    assert fake.history[filled:] == (
        Opened("worker", 2),
        Taken("worker", 2, 1),
        Put("worker", 2, 0),
        Put("worker", 2, 0),
        Finished("worker", 2, 1),
        Taken("worker", 2, 0),
        Finished("worker", 2, 0),
        Taken("worker", 2, 0),
        Finished("worker", 2, 0),
        Ended("worker", 2, "Done"),
        # It was dropped when `walk` returned.
        Closed("worker", 2),
    )


def test_the_history_of_what_closing_finishes() -> None:
    fake = FakeQueue([1, 2])
    source = fake.get_consumer()
    source.get()
    source.close()
    assert fake.history[-2:] == (Finished("consumer", 2, 1), Closed("consumer", 2))
    assert fake.statistics().finished == 1


def test_the_history_of_failures() -> None:
    fake = FakeQueue[int](on_failure="cancel")
    out = fake.get_producer()
    clone = out.clone()
    with pytest.raises(LookupError), clone:
        raise LookupError("why")
    with pytest.raises(Cancelled):
        out.put(1)
    out.close()
    fake.cancel()
    assert fake.history[1:] == (
        Opened("producer", 1),
        Opened("producer", 2),
        Failed("producer", 2, "LookupError('why')"),
        Stopped("queue", 0, "LookupError('why')"),
        Closed("producer", 1),
    )


def test_the_history_of_a_cancel() -> None:
    fake = FakeQueue[int]()
    fake.cancel()
    assert fake.history == (Opened("queue", 0), Stopped("queue", 0, None))


def test_the_history_of_waiting() -> None:
    fake = FakeQueue[int](maxsize=1)
    out, source = fake.get_producer(), fake.get_consumer()
    for _ in range(2):
        with pytest.raises(Empty):
            source.get(timeout=0.5)
    out.put(1)
    with pytest.raises(Full):
        out.put_nowait(2)
    fake.join(2.0)
    source.get()
    out.fail(ValueError())
    fake.close()
    with pytest.raises(ProducerFailed):
        source.get()
    with pytest.raises(ProducerFailed):
        fake.join()
    assert fake.history[3:] == (
        TimedOut("consumer", 2, 0.5),
        TimedOut("consumer", 2, 0.5),
        Put("producer", 1, 1),
        TimedOut("producer", 1, 0.0),
        TimedOut("queue", 0, 2.0),
        Taken("consumer", 2, 1),
        Failed("producer", 1, "ValueError()"),
        Closed("queue", 0),
        Finished("consumer", 2, 1),
        Ended("consumer", 2, "ProducerFailed"),
        Ended("queue", 0, "ProducerFailed"),
    )
    assert fake.history is fake.history


def test_the_history_of_joining() -> None:
    fake = FakeQueue[int]([])
    assert fake.join()
    assert fake.history[-1] == Ended("queue", 0, "")


def test_events_are_equal_by_what_they_say() -> None:
    assert Put("producer", 1, [2]) == Put("producer", 1, [2])
    assert Put("producer", 1, 2) != Put("producer", 1, 3)
    assert Put("producer", 1, 2) != Put("worker", 1, 2)
    assert cast("object", Put("worker", 1, 2)) != Taken("worker", 1, 2)
    assert Opened("producer", 1) != Opened("producer", 2)
    assert repr(Put("producer", 1, "x")) == "Put('producer', 1, 'x')"
    assert repr(Failed("worker", 2, "E()")) == "Failed('worker', 2, 'E()')"
    assert repr(Closed("queue", 0)) == "Closed('queue', 0)"
    assert {Opened("producer", 1), Opened("producer", 1)} == {Opened("producer", 1)}
    with pytest.raises(AttributeError):
        Opened("producer", 1).number = 2  # type: ignore[misc]
    match Put("producer", 1, "x"):
        case Put("producer", 1, item):
            assert item == "x"
        case other:
            pytest.fail(repr(other))


def test_the_history_keeps_no_endpoint_and_no_queue_alive() -> None:
    fake = FakeQueue([1])
    source = fake.get_consumer()
    source.get()
    history = fake.history
    gone = weakref.ref(fake)
    del fake
    assert gone() is None
    source.close()
    assert Taken("consumer", 2, 1) in history


# Items cross a boundary


class NotToBePickled:
    def __reduce__(self) -> NoReturn:
        raise LookupError("this one can't be pickled")


class NotToBeOpened:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return fail_to_open, ()


def fail_to_open() -> NoReturn:
    raise LookupError("this one can't be opened")


def test_items_are_pickled_when_they_are_put() -> None:
    fake = FakeQueue[list[int]]()
    out, source = fake.get_producer(), fake.get_consumer()
    item = [1]
    out.put(item)
    item.append(2)
    taken = source.get()
    assert taken == [1]
    taken.append(3)
    assert fake.put_items == fake.taken_items == [[1]]
    assert fake.history[-1] == Taken("consumer", 2, [1])


class Plain:
    """Equal only to itself."""


def test_the_history_has_one_copy_of_each_item() -> None:
    fake = FakeQueue([Plain(), Plain()])
    first, second = fake.get_consumer()
    [put, other] = fake.put_items
    assert put is not first
    assert other is not second
    assert [id(item) for item in fake.taken_items] == [id(put), id(other)]
    assert Finished("consumer", 2, put) in fake.history
    assert fake.history == fake.history


def test_an_item_that_cannot_be_pickled_raises_in_put() -> None:
    fake = FakeQueue[object]()
    out = fake.get_producer()
    for put_it in (out.put, out.put_nowait):
        with pytest.raises(LookupError):
            put_it(NotToBePickled())
    assert fake.put_items == []
    with pytest.raises(LookupError):
        FakeQueue([NotToBePickled()])
    with pytest.raises((AttributeError, pickle.PicklingError)):
        out.put(lambda: None)


def test_an_item_that_cannot_be_opened_raises_in_get() -> None:
    fake = FakeQueue([1, NotToBeOpened(), 2])
    source = fake.get_consumer()
    assert source.get() == 1
    with pytest.raises(ItemError) as caught:
        source.get()
    assert caught.value.producer == 1
    assert source.get() == 2
    assert Put("producer", 1, Unreadable(caught.value.payload)) in fake.history
    assert fake.taken_items == [1, 2]
    with pytest.raises(ItemError, match="put by producer 1"):
        assert fake.put_items


def test_what_went_back_was_not_taken() -> None:
    fake = FakeQueue([1, NotToBeOpened(), 2])
    source, other = fake.get_consumer(), fake.get_consumer()
    assert source.get_many(3) == [1]
    assert fake.taken_items == [1, 2]
    source.close()
    assert fake.taken_items == [1]
    assert isinstance(fake.history[-4], Returned)
    assert fake.history[-3:] == (
        Returned("consumer", 2, 2),
        Finished("consumer", 2, 1),
        Closed("consumer", 2),
    )
    with pytest.raises(ItemError):
        other.get()
    assert list(other) == [2]
    assert fake.taken_items == [1, 2]


def test_what_was_taken_again_and_went_back_was_taken_once() -> None:
    fake = FakeQueue(["a", "b", NotToBeOpened()], redeliver=True)
    victim, other, heir = (fake.get_consumer() for _ in range(3))
    assert victim.get() == "a"
    assert other.get() == "b"
    fake.kill(victim)
    with pytest.raises(ItemError):
        heir.get_many(2)
    assert fake.taken_items == ["a", "b", "a"]
    heir.close()
    assert fake.taken_items == ["a", "b"]


def test_errors_cross_as_well() -> None:
    class Local(Exception):
        pass

    fake = FakeQueue[int]()
    error = LookupError("why")
    fake.get_producer().fail(error)
    fake.get_producer().fail(Local("x"))
    fake.close()
    with pytest.raises(ProducerFailed) as caught:
        fake.get_consumer().get()
    first, second = caught.value.failures
    assert repr(first) == repr(error)
    assert first is not error
    assert isinstance(second, RemoteError)


def test_without_pickling_items_are_handed_over() -> None:
    fake = FakeQueue[object](pickled=False, redeliver=True)
    out, source = fake.get_producer(), fake.get_consumer()
    items: list[object] = [NotToBePickled(), lambda: None, [1], 1, 1]
    out.put_many(items)
    error = ValueError()
    out.fail(error)
    fake.close()
    taken = source.get_many(9)
    for seen in (taken, fake.put_items, fake.taken_items):
        assert [id(item) for item in seen] == [id(item) for item in items]
    with pytest.raises(ProducerFailed) as caught:
        source.get()
    assert caught.value.__cause__ is error


# Deaths


def test_a_killed_producer_has_failed() -> None:
    fake = FakeQueue[int]()
    out, source = fake.get_producer(), fake.get_consumer()
    out.put(1)
    fake.kill(out)
    fake.close()
    assert out.closed
    assert source.get() == 1
    with pytest.raises(ProducerFailed, match=r"producer 1, made at .*was killed by SIGKILL"):
        source.get()
    with pytest.raises(EndpointElsewhere, match=r"producer 1 was killed by FakeQueue.kill\(\)"):
        out.put(2)
    out.close()
    assert fake.history[3:] == (
        Put("producer", 1, 1),
        Killed("producer", 1),
        Closed("queue", 0),
        Taken("consumer", 2, 1),
        Finished("consumer", 2, 1),
        Ended("consumer", 2, "ProducerFailed"),
    )


def test_an_unused_producer_that_is_killed_has_failed() -> None:
    fake = FakeQueue[int](on_failure="cancel")
    fake.kill(fake.get_producer())
    with pytest.raises(Cancelled, match="killed by SIGKILL"):
        fake.get_consumer()


def test_what_a_killed_consumer_had_in_hand_is_lost() -> None:
    fake = FakeQueue([1, 2, 3])
    victim, heir = fake.get_consumer(), fake.get_consumer()
    assert victim.get() == 1
    assert victim.get() == 2
    fake.kill(victim)
    assert list(heir) == [3]
    with pytest.raises(ItemsLost) as caught:
        fake.join()
    assert caught.value.count == fake.statistics().lost == 1
    assert Killed("consumer", 2) in fake.history
    assert Lost("consumer", 2, 2) in fake.history
    assert Finished("consumer", 2, 2) not in fake.history
    assert fake.history[-1] == Ended("queue", 0, "ItemsLost")


def test_or_handed_out_again() -> None:
    fake = FakeQueue([1, 2], redeliver=True)
    victim, heir = fake.get_consumer(), fake.get_consumer()
    assert victim.get_many(1) == [1]
    fake.kill(victim)
    assert fake.history[-2:] == (Killed("consumer", 2), Redelivered("consumer", 2, 1))
    assert list(heir) == [2, 1]
    assert fake.join()
    assert fake.taken_items == [1, 2, 1]
    assert (fake.statistics().lost, fake.statistics().redelivered) == (0, 1)


@pytest.mark.parametrize("pickled", [True, False])
@pytest.mark.parametrize("most", [None, 1, 2, 5])
def test_but_not_for_ever(pickled: bool, most: int | None) -> None:
    fake = FakeQueue([7], redeliver=True, max_deliveries=most, pickled=pickled)
    heir = fake.get_consumer()
    tries = most or IterableQueue.MAX_DELIVERIES
    for _ in range(tries):
        victim = fake.get_consumer()
        assert victim.get() == 7
        fake.kill(victim)
    assert fake.history[-1] == Lost("consumer", tries + 2, 7)
    assert (fake.statistics().lost, fake.statistics().redelivered) == (1, tries - 1)
    assert list(heir) == []
    with pytest.raises(ItemsLost):
        fake.join()


def test_equal_items_are_each_lost_or_redelivered() -> None:
    for redeliver, event in ((False, Lost), (True, Redelivered)):
        fake = FakeQueue([1, 1], redeliver=redeliver, pickled=False)
        victim, heir = fake.get_consumer(), fake.get_consumer()
        assert victim.get_many(2) == [1, 1]
        fake.kill(victim)
        assert fake.history[-2:] == (event("consumer", 2, 1),) * 2
        assert list(heir) == ([1, 1] if redeliver else [])


def test_a_killed_consumer_with_nothing_in_hand_is_closed() -> None:
    fake = FakeQueue([1])
    victim, heir = fake.get_consumer(), fake.get_consumer()
    fake.kill(victim)
    assert list(heir) == [1]
    assert fake.join()


@pytest.mark.parametrize("in_hand", [False, True])
def test_a_killed_worker_has_failed(in_hand: bool) -> None:
    fake = FakeQueue([1, 2])
    victim, heir = fake.get_worker(), fake.get_consumer()
    if in_hand:
        victim.get()
    fake.kill(victim)
    assert [heir.get() for _ in range(fake.qsize())][-1] == 2
    with pytest.raises(ProducerFailed, match="worker 2"):
        heir.get()


def test_the_work_of_a_killed_worker_may_go_to_another() -> None:
    fake = FakeQueue([1], redeliver=True)
    victim, heir = fake.get_worker(), fake.get_worker()
    victim.get()
    fake.kill(victim)
    assert walk(heir) == [1, 0, 0]
    assert fake.join()


def test_a_kill_in_the_middle_of_a_loop() -> None:
    """As a pipeline's test has it: the loop's next call is one that a dead process can't make."""
    fake = FakeQueue([1, 2, 3])
    done: list[int] = []

    def consume(source: Consumer[int]) -> None:
        with source:
            for item in source:
                done.append(item)
                if item == 2:
                    fake.kill(source)

    with pytest.raises(EndpointElsewhere):
        consume(fake.get_consumer())
    assert done == [1, 2]
    assert fake.statistics().lost == 1


def test_what_has_closed_is_not_killed_any_more() -> None:
    fake = FakeQueue[int]()
    out = fake.get_producer()
    out.close()
    before = fake.history
    fake.kill(out)
    assert fake.history == before
    with pytest.raises(EndpointElsewhere):
        out.put(1)


def test_only_its_own_endpoints_can_be_killed() -> None:
    fake = FakeQueue[int]()
    strangers: list[Any] = [FakeQueue[int]().get_producer(), fake, object()]
    for stranger in strangers:
        with pytest.raises(TypeError, match="endpoint must be one that this queue made"):
            fake.kill(stranger)


def test_a_cancel_is_told_before_what_can_not_be_pickled() -> None:
    """As on the real queue, where the item is not even looked at."""
    for iq in (FakeQueue[Any](), IterableQueue[Any]()):
        calls = [call for put in (iq.get_producer(), iq.get_worker()) for call in each_put(put)]
        iq.cancel(ValueError("enough"))
        for call in calls:
            with pytest.raises(Cancelled, match="enough"):
                call(lambda: None)


def each_put(out: Any) -> list[Callable[[Any], None]]:
    return [out.put, out.put_nowait, lambda item: out.put_many([item])]


def test_a_list_is_put_item_by_item() -> None:
    """As on the real queue: while the next one is pickled, those before it can be taken."""
    seen = list[int]()

    class Item:
        def __init__(self, out: Producer[Any]) -> None:
            self.out = out

        def __reduce__(self) -> tuple[Any, ...]:
            seen.append(self.out.qsize())
            return (int, ())

    for iq in (FakeQueue[Any](), IterableQueue[Any](), IterableQueue[Any](10)):
        with iq.get_producer() as out, iq.get_consumer():
            out.put_many([Item(out) for _ in range(3)])
        assert seen == [0, 1, 2]
        seen.clear()


def test_a_dropped_producer_has_failed() -> None:
    fake = FakeQueue[int]()
    out = fake.get_producer()
    out.put(1)
    del out
    gc.collect()
    assert isinstance(fake.history[-1], Failed)
    assert "was dropped without close()" in fake.history[-1].error


# One thread


def test_another_thread_is_refused_and_changes_nothing() -> None:
    fake = FakeQueue([1, 2])
    used, fresh = fake.get_consumer(), fake.get_consumer()
    out, worker = fake.get_producer(), fake.get_worker()
    used.get()
    out.put(3)
    before, state = fake.history, fake.statistics()
    calls: list[Callable[[], object]] = [
        used.get,
        used.get_nowait,
        used.close,
        used.clone,
        used.__next__,
        partial(used.get_many, 2),
        fresh.get,
        fresh.close,
        fresh.qsize,
        partial(out.put, 4),
        partial(out.put_many, [4]),
        partial(out.fail, ValueError()),
        partial(worker.put, 4),
        fake.get_consumer,
        fake.get_producer,
        fake.close,
        fake.cancel,
        fake.join,
        fake.statistics,
        fake.explain,
        fake.qsize,
        fake.__enter__,
        partial(fake.kill, out),
    ]
    errors: list[object] = []

    def run() -> None:
        for call in calls:
            try:
                call()
            except RuntimeError as error:
                errors.append(str(error).partition(",")[0])
            else:
                errors.append(call)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    assert errors == ["a FakeQueue is for the one thread that made it"] * len(calls)
    assert fake.history == before
    assert fake.statistics() == state


def test_endpoints_may_be_dropped_in_another_thread() -> None:
    """The garbage collector runs where it will."""
    fake = FakeQueue[int]()
    dropped = [fake.get_producer(), fake.get_consumer()]
    thread = threading.Thread(target=dropped.clear)
    thread.start()
    thread.join(20)
    assert set(fake.history[-2:]) == {Closed("producer", 1), Closed("consumer", 2)}


def test_it_cannot_be_sent_anywhere() -> None:
    fake = FakeQueue[int]()
    for thing in (fake, fake.get_producer(), fake.get_consumer(), fake.get_worker()):
        with pytest.raises(TypeError, match=r"FakeQueue.*can't be pickled.*IterableQueue\(\)"):
            pickle.dumps(thing)
    with pytest.raises(TypeError, match="FakeQueue"):
        FakeQueue([fake.get_consumer()])
    for end in (fake.get_producer(), fake.get_consumer(), fake.get_worker()):
        for duplicate in (copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="clone"):
                duplicate(end)


# Its other constructors


def test_threaded_is_a_fake_that_pickles_nothing() -> None:
    fake = FakeQueue[Any].threaded(maxsize=2)
    out = fake.get_producer()
    item = [1]
    out.put(item)
    out.put(None)
    assert fake.put_items[0] is item
    with pytest.raises(WouldBlock):
        out.put(1)


@pytest.mark.parametrize("kind", [queue.Queue, queue.LifoQueue, queue.PriorityQueue])
def test_over_a_queue_of_the_caller(kind: Callable[[], queue.Queue[int]]) -> None:
    mine, expected = kind(), kind()
    mine.put(5)
    expected.put(5)
    fake = FakeQueue.over(mine)
    with fake, fake.get_producer() as out:
        for n in (3, 4, 1):
            out.put(n)
            expected.put(n)
    order = [expected.get() for _ in range(4)]
    assert list(fake.get_consumer()) == order
    assert fake.taken_items == order
    assert fake.put_items == [3, 4, 1]
    assert fake.statistics().put == 4


def test_over_a_simple_queue() -> None:
    mine: queue.SimpleQueue[int] = queue.SimpleQueue()
    mine.put(1)
    fake = FakeQueue.over(mine)
    source = fake.get_consumer()
    fake.get_producer().put_many([2, 3])
    assert [source.get() for _ in range(3)] == [1, 2, 3]
    with pytest.raises(WouldBlock):
        source.get()
    assert fake.taken_items == [1, 2, 3]
    finished = [event.item for event in fake.history if isinstance(event, Finished)]
    assert finished == [1, 2, 3]


# Queues by name


def make_squares(url: str, most: int) -> None:
    """Code under test that knows its queue by a server and a name."""
    with IterableQueue[int].connect(url, name="squares") as iq, iq.get_producer() as out:
        out.put_many(n * n for n in range(most))


def sum_squares(url: str) -> int:
    return sum(IterableQueue[int].connect(url, name="squares").get_consumer())


def test_who_connects_by_a_name_shares_a_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = FakeQueues(VirtualClock())
    monkeypatch.setattr(IterableQueue, "connect", fakes.connect)
    make_squares("redis://nowhere", 4)
    assert sum_squares("redis://nowhere") == 14
    assert fakes.named["squares"].put_items == [0, 1, 4, 9]
    assert fakes.made == [fakes.named["squares"]]
    assert fakes.connect("redis://nowhere", name="other") is not fakes.named["squares"]
    assert not FakeQueues(VirtualClock()).named, "nor has another test any of them"


def test_fakes_by_name_take_the_arguments_of_connect() -> None:
    fakes = FakeQueues(VirtualClock())
    connect: Any = partial(fakes.connect, "redis://nowhere", name="q")
    real, fake = map(inspect.signature, (IterableQueue[Any].connect, fakes.connect))
    assert list(fake.parameters.values()) == list(real.parameters.values())
    with pytest.raises(QueueClosed, match="there is no queue 'q', and create=False makes none"):
        connect(create=False)
    made = connect(maxsize=2, max_deliveries=2, sign="key")
    for same in (
        {},
        {"maxsize": 2},
        {"on_failure": "raise"},
        {"max_deliveries": 2},
        {"create": False},
    ):
        assert connect(sign="key", **same) is made
    for option, other in {"maxsize": 3, "on_failure": "cancel", "redeliver": False}.items():
        with pytest.raises(ValueError, match=f"^{option}: the queue 'q' exists already, with "):
            connect(sign="key", **{option: other})
    with pytest.raises(ValueError, match=r"^serializer: .*, with pickle\+signed"):
        connect()
    with pytest.raises(ValueError, match="expiry_s must be"):
        connect(expiry_s=math.inf)
    with pytest.raises(TypeError, match="server must be a URL, or a function"):
        fakes.connect(cast("Any", 3), name="q")
    made.get_producer().put_many([1, 2])
    with pytest.raises(WouldBlock):
        made.get_producer().put(3)


def test_the_class_of_fakes_has_no_server() -> None:
    with pytest.raises(TypeError, match="make one by FakeQueue"):
        FakeQueue[int].connect("redis://127.0.0.1:1/0", name="q")

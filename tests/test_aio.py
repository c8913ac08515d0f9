"""Calls for coroutines: what they give and raise, who wakes them, and what a cancelled one leaves.

Where a test says that something is woken, slices are made too long to help (`no_slices`).
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from queue import Empty, Full, PriorityQueue
from typing import Any, TypeVar, cast

import pytest

import iterable_queue
from iterable_queue import (
    Cancelled,
    ChannelBroken,
    Consumer,
    ConsumerClosed,
    ConsumersGone,
    Done,
    ItemError,
    IterableQueue,
    Producer,
    ProducerClosed,
    ProducerFailed,
    Worker,
    _aio,
    _endpoints,
    _runtime,
)
from iterable_queue._cells import LOOP_END, LOOP_ITEM, WAIT_END, WAIT_ITEM
from iterable_queue._shared_runtime import Fifo
from iterable_queue.testing import (
    FakeQueue,
    NothingInterleaved,
    Simulation,
    WouldBlock,
    explore,
    races,
)
from tests.conftest import FORKS, Processes, wait_until

T = TypeVar("T")

LONG_S = 20.0
"""Nothing here takes as long, in seconds."""
FORK = multiprocessing.get_context("fork")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run *main* in an event loop of its own, for no longer than `LONG_S`."""

    async def limited() -> T:
        async with asyncio.timeout(LONG_S):
            return await main

    return asyncio.run(limited())


async def until(fact: Callable[[], object], what: str) -> None:
    """Let others of the loop run until *fact*."""
    deadline = time.monotonic() + LONG_S / 2
    while not fact():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.001)


def threaded(maxsize: int = 0) -> IterableQueue[Any]:
    return IterableQueue[Any].threaded(maxsize)


def core_of(iq: IterableQueue[Any]) -> Any:
    return iq._core


def waiting(iq: IterableQueue[Any]) -> list[int]:
    """How many are counted as waiting: for each condition all, then those in event loops."""
    head = core_of(iq).ledger.head
    return [*head[WAIT_ITEM : WAIT_END + 1], *head[LOOP_ITEM : LOOP_END + 1]]


def is_quiet(iq: IterableQueue[Any]) -> bool:
    """Whether nobody waits, is counted, or is shown to wait."""
    shown = iq.statistics()[10:12]
    return waiting(iq) == [0] * 6 and not core_of(iq).desks and shown == (0, 0)


async def asleep(iq: IterableQueue[Any], count: int = 1) -> None:
    """Until so many coroutines sleep."""
    desks = core_of(iq).desks
    await until(
        lambda: sum(len(desk._sleepers) for desk in desks.values()) == count, "sleeping coroutines"
    )


def end(task: asyncio.Task[Any]) -> None:
    """End the coroutine of a *task* whose loop is closed, as the collector would."""
    coroutine: Any = task.get_coro()
    coroutine.close()
    cast("Any", task)._log_destroy_pending = False


@pytest.fixture(params=["processes", "threads"])
def kind(request: pytest.FixtureRequest) -> str:
    """Each channel in turn."""
    kind: str = request.param
    return kind


@pytest.fixture
def make(kind: str) -> Iterator[Callable[..., IterableQueue[Any]]]:
    """Makes queues on each channel in turn, on which nobody waits any more at the test's end."""
    made: list[IterableQueue[Any]] = []

    def make(maxsize: int = 0) -> IterableQueue[Any]:
        iq = IterableQueue[Any](maxsize) if kind == "processes" else threaded(maxsize)
        made.append(iq)
        return iq

    yield make
    for iq in made:
        assert is_quiet(iq), waiting(iq)


Make = Callable[..., IterableQueue[Any]]


@pytest.fixture
def no_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is not woken sleeps too long for any test."""
    monkeypatch.setattr(_aio, "SLICE_S", 10 * LONG_S)
    monkeypatch.setattr(_runtime, "SLICE_S", 10 * LONG_S)


woken = pytest.mark.usefixtures("no_slices")


# What the calls give and raise


@pytest.mark.parametrize("maxsize", [0, 3])
@woken
def test_items_cross_and_the_iteration_ends(make: Make, maxsize: int) -> None:
    async def main() -> tuple[list[int], bool]:
        async def produce(out: Producer[int]) -> None:
            with out:
                for n in range(20):
                    await out.aput(n)
                    if n % 7 == 0:
                        await asyncio.sleep(0.001)  # so that the consumer has to wait as well

        with make(maxsize) as iq:
            out, source = iq.get_producer(), iq.get_consumer()
        producing = asyncio.create_task(produce(out))
        taken = [item async for item in source]
        await producing
        with pytest.raises(Done):
            await source.aget()
        return taken, await iq.ajoin()

    assert run(main()) == (list(range(20)), True)


def test_items_of_all_sorts(make: Make) -> None:
    """Plain ones, those that are pickled, large ones and bytes, on each kind of queue."""
    items: list[Any] = [1, "two", (3,), {"four": 4}, b"5" * 100_000, "6" * 100_000, None]
    items += [bytearray(b"7"), bytearray(b"8" * 100_000)]

    async def main(iq: IterableQueue[Any]) -> list[Any]:
        with iq:
            out, source = iq.get_producer(), iq.get_consumer()
        with out:
            for item in items:
                await out.aput(item)
        return [item async for item in source]

    for maxsize in (0, 10):
        assert run(main(make(maxsize))) == items
    assert run(main(IterableQueue(redeliver=True))) == items


def test_over_a_priority_queue() -> None:
    async def main() -> list[int]:
        with IterableQueue[int].over(PriorityQueue[int]()) as iq:
            out, source = iq.get_producer(), iq.get_consumer()
        with out:
            for n in (3, 1, 2):
                await out.aput(n)
        return [n async for n in source]

    assert run(main()) == [1, 2, 3]


def test_many_at_once(make: Make) -> None:
    async def main() -> None:
        with make() as iq:
            out, source = iq.get_producer(), iq.get_consumer()
        out.put_many(range(5))
        assert await source.aget_many(3) == [0, 1, 2]
        assert await source.aget() == 3
        assert await source.aget_many(3) == [4]
        waits = asyncio.create_task(source.aget_many(3))
        await asleep(iq)
        out.put(5)
        assert await waits == [5]
        out.close()
        with pytest.raises(Done):
            await source.aget_many(1)

    run(main())


@pytest.mark.parametrize("timeout", [0, 0.02])
@woken
def test_time_outs(make: Make, timeout: float) -> None:
    async def main() -> None:
        iq = make(1)
        out, source = iq.get_producer(), iq.get_consumer()
        with pytest.raises(Empty):
            await source.aget(timeout)
        await out.aput(1, timeout)
        began = time.monotonic()
        with pytest.raises(Full, match="maxsize"):
            await out.aput(2, timeout)
        assert not await iq.ajoin(timeout)
        assert time.monotonic() - began >= 2 * timeout
        assert await source.aget(timeout) == 1
        assert is_quiet(iq)

    run(main())


@pytest.mark.parametrize(("timeout", "error"), [(-1, ValueError), ("1", TypeError)])
def test_what_is_no_time_out(make: Make, timeout: Any, error: type[Exception]) -> None:
    async def main() -> None:
        iq = make()
        out, source = iq.get_producer(), iq.get_consumer()
        for _ in range(2):  # by the long way, and by the short one
            calls = (out.aput, 1, timeout), (source.aget, timeout), (iq.ajoin, timeout)
            for call, *args in calls:
                with pytest.raises(error, match="timeout must be"):
                    await call(*args)
            out.put_many((1, 2))
            await source.aget()

    run(main())


def test_a_limit_that_is_none(make: Make) -> None:
    source = make().get_consumer()
    with pytest.raises(ValueError, match="limit must be 1 or more"):
        run(source.aget_many(0))


def test_calls_on_what_is_closed(make: Make) -> None:
    async def main() -> None:
        iq = make()
        out, source = iq.get_producer(), iq.get_consumer()
        out.close()
        source.close()
        with pytest.raises(ProducerClosed):
            await out.aput(1)
        with pytest.raises(ConsumerClosed):
            await source.aget()
        with pytest.raises(ConsumerClosed):
            await source.aget_many(1)
        with pytest.raises(ConsumerClosed):
            await anext(aiter(source))

    run(main())


class Unreadable:
    """Raises where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


def test_items_that_cannot_cross() -> None:
    async def main() -> None:
        iq = IterableQueue[Any]()
        out, source = iq.get_producer(), iq.get_consumer()
        with pytest.raises(Exception, match=r"pickle|local object"):
            await out.aput(lambda: None)
        for _ in range(2):
            await out.aput(Unreadable())
            await out.aput(1)
        with pytest.raises(ItemError):
            await source.aget()
        assert await source.aget() == 1
        with pytest.raises(ItemError):
            await source.aget_many(9)
        assert await source.aget_many(9) == [1]

    run(main())


@woken
def test_workers(make: Make) -> None:
    """A worker's put never waits for room, and the last item ends the work of all."""

    async def work(tree: Worker[int], done: list[int]) -> None:
        async for n in tree:
            done.append(n)
            for _ in range(2 if n else 0):
                await tree.aput(n - 1)
            await asyncio.sleep(0)

    async def main() -> list[int]:
        done: list[int] = []
        with make(1) as iq:
            first = iq.get_worker()
            others = [iq.get_worker(), iq.get_worker()]
        await first.aput(4)
        await asyncio.gather(*(work(tree, done) for tree in (first, *others)))
        return done

    assert sorted(run(main())) == sorted(n for n in range(5) for _ in range(2 ** (4 - n)))


# Who is woken


@pytest.mark.parametrize("ending", ["close", "fail", "cancel"])
@woken
def test_sleepers_are_woken_by_the_end(make: Make, ending: str) -> None:
    async def main() -> list[object]:
        iq = make()
        out, source = iq.get_producer(), iq.get_consumer()
        iq.close()
        sleeping: list[Awaitable[object]] = [
            asyncio.create_task(source.aget()),
            asyncio.create_task(source.aget_many(2)),
            asyncio.create_task(iq.ajoin()),
        ]
        await asleep(iq, 3)
        threading.Thread(
            target={
                "close": out.close,
                "fail": lambda: out.fail(KeyError("why")),
                "cancel": iq.cancel,
            }[ending]
        ).start()
        return await asyncio.gather(*sleeping, return_exceptions=True)

    found = run(main())
    error = {"close": Done, "fail": ProducerFailed, "cancel": Cancelled}[ending]
    assert [type(each) for each in found[:2]] == [error] * 2
    assert found[2] is True if ending == "close" else type(found[2]) is error


@woken
def test_who_waits_for_room_is_woken_when_consumers_are_gone(make: Make) -> None:
    async def main() -> None:
        iq = make(1)
        out, source = iq.get_producer(), iq.get_consumer()
        iq.close()
        await out.aput(1)
        waits = asyncio.create_task(out.aput(2))
        await asleep(iq)
        source.close()
        with pytest.raises(ConsumersGone):
            await waits
        with pytest.raises(ConsumersGone):
            await out.aput(2)

    run(main())


@woken
def test_an_endpoint_is_closed_while_its_coroutines_wait(make: Make) -> None:
    async def main() -> None:
        iq = make(1)
        out, source = iq.get_producer(), iq.get_consumer()
        taking = asyncio.create_task(source.aget())
        await asleep(iq)
        source.close()
        with pytest.raises(ConsumerClosed):
            await taking
        out.put(1)
        putting = asyncio.create_task(out.aput(2))
        await asleep(iq)
        out.close()
        with pytest.raises(ProducerClosed):
            await putting

    run(main())


@woken
def test_room_for_one_wakes_one(make: Make) -> None:
    async def main() -> None:
        iq = make(1)
        outs, source = [iq.get_producer() for _ in range(3)], iq.get_consumer()
        outs[0].put(0)
        putting = [asyncio.create_task(out.aput(n)) for n, out in enumerate(outs, 1)]
        await asleep(iq, 3)
        assert iq.statistics().blocked_producers == 3
        assert sorted([await source.aget() for _ in range(4)]) == [0, 1, 2, 3]
        await asyncio.gather(*putting)

    run(main())


@woken
def test_threads_and_coroutines_wake_each_other(make: Make) -> None:
    """Both kinds of sleepers on one queue get what there is, one item each."""
    iq = make()
    out = iq.get_producer()
    sources = [iq.get_consumer() for _ in range(4)]
    taken: list[int] = []

    def take(source: Consumer[int]) -> None:
        taken.append(source.get())

    threads = [threading.Thread(target=take, args=(source,)) for source in sources[:2]]
    for thread in threads:
        thread.start()

    async def main() -> list[int]:
        sleeping = [asyncio.create_task(source.aget()) for source in sources[2:]]
        await asleep(iq, 2)
        await until(lambda: waiting(iq)[0] == 4, "all wait")
        for n in range(4):
            out.put(n)
        return [await task for task in sleeping]

    got = run(main())
    for thread in threads:
        thread.join()
    assert sorted(got + taken) == [0, 1, 2, 3]


@woken
def test_loops_of_several_threads(make: Make) -> None:
    iq = make()
    with iq:
        out = iq.get_producer()
        sources = [iq.get_consumer() for _ in range(2)]
    taken: list[list[int]] = [[], []]

    async def consume(source: Consumer[int], into: list[int]) -> None:
        async for n in source:
            into.append(n)

    def consume_in_loop(at: int) -> None:
        run(consume(sources[at], taken[at]))

    threads = [threading.Thread(target=consume_in_loop, args=(at,)) for at in range(2)]
    for thread in threads:
        thread.start()
    for n in range(50):
        out.put(n)
        if n % 10 == 0:
            wait_until(lambda: waiting(iq)[0] == 2, "both sleep")
    out.close()
    for thread in threads:
        thread.join()
    assert sorted(taken[0] + taken[1]) == list(range(50))


def test_a_lost_wake_up_costs_a_slice(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_aio, "SLICE_S", 0.01)

    async def main() -> list[int]:
        iq = make()
        out, source = iq.get_producer(), iq.get_consumer()
        sleeping = [asyncio.create_task(source.aget()) for _ in range(2 * _aio.LOOKERS)]
        await asleep(iq, len(sleeping))
        condition = core_of(iq).runtime.items
        core_of(iq).runtime.items = core_of(iq).ledger.items = _runtime.Condition(
            [0], 0, _runtime.TokenQueue()
        )
        head, core_of(iq).ledger.head[WAIT_ITEM] = waiting(iq)[0], 0
        out.put_many(range(len(sleeping)))
        core_of(iq).ledger.head[WAIT_ITEM] = head
        core_of(iq).runtime.items = core_of(iq).ledger.items = condition
        return [await task for task in sleeping]

    assert sorted(run(main())) == list(range(2 * _aio.LOOKERS))


def test_one_look_for_all_sleepers(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a slice the queue is looked at once; and no more than some of them try."""
    monkeypatch.setattr(_aio, "SLICE_S", 0.02)

    async def main() -> None:
        iq = IterableQueue[int].threaded()
        source = iq.get_consumer()
        core = core_of(iq)
        looks: list[float] = []
        tries: list[int] = []
        monkeypatch.setattr(core, "look", lambda: looks.append(len(tries)))
        take = core.ledger.take
        sleeping = [asyncio.create_task(source.aget()) for _ in range(100)]
        await asleep(iq, 100)

        def counted(*args: Any) -> bool:
            tries.append(1)
            taken: bool = take(*args)
            return taken

        object.__setattr__(source, "_ledger", Ledger(core.ledger, counted))
        await until(lambda: len(looks) >= 3, "looks")
        assert looks[:3] == [0, _aio.LOOKERS, 2 * _aio.LOOKERS]
        iq.cancel()
        await asyncio.gather(*sleeping, return_exceptions=True)

    run(main())


class Ledger:
    """A ledger, but for its `take`."""

    def __init__(self, ledger: Any, take: Callable[..., bool]) -> None:
        self._ledger = ledger
        self.take = take

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)


# Cancellation


@woken
def test_a_cancelled_call_leaves_nothing_behind(make: Make) -> None:
    async def main() -> None:
        iq = make(1)
        out, source = iq.get_producer(), iq.get_consumer()
        await out.aput(0)
        calls = (iq.ajoin(), out.aput(1))
        sleeping = [asyncio.create_task(call) for call in calls]
        await asleep(iq, 2)
        for task in sleeping:
            task.cancel()
        await asyncio.gather(*sleeping, return_exceptions=True)
        assert all(task.cancelled() for task in sleeping)
        assert is_quiet(iq)
        assert await source.aget() == 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await source.aget()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(source.aget_many(2), 0.01)
        assert is_quiet(iq)
        await out.aput(2)
        assert await source.aget() == 2

    run(main())


@pytest.mark.parametrize("late", [False, True])
@woken
def test_the_wake_up_of_one_who_is_cancelled_goes_to_another(make: Make, late: bool) -> None:
    """Cancelled before the token has come to the desk, and after that."""

    async def main() -> None:
        iq = make()
        out, source = iq.get_producer(), iq.get_consumer()
        first = asyncio.create_task(source.aget())
        await asleep(iq, 1)
        second = asyncio.create_task(source.aget())
        await asleep(iq, 2)
        (desk,) = core_of(iq).desks.values()
        if late:
            admit = desk.admit

            def admit_and_cancel(tokens: int) -> None:
                admit(tokens)
                first.cancel()

            desk.admit = admit_and_cancel
        out.put(1)
        if not late:
            first.cancel()
        assert await second == 1
        assert first.cancelled()

    run(main())


@woken
def test_the_wake_up_of_the_last_who_is_cancelled_goes_to_a_thread(make: Make) -> None:
    iq = make()
    out, source, other = iq.get_producer(), iq.get_consumer(), iq.get_consumer()
    taken: list[int] = []
    thread = threading.Thread(target=lambda: taken.append(other.get()))

    async def main() -> None:
        sleeping = asyncio.create_task(source.aget())
        await asleep(iq)
        thread.start()
        await until(lambda: waiting(iq)[0] == 2, "both wait")
        core_of(iq).runtime.items._loops_turn = True
        out.put(1)
        sleeping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sleeping

    run(main())
    thread.join(LONG_S)
    assert taken == [1]


def test_loops_of_threads_are_woken_by_turns() -> None:
    calls: list[str] = []

    class Loop:
        def __init__(self, name: str) -> None:
            self.name = name

        def call_soon_threadsafe(self, _call: object, tokens: int) -> None:
            calls.extend([self.name] * tokens)

    bell = _aio.ThreadBell()
    core, condition = cast("Any", None), cast("Any", None)
    for name in "ab":
        desk = _aio.ThreadDesk(core, condition, cast("Any", Loop(name)), bell)
        desk.open()
        for _ in range(2):
            desk.count()
    assert [bell.ring(1) for _ in range(3)] == [1, 1, 1]
    assert sorted(calls[:2]) == ["a", "b"]
    assert (calls[2], bell.waiting()) == (calls[0], 1)


@woken
def test_a_token_is_left_to_others_where_nobody_sleeps() -> None:
    """It may be that of another process, which is counted no more and would not be woken again."""

    async def main() -> None:
        iq = IterableQueue[int]()
        source = iq.get_consumer()
        sleeping = asyncio.create_task(source.aget())
        await asleep(iq)
        (desk,) = core_of(iq).desks.values()
        assert desk._bell.ring(1) == 1
        core_of(iq).ledger.head[WAIT_ITEM] = 0
        sleeping.cancel()
        desk._read()
        assert desk.swallow()
        assert not desk.swallow()

    run(main())


@woken
def test_no_item_is_lost_to_cancellations(make: Make) -> None:
    """However a call ends, its item is returned or left; whoever wins a race."""
    items = 300
    dice = random.Random(5)
    iq = make()
    out, source = iq.get_producer(), iq.get_consumer()

    async def consume(into: list[int], mine: Consumer[int]) -> None:
        while True:
            try:
                if dice.random() < 0.5:
                    into.append(await asyncio.wait_for(mine.aget(), dice.random() / 300))
                else:
                    async with asyncio.timeout(dice.random() / 300):
                        item = await mine.aget()
                        into.append(item)
            except TimeoutError:
                pass
            except Done:
                return

    async def main() -> list[int]:
        taken: list[int] = []
        tasks = [asyncio.create_task(consume(taken, each)) for each in (source, source.clone())]
        for n in range(items):
            await asyncio.sleep(dice.random() / 500)
            out.put(n)
        out.close()
        iq.close()
        await asyncio.gather(*tasks)
        return taken

    assert sorted(run(main())) == list(range(items))


def test_a_loop_is_closed_while_somebody_sleeps(make: Make) -> None:
    iq = make()
    out, source = iq.get_producer(), iq.get_consumer()
    loop = asyncio.new_event_loop()
    task = loop.create_task(source.aget())
    loop.run_until_complete(asleep(iq))
    loop.close()
    out.put(1)
    assert run(source.clone().aget()) == 1
    end(task)


@woken
def test_a_loop_that_is_closed_gets_no_token() -> None:
    """On a queue for threads that is known at once, and another sleeper is woken."""
    iq = IterableQueue[int].threaded()
    out, source = iq.get_producer(), iq.get_consumer()
    loop = asyncio.new_event_loop()
    task = loop.create_task(source.aget())
    loop.run_until_complete(asleep(iq))
    loop.close()

    async def main() -> int:
        sleeping = asyncio.create_task(source.clone().aget())
        await until(lambda: waiting(iq)[0] == 2, "both are counted")
        core_of(iq).runtime.items.bell._turn = 1  # it is the closed one's turn
        out.put(1)
        return await sleeping

    assert run(main()) == 1
    assert waiting(iq)[0] == 0, "who will never wake does not count"
    end(task)


# Others of the loop


def test_others_run_while_there_are_items(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each endpoint gives way once in a while, though none of its calls has to wait."""
    clock = itertools.count(time.monotonic_ns(), _endpoints.TURN_NS // 100)
    for module in (_endpoints, _aio):
        monkeypatch.setattr(module, "monotonic_ns", partial(next, clock))
    iq = make()
    with iq:
        out, source = iq.get_producer(), iq.get_consumer()

    async def main() -> tuple[int, int]:
        turns = 0

        async def tick() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        for _ in range(2_000):
            await out.aput(1)
        out.close()
        while_putting, turns = turns, 0
        assert [n async for n in source] == [1] * 2_000
        ticking.cancel()
        return while_putting, turns

    # Each call looks at the clock once or a few times, and a hundred looks are a turn.
    assert all(10 < turns < 200 for turns in run(main()))


@pytest.mark.parametrize("call", ["get", "put", "first get", "first put"])
@woken
def test_the_loop_goes_on_while_the_lock_is_busy(call: str) -> None:
    iq = IterableQueue[int](1)
    out, source = iq.get_producer(), iq.get_consumer()
    if "first" not in call:
        out.put(0)
        source.get()
    if "put" not in call:
        out.put(1)
    begun, over = threading.Event(), threading.Event()

    def hold() -> None:
        with core_of(iq).runtime.lock:
            begun.set()
            over.wait(LONG_S)

    runtime = core_of(iq).runtime
    assert runtime.lock_within(_aio.LOCK_S) is runtime.lock_within(0), "the least patient"
    holder = threading.Thread(target=hold)
    holder.start()
    begun.wait(LONG_S)

    async def main() -> None:
        busy = asyncio.create_task(out.aput(2, LONG_S) if "put" in call else source.aget(LONG_S))
        for _ in range(10):
            await asyncio.sleep(0.001)
        assert not busy.done()
        within: Awaitable[object] = out.aput(3, 0.02) if "put" in call else source.aget(0.02)
        with pytest.raises((Empty, Full)):
            await within
        over.set()
        await busy

    try:
        run(main())
    finally:
        over.set()
        holder.join()
    assert iq.qsize() == ("put" in call)


# Processes


def consume(source: Consumer[int], answers: Producer[list[int]]) -> None:
    async def main() -> list[int]:
        return [n async for n in source]

    with answers:
        answers.put(run(main()))


@FORKS
@woken
def test_coroutines_of_two_processes(processes: Processes) -> None:
    """A child that is forked by a coroutine, while others wait, has a loop of its own."""
    with IterableQueue[int](5) as iq, IterableQueue[list[int]]() as back:
        out, source, mine = iq.get_producer(), iq.get_consumer(), iq.get_consumer()
        answers, answer = back.get_producer(), back.get_consumer()

    async def main() -> tuple[list[int], list[int]]:
        taken: list[int] = []

        async def take() -> None:
            async for n in mine:
                taken.append(n)
                if len(taken) == 50:
                    break  # what is left is for the child
            mine.close()

        taking = asyncio.create_task(take())
        await asleep(iq)
        processes.start(FORK.Process(target=consume, args=(source, answers)))
        await until(lambda: waiting(iq)[3] == 2, "both sleep")
        for n in range(100):
            await out.aput(n)
        out.close()
        theirs = await answer.aget()
        await taking
        return taken, theirs

    taken, theirs = run(main())
    assert sorted(taken + theirs) == list(range(100))
    assert len(theirs) >= 50
    assert processes.join() == [0]
    assert is_quiet(iq)


def sleep_in_loop(source: Consumer[int], count: int) -> None:
    async def main() -> None:
        await asyncio.gather(*(source.aget() for _ in range(count)))

    run(main())


@FORKS
@pytest.mark.parametrize("other", ["thread", "coroutine"])
@woken
def test_the_sleepers_of_a_killed_process_keep_no_wake_up(processes: Processes, other: str) -> None:
    """They are still counted; but nobody has their FIFO open any more, or another one has."""
    iq = IterableQueue[int]()
    out, source, mine = iq.get_producer(), iq.get_consumer(), iq.get_consumer()
    lost = processes.start(FORK.Process(target=sleep_in_loop, args=(source, 5)))
    wait_until(lambda: waiting(iq)[3] == 5, "they sleep")
    assert lost.pid is not None
    os.kill(lost.pid, signal.SIGKILL)
    processes.join()
    assert waiting(iq)[0] == 5
    if other == "thread":
        taken: list[int] = []
        thread = threading.Thread(target=lambda: taken.append(mine.get()))
        thread.start()
        wait_until(lambda: waiting(iq)[0] == 6, "it sleeps")
        out.put(1)
        thread.join(LONG_S)
        assert taken == [1]
    else:

        async def main() -> int:
            sleeping = asyncio.create_task(mine.aget())
            await asleep(iq)
            out.put(1)
            return await sleeping

        assert run(main()) == 1


def die_while_waking(out: Producer[int], place: str) -> None:
    """Be killed just before, or just after the FIFO is written to, with the lock held."""
    write = Fifo._write

    def kill(self: Fifo, into: int, n: int) -> None:
        if place == "after":
            write(self, into, n)
        os.kill(os.getpid(), signal.SIGKILL)

    Fifo._write = kill  # type: ignore[method-assign]
    out.put(1)


@FORKS
@pytest.mark.parametrize("place", ["before", "after"])
def test_who_wakes_others_is_killed(processes: Processes, place: str) -> None:
    """The item is put; who was to be woken finds it, after a slice at the latest."""
    iq = IterableQueue[int]()
    out, source = iq.get_producer(), iq.get_consumer()

    async def main() -> list[int]:
        sleeping = [asyncio.create_task(source.aget()) for _ in range(2)]
        await asleep(iq, 2)
        processes.start(FORK.Process(target=die_while_waking, args=(out, place)))
        done, rest = await asyncio.wait(sleeping, return_when=asyncio.FIRST_COMPLETED)
        iq.cancel()
        await asyncio.wait(rest)
        return [task.result() for task in done]

    assert run(main()) == [1]
    assert processes.join() == [-signal.SIGKILL]
    assert is_quiet(iq)


def die_while_waiting(source: Consumer[int], place: str) -> None:
    """Be killed as it announces itself, or with a token in hand, before it has looked again."""

    def kill(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if place == "announced":
        cast("Any", Fifo).count = kill
    else:
        cast("Any", _aio.Desk).admit = kill
    sleep_in_loop(source, 1)


@FORKS
@pytest.mark.parametrize("place", ["announced", "woken"])
@pytest.mark.parametrize("other", ["thread", "coroutine"])
def test_who_waits_is_killed(processes: Processes, place: str, other: str) -> None:
    """Others lose no more than a slice by that, whichever way they wait."""
    iq = IterableQueue[int]()
    out, source, mine = iq.get_producer(), iq.get_consumer(), iq.get_consumer()
    processes.start(FORK.Process(target=die_while_waiting, args=(source, place)))
    if place == "announced":
        processes.join()
    else:
        wait_until(lambda: waiting(iq)[3] == 1, "it sleeps")

    async def take() -> int:
        return await mine.aget()

    taken: list[int] = []
    thread = threading.Thread(
        target=lambda: taken.append(mine.get() if other == "thread" else run(take()))
    )
    thread.start()
    before = 1 if place == "announced" else 2
    wait_until(lambda: waiting(iq)[0] >= before, "they sleep")
    core_of(iq).runtime.items._loops_turn = True
    out.put(1)
    thread.join(LONG_S)
    assert taken == [1]
    processes.end()  # before the queue, or its directory would stay


def put_and_be_killed(out: Producer[int]) -> None:
    out.put(1)
    os.kill(os.getpid(), signal.SIGKILL)


@FORKS
@pytest.mark.parametrize("timeout", [None, 0])
def test_a_death_is_seen_by_who_waits_in_a_loop(
    processes: Processes, timeout: float | None
) -> None:
    """By one who sleeps, and by one who asks again and again."""
    with IterableQueue[int]() as iq:
        out, source = iq.get_producer(), iq.get_consumer()

    async def take() -> int:
        while True:
            try:
                return await source.aget(timeout)
            except Empty:
                await asyncio.sleep(0.01)

    async def main() -> None:
        processes.start(FORK.Process(target=put_and_be_killed, args=(out,)))
        assert await take() == 1
        with pytest.raises(ProducerFailed, match="killed by SIGKILL"):
            await take()

    run(main())


def count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def look_around(answers: Producer[Any], held: Any) -> None:
    """In a child that was forked with a sleeping coroutine: end it, and say what is open."""
    links = [os.readlink(entry) for entry in os.scandir("/proc/self/fd") if os.path.islink(entry)]
    held.get_coro().close()
    with answers:
        answers.put([link for link in links if "/bell." in link])


@FORKS
@woken
def test_a_forked_child_leaves_its_parents_sleepers_alone(processes: Processes) -> None:
    with IterableQueue[int]() as iq, IterableQueue[Any]() as back:
        out, source = iq.get_producer(), iq.get_consumer()
        answers, answer = back.get_producer(), back.get_consumer()

    async def main() -> object:
        sleeping = asyncio.create_task(source.aget())
        await asleep(iq)
        processes.start(FORK.Process(target=look_around, args=(answers, sleeping)))
        found = await answer.aget()
        assert waiting(iq)[0] == 1
        assert iq.statistics().blocked_consumers == 1
        out.put(1)
        assert await sleeping == 1
        return found

    assert run(main()) == []
    assert processes.join() == [0]


def test_no_descriptor_stays_open() -> None:
    async def main() -> None:
        iq = IterableQueue[int]()
        out, source = iq.get_producer(), iq.get_consumer()
        for n in range(3):
            if n == 1:
                before = count_descriptors()
            sleeping = asyncio.create_task(source.aget())
            await asleep(iq)
            out.put(n)
            assert await sleeping == n
            with pytest.raises(Empty):
                await source.aget(0.001)
        assert count_descriptors() == before  # pyright: ignore[reportPossiblyUnboundVariable]
        assert os.stat(f"{core_of(iq).address.path}/bell.item").st_mode & 0o7777 == 0o600

    run(main())


def test_the_directory_is_gone() -> None:
    async def main() -> None:
        iq = IterableQueue[int]()
        source = iq.get_consumer()
        source.empty()
        path: str = core_of(iq).address.path
        for name in os.listdir(path):
            os.unlink(f"{path}/{name}")
        os.rmdir(path)
        with pytest.raises(ChannelBroken):
            await source.aget()

    run(main())


# Doubles, explorations, races


def test_a_fake_queue_needs_no_loop() -> None:
    """Its coroutines never sleep: they raise, or virtual time passes."""

    def drive(coroutine: Coroutine[Any, Any, T]) -> T:
        with pytest.raises(StopIteration) as stopped:
            coroutine.send(None)
        return stopped.value.value  # type: ignore[no-any-return]

    async def double(source: Consumer[int], out: Producer[int]) -> int:
        count = 0
        async for n in source:
            await out.aput(2 * n)
            count += 1
        return count

    made = FakeQueue[int]()
    assert drive(double(FakeQueue([1, 2, 3]).get_consumer(), made.get_producer())) == 3
    assert made.put_items == [2, 4, 6]
    source = made.get_consumer()
    assert drive(source.aget_many(5)) == [2, 4, 6]
    with pytest.raises(WouldBlock, match="consumer 2 would wait for ever"):
        source.aget().send(None)
    with pytest.raises(Empty):
        source.aget(5).send(None)
    assert made.clock.now == 5
    full = FakeQueue([1], maxsize=1)
    with pytest.raises(Full):
        full.get_producer().aput(2, timeout=3).send(None)
    assert not drive(made.ajoin(1))


@pytest.mark.parametrize("threaded", [False, True])
def test_coroutines_are_not_explored(threaded: bool) -> None:
    def scenario(sim: Simulation) -> None:
        iq = sim.queue(threaded=threaded)
        out, source = iq.get_producer(), iq.get_consumer()
        iq.close()
        sim.spawn(actor, out, source)

    def actor(out: Producer[int], source: Consumer[int]) -> None:
        for call in (out.aput(1), source.aget(), source.aget_many(1), anext(aiter(source))):
            with pytest.raises(TypeError, match="coroutines can't be explored"):
                asyncio.run(call)  # type: ignore[arg-type]

    with pytest.raises(NothingInterleaved):  # there is one actor
        explore(scenario)


def test_points_of_races() -> None:
    iq = IterableQueue[int]()

    async def main() -> None:
        out, source = iq.get_producer(), iq.get_consumer()
        taking = asyncio.create_task(source.aget())
        await asleep(iq)
        await out.aput(1)
        assert await taking == 1
        iq.close()
        out.close()
        with pytest.raises(Done):
            await source.aget_many(1)
        assert await iq.ajoin()

    with races(iq) as race:
        run(main())
    assert [str(passage.point) for passage in race.history] == [
        "before get of consumer 2",
        "blocked in get of consumer 2",
        "before put of producer 1",
        "after put of producer 1",
        "after get of consumer 2",
        "before close of the queue",
        "after close of the queue",
        "before close of producer 1",
        "after close of producer 1",
        "before get #2 of consumer 2",
        "Done from get of consumer 2",
        "before join of the queue",
        "after join of the queue",
    ]


# Other libraries


def test_nobody_who_does_not_await_imports_asyncio() -> None:
    program = """
import sys
from iterable_queue import IterableQueue
with IterableQueue() as iq:
    out, source = iq.get_producer(), iq.get_consumer()
with out:
    out.put(1)
assert list(source) == [1]
assert not {"asyncio", "iterable_queue._aio"} & set(sys.modules)
"""
    sources = str(Path(iterable_queue.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": sources}
    subprocess.run([sys.executable, "-c", program], env=environment, timeout=LONG_S, check=True)


async def cross(make: Make) -> list[int]:
    """Items that somebody has to wait for on each side, and a call that is cancelled."""
    with make(2) as iq:
        out, source = iq.get_producer(), iq.get_consumer()

    async def produce() -> None:
        await asleep(iq)
        with out:
            for n in range(9):
                await out.aput(n)

    producing = asyncio.create_task(produce())
    taken: list[int] = []
    async for n in source:
        taken.append(n)
        if n == 5:
            await asleep(iq)  # the producer
    await producing
    assert is_quiet(iq)
    return taken


@woken
def test_uvloop(make: Make) -> None:
    uvloop = pytest.importorskip("uvloop", reason="uvloop isn't installed")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(cross(make)) == list(range(9))


@woken
def test_anyio(make: Make) -> None:
    """Its cancel scopes and task groups, on its asyncio backend."""
    anyio = pytest.importorskip("anyio", reason="anyio isn't installed")
    iq = make(1)
    with iq:
        out, source = iq.get_producer(), iq.get_consumer()
    taken: list[int] = []

    async def consume(source: Consumer[int]) -> None:
        async for n in source:
            taken.append(n)

    async def main() -> None:
        with anyio.move_on_after(0.01) as scope:
            await source.aget()
        assert scope.cancelled_caught
        assert is_quiet(iq)
        async with anyio.create_task_group() as group:
            for each in (source, source.clone()):
                group.start_soon(consume, each)
            await asleep(iq, 2)
            with out:
                for n in range(9):
                    await out.aput(n)

    anyio.run(main)
    assert sorted(taken) == list(range(9))

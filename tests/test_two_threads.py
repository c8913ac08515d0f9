"""Two threads at the same endpoints: one calls wherever CPython can leave the call of the other.

CPython switches threads, and runs signal handlers, only where it looks whether it should: as a
function is entered, as a loop jumps back, and after a call of C code. The library is written for
that: what its comments call "together" is not left in between. Here one thread is held at each such
place within the package in turn, or at a random one, until the other thread's call has ended, or
waits for what the first one has. Whatever the order comes to, each item put is had once, the ends
are told, and the totals add up.

For ten minutes of each kind of queue, or `SOAK_SECONDS`, with the seed `SOAK_SEED` or any:

    pytest -m soak tests/test_two_threads.py -n 0 -s
"""

from __future__ import annotations

import asyncio
import opcode
import os
import queue
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pytest

import iterable_queue
from iterable_queue import (
    Cancelled,
    ConsumerClosed,
    Done,
    Empty,
    Full,
    IterableQueue,
    ProducerClosed,
    ProducerFailed,
    QueueClosed,
)
from tests.redis_server import Server, running

pytestmark = pytest.mark.time_limit(120)

PACKAGE = os.path.dirname(iterable_queue.__file__)
SWITCHES = {"BEFORE_WITH", "CALL", "CALL_FUNCTION_EX", "CALL_KW", "JUMP_BACKWARD", "RESUME"}
"""After these instructions another thread can go on. CPython 3.11's `PRECALL` is none of them."""
MEANWHILE_S = 0.004
"""How long the first call is held, if the second one does not end: it may wait for the first."""
CALL_S = 20.0
"""No call takes longer."""
ITEMS = 8
"""On the queue as the calls begin, more than they can take; a bounded queue has room for what they
put."""
BOUND = 12
TAKES = ("get", "next", "get_many", "aget", "aget_many")
CALLS = (
    *TAKES,
    *("get_now", "put", "put_many", "clone", "close", "close_producer", "fail", "close_queue"),
    *("cancel", "statistics", "explain", "new_producer", "new_consumer"),
)
ROUNDS = 60
STEP = 5
"""Every fifth place of a call is tried, beginning with any of the first five."""
EXPECTED = (
    Cancelled,
    ConsumerClosed,
    Done,
    Empty,
    Full,
    ProducerClosed,
    ProducerFailed,
    QueueClosed,
    StopIteration,
)


class Thread:
    """A thread that makes one call after another."""

    def __init__(self) -> None:
        self._begin = threading.Semaphore(0)
        self._ended = threading.Event()
        self._call: Callable[[], Any] | None = None
        self._result: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            self._begin.acquire()
            if self._call is None:
                return
            self._result = self._error = None
            try:
                self._result = self._call()
            except BaseException as error:
                self._error = error
            self._ended.set()

    def begin(self, call: Callable[[], Any]) -> None:
        self._ended.clear()
        self._call = call
        self._begin.release()

    def has_ended(self, within_s: float) -> bool:
        return self._ended.wait(within_s)

    def result(self) -> Any:
        """What the call returned, or its error raised."""
        assert self._ended.wait(CALL_S), "the call does not end"
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._result

    def end(self) -> None:
        self._call = None
        self._begin.release()
        self._thread.join(CALL_S)
        assert not self._thread.is_alive()


class Hold:
    """Has *act* called at the place number *at* of a call at which its thread can be left.

    Attributes:
        where: the function and the line; "" if there are fewer such places.
    """

    def __init__(self, at: int, act: Callable[[], object]) -> None:
        self._left = at
        self._act = act
        self._before: dict[int, int] = {}
        self.where = ""

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any] | None:
        code = frame.f_code
        if not code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        if event == "call":
            self._before.pop(id(frame), None)
        elif event == "opcode":
            before = self._before.get(id(frame), -1)
            self._before[id(frame)] = frame.f_lasti
            if before < 0 or opcode.opname[code.co_code[before]] in SWITCHES:
                self._left -= 1
                if self._left == 0:
                    self.where = f"{code.co_qualname}, line {frame.f_lineno}"
                    self._act()
        return self._trace

    def during(self, call: Callable[[], Any]) -> Any:
        # CPython 3.12 reports instructions only if a frame asks for them as tracing begins.
        sys._getframe().f_trace_opcodes = True
        sys.settrace(self._trace)
        try:
            return call()
        finally:
            sys.settrace(None)


class Plan(NamedTuple):
    """One round.

    Attributes:
        first, second: the calls; the second begins at the place number *at* of the first.
        warm: how many of the two threads have taken an item before.
        worker: the endpoint is a worker, on which one can put as well.
    """

    first: str
    second: str
    at: int
    warm: int = 2
    worker: bool = False


class Round:
    """A queue, its endpoints, and what became of the items."""

    def __init__(self, make: Callable[[], IterableQueue[str]], plan: Plan) -> None:
        self.iq: Any = make()
        self.plan = plan
        self.other = self.iq.get_consumer()
        self.filling = self.iq.get_producer()
        self.source: Any = self.iq.get_worker() if plan.worker else self.iq.get_consumer()
        self.out: Any = self.source if plan.worker else self.iq.get_producer()
        self.put = Counter(str(n) for n in range(ITEMS))
        self.maybe = Counter[str]()
        """Of calls that raised: they may have been put."""
        self.got = Counter[str]()
        self.filling.put_many(sorted(self.put))

    def call(self, name: str, who: str) -> list[str]:
        """Returns the items that were taken."""
        iq, source, out = self.iq, self.source, self.out
        match name:
            case "get":
                return [source.get(timeout=CALL_S / 2)]
            case "get_now":
                return [source.get_nowait()]
            case "next":
                return [next(iter(source))]
            case "aget":
                return [asyncio.run(source.aget(CALL_S / 2))]
            case "get_many":
                return list(source.get_many(2))
            case "aget_many":
                return list(asyncio.run(source.aget_many(2)))
            case "put":
                out.put(f"{who} 1")
            case "put_many":
                out.put_many([f"{who} 1", f"{who} 2"])
            case "fail":
                out.fail(ValueError("as the test wants it"))
            case "close_producer":
                out.close()
            case "close_queue":
                iq.close()
            case "clone":
                source.clone().close()
            case "new_producer" | "new_consumer":
                getattr(iq, f"get_{name[4:]}")().close()
            case _:
                getattr(source if name == "close" else iq, name)()
        return []

    def account(self, name: str, who: str, outcome: Callable[[], list[str]]) -> None:
        puts = Counter({"put": [f"{who} 1"], "put_many": [f"{who} 1", f"{who} 2"]}.get(name, []))
        try:
            self.got.update(outcome())
            self.put += puts
        except EXPECTED:
            self.maybe += puts

    def play(self, first: Thread, second: Thread) -> str:
        """Returns where the first call was held; "" if it has fewer places than that."""
        plan = self.plan
        for thread in (second, first)[: plan.warm]:
            thread.begin(lambda: self.call("get", ""))
            self.got.update(thread.result())

        def meanwhile() -> None:
            second.begin(lambda: self.call(plan.second, "second"))
            second.has_ended(MEANWHILE_S)

        hold = Hold(plan.at, meanwhile)
        first.begin(lambda: hold.during(lambda: self.call(plan.first, "first")))
        self.account(plan.first, "first", first.result)
        if hold.where:
            self.account(plan.second, "second", second.result)
        self._end(first)
        return hold.where

    def _end(self, thread: Thread) -> None:
        calls = (self.plan.first, self.plan.second)
        for end in (self.source, self.out, self.filling, self.iq):
            end.close()
        rest = list[str]()

        def drain() -> None:
            while True:
                rest.append(self.other.get(timeout=CALL_S / 2))

        thread.begin(drain)
        with pytest.raises((Done, Cancelled, ProducerFailed)) as end_told:
            thread.result()
        self.got.update(rest)
        assert not self.got - self.put - self.maybe, "items that were had twice"
        stats = self.iq.statistics()
        assert stats.put + stats.redelivered == stats.queued + stats.taken + stats.dropped
        assert (stats.open_producers, stats.open_workers, stats.queued) == (0, 0, 0)
        if "cancel" not in calls:
            assert not self.put - self.got, "items that were lost"
            assert (stats.taken, stats.finished, stats.lost) == (stats.put, stats.put, 0)
            assert end_told.type in {Done, ProducerFailed if "fail" in calls else Done}
        self.other.close()


Make = Callable[[], IterableQueue[str]]
MAKERS: dict[str, Make] = {
    "threads": IterableQueue[str].threaded,
    "over a Queue": lambda: IterableQueue[str].over(queue.Queue(BOUND)),
    "log": IterableQueue[str],
    "log, bounded": lambda: IterableQueue[str](BOUND),
    "log, redelivering": lambda: IterableQueue[str](redeliver=True),
    "context": lambda: IterableQueue[str](context=get_context("spawn")),
}


@pytest.fixture(params=[*MAKERS, "redis"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Each kind of queue."""
    if request.param != "redis":
        yield MAKERS[request.param]
        return
    for server in running(Server(tmp_path)):
        yield server.connect


@pytest.fixture
def threads() -> Iterator[tuple[Thread, Thread]]:
    found = Thread(), Thread()
    yield found
    for thread in found:
        thread.end()


def play(make: Make, plan: Plan, threads: tuple[Thread, Thread], note: str = "") -> str:
    """Returns where the first call was held."""
    where = ""
    try:
        where = Round(make, plan).play(*threads)
    except BaseException as error:
        error.add_note(f"{plan}, held in {where or '?'} {note}")
        raise
    return where


@pytest.mark.parametrize("first", TAKES)
def test_one_closes_what_the_other_takes_from(
    make: Make, first: str, threads: tuple[Thread, Thread]
) -> None:
    at = random.SystemRandom().randint(1, STEP)
    while play(make, Plan(first, "close", at), threads):
        at += STEP
    assert at > STEP


def at_random(
    make: Make, dice: random.Random, longest: dict[str, int], threads: tuple[Thread, Thread]
) -> None:
    first = dice.choice(CALLS)
    at = dice.randint(1, longest.setdefault(first, 100))
    plan = Plan(first, dice.choice(CALLS), at, dice.randrange(3), dice.random() < 0.2)
    if not play(make, plan, threads):
        longest[first] = at


def test_they_do_anything(make: Make, threads: tuple[Thread, Thread]) -> None:
    seed = random.SystemRandom().randrange(1 << 40)
    dice, longest = random.Random(seed), dict[str, int]()
    for _ in range(ROUNDS):
        at_random(make, dice, longest, threads)


@pytest.mark.soak
@pytest.mark.time_limit(100_000)
def test_they_do_anything_for_long(make: Make, threads: tuple[Thread, Thread]) -> None:
    """Or `SOAK_SECONDS`."""
    seed = int(os.environ.get("SOAK_SEED", random.SystemRandom().randrange(1 << 40)))
    dice, longest = random.Random(seed), dict[str, int]()
    end, rounds = time.monotonic() + float(os.environ.get("SOAK_SECONDS", "600")), 0
    while time.monotonic() < end:
        at_random(make, dice, longest, threads)
        rounds += 1
    print(f"\nseed {seed}: {rounds:,} rounds")

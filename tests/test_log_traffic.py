"""The log in use: several processes and threads, and facts that show how items are claimed.

Single stores are in `test_log`.
"""

from __future__ import annotations

import gc
import itertools
import os
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, count, islice
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, cast

import pytest

import iterable_queue
from iterable_queue import (
    Cancelled,
    ChannelBroken,
    Consumer,
    ConsumerClosed,
    ConsumersGone,
    Empty,
    EndpointElsewhere,
    Full,
    ItemError,
    IterableQueue,
    Producer,
    ProducerClosed,
    ProducerFailed,
    WouldDeadlock,
    _endpoints,
    _fence,
    _runtime,
)
from iterable_queue._cells import (
    CLAIM_NEXT,
    DROPPED,
    GATE,
    HOLDER,
    MAXSIZE,
    SLOT_SIZE,
    TAKEN,
    WAIT_ITEM,
    WAIT_ROOM,
)
from iterable_queue._channel import Hand
from iterable_queue._channels import log
from iterable_queue._channels.log import FIRST_SIZE, GRANT, LARGEST_SIZE, PUT
from iterable_queue._core import BRIEFLY_S, Core
from iterable_queue._endpoints import CHUNK
from iterable_queue._ledger import Ledger
from iterable_queue._runtime import SLICE_S, Condition
from tests import actors
from tests.actors import PATIENCE_S, Puppet, Stage, context_of, on_this_machine
from tests.conftest import FORKS, Processes, lives, wait_until

pytestmark = FORKS


@pytest.fixture
def stage(processes: Processes) -> Iterator[Stage]:
    with Stage(context_of("fork"), processes) as stage:
        yield stage


@pytest.fixture(params=["fast", "slow"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fast, or as on a machine on which the fences of this one are not enough."""
    if request.param == "slow":
        monkeypatch.setattr(_fence, "is_supported", lambda: False)


def log_of(queue: IterableQueue[Any]) -> Any:
    """The channel of a queue for processes."""
    return cast("Any", queue)._core.log


# How items are claimed


def take_fast(source: Consumer[Any], count: int) -> int:
    """Take so many, and finish the last one."""
    return sum(1 for _ in islice(source, count))


def meet(source: Consumer[Any], room: Path, guests: int) -> list[Any]:
    """Take an item, and hold it until so many consumers hold one; twice."""
    items: list[Any] = []
    for turn in range(2):
        items.append(source.get())
        (room / f"{turn}-{items[-1]}").touch()
        deadline = time.monotonic() + PATIENCE_S
        while len(list(room.glob(f"{turn}-*"))) < guests:
            assert time.monotonic() < deadline, "the others have nothing"
            time.sleep(0.001)
    return items


@pytest.mark.parametrize("many", [False, True])
def test_items_meet_after_many_fast_ones(stage: Stage, tmp_path: Path, many: bool) -> None:
    """Whoever has claimed more of them than it holds is relieved of the rest."""
    iq = stage.queue()
    consumers = [stage.cast(iq.get_consumer()) for _ in range(4)]
    out = iq.get_producer()
    out.put_many(range(100_000))
    fast = [consumer.begin(take_fast, 25_000) for consumer in consumers]
    assert [call.result() for call in fast] == [25_000] * 4
    last = list(range(8))
    if many:
        out.put_many(last)
    else:
        actors.put(out, *last)
    meeting = [consumer.begin(meet, tmp_path, 4) for consumer in consumers]
    assert sorted(item for call in meeting for item in call.result()) == last


def test_a_batch_wakes_as_many_as_it_has_items(
    stage: Stage, tmp_path: Path, way: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody wakes by itself here."""
    monkeypatch.setattr(_runtime, "SLICE_S", 10 * PATIENCE_S)
    iq = stage.queue()
    out = iq.get_producer()
    consumers = [stage.cast(iq.get_consumer()) for _ in range(3)]
    meeting = [consumer.begin(meet, tmp_path, 3) for consumer in consumers]
    for batch in ([1, 2, 3], [4, 5, 6]):
        wait_until(lambda: iq.statistics().blocked_consumers == 3, "all wait")
        out.put_many(batch)
    assert sorted(item for call in meeting for item in call.result()) == [1, 2, 3, 4, 5, 6]


def test_a_fast_consumer_claims_in_bulk_and_a_slow_one_singly(
    way: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    iq = IterableQueue[int]()
    out, source = iq.get_producer(), iq.get_consumer()
    actors.put(out, *range(2_000))
    takes = 0
    take = Ledger.take

    def counted(*arguments: Any) -> bool:
        nonlocal takes
        takes += 1
        return take(*arguments)

    monkeypatch.setattr(Ledger, "take", counted)
    assert actors.get(source, 2_000) == list(range(2_000))
    assert takes < 200 if log_of(iq).lockless else takes == 2_000
    actors.put(out, *range(100))
    hand = next(iter(cast("Any", source)._hands.values()))
    for n in range(100):
        hand.since -= 10**9  # as if it had taken a second for what it had
        assert source.get() == n
        assert hand.claim == [] or n == 0


# Nothing is lost


def produce_by_fits_and_starts(out: Producer[int], seed: int, seconds: float) -> int:
    """Put bursts, by every call, with pauses; and close. Returns how many."""
    chance = random.Random(seed)
    end = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end:
        burst = chance.choice([1, 1, 2, 7, 300])
        if chance.random() < 0.5:
            actors.put(out, *range(burst))
        else:
            out.put_many(range(burst))
        count += burst
        time.sleep(chance.choice([0, 0, 0.0001, 0.002]))
    out.close()
    return count


def count_all(source: Consumer[int]) -> int:
    """How many there are until the end."""
    return sum(1 for _ in source)


def run_for(stage: Stage, seconds: float, maxsize: int) -> None:
    iq = stage.queue(maxsize)
    consumers = [stage.cast(iq.get_consumer()) for _ in range(3)]
    producers = [stage.cast(iq.get_producer()) for _ in range(2)]
    counting = [consumer.begin(count_all) for consumer in consumers]
    putting = [
        producer.begin(produce_by_fits_and_starts, seed, seconds)
        for seed, producer in enumerate(producers)
    ]
    iq.close()
    time.sleep(seconds)
    put = sum(call.result() for call in putting)
    assert sum(call.result() for call in counting) == put
    assert iq.statistics().taken == put


@pytest.mark.parametrize("maxsize", [0, 3])
def test_no_wake_up_is_lost(
    stage: Stage, way: None, maxsize: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody wakes by itself here: whoever is not woken sleeps until the test gives up."""
    monkeypatch.setattr(_runtime, "SLICE_S", 10 * PATIENCE_S)
    run_for(stage, 2.0, maxsize)


def test_what_is_put_just_before_a_consumer_says_that_it_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its producer has seen nobody wait; so the consumer looks again."""
    monkeypatch.setattr(_runtime, "SLICE_S", PATIENCE_S / 4)
    iq = IterableQueue[int]()
    out, source = iq.get_producer(), iq.get_consumer()
    announce = Condition.announce
    puts = iter([out.put])

    def late(self: Condition) -> None:
        for put in puts:
            put(1)
        announce(self)

    out.put(0)
    assert source.get() == 0
    monkeypatch.setattr(Condition, "announce", late)
    began = time.monotonic()
    assert source.get() == 1
    assert time.monotonic() - began < actors.on_this_machine(PATIENCE_S / 8)


@pytest.mark.soak
@pytest.mark.time_limit(4200)
def test_no_wake_up_is_lost_in_an_hour(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or `SOAK_SECONDS`."""
    monkeypatch.setattr(_runtime, "SLICE_S", 10 * PATIENCE_S)
    end = time.monotonic() + float(os.environ.get("SOAK_SECONDS", "3600"))
    while time.monotonic() < end:
        for maxsize in (0, 0, 1, 100):
            with Stage(context_of("fork"), processes) as stage:
                run_for(stage, 15.0, maxsize)


def test_threads_share_a_producer(way: None) -> None:
    """Each thread's items come in its order, large ones and chunks in between."""
    iq = IterableQueue[Any]()
    out, source = iq.get_producer(), iq.get_consumer()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def work(number: int) -> None:
        for n in range(0, 3_000, 3):
            out.put((number, n))
            out.put((number, n + 1, "x" * (n % 500)))
            out.put_many([number, n + 2])

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(4)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
    finally:
        sys.setswitchinterval(before)
    out.close()
    iq.close()
    seen: dict[int, list[int]] = {n: [] for n in range(4)}
    items = iter(source)
    for item in items:
        if isinstance(item, tuple):
            number, n = cast("tuple[int, ...]", item)[:2]
            seen[number].append(n)
        else:
            seen[item].append(next(items))
    assert seen == {n: list(range(3_000)) for n in range(4)}
    assert iq.statistics().put == 4 * 4_000


@pytest.mark.parametrize("size", [1, 1000])
def test_two_threads_write_the_same_entry(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that wrote last before it is published is the one to publish it."""
    iq = IterableQueue[str]()
    out, source = iq.get_producer(), iq.get_consumer()
    out.put("")
    name = "pack_small" if size == 1 else "pack_large"
    pack = getattr(_endpoints, name)
    packed = {number: threading.Event() for number in "ab"}
    done = threading.Event()

    def pack_and_wait(*arguments: Any) -> None:
        pack(*arguments)
        if threading.current_thread() is other:
            packed["b"].set()
            assert done.wait(PATIENCE_S)
        elif not packed["a"].is_set():
            packed["a"].set()
            assert packed["b"].wait(PATIENCE_S)

    def put_other() -> None:
        assert packed["a"].wait(PATIENCE_S)
        out.put("b" * (size + size // 2))

    other = threading.Thread(target=put_other, daemon=True)
    other.start()
    monkeypatch.setattr(_endpoints, name, pack_and_wait)
    out.put("a" * size)
    done.set()
    other.join(PATIENCE_S)
    out.close()
    iq.close()
    assert list(source) == ["", "a" * size, "b" * (size + size // 2)]


def test_a_put_goes_on_in_a_new_segment_while_another_thread_puts(way: None) -> None:
    iq = IterableQueue[Any]()
    out, source = iq.get_producer(), iq.get_consumer()
    large, small = bytes(100_000), 7

    def put_large() -> None:
        for _ in range(100):
            out.put(large)

    thread = threading.Thread(target=put_large, daemon=True)
    thread.start()
    actors.put(cast("Producer[int]", out), *[small] * 5_000)
    thread.join(PATIENCE_S)
    out.close()
    iq.close()
    items = list(source)
    assert (items.count(large), items.count(small)) == (100, 5_000)


# What is put as it is, or together


@pytest.mark.parametrize("options", [{}, {"maxsize": 50}, {"redeliver": True}])
@pytest.mark.parametrize("size", [0, 1, 39, 40, 41, 10_000, 5 << 20])
def test_bytes_are_bytes(way: None, options: dict[str, Any], size: int) -> None:
    iq = IterableQueue[bytes](**options)
    out, source, tree = iq.get_producer(), iq.get_consumer(), iq.get_worker()
    item = bytes(range(256)) * (size // 256) + bytes(size % 256)
    out.put(item)
    out.put_many([item, item, b"\x80"])
    tree.put(item)
    assert [source.get(), *source.get_many(2)] == [item] * 3
    assert [tree.get(), tree.get()] == [b"\x80", item]
    tree.close()


def test_items_of_one_batch_stay_apart(way: None) -> None:
    iq = IterableQueue[list[int]]()
    out, source = iq.get_producer(), iq.get_consumer()
    same: list[int] = []
    out.put_many([same, same])
    first, second = source.get(), source.get()
    assert first == second == []
    assert first is not second


class Odd(int):
    """Not plain, though `marshal` would take it for an int."""


@pytest.mark.parametrize(
    "items",
    [
        [*range(CHUNK + 3)],
        [1, 2.5, True, None, "text", 1 << 200, "\ud800"],
        [Odd(3), 4],
        [(1,), [2], {3: 4}],
        ["x" * 70_000, "y"],
    ],
)
def test_batches_come_as_they_went(way: None, items: list[Any]) -> None:
    iq = IterableQueue[Any]()
    out, source, tree = iq.get_producer(), iq.get_consumer(), iq.get_worker()
    out.put_many(items)
    out.put_many(items)
    out.close()
    got = [tree.get(), source.get(), *source.get_many(2)]
    tree.close()
    iq.close()
    got += source
    assert got == 2 * items
    assert [type(item) for item in got] == [type(item) for item in 2 * items]


# Threads that share a consumer


def test_one_of_two_threads_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one claim for a consumer; both come for their first item at once."""
    iq = IterableQueue[int]()
    out, source = iq.get_producer(), iq.get_consumer()
    out.put_many(range(100))
    calls = 0

    def racing() -> int:
        nonlocal calls
        if threading.current_thread() is threading.main_thread():
            calls += 1
            if calls == 2:
                other = threading.Thread(target=source.get, daemon=True)
                other.start()
                other.join(PATIENCE_S)
        return threading.get_ident()

    monkeypatch.setattr(_endpoints, "get_ident", racing)
    assert source.get() == 1
    assert calls >= 2
    assert sum(hand.claims for hand in cast("Any", source)._hands.values()) == 1
    out.close()
    iq.close()
    assert list(source) == list(range(2, 100))


@pytest.mark.parametrize("loop", [False, True])
def test_another_thread_closes_a_consumer_while_it_hands_out(
    loop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What counts as handed out is returned; the rest of the claim goes to the others."""
    closes = False
    real = _fence.gate

    def gate(cells: Any, index: int) -> Callable[[bool], bool]:
        take = real(cells, index)

        def closing(block: bool) -> bool:
            nonlocal closes
            taken = take(block)
            if closes:
                closes = False
                other = threading.Thread(target=source.close, daemon=True)
                other.start()
                other.join(PATIENCE_S)
            return taken

        return closing

    monkeypatch.setattr(_fence, "gate", gate)
    monkeypatch.setattr(_endpoints, "FEED_LEAST", 1000)  # else nothing comes in between
    iq = IterableQueue[int]()
    out, source = iq.get_producer(), iq.get_consumer()
    out.put_many(range(100))
    items = iter(source)
    call = items.__next__ if loop else source.get
    got = [call() for _ in range(10)]
    hand = next(iter(cast("Any", source)._hands.values()))
    while not hand.claim:
        got.append(call())
    closes = True
    got.append(call())
    assert not closes
    assert source.closed
    assert got == list(range(len(got)))
    statistics = iq.statistics()
    assert (statistics.taken, statistics.queued) == (len(got), 100 - len(got))


# Handed out by C functions


lockless = pytest.mark.skipif(not _fence.is_supported(), reason="all goes by the lock here")


def feeding(size: int = 100, *, chunk: bool = True) -> tuple[IterableQueue[Any], Consumer[Any]]:
    """A closed queue of so many items, and its consumer."""
    iq = IterableQueue[Any]()
    out, source = iq.get_producer(), iq.get_consumer()
    if chunk:
        out.put_many(range(size))
    else:
        for n in range(size):
            out.put(n)
    out.close()
    iq.close()
    return iq, source


def hand_of(source: Consumer[Any]) -> Hand:
    hand: Hand = next(iter(cast("Any", source)._hands.values()))
    return hand


def fed(source: Consumer[Any], items: Iterator[Any]) -> list[Any]:
    """Items up to the first one that such a feed has handed out."""
    got = [next(items)]
    while not hand_of(source).feed:
        got.append(next(items))
    return got


@lockless
@pytest.mark.parametrize("chunk", [False, True])
def test_what_a_feed_hands_out_is_counted_at_once(
    chunk: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "CLAIM_NS", 1 << 60)  # each claim is twice the one before
    iq, source = feeding(chunk=chunk)
    fed_ever = 0
    for n, item in enumerate(source):
        assert item == n
        fed_ever += bool(hand_of(source).feed)
        now = iq.statistics()
        assert (now.taken, now.finished, now.queued) == (n + 1, n, 99 - n)
    assert fed_ever > 80, "or this tests something else"
    assert iq.join(0)


@lockless
@pytest.mark.parametrize("chunk", [False, True])
def test_other_calls_in_a_loop_go_on_where_it_is(chunk: bool) -> None:
    _, source = feeding(1000, chunk=chunk)
    got = list[Any]()
    for item in source:
        got.append(item)
        if len(got) % 7 == 0:
            got.append(source.get())
        if len(got) % 11 == 0:
            got += source.get_many(3)
        if len(got) % 13 == 0:
            got.append(next(iter(source)))
        if len(got) % 17 == 0:
            got += islice(source, 20)
    assert got == list(range(1000))


@lockless
def test_two_iterators_take_turns() -> None:
    _, source = feeding(1000)
    one, other = iter(source), iter(source)
    got = list[Any]()
    for n in count():
        item = next(one if n % 100 < 50 else other, None)
        if item is None:
            break
        got.append(item)
    assert got == list(range(1000))
    assert list(one) == list(other) == []


@lockless
def test_an_iterator_goes_on_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    _, source = feeding()
    items = iter(source)
    got = fed(source, items)
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "take", interrupted)
        with pytest.raises(KeyboardInterrupt):
            got.extend(items)
    got += items
    assert got == list(range(100))


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@lockless
def test_a_failure_is_told_again_and_again() -> None:
    iq = IterableQueue[int]()
    out, source = iq.get_producer(), iq.get_consumer()
    iq.close()
    out.put_many(range(100))
    out.fail(ValueError("mine"))
    items = iter(source)
    assert list(islice(items, 100)) == list(range(100))
    for _ in range(3):
        with pytest.raises(ProducerFailed, match="mine"):
            next(items)


@lockless
def test_the_rest_of_a_feed_goes_to_others_when_it_is_closed() -> None:
    iq, source = feeding()
    other = iq.get_consumer()
    got = fed(source, iter(source))
    source.close()
    assert got + list(other) == list(range(100))
    assert iq.statistics().taken == 100


@lockless
def test_half_of_a_feed_is_taken_by_one_who_waits() -> None:
    iq, source = feeding()
    other = iq.get_consumer()
    items = iter(source)
    got = fed(source, items)
    assert hand_of(source).feed
    theirs = [other.get()]
    assert theirs[0] > len(got)
    got += items
    theirs += other
    assert sorted(got + theirs) == list(range(100))
    assert got == sorted(got)
    assert iq.statistics().taken == 100


@lockless
def test_one_that_is_refused_is_handed_out_later() -> None:
    """The gate was shut, as by one who takes the rest and is killed before he has it."""
    iq, source = feeding()
    items = iter(source)
    got = fed(source, items)
    core = iq._core
    base = cast("Any", source).slot * SLOT_SIZE
    core.ledger.cells[base + GATE] = 0
    got.append(next(items))
    assert hand_of(source).feed is None
    assert core.ledger.cells[base + CLAIM_NEXT] == len(got)
    assert got + list(items) == list(range(100))


@lockless
def test_another_thread_closes_a_consumer_whose_loop_is_fed() -> None:
    """At random instants; a slot that is used again is left alone."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for n in range(60):
            iq, source = feeding(400)
            other = iq.get_consumer()
            got = list[int]()
            reading = threading.Thread(target=read, args=(source, got), daemon=True)
            reading.start()
            while len(got) < 3 * n and reading.is_alive():
                pass
            source.close()
            heir = iq.get_consumer()  # in the same slot
            rest = [*heir, *other]
            reading.join(PATIENCE_S)
            assert not reading.is_alive()
            assert sorted(got + rest) == list(range(400))
            assert iq.statistics().taken == 400
    finally:
        sys.setswitchinterval(interval)


def read(source: Consumer[int], got: list[int]) -> None:
    try:
        for item in source:
            got.append(item)
    except ConsumerClosed:
        pass


def claim_by(heir: Consumer[Any]) -> list[Any]:
    """What a consumer got up to when it had a claim."""
    items = [heir.get()]
    while not hand_of(heir).claim:
        items.append(heir.get())
    return items


@lockless
def test_another_thread_closes_a_consumer_as_its_feed_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While its items are opened: none of them is handed out."""
    iq, source = feeding(chunk=False)
    rest, heirs = list[int](), list[Consumer[int]]()
    other = iq.get_consumer()
    real = cast("Any", _endpoints).marshal_loads

    def closing(data: bytes) -> Any:
        closer = threading.Thread(target=source.close, daemon=True)
        closer.start()
        closer.join(PATIENCE_S)
        if not heirs:
            heirs.append(other.clone())  # in the same slot
            rest.extend(claim_by(heirs[0]))
        return real(data)

    items = iter(source)
    got = [next(items)]
    while len(hand_of(source).claim) < _endpoints.FEED_LEAST:
        got.append(next(items))
    monkeypatch.setattr(_endpoints, "marshal_loads", closing)
    with pytest.raises(ConsumerClosed):
        next(items)
    monkeypatch.undo()
    heirs[0].close()
    assert sorted(got + rest + list(other)) == list(range(100))


@lockless
def test_a_feed_begins_as_another_thread_closes_its_consumer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between the end of the last feed and the store that keeps others from beginning."""
    iq, source = feeding()
    other = iq.get_consumer()
    got = [source.get()]
    while not hand_of(source).claim:
        got.append(source.get())
    real = log.LogChannel.is_handed_out
    feeds = list[Any]()

    def beginning(channel: log.LogChannel, slot: int, hand: Hand) -> bool:
        found = real(channel, slot, hand)
        if not feeds:
            feeds.append(cast("Any", source)._feed(hand))
        return found

    monkeypatch.setattr(log.LogChannel, "is_handed_out", beginning)
    closer = threading.Thread(target=source.close, daemon=True)
    closer.start()
    closer.join(PATIENCE_S)
    assert source.closed
    monkeypatch.undo()
    heir = other.clone()  # in the same slot
    rest = claim_by(heir)
    assert list(feeds[0]) == []
    heir.close()
    assert sorted(got + rest + list(other)) == list(range(100))


@lockless
def test_a_child_that_is_forked_in_a_loop_is_fed_no_more(processes: Processes) -> None:
    iq, source = feeding()
    items = iter(source)
    got = fed(source, items)
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        status = 7
        try:
            next(items)
        except EndpointElsewhere:
            status = 0
        finally:
            os._exit(status)
    processes.watch(pid)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert got + list(items) == list(range(100))
    assert iq.statistics().taken == 100


@lockless
def test_items_that_are_not_plain_are_not_opened_ahead() -> None:
    iq = IterableQueue[Any]()
    out, source = iq.get_producer(), iq.get_consumer()
    for n in range(100):
        out.put((n,) if n % 2 else n)
    out.close()
    iq.close()
    for n, item in enumerate(source):
        assert item == ((n,) if n % 2 else n)
        assert not hand_of(source).feed


@lockless
def test_who_writes_after_a_dropped_producer_need_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where its lane ends is known: only that of one that was killed is to be found."""
    iq = IterableQueue[int]()
    for n in range(100):
        iq.get_producer().put(n)

    def count(*_: object) -> int:
        raise AssertionError

    monkeypatch.setattr(log.LogChannel, "_count", count)
    out = iq.get_producer()
    out.put(100)
    monkeypatch.undo()
    out.close()
    iq.close()
    source = iq.get_consumer()
    assert [source.get() for _ in range(101)] == list(range(101))
    with pytest.raises(ProducerFailed):
        source.get()


@lockless
def test_a_consumer_that_is_dropped_in_a_loop_is_closed() -> None:
    """The iterator is in no cycle with it."""
    iq, source = feeding()
    other = iq.get_consumer()
    items = iter(source)
    got = fed(source, items)
    del source, items
    assert iq.statistics().open_consumers == 1
    assert got + list(other) == list(range(100))


# Time-outs


def test_a_time_out_is_checked_though_nothing_waits(way: None) -> None:
    iq = IterableQueue[int]()
    out, source = iq.get_producer(), iq.get_consumer()
    out.put_many(range(100))
    actors.get(source, 10)
    for call in (lambda: out.put(1, timeout=-1), lambda: source.get(timeout=-1)):
        for _ in range(20):
            with pytest.raises(ValueError, match="timeout must be 0 or more"):
                call()
            source.get()
    assert iq.statistics().put == 100


@pytest.mark.parametrize("item", ["small", "large" * 20, bytes(100)])
def test_a_put_waits_for_the_lock_no_longer_than_it_may(
    item: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its item is there; who sleeps looks after a slice."""
    iq = IterableQueue[Any]()
    core = cast("Any", iq)._core
    patience: list[float] = []

    def busy(seconds: float, call: object) -> bool:
        patience.append(seconds)
        return False

    monkeypatch.setattr(core, "try_transact", busy)
    core.ledger.head[WAIT_ITEM] = 1
    out = iq.get_producer()
    for timeout in (None, 0.1, 0.1, 0, 100):
        out.put(item, timeout=timeout)
    monkeypatch.undo()
    core.ledger.head[WAIT_ITEM] = 0
    assert patience == [SLICE_S, 0.1, 0.1, BRIEFLY_S, SLICE_S]
    assert iq.qsize() == 5


# Iterating


class Bad:
    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


def test_a_loop_goes_on_after_a_bad_item(way: None) -> None:
    iq = IterableQueue[Any]()
    out, source = iq.get_producer(), iq.get_consumer()
    for item in (1, 2, 3, Bad(), 4):
        out.put(item)
    out.close()
    iq.close()
    items = iter(source)
    got: list[Any] = []
    while True:
        try:
            got.append(next(items))
        except ItemError as error:
            got.append(error.producer)
        except StopIteration:
            break
    assert got == [1, 2, 3, 1, 4]
    assert (iq.statistics().taken, iq.statistics().put) == (5, 5)


def test_two_loops_over_one_consumer(way: None) -> None:
    iq = IterableQueue[int]()
    out, source = iq.get_producer(), iq.get_consumer()
    out.put_many(range(100))
    out.close()
    iq.close()
    first, second = iter(source), iter(source)
    got: list[int] = []
    for _ in range(25):
        got += [next(first), next(second), source.get(), next(source)]
    assert got == list(range(100))
    assert list(first) == list(second) == []


def test_threads_that_share_a_loop(way: None) -> None:
    """Each item is handed out once, whichever of them it is that claims."""
    most, threads = 100_000, 4
    iq = IterableQueue[int]()
    out, source = iq.get_producer(), iq.get_consumer()
    iq.close()
    items = iter(source)
    got: list[list[int]] = [[] for _ in range(threads)]
    takers = [threading.Thread(target=each.extend, args=(items,)) for each in got]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for taker in takers:
            taker.start()
        with out:
            actors.put(out, *range(most))
        for taker in takers:
            taker.join(PATIENCE_S)
    finally:
        sys.setswitchinterval(before)
    assert sorted(chain.from_iterable(got)) == list(range(most))
    # For all but one the loop ended without a call, so what they had last is in hand until then.
    source.close()
    assert iq.join(PATIENCE_S)


# What is said of it


def test_when_a_producer_was_last_active(way: None) -> None:
    iq = IterableQueue[int]()
    out = iq.get_producer()
    for puts in (1, 1, 2_000):
        ledger = cast("Any", iq)._core.ledger
        ledger.cells[cast("Any", out)._stamp_at] -= 50 * 10**9
        actors.put(out, *range(puts))
        assert re.search(r"producer 1, .* last active [0-9]\.. s ago", iq.explain())


# Room on a bounded queue

PACKAGE = os.path.dirname(iterable_queue.__file__)
TRACED = pytest.mark.skipif(
    "COVERAGE_PROCESS_START" in os.environ,
    reason="a tracer runs signal handlers between any two lines, where Python itself does not",
)


class Interrupted(BaseException):
    """What the signal handlers here raise."""


def fill(out: Producer[Any], start: int = 0) -> int:
    """Put numbers from *start* on until the queue is full. Returns how many."""
    for number in range(start, start + 1000):
        try:
            out.put_nowait(number)
        except Full:
            return number - start
    pytest.fail("it is never full")


def rest_of(iq: IterableQueue[Any]) -> list[Any]:
    """Take all that is left."""
    with iq.get_consumer() as source:
        items: list[Any] = []
        while iq.qsize():
            items.append(source.get(timeout=PATIENCE_S))
        return items


def in_a_thread(call: Callable[[], object]) -> None:
    """Call it in another thread, to its end."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


SIZES: dict[str, Callable[[int], Any]] = {
    "ints": lambda n: n,
    "around what an entry holds": lambda n: "x" * (35 + n % 5),
    "bytes": lambda n: bytes(30 + n),
    "objects": lambda n: [n, "pickled"],
    "larger than a segment": lambda n: bytes([n % 256]) * (FIRST_SIZE + 1000 * n),
    "of all sizes": lambda n: "y" * (0, 41, 10_000, 70_000)[n % 4],
}


@pytest.mark.parametrize("producers", [1, 2, 3])
@pytest.mark.parametrize("kind", SIZES)
def test_it_is_full_at_maxsize_whoever_asks(way: None, kind: str, producers: int) -> None:
    """Of several that put in turn, or one after another; and again, after each that is taken."""
    for maxsize in (1, 2, 7):
        iq = IterableQueue[Any](maxsize)
        outs, source = [iq.get_producer() for _ in range(producers)], iq.get_consumer()
        dice = random.Random(maxsize)
        items = map(SIZES[kind], itertools.count())
        expected: list[Any] = []
        for turn in range(3 * maxsize):
            while len(expected) < maxsize:
                out, before = dice.choice(outs), len(expected)
                expected.append(next(items))
                if dice.random() < 0.5:
                    out.put_nowait(expected[-1])
                else:
                    expected += islice(items, maxsize - len(expected))
                    out.put_many(expected[before:])
            assert iq.full()
            for out in outs:
                with pytest.raises(Full, match=rf"its maxsize is {maxsize} item"):
                    out.put_nowait(next(items))
            for _ in range(dice.randint(1, maxsize)):
                if turn % 2:
                    assert source.get() == expected.pop(0)
                else:
                    assert source.get_many(1) == [expected.pop(0)]
            assert not iq.full()
        assert iq.statistics().highest_queued == maxsize


def test_the_largest_items_of_all_are_bounded(way: None) -> None:
    iq = IterableQueue[bytes](2)
    first, second, source = iq.get_producer(), iq.get_producer(), iq.get_consumer()
    for n in range(4):
        item = bytes([n]) * (LARGEST_SIZE + 1)
        first.put(item)
        second.put(item)
        for out in (first, second):
            with pytest.raises(Full):
                out.put_nowait(item)
        assert [source.get(), source.get()] == [item, item]


@pytest.mark.parametrize("maxsize", [2**62, 10**30])
def test_a_bound_that_is_never_reached_leaves_room_for_all(way: None, maxsize: int) -> None:
    """Also where all of it is given to one that has put some items already."""
    iq = IterableQueue[int](maxsize)
    first, second, source = iq.get_producer(), iq.get_producer(), iq.get_consumer()
    for out in (first, second):
        out.put(-1)
        assert source.get() == -1
    dice = random.Random(1)
    items: list[int] = []
    for n in range(300):
        (second if n < 100 else dice.choice((first, second))).put(n)
        if n > 200:
            items.append(source.get())
    items += source.get_many(300)
    assert items == list(range(300))


def segments_of(iq: IterableQueue[Any]) -> int:
    """Bytes of its segment files."""
    directory = Path(cast("Any", iq)._core.address.path)
    return sum(file.stat().st_size for file in directory.glob("s*"))


@pytest.mark.parametrize("large", [bytes(1 << 20), ["x" * (1 << 20)]])
def test_what_has_no_room_on_the_queue_takes_none_in_memory(way: None, large: Any) -> None:
    """However many producers come with it: a bound is there to bound memory."""
    iq = IterableQueue[Any](2)
    outs, source = [iq.get_producer() for _ in range(3)], iq.get_consumer()
    for out in outs:
        out.put(1)
        source.get()
    outs[0].put_many([large, large])
    before = segments_of(iq)
    for out in outs:
        with pytest.raises(Full):
            out.put_nowait(large)
    threads = [threading.Thread(target=out.put, args=(large,), daemon=True) for out in outs]
    for thread in threads:
        thread.start()
    wait_until(lambda: iq.statistics().blocked_producers == 3, "all wait for room")
    assert segments_of(iq) == before
    assert [source.get(timeout=PATIENCE_S) for _ in range(5)] == [large] * 5
    for thread in threads:
        thread.join(PATIENCE_S)


# At every point of a call


def at_point(
    number: int,
    act: Callable[[], object],
    call: Callable[[], object],
    counts: Callable[[], bool] = lambda: True,
) -> bool:
    """Call *call*, and in it, at the nth point of this package's code, *act*. False: it has fewer.

    A point is where CPython looks for signals, and lets go of the interpreter for other threads:
    after the call of a C function, and as a function of this package begins. It *counts* or not.
    """
    left = number

    def profile(frame: FrameType, event: str, _: object) -> None:
        nonlocal left
        if (
            event in ("call", "c_return")
            and frame.f_code.co_filename.startswith(PACKAGE)
            and counts()
        ):
            left -= 1
            if left == 0:
                act()

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(before)
    return left <= 0


def strike(*_: object) -> NoReturn:
    """What a signal handler does."""
    raise Interrupted


class Situation:
    """A queue for 3 items, a producer that is about to put *item*, another one, and a consumer."""

    def __init__(self, kind: str) -> None:
        self.iq = iq = IterableQueue[Any](3)
        self.out, self.other, self.source = iq.get_producer(), iq.get_producer(), iq.get_consumer()
        self.item: Any = "item"
        self.timeout = 0.0
        if kind != "uses it for the first time":
            self.out.__enter__()
        if kind == "has room already":
            self.out.put(-1)
            assert self.source.get() == -1
        elif kind == "takes room back":
            self.other.put(-1)
        elif kind == "needs a segment":
            self.item = bytes(2 * FIRST_SIZE)
        elif kind == "finds no room":
            assert fill(self.other) == 3
        elif kind == "waits for room":
            assert fill(self.other) == 3
            self.timeout = 0.001
        self.before = iq.qsize()

    def put(self) -> bool:
        """Put the item. False: there is no room."""
        try:
            self.out.put(self.item, timeout=self.timeout)
        except Full:
            return False
        return True

    def is_outside(self) -> bool:
        """Whether nobody is in a transition of the ledger."""
        return not cast("Any", self.iq)._core.ledger.head[HOLDER]

    def is_free(self) -> bool:
        """Whether the main thread has neither the queue's lock nor that of its lane."""
        lock = getattr(cast("Any", self.out)._lane, "lock", threading.RLock())
        if not lock.acquire(blocking=False):
            return False
        lock.release()
        return is_free(cast("Any", self.iq)._core)


KINDS = (
    "has room already",
    "is given room",
    "takes room back",
    "uses it for the first time",
    "needs a segment",
    "finds no room",
    "waits for room",
)


@TRACED
@pytest.mark.parametrize("kind", KINDS)
def test_a_put_is_interrupted_at_any_point(kind: str) -> None:
    """It happened wholly or not at all, and takes no room from others."""
    outcomes = set[int]()
    for point in itertools.count(1):
        at = Situation(kind)
        try:
            over = not at_point(point, strike, at.put)
        except Interrupted:
            over = False
        put = at.iq.qsize() - at.before
        outcomes.add(put)
        assert fill(at.other, 100) == 3 - at.before - put
        assert at.iq.qsize() == 3
        assert fill(at.out) == 0
        assert rest_of(at.iq).count(at.item) == put
        at.out.put("it goes on")
        assert rest_of(at.iq) == ["it goes on"]
        if over:
            break
    assert outcomes == ({0} if "no room" in kind or "waits" in kind else {0, 1})


def put_by(out: Producer[Any], item: Any, put: list[Any]) -> None:
    """Put it if there is room, and note that in *put*."""
    try:
        out.put_nowait(item)
    except (Full, WouldDeadlock):
        return
    put.append(item)


def its_handler_puts(at: Situation, put: list[Any], got: list[Any]) -> None:
    put_by(at.out, "from a handler", put)


def another_thread_puts(at: Situation, put: list[Any], got: list[Any]) -> None:
    put_by(at.out, bytes(50), put)


def another_thread_puts_a_large_one(at: Situation, put: list[Any], got: list[Any]) -> None:
    put_by(at.out, bytes(3 * FIRST_SIZE), put)


def another_producer_puts(at: Situation, put: list[Any], got: list[Any]) -> None:
    put.extend(range(fill(at.other)))


def all_is_taken_and_more_is_put(at: Situation, put: list[Any], got: list[Any]) -> None:
    got += rest_of(at.iq)
    put.extend(range(fill(at.other)))


def it_is_closed_and_another_producer_gets_its_lane(
    at: Situation, put: list[Any], got: list[Any]
) -> None:
    at.out.close()
    after = at.iq.get_producer()
    put_by(after, "from the next one", put)
    put_by(after, bytes(60), put)


ACTS = (
    its_handler_puts,
    another_thread_puts,
    another_thread_puts_a_large_one,
    another_producer_puts,
    all_is_taken_and_more_is_put,
    it_is_closed_and_another_producer_gets_its_lane,
)


@TRACED
@pytest.mark.parametrize("act", ACTS)
def test_something_else_happens_at_any_point_of_a_put(
    act: Callable[[Situation, list[Any], list[Any]], None],
) -> None:
    """What was put is there, once; and it is full at maxsize."""
    for kind in ("has room already", "needs a segment", "finds no room"):
        acted = 0
        for point in itertools.count(1):
            at = Situation(kind)
            put: list[Any] = []
            got: list[Any] = []

            def do(at: Situation = at, put: list[Any] = put, got: list[Any] = got) -> None:
                nonlocal acted
                if act is its_handler_puts:
                    act(at, put, got)
                elif in_another_thread(at.is_free):
                    in_a_thread(lambda: act(at, put, got))
                    acted += 1

            refused = False
            before = [-1] * at.before if at.before < 3 else list(range(3))

            def call(at: Situation = at, put: list[Any] = put) -> None:
                nonlocal refused
                try:
                    if at.put():
                        put.append(at.item)
                except ProducerClosed:
                    refused = True

            over = not at_point(point, do, call, at.is_outside)
            assert at.iq.qsize() <= 3
            fill(at.other, 100)
            assert at.iq.qsize() == 3
            got += rest_of(at.iq)
            mine = [item for item in got if not (isinstance(item, int) and item >= 100)]
            assert sorted(mine, key=repr) == sorted(before + put, key=repr)
            assert refused <= (act is it_is_closed_and_another_producer_gets_its_lane)
            if over:
                break
        assert acted > 3 or act is its_handler_puts


def in_another_thread(call: Callable[[], Any]) -> Any:
    """What it returns, when called by another thread."""
    results: list[Any] = []
    in_a_thread(lambda: results.append(call()))
    return results.pop()


class Seen:
    """Cells that write down which of those with names are stored to or looked at."""

    def __init__(self, cells: Any, names: dict[int, str], seen: list[str]) -> None:
        self.cells, self.names, self.seen = cells, names, seen

    def __getitem__(self, index: int) -> int:
        self.note("look at", index)
        value: int = self.cells[index]
        return value

    def __setitem__(self, index: int, value: int) -> None:
        self.note("store", index)
        self.cells[index] = value

    def note(self, what: str, index: int) -> None:
        if index in self.names:
            self.seen.append(f"{what} {self.names[index]}")


@pytest.mark.skipif(not _fence.is_supported(), reason="all goes by the lock here")
@pytest.mark.parametrize("item", [1, "x" * 100])
def test_the_fences_of_a_put_are_where_they_must_be(item: Any) -> None:
    """Between its store and its look at what another one stores that looks at the first."""
    iq = IterableQueue[Any](10)
    out = cast("Any", iq.get_producer())
    out.put(0)
    lane, full, seen = out._lane, out._lane.fence, list[str]()
    names = {lane.put_at: "PUT", lane.intent_at: "INTENT", lane.limit_at: "LIMIT"}
    lane.cells = Seen(lane.cells, names, seen)
    lane.head = Seen(lane.head, {WAIT_ITEM: "WAIT_ITEM"}, seen)

    def fence() -> None:
        seen.append("fence")
        full()

    lane.fence = fence
    out.put(item)
    own = [what for what in seen if what != "look at INTENT"]
    assert own[:3] == ["store INTENT", "fence", "look at LIMIT"]
    assert own[-3:] == ["store PUT", "fence", "look at WAIT_ITEM"]
    assert iq.qsize() == 2


@pytest.mark.skipif(not _fence.is_supported(), reason="there are no claims here")
@pytest.mark.parametrize("call", ["get", "next"])
def test_who_waits_for_room_is_looked_for_behind_the_fence_of_a_get(call: str) -> None:
    """Which is the locked instruction that takes one from GATE."""
    _, source, _ = with_a_claim(0)
    seen = list[str]()
    hand: Any = hand_of(source)
    gate = hand.gate

    def seen_gate(block: bool) -> bool:
        seen.append("gate")
        return cast("bool", gate(block))

    source._head = Seen(source._head, {WAIT_ROOM: "WAIT_ROOM"}, seen)
    hand.view, hand.gate = Seen(hand.view, {hand.next_at: "CLAIM_NEXT"}, seen), seen_gate
    source.get() if call == "get" else next(source)
    assert seen[:3] == ["store CLAIM_NEXT", "gate", "look at WAIT_ROOM"]


LARGE: list[Any] = [bytes([n]) * 50 for n in range(20)]


def with_a_claim(others: int, *, alone: bool = False) -> tuple[IterableQueue[Any], Any, list[Any]]:
    """A consumer with some items of its claim left, and so many others; somebody waits for room.

    Items that are claimed *alone* are large bytes, so that none is left.
    """
    iq = IterableQueue[Any](300)
    out, source = iq.get_producer(), iq.get_consumer()
    for _ in range(others):
        iq.get_consumer()
    out.put_many(LARGE if alone else range(150))
    got: list[Any] = []
    while len(got) < 10 or not (alone or len(hand_of(source).claim) >= 3):
        got.append(source.get())
    cast("Any", iq)._core.ledger.head[WAIT_ROOM] = 1
    return iq, source, got


@TRACED
@pytest.mark.skipif(not _fence.is_supported(), reason="there are no claims here")
@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("call", ["get", "next", "loop"])
@pytest.mark.parametrize("act", ["interrupts", "gets", "closes", "takes the rest"])
def test_something_happens_at_any_point_of_a_get_that_makes_room(
    call: str, act: str, alone: bool
) -> None:
    """Each item is handed out once, in order, and who waits for room is woken."""
    for point in itertools.count(1):
        iq, source, got = with_a_claim(act == "takes the rest", alone=alone)
        expected = LARGE if alone else list(range(150))
        other: Any = iq.get_consumer() if act == "takes the rest" else source
        step = {"get": source.get_nowait, "next": source.__next__, "loop": iter(source).__next__}
        if call == "loop":
            got.append(step["loop"]())
            cast("Any", iq)._core.ledger.head[WAIT_ROOM] = 1
        among: list[Any] = []

        def meddle(
            iq: IterableQueue[Any] = iq, other: Any = other, among: list[Any] = among
        ) -> None:
            core = cast("Any", iq)._core
            if act == "interrupts":
                raise Interrupted
            if act == "gets":
                with suppress(WouldDeadlock):
                    among.append(other.get_nowait())
            elif in_another_thread(lambda: is_free(core)):
                if act == "closes":
                    in_a_thread(other.close)
                else:
                    among += in_another_thread(lambda: take_all_but(1, iq, other))

        late: list[Any] = []

        def take(step: Callable[[], Any] = step[call], late: list[Any] = late) -> None:
            try:
                late.append(step())
            except ConsumerClosed:
                assert act == "closes"

        try:
            over = not at_point(point, meddle, take)
        except Interrupted:
            over = False
        if late:
            assert cast("Any", iq)._core.ledger.head[WAIT_ROOM] == 0
        rest = take_all_but(0, iq, iq.get_consumer() if source.closed else source)
        assert sorted(got + among + late + rest) == expected
        if act in ("interrupts", "closes"):
            assert got + late + rest == expected
        assert iq.statistics().taken == len(expected)
        if over:
            assert point > 5
            return


def is_free(core: Any) -> bool:
    """Whether no other thread is in the queue's lock."""
    try:
        with core.runtime.trylock:
            return True
    except KeyError:
        return False


def take_all_but(some: int, iq: IterableQueue[Any], source: Consumer[Any]) -> list[Any]:
    items: list[Any] = []
    while iq.qsize() > some:
        items.append(source.get_nowait())
    return items


# Threads and signals


@contextmanager
def switching_fast() -> Generator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def queued_now(iq: IterableQueue[Any]) -> tuple[int, int]:
    """Items put and not taken; and the same with those that producers have room for.

    Called with the lock held. The first is 0 if it was not of one moment.
    """
    core = cast("Any", iq)._core
    log, head, cells = core._log, core.ledger.head, core.ledger.cells
    log.roll()
    bases = log._bases()
    put = [cells[base + PUT] for base in bases]
    most = sum(max(cells[base + GRANT], count) for base, count in zip(bases, put, strict=True))
    gone = head[TAKEN] + head[DROPPED] - log.claimed()
    whole = put == [cells[base + PUT] for base in bases]
    return (sum(put) - gone) * whole, most - gone


def watch_bound(iq: IterableQueue[Any], over: Callable[[], bool], seed: int) -> int:
    """Look again and again whether more is put than may be. Returns how often it was all there."""
    core = cast("Any", iq)._core
    maxsize = core.ledger.head[MAXSIZE]
    dice = random.Random(seed)
    full = 0
    while not over():
        queued, promised = core.transact(queued_now, iq)
        assert queued <= maxsize
        assert promised <= maxsize
        assert iq.qsize() <= maxsize
        full += queued == maxsize
        time.sleep(dice.choice((0, 0.0001, 0.001)))
    assert iq.statistics().highest_queued <= maxsize
    return full


@pytest.mark.parametrize(("maxsize", "count"), [(1, 200), (2, 400), (50, 1_500)])
def test_threads_share_a_bounded_producer(way: None, maxsize: int, count: int) -> None:
    """Each thread's items come in its order, none is lost or comes twice; it stays bounded."""
    iq = IterableQueue[Any](maxsize)
    out, source = iq.get_producer(), iq.get_consumer()

    def work(number: int) -> None:
        for n in range(0, count, 2):
            out.put((number, n))
            out.put((number, n + 1, "x" * (n % 500)))

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(3)]
    seen: dict[int, list[int]] = {n: [] for n in range(3)}
    highest = 0
    with switching_fast():
        for thread in threads:
            thread.start()
        for turn in range(3 * count):
            number, n = source.get(timeout=PATIENCE_S)[:2]
            seen[number].append(n)
            if turn % 16 == 0:
                highest = max(highest, *cast("Any", iq)._core.transact(queued_now, iq))
        for thread in threads:
            thread.join(PATIENCE_S)
    assert seen == {n: list(range(count)) for n in range(3)}
    assert highest <= maxsize
    assert iq.statistics().highest_queued <= maxsize
    assert iq.statistics().queued == 0


@pytest.mark.skipif(not _fence.is_supported(), reason="all goes by the lock here")
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("size", [1, 1000])
def test_another_threads_put_is_interrupted(
    size: int, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which takes back what both of them had stored; then others get that room.

    And the other thread may have come *again*: what it goes for then it must ask for.
    """
    iq = IterableQueue[str](1)
    out, other, source = iq.get_producer(), iq.get_producer(), iq.get_consumer()
    out.put("first")
    assert source.get() == "first"
    other.__enter__()
    name = "pack_small" if size == 1 else "pack_large"
    pack = getattr(_endpoints, name)
    under_way, go_on = threading.Event(), threading.Event()
    lane = cast("Any", out)._lane
    fence = lane.fence

    def pack_and_wait(*arguments: Any) -> None:
        pack(*arguments)
        if threading.current_thread() is thread:
            under_way.set()
            assert go_on.wait(PATIENCE_S)

    def interrupted() -> None:
        fence()
        lane.fence = fence
        raise Interrupted

    def switched() -> None:
        """As if threads were switched after the fence: the other one ends, or waits for room."""
        fence()
        lane.fence = fence
        go_on.set()
        wait_until(lambda: iq.statistics().blocked_producers or not thread.is_alive(), "either")

    thread = threading.Thread(target=out.put, args=("t" * size,), daemon=True)
    monkeypatch.setattr(_endpoints, name, pack_and_wait)
    thread.start()
    assert under_way.wait(PATIENCE_S)
    lane.fence = interrupted
    with pytest.raises(Interrupted):
        out.put("interrupted")
    other.put_nowait("other")
    if again:
        lane.fence = switched
        with pytest.raises(Full):
            out.put_nowait("again")
    go_on.set()
    wait_until(lambda: iq.statistics().blocked_producers or not thread.is_alive(), "either")
    assert iq.qsize() == 1
    assert [source.get(timeout=PATIENCE_S) for _ in range(2)] == ["other", "t" * size]
    thread.join(PATIENCE_S)


class Hooked(Seen):
    """Cells by which something happens just after a look at the one of that index."""

    def __init__(self, cells: Any, index: int, act: Callable[[], None]) -> None:
        super().__init__(cells, {index: ""}, [])
        self.act = act

    def __getitem__(self, index: int) -> int:
        value = super().__getitem__(index)
        if index in self.names:
            self.act()
        return value


@pytest.mark.skipif(not _fence.is_supported(), reason="all goes by the lock here")
def test_room_is_taken_between_the_look_at_it_and_the_put(monkeypatch: pytest.MonkeyPatch) -> None:
    """By another process, as another thread's put of the same producer has been interrupted.

    So it does not do to look whether there still is room: it must still be claimed.
    """
    iq = IterableQueue[int](1)
    out, other, source = iq.get_producer(), iq.get_producer(), iq.get_consumer()
    out.put(0)
    assert source.get() == 0
    other.__enter__()
    lane = cast("Any", out)._lane
    pack, cells = cast("Any", _endpoints).pack_small, lane.cells
    looking, got = False, list[int]()

    def pack_late(*arguments: Any) -> None:
        """As if this thread were put aside, and the other's put interrupted meanwhile."""
        nonlocal looking
        pack(*arguments)
        monkeypatch.undo()
        cells[lane.intent_at] = lane.put
        looking = True

    def take_room() -> None:
        nonlocal looking
        if looking:
            looking = False
            in_a_thread(lambda: got.append(fill(other)))

    monkeypatch.setattr(_endpoints, "pack_small", pack_late)
    lane.cells = Hooked(cells, lane.limit_at, take_room)
    out.put(1)
    assert got == [0], "it claims that room again, and so keeps it"
    assert iq.qsize() == 1


class Trap:
    """A signal handler that raises once each time it has been armed."""

    def __init__(self) -> None:
        self.armed = False
        self.sprung = 0

    def __call__(self, signum: int, frame: object) -> None:
        if self.armed:
            self.armed = False
            self.sprung += 1
            raise Interrupted


@contextmanager
def storm(seed: int) -> Generator[Trap]:
    """Signals for the main thread, at random moments."""
    trap = Trap()
    dice = random.Random(seed)
    over = threading.Event()
    main = threading.main_thread().ident
    assert main is not None

    def blow() -> None:
        while not over.wait(dice.uniform(0.00005, 0.001)):
            signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, trap)
    thread = threading.Thread(target=blow, daemon=True)
    thread.start()
    try:
        yield trap
    finally:
        trap.armed = False
        over.set()
        thread.join(PATIENCE_S)
        signal.signal(signal.SIGUSR1, before)


STRIKES = 100
"""How many interrupts make a storm."""


@TRACED
@pytest.mark.parametrize("maxsize", [1, 3])
def test_bounded_puts_in_a_storm(way: None, maxsize: int) -> None:
    """Beside another producer, which wants the same room, while all is taken."""
    iq = IterableQueue[Any](maxsize)
    out, other, source = iq.get_producer(), iq.get_producer(), iq.get_consumer()
    got: list[Any] = []
    over = threading.Event()
    taking = threading.Thread(target=lambda: got.extend(source), daemon=True)
    theirs = 0

    def put_on() -> None:
        nonlocal theirs
        while not over.is_set():
            other.put((1, theirs))
            theirs += 1
        other.close()

    putting = threading.Thread(target=put_on, daemon=True)
    sure: list[int] = []
    maybe: list[int] = []
    dice = random.Random(maxsize)
    highest = 0
    deadline = time.monotonic() + PATIENCE_S / 2
    with storm(maxsize) as trap:
        taking.start()
        putting.start()
        for n in itertools.count():
            try:
                trap.armed = True
                if dice.random() < 0.3:
                    out.put_nowait((0, n))
                elif dice.random() < 0.5:
                    out.put((0, n, "x" * 100), timeout=0.001)
                else:
                    out.put((0, n))
                trap.armed = False
                sure.append(n)
            except Full:
                trap.armed = False
            except Interrupted:
                maybe.append(n)
                highest = max(highest, *cast("Any", iq)._core.transact(queued_now, iq))
            if trap.sprung > STRIKES or time.monotonic() > deadline:
                break
    over.set()
    putting.join(PATIENCE_S)
    assert highest <= maxsize
    iq.close()
    out.close()
    taking.join(PATIENCE_S)
    assert [item[1] for item in got if item[0] == 1] == list(range(theirs))
    mine = [item[1] for item in got if item[0] == 0]
    assert mine == sorted(set(mine))
    assert set(sure) <= set(mine) <= set(sure) | set(maybe)
    assert iq.statistics().highest_queued <= maxsize
    assert trap.sprung > STRIKES / 4


@TRACED
@pytest.mark.parametrize("maxsize", [1, 3, 100])
def test_gets_that_make_room_in_a_storm(way: None, maxsize: int) -> None:
    """Two producers put as fast as they can; each item is handed out once, in their order."""
    iq = IterableQueue[Any](maxsize)
    outs, source = [iq.get_producer() for _ in range(2)], iq.get_consumer()
    over = threading.Event()
    counts = [0, 0]

    def put_on(number: int) -> None:
        with outs[number] as out:
            while not over.is_set():
                out.put((number, counts[number]))
                counts[number] += 1

    threads = [threading.Thread(target=put_on, args=(n,), daemon=True) for n in range(2)]
    got: list[Any] = []
    dice = random.Random(maxsize)
    # Not that of `iter(source)`: after a call of C code a handler runs, before the item is stored.
    step = cast("Any", source).__next__
    deadline = time.monotonic() + PATIENCE_S / 2
    with storm(maxsize) as trap:
        for thread in threads:
            thread.start()
        while trap.sprung <= STRIKES and time.monotonic() < deadline:
            way_of = dice.random()
            try:
                trap.armed = True
                if way_of < 0.3:
                    item = source.get_nowait()
                elif way_of < 0.6:
                    item = step()
                elif way_of < 0.9:
                    item = source.get()
                else:
                    some = source.get_many(2)
                    trap.armed = False
                    got += some
                    continue
                trap.armed = False
                got.append(item)
            except Empty:
                trap.armed = False
            except Interrupted:
                pass
    over.set()
    iq.close()
    got += source
    for thread in threads:
        thread.join(PATIENCE_S)
    for number in range(2):
        assert [n for who, n in got if who == number] == list(range(counts[number]))
    statistics = iq.statistics()
    assert (statistics.put, statistics.taken) == (sum(counts), sum(counts))
    assert statistics.highest_queued <= maxsize
    assert trap.sprung > STRIKES / 4


# Waiting for room


class Putting(threading.Thread):
    """A thread that puts one item, and how that went."""

    def __init__(self, out: Producer[Any], item: Any, timeout: float | None = None) -> None:
        super().__init__(daemon=True)
        self.out, self.item, self.timeout = out, item, timeout
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.out.put(self.item, timeout=self.timeout)
        except Exception as error:
            self.error = error

    def end(self) -> Exception | None:
        self.join(PATIENCE_S)
        assert not self.is_alive(), "it still waits"
        return self.error


def wait_for_blocked(iq: IterableQueue[Any], count: int) -> None:
    """Wait until so many producers wait for room, and are counted as waiting."""
    head = cast("Any", iq)._core.ledger.head
    wait_until(
        lambda: iq.statistics().blocked_producers == head[WAIT_ROOM] == count, "they wait for room"
    )


@pytest.mark.parametrize("claimed", [False, True])
@pytest.mark.parametrize("call", ["get", "get_nowait", "timeout", "next", "loop", "many"])
def test_what_wakes_a_put_that_waits(
    way: None, call: str, claimed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody wakes by itself here. What is *claimed* is handed out without the lock."""
    monkeypatch.setattr(_runtime, "SLICE_S", 10 * PATIENCE_S)
    iq = IterableQueue[int](200 if claimed else 1)
    outs, source = [iq.get_producer() for _ in range(2)], iq.get_consumer()
    items = iter(source)
    got: list[int] = []
    put = 0
    if claimed:
        outs[0].put_many(range(150))
        put, got = 150, [next(items) for _ in range(10)]
        hand = hand_of(source)
        while log_of(iq).lockless and len(hand.claim) < 5:
            got.append(next(items))
    put += fill(outs[0], put)
    takes: dict[str, Callable[[], int]] = {
        "get": source.get,
        "get_nowait": source.get_nowait,
        "timeout": lambda: source.get(timeout=PATIENCE_S),
        "next": source.__next__,
        "loop": items.__next__,
        "many": lambda: source.get_many(1)[0],
    }
    for turn in range(2):
        waiting = Putting(outs[turn], put)
        wait_for_blocked(iq, 1)
        got.append(takes[call]())
        assert waiting.end() is None
        put += 1
    assert got + [source.get() for _ in range(iq.qsize())] == list(range(put))


@pytest.mark.parametrize("taken", ["at once", "one by one"])
def test_each_that_waits_is_woken(way: None, taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By those who take, or by one that was woken and found room left."""
    monkeypatch.setattr(_runtime, "SLICE_S", 10 * PATIENCE_S)
    iq = IterableQueue[int](4)
    outs, source = [iq.get_producer() for _ in range(4)], iq.get_consumer()
    assert fill(outs[0]) == 4
    waiting = [Putting(out, -1) for out in outs]
    wait_for_blocked(iq, 4)
    if taken == "at once":
        assert len(source.get_many(4)) == 4
    else:
        for _ in range(4):
            source.get()
    assert [putting.end() for putting in waiting] == [None] * 4
    assert rest_of(iq) == [-1] * 4


def test_one_that_closes_wakes_who_waits(way: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it was about to put, it never will."""
    monkeypatch.setattr(_runtime, "SLICE_S", 10 * PATIENCE_S)
    iq = IterableQueue[int](1)
    out, other = iq.get_producer(), iq.get_producer()
    if log_of(iq).lockless:
        out.__enter__()
        lane = cast("Any", out)._lane
        cast("Any", out)._get_room(lane, None)  # and is put aside just there
    else:
        out.put(1)
    waiting = Putting(other, 2)
    wait_for_blocked(iq, 1)
    out.close()
    if not log_of(iq).lockless:
        rest_of(iq)
    assert waiting.end() is None


ENDINGS: dict[str, type[Exception]] = {
    "its close": ProducerClosed,
    "a cancel": Cancelled,
    "the last consumer's close": ConsumersGone,
    "its time-out": Full,
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_ends_a_put_that_waits(
    way: None, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leaves nothing: all the room there is, others can use."""
    monkeypatch.setattr(_runtime, "SLICE_S", 10 * PATIENCE_S)
    iq = IterableQueue[int](2)
    out, other, source = iq.get_producer(), iq.get_producer(), iq.get_consumer()
    assert fill(other) == 2
    waiting = Putting(out, 3, 0.05 if ending == "its time-out" else None)
    if ending != "its time-out":
        wait_for_blocked(iq, 1)
    if ending == "its close":
        out.close()
    elif ending == "a cancel":
        iq.cancel()
    elif ending == "the last consumer's close":
        iq.close()
        source.close()
    assert type(waiting.end()) is ENDINGS[ending]
    if ending in ("its close", "its time-out"):
        assert iq.qsize() == 2
        assert len(source.get_many(2)) == 2
        assert fill(other) == 2


@TRACED
def test_an_interrupt_ends_a_put_that_waits(way: None) -> None:
    iq = IterableQueue[int](2)
    out, other, source = iq.get_producer(), iq.get_producer(), iq.get_consumer()
    assert fill(other) == 2

    def when_it_waits() -> None:
        wait_for_blocked(iq, 1)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    helper = threading.Thread(target=when_it_waits, daemon=True)
    before = signal.signal(signal.SIGUSR1, strike)
    try:
        helper.start()
        with pytest.raises(Interrupted):
            out.put(3)
    finally:
        signal.signal(signal.SIGUSR1, before)
        helper.join(PATIENCE_S)
    assert cast("Any", iq)._core.ledger.head[WAIT_ROOM] == 0
    assert len(source.get_many(2)) == 2
    assert fill(other) == 2
    assert fill(out) == 0


def test_the_first_put_waits_no_longer_than_it_may(
    way: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it has waited for the lock already, to begin."""
    iq = IterableQueue[int](1)
    out, other = iq.get_producer(), iq.get_producer()
    other.put(1)
    runtime = cast("Any", iq)._core.runtime
    use = _endpoints.Endpoint._use

    def slowly(self: Any, *arguments: Any, **options: Any) -> None:
        use(self, *arguments, **options)
        runtime.monotonic = lambda: time.monotonic() + 3.0

    monkeypatch.setattr(_endpoints.Endpoint, "_use", slowly)
    began = time.monotonic()
    with pytest.raises(Full):
        out.put(2, timeout=3.0)
    assert time.monotonic() - began < 2.5


@pytest.mark.skipif(not _fence.is_supported(), reason="all goes by the lock here")
def test_who_polls_a_full_queue_does_not_use_its_fence_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A semaphore counts its releases, and raises once these are too many."""
    monkeypatch.setattr(_fence, "_MOST", 20)
    iq = IterableQueue[int](1)
    out = iq.get_producer()
    out.put(1)
    for _ in range(100):
        assert fill(out) == 0
    assert cast("Any", out)._lane.fence.__self__._get_value() < 100


def test_to_wake_a_consumer_is_a_part_of_a_puts_time(
    way: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of which it has waited for room already."""
    iq = IterableQueue[int](1)
    out, source = iq.get_producer(), iq.get_consumer()
    out.put(1)
    told: list[float | None] = []

    def tell(self: Core, count: int = 1, timeout: float | None = None) -> None:
        told.append(timeout)

    monkeypatch.setattr(Core, "tell_of_put", tell)
    cast("Any", iq)._core.ledger.head[WAIT_ITEM] = 1
    waiting = Putting(out, 2, PATIENCE_S)
    wait_for_blocked(iq, 1)
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > 0.1, "it has waited for a while")
    assert source.get() == 1
    assert waiting.end() is None
    cast("Any", iq)._core.ledger.head[WAIT_ITEM] = 0
    if log_of(iq).lockless:
        assert [left is not None and left < PATIENCE_S - 0.1 for left in told] == [True]


def test_time_outs_hold_while_the_holder_of_the_lock_is_stopped(
    stage: Stage, tmp_path: Path
) -> None:
    """Those of puts that find no room, of puts that have some, and of gets that make some."""
    iq = stage.queue(200)
    out, other, source = iq.get_producer(), iq.get_producer(), iq.get_consumer()
    stopped = stage.cast(iq.get_producer())
    stopped.run(actors.nothing)
    out.put_many(range(150))
    hand = None
    taken = 0
    while hand is None or len(hand.claim) < 10:
        taken += len([source.get()])
        hand = hand_of(source)
        if not log_of(iq).lockless:
            break
    other.put(1)
    inside, go_on = tmp_path / "inside", tmp_path / "go on"
    staying = stopped.begin(actors.stay_while, inside, go_on)
    wait_until(inside.exists, "it is inside the lock")
    os.kill(stopped.pid, signal.SIGSTOP)
    stat = Path(f"/proc/{stopped.pid}/stat")
    wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "it is stopped")
    head = cast("Any", iq)._core.ledger.head
    try:
        room = fill(out)
        began = time.monotonic()
        with pytest.raises(Full):
            out.put(0, timeout=0.3)
        assert time.monotonic() - began < 0.3 + on_this_machine(0.5)
        head[WAIT_ROOM] += 1
        for timeout in (0.1, 0.3):
            began = time.monotonic()
            if log_of(iq).lockless:
                assert source.get(timeout=timeout) == taken
                taken += 1
            else:
                with pytest.raises(Empty):
                    source.get(timeout=timeout)
            assert time.monotonic() - began < timeout + on_this_machine(0.5)
        head[WAIT_ROOM] -= 1
    finally:
        go_on.touch()
        os.kill(stopped.pid, signal.SIGCONT)
    staying.result()
    assert fill(out) == 200 - (150 + 1 + room - taken)


# Processes, and their deaths


def put_numbers(out: Producer[Any], name: int, enough: Path) -> int:
    """Put (name, 0), (name, 1) ... in every way, until there is that file. Returns how many."""
    dice = random.Random(name)
    count = 0
    while not enough.exists():
        for _ in range(dice.randrange(20)):
            item = (name, count, "x" * dice.choice((0, 0, 0, 100, 5_000)))
            if dice.random() < 0.3:
                try:
                    out.put_nowait(item)
                except Full:
                    continue
            else:
                out.put(item)
            count += 1
    out.close()
    return count


def take_numbers(source: Consumer[Any]) -> list[tuple[int, int]]:
    """Take in every way, until that finds None. Returns the names and numbers."""
    dice = random.Random(1)
    got: list[tuple[int, int]] = []
    while True:
        if dice.random() < 0.1:
            items = source.get_many(3)
        else:
            items = [*islice(source, dice.randrange(5)), source.get()]
        got += [item[:2] for item in items if item is not None]
        if None in items:
            return got


def is_dead(puppet: Puppet[Any]) -> bool:
    return not lives(puppet.pid)


@pytest.mark.parametrize(
    ("maxsize", "readers", "kills"),
    [(1, 3, True), (2, 3, True), (3, 3, True), (10, 3, True), (3, 1, False)],
)
def test_producers_and_consumers_of_a_bounded_queue(
    stage: Stage, tmp_path: Path, maxsize: int, readers: int, kills: bool
) -> None:
    """It is bounded at all moments, whoever is killed; in the end all is there, and the room too.

    To one consumer, the items of each producer come in their order.
    """
    iq = cast("IterableQueue[Any]", stage.queue(maxsize))
    enough = tmp_path / "enough"
    last = iq.get_producer()
    consumers = [stage.cast(iq.get_consumer()) for _ in range(readers)]
    names = itertools.count()
    writers: list[tuple[int, Puppet[Any], Any]] = []

    def start() -> None:
        name = next(names)
        puppet = stage.cast(iq.get_producer())
        writers.append((name, puppet, puppet.begin(put_numbers, name, enough)))

    for _ in range(3):
        start()
    wait_until(lambda: iq.qsize() == maxsize, "it is full")
    reading = [consumer.begin(take_numbers) for consumer in consumers]
    dice = random.Random(maxsize)
    killed: set[int] = set()
    for _ in range(3):
        end = time.monotonic() + dice.uniform(0.1, 0.2)
        watch_bound(iq, lambda end=end: time.monotonic() > end, maxsize)  # type: ignore[misc]
        if kills:
            name, victim, _ = writers.pop(dice.randrange(3))
            os.kill(victim.pid, signal.SIGKILL)
            killed.add(name)
            wait_until(lambda victim=victim: is_dead(victim), "its end")  # type: ignore[misc]
            start()
    enough.touch()
    over = [False]
    watching = threading.Thread(target=watch_bound, args=(iq, lambda: over[0], 1), daemon=True)
    watching.start()
    counts = {name: call.result() for name, _, call in writers}
    wait_until(lambda: iq.statistics().open_producers == 1, "the ends of all of them are known")

    def all_have_ended() -> bool:
        with suppress(Full):
            last.put_nowait(None)
        return all(call.is_over() for call in reading)

    wait_until(all_have_ended, "all consumers have found it")
    assert set(rest_of(iq)) <= {None}
    got = [call.result() for call in reading]
    over[0] = True
    watching.join(PATIENCE_S)
    for name in range(next(names)):
        found = [n for some in got for who, n in some if who == name]
        if readers > 1:
            found.sort()
        assert found == list(range(len(found) if name in killed else counts[name]))
    statistics = iq.statistics()
    assert (statistics.lost, statistics.queued) == (0, 0)
    assert statistics.highest_queued == maxsize
    assert fill(last) == maxsize
    assert iq.qsize() == maxsize


def stay_at_fence(out: Producer[int], at: int, inside: Path) -> NoReturn:
    """Put, and never get further than to the nth fence."""
    full = _fence.Fences().full

    def stay() -> None:
        nonlocal at
        full()
        at -= 1
        if at == 0:
            inside.touch()
            while True:
                signal.pause()

    def renewed(fences: _fence.Fences) -> Callable[[], object]:
        return stay

    setattr(_fence.Fences, "renew", renewed)  # noqa: B010 - checkers know it as a method
    while True:
        out.put(-1)


@pytest.mark.skipif(not _fence.is_supported(), reason="all goes by the lock here")
@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_producer_is_killed_while_it_has_room(stage: Stage, tmp_path: Path, at: int) -> None:
    """Before it asks for room, before it uses some, and behind the store that publishes an item."""
    iq = stage.queue(3)
    dying = stage.cast(iq.get_producer())
    out, other, source = iq.get_producer(), iq.get_producer(), iq.get_consumer()
    inside = tmp_path / "inside"
    dying.begin(stay_at_fence, at, inside)
    wait_until(inside.exists, "it is about to put")
    put = (0, 0, 1, 1)[at - 1]
    going = (0, 1, 0, 1)[at - 1]
    assert iq.qsize() == put
    assert fill(out) == 3 - put - going, "what it is about to put counts already"
    waiting = Putting(other, 7)
    if going:
        wait_for_blocked(iq, 1)
    os.kill(dying.pid, signal.SIGKILL)
    wait_until(lambda: is_dead(dying), "its end")
    if not going:
        wait_for_blocked(iq, 1)
        source.get()
    assert waiting.end() is None
    assert iq.qsize() == 3
    assert fill(out) == 0


# The end of a process


def test_who_has_left_touches_nothing_any_more(way: None) -> None:
    """Its slots and lanes are others' by then, while its threads may go on for a moment."""
    iq = IterableQueue[int]()
    out, source = iq.get_producer(), iq.get_consumer()
    out.put_many(range(100))
    assert actors.get(source, 20) == list(range(20))
    lane = cast("Any", out)._lane
    cast("Any", iq)._core.leave("ends here")
    before = list(log_of(iq)._ledger.cells)
    for call in (lambda: out.put(1), lambda: out.put_many([1, 2]), source.get, source.__next__):
        with pytest.raises(ChannelBroken, match="has left"):
            call()
    assert list(log_of(iq)._ledger.cells) == before
    assert lane is None or (lane.put, lane.room) == (-1, -1)


def test_a_loop_over_a_closed_consumer_leaves_its_slot_alone(way: None) -> None:
    iq = IterableQueue[int]()
    out, source = iq.get_producer(), iq.get_consumer()
    out.put_many(range(200))
    items = iter(source)
    assert list(islice(items, 20)) == list(range(20))
    source.close()
    other = iq.get_consumer()
    assert cast("Any", other).slot == cast("Any", source).slot
    assert len(actors.get(other, 20)) == 20
    before = list(log_of(iq)._ledger.cells)
    with pytest.raises(ConsumerClosed):
        next(items)
    assert list(log_of(iq)._ledger.cells) == before


# Files


def test_producers_one_after_another_write_to_one_lane(way: None) -> None:
    iq = IterableQueue[int]()
    source = iq.get_consumer()
    directory = Path(cast("Any", iq)._core.address.path)
    others: list[Any] = []
    for n in range(500):
        if n < 5:
            others.append(iq.get_consumer())  # in the slot that the last producer had
        with iq.get_producer() as out:
            actors.put(out, *range(n, n + 10))
        assert actors.get(source, 10) == list(range(n, n + 10))
    assert len(list(directory.glob("s*"))) <= 3
    assert len(log_of(iq)._bases()) <= 2


def test_a_queue_that_was_dropped_keeps_no_file_open(way: None) -> None:
    """Not even until garbage is collected: a program may make a thousand of them."""
    gc.collect()
    gc.disable()
    try:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            iq = IterableQueue[bytes]()
            out, source = iq.get_producer(), iq.get_consumer()
            out.put(b"small")
            out.put(bytes(100_000))
            actors.get(source, 2)
            out.close()
            source.close()
            iq.close()
            del iq, out, source
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        gc.enable()

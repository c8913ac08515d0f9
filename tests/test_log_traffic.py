"""The log in use: several processes and threads, and facts that show how items are claimed.

Single stores are in `test_log`.
"""

from __future__ import annotations

import gc
import os
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, cast

import pytest

from iterable_queue import (
    ChannelBroken,
    Consumer,
    ConsumerClosed,
    ItemError,
    IterableQueue,
    Producer,
    _endpoints,
    _fence,
    _runtime,
)
from iterable_queue._cells import WAIT_ITEM
from iterable_queue._core import BRIEFLY_S
from iterable_queue._endpoints import CHUNK
from iterable_queue._ledger import Ledger
from iterable_queue._runtime import SLICE_S, Condition
from tests import actors
from tests.actors import PATIENCE_S, Stage, context_of
from tests.conftest import FORKS, Processes, wait_until

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
def test_no_wake_up_is_lost_in_an_hour(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_runtime, "SLICE_S", 10 * PATIENCE_S)
    end = time.monotonic() + 3600
    while time.monotonic() < end:
        for maxsize in (0, 0, 1, 100):
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

    class Fences(_fence.Fences):
        def renew(self) -> Callable[[], object]:
            full = super().renew()

            def fence() -> None:
                nonlocal closes
                full()
                if closes:
                    closes = False
                    other = threading.Thread(target=source.close, daemon=True)
                    other.start()
                    other.join(PATIENCE_S)

            return fence

    monkeypatch.setattr(_fence, "Fences", Fences)
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


# What is said of it


def test_when_a_producer_was_last_active(way: None) -> None:
    iq = IterableQueue[int]()
    out = iq.get_producer()
    for puts in (1, 1, 2_000):
        ledger = cast("Any", iq)._core.ledger
        ledger.cells[cast("Any", out)._stamp_at] -= 50 * 10**9
        actors.put(out, *range(puts))
        assert re.search(r"producer 1, .* last active [0-9]\.. s ago", iq.explain())


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

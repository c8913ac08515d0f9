"""The log: records in segment files, lanes, claims and plans, whatever happens between two stores.

`Log` is some processes' views of one log, over cells whose nth store raises. `Writer` and `Reader`
do what a producer does with a lane of its own, and what a consumer does with a claim.
"""

from __future__ import annotations

import gc
import itertools
import marshal
import os
import random
import resource
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from iterable_queue import Cancelled, ChannelBroken, WouldDeadlock
from iterable_queue._cells import (
    BROKEN,
    CANCELLED,
    CLAIM_END,
    CLAIM_NEXT,
    CLOSED,
    CONSUMER,
    DROPPED,
    GATE,
    HEAD_SIZE,
    HIGHEST,
    IN_HAND,
    KIND,
    MAXSIZE,
    PRODUCER,
    RAW,
    ROLL,
    SLOT_SIZE,
    SLOTS,
    STATE,
    TAKEN,
    WAIT_END,
    WAIT_ITEM,
    WAIT_ROOM,
    WORKER,
    WORKERS,
)
from iterable_queue._channel import EMPTY, ENTRY_BYTES, INLINE, Hand, pack_large, pack_small
from iterable_queue._channels.log import (
    CLAIM_BYTES,
    CLAIM_MOST,
    CLAIM_NS,
    CUT,
    FEW,
    FILE_SHIFT,
    FILES,
    FIRST_SIZE,
    GRANT,
    INDEX_MASK,
    INTENT,
    KEPT,
    KEPT_SIZE,
    LARGEST_SIZE,
    LEFT_AT,
    LIMIT,
    LOW,
    OLDEST,
    OWNER,
    PLACE_BITS,
    POS,
    PUT,
    READ,
    SPARE,
    TAIL,
    Lane,
    LogChannel,
    reserve,
)
from iterable_queue._fence import is_supported
from iterable_queue._ledger import Ledger
from iterable_queue._runtime import Condition, ThreadRuntime, TokenQueue, guard
from iterable_queue._seams import Cells
from tests.conftest import list_gate

lockless = pytest.mark.skipif(not is_supported(), reason="all goes by the lock here")


class Interrupted(BaseException):
    """What a signal handler raises; or the process is killed."""


class Fate:
    """The nth store from now on raises, before it is made."""

    left: int | None = None

    def strike(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                self.left = None
                raise Interrupted


class Moments(Fate):
    """Something happens at the nth moment from now on: before a cell is read or stored."""

    act: Callable[[], object] | None = None
    wait = 0

    def plan(self, moment: int, act: Callable[[], object]) -> None:
        self.wait, self.act = moment, act

    def strike(self) -> None:
        super().strike()
        self.pass_by()

    def pass_by(self, index: int = 0) -> None:
        self.wait -= 1
        if self.wait == 0 and self.act is not None:
            act, self.act = self.act, None
            act()


class FatefulCells(list[int]):
    def __init__(self, cells: list[int], fate: Fate) -> None:
        super().__init__(cells)
        self.fate = fate
        self.watch: Callable[[int], None] | None = None
        """Called before a cell is read."""

    def __getitem__(self, index: Any) -> Any:
        if self.watch is not None and isinstance(index, int):
            self.watch(index)
        return super().__getitem__(index)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.fate.strike()
        super().__setitem__(index, value)


class Fewer(list[int]):
    """The cells of the first slots, as a process sees them that has not mapped the others."""

    def __init__(self, cells: Any, slots: int) -> None:
        super().__init__([0] * (slots * SLOT_SIZE))
        self.cells = cells

    def __getitem__(self, index: Any) -> Any:
        super().__getitem__(index)  # raises where that is
        return self.cells[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__getitem__(index)
        self.cells[index] = value


class Runtime(ThreadRuntime):
    """A clock that is one further on whenever it is looked at, and cells that can fail."""

    def __init__(self, fate: Fate) -> None:
        waiters = (WAIT_ITEM, WAIT_ROOM, WAIT_END)
        super().__init__(HEAD_SIZE, waiters)
        self.head: Cells = FatefulCells([0] * HEAD_SIZE, fate)
        self._cells = self.slots = FatefulCells([], fate)
        self.items, self.room, self.end = (
            Condition(self.head, index, TokenQueue()) for index in waiters
        )
        self.time = 0

    def now(self) -> int:
        self.time += 1
        return self.time


class Log:
    """The views of some processes of one log, and what should be on it, the next one first."""

    def __init__(
        self,
        path: Path,
        views: int = 1,
        *,
        lockless: bool = False,
        maxsize: int = 0,
        fate: Fate | None = None,
    ) -> None:
        path.mkdir(exist_ok=True)
        self.path = path
        self.lockless = lockless
        self.fate = fate or Fate()
        self.runtime = Runtime(self.fate)
        self.head = self.runtime.head
        self.head[MAXSIZE] = maxsize
        self.views = [self.attach() for _ in range(views)]
        ledger = self.ledger
        for view in self.ledgers:
            view.me = 1
        assert ledger.open_process(100, lambda slot: None) == 1
        self.expected: deque[tuple[Any, int]] = deque()

    def attach(self) -> LogChannel:
        channel = LogChannel(self.head, str(self.path))
        ledger = Ledger(self.runtime, channel)
        channel.begin(ledger)
        if self.lockless:
            channel.pass_the_lock_by(list_gate)
        return channel

    @property
    def ledgers(self) -> list[Ledger]:
        return [view._ledger for view in self.views]

    @property
    def ledger(self) -> Ledger:
        return self.ledgers[0]

    @property
    def cells(self) -> Cells:
        return self.runtime.slots

    def append(self, payload: bytes, tag: int = 7, view: int = 0) -> None:
        self.views[view].append(payload, tag)
        self.expected.append((payload, tag))

    def attempt(self, store: int, call: Callable[..., object], *args: object) -> bool:
        """Call, but for that store and what follows. True: it came to its end before."""
        self.fate.left = store
        try:
            call(*args)
        except Interrupted:
            return False
        finally:
            self.fate.left = None
        return True

    def commit(self) -> None:
        """What the ledger does once it has what `peek` returned."""
        self.head[TAKEN] += 1

    def take(self, view: int = 0) -> None:
        """Take one record and check that it is the right one."""
        assert self.views[view].peek() == self.expected[0]
        self.commit()
        self.expected.popleft()

    def check(self) -> None:
        assert {view.size() for view in self.views} == {len(self.expected)}

    def peek_and_commit(self) -> None:
        assert self.views[0].peek() in self.expected
        self.commit()

    def drain(self, view: int = 0) -> None:
        while self.expected:
            self.take(view)
        assert self.views[view].peek() is EMPTY
        self.check()

    def tail(self, base: int = 0) -> tuple[int, int, int]:
        """Of a lane: the file of the next record, its index there, where its payload ends."""
        parity = self.cells[base + PUT] & 1
        position = self.cells[base + TAIL + parity]
        low = self.cells[base + LOW + parity]
        return position >> FILE_SHIFT, position >> PLACE_BITS & INDEX_MASK, low

    def files(self) -> dict[str, int]:
        return {file.name: file.stat().st_size for file in self.path.iterdir()}

    def writer(self, view: int = 0) -> Writer:
        return Writer(self, view)

    def putter(self, view: int = 0) -> Putter:
        return Putter(self, view)

    def reader(self, view: int = 0) -> Reader:
        return Reader(self, view)

    def promised(self) -> int:
        """Items queued, and as many as producers have room for."""
        cells = self.cells
        bases = self.views[0]._bases()
        room = sum(max(cells[base + GRANT] - cells[base + PUT], 0) for base in bases)
        return self.views[0].size() + room


class Writer:
    """A producer with a lane of its own; what it does is what `_Putting` does."""

    def __init__(self, log: Log, view: int = 0) -> None:
        self.log = log
        self.channel = log.views[view]
        self.slot, self.number = self.channel._ledger.open(PRODUCER, "")
        lane = self.channel.lane(self.slot, self.number)
        assert lane is not None
        lane.head, lane.dumps, lane.plain = log.head, bytes, frozenset()
        self.lane: Lane = lane
        self.base = lane.base

    def write(self, payload: bytes, tag: int = 0, count: int = 1) -> None:
        """Write a record without publishing it."""
        size = len(payload)
        large = size > INLINE or count > 1
        if not self.lane.has_room(max(size, INLINE + 1) if large else size):
            self.extend(INLINE + 1 + size)
        lane = self.lane
        at = ENTRY_BYTES * (lane.n + 1)
        stamp = self.log.runtime.now()
        if large:
            start = lane.low - size
            pack_large(lane.map, at, start, stamp, tag or lane.number, size, count)
            lane.map[start : lane.low] = payload
            lane.lower(start)
        else:
            pack_small(lane.map, at, ~size, stamp, tag or lane.number, payload)

    def extend(self, length: int) -> None:
        self.lane = self.channel.extend(self.lane, length)

    def put(self, payload: bytes, tag: int = 0) -> None:
        self.write(payload, tag)
        self.publish(1)
        self.log.expected.append((payload, tag or self.number))

    def publish(self, count: int) -> None:
        lane = self.lane
        put = lane.put + count
        lane.cells[lane.put_at] = put
        lane.put = put
        lane.n += 1

    def put_chunk(self, items: list[Any]) -> None:
        self.write(marshal.dumps(items, 2), 0, len(items))
        self.publish(len(items))
        self.log.expected.extend((marshal.dumps(item), self.number) for item in items)

    def fill(self, count: int, start: int = 0) -> None:
        for n in range(start, start + count):
            self.put(b"%d" % n)

    def leave(self) -> None:
        """Close, as a producer does."""
        self.channel.leave(self.lane)
        self.channel._ledger.close(self.slot, self.number)


class Putter(Writer):
    """A producer of a bounded queue; what it does is what `_put_within` does."""

    def cell(self, field: int) -> int:
        return self.log.cells[self.base + field]

    @property
    def room(self) -> int:
        """For how many items it has room, until that is taken back."""
        return self.cell(GRANT) - self.cell(PUT)

    def begin(self) -> bool:
        """Go for one item more. False: it may not put it."""
        lane = self.lane
        lane.cells[lane.intent_at] = lane.put + 1
        lane.fence()
        return lane.cells[lane.limit_at] > lane.put

    def end(self) -> None:
        """Put the item that it went for."""
        self.put(b"%d.%d" % (self.number, self.lane.put))

    def give_up(self) -> None:
        """An interrupt ends it, or it found no room."""
        self.lane.cells[self.lane.intent_at] = self.lane.put

    def admit(self) -> bool:
        return self.channel.admit(self.lane)

    def put_own(self, most: int = 1000) -> int:
        """Put as much as it may without the lock, but not more than *most*. Returns how many."""
        for count in range(most):
            if not self.begin():
                self.give_up()
                return count
            self.end()
        return most

    def put_now(self) -> bool:
        """Put one. False: the queue is full."""
        while not self.begin():
            if not self.admit():
                self.give_up()
                return False
        self.end()
        return True

    def fill_up(self) -> int:
        """Put until the queue is full. Returns how many."""
        for count in range(1000):
            if not self.put_now():
                return count
        pytest.fail("it is never full")


class Reader:
    """A consumer that claims; what it does is what `_Getting._hand_out` does."""

    def __init__(self, log: Log, view: int = 0) -> None:
        self.log = log
        self.channel = log.views[view]
        self.ledger = self.channel._ledger
        self.slot, self.number = self.ledger.open(CONSUMER, "")
        self.hand = Hand(self.channel, False)
        self.hand.claims = True
        self.ledger.hands[self.slot] = {0: self.hand}

    def cell(self, field: int) -> int:
        return self.log.cells[self.slot * SLOT_SIZE + field]

    @property
    def rest(self) -> int:
        """How many records of its claim are left."""
        return max(self.cell(CLAIM_END) - self.cell(CLAIM_NEXT), 0)

    def claim(self, *, pace: int = 0) -> int:
        """Get a new claim; returns of how many records. *pace*: at least of so many, if it can."""
        if pace:
            self.hand.pace, self.hand.size = pace, 0
        self.channel.resume(self.slot, self.hand)
        if not self.channel.claim(self.slot, self.hand):
            return 0
        return len(self.hand.claim)

    def begin(self) -> bool:
        """What is done before an item is opened. False: it is not its own any more."""
        hand = self.hand
        cells = self.log.cells
        at = hand.next
        cells[hand.next_at] = at + 1
        return hand.gate(False)

    def end(self) -> Any:
        """What is done after that: the item's payload, or the item, if it was in a chunk."""
        self.hand.next += 1
        return self.hand.claim.pop()

    def hand_out(self) -> Any:
        """The next item of the claim, as a payload."""
        while self.hand.claim:
            if self.begin():
                return self.payload(self.end())
            self.ledger.take(self.slot, self.hand, 1)
        return EMPTY

    def payload(self, item: Any) -> bytes:
        if self.hand.opened and not self.hand.entries:
            item = marshal.dumps(item)
        return same(item)

    def get(self) -> Any:
        """Hand out, or claim and hand out."""
        item = self.hand_out()
        if item is EMPTY and self.ledger.take(self.slot, self.hand, 1):
            item = self.hand_out()
        return item

    def get_all(self) -> list[Any]:
        items = list[Any]()
        while (item := self.get()) is not EMPTY:
            items.append(item)
        return items

    def come_back(self) -> None:
        """Ask for more, so that what was handed out is finished."""
        self.channel.resume(self.slot, self.hand)

    def leave(self) -> None:
        """Close, as a consumer does."""
        self.ledger.close(self.slot, self.number)


MOST_FILES = 200


@pytest.fixture(autouse=True)
def few_files() -> Iterator[None]:
    """What tests leave in cycles, with its files open, goes before there are too many of them."""
    yield
    if len(os.listdir("/proc/self/fd")) > MOST_FILES:
        gc.collect()


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path)


@pytest.fixture
def fast(tmp_path: Path) -> Log:
    """One with two views, where puts pass the lock by and consumers claim."""
    return Log(tmp_path, 2, lockless=True)


def payloads(log: Log) -> list[Any]:
    return [same(payload) for payload, _ in log.expected]


def same(payload: bytes) -> bytes:
    """Without what `marshal` says about how often an object is referred to."""
    kind = payload[:1]
    if kind >= b"\x80" or kind == b"Z":
        return bytes((kind[0] & 0x7F | 0x20,)) + payload[1:]
    return payload


def filling(log: Log, leave: int = 0) -> bytes:
    """A payload whose record leaves *leave* bytes of the first segment."""
    _, n, low = log.tail()
    return bytes((low or FIRST_SIZE) - ENTRY_BYTES * (n + 2) - leave)


# Records and segments


def test_an_empty_log(log: Log) -> None:
    channel = log.views[0]
    assert not channel.atomic
    assert not channel.recheck()
    assert channel.size() == 0
    assert channel.peek() is EMPTY
    assert channel.pull_into([]) is None
    assert log.files() == {}


@pytest.mark.parametrize("length", [0, 1, INLINE - 1, INLINE, INLINE + 1, 1000])
def test_a_record_is_kept_as_it_is(log: Log, length: int) -> None:
    payload = random.Random(length).randbytes(length)
    log.append(payload, 1 << 50)
    log.append(b"behind", -3)
    # Small ones are in their entries, and take no room beside.
    assert log.tail() == (0, 2, FIRST_SIZE - (length if length > INLINE else 0))
    log.check()
    log.drain()


@pytest.mark.parametrize("lockless", [False, pytest.param(True, marks=lockless)])
def test_the_size_is_of_one_moment(tmp_path: Path, lockless: bool) -> None:
    """It may be asked for without the lock, while others put and take."""
    log = Log(tmp_path, lockless=lockless)
    log.append(b"a", 1)
    races = 3

    def race(index: int) -> None:
        nonlocal races
        if index == PUT and races:
            races -= 1
            log.runtime.slots.watch = None
            log.cells[PUT] += 1
            log.head[TAKEN] += 1
            log.runtime.slots.watch = race

    log.runtime.slots.watch = race
    assert log.views[0].size() == 1
    assert races == 0


@lockless
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("lock", ["none", "taken", "free"])
def test_a_count_that_is_disturbed_at_every_look(
    tmp_path: Path, lock: str, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is never above what there was; and where the lock keeps others away, it is exact."""
    log = Log(tmp_path, lockless=True)
    log.append(b"a", 1)
    held = 0

    def claimed(_: LogChannel) -> int:
        """One is claimed, handed out, and another is put; the claims are looked at in between."""
        nonlocal held
        if mutex.locked() and lock == "free":
            return held
        found = 0
        for step in range(2):
            if late == bool(step):
                log.head[TAKEN] += 1
                held = 1
            else:
                log.cells[PUT] += held
                held = 0
            found = found if step else held
        return found

    mutex = threading.Lock()
    if lock != "none":
        trylock = guard(mutex.acquire, mutex.__exit__, False)
        log.views[0].pass_the_lock_by(list_gate, trylock)
    monkeypatch.setattr(LogChannel, "claimed", claimed)
    with mutex if lock == "taken" else nullcontext():
        assert log.views[0].size() == (0 if late and lock != "free" else 1)


def test_looking_takes_nothing(log: Log) -> None:
    log.append(b"a")
    log.append(b"b")
    channel = log.views[0]
    assert channel.peek() == channel.peek() == (b"a", 7)
    assert channel.size() == 2
    log.drain()


def test_unwrap_undoes_peek(log: Log) -> None:
    log.append(b"a", 5)
    channel = log.views[0]
    payload, tag = channel.unwrap(channel.peek())
    log.commit()
    log.expected.clear()
    log.append(payload, tag)
    log.drain()


@pytest.mark.parametrize("leave", [0, 1, 63, 64, 65, 128])
@pytest.mark.parametrize("length", [INLINE, INLINE + 1, 100])
def test_a_segment_is_filled_to_its_end(log: Log, leave: int, length: int) -> None:
    """The next record begins a segment exactly when it has no room."""
    log.append(filling(log, leave))
    assert log.tail() == (0, 1, 2 * ENTRY_BYTES + leave)
    log.append(bytes(range(length)))
    needs = ENTRY_BYTES + (length if length > INLINE else 0)
    assert log.tail()[:2] == ((0, 2) if leave >= needs else (1, 1))
    log.append(b"and on")
    log.drain()


def test_a_record_larger_than_a_segment_gets_one_of_its_size(log: Log) -> None:
    log.append(b"small")
    large = random.Random(1).randbytes(LARGEST_SIZE + 5)
    log.append(large)
    log.append(b"behind")
    size = log.files()["s0.1"]
    assert LARGEST_SIZE < len(large) + 2 * ENTRY_BYTES <= size < len(large) + 2 * 4096
    assert size % 4096 == 0
    log.drain()


def test_an_oversized_segment_is_removed_when_it_is_drained(log: Log) -> None:
    log.append(bytes(KEPT_SIZE + 1))
    log.append(bytes(KEPT_SIZE + 1))
    log.append(b"last")
    assert list(log.views[0]._kept[0]) == [0], "the others do not stay mapped"
    log.drain()
    assert "s0.1" not in log.files()
    # The empty first segment is the spare.
    assert log.cells[SPARE] == 1
    assert log.files()["s0.0"] == FIRST_SIZE


def test_no_oversized_segment_becomes_the_spare(log: Log) -> None:
    """Not even where there is no other."""
    log.append(filling(log))
    log.append(bytes(KEPT_SIZE))
    log.take()
    log.views[0].peek()
    assert log.cells[SPARE] == 1
    log.append(bytes(5000))
    assert log.tail()[0] == 0
    assert log.cells[SPARE] == 0
    log.take()
    log.take()
    log.views[0].peek()
    assert log.cells[SPARE] == 0
    assert log.files() == {"s0.0": FIRST_SIZE}


def test_segments_for_large_records_are_written_again(log: Log) -> None:
    """Fresh memory costs several times what copying to it does."""
    for _ in range(10):
        log.append(bytes(KEPT_SIZE // 2))
        log.take()
    log.views[0].peek()
    assert log.cells[FILES] <= 4
    assert len(log.files()) <= 3


@pytest.mark.parametrize(("more", "pages"), [(-1, 0), (0, 0), (1, 1), (4096, 1)])
def test_an_oversized_segment_has_no_page_too_many(log: Log, more: int, pages: int) -> None:
    log.append(filling(log))
    size = 2 * LARGEST_SIZE
    log.append(bytes(size - 2 * ENTRY_BYTES + more))
    assert log.files()["s0.1"] == size + 4096 * pages
    log.drain()


def test_few_segments_stay_mapped(log: Log) -> None:
    gc.collect()  # the files of tests before this one
    before = len(os.listdir("/proc/self/fd"))
    other = log.attach()
    for _ in range(10):
        log.append(bytes(FIRST_SIZE))
        assert len(os.listdir("/proc/self/fd")) <= before + KEPT
    assert other.peek() is not EMPTY
    assert len(os.listdir("/proc/self/fd")) == before + KEPT + 2
    log.views.append(other)
    while log.expected:
        log.take(1)
        assert len(os.listdir("/proc/self/fd")) <= before + 2 * KEPT


@pytest.mark.parametrize("gone", ["s0.1", "everything"])
def test_files_that_somebody_else_removed(log: Log, gone: str) -> None:
    log.append(filling(log))
    log.append(b"in the second segment")
    log.take()
    for file in log.path.iterdir():
        if gone in (file.name, "everything"):
            file.unlink()
    other = log.attach()
    with pytest.raises(ChannelBroken, match="removed by somebody else"):
        other.append(b"more", 1)
    assert log.head[STATE] == BROKEN


def test_a_directory_that_somebody_else_removed(log: Log) -> None:
    log.append(filling(log))
    for file in log.path.iterdir():
        file.unlink()
    log.path.rmdir()
    with pytest.raises(ChannelBroken, match="removed by somebody else"):
        log.append(b"in a segment that can't be made")
    assert log.head[STATE] == BROKEN
    log.drain()


def test_segments_grow_up_to_a_limit(log: Log) -> None:
    payload = bytes(FIRST_SIZE // 2)
    for _ in range(700):
        log.append(payload)
    assert set(log.files().values()) == {FIRST_SIZE << n for n in range(7)}
    assert max(log.files().values()) == LARGEST_SIZE
    log.drain()


def test_drained_segments_are_used_again(log: Log) -> None:
    """However much goes through, there are never more files than what is queued needs."""
    payload = bytes(10_000)
    for _ in range(3):
        log.append(payload)
    for _ in range(400):
        log.append(payload)
        log.take()
        assert len(log.files()) <= 3
    assert log.cells[FILES] <= 3, "no file was made twice"
    log.drain()


def test_the_spare_is_used_if_it_is_large_enough(log: Log) -> None:
    log.append(filling(log))
    log.append(b"in the second")
    log.take()
    log.take()
    assert log.files() == {"s0.0": FIRST_SIZE, "s0.1": 2 * FIRST_SIZE}
    assert log.cells[SPARE] == 1
    _, n, low = log.tail()
    log.append(bytes(low - ENTRY_BYTES * (n + 2)))
    log.append(bytes(FIRST_SIZE - 2 * ENTRY_BYTES))  # exactly large enough for this
    assert log.tail() == (0, 1, 2 * ENTRY_BYTES)
    assert log.cells[SPARE] == 0
    assert log.cells[FILES] == 2
    log.drain()


def test_a_spare_that_is_too_small_goes(log: Log) -> None:
    log.append(filling(log))
    log.append(b"in the second")
    log.take()
    log.take()
    log.append(bytes(2 * FIRST_SIZE))
    assert "s0.0" not in log.files()
    assert log.tail()[0] == 2
    assert log.cells[SPARE] == 0
    log.drain()


def test_only_one_spare_is_kept(log: Log) -> None:
    for _ in range(4):
        log.append(bytes(FIRST_SIZE))
    log.append(b"last")
    log.drain()
    spare = log.cells[SPARE] - 1
    assert set(log.files()) == {f"s0.{spare}", f"s0.{log.tail()[0]}"}


def test_the_records_of_a_segment_used_again_are_those_put_last(log: Log) -> None:
    """What was there before, also in its header, is not seen any more."""
    for n in range(5000):
        log.append(b"%d" % n, n)
        log.append(bytes(n % 3 * 100), n)
        log.take()
        log.take()
    assert log.cells[FILES] <= 3
    log.drain()


def test_a_segment_used_again_may_hold_more_records(log: Log) -> None:
    for _ in range(10 + 21):
        log.append(bytes(6000))
        log.take()
    log.append(b"in the second")
    log.take()
    assert log.cells[SPARE] == 1
    _, n, low = log.tail()
    log.append(bytes(low - ENTRY_BYTES * (n + 2)))
    for number in range(500):
        log.append(b"%d" % number)
    assert log.tail()[:2] == (0, 500)
    log.drain()


def test_clear_removes_what_nobody_writes(log: Log) -> None:
    for _ in range(5):
        log.append(bytes(FIRST_SIZE))
    log.take()
    last = f"s0.{log.tail()[0]}"
    log.head[DROPPED] += 4
    log.views[0].clear()
    assert set(log.files()) == {last}
    log.views[0].clear()  # files that are gone do no harm
    log.path.joinpath(last).unlink()
    log.path.rmdir()
    log.views[0].clear()


def test_after_a_cancel_an_item_can_still_be_given_back(tmp_path: Path) -> None:
    """By a process that has never written: it was interrupted in `get`, and closes now."""
    log = Log(tmp_path, 2)
    for _ in range(3):
        log.append(bytes(FIRST_SIZE))
    log.take(1)
    log.head[STATE] = CANCELLED | CLOSED
    log.head[DROPPED] += 2
    log.views[0].clear()
    log.expected.clear()
    log.views[1].append(b"given back", 1)
    assert not log.head[STATE] & BROKEN
    assert log.views[1].size() == 1


@lockless
def test_a_put_that_a_cancel_overtakes_is_refused(fast: Log) -> None:
    """It had looked for a cancel just before, and finds its spare segment gone."""
    writer, reader = fast.writer(), fast.reader()
    writer.fill(1100)
    for _ in range(1050):
        reader.get()
    assert fast.cells[writer.base + SPARE]
    writer.channel._kept.clear()
    fast.ledgers[1].cancel(None)
    with pytest.raises(Cancelled):
        writer.channel.extend(writer.lane, 2 * FIRST_SIZE)
    assert not fast.head[STATE] & BROKEN


def test_files_are_private(log: Log) -> None:
    log.append(b"")
    assert [file.stat().st_mode & 0o777 for file in log.path.iterdir()] == [0o600]


def test_symlinks_are_not_followed(log: Log, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "s0.0"
    elsewhere.write_bytes(bytes(FIRST_SIZE))
    (log.path / "s0.0").symlink_to(elsewhere)
    with pytest.raises(OSError, match="symbolic links"):
        log.append(b"secret")
    log.cells[FILES] = 1
    with pytest.raises(OSError, match="symbolic links"):
        log.append(b"secret")
    assert elsewhere.read_bytes() == bytes(FIRST_SIZE)


@pytest.mark.parametrize("seed", range(6))
def test_several_processes_at_random(tmp_path: Path, seed: int) -> None:
    """Views that attach at any time see the same queue."""
    dice = random.Random(seed)
    log = Log(tmp_path, views=3)
    sizes = (0, 1, INLINE, INLINE + 1, 5000, FIRST_SIZE - 2 * ENTRY_BYTES, FIRST_SIZE, 200_000)
    for tag in range(600):
        view = dice.randrange(3)
        if dice.random() < 0.02:
            log.views[view] = log.attach()
        if dice.random() < (0.6 if len(log.expected) < 40 else 0.3):
            log.append(dice.randbytes(dice.choice(sizes)), tag, view)
        elif log.expected:
            log.take(view)
        else:
            assert log.views[view].peek() is EMPTY
        log.check()
    log.drain()
    assert len(log.files()) <= 2


# Interrupted between two stores


def near_the_end(log: Log) -> None:
    """Some records, and room for one small one in the first segment."""
    log.append(b"first")
    log.append(filling(log, ENTRY_BYTES))


def over_the_end(log: Log) -> None:
    """Only the first segment's last record is left to take, and there is a next segment."""
    near_the_end(log)
    log.append(bytes(100))
    log.append(bytes(200))
    log.take(len(log.views) - 1)  # which has the first segment open from now on


def with_a_spare(log: Log) -> None:
    over_the_end(log)
    log.take()
    log.take()
    assert log.cells[SPARE]
    _, n, low = log.tail()
    log.append(bytes(low - ENTRY_BYTES * (n + 2)))


SITUATIONS = (near_the_end, over_the_end, with_a_spare)


def carry_on(log: Log, record: tuple[bytes, int]) -> None:
    """Everybody still puts and takes what is right, small and large, over some segments."""
    views = itertools.cycle(range(len(log.views)))
    for length in (3, 16, 100, 30_000, 30_000, 30_000, 8, FIRST_SIZE, 0, 30_000):
        log.append(bytes([length % 251]) * length, record[1] + 1, next(views))
        log.check()
    while len(log.expected) > 2:
        log.take(next(views))
    for length in (50_000, 70_000, 16):
        log.append(bytes([length % 249]) * length, record[1] + 2, next(views))
    log.drain(next(views))


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("length", [16, INLINE + 1, 30_000, FIRST_SIZE])
@pytest.mark.parametrize("situation", SITUATIONS)
def test_append_is_interrupted_before_any_store(
    tmp_path: Path, situation: Callable[[Log], None], length: int, first: int
) -> None:
    """Then it has not happened, for the one that was interrupted and for the others."""
    for store in itertools.count(1):
        log = Log(tmp_path / str(store), views=2)
        situation(log)
        log.check()
        log.fate.left = store
        record = (b"x" * length, 9)
        try:
            log.views[1].append(*record)
        except Interrupted:
            log.check()
            log.append(b"next", 1, first)
            carry_on(log, record)
        else:
            assert store > 3, "three stores at least"
            log.fate.left = None
            log.expected.append(record)
            carry_on(log, record)
            return


@pytest.mark.parametrize("length", [16, 30_000])
def test_append_is_interrupted_between_two_calls(
    tmp_path: Path, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that was written and not published is written over by the next one."""
    log = Log(tmp_path)
    near_the_end(log)

    write = LogChannel._write

    def interrupted(channel: LogChannel, lane: Lane, payload: bytes, tag: int, stamp: int) -> None:
        write(channel, lane, payload, tag, stamp)
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(LogChannel, "_write", interrupted)
        with pytest.raises(Interrupted):
            log.views[0].append(b"x" * length, 9)
    log.check()
    carry_on(log, (b"", 1))


def test_two_appends_in_a_row_are_interrupted(tmp_path: Path) -> None:
    """One that had begun a segment, and one that then had begun the old segment again."""
    log = Log(tmp_path, views=2)
    near_the_end(log)
    for view, length in ((1, 100), (0, 16)):
        log.fate.left = 1 + (view == 1)  # the first store after the one to FILES
        with pytest.raises(Interrupted):
            log.views[view].append(bytes(length), 1)
    log.fate.left = None
    log.append(b"a" * 100, 1, view=1)
    log.append(b"b" * 100, 2, view=0)
    log.drain(0)


@pytest.mark.parametrize("survives", [True, False])
@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_take_is_interrupted_before_any_store(
    tmp_path: Path, situation: Callable[[Log], None], survives: bool
) -> None:
    """Until the store to TAKEN nothing was taken, and the next one to look sees it all."""
    for store in itertools.count(1):
        log = Log(tmp_path / str(store), views=2)
        situation(log)
        log.append(b"z" * 40, 3)
        log.fate.left = store
        try:
            assert log.views[1].peek() == log.expected[0]
            log.commit()
        except Interrupted:
            pass
        else:
            assert store > 6
            return
        log.check()
        if not survives:
            log.views[1] = log.attach()
        carry_on(log, (b"", 4))


def test_another_process_puts_where_an_interrupted_one_would_have(tmp_path: Path) -> None:
    """The segment that an interrupted append began is begun again by whoever comes first."""
    log = Log(tmp_path, views=2)
    near_the_end(log)
    log.fate.left = 2  # the store to TAIL
    with pytest.raises(Interrupted):
        log.views[1].append(bytes(100), 1)
    log.append(b"a" * 100, 1, view=0)
    log.append(b"b" * 100, 2, view=1)
    log.append(b"c" * 100, 3, view=0)
    log.drain(0)


def test_left_overs_of_an_interrupted_append_are_replaced(tmp_path: Path) -> None:
    log = Log(tmp_path)
    (tmp_path / "s0.1").write_bytes(b"left")
    log.append(filling(log))
    log.append(b"second segment")
    assert log.files() == {"s0.0": FIRST_SIZE, "s0.1": 2 * FIRST_SIZE}
    log.drain()


# No room


def refuse(*args: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("situation", SITUATIONS)
def test_no_room_for_a_segment(
    tmp_path: Path, situation: Callable[[Log], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The put raises, nothing is half done, and the queue goes on once there is room."""
    log = Log(tmp_path, views=2)
    situation(log)
    before = list(log.cells)
    with monkeypatch.context() as patch:
        patch.setattr("os.posix_fallocate", refuse)
        for view in (0, 1, 0):
            with pytest.raises(OSError, match="No space left"):
                log.views[view].append(bytes(2 * FIRST_SIZE), 1)
    for cell in (PUT, TAIL, TAIL + 1, LOW, LOW + 1):
        assert log.cells[cell] == before[cell]
    assert log.cells[FILES] == before[FILES] + 3, "no number is used twice"
    for number in range(before[FILES], log.cells[FILES] + 1):
        assert f"s0.{number}" not in log.files()
    log.check()
    log.append(b"small, where there still is room")
    carry_on(log, (b"", 1))


def test_no_room_for_the_first_segment(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("os.posix_fallocate", refuse)
        with pytest.raises(OSError, match="No space left"):
            log.append(b"a")
    assert log.files() == {}
    log.append(b"a")
    log.drain()


SMALL_FILES = """
import resource, signal
from iterable_queue import IterableQueue

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
iq = IterableQueue()
out, source = iq.get_producer(), iq.get_consumer()
out.put(b"before")
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17, resource.RLIM_INFINITY))
for _ in range(3):
    try:
        out.put(bytes(1 << 18))
    except OSError as error:
        print(type(error).__name__, error.errno)
out.put(b"between")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
out.put(bytes(1 << 18))
out.close()
iq.close()
print([len(item) for item in source], iq.join(5))
"""


def test_a_limit_of_the_size_of_files() -> None:
    """The system's own refusal: OSError in `put`, and the queue goes on."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    run = subprocess.run(
        [sys.executable, "-c", SMALL_FILES],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert run.stderr == ""
    assert run.stdout.splitlines() == ["OSError 27"] * 3 + ["[6, 7, 262144] True"]
    assert run.returncode == 0, signal.strsignal(-run.returncode)


def test_reserving_where_the_system_can_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `posix_fallocate` files at least get their size."""
    monkeypatch.delattr("os.posix_fallocate")
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        reserve(fd, 12345)
        assert os.fstat(fd).st_size == 12345
    finally:
        os.close(fd)


# Lanes


@lockless
def test_without_it_there_are_no_lanes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Log(tmp_path / "a").views[0].lane(1, 1) is None
    monkeypatch.setattr("iterable_queue._fence.is_supported", lambda: False)
    log = Log(tmp_path / "b", lockless=True)
    assert not log.views[0].lockless
    assert log.views[0].lane(1, 1) is None
    assert log.ledger.claims is None


@lockless
def test_each_producer_has_a_lane(fast: Log) -> None:
    first, second = fast.writer(), fast.writer(1)
    assert first.base != second.base
    assert [fast.cells[lane.base + OWNER] for lane in (first, second)] == [first.slot, second.slot]
    for n in range(10):
        (first, second)[n % 2].put(b"%d" % n)
    fast.check()
    assert fast.views[0].recheck()
    reader = fast.reader(1)
    assert reader.get_all() == payloads(fast)
    assert {name.split(".")[0] for name in fast.files()} == {
        f"s{lane.base // SLOT_SIZE}" for lane in (first, second)
    }


@lockless
def test_the_same_producer_gets_its_lane_again(fast: Log) -> None:
    """Its first call was interrupted after that."""
    writer = fast.writer()
    again = writer.channel.lane(writer.slot, writer.number)
    assert again is not None
    assert again.base == writer.base


@lockless
@pytest.mark.parametrize("length", [5, 1000])
def test_a_lane_that_was_left_is_written_on_by_the_next(fast: Log, length: int) -> None:
    first = fast.writer()
    first.put(b"a" * length)
    lane = first.lane
    low = lane.low
    first.leave()
    assert (lane.put, lane.room, lane.low) == (-1, -1, 0), "nothing has room there any more"
    second = fast.writer(1)
    assert second.base == first.base
    assert fast.cells[second.base + LEFT_AT] == fast.cells[second.base + PUT] == 1
    assert (second.lane.segment.file, second.lane.n, second.lane.low) == (0, 1, low)
    second.put(b"b" * length)
    assert fast.reader().get_all() == payloads(fast)


@lockless
def test_a_lane_is_left_by_the_last_of_its_successors(fast: Log) -> None:
    writer = fast.writer()
    began = writer.lane
    writer.put(bytes(2 * FIRST_SIZE))
    assert began.successor is writer.lane
    writer.channel.leave(began)
    assert writer.lane.put == -1
    assert fast.cells[writer.base + LEFT_AT] == 1
    assert fast.tail(writer.base)[0] == 1


def one_record(writer: Writer) -> None:
    writer.put(b"a")


def small_and_large(writer: Writer) -> None:
    writer.fill(20)
    writer.put(bytes(3000))
    writer.put(bytes(5000))
    writer.fill(3)


def some_segments(writer: Writer) -> None:
    writer.fill(2500)
    writer.put(bytes(3 * FIRST_SIZE))
    writer.fill(3)


def some_chunks(writer: Writer) -> None:
    writer.fill(3)
    writer.put_chunk(list(range(100)))
    writer.put_chunk(["a", None, 1.5])
    writer.fill(3)


def a_large_one_first(writer: Writer) -> None:
    writer.put(bytes(FIRST_SIZE))


def a_full_segment(writer: Writer) -> None:
    writer.fill(FIRST_SIZE // ENTRY_BYTES - 1)


def only_a_segment(writer: Writer) -> None:
    """It began another segment, and was killed before it put what that was for."""
    writer.fill(3)
    writer.lane = writer.channel.extend(writer.lane, FIRST_SIZE)


HISTORIES = (
    one_record,
    small_and_large,
    some_segments,
    some_chunks,
    a_large_one_first,
    a_full_segment,
    only_a_segment,
)


@lockless
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("taken", [0, 1, 5, 60])
@pytest.mark.parametrize("history", HISTORIES)
def test_the_end_of_a_dead_producers_lane_is_found(
    fast: Log, history: Callable[[Writer], None], taken: int, left: bool
) -> None:
    """By counting on from where it is read, even within a chunk, though others left it before."""
    if left:
        first = fast.writer()
        first.fill(2, 9000)
        first.leave()
    dead = fast.writer()
    history(dead)
    reader = fast.reader(1)
    seen = list[Any]()
    for _ in range(min(taken, len(fast.expected))):
        seen.append(reader.get())
    fast.ledger.close(dead.slot, dead.number)
    for view in fast.views:
        view._kept.clear()
    alive = fast.writer(1)
    assert alive.base == dead.base
    before = dead.lane
    if history is not only_a_segment:
        lane = alive.lane
        assert (lane.segment.file, lane.n) == (before.segment.file, before.n)
        assert lane.low == before.low
    alive.fill(5, 5000)
    alive.put(bytes(6000))
    assert seen + reader.get_all() == payloads(fast)


@lockless
@pytest.mark.parametrize("history", HISTORIES)
def test_a_producer_dies_as_it_leaves_its_lane(
    tmp_path: Path, history: Callable[[Writer], None]
) -> None:
    """Its end is found whichever store of that was the last."""
    for store in itertools.count(1):
        log = Log(tmp_path / str(store), 2, lockless=True)
        first = log.writer()
        history(first)
        first.leave()
        dying = log.writer()
        dying.lane = dying.channel.extend(dying.lane, LARGEST_SIZE)  # and puts nothing
        over = log.attempt(store, dying.leave)
        log.views[1].mend()
        log.cells[dying.base + OWNER] = 0
        alive = log.writer(1)
        assert alive.base == first.base
        alive.fill(1200, 5000)
        alive.put(bytes(2 * FIRST_SIZE))
        assert log.reader(1).get_all() == payloads(log)
        if over:
            assert store > 4
            return


@lockless
def test_a_producer_dies_as_it_leaves_its_spare_segment(tmp_path: Path) -> None:
    """Which is smaller than the one before, where payloads began behind the end of this one."""
    for store in itertools.count(1):
        log = Log(tmp_path / str(store), 2, lockless=True)
        first, reader = log.writer(), log.reader(1)
        first.fill(1023 + 2047)
        seen = [reader.get() for _ in range(1100)]
        assert log.cells[first.base + SPARE] == 1
        first.leave()
        dying = log.writer()
        dying.extend(1)
        assert dying.lane.segment.file == 0
        over = log.attempt(store, dying.leave)
        log.cells[dying.base + OWNER] = 0
        log.writer(1).fill(1500, 5000)
        assert seen + reader.get_all() == payloads(log)
        if over:
            return


@lockless
def test_a_put_is_interrupted_before_it_counts(fast: Log) -> None:
    """What is written over it is what counts."""
    writer = fast.writer()
    for length in (5, 500, FIRST_SIZE):
        writer.write(b"x" * length)
        fast.check()
        writer.put(b"small")
        writer.put(bytes(100))
    assert fast.reader().get_all() == payloads(fast)


@lockless
@pytest.mark.parametrize("history", [one_record, small_and_large, some_segments, some_chunks])
def test_when_a_producer_last_put(fast: Log, history: Callable[[Writer], None]) -> None:
    other, writer = fast.writer(), fast.writer()
    other.put(b"before")
    assert fast.views[1].last_put(writer.slot) == 0, "nothing yet"
    history(writer)
    last = fast.runtime.time  # which every put has looked at once
    other.put(b"behind")
    assert fast.views[1].last_put(writer.slot) == last
    assert fast.views[1].last_put(other.slot) == last + 1
    reader = fast.reader()
    while reader.get() is not EMPTY:
        pass
    assert fast.views[1].last_put(writer.slot) == last, "though all was taken"
    writer.leave()
    assert fast.views[1].last_put(writer.slot) == 0, "it has no lane any more"


@lockless
def test_a_lane_is_seen_by_a_process_that_had_mapped_less(fast: Log) -> None:
    """Its slot is beyond what was mapped when there were fewer."""
    ledger = fast.ledgers[1]
    reader = fast.reader(1)
    calls: tuple[Callable[[], object], ...] = (
        fast.views[1].size,
        fast.views[1].totals,
        fast.views[1].peek,
        lambda: fast.views[1].claim(reader.slot, reader.hand),
    )
    for call in calls:
        few = list(fast.cells[: fast.head[SLOTS] * SLOT_SIZE])
        writer = fast.writer()
        writer.put(b"a")
        ledger.cells = few
        call()
        assert len(ledger.cells) > len(few)


@lockless
@pytest.mark.parametrize("call", ["peek", "claim"])
def test_a_claim_is_recalled_by_a_process_that_had_mapped_less(fast: Log, call: str) -> None:
    fast.writer().fill(100)
    reader = fast.reader(1)
    count = fast.head[SLOTS] * SLOT_SIZE
    other = fast.reader(0)
    assert other.claim(pace=100) == 50
    for _ in range(50):
        fast.peek_and_commit()
    fast.views[0].roll()
    fast.views[1].size()
    few = list(fast.cells[:count])
    fast.ledgers[1].cells = few
    if call == "peek":
        assert fast.views[1].peek() is not EMPTY
    else:
        assert fast.views[1].claim(reader.slot, reader.hand)
    assert other.rest == 25


@lockless
def test_a_segment_is_drained_by_a_process_that_had_mapped_less(fast: Log) -> None:
    """Of those who could have a claim in it, some came since."""
    writer, reader = fast.writer(), fast.reader(1)
    writer.fill(1100)
    for _ in range(1000):
        reader.get()
    fast.reader()
    fast.ledgers[1].cells = Fewer(fast.cells, reader.slot + 1)
    assert [reader.get() for _ in range(100)] == payloads(fast)[1000:]
    assert fast.cells[writer.base + SPARE] == 1


@lockless
def test_lanes_are_scanned_again_if_the_oldest_is_too_young(fast: Log) -> None:
    """Two are put during a look at the lanes: the older one where it has looked already."""
    first, second = fast.writer(), fast.writer()
    assert first.base < second.base
    once = True

    def put_both(index: int) -> None:
        nonlocal once
        if once and index == second.base + PUT:
            once = False
            first.put(b"older")
            second.put(b"younger")

    fast.views[0]._bases()
    fast.runtime.slots.watch = put_both
    reader = fast.reader()
    assert reader.get_all() == [b"older", b"younger"]
    assert not once


@lockless
def test_mend_frees_the_lanes_of_those_who_have_gone(fast: Log) -> None:
    gone, open_ = fast.writer(), fast.writer()
    fast.cells[gone.slot * SLOT_SIZE] = 0
    for _ in range(2):
        fast.views[1].mend()
        assert fast.cells[gone.base + OWNER] == 0
        assert fast.cells[open_.base + OWNER] == open_.slot


@lockless
def test_mend_counts_a_lane_that_was_just_made(fast: Log) -> None:
    fast.writer()
    slot = fast.ledger.open_lane()  # killed before it let others know
    fast.views[1].mend()
    assert slot * SLOT_SIZE in fast.views[1]._bases()
    assert fast.writer(1).base == slot * SLOT_SIZE


# A segment more


@lockless
def test_a_thread_is_about_to_put_to_a_segment_that_was_closed(fast: Log) -> None:
    """It sees that by the lane's count, and goes on in what followed."""
    writer = fast.writer()
    writer.fill(3)
    old = writer.lane
    new = writer.channel.extend(old, FIRST_SIZE)
    assert (old.put, new.put, old.successor) == (-1, 3, new)
    assert (new.n, new.low, new.segment.file) == (0, new.segment.size, 1)
    assert writer.channel.extend(old, FIRST_SIZE) is old
    assert old.successor is new, "it was not followed by another one"
    writer.lane = new
    writer.put(bytes(FIRST_SIZE))
    assert fast.reader().get_all() == payloads(fast)


@lockless
def test_another_thread_has_made_room(fast: Log) -> None:
    writer = fast.writer()
    lane = writer.lane
    assert writer.channel.extend(lane, 100) is lane
    assert lane.put == 0
    assert fast.cells[writer.base + FILES] == 1


@lockless
def test_extend_closes_while_it_waits_for_the_disk(
    fast: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The producer is closed by another thread while a segment is made: nothing is put any more."""
    writer = fast.writer()
    writer.fill(3)
    lane = writer.lane
    making, closed = threading.Event(), threading.Event()

    def slow(fd: int, size: int) -> None:
        os.ftruncate(fd, size)
        making.set()
        assert closed.wait(20)

    monkeypatch.setattr("iterable_queue._channels.log.reserve", slow)
    thread = threading.Thread(target=writer.channel.extend, args=(lane, FIRST_SIZE))
    thread.start()
    try:
        assert making.wait(20)
        writer.leave()
    finally:
        closed.set()
        thread.join(20)
    assert not thread.is_alive()
    assert lane.put == -1
    assert lane.segment.cells[0] == 0, "the segment is not full"
    assert f"s{writer.base // SLOT_SIZE}.1" not in fast.files()
    monkeypatch.undo()
    after = fast.writer(1)
    assert after.lane.n == 3
    after.fill(3, 3)
    assert fast.reader().get_all() == payloads(fast)


@lockless
def test_a_nested_extend_is_refused(fast: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = fast.writer()
    with monkeypatch.context() as patch:

        def interrupting(*args: object) -> None:
            with pytest.raises(WouldDeadlock, match="nothing was changed"):
                writer.channel.extend(writer.lane, FIRST_SIZE)
            raise Interrupted

        patch.setattr("iterable_queue._channels.log.reserve", interrupting)
        with pytest.raises(Interrupted):
            writer.put(bytes(FIRST_SIZE))
    writer.put(bytes(FIRST_SIZE))
    assert fast.reader().get_all() == payloads(fast)


@lockless
def test_a_lane_finds_no_room(fast: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = fast.writer()
    with monkeypatch.context() as patch:
        patch.setattr("os.posix_fallocate", refuse)
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"):
                writer.put(bytes(FIRST_SIZE))
        writer.put(b"small")
    writer.put(bytes(FIRST_SIZE))
    assert fast.reader().get_all() == payloads(fast)


@lockless
@pytest.mark.parametrize("spare", [False, True])
def test_extend_is_interrupted_before_any_store(tmp_path: Path, spare: bool) -> None:
    for store in itertools.count(1):
        log = Log(tmp_path / str(store), 2, lockless=True)
        writer, reader = log.writer(), log.reader(1)
        seen = list[Any]()
        if spare:
            writer.fill(1100)
            for _ in range(1050):
                seen.append(reader.get())
            assert log.cells[writer.base + SPARE]
        over = log.attempt(store, writer.extend, 60_000)
        writer.fill(1200, 2000)
        writer.put(bytes(60_000))
        assert seen + reader.get_all() == payloads(log)
        if over:
            return


# Claims


@lockless
def test_nothing_to_claim(fast: Log) -> None:
    reader = fast.reader()
    assert reader.claim() == 0
    assert reader.hand.claim == []


@lockless
def test_a_claim_begins_behind_what_was_taken_under_the_lock(fast: Log) -> None:
    fast.writer().fill(3)
    fast.take(1)  # whose plan is not carried out yet
    fast.views[1].peek()
    assert fast.reader().get_all() == payloads(fast)


@lockless
def test_few_items_are_claimed_in_the_order_of_their_puts(fast: Log) -> None:
    """Though they are on two lanes: a claim ends before what is older on the other one."""
    writers = fast.writer(), fast.writer(1)
    runs = 3, 2, 40, 1, 1, 50, 4
    for index, run in enumerate(runs):
        writers[index % 2].fill(run, 100 * index)
    reader = fast.reader()
    seen = list[Any]()
    for run in runs:
        assert reader.claim(pace=1000) == run
        seen += [reader.hand_out() for _ in range(run)]
    assert seen == payloads(fast)


@lockless
def test_large_ones_too(fast: Log) -> None:
    writers = fast.writer(), fast.writer(1)
    runs = 3, 2, 4, 1
    for index, run in enumerate(runs):
        for n in range(run):
            writers[index % 2].put(bytes([10 * index + n]) * 100)
    reader = fast.reader()
    for run in runs:
        assert reader.claim(pace=1000) == run
        for _ in range(run):
            assert reader.hand_out() == fast.expected.popleft()[0]


@lockless
@pytest.mark.parametrize(("queued", "size"), [(FEW, 3), (FEW + 1, FEW)])
def test_of_many_a_claim_only_begins_with_the_oldest(fast: Log, queued: int, size: int) -> None:
    first, second = fast.writer(), fast.writer()
    first.fill(3)
    second.fill(1, 500)
    first.fill(queued - 4, 1000)
    assert fast.reader().claim(pace=1000) == size


@lockless
def test_what_comes_back_is_older_than_the_rest_of_its_lane(fast: Log) -> None:
    """So few are claimed in their order even then."""
    writer = fast.writer()
    writer.fill(100)
    gone, reader = fast.reader(), fast.reader(1)
    assert gone.claim(pace=20) == 20
    gone.channel.cut(gone.slot, 5)
    assert reader.claim(pace=100) == 15
    assert [reader.hand_out() for _ in range(15)] == payloads(fast)[5:20]
    assert reader.claim(pace=100) == 40, "half of what is queued"


@lockless
def test_the_pace_is_at_most_twice_the_one_before(fast: Log) -> None:
    fast.writer().fill(2 * CLAIM_MOST)
    fast.writer().fill(2 * CLAIM_MOST)
    reader = fast.reader()
    sizes = list[int]()
    while sum(sizes) < 2 * CLAIM_MOST - 2:
        sizes.append(reader.claim())
        for _ in range(sizes[-1]):
            reader.hand_out()
    # It ends at a segment's end, which halves nothing of what comes after.
    full = FIRST_SIZE // ENTRY_BYTES - 1
    assert sizes[:10] == [1 << n for n in range(10)]
    assert sum(sizes[:10]) == full == 1023
    assert sizes[10] == CLAIM_MOST


@lockless
@pytest.mark.parametrize(("slow", "pace"), [(1, 100), (2, 50), (10, 10), (10**6, 1)])
def test_a_claim_is_what_is_worked_through_in_time(fast: Log, slow: int, pace: int) -> None:
    fast.writer().fill(1000)
    reader = fast.reader()
    assert reader.claim(pace=100) == 100
    for _ in range(100):
        reader.hand_out()
    fast.runtime.time = reader.hand.since + slow * CLAIM_NS - 1
    assert reader.claim() == pace


@lockless
def test_a_claim_of_what_there_was_does_not_slow_the_next_one_down(fast: Log) -> None:
    writer = fast.writer()
    writer.fill(5)
    reader = fast.reader()
    assert reader.claim(pace=100) == 5
    for _ in range(5):
        reader.hand_out()
    writer.fill(1000, 5)
    assert reader.claim() == 200


@lockless
@pytest.mark.parametrize("others", [0, 1, 3, 50])
def test_each_open_consumer_gets_its_share(fast: Log, others: int) -> None:
    fast.writer().fill(400)
    reader = fast.reader()
    opened = [fast.reader(n % 2) for n in range(others)]
    fast.head[WAIT_ITEM] = 7  # who waits, and how many, does not matter
    size = 400 // (others + 1)
    assert reader.claim(pace=1000) == size
    for _ in range(size):
        reader.hand_out()
    for other in opened:
        other.leave()
    assert reader.claim(pace=1000) == 400 - size, "those that have closed get none"


@lockless
def test_few_items_are_claimed_one_by_one_where_there_are_others(fast: Log) -> None:
    fast.writer().fill(65)
    reader, other = fast.reader(), fast.reader(1)
    assert reader.claim(pace=1000) == 32
    assert [reader.hand_out() for _ in range(32)] == payloads(fast)[:32]
    for _ in range(3):
        assert reader.claim(pace=1000) == 1
        reader.hand_out()
    other.leave()
    fast.head[WORKERS] = 1  # which take one by one
    assert reader.claim(pace=1000) == 1
    reader.hand_out()
    fast.head[WORKERS] = 0
    assert reader.claim(pace=1000) == 29


@lockless
def test_a_claim_ends_at_a_segments_end(fast: Log) -> None:
    fast.writer().fill(1200)
    reader = fast.reader()
    assert reader.claim(pace=1000) == 1000
    assert [reader.hand_out() for _ in range(1000)] == payloads(fast)[:1000]
    assert reader.claim(pace=1000) == 23
    assert [reader.hand_out() for _ in range(23)] == payloads(fast)[1000:1023]
    assert reader.claim(pace=1000) == 177
    assert [reader.hand_out() for _ in range(177)] == payloads(fast)[1023:]


@lockless
def test_a_claim_ends_at_a_chunk(fast: Log) -> None:
    writer = fast.writer()
    writer.fill(70)
    writer.put_chunk([1, "two", 3.0, None, *range(96)])
    writer.fill(70, 70)
    reader = fast.reader()
    seen = list[Any]()
    for size, opened in ((70, False), (100, True), (70, False)):
        assert reader.claim(pace=500) == size
        assert reader.hand.opened == opened
        seen += [reader.hand_out() for _ in range(size)]
    assert seen == payloads(fast)


@lockless
def test_a_part_of_a_chunk_is_claimed(fast: Log) -> None:
    writer = fast.writer()
    writer.put_chunk(list(range(256)))
    writer.fill(3)
    reader, other = fast.reader(), fast.reader(1)
    seen = list[Any]()
    for who, size in ((reader, 30), (other, 100), (reader, 1), (other, 50)):
        assert who.claim(pace=size) == size
        assert who.hand.opened
        seen += [who.hand_out() for _ in range(size)]
    assert fast.views[0].peek() == (marshal.dumps(181), writer.number)
    assert seen + reader.get_all() == payloads(fast)


@lockless
def test_a_chunk_is_taken_item_by_item_under_the_lock(fast: Log) -> None:
    writer = fast.writer()
    writer.put_chunk([1, 2, 3])
    writer.put(b"between")
    writer.put_chunk([4, 5])
    fast.drain(1)


@lockless
def test_a_claim_counts_items_and_a_segment_records(fast: Log) -> None:
    """There are many more items than the segment has records; it ends all the same."""
    writer = fast.writer()
    room = FIRST_SIZE // ENTRY_BYTES - 1
    writer.fill(room - 30)
    writer.put_chunk(list(range(256)))
    assert writer.lane.segment.file == 0
    reader = fast.reader()
    seen = list[Any]()
    assert reader.claim(pace=room - 40) == room - 40
    seen += [reader.hand_out() for _ in range(room - 40)]
    assert reader.claim(pace=200) == 10
    assert seen + reader.get_all() == payloads(fast)


@lockless
def test_a_claim_has_no_more_bytes_than_a_limit(fast: Log) -> None:
    writer = fast.writer()
    for n in range(300):
        writer.put(bytes([n & 255]) * 5000)
    reader = fast.reader()
    seen = list[Any]()
    sizes = list[int]()
    while len(seen) < 200:
        sizes.append(reader.claim(pace=1000))
        assert 0 < sum(map(len, reader.hand.claim)) <= CLAIM_BYTES
        seen += [reader.hand_out() for _ in range(sizes[-1])]
    assert max(sizes) == CLAIM_BYTES // 5000
    assert seen + reader.get_all() == payloads(fast)


@lockless
def test_a_record_beyond_that_limit_is_claimed_alone(fast: Log) -> None:
    writer = fast.writer()
    for size in (CLAIM_BYTES + 1, 7, 2 * CLAIM_BYTES, 2 * CLAIM_BYTES):
        writer.put(bytes(size))
    writer.fill(FEW)
    reader = fast.reader()
    seen = list[Any]()
    for _ in range(4):
        assert reader.claim(pace=1000) == 1
        seen.append(reader.hand_out())
    assert seen + reader.get_all() == payloads(fast)


@lockless
@pytest.mark.parametrize("length", [INLINE + 1, 1000])
def test_bytes_that_are_the_item_are_claimed_alone(fast: Log, length: int) -> None:
    writer = fast.writer()
    writer.fill(10)
    writer.put(b"r" * length, RAW | writer.number)
    writer.put(b"s" * length, RAW | writer.number)
    writer.fill(FEW + 10, 10)
    reader = fast.reader()
    seen = list[Any]()
    for size, opened in ((10, False), (1, True), (1, True), (FEW + 10, False)):
        assert reader.claim(pace=1000) == size
        assert reader.hand.opened == opened
        for _ in range(size):
            seen.append(reader.hand_out())
    assert seen == payloads(fast)


@lockless
@pytest.mark.parametrize("length", [INLINE + 1, 1000])
def test_those_on_lane_0_too(fast: Log, length: int) -> None:
    """They are put by a worker."""
    for n in range(FEW + 1):
        fast.append(b"%d" % n)
    fast.append(b"r" * length, RAW | 7)
    fast.append(b"last")
    reader = fast.reader()
    seen = list[Any]()
    for size, opened in ((FEW + 1, False), (1, True)):
        assert reader.claim(pace=1000) == size
        assert reader.hand.opened == opened
        seen += [reader.hand_out() for _ in range(size)]
    assert seen + reader.get_all() == payloads(fast)


@lockless
def test_a_claim_is_not_younger_than_the_look_at_the_lanes(fast: Log) -> None:
    writer = fast.writer()
    writer.fill(100)
    fast.runtime.time += 1000
    writer.fill(100, 100)
    fast.runtime.time -= 1100
    reader = fast.reader()
    assert reader.claim(pace=1000) == 100


@lockless
def test_a_claim_says_whose_its_items_are(fast: Log) -> None:
    writer = fast.writer()
    writer.fill(100)
    reader = fast.reader()
    reader.claim(pace=100)
    for _ in range(100):
        assert reader.hand.tag() == writer.number
        reader.hand_out()


@lockless
def test_a_claim_says_whose_the_items_behind_the_next_one_are(fast: Log) -> None:
    for n in range(100):
        fast.append(b"%d" % n, n)
    reader = fast.reader()
    assert reader.claim(pace=100) == 100
    for n in range(10):
        assert [reader.hand.tag(place) for place in (0, 1, 90 - n)] == [n, n + 1, 90]
        reader.hand_out()


@lockless
def test_the_highest_count_is_remembered(fast: Log) -> None:
    fast.writer().fill(100)
    first, second = fast.reader(), fast.reader(1)
    assert first.claim(pace=70) == 50
    assert fast.head[HIGHEST] == 100
    fast.head[HIGHEST] = 0
    assert second.claim() == 1
    assert int(fast.head[HIGHEST]) == 100, "what is claimed is queued"


# Cutting claims short


def claimed(log: Log, count: int = 100, done: int = 10) -> Reader:
    """A reader with a claim of *count*, of which it has handed out *done*."""
    log.writer().fill(count)
    reader = log.reader()
    assert reader.claim(pace=count) == count
    for _ in range(done):
        assert reader.hand_out() == log.expected.popleft()[0]
    return reader


def claimed_chunk(log: Log) -> Reader:
    log.writer().put_chunk(list(range(100)))
    reader = log.reader()
    assert reader.claim(pace=90) == 90
    for _ in range(10):
        assert reader.hand_out() == same(log.expected.popleft()[0])
    return reader


def claimed_large(log: Log) -> Reader:
    """Those that come back need a segment more."""
    writer = log.writer()
    for n in range(100):
        writer.put(bytes([n]) * 2000)
    reader = log.reader()
    assert reader.claim(pace=100) == 31
    for _ in range(31):
        assert reader.hand_out() == log.expected.popleft()[0]
    assert reader.claim(pace=100) == 63
    for _ in range(10):
        assert reader.hand_out() == log.expected.popleft()[0]
    return reader


@lockless
@pytest.mark.parametrize("make", [claimed, claimed_chunk])
def test_half_of_a_claim_is_taken_back(fast: Log, make: Callable[[Log], Reader]) -> None:
    reader = make(fast)
    rest = reader.rest
    other = fast.reader(1)
    coming = payloads(fast)
    if make is claimed_chunk:
        for item in coming[rest:]:
            assert other.get() == item
        del coming[rest:]
    assert other.claim(pace=1000) == 1
    assert reader.rest == rest // 2
    fast.expected = deque((item, 0) for item in coming)
    mine = [reader.hand_out() for _ in range(rest // 2)]
    assert mine == coming[: rest // 2]
    assert other.get_all() == coming[rest // 2 :], "in their order"
    assert reader.get_all() == []


@lockless
def test_the_largest_claim_is_cut(fast: Log) -> None:
    small = claimed(fast, 70)
    fast.expected.clear()
    fast.writer().fill(200)
    large = fast.reader()
    assert large.claim(pace=100) == 100
    for _ in range(10):
        large.hand_out()
    assert fast.views[1].recall() == 45
    assert (small.rest, large.rest) == (60, 45)


@lockless
@pytest.mark.parametrize(("rest", "left"), [(1, 0), (2, 1), (3, 1), (4, 2)])
def test_at_least_one_is_taken_back(fast: Log, rest: int, left: int) -> None:
    reader = claimed(fast, 100, 100 - rest)
    assert fast.reader(1).channel.recall() == rest - left
    assert reader.rest == left
    assert reader.channel.claimed() == left


@lockless
def test_what_is_taken_back_is_the_next(fast: Log) -> None:
    """Though others were put since: it is as old as it was."""
    reader = claimed(fast)
    other = fast.writer()
    other.fill(5, 1000)
    reader.channel.cut(reader.slot)
    assert reader.rest == 0
    assert fast.reader(1).get_all() == payloads(fast)
    assert reader.get() is EMPTY


@lockless
def test_tags_come_back_with_their_records(fast: Log) -> None:
    writer = fast.writer()
    writer.fill(FEW)
    writer.put(b"r" * 100, RAW | writer.number)
    reader = fast.reader()
    for _ in range(FEW):
        reader.get()
        fast.expected.popleft()
    assert reader.claim() == 1
    assert reader.channel.cut(reader.slot) == 1
    fast.views[1].peek()
    fast.take(1)


@lockless
def test_nothing_to_cut(fast: Log) -> None:
    reader = claimed(fast, 100, 100)
    before = list(fast.head), list(fast.cells)
    assert reader.channel.cut(reader.slot) == 0
    assert reader.channel.cut(fast.reader().slot) == 0
    assert fast.views[1].recall() == 0
    assert before[1] == list(fast.cells)[: len(before[1])]


class Meddling:
    """A fence during which somebody else is at it."""

    def __init__(self, meddle: Callable[[], None]) -> None:
        self.meddle = meddle

    def renew(self) -> Callable[[], None]:
        return self.meddle


@lockless
@pytest.mark.parametrize("leave", [0, 3, 45])
@pytest.mark.parametrize("more", [0, 1, 2, 44, 45, 46, 89, 90])
def test_what_was_handed_out_meanwhile_stays(fast: Log, leave: int, more: int) -> None:
    """Before the store to GATE its consumer handed out some, which is seen after the fence only.

    It saw them to be its own; of one more it sees that it is not, or may not be.
    """
    reader = claimed(fast)
    mine = [reader.end() for _ in range(more)]
    others = fast.views[1]

    def meddle() -> None:
        fast.cells[reader.hand.next_at] = reader.hand.next

    others._fences = Meddling(meddle)  # type: ignore[assignment] # as much as is used
    rest = 90 - more
    back = others.cut(reader.slot, leave)
    assert back == max(rest - leave, 0)
    assert reader.rest == reader.cell(GATE) == rest - back
    assert others.claimed() == reader.rest
    assert others.size() == rest
    others._fences = fast.views[0]._fences
    mine += [reader.hand_out() for _ in range(reader.rest)]
    assert mine + fast.reader(1).get_all() == payloads(fast)


@lockless
def test_one_that_both_want_is_its_consumers(fast: Log) -> None:
    """It has stored CLAIM_NEXT, and sees the new CLAIM_END: the other one gives it back."""
    reader = claimed(fast)
    others = fast.views[1]
    own = list[bool]()
    others._fences = Meddling(lambda: own.append(reader.begin()))  # type: ignore[assignment]
    assert others.cut(reader.slot) == 89
    assert own == [False]
    others._fences = fast.views[0]._fences
    assert reader.hand_out() == payloads(fast)[0], "it comes back, and finds that it is its own"
    assert fast.reader(1).get_all() == payloads(fast)[1:]
    assert reader.get() is EMPTY


@lockless
def test_one_that_the_other_did_not_see_is_lost_to_it(fast: Log) -> None:
    reader = claimed(fast)
    assert fast.views[1].cut(reader.slot) == 90
    assert not reader.begin()
    assert fast.views[1].claimed() == 0
    assert fast.views[1].size() == 90
    assert not reader.channel.resume(reader.slot, reader.hand)
    assert reader.hand.claim == []
    assert reader.get_all() == payloads(fast)


@lockless
@pytest.mark.parametrize("make", [claimed, claimed_chunk, claimed_large])
@pytest.mark.parametrize("leave", [0, 10])
def test_a_cut_is_interrupted_before_any_store(
    tmp_path: Path, make: Callable[[Log], Reader], leave: int
) -> None:
    """Who comes next carries it out, or undoes it; counts are right all the time."""
    outcomes = list[int]()
    rest = 0
    for store in itertools.count(1):
        log = Log(tmp_path / str(store), 2, lockless=True)
        log.append(b"so that lane 0 has a segment")
        first = log.reader()
        assert first.get() == log.expected.popleft()[0]
        first.leave()
        reader = make(log)
        rest = reader.rest
        put, _, out, _ = log.views[0].totals()
        over = log.attempt(store, log.views[0].cut, reader.slot, leave)
        log.check()
        log.views[1].roll()
        log.check()
        assert log.head[CUT] == log.head[ROLL] == 0
        assert log.views[1].totals()[::2] == (put, out)
        outcomes.append(reader.rest)
        assert log.views[1].claimed() == reader.rest
        mine = [reader.hand_out() for _ in range(reader.rest)]
        items = mine + log.reader(1).get_all()
        assert items == payloads(log)
        if over:
            break
    assert set(outcomes) == {rest, leave}
    assert outcomes == sorted(outcomes, reverse=True), "undone up to one store, done from it on"


@lockless
def test_a_cut_finds_no_room(fast: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the claim is what it was."""
    reader = claimed(fast)
    with monkeypatch.context() as patch:
        patch.setattr("os.posix_fallocate", refuse)
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"):
                fast.views[1].cut(reader.slot)
            fast.check()
    assert fast.reader(1).claim() == 1
    assert reader.rest == 45
    assert reader.get_all()[:45] == payloads(fast)[:45]


@lockless
def test_after_a_cancel_a_cut_needs_no_room(fast: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = claimed(fast)
    put, _, out, _ = fast.views[1].totals()
    monkeypatch.setattr("os.posix_fallocate", refuse)
    fast.ledgers[1].cancel(None)
    assert reader.rest == 0
    assert fast.head[DROPPED] == 90
    assert fast.views[0].size() == 0
    assert fast.views[1].totals()[::2] == (put, out)
    assert not reader.begin()
    with pytest.raises(Cancelled):
        reader.get()


# Many at once


def claimed_raw(log: Log) -> Reader:
    writer = log.writer()
    writer.put(b"r" * 100, RAW | writer.number)
    writer.fill(99)
    reader = log.reader()
    assert reader.claim(pace=100) == 1
    return reader


def claimed_of_many(log: Log) -> Reader:
    """Each with a tag of its own."""
    for n in range(100):
        log.append(b"%d" % n * (20 if n % 3 else 1), 50 + n)
    reader = log.reader()
    assert reader.claim(pace=100) == 100
    for _ in range(10):
        assert reader.hand_out() == log.expected.popleft()[0]
    return reader


TAKERS = (claimed, claimed_chunk, claimed_raw, claimed_of_many)


@lockless
@pytest.mark.parametrize("limit", [1, 5, 79])
@pytest.mark.parametrize("make", TAKERS)
def test_many_are_moved_from_a_claim(fast: Log, make: Callable[[Log], Reader], limit: int) -> None:
    reader = make(fast)
    hand, put, size = reader.hand, fast.views[1].totals()[0], len(fast.expected)
    rest = reader.rest
    assert reader.ledger.take(reader.slot, hand, limit, True)
    moved = list(map(reader.channel.unwrap, hand.pending))
    if make is claimed_chunk:
        assert {tag for _, tag in hand.pending} == {RAW}, "the items themselves"
        assert {tag for _, tag in moved} == {0}
        assert [same(payload) for payload, _ in moved] == payloads(fast)[:limit]
    else:
        assert moved == list(fast.expected)[:limit]
    assert hand.held == reader.cell(IN_HAND) == limit
    assert fast.views[1].in_claim(reader.slot) == 0
    assert counts(fast) == (size - limit, put, put - size + limit)
    assert hand.claim == []
    assert fast.views[1].claimed() == len(hand.rest) == reader.rest
    if limit < rest:
        assert reader.rest == rest - limit
    assert reader.hand_out() is EMPTY, "not while some of it are pending"
    hand.pending.clear()
    assert reader.get_all() == payloads(fast)[limit:]
    assert reader.cell(IN_HAND) == hand.held == 0


@lockless
@pytest.mark.parametrize("make", [claimed, claimed_chunk, claimed_of_many])
def test_moving_many_is_interrupted_before_any_store(
    tmp_path: Path, make: Callable[[Log], Reader]
) -> None:
    """From the one store on that commits that, they are in hand."""
    outcomes = list[int]()
    for store in itertools.count(1):
        log = Log(tmp_path / str(store), 2, lockless=True)
        reader = make(log)
        reader.come_back()
        size, put = len(log.expected), log.views[1].totals()[0]
        over = log.attempt(store, reader.channel.unclaim, reader.slot, reader.hand, 5)
        held = 5 if log.views[1].size() < size else 0
        for _ in range(2):
            assert counts(log) == (size - held, put, put - size + held)
            log.views[1].roll()
        assert reader.cell(IN_HAND) == held
        assert log.views[1].in_claim(reader.slot) == 0
        outcomes.append(held)
        reader.channel.cut(reader.slot)
        assert log.reader(1).get_all() == payloads(log)[held:]
        if over:
            break
    assert set(outcomes) == {0, 5}
    assert outcomes == sorted(outcomes)


@lockless
def test_moving_many_carries_out_what_was_committed_before(fast: Log) -> None:
    reader = claimed(fast)
    fast.append(b"taken under the lock")
    assert fast.views[1].peek() == fast.expected.pop()
    fast.commit()
    assert reader.ledger.take(reader.slot, reader.hand, 5, True)
    fast.views[1].roll()
    assert fast.views[1].size() == 85
    reader.hand.pending.clear()
    assert reader.get_all() == payloads(fast)[5:]


@lockless
def test_what_is_left_meanwhile_can_be_taken_away(fast: Log) -> None:
    reader, other = claimed(fast), fast.reader(1)
    assert reader.ledger.take(reader.slot, reader.hand, 10, True)
    assert fast.views[1].recall() == 40
    assert reader.rest == 40
    assert len(reader.hand.rest) == 80
    reader.hand.pending.clear()
    reader.come_back()
    assert reader.hand.rest == []
    assert [reader.hand_out() for _ in range(40)] == payloads(fast)[10:50]
    assert other.get_all() == payloads(fast)[50:]
    assert reader.get() is EMPTY


# A hand-out that was interrupted


def interrupted(log: Log, make: Callable[[Log], Reader]) -> Reader:
    """A reader whose next item counts as handed out, and was not returned."""
    reader = make(log)
    assert reader.begin()
    return reader


def claimed_alone(log: Log) -> Reader:
    writer = log.writer()
    writer.put(b"r" * 100, RAW | writer.number)
    writer.fill(3)
    reader = log.reader()
    assert reader.claim() == 1
    return reader


MAKERS = (claimed, claimed_chunk, claimed_alone)


@lockless
@pytest.mark.parametrize("make", MAKERS)
def test_it_can_be_handed_out_again(fast: Log, make: Callable[[Log], Reader]) -> None:
    reader = interrupted(fast, make)
    assert reader.get_all() == payloads(fast)


@lockless
@pytest.mark.parametrize("make", MAKERS)
def test_nobody_else_gets_it(fast: Log, make: Callable[[Log], Reader]) -> None:
    """Not even once its thread has come back for more: its segment may be written again by now."""
    reader = interrupted(fast, make)
    reader.come_back()
    while fast.views[1].recall():
        pass
    assert reader.rest == 0
    assert reader.hand_out() == payloads(fast)[0]
    assert sorted(fast.reader(1).get_all()) == sorted(payloads(fast)[1:])


@lockless
@pytest.mark.parametrize("pending", [False, True])
@pytest.mark.parametrize("make", MAKERS)
def test_it_is_put_back(tmp_path: Path, make: Callable[[Log], Reader], pending: bool) -> None:
    """Interrupted before any store, and then done again."""
    for store in itertools.count(1):
        log = Log(tmp_path / str(store), 2, lockless=True)
        reader = interrupted(log, make)
        put = log.views[1].totals()[0]
        if pending:
            log.append(b"taken under the lock")
            log.expected.remove(log.views[1].peek())
            log.commit()  # and others have not been told yet
            put += 1
        assert log.views[1].size() == len(log.expected) - 1
        over = log.attempt(store, reader.channel.put_back, reader.slot, reader.hand)
        assert 0 <= len(log.expected) - log.views[1].size() <= 1 - over
        reader.channel.put_back(reader.slot, reader.hand)
        log.check()
        assert log.views[1].totals()[::2] == (put, put - len(log.expected))
        assert log.views[1].in_claim(reader.slot) == 0
        reader.channel.cut(reader.slot)
        items = log.reader(1).get_all()
        assert items == payloads(log) or (pending and sorted(items) == sorted(payloads(log)))
        if over:
            return


# Counts


def counts(log: Log, view: int = 1) -> tuple[int, int, int]:
    channel = log.views[view]
    put, _, taken, _ = channel.totals()
    return channel.size(), put, taken


@lockless
def test_counts(fast: Log) -> None:
    writer = fast.writer()
    writer.fill(100)
    assert counts(fast) == (100, 100, 0)
    fast.append(b"on lane 0")
    assert counts(fast) == (101, 101, 0)
    reader = fast.reader()
    reader.claim(pace=100)
    assert counts(fast) == (101, 101, 0)
    assert fast.views[1].claimed() == 100
    assert fast.views[1].in_claim(reader.slot) == 0
    for n in range(1, 11):
        reader.hand_out()
        assert counts(fast) == (101 - n, 101, n)
        assert fast.views[1].in_claim(reader.slot) == 1
    reader.come_back()
    assert fast.views[1].in_claim(reader.slot) == 0
    fast.views[1].cut(reader.slot)
    assert counts(fast) == (91, 101, 10)
    fast.views[0].peek()
    assert counts(fast) == (91, 101, 10)
    fast.views[0].peek()
    fast.commit()
    assert counts(fast) == (90, 101, 11)
    writer.put_chunk([1, 2, 3])
    assert counts(fast) == (93, 104, 11)


@lockless
def test_what_is_in_hand_of_a_claim_that_was_cut(fast: Log) -> None:
    reader = claimed(fast)
    fast.views[1].cut(reader.slot)
    assert fast.views[1].in_claim(reader.slot) == 1
    assert not reader.begin(), "which counts for nothing"
    assert fast.views[1].in_claim(reader.slot) == 1
    reader.come_back()
    assert fast.views[1].in_claim(reader.slot) == 0


@lockless
def test_nothing_is_in_hand_of_one_that_was_cut_before_its_first(fast: Log) -> None:
    reader = claimed(fast, 100, 0)
    fast.views[1].cut(reader.slot)
    assert not reader.begin()
    assert fast.views[1].in_claim(reader.slot) == 0


@lockless
def test_what_is_in_hand_of_all_claims(fast: Log) -> None:
    """Also of those beyond what this process had mapped."""
    few = list(fast.cells[: fast.head[SLOTS] * SLOT_SIZE])
    fast.writer().fill(100)
    readers = [fast.reader() for _ in range(4)]
    for reader in readers:
        assert reader.claim(pace=10) == 10
    fast.ledgers[1].cells = few
    assert fast.views[1].in_claims() == 0
    for count, reader in enumerate(readers[:3], 1):
        reader.hand_out()
        assert fast.views[1].in_claims() == count
    readers[0].hand_out()
    fast.views[1].cut(readers[1].slot)
    assert fast.views[1].in_claims() == 3
    fast.views[1].cut(readers[3].slot)
    assert not readers[3].begin(), "which counts for nothing"
    assert fast.views[1].in_claims() == 3
    assert sum(fast.views[1].in_claim(reader.slot) for reader in readers) == 3
    readers[0].come_back()
    assert fast.views[1].in_claims() == 2
    readers[1].leave()
    assert fast.views[1].in_claims() == 1


@lockless
@pytest.mark.parametrize("done", [0, 1, 10, 100])
def test_what_is_in_hand_is_settled(tmp_path: Path, done: int) -> None:
    """From the one store on that commits that."""
    for store in itertools.count(1):
        log = Log(tmp_path / str(store), 2, lockless=True)
        reader = claimed(log, 100, done)
        over = log.attempt(store, log.views[0].settle_claim, reader.slot)
        log.views[1].roll()
        in_claim, settled = log.views[1].in_claim(reader.slot), reader.cell(IN_HAND)
        assert in_claim + settled == (done > 0)
        assert counts(log) == (100 - done, 100, done)
        if over:
            assert in_claim == 0
            return


@lockless
def test_settling_carries_out_what_was_committed_before(fast: Log) -> None:
    reader = claimed(fast)
    fast.append(b"taken under the lock")
    fast.views[0].peek()
    fast.commit()
    fast.views[0].settle_claim(reader.slot)
    fast.views[0].roll()
    assert fast.views[0].peek() is not EMPTY
    assert fast.views[0].claimed() == 45, "the one on lane 0 had gone, so these were recalled"


@lockless
@pytest.mark.parametrize("chunk", [False, True])
@pytest.mark.parametrize("before", [0, 5])
def test_a_claim_is_interrupted_before_any_store(tmp_path: Path, chunk: bool, before: int) -> None:
    """Before the store to TAKEN nothing is claimed, from then on all of it is."""
    outcomes = list[int]()
    for store in itertools.count(1):
        log = Log(tmp_path / str(store), 2, lockless=True)
        writer, reader = log.writer(), log.reader()
        if chunk:
            writer.put_chunk(list(range(200)))
        else:
            writer.fill(200)
        if before:
            reader.claim(pace=before)
            for _ in range(before):
                assert reader.hand_out() == same(log.expected.popleft()[0])
        reader.hand.pace, reader.hand.size = 80, 0
        reader.come_back()
        over = log.attempt(store, reader.channel.claim, reader.slot, reader.hand)
        log.check()
        for _ in range(2):
            log.views[1].roll()
            assert counts(log) == (200 - before, 200, before)
        assert log.head[ROLL] == 0
        outcomes.append(reader.rest)
        assert log.views[1].claimed() == reader.rest
        assert log.views[1].in_claim(reader.slot) == 0
        if reader.rest:
            assert log.views[1].cut(reader.slot) == 80
        items = log.reader(1).get_all()
        assert items == payloads(log)
        if over:
            break
    assert set(outcomes) == {0, 80}
    assert outcomes == sorted(outcomes)


@lockless
@pytest.mark.parametrize("what", ["record", "chunk", "recalled"])
def test_peek_and_commit_are_interrupted_before_any_store(tmp_path: Path, what: str) -> None:
    for store in itertools.count(1):
        log = Log(tmp_path / str(store), 2, lockless=True)
        if what == "recalled":
            reader = claimed(log, 100, 98)
        else:
            reader = log.reader()
            writer = log.writer()
            if what == "chunk":
                writer.put_chunk([1, 2])
            else:
                writer.fill(2)
        put = log.views[0].totals()[0]
        over = log.attempt(store, log.peek_and_commit)
        left = 2 - over
        assert log.views[1].size() == left
        assert log.views[1].totals()[2] == put - left
        assert counts(log) == (left, put, put - left)
        mine = [reader.hand_out() for _ in range(reader.rest)]
        items = mine + log.reader(1).get_all()
        assert len(items) == left
        assert set(items) <= set(payloads(log))
        if over:
            return


# Segments that are used again


@lockless
def test_a_segment_of_a_claim_is_not_used_again(fast: Log) -> None:
    """Not before nothing of it is left to hand out: it may come back from there."""
    writer = fast.writer()
    writer.fill(1000)
    slow, reader = fast.reader(), fast.reader(1)
    assert slow.claim(pace=80) == 80
    mine = payloads(fast)[:80]
    for _ in range(920):
        reader.get()
    for n in range(1000, 4000):
        writer.put(b"%d" % n)
        if n >= 1500:
            assert reader.get() is not EMPTY
    assert fast.cells[writer.base + OLDEST] == 0
    assert f"s{writer.base // SLOT_SIZE}.0" in fast.files()
    assert fast.cells[writer.base + SPARE] == 0
    assert [slow.hand_out() for _ in range(40)] == mine[:40]
    assert slow.channel.cut(slow.slot) == 40
    writer.fill(9000, 4000)
    assert [item for item in reader.get_all() if int(item) < 1000] == mine[40:]
    assert fast.cells[writer.base + OLDEST] == fast.cells[writer.base + POS] >> FILE_SHIFT
    assert fast.cells[writer.base + SPARE] == 1


@lockless
def test_lanes_use_their_segments_again(fast: Log) -> None:
    writers = [fast.writer(), fast.writer(1)]
    reader = fast.reader(1)
    for n in range(10_000):
        writers[n % 2].put(b"%d" % n)
        assert reader.get() == b"%d" % n
    assert all(fast.cells[writer.base + FILES] <= 2 for writer in writers)
    assert all(fast.cells[writer.base + READ] == 5000 for writer in writers)


@lockless
@pytest.mark.parametrize("seed", range(6))
def test_lanes_and_claims_at_random(tmp_path: Path, seed: int) -> None:
    """Producers and consumers come, go and die; each item is handed out once."""
    dice = random.Random(seed)
    log = Log(tmp_path, 3, lockless=True)
    writers, readers = list[Writer](), list[Reader]()
    seen = list[Any]()
    handed = 0
    put = 0
    for step in range(1500):
        view = dice.randrange(3)
        roll = dice.random()
        if roll < 0.03 or not writers:
            writers.append(log.writer(view))
        elif roll < 0.06 or not readers:
            readers.append(log.reader(view))
        elif roll < 0.08:
            writer = writers.pop(dice.randrange(len(writers)))
            if dice.random() < 0.5:
                writer.leave()
            else:
                log.ledger.close(writer.slot, writer.number)
        elif roll < 0.1:
            reader = readers.pop(dice.randrange(len(readers)))
            if reader.hand.claim and dice.random() < 0.5:
                reader.begin()  # it dies in that, and does not come to the end
                handed += reader.rest >= 0 and reader.cell(CLAIM_NEXT) <= reader.cell(CLAIM_END)
            log.ledger.close(reader.slot, reader.number)
        elif roll < 0.12:
            log.views[view] = log.attach()
            log.ledgers[view].me = 1
        elif roll < 0.5:
            writer = dice.choice(writers)
            count = dice.choice((1, 1, 5, 100))
            put += count
            kind = dice.random()
            if kind < 0.3 and count > 1:
                writer.put_chunk([f"{step}.{n}" for n in range(count)])
            else:
                size = dice.choice((0, 0, 50, 500, 20_000))
                for n in range(count):
                    writer.put(b"%d.%d" % (step, n) + bytes(size))
        elif roll < 0.55:
            log.append(b"%d" % step, 7, view)
            put += 1
        else:
            reader = dice.choice(readers)
            for _ in range(dice.choice((1, 3, 50))):
                item = reader.get()
                if item is not EMPTY:
                    seen.append(item)
        assert {channel.size() for channel in log.views} == {put - len(seen) - handed}
        assert log.views[view].totals()[::2] == (put, len(seen) + handed)
    for reader in readers:
        log.ledger.close(reader.slot, reader.number)
    seen += log.reader(1).get_all()
    assert len(seen) == len(set(seen)) == put - handed
    assert set(seen) <= set(payloads(log))
    assert log.views[0].size() == 0


# Room on a bounded queue


def bounded(path: Path, maxsize: int, fate: Fate | None = None) -> Log:
    return Log(path, 2, lockless=True, maxsize=maxsize, fate=fate)


def cells_of(out: Putter) -> tuple[int, int, int, int]:
    return out.cell(PUT), out.cell(INTENT), out.cell(LIMIT), out.cell(GRANT)


@lockless
@pytest.mark.parametrize("maxsize", [1, 2, 10, 1000, (1 << 63) - 1])
def test_a_lone_producer_is_given_all_the_room(tmp_path: Path, maxsize: int) -> None:
    log = bounded(tmp_path, maxsize)
    out, reader = log.putter(), log.reader(1)
    assert not out.begin(), "it has none yet"
    assert out.admit()
    assert cells_of(out)[:2] == (0, 1)
    assert out.room == out.cell(LIMIT) >= min(maxsize, 1 << 32)
    count = min(maxsize, 20)
    assert out.put_own(count) == count
    assert [reader.get() for _ in range(count)] == payloads(log)
    assert out.put_own(1) == (maxsize > count), "not what was taken since"
    if maxsize <= count:
        assert out.admit()
        assert out.room == maxsize


@lockless
@pytest.mark.parametrize("waiting", [0, 1, 3, 50])
@pytest.mark.parametrize("others", [0, 1, 3])
def test_room_is_shared_with_those_who_may_want_some(
    tmp_path: Path, others: int, waiting: int
) -> None:
    """Those who have room already, and those who wait: but each is given room for one."""
    log = bounded(tmp_path, 12)
    outs = [log.putter(n % 2) for n in range(others + 1)]
    for other in outs[1:]:
        log.head[WAIT_ROOM] = 11
        assert other.admit()
        assert other.room == 1
    log.head[WAIT_ROOM] = waiting
    assert outs[0].admit()
    assert outs[0].room == max((12 - others) // (1 + others + waiting), 1)
    assert log.promised() <= 12


@lockless
def test_those_who_have_none_left_get_no_share(tmp_path: Path) -> None:
    log = bounded(tmp_path, 12)
    first, second = log.putter(), log.putter(1)
    assert first.put_now()
    assert second.admit()
    assert (first.room, second.room) == (0, 11)
    assert second.begin(), "it goes for one, so this much stays, and it gets its share"
    assert first.admit()
    assert (first.room, second.room) == (5, 1)


@lockless
def test_what_is_claimed_and_not_handed_out_takes_room(tmp_path: Path) -> None:
    log = bounded(tmp_path, 5)
    out, other, reader = log.putter(), log.putter(1), log.reader(1)
    assert out.fill_up() == 5
    assert reader.claim(pace=3) == 3
    assert not out.admit()
    for _ in range(3):
        assert reader.begin()
        assert other.put_now(), "one that counts as handed out takes none"
        assert not out.put_now()
        reader.end()
    log.views[1].cut(reader.slot)
    assert not out.put_now()


@lockless
def test_a_full_queue_admits_nobody(tmp_path: Path) -> None:
    """And keeps nothing for who asked."""
    log = bounded(tmp_path, 3)
    out, other = log.putter(), log.putter(1)
    assert (out.fill_up(), other.fill_up()) == (3, 0)
    for putter in (out, other):
        before = cells_of(putter)
        assert not putter.begin()
        assert not putter.admit()
        assert cells_of(putter) == before
        assert putter.cell(INTENT) == putter.cell(PUT)


@lockless
@pytest.mark.parametrize(("room", "woken"), [(1, 0), (2, 1), (4, 1)])
def test_another_one_is_woken_if_there_is_room_left(tmp_path: Path, room: int, woken: int) -> None:
    """One: who wakes the next, if there still is."""
    log = bounded(tmp_path, 10)
    out, other = log.putter(), log.putter(1)
    for _ in range(10 - room):
        assert out.put_now()
    log.views[1].revoke()
    log.head[WAIT_ROOM] = 3
    assert other.admit()
    assert log.head[WAIT_ROOM] == 3 - woken
    tokens = [log.runtime.room.sleep(0) for _ in range(2)]
    assert tokens == [woken == 1, False]


@lockless
def test_room_that_another_thread_was_given_is_used(tmp_path: Path) -> None:
    log = bounded(tmp_path, 10)
    out, other = log.putter(), log.putter(1)
    assert other.put_now()
    assert out.admit()
    before = cells_of(out), cells_of(other)
    assert out.admit(), "by the thread that asked as well"
    assert (cells_of(out), cells_of(other)) == before


@lockless
def test_no_room_is_given_for_what_comes_back(tmp_path: Path) -> None:
    """Though who put it back was killed between the commit of that and carrying it out."""
    for store in itertools.count(1):
        log = bounded(tmp_path / str(store), 3)
        out, other, reader = log.putter(), log.putter(1), log.reader()
        assert out.fill_up() == 3
        assert reader.claim() == 1
        assert reader.begin()
        over = log.attempt(store, reader.channel.put_back, reader.slot, reader.hand)
        size = log.views[1].size()
        assert other.fill_up() == 3 - size
        assert log.views[1].size() == 3
        if over:
            assert size == 3
            return


@lockless
def test_no_room_is_given_beyond_what_cells_hold(tmp_path: Path) -> None:
    """A cell of shared memory has 63 bits and a sign; the producer has put some items by then."""
    log = bounded(tmp_path, (1 << 63) - 1)
    first, second, reader = log.putter(), log.putter(1), log.reader(1)
    for out in (first, second):
        assert out.put_now()
        assert reader.get() is not EMPTY
        reader.come_back()
    for _ in range(3):
        assert second.put_now()
        assert max(cells_of(second)) < 1 << 63
    assert log.views[0].size() == 3


# Taking room back


@lockless
@pytest.mark.parametrize("goes", [False, True])
@pytest.mark.parametrize("used", [0, 1, 2, 3])
def test_room_that_is_not_used_is_taken_back(tmp_path: Path, used: int, goes: bool) -> None:
    """But for that of a put that is being made."""
    log = bounded(tmp_path, 3)
    out, other = log.putter(), log.putter(1)
    assert out.admit()
    assert out.put_own(used) == used
    if goes:
        assert out.begin() == (used < 3)
    else:
        out.give_up()
    kept = int(goes and used < 3)
    log.views[1].revoke()
    assert cells_of(out)[2:] == (used + kept, used + kept)
    assert other.fill_up() == 3 - used - kept
    if kept:
        out.end()
    assert log.views[0].size() == 3
    assert not out.put_now()


@lockless
@pytest.mark.parametrize("then", ["ends", "goes for one", "has gone for one, and for another"])
@pytest.mark.parametrize("puts", [0, 1, 2, 3])
def test_at_whatever_moment_the_producer_puts_meanwhile(
    tmp_path: Path, puts: int, then: str
) -> None:
    """Both see the last store of the other, or one of them does: no more is put than maxsize.

    Of all the moments at which `revoke` reads or stores a cell, and the ones before and after.
    """
    for moment in itertools.count(1):
        moments = Moments()
        log = bounded(tmp_path / str(moment), 3, moments)
        out, other = log.putter(), log.putter(1)
        assert out.admit()
        out.give_up()
        going = then.startswith("has") and out.begin()

        def act(out: Putter = out) -> None:
            nonlocal going
            if going:
                out.end()
            out.put_own(puts)
            going = then != "ends" and out.begin()

        moments.plan(moment, act)
        log.runtime.slots.watch = moments.pass_by
        log.views[1].revoke()
        log.runtime.slots.watch = None
        over = moments.act is not None
        assert log.promised() <= 3
        if not going:
            out.give_up()
        other.fill_up()
        if going:
            out.end()
        assert log.views[0].size() == 3
        assert not out.put_now()
        assert not other.put_now()
        if over:
            assert moment > 5
            return


class Late:
    """Cells as a processor sees them whose own stores the others see after its next fence only."""

    def __init__(self, cells: Cells) -> None:
        self.cells = cells
        self.stores: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, index: int) -> int:
        for stored, value in reversed(self.stores):
            if stored == index:
                return value
        return self.cells[index]

    def __setitem__(self, index: int, value: int) -> None:
        self.stores.append((index, value))

    def drain(self) -> None:
        for index, value in self.stores:
            self.cells[index] = value
        self.stores = []


@lockless
@pytest.mark.parametrize("puts", [1, 3])
def test_stores_of_one_that_takes_room_back_may_be_seen_late(tmp_path: Path, puts: int) -> None:
    """Up to its fence, and from then on to its end: the producer acts at any moment of that."""
    for moment in itertools.count(1):
        moments = Moments()
        log = bounded(tmp_path / str(moment), 3, moments)
        out, other = log.putter(), log.putter(1)
        assert out.admit()
        out.give_up()
        cells = Late(log.cells)
        log.ledgers[1].cells = cells  # type: ignore[assignment] # as much as is used
        log.views[1]._fences = Meddling(cells.drain)  # type: ignore[assignment]
        put = 0

        def act(out: Putter = out) -> None:
            nonlocal put
            put = out.put_own(puts)

        moments.plan(moment, act)
        log.runtime.slots.watch = moments.pass_by
        log.views[1].revoke()
        log.runtime.slots.watch = None
        over = moments.act is not None
        if over:
            act()
        cells.drain()
        assert log.promised() <= 3
        log.ledgers[1].cells = log.cells
        assert other.fill_up() == 3 - put
        assert not out.put_now()
        if over:
            assert moment > 3
            return


@lockless
@pytest.mark.parametrize("more", [1, 2])
def test_no_room_is_made_by_taking_it_back(tmp_path: Path, more: int) -> None:
    """The producer has put what it might, and goes for one more, between the look at PUT and that
    at INTENT: which is more than it has room for.
    """
    log = bounded(tmp_path, 5)
    out, other = log.putter(), log.putter(1)
    for _ in range(5 - more):
        assert other.put_now()
    log.views[0].revoke()
    assert out.admit()
    assert out.room == more
    read = 0

    def put_all(index: int) -> None:
        nonlocal read
        if index == out.base + GRANT:
            read += 1
            if read == 1:
                assert out.put_own(more) == more
                assert not out.begin()

    log.runtime.slots.watch = put_all
    log.views[1].revoke()
    log.runtime.slots.watch = None
    assert read
    assert cells_of(out) == (more, more + 1, more, more)
    assert not out.put_now()
    assert log.views[0].size() == 5


def two_with_room(log: Log, goes: bool) -> tuple[Putter, Putter]:
    """Two producers that have room for some more; the first one may be about to put."""
    first, second = log.putter(), log.putter(1)
    log.head[WAIT_ROOM] = 2
    assert second.put_now()
    assert first.put_now()
    log.head[WAIT_ROOM] = 0
    assert (first.room, second.room) == (1, 3)
    assert first.begin()
    if not goes:
        first.give_up()
    return first, second


@lockless
@pytest.mark.parametrize("goes", [False, True])
@pytest.mark.parametrize("asks", ["first", "second", "third"])
def test_taking_back_is_interrupted_before_any_store(tmp_path: Path, asks: str, goes: bool) -> None:
    """No more is put than maxsize; and whoever asks next gets all the room there is."""
    for store in itertools.count(1):
        log = bounded(tmp_path / str(store), 12)
        first, second = two_with_room(log, goes)
        over = log.attempt(store, log.views[1].revoke)
        assert log.promised() <= 12
        outs = {"first": first, "second": second, "third": log.putter(1)}
        outs[asks].fill_up()
        in_the_air = int(goes and asks != "first")
        assert log.views[0].size() == 12 - in_the_air
        if in_the_air:
            first.end()
        assert [out.put_now() for out in outs.values()] == [False] * 3
        assert log.views[0].size() == log.promised() == 12
        if over:
            assert store > 4
            return


@lockless
def test_between_interrupted_ones_all_put_what_they_may(tmp_path: Path) -> None:
    """As a producer does that has not been told, without the lock."""
    for store in itertools.count(1):
        log = bounded(tmp_path / str(store), 12)
        first, second = two_with_room(log, False)
        over = log.attempt(store, log.views[1].revoke)
        first.put_own()
        log.attempt(max(store - 1, 1), log.views[0].revoke)
        second.put_own()
        assert log.views[0].size() <= log.promised() <= 12
        first.fill_up()
        assert log.views[0].size() == 12
        if over:
            return


@lockless
@pytest.mark.parametrize("maxsize", [1, 2])
def test_room_that_was_half_taken_back_is_the_producers_own(tmp_path: Path, maxsize: int) -> None:
    """It is all there is, and whoever took it back was killed before it could give it away."""
    log = bounded(tmp_path, maxsize)
    out = log.putter()
    assert out.admit()
    assert out.put_own(maxsize - 1) == maxsize - 1
    out.give_up()
    log.attempt(2, log.views[1].revoke)
    assert (out.cell(LIMIT), out.room) == (maxsize - 1, 1)
    assert out.put_now()
    assert not out.put_now()
    assert log.views[0].size() == maxsize


@lockless
@pytest.mark.parametrize("has_some", [False, True])
def test_an_admission_is_interrupted_before_any_store(tmp_path: Path, has_some: bool) -> None:
    """Its producer may be on its way to put one; once it has gone, all the room is there."""
    for store in itertools.count(1):
        log = bounded(tmp_path / str(store), 6)
        out, other = log.putter(), log.putter(1)
        if has_some:
            assert other.put_now(), "which leaves it room that has to be taken back"
        before = log.views[0].size()
        assert not out.begin()
        over = log.attempt(store, out.admit)
        assert log.promised() <= 6
        going = out.begin()
        if not going:
            out.give_up()
        assert other.fill_up() + before == 6 - going
        if going:
            out.end()
        assert not out.put_now()
        assert log.views[0].size() == 6
        if over:
            assert going
            assert store > 3
            return


@lockless
@pytest.mark.parametrize("has_some", [False, True])
def test_a_producer_is_killed_while_it_is_admitted(tmp_path: Path, has_some: bool) -> None:
    """At any store; others have all the room once its lane has ended."""
    for store in itertools.count(1):
        log = bounded(tmp_path / str(store), 6)
        dying, other = log.putter(), log.putter(1)
        if has_some:
            assert other.put_now()
        before = log.views[0].size()
        assert not dying.begin()
        over = log.attempt(store, dying.admit)
        there = other.fill_up() + before
        assert 5 <= there <= 6
        log.ledgers[1].close(dying.slot, dying.number)
        assert other.fill_up() + there == 6
        if over:
            return


# The end of one who has room


@lockless
@pytest.mark.parametrize("goes", [False, True])
@pytest.mark.parametrize("end", ["closes", "dies", "is found gone"])
def test_room_of_one_that_ends_is_returned(tmp_path: Path, end: str, goes: bool) -> None:
    log = bounded(tmp_path, 6)
    out, other = log.putter(), log.putter(1)
    assert other.put_now()
    assert out.put_now()
    assert out.room == 4
    if goes:
        assert out.begin()
    if end == "closes":
        out.leave()
    elif end == "dies":
        log.ledgers[1].close(out.slot, out.number)
    else:
        log.cells[out.slot * SLOT_SIZE + KIND] = 0
        log.views[1].mend()
    assert log.cells[out.base + OWNER] == 0
    assert cells_of(out) == (1, 1, 1, 1)
    assert other.fill_up() == 4
    assert log.views[0].size() == 6


@lockless
@pytest.mark.parametrize(("waiting", "woken"), [(1, 1), (3, 3), (9, 4)])
def test_as_many_are_woken_as_one_that_ends_had_room_for(
    tmp_path: Path, waiting: int, woken: int
) -> None:
    log = bounded(tmp_path, 6)
    out, other = log.putter(), log.putter(1)
    assert other.put_now()
    assert out.put_now()
    log.head[WAIT_ROOM] = waiting
    log.ledgers[1].close(out.slot, out.number)
    assert log.head[WAIT_ROOM] == waiting - woken


@lockless
def test_the_end_of_one_who_has_room_is_interrupted(tmp_path: Path) -> None:
    """Before any store; then it is ended by who comes next, and the lane goes to another one."""
    for store in itertools.count(1):
        log = bounded(tmp_path / str(store), 6)
        out, other = log.putter(), log.putter(1)
        assert other.put_now()
        assert out.put_now()
        over = log.attempt(store, out.leave)
        assert log.promised() <= 6
        log.ledgers[1].mend()
        log.ledgers[1].close(out.slot, out.number)
        log.ledgers[1].mend()
        after = log.putter(1)
        assert after.base == out.base
        assert after.room == 0
        assert after.fill_up() == 4
        assert not other.put_now()
        if over:
            assert store > 8
            return


# What is put under the lock


@lockless
@pytest.mark.parametrize("puts", [1, 3, 4])
def test_a_worker_takes_room_that_others_were_given(tmp_path: Path, puts: int) -> None:
    """It puts in any case, so what it takes must be theirs no more."""
    log = bounded(tmp_path, 4)
    out = log.putter()
    worker, number = log.ledgers[1].open(WORKER, "")
    assert out.admit()
    assert out.room == 4
    out.give_up()
    for _ in range(puts):
        assert log.ledgers[1].put(worker, number, b"tree", True)
    assert out.put_own() == 0
    assert out.fill_up() == 4 - puts
    assert log.views[0].size() == 4
    assert log.ledgers[1].put(worker, number, b"more", True), "it never waits for room"
    assert log.views[0].size() == 5
    assert not out.put_now()


@lockless
def test_a_worker_leaves_room_for_a_put_that_is_being_made(tmp_path: Path) -> None:
    log = bounded(tmp_path, 2)
    out = log.putter()
    worker, number = log.ledgers[1].open(WORKER, "")
    assert out.admit()
    assert out.begin()
    assert log.ledgers[1].put(worker, number, b"tree", True)
    assert out.room == 1
    out.end()
    assert not out.put_now()
    assert log.views[0].size() == 2


@lockless
@pytest.mark.parametrize("way", ["put back", "given back"])
def test_an_item_that_comes_back_takes_room_that_others_were_given(
    tmp_path: Path, way: str
) -> None:
    """That of its own hand-out, which was given away meanwhile."""
    log = bounded(tmp_path, 3)
    out, reader = log.putter(), log.reader(1)
    assert out.fill_up() == 3
    if way == "put back":
        assert reader.claim() == 1
        assert reader.begin()
    else:
        assert reader.ledger.take(reader.slot, reader.hand, 1, True)
    assert out.admit()
    out.give_up()
    assert out.room == 1
    if way == "put back":
        reader.channel.put_back(reader.slot, reader.hand)
    else:
        reader.ledger.give_back(reader.slot, reader.hand)
    assert out.put_own() == 0
    assert not out.put_now()
    assert log.views[0].size() == log.promised() == 3


@lockless
def test_the_rest_of_a_claim_comes_back_within_its_room(tmp_path: Path) -> None:
    """At any store of that."""
    for store in itertools.count(1):
        log = bounded(tmp_path / str(store), 20)
        out, reader = log.putter(), log.reader()
        for _ in range(12):
            assert out.put_now()
        assert reader.claim(pace=10) == 10
        assert out.room == 8
        over = log.attempt(store, log.views[0].cut, reader.slot)
        assert log.views[1].size() == 12
        assert log.promised() <= 20
        out.put_own()
        assert log.putter(1).fill_up() + 12 <= 20
        assert log.views[1].size() == 20
        if over:
            assert log.views[1].claimed() == 0
            return


@lockless
def test_a_worker_puts_in_a_process_that_had_mapped_less(tmp_path: Path) -> None:
    """There are lanes by now that it has not seen."""
    log = bounded(tmp_path, 5)
    slot, number = log.ledgers[1].open(WORKER, "")
    few = Fewer(log.cells, log.head[SLOTS])
    out = log.putter()
    assert out.put_now()
    log.ledgers[1].cells = few
    assert log.ledgers[1].put(slot, number, b"tree", True)
    assert out.put_own() == 0
    assert out.fill_up() == 3


@lockless
@pytest.mark.parametrize(("limit", "woken"), [(1, 1), (3, 3), (100, 5)])
def test_as_many_are_woken_as_were_taken_at_once(tmp_path: Path, limit: int, woken: int) -> None:
    log = bounded(tmp_path, 5)
    out, reader = log.putter(), log.reader(1)
    assert out.fill_up() == 5
    log.head[WAIT_ROOM] = 7
    assert reader.ledger.take(reader.slot, reader.hand, limit, True)
    assert len(reader.hand.pending) == woken
    assert log.head[WAIT_ROOM] == 7 - woken
    assert log.putter().fill_up() == woken


@lockless
def test_a_claim_wakes_nobody(tmp_path: Path) -> None:
    """There is room only once its items are handed out."""
    log = bounded(tmp_path, 5)
    out, reader = log.putter(), log.reader(1)
    assert out.fill_up() == 5
    log.head[WAIT_ROOM] = 7
    reader.hand.pace = 5
    assert reader.ledger.take(reader.slot, reader.hand, 1)
    assert log.head[WAIT_ROOM] == 7


@lockless
def test_the_highest_count_is_never_above_maxsize(tmp_path: Path) -> None:
    """Though lanes are read one after another, while items are put and handed out."""
    log = bounded(tmp_path, 6)
    outs = [log.putter(), log.putter(1)]
    first, second = log.reader(), log.reader(1)
    for out in (outs[0], outs[1]) * 3:
        assert out.put_now()
    assert first.claim(pace=3) == 1

    def go_on(index: int) -> None:
        if index in (outs[0].base + PUT, outs[1].base + PUT) and first.hand.claim:
            assert first.begin()
            first.end()
            for out in reversed(outs):
                log.runtime.slots.watch = None
                out.put_now()
                log.runtime.slots.watch = go_on

    log.runtime.slots.watch = go_on
    assert second.claim()
    log.runtime.slots.watch = None
    assert log.head[HIGHEST] == 6
    assert log.views[0].size() == 6


@lockless
@pytest.mark.parametrize("seed", range(6))
def test_room_at_random(tmp_path: Path, seed: int) -> None:
    """Puts begin, end and are given up, by producers that come, go and die; so do consumers.

    Who holds the lock may be killed in anything. There are never more items than maxsize, and
    always room for as many.
    """
    dice = random.Random(seed)
    maxsize = dice.choice((1, 2, 3, 10, 50))
    log = bounded(tmp_path, maxsize)
    outs = [log.putter()]
    readers = [log.reader(1)]
    going = set[Putter]()
    seen = list[Any]()
    handed = 0
    for _ in range(1500):
        view = dice.randrange(2)
        roll = dice.random()
        if roll < 0.02 and len(outs) < 4:
            outs.append(log.putter(view))
        elif roll < 0.03 and len(readers) < 3:
            readers.append(log.reader(view))
        elif roll < 0.05 and len(outs) > 1:
            out = outs.pop(dice.randrange(len(outs)))
            going.discard(out)
            if dice.random() < 0.5:
                out.leave()
            else:
                log.ledgers[view].close(out.slot, out.number)
        elif roll < 0.06 and len(readers) > 1:
            reader = readers.pop(dice.randrange(len(readers)))
            handed += bool(reader.hand.claim) and reader.begin()  # and is killed in that
            log.ledgers[view].close(reader.slot, reader.number)
        elif roll < 0.1:
            log.attempt(dice.randrange(1, 12), log.views[view].revoke)
        elif roll < 0.12:
            log.views[view].recall()
        elif roll < 0.6:
            out = dice.choice(outs)
            if out in going:
                going.discard(out)
                if dice.random() < 0.8:
                    out.end()
                else:
                    out.give_up()
            elif out.begin():
                going.add(out)
            elif dice.random() < 0.8:
                size = log.views[view].size()
                assert out.admit() or size + len(going) == maxsize
                out.give_up()
            else:
                log.attempt(dice.randrange(1, 12), out.admit)
                out.give_up()
        else:
            item = dice.choice(readers).get()
            if item is not EMPTY:
                seen.append(item)
        assert log.promised() <= maxsize
        assert log.views[view].totals()[0] == len(log.expected)
    for out in going:
        out.end()
    assert log.views[0].size() == len(log.expected) - len(seen) - handed
    dice.choice(outs).fill_up()
    assert log.views[1].size() == maxsize
    for reader in readers:
        log.ledger.close(reader.slot, reader.number)
    seen += log.reader(1).get_all()
    assert len(set(seen)) == len(seen) == len(log.expected) - handed
    assert log.head[HIGHEST] <= maxsize


INTERRUPTED_GET = """
import signal
from iterable_queue import IterableQueue

class Interrupted(BaseException): pass

def handler(*args):
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    raise Interrupted

def build():
    signal.raise_signal(signal.SIGUSR1)
    return "interrupted"

class Item:
    def __reduce__(self):
        return build, ()

signal.signal(signal.SIGUSR1, handler)
iq = IterableQueue()
out, source, other = iq.get_producer(), iq.get_consumer(), iq.get_consumer()
out.put_many(["first", Item(), "last"])
out.close()
iq.close()
print(source.get())
try:
    source.get()
except Interrupted:
    source.close()
print(list(other), iq.statistics().finished)
"""


def test_what_an_interrupted_get_had_is_given_back_by_close() -> None:
    run = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_GET],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert run.stderr == ""
    assert run.stdout.splitlines() == ["first", "['interrupted', 'last'] 3"]

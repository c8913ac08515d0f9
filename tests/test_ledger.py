"""The ledger: each transition and its effect, each refusal and its lack of any, and the whole.

`Desk` is a ledger over plain cells, with semaphores that only count. Three kinds of test: one
transition after another; a reference model in plain Python, with which long random histories are
compared; and a process that dies at every single store, whose left-overs `mend` makes whole.
"""

from __future__ import annotations

import functools
import itertools
import os
import random
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from queue import Queue, SimpleQueue
from types import FrameType
from typing import Any, TypeVar

import pytest

import iterable_queue
from iterable_queue import (
    Cancelled,
    ChannelBroken,
    ConsumersGone,
    Done,
    ItemsLost,
    ProducerClosed,
    ProducerFailed,
    QueueClosed,
    WouldDeadlock,
)
from iterable_queue._cells import (
    ABANDONED,
    AT,
    BLOCKED,
    BROKEN,
    BUSY,
    CANCELLED,
    CLOSED,
    CONSUMER,
    CONSUMERS,
    DROPPED,
    DROPPED_COPY,
    EVER,
    FAILED,
    FLAGS,
    FORKED,
    FREE,
    FREE_SLOT,
    GENERATION,
    HAD,
    HANDLE,
    HEAD_SIZE,
    HIGHEST,
    HOLDER,
    IN_HAND,
    KIND,
    LEAN,
    LOST,
    MAKER,
    MAX_DELIVERIES,
    MAXSIZE,
    NEXT,
    NONE_EVER,
    NUMBER,
    NUMBERS,
    OWNER,
    PROCESS,
    PRODUCER,
    PRODUCERS,
    QUEUE,
    REDELIVERED,
    RETURNED,
    ROAD,
    SENT,
    SLOT_SIZE,
    SLOTS,
    STAMP,
    STARTED,
    STATE,
    TAKEN,
    TEXT,
    UNASKED,
    USED,
    WAIT_END,
    WAIT_ITEM,
    WAIT_ROOM,
    WORKER,
    WORKERS,
)
from iterable_queue._channel import Hand
from iterable_queue._channels.log import CLAIM_NS, Lane, LogChannel
from iterable_queue._channels.log import OWNER as LANE_OWNER
from iterable_queue._channels.threads import ThreadChannel
from iterable_queue._fence import is_supported
from iterable_queue._ledger import IllegalTransition, Ledger
from iterable_queue._runtime import Condition, ThreadRuntime
from iterable_queue._seams import Cells, Channel
from tests.conftest import list_gate

R = TypeVar("R")

PACKAGE = os.path.dirname(iterable_queue.__file__)
ENDPOINTS = (PRODUCER, CONSUMER, WORKER)
COUNTS = {PRODUCER: PRODUCERS, CONSUMER: CONSUMERS, WORKER: WORKERS}


def taken_of(ledger: Ledger) -> int:
    return ledger.totals()[2]


def finished_of(ledger: Ledger) -> int:
    return ledger.totals()[3]


class Tokens:
    """A semaphore on which nobody sleeps."""

    def __init__(self) -> None:
        self.given = 0

    def acquire(self, block: bool = True, timeout: float | None = None, /) -> bool:
        if not self.given:
            return False
        self.given -= 1
        return True

    def release(self) -> None:
        self.given += 1


class Seat:
    """What an endpoint does with the ledger: the user's side of a slot."""

    def __init__(self, desk: Desk, kind: int, slot: int, number: int) -> None:
        self.desk = desk
        self.kind = kind
        self.slot = slot
        self.number = number
        lean = kind == CONSUMER and desk.channel.atomic
        self.hand = Hand(desk.channel, lean)
        self.hand.claims = kind == CONSUMER and desk.ledger.claims is not None
        self.lane: Lane | None = None
        if kind in (CONSUMER, WORKER):
            desk.ledger.hands[slot] = {0: self.hand}

    def cell(self, field: int) -> int:
        return self.desk.ledger.cells[self.slot * SLOT_SIZE + field]

    def put(self, payload: Any) -> bool:
        if self.kind == PRODUCER and self.desk.ledger.claims is not None:
            return self.put_on_lane(payload)
        return self.desk.ledger.put(self.slot, self.number, payload, self.kind == WORKER)

    def put_on_lane(self, payload: Any) -> bool:
        """Without the lock, as a producer does with a lane of its own."""
        desk, channel = self.desk, self.desk.log
        if desk.head[STATE] > CLOSED:
            raise desk.ledger.refusal()
        if self.lane is None:
            self.lane = channel.lane(self.slot, self.number)
            assert self.lane is not None
        lane = self.lane
        channel._write(lane, payload, self.number, desk.ledger.now())
        lane.put += 1
        lane.cells[lane.put_at] = lane.put
        if desk.head[WAIT_ITEM]:
            desk.ledger.transact(desk.ledger.was_put)
        return True

    def take(self, limit: int = 1) -> bool:
        """The transition alone: what was taken stays in `hand.pending`, or in `hand.claim`."""
        return self.desk.ledger.take(self.slot, self.hand, limit, limit > 1)

    def hand_out(self) -> list[Any]:
        """One of the claim, without the lock; [] if nothing is left of it."""
        hand, cells = self.hand, self.desk.ledger.cells
        if not hand.claim:
            return []
        cells[hand.next_at] = hand.next + 1
        if not hand.gate(False):
            return []
        hand.next += 1
        return [hand.claim.pop()]

    def get(self, limit: int = 1) -> list[Any]:
        """Take and return to the user, as `get` and `get_many` do; [] if there is nothing."""
        if limit == 1 and self.hand.claims:
            return self.hand_out() or (self.hand_out() if self.take() else [])
        if not self.take(limit):
            return []
        hand = self.hand
        items = [self.desk.channel.unwrap(payload)[0] for payload in hand.pending]
        if hand.pull is not None:
            hand.taken += len(items)
            if limit > 1:
                hand.last = len(items)
                hand.quick = None
        del hand.pending[:]
        return items

    def close(self) -> bool:
        self.leave()
        return self.desk.ledger.close(self.slot, self.number)

    def leave(self) -> None:
        lane, self.lane = self.lane, None
        if lane is not None:
            self.desk.log.leave(lane)
        self.hand.claim = []

    def fail(self, error: BaseException | None = None) -> bool:
        self.leave()
        return self.desk.ledger.fail(self.slot, self.number, error or ValueError("failed"))


def over_queue(head: Cells) -> Channel:
    return ThreadChannel(head, Queue[Any]())


def over_simple_queue(head: Cells) -> Channel:
    return ThreadChannel(head, SimpleQueue[Any]())


def over_log(path: Path) -> Callable[[Cells], Channel]:
    return lambda head: LogChannel(head, str(path))


lockless = pytest.mark.skipif(not is_supported(), reason="all goes by the lock here")


class Desk:
    """A ledger on plain cells, the process that works on it (slot 1) and the queue (slot 2)."""

    def __init__(
        self,
        channel: Callable[[Cells], Channel] = over_queue,
        maxsize: int = 0,
        *,
        cancel: bool = False,
        redeliver: bool = False,
        runtime: ThreadRuntime | None = None,
        lockless: bool = False,
    ) -> None:
        waiters = (WAIT_ITEM, WAIT_ROOM, WAIT_END)
        self.runtime = runtime or ThreadRuntime(HEAD_SIZE, waiters)
        self.head = self.runtime.head
        self.items, self.room, self.end = tokens = (Tokens(), Tokens(), Tokens())
        self.runtime.items, self.runtime.room, self.runtime.end = (
            Condition(self.head, index, each) for index, each in zip(waiters, tokens, strict=True)
        )
        self.channel = channel(self.head)
        self.ledger = Ledger(self.runtime, self.channel)
        self.lockless = lockless
        self.begin()
        self.ledger.set_up(maxsize, cancel=cancel, deliveries=MAX_DELIVERIES if redeliver else 0)
        self.ledger.me = self.ledger.open_process(100, lambda slot: None)
        self.ledger.open(QUEUE, "main.py:1")

    def begin(self) -> None:
        """What is done once ledger and channel know each other."""
        if isinstance(self.channel, LogChannel):
            self.channel.begin(self.ledger)
            if self.lockless:
                self.channel.pass_the_lock_by(list_gate)

    @property
    def log(self) -> LogChannel:
        assert isinstance(self.channel, LogChannel)
        return self.channel

    def open(self, kind: int, site: str = "main.py:2", *, clone: bool = False) -> Seat:
        return Seat(self, kind, *self.ledger.open(kind, site, clone=clone))

    def close_queue(self) -> bool:
        return self.ledger.close(2, 0)

    def sleepers(self, items: int = 0, room: int = 0, end: int = 0) -> None:
        """So many callers say that they are about to sleep."""
        for count, condition in (
            (items, self.runtime.items),
            (room, self.runtime.room),
            (end, self.runtime.end),
        ):
            for _ in range(count):
                condition.announce()

    def woken(self) -> tuple[int, int, int]:
        """How many were woken, of those who wait for items, room and the end."""
        return self.items.given, self.room.given, self.end.given

    def snapshot(self) -> tuple[object, ...]:
        """All that there is to change."""
        return (
            list(self.head),
            list(self.ledger.cells),
            self.channel.size(),
            self.woken(),
            self.runtime.errors.failures(),
            {slot: list(hands) for slot, hands in self.ledger.hands.items()},
        )


@pytest.fixture
def desk() -> Desk:
    return Desk()


# The lock rule


def test_a_transition_names_its_holder(desk: Desk) -> None:
    assert desk.ledger.transact(lambda: desk.head[HOLDER]) == 1
    assert desk.head[HOLDER] == 0


def test_a_holder_without_a_slot_is_named_by_its_pid(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getpid", lambda: 4711)
    desk.ledger.me = 0
    assert desk.ledger.transact(lambda: desk.head[HOLDER]) == -4711


def test_a_transition_that_raises_lets_go(desk: Desk) -> None:
    with pytest.raises(ZeroDivisionError):
        desk.ledger.transact(lambda: 1 // 0)
    assert desk.head[HOLDER] == 0


def test_arguments_and_result_pass_through(desk: Desk) -> None:
    assert desk.ledger.transact(divmod, 7, 2) == (3, 1)
    assert desk.ledger.transact(int, "12", base=3) == 5


def test_hot_calls_name_their_holder_and_let_go(desk: Desk) -> None:
    seen = list[int]()
    out, source = desk.open(PRODUCER), desk.open(CONSUMER)
    append, size = desk.channel.append, desk.channel.size

    class Spying:
        stash = desk.channel.stash
        peek = desk.channel.peek

        def append(self, payload: Any, producer: int) -> None:
            seen.append(desk.head[HOLDER])
            append(payload, producer)

        def size(self) -> int:
            seen.append(desk.head[HOLDER])
            return size()

    desk.ledger.channel = Spying()  # type: ignore[assignment] # as much as is used
    assert out.put(1)
    assert source.take()
    assert set(seen) == {1}
    assert desk.head[HOLDER] == 0


CALLS = ("put", "take", "transact")


def calls_of(desk: Desk) -> dict[str, Callable[[], object]]:
    """Each way into the ledger, on a queue that has an item."""
    out, source = desk.open(PRODUCER), desk.open(CONSUMER)
    out.put(1)
    return {
        "put": lambda: out.put(2),
        "take": source.take,
        "transact": lambda: desk.ledger.transact(desk.close_queue),
    }


@pytest.mark.parametrize("inside", CALLS)
def test_a_nested_call_is_refused(desk: Desk, inside: str) -> None:
    """Of a signal handler or `__del__` that interrupts a transition of the same thread."""
    call = calls_of(desk)[inside]

    def interrupted() -> None:
        before = desk.snapshot()
        with pytest.raises(WouldDeadlock, match="nothing was changed"):
            call()
        assert desk.snapshot() == before

    desk.ledger.transact(interrupted)
    call()


@pytest.mark.parametrize("inside", CALLS)
@pytest.mark.parametrize(("me", "name"), [(0, -4711), (1, -4711), (1, 1)])
def test_ones_own_name_says_that_a_call_is_nested(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, inside: str, me: int, name: int
) -> None:
    """Also that of a process without a slot, or one that got its slot just then, inside."""
    monkeypatch.setattr("os.getpid", lambda: 4711)
    call = calls_of(desk)[inside]
    desk.ledger.me = me
    desk.head[HOLDER] = name
    desk.head[PRODUCERS] = 99  # which mending would put right
    before = desk.snapshot()
    for refused in (call, desk.ledger._succeed):
        with pytest.raises(WouldDeadlock, match="nothing was changed"):
            refused()
    assert desk.snapshot() == before


@pytest.mark.parametrize("inside", CALLS)
@pytest.mark.parametrize("name", [7, -4712, -1])
def test_anothers_name_is_that_of_a_dead_one_after_whom_is_mended(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, inside: str, name: int
) -> None:
    """Before the call, which then does what it does, with its own name on the lock."""
    monkeypatch.setattr("os.getpid", lambda: 4711)
    call = calls_of(desk)[inside]
    other = Desk()
    reference = calls_of(other)[inside]
    desk.head[HOLDER] = name
    desk.head[PRODUCERS] = 99  # half done
    names = list[int]()
    mend = Ledger.mend

    def mending(ledger: Ledger) -> None:
        names.append(ledger.head[HOLDER])
        mend(ledger)

    monkeypatch.setattr(Ledger, "mend", mending)
    assert call() == reference()
    assert names == [1]
    assert desk.head[HOLDER] == 0
    assert desk.head[PRODUCERS] == 1
    assert desk.channel.size() == other.channel.size()
    assert desk.ledger.state_name() == other.ledger.state_name()
    desk.ledger.transact(int)
    assert names == [1], "once is enough"


def test_who_mends_without_a_slot_is_named_by_its_pid(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = list[int]()

    def mend(ledger: Ledger) -> None:
        names.append(ledger.head[HOLDER])

    monkeypatch.setattr("os.getpid", lambda: 4711)
    monkeypatch.setattr(Ledger, "mend", mend)
    desk.ledger.me = 0
    desk.ledger.mend_after(7)
    assert names == [-4711]
    assert desk.head[HOLDER] == 0


@pytest.mark.parametrize("inside", CALLS)
def test_an_interrupted_mending_is_still_to_be_done(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, inside: str
) -> None:
    """A handler raised in it: the lock is let go, and has the dead one's name again."""
    call = calls_of(desk)[inside]
    desk.head[HOLDER] = 7
    desk.head[PRODUCERS] = 99

    def mend(ledger: Ledger) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "mend", mend)
        before = desk.snapshot()
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                call()
            assert desk.snapshot() == before
    call()
    assert desk.head[HOLDER] == 0
    assert desk.head[PRODUCERS] == 1


@pytest.mark.parametrize("holder", [0, 7, -4711])
def test_mending_is_done_in_the_name_of_who_does_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, holder: int
) -> None:
    """0: the dead one had not come to write its name, or had wiped it out."""

    def mend(ledger: Ledger) -> None:
        assert ledger.head[HOLDER] == 1
        raise KeyboardInterrupt

    desk.head[PRODUCERS] = 99
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "mend", mend)
        with pytest.raises(KeyboardInterrupt):
            desk.ledger.mend_after(holder)
    assert desk.head[HOLDER] == holder
    desk.ledger.mend_after(holder)
    assert desk.head[HOLDER] == 0
    assert desk.head[PRODUCERS] == 0


def test_a_call_nested_in_mending_is_refused(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def mend(ledger: Ledger) -> None:
        with pytest.raises(WouldDeadlock):
            ledger.transact(int)
        assert ledger.head[HOLDER] == 1

    monkeypatch.setattr(Ledger, "mend", mend)
    desk.head[HOLDER] = 7
    assert desk.ledger.transact(int, "12") == 12


def test_a_transition_sees_slots_that_others_added(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Ledger(desk.runtime, desk.channel)
    other.me = 1
    few = list(other.cells[: 2 * SLOT_SIZE])
    for _ in range(50):
        desk.open(PRODUCER)
    asked = list[int]()
    cells = desk.runtime.cells

    def watched(count: int) -> Cells:
        asked.append(count)
        return cells(count)

    monkeypatch.setattr(desk.runtime, "cells", watched)
    other.cells = few  # as it was mapped when there were no more
    assert [view.slot for view in other.views()] == [1], "what is not mapped is not seen"
    assert other.transact(other.is_open, 52, 50)
    assert asked == [53 * SLOT_SIZE]
    other.cells = list(other.cells[: 53 * SLOT_SIZE])
    assert other.transact(other.is_open, 52, 50)
    assert len(asked) == 1, "it has all that there are"
    other.cells = few
    other.mend()
    assert asked[1:] == [53 * SLOT_SIZE]
    check_slots(other)


def test_another_process_knows_the_size() -> None:
    desk = Desk(maxsize=1)
    out = desk.open(PRODUCER)
    desk.ledger = Ledger(desk.runtime, desk.channel)
    desk.ledger.me = 1
    assert out.put(1)
    assert not out.put(2)


# Endpoints


def test_a_new_queue(desk: Desk) -> None:
    assert desk.ledger.state_name() == "open"
    assert [desk.head[count] for count in COUNTS.values()] == [0, 0, 0]
    assert [view.kind for view in desk.ledger.views()] == [PROCESS, QUEUE]
    assert desk.head[HANDLE] == 1
    assert desk.ledger.totals()[:2] == (0, 0)
    assert desk.ledger.verdict() is None
    assert desk.ledger.join_verdict() is False


def test_what_is_on_the_channel_already_counts_as_put() -> None:
    queue = Queue[int]()
    queue.put(1)
    queue.put(2)
    desk = Desk(lambda head: ThreadChannel(head, queue))
    assert desk.head[HIGHEST] == 2
    assert desk.ledger.totals()[:2] == (2, 2)


@pytest.mark.parametrize("kind", ENDPOINTS)
def test_an_endpoint_counts_from_opening_to_closing(desk: Desk, kind: int) -> None:
    before = desk.head[NUMBERS]
    seat = desk.open(kind, "user.py:12")
    assert {k: desk.head[count] for k, count in COUNTS.items()} == {
        k: int(k == kind) for k in ENDPOINTS
    }
    assert desk.head[EVER] == (kind != PRODUCER)
    assert desk.head[BUSY] == (kind == WORKER)
    assert seat.number == desk.head[NUMBERS] == before + 1
    view = desk.ledger.view(seat.slot)
    assert view.kind == kind
    assert view.number == seat.number
    assert view.flags == (UNASKED if kind == WORKER else 0)
    assert (view.owner, view.maker, view.road, view.lineage) == (0, 1, 0, 0)
    assert (view.in_hand, view.blocked) == (0, 0)
    assert 0 < view.stamp <= desk.runtime.now()
    assert view.text == "user.py:12"
    assert desk.ledger.is_open(seat.slot, seat.number)
    assert not desk.ledger.is_open(seat.slot, seat.number + 1)

    assert seat.close()
    assert [desk.head[count] for count in COUNTS.values()] == [0, 0, 0]
    assert desk.head[BUSY] == 0
    assert desk.head[EVER] == (kind != PRODUCER)
    assert not desk.ledger.is_open(seat.slot, seat.number)
    before_second = desk.snapshot()
    assert seat.close() is False
    assert seat.fail() is False
    assert desk.snapshot() == before_second


def test_numbers_are_never_given_twice_but_slots_are(desk: Desk) -> None:
    seats = [desk.open(PRODUCER) for _ in range(3)]
    for seat in seats:
        seat.close()
    again = [desk.open(CONSUMER) for _ in range(3)]
    assert [seat.slot for seat in again] == [seat.slot for seat in reversed(seats)]
    assert [seat.number for seat in again] == [4, 5, 6]
    for old in seats:
        assert not desk.ledger.is_open(old.slot, old.number)
        assert not old.close()


def test_many_endpoints_one_after_another_take_one_slot(desk: Desk) -> None:
    for _ in range(1000):
        desk.open(CONSUMER).close()
    assert desk.head[SLOTS] == 4


def test_slots_grow(desk: Desk) -> None:
    seats = [desk.open(ENDPOINTS[n % 3]) for n in range(300)]
    assert desk.head[SLOTS] == 303
    assert [seat.slot for seat in seats] == list(range(3, 303))
    assert [desk.head[count] for count in COUNTS.values()] == [100, 100, 100]
    assert all(desk.ledger.is_open(seat.slot, seat.number) for seat in seats)


def test_a_slot_that_is_used_again_is_blank(desk: Desk) -> None:
    seat = desk.open(WORKER, "x" * 200)
    base = seat.slot * SLOT_SIZE
    for field in range(FLAGS, TEXT):
        desk.ledger.cells[base + field] = 77
    desk.ledger.cells[base + IN_HAND] = 0
    seat.close()
    again = desk.open(PRODUCER, "y")
    assert again.slot == seat.slot
    row = list(desk.ledger.cells[base : base + SLOT_SIZE])
    changed = {KIND, NUMBER, MAKER, STAMP, TEXT}
    assert [n for n, cell in enumerate(row) if cell] == sorted(changed)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("", ""),
        ("a.py:1", "a.py:1"),
        ("b" * 128, "b" * 128),
        ("b" * 129, "..." + "b" * 125),
        ("/" + "d" * 300 + "/file.py:123", "..." + "d" * 113 + "/file.py:123"),
        ("ü" * 64, "ü" * 64),
        ("/ü/\udcff.py:1", "/ü/?.py:1"),
    ],
)
def test_a_text_is_kept_from_its_end(desk: Desk, text: str, kept: str) -> None:
    assert (SLOT_SIZE - TEXT) * 8 == 128
    assert desk.ledger.view(desk.open(PRODUCER, text).slot).text == kept


def test_a_text_that_is_cut_inside_a_letter_can_be_read(desk: Desk) -> None:
    text = desk.ledger.view(desk.open(PRODUCER, "aü" * 60).slot).text
    assert text.startswith("...")
    assert text.endswith("aüaü")


def test_views_are_of_the_kinds_that_are_asked_for(desk: Desk) -> None:
    seats = [desk.open(kind) for kind in (*ENDPOINTS, PRODUCER)]
    seats[1].close()

    def numbers(*kinds: int) -> list[int]:
        return [view.slot for view in desk.ledger.views(*kinds)]

    assert numbers() == [1, 2, 3, 5, 6]
    assert numbers(PRODUCER) == [3, 6]
    assert numbers(CONSUMER) == []
    assert numbers(WORKER, QUEUE) == [2, 5]


def test_blocked_callers_are_shown_while_the_endpoint_is_open(desk: Desk) -> None:
    seat = desk.open(CONSUMER)
    desk.ledger.set_blocked(seat.slot, seat.number, 3)
    assert desk.ledger.view(seat.slot).blocked == seat.cell(BLOCKED) == 3
    desk.ledger.set_blocked(seat.slot, seat.number + 1, 5)
    assert seat.cell(BLOCKED) == 3


def test_the_queue_is_closed_for_producers_and_workers(desk: Desk) -> None:
    out = desk.open(PRODUCER)
    tree = desk.open(WORKER)
    assert desk.close_queue()
    assert not desk.close_queue()
    assert desk.head[STATE] == CLOSED
    assert desk.ledger.state_name() == "closed"
    for kind in (PRODUCER, WORKER):
        before = desk.snapshot()
        with pytest.raises(QueueClosed, match="before leaving the `with` block"):
            desk.open(kind)
        assert desk.snapshot() == before
    assert desk.open(CONSUMER).number == 3
    assert desk.open(PRODUCER, clone=True).number == 4
    assert desk.open(WORKER, clone=True).number == 5
    out.close()
    tree.close()
    assert [desk.head[count] for count in COUNTS.values()] == [1, 1, 1]


# Owners


def test_the_first_to_take_an_endpoint_has_it(desk: Desk) -> None:
    ledger = desk.ledger
    seat = desk.open(PRODUCER)
    other = ledger.open_process(200, lambda slot: None)
    base = seat.slot * SLOT_SIZE
    ledger.cells[base + FLAGS] = SENT | FORKED | DROPPED_COPY | STARTED
    assert ledger.take_over(seat.slot, seat.number, None)
    assert seat.cell(OWNER) == 1
    assert seat.cell(GENERATION) == 1
    assert seat.cell(FLAGS) == STARTED
    before = desk.snapshot()
    assert ledger.take_over(seat.slot, seat.number, None), "by the same process again"
    assert ledger.take_over(seat.slot, seat.number, 0), "even by an old pickle"
    assert desk.snapshot() == before

    ledger.me = other
    assert ledger.take_over(seat.slot, seat.number, None) is False
    assert ledger.take_over(seat.slot, seat.number, 0) is False, "a pickle made before"
    assert ledger.take_over(seat.slot, seat.number + 1, 1) is False, "of another endpoint"
    assert desk.snapshot() == before
    assert ledger.take_over(seat.slot, seat.number, 1), "one made since, and it is unused"
    assert seat.cell(OWNER) == other
    assert seat.cell(GENERATION) == 2

    ledger.cells[base + FLAGS] |= USED
    ledger.me = 1
    before = desk.snapshot()
    assert ledger.take_over(seat.slot, seat.number, 2) is False, "it is used"
    assert desk.snapshot() == before
    seat.close()
    assert ledger.take_over(seat.slot, seat.number, 2) is False, "it is closed"


def test_an_endpoint_is_given_to_a_process(desk: Desk) -> None:
    ledger = desk.ledger
    seat = desk.open(WORKER)
    child = ledger.open_process(0, lambda slot: None)
    ledger.cells[seat.slot * SLOT_SIZE + FLAGS] |= SENT | FORKED
    ledger.assign(seat.slot, child)
    assert seat.cell(OWNER) == child
    assert seat.cell(GENERATION) == 1
    assert seat.cell(FLAGS) == STARTED | UNASKED
    ledger.cells[seat.slot * SLOT_SIZE + FLAGS] |= USED
    for process in (child, 1):
        before = desk.snapshot()
        with pytest.raises(IllegalTransition, match=f"slot {seat.slot} can't be given to"):
            ledger.assign(seat.slot, process)
        assert desk.snapshot() == before


def test_a_process_has_a_slot(desk: Desk) -> None:
    locked = list[tuple[int, int]]()

    def prepare(slot: int) -> None:
        locked.append((slot, desk.ledger.cells[slot * SLOT_SIZE + KIND]))

    slot = desk.ledger.open_process(4711, prepare)
    assert locked == [(slot, FREE)], "before it counts"
    view = desk.ledger.view(slot)
    assert (view.kind, view.number, view.maker, view.text) == (PROCESS, 4711, 1, "")
    assert 0 < view.stamp <= desk.runtime.now()


@pytest.mark.parametrize("free", [0, 1, 3])
def test_a_process_that_can_not_be_locked_takes_no_slot(desk: Desk, free: int) -> None:
    """Neither a new one nor one that was free."""

    def refuse(slot: int) -> None:
        raise OSError("no descriptors")

    for seat in [desk.open(PRODUCER) for _ in range(free)]:
        seat.close()
    for _ in range(3):
        with pytest.raises(OSError, match="no descriptors"):
            desk.ledger.open_process(4711, refuse)
        check_slots(desk.ledger)
    assert desk.head[SLOTS] == 3 + max(free, 1)
    assert {desk.open(PRODUCER).slot for _ in range(free)} == set(range(3, 3 + free))


def test_a_process_goes(desk: Desk) -> None:
    ledger = desk.ledger
    slot = ledger.open_process(200, lambda slot: None)
    ledger.me = slot
    seats = [desk.open(PRODUCER), desk.open(CONSUMER)]
    ledger.me = 1
    mine = desk.open(PRODUCER)
    for seat in (*seats, mine):
        ledger.cells[seat.slot * SLOT_SIZE + ROAD] = slot
    ledger.cells[seats[1].slot * SLOT_SIZE + ROAD] = 1
    ledger.release_process(slot)
    assert ledger.cells[slot * SLOT_SIZE + KIND] == FREE
    assert [seat.cell(MAKER) for seat in (*seats, mine)] == [0, 0, 1]
    assert [seat.cell(ROAD) for seat in (*seats, mine)] == [0, 1, 0]
    assert ledger.open_process(300, lambda slot: None) == slot, "its slot is used again"
    assert desk.head[HANDLE] == 1
    assert desk.head[EVER] == 1


def test_the_process_with_the_one_handle_goes(desk: Desk) -> None:
    out = desk.open(PRODUCER)
    desk.close_queue()
    desk.ledger.release_process(1)
    assert desk.head[HANDLE] == 0
    assert desk.head[EVER] == NONE_EVER
    assert desk.head[STATE] == CLOSED | ABANDONED
    assert out.cell(MAKER) == 0


@pytest.mark.parametrize("handle", [1, 0, 7])
def test_the_one_handle_is_that_process_or_nobodys(desk: Desk, handle: int) -> None:
    desk.head[HANDLE] = handle
    desk.ledger.release_process(1)
    assert desk.head[EVER] == (NONE_EVER if handle == 1 else 0)


# Items


def test_put_and_take(desk: Desk) -> None:
    out, source = desk.open(PRODUCER), desk.open(CONSUMER)
    assert out.put("a")
    assert out.put("b")
    assert desk.ledger.totals()[:2] == (2, 2)
    assert source.get() == ["a"]
    assert source.hand.held == source.cell(IN_HAND) == desk.ledger.in_hand() == 1
    assert taken_of(desk.ledger) == desk.head[TAKEN] == 1
    assert finished_of(desk.ledger) == 0
    assert source.get() == ["b"]
    assert finished_of(desk.ledger) == 1
    assert source.get() == []
    assert source.hand.held == source.cell(IN_HAND) == desk.ledger.in_hand() == 0
    assert finished_of(desk.ledger) == 2
    assert desk.ledger.totals()[:2] == (2, 0)


@pytest.mark.parametrize(("limit", "count"), [(1, 1), (3, 3), (4, 4), (5, 4)])
def test_take_up_to_a_limit(desk: Desk, limit: int, count: int) -> None:
    out, source = desk.open(PRODUCER), desk.open(CONSUMER)
    for n in range(4):
        out.put(n)
    assert source.get(limit) == list(range(count))
    assert source.hand.held == source.cell(IN_HAND) == count
    assert desk.head[TAKEN] == count
    assert source.cell(AT) == count
    assert source.get(limit) == list(range(count, min(2 * count, 4)))
    assert finished_of(desk.ledger) == count


def test_one_taken_for_one_finished_leaves_what_is_in_hand(desk: Desk) -> None:
    """The shorter way; with more in hand, or for more, the longer one."""
    out, source = desk.open(PRODUCER), desk.open(CONSUMER)
    for n in range(6):
        out.put(n)
    assert source.get(2) == [0, 1]
    assert source.get(1) == [2]
    assert source.cell(IN_HAND) == source.hand.held == 1
    assert source.get(1) == [3]
    assert source.cell(IN_HAND) == source.hand.held == 1
    assert source.get(2) == [4, 5]
    assert source.cell(IN_HAND) == source.hand.held == 2
    assert finished_of(desk.ledger) == 4


def test_what_is_pending_is_not_taken_twice(desk: Desk) -> None:
    out, source = desk.open(PRODUCER), desk.open(CONSUMER)
    out.put("a")
    out.put("b")
    assert source.take(2)
    assert source.hand.pending == ["a", "b"]
    assert desk.channel.stash == []
    assert desk.channel.size() == 0


def test_a_bounded_queue_is_full_at_its_size() -> None:
    desk = Desk(maxsize=2)
    out, source = desk.open(PRODUCER), desk.open(CONSUMER)
    assert out.put(1)
    assert out.put(2)
    before = desk.snapshot()
    assert not out.put(3)
    assert desk.snapshot() == before
    assert source.get() == [1]
    assert out.put(3)
    assert not out.put(4)


def test_a_worker_puts_beyond_the_size() -> None:
    desk = Desk(maxsize=1)
    tree = desk.open(WORKER)
    assert all(tree.put(n) for n in range(5))
    assert desk.channel.size() == 5


def test_a_worker_is_busy_until_it_asks(desk: Desk) -> None:
    out, tree = desk.open(PRODUCER), desk.open(WORKER)
    assert desk.head[BUSY] == 1
    out.put(1)
    out.put(2)
    out.put(3)
    assert tree.get() == [1]
    assert desk.head[BUSY] == 1
    assert tree.cell(FLAGS) & UNASKED == 0
    assert tree.get(2) == [2, 3]
    assert desk.head[BUSY] == 2
    assert tree.get() == []
    assert desk.head[BUSY] == 0


def test_two_threads_of_a_worker(desk: Desk) -> None:
    tree = desk.open(WORKER)
    other = Hand(desk.channel, False)
    desk.ledger.hands[tree.slot][1] = other
    tree.put(1)
    tree.put(2)
    assert tree.get() == [1]
    assert desk.ledger.take(tree.slot, other, 1)
    assert desk.head[BUSY] == tree.cell(IN_HAND) == 2
    assert tree.get() == []
    assert desk.head[BUSY] == tree.cell(IN_HAND) == other.held == 1
    assert tree.close()
    assert desk.head[BUSY] == 0
    assert desk.ledger.in_hand() == 0


def test_the_highest_number_queued(desk: Desk) -> None:
    out, source = desk.open(PRODUCER), desk.open(CONSUMER)
    for n in range(5):
        out.put(n)
    source.get()
    assert desk.head[HIGHEST] == 5
    source.get(9)
    out.put(5)
    source.get()
    assert desk.head[HIGHEST] == 5


@pytest.mark.parametrize("kind", [PRODUCER, WORKER])
def test_a_put_wakes_one_who_waits_for_an_item(desk: Desk, kind: int) -> None:
    out = desk.open(kind)
    out.put(1)
    assert desk.woken() == (0, 0, 0)
    desk.sleepers(items=2, room=1, end=1)
    out.put(2)
    assert desk.woken() == (1, 0, 0)
    assert desk.head[WAIT_ITEM] == 1


@pytest.mark.parametrize("limit", [1, 2, 9])
@pytest.mark.parametrize("lean", [False, True])
def test_a_take_wakes_as_many_who_wait_for_room_as_it_took(limit: int, lean: bool) -> None:
    desk = Desk(over_simple_queue if lean else over_queue, maxsize=5)
    out, source = desk.open(PRODUCER), desk.open(CONSUMER)
    for n in range(4):
        out.put(n)
    desk.sleepers(items=1, room=9, end=1)
    took = len(source.get(limit))
    assert took == min(limit, 4)
    assert desk.woken() == (0, took, 0)
    if limit == 1:
        source.get()  # by the shorter way
        assert desk.woken() == (0, 2, 0)


def test_an_empty_take_wakes_nobody_on_an_open_queue(desk: Desk) -> None:
    desk.open(PRODUCER)
    source = desk.open(CONSUMER)
    desk.sleepers(1, 1, 1)
    assert source.get() == []
    assert desk.woken() == (0, 0, 0)


@pytest.mark.parametrize("lean", [False, True])
def test_the_last_item_finished_wakes_everybody(lean: bool) -> None:
    desk = Desk(over_simple_queue if lean else over_queue)
    out, source = desk.open(PRODUCER), desk.open(CONSUMER)
    out.put(1)
    out.close()
    desk.close_queue()
    assert source.get() == [1]
    desk.sleepers(2, 1, 3)
    assert source.get() == []
    assert desk.woken() == (2, 1, 3)


def test_a_worker_that_asks_again_ends_the_others_wait(desk: Desk) -> None:
    tree = desk.open(WORKER)
    desk.open(WORKER).get()
    tree.put(1)
    desk.close_queue()
    assert tree.get() == [1]
    desk.sleepers(items=1)
    assert desk.ledger.verdict() is None
    assert tree.get() == []
    assert desk.woken()[0] == 1
    assert isinstance(desk.ledger.verdict(), Done)


def test_a_worker_that_asks_for_the_first_time_ends_the_others_wait(desk: Desk) -> None:
    tree = desk.open(WORKER)
    desk.open(WORKER).get()
    desk.close_queue()
    desk.sleepers(items=1, end=1)
    assert tree.get() == []
    assert desk.woken() == (1, 0, 1)


# Hands that count by themselves


@pytest.fixture
def lean() -> Desk:
    """Over an atomic channel."""
    return Desk(over_simple_queue)


def test_what_a_lean_hand_has_pulled_is_taken_and_in_hand(lean: Desk) -> None:
    """As somebody sees it who looks while a thread is inside `get`: it is queued no more."""
    out, source = lean.open(PRODUCER), lean.open(CONSUMER)
    out.put(1)
    out.put(2)
    assert source.get() == [1]
    hand = source.hand
    assert hand.quick is not None
    hand.quick()
    assert (*lean.ledger.totals(), lean.ledger.in_hand()) == (2, 0, 2, 1, 1)
    hand.taken += 1
    del hand.pending[0]
    assert lean.ledger.totals()[:2] == (2, 0)
    assert (*lean.ledger.totals()[2:], lean.ledger.in_hand()) == (2, 1, 1)


def test_what_a_lean_hand_took_is_folded_in(lean: Desk) -> None:
    out, source = lean.open(PRODUCER), lean.open(CONSUMER)
    hand = source.hand
    for n in range(5):
        out.put(n)
    assert source.get() == [0]
    assert lean.head[TAKEN] == lean.head[LEAN] == 0, "until somebody asks"
    assert lean.ledger.in_hand() == 1
    assert lean.head[LEAN] == taken_of(lean.ledger) == 1
    assert source.cell(IN_HAND) == 1
    assert hand.quick is not None
    for _ in range(2):  # as `get` does without the lock
        hand.quick()
        hand.taken += 1
        del hand.pending[0]
    assert finished_of(lean.ledger) == 2
    assert taken_of(lean.ledger) == 3
    assert source.cell(IN_HAND) == 1
    assert source.get(9) == [3, 4]
    assert lean.ledger.in_hand() == source.cell(IN_HAND) == 2
    assert finished_of(lean.ledger) == 3
    assert source.get() == []
    assert lean.ledger.in_hand() == 0
    assert finished_of(lean.ledger) == 5
    assert hand.seen == (5, 0)
    assert hand.idle_at == 5


def test_after_many_the_next_one_finishes_them_all(lean: Desk) -> None:
    """It is taken under the lock, and the one after it without again."""
    out, source = lean.open(PRODUCER), lean.open(CONSUMER)
    for n in range(6):
        out.put(n)
    hand: Any = source.hand
    assert source.get(3) == [0, 1, 2]
    assert hand.quick is None
    assert lean.ledger.in_hand() == 3
    assert source.get() == [3]
    assert hand.quick == hand.pull
    assert lean.ledger.in_hand() == 1
    assert finished_of(lean.ledger) == 3


def test_what_a_lean_hand_gives_back_was_not_taken(lean: Desk) -> None:
    out, source = lean.open(PRODUCER), lean.open(CONSUMER)
    out.put("a")
    out.put("b")
    assert source.take(2)
    assert (*lean.ledger.totals(), lean.ledger.in_hand()) == (2, 0, 2, 0, 2)
    lean.ledger.give_back(source.slot, source.hand)
    assert source.hand.pending == []
    assert (*lean.ledger.totals(), lean.ledger.in_hand()) == (2, 2, 0, 0, 0)
    assert lean.head[RETURNED] == 0
    assert source.get(2) == ["a", "b"]


def test_a_lean_hand_remembers_the_most_that_it_saw(lean: Desk) -> None:
    out, source = lean.open(PRODUCER), lean.open(CONSUMER)
    for n in range(3):
        out.put(n)
    source.get(9)
    assert source.hand.peak == 3
    lean.ledger.fold()
    assert lean.head[HIGHEST] == 3
    out.put(1)
    source.get()
    assert source.hand.peak == 3
    for n in range(7):
        out.put(n)
    lean.ledger.fold()
    assert lean.head[HIGHEST] == 7, "what is queued at the fold counts as well"


def test_closing_folds_first(lean: Desk) -> None:
    out, source = lean.open(PRODUCER), lean.open(CONSUMER)
    out.put(1)
    assert source.get() == [1]
    source.close()
    assert taken_of(lean.ledger) == finished_of(lean.ledger) == 1
    assert source.slot not in lean.ledger.hands


def test_totals_are_of_one_moment(lean: Desk) -> None:
    """What is handed out without the lock between two looks makes it look again."""
    out, source = lean.open(PRODUCER), lean.open(CONSUMER)
    for n in range(4):
        out.put(n)
    source.get()
    channel, looks = lean.channel, itertools.count(1)
    hand = source.hand

    class Busy:
        def size(self) -> int:
            if next(looks) == 2 and hand.quick is not None:
                hand.quick()  # by another thread, between the looks at TAKEN and at the channel
                hand.taken += 1
                del hand.pending[0]
            return channel.size()

    lean.ledger.channel = Busy()  # type: ignore[assignment] # as much as is used
    assert lean.ledger.totals()[:2] == (4, 2)
    assert next(looks) > 3


# Coming back


@pytest.mark.parametrize("kind", [CONSUMER, WORKER])
def test_what_was_taken_and_not_returned_is_given_back(desk: Desk, kind: int) -> None:
    out, source = desk.open(PRODUCER), desk.open(kind)
    out.put("a")
    out.put("b")
    out.put("c")
    assert source.take(2)
    desk.sleepers(items=3)
    desk.ledger.give_back(source.slot, source.hand)
    assert source.hand.pending == []
    assert source.hand.held == source.cell(IN_HAND) == 0
    assert desk.head[RETURNED] == 2
    assert desk.head[BUSY] == 0
    assert desk.woken() == (2, 0, 0)
    assert desk.ledger.totals() == (3, 3, 0, 0)
    assert desk.open(CONSUMER).get(9) == ["c", "a", "b"]


@pytest.mark.parametrize("kind", [CONSUMER, WORKER])
def test_what_is_given_back_after_a_cancel_is_dropped(desk: Desk, kind: int) -> None:
    out, source = desk.open(PRODUCER), desk.open(kind)
    out.put("a")
    out.put("b")
    assert source.take(1)
    desk.ledger.cancel(None)
    desk.ledger.give_back(source.slot, source.hand)
    assert desk.channel.size() == 0
    assert desk.head[DROPPED] == 2
    assert desk.ledger.totals()[:2] == (2, 0)
    assert finished_of(desk.ledger) == desk.ledger.in_hand() == 0


@pytest.mark.parametrize("kind", [CONSUMER, WORKER])
def test_items_are_lost(desk: Desk, kind: int) -> None:
    out, source = desk.open(PRODUCER), desk.open(kind)
    for n in range(3):
        out.put(n)
    source.get(3)
    before = desk.snapshot()
    with pytest.raises(IllegalTransition, match="has no 4 items in hand"):
        desk.ledger.lose(source.slot, 4)
    assert desk.snapshot() == before
    desk.ledger.lose(source.slot, 2)
    assert desk.head[LOST] == 2
    assert source.cell(IN_HAND) == 1
    assert desk.head[BUSY] == (1 if kind == WORKER else 0)
    source.close()
    out.close()
    desk.close_queue()
    assert finished_of(desk.ledger) == 1
    verdict = desk.ledger.join_verdict()
    assert isinstance(verdict, ItemsLost)
    assert verdict.count == 2
    assert "2 item(s)" in str(verdict)


@pytest.mark.parametrize("kind", [CONSUMER, WORKER])
def test_items_are_redelivered(kind: int) -> None:
    desk = Desk(redeliver=True)
    out, source = desk.open(PRODUCER), desk.open(kind)
    out.put("a")
    out.put("b")
    out.close()
    desk.close_queue()
    assert source.get(2) == ["a", "b"]
    assert not desk.ledger.drained(), "what is in hand may come back"
    desk.sleepers(items=2, end=1)
    desk.ledger.redeliver(source.slot, "a", 5)
    assert desk.woken() == (1, 0, 0)
    assert (desk.head[RETURNED], desk.head[REDELIVERED]) == (1, 1)
    assert source.cell(IN_HAND) == 1
    assert desk.head[BUSY] == (1 if kind == WORKER else 0)
    desk.ledger.redeliver(source.slot, "b", 5)
    before = desk.snapshot()
    with pytest.raises(IllegalTransition, match="has nothing in hand"):
        desk.ledger.redeliver(source.slot, "c", 5)
    assert desk.snapshot() == before
    assert desk.ledger.totals()[:2] == (2, 2)
    other = desk.open(CONSUMER)
    source.close()
    assert other.get(2) == ["a", "b"]
    assert other.get() == []
    assert taken_of(desk.ledger) == 4
    assert finished_of(desk.ledger) == 2
    assert desk.ledger.join_verdict() is True


def test_without_redelivery_what_is_in_hand_is_not_waited_for_by_consumers(desk: Desk) -> None:
    out, source = desk.open(PRODUCER), desk.open(CONSUMER)
    out.put(1)
    out.close()
    desk.close_queue()
    source.get()
    assert desk.ledger.drained()
    assert not desk.ledger.settled()
    assert isinstance(desk.ledger.verdict(), Done)
    assert desk.ledger.join_verdict() is False


def test_what_is_in_hand_is_written_down() -> None:
    """Before it counts as taken; before it is finished, and again with nothing to follow."""
    desk = Desk(redeliver=True)
    out, source = desk.open(PRODUCER), desk.open(CONSUMER)
    written = list[tuple[list[Any], int]]()

    def lease(slot: int, hand: Hand) -> None:
        assert slot == source.slot
        written.append((list(hand.kept), desk.head[TAKEN]))

    desk.ledger.lease = lease
    for n in range(4):
        out.put(n)
    source.get()
    assert written == [([0], 0)]
    source.get()
    assert written[1:] == [([0], 1), ([1], 1)]
    source.get(2)
    assert written[3:] == [([1], 2), ([2], 2), ([2, 3], 3)]
    source.get()
    assert written[6:] == [([2, 3], 4), ([], 4)]
    source.get()
    assert len(written) == 8, "nothing was in hand, nothing is"


# The end


def test_closing_wakes_nobody_while_something_may_come(desk: Desk) -> None:
    out, source, other = desk.open(PRODUCER), desk.open(CONSUMER), desk.open(PRODUCER)
    desk.sleepers(1, 1, 1)
    desk.close_queue()
    other.close()
    source.get()
    desk.ledger.settle()
    assert desk.woken() == (0, 0, 0)
    out.close()
    assert desk.woken() == (1, 1, 1)


def test_an_open_queue_waits_though_it_is_empty(desk: Desk) -> None:
    out, source = desk.open(PRODUCER), desk.open(CONSUMER)
    out.put(1)
    out.close()
    source.get()
    source.get()
    assert not desk.ledger.drained()
    assert desk.ledger.verdict() is None
    assert desk.ledger.state_name() == "open"


@pytest.mark.parametrize("last", ["queue", "producer", "worker", "item"])
def test_done_when_the_last_one_is_through(desk: Desk, last: str) -> None:
    out, tree, source = desk.open(PRODUCER), desk.open(WORKER), desk.open(CONSUMER)
    out.put(1)
    steps: dict[str, Callable[[], object]] = {
        "queue": desk.close_queue,
        "producer": out.close,
        "worker": tree.close,
        "item": lambda: source.get() and source.get(),
    }
    final = steps.pop(last)
    for step in steps.values():
        step()
    assert not desk.ledger.drained()
    assert desk.ledger.verdict() is None
    assert desk.ledger.join_verdict() is False
    desk.sleepers(2, 2, 2)
    final()
    assert desk.woken() == (2, 2, 2)
    assert desk.ledger.drained()
    assert desk.ledger.settled()
    assert isinstance(desk.ledger.verdict(), Done)
    assert desk.ledger.join_verdict() is True
    assert desk.ledger.state_name() == "done"


def test_closing_an_endpoint_wakes_its_own_other_threads(desk: Desk) -> None:
    """They find it closed; who waits for the end is none of them."""
    source = desk.open(CONSUMER)
    desk.sleepers(2, 2, 2)
    other = desk.open(CONSUMER)
    other.close()
    assert desk.woken() == (0, 0, 0)
    desk.ledger.set_blocked(source.slot, source.number, 1)
    source.close()
    assert desk.woken() == (2, 2, 0)


def test_after_done_a_worker_may_not_put(desk: Desk) -> None:
    tree = desk.open(WORKER)
    desk.close_queue()
    assert tree.put(1)
    assert tree.get() == [1]
    assert tree.put(2)
    assert tree.get() == [2]
    assert tree.get() == []
    before = desk.snapshot()
    with pytest.raises(ProducerClosed, match="the queue is done"):
        tree.put(3)
    assert desk.snapshot() == before


def test_a_failure_takes_the_place_of_done(desk: Desk) -> None:
    out, source = desk.open(PRODUCER), desk.open(CONSUMER)
    out.put(1)
    error = ValueError("no more")
    assert out.fail(error)
    assert desk.head[FAILED] == 1
    assert desk.head[PRODUCERS] == 0
    desk.close_queue()
    assert desk.ledger.state_name() == "closed"
    assert source.get() == [1]
    assert desk.ledger.state_name() == "failed"
    verdict = desk.ledger.verdict()
    assert isinstance(verdict, ProducerFailed)
    assert verdict.failures == (error,)
    assert verdict.__cause__ is error
    assert "a producer failed: ValueError('no more')" in str(verdict)
    assert "more, see" not in str(verdict)
    assert desk.ledger.join_verdict() is False, "one item is in hand"
    source.get()
    assert isinstance(desk.ledger.join_verdict(), ProducerFailed)


def test_a_failure_that_is_passed_on_says_once_what_became_of_the_items(desk: Desk) -> None:
    for error in (OSError("disk full"), KeyError("page")):
        desk.open(PRODUCER).fail(error)
    next_stage = Desk()
    next_stage.open(PRODUCER).fail(desk.ledger.failure())
    told = str(next_stage.ledger.failure())
    assert told.startswith("a producer failed: OSError('disk full') (and 1 more, see .failures)")
    assert told.count("what was put has been delivered") == 1


def test_all_failures_are_told(desk: Desk) -> None:
    errors = [ProducerFailed("producer 1 was killed"), ValueError(), KeyError()]
    for error in errors:
        desk.open(PRODUCER).fail(error)
        count = desk.head[FAILED]
        assert f"and {count - 1} more" in str(desk.ledger.failure()) or count == 1
    told = desk.ledger.failure()
    assert told.failures == tuple(errors)
    assert told.__cause__ is errors[0]
    assert str(told).startswith("producer 1 was killed (and 2 more, see .failures); what was put")
    assert desk.head[FAILED] == 3


def test_a_failed_worker_counts_once(desk: Desk) -> None:
    tree = desk.open(WORKER)
    tree.put(1)
    tree.get()
    assert tree.fail()
    assert desk.head[BUSY] == desk.head[WORKERS] == 0
    assert desk.ledger.in_hand() == 0
    assert desk.head[FAILED] == 1
    assert not tree.fail()
    assert desk.head[FAILED] == 1


def test_a_failure_may_cancel() -> None:
    desk = Desk(cancel=True)
    out, source = desk.open(PRODUCER), desk.open(CONSUMER)
    out.put(1)
    desk.sleepers(1, 1, 1)
    error = ValueError()
    out.fail(error)
    assert desk.ledger.state_name() == "cancelled"
    assert desk.woken() == (1, 1, 1)
    with pytest.raises(Cancelled) as told:
        source.get()
    assert told.value.__cause__ is error


def test_the_last_consumer_abandons_a_closed_queue(desk: Desk) -> None:
    out, source = desk.open(PRODUCER), desk.open(CONSUMER)
    out.put(1)
    source.close()
    assert desk.ledger.state_name() == "open"
    desk.sleepers(1, 1, 1)
    desk.close_queue()
    assert desk.ledger.state_name() == "abandoned"
    assert desk.woken() == (1, 1, 1)
    for call in (lambda: out.put(2), lambda: desk.open(CONSUMER)):
        before = desk.snapshot()
        with pytest.raises(ConsumersGone, match=r"1 item\(s\) left and 1 producer\(s\) open"):
            call()
        assert desk.snapshot() == before
    assert isinstance(desk.ledger.join_verdict(), ConsumersGone)
    assert desk.ledger.verdict() is None
    out.close()
    assert desk.ledger.state_name() == "abandoned", "an item is left"


def test_an_abandoned_queue_comes_back_if_nothing_was_left(desk: Desk) -> None:
    out, source = desk.open(PRODUCER), desk.open(CONSUMER)
    desk.close_queue()
    source.close()
    assert desk.ledger.state_name() == "abandoned"
    out.close()
    assert desk.head[STATE] == CLOSED
    assert desk.ledger.state_name() == "done"
    assert desk.ledger.join_verdict() is True


def test_a_worker_that_goes_busy_abandons_the_queue(desk: Desk) -> None:
    tree, other = desk.open(WORKER), desk.open(WORKER)
    desk.close_queue()
    tree.close()
    assert desk.ledger.state_name() == "closed"
    other.put(1)
    other.close()
    assert desk.ledger.state_name() == "abandoned"


@pytest.mark.parametrize("kind", [CONSUMER, WORKER])
def test_a_closed_queue_is_not_abandoned_while_somebody_takes(desk: Desk, kind: int) -> None:
    out, source = desk.open(PRODUCER), desk.open(CONSUMER)
    last = desk.open(kind)
    out.put(1)
    desk.close_queue()
    source.close()
    assert desk.ledger.state_name() == "closed"
    assert last.get() == [1]


def test_a_closed_queue_is_not_abandoned_before_its_first_consumer(desk: Desk) -> None:
    desk.open(PRODUCER).put(1)
    desk.close_queue()
    assert desk.ledger.state_name() == "closed"
    desk.ledger.no_more_consumers()
    assert desk.ledger.state_name() == "abandoned"


def test_settle_looks_again(desk: Desk) -> None:
    """It makes up for a wake-up that an interrupt left out."""
    desk.ledger.settle()
    desk.sleepers(1, 1, 1)
    desk.head[STATE] = CLOSED
    desk.ledger.settle()
    assert desk.woken() == (1, 1, 1)
    desk.sleepers(1, 1, 1)
    desk.head[STATE] = BROKEN
    desk.ledger.settle()
    assert desk.woken() == (2, 2, 2)
    desk.head[STATE] = 0
    desk.sleepers(1, 1, 1)
    desk.ledger.settle()
    assert desk.woken() == (2, 2, 2)


def test_cancel(desk: Desk) -> None:
    out, source, tree = (desk.open(kind) for kind in ENDPOINTS)
    out.put(1)
    out.put(2)
    out.put(3)
    source.get()
    desk.sleepers(1, 1, 1)
    reason = ValueError("enough")
    desk.ledger.cancel(reason)
    assert desk.woken() == (1, 1, 1)
    assert desk.head[STATE] == CANCELLED | CLOSED
    assert desk.ledger.state_name() == "cancelled"
    assert desk.head[DROPPED] == 2
    assert desk.channel.size() == 0
    assert desk.ledger.totals()[:2] == (3, 0)
    calls: tuple[Callable[[], object], ...] = (
        lambda: out.put(4),
        lambda: tree.put(4),
        source.get,
        tree.get,
        *(lambda kind=kind: desk.open(kind) for kind in ENDPOINTS),
        lambda: desk.open(PRODUCER, clone=True),
    )
    for call in calls:
        before = desk.snapshot()
        with pytest.raises(Cancelled, match=r"cancelled: ValueError\('enough'\)") as told:
            call()
        assert told.value.__cause__ is reason
        assert desk.snapshot() == before
    for verdict in (desk.ledger.verdict(), desk.ledger.join_verdict()):
        assert isinstance(verdict, Cancelled)
    before = desk.snapshot()
    desk.ledger.cancel(KeyError("late"))
    assert desk.snapshot() == before
    assert desk.ledger.refusal().__cause__ is reason, "the first reason stays"
    assert out.fail()
    assert desk.head[FAILED] == 0, "no failure of its own"
    assert source.close()
    assert tree.close()
    assert [desk.head[count] for count in COUNTS.values()] == [0, 0, 0]
    assert desk.ledger.in_hand() == 0


def test_cancel_without_a_reason(desk: Desk) -> None:
    desk.ledger.cancel(None)
    refusal = desk.ledger.refusal()
    assert isinstance(refusal, Cancelled)
    assert str(refusal) == "the queue was cancelled; nobody said why"
    assert refusal.__cause__ is None


def test_cancel_wins_over_abandoned(desk: Desk) -> None:
    desk.open(PRODUCER)
    desk.close_queue()
    desk.ledger.no_more_consumers()
    desk.ledger.cancel(None)
    assert desk.ledger.state_name() == "cancelled"
    assert isinstance(desk.ledger.refusal(), Cancelled)
    desk.ledger.settle()
    assert desk.head[STATE] == CANCELLED | CLOSED | ABANDONED


def test_broken(desk: Desk) -> None:
    out, source = desk.open(PRODUCER), desk.open(CONSUMER)
    out.put(1)
    desk.ledger.mark_broken(ChannelBroken("process 5 died"))
    assert desk.ledger.state_name() == "broken"
    desk.ledger.mark_broken(ChannelBroken("later"))
    calls: tuple[Callable[[], object], ...] = (
        lambda: out.put(2),
        source.get,
        lambda: desk.open(CONSUMER),
        lambda: desk.ledger.transact(desk.close_queue),
    )
    for call in calls:
        before = desk.snapshot()
        with pytest.raises(ChannelBroken, match=r"^process 5 died$"):
            call()
        assert desk.snapshot() == before
    for verdict in (desk.ledger.verdict(), desk.ledger.join_verdict()):
        assert isinstance(verdict, ChannelBroken)
    before = desk.snapshot()
    desk.ledger.cancel(ValueError())
    assert desk.snapshot() == before, "broken it stays"


def test_broken_for_no_known_reason(desk: Desk) -> None:
    desk.head[STATE] |= BROKEN
    refusal = desk.ledger.refusal()
    assert isinstance(refusal, ChannelBroken)
    assert "make a new queue" in str(refusal)


def test_a_process_is_not_an_endpoint(desk: Desk) -> None:
    calls: tuple[Callable[[], object], ...] = (
        lambda: desk.ledger.release_process(2),
        lambda: desk.ledger.assign(2, 2),
    )
    for call in calls:
        before = desk.snapshot()
        with pytest.raises(IllegalTransition):
            call()
        assert desk.snapshot() == before


@pytest.mark.parametrize("pid", [0, 4])
def test_a_process_in_the_slot_of_an_old_endpoint_is_not_that_endpoint(
    desk: Desk, pid: int
) -> None:
    """0 is the number of the queue, and of a process that is being started; pids may be small."""
    old = [desk.open(PRODUCER) for _ in range(4)][-1]
    slot, number = (2, 0) if pid == 0 else (old.slot, old.number)
    desk.ledger.close(slot, number)
    assert desk.ledger.open_process(pid, lambda slot: None) == slot
    before = desk.snapshot()
    assert not desk.ledger.is_open(slot, number)
    assert not desk.ledger.close(slot, number)
    assert not desk.ledger.fail(slot, number, None)
    assert not desk.ledger.take_over(slot, number, 0)
    assert desk.snapshot() == before


# Claims


@pytest.fixture
def lanes(tmp_path: Path) -> Desk:
    if not is_supported():
        pytest.skip("all goes by the lock here")
    return Desk(over_log(tmp_path), lockless=True)


def filled(desk: Desk, count: int = 100) -> Seat:
    out = desk.open(PRODUCER)
    for n in range(count):
        out.put(b"%d" % n)
    return out


def claiming(desk: Desk, pace: int = 100) -> Seat:
    source = desk.open(CONSUMER)
    source.hand.pace = pace
    return source


def totals(desk: Desk) -> tuple[int, int, int, int, int]:
    """Items put, queued, handed out, in hand and finished."""
    put, queued, taken, finished = desk.ledger.totals()
    return put, queued, taken, desk.ledger.in_hand(), finished


def test_take_gives_a_claim(lanes: Desk) -> None:
    filled(lanes)
    source = claiming(lanes, 10)
    assert source.take()
    assert len(source.hand.claim) == 10
    assert source.hand.pending == []
    assert totals(lanes) == (100, 100, 0, 0, 0)
    for n in range(10):
        assert source.get() == [b"%d" % n]
        assert totals(lanes) == (100, 99 - n, n + 1, 1, n)
    assert source.get() == [b"10"]
    assert totals(lanes) == (100, 89, 11, 1, 10)
    assert lanes.ledger.view(source.slot).in_hand == 1


def test_a_take_that_finds_nothing_finishes_what_is_in_hand(lanes: Desk) -> None:
    out = filled(lanes, 1)
    source = claiming(lanes)
    assert source.get() == [b"0"]
    lanes.close_queue()
    out.close()
    assert lanes.ledger.drained()
    assert not lanes.ledger.settled()
    lanes.sleepers(1, 1, 1)
    assert not source.take()
    assert source.hand.claim == []
    assert lanes.ledger.settled()
    assert lanes.woken() == (1, 1, 1), "it settles"
    assert totals(lanes) == (1, 0, 1, 0, 1)


def test_what_a_claim_holds_is_queued(lanes: Desk) -> None:
    """So a queue is not done while it may come back."""
    out = filled(lanes, 70)
    source = claiming(lanes)
    assert source.take()
    lanes.close_queue()
    out.close()
    assert lanes.ledger.state_name() == "closed"
    assert lanes.ledger.verdict() is None
    for _ in range(70):
        assert lanes.ledger.verdict() is None
        source.get()
    assert lanes.ledger.state_name() == "done"


def test_a_worker_takes_no_claim(lanes: Desk) -> None:
    filled(lanes)
    tree = lanes.open(WORKER)
    assert tree.get() == [b"0"]
    assert tree.hand.claim == []
    assert lanes.head[BUSY] == tree.cell(IN_HAND) == 1
    assert totals(lanes) == (100, 99, 1, 1, 0)


def test_a_second_thread_takes_without_a_claim(lanes: Desk) -> None:
    """There is one claim in a slot, and both count."""
    filled(lanes)
    source = claiming(lanes)
    assert source.get() == [b"0"]
    other = Hand(lanes.channel, False)
    lanes.ledger.hands[source.slot][1] = other
    assert lanes.ledger.take(source.slot, other, 1)
    assert other.pending == [(b"50", 1)], "recalled"
    assert totals(lanes) == (100, 98, 2, 2, 0)
    source.get()
    assert totals(lanes) == (100, 97, 3, 2, 1)
    other.pending.clear()
    lanes.ledger.take(source.slot, other, 1)
    assert totals(lanes) == (100, 96, 4, 2, 2)


@pytest.mark.parametrize("done", [0, 1, 5, 12])
def test_many_at_once_come_from_the_claim(lanes: Desk, done: int) -> None:
    filled(lanes)
    source = claiming(lanes, 12)
    source.take()
    for n in range(done):
        assert source.get() == [b"%d" % n]
    assert source.get(20) == [b"%d" % n for n in range(done, done + 20)]
    assert source.hand.claim == []
    assert totals(lanes) == (100, 80 - done, 20 + done, 20, done)
    rest = source.hand.rest[::-1]
    assert rest == [b"%d" % n for n in range(done + 20, done + 20 + len(rest))]
    assert lanes.log.claimed() == len(rest)
    assert source.hand_out() == [], "not before it comes back"
    assert source.get() == [b"%d" % (done + 20)]
    assert source.hand.rest == []
    assert totals(lanes) == (100, 79 - done, 21 + done, 1, done + 20)


def test_what_is_left_of_a_claim_waits(lanes: Desk) -> None:
    filled(lanes)
    source, other = claiming(lanes, 12), lanes.open(CONSUMER)
    assert source.get(5) == [b"%d" % n for n in range(5)]
    assert (source.hand.claim, len(source.hand.rest), lanes.log.claimed()) == ([], 7, 7)
    assert source.get(2) == [b"5", b"6"]
    assert totals(lanes) == (100, 93, 7, 2, 5)
    assert len(source.hand.rest) == 5
    assert lanes.log.cut(source.slot, 3) == 2
    assert other.get() == [b"10"]
    assert [source.get() for _ in range(3)] == [[b"7"], [b"8"], [b"9"]]
    assert totals(lanes) == (100, 89, 11, 2, 9)
    source.close()
    assert totals(lanes) == (100, 89, 11, 1, 10)


def test_many_are_taken_after_a_worker_has_taken_one(lanes: Desk) -> None:
    """That is not carried out yet, and is not forgotten."""
    filled(lanes)
    source, tree = claiming(lanes, 12), lanes.open(WORKER)
    source.take()
    assert tree.get() == [b"12"]
    assert source.get(5) == [b"%d" % n for n in range(5)]
    assert totals(lanes) == (100, 94, 6, 6, 0)
    items = list[Any]()
    while taken := source.get(20):
        items += taken
    assert items == [b"%d" % n for n in range(5, 100) if n != 12]


def test_one_that_was_being_handed_out_comes_first_of_many(lanes: Desk) -> None:
    """An interrupted `get` had marked it as handed out, and had not returned it."""
    filled(lanes)
    source = claiming(lanes, 12)
    source.get()
    hand = source.hand
    lanes.ledger.cells[hand.next_at] = hand.next + 1
    assert source.get(3) == [b"1", b"2", b"3"]
    assert totals(lanes) == (100, 96, 4, 3, 1)


def test_its_segment_may_be_written_again_by_then(lanes: Desk) -> None:
    """It was the last of its claim, so nothing of that segment seemed to be left."""
    out = filled(lanes, 1023)  # a full segment
    source, other = claiming(lanes), lanes.open(CONSUMER)
    assert len(other.get(1022)) == 1022
    assert source.take()
    hand = source.hand
    assert hand.claim == [b"1022"]
    lanes.ledger.cells[hand.next_at] = hand.next + 1
    for n in range(2000, 6000):
        out.put(b"%d" % n)
        if n >= 2100:
            assert other.get(2) or n > 4000
    assert source.get(2) == [b"1022"]


def test_the_rest_of_a_closed_consumers_claim_is_for_others(lanes: Desk) -> None:
    filled(lanes)
    source, other = claiming(lanes), lanes.open(CONSUMER)
    assert source.get() == [b"0"]
    lanes.sleepers(5)
    source.close()
    assert lanes.woken()[0] == 5
    assert totals(lanes) == (100, 99, 1, 0, 1)
    assert [*itertools.chain.from_iterable(other.get() for _ in range(99))] == [
        b"%d" % n for n in range(1, 100)
    ]
    assert other.get() == []
    assert lanes.open(CONSUMER).slot == source.slot
    assert lanes.log.in_claim(source.slot) == lanes.log.claimed() == 0


def test_a_closed_producers_lane_is_free(lanes: Desk) -> None:
    out, other = filled(lanes), filled(lanes)
    assert out.lane is not None
    assert other.lane is not None
    base = out.lane.base
    assert lanes.ledger.cells[base + LANE_OWNER] == out.slot
    out.close()
    assert lanes.ledger.cells[base + LANE_OWNER] == 0
    assert lanes.ledger.cells[other.lane.base + LANE_OWNER] == other.slot
    again = filled(lanes)
    assert again.lane is not None
    assert again.lane.base == base


@pytest.mark.parametrize("done", [0, 3])
def test_a_cancel_drops_what_is_claimed(lanes: Desk, done: int) -> None:
    filled(lanes)
    source = claiming(lanes)
    source.take()
    for _ in range(done):
        source.get()
    lanes.ledger.cancel(None)
    assert lanes.head[DROPPED] == 100 - done
    assert totals(lanes) == (100, 0, done, min(done, 1), max(done - 1, 0))
    assert source.hand_out() == []
    source.close()
    assert totals(lanes) == (100, 0, done, 0, done)


def test_what_was_put_as_the_queue_was_cancelled_is_dropped(lanes: Desk) -> None:
    """By one who had seen no cancel; who then sees a waiter, or anybody who settles."""
    out = filled(lanes, 5)
    lanes.ledger.cancel(None)
    assert out.lane is not None
    for call, dropped in ((lanes.ledger.was_put, 6), (lanes.ledger.settle, 7)):
        lanes.log._write(out.lane, b"late", 1, lanes.ledger.now())
        out.lane.put += 1
        out.lane.cells[out.lane.put_at] = out.lane.put
        assert lanes.channel.size() == 1
        assert lanes.ledger.qsize() == 0, "whoever asks before anybody has dropped it"
        call()
        assert lanes.head[DROPPED] == dropped
        assert lanes.channel.size() == 0
    assert lanes.ledger.totals()[:2] == (7, 0)


def test_one_who_waits_is_told_of_a_put(lanes: Desk) -> None:
    lanes.sleepers(2)
    filled(lanes, 1)
    assert lanes.woken() == (1, 0, 0)


def test_a_lane_is_no_endpoint(lanes: Desk) -> None:
    out = filled(lanes)
    assert out.lane is not None
    slot = out.lane.base // SLOT_SIZE
    before = lanes.snapshot()
    assert not lanes.ledger.is_open(slot, 0)
    assert not lanes.ledger.close(slot, 0)
    assert not lanes.ledger.take_over(slot, 0, None)
    assert lanes.snapshot() == before
    assert slot not in {view.slot for view in lanes.ledger.views(*ENDPOINTS)}


def test_the_highest_count_has_what_was_put_without_the_lock(lanes: Desk) -> None:
    filled(lanes, 30)
    assert lanes.head[HIGHEST] == 0
    source = claiming(lanes)
    source.get()
    assert lanes.head[HIGHEST] == 30
    filled(lanes, 5)
    assert lanes.ledger.totals()[:2] == (35, 34)
    assert lanes.head[HIGHEST] == 34


# While others go on without the lock


def with_interruption(at: int, call: Callable[[], R], act: Callable[[], object]) -> tuple[R, bool]:
    """What *call* returns if *act* runs before the *at*-th bytecode of the package in it.

    And whether there are so many.
    """
    left = at
    result = list[R]()

    def trace(frame: FrameType, event: str, arg: Any) -> Callable[..., Any] | None:
        nonlocal left
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left == 0:
                act()
        return trace

    def run() -> None:
        # CPython 3.12 reports instructions only if a frame asks for them as tracing begins.
        sys._getframe().f_trace_opcodes = True
        sys.settrace(trace)
        result.append(call())
        sys.settrace(None)

    # A thread of its own: what traces this one goes on with it.
    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    return result.pop(), left <= 0


def check_each_moment(desk: Desk, source: Seat, act: Callable[[], object]) -> int:
    """Look at the totals while something is done at any instruction. Returns of how many."""
    desk.ledger.totals()  # what is done once only, has been done
    source.take()
    for at in itertools.count(1):
        before = desk.ledger.totals()
        now, done = with_interruption(at, desk.ledger.totals, act)
        after = desk.ledger.totals()
        assert now in (before, after), f"at instruction {at}: {before}, {now}, {after}"
        assert now[0] == now[1] + now[2], f"at instruction {at}: {now}"
        if not done:
            return at
        assert before != after
        source.take()  # asks for more: what is in hand is finished
    raise AssertionError


def test_totals_are_of_one_moment_while_a_consumer_hands_out(lanes: Desk) -> None:
    """The first of a claim is in hand with the same store that counts it as taken."""
    filled(lanes, 5000)
    source = claiming(lanes, 10)
    assert check_each_moment(lanes, source, source.hand_out) > 100


def test_totals_are_of_one_moment_while_a_producer_puts(lanes: Desk) -> None:
    out = filled(lanes)
    assert check_each_moment(lanes, claiming(lanes, 10), lambda: out.put(b"new")) > 100


def test_an_item_is_given_back_or_handed_out_not_both(lean: Desk) -> None:
    """Another thread closes the endpoint of one that is inside `get`, which takes no lock."""
    out = lean.open(PRODUCER)
    for at in itertools.count(1):
        source = lean.open(CONSUMER)
        hand = source.hand
        out.put(at)
        assert source.take()
        handed = list[Any]()

        def hand_out(pending: list[Any] = hand.pending, handed: list[Any] = handed) -> None:
            handed.extend(pending)
            pending.clear()

        give_back = functools.partial(lean.ledger.give_back, source.slot, hand)
        _, done = with_interruption(at, give_back, hand_out)
        left = [lean.channel.peek() for _ in range(lean.channel.size())]
        assert handed + left == [at], f"at instruction {at}: {handed} handed out, {left} queued"
        lean.channel.clear()
        lean.ledger.close(source.slot, source.number)
        if not done:
            assert at > 10
            return


@pytest.mark.parametrize("act", ["put", "pull", "get", "many"])
def test_totals_are_of_one_moment_on_an_atomic_channel(lean: Desk, act: str) -> None:
    out, source = lean.open(PRODUCER), lean.open(CONSUMER)
    hand: Any = source.hand
    for n in range(2000):
        out.put(n)

    def get() -> None:
        hand.taken += 1  # the one that check_each_moment has taken
        del hand.pending[0]
        hand.quick()

    def many() -> None:
        hand.pull()
        hand.taken, hand.last = hand.taken + 2, 2
        del hand.pending[:]

    acts = {"put": lambda: out.put("new"), "pull": hand.pull, "get": get, "many": many}
    assert check_each_moment(lean, source, acts[act]) > 100


# At random, beside a model


class Model:
    """What the ledger's states and counts mean, without its tricks."""

    def __init__(self) -> None:
        self.kinds = dict[int, int]()
        """By number of the open endpoints."""
        self.in_hand = dict[int, int]()
        self.unasked = set[int]()
        self.queued = deque[int]()
        self.closed = self.cancelled = self.abandoned = self.had_consumer = False
        self.put = self.taken = self.finished = self.lost = self.returned = 0
        self.redelivered = self.dropped = self.highest = self.failures = 0
        self.redelivers = False

    def count(self, *kinds: int) -> int:
        return sum(kind in kinds for kind in self.kinds.values())

    def busy(self) -> int:
        workers = [number for number, kind in self.kinds.items() if kind == WORKER]
        return sum(self.in_hand[number] for number in workers) + len(self.unasked)

    def producing(self) -> bool:
        return bool(self.count(PRODUCER) or self.busy())

    def settle(self) -> None:
        if self.closed and not self.cancelled:
            alone = self.had_consumer and not self.count(CONSUMER, WORKER)
            self.abandoned = alone and bool(self.queued or self.producing())

    def drained(self) -> bool:
        if not self.closed or self.producing() or self.queued:
            return False
        return not self.redelivers or sum(self.in_hand.values()) == 0

    def state(self) -> str:
        if self.cancelled:
            return "cancelled"
        if self.abandoned:
            return "abandoned"
        if self.drained():
            return "failed" if self.failures else "done"
        return "closed" if self.closed else "open"

    def verdict(self) -> type | None:
        match self.state():
            case "cancelled":
                return Cancelled
            case "done":
                return Done
            case "failed":
                return ProducerFailed
            case _:
                return None

    def join_verdict(self) -> type:
        match self.state():
            case "cancelled":
                return Cancelled
            case "abandoned":
                return ConsumersGone
            case "done" | "failed" if sum(self.in_hand.values()) == 0:
                if self.failures:
                    return ProducerFailed
                return ItemsLost if self.lost else bool
            case _:
                return bool

    # Each transition, for one that is legal.

    def open(self, number: int, kind: int) -> None:
        self.kinds[number] = kind
        self.in_hand[number] = 0
        if kind != PRODUCER:
            self.had_consumer = True
        if kind == WORKER:
            self.unasked.add(number)

    def close(self, number: int) -> None:
        del self.kinds[number]
        self.finished += self.in_hand.pop(number)
        self.unasked.discard(number)
        self.settle()

    def append(self, item: int) -> None:
        self.put += 1
        self.queued.append(item)
        self.highest = max(self.highest, len(self.queued))

    def take(self, number: int, limit: int, found: list[int] | None = None) -> list[int]:
        """The next items; or, if their order is not to be foreseen, those that were *found*."""
        self.finished += self.in_hand[number]
        had = self.in_hand[number]
        self.in_hand[number] = 0
        self.unasked.discard(number)
        items = [self.queued[n] for n in range(min(limit, len(self.queued)))]
        if found is not None and len(found) == len(items):
            items = found
        for item in items:
            self.queued.remove(item)
        self.in_hand[number] = len(items)
        self.taken += len(items)
        if not items and had:
            self.settle()
        return items


class Game:
    """One random history of a desk, with the model beside it."""

    def __init__(self, desk: Desk, dice: random.Random, *, ordered: bool) -> None:
        self.desk = desk
        self.dice = dice
        self.ordered = ordered
        """No consumer claims more than it hands out, so that all come in the order of the puts."""
        self.model = Model()
        self.seats: list[Seat] = []
        self.old: list[Seat] = []
        self.item = 0
        self.sleepers = [0, 0, 0]
        self.kept: dict[int, list[int]] = {}

    def refused(self, error: type[Exception], call: Callable[[], object]) -> None:
        before = self.desk.snapshot()
        with pytest.raises(error):
            call()
        assert self.desk.snapshot() == before

    def pick(self, *kinds: int) -> Seat | None:
        seats = [seat for seat in self.seats if seat.kind in kinds]
        return self.dice.choice(seats) if seats else None

    def open(self) -> None:
        model, kind = self.model, self.dice.choice(ENDPOINTS)
        clone = self.dice.random() < 0.3 and model.count(kind) > 0
        if model.cancelled:
            self.refused(Cancelled, lambda: self.desk.open(kind, clone=clone))
        elif kind != CONSUMER and model.closed and not clone:
            self.refused(QueueClosed, lambda: self.desk.open(kind))
        elif kind == CONSUMER and model.abandoned:
            self.refused(ConsumersGone, lambda: self.desk.open(kind))
        else:
            seat = self.desk.open(kind, clone=clone)
            self.seats.append(seat)
            model.open(seat.number, kind)

    def put(self) -> None:
        seat, model = self.pick(PRODUCER, WORKER), self.model
        if seat is None:
            return
        self.item += 1
        payload = self.payload(self.item)
        if model.cancelled:
            self.refused(Cancelled, lambda: seat.put(payload))
        elif model.abandoned:
            self.refused(ConsumersGone, lambda: seat.put(payload))
        elif seat.kind == WORKER and model.drained():
            self.refused(ProducerClosed, lambda: seat.put(payload))
        elif seat.kind == PRODUCER and 0 < self.desk.head[MAXSIZE] <= len(model.queued):
            before = self.desk.snapshot()
            assert not seat.put(payload)
            assert self.desk.snapshot() == before
        else:
            assert seat.put(payload)
            model.append(self.item)

    def payload(self, item: int) -> Any:
        return item if isinstance(self.desk.channel, ThreadChannel) else str(item).encode()

    def take(self) -> None:
        seat, limit = self.pick(CONSUMER, WORKER), self.dice.choice((1, 1, 1, 2, 5))
        if seat is None:
            return
        if self.model.cancelled:
            assert isinstance(self.desk.ledger.verdict(), Cancelled)
            return
        items = [int(item) for item in seat.get(limit)]
        found = None if self.ordered else items
        assert items == self.model.take(seat.number, limit, found)
        self.kept[seat.number] = items

    def interrupted_take(self) -> None:
        """Taken, never returned, and given back as the endpoint closes."""
        seat = self.pick(CONSUMER, WORKER)
        if seat is None or self.model.cancelled:
            return
        model = self.model
        found = seat.take(3)
        pending = [int(self.desk.channel.unwrap(payload)[0]) for payload in seat.hand.pending]
        items = model.take(seat.number, 3, None if self.ordered else pending)
        assert found == bool(items)
        assert pending == items
        self.desk.ledger.give_back(seat.slot, seat.hand)
        model.queued += items
        model.in_hand[seat.number] = 0
        model.taken -= len(items)
        if seat.hand.pull is None:
            model.returned += len(items)
        self.close(seat)

    def close(self, seat: Seat | None = None) -> None:
        seat = seat or self.pick(*ENDPOINTS)
        if seat is None:
            return
        if self.dice.random() < 0.15 and not self.model.cancelled:
            self.model.failures += 1
            assert seat.fail()
        else:
            assert seat.close()
        self.model.close(seat.number)
        self.seats.remove(seat)
        self.old.append(seat)

    def close_again(self) -> None:
        if self.old:
            before = self.desk.snapshot()
            seat = self.dice.choice(self.old)
            assert not seat.close()
            assert not seat.fail()
            assert self.desk.snapshot() == before

    def close_queue(self) -> None:
        assert self.desk.close_queue() == (not self.model.closed or self.model.cancelled)
        self.model.closed = True
        self.model.settle()

    def kill(self) -> None:
        """A consumer's or worker's process dies with something in its hands."""
        seat, model, ledger = self.pick(CONSUMER, WORKER), self.model, self.desk.ledger
        if seat is None or seat.hand.pull is not None or model.cancelled:
            return
        held = model.in_hand[seat.number]
        if ledger.claims is not None and seat.kind == CONSUMER:
            ledger.claims.cut(seat.slot)
            ledger.claims.settle_claim(seat.slot)
        self.refused(IllegalTransition, lambda: ledger.lose(seat.slot, held + 1))
        back = self.dice.randrange(held + 1)
        for item in self.kept.get(seat.number, [])[:back]:
            ledger.redeliver(seat.slot, self.payload(item), 0)
            model.queued.append(item)
            model.returned += 1
            model.redelivered += 1
        model.highest = max(model.highest, len(model.queued))
        if held > back:
            ledger.lose(seat.slot, held - back)
        model.lost += held - back
        model.in_hand[seat.number] = 0
        self.refused(IllegalTransition, lambda: ledger.redeliver(seat.slot, self.payload(0), 0))
        self.close(seat)

    def cancel(self) -> None:
        model = self.model
        self.desk.ledger.cancel(None)
        model.dropped += len(model.queued)
        model.queued.clear()
        model.closed = model.cancelled = True

    def fall_asleep(self) -> None:
        counts = [0, 0, 0]
        counts[self.dice.randrange(3)] = self.dice.randrange(3)
        self.desk.sleepers(*counts)
        self.sleepers = [old + new for old, new in zip(self.sleepers, counts, strict=True)]

    def wake_up(self) -> None:
        """One sleeper wakes by its token, or after its slice without one."""
        which = self.dice.randrange(3)
        runtime = self.desk.runtime
        condition = (runtime.items, runtime.room, runtime.end)[which]
        if self.sleepers[which]:
            if self.dice.random() < 0.5 or not condition.sleep(0):
                condition.retract()
            self.sleepers[which] -= 1

    def check(self) -> None:
        desk, ledger, head, model = self.desk, self.desk.ledger, self.desk.head, self.model
        assert ledger.totals()[:2] == (model.put, len(model.queued))
        assert {kind: head[cell] for kind, cell in COUNTS.items()} == {
            kind: model.count(kind) for kind in ENDPOINTS
        }
        assert head[BUSY] == model.busy()
        assert taken_of(ledger) == model.taken
        assert ledger.in_hand() == sum(model.in_hand.values())
        for seat in self.seats:
            assert ledger.view(seat.slot).in_hand == model.in_hand[seat.number]
            assert desk.ledger.is_open(seat.slot, seat.number)
        assert finished_of(ledger) == model.finished
        assert (head[LOST], head[RETURNED], head[DROPPED]) == (
            model.lost,
            model.returned,
            model.dropped,
        )
        assert (head[REDELIVERED], head[FAILED]) == (model.redelivered, model.failures)
        assert head[HIGHEST] == model.highest
        assert ledger.state_name() == model.state()
        assert ledger.drained() == model.drained()
        verdict = ledger.verdict()
        assert (None if verdict is None else type(verdict)) is model.verdict()
        assert type(ledger.join_verdict()) is model.join_verdict()
        for count, cell, given in zip(
            self.sleepers, (WAIT_ITEM, WAIT_ROOM, WAIT_END), desk.woken(), strict=True
        ):
            assert head[cell] + given >= count
        check_slots(ledger)


def check_slots(ledger: Ledger) -> None:
    """What must hold between the head and the slots, whatever happened before."""
    head, cells = ledger.head, ledger.cells
    kinds = [cells[slot * SLOT_SIZE + KIND] for slot in range(1, head[SLOTS])]
    assert {kind: head[cell] for kind, cell in COUNTS.items()} == {
        kind: kinds.count(kind) for kind in ENDPOINTS
    }
    workers = list(ledger.views(WORKER))
    assert head[BUSY] == sum(view.in_hand + bool(view.flags & UNASKED) for view in workers)
    free = list[int]()
    slot = head[FREE_SLOT]
    while slot:
        free.append(slot)
        assert len(free) <= head[SLOTS], "the free list has no end"
        slot = cells[slot * SLOT_SIZE + NEXT]
    assert sorted(free) == [slot for slot in range(1, head[SLOTS]) if kinds[slot - 1] == FREE]


class SlowRuntime(ThreadRuntime):
    """Whoever looks at the clock again has worked for longer than a claim is for."""

    def __init__(self) -> None:
        super().__init__(HEAD_SIZE, (WAIT_ITEM, WAIT_ROOM, WAIT_END))
        self.time = 0

    def now(self) -> int:
        self.time += 2 * CLAIM_NS
        return self.time


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(
    "channel",
    [
        "queue",
        "simple",
        "log",
        pytest.param("lanes", marks=lockless),
        pytest.param("slow lanes", marks=lockless),
    ],
)
def test_a_random_history(tmp_path: Path, channel: str, seed: int) -> None:
    dice = random.Random(f"{channel} {seed}")
    makers: dict[str, Callable[[Cells], Channel]] = {
        "queue": over_queue,
        "simple": over_simple_queue,
        "log": over_log(tmp_path),
        "lanes": over_log(tmp_path),
        "slow lanes": over_log(tmp_path),
    }
    maxsize, redeliver = dice.choice((0, 0, 1, 4)), dice.random() < 0.5
    lanes = channel in ("lanes", "slow lanes")
    if lanes:
        maxsize, redeliver = 0, False
    runtime = SlowRuntime() if channel == "slow lanes" else None
    desk = Desk(makers[channel], maxsize, redeliver=redeliver, runtime=runtime, lockless=lanes)
    game = Game(desk, dice, ordered=channel != "lanes")
    game.model.redelivers = redeliver
    moves: dict[Callable[[], None], float] = {
        game.open: 5,
        game.put: 12,
        game.take: 12,
        game.interrupted_take: 1,
        game.close: 2,
        game.close_again: 1,
        game.kill: 1,
        game.fall_asleep: 2,
        game.wake_up: 2,
    }
    end = {game.open: 2, game.put: 3, game.take: 12, game.close: 4, game.close_again: 1}
    last: tuple[Callable[[], None], ...] = (game.close_queue, game.cancel)
    for move in (
        *dice.choices(list(moves), list(moves.values()), k=200),
        dice.choices(last, (5, 1))[0],
        *dice.choices(list(moves), list(moves.values()), k=50),
        *dice.choices(list(end), list(end.values()), k=100),
    ):
        move()
        game.check()
    for seat in list(game.seats):
        game.close(seat)
        game.check()
    assert game.model.put > 15, "something happened"


# Killed at every store, and mended


class Killed(BaseException):
    """The process is dead: it stores nothing any more."""


class Fate:
    """Which store is the first that is not made; None: all are."""

    left: int | None = None

    def strike(self) -> None:
        if self.left is not None:
            if self.left == 0:
                raise Killed
            self.left -= 1


class MortalCells(list[int]):
    def __init__(self, cells: list[int], fate: Fate) -> None:
        super().__init__(cells)
        self._fate = fate

    def __setitem__(self, index: Any, value: Any) -> None:
        self._fate.strike()
        super().__setitem__(index, value)


class MortalRuntime(ThreadRuntime):
    def __init__(self, fate: Fate) -> None:
        super().__init__(HEAD_SIZE, (WAIT_ITEM, WAIT_ROOM, WAIT_END))
        self.head = MortalCells([0] * HEAD_SIZE, fate)
        self._cells = MortalCells([], fate)


class Scene:
    """A process that is about to die, with endpoints and items of its own, and one that survives.

    `put` has what was put, `finished` what was finished by the one that will die. With *claims*,
    its consumer has a claim.
    """

    def __init__(self, path: Path, *, redeliver: bool = False, claims: bool = False) -> None:
        self.path = path
        self.fate = Fate()
        self.desk = desk = Desk(
            over_log(path),
            redeliver=redeliver,
            runtime=MortalRuntime(self.fate),
            lockless=claims,
        )
        self.redeliver = redeliver
        self.written: dict[int, list[Any]] = {}
        """By slot: what is in hand there, as last written down."""
        self.source = desk.open(CONSUMER)
        self.me = desk.ledger.me = desk.ledger.open_process(200, lambda slot: None)
        if redeliver:
            desk.ledger.lease = self.write
        self.out, self.reader, self.tree, self.late = (
            desk.open(kind) for kind in (PRODUCER, CONSUMER, WORKER, WORKER)
        )
        for seat in (self.out, self.reader, self.tree, self.late):
            desk.ledger.take_over(seat.slot, seat.number, None)
        self.put = [b"%d" % n for n in range(80 if claims else 8)]
        for payload in self.put:
            self.out.put(payload)
        self.reader.hand.pace = 12
        if claims:
            self.reader.get()
            self.reader.get()
        else:
            self.reader.get(2)
        self.tree.get(1)
        desk.open(PRODUCER).close()  # for the free list
        desk.sleepers(2, 2, 2)

    def write(self, slot: int, last: Hand) -> None:
        hands = [hand for hand in self.desk.ledger.hands[slot].values() if hand is not last]
        self.written[slot] = [payload for hand in (*hands, last) for payload in hand.kept]

    def transact(self, call: Callable[..., object], *args: object) -> None:
        self.desk.ledger.transact(call, *args)

    def open(self, kind: int) -> Seat:
        """A new endpoint, with its lane if it has one."""
        seats = list[Seat]()

        def opened() -> None:
            seat = self.desk.open(kind)
            if kind == PRODUCER:
                seat.lane = self.desk.log.lane(seat.slot, seat.number)
            seats.append(seat)

        self.transact(opened)
        return seats[0]

    def succeed(self) -> None:
        """Another one died as it closed a producer; this one has the lock next."""
        head, left, self.fate.left = self.desk.head, self.fate.left, None
        head[HOLDER] = 77
        head[PRODUCERS] -= 1
        self.fate.left = left
        self.transact(int)

    def give_back(self, seat: Seat) -> None:
        seat.take(2)
        self.transact(self.desk.ledger.give_back, seat.slot, seat.hand)

    def die_or_end(self, act: Callable[[Scene], object], store: int) -> bool:
        """Die before that store. True: the act came to its end before."""
        self.fate.left = store
        try:
            act(self)
        except Killed:
            return False
        finally:
            self.fate.left = None
        return True

    def survive(self) -> Ledger:
        """From now on with the eyes of the survivor."""
        desk = self.desk
        desk.channel = LogChannel(desk.head, str(self.path))
        desk.ledger = Ledger(desk.runtime, desk.channel)
        desk.ledger.me = 1
        desk.begin()
        self.source = Seat(desk, CONSUMER, self.source.slot, self.source.number)
        return desk.ledger

    def bury(self) -> None:
        """End the dead one's endpoints, as the survivors do."""
        ledger = self.desk.ledger
        for view in ledger.views(*ENDPOINTS):
            if self.me in (view.owner, view.maker):
                if ledger.claims is not None and view.kind == CONSUMER:
                    ledger.claims.cut(view.slot)
                    ledger.claims.settle_claim(view.slot)
                kept = self.written.get(view.slot, [])[: view.in_hand]
                for payload, tag in kept:
                    ledger.redeliver(view.slot, payload, tag)
                ledger.lose(view.slot, view.in_hand - len(kept))
                ledger.close(view.slot, view.number)
        ledger.release_process(self.me)


ACTS: dict[str, Callable[[Scene], object]] = {
    "put": lambda it: it.out.put(b"new"),
    "put by a worker": lambda it: it.tree.put(b"new"),
    "take by a consumer": lambda it: it.reader.get(2),
    "take one for one": lambda it: it.tree.get(1),
    "take by a worker": lambda it: it.tree.get(3),
    "first take by a worker": lambda it: it.late.get(2),
    "give back": lambda it: it.give_back(it.tree),
    "open a producer": lambda it: it.transact(it.desk.open, PRODUCER),
    "open a consumer": lambda it: it.transact(it.desk.open, CONSUMER),
    "open a worker": lambda it: it.transact(it.desk.open, WORKER),
    "open a process": lambda it: it.transact(it.desk.ledger.open_process, 300, print),
    "close a producer": lambda it: it.transact(it.out.close),
    "close a consumer": lambda it: it.transact(it.reader.close),
    "close a worker": lambda it: it.transact(it.tree.close),
    "close a new worker": lambda it: it.transact(it.late.close),
    "fail a worker": lambda it: it.transact(it.tree.fail),
    "close the queue": lambda it: it.transact(it.desk.close_queue),
    "cancel": lambda it: it.transact(it.desk.ledger.cancel, None),
    "mend": lambda it: it.transact(it.desk.ledger.mend),
    "mend after another one": lambda it: it.succeed(),
}


@pytest.mark.parametrize("redeliver", [False, True])
@pytest.mark.parametrize("act", ACTS)
def test_mend_makes_whole_what_a_killed_holder_left(
    tmp_path: Path, act: str, redeliver: bool
) -> None:
    """Killed before any store: counts and slots agree, and each item comes as it should."""
    once = act != "give back" or not redeliver
    check_mending(tmp_path, act, ACTS[act], once=once, redeliver=redeliver)


def check_mending(
    tmp_path: Path, name: str, act: Callable[[Scene], object], *, once: bool, **options: bool
) -> None:
    """Kill *act* before each of its stores, in a scene of its own; then mend, bury, and finish."""
    for store in itertools.count():
        path = tmp_path / str(store)
        path.mkdir()
        it = Scene(path, **options)
        before = {view.slot for view in it.desk.ledger.views()}
        over = it.die_or_end(act, store)
        assert not over or store > (name != "hand out"), "which is one store"
        ledger = it.survive()
        # Whoever has the lock next sees by HOLDER whether there is something to mend; doing it
        # again does no harm.
        for make_whole in (lambda ledger=ledger: ledger.transact(int), ledger.mend):
            make_whole()
            assert ledger.head[HOLDER] == 0
            check_slots(ledger)
            check_totals(ledger, len(it.put))
            assert not (ledger.head[STATE] & CANCELLED and ledger.channel.size())
        gone = before - {view.slot for view in ledger.views()}
        ends = any(end in name for end in ("close", "fail", "cancel"))
        assert len(gone) <= ends, "no other slot was lost"
        it.bury()
        check_slots(ledger)
        check_totals(ledger, len(it.put))
        if not ledger.head[STATE] & CANCELLED:
            finish(it, once=once)
        if over:
            return


CLAIM_ACTS: dict[str, Callable[[Scene], object]] = {
    **ACTS,
    "hand out": lambda it: it.reader.get(),
    "claim": lambda it: [it.reader.get() for _ in range(12)],
    "first claim": lambda it: it.open(CONSUMER).get(),
    "put on a new lane": lambda it: it.open(PRODUCER).put(b"new"),
    "recall": lambda it: [it.tree.get() for _ in range(16)],
    "take more than is left of a claim": lambda it: it.reader.get(14),
    "fail a producer": lambda it: it.transact(it.out.fail),
}


@lockless
@pytest.mark.parametrize("act", CLAIM_ACTS)
def test_mend_makes_claims_whole(tmp_path: Path, act: str) -> None:
    """Killed before any store, with a claim and a lane: each item is there, or was in its hand."""
    check_mending(tmp_path, act, CLAIM_ACTS[act], once=True, claims=True)


def test_mend_finds_all_free_slots(desk: Desk) -> None:
    seats = [desk.open(PRODUCER) for _ in range(4)]
    for seat in seats[1:3]:
        seat.close()
    desk.ledger.release_process(1)
    desk.head[FREE_SLOT] = 0
    desk.ledger.mend()
    check_slots(desk.ledger)
    assert {desk.open(PRODUCER).slot for _ in range(3)} == {1, 4, 5}


def test_mend_frees_the_slot_of_a_queue_that_was_being_closed(desk: Desk) -> None:
    desk.ledger.mend()
    assert desk.ledger.is_open(2, 0)
    desk.head[STATE] |= CLOSED
    desk.ledger.mend()
    assert not desk.ledger.is_open(2, 0)
    assert desk.open(CONSUMER).slot == 2


def test_mend_takes_a_take_back_once(desk: Desk) -> None:
    """What is lost between two mendings stays lost."""
    out, source = desk.open(PRODUCER), desk.open(CONSUMER)
    out.put("a")
    out.put("b")
    source.get(2)
    base, cells = source.slot * SLOT_SIZE, desk.ledger.cells
    cells[base + HAD] = 2
    cells[base + AT] = desk.head[TAKEN] + 1  # killed as it took a third
    cells[base + IN_HAND] = 3
    desk.ledger.mend()
    assert source.cell(IN_HAND) == 2
    desk.ledger.lose(source.slot, 2)
    desk.ledger.mend()
    assert source.cell(IN_HAND) == 0


def test_mend_leaves_it_that_none_can_come(desk: Desk) -> None:
    desk.open(PRODUCER)
    desk.close_queue()
    desk.ledger.no_more_consumers()
    desk.ledger.mend()
    assert desk.head[EVER] == NONE_EVER
    assert desk.head[STATE] == CLOSED | ABANDONED


@pytest.mark.parametrize(("ever", "mended"), [(0, 2), (1, 2), (2, 2), (7, 7)])
def test_mend_counts_who_took_part(desk: Desk, ever: int, mended: int) -> None:
    desk.open(CONSUMER)
    desk.open(WORKER)
    desk.head[EVER] = ever
    desk.ledger.mend()
    assert desk.head[EVER] == mended


def test_mend_counts_failures_by_what_is_kept_of_them(desk: Desk) -> None:
    desk.runtime.errors.add_failure(ValueError("killed before it was counted"))
    desk.ledger.mend()
    assert desk.head[FAILED] == 1


def test_mend_drops_what_a_cancel_left(desk: Desk) -> None:
    desk.open(PRODUCER).put(1)
    desk.head[DROPPED] = 4
    desk.head[STATE] = CANCELLED | CLOSED
    desk.ledger.mend()
    assert desk.head[DROPPED] == 5


@pytest.mark.parametrize("state", [CLOSED, CANCELLED | CLOSED])
def test_mend_wakes_those_whom_nobody_woke(desk: Desk, state: int) -> None:
    desk.sleepers(1, 2, 3)
    desk.head[STATE] = state
    desk.ledger.mend()
    assert desk.woken() == (1, 2, 3)


def check_totals(ledger: Ledger, before: int) -> None:
    """Everything that was put, and perhaps what the killed one was putting, is on record."""
    put, queued = ledger.totals()[:2]
    assert before <= put <= before + 1
    assert queued >= 0
    assert finished_of(ledger) >= 0
    assert ledger.in_hand() >= 0


def finish(it: Scene, *, once: bool) -> None:
    """The survivor goes on to the end: each item comes once, and only the finished do not.

    What was just being given back may come twice where items are redelivered.
    """
    desk, ledger, head = it.desk, it.desk.ledger, it.desk.head
    if not head[STATE] & CLOSED:
        desk.close_queue()
    put, queued = ledger.totals()[:2]
    items = list[bytes]()
    while taken := it.source.get(2):
        items += taken
    assert len(items) == queued
    assert len(set(items)) == len(items) or not once
    assert set(items) <= {*it.put, b"new"}
    assert it.source.hand.held == 0
    assert finished_of(ledger) + head[LOST] == put
    assert isinstance(ledger.verdict(), ProducerFailed if head[FAILED] else Done)
    assert ledger.settled()
    if it.redeliver:
        assert head[LOST] == 0
        assert len(it.put) - len(items) <= finished_of(ledger)


def test_with_two_threads_what_the_other_one_holds_is_handed_out_again(tmp_path: Path) -> None:
    """One finishes its item, and dies in that; the other one's item must come again."""
    for store in itertools.count():
        path = tmp_path / str(store)
        path.mkdir()
        it = Scene(path, redeliver=True)
        ledger, reader = it.desk.ledger, it.reader
        other = Hand(it.desk.channel, False)
        ledger.hands[reader.slot][1] = other
        assert ledger.take(reader.slot, other, 1)
        (held, _), *_ = other.pending
        other.pending.clear()
        over = it.die_or_end(lambda it: it.reader.get(1), store)
        it.survive().mend()
        it.desk.head[HOLDER] = 0
        it.bury()
        items = list[bytes]()
        while taken := it.source.get(2):
            items += taken
        assert held in items, f"killed before store {store}"
        if over:
            return

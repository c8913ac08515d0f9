"""The ledger: who is open, how much was put and taken, and when it is done.

All of these change here and nowhere else, on every channel, by the same code. The ledger does not
know who calls it; it works on integer cells that its runtime hands out, in a list for threads, in
shared memory for processes.

Lock rule
---------
Every method is called with the runtime's lock held, in this pattern, which `transact` wraps for
all but the two hot ones, `put` and `take`, that have it inside::

    if head[HOLDER]: refuse, or mend
    head[HOLDER] = me
    try: ...
    finally: head[HOLDER] = 0

HOLDER is the slot of the process that is inside, or its negated pid if it has no slot. Who has the
lock and finds its own name there is nested: the same thread, interrupted by a signal handler or
`__del__`. Another's is that of a process that died inside. Then `mend` counts again what follows
from the slots, and a take that had not come to its store to TAKEN has not happened. A channel's
append is one store as well.

A signal handler may raise wherever CPython looks for signals: at the start of a function, after a
call, at a backward jump. So whatever must happen together is a run of plain stores with none of
these between. What is not (waking sleepers after a change) is repaired: every sleeper looks again
after a slice and calls `settle`.

States of the queue
-------------------
::

    open --close--> closed --drained, nobody may put--> done, or failed if a producer failed
                      |   ^
     last consumer    |   | the last producer closes and nothing is left
     goes, not drained v   |
                    abandoned
    any but broken --cancel--> cancelled          any --a holder died--> broken

CLOSED, CANCELLED, ABANDONED and BROKEN are bits of STATE; the rest follows from the counts.

States of an endpoint's slot
----------------------------
::

    free --open--> made --take--> taken --use--> used --close | fail | bury--> free

`made` and `taken` differ in OWNER, `taken` and `used` in the flag USED. GENERATION counts the
takes, so that of two copies of one pickle only the first is valid. A slot is free for reuse at
once; its NUMBER (never given twice) tells an old endpoint that the slot is not its own any more.

Without the lock
----------------
A channel whose own operations are atomic (`Channel.atomic`) is put to and taken from without the
lock: a put appends and then looks for waiters; a waiter announces itself and then looks for items.
A consumer's thread counts in its own `Hand` what it took, and `fold` brings that into the cells
whenever totals are asked for. All else, and every wait, goes by the lock.

Invariants (with the lock free, after `fold`)
-------------------------------
* what was put = what the channel holds + TAKEN + DROPPED - RETURNED
* what is finished = TAKEN - LOST - RETURNED - the sum of IN_HAND over the slots
* PRODUCERS, CONSUMERS, WORKERS are the numbers of slots of that kind
* BUSY = the sum over workers of IN_HAND, plus the workers that have the flag UNASKED
* an illegal transition raises `IllegalTransition` and changes nothing
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from queue import Empty
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from iterable_queue._cells import (
    ABANDONED,
    AT,
    BLOCKED,
    BROKEN,
    BUSY,
    CANCEL_ON_FAILURE,
    CANCELLED,
    CLAIM_END,
    CLAIM_IDLE,
    CLAIM_NEXT,
    CLOSED,
    CONSUMER,
    CONSUMERS,
    CUT_SHORT,
    DEALT_WITH,
    DROPPED,
    DROPPED_COPY,
    EVER,
    FAILED,
    FLAGS,
    FORKED,
    FREE,
    FREE_SLOT,
    GATE,
    GENERATION,
    HAD,
    HANDLE,
    HAS_PUT,
    HEAD_SIZE,
    HIGHEST,
    HOLDER,
    IN_HAND,
    KIND,
    KIND_NAMES,
    LANE,
    LEAN,
    LINEAGE,
    LOCKLESS,
    LOST,
    MAKER,
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
    REDELIVER,
    REDELIVERED,
    RETURNED,
    ROAD,
    SENT,
    SITE,
    SLOT_SIZE,
    SLOTS,
    STAMP,
    STARTED,
    STATE,
    TAKEN,
    TEXT,
    TOLD,
    UNASKED,
    USED,
    WAIT_ITEM,
    WAIT_ROOM,
    WORKER,
    WORKERS,
    SlotView,
)
from iterable_queue._channel import EMPTY, Hand
from iterable_queue._errors import (
    REMOVED_BY_OTHERS,
    Cancelled,
    ChannelBroken,
    ConsumersGone,
    Done,
    ItemsLost,
    ProducerClosed,
    ProducerFailed,
    QueueClosed,
    WouldDeadlock,
    repr_of,
)

if TYPE_CHECKING:
    from iterable_queue._runtime import Condition
    from iterable_queue._seams import Cells, Channel, Claims, Runtime, Whole

P = ParamSpec("P")
R = TypeVar("R")

LARGEST: Final = (1 << 63) - 1
"""The largest number that a cell holds."""

NOT_ALL: Final = "; what was put has been delivered, but it is not all there should be"
"""How the text of each `ProducerFailed` ends."""

PUT_WHEN_DONE: Final = (
    "the queue is done: a worker may put only while it is not; if several tasks or threads share "
    "this worker, give each a clone(): what they have in hand keeps the queue from being done"
)


class IllegalTransition(RuntimeError):
    """A bug in this library: a transition that the state machine does not have."""


def _text(words: Iterable[int]) -> str:
    """The text that `_words` has made cells of."""
    raw = b"".join(word.to_bytes(8, "little", signed=True) for word in words)
    return raw.rstrip(b"\0").decode("utf-8", "replace")


@lru_cache(maxsize=64)
def _words(text: str) -> tuple[int, ...]:
    """The cells of a slot from TEXT on that say *text*, or its end."""
    room = (SLOT_SIZE - TEXT) * 8
    raw = text.encode("utf-8", "replace")
    raw = (b"..." + raw[3 - room :] if len(raw) > room else raw).ljust(room, b"\0")
    return tuple(int.from_bytes(raw[i : i + 8], "little", signed=True) for i in range(0, room, 8))


class Ledger:
    """The state machine, on one process's view of the cells.

    Attributes:
        me: the slot of this process, or 0 while it is not registered.
        cells: the slots; replaced when they grow.
        hands: those of this process's consumers and workers, by slot.
        claims: what the channel does whose consumers hold items ahead, if it does.
        whole: makes changes of several cells that a death does not tear apart, where it can.
        lease: writes down what the endpoint in a slot has in hand, where items are redelivered.
    """

    __slots__ = (
        "_maxsize",
        "_runtime",
        "cells",
        "channel",
        "claims",
        "end",
        "hands",
        "head",
        "items",
        "lease",
        "me",
        "room",
        "whole",
    )

    def __init__(self, runtime: Runtime, channel: Channel) -> None:
        self._runtime = runtime
        self.head: Cells = runtime.head
        self.cells: Cells = runtime.cells(max(self.head[SLOTS], 2) * SLOT_SIZE)
        self.items: Condition = runtime.items
        self.room: Condition = runtime.room
        self.end: Condition = runtime.end
        self.channel: Channel = channel
        self._maxsize = self.head[MAXSIZE]
        self.me: int = 0
        self.hands: dict[int, dict[int, Hand]] = {}
        self.lease: Callable[[int, Hand], None] | None = None
        self.claims: Claims | None = None
        self.whole: Whole | None = None

    def now(self) -> int:
        """Nanoseconds on the runtime's clock."""
        return self._runtime.now()

    def refreshed(self) -> Cells:
        """The cells of all slots that there are. May be called without the lock."""
        count = self.head[SLOTS] * SLOT_SIZE
        if len(self.cells) < count:
            self.cells = self._runtime.cells(count)
        return self.cells

    def set_up(
        self, maxsize: int, *, cancel: bool = False, deliveries: int = 0, lockless: bool = False
    ) -> None:
        """Once, by the queue's maker, before anybody else knows of it."""
        self.head[MAXSIZE] = self._maxsize = min(maxsize, LARGEST)  # which nobody can tell apart
        self.head[CANCEL_ON_FAILURE] = cancel
        self.head[REDELIVER] = deliveries
        self.head[LOCKLESS] = lockless
        self.head[HIGHEST] = self.channel.size()

    # -- the lock rule ---------------------------------------------------------------------------

    def transact(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """`call(*args)` by the lock rule above."""
        head = self.head
        if head[HOLDER]:
            self._succeed()
        if head[STATE] & BROKEN:
            raise self.refusal()
        head[HOLDER] = self.me or -os.getpid()
        try:
            self.refreshed()
            return call(*args, **kwargs)
        finally:
            head[HOLDER] = 0

    def _succeed(self) -> None:
        """The caller has the lock, but a name is in HOLDER. Raises if this call is nested.

        Else that is one who died inside, and what it left half done is mended.
        """
        holder = self.head[HOLDER]
        if holder in (self.me, -os.getpid()):
            raise WouldDeadlock(
                "called from a signal handler or __del__ that interrupted another call of this "
                "thread on the same queue; nothing was changed. Set a flag there and act on it "
                "outside"
            )
        self.mend_after(holder)

    def mend_after(self, holder: int) -> None:
        """Make whole what *holder* left half done, which died with the lock.

        Whoever does this is the holder meanwhile; if it dies, the next one does it again.
        """
        head = self.head
        head[HOLDER] = self.me or -os.getpid()
        try:
            self.mend()
        except BaseException:
            head[HOLDER] = holder  # interrupted: it is still to be done
            raise
        head[HOLDER] = 0

    # -- items: the hot path ---------------------------------------------------------------------

    def put(self, slot: int, number: int, payload: Any, worker: bool) -> bool:
        """Put *payload* for the endpoint. False: no room. Raises if it may not."""
        head = self.head
        if head[HOLDER]:
            self._succeed()
        head[HOLDER] = self.me
        try:
            if head[STATE] > CLOSED:
                raise self.refusal()
            if worker:
                if self.drained():
                    raise ProducerClosed(PUT_WHEN_DONE)
                flags = self.cells[slot * SLOT_SIZE + FLAGS]
                if flags & UNASKED:
                    self.cells[slot * SLOT_SIZE + FLAGS] = flags | HAS_PUT
            elif self._maxsize and self.channel.size() >= self._maxsize:
                return False
            self.channel.append(payload, number)
            if head[WAIT_ITEM]:
                self.items.notify()
            return True
        finally:
            head[HOLDER] = 0

    def put_all(self, slot: int, number: int, payloads: list[Any], worker: bool) -> bool:
        """Put the *payloads*, and remove those from the list that are put. False: no more room."""
        while payloads:
            if not self.put(slot, number, payloads[0], worker):
                return False
            del payloads[0]
        return True

    def take(self, slot: int, hand: Hand, limit: int, many: bool = False) -> bool:
        """Finish what *hand* holds, then move up to *limit* items into its `pending`.

        A hand that claims gets a claim instead, unless the caller wants *many* items at once.
        False: there is none now, and `verdict` tells whether there may be. Raises if cancelled.
        """
        head = self.head
        if head[HOLDER]:
            self._succeed()
        head[HOLDER] = self.me
        try:
            if head[STATE] & (CANCELLED | BROKEN):
                raise self.refusal()
            if hand.pull is not None:
                return self._take_lean(hand, limit)
            if hand.claims:
                return self._take_claim(slot, hand, limit, many)
            channel = self.channel
            pending = hand.pending
            taken = head[TAKEN]
            queued = channel.size()
            head[HIGHEST] = max(head[HIGHEST], queued)
            if queued and limit == 1 and hand.held == 1 and self.lease is None:
                # One finished, one taken: IN_HAND and BUSY stay as they are.
                payload = channel.peek()
                if payload is not EMPTY:
                    pending += (payload,)
                    head[TAKEN] = taken + 1
                    channel.stash[:] = ()
                    if head[WAIT_ROOM]:
                        self.room.notify()
                    return True
            cells = self.cells
            base = slot * SLOT_SIZE
            worker = cells[base + KIND] == WORKER
            held = hand.held
            if self.lease is not None and held:
                self.lease(slot, hand)  # so that these are the last, the first to be left out
            finishes = held or cells[base + FLAGS] & UNASKED
            if finishes:
                self._finish(base, hand, worker)
            # No condition of the loop's own: the jump back of such a loop is outside its `try` from
            # CPython 3.12 on, and it is one of the places where signal handlers run and raise.
            while True:
                if not queued or len(pending) >= limit:
                    break
                payload = channel.peek()
                if payload is EMPTY:
                    break
                if self.lease is not None:
                    if not hand.held:
                        hand.kept[:] = ()
                    hand.kept += (payload,)
                    self.lease(slot, hand)
                # From here to the store to `stash`: together, whatever a signal handler does.
                cells[base + HAD] = cells[base + IN_HAND]
                cells[base + AT] = taken + 1
                if worker:
                    head[BUSY] += 1
                pending += (payload,)
                hand.held += 1
                cells[base + IN_HAND] += 1
                taken += 1
                head[TAKEN] = taken
                channel.stash[:] = ()
            if self.lease is not None and held and not hand.held:
                self.lease(slot, hand)
            if not hand.held:
                if finishes:
                    self.settle()
                return False
            if head[WAIT_ROOM]:
                self.room.notify(len(pending))
            return True
        finally:
            head[HOLDER] = 0

    def _take_lean(self, hand: Hand, limit: int) -> bool:
        """`take` for a hand that counts by itself."""
        assert hand.pull is not None
        hand.idle_at = hand.taken
        hand.last = 1
        hand.quick = hand.pull
        hand.peak = max(hand.peak, self.channel.size())
        try:
            while len(hand.pending) < limit:
                hand.pull()
        except Empty:
            if not hand.pending:
                self.settle()
                return False
        if self.head[WAIT_ROOM]:
            self.room.notify(len(hand.pending))
        return True

    def _take_claim(self, slot: int, hand: Hand, limit: int, many: bool) -> bool:
        """`take` for a hand that claims: what it can hand out then is its `claim`.

        Where *many* are wanted, they are moved on to its `pending`.
        """
        claims = self.claims
        assert claims is not None
        left = claims.resume(slot, hand)
        if hand.held:
            self._finish(slot * SLOT_SIZE, hand, False)
        if not left and not claims.claim(slot, hand):
            self.settle()
            return False
        while many and len(hand.pending) < limit:
            if not (hand.rest or hand.claim) and not claims.claim(slot, hand):
                break
            claims.unclaim(slot, hand, limit - len(hand.pending))
        if self.head[WAIT_ROOM] and hand.pending:
            self.room.notify(len(hand.pending))
        return True

    def fold(self) -> None:
        """Bring into the cells what hands have counted by themselves."""
        head, cells = self.head, self.cells
        for slot, hands in self.hands.items():
            base = slot * SLOT_SIZE
            for hand in list(hands.values()):
                if hand.pull is None:
                    continue
                taken = hand.taken
                pending = len(hand.pending)
                in_hand = pending or (hand.last if taken > hand.idle_at else 0)
                taken += pending  # as soon as they are queued no more
                more, held = taken - hand.seen[0], in_hand - hand.seen[1]
                # Together: no call and no jump before the last of these.
                hand.seen = (taken, in_hand)
                head[LEAN] += more
                cells[base + IN_HAND] += held
                head[HIGHEST] = max(head[HIGHEST], hand.peak)
        head[HIGHEST] = max(head[HIGHEST], self.channel.size())

    def _finish(self, base: int, hand: Hand, worker: bool) -> None:
        """The items that *hand* holds are finished; a worker's first call counts likewise."""
        head, cells = self.head, self.cells
        held = hand.held
        flags = cells[base + FLAGS]
        busy = held + (1 if flags & UNASKED else 0)
        hand.held = 0
        hand.kept[:] = ()
        cells[base + IN_HAND] -= held
        if worker:
            head[BUSY] -= busy
            cells[base + FLAGS] = flags & ~UNASKED

    def give_back(self, slot: int, hand: Hand) -> None:
        """Put the payloads back that an interrupted `get` took and never returned.

        After a cancel they are dropped, as all that was left.
        """
        base = slot * SLOT_SIZE
        head, cells = self.head, self.cells
        while hand.pending:
            if hand.give is not None:
                # Its thread may be handing it out, since it takes no lock for that: in one C call
                # one of the two has it. Given back, it does not count as taken any more.
                try:
                    hand.give()
                except IndexError:
                    break
                self.items.notify()
                continue
            payload, tag = self.channel.unwrap(hand.pending[0])
            worker = cells[base + KIND] == WORKER
            if self.whole is not None:
                self.whole.append_and(
                    payload,
                    tag,
                    (RETURNED, head[RETURNED] + 1),
                    (HEAD_SIZE + base + IN_HAND, cells[base + IN_HAND] - 1),
                    (BUSY, head[BUSY] - worker),
                )
                hand.held -= 1
                del hand.pending[0]
                self.items.notify()
                continue
            self.channel.append(payload, tag)
            # Together.
            head[RETURNED] += 1
            cells[base + IN_HAND] -= 1
            if worker:
                head[BUSY] -= 1
            hand.held -= 1
            del hand.pending[0]
            self.items.notify()
        if head[STATE] & CANCELLED:
            self._drop_all()

    def totals(self) -> tuple[int, int, int, int]:
        """How many items were put, are queued, were taken, and are finished, all at one moment."""
        head = self.head
        if self.claims is not None:
            put, queued, taken, in_claims = self.claims.totals()
            settled = taken - in_claims - self._in_cells()
        else:
            while True:
                gone = self._gone()
                queued = self.channel.size()
                if gone == self._gone():
                    break
            taken, in_hand = gone
            put = queued + taken + head[DROPPED] - head[RETURNED]
            settled = taken - in_hand
        head[HIGHEST] = max(head[HIGHEST], queued)
        finished = settled - head[LOST] - head[RETURNED]
        # What came back from a hand was not handed to user code, unless that died with it.
        return put, queued, taken - head[RETURNED] + head[REDELIVERED], finished

    def _gone(self) -> tuple[int, int]:
        """Items handed out, or about to be: they are queued no more; and those in hand."""
        self.fold()
        return self.head[TAKEN] + self.head[LEAN], self._in_cells()

    def qsize(self) -> int:
        """How many items are put and not taken. May be called without the lock.

        None after a cancel: what is put without the lock by one who has not seen the bit in time
        stays on the channel until the next one who has the lock drops it.
        """
        return 0 if self.head[STATE] & CANCELLED else self.channel.size()

    # -- what the queue is in for ----------------------------------------------------------------

    def drained(self, *, fold: bool = True) -> bool:
        """Nothing is left, and nothing can come any more.

        What is in hand may come back where items are redelivered.
        """
        head = self.head
        if not head[STATE] & CLOSED or head[PRODUCERS] or head[BUSY] or self.channel.size():
            return False
        return not head[REDELIVER] or self.in_hand(fold=fold) == 0

    def settled(self) -> bool:
        """Drained, and everything that was taken is finished (or lost)."""
        return self.drained() and self.in_hand() == 0

    def in_hand(self, *, fold: bool = True) -> int:
        """Items handed out and not finished.

        Without *fold* nothing is stored, so that it may be called without the lock; what hands
        have counted by themselves may then be missing.
        """
        if fold:
            self.fold()
        held = self._in_cells()
        if self.claims is not None:
            held += self.claims.in_claims()
        return held

    def _in_cells(self) -> int:
        cells = self.cells
        return sum(cells[IN_HAND + SLOT_SIZE : self.head[SLOTS] * SLOT_SIZE : SLOT_SIZE])

    def settle(self) -> None:
        """Decide again what the queue is in for, and wake whom it concerns.

        Called after every transition that can end somebody's wait, and by every sleeper after a
        slice, which makes up for a call that an interrupt left out.
        """
        head = self.head
        state = head[STATE]
        if state & (CANCELLED | BROKEN):
            if state & CANCELLED and self.channel.size():
                self._drop_all()  # put without the lock, by one who has not seen the bit in time
            self._wake_everybody()
        elif state & CLOSED:
            producing = head[PRODUCERS] or head[BUSY]
            queued = self.channel.size()
            alone = head[EVER] and not head[CONSUMERS] and not head[WORKERS]
            if alone and (queued or producing):
                head[STATE] = state | ABANDONED
                self._wake_everybody()
            else:
                head[STATE] = state & ~ABANDONED
                if self.drained():
                    self._wake_everybody()

    def _wake_everybody(self) -> None:
        self.items.notify_all()
        self.room.notify_all()
        self.end.notify_all()

    def verdict(self) -> Exception | None:
        """What a `get` that found nothing raises: the end, or None if something may still come."""
        if self.head[STATE] & (CANCELLED | BROKEN):
            return self.refusal()
        if not self.drained():
            return None
        if self.head[FAILED]:
            return self.failure()
        return Done("every producer has closed, and nothing is left on the queue")

    def join_verdict(self) -> Exception | bool:
        """What `join` finds: True when all is finished, an error, or False for not yet."""
        head = self.head
        if head[STATE] & (CANCELLED | BROKEN | ABANDONED):
            return self.refusal()
        if not self.settled():
            return False
        if head[FAILED]:
            return self.failure()
        if head[LOST]:
            return self.items_lost(head[LOST])
        return True

    def items_lost(self, count: int, how: str = "killed") -> ItemsLost:
        """So many items were in hand when the consumers' processes were *how*."""
        tries = self.head[REDELIVER]
        more = (
            f"each was handed out {tries} time(s), which is max_deliveries, and is given up"
            if tries
            else "redeliver=True on the queue hands such items out again"
        )
        lost = ItemsLost(f"{count} item(s) were in the hands of consumers that were {how}; {more}")
        lost.count = count
        return lost

    def refusal(self) -> Exception:
        """The error for a call on a queue that is cancelled, broken or abandoned."""
        state = self.head[STATE]
        if state & BROKEN:
            reason = self._runtime.errors.reason()
            return ChannelBroken(str(reason) if reason else REMOVED_BY_OTHERS)
        if state & CANCELLED:
            reason = self._runtime.errors.reason()
            why = "; nobody said why" if reason is None else f": {repr_of(reason)}"
            cancelled = Cancelled(f"the queue was cancelled{why}")
            cancelled.__cause__ = reason
            return cancelled
        left = f"{self.channel.size()} item(s) left and {self.head[PRODUCERS]} producer(s) open"
        if self.head[EVER] == NONE_EVER:
            return ConsumersGone(
                f"the queue, made at {self.site()}, was dropped before it had a consumer, so none "
                f"can come, with {left}; keep the queue in a variable until its consumers are made"
            )
        return ConsumersGone(
            f"the queue is closed and no consumer is left, with {left}; keep a consumer open until "
            "Done"
        )

    def failure(self) -> ProducerFailed:
        """`ProducerFailed` with all failures so far, the first as its cause."""
        failures = self._runtime.errors.failures()
        untold = ProducerFailed("a producer failed; there was no room to write down how")
        failures += (untold,) * (self.head[FAILED] - len(failures))
        first = failures[0] if failures else None
        more = f" (and {len(failures) - 1} more, see .failures)" if len(failures) > 1 else ""
        if isinstance(first, ProducerFailed):  # of this queue, or of another one: it was passed on
            text = str(first).removesuffix(NOT_ALL)
        else:
            text = f"a producer failed: {repr_of(first)}"
        error = ProducerFailed(f"{text}{more}{NOT_ALL}")
        error.failures = failures
        error.__cause__ = first
        return error

    # -- endpoints -------------------------------------------------------------------------------

    def closed_to(self, kind: int) -> QueueClosed:
        """Why no endpoint of *kind* is made any more."""
        return QueueClosed(
            f"no new {KIND_NAMES[kind]} after close(): make every endpoint before leaving the "
            "`with` block and before starting the processes that use it, or clone() one that "
            "is still open"
        )

    def open(self, kind: int, site: str, *, clone: bool = False) -> tuple[int, int]:
        """A new endpoint of *kind*, made by this process at *site*. Returns its slot and number.

        Raises `QueueClosed` (not for a clone), `ConsumersGone`, `Cancelled`, `ChannelBroken`.
        """
        head = self.head
        state = head[STATE]
        if state & (CANCELLED | BROKEN):
            raise self.refusal()
        if kind in (PRODUCER, WORKER) and state & CLOSED and not clone:
            raise self.closed_to(kind)
        if kind == CONSUMER and state & ABANDONED:
            raise self.refusal()
        slot = self._allocate(site)
        base = slot * SLOT_SIZE
        cells = self.cells
        cells[base + MAKER] = self.me
        cells[base + STAMP] = self._runtime.now()
        # Together: the slot begins to count. The queue itself is number 0.
        if kind != QUEUE:
            head[NUMBERS] += 1
            cells[base + NUMBER] = head[NUMBERS]
        cells[base + KIND] = kind
        if kind == QUEUE:
            head[HANDLE] = self.me
            for field, word in enumerate(_words(site), SITE):  # which outlives its slot
                cells[field] = word
        elif kind == PRODUCER:
            head[PRODUCERS] += 1
        elif kind == CONSUMER:
            head[CONSUMERS] += 1
            head[EVER] += 1
        elif kind == WORKER:
            cells[base + FLAGS] = UNASKED
            head[WORKERS] += 1
            head[BUSY] += 1
            head[EVER] += 1
        return slot, cells[base + NUMBER]

    def open_process(self, pid: int, prepare: Callable[[int], None]) -> int:
        """A slot for a process (pid 0: one that is being started).

        *prepare* is called with the slot before that counts: to lock what shows that it lives.
        """
        slot = self._allocate("")
        base = slot * SLOT_SIZE
        try:
            prepare(slot)
        except BaseException:
            self.cells[base + NEXT] = self.head[FREE_SLOT]
            self.head[FREE_SLOT] = slot
            raise
        self.cells[base + MAKER] = self.me
        self.cells[base + STAMP] = self._runtime.now()
        self.cells[base + NUMBER] = pid
        self.cells[base + KIND] = PROCESS
        return slot

    def open_lane(self) -> int:
        """A slot for the channel's cells of a lane."""
        slot = self._allocate("")
        self.cells[slot * SLOT_SIZE + KIND] = LANE
        return slot

    def _allocate(self, text: str) -> int:
        """A free slot, blank but for *text*; it counts once its KIND is stored."""
        head = self.head
        slot = head[FREE_SLOT]
        if slot:
            cells = self.cells
            head[FREE_SLOT] = cells[slot * SLOT_SIZE + NEXT]
        else:
            slot = max(head[SLOTS], 1)
            if len(self.cells) < (slot + 1) * SLOT_SIZE:
                self.cells = self._runtime.cells((slot + 1) * SLOT_SIZE)
            cells = self.cells
            head[SLOTS] = slot + 1
        base = slot * SLOT_SIZE
        for field in range(1, SLOT_SIZE):
            cells[base + field] = 0
        for field, word in enumerate(_words(text), base + TEXT):
            cells[field] = word
        return slot

    def is_open(self, slot: int, number: int) -> bool:
        """Whether *slot* still is the endpoint of that *number*.

        A process may have the slot by now, and the same number: its pid, or 0 while it is started.
        """
        base = slot * SLOT_SIZE
        kind = self.cells[base + KIND]
        return kind not in (FREE, PROCESS, LANE) and self.cells[base + NUMBER] == number

    def take_over(self, slot: int, number: int, generation: int | None) -> bool:
        """This process takes the endpoint, if it is still to be had.

        *generation* is that of the pickle it came by; None: this process made it or was forked
        with it, so that it must be untaken.
        """
        base = slot * SLOT_SIZE
        cells = self.cells
        if not self.is_open(slot, number):
            return False
        if cells[base + OWNER] == self.me:
            return True
        if cells[base + FLAGS] & USED:
            return False
        if generation is None:
            if cells[base + OWNER]:
                return False
        elif cells[base + GENERATION] != generation:
            return False
        cells[base + OWNER] = self.me
        cells[base + GENERATION] += 1
        cells[base + FLAGS] &= ~(DROPPED_COPY | SENT | FORKED)
        return True

    def assign(self, slot: int, process: int) -> None:
        """The endpoint belongs to the process in slot *process*, which is being started with it."""
        base = slot * SLOT_SIZE
        if self.cells[base + FLAGS] & USED or self.cells[process * SLOT_SIZE + KIND] != PROCESS:
            raise IllegalTransition(f"slot {slot} can't be given to {process}")
        self.cells[base + OWNER] = process
        self.cells[base + GENERATION] += 1
        self.cells[base + FLAGS] = self.cells[base + FLAGS] & ~(SENT | FORKED) | STARTED

    def close(self, slot: int, number: int) -> bool:
        """Close the endpoint. False: it was closed before."""
        if not self.is_open(slot, number):
            return False
        head, cells = self.head, self.cells
        base = slot * SLOT_SIZE
        kind = cells[base + KIND]
        if slot in self.hands:
            self.fold()
            del self.hands[slot]
        if self.claims is not None:
            if kind == PRODUCER:
                self.claims.release_lane(slot)
            elif kind == CONSUMER:
                self.claims.cut(slot)
        busy = cells[base + IN_HAND] + (1 if cells[base + FLAGS] & UNASKED else 0)
        # Together, up to the free list.
        if kind == PRODUCER:
            head[PRODUCERS] -= 1
        elif kind == CONSUMER:
            head[CONSUMERS] -= 1
        elif kind == WORKER:
            head[WORKERS] -= 1
            head[BUSY] -= busy
        else:
            head[STATE] |= CLOSED
        cells[base + IN_HAND] = 0
        cells[base + GATE] = 0
        cells[base + CLAIM_END] = cells[base + CLAIM_NEXT] = cells[base + CLAIM_IDLE] = 0
        cells[base + KIND] = FREE
        cells[base + NEXT] = head[FREE_SLOT]
        head[FREE_SLOT] = slot
        self.settle()
        if cells[base + BLOCKED]:  # other threads of this endpoint find it closed
            self.items.notify_all()
            self.room.notify_all()
        return True

    def no_more_consumers(self) -> None:
        """The one handle is gone from which endpoints could have been made.

        A queue that never had a consumer will never have one, so it is abandoned once it is closed.
        """
        # First: who dies between these does it again, by `release_process`.
        self.head[EVER] = self.head[EVER] or NONE_EVER
        self.head[HANDLE] = 0
        self.settle()

    def release_process(self, slot: int) -> None:
        """The process in *slot* is gone, and all of its endpoints have been dealt with."""
        base = slot * SLOT_SIZE
        if self.cells[base + KIND] != PROCESS:
            raise IllegalTransition(f"slot {slot} is not a process")
        for view in self.views():
            other = view.slot * SLOT_SIZE
            if view.maker == slot:
                self.cells[other + MAKER] = 0
            if view.road == slot:
                self.cells[other + ROAD] = 0
        if self.head[HANDLE] == slot:
            self.no_more_consumers()
        # Together.
        self.cells[base + KIND] = FREE
        self.cells[base + NEXT] = self.head[FREE_SLOT]
        self.head[FREE_SLOT] = slot

    def fail(self, slot: int, number: int, packed: object) -> bool:
        """Close the endpoint as failed, with an error that `ErrorStore.pack` made."""
        if not self.is_open(slot, number):
            return False
        if not self.head[STATE] & CANCELLED:
            self._record_failure(slot, packed)
        self.close(slot, number)
        return True

    def _record_failure(self, slot: int, packed: object) -> None:
        head = self.head
        flags = self.cells[slot * SLOT_SIZE + FLAGS]
        if not flags & TOLD:
            try:
                kept = self._runtime.errors.add_failure(packed)
            except OSError:
                kept = ()  # the disk is full; that it failed is told all the same
            self._store(
                *kept,
                (FAILED, head[FAILED] + 1),
                (HEAD_SIZE + slot * SLOT_SIZE + FLAGS, flags | TOLD),
            )
        if head[CANCEL_ON_FAILURE]:
            self.cancel(packed)

    def _store(self, *pairs: tuple[int, int]) -> None:
        """Store each value in its cell, as `Whole.commit` does where there is such a thing."""
        if self.whole is not None:
            self.whole.commit(*pairs)
            return
        for cell, value in pairs:
            if cell < HEAD_SIZE:
                self.head[cell] = value
            else:
                self.cells[cell - HEAD_SIZE] = value

    def lose(self, slot: int, count: int) -> None:
        """*count* items in the hand of a killed consumer are lost."""
        base = slot * SLOT_SIZE
        if count > self.cells[base + IN_HAND]:
            raise IllegalTransition(f"slot {slot} has no {count} items in hand")
        worker = self.cells[base + KIND] == WORKER
        flags = self.cells[base + FLAGS]
        self._store(
            (BUSY, self.head[BUSY] - worker * count),
            (HEAD_SIZE + base + IN_HAND, self.cells[base + IN_HAND] - count),
            (HEAD_SIZE + base + FLAGS, flags | CUT_SHORT if worker else flags),
            (LOST, self.head[LOST] + count),
        )

    def redeliver(self, slot: int, payload: Any, producer: int, done: int = 0) -> None:
        """Put an item back that was in the hand of a killed consumer.

        *done*, how many of them have been dealt with then, goes to the slot's cell DEALT_WITH: who
        does this may be killed as well.
        """
        base = slot * SLOT_SIZE
        if self.cells[base + IN_HAND] < 1:
            raise IllegalTransition(f"slot {slot} has nothing in hand")
        head, cells = self.head, self.cells
        pairs = (
            (BUSY, head[BUSY] - (cells[base + KIND] == WORKER)),
            (HEAD_SIZE + base + IN_HAND, cells[base + IN_HAND] - 1),
            (HEAD_SIZE + base + DEALT_WITH, done),
            (RETURNED, head[RETURNED] + 1),
            (REDELIVERED, head[REDELIVERED] + 1),
        )
        if self.whole is not None:
            self.whole.append_and(payload, producer, *pairs)
        else:
            self.channel.append(payload, producer)
            self._store(*pairs)
        self.items.notify()

    def cancel(self, packed: object | None) -> None:
        """Stop now. The first reason stays."""
        head = self.head
        if head[STATE] & (CANCELLED | BROKEN):
            return
        if packed is not None:
            self._set_reason(packed)
        head[STATE] |= CANCELLED | CLOSED
        self._drop_all()
        self._wake_everybody()

    def _drop_all(self) -> None:
        head = self.head
        if self.claims is not None:
            for view in list(self.views(CONSUMER)):
                self.claims.cut(view.slot)
        queued = self.channel.size()
        head[HIGHEST] = max(head[HIGHEST], queued)
        head[DROPPED] += queued
        self.channel.clear()

    def was_put(self, count: int = 1) -> None:
        """Items were put without the lock, by one who then saw that somebody should know."""
        if self.head[STATE] & CANCELLED:
            self._drop_all()
        else:
            self.items.notify(count)

    def mend(self) -> None:
        """Make whole what a holder of the lock left half done that died. May be done again."""
        head = self.head
        self.cells = self._runtime.cells(head[SLOTS] * SLOT_SIZE)
        if self.whole is not None:
            self.whole.roll()
        if self.claims is not None:
            self.claims.mend()
        cells = self.cells
        opened = {PRODUCER: 0, CONSUMER: 0, WORKER: 0}
        busy = free = 0
        for slot in range(head[SLOTS] - 1, 0, -1):
            base = slot * SLOT_SIZE
            kind = cells[base + KIND]
            if kind == FREE or (kind == QUEUE and head[STATE] & CLOSED):
                cells[base + KIND] = FREE  # of a close, STATE is stored first
                cells[base + NEXT] = free
                free = slot
                continue
            if cells[base + AT] > head[TAKEN]:
                cells[base + IN_HAND] = cells[base + HAD]
                cells[base + AT] = 0
            if kind in opened:
                opened[kind] += 1
            if kind == WORKER:
                busy += cells[base + IN_HAND] + bool(cells[base + FLAGS] & UNASKED)
        head[FREE_SLOT] = free
        head[PRODUCERS], head[CONSUMERS], head[WORKERS] = opened.values()
        head[BUSY] = busy
        if head[EVER] != NONE_EVER:
            head[EVER] = max(head[EVER], head[CONSUMERS] + head[WORKERS])
        head[FAILED] = max(head[FAILED], self._runtime.errors.count())
        if head[STATE] & CANCELLED:
            self._drop_all()
        self.settle()

    def mark_broken(self, packed: object) -> None:
        """The lock is gone with its holder. The one transition that is made without the lock.

        It is a store of a bit that is never taken back, made by as many as find out.
        """
        if not self.head[STATE] & BROKEN:
            self._set_reason(packed)
            self.head[STATE] |= BROKEN

    def _set_reason(self, packed: object) -> None:
        try:
            self._runtime.errors.set_reason(packed)
        except OSError:
            return  # the disk is full: nobody will know why

    def set_blocked(self, slot: int, number: int, count: int) -> None:
        """How many threads wait in a call of this endpoint: for `statistics` and `explain`.

        Called without the lock, which may be out of reach just then. Only the owner's process
        stores here; should the slot be given away meanwhile, its next owner stores again.
        """
        if self.is_open(slot, number):
            self.cells[slot * SLOT_SIZE + BLOCKED] = count

    # -- looking ---------------------------------------------------------------------------------

    def view(self, slot: int) -> SlotView:
        """One slot, read out."""
        base = slot * SLOT_SIZE
        row = list(self.cells[base : base + SLOT_SIZE])
        return SlotView(
            slot,
            row[KIND],
            row[NUMBER],
            row[FLAGS],
            row[OWNER],
            row[MAKER],
            row[ROAD],
            row[LINEAGE],
            row[IN_HAND] + (self.claims.in_claim(slot) if self.claims is not None else 0),
            row[BLOCKED],
            row[STAMP],
            _text(row[TEXT:]),
        )

    def views(self, *kinds: int) -> Iterator[SlotView]:
        """Every slot in use, of these kinds if any are named."""
        for slot in range(1, min(self.head[SLOTS], len(self.cells) // SLOT_SIZE)):
            kind = self.cells[slot * SLOT_SIZE + KIND]
            if kind != FREE and (not kinds or kind in kinds):
                yield self.view(slot)

    def site(self) -> str:
        """The line of user code that made the queue."""
        return _text(self.cells[SITE : SITE + SLOT_SIZE - TEXT])

    def state_name(self, *, fold: bool = True) -> str:
        """The state in one word, as `Statistics.state` has it. For *fold* see `in_hand`."""
        state = self.head[STATE]
        if state & BROKEN:
            return "broken"
        if state & CANCELLED:
            return "cancelled"
        if state & ABANDONED:
            return "abandoned"
        if self.drained(fold=fold):
            return "failed" if self.head[FAILED] else "done"
        return "closed" if state & CLOSED else "open"

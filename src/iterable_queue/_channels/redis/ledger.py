"""The ledger of a server's queue: each of its transitions is one call of a script.

What the scripts decide here, the ledger of one machine decides in cells. These have what is this
process's own affair, and the counts as they were at the last look (see `COUNTS`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from iterable_queue import _cells as cells_
from iterable_queue._cells import (
    CLAIM_NEXT,
    FLAGS,
    KIND,
    KIND_NAMES,
    MAXSIZE,
    PRODUCER,
    QUEUE,
    SLOT_SIZE,
    STATE,
    TAKEN,
    UNASKED,
    WORKER,
    SlotView,
)
from iterable_queue._channel import Hand
from iterable_queue._channels.redis.calls import (
    BLOCKED,
    CANCEL,
    CLOSE,
    CUT,
    LOOK,
    OPEN,
    PUT,
    TAKE,
    TAKE_OVER,
    VIEW,
    WAITS,
    as_text,
)
from iterable_queue._channels.redis.channel import RedisChannel
from iterable_queue._channels.redis.claims import Claim, Own, Tags, producer_of
from iterable_queue._channels.redis.link import Late, Link, Owed, unsure
from iterable_queue._channels.redis.runtime import RedisRuntime
from iterable_queue._errors import (
    ChannelBroken,
    Done,
    ProducerClosed,
    QueueClosed,
    WouldDeadlock,
)
from iterable_queue._ledger import PUT_WHEN_DONE, Ledger

if TYPE_CHECKING:
    from iterable_queue._seams import Lock

CLAIM_NS: Final = 2_000_000
"""A claim holds as many items as its consumer works through in this time, in nanoseconds."""
CLAIM_MOST: Final = 1024
CLAIM_BYTES: Final = 1 << 18
"""And no more than these: items, bytes (but for 32 items)."""
ENOUGH_NS: Final = 25_000_000
"""A claim of a consumer far from the server holds no more than what takes it this time, ns."""
RECALL_S: Final = 1.0
"""For how long it is tried to give a part of a claim back at once, in seconds: the lock is held."""
CHUNK: Final = 1000
CHUNK_BYTES: Final = 1 << 16
"""At most this many items are put by one call, and no more bytes than these, but for one item."""
STATE_BITS: Final = 3
STATE_MASK: Final = (1 << STATE_BITS) - 1
"""Of what PUT answers, these bits are the state of the queue; above them is how many were put."""
COUNTS: Final = (
    (STATE, b"st"),
    (MAXSIZE, b"ms"),
    (TAKEN, b"tk"),
    (cells_.LOST, b"lo"),
    (cells_.RETURNED, b"rt"),
    (cells_.REDELIVERED, b"rd"),
    (cells_.DROPPED, b"dr"),
    (cells_.PRODUCERS, b"pr"),
    (cells_.CONSUMERS, b"co"),
    (cells_.WORKERS, b"wo"),
    (cells_.BUSY, b"bz"),
    (cells_.EVER, b"ev"),
    (cells_.FAILED, b"fa"),
    (cells_.NUMBERS, b"nu"),
    (cells_.HIGHEST, b"hi"),
    (cells_.REDELIVER, b"re"),
    (cells_.HANDLE, b"ha"),
)
"""The cells of the head, and the fields of `q` that they are copies of."""


class Sending:
    """The put of one coroutine, attempt by attempt.

    What was sent and not answered is asked for again, under its number, and so is put once. In
    between the event loop has its turn, and whatever else this process calls comes after it.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._owed: Owed | None = None
        self._answer: Any = None
        self._error: OSError | None = None

    @property
    def is_unsure(self) -> bool:
        """Whether the item may have been put, and may yet be."""
        return self._owed is not None and self._owed.sent

    def call(self, *arguments: object, what: str) -> Any:
        """The answer to PUT. Raises Late where it has to be asked for again."""
        link = self._link
        if self._owed is None:
            self._owed = link.owe(
                PUT, *arguments, then=self._was_answered, what=what, failed=self._has_failed
            )
        if link.owed is self._owed:  # else another call has had to ask for it
            link.repay(what)
        self._owed = None
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._answer

    def _was_answered(self, answer: Any) -> None:
        self._answer = answer

    def _has_failed(self, error: OSError) -> None:
        self._error = error

    def give_up(self) -> None:
        """Whether it was made or not, it is not made from now on."""
        owed, self._owed = self._link.owed, None
        if owed is not None and owed.then == self._was_answered:  # also if `call` was interrupted
            self._link.owed = None


class RedisLedger(Ledger):
    """The ledger as endpoints know it; its transitions are scripts.

    Attributes:
        link: the connection for calls.
        made_at: the line of user code that made the queue.
        made_by: the process that did, as people know it; "": this one.
        waits: the attempt that is being made is one of a caller that waits if it is in vain.
        sending: that attempt's put, of a coroutine; None: not one of a coroutine.
        owners: of clients: their pids and hosts, as last seen.
        silent_ms: for how long they had not been heard then.
        unsigned: items whose signature was refused, at the last look.
        tells_at_once: coroutines wait here, for which nothing is called after a while.
    """

    __slots__ = (
        "_ahead",
        "_ended",
        "_fetched",
        "_held",
        "_indices",
        "_queued",
        "_reported",
        "_unreported",
        "_views",
        "link",
        "made_at",
        "made_by",
        "owners",
        "runtime_lock",
        "sending",
        "silent_ms",
        "tells_at_once",
        "unsigned",
        "unwanted",
        "waits",
    )

    def __init__(self, runtime: RedisRuntime, channel: RedisChannel, link: Link) -> None:
        super().__init__(runtime, channel)
        self.link = link
        self.runtime_lock = runtime.lock
        self.claims = channel
        self.waits = False
        self.sending: Sending | None = None
        self.tells_at_once = False
        self.owners: dict[int, tuple[int, str]] = {}
        self.silent_ms: dict[int, int] = {}
        self._ended = False
        self._indices: dict[int, int] = {}
        self._fetched: dict[int, SlotView] = {}
        self._views: list[SlotView] = []
        self._queued = self._ahead = self._held = 0
        self.unsigned = 0
        self.made_at = ""
        self.made_by = ""
        self._reported: dict[int, int] = {}
        self._unreported: dict[int, int] = {}
        self.unwanted: deque[list[tuple[int, int]]] = deque()
        """Where the answers come to who opened an endpoint and was interrupted: nobody has it."""
        channel.ledger = self

    def lock_until(self, deadline: float) -> Lock:
        """The lock, for which a `with` waits until then at most, and no longer than a slice."""
        return self._runtime.lock_within(max(deadline - self._runtime.monotonic(), 0.0))

    def refreshed(self) -> Any:
        return self.cells

    # -- items -----------------------------------------------------------------------------------

    def put(self, slot: int, number: int, payload: Any, worker: bool) -> bool:
        return self.put_all(slot, number, [payload], worker)

    def put_all(self, slot: int, number: int, payloads: list[Any], worker: bool) -> bool:
        head = self.head
        if head[cells_.HOLDER]:
            self._succeed()
        head[cells_.HOLDER] = self.me
        try:
            while True:
                if not payloads:  # not a condition of the loop: see `Ledger.take`
                    return True
                count, size = 0, 0
                for payload in payloads[:CHUNK]:
                    size += len(payload)
                    if count and size > CHUNK_BYTES:
                        break
                    count += 1
                if not self._put(slot, payloads, count, worker):
                    return False
        finally:
            head[cells_.HOLDER] = 0

    def _put(self, slot: int, payloads: list[Any], count: int, worker: bool) -> bool:
        """Put the first *count*; they go from the list as they are put. False: no more room."""
        kind = WORKER if worker else PRODUCER
        what = f"put of {KIND_NAMES[kind]} {slot}"
        head = b"%d 0:" % slot
        items = [head + payload for payload in payloads[:count]]
        while items:
            try:
                arguments = slot, kind, int(self.waits), *items
                if self.sending is None:
                    answer = self.link.call(PUT, *arguments, what=what)
                else:
                    answer = self.sending.call(*arguments, what=what)
            except Late as error:
                if self.link.is_unsure:
                    raise ChannelBroken(f"{what}: {error}{unsure('the item was put')}") from error
                raise
            # Both in one number, also below 0: a list of two takes the client 10 us more to read.
            done, self.head[STATE] = answer >> STATE_BITS, answer & STATE_MASK
            if done < 0:
                raise self._why_not(done, slot, kind)
            del payloads[:done], items[:done]
            if not done:
                return False
        return True

    def _why_not(self, code: int, slot: int, kind: int) -> Exception:
        if code == -1:
            return self.refusal()
        if code == -2:
            return ProducerClosed(PUT_WHEN_DONE)
        return ChannelBroken(
            f"{KIND_NAMES[kind]} {slot} has been ended by others, who took this process for dead"
        )

    def take(self, slot: int, hand: Hand, limit: int, many: bool = False) -> bool:
        head = self.head
        if head[cells_.HOLDER]:
            self._succeed()
        head[cells_.HOLDER] = self.me
        try:
            return self._take(slot, hand, limit, many)
        finally:
            head[cells_.HOLDER] = 0

    def own(self, slot: int, hand: Hand) -> Own:
        """What is kept of the hand."""
        own: Own | None = hand.own
        if own is None:
            index = self._indices.get(slot, 0)
            self._indices[slot] = index + 1
            own = hand.own = Own(index)
        return own

    def _take(self, slot: int, hand: Hand, limit: int, many: bool) -> bool:
        own = self.own(slot, hand)
        kind = self.cells[slot * SLOT_SIZE + KIND]
        self.link.repay(f"get of {KIND_NAMES[kind]} {slot}")  # which may change what is given back
        claims = hand.claims and not many
        if claims:
            # As much as is worth a round trip, but no more than is handed out before it is asked
            # again whether this process is alive.
            enough = max(CLAIM_NS, min(4 * own.trip_ns, ENOUGH_NS))
            limit = hand.pace_at(self.now(), enough, CLAIM_MOST)
            if own.bytes_each:
                limit = max(min(limit, CLAIM_BYTES // own.bytes_each), 1)
        own.put_away(hand)
        began = self.now()
        answer = self.link.call(
            TAKE,
            slot,
            kind,
            own.index,
            own.call,
            own.kept,
            "claim" if claims else "many",
            limit,
            1 << 40 if many else CLAIM_BYTES,
            int(self.waits),
            int(own.is_new),
            what=f"get of {KIND_NAMES[kind]} {slot}",
        )
        code, self.head[STATE] = answer[:2]
        self._ended = code == -2
        if code == -1:
            raise self.refusal()
        if code == -3:
            raise self._why_not(code, slot, kind)
        self.cells[slot * SLOT_SIZE + FLAGS] &= ~UNASKED
        items: list[bytes] = answer[2:]
        own.is_new = own.is_new and not items
        number = self.link.number if items else 0
        if claims and items:
            hand.since = self.now()
            own.trip_ns = hand.since - began
            own.bytes_each = sum(map(len, items)) // len(items)
            own.learn(len(items), limit)
            claim = Claim(self, f"{slot}:{own.index}", number, len(items))
            payloads = [item.partition(b":")[2] for item in reversed(items)]
            # Together.
            hand.size = len(items)
            hand.entries = Tags(items)
            hand.view = self.cells
            hand.next_at = slot * SLOT_SIZE + CLAIM_NEXT
            hand.gate, hand.gate_until = claim.take, claim.take_until
            hand.opened = False
            hand.next = hand.first = 0
            hand.claim = payloads
            own.claim = claim
            own.call, own.kept = number, 0
            return True
        pending = [(item.partition(b":")[2], producer_of(item)) for item in items]
        # Together.
        hand.claim = []
        hand.held = len(items)
        hand.pending += pending
        own.call, own.kept = number, 0
        return bool(items)

    def give_back(self, slot: int, hand: Hand) -> None:
        """What an interrupted `get` took and never returned goes back when the endpoint closes."""
        own: Own | None = hand.own
        if own is not None and hand.pending:
            own.kept = len(hand.pending)
            del hand.pending[:]

    def recall(self, slot: int, index: int, call: int) -> None:
        """Somebody waits in vain: give half of what this hand has claimed back. Lock held."""
        for hand in list(self.hands.get(slot, {}).values()):
            own: Own | None = hand.own
            if own is None or own.index != index or own.claim is None or own.call != call:
                continue
            claim = own.claim
            self.link.repay(CUT.name, RECALL_S)
            count = (claim.permits + 1) // 2
            if not count:
                return
            # Only once the server has made it: what is handed out until then is told by how much
            # is left of the whole.
            self.link.owe(
                CUT,
                claim.hand,
                call,
                claim.permits + (1 if claim.granted else 0),
                count,
                then=partial(own.was_cut, claim, hand.claim, count),
            )
            self.link.repay(CUT.name, RECALL_S)

    def revoke(self) -> None:
        """The queue was cancelled: nothing more is handed out of claims. Lock held."""
        for hands in list(self.hands.values()):
            for hand in list(hands.values()):
                if hand.own is not None and hand.own.claim is not None:
                    hand.own.claim.permits = 0

    def claims_left(self) -> Iterator[bytes]:
        """What a broken connection may have swallowed: how far each claim was handed out."""
        for hands in list(self.hands.values()):
            for hand in list(hands.values()):
                own: Own | None = hand.own
                if own is not None and own.claim is not None and own.claim.granted:
                    yield own.claim.trim(own.claim.permits + 1)

    # -- what the queue is in for ----------------------------------------------------------------

    def verdict(self) -> Exception | None:
        if not self._ended:
            return None
        failures = self._runtime.errors.failures()
        if failures:
            return self.failure()
        return Done("every producer has closed, and nothing is left on the queue")

    def join_verdict(self) -> Exception | bool:
        answer = self.link.call(WAITS, what="join")
        self.head[STATE] = answer[1]
        if answer[0] < 0:
            return self.refusal()
        if not answer[0]:
            return False
        failed, lost = answer[2:]
        if failed:
            self.head[cells_.FAILED] = failed
            return self.failure()
        if lost:
            return self.items_lost(lost, "killed or cut off")
        return True

    def refusal(self) -> Exception:
        self.look()
        return super().refusal()

    def settle(self) -> None:
        """The scripts do that."""

    def fold(self) -> None:
        """Nothing is counted here."""

    def mend(self) -> None:
        """Of this process's own cells nothing can be half done."""

    # -- endpoints -------------------------------------------------------------------------------

    def open(self, kind: int, site: str, *, clone: bool = False) -> tuple[int, int]:
        if kind == QUEUE:
            return 0, 0  # it was opened when the queue was made
        # Where this is interrupted, the server may have opened one, or will have once the call has
        # been made again, before any other. The answer is kept by a C function, which can't be.
        answers: list[tuple[int, int]] = []
        errors: list[OSError] = []
        what = f"get_{KIND_NAMES[kind]}"
        try:
            arguments = kind, site, int(clone)
            self.link.owe(OPEN, *arguments, then=answers.append, failed=errors.append, what=what)
            self.link.repay(what)
            if errors:
                raise errors.pop()
            number, self.head[STATE] = answers[0]
            if number == -1:
                raise self.refusal()
            if number < 0:
                raise self.closed_to(kind)
            self.know(number, kind, UNASKED if kind == WORKER else 0)
        except BaseException:
            self.unwanted += (answers,)
            raise
        return number, number

    def closed_to(self, kind: int) -> QueueClosed:
        closed = super().closed_to(kind)
        if not self.made_by:
            return closed
        return QueueClosed(
            f"{closed}. The queue of this name was made by {self.made_by}, at {self.made_at}. If "
            "that is an earlier run, of which something is left: consumers that connect() can take "
            "it, cancel() drops it, and a name of its own for each run keeps them apart"
        )

    def know(self, number: int, kind: int, flags: int) -> None:
        """An endpoint is here."""
        self.cells[number * SLOT_SIZE + KIND] = kind
        self.cells[number * SLOT_SIZE + FLAGS] = flags

    def forget(self, number: int) -> None:
        """It is no more."""
        cells: Any = self.cells
        for field in (KIND, FLAGS, cells_.STAMP, CLAIM_NEXT, cells_.BLOCKED):
            cells.pop(number * SLOT_SIZE + field, None)
        self.hands.pop(number, None)
        self._indices.pop(number, None)
        self._reported.pop(number, None)
        self._unreported.pop(number, None)

    def is_open(self, slot: int, number: int) -> bool:
        return self._fetch(number) is not None

    def view(self, slot: int) -> SlotView:
        found = self._fetched.get(slot) or self._fetch(slot)
        if found is None:
            return SlotView(slot, cells_.FREE, slot, 0, 0, 0, 0, 0, 0, 0, 0, "")
        return found

    def _fetch(self, number: int) -> SlotView | None:
        """The endpoint as it is now; `view` has the last one that this has found."""
        with self.runtime_lock:
            self._fetched.clear()
            found = self.link.call(VIEW, number, what=f"a look at endpoint {number}")
            if not found:
                return None
            owner = found[2] or found[3]
            self.owners[owner] = found[9], as_text(found[10])
            view = self._slot_view(number, found)
            self._fetched[number] = view
            return view

    def _slot_view(self, number: int, found: list[Any]) -> SlotView:
        kind, flags, owner, maker, road, held, blocked, age_ms, site = found[:9]
        stamp = self.now() - age_ms * 1_000_000
        return SlotView(
            number, kind, number, flags, owner, maker, road, 0, held, blocked, stamp, as_text(site)
        )

    def take_over(self, slot: int, number: int, generation: int | None) -> bool:
        uses = generation is None
        arguments = (number, "" if generation is None else generation, int(uses))
        return bool(self.link.call(TAKE_OVER, *arguments, what=f"endpoint {number}")[0])

    def close(self, slot: int, number: int) -> bool:
        return self._close(number, b"")

    def fail(self, slot: int, number: int, packed: object) -> bool:
        assert isinstance(packed, bytes)
        return self._close(number, packed)

    def _close(self, number: int, blob: bytes) -> bool:
        self.link.repay(f"close of endpoint {number}")  # which may change what is given back
        known: list[int] = []
        for hand in list(self.hands.get(number, {}).values()):
            own: Own | None = hand.own
            if own is not None:
                own.put_away(hand)
                known += (own.index, own.call, own.kept)
        done, self.head[STATE] = self.link.call(
            CLOSE, number, blob, *known, what=f"close of endpoint {number}"
        )
        self.cells[number * SLOT_SIZE + KIND] = cells_.FREE  # before anything can interrupt this
        self.forget(number)
        self.wake_everybody()  # other threads that wait on this endpoint find it closed
        return bool(done > 0)

    def cancel(self, packed: object | None) -> None:
        blob = packed if isinstance(packed, bytes) else b""
        self.head[STATE] = self.link.call(CANCEL, blob, what="cancel")[1]
        self.revoke()
        self.wake_everybody()

    def keep_hands(self) -> None:
        """Know the hands of endpoints also when these have forgotten them."""
        for slot, hands in list(self.hands.items()):
            self.hands[slot] = dict(hands)

    def forget_all(self) -> None:
        """In a forked child: nothing that was here is."""
        cells: Any = self.cells
        kinds = {at: v for at, v in cells.items() if at % SLOT_SIZE in (KIND, FLAGS)}
        cells.clear()
        cells.update(kinds)
        for found in (self.hands, self._indices, self._reported, self._unreported, self._fetched):
            found.clear()
        self.owners.clear()
        self.waits = False
        self.sending = None

    @property
    def queued(self) -> int:
        """Items queued at the last look."""
        return self._queued

    def wake_everybody(self) -> None:
        """Whoever sleeps here is to look again. Lock held."""
        self._wake_everybody()

    def set_blocked(self, slot: int, number: int, count: int) -> None:
        self._unreported[number] = count
        # It is told once somebody has waited for a while; that nobody waits any more, at once.
        if self.tells_at_once or count < self._reported.get(number, 0):
            self.report_blocked()

    def report_blocked(self) -> None:
        """Tell the server how many callers wait on the endpoints here."""
        try:
            with self.runtime_lock:
                self._report_blocked()  # a loop here could jump out of this: see `Ledger.take`
        except WouldDeadlock:
            pass  # it is for people only, and told the next time

    def _report_blocked(self) -> None:
        for number, count in list(self._unreported.items()):
            if self._reported.get(number, 0) != count:
                self.link.post(BLOCKED, number, count)
                self._reported[number] = count
        self._unreported.clear()

    # -- looking ---------------------------------------------------------------------------------

    def look(self) -> None:
        """Fetch all that the counts and views below tell. Lock held."""
        looked = self.link.call(LOOK, what="statistics")
        counts = dict(zip(looked[0][::2], looked[0][1::2], strict=True))
        head = self.head
        for cell, name in COUNTS:
            head[cell] = int(counts.get(name, 0))
        self._queued = looked[1] + looked[2]
        self._ahead, self._held = looked[2:4]
        self.unsigned = int(counts.get(b"xs", 0))
        head[cells_.HIGHEST] = max(head[cells_.HIGHEST], self._queued)
        clients: list[Any] = looked[5]
        self.owners.clear()
        for client, (pid, host, silent_ms) in zip(clients[::2], clients[1::2], strict=True):
            self.owners[client] = pid, as_text(host)
            self.silent_ms[client] = silent_ms
        self._views = sorted(
            (self._slot_view(found[0], found[1:]) for found in looked[4]), key=lambda v: v.slot
        )

    def views(self, *kinds: int) -> Iterator[SlotView]:
        return (view for view in self._views if not kinds or view.kind in kinds)

    def totals(self) -> tuple[int, int, int, int]:
        self.look()
        head = self.head
        taken = head[TAKEN] - self._ahead
        put = self._queued + taken + head[cells_.DROPPED] - head[cells_.RETURNED]
        finished = taken - head[cells_.LOST] - head[cells_.RETURNED] - self._held
        return put, self._queued, taken, finished

    def drained(self, *, fold: bool = True) -> bool:
        head = self.head
        if not head[STATE] & cells_.CLOSED or head[cells_.PRODUCERS] or head[cells_.BUSY]:
            return False
        return not self._queued and not (head[cells_.REDELIVER] and self._held)

    def in_hand(self, *, fold: bool = True) -> int:
        return self._held

    def site(self) -> str:
        return self.made_at

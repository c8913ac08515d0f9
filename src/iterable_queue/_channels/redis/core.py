"""One process's part in a queue on a server, and what that is made of."""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from iterable_queue import _cells as cells_
from iterable_queue import _forks, _news
from iterable_queue._cells import (
    CANCELLED,
    CLAIM_NEXT,
    CONSUMER,
    FLAGS,
    FORKED,
    KIND,
    KIND_NAMES,
    MAXSIZE,
    PRODUCER,
    QUEUE,
    SENT,
    SLOT_SIZE,
    STATE,
    TAKEN,
    UNASKED,
    WORKER,
    SlotView,
)
from iterable_queue._channel import EMPTY, ENTRY_BYTES, Hand
from iterable_queue._channels.redis.calls import (
    ADOPT,
    ADRIFT,
    AGAIN,
    ASSIGN,
    BEAT,
    BLOCKED,
    BYE,
    CANCEL,
    CLOSE,
    CUT,
    DEAD,
    HEIR,
    JOIN,
    KEEP,
    LOOK,
    OPEN,
    PUT,
    QUIET,
    SEND,
    SHUT,
    SIZE,
    TAKE,
    TAKE_OVER,
    VIEW,
    WAITS,
    as_text,
)
from iterable_queue._channels.redis.link import ANSWER_S, PAUSES_S, Late, Link, is_readable, let_go
from iterable_queue._channels.redis.runtime import RedisRuntime
from iterable_queue._channels.redis.sealer import Sealer
from iterable_queue._channels.redis.settings import Address, Options, Settings
from iterable_queue._core import Core, stays_here, thread_core
from iterable_queue._errors import (
    ChannelBroken,
    Done,
    EndpointElsewhere,
    ItemsLost,
    ProducerClosed,
    QueueClosed,
    WouldDeadlock,
)
from iterable_queue._exits import install_exit_hooks, watch
from iterable_queue._ledger import Ledger
from iterable_queue._liveness import how_it_ended
from iterable_queue._pickling import spawning_popen
from iterable_queue._runtime import Condition

if TYPE_CHECKING:
    from iterable_queue._endpoints import Endpoint

VERSION: Final = "iterable_queue 1"
"""What the keys mean; a queue of another one is refused."""
CLAIM_NS: Final = 2_000_000
"""A claim holds as many items as its consumer works through in this time, in nanoseconds."""
CLAIM_MOST: Final = 1024
CLAIM_BYTES: Final = 1 << 18
"""And no more than these: items, bytes (but for 32 items)."""
SURE_S: Final = 0.05
"""For so long after it was told that it is alive a consumer hands out what it claimed, in seconds;
then it asks again."""
CHUNK: Final = 1000
CHUNK_BYTES: Final = 1 << 16
"""At most this many items are put by one call, and no more bytes than these, but for one item."""
BRIEFLY_S: Final = 0.5
"""How long a call that does not wait, or a `repr`, tries to reach the server, in seconds."""
ENOUGH_NS: Final = 25_000_000
"""A claim of a consumer far from the server holds no more than what takes it this time, ns."""
GATHER_S: Final = 0.001
"""A consumer that is faster than what comes asks no more often than this, in seconds, as long as it
finds several items each time: what asking costs the server would slow down those who put."""
FEW: Final = 2
"""Items of a claim that are not several."""
FEW_TIMES: Final = 16
"""After so many claims of few items a consumer tries whether it finds more if it asks later;"""
NOT_AGAIN: Final = 256
"""and if it does not, it tries that again after so many claims."""


class Tags:
    """The tags of claimed items, as `Hand.tag` reads them."""

    __slots__ = ("_items",)

    def __init__(self, items: list[bytes]) -> None:
        self._items = items

    def __getitem__(self, where: slice[int, int, None]) -> bytes:
        return _number(self._items[where.start // ENTRY_BYTES]).to_bytes(8, "little")


class Claim:
    """What one hand has claimed.

    Attributes:
        call: the number of the call that made it, which names it at the server.
        granted: items handed out of it, the one being handed out included.
        permits: items that may still be handed out.
    """

    __slots__ = ("_ledger", "_sure_until", "call", "granted", "hand", "permits")

    def __init__(self, ledger: RedisLedger, hand: str, call: int, count: int) -> None:
        self._ledger = ledger
        self.hand = hand
        self.call = call
        self.granted = 0
        self.permits = count
        self._sure_until = time.monotonic() + SURE_S

    def take(self, block: bool) -> bool:
        """Whether one more may be handed out; if so, the server hears of it first."""
        if self.permits < 1:
            return False
        with self._ledger.runtime_lock:
            if self.permits < 1:
                return False
            if self.granted:  # the first one was in hand from the beginning
                if time.monotonic() < self._sure_until:
                    self._ledger.link.tell(self.trim())
                else:
                    self.ask()
                    if self.permits < 1:
                        return False
            # Together.
            self.granted += 1
            self.permits -= 1
            return True

    def ask(self) -> None:
        """The same by a call, which raises if this process was taken for dead."""
        link = self._ledger.link
        link.call(KEEP, self.hand, self.call, self.permits, what=f"consumer {self.hand}")
        self._sure_until = time.monotonic() + SURE_S

    def trim(self, kept: int = -1) -> bytes:
        """The command that leaves so many items of it at the server: the next, and those behind."""
        key = b"%bc:%b:%d" % (self._ledger.link.prefix(), self.hand.encode(), self.call)
        kept_text = b"-%d" % (self.permits if kept < 0 else kept)
        return b"%b*4\r\n$5\r\nLTRIM\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$2\r\n-1\r\n" % (
            QUIET,
            len(key),
            key,
            len(kept_text),
            kept_text,
        )


class Own:
    """What is kept of a hand.

    Attributes:
        index: of the hand in its endpoint.
        is_new: it never had a claim.
        call: the number of the call that made its last claim; 0: there is none.
        claim: that, while it is handed out one by one.
        kept: items of that claim that go back to the others with the next call.
        bytes_each: of the items of that claim, on average.
        trip_ns: how long the call took.
        gathers: it asks for more only after a while (see GATHER_S).
    """

    __slots__ = (
        "_few",
        "_has_gathered",
        "bytes_each",
        "call",
        "claim",
        "gathers",
        "index",
        "is_new",
        "kept",
        "trip_ns",
    )

    def __init__(self, index: int) -> None:
        self.index = index
        self.is_new = True
        self.call = 0
        self.claim: Claim | None = None
        self.kept = 0
        self.bytes_each = 0
        self.trip_ns = 0
        self.gathers = False
        self._has_gathered = False
        self._few = 0

    def gather(self, hand: Hand, now_ns: int) -> None:
        """Give those who put some time, if it is worth it. Called without the lock."""
        if self.gathers:
            time.sleep(max(GATHER_S - (now_ns - hand.since) / 1e9, 0.0))
            self._has_gathered = True

    def learn(self, count: int, limit: int) -> None:
        """A claim had so many items, of *limit* at most."""
        if self.gathers:
            if self._has_gathered and count <= FEW:
                self.gathers = False
                self._few = -NOT_AGAIN
        elif count <= FEW and limit > FEW:
            self._few += 1
            self.gathers = self._few >= FEW_TIMES
        else:
            self._few = min(self._few, 0)
        self._has_gathered = False

    def put_away(self, hand: Hand) -> None:
        """Hand out nothing more of the claim: what is left goes back with the next call."""
        claim = self.claim
        if claim is not None:
            # One that was granted and, since an interrupt came, not returned goes back as well.
            # Together.
            self.kept = claim.permits + (1 if hand.claim and claim.granted > hand.next else 0)
            claim.permits = 0
            self.claim = None


def _number(item: bytes) -> int:
    """Of the producer that put it."""
    return int(item.partition(b" ")[0])


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


class RedisLedger(Ledger):
    """The ledger as endpoints know it; its transitions are scripts.

    Attributes:
        link: the connection for calls.
        waits: the attempt that is being made is one of a caller that waits if it is in vain.
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
        "_put_ever",
        "_queued",
        "_reported",
        "_site",
        "_unreported",
        "_views",
        "link",
        "owners",
        "runtime_lock",
        "silent_ms",
        "tells_at_once",
        "unsigned",
        "waits",
    )

    def __init__(self, runtime: RedisRuntime, channel: RedisChannel, link: Link) -> None:
        super().__init__(runtime, channel)
        self.link = link
        self.runtime_lock = runtime.lock
        self.claims = channel
        self.waits = False
        self.tells_at_once = False
        self.owners: dict[int, tuple[int, str]] = {}
        self.silent_ms: dict[int, int] = {}
        self._ended = False
        self._indices: dict[int, int] = {}
        self._fetched: dict[int, SlotView] = {}
        self._views: list[SlotView] = []
        self._queued = self._ahead = self._held = self._put_ever = 0
        self.unsigned = 0
        self._site = ""
        self._reported: dict[int, int] = {}
        self._unreported: dict[int, int] = {}
        channel.ledger = self

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
                done, state = self.link.call(PUT, slot, kind, int(self.waits), *items, what=what)
            except Late as error:
                if self.link.is_unsure:
                    raise ChannelBroken(
                        f"{what}: {error} within the time-out; whether the item was put is not "
                        "known, since it was sent and not answered"
                    ) from error
                raise
            self.head[STATE] = state
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
            return ProducerClosed("the queue is done: a worker may put only while it is not")
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
            hand.gate = claim.take
            hand.opened = False
            hand.next = hand.first = 0
            hand.claim = payloads
            own.claim = claim
            own.call, own.kept = number, 0
            return True
        pending = [(item.partition(b":")[2], _number(item)) for item in items]
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
            count = (claim.permits + 1) // 2
            if not count:
                return
            claim.permits -= count
            left = claim.permits + (1 if claim.granted else 0)
            # Of the list the next one is the last.
            del hand.claim[:count]
            self.link.call(CUT, claim.hand, call, left + count, count)

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
            error = ItemsLost(
                f"{lost} item(s) were in the hands of consumers that were killed or cut off; "
                "redeliver=True on the queue hands such items out again"
            )
            error.count = lost
            return error
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
        number, self.head[STATE] = self.link.call(
            OPEN, kind, site, int(clone), what=f"get_{KIND_NAMES[kind]}"
        )
        if number == -1:
            raise self.refusal()
        if number < 0:
            raise QueueClosed(
                f"no new {KIND_NAMES[kind]} after close(): make every endpoint before leaving the "
                "`with` block and before starting the processes that use it, or clone() one that "
                "is still open"
            )
        self.know(number, kind, UNASKED if kind == WORKER else 0)
        return number, number

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
        known: list[int] = []
        for hand in list(self.hands.get(number, {}).values()):
            own: Own | None = hand.own
            if own is not None:
                own.put_away(hand)
                known += (own.index, own.call, own.kept)
        done, self.head[STATE] = self.link.call(
            CLOSE, number, blob, *known, what=f"close of endpoint {number}"
        )
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
        self._put_ever = int(counts.get(b"pt", 0))
        self.unsigned = int(counts.get(b"xs", 0))
        self._site = as_text(counts.get(b"site", b""))
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

    def put_in_all(self) -> tuple[int, int]:
        self.look()
        return self._put_ever, self._queued

    def drained(self, *, fold: bool = True) -> bool:
        head = self.head
        if not head[STATE] & cells_.CLOSED or head[cells_.PRODUCERS] or head[cells_.BUSY]:
            return False
        return not self._queued and not (head[cells_.REDELIVER] and self._held)

    def in_hand(self, *, fold: bool = True) -> int:
        return self._held

    def taken(self) -> int:
        return self.head[TAKEN] - self._ahead

    def pending(self) -> int:
        return 0

    def site(self) -> str:
        return self._site


class RedisChannel:
    """The items' side of the ledger, as the endpoints ask for it."""

    __slots__ = ("atomic", "ledger", "stash")

    def __init__(self) -> None:
        self.atomic = False
        self.stash: list[Any] = []
        self.ledger: RedisLedger

    def append(self, payload: Any, producer: int) -> None:
        raise NotImplementedError  # the ledger's put does that

    def peek(self) -> Any:
        return EMPTY

    def pull_into(self, pending: list[Any]) -> Callable[[], object] | None:
        return None

    def unwrap(self, payload: tuple[Any, int]) -> tuple[Any, int]:
        return payload

    def clear(self) -> None:
        """The scripts do that."""

    def recheck(self) -> bool:
        return False  # who finds nothing is written down as waiting by the same script

    def size(self) -> int:
        """How many items are put and not handed out. May be called without the lock."""
        ledger = self.ledger
        with ledger.runtime_lock:
            size, ledger.head[STATE] = ledger.link.call(SIZE, what="qsize")
        return int(size)

    # Of claims.

    def is_handed_out(self, slot: int, hand: Hand) -> bool:
        """Whether the next item of the claim counts as handed out, and was not returned yet."""
        own: Own | None = hand.own
        claim = None if own is None else own.claim
        return claim is not None and bool(hand.claim) and claim.granted > hand.next

    def put_back(self, slot: int, hand: Hand) -> None:
        """Of the thread that closes: what was not handed out goes back with the close."""
        if hand.own is not None:
            hand.own.put_away(hand)

    def last_put(self, slot: int) -> int:
        return 0

    def in_claim(self, slot: int) -> int:
        return 0  # the server counts it in what the endpoint has in hand

    def in_claims(self) -> int:
        return 0

    def claim(self, slot: int, hand: Hand) -> bool:
        raise NotImplementedError  # the ledger's take does that

    def resume(self, slot: int, hand: Hand) -> bool:
        raise NotImplementedError

    def unclaim(self, slot: int, hand: Hand, limit: int) -> None:
        raise NotImplementedError

    def cut(self, slot: int, leave: int = 0) -> int:
        return 0

    def settle_claim(self, slot: int) -> None:
        """Nothing to be counted here."""

    def put_ever(self) -> int:
        return self.ledger.put_in_all()[0]

    def handed_out(self) -> int:
        return self.ledger.taken()

    def release_lane(self, slot: int) -> None:
        """There are no lanes."""

    def admit(self, lane: Any) -> bool:
        raise NotImplementedError

    def mend(self) -> None:
        """Nothing here can be half done."""


class Listener:
    """Waits for messages, beats, and watches the children that this process has started.

    It refers to its core weakly: a queue that nobody refers to is left, and this ends.

    Attributes:
        guarded: by the end of a pipe that a child has the other end of: the client that it is, and
            its pid once that is known.
    """

    def __init__(self, core: RedisCore) -> None:
        self._core = weakref.ref(core)
        self._link = Link(core.settings)
        self._link.client = core.ledger.me
        self._key = b"%bw:%d" % (self._link.prefix(), core.ledger.me)
        self._expiry_ms = int(core.settings.expiry_s * 1000)
        self._beat_s = core.settings.expiry_s / 3
        self._wake_end, self._wake = os.pipe()
        self._due = 0.0
        self._has_missed = False
        self._todo: list[list[str]] = []
        self.guarded: dict[int, tuple[int, int]] = {}
        self.thread = threading.Thread(
            target=self._run, name=f"iterable_queue {core.settings.name}", daemon=True
        )
        self.thread.start()

    def guard(self, end: int, client: int, pid: int) -> None:
        """Watch a child by that end of a pipe."""
        self.guarded[end] = client, pid
        self._poke(b"g")

    def ended(self) -> list[tuple[int, int]]:
        """The children that have ended, and that the thread has not come to yet."""
        poll = select.poll()
        for end in list(self.guarded):
            poll.register(end, 0)
        gone = [end for end, event in poll.poll(0) if event & select.POLLHUP]
        return [found for end in gone if (found := self.guarded.get(end)) is not None]

    def stop(self) -> None:
        """End the thread, soon."""
        self._poke(b"x")

    def _poke(self, what: bytes) -> None:
        try:
            os.write(self._wake, what)
        except OSError:
            pass  # it has ended

    def forget(self) -> None:
        """In a forked child, which has no such thread."""
        self._link.drop()
        for end in (self._wake, self._wake_end, *self.guarded):
            try:
                os.close(end)
            except OSError:
                pass  # the thread had ended
        self.guarded.clear()

    def _run(self) -> None:
        pauses = iter(PAUSES_S)
        try:
            while True:
                try:
                    if not self._listen():
                        return
                    pauses = iter(PAUSES_S)
                except Exception as error:
                    if self._link.loss:
                        core = self._core()
                        if core is not None:
                            core.was_taken_for_dead(self._link.loss)
                        return
                    if not isinstance(error, (ChannelBroken, Late)) and not self._link.is_break(
                        error
                    ):
                        _news.note(_news.WARNING, "listening for messages: %r", error)
                    self._link.drop()
                    let_go(error)
                    self._has_missed = True
                    if is_readable(self._wake_end, next(pauses, PAUSES_S[-1])):
                        data = os.read(self._wake_end, 100)
                        if b"x" in data:
                            return
        finally:
            self._link.drop()
            for end in (self._wake, self._wake_end, *self.guarded):
                os.close(end)
            self.guarded.clear()

    def _listen(self) -> bool:
        """Beat if it is time, then wait for a message or the next beat. False: it is over."""
        now = time.monotonic()
        if now >= self._due:
            clients = [client for client, _ in list(self.guarded.values())]
            state = self._link.call(BEAT, self._expiry_ms, *clients, patience_s=0.0)[1]
            self._due = time.monotonic() + self._beat_s
            self._todo.append(["s" if not self._has_missed else "a", str(state)])
            self._has_missed = False
        if self._todo and not self._do():
            return False
        timeout_s = max(self._due - time.monotonic(), 0.01)
        self._link.ask("BLPOP", self._key, f"{timeout_s:.3f}")
        until = time.monotonic() + timeout_s + ANSWER_S
        while True:
            sock = self._link.fileno()
            poll = select.poll()
            for fd in (sock, self._wake_end, *self.guarded):
                poll.register(fd, select.POLLIN)
            ready = {fd for fd, _ in poll.poll(max(until - time.monotonic(), 0.0) * 1000)}
            if not ready:
                raise TimeoutError("no answer to BLPOP")
            if self._wake_end in ready and b"x" in os.read(self._wake_end, 100):
                return False
            for end in ready & set(self.guarded):
                self._child_says(end)
            if sock in ready:
                break
        answer = self._link.answer()
        if isinstance(answer, Exception):
            raise answer
        if answer is not None:
            self._todo.append(as_text(answer[1]).split())
        return True

    def _child_says(self, end: int) -> None:
        """A child has written its pid, or has ended."""
        client, pid = self.guarded[end]
        data = os.read(end, 32)
        core = self._core()
        if data:
            self.guarded[end] = client, int(data)
            if core is not None:
                core.child_is(client, int(data))
            return
        del self.guarded[end]
        os.close(end)
        if core is not None:
            core.child_ended(client, pid)

    def _do(self) -> bool:
        """What the messages say. False: the queue is gone."""
        core = self._core()
        if core is None:
            return False
        lock: Any = core.runtime.lock
        while self._todo:
            if not lock.acquire(timeout=self._beat_s / 2):
                return True  # a call is being made that takes long: later
            try:
                message = self._todo.pop(0)
                what = core.was_told(message)
            finally:
                lock.release()
            while what:
                # Others wait here, or nobody does: then it was meant for another client.
                waits = core.ledger.head[_WAITS[what]] > 0
                if not self._link.call(AGAIN, what, int(waits), patience_s=1.0):
                    break
                with core.runtime.lock:
                    core.was_told([what])
        return True


_WAITS: Final = {"i": cells_.WAIT_ITEM, "r": cells_.WAIT_ROOM}


class RedisCore(Core):
    """One process's part in a queue on a server.

    Attributes:
        settings: how it takes part.
        address: where the queue is.
        made: this process has made it, just now.
    """

    gather = CHUNK
    queue_slot = 0
    ledger: RedisLedger  # type: ignore[mutable-override]  # it is set once, here

    def __init__(self, settings: Settings, options: Options, id_: str, site: str) -> None:
        sealer = Sealer(settings)
        runtime = RedisRuntime(sealer)
        channel = RedisChannel()
        self.link = Link(settings)
        ledger = RedisLedger(runtime, channel, self.link)
        runtime.redis_errors.link = self.link
        super().__init__(runtime, ledger)
        self.ledger = ledger
        self._redis_runtime = runtime
        runtime.show = ledger.report_blocked
        self.locks = ()
        self.settings = settings
        self.dumps, self.loads = sealer.dumps, sealer.loads
        sealer.refused = partial(_tell_of_refused, weakref.ref(self))
        self._options = options
        self._site = site
        self._is_here = False
        self._left = False
        self._listener: Listener | None = None
        self._heir: tuple[int, int, int] | None = None
        """During a fork: the child's client, and both ends of the pipe that shows its life."""
        self._life = -1
        """The end of such a pipe that shows the life of this process."""
        self._launching: dict[int, _Launch] = {}
        self._maker = 0, ""
        self.made = False
        self.address = Address(settings, id_)
        self.link.restore = ledger.claims_left
        # Which a process has that starts others, but not before it does: its hooks come first.
        import_module("multiprocessing.util")
        install_exit_hooks("multiprocessing")
        _forks.track(self)  # now that it is whole

    # -- taking part -----------------------------------------------------------------------------

    def check_here(self) -> None:
        if self._left:
            raise ChannelBroken(
                f"process {os.getpid()} is ending and has left the queue; close endpoints before"
            )
        if self.link.loss:
            raise ChannelBroken(self.link.loss)
        if not self._is_here:
            self.register()

    def register(self) -> None:
        watch()
        if not self._is_here:
            with self.runtime.lock:
                self.ledger.transact(self.join, handle=False)

    def join(self, *, handle: bool) -> None:
        """Take part. *handle*: by the queue's name, as others may as well."""
        if self._is_here:
            return  # another thread was faster
        link = self.link
        if self.ledger.me:
            link.client = self.ledger.me
            answer = link.call(ADOPT, os.getpid(), what="a child's first call")
        else:
            id_ = self.address.id
            answer = link.call(
                JOIN,
                VERSION,
                os.getpid(),
                socket.gethostname(),
                os.urandom(8).hex(),
                *self._options,
                self.settings.format,
                self._site,
                int(self.settings.expiry_s * 1000),
                int(handle),
                id_,
                os.urandom(8).hex(),
                what="connect",
            )
            link.client = answer[0]
        head = self.ledger.head
        maxsize, state, deliveries, pid, host, found_id, how = answer[2]
        if as_text(how) != self.settings.format:
            raise ValueError(
                f"serializer, sign: the queue {self.settings.name!r} on the server at "
                f"{link.address} has items that are {as_text(how)}, not {self.settings.format}"
            )
        head[MAXSIZE], head[STATE], head[cells_.REDELIVER] = map(int, (maxsize, state, deliveries))
        self._maker = int(pid), as_text(host)
        self.made = bool(answer[1])
        self.address = Address(self.settings, as_text(found_id))
        self.ledger.me = link.client
        self._is_here = True
        if self._listener is None:
            self._listener = Listener(self)

    def was_taken_for_dead(self, loss: str) -> None:
        """The server knows this client no more."""
        self.link.loss = loss
        _news.note(_news.ERROR, "%s", loss)
        with self.runtime.lock:
            self.ledger.revoke()
            self.ledger.wake_everybody()
        _news.tell()

    def refused(self) -> None:
        """An item's signature was refused."""
        with self.runtime.lock:
            key = self.link.prefix() + b"q"
            data = b"*4\r\n$7\r\nHINCRBY\r\n$%d\r\n%b\r\n$2\r\nxs\r\n$1\r\n1\r\n"
            self.link.tell(QUIET + data % (len(key), key))
        _news.note(_news.WARNING, "an item whose signature is wrong or missing was refused")

    def remarks(self) -> list[str]:
        count = self.ledger.unsigned
        if not count:
            return []
        return [f"{count} item(s) were refused, whose signature was wrong or missing"]

    @property
    def maker_pid(self) -> int:
        return self._maker[0]

    def pid_of(self, process: int) -> int:
        if process < 0:
            return -process
        return self.ledger.owners.get(process, (0, ""))[0]

    def name_of(self, process: int) -> str:
        pid, host = self.ledger.owners.get(process, (0, ""))
        return f"pid {pid} on {host}" if pid else ""

    def is_alive(self, process: int) -> bool:
        silent = self.ledger.silent_ms.get(process)
        return silent is not None and silent <= self.settings.expiry_s * 1000

    def look(self) -> None:
        _news.tell()

    def can_go_on(self) -> bool:
        """Whether calls can be made."""
        return not self._left and not self.link.loss and not sys.is_finalizing()

    def check_options(self, options: Options) -> None:
        """Raises ValueError where the queue is not like these."""
        head = self.ledger.head
        for name, asked, had in (
            ("maxsize", options.maxsize, head[MAXSIZE]),
            ("redeliver", options.deliveries, head[cells_.REDELIVER]),
        ):
            if asked and int(asked) != had:
                raise ValueError(
                    f"{name}: this process takes part in the queue {self.settings.name!r} already, "
                    f"with {had}; leave the argument out, or give the same"
                )

    def abandon(self) -> None:
        """It was not possible to take part."""
        self._left = True
        self.link.drop()

    def know(self, number: int, kind: int, generation: int) -> None:
        """An endpoint came here by a pickle: it is taken, if it is still to be had."""
        ledger = self.ledger
        ledger.take_over(number, number, generation)
        if ledger.is_open(number, number):
            ledger.know(number, kind, ledger.view(number).flags)

    # -- what the listener hears -----------------------------------------------------------------

    def was_told(self, message: list[str]) -> str:
        """Do what *message* says. Lock held. Returns what it woke somebody for, if it did."""
        what, *rest = message
        runtime, ledger = self.runtime, self.ledger
        if what in _WAITS:
            waiting = ledger.head[_WAITS[what]]
            (runtime.items if what == "i" else runtime.room).notify()
            # One who waited alone needs nothing more.
            return "" if waiting == 1 else what
        if what == "c":
            try:
                ledger.recall(*map(int, rest))
            except (ChannelBroken, OSError, WouldDeadlock):
                pass  # who waits asks again
            return ""
        changed = ledger.head[STATE] != int(rest[0])
        ledger.head[STATE] = int(rest[0])
        if ledger.head[STATE] & CANCELLED:
            ledger.revoke()
        if changed or what == "a":
            ledger.wake_everybody()
        return ""

    def child_is(self, client: int, pid: int) -> None:
        """A child that this process has forked has begun."""
        try:
            self.transact(self.link.call, ASSIGN, client, pid)
        except (ChannelBroken, OSError):
            pass

    def child_ended(self, client: int, pid: int) -> None:
        """A child has ended; if it had not left, its endpoints end."""
        try:
            self.transact(self.link.call, DEAD, client, self._how_ended(pid))
        except (ChannelBroken, OSError):
            pass  # the others find out when it is not heard any more

    def _how_ended(self, pid: int) -> str:
        return (
            f"{how_it_ended(pid)} without close()"
            if pid
            else "was given to a process that ended before it began to run, for a reason that its "
            "stderr shows. Under spawn and forkserver, start processes below "
            "`if __name__ == '__main__':` only"
        )

    # -- calls that wait -------------------------------------------------------------------------

    def wait(
        self,
        attempt: Callable[[], bool],
        condition: Condition,
        deadline: float | None,
        endpoint: Endpoint | None = None,
    ) -> bool:
        if condition is self.runtime.items and endpoint is not None:
            hand: Hand | None = endpoint._hands.get(threading.get_ident())  # pyright: ignore[reportPrivateUsage]
            if hand is not None and hand.own is not None and deadline is None:
                hand.own.gather(hand, self.ledger.now())
        return super().wait(partial(self._tried, attempt, deadline), condition, deadline, endpoint)

    def awaiting(
        self,
        attempt: Callable[[], bool],
        condition: Condition,
        deadline: float | None,
        endpoint: Endpoint | None = None,
    ) -> Any:
        self.ledger.tells_at_once = True
        return super().awaiting(
            partial(self._tried, attempt, deadline), condition, deadline, endpoint
        )

    def _tried(self, attempt: Callable[[], bool], deadline: float | None) -> bool:
        """*attempt*, as one of a call that waits until *deadline*. Lock held."""
        ledger, link = self.ledger, self.link
        before = ledger.waits, link.deadline
        ledger.waits = deadline != 0.0
        if deadline is not None:
            link.deadline = max(deadline, time.monotonic() + BRIEFLY_S)
        try:
            return attempt()
        except Late:
            return False
        finally:
            ledger.waits, link.deadline = before

    def transact_until(self, deadline: float | None, call: Callable[[], object]) -> bool:
        done: list[bool] = []

        def attempt() -> bool:
            call()
            done.append(True)
            return True

        while not done:
            if not super().transact_until(deadline, partial(self._tried, attempt, deadline)):
                return False
            if deadline is not None and time.monotonic() >= deadline:
                break
        return bool(done)

    # -- dropped endpoints -----------------------------------------------------------------------

    def drop(self, slot: int, number: int) -> None:
        before, self.link.deadline = self.link.deadline, time.monotonic() + 2 * BRIEFLY_S
        try:
            super().drop(slot, number)
            if self._dropped:  # another thread has the lock, that which listens, say
                with self.runtime.lock_within(BRIEFLY_S):
                    self._bury_dropped()
        except Exception:
            pass  # out of reach, or busy: the next call goes on with it
        finally:
            self.link.deadline = before

    def _bury_dropped(self) -> None:
        while self._dropped and not self.ledger.head[cells_.HOLDER]:
            slot, number = self._dropped[0]
            if self._left or self.link.loss:
                self._dropped.clear()
                return
            self.ledger.transact(self._bury, slot, number)
            self._dropped.popleft()

    def _bury(self, slot: int, number: int) -> None:
        if number == 0:
            self.link.call(SHUT, "dropped")
        else:
            super()._bury(slot, number)

    def set_adrift(self, view: SlotView) -> None:
        self.link.call(ADRIFT, view.number)

    def close_queue(self) -> None:
        self.ledger.head[STATE] = self.link.call(SHUT, "", what="close")[1]

    # -- for people ------------------------------------------------------------------------------

    def whose(self, slot: int, number: int) -> tuple[str | None, int]:
        with self.runtime.lock_within(BRIEFLY_S):
            before, self.link.deadline = self.link.deadline, time.monotonic() + BRIEFLY_S
            try:
                self.check_here()
                if not self.ledger.is_open(slot, number):
                    return None, 0
                view = self.ledger.view(slot)
            finally:
                self.link.deadline = before
        pid = self.pid_of(view.owner or view.maker)
        how = "of" if view.owner else "made by"
        return (f" {how} process {pid}" if pid else ""), view.blocked

    def describe(self) -> str:
        with self.runtime.lock_within(BRIEFLY_S):
            before, self.link.deadline = self.link.deadline, time.monotonic() + BRIEFLY_S
            try:
                self.ledger.look()
            finally:
                self.link.deadline = before
            return self._described()

    def _described(self) -> str:
        head = self.ledger.head
        most = f" of {head[MAXSIZE]}" if head[MAXSIZE] else ""
        parts = [
            f"{self.settings.name!r} at {self.link.address}",
            self.ledger.state_name(fold=False),
            f"{self.ledger.queued}{most} queued",
        ]
        for cell, what in (
            (cells_.PRODUCERS, "producer"),
            (cells_.CONSUMERS, "consumer"),
            (cells_.WORKERS, "worker"),
        ):
            if head[cell] or cell != cells_.WORKERS:
                parts.append(f"{head[cell]} {what}{'' if head[cell] == 1 else 's'}")
        return ", ".join(parts)

    # -- forks -----------------------------------------------------------------------------------

    def before_fork(self, arguments: tuple[object, ...]) -> None:
        if not self._is_here or self._left or self.link.loss:
            return
        untaken = list(self._untaken())
        direct = {id(argument) for argument in arguments}
        patience = time.monotonic() + _forks.PATIENCE_S
        self.transact_until(patience, partial(self._before_fork, untaken, direct))

    def _untaken(self) -> Iterator[Endpoint]:
        """The endpoints here that this process may still hand on, as far as is known here."""
        for endpoint in _forks.members_of(self.endpoints):
            if not endpoint._ready and not endpoint._closed and endpoint._lost is None:  # pyright: ignore[reportPrivateUsage]
                yield endpoint

    def _before_fork(self, untaken: list[Endpoint], direct: set[int]) -> None:
        if self.ledger.head[cells_.HANDLE] == 0:
            self.ledger.head[cells_.HANDLE] = 1
            self.link.call(SEND, 0, 0)  # the child may hold the queue itself
        given = [endpoint.number for endpoint in untaken if id(endpoint) in direct]
        for endpoint in untaken:
            if endpoint.number not in given:
                self.link.call(SEND, endpoint.number, FORKED)
        if given:
            self._heir = self._make_heir()
            self.link.call(ASSIGN, self._heir[0], 0, *given)

    def _make_heir(self) -> tuple[int, int, int]:
        client: int = self.link.call(HEIR, socket.gethostname())[0]
        return (client, *os.pipe())

    def after_fork_in_parent(self) -> None:
        if self._heir is not None:
            client, here, there = self._heir
            self._heir = None
            os.close(there)  # the child has it now, and it alone
            self._guard(here, client, 0)

    def _guard(self, end: int, client: int, pid: int) -> None:
        if self._listener is not None and self._listener.thread.is_alive():
            self._listener.guard(end, client, pid)
        else:
            os.close(end)

    def after_fork_in_child(self) -> None:
        if self._life >= 0:
            os.close(self._life)  # else the parent would seem to live as long as this child
            self._life = -1
        for launch in self._launching.values():
            launch.close()
        self._launching = {}
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.forget()
        loss, address = self.link.loss, self.address
        self.link.drop()
        self._redis_runtime.after_fork_in_child()
        self._dropped.clear()
        self.leave_loops()
        ledger = self.ledger
        for endpoint in _forks.members_of(self.endpoints):
            endpoint.forget()
        ledger.forget_all()
        ledger.me = 0
        self._is_here = False
        self.link = ledger.link = self._redis_runtime.redis_errors.link = Link(address.settings)
        self.link.loss = loss
        self.link.restore = ledger.claims_left
        self._options = Options()
        if self._heir is not None:
            client, here, self._life = self._heir
            self._heir = None
            os.close(here)
            ledger.me = client
            os.write(self._life, b"%d" % os.getpid())
            # From now on this process answers for itself, also before its first call.
            self._listener = Listener(self)

    # -- pickling --------------------------------------------------------------------------------

    def reduce(self, target: object, slot: int, number: int) -> tuple[Any, ...]:
        self.register()
        kind: int = getattr(target, "kind", QUEUE)
        popen = spawning_popen()
        if popen is None:
            generation = self.transact(self._send, number, kind, SENT)
            return attach, (self.address, kind, number, generation, 0, None)
        launch = self._launching.get(id(popen))
        if launch is None:
            self.transact(_forks.undisturbed, self._begin_launch, popen)
            launch = self._launching[id(popen)]
        generation = self.transact(self._send, number, kind, 0)
        if kind != QUEUE:
            launch.numbers.append(number)
        return attach, (self.address, kind, number, generation, launch.client, launch.duplicate)

    def _send(self, number: int, kind: int, flag: int) -> int:
        """Note that a copy goes off. Returns the generation that makes it valid."""
        answer = self.link.call(SEND, number, flag, what=f"pickling endpoint {number}")
        name = f"{KIND_NAMES[kind]} {number}"
        if answer[0] == 0:
            raise EndpointElsewhere(
                f"{name} has been closed by the process that took it and can't be handed on; get "
                "another one from the queue"
            )
        if answer[0] == -1:
            view = self.ledger.is_open(number, number) and self.ledger.view(number)
            pid = self.pid_of(view.owner or view.maker) if view else 0
            raise EndpointElsewhere(
                f"{name} belongs to "
                f"{f'process {pid}' if pid else 'a process that was started with it'}, which alone "
                "can hand it on. Give every process one of its own, by "
                f"get_{KIND_NAMES[kind]}() or clone()"
            )
        if answer[0] == -2:
            raise stays_here(name)  # another thread used it, just now
        return int(answer[1])

    def _begin_launch(self, popen: Any) -> None:
        self._launching[id(popen)] = _Launch(self, popen, *self._make_heir())

    def launched(self, launch: _Launch) -> None:
        """Starting a process has come to its end, well or not."""
        self._launching.pop(id(launch.popen), None)
        pid: int | None = getattr(launch.popen, "pid", None)
        try:
            if pid is None:
                self.transact(self.link.call, DEAD, launch.client, "")
            else:
                self.transact(self.link.call, ASSIGN, launch.client, pid, *launch.numbers)
        except (ChannelBroken, OSError):
            pass  # the next call says so
        if pid is not None and launch.here >= 0:
            here, launch.here = launch.here, -1
            self._guard(here, launch.client, pid)
        launch.close()

    def adopt(self, client: int, fd: int) -> None:
        """This process was started with a client made for it, and inherited a pipe's end."""
        if self._is_here or self.ledger.me:
            if self.ledger.me != client:
                os.close(fd)  # it took part already, by another road
            return
        os.set_inheritable(fd, False)
        self._life = fd
        self.ledger.me = client

    # -- leaving ---------------------------------------------------------------------------------

    def leave(self, how: str, cause: BaseException | None = None) -> None:
        """This process takes part no more: it ends, or nothing in it refers to the queue."""
        _forks.undisturbed(self._leave_now, how, cause)

    def _leave_now(self, how: str, cause: BaseException | None) -> None:
        if self._left:
            return
        self._left = True
        self.ledger.keep_hands()  # which say what was handed out
        for endpoint in _forks.members_of(self.endpoints):
            endpoint.forget()
        try:
            if self._is_here and not self.link.loss:
                with self.runtime.lock_within(LEAVE_S):
                    self.link.deadline = time.monotonic() + LEAVE_S
                    self.ledger.transact(self._leave, how, cause)
        except Exception:
            pass  # the others find out when it is not heard any more
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.stop()
        self.link.drop()
        life, self._life = self._life, -1
        if life >= 0:
            os.close(life)

    def _leave(self, how: str, cause: BaseException | None) -> None:
        ledger, me = self.ledger, self.ledger.me
        ledger.look()
        alone = ledger.head[cells_.HANDLE] == me and cause is None
        for view in list(ledger.views(PRODUCER, CONSUMER, WORKER, QUEUE)):
            if not self.is_mine(view):
                continue
            if view.owner or (view.kind == QUEUE and not alone):
                self.end(view, how, cause)
            elif not view.flags & (SENT | FORKED):
                ledger.close(view.slot, view.number)
        if self._listener is not None:
            for client, pid in self._listener.ended():
                self.link.call(DEAD, client, self._how_ended(pid))
        self.link.call(BYE, how)

    def __del__(self) -> None:
        if getattr(self, "_left", True):
            return
        self.leave("was dropped without close()")


LEAVE_S: Final = 1.0
"""For how long a process that leaves tries to say so, in seconds."""


def _tell_of_refused(reference: weakref.ref[RedisCore]) -> None:
    core = reference()
    if core is not None:
        core.refused()


class _Launch:
    """A process that is being started by spawn or forkserver, and the endpoints it was given."""

    def __init__(self, core: RedisCore, popen: Any, client: int, here: int, there: int) -> None:
        self.popen = popen
        self.client = client
        self.here = here
        self.numbers: list[int] = []
        self._there = there
        # As in `_shared._Launch`: the copy here of what the child gets must go once it was started.
        self.duplicate = popen.DupFd(popen.duplicate_for_child(there))
        watched = _forks.end_of_launch(popen)
        weakref.finalize(watched, _launched, weakref.ref(core), self).atexit = False

    def close(self) -> None:
        for fd in (self._there, self.here):
            if fd >= 0:
                os.close(fd)
        self._there = self.here = -1


def _launched(reference: weakref.ref[RedisCore], launch: _Launch) -> None:
    core = reference()
    if core is None:
        launch.close()
    else:
        core.launched(launch)


_attached: weakref.WeakValueDictionary[tuple[str, str], RedisCore] = weakref.WeakValueDictionary()
"""By server and name: one part in a queue for each process, however many endpoints it holds."""


def _place(settings: Settings) -> tuple[str, str]:
    source = settings.source
    return (source if isinstance(source, str) else f"function {source!r}", settings.name)


def connect(settings: Settings, options: Options, site: str) -> tuple[RedisCore, bool]:
    """Take part in the queue of that name, and whether this has made it."""
    place = _place(settings)
    core = _attached.get(place)
    if core is not None and core.can_go_on():
        core.check_options(options)
        return core, False
    core = RedisCore(settings, options, "", site)
    try:
        with core.runtime.lock:
            core.ledger.transact(core.join, handle=True)
    except BaseException:
        core.abandon()
        raise
    _attached[place] = core
    return core, core.made


def attach(
    address: Address, kind: int, number: int, generation: int, heir: int, duplicate: Any
) -> object:
    """Unpickle an endpoint or a queue: take part, and take the endpoint. Never raises."""
    from iterable_queue._endpoints import ConsumerEndpoint, ProducerEndpoint, WorkerEndpoint
    from iterable_queue._queue import new_handle

    fd = None if duplicate is None else duplicate.detach()
    lost: Exception | None = None
    core: Core
    try:
        core = _attach(address, heir, fd)
        if kind != QUEUE:
            core.transact(core.know, number, kind, generation)
            for endpoint in _forks.members_of(core.endpoints):
                if endpoint.slot == number and endpoint.number == number:
                    return endpoint
    except Exception as error:
        lost = ChannelBroken(f"the queue can't be reached from process {os.getpid()}: {error}")
        core = thread_core(SimpleQueue(), 0)  # a stand-in: calls raise *lost* before using it
    if kind == QUEUE:
        return new_handle(core, lost)
    classes: dict[int, type[Endpoint]] = {
        PRODUCER: ProducerEndpoint,
        CONSUMER: ConsumerEndpoint,
        WORKER: WorkerEndpoint,
    }
    return classes[kind](core, number, number, lost)


def _attach(address: Address, heir: int, fd: int | None) -> RedisCore:
    with _forks.still():
        place = _place(address.settings)
        core = _attached.get(place)
        if core is None or not core.can_go_on() or core.address.id != address.id:
            core = RedisCore(address.settings, Options(), address.id, "")
            _attached[place] = core
        if fd is not None:
            core.adopt(heir, fd)
    core.register()
    return core

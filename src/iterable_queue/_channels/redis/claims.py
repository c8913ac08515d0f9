"""What a consumer claims of a server's queue at once, and then hands out one by one.

A round trip for each item would take longer than most items do. Still, what was not handed out
must go to others when this process dies, or when it has more than it needs. So the claim is kept at
the server, which is told of each hand-out before it is made, without a reply; and a claim that was
not confirmed for a while is asked for, as others may have it by now.
"""

from __future__ import annotations

import time
from queue import Empty
from typing import TYPE_CHECKING, Final

from iterable_queue._channel import ENTRY_BYTES, Hand
from iterable_queue._channels.redis.calls import KEEP, QUIET
from iterable_queue._channels.redis.link import BRIEFLY_S, LOOP_S, Late
from iterable_queue._clock import monotonic, monotonic_ns
from iterable_queue._core import IN_LOOP
from iterable_queue._runtime import is_lock_busy

if TYPE_CHECKING:
    from iterable_queue._channels.redis.ledger import RedisLedger

SURE_S: Final = 0.05
"""For so long after it was told that it is alive a consumer hands out what it claimed, in seconds;
then it asks again."""
GATHER_S: Final = 0.001
"""A consumer that is faster than what comes asks no more often than this, in seconds, as long as it
finds several items each time: what asking costs the server would slow down those who put."""
FEW: Final = 2
"""Items of a claim that are not several."""
FEW_TIMES: Final = 16
"""After so many claims of few items a consumer tries whether it finds more if it asks later;"""
IN_VAIN: Final = 4
"""and if it does not, so many times in a row (once may be chance: who puts had no processor),"""
NOT_AGAIN: Final = 256
"""it tries that again after so many claims."""


class Tags:
    """The tags of claimed items, as `Hand.tag` reads them."""

    __slots__ = ("_items",)

    def __init__(self, items: list[bytes]) -> None:
        self._items = items

    def __getitem__(self, where: slice[int, int, None]) -> bytes:
        return producer_of(self._items[where.start // ENTRY_BYTES]).to_bytes(8, "little")


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
        self._sure_until = monotonic() + SURE_S

    def take(self, block: bool) -> bool:
        """Whether one more may be handed out; if so, the server hears of it first."""
        if self.permits < 1:
            return False
        with self._ledger.runtime_lock:
            return self._take()

    def take_until(self, deadline: float) -> bool:
        """The same for a call with that deadline. Raises Empty where the server is silent.

        Nothing was taken then: what the server may have heard of, it hears again with the next
        call. For a coroutine it is False, which then asks for another claim in the way it waits.
        """
        if self.permits < 1:
            return False
        least_s = LOOP_S if deadline == IN_LOOP else BRIEFLY_S
        until = max(deadline, monotonic() + least_s)
        while (taken := self._take_until(until)) is None:
            if monotonic() >= until:
                if deadline == IN_LOOP:
                    return False
                address = self._ledger.link.address
                raise Empty(f"the server at {address} gave no answer in time; nothing was taken")
        return taken

    def _take_until(self, until: float) -> bool | None:
        """None: the lock was busy, or the time is over."""
        link = self._ledger.link
        try:
            with self._ledger.lock_until(until):
                return link.until(until, self._take)
        except Late:
            return None
        except KeyError as error:
            if not is_lock_busy(error):
                raise
            return None

    def _take(self) -> bool:
        """With the lock held."""
        number = self.hand.partition(":")[0]
        self._ledger.link.repay(f"get of consumer {number}")  # others may have it by now
        if self.permits < 1:
            return False
        if self.granted:  # the first one was in hand from the beginning
            if monotonic() < self._sure_until:
                self._ledger.link.tell(self.trim())
            else:
                self._ask()
                if self.permits < 1:
                    return False
        # Together.
        self.granted += 1
        self.permits -= 1
        return True

    def _ask(self) -> None:
        """Tell the server by a call, which raises if this process was taken for dead."""
        link = self._ledger.link
        what = f"get of consumer {self.hand.partition(':')[0]}"
        link.call(KEEP, self.hand, self.call, self.permits, what=what)
        self._sure_until = monotonic() + SURE_S

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
            left_s = GATHER_S - (now_ns - hand.since) / 1e9
            if left_s > 0.0:
                time.sleep(left_s)
                # It was no work on what it had: or the next claim would be no larger than what
                # comes meanwhile, and after a pause of those who put it would stay at one.
                hand.since += monotonic_ns() - now_ns
            self._has_gathered = True

    def learn(self, count: int, limit: int) -> None:
        """A claim had so many items, of *limit* at most."""
        if self.gathers:
            if self._has_gathered:
                self._few = self._few + 1 if count <= FEW else 0
            if self._few >= IN_VAIN:
                self.gathers = False
                self._few = -NOT_AGAIN
        elif count <= FEW and limit > FEW:
            self._few += 1
            if self._few >= FEW_TIMES:
                self.gathers = True
                self._few = 0
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

    def was_cut(self, claim: Claim, payloads: list[bytes], count: int, _: object) -> None:
        """The last *count* items of the claim have gone back, as the server says. Lock held."""
        # Of the list the next one is the last.
        del payloads[:count]
        if self.claim is claim:
            claim.permits = max(claim.permits - count, 0)  # it may have been revoked
        else:
            self.kept = max(self.kept - count, 0)  # it was put away meanwhile


def producer_of(item: bytes) -> int:
    """Of the producer that put it."""
    return int(item.partition(b" ")[0])

"""The items' side of a server's queue: what endpoints and statistics ask of any channel.

There is little to it. The items are at the server, where the ledger's scripts deal with them
together with all else, so most of what a channel does has been done, or has no meaning here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from iterable_queue._cells import STATE
from iterable_queue._channel import EMPTY, Hand
from iterable_queue._channels.redis.calls import SIZE
from iterable_queue._channels.redis.claims import Own

if TYPE_CHECKING:
    from iterable_queue._channels.redis.ledger import RedisLedger


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

    def push_from(self, pending: list[Any]) -> Callable[[], object] | None:
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
        raise NotImplementedError  # likewise: it has its own way on from a claim to the next

    def unclaim(self, slot: int, hand: Hand, limit: int) -> None:
        raise NotImplementedError  # likewise: where many are wanted, it claims nothing

    def cut(self, slot: int, leave: int = 0) -> int:
        return 0

    def settle_claim(self, slot: int) -> None:
        """Nothing to be counted here."""

    def totals(self) -> tuple[int, int, int, int]:
        raise NotImplementedError  # likewise: it has looked at all of them at once

    def release_lane(self, slot: int) -> None:
        """There are no lanes."""

    def admit(self, lane: Any) -> bool:
        raise NotImplementedError  # no lane asks for room: there are none

    def mend(self) -> None:
        """Nothing here can be half done."""

"""What the parts are to each other: types alone.

Type checkers import this, and tests; the package does not: no import of it need make these classes.
"""

from __future__ import annotations

from collections.abc import Callable, MutableSequence
from types import TracebackType
from typing import Any, Protocol

from iterable_queue._channel import Hand
from iterable_queue._channels.log import Lane
from iterable_queue._runtime import Condition

Cells = MutableSequence[int]
"""Signed 8-byte integers, each read or stored at once: a list, or a memoryview of shared memory."""


class Lock(Protocol):
    """A mutual exclusion that a `with` statement takes and lets go without running bytecode.

    `__enter__` may give up after `SLICE_S` by raising `KeyError`: see `is_lock_busy`.
    """

    def __enter__(self) -> object: ...

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
        /,
    ) -> object: ...


class Semaphore(Protocol):
    """Counts tokens; sleepers wait for one."""

    def acquire(self, block: bool = True, timeout: float | None = None, /) -> bool: ...

    def release(self) -> None: ...


class Bell(Protocol):
    """Counts the sleepers of a condition that are coroutines, and wakes their event loops."""

    def waiting(self) -> int:
        """How many are counted."""
        ...

    def ring(self, n: int) -> int:
        """Give *n* tokens (no more than are counted), and then take these off the count.

        Returns *n*, or 0 where nobody lives any more who could be counted; the count is 0 then.
        Called with the lock held, or by what interrupts one who has it. Raises nothing: where no
        token can be given for want of a descriptor, those who sleep stay counted.
        """
        ...


class ErrorStore(Protocol):
    """Where failures and the reason for a cancel are kept."""

    def pack(self, error: BaseException) -> object:
        """Make *error* fit to be kept. Called without the lock: it runs user code."""
        ...

    def add_failure(self, packed: object) -> tuple[tuple[int, int], ...]:
        """Keep one more failure, once the caller stores these values in these cells of the head.

        Called with the lock held.
        """
        ...

    def count(self) -> int:
        """How many failures there are. Called with the lock held."""
        ...

    def failures(self) -> tuple[BaseException, ...]:
        """All failures, oldest first."""
        ...

    def set_reason(self, packed: object) -> None:
        """Keep the error that `cancel` was given. Called with the lock held."""

    def reason(self) -> BaseException | None:
        """The error that `cancel` was given."""
        ...


class Runtime(Protocol):
    """What one queue's ledger runs on, in one process."""

    head: Cells
    lock: Lock
    trylock: Lock
    items: Condition
    room: Condition
    end: Condition
    errors: ErrorStore

    def now(self) -> int:
        """Nanoseconds on the monotonic clock, the same one in every process."""
        ...

    def monotonic(self) -> float:
        """The same clock in seconds, for deadlines."""
        ...

    def lock_within(self, timeout_s: float) -> Lock:
        """The same lock, for which a `with` waits at most *timeout_s* (and a slice)."""
        ...

    def cells(self, count: int) -> Cells:
        """At least *count* cells for slots, keeping what they hold. Called with the lock held."""
        ...


class Channel(Protocol):
    """Where the items are. It decides nothing about endpoints."""

    atomic: bool
    """`append`, `size` and the result of `pull_into` may be called without the lock."""
    stash: list[Any]
    """Copies of items that `peek` has read; emptied by the ledger when one is handed out."""

    def append(self, payload: Any, producer: int) -> None:
        """Put *payload* behind the others, wholly or, if this raises, not at all."""

    def size(self) -> int:
        """How many items there are; exact at some moment during the call."""
        ...

    def peek(self) -> Any:
        """The next item, or EMPTY. It is gone from the ledger's next store to TAKEN on."""
        ...

    def pull_into(self, pending: list[Any]) -> Callable[[], object] | None:
        """For an atomic channel: a C function that moves one item to *pending* or raises Empty."""
        ...

    def push_from(self, pending: list[Any]) -> Callable[[], object] | None:
        """The same for the first of *pending*, behind all others; it raises IndexError."""
        ...

    def unwrap(self, payload: Any) -> tuple[Any, int]:
        """The arguments with which `append` got what `peek` returned."""
        ...

    def clear(self) -> None:
        """Drop everything."""

    def recheck(self) -> bool:
        """Whether something may have been put while the caller has had the lock.

        Executes a full fence if so: what the caller stored before is seen by who puts after.
        """
        ...


class Whole(Protocol):
    """What a channel does where its process may be killed: all of some stores, or none.

    Called with the lock held. Cells are given as in the file: those of slots from HEAD_SIZE on.
    """

    def commit(self, *pairs: tuple[int, int]) -> None:
        """Store each value in its cell."""

    def append_and(self, payload: Any, producer: int, *pairs: tuple[int, int]) -> None:
        """The same, and `append`."""

    def roll(self) -> None:
        """Do the rest of what one who died has committed."""


class Claims(Protocol):
    """What a channel does whose consumers hold items ahead of handing them out.

    Called with the lock held, unless said otherwise.
    """

    def claim(self, slot: int, hand: Hand) -> bool:
        """Give *hand* a new claim; its last one is over. False: there is nothing."""
        ...

    def resume(self, slot: int, hand: Hand) -> bool:
        """Finish what the hand was handed, and see what of its claim is left. False: nothing."""
        ...

    def is_handed_out(self, slot: int, hand: Hand) -> bool:
        """Whether the next item of the claim counts as handed out, and was not returned yet."""
        ...

    def put_back(self, slot: int, hand: Hand) -> None:
        """Finish what the hand was handed; an item whose hand-out was interrupted is put again."""

    def unclaim(self, slot: int, hand: Hand, limit: int) -> None:
        """Move up to *limit* items of the claim to the hand's `pending`: they are in hand."""

    def cut(self, slot: int, leave: int = 0) -> int:
        """Take the rest of a consumer's claim away, but for *leave* items. Returns how many."""
        ...

    def in_claim(self, slot: int) -> int:
        """Of the items of this consumer's claim, how many are in hand."""
        ...

    def in_claims(self) -> int:
        """The same for all consumers."""
        ...

    def settle_claim(self, slot: int) -> None:
        """What is in hand of the consumer's claim counts in its cell IN_HAND from now on."""

    def totals(self) -> tuple[int, int, int, int]:
        """Items put, queued, handed out, and in hand as parts of claims, all at one moment."""
        ...

    def last_put(self, slot: int) -> int:
        """When the producer in *slot* last put something without the lock, ns; 0: not known."""
        ...

    def release_lane(self, slot: int) -> None:
        """The producer in *slot* puts no more."""

    def admit(self, lane: Lane) -> bool:
        """Give the one who writes *lane* room for at least one more item. False: there is none."""
        ...

    def mend(self) -> None:
        """Make whole what a holder of the lock left half done that died."""

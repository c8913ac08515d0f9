"""The seam through which the ledger gets its lock, conditions, clock and cells.

In production a runtime hands out plain things: a C-level lock, a list or a `memoryview` of 8-byte
integers, `time.monotonic_ns`. Somebody who wants to decide every switch, or to count every store,
hands the same ledger others.

Two rules shape what is here, both learnt from signal handlers that raise:

* **The lock is held by a C-level `with` only.** CPython runs signal handlers between bytecodes; an
  `acquire()` followed by `try:` has a gap in which a handler's exception leaves the lock held for
  ever, a `with` over a C object has none.
* **Nobody waits inside the lock.** A waiter announces itself under the lock, lets the lock go, and
  then sleeps on a semaphore. A token given to a semaphore is addressed to nobody, so that one
  meant for a sleeper that was killed or interrupted wakes another instead of being lost.
  Coroutines sleep in event loops, which can't wait for a semaphore: their tokens go to a `Bell`.
"""

from __future__ import annotations

import errno
import math
import threading
from collections import deque
from collections.abc import Callable
from itertools import repeat, starmap
from typing import TYPE_CHECKING, Final, cast

from iterable_queue import _clock

if TYPE_CHECKING:
    from iterable_queue._seams import Bell, Cells, ErrorStore, Lock, Semaphore

SLICE_S = 0.25
"""No sleep is longer than this, in seconds: what a lost wake-up or an unseen death can cost."""


def guard(acquire: Callable[..., bool], release: Callable[..., object], *args: object) -> Lock:
    """A lock that is taken by `acquire(*args)` and let go by `release(type, value, traceback)`.

    Both must be C functions; `map` and `repeat`, which join them to `with`, are C as well. Where
    `acquire` returns False, `with` raises `KeyError(False)` and its block does not run.
    """
    attempts = map(acquire, *map(repeat, args)) if args else starmap(acquire, repeat(()))
    members = {
        "__slots__": (),
        "__enter__": map({True: True}.__getitem__, attempts).__next__,
        "__exit__": release,
    }
    return cast("Lock", type("Guard", (), members)())


_BUSY: Final = ((False,), (errno.EBUSY,), (errno.ETIMEDOUT,))
"""What a `with` raises KeyError with, where the lock is another's: of a `guard`, of a mutex."""


def is_lock_busy(error: KeyError) -> bool:
    """Whether *error* says that a lock could not be had within a slice.

    It comes from `with` itself then, and from no code that ran inside.
    """
    trace = error.__traceback__
    return error.args in _BUSY and trace is not None and trace.tb_next is None


class Condition:
    """Something that callers wait for: a count of waiters in a cell, and a semaphore.

    Invariant: waiters counted + tokens given >= callers asleep. A sleeper that leaves without a
    token takes back its own count, or a token that was given in the meantime; one that was killed
    or interrupted leaves a surplus, which costs somebody one needless look and nothing else.

    Coroutines are counted in that cell, and in `bell` as well; the invariant holds for them and for
    the others, each by themselves. Where both kinds sleep, they are woken by turns. A token that
    goes to those of the one kind of whom nobody is left asleep (but whom a kill has left counted)
    is missed by those of the other kind for no longer than a slice.
    """

    __slots__ = ("_head", "_index", "_loops_turn", "_semaphore", "bell")

    slices = 1
    """No sleep is longer than so many slices."""

    def __init__(
        self, head: Cells, index: int, semaphore: Semaphore, bell: Bell | None = None
    ) -> None:
        self._head = head
        self._index = index
        self._semaphore = semaphore
        self._loops_turn = True
        self.bell = bell
        """For coroutines; None: there are none yet."""

    def announce(self) -> None:
        """Say that the caller is about to sleep. Called with the lock held."""
        self._head[self._index] += 1

    def sleep(self, timeout_s: float) -> bool:
        """Wait for a token, at most a slice. Called without the lock. True: got one."""
        return self._semaphore.acquire(True, min(timeout_s, SLICE_S * self.slices))

    def retract(self) -> None:
        """Undo `announce` after a sleep without a token. Called with the lock held."""
        in_loops = self.bell.waiting() if self.bell is not None else 0
        if self._head[self._index] > in_loops:
            self._head[self._index] -= 1
        else:
            self._semaphore.acquire(False)

    def retract_coroutine(self) -> None:
        """The same for a coroutine, which the bell counts no more. Called with the lock held."""
        if self._head[self._index] > 0:
            self._head[self._index] -= 1

    def notify(self, n: int = 1) -> None:
        """Wake up to *n* sleepers. Called with the lock held.

        The token goes first: an interrupt between the two leaves a surplus, never a sleeper that
        nobody counts. What interrupts it may notify as well.
        """
        n = min(n, self._head[self._index])
        if self.bell is not None and self.bell.waiting() > 0:
            n = self._ring(self.bell, n)
        for _ in range(n):
            self._semaphore.release()
            if self._head[self._index] > 0:
                self._head[self._index] -= 1

    def _ring(self, bell: Bell, n: int) -> int:
        """Wake coroutines, as many of *n* sleepers as it is their turn. Returns how many are left.

        Who is killed in between leaves one counted as another sleeper that is none.
        """
        head, index = self._head, self._index
        counted = bell.waiting()
        others = max(head[index] - counted, 0)
        share = min(max((n + self._loops_turn) // 2, n - others), counted)
        self._loops_turn = not self._loops_turn
        given = bell.ring(share) if share > 0 else 0
        head[index] = max(head[index] - (counted - bell.waiting()), 0)
        return min(n - given, others)

    def notify_all(self) -> None:
        """Wake every sleeper. Called with the lock held."""
        self.notify(self._head[self._index])


class TokenQueue:
    """A semaphore for threads: a count of tokens, and a lock to sleep on, both in C.

    Not a `SimpleQueue`: up to Python 3.12, its `get(timeout=...)` waits for ever once the time has
    run out while it was not asleep, but in a signal handler, or waiting for a processor. What is
    left of the time is less than nothing then, which the lock below it takes for no time-out.

    Invariant, but for calls under way: where there is a token, the lock is free, and a sleeper can
    go on. An exception in the middle of a call may leave it held: then sleepers find that token at
    the end of their slice, or with the next one.
    """

    __slots__ = ("_some", "_tokens")

    def __init__(self) -> None:
        self._tokens: deque[None] = deque()
        self._some = threading.Lock()
        self._some.acquire()

    def acquire(self, block: bool = True, timeout: float | None = None, /) -> bool:
        tokens = self._tokens
        until = math.inf if timeout is None else _clock.monotonic() + timeout
        while True:
            try:
                tokens.pop()
            except IndexError:
                pass
            else:
                if tokens:
                    self._tell()  # what woke this one may have been the only sign of several
                return True
            left_s = until - _clock.monotonic()
            if not block or left_s <= 0:
                return False
            if not self._some.acquire(True, -1 if timeout is None else left_s):
                return False

    def release(self) -> None:
        self._tokens.append(None)  # before: who is woken looks for it
        self._tell()

    def _tell(self) -> None:
        try:
            self._some.release()
        except RuntimeError:
            pass  # it is free already, and a sleeper will see to all tokens


class LocalErrors:
    """Errors of one process are kept as they are."""

    __slots__ = ("_failures", "_reason")

    def __init__(self) -> None:
        self._failures: list[BaseException] = []
        self._reason: BaseException | None = None

    def pack(self, error: BaseException) -> BaseException:
        return error

    def add_failure(self, packed: object) -> tuple[tuple[int, int], ...]:
        assert isinstance(packed, BaseException)
        self._failures.append(packed)
        return ()

    def count(self) -> int:
        return len(self._failures)

    def failures(self) -> tuple[BaseException, ...]:
        return tuple(self._failures)

    def set_reason(self, packed: object) -> None:
        assert isinstance(packed, BaseException)
        self._reason = packed

    def reason(self) -> BaseException | None:
        return self._reason


class ThreadRuntime:
    """Plain lists, a re-entrant lock (so that a nested call can be told and refused), tokens."""

    now = staticmethod(_clock.monotonic_ns)
    monotonic = staticmethod(_clock.monotonic)

    def __init__(self, head_size: int, waiters: tuple[int, int, int]) -> None:
        self.head: Cells = [0] * head_size
        lock = threading.RLock()
        self.lock: Lock = lock
        self.trylock: Lock = guard(lock.acquire, lock.__exit__, False)
        self.items: Condition
        self.room: Condition
        self.end: Condition
        self.items, self.room, self.end = (
            Condition(self.head, index, TokenQueue()) for index in waiters
        )
        self.errors: ErrorStore = LocalErrors()
        self._cells: list[int] = []

    def lock_within(self, timeout_s: float) -> Lock:
        return self.lock  # of threads, none can be stopped or killed inside

    def cells(self, count: int) -> Cells:
        self._cells.extend([0] * (count - len(self._cells)))
        return self._cells

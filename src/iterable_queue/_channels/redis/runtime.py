"""What the ledger of a server's queue runs on: the lock, conditions, cells and errors.

They are those of threads, as the processes of such a queue share no memory. Different is what the
server is asked for: errors are kept there; a sleeper that is awake for nothing costs a round trip;
and who has the lock may be waiting for the server, so nobody waits for it without end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from iterable_queue import _cells as cells_
from iterable_queue._channels.redis.calls import ERRORS
from iterable_queue._channels.redis.link import Link
from iterable_queue._channels.redis.sealer import Sealer
from iterable_queue._runtime import Condition, ThreadRuntime, TokenQueue, guard

if TYPE_CHECKING:
    from iterable_queue._seams import ErrorStore, Lock

SLICES: Final = 8
"""No sleep is longer than so many slices: what a message costs that was lost with a connection."""
SHOWN_S: Final = 0.005
"""Who waits longer than this is shown as waiting to those who ask, in seconds."""


class RedisErrors:
    """Failures, and the reason for a cancel, on the server."""

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer
        self.link: Link

    def pack(self, error: BaseException) -> bytes:
        return self._sealer.pack(error)

    def add_failure(self, packed: object) -> tuple[tuple[int, int], ...]:
        raise NotImplementedError  # the script that fails an endpoint keeps it

    def set_reason(self, packed: object) -> None:
        raise NotImplementedError  # likewise

    def count(self) -> int:
        return len(self.link.call(ERRORS)[0])

    def failures(self) -> tuple[BaseException, ...]:
        return tuple(map(self._sealer.unpack, self.link.call(ERRORS)[0]))

    def reason(self) -> BaseException | None:
        blob: bytes = self.link.call(ERRORS)[1]
        return self._sealer.unpack(blob) if blob else None


class SparseCells(dict[int, int]):
    """Cells of slots that are few and far between."""

    def __missing__(self, index: int) -> int:
        return 0


class RedisCondition(Condition):
    """One whose sleepers are seldom needlessly awake: each look is a round trip."""

    __slots__ = ("show",)

    slices = SLICES

    def __init__(self, head: Any, index: int, show: Callable[[], object]) -> None:
        super().__init__(head, index, TokenQueue())
        self.show = show
        """Called when a sleep is not a short one."""

    def sleep(self, timeout_s: float) -> bool:
        if self._semaphore.acquire(True, min(timeout_s, SHOWN_S)):
            return True
        if timeout_s <= SHOWN_S:
            return False
        self.show()
        return super().sleep(timeout_s - SHOWN_S)


class RedisRuntime(ThreadRuntime):
    """What threads have, but for the errors; and a lock that is not waited for without end."""

    def __init__(self, sealer: Sealer) -> None:
        super().__init__(cells_.HEAD_SIZE, (cells_.WAIT_ITEM, cells_.WAIT_ROOM, cells_.WAIT_END))
        made: list[Condition] = [
            RedisCondition(self.head, index, self._show)
            for index in (cells_.WAIT_ITEM, cells_.WAIT_ROOM, cells_.WAIT_END)
        ]
        self.items, self.room, self.end = made
        self.redis_errors = RedisErrors(sealer)
        self.errors: ErrorStore = self.redis_errors
        self.sparse: Any = SparseCells()
        self.show: Callable[[], object] = bool
        self._within = lru_cache(maxsize=256)(self._guard)

    def _show(self) -> None:
        self.show()

    def _guard(self, hundredths: int) -> Lock:
        lock: Any = self.lock
        return guard(lock.acquire, lock.__exit__, True, hundredths / 100)

    def lock_within(self, timeout_s: float) -> Lock:
        # Another thread may have it while the server is out of reach.
        return self._within(max(math.ceil(min(timeout_s, 0.25) * 100), 1))

    def cells(self, count: int) -> Any:
        return self.sparse

    def after_fork_in_child(self) -> None:
        """A thread of the parent may have had the lock."""
        lock: Any = self.lock
        lock._at_fork_reinit()
        for index in (cells_.WAIT_ITEM, cells_.WAIT_ROOM, cells_.WAIT_END, cells_.HOLDER):
            self.head[index] = 0

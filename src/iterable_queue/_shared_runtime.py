"""The ledger's runtime for processes: cells in a mapped file, a lock, the context's semaphores.

The lock is one that the kernel lets go of when its holder dies (`_mutex`). Where there is none, it
is a semaphore, which has no owner: a process that dies inside takes it along, until
`_shared.SharedCore` finds that out and lets it go for the dead. The conditions' semaphores only
count tokens, so that a process killed in its sleep, or with a token in hand, takes nothing that
others wait for.
"""

from __future__ import annotations

import mmap
import os
import pickle
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

from iterable_queue import _cells as cells_
from iterable_queue._cells import HEAD_SIZE
from iterable_queue._channels.log import reserve
from iterable_queue._directory import COUNTING, RECURSIVE, Address, lock_name, semaphore_names
from iterable_queue._errors import REMOVED_BY_OTHERS, ChannelBroken, pack_error, unpack_error
from iterable_queue._mutex import Mutex
from iterable_queue._runtime import SLICE_S, Condition, guard

if TYPE_CHECKING:
    from iterable_queue._runtime import Cells, ErrorStore, Lock

ERRORS: Final = 29
"""A cell of the head: how many bytes of the file of failures count."""
PATIENCE: Final = (0.001, 0.01, 0.05, SLICE_S)
"""How long the lock is waited for at a time by calls with a time-out, in seconds."""


class SharedErrors:
    """Failures, and the reason for a cancel, as files.

    A failure counts once ERRORS, the size of the file that is valid, includes it.
    """

    __slots__ = ("_head", "_path")

    def __init__(self, path: str, head: Cells) -> None:
        self._path = path
        self._head = head

    def pack(self, error: BaseException) -> bytes:
        return pickle.dumps(pack_error(error))

    def add_failure(self, packed: object) -> tuple[tuple[int, int], ...]:
        assert isinstance(packed, bytes)
        record = len(packed).to_bytes(8, "little") + packed
        at = self._head[ERRORS]
        fd = private(f"{self._path}/errors", os.O_RDWR | os.O_CREAT, self._head)
        try:
            reserve(fd, at + len(record))  # or a part of it would be written
            os.pwrite(fd, record, at)
        finally:
            os.close(fd)
        return ((ERRORS, at + len(record)),)

    def count(self) -> int:
        return len(self._packed())

    def failures(self) -> tuple[BaseException, ...]:
        return tuple(unpack_error(pickle.loads(packed)) for packed in self._packed())

    def _packed(self) -> list[bytes]:
        if not self._head[ERRORS]:
            return []
        with open(f"{self._path}/errors", "rb") as file:
            records = file.read(self._head[ERRORS])
        found: list[bytes] = []
        at = 0
        while at < len(records):
            size = int.from_bytes(records[at : at + 8], "little")
            found.append(records[at + 8 : at + 8 + size])
            at += 8 + size
        return found

    def set_reason(self, packed: object) -> None:
        assert isinstance(packed, bytes)
        name = f"{self._path}/reason"
        fd = private(f"{name}.{os.getpid()}", os.O_RDWR | os.O_CREAT | os.O_TRUNC, self._head)
        with open(fd, "wb") as file:
            file.write(packed)
        os.replace(f"{name}.{os.getpid()}", name)

    def reason(self) -> BaseException | None:
        try:
            with open(f"{self._path}/reason", "rb") as file:
                return unpack_error(pickle.loads(file.read()))
        except FileNotFoundError:
            return None


def private(path: str, flags: int, head: Cells) -> int:
    """A file of the queue with that *head*, opened. Raises ChannelBroken if the queue is gone."""
    try:
        return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileNotFoundError:
        head[cells_.STATE] |= cells_.BROKEN
        raise ChannelBroken(REMOVED_BY_OTHERS) from None


class SharedRuntime:
    """Cells and a lock in mapped files, and the context's semaphores, opened by name.

    Attributes:
        is_robust: the kernel lets the lock go when its holder dies.
    """

    now = staticmethod(time.monotonic_ns)
    monotonic = staticmethod(time.monotonic)

    def __init__(self, address: Address) -> None:
        self._path = f"{address.path}/cells"
        self._count = 0
        view = self._map()
        self.head: Cells = view[:HEAD_SIZE]
        rebuild = address.semlock._rebuild
        most = address.semlock.SEM_VALUE_MAX
        names = semaphore_names(address.token)
        self._semaphores = [rebuild(0, COUNTING, most, name) for name in names[1:]]
        self.trylock: Lock
        name = lock_name(address)
        self.is_robust = os.path.exists(name)
        if self.is_robust:
            mutex = Mutex(name)
            self._guards = [mutex.waiting(seconds) for seconds in PATIENCE]
            self.trylock = mutex.trying()
        else:
            lock = rebuild(0, RECURSIVE, 1, names[0])
            self.is_locked: Callable[[], bool] = lock._is_zero
            # Of the counting kind, a semaphore can be let go by others than its holder.
            self.unlock: Callable[[], None] = rebuild(0, COUNTING, 1, names[0]).release
            acquire, release = lock.acquire, lock.__exit__
            self._guards = [guard(acquire, release, True, seconds) for seconds in PATIENCE]
            self.trylock = guard(acquire, release, False)
            self._semaphores += (lock,)
        self.lock: Lock = self._guards[-1]
        waiters = (cells_.WAIT_ITEM, cells_.WAIT_ROOM, cells_.WAIT_END)
        self.items, self.room, self.end = (
            Condition(self.head, index, semaphore)
            for index, semaphore in zip(waiters, self._semaphores, strict=False)
        )
        self.errors: ErrorStore = SharedErrors(address.path, self.head)

    def _map(self) -> Any:
        fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            view = memoryview(mmap.mmap(fd, 0)).cast("q")
        finally:
            os.close(fd)
        self._view = view[HEAD_SIZE:]
        return view

    def cells(self, count: int) -> Cells:
        if len(self._view) < count:
            fd = private(self._path, os.O_RDWR, self.head)
            try:
                size = os.fstat(fd).st_size
                needed = (HEAD_SIZE + count) * 8
                if size < needed:
                    reserve(fd, max(needed, 2 * size))
            finally:
                os.close(fd)
            self._map()
        return cast("Cells", self._view)

    def lock_within(self, timeout_s: float) -> Lock:
        best = self._guards[0]
        for seconds, lock in zip(PATIENCE, self._guards, strict=True):
            if seconds <= timeout_s:
                best = lock
        return best

    def after_fork_in_child(self) -> None:
        """A thread of the parent may have held a semaphore, and counted that in these objects."""
        for semaphore in self._semaphores:
            semaphore._after_fork()

"""The ledger's runtime for processes: cells in a mapped file, a lock, the context's semaphores.

The lock is one that the kernel lets go of when its holder dies (`_mutex`). Where there is none, it
is a semaphore, which has no owner: a process that dies inside takes it along, until
`_shared.SharedCore` finds that out and lets it go for the dead. The conditions' semaphores only
count tokens, so that a process killed in its sleep, or with a token in hand, takes nothing that
others wait for. So it is with the bytes in the FIFOs by which event loops are woken (`Fifo`).
"""

from __future__ import annotations

import errno
import mmap
import os
import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

from iterable_queue import _cells as cells_
from iterable_queue import _clock
from iterable_queue._cells import HEAD_SIZE
from iterable_queue._channels.log import reserve
from iterable_queue._directory import COUNTING, RECURSIVE, Address, lock_name, semaphore_names
from iterable_queue._errors import REMOVED_BY_OTHERS, ChannelBroken, pack_error, unpack_error
from iterable_queue._mutex import Mutex
from iterable_queue._runtime import SLICE_S, Condition, guard

if TYPE_CHECKING:
    from iterable_queue._seams import Cells, ErrorStore, Lock

ERRORS: Final = 29
"""A cell of the head: how many bytes of the file of failures count."""
WAITERS: Final = (
    (cells_.WAIT_ITEM, cells_.WAIT_ROOM, cells_.WAIT_END),
    (cells_.LOOP_ITEM, cells_.LOOP_ROOM, cells_.LOOP_END),
    ("bell.item", "bell.room", "bell.end"),
)
"""Of each condition: the cells that count who waits, and which of them in event loops; the FIFO."""
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


class Fifo:
    """The bell of one condition: a FIFO in the queue's directory, in which a byte is a token.

    A process has it open while coroutines sleep there, or are about to. So where nobody has, none
    of those counted lives.
    """

    __slots__ = ("_head", "_index", "path")

    def __init__(self, path: str, head: Cells, index: int) -> None:
        self.path = path
        self._head = head
        self._index = index

    def waiting(self) -> int:
        return self._head[self._index]

    def count(self) -> None:
        """One more waits. Called with the lock held."""
        self._head[self._index] += 1

    def uncount(self) -> bool:
        """One less waits, without a token. False: none was counted. Called with the lock held."""
        if self._head[self._index] < 1:
            return False
        self._head[self._index] -= 1
        return True

    def open(self) -> int:
        """A descriptor to wait at, which never blocks; the FIFO is made by the first who waits."""
        # Open for writing too, or it would be at its end whenever nobody writes.
        flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(self.path, flags)
        except FileNotFoundError:
            pass
        try:
            os.mkfifo(self.path, 0o600)
        except (FileExistsError, FileNotFoundError):
            pass  # another was faster; or the directory is gone, as `private` will say
        return private(self.path, flags, self._head)

    def ring(self, n: int) -> int:
        given = n
        try:
            into = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno not in (errno.ENXIO, errno.ENOENT):
                return n  # too many files are open; who sleeps looks after a slice
            given, n = 0, self._head[self._index]
        else:
            self._write(into, n)
        self._head[self._index] = max(self._head[self._index] - n, 0)
        return given

    def _write(self, into: int, n: int) -> None:
        try:
            # Open for reading too: else the death of the last reader, just now, would be a SIGPIPE.
            out = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                os.write(into, bytes(n))
            finally:
                os.close(out)
        except OSError:
            pass  # it is full, which is tokens enough; or there is no descriptor left, as above
        finally:
            os.close(into)


class SharedRuntime:
    """Cells and a lock in mapped files, and the context's semaphores, opened by name.

    Attributes:
        is_robust: the kernel lets the lock go when its holder dies.
    """

    now = staticmethod(_clock.monotonic_ns)
    monotonic = staticmethod(_clock.monotonic)

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
        self.items, self.room, self.end = (
            Condition(
                self.head, index, semaphore, Fifo(f"{address.path}/{name}", self.head, in_loops)
            )
            for index, in_loops, name, semaphore in zip(*WAITERS, self._semaphores, strict=False)
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

"""A lock between processes that the kernel lets go of when its holder dies.

It is a *robust* mutex of POSIX threads, in a mapped file (pthread_mutexattr_setrobust(3)). The
kernel walks a dying thread's list of such mutexes and marks each of them; who locks a marked one
next is told so by EOWNERDEAD, holds it, and must call `pthread_mutex_consistent` before letting
it go, or nobody could ever lock it again. So it does not matter at which instruction its holder is
killed, nor whether it had come to write down its name.

Beside a file lock (`flock`), which the kernel lets go of as well, this costs a seventh, can be
waited for with a time-out and without polling, and no forked child keeps it by an open file.

Calls go through `ctypes`, which is imported with the first queue. Where the C library is not GNU's
of release 2.30 or later, the lock is a semaphore of multiprocessing's: see `_shared_runtime`.
"""

from __future__ import annotations

import errno
import mmap
import operator
import os
import sys
from _io import _IOBase  # pyright: ignore[reportPrivateUsage]
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import repeat, starmap
from struct import Struct
from typing import TYPE_CHECKING, Any, Final, cast

from iterable_queue._clock import monotonic_ns

if TYPE_CHECKING:
    from iterable_queue._seams import Lock

RECURSIVE: Final = 1  # PTHREAD_MUTEX_RECURSIVE; so that a call nested by a handler can be refused
SHARED: Final = 1  # PTHREAD_PROCESS_SHARED
ROBUST: Final = 1  # PTHREAD_MUTEX_ROBUST
MONOTONIC: Final = 1  # CLOCK_MONOTONIC, on which `time.monotonic_ns` counts
SIZE: Final = 64
"""Bytes that hold a pthread_mutex_t or its attributes on every machine that Linux runs on."""
SECOND: Final = 1_000_000_000
_call: Final[Any] = operator.call


@cache
def _libraries() -> tuple[Any, Any] | None:
    """The C library's functions, called with the interpreter's lock held, and without it."""
    if sys.platform != "linux":
        return None
    try:
        import ctypes

        keeping, letting_go = ctypes.PyDLL(None), ctypes.CDLL(None)
        _ = keeping.gnu_get_libc_version, letting_go.pthread_mutex_clocklock
    except (ImportError, OSError, AttributeError):
        return None
    return keeping, letting_go


def is_supported() -> bool:
    """Whether there are such mutexes here."""
    return _libraries() is not None


def make(path: str) -> bool:
    """A new mutex, in a file of that name. Raises OSError. False: the kernel has none to offer."""
    from iterable_queue._channels.log import reserve

    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        reserve(fd, mmap.PAGESIZE)
    finally:
        os.close(fd)
    if Mutex(path).begin():
        return True
    os.unlink(path)
    return False


class _Guard(_IOBase):
    """What a `with` calls, which is C functions only.

    So no signal handler runs from before the mutex is had until the block's first line, nor from
    after its last one until the mutex is free.

    Its class is not made for each mutex, as that of `_runtime.guard` is: a class is freed by the
    garbage collector only, and the mutex's file would be open until then. `_IOBase.__exit__` calls
    `close` and ignores its own arguments.

    Attributes:
        enter: takes the mutex.
        close: lets it go.
    """

    __slots__ = ("close", "enter")
    __enter__: Any = property(operator.attrgetter("enter"))
    closed: Any = True  # else it would be closed when it is freed

    def __init__(self, enter: Callable[[], object], close: Callable[[], None]) -> None:
        self.enter = enter
        self.close = close  # type: ignore[method-assign]


class Mutex:
    """The mutex in the file *path*, mapped for this process."""

    __slots__ = ("_at", "_bytes", "_keeping", "_letting_go")

    def __init__(self, path: str) -> None:
        import ctypes

        libraries = _libraries()
        assert libraries is not None
        self._keeping, self._letting_go = libraries
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            # A mapping of its own, which stays where it is: the thread that holds the mutex has
            # its address in the list that the kernel walks.
            self._bytes = (ctypes.c_char * SIZE).from_buffer(mmap.mmap(fd, 0))
        finally:
            os.close(fd)
        self._at = ctypes.byref(self._bytes)

    def begin(self) -> bool:
        """Once, by its maker, before anybody else knows of it. False: it can't be had."""
        import ctypes

        attributes = ctypes.byref((ctypes.c_char * SIZE)())
        library = self._keeping
        library.pthread_mutexattr_init(attributes)
        for call, value in (
            (library.pthread_mutexattr_settype, RECURSIVE),
            (library.pthread_mutexattr_setpshared, SHARED),
            (library.pthread_mutexattr_setrobust, ROBUST),
            (library.pthread_mutex_init, None),
        ):
            failed = call(self._at, attributes) if value is None else call(attributes, value)
            if failed:
                return False
        return True

    def trying(self) -> Lock:
        """A guard (see `_runtime.guard`) that gives up at once."""
        return self._guard(self._taking(self._tries()))

    def waiting(self, timeout_s: float) -> Lock:
        """A guard that gives up after that many seconds."""
        # An absolute time is needed, a `timespec`: made by C functions only, as all of a guard is.
        now = starmap(monotonic_ns, repeat(()))
        until = map(operator.add, now, repeat(int(timeout_s * SECOND)))
        specs = starmap(Struct("ll").pack, map(divmod, until, repeat(SECOND)))
        lock = self._letting_go.pthread_mutex_clocklock
        timed = map(_call, repeat(lock), repeat(self._at), repeat(MONOTONIC), specs)
        wait = self._taking(timed)
        # First without letting the interpreter's lock go, which may have to be waited for after.
        return self._guard(self._taking(self._tries(), wait))

    def _tries(self) -> Iterator[int]:
        return map(_call, repeat(self._keeping.pthread_mutex_trylock), repeat(self._at))

    def _taking(
        self, attempts: Iterator[int], if_busy: Callable[[], int] | None = None
    ) -> Callable[[], int]:
        """What takes the mutex by the next of *attempts*, each of which gives an error number.

        Where its last holder has died, it is declared consistent in the same breath.

        The attempts are made by way of `operator.call`, so that nothing after them is called from
        deeper down: else, in a caller that is near the recursion limit (up to Python 3.11, which
        counts calls of C functions), the mutex would be had and the rest of this fail.
        """
        then: dict[int, Callable[[], int]] = {
            0: int,
            errno.EOWNERDEAD: partial(self._keeping.pthread_mutex_consistent, self._at),
        }
        if if_busy is not None:
            then[errno.EBUSY] = if_busy
        return map(_call, map(then.__getitem__, attempts)).__next__

    def _guard(self, enter: Callable[[], int]) -> Lock:
        unlock = self._keeping["pthread_mutex_unlock"]  # a new object
        unlock.restype = None  # else where this fails, the number would have `with` drop an error
        return cast("Lock", _Guard(enter, partial(unlock, self._at)))

"""A queue's directory and semaphores: where they are, how they are made, found and removed.

Everything is found by name, so that a queue can travel by any road that pickles. What is left when
every process of a queue was killed, the last one perhaps while it removed this, is removed by the
next queue that this user makes.
"""

# Annotations are evaluated; `_protocols` says why.

import errno
import os
import stat
import sys
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from iterable_queue import _mutex, _news
from iterable_queue._cells import HEAD_SIZE, SLOT_SIZE
from iterable_queue._channels.log import reserve
from iterable_queue._clock import monotonic
from iterable_queue._liveness import is_held, runs

if TYPE_CHECKING:
    from iterable_queue._protocols import Context

SemLock = Any
"""The C type behind the context's locks; each multiprocessing-like package may have its own."""
FIRST_SLOTS: Final = 88
"""Slots in a new file: with the head they fill seven pages."""
RECURSIVE, COUNTING = 0, 1
"""Kinds of SemLock. The lock is recursive so that a release by one who lacks it changes nothing."""
PREFIX: Final = "iterable_queue-"
ROOM: Final = 1 << 24
"""Shared memory with less room than this, in bytes, is passed over for the temporary directory."""
MAKING_S: Final = 60.0
"""A directory that has been empty for as long, in seconds, is not just being made, since its first
file comes within microseconds. It was left by one that was killed as it removed it."""

_swept_at = -1e9


class Address(NamedTuple):
    """What another process needs to find the queue."""

    path: str
    token: str
    semlock: type[SemLock]
    package: str
    """The multiprocessing-like package whose pickler and exit hooks are used."""


def semaphore_names(token: str) -> tuple[str, str, str, str]:
    """The names of the lock, if it is a semaphore, and of the three conditions' semaphores."""
    return f"/iq-{token}-l", f"/iq-{token}-i", f"/iq-{token}-r", f"/iq-{token}-e"


def lock_name(address: Address) -> str:
    """The file of the lock, where that is no semaphore."""
    return f"{address.path}/mutex"


def make_directory(context: "Context | None") -> Address:
    """A new directory with its cells, and new semaphores. Raises OSError if there is no room."""
    semlock, package = parts(context)
    _sweep(semlock)
    token = os.urandom(8).hex()
    path = f"{place_for_new()}/{PREFIX}{os.geteuid()}-{os.getpid()}-{token}"
    address = Address(path, token, semlock, package)
    os.mkdir(path, 0o700)
    try:
        fd = os.open(f"{path}/cells", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            reserve(fd, (HEAD_SIZE + FIRST_SLOTS * SLOT_SIZE) * 8)
        finally:
            os.close(fd)
        lock, *conditions = semaphore_names(token)
        if not (_mutex.is_supported() and _mutex.make(lock_name(address))):
            semlock(RECURSIVE, 1, 1, lock, False)
        for name in conditions:
            semlock(COUNTING, 0, semlock.SEM_VALUE_MAX, name, False)
    except BaseException:
        try:
            os.chmod(path, 0o700)  # or it could not be removed, with a umask that takes these away
        except OSError:
            pass  # somebody has removed it
        remove(address)
        raise
    return address


def parts(context: "Context | None") -> tuple[type[SemLock], str]:
    """The C type of the context's locks, and the package that it belongs to."""
    if context is None:
        import multiprocessing

        context = multiprocessing
    make = getattr(context, "RLock", None)
    if not callable(make):
        raise TypeError(f"context must have RLock(), as multiprocessing does; {context!r} has not")
    # A lock of the fork kind has no name, so that making it starts no tracker process.
    get_context = getattr(context, "get_context", None)
    source: Any = get_context("fork") if callable(get_context) else context
    lock: Any = source.RLock()
    semlock = cast("type[SemLock]", type(getattr(lock, "_semlock", None)))
    if not hasattr(semlock, "_rebuild"):
        raise TypeError(
            f"context must have an RLock() that rests on a semaphore which processes share "
            f"(_semlock), as multiprocessing's does; that of {context!r} does not"
        )
    module = getattr(context, "__name__", None) or type(context).__module__
    return semlock, str(module)


def place_for_new() -> str:
    """Where directories of queues are made."""
    try:
        room = os.statvfs("/dev/shm")
        if os.access("/dev/shm", os.W_OK | os.X_OK) and room.f_bavail * room.f_frsize >= ROOM:
            return "/dev/shm"
    except OSError:
        pass
    import tempfile

    return tempfile.gettempdir()


def remove(address: Address) -> None:
    """Remove a queue's directory and its semaphores."""
    path = address.path
    unlink = getattr(sys.modules[address.semlock.__module__], "sem_unlink", None)
    for name in semaphore_names(address.token):
        try:
            if unlink is not None:
                unlink(name)
        except FileNotFoundError:
            pass
    try:
        # What shows who lives comes last: should this be killed midway, another one can tell that
        # the rest is left. Of that, the locks of processes are the last: with none of them, the
        # queue would seem to be just being made as long as its maker lives.
        for name in sorted(os.listdir(path), key=lambda name: "lp".find(name[0])):
            try:
                os.unlink(f"{path}/{name}")
            except FileNotFoundError:
                pass  # somebody else is removing it too
        os.rmdir(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
            raise


def _sweep(semlock: type[SemLock]) -> None:
    """Remove what queues of this user left behind: see `is_left`.

    Done at most once a minute: it looks at the locks of every queue of this user.
    """
    global _swept_at
    now = monotonic()
    if now - _swept_at < 60:
        return
    _swept_at = now
    for path in directories(place_for_new()):
        if is_left(path):
            remove_left(path, semlock)


def places() -> list[str]:
    """Where directories of queues may be: shared memory, and the temporary directory."""
    import tempfile

    return [path for path in ("/dev/shm", tempfile.gettempdir()) if os.path.isdir(path)]


def directories(place: str) -> list[str]:
    """What is in *place* and has the name of a queue's directory of this user."""
    mine = f"{PREFIX}{os.geteuid()}-"
    return [f"{place}/{name}" for name in os.listdir(place) if name.startswith(mine)]


def maker_of(path: str) -> int:
    """The pid of the process that made the queue in *path*. Raises ValueError: it names none."""
    return int(path.rpartition("/")[2].split("-")[2])


def remove_left(path: str, semlock: type[SemLock]) -> None:
    """Remove what is left of a queue: see `is_left`."""
    remove(Address(path, path.rpartition("-")[2], semlock, ""))
    text = "removed what was left when all processes of a queue were killed; queue %s"
    _news.note(_news.INFO, text, path)


def is_left(path: str) -> bool:
    """Whether nobody lives who takes part in the queue in *path*, or is just making it.

    An empty directory that has not changed for `MAKING_S` is left over whoever lives.
    """
    try:
        status = os.lstat(path)
        if status.st_uid != os.geteuid() or not stat.S_ISDIR(status.st_mode):
            return False
        names = os.listdir(path)
    except OSError:
        return False  # somebody else is removing it
    # A name with a dot is of a lock that is being made.
    locks = [name for name in names if name[0] in "pl" and "." not in name]
    if not any(name.startswith("p") for name in locks):
        try:
            maker = maker_of(path)
        except (ValueError, IndexError):
            return False
        is_old = not names and time.time() - status.st_mtime > MAKING_S
        return is_old or not runs(maker)
    return not any(is_held(f"{path}/{name}") for name in locks)

"""A look at a queue from outside: its ledger over a copy of its cells.

For who wants to see what a queue does and take no part in it: `python -m iterable_queue top`, and
recordings. Files are only opened for reading, no process is registered, and no lock of the queue's
is taken: so a look neither changes a queue nor delays it, nor keeps it or any part of it alive. It
works beside a holder of the lock that is stopped.

The copy is that of a moment if none of several tries was disturbed (nobody was inside the lock, and
the head stayed the same). The cells of lanes are copied once more after that, so that what was
taken has been put. All that the ledger stores, it stores in the copy.
"""

from __future__ import annotations

import mmap
import os
import pickle
import stat
import time
from typing import TYPE_CHECKING, Any, Final

from iterable_queue import _cells as cells_
from iterable_queue._cells import (
    HEAD_SIZE,
    HOLDER,
    KIND,
    LANE,
    LANE_CELLS,
    LAYOUT,
    LAYOUT_OF_THIS,
    LOCKLESS,
    PROCESS,
    SLOT_SIZE,
    SLOTS,
)
from iterable_queue._channels.log import LogChannel, Segment
from iterable_queue._core import Core
from iterable_queue._directory import maker_of
from iterable_queue._errors import ChannelBroken
from iterable_queue._explain import explain, statistics
from iterable_queue._ledger import Ledger
from iterable_queue._liveness import is_held
from iterable_queue._protocols import Statistics
from iterable_queue._runtime import ThreadRuntime
from iterable_queue._shared_runtime import SharedErrors

if TYPE_CHECKING:
    from iterable_queue._seams import ErrorStore

TRIES: Final = 50
"""How often the cells are copied until nobody disturbs that; what the last try gave is taken."""
PAUSE_S: Final = 0.0002
"""Between two of them, in seconds."""
MOST_RECORDS: Final = 20_000
"""So many records of a lane are passed to see when the last one was put; then it is not known."""


class NotThere(Exception):
    """There is no queue to be looked at: it has gone, or is being made, or is not this user's."""


class OtherLayout(Exception):
    """The queue was made by another version of this library, whose cells mean something else."""


class Look(Core):
    """A queue as it was at one moment, for `statistics` and `explain`.

    Attributes:
        path: its directory.
        maker: the pid of the process that made it.
        made_at: when that was, in seconds since 1970.
        site: the line of user code that made it.
        maxsize: 0: unbounded.

    Raises:
        NotThere, OtherLayout: there is nothing to be seen in *path*.
    """

    def __init__(self, path: str) -> None:
        cells = _copied(path)
        runtime = _Runtime(path, cells)
        log = _Log(runtime.head, path)
        super().__init__(runtime, Ledger(runtime, log))
        log.begin(self.ledger)
        if runtime.head[LOCKLESS]:
            log.lockless = True
            self.ledger.claims = log
        self.path = path
        self.maker = maker_of(path)
        self.made_at = runtime.head[cells_.MADE_AT] / 1e9
        self.site = self.ledger.site()
        self.maxsize = runtime.head[cells_.MAXSIZE]

    def is_alive(self, process: int) -> bool:
        return super().is_alive(process) if process < 0 else is_held(f"{self.path}/p{process}")

    def processes(self) -> list[tuple[int, bool]]:
        """Of each process that takes part: its pid (0: it is being started), whether it lives."""
        return [(view.number, self.is_alive(view.slot)) for view in self.ledger.views(PROCESS)]

    def statistics(self) -> Statistics:
        """As `IterableQueue.statistics`, of that moment."""
        return statistics(self)

    def explain(self) -> str:
        """As `IterableQueue.explain`, of that moment."""
        return explain(self)

    def is_over(self) -> bool:
        """Whether nothing will change any more."""
        state = self.ledger.state_name()
        return state in ("cancelled", "broken") or self.ledger.settled()


def _copied(path: str) -> list[int]:
    """The cells of the queue in *path*."""
    try:
        status = os.lstat(path)
        if status.st_uid != os.geteuid() or not stat.S_ISDIR(status.st_mode):
            raise NotThere("another user's, or no directory")
        # Read, not mapped: a file that is cut short meanwhile can't kill the reader.
        fd = os.open(f"{path}/cells", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise NotThere(str(error)) from None
    try:
        head = _read(fd, HEAD_SIZE)
        if len(head) < HEAD_SIZE or not (head[LAYOUT] or head[SLOTS]):
            raise NotThere("it is being made")
        if head[LAYOUT] != LAYOUT_OF_THIS:
            raise OtherLayout(
                f"made by another version of iterable_queue (layout {head[LAYOUT]:x}, and not "
                f"{LAYOUT_OF_THIS:x}); use that version to look at it"
            )
        cells: list[int] = []
        for _ in range(TRIES):
            before = _read(fd, HEAD_SIZE)
            cells = _read(fd, HEAD_SIZE + max(before[SLOTS], 2) * SLOT_SIZE)
            if before == cells[:HEAD_SIZE] == _read(fd, HEAD_SIZE) and not before[HOLDER]:
                break
            time.sleep(PAUSE_S)
        slots = cells[SLOTS]
        if not 0 < slots <= (len(cells) - HEAD_SIZE) // SLOT_SIZE:
            raise NotThere("it is being made")
        later = _read(fd, len(cells))
    finally:
        os.close(fd)
    for slot in range(slots):
        base = HEAD_SIZE + slot * SLOT_SIZE
        if slot == 0 or cells[base + KIND] == LANE == later[base + KIND]:
            row = slice(base + LANE_CELLS, base + SLOT_SIZE)
            cells[row] = later[row]
    return cells


def _read(fd: int, count: int) -> list[int]:
    """The first *count* cells of the file, or as many as there are."""
    raw = os.pread(fd, count * 8, 0)
    return memoryview(raw[: len(raw) // 8 * 8]).cast("q").tolist()


class _Runtime(ThreadRuntime):
    """The copy, a lock and semaphores that nobody else knows of, and the queue's errors."""

    def __init__(self, path: str, cells: list[int]) -> None:
        super().__init__(HEAD_SIZE, (cells_.WAIT_ITEM, cells_.WAIT_ROOM, cells_.WAIT_END))
        self.head[:] = cells[:HEAD_SIZE]
        self._cells = cells[HEAD_SIZE:]
        self.errors: ErrorStore = _Errors(path, self.head)


class _Errors(SharedErrors):
    """The texts of the queue's errors: the errors themselves may need modules of its program."""

    __slots__ = ()

    def failures(self) -> tuple[BaseException, ...]:
        try:
            return tuple(_Told(pickle.loads(packed)[1]) for packed in self._packed())
        except OSError:
            return ()  # the queue has gone meanwhile

    def reason(self) -> BaseException | None:
        try:
            with open(f"{self._path}/reason", "rb") as file:
                return _Told(pickle.load(file)[1])
        except OSError:
            return None


class _Told(Exception):
    """An error, as text."""

    def __repr__(self) -> str:
        return str(self)


class _Log(LogChannel):
    """The lanes, of which nothing is written."""

    __slots__ = ("_passed",)

    def last_put(self, slot: int) -> int:
        self._passed = 0
        try:
            return super().last_put(slot)
        except (OSError, ValueError, IndexError, ChannelBroken):
            return 0  # it went on meanwhile, or has gone, or too much is queued

    def _writable(self, base: int, file: int) -> Segment:
        return self._segment(base, file)

    def _segment(self, base: int, file: int) -> Segment:
        fd = os.open(self._name(base, file), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            return _Segment(file, fd)
        finally:
            os.close(fd)

    def _count(self, segment: Segment, at: int) -> int:
        self._passed += 1
        if self._passed > MOST_RECORDS:
            raise IndexError(at)
        return super()._count(segment, at)


class _Segment(Segment):
    """A segment that is only read."""

    __slots__ = ()

    def __init__(self, file: int, fd: int) -> None:
        self.file = file
        self.map: Any = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
        self.cells = memoryview(self.map).cast("q")
        self.size = len(self.map)

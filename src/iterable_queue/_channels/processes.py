"""The channel for processes: one log of records, in segment files, under the ledger's lock.

A pipe, which is what the standard library's process queues write to, holds 64 KiB. Behind it a
`put` either waits for a reader, and an unbounded queue is none, or leaves the item to a feeder
thread, and it dies with its process. So the records lie in files that every process maps.

A record is a header of two cells (the payload's length in bytes; its tag, which names its
producer) and the payload, padded to whole cells. A segment that has no room for the next record
ends with the length END, or with its last byte; the next segment has the next number.

Two positions, of the next record to write and to read, are kept in two cells each, of which the
count of appended (or taken) records tells the valid one by its lowest bit. So a record is appended
by one store to APPENDED, and taken by the ledger's one store to TAKEN, whatever interrupts the
stores before.

A drained segment is kept as a spare and used again, since fresh pages cost more than copying. An
empty queue begins its segment anew.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from iterable_queue._cells import BROKEN, CHANNEL, DROPPED, STATE, TAKEN
from iterable_queue._channel import EMPTY
from iterable_queue._errors import REMOVED_BY_OTHERS, ChannelBroken

if TYPE_CHECKING:
    from iterable_queue._runtime import Cells

APPENDED: Final = CHANNEL  # records ever appended
TAIL: Final = CHANNEL + 1  # two cells: where the next record goes, by the parity of APPENDED
HEAD: Final = CHANNEL + 3  # two cells: where the next one is read, by the parity of TAKEN
SPARE: Final = CHANNEL + 5  # size of the spare segment in bytes; 0: there is none

OFFSET_BITS: Final = 40
"""A position is a segment's number, and below it the offset in bytes."""
OFFSET_MASK: Final = (1 << OFFSET_BITS) - 1

FIRST_SIZE: Final = 1 << 16
LARGEST_SIZE: Final = 1 << 22
"""Segments grow from the one to the other, in bytes; a larger record gets one of its own size."""

REWIND: Final = 1 << 15
"""An empty queue goes back to its segment's beginning from this offset on, in bytes."""

RECORD_HEADER: Final = 16
END: Final = -1


class Segment:
    """One mapped segment file.

    Attributes:
        number: which one; positions refer to it.
        raw, cells: its bytes, and the same as cells.
        size: in bytes.
    """

    __slots__ = ("cells", "number", "raw", "size")

    def __init__(self, number: int, fd: int) -> None:
        self.number = number
        self.raw = memoryview(mmap.mmap(fd, 0))
        self.cells = self.raw.cast("q")
        self.size = len(self.raw)


class SpoolChannel:
    """Records in the segment files of the directory *path*. Called with the ledger's lock held.

    `size` alone may be called without it.
    """

    __slots__ = ("_head", "_path", "_reading", "_writing", "stash")

    atomic = False

    def __init__(self, head: Cells, path: str) -> None:
        self.stash: list[Any] = []
        self._head = head
        self._path = path
        self._writing: Segment | None = None
        self._reading: Segment | None = None

    def size(self) -> int:
        head = self._head
        while True:
            appended = head[APPENDED]
            size = appended - head[TAKEN] - head[DROPPED]
            if appended == head[APPENDED]:
                return size

    def append(self, payload: Any, producer: int) -> None:
        head = self._head
        appended = head[APPENDED]
        length = len(payload)
        needs = RECORD_HEADER + (length + 7 & ~7)
        position = head[TAIL + (appended & 1)]
        number, offset = position >> OFFSET_BITS, position & OFFSET_MASK
        if offset > REWIND and appended == head[TAKEN] + head[DROPPED]:
            # Nobody reads at an empty queue's position, so it may move before the commit.
            offset = 0
            head[HEAD + (head[TAKEN] & 1)] = number << OFFSET_BITS
        segment = self._writing
        if segment is None or segment.number != number:
            segment = self._open(number)
        if offset + needs > segment.size:
            if offset < segment.size:
                segment.cells[offset >> 3] = END
            number += 1
            segment = self._create(number, needs)
            offset = 0
        segment.cells[offset >> 3] = length
        segment.cells[(offset >> 3) + 1] = producer
        segment.raw[offset + RECORD_HEADER : offset + RECORD_HEADER + length] = payload
        head[TAIL + (appended + 1 & 1)] = number << OFFSET_BITS | offset + needs
        head[APPENDED] = appended + 1
        # Not before: until then, the file of that name may still be replaced by another process.
        self._writing = segment

    def peek(self) -> Any:
        head = self._head
        taken = head[TAKEN]
        if head[APPENDED] == taken + head[DROPPED]:
            return EMPTY
        position = head[HEAD + (taken & 1)]
        number, offset = position >> OFFSET_BITS, position & OFFSET_MASK
        segment = self._reading
        if segment is None or segment.number != number:
            segment = self._reading = self._open(number)
        while offset == segment.size or segment.cells[offset >> 3] == END:
            number, offset = number + 1, 0
            head[HEAD + (taken & 1)] = number << OFFSET_BITS
            self._recycle(segment)
            segment = self._reading = self._open(number)
        at = offset >> 3
        length = segment.cells[at]
        start = offset + RECORD_HEADER
        head[HEAD + (taken + 1 & 1)] = number << OFFSET_BITS | start + (length + 7 & ~7)
        return bytes(segment.raw[start : start + length]), segment.cells[at + 1]

    def pull_into(self, pending: list[Any]) -> Callable[[], object] | None:
        return None

    def unwrap(self, payload: Any) -> tuple[Any, int]:
        data, producer = payload
        return data, producer

    def clear(self) -> None:
        head = self._head
        first = head[HEAD + (head[TAKEN] & 1)] >> OFFSET_BITS
        last = head[TAIL + (head[APPENDED] & 1)] >> OFFSET_BITS
        for number in range(first, last):
            self._unlink(self._name(number))

    # -- segment files ---------------------------------------------------------------------------

    def _name(self, number: int) -> str:
        return f"{self._path}/s{number}"

    def _open(self, number: int) -> Segment:
        for mine in (self._writing, self._reading):
            if mine is not None and mine.number == number:
                return mine
        if number == 0 and not os.path.exists(self._name(0)):
            return self._create(0, 0)
        try:
            fd = os.open(self._name(number), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise self._gone() from None
        try:
            return Segment(number, fd)
        finally:
            os.close(fd)

    def _create(self, number: int, needs: int) -> Segment:
        """A segment for at least *needs* bytes: the spare, or a new file, reserved before use."""
        name = self._name(number)
        if self._head[SPARE] >= max(needs, 1):
            self._head[SPARE] = 0
            os.rename(f"{self._path}/spare", name)
            return self._open(number)
        size = min(FIRST_SIZE << min(number, 20), LARGEST_SIZE)
        size = max(size, needs + mmap.PAGESIZE - 1 & ~(mmap.PAGESIZE - 1))
        # It gets its name once it is whole; an append that died may have left one behind.
        new = f"{self._path}/new"
        try:
            fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            raise self._gone() from None
        try:
            reserve(fd, size)
            segment = Segment(number, fd)
            os.rename(new, name)
            return segment
        except BaseException:
            self._unlink(new)
            raise
        finally:
            os.close(fd)

    def _gone(self) -> ChannelBroken:
        """Somebody else has removed the directory; every process of the queue sees the bit."""
        self._head[STATE] |= BROKEN
        return ChannelBroken(REMOVED_BY_OTHERS)

    def _recycle(self, segment: Segment) -> None:
        """A drained segment becomes the spare, unless there is one or it is oversized."""
        if self._head[SPARE] or segment.size > LARGEST_SIZE:
            self._unlink(self._name(segment.number))
            return
        os.rename(self._name(segment.number), f"{self._path}/spare")
        self._head[SPARE] = segment.size

    def _unlink(self, name: str) -> None:
        try:
            os.unlink(name)
        except FileNotFoundError:
            pass


def reserve(fd: int, size: int) -> None:
    """Make the file *size* bytes long, its room reserved: a later store can't find the disk full.

    Raises OSError (ENOSPC, EFBIG) where there is no room.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)
    else:
        os.ftruncate(fd, size)

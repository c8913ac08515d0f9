"""Who dropped an endpoint without closing it: for Python's development mode (`python -X dev`).

Imported in that mode only. A `ResourceWarning` then says which endpoint it was and where it was
made. Nothing is a leak that does no harm: a consumer whose queue was done, an endpoint on its way
to another process, anything of a queue that was cancelled.

A warning runs the code of others (filters, handlers of `logging`), which may wait for a lock whose
holder waits for the queue's lock. But `__del__` runs wherever the last reference goes or the
collector comes by, also inside a transition. So a warning is issued only where the thread is in no
call of this package. Else it waits for the next call of a queue or the next dropped endpoint, or
for the end of the process.
"""

from __future__ import annotations

import sys
from collections import deque
from types import FrameType
from typing import TYPE_CHECKING

from iterable_queue import _cells as cells_
from iterable_queue import _forks
from iterable_queue._cells import FORKED, KIND_NAMES, PRODUCER, QUEUE, SENT, USED
from iterable_queue._core import is_ours

if TYPE_CHECKING:
    from iterable_queue._core import Core


class _Leak:
    """A warning that is issued when this is dropped: what it raises then, nobody has to handle."""

    __slots__ = ("_site", "_text")

    def __init__(self, text: str, site: str) -> None:
        self._text = text
        self._site = site

    def __del__(self) -> None:
        if sys.is_finalizing():
            return  # nothing can be imported any more, and nobody is left to be told
        import warnings

        file, _, line = self._site.rpartition(":")
        text = f"{self._text}; it was made at {self._site}"
        warnings.warn_explicit(text, ResourceWarning, file, int(line) if line.isdigit() else 0)


class Leaks:
    """Those of this process that nobody has been told of yet."""

    def __init__(self) -> None:
        self._untold: deque[_Leak] = deque()

    def dropped(self, core: Core, slot: int, number: int) -> None:
        """Called by `__del__`, before the ledger is told."""
        if not sys.is_finalizing():
            leak = _leak_of(core, slot, number, "was dropped without close()")
            if leak is not None:
                self._untold.append(leak)

    def tell_after_drop(self) -> None:
        """Called by the same `__del__`, afterwards."""
        # No frame is above `__del__` where an ending thread's own things are freed.
        frame = sys._getframe(1).f_back  # pyright: ignore[reportPrivateUsage]
        if self._untold and not _is_inside(frame):
            self.tell_now()

    def tell(self) -> None:
        """Called by what users call, without the lock."""
        frame: FrameType | None = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
        while self._untold and frame is not None and is_ours(frame):
            frame = frame.f_back
        if not _is_inside(frame):
            self.tell_now()

    def left_open(self, core: Core) -> None:
        """Called when the process ends, before it leaves the queue."""
        for endpoint in _forks.members_of(core.endpoints):
            if not endpoint.closed:
                how = "was left open when its process ended"
                leak = _leak_of(core, endpoint.slot, endpoint.number, how)
                if leak is not None:
                    self._untold.append(leak)

    def tell_now(self) -> None:
        """Issue the warnings: for who knows that no caller's lock is held."""
        while self._untold:
            self._untold.popleft()


LEAKS = Leaks()


def _is_inside(frame: FrameType | None) -> bool:
    """Whether a call of this package leads to *frame*."""
    while frame is not None:
        if is_ours(frame):
            return True
        frame = frame.f_back
    return False


def _leak_of(core: Core, slot: int, number: int, how: str) -> _Leak | None:
    """What is to be told of it, if anything. Without the lock, like a `repr`."""
    ledger = core.ledger
    head = ledger.head
    try:
        if head[cells_.STATE] & (cells_.CANCELLED | cells_.BROKEN):
            return None
        if not ledger.is_open(slot, number):
            return None
        view = ledger.view(slot)
        if view.kind == QUEUE:
            if head[cells_.HANDLE] != ledger.me:
                return None  # others have it too
            return _Leak(f"the queue {how}", view.text)
        if not core.is_mine(view) or (view.flags & (SENT | FORKED) and not view.flags & USED):
            return None
        if view.kind != PRODUCER and ledger.drained(fold=False):
            return None
    except Exception:
        return None  # the queue has gone
    name = f"{KIND_NAMES[view.kind]} {number}"
    pid = core.pid_of(ledger.me)
    return _Leak(f"{name} of process {pid} {how}", view.text)

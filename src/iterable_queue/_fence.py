"""Whether this machine and interpreter allow to share memory without a lock, and the fence for it.

Two processes that each store one cell and then look at the other's must not both miss what the
other one stored. That takes a *full* fence between store and load on each side; Python has none.
Any locked instruction is one on x86-64, and `SemLock.release` of a semaphore that nobody waits for
is the cheapest C function that executes just one (25 to 50 ns; a lock taken and let go costs four
times that).

The order of stores is that of the program on x86-64 (Intel's manual, volume 3, section 9.2). On
other machines and systems, and where no interpreter lock keeps threads apart, all goes by the
queue's lock.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, cast

from iterable_queue import _mutex

if TYPE_CHECKING:
    from iterable_queue._seams import Cells

_MOST: Final = 1 << 30
"""A semaphore counts its releases; another one takes over well before that ends (2^31 - 1)."""


def is_supported() -> bool:
    """Whether cells may be shared without a lock here."""
    gil = getattr(sys, "_is_gil_enabled", None)
    return (
        sys.implementation.name == "cpython"
        and sys.platform == "linux"
        and os.uname().machine == "x86_64"
        and sys.byteorder == "little"
        and (gil is None or bool(gil()))
        and _mutex.is_supported()  # `gate` needs the same parts
    )


def gate(cells: Cells, index: int) -> Callable[[bool], bool]:
    """What takes one from a cell, if that is above 0: `SemLock.acquire`, to be called with False.

    The cell and the three behind it are a semaphore of the GNU C library, whose value is the lower
    half of the first (the upper one counts sleepers, of which there are none). So the cell may be
    stored to as any other, and the locked instruction that takes one is a full fence.

    It is of use as long as somebody refers to *cells*.
    """
    import ctypes

    memory = ctypes.c_char.from_buffer(cast("memoryview", cells), 8 * index)
    semlock: Any = import_module("_multiprocessing").SemLock
    counting = 1
    lock = semlock._rebuild(ctypes.addressof(memory), counting, semlock.SEM_VALUE_MAX, None)
    return cast("Callable[[bool], bool]", lock.acquire)


class Fences:
    """Full fences for one process.

    Attributes:
        full: executes one. To be got anew, with `renew`, before it was called `_MOST` times.
    """

    __slots__ = ("_semaphore", "full")

    def __init__(self) -> None:
        self.full: Callable[[], object]
        self._make()

    def _make(self) -> None:
        semlock: Any = import_module("_multiprocessing").SemLock
        name = f"/iq-{os.getpid()}-{os.urandom(8).hex()}"
        self._semaphore = semlock(1, 0, semlock.SEM_VALUE_MAX, name, True)
        self.full = self._semaphore.release

    def renew(self) -> Callable[[], object]:
        """A fence that can be used for long from now on."""
        if self._semaphore._get_value() > _MOST:
            self._make()
        return self.full

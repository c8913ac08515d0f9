"""One CPU for the threads of an exploration.

Only one of them runs at a time. If the next one is on the same CPU it goes on after some 6 us; on
another CPU, which has gone to sleep meanwhile, after some 22 us, and with nothing of what it needs
in the cache (Linux, 2 virtual CPUs, both idle). A schedule of three actors has eight such changes,
so an exploration that is spread over the CPUs takes about one and a half times as long.

But a thread that is bound to one CPU can't move out of the way of others. So from time to time it
is seen whether the threads got as much of it as there was. If not, they are let loose until the
next look, for the kernel to find a better place, where they are bound again.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Final

INTERVAL_S: Final = 0.1
"""Between two looks at how much of the CPU was had."""
ENOUGH: Final = 0.8
"""A smaller share of a CPU means that others want it, too."""


class OneCpu:
    """Keeps threads on one CPU. The one that makes it is the first of them.

    Threads that are started by one of them begin where that one may run, so they need only be
    told of (`add`) to be moved with the others.
    """

    def __init__(self) -> None:
        self._threads: list[int] = [threading.get_native_id()]
        self._allowed: set[int] = set()
        """Where they may run by themselves; empty: they are left alone."""
        self._cpu: int | None = None
        """To which one they are bound now."""
        self._next_look_s = self._since_s = self._used_s = 0.0
        if hasattr(os, "sched_setaffinity"):
            allowed = os.sched_getaffinity(0)
            if len(allowed) > 1:
                self._allowed = allowed

    def add(self, thread: threading.Thread) -> None:
        """One more thread, which runs."""
        if thread.native_id is not None:
            self._threads.append(thread.native_id)

    def remove(self, thread: threading.Thread) -> None:
        """That one is not one of them any more."""
        if thread.native_id in self._threads:
            self._threads.remove(thread.native_id)
            self._move([thread.native_id], self._allowed)

    def look(self) -> None:
        """Called by the first thread, again and again, while none of the others runs."""
        now_s = time.monotonic()
        if now_s < self._next_look_s or not self._allowed:
            return
        used_s = time.process_time()
        if self._cpu is None:
            self._bind()
        elif used_s - self._used_s < ENOUGH * (now_s - self._since_s):
            self._let_loose()
        self._since_s, self._used_s = now_s, used_s
        self._next_look_s = now_s + INTERVAL_S

    def close(self) -> None:
        """Called by the first thread, after the others have ended."""
        del self._threads[1:]
        self._let_loose()

    def _bind(self) -> None:
        cpu = _current_cpu()
        if cpu in self._allowed and self._move(self._threads, {cpu}):
            self._cpu = cpu
        else:
            self._move(self._threads, self._allowed)
            self._allowed = set()  # it can't be done here

    def _let_loose(self) -> None:
        if self._cpu is not None and os.sched_getaffinity(0) == {self._cpu}:  # nobody else chose
            self._move(self._threads, self._allowed)
        self._cpu = None

    def _move(self, threads: list[int], cpus: set[int]) -> bool:
        try:
            for thread in threads if cpus else []:
                os.sched_setaffinity(thread, cpus)
        except OSError:  # it is not allowed, or they may run somewhere else since
            return False
        return True


def _current_cpu() -> int:
    """The CPU that this thread runs on; -1 if that can't be found out."""
    try:
        with open("/proc/thread-self/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[36])  # `processor`, proc(5)
    except (OSError, ValueError, IndexError):
        return -1

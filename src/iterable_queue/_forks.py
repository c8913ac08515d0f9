"""What happens to the queues of a process that forks.

Nothing is hooked until the first queue is made. The hooks run for every fork that Python knows of;
a fork made in C, without Python's hooks, is a stated limit.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable
from contextlib import AbstractContextManager
from types import FrameType
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakSet

if TYPE_CHECKING:
    from iterable_queue._core import Core

T = TypeVar("T")

_cores: WeakSet[Core] = WeakSet()
_hooked = False
_forking = threading.RLock()
"""Held from before a fork until after it. Else another thread's child could be taken for the one
that is being prepared, and inherit the open file whose lock is to show that the other one lives."""
_attaching = threading.RLock()
"""Held while this process gets its part in a queue. Re-entrant, as a signal handler may, too."""


def track(core: Core) -> None:
    """Tell *core* of every fork of this process from now on, while it lives."""
    _hook()
    _cores.add(core)


def attaching() -> AbstractContextManager[object]:
    """A lock under which one thread at a time makes this process's part in a queue."""
    _hook()
    return _attaching


def _hook() -> None:
    global _hooked
    if not _hooked:
        _hooked = True
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
            )


def tracked() -> list[Core]:
    """The queues of this process that are referred to."""
    return members_of(_cores)


def members_of(found: Iterable[T]) -> list[T]:
    """What is in a set to which another thread may be adding just now."""
    while True:
        try:
            return list(found)
        except RuntimeError:
            pass  # it changed its size meanwhile


def _before() -> None:
    _forking.acquire()
    arguments = _arguments_of_child()
    for core in tracked():
        try:
            core.before_fork(arguments)
        except Exception:
            pass  # broken, or out of descriptors, say: the fork goes on, and later calls say why


def _arguments_of_child() -> tuple[object, ...]:
    """The direct arguments of the process for which multiprocessing is forking right now.

    Nothing public tells them before the fork, and a child that is killed right after it can't
    tell. So this looks for the call of `Popen._launch(process_obj)` that leads here, which
    multiprocessing, multiprocess and billiard have; elsewhere there are no direct arguments.
    """
    frame = launching_frame()
    process = None if frame is None else frame.f_locals.get("process_obj")
    positional: tuple[object, ...] = getattr(process, "_args", None) or ()
    named: dict[str, object] = getattr(process, "_kwargs", None) or {}
    return (*positional, *named.values())


def launching_frame() -> FrameType | None:
    """The frame of multiprocessing's `_launch` on this thread's stack, if a process is started."""
    frame: FrameType | None = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        if frame.f_code.co_name == "_launch" and "process_obj" in frame.f_code.co_varnames:
            return frame
        frame = frame.f_back
    return None


def _after_in_parent() -> None:
    try:
        for core in tracked():
            core.after_fork_in_parent()
    finally:
        try:
            _forking.release()
        except RuntimeError:
            pass  # a signal handler's error kept `_before` from taking it


def _after_in_child() -> None:
    global _attaching, _forking
    _attaching = threading.RLock()  # another thread of the parent may have held it
    _forking = threading.RLock()
    for core in tracked():
        core.after_fork_in_child()

"""What happens to the queues of a process that forks.

Nothing is hooked until the first queue is made. The hooks run for every fork that Python knows of;
a fork made in C, without Python's hooks, is a stated limit.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable, Iterable
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar
from weakref import WeakSet

from iterable_queue._runtime import guard, is_lock_busy

if TYPE_CHECKING:
    from iterable_queue._core import Core
    from iterable_queue._seams import Lock

P = ParamSpec("P")
T = TypeVar("T")

_cores: WeakSet[Core] = WeakSet()
_hooked = False
PATIENCE_S: Final = 1.0
"""How long a fork and who is `undisturbed` wait for each other at most, in seconds."""
_still: Final = threading.RLock()
"""Held from before a fork until after it, and by who changes what this process holds of a queue.

Else a child could begin with half a queue, with an open file that the parent is just closing (or
another of the same number), or as the one for which another thread is preparing a fork. Re-entrant,
since a signal handler or `__del__` may come upon it. Who has it waits for nothing without end."""


def track(core: Core) -> None:
    """Tell *core* of every fork of this process from now on, while it lives."""
    _hook()
    _cores.add(core)


def still() -> Lock:
    """A lock under which no other thread forks, nor changes what this process holds of a queue.

    Not for who waits under it for a queue's lock: its holder may be stopped.
    """
    _hook()
    return _still


def undisturbed(call: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """`call(*args)` under that lock, if it can be had soon, and else without it.

    For who may have a queue's lock, for which the thread that forks may be waiting.
    """
    try:
        with guard(_still.acquire, _still.__exit__, True, PATIENCE_S):
            call(*args, **kwargs)
            return
    except KeyError as error:
        if not is_lock_busy(error):
            raise
    call(*args, **kwargs)


def _hook() -> None:
    global _hooked
    if not _hooked:
        _hooked = True
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
            )
            # Around those, as the last to be registered is the first before a fork and the last
            # after it. C functions, which no signal handler that raises keeps from being called.
            lock: Any = _still
            os.register_at_fork(
                before=lock.acquire,
                after_in_parent=lock.release,
                after_in_child=lock._at_fork_reinit,
            )


def tracked() -> list[Core]:
    """The queues of this process that are referred to."""
    return members_of(_cores)


def members_of(found: Iterable[T]) -> list[T]:
    """What is in a set to which another thread may be adding just now."""
    while True:
        try:
            return list(found)
        except RecursionError:
            raise
        except RuntimeError:
            continue  # it changed its size meanwhile


def _before() -> None:
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


def end_of_launch(popen: Any) -> object:
    """What ceases to be referred to once the process has been started that is being pickled for.

    That moment is the end of `_launch`, at which the buffer goes into which it is pickled.
    """
    frame = launching_frame()
    for value in ({} if frame is None else frame.f_locals).values():
        if isinstance(value, io.BytesIO):
            return value
    return popen


def _after_in_parent() -> None:
    for core in tracked():
        core.after_fork_in_parent()


def _after_in_child() -> None:
    failed: BaseException | None = None
    for core in tracked():
        try:
            core.after_fork_in_child()
        except BaseException as error:  # the others are to be told all the same
            failed = failed or error
    if failed is not None:
        raise failed

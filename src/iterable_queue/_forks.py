"""What happens to the queues of a process that forks.

Nothing is hooked until the first queue is made. The hooks run for every fork that Python knows of;
a fork made in C, without Python's hooks, is a stated limit.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from weakref import WeakSet

if TYPE_CHECKING:
    from iterable_queue._core import Core

_cores: WeakSet[Core] = WeakSet()
_hooked = False


def track(core: Core) -> None:
    """Tell *core* of every fork of this process from now on, while it lives."""
    global _hooked  # noqa: PLW0603 - one set of hooks a process, however many queues
    if not _hooked:
        _hooked = True
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
            )
    _cores.add(core)


def tracked() -> list[Core]:
    """The queues of this process that are referred to."""
    return list(_cores)


def _before() -> None:
    for core in tracked():
        core.before_fork()


def _after_in_parent() -> None:
    for core in tracked():
        core.after_fork_in_parent()


def _after_in_child() -> None:
    for core in tracked():
        core.after_fork_in_child()

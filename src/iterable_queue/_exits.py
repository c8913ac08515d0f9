"""What a process does with its queues when it ends in order.

`atexit` runs in the main process and in forked ones of one's own. multiprocessing's children end
with `os._exit` after their package's finalizers (up to Python 3.12, without atexit); each package
clears its finalizers in a forked child and then calls what `register_after_fork` has. So this hooks
into all of them, and leaving twice does nothing.
"""

from __future__ import annotations

import atexit
import sys

from iterable_queue import _forks
from iterable_queue._pickling import PACKAGES

_hooked: set[str] = set()


class _Anchor:
    """What `register_after_fork` needs to refer to."""


_anchor = _Anchor()


def install_exit_hooks(package: str) -> None:
    """Leave all queues when this process ends, whichever package started it."""
    if not _hooked:
        atexit.register(_leave_all)
    for name in {*PACKAGES, package.partition(".")[0]} - _hooked:
        util = sys.modules.get(f"{name}.util")
        if util is not None and hasattr(util, "Finalize"):
            _hooked.add(name)
            util.register_after_fork(_anchor, _Hook(name))
            util.Finalize(None, _leave_all, exitpriority=0)
    _hooked.add("")


class _Hook:
    """Re-registers the finalizer in a child that *package* has forked."""

    def __init__(self, package: str) -> None:
        self._package = package

    def __call__(self, anchor: object) -> None:
        sys.modules[f"{self._package}.util"].Finalize(None, _leave_all, exitpriority=0)


def _leave_all() -> None:
    error = sys.exc_info()[1] or getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    if isinstance(error, SystemExit) and error.code in (None, 0):
        error = None
    how = "returned" if error is None else f"ended by {type(error).__name__}: {error}"
    for core in _forks.tracked():
        core.leave(f"was left open when its process {how}", error)

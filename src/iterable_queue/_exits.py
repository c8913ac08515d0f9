"""What a process does with its queues when it ends in order.

`atexit` runs in the main process, in spawned ones and in forked ones of one's own. Other children
of multiprocessing end with `os._exit` after their package's finalizers (up to Python 3.12, without
atexit); each package clears its finalizers in a forked child and then calls what
`register_after_fork` has. So this hooks into all of them, and leaving twice does nothing.
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType, ModuleType
from typing import Any

from iterable_queue import _forks
from iterable_queue._errors import RemoteError
from iterable_queue._pickling import PACKAGES

_hooked: set[ModuleType] = set()
"""The `util` modules hooked into. Not their names: what was dropped from `sys.modules`, as
pytest's `pytester` does, is another module with no hooks when it is imported again."""
_registered = False
_uncaught: BaseException | None = None
_bootstrap: FrameType | None = None


class _Anchor:
    """What `register_after_fork` needs to refer to."""


_anchor = _Anchor()


def install_exit_hooks(package: str) -> None:
    """Leave all queues when this process ends, whichever package started it."""
    global _registered
    if not _registered:
        _registered = True
        atexit.register(_leave_all)
    for name in {*PACKAGES, package.partition(".")[0]}:
        util = sys.modules.get(f"{name}.util")
        if util is not None and util not in _hooked and hasattr(util, "Finalize"):
            _hooked.add(util)
            util.register_after_fork(_anchor, _Hook(name, util))
            util.Finalize(None, _leave_with_finalizers, exitpriority=0)


class _Hook:
    """Called in a child that *package* has started, before it runs anything of the user's."""

    def __init__(self, package: str, util: Any) -> None:
        self._package = package
        self._util = util

    def __call__(self, anchor: object) -> None:
        self._util.Finalize(None, _leave_with_finalizers, exitpriority=0)
        # From Python 3.13 on, the exit hooks run when the error that ended a process is forgotten.
        process = sys.modules[f"{self._package}.process"].current_process()
        process.run = partial(_run, process.run)


def _run(run: Callable[[], object]) -> None:
    """What the process was started for; remembers the error by which that ends."""
    global _uncaught
    try:
        run()
    except BaseException as error:
        _uncaught = error
        raise


def watch() -> None:
    """Called from what a spawned process runs: remember where its exit status will be found.

    In such a process multiprocessing calls no hook of anybody's before it runs the user's function,
    and from Python 3.13 on it has forgotten the function's error when the exit hooks run.
    """
    global _bootstrap
    frame: FrameType | None = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while _bootstrap is None and frame is not None:
        code = frame.f_code
        if code.co_name == "_bootstrap" and "exitcode" in code.co_varnames:
            _bootstrap = frame
        frame = frame.f_back


def _leave_with_finalizers() -> None:
    """Called where multiprocessing ends a process, which may be too early.

    Up to Python 3.12 that is before the `atexit` hooks of a spawned process, the only one of its
    children that has them: it ends as an interpreter does. They may want to put something.
    """
    global _uncaught
    if sys.version_info < (3, 13):
        frame: FrameType | None = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
        while frame is not None and frame.f_code.co_name != "_launch":  # this was forked by one
            if frame.f_code.co_name == "spawn_main":
                _uncaught = sys.exc_info()[1]  # which will be forgotten by then
                return
            frame = frame.f_back
    _leave_all()


def _leave_all() -> None:
    error = _uncaught or sys.exc_info()[1] or getattr(sys, "last_value", None)
    if isinstance(error, SystemExit) and error.code in (None, 0):
        error = None
    status = 0 if _bootstrap is None else _bootstrap.f_locals.get("exitcode", 0)
    if error is not None:
        how = f"ended by {type(error).__name__}: {error}"
    elif status:
        how = f"ended by an exception or sys.exit, with exit status {status}"
        error = RemoteError(f"exit status {status}; the process's stderr shows the error")
    else:
        how = "returned"
    failed: BaseException | None = None
    for core in _forks.tracked():
        try:
            if core.leaks is not None and how == "returned":
                core.leaks.left_open(core)
                core.leaks.tell()
            core.leave(f"was left open when its process {how}", error)
        except BaseException as other:  # a signal's, say: the other queues are to be left as well
            failed = failed or other
    _mark_again(error)
    if failed is not None:
        raise failed


def _mark_again(error: BaseException | None) -> None:
    """Let the process die by SIGINT if that is what it was about to do, so that shells see it.

    Up to Python 3.12 the interpreter forgets that an interrupt was not handled as soon as anything
    evaluates a text. Importing `traceback`, by which the error was packed, does: so does
    `namedtuple`. A text whose evaluation ends by such an interrupt is a mark again.
    """
    is_printed = error is not None and error is getattr(sys, "last_value", None)
    if is_printed and isinstance(error, KeyboardInterrupt) and not hasattr(sys, "ps1"):
        try:
            exec("raise KeyboardInterrupt")
        except KeyboardInterrupt:
            pass

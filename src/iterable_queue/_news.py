"""What an operator should know, by `logging`, for those who have set that up.

Only what is rare and worth a line: a process found dead, items lost or handed on with it, a queue
that is broken, left-overs removed. Whoever finds that out holds a lock as a rule, and a handler is
somebody else's code, which may be slow, raise, or put on the very queue. So it is noted then, and
told when the lock is free.

A program that has not imported `logging` has no handler that could show anything: then nothing is
told, and nothing imported.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from typing import Any, Final

NAME: Final = "iterable_queue"
"""The name of the logger."""
INFO: Final = 20
WARNING: Final = 30
ERROR: Final = 40

_MOST: Final = 1000
"""Notes that are kept until somebody tells them."""
_notes: deque[tuple[int, int, str, tuple[object, ...]]] = deque(maxlen=_MOST)
"""The pid of the process that noted it (a forked child has a copy), level, text, arguments."""


def note(level: int, text: str, *arguments: object) -> None:
    """Something to be told soon. May be called anywhere, whatever is held."""
    _notes.append((os.getpid(), level, text, arguments))


def tell() -> None:
    """Tell what was noted. Called where the caller holds nothing; raises no Exception."""
    while _notes:
        try:
            pid, level, text, arguments = _notes.popleft()
        except IndexError:
            return  # another thread was faster
        if pid == os.getpid():
            _tell(level, text, arguments)


def _tell(level: int, text: str, arguments: tuple[object, ...]) -> None:
    logging: Any = sys.modules.get("logging")
    if logging is None or sys.is_finalizing():
        return
    try:
        logger = logging.getLogger(NAME)
        if not any(isinstance(handler, logging.NullHandler) for handler in logger.handlers):
            logger.addHandler(logging.NullHandler())  # else what nobody wants goes to stderr
        logger.log(level, text, *arguments)
    except Exception:
        pass  # a handler's own trouble is not that of who puts or gets

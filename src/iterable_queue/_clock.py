"""The monotonic clock, as one that no test suite can stop.

Those that freeze time replace the functions of `time`, there and in every module that has one of
them. A time-out that is counted on a clock which stands still never ends, and one that is begun on
one clock and ended on another ends at any time. So these functions are not those: they are made
anew from the interpreter's own module, also where this is first imported with the clock stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def _of_its_own() -> Any:
    """The module `time` again, with function objects of its own."""
    spec: Any = time.__spec__
    module = spec.loader.create_module(spec)
    spec.loader.exec_module(module)
    return module


_time = _of_its_own()
monotonic: Callable[[], float] = _time.monotonic
monotonic_ns: Callable[[], int] = _time.monotonic_ns

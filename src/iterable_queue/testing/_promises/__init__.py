"""The promises, one function each, whose docstring is the promise.

They stand in the order in which they are checked: first what everything else rests on.
"""

from __future__ import annotations

from types import ModuleType
from typing import Final

from iterable_queue.testing._conformance import Promise
from iterable_queue.testing._promises import (
    consuming,
    crossing,
    endings,
    endpoints,
    failures,
    items,
    limits,
    looking,
    producing,
    workers,
)


def _of(*modules: ModuleType) -> tuple[Promise, ...]:
    return tuple(
        member
        for module in modules
        for member in vars(module).values()
        if isinstance(member, Promise)
    )


PROMISES: Final = _of(items, limits, endings, endpoints, failures, workers, looking, crossing)
"""All promises of a queue, in the order in which they are checked."""

OF_PRODUCERS: Final = _of(producing)
"""Those that a producer keeps by itself."""

OF_CONSUMERS: Final = _of(consuming)
"""Those that a consumer keeps by itself."""

"""The promises, one function each, whose docstring is the promise.

They stand in the order in which they are checked: first what everything else rests on.
"""

from __future__ import annotations

from typing import Final

from iterable_queue.testing._conformance import Promise
from iterable_queue.testing._promises import (
    crossing,
    endings,
    endpoints,
    failures,
    items,
    limits,
    looking,
    workers,
)

PROMISES: Final[tuple[Promise, ...]] = tuple(
    member
    for module in (items, limits, endings, endpoints, failures, workers, looking, crossing)
    for member in vars(module).values()
    if isinstance(member, Promise)
)
"""All promises, in the order in which they are checked."""

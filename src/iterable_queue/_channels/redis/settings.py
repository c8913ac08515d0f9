"""How a process takes part in a queue on a server, what that is to be like, and where it is.

Plain values, and none of them a connection: an `Address` goes with each pickle of an endpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Settings(NamedTuple):
    """How a process takes part: what `IterableQueue.connect` was given.

    Attributes:
        source: the server's URL, or a function that returns a client.
        name: of the queue.
        serializer: two functions, to bytes and back; None: pickle.
        key: that signs; None: nothing is signed.
        expiry_s, retry_s, keep_s: see `IterableQueue.connect`.
    """

    source: str | Callable[[], Any]
    name: str
    serializer: tuple[Callable[[Any], bytes], Callable[[bytes], Any]] | None
    key: bytes | None
    expiry_s: float
    retry_s: float
    keep_s: float

    @property
    def format(self) -> str:
        """How items travel, in a word: all who take part must agree on it."""
        how = "pickle" if self.serializer is None else "custom"
        return f"{how}+signed" if self.key is not None else how

    def is_read_like(self, other: Settings) -> bool:
        """Whether items are made and read by the same functions, as far as that can be told."""
        if self.serializer is None or other.serializer is None:
            return self.serializer is other.serializer
        return all(map(_is_same, self.serializer, other.serializer))


def _is_same(function: Callable[..., Any], other: Callable[..., Any]) -> bool:
    if function == other:
        return True
    # A lambda, say, that is made anew by each call of what has it.
    code = getattr(function, "__code__", None)
    return code is not None and code == getattr(other, "__code__", None)


class Options(NamedTuple):
    """What the queue is to be like; "" leaves it to whoever made it."""

    maxsize: str = ""
    cancel: str = ""
    deliveries: str = ""


class Address(NamedTuple):
    """What another process needs to find the queue: as secret as the URL and the key are."""

    settings: Settings
    id: str

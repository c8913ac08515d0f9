"""What a channel is, and what a thread holds of its items."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

EMPTY: Final = object()
"""What a channel's `peek` returns when it holds nothing."""


class Channel(Protocol):
    """Where the items are. It decides nothing about endpoints."""

    atomic: bool
    """`append`, `size` and the result of `pull_into` may be called without the lock."""
    stash: list[Any]
    """Copies of items that `peek` has read; emptied by the ledger when one is handed out."""

    def append(self, payload: Any, producer: int) -> None:
        """Put *payload* behind the others, wholly or, if this raises, not at all."""

    def size(self) -> int:
        """How many items there are; exact at some moment during the call."""
        ...

    def peek(self) -> Any:
        """The next item, or EMPTY. It is gone from the ledger's next store to TAKEN on."""
        ...

    def pull_into(self, pending: list[Any]) -> Callable[[], object] | None:
        """For an atomic channel: a C function that moves one item to *pending* or raises Empty."""
        ...

    def unwrap(self, payload: Any) -> tuple[Any, int]:
        """The arguments with which `append` got what `peek` returned."""
        ...

    def clear(self) -> None:
        """Drop everything."""


class Hand:
    """What one thread holds of one consumer's items. Only that thread changes it.

    A consumer on an atomic channel counts here, without the lock: `taken` and `last` say how many
    items its thread was handed in all and by the last call, `idle_at` is the value of `taken` at
    which it last came back for more and found nothing. `fold` remembers what it has seen.
    """

    __slots__ = (
        "busy",
        "held",
        "idle_at",
        "kept",
        "last",
        "peak",
        "pending",
        "pull",
        "quick",
        "seen",
        "taken",
    )

    def __init__(self, channel: Channel, lean: bool) -> None:
        self.busy: bool = False
        """The thread is in a call that takes items."""
        self.held: int = 0
        """Items taken under the lock and not finished: they count in the slot's IN_HAND."""
        self.pending: list[Any] = []
        """Payloads not returned to user code yet; survives an interrupt in `get`."""
        self.kept: list[Any] = []
        """Copies of what is held, where items are redelivered."""
        self.pull: Callable[[], object] | None = channel.pull_into(self.pending) if lean else None
        """Moves one item to `pending`, if this hand counts by itself."""
        self.quick: Callable[[], object] | None = self.pull
        """The same, while the next call need not finish more than one item."""
        self.taken: int = 0
        self.last: int = 1
        self.idle_at: int = 0
        self.peak: int = 0
        """The most items that this thread saw queued as it took one."""
        self.seen: tuple[int, int, int] = (0, 0, 0)
        """`taken`, the items in hand, and of these the pending ones, at the last `fold`."""

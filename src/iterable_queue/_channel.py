"""What a channel is, and what a thread holds of its items."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import repeat
from operator import setitem
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from iterable_queue._seams import Cells, Channel

EMPTY: Final = object()
"""What a channel's `peek` returns when it holds nothing."""


ENTRY_BYTES: Final = 64
"""The size of a record's entry in a segment of `_channels.log`."""
STAMP_OFFSET: Final = 8
TAG_OFFSET: Final = 16
INLINE: Final = 40
"""A payload of up to so many bytes is in its entry."""
pack_small: Final = Struct(f"qqq{INLINE}s").pack_into
pack_large: Final = Struct("qqqqq").pack_into
unpack_entry: Final = Struct(f"qqq{INLINE}s").unpack_from
"""What writes and reads an entry. Called for each item put, so endpoints call them as well."""
exhaust: Final = any
"""Goes through all of an iterator over None: one C function."""
PICKLED: Final = 0x80
"""What `pickle` makes begins with this byte; what `marshal` makes of plain types never does."""


class Parts:
    """A payload in several parts, each to be copied to its place in the whole.

    Attributes:
        size: of the whole, in bytes.
        parts: where each begins in it, and its bytes.
    """

    __slots__ = ("parts", "size")

    def __init__(self, size: int, parts: list[tuple[int, Any]]) -> None:
        self.size = size
        self.parts = parts

    def __len__(self) -> int:
        return self.size

    def stores(self, target: Any, start: int) -> Iterator[None]:
        """An iterator over None that copies a part at each step, by C functions alone.

        *start* is where the whole begins in *target*.
        """
        where = [slice(start + at, start + at + len(part)) for at, part in self.parts]
        return map(setitem, repeat(target), where, [part for _, part in self.parts])


GONE: Final[list[Any]] = []
"""What the hands of a closed consumer have claimed; stays empty."""
LAST: Final[list[Any]] = []
"""The same, where the item that was just being handed out counts as such: it is to be returned."""


class Hand:
    """What one thread holds of one consumer's items. Only that thread changes it.

    A consumer on an atomic channel counts here, without the lock: `taken` and `last` say how many
    items its thread was handed in all and by the last call, `idle_at` is the value of `taken` at
    which it last came back for more and found nothing. `fold` remembers what it has seen.

    On a channel with claims, one hand of a consumer has the payloads of its claim here, and hands
    them out without the lock (`_Getting._hand_out`): see `_channels.log`.
    """

    __slots__ = (
        "brief",
        "busy",
        "claim",
        "claims",
        "entries",
        "feed",
        "first",
        "gate",
        "gate_until",
        "give",
        "held",
        "idle_at",
        "kept",
        "last",
        "next",
        "next_at",
        "opened",
        "own",
        "pace",
        "peak",
        "pending",
        "pull",
        "quick",
        "rest",
        "seen",
        "since",
        "size",
        "taken",
        "turn",
        "view",
    )

    def __init__(self, channel: Channel, lean: bool) -> None:
        self.brief: bool = False
        """The item that was last waited for came soon."""
        self.busy: bool = False
        """The thread is in a call that takes items."""
        self.held: int = 0
        """Items taken under the lock and not finished: they count in the slot's IN_HAND."""
        self.pending: list[Any] = []
        """Payloads not returned to user code yet; survives an interrupt in `get`."""
        self.kept: list[Any] = []
        """Copies of what is held, where items are redelivered."""
        self.pull: Callable[[], object] | None = channel.pull_into(self.pending) if lean else None
        """Moves one item to `pending`, if this hand counts by itself, and"""
        self.give: Callable[[], object] | None = channel.push_from(self.pending) if lean else None
        """one back."""
        self.quick: Callable[[], object] | None = self.pull
        """The same, while the next call need not finish more than one item."""
        self.taken: int = 0
        self.last: int = 1
        self.idle_at: int = 0
        self.peak: int = 0
        """The most items that this thread saw queued as it took one."""
        self.seen: tuple[int, int] = (0, 0)
        """What was taken, pending ones included, and what of it was in hand, at the last `fold`."""
        self.claims: bool = False
        """It may have a claim."""
        self.claim: list[Any] = []
        """Payloads claimed and not handed out, the next one last. Replaced when that changes
        otherwise than by handing out; GONE or LAST once the endpoint was closed."""
        self.rest: list[Any] = []
        """What is left of the claim while items of it are pending."""
        self.opened: bool = False
        """They are the items themselves."""
        self.entries: Any = b""
        """Of all that was claimed."""
        self.own: Any = None
        """What the channel keeps of this hand, if anything."""
        self.first: int = 0
        self.next: int = 0
        """Of the claim's first record, and of the next to be handed out: the index in its file."""
        self.view: Cells | None = None
        self.next_at: int = 0
        self.gate: Callable[[bool], bool]
        """What handing out needs: the cells, the place of CLAIM_NEXT, and what takes one from GATE,
        if that is above 0, by one locked instruction, which is a full fence as well."""
        self.gate_until: Callable[[float], bool] | None = None
        """Where that may take long: the same for a call with a deadline (see `deadline_of`). It
        raises Empty where that passes first."""
        self.feed: list[Any] | None = None
        """The items of the claim, while C functions hand them out (see `_Getting._feed`), and"""
        self.turn: Any = None
        """an iterator over what `gate` says, which ends when that is False."""
        self.size: int = 0
        """Records claimed; 0 once they are worked through."""
        self.since: int = 0
        """When they were, ns."""
        self.pace: int = 1
        """How many to claim next."""

    def tag(self, place: int = 0) -> int:
        """Of the record that is so many places behind the next one of the claim."""
        return self._of_entry(place, TAG_OFFSET)

    def tags(self, count: int) -> list[int]:
        """Of the next *count* records of the claim."""
        step = ENTRY_BYTES // 8
        at = step * (self.next - self.first) + TAG_OFFSET // 8
        return memoryview(self.entries).cast("Q")[at : at + step * count : step].tolist()

    @property
    def stamp(self) -> int:
        """When the next record was put; 0, before all others, if it is an item of a chunk."""
        return self._of_entry(0, STAMP_OFFSET)

    def _of_entry(self, place: int, offset: int) -> int:
        at = ENTRY_BYTES * (self.next + place - self.first) + offset
        return int.from_bytes(bytes(self.entries[at : at + 8]), "little")

    def pace_at(self, now: int, enough: int, most: int) -> int:
        """How many records this thread works through in *enough* ns, to judge by its last claim.

        It is called when the thread comes back. Never more than twice the pace before, or *most*.
        """
        if self.size:
            ideal = self.size * enough // max(now - self.since, 1)
            self.pace = max(min(ideal, 2 * self.pace, most), 1)
            self.size = 0
        self.since = now
        return self.pace

"""The channel for processes: logs of records in segment files, which consumers claim ranges of.

A *lane* is an append-only log. Each producer of an unbounded queue writes one of its own, so that a
put takes no lock between processes. What is put under the ledger's lock anyway (on a bounded
queue, by a worker, items that come back) goes to lane 0, the shared one.

A lane is a chain of *segments*, files that every process maps. A segment begins with a header
(FULL: 1 + its number of records once it is full; FOLLOWED: 1 + the number of the file that follows)
and has one entry for each record, growing upwards: where its payload starts, when it was put, its
tag, and the payload itself if that is small; the others grow downwards from the end. So one C call
writes a small record, and a consumer copies many of them by one.

What counts is in the ledger's cells: of a lane, PUT (items ever put), READ (items ever claimed) and
POS (where the next one to be claimed is). One store to PUT publishes a record, whatever interrupts
the stores before.

A *claim* is a range of records of one segment, in the slot of the consumer that has it:
CLAIM_NEXT to CLAIM_END are not handed out yet. The consumer hands out by storing CLAIM_NEXT, and
then takes one from GATE, a semaphore; if that is 0, it looks again under the lock. Whoever takes
the rest away stores 0 to GATE, executes a full fence, and then looks at CLAIM_NEXT; to take one
from a semaphore is a fence itself. So one of them sees the other (after the THE protocol of Cilk-5:
Frigo, Leiserson and Randall, PLDI 1998). What was taken away is put again, on lane 0, where its old
stamp makes it the next, but for what came back there before.

Changes of several cells are made whole by a *plan*: pairs of a cell and its new value, written down
first, and valid from the one store on that brings TAKEN + COMMITS to ROLL_AT. Who has the lock next
rolls such a plan forward (`roll`), so it does not matter where its author was interrupted.
"""

from __future__ import annotations

import marshal
import mmap
import os
import threading
from collections.abc import Callable, Iterable
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final

from iterable_queue import _fence
from iterable_queue._cells import (
    BROKEN,
    CANCELLED,
    CHANNEL,
    CLAIM_END,
    CLAIM_ENTRY,
    CLAIM_FILE,
    CLAIM_IDLE,
    CLAIM_NEXT,
    CONSUMER,
    CONSUMERS,
    DROPPED,
    GATE,
    HEAD_SIZE,
    HIGHEST,
    IN_HAND,
    KIND,
    LANE,
    LANE_CELLS,
    MAXSIZE,
    PRODUCER,
    RAW,
    RETURNED,
    ROLL,
    SLOT_SIZE,
    SLOTS,
    STATE,
    TAKEN,
    WAIT_ROOM,
    WORKERS,
    WRITABLE,
)
from iterable_queue._channel import (
    EMPTY,
    ENTRY_BYTES,
    INLINE,
    pack_large,
    pack_small,
    unpack_entry,
)
from iterable_queue._errors import REMOVED_BY_OTHERS, ChannelBroken, WouldDeadlock
from iterable_queue._runtime import is_lock_busy

if TYPE_CHECKING:
    from iterable_queue._channel import Hand, Parts
    from iterable_queue._ledger import Ledger
    from iterable_queue._seams import Cells, Lock

# The channel's cells of the head.
COMMITS: Final = CHANNEL  # plans committed by other stores than that of TAKEN
UNTAKEN: Final = CHANNEL + 1  # items put again that had been claimed and not handed out
LANES: Final = CHANNEL + 2  # lanes, but for lane 0
CUT: Final = CHANNEL + 3  # slot of the consumer whose claim is being cut short; 0: none
CUT_END: Final = CHANNEL + 4  # its CLAIM_END before that
ROLL_AT: Final = CHANNEL + 5  # the plan is committed once TAKEN + COMMITS is this
PAIRS: Final = (
    CHANNEL + 6
)  # the plan: ROLL pairs of a cell (those of slots from HEAD_SIZE on), value

# The cells of a lane, in its slot (lane 0: in slot 0).
OWNER: Final = LANE_CELLS  # slot of the producer that writes it; 0: nobody
PUT: Final = LANE_CELLS + 1  # items ever put
READ: Final = LANE_CELLS + 2  # items ever claimed, or taken under the lock
POS: Final = LANE_CELLS + 3  # where the next one is: file, index of its entry, place in its chunk
SPARE: Final = LANE_CELLS + 4  # 1 + the number of a drained file that may be written again; 0: none
OLDEST: Final = LANE_CELLS + 5  # the number of the first file that is not drained
FILES: Final = LANE_CELLS + 6  # files ever made
TAIL: Final = LANE_CELLS + 7  # two cells, by the parity of PUT: the POS of the next record to put
LOW: Final = LANE_CELLS + 9  # likewise: where the payloads begin in that segment
LEFT_AT: Final = LANE_CELLS + 11  # of lanes but lane 0: the value of PUT for which these two hold
INTENT: Final = LANE_CELLS + 12  # on a bounded queue: the value of PUT that its writer goes for
LIMIT: Final = LANE_CELLS + 13  # the one up to which it may go
GRANT: Final = LANE_CELLS + 14  # the same, but in `revoke`: up to here, room is taken

PLACE_BITS: Final = 12
FILE_SHIFT: Final = 40
INDEX_MASK: Final = (1 << FILE_SHIFT - PLACE_BITS) - 1
PLACE_MASK: Final = (1 << PLACE_BITS) - 1
"""A position is a file, the index of an entry, and, if that is a chunk, a place in it."""

# The cells of a segment's header, and of an entry.
FULL: Final = 0
FOLLOWED: Final = 1
START: Final = 0  # of the payload in the segment; or, if it is in the entry, ~ its length
STAMPED: Final = 1
TAG: Final = 2
LENGTH: Final = 3  # of a payload that is not in the entry
COUNT: Final = 4  # likewise, of its items: above 1, it is a chunk, a list that `marshal` has packed
ENTRY: Final = ENTRY_BYTES // 8


FIRST_SIZE: Final = 1 << 16
LARGEST_SIZE: Final = 1 << 22
"""Segments grow from the one to the other, in bytes; a larger record gets one of its own size."""
KEPT_SIZE: Final = 1 << 24
"""One that was read is written again, unless it is larger than this: then its memory is let go."""
KEPT: Final = 3
"""Segments of a lane that a process keeps mapped."""

CLAIM_NS: Final = 1_000_000
"""A claim holds as many records as its consumer works through in this time, in nanoseconds."""
CLAIM_MOST: Final = 1024
CLAIM_BYTES: Final = 1 << 18
"""And never more than these: records, bytes (but one)."""
FEW: Final = 256
"""While no more items than this are queued, those of all producers are claimed in the order of
their puts; above that, a claim only begins with the oldest."""
SHARED_OUT: Final = 64
"""While no more items than this are queued for several consumers, they are claimed one by one."""
MOST_ROOM: Final = 1 << 40
"""A producer is given room for no more items than this at once, so that the sum fits a cell."""
NEVER: Final = (1 << 63) - 1
"""Later than any stamp."""

LOOKS: Final = 100
"""How often a count is made again that changed meanwhile."""


class Segment:
    """One mapped segment file.

    Attributes:
        file: its number; positions refer to it.
        map, cells: its bytes, and the same as cells.
        size: in bytes.
    """

    __slots__ = ("cells", "file", "map", "size")

    def __init__(self, file: int, fd: int) -> None:
        self.file = file
        self.map = mmap.mmap(fd, 0)
        self.cells = memoryview(self.map).cast("q")
        self.size = len(self.map)


class Lane:
    """A lane, for the process that writes it.

    Attributes:
        base: index of the first cell of its slot.
        put_at: index of its cell PUT.
        segment, map: what is written now.
        put: items put ever; -1 once this is over: its writer has left, or goes on in another lane
            object, `successor`.
        n, low: records in this segment; where their payloads begin.
        room: how many records it has entries for.
        number: of its producer, which is the tag of its records.
        writer: the payload that was last written by a put, published or not: it tells a thread
            whether another one has written to the same entry meanwhile.
        intent_at, limit_at: index of its cells INTENT and LIMIT.
        inline: payloads up to so many bytes are put by the quickest way: none on a bounded queue.
        head, dumps, plain: what a put needs beside (see `Core`).
        fence: a full fence (see `_fence`).
        lock: held while a segment is added.
    """

    __slots__ = (
        "base",
        "busy",
        "cells",
        "dumps",
        "fence",
        "head",
        "inline",
        "intent_at",
        "limit_at",
        "lock",
        "low",
        "map",
        "n",
        "number",
        "plain",
        "put",
        "put_at",
        "room",
        "segment",
        "successor",
        "writer",
    )

    def __init__(
        self,
        base: int,
        number: int,
        cells: Cells,
        fence: Callable[[], object],
        inline: int = INLINE,
    ) -> None:
        self.base = base
        self.put_at = base + PUT
        self.intent_at = base + INTENT
        self.limit_at = base + LIMIT
        self.inline = inline
        self.cells = cells
        self.number = number
        self.fence = fence
        self.put = -1
        self.successor: Lane | None = None
        self.writer: object = None
        self.head: Cells
        self.dumps: Callable[[Any], bytes | Parts]
        self.plain: frozenset[type] = frozenset()
        self.lock = threading.RLock()
        self.busy = False

    def begin(self, segment: Segment, n: int, low: int) -> None:
        """Go on in *segment* behind its first *n* records, with the payloads from *low* on."""
        segment.cells[FULL] = 0
        self.segment = segment
        self.map = segment.map
        self.n = n
        self.low = low
        self.room = low // ENTRY_BYTES - 1

    def end(self) -> None:
        """Nothing is put by this object any more."""
        self.put = self.room = -1
        self.low = 0

    @property
    def tail(self) -> int:
        """The position of the next record."""
        return self.segment.file << FILE_SHIFT | self.n << PLACE_BITS

    def has_room(self, length: int) -> bool:
        """Whether a record with so long a payload fits in."""
        if length > INLINE:
            return ENTRY_BYTES * (self.n + 2) <= self.low - length
        return self.n < self.room

    def lower(self, start: int) -> None:
        """The payloads begin at *start* now."""
        self.low = start
        self.room = start // ENTRY_BYTES - 1


class _Left:
    """What is left of a ledger for a channel whose process takes part no more."""

    __slots__ = ("cells",)

    def __init__(self, cells: Cells) -> None:
        self.cells = cells

    def refreshed(self) -> Cells:
        return self.cells


class LogChannel:
    """The lanes in the directory *path*. Called with the ledger's lock held, unless said otherwise.

    Attributes:
        lockless: puts pass the ledger's lock by.
    """

    __slots__ = (
        "_fences",
        "_gate",
        "_head",
        "_heads",
        "_kept",
        "_lanes",
        "_ledger",
        "_opened",
        "_path",
        "_shared",
        "_trylock",
        "atomic",
        "lockless",
        "stash",
    )

    def __init__(self, head: Cells, path: str) -> None:
        self.atomic = False
        self.stash: list[Any] = []
        self._head = head
        self._path = path
        self._ledger: Ledger
        self._lanes: list[int] = [0]
        """The first cells of the lanes' slots."""
        self._heads: dict[int, tuple[int, int]] = {}
        """By lane: a value of READ, and the stamp of the record that is next then."""
        self._kept: dict[int, dict[int, Segment]] = {}
        """By lane and number: segments mapped here."""
        self._opened: tuple[tuple[int, ...], list[Any]] = (), []
        """The chunk that was opened last: its lane, file, index, stamp, and items."""
        self._shared: Lane | None = None
        self._fences: _fence.Fences | None = None
        self._gate: Callable[[Cells, int], Callable[[bool], bool]]
        self._trylock: Lock | None = None
        self.lockless = False

    def begin(self, ledger: Ledger) -> None:
        """Once, before anything else."""
        self._ledger = ledger
        ledger.whole = self

    def pass_the_lock_by(
        self, gate: Callable[[Cells, int], Callable[[bool], bool]], trylock: Lock | None = None
    ) -> None:
        """Producers get lanes of their own from now on, and consumers claim, where that can be.

        Args:
            gate: of cells and an index, what takes one from that cell, if it is above 0.
            trylock: the ledger's lock, for who counts while others are busy.
        """
        if _fence.is_supported():
            self._trylock = trylock
            self.lockless = True
            self._fences = _fence.Fences()
            self._gate = gate
            self._ledger.claims = self

    def recheck(self) -> bool:
        """Whether something may have been put since the lock was had; a full fence if so."""
        if self._fences is not None:
            self._fences.renew()()
        return self.lockless

    def end(self) -> None:
        """This process takes part no more: no file stays open until garbage is collected."""
        self._kept.clear()
        self._shared = None
        left: Any = _Left(self._ledger.cells)
        self._ledger = left

    def after_fork_in_child(self) -> None:
        """A thread of the parent may have been writing to lane 0."""
        self._shared = None

    # -- counts ----------------------------------------------------------------------------------

    def size(self) -> int:
        """How many items are put and not handed out. May be called without the lock."""
        if not self.lockless:
            return self._sizes_locked()
        found = self._stable(LOOKS)
        if found is None and self._trylock is not None:
            # Others are too busy. With the lock, nobody claims, nor gets more room.
            try:
                with self._trylock:
                    found = self._stable(LOOKS)
            except KeyError as error:
                if not is_lock_busy(error):
                    raise
        if found is None:
            found = self._look()
        return max(found[0] - found[1], 0)

    def _stable(self, looks: int) -> tuple[int, int, int] | None:
        """What two looks in a row have found; None: no two of so many were alike."""
        looked = self._look()
        for _ in range(looks):
            last, looked = looked, self._look()
            if last == looked:
                return looked
        return None

    def has_items(self) -> bool:
        """Whether something is there to be claimed. May be called without the lock."""
        bases = self._bases()
        cells = self._ledger.cells
        for base in bases:  # noqa: SIM110 - any() over a generator takes twice as long
            if cells[base + PUT] > cells[base + READ]:
                return True
        return False

    def _sizes_locked(self) -> int:
        """The same where every change is one store."""
        head = self._head
        cells = self._ledger.cells
        while True:
            put = cells[PUT]
            size = put - head[TAKEN] - head[DROPPED]
            if put == cells[PUT]:
                return size

    def _look(self) -> tuple[int, int, int]:
        """What was put; what was handed out or dropped; plans committed so far, or being made."""
        head = self._head
        bases = self._bases()
        cells = self._ledger.cells
        plan = self._committed()
        put = 0
        for base in bases:
            put += plan.get(HEAD_SIZE + base + PUT) or cells[base + PUT]
        # In this order: what is claimed meanwhile makes less of what is there, and never more than
        # there is room for.
        claimed = self.claimed()
        return put, head[TAKEN] + head[DROPPED] - claimed, head[COMMITS] + head[ROLL]

    def claimed(self) -> int:
        """How many items are claimed and not handed out. May be called without the lock."""
        if not self._head[CONSUMERS]:
            return 0
        cells = self._ledger.refreshed()
        last = self._head[SLOTS] * SLOT_SIZE
        ends: Any = cells[SLOT_SIZE + CLAIM_END : last : SLOT_SIZE]
        nexts: Any = cells[SLOT_SIZE + CLAIM_NEXT : last : SLOT_SIZE]
        ends, nexts = list(ends), list(nexts)
        plan = self._committed()
        for cell, value in plan.items():
            slot, field = divmod(cell - HEAD_SIZE, SLOT_SIZE)
            if cell > HEAD_SIZE and field == CLAIM_NEXT:
                nexts[slot - 1] = value
            elif cell > HEAD_SIZE and field == CLAIM_END:
                ends[slot - 1] = value
        cut = plan.get(CUT, self._head[CUT])
        if cut:
            ends[cut - 1] = self._head[CUT_END]
        if ends == nexts:
            return 0
        return sum(end - at for end, at in zip(ends, nexts, strict=False) if end > at)

    def in_claim(self, slot: int) -> int:
        """Of the items of this consumer's claim, how many are in hand: 0 or 1."""
        at = slot * SLOT_SIZE
        cells = self._ledger.cells
        return int(cells[at + CLAIM_IDLE] < min(cells[at + CLAIM_NEXT], cells[at + CLAIM_END]))

    def in_claims(self) -> int:
        """The same for all consumers."""
        return sum(idle < min(at, end) for idle, at, end in self._claims())

    def _claims(self) -> list[tuple[int, int, int]]:
        """CLAIM_IDLE, CLAIM_NEXT and CLAIM_END of all slots."""
        cells = self._ledger.refreshed()
        last = self._head[SLOTS] * SLOT_SIZE
        idles: Any = cells[SLOT_SIZE + CLAIM_IDLE : last : SLOT_SIZE]
        nexts: Any = cells[SLOT_SIZE + CLAIM_NEXT : last : SLOT_SIZE]
        ends: Any = cells[SLOT_SIZE + CLAIM_END : last : SLOT_SIZE]
        return list(zip(idles, nexts, ends, strict=False))

    def settle_claim(self, slot: int) -> None:
        """What is in hand of the consumer's claim counts in its cell IN_HAND from now on."""
        self.roll()
        mine = slot * SLOT_SIZE
        cells = self._ledger.cells
        if self.in_claim(slot):
            self._commit(
                (HEAD_SIZE + mine + CLAIM_IDLE, cells[mine + CLAIM_NEXT]),
                (HEAD_SIZE + mine + IN_HAND, cells[mine + IN_HAND] + 1),
            )

    def totals(self) -> tuple[int, int, int, int]:
        """Items put, queued, handed out, and in hand as parts of claims, all at one moment.

        With the lock held, two things go on: consumers hand out, and producers put. So each
        CLAIM_NEXT is read once: what is handed out between two looks at it would count as finished
        already. What is put after that is queued.
        """
        self.roll()
        head = self._head
        claims = self._claims()
        claimed = sum(max(end - at, 0) for _, at, end in claims)
        in_hand = sum(idle < min(at, end) for idle, at, end in claims)
        cells = self._ledger.cells
        put = sum(cells[base + PUT] for base in self._bases())
        gone = head[TAKEN] - claimed
        queued = put - gone - head[DROPPED]
        return put - head[UNTAKEN] - head[RETURNED], queued, gone - head[UNTAKEN], in_hand

    def _bases(self) -> list[int]:
        """The first cells of the lanes' slots. Lanes are never given back."""
        if len(self._lanes) <= self._head[LANES]:
            self._find_lanes()
        return self._lanes

    def _find_lanes(self) -> None:
        cells = self._ledger.refreshed()
        kinds: Any = cells[KIND : self._head[SLOTS] * SLOT_SIZE : SLOT_SIZE]
        # A list is replaced, never changed: others may be walking over it.
        self._lanes = [0, *(slot * SLOT_SIZE for slot, kind in enumerate(kinds) if kind == LANE)]

    def _count_lanes(self) -> None:
        """Let everybody know of a new lane."""
        self._find_lanes()
        self._head[LANES] = len(self._lanes) - 1

    def mend(self) -> None:
        """Make whole what a holder of the lock left half done that died. May be done again."""
        self.roll()
        self._count_lanes()
        cells = self._ledger.cells
        for base in self._lanes[1:]:
            owner = cells[base + OWNER]
            if owner and cells[owner * SLOT_SIZE + KIND] != PRODUCER:
                self._end_lane(base)

    # -- plans -----------------------------------------------------------------------------------

    def _plan(self, *pairs: tuple[int, int], at: int) -> None:
        """Write down that these cells get these values once TAKEN + COMMITS is *at*."""
        head = self._head
        index = PAIRS
        for cell, value in pairs:
            head[index] = cell
            head[index + 1] = value
            index += 2
        head[ROLL_AT] = at
        head[ROLL] = len(pairs)

    def roll(self) -> None:
        """Carry out the plan if it was committed, and forget it; a cut that was not is undone."""
        head = self._head
        cells = self._ledger.cells
        if head[ROLL]:
            if head[TAKEN] + head[COMMITS] >= head[ROLL_AT]:
                for index in range(PAIRS, PAIRS + 2 * head[ROLL], 2):
                    cell = head[index]
                    if cell < HEAD_SIZE:
                        head[cell] = head[index + 1]
                    else:
                        cells[cell - HEAD_SIZE] = head[index + 1]
            head[ROLL] = 0
        if head[CUT]:
            cells[head[CUT] * SLOT_SIZE + CLAIM_END] = head[CUT_END]
            head[CUT] = 0

    def _committed(self) -> dict[int, int]:
        """By cell: what a plan stores that was committed, and may not be carried out yet.

        May be called without the lock; then another plan may be being written meanwhile.
        """
        head = self._head
        count = head[ROLL]
        if not count or head[TAKEN] + head[COMMITS] < head[ROLL_AT]:
            return {}
        return {head[at]: head[at + 1] for at in range(PAIRS, PAIRS + 2 * count, 2)}

    def commit(self, *pairs: tuple[int, int]) -> None:
        """Store each value in its cell, or none, should this process be killed meanwhile."""
        if self._head[ROLL] or self._head[CUT]:
            self.roll()
        self._commit(*pairs)

    def _commit(self, *pairs: tuple[int, int]) -> None:
        head = self._head
        self._plan(*pairs, at=head[TAKEN] + head[COMMITS] + 1)
        head[COMMITS] += 1
        self.roll()

    # -- lane 0 ----------------------------------------------------------------------------------

    def append(self, payload: Any, producer: int) -> None:
        """Put *payload* on lane 0."""
        lane, put = self._begin_shared()
        self._write(lane, payload, producer, self._ledger.now())
        put += 1
        cells = lane.cells
        cells[TAIL + (put & 1)] = lane.tail
        cells[LOW + (put & 1)] = lane.low
        # Together: else the tail would be looked for again, and found.
        cells[PUT] = put
        lane.put = put

    def append_and(self, payload: Any, producer: int, *pairs: tuple[int, int]) -> None:
        """Put *payload* on lane 0, and store each value in its cell; or nothing of all that."""
        lane, put = self._begin_shared()
        self._write(lane, payload, producer, self._ledger.now())
        put += 1
        self._commit(
            (HEAD_SIZE + TAIL + (put & 1), lane.tail),
            (HEAD_SIZE + LOW + (put & 1), lane.low),
            (HEAD_SIZE + PUT, put),
            *pairs,
        )
        lane.put = put

    def _begin_shared(self) -> tuple[Lane, int]:
        """Lane 0, ready to be written, and its PUT: another process may have put meanwhile.

        Until `put` is set again, what is written now is written over by the next one to come here.
        """
        if self._head[ROLL]:
            self.roll()
        if self._head[MAXSIZE]:
            self.revoke()  # what is put here has not asked for room
        cells = self._ledger.cells
        lane = self._shared
        if lane is None:
            lane = self._shared = Lane(0, 0, cells, self._nothing)
        lane.cells = cells
        put = cells[PUT]
        if lane.put != put:
            tail = cells[TAIL + (put & 1)]
            segment = self._writable(0, tail >> FILE_SHIFT)
            lane.begin(
                segment, tail >> PLACE_BITS & INDEX_MASK, cells[LOW + (put & 1)] or segment.size
            )
        lane.put = -1
        return lane, put

    def _nothing(self) -> None:
        """Lane 0 needs no fence of its own."""

    # -- writing ---------------------------------------------------------------------------------

    def lane(self, slot: int, number: int) -> Lane | None:
        """A lane for the producer in *slot*; None: its puts take the lock, and go to lane 0."""
        if not self.lockless or self._head[STATE] & CANCELLED:
            return None  # of a cancelled queue the segments have gone: a put says so, not this
        assert self._fences is not None
        self.roll()
        ledger = self._ledger
        cells = ledger.cells
        for base in self._bases()[1:]:
            if cells[base + OWNER] in (0, slot):
                break
        else:
            base = ledger.open_lane() * SLOT_SIZE
            cells = ledger.cells
            self._count_lanes()
        inline = -1 if self._head[MAXSIZE] else INLINE
        lane = Lane(base, number, cells, self._fences.renew(), inline)
        lane.begin(*self._tail(base))
        lane.put = cells[base + PUT]
        cells[base + OWNER] = slot
        return lane

    def leave(self, lane: Lane) -> None:
        """The lane's writer leaves it: the next one shall find its end at once."""
        while lane.successor is not None:
            lane = lane.successor
        # Together: from here on, no thread puts to it.
        put, n, low = lane.put, lane.n, lane.low
        lane.put = lane.room = -1
        lane.low = 0
        cells = lane.cells
        cells[lane.base + LEFT_AT] = 0  # its last writer may have put nothing, and gone on
        cells[lane.base + TAIL + (put & 1)] = lane.segment.file << FILE_SHIFT | n << PLACE_BITS
        cells[lane.base + LOW + (put & 1)] = low
        cells[lane.base + LEFT_AT] = put

    def _tail(self, base: int) -> tuple[Segment, int, int]:
        """Where the next record of a lane goes that nobody writes now, and its payload ends."""
        cells = self._ledger.cells
        put = cells[base + PUT]
        if put and cells[base + LEFT_AT] == put:
            tail = cells[base + TAIL + (put & 1)]
            segment = self._segment(base, tail >> FILE_SHIFT)
            return segment, tail >> PLACE_BITS & INDEX_MASK, cells[base + LOW + (put & 1)]
        # Its writer was killed: count on from where it is read.
        file, at, place = _parts(cells[base + POS])
        left = put - cells[base + READ] + place
        while True:
            segment = self._writable(base, file)
            full = segment.cells[FULL]
            while left and at + 1 != full:
                left -= self._count(segment, at)
                at += 1
            if not left:
                break
            file, at = segment.cells[FOLLOWED] - 1, 0
        starts: Any = segment.cells[ENTRY : ENTRY * (at + 1) : ENTRY]
        return segment, at, min((start for start in starts if start >= 0), default=segment.size)

    def _writable(self, base: int, file: int) -> Segment:
        """The segment of that number; the first one of a lane may have to be made."""
        cells = self._ledger.cells
        if cells[base + FILES]:
            return self._segment(base, file)
        segment = self._create(base, 0, 0)
        cells[base + FILES] = 1
        return segment

    def last_put(self, slot: int) -> int:
        """When the producer in *slot* last put something without the lock, ns; 0: not known."""
        if self._head[STATE] & CANCELLED:
            return 0  # its files are gone, or about to go
        self.roll()
        cells = self._ledger.cells
        for base in self._bases()[1:]:
            if cells[base + OWNER] == slot and cells[base + PUT]:
                segment, n, _ = self._tail(base)
                return segment.cells[ENTRY * n + STAMPED] if n else 0
        return 0

    def release_lane(self, slot: int) -> None:
        """The producer in *slot* writes no more."""
        cells = self._ledger.cells
        for base in self._bases()[1:]:
            if cells[base + OWNER] == slot:
                room = cells[base + GRANT] - cells[base + PUT]
                self._end_lane(base)
                if room > 0 and self._head[WAIT_ROOM]:
                    self._ledger.room.notify(room)

    def _end_lane(self, base: int) -> None:
        """Nobody writes this lane."""
        cells = self._ledger.cells
        cells[base + INTENT] = cells[base + LIMIT] = cells[base + GRANT] = cells[base + PUT]
        cells[base + OWNER] = 0

    # -- room on a bounded queue -----------------------------------------------------------------

    def admit(self, lane: Lane) -> bool:
        """Give *lane*'s writer room for at least one more item. False: the queue is full.

        It gets its share of what there is, for puts without the lock, until another one needs it:
        see `revoke`.
        """
        head = self._head
        if head[ROLL] or head[CUT]:
            self.roll()
        cells = self._ledger.cells
        base = lane.base
        put = cells[base + PUT]
        if self._fences is not None:
            lane.fence = self._fences.renew()  # also for one who polls, and never needs a segment
        if cells[base + LIMIT] > put:
            return True  # it was given to another thread
        room = self._room()
        if room < 1:
            self.revoke()
            if cells[base + LIMIT] > put:
                return True  # its own, of which one who was killed had taken back a half
            room = self._room()
            if room < 1:
                cells[base + INTENT] = put
                return False
        sharers = 1 + head[WAIT_ROOM]
        for other in self._bases():
            sharers += cells[other + GRANT] > cells[other + PUT]
        share = min(max(room // sharers, 1), MOST_ROOM)
        cells[base + INTENT] = put + 1  # first: that much is not revoked
        cells[base + GRANT] = put + share
        cells[base + LIMIT] = put + share
        if head[WAIT_ROOM] and room > share:
            self._ledger.room.notify()
        return True

    def _room(self) -> int:
        """For how many items there is room, not counting what producers have room for already.

        Without the lock, items can only be handed out meanwhile, and such room be used.
        """
        head = self._head
        cells = self._ledger.cells
        used = 0
        for base in self._bases():
            put, grant = cells[base + PUT], cells[base + GRANT]
            used += grant if grant > put else put
        return head[MAXSIZE] - used + head[TAKEN] - self.claimed() + head[DROPPED]

    def revoke(self) -> None:
        """Take back what room producers have and don't use just now.

        A producer stores INTENT, executes a full fence, and puts if LIMIT allows; this stores LIMIT
        first, and then looks at INTENT. As with claims, one of them sees the other. GRANT comes
        last: who dies before that leaves room unused until the next one does this again.
        """
        cells = self._ledger.refreshed()
        found: list[tuple[int, int]] = []
        for base in self._bases():
            put = cells[base + PUT]
            if cells[base + GRANT] > put:
                cells[base + LIMIT] = put
                found += ((base, put),)
        if found:
            assert self._fences is not None
            self._fences.renew()()
            for base, put in found:
                # It may have put since, and go for more than there is room for.
                least = max(min(cells[base + INTENT], cells[base + GRANT]), put)
                cells[base + LIMIT] = least
                cells[base + GRANT] = least

    def _write(self, lane: Lane, payload: Any, tag: int, stamp: int) -> None:
        """Write a record behind the last one, without publishing it."""
        length = len(payload)
        if not lane.has_room(length):
            self._extend(lane, length, lane)
        at = ENTRY_BYTES * (lane.n + 1)
        if length <= INLINE:
            pack_small(lane.map, at, ~length, stamp, tag, payload)
        else:
            start = lane.low - length
            pack_large(lane.map, at, start, stamp, tag, length, 1)
            lane.map[start : lane.low] = payload
            lane.lower(start)
        lane.n += 1

    def extend(self, lane: Lane, length: int) -> Lane:
        """Go on in another segment, which has room for *length* bytes. Needs no ledger's lock.

        Returns what to put to from now on.
        """
        with lane.lock:
            if lane.busy:
                raise WouldDeadlock(
                    "put was called from a signal handler or __del__ that interrupted a put of "
                    "this thread; nothing was changed. Set a flag there and act on it outside"
                )
            lane.busy = True
            try:
                if lane.put < 0 or lane.has_room(length):
                    return lane  # another thread was faster
                assert self._fences is not None
                fence = self._fences.renew()
                after = Lane(lane.base, lane.number, lane.cells, fence, lane.inline)
                after.head, after.dumps, after.plain = lane.head, lane.dumps, lane.plain
                self._extend(lane, length, after)
                return after
            finally:
                lane.busy = False

    def _extend(self, lane: Lane, length: int, after: Lane) -> None:
        """Go on in another segment, and there by *after*, which may be *lane* itself."""
        old = lane.segment
        owned = after is not lane
        new = self._spare(lane, length, owned) or self._more(lane, length, owned)
        if new is None:
            return
        new.cells[FOLLOWED] = 0
        new.cells[FULL] = 0
        room = new.size // ENTRY_BYTES - 1
        if owned and lane.put < 0:
            self._forget(lane.base, new.file)  # closed by another thread meanwhile
            return
        # Together: another thread may be about to put what has room in the old one.
        old.cells[FOLLOWED] = new.file + 1
        old.cells[FULL] = lane.n + 1
        put = lane.put
        if owned:
            # In the old one, nothing has room any more, and no put is the next.
            lane.put = lane.room = -1
            lane.low = 0
            lane.successor = after
        after.segment = new
        after.map = new.map
        after.n = 0
        after.low = new.size
        after.room = room
        after.put = put

    def _spare(self, lane: Lane, length: int, owned: bool) -> Segment | None:
        """The lane's drained segment, if there is one and it is large enough."""
        cells = lane.cells
        # Together: once another thread has closed the lane, its next writer may take the spare.
        spare = 0 if owned and lane.put < 0 else cells[lane.base + SPARE]
        if spare:
            cells[lane.base + SPARE] = 0
        if not spare:
            return None
        segment = self._segment(lane.base, spare - 1)
        if segment.size >= 2 * ENTRY_BYTES + length:
            return segment
        self._forget(lane.base, spare - 1)
        return None

    def _more(self, lane: Lane, length: int, owned: bool) -> Segment | None:
        """A new file; None: another thread has closed the lane.

        A number is used once, also if the making of its file is cut short.
        """
        cells = lane.cells
        at = lane.base + FILES
        # Together: the lane's next writer must not use the same number.
        if owned and lane.put < 0:
            return None
        file = cells[at]
        cells[at] = file + 1
        return self._create(lane.base, file, length, lane.segment.size)

    def _create(self, base: int, file: int, length: int, last: int = 0) -> Segment:
        """A new file, its room reserved before use."""
        least = max(FIRST_SIZE, 2 * ENTRY_BYTES + length + mmap.PAGESIZE - 1 & ~(mmap.PAGESIZE - 1))
        size = max(min(2 * last, LARGEST_SIZE), least)
        name = self._name(base, file)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(name, flags, 0o600)
        except FileNotFoundError:
            raise self._gone() from None
        try:
            try:
                reserve(fd, size)
            except OSError:
                if size == least:
                    raise
                reserve(fd, least)
            segment = Segment(file, fd)
        except BaseException:
            self._unlink(name)
            raise
        finally:
            os.close(fd)
        self._keep(base, segment)
        return segment

    # -- reading ---------------------------------------------------------------------------------

    def _oldest(self) -> tuple[int, int, int]:
        """The lane whose next record is the oldest of all, and when that of another one was put.

        And how many items are on all lanes. The lane is -1 if there is none.
        """
        bases = self._bases()
        cells = self._ledger.cells
        while True:
            found = -1
            lanes = queued = 0
            for base in bases:
                items = cells[base + PUT] - cells[base + READ]
                if items > 0:
                    found = base
                    lanes += 1
                    queued += items
            if lanes > 1:
                best, second = self._compare(bases)
                if best >= 0:
                    return best, second, queued
                continue
            for base in bases:
                if base == found:
                    return found, NEVER, queued
                # One that is older may have been put since this lane was looked at.
                if cells[base + PUT] > cells[base + READ]:
                    break
            else:
                return -1, NEVER, 0

    def _compare(self, bases: list[int]) -> tuple[int, int]:
        """Of several lanes, the one whose next record is the oldest; and when the next one was put.

        -1: it was put since this began, and may be younger than one of a lane looked at before.
        """
        cells = self._ledger.cells
        began = self._ledger.now()
        best, oldest, second = -1, NEVER, NEVER
        for base in bases:
            read = cells[base + READ]
            if cells[base + PUT] > read:
                known = self._heads.get(base)
                if known is None or known[0] != read:
                    segment, at, _ = self._position(base)
                    known = read, segment.cells[ENTRY * (at + 1) + STAMPED]
                    self._heads[base] = known
                if known[1] < oldest:
                    best, oldest, second = base, known[1], oldest
                elif known[1] < second:
                    second = known[1]
        return (best if oldest <= began else -1), second

    def _position(self, base: int) -> tuple[Segment, int, int]:
        """Where the next record of a lane is that has one, and the place in it of a chunk."""
        cells = self._ledger.cells
        while True:
            file, at, place = _parts(cells[base + POS])
            segment = self._segment(base, file)
            if segment.cells[FULL] != at + 1:
                return segment, at, place
            cells[base + POS] = segment.cells[FOLLOWED] - 1 << FILE_SHIFT
            self._recycle(base)

    def _recycle(self, base: int) -> None:
        """Segments that were read, and of which nothing is claimed, may be written again."""
        cells = self._ledger.cells
        reading = cells[base + POS] >> FILE_SHIFT
        while (file := cells[base + OLDEST]) != reading:
            if self.lockless and self._is_claimed(base << FILE_SHIFT | file):
                return
            segment = self._segment(base, file)
            # First: a file that is not looked at again is lost until the end, no more.
            cells[base + OLDEST] = segment.cells[FOLLOWED] - 1
            if cells[base + SPARE] or segment.size > KEPT_SIZE:
                self._forget(base, file)
            else:
                cells[base + SPARE] = file + 1

    def _is_claimed(self, claim: int) -> bool:
        """Whether a consumer has records of this file to hand out."""
        cells = self._ledger.refreshed()
        return any(
            cells[at] == claim
            and cells[at - CLAIM_FILE + CLAIM_NEXT] < cells[at - CLAIM_FILE + CLAIM_END]
            for at in range(SLOT_SIZE + CLAIM_FILE, self._head[SLOTS] * SLOT_SIZE, SLOT_SIZE)
            if cells[at - CLAIM_FILE + KIND] == CONSUMER
        )

    def peek(self) -> Any:
        """The next item, or EMPTY. With the ledger's store to TAKEN, it is off its lane."""
        head = self._head
        if head[ROLL]:
            self.roll()
        base, _, _ = self._oldest()
        if base < 0:
            if not self.lockless or not self.recall():
                return EMPTY
            base, _, _ = self._oldest()
        cells = self._ledger.cells
        segment, at, place = self._position(base)
        payload, tag, _ = self._record(segment, at)
        pos = segment.file << FILE_SHIFT | at + 1 << PLACE_BITS
        count = self._count(segment, at)
        if count > 1:
            payload = marshal.dumps(self._chunk(base, segment, at)[place])
            if place + 1 < count:
                pos = cells[base + POS] + 1
        head[PAIRS] = HEAD_SIZE + base + READ
        head[PAIRS + 1] = cells[base + READ] + 1
        head[PAIRS + 2] = HEAD_SIZE + base + POS
        head[PAIRS + 3] = pos
        head[ROLL_AT] = head[TAKEN] + head[COMMITS] + 1
        head[ROLL] = 2
        return payload, tag

    def _record(self, segment: Segment, at: int) -> tuple[bytes | bytearray, int, int]:
        """The payload of that record, its tag, and when it was put."""
        start, stamp, tag, small = unpack_entry(segment.map, ENTRY_BYTES * (at + 1))
        if start < 0:
            return small[:~start], tag, stamp
        end = start + segment.cells[ENTRY * (at + 1) + LENGTH]
        if tag & WRITABLE:
            return bytearray(memoryview(segment.map)[start:end]), tag, stamp
        return segment.map[start:end], tag, stamp

    def _count(self, segment: Segment, at: int) -> int:
        """How many items that record holds."""
        cells = segment.cells
        entry = ENTRY * (at + 1)
        return 1 if cells[entry + START] < 0 else cells[entry + COUNT]

    def _chunk(self, base: int, segment: Segment, at: int) -> list[Any]:
        """The items of a chunk, which are of plain types: this runs no user code."""
        payload, _, stamp = self._record(segment, at)
        key = base, segment.file, at, stamp
        if self._opened[0] != key:
            self._opened = key, marshal.loads(payload)
        return self._opened[1]

    def pull_into(self, pending: list[Any]) -> Callable[[], object] | None:
        return None

    def push_from(self, pending: list[Any]) -> Callable[[], object] | None:
        return None

    def unwrap(self, payload: Any) -> tuple[Any, int]:
        data, tag = payload
        if tag == RAW:  # and no producer: an item of a chunk, as `unclaim` has moved it
            return marshal.dumps(data), 0
        return data, tag

    # -- claims ----------------------------------------------------------------------------------

    def claim(self, slot: int, hand: Hand) -> bool:
        """Give *hand* a new claim; its last one is over. False: there is nothing."""
        head = self._head
        if head[ROLL] or head[CUT]:
            self.roll()
        ledger = self._ledger
        now = ledger.now()
        pace = hand.pace_at(now, CLAIM_NS, CLAIM_MOST)
        base, until, queued = self._oldest()
        if base < 0:
            if not self.recall():
                return False
            base, until, queued = self._oldest()
        segment, at, place = self._position(base)
        cells = ledger.cells
        takers = head[CONSUMERS] + head[WORKERS]
        held = queued if takers < 2 else queued + self.claimed()
        head[HIGHEST] = max(head[HIGHEST], held)
        read = cells[base + READ]
        limit = 1
        if pace > 1 and (takers < 2 or queued > SHARED_OUT):
            limit = max(min(pace, queued // max(takers, 1), cells[base + PUT] - read), 1)
        if queued > FEW or now < until:
            until = now
        count = self._count(segment, at)
        entry, entries = 0, b""
        if count > 1:
            # One entry, a part of its items.
            entry, opened, first = at + 1, True, place
            payloads = self._chunk(base, segment, at)[place : place + limit]
            payloads.reverse()
            end = place + len(payloads)
            pos = at + 1 << PLACE_BITS if end == count else at << PLACE_BITS | end
        else:
            full = segment.cells[FULL]
            if full:
                limit = min(limit, full - 1 - at)
            payloads, entries, opened = self._read(segment, at, limit, until)
            first, end = at, at + len(payloads)
            pos = end << PLACE_BITS
        pos |= segment.file << FILE_SHIFT
        count = len(payloads)
        mine = slot * SLOT_SIZE
        claim = base << FILE_SHIFT | segment.file
        taken = head[TAKEN] + count
        # A plan, as `_plan` writes it down, which would take four times as long.
        head[PAIRS] = HEAD_SIZE + base + READ
        head[PAIRS + 1] = read + count
        head[PAIRS + 2] = HEAD_SIZE + base + POS
        head[PAIRS + 3] = pos
        head[PAIRS + 4] = HEAD_SIZE + mine + CLAIM_FILE
        head[PAIRS + 5] = claim
        head[PAIRS + 6] = HEAD_SIZE + mine + CLAIM_ENTRY
        head[PAIRS + 7] = entry
        head[PAIRS + 8] = HEAD_SIZE + mine + CLAIM_NEXT
        head[PAIRS + 9] = first
        head[PAIRS + 10] = HEAD_SIZE + mine + CLAIM_END
        head[PAIRS + 11] = end
        head[PAIRS + 12] = HEAD_SIZE + mine + CLAIM_IDLE
        head[PAIRS + 13] = first
        head[ROLL_AT] = taken + head[COMMITS]
        head[ROLL] = 7
        if hand.view is not cells or hand.next_at != mine + CLAIM_NEXT:
            hand.gate = self._gate(cells, mine + GATE)
        # Together: no call from here to the end, where a signal handler could raise.
        head[TAKEN] = taken
        cells[base + READ] = read + count
        cells[base + POS] = pos
        cells[mine + CLAIM_FILE] = claim
        cells[mine + CLAIM_ENTRY] = entry
        cells[mine + CLAIM_NEXT] = first
        cells[mine + CLAIM_END] = end
        cells[mine + CLAIM_IDLE] = first
        head[ROLL] = 0
        cells[mine + GATE] = count
        hand.view = cells
        hand.next_at = mine + CLAIM_NEXT
        if hand.pending:
            hand.rest = payloads  # which must be returned first: see `unclaim`
        else:
            hand.claim = payloads
        hand.opened = opened
        hand.entries = entries
        hand.next = hand.first = first
        hand.size = count
        return True

    def _read(
        self, segment: Segment, at: int, limit: int, until: int
    ) -> tuple[list[bytes | bytearray], bytes, bool]:
        """The payloads, last one first, and the entries, of up to *limit* records from *at* on.

        And whether these are the items themselves. Those put after *until* are left, but the first
        one, which the caller has chosen.
        """
        cells: Any = segment.cells
        first = ENTRY * (at + 1)
        if limit == 1:
            payload, tag, _ = self._record(segment, at)
            entries = segment.map[8 * first : 8 * first + ENTRY_BYTES]
            return [payload], entries, bool(tag & RAW)
        # There may be fewer entries than items. What lies behind a chunk is not looked at below.
        starts: list[int] = cells[first : first + ENTRY * limit : ENTRY].tolist()
        limit = len(starts)
        entries = segment.map[8 * first : 8 * first + ENTRY_BYTES * limit]
        payloads: list[bytes | bytearray]
        if max(starts) < 0:
            while limit > 1 and cells[first + ENTRY * (limit - 1) + STAMPED] > until:
                limit -= 1
            entries = entries[: ENTRY_BYTES * limit]
            del starts[limit:]
            offsets = range(ENTRY_BYTES - INLINE, len(entries), ENTRY_BYTES)
            payloads = [entries[o : o + ~s] for o, s in zip(offsets, starts, strict=True)]
            payloads.reverse()
            return payloads, entries, False
        payloads = []
        size = 0
        for index in range(at, at + limit):
            if payloads:
                size += cells[first + LENGTH] if cells[first] >= 0 else INLINE
                if (
                    size > CLAIM_BYTES
                    or cells[first + TAG] & RAW
                    or cells[first + STAMPED] > until
                    or self._count(segment, index) > 1
                ):
                    break
            payload, tag, _ = self._record(segment, index)
            payloads += (payload,)
            if tag & RAW:
                return payloads, entries, True
            size = size or len(payload)
            first += ENTRY
        payloads.reverse()
        return payloads, entries, False

    def resume(self, slot: int, hand: Hand) -> bool:
        """Finish what the hand was handed, and see what of its claim is left. False: nothing."""
        if self._head[CUT]:
            self.roll()
        mine = slot * SLOT_SIZE
        cells = self._ledger.cells
        at = hand.next
        left = cells[mine + CLAIM_END] - at
        # In this order: IDLE above NEXT, which a store of both can't prevent, means none in hand.
        cells[mine + CLAIM_IDLE] = at
        claim = hand.rest or hand.claim
        if not self.is_handed_out(slot, hand):
            cells[mine + CLAIM_NEXT] = at
        # Together; of what was taken away, the payloads go as well.
        hand.claim = claim[len(claim) - left :] if left > 0 else []
        hand.rest = []
        cells[mine + GATE] = max(left, 0)
        return left > 0

    def is_handed_out(self, slot: int, hand: Hand) -> bool:
        """Whether the next item of the claim counts as handed out, and was not returned yet.

        Its segment may be written again by now: only the hand still has it.
        """
        mine = slot * SLOT_SIZE
        cells = self._ledger.cells
        return bool(hand.claim) and hand.next < cells[mine + CLAIM_NEXT] <= cells[mine + CLAIM_END]

    def put_back(self, slot: int, hand: Hand) -> None:
        """Finish what the hand was handed; an item whose hand-out was interrupted is put again."""
        self.resume(slot, hand)
        mine = slot * SLOT_SIZE
        if not self.is_handed_out(slot, hand):
            return
        self.roll()
        payload, tag, stamp = hand.claim[-1], hand.tag(), hand.stamp
        if not hand.entries:
            payload = marshal.dumps(payload)
        head = self._head
        lane, put = self._begin_shared()
        self._write(lane, payload, tag, stamp)
        put += 1
        self._plan(
            (HEAD_SIZE + TAIL + (put & 1), lane.tail),
            (HEAD_SIZE + LOW + (put & 1), lane.low),
            (HEAD_SIZE + PUT, put),
            (UNTAKEN, head[UNTAKEN] + 1),
            (HEAD_SIZE + mine + CLAIM_IDLE, hand.next + 1),
            at=head[TAKEN] + head[COMMITS] + 1,
        )
        # Together.
        head[COMMITS] += 1
        hand.next += 1
        del hand.claim[-1]
        self._ledger.cells[mine + GATE] = len(hand.claim)
        self.roll()
        self._ledger.items.notify()

    def unclaim(self, slot: int, hand: Hand, limit: int) -> None:
        """Move up to *limit* items of the claim to the hand's `pending`: they are in hand."""
        head = self._head
        if head[ROLL]:
            self.roll()
        cells = self._ledger.cells
        mine = slot * SLOT_SIZE
        claim = hand.rest or hand.claim
        payloads = claim[-limit:]
        payloads.reverse()
        tags: Iterable[int] = repeat(RAW) if cells[mine + CLAIM_ENTRY] else hand.tags(len(payloads))
        moved = list(zip(payloads, tags))  # noqa: B905 - as many as there are payloads
        count = len(moved)
        rest = claim[:-count]
        at = hand.next + count
        held = cells[mine + IN_HAND] + count
        self._plan(
            (HEAD_SIZE + mine + CLAIM_IDLE, at),
            (HEAD_SIZE + mine + CLAIM_NEXT, at),
            (HEAD_SIZE + mine + IN_HAND, held),
            at=head[TAKEN] + head[COMMITS] + 1,
        )
        # Together, as in `claim`.
        head[COMMITS] += 1
        cells[mine + GATE] = 0
        cells[mine + CLAIM_IDLE] = at
        cells[mine + CLAIM_NEXT] = at
        cells[mine + IN_HAND] = held
        head[ROLL] = 0
        hand.pending += moved
        hand.held += count
        hand.next = at
        # Not within reach of `_hand_out`, until what is pending was returned, and `resume` comes.
        hand.rest = rest
        hand.claim = []

    def cut(self, slot: int, leave: int = 0) -> int:
        """Take the rest of a consumer's claim away, but for *leave* records: they are put again.

        Returns how many came back. Until that is committed, `roll` gives them to their claim again.
        """
        head = self._head
        if head[ROLL] or head[CUT]:
            self.roll()
        cells = self._ledger.cells
        mine = slot * SLOT_SIZE
        end = cells[mine + CLAIM_END]
        if cells[mine + CLAIM_NEXT] >= end:
            return 0
        # In this order: from the store to CUT on, `roll` would undo it.
        head[CUT_END] = end
        head[CUT] = slot
        cells[mine + GATE] = 0
        assert self._fences is not None
        self._fences.renew()()
        # What the consumer was handed meanwhile, or will find to be, stays its own.
        left = max(end - cells[mine + CLAIM_NEXT], 0)
        count = max(left - leave, 0)
        cells[mine + CLAIM_END] = at = end - count
        if not count:
            head[CUT] = 0
            cells[mine + GATE] = left
            return 0
        put = cells[PUT]
        tail, low = cells[TAIL + (put & 1)], cells[LOW + (put & 1)]
        if not head[STATE] & CANCELLED:  # else all is dropped next, and needs no room for that
            tail, low = self._put_again(mine, at, end)
        put += count
        self._commit(
            (HEAD_SIZE + TAIL + (put & 1), tail),
            (HEAD_SIZE + LOW + (put & 1), low),
            (HEAD_SIZE + PUT, put),
            (UNTAKEN, head[UNTAKEN] + count),
            (CUT, 0),
        )
        cells[mine + GATE] = left - count
        self._ledger.items.notify(count)
        return count

    def _put_again(self, mine: int, at: int, end: int) -> tuple[int, int]:
        """Write those records of a claim on lane 0. Returns what its TAIL and LOW are then."""
        cells = self._ledger.cells
        base, file = divmod(cells[mine + CLAIM_FILE], 1 << FILE_SHIFT)
        segment = self._segment(base, file)
        entry = cells[mine + CLAIM_ENTRY] - 1
        lane, _ = self._begin_shared()
        for index in range(at, end):
            payload, tag, stamp = self._record(segment, index if entry < 0 else entry)
            if entry >= 0:
                payload = marshal.dumps(self._chunk(base, segment, entry)[index])
            self._write(lane, payload, tag, stamp)
        return lane.tail, lane.low

    def recall(self) -> int:
        """For somebody who has nothing: take half of what another one has claimed, at least one."""
        cells = self._ledger.refreshed()
        most, victim = 0, 0
        for slot in range(1, self._head[SLOTS]):
            at = slot * SLOT_SIZE
            if cells[at + KIND] == CONSUMER:
                rest = cells[at + CLAIM_END] - cells[at + CLAIM_NEXT]
                if rest > most:
                    most, victim = rest, slot
        return self.cut(victim, most // 2) if victim else 0

    # -- the end ---------------------------------------------------------------------------------

    def clear(self) -> None:
        """All was dropped. The files go, so that their memory can; who writes one goes on.

        That of lane 0 stays which is written: others may have to put back what they have in hand.
        """
        cells = self._ledger.cells
        last = self._name(0, cells[TAIL + (cells[PUT] & 1)] >> FILE_SHIFT)
        try:
            names: Iterable[str] = os.listdir(self._path)
        except FileNotFoundError:
            return
        for name in names:
            if name.startswith("s") and f"{self._path}/{name}" != last:
                self._unlink(f"{self._path}/{name}")

    # -- segment files ---------------------------------------------------------------------------

    def _name(self, base: int, file: int) -> str:
        return f"{self._path}/s{base // SLOT_SIZE}.{file}"

    def _segment(self, base: int, file: int) -> Segment:
        kept = self._kept.get(base)
        segment = None if kept is None else kept.get(file)
        if segment is None:
            try:
                fd = os.open(self._name(base, file), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                raise self._gone() from None
            try:
                segment = Segment(file, fd)
            finally:
                os.close(fd)
            self._keep(base, segment)
        return segment

    def _keep(self, base: int, segment: Segment) -> None:
        if segment.size > KEPT_SIZE:
            return  # its memory shall go with its file
        kept = self._kept.setdefault(base, {})
        for old in list(kept)[: len(kept) + 1 - KEPT]:  # another thread may keep one just now
            kept.pop(old, None)
        kept[segment.file] = segment

    def _forget(self, base: int, file: int) -> None:
        self._kept.get(base, {}).pop(file, None)
        self._unlink(self._name(base, file))

    def _gone(self) -> Exception:
        """Somebody else has removed the directory; every process of the queue sees the bit."""
        if self._head[STATE] & CANCELLED:
            return self._ledger.refusal()  # it was `clear`
        self._head[STATE] |= BROKEN
        return ChannelBroken(REMOVED_BY_OTHERS)

    def _unlink(self, name: str) -> None:
        try:
            os.unlink(name)
        except FileNotFoundError:
            pass


def _parts(pos: int) -> tuple[int, int, int]:
    """Of a position: file, index of the entry, place in the chunk."""
    return pos >> FILE_SHIFT, pos >> PLACE_BITS & INDEX_MASK, pos & PLACE_MASK


def reserve(fd: int, size: int) -> None:
    """Make the file *size* bytes long, its room reserved: a later store can't find the disk full.

    Raises OSError (ENOSPC, EFBIG) where there is no room.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)
    else:
        os.ftruncate(fd, size)

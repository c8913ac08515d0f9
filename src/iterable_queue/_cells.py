"""The layout of the ledger's cells: which integer means what.

The head has one cell for each count of the queue. Behind it come slots of equal size, one for each
open endpoint, for the queue itself, for each process that takes part, and for each lane of its log;
slot 0 is nobody's, but for the cells of a lane, which are those of the lane that all share.
"""

# Annotations are evaluated; `_protocols` says why.

from typing import Final, NamedTuple

# The cells of the head.
STATE: Final = 0  # CLOSED | CANCELLED | ABANDONED | BROKEN
MAXSIZE: Final = 1  # most items queued; 0: unbounded
LEAN: Final = 2  # of the hand-outs, those counted in hands
TAKEN: Final = 3  # hand-outs to user code under the lock
LAYOUT: Final = 4  # LAYOUT_OF_THIS; 0 while the queue is being made
LOST: Final = 5  # items in the hands of killed consumers, not handed out again
RETURNED: Final = 6  # hand-outs taken back: undelivered ones of a closed consumer, redeliveries
REDELIVERED: Final = 7  # of these, those of killed consumers
DROPPED: Final = 8  # items dropped by cancel
PRODUCERS: Final = 9  # open producers
CONSUMERS: Final = 10  # open consumers
WORKERS: Final = 11  # open workers
BUSY: Final = 12  # reasons for which a worker counts as an open producer
EVER: Final = 13  # consumers and workers ever opened; NONE_EVER: none, and none can come
FAILED: Final = 14  # failures recorded
NUMBERS: Final = 15  # the last number given to an endpoint
HIGHEST: Final = 16  # the highest value of queued
SLOTS: Final = 17  # slots in use or on the free list; slot 0 is nobody
FREE_SLOT: Final = 18  # first slot of the free list, linked through NEXT
WAIT_ITEM: Final = 19  # consumers announced as waiting for an item (or the end)
WAIT_ROOM: Final = 20  # producers announced as waiting for room (or the end)
WAIT_END: Final = 21  # callers of join announced as waiting for the end
HOLDER: Final = 22  # slot of the process inside the lock; negated pid of one without a slot
CANCEL_ON_FAILURE: Final = 23  # 1: a failure cancels the queue
HANDLE: Final = 25  # slot of the process that alone can make endpoints; 0: others may, or none
REDELIVER: Final = 24  # times that an item is handed out at most if its takers are killed; 0: once
MADE_AT: Final = 28  # when the queue was made, ns since 1970
LOCKLESS: Final = 27  # 1: producers put and consumers take without the lock (see `_channels.log`)
WATCHED: Final = 26  # above 0: somebody is told of each endpoint made (see `Core.watch`)
ROLL: Final = 32  # above 0: the channel has a plan to be rolled forward (see `_channels.log`)
LOOP_ITEM: Final = 33  # of those in WAIT_ITEM, coroutines, which event loops wake (`Fifo`)
LOOP_ROOM: Final = 34  # likewise, of those in WAIT_ROOM
LOOP_END: Final = 35  # likewise, of those in WAIT_END
CHANNEL: Final = 36  # from here on the cells are the channel's
HEAD_SIZE: Final = 64

LAYOUT_OF_THIS: Final = int.from_bytes(b"iterq\0\2", "big")
"""What these cells mean, and where they are. Its last byte is raised by whoever changes that."""

# Bits of STATE.
CLOSED: Final = 1
CANCELLED: Final = 2
ABANDONED: Final = 4
BROKEN: Final = 8

NONE_EVER: Final = -1
"""In EVER: there was no consumer, and none can come, since what makes them is gone."""

# The cells of a slot.
KIND: Final = 0
NUMBER: Final = 1  # of the endpoint; of a process slot: its pid
FLAGS: Final = 2
GENERATION: Final = 3  # takes so far
OWNER: Final = 4  # slot of the process that took it; 0: untaken
MAKER: Final = 5  # slot of the process that made it; 0: that process has gone
ROAD: Final = 6  # slot of the process that pickled it, or of the one being started with it
LINEAGE: Final = 7  # number of the lock that is inherited by the children that may hold a copy
IN_HAND: Final = 8  # items handed out and not finished
BLOCKED: Final = 9  # threads waiting in a call
STAMP: Final = 10  # when it last did anything, ns
NEXT: Final = 11  # next free slot
AT: Final = 12  # the value of TAKEN that its last change of IN_HAND goes with
HAD: Final = 13  # and the value of IN_HAND before that change
CLAIM_FILE: Final = 14  # of a consumer's claim: the lane, and below it the file (`_channels.log`)
CLAIM_NEXT: Final = 15  # the next of its records to be handed out
CLAIM_END: Final = 16  # the first one behind it
CLAIM_IDLE: Final = 17  # the value of CLAIM_NEXT at which its taker last came back for more
CLAIM_ENTRY: Final = 18  # 1 + the index of the chunk of which it is a part; 0: of whole records
GATE: Final = 19  # four cells, a semaphore: how many of them may be handed out without the lock
DEALT_WITH: Final = 23  # of a dead one on a queue that redelivers: items in hand that were put back
TEXT: Final = 24  # the line of user code that made it, as bytes
LANE_CELLS: Final = 19  # of a lane, which has no claim and no text: from here on, the channel's
SLOT_SIZE: Final = 40

# The cells of slot 0 are those of a slot for nobody but lane 0, so there is room for another text.
SITE: Final = 1
"""From here on: the line of user code that made the queue, as bytes; as long as a slot's TEXT."""

NUMBER_MASK: Final = (1 << 46) - 1
WRITABLE: Final = 1 << 46
RAW: Final = 1 << 47
TRIES_SHIFT: Final = 48
"""An item's tag is its producer's number; RAW, if its payload is the item itself, which is bytes;
WRITABLE, if its payload is read as a bytearray, which then is the item or what that refers to; and
above that, how often it was redelivered."""

MAX_DELIVERIES: Final = 3
"""How often an item is handed out at most on a redelivering queue, if nobody says how often."""
MOST_DELIVERIES: Final = 10_000
"""More than these can't be asked for. A tag has room for three times as many."""

# Kinds of slot.
FREE: Final = 0
PRODUCER: Final = 1
CONSUMER: Final = 2
WORKER: Final = 3
QUEUE: Final = 4  # the queue itself, which counts as a producer until it is closed
PROCESS: Final = 5
LANE: Final = 6  # one producer's part of the log
KIND_NAMES: Final = ("free slot", "producer", "consumer", "worker", "queue", "process", "lane")

# Flags of a slot.
USED: Final = 1  # it has done something, and stays where it is
UNASKED: Final = 2  # a worker that has not called get yet
STARTED: Final = 4  # given to a process as that was started
SENT: Final = 8  # pickled in some other way
FORKED: Final = 16  # a child was forked while it was untaken
DROPPED_COPY: Final = 32  # the copy in the process that last had it was dropped
HAS_PUT: Final = 64  # a worker that has put something before it called get
CUT_SHORT: Final = 128  # a worker that was killed, and what it had in hand is lost
TOLD: Final = 256  # its failure is recorded; it is about to be closed


class SlotView(NamedTuple):
    """One slot, read out for people."""

    slot: int
    kind: int
    number: int
    flags: int
    owner: int
    maker: int
    road: int
    lineage: int
    in_hand: int
    blocked: int
    stamp: int
    text: str

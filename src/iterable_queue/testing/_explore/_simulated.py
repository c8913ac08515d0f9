"""The runtime that explored queues get through the library's seam: lock, conditions, clock, cells.

What runs on it is what ships: `Ledger`, `Core.wait`, the endpoints, `ThreadChannel`. Each point of
the scheduler is in one of the things below, before something that another actor could notice:

* taking the lock;
* sleeping on a condition. A sleeper wakes by a token, whichever of them is scheduled first, or by
  a deadline of its own. The slices in which it really sleeps don't end here, or they would hide
  wake-ups that were forgotten; only after a death, which sleepers find by looking, a slice may end
  once nobody else can go on;
* on a queue for threads, whose fast paths take no lock: each access to the items, and each access
  to a cell by which those who hold the lock and those who don't talk to each other.

A queue of processes is one set of cells and items, and for each actor a `Core` and a `Ledger` of
its own over them, with a process's slot of its own. Items are pickled. An actor that dies stores
nothing any more, whatever its `finally` clauses call; if that was inside the lock, the next one who
wants it takes it over and mends, as `SharedCore` does.

Cells write down which of them a transition reads and changes. Three things are left out, because
nobody decides by them: HOLDER, which is 0 again whenever the lock is free; STAMP; and FREE_SLOT,
which only says which of several free slots, all alike, is used next.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from functools import cache, partial
from queue import Queue, SimpleQueue
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar, cast

from iterable_queue._cells import (
    BLOCKED,
    CONSUMER,
    FREE,
    FREE_SLOT,
    HEAD_SIZE,
    HOLDER,
    KIND,
    MAKER,
    OWNER,
    PROCESS,
    PRODUCER,
    QUEUE,
    SLOT_SIZE,
    STAMP,
    STATE,
    WAIT_END,
    WAIT_ITEM,
    WAIT_ROOM,
    WORKER,
    SlotView,
)
from iterable_queue._channel import Hand
from iterable_queue._channels.threads import ThreadChannel
from iterable_queue._core import BRIEFLY_S, Core, Mark
from iterable_queue._endpoints import Endpoint
from iterable_queue._errors import EndpointElsewhere, pack_error, repr_of, unpack_error
from iterable_queue._ledger import Ledger
from iterable_queue._pickling import pickling
from iterable_queue._runtime import Condition, LocalErrors, guard, is_lock_busy
from iterable_queue.testing._explore._scheduler import (
    EVERYTHING,
    LOCK,
    RUN,
    SLEEP,
    STEP,
    USER,
    Actor,
    Kind,
    Schedule,
)

if TYPE_CHECKING:
    from iterable_queue._seams import Cells as AnyCells
    from iterable_queue._seams import ErrorStore, Lock, Semaphore

R = TypeVar("R")

BITS: Final = 512
"""Bits of footprint for each queue: its head, its own things, then two for each slot."""
THE_LOCK: Final = HEAD_SIZE
THE_ITEMS: Final = HEAD_SIZE + 1
TOKENS: Final = HEAD_SIZE + 2  # one for each of the three conditions
SLOT_BITS: Final = HEAD_SIZE + 8
SHARED_CELLS: Final = (STATE, WAIT_ITEM, WAIT_ROOM)
"""The cells of a queue for threads that are read without the lock."""

USERS, TESTING, LIBRARY = range(3)
"""Whose code a module is."""

_plain: Any = list
_get: Callable[[Any, Any], Any] = _plain.__getitem__
_set: Callable[[Any, Any, Any], None] = _plain.__setitem__


class QuietCells(list[int]):
    """Cells while the scenario makes its queues and actors, alone.

    Attributes:
        bits: the bit of footprint of each cell. every: those of all.
        schedule: whom the cells tell of what is done to them, once `loud` was called.
    """

    __slots__ = ("bits", "every", "lock", "schedule")

    bits: list[int]
    every: int
    schedule: Schedule
    lock: SimulatedLock

    def loud(self, kind: type[Cells]) -> None:
        """From here on, what is read and changed counts."""
        cells: Any = self
        cells.__class__ = kind

    def quiet(self) -> None:
        """From here on, nothing counts any more."""
        cells: Any = self
        cells.__class__ = QuietCells


class Cells(QuietCells):
    """Cells that tell the schedule which of them are read, and which change."""

    __slots__ = ()

    def __getitem__(self, index: Any) -> Any:
        try:
            self.schedule.reads |= self.bits[index]
        except TypeError:  # a slice: of one slot, or of them all
            first, last = index.start or 0, (index.stop or 0) - 1
            one = first // SLOT_SIZE == last // SLOT_SIZE
            self._read_all(self.bits[first] * 3 if one else self.every)
        return _get(self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        schedule = self.schedule
        actor = schedule.current
        if actor.guarded or schedule.over:
            if actor.dead or schedule.over:
                return
            if actor.inside:
                schedule.survives()
        if _get(self, index) != value:
            schedule.writes |= self.bits[index]
            _set(self, index, value)

    def _read_all(self, bits: int) -> None:
        self.schedule.reads |= bits


_read = Cells.__getitem__
_store = Cells.__setitem__


class ThreadCells(Cells):
    """The head of a queue for threads, parts of which are read without the lock."""

    __slots__ = ()

    def __getitem__(self, index: Any) -> Any:
        if index in SHARED_CELLS and self.lock.holder is not self.schedule.current:
            self.lock.thread_point(STEP)
        return _read(self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        if index in SHARED_CELLS and _get(self, index) != value and not self.schedule.over:
            self.lock.thread_point(STEP)
        _store(self, index, value)


class SimulatedLock:
    """The lock of one queue. One object serves that queue in all schedules of an exploration.

    `guard` makes a class, which takes longer than a short schedule; hence.
    """

    def __init__(self, index: int) -> None:
        base = index * BITS + 1
        self.bit = 1 << base + THE_LOCK
        self.items_bit = 1 << base + THE_ITEMS
        self.token_bits = [1 << base + TOKENS + i for i in range(3)]
        self.head_bits = [1 << base + i for i in range(HEAD_SIZE)]
        self.head_bits[HOLDER] = self.head_bits[FREE_SLOT] = 0
        self.every = (1 << base + BITS) - (1 << base + SLOT_BITS)
        self._base = base
        self._slot_bits: list[int] = []
        self.holder: Actor | None = None
        self.threaded = False
        self.schedule: Schedule = cast("Schedule", None)
        self.guard: Lock = guard(self._acquire, self._release)

    def slot_bits(self, count: int) -> list[int]:
        """The bits of *count* cells of slots."""
        bits = self._slot_bits
        while len(bits) < count:
            slot = min(len(bits) // SLOT_SIZE, (BITS - SLOT_BITS) // 2 - 1)
            own = 1 << self._base + SLOT_BITS + 2 * slot
            row = [own] * SLOT_SIZE
            row[BLOCKED] = own << 1
            row[STAMP] = 0
            bits += row
        return bits

    def begin(self, schedule: Schedule, threaded: bool) -> None:
        """Serve a queue of this schedule."""
        self.schedule = schedule
        self.holder = None
        self.threaded = threaded

    def _acquire(self) -> bool:
        if self.threaded:
            self.thread_point(LOCK)
        else:
            self.schedule.point(LOCK, self)
        me = self.schedule.current
        if self.holder is not None and self.holder is not me:
            return False  # its holder is dead, and a slice has passed
        self.holder = me
        return True

    def _release(self, *_: object) -> None:
        schedule = self.schedule
        if schedule.over or schedule.current.dead:
            return
        self.holder = None
        if self.threaded:
            schedule.writes |= self.bit

    def thread_point(self, kind: Kind) -> None:
        """A point on a queue for threads, where what user code shares counts as well."""
        schedule = self.schedule
        actor = schedule.current
        if actor is schedule.main and not schedule.over:
            return  # the scenario or its check, for which nothing is decided here
        actor.threaded = True
        frame = outermost_call(3)
        if frame is not actor.call:
            actor.call = frame
            schedule.writes |= USER
        if kind is LOCK and self.holder is actor:
            return
        schedule.point(kind, self)
        if kind is LOCK:
            schedule.writes |= self.bit


def outermost_call(depth: int) -> FrameType | None:
    """The frame of the library's that user code called, looked for from *depth* frames up."""
    frame: FrameType | None = sys._getframe(depth)  # pyright: ignore[reportPrivateUsage]
    found = None
    while frame is not None:
        whose = _whose(frame.f_globals.get("__name__", ""))
        if whose == LIBRARY:
            found = frame
        elif found is not None and whose == USERS:
            break
        frame = frame.f_back
    return found


@cache  # asked for each frame of each point
def _whose(module: str) -> int:
    if module.startswith("iterable_queue.testing."):
        return TESTING
    return LIBRARY if f"{module}.".startswith("iterable_queue.") else USERS


class SimulatedSemaphore:
    """Counts tokens. Who gets one is whoever is scheduled first."""

    __slots__ = ("bit", "purpose", "schedule", "tokens")

    def __init__(self, schedule: Schedule, bit: int, purpose: str) -> None:
        self.schedule = schedule
        self.bit = bit
        self.purpose = purpose
        self.tokens = 0

    def acquire(self, block: bool = True, timeout: float | None = None, /) -> bool:
        """Without waiting; who waits does so in `SimulatedCondition.sleep`."""
        schedule = self.schedule
        if schedule.over or schedule.current.dead:
            return False
        schedule.writes |= self.bit
        if not self.tokens:
            return False
        self.tokens -= 1
        return True

    def release(self) -> None:
        schedule = self.schedule
        if schedule.over or schedule.current.dead:
            return
        schedule.writes |= self.bit
        self.tokens += 1


class SimulatedCondition(Condition):
    """The shipped condition, but for the sleep."""

    __slots__ = ("_schedule", "_tokens")

    def __init__(self, head: AnyCells, index: int, semaphore: SimulatedSemaphore) -> None:
        super().__init__(head, index, cast("Semaphore", semaphore))
        self._tokens = semaphore
        self._schedule = semaphore.schedule

    def sleep(self, timeout_s: float) -> bool:
        schedule = self._schedule
        deadline = None
        if timeout_s != float("inf"):
            deadline = schedule.clock_ns + int(timeout_s * 1e9) + 1
            schedule.special = True
        if schedule.point(SLEEP, self._tokens, deadline) != RUN:
            return False
        # The look that follows needs no point of its own: a token in hand is nobody else's.
        schedule.current.entered = False
        return self._tokens.acquire(False)


class PickledErrors(LocalErrors):
    """Errors as they come out of another process."""

    def pack(self, error: BaseException) -> Any:
        return pack_error(error)

    def add_failure(self, packed: Any) -> tuple[tuple[int, int], ...]:
        return super().add_failure(unpack_error(packed))

    def set_reason(self, packed: Any) -> None:
        super().set_reason(unpack_error(packed))


class SimulatedRuntime:
    """What the ledgers of one queue run on."""

    def __init__(self, schedule: Schedule, lock: SimulatedLock, threaded: bool) -> None:
        self._schedule = schedule
        self._lock = lock
        lock.begin(schedule, threaded)
        head = QuietCells([0] * HEAD_SIZE)
        head.schedule, head.bits, head.every, head.lock = schedule, lock.head_bits, lock.every, lock
        self.head: AnyCells = head
        self._slots = slots = QuietCells()
        slots.schedule, slots.bits, slots.every = schedule, [], lock.every
        self.lock: Lock = lock.guard
        self.trylock: Lock = lock.guard
        self.items: Condition
        self.room: Condition
        self.end: Condition
        self.items, self.room, self.end = (
            SimulatedCondition(head, index, SimulatedSemaphore(schedule, bit, purpose))
            for index, bit, purpose in zip(
                (WAIT_ITEM, WAIT_ROOM, WAIT_END),
                lock.token_bits,
                ("an item", "room", "the end"),
                strict=True,
            )
        )
        self.errors: ErrorStore = LocalErrors() if threaded else PickledErrors()

    def begin(self) -> None:
        """The actors begin to run."""
        cast("QuietCells", self.head).loud(ThreadCells if self._lock.threaded else Cells)
        self._slots.loud(Cells)

    def quiet(self) -> None:
        """They have ended."""
        cast("QuietCells", self.head).quiet()
        self._slots.quiet()

    def now(self) -> int:
        return self._schedule.clock_ns

    def monotonic(self) -> float:
        # Time passes for all at once, so what was done since the last point is not the actor's own
        # business any more, and needs the next point.
        self._schedule.current.entered = True
        return self._schedule.clock_ns / 1e9

    def lock_within(self, timeout_s: float) -> Lock:
        return self.lock

    def cells(self, count: int) -> AnyCells:
        slots = self._slots
        if len(slots) < count:
            slots.extend([0] * (count - len(slots)))
            slots.bits = self._lock.slot_bits(count)
        return slots


class ThreadItems(SimpleQueue[Any]):
    """The items of a queue for threads: one point before each access."""

    lock: SimulatedLock

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        self.lock.thread_point(STEP)
        schedule = self.lock.schedule
        schedule.writes |= self.lock.items_bit
        if schedule.recorder is not None:
            schedule.recorder.note(schedule.current, "")
        super().put(item)

    def get_nowait(self) -> Any:
        self.lock.thread_point(STEP)
        schedule = self.lock.schedule
        schedule.writes |= self.lock.items_bit
        item = super().get_nowait()
        if schedule.recorder is not None:
            schedule.recorder.note(schedule.current, f"-> {repr_of(item)}")
        return item

    def qsize(self) -> int:
        self.lock.thread_point(STEP)
        self.lock.schedule.reads |= self.lock.items_bit
        return super().qsize()


class _Deque(Queue[Any]):
    """`queue.Queue` for its items alone: without the locks, which the channel passes by."""

    def __init__(self) -> None:
        self.queue = deque()
        self.maxsize = 0


class Records(ThreadChannel):
    """The shipped in-process channel for items that are pickled, with the number of who put them.

    All processes of a queue share it. It is only called with the lock held, but for `size`.
    """

    __slots__ = ("_lock", "_schedule")

    def __init__(self, head: AnyCells, lock: SimulatedLock, schedule: Schedule) -> None:
        super().__init__(head, _Deque())
        self._lock = lock
        self._schedule = schedule

    def size(self) -> int:
        schedule = self._schedule
        actor = schedule.current
        if self._lock.holder is not actor and not schedule.over:
            schedule.point(STEP, self._lock)
            size = super().size()
            actor.yielded = actor.last_size == size  # it may be polling
            actor.last_size = size
            schedule.reads |= self._lock.items_bit
            return size
        actor.last_size = None
        schedule.reads |= self._lock.items_bit
        return super().size()

    def append(self, payload: Any, producer: int) -> None:
        schedule = self._schedule
        if schedule.current.dead or schedule.over:
            return
        if schedule.current.inside:
            schedule.survives()
        schedule.writes |= self._lock.items_bit
        super().append((payload, producer), producer)

    def peek(self) -> Any:
        self._schedule.writes |= self._lock.items_bit
        return super().peek()

    def unwrap(self, payload: Any) -> tuple[Any, int]:
        return cast("tuple[Any, int]", payload)


class SimulatedLedger(Ledger):
    """The shipped ledger; it says when it reads what threads count without the lock."""

    __slots__ = ()

    def fold(self) -> None:
        cast("QuietCells", self.head).schedule.reads |= USER
        super().fold()


class SimulatedCore(Core):
    """One actor's part in a queue of processes, or everybody's in a queue for threads.

    Attributes:
        actor: whose it is; the scenario's own for one that is for threads.
        shared: what all parts of the queue share.
    """

    # Held until the schedule is over, so that no moment of it depends on the collector.
    endpoint_set: Callable[[], Any] = set
    others_may_look = False
    gather = 1  # of a list that is put, the real queue may show any part before the rest

    def __init__(self, shared: SharedQueue, actor: Actor) -> None:
        super().__init__(shared.runtime, SimulatedLedger(shared.runtime, shared.channel))
        self.leaks = None
        self.actor = actor
        self.shared = shared
        self._schedule = shared.schedule
        if not shared.threaded:
            self.dumps, self.loads = shared.dumps, shared.loads
            if shared.redeliver:
                self.ledger.lease = self._write_lease

    # -- whose it is -----------------------------------------------------------------------------

    def join_in(self) -> None:
        """Take part, as a process."""
        prepare: Callable[[int], None] = lambda slot: None  # noqa: E731
        self.ledger.me = self.transact(self.ledger.open_process, self.actor.index + 1, prepare)
        self.shared.processes[self.ledger.me] = self.actor

    def check_here(self) -> None:
        current = self._schedule.current
        if current is not self.actor and not self.shared.threaded and not self._schedule.over:
            raise EndpointElsewhere(
                f"{current.name} is a process of its own in an exploration, and this belongs to "
                f"{self.actor.name}: pass it to sim.spawn as an argument"
            )

    def name_of(self, process: int) -> str:
        actor = self.shared.processes.get(process)
        if actor is None:
            return "a process that has ended"
        return f"actor {actor.name}" if actor.index else actor.name

    def whose(self, slot: int, number: int) -> tuple[str | None, int]:
        """Nothing that would have to be read: that might be a point of the schedule."""
        return f" of {self.actor.name}", 0

    def describe(self) -> str:
        """Likewise."""
        return "explored"

    def is_alive(self, process: int) -> bool:
        actor = self.shared.processes.get(process)
        return actor is not None and not actor.dead

    def drop(self, slot: int, number: int, mark: Mark | None = None) -> None:
        """Nothing is dropped before the schedule is over, and then nothing counts."""

    def mark(self, handle: object, slot: int, number: int) -> None:
        """Likewise."""

    # -- the lock, and death ---------------------------------------------------------------------

    def transact_until(self, deadline: float | None, call: Callable[[], object]) -> bool:
        actor = self._schedule.current
        if (
            not self.shared.threaded
            and getattr(call, "__func__", None) is Endpoint._use_locked  # pyright: ignore[reportPrivateUsage]
            and self.shared.lock.holder is None
            and self._schedule.merging
            and actor.is_safe()
        ):
            # Taking an endpoint into use touches nothing that is anybody else's, so it needs no
            # point (it moves both ways past whatever others do).
            entered, actor.entered = actor.entered, False
            self.transact(call)
            actor.entered = entered
            return True
        return super().transact_until(deadline, call)

    def lock_was_busy(self, error: KeyError) -> None:
        if not is_lock_busy(error):
            raise error
        lock = self.shared.lock
        if lock.holder is not None and lock.holder.dead:
            ledger = self.ledger
            self._schedule.reads = self._schedule.writes = EVERYTHING
            lock.holder = self._schedule.current
            ledger.head[HOLDER] = ledger.me
            ledger.mend()
            ledger.head[HOLDER] = 0
            lock.holder = None

    def look(self, patience_s: float = BRIEFLY_S) -> None:
        if self._schedule.deaths and not self.shared.threaded:
            self.transact(self._bury_the_dead)

    def look_now_and_then(self) -> None:
        self.look()

    def _bury_the_dead(self) -> None:
        ledger = self.ledger
        for slot, actor in list(self.shared.processes.items()):
            if not actor.dead or ledger.cells[slot * SLOT_SIZE + KIND] != PROCESS:
                continue
            for view in list(ledger.views(PRODUCER, CONSUMER, WORKER, QUEUE)):
                if view.owner == slot:
                    self.bury_endpoint(view, "was killed, without close()")
                    self.shared.leases.pop(view.slot, None)
                elif view.maker == slot and not view.owner:
                    self.end(view, "was never taken, and the process that made it was killed")
            del self.shared.processes[slot]
            ledger.release_process(slot)
        ledger.settle()

    def has(self, slot: int) -> bool:
        """`is_mine`, past the footprint: while an actor lives, nobody else ends what it owns."""
        cells = self.ledger.cells
        base = slot * SLOT_SIZE
        owner, me = _get(cells, base + OWNER), self.ledger.me
        return bool(owner == me or (owner == 0 and _get(cells, base + MAKER) == me))

    def leave(self, how: str, cause: BaseException | None = None) -> None:
        """The actor's function has ended: what it left open ends as that of a process does."""
        cells = self.ledger.cells
        for base in range(SLOT_SIZE, len(cells), SLOT_SIZE):
            if _get(cells, base + KIND) not in (FREE, PROCESS) and self.has(base // SLOT_SIZE):
                self.transact(self._leave, how, cause)
                break

    def _left_open(self) -> list[SlotView]:
        views = self.ledger.views(PRODUCER, CONSUMER, WORKER, QUEUE)
        return [view for view in views if self.is_mine(view)]

    def _leave(self, how: str, cause: BaseException | None) -> None:
        for view in self._left_open():
            if view.owner or (view.kind == QUEUE and cause is not None):
                self.end(view, how, cause)
            else:
                self.ledger.close(view.slot, view.number)
            self.shared.leases.pop(view.slot, None)
        del self.shared.processes[self.ledger.me]
        self.ledger.release_process(self.ledger.me)

    # -- redelivery ------------------------------------------------------------------------------

    def _write_lease(self, slot: int, last: Hand) -> None:
        actor = self._schedule.current
        if actor.dead or self._schedule.over:
            return
        if actor.inside:
            self._schedule.survives()
        hands = [hand for hand in self.ledger.hands[slot].values() if hand is not last]
        self.shared.leases[slot] = [item for hand in (*hands, last) for item in hand.kept]
        self._schedule.writes |= self.shared.lock.items_bit

    def kept_in_hand(self, view: SlotView) -> list[tuple[Any, int]]:
        return self.shared.leases.get(view.slot, [])

    # -- what came of a call ---------------------------------------------------------------------

    def awaiting(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise _no_loops()

    def give_way(self) -> NoReturn:
        raise _no_loops()

    def wait(self, *args: Any, **kwargs: Any) -> bool:
        me = self._schedule.current
        recorder = self._schedule.recorder
        try:
            done = super().wait(*args, **kwargs)
        except Exception as error:
            if recorder is not None:
                recorder.note(me, f"-> {type(error).__name__}")
            raise
        if not done:
            me.yielded = True
            if recorder is not None:
                recorder.note(me, "-> nothing in time")
        return done


def _no_loops() -> TypeError:
    return TypeError(
        "coroutines can't be explored: their switches are the event loop's, not the explorer's. "
        "Explore the code that does not await, and test the rest on a FakeQueue or a real queue"
    )


class SharedQueue:
    """What the parts of one explored queue share.

    Attributes:
        index: which of its scenario's queues it is, from 0.
        processes: the actor for each slot of a process.
        leases: what consumers have in hand, by slot, where items are redelivered.
    """

    def __init__(
        self,
        schedule: Schedule,
        lock: SimulatedLock,
        index: int,
        maxsize: int,
        *,
        threaded: bool,
        cancel: bool,
        deliveries: int,
    ) -> None:
        self.schedule = schedule
        self.lock = lock
        self.index = index
        self.threaded = threaded
        self.redeliver = deliveries > 0
        self.processes: dict[int, Actor] = {}
        self.leases: dict[int, list[tuple[Any, int]]] = {}
        self.runtime = SimulatedRuntime(schedule, lock, threaded)
        self.channel: ThreadChannel
        items = ThreadItems()
        items.lock = lock
        if threaded:
            self.channel = ThreadChannel(self.runtime.head, items)
        else:
            self.channel = Records(self.runtime.head, lock, schedule)
            dumps, loads = _pickling()
            self.dumps, self.loads = dumps, loads
            if schedule.recorder is not None:
                self.loads = partial(_noted, schedule, loads)
        self.core = core = SimulatedCore(self, schedule.main)
        core.ledger.set_up(maxsize, cancel=cancel, deliveries=deliveries)
        core.join_in()
        if threaded:
            core.append_now = items.put
            core.size_now = items.qsize


def _noted(schedule: Schedule, loads: Callable[[Any], Any], payload: Any) -> Any:
    item = loads(payload)
    assert schedule.recorder is not None
    schedule.recorder.note(schedule.current, f"-> {repr_of(item)}")
    return item


_pickler: tuple[Callable[[Any], bytes], Callable[[Any], Any]] | None = None


def _pickling() -> tuple[Callable[[Any], bytes], Callable[[Any], Any]]:
    """Items cross as those of multiprocessing do."""
    global _pickler
    if _pickler is None:
        _pickler = pickling("multiprocessing")
    return _pickler

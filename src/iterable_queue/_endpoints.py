"""The endpoints that users hold: what is common to all channels, written once.

A call goes: check that the endpoint is this process's (once; then `_ready` says so), pickle or
hand over, one transition of the ledger, and, where that can't be made now, `Core.wait`. Calls for
coroutines go on in `_aio`, when they can't be done with at once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, compress, cycle, islice, repeat
from marshal import dumps as marshal_dumps
from marshal import loads as marshal_loads
from operator import attrgetter, getitem, itemgetter, setitem
from os import sched_yield
from queue import Empty, Full, SimpleQueue
from threading import get_ident
from types import FrameType, FunctionType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, Self, TypeAlias, TypeVar, cast

from iterable_queue import _cells as cells_
from iterable_queue._cells import (
    CLOSED,
    CONSUMER,
    KIND_NAMES,
    MAXSIZE,
    PRODUCER,
    STATE,
    WAIT_ITEM,
    WAIT_ROOM,
    WATCHED,
    WORKER,
)
from iterable_queue._channel import (
    EMPTY,
    ENTRY_BYTES,
    GONE,
    INLINE,
    LAST,
    PICKLED,
    Hand,
    Parts,
    exhaust,
    pack_large,
    pack_small,
)
from iterable_queue._clock import monotonic_ns
from iterable_queue._core import (
    IN_LOOP,
    Core,
    Mark,
    check_exception,
    check_limit,
    stays_here,
    user_line,
)
from iterable_queue._errors import (
    ChannelBroken,
    ConsumerClosed,
    Done,
    EndpointElsewhere,
    ItemError,
    ProducerClosed,
    WouldDeadlock,
    missing,
    not_iterable,
    repr_of,
)
from iterable_queue._runtime import is_lock_busy

if TYPE_CHECKING:
    from iterable_queue._channels.log import Lane

T = TypeVar("T")

PLAIN_SEQUENCES = (list, tuple, range, str, bytes, bytearray, memoryview, frozenset, set, dict)
"""Iterating over one of these (exactly) can't block, so that `put_many` may gather its items."""

_nothing = SimpleQueue[None]().get_nowait
"""Raises Empty: what the hands of a closed consumer take their items from."""

TURN_NS = 1_000_000
"""After so long, a coroutine's call lets others of its loop run; ns."""
BRIEF_NS = 100_000
"""For so long a get looks out for an item before it sleeps, if the last one came that soon; ns."""
FEED_LEAST = 8
"""Claims of as many items are handed out by C functions alone."""
CHUNK = 1024
CHUNK_BYTES = 1 << 16
"""At most this many items are put as one record, and no more bytes than these."""

Claimed: TypeAlias = tuple["Hand | None", list[Any], bool, Any, Callable[[bool], object], int]
"""A hand and its claim: `opened`, `view`, `gate` and `next_at` go with that."""
NOTHING: Final[Claimed] = None, GONE, False, None, bool, 0

_NO_GET: Final = dict.fromkeys(
    ("get", "get_nowait", "get_many", "aget", "aget_many"),
    "a producer can only put; take items from a consumer, which the queue's get_consumer() makes",
)
_NO_PUT: Final = dict.fromkeys(
    ("put", "put_nowait", "put_many", "aput"),
    "a consumer can only get; put items on a producer, which the queue's get_producer() makes",
)


class Endpoint:
    """One end of a queue, held by one process.

    Attributes:
        slot, number: where the ledger counts it, and the number that proves it is the same one.
        _ready: this process has used it and may go on; then calls need no further check.
        _closed: closed here, by the caller.
        _closing: that was cut short, so that it may have been closed.
        _lost: why it can't be used here at all, if so; raised by every call.
        _mark: what tells that this object is gone, even where `__del__` is interrupted.
        _dumps, _loads: how items cross to other processes; None: handed over as they are.
        _lane: what it puts to without the lock, while it may (see `_channels.log`).
        _hands: what each thread holds, by its identifier (consumers and workers).
        _blocked: identifiers of the threads, and the coroutines, that wait in a call.
        _turn_ends: until when its coroutines go on without letting others run, ns.
    """

    __slots__ = (
        "__weakref__",
        "_append",
        "_blocked",
        "_closed",
        "_closing",
        "_core",
        "_dumps",
        "_hands",
        "_head",
        "_is_worker",
        "_lane",
        "_ledger",
        "_loads",
        "_locks",
        "_lost",
        "_mark",
        "_now",
        "_plain",
        "_ready",
        "_size",
        "_stamp_at",
        "_turn_ends",
        "number",
        "slot",
    )

    kind = cells_.FREE
    closed_error: type[ProducerClosed | ConsumerClosed] = ProducerClosed

    def __init__(self, core: Core, slot: int, number: int, lost: Exception | None = None) -> None:
        self._core = core
        self.slot: int = slot
        self.number: int = number
        self._ledger = core.ledger
        self._now = core.runtime.now
        self._locks = core.locks
        self._stamp_at = slot * cells_.SLOT_SIZE + cells_.STAMP
        self._ready = False
        self._closed = False
        self._closing = False
        self._mark: Mark | None = None
        self._lost = lost
        self._dumps = core.dumps
        self._loads = core.loads
        self._plain = core.plain
        self._is_worker = self.kind == WORKER
        self._head = core.ledger.head
        self._size = core.size_now or core.ledger.channel.size
        self._append = None if self._is_worker or self._head[MAXSIZE] else core.append_now
        self._lane: Lane | None = None
        self._hands: dict[int, Hand] = {}
        self._blocked: set[int] = set()
        self._turn_ends = 0
        if lost is None:
            self._mark = core.mark(self, slot, number)
        core.endpoints.add(self)
        if self._head[WATCHED] > 0:
            core.watch(self)

    # -- whose it is -----------------------------------------------------------------------------

    def _use(self, deadline: float | None = None, *, puts: bool = False) -> None:
        """Take the endpoint for this process and mark it as used; or raise why that can't be."""
        core = self._core
        if self._lost is None and not core.arrive(deadline):
            raise (Full if puts else Empty)(core.not_in_time)
        self._check_open(ProducerClosed if puts else None)
        core.register()
        try:
            used = core.transact_until(deadline, self._use_locked)
        except EndpointElsewhere:
            self._check_open(ProducerClosed if puts else None)  # by another thread, just now
            raise
        if not used:
            raise (Full if puts else Empty)(core.not_in_time)

    def _check_open(self, closed: type[Exception] | None = None) -> None:
        if self._lost is not None:
            raise self._lost
        self._core.check_here()
        if self._closed:
            raise (closed or self.closed_error)(
                f"{self._name} is closed; get another one from the queue, or clone() an open one"
            )

    def _use_locked(self) -> None:
        if self._ready:
            return  # another thread was faster; a second object for its lane must not be made
        ledger = self._ledger
        if not ledger.take_over(self.slot, self.number, None):
            raise self._elsewhere()
        ledger.cells[self.slot * cells_.SLOT_SIZE + cells_.FLAGS] |= cells_.USED
        if self.kind != PRODUCER:
            ledger.hands[self.slot] = self._hands
        elif self._core.log is not None:
            self._leave_lane()  # after a close that was interrupted
            lane = self._core.log.lane(self.slot, self.number)
            if lane is not None:
                lane.head, lane.plain = self._head, self._plain
                lane.dumps = self._core.dumps_apart  # type: ignore[assignment]
            self._lane = lane
        self._ready = True

    def _touch(self) -> None:
        """For calls that don't take it: the owner may, and the maker until it is taken."""
        if not self._ready:
            self._check_open()
            try:
                self._core.transact(self._touch_locked)
            except EndpointElsewhere:
                self._closed = self._closed or self._closing  # or by another thread, just now
                self._check_open()
                raise

    def _touch_locked(self) -> None:
        ledger = self._ledger
        if not ledger.is_open(self.slot, self.number) or not self._core.is_mine(
            ledger.view(self.slot)
        ):
            raise self._elsewhere()

    def _elsewhere(self) -> Exception:
        """Why this process may not use the endpoint. Called with the lock held."""
        ledger = self._ledger
        if ledger.head[cells_.STATE] & (cells_.CANCELLED | cells_.BROKEN):
            return ledger.refusal()
        where = "another process, which has closed it or ended"
        if ledger.is_open(self.slot, self.number):
            view = ledger.view(self.slot)
            pid = self._core.pid_of(view.owner or view.maker)
            where = f"process {pid}" if pid else "a process that was started with it"
            if not view.owner:
                where = f"process {pid}, which made it and is the one to close it until it is taken"
        return EndpointElsewhere(
            f"{KIND_NAMES[self.kind]} {self.number} belongs to {where}; an endpoint serves the "
            "first process that takes it. Give every process one of its own, by get_"
            f"{KIND_NAMES[self.kind]}() or clone()"
        )

    def forget(self) -> None:
        """Nothing known of it holds any more: in a forked child, or once the queue was left."""
        self._ready = False
        lane, self._lane = self._lane, None
        while lane is not None:
            lane.end()  # also for a put that this has interrupted
            lane = lane.successor
        self._blocked.clear()

    def give_up(self, why: Exception) -> None:
        """The ledger has ended it, and it can't be used any more: calls raise *why*."""
        self.forget()
        self._closed = True
        self._lost = why
        self._core.unmark(self._mark)  # at last: else an interrupt would leave it to nobody

    def serves(self, number: int) -> bool:
        """Whether this object can be used as the endpoint of that number."""
        return self.number == number and not self._closed and self._lost is None

    def give_way(self) -> bool:
        """This copy is not to be used, since the endpoint came here again. False: it is used."""
        if self._ready or self._closed:
            return False
        self.give_up(
            EndpointElsewhere(
                f"{self._name} has come to process {os.getpid()} by a pickle as well, and is to be "
                "used as it came (an argument of a task, say); this copy was inherited by a fork"
            )
        )
        return True

    def set_blocked(self, waits: bool, who: int | None = None) -> None:
        """*who*, or the calling thread, waits in a call, or does so no more."""
        change = self._blocked.add if waits else self._blocked.discard
        change(get_ident() if who is None else who)
        stored = -1
        while stored != len(self._blocked):  # until no other thread has come in between
            stored = len(self._blocked)
            self._ledger.set_blocked(self.slot, self.number, stored)

    def _left(self, deadline: float | None) -> float | None:
        """How long a call may go on that may wait until then, in seconds; None: for ever."""
        if deadline is None:
            return None
        return max(deadline - self._core.runtime.monotonic(), 0.0)

    # -- what every endpoint can do --------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """True once this endpoint takes part no more."""
        if self._closed or self._lost is not None:
            return True
        return not self._ledger.is_open(self.slot, self.number)

    def close(self) -> None:
        """Take part no more. Closing again does nothing."""
        if self._closed:
            return
        try:
            self._touch()
        except self.closed_error:
            return  # another thread has closed it, just now
        self._finish(self._ledger.close, self.slot, self.number)

    def _finish(self, transition: Callable[..., object], *args: object) -> None:
        self._core.transact(self._finish_locked, transition, args)

    def _finish_locked(self, transition: Callable[..., object], args: tuple[object, ...]) -> None:
        self._closed = True
        self._ready = False
        try:
            self._leave_lane()
            transition(*args)
        except BaseException:
            # Interrupted; or what it has claimed had no room. Unless its slot is free, it is open
            # and can be closed later. No call and no comparison, which might fail for the same
            # reason; and with the lock held, nobody else has the slot yet.
            self._closing = True
            self._closed = not self._ledger.cells[self.slot * cells_.SLOT_SIZE + cells_.KIND]
            raise
        self._core.unmark(self._mark)
        self._mark = None

    def _leave_lane(self) -> None:
        # Together, once `leave` has begun.
        lane = self._lane
        if lane is not None:
            self._core.log.leave(lane)  # type: ignore[union-attr]
            self._lane = None

    def fail(self, error: BaseException) -> None:
        """Close, and let the consumers know that what was put is not all, and why."""
        check_exception(error)
        self._touch()
        packed = self._core.runtime.errors.pack(error)
        self._finish(self._ledger.fail, self.slot, self.number, packed)

    def qsize(self) -> int:
        """The number of items put and not taken: exact at some moment during the call."""
        self._touch()
        return self._ledger.qsize()

    def empty(self) -> bool:
        """`qsize() == 0`."""
        return self.qsize() == 0

    def full(self) -> bool:
        """`qsize() >= maxsize`; always False on an unbounded queue."""
        queued = self.qsize()
        return 0 < self._ledger.head[cells_.MAXSIZE] <= queued

    def _clone_as(self, make: Callable[[Core, int, int], E]) -> E:
        self._check_open()
        try:
            return self._core.open_endpoint(make, self._clone_locked, user_line())
        except EndpointElsewhere:
            self._check_open()  # by another thread, just now
            raise

    def _clone_locked(self, opened: list[int], site: str) -> None:
        self._touch_locked()  # what is cloned is open, or the queue may be done
        opened += self._ledger.open(self.kind, site, clone=True)

    def __enter__(self) -> Self:
        self._use()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._closed:
            return
        try:
            self._leave(exc)
        except ChannelBroken:
            if exc is None:  # else the block's own error says more
                raise

    def _leave(self, exc: BaseException | None) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._lost is not None:
            raise TypeError(f"{self._name} can't be pickled: {self._lost}")
        if self._ready:
            raise stays_here(self._name)
        self._check_open()
        return self._core.reduce(self, self.slot, self.number)

    def __copy__(self) -> NoReturn:
        raise TypeError(f"{self._name} can't be copied, it would count twice; use clone()")

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.__copy__()

    def __del__(self) -> None:
        core: Core | None = getattr(self, "_core", None)
        if core is not None and not self._closed and self._lost is None and not core.elsewhere:
            mark, self._mark = self._mark, None  # which is not needed any more once this has run
            if not core.is_finalizing():
                # Nobody is in a call of it. Else the next to write there would have to count all
                # that is unread, as after a kill, with the lock.
                self._leave_lane()
            if core.leaks is None:
                core.drop(self.slot, self.number, mark)
                return
            core.leaks.dropped(core, self.slot, self.number)
            core.drop(self.slot, self.number, mark)
            core.leaks.tell_after_drop()

    @property
    def _name(self) -> str:
        """How messages call it."""
        return f"{KIND_NAMES[self.kind]} {self.number}"

    def __repr__(self) -> str:
        core = self._core
        if self._lost is not None:
            return f"<{self._name} (out of reach: {self._lost})>"
        if core.elsewhere:
            return f"<{self._name}, for the threads of process {core.maker_pid}>"
        try:
            whose, waiting = core.whose(self.slot, self.number)
        except Exception:  # its file has gone, with cells that this process had not mapped
            return f"<{self._name}, out of reach>"
        if self._closed or whose is None:
            return f"<{self._name}, closed>"
        return f"<{self._name}{whose}, open{f', {waiting} waiting' if waiting else ''}>"


E = TypeVar("E", bound=Endpoint)


def _known_as(protocol: str) -> Callable[[type[E]], type[E]]:
    """Have the calls of a class say in errors, of a missing argument say, what users know."""

    def name(cls: type[E]) -> type[E]:
        for member in vars(cls).values():
            if isinstance(member, FunctionType):
                member.__qualname__ = f"{protocol}.{member.__name__}"
        return cls

    return name


@_known_as("Producer")
class _Putting(Endpoint, Generic[T]):
    """`put` and its kin, for producers and workers."""

    __slots__ = ()

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        """Put *item*; see `Producer.put`."""
        lane = self._lane
        if lane is not None:
            # This producer's own lane: no lock and no system call.
            head = lane.head
            if timeout is not None:
                self._core.deadline(block, timeout)  # raises if that is none
            if head[STATE] > CLOSED:
                self._core.transact(self._refuse)
            kind = type(item)
            payload: Any
            if kind in lane.plain:
                payload = marshal_dumps(item)  # type: ignore[arg-type]
            elif (kind is bytes or kind is bytearray) and len(item) > INLINE and lane.plain:  # type: ignore[arg-type]
                tag = cells_.RAW | self.number
                if kind is not bytes:
                    tag |= cells_.WRITABLE
                if lane.inline < 0:
                    self._put_within(lane, item, tag, block, timeout)
                else:
                    self._put_large(lane, item, tag, timeout=timeout)
                return
            else:
                payload = lane.dumps(item)
            size = len(payload)
            if size > lane.inline:
                if lane.inline < 0:
                    self._put_within(lane, payload, self.number, block, timeout)
                else:
                    self._put_large(lane, payload, self.number, timeout=timeout)
                return
            stamp = monotonic_ns()
            while True:
                put = lane.put
                n = lane.n
                if n < lane.room:
                    at = ENTRY_BYTES * n + ENTRY_BYTES
                    lane.writer = payload
                    pack_small(lane.map, at, ~size, stamp, lane.number, payload)
                    # Another thread, or a signal handler, comes in after a call only: so here, and
                    # not between the look at `put` and this, nor before the last of the stores
                    # below. Did one write to this entry, put, close, or add a segment?
                    if lane.writer is payload and lane.put == put:
                        put += 1
                        lane.cells[lane.put_at] = put
                        lane.put = put
                        lane.n = n + 1
                        break
                    lane = self._check_lane(lane)
                else:
                    lane = self._extend_lane(lane, size)
            lane.fence()
            if head[WAIT_ITEM]:
                self._core.tell_of_put(timeout=timeout)
            return
        if self._append is not None and timeout is None:
            # An atomic channel without a bound: no lock, and nothing to wait for.
            head = self._head
            if self._ready and head[STATE] <= CLOSED:
                self._append(item)
                self._ledger.cells[self._stamp_at] = self._now()
                if head[WAIT_ITEM]:
                    self._core.transact(self._ledger.items.notify)
                return
        deadline = None if block and timeout is None else self._core.deadline(block, timeout)
        if not self._ready:
            self._use(deadline, puts=True)
            if self._lane is not None:
                self._put_one(item, block, self._left(deadline) if block else None)
                return
        payload, tag = self._pack(item)
        self._ledger.cells[self._stamp_at] = self._now()
        if deadline is None:
            for lock in self._core.put_locks:
                try:
                    with lock:
                        # Another thread may have closed it since, and its slot be another's now.
                        if self._ready and self._ledger.put(
                            self.slot, tag, payload, self._is_worker
                        ):
                            return
                        break
                except KeyError as error:
                    if not is_lock_busy(error):
                        raise
        self._put_patiently(payload, tag, deadline)

    _put_one = put
    """The same, whatever a subclass makes of `put`."""

    def _pack(self, item: T) -> tuple[Any, int]:
        """The payload of *item*, and its tag, where it is put with the lock held."""
        if self._dumps is None:
            return item, self.number
        self._check_takes()
        if type(item) is bytes and len(item) > INLINE and self._plain:  # type: ignore[arg-type]
            return item, cells_.RAW | self.number
        return self._dumps(item), self.number

    def _check_takes(self) -> None:
        """Before an item is pickled: that none is put any more says more than that it can't be."""
        if self._head[STATE] > CLOSED:
            self._core.transact(self._refuse)

    def _pack_for(self, lane: Lane, item: Any) -> tuple[Any, int]:
        """The same where it is put on *lane*, as in `put`."""
        kind = cast("type[object]", type(item))
        if kind in lane.plain:
            return marshal_dumps(item), self.number
        if (kind is bytes or kind is bytearray) and len(item) > INLINE and lane.plain:
            tag = cells_.RAW | self.number
            return item, tag if kind is bytes else tag | cells_.WRITABLE
        return lane.dumps(item), self.number

    async def aput(self, item: T, timeout: float | None = None) -> None:
        """Put *item*, from a coroutine; see `Producer.aput`."""
        if monotonic_ns() < self._turn_ends:
            # Where nothing is waited for.
            lane = self._lane
            if lane is not None and lane.inline >= 0:
                self._put_one(item, True, 0.0 if timeout is None else timeout)
                return
            if self._append is not None and timeout is None:
                self._put_one(item)
                return
        from iterable_queue._aio import put

        await put(self, item, timeout)

    def _put_large(
        self, lane: Lane, payload: Any, tag: int, count: int = 1, timeout: float | None = None
    ) -> None:
        """The same for a payload that has no room in its entry, or for a chunk of *count* items."""
        size = len(payload)
        stores: Iterator[None] = iter(())
        apart = isinstance(payload, Parts)
        if apart:
            tag |= cells_.WRITABLE
        stamp = self._now()
        while True:
            put = lane.put
            n = lane.n
            if ENTRY_BYTES * (n + 2) <= lane.low - size:
                start = lane.low - size
                # Now, since to make one may collect garbage (on 3.11), and so call a `__del__`.
                where = slice(start, start + size)
                if apart:
                    stores = payload.stores(lane.map, start)
                if lane.put == put:  # still: no call between this and the next
                    lane.writer = payload
                    at = ENTRY_BYTES * n + ENTRY_BYTES
                    pack_large(lane.map, at, start, stamp, tag, size, count)
                    if apart and lane.writer is payload and lane.put == put:
                        exhaust(stores)  # one call, which no other put can interrupt
                    if lane.writer is payload and lane.put == put:
                        if not apart:
                            lane.map[where] = payload  # type: ignore[assignment]
                        put += count
                        lane.cells[lane.put_at] = put
                        lane.put = put
                        lane.n = n + 1
                        lane.low = start
                        lane.room = start // ENTRY_BYTES - 1
                        lane.writer = None  # it may be large, and what others want to resize
                        break
                lane = self._check_lane(lane)
            else:
                lane = self._extend_lane(lane, INLINE + 1 + size)
        lane.fence()
        if lane.head[WAIT_ITEM]:
            self._core.tell_of_put(count, timeout)

    def _put_within(
        self,
        lane: Lane,
        payload: Any,
        tag: int,
        block: bool,
        timeout: float | None,
        waits: bool = True,
    ) -> None:
        """The same on a bounded queue, where there must be room (see `LogChannel.admit`).

        Where there is none, one who does not wait raises Full, without having asked for any.
        """
        deadline = None if block and timeout is None else self._core.deadline(block, timeout)
        size = len(payload)
        large = size > INLINE
        stores: Iterator[None] = iter(())
        apart = isinstance(payload, Parts)
        if apart:
            tag |= cells_.WRITABLE
        cells = lane.cells
        try:
            while True:
                put = lane.put
                if put < 0:
                    lane = self._check_lane(lane)
                    continue
                # No call since that look: the lane is still this producer's.
                cells[lane.intent_at] = put + 1
                lane.fence()
                if cells[lane.limit_at] <= put:
                    if not waits:
                        raise self._full()
                    self._get_room(lane, deadline)
                    continue
                if not lane.has_room(size):
                    lane = self._extend_lane(lane, size)
                    continue
                stamp = monotonic_ns()
                start = lane.low - size
                where = slice(start, lane.low)
                if apart:
                    stores = payload.stores(lane.map, start)
                if lane.put != put:
                    continue
                # Likewise: no other put has come to this entry.
                n = lane.n
                lane.writer = payload
                at = ENTRY_BYTES * n + ENTRY_BYTES
                if large:
                    pack_large(lane.map, at, start, stamp, tag, size, 1)
                else:
                    pack_small(lane.map, at, ~size, stamp, tag, payload)
                if apart and lane.writer is payload and lane.put == put:
                    exhaust(stores)  # one call, which no other put can interrupt
                # As in `put`; and another thread, which found no room or was interrupted, may have
                # stored INTENT, and so have let go the room that there was.
                if (
                    lane.writer is payload
                    and lane.put == put
                    and cells[lane.intent_at] > put
                    and cells[lane.limit_at] > put
                ):
                    if large:
                        if not apart:
                            lane.map[where] = payload  # type: ignore[assignment]
                        lane.low = start
                        lane.room = start // ENTRY_BYTES - 1
                        lane.writer = None
                    put += 1
                    cells[lane.put_at] = put
                    lane.put = put
                    lane.n = n + 1
                    break
        except BaseException:
            # What an interrupt left: it would take room from others. Together, as above.
            own = self._lane
            while own is not None and own.put < 0:
                own = own.successor
            if own is not None and own.put >= 0 and self._lane is not None:
                own.cells[own.intent_at] = own.put
            raise
        lane.fence()
        if lane.head[WAIT_ITEM]:
            self._core.tell_of_put(timeout=self._left(deadline))

    def _get_room(self, lane: Lane, deadline: float | None) -> None:
        """Wait until *lane* may be put to. Raises Full."""

        def attempt() -> bool:
            if not self._ready:
                raise ProducerClosed(f"{self._name} was closed while another call waited in put")
            return self._ledger.transact(self._admit, lane)

        if deadline is None:
            for lock in self._locks:
                try:
                    with lock:
                        if attempt():
                            return
                        break
                except KeyError as error:
                    if not is_lock_busy(error):
                        raise
        if not self._core.wait(attempt, self._core.runtime.room, deadline, self):
            raise self._full()

    def _put_if_room(self, payload: Any, tag: int) -> bool:
        """`_put_within` for a coroutine."""
        if self._head[STATE] > CLOSED:
            self._core.transact(self._refuse)
        try:
            self._put_within(self._check_lane(self._lane), payload, tag, True, 0.0, False)
        except Full:
            return False
        return True

    def _try_admit(self) -> bool:
        """Get room for the lane, so that `_put_if_room` finds some. Called with the lock held."""
        return self._ledger.transact(self._admit, self._check_lane(self._lane))

    def _admit(self, lane: Lane) -> bool:
        if self._head[STATE] > CLOSED:
            self._refuse()
        return self._ledger.claims.admit(lane)  # type: ignore[union-attr]

    def _full(self) -> Full:
        return Full(f"the queue is full: its maxsize is {self._head[MAXSIZE]} item(s)")

    def _put_many_on(self, items: Iterator[T]) -> None:
        """Put *items*, which can't block, on this producer's own lane.

        In chunks, where all are plain, which are taken apart by those who take from them.
        """
        while chunk := list(islice(items, CHUNK)):
            lane = self._check_lane(self._lane)
            if len(chunk) > 1 and set(map(type, chunk)) <= self._plain:
                payload = marshal_dumps(cast("Any", chunk), 2)
                if len(payload) <= CHUNK_BYTES:
                    if self._head[STATE] > CLOSED:
                        self._core.transact(self._refuse)
                    self._put_large(lane, payload, self.number, len(chunk))
                    continue
            for item in chunk:
                self._put_one(item)

    def _extend_lane(self, lane: Lane, size: int) -> Lane:
        """Add a segment that has room for *size* bytes. Returns what to put to."""
        lane = self._check_lane(lane)
        self._core.log.extend(lane, size)  # type: ignore[union-attr]
        return self._check_lane(lane)

    def _check_lane(self, lane: Lane | None) -> Lane:
        """What to put to after something else came in between, if that did not close *self*."""
        while lane is not None and lane.successor is not None:
            # Together: a close by another thread stays.
            if self._lane is lane:
                self._lane = lane.successor
            lane = lane.successor
        if self._lane is None or lane is None:
            raise ProducerClosed(f"{self._name} was closed while another thread was in put")
        return lane

    def _refuse(self) -> None:
        raise self._ledger.refusal()

    def _try_put(self, payload: Any, tag: int) -> bool:
        """Put it, if there is room. Called with the lock held."""
        if not self._ready:
            raise ProducerClosed(f"{self._name} was closed while another call waited in put")
        return self._ledger.put(self.slot, tag, payload, self._is_worker)

    def _put_patiently(self, payload: Any, tag: int, deadline: float | None) -> None:
        attempt = partial(self._try_put, payload, tag)
        if not self._core.wait(attempt, self._core.runtime.room, deadline, self):
            raise self._full()

    def put_nowait(self, item: T) -> None:
        """`put(item, block=False)`."""
        self.put(item, block=False)

    def put_many(self, iterable: Iterable[T]) -> None:
        """Put each item of *iterable*; see `Producer.put_many`."""
        if not self._ready:
            self._use(puts=True)
        if type(iterable) not in PLAIN_SEQUENCES:
            # What is asked for the next item may block, so each is put before that.
            for item in iterable:
                self.put(item)
            return
        if self._lane is not None:
            if self._lane.inline < 0:
                for item in iterable:
                    self._put_one(item)
            else:
                self._put_many_on(iter(iterable))
            return
        payloads: list[Any] = []
        for item in iterable:
            try:
                if self._dumps is None:
                    payloads.append(item)
                else:
                    self._check_takes()
                    payloads.append(self._dumps(item))
            except Exception:
                self._put_all(payloads)  # those before one that can't be pickled are put
                raise
            if len(payloads) == self._core.gather:
                self._put_all(payloads)
        self._put_all(payloads)

    def _put_all(self, payloads: list[Any]) -> None:
        """Put all of *payloads*, as many as there is room for in each turn of the lock."""

        def attempt() -> bool:
            if not self._ready:
                raise ProducerClosed(
                    f"{self._name} was closed while another call waited in put_many"
                )
            return self._ledger.put_all(self.slot, self.number, payloads, self._is_worker)

        self._core.wait(attempt, self._core.runtime.room, None, self)


class ProducerEndpoint(_Putting[T]):
    """The real `Producer`."""

    __slots__ = ()
    kind = PRODUCER

    if not TYPE_CHECKING:  # for type checkers, there is no such thing

        def __getattr__(self, name: str) -> object:
            raise missing(self, name, _NO_GET)

        def __iter__(self) -> NoReturn:
            raise not_iterable(self)

        def __aiter__(self) -> NoReturn:
            raise not_iterable(self)

    def clone(self) -> ProducerEndpoint[T]:
        """Another producer on the same queue, counted by itself, even after the queue's close."""
        make: type[ProducerEndpoint[T]] = ProducerEndpoint
        return self._clone_as(make)

    def _leave(self, exc: BaseException | None) -> None:
        if exc is None:
            self.close()
        else:
            self.fail(exc)


@_known_as("Consumer")
class _Getting(Endpoint, Generic[T]):
    """`get` and its kin, for consumers and workers."""

    __slots__ = ()

    closed_error: type[ProducerClosed | ConsumerClosed] = ConsumerClosed

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Take the next item; see `Consumer.get`."""
        deadline = None if block and timeout is None else self._core.deadline(block, timeout)
        hand = self._hands.get(get_ident())
        if hand is not None:
            if hand.feed is not None:
                self._end_feed(hand)
            if hand.claim and not hand.busy:
                item = self._hand_out(hand, deadline)
                if item is not EMPTY:
                    return item  # type: ignore[no-any-return]
            elif hand.quick is not None and timeout is None:
                item = self._get_now(hand)
                if item is not EMPTY:
                    return item  # type: ignore[no-any-return]
        if not self._ready:
            self._use(deadline)
        if hand is None:
            hand = self._new_hand()
        if hand.busy:
            raise WouldDeadlock(
                f"{self._name}: get was called by what interrupted a get of this thread"
            )
        hand.busy = True
        # What an interrupt keeps from being returned stays in `pending`, for the next call: after
        # `loads`, no signal handler runs before the caller has the item.
        pending = hand.pending
        try:
            if pending and not self._ready:
                self._use(deadline)  # as `_finish_locked` says
            if not pending:
                self._ledger.cells[self._stamp_at] = now = self._now()
                if hand.brief and deadline is None:
                    hand.brief = self._look_out(now + BRIEF_NS)
                if deadline is None:
                    for lock in self._locks:
                        try:
                            with lock:
                                if self._ready:  # still, as in `put`
                                    self._ledger.take(self.slot, hand, 1)
                                break
                        except KeyError as error:
                            if not is_lock_busy(error):
                                raise
                while True:
                    if pending:  # not a condition of the loop: see `Ledger.take`
                        break
                    if hand.claim:
                        item = self._hand_out(hand, deadline)
                        if item is not EMPTY:
                            return item  # type: ignore[no-any-return]
                    self._take_patiently(hand, 1, deadline)
                    hand.brief = (
                        self._core.log is not None
                        and hand.claims
                        and self._now() - now < 2 * BRIEF_NS
                    )
            item = pending[0] if self._loads is None else self._open_next(pending)
            if hand.pull is not None:
                hand.taken += 1
            del pending[0]
            return item  # type: ignore[no-any-return]
        finally:
            hand.busy = False

    def _open_next(self, pending: list[Any]) -> Any:
        """The item of the first payload, which stays; one that can't be opened does not."""
        try:
            return self._open(*pending[0])
        except BaseException as error:
            if is_interrupt(error):
                raise
            payload, tag = pending[0]
            del pending[0]
            raise self._item_error(payload, tag, error) from error

    async def aget(self, timeout: float | None = None) -> T:
        """Take the next item, from a coroutine; see `Consumer.aget`."""
        if timeout is None:
            item = self._next_within_turn()
            if item is not EMPTY:
                return item  # type: ignore[no-any-return]
        from iterable_queue._aio import get

        return await get(self, timeout)

    def _next_within_turn(self) -> Any:
        """An item that a coroutine need not wait for, nor give way before; or EMPTY."""
        if monotonic_ns() < self._turn_ends:
            hand = self._hands.get(get_ident())
            if hand is not None and hand.feed is None and not hand.busy:
                if hand.claim:
                    return self._hand_out(hand, IN_LOOP)
                if hand.quick is not None:
                    return self._get_now(hand)
        return EMPTY

    def _next_at_once(self, hand: Hand) -> Any:
        """For a coroutine: an item that *hand* has, or that needs no lock; EMPTY if there is none.

        No signal handler runs before the caller has it, as in `get`.
        """
        if hand.feed is not None:
            self._end_feed(hand)
        if hand.busy:
            raise WouldDeadlock(f"{self._name}: aget was called by what interrupted a get")
        if hand.claim:
            item = self._hand_out(hand, IN_LOOP)
            if item is not EMPTY:
                return item
        elif hand.quick is not None:
            return self._get_now(hand)
        hand.busy = True
        pending = hand.pending
        try:
            if not pending or not self._ready:  # as `_finish_locked` says
                return EMPTY
            item = pending[0] if self._loads is None else self._open_next(pending)
            if hand.pull is not None:
                hand.taken += 1
            del pending[0]
            return item
        finally:
            hand.busy = False

    def _look_out(self, until: int) -> bool:
        """Look for an item on the queue until that time, in ns. False: none came.

        Where the last one came that soon, this one may as well; then nobody has to sleep, nor be
        woken. Others who want this processor have it meanwhile.
        """
        has_items = self._core.log.has_items  # type: ignore[union-attr]
        while not has_items():
            if monotonic_ns() > until:
                return False
            sched_yield()
        return True

    def _hand_out(self, hand: Hand, deadline: float | None = None) -> Any:
        """The next item of the claim, without the lock; EMPTY if there is none any more.

        A producer that waits for room is woken; the lock is waited for until *deadline* at most.
        """
        cells = hand.view
        while claim := hand.claim:
            at = hand.next
            # Since the hand has a claim, the endpoint is open, and the slot its own, up to this
            # store: there is no call between.
            cells[hand.next_at] = at + 1  # type: ignore[index]
            if deadline is None or hand.gate_until is None:
                is_mine = hand.gate(False)
            else:
                is_mine = hand.gate_until(deadline)
            if hand.next != at:
                continue  # a signal handler got an item here
            if hand.claim is claim:
                if not is_mine:
                    break
            elif hand.claim is not LAST:
                continue  # closed by another thread
            if self._head[WAIT_ROOM]:
                self._core.tell_of_room(self._left(deadline))
                if hand.next != at or (hand.claim is not claim and hand.claim is not LAST):
                    continue
            item = claim[-1]
            if not hand.opened:
                # What an interrupt keeps from being returned is handed out by the next call.
                try:
                    item = self._loads(item)  # type: ignore[misc]
                except BaseException as error:
                    self._was_not_opened(hand, claim, at, error)
                if hand.next != at or (hand.claim is not claim and hand.claim is not LAST):
                    continue
            hand.next = at + 1
            del claim[-1]
            # No signal handler runs before the caller has it.
            return item
        return EMPTY

    def _was_not_opened(
        self, hand: Hand, claim: list[bytes], at: int, error: BaseException
    ) -> NoReturn:
        """*error* came while the item at *at*, the next one of *claim*, was opened."""
        if is_interrupt(error) or hand.next != at:
            raise error
        data = claim[-1]
        tag = hand.tag()
        hand.next = at + 1
        del claim[-1]
        raise self._item_error(data, tag, error) from error

    def _get_now(self, hand: Hand) -> Any:
        """From an atomic channel, without the lock: an item, or EMPTY."""
        queued = self._size()
        if queued > hand.peak:  # noqa: PLR1730 - a call of max() would cost as much as all this
            hand.peak = queued
        self._ledger.cells[self._stamp_at] = self._now()
        pending = hand.pending
        try:
            if not pending:
                hand.quick()  # type: ignore[misc]
            if self._head[WAIT_ROOM]:
                self._core.transact(self._ledger.room.notify)
            item = pending[0]
        except (Empty, IndexError):
            return EMPTY
        # From here on no signal handler runs before the caller has the item.
        hand.taken += 1
        del pending[0]
        return item

    def _new_hand(self) -> Hand:
        lean = self.kind == CONSUMER and self._ledger.channel.atomic
        ident = get_ident()
        hand = self._hands.setdefault(ident, Hand(self._ledger.channel, lean))
        if self.kind == CONSUMER and self._ledger.claims is not None:
            # There is one claim in a slot: it is that of the thread that was the first to come.
            hand.claims = list(self._hands)[:1] == [ident]  # empty, once another one has closed
        return hand

    def _try_take(self, hand: Hand, limit: int, many: bool = False) -> bool:
        """Have *hand* take what there is; see `Ledger.take`. Called with the lock held."""
        if not self._ready:
            raise ConsumerClosed(f"{self._name} was closed while another call waited in get")
        if self._ledger.take(self.slot, hand, limit, many):
            return True
        verdict = self._ledger.verdict()
        try:
            if verdict is not None:
                raise verdict
        finally:
            del verdict  # or error, traceback and this frame would keep the queue alive
        return False

    def _take_patiently(
        self, hand: Hand, limit: int, deadline: float | None, many: bool = False
    ) -> None:
        attempt = partial(self._try_take, hand, limit, many)
        if not self._core.wait(attempt, self._core.runtime.items, deadline, self):
            raise Empty("nothing came in time")

    def _open(self, payload: bytes, tag: int) -> Any:
        """The item that was put as *payload*."""
        return payload if tag & cells_.RAW else self._loads(payload)  # type: ignore[misc]

    def _item_error(self, payload: bytes, tag: int, error: BaseException) -> ItemError:
        producer = tag & cells_.NUMBER_MASK
        failed = ItemError(
            f"an item of producer {producer} ({len(payload)} bytes) could not be unpickled: "
            f"{repr_of(error)}. It counts as taken; the next get goes on"
        )
        failed.producer = producer
        failed.payload = bytes(payload)
        return failed

    def get_nowait(self) -> T:
        """`get(block=False)`."""
        return self.get(block=False)

    def get_many(self, limit: int) -> list[T]:
        """Wait for one item, then take up to *limit* that are there; see `Consumer.get_many`."""
        check_limit(limit)
        if not self._ready:
            self._use()
        hand = self._new_hand()
        self._end_feed(hand)
        if hand.busy:
            raise WouldDeadlock(f"{self._name}: get_many was called by what interrupted a get")
        hand.busy = True
        try:
            if hand.pending and not self._ready:
                self._use()  # as `_finish_locked` says
            if not hand.pending:
                self._take_patiently(hand, limit, None, True)
            return self._hand_out_many(hand, limit)
        finally:
            hand.busy = False

    def _many_at_once(self, hand: Hand, limit: int) -> list[T]:
        """For a coroutine: up to *limit* items that *hand* has; [] if there is none."""
        self._end_feed(hand)
        if hand.busy:
            raise WouldDeadlock(f"{self._name}: aget_many was called by what interrupted a get")
        hand.busy = True
        try:
            if not hand.pending or not self._ready:  # as `_finish_locked` says
                return []
            return self._hand_out_many(hand, limit)
        finally:
            hand.busy = False

    async def aget_many(self, limit: int) -> list[T]:
        """`get_many`, from a coroutine; see `Consumer.aget_many`."""
        from iterable_queue._aio import get_many

        return await get_many(self, limit)

    def _hand_out_many(self, hand: Hand, limit: int) -> list[T]:
        """Up to *limit* of the items that are pending, of which there is one."""
        items, error = self._open_items(hand.pending, limit)
        if error is not None and not items:
            payload, tag = hand.pending[0]
            del hand.pending[0]
            raise self._item_error(payload, tag, error) from error
        count = len(items)
        # Together: no call from here on, where another thread could close the endpoint.
        if hand.pull is not None:
            hand.taken += count
            hand.last = count
            hand.quick = None
        del hand.pending[:count]
        return items

    def _open_items(self, pending: list[Any], limit: int) -> tuple[list[T], BaseException | None]:
        """Up to *limit* items of *pending*, and the error at which they end early."""
        if self._loads is None:
            return pending[:limit], None
        items: list[T] = []
        append, loads = items.append, self._loads
        try:
            for payload, tag in pending[:limit]:
                append(payload if tag & cells_.RAW else loads(payload))
        except BaseException as error:
            if is_interrupt(error):
                raise
            return items, error
        return items, None

    def __iter__(self) -> Iterator[T]:
        if self._ledger.claims is None or type(self) is not ConsumerEndpoint:
            return self
        # By turns, from two iterators: one that calls a function for each item, and one over the
        # items that this has got ready. All of it is C code, but for that function; and unlike a
        # generator it goes on after an error or an interrupt.
        state: list[Any] = [True, iter(())]
        steps: Iterable[T] = map(self._stepper(state), repeat(None))
        current: Iterable[T] = _Current(partial(getitem, state, 1))
        going_on: Iterator[Any] = iter(partial(getitem, state, 0), None)
        return chain.from_iterable(compress(cycle((steps, current)), going_on))

    def _stepper(self, state: list[Any]) -> Callable[[None], T]:
        """A function that does what `__next__` does, for iterating.

        It raises StopIteration where *state* has the next items, or None in the first place: then
        there are none any more.

        Threads may share an iterator: what one has claimed is known here together with whose it is.
        Once a second one has come, nothing is got ready for them that either could take.
        """
        claimed: Claimed = NOTHING
        owner = 0
        is_shared = False
        loads: Any = self._loads
        plain = bool(self._plain)
        head = self._head

        def step(_: None) -> T:
            nonlocal claimed, owner, is_shared
            me = get_ident()
            # Together: another thread may be in here as well.
            hand, claim, opened, cells, gate, next_at = claimed
            last = owner
            if hand is not None and hand.feed is not None:
                self._end_feed(hand)
            if last != me or not claim or hand.claim is not claim:  # type: ignore[union-attr]
                is_shared = is_shared or last not in (me, 0)
                claim = GONE
                hand = self._hands.get(me)
                if hand is not None and hand.claim and hand.feed is None and not hand.busy:
                    opened, cells, gate = hand.opened, hand.view, hand.gate
                    next_at = hand.next_at
                    claim = hand.claim
                    # Together.
                    claimed = hand, claim, opened, cells, gate, next_at
                    owner = me
                    if (
                        len(claim) >= FEED_LEAST
                        and (opened or plain)
                        and not head[MAXSIZE]
                        and not is_shared
                    ):
                        feed = self._feed(hand)
                        if feed is not None:
                            state[1] = feed
                            raise StopIteration
            # As in `_hand_out`, which says why.
            while claim and hand.claim is claim:  # type: ignore[union-attr]
                at = hand.next  # type: ignore[union-attr]
                cells[next_at] = at + 1  # pyright: ignore[reportOptionalSubscript]
                is_mine = gate(False)
                if hand.next != at:  # type: ignore[union-attr]
                    break
                if hand.claim is claim:  # type: ignore[union-attr]
                    if not is_mine:
                        break
                elif hand.claim is not LAST:  # type: ignore[union-attr]
                    break
                if head[WAIT_ROOM]:
                    self._core.tell_of_room()
                    if hand.next != at or (hand.claim is not claim and hand.claim is not LAST):  # type: ignore[union-attr]
                        break
                item = claim[-1]
                if not opened:
                    try:
                        if plain and item[0] != PICKLED:
                            item = marshal_loads(item)
                        else:
                            item = loads(item)
                    except BaseException as error:
                        self._was_not_opened(hand, claim, at, error)  # type: ignore[arg-type]
                    if hand.next != at or (hand.claim is not claim and hand.claim is not LAST):  # type: ignore[union-attr]
                        break
                hand.next = at + 1  # type: ignore[union-attr]
                del claim[-1]
                return item  # type: ignore[no-any-return]
            # Together.
            claimed = NOTHING
            owner = me
            try:
                # No call after this one: what it returns would be lost by an interrupt.
                return self.__next__()
            except StopIteration:
                state[0] = None
                raise

        return step

    def _feed(self, hand: Hand) -> Iterator[T] | None:
        """An iterator over the claim's items, which hands them out by C functions alone.

        So no signal handler and no other thread comes in between, and an item costs a third of what
        it costs in `_hand_out`. Until `_end_feed`, the hand does not know how many there were.

        None: they are not of plain types, so that to open them may run anybody's code.
        """
        claim = hand.claim
        if hand.opened:
            items = claim[::-1]
        else:
            try:
                items = list(map(marshal_loads, reversed(claim)))
            except (ValueError, TypeError, EOFError):
                return None
        turn = iter(partial(hand.gate, False), False)
        at = hand.next + 1
        cells: Any = hand.view
        stores = map(setitem, repeat(cells), repeat(hand.next_at), range(at, at + len(items)))
        # First the item, and if there is one, the store to CLAIM_NEXT; then the gate.
        feed = compress(map(itemgetter(0), zip(items, stores, strict=False)), turn)
        # Together: another thread may have closed the endpoint.
        if hand.claim is not claim:
            return None
        hand.turn = turn
        hand.feed = items
        return cast("Iterator[T]", feed)

    def _end_feed(self, hand: Hand) -> None:
        """Hand nothing more out by `_feed`, and see how many items that were."""
        feed = hand.feed
        if feed is None:
            return
        feed.clear()
        cells: Any = hand.view
        claim = hand.claim
        # It has ended if it was refused an item after the store to CLAIM_NEXT.
        refused = len(hand.turn.__reduce__()[1]) == 1
        at = cells[hand.next_at] - refused
        where = slice(len(claim) - (at - hand.next), None)
        # Together: another thread, which closes the endpoint, may have done it.
        if hand.feed is feed:
            hand.feed = None
            cells[hand.next_at] = at
            hand.next = at
            del claim[where]

    def __next__(self) -> T:
        hand = self._hands.get(get_ident())
        if hand is not None:
            if hand.feed is not None:
                self._end_feed(hand)
            if hand.claim and not hand.busy:
                item = self._hand_out(hand)
                if item is not EMPTY:
                    return item  # type: ignore[no-any-return]
            elif hand.quick is not None:
                item = self._get_now(hand)
                if item is not EMPTY:
                    return item  # type: ignore[no-any-return]
        try:
            return self.get()
        except Done:
            raise StopIteration from None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        item = self._next_within_turn()
        if item is not EMPTY:
            return item  # type: ignore[no-any-return]
        from iterable_queue._aio import get

        try:
            return await get(self, None)
        except Done:
            raise StopAsyncIteration from None

    def _finish_locked(self, transition: Callable[..., object], args: tuple[object, ...]) -> None:
        # What is pending is given back, unless its thread hands it out just now: that thread says
        # `busy` before it looks at `_ready`, and this one the other way round.
        self._ready = False
        claims = self._ledger.claims
        for ident, hand in list(self._hands.items()):
            ended = False
            while not ended:
                self._end_feed(hand)
                last = False
                if claims is not None and (hand.claim or hand.rest):
                    if ident == get_ident() and not is_handing_out(hand):
                        claims.put_back(self.slot, hand)  # what an interrupt kept from being got
                    last = claims.is_handed_out(self.slot, hand)
                if hand.quick is not None:
                    hand.quick = _nothing  # another thread may be about to call it
                # Likewise: it has not come to the store that hands out, or returns what that did.
                # Together: or it has just begun another feed.
                if hand.feed is None:
                    hand.claim = LAST if last else GONE
                    ended = True
            if not hand.busy:
                self._ledger.give_back(self.slot, hand)
        super()._finish_locked(transition, args)  # which counts what the hands hold
        self._hands.clear()

    def forget(self) -> None:
        super().forget()
        for hand in list(self._hands.values()):
            hand.claim = GONE
            if hand.feed is not None:
                hand.feed.clear()
                hand.feed = None
        self._hands.clear()


class ConsumerEndpoint(_Getting[T]):
    """The real `Consumer`."""

    __slots__ = ()
    kind = CONSUMER

    if not TYPE_CHECKING:  # for type checkers, there is no such thing

        def __getattr__(self, name: str) -> object:
            raise missing(self, name, _NO_PUT)

    def clone(self) -> ConsumerEndpoint[T]:
        """Another consumer on the same queue, counted by itself."""
        make: type[ConsumerEndpoint[T]] = ConsumerEndpoint
        return self._clone_as(make)


class WorkerEndpoint(_Getting[T], _Putting[T]):
    """The real `Worker`."""

    __slots__ = ()
    kind = WORKER

    def clone(self) -> WorkerEndpoint[T]:
        """Another worker on the same queue, counted by itself."""
        make: type[WorkerEndpoint[T]] = WorkerEndpoint
        return self._clone_as(make)

    def _leave(self, exc: BaseException | None) -> None:
        # Work cut short is a failure; an error that came while nothing was in hand, such as
        # ProducerFailed from get, is not this worker's.
        flags = self._ledger.cells[self.slot * cells_.SLOT_SIZE + cells_.FLAGS]
        if exc is not None and (
            flags & cells_.UNASKED or any(hand.held for hand in list(self._hands.values()))
        ):
            self.fail(exc)
        else:
            self.close()


class _Current:
    """What `iter` calls *get* of, a C function, for the iterator that is the current one."""

    __slots__ = ("get",)
    __iter__: Any = property(attrgetter("get"))

    def __init__(self, get: Callable[[], Any]) -> None:
        self.get = get


def is_handing_out(hand: Hand) -> bool:
    """Whether the calling thread is inside a call that is about to return an item of *hand*."""
    frame: FrameType | None = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        code = frame.f_code
        ours = code.co_filename == __file__ and code.co_name in ("_hand_out", "step")
        if ours and frame.f_locals.get("hand") is hand:
            return True
        frame = frame.f_back
    return False


def endpoint_of(core: Core, kind: int, slot: int, number: int, lost: Exception | None) -> Endpoint:
    """The endpoint of that kind that came here by a pickle; *lost*: why it can't be used, if so."""
    classes: dict[int, type[Endpoint]] = {
        PRODUCER: ProducerEndpoint,
        CONSUMER: ConsumerEndpoint,
        WORKER: WorkerEndpoint,
    }
    return classes[kind](core, slot, number, lost)


def is_interrupt(error: BaseException) -> bool:
    """Whether *error*, which came while an item was opened, has nothing to do with that.

    Of those that are no `Exception`, SystemExit and the like are the item's as well, of a module
    that is imported for it, say: a consumer that ended by that would do so without a word, as if it
    had been asked to. What is unknown may have been thrown in by anybody.
    """
    known = isinstance(error, (Exception, SystemExit, GeneratorExit))
    if known or type(error).__name__ == "CancelledError":  # of asyncio, which need not be imported
        return came_from_signal_handler(error)
    return True


def came_from_signal_handler(error: BaseException) -> bool:
    """Whether a signal handler raised *error*, in whatever it interrupted."""
    codes: set[object] = set()
    for number in signal.valid_signals():
        handler: Any = signal.getsignal(number)
        while isinstance(handler, partial):
            handler = handler.func
        if callable(handler):
            method = handler if hasattr(handler, "__code__") else type(handler).__call__
            method = getattr(handler, "__func__", method)
            codes.add(getattr(method, "__code__", None))
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code in codes:
            return True
        trace = trace.tb_next
    return False

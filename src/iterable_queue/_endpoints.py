"""The endpoints that users hold: what is common to all channels, written once.

A call goes: check that the endpoint is this process's (once; then `_ready` says so), pickle or
hand over, one transition of the ledger, and, where that can't be made now, `Core.wait`.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from queue import Empty, Full, SimpleQueue
from threading import get_ident
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, Self, TypeVar

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
from iterable_queue._channel import EMPTY, Hand
from iterable_queue._core import Core, check_exception, check_int, stays_here, user_line
from iterable_queue._errors import (
    ChannelBroken,
    ConsumerClosed,
    Done,
    EndpointElsewhere,
    ItemError,
    ProducerClosed,
    WouldDeadlock,
    missing,
)
from iterable_queue._runtime import is_lock_busy

T = TypeVar("T")

PLAIN_SEQUENCES = (list, tuple, range, str, bytes, bytearray, memoryview, frozenset, set, dict)
"""Iterating over one of these (exactly) can't block, so that `put_many` may gather its items."""

_nothing = SimpleQueue[None]().get_nowait
"""Raises Empty: what the hands of a closed consumer take their items from."""

GATHER = 64
"""At most this many items are put in one turn of the lock by `put_many`."""


_NO_GET: Final = dict.fromkeys(
    ("get", "get_nowait", "get_many"),
    "a producer can only put; take items from a consumer, which the queue's get_consumer() makes",
)
_NO_PUT: Final = dict.fromkeys(
    ("put", "put_nowait", "put_many"),
    "a consumer can only get; put items on a producer, which the queue's get_producer() makes",
)


class Endpoint:
    """One end of a queue, held by one process.

    Attributes:
        slot, number: where the ledger counts it, and the number that proves it is the same one.
        _ready: this process has used it and may go on; then calls need no further check.
        _closed: closed here, by the caller.
        _lost: why it can't be used here at all, if so; raised by every call.
        _dumps, _loads: how items cross to other processes; None: handed over as they are.
        _hands: what each thread holds, by its identifier (consumers and workers).
        _blocked: identifiers of the threads that wait in a call.
    """

    __slots__ = (
        "__weakref__",
        "_append",
        "_blocked",
        "_closed",
        "_core",
        "_dumps",
        "_hands",
        "_head",
        "_is_worker",
        "_ledger",
        "_loads",
        "_locks",
        "_lost",
        "_now",
        "_ready",
        "_size",
        "_stamp_at",
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
        self._locks = (core.runtime.trylock,) * core.spins + (core.runtime.lock,)
        self._stamp_at = slot * cells_.SLOT_SIZE + cells_.STAMP
        self._ready = False
        self._closed = False
        self._lost = lost
        self._dumps = core.dumps
        self._loads = core.loads
        self._is_worker = self.kind == WORKER
        self._head = core.ledger.head
        self._size = core.size_now or core.ledger.channel.size
        self._append = None if self._is_worker or self._head[MAXSIZE] else core.append_now
        self._hands: dict[int, Hand] = {}
        self._blocked: set[int] = set()
        core.endpoints.add(self)
        if self._head[WATCHED] > 0:
            core.watch(self)

    # -- whose it is -----------------------------------------------------------------------------

    def _use(self, deadline: float | None = None, *, puts: bool = False) -> None:
        """Take the endpoint for this process and mark it as used; or raise why that can't be."""
        self._check_open(ProducerClosed if puts else None)
        core = self._core
        core.register()
        try:
            used = core.transact_until(deadline, self._use_locked)
        except EndpointElsewhere:
            self._check_open(ProducerClosed if puts else None)  # by another thread, just now
            raise
        if not used:
            raise Full if puts else Empty

    def _check_open(self, closed: type[Exception] | None = None) -> None:
        if self._lost is not None:
            raise self._lost
        self._core.check_here()
        if self._closed:
            raise (closed or self.closed_error)(
                f"{self!r} is closed; get another one from the queue"
            )

    def _use_locked(self) -> None:
        ledger = self._ledger
        if not ledger.take_over(self.slot, self.number, None):
            raise self._elsewhere()
        ledger.cells[self.slot * cells_.SLOT_SIZE + cells_.FLAGS] |= cells_.USED
        if self.kind != PRODUCER:
            ledger.hands[self.slot] = self._hands
        self._ready = True

    def _touch(self) -> None:
        """For calls that don't take it: the owner may, and the maker until it is taken."""
        if not self._ready:
            self._check_open()
            try:
                self._core.transact(self._touch_locked)
            except EndpointElsewhere:
                self._check_open()  # by another thread, just now
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
        """In a forked child: nothing that was known of this endpoint holds here."""
        self._ready = False
        self._blocked.clear()

    def give_up(self, why: Exception) -> None:
        """The ledger has ended it, and it can't be used any more: calls raise *why*."""
        self.forget()
        self._closed = True
        self._lost = why

    def set_blocked(self, waits: bool) -> None:
        """The calling thread waits in a call, or does so no more."""
        change = self._blocked.add if waits else self._blocked.discard
        change(get_ident())
        stored = -1
        while stored != len(self._blocked):  # until no other thread has come in between
            stored = len(self._blocked)
            self._ledger.set_blocked(self.slot, self.number, stored)

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
        transition(*args)

    def fail(self, error: BaseException) -> None:
        """Close, and let the consumers know that what was put is not all, and why."""
        check_exception(error)
        self._touch()
        packed = self._core.runtime.errors.pack(error)
        self._finish(self._ledger.fail, self.slot, self.number, packed)

    def qsize(self) -> int:
        """The number of items put and not taken: exact at some moment during the call."""
        self._touch()
        return self._ledger.channel.size()

    def empty(self) -> bool:
        """`qsize() == 0`."""
        return self.qsize() == 0

    def full(self) -> bool:
        """`qsize() >= maxsize`; always False on an unbounded queue."""
        queued = self.qsize()
        return 0 < self._ledger.head[cells_.MAXSIZE] <= queued

    def _open_clone(self) -> tuple[Core, int, int]:
        self._check_open()
        try:
            slot, number = self._core.transact(self._clone_locked, user_line())
        except EndpointElsewhere:
            self._check_open()  # by another thread, just now
            raise
        return self._core, slot, number

    def _clone_locked(self, site: str) -> tuple[int, int]:
        self._touch_locked()  # what is cloned is open, or the queue may be done
        return self._ledger.open(self.kind, site, clone=True)

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
            raise TypeError(f"{self!r} can't be pickled: {self._lost}")
        if self._ready:
            raise stays_here(repr(self))
        self._check_open()
        return self._core.reduce(self, self.slot, self.number)

    def __copy__(self) -> NoReturn:
        raise TypeError(f"{self!r} can't be copied, it would count twice; use clone()")

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.__copy__()

    def __del__(self) -> None:
        core: Core | None = getattr(self, "_core", None)
        if core is not None and not self._closed and self._lost is None and not core.elsewhere:
            core.drop(self.slot, self.number)

    def __repr__(self) -> str:
        return f"<{KIND_NAMES[self.kind]} {self.number}{' (closed)' if self._closed else ''}>"


class _Putting(Endpoint, Generic[T]):
    """`put` and its kin, for producers and workers."""

    __slots__ = ()

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        """Put *item*; see `Producer.put`."""
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
        payload = item if self._dumps is None else self._dumps(item)
        self._ledger.cells[self._stamp_at] = self._now()
        if deadline is None:
            for lock in self._locks:
                try:
                    with lock:
                        # Another thread may have closed it since, and its slot be another's now.
                        if self._ready and self._ledger.put(
                            self.slot, self.number, payload, self._is_worker
                        ):
                            return
                        break
                except KeyError as error:
                    if not is_lock_busy(error):
                        raise
        self._put_patiently(payload, deadline)

    def _put_patiently(self, payload: Any, deadline: float | None) -> None:
        def attempt() -> bool:
            if not self._ready:
                raise ProducerClosed(f"{self!r} was closed while another thread waited in put")
            return self._ledger.put(self.slot, self.number, payload, self._is_worker)

        if not self._core.wait(attempt, self._core.runtime.room, deadline, self):
            maxsize = self._ledger.head[cells_.MAXSIZE]
            raise Full(f"the queue holds {maxsize} item(s), its maxsize")

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
        payloads: list[Any] = []
        for item in iterable:
            try:
                payloads.append(item if self._dumps is None else self._dumps(item))
            except Exception:
                self._put_all(payloads)  # those before one that can't be pickled are put
                raise
            if len(payloads) == GATHER:
                self._put_all(payloads)
        self._put_all(payloads)

    def _put_all(self, payloads: list[Any]) -> None:
        """Put all of *payloads*, as many as there is room for in each turn of the lock."""

        def attempt() -> bool:
            if not self._ready:
                raise ProducerClosed(f"{self!r} was closed while another thread waited in put_many")
            while payloads:
                if not self._ledger.put(self.slot, self.number, payloads[0], self._is_worker):
                    return False
                del payloads[0]
            return True

        self._core.wait(attempt, self._core.runtime.room, None, self)


class ProducerEndpoint(_Putting[T]):
    """The real `Producer`."""

    __slots__ = ()
    kind = PRODUCER

    if not TYPE_CHECKING:  # for type checkers, there is no such thing

        def __getattr__(self, name: str) -> object:
            raise missing(self, name, _NO_GET)

    def clone(self) -> ProducerEndpoint[T]:
        """Another producer on the same queue, counted by itself, even after the queue's close."""
        return ProducerEndpoint(*self._open_clone())

    def _leave(self, exc: BaseException | None) -> None:
        if exc is None:
            self.close()
        else:
            self.fail(exc)


class _Getting(Endpoint, Generic[T]):
    """`get` and its kin, for consumers and workers."""

    __slots__ = ()

    closed_error: type[ProducerClosed | ConsumerClosed] = ConsumerClosed

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Take the next item; see `Consumer.get`."""
        hand = self._hands.get(get_ident())
        if hand is not None and hand.quick is not None and timeout is None:
            item = self._get_now(hand)
            if item is not EMPTY:
                return item  # type: ignore[no-any-return]
        deadline = None if block and timeout is None else self._core.deadline(block, timeout)
        if not self._ready:
            self._use(deadline)
        if hand is None:
            hand = self._new_hand()
        if hand.busy:
            raise WouldDeadlock(
                f"{self!r}: get was called by what interrupted a get of this thread"
            )
        hand.busy = True
        # What an interrupt keeps from being returned stays in `pending`, for the next call: after
        # `loads`, no signal handler runs before the caller has the item.
        pending = hand.pending
        try:
            if not pending:
                self._ledger.cells[self._stamp_at] = self._now()
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
                if not pending:
                    self._take_patiently(hand, 1, deadline)
            if self._loads is None:
                item = pending[0]
            else:
                try:
                    item = self._loads(pending[0][0])
                except Exception as error:
                    if came_from_signal_handler(error):
                        raise
                    raise self._item_error(pending, error) from error
            if hand.pull is not None:
                hand.taken += 1
            del pending[0]
            return item  # type: ignore[no-any-return]
        finally:
            hand.busy = False

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
        return self._hands.setdefault(get_ident(), Hand(self._ledger.channel, lean))

    def _take_patiently(self, hand: Hand, limit: int, deadline: float | None) -> None:
        def attempt() -> bool:
            if not self._ready:
                raise ConsumerClosed(f"{self!r} was closed while another thread waited in get")
            if self._ledger.take(self.slot, hand, limit):
                return True
            verdict = self._ledger.verdict()
            try:
                if verdict is not None:
                    raise verdict
            finally:
                del verdict  # or error, traceback and this frame would keep the queue alive
            return False

        if not self._core.wait(attempt, self._core.runtime.items, deadline, self):
            raise Empty("nothing came in time")

    def _item_error(self, pending: list[Any], error: Exception) -> ItemError:
        payload, tag = pending[0]
        producer = tag & cells_.NUMBER_MASK
        del pending[0]
        failed = ItemError(
            f"an item of producer {producer} ({len(payload)} bytes) could not be unpickled: "
            f"{error!r}. It counts as taken; the next get goes on"
        )
        failed.producer = producer
        failed.payload = bytes(payload)
        return failed

    def get_nowait(self) -> T:
        """`get(block=False)`."""
        return self.get(block=False)

    def get_many(self, limit: int) -> list[T]:
        """Wait for one item, then take up to *limit* that are there; see `Consumer.get_many`."""
        check_int(limit, "limit")
        if limit < 1:
            raise ValueError(f"limit must be 1 or more items, not {limit}")
        if not self._ready:
            self._use()
        hand = self._new_hand()
        if hand.busy:
            raise WouldDeadlock(f"{self!r}: get_many was called by what interrupted a get")
        hand.busy = True
        try:
            if not hand.pending:
                self._take_patiently(hand, limit, None)
            items, error = self._open_items(hand.pending, limit)
            if error is not None and not items:
                raise self._item_error(hand.pending, error) from error
            count = len(items)
            # Together: no call from here on, where another thread could close the endpoint.
            if hand.pull is not None:
                hand.taken += count
                hand.last = count
                hand.quick = None
            del hand.pending[:count]
            return items
        finally:
            hand.busy = False

    def _open_items(self, pending: list[Any], limit: int) -> tuple[list[T], Exception | None]:
        """Up to *limit* items of *pending*, and the error at which they end early."""
        if self._loads is None:
            return pending[:limit], None
        items: list[T] = []
        for payload in pending[:limit]:
            try:
                items.append(self._loads(payload[0]))
            except Exception as error:
                if came_from_signal_handler(error):
                    raise
                return items, error
        return items, None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        hand = self._hands.get(get_ident())
        if hand is not None and hand.quick is not None:
            item = self._get_now(hand)
            if item is not EMPTY:
                return item  # type: ignore[no-any-return]
        try:
            return self.get()
        except Done:
            raise StopIteration from None

    def _finish_locked(self, transition: Callable[..., object], args: tuple[object, ...]) -> None:
        for hand in list(self._hands.values()):
            if hand.quick is not None:
                hand.quick = _nothing  # another thread may be about to call it
            if not hand.busy:
                self._ledger.give_back(self.slot, hand)
            elif hand.pull is not None:
                # What a call is about to return is returned, and nobody will ask this hand again.
                hand.taken += len(hand.pending)
        super()._finish_locked(transition, args)  # which counts what the hands hold
        self._hands.clear()

    def forget(self) -> None:
        super().forget()
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
        return ConsumerEndpoint(*self._open_clone())


class WorkerEndpoint(_Getting[T], _Putting[T]):
    """The real `Worker`."""

    __slots__ = ()
    kind = WORKER

    def clone(self) -> WorkerEndpoint[T]:
        """Another worker on the same queue, counted by itself."""
        return WorkerEndpoint(*self._open_clone())

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


def came_from_signal_handler(error: BaseException) -> bool:
    """Whether a signal handler raised *error*, in whatever it interrupted."""
    codes: set[object] = set()
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
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

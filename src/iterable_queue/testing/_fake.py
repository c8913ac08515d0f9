"""`FakeQueue`: the whole surface of `IterableQueue` for one thread, which never blocks.

It is the code that ships (queue, endpoints, ledger, the channel for threads), on a runtime of its
own. What differs from a real queue is here, in the order of the layers:

* The clock is virtual. A sleep with a deadline puts it forward to that; one without a deadline
  raises `WouldBlock`, since in one thread nobody can come to wake the sleeper.
* The channel keeps beside each item who put it, as that of processes does.
* The ledger writes down each of its transitions, after it was made, in a log: the history.
* The core refuses other threads, and can bury an endpoint as if its process had been killed.

Nothing here decides who is open, how much was put and taken, or when the queue is done.
"""

from __future__ import annotations

import math
import os
import queue as queues
from collections.abc import Callable, Iterable
from threading import get_ident
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, NoReturn, ParamSpec, TypeVar, cast

from iterable_queue import _cells as cells_
from iterable_queue import _endpoints, _forks
from iterable_queue._cells import (
    ABANDONED,
    CANCELLED,
    CLOSED,
    KIND_NAMES,
    PRODUCER,
    QUEUE,
    SLOT_SIZE,
    STATE,
    WORKER,
    SlotView,
)
from iterable_queue._channel import Hand
from iterable_queue._channels.threads import ThreadChannel
from iterable_queue._core import Core, check_bool, check_options, check_seconds
from iterable_queue._errors import (
    Done,
    EndpointElsewhere,
    ItemError,
    ItemsLost,
    PackedError,
    ProducerFailed,
    pack_error,
    unpack_error,
)
from iterable_queue._ledger import Ledger
from iterable_queue._protocols import Endpoint, SupportsPutGet
from iterable_queue._queue import IterableQueue
from iterable_queue._runtime import Condition, LocalErrors, ThreadRuntime, TokenQueue
from iterable_queue.testing._events import (
    Closed,
    Ended,
    Failed,
    Finished,
    Killed,
    Log,
    Lost,
    Opened,
    Put,
    QueueEvent,
    Redelivered,
    Returned,
    Stopped,
    Taken,
    Unreadable,
)

if TYPE_CHECKING:
    from iterable_queue._seams import ErrorStore

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
U = TypeVar("U")

MAX_TIMEOUTS: Final = 1000
"""So many calls may give up one after another, with no change to the queue in between."""


class WouldBlock(AssertionError):
    """A call on a `FakeQueue` would wait for ever: in one thread nobody else can end its wait.

    The text says which call, and what `explain()` says of the queue at that moment. The call
    changed nothing, but for the item that a `get` finished.
    """

    __module__ = "iterable_queue.testing"


class VirtualClock:
    """Time that passes only when somebody says so, or waits on a `FakeQueue` with a time-out.

    One clock may serve several queues, as `clock=` of each.
    """

    __slots__ = ("_now",)

    def __init__(self) -> None:
        self._now = 0.0

    @property
    def now(self) -> float:
        """Seconds since this clock was made."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let *seconds* pass (0 or more, and finite; else ValueError)."""
        check_seconds(seconds, "seconds")
        if not 0 <= seconds < math.inf:
            raise ValueError(f"seconds must be 0 or more, and finite, not {seconds!r}")
        self._now += seconds

    def _pass_until(self, moment: float) -> None:
        self._now = max(self._now, moment)

    def __repr__(self) -> str:
        return f"<VirtualClock at {self._now:g} s>"


# The layers of a real queue, and what differs


class _Condition(Condition):
    """Where a real one sleeps, this one lets time pass."""

    __slots__ = ("_runtime",)

    def __init__(self, runtime: _Runtime, index: int) -> None:
        super().__init__(runtime.head, index, TokenQueue())
        self._runtime = runtime

    def sleep(self, timeout_s: float) -> bool:
        self._runtime.pass_time()
        return False


class _PickledErrors:
    """Failures, kept as they are sent from one process to another."""

    __slots__ = ("_failures", "_reason")

    def __init__(self) -> None:
        self._failures: list[PackedError] = []
        self._reason: PackedError | None = None

    def pack(self, error: BaseException) -> PackedError:
        return pack_error(error)

    def add_failure(self, packed: object) -> tuple[tuple[int, int], ...]:
        self._failures.append(cast("PackedError", packed))
        return ()

    def count(self) -> int:
        return len(self._failures)

    def failures(self) -> tuple[BaseException, ...]:
        return tuple(map(unpack_error, self._failures))

    def set_reason(self, packed: object) -> None:
        self._reason = cast("PackedError", packed)

    def reason(self) -> BaseException | None:
        return None if self._reason is None else unpack_error(self._reason)


class _Runtime(ThreadRuntime):
    """That of threads, with a virtual clock.

    Attributes:
        clock: the one that deadlines are on.
        pass_time: what a caller does who would have to sleep.
    """

    pass_time: Callable[[], None]

    def __init__(self, clock: VirtualClock, pickled: bool) -> None:
        waiters = (cells_.WAIT_ITEM, cells_.WAIT_ROOM, cells_.WAIT_END)
        super().__init__(cells_.HEAD_SIZE, waiters)
        self.items: Condition
        self.room: Condition
        self.end: Condition
        self.items, self.room, self.end = (_Condition(self, index) for index in waiters)
        self.clock = clock
        self.errors: ErrorStore = _PickledErrors() if pickled else LocalErrors()

    def now(self) -> int:
        return round(self.clock.now * 1e9)

    def monotonic(self) -> float:
        return self.clock.now


class _TaggedChannel(ThreadChannel):
    """What is on the queue underneath is a payload with its tag."""

    __slots__ = ()

    def append(self, payload: Any, producer: int) -> None:
        super().append((payload, producer), 0)

    def unwrap(self, payload: Any) -> tuple[Any, int]:
        data, tag = payload
        return data, tag


class _Ledger(Ledger):
    """The shipped state machine, which tells the log of each transition that it has made.

    Attributes:
        log: where.
        sealed: the queue was closed by having been filled; endpoints that are asked for now stand
            for some that were made before that.
        dying: while an endpoint is being killed: the payloads in its hand that have not been put
            back yet. None: none is.
    """

    __slots__ = ("_failing", "_thread", "dying", "log", "sealed")

    def __init__(self, runtime: _Runtime, channel: ThreadChannel, log: Log) -> None:
        super().__init__(runtime, channel)
        self.log = log
        self.sealed = False
        self.dying: list[Any] | None = None
        self._failing = False
        self._thread = get_ident()
        # With a lease, copies of what is in hand are kept; they are all that is wanted of it.
        self.lease = lambda slot, hand: None

    def check_thread(self) -> None:
        """Raises `RuntimeError` in any thread but the one that made the queue."""
        if get_ident() != self._thread:
            raise RuntimeError(
                "a FakeQueue is for the one thread that made it, and this is another one; nothing "
                "was changed. Use IterableQueue.threaded() in a test with threads"
            )

    def data(self, payload: Any) -> Any:
        """What was put, of what the channel's `peek` returned."""
        return self.channel.unwrap(payload)[0]

    def in_hands(self, slot: int) -> list[Any]:
        """The payloads that the endpoint in *slot* has taken and not finished."""
        hands = self.hands.get(slot, {}).values()
        return [payload for hand in hands for payload in hand.kept[: hand.held]]

    def _tell(self, event: Callable[..., QueueEvent[Any]], slot: int, payloads: list[Any]) -> None:
        kind, number = self.view(slot)[1:3]
        for payload in payloads:
            self.log.add_item(event, kind, number, self.data(payload))

    def put(self, slot: int, number: int, payload: Any, worker: bool) -> bool:
        self.check_thread()
        if not super().put(slot, number, payload, worker):
            return False
        self.log.add_item(Put, WORKER if worker else PRODUCER, number, payload)
        return True

    def take(self, slot: int, hand: Hand, limit: int, many: bool = False) -> bool:
        self.check_thread()
        if not super().take(slot, hand, limit, many):
            return False
        self._tell(Taken, slot, hand.pending)
        return True

    def _finish(self, base: int, hand: Hand, worker: bool) -> None:
        self._tell(Finished, base // SLOT_SIZE, hand.kept[: hand.held])
        super()._finish(base, hand, worker)

    def give_back(self, slot: int, hand: Hand) -> None:
        self._tell(Returned, slot, hand.pending)
        super().give_back(slot, hand)

    def redeliver(self, slot: int, payload: Any, producer: int, done: int = 0) -> None:
        super().redeliver(slot, payload, producer, done)
        kind, number = self.view(slot)[1:3]
        self.log.add_item(Redelivered, kind, number, payload)
        dying = self.dying or []
        at = next((n for n, kept in enumerate(dying) if self.data(kept) is payload), None)
        if at is not None:
            del dying[at]

    def open(self, kind: int, site: str, *, clone: bool = False) -> tuple[int, int]:
        late = self.sealed and self.head[STATE] | ABANDONED == CLOSED | ABANDONED
        if late:
            self.head[STATE] = CLOSED  # had it been made before, the queue would not be abandoned
        slot, number = super().open(kind, site, clone=clone or late)
        self.log.add(Opened, kind, number)
        if late:
            self.settle()  # for a producer nothing has changed
        return slot, number

    def close(self, slot: int, number: int) -> bool:
        kind = self.view(slot).kind
        if not self.is_open(slot, number):
            return super().close(slot, number)
        if self.dying is None:
            self._tell(Finished, slot, self.in_hands(slot))
        closed = super().close(slot, number)
        if self.dying is None and not self._failing:
            self.log.add(Closed, kind, number)
        return closed

    def fail(self, slot: int, number: int, packed: object) -> bool:
        if self.dying is None and self.is_open(slot, number):
            self.log.add(Failed, self.view(slot).kind, number, _text(packed))
        self._failing = True
        try:
            return super().fail(slot, number, packed)
        finally:
            self._failing = False

    def cancel(self, packed: object | None) -> None:
        if not self.head[STATE] & CANCELLED:
            self.log.add(Stopped, QUEUE, 0, None if packed is None else _text(packed))
        super().cancel(packed)


def _text(packed: object) -> str:
    """The `repr` of an error, from what either store of errors packs."""
    return repr(packed if isinstance(packed, BaseException) else unpack_error(cast("Any", packed)))


class _Core(Core):
    """One queue, for one thread.

    Attributes:
        clock: the one that deadlines are on.
        book: the ledger, which keeps the log.
    """

    others_may_look = False
    gather = 1  # each item is put by itself, as on a queue for processes

    def __init__(self, runtime: _Runtime, ledger: _Ledger) -> None:
        super().__init__(runtime, ledger)
        self.leaks = None
        self.clock = runtime.clock
        self.book = ledger
        self._waits: tuple[_endpoints.Endpoint | None, float | None] = (None, None)
        """Who is in `wait`, and until when."""
        runtime.pass_time = self._pass_time

    # -- one thread ------------------------------------------------------------------------------

    def check_here(self) -> None:
        super().check_here()
        self.book.check_thread()

    def transact(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        self.book.check_thread()
        return super().transact(call, *args, **kwargs)

    def reduce(self, target: object, slot: int, number: int) -> NoReturn:
        raise TypeError(
            f"{target!r} is of a FakeQueue, which lives in one thread, and can't be pickled; use "
            "IterableQueue() to share it with other processes"
        )

    # -- waiting ---------------------------------------------------------------------------------

    def wait(
        self,
        attempt: Callable[[], bool],
        condition: Condition,
        deadline: float | None,
        endpoint: _endpoints.Endpoint | None = None,
    ) -> bool:
        ledger, log = self.book, self.book.log
        began = self.clock.now
        kind, number = (QUEUE, 0) if endpoint is None else (endpoint.kind, endpoint.number)
        outer, self._waits = self._waits, (endpoint, deadline)
        try:
            happened = super().wait(attempt, condition, deadline, endpoint)
        except (Done, ProducerFailed, ItemsLost) as error:
            ledger.sealed = False
            log.add(Ended, kind, number, type(error).__name__)
            raise
        finally:
            self._waits = outer
        if happened:
            if endpoint is None:
                ledger.sealed = False
                log.add(Ended, kind, number, "")
            return True
        if log.idle >= MAX_TIMEOUTS:
            raise WouldBlock(
                f"{_caller(endpoint)} gave up in vain, after {log.idle} other calls in a row that "
                "did and changed nothing: a loop that polls like this would go on for ever.\n"
                f"{self._explain()}"
            )
        log.add_timeout(kind, number, self.clock.now - began)
        return False

    async def awaiting(
        self,
        attempt: Callable[[], bool],
        condition: Condition,
        deadline: float | None,
        endpoint: _endpoints.Endpoint | None = None,
    ) -> bool:
        return self.wait(attempt, condition, deadline, endpoint)

    def give_way(self) -> None:
        return None

    def _pass_time(self) -> None:
        """Instead of sleeping."""
        endpoint, deadline = self._waits
        if deadline is None or deadline == math.inf:
            raise WouldBlock(
                f"{_caller(endpoint)} would wait for ever: in the one thread of a FakeQueue nobody "
                f"else can {_help(endpoint)}.\n{self._explain()}"
            )
        self.clock._pass_until(deadline)  # pyright: ignore[reportPrivateUsage]

    def _explain(self) -> str:
        from iterable_queue._explain import explain

        return self.transact(explain, self)

    # -- deaths ----------------------------------------------------------------------------------

    def kill(self, endpoint: _endpoints.Endpoint) -> None:
        """End *endpoint* as if its process had been killed. Called with the lock held."""
        ledger, slot = self.book, endpoint.slot
        if not ledger.is_open(slot, endpoint.number):
            return
        view = ledger.view(slot)
        ledger.log.add(Killed, view.kind, view.number)
        ledger.dying = ledger.in_hands(slot)
        try:
            self.bury_endpoint(view, "was killed by SIGKILL")
            for payload in ledger.dying:
                ledger.log.add_item(Lost, view.kind, view.number, ledger.data(payload))
        finally:
            ledger.dying = None

    def kept_in_hand(self, view: SlotView) -> list[tuple[Any, int]]:
        return [self.ledger.channel.unwrap(payload) for payload in self.book.in_hands(view.slot)]


def _caller(endpoint: _endpoints.Endpoint | None) -> str:
    return "join()" if endpoint is None else f"{KIND_NAMES[endpoint.kind]} {endpoint.number}"


def _help(endpoint: _endpoints.Endpoint | None) -> str:
    if endpoint is None:
        return "bring the queue to its end"
    return "take an item" if endpoint.kind == PRODUCER else "put an item or close what is open"


def _check_items(items: object) -> None:
    if items is not None and not hasattr(items, "__iter__") and not hasattr(items, "__getitem__"):
        raise TypeError(
            f"items must be an iterable, of what is put on the queue, not {items!r}; a bound is "
            "maxsize="
        )


def _check_clock(clock: object) -> None:
    if clock is not None and not isinstance(clock, VirtualClock):
        raise TypeError(f"clock must be a VirtualClock, not {clock!r}")


def _fake_core(
    underneath: Any,
    maxsize: int,
    *,
    tagged: bool = False,
    pickled: bool = False,
    cancel: bool = False,
    deliveries: int = 0,
    clock: VirtualClock | None = None,
) -> _Core:
    runtime = _Runtime(clock or VirtualClock(), pickled)
    channel = (_TaggedChannel if tagged else ThreadChannel)(runtime.head, underneath)
    channel.atomic = False  # so that nothing passes the ledger by
    dumps: Callable[[Any], bytes] | None = None
    loads: Callable[[Any], Any] = _as_it_is
    if pickled:
        from iterable_queue._pickling import pickling

        dumps, loads = pickling("multiprocessing")
    ledger = _Ledger(runtime, channel, Log(loads))
    ledger.set_up(maxsize, cancel=cancel, deliveries=deliveries)
    ledger.me = ledger.open_process(os.getpid(), lambda slot: None)
    core = _Core(runtime, ledger)
    core.dumps = dumps
    core.loads = loads if tagged else None
    _forks.track(core)
    return core


def _as_it_is(item: Any) -> Any:
    return item


# What users hold


class FakeQueue(IterableQueue[T]):
    """An `IterableQueue` for the tests of one end: in one thread, deterministic, never blocking.

    Where a real queue would wait for ever, a call raises `WouldBlock`, with `explain()` in its
    text. Where a time-out was given, virtual time passes and the call gives up: `Empty`, `Full`, or
    False from `join`. After `MAX_TIMEOUTS` (1,000) calls in a row that gave up (those that were not
    to wait among them) and no change to the queue in between, the next one raises `WouldBlock` as
    well, so a loop that polls ends.

    Endings, bounds, failures and counts are those of the code that ships. Copies and pickles of
    its endpoints, or of the queue itself, raise `TypeError`. A call that could change anything
    raises `RuntimeError`, and changes nothing, in another thread than the one that made it.

    Args:
        items: what is on the queue to begin with, put by producer 1, which has closed; then the
            queue is closed, so that a consumer comes to its end. Endpoints of every kind can be
            had all the same, as if they had been made before, until `close()` is called, or
            somebody has been told of the end. None: nothing was put, and the queue is open.
        maxsize: most items that may be put and not taken; 0 or less: unbounded.
        pickled: whether items, and the errors of failures, are pickled in `put` (and `fail`) and
            unpickled in `get`, by the rules of queues between processes. False: they are handed
            over as they are.
        on_failure, redeliver, max_deliveries: as for `IterableQueue`.
        clock: the clock of time-outs; None: one of its own.

    Raises:
        ValueError: there are more *items* than *maxsize*.
        TypeError, ValueError: for an argument of the wrong kind, by its name.
        Exception: whatever pickling one of *items* raises.
    """

    MAX_TIMEOUTS: ClassVar[int] = MAX_TIMEOUTS
    """How many calls in a row may give up with no change to the queue in between."""

    __slots__ = ()

    def __init__(
        self,
        items: Iterable[T] | None = None,
        *,
        maxsize: int = 0,
        pickled: bool = True,
        on_failure: Literal["raise", "cancel"] = "raise",
        redeliver: bool = False,
        max_deliveries: int | None = None,
        clock: VirtualClock | None = None,
    ) -> None:
        deliveries = check_options(maxsize, on_failure, redeliver, max_deliveries)
        check_bool(pickled, "pickled")
        _check_items(items)
        _check_clock(clock)
        core = _fake_core(
            queues.Queue(),
            max(int(maxsize), 0),
            tagged=True,
            pickled=pickled,
            cancel=on_failure == "cancel",
            deliveries=deliveries,
            clock=clock,
        )
        self._begin(core, maker=True)
        if items is not None:
            self._fill(list(items), maxsize)

    def _fill(self, items: list[T], maxsize: int) -> None:
        if 0 < maxsize < len(items):
            raise ValueError(f"{len(items)} items are more than maxsize={maxsize} allows")
        with self.get_producer() as out:
            out.put_many(items)
        self.close()
        self._fake.book.sealed = True

    @property
    def _fake(self) -> _Core:
        return cast("_Core", self._core)

    @classmethod
    def over(cls, queue: SupportsPutGet[U]) -> FakeQueue[U]:
        """A fake over a queue that the caller brings, as `IterableQueue.over`; nothing is pickled.

        What is on *queue* already counts as put, but is not in the history.
        """
        return cast("FakeQueue[U]", super().over(queue))

    @classmethod
    def connect(cls, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises TypeError: a fake has no server, and a name is for those of one test to share."""
        raise TypeError(
            "a FakeQueue has no server to connect to: make one by FakeQueue(...), or patch "
            "IterableQueue.connect with the connect of the fixture fake_queue (FakeQueues.connect)"
        )

    @staticmethod
    def _thread_core(queue: Any, maxsize: int) -> Core:
        return _fake_core(queue, maxsize)

    def close(self) -> None:
        """No further producers or workers will be made. Closing again does nothing."""
        super().close()
        self._fake.book.sealed = False

    # -- looking at what happened ----------------------------------------------------------------

    @property
    def history(self) -> tuple[QueueEvent[T], ...]:
        """All that has happened so far, oldest first.

        Items in it are copies that were unpickled for it (one for each item), so what a consumer
        does to its own is not seen here. With `pickled=False` they are the items themselves.
        """
        return self._fake.book.log.read()

    @property
    def put_items(self) -> list[T]:
        """What was put so far, in that order, by anybody; that which it was made with, too.

        Raises `ItemError` if one of them can't be unpickled.
        """
        items: list[T] = []
        for event in self.history:
            if isinstance(event, Put):
                if isinstance(event.item, Unreadable):
                    raise ItemError(
                        f"an item put by {event.kind} {event.number} can't be unpickled; look at "
                        "`history`, where it has an Unreadable in its place"
                    )
                items.append(event.item)
        return items

    @property
    def taken_items(self) -> list[T]:
        """What was taken so far, in that order, by anybody; twice what was handed out twice.

        What can't be unpickled, and what went back before it was handed out, is left out.
        """
        items: list[T] = []
        for event in self.history:
            if isinstance(event, Taken) and not isinstance(event.item, Unreadable):
                items.append(event.item)
            elif isinstance(event, Returned):
                for at in reversed(range(len(items))):
                    if items[at] is event.item:
                        del items[at]
                        break
        return items

    @property
    def clock(self) -> VirtualClock:
        """The clock that time-outs are on. Only they, and its own `advance`, let time pass."""
        return self._fake.clock

    # -- crashes ---------------------------------------------------------------------------------

    def kill(self, endpoint: Endpoint) -> None:
        """End *endpoint* as a SIGKILL of its process would.

        A producer has failed, and so has a worker that had an item in hand, or had not asked for
        one yet; what either had put stays put. What a consumer or worker had in hand is lost, or
        with `redeliver=True` back on the queue. Later calls of *endpoint*, whose process would
        be gone, raise `EndpointElsewhere`; only `close` does nothing, and leaving its `with`
        block. One that has closed already is only kept from being called.

        Raises:
            TypeError: *endpoint* is not one of this queue's.
        """
        if not isinstance(endpoint, _endpoints.Endpoint) or endpoint not in self._core.endpoints:
            raise TypeError(f"endpoint must be one that this queue made, not {endpoint!r}")
        self._here().transact(self._fake.kill, endpoint)
        endpoint.give_up(
            EndpointElsewhere(
                f"{KIND_NAMES[endpoint.kind]} {endpoint.number} was killed by FakeQueue.kill(): "
                "its process would be gone, and could call nothing"
            )
        )

    def __repr__(self) -> str:
        return super().__repr__().replace("IterableQueue", "FakeQueue", 1)

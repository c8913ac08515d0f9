"""What all endpoints of one queue share in one process: the ledger, its lock, and waiting.

`Core` is all that threads need. What processes need beside it (attaching, liveness, forks,
pickling) is in `_shared.SharedCore`.
"""

from __future__ import annotations

import math
import os
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from queue import SimpleQueue
from types import FrameType
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar
from weakref import WeakSet, ref

from iterable_queue import _cells as cells_
from iterable_queue import _forks
from iterable_queue._cells import (
    CANCELLED,
    CONSUMER,
    FORKED,
    KIND_NAMES,
    PROCESS,
    PRODUCER,
    QUEUE,
    SENT,
    USED,
    WORKER,
    SlotView,
)
from iterable_queue._errors import (
    ChannelBroken,
    EndpointElsewhere,
    ProducerFailed,
    WouldDeadlock,
)
from iterable_queue._ledger import Ledger
from iterable_queue._runtime import SLICE_S, Condition, is_lock_busy

if TYPE_CHECKING:
    from iterable_queue._aio import Desk
    from iterable_queue._channel import Parts
    from iterable_queue._channels.log import LogChannel
    from iterable_queue._endpoints import Endpoint
    from iterable_queue._leaks import Leaks
    from iterable_queue._seams import Lock, Runtime

P = ParamSpec("P")
R = TypeVar("R")

IN_LOOP: Final = -1.0
"""The deadline of a coroutine's attempt, which is not to keep its event loop: it tries again."""
BRIEFLY_S: Final = 0.01
"""How long the lock is waited for by what can be done later or left undone, in seconds."""
ASKED_S: Final = 1.0
"""How long by a look for those who ask how the queue is: an answer that is late is better."""
_PACKAGE: Final = __name__.partition(".")[0]
_USERS: Final = tuple(f"{_PACKAGE}.testing.{name}" for name in ("_promises", "_actors"))
"""Modules of this package that play its user."""


def is_ours(frame: FrameType) -> bool:
    """Whether the code of *frame* is of this package, and not one that plays its user."""
    name = frame.f_globals.get("__name__", "")
    return name.partition(".")[0] == _PACKAGE and not name.startswith(_USERS)


def user_line() -> str:
    """The line of user code that called into this package, as `file:line`."""
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame.f_back is not None:
        # `IterableQueue[int]()` is called by typing.
        if not is_ours(frame) and frame.f_globals.get("__name__") != "typing":
            break
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def deadline_of(block: bool, timeout: float | None, monotonic: Callable[[], float]) -> float | None:
    """The moment until which a call may wait, on the clock *monotonic*; None: for ever."""
    if not block:
        return 0.0
    if timeout is None:
        return None
    _check(timeout, (int, float), "timeout must be a number of seconds or None")
    if not timeout >= 0:
        raise ValueError(f"timeout must be 0 or more seconds, not {timeout!r}")
    try:
        return monotonic() + timeout
    except OverflowError:  # an int that is more than a float can hold
        return math.inf


def _patience(timeout: float | None) -> float:
    """How long a call with that time-out waits for the lock to wake somebody, in seconds."""
    return SLICE_S if timeout is None else min(max(timeout, BRIEFLY_S), SLICE_S)


class Waiting:
    """One caller's wait: whether it is announced, and shown as blocked to those who ask."""

    __slots__ = ("announced", "condition", "shown")

    def __init__(self, condition: Condition) -> None:
        self.condition = condition
        self.announced = False
        self.shown = False

    def announce(self) -> None:
        """Say that the caller is about to sleep. Called with the lock held."""
        self.condition.announce()
        self.announced = True


def check_int(value: object, name: str) -> None:
    """Raises TypeError, with the argument's name, unless *value* is an int."""
    _check(value, int, f"{name} must be an int")


def check_limit(limit: object) -> None:
    """Raises TypeError or ValueError unless *limit* is how many items may be asked for at once."""
    check_int(limit, "limit")
    assert isinstance(limit, int)
    if limit < 1:
        raise ValueError(f"limit must be 1 or more items, not {limit}")


def check_bool(value: object, name: str) -> None:
    """Raises TypeError, with the argument's name, unless *value* is a bool."""
    _check(value, bool, f"{name} must be a bool")


def check_callable(value: object, name: str) -> None:
    """Raises TypeError, with the argument's name, unless *value* can be called."""
    if not callable(value):
        raise TypeError(f"{name} must be a function, not {value!r}")


def check_seconds(value: object, name: str) -> None:
    """Raises TypeError, with the argument's name, unless *value* is a number."""
    _check(value, (int, float), f"{name} must be a number of seconds")


def check_options(
    maxsize: object, on_failure: object, redeliver: object, max_deliveries: object
) -> int:
    """Raises TypeError or ValueError unless these are what a queue can be made with.

    Returns how often an item is handed out at most if its takers are killed; 0: once, and that is
    not even written down.
    """
    check_int(maxsize, "maxsize")
    if on_failure not in ("raise", "cancel"):
        raise ValueError(f"on_failure must be 'raise' or 'cancel', not {on_failure!r}")
    check_bool(redeliver, "redeliver")
    if max_deliveries is None:
        return cells_.MAX_DELIVERIES if redeliver else 0
    check_int(max_deliveries, "max_deliveries")
    assert isinstance(max_deliveries, int)
    if not redeliver:
        raise ValueError("max_deliveries is for queues with redeliver=True")
    if not 1 <= max_deliveries <= cells_.MOST_DELIVERIES:
        raise ValueError(
            f"max_deliveries must be 1 to {cells_.MOST_DELIVERIES}, not {max_deliveries}"
        )
    return max_deliveries


def check_exception(error: object) -> None:
    """Raises TypeError unless *error* is an exception (an instance, not a class)."""
    _check(error, BaseException, "error must be an exception")


def _check(value: object, kind: type | tuple[type, ...], what: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{what}, not {value!r}")


def stays_here(endpoint: str) -> TypeError:
    """The error for pickling an endpoint that has been used."""
    return TypeError(
        f"{endpoint} has been used in this process and stays here; pickle a clone() of it"
    )


class Mark(ref[Any]):
    """Tells when an object of an endpoint, or of the queue, is gone, also if nothing else could.

    Its `__del__` can be interrupted before it has done anything, by a signal handler that raises.
    What is called of a weak reference is a C function here, which can't.
    """

    __slots__ = ("number", "slot")

    slot: int
    number: int


class Core:
    """One queue, as seen from one process.

    Attributes:
        runtime: lock, conditions, clock, cells.
        ledger: the state machine over them.
        dumps, loads: how items cross to other processes; None: they are handed over as they are.
        elsewhere: True in a forked child in which nothing here may be used any more.
        endpoints: those of this process that are referred to, for a fork to find.
        copies: those that the fork which made this process has copied, but was not made to give.
    """

    dumps: Callable[[Any], bytes] | None = None
    loads: Callable[[Any], Any] | None = None
    dumps_apart: Callable[[Any], bytes | Parts] | None = None
    """`dumps` that may leave large buffers where they are, for who copies them at once."""
    plain: frozenset[type] = frozenset()
    """Types of items for which `marshal.dumps` may be called instead of `dumps`."""
    spins = 0
    """How often a busy lock is tried again at once before the caller sleeps for it."""
    gather = 64
    """At most this many items are put in one turn of the lock by `put_many`."""
    _is_finalizing = staticmethod(sys.is_finalizing)
    append_now: Callable[[Any], object] | None = None
    """For an atomic channel: a C function that appends an item."""
    size_now: Callable[[], int] | None = None
    """Likewise, one that says how many there are."""
    log: LogChannel | None = None
    """Where producers put and consumers take without the lock, on a queue for processes."""
    place: str | None = None
    """The queue's directory, by which others find it; None: there is none."""
    others_may_look = True
    """Whether another thread than that of the caller may ask for statistics."""
    watcher: Callable[[object], None] | None = None
    """For threads: what `watch` calls."""
    endpoint_set: Callable[[], Any] = WeakSet
    """Makes what `endpoints` is."""
    leaks: Leaks | None = None
    """In Python's development mode, what tells of endpoints that were dropped without a close."""
    not_in_time = "another call had the queue's lock for too long"
    """Why a call that had a time-out could not even take its endpoint into use."""
    patience_s = math.inf
    """For how long a coroutine that has no time-out tries that, in seconds."""
    queue_slot = 2
    """The slot of the queue itself: the second to be opened, after that of its maker's process."""
    _left = True
    """Whether `leave` has begun, or there is nothing to leave, or not yet."""

    def __init__(self, runtime: Runtime, ledger: Ledger) -> None:
        self.runtime = runtime
        self.ledger = ledger
        self.elsewhere: bool = False
        self.locks: tuple[Lock, ...] = (runtime.trylock,) * self.spins + (runtime.lock,)
        """With which a call without a time-out tries by itself, before it is one that waits."""
        self.put_locks = self.locks
        """The same, for `put`."""
        self._nameless_at = 0.0
        """When the lock was last found busy with nobody's name on it, and not had since."""
        self.endpoints: WeakSet[Endpoint] = self.endpoint_set()
        self.copies: WeakSet[Endpoint] = WeakSet()
        self._pid = os.getpid()
        self.dropped: deque[Mark | tuple[int, int]] = deque()
        """Endpoints whose objects are gone: the next one to hold the lock ends those."""
        self.gone: deque[Mark] = deque()
        """The marks of objects that were freed with no word from `__del__`, or not yet."""
        self._gone_before: deque[Mark] = deque()
        self._aged_at = -math.inf
        self._marks: set[Mark] = set()
        self.desks: dict[Any, Desk] = {}
        """Where coroutines sleep, by their loop and what they wait for."""
        if sys.flags.dev_mode:
            from iterable_queue._leaks import LEAKS

            self.leaks = LEAKS

    # -- the lock --------------------------------------------------------------------------------

    def transact(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """`call(*args)` as one transition, waiting for the lock as long as its holder lives."""
        while True:
            try:
                with self.runtime.lock:
                    self._nameless_at = 0.0
                    self._bury_dropped()
                    return self.ledger.transact(call, *args, **kwargs)
            except KeyError as error:
                busy = error
            # Not kept: error, traceback and frame are a ring, which would keep the callers' frames,
            # and what the ends of these set free, until the collector comes.
            try:
                self.lock_was_busy(busy)
            finally:
                del busy

    def try_transact(self, patience_s: float, call: Callable[[], object]) -> bool:
        """The same for at most *patience_s* seconds. False: the lock could not be had."""
        try:
            with self.runtime.lock_within(patience_s):
                self._nameless_at = 0.0
                self._bury_dropped()
                self.ledger.transact(call)
                return True
        except KeyError as error:
            busy = error
        try:
            self.lock_was_busy(busy)
        finally:
            del busy  # as in `transact`
        return False

    def transact_until(self, deadline: float | None, call: Callable[[], object]) -> bool:
        """The same until *deadline* (see `deadline_of`). False: it passed first.

        A call that does not wait waits for the lock all the same, up to a slice: others have it
        for much less, unless they are stopped, and it is to say what is on the queue.
        """
        if deadline is None:
            self.transact(call)
            return True
        least_s = BRIEFLY_S if deadline else SLICE_S
        while not self.try_transact(max(deadline - self.runtime.monotonic(), least_s), call):
            if self.runtime.monotonic() >= deadline:
                return False
        return True

    def tell_of_put(self, count: int = 1, timeout: float | None = None) -> None:
        """Wake who waits for items. They are put, so this raises nothing; sleepers look anyway.

        The lock is waited for no longer than *timeout* seconds, or a slice.
        """
        try:
            self.try_transact(_patience(timeout), partial(self.ledger.was_put, count))
        except ChannelBroken:
            pass
        except WouldDeadlock:
            # The put interrupted a call of this thread, which has the lock.
            self.ledger.items.notify(count)

    def tell_of_room(self, timeout: float | None = None) -> None:
        """The same for a get without the lock, and who waits for room."""
        try:
            self.try_transact(_patience(timeout), self.ledger.room.notify)
        except ChannelBroken:
            pass
        except WouldDeadlock:
            self.ledger.room.notify()

    def lock_was_busy(self, error: KeyError) -> None:
        """Returns if the lock is worth waiting for; *error* came out of `with lock`."""
        if not is_lock_busy(error):
            raise error

    def look(self, patience_s: float = BRIEFLY_S) -> None:
        """What a sleeper does after a slice: see who has died, and repair missed wake-ups.

        *patience_s*: how long the lock is waited for at most, in seconds; else this is left undone.
        """
        self.try_transact(patience_s, self.ledger.settle)

    # -- waiting ---------------------------------------------------------------------------------

    def deadline(self, block: bool, timeout: float | None) -> float | None:
        """`deadline_of` on the clock of this queue's runtime."""
        return deadline_of(block, timeout, self.runtime.monotonic)

    def wait(
        self,
        attempt: Callable[[], bool],
        condition: Condition,
        deadline: float | None,
        endpoint: Endpoint | None = None,
    ) -> bool:
        """Call *attempt* with the lock held until it returns True or raises.

        False: the deadline passed first. Between attempts the caller sleeps on *condition*, in
        slices, without the lock. One deadline serves for all of it, the lock's own wait included;
        so nothing here waits for the lock without end, whatever its holder does.
        """
        if deadline == 0.0:
            return self._attempt_once(attempt)
        waiting = Waiting(condition)
        lock = self.runtime.lock
        left = math.inf
        try:
            while True:
                if deadline is not None:
                    left = deadline - self.runtime.monotonic()
                    lock = self.runtime.lock_within(max(left, BRIEFLY_S))
                if self.attempt(attempt, waiting, lock):
                    return True
                if deadline is not None:
                    left = deadline - self.runtime.monotonic()
                if left <= 0:
                    return False
                if not waiting.announced:
                    continue  # the lock was busy
                if not waiting.shown and endpoint is not None:
                    waiting.shown = True
                    endpoint.set_blocked(True)
                if condition.sleep(left):
                    waiting.announced = False
                else:
                    self.look()
        finally:
            if waiting.announced:
                self.tidy(condition.retract)
            if waiting.shown and endpoint is not None:
                endpoint.set_blocked(False)

    def _attempt_once(self, attempt: Callable[[], bool]) -> bool:
        """For calls that don't wait."""
        try:
            with self.runtime.lock_within(SLICE_S):
                self._nameless_at = 0.0
                if attempt():
                    return True
        except KeyError as error:
            busy = error
        else:
            self.look_now_and_then()
            return False
        try:
            self.lock_was_busy(busy)
        finally:
            del busy  # as in `transact`
        return False

    def attempt(self, attempt: Callable[[], bool], waiting: Waiting, lock: Lock) -> bool:
        """One attempt; where it fails, the caller is announced as waiting, in the same turn.

        False, and not announced: the lock was busy.
        """
        try:
            with lock:
                self._nameless_at = 0.0
                if attempt():
                    return True
                if not waiting.announced:
                    waiting.announce()
                    # Again: what was put without the lock looked for waiters too early.
                    return self.ledger.channel.recheck() and attempt()
                return False
        except KeyError as error:
            busy = error
        try:
            self.lock_was_busy(busy)
        finally:
            del busy  # as in `transact`
        return False

    def tidy(self, call: Callable[[], object]) -> None:
        """Something that may be left undone where the lock is busy or gone."""
        try:
            self.try_transact(BRIEFLY_S, call)
        except (ChannelBroken, WouldDeadlock):
            pass

    def awaiting(
        self,
        attempt: Callable[[], bool],
        condition: Condition,
        deadline: float | None,
        endpoint: Endpoint | None = None,
    ) -> Awaitable[bool]:
        """The same for coroutines: what is returned sleeps in the running event loop."""
        from iterable_queue._aio import wait

        return wait(self, attempt, condition, deadline, endpoint)

    def give_way(self) -> Awaitable[None] | None:
        """What a coroutine awaits that has had its loop for a while; None: nothing."""
        from asyncio import sleep

        return sleep(0)

    def leave_loops(self) -> None:
        """In a forked child: who sleeps in an event loop does so in the parent."""
        for desk in self.desks.values():
            desk.forget()
        self.desks = {}

    def look_now_and_then(self) -> None:
        """A look for those who poll without waiting, not more often than a slice."""

    # -- dropped endpoints -----------------------------------------------------------------------

    def mark(self, handle: object, slot: int, number: int) -> Mark | None:
        """Have it noticed when *handle*, the object of that endpoint or of the queue, is gone."""
        mark = Mark(handle, self.gone.append)
        mark.slot, mark.number = slot, number
        self._marks.add(mark)
        return mark

    def unmark(self, mark: Mark | None) -> None:
        """Its object is closed, or given up: what becomes of that does not matter any more."""
        if mark is not None:
            self._marks.discard(mark)

    def open_endpoint(
        self,
        make: Callable[[Core, int, int], R],
        transition: Callable[Concatenate[list[int], P], None],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """*make* the object of the endpoint that *transition* opens.

        That adds slot and number to a list. An endpoint without an object would be open for ever:
        so if this is interrupted once there is one, it is closed.
        """
        opened: list[int] = []
        try:
            self.transact(transition, opened, *args, **kwargs)
            return make(self, *opened)
        except BaseException:
            if opened:  # without a call, which could be interrupted as well
                self.dropped += ((opened[0], opened[1]),)
            raise

    def open_locked(self, opened: list[int], kind: int, site: str) -> None:
        # No handler runs between the return and the addition.
        opened += self.ledger.open(kind, site)

    def is_finalizing(self) -> bool:
        """Whether this process ends, and modules may be half gone."""
        return self._is_finalizing()

    def drop(self, slot: int, number: int, mark: Mark | None = None) -> None:
        """An endpoint's last reference has gone. Safe anywhere, also inside a transition.

        It only appends; the next one to hold the lock does the rest, which is this call where the
        lock is free, and a sleeper after its slice at the latest. Where an interrupt keeps it from
        being called, or from appending, the object's *mark* tells that it is gone.
        """
        if self._is_finalizing():
            return  # the exit hooks have done what is to be done, and modules are half gone
        self.dropped.append(mark or (slot, number))
        try:
            with self.runtime.trylock:
                self._bury_dropped()
        except ChannelBroken:
            pass  # nobody counts any more
        except KeyError as error:
            if not is_lock_busy(error):
                raise

    def _bury_dropped(self) -> None:
        """With the lock held, but not necessarily at rest: a `__del__` may be inside anything."""
        if self.gone or self._gone_before:
            self._age_gone()
        while self.dropped and not self.ledger.head[cells_.HOLDER]:
            self.ledger.transact(self._bury_first)

    def _bury_first(self) -> None:
        """Bury the next one, and forget it afterwards: what an interrupt cuts short is done again.

        As a transition, in which whatever interrupts it does not do the same.
        """
        if not self.dropped:
            return  # what interrupted the caller has done it
        dropped = self.dropped[0]
        try:
            if isinstance(dropped, Mark):
                if dropped in self._marks:
                    self._bury(dropped.slot, dropped.number)
            elif not any(one.serves(dropped[1]) for one in _forks.members_of(self.endpoints)):
                self._bury(*dropped)
        except Exception as error:
            if not self._may_bury_later(error):
                self._forget_first(dropped)  # or each later call would come upon the same error
            raise
        self._forget_first(dropped)

    def _may_bury_later(self, error: Exception) -> bool:
        """Whether *error* has nothing to do with what was to be buried."""
        from iterable_queue._endpoints import came_from_signal_handler

        passing = RecursionError, MemoryError, ChannelBroken, WouldDeadlock
        return isinstance(error, passing) or came_from_signal_handler(error)

    def _forget_first(self, dropped: Mark | tuple[int, int]) -> None:
        if isinstance(dropped, Mark):
            self._marks.discard(dropped)
        if self.dropped and self.dropped[0] is dropped:  # else this is a child, forked just now
            del self.dropped[0]

    def _age_gone(self) -> None:
        """Have those buried whose marks are there for a slice. Lock held.

        The collector calls what is called of weak references before any `__del__`, which may use
        and close them. Each step leaves a mark in two places rather than in none.
        """
        now = self.runtime.monotonic()
        if now - self._aged_at < SLICE_S:
            return
        self._aged_at = now
        for old, new in (self._gone_before, self.dropped), (self.gone, self._gone_before):
            for _ in range(len(old)):
                new.append(old[0])
                del old[0]

    def _bury(self, slot: int, number: int) -> None:
        ledger = self.ledger
        if (slot, number) == (self.queue_slot, 0):
            if ledger.head[cells_.HANDLE] == ledger.me:
                ledger.close(slot, number)
                ledger.no_more_consumers()
            return
        if not ledger.is_open(slot, number):
            return
        view = ledger.view(slot)
        if not self.is_mine(view):
            return
        handed_on = view.flags & (SENT | FORKED)
        if view.flags & USED:
            self.end(view, "was dropped without close()")
        elif handed_on:
            self.set_adrift(view)
        elif view.owner:
            self.end(view, "was dropped, without having been used, by the process that took it")
        else:
            ledger.close(slot, number)

    def is_mine(self, view: SlotView) -> bool:
        """Whether this process took the endpoint, or made it and nobody has taken it."""
        me = self.ledger.me
        return me != 0 and (view.owner == me or (view.owner == 0 and view.maker == me))

    def set_adrift(self, view: SlotView) -> None:
        """The copy here has gone, but others may hold one: see `_shared`."""

    def end(self, view: SlotView, how: str, cause: BaseException | None = None) -> None:
        """Close an endpoint whose user did not: a producer (or busy worker) has then failed."""
        cells = self.ledger.cells
        base = view.slot * cells_.SLOT_SIZE
        busy = view.kind == WORKER and (view.in_hand or cells[base + cells_.FLAGS] & cells_.UNASKED)
        if view.kind in (PRODUCER, QUEUE) or busy:
            self.ledger.fail(
                view.slot, view.number, self.runtime.errors.pack(self.failure(view, how, cause))
            )
        else:
            self.ledger.close(view.slot, view.number)

    def bury_endpoint(self, view: SlotView, how: str) -> None:
        """End an endpoint whose process has died. Called with the lock held.

        What a consumer had in hand is handed out again if the queue redelivers, or lost. Where it
        redelivers, a worker has failed only if the tries have run out, or if it had begun to put
        before it asked for anything.
        """
        ledger = self.ledger
        if ledger.claims is not None and view.kind == CONSUMER:
            ledger.claims.cut(view.slot)
            ledger.claims.settle_claim(view.slot)
            view = ledger.view(view.slot)
        redelivers = ledger.head[cells_.REDELIVER]
        cut_short = (
            view.kind == WORKER
            and bool(view.flags & cells_.UNASKED)
            and (not redelivers or bool(view.flags & cells_.HAS_PUT))
        ) or bool(view.flags & cells_.CUT_SHORT)
        if view.in_hand:
            lost = view.in_hand
            if redelivers and not ledger.head[cells_.STATE] & CANCELLED:
                lost = self._redeliver(view)
            if lost:
                ledger.lose(view.slot, lost)
                cut_short = cut_short or view.kind == WORKER
        if view.kind == PRODUCER or cut_short:
            packed = self.runtime.errors.pack(self.failure(view, how, None))
            ledger.fail(view.slot, view.number, packed)
        else:
            ledger.close(view.slot, view.number)

    def _redeliver(self, view: SlotView) -> int:
        """Put back what the consumer had in hand. Returns how many items are lost all the same."""
        # One who did this before, and was killed, may have dealt with the first ones.
        done = self.ledger.cells[view.slot * cells_.SLOT_SIZE + cells_.DEALT_WITH]
        kept = self.kept_in_hand(view)[done:]
        lost = max(view.in_hand - len(kept), 0)
        for payload, tag in kept[: view.in_hand]:
            done += 1
            tries = (tag >> cells_.TRIES_SHIFT) + 1
            if tries >= self.ledger.head[cells_.REDELIVER]:
                lost += 1
            else:
                again = tag & (1 << cells_.TRIES_SHIFT) - 1 | tries << cells_.TRIES_SHIFT
                self.ledger.redeliver(view.slot, payload, again, done)
        return lost

    def kept_in_hand(self, view: SlotView) -> list[tuple[Any, int]]:
        """What was written down, by `Ledger.lease`, of the items that the endpoint has in hand."""
        return []

    def failure(self, view: SlotView, how: str, cause: BaseException | None) -> ProducerFailed:
        """The error that says how the endpoint ended."""
        process = self.name_of(view.owner or view.maker)
        made = f"made at {view.text}" + (f" ({process})" if process else "")
        what = (
            f"the queue {made}"
            if view.kind == QUEUE
            else f"{KIND_NAMES[view.kind]} {view.number}, {made},"
        )
        error = ProducerFailed(f"{what} {how}")
        error.__cause__ = cause
        return error

    def close_queue(self) -> None:
        """No further producers or workers. Called with the lock held."""
        if not self.ledger.head[cells_.STATE] & cells_.CLOSED:
            self.ledger.close(self.queue_slot, 0)

    def is_alive(self, process: int) -> bool:
        """Whether the process in that slot lives."""
        return True

    def pid_of(self, process: int) -> int:
        """The pid of the process in that slot; 0: it has gone, or has not begun to run."""
        if process < 0:
            return -process
        view = self.ledger.view(process) if process else None
        return view.number if view is not None and view.kind == PROCESS else 0

    def name_of(self, process: int) -> str:
        """How messages call the process in that slot; empty where `pid_of` is 0."""
        pid = self.pid_of(process)
        return f"pid {pid}" if pid else ""

    # -- for people ------------------------------------------------------------------------------

    # Without the lock, since they are called wherever something is printed, by a debugger or a
    # signal handler too. So what they say may be of two moments; and they raise what they come
    # upon where cells are out of reach.

    def whose(self, slot: int, number: int) -> tuple[str | None, int]:
        """Whose an endpoint is, as its `repr` says it, and how many threads wait in its calls.

        None: it is open no more.
        """
        ledger = self.ledger
        if not ledger.is_open(slot, number):
            return None, 0
        view = ledger.view(slot)
        pid = self.pid_of(view.owner or view.maker)
        how = "of" if view.owner else "made by"
        return (f" {how} process {pid}" if pid else ""), view.blocked

    def describe(self) -> str:
        """State and counts, as the queue's `repr` has them."""
        ledger = self.ledger
        head = ledger.head
        most = f" of {head[cells_.MAXSIZE]}" if head[cells_.MAXSIZE] else ""
        parts = [ledger.state_name(fold=False), f"{ledger.qsize()}{most} queued"]
        parts += [
            f"{head[cell]} {what}{'' if head[cell] == 1 else 's'}"
            for cell, what in (
                (cells_.PRODUCERS, "producer"),
                (cells_.CONSUMERS, "consumer"),
                (cells_.WORKERS, "worker"),
            )
            if head[cell] or cell != cells_.WORKERS
        ]
        return ", ".join(parts)

    def remarks(self) -> list[str]:
        """What else is to be told by `explain`. Called with the lock held, after `statistics`."""
        return []

    @property
    def maker_pid(self) -> int:
        """The pid of the process that made the queue."""
        return self._pid

    # -- where things are ------------------------------------------------------------------------

    def before_fork(self, arguments: tuple[object, ...]) -> None:
        """Called in the process that is about to fork, with the child's direct arguments."""

    def after_fork_in_parent(self) -> None:
        """Called in that process afterwards."""

    def after_fork_in_child(self) -> None:
        """Called in the child: threads' queues stay with the parent."""
        self.elsewhere = True
        self.leave_loops()
        for endpoint in _forks.members_of(self.endpoints):
            endpoint.forget()

    def receive(self, kind: int, slot: int, number: int, generation: int) -> Endpoint | None:
        """Take the endpoint that has come by a pickle. Returns it if it is here already."""
        raise NotImplementedError  # threads' queues don't travel

    def arrived(self, slot: int, number: int, *, taken: bool) -> Endpoint | None:
        """The endpoint that has just come here by a pickle, if this process has it already.

        *taken*: it is this process's now. Then a copy of it that was inherited and not used gives
        way to the one that has come. What refers to such a copy may be a frame of the parent's, to
        which this process never returns: it would be kept, and nobody could see that the other one
        was dropped. Lock held, so that no other thread takes the copy into use meanwhile.
        """
        for endpoint in _forks.members_of(self.endpoints):
            if endpoint.slot != slot or endpoint.number != number:
                continue
            if not taken or endpoint not in self.copies or not endpoint.give_way():
                return endpoint
            self.endpoints.discard(endpoint)
        return None

    def check_here(self) -> None:
        """Raises `EndpointElsewhere` in a process that can't use this queue."""
        if self.elsewhere:
            raise EndpointElsewhere(
                f"this queue is for the threads of process {self._pid}, and this is process "
                f"{os.getpid()}; make it with IterableQueue() to share it with other processes"
            )

    def register(self) -> None:
        """Make sure that this process has a slot."""

    def arrive(self, deadline: float | None) -> bool:
        """Where that may take long, do it until *deadline* at most. False: it passed first."""
        return True

    def watch(self, target: object) -> None:
        """Called with each endpoint and handle that is made while `head[WATCHED]` is above 0.

        The seam for tests with real queues. It costs one look for each object that is made, and
        its calls nothing.
        """
        if self.watcher is not None:
            self.watcher(target)

    def leave(self, how: str, cause: BaseException | None = None) -> None:
        """This process takes part no more: it ends, or nothing in it refers to the queue."""
        try:
            _forks.undisturbed(self._leave_once, how, cause)
        except BaseException:
            # A signal handler raised. While this process lives, nobody else would do the rest.
            _forks.undisturbed(self._leave_now, how, cause)
            raise

    def _leave_once(self, how: str, cause: BaseException | None) -> None:
        if not self._left:
            self._leave_now(how, cause)

    def _leave_now(self, how: str, cause: BaseException | None) -> None:
        """Tell the others, and let go of what outlives this object: what of it is still to be done.

        Its steps are such that each may be the last one before this is called again.
        """

    def reduce(self, target: object, slot: int, number: int) -> tuple[Any, ...]:
        """What `__reduce__` returns."""
        raise TypeError(
            f"{target!r} is for the threads of one process and can't be pickled; make the queue "
            "with IterableQueue() to share it with other processes"
        )


def leave_dropped(core: Core) -> None:
    """`__del__` of what something outlives."""
    how = "was dropped without close()"
    try:
        core.leave(how)
    except BaseException:
        core.leave(how)  # where an interrupt came before it had begun
        raise


def unpickled(
    join: Callable[[], Core], remedy: str, kind: int, slot: int, number: int, generation: int
) -> object:
    """The endpoint or the queue that has come by a pickle. This process takes it, if it can.

    Raises nothing but what interrupts it. Then the endpoint has no object here, and is given up: it
    would be open as long as this process lives.
    """
    from iterable_queue._endpoints import came_from_signal_handler, endpoint_of
    from iterable_queue._queue import new_handle

    joined: Core | None = None
    given_up = kind != QUEUE
    try:
        lost: Exception | None = None
        endpoint: Endpoint | None = None
        try:
            core = joined = join()
            if kind != QUEUE:
                endpoint = core.transact(core.receive, kind, slot, number, generation)
        except Exception as error:
            if came_from_signal_handler(error):
                raise
            here = f"the queue can't be reached from process {os.getpid()}"
            lost = ChannelBroken(f"{here}: {error}{remedy}")
            core = thread_core(SimpleQueue(), 0)  # a stand-in: calls raise *lost* before using it
        if kind == QUEUE:
            return new_handle(core, lost)
        if endpoint is None:
            endpoint = endpoint_of(core, kind, slot, number, lost)
        given_up = lost is not None
        return endpoint
    finally:
        if given_up and joined is not None:
            joined.dropped += ((slot, number),)


def thread_core(queue: Any, maxsize: int) -> Core:
    """A core for threads, over *queue*; what is on it already counts as put."""
    from iterable_queue._channels.threads import ThreadChannel
    from iterable_queue._runtime import ThreadRuntime

    runtime = ThreadRuntime(cells_.HEAD_SIZE, (cells_.WAIT_ITEM, cells_.WAIT_ROOM, cells_.WAIT_END))
    channel = ThreadChannel(runtime.head, queue)
    ledger = Ledger(runtime, channel)
    ledger.set_up(maxsize)
    ledger.me = ledger.open_process(os.getpid(), lambda slot: None)
    core = Core(runtime, ledger)
    if channel.atomic:
        core.append_now = queue.put
        core.size_now = queue.qsize
    _forks.track(core)
    return core

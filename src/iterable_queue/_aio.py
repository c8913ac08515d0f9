"""Calls for coroutines: they wait in an asyncio event loop, without a thread.

Imported at the first such call, so that who has no event loop does not import asyncio.

A coroutine that has to wait does what `Core.wait` does: it tries with the lock held, announces
itself in the same turn, and sleeps without the lock, in slices. But it sleeps in its event loop,
at a *desk*: one for each loop and each thing that is waited for (a queue's `Condition`), which is
there while somebody sleeps at it. A token, which `Condition.notify` gives to a condition's *bell*,
wakes one sleeper of one desk:

    queue        bell                                     desk
    processes    a byte in a FIFO (`Fifo`)                its loop watches the FIFO, reads a byte
    threads      an entry in a loop's list of callbacks   called back by its loop
                 (`ThreadBell`)

Tokens are addressed to nobody. One that comes to a desk at which nobody sleeps any more, or to a
sleeper that was just cancelled, is passed on. One that is lost with a killed process is made up for
by the slice: each desk looks that often who has died, and lets its sleepers look for themselves.

Nothing is awaited between the moment an item is taken and the moment the caller has it: so a call
that is cancelled has taken nothing. Where an item is there at once, the call would never suspend,
and a loop over a full queue would keep all others of its event loop from running. So calls of an
endpoint give way, before they take anything, when it last did so `TURN_NS` ago.
"""

# pyright: reportPrivateUsage=false
# These are parts of the endpoints that happen to be kept here.

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from queue import Empty, Full
from threading import get_ident
from typing import TYPE_CHECKING, Final, TypeVar, cast

from iterable_queue._channel import EMPTY
from iterable_queue._clock import monotonic_ns
from iterable_queue._core import Waiting, check_limit
from iterable_queue._endpoints import TURN_NS
from iterable_queue._errors import ChannelBroken
from iterable_queue._runtime import SLICE_S
from iterable_queue._shared_runtime import Fifo

if TYPE_CHECKING:
    from iterable_queue._core import Core
    from iterable_queue._endpoints import Endpoint, _Getting, _Putting
    from iterable_queue._runtime import Condition

T = TypeVar("T")

LOCK_S: Final = 0.001
"""How long the lock is waited for at a time, in seconds: all of the event loop waits meanwhile."""
PAUSES_S: Final = (0.0, 0.001, 0.005, 0.02, 0.05)
"""For how long others have the loop then, before the lock is tried again, in seconds."""
LOOKERS: Final = 16
"""So many sleepers of a desk look for themselves after each slice: those who have slept longest."""


# -- sleeping in an event loop -------------------------------------------------------------------


class Desk:
    """Where coroutines of one event loop sleep until a condition's bell rings.

    Attributes:
        loop, condition: for whom, and for what.
        users: coroutines that sleep here, or are about to. The desk is gone with the last one.
        is_forgotten: True in a forked child, in which nothing here may be touched.
    """

    def __init__(self, core: Core, condition: Condition, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.condition = condition
        self.users = 0
        self.is_forgotten = False
        self._core = core
        self._sleepers: dict[asyncio.Future[bool], None] = {}
        """Who sleeps, as an ordered set: the one that has slept longest comes first."""
        self._slice: asyncio.TimerHandle | None = None

    # What differs between the bells. All of it is called by the loop's thread.

    def open(self) -> None:
        """Be one whom the bell may mean, before anybody is counted."""

    def close(self) -> None:
        """Be none any more. The loop may be closed by now."""

    def listen(self) -> None:
        """Somebody sleeps here now."""

    def ignore(self) -> None:
        """Nobody does any more. The loop may be closed by now."""

    def count(self) -> None:
        """One more waits here. Called with the lock held, when that counts in the condition."""

    def uncount(self) -> bool:
        """One less waits here. False: all who were counted got a token. With the lock held."""
        raise NotImplementedError

    def swallow(self) -> bool:
        """Take a token back that was given and not noticed yet. False: there is none."""
        raise NotImplementedError

    # What does not.

    def announce(self) -> None:
        """Say that a coroutine is about to sleep. Called with the lock held."""
        self.condition.announce()
        self.count()

    def retract(self) -> None:
        """Undo that for one who leaves without a token. Called with the lock held.

        A token that was on its way to it goes to another.
        """
        if self.uncount():
            self.condition.retract_coroutine()
        elif self.swallow():
            self.condition.notify()

    def asleep(self) -> Iterator[asyncio.Future[bool]]:
        """Those who sleep, and were neither woken nor cancelled just now."""
        return (sleeper for sleeper in self._sleepers if not sleeper.done())

    def admit(self, tokens: int) -> None:
        """So many tokens have come."""
        for sleeper in islice(self.asleep(), tokens):
            sleeper.set_result(True)
            tokens -= 1
        if tokens:
            self.pass_on(tokens)

    def pass_on(self, tokens: int) -> None:
        """Those who were meant have left: others are to be woken in their place."""
        self._core.tidy(partial(self.condition.notify, tokens))

    async def sleep(self, waiting: Waiting, timeout_s: float) -> None:
        """Wait for a token, at most for a slice or so. With one, *waiting* is announced no more."""
        sleeper: asyncio.Future[bool] = self.loop.create_future()
        timer: asyncio.TimerHandle | None = None
        if self._slice is None:
            self._slice = self.loop.call_later(SLICE_S * self.condition.slices, self._look)
        if timeout_s < math.inf:
            timer = self.loop.call_later(timeout_s, _wake, sleeper)
        if not self._sleepers:
            self.listen()
        self._sleepers[sleeper] = None
        try:
            if await sleeper:
                waiting.announced = False
        except BaseException:
            # Cancelled, perhaps with a token in hand.
            if sleeper.done() and not sleeper.cancelled() and sleeper.result():
                waiting.announced = False
                self.pass_on(1)
            raise
        finally:
            if not self.is_forgotten:
                del self._sleepers[sleeper]
                if not self._sleepers:
                    self.ignore()
            if timer is not None:
                timer.cancel()

    def _look(self) -> None:
        """After a slice: see who has died, and have sleepers see for themselves."""
        self._slice = None
        lookers = LOOKERS
        try:
            self._core.look()
        except Exception:
            lookers = len(self._sleepers)  # the queue is broken, as each of them will find
        for sleeper in islice(self.asleep(), lookers):
            sleeper.set_result(False)
        if any(self.asleep()):
            self._slice = self.loop.call_later(SLICE_S * self.condition.slices, self._look)

    def enter(self) -> None:
        """One more coroutine uses this desk."""
        if not self.users:
            self.open()
            self._core.desks[self.loop, self.condition] = self
        self.users += 1

    def leave(self) -> None:
        """One less does."""
        self.users -= 1
        if not self.users:
            self.close()
            if self._slice is not None:
                self._slice.cancel()
                self._slice = None
            self._core.desks.pop((self.loop, self.condition), None)

    def forget(self) -> None:
        """In a forked child, to which this does not belong."""
        self.is_forgotten = True


def _wake(sleeper: asyncio.Future[bool]) -> None:
    """Without a token."""
    if not sleeper.done():
        sleeper.set_result(False)


class FifoDesk(Desk):
    """A desk at a FIFO, on a queue for processes."""

    def __init__(
        self, core: Core, condition: Condition, loop: asyncio.AbstractEventLoop, bell: Fifo
    ) -> None:
        super().__init__(core, condition, loop)
        self._bell = bell
        self._fd = -1

    def open(self) -> None:
        self._fd = self._bell.open()

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        os.close(fd)

    def listen(self) -> None:
        self.loop.add_reader(self._fd, self._read)

    def ignore(self) -> None:
        try:
            self.loop.remove_reader(self._fd)
        except RuntimeError:
            pass  # the loop is closed

    def count(self) -> None:
        self._bell.count()

    def uncount(self) -> bool:
        return self._bell.uncount()

    def swallow(self) -> bool:
        try:
            return bool(os.read(self._fd, 1))
        except BlockingIOError:
            return False  # another process was faster

    def _read(self) -> None:
        # One at a time, and none if nobody is asleep: the others are for those of other processes.
        if any(self.asleep()) and self.swallow():
            self.admit(1)

    def forget(self) -> None:
        super().forget()
        self.close()  # and nothing else: the loop's own descriptor is the parent's as well


class ThreadDesk(Desk):
    """A desk on a queue for threads.

    Attributes:
        counted: of those who wait here, those who are not meant by a token on its way.
    """

    def __init__(
        self, core: Core, condition: Condition, loop: asyncio.AbstractEventLoop, bell: ThreadBell
    ) -> None:
        super().__init__(core, condition, loop)
        self.counted = 0
        self._bell = bell

    def open(self) -> None:
        self._bell.desks.append(self)

    def close(self) -> None:
        self._bell.desks.remove(self)

    def count(self) -> None:
        self.counted += 1

    def uncount(self) -> bool:
        if self.counted < 1:
            return False
        self.counted -= 1
        return True

    def swallow(self) -> bool:
        return False  # when it comes, `admit` passes it on


class ThreadBell:
    """The bell of a condition on a queue for threads."""

    def __init__(self) -> None:
        self.desks: list[ThreadDesk] = []
        self._turn = 0

    def waiting(self) -> int:
        return sum(desk.counted for desk in list(self.desks))

    def ring(self, n: int) -> int:
        left = n
        desks = list(self.desks)
        self._turn = (self._turn + 1) % max(len(desks), 1)
        for desk in desks[self._turn :] + desks[: self._turn]:
            tokens = min(left, desk.counted)
            if tokens < 1:
                continue
            try:
                desk.loop.call_soon_threadsafe(desk.admit, tokens)
            except RuntimeError:
                desk.counted = 0  # the loop is closed: nobody lives there
                continue
            desk.counted -= tokens
            left -= tokens
        return n - left  # fewer: the others' loops are closed


class Sleeping(Waiting):
    """One coroutine's wait."""

    __slots__ = ("_core", "desk")

    def __init__(self, core: Core, condition: Condition) -> None:
        super().__init__(condition)
        self._core = core
        self.desk: Desk | None = None

    def announce(self) -> None:
        if self.desk is None:
            desk = self._find_desk()
            desk.enter()
            self.desk = desk
        self.desk.announce()
        self.announced = True

    def _find_desk(self) -> Desk:
        core, condition = self._core, self.condition
        loop = asyncio.get_running_loop()
        desk = core.desks.get((loop, condition))
        if desk is None:
            bell = condition.bell
            if isinstance(bell, Fifo):
                desk = FifoDesk(core, condition, loop, bell)
            else:
                if bell is None:
                    condition.bell = bell = ThreadBell()
                desk = ThreadDesk(core, condition, loop, cast("ThreadBell", bell))
        return desk


async def wait(
    core: Core,
    attempt: Callable[[], bool],
    condition: Condition,
    deadline: float | None,
    endpoint: Endpoint | None,
) -> bool:
    """`Core.wait` for a coroutine."""
    sleeping = Sleeping(core, condition)
    lock = core.runtime.lock_within(LOCK_S)
    pauses = iter(PAUSES_S)
    left = math.inf
    has_slept = False
    try:
        while not core.attempt(attempt, sleeping, lock):
            if deadline is not None:
                left = deadline - core.runtime.monotonic()
                if left <= 0:
                    if not has_slept:
                        core.look_now_and_then()
                    return False
            desk = sleeping.desk
            if desk is None or not sleeping.announced:
                await asyncio.sleep(min(next(pauses, PAUSES_S[-1]), left))  # the lock was busy
                continue
            if not sleeping.shown and endpoint is not None:
                sleeping.shown = True
                endpoint.set_blocked(True, id(sleeping))
            has_slept = True
            await desk.sleep(sleeping, left)
        return True
    finally:
        desk = sleeping.desk
        if desk is not None and not desk.is_forgotten:
            if sleeping.announced:
                core.tidy(desk.retract)
            desk.leave()
            if sleeping.shown and endpoint is not None:
                endpoint.set_blocked(False, id(sleeping))


# -- the calls -----------------------------------------------------------------------------------


def _can_go_on(endpoint: Endpoint) -> bool:
    """Whether a call need not `_begin`."""
    return endpoint._ready and monotonic_ns() < endpoint._turn_ends


async def _begin(endpoint: Endpoint, deadline: float | None, *, puts: bool = False) -> None:
    """What calls do first: give way, if it is time to, and take the endpoint into use."""
    core = endpoint._core
    if monotonic_ns() >= endpoint._turn_ends:
        turn = core.give_way()
        if turn is not None:
            await turn
        endpoint._turn_ends = monotonic_ns() + TURN_NS
    pauses = iter(PAUSES_S)
    began = 0.0
    while not endpoint._ready:
        try:
            endpoint._use(0.0, puts=puts)
        except (Empty, Full):  # the lock was busy, or a server out of reach
            now = core.runtime.monotonic()
            began = began or now
            if deadline is not None and now >= deadline:
                raise
            if now - began >= core.patience_s:
                raise ChannelBroken(core.not_in_time) from None
            await asyncio.sleep(next(pauses, PAUSES_S[-1]))


def _deadline(core: Core, timeout: float | None) -> float | None:
    return None if timeout is None else core.deadline(True, timeout)


async def put(endpoint: _Putting[T], item: T, timeout: float | None) -> None:
    """`Producer.aput`."""
    core = endpoint._core
    deadline = _deadline(core, timeout)
    if not _can_go_on(endpoint):
        await _begin(endpoint, deadline, puts=True)
    lane = endpoint._lane
    if lane is None and endpoint._append is None:
        payload, tag = endpoint._pack(item)
        endpoint._ledger.cells[endpoint._stamp_at] = endpoint._now()
        attempt = partial(endpoint._try_put, payload, tag)
        if not await core.awaiting(attempt, core.runtime.room, deadline, endpoint):
            raise endpoint._full()
    elif lane is None:
        endpoint._put_one(item)
    elif lane.inline >= 0:
        endpoint._put_one(item, True, 0.0)
    else:
        payload, tag = endpoint._pack_for(lane, item)
        while not endpoint._put_if_room(payload, tag):
            if not await core.awaiting(endpoint._try_admit, core.runtime.room, deadline, endpoint):
                raise endpoint._full()


async def get(endpoint: _Getting[T], timeout: float | None) -> T:
    """`Consumer.aget`."""
    core = endpoint._core
    deadline = _deadline(core, timeout)
    if not _can_go_on(endpoint):
        await _begin(endpoint, deadline)
    hand = endpoint._hands.get(get_ident()) or endpoint._new_hand()
    while (item := endpoint._next_at_once(hand)) is EMPTY:
        endpoint._ledger.cells[endpoint._stamp_at] = endpoint._now()
        attempt = partial(endpoint._try_take, hand, 1)
        if not await core.awaiting(attempt, core.runtime.items, deadline, endpoint):
            raise Empty("nothing came in time")
    return cast("T", item)


async def get_many(endpoint: _Getting[T], limit: int) -> list[T]:
    """`Consumer.aget_many`."""
    check_limit(limit)
    core = endpoint._core
    if not _can_go_on(endpoint):
        await _begin(endpoint, None)
    hand = endpoint._hands.get(get_ident()) or endpoint._new_hand()
    while not (items := endpoint._many_at_once(hand, limit)):
        await core.awaiting(
            partial(endpoint._try_take, hand, limit, True), core.runtime.items, None, endpoint
        )
    return items

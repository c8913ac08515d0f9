"""The endpoints and handles of a queue for which races are on, and what they do at a point.

They are subclasses of the real ones, of the same layout: an object that exists already changes its
class when races begin. So the real ones have no line for all this in their calls. Others, in
whatever process they are made, are changed as they are made (`Core.watch`).

They stay so when the races end, since a thread may be inside a call; a call then finds that there
are no races, and goes straight on.
"""

# pyright: reportPrivateUsage=false
# These classes are parts of the endpoints that happen to be kept here.

from __future__ import annotations

import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, Generic, TypeVar, cast
from weakref import WeakKeyDictionary

from iterable_queue import _cells as cells_
from iterable_queue._cells import KIND_NAMES, WATCHED
from iterable_queue._clock import monotonic
from iterable_queue._core import Core
from iterable_queue._endpoints import (
    ConsumerEndpoint,
    Endpoint,
    ProducerEndpoint,
    WorkerEndpoint,
    _Getting,
    _Putting,
)
from iterable_queue._errors import Done
from iterable_queue._liveness import how_it_ended, runs
from iterable_queue._queue import IterableQueue
from iterable_queue.testing._points import Operation, Point, Side, Where
from iterable_queue.testing._race_log import Passage, RaceLog, Rule

T = TypeVar("T")

POLL_S: Final = 0.001
"""How often the log is looked at by those who wait, in seconds."""
LOOK_S: Final = 0.05
"""How often they look whether those whom they wait for live, in seconds."""
SHOWN: Final = 40
"""How many passages an error shows: the last ones."""


class RaceError(AssertionError):
    """A race did not go as the test has ordered it. The text says who waited for what."""

    __module__ = "iterable_queue.testing"


class Watcher:
    """Turns what is made while races are on. It travels to other processes as a pickle.

    Attributes:
        path: of the log.
        session: the value of the cell WATCHED while these races are on.
        pid: the process that runs the test.
        timeout: how long a point may be waited at, in seconds.
    """

    def __init__(self, path: str, session: int, timeout: float) -> None:
        self.path = path
        self.session = session
        self.pid = os.getpid()
        self.timeout = timeout

    def __call__(self, target: object) -> None:
        if isinstance(target, Endpoint):
            target.__class__ = RACED.get(type(target), type(target))
            core = target._core
        else:
            handle = cast("IterableQueue[Any]", target)
            handle.__class__ = raced_queue(type(handle))
            core = handle._core
        track = _tracks.get(core)
        if track is None or not track.is_of(self.session):
            _tracks[core] = Track(self, core.ledger.head)


class Track:
    """What one process knows of the races on one queue.

    Attributes:
        log: what has happened, and the rules.
        watcher: what these races are.
    """

    def __init__(self, watcher: Watcher, head: Any) -> None:
        self.watcher = watcher
        self.log = RaceLog(watcher.path)
        self._head = head
        self._pid = os.getpid()
        self._pids: dict[int, int] = {}
        """By number of the endpoint: processes in which they were seen."""

    def is_of(self, session: int) -> bool:
        """Whether it is for that session, and of this process rather than of its parent."""
        return self.watcher.session == session and self._pid == os.getpid()

    def is_over(self) -> bool:
        """Whether the test has left the block."""
        return bool(self._head[WATCHED] != self.watcher.session)

    # -- at a point ------------------------------------------------------------------------------

    def come_to(self, core: Core, point: Point) -> None:
        """This thread is at *point*: do what the rules say, and let the others know."""
        try:
            at = self.log.arrive(point)
            self.log.read()
            for rule in self.log.rules_for(at):
                self._obey(core, rule, at)
            self.log.append("past", at)
        except FileNotFoundError:
            pass  # the test has left the block

    def _obey(self, core: Core, rule: Rule, at: int) -> None:
        if 0 < self.log.over_at < at:
            return  # it came to the point after that
        self._check_over()
        arrival = self.log.arrivals[at]
        match rule.kind:
            case "order":
                assert rule.first is not None
                if not self.wait(core, rule.first_passed, self.watcher.timeout, rule.first):
                    ended = self.ended(core, rule.first)
                    why = f"in vain: {ended}" if ended else f"{self.watcher.timeout:g} s in vain"
                    self._break(rule, f"{arrival} waited for {rule.first}, {why}")
            case "pause":
                if not self.wait(core, lambda: rule.released, self.watcher.timeout):
                    self._break(
                        rule,
                        f"{arrival} was paused, and its gate not released within "
                        f"{self.watcher.timeout:g} s",
                    )
            case "delay":
                from random import Random

                draw = Random(f"{rule.seed} {arrival.point}")
                self.wait(core, lambda: False, draw.uniform(*rule.seconds))
            case "kill":
                self._kill(rule, at, arrival)

    def _kill(self, rule: Rule, at: int, arrival: Passage) -> None:
        if arrival.pid == self.watcher.pid:
            self._break(
                rule,
                f"{arrival} was to be killed, but that is the process of the test itself: use the "
                "endpoint in another process",
            )
        self.log.append("killed", at)
        os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()

    def _break(self, rule: Rule, text: str) -> None:
        self.log.read()
        text = f"{text}\nthe rule: {rule}\n{self.account()}"
        self.log.append("broken", text)
        raise RaceError(text)

    # -- waiting ---------------------------------------------------------------------------------

    def wait(
        self, core: Core, fact: Callable[[], bool], timeout: float, whom: Point | None = None
    ) -> bool:
        """Wait for *fact*. False: not in time, or *whom* it depends on has ended without it.

        Raises:
            RaceError: another rule was broken meanwhile.
            FileNotFoundError: the test has left the block, or its process has ended.
        """
        deadline = monotonic() + timeout
        look_at = monotonic() + LOOK_S
        while True:
            self.log.read()
            if fact():
                return True
            self._check_over()
            now = monotonic()
            if now >= deadline:
                return False
            if now >= look_at:
                if not runs(self.watcher.pid):
                    raise FileNotFoundError
                if whom is not None and self.ended(core, whom):
                    self.log.read()  # what it wrote before it ended
                    return fact()
                look_at = now + LOOK_S
            time.sleep(min(POLL_S, deadline - now))

    def _check_over(self) -> None:
        if self.log.broken:
            raise RaceError(f"the races are over, since a rule was broken: {self.log.broken[0]}")

    def ended(self, core: Core, whom: Point) -> str:
        """How the process of the endpoint of *whom* ended, if it is known and has."""
        if whom.number is None:
            return ""
        pid = self.log.pid_at(whom) or owner_of(core, whom.number)
        pid = self._pids[whom.number] = pid or self._pids.get(whom.number, 0)
        if not pid or pid == os.getpid() or runs(pid):
            return ""
        return f"the process of {whom.side} {whom.number} (pid {pid}) {how_it_ended(pid)}"

    def account(self) -> str:
        """What has happened so far, as of the last look at the log, for people to read."""
        log = self.log
        lines = [f"passed so far, the last {SHOWN} of {len(log.passed)}:"]
        if len(log.passed) <= SHOWN:
            lines = ["passed so far:" if log.passed else "nothing was passed so far"]
        lines += [f"  {log.arrivals[at]}" for at in log.passed[-SHOWN:]]
        if log.here:
            lines.append("at a point now:")
        for at, arrival in log.here.items():
            if at in log.killed:
                lines.append(f"  {arrival}, killed there")
                continue
            rules = "; ".join(str(rule) for rule in log.rules_for(at))
            state = "" if runs(arrival.pid) else ", has ended"
            lines.append(f"  {arrival}{state}{f', by the rule {rules}' if rules else ''}")
        return "\n".join(lines)


_tracks: WeakKeyDictionary[Core, Track] = WeakKeyDictionary()


def owner_of(core: Core, number: int) -> int:
    """The pid of the process that has taken the endpoint of that number; 0: none, or gone."""
    for view in core.ledger.views(*range(cells_.PRODUCER, cells_.QUEUE)):
        if view.number == number:
            return core.pid_of(view.owner) if view.owner else 0
    return 0


def pass_point(
    target: Endpoint | IterableQueue[Any], side: Side, number: int | None, *at: Any
) -> None:
    """*target* is at a point of that side and number. Cheap once the races are over."""
    core = target._core
    session = core.ledger.head[WATCHED]
    if session <= 0:
        return
    track = _tracks.get(core)
    if track is None or not track.is_of(session):
        core.watch(target)  # other races than those it was turned for, or a forked child
        track = _tracks.get(core)
        if track is None or not track.is_of(session):
            return
    operation, where = at
    track.come_to(core, Point(side, number, operation, where))


# -- the classes ---------------------------------------------------------------------------------


class _Raced(Endpoint):
    __slots__ = ()

    def _counts_here(self) -> bool:
        """Whether a call by this process is the endpoint's; else it raises, and is no point."""
        if self._ready:
            return True
        core = self._core
        if self._closed or self._lost is not None or core.elsewhere:
            return False
        if not self._ledger.is_open(self.slot, self.number):
            return False
        view = self._ledger.view(self.slot)
        mine = view.owner == self._ledger.me and view.owner != 0
        return mine or view.owner == 0

    def _pass(self, operation: Operation, where: Where) -> None:
        side = cast("Side", KIND_NAMES[self.kind])
        pass_point(self, side, self.number, operation, where)

    def _around(self, operation: Operation, call: Callable[..., T], *args: Any) -> T:
        """`call(*args)` with the points before and after it."""
        if not self._counts_here():
            return call(*args)
        self._pass(operation, "before")
        result = call(*args)
        self._pass(operation, "after")
        return result

    async def _around_wait(
        self, operation: Operation, call: Callable[..., Awaitable[T]], *args: Any
    ) -> T:
        """The same where *call* is a coroutine's. At a point, all of its event loop waits."""
        if not self._counts_here():
            return await call(*args)
        self._pass(operation, "before")
        result = await call(*args)
        self._pass(operation, "after")
        return result

    def close(self) -> None:
        self._around("close", super().close)

    def fail(self, error: BaseException) -> None:
        self._around("fail", super().fail, error)

    def set_blocked(self, waits: bool, who: int | None = None) -> None:
        super().set_blocked(waits, who)
        if waits:
            # A worker's put is never refused, so it is its get that waits.
            waits_to_put = self.kind == cells_.PRODUCER
            self._pass("put" if waits_to_put else "get", "blocked")


class _RacedPutting(_Raced, _Putting[T], Generic[T]):
    __slots__ = ()

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        self._around("put", super().put, item, block, timeout)

    async def aput(self, item: T, timeout: float | None = None) -> None:
        await self._around_wait("put", super().aput, item, timeout)

    def put_many(self, iterable: Iterable[T]) -> None:
        if not self._ready:
            self._use(puts=True)
        for item in iterable:
            self.put(item)


class _RacedGetting(_Raced, _Getting[T], Generic[T]):
    __slots__ = ()

    def _around_get(self, call: Callable[..., Any], *args: Any) -> Any:
        try:
            return self._around("get", call, *args)
        except Done:
            self._pass("get", "done")
            raise

    async def _around_aget(self, call: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        try:
            return await self._around_wait("get", call, *args)
        except Done:
            self._pass("get", "done")
            raise

    async def aget(self, timeout: float | None = None) -> T:
        item: T = await self._around_aget(super().aget, timeout)
        return item

    async def __anext__(self) -> T:
        try:
            return await self.aget()
        except Done:
            raise StopAsyncIteration from None

    async def aget_many(self, limit: int) -> list[T]:
        items: list[T] = await self._around_aget(super().aget_many, limit)
        return items

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        item: T = self._around_get(super().get, block, timeout)
        return item

    def get_many(self, limit: int) -> list[T]:
        items: list[T] = self._around_get(super().get_many, limit)
        return items

    def __next__(self) -> T:
        try:
            return self.get()
        except Done:
            raise StopIteration from None


class RacedProducer(_RacedPutting[T], ProducerEndpoint[T]):
    """A producer with points."""

    __slots__ = ()


class RacedConsumer(_RacedGetting[T], ConsumerEndpoint[T]):
    """A consumer with points."""

    __slots__ = ()


class RacedWorker(_RacedGetting[T], _RacedPutting[T], WorkerEndpoint[T]):
    """A worker with points."""

    __slots__ = ()


RACED: Final[dict[type, type[Any]]] = {
    ProducerEndpoint: RacedProducer,
    ConsumerEndpoint: RacedConsumer,
    WorkerEndpoint: RacedWorker,
}


class RacedQueue(IterableQueue[T]):
    """A handle with points."""

    __slots__ = ()

    def _around(self, operation: Operation, call: Callable[..., Any], *args: Any) -> Any:
        pass_point(self, "queue", None, operation, "before")
        result = call(*args)
        pass_point(self, "queue", None, operation, "after")
        return result

    def close(self) -> None:
        self._around("close", super().close)

    def cancel(self, error: BaseException | None = None) -> None:
        self._around("cancel", super().cancel, error)

    def join(self, timeout: float | None = None) -> bool:
        ended: bool = self._around("join", super().join, timeout)
        return ended

    async def ajoin(self, timeout: float | None = None) -> bool:
        pass_point(self, "queue", None, "join", "before")
        ended = await super().ajoin(timeout)
        pass_point(self, "queue", None, "join", "after")
        return ended


def raced_queue(kind: type[Any]) -> type[Any]:
    """The class with points for handles of class *kind*, which may be a user's own."""
    plain, raced = cast("tuple[type[Any], type[Any]]", (IterableQueue, RacedQueue))
    if kind is plain:
        return raced
    if issubclass(kind, raced):
        return kind
    return type(kind.__name__, (raced, kind), {"__slots__": (), "__doc__": kind.__doc__})

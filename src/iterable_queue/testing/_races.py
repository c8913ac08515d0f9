"""Races on real queues: which of two calls comes first, who is slow, who dies where.

    with IterableQueue[int]() as iq:
        out, numbers = iq.get_producer(), iq.get_consumer()
        with races(iq) as race:
            race.order(race.producer(out).after_put, race.consumer(numbers).before_get)
            ...  # start the processes, and wait for their end

The code under test runs unchanged, in its own threads or processes. While the block is on, the
queue's endpoints come to points (see `_points`) and do there what the rules say. All that the
processes share is a log that they append to (`_race_log`), in the queue's directory, or, for a
queue for threads, in one of its own. When the block is left, everybody goes on and the log is
removed; then each rule must have been of use, unless it was optional, since a test of a race in
which nothing raced proves nothing.

Nothing here waits without a limit.
"""

# pyright: reportPrivateUsage=false
# The core of a queue is reached through its handle.

from __future__ import annotations

import os
import pickle
from types import TracebackType
from typing import Any, Final, Self, cast

from iterable_queue import _cells as cells_
from iterable_queue._cells import KIND_NAMES, WATCHED
from iterable_queue._core import Core, check_seconds
from iterable_queue._endpoints import Endpoint
from iterable_queue._protocols import Consumer, Producer, Worker
from iterable_queue._queue import IterableQueue
from iterable_queue.testing._points import (
    ConsumerPoints,
    Point,
    ProducerPoints,
    QueuePoints,
    WorkerPoints,
)
from iterable_queue.testing._race_log import Passage, Rule
from iterable_queue.testing._raced import RaceError, Track, Watcher

TIMEOUT_S: Final = 10.0
"""How long a point is waited at unless the test says else, in seconds."""


def races(iq: IterableQueue[Any], *, timeout: float = TIMEOUT_S) -> Races:
    """Decide the races on *iq* within a `with` block: see `Races`.

    Args:
        iq: a queue for processes or for threads; this process must be one that uses it.
        timeout: how long, in seconds, anybody waits at a point. What has not come to pass by
            then raises `RaceError`, in the one that waited and from the block.

    Raises:
        TypeError: *iq* is not a real queue: a `FakeQueue` has no races, and those of a
            `Simulation` are decided by `explore`.
        ValueError: *timeout* is not above 0.
    """
    from iterable_queue._shared import SharedCore

    core = getattr(iq, "_core", None)
    if type(core) is not Core and not isinstance(core, SharedCore):
        raise TypeError(
            f"races are between real threads or processes, on an IterableQueue, not on {iq!r}"
        )
    check_seconds(timeout, "timeout")
    if not timeout > 0:
        raise ValueError(f"timeout must be above 0 seconds, not {timeout!r}")
    return Races(iq, timeout)


class Gate:
    """Where somebody is paused: see `Races.pause`."""

    def __init__(self, race: Races, rule: Rule) -> None:
        self._race = race
        self._rule = rule

    def reached(self, timeout: float | None = None) -> bool:
        """Wait until somebody has come here, at most *timeout* seconds (None: that of the races).

        Returns:
            Whether somebody has. False comes at once where the process that was to come has ended.

        Raises:
            RaceError: a rule was broken meanwhile.
        """
        race = self._race
        limit = race.timeout if timeout is None else timeout
        try:
            return race._track.wait(race._core, self._rule.reached, limit, self._rule.point)
        except FileNotFoundError:
            raise race._over() from None

    def passage(self) -> Passage | None:
        """Who has come here, and in which process; None: nobody yet."""
        race = self._race
        race._read()
        if not self._rule.reached():
            return None
        return race._track.log.arrivals[self._rule.hits[self._rule.point.time - 1]]

    def release(self) -> None:
        """Let whoever is here, or comes here, go on. Releasing again, or too late, does nothing."""
        race = self._race
        if race._track.is_over():
            return  # which has released it
        race._read()
        if not self._rule.released:
            race._track.log.append("free", self._rule.name)

    def __repr__(self) -> str:
        return f"<Gate at {self._rule.point}>"


class Races:
    """The races on one queue, inside `with races(iq) as race:`.

    Make the rules first, then start the actors, and wait for their end inside the block. Actors may
    be threads, and processes of every start method; all that they use of the queue may have been
    made before the block. What another process has *used*, or was started with, before the block
    cannot be watched, and a rule about it is refused.

    At a point, an actor does as the rules say, in the order in which they were made, a kill last.
    The calls' own time-outs begin after their first point.

    On leaving the block everybody at a point goes on, and all is removed. It raises `RaceError` if
    a rule was broken, or if the point of one that is not optional was not come to. If the block is
    left by an exception, what has happened is added to it as a note instead.

    Attributes:
        timeout: how long anybody waits at a point, in seconds.
    """

    def __init__(self, iq: IterableQueue[Any], timeout: float) -> None:
        self.timeout = timeout
        self._iq = iq
        self._pid = os.getpid()
        self._folder: str | None = None
        self._entered = False

    # -- the block -------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if self._entered:
            raise RaceError("each `with` block needs races() of its own")
        core = self._iq._here()
        head = core.ledger.head
        if head[WATCHED] > 0:
            raise RaceError("there are races on this queue already: leave their block first")
        self._entered = True
        self._core = core
        session = 1 - head[WATCHED]
        path = _directory(core)
        if path is None:
            from tempfile import mkdtemp

            path = self._folder = mkdtemp(prefix="iterable_queue-races-")
        watcher = Watcher(f"{path}/race-{session}", session, self.timeout)
        self._track = Track(watcher, head)
        self._track.log.create()
        if self._folder is None:
            with open(f"{path}/watcher.new", "wb") as file:
                file.write(pickle.dumps(watcher))
            os.replace(f"{path}/watcher.new", f"{path}/watcher")
        else:
            core.watcher = watcher
        me = core.ledger.me
        self._out_of_reach = {
            view.number: core.pid_of(view.owner)
            for view in core.ledger.views(cells_.PRODUCER, cells_.CONSUMER, cells_.WORKER)
            if view.owner not in (0, me)
        }
        head[WATCHED] = session
        for target in (self._iq, *core.endpoints):
            watcher(target)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if os.getpid() != self._pid:
            return  # a forked child that leaves the block, too
        verdict = self._verdict()
        self._end()
        if verdict is None:
            return
        if exc is None:
            raise RaceError(verdict)
        exc.add_note(f"races: {verdict}")

    def _verdict(self) -> str | None:
        """What went wrong, if anything did."""
        log = self._track.log
        try:
            log.read()
        except FileNotFoundError:
            return str(self._over())
        if log.broken:
            return log.broken[0]
        missed = [rule for rule in log.rules.values() if not rule.optional and not self._kept(rule)]
        if not missed:
            return None
        rules = "".join(f"\n  {rule}{self._why(rule)}" for rule in missed)
        return (
            "the block ended before these were come to (join the actors inside it, or say "
            f"optional=True):{rules}\n{self._track.account()}"
        )

    def _kept(self, rule: Rule) -> bool:
        if rule.kind != "order" or not rule.reached():
            return rule.reached()
        at, log = rule.hits[rule.point.time - 1], self._track.log
        return at not in log.here or at in log.killed

    def _why(self, rule: Rule) -> str:
        """What is known of why a rule's point was not come to."""
        ended = self._track.ended(self._core, rule.point)
        return f": {ended}" if ended else ""

    def _end(self) -> None:
        core = self._core
        head = core.ledger.head
        head[WATCHED] = -head[WATCHED]
        core.watcher = None
        files = [self._track.log.path]
        if self._folder is None:
            files.append(f"{_directory(core)}/watcher")
        for path in files:
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass  # with the queue's directory
        if self._folder is not None:
            os.rmdir(self._folder)

    def _over(self) -> RaceError:
        """The error of what is called outside the block."""
        return RaceError("these races are over: the block was left, or the queue is gone")

    def _read(self) -> None:
        """Take in what has happened; after the block, nothing more happens."""
        if not self._entered:
            raise self._over()
        if self._track.is_over():
            return
        try:
            self._track.log.read()
        except FileNotFoundError:
            raise self._over() from None

    # -- points ----------------------------------------------------------------------------------

    def producer(self, which: int | Producer[Any] | None = None) -> ProducerPoints:
        """The points of a producer, given by itself or by its number; None: of any producer.

        Raises:
            TypeError, ValueError: it is something else, or of another queue.
        """
        return ProducerPoints("producer", self._number(which, cells_.PRODUCER))

    def consumer(self, which: int | Consumer[Any] | None = None) -> ConsumerPoints:
        """The points of a consumer; see `producer`."""
        return ConsumerPoints("consumer", self._number(which, cells_.CONSUMER))

    def worker(self, which: int | Worker[Any] | None = None) -> WorkerPoints:
        """The points of a worker; see `producer`."""
        return WorkerPoints("worker", self._number(which, cells_.WORKER))

    @property
    def queue(self) -> QueuePoints:
        """The points of the queue's own calls: by the handle of this block, or any made in it."""
        return QueuePoints("queue", None)

    def _number(self, which: object, kind: int) -> int | None:
        name = KIND_NAMES[kind]
        if which is None:
            return None
        if isinstance(which, Endpoint):
            if which._core is not self._core:
                raise ValueError(f"{which!r} is of another queue than these races")
            if which.kind != kind:
                raise TypeError(f"{which!r} is not a {name}")
            return which.number
        if isinstance(which, bool) or not isinstance(which, int):
            raise TypeError(f"name a {name} by itself, by its number, or not at all, not {which!r}")
        for view in self._core.ledger.views(cells_.PRODUCER, cells_.CONSUMER, cells_.WORKER):
            if view.number == which and view.kind != kind:
                raise ValueError(f"number {which} is a {KIND_NAMES[view.kind]}, not a {name}")
        return which

    # -- rules -----------------------------------------------------------------------------------

    def order(self, first: Point, then: Point, *, optional: bool = False) -> None:
        """Whoever comes to *then* waits there until *first* is passed.

        *first* is also passed when its process has been killed there by `kill`.

        Args:
            first: what happens first; it may have happened already.
            then: what happens after that.
            optional: it is no error if *then* is not come to.

        Raises:
            ValueError: these orders can't all be kept, or a point is of each time.
            RaceError: *then* has happened already, or is out of reach.
        """
        _once(first)
        _once(then)
        self._within_reach(first)
        orders = [rule for rule in self._track.log.rules.values() if rule.kind == "order"]
        behind = {then}
        while more := {rule.point for rule in orders if rule.first in behind} - behind:
            behind |= more
        if first in behind:
            raise ValueError(
                f"{first} can't be before {then}: by the orders given before, it comes after"
            )
        self._add(Rule("order", then, first, optional=optional))

    def pause(self, point: Point, *, optional: bool = False) -> Gate:
        """Whoever comes to *point* stays there until the gate that this returns is released.

        Raises:
            ValueError: the point is of each time.
            RaceError: it has happened already, or is out of reach.
        """
        _once(point)
        return Gate(self, self._add(Rule("pause", point, optional=optional)))

    def delay(
        self,
        point: Point,
        seconds: float | tuple[float, float],
        *,
        seed: int = 0,
        optional: bool = False,
    ) -> None:
        """Whoever comes to *point* stays there for a while.

        Args:
            point: where; `point.each` delays each time.
            seconds: how long; of a pair, something between the two, drawn anew each time.
            seed: for the draw. It depends on this, the endpoint, the call and its count alone, so
                that a run is repeated as far as delays can repeat it.
            optional: it is no error if the point is not come to.

        Raises:
            ValueError: *seconds* is not 0 or more, or the pair is not in order.
            RaceError: the point has happened already, or is out of reach.
        """
        low, high = seconds if isinstance(seconds, tuple) else (seconds, seconds)
        if not 0 <= low <= high:
            raise ValueError(f"seconds must be 0 or more, the lower of two first, not {seconds!r}")
        self._add(Rule("delay", point, seconds=(low, high), seed=seed, optional=optional))

    def kill(self, point: Point, nth: int | None = None, *, optional: bool = False) -> None:
        """The process that comes to *point* is killed there, by SIGKILL.

        Args:
            point: where.
            nth: the how manieth time that it is come to; None: as the point itself says.
            optional: it is no error if the point is not come to.

        Raises:
            ValueError: this queue is for threads, which can't be killed; or the point is of each
                time.
            RaceError: the point has happened already, or is out of reach.
        """
        if _directory(self._core) is None:
            raise ValueError(
                "a thread can't be killed, only a process: make the queue with IterableQueue(), "
                "or explore the same with explore(), where a kill is a choice"
            )
        point = point if nth is None else point.nth(nth)
        _once(point)
        self._add(Rule("kill", point, optional=optional))

    def _add(self, rule: Rule) -> Rule:
        self._within_reach(rule.point)
        if self._track.is_over():
            raise self._over()
        rule = self._track.log.add(rule)
        if rule.point.time and any(at < rule.name for at in rule.hits[rule.point.time - 1 :]):
            raise RaceError(
                f"{rule.point} has happened already: make the rules before the actors are started"
                f"\n{self._track.account()}"
            )
        return rule

    def _within_reach(self, point: Point) -> None:
        if not isinstance(cast("object", point), Point):
            raise TypeError(f"not a point: {point!r}; take one such as race.producer(1).before_put")
        pid = None if point.number is None else self._out_of_reach.get(point.number)
        if pid is not None:
            raise RaceError(
                f"{point.side} {point.number} was another process's (pid {pid or 'unknown'}) "
                "before the block, and can't be watched: start that process inside the block"
            )

    # -- looking ---------------------------------------------------------------------------------

    @property
    def history(self) -> tuple[Passage, ...]:
        """The points that were passed, in order. It can be read after the block as well."""
        self._read()
        log = self._track.log
        return tuple(log.arrivals[at] for at in log.passed)

    def explain(self) -> str:
        """What was passed so far, and who is at a point now, in words; also after the block."""
        self._read()
        return self._track.account()


def _directory(core: Core) -> str | None:
    """That of a queue for processes; None: the queue is for threads."""
    from iterable_queue._shared import SharedCore

    return core.address.path if isinstance(core, SharedCore) else None


def _once(point: Point) -> None:
    if isinstance(cast("object", point), Point) and not point.time:
        raise ValueError(f"{point}: only a delay can be for each time; say which by nth()")

"""`Simulation`: what a scenario builds its queues and actors with."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import partial
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, Final, Literal, TypeVar, cast

from iterable_queue._cells import FLAGS, HANDLE, KIND_NAMES, QUEUE, SLOT_SIZE, USED
from iterable_queue._core import check_bool, check_callable, check_exception, check_options
from iterable_queue._endpoints import Endpoint
from iterable_queue._errors import EndpointElsewhere
from iterable_queue._queue import IterableQueue, new_handle
from iterable_queue.testing._explore._scheduler import (
    CHECKPOINT,
    Actor,
    Chooser,
    Pool,
    Problem,
    Recorder,
    Schedule,
)
from iterable_queue.testing._explore._simulated import SharedQueue, SimulatedCore, SimulatedLock

T = TypeVar("T")

_running = threading.local()
"""`schedule`: the one that this thread is an actor of, if any."""


class Injected(Exception):
    """The error that `Simulation.may_fail` raises unless it is given another."""

    __module__ = "iterable_queue.testing"


def checkpoint(name: str = "") -> None:
    """One more point at which an exploration may switch to another actor.

    Put it between two steps of your own code whose order against other actors matters. It is also
    what tells `explore` that actors share something beside their queues. It does nothing outside
    an exploration. *name* is shown in the table of a failing schedule.
    """
    schedule: Schedule | None = getattr(_running, "schedule", None)
    if schedule is not None:
        schedule.point(CHECKPOINT, name)


class Simulation:
    """Hands out queues and actors whose every switch `explore` decides.

    A scenario gets one. It makes its queues and endpoints, spawns its actors, and returns; only
    then the actors run. It may return a function without arguments that checks the end state; that
    is called after all actors have ended.
    """

    def __init__(self, schedule: Schedule, locks: list[SimulatedLock]) -> None:
        self._schedule = schedule
        self._locks = locks
        self._queues: list[SharedQueue] = []
        self._kept: list[object] = []
        self._names: set[str] = {schedule.main.name}

    def queue(
        self,
        maxsize: int = 0,
        *,
        threaded: bool = False,
        on_failure: Literal["raise", "cancel"] = "raise",
        redeliver: bool = False,
        max_deliveries: int | None = None,
    ) -> IterableQueue[Any]:
        """A queue: for processes, as `IterableQueue(...)`; or as `IterableQueue.threaded(...)`.

        On a queue for processes every actor is a process of its own: items are pickled, and
        endpoints are passed to `spawn`, as they are to a `Process`. The arguments mean what they
        mean there; those of processes can't be had with *threaded*.
        """
        check_bool(threaded, "threaded")
        deliveries = check_options(maxsize, on_failure, redeliver, max_deliveries)
        if threaded and (redeliver or on_failure != "raise"):
            raise ValueError("redeliver and on_failure are for queues between processes")
        index = len(self._queues)
        if index == len(self._locks):
            self._locks.append(SimulatedLock(index))
        shared = SharedQueue(
            self._schedule,
            self._locks[index],
            index,
            max(int(maxsize), 0),
            threaded=threaded,
            cancel=on_failure == "cancel",
            deliveries=deliveries,
        )
        self._queues.append(shared)
        made: IterableQueue[Any] = cast("Any", IterableQueue).__new__(IterableQueue)
        made._begin(shared.core, maker=False)  # pyright: ignore[reportPrivateUsage]
        caller = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
        site = f"{caller.f_code.co_filename}:{caller.f_lineno}"
        shared.core.transact(shared.core.ledger.open, QUEUE, site)
        if self._schedule.recorder is not None:
            self._schedule.recorder.queues.append(shared)
        self._kept.append(made)
        return made

    def spawn(self, function: Callable[..., object], *args: Any, name: str | None = None) -> Actor:
        """An actor that calls `function(*args)`, once the scenario has returned.

        Endpoints and queues for processes among *args* (or in a list, tuple or dict of them, or
        the one whose method *function* is) go to the actor as they do to a process that is started
        with them, and belong to it from then on. Whatever is still open when the function ends is
        ended as that of a process. Other objects are shared with the test, which is what makes a
        list to record in useful; what else actors share needs `checkpoint`.

        Raises:
            TypeError: an endpoint that was used in the scenario can't be passed on.
            EndpointElsewhere: the endpoint was given to another actor.
        """
        if self._schedule.current is not self._schedule.main or self._schedule.gone:
            raise RuntimeError("actors are spawned by the scenario, before any of them runs")
        check_callable(function, "function")
        _check_runs(function, "an actor is given")
        base = name or getattr(function, "__name__", "actor").strip("<>")
        unique, count = base, 1
        while unique in self._names:
            count += 1
            unique = f"{base}-{count}"
        actor = Actor(len(self._schedule.actors) + 1, unique, _nothing)
        function = self._hand_over_method(function, actor)
        handed = [self._hand_over(argument, actor) for argument in args]
        actor.function = partial(_live, self._schedule, actor, function, handed)
        self._names.add(unique)
        self._schedule.spawn(actor)
        return actor

    def may_kill(self, actor: Actor, *, inside: bool = False) -> None:
        """*actor*, a process, may die at any of its operations (once; a choice of the search).

        Its thread can't be killed, so its `finally` and `except BaseException` clauses run, but
        nothing that it calls of the library does anything any more.

        Args:
            actor: what `spawn` returned.
            inside: it may also die inside the library's lock, between any two stores.
        """
        _check_actor(actor)
        check_bool(inside, "inside")
        if actor.threaded:
            raise ValueError(f"{actor.name} is a thread, which can't be killed by itself")
        actor.mortal = True
        actor.inside = actor.guarded = inside
        self._schedule.special = True

    def may_fail(self, actor: Actor, error: BaseException | None = None) -> None:
        """*error* may be raised at any one operation of *actor*, as if that had failed.

        The default is an `Injected`. If it ends the actor, that does not fail the schedule.
        """
        _check_actor(actor)
        if error is not None:
            check_exception(error)
        actor.fallible = actor.error = error or Injected("injected by sim.may_fail")
        self._schedule.special = True

    def begin(self) -> None:
        """The scenario has returned, and its actors begin to run."""
        for shared in self._queues:
            shared.runtime.begin()

    def check(self, check: Callable[[], object]) -> None:
        """The actors have ended: see what the end state is."""
        for shared in self._queues:
            shared.runtime.quiet()
        _check_ran(check(), "the check that a scenario returns has returned")

    def end(self) -> None:
        """The schedule is over: let go of everything.

        Objects that refer to each other in a ring are parted here. To leave that to the collector
        would cost a good part of the time that a schedule takes.
        """
        for actor in (self._schedule.main, *self._schedule.actors):
            for core in actor.cores.values():
                core.endpoints.clear()
            actor.cores.clear()
            actor.call = None
            if actor.done:
                actor.function = _nothing
        for shared in self._queues:
            shared.core.endpoints.clear()
            del shared.core
        self._kept.clear()
        self._schedule.gone = True

    # -- handing over ----------------------------------------------------------------------------

    def _hand_over_method(self, function: Any, actor: Actor) -> Callable[..., object]:
        owner = getattr(function, "__self__", None)
        if not isinstance(owner, (Endpoint, IterableQueue)):
            return cast("Callable[..., object]", function)
        handed: Any = self._hand_over(owner, actor)
        return cast("Callable[..., object]", getattr(handed, function.__name__))

    def _hand_over(self, value: Any, actor: Actor) -> Any:
        if isinstance(value, (Endpoint, IterableQueue)):
            value = cast("Any", value)
            core: Any = value._core
            if not isinstance(core, SimulatedCore):
                raise TypeError(f"{value!r} is not of a queue that sim.queue() made")
            if core.shared.threaded:
                actor.threaded = True
                return value
            mine = self._core_for(actor, core.shared)
            if isinstance(value, Endpoint):
                core.transact(_assign, core, value, mine.ledger.me)
                return type(value)(mine, value.slot, value.number)
            core.ledger.head[HANDLE] = 0
            handle = new_handle(mine, None)
            self._kept.append(handle)
            return handle
        if type(value) in (list, tuple):
            handed = [self._hand_over(part, actor) for part in value]
            same = all(new is old for new, old in zip(handed, value, strict=True))
            return value if same else type(value)(handed)
        if type(value) is dict:
            pairs: dict[Any, Any] = {**value}
            new = {key: self._hand_over(part, actor) for key, part in pairs.items()}
            return cast("Any", value) if all(new[key] is pairs[key] for key in new) else new
        return value

    def _core_for(self, actor: Actor, shared: SharedQueue) -> SimulatedCore:
        core: SimulatedCore | None = actor.cores.get(shared)
        if core is None:
            core = actor.cores[shared] = SimulatedCore(shared, actor)
            core.join_in()
        return core


def _check_actor(actor: object) -> None:
    if not isinstance(actor, Actor):
        raise TypeError(f"actor must be what sim.spawn() returned, not {actor!r}")


def _check_result(result: object) -> None:
    wanted = "a scenario returns a function that checks the end state, or None, not"
    if callable(result):
        _check_runs(result, "the check that a scenario returns is")
    elif result is not None:
        _check_ran(result, wanted)
        raise TypeError(f"{wanted} {result!r}")


def _check_runs(function: Callable[..., object], what: str) -> None:
    """Raises if nothing of *function* would run when it is called."""
    for test in iscoroutinefunction, isgeneratorfunction, isasyncgenfunction:
        if test(function):
            raise TypeError(f"{what} {function!r}{NOT_RUN}")


def _check_ran(result: object, what: str) -> None:
    """The same, once the call has given *result*."""
    if isinstance(result, (CoroutineType, GeneratorType, AsyncGeneratorType)):
        if not isinstance(result, AsyncGeneratorType):
            result.close()  # or it would be said to have never been awaited
        raise TypeError(f"{what} {result!r}{NOT_RUN}")


NOT_RUN: Final = ": it is called as it is, so it can be neither async nor a generator"


def _nothing() -> None:
    """What an actor does that has no function."""


def _assign(core: SimulatedCore, endpoint: Endpoint, process: int) -> None:
    ledger = core.ledger
    name = f"{KIND_NAMES[endpoint.kind]} {endpoint.number}"
    if not ledger.is_open(endpoint.slot, endpoint.number) or not core.has(endpoint.slot):
        raise EndpointElsewhere(
            f"{name} is closed, or was given to another actor; make one for each, by "
            "get_...() or clone()"
        )
    if ledger.cells[endpoint.slot * SLOT_SIZE + FLAGS] & USED:
        raise TypeError(
            f"{name} has been used by the scenario and stays with it; pass a clone() of it"
        )
    ledger.assign(endpoint.slot, process)


def _live(
    schedule: Schedule, actor: Actor, function: Callable[..., object], args: list[Any]
) -> None:
    """What the thread of *actor* runs: the user's function, and then the end of a process."""
    _running.schedule = schedule
    try:
        try:
            _check_ran(function(*args), "an actor has returned")
        except Exception as error:
            if not actor.dead and not schedule.over:
                _leave(actor, f"ended by {type(error).__name__}: {error}", error)
            raise
        _leave(actor, "returned", None)
    finally:
        _running.schedule = None


def _leave(actor: Actor, how: str, cause: BaseException | None) -> None:
    actor.fallible = None
    for core in actor.cores.values():
        core.leave(f"was left open when its process {how}", cause)


Scenario = Callable[[Simulation], Callable[[], object] | None]


NOT_YET: Final = (
    "This came out of the scenario itself, and no actor has run yet: they do when it has returned. "
    "To check what they have done, have it return a function that does"
)


def _set_up(
    scenario: Scenario, simulation: Simulation, schedule: Schedule
) -> Callable[[], object] | None:
    try:
        return scenario(simulation)
    except Exception as error:
        if schedule.actors and schedule.problem is None:
            error.add_note(NOT_YET)
        raise


def run_once(
    scenario: Scenario,
    chooser: Chooser,
    pool: Pool,
    locks: list[SimulatedLock],
    *,
    steps: int,
    spurious: int,
    merging: bool,
    patience_s: float,
    recorder: Recorder | None = None,
) -> Schedule:
    """Run the scenario, its actors and its check, once, by the decisions of *chooser*.

    What the scenario itself raises comes out; what goes wrong later is the schedule's `problem`.
    """
    schedule = Schedule(
        chooser, pool, steps=steps, spurious=spurious, merging=merging, recorder=recorder
    )
    simulation = Simulation(schedule, locks)
    try:
        try:
            check = _set_up(scenario, simulation, schedule)
            _check_result(check)
        except BaseException:
            if schedule.problem is not None:
                return schedule
            raise
        simulation.begin()
        chooser.begin(schedule)
        schedule.run(patience_s)
        if check is not None and not schedule.over:
            try:
                simulation.check(check)
            except Exception as error:
                if schedule.problem is None:
                    text = f"the end state is wrong: {type(error).__name__}: {error}"
                    schedule.problem = Problem("check", text, error)
            except BaseException:
                if schedule.problem is None:
                    raise
    finally:
        schedule.over = True
        simulation.end()
    return schedule

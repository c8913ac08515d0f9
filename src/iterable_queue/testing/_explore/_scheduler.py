"""One schedule: the actors, the points at which they may be switched, and who goes on.

Every actor is a thread of its own, but only one runs at a time. Before each operation that others
could notice, an actor comes to a *point*: it says what it is about to do, and the scheduler, which
runs in that same thread, decides who goes on. If that is the same actor it just returns; if not,
the thread lets the other's lock go and waits for its own. What an actor does from one point to its
next is a *transition*.

A decision is made among *alternatives*: an actor and what happens to it. `RUN` it goes on; `KILL`
it dies where it stands; `FAIL` an error is raised there; `TIME_OUT` its sleep ends by its deadline;
`LOOK` a slice of its sleep ends, so that it sees who has died; `SPURIOUS` it wakes for nothing. The
first alternative is always the one that a scheduler without any ideas would take: go on with the
same actor, or, where it can't go on, with the first that can. An alternative that switches away
from an actor that could go on costs one *preemption*; so do a spurious wake-up and a time-out that
passes although somebody could run.

An actor whose call came to nothing, at once or in time, is polling: it has *yielded*. Then the
others come first, switching away is free, and going on with it is what costs. That is what keeps a
polling loop from being the first schedule that a search sees, for ever.

`reads` and `writes` are the footprint of the current transition, as bits, one for each thing that
actors can notice of each other: see `_simulated.Cells`, and `_search` for what it is good for.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from enum import IntEnum
from itertools import compress
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, Protocol

from iterable_queue.testing._explore._one_cpu import OneCpu

if TYPE_CHECKING:
    import traceback

EVERYTHING: Final = -1
"""A footprint that conflicts with every other."""
USER: Final = 1
"""The bit of what user code shares where actors are threads."""


class Kind(IntEnum):
    """What an actor is about to do at its point."""

    START = 0
    LOCK = 1
    SLEEP = 2
    STEP = 3
    CHECKPOINT = 4


class Variant(IntEnum):
    """What happens to the actor that is chosen."""

    RUN = 0
    KILL = 1
    FAIL = 2
    TIME_OUT = 3
    LOOK = 4
    SPURIOUS = 5


START, LOCK, SLEEP, STEP, CHECKPOINT = Kind
RUN, KILL, FAIL, TIME_OUT, LOOK, SPURIOUS = Variant

Alternative = tuple["Actor", Variant, int]
"""Who, what happens, and what that costs in preemptions."""


MOST_ENDINGS: Final = 1000
"""An actor that goes on after so many of these will never end."""


class Ending(BaseException):
    """Ends the thread of an actor that was killed, or whose schedule is over. Never an error."""


class LockLike(Protocol):
    """What a LOCK point waits for."""

    holder: Actor | None
    threaded: bool


class SemaphoreLike(Protocol):
    """What a SLEEP point waits for."""

    tokens: int
    purpose: str


class Chooser(Protocol):
    """Makes the decisions of one schedule."""

    def begin(self, schedule: Schedule) -> None:
        """The actors begin to run."""

    def choose(self, schedule: Schedule, alternatives: list[Alternative]) -> int:
        """The index of the alternative to take; -1: give the schedule up.

        It is asked about more than one alternative, and about any while `History` is kept.
        """
        ...

    def survives(self, schedule: Schedule) -> bool:
        """Whether the current actor lives through its next store (`Simulation.may_kill`)."""
        ...


class Actor:
    """One actor, in one schedule.

    Attributes:
        index: its number, from 1 in the order of `spawn`; 0 is the scenario itself.
        kind, target, deadline_ns: what it is about to do at its point.
        variant: what happens to it there, once it is chosen.
        dead: it was killed. done: its thread has ended or never began.
        endings: how often it was told to end.
        guarded: every store of its is looked at: it is dead, or may die inside the lock.
        cores: for each queue of processes that it was given, its part in it.
    """

    __slots__ = (
        "call",
        "cores",
        "dead",
        "deadline_ns",
        "done",
        "endings",
        "entered",
        "error",
        "error_ready",
        "fallible",
        "function",
        "guarded",
        "index",
        "inside",
        "kind",
        "last_size",
        "mortal",
        "name",
        "seen_faults",
        "started",
        "target",
        "threaded",
        "variant",
        "worker",
        "yielded",
    )

    def __init__(self, index: int, name: str, function: Callable[[], object]) -> None:
        self.index: int = index
        self.name: str = name
        self.function: Callable[[], object] = function
        self.kind: Kind = START
        self.target: Any = None
        self.deadline_ns: int | None = None
        self.endings: int = 0
        self.variant: Variant = RUN
        self.dead: bool = False
        self.done: bool = False
        self.started: bool = False
        self.entered: bool = True
        """False from its start, or from a token that it was given, to the next taking of a lock."""
        self.yielded: bool = False
        self.mortal: bool = False
        self.inside: bool = False
        self.fallible: BaseException | None = None
        self.error: BaseException | None = None
        self.error_ready: bool = False
        self.guarded: bool = False
        self.threaded: bool = False
        self.seen_faults: int = 0
        self.last_size: object = None
        self.cores: dict[Any, Any] = {}
        self.worker: Worker | None = None
        self.call: Any = None

    def is_safe(self) -> bool:
        """Whether nothing can happen to it at a point but to go on."""
        return not self.mortal and self.fallible is None

    def __repr__(self) -> str:
        return f"<actor {self.name}>"


class Problem:
    """Why a schedule failed.

    Attributes:
        kind: `error`, `deadlock`, `livelock`, `blocked` or `check`.
        error: the exception, if there was one.
        text: what is to be said, without the schedule.
    """

    __slots__ = ("error", "kind", "text")

    def __init__(self, kind: str, text: str, error: BaseException | None = None) -> None:
        self.kind: str = kind
        self.text: str = text
        self.error: BaseException | None = error

    def is_like(self, other: Problem) -> bool:
        """Whether both are the same kind of failure, so that one may stand for the other."""
        return self.kind == other.kind and type(self.error) is type(other.error)


class Recorder(Protocol):
    """Writes down what happens, for a report.

    Attributes:
        queues: the queues of the scenario, as `_simulated.SharedQueue`.
    """

    queues: list[Any]

    def pending(self, actor: Actor) -> None:
        """*actor* is about to do something."""

    def begins(self, actor: Actor, variant: Variant) -> None:
        """It does it."""

    def note(self, actor: Actor, outcome: str) -> None:
        """What came of it."""

    def ends(self, actor: Actor, error: BaseException | None) -> None:
        """Its function returned, or raised."""

    def stuck(self, schedule: Schedule) -> str:
        """Who waits for what."""
        ...


class Sorts:
    """The sorts of transitions in an exploration: those of one actor with the same footprint.

    There are few, and many transitions, so which depend on each other is found out once.
    """

    def __init__(self) -> None:
        self._sorts: dict[tuple[int, int, int], int] = {}
        self._related: list[bytearray] = []

    def related(self, reads: int, writes: int, actor: int) -> tuple[int, bytearray]:
        """The number of a sort, below 256, and a table for `bytearray.translate`.

        The table has a 1 at the number of each sort that this one depends on. Should there be
        very many, the last number stands for all further ones, and depends on everything.
        """
        key = reads, writes, actor
        sort = self._sorts.get(key)
        if sort is None:
            sort = self._sorts[key] = min(len(self._related), 255)
            if sort == len(self._related):
                self._add(sort, key)
        return sort, self._related[sort]

    def _add(self, sort: int, key: tuple[int, int, int]) -> None:
        reads, writes, actor = key
        either = reads | writes
        table = bytearray(256)
        self._related.append(table)
        for (its_reads, its_writes, its_actor), other in self._sorts.items():
            if sort == 255 or its_actor == actor or its_writes & either or its_reads & writes:
                table[other] = self._related[other][sort] = 1


class History:
    """Which state a schedule has come to, as a number: see "Reduction" in `_search`.

    Attributes:
        sorts, numbers: of each transition: its sort, and a number that follows from its past.
        state: the same for every order of these transitions that makes no difference.
    """

    __slots__ = ("_known", "numbers", "sorts", "state")

    def __init__(self, known: Sorts, sorts: bytearray, numbers: list[int], state: int) -> None:
        self.sorts: bytearray = sorts
        self.numbers: list[int] = numbers
        self.state: int = state
        self._known = known

    def begun(self, count: int, state: int) -> History:
        """A history that begins with the first *count* transitions of this one."""
        return History(self._known, self.sorts[:count], self.numbers[:count], state)

    def add(self, actor: int, variant: Variant, died_at: int, reads: int, writes: int) -> None:
        """One more transition has ended."""
        sort, related = self._known.related(reads, writes, actor)
        past = sum(compress(self.numbers, self.sorts.translate(related)))
        number = hash((actor, variant, died_at, past))
        self.sorts.append(sort)
        self.numbers.append(number)
        self.state += number


class Schedule:
    """Runs the actors of one scenario, once."""

    def __init__(
        self,
        chooser: Chooser,
        pool: Pool,
        *,
        steps: int,
        spurious: int = 0,
        merging: bool = True,
        recorder: Recorder | None = None,
    ) -> None:
        self.main: Actor = Actor(0, "the scenario", lambda: None)
        self.actors: list[Actor] = []
        self.live: list[Actor] = []
        self.current: Actor = self.main
        self.last: Actor | None = None
        self.over: bool = False
        self.gone: bool = False
        """The call of the scenario, its actors and its check have ended."""
        self.pruned: bool = False
        """It was given up because its continuation was explored before."""
        self.problem: Problem | None = None
        self.reads: int = 0
        self.writes: int = 0
        self.died_at: int = 0
        """How many stores the current transition survived, where that is a choice."""
        self.history: History | None = None
        self.steps: int = 0
        self.preemptions: int = 0
        self.interleaved: bool = False
        self.deaths: int = 0
        self.faults: int = 0
        self.clock_ns: int = 1_000_000_000_000
        self.special: bool = spurious > 0
        """There may be other alternatives than RUN."""
        self.spurious: int = spurious
        self.merging: bool = merging
        """Points that move past all others are left out."""
        self.recorder: Recorder | None = recorder
        self.foreign: Actor | None = None
        self._limit = steps
        self._chooser = chooser
        self._pool = pool
        self._finished = threading.Lock()
        self._finished.acquire()
        self._ended = False
        self._home = threading.get_ident()

    # -- points ----------------------------------------------------------------------------------

    def point(self, kind: Kind, target: Any = None, deadline_ns: int | None = None) -> Variant:
        """The current actor is about to do something. Returns when it may, with what happens."""
        me = self.current
        if self.over or me.dead:
            if self.gone and threading.get_ident() == self._home:
                raise RuntimeError(
                    "the exploration has done with this schedule: what sim made can be used in "
                    "that one call of the scenario, by its actors and in its check, not afterwards"
                )
            me.endings += 1
            if me.endings > MOST_ENDINGS and me is not self.main:
                self._never_ends(me)
            raise Ending
        if me is self.main:
            return self._point_of_scenario(kind, target, deadline_ns)
        me.kind = kind
        me.target = target
        me.deadline_ns = deadline_ns
        if self.recorder is not None:
            self.recorder.pending(me)
        if not me.entered:
            me.entered = True
            if (
                kind == LOCK
                and self.merging
                and me.is_safe()
                and not target.threaded
                and target.holder is None
            ):
                # What it did so far was its own business, so that and this are one.
                if self.recorder is not None:
                    self.recorder.begins(me, RUN)
                return RUN
        chosen = self.decide()
        if chosen is not me:
            worker = me.worker
            assert worker is not None
            self._hand_over(chosen)
            worker.go.acquire()
            if self.over:
                raise Ending
        variant = me.variant
        if variant is RUN:
            return variant
        return self._resume(me, variant)

    def _resume(self, me: Actor, variant: Variant) -> Variant:
        if variant == KILL:
            self.die(me)
        if variant == FAIL:
            error = me.fallible
            assert error is not None
            me.fallible = None
            me.error_ready = True
            self.faults += 1
            # It may be the same in every schedule: a traceback grows each time that it is raised.
            raise error.with_traceback(None)
        if variant == TIME_OUT:
            assert me.deadline_ns is not None
            self.clock_ns = max(self.clock_ns, me.deadline_ns)
        elif variant == SPURIOUS:
            self.spurious -= 1
        elif variant == LOOK:
            me.seen_faults = self.faults
        return variant

    def die(self, me: Actor) -> None:
        """The current actor is dead from here on."""
        me.dead = me.guarded = True
        self.deaths += 1
        self.faults += 1
        raise Ending

    def _point_of_scenario(self, kind: Kind, target: Any, deadline_ns: int | None) -> Variant:
        """The scenario runs by itself, before and after the actors; nothing is decided."""
        if kind is not SLEEP or target.tokens:
            return RUN
        if deadline_ns is not None:
            self.clock_ns = max(self.clock_ns, deadline_ns)
            return TIME_OUT
        if self.faults > self.main.seen_faults:
            self.main.seen_faults = self.faults
            return LOOK
        self.problem = Problem(
            "deadlock",
            f"the scenario itself waits for {target.purpose}, and its actors run only when it has "
            "returned (or had ended when its check began): call this in an actor",
        )
        self.over = True
        raise Ending

    # -- decisions -------------------------------------------------------------------------------

    def decide(self) -> Actor | None:
        """End the transition of the last actor and choose the next. None: the schedule is over."""
        self.steps += 1
        if self.steps > self._limit:
            self._stop(
                Problem(
                    "livelock",
                    f"livelock: no end after {self._limit} steps (see steps=)"
                    + (self.recorder.stuck(self) if self.recorder else ""),
                )
            )
            return None
        last = self.last
        if self.history is not None and last is not None:
            self.history.add(last.index, last.variant, self.died_at, self.reads, self.writes)
        can_go_on = False
        runnable: list[Actor] = []
        for actor in self.live:
            kind = actor.kind
            if kind is SLEEP:
                if not actor.target.tokens:
                    continue
            elif kind is LOCK:
                holder = actor.target.holder
                if holder is not None and not holder.dead:
                    continue
            if actor is last:
                can_go_on = True
            else:
                runnable.append(actor)
        alternatives: list[Alternative]
        switch = 0
        if can_go_on and last is not None and not last.yielded:
            alternatives = [(last, RUN, 0)]
            switch = 1
            for actor in runnable:
                alternatives.append((actor, RUN, 1))
        else:
            alternatives = [(actor, RUN, 0) for actor in runnable]
            if can_go_on and last is not None:
                alternatives.append((last, RUN, 1 if runnable else 0))
        if len(alternatives) > 1:
            self.interleaved = True
        if self.special:
            self._add_faults(alternatives, switch)
        if not alternatives:
            if self.live:
                text = self.recorder.stuck(self) if self.recorder else ""
                self._stop(Problem("deadlock", f"deadlock: nobody can go on{text}"))
            elif self.history is not None and self._chooser.choose(self, []) < 0:
                self.pruned = True
                self._stop(None)
            return None
        chosen = 0
        if len(alternatives) > 1 or self.history is not None:
            chosen = self._chooser.choose(self, alternatives)
            if chosen < 0:
                self.pruned = True
                self._stop(None)
                return None
        actor, variant, cost = alternatives[chosen]
        self.preemptions += cost
        self.last = self.current = actor
        actor.variant = variant
        actor.yielded = False
        own = variant is RUN and actor.kind is not CHECKPOINT
        self.reads = self.writes = 0 if own else EVERYTHING
        self.died_at = 0
        if self.recorder is not None:
            self.recorder.begins(actor, variant)
        return actor

    def _add_faults(self, alternatives: list[Alternative], switch: int) -> None:
        """Append what may happen beside letting somebody run."""
        last = self.last
        runs = list(alternatives)
        asleep = [a for a in self.live if a.kind == SLEEP and not a.target.tokens]
        looks = [
            a
            for a in asleep
            if self.faults > a.seen_faults and (self.faults > self.deaths or not a.threaded)
        ]
        timed = sorted((a.deadline_ns, a.index, a) for a in asleep if a.deadline_ns is not None)
        if not runs:
            alternatives += [(a, LOOK, 0) for a in looks]
        if runs or not looks:
            for position, (_, _, actor) in enumerate(timed):
                alternatives.append((actor, TIME_OUT, 1 if runs or position else 0))
        if not alternatives:
            return  # a deadlock, which no mishap excuses
        for actor in self.live:
            if actor.mortal and not actor.dead and actor.kind != START and not actor.threaded:
                alternatives.append((actor, KILL, 0 if actor is last else switch))
        for actor, _, _ in runs:
            if actor.fallible is not None and actor.kind != START:
                alternatives.append((actor, FAIL, 0 if actor is last else switch))
        if self.spurious:
            alternatives += [(a, SPURIOUS, 1) for a in asleep]

    def survives(self) -> None:
        """A store inside the lock by an actor that may die there: a decision of its own."""
        self.died_at += 1
        self.reads = self.writes = EVERYTHING
        if not self._chooser.survives(self):
            self.died_at = -self.died_at
            if self.recorder is not None:
                self.recorder.note(self.current, "killed inside the lock")
            self.die(self.current)

    def _stop(self, problem: Problem | None) -> None:
        self.problem = problem
        self.over = True

    # -- from the first actor to the last --------------------------------------------------------

    def spawn(self, actor: Actor) -> None:
        """*actor* takes part from when the scenario has returned."""
        self.actors.append(actor)
        self.live.append(actor)

    def run(self, patience_s: float) -> None:
        """Run all actors to their ends. *patience_s*: real seconds after which one is stuck."""
        chosen = self.decide()
        if chosen is None and self.problem is None:
            return  # there are no actors
        self._go(chosen)
        steps = -1
        try:
            while not self._finished.acquire(timeout=patience_s):
                if steps == self.steps:
                    self._foreign_block(patience_s)
                    return
                steps = self.steps
        except BaseException:  # Ctrl-C, say: who runs ends at its next point, then the others
            self.over = True
            if not self._ended and not self._finished.acquire(timeout=patience_s):
                self._foreign_block(patience_s)
            raise
        self.current = self.main

    def _go(self, chosen: Actor | None) -> None:
        if chosen is None:
            self._unwind()
        else:
            self._hand_over(chosen)

    def _hand_over(self, chosen: Actor | None) -> None:
        if chosen is None:
            raise Ending  # the schedule is over: this thread first, then the others in turn
        worker = chosen.worker
        if worker is None:
            worker = chosen.worker = self._pool.worker(chosen.index)
            worker.job = lambda: self._act(chosen)
            chosen.started = True
            chosen.entered = False
        worker.go.release()

    def _act(self, actor: Actor) -> None:
        """The life of an actor's thread."""
        error: BaseException | None = None
        try:
            if actor.variant != RUN:
                self._resume(actor, actor.variant)
            actor.function()
        except Ending:
            pass
        except BaseException as raised:
            error = raised
        if self.foreign is actor:
            return  # it was given up; everybody else has gone
        if error is not None and not self.over:
            self._judge(actor, error)
        if self.recorder is not None and not self.over:
            self.recorder.ends(actor, error)
        del error
        actor.done = True
        if actor in self.live:
            self.live.remove(actor)
        chosen = None if self.over else self.decide()
        if chosen is None:
            self._unwind()
        else:
            self._hand_over(chosen)

    def _judge(self, actor: Actor, error: BaseException) -> None:
        """An actor ended by *error*, which may be a failure."""
        from iterable_queue._errors import IterableQueueError

        cause: BaseException | None = error
        passed = set[int]()
        while actor.error_ready and cause is not None and id(cause) not in passed:
            if cause is actor.error:
                return
            passed.add(id(cause))  # an error can be its own cause
            cause = cause.__cause__ or cause.__context__
        if self.faults and isinstance(error, IterableQueueError):
            return
        if self.recorder is not None:
            self.recorder.ends(actor, error)
        text = f"{actor.name} raised {type(error).__name__}: {error}"
        self._stop(Problem("error", text, error))

    def _unwind(self) -> None:
        """Let the threads of a schedule that is over end, one after another."""
        for actor in self.actors:
            if not actor.done:
                actor.done = True
                if actor.started:
                    self.current = actor
                    assert actor.worker is not None
                    actor.worker.go.release()
                    return
        self._ended = True
        self._finished.release()

    def _foreign_block(self, patience_s: float) -> None:
        """The current actor does not come to its next point: say where it stands, give it up."""
        import traceback

        stuck = self.foreign = self.current
        frame = sys._current_frames().get(stuck.worker.ident if stuck.worker else 0)  # pyright: ignore[reportPrivateUsage]
        where = "".join(traceback.format_list(_user_frames(frame))).rstrip()
        self._give_up(
            stuck,
            f"{stuck.name} has been blocked for {patience_s:g} s, or computing, by something "
            "that the library does not own, so that no schedule can go on. It stands at:\n"
            f"{where}\nIts thread (a daemon) is left behind.",
        )
        self._finished.acquire(timeout=patience_s)
        self.current = self.main

    def _never_ends(self, me: Actor) -> None:
        """The calling thread, that of *me*, goes on whatever is raised in it: so it stops here."""
        self.foreign = me
        self._give_up(
            me,
            f"{me.name} goes on after it was killed: a bare `except:`, or one of BaseException, in "
            "a loop catches whatever ends it. Catch Exception there. Its thread (a daemon) is left "
            "behind",
        )
        while True:
            threading.Event().wait()

    def _give_up(self, actor: Actor, why: str) -> None:
        """End the schedule without *actor*, whose thread does not end. An earlier failure stays."""
        if self.problem is None:
            self._stop(Problem("blocked", why))
        actor.done = True
        if actor.worker is not None:
            self._pool.abandon(actor.worker)
        self._unwind()


def _user_frames(frame: FrameType | None) -> list[traceback.FrameSummary]:
    """The stack without the explorer's own frames."""
    import traceback

    if frame is None:
        return []
    ours = os.path.dirname(__file__), threading.__file__
    return [e for e in traceback.extract_stack(frame) if not e.filename.startswith(ours)]


class Worker:
    """A thread that waits for jobs."""

    def __init__(self) -> None:
        self.go: threading.Lock = threading.Lock()
        self.go.acquire()
        self.job: Callable[[], None] | None = None
        self.abandoned: bool = False
        """Nobody will give it a job again: it was blocked by something foreign."""
        self.thread: threading.Thread = threading.Thread(
            target=self._work, name="explored actor", daemon=True
        )
        self.thread.start()

    @property
    def ident(self) -> int:
        return self.thread.ident or 0

    def _work(self) -> None:
        while True:
            self.go.acquire()
            job, self.job = self.job, None
            if job is None:
                return
            job()
            del job
            if self.abandoned:
                return


class Pool:
    """Threads that are kept from one schedule to the next: the one of each actor."""

    def __init__(self) -> None:
        self._workers: dict[int, Worker] = {}
        self._cpu = OneCpu()

    def between_schedules(self) -> None:
        """Called by the thread that explores, before each schedule."""
        self._cpu.look()

    def worker(self, index: int) -> Worker:
        """The thread of the actor of that number."""
        found = self._workers.get(index)
        if found is None:
            found = self._workers[index] = Worker()
            self._cpu.add(found.thread)
        return found

    def abandon(self, worker: Worker) -> None:
        """That thread is blocked, and not to be waited for."""
        worker.abandoned = True
        self._cpu.remove(worker.thread)
        self._workers = {i: w for i, w in self._workers.items() if w is not worker}

    def close(self) -> None:
        """End all threads."""
        for worker in self._workers.values():
            worker.go.release()
        for worker in self._workers.values():
            worker.thread.join(10)
        self._workers.clear()
        self._cpu.close()

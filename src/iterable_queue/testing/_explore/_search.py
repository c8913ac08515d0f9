"""The search: every schedule up to a number of preemptions, and samples of the rest.

Exhaustive part
---------------
Depth first by preemption bound, as in "Iterative context bounding" (Musuvathi, Qadeer, PLDI 2007):
all schedules with no preemption, then those with one, and so on. Nothing is run twice for that: an
alternative that costs more than the bound is put aside for the next. Schedules can't be taken back,
so each one is run from the start, its beginning prescribed by a tape (stateless search).

Reduction
---------
Two transitions that touch no common thing, or only read it, commute: which comes first makes no
difference. *Sleep sets* (Godefroid 1996) leave one of the two orders out: once the transition *t*
of actor A has been explored from a state, the search from its other alternatives does not run *t*
until something dependent on it has happened. Footprints are not declared but observed, cell by
cell, when a transition runs (`_simulated.Cells`); deaths, injected errors, time-outs, looks,
wake-ups for nothing, checkpoints, and transitions with a choice of their own inside depend on
everything.

Under a bound this must be done with care (Coons, Musuvathi, McKinley, "Bounded partial-order
reduction", OOPSLA 2013): the order that is kept may need more preemptions than the one left out,
and lie beyond the bound. Let L be the last actor at the state, B the alternative that is explored
while *t* sleeps, and `B w t v` a schedule that is left out in favour of `t B w v`, where `w` has
no transition of A's. Only two cases are used, in which the latter needs no more preemptions:

1. A is L and goes on. The kept order pays at most one to leave A after *t*; the other paid one to
   leave L for B, and whatever follows `w` costs it no less.
2. Neither A nor B is L, and A can't go on after *t*. Choosing A costs what choosing B costs, and
   leaving A is free. To leave `w` for *t* costs the other at least what it costs to leave `w` for
   `v`.

Both hold unless the last actor of `w` has yielded, for which staying costs more than leaving; so
at such a state nothing is left out. Every schedule within the bound that is not run is thus
equivalent to one that comes earlier in the order of the search and is within the bound as well;
that order being finite, to one that was run. Without a bound, all sleep sets are used.

What is taken for granted: that actors share nothing but queues, where queues are for processes,
other than around a `checkpoint`, which depends on everything. The order in which two actors write
into a list of the test's is not among the things that the search tells apart, unless something
on a queue decides it. On queues for threads, transitions that return to user code depend on each
other, since threads do share. Two points are left out for good reasons (Lipton, "Reduction", CACM
1975): what an actor does before its first operation, and taking its own endpoint into use, touch
nothing that others can see.

Samples
-------
Then, until the budget ends, by turns: random walks, and PCT ("A randomized scheduler with
probabilistic guarantees of finding bugs", Burckhardt et al., ASPLOS 2010): random priorities, which
change at a few random steps; a bug of depth d among n actors and k steps is found with a
probability of at least 1/(n k^(d-1)) each time.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import NamedTuple

from iterable_queue.testing._explore._report import Rows
from iterable_queue.testing._explore._scheduler import (
    EVERYTHING,
    RUN,
    Actor,
    Alternative,
    Pool,
    Problem,
    Schedule,
)
from iterable_queue.testing._explore._simulated import SimulatedLock
from iterable_queue.testing._explore._simulation import Scenario, run_once
from iterable_queue.testing._explore._tape import Choice

PCT_DEPTH = 3
"""PCT looks for bugs that need this many events in a certain order, at most."""
FAULT_ODDS = 0.15
"""How likely samples are to take an alternative other than to let somebody run."""
SHARE = 0.75
"""The share of the budget that the exhaustive part may use up, if it does not come to its end."""


class Nondeterministic(Exception):
    """The scenario did something else when its schedule ran again.

    A search can't go back to a state then, and no failure can be replayed. Look for real time,
    unseeded random numbers, the order of sets, and state that outlives the scenario's call.
    """


class NothingInterleaved(Exception):
    """At no time could more than one actor go on, so nothing was explored."""


class Sleeping(NamedTuple):
    """A transition that is not to be run until something dependent on it has happened."""

    actor: int
    reads: int
    writes: int


class Node:
    """A state in which there was a choice.

    Attributes:
        tape, at: how to come here: the first *at* choices of the tape.
        alternatives: for each, the actor's number, whether it just runs, its cost.
        chosen: the one that was explored first.
        sleep: what slept here.
        spent: preemptions up to here.
        last: the number of the actor that ran last; -1: none. free: it could go on as it liked.
        store: the choice is whether an actor dies before a store.
        seen: for alternatives that were run: reads, writes, and whether the actor can go on.
    """

    __slots__ = (
        "alternatives",
        "at",
        "chosen",
        "free",
        "last",
        "seen",
        "sleep",
        "spent",
        "store",
        "tape",
    )

    def __init__(self, tape: list[Choice], sleep: list[Sleeping], spent: int) -> None:
        self.tape = tape
        self.at = len(tape)
        self.alternatives: list[tuple[int, bool, int]] = []
        self.chosen = 0
        self.sleep = sleep
        self.spent = spent
        self.last = -1
        self.free = False
        self.store = False
        self.seen: dict[int, tuple[int, int, bool]] = {}


class Task(NamedTuple):
    """An alternative that is still to be explored."""

    node: Node
    chosen: int


def label_of(alternative: Alternative) -> int:
    """Who is chosen, and what it is about to do, as a number."""
    actor, variant, _ = alternative
    return actor.index << 6 | variant << 3 | actor.kind


class Taped:
    """A chooser that writes its choices down, and begins with those that are prescribed."""

    def __init__(self, prefix: list[Choice] | None = None) -> None:
        self.tape: list[Choice] = []
        self.prefix = prefix or []
        self.misfit: str = ""
        """Why what is prescribed does not fit, if so."""

    def choose(self, schedule: Schedule, alternatives: list[Alternative]) -> int:
        count = len(alternatives)
        if count == 1:
            return self.only(schedule, alternatives[0])
        at = len(self.tape)
        if at < len(self.prefix):
            wanted = self.prefix[at]
            index = wanted.chosen
            label = label_of(alternatives[index]) if index < count else -1
            if wanted.count != count or (wanted.label and wanted.label != label):
                self.misfit = (
                    f"choice {at + 1} (step {schedule.steps}) was one of {wanted.count} "
                    f"alternatives, and is one of {count} now: {_names(alternatives)}"
                )
                return -1
            self.arrive(schedule, alternatives, at)
        else:
            index = self.pick(schedule, alternatives)
            if index < 0:
                return index
            label = label_of(alternatives[index])
        self.tape.append(Choice(count, index, label))
        return index

    def survives(self, schedule: Schedule) -> bool:
        at = len(self.tape)
        schedule.reads = schedule.writes = EVERYTHING
        if at < len(self.prefix):
            dies = self.prefix[at].chosen
            if self.prefix[at].count != 2:
                self.misfit = f"choice {at + 1} (step {schedule.steps}) was another one"
                dies = 0
            self.arrive(schedule, [], at)
        else:
            dies = self.pick_death(schedule)
        self.tape.append(Choice(2, dies))
        return not dies

    def only(self, schedule: Schedule, alternative: Alternative) -> int:
        """There is one alternative: take it (0), or give the schedule up (-1)."""
        return 0

    def arrive(self, schedule: Schedule, alternatives: list[Alternative], at: int) -> None:
        """Prescribed choice number *at* is about to be taken."""

    def pick(self, schedule: Schedule, alternatives: list[Alternative]) -> int:
        """An alternative of one's own; -1: give the schedule up."""
        return 0

    def pick_death(self, schedule: Schedule) -> int:
        """Whether an actor dies before its next store: 1 if so."""
        return 0


def _names(alternatives: list[Alternative]) -> str:
    return ", ".join(f"{a.name} {v.name.lower()}" for a, v, _ in alternatives)


class Branching(Taped):
    """One schedule of the exhaustive search: to a task's state, and then on by the first way."""

    def __init__(self, task: Task | None, bound: float, reduce: bool) -> None:
        prefix = None
        if task is not None:
            node = task.node
            if node.store:
                choice = Choice(2, task.chosen)
            else:
                choice = Choice(len(node.alternatives), task.chosen)
            prefix = [*node.tape[: node.at], choice]
        super().__init__(prefix)
        self._task = task
        self._bound = bound
        self._reduce = reduce
        self.nodes: list[Node] = []
        self.cut = False
        """The schedule ended where every way on costs more than the bound."""

    def only(self, schedule: Schedule, alternative: Alternative) -> int:
        actor, variant, _ = alternative
        if variant == RUN and not _is_yielded(schedule.last):
            number = actor.index
            for entry in schedule.sleep:
                if entry.actor == number:
                    return -1
        return 0

    def arrive(self, schedule: Schedule, alternatives: list[Alternative], at: int) -> None:
        if self._task is None or at != len(self.prefix) - 1:
            return
        node, chosen = self._task
        if self._reduce:
            schedule.sleep = [*node.sleep, *_done_before(node, chosen, self._bound)]
            schedule.watch = self._task

    def pick(self, schedule: Schedule, alternatives: list[Alternative]) -> int:
        node = Node(self.tape, schedule.sleep, schedule.preemptions)
        last = schedule.last
        if last is not None:
            node.last = last.index
        node.free = alternatives[0][0] is last and alternatives[0][1] == RUN
        asleep: set[int] = set()
        if schedule.sleep and not _is_yielded(last):
            asleep = {entry.actor for entry in schedule.sleep}
        room = self._bound - schedule.preemptions
        first = -1
        left = False
        for index, (actor, variant, cost) in enumerate(alternatives):
            runs = variant == RUN
            if runs and actor.index in asleep:
                node.alternatives.append((-1, runs, cost))  # its orders are explored elsewhere
                continue
            node.alternatives.append((actor.index, runs, cost))
            left = True
            if first < 0 and cost <= room:
                first = index
        node.chosen = first
        if left:
            self.nodes.append(node)
        if first < 0:
            self.cut = left
            return -1
        if self._reduce:
            schedule.watch = (node, first)
        return first

    def pick_death(self, schedule: Schedule) -> int:
        node = Node(self.tape, schedule.sleep, schedule.preemptions)
        node.store = True
        node.alternatives = [(0, True, 0), (0, False, 0)]
        self.nodes.append(node)
        return 0


def _is_yielded(actor: Actor | None) -> bool:
    return actor is not None and actor.yielded


def _done_before(node: Node, chosen: int, bound: float) -> list[Sleeping]:
    """What sleeps while alternative *chosen* is explored: see Reduction above."""
    entries: list[Sleeping] = []
    if node.store:
        return entries
    to_run = node.alternatives[chosen][0]
    for index in range(chosen):
        actor, runs, _ = node.alternatives[index]
        seen = node.seen.get(index)
        if seen is None or not runs or actor == to_run:
            continue
        reads, writes, goes_on = seen
        first_case = index == 0 and node.free
        second_case = not goes_on and node.last not in (actor, to_run)
        if first_case or second_case or bound == float("inf"):
            entries.append(Sleeping(actor, reads, writes))
    return entries


class Walk(Taped):
    """A random walk."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._rng = rng

    def pick(self, schedule: Schedule, alternatives: list[Alternative]) -> int:
        runs = sum(variant == RUN for _, variant, _ in alternatives)
        return _runs_or_fault(self._rng, runs, len(alternatives), FAULT_ODDS)

    def pick_death(self, schedule: Schedule) -> int:
        return int(self._rng.random() < 0.02)


def _runs_or_fault(rng: random.Random, runs: int, count: int, odds: float) -> int:
    """One of the first *runs* alternatives, or, sometimes, one of the others."""
    if runs == count or (runs and rng.random() >= odds):
        return rng.randrange(runs)
    return rng.randrange(runs, count)


class Priorities(Taped):
    """One schedule by PCT."""

    def __init__(self, rng: random.Random, steps: int) -> None:
        super().__init__()
        self._rng = rng
        self._steps = max(steps, 2)
        self._changes = {rng.randrange(1, self._steps) for _ in range(PCT_DEPTH - 1)}
        self._priorities: dict[int, float] = {}
        self._lowest = 0.0

    def pick(self, schedule: Schedule, alternatives: list[Alternative]) -> int:
        rng = self._rng
        last = schedule.last
        if last is not None and (last.yielded or schedule.steps in self._changes):
            self._changes.discard(schedule.steps)
            self._lowest -= 1
            self._priorities[last.index] = self._lowest
        runs = [index for index, (_, variant, _) in enumerate(alternatives) if variant == RUN]
        if len(runs) < len(alternatives) and (not runs or rng.random() < 1 / self._steps):
            return rng.randrange(len(runs), len(alternatives))
        for index in runs:
            self._priorities.setdefault(alternatives[index][0].index, rng.random())
        return max(runs, key=lambda index: self._priorities[alternatives[index][0].index])

    def pick_death(self, schedule: Schedule) -> int:
        return int(self._rng.random() < 0.2 / self._steps)


class Budget:
    """How many schedules, and how many real seconds, may be used."""

    def __init__(self, schedules: int, seconds: float) -> None:
        self.schedules = schedules
        self.seconds = seconds
        self.used = 0
        self._began = time.monotonic()

    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began

    def left(self, share: float = 1.0) -> bool:
        """Whether this share of it is not used up."""
        return self.used < share * self.schedules and self.elapsed() < share * self.seconds


@dataclass
class Found:
    """A schedule that failed."""

    problem: Problem
    tape: list[Choice]
    preemptions: int
    steps: int
    how: str


@dataclass
class Search:
    """One exploration under way.

    Attributes:
        bound: all schedules with so many preemptions were explored; -1: not even those with none.
        complete: there are no others.
        exhaustive: schedules run by the exhaustive part. sampled: those run by the other.
        redundant: schedules given up half way, because an equivalent one was explored.
        spared: alternatives not tried, for the same reason.
        longest: the most steps that a schedule took.
    """

    scenario: Scenario
    steps: int
    spurious: int
    patience_s: float
    reduce: bool = True
    bound: int = -1
    complete: bool = False
    exhaustive: int = 0
    sampled: int = 0
    redundant: int = 0
    spared: int = 0
    longest: int = 0
    interleaved: bool = False
    pool: Pool = field(default_factory=Pool)
    locks: list[SimulatedLock] = field(default_factory=list[SimulatedLock])

    def run(self, chooser: Taped, recorder: Rows | None = None) -> Schedule:
        """One schedule."""
        schedule = run_once(
            self.scenario,
            chooser,
            self.pool,
            self.locks,
            steps=self.steps,
            spurious=self.spurious,
            patience_s=self.patience_s,
            recorder=recorder,
        )
        self.longest = max(self.longest, schedule.steps)
        self.interleaved = self.interleaved or schedule.interleaved
        return schedule

    # -- the two parts ---------------------------------------------------------------------------

    def exhaust(self, preemptions: int | None, budget: Budget) -> Found | None:
        """Explore every schedule with at most so many preemptions (None: with any number)."""
        limit = float("inf") if preemptions is None else preemptions
        by_cost: dict[float, list[Task | None]] = {0: [None]}
        bound: float = 0 if preemptions is not None else limit
        if preemptions is None:
            by_cost = {limit: [None]}
        while True:
            tasks = by_cost.pop(bound, [])
            while tasks:
                if not budget.left(SHARE):
                    return None
                found = self._explore(tasks, by_cost, bound, budget)
                if found is not None:
                    return found
            if preemptions is not None:
                self.bound = int(bound)
            if not by_cost:
                self.complete = True
                return None
            if bound >= limit:
                return None
            bound += 1

    def _explore(
        self,
        tasks: list[Task | None],
        by_cost: dict[float, list[Task | None]],
        bound: float,
        budget: Budget,
    ) -> Found | None:
        chooser = Branching(tasks.pop(), bound, self.reduce)
        schedule = self.run(chooser)
        if chooser.misfit:
            raise Nondeterministic(
                f"the scenario did something else when a schedule was begun again: "
                f"{chooser.misfit}. {Nondeterministic.__doc__}"
            )
        budget.used += 1
        if schedule.problem is not None:
            self.exhaustive += 1
            return self._found(schedule, chooser, "the exhaustive search")
        if not schedule.pruned:
            self.exhaustive += 1
        elif not chooser.cut:
            self.redundant += 1
        for node in chooser.nodes:
            for index in reversed(range(len(node.alternatives))):
                actor, _, cost = node.alternatives[index]
                if index == node.chosen:
                    continue
                if actor < 0:
                    self.spared += 1
                elif node.spent + cost <= bound:
                    tasks.append(Task(node, index))
                else:
                    by_cost.setdefault(node.spent + cost, []).append(Task(node, index))
        return None

    def sample(self, seed: int, budget: Budget) -> Found | None:
        """Random walks and PCT, until the budget ends."""
        rng = random.Random(seed)
        while budget.left():
            chooser: Taped
            walks = self.sampled % 2 == 0
            chooser = Walk(rng) if walks else Priorities(rng, self.longest)
            schedule = self.run(chooser)
            budget.used += 1
            self.sampled += 1
            if schedule.problem is not None:
                return self._found(schedule, chooser, "a random walk" if walks else "PCT")
        return None

    def _found(self, schedule: Schedule, chooser: Taped, how: str) -> Found:
        assert schedule.problem is not None
        number = self.exhaustive + self.sampled
        return Found(
            schedule.problem,
            chooser.tape,
            schedule.preemptions,
            schedule.steps,
            f"{how}, as schedule {number}",
        )

    # -- twice the same --------------------------------------------------------------------------

    def check_determinism(self, tape: list[Choice] | None = None) -> tuple[Schedule, Rows]:
        """Run one schedule twice; raises `Nondeterministic` if that makes a difference."""
        runs: list[tuple[Schedule, Rows, Taped]] = []
        for _ in range(2):
            chooser, recorder = Taped(tape), Rows()
            runs.append((self.run(chooser, recorder), recorder, chooser))
            if runs[0][0].foreign is not None:
                break
        (schedule, first, _), (_, second, _) = runs[0], runs[-1]
        for step, (one, other) in enumerate(zip(first.rows, second.rows, strict=False), 1):
            if one.key() != other.key():
                raise Nondeterministic(_differs(step, _said(one), _said(other)))
        if len(first.rows) != len(second.rows):
            step = min(len(first.rows), len(second.rows))
            ends = [
                _said(rows.rows[step]) if len(rows.rows) > step else "nothing more"
                for rows in (first, second)
            ]
            raise Nondeterministic(_differs(step + 1, *ends))
        problems = [run.problem for run, _, _ in runs]
        if (problems[0] is None) != (problems[-1] is None):
            texts = ["ended well" if p is None else p.text for p in problems]
            raise Nondeterministic(_differs(len(first.rows), *texts))
        second.close()
        return schedule, first

    def close(self) -> None:
        """End the threads."""
        self.pool.close()


def _said(row: object) -> str:
    from iterable_queue.testing._explore._report import Row

    assert isinstance(row, Row)
    return f"{row.actor.name}: {row.text() or 'begins'}"


def _differs(step: int, one: str, other: str) -> str:
    return (
        f"the same schedule, run twice, differed in step {step}: first ({one}), then ({other}). "
        f"{Nondeterministic.__doc__}"
    )

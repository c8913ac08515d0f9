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
difference. Footprints are not declared but observed, cell by cell, when a transition runs
(`_simulated.Cells`); deaths, injected errors, time-outs, looks, wake-ups for nothing, checkpoints,
and transitions with a choice of their own inside depend on everything. Schedules that differ only
in the order of what commutes have the same *happens-before* relation and come to the same state.
So each transition gets a number that follows from who made it and from the numbers of all earlier
ones that it depends on; and the sum of these numbers, which no longer knows of the order, names the
state. A schedule that comes to a state that was seen before, with the same actor as the last one
and with no fewer preemptions spent, is given up: whatever it could do from there on, another does.
("Partial-order reduction for context-bounded state exploration", Musuvathi and Qadeer, MSR-TR-2007-
12, section 4.)

That is sound under a bound on preemptions, where sleep and persistent sets by themselves are not
(Coons, Musuvathi, McKinley, "Bounded partial-order reduction", OOPSLA 2013): what a continuation
costs depends on the state, and on the last actor if it can go on, and on nothing else; both are
the same. What is given up is covered by a schedule all of whose continuations were put on the list
of things to explore. (But for two states with the same number among 2**61: not within a lifetime.)

What is taken for granted: that actors share nothing but queues, where queues are for processes,
other than around a `checkpoint`, which depends on everything. The order in which two actors write
into a list of the test's is not among the things that the search tells apart, unless something
on a queue decides it. On queues for threads, transitions that return to user code depend on each
other, since threads do share. On queues for processes, three points are left out as moving past
whatever others do (Lipton, "Reduction", CACM 1975), unless the actor may be killed there: what an
actor does before its first operation; taking its own endpoint into use; and taking the lock after
a token was taken, since there are as many tokens as sleepers that are not counted any more. (Not
after a look at the clock.) All three are moved to just before the actor's next transition, which
saves the switch away from it, so no schedule needs more preemptions for that.

Samples
-------
Then, until the budget ends, by turns: random walks, and PCT ("A randomized scheduler with
probabilistic guarantees of finding bugs", Burckhardt et al., ASPLOS 2010): random priorities, which
change at a few random steps; a bug of depth d among n actors and k steps is found with a
probability of at least 1/(n k^(d-1)) each time.
"""

from __future__ import annotations

import random
from functools import lru_cache
from typing import NamedTuple

from iterable_queue._clock import monotonic
from iterable_queue.testing._explore._errors import LOOK_FOR, Nondeterministic
from iterable_queue.testing._explore._report import Row, Rows
from iterable_queue.testing._explore._scheduler import (
    RUN,
    Alternative,
    History,
    Pool,
    Problem,
    Schedule,
    Sorts,
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


class Node:
    """A state in which there was a choice.

    Attributes:
        tape, at: how to come here: the first *at* choices of the tape.
        costs: what each alternative costs; of the choice whether an actor dies, nothing.
        chosen: the one that was explored first.
        spent: preemptions up to here.
        history, known, state: of the history, the first *known* transitions are those up to here.
            None: it is to be made up again, to save memory.
    """

    __slots__ = ("at", "chosen", "costs", "history", "known", "spent", "state", "tape")

    def __init__(
        self,
        tape: list[Choice],
        at: int,
        costs: list[int],
        spent: int,
        history: History | None = None,
    ) -> None:
        self.tape = tape
        self.at = at
        self.costs = costs
        self.chosen = 0
        self.spent = spent
        self.history = history
        self.known = self.state = 0
        if history is not None:
            self.known = len(history.numbers)
            self.state = history.state

    def light(self) -> Node:
        """The same, for a task that has to wait long: without the history."""
        return Node(self.tape, self.at, self.costs, self.spent)


class Task(NamedTuple):
    """An alternative that is still to be explored."""

    node: Node
    chosen: int


_choice = lru_cache(maxsize=None)(Choice)
"""There are few different ones, and many tapes."""


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
        if count < 2:
            return -1 if self.is_known(schedule, alternatives) else 0
        at = len(self.tape)
        if at < len(self.prefix):
            wanted = self.prefix[at]
            index = wanted.chosen
            label = label_of(alternatives[index]) if index < count else -1
            if wanted.among != count or (wanted.label and wanted.label != label):
                self.misfit = (
                    f"choice {at + 1} (step {schedule.steps}) was one of {wanted.among} "
                    f"alternatives, and is one of {count} now: {_names(alternatives)}"
                )
                return -1
            self.arrive(schedule, at)
        else:
            index = self.pick(schedule, alternatives)
            if index < 0:
                return index
            label = label_of(alternatives[index])
        self.tape.append(_choice(count, index, label))
        return index

    def survives(self, schedule: Schedule) -> bool:
        at = len(self.tape)
        if at < len(self.prefix):
            dies = self.prefix[at].chosen
            if self.prefix[at].among != 2:
                self.misfit = f"choice {at + 1} (step {schedule.steps}) was another one"
                dies = 0
            self.arrive(schedule, at)
        else:
            dies = self.pick_death(schedule)
        self.tape.append(_choice(2, dies, 0))
        return not dies

    def begin(self, schedule: Schedule) -> None:
        """The schedule begins."""

    def arrive(self, schedule: Schedule, at: int) -> None:
        """Prescribed choice number *at* is about to be taken."""

    def is_known(self, schedule: Schedule, alternatives: list[Alternative]) -> bool:
        """Whether what can come from here on has been explored."""
        return False

    def pick(self, schedule: Schedule, alternatives: list[Alternative]) -> int:
        """An alternative of one's own; -1: give the schedule up."""
        return 0

    def pick_death(self, schedule: Schedule) -> int:
        """Whether an actor dies before its next store: 1 if so."""
        return 0


def _names(alternatives: list[Alternative]) -> str:
    return ", ".join(f"{a.name} {v.name.lower()}" for a, v, _ in alternatives)


class Branching(Taped):
    """One schedule of the exhaustive search: to a task's state, and then on by the first way.

    *visited* has, for each state and last actor, the fewest preemptions that led there.
    """

    def __init__(
        self,
        task: Task | None,
        bound: float,
        visited: dict[tuple[int, int], int] | None,
        sorts: Sorts,
    ) -> None:
        prefix = None
        if task is not None:
            node = task.node
            choice = Choice(len(node.costs), task.chosen)
            prefix = [*node.tape[: node.at], choice]
        super().__init__(prefix)
        self._task = task
        self._bound = bound
        self._visited = visited
        self._sorts = sorts
        self.nodes: list[Node] = []
        self.redundant = False
        """The schedule was given up because it came to a state that was explored before."""

    def begin(self, schedule: Schedule) -> None:
        if self._visited is not None and (self._task is None or self._task.node.history is None):
            schedule.history = History(self._sorts, bytearray(), [], 0)

    def arrive(self, schedule: Schedule, at: int) -> None:
        if self._task is None or self._visited is None or at != len(self.prefix) - 1:
            return
        node = self._task.node
        if node.history is not None:
            schedule.history = node.history.begun(node.known, node.state)

    def is_known(self, schedule: Schedule, alternatives: list[Alternative]) -> bool:
        if schedule.history is None or self._visited is None or len(self.tape) < len(self.prefix):
            return False
        last = schedule.last
        who = -1  # who ran last matters only to what it costs to leave it
        if last is not None:
            for actor, variant, _ in alternatives:
                if actor is last and variant is RUN:
                    who = last.index
                    break
        key = schedule.history.state, who
        spent = schedule.preemptions
        if self._visited.get(key, spent + 1) <= spent:
            self.redundant = True
            return True
        self._visited[key] = spent
        return False

    def pick(self, schedule: Schedule, alternatives: list[Alternative]) -> int:
        if self.is_known(schedule, alternatives):
            return -1
        costs = [cost for _, _, cost in alternatives]
        spent = schedule.preemptions
        node = Node(self.tape, len(self.tape), costs, spent, schedule.history)
        self.nodes.append(node)
        for index, cost in enumerate(costs):
            if spent + cost <= self._bound:
                node.chosen = index
                return index
        node.chosen = -1
        return -1

    def pick_death(self, schedule: Schedule) -> int:
        self.nodes.append(
            Node(self.tape, len(self.tape), [0, 0], schedule.preemptions, schedule.history)
        )
        return 0


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
        self._began = monotonic()

    def elapsed(self) -> float:
        """Seconds since it began."""
        return monotonic() - self._began

    def left(self, share: float = 1.0) -> bool:
        """Whether this share of it is not used up."""
        return self.used < share * self.schedules and self.elapsed() < share * self.seconds


class Found(NamedTuple):
    """A schedule that failed."""

    problem: Problem
    tape: list[Choice]
    how: str
    preemptions: int = 0
    steps: int = 0


class Search:
    """One exploration under way.

    Attributes:
        bound: all schedules with so many preemptions were explored; -1: not even those with none.
        complete: there are no others.
        exhaustive: schedules run by the exhaustive part. sampled: those run by the other.
        redundant: schedules given up half way, because they came to a state explored before.
        longest: the most steps that a schedule took.
    """

    def __init__(
        self, scenario: Scenario, steps: int, spurious: int, patience_s: float, reduce: bool
    ) -> None:
        self.bound = -1
        self.complete = False
        self.exhaustive = 0
        self.sampled = 0
        self.redundant = 0
        self.longest = 0
        self.interleaved = False
        self._scenario = scenario
        self._steps = steps
        self._spurious = spurious
        self._patience_s = patience_s
        self._reduce = reduce
        self._visited: dict[tuple[int, int], int] = {}
        self._sorts = Sorts()
        self._pool = Pool()
        self._locks: list[SimulatedLock] = []

    def run(self, chooser: Taped, recorder: Rows | None = None) -> Schedule:
        """One schedule."""
        self._pool.between_schedules()
        schedule = run_once(
            self._scenario,
            chooser,
            self._pool,
            self._locks,
            steps=self._steps,
            spurious=self._spurious,
            merging=self._reduce,
            patience_s=self._patience_s,
            recorder=recorder,
        )
        self.longest = max(self.longest, schedule.steps)
        self.interleaved = self.interleaved or schedule.interleaved
        return schedule

    def options(self) -> str:
        """What a replay must be told beside its string."""
        from iterable_queue.testing._explore import STEPS

        text = "" if self._steps == STEPS else f", steps={self._steps}"
        text += f", spurious={self._spurious}" if self._spurious else ""
        return text + ("" if self._reduce else ", reduction=False")

    # -- the two parts ---------------------------------------------------------------------------

    def exhaust(self, preemptions: int | None, budget: Budget, share: float) -> Found | None:
        """Explore every schedule with at most so many preemptions (None: with any number)."""
        limit = float("inf") if preemptions is None else preemptions
        by_cost: dict[float, list[Task | None]] = {0: [None]}
        bound: float = 0 if preemptions is not None else limit
        if preemptions is None:
            by_cost = {limit: [None]}
        while True:
            tasks = by_cost.pop(bound, [])
            while tasks:
                if not budget.left(share):
                    return None
                found = self._explore(tasks, by_cost, bound, limit, budget)
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
        limit: float,
        budget: Budget,
    ) -> Found | None:
        visited = self._visited if self._reduce else None
        chooser = Branching(tasks.pop(), bound, visited, self._sorts)
        schedule = self.run(chooser)
        if chooser.misfit:
            raise Nondeterministic(
                f"the scenario did something else when a schedule was begun again: "
                f"{chooser.misfit}. {LOOK_FOR}"
            )
        budget.used += 1
        if schedule.problem is not None:
            self.exhaustive += 1
            return self._found(schedule, chooser, "the exhaustive search")
        if not schedule.pruned:
            self.exhaustive += 1
        elif chooser.redundant:
            self.redundant += 1
        for node in chooser.nodes:
            light: Node | None = None
            chosen, spent = node.chosen, node.spent
            for index in range(len(node.costs) - 1, -1, -1):
                if index == chosen:
                    continue
                total = spent + node.costs[index]
                if total <= bound:
                    tasks.append(Task(node, index))
                elif total <= limit:
                    light = light or node.light()
                    by_cost.setdefault(total, []).append(Task(light, index))
                elif total not in by_cost:
                    by_cost[total] = []  # nobody will, but there is something
        return None

    def sample(self, seed: int, budget: Budget, samples: int | None) -> Found | None:
        """Random walks and PCT, until the budget ends."""
        rng = random.Random(seed)
        while budget.left() and self.sampled != samples:
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
            f"{how}, as schedule {number}",
            schedule.preemptions,
            schedule.steps,
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
        (schedule, first, _), (again, second, _) = runs[0], runs[-1]
        _compare(first, second)
        problems = schedule.problem, again.problem
        if (problems[0] is None) != (problems[1] is None):
            texts = ["ended well" if p is None else p.text for p in problems]
            raise Nondeterministic(_differs(len(first.rows), *texts))
        second.close()
        return schedule, first

    def check_again(self, first: Rows) -> None:
        """Run the first schedule once more, after all others."""
        again = Rows()
        self.run(Taped(), again)
        again.close()
        _compare(first, again)

    def close(self) -> None:
        """End the threads."""
        self._pool.close()


def _compare(first: Rows, second: Rows) -> None:
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


def _said(row: Row) -> str:
    return f"{row.actor.name}: {row.text() or 'begins'}"


def _differs(step: int, one: str, other: str) -> str:
    return (
        f"the same schedule, run twice, differed in step {step}: first ({one}), then ({other}). "
        f"{LOOK_FOR}"
    )

"""`explore`: run a scenario under every schedule that matters, and show the one that fails."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, NamedTuple

from iterable_queue._core import check_callable, check_int, check_seconds
from iterable_queue.testing._explore._errors import (
    LOOK_FOR,
    Nondeterministic,
    NothingInterleaved,
    ReplayError,
    ScheduleFailure,
)
from iterable_queue.testing._explore._scheduler import Actor, Schedule
from iterable_queue.testing._explore._simulation import (
    Injected,
    Scenario,
    Simulation,
    checkpoint,
)

if TYPE_CHECKING:
    from iterable_queue.testing._explore._report import Rows
    from iterable_queue.testing._explore._search import Found, Search

STEPS = 2000
"""How many steps a schedule may take, unless told otherwise."""

__all__ = [
    "Actor",
    "Exploration",
    "Injected",
    "Nondeterministic",
    "NothingInterleaved",
    "ReplayError",
    "Scenario",
    "ScheduleFailure",
    "Simulation",
    "checkpoint",
    "explore",
]


class Exploration(NamedTuple):
    """What was explored, without finding a failure. `str()` says it in words.

    Attributes:
        bound: every schedule with at most so many preemptions was explored, or one equivalent to
            it; -1: not even those without any. None: the search had no bound.
        complete: every schedule there is was explored.
        schedules: how many were run to their ends by the exhaustive search.
        redundant: how many more it gave up half way, as equivalent to others from there on.
        sampled: how many schedules were run at random.
        steps: the most steps that one of them took.
        seconds: of real time.
        seed: what the samples were drawn by.
    """

    bound: int | None
    complete: bool
    schedules: int
    redundant: int
    sampled: int
    steps: int
    seconds: float
    seed: int

    def __str__(self) -> str:
        if self.complete:
            text = f"exhaustive: all schedules, {self.schedules} of them run"
        elif self.bound is None or self.bound < 0:
            text = f"sampled only: the exhaustive search ended after {self.schedules} schedules"
        else:
            plural = "" if self.bound == 1 else "s"
            text = f"exhaustive up to {self.bound} preemption{plural}, {self.schedules} schedules"
        if self.redundant:
            text += f" and {self.redundant} begun that were equivalent to others"
        if self.sampled:
            text += f"; {self.sampled} sampled at random (seed {self.seed})"
        return f"{text}; {self.seconds:.1f} s"


def explore(
    scenario: Scenario,
    *,
    preemptions: int | None = 2,
    schedules: int = 5000,
    seconds: float = 20.0,
    samples: int | None = None,
    seed: int | None = None,
    replay: str | None = None,
    steps: int = STEPS,
    spurious: int = 0,
    patience: float = 5.0,
    reduction: bool = True,
) -> Exploration:
    """Run *scenario* under every schedule with few preemptions, then under random ones.

    `scenario(sim)` builds queues with `sim.queue()`, starts actors with `sim.spawn`, and may return
    a function that checks the end state. It is called anew for each schedule, so it must make
    everything that it uses. See `Simulation`.

    A schedule fails if an actor ends by an exception, if nobody can go on, if there is no end, or
    if the check raises. These are no failures: an error that `may_fail` injected, and, once
    somebody was killed or made to fail, an error of this library's that ends another actor
    (`ProducerFailed`, say): it is how that one was told.

    Args:
        scenario: what to run.
        preemptions: the search is exhaustive up to so many switches away from an actor that could
            have gone on; None: without a bound.
        schedules: how many to run at most, in both parts.
        samples: how many of them at most at random; None: until the budget ends. None are drawn
            where the exhaustive search has run all there are.
        seconds: how long to go on at most, in real time.
        seed: for the random schedules; None: one that follows from the scenario's name.
        replay: run the one schedule that this string of a `ScheduleFailure` describes. *steps*,
            *spurious* and *reduction* must be what they were.
        steps: how many steps a schedule may take before it counts as one without end.
        spurious: how many wake-ups for nothing each schedule may have.
        patience: how many real seconds an actor may compute, or be blocked by something that is
            not the library's, between two of its operations.
        reduction: False: also run schedules that are known to be equivalent to others. To measure.

    Returns:
        What was explored.

    Raises:
        ScheduleFailure: a schedule failed.
        Nondeterministic: the scenario is not the same each time.
        NothingInterleaved: there was nothing to explore.
        ReplayError: *replay* can't be read, does not fit, or does not fail any more.
    """
    from iterable_queue.testing._explore._search import SHARE, Budget, Found, Search
    from iterable_queue.testing._explore._shrink import Shrinker

    check_callable(scenario, "scenario")
    _check_arguments(preemptions, schedules, samples, seconds, steps, spurious, patience)
    if seed is not None:
        check_int(seed, "seed")
    named = getattr(scenario, "func", scenario)  # of a functools.partial
    name = getattr(named, "__qualname__", "scenario").rpartition(".")[2]
    if seed is None:
        seed = zlib.crc32(name.encode())
    search = Search(scenario, steps, spurious, patience, reduction)
    try:
        if replay is not None:
            return _replay(search, replay, name, seed)
        budget = Budget(schedules, seconds)
        schedule, rows = search.check_determinism()
        if schedule.problem is not None and schedule.foreign is not None:
            first = Found(schedule.problem, [], "the first schedule")
            raise _written(search, schedule, rows, first, name)
        rows.close()
        found = search.exhaust(preemptions, budget, SHARE if samples != 0 else 1.0)
        if found is None and not search.interleaved:
            raise NothingInterleaved(
                f"in {search.exhaustive} schedule(s) of {name} there was never more than one actor "
                "that could go on, so nothing was explored: spawn two actors that use the same "
                "queue"
            )
        if found is None and not search.complete:
            found = search.sample(seed, budget, samples)
        if found is None:
            search.check_again(rows)
            return Exploration(
                None if preemptions is None else search.bound,
                search.complete,
                search.exhaustive,
                search.redundant,
                search.sampled,
                search.longest,
                budget.elapsed(),
                seed,
            )
        if found.problem.kind != "blocked":
            found = Shrinker(search, found).shrink()
        failure = _failure(search, found, name)
        raise failure from found.problem.error
    finally:
        search.close()


def _replay(search: Search, replay: str, name: str, seed: int) -> Exploration:
    from iterable_queue.testing._explore._search import Found, Taped
    from iterable_queue.testing._explore._tape import decode

    tape = decode(replay)
    chooser = Taped(tape)
    schedule = search.run(chooser)
    misfit = chooser.misfit
    if not misfit and len(chooser.tape) != len(tape):
        misfit = f"it has {len(tape)} choices, and the schedule came to {len(chooser.tape)}"
    if misfit:
        raise ReplayError(
            f"replay={replay!r} does not fit {name} as it is now: {misfit}. Explore again"
        )
    if schedule.problem is None:
        raise ReplayError(f"replay={replay!r} fits {name}, but does not fail any more")
    found = Found(schedule.problem, chooser.tape, "this replay")
    raise _failure(search, found, name) from schedule.problem.error


def _failure(search: Search, found: Found, name: str) -> ScheduleFailure:
    """Run the schedule again, twice, to write it down."""
    schedule, rows = search.check_determinism(found.tape)
    problem = schedule.problem
    if problem is None or not problem.is_like(found.problem):
        raise Nondeterministic(
            f"a schedule failed ({found.problem.text}) and did not when it ran again. {LOOK_FOR}"
        ) from found.problem.error
    return _written(search, schedule, rows, found, name)


def _written(
    search: Search, schedule: Schedule, rows: Rows, found: Found, name: str
) -> ScheduleFailure:
    """The report of a schedule that was written down."""
    from iterable_queue.testing._explore._tape import encode

    problem = schedule.problem
    assert problem is not None
    table = rows.table(schedule.actors)
    rows.close()
    replay = encode(found.tape)
    plural = "" if schedule.preemptions == 1 else "s"
    text = (
        f"{problem.text}\n\n"
        f"the schedule ({schedule.preemptions} preemption{plural}), found by {found.how}:\n\n"
        f"{table}\n\n"
        f'to run it again: explore({name}, replay="{replay}"{search.options()})'
    )
    return ScheduleFailure(text, problem.text, table, replay, schedule.preemptions)


def _check_arguments(
    preemptions: int | None,
    schedules: int,
    samples: int | None,
    seconds: float,
    steps: int,
    spurious: int,
    patience: float,
) -> None:
    for name, value, least in (
        ("preemptions", preemptions, 0),
        ("schedules", schedules, 1),
        ("samples", samples, 0),
        ("steps", steps, 1),
        ("spurious", spurious, 0),
    ):
        if value is None:
            continue
        check_int(value, name)
        if value < least:
            raise ValueError(f"{name} must be {least} or more, not {value}")
    for name, number in (("seconds", seconds), ("patience", patience)):
        check_seconds(number, name)
        if not number > 0:
            raise ValueError(f"{name} must be more than 0 seconds, not {number!r}")

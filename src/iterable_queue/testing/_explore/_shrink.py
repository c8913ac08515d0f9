"""Shrinking: from a schedule that fails to one that fails likewise and is easier to read.

A schedule is worth less the more preemptions it needs, then the more of its choices differ from
what would happen by itself, then the more steps it takes. First, schedules are tried in the order
of how many choices differ: none, one, two, as far as the attempts suffice. If none of them fails
likewise, the one that was found is cut down: a run of its choices is left to itself, or left out,
long runs first, until nothing helps any more. What comes after a change may not fit; then what
would happen by itself does.
"""

from __future__ import annotations

from collections import deque

from iterable_queue._clock import monotonic
from iterable_queue.testing._explore._scheduler import Alternative, Schedule
from iterable_queue.testing._explore._search import Found, Search, Taped
from iterable_queue.testing._explore._tape import Choice

ATTEMPTS = 400
"""How many schedules each of the two ways tries at most."""
SECONDS = 3.0
"""How many real seconds each of them takes at most."""


class Lenient(Taped):
    """Takes what is wanted where that fits, and the first alternative elsewhere."""

    def __init__(self, wanted: list[int]) -> None:
        super().__init__()
        self._wanted = wanted

    def pick(self, schedule: Schedule, alternatives: list[Alternative]) -> int:
        return self._next(len(alternatives))

    def pick_death(self, schedule: Schedule) -> int:
        return self._next(2)

    def _next(self, among: int) -> int:
        at = len(self.tape)
        wanted = self._wanted[at] if at < len(self._wanted) else 0
        return wanted if wanted < among else 0


class Shrinker:
    """Shrinks one schedule of *search*.

    Attributes:
        best: the simplest so far.
    """

    def __init__(self, search: Search, found: Found) -> None:
        self._search = search
        self._wanted = found
        self.best = found
        self._tried: set[tuple[int, ...]] = set()
        self._attempts = 0
        self._until = 0.0

    def shrink(self) -> Found:
        """The simplest schedule that was found to fail in the same way."""
        self._begin()
        if not self._try_few():
            self._begin()
            while self._cut_down():
                pass
        return self.best

    def _begin(self) -> None:
        self._attempts = 0
        self._until = monotonic() + SECONDS

    def _may_go_on(self) -> bool:
        return self._attempts < ATTEMPTS and monotonic() < self._until

    def _run(self, wanted: list[int]) -> tuple[list[Choice], bool]:
        """Run it. Returns its tape, and whether it is the best so far that fails likewise."""
        self._attempts += 1
        chooser = Lenient(wanted)
        schedule = self._search.run(chooser)
        problem = schedule.problem
        if problem is None or not problem.is_like(self._wanted.problem):
            return chooser.tape, False
        found = Found(problem, chooser.tape, self._wanted.how, schedule.preemptions, schedule.steps)
        if _worth(found) >= _worth(self.best):
            return chooser.tape, False
        self.best = found
        return chooser.tape, True

    def _try_few(self) -> bool:
        """Schedules with few choices of their own, fewest first. True: one of them fails."""
        queue: deque[list[int]] = deque([[]])
        while queue and self._may_go_on():
            wanted = queue.popleft()
            if sum(map(bool, wanted)) >= _worth(self._wanted)[1]:
                return False
            tape, better = self._run(wanted)
            if better:
                return True
            for at in range(len(wanted), len(tape)):
                before = [*wanted, *[0] * (at - len(wanted))]
                queue.extend([*before, other] for other in range(1, tape[at].among))
        return False

    def _cut_down(self) -> bool:
        """One pass over the best schedule. True: that made it simpler."""
        improved = False
        size = max(len(self.best.tape) // 2, 1)
        while size and self._may_go_on():
            at = 0
            while at < len(self.best.tape):
                wanted = [choice.chosen for choice in self.best.tape]
                after = wanted[at + size :]
                by_itself = [*wanted[:at], *[0] * min(size, len(wanted) - at), *after]
                if self._attempt(by_itself) or self._attempt([*wanted[:at], *after]):
                    improved = True
                else:
                    at += size
            size //= 2
        return improved

    def _attempt(self, wanted: list[int]) -> bool:
        while wanted and wanted[-1] == 0:
            wanted.pop()
        if tuple(wanted) in self._tried or not self._may_go_on():
            return False
        self._tried.add(tuple(wanted))
        return self._run(wanted)[1]


def _worth(found: Found) -> tuple[int, int, int]:
    return found.preemptions, sum(c.chosen != 0 for c in found.tape), found.steps

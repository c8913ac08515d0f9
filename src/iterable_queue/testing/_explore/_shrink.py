"""Shrinking: from a schedule that fails to one that fails likewise and is easier to read.

A schedule is worth less the more preemptions it needs, then the more choices differ from what
would happen by itself, then the more steps it takes. Two kinds of change are tried, from large to
small, until none helps: let a run of choices be what would happen by itself, and leave a run of
choices out. What comes after a change may not fit any more; then what would happen by itself does.
"""

from __future__ import annotations

import time

from iterable_queue.testing._explore._scheduler import Alternative, Schedule
from iterable_queue.testing._explore._search import Found, Search, Taped, label_of
from iterable_queue.testing._explore._tape import Choice

ATTEMPTS = 400
"""How many schedules are tried at most."""
SECONDS = 5.0
"""How many real seconds are spent at most."""

Worth = tuple[int, int, int]


class Lenient(Taped):
    """Takes what is prescribed where that fits, and the first alternative elsewhere."""

    def __init__(self, wanted: list[int]) -> None:
        super().__init__()
        self._wanted = wanted

    def choose(self, schedule: Schedule, alternatives: list[Alternative]) -> int:
        index = self._next(len(alternatives))
        self.tape.append(Choice(len(alternatives), index, label_of(alternatives[index])))
        return index

    def survives(self, schedule: Schedule) -> bool:
        dies = self._next(2)
        self.tape.append(Choice(2, dies))
        return not dies

    def _next(self, count: int) -> int:
        at = len(self.tape)
        wanted = self._wanted[at] if at < len(self._wanted) else 0
        return wanted if wanted < count else 0


def shrink(search: Search, found: Found) -> Found:
    """The simplest schedule that fails in the same way, as far as it was found."""
    best = found
    wanted = [choice.chosen for choice in found.tape]
    deadline = time.monotonic() + SECONDS
    attempts = 0
    tried: set[tuple[int, ...]] = {tuple(_trimmed(wanted))}

    def attempt(candidate: list[int]) -> bool:
        nonlocal best, wanted, attempts
        candidate = _trimmed(candidate)
        if tuple(candidate) in tried or attempts >= ATTEMPTS or time.monotonic() > deadline:
            return False
        tried.add(tuple(candidate))
        attempts += 1
        chooser = Lenient(candidate)
        schedule = search.run(chooser)
        if schedule.problem is None or not schedule.problem.is_like(found.problem):
            return False
        smaller = Found(
            schedule.problem, chooser.tape, found.how, schedule.preemptions, schedule.steps
        )
        if _worth(smaller) >= _worth(best):
            return False
        best = smaller
        wanted = [choice.chosen for choice in best.tape]
        return True

    improved = True
    while improved:
        improved = False
        size = max(len(wanted) // 2, 1)
        while size:
            at = 0
            while at < len(wanted):
                by_itself = [*wanted[:at], *[0] * len(wanted[at : at + size]), *wanted[at + size :]]
                without = [*wanted[:at], *wanted[at + size :]]
                if attempt(by_itself) or attempt(without):
                    improved = True
                else:
                    at += size
            size //= 2
    return best


def _worth(found: Found) -> Worth:
    return found.preemptions, sum(c.chosen != 0 for c in found.tape), found.steps


def _trimmed(wanted: list[int]) -> list[int]:
    end = len(wanted)
    while end and wanted[end - 1] == 0:
        end -= 1
    return wanted[:end]

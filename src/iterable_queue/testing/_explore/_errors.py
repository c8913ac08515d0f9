"""What `explore` raises."""

from __future__ import annotations

from typing import Any


class ScheduleFailure(AssertionError):
    """A schedule under which the scenario fails. Its text is the report.

    Attributes:
        reason: what went wrong, without the schedule.
        table: the schedule, one column for each actor.
        replay: the string for `explore(scenario, replay=...)`.
        preemptions: how many the schedule has.
    """

    __module__ = "iterable_queue.testing"

    def __init__(self, text: str, reason: str, table: str, replay: str, preemptions: int) -> None:
        super().__init__(text)
        self.reason = reason
        self.table = table
        self.replay = replay
        self.preemptions = preemptions

    def __reduce__(self) -> tuple[Any, ...]:
        args = (str(self), self.reason, self.table, self.replay, self.preemptions)
        return ScheduleFailure, args


class Nondeterministic(Exception):
    """The scenario did something else when the same schedule ran again.

    A search can't go back to a state then, and no failure can be replayed.
    """

    __module__ = "iterable_queue.testing"


LOOK_FOR = (
    "Look for real time, unseeded random numbers, the order of sets, and state that outlives one "
    "call of the scenario"
)
"""What makes scenarios nondeterministic."""


class NothingInterleaved(Exception):
    """At no time could more than one actor go on, so nothing was explored."""

    __module__ = "iterable_queue.testing"


class ReplayError(ValueError):
    """A replay string that can't be read, or does not fit the scenario any more."""

    __module__ = "iterable_queue.testing"

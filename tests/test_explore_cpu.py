"""The threads of an exploration run on one CPU, as long as they get enough of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from iterable_queue.testing import ScheduleFailure, Simulation, explore
from iterable_queue.testing._explore import _one_cpu
from iterable_queue.testing._explore._one_cpu import ENOUGH, INTERVAL_S, OneCpu

ALLOWED = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}

several = pytest.mark.skipif(len(ALLOWED) < 2, reason="there is only one CPU")


class Clocks:
    """Real and CPU time, as a test has them."""

    def __init__(self) -> None:
        self.now = 100.0
        self.used = 0.0

    def monotonic(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.used

    def pass_by(self, seconds: float, share: float) -> None:
        """Time passes, and the process gets that share of a CPU."""
        self.now += seconds
        self.used += share * seconds


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    made = Clocks()
    monkeypatch.setattr(_one_cpu, "time", made)
    return made


def in_a_thread(function: Callable[[], Any]) -> Any:
    """What *function* returns in a thread of its own, with whose CPUs it may do what it wants."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join(30)
    return results[0]


@several
@pytest.mark.parametrize("fails", [False, True])
def test_actors_share_a_cpu_and_afterwards_all_is_as_before(fails: bool) -> None:
    seen: list[set[int]] = []

    def look(queue: Any) -> None:
        queue.statistics()
        seen.append(os.sched_getaffinity(0))

    def scenario(sim: Simulation) -> Callable[[], None]:
        iq = sim.queue()
        sim.spawn(look, iq)
        sim.spawn(look, iq)

        def check() -> None:
            seen.append(os.sched_getaffinity(0))
            assert not fails

        return check

    if fails:
        with pytest.raises(ScheduleFailure):
            explore(scenario)
    else:
        explore(scenario)
    assert len(seen[0]) == 1
    assert seen[0] == seen[1] == seen[2]
    assert os.sched_getaffinity(0) == ALLOWED


@several
def test_who_gets_too_little_is_let_loose_until_the_next_look(clocks: Clocks) -> None:
    def run() -> list[int]:
        one = OneCpu()
        counts: list[int] = []
        for seconds, share in (
            (0.0, 0.0),
            (INTERVAL_S, 1.0),
            (INTERVAL_S, ENOUGH + 0.01),
            (INTERVAL_S / 2, 0.0),  # it is not looked yet
            (INTERVAL_S, 0.5),
            (INTERVAL_S / 2, 1.0),
            (INTERVAL_S, 0.5),
        ):
            clocks.pass_by(seconds, share)
            one.look()
            counts.append(len(os.sched_getaffinity(0)))
        one.close()
        counts.append(len(os.sched_getaffinity(0)))
        return counts

    free = len(ALLOWED)
    assert in_a_thread(run) == [1, 1, 1, 1, free, free, 1, free]


@several
def test_all_threads_are_moved_and_one_that_is_removed_is_let_loose(clocks: Clocks) -> None:
    go = threading.Event()
    others = [threading.Thread(target=go.wait, args=(30,)) for _ in range(2)]

    def cpus() -> list[set[int]]:
        return [os.sched_getaffinity(other.native_id or 0) for other in others]

    def run() -> None:
        one = OneCpu()
        for other in others:
            other.start()
            one.add(other)
        one.look()
        assert cpus() == [os.sched_getaffinity(0)] * 2 != [ALLOWED] * 2
        one.remove(others[0])
        assert cpus() == [ALLOWED, os.sched_getaffinity(0)]
        clocks.pass_by(INTERVAL_S, 0.1)
        one.look()
        assert cpus() == [ALLOWED] * 2
        one.close()

    try:
        in_a_thread(run)
    finally:
        go.set()
        for other in others:
            other.join(30)


@several
def test_whom_somebody_else_has_bound_stays_bound(clocks: Clocks) -> None:
    def run() -> tuple[set[int], set[int]]:
        one = OneCpu()
        one.look()
        elsewhere = {max(ALLOWED - os.sched_getaffinity(0))}
        os.sched_setaffinity(0, elsewhere)
        one.close()
        return elsewhere, os.sched_getaffinity(0)

    elsewhere, cpus = in_a_thread(run)
    assert cpus == elsewhere


def test_who_has_one_cpu_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[tuple[object, ...]] = []

    def move(*args: object) -> None:
        moves.append(args)

    def run() -> None:
        os.sched_setaffinity(0, {min(ALLOWED)})
        with monkeypatch.context() as patch:
            patch.setattr(os, "sched_setaffinity", move)
            one = OneCpu()
            one.look()
            one.close()

    in_a_thread(run)
    assert moves == []


@pytest.mark.parametrize("what", ["forbidden", "no cpu", "no affinity"])
def test_where_it_can_t_be_done_nothing_is_done(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def refuse(*args: object) -> None:
        asked.append(args)
        raise PermissionError

    if what == "forbidden":
        monkeypatch.setattr(os, "sched_setaffinity", refuse)
    elif what == "no cpu":
        monkeypatch.setattr("builtins.open", refuse)
    else:
        monkeypatch.delattr(os, "sched_setaffinity")
    one = OneCpu()
    one.look()
    count = len(asked)
    one.look()
    one.close()
    assert len(asked) == count
    monkeypatch.undo()
    assert os.sched_getaffinity(0) == ALLOWED

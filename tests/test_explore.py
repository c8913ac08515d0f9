"""`explore`: each kind of choice occurs, each kind of failure is found, and nothing is left behind.

What a failure looks like is in `test_explore_report`, how many schedules are run in
`test_explore_search`.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import random
import signal
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from iterable_queue import (
    Consumer,
    ConsumersGone,
    Done,
    EndpointElsewhere,
    ItemsLost,
    IterableQueue,
    Producer,
    ProducerFailed,
    QueueClosed,
    Worker,
)
from iterable_queue.testing import (
    Injected,
    Nondeterministic,
    NothingInterleaved,
    ReplayError,
    ScheduleFailure,
    Simulation,
    checkpoint,
    explore,
)
from tests.conftest import FORKS, Processes
from tests.test_exits import run_python

Check = Callable[[], object]


def produce(out: Producer[Any], *items: object) -> None:
    with out:
        for item in items:
            out.put(item)


def consume(source: Consumer[Any], got: list[Any]) -> None:
    with source:
        got.extend(source)


LONG = 50.0
"""Seconds for what must be explored whole: it takes two, or twenty where each line is measured."""


def fails(scenario: Callable[[Simulation], Check | None], **options: Any) -> ScheduleFailure:
    options.setdefault("samples", 100)
    with pytest.raises(ScheduleFailure) as caught:
        explore(scenario, **options)
    return caught.value


def outcomes(scenario: Callable[[Simulation, list[Any]], Check | None], **options: Any) -> set[Any]:
    """All that the check of *scenario* came to: it is given a list that it returns in the end."""
    seen: set[Any] = set()

    def wrapped(sim: Simulation) -> Check:
        seen_here: list[Any] = []
        check = scenario(sim, seen_here)

        def both() -> None:
            if check is not None:
                check()
            seen.add(tuple(seen_here))

        return both

    explore(wrapped, samples=0, seconds=LONG, **options)
    return seen


# The bugs that it is for


def test_a_forgotten_close_is_found() -> None:
    def scenario(sim: Simulation) -> None:
        iq = sim.queue()
        sim.spawn(produce, iq.get_producer(), 1)
        sim.spawn(consume, iq.get_consumer(), [])

    failure = fails(scenario)
    assert failure.reason.startswith(
        "deadlock: nobody can go on\n  consume waits for an item in get"
    )
    assert "open, not done: the queue has not been closed" in failure.reason


def test_a_sentinel_scheme_breaks_with_two_producers() -> None:
    def scenario(sim: Simulation) -> Check:
        iq = sim.queue()
        got: list[int] = []

        def send(out: Producer[int | None], item: int) -> None:
            with out:
                out.put(item)
                out.put(None)

        def receive(source: Consumer[int | None]) -> None:
            with source:
                while (item := source.get()) is not None:
                    got.append(item)

        sim.spawn(send, iq.get_producer(), 1, name="a")
        sim.spawn(send, iq.get_producer(), 2, name="b")
        sim.spawn(receive, iq.get_consumer())
        iq.close()

        def check() -> None:
            assert sorted(got) == [1, 2]

        return check

    failure = fails(scenario)
    assert failure.reason.startswith("the end state is wrong: AssertionError")
    assert isinstance(failure.__cause__, AssertionError)


def test_a_cycle_of_bounded_stages_deadlocks() -> None:
    def scenario(sim: Simulation) -> None:
        there, back = sim.queue(1), sim.queue(1)

        def stage(source: Consumer[int], out: Producer[int]) -> None:
            with out:
                for item in source:
                    out.put(item)

        sim.spawn(produce, there.get_producer(), 1, 2, 3, 4, name="feed")
        sim.spawn(stage, there.get_consumer(), back.get_producer(), name="left")
        sim.spawn(stage, back.get_consumer(), there.get_producer(), name="right")
        there.close()
        back.close()

    failure = fails(scenario)
    assert "left waits for room in put" in failure.reason
    assert "right waits for room in put" in failure.reason


def test_a_check_then_act_race_is_found_around_a_checkpoint() -> None:
    def scenario(sim: Simulation, marked: bool = True) -> Check:
        iq = sim.queue()
        seen: set[str] = set()
        handled: list[str] = []

        def handle(source: Consumer[str]) -> None:
            for item in source:
                if item not in seen:
                    if marked:
                        checkpoint("checked")
                    seen.add(item)
                    handled.append(item)

        sim.spawn(produce, iq.get_producer(), "x", "x")
        sim.spawn(handle, iq.get_consumer(), name="a")
        sim.spawn(handle, iq.get_consumer(), name="b")
        iq.close()

        def check() -> None:
            assert handled == ["x"]

        return check

    failure = fails(scenario)
    assert failure.preemptions == 1
    assert failure.table.count("at 'checked'") == 2
    # Without the checkpoint there is no place at which the actors could be switched.
    assert explore(lambda sim: scenario(sim, False), samples=0, seconds=LONG).bound == 2


def test_work_that_is_lost_with_a_killed_consumer_is_found() -> None:
    def scenario(sim: Simulation, redeliver: bool = False) -> Check:
        iq = sim.queue(redeliver=redeliver)
        results: list[int] = []

        def work(source: Consumer[int]) -> None:
            for item in source:
                checkpoint("working")
                results.append(item)

        sim.spawn(produce, iq.get_producer(), 1, 2)
        victim = sim.spawn(work, iq.get_consumer(), name="victim")
        sim.spawn(work, iq.get_consumer(), name="other")
        sim.may_kill(victim)
        iq.close()

        def check() -> None:
            assert {1, 2} <= set(results)

        return check

    failure = fails(scenario)
    assert "killed at 'working'" in failure.table
    # What the cure does: at least once.
    found = explore(lambda sim: scenario(sim, True), preemptions=1, samples=200, seconds=LONG)
    assert found.bound == 1


# What is a choice


def test_which_waiter_is_woken_is_a_choice() -> None:
    def scenario(sim: Simulation, seen: list[str]) -> None:
        iq = sim.queue()

        def wait(source: Consumer[int], name: str) -> None:
            try:
                source.get()
            except Done:
                return
            seen.append(name)

        for name in "abc":
            sim.spawn(wait, iq.get_consumer(), name, name=name)
        sim.spawn(produce, iq.get_producer(), 1)
        iq.close()

    assert outcomes(scenario, preemptions=0) == {("a",), ("b",), ("c",)}


def test_whether_a_time_out_passes_is_a_choice() -> None:
    def scenario(sim: Simulation, seen: list[object]) -> None:
        iq = sim.queue()

        def wait(source: Consumer[int]) -> None:
            try:
                seen.append(source.get(timeout=60))
            except IterableQueue.Empty:
                seen.append("Empty")

        sim.spawn(wait, iq.get_consumer())
        sim.spawn(produce, iq.get_producer(), 1)
        iq.close()

    assert outcomes(scenario, preemptions=0) == {(1,)}
    assert outcomes(scenario, preemptions=1) == {(1,), ("Empty",)}


def test_time_is_virtual() -> None:
    """A wait of a year is over at once, and the nearer deadline comes first."""
    year = 365 * 24 * 3600.0

    def scenario(sim: Simulation, seen: list[str]) -> None:
        iq = sim.queue()

        def wait(source: Consumer[int], name: str, timeout: float) -> None:
            with pytest.raises(IterableQueue.Empty):
                source.get(timeout=timeout)
            seen.append(name)

        sim.spawn(wait, iq.get_consumer(), "late", year)
        sim.spawn(wait, iq.get_consumer(), "early", year / 2)

    began = time.monotonic()
    assert outcomes(scenario, preemptions=0) == {("early", "late")}
    assert ("late", "early") in outcomes(scenario, preemptions=1)
    assert time.monotonic() - began < 30


def test_a_wake_up_for_nothing_is_a_choice_that_is_counted() -> None:
    def scenario(sim: Simulation) -> None:
        iq = sim.queue(1)
        sim.spawn(produce, iq.get_producer(), 1, 2)
        sim.spawn(consume, iq.get_consumer(), [])
        iq.close()

    without = explore(scenario, samples=0, seconds=LONG)
    spurious = explore(scenario, samples=0, spurious=1, seconds=LONG)
    assert spurious.schedules > without.schedules


def test_an_actor_dies_at_each_of_its_operations() -> None:
    def scenario(sim: Simulation, seen: list[object]) -> None:
        iq = sim.queue()

        def end(source: Consumer[int]) -> None:
            try:
                seen.extend(source)
            except ProducerFailed as error:
                told = "(actor p), was killed, without close()" in str(error)
                seen.append("failed" if told else str(error))

        victim = sim.spawn(produce, iq.get_producer(), 1, 2, name="p")
        sim.spawn(end, iq.get_consumer(), name="c")
        sim.may_kill(victim)
        iq.close()

    expected: set[tuple[object, ...]] = {(1, 2), ("failed",), (1, "failed"), (1, 2, "failed")}
    assert outcomes(scenario, preemptions=0) == expected


def test_a_death_inside_the_lock_is_mended() -> None:
    """At each store: what was being put is there wholly or not at all, and nobody hangs."""
    deaths: list[int] = []

    def scenario(sim: Simulation, seen: list[object]) -> Check:
        iq = sim.queue(1)

        def end(source: Consumer[int]) -> None:
            try:
                seen.extend(source)
            except ProducerFailed:
                seen.append("failed")

        victim = sim.spawn(produce, iq.get_producer(), 1, 2, name="p")
        sim.spawn(end, iq.get_consumer(), name="c")
        sim.may_kill(victim, inside=True)
        iq.close()

        def check() -> None:
            statistics = iq.statistics()
            assert statistics.put == statistics.taken, statistics
            deaths.append(statistics.failures)

        return check

    found = outcomes(scenario, preemptions=1)
    assert found == {(1, 2), ("failed",), (1, "failed"), (1, 2, "failed")}
    assert sum(deaths) > 50


def test_a_killed_actor_does_nothing_any_more() -> None:
    """Its `finally` clauses run, and what they call of the library has no effect."""

    def scenario(sim: Simulation, seen: list[object]) -> Check:
        iq, second = sim.queue(), sim.queue()
        cleaned: list[str] = []

        def die(out: Producer[int], other: Producer[str]) -> None:
            try:
                checkpoint("here")
                out.close()
                other.close()
            except BaseException:
                cleaned.append("cleaned")
                other.put("from the dead")
                raise

        def end(source: Consumer[int], name: str) -> None:
            try:
                seen.extend(source)
                seen.append(f"{name} done")
            except ProducerFailed:
                seen.append(f"{name} failed")

        victim = sim.spawn(die, iq.get_producer(), second.get_producer(), name="victim")
        sim.spawn(end, iq.get_consumer(), "first")
        sim.may_kill(victim)
        iq.close()
        return lambda: seen.append((*cleaned, second.statistics().put))

    found = outcomes(scenario, preemptions=0)
    assert found == {
        ("first done", (0,)),
        ("first failed", ("cleaned", 0)),
        ("first done", ("cleaned", 0)),
    }


def test_an_injected_error_comes_at_each_operation_and_is_no_failure_by_itself() -> None:
    def scenario(sim: Simulation, seen: list[object]) -> None:
        iq = sim.queue()

        def end(source: Consumer[int]) -> None:
            try:
                seen.extend(source)
            except ProducerFailed as error:
                seen.append(type(error.failures[0]).__name__)

        victim = sim.spawn(produce, iq.get_producer(), 1, 2, name="p")
        sim.spawn(end, iq.get_consumer(), name="c")
        sim.may_fail(victim, OSError("disk"))
        iq.close()

    found = outcomes(scenario, preemptions=0)
    assert {(1, 2), ("OSError",), (1, "OSError")} <= found


def test_the_default_of_an_injected_error() -> None:
    caught: list[BaseException] = []

    def scenario(sim: Simulation) -> None:
        iq = sim.queue()

        def suffer(out: Producer[int]) -> None:
            try:
                produce(out, 1)
            except Injected as error:
                caught.append(error)

        sim.may_fail(sim.spawn(suffer, iq.get_producer()))
        sim.spawn(list, iq.get_consumer(), name="c")
        iq.close()

    # The consumer is told by ProducerFailed, which is as it should be after a fault.
    explore(scenario, samples=0)
    assert caught


def test_errors_of_others_after_a_fault_are_how_they_are_told() -> None:
    def scenario(sim: Simulation, kill: bool) -> None:
        iq = sim.queue()
        victim = sim.spawn(produce, iq.get_producer(), 1, name="p")
        sim.spawn(list, iq.get_consumer(), name="c")
        if kill:
            sim.may_kill(victim)
        else:
            sim.spawn(fail, iq.get_producer(), name="f")
        iq.close()

    def fail(out: Producer[int]) -> None:
        out.fail(OSError("disk"))

    explore(lambda sim: scenario(sim, True), samples=0)
    # Without a fault of the exploration's, it is the scenario's own, and nobody expected it.
    failure = fails(lambda sim: scenario(sim, False))
    assert failure.reason.startswith("c raised ProducerFailed: ")
    assert isinstance(failure.__cause__, ProducerFailed)


# Processes and threads


def test_items_are_pickled_between_processes_and_handed_over_between_threads() -> None:
    def scenario(sim: Simulation, threaded: bool) -> Check:
        iq = sim.queue(threaded=threaded)
        item = [1]
        got: list[list[int]] = []

        def send(out: Producer[list[int]]) -> None:
            with out:
                out.put(item)
                item.append(2)

        sim.spawn(send, iq.get_producer())
        sim.spawn(consume, iq.get_consumer(), got)
        iq.close()

        def check() -> None:
            assert (got[0] is item) == threaded
            assert got == [[1, 2] if threaded else [1]]

        return check

    for threaded in (False, True):
        explore(lambda sim, threaded=threaded: scenario(sim, threaded), samples=20)  # type: ignore[misc]


def test_an_item_that_cannot_be_pickled_raises_in_put() -> None:
    def scenario(sim: Simulation) -> None:
        iq = sim.queue()
        sim.spawn(produce, iq.get_producer(), lambda: None)
        sim.spawn(consume, iq.get_consumer(), [])
        iq.close()

    assert "produce raised" in fails(scenario).reason


def test_an_endpoint_belongs_to_the_actor_that_it_was_passed_to() -> None:
    def scenario(sim: Simulation) -> None:
        iq = sim.queue()
        out = iq.get_producer()
        sim.spawn(produce, out, 1)
        with pytest.raises(EndpointElsewhere, match="given to another actor"):
            sim.spawn(produce, out, 2)
        with pytest.raises(EndpointElsewhere, match="belongs to"):
            out.put(3)
        used = iq.get_producer()
        used.put(1)
        with pytest.raises(TypeError, match="clone"):
            sim.spawn(produce, used, 2)
        used.close()
        sim.spawn(consume, iq.get_consumer(), [])
        iq.close()

    explore(scenario, samples=0)


def test_an_endpoint_that_was_not_passed_is_elsewhere() -> None:
    def scenario(sim: Simulation) -> None:
        iq = sim.queue()
        out = iq.get_producer()
        sim.spawn(lambda: out.put(1), name="thief")
        sim.spawn(consume, iq.get_consumer(), [])

    failure = fails(scenario)
    assert "thief is a process of its own" in failure.reason
    assert "pass it to sim.spawn as an argument" in failure.reason
    assert isinstance(failure.__cause__, EndpointElsewhere)


def test_endpoints_travel_in_containers_and_as_methods() -> None:
    def scenario(sim: Simulation) -> Check:
        iq = sim.queue()
        got: list[int] = []

        def fill(outs: list[Producer[int]], named: dict[str, Producer[int]]) -> None:
            for item, out in enumerate([*outs, *named.values()]):
                with out:
                    out.put(item)

        sim.spawn(fill, [iq.get_producer(), iq.get_producer()], {"third": iq.get_producer()})
        sim.spawn(consume, iq.get_consumer(), got)
        sim.spawn(iq.close)

        def check() -> None:
            assert sorted(got) == [0, 1, 2]

        return check

    assert explore(scenario, samples=20, seconds=LONG).bound == 2


def test_a_queue_that_is_passed_makes_endpoints_in_the_actor() -> None:
    def scenario(sim: Simulation) -> Check:
        iq = sim.queue()
        got: list[int] = []

        def make(queue: IterableQueue[int]) -> None:
            try:
                out = queue.get_producer()
            except QueueClosed:
                return
            produce(out, 1)
            got.append(0)

        sim.spawn(make, iq)
        sim.spawn(consume, iq.get_consumer(), got)
        sim.spawn(iq.close)

        def check() -> None:
            assert sorted(got) in ([], [0, 1])

        return check

    explore(scenario, samples=20)


def test_what_an_actor_leaves_open_ends_as_that_of_a_process() -> None:
    def scenario(sim: Simulation, seen: list[object]) -> None:
        iq = sim.queue()

        def forget(out: Producer[int]) -> None:
            out.put(1)

        def end(source: Consumer[int]) -> None:
            try:
                seen.extend(source)
            except ProducerFailed as error:
                seen.append("left open when its process returned" in str(error))

        sim.spawn(forget, iq.get_producer())
        sim.spawn(end, iq.get_consumer())
        iq.close()

    assert outcomes(scenario) == {(1, True)}


def test_an_abandoned_queue_tells_its_producers() -> None:
    def scenario(sim: Simulation) -> None:
        iq = sim.queue(1)
        sim.spawn(produce, iq.get_producer(), 1, 2, 3)
        sim.spawn(Consumer[int].get, iq.get_consumer(), name="once")
        iq.close()

    def once(source: Consumer[int]) -> None:
        source.get()

    def fixed(sim: Simulation) -> None:
        iq = sim.queue(1)
        sim.spawn(produce, iq.get_producer(), 1, 2, 3)
        sim.spawn(once, iq.get_consumer())
        iq.close()

    del scenario
    failure = fails(fixed)
    assert isinstance(failure.__cause__, ConsumersGone)


def test_lost_items_are_told_by_join() -> None:
    def scenario(sim: Simulation, seen: list[object]) -> Check:
        iq = sim.queue()

        def hold(source: Consumer[int]) -> None:
            for _ in source:
                checkpoint("in hand")

        sim.spawn(produce, iq.get_producer(), 1)
        sim.may_kill(sim.spawn(hold, iq.get_consumer()))
        sim.spawn(consume, iq.get_consumer(), [], name="other")
        iq.close()

        def check() -> None:
            try:
                iq.join(timeout=1)
                seen.append("finished")
            except ItemsLost:
                seen.append("lost")

        return check

    assert outcomes(scenario, preemptions=0) == {("finished",), ("lost",)}


def test_workers_and_fail_on_a_queue_that_cancels() -> None:
    def scenario(sim: Simulation, seen: list[object]) -> None:
        iq = sim.queue(on_failure="cancel")

        def work(worker: Worker[int]) -> None:
            try:
                with worker:
                    for item in worker:
                        if item == 0:
                            raise OSError("zero")
                        worker.put(item - 1)
            except OSError:
                seen.append("failed")

        sim.spawn(work, iq.get_worker())
        sim.spawn(produce, iq.get_producer(), 1)
        iq.close()

    assert outcomes(scenario) == {("failed",)}


# What can't be explored


def test_nothing_interleaved_is_said() -> None:
    def scenario(sim: Simulation) -> None:
        iq = sim.queue()
        sim.spawn(produce, iq.get_producer(), 1)
        iq.close()

    with pytest.raises(NothingInterleaved, match="never more than one actor"):
        explore(scenario)
    with pytest.raises(NothingInterleaved):
        explore(lambda sim: None)


def test_a_polling_loop_without_end_is_a_livelock() -> None:
    def scenario(sim: Simulation) -> None:
        iq = sim.queue()

        def poll(source: Consumer[int]) -> None:
            while True:
                try:
                    source.get_nowait()
                except IterableQueue.Empty:
                    continue
                except Done:
                    return

        sim.spawn(produce, iq.get_producer(), 1)
        sim.spawn(poll, iq.get_consumer())

    failure = fails(scenario, steps=200)
    assert failure.reason.startswith("livelock: no end after 200 steps")
    assert "more steps)" in failure.table


def test_polling_by_itself_is_explored() -> None:
    """The first schedule is not one in which a loop spins for ever."""

    def scenario(sim: Simulation) -> Check:
        iq = sim.queue()
        got: list[int] = []

        def poll(source: Consumer[int]) -> None:
            while True:
                try:
                    got.append(source.get_nowait())
                except IterableQueue.Empty:
                    continue
                except Done:
                    return

        sim.spawn(poll, iq.get_consumer())
        sim.spawn(produce, iq.get_producer(), 1, 2)
        iq.close()

        def check() -> None:
            assert got == [1, 2]

        return check

    assert explore(scenario, samples=100, steps=300, seconds=LONG).bound == 2


def test_a_nondeterministic_scenario_is_named() -> None:
    counter = itertools.count()

    def scenario(sim: Simulation) -> None:
        iq = sim.queue()
        sim.spawn(produce, iq.get_producer(), *range(next(counter) % 3 + 1))
        sim.spawn(consume, iq.get_consumer(), [])
        iq.close()

    with pytest.raises(Nondeterministic, match=r"differed in step \d+: first \(produce: close\)"):
        explore(scenario)


def test_nondeterminism_that_comes_later_is_found_when_a_schedule_is_begun_again() -> None:
    calls = itertools.count()

    def scenario(sim: Simulation) -> None:
        iq = sim.queue()
        sim.spawn(produce, iq.get_producer(), *range(1 if next(calls) < 9 else 3))
        sim.spawn(consume, iq.get_consumer(), [])
        iq.close()

    with pytest.raises(Nondeterministic, match="unseeded random"):
        explore(scenario, samples=20)


def test_a_failure_that_does_not_come_again_is_nondeterminism() -> None:
    calls = itertools.count()

    def scenario(sim: Simulation) -> Check:
        iq = sim.queue()
        sim.spawn(produce, iq.get_producer(), 1)
        sim.spawn(consume, iq.get_consumer(), [])
        iq.close()

        def check() -> None:
            assert next(calls) != 5

        return check

    with pytest.raises(Nondeterministic, match="did not when it ran again"):
        explore(scenario)


def test_an_actor_that_blocks_on_something_else_is_found_where_it_stands() -> None:
    gate = threading.Lock()
    gate.acquire()

    def scenario(sim: Simulation) -> None:
        iq = sim.queue()

        def block(source: Consumer[int]) -> None:
            gate.acquire()  # here it stands
            gate.release()
            list(source)

        sim.spawn(produce, iq.get_producer(), 1)
        sim.spawn(block, iq.get_consumer())
        iq.close()

    try:
        failure = fails(scenario, patience=0.2)
    finally:
        gate.release()
    assert failure.reason.startswith("block has been blocked for 0.2 s")
    assert "gate.acquire()  # here it stands" in failure.reason
    assert "a daemon) is left behind" in failure.reason


def test_what_blocks_later_is_found_as_well() -> None:
    """Not in the first schedule, and with others half way through their calls."""
    gate = threading.Event()

    def scenario(sim: Simulation) -> None:
        iq = sim.queue()

        def take(source: Consumer[int], name: str) -> None:
            for _ in source:
                if name == "b":
                    gate.wait(60)

        for name in "ab":
            sim.spawn(take, iq.get_consumer(), name, name=name)
        sim.spawn(produce, iq.get_producer(), 1)
        iq.close()

    try:
        failure = fails(scenario, patience=0.3)
    finally:
        gate.set()
    assert "b has been blocked" in failure.reason


def test_a_scenario_that_waits_is_told_to_leave_that_to_an_actor() -> None:
    def scenario(sim: Simulation) -> None:
        iq = sim.queue()
        sim.spawn(produce, iq.get_producer(), 1)
        iq.get_consumer().get()

    failure = fails(scenario)
    assert "the scenario itself waits for an item" in failure.reason


def test_a_check_in_the_body_of_a_scenario_is_told_that_nobody_has_run() -> None:
    def scenario(sim: Simulation) -> None:
        iq: IterableQueue[int] = sim.queue()
        with iq:
            sim.spawn(produce, iq.get_producer(), 1)
            taken: list[int] = []
            sim.spawn(consume, iq.get_consumer(), taken)
        assert taken == [1]

    with pytest.raises(AssertionError) as caught:
        explore(scenario)
    [note] = caught.value.__notes__
    assert "no actor has run yet" in note
    assert "return a function" in note


def test_what_the_scenario_raises_comes_out() -> None:
    def scenario(sim: Simulation) -> None:
        sim.spawn(print)
        raise KeyError("my own")

    with pytest.raises(KeyError, match="my own"):
        explore(scenario)


def test_a_check_that_calls_what_waits_has_its_time_outs() -> None:
    def scenario(sim: Simulation) -> Check:
        iq = sim.queue()
        source = iq.get_consumer()
        sim.spawn(produce, iq.get_producer(), 1)
        sim.spawn(consume, iq.get_consumer(), [])
        iq.close()

        def check() -> None:
            assert iq.join(timeout=5)
            with pytest.raises(Done):
                source.get(timeout=5)

        return check

    explore(scenario, samples=5)


# Replays


def deadlocking(sim: Simulation) -> None:
    """Two actors, each of which waits for the other's item first, if both ask at once."""
    left, right = sim.queue(), sim.queue()

    def ask(source: Consumer[int], out: Producer[int]) -> None:
        try:
            source.get_nowait()
        except IterableQueue.Empty:
            source.get()
        out.put(1)

    sim.spawn(ask, left.get_consumer(), right.get_producer(), name="a")
    sim.spawn(ask, right.get_consumer(), left.get_producer(), name="b")


def test_a_failure_is_replayed_from_its_string() -> None:
    failure = fails(deadlocking)
    again = fails(deadlocking, replay=failure.replay)
    assert (again.table, again.reason, again.replay) == (
        failure.table,
        failure.reason,
        failure.replay,
    )
    assert f'explore(deadlocking, replay="{failure.replay}")' in str(failure)


def test_a_replay_that_does_not_fit_any_more_says_so() -> None:
    failure = fails(deadlocking)

    def changed(sim: Simulation) -> None:
        iq = sim.queue()
        sim.spawn(produce, iq.get_producer(), 1)
        sim.spawn(produce, iq.get_producer(), 1)
        sim.spawn(consume, iq.get_consumer(), [])
        iq.close()

    with pytest.raises(ReplayError, match="does not fit changed as it is now: "):
        explore(changed, replay=failure.replay)


def test_a_replay_that_does_not_fail_any_more_says_so() -> None:
    broken = [True]

    def scenario(sim: Simulation) -> Check:
        iq = sim.queue()
        sim.spawn(produce, iq.get_producer(), 1)
        sim.spawn(consume, iq.get_consumer(), [])
        iq.close()

        def check() -> None:
            assert not broken[0]

        return check

    failure = fails(scenario)
    broken[0] = False
    with pytest.raises(ReplayError, match="does not fail any more"):
        explore(scenario, replay=failure.replay)


def test_failures_cross_processes() -> None:
    failure = fails(deadlocking)
    again = pickle.loads(pickle.dumps(failure))
    assert str(again) == str(failure)
    assert again.replay == failure.replay


def test_what_is_sampled_is_shrunk() -> None:
    """A failure found at random needs no more preemptions than one that is searched for."""

    def scenario(sim: Simulation) -> Check:
        iq = sim.queue()
        order: list[str] = []

        def note(source: Consumer[int], name: str) -> None:
            for _ in source:
                checkpoint(name)
                order.append(name)

        sim.spawn(produce, iq.get_producer(), *range(6))
        sim.spawn(note, iq.get_consumer(), "a", name="a")
        sim.spawn(note, iq.get_consumer(), "b", name="b")
        iq.close()

        def check() -> None:
            assert "ababa" not in "".join(order)

        return check

    failure = fails(scenario, preemptions=0, samples=2000, seed=3)
    assert "found by a random walk" in str(failure) or "found by PCT" in str(failure)
    assert failure.preemptions <= 5


# Arguments


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"preemptions": -1}, ValueError, "preemptions must be 0 or more"),
        ({"preemptions": "2"}, TypeError, "preemptions must be an int"),
        ({"schedules": 0}, ValueError, "schedules must be 1 or more"),
        ({"samples": -1}, ValueError, "samples must be 0 or more"),
        ({"steps": 0}, ValueError, "steps must be 1 or more"),
        ({"spurious": -1}, ValueError, "spurious must be 0 or more"),
        ({"seconds": 0}, ValueError, "seconds must be more than 0"),
        ({"patience": "1"}, TypeError, "patience must be a number of seconds"),
        ({"seed": "x"}, TypeError, "seed must be an int"),
        ({"replay": 5}, ReplayError, "'?5'? is not a replay string"),
    ],
)
def test_arguments_are_checked(options: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        explore(deadlocking, **options)


def test_what_is_no_scenario_is_refused() -> None:
    with pytest.raises(TypeError, match="scenario must be a function, not None"):
        explore(None)  # type: ignore[arg-type]

    def returns(result: object) -> Any:
        def scenario(sim: Simulation) -> object:
            deadlocking(sim)
            return result

        return scenario

    async def coroutine(sim: Simulation) -> None:
        deadlocking(sim)

    def generator(sim: Simulation) -> Iterator[None]:
        deadlocking(sim)
        yield

    with pytest.raises(TypeError, match=r"that checks the end state, or None, not 5$"):
        explore(returns(5))
    for scenario in (coroutine, generator):
        untyped: Any = scenario
        with pytest.raises(TypeError, match=f"not <.*{scenario.__name__}.*neither async nor a gen"):
            explore(untyped)


async def nothing_of_this_runs(*_: object) -> None:
    raise AssertionError


def nor_of_this(*_: object) -> Iterator[None]:
    yield
    raise AssertionError


async def nor_of_that(*_: object) -> AsyncIterator[None]:
    yield
    raise AssertionError


@pytest.mark.parametrize("function", [nothing_of_this_runs, nor_of_this, nor_of_that])
def test_an_actor_or_a_check_that_would_never_run_is_refused(function: Any) -> None:
    def scenario(sim: Simulation, actor: Any = list, check: Any = None) -> Any:
        iq: IterableQueue[int] = sim.queue(threaded=True)
        with iq:
            sim.spawn(produce, iq.get_producer(), 1)
            sim.spawn(actor, iq.get_consumer())
        return check

    def hidden(*args: object) -> Any:
        return function(*args)

    refused: tuple[Any, ...] = (
        partial(scenario, actor=function),
        partial(scenario, check=function),
    )
    for scene in refused:
        with pytest.raises(TypeError, match="neither async nor a generator"):
            explore(scene)
    failing: tuple[Any, ...] = (partial(scenario, actor=hidden), partial(scenario, check=hidden))
    for scene in failing:
        assert "neither async nor a generator" in fails(scene).reason


@pytest.mark.parametrize("threaded", [False, True])
def test_a_part_of_a_list_may_be_taken_before_the_rest_is_put(threaded: bool) -> None:
    def scenario(sim: Simulation) -> None:
        iq: IterableQueue[int] = sim.queue(threaded=threaded)

        def take(source: Consumer[int]) -> None:
            assert source.get_many(4) == [0, 1, 2, 3]

        def put(out: Producer[int]) -> None:
            with out:
                out.put_many([0, 1, 2, 3])

        with iq:
            sim.spawn(take, iq.get_consumer())
            sim.spawn(put, iq.get_producer())

    assert "take raised AssertionError" in fails(scenario).reason


def test_an_item_may_have_a_broken_repr() -> None:
    class Item:
        def __repr__(self) -> str:
            raise RuntimeError("broken")

    for threaded in (False, True):

        def scenario(sim: Simulation, threaded: bool = threaded) -> Callable[[], None]:
            iq: IterableQueue[Any] = sim.queue(threaded=threaded)
            sim.spawn(produce, iq.get_producer(), Item() if threaded else Broken())
            sim.spawn(list, iq.get_consumer())
            iq.close()

            def check() -> None:
                raise AssertionError("the real problem")

            return check

        failure = fails(scenario)
        assert "the real problem" in failure.reason
        assert "its repr() raises an error" in str(failure)


class Broken:
    """It can be pickled, and not be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("broken")


def test_an_error_may_be_the_same_in_every_schedule() -> None:
    """Its traceback does not grow with each of them."""
    error = OSError("disk")

    def scenario(sim: Simulation) -> None:
        iq: IterableQueue[int] = sim.queue()
        with iq:
            sim.may_fail(sim.spawn(suffer, iq.get_producer()), error)
            sim.spawn(forgive, iq.get_consumer())

    explore(scenario, schedules=50)
    assert error.__traceback__ is not None
    assert len(list(traceback.walk_tb(error.__traceback__))) < 30


def suffer(out: Producer[int]) -> None:
    with out:
        for n in range(3):
            out.put(n)


def forgive(source: Consumer[int]) -> None:
    with suppress(ProducerFailed):
        list(source)


def test_an_error_may_be_its_own_cause() -> None:
    def confuse(out: Producer[int]) -> None:
        try:
            out.put(1)
        except OSError:
            error = ValueError("its own cause")
            error.__cause__ = error
            raise error  # noqa: B904 - it has one
        finally:
            out.close()

    def scenario(sim: Simulation) -> None:
        iq: IterableQueue[int] = sim.queue()
        with iq:
            sim.may_fail(sim.spawn(confuse, iq.get_producer()), OSError("disk"))
            sim.spawn(forgive, iq.get_consumer())

    assert "its own cause" in fails(scenario, patience=2).reason


STUBBORN = """
import sys
from iterable_queue import Done
from iterable_queue.testing import ScheduleFailure, explore

def never_end(source):
    while True:
        try:
            source.get()
        except Done:
            return
        except BaseException:
            continue

def produce(out):
    with out:
        out.put(1)
    assert sys.argv[1] == "kill", "the real problem"

def scenario(sim):
    iq = sim.queue(maxsize=1)
    with iq:
        stubborn = sim.spawn(never_end, iq.get_consumer(), name="stubborn")
        sim.spawn(produce, iq.get_producer())
    if sys.argv[1] == "kill":
        sim.may_kill(stubborn)

try:
    explore(scenario)
except ScheduleFailure as failure:
    print(failure.reason)
"""


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("fail", "produce raised AssertionError: the real problem"),
        ("kill", "stubborn goes on after it was killed"),
    ],
)
def test_an_actor_that_catches_everything_hides_no_failure(what: str, reason: str) -> None:
    """Its thread stays behind, so this is a program of its own. It does not wait for that."""
    run = run_python(STUBBORN, what)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith(reason)


def test_what_is_left_of_an_exploration_says_so() -> None:
    left: list[Any] = []

    def scenario(sim: Simulation) -> None:
        iq: IterableQueue[int] = sim.queue(threaded=True)
        left[:] = sim, iq, iq.get_producer(), iq.get_consumer()
        for n in range(2):
            sim.spawn(iq.get_producer().close, name=f"closes {n}")

    explore(scenario, schedules=3)
    sim, iq, out, source = left
    calls: tuple[Callable[[], object], ...] = (
        sim.queue,
        iq.get_producer,
        iq.statistics,
        partial(out.put, 1),
        partial(source.get, timeout=1),
    )
    for call in calls:
        with pytest.raises(RuntimeError, match="has done with this schedule: what sim made can be"):
            call()
    with pytest.raises(RuntimeError, match="spawned by the scenario"):
        sim.spawn(out.close)


def test_the_simulation_checks_its_arguments() -> None:
    def scenario(sim: Simulation) -> None:
        with pytest.raises(TypeError, match="maxsize"):
            sim.queue("1")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="on_failure"):
            sim.queue(on_failure="stop")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="between processes"):
            sim.queue(threaded=True, redeliver=True)
        with pytest.raises(ValueError, match="max_deliveries"):
            sim.queue(max_deliveries=2)
        iq = sim.queue(threaded=True)
        with pytest.raises(ValueError, match="is a thread"):
            sim.may_kill(sim.spawn(produce, iq.get_producer(), 1))
        with pytest.raises(TypeError, match="function must be a function, not 5"):
            sim.spawn(5)  # type: ignore[arg-type]
        for call in (sim.may_kill, sim.may_fail):
            with pytest.raises(TypeError, match=r"actor must be what sim\.spawn\(\) .*, not 'x'"):
                call("x")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="not of a queue that sim"):
            sim.spawn(produce, IterableQueue[int].threaded().get_producer(), 1)
        again = sim.spawn(produce, iq.get_producer(), 1)
        assert again.name == "produce-2"
        sim.spawn(consume, iq.get_consumer(), [])
        iq.close()

        def late() -> None:
            sim.spawn(print)

        sim.spawn(late)

    failure = fails(scenario)
    assert "actors are spawned by the scenario" in failure.reason


def test_a_checkpoint_does_nothing_elsewhere() -> None:
    checkpoint("not explored")
    thread = threading.Thread(target=checkpoint, args=("nor here",))
    thread.start()
    thread.join(10)


def test_no_thread_is_left() -> None:
    before = threading.active_count()
    fails(deadlocking)
    with pytest.raises(NothingInterleaved):
        explore(lambda sim: None)
    assert threading.active_count() == before


@FORKS
def test_processes_forked_later_have_nothing_to_do_with_it(
    processes: Processes, capfd: pytest.CaptureFixture[str]
) -> None:
    """Though the explored queue is still referred to, the children leave their real queues."""
    kept: list[object] = []

    def scenario(sim: Simulation) -> None:
        iq = sim.queue()
        kept.append((iq, iq.get_producer(), iq.get_consumer()))
        deadlocking(sim)

    fails(scenario)
    real = IterableQueue[int](context=multiprocessing.get_context("fork"))
    consumer = real.get_consumer()
    child = multiprocessing.get_context("fork").Process(target=real.get_producer().put, args=(1,))
    processes.start(child)
    real.close()
    with pytest.raises(ProducerFailed, match="was left open when its process returned"):
        list(consumer)
    assert processes.join() == [0]
    assert capfd.readouterr().err == "", "the explored one was left as well, and could not be"
    assert kept


def test_ctrl_c_ends_an_exploration_and_leaves_no_thread() -> None:
    before = threading.active_count()
    pressed: list[bool] = []

    def scenario(sim: Simulation) -> None:
        iq = sim.queue()

        def interrupt(source: Consumer[int]) -> None:
            for _ in source:
                if not pressed:
                    pressed.append(True)
                    os.kill(os.getpid(), signal.SIGINT)

        sim.spawn(produce, iq.get_producer(), *range(50))
        sim.spawn(interrupt, iq.get_consumer())
        sim.spawn(consume, iq.get_consumer(), [])
        iq.close()

    with pytest.raises(KeyboardInterrupt):
        explore(scenario)
    assert threading.active_count() == before


def test_it_uses_no_randomness_of_the_users() -> None:
    random.seed(5)
    first = random.random()
    random.seed(5)
    fails(deadlocking)
    explore(_plain, samples=50)
    assert random.random() == first


def _plain(sim: Simulation) -> None:
    iq = sim.queue()
    sim.spawn(produce, iq.get_producer(), 1)
    sim.spawn(consume, iq.get_consumer(), [])
    iq.close()

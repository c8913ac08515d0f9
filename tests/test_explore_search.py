"""The search: it runs exactly the schedules there are, and reduction leaves no outcome out."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from math import comb, factorial

import pytest

from iterable_queue import (
    Cancelled,
    Consumer,
    ConsumersGone,
    IterableQueue,
    Producer,
    ProducerFailed,
    Worker,
)
from iterable_queue.testing import Exploration, Simulation, checkpoint, explore
from iterable_queue.testing._explore._scheduler import EVERYTHING, Sorts

Outcome = tuple[object, ...]
Scenario = Callable[[Simulation], Callable[[], None]]


def stepping(actors: int, checkpoints: int, seen: list[str]) -> Scenario:
    """Actors that share nothing but the list into which they write at each checkpoint."""

    def scenario(sim: Simulation) -> Callable[[], None]:
        order: list[str] = []

        def step(name: str) -> None:
            for _ in range(checkpoints):
                checkpoint()
                order.append(name)

        for index in range(actors):
            sim.spawn(step, "abc"[index])
        return lambda: seen.append("".join(order))

    return scenario


def all_of(
    scenario: Callable[[Simulation], Callable[[], object] | None],
    preemptions: int | None,
    *,
    reduction: bool = True,
) -> Exploration:
    return explore(
        scenario,
        preemptions=preemptions,
        schedules=100_000,
        seconds=60,
        samples=0,
        reduction=reduction,
    )


# An actor with k checkpoints makes k + 1 transitions: to the first, and from each.
@pytest.mark.parametrize(("actors", "checkpoints"), [(2, 1), (2, 2), (3, 1), (2, 3)])
def test_without_a_bound_it_runs_every_interleaving_once(actors: int, checkpoints: int) -> None:
    seen: list[str] = []
    found = all_of(stepping(actors, checkpoints, seen), None, reduction=False)
    each = checkpoints + 1
    assert found.complete
    assert found.bound is None
    assert found.schedules == factorial(actors * each) // factorial(each) ** actors
    assert set(seen) == orders(actors, checkpoints)


def orders(actors: int, checkpoints: int) -> set[str]:
    return {"".join(order) for order in itertools.permutations("abc"[:actors] * checkpoints)}


@pytest.mark.parametrize("bound", range(4))
def test_it_runs_each_schedule_within_the_bound_once(bound: int) -> None:
    """Two actors of three transitions: one goes first, and is left after one or after two."""
    seen: list[str] = []
    found = all_of(stepping(2, 2, seen), bound, reduction=False)
    exactly = [2, 2 * 2, 2 * 2 * 2, 2 * 1 * 2]  # at the last, one more place is left to leave at
    assert found.bound == bound
    assert found.schedules == sum(exactly[: bound + 1])
    assert found.schedules <= comb(6, 3)
    assert not found.complete or found.schedules == comb(6, 3)


@pytest.mark.parametrize(("actors", "checkpoints"), [(2, 2), (3, 1), (3, 2)])
def test_reduction_keeps_every_order_of_what_depends(actors: int, checkpoints: int) -> None:
    """Only where the actors begin makes no difference."""
    seen: list[str] = []
    found = all_of(stepping(actors, checkpoints, seen), None)
    assert found.complete
    assert set(seen) == orders(actors, checkpoints)
    plain = factorial(actors * (checkpoints + 1)) // factorial(checkpoints + 1) ** actors
    assert found.schedules + found.redundant < plain


def test_what_nobody_can_tell_apart_is_run_once() -> None:
    """Two queues that have nothing to do with each other."""

    def scenario(sim: Simulation) -> None:
        for name in "ab":
            iq = sim.queue()
            sim.spawn(put_twice, iq.get_producer(), name=name)
            iq.close()

    plain = all_of(scenario, None, reduction=False)
    reduced = all_of(scenario, None)
    # Begin, take into use, put, put, close; and of these the first three are one when reduced.
    assert plain.schedules == comb(10, 5)
    assert reduced.schedules == 1
    # The states are a grid of 4 by 4, with 24 steps between them, and no step is gone twice.
    assert reduced.redundant < 24 - 6


def put_twice(out: Producer[int]) -> None:
    out.put(1)
    out.put(2)
    out.close()


# Reduction and the outcomes that it must not lose


def consumers(
    sim: Simulation, seen: set[Outcome], maxsize: int, threaded: bool
) -> Callable[[], None]:
    iq = sim.queue(maxsize, threaded=threaded)
    got: dict[str, list[int]] = {"c1": [], "c2": []}

    def produce(out: Producer[int]) -> None:
        with out:
            for n in range(2):
                out.put(n)

    def consume(source: Consumer[int], name: str) -> None:
        with source:
            for item in source:
                got[name].append(item)

    sim.spawn(produce, iq.get_producer())
    for name in got:
        sim.spawn(consume, iq.get_consumer(), name, name=name)
    iq.close()
    return lambda: seen.add(tuple(map(tuple, got.values())))


def polling(
    sim: Simulation, seen: set[Outcome], maxsize: int, threaded: bool
) -> Callable[[], None]:
    """What is seen without waiting depends on when one looks."""
    iq = sim.queue(maxsize, threaded=threaded)
    looks: list[object] = []

    def produce(out: Producer[int]) -> None:
        with out:
            out.put(1)
            out.put(2)

    def look(source: Consumer[int]) -> None:
        with source:
            for _ in range(4):
                looks.append(source.qsize())
                try:
                    looks.append(source.get_nowait())
                except (IterableQueue.Empty, IterableQueue.Done) as end:
                    looks.append(type(end).__name__)

    sim.spawn(produce, iq.get_producer())
    sim.spawn(look, iq.get_consumer())
    iq.close()
    return lambda: seen.add(tuple(looks))


def cancelling(
    sim: Simulation, seen: set[Outcome], maxsize: int, threaded: bool
) -> Callable[[], None]:
    iq = sim.queue(maxsize, threaded=threaded)
    done: dict[str, object] = {"put": 0, "got": 0}

    def produce(out: Producer[int]) -> None:
        try:
            for n in range(2):
                out.put(n)
                done["put"] = n + 1
        except Cancelled:
            pass
        out.close()

    def consume(source: Consumer[int]) -> None:
        try:
            for n, _ in enumerate(source):
                done["got"] = n + 1
        except Cancelled:
            pass

    sim.spawn(produce, iq.get_producer())
    sim.spawn(consume, iq.get_consumer())
    sim.spawn(iq.cancel)
    iq.close()
    return lambda: seen.add((*done.values(), iq.statistics().dropped))


def working(
    sim: Simulation, seen: set[Outcome], maxsize: int, threaded: bool
) -> Callable[[], None]:
    iq = sim.queue(maxsize, threaded=threaded)
    got: dict[str, list[int]] = {"w1": [], "w2": []}

    def work(worker: Worker[int], name: str) -> None:
        with worker:
            if name == "w1":
                worker.put(1)
            for item in worker:
                got[name].append(item)
                if item:
                    worker.put(item - 1)

    for name in got:
        sim.spawn(work, iq.get_worker(), name, name=name)
    iq.close()
    return lambda: seen.add(tuple(map(tuple, got.values())))


def timing_out(
    sim: Simulation, seen: set[Outcome], maxsize: int, threaded: bool
) -> Callable[[], None]:
    """Two that wait for some time, one that puts: tokens are given, taken back and left."""
    iq = sim.queue(maxsize, threaded=threaded)
    got: dict[str, object] = {}

    def wait(source: Consumer[int], name: str) -> None:
        try:
            got[name] = source.get(timeout=1)
        except (IterableQueue.Empty, IterableQueue.Done) as end:
            got[name] = type(end).__name__

    for name in ("c1", "c2"):
        sim.spawn(wait, iq.get_consumer(), name, name=name)
    sim.spawn(try_to_put, iq.get_producer())
    iq.close()
    return lambda: seen.add((got["c1"], got["c2"]))


def try_to_put(out: Producer[int]) -> None:
    try:
        out.put(1)
    except ConsumersGone:
        pass
    out.close()


@pytest.mark.parametrize("threaded", [False, True], ids=["processes", "threads"])
@pytest.mark.parametrize("maxsize", [0, 1])
@pytest.mark.parametrize("model", [consumers, polling, cancelling, working, timing_out])
def test_reduction_loses_no_outcome_within_the_bound(
    model: Callable[..., Callable[[], None]], maxsize: int, threaded: bool
) -> None:
    """What can come out is the same with reduction and without, bound by bound."""
    for bound in range(1 if threaded else 2):
        sets: list[set[Outcome]] = []
        for reduction in (False, True):
            outcomes: set[Outcome] = set()

            def scenario(sim: Simulation, seen: set[Outcome] = outcomes) -> Callable[[], None]:
                return model(sim, seen, maxsize, threaded)

            found = all_of(scenario, bound, reduction=reduction)
            assert found.bound == bound
            sets.append(outcomes)
        assert sets[0] == sets[1]
        assert sets[0]


@pytest.mark.parametrize("inside", [False, True])
def test_reduction_loses_no_outcome_of_a_death(inside: bool) -> None:
    def model(sim: Simulation, seen: set[Outcome]) -> Callable[[], None]:
        iq = sim.queue(1)
        got: list[object] = []

        def consume(source: Consumer[int]) -> None:
            try:
                got.extend(source)
            except ProducerFailed:
                got.append("failed")

        victim = sim.spawn(put_twice, iq.get_producer(), name="p")
        sim.spawn(consume, iq.get_consumer(), name="c")
        sim.may_kill(victim, inside=inside)
        iq.close()
        return lambda: seen.add((*got, iq.statistics().put, iq.statistics().failures))

    sets: list[set[Outcome]] = []
    for reduction in (False, True):
        outcomes: set[Outcome] = set()
        all_of(lambda sim, seen=outcomes: model(sim, seen), 1, reduction=reduction)  # type: ignore[misc]
        sets.append(outcomes)
    assert sets[0] == sets[1]
    assert len(sets[0]) >= 4


# Budgets and samples


def two_and_two(sim: Simulation) -> None:
    iq = sim.queue()
    for _ in range(2):
        sim.spawn(put_twice, iq.get_producer())
        sim.spawn(list, iq.get_consumer())
    iq.close()


def test_transitions_commute_unless_one_writes_what_the_other_touches() -> None:
    sorts = Sorts()
    footprints = [(1, 0), (0, 1), (2, 0), (2, 1), (0, 0), (EVERYTHING, EVERYTHING)]
    keys = [(*footprint, actor) for actor in (1, 2) for footprint in footprints]
    numbers = [sorts.related(*key)[0] for key in keys]
    assert sorted(numbers) == list(range(12))
    for one, (reads, writes, actor) in zip(numbers, keys, strict=True):
        again, table = sorts.related(reads, writes, actor)
        assert again == one
        for other, (its_reads, its_writes, its_actor) in zip(numbers, keys, strict=True):
            touched = (reads | writes) & its_writes | (its_reads | its_writes) & writes
            assert bool(table[other]) is (actor == its_actor or touched != 0)


def test_sorts_beyond_those_that_a_byte_can_tell_apart_depend_on_everything() -> None:
    sorts = Sorts()
    numbers = [sorts.related(1 << n, 0, n)[0] for n in range(300)]
    assert numbers == [min(n, 255) for n in range(300)]
    assert [sorts.related(1 << n, 0, n)[0] for n in range(300)] == numbers
    for n in (0, 254):
        assert [i for i, one in enumerate(sorts.related(1 << n, 0, n)[1]) if one] == [n, 255]
    assert sorts.related(1 << 299, 0, 299)[1] == bytes([1] * 256)


def test_the_budget_is_kept_and_samples_get_their_share() -> None:
    found = explore(two_and_two, preemptions=2, schedules=100)
    assert found.schedules + found.redundant == 75
    assert found.sampled == 25
    assert not found.complete


def test_what_was_explored_is_said() -> None:
    cut_short = explore(two_and_two, preemptions=0, schedules=20)
    assert cut_short.bound == -1
    assert str(cut_short).startswith("sampled only: the exhaustive search ended after")
    bounded = explore(two_and_two, preemptions=0, samples=3)
    assert bounded.sampled == 3
    assert f"exhaustive up to 0 preemptions, {bounded.schedules} schedules" in str(bounded)
    assert f"3 sampled at random (seed {bounded.seed})" in str(bounded)
    complete = all_of(stepping(2, 1, []), None)
    assert str(complete).startswith(f"exhaustive: all schedules, {complete.schedules} of them run")


def test_samples_follow_from_the_seed() -> None:
    """And cover much: of the 20 orders of two actors with three checkpoints, most."""
    runs: list[list[str]] = []
    for _ in range(2):
        seen: list[str] = []
        explore(stepping(2, 3, seen), preemptions=0, samples=200, seed=7)
        runs.append(seen)
    assert runs[0] == runs[1]
    assert len(set(runs[0])) >= 18


def test_seconds_are_kept() -> None:
    found = explore(two_and_two, preemptions=None, schedules=10**9, seconds=0.3)
    assert 0.2 < found.seconds < 5

"""Small models of the shipped queue, explored to completion: `python -m benchmarks.models`.

Each model is a scenario for `explore`: the ledger, endpoints and in-process channel that ship, and
a few actors. Prints a table of models, bounds, schedules and results; with `--preemptions N` to
another bound than 2, with names to some models only, with `--plain` without reduction. A model that
does not come to its bound in its time has failed, as one in which something was found.
`tests/test_explore_models.py` runs the quick ones in the normal test run, and the others in a soak.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

from iterable_queue import (
    Cancelled,
    Consumer,
    ConsumersGone,
    ItemsLost,
    IterableQueue,
    Producer,
    ProducerFailed,
    Worker,
)
from iterable_queue.testing import Exploration, Simulation, explore

Check = Callable[[], object]


class Model(NamedTuple):
    """One model.

    Attributes:
        scenario: what is explored.
        quick: it takes a second or two.
    """

    scenario: Callable[[Simulation], Check | None]
    quick: bool


PREEMPTIONS = 2
"""Up to so many of them each model is explored."""


# What actors do


def produce(out: Producer[int], items: list[int]) -> None:
    with out:
        for item in items:
            out.put(item)


def consume(source: Consumer[int], got: list[int]) -> None:
    with source:
        got.extend(source)


def take_one(source: Consumer[int], got: list[int]) -> None:
    with source:
        for item in source:
            got.append(item)
            break


def grow(worker: Worker[int], got: list[int]) -> None:
    """Work that makes more work: a binary tree of items, down to 0."""
    with worker:
        for item in worker:
            got.append(item)
            if item:
                worker.put(item - 1)
                worker.put(item - 1)


def tolerant(function: Callable[..., object], *expected: type[Exception]) -> Callable[..., None]:
    """*function*, but for these errors, by which it may end."""

    def run(*args: Any) -> None:
        try:
            function(*args)
        except expected:
            pass

    run.__name__ = function.__name__
    return run


def poll(source: Consumer[int], got: list[int]) -> None:
    with source:
        while True:
            try:
                got.append(source.get(timeout=0.1))
            except IterableQueue.Empty:
                continue
            except IterableQueue.Done:
                return


def fits(iq: IterableQueue[int], maxsize: int) -> None:
    assert not maxsize or iq.statistics().highest_queued <= maxsize


# The models


def many(
    sim: Simulation,
    producers: int,
    consumers: int,
    each: int,
    *,
    maxsize: int = 0,
    threaded: bool = False,
) -> Check:
    """All items arrive once, those of each producer in order, and everybody ends."""
    iq = sim.queue(maxsize, threaded=threaded)
    items = [[10 * p + n for n in range(each)] for p in range(producers)]
    got: list[list[int]] = [[] for _ in range(consumers)]
    for p in range(producers):
        sim.spawn(produce, iq.get_producer(), items[p], name=f"p{p + 1}")
    for c in range(consumers):
        sim.spawn(consume, iq.get_consumer(), got[c], name=f"c{c + 1}")
    iq.close()

    def check() -> None:
        assert sorted(chain(*got)) == sorted(chain(*items)), got
        for mine in got:
            for theirs in items:
                assert [n for n in mine if n in theirs] == sorted(n for n in mine if n in theirs)
        assert iq.statistics().state == "done", iq.explain()
        assert iq.join(timeout=0)
        fits(iq, maxsize)

    return check


def late_close(sim: Simulation, *, maxsize: int = 0, threaded: bool = False) -> Check:
    """The queue is closed while the others run, and somebody joins it."""
    iq = sim.queue(maxsize, threaded=threaded)
    got: list[int] = []
    sim.spawn(produce, iq.get_producer(), [1], name="p")
    sim.spawn(consume, iq.get_consumer(), got, name="c")
    sim.spawn(iq.join, name="joiner")
    sim.spawn(iq.close, name="closer")

    def check() -> None:
        assert got == [1]
        assert iq.statistics().state == "done"

    return check


def early_producer(sim: Simulation, *, threaded: bool = False) -> Check:
    """One producer closes at once, without having put anything."""
    iq = sim.queue(1, threaded=threaded)
    got: list[int] = []
    sim.spawn(produce, iq.get_producer(), [], name="p1")
    sim.spawn(produce, iq.get_producer(), [1, 2], name="p2")
    sim.spawn(consume, iq.get_consumer(), got, name="c")
    iq.close()

    def check() -> None:
        assert got == [1, 2]

    return check


def early_consumer(sim: Simulation, *, threaded: bool = False) -> Check:
    """One consumer of two leaves after an item."""
    iq = sim.queue(1, threaded=threaded)
    one: list[int] = []
    rest: list[int] = []
    sim.spawn(produce, iq.get_producer(), [1, 2, 3], name="p")
    sim.spawn(take_one, iq.get_consumer(), one, name="c1")
    sim.spawn(consume, iq.get_consumer(), rest, name="c2")
    iq.close()

    def check() -> None:
        assert sorted(one + rest) == [1, 2, 3]
        assert len(one) <= 1

    return check


def abandoned(sim: Simulation, *, threaded: bool = False) -> Check:
    """The only consumer leaves after an item: the producer is told, and does not wait for ever."""
    iq = sim.queue(1, threaded=threaded)
    got: list[int] = []
    sim.spawn(tolerant(produce, ConsumersGone), iq.get_producer(), [1, 2, 3], name="p")
    sim.spawn(take_one, iq.get_consumer(), got, name="c")
    iq.close()

    def check() -> None:
        assert got == [1]
        assert iq.statistics().state in ("abandoned", "failed", "done")

    return check


def recursion(sim: Simulation, *, threaded: bool = False, depth: int = 1) -> Check:
    """Two workers on a tree: done exactly when nobody is in the middle of an item."""
    iq = sim.queue(1, threaded=threaded)
    got: list[list[int]] = [[], []]
    sim.spawn(produce, iq.get_producer(), [depth], name="p")
    sim.spawn(grow, iq.get_worker(), got[0], name="w1")
    sim.spawn(grow, iq.get_worker(), got[1], name="w2")
    iq.close()

    def check() -> None:
        assert len([*chain(*got)]) == 2 ** (depth + 1) - 1, got
        assert iq.statistics().state == "done"

    return check


def together(sim: Simulation) -> Check:
    """Two consumers that both come to the end, and neither closes before the other is there."""
    iq = sim.queue()
    there, back = sim.queue(), sim.queue()

    def meet(source: Consumer[int], mine: Producer[int], others: Consumer[int]) -> None:
        assert list(source) == []
        mine.put(1)
        assert others.get() == 1

    sim.spawn(meet, iq.get_consumer(), there.get_producer(), back.get_consumer(), name="c1")
    sim.spawn(meet, iq.get_consumer(), back.get_producer(), there.get_consumer(), name="c2")
    sim.spawn(produce, iq.get_producer(), [], name="p")
    iq.close()

    def check() -> None:
        assert iq.statistics().state == "done"

    return check


def cancelled(sim: Simulation, *, maxsize: int = 0, threaded: bool = False) -> Check:
    """Cancel against put, get, close and join, all at once: nobody is left waiting."""
    iq = sim.queue(maxsize, threaded=threaded)
    got: list[int] = []
    sim.spawn(tolerant(produce, Cancelled), iq.get_producer(), [1, 2], name="p")
    sim.spawn(tolerant(consume, Cancelled), iq.get_consumer(), got, name="c")
    sim.spawn(tolerant(join, Cancelled), iq, name="joiner")
    sim.spawn(iq.cancel, name="cancel")
    iq.close()

    def check() -> None:
        statistics = iq.statistics()
        assert got == [1, 2][: len(got)]
        assert statistics.state == "cancelled"
        assert statistics.put == statistics.taken + statistics.dropped + statistics.queued

    return check


def join(iq: IterableQueue[int]) -> None:
    iq.join()


def cancelled_in(sim: Simulation, call: str, *, threaded: bool = False) -> Check:
    """Cancel against two at once that put without room, get from nothing, join, or close.

    Threads keep their endpoints open afterwards, so that no close of theirs wakes the other one.
    """
    iq = sim.queue(1, threaded=threaded)
    ends: list[Producer[int] | Consumer[int]] = []

    def put(out: Producer[int]) -> None:
        out.put(1)
        out.put(2)

    for n in (1, 2):
        if call == "put":
            ends.append(iq.get_producer())
            sim.spawn(tolerant(put, Cancelled), ends[-1], name=f"p{n}")
        elif call == "get":
            ends.append(iq.get_consumer())
            sim.spawn(tolerant(next, Cancelled), ends[-1], name=f"c{n}")
        elif call == "join":
            sim.spawn(tolerant(join, Cancelled), iq, name=f"joiner{n}")
    if call == "close":
        sim.spawn(produce, iq.get_producer(), [], name="p")
        sim.spawn(iq.close, name="closer")
    sim.spawn(iq.cancel, name="cancel")

    def check() -> None:
        for end in ends if threaded else []:
            end.close()
        now = iq.statistics()
        assert now.state == "cancelled"
        assert (now.put, now.queued, now.blocked_producers) == (now.dropped, 0, 0), now
        assert (now.open_producers, now.open_consumers, now.blocked_consumers) == (0, 0, 0), now

    return check


def failing(sim: Simulation, *, threaded: bool = False) -> Check:
    """A producer fails: the consumer gets what was put, and then is told."""
    iq = sim.queue(threaded=threaded)
    got: list[int] = []
    told: list[object] = []

    def fail(out: Producer[int]) -> None:
        with out:
            out.put(1)
            raise OSError("disk")

    def until_told(source: Consumer[int]) -> None:
        try:
            consume(source, got)
        except ProducerFailed as error:
            told.append(error)

    sim.spawn(tolerant(fail, OSError), iq.get_producer(), name="p1")
    sim.spawn(produce, iq.get_producer(), [2], name="p2")
    sim.spawn(until_told, iq.get_consumer(), name="c")
    iq.close()

    def check() -> None:
        assert sorted(got) == [1, 2]
        assert len(told) == 1

    return check


def polled(sim: Simulation, *, threaded: bool = False) -> Check:
    """A consumer that polls with time-outs."""
    iq = sim.queue(1, threaded=threaded)
    got: list[int] = []
    sim.spawn(produce, iq.get_producer(), [1, 2], name="p")
    sim.spawn(poll, iq.get_consumer(), got, name="c")
    iq.close()

    def check() -> None:
        assert got == [1, 2]

    return check


def killed(
    sim: Simulation, victim: str, *, inside: bool = False, maxsize: int = 1, redeliver: bool = False
) -> Check:
    """One actor is killed at any of its operations: the others come to an end, and are told."""
    iq = sim.queue(maxsize, redeliver=redeliver)
    items = [1] if victim == "w" else [1, 2]
    got: list[int] = []
    told: list[str] = []

    def tell(function: Callable[..., object]) -> Callable[..., None]:
        def run(*args: Any) -> None:
            try:
                function(*args)
            except (ProducerFailed, ConsumersGone, ItemsLost) as error:
                told.append(type(error).__name__)

        return run

    actors = {
        "p": sim.spawn(tell(produce), iq.get_producer(), items, name="p"),
        "c1": sim.spawn(tell(consume), iq.get_consumer(), got, name="c1"),
    }
    if victim == "c1":
        actors["c2"] = sim.spawn(tell(consume), iq.get_consumer(), got, name="c2")
    if victim == "w":
        actors["w"] = sim.spawn(tell(grow), iq.get_worker(), got, name="w")
    sim.may_kill(actors[victim], inside=inside)
    iq.close()

    def check() -> None:
        statistics = iq.statistics()
        assert statistics.open_producers == statistics.open_consumers == 0, iq.explain()
        assert statistics.put == statistics.taken + statistics.queued + statistics.dropped - (
            statistics.redelivered
        ), statistics
        assert statistics.lost <= 1
        if redeliver and statistics.state == "done":
            assert set(items) <= set(got)
        elif statistics.state == "done":
            assert len(got) + statistics.lost >= len(items), (got, statistics)

    return check


def models() -> dict[str, Model]:
    """All models, by name."""
    table: dict[str, Model] = {}

    def add(name: str, scenario: Any, quick: bool, **options: Any) -> None:
        table[name] = Model(partial(scenario, **options), quick)

    for threaded in (False, True):
        prefix = "threads " if threaded else ""
        here: dict[str, Any] = {"threaded": threaded}
        for maxsize in (0, 1):
            size = "bounded" if maxsize else "unbounded"
            sized = {**here, "maxsize": maxsize}
            for producers, consumers in ((2, 1), (1, 2), (2, 2)):
                each = 1 if threaded or producers == consumers else 2
                options = {**sized, "producers": producers, "consumers": consumers, "each": each}
                quick = each == 2 and (producers == 1 or not maxsize)
                add(f"{prefix}{producers}x{consumers} {size}", many, quick, **options)
            add(f"{prefix}late close {size}", late_close, not threaded, **sized)
            add(f"{prefix}cancel {size}", cancelled, False, **sized)
        for call in ("put", "get", "join", "close"):
            add(f"{prefix}cancel against {call}", cancelled_in, True, call=call, **here)
        add(f"{prefix}early close of a producer", early_producer, not threaded, **here)
        add(f"{prefix}early close of a consumer", early_consumer, not threaded, **here)
        add(f"{prefix}abandoned", abandoned, True, **here)
        add(f"{prefix}workers", recursion, not threaded, **here)
        add(f"{prefix}workers, deeper", recursion, False, depth=2, **here)
        add(f"{prefix}a producer fails", failing, not threaded, **here)
        add(f"{prefix}polling", polled, True, **here)
    add("2x1, one item each", many, True, producers=2, consumers=1, each=1)
    add("together at the end", together, True)
    for victim in ("p", "c1", "w"):
        add(f"kill {victim}", killed, victim == "p", victim=victim)
        add(f"kill {victim} inside", killed, False, victim=victim, inside=True)
        if victim != "p":
            add(f"kill {victim}, redeliver", killed, False, victim=victim, redeliver=True)
    return table


def run(model: Model, bound: int, *, reduction: bool = True) -> Exploration:
    """Explore one model to *bound*, and no further."""
    return explore(
        model.scenario,
        preemptions=bound,
        schedules=10**7,
        seconds=1200,
        samples=0,
        reduction=reduction,
    )


def main() -> int:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only models whose names contain one of these")
    parser.add_argument("--preemptions", type=int, default=PREEMPTIONS, help="the bound")
    parser.add_argument("--plain", action="store_true", help="without reduction")
    parser.add_argument("--quick", action="store_true", help="only the quick ones")
    options = parser.parse_args()
    head = f"{'model':34} {'bound':>5} {'schedules':>10} {'given up':>9} {'seconds':>8} {'1/s':>6}"
    print(f"{head}  result\n{'-' * len(head)}", flush=True)
    failures = 0
    for name, model in models().items():
        if options.names and not any(part in name for part in options.names):
            continue
        if options.quick and not model.quick:
            continue
        began = time.perf_counter()
        try:
            found = run(model, options.preemptions, reduction=not options.plain)
        except AssertionError as failure:
            failures += 1
            print(f"{name:34} FAILED after {time.perf_counter() - began:.1f} s\n{failure}")
            continue
        bound = "all" if found.complete else str(found.bound)
        result = "no failure"
        if not found.complete and found.bound != options.preemptions:
            failures += 1
            result = f"NOT EXPLORED to {options.preemptions}"
        total = found.schedules + found.redundant
        print(
            f"{name:34} {bound:>5} {found.schedules:>10} {found.redundant:>9} "
            f"{found.seconds:>8.1f} {total / found.seconds:>6.0f}  {result}",
            flush=True,
        )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

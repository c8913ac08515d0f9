"""What a failing schedule looks like, to the letter."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from iterable_queue import Consumer, IterableQueue, Producer
from iterable_queue.testing import ScheduleFailure, Simulation, checkpoint, explore


def produce(out: Producer[Any], *items: object) -> None:
    with out:
        for item in items:
            out.put(item)


def consume(source: Consumer[Any], got: list[Any]) -> None:
    with source:
        got.extend(source)


def report(scenario: Callable[[Simulation], Callable[[], object] | None], **options: Any) -> str:
    """The text, without what differs from one machine to another, and one long line cut."""
    options.setdefault("samples", 100)
    with pytest.raises(ScheduleFailure) as caught:
        explore(scenario, **options)
    text = str(caught.value).replace(caught.value.replay, "REPLAY")
    text = text.replace(": close() it, or leave its `with` block", "")
    return re.sub(r"\S*test_explore_report\.py:\d+", "FILE", text)


def test_a_deadlock() -> None:
    def scenario(sim: Simulation) -> None:
        iq = sim.queue(maxsize=1)
        sim.spawn(produce, iq.get_producer(), 1)
        sim.spawn(produce, iq.get_producer(), 2)
        sim.spawn(consume, iq.get_consumer(), [])

    assert (
        report(scenario)
        == """\
deadlock: nobody can go on
  consume waits for an item in get, called at FILE
the queue: open, not done: the queue has not been closed
    items: 2 put, 2 taken, 2 finished, 0 queued, 0 lost
    the queue, made at FILE, open in this process (the scenario)
    consumer 3, made at FILE, taken by actor consume (alive), 1 thread(s) waiting in a call
    1 caller(s) wait in get for an item or the end

the schedule (0 preemptions), found by the exhaustive search, as schedule 1:

   produce  produce-2              consume
   -------  ---------------------  ----------------------
1  put 1
2  close
3           put 2: waits for room
4                                  get -> 1
5                                  get: waits for an item
6           put 2
7           close
8                                  get -> 2
9                                  get: waits for an item

to run it again: explore(scenario, replay="REPLAY")"""
    )


def test_a_race() -> None:
    def scenario(sim: Simulation) -> Callable[[], None]:
        iq = sim.queue(threaded=True)
        total = [0]

        def add(source: Consumer[int]) -> None:
            for item in source:
                before = total[0]
                checkpoint("read")
                total[0] = before + item

        sim.spawn(produce, iq.get_producer(), 1, 2)
        sim.spawn(add, iq.get_consumer(), name="a")
        sim.spawn(add, iq.get_consumer(), name="b")
        iq.close()

        def check() -> None:
            if total != [3]:
                raise AssertionError(f"the total is {total[0]}")

        return check

    assert (
        re.sub(r"as schedule \d+", "as schedule N", report(scenario))
        == """\
the end state is wrong: AssertionError: the total is 1

the schedule (1 preemption), found by the exhaustive search, as schedule N:

   produce  a            b
   -------  -----------  -----------
1  put 1
2  put 2
3  close
4           get -> 1
5                        get -> 2
6                        at 'read'
7                        get -> Done
8           at 'read'
9           get -> Done

to run it again: explore(scenario, replay="REPLAY")"""
    )


def test_a_death_and_an_error() -> None:
    def scenario(sim: Simulation) -> None:
        iq = sim.queue()

        def strict(source: Consumer[int]) -> None:
            items = list(source)
            assert items == [1]

        victim = sim.spawn(produce, iq.get_producer(), 1, name="p")
        sim.spawn(strict_but_told(strict), iq.get_consumer(), name="c")
        sim.may_kill(victim)
        iq.close()

    def strict_but_told(function: Callable[..., None]) -> Callable[..., None]:
        def run(source: Consumer[int]) -> None:
            try:
                function(source)
            except IterableQueue.Done:
                pass
            except Exception as error:
                raise RuntimeError("not prepared for that") from error

        return run

    assert (
        report(scenario)
        == """\
c raised RuntimeError: not prepared for that

the schedule (0 preemptions), found by the exhaustive search, as schedule 2:

   p       c
   ------  -----------------------
1  killed
2          get: waits for an item
3          get: looks who has died
4          get -> ProducerFailed
5          ends
6          raises RuntimeError

to run it again: explore(scenario, replay="REPLAY")"""
    )


def test_time_outs_and_long_items() -> None:
    def scenario(sim: Simulation) -> None:
        iq = sim.queue(1)

        def give_up(out: Producer[str]) -> None:
            out.put("x" * 100)
            out.put("y", timeout=3)

        sim.spawn(give_up, iq.get_producer(), name="p")
        sim.spawn(Waiter(), iq.get_consumer(), name="c")

    class Waiter:
        def __call__(self, source: Consumer[str]) -> None:
            checkpoint()

    text = report(scenario)
    assert text.startswith("p raised Full: the queue is full: its maxsize is 1 item(s)\n")
    rows = [line.split("  ", 1)[1].rstrip() for line in text.splitlines() if line[:1].isdigit()]
    assert "put 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx..." in rows
    assert "put 'y': waits for room" in rows
    assert "put 'y': time is up" in " ".join(rows)
    assert rows[-1].strip() == "raises Full"


def test_what_a_replay_needs_is_in_the_call() -> None:
    def scenario(sim: Simulation) -> None:
        iq = sim.queue()
        sim.spawn(produce, iq.get_producer(), 1)
        sim.spawn(consume, iq.get_consumer(), [])

    text = report(scenario, steps=99, spurious=1, reduction=False)
    call = 'explore(scenario, replay="REPLAY", steps=99, spurious=1, reduction=False)'
    assert text.endswith(f"to run it again: {call}")


def test_two_queues_are_told_apart() -> None:
    def scenario(sim: Simulation) -> None:
        for _ in range(2):
            iq = sim.queue()
            sim.spawn(produce, iq.get_producer(), 1)
            sim.spawn(consume, iq.get_consumer(), [])

    text = report(scenario)
    assert "\nqueue 1: open, not done" in text
    assert "\nqueue 2: open, not done" in text


def test_a_long_table_is_shown_without_its_middle() -> None:
    def scenario(sim: Simulation) -> Callable[[], None]:
        iq = sim.queue()
        sim.spawn(produce, iq.get_producer(), *range(100))
        sim.spawn(consume, iq.get_consumer(), [])
        iq.close()

        def check() -> None:
            raise AssertionError("too long")

        return check

    rows = report(scenario).splitlines()
    first = next(n for n, row in enumerate(rows) if row.startswith("  1  "))
    assert rows[first + 30].strip() == "(143 more steps)"
    assert rows[first + 31].startswith("174  ")
    assert rows[first + 60].startswith("203  ")

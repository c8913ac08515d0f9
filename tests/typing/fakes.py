"""`FakeQueue`: what it is made of, where it serves, and what its history consists of."""

from __future__ import annotations

from typing import assert_type

from iterable_queue import Consumer, IterableQueue, Producer, Statistics, Worker
from iterable_queue.testing import (
    Closed,
    FakeQueue,
    Opened,
    Put,
    QueueEvent,
    Taken,
    TimedOut,
    Unreadable,
    VirtualClock,
    WouldBlock,
    check_queue,
)


def made() -> None:
    assert_type(FakeQueue[int](), FakeQueue[int])
    assert_type(FakeQueue([1, 2]), FakeQueue[int])
    assert_type(FakeQueue("abc", maxsize=3, pickled=False), FakeQueue[str])
    assert_type(FakeQueue(range(3), clock=VirtualClock()), FakeQueue[int])
    assert_type(FakeQueue(n for n in range(3)), FakeQueue[int])
    assert_type(FakeQueue[int](on_failure="cancel", redeliver=True), FakeQueue[int])
    assert_type(FakeQueue[int](None), FakeQueue[int])
    assert_type(FakeQueue[int].threaded(3), FakeQueue[int])
    wider: FakeQueue[int | None] = FakeQueue([1, 2])
    inferred: FakeQueue[str] = FakeQueue()
    print(wider, inferred)


def made_wrongly() -> None:
    FakeQueue[int](["1"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    FakeQueue[int](3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    FakeQueue[int]([], 3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    FakeQueue[int](maxsize="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    FakeQueue[int](pickled="no")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    FakeQueue[int](on_failure="ignore")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    FakeQueue[int](context=None)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    FakeQueue[int](clock=0.0)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def fill(out: Producer[int]) -> None:
    out.put(1)


def drain(source: Consumer[int]) -> None:
    print(source.get())


def walk(tree: Worker[int]) -> None:
    tree.put(tree.get())


def run(iq: IterableQueue[int]) -> None:
    fill(iq.get_producer())


def it_serves_what_users_annotate(ints: FakeQueue[int], texts: FakeQueue[str]) -> None:
    fill(ints.get_producer())
    fill(ints.get_worker())
    drain(ints.get_consumer())
    walk(ints.get_worker())
    run(ints)
    fill(texts.get_producer())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    drain(texts.get_consumer())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    walk(texts.get_worker())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    run(texts)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fill(ints.get_consumer())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    drain(ints.get_producer())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def it_is_invariant(ints: FakeQueue[int]) -> None:
    objects: FakeQueue[object] = ints  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    bools: IterableQueue[bool] = ints  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    real: FakeQueue[int] = IterableQueue[int]()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    print(objects, bools, real)


def it_has_what_a_queue_has(fake: FakeQueue[int]) -> None:
    assert_type(fake.get_producer(), Producer[int])
    assert_type(fake.get_consumer(), Consumer[int])
    assert_type(fake.get_worker(), Worker[int])
    assert_type(fake.statistics(), Statistics)
    assert_type(fake.explain(), str)
    assert_type(fake.join(1.0), bool)
    with fake as entered:
        assert_type(entered, FakeQueue[int])
    check_queue(FakeQueue, threads=False, pickled=True, clock=lambda: 0.0)


def what_happened(fake: FakeQueue[int]) -> None:
    assert_type(fake.put_items, list[int])
    assert_type(fake.taken_items, list[int])
    assert_type(fake.history, tuple[QueueEvent[int], ...])
    for event in fake.history:
        assert_type(event.number, int)
        if isinstance(event, Put):
            assert_type(event, Put[int])
            assert_type(event.item, int | Unreadable)
        if isinstance(event, TimedOut):
            assert_type(event.seconds, float)
        print(event.item)  # type: ignore[union-attr]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownArgumentType]
    fake.history = ()  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    fake.put_items = []  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def events_are_frozen_and_of_known_kinds() -> None:
    put = Put("producer", 1, "x")
    assert_type(put, Put[str])
    objects: Put[object] = put
    ints: Put[int] = put  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    taken: Taken[str] = put  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    put.item = "y"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    put.number = 2  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    Opened("reader", 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Closed("queue")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    print(objects, ints, taken)


def clocks(fake: FakeQueue[int]) -> None:
    assert_type(fake.clock, VirtualClock)
    assert_type(fake.clock.now, float)
    fake.clock.advance(1)
    fake.clock.advance(0.5)
    fake.clock.now = 3.0  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    fake.clock.advance("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def kills(
    fake: FakeQueue[int], out: Producer[int], source: Consumer[int], both: Worker[int]
) -> None:
    fake.kill(out)
    fake.kill(source)
    fake.kill(both)
    fake.kill(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def it_is_an_assertion_error(error: WouldBlock) -> None:
    failed: AssertionError = error
    print(failed)

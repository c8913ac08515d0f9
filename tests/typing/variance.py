"""Which endpoint may stand for which: the one that takes more, and the one that gives less.

`bool` is a subclass of `int`, and `int` of `object`.
"""

from __future__ import annotations

from iterable_queue import Consumer, IterableQueue, Producer, Worker


def producers_are_contravariant(ints: Producer[int]) -> None:
    """What takes every int takes every bool, but not every object."""
    bools: Producer[bool] = ints
    objects: Producer[object] = ints  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    print(bools, objects)


def consumers_are_covariant(ints: Consumer[int]) -> None:
    """What gives ints gives objects, but need not give bools."""
    objects: Consumer[object] = ints
    bools: Consumer[bool] = ints  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    print(objects, bools)


def workers_are_invariant(ints: Worker[int]) -> None:
    """They do both."""
    objects: Worker[object] = ints  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    bools: Worker[bool] = ints  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    same: Worker[int] = ints
    print(objects, bools, same)


def queues_are_invariant(ints: IterableQueue[int]) -> None:
    """They give out both ends."""
    objects: IterableQueue[object] = ints  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    bools: IterableQueue[bool] = ints  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    same: IterableQueue[int] = ints
    print(objects, bools, same)


def a_worker_serves_as_a_consumer(ints: Worker[int]) -> None:
    same: Consumer[int] = ints
    objects: Consumer[object] = ints
    bools: Consumer[bool] = ints  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    print(same, objects, bools)


def a_worker_serves_as_a_producer(ints: Worker[int]) -> None:
    same: Producer[int] = ints
    bools: Producer[bool] = ints
    objects: Producer[object] = ints  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    print(same, bools, objects)


def one_end_is_not_the_other(out: Producer[int], source: Consumer[int]) -> None:
    wrong_out: Producer[int] = source  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    wrong_source: Consumer[int] = out  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    neither: Worker[int] = out  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    nor: Worker[int] = source  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    print(wrong_out, wrong_source, neither, nor)


def fill(out: Producer[bool]) -> None:
    out.put(True)


def show(source: Consumer[object]) -> None:
    print(source.get())


def functions_take_what_serves(iq: IterableQueue[int]) -> None:
    fill(iq.get_producer())
    show(iq.get_consumer())
    fill(iq.get_worker())
    show(iq.get_worker())
    fill(iq.get_consumer())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    show(iq.get_producer())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

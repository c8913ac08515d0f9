"""How queues are made, what they are then, and what they give."""

from __future__ import annotations

import multiprocessing
import queue
from multiprocessing import get_context
from typing import Any, assert_type

import billiard  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]
import multiprocess

from iterable_queue import (
    Consumer,
    Context,
    Done,
    Empty,
    Full,
    IterableQueue,
    Producer,
    Statistics,
    SupportsPutGet,
    Worker,
)

# For processes


def made_for_processes() -> None:
    assert_type(IterableQueue[int](), IterableQueue[int])
    assert_type(IterableQueue[int](10), IterableQueue[int])
    assert_type(IterableQueue[int](maxsize=10), IterableQueue[int])
    assert_type(
        IterableQueue[str | None](context=None, on_failure="raise", redeliver=True),
        IterableQueue[str | None],
    )
    IterableQueue[int](on_failure="cancel")
    inferred: IterableQueue[int] = IterableQueue()
    assert_type(inferred, IterableQueue[int])


def made_wrongly() -> None:
    IterableQueue[int]("10")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    IterableQueue[int](None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    IterableQueue[int](1.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    IterableQueue[int](0, get_context())  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    IterableQueue[int](on_failure="ignore")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    IterableQueue[int](on_failure=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    IterableQueue[int](redeliver="yes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    IterableQueue[int](timeout=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    IterableQueue[int, str]()  # type: ignore[misc]  # pyright: ignore[reportInvalidTypeArguments]


def what_on_failure_says_is_one_of_two(said: str) -> None:
    IterableQueue[int](on_failure=said)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# context=


class HasRLock:
    """A context of one's own."""

    def RLock(self) -> object:
        return multiprocessing.RLock()


class HasLock:
    """Not enough of one."""

    def Lock(self) -> object:
        return multiprocessing.Lock()


def contexts() -> None:
    assert_type(IterableQueue[int](context=multiprocessing), IterableQueue[int])
    IterableQueue[int](context=get_context())
    IterableQueue[int](context=get_context("fork"))
    IterableQueue[int](context=get_context("spawn"))
    IterableQueue[int](context=get_context("forkserver"))
    IterableQueue[int](context=multiprocess)
    IterableQueue[int](context=multiprocess.get_context())
    IterableQueue[int](context=multiprocess.get_context("spawn"))
    IterableQueue[int](context=HasRLock())
    known: list[Context] = [multiprocessing, get_context("spawn"), multiprocess, HasRLock()]
    print(known)


def contexts_without_types() -> None:
    """What a checker knows nothing of is taken on trust; so a library without stubs is accepted.

    pyright reads the source of such a module, where it finds no RLock; hence the `Any`.
    """
    untyped: Any = billiard
    assert_type(IterableQueue[int](context=untyped), IterableQueue[int])
    assert_type(IterableQueue[int](context=untyped.get_context("spawn")), IterableQueue[int])


def no_contexts() -> None:
    IterableQueue[int](context=object())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    IterableQueue[int](context="spawn")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    IterableQueue[int](context=HasLock())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    IterableQueue[int](context=queue)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    IterableQueue[int](context=multiprocessing.Queue)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# For threads


def made_for_threads() -> None:
    assert_type(IterableQueue[int].threaded(), IterableQueue[int])
    assert_type(IterableQueue[int].threaded(3), IterableQueue[int])
    assert_type(IterableQueue[int].threaded(maxsize=3), IterableQueue[int])
    IterableQueue[int].threaded("3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    IterableQueue[int].threaded(context=None)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    wrong: IterableQueue[str] = IterableQueue[int].threaded()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    print(wrong)


class Stack:
    """A queue of one's own, with no more than what is used of it."""

    def __init__(self) -> None:
        self._items: list[str] = []

    def put(self, item: str) -> None:
        self._items.append(item)

    def get(self, block: bool = True) -> str:
        return self._items.pop()


class NoGet:
    def put(self, item: str) -> None: ...


class NoPut:
    def get(self, block: bool = True) -> str:
        return ""


class PutTakesOthers:
    """What it gives is not what it takes."""

    def put(self, item: int) -> None: ...

    def get(self, block: bool = True) -> str:
        return ""


def made_over_a_queue() -> None:
    """The type of the items is known from the queue underneath."""
    assert_type(IterableQueue.over(queue.Queue[int]()), IterableQueue[int])
    assert_type(IterableQueue.over(queue.SimpleQueue[int]()), IterableQueue[int])
    assert_type(IterableQueue.over(queue.LifoQueue[bytes](5)), IterableQueue[bytes])
    assert_type(
        IterableQueue.over(queue.PriorityQueue[tuple[int, str]]()), IterableQueue[tuple[int, str]]
    )
    assert_type(IterableQueue.over(Stack()), IterableQueue[str])
    assert_type(IterableQueue[int].over(queue.LifoQueue[int]()), IterableQueue[int])
    heap: IterableQueue[tuple[int, str]] = IterableQueue.over(queue.PriorityQueue())
    assert_type(heap, IterableQueue[tuple[int, str]])
    mine: SupportsPutGet[str] = Stack()
    print(mine)


def made_over_no_queue(some: object) -> None:
    IterableQueue[str].over(some)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    IterableQueue[str].over(NoGet())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    IterableQueue[str].over(NoPut())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    IterableQueue[str].over()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    strings = IterableQueue.over(queue.LifoQueue[str]())
    mixed: SupportsPutGet[str] = PutTakesOthers()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    wrong: IterableQueue[int] = strings  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    print(wrong, mixed)


# What a queue gives


def endpoints(iq: IterableQueue[int]) -> None:
    assert_type(iq.get_producer(), Producer[int])
    assert_type(iq.get_consumer(), Consumer[int])
    assert_type(iq.get_worker(), Worker[int])
    iq.get_producer().put("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    iq.get_worker().put("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def a_queue_has_no_items_of_its_own(iq: IterableQueue[int]) -> None:
    iq.put(1)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    iq.get()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    iter(iq)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    len(iq)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def the_end(iq: IterableQueue[int]) -> None:
    iq.close()
    iq.cancel()
    iq.cancel(None)
    iq.cancel(error=KeyboardInterrupt())
    assert_type(iq.join(), bool)
    assert_type(iq.join(1), bool)
    assert_type(iq.join(timeout=0.5), bool)
    iq.cancel("why")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    iq.cancel(ValueError)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    iq.join("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def with_gives_the_queue_itself() -> None:
    with IterableQueue[int]() as iq:
        assert_type(iq, IterableQueue[int])


def with_lets_exceptions_through(iq: IterableQueue[int]) -> int:
    with iq:
        return 1


def looking(iq: IterableQueue[int]) -> None:
    assert_type(iq.qsize(), int)
    assert_type(iq.empty(), bool)
    assert_type(iq.full(), bool)
    assert_type(iq.explain(), str)
    stats = iq.statistics()
    assert_type(stats, Statistics)
    assert_type(
        (stats.open_producers, stats.open_consumers, stats.open_workers), tuple[int, int, int]
    )
    assert_type((stats.put, stats.taken, stats.finished), tuple[int, int, int])
    assert_type((stats.queued, stats.highest_queued), tuple[int, int])
    assert_type((stats.lost, stats.redelivered, stats.dropped), tuple[int, int, int])
    assert_type((stats.blocked_producers, stats.blocked_consumers), tuple[int, int])
    assert_type(stats.failures, int)
    assert_type(stats.state, str)
    stats.put = 3  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def the_exceptions_are_reachable_from_the_class(iq: IterableQueue[int]) -> None:
    try:
        iq.get_consumer().get(timeout=1)
    except IterableQueue.Done as done:
        assert_type(done, Done)
    except IterableQueue.Empty as empty:
        assert_type(empty, Empty)
    except iq.Full as full:
        assert_type(full, Full)

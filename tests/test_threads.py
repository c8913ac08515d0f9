"""The channel for threads: over each queue of the standard library, and what others bring."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from queue import Empty, Full, LifoQueue, PriorityQueue, Queue, SimpleQueue
from typing import Any

import pytest

from iterable_queue import IterableQueue, SupportsPutGet
from iterable_queue._cells import HEAD_SIZE, TAKEN
from iterable_queue._channel import EMPTY
from iterable_queue._channels.threads import ThreadChannel


class PutAndGet:
    """No more than what is asked of a queue: not even a size."""

    def __init__(self) -> None:
        self.items = list[Any]()

    def put(self, item: Any) -> None:
        self.items.append(item)

    def get(self, block: bool = True) -> Any:
        assert not block, "never waits inside"
        if not self.items:
            raise Empty
        return self.items.pop(0)


class Sized(PutAndGet):
    def qsize(self) -> int:
        return len(self.items)


class Shouting(Queue[str]):
    """Overrides the hook for putting."""

    def _put(self, item: str) -> None:
        super()._put(item.upper())


class Backwards(Queue[Any]):
    """Overrides the hook for getting."""

    def _get(self) -> Any:
        return self.queue.pop()


class Doubtful(Queue[Any]):
    """Overrides the hook for the size: what begins with _ doesn't count."""

    def _qsize(self) -> int:
        return sum(not str(item).startswith("_") for item in self.queue)


class OwnContainer(Queue[Any]):
    """Overrides all hooks."""

    def _init(self, maxsize: int) -> None:
        self.stock = deque[Any]()

    def _qsize(self) -> int:
        return len(self.stock)

    def _put(self, item: Any) -> None:
        self.stock.appendleft(item)

    def _get(self) -> Any:
        return self.stock.pop()


class Heapless(PriorityQueue[Any]):
    """A priority queue whose items come in the order of their text."""

    def _get(self) -> Any:
        first = min(self.queue, key=str)
        self.queue.remove(first)
        return first


class LifoByName(LifoQueue[Any]):
    """Overrides nothing."""


def made(queue: Any) -> tuple[list[int], ThreadChannel]:
    head = [0] * HEAD_SIZE
    return head, ThreadChannel(head, queue)


def take(head: list[int], channel: ThreadChannel) -> Any:
    """As the ledger does: look, count, forget."""
    item = channel.peek()
    if item is not EMPTY:
        head[TAKEN] += 1
        channel.stash[:] = ()
    return item


FIFO = list[Any]
QUEUES: dict[str, tuple[Callable[[], Any], Callable[[list[int]], list[int]]]] = {
    "SimpleQueue": (SimpleQueue, FIFO),
    "Queue": (Queue, FIFO),
    "LifoQueue": (LifoQueue, lambda items: items[::-1]),
    "PriorityQueue": (PriorityQueue, sorted),
    "put and get": (PutAndGet, FIFO),
    "with qsize": (Sized, FIFO),
    "Backwards": (Backwards, lambda items: items[::-1]),
    "Doubtful": (Doubtful, FIFO),
    "OwnContainer": (OwnContainer, FIFO),
    "Heapless": (Heapless, lambda items: sorted(items, key=str)),
    "LifoByName": (LifoByName, lambda items: items[::-1]),
}


@pytest.mark.parametrize("name", QUEUES)
def test_the_order_is_the_queues_own(name: str) -> None:
    make, order = QUEUES[name]
    head, channel = made(make())
    items = random.Random(name).sample(range(50), 20)
    assert channel.peek() is EMPTY
    for count, item in enumerate(items):
        assert channel.size() == count
        channel.append(item, 1)
    for left in range(20, 0, -1):
        assert channel.size() == left
        assert channel.peek() == channel.peek(), "looking takes nothing"
        assert channel.size() == left
        assert take(head, channel) == order(items)[20 - left]
    assert channel.size() == 0
    assert channel.peek() is EMPTY


def over(queue: SupportsPutGet[int]) -> IterableQueue[int]:
    return IterableQueue[int].over(queue)


@pytest.mark.parametrize("name", QUEUES)
def test_whole_queues(name: str) -> None:
    """The same by way of the public calls."""
    make, order = QUEUES[name]
    queue = over(make())
    out, source = queue.get_producer(), queue.get_consumer()
    items = random.Random(name).sample(range(50), 20)
    out.put_many(items)
    out.close()
    queue.close()
    assert source.qsize() == 20
    assert list(source) == order(items)
    assert queue.join(1)


@pytest.mark.parametrize("name", QUEUES)
def test_what_is_there_already_counts(name: str) -> None:
    make, order = QUEUES[name]
    queue = make()
    if not hasattr(queue, "qsize"):
        return  # it can't say
    for item in (3, 1, 2):
        queue.put(item)
    head, channel = made(queue)
    assert channel.size() == 3
    assert [take(head, channel) for _ in range(4)] == [*order([3, 1, 2]), EMPTY]


@pytest.mark.parametrize("name", QUEUES)
def test_an_interrupt_after_the_look_loses_nothing(name: str) -> None:
    """Until it counts as taken, an item is still the next one."""
    make, order = QUEUES[name]
    head, channel = made(make())
    for item in (3, 1, 2):
        channel.append(item, 1)
    channel.peek()
    assert channel.size() == 3
    assert take(head, channel) == order([3, 1, 2])[0]
    channel.peek()
    head[TAKEN] += 1  # and interrupted before it is forgotten
    assert channel.size() == 1
    assert take(head, channel) == order([3, 1, 2])[2]
    assert channel.size() == 0


@pytest.mark.parametrize("name", QUEUES)
def test_clear(name: str) -> None:
    head, channel = made(QUEUES[name][0]())
    for item in (3, 1, 2):
        channel.append(item, 1)
    channel.peek()
    channel.clear()
    assert channel.size() == 0
    assert channel.peek() is EMPTY
    channel.append(9, 1)
    assert take(head, channel) == 9


def test_only_a_simple_queue_is_called_without_the_lock() -> None:
    for name, (make, _) in QUEUES.items():
        _, channel = made(make())
        assert channel.atomic == (name == "SimpleQueue")
        assert (channel.pull_into([]) is not None) == channel.atomic


def test_pulling_moves_one_item_or_raises() -> None:
    _, channel = made(SimpleQueue[int]())
    pending = list[Any]()
    pull = channel.pull_into(pending)
    assert pull is not None
    for _ in range(2):
        with pytest.raises(Empty):
            pull()
        assert pending == []
    channel.append(1, 0)
    channel.append(2, 0)
    pull()
    assert pending == [1]
    assert channel.size() == 1
    pull()
    assert pending == [1, 2]


def test_another_thread_may_be_faster() -> None:
    """Between the size and the taking, without the lock: then there is nothing."""

    class Stolen(SimpleQueue[int]):
        def qsize(self) -> int:
            return 1

    _, channel = made(Stolen())
    assert channel.peek() is EMPTY


def test_unwrap_gives_what_append_gets() -> None:
    head, channel = made(LifoQueue[int]())
    channel.append("a", 5)
    item = take(head, channel)
    channel.append(*channel.unwrap(item))
    assert take(head, channel) == "a"


def test_the_hook_for_putting_is_called() -> None:
    head, channel = made(Shouting())
    channel.append("quiet", 1)
    assert take(head, channel) == "QUIET"


def test_the_hook_for_the_size_is_called() -> None:
    head, channel = made(Doubtful())
    channel.append("_hidden", 1)
    assert channel.size() == 0
    assert channel.peek() is EMPTY
    channel.append("seen", 1)
    assert channel.size() == 1
    assert take(head, channel) == "_hidden"


def test_the_queues_own_lock_is_passed_by() -> None:
    """Its condition is Python code, in which a signal handler could leave it held."""
    queue = Queue[int]()
    head, channel = made(queue)
    with queue.mutex:  # would wait for ever otherwise
        channel.append(1, 0)
        assert channel.size() == 1
        assert take(head, channel) == 1


class Unorderable:
    """Two of these can't be compared."""


def test_a_heap_does_not_keep_what_it_can_not_order() -> None:
    queue = PriorityQueue[Any]()
    head, channel = made(queue)
    for item in (5, 3, 4, 1, 2):
        channel.append(item, 1)
    for _ in range(3):
        with pytest.raises(TypeError, match="not supported"):
            channel.append(Unorderable(), 1)
        assert channel.size() == 5
    assert [take(head, channel) for _ in range(6)] == [1, 2, 3, 4, 5, EMPTY]


def test_a_heap_of_one_unorderable() -> None:
    head, channel = made(PriorityQueue[Any]())
    first = Unorderable()
    channel.append(first, 1)
    with pytest.raises(TypeError):
        channel.append(Unorderable(), 1)
    assert take(head, channel) is first
    assert channel.size() == 0


def test_the_same_unorderable_twice() -> None:
    head, channel = made(PriorityQueue[Any]())
    item = Unorderable()
    channel.append(item, 1)
    with pytest.raises(TypeError):
        channel.append(item, 1)
    assert channel.size() == 1
    assert take(head, channel) is item
    assert channel.peek() is EMPTY


def test_an_item_that_is_there_already_stays_when_it_is_refused() -> None:
    """What is taken back is told by what the heap holds, not by equality."""

    class Fickle:
        refuses = False

        def __init__(self, rank: int) -> None:
            self.rank = rank

        def __lt__(self, other: Fickle) -> bool:
            if self.refuses:
                raise ValueError("not now")
            return self.rank < other.rank

    head, channel = made(PriorityQueue[Any]())
    items = [Fickle(n) for n in (2, 1, 3)]
    for item in items:
        channel.append(item, 1)
    late = Fickle(0)
    late.refuses = True
    with pytest.raises(ValueError, match="not now"):
        channel.append(late, 1)
    assert channel.size() == 3
    assert [take(head, channel).rank for _ in range(3)] == [1, 2, 3]


def test_what_a_queue_refuses_is_not_kept() -> None:
    """A queue that says no before it has taken the item, which is not a heap."""

    class Choosy(LifoQueue[int]):
        def _put(self, item: int) -> None:
            if item < 0:
                raise ValueError("no negative numbers")
            super()._put(item)

    head, channel = made(Choosy())
    channel.append(1, 1)
    channel.append(1, 1)
    with pytest.raises(ValueError, match="no negative"):
        channel.append(-1, 1)
    assert channel.size() == 2
    assert [take(head, channel) for _ in range(3)] == [1, 1, EMPTY]


def test_a_queue_without_a_list_that_refuses() -> None:
    class Brim(PutAndGet):
        def put(self, item: Any) -> None:
            if len(self.items) == 1:
                raise Full
            super().put(item)

    head, channel = made(Brim())
    channel.append(1, 1)
    with pytest.raises(Full):
        channel.append(2, 1)
    assert channel.size() == 1
    assert take(head, channel) == 1
    channel.append(3, 1)
    assert take(head, channel) == 3

"""The channel for threads of one process: any in-process queue of the standard library's kind.

Items are handed over as they are. The queue underneath is only ever called with the ledger's lock
held, so its own locking is passed by where that can be done (`queue.Queue` and what derives from
it have documented hooks for that): it is Python code in which a signal handler that raises can
leave a lock held. A `SimpleQueue`, the default, is C code and called without the lock.

An item leaves the queue underneath in one C call that stores it in `stash` as well. It stays
there until the ledger counts it as taken, so an interrupt between the two loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from heapq import heapify, heappop
from itertools import repeat, starmap
from queue import Empty, LifoQueue, PriorityQueue, Queue, SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from iterable_queue._cells import TAKEN
from iterable_queue._channel import EMPTY

if TYPE_CHECKING:
    from iterable_queue._seams import Cells


class ThreadChannel:
    """Items on *queue*, whose `head` is the ledger's.

    A `SimpleQueue` is atomic by itself. Any other queue is touched with the lock held.
    """

    __slots__ = ("_at", "_head", "_pull", "_put", "_queue", "_size", "_take", "atomic", "stash")

    def __init__(self, head: Cells, queue: Any) -> None:
        self.atomic = isinstance(queue, SimpleQueue)
        self.stash: list[Any] = []
        self._head = head
        self._queue = queue
        self._at = -1
        """The value of TAKEN for which `stash` was filled: at any other, it has been taken."""
        self._put: Callable[[Any], object]
        self._take: Callable[[], Any]
        self._put, self._take, self._size = _calls(queue)
        self._pull = self._puller(self.stash)

    def _puller(self, into: list[Any]) -> Callable[[], object]:
        """Moves one item to *into*. `map` and `starmap` are C: no signal handler runs between."""
        return map(into.append, starmap(self._take, repeat(()))).__next__

    def size(self) -> int:
        return self._size() + (len(self.stash) if self._at == self._head[TAKEN] else 0)

    def append(self, payload: Any, producer: int) -> None:
        before = self._size()
        try:
            self._put(payload)
        except Exception:
            if self._size() > before:
                self._take_back(payload)
            raise

    def _take_back(self, payload: Any) -> None:
        """A heap whose items can't be compared keeps the one that it has just refused."""
        items: Any = getattr(self._queue, "queue", ())
        for index in reversed(range(len(items))):
            if items[index] is payload:
                del items[index]
                break
        if isinstance(self._queue, PriorityQueue):
            heapify(items)

    def peek(self) -> Any:
        stash = self.stash
        taken = self._head[TAKEN]
        if self._at != taken:
            stash[:] = ()
            self._at = taken
        if not stash:
            if not self.size():
                return EMPTY
            try:
                self._pull()
            except Empty:  # an atomic queue, and another thread was faster
                return EMPTY
        return stash[0]

    def pull_into(self, pending: list[Any]) -> Callable[[], object] | None:
        return self._puller(pending) if self.atomic else None

    def push_from(self, pending: list[Any]) -> Callable[[], object] | None:
        return map(self._put, map(pending.pop, repeat(0))).__next__ if self.atomic else None

    def unwrap(self, payload: Any) -> tuple[Any, int]:
        return payload, 0

    def recheck(self) -> bool:
        return self.atomic  # threads of one process see each other's stores

    def clear(self) -> None:
        while self.peek() is not EMPTY:
            self.stash[:] = ()


class _Hooks(NamedTuple):
    """What `queue.Queue` documents for those who derive from it to override."""

    put: Callable[[Any], object]
    get: Callable[[], Any]
    qsize: Callable[[], int]


def _hooks(q: Any) -> _Hooks:
    return _Hooks(q._put, q._get, q._qsize)


def _calls(q: Any) -> _Hooks:
    """How to put one item, to take one (of at least one), and to count, without other locks."""
    kind = cast("Any", type(q))
    if issubclass(kind, SimpleQueue):
        return _Hooks(q.put, q.get_nowait, q.qsize)
    if not issubclass(kind, Queue):
        counted = _Counted(q)
        return _Hooks(counted.put, counted.take, counted.size)
    # The standard library's own three, straight to their containers' C methods; what a subclass
    # overrides is called.
    put, take, size = _hooks(q)
    mine, fifo, lifo, heap = map(
        _hooks, cast("tuple[Any, ...]", (kind, Queue, LifoQueue, PriorityQueue))
    )
    if mine.put in (fifo.put, lifo.put):
        put = q.queue.append
    if mine.get is fifo.get:
        take = q.queue.popleft
    elif mine.get is lifo.get:
        take = q.queue.pop
    elif mine.get is heap.get:
        take = partial(heappop, q.queue)
    if mine.qsize in (fifo.qsize, lifo.qsize, heap.qsize):
        size = q.queue.__len__
    return _Hooks(put, take, size)


class _Counted:
    """Some other queue, which need not be able to say how much it holds."""

    def __init__(self, q: Any) -> None:
        self._q = q
        qsize = getattr(q, "qsize", None)
        self._n = 0
        if callable(qsize):
            self._n = int(q.qsize())

    def put(self, item: Any) -> None:
        self._q.put(item)
        self._n += 1

    def take(self) -> Any:
        item = self._q.get(False)
        self._n -= 1
        return item

    def size(self) -> int:
        return self._n

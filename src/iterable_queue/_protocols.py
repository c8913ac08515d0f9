"""The whole vocabulary on one screen: what the two ends of a queue can do.

Annotate your functions with these protocols, not with the classes behind them: the endpoints of a
real queue satisfy them, and so does a double that you write for a test. Data flows from a
`Producer` to a `Consumer`; a `Worker` is a consumer that may also put on the same queue.
"""

# Annotations are evaluated, not kept as strings: of a NamedTuple `typing` would compile each one,
# which took 2 of the 12 ms of `import iterable_queue`.

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from types import TracebackType
from typing import NamedTuple, Protocol, Self, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)


class Endpoint(Protocol):
    """What every endpoint can do."""

    @property
    def closed(self) -> bool:
        """True once this endpoint takes part no more."""
        ...

    def close(self) -> None:
        """Take part no more. Closing again does nothing."""

    def qsize(self) -> int:
        """The number of items put and not taken: exact at some moment during the call."""
        ...

    def empty(self) -> bool:
        """`qsize() == 0`."""
        ...

    def full(self) -> bool:
        """`qsize() >= maxsize`; always False on an unbounded queue."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None: ...


class Producer(Endpoint, Protocol[T_contra]):
    """The end at which items are put.

    Leaving `with producer:` closes it; leaving by an exception fails it, and the consumers are
    told why.
    """

    def put(self, item: T_contra, block: bool = True, timeout: float | None = None) -> None:
        """Put *item*; it is visible to every consumer when the call returns.

        *timeout* is in seconds, one deadline for the whole call. Raises `Full` where there is no
        room in time, `ProducerClosed`, `ConsumersGone`, `Cancelled`, or whatever pickling the
        item raises; then nothing was put.
        """

    def put_nowait(self, item: T_contra) -> None:
        """`put(item, block=False)`."""

    def put_many(self, iterable: Iterable[T_contra]) -> None:
        """Put each item of *iterable*, lazily and in order, waiting for room where needed.

        Items become visible as it goes. What was put before an error stays put.
        """

    async def aput(self, item: T_contra, timeout: float | None = None) -> None:
        """`put` from a coroutine: where there is no room, its event loop does other work.

        A call that is cancelled has put nothing; where a server has not answered yet, that is not
        known.
        """

    def fail(self, error: BaseException) -> None:
        """Close, and let the consumers know that what was put is not all, and why."""

    def clone(self) -> "Producer[T_contra]":
        """Another producer on the same queue, counted by itself, even after the queue's close."""
        ...


class Consumer(Endpoint, Protocol[T_co]):
    """The end from which items are taken; iterating over it ends when the queue is done.

    Leaving `with consumer:` closes it, also by `break`. Iterate by `for`, or in a coroutine by
    `async for`.
    """

    def get(self, block: bool = True, timeout: float | None = None) -> T_co:
        """Take the next item; asking for it also finishes what this thread took before.

        *timeout* is in seconds, one deadline for the whole call. Raises `Empty` where nothing
        came in time, `Done` or `ProducerFailed` where nothing can come any more,
        `ConsumerClosed`, `Cancelled`, or `ItemError` for an item that can't be unpickled.
        """
        ...

    def get_nowait(self) -> T_co:
        """`get(block=False)`."""
        ...

    def get_many(self, limit: int) -> Sequence[T_co]:
        """Wait for one item, then take up to *limit* (at least 1) that are there already.

        Raises as `get` does. Where an item can't be unpickled, those before it are returned, and
        the next call raises `ItemError`.
        """
        ...

    async def aget(self, timeout: float | None = None) -> T_co:
        """`get` from a coroutine: where there is nothing, its event loop does other work.

        A call that is cancelled has taken nothing. What *this thread* took before is finished, by
        whichever of its tasks: give each task that takes items a `clone()` of its own.
        """
        ...

    async def aget_many(self, limit: int) -> Sequence[T_co]:
        """`get_many` from a coroutine, as `aget` is `get`."""
        ...

    def clone(self) -> "Consumer[T_co]":
        """Another consumer on the same queue, counted by itself."""
        ...

    def __iter__(self) -> Iterator[T_co]: ...

    def __next__(self) -> T_co: ...

    def __aiter__(self) -> AsyncIterator[T_co]: ...

    async def __anext__(self) -> T_co: ...


class Worker(Consumer[T], Protocol[T]):
    """A consumer that may also put on the same queue: for work that makes more work.

    It counts as an open producer until its first `get`, and from being handed an item until the
    next `get`; so the queue is not done while any worker may still put. Its puts are never
    refused for `maxsize`.
    """

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        """As `Producer.put`, but never refused for `maxsize`."""

    def put_nowait(self, item: T) -> None:
        """`put(item, block=False)`."""

    def put_many(self, iterable: Iterable[T]) -> None:
        """As `Producer.put_many`, but never waiting for room."""

    async def aput(self, item: T, timeout: float | None = None) -> None:
        """As `Producer.aput`, but never refused for `maxsize`."""

    def fail(self, error: BaseException) -> None:
        """Close, and let everyone know that the work is not complete, and why."""

    def clone(self) -> "Worker[T]":
        """Another worker on the same queue, counted by itself."""
        ...


class Context(Protocol):
    """What is used of a multiprocessing-like context (or module) given as `context=`.

    Its `RLock()` must rest on a semaphore that processes share (`_semlock`, as those of
    multiprocessing, multiprocess, billiard and torch.multiprocessing do). Where it also has
    `reducer`, or its package a module `reduction`, items are pickled with that module's
    `ForkingPickler`.
    """

    def RLock(self) -> object:
        """A new lock of the context's kind."""
        ...


class SupportsPutGet(Protocol[T]):
    """What is used of a queue given to `IterableQueue.over`."""

    def put(self, item: T, /) -> object:
        """Put one item; never called when the queue says that it is full."""
        ...

    def get(self, block: bool = ..., /) -> T:
        """Take one item; never called when the queue is empty."""
        ...


class Recording(Protocol):
    """What `IterableQueue.record` makes. Leaving `with recording:` closes it.

    Attributes:
        path: the file.
        error: why it ended early (the disk is full, say); None: it did not.
    """

    path: str
    error: Exception | None

    def sample(self) -> None:
        """Take a sample now. Does nothing once the recording has ended, or in a forked child.

        Raises OSError where it can't be written.
        """

    def close(self) -> None:
        """Take a last sample and end. Closing again, or in a forked child, does nothing."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None: ...


class Statistics(NamedTuple):
    """A snapshot of a queue. Each total lies between its values at the call's start and end.

    `put`, `queued`, `taken` and `finished` are of one and the same moment, at which
    `put + redelivered == queued + taken + dropped`.
    """

    open_producers: int
    """Producers that have neither closed nor failed."""
    open_consumers: int
    """Consumers that have not closed."""
    open_workers: int
    """Workers that have not closed."""
    put: int
    """Items put so far."""
    taken: int
    """Items handed to user code so far, or about to be by a call that goes on; one that was handed
    out again, as the process that had it died, counts again."""
    finished: int
    """Items whose taker has asked for the next one, or closed."""
    queued: int
    """Items put and not taken: `qsize()`."""
    lost: int
    """Items that were in the hands of consumers that were killed, and not handed out again."""
    redelivered: int
    """Times that an item was put back because its consumer was killed (`redeliver=True`)."""
    dropped: int
    """Items that `cancel()` dropped."""
    blocked_producers: int
    """Callers waiting in `put` for room."""
    blocked_consumers: int
    """Callers waiting in `get` for an item."""
    highest_queued: int
    """The highest value of `queued` so far."""
    failures: int
    """Producers that failed."""
    state: str
    """`open`, `closed`, `done`, `failed`, `cancelled`, `abandoned` or `broken`."""

"""`IterableQueue`: makes endpoints, and knows when it is done."""

from __future__ import annotations

import queue
from collections.abc import Callable
from os import PathLike
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Final,
    Generic,
    Literal,
    NoReturn,
    Self,
    TypeVar,
    cast,
)

from iterable_queue import _cells as cells_
from iterable_queue import _errors
from iterable_queue._cells import CONSUMER, PRODUCER, QUEUE, WORKER
from iterable_queue._core import (
    ASKED_S,
    Core,
    Mark,
    check_exception,
    check_int,
    check_options,
    thread_core,
    user_line,
)
from iterable_queue._endpoints import ConsumerEndpoint, ProducerEndpoint, WorkerEndpoint
from iterable_queue._errors import WouldDeadlock, missing, not_iterable
from iterable_queue._protocols import (
    Consumer,
    Context,
    Producer,
    Recording,
    Statistics,
    SupportsPutGet,
    Worker,
)

T = TypeVar("T")
U = TypeVar("U")
E = TypeVar("E")

_REMEDIES: Final = {
    **dict.fromkeys(
        ("put", "put_nowait", "put_many", "aput"),
        "put items on a producer, which get_producer() makes",
    ),
    **dict.fromkeys(
        ("get", "get_nowait", "get_many", "aget", "aget_many"),
        "take items from a consumer, which get_consumer() makes",
    ),
    "task_done": "an item is finished when its taker asks for the next one, or closes",
    **dict.fromkeys(
        ("join_thread", "cancel_join_thread"), "there is no feeder thread; put means put"
    ),
}
"""Where to find what queues of the standard library have."""


class IterableQueue(Generic[T]):
    """A queue for a pool of producers and a pool of consumers, which knows when it is done.

    It hands out producer endpoints, on which one can only `put`, and consumer endpoints, over
    which one iterates. Iteration ends when the queue is closed, every producer has closed, and
    nothing is left. Leaving `with iq:` closes the queue; leaving it by an exception cancels it.

    Args:
        maxsize: most items that may be put and not taken; 0 or less: unbounded.
        context: a multiprocessing-like context or module, whose semaphores guard the queue and
            whose pickler carries the items; None: the best channel of the platform.
        on_failure: `"raise"`: what a failed producer had put is delivered, and `ProducerFailed`
            takes the place of `Done`; `"cancel"`: a failure stops everybody at once.
        redeliver: whether an item in the hands of a consumer that is killed is handed out again, or
            counts as lost.
        max_deliveries: with `redeliver=True`, how often an item is handed out at most; the consumer
            that had it then is killed as well, it counts as lost. None: `MAX_DELIVERIES`.

    Raises:
        TypeError, ValueError: for an argument of the wrong kind, by its name.
    """

    Done: ClassVar[type[_errors.Done]] = _errors.Done
    Empty: ClassVar[type[queue.Empty]] = queue.Empty
    Full: ClassVar[type[queue.Full]] = queue.Full

    MAX_DELIVERIES: ClassVar[int] = cells_.MAX_DELIVERIES
    """How often an item is handed out at most with `redeliver=True`, if not said otherwise."""

    __slots__ = ("__weakref__", "_core", "_entered", "_lost", "_maker", "_mark")

    def __init__(
        self,
        maxsize: int = 0,
        *,
        context: Context | None = None,
        on_failure: Literal["raise", "cancel"] = "raise",
        redeliver: bool = False,
        max_deliveries: int | None = None,
    ) -> None:
        deliveries = check_options(maxsize, on_failure, redeliver, max_deliveries)
        from iterable_queue._shared import make_shared_core

        core = make_shared_core(
            context, max(int(maxsize), 0), cancel=on_failure == "cancel", deliveries=deliveries
        )
        self._begin(core, maker=True)

    def _begin(self, core: Core, *, maker: bool, lost: Exception | None = None) -> None:
        self._core = core
        self._entered = 0
        self._maker = maker
        self._lost = lost
        self._mark: Mark | None = None
        if maker:
            core.transact(core.ledger.open, QUEUE, user_line())
            self._mark = core.mark(self, core.queue_slot, 0)
        elif core.ledger.head[cells_.WATCHED] > 0:
            core.watch(self)

    @classmethod
    def threaded(cls, maxsize: int = 0) -> Self:
        """A queue for threads of one process: no pickling, strictly first in, first out."""
        check_int(maxsize, "maxsize")
        self = cls.__new__(cls)
        self._begin(cls._thread_core(queue.SimpleQueue(), max(int(maxsize), 0)), maker=True)
        return self

    @classmethod
    def over(cls, queue: SupportsPutGet[U]) -> IterableQueue[U]:
        """The same for threads over a queue that the caller brings: a `PriorityQueue`, say.

        Its order is the order of items, its `maxsize` (if it has one) that of the result, and what
        is on it counts as put. From then on it belongs to the result: don't use it directly.
        """
        if isinstance(queue, type):
            raise TypeError(f"queue must be a queue, not the class {queue!r}")
        for name in ("put", "get"):
            if not callable(getattr(queue, name, None)):
                raise TypeError(f"queue must have put() and get(), and {queue!r} has no {name}()")
        maxsize = getattr(queue, "maxsize", 0)
        core = cls._thread_core(queue, max(maxsize, 0) if isinstance(maxsize, int) else 0)
        self = cast("IterableQueue[U]", cls.__new__(cls))
        self._begin(core, maker=True)
        return self

    @classmethod
    def connect(
        cls,
        server: str | Callable[[], Any],
        *,
        name: str,
        maxsize: int | None = None,
        on_failure: Literal["raise", "cancel"] | None = None,
        redeliver: bool | None = None,
        max_deliveries: int | None = None,
        serializer: tuple[Callable[[Any], bytes], Callable[[bytes], Any]] | None = None,
        sign: str | bytes | None = None,
        expiry_s: float = 15.0,
        retry_s: float = 30.0,
        keep_s: float = 86_400.0,
        create: bool = True,
    ) -> Self:
        """Create or join the queue *name* on a Redis or Valkey server, for several machines.

        The first to come makes it; others, on any machine, call the same. It is over, and its keys
        are removed, when it is done or cancelled and every process has left it. Needs the extra
        `iterable-queue[redis]`.

        Args:
            server: a URL as the client's (`redis://`, `rediss://`, `unix://`, with user and
                password where there are any), or a function without arguments that returns a
                `redis.Redis` or `redis.RedisCluster`: at the top level of a module, if endpoints
                travel.
            name: of the queue: 1 to 200 characters that can be printed, no braces. Its keys begin
                with `iq:{name}:`.
            maxsize: most items that may be put and not taken; 0 or less: unbounded. None: as the
                queue is, or unbounded if this makes it. Likewise:
            on_failure: as for `IterableQueue`.
            redeliver: likewise.
            max_deliveries: likewise.
            serializer: two functions, from an item to bytes and back; None: pickle, which runs code
                of whoever can write to the server. All must use the same.
            sign: a key that all share: each item is signed (HMAC-SHA256), and one that is not is
                refused, by `ItemError`. None: nothing is signed.
            expiry_s: a process of which the server hears nothing for so long, in seconds, is taken
                for dead; heartbeats come three times as often. 0.3 to 86,400 (a day). The longest
                that anybody asks for counts.
            retry_s: for how long a call begins new attempts to reach the server, in seconds; 0
                (none but the first) to 31,536,000 (a year). Where a process takes part already, as
                it said then.
            keep_s: how long the server keeps a queue in which nobody takes part, in seconds; up to
                half as long again where the last were killed. More than *expiry_s*, or a process
                could be silent for that long and live, while its queue is gone; and no more than
                31,536,000. The longest counts.
            create: False: only join, and never make it: for who works for a queue of others, and
                would wait for ever on one of its own if it came too late.

        Raises:
            QueueClosed: there is no such queue, with *create* False: it is over, or not made yet.
            ChannelBroken: the server can't be reached, the package `redis` is missing, or the name
                is in use for something else, which was left as it was.
            OSError: the server has no memory left (ENOSPC); nothing was changed.
            TypeError, ValueError: for an argument of the wrong kind, or one that is not as the
                queue is, by its name.
            Exception: whatever *server* raises, if it is a function.
        """
        from iterable_queue._channels.redis.connect import connect
        from iterable_queue._channels.redis.settings import check

        settings, options = check(
            server,
            name,
            maxsize=maxsize,
            on_failure=on_failure,
            redeliver=redeliver,
            max_deliveries=max_deliveries,
            serializer=serializer,
            sign=sign,
            expiry_s=expiry_s,
            retry_s=retry_s,
            keep_s=keep_s,
            create=create,
        )
        core, made = connect(settings, options, user_line(), create=create)
        self = cls.__new__(cls)
        self._begin(core, maker=made)
        return self

    @staticmethod
    def _thread_core(queue: Any, maxsize: int) -> Core:
        """What `threaded` and `over` rest on; a subclass may have its own."""
        return thread_core(queue, maxsize)

    # -- endpoints -------------------------------------------------------------------------------

    def get_producer(self) -> Producer[T]:
        """A new producer. Raises `QueueClosed` after `close()`."""
        make: type[ProducerEndpoint[T]] = ProducerEndpoint
        return self._open(make, PRODUCER)

    def get_consumer(self) -> Consumer[T]:
        """A new consumer, after `close()` too. Raises `ConsumersGone` if the queue is abandoned."""
        make: type[ConsumerEndpoint[T]] = ConsumerEndpoint
        return self._open(make, CONSUMER)

    def get_worker(self) -> Worker[T]:
        """A new worker. Raises `QueueClosed` after `close()`."""
        make: type[WorkerEndpoint[T]] = WorkerEndpoint
        return self._open(make, WORKER)

    def _open(self, make: Callable[[Core, int, int], E], kind: int) -> E:
        core = self._here()
        return core.open_endpoint(make, core.open_locked, kind, user_line())

    def _here(self) -> Core:
        """The core, once it is sure that this process may use it."""
        if self._lost is not None:
            raise self._lost
        core = self._core
        core.check_here()
        core.register()
        if core.leaks is not None:
            core.leaks.tell()
        return core

    # -- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """No further producers or workers will be made. Closing again does nothing."""
        core = self._here()
        core.transact(core.close_queue)

    def cancel(self, error: BaseException | None = None) -> None:
        """Stop now: items left are dropped, and every call, blocked or later, raises `Cancelled`.

        *error* says why and becomes its cause. Only the first cancel counts.
        """
        if error is not None:
            check_exception(error)
        core = self._here()
        packed = None if error is None else core.runtime.errors.pack(error)
        core.transact(core.ledger.cancel, packed)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until everything that will ever be put has been taken and finished.

        Args:
            timeout: seconds; None: for ever.

        Returns:
            True, or False if that took longer than *timeout*.

        Raises:
            ProducerFailed, ItemsLost, ConsumersGone, Cancelled, ChannelBroken: it ended otherwise.
            WouldDeadlock: inside this handle's own `with` block, before `close()`.
        """
        deadline = self._core.deadline(True, timeout)
        if self._lost is None and not self._core.arrive(deadline):
            return False
        core = self._here()
        return core.wait(self._join_attempt(core), core.runtime.end, deadline)

    async def ajoin(self, timeout: float | None = None) -> bool:
        """`join`, from a coroutine: its event loop does other work meanwhile."""
        core = self._here()
        deadline = core.deadline(True, timeout)
        return await core.awaiting(self._join_attempt(core), core.runtime.end, deadline)

    def _join_attempt(self, core: Core) -> Callable[[], bool]:
        """What `join` waits for. Raises `WouldDeadlock`."""
        if self._entered and not core.ledger.head[cells_.STATE] & cells_.CLOSED:
            raise WouldDeadlock(
                "join() inside the queue's own `with` block would wait for the block's end, which "
                "closes the queue: leave the block first, or call close()"
            )

        def attempt() -> bool:
            verdict = core.ledger.transact(core.ledger.join_verdict)
            try:
                if isinstance(verdict, Exception):
                    raise verdict
                return verdict
            finally:
                del verdict  # or error, traceback and this frame would keep the queue alive

        return attempt

    def __enter__(self) -> Self:
        self._here()
        self._entered += 1
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._entered -= 1
        if exc is None:
            self.close()
        else:
            self.cancel(exc)

    # -- looking ---------------------------------------------------------------------------------

    def qsize(self) -> int:
        """The number of items put and not taken: exact at some moment during the call."""
        return self._here().ledger.qsize()

    def empty(self) -> bool:
        """`qsize() == 0`."""
        return self.qsize() == 0

    def full(self) -> bool:
        """`qsize() >= maxsize`; always False on an unbounded queue."""
        queued = self.qsize()
        return 0 < self._core.ledger.head[cells_.MAXSIZE] <= queued

    def statistics(self) -> Statistics:
        """A snapshot of the counts."""
        from iterable_queue._explain import statistics

        core = self._here()
        core.look(ASKED_S)
        return core.transact(statistics, core)

    def explain(self) -> str:
        """Why the queue is not done yet, in words that a person can act on."""
        from iterable_queue._explain import explain

        core = self._here()
        core.look(ASKED_S)
        return core.transact(explain, core)

    def record(self, path: str | PathLike[str], *, interval: float | None = 0.1) -> Recording:
        """Write `statistics()` to a file from now on, for `python -m iterable_queue plot`.

        Each sample is a line of JSON. They are taken by a daemon thread of this process, until the
        recording is closed or all is finished; in between, neither the queue nor the process is
        kept alive or waited for. Where the queue is one for processes, it takes no lock; where it
        is on a server, each sample is a round trip.

        Args:
            path: the file; what it holds already is lost.
            interval: seconds between two samples; None: only those that `sample()` takes.

        Raises:
            OSError: the file can't be written.
            TypeError, ValueError: *interval* is not a number above 0, or None.
        """
        from iterable_queue._recorder import FileRecording

        return FileRecording(self._here(), path, interval)

    if not TYPE_CHECKING:  # for type checkers, there is no such thing

        def __getattr__(self, name: str) -> object:
            raise missing(self, name, _REMEDIES)

        def __iter__(self) -> NoReturn:
            raise not_iterable(self)

        def __aiter__(self) -> NoReturn:
            raise not_iterable(self)

    def __repr__(self) -> str:
        if self._lost is not None:
            return f"<IterableQueue (out of reach: {self._lost})>"
        core = self._core
        if core.elsewhere:
            return f"<IterableQueue for the threads of process {core.maker_pid}>"
        try:
            described = core.describe()
        except Exception:  # its file has gone, with cells that this process had not mapped
            described = "out of reach"
        return f"<IterableQueue {described}, made by process {core.maker_pid}>"

    def __reduce__(self) -> tuple[Any, ...]:
        if self._lost is not None:
            raise TypeError(f"{self!r} can't be pickled")
        self._core.check_here()
        return self._core.reduce(self, self._core.queue_slot, 0)

    def __del__(self) -> None:
        core: Core | None = getattr(self, "_core", None)
        if core is not None and self._maker and not core.elsewhere:
            mark, self._mark = self._mark, None  # as of an endpoint
            if core.leaks is None:
                core.drop(core.queue_slot, 0, mark)
                return
            core.leaks.dropped(core, core.queue_slot, 0)
            core.drop(core.queue_slot, 0, mark)
            core.leaks.tell_after_drop()


def new_handle(core: Core, lost: Exception | None) -> IterableQueue[Any]:
    """A queue that was unpickled; *lost* says why it can't be used here, if so."""
    kind = cast("Any", IterableQueue)
    handle: IterableQueue[Any] = kind.__new__(kind)
    handle._begin(core, maker=False, lost=lost)  # pyright: ignore[reportPrivateUsage]
    return handle

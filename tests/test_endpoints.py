"""The endpoints: pickling at the edge, interrupts, several threads, the way in and the way out."""

from __future__ import annotations

import asyncio
import copy
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar, cast

import pytest

from iterable_queue import (
    Cancelled,
    ChannelBroken,
    Consumer,
    ConsumerClosed,
    Done,
    Empty,
    EndpointElsewhere,
    Full,
    ItemError,
    IterableQueue,
    Producer,
    ProducerClosed,
    ProducerFailed,
    WouldDeadlock,
)
from iterable_queue import _cells as cells_
from iterable_queue._channels.log import LogChannel
from iterable_queue._core import Core
from iterable_queue._endpoints import (
    ConsumerEndpoint,
    Endpoint,
    ProducerEndpoint,
    WorkerEndpoint,
    came_from_signal_handler,
)
from iterable_queue._ledger import Ledger
from iterable_queue._runtime import SLICE_S, guard
from iterable_queue._seams import Lock
from tests.conftest import wait_until

Make = Callable[..., IterableQueue[Any]]
GATHER = Core.gather
MAKERS: tuple[Make, ...] = (IterableQueue[Any].threaded, IterableQueue[Any])
KINDS = ("producer", "consumer", "worker")


@pytest.fixture(params=MAKERS, ids=["threads", "processes"])
def make(request: pytest.FixtureRequest) -> Make:
    found: Make = request.param
    return found


def endpoint(queue: IterableQueue[Any], kind: str) -> Any:
    return getattr(queue, f"get_{kind}")()


def core_of(queue: IterableQueue[Any]) -> Core:
    return queue._core


class Interrupt(Exception):
    """What the tests' signal handlers raise: an Exception, so that it may be mistaken for one."""


def interrupt(number: int, frame: object) -> None:
    raise Interrupt


@contextmanager
def handling(handler: Any) -> Generator[None]:
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def time_out_in_a_handler(queue: IterableQueue[Any], call: Callable[..., object]) -> None:
    """*call* is interrupted while it sleeps, by what goes on until its time has run out."""
    timeout_s = 1.0
    until = time.monotonic() + timeout_s
    main, handled = threading.get_ident(), threading.Event()

    def outlast(number: int, frame: object) -> None:
        wait_until(lambda: time.monotonic() > until + 0.1, "the time has run out")
        handled.set()

    def interrupt_once_it_sleeps() -> None:
        def is_asleep() -> bool:
            now = queue.statistics()
            return now.blocked_producers + now.blocked_consumers == 1

        wait_until(is_asleep, "it sleeps")
        signal.pthread_kill(main, signal.SIGUSR1)

    interrupting = threading.Thread(target=interrupt_once_it_sleeps)
    with handling(outlast):
        interrupting.start()
        with pytest.raises((Empty, Full)):
            call(timeout=timeout_s)
    interrupting.join()
    assert handled.is_set()


def opened(what: str) -> str:
    """What unpickling an `Opens` calls."""
    if what == "interrupt" and Opens.armed:
        signal.raise_signal(signal.SIGUSR1)
    if what == "fail":
        raise ValueError("can't be opened")
    if what == "exit":
        sys.exit(0)
    if what == "nested":
        for call in Opens.nested:
            call()
    return what


class Opens:
    """An item at whose unpickling something happens."""

    armed = True
    nested: ClassVar[list[Callable[[], object]]] = []
    """What to call, if there is something."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __reduce__(self) -> Any:
        return opened, (self.what,)


@pytest.fixture(autouse=True)
def disarm() -> Iterator[None]:
    yield
    Opens.armed, Opens.nested = True, []


# Signal handlers


class Handlers:
    def method(self, number: int, frame: object) -> None:
        raise Interrupt

    @staticmethod
    def static(number: int, frame: object) -> None:
        raise Interrupt

    @classmethod
    def of_class(cls, number: int, frame: object) -> None:
        raise Interrupt

    def __call__(self, number: int, frame: object) -> None:
        raise Interrupt

    def deeper(self, number: int, frame: object) -> None:
        self.method(number, frame)


def raising(number: int, frame: object) -> None:
    raise Interrupt


@pytest.mark.parametrize(
    "handler",
    [
        raising,
        Handlers().method,
        Handlers.static,
        Handlers.of_class,
        Handlers(),
        Handlers().deeper,
        lambda number, frame: Handlers().method(number, frame),  # pyright: ignore
        partial(partial(raising)),
    ],
)
def test_an_error_of_a_signal_handler_is_told(handler: Any) -> None:
    with handling(handler):
        with pytest.raises(Interrupt) as told:
            signal.raise_signal(signal.SIGUSR1)
        assert came_from_signal_handler(told.value)
    assert not came_from_signal_handler(told.value), "it is no handler any more"


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL, raising, Handlers()])
def test_other_errors_are_not_of_a_signal_handler(handler: Any) -> None:
    with handling(handler):
        with pytest.raises(ValueError, match="opened") as told:
            opened("fail")
        assert not came_from_signal_handler(told.value)
        assert not came_from_signal_handler(ValueError("never raised"))


def test_a_handler_of_c_code_has_no_frame() -> None:
    with handling(partial(raising)):
        with pytest.raises(ValueError, match="opened") as told:
            opened("fail")
        assert not came_from_signal_handler(told.value)


@pytest.mark.parametrize("call", ["get", "get_nowait", "get_many", "next"])
@pytest.mark.parametrize("handler", [raising, Handlers().method, Handlers()])
def test_an_interrupted_get_returns_the_item_the_next_time(call: str, handler: Any) -> None:
    """The handler raised while the item was unpickled: nothing is lost, nothing counted twice."""
    queue = IterableQueue[Any]()
    out, source = queue.get_producer(), queue.get_consumer()
    out.put_many([Opens("interrupt"), "behind"])
    calls: dict[str, Callable[[], object]] = {
        "get": source.get,
        "get_nowait": source.get_nowait,
        "get_many": lambda: source.get_many(1),
        "next": lambda: next(source),
    }
    with handling(handler):
        for _ in range(2):
            with pytest.raises(Interrupt):
                calls[call]()
            assert queue.qsize() == 1
    Opens.armed = False
    assert source.get() == "interrupt"
    assert source.get() == "behind"
    assert queue.statistics().taken == 2


def test_get_many_after_an_interrupted_get_many() -> None:
    queue = IterableQueue[Any]()
    out, source = queue.get_producer(), queue.get_consumer()
    out.put_many(["a", Opens("interrupt"), "b", "c"])
    with handling(raising), pytest.raises(Interrupt):
        source.get_many(3)
    assert queue.qsize() == 1
    Opens.armed = False
    assert source.get_many(2) == ["a", "interrupt"], "no more than asked for now"
    assert source.get() == "b", "and the rest of what was taken then"
    assert source.get_many(9) == ["c"]
    assert queue.statistics().taken == 4


@pytest.mark.parametrize("kind", ["consumer", "worker"])
def test_what_was_never_returned_goes_to_others_when_the_endpoint_closes(kind: str) -> None:
    queue = IterableQueue[Any]()
    out, source = queue.get_producer(), endpoint(queue, kind)
    other = queue.get_consumer()
    out.put_many(["a", Opens("interrupt"), "b"])
    with handling(raising), pytest.raises(Interrupt):
        source.get_many(3)
    assert queue.qsize() == 0
    source.close()
    assert queue.qsize() == 3
    Opens.armed = False
    out.close()
    queue.close()
    assert list(other) == ["a", "interrupt", "b"]
    stats = queue.statistics()
    assert (stats.put, stats.finished, stats.state) == (3, 3, "done")
    assert queue.join(1)


class Ticking:
    """A queue of one's own whose `get` is interrupted after it took the item."""

    def __init__(self) -> None:
        self.items = list[Any]()
        self.ticks = 0

    def put(self, item: Any, /) -> None:
        self.items.append(item)

    def get(self, block: bool = True, /) -> Any:
        if self.ticks:
            self.ticks -= 1
            raise Interrupt
        return self.items.pop(0)


def test_a_get_that_is_interrupted_inside_the_queue_underneath() -> None:
    brought = Ticking()
    queue = IterableQueue[Any].over(brought)
    out, source = queue.get_producer(), queue.get_consumer()
    out.put_many([1, 2, 3])
    brought.ticks = 2
    for _ in range(2):
        with pytest.raises(Interrupt):
            source.get()
    assert [source.get(), source.get_many(5)] == [1, [2, 3]]
    assert queue.statistics().taken == 3


class Refusing:
    """A queue of one's own whose calls raise."""

    def __init__(self, error: KeyError) -> None:
        self.error = error
        self.items = list[Any]()

    def put(self, item: Any, /) -> None:
        if item == "refused":
            raise self.error
        self.items.append(item)

    def get(self, block: bool = True, /) -> Any:
        if self.items[0] == "kept":
            raise self.error
        return self.items.pop(0)


@pytest.mark.parametrize("key", ["mine", False])
def test_a_key_error_of_the_queue_underneath_comes_through(key: object) -> None:
    """It is not taken for that by which a lock says that it is busy."""
    queue = IterableQueue[Any].over(Refusing(KeyError(key)))
    out, source = queue.get_producer(), queue.get_consumer()
    with out:
        calls: tuple[Callable[[], object], ...] = (
            lambda: out.put("refused"),
            lambda: out.put("refused", timeout=1),
            lambda: out.put_many(["refused"]),
        )
        for call in calls:
            with pytest.raises(KeyError) as told:
                call()
            assert told.value.args == (key,)
        out.put("kept")
        for call in (source.get, source.get_nowait, lambda: source.get(timeout=1)):
            with pytest.raises(KeyError) as told:
                call()
            assert told.value.args == (key,)
        assert queue.qsize() == 1


# A busy lock


@pytest.mark.parametrize("times", [1, 5, 40])
def test_a_busy_lock_is_tried_again(make: Make, times: int) -> None:
    """At once for a while, where that pays; then in slices."""
    queue = make()
    core = core_of(queue)
    runtime: Any = core.runtime
    lock, trylock, within = runtime.lock, runtime.trylock, runtime.lock_within
    left = [0]
    inner = threading.RLock()

    def acquire() -> bool:
        left[0] -= 1
        return left[0] < 0 and inner.acquire()

    busy = guard(acquire, inner.__exit__)

    def lock_within(timeout_s: float) -> object:
        return busy

    runtime.lock = runtime.trylock = busy
    runtime.lock_within = lock_within
    try:
        out, tree = queue.get_producer(), queue.get_worker()
        calls: tuple[Callable[[], object], ...] = (
            lambda: out.put(1),
            tree.get,
            lambda: tree.put(2),
            lambda: out.put_many([3]),
            lambda: tree.get_many(5),
        )
        for call in calls:
            left[0] = times
            call()
            assert left[0] < 0 or core.ledger.channel.recheck()
        assert tree.qsize() == 0
        assert core.ledger.totals()[2] == 3
    finally:
        runtime.lock, runtime.trylock, runtime.lock_within = lock, trylock, within


# A call inside a call


def test_a_get_inside_a_get_is_refused() -> None:
    """By an item's own code, a signal handler or `__del__`, in the same thread."""
    queue = IterableQueue[Any]()
    out, source = queue.get_producer(), queue.get_consumer()
    refused = list[str]()

    def nested() -> None:
        calls: tuple[Callable[[], object], ...] = (source.get, lambda: source.get_many(2))
        for call in calls:
            with pytest.raises(WouldDeadlock, match="was called by what interrupted a get"):
                call()
            refused.append("refused")

    Opens.nested = [nested]
    out.put_many([Opens("nested"), Opens("nested"), "c"])
    assert source.get() == "nested"
    assert source.get_many(2) == ["nested", "c"]
    assert refused == ["refused"] * 4


def test_another_consumers_get_inside_a_get() -> None:
    queue = IterableQueue[Any]()
    out, source, other = queue.get_producer(), queue.get_consumer(), queue.get_consumer()
    got = list[object]()
    Opens.nested = [lambda: got.append(other.get())]
    out.put_many([Opens("nested"), "second"])
    assert source.get() == "nested"
    assert got == ["second"]


def test_a_consumer_that_is_closed_inside_its_get() -> None:
    """What that was about to return is returned; what it holds counts as finished."""
    queue = IterableQueue[Any]()
    out, source = queue.get_producer(), queue.get_consumer()
    Opens.nested = [source.close]
    out.put_many([Opens("nested"), "left"])
    assert source.get() == "nested"
    assert source.closed
    stats = queue.statistics()
    assert (stats.taken, stats.finished, stats.queued) == (1, 1, 1)


# Items that can't be opened


def test_a_bad_item_is_told_once() -> None:
    queue = IterableQueue[Any]()
    out, source = queue.get_producer(), queue.get_consumer()
    out.put_many(["a", Opens("fail"), "b"])
    assert source.get() == "a"
    with pytest.raises(ItemError, match=r"an item of producer 1 .* could not be unpickled") as told:
        source.get()
    assert told.value.producer == 1
    with pytest.raises(ValueError, match="can't be opened"):
        pickle.loads(told.value.payload)
    assert isinstance(told.value.__cause__, ValueError)
    assert f"({len(told.value.payload)} bytes)" in str(told.value)
    assert source.get() == "b"
    stats = queue.statistics()
    assert (stats.taken, stats.finished) == (3, 2)


def test_bad_items_among_many() -> None:
    """Those before it are returned; it is told by the next call."""
    queue = IterableQueue[Any]()
    out, source = queue.get_producer(), queue.get_consumer()
    out.put_many(["a", "b", Opens("fail"), Opens("fail"), "c"])
    assert source.get_many(9) == ["a", "b"]
    for _ in range(2):
        with pytest.raises(ItemError):
            source.get_many(9)
    assert source.get_many(9) == ["c"]
    assert queue.statistics().taken == 5


@pytest.mark.parametrize("maxsize", [0, 9])
def test_an_item_at_which_the_program_would_end_is_a_bad_item(maxsize: int) -> None:
    queue = IterableQueue[Any](maxsize)
    out, source = queue.get_producer(), queue.get_consumer()
    calls: list[Callable[[], object]] = [
        source.get,
        lambda: source.get_many(1),
        lambda: next(source),
        lambda: next(iter(source)),
        lambda: asyncio.run(source.aget()),
    ]
    for call in calls:
        out.put(Opens("exit"))
        with pytest.raises(ItemError, match=r"SystemExit\(0\)"):
            call()
    out.put("behind")
    assert source.get() == "behind"
    assert queue.statistics().taken == len(calls) + 1


def test_a_bad_item_in_a_loop() -> None:
    queue = IterableQueue[Any]()
    with queue.get_producer() as out:
        out.put_many([Opens("fail"), "b"])
    source = queue.get_consumer()
    queue.close()
    with pytest.raises(ItemError):
        list(source)
    assert list(source) == ["b"]
    assert queue.join(1)


# put_many


@pytest.mark.parametrize("count", [0, 1, GATHER - 1, GATHER, GATHER + 1, 3 * GATHER])
@pytest.mark.parametrize("sequence", [list, tuple, iter], ids=["list", "tuple", "iterator"])
def test_all_items_come_in_order(make: Make, count: int, sequence: Callable[..., Any]) -> None:
    queue = make()
    source = queue.get_consumer()
    with queue.get_producer() as out:
        out.put_many(sequence(range(count)))
    queue.close()
    assert list(source) == list(range(count))


def test_items_of_a_generator_are_put_before_the_next_is_asked_for(make: Make) -> None:
    queue = make()
    sizes = list[int]()

    def items() -> Iterator[int]:
        for n in range(5):
            sizes.append(queue.qsize())
            yield n

    queue.get_producer().put_many(items())
    assert sizes == [0, 1, 2, 3, 4]


def test_a_subclass_of_a_list_may_be_a_generator(make: Make) -> None:
    queue = make()

    class Lazy(list[int]):
        def __iter__(self) -> Iterator[int]:
            for n in range(3):
                assert queue.qsize() == n
                yield n

    queue.get_producer().put_many(Lazy())
    assert queue.qsize() == 3


def test_what_the_iterable_raises_comes_through(make: Make) -> None:
    queue = make()
    out = queue.get_producer()

    def items() -> Iterator[int]:
        yield 1
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        out.put_many(items())
    assert queue.qsize() == 1
    out.put(2)


def test_many_wait_for_room(make: Make) -> None:
    queue = make(3)
    out, source = queue.get_producer(), queue.get_consumer()
    putting = threading.Thread(target=out.put_many, args=(list(range(200)),))
    putting.start()
    wait_until(lambda: queue.statistics().blocked_producers == 1, "the waiting producer")
    assert queue.full()
    assert [source.get() for _ in range(200)] == list(range(200))
    putting.join()
    assert queue.statistics().highest_queued == 3


def interrupt_after_commit(queue: IterableQueue[Any], times: int) -> None:
    """The next *times* puts are interrupted right after their item was appended."""
    core = core_of(queue)
    core.ledger.head[cells_.WAIT_ITEM] = 1
    items, left = core.ledger.items, [times]

    class Interrupting:
        def notify(self, n: int = 1) -> None:
            if left[0]:
                left[0] -= 1
                raise KeyboardInterrupt
            items.notify(n)

        def __getattr__(self, name: str) -> Any:
            return getattr(items, name)

    core.ledger.items = cast("Any", Interrupting())


@pytest.mark.parametrize("sequence", [list, iter], ids=["list", "iterator"])
def test_an_interrupted_put_many_puts_nothing_twice(
    make: Make, sequence: Callable[..., Any]
) -> None:
    """As from a signal handler that runs just after an item was appended."""
    queue = make()
    out, source = queue.get_producer(), queue.get_consumer()
    interrupt_after_commit(queue, 1)
    with pytest.raises(KeyboardInterrupt):
        out.put_many(sequence(range(2 * GATHER)))
    out.put(-1)
    *got, last = source.get_many(3 * GATHER)
    assert last == -1
    assert got == list(range(len(got))), "each once, and none left out"


def test_one_interrupt_ends_a_put_many_that_waits(make: Make) -> None:
    """It does not go on waiting for room for the rest."""
    queue = make(1)
    out = queue.get_producer()
    out.put(0)
    over = threading.Event()

    def when_it_waits() -> None:
        wait_until(lambda: queue.statistics().blocked_producers == 1, "the waiting producer")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        if not over.wait(3):
            queue.cancel()  # or it would wait for ever

    helper = threading.Thread(target=when_it_waits)
    helper.start()
    try:
        with handling(raising), pytest.raises(Interrupt):
            out.put_many(list(range(2 * GATHER)))
    finally:
        over.set()
        helper.join()
    assert queue.statistics().state == "open"


# Several threads of one endpoint


@pytest.mark.parametrize("call", ["get", "get_many"])
@pytest.mark.parametrize("kind", ["consumer", "worker"])
def test_closing_wakes_the_other_threads_get(make: Make, kind: str, call: str) -> None:
    queue = make()
    source = endpoint(queue, kind)
    errors = list[BaseException]()

    def wait() -> None:
        try:
            source.get() if call == "get" else source.get_many(2)
        except ConsumerClosed as error:
            errors.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    wait_until(lambda: queue.statistics().blocked_consumers == 1, "the waiting thread")
    source.close()
    waiting.join(20)
    assert not waiting.is_alive()
    assert ["closed while another call waited" in str(error) for error in errors] == [True]
    with pytest.raises(ConsumerClosed, match="get another one from the queue"):
        source.get()


def in_another_thread(call: Callable[[], object]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


class Closing:
    """A lock just before which, the first time, another thread closes *endpoint*."""

    def __init__(self, lock: Any, endpoint: Any, call: Callable[[], object] | None = None) -> None:
        self._lock = lock
        self._call = call or endpoint.close

    def __enter__(self) -> None:
        if self._call is not None:
            call, self._call = self._call, None
            in_another_thread(call)
        self._lock.__enter__()

    def __exit__(self, *details: object) -> None:
        self._lock.__exit__(*details)


@pytest.mark.parametrize("kind", ["producer", "worker"])
def test_another_thread_closes_it_just_before_a_put(make: Make, kind: str) -> None:
    queue = make(1)
    out, source = endpoint(queue, kind), queue.get_consumer()
    queue.close()
    out.put(1)
    if kind == "worker":
        assert out.get() == 1
        out.put(1)
    out._locks = out._core.put_locks = (Closing(out._locks[-1], out),)
    with pytest.raises(ProducerClosed, match="closed"):
        out.put(2)
    assert list(source) == [1]
    assert queue.statistics().queued == 0


@pytest.mark.parametrize(
    ("make", "kind"), [(MAKERS[0], "worker"), (MAKERS[1], "worker"), (MAKERS[1], "consumer")]
)
def test_another_thread_closes_it_just_before_a_get(make: Make, kind: str) -> None:
    queue = make(5)
    out, source = queue.get_producer(), endpoint(queue, kind)
    out.put_many([1, 2])
    assert source.get() == 1
    source._locks = (Closing(source._locks[-1], source),)
    with pytest.raises(ConsumerClosed, match="closed"):
        source.get()
    statistics = queue.statistics()
    assert (statistics.taken, statistics.finished, statistics.queued) == (1, 1, 1)


def test_another_thread_closes_it_just_before_a_get_without_the_lock() -> None:
    queue = IterableQueue[int].threaded()
    out, source = queue.get_producer(), cast("Any", queue.get_consumer())
    out.put_many([1, 2])
    assert source.get() == 1
    size = source._size

    def closing() -> int:
        in_another_thread(source.close)
        return cast("int", size())

    source._size = closing
    with pytest.raises(ConsumerClosed, match="closed"):
        source.get()
    statistics = queue.statistics()
    assert (statistics.taken, statistics.finished, statistics.queued) == (1, 1, 1)
    assert queue.get_consumer().get_many(9) == [2]


@pytest.mark.parametrize("call", ["get", "get_many"])
def test_another_thread_closes_it_while_a_get_has_the_item(
    make: Make, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The item is returned, and counts; one that was only claimed goes to the others."""
    queue = make()
    out, source = queue.get_producer(), cast("Any", queue.get_consumer())
    out.put(1)
    take = cast("Any", ConsumerEndpoint)._take_patiently

    def slowly(self: Any, *arguments: Any) -> None:
        take(self, *arguments)
        in_another_thread(self.close)

    monkeypatch.setattr(ConsumerEndpoint, "_take_patiently", slowly)
    if call == "get" and core_of(queue).ledger.claims is not None:
        with pytest.raises(ConsumerClosed):
            source.get(timeout=20)
        monkeypatch.undo()
        source = queue.get_consumer()
    assert (source.get_many(2) if call == "get_many" else [source.get(timeout=20)]) == [1]
    source.close()
    statistics = queue.statistics()
    assert (statistics.put, statistics.taken, statistics.finished) == (1, 1, 1)


class Opening:
    """What opens as *text*, once all of `before` were called."""

    before: ClassVar[list[Callable[[], object]]] = []

    def __init__(self, text: str) -> None:
        self.text = text

    def __reduce__(self) -> Any:
        return open_text, (self.text,)


def open_text(text: str) -> str:
    for call in Opening.before:
        call()
    return text


def refuse() -> None:
    raise ValueError("as the test wants it")


@pytest.mark.parametrize("call", ["get_many", "aget_many", "get", "aget"])
def test_another_thread_closes_it_while_an_item_is_opened(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Items in the hands of a call are returned by that call, and by no other one."""
    queue = IterableQueue[Any]()
    out, source, other = queue.get_producer(), queue.get_consumer(), queue.get_consumer()
    out.put_many([Opening("a"), Opening("b"), Opening("c")])
    out.close()
    monkeypatch.setattr(Opening, "before", [partial(in_another_thread, source.close)])
    calls: dict[str, Callable[[], Any]] = {
        "get_many": lambda: source.get_many(2),
        "aget_many": lambda: asyncio.run(source.aget_many(2)),
        "get": lambda: [source.get()],
        "aget": lambda: [asyncio.run(source.aget())],
    }
    taken = calls[call]()
    monkeypatch.undo()
    queue.close()
    assert sorted([*taken, *other]) == ["a", "b", "c"]
    statistics = queue.statistics()
    assert (statistics.put, statistics.taken, statistics.finished) == (3, 3, 3)


@pytest.mark.parametrize("call", ["get_nowait", "get_many", "aget", "aget_many"])
def test_another_thread_gives_back_what_a_get_would_return(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of a `get_many` that could not open an item goes to one of the two."""
    queue = IterableQueue[Any]()
    out, source, other = queue.get_producer(), queue.get_consumer(), queue.get_consumer()
    out.put_many(["a", Opening("not opened"), "b"])
    out.close()
    monkeypatch.setattr(Opening, "before", [refuse])
    assert source.get_many(9) == ["a"]
    with pytest.raises(ItemError):
        source.get()
    at_it, called, result = threading.Event(), threading.Event(), list[Any]()
    unwrap = LogChannel.unwrap

    def slowly(self: LogChannel, payload: Any) -> tuple[Any, int]:
        at_it.set()
        called.wait(1)  # at most: a call that waits for the lock returns only then
        return unwrap(self, payload)

    monkeypatch.setattr(LogChannel, "unwrap", slowly)
    closing = threading.Thread(target=source.close)
    closing.start()
    assert at_it.wait(20)
    calls: dict[str, Callable[[], Any]] = {
        "get_nowait": lambda: [source.get_nowait()],
        "get_many": lambda: source.get_many(2),
        "aget": lambda: [asyncio.run(source.aget(0))],
        "aget_many": lambda: asyncio.run(source.aget_many(2)),
    }
    try:
        result += calls[call]()
    except (Empty, ConsumerClosed) as error:
        result.append(type(error))
    called.set()
    closing.join(20)
    assert not closing.is_alive()
    queue.close()
    assert result in ([Empty], [ConsumerClosed])
    assert list(other) == ["b"]
    statistics = queue.statistics()
    assert (statistics.put, statistics.taken, statistics.finished) == (3, 3, 3)


def test_two_threads_begin_to_wait_at_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever stores last stores what is true."""
    queue = make()
    source = cast("ConsumerEndpoint[Any]", queue.get_consumer().__enter__())
    store = Ledger.set_blocked
    first = True

    def late(self: Ledger, slot: int, number: int, count: int) -> None:
        nonlocal first
        if first:
            first = False
            in_another_thread(lambda: source.set_blocked(True))
        store(self, slot, number, count)

    monkeypatch.setattr(Ledger, "set_blocked", late)
    source.set_blocked(True)
    assert queue.statistics().blocked_consumers == 2


@pytest.mark.parametrize("kind", KINDS)
def test_another_thread_closes_it_just_before_its_clone(make: Make, kind: str) -> None:
    """The queue may be done by then, so there must be no further producer."""
    queue = make()
    original = endpoint(queue, kind).__enter__()  # which uses it
    queue.close()
    core = core_of(queue)
    core.runtime.lock = Closing(core.runtime.lock, original)
    try:
        with pytest.raises((ProducerClosed, ConsumerClosed), match="closed"):
            original.clone()
    finally:
        core.runtime.lock = core.runtime.lock._lock
    statistics = queue.statistics()
    assert statistics.open_producers + statistics.open_consumers + statistics.open_workers == 0


def test_another_thread_uses_it_just_before_it_is_pickled() -> None:
    queue = IterableQueue[int]()
    out = queue.get_producer()
    core = core_of(queue)
    core.runtime.lock = Closing(core.runtime.lock, out, partial(out.put, 1))
    try:
        with pytest.raises(TypeError, match="has been used in this process and stays here"):
            pickle.dumps(out)
    finally:
        core.runtime.lock = core.runtime.lock._lock
    out.close()
    assert queue.get_consumer().get() == 1


@pytest.mark.parametrize("call", ["put", "put_many", "put with a time-out"])
def test_closing_wakes_the_other_threads_put(make: Make, call: str) -> None:
    queue = make(1)
    out = queue.get_producer()
    out.put(1)
    errors = list[BaseException]()

    def wait() -> None:
        try:
            if call == "put":
                out.put(2)
            elif call == "put_many":
                out.put_many([2, 3])
            else:
                out.put(2, timeout=20)
        except ProducerClosed as error:
            errors.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    wait_until(lambda: queue.statistics().blocked_producers == 1, "the waiting thread")
    out.close()
    waiting.join(20)
    assert not waiting.is_alive()
    assert ["closed while another call waited" in str(error) for error in errors] == [True]
    assert queue.qsize() == 1


def test_each_thread_has_its_own_in_hand(make: Make) -> None:
    queue = make()
    out, source = queue.get_producer(), queue.get_consumer()
    out.put_many([1, 2, 3])
    got = list[int]()
    threads = [threading.Thread(target=lambda: got.append(source.get())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [1, 2]
    assert source.get() == 3
    assert queue.statistics().finished in (0, 1, 2), "a thread's identifier may be used again"
    with pytest.raises(Empty):
        source.get_nowait()
    source.close()
    assert queue.statistics().finished == 3


# Time-outs


def test_who_does_not_wait_for_items_waits_for_the_lock_for_a_slice(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also to take the endpoint into use. Else it would be told Empty with items on the queue."""
    queue = make()
    queue.get_producer().put(1)
    runtime = queue._core.runtime
    real, asked = runtime.lock_within, list[float]()

    def lock_within(timeout_s: float) -> Lock:
        asked.append(timeout_s)
        return real(timeout_s)

    monkeypatch.setattr(runtime, "lock_within", lock_within)
    assert queue.get_consumer().get_nowait() == 1
    queue.get_producer().put_nowait(2)
    assert asked
    assert min(asked) >= SLICE_S


def test_a_full_queue(make: Make) -> None:
    queue = make(2)
    out = queue.get_producer()
    out.put_many([1, 2])
    calls: tuple[Callable[[], object], ...] = (
        lambda: out.put(3, block=False),
        lambda: out.put_nowait(3),
        lambda: out.put(3, timeout=0),
        lambda: out.put(3, True, 0.01),
        lambda: out.put(3, block=False, timeout=9),
    )
    for call in calls:
        with pytest.raises(Full, match=r"its maxsize is 2 item"):
            call()
    assert (queue.qsize(), queue.full(), out.full()) == (2, True, True)


def test_an_empty_queue(make: Make) -> None:
    queue = make()
    source = queue.get_consumer()
    calls: tuple[Callable[[], object], ...] = (
        lambda: source.get(block=False),
        source.get_nowait,
        lambda: source.get(timeout=0),
        lambda: source.get(True, 0.01),
        lambda: source.get(block=False, timeout=9),
    )
    for call in calls:
        with pytest.raises(Empty, match="nothing came in time"):
            call()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("timeout", [0, 0.05])
def test_a_lock_that_is_out_of_reach_is_a_time_out(kind: str, timeout: float) -> None:
    """From the first call on, which takes the endpoint: `Full` of a put, `Empty` of a get."""
    queue = IterableQueue[int]()
    thing = endpoint(queue, kind)
    runtime: Any = core_of(queue).runtime
    lock, trylock, within = runtime.lock, runtime.trylock, runtime.lock_within

    def never() -> bool:
        return False

    busy = guard(never, never)
    calls: dict[str, list[tuple[type[Exception], Callable[[], object]]]] = {
        "producer": [(Full, lambda: thing.put(1, timeout=timeout))],
        "consumer": [(Empty, lambda: thing.get(timeout=timeout))],
        "worker": [
            (Empty, lambda: thing.get(timeout=timeout)),
            (Full, lambda: thing.put(1, timeout=timeout)),
        ],
    }
    runtime.lock = runtime.trylock = busy
    runtime.lock_within = lambda timeout_s: busy  # pyright: ignore[reportUnknownLambdaType]
    began = time.monotonic()
    try:
        for error, call in calls[kind]:
            with pytest.raises(error):
                call()
    finally:
        runtime.lock, runtime.trylock, runtime.lock_within = lock, trylock, within
    assert time.monotonic() - began < 10
    assert not thing.closed


@pytest.mark.parametrize("limit", ["1", 1.5, None])
def test_a_limit_must_be_an_int(limit: Any, make: Make) -> None:
    with pytest.raises(TypeError, match="limit must be an int, not"):
        make().get_consumer().get_many(limit)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_must_be_positive(limit: int, make: Make) -> None:
    with pytest.raises(ValueError, match=f"limit must be 1 or more items, not {limit}"):
        make().get_consumer().get_many(limit)


# The way in and the way out


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_closes_its_endpoint(make: Make, kind: str) -> None:
    queue = make()
    with endpoint(queue, kind) as thing:
        assert not thing.closed
    assert thing.closed
    assert repr(thing) == f"<{kind} 1, closed>"
    thing.close()
    with thing.__class__(*clone_parts(queue, kind)) as other:
        other.close()
    assert other.closed
    assert queue.statistics().failures == 0


def clone_parts(queue: IterableQueue[Any], kind: str) -> tuple[Core, int, int]:
    core = core_of(queue)
    kinds = {
        "producer": cells_.PRODUCER,
        "consumer": cells_.CONSUMER,
        "worker": cells_.WORKER,
    }
    return core, *core.transact(core.ledger.open, kinds[kind], "there:1")


@pytest.mark.parametrize(
    ("kind", "state"), [("producer", "failed"), ("consumer", "done"), ("worker", "failed")]
)
def test_a_block_left_by_an_error(make: Make, kind: str, state: str) -> None:
    queue = make()
    error = ValueError("cut short")
    with pytest.raises(ValueError, match="cut short"), endpoint(queue, kind):
        raise error
    queue.close()
    assert queue.statistics().state == state
    if state == "failed":
        with pytest.raises(ProducerFailed) as told:
            queue.get_consumer().get()
        assert [str(failure) for failure in told.value.failures] == ["cut short"]


def cut_short(queue: IterableQueue[int], *, in_hand: bool) -> None:
    with queue.get_worker() as tree:
        tree.put(1)
        tree.get()
        if not in_hand:
            with pytest.raises(Empty):
                tree.get_nowait()
        raise ValueError("cut short")


@pytest.mark.parametrize("in_hand", [False, True])
def test_a_worker_fails_in_the_middle_of_an_item_alone(make: Make, in_hand: bool) -> None:
    queue = make()
    with pytest.raises(ValueError, match="cut short"):
        cut_short(queue, in_hand=in_hand)
    assert queue.statistics().failures == in_hand


@pytest.mark.parametrize("kind", KINDS)
def test_on_a_broken_queue_the_blocks_own_error_says_more(kind: str) -> None:
    queue = IterableQueue[int]()
    core: Any = core_of(queue)
    thing = endpoint(queue, kind)

    def refuse(*args: object) -> None:
        raise ChannelBroken("broken")

    def leave(error: Exception | None) -> None:
        with thing:
            core.transact = refuse
            if error is not None:
                raise error

    for error, expected in ((ValueError("mine"), ValueError), (None, ChannelBroken)):
        try:
            with pytest.raises(expected):
                leave(error)
        finally:
            del core.transact
    thing.close()


@pytest.mark.parametrize("kind", ["producer", "worker"])
def test_failing(make: Make, kind: str) -> None:
    queue = make()
    thing = endpoint(queue, kind)
    for wrong in (ValueError, "text", None):
        with pytest.raises(TypeError, match="error must be an exception"):
            thing.fail(wrong)
    assert not thing.closed
    thing.fail(ValueError("why"))
    assert thing.closed
    thing.close()
    with pytest.raises((ProducerClosed, ConsumerClosed)):
        thing.fail(ValueError("again"))
    assert queue.statistics().failures == 1


@pytest.mark.parametrize("maxsize", [0, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_after_close_each_call_says_so(make: Make, kind: str, maxsize: int) -> None:
    queue = make(maxsize)
    thing = endpoint(queue, kind)
    thing.close()
    assert thing.closed
    look: list[Callable[[], object]] = [thing.qsize, thing.empty, thing.full, thing.clone]
    look += [thing.__enter__, thing.__reduce__]
    gets: list[Callable[[], object]] = []
    puts: list[Callable[[], object]] = []
    if kind != "producer":
        gets = [thing.get, thing.get_nowait, lambda: thing.get_many(1), lambda: next(thing)]
    if kind != "consumer":
        puts = [lambda: thing.put(1), lambda: thing.put_nowait(1), lambda: thing.put_many([1])]
    others = ProducerClosed if kind == "producer" else ConsumerClosed
    for closed, calls in ((ProducerClosed, puts), (ConsumerClosed, gets), (others, look)):
        for call in calls:
            with pytest.raises(closed, match=f"^{kind} 1 is closed; get another one"):
                call()


@pytest.mark.parametrize("kind", KINDS)
def test_sizes(make: Make, kind: str) -> None:
    queue = make(2)
    thing = endpoint(queue, kind)
    assert (thing.qsize(), thing.empty(), thing.full()) == (0, True, False)
    out = queue.get_producer()
    out.put(1)
    assert (thing.qsize(), thing.empty(), thing.full()) == (1, False, False)
    out.put(1)
    assert (thing.qsize(), thing.empty(), thing.full()) == (2, False, True)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unbounded_queue_is_never_full(make: Make, kind: str) -> None:
    queue = make()
    thing = endpoint(queue, kind)
    queue.get_producer().put_many(range(100))
    assert not thing.full()


@pytest.mark.parametrize("kind", KINDS)
def test_copies_are_refused(make: Make, kind: str) -> None:
    thing = endpoint(make(), kind)
    for call in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match=r"would count twice; use clone\(\)"):
            call(thing)


@pytest.mark.parametrize("kind", KINDS)
def test_a_clone_counts_by_itself(make: Make, kind: str) -> None:
    queue = make()
    thing = endpoint(queue, kind)
    queue.close()
    other = thing.clone()
    assert type(other) is type(thing)
    assert (thing.number, other.number) == (1, 2)
    assert repr(other).startswith(f"<{kind} 2 ")
    thing.close()
    assert not other.closed
    assert queue.statistics().state == "closed" or kind == "consumer"
    other.close()


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_used_can_not_be_pickled(kind: str) -> None:
    thing = endpoint(IterableQueue[int](), kind)
    with thing, pytest.raises(TypeError, match=rf"^{kind} 1 has been used in .*clone\(\)"):
        pickle.dumps(thing)


def put_in(queue: IterableQueue[Any], thing: Any, **fields: int) -> None:
    """Store what other processes would have stored in the endpoint's slot."""
    cells = core_of(queue).ledger.cells
    for name, value in fields.items():
        cells[thing.slot * cells_.SLOT_SIZE + getattr(cells_, name)] = value


@pytest.mark.parametrize("kind", KINDS)
def test_in_another_process_each_call_says_whose_it_is(kind: str) -> None:
    queue = IterableQueue[int]()
    core = core_of(queue)
    thing = endpoint(queue, kind)
    other = core.transact(core.ledger.open_process, 4711, lambda slot: None)
    situations: tuple[tuple[dict[str, int], str], ...] = (
        ({"OWNER": other}, "belongs to process 4711;"),
        ({"OWNER": other, "FLAGS": cells_.USED}, "belongs to process 4711;"),
        ({"OWNER": 0, "FLAGS": 0, "MAKER": other}, "belongs to process 4711, which made it and"),
        ({"KIND": cells_.FREE}, "belongs to another process, which has closed it or ended;"),
    )
    kept = core.ledger.view(thing.slot)
    calls: tuple[Callable[[], object], ...] = (thing.qsize, thing.clone, thing.close)
    remedy = f"Give every process one of its own, by get_{kind}() or clone()"
    try:
        for fields, text in situations:
            put_in(queue, thing, **fields)
            before = list(core.ledger.cells)
            for call in calls:
                with pytest.raises(EndpointElsewhere, match=text) as told:
                    call()
                assert remedy in str(told.value)
            with pytest.raises(EndpointElsewhere):
                pickle.dumps(thing)
            assert list(core.ledger.cells) == before, "nothing was changed"
        core.transact(core.ledger.cancel, None)
        with pytest.raises(Cancelled):
            thing.qsize()
    finally:
        put_in(queue, thing, KIND=kept.kind, OWNER=0, MAKER=1, FLAGS=0)
        core.transact(core.ledger.release_process, other)


def test_of_one_that_is_being_started_the_pid_is_not_known_yet() -> None:
    queue = IterableQueue[int]()
    core = core_of(queue)
    thing: Any = queue.get_producer()
    heir = core.transact(core.ledger.open_process, 0, lambda slot: None)
    put_in(queue, thing, OWNER=heir)
    with pytest.raises(EndpointElsewhere, match="belongs to a process that was started with it"):
        thing.put(1)
    put_in(queue, thing, OWNER=0)
    core.transact(core.ledger.release_process, heir)


class Lost(ChannelBroken):
    """Why an endpoint can't be used at all."""


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_can_not_be_reached_says_why_in_each_call(kind: str) -> None:
    classes: dict[str, Callable[..., Any]] = {
        "producer": ProducerEndpoint[int],
        "consumer": ConsumerEndpoint[int],
        "worker": WorkerEndpoint[int],
    }
    thing = classes[kind](core_of(IterableQueue[int].threaded()), 5, 5, Lost("no way"))
    assert thing.closed
    calls: list[Callable[[], object]] = [thing.qsize, thing.empty, thing.clone, thing.close]
    calls += [thing.__enter__, lambda: thing.fail(ValueError())]
    if kind != "consumer":
        calls += [lambda: thing.put(1), lambda: thing.put_many([1])]
    if kind != "producer":
        calls += [thing.get, lambda: thing.get_many(1), lambda: next(thing)]
    for call in calls:
        with pytest.raises(Lost, match="no way"):
            call()
    with pytest.raises(TypeError, match="can't be pickled: no way"):
        pickle.dumps(thing)


def test_an_endpoint_that_was_not_made_whole_goes_quietly() -> None:
    """As where its constructor was interrupted."""
    thing: Endpoint = Endpoint.__new__(cast("type[Endpoint]", ProducerEndpoint))
    thing.__del__()


# Results of calls that can't go on


@pytest.mark.parametrize("used", [False, True])
def test_the_time_of_a_get_runs_out_in_a_signal_handler(make: Make, used: bool) -> None:
    """Where `queue.SimpleQueue.get` waits for ever, up to Python 3.12."""
    queue = make()
    source = queue.get_consumer()
    if used:
        with pytest.raises(Empty):
            source.get(timeout=0.01)
    time_out_in_a_handler(queue, source.get)


def test_the_time_of_a_put_runs_out_in_a_signal_handler(make: Make) -> None:
    queue = make(1)
    out = queue.get_producer()
    out.put(1)
    time_out_in_a_handler(queue, partial(out.put, 2))


def test_put_on_a_cancelled_queue(make: Make) -> None:
    queue = make()
    out, tree = queue.get_producer(), queue.get_worker()
    out.put(1)
    queue.cancel()
    calls: tuple[Callable[[], object], ...] = (
        lambda: out.put(2),
        lambda: out.put(2, timeout=1),
        lambda: out.put_many([2]),
        lambda: tree.put(2),
        tree.get,
        lambda: tree.get_many(1),
        lambda: next(tree),
    )
    for call in calls:
        with pytest.raises(Cancelled):
            call()
    assert queue.qsize() == 0


def test_get_at_the_end(make: Make) -> None:
    queue = make()
    source = queue.get_consumer()
    queue.close()
    for call in (
        source.get,
        source.get_nowait,
        lambda: source.get(timeout=5),
        lambda: source.get_many(3),
    ):
        with pytest.raises(Done):
            call()
    assert list(iter(source)) == []
    with pytest.raises(StopIteration):
        next(source)
    assert not source.closed


def annotated(out: Producer[int], source: Consumer[int]) -> int:
    out.put(1)
    return source.get()


def test_the_protocols_fit(make: Make) -> None:
    queue = make()
    assert annotated(queue.get_producer(), queue.get_consumer()) == 1

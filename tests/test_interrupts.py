"""An interrupt anywhere in a call: afterwards all goes on, and ends, as if that had been a pause.

Signal handlers run as a function of Python begins and after a call of a C function, and may raise
there. These tests raise at each of these places inside the package in turn, for every kind of call.
What must hold: an endpoint can be closed in the end, whatever it was that had been interrupted; one
that nobody refers to is ended; nothing that was put is lost, nothing comes twice, nobody hangs.

A call that fails for want of room on the stack is interrupted as well (`RecursionError`).
"""

from __future__ import annotations

import gc
import itertools
import os
import pickle
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import iterable_queue
from iterable_queue import Done, EndpointElsewhere, IterableQueue, Producer, ProducerFailed
from iterable_queue._cells import CONSUMERS, FAILED, PRODUCERS
from iterable_queue._core import leave_dropped
from iterable_queue._liveness import is_held
from iterable_queue._shared import SharedCore
from tests.conftest import wait_until
from tests.redis_server import Server, redis, running

PACKAGE = os.path.dirname(iterable_queue.__file__)
WAIT_S = 10.0

QUEUES: dict[str, Callable[[], IterableQueue[Any]]] = {
    "threads": IterableQueue[Any].threaded,
    "threads, bounded": lambda: IterableQueue[Any].threaded(100),
    "processes": IterableQueue[Any],
    "processes, bounded": lambda: IterableQueue[Any](100),
    "processes, redelivering": lambda: IterableQueue[Any](redeliver=True),
}


class Interrupted(BaseException):
    """What the handler raises."""


def interrupt(at: int, call: Callable[[], object], places: str | tuple[str, ...] = PACKAGE) -> bool:
    """Call, and raise at the *at*-th place where a handler might. False: it has no so many.

    Places are in the code below these directories, but for the very entry of what is called when
    a process's part in a queue is dropped.
    """
    left = at

    def handler(frame: FrameType, event: str, arg: object) -> None:
        nonlocal left
        code = frame.f_code
        if event not in ("call", "c_return") or not code.co_filename.startswith(places):
            return
        if event == "c_return" or code is not leave_dropped.__code__:
            left -= 1
            if left == 0:
                raise Interrupted

    gc.disable()  # or what earlier calls left to the collector would have places as well
    # CPython turns profiling off where its function raises.
    sys.setprofile(handler)
    try:
        call()
    except Interrupted:
        return True
    finally:
        sys.setprofile(None)
        gc.enable()
    return left <= 0  # in a `__del__`, say, where it went no further


def nest(more: int, call: Callable[[], object]) -> None:
    if more > 0:
        nest(more - 1, call)
    else:
        call()


def recurse(room: int, call: Callable[[], object]) -> bool:
    """The same: call where there is room for so many nested calls only."""
    depth = len(list(traceback.walk_stack(None)))
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(depth + 200)
    try:
        nest(198 - room, call)
    except RecursionError:
        return True
    finally:
        sys.setrecursionlimit(before)
    return False


def ignore(unraisable: object) -> None:
    pass


def enter(endpoint: Any) -> None:
    endpoint.__enter__()


class Play:
    """A queue with some items on it; what was put and got is written down."""

    def __init__(self, queue: IterableQueue[Any]) -> None:
        self.queue = queue
        self.out = queue.get_producer()
        self.source = queue.get_consumer()
        self.others: list[Any] = []
        self.sure = list(range(20))
        self.maybe: list[int] = []
        self.got: list[int] = []
        self.failed = False
        for n in self.sure:
            self.out.put(n)
        self.got += (self.source.get(timeout=WAIT_S), self.source.get(timeout=WAIT_S))

    def put(self, endpoint: Any) -> None:
        self.maybe.append(100)
        endpoint.put(100)
        self.sure.append(100)

    def put_many(self) -> None:
        self.maybe += range(100, 120)
        self.out.put_many(list(range(100, 120)))
        self.sure += range(100, 120)

    def get(self) -> None:
        self.got.append(self.source.get())

    def get_many(self) -> None:
        self.got += self.source.get_many(5)

    def iterate(self) -> None:
        for n in self.source:
            self.got.append(n)
            return

    def open(self, make: Callable[[], Any]) -> None:
        self.others.append(make())

    def leave(self) -> None:
        with self.out:
            pass

    def fail(self) -> None:
        self.failed = True
        self.out.fail(ValueError("on purpose"))

    def another(self) -> Any:
        self.others.append(self.out.clone())
        return self.others[0]

    def drop(self, make: Callable[[], Any], use: Callable[[Any], object]) -> None:
        endpoint = make()
        use(endpoint)
        del endpoint

    def worker(self) -> Any:
        worker = self.queue.get_worker()
        self.others.append(worker)
        self.got.append(worker.get(timeout=WAIT_S))
        return worker

    def get_of(self, worker: Any) -> None:
        self.got.append(worker.get())

    def count_open(self) -> int:
        stats = self.queue.statistics()
        return stats.open_producers + stats.open_consumers + stats.open_workers

    def finish(self) -> None:
        """Close all, some of it once more, and see that everything has come."""
        if not self.out.closed:
            self.out.put(1000)
            self.sure.append(1000)
        with self.queue.get_consumer() as last:
            # What these have in hand by an interrupt comes back.
            for endpoint in (*self.others, self.out, self.source, self.queue):
                endpoint.close()
            rest = list[int]()
            ends = list[BaseException | None]()

            def drain() -> None:
                try:
                    rest.extend(last)
                    ends.append(None)
                except BaseException as error:
                    ends.append(error)

            thread = threading.Thread(target=drain, daemon=True)
            thread.start()
            thread.join(WAIT_S)
            assert ends, f"nobody knows that it is done: {self.queue.explain()}"
        got = self.got + rest
        assert len(set(got)) == len(got), f"twice: {got}"
        assert set(self.sure) <= set(got) <= {*self.sure, *self.maybe}
        stats = self.queue.statistics()
        assert (stats.put, stats.finished, stats.queued) == (len(got), len(got), 0)
        wait_until(lambda: self.count_open() == 0, "nothing is open", WAIT_S)
        assert ends == [None] or self.failed


CALLS: dict[str, Callable[[Play], Callable[[], object]]] = {
    "get_producer": lambda play: lambda: play.open(play.queue.get_producer),
    "get_consumer": lambda play: lambda: play.open(play.queue.get_consumer),
    "get_worker": lambda play: lambda: play.open(play.queue.get_worker),
    "clone": lambda play: lambda: play.open(play.out.clone),
    "clone of a consumer": lambda play: lambda: play.open(play.source.clone),
    "put": lambda play: lambda: play.put(play.out),
    "first put": lambda play: partial(play.put, play.another()),
    "put_many": lambda play: play.put_many,
    "get": lambda play: play.get,
    "get_many": lambda play: play.get_many,
    "iteration": lambda play: play.iterate,
    "close": lambda play: play.out.close,
    "close of a consumer": lambda play: play.source.close,
    "close of the queue": lambda play: play.queue.close,
    "with": lambda play: play.leave,
    "fail": lambda play: play.fail,
    "drop": lambda play: lambda: play.drop(play.queue.get_producer, repr),
    "drop of a used one": lambda play: lambda: play.drop(play.queue.get_consumer, enter),
    "statistics": lambda play: play.queue.statistics,
    "explain": lambda play: play.queue.explain,
    "worker's put": lambda play: partial(play.put, play.worker()),
    "worker's get": lambda play: partial(play.get_of, play.worker()),
    "worker's close": lambda play: play.worker().close,
}


@pytest.fixture(autouse=True)
def no_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of pytest keeps what was interrupted in `__del__`, and so the object itself."""
    monkeypatch.setattr(sys, "unraisablehook", ignore)


ASKS = ("statistics", "explain")
"""They have hundreds of such places, and are the same on queues of all kinds."""


@pytest.mark.parametrize(
    ("kind", "call"),
    [(kind, call) for kind in QUEUES for call in CALLS if kind == "processes" or call not in ASKS],
)
@pytest.mark.parametrize("cut_short", [interrupt, recurse])
def test_a_call_is_cut_short_anywhere(
    kind: str, call: str, cut_short: Callable[[int, Callable[[], object]], bool]
) -> None:
    sweep(QUEUES[kind], call, cut_short)


def sweep(
    make: Callable[[], IterableQueue[Any]],
    call: str,
    cut_short: Callable[[int, Callable[[], object]], bool],
) -> None:
    at, more = 0, True
    while more:
        at += 1
        play = Play(make())
        more = cut_short(at, CALLS[call](play))
        try:
            play.finish()
        except BaseException as error:
            error.add_note(f"cut short at place {at}")
            raise
    assert at > 2


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "dropped"])
def test_unpickling_is_cut_short_anywhere(kept: bool) -> None:
    """The endpoint has no object then, but for one that was here before; the pickle is tried again.

    Either that has it, or it was given up: it is not as if somebody had it.
    """
    at, more = 0, True
    while more:
        at += 1
        iq = IterableQueue[int]()
        out: Any = iq.get_producer()
        data = pickle.dumps(out)
        if not kept:
            del out
        found = list[Any]()
        more = interrupt(at, lambda data=data, found=found: found.append(pickle.loads(data)))  # type: ignore[misc]
        again: Any = pickle.loads(data)
        sure = list[int]()
        try:
            again.put(1)
            sure.append(1)
            again.close()
        except EndpointElsewhere:
            assert not kept
        iq.close()
        got = list[int]()
        try:
            with iq.get_consumer() as source:
                while True:
                    got.append(source.get(timeout=WAIT_S))
        except Done:
            assert got == sure == [1]
        except ProducerFailed:
            assert got == sure == []
    assert at > 10


def test_leaving_a_queue_is_cut_short_anywhere() -> None:
    """By the last reference to it in a process, while others take part. They are not kept waiting,
    and whoever goes last removes the directory."""
    at, more = 0, True
    while more:
        at += 1
        iq: Any = IterableQueue[int]()
        address = iq._core.address
        other = SharedCore(address)
        other.register()
        held = [iq.get_producer(), iq.get_consumer(), iq]
        held[0].put(1)
        assert held[1].get() == 1
        for _ in range(4):  # as for children, and by a parent
            iq._core.transact(iq._core._add_lineage)
        iq._core._inherited += (iq._core._lineages.popitem()[1], iq._core._lineages.popitem()[1])
        del iq
        more = interrupt(at, held.clear)
        locks = [f"{address.path}/l{n}" for n in (1, 2, 3, 4)]
        assert [path for path in locks if is_held(path)] == [], at
        head = other.ledger.head
        other._looked_at = -1e9
        other.look(WAIT_S)
        assert (head[PRODUCERS], head[CONSUMERS], head[FAILED]) == (0, 0, 1), at
        other.leave("returned")
        assert not os.path.exists(address.path), at
    assert at > 100


def test_leaving_as_the_last_is_cut_short_anywhere() -> None:
    at, more = 0, True
    while more:
        at += 1
        held: Any = [IterableQueue[int]()]
        path = held[0]._core.address.path
        more = interrupt(at, held.clear)
        assert not os.path.exists(path), at
    assert at > 100


@pytest.mark.parametrize("kind", QUEUES)
def test_the_collector_leaves_endpoints_to_finalizers(kind: str) -> None:
    """What is called of weak references, it calls before any `__del__`, which may use them."""

    class Ring:
        def __init__(self) -> None:
            self.me = self
            self.out: Producer[str] = iq.get_producer()  # younger, so finalized later

        def __del__(self) -> None:
            self.out.put("last")
            iq.statistics()  # with the lock
            self.out.close()

    iq: IterableQueue[str] = QUEUES[kind]()
    Ring()
    gc.collect()
    iq.close()
    with iq.get_consumer() as source:
        assert list(source) == ["last"]


@pytest.mark.parametrize("kind", QUEUES)
def test_what_is_closed_or_dropped_leaves_no_mark(kind: str) -> None:
    iq = QUEUES[kind]()
    core: Any = iq._core
    for n in range(30):
        endpoint: Any = (iq.get_producer, iq.get_consumer, iq.get_worker)[n % 3]()
        if n % 2:
            enter(endpoint)
        if n % 5:
            endpoint.close()
        del endpoint
        assert (len(core._marks), list(core.dropped), list(core.gone)) == (1, [], [])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    yield from running(Server(tmp_path))


@pytest.mark.parametrize(
    "call", ["get_producer", "clone of a consumer", "close", "close of a consumer", "fail"]
)
def test_a_call_over_redis_is_cut_short_anywhere(call: str, server: Server) -> None:
    """Also between the question and its answer, in the client's code."""
    names = map(str, itertools.count())
    places = PACKAGE, str(Path(str(redis.__file__)).parent)
    sweep(
        lambda: IterableQueue[Any].connect(server.url, name=next(names)),
        call,
        partial(interrupt, places=places),
    )


def test_leaving_a_server_is_cut_short_anywhere(server: Server) -> None:
    """The server is told, and nothing goes on to say that this process lives."""
    at, more = 0, True
    with redis.Redis.from_url(server.url) as client:
        while more:
            at += 1
            iq: Any = IterableQueue[int].connect(server.url, name=f"left-{at}", keep_s=60)
            out, source = iq.get_producer(), iq.get_consumer()
            out.put(1)
            assert source.get() == 1
            more = interrupt(at, partial(leave_dropped, iq._core))
            wait_until(
                lambda at=at: client.zcard(f"iq:{{left-{at}}}:beats") == 0,  # type: ignore[misc]
                f"told, though cut short at {at}",
                WAIT_S,
            )
    assert at > 50

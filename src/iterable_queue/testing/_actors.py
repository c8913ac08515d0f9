"""What actors do: functions of this module, so that a process started by spawn finds them.

An actor is a thread or a process that a promise starts. It is told its *role*: by what name it
posts facts on the *board*, and which it waits for. The board is a directory, a fact a file in it:
that works between threads and processes of every kind, and uses nothing of the queue under test.
"""

from __future__ import annotations

import os
import pickle
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, NoReturn

from iterable_queue._clock import monotonic
from iterable_queue._errors import (
    Done,
    EndpointElsewhere,
    IterableQueueError,
    ProducerClosed,
)
from iterable_queue._protocols import Consumer, Producer, Worker
from iterable_queue.testing._conformance import QueueLike

POLL_S = 0.001
"""How often a fact is looked for."""

OVER = "over"
"""A file on the board: the promise has ended, nothing is worth waiting for."""


class Late(AssertionError):
    """Something did not happen in time."""


class Ending(NamedTuple):
    """How an actor's function ended."""

    value: Any
    error: BaseException | None
    trace: str


class Role(NamedTuple):
    """An actor's place on the board.

    Attributes:
        path: the board's directory.
        name: the actor's; what it posts and waits for are its own facts.
        deadline: on the monotonic clock, for every wait.
    """

    path: str
    name: str
    deadline: float

    def post(self, fact: str, value: object = None) -> None:
        """Let the others know *fact*, with a value that can be pickled."""
        self._write(fact, pickle.dumps(value))

    def _write(self, fact: str, content: bytes) -> None:
        whole = f"{self.path}/{self.name}.{fact}"
        with open(f"{whole}.part", "wb") as file:
            file.write(content)
        os.replace(f"{whole}.part", whole)

    def has(self, fact: str) -> bool:
        """Whether *fact* was posted."""
        return os.path.exists(f"{self.path}/{self.name}.{fact}")

    def read(self, fact: str) -> Any:
        """The value that was posted with *fact*."""
        with open(f"{self.path}/{self.name}.{fact}", "rb") as file:
            return pickle.loads(file.read())

    def wait(self, fact: str) -> Any:
        """Wait for *fact*, and return the value that was posted with it."""
        while not self.has(fact):
            if monotonic() > self.deadline or os.path.exists(f"{self.path}/{OVER}"):
                raise Late(f"{self.name} waited in vain for {fact!r}")
            time.sleep(POLL_S)
        return self.read(fact)

    def end(self, value: object, error: BaseException | None, trace: str) -> None:
        """Post how the actor's function ended; what can't be pickled, by its text."""
        try:
            content = pickle.dumps(Ending(value, error, trace))
            pickle.loads(content)
        except Exception as why:
            said = RuntimeError(f"{value!r}, {error!r} can't be posted: {why!r}")
            content = pickle.dumps(Ending(None, said, trace))
        self._write("end", content)


def perform(role: Role, function: Callable[..., object], *args: Any) -> None:
    """The target of each actor: call *function* and post how that ended.

    The endpoints are direct arguments of this, as they are in a user's program.
    """
    try:
        try:
            value = function(role, *args)
        except BaseException as error:
            role.end(None, error, traceback.format_exc())
        else:
            role.end(value, None, "")
    except FileNotFoundError:
        pass  # the board has gone: nobody wants to know any more


def alone(target: Callable[..., object], *args: Any) -> None:
    """The target of each process: *target*, which may leave its endpoints open on purpose."""
    warnings.simplefilter("ignore", ResourceWarning)
    target(*args)


# Producing


def produce(role: Role, out: Producer[Any], items: Iterable[Any]) -> None:
    """Put *items*, and close."""
    with out:
        for item in items:
            out.put(item)


def produce_many(role: Role, out: Producer[Any], items: Iterable[Any]) -> None:
    """Put *items* by `put_many`, and close."""
    with out:
        out.put_many(items)


def produce_on_cue(role: Role, out: Producer[Any], items: Iterable[Any]) -> None:
    """Put each of *items* when told so, and say when that has returned."""
    with out:
        for n, item in enumerate(items):
            role.wait(f"put {n}")
            out.put(item)
            role.post(f"has put {n}")


def put_all(role: Role, out: Producer[Any], items: Iterable[Any]) -> None:
    """Put *items*, and leave the endpoint open for the other threads that use it."""
    for item in items:
        out.put(item)


def fill(role: Role, out: Producer[Any], tries: int) -> int:
    """Put without waiting, *tries* times, on a cue; returns how often there was room."""
    from queue import Full

    role.post("ready")
    role.wait("go")
    room = 0
    for n in range(tries):
        try:
            out.put_nowait((role.name, n))
            room += 1
        except Full:
            pass
    out.close()
    return room


def put_one(role: Role, out: Producer[Any] | Worker[Any], item: Any) -> None:
    """Put one item, which may have to wait; the endpoint stays open."""
    role.post("ready")
    out.put(item)
    role.post("has put")


def fail_within_with(role: Role, out: Producer[Any], items: Iterable[Any]) -> None:
    """Put *items*, then leave `with` by an exception."""
    with out:
        for item in items:
            out.put(item)
        raise LookupError("the source ran dry")


def told_within(role: Role, endpoint: Any, call: str, *args: Any) -> str:
    """Make a call within `with`; returns the name of what that call raised, and "" for nothing."""
    with endpoint:
        try:
            getattr(endpoint, call)(*args)
        except Exception as error:
            return type(error).__name__
    return ""


# Consuming


def consume(role: Role, source: Consumer[Any]) -> list[Any]:
    """Take everything by iterating."""
    role.post("ready")
    return list(source)


def consume_with(role: Role, source: Consumer[Any]) -> list[Any]:
    """Take everything by iterating, within `with`."""
    with source:
        return list(source)


def take_one(role: Role, source: Consumer[Any]) -> Any:
    """Take one item, which may have to wait, and finish nothing."""
    role.post("ready")
    item = source.get()
    role.post("has", item)
    return item


def take_and_hold(role: Role, source: Consumer[Any]) -> list[Any]:
    """Take one item, hold it until told to go on, and take the rest."""
    items = [source.get()]
    role.post("holds", items[0])
    role.wait("go")
    items += source
    return items


def take_and_close(role: Role, source: Consumer[Any]) -> list[Any]:
    """Take one item, and close."""
    with source:
        for item in source:
            return [item]
    return []


def interrupted_get(role: Role, source: Consumer[Any]) -> list[Any]:
    """Be interrupted while waiting for an item, and take everything all the same."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    role.post("ready")
    try:
        items = [source.get()]
    except KeyboardInterrupt:
        items = []
        role.post("interrupted")
    return [*items, *source]


def interrupted_put(role: Role, out: Producer[Any], item: Any, after: Any) -> None:
    """Be interrupted while waiting for room, and put another item all the same."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    role.post("ready")
    try:
        out.put(item)
    except KeyboardInterrupt:
        role.post("interrupted")
    out.put(after)
    out.close()


def take_from(role: Role, source: Consumer[Any], limit: int) -> list[list[Any]]:
    """Take everything by `get_many`."""
    batches: list[list[Any]] = []
    role.post("ready")
    try:
        while True:
            batches.append(list(source.get_many(limit)))
    except Done:
        return batches


def join(role: Role, queue: QueueLike) -> bool:
    """Wait for the queue's end."""
    return queue.join()


# Working


def expand(role: Role, worker: Worker[Any], fan: int) -> list[Any]:
    """Take nodes, each a depth, and put *fan* of the next depth for each that is not 0."""
    seen: list[Any] = []
    for depth in worker:
        seen.append(depth)
        if depth:
            for _ in range(fan):
                worker.put(depth - 1)
    return seen


# Endings of processes


def put_and_return(role: Role, out: Producer[Any], items: Iterable[Any]) -> None:
    """Put *items*, and end without having closed."""
    out.put_many(items)


def put_and_exit(role: Role, out: Producer[Any], items: Iterable[Any], status: int) -> NoReturn:
    """Put *items*, and be gone at once without any clearing up."""
    for item in items:
        out.put(item)
    os._exit(status)


def put_and_be_killed(role: Role, out: Producer[Any], items: Iterable[Any]) -> None:
    """Put *items*, and be killed at once."""
    for item in items:
        out.put(item)
    die()


def put_close_and_exit(role: Role, out: Producer[Any], items: Iterable[Any]) -> NoReturn:
    """Put *items*, close, and be gone at once without any clearing up."""
    with out:
        for item in items:
            out.put(item)
    os._exit(0)


def do_nothing(role: Role, *endpoints: object) -> None:
    """Have *endpoints* and use none of them, until told to go on."""
    role.post("ready")
    role.wait("go")


def put_and_raise(out: Producer[Any], items: Iterable[Any]) -> None:
    """Put *items*, and end by an uncaught exception. A process's target of its own."""
    import sys

    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - the traceback is no news to anybody
    out.put_many(items)
    raise LookupError("nobody catches this")


def take_and_be_killed(role: Role, source: Consumer[Any]) -> None:
    """Take one item, and be killed with it in hand."""
    role.post("has", source.get())
    die()


def die() -> None:
    """Be killed; like by anybody, so that nothing is cleared up."""
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


# Roads


def use_queue(role: Role, queue: Any, items: list[Any]) -> list[Any]:
    """Make endpoints on a queue that came along, and use them."""
    with queue.get_producer() as out:
        out.put_many(items)
    with queue.get_consumer() as source:
        return [source.get() for _ in items]


def use_nested(role: Role, endpoints: dict[str, list[Any]], items: list[Any]) -> list[Any]:
    """Use endpoints that came along inside something else."""
    [out], [source] = endpoints["producers"], endpoints["consumers"]
    with out:
        out.put_many(items)
    with source:
        return [source.get() for _ in items]


def use_received(role: Role, connection: Any) -> list[Any]:
    """Receive a producer, a consumer and items, from a pipe's end or a queue, and use them."""
    receive = getattr(connection, "recv", None) or connection.get
    out, source, items = receive()
    with out:
        out.put_many(items)
    with source:
        return [source.get() for _ in items]


def receive_by_consumer(role: Role, road: Consumer[Any]) -> list[Any]:
    """Receive a producer, a consumer and items, as an item, and use them."""
    taken: list[Any] = []
    for out, source, items in road:
        taken += use_task(out, source, items)
    return taken


def announce(path: str) -> None:
    """Started by a pool in each of its processes: say that it is there, to be ended if need be."""
    Role(path, f"pool-{os.getpid()}", 0.0).post("pid", os.getpid())


def use_task(out: Producer[Any], source: Consumer[Any], items: list[Any]) -> list[Any]:
    """A task of a pool: use the endpoints."""
    with out:
        out.put_many(items)
    with source:
        return [source.get() for _ in items]


def send_back(role: Role, connection: Any, endpoint: Any) -> None:
    """Hand *endpoint* on without having used it, and live until told to go on."""
    connection.send(endpoint)
    role.wait("go")


def send_new_producer(role: Role, queue: Any, connection: Any) -> None:
    """Make a producer, send it off, drop it, and be killed when told so."""
    out = queue.get_producer()
    connection.send(out)
    del out
    role.post("sent")
    role.wait("go")
    die()


def make_and_be_killed(role: Role, make: Callable[..., Any], connection: Any) -> None:
    """Make a queue, send a consumer of it off, and be killed when told so."""
    queue = make()
    connection.send(queue.get_consumer())
    role.post("sent")
    role.wait("go")
    die()


def open_pickle(role: Role, pickled: bytes) -> str | None:
    """Open a pickled producer and put its role's name. Returns why not, if not."""
    out = pickle.loads(pickled)
    try:
        out.put(role.name)
    except (EndpointElsewhere, ProducerClosed) as error:
        return str(error)
    out.close()
    return None


def use_clone(role: Role, out: Producer[Any], items: list[Any]) -> None:
    """Close a producer after having cloned it, and put by the clone."""
    clone = out.clone()
    out.close()
    with clone:
        clone.put_many(items)


def hold_open(role: Role, out: Producer[Any]) -> None:
    """Put one item, keep the producer open until told to go on, and close it."""
    with out:
        out.put(os.getpid())
        role.post("ready", os.getpid())
        role.wait("go")
        out.put("still here")


# Signals


def put_from_a_handler(role: Role, out: Producer[Any], interruptions: int) -> tuple[int, int]:
    """Put numbers, while a signal handler puts too, until it was called so often.

    Or, after some seconds, at all: CPython 3.13 calls handlers only now and then in a process that
    was forked by another thread than the main one.

    Returns how many numbers were put, and how often the handler could.
    """
    called = could = count = 0
    enough = monotonic() + 3

    def handle(_number: int, _frame: object) -> None:
        nonlocal called, could
        called += 1
        try:
            out.put("handler")
        except IterableQueueError:
            return
        could += 1

    signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        while called < interruptions and not (called and monotonic() > enough):
            out.put(count)
            count += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
    out.close()
    return count, could

"""Puppets: processes or threads that hold an endpoint and do with it what a test tells them.

A test that says step by step who does what needs no sleeps and no luck: `Stage.cast(endpoint)`
starts a puppet, `puppet.run(act, ...)` has it call `act(endpoint, ...)` and returns or raises what
that did, and `puppet.begin(act, ...)` does so without waiting. An *act* is a function at the top
of a module, so that it can be sent under every start method.

Children import this module, so it must not import pytest.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    NamedTuple,
    NoReturn,
    ParamSpec,
    Self,
    TypeVar,
    cast,
)

from iterable_queue import Consumer, IterableQueue, Producer, Worker
from iterable_queue import _cells as cells_
from iterable_queue._endpoints import Endpoint
from iterable_queue._liveness import may_be_stopped

if TYPE_CHECKING:
    from tests.conftest import Context, Processes

E = TypeVar("E")
R = TypeVar("R")
T = TypeVar("T")
P = ParamSpec("P")

PATIENCE_S = 20.0
"""How long a puppet may take for what it was told."""


def on_this_machine(seconds: float) -> float:
    """*seconds*, times as many processes as want to run for each core: so much longer they take.

    For the few tests that are about time itself.
    """
    return seconds * max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))


# Puppets


class Ended(Exception):
    """The puppet's process ended, with this exit code, before it said how its act went."""

    def __init__(self, exitcode: int | None) -> None:
        super().__init__(exitcode)
        self.exitcode = exitcode


class Leave(Exception):
    """Raised by an act: the puppet leaves its stage by this error, which nothing catches."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


class Outcome(NamedTuple):
    """How an act went."""

    value: Any
    error: BaseException | None
    began: float
    at: float
    """When it began and ended, on `time.monotonic`, which all processes of a machine share."""


class Call(Generic[R]):
    """An act that a puppet was told to do. The calls of one puppet are asked in their order."""

    def __init__(self, puppet: Puppet[Any]) -> None:
        self._puppet = puppet
        self._outcome: Outcome | None = None

    def outcome(self, timeout: float = PATIENCE_S) -> Outcome:
        """Wait for the act's end. Raises `Ended`, or TimeoutError after *timeout* seconds."""
        if self._outcome is None:
            self._outcome = self._puppet.hear(timeout)
        return self._outcome

    def result(self, timeout: float = PATIENCE_S) -> R:
        """What the act returned; raises what it raised."""
        outcome = self.outcome(timeout)
        if outcome.error is not None:
            raise outcome.error
        value: R = outcome.value
        return value

    def error(self, timeout: float = PATIENCE_S) -> BaseException:
        """What the act raised; AssertionError if it did not."""
        outcome = self.outcome(timeout)
        assert outcome.error is not None, f"returned {outcome.value!r}"
        return outcome.error

    def is_over(self) -> bool:
        """Whether the act has ended by now."""
        return self._outcome is not None or self._puppet.strings.poll(0)


class Puppet(Generic[E]):
    """A thread or process that holds an endpoint, or the queue, and acts as it is told."""

    def __init__(self, strings: Connection[Any, Any], process: Any, method: str) -> None:
        self.strings = strings
        self.process = process
        self.method = method

    @property
    def pid(self) -> int:
        """The process's pid."""
        pid: int = self.process.pid
        return pid

    def begin(
        self, act: Callable[Concatenate[E, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> Call[R]:
        """Tell it to call `act(endpoint, *args, **kwargs)`."""
        self.strings.send((act, args, kwargs))
        return Call(self)

    def run(self, act: Callable[Concatenate[E, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """The same, waiting for what that returns or raises."""
        return self.begin(act, *args, **kwargs).result()

    def go(self) -> None:
        """Let it return, without another word to its endpoint, and wait until it has ended."""
        self.strings.send(None)
        self.process.join(PATIENCE_S)

    def hear(self, timeout: float) -> Outcome:
        """The outcome of its next act."""
        deadline = time.monotonic() + timeout
        while not self.strings.poll(0.01):
            if not self.process.is_alive() and not self.strings.poll(0):
                self.process.join(PATIENCE_S)
                raise Ended(getattr(self.process, "exitcode", None))
            if time.monotonic() > deadline:
                raise TimeoutError(f"no word from {self.process!r} within {timeout:g} s")
        try:
            outcome: Outcome = self.strings.recv()
        except (EOFError, ConnectionResetError):
            self.process.join(PATIENCE_S)
            raise Ended(getattr(self.process, "exitcode", None)) from None
        return outcome


def perform(strings: Connection[Any, Any], endpoint: Any) -> None:
    """What a puppet runs, for as long as it is told what to do."""
    while (told := strings.recv()) is not None:
        act, args, kwargs = told
        began = time.monotonic()
        try:
            outcome = Outcome(act(endpoint, *args, **kwargs), None, began, time.monotonic())
        except Leave as leave:
            raise leave.error from None
        except Exception as error:
            outcome = Outcome(None, error, began, time.monotonic())
        strings.send(outcome)
        del told, act, args, kwargs, outcome


def context_of(method: str) -> Context:
    """The standard library's context of a start method."""
    match method:
        case "fork":
            return get_context("fork")
        case "spawn":
            return get_context("spawn")
        case _:
            assert method == "forkserver"
            return get_context("forkserver")


class Stage:
    """Where puppets of one kind act: threads, or processes of one start method."""

    def __init__(self, context: Context | None, processes: Processes) -> None:
        self.context = context
        self.method = "threads" if context is None else context.get_start_method()
        self.processes = processes
        self._puppets: list[Puppet[Any]] = []
        self._threaded: list[IterableQueue[int]] = []

    def queue(self, maxsize: int = 0, **options: Any) -> IterableQueue[int]:
        """A queue for this kind of puppets."""
        if self.context is None:
            iq = IterableQueue[int].threaded(maxsize)
            self._threaded.append(iq)
            return iq
        return IterableQueue[int](maxsize, context=self.context, **options)

    def cast(self, endpoint: E) -> Puppet[E]:
        """A puppet that holds *endpoint*."""
        here, there = Pipe()
        if self.context is None:
            process: Any = threading.Thread(target=perform, args=(there, endpoint), daemon=True)
            process.start()
        else:
            process = self.processes.start(
                self.context.Process(target=perform, args=(there, endpoint))
            )
            there.close()
        puppet: Puppet[E] = Puppet(here, process, self.method)
        self._puppets.append(puppet)
        return puppet

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def end(self) -> None:
        """Let all puppets go. The fixture kills processes that do not."""
        for iq in self._threaded:
            iq.cancel()  # where a test has failed, threads may wait
        for puppet in self._puppets:
            try:
                puppet.strings.send(None)
            except OSError:  # it has ended
                pass
        deadline = time.monotonic() + on_this_machine(3)
        for puppet in self._puppets:
            if self.context is None or not may_be_stopped(puppet.pid):
                puppet.process.join(max(deadline - time.monotonic(), 0.001))
            puppet.strings.close()


# Acts of producers


def nothing(endpoint: object) -> None:
    """To know that the puppet is there."""


def put(out: Producer[int] | Worker[int], *items: int) -> None:
    """Put them one by one."""
    for item in items:
        out.put(item)


def put_within(out: Producer[int], item: int, timeout: float) -> None:
    """Put one with a time-out, in seconds."""
    out.put(item, timeout=timeout)


def put_now(out: Producer[int], item: int) -> None:
    """Put one without waiting."""
    out.put_nowait(item)


def put_and_close(out: Producer[int], items: Iterable[int]) -> None:
    """All that a simple producer does."""
    with out:
        for item in items:
            out.put(item)


def put_and_fail(out: Producer[int], items: Iterable[int], error: Exception) -> NoReturn:
    """A producer whose block is left by *error*."""
    with out:
        for item in items:
            out.put(item)
        raise error


def fail(out: Producer[int] | Worker[int], error: BaseException) -> None:
    """Report it."""
    out.fail(error)


# Acts of consumers


def get(source: Consumer[T], count: int = 1) -> list[T]:
    """Take so many, one by one."""
    return [source.get() for _ in range(count)]


def get_within(source: Consumer[T], timeout: float) -> T:
    """Take one with a time-out, in seconds."""
    return source.get(timeout=timeout)


def get_now(source: Consumer[T]) -> T:
    """Take one without waiting."""
    return source.get_nowait()


def poll(source: Consumer[T], pause_s: float) -> tuple[list[T], BaseException]:
    """Ask again and again without waiting in the library: every item, and the error at the end."""
    items: list[T] = []
    while True:
        try:
            items.append(source.get_nowait())
        except Empty:
            time.sleep(pause_s)  # what a caller that polls does between two calls
        except Exception as error:
            return items, error


def drain(source: Consumer[T]) -> list[T]:
    """Iterate until the end, whatever that is."""
    return list(source)


def drain_until(source: Consumer[T]) -> tuple[list[T], BaseException]:
    """Every item, and the error that came instead of one more."""
    items: list[T] = []
    try:
        while True:
            items.append(source.get())
    except Exception as error:
        return items, error


def drain_and_close(source: Consumer[T]) -> list[T]:
    """All that a simple consumer does."""
    with source:
        return list(source)


def drain_timed(source: Consumer[float]) -> list[tuple[float, float]]:
    """Of each item, itself and when it came."""
    return [(item, time.monotonic()) for item in source]


# Acts of workers


def grow(tree: Worker[int], size: int) -> int:
    """Walk the binary tree of the numbers below *size*. Returns how many were visited here."""
    visited = 0
    with tree:
        for node in tree:
            visited += 1
            for child in (2 * node + 1, 2 * node + 2):
                if child < size:
                    tree.put(child)
    return visited


# Acts of all endpoints


def close(endpoint: Endpoint | Producer[int] | Consumer[int] | Worker[int]) -> None:
    """Close it."""
    endpoint.close()


_kept = threading.local()


def keep_clone(endpoint: Producer[int] | Consumer[int] | Worker[int]) -> None:
    """Make a clone, which this puppet keeps: see `on_clone`."""
    _kept.clone = endpoint.clone()


def on_clone(endpoint: object, act: Callable[..., R], *args: object) -> R:
    """Do *act* with the kept clone."""
    return act(_kept.clone, *args)


# Acts of those who hold the queue itself


def make_producer_and_put(iq: IterableQueue[int], *items: int) -> None:
    """A producer of this process's own making."""
    with iq.get_producer() as out:
        put(out, *items)


def make_consumer_and_drain(iq: IterableQueue[int]) -> list[int]:
    """A consumer of this process's own making."""
    with iq.get_consumer() as source:
        return list(source)


def close_queue(iq: IterableQueue[int]) -> None:
    """Close it."""
    iq.close()


def join_queue(iq: IterableQueue[int], timeout: float | None = None) -> bool:
    """Wait for its end."""
    return iq.join(timeout)


def make_queue(endpoint: None) -> tuple[Producer[int], Consumer[int]]:
    """A queue of this process's own, which it keeps; its endpoints go to who asked."""
    _kept.iq = iq = IterableQueue[int]()
    return iq.get_producer(), iq.get_consumer()


# Acts of those who get what travelled


def use(thing: Any) -> object:
    """What a finder does with an endpoint, or the queue: a producer's part, or a consumer's."""
    if isinstance(thing, IterableQueue):
        make_producer_and_put(cast("IterableQueue[int]", thing), 1, 2)
        return "made a producer"
    if hasattr(thing, "get"):
        with thing:
            return list(thing)
    with thing:
        put(thing, 1, 2)
    return "put"


def use_first(things: list[Any]) -> object:
    """The same with the only one of a list."""
    return use(things.pop())


def use_what_comes(carrier: Any) -> object:
    """The same with what comes by a pipe or a queue."""
    receive = getattr(carrier, "recv", None) or carrier.get
    return use(receive())


def answer(back: Connection[Any, Any], act: Callable[..., object], thing: Any) -> None:
    """Do *act* with *thing*, and send back what it returns or raises."""
    try:
        back.send((act(thing), None))
    except Exception as error:
        back.send((None, error))


def open_pickle(held: None, data: bytes) -> str:
    """Open it, and keep what was in it: see `on_opened`."""
    import pickle

    _kept.opened = pickle.loads(data)
    return repr(_kept.opened)


def on_opened(held: object, act: Callable[..., R], *args: object) -> R:
    """Do *act* with what was opened."""
    return act(_kept.opened, *args)


def drop_opened(held: object) -> None:
    """Let go of it."""
    del _kept.opened


def to_pickle(thing: object) -> bytes:
    """Its pickle."""
    import pickle

    return pickle.dumps(thing)


# Ends of a process


def leave_by_exit(endpoint: object, code: int) -> NoReturn:
    """End at once, with nothing run on the way out."""
    os._exit(code)


def leave_by_sys_exit(endpoint: object, code: int) -> NoReturn:
    """End as a script does that is through."""
    raise Leave(SystemExit(code))


def leave_by_error(endpoint: object) -> NoReturn:
    """End by an error that nobody catches."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - multiprocessing prints the traceback
    raise Leave(ValueError("boom"))


def stay_inside(endpoint: Any, inside: Path, named: bool = True) -> NoReturn:
    """Take the queue's lock, make the file *inside*, and never come out.

    Not *named*: as if at the instant between taking the lock and saying who has it.
    """
    core = endpoint._core

    def stay() -> NoReturn:
        inside.touch()
        while True:
            signal.pause()

    with core.runtime.lock:
        if named:
            core.ledger.transact(stay)
        stay()


def stay_while_leaving(endpoint: Any, inside: Path) -> NoReturn:
    """As if stopped on its way out: the process has said farewell, but has the queue's lock."""
    core = endpoint._core
    with core.runtime.lock:
        core.ledger.transact(core._leave, "", None)
        inside.touch()
        while True:
            signal.pause()


def stay_while_joining(held: None, data: bytes, inside: Path) -> NoReturn:
    """Open a pickle, and never get further than to taking the lock in order to take part."""
    import pickle

    from iterable_queue._shared import SharedCore

    def stay(core: SharedCore, slot: int) -> NoReturn:
        inside.touch()
        while True:
            signal.pause()

    setattr(SharedCore, "_hold_life", stay)  # noqa: B010 - checkers know it as a method
    pickle.loads(data)
    raise AssertionError("went on")


def stay_while(endpoint: Any, inside: Path, until: Path, named: bool = True) -> None:
    """Take the queue's lock, make the file *inside*, and come out once *until* is there.

    Not *named*: as in `stay_inside`.
    """
    core = endpoint._core

    def stay() -> None:
        inside.touch()
        while not until.exists():
            time.sleep(0.001)

    with core.runtime.lock:
        if named:
            core.ledger.transact(stay)
        else:
            stay()


def holder(iq: IterableQueue[Any]) -> int:
    """The slot of the process inside the queue's lock, as the ledger has it; 0: nobody."""
    return iq._core.ledger.head[cells_.HOLDER]

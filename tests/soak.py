"""What the processes of `tests.test_soak` run: they put and take, and write down what they did.

Each one has a *journal*, a file to which it adds a record by one `os.write` after each call and
before the next one. So what a process did before it was killed is known from outside, but for the
call that it was in.

Children import this module, so it must not import pytest.
"""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from queue import Empty, Full
from struct import Struct
from typing import Any, Final, NamedTuple

from iterable_queue import (
    ConsumersGone,
    Done,
    ItemsLost,
    ProducerFailed,
    _runtime,
    _shared,
)

RECORD: Final = Struct("<cqq")

# What a record says; and the two numbers in it.
BEGUN: Final = b"b"  # is about to put these: the first, the one behind the last
PUT: Final = b"p"  # that call returned: the same
TOOK: Final = b"t"  # was handed this one; by a call that handed out so many
NOTHING: Final = b"n"  # came back for more after that, and there was nothing
CLOSING: Final = b"c"  # is about to close
CLOSED: Final = b"C"  # that call returned
FAILING: Final = b"f"  # is about to report a failure, and has not closed if it is killed
LEFT: Final = b"l"  # ends its process with the endpoint open
GONE: Final = b"g"  # was told that nobody will take what it puts
ENDED: Final = b"e"  # was told that it is over: see `VERDICTS`
ERROR: Final = b"x"  # something else was raised, which is in the file beside it

VERDICTS: Final[tuple[type[Exception], ...]] = (Done, ProducerFailed, ItemsLost, ConsumersGone)
"""What may be said at the end, by numbers. The first one stands for `join`'s True as well."""

WHO_SHIFT: Final = 32
"""An item is a number: who put it, and below that how many it had put before."""
WORKERS_FROM: Final = 100
"""Workers have such numbers: what they put makes no more work."""

LARGE: Final = 300_000
"""Bytes of a large item."""


class Setting(NamedTuple):
    """What holds for all processes of a round.

    Attributes:
        room: the directory of the journals.
        slice_s, look_s: what `_runtime.SLICE_S` and `_shared.LOOK_S` are in it.
    """

    room: str
    slice_s: float
    look_s: float

    def apply(self) -> None:
        """Have it hold in this process."""
        values: dict[str, tuple[Any, float]] = {
            "SLICE_S": (_runtime, self.slice_s),
            "LOOK_S": (_shared, self.look_s),
        }
        for name, (module, value) in values.items():
            setattr(module, name, value)


class Part(NamedTuple):
    """What one process does.

    Attributes:
        who: its number.
        kind: of its endpoint: "producer", "consumer" or "worker"; or "joiner", who has the queue.
        method: how it is started.
        seed: of all that it decides by chance.
        most: items that it puts, or after which it stops to take.
        items, calls: the kinds of items and of calls of which it chooses.
        limit: most items that it takes by one call.
        end: what it does at last: "close", "fail", "leave" or "exit".
        busy_s: how long it is busy between two calls at most, in seconds.
        often: how often it is: 1.0 is always.
        fuse: it is killed so many microseconds after it began so many calls.
        kill_us: it is killed by another process so many microseconds after its start.
    """

    who: int
    kind: str
    method: str
    seed: int
    most: int
    items: tuple[str, ...]
    calls: tuple[str, ...]
    limit: int
    end: str
    busy_s: float
    often: float
    fuse: tuple[int, int] | None
    kill_us: int | None


# Items


def make_item(kind: str, number: int) -> Any:
    """The item of that number and kind."""
    match kind:
        case "int":
            return number
        case "bytes":
            return b"%d" % number
        case "large":
            return number.to_bytes(8, "little") + bytes([number % 251]) * (LARGE - 8)
        case _:
            assert kind == "dict"
            return {"number": number, "text": "x" * (number % 100)}


def number_of(item: Any) -> int:
    """The number of an item. ValueError, if it is not as it was made."""
    kind, number = _READERS[type(item)](item)
    if item != make_item(kind, number):
        raise ValueError(f"a {kind} item is not what was put: {str(item)[:100]}")
    return number


def _read_bytes(item: bytes) -> tuple[str, int]:
    if len(item) == LARGE:
        return "large", int.from_bytes(item[:8], "little")
    return "bytes", int(item)


_READERS: dict[type, Callable[[Any], tuple[str, int]]] = {
    int: lambda item: ("int", item),
    bytes: _read_bytes,
    dict: lambda item: ("dict", item["number"]),
}


# Journals


class Journal:
    """What one process writes down."""

    def __init__(self, path: str) -> None:
        self.path = path
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o600)

    def note(self, what: bytes, first: int = 0, end: int = 0) -> None:
        """Add a record."""
        os.write(self._fd, RECORD.pack(what, first, end))

    def note_items(self, numbers: list[int]) -> None:
        """Items that one call has handed out."""
        count = len(numbers)
        os.write(self._fd, b"".join(RECORD.pack(TOOK, number, count) for number in numbers))


class Story(NamedTuple):
    """A journal, read.

    Attributes:
        begun: the puts that were begun and did not return, as ranges of numbers.
        put: those that did.
        took: the numbers of the items taken, in their order.
        last: how many of these the last call handed out; 0: none.
        said: every other kind of record.
        verdict: what came with ENDED; -1: nothing.
    """

    begun: list[range]
    put: list[range]
    took: list[int]
    last: int
    said: set[bytes]
    verdict: int


def read_journal(path: str) -> Story:
    """What a process wrote; nothing, if it never came to that."""
    story = Story([], [], [], 0, set(), -1)
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return story
    whole = len(data) // RECORD.size * RECORD.size  # it may have been killed in the last one
    for what, first, end in RECORD.iter_unpack(data[:whole]):
        match what:
            case b"b":
                story.begun.append(range(first, end))
            case b"p":
                story.begun.remove(range(first, end))
                story.put.append(range(first, end))
            case b"t":
                story.took.append(first)
                story = story._replace(last=end)
            case b"n":
                story = story._replace(last=0)
            case b"e":
                story = story._replace(verdict=first)
                story.said.add(what)
            case _:
                story.said.add(what)
    return story


# Deaths


class Fuse:
    """Ends this process at some instant: so many microseconds after it began so many calls.

    By the default action of SIGALRM, which leaves it no more time than SIGKILL does.
    """

    def __init__(self, fuse: tuple[int, int] | None) -> None:
        self._left, self._us = fuse or (-1, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def burn(self) -> None:
        """Called before each call of the library."""
        self._left -= 1
        if self._left == 0:
            if self._us == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            signal.setitimer(signal.ITIMER_REAL, self._us / 1e6)


# Parts


def act(part: Part, setting: Setting, endpoint: Any) -> None:
    """What the process of that part runs."""
    path = f"{setting.room}/{part.who}"
    # Not closed: SIGUSR1 has the stacks written to it, until the end.
    stacks = open(f"{path}.stacks", "w")  # noqa: SIM115
    faulthandler.register(signal.SIGUSR1, stacks, all_threads=True)
    setting.apply()
    fuse = Fuse(part.fuse)
    journal = Journal(path)
    try:
        if part.kind == "producer":
            _Producing(part, endpoint, journal, fuse).run()
        elif part.kind == "joiner":
            _Joining(part, endpoint, journal, fuse).run()
        else:
            _Taking(part, endpoint, journal, fuse).run()
    except BaseException:
        with open(f"{path}.error", "w") as file:
            traceback.print_exc(file=file)
        journal.note(ERROR)
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - multiprocessing prints it again
        raise


class _Acting:
    def __init__(self, part: Part, endpoint: Any, journal: Journal, fuse: Fuse) -> None:
        self.part = part
        self.endpoint = endpoint
        self.journal = journal
        self.fuse = fuse
        self.chance = random.Random(part.seed)
        self.count = 0
        """Numbers given to items so far."""

    def put(self, call: str, kind: str) -> None:
        """Put one item, or some."""
        many = call in ("range", "list")
        count = 1
        if many:
            count = self.chance.choice((0, 1, 2, 7, 60, 300, 1500))
            left = 7 if self.part.kind == "worker" else self.part.most - self.count
            count = min(count, 2 if kind == "large" else max(left, 2))
        first = self.part.who << WHO_SHIFT | self.count
        numbers = range(first, first + count)
        self.count += count
        self.journal.note(BEGUN, first, first + count)
        self.fuse.burn()
        if call == "range":
            self.endpoint.put_many(numbers)
        elif call == "list":
            self.endpoint.put_many([make_item(kind, number) for number in numbers])
        else:
            _PUTS[call](self.endpoint, make_item(kind, first))
        self.journal.note(PUT, first, first + count)

    def close(self) -> None:
        self.journal.note(CLOSING)
        self.fuse.burn()
        self.endpoint.close()
        self.journal.note(CLOSED)

    def end(self) -> None:
        """Leave in the way that the part says."""
        match self.part.end:
            case "close":
                self.close()
            case "fail":
                self.journal.note(FAILING)
                self.fuse.burn()
                self.endpoint.fail(ValueError("on purpose"))
            case "leave":
                self.journal.note(LEFT)
                self.fuse.burn()
            case _:
                self.journal.note(LEFT)
                os._exit(3)

    def work(self) -> None:
        """Be busy for a moment, or not."""
        if self.part.busy_s and self.chance.random() < self.part.often:
            seconds = self.chance.random() * self.part.busy_s
            if seconds > 0.001:
                time.sleep(seconds)
            else:
                # That would be no less than a tenth of a millisecond.
                until = time.perf_counter() + seconds
                while time.perf_counter() < until:
                    pass


class _Producing(_Acting):
    def run(self) -> None:
        try:
            while self.count < self.part.most:
                self.put(self.chance.choice(self.part.calls), self.chance.choice(self.part.items))
                self.work()
        except ConsumersGone:
            self.journal.note(GONE)
            self.close()
        else:
            self.end()


class _Taking(_Acting):
    def run(self) -> None:
        left = self.part.most
        holds = False
        loop = iter(self.endpoint)
        while left > 0:
            call = self.chance.choice(self.part.calls)
            try:
                self.fuse.burn()
                items = self.take(call, loop)
            except Empty:
                if holds:
                    self.journal.note(NOTHING)
                holds = False
                continue
            except (Done, StopIteration, ProducerFailed) as end:
                self.journal.note(ENDED, int(isinstance(end, ProducerFailed)))
                self.close()
                return
            numbers = [number_of(item) for item in items]
            self.journal.note_items(numbers)
            left -= len(numbers)
            holds = True
            if self.part.kind == "worker":
                self.make_more(numbers)
            self.work()
        self.end()

    def take(self, call: str, loop: Iterator[Any]) -> list[Any]:
        match call:
            case "next":
                return [next(loop)]
            case "many":
                some: list[Any] = self.endpoint.get_many(self.chance.randint(1, self.part.limit))
                return some
            case _:
                return [_GETS[call](self.endpoint)]

    def make_more(self, numbers: list[int]) -> None:
        """Some items of producers make more items."""
        for number in numbers:
            if number >> WHO_SHIFT < WORKERS_FROM and number % 3 == 0:
                kind = self.chance.choice(self.part.items)
                self.put("list" if number % 9 == 0 else "put", kind)


class _Joining(_Acting):
    def run(self) -> None:
        self.fuse.burn()
        try:
            assert self.endpoint.join()
            verdict = 0
        except VERDICTS as error:
            verdict = VERDICTS.index(type(error))
        self.journal.note(ENDED, verdict)


def _put_in_time(out: Any, item: Any) -> None:
    while True:
        try:
            out.put(item, timeout=0.003)
            return
        except Full:
            pass


def _put_now(out: Any, item: Any) -> None:
    while True:
        try:
            out.put_nowait(item)
            return
        except Full:
            time.sleep(0.0005)  # what a caller that polls does between two calls


def _put(out: Any, item: Any) -> None:
    out.put(item)


def _get(source: Any) -> Any:
    return source.get()


def _get_in_time(source: Any) -> Any:
    return source.get(timeout=0.003)


def _get_now(source: Any) -> Any:
    try:
        return source.get_nowait()
    except Empty:
        time.sleep(0.0005)
        raise


_PUTS: dict[str, Callable[[Any, Any], None]] = {
    "put": _put,
    "in time": _put_in_time,
    "now": _put_now,
}
_GETS: dict[str, Callable[[Any], Any]] = {
    "get": _get,
    "in time": _get_in_time,
    "now": _get_now,
}


# Two that play ping-pong


def answer(source: Any, back: Any, room: str) -> None:
    """Put each item that comes on another queue."""
    stacks = open(f"{room}/answer.stacks", "w")  # noqa: SIM115 - as in `act`
    faulthandler.register(signal.SIGUSR1, stacks, all_threads=True)
    with back:
        for item in source:
            back.put(item)

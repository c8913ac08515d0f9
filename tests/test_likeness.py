"""Every channel does what the fake does: random calls, one at a time, in several processes.

One call at a time leaves open no more than whose item a consumer is given. So each call must end as
it does on a `FakeQueue`, and after each call all counts must be as there, whichever process looks:
what a queue promises to users, and what they try their own code with, are one thing. Processes are
killed and leave as well.

Everything is chosen from a seed, which a failure names, with the calls that led to it. For ten
minutes of each kind of queue, or `SOAK_SECONDS`, beginning with the seed `SOAK_SEED` or any:

    pytest -m soak tests/test_likeness.py -n 0 -s
"""

from __future__ import annotations

import gc
import os
import random
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest

from iterable_queue import IterableQueue, Statistics, _shared
from iterable_queue.testing import FakeQueue
from tests.actors import context_of
from tests.conftest import FORKS, Process, Processes, wait_until
from tests.redis_server import Server, running
from tests.soak import make_item, number_of

pytestmark = [
    FORKS,
    pytest.mark.time_limit(90),
    pytest.mark.filterwarnings("ignore:.* was dropped:ResourceWarning"),
]

WAIT_S = 20.0
"""For how long a process may take to answer."""
LOOK_S = 0.02
"""Between two looks who has died, where processes are forked: 0.8 s would be most of a round."""
BRIEFLY_S = 0.001
"""How long a call waits that is to wait in vain."""
KINDS = ("producer", "consumer", "worker")
CHANGED_BY_ORDER = ("lost", "redelivered", "dropped")
"""Of a queue that cancels for a failure: they say whether a dead process's producer came first."""


class Outcome(NamedTuple):
    """How a call ended.

    Attributes:
        raised: the name of the error, or "".
        value: what it returned, or the error's text.
    """

    raised: str
    value: Any = None


# The calls of one process


def item_of(kind: str, number: int) -> object:
    """An item; of the kind "none", one that can't be pickled."""
    return (lambda: number) if kind == "none" else make_item(kind, number)


class Side:
    """A queue and those of its endpoints that one process has, by numbers of the test's own."""

    def __init__(self, iq: Any) -> None:
        self._iq = iq
        self.ends: dict[int, Any] = {}

    def do(self, command: str, *args: Any) -> Outcome:
        """Do it, and say how that ended."""
        try:
            return Outcome("", getattr(self, command)(*args))
        except Exception as error:
            return Outcome(type(error).__name__, str(error))

    def open(self, kind: str, n: int) -> None:
        self.ends[n] = getattr(self._iq, f"get_{kind}")()

    def clone(self, n: int, new: int) -> None:
        self.ends[new] = self.ends[n].clone()

    def hold(self, n: int, endpoint: Any) -> None:
        self.ends[n] = endpoint

    def give(self, n: int) -> Any:
        return self.ends.pop(n)

    def drop(self, n: int) -> None:
        del self.ends[n]
        gc.collect()  # on 3.11 and 3.12, an error that was caught may be in a cycle with it

    def enter(self, n: int) -> None:
        self.ends[n].__enter__()

    def close(self, n: int) -> None:
        self.ends[n].close()

    def fail(self, n: int) -> None:
        self.ends[n].fail(ValueError("bad"))

    def put(self, n: int, call: str, kind: str, first: int, count: int) -> None:
        items = [item_of(kind, first + k) for k in range(count)]
        match call:
            case "put_many":
                self.ends[n].put_many(items)
            case "put":
                self.ends[n].put(items[0], timeout=BRIEFLY_S)
            case _:
                self.ends[n].put_nowait(items[0])

    def get(self, n: int, call: str) -> int:
        return number_of(getattr(self.ends[n], call)())

    def get_in_vain(self, n: int) -> int:
        return number_of(self.ends[n].get(timeout=BRIEFLY_S))

    def get_many(self, n: int, limit: int) -> list[int]:
        return [number_of(item) for item in self.ends[n].get_many(limit)]

    def get_patiently(self, n: int) -> int:
        return number_of(self.ends[n].get(timeout=WAIT_S / 2))

    def get_quickly(self, n: int, most: int, patiently: int = 0) -> tuple[int, str]:
        """How many there were, and how the last call ended. The first ones may have to wait."""
        for taken in range(most):
            patient = taken < patiently
            outcome = self.do("get_patiently", n) if patient else self.do("get", n, "get_nowait")
            if outcome.raised:
                return taken, outcome.raised
        return most, ""

    def queue(self, call: str) -> Any:
        return getattr(self._iq, call)()

    def join(self) -> bool:
        return bool(self._iq.join(0))


def serve(iq: Any, connection: Connection[Any, Any]) -> None:
    """What each process does: as it is told, until it is told None."""
    warnings.simplefilter("ignore", ResourceWarning)
    side = Side(iq)
    while command := connection.recv():
        connection.send(side.do(*command))


class There:
    """The side of another process."""

    def __init__(self, process: Process, connection: Connection[Any, Any]) -> None:
        self.process = process
        self._connection = connection

    def do(self, command: str, *args: Any) -> Outcome:
        self._connection.send((command, *args))
        if not self._connection.poll(WAIT_S):
            pytest.fail(f"process {self.process.pid} does not answer: {command}{args}")
        outcome: Outcome = self._connection.recv()
        return outcome

    def kill(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self._ended()

    def leave(self) -> None:
        self._connection.send(None)
        self._ended()
        assert self.process.exitcode == 0

    def _ended(self) -> None:
        wait_until(lambda: self.process.exitcode is not None, "the process has ended")
        self._connection.close()


# Rounds


class Kind(NamedTuple):
    """A kind of queue.

    Attributes:
        make: makes one, by its maxsize and options.
        method: how processes start; "": there are none.
        server: it is on one. There an endpoint that has arrived in a process is that process's;
            what others have claimed has to be asked for, which a busy machine may take long for;
            and the server learns of what is handed out a moment later.
        options: what `make` takes.
        rounds: how many there are of it in the suite.
    """

    make: Callable[..., IterableQueue[Any]]
    method: str = "fork"
    server: bool = False
    options: tuple[str, ...] = ("on_failure", "redeliver")
    rounds: int = 2


class Doing(Protocol):
    def do(self, command: str, *args: Any) -> Outcome: ...


class Round:
    """Two queues, a real one and a fake, to which the same is done.

    Attributes:
        said: what was done, and how it ended.
    """

    def __init__(self, kind: Kind, seed: int, processes: Processes) -> None:
        self._chance = random.Random(seed)
        self._eyes = random.Random(seed)  # of its own: how often all is compared, time decides
        self._kind = kind
        self._processes = processes
        self._maxsize = self._chance.choice((0, 0, 1, 3, 10))
        chosen: dict[str, Any] = {
            "on_failure": self._chance.choice(("raise", "raise", "raise", "cancel")),
            "redeliver": self._chance.choice((False, True)),
        }
        self._options = {name: chosen[name] for name in kind.options}
        self.said: list[str] = [f"maxsize {self._maxsize}, {self._options}"]
        self._iq = kind.make(self._maxsize, **self._options)
        pickled = bool(kind.method)
        self._fake = FakeQueue[Any](maxsize=self._maxsize, pickled=pickled, **self._options)
        self._model = Side(self._fake)
        self._here = Side(self._iq)
        self._others: list[There] = []
        for _ in range(3 if kind.method else 0):
            self._others.append(self._start())
        self._where: dict[int, Doing] = {}
        self._kinds: dict[int, str] = {}
        self._numbers = 0
        self._items = 0
        self._taken = set[int]()

    def _start(self) -> There:
        context = context_of(self._kind.method)
        here, there = get_context().Pipe()
        process = self._processes.start(context.Process(target=serve, args=(self._iq, there)))
        there.close()
        return There(process, here)

    def run(self, steps: int) -> None:
        """Do so many things, each of them on both."""
        acts: dict[Callable[[], None], float] = {
            self._put: 36,
            self._get: 34,
            self._close: 8,
            self._get_many: 8,
            self._get_quickly: 6,
            self._look: 5,
            self._clone: 5,
            self._drop: 4,
            self._enter: 4,
            self._join: 3,
            self._fail: 1.5,
            self._close_queue: 1,
            self._cancel: 0.3,
        }
        if self._others:
            acts |= {self._give: 5, self._pass_on: 5, self._kill: 3, self._leave: 2}
        # Some of it more often in one round, and other things never: what comes of two that are
        # seldom is reached sooner ("Swarm testing", Groce and others, ISSTA 2012).
        often = [often * self._chance.choice((0, 1, 1, 4)) for often in acts.values()]
        for act in self._chance.choices([self._open, *acts], [10, *often], k=steps):
            act()
        for other in self._others:
            other.leave()

    def _sides(self) -> list[Doing]:
        return [self._here, *self._others]

    # What is compared

    def _both(self, where: Doing, command: str, *args: Any) -> Outcome:
        """The same to both. Returns how it ended on the real queue."""
        return self._same(where.do(command, *args), self._model.do(command, *args), command, *args)

    def _same(self, real: Outcome, fake: Outcome, *what: Any) -> Outcome:
        self.said.append(f"{what}: {real.raised or real.value}")
        assert real.raised == fake.raised, (what, real, fake)
        self._compare()
        return real

    def _differences(self) -> dict[str, tuple[Any, Any]]:
        asked = self._eyes.choice(self._sides()).do("queue", "statistics")
        assert asked.raised == "", asked
        cancels = self._options.get("on_failure") == "cancel"
        return {
            name: (real, fake)
            for name, real, fake in zip(
                Statistics._fields, asked.value, self._fake.statistics(), strict=True
            )
            if real != fake and not (cancels and name in CHANGED_BY_ORDER)
        }

    def _compare(self) -> None:
        if self._kind.server:
            with suppress(pytest.fail.Exception):
                wait_until(lambda: not self._differences(), "the server has been told", 5.0)
        differences = self._differences()
        assert not differences, f"the real count, and the fake's: {differences}"

    def _after_an_end(self, what: str, other: int) -> None:
        """Once it is known that a process has ended; another is started in its place."""
        self.said.append(f"{what} {other}")
        self._others[other] = self._start()
        try:
            wait_until(lambda: not self._differences(), "it is known")
        finally:
            self._compare()

    def _note_taken(self, *numbers: int) -> None:
        assert all(0 < n <= self._items for n in numbers), numbers
        if not self._options.get("redeliver"):
            assert self._taken.isdisjoint(numbers), numbers
        assert len(set(numbers)) == len(numbers)
        self._taken.update(numbers)

    def _one(self, *kinds: str) -> int | None:
        """An endpoint of one of these kinds."""
        found = [n for n in self._where if self._kinds[n] in kinds]
        return self._chance.choice(found) if found else None

    # What is done

    def _opened(self, n: int, kind: str, where: Doing) -> None:
        self._where[n], self._kinds[n] = where, kind
        if where is self._here:
            # A child that is forked later would hold it as well, until it is used.
            self._both(where, "enter", n)

    def _open(self) -> None:
        self._numbers += 1
        kind, where = self._chance.choice(KINDS), self._chance.choice(self._sides())
        if not self._both(where, "open", kind, self._numbers).raised:
            self._opened(self._numbers, kind, where)

    def _give(self) -> None:
        self._hand_on(self._here, self._chance.choice(self._others))

    def _pass_on(self) -> None:
        if not self._kind.server:
            self._hand_on(*self._chance.sample(self._others, 2))

    def _hand_on(self, before: Doing, after: Doing) -> None:
        """Who makes an endpoint is not who uses it."""
        self._numbers += 1
        n, kind = self._numbers, self._chance.choice(KINDS)
        if not self._both(before, "open", kind, n).raised:
            after.do("hold", n, before.do("give", n).value)
            self._where[n], self._kinds[n] = after, kind
            self._both(after, "enter", n)

    def _clone(self) -> None:
        if n := self._one(*KINDS):
            self._numbers += 1
            if not self._both(self._where[n], "clone", n, self._numbers).raised:
                self._opened(self._numbers, self._kinds[n], self._where[n])

    def _put(self) -> None:
        if n := self._one("producer", "worker"):
            call = self._chance.choices(("put_nowait", "put", "put_many"), (8, 1, 1))[0]
            often = {"int": 6, "dict": 3, "bytes": 3, "large": 1, "none": bool(self._kind.method)}
            [kind] = self._chance.choices(list(often), list(often.values()))
            count = 1
            if call == "put_many":
                count = self._chance.choice((0, 1, 2, 5, 40) if kind == "large" else (0, 3, 700))
                if self._maxsize and self._kinds[n] == "producer":
                    count = min(count, self._maxsize - self._fake.qsize())
            self._both(self._where[n], "put", n, call, kind, self._items + 1, max(count, 0))
            self._items += max(count, 1)

    def _get(self) -> None:
        if n := self._one("consumer", "worker"):
            call = self._chance.choice(("get_nowait", "get", "__next__"))
            if self._kind.server and self._fake.qsize():
                self._get_by(n, "get_patiently")
            else:
                self._get_by(n, "get", call)

    def _get_by(self, n: int, command: str, *args: Any) -> None:
        fake = self._model.do(command, n, *args)
        if fake.raised == "WouldBlock":
            fake = Outcome("Empty")
            command, args = "get_in_vain", ()
        real = self._where[n].do(command, n, *args)
        self._same(real, fake, command, n, *args)
        if not real.raised:
            self._note_taken(*(real.value if command == "get_many" else [real.value]))

    def _get_many(self) -> None:
        if n := self._one("consumer", "worker"):
            limit = self._chance.choice((1, 2, 10, 1000))
            if not self._fake.qsize():
                self._get_by(n, "get_many", limit)
                return
            real = self._where[n].do("get_many", n, limit)  # may be fewer than there are
            got = limit if real.raised else len(real.value)
            self._same(real, self._model.do("get_many", n, got), "get_many", n, limit)
            if not real.raised:
                self._note_taken(*real.value)

    def _get_quickly(self) -> None:
        """So that it claims ahead."""
        if n := self._one("consumer", "worker"):
            most = self._chance.choice((5, 50, 300))
            fake = self._model.do("get_quickly", n, most)
            patiently = fake.value[0] if self._kind.server else 0
            real = self._where[n].do("get_quickly", n, most, patiently)
            self._same(real, fake, "get_quickly", n, most)
            assert real.value == fake.value, (n, most)

    def _close(self) -> None:
        if n := self._one(*KINDS):
            self._both(self._where[n], "close", n)
            if self._chance.random() < 0.5:
                self._both(self._where.pop(n), "drop", n)

    def _drop(self) -> None:
        if n := self._one(*KINDS):
            self._both(self._where.pop(n), "drop", n)

    def _enter(self) -> None:
        if n := self._one(*KINDS):
            self._both(self._where[n], "enter", n)

    def _fail(self) -> None:
        if n := self._one("producer", "worker"):
            self._both(self._where[n], "fail", n)

    def _look(self) -> None:
        where = self._chance.choice(self._sides())
        assert where.do("queue", "explain").raised == ""
        call = self._chance.choice(("qsize", "empty", "full"))
        assert where.do("queue", call) == self._model.do("queue", call)

    def _join(self) -> None:
        real = self._chance.choice(self._sides()).do("join")
        fake = self._model.do("join")
        if fake.raised not in ("WouldBlock", "WouldDeadlock"):  # all its hands are of one thread
            self._same(real, fake, "join")
            assert real.raised or real.value == fake.value

    def _close_queue(self) -> None:
        self._both(self._chance.choice(self._sides()), "queue", "close")

    def _cancel(self) -> None:
        self._both(self._chance.choice(self._sides()), "queue", "cancel")

    def _kill(self) -> None:
        other = self._chance.randrange(len(self._others))
        self._others[other].kill()
        for n in [n for n, where in self._where.items() if where is self._others[other]]:
            del self._where[n]
            if not self._model.ends[n].closed:
                self._fake.kill(self._model.ends[n])
            del self._model.ends[n]
        self._after_an_end("kill", other)

    def _leave(self) -> None:
        """A process ends, and its endpoints are dropped before."""
        other = self._chance.randrange(len(self._others))
        self._others[other].leave()
        for n in [n for n, where in self._where.items() if where is self._others[other]]:
            del self._where[n]
            self._model.drop(n)
        self._after_an_end("leave", other)


def run_round(kind: Kind, seed: int, processes: Processes) -> int:
    """One round; how many things were done. A failure has a note of what led to it."""
    chance = random.Random(~seed)
    played = Round(kind, seed, processes)
    try:
        played.run(chance.choice((30, 80, 200)))
    except BaseException as error:
        error.add_note("\n".join([f"SOAK_SEED={seed}", *played.said[:1], *played.said[-40:]]))
        raise
    return len(played.said)


class Connects:
    """Makes queues on a server."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def __call__(self, maxsize: int, **options: Any) -> IterableQueue[Any]:
        return self._server.connect(maxsize=maxsize, expiry_s=1.0, **options)


def spawned_with_context(maxsize: int, **options: Any) -> IterableQueue[Any]:
    return IterableQueue(maxsize, context=get_context("spawn"), **options)


KINDS_OF_QUEUES = {
    "log": Kind(IterableQueue, rounds=20),
    "log-spawn": Kind(IterableQueue, method="spawn"),
    "context": Kind(spawned_with_context, method="spawn"),
    "threads": Kind(IterableQueue.threaded, method="", options=(), rounds=100),
}


@pytest.fixture(params=[*KINDS_OF_QUEUES, "redis"])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kind]:
    """Each kind of queue."""
    if request.param != "redis":
        yield KINDS_OF_QUEUES[request.param]
        return
    for server in running(Server(tmp_path)):
        yield Kind(Connects(server), server=True)


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_shared, "LOOK_S", LOOK_S)


def test_it_does_as_the_fake(kind: Kind, processes: Processes) -> None:
    first = random.SystemRandom().randrange(1 << 40)
    for seed in range(first, first + kind.rounds):
        run_round(kind, seed, processes)


@pytest.mark.soak
@pytest.mark.time_limit(100_000)
def test_it_does_as_the_fake_for_long(kind: Kind, processes: Processes) -> None:
    """Or `SOAK_SECONDS`."""
    first = int(os.environ.get("SOAK_SEED", random.SystemRandom().randrange(1 << 40)))
    end = time.monotonic() + float(os.environ.get("SOAK_SECONDS", "600"))
    seed, calls = first, 0
    while seed == first or time.monotonic() < end:
        calls += run_round(kind, seed, processes)
        seed += 1
    print(f"\nseeds {first} to {seed - 1}: {seed - first} rounds, {calls:,} calls")

"""Death at any instant, and traffic in which no wake-up may be lost: rounds of chosen chance.

In each round a queue of some kind is used by some producers, consumers and workers, of which some
are killed wherever they are. What they did is known from outside (see `tests.soak`), and all of it
is accounted for: every item whose `put` returned arrives, but for those that were in the hands of
the killed, which are counted; nothing arrives twice; a result cut short never looks complete; and
nobody hangs. In rounds of traffic nobody is killed, but nobody wakes by itself either: who is not
woken sleeps until the round is given up.

Everything is chosen from the round's seed, which a failure names. For an hour of each kind, or
`SOAK_SECONDS`, beginning with the seed `SOAK_SEED` or any:

    pytest -m soak tests/test_soak.py -n 0 -s

It says how many rounds and kills these were. So `SOAK_SEED=<seed> SOAK_SECONDS=1` has the choices
of a round again, though not the instants.
"""

from __future__ import annotations

import gc
import math
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn, cast

import pytest

from iterable_queue import (
    Consumer,
    ConsumersGone,
    Done,
    Empty,
    ItemsLost,
    IterableQueue,
    ProducerFailed,
    Statistics,
    _core,
    _fence,
    _mutex,
    _runtime,
    _shared,
    _shared_runtime,
)
from iterable_queue._cells import RETURNED
from iterable_queue._channels.log import UNTAKEN, LogChannel
from iterable_queue._ledger import Ledger
from iterable_queue._shared import SharedCore
from tests import actors, soak
from tests.actors import context_of
from tests.conftest import FORKS, Process, Processes
from tests.soak import Part, Setting, Story
from tests.test_kill_sweep import _kill_at

pytestmark = [FORKS, pytest.mark.time_limit(240)]

ROUND_S = 60.0
"""How long a round may take. Most take a tenth of a second; deaths are noticed within two."""

NEVER_S = 1000.0
"""How long a sleep is in traffic, where a wake-up is lost."""

SHIPPED = _runtime.SLICE_S, _shared.LOOK_S
HASTY = 0.01, 0.03
"""How long a sleep is, and between two looks who has died: so a round takes no seconds."""


# Plans


class Plan(NamedTuple):
    """All that is chosen for one round.

    Attributes:
        options: of the queue.
        lock: what kind the queue's is: a "mutex" or a "semaphore".
        slow: as on a machine on which the fences of this one are not enough.
        sleep_s, look_s: see `HASTY`.
        own: this process has a consumer too, which it uses once nobody else can.
        closes: when it closes the queue: "before" the others start, "amid", or "late".
        backlog: those who take are started when those who put have ended.
    """

    seed: int
    maxsize: int
    options: dict[str, Any]
    lock: str
    slow: bool
    sleep_s: float
    look_s: float
    own: bool
    closes: str
    backlog: bool
    parts: list[Part]


TAKERS = ("consumer", "worker")
ITEMS = ("int", "bytes", "large", "dict")
PATIENT_PUTS = ("put", "range", "list")
PATIENT_GETS = ("next", "get", "many")
NEVER_STOPS = 1 << 30


def some(chance: random.Random, things: tuple[str, ...]) -> tuple[str, ...]:
    """One of them at least."""
    return tuple(chance.sample(things, chance.randint(1, len(things))))


def log_uniform(chance: random.Random, low: float, high: float) -> int:
    """Each order of magnitude as often as the others."""
    return round(math.exp(chance.uniform(math.log(low), math.log(high))))


def plan_deaths(seed: int, *, shipped: bool = False) -> Plan:
    """A round in which some are killed; or, now and then, nobody is."""
    chance = random.Random(seed)
    maxsize = chance.choice((0, 0, 1, 5, 100))
    options: dict[str, Any] = {}
    if chance.random() < 0.35:
        options = {"redeliver": True, "max_deliveries": chance.choice((None, None, 1, 2, 5))}
    lock = "semaphore" if chance.random() < 0.15 else "mutex"
    slow = chance.random() < 0.15
    sleep_s, look_s = SHIPPED if shipped else HASTY
    deadliness = chance.choice((0.0, 0.2, 0.5, 0.5, 0.9))
    mixed = chance.random() < 0.2  # seldom: to spawn takes ten times as long as to fork
    kinds = ["producer"] * chance.randint(1, 4) + ["consumer"] * chance.randint(1, 4)
    kinds += ["worker"] * chance.choice((0, 0, 0, 1, 2, 3)) + ["joiner"] * chance.choice((0, 1))
    chance.shuffle(kinds)
    parts: list[Part] = []
    for index, kind in enumerate(kinds, 1):
        items = some(chance, ITEMS)
        fuse = kill_us = None
        if chance.random() < deadliness:
            if chance.random() < 0.7:
                delay = chance.choice((0, log_uniform(chance, 1, 3000)))
                fuse = log_uniform(chance, 1, 200), delay
            else:
                kill_us = log_uniform(chance, 100, 60_000)
        if kind == "producer":
            few = "large" in items or maxsize == 1
            slow_way = maxsize or options or slow
            count = log_uniform(chance, 1, 30 if few else 100 if slow_way else 3000)
            calls = some(chance, (*PATIENT_PUTS, "in time", "now"))
            end = chance.choices(("close", "fail", "leave", "exit"), (75, 7, 9, 9))[0]
        else:
            count = chance.choice((NEVER_STOPS, NEVER_STOPS, log_uniform(chance, 1, 300)))
            calls = some(chance, (*PATIENT_GETS, "in time", "now"))
            end = chance.choices(("close", "leave", "exit"), (70, 15, 15))[0]
        parts.append(
            Part(
                who=index + (soak.WORKERS_FROM if kind == "worker" else 0),
                kind=kind,
                method=chance.choice(("fork", "fork", "spawn", "forkserver")) if mixed else "fork",
                seed=chance.randrange(1 << 32),
                most=count,
                items=items,
                calls=calls,
                limit=chance.choice((2, 10, 100)),
                end=end,
                busy_s=chance.choice((0.0, 0.0, 0.0005, 0.003)),
                often=0.1,
                fuse=fuse,
                kill_us=kill_us,
            )
        )
    return Plan(
        seed=seed,
        maxsize=maxsize,
        options=options,
        lock=lock,
        slow=slow,
        sleep_s=sleep_s,
        look_s=look_s,
        own=chance.random() < 0.75,
        closes=chance.choice(("before", "amid", "late")),
        backlog=not maxsize and chance.random() < 0.4,
        parts=parts,
    )


class Shape(NamedTuple):
    """What one kind of traffic is like. Numbers are the most there may be."""

    sizes: tuple[int, ...] = (0, 0, 1, 5, 100)
    producers: tuple[int, int] = (1, 3)
    consumers: tuple[int, int] = (1, 3)
    workers: tuple[int, int] = (0, 0)
    puts: tuple[str, ...] = PATIENT_PUTS
    gets: tuple[str, ...] = PATIENT_GETS
    items: tuple[str, ...] = ITEMS
    redeliver: float = 0.15
    early: float = 0.0
    """How many consumers close before the end."""
    busy: tuple[float, ...] = (0.0, 0.0, 0.0003, 0.002)
    often: float = 0.2
    backlog: float = 0.1


SHAPES = {
    "any": Shape(workers=(0, 2), early=0.2),
    "bounded": Shape(sizes=(1, 1, 2, 3), items=("int",)),
    "bounded, with room": Shape(sizes=(20, 100), items=("int", "bytes"), busy=(0.0, 0.001)),
    "many producers": Shape(producers=(5, 9), consumers=(1, 1)),
    "many consumers": Shape(producers=(1, 1), consumers=(5, 9), early=0.3),
    "one by one": Shape(
        sizes=(0, 0, 3),
        puts=("put",),
        gets=("next", "get"),
        items=("int",),
        redeliver=0.0,
        busy=(0.0003,),
        often=1.0,
    ),
    "a backlog": Shape(sizes=(0,), consumers=(2, 4), early=0.5, redeliver=0.0, backlog=1.0),
    "batches": Shape(puts=("range", "list"), gets=("many",), redeliver=0.0),
    "bursts": Shape(sizes=(0,), puts=("range",), gets=("next",), busy=(0.002,), redeliver=0.0),
    "workers": Shape(workers=(1, 4), consumers=(0, 1), sizes=(0, 1, 5)),
    "large items": Shape(items=("large", "int"), puts=("put",)),
}


def plan_traffic(seed: int, shape: Shape) -> Plan:
    """A round in which nobody is killed, nor waits with a time-out: who waits must be woken."""
    chance = random.Random(seed)
    maxsize = chance.choice(shape.sizes)
    redeliver = chance.random() < shape.redeliver
    kinds = ["producer"] * chance.randint(*shape.producers)
    kinds += ["consumer"] * chance.randint(*shape.consumers)
    kinds += ["worker"] * chance.randint(*shape.workers) + ["joiner"]
    chance.shuffle(kinds)
    parts: list[Part] = []
    for index, kind in enumerate(kinds, 1):
        items = some(chance, shape.items)
        early = kind == "consumer" and chance.random() < shape.early
        count = NEVER_STOPS
        if kind == "producer":
            few = "large" in items or maxsize == 1
            count = log_uniform(chance, 1, 60 if few else 300 if maxsize or redeliver else 3000)
        elif early:
            count = log_uniform(chance, 1, 300)
        parts.append(
            Part(
                who=index + (soak.WORKERS_FROM if kind == "worker" else 0),
                kind=kind,
                method="fork",
                seed=chance.randrange(1 << 32),
                most=count,
                items=items,
                calls=some(chance, shape.puts if kind == "producer" else shape.gets),
                limit=chance.choice((2, 10, 100)),
                end="close",
                busy_s=chance.choice(shape.busy),
                often=shape.often,
                fuse=None,
                kill_us=None,
            )
        )
    return Plan(
        seed=seed,
        maxsize=maxsize,
        options={"redeliver": redeliver},
        lock="mutex",
        slow=chance.random() < 0.15,
        sleep_s=NEVER_S,
        look_s=SHIPPED[1],
        own=True,
        closes=chance.choice(("before", "amid")),
        backlog=not maxsize and chance.random() < shape.backlog,
        parts=parts,
    )


# Rounds


class Hung(BaseException):
    """A round took too long. No Exception, so that nothing catches it on its way."""


@contextmanager
def ends_within(seconds: float) -> Generator[None]:
    """Raise `Hung` in here after so long. The test's own time limit goes on afterwards."""

    def expire(signum: int, frame: FrameType | None) -> None:
        raise Hung

    began = time.monotonic()
    handler = signal.signal(signal.SIGALRM, expire)
    left, again = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, handler)
        rest = max(left - (time.monotonic() - began), 0.001) if left else 0.0
        signal.setitimer(signal.ITIMER_REAL, rest, again)


def never_wake(patch: pytest.MonkeyPatch) -> None:
    """Nobody wakes by himself, for what he waits for or for the lock, nor gives up to get that.

    In processes that are forked from now on too, for queues that are made from now on.
    """
    for module in (_runtime, _core):
        patch.setattr(module, "SLICE_S", NEVER_S)
    patch.setattr(_shared_runtime, "PATIENCE", (*_shared_runtime.PATIENCE, NEVER_S))


def result_of(call: Callable[[], object]) -> tuple[object, Exception | None]:
    """What a call returns, and what it raises, without the frames that would keep the queue."""
    try:
        return call(), None
    except Exception as error:
        return None, error.with_traceback(None)


class Tally(NamedTuple):
    """What rounds were, for who reads how many."""

    rounds: int = 0
    kills: int = 0
    items: int = 0
    lost: int = 0
    redelivered: int = 0
    came_back: int = 0
    """Items that were claimed by one and handed out by another."""

    def __add__(self, other: tuple[Any, ...]) -> Tally:
        return Tally(*(mine + its for mine, its in zip(self, other, strict=True)))


class Round:
    """One round, by its plan."""

    def __init__(self, plan: Plan, room: Path) -> None:
        self.plan = plan
        self.room = room
        room.mkdir()
        self.setting = Setting(str(room), plan.sleep_s, plan.look_s)
        self.crew = Processes(set())
        self.cast: list[tuple[Part, Process]] = []
        self.kills: list[tuple[float, Process]] = []
        """When who is killed from here."""
        self.took: list[int] = []
        """What the consumer of this process has taken."""
        self.iq: IterableQueue[Any]
        self.own: Consumer[Any] | None = None

    def run(self) -> Tally:
        """All of it. AssertionError if anything is not as it should be, with all about it."""
        try:
            try:
                with ends_within(ROUND_S), pytest.MonkeyPatch.context() as patch:
                    self.set_up(patch)
                    tally = self.play()
            except Hung as hung:
                raise AssertionError(f"HANG: not over after {ROUND_S:g} s") from hung
        except BaseException as error:
            error.add_note(self.report())
            raise
        finally:
            self.crew.end()
        shutil.rmtree(self.room)
        return tally

    def set_up(self, patch: pytest.MonkeyPatch) -> None:
        plan = self.plan
        patch.setattr(_runtime, "SLICE_S", plan.sleep_s)
        patch.setattr(_shared, "LOOK_S", plan.look_s)
        if plan.sleep_s == NEVER_S:
            never_wake(patch)
        if plan.lock == "semaphore":
            patch.setattr(_mutex, "is_supported", lambda: False)
        if plan.slow:
            patch.setattr(_fence, "is_supported", lambda: False)
        self.iq = IterableQueue[Any](plan.maxsize, **plan.options)

    def play(self) -> Tally:
        plan, iq = self.plan, self.iq
        core = iq._core
        assert isinstance(core, SharedCore)
        if plan.own:
            self.own = iq.get_consumer()
        endpoints = {part.who: self.make_endpoint(part) for part in plan.parts}
        if plan.closes == "before":
            iq.close()
        first = [part for part in plan.parts if plan.backlog and part.kind == "producer"]
        for part in first:
            self.start(part, endpoints.pop(part.who))
        while any(process.exitcode is None for _, process in self.cast):
            self.kill_due()
            time.sleep(0.0002)
        for part in plan.parts:
            if part not in first:
                self.start(part, endpoints.pop(part.who))
        if plan.closes == "amid":
            iq.close()
        while self.kills:
            self.kill_due()
            time.sleep(0.0002)
        iq.close()
        self.wait_for_crew()
        self.drain()
        stats = self.wait_for_end()
        tally = self.account(stats)
        address = core.address
        self.own = None
        del self.iq, iq, core
        if os.path.exists(address.path):
            gc.collect()  # it takes as long as all of the rest
        assert not os.path.exists(address.path), "the directory is left"
        assert not list(Path("/dev/shm").glob(f"sem.iq-{address.token}*")), "semaphores are left"
        return tally

    def make_endpoint(self, part: Part) -> Any:
        return self.iq if part.kind == "joiner" else getattr(self.iq, f"get_{part.kind}")()

    def start(self, part: Part, endpoint: Any) -> None:
        process = context_of(part.method).Process(
            target=soak.act, args=(part, self.setting, endpoint)
        )
        began = time.monotonic()
        self.crew.start(process)
        self.cast.append((part, process))
        if part.kill_us is not None:
            # Of a process that is spawned, the first tenth of a second is not its own.
            start_up = 1.0 if part.method == "fork" else 4.0
            self.kills.append((began + start_up * part.kill_us / 1e6, process))
        self.kill_due()

    def kill_due(self) -> None:
        now = time.monotonic()
        for kill in [kill for kill in self.kills if kill[0] <= now]:
            self.kills.remove(kill)
            pid = kill[1].pid
            assert pid is not None
            if kill[1].exitcode is None:
                os.kill(pid, signal.SIGKILL)

    def wait_for_crew(self) -> None:
        """Until all have ended; where nobody else is left to take, this process does."""
        while any(process.exitcode is None for _, process in self.cast):
            takers = [process for part, process in self.cast if part.kind in TAKERS]
            if self.own is not None and all(taker.exitcode is not None for taker in takers):
                if not self.take(0.05):
                    self.own.close()
                    self.own = None
            else:
                time.sleep(0.0005)

    def take(self, timeout: float) -> bool:
        """Take an item, if one comes in time. False: there will be none."""
        assert self.own is not None
        try:
            self.took.append(soak.number_of(self.own.get(timeout=timeout)))
        except Empty:
            pass
        except (Done, ProducerFailed) as end:
            expected = "done" if isinstance(end, Done) else "failed"
            assert self.iq.statistics().state == expected
            return False
        return True

    def drain(self) -> None:
        """What the others have left."""
        if self.own is not None:
            while self.take(1.0):
                pass
            self.own.close()
            self.own = None

    def wait_for_end(self) -> Statistics:
        """Until every death is known."""
        while True:
            stats = self.iq.statistics()
            if not stats.open_producers + stats.open_consumers + stats.open_workers:
                return stats
            time.sleep(0.001)

    # -- the account -----------------------------------------------------------------------------

    def account(self, stats: Statistics) -> Tally:
        plan = self.plan
        stories = [
            (part, process.exitcode, soak.read_journal(f"{self.room}/{part.who}"))
            for part, process in self.cast
        ]
        for part, code, story in stories:
            assert soak.ERROR not in story.said, f"{part.kind} {part.who} raised"
            expected = {0, 3} if part.end == "exit" else {0}
            assert code in expected or (code is not None and code < 0), (part.who, code)
        takes = [story.took for _, _, story in stories] + [self.took]
        times = Counter(number for taken in takes for number in taken)
        sure = {n for _, _, story in stories for some in story.put for n in some}
        maybe = {n for _, _, story in stories for some in story.begun for n in some}
        for _, _, story in stories:
            for some in story.begun:
                # What a call had put that did not return is the first of its items.
                arrived = [n for n in some if n in times]
                if arrived:
                    sure |= set(range(some.start, arrived[-1] + 1))
        unknown = times.keys() - sure - maybe
        assert not unknown, f"nobody put {sorted(unknown)[:5]}"
        missing = sure - times.keys()
        in_hand = [in_hand_of(*story) for story in stories]
        least, most = sum(some[0] for some in in_hand), sum(some[1] for some in in_hand)
        killed = [code for _, code, _ in stories if code]
        # What came and what did not.
        assert len(missing) <= stats.lost + stats.queued, f"{sorted(missing)[:5]} and more are lost"
        assert len(sure) <= stats.put <= len(sure | maybe), (len(sure), len(sure | maybe))
        assert stats.finished + stats.lost + stats.queued == stats.put
        assert stats.taken - stats.redelivered + stats.queued == stats.put
        handed = times.total()
        assert handed <= stats.taken <= handed + most, (handed, in_hand)
        assert least <= stats.lost + stats.redelivered <= most, in_hand
        assert stats.dropped == 0
        if plan.options.get("redeliver"):
            deliveries = plan.options.get("max_deliveries") or IterableQueue.MAX_DELIVERIES
            assert max(times.values(), default=0) <= deliveries
            assert handed - len(times) <= stats.redelivered
            assert stats.lost * deliveries <= most
        else:
            assert stats.redelivered == 0
            assert max(times.values(), default=0) <= 1, times.most_common(3)
        core = cast("Any", self.iq._core)
        if not core.ledger.head[UNTAKEN] and not core.ledger.head[RETURNED]:
            for taken in takes:
                assert in_order(taken), "one producer's items came out of order"
        bounded = plan.maxsize and not stats.redelivered
        if bounded and all(part.kind != "worker" for part in plan.parts):
            assert stats.highest_queued <= plan.maxsize
        self.account_for_end(stats, stories)
        came_back = core.ledger.head[UNTAKEN]
        return Tally(1, len(killed), handed, stats.lost, stats.redelivered, came_back)

    def account_for_end(
        self, stats: Statistics, stories: list[tuple[Part, int | None, Story]]
    ) -> None:
        """How it ended for everybody."""
        failures = [failures_of(*story) for story in stories]
        least, most = sum(some[0] for some in failures), sum(some[1] for some in failures)
        assert least <= stats.failures <= most, (least, most)
        gone = any(soak.GONE in story.said for _, _, story in stories)
        state = "failed" if stats.failures else "done"
        if stats.state == "abandoned":
            assert not self.plan.own
            assert stats.queued
        else:
            assert stats.state == state
            assert stats.queued == 0
            log = cast("Any", self.iq._core).log
            if self.plan.maxsize and log.lockless:
                room = cast("Any", self.iq._core).transact(log._room)
                assert room == self.plan.maxsize, f"there is room for {room} items"
        assert not (gone and self.plan.own), "told that nobody will take what it puts"
        expected: type[Exception] = Done
        if stats.state == "abandoned":
            expected = ConsumersGone
        elif stats.failures:
            expected = ProducerFailed
        elif stats.lost:
            expected = ItemsLost
        for part, _, story in stories:
            if soak.ENDED in story.said:
                allowed = {expected}
                if part.kind in TAKERS and stats.lost:
                    allowed.add(Done)  # which says that all was taken
                if part.kind == "joiner" and not self.plan.own:
                    allowed.add(ConsumersGone)  # until the last producer closed, having put nothing
                end = soak.VERDICTS[story.verdict]
                assert end in allowed, f"{part.kind} {part.who}: {end}, and not {expected}"
        joined, error = result_of(lambda: self.iq.join(10.0))
        assert joined or error, "join says that it is not over"
        assert (Done if error is None else type(error)) is expected, repr(error)
        if isinstance(error, ItemsLost):
            assert error.count == stats.lost
        if isinstance(error, ProducerFailed):
            assert len(error.failures) == stats.failures

    # -- what went wrong -------------------------------------------------------------------------

    def report(self) -> str:
        """All that is known of a round that went wrong."""
        lines = [f"seed {self.plan.seed}", f"plan: {self.plan._replace(parts=[])}"]
        lines += [f"explain: {self.explain()}"]
        living = [part for part, process in self.cast if process.exitcode is None]
        for part, process in self.cast:
            if part in living and process.pid is not None:
                os.kill(process.pid, signal.SIGUSR1)
        if living:
            time.sleep(0.5)  # they write down where they are
        for part, process in self.cast:
            story = soak.read_journal(f"{self.room}/{part.who}")
            lines.append(
                f"{part}\n  exit code {process.exitcode}, put {sum(map(len, story.put))}, "
                f"took {len(story.took)}, in the middle of {story.begun}, said {story.said}"
            )
            for kind in ("error", "stacks"):
                with suppress(OSError):
                    lines.append((self.room / f"{part.who}.{kind}").read_text())
        return "\n".join(lines)

    def explain(self) -> str:
        """What the queue says, if it still does."""
        said: list[str] = []

        def ask() -> None:
            try:
                said.append(f"{self.iq.explain()}\n{self.iq.statistics()}")
            except BaseException as error:
                said.append(repr(error))

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(5.0)
        return said[0] if said else "no answer within 5 s"


def died(code: int | None) -> bool:
    """Whether a process that ended by that exit code had no time to leave in order."""
    return code == 3 or (code is not None and code < 0)


def in_hand_of(part: Part, code: int | None, story: Story) -> tuple[int, int]:
    """How many items the process must, and may, have had in hand when it died."""
    if part.kind not in TAKERS or not died(code) or story.said & {soak.ENDED, soak.CLOSED}:
        return 0, 0
    between_calls = code == 3 or (part.fuse is not None and part.fuse[1] == 0)
    if between_calls and part.kill_us is None and story.last:
        return story.last, story.last
    return 0, part.limit if "many" in part.calls else 1


def failures_of(part: Part, code: int | None, story: Story) -> tuple[int, int]:
    """How many failures that process must, and may, have caused."""
    if part.kind == "worker":
        return 0, int(died(code) or part.end == "leave")
    if part.kind != "producer" or soak.CLOSED in story.said:
        return 0, 0
    return 0 if soak.CLOSING in story.said else 1, 1


def in_order(numbers: list[int]) -> bool:
    """Whether those of each producer are in the order in which they were put."""
    last: dict[int, int] = {}
    for number in numbers:
        who = number >> soak.WHO_SHIFT
        if number <= last.get(who, -1):
            return False
        last[who] = number
    return True


def run_rounds(room: Path, plans: list[Plan]) -> Tally:
    """One after another."""
    tally = Tally()
    for number, plan in enumerate(plans):
        tally += Round(plan, room / str(number)).run()
    return tally


# Death at any instant


@pytest.mark.parametrize("first", range(0, 40, 4))
def test_death_at_any_instant(first: int, tmp_path: Path) -> None:
    run_rounds(tmp_path, [plan_deaths(seed) for seed in range(first, first + 4)])


@pytest.mark.parametrize("seed", range(100, 104))
def test_death_at_any_instant_as_shipped(seed: int, tmp_path: Path) -> None:
    """With the pauses that there really are between two looks who has died."""
    run_rounds(tmp_path, [plan_deaths(seed, shipped=True)])


# A death while another one is dealt with


class Burial(NamedTuple):
    """A process that has died, and what it had."""

    redeliver: bool
    many: bool
    """Its consumer had three items in hand; else one, and one was finished."""

    @property
    def in_hand(self) -> int:
        """One of them is its worker's."""
        return 4 if self.many else 2


BURIALS = [Burial(*row) for row in ((False, False), (False, True), (True, False), (True, True))]


def die_with_everything(out: Any, source: Any, tree: Any, many: bool) -> NoReturn:
    out.put(100)
    if many:
        source.get_many(3)
    else:
        source.get()
        source.get()
    tree.get()
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("lives on")


def deal_with_it(iq: IterableQueue[int], begin: Callable[..., None], *args: object) -> None:
    """Find the dead, and maybe die of what *begin* has prepared."""
    iq.qsize()
    begin(*args)
    iq.statistics()
    sys.settrace(None)


def die_after(kind: type, name: str, times: int) -> None:
    """In this process: as soon as so many calls of that method have returned."""
    method = getattr(kind, name)
    left = times

    def die(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        result = method(*args, **kwargs)
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(kind, name, die)


def bury(burial: Burial, begin: Callable[..., None], *args: object) -> bool:
    """A process dies, and so does the one that deals with it, maybe. Returns whether it did."""
    with pytest.MonkeyPatch.context() as patch, ends_within(ROUND_S):
        patch.setattr(_runtime, "SLICE_S", HASTY[0])
        patch.setattr(_shared, "LOOK_S", 0.0)
        iq = IterableQueue[int](redeliver=burial.redeliver)
        own, root = iq.get_consumer(), iq.get_producer()
        ends = iq.get_producer(), iq.get_consumer(), iq.get_worker()
        actors.put(root, *range(10))
        root.close()
        iq.close()
        fork = context_of("fork")
        crew = Processes(set())
        try:
            victim = crew.start(fork.Process(target=die_with_everything, args=(*ends, burial.many)))
            victim.join()
            other = crew.start(fork.Process(target=deal_with_it, args=(iq, begin, *args)))
            other.join()
        finally:
            crew.end()
        got: list[int] = []
        _, error = result_of(lambda: got.extend(own))
        assert isinstance(error, ProducerFailed), repr(error)
        own.close()
        stats = iq.statistics()
        assert (stats.put, stats.queued) == (11, 0)
        assert len(set(got)) == len(got), f"{sorted(got)}: some came twice"
        finished = 0 if burial.many else 1
        if burial.redeliver:
            assert len(got) == 11 - finished, f"{sorted(got)}: some are lost, and are not counted"
            assert (stats.lost, stats.finished) == (0, 11)
        else:
            assert len(got) == 11 - finished - burial.in_hand
            assert (stats.lost, stats.finished) == (burial.in_hand, 11 - burial.in_hand)
        # The producer; and the worker, whose item does not come back.
        failures = 1 if burial.redeliver else 2
        assert stats.failures == failures, f"{stats.failures} failures"
        _, error = result_of(lambda: iq.join(10.0))
        assert isinstance(error, ProducerFailed), repr(error)
        assert len(error.failures) == failures
        return other.exitcode != 0


@pytest.mark.parametrize(
    ("burial", "kind", "name", "times"),
    [
        (BURIALS[0], LogChannel, "cut", 1),
        (BURIALS[0], LogChannel, "settle_claim", 1),
        (BURIALS[0], Ledger, "lose", 1),
        (BURIALS[0], Ledger, "lose", 2),
        (BURIALS[1], Ledger, "lose", 1),
        (BURIALS[0], Ledger, "_record_failure", 1),
        (BURIALS[0], Ledger, "_record_failure", 2),
        *((BURIALS[0], Ledger, "close", times) for times in (1, 2, 3)),
        (BURIALS[0], Ledger, "release_process", 1),
        (BURIALS[2], Ledger, "redeliver", 1),
        (BURIALS[2], Ledger, "redeliver", 2),
        (BURIALS[3], Ledger, "redeliver", 1),
        (BURIALS[3], Ledger, "redeliver", 2),
        (BURIALS[3], Ledger, "redeliver", 3),
        *((BURIALS[3], Ledger, "close", times) for times in (1, 2, 3)),
    ],
)
def test_who_deals_with_a_death_dies_as_well(
    burial: Burial, kind: type, name: str, times: int
) -> None:
    """The next one goes on where that one was, however far it had come."""
    assert bury(burial, die_after, kind, name, times), "it did not come to that"


@pytest.mark.soak
@pytest.mark.time_limit(3000)
@pytest.mark.parametrize("burial", BURIALS)
def test_who_deals_with_a_death_dies_at_any_line(burial: Burial) -> None:
    wrongs: Counter[str] = Counter()
    line = 1
    while True:
        try:
            if not bury(burial, _kill_at, line):
                break
        except AssertionError as error:
            wrongs[str(error).partition("\n")[0]] += 1
        line += 1
    print(f"\n{burial}: {line} lines, {dict(wrongs)}")
    assert not wrongs


# Traffic


@pytest.mark.parametrize("shape", SHAPES)
def test_who_waits_is_woken(shape: str, tmp_path: Path) -> None:
    run_rounds(tmp_path, [plan_traffic(seed, SHAPES[shape]) for seed in range(3)])


def play_ping_pong(room: Path, turns: int, maxsize: int, burst: int) -> None:
    """An item goes to another process and comes back, so each of the two waits all the time."""
    with pytest.MonkeyPatch.context() as patch, ends_within(ROUND_S):
        never_wake(patch)
        there, back = IterableQueue[int](maxsize), IterableQueue[int](maxsize)
        crew = Processes(set())
        try:
            crew.start(
                context_of("fork").Process(
                    target=soak.answer, args=(there.get_consumer(), back.get_producer(), str(room))
                )
            )
            out, source = there.get_producer(), back.get_consumer()
            there.close()
            back.close()
            for turn in range(turns):
                for n in range(burst):
                    out.put(burst * turn + n)
                for n in range(burst):
                    assert source.get() == burst * turn + n
            out.close()
            with pytest.raises(Done):
                source.get()
            assert there.join(10.0)
        finally:
            crew.end()


@pytest.mark.parametrize(("maxsize", "burst"), [(0, 1), (0, 5), (1, 1), (5, 5)])
def test_ping_pong(maxsize: int, burst: int, tmp_path: Path) -> None:
    play_ping_pong(tmp_path, 1500, maxsize, burst)


# For an hour


def soak_for(what: str, room: Path, make: Callable[[int], Plan]) -> None:
    seconds = float(os.environ.get("SOAK_SECONDS", "3600"))
    first = int(os.environ.get("SOAK_SEED", random.SystemRandom().randrange(1 << 40)))
    end = time.monotonic() + seconds
    tally, seed = Tally(), first
    while time.monotonic() < end:
        tally += Round(make(seed), room / "round").run()
        seed += 1
    print(f"\n{what}: seeds {first} to {seed - 1}, {tally}")


@pytest.mark.soak
@pytest.mark.time_limit(4200)
def test_deaths_for_an_hour(tmp_path: Path) -> None:
    soak_for("deaths", tmp_path, lambda seed: plan_deaths(seed, shipped=seed % 20 == 0))


@pytest.mark.soak
@pytest.mark.time_limit(4200)
def test_traffic_for_an_hour(tmp_path: Path) -> None:
    shapes = list(SHAPES.values())
    soak_for("traffic", tmp_path, lambda seed: plan_traffic(seed, shapes[seed % len(shapes)]))

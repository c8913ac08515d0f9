"""What hangs and loses data elsewhere: one test, or a few, for each known hazard.

The hazards are those of multiprocessing's and threads' own queues. Their numbers, in the names of
the tests, are those of a list kept with the design; each test's docstring says what goes wrong
there. More about kills is in `tests.test_endings`, more about roads in `tests.test_roads`.
"""

from __future__ import annotations

import ast
import dis
import gc
import itertools
import os
import pickle
import queue
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing import Pipe, get_context
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest

import iterable_queue
from iterable_queue import (
    Consumer,
    ConsumersGone,
    Done,
    Empty,
    Full,
    ItemError,
    ItemsLost,
    IterableQueue,
    Producer,
    ProducerFailed,
    WouldDeadlock,
)
from iterable_queue._shared import SharedCore
from tests import actors
from tests.actors import Ended, Puppet, Stage, context_of, on_this_machine
from tests.conftest import FORKS, Processes, lives, wait_until

PATIENCE_S = actors.PATIENCE_S

KNOWN_WITHIN_S = 2.0
"""How long it may take until a process's end is known to all others that wait."""

SLACK_S = 1.0
"""How much longer anything may take on a machine that is busy."""

pytestmark = FORKS


@pytest.fixture
def stage(processes: Processes) -> Iterator[Stage]:
    """Forked processes: those that inherit whatever there is to inherit."""
    with Stage(context_of("fork"), processes) as stage:
        yield stage


def wait_for_waiting(iq: IterableQueue[Any], *, producers: int = 0, consumers: int = 0) -> None:
    """Wait until so many callers wait in `put` and in `get`."""

    def waiting() -> bool:
        stats = iq.statistics()
        return (stats.blocked_producers, stats.blocked_consumers) == (producers, consumers)

    wait_until(waiting, f"{producers} wait in put and {consumers} in get")


def kill(puppet: Puppet[Any]) -> float:
    """Kill the puppet's process, whatever it does. Returns when it had ended."""
    os.kill(puppet.pid, signal.SIGKILL)
    wait_until(lambda: not lives(puppet.pid), "the puppet's end")
    return time.monotonic()


def assert_known(at: float, since: float) -> None:
    """What ended at one moment came soon enough after the other."""
    assert at - since < on_this_machine(KNOWN_WITHIN_S + SLACK_S)


def run_script(script: str, path: Path) -> str:
    """What a program of its own writes to stdout; it must succeed, and write nothing to stderr."""
    path.write_text(textwrap.dedent(script))
    done = subprocess.run(
        [sys.executable, path],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# Items


def test_row_1_an_item_that_can_not_be_pickled() -> None:
    """There, a thread drops it later, and the put had returned."""
    iq = IterableQueue[Any](maxsize=3)
    producer, consumer = iq.get_producer(), iq.get_consumer()
    producer.put(1)
    before = iq.statistics()
    for put in (producer.put, producer.put_nowait):
        with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
            put(lambda: None)
    assert iq.statistics() == before
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        producer.put_many([2, lambda: None, 3])
    producer.put(4)
    producer.close()
    iq.close()
    assert list(consumer) == [1, 2, 4]
    assert iq.join(0)


def test_row_2_an_object_that_is_changed_after_its_put() -> None:
    """There, it is pickled some time after the put."""
    iq = IterableQueue[list[int]]()
    producer, consumer = iq.get_producer(), iq.get_consumer()
    item = [0]
    for n in range(2000):
        item[0] = n
        producer.put(item)
    producer.put_many([item, item])
    item[0] = -1
    producer.close()
    iq.close()
    assert list(consumer) == [*([n] for n in range(2000)), [1999], [1999]]


def test_row_15_an_item_that_can_not_be_unpickled(stage: Stage) -> None:
    """There, the error names nobody, and the item is gone."""
    iq = IterableQueue[Any]()
    iq.get_producer().close()
    writer = stage.cast(iq.get_producer())
    consumer = iq.get_consumer()
    writer.run(put_unreadable_between, 1, 2)
    writer.run(actors.close)
    iq.close()
    assert consumer.get() == 1
    with pytest.raises(ItemError, match="producer 2") as caught:
        consumer.get()
    assert caught.value.producer == 2
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        pickle.loads(caught.value.payload)
    assert list(consumer) == [2]
    stats = iq.statistics()
    assert (stats.put, stats.taken, stats.finished, stats.lost) == (3, 3, 3, 0)
    assert iq.join(0)


class Unreadable:
    """Can be pickled, and not opened."""

    def __reduce__(self) -> tuple[Any, ...]:
        return divmod, (1, 0)


def put_unreadable_between(out: Producer[Any], first: int, last: int) -> None:
    """Three items, the second of which can't be opened."""
    put_things(out, [first, Unreadable(), last])


class Deadly:
    """Ends the process that opens its pickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (7,)


def put_things(out: Producer[Any], items: list[Any]) -> None:
    """Put what is no int."""
    for item in items:
        out.put(item)


@pytest.mark.parametrize("redeliver", [False, True])
def test_row_16_an_item_whose_unpickling_kills_the_consumer(stage: Stage, redeliver: bool) -> None:
    """There, it is lost, or it kills the next one too, and so on."""
    iq = IterableQueue[Any](redeliver=redeliver)
    producer = iq.get_producer()
    producer.put_many([Deadly(), 1, 2])
    producer.close()
    survivor = iq.get_consumer()
    iq.close()
    rest: list[Any] = []
    for number in range(IterableQueue.MAX_DELIVERIES if redeliver else 1):
        victim = stage.cast(iq.get_consumer())
        with pytest.raises(Ended) as ended:
            victim.run(actors.get)
        assert ended.value.exitcode == 7
        wait_until(lambda: iq.statistics().open_consumers == 1, "its end is known")
        if number == 0:
            rest = [survivor.get(), survivor.get()]  # what is handed out again comes last
    assert rest == [1, 2]
    assert list(survivor) == []
    with pytest.raises(ItemsLost) as caught:
        iq.join(PATIENCE_S)
    assert caught.value.count == 1
    assert iq.statistics().lost == 1


def test_row_22_what_was_put_is_there(stage: Stage) -> None:
    """There, `empty()` is True and `get_nowait` raises Empty right after a put."""
    iq = stage.queue()
    here, writer = iq.get_producer(), stage.cast(iq.get_producer())
    consumer = iq.get_consumer()
    for n in range(300):
        if n % 2:
            writer.run(actors.put, n)
        else:
            here.put(n)
        assert not iq.empty()
        assert consumer.qsize() == 1
        assert consumer.get_nowait() == n
        assert iq.empty()


def test_row_23_sizes_are_exact_and_bounds_may_be_large() -> None:
    """There, `qsize` is missing on one platform, and a large `maxsize` is an OverflowError."""
    for maxsize in (2**31, 2**40, 2**62):
        iq = IterableQueue[int](maxsize)
        producer, consumer = iq.get_producer(), iq.get_consumer()
        for n in range(100):
            assert iq.qsize() == n
            producer.put(n)
        assert not iq.full()
        for n in range(100):
            assert iq.qsize() == 100 - n
            assert consumer.get() == n
        assert iq.empty()


def test_row_24_what_was_put_before_comes_before(stage: Stage) -> None:
    """There, a put that began after another's end may overtake it."""
    iq = stage.queue()
    writers = [stage.cast(iq.get_producer()) for _ in range(3)]
    here = iq.get_producer()
    for n in range(250):
        if n % 4:
            writers[n % 4 - 1].run(actors.put, n)
        else:
            here.put(n)
    for writer in writers:
        writer.run(actors.close)
    here.close()
    iq.close()
    assert list(iq.get_consumer()) == list(range(250))


def test_row_30_a_large_item() -> None:
    """There, it goes through a pipe: 16 to 19 s for 2 GiB, 20 times what copying takes.

    What the benchmarks time is here counted in copies: beside the item itself, one and its pickle.
    """
    item = bytes(128 << 20)
    iq = IterableQueue[bytes]()
    producer, consumer = iq.get_producer(), iq.get_consumer()
    tracemalloc.start()
    try:
        producer.put(item)
        _, peak = tracemalloc.get_traced_memory()
        assert peak < 2.1 * len(item)
        tracemalloc.reset_peak()
        got = consumer.get()
        _, peak = tracemalloc.get_traced_memory()
        assert peak < 2.1 * len(item)
    finally:
        tracemalloc.stop()
    assert got == item


# Consumers that end


@pytest.mark.parametrize("seed", range(3))
def test_row_3_a_consumer_is_killed_while_it_waits(stage: Stage, seed: int) -> None:
    """There, it held the lock for reading: all others hang, and `get` with a time-out says Empty.

    It may be anywhere in its wait, also in the lock.
    """
    iq = stage.queue()
    writer = stage.cast(iq.get_producer())
    lost, other = (stage.cast(iq.get_consumer()) for _ in range(2))
    lost.begin(actors.get)
    wait_for_waiting(iq, consumers=1)
    reading = other.begin(actors.drain)
    time.sleep(random.Random(seed).uniform(0, 0.3))  # the moment of the kill is what is varied
    ended = kill(lost)
    putting = writer.begin(actors.put_and_close, range(100))
    putting.result()
    assert_known(putting.outcome().at, ended)
    iq.close()
    assert reading.result() == list(range(100))
    assert_known(reading.outcome().at, ended)
    assert iq.join(PATIENCE_S)


def test_row_4_a_consumer_is_stopped_while_it_waits(stage: Stage) -> None:
    """There, all others wait until it goes on."""
    iq = stage.queue()
    writer = stage.cast(iq.get_producer())
    stopped, other = (stage.cast(iq.get_consumer()) for _ in range(2))
    waiting = stopped.begin(actors.get)
    wait_for_waiting(iq, consumers=1)

    def is_stopped_outside_the_lock() -> bool:
        os.kill(stopped.pid, signal.SIGSTOP)
        stat = Path(f"/proc/{stopped.pid}/stat")
        wait_until(lambda: ") T " in stat.read_text(), "it is stopped")
        with suppress(KeyError), iq._core.runtime.trylock:
            return True
        os.kill(stopped.pid, signal.SIGCONT)
        return False

    wait_until(is_stopped_outside_the_lock, "it is stopped while it waits")
    writer.run(actors.put, 1, 2, 3)
    assert other.run(actors.get, 3) == [1, 2, 3]
    with pytest.raises(Empty):
        other.run(actors.get_within, 0.1)
    writer.run(actors.put, 4)
    os.kill(stopped.pid, signal.SIGCONT)
    assert waiting.result() == [4]


def test_row_7_all_consumers_are_killed(stage: Stage) -> None:
    """There, a bounded put blocks for ever, and an unbounded producer can't end."""
    bounded, unbounded = stage.queue(maxsize=1), stage.queue()
    writer = stage.cast(bounded.get_producer())
    victims = [stage.cast(bounded.get_consumer()) for _ in range(2)]
    victims += [stage.cast(unbounded.get_consumer())]
    other = stage.cast(unbounded.get_producer())
    for victim in victims:
        victim.run(actors.nothing)
    bounded.close()
    unbounded.close()
    waiting = writer.begin(actors.put, 1, 2)
    wait_for_waiting(bounded, producers=1)
    other.run(actors.put, *range(1000))
    ended = max(kill(victim) for victim in victims)
    assert isinstance(waiting.error(), ConsumersGone)
    assert_known(waiting.outcome().at, ended)
    other.run(actors.close)
    other.go()
    assert other.process.exitcode == 0


def test_row_13_those_who_wait_are_killed_and_nobody_else_waits_for_them(stage: Stage) -> None:
    """There, the next `notify_all` hangs, with the lock held."""
    iq = stage.queue()
    writer = stage.cast(iq.get_producer())
    victims = [stage.cast(iq.get_consumer()) for _ in range(3)]
    other = stage.cast(iq.get_consumer())
    for victim in victims:
        victim.begin(actors.get)
    wait_for_waiting(iq, consumers=3)
    ended = max(kill(victim) for victim in victims)
    reading = other.begin(actors.drain)
    iq.close()
    for call in (writer.begin(actors.put, 1), writer.begin(actors.close)):
        call.result()
        assert_known(call.outcome().at, ended)
    assert reading.result() == [1]
    assert_known(reading.outcome().at, ended)
    assert iq.join(PATIENCE_S)


@pytest.mark.parametrize("redeliver", [False, True])
def test_row_17_a_consumer_is_killed_after_its_get(stage: Stage, redeliver: bool) -> None:
    """There, the item is lost, and `join` hangs."""
    iq = stage.queue(redeliver=redeliver)
    producer = iq.get_producer()
    producer.put_many([1, 2, 3])
    producer.close()
    lost, other = (stage.cast(iq.get_consumer()) for _ in range(2))
    iq.close()
    assert lost.run(actors.get) == [1]
    ended = kill(lost)
    reading = other.begin(actors.drain)
    if redeliver:
        assert reading.result() == [2, 3, 1]
        assert iq.join(PATIENCE_S)
    else:
        assert reading.result() == [2, 3]
        with pytest.raises(ItemsLost):
            iq.join(PATIENCE_S)
    assert_known(time.monotonic(), ended)


# Producers that end


@pytest.mark.parametrize("seed", range(6))
def test_row_5_a_producer_is_killed_in_mid_write(stage: Stage, seed: int) -> None:
    """There, half a message is in the pipe, and the lock for writing is gone.

    It may be anywhere in its put, also in the lock.
    """
    iq: IterableQueue[Any] = stage.queue()
    lost, other = stage.cast(iq.get_producer()), stage.cast(iq.get_producer())
    consumer = iq.get_consumer()
    iq.close()
    other.run(actors.nothing)
    lost.begin(put_blocks, 100_000)
    wait_until(iq.qsize, "it puts")
    time.sleep(random.Random(seed).uniform(0, 0.02))  # the moment of the kill is what is varied
    ended = kill(lost)
    putting = other.begin(put_things, [b"other"])
    putting.result()
    assert_known(putting.outcome().at, ended)
    other.run(actors.close)
    items, error = actors.drain_until(consumer)
    assert isinstance(error, ProducerFailed)
    assert str(lost.pid) in str(error)
    items.remove(b"other")
    assert items == [block(n, 100_000) for n in range(len(items))]
    stats = iq.statistics()
    assert stats.put == stats.taken == len(items) + 1


def block(number: int, size: int) -> bytes:
    """So many bytes of which each says which block it is of."""
    return bytes([number % 251]) * size


def put_blocks(out: Producer[Any], size: int) -> NoReturn:
    """One after another, until killed."""
    number = 0
    while True:
        out.put(block(number, size))
        number += 1


def test_row_6_a_producer_is_killed_before_it_closes(stage: Stage) -> None:
    """There, consumers wait for ever."""
    iq = stage.queue()
    lost, reader = stage.cast(iq.get_producer()), stage.cast(iq.get_consumer())
    iq.close()
    lost.run(actors.put, 1, 2)
    reading = reader.begin(actors.drain_until)
    ended = kill(lost)
    items, error = reading.result()
    assert items == [1, 2]
    assert isinstance(error, ProducerFailed)
    assert_known(reading.outcome().at, ended)


def test_row_8_the_holder_of_a_slot_of_a_bounded_queue_is_killed(
    stage: Stage, tmp_path: Path
) -> None:
    """There, `full()` and `empty()` are both True for ever."""
    iq, inside = stage.queue(maxsize=1), tmp_path / "inside"
    victims: list[Puppet[Any]] = [
        stage.cast(iq.get_producer()),
        stage.cast(iq.get_consumer()),
        stage.cast(iq.get_producer()),
    ]
    victims[0].run(actors.put, 1)
    assert victims[1].run(actors.get) == [1]
    victims[2].begin(actors.stay_inside, inside)
    wait_until(inside.exists, "a process is inside the lock")
    ended = max(kill(victim) for victim in victims)
    producer, consumer = iq.get_producer(), iq.get_consumer()
    assert iq.empty()
    assert not iq.full()
    producer.put(2, timeout=on_this_machine(KNOWN_WITHIN_S))
    assert iq.full()
    assert not iq.empty()
    assert consumer.get(timeout=on_this_machine(KNOWN_WITHIN_S)) == 2
    assert_known(time.monotonic(), ended)


def test_row_9_a_process_is_joined_before_its_items_are_taken(processes: Processes) -> None:
    """There, that is a documented deadlock."""
    iq = IterableQueue[int]()
    process = processes.start(
        get_context("fork").Process(
            target=actors.put_and_close, args=(iq.get_producer(), range(20_000))
        )
    )
    iq.close()
    process.join(PATIENCE_S)
    assert process.exitcode == 0
    assert list(iq.get_consumer()) == list(range(20_000))


IN_ATEXIT = """
    import atexit, multiprocessing
    from iterable_queue import IterableQueue

    def count(numbers):
        with numbers:
            print(sum(1 for _ in numbers), flush=True)

    def put_all():
        with out:
            for n in range(1000):
                out.put(n)

    if __name__ == "__main__":
        iq = IterableQueue()
        out = iq.get_producer()
        context = multiprocessing.get_context("spawn")
        context.Process(target=count, args=(iq.get_consumer(),)).start()
        iq.close()
        atexit.register(put_all)
"""


def test_row_10_the_first_put_is_in_an_exit_hook(tmp_path: Path) -> None:
    """There, that is a RuntimeError, or most items don't arrive."""
    assert run_script(IN_ATEXIT, tmp_path / "script.py") == "1000\n"


@pytest.mark.parametrize("in_thread", [False, True])
def test_row_10_the_process_ends_by_os_exit_right_after_its_puts(
    processes: Processes, in_thread: bool
) -> None:
    """There, 4 to 19 of 1000 arrive, and the exit status is 0."""
    iq = IterableQueue[int]()
    process = processes.start(
        get_context("fork").Process(target=put_and_vanish, args=(iq.get_producer(), in_thread))
    )
    iq.close()
    assert list(iq.get_consumer()) == list(range(1000))
    process.join(PATIENCE_S)
    assert process.exitcode == 0


def put_and_vanish(out: Producer[int], in_thread: bool) -> NoReturn:
    """Put a thousand, here or in a daemon thread, close, and end at once."""
    if in_thread:
        thread = threading.Thread(target=actors.put_and_close, args=(out, range(1000)), daemon=True)
        thread.start()
        thread.join()
    else:
        actors.put_and_close(out, range(1000))
    os._exit(0)


# Interrupts


class Interrupted(BaseException):
    """What the signal handlers here raise."""


MANY = 24
"""How many interrupts make a storm."""


class Trap:
    """A signal handler that raises once each time it has been armed: in calls of the library.

    *mark* is a file to be written when that has happened a few times.
    """

    def __init__(self, signum: int, mark: Path | None = None) -> None:
        self.armed = False
        self.sprung = 0
        self._mark = mark
        signal.signal(signum, self)

    def __call__(self, signum: int, frame: object) -> None:
        if self.armed:
            self.armed = False
            self.sprung += 1
            if self.sprung == MANY // 4 and self._mark is not None:
                self._mark.touch()
            raise Interrupted


class Puts(NamedTuple):
    """What a storm has put: items whose put returned, and those whose put was interrupted."""

    sure: list[int]
    maybe: list[int]


def put_under_fire(out: Producer[int], items: Iterable[int], trap: Trap) -> Puts:
    """Put *items*, none of them twice; what becomes of an interrupted one is left open."""
    puts = Puts([], [])
    for item in items:
        try:
            trap.armed = True
            out.put(item)
            trap.armed = False
            puts.sure.append(item)
        except Interrupted:
            puts.maybe.append(item)
    return puts


def assert_exact(iq: IterableQueue[int], puts: list[Puts], got: list[int]) -> None:
    """Each item whose put returned was got, once; the others once or never; all is counted."""
    sure = {item for some in puts for item in some.sure}
    maybe = {item for some in puts for item in some.maybe}
    found = set(got)
    assert len(found) == len(got)
    assert sure <= found <= sure | maybe
    stats = iq.statistics()
    assert (stats.put, stats.taken, stats.finished) == (len(got),) * 3
    assert (stats.queued, stats.lost, stats.redelivered, stats.dropped) == (0, 0, 0, 0)
    assert (stats.blocked_producers, stats.blocked_consumers) == (0, 0)


QUEUES: dict[str, Callable[[], IterableQueue[int]]] = {
    "threaded": IterableQueue[int].threaded,
    "threaded, bounded": lambda: IterableQueue[int].threaded(5),
    "over Queue": lambda: IterableQueue[int].over(queue.Queue()),
    "over PriorityQueue": lambda: IterableQueue[int].over(queue.PriorityQueue(5)),
    "processes": IterableQueue[int],
    "processes, bounded": lambda: IterableQueue[int](5),
    "processes, redelivering": lambda: IterableQueue[int](redeliver=True),
}


TRACED = pytest.mark.skipif(
    "COVERAGE_PROCESS_START" in os.environ,
    reason="a tracer runs signal handlers between any two lines, where Python itself does not",
)


@TRACED
@pytest.mark.parametrize("signum", [signal.SIGALRM, signal.SIGINT])
@pytest.mark.parametrize("kind", QUEUES)
def test_row_12_a_signal_handler_raises_wherever_it_can(
    stage: Stage, kind: str, signum: signal.Signals
) -> None:
    """There, a lock is left held in a quarter of the interrupts.

    One thread that puts and gets, in a process of its own: the time limit of this one is a timer
    for SIGALRM, too.
    """
    interrupts = stage.cast(None).run(endure_storm, kind, signum, 0.6, 1)
    assert interrupts >= MANY


def jumps_outside(path: Path) -> list[str]:
    """Jumps back of loops that are in a `try` or `with` as they are written, not as compiled.

    From CPython 3.12 on, the jump back of `while condition` is outside whatever the loop is in:
    when a signal handler raises there, no `finally` runs and no lock is given back. Those of
    `await`, after something was thrown into it, are left out.
    """
    text = path.read_text()
    tree = ast.parse(text)
    blocks: list[tuple[int, int]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.With | ast.AsyncWith) or (
            isinstance(node, ast.Try) and node.finalbody
        ):
            blocks.append((node.body[0].lineno, node.body[-1].end_lineno or 0))

    def of(code: types.CodeType) -> Iterator[str]:
        table: list[Any] = vars(dis.Bytecode(code))["exception_entries"]
        before: dis.Instruction | None = None
        line = code.co_firstlineno
        for instruction in dis.get_instructions(code):
            if instruction.positions is not None:
                line = instruction.positions.lineno or line
            if instruction.opname == "JUMP_BACKWARD" and before is not None:
                inside = [
                    any(entry.start <= offset < entry.end for entry in table)
                    for offset in (before.offset, instruction.offset)
                ]
                written = any(
                    first <= line <= last for first, last in blocks if first > code.co_firstlineno
                )
                if inside == [True, False] and written and before.opname != "CLEANUP_THROW":
                    yield f"{path.name}:{line}: in {code.co_qualname}"
            before = instruction
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                yield from of(constant)

    return list(of(compile(text, str(path), "exec")))


def test_row_12_no_loop_jumps_out_of_its_try(tmp_path: Path) -> None:
    package = Path(iterable_queue.__file__).parent
    modules = [path for path in package.rglob("*.py") if "testing" not in path.parts]
    assert len(modules) > 20
    assert [found for path in modules for found in jumps_outside(path)] == []
    escapes = tmp_path / "escapes.py"
    escapes.write_text(
        "def f(lock, items):\n    with lock:\n        while not items:\n            g()\n"
    )
    assert bool(jumps_outside(escapes)) == (sys.version_info >= (3, 12)), "what it is to find"


def endure_storm(held: None, kind: str, signum: int, seconds: float, seed: int) -> int:
    """Put and get in every way for so long, or until there were many interrupts.

    Returns how many there were.
    """
    chance = random.Random(seed)
    trap = Trap(signum)
    iq = QUEUES[kind]()
    out, source = iq.get_producer(), iq.get_consumer()
    puts, got = Puts([], []), list[int]()
    over = threading.Event()
    storm = threading.Thread(target=blow, args=(signum, over, seed), daemon=True)
    storm.start()
    start = time.monotonic()
    number = 0
    # The number of interrupts depends on what else the machine does.
    while (so_far := time.monotonic() - start) < seconds or (
        trap.sprung < MANY and so_far < PATIENCE_S / 2
    ):
        for _ in range(chance.randrange(8)):
            number += 1
            way = chance.randrange(3)
            try:
                trap.armed = True
                if way == 0:
                    out.put_nowait(number)
                elif way == 1 or iq.full():
                    out.put(number, timeout=0.0005)
                else:
                    out.put(number)
                trap.armed = False
                puts.sure.append(number)
            except Full:
                trap.armed = False
            except Interrupted:
                puts.maybe.append(number)
        for _ in range(chance.randrange(8)):
            way = chance.randrange(4)
            try:
                trap.armed = True
                if way == 0:
                    item = source.get_nowait()
                elif way == 1 or not iq.qsize():
                    item = source.get(timeout=0.0005)
                elif way == 2:
                    item = source.get()
                else:
                    some = source.get_many(3)
                    trap.armed = False
                    got += some
                    continue
                trap.armed = False
                got.append(item)
            except Empty:
                trap.armed = False
            except Interrupted:
                pass
    over.set()
    storm.join()
    out.close()
    iq.close()
    got.extend(source)
    assert got == sorted(got)
    assert_exact(iq, [puts], got)
    assert iq.join(0)
    source.close()
    return trap.sprung


def blow(signum: int, over: threading.Event, seed: int) -> None:
    """Send the main thread a signal every now and then."""
    chance = random.Random(seed)
    main = threading.main_thread().ident
    assert main is not None
    while not over.is_set():
        time.sleep(chance.uniform(0.00005, 0.001))
        signal.pthread_kill(main, signum)


_trap: Trap | None = None


def set_trap(endpoint: object, signum: int, mark: Path) -> None:
    """In a puppet: have the signal raise in what `produce_under_fire` and its kin call."""
    global _trap
    _trap = Trap(signum, mark)


def produce_under_fire(out: Producer[int], start: int, enough: Path) -> Puts:
    """Put numbers, 1,000 at least, until there is the file *enough*; and close."""
    assert _trap is not None
    numbers = itertools.count(start)
    while_wanted = itertools.takewhile(lambda n: n < start + 1000 or not enough.exists(), numbers)
    puts = put_under_fire(out, while_wanted, _trap)
    out.close()
    return puts


def consume_under_fire(source: Consumer[int]) -> list[int]:
    """Take all there is."""
    assert _trap is not None
    got: list[int] = []
    while True:
        try:
            _trap.armed = True
            item = source.get()
            _trap.armed = False
            got.append(item)
        except Done:
            _trap.armed = False
            source.close()
            return got
        except Interrupted:
            pass


@TRACED
@pytest.mark.parametrize("maxsize", [0, 3])
def test_row_11_every_process_of_a_group_is_interrupted_again_and_again(
    stage: Stage, tmp_path: Path, maxsize: int
) -> None:
    """There, who reads has read a message's header and not its body.

    They go on until each of them has been interrupted a few times.
    """
    iq = stage.queue(maxsize)
    producers = [stage.cast(iq.get_producer()) for _ in range(2)]
    consumers = [stage.cast(iq.get_consumer()) for _ in range(2)]
    iq.close()
    group: list[Puppet[Any]] = [*producers, *consumers]
    marks = [tmp_path / str(number) for number in range(len(group))]
    enough = tmp_path / "enough"
    for puppet, mark in zip(group, marks, strict=True):
        puppet.run(set_trap, signal.SIGINT, mark)
    reading = [consumer.begin(consume_under_fire) for consumer in consumers]
    putting = [
        producer.begin(produce_under_fire, start, enough)
        for producer, start in zip(producers, (0, 10**9), strict=True)
    ]
    chance = random.Random(maxsize)
    deadline = time.monotonic() + PATIENCE_S / 2
    while not all(call.is_over() for call in reading):
        for puppet in group:
            os.kill(puppet.pid, signal.SIGINT)
        time.sleep(chance.uniform(0.0005, 0.002))
        if time.monotonic() > deadline or all(mark.exists() for mark in marks):
            enough.touch()
    puts = [call.result() for call in putting]
    takes = [call.result() for call in reading]
    assert_exact(iq, puts, list(itertools.chain(*takes)))
    assert [mark for mark in marks if not mark.exists()] == []
    assert iq.join(0)


INTERRUPTED_PROGRAM = """
    import multiprocessing, os, signal, sys, time
    from iterable_queue import IterableQueue

    def produce(out, ready):
        ready.set()
        try:
            with out:
                for n in range(10**9):
                    out.put(n)
        except KeyboardInterrupt:
            pass

    def consume(numbers, ready):
        ready.set()
        try:
            for n in numbers:
                pass
        except KeyboardInterrupt:
            numbers.close()

    if __name__ == "__main__":
        os.setpgid(0, 0)
        context = multiprocessing.get_context("fork")
        readies = [context.Event() for _ in range(4)]
        try:
            with IterableQueue(maxsize=10) as iq:
                workers = [
                    context.Process(target=produce, args=(iq.get_producer(), readies[0])),
                    context.Process(target=produce, args=(iq.get_producer(), readies[1])),
                    context.Process(target=consume, args=(iq.get_consumer(), readies[2])),
                    context.Process(target=consume, args=(iq.get_consumer(), readies[3])),
                ]
                for worker in workers:
                    worker.start()
                for ready in readies:
                    ready.wait()
                time.sleep(0.1)  # everybody is at work
                os.killpg(0, signal.SIGINT)
                time.sleep(60)
        except KeyboardInterrupt:
            pass
        for worker in workers:
            worker.join()
        print([worker.exitcode for worker in workers], iq.statistics().state)
"""


def test_row_11_ctrl_c_ends_a_program(tmp_path: Path) -> None:
    """There, with a traceback from every worker, and some that never end."""
    found = run_script(INTERRUPTED_PROGRAM, tmp_path / "script.py")
    assert found == "[0, 0, 0, 0] cancelled\n"


class PutsWhenDropped:
    """Puts in `__del__`, wherever the garbage collector comes by."""

    def __init__(self, put: Callable[[], None]) -> None:
        self.cycle = self
        self.put = put

    def __del__(self) -> None:
        self.put()


@pytest.mark.parametrize("kind", QUEUES)
@pytest.mark.parametrize("way", ["signal handler", "__del__"])
def test_row_26_a_put_interrupts_a_put(stage: Stage, kind: str, way: str) -> None:
    """There, a signal handler or `__del__` that puts while its thread does is a deadlock."""
    inner, refused = stage.cast(None).run(put_in_put, kind, way, 50)
    assert inner >= 50
    assert refused < inner


def put_in_put(held: None, kind: str, way: str, often: int) -> tuple[int, int]:
    """Put and get, interrupted by puts so *often*. Returns how many, and how many were refused."""
    iq = QUEUES[kind]()
    out, source = iq.get_producer(), iq.get_consumer()
    with out:
        counts = {"inner": 0, "put": 0, "refused": 0}

        def put_inside() -> None:
            counts["inner"] += 1
            try:
                out.put_nowait(-1)
                counts["put"] += 1
            except Full:
                pass
            except WouldDeadlock:
                counts["refused"] += 1

        over = threading.Event()
        storm = threading.Thread(target=blow, args=(signal.SIGALRM, over, 1), daemon=True)
        thresholds = gc.get_threshold()
        if way == "signal handler":
            signal.signal(signal.SIGALRM, lambda signum, frame: put_inside())
            storm.start()
        else:
            gc.set_threshold(1)
        number = 0
        taken = 0
        while counts["inner"] < often:
            number += 1
            if way == "__del__" and number % 5 == 0:
                PutsWhenDropped(put_inside)
            while True:
                try:
                    out.put_nowait(number)
                    break
                except Full:
                    source.get(timeout=1)
                    taken += 1
            while iq.qsize() > 3:
                source.get()
                taken += 1
        gc.set_threshold(*thresholds)
        gc.collect()
        over.set()
        if way == "signal handler":
            storm.join()
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
    iq.close()
    taken += len(list(source))
    stats = iq.statistics()
    assert stats.put == stats.taken == stats.finished == taken == number + counts["put"]
    assert iq.join(0)
    return counts["inner"], counts["refused"]


# Locks and their holders


@pytest.mark.parametrize("named", [True, False], ids=["named", "before its name is written"])
def test_row_14_the_holder_of_a_lock_is_killed(stage: Stage, tmp_path: Path, named: bool) -> None:
    """There, it is never released."""
    iq, inside = stage.queue(), tmp_path / "inside"
    lost = stage.cast(iq.get_consumer())
    producer, consumer = iq.get_producer(), iq.get_consumer()
    lost.begin(actors.stay_inside, inside, named)
    wait_until(inside.exists, "the process is inside the lock")
    ended = kill(lost)
    producer.put(1)
    assert consumer.get() == 1
    assert_known(time.monotonic(), ended)


@pytest.mark.parametrize("maxsize", [0, 1000])
def test_row_18_plain_forks_of_a_queue_in_use(maxsize: int) -> None:
    """There, the child's puts are lost, or it waits for a lock that another thread had then."""
    iq = IterableQueue[int](maxsize)
    busy, consumer = iq.get_producer(), iq.get_consumer()
    got: list[int] = []
    over = threading.Event()

    def put_on() -> None:
        while not over.is_set():
            busy.put(-1)

    def read_on() -> None:
        got.extend(n for n in consumer if n >= 0)

    threads = [threading.Thread(target=target, daemon=True) for target in (put_on, read_on)]
    for thread in threads:
        thread.start()
    pids: list[int] = []
    for number in range(20):
        endpoint = iq.get_producer()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                actors.put_and_close(endpoint, range(10 * number, 10 * number + 5))
                actors.make_producer_and_put(iq, *range(10 * number + 5, 10 * number + 10))
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
        del endpoint
    statuses = [os.waitpid(pid, 0)[1] for pid in pids]
    over.set()
    threads[0].join(PATIENCE_S)
    busy.close()
    iq.close()
    threads[1].join(PATIENCE_S)
    assert statuses == [0] * 20
    assert sorted(got) == list(range(200))
    consumer.close()
    assert iq.join(PATIENCE_S)


# Roads and start methods


def test_row_19_endpoints_go_through_a_queue_and_to_a_pool() -> None:
    """There, a queue sent through a queue is dropped by a thread, and a pool refuses it."""
    context = get_context("fork")
    iq = IterableQueue[int]()
    carrier = context.Queue()
    carrier.put(iq.get_producer())
    with context.Pool(1) as pool:
        direct = pool.apply_async(actors.use, (iq.get_producer(),))
        carried = pool.apply_async(use_what_is_pickled, (pickle.dumps(iq.get_producer()),))
        assert (direct.get(PATIENCE_S), carried.get(PATIENCE_S)) == ("put", "put")
    with carrier.get(timeout=PATIENCE_S) as out:
        out.put(3)
    carrier.close()
    carrier.join_thread()
    iq.close()
    assert sorted(iq.get_consumer()) == [1, 1, 2, 2, 3]


def use_what_is_pickled(data: bytes) -> object:
    """Do with an endpoint's pickle what `actors.use` does with an endpoint."""
    return actors.use(pickle.loads(data))


def test_row_20_a_queue_of_the_fork_context_in_a_spawned_process(processes: Processes) -> None:
    """There, that is a RuntimeError."""
    iq = IterableQueue[int](context=get_context("fork"))
    process = processes.start(
        get_context("spawn").Process(
            target=actors.put_and_close, args=(iq.get_producer(), [1, 2, 3])
        )
    )
    iq.close()
    assert list(iq.get_consumer()) == [1, 2, 3]
    process.join(PATIENCE_S)
    assert process.exitcode == 0


UNGUARDED = """
    import multiprocessing, os, sys
    from iterable_queue import IterableQueue, ProducerFailed

    def produce(out):
        with out:
            out.put(1)

    with IterableQueue() as iq:
        process = multiprocessing.get_context("spawn").Process(
            target=produce, args=(iq.get_producer(),)
        )
        sys.stderr = open(os.devnull, "w")
        null = os.open(os.devnull, os.O_WRONLY)
        kept = os.dup(2)
        os.dup2(null, 2)  # multiprocessing's own explanation
        process.start()
        os.dup2(kept, 2)
    try:
        print(list(iq.get_consumer()))
    except ProducerFailed:
        print("failed")
    process.join()
"""


def test_row_21_a_missing_main_guard(tmp_path: Path) -> None:
    """There, the child ends with status 1, and its parent waits for ever."""
    assert run_script(UNGUARDED, tmp_path / "script.py") == "failed\n"


@pytest.mark.parametrize("workers", [1, 3])
def test_row_25_consumers_that_produce_on_a_bounded_queue(stage: Stage, workers: int) -> None:
    """There, a deadlock after 1 or 2 of 1093 items."""
    iq = stage.queue(maxsize=1)
    crew = [stage.cast(iq.get_worker()) for _ in range(workers)]
    root = iq.get_producer()
    iq.close()
    walks = [worker.begin(actors.grow, 1093) for worker in crew]
    with root:
        root.put(0)
    assert sum(walk.result() for walk in walks) == 1093
    assert iq.join(PATIENCE_S)


# Notice of death


def test_row_27_a_grandchild_does_not_hide_a_death(stage: Stage, processes: Processes) -> None:
    """There, a process's sentinel stays open while a child of its own has a copy."""
    iq = stage.queue()
    lost, reader = stage.cast(iq.get_producer()), stage.cast(iq.get_consumer())
    iq.close()
    lost.run(actors.put, 1)
    grandchild = lost.run(fork_a_sleeper)
    processes.watch(grandchild)
    reading = reader.begin(actors.drain_until)
    ended = kill(lost)
    items, error = reading.result()
    assert items == [1]
    assert isinstance(error, ProducerFailed)
    assert_known(reading.outcome().at, ended)
    assert lives(grandchild)
    os.kill(grandchild, signal.SIGKILL)  # else it would be the last one, and leave the directory
    wait_until(lambda: not lives(grandchild), "the grandchild's end")


def fork_a_sleeper(endpoint: object) -> int:
    """The pid of a child that does nothing."""
    pid = os.fork()
    if pid == 0:
        while True:
            signal.pause()
    return pid


def test_row_28_siblings_do_not_hide_a_death(stage: Stage) -> None:
    """There, forked siblings have copies of a pipe's end, so its other end never closes."""
    iq = stage.queue()
    crew = [stage.cast(iq.get_producer()) for _ in range(3)]
    for puppet in crew:
        puppet.run(actors.put, 1)
    siblings = [stage.cast(iq.get_producer()) for _ in range(2)]  # after the others' use
    for puppet in siblings:
        puppet.run(actors.nothing)
    consumer = iq.get_consumer()
    iq.close()
    ended = max(kill(puppet) for puppet in crew)
    wait_until(lambda: iq.statistics().failures == 3, "their deaths are known")
    assert_known(time.monotonic(), ended)
    for puppet in siblings:
        puppet.run(actors.put_and_close, [2])
    with pytest.raises(ProducerFailed) as caught:
        assert list(iter(consumer.get, None)) == []
    assert len(caught.value.failures) == 3


def test_row_29_nothing_is_left_when_all_were_killed(processes: Processes) -> None:
    """There, names of semaphores and of shared memory, where their tracker was killed as well."""
    here, there = Pipe(duplex=False)
    context = get_context("fork")
    victim = processes.start(context.Process(target=make_queue_and_sleep, args=(there,)))
    assert here.poll(PATIENCE_S)
    paths: list[Path] = here.recv()
    assert all(path.exists() for path in paths)
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    victim.join(PATIENCE_S)
    assert all(path.exists() for path in paths)
    # By a process that looks for the first time: it does so at most once a minute.
    subprocess.run(
        [sys.executable, "-c", "from iterable_queue import IterableQueue as Q; Q()"],
        check=True,
        timeout=PATIENCE_S,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert not any(path.exists() for path in paths)


def make_queue_and_sleep(back: Any) -> NoReturn:
    """A queue with something on it; tells where it is."""
    iq = IterableQueue[int]()
    core = iq._core
    assert isinstance(core, SharedCore)
    iq.get_producer().put(1)
    semaphores = Path("/dev/shm").glob(f"sem.iq-{core.address.token}*")
    back.send([Path(core.address.path), *semaphores])
    while True:
        signal.pause()

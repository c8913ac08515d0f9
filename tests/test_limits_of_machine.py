"""What a machine does to a queue: full disks, processes that are stopped or become another program,
forks at bad moments, large numbers, cleaners, and what somebody else has planted.
"""

from __future__ import annotations

import errno
import gc
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast

import pytest

from iterable_queue import (
    Cancelled,
    ChannelBroken,
    Consumer,
    Done,
    Empty,
    EndpointElsewhere,
    Full,
    IterableQueue,
    Producer,
    ProducerFailed,
    Worker,
    _directory,
)
from iterable_queue._cells import SLOTS, WAIT_END
from iterable_queue._shared import SharedCore
from tests import actors
from tests.actors import PATIENCE_S, Call, Puppet, Stage, context_of, on_this_machine
from tests.conftest import FORKS, Context, Processes, lives, wait_until

pytestmark = FORKS

KNOWN_WITHIN_S = 2.0
"""How long it may take until a process's end is known to all others that wait."""

LATE_S = 0.5
"""How much longer than it must a call may take on a machine that is busy."""


@pytest.fixture
def stage(processes: Processes) -> Iterator[Stage]:
    """Forked processes."""
    with Stage(context_of("fork"), processes) as stage:
        yield stage


def core_of(iq: IterableQueue[Any]) -> SharedCore:
    core = iq._core
    assert isinstance(core, SharedCore)
    return core


def directory_of(iq: IterableQueue[Any]) -> Path:
    return Path(core_of(iq).address.path)


# A full disk


class Disk(NamedTuple):
    """Where the queues of a test are, and how it becomes full for the process that says so.

    Attributes:
        base: a directory.
        is_small: it is a file system of its own; else the sizes of files are limited instead.
    """

    base: str
    is_small: bool

    def fill(self, leave: int = 0) -> None:
        """Leave so many bytes: of whole pages on a small disk, to each file where they are."""
        if not self.is_small:
            resource.setrlimit(resource.RLIMIT_FSIZE, (leave, resource.RLIM_INFINITY))
            return
        with open(f"{self.base}/filler", "wb", buffering=0) as file:
            with suppress(OSError):
                while True:
                    file.write(bytes(4096))
            file.truncate(file.tell() - leave)

    def make_room(self) -> None:
        """Undo that."""
        if self.is_small:
            os.unlink(f"{self.base}/filler")
        else:
            unlimited = resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, unlimited))


@pytest.fixture(params=["small disk", "small files"])
def disk(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Disk]:
    """What acts here is a puppet: a limit is its own, and SIGBUS would end it and not the tests."""
    base = tmp_path / "base"
    base.mkdir()
    monkeypatch.setattr(_directory, "place_for_new", lambda: str(base))
    if request.param == "small files":
        yield Disk(str(base), is_small=False)
        return
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(base)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True, timeout=20, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if mounted.returncode:
        pytest.skip(f"may not mount: {mounted.stderr.strip()}")
    try:
        yield Disk(str(base), is_small=True)
    finally:
        # Lazily: a process that is just ending may have files of it mapped.
        subprocess.run(["umount", "--lazy", str(base)], timeout=20, check=True)


def is_refused(call: Callable[..., object], *args: object) -> bool:
    """Whether there is no room for that call."""
    try:
        call(*args)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG):
            return True
        raise
    return False


def make_room(held: object, disk: Disk) -> None:
    """In a puppet."""
    disk.make_room()


def fill(held: object, disk: Disk, leave: int) -> None:
    """In a puppet."""
    disk.fill(leave)


LARGE = 100_000
BATCH = 1_000


def item_of(way: str, number: int) -> Any:
    return number.to_bytes(4, "little") * (LARGE // 4) if way == "large" else number


def put_next(out: Producer[Any] | Worker[Any], way: str, number: int) -> int:
    """Put the next item, or some. Returns how many."""
    if way == "batches":
        out.put_many(range(number, number + BATCH))
        return BATCH
    out.put(item_of(way, number))
    return 1


def put_until_full(out: Producer[Any] | Worker[Any], way: str, disk: Disk) -> int:
    """Put until there is no room, and try again. Returns the number of items whose put returned."""
    number = put_next(out, way, 0)
    disk.fill(1 << 19 if disk.is_small else 0)

    def put_on() -> None:
        nonlocal number
        while True:
            number += put_next(out, way, number)

    for _ in range(3):
        assert is_refused(put_on)
    return number


@pytest.mark.parametrize("way", ["small", "large", "batches", "bounded", "worker"])
def test_a_full_disk_is_an_error_in_put(disk: Disk, stage: Stage, way: str) -> None:
    """And never a SIGBUS. What is there is read, by one who comes only then, and puts go on."""
    iq = IterableQueue[Any](10**6 if way == "bounded" else 0)
    writer = stage.cast(iq.get_worker() if way == "worker" else iq.get_producer())
    reader = stage.cast(iq.get_consumer())
    iq.close()
    number = writer.run(put_until_full, way, disk)
    queued = iq.qsize()
    # Of a batch, some may have been put before there was no room for the others.
    assert number <= queued < number + (BATCH if way == "batches" else 1)
    assert reader.run(actors.get, queued) == [item_of(way, n) for n in range(queued)]
    if not disk.is_small:  # else there is room again, since all was read
        writer.run(make_room, disk)
    for _ in range(3):
        more = writer.run(put_next, way, queued)
        assert reader.run(actors.get, more) == [item_of(way, queued + n) for n in range(more)]
        queued += more
    writer.run(actors.close)
    assert reader.run(actors.drain) == []
    assert iq.join(PATIENCE_S)
    stage.end()
    directory = directory_of(iq)
    del iq
    gc.collect()
    assert not directory.exists()


def open_until_full(iq: IterableQueue[int], disk: Disk) -> int:
    """More endpoints than the file of cells has room for. Returns how many could be made."""
    outs = [iq.get_producer()]
    outs[0].put(0)
    disk.fill(0)
    with suppress(OSError):
        while len(outs) < 1000:
            outs.append(iq.get_producer())
    assert len(outs) < 1000
    for call in (iq.get_producer, iq.get_consumer, iq.get_worker, outs[0].clone):
        assert is_refused(call)
    stats = iq.statistics()
    assert (stats.open_producers, stats.open_consumers, stats.open_workers) == (len(outs), 1, 0)
    outs.pop().close()
    outs.append(iq.get_producer())  # in the slot that became free
    outs[0].put(1)
    disk.make_room()
    for _ in range(100):
        outs.append(iq.get_producer())
    for number, out in enumerate(outs, 2):
        with out:  # one after another they take the room of one
            out.put(number)
    iq.close()
    return len(outs)


def test_endpoints_are_opened_on_a_full_disk(disk: Disk, stage: Stage) -> None:
    iq = IterableQueue[int]()
    source = iq.get_consumer()
    opened = stage.cast(iq).run(open_until_full, disk)
    assert list(source) == list(range(opened + 2))
    assert iq.statistics().state == "done"


def make_on_full(held: None, disk: Disk) -> None:
    """A queue."""
    disk.fill(0)
    for _ in range(3):
        assert is_refused(IterableQueue[int])
    disk.make_room()
    iq = IterableQueue[int]()
    iq.get_producer().put(1)


def test_a_queue_is_made_on_a_full_disk(disk: Disk, stage: Stage) -> None:
    stage.cast(None).run(make_on_full, disk)
    assert os.listdir(disk.base) == []


def close_on_full(held: None, disk: Disk) -> None:
    """Endpoints, and the queue."""
    iq = IterableQueue[int]()
    out, source = iq.get_producer(), iq.get_consumer()
    out.put(1)
    assert source.get() == 1
    disk.fill(0)
    out.close()
    iq.close()
    with pytest.raises(Done):
        source.get()
    source.close()
    assert iq.join(PATIENCE_S)


def test_all_is_closed_on_a_full_disk(disk: Disk, stage: Stage) -> None:
    stage.cast(None).run(close_on_full, disk)


def fail_on_full(held: None, disk: Disk, leave: int, text: str) -> None:
    """A producer: its error is to be written down, or at least that there was one."""
    iq = IterableQueue[int]()
    out, source = iq.get_producer(), iq.get_consumer()
    out.put(1)
    assert source.get() == 1
    disk.fill(leave)
    if is_refused(out.fail, ValueError(text)):
        disk.make_room()
        out.fail(ValueError(text))
    iq.close()
    with pytest.raises(ProducerFailed):
        source.get(timeout=3)


def test_a_producer_fails_on_a_full_disk(disk: Disk, stage: Stage) -> None:
    stage.cast(None).run(fail_on_full, disk, 0, "boom")


def test_a_producer_fails_on_a_disk_that_has_room_for_half_of_its_error(
    disk: Disk, stage: Stage
) -> None:
    stage.cast(None).run(fail_on_full, disk, 4096, "boom" * 10_000)


def cancel_on_full(held: None, disk: Disk) -> None:
    """A queue: that makes room."""
    iq = IterableQueue[int]()
    out, source = iq.get_producer(), iq.get_consumer()
    out.put(1)
    disk.fill(0)
    is_refused(iq.cancel, ValueError("boom"))
    for call in (source.get_nowait, lambda: out.put(2)):
        with pytest.raises(Cancelled):
            call()


def test_a_queue_is_cancelled_on_a_full_disk(disk: Disk, stage: Stage) -> None:
    stage.cast(None).run(cancel_on_full, disk)


def test_a_producer_is_killed_while_the_disk_is_full(disk: Disk, stage: Stage) -> None:
    iq = stage.queue()
    writer, reader = stage.cast(iq.get_producer()), stage.cast(iq.get_consumer())
    iq.close()
    writer.run(actors.put, 1)
    assert reader.run(actors.get) == [1]
    reader.run(fill, disk, 0)
    os.kill(writer.pid, signal.SIGKILL)
    assert isinstance(reader.begin(actors.get).error(), ProducerFailed)


def share_on_full(held: None, disk: Disk) -> None:
    """What one consumer has claimed goes to another one, for which a file is needed."""
    iq = IterableQueue[int]()
    out, slow, other = iq.get_producer(), iq.get_consumer(), iq.get_consumer()
    out.put_many(range(20_000))
    got = take_until_some_are_claimed(slow, 1)
    disk.fill(0)

    def get_all() -> None:
        with suppress(Empty):
            while True:
                got.append(other.get(timeout=0.1))

    is_refused(get_all)
    if is_refused(slow.close):
        disk.make_room()
        slow.close()
    out.close()
    iq.close()
    got += other
    assert sorted(got) == list(range(20_000))
    other.close()
    assert iq.join(3)
    assert iq.statistics().open_consumers == 0


def test_a_claim_is_given_back_on_a_full_disk(disk: Disk, stage: Stage) -> None:
    stage.cast(None).run(share_on_full, disk)


def redeliver_on_full(held: None, disk: Disk) -> None:
    """What is handed out is to be written down first; else it is not handed out."""
    iq = IterableQueue[bytes](redeliver=True)
    out, source, tree = iq.get_producer(), iq.get_consumer(), iq.get_worker()
    items = [bytes([n]) * 10_000 for n in range(5)]
    out.put_many(items)
    out.close()
    iq.close()
    assert source.get() == items[0]
    disk.fill(0)
    for _ in range(3):
        assert is_refused(source.get)
        assert is_refused(source.get_many, 2)
        assert is_refused(tree.get)
    stats = iq.statistics()
    assert (stats.taken, stats.queued) == (1, 4)
    disk.make_room()
    assert source.get() == items[1]
    assert tree.get() == items[2]
    tree.close()
    assert list(source) == items[3:]
    assert iq.join(PATIENCE_S)


def test_what_can_not_be_written_down_is_not_handed_out(disk: Disk, stage: Stage) -> None:
    stage.cast(None).run(redeliver_on_full, disk)


def test_half_of_what_is_in_hand_is_written_down(disk: Disk, stage: Stage) -> None:
    iq = IterableQueue[bytes](redeliver=True)
    out, source, victim = iq.get_producer(), iq.get_consumer(), stage.cast(iq.get_consumer())
    items = [bytes([n]) * 10_000 for n in range(3)]
    out.put_many(items)
    out.close()
    iq.close()
    victim.run(fill, disk, 4096)
    victim.begin(actors.get).outcome()  # an error, or an item
    os.kill(victim.pid, signal.SIGKILL)
    wait_until(lambda: not lives(victim.pid), "the victim's end")
    if disk.is_small:
        disk.make_room()
    got: list[bytes] = []
    with suppress(Done):
        while True:
            got.append(source.get(timeout=5))
    assert sorted(got) == items


# Processes that are stopped


def stop(puppet: Puppet[Any]) -> None:
    """Stop its process, and wait until it is."""
    os.kill(puppet.pid, signal.SIGSTOP)
    stat = Path(f"/proc/{puppet.pid}/stat")
    wait_until(lambda: ") T " in stat.read_text(), "the process is stopped")


def stop_outside_the_lock(iq: IterableQueue[Any], puppet: Puppet[Any]) -> None:
    """The same, at a moment at which it does not hold the queue's lock: that would delay others."""

    def stopped_outside() -> bool:
        stop(puppet)
        with suppress(KeyError), core_of(iq).runtime.trylock:
            return True
        os.kill(puppet.pid, signal.SIGCONT)
        return False

    wait_until(stopped_outside, "a moment at which the lock is free")


def assert_prompt(call: Call[Any], after: float = 0.0) -> None:
    """It took as long as it had to."""
    outcome = call.outcome()
    assert after <= outcome.at - outcome.began < after + on_this_machine(LATE_S)


def take_until_some_are_claimed(source: Consumer[int], some: int) -> list[int]:
    """Items, until so many more are claimed for this consumer."""
    got = [source.get()]
    while cast("Any", source)._core.log.claimed() < some:
        got.append(source.get())
    return got


@pytest.mark.parametrize("batch", [False, True])
def test_a_stopped_consumer_keeps_what_is_in_its_hand_and_no_more(
    stage: Stage, batch: bool
) -> None:
    """Also not what it has claimed."""
    iq = stage.queue()
    out = iq.get_producer()
    stopped, other = (stage.cast(iq.get_consumer()) for _ in range(2))
    if batch:
        out.put_many(range(10_000))
    else:
        actors.put(out, *range(10_000))
    got = stopped.run(take_until_some_are_claimed, 20)
    stop(stopped)
    got += other.run(actors.get, 10_000 - len(got))
    assert sorted(got) == list(range(10_000))
    late = other.begin(actors.get_within, 0.2)
    assert isinstance(late.error(), Empty)
    assert_prompt(late, after=0.2)
    out.put(10_000)
    assert other.run(actors.get) == [10_000]
    out.close()
    iq.close()
    assert other.run(actors.drain) == []
    other.run(actors.close)
    assert not iq.join(0.2)
    assert iq.statistics().finished == 10_000
    os.kill(stopped.pid, signal.SIGCONT)
    assert stopped.run(actors.drain) == []
    assert iq.join(PATIENCE_S)


def test_a_stopped_consumer_is_not_taken_for_a_dead_one(stage: Stage) -> None:
    """However long it is stopped, its item is not lost, nor handed out to another one."""
    queues = [stage.queue(redeliver=redeliver) for redeliver in (False, True)]
    sources = [iq.get_consumer() for iq in queues]
    stopped = [stage.cast(iq.get_consumer()) for iq in queues]
    for iq, source, puppet in zip(queues, sources, stopped, strict=True):
        with iq.get_producer() as out:
            out.put_many([1, 2])
        iq.close()
        assert puppet.run(actors.get) == [1]
        stop(puppet)
        assert source.get() == 2
    until = time.monotonic() + KNOWN_WITHIN_S + 0.2
    for iq, source, puppet in zip(queues, sources, stopped, strict=True):
        # Where it redelivers, the queue is not done while the item may come back.
        with pytest.raises((Empty, Done)):
            source.get(timeout=max(until - time.monotonic(), 0))
        assert not iq.join(max(until - time.monotonic(), 0))
        os.kill(puppet.pid, signal.SIGCONT)
        assert puppet.run(actors.drain_and_close) == []
        with pytest.raises(Done):
            source.get()
        stats = iq.statistics()
        assert (stats.finished, stats.lost, stats.redelivered) == (2, 0, 0)
        source.close()
        assert iq.join(PATIENCE_S)


def put_until(out: Producer[int], first: int, end: Path) -> int:
    """Numbers from *first* on, until there is the file *end*. Returns how many."""
    number = first
    while not end.exists():
        for _ in range(5):
            out.put(number)
            number += 1
    return number - first


def count_in_order(source: Consumer[int]) -> dict[int, int]:
    """Of each producer, whose numbers begin at a million times its own, how many it put."""
    counts: dict[int, int] = {}
    for number in source:
        who, count = divmod(number, 10**6)
        assert count == counts.get(who, 0), f"{count} of producer {who} is out of order"
        counts[who] = count + 1
    return counts


@pytest.mark.parametrize("maxsize", [0, 10])
def test_a_producer_is_stopped_anywhere_in_its_puts(
    stage: Stage, tmp_path: Path, maxsize: int
) -> None:
    iq, end = stage.queue(maxsize), tmp_path / "end"
    stopped, other = (stage.cast(iq.get_producer()) for _ in range(2))
    reader = stage.cast(iq.get_consumer())
    iq.close()
    reading = reader.begin(count_in_order)
    putting = stopped.begin(put_until, 0, end)
    for turn in range(10):
        before = iq.statistics().put
        wait_until(lambda: iq.statistics().put > before + 3, "it puts")  # noqa: B023
        stop_outside_the_lock(iq, stopped)
        for n in range(5):
            putting_too = other.begin(actors.put_within, 10**6 + 5 * turn + n, PATIENCE_S)
            putting_too.result()
            assert_prompt(putting_too)
        wait_until(iq.empty, "all is read that was put")
        assert not reading.is_over()
        os.kill(stopped.pid, signal.SIGCONT)
    end.touch()
    count = putting.result()
    for puppet in (stopped, other):
        puppet.run(actors.close)
    assert reading.result() == {0: count, 1: 50}


def test_a_stopped_producer_keeps_no_room_to_itself(stage: Stage) -> None:
    """On a bounded queue each gets room for more than one put at a time."""
    iq = stage.queue(maxsize=10)
    stopped, out = stage.cast(iq.get_producer()), iq.get_producer()
    source = iq.get_consumer()
    stopped.run(actors.put, 0)
    stop(stopped)
    for number in range(1, 10):
        out.put_nowait(number)
    with pytest.raises(Full):
        out.put_nowait(10)
    os.kill(stopped.pid, signal.SIGCONT)
    waiting = stopped.begin(actors.put, 10, 11)
    assert actors.get(source, 12) == list(range(12))
    waiting.result()


# Large numbers


class Footprint(NamedTuple):
    """What a queue takes that must not grow with its use."""

    slots: int
    cells: int
    segments: int
    files: int
    descriptors: int


def footprint(iq: IterableQueue[Any]) -> Footprint:
    directory = directory_of(iq)
    names = os.listdir(directory)
    return Footprint(
        core_of(iq).ledger.head[SLOTS],
        (directory / "cells").stat().st_size,
        sum(name.startswith("s") for name in names),
        len(names),
        len(os.listdir("/proc/self/fd")),
    )


def assert_no_growth(iq: IterableQueue[Any], before: Footprint | None) -> None:
    """But for a few, which hang on who was faster: a thousand uses would have added a thousand."""
    assert before is not None
    after = footprint(iq)
    assert after.cells == before.cells
    assert all(now <= then + 4 for now, then in zip(after, before, strict=True)), (before, after)


def test_a_thousand_queues_leave_nothing() -> None:
    """Whether they were used, closed, or only dropped."""
    gc.collect()
    threads = threading.active_count()
    descriptors = os.listdir("/proc/self/fd")
    tokens: set[str] = set()
    for number in range(1000):
        iq = IterableQueue[Any](number % 3, redeliver=number % 7 == 0)
        address = core_of(iq).address
        if number % 2:
            out, source = iq.get_producer(), iq.get_consumer()
            out.put(bytes(100) if number % 4 == 1 else number)
            source.get()
            if number % 5:
                out.close()
                iq.close()
            del out, source
        del iq
        tokens.add(address.token)
        assert not os.path.exists(address.path)
    left = [name for name in os.listdir("/dev/shm") if tokens & set(name.split("-"))]
    assert left == []
    assert os.listdir("/proc/self/fd") == descriptors
    assert threading.active_count() == threads
    assert f"iterable_queue-{os.geteuid()}-" not in Path("/proc/self/maps").read_text()


SETTLED = 2000
"""After so many, what is used again has been made: segments grow, and there are a few of them."""
MANY = [3_000, pytest.param(100_000, marks=[pytest.mark.soak, pytest.mark.time_limit(1800)])]


@pytest.mark.parametrize("maxsize", [0, 50])
@pytest.mark.parametrize("count", MANY)
def test_producers_one_after_another(count: int, maxsize: int) -> None:
    """Slots, cells, lanes, and files are used again."""
    iq = IterableQueue[int](maxsize)
    source, keeper = iq.get_consumer(), iq.get_producer()
    before: Footprint | None = None
    for number in range(count):
        match number % 6:
            case 0:
                out = iq.get_producer()
            case 1:
                out = keeper.clone()
            case 2:
                out = pickle.loads(pickle.dumps(iq.get_producer()))
            case 3:
                iq.get_producer().close()  # never used
                out = iq.get_producer()
            case 4:
                iq.get_consumer().close()
                out = iq.get_producer()
            case _:
                out = cast("Producer[int]", iq.get_worker())
        with out:
            out.put_many(range(number, number + 5))
        assert actors.get(source, 5) == list(range(number, number + 5))
        if number == SETTLED:
            before = footprint(iq)
    assert_no_growth(iq, before)
    assert iq.statistics().put == 5 * count


def test_a_backlog_that_was_read_gives_its_memory_back() -> None:
    """But for what is being written, and one file that is used next."""
    iq = IterableQueue[Any]()
    out, source = iq.get_producer(), iq.get_consumer()
    for size in (10, 30_000):
        items = [bytes([n % 251]) * size for n in range(1_000_000 // size)]
        for item in items:
            out.put(item)
        assert [source.get() for _ in items] == items
        out.put(b"")
        assert source.get() == b""
        assert footprint(iq).segments <= 2


def use_pickles(held: None, pickles: list[bytes], first: int) -> None:
    """Producers that come by pickle, one after another."""
    for number, data in enumerate(pickles, first):
        with pickle.loads(data) as out:
            out.put(number)


@pytest.mark.parametrize("count", MANY)
def test_producers_one_after_another_in_other_processes(count: int, stage: Stage) -> None:
    iq = IterableQueue[int]()
    source = iq.get_consumer()
    puppets = [stage.cast(None) for _ in range(2)]
    before: Footprint | None = None
    for first in range(0, count, 20):
        calls: list[Call[None]] = []
        for number, puppet in enumerate(puppets):
            pickles = [pickle.dumps(iq.get_producer()) for _ in range(10)]
            calls.append(puppet.begin(use_pickles, pickles, first + 10 * number))
        for call in calls:
            call.result()
        assert sorted(actors.get(source, 20)) == list(range(first, first + 20))
        if first == SETTLED:
            before = footprint(iq)
    assert_no_growth(iq, before)


@pytest.mark.parametrize(
    "count", [30, pytest.param(20_000, marks=[pytest.mark.soak, pytest.mark.time_limit(1800)])]
)
def test_processes_one_after_another(count: int) -> None:
    """Those that end in order, and those that are killed with a claim."""
    fork = context_of("fork")
    iq = IterableQueue[int]()
    keeper = iq.get_producer()
    source = iq.get_consumer()
    before: Footprint | None = None
    for number in range(count):
        crew = Processes(set())
        if number % 3 == 2:
            crew.start(fork.Process(target=take_and_vanish, args=(iq.get_consumer(),)))
            keeper.put_many(range(100))
        else:
            ends = iq.get_producer(), iq
            crew.start(fork.Process(target=put_and_leave, args=(*ends, number)))
            del ends
        try:
            assert crew.join(PATIENCE_S) == [0]
        finally:
            crew.end()
        stats = iq.statistics()
        while stats.open_consumers > 1 or stats.open_producers > 1:
            core_of(iq)._looked_at = 0.0  # at once, not after what is a pause otherwise
            stats = iq.statistics()
        actors.get(source, stats.queued)
        if number == 9:
            before = footprint(iq)
    assert_no_growth(iq, before)


def put_and_leave(out: Producer[int], iq: IterableQueue[int], number: int) -> None:
    """Put a few, by a producer of one's own too; every second time, leave it open."""
    out.put(number)
    actors.make_producer_and_put(iq, number)
    if number % 2:
        out.close()


def take_and_vanish(source: Consumer[int]) -> NoReturn:
    """Take one, and end with the others claimed."""
    source.get()
    os._exit(0)


def test_64_producers_and_64_consumers(processes: Processes) -> None:
    iq = IterableQueue[int]()
    fork = context_of("fork")
    totals = IterableQueue[int]()
    for number in range(64):
        numbers = range(100 * number, 100 * number + 100)
        processes.start(
            fork.Process(target=actors.put_and_close, args=(iq.get_producer(), numbers))
        )
        processes.start(
            fork.Process(target=put_what_comes, args=(iq.get_consumer(), totals.get_producer()))
        )
    iq.close()
    totals.close()
    assert sorted(totals.get_consumer()) == list(range(6400))
    assert processes.join() == [0] * 128
    stats = iq.statistics()
    assert (stats.put, stats.finished, stats.state) == (6400, 6400, "done")


def put_what_comes(source: Consumer[int], out: Producer[int]) -> None:
    """From one queue to another."""
    with source, out:
        for number in source:
            out.put(number)


# Those who wait


IDLE_S = 3.0


def processor_time_of(endpoint: Any, name: str, *args: object) -> float:
    """How much of a processor's time a call takes that waits in vain, in seconds."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    with suppress(Empty, Full):
        assert getattr(endpoint, name)(*args, timeout=IDLE_S) is False
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_who_waits_leaves_the_processor_to_others(stage: Stage) -> None:
    """Less than a twentieth of it is used.

    That is a bound on what waiting costs others, not on how fast anything is: well above what was
    measured, it holds on a slow and busy machine as well.
    """
    iq = stage.queue(maxsize=1)
    out = iq.get_producer()
    out.put(1)
    empty = stage.queue()
    kept = empty.get_producer()
    calls = [
        stage.cast(iq.get_producer()).begin(processor_time_of, "put", 2),
        stage.cast(empty.get_consumer()).begin(processor_time_of, "get"),
        stage.cast(empty.get_worker()).begin(processor_time_of, "get"),
        stage.cast(iq).begin(processor_time_of, "join"),
    ]
    for call in calls:
        assert call.result() < IDLE_S / 20
    kept.close()


# Another program


def become_another_program(endpoint: object) -> NoReturn:
    """One that lives until it is killed."""
    os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(100)", "another"])


def has_become_another(pid: int) -> bool:
    return b"another" in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_process_that_becomes_another_program_counts_as_ended(
    context: Context, processes: Processes
) -> None:
    """Its endpoints end as those of one that is killed, though its pid lives on."""
    with Stage(context, processes) as stage:
        iq = stage.queue()
        writer, reader = stage.cast(iq.get_producer()), stage.cast(iq.get_consumer())
        out, source = iq.get_producer(), iq.get_consumer()
        iq.close()
        out.put_many(range(1000))
        out.close()
        writer.run(actors.put, 1000)
        got = reader.run(actors.get, 10)
        for puppet in (writer, reader):
            puppet.begin(become_another_program)
        for puppet in (writer, reader):
            wait_until(lambda: has_become_another(puppet.pid), "it runs the other program")  # noqa: B023
        began = time.monotonic()
        with pytest.raises(ProducerFailed, match=str(writer.pid)):
            got.extend(iter(source.get, None))
        assert time.monotonic() - began < on_this_machine(KNOWN_WITHIN_S + LATE_S)
        assert sorted(got) == list(range(1001))
        wait_until(lambda: iq.statistics().open_consumers == 1, "the reader's end is known")
        assert iq.statistics().lost == 1
        source.close()
        with pytest.raises(ProducerFailed):
            iq.join(PATIENCE_S)
        for puppet in (writer, reader):
            assert lives(puppet.pid)
            os.kill(puppet.pid, signal.SIGKILL)


def test_what_another_program_has_inherited_keeps_nothing_open(stage: Stage) -> None:
    """A child that became another program holds no copy of what was not handed out."""
    iq = stage.queue()
    source = iq.get_consumer()
    adrift = iq.get_producer()
    child = stage.cast(None)
    child.run(actors.nothing)
    iq.close()
    source.close()
    del adrift  # its copy here: the child may have one
    gc.collect()
    assert iq.statistics().open_producers == 1
    child.begin(become_another_program)
    wait_until(lambda: has_become_another(child.pid), "it runs the other program")
    wait_until(lambda: iq.statistics().open_producers == 0, "it holds nothing", KNOWN_WITHIN_S + 5)
    os.kill(child.pid, signal.SIGKILL)


# Forks


@pytest.mark.parametrize("maxsize", [0, 20])
def test_forks_while_threads_are_inside_the_library(maxsize: int, tmp_path: Path) -> None:
    """Each child uses clones of its own, and ends, whatever the threads did as it was forked."""
    iq = IterableQueue[int](maxsize)
    outs, sources = [iq.get_producer() for _ in range(2)], [iq.get_consumer() for _ in range(2)]
    over = threading.Event()
    counts = [0, 0]
    got: list[list[int]] = [[], []]

    def put_on(which: int) -> None:
        while not over.is_set():
            outs[which].put(10**6 * (1 + which) + counts[which])
            counts[which] += 1
            if iq.qsize() > 1000:
                time.sleep(0.001)  # lest they put millions

    def get_on(which: int) -> None:
        got[which].extend(sources[which])

    putting, getting = (
        [threading.Thread(target=target, args=(which,), daemon=True) for which in range(2)]
        for target in (put_on, get_on)
    )
    for thread in (*putting, *getting):
        thread.start()
    pids: list[int] = []
    for child in range(50):
        out, source = outs[child % 2].clone(), sources[child % 2].clone()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                for call in (partial(outs[0].put, -1), sources[0].get):
                    with pytest.raises(EndpointElsewhere):
                        call()
                work = partial(use_clones, out, source, tmp_path / str(child), 10 * child)
                thread = threading.Thread(target=work, daemon=True)
                thread.start()
                thread.join(PATIENCE_S)
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
        del out, source
    statuses: dict[int, int] = {}

    def reap() -> bool:
        for pid in set(pids) - statuses.keys():
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                statuses[pid] = status
        return len(statuses) == len(pids)

    try:
        wait_until(reap, "the end of all children", 40.0)
    finally:
        for pid in set(pids) - statuses.keys():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        over.set()
    for thread in putting:
        thread.join(PATIENCE_S)
    for out in outs:
        out.close()
    iq.close()
    for thread in getting:
        thread.join(PATIENCE_S)
    assert not any(thread.is_alive() for thread in (*putting, *getting))
    assert set(statuses.values()) == {0}
    everything = [n for some in got for n in some]
    for child in range(50):
        everything += map(int, (tmp_path / str(child)).read_text().split())
    expected = list(range(500))
    for which, count in enumerate(counts):
        expected += range(10**6 * (1 + which), 10**6 * (1 + which) + count)
    assert sorted(everything) == expected
    for source in sources:
        source.close()
    assert iq.join(PATIENCE_S)


def use_clones(out: Producer[int], source: Consumer[int], path: Path, first: int) -> None:
    """Take three items, and put ten; and have a queue of one's own."""
    assert IterableQueue[int]().empty()
    with source:
        taken = actors.get(source, 3)
    path.write_text(" ".join(map(str, taken)))
    actors.put_and_close(out, range(first, first + 10))


def test_an_endpoint_that_died_with_its_child_ends(processes: Processes) -> None:
    """Though what its maker uses now was made, and not taken, before the same fork."""
    iq = IterableQueue[int]()
    out, source = iq.get_producer(), iq.get_consumer()
    process = processes.start(context_of("fork").Process(target=vanish, args=([out],)))
    del out
    iq.close()
    process.join(PATIENCE_S)
    with pytest.raises(ProducerFailed, match="never taken"):
        source.get(timeout=KNOWN_WITHIN_S + 1)


def vanish(held: list[Producer[int]]) -> NoReturn:
    """End before anything that is held is used."""
    os._exit(0)


# A cleaner that removes the directory


def do_everything(iq: IterableQueue[Any]) -> list[tuple[str, Callable[[], object]]]:
    """Calls that must say so once the queue's directory is gone."""
    out, source, tree = iq.get_producer(), iq.get_consumer(), iq.get_worker()
    unused = iq.get_producer()
    out.put(1)
    assert source.get() == 1

    def put_on() -> None:
        while True:
            out.put(bytes(10_000), timeout=PATIENCE_S)
            source.get(timeout=PATIENCE_S)

    def open_many() -> object:
        return [iq.get_producer() for _ in range(200)]

    return [
        ("get", source.get),
        ("get_many", lambda: source.get_many(3)),
        ("worker.get", tree.get),
        ("put", put_on),
        ("first put", lambda: unused.put(1)),
        ("join", iq.join),
        ("open", open_many),
        ("fail", lambda: out.fail(ValueError("boom"))),
        ("cancel", lambda: iq.cancel(ValueError("boom"))),
        ("statistics", iq.statistics),
    ]


CALLS = (
    *("get", "get_many", "worker.get", "put", "first put"),
    *("open", "fail", "cancel", "join", "statistics"),
)


@pytest.mark.parametrize("kind", ["unbounded", "bounded", "redelivering"])
@pytest.mark.parametrize("name", CALLS)
def test_a_call_after_a_cleaner_has_come(kind: str, name: str) -> None:
    """No other call has found it out before."""
    iq = IterableQueue[Any](3 if kind == "bounded" else 0, redeliver=kind == "redelivering")
    calls = dict(do_everything(iq))
    if (kind, name) == ("redelivering", "first put"):
        name = "put"  # that one would need no file
    shutil.rmtree(directory_of(iq))
    began = time.monotonic()
    with pytest.raises(ChannelBroken, match="directory was removed"):
        calls[name]()
    assert time.monotonic() - began < on_this_machine(KNOWN_WITHIN_S)
    with pytest.raises(ChannelBroken):
        iq.get_producer()


def test_who_has_not_opened_a_file_is_told_that_a_cleaner_has_come(stage: Stage) -> None:
    iq = stage.queue()
    source = iq.get_consumer()
    stage.cast(iq.get_producer()).run(actors.put, 1)
    shutil.rmtree(directory_of(iq))
    with pytest.raises(ChannelBroken, match="directory was removed"):
        source.get()


@pytest.mark.parametrize("waits_in", ["join", "worker", "get of a bounded one"])
def test_who_waits_is_told_that_a_cleaner_has_come(stage: Stage, waits_in: str) -> None:
    iq = stage.queue(maxsize=3 if "bounded" in waits_in else 0)
    out = iq.get_producer()
    waiting: Call[Any]
    match waits_in:
        case "join":
            out.put(1)
            waiting = stage.cast(iq).begin(actors.join_queue)
            head = core_of(iq).ledger.head
            wait_until(lambda: head[WAIT_END], "join waits")
        case _:
            endpoint: Any = iq.get_worker() if waits_in == "worker" else iq.get_consumer()
            waiting = stage.cast(endpoint).begin(actors.get)
            wait_until(lambda: iq.statistics().blocked_consumers, "get waits")
    shutil.rmtree(directory_of(iq))
    removed = time.monotonic()
    assert isinstance(waiting.error(), ChannelBroken)
    assert waiting.outcome().at - removed < on_this_machine(KNOWN_WITHIN_S)
    with pytest.raises(ChannelBroken):
        iq.statistics()


# What somebody else has planted


NOBODY = 65534


@pytest.mark.skipif(os.geteuid() != 0, reason="only a superuser can give files away")
@pytest.mark.parametrize("what", ["directory", "link"])
def test_what_belongs_to_another_user_is_not_opened(stage: Stage, what: str) -> None:
    """In the place of a queue of one's own that has gone."""
    puppet = stage.cast(None)
    iq = IterableQueue[int]()
    data = pickle.dumps(iq.get_producer())
    directory = directory_of(iq)
    real = directory.with_name(f"{directory.name}-real")
    if what == "link":
        directory.rename(real)
        directory.symlink_to(real)
        os.chown(directory, NOBODY, NOBODY, follow_symlinks=False)
    else:
        os.chown(directory, NOBODY, NOBODY)
    try:
        puppet.run(actors.open_pickle, data)
        with pytest.raises(ChannelBroken, match="belongs to another user"):
            puppet.run(actors.on_opened, actors.put, 1)
    finally:
        if what == "link":
            directory.unlink()
            real.rename(directory)
        else:
            os.chown(directory, os.geteuid(), os.getegid())


@pytest.mark.parametrize("name", ["cells", "mutex"])
def test_a_link_in_the_place_of_a_file_is_not_followed(stage: Stage, name: str) -> None:
    puppet = stage.cast(None)
    iq = IterableQueue[int]()
    data = pickle.dumps(iq.get_producer())
    file = directory_of(iq) / name
    if not file.exists():
        pytest.skip("there are no robust mutexes here")
    real = file.rename(file.with_name("elsewhere"))
    file.symlink_to(real)
    puppet.run(actors.open_pickle, data)
    with pytest.raises(ChannelBroken, match="can't be reached"):
        puppet.run(actors.on_opened, actors.put, 1)
    real.replace(file)

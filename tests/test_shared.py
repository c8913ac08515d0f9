"""One process's part in a queue: its lock, its forks, its pickles, and seeing who has died.

Most tests have several parts in one process. Each has a slot, locks and a view of its own, and is
to the others what another process would be: one that "dies" closes the lock that shows its life.
Who holds the queue's lock is a thread of its own, since a mutex is its thread's, which may take it
again; a thread that ends inside is a dead holder. What needs a process's real end has a process.
"""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import pickle
import signal
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty
from types import SimpleNamespace
from typing import Any

import pytest

from iterable_queue import (
    ChannelBroken,
    Consumer,
    Done,
    EndpointElsewhere,
    ItemsLost,
    IterableQueue,
    Producer,
    ProducerFailed,
    _directory,
    _mutex,
    _shared,
)
from iterable_queue import _cells as cells_
from iterable_queue._cells import (
    BROKEN,
    CONSUMER,
    CONSUMERS,
    DROPPED_COPY,
    EVER,
    FLAGS,
    FORKED,
    HANDLE,
    HOLDER,
    IN_HAND,
    KIND,
    LINEAGE,
    LOST,
    MAX_DELIVERIES,
    NUMBER,
    OWNER,
    PROCESS,
    PRODUCER,
    PRODUCERS,
    QUEUE,
    REDELIVERED,
    ROAD,
    SENT,
    SLOT_SIZE,
    STARTED,
    STATE,
    USED,
    WORKER,
)
from iterable_queue._channel import Hand
from iterable_queue._core import ASKED_S, Waiting
from iterable_queue._directory import Address
from iterable_queue._ledger import Ledger
from iterable_queue._liveness import is_held, try_hold
from iterable_queue._runtime import SLICE_S, is_lock_busy
from iterable_queue._shared import REMOVED, SharedCore, attach, make_shared_core
from iterable_queue._shared_runtime import SharedRuntime
from tests.conftest import FORKS, Processes, wait_until

FORK = multiprocessing.get_context("fork")
SPAWN = multiprocessing.get_context("spawn")

needed = pytest.mark.skipif(not _mutex.is_supported(), reason="there are no robust mutexes here")


@pytest.fixture
def semaphore(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock of queues made from now on is a semaphore, as where there are no robust mutexes."""
    monkeypatch.setattr(_mutex, "is_supported", lambda: False)


@pytest.fixture(params=[pytest.param("mutex", marks=needed), "semaphore"])
def either_lock(request: pytest.FixtureRequest) -> str:
    """Each kind of lock in turn."""
    kind: str = request.param
    if kind == "semaphore":
        request.getfixturevalue("semaphore")
    return kind


with_either_lock = pytest.mark.usefixtures("either_lock")
with_semaphore = pytest.mark.usefixtures("semaphore")


class Parts:
    """A queue with its maker's part, and as many others as are asked for."""

    def __init__(self, *, redeliver: bool = False) -> None:
        deliveries = MAX_DELIVERIES if redeliver else 0
        self.maker = make_shared_core(None, 0, cancel=False, deliveries=deliveries)
        self.maker.transact(self.maker.ledger.open, QUEUE, "main.py:1")
        self.address: Address = self.maker.address
        self.others: list[SharedCore] = []
        self.kept: list[SharedRuntime] = []

    def join(self) -> SharedCore:
        part = SharedCore(self.address)
        part.register()
        self.others.append(part)
        return part

    def die(self, part: SharedCore) -> None:
        """As the kernel does for a process that is killed: its locks go, nothing else happens."""
        for fd in (part._life, *part._lineages.values(), *part._inherited):
            if fd >= 0:
                os.close(fd)
        part._life = -1
        part._lineages.clear()
        part._inherited.clear()
        part._left = True

    def die_inside(self, part: SharedCore, name: int | None = None) -> None:
        """A thread ends inside the lock, with the part's name on it, or with that one.

        Of a mutex, that is its holder's death. The part's own is another matter.
        """
        runtime = SharedRuntime(self.address)  # of its own: a semaphore's object counts its turns
        self.kept.append(runtime)  # the kernel finds the mutex where it is mapped

        def die() -> None:
            runtime.lock.__enter__()
            runtime.head[HOLDER] = part.ledger.me if name is None else name

        thread = threading.Thread(target=die)
        thread.start()
        thread.join(20)

    def end(self) -> None:
        for part in (*self.others, self.maker):
            part.leave("was left")
            part.ledger.me = 0  # also of those that "died": a later fork must not ask them

    def open(self, part: SharedCore, kind: int, *, used: bool = True) -> tuple[int, int]:
        slot, number = part.transact(part.ledger.open, kind, "user.py:7")
        if used:
            part.ledger.take_over(slot, number, None)
            part.ledger.cells[slot * SLOT_SIZE + FLAGS] |= USED
        return slot, number

    def cell(self, slot: int, field: int) -> int:
        return self.maker.ledger.cells[slot * SLOT_SIZE + field]

    def look(self) -> None:
        """What the maker does now and then while it waits."""
        self.maker._looked_at = 0.0
        self.maker.look()

    def failures(self) -> list[str]:
        return [str(error) for error in self.maker.runtime.errors.failures()]

    def files(self) -> set[str]:
        return set(os.listdir(self.address.path))


@pytest.fixture
def parts() -> Iterator[Parts]:
    parts = Parts()
    yield parts
    parts.end()
    assert not os.path.exists(parts.address.path)


# Taking part


def test_each_part_has_a_slot_and_a_lock(parts: Parts) -> None:
    one, other = parts.join(), parts.join()
    assert parts.maker.ledger.me == 1
    assert {one.ledger.me, other.ledger.me} == {3, 4}
    assert {"p1", "p3", "p4"} <= parts.files()
    assert all(parts.maker.is_alive(slot) for slot in (1, 3, 4))
    assert parts.maker.pid_of(3) == os.getpid()
    one.register()
    assert {one.ledger.me, other.ledger.me} == {3, 4}


def test_it_leaves_as_it_came(parts: Parts) -> None:
    other = parts.join()
    life = other._life
    other.leave("was left open")
    assert other.ledger.me == 0, "no slot"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(life)
    assert parts.cell(3, KIND) == cells_.FREE
    assert not parts.maker.is_alive(3)
    assert os.path.exists(parts.address.path)
    other.leave("again")
    with pytest.raises(ChannelBroken, match=f"process {os.getpid()} is ending and has left"):
        other.check_here()


def test_what_it_leaves_open_is_told(parts: Parts) -> None:
    other = parts.join()
    out, source = parts.open(other, PRODUCER), parts.open(other, CONSUMER)
    unused, untaken = parts.open(other, PRODUCER, used=False), parts.open(other, PRODUCER)
    untaken_slot = untaken[0] * SLOT_SIZE
    for cell in (OWNER, FLAGS):
        other.ledger.cells[untaken_slot + cell] = 0
    sent = parts.open(other, PRODUCER, used=False)
    other.ledger.cells[sent[0] * SLOT_SIZE + FLAGS] = SENT
    error = ValueError("why")
    other.leave("was left open when its process ended by ValueError", error)
    ledger = parts.maker.ledger
    assert [ledger.is_open(*it) for it in (out, source, unused, untaken, sent)] == [
        False,
        False,
        False,
        False,
        True,
    ]
    (text,) = parts.failures()
    assert text == (
        f"producer 1, made at user.py:7 (pid {os.getpid()}), was left open when its process ended "
        "by ValueError"
    )
    (failure,) = parts.maker.runtime.errors.failures()
    assert isinstance(failure.__cause__, ValueError)
    parts.maker.transact(ledger.close, *sent)


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("cause", [None, ValueError("x")])
def test_the_maker_leaves(parts: Parts, alone: bool, cause: ValueError | None) -> None:
    """The only handle goes in order: the queue is closed. Otherwise its end is a failure."""
    other = parts.join()
    if not alone:
        parts.maker.ledger.head[HANDLE] = 0
    parts.maker.leave("was left open", cause)
    assert other.ledger.head[STATE] & cells_.CLOSED
    failed = not alone or cause is not None
    assert other.ledger.head[cells_.FAILED] == failed
    if failed:
        (error,) = other.runtime.errors.failures()
        assert str(error).startswith("the queue made at main.py:1 (pid ")


def test_the_last_one_removes_everything(parts: Parts) -> None:
    other = parts.join()
    parts.maker.leave("")
    assert os.path.exists(parts.address.path)
    head = other.ledger.head
    assert list(head[REMOVED : REMOVED + 1]) == [0]
    other.leave("")
    assert list(head[REMOVED : REMOVED + 1]) == [1]
    assert not os.path.exists(parts.address.path)


def test_it_can_not_be_joined_any_more(parts: Parts) -> None:
    late = SharedCore(parts.address)
    parts.maker.leave("")
    with pytest.raises(ChannelBroken, match="every process that took part in it has ended"):
        late.register()
    late._left = True


@with_either_lock
def test_leaving_without_the_lock(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """After some slices it just goes; the others find its endpoints as those of a dead one."""
    other = parts.join()
    out = parts.open(other, PRODUCER)
    with held(parts.maker):
        monkeypatch.setattr(_shared, "LEAVE_SLICES", 1)
        other.leave("")
    assert parts.maker.ledger.is_open(*out)
    assert not parts.maker.is_alive(3)
    parts.look()
    assert not parts.maker.ledger.is_open(*out)
    assert len(parts.failures()) == 1


@with_either_lock
def test_leaving_inside_a_transition(parts: Parts) -> None:
    """As where `__del__` of the last reference runs inside one: the same as without the lock."""
    other = parts.join()
    other.transact(other.leave, "")
    assert not parts.maker.is_alive(3)
    parts.look()
    assert parts.cell(3, KIND) == cells_.FREE


@with_either_lock
def test_leaving_a_broken_queue(parts: Parts) -> None:
    other = parts.join()
    parts.maker.ledger.mark_broken(parts.maker.runtime.errors.pack(ChannelBroken("broken")))
    with held(parts.maker):
        other.leave("")
        assert os.path.exists(parts.address.path), "somebody else takes part"
        parts.maker.leave("")
    assert not os.path.exists(parts.address.path)


def test_a_queue_that_is_gone_from_the_disk(parts: Parts) -> None:
    _directory.remove(parts.address)
    assert not parts.maker._others()


def test_a_part_that_nothing_refers_to_leaves(parts: Parts) -> None:
    other = SharedCore(parts.address)
    other.register()
    assert parts.maker.is_alive(3)
    del other
    gc.collect()
    assert not parts.maker.is_alive(3)
    assert parts.cell(3, KIND) == cells_.FREE


def test_a_part_whose_making_was_interrupted() -> None:
    SharedCore.__new__(SharedCore).__del__()


def test_making_one_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_directory, "place_for_new", lambda: str(tmp_path))

    def refuse(self: SharedCore) -> None:
        raise OSError(errno.EMFILE, "no descriptors")

    monkeypatch.setattr(SharedCore, "register", refuse)
    for _ in range(2):
        with pytest.raises(OSError, match="no descriptors"):
            make_shared_core(None, 0, cancel=False, deliveries=0)
        gc.collect()
    assert list(tmp_path.iterdir()) == []


# The lock, and its dead holders


@contextmanager
def held(part: SharedCore, name: int | None = None) -> Generator[None]:
    """Another thread is inside the part's lock, with the part's name on it, or with that one."""
    inside, out = threading.Event(), threading.Event()

    def stay() -> None:
        head = part.ledger.head
        with part.runtime.lock:
            head[HOLDER] = part.ledger.me if name is None else name
            inside.set()
            out.wait(20)
            head[HOLDER] = 0

    thread = threading.Thread(target=stay)
    thread.start()
    assert inside.wait(20)
    try:
        yield
    finally:
        out.set()
        thread.join(20)


def is_free(part: SharedCore) -> bool:
    """Whether another thread gets the lock."""
    found = list[bool]()

    def look() -> None:
        try:
            with part.runtime.lock_within(0.01):
                found.append(True)
        except KeyError as error:
            if not is_lock_busy(error):
                raise
            found.append(False)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join(20)
    (free,) = found
    return free


@with_either_lock
def test_the_lock_of_a_dead_holder_is_taken_over(parts: Parts) -> None:
    other = parts.join()
    out = parts.open(other, PRODUCER)
    parts.die_inside(other)
    other.ledger.head[PRODUCERS] = 77  # half done
    parts.die(other)
    slot, _ = parts.maker.transact(parts.maker.ledger.open, CONSUMER, "x")
    assert parts.maker.ledger.head[HOLDER] == 0
    assert parts.maker.ledger.head[PRODUCERS] == 1
    parts.look()
    assert not parts.maker.ledger.is_open(*out)
    assert parts.maker.ledger.head[PRODUCERS] == 0
    assert parts.cell(slot, KIND) == CONSUMER
    assert is_free(parts.maker)


@with_either_lock
def test_a_dead_holder_without_a_slot(parts: Parts, processes: Processes) -> None:
    process = processes.start(SPAWN.Process(target=int))
    processes.join()
    parts.die_inside(parts.join(), -(process.pid or 0))
    parts.maker.ledger.head[PRODUCERS] = 77
    assert parts.maker.transact(int, "7") == 7
    assert parts.maker.ledger.head[PRODUCERS] == 0
    assert is_free(parts.maker)


@with_either_lock
def test_one_of_many_takes_it_over(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever finds the holder dead tries; one mends, the others go on waiting."""
    others = [parts.join() for _ in range(3)]
    victim = parts.join()
    parts.die_inside(victim)
    parts.die(victim)
    results, menders = list[int](), list[int]()
    mend = Ledger.mend

    def mending(ledger: Ledger) -> None:
        menders.append(ledger.me)
        mend(ledger)

    def work(part: SharedCore, n: int) -> None:
        results.append(part.transact(int, str(n)))

    monkeypatch.setattr(Ledger, "mend", mending)
    threads = [threading.Thread(target=work, args=(part, n)) for n, part in enumerate(others)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(results) == [0, 1, 2]
    assert len(menders) == 1


def test_a_living_holder_is_waited_for(either_lock: str, parts: Parts) -> None:
    assert parts.maker._shared_runtime.is_robust is (either_lock == "mutex")
    other = parts.join()
    with held(other):
        for _ in range(3):
            assert not parts.maker.try_transact(0.01, lambda: None)
        assert parts.maker.ledger.head[HOLDER] == other.ledger.me
    assert parts.maker.try_transact(1, lambda: None)


@with_either_lock
def test_nobody_waits_for_the_lock_of_a_broken_queue(parts: Parts) -> None:
    with held(parts.join()):
        parts.maker.ledger.mark_broken(parts.maker.runtime.errors.pack(ChannelBroken("broken")))
        with pytest.raises(ChannelBroken, match="broken"):
            parts.maker.transact(int, "7")
        assert not is_free(parts.maker), "it was not waited for"


@with_either_lock
def test_an_interrupted_mending_is_done_by_the_next(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = parts.join()
    parts.die_inside(other)
    parts.die(other)
    maker = parts.maker
    head = maker.ledger.head
    head[PRODUCERS] = 77

    def mend(ledger: Ledger) -> None:
        assert head[HOLDER] == ledger.me == maker.ledger.me
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "mend", mend)
        with pytest.raises(KeyboardInterrupt):
            maker.transact(int, "7")
    assert head[HOLDER] == other.ledger.me, "it is still to be done"
    # Of a mutex, the name alone says so; a semaphore is the dead one's again.
    assert is_free(maker) is maker._shared_runtime.is_robust
    assert maker.transact(int, "7") == 7
    assert head[PRODUCERS] == 0
    assert is_free(maker)


# Where the kernel lets the lock go


def suspect(parts: Parts) -> None:
    """As after having waited for it that long."""
    parts.maker._nameless_at = time.monotonic()
    parts.maker._nameless_since = parts.maker._nameless_at - _shared.DEATHLESS_S - 0.1
    parts.maker.try_transact(0.001, lambda: None)


@needed
@pytest.mark.parametrize("named", [True, False])
def test_nobody_asks_whether_the_holder_lives(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    """Nor is anything mended, or broken, however long it has the lock, beside whatever dead."""
    other = parts.join()
    parts.die(parts.join())
    asked = list[int]()

    def ask(part: SharedCore, process: int) -> bool:
        asked.append(process)
        return False

    def never(part: SharedCore, *args: int) -> None:
        pytest.fail("mended")

    with held(other, None if named else 0), monkeypatch.context() as patch:
        patch.setattr(SharedCore, "is_alive", ask)
        patch.setattr(SharedCore, "_mend", never)
        patch.setattr(SharedCore, "_mend_for_nobody", never)
        suspect(parts)
        for _ in range(3):
            assert not parts.maker.try_transact(0.001, lambda: None)
        assert parts.maker.ledger.head[HOLDER] == (other.ledger.me if named else 0)
    assert asked == []
    assert not parts.maker.ledger.head[STATE] & BROKEN
    assert parts.maker.transact(int, "7") == 7
    assert "mend" not in parts.files()


@needed
def test_one_that_died_without_a_name_left_all_whole(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although another process is stopped: it can't be that one's."""
    stopped, other = parts.join(), parts.join()
    parts.maker.ledger.cells[stopped.ledger.me * SLOT_SIZE + NUMBER] = 4711
    monkeypatch.setattr(_shared, "may_be_stopped", is_4711)
    before = list(parts.maker.ledger.head)
    for _ in range(3):
        parts.die_inside(other, 0)
        assert parts.maker.try_transact(SLICE_S, lambda: None), "by the very next call"
        assert list(parts.maker.ledger.head) == before
    parts.die(other)
    suspect(parts)
    assert not parts.maker.ledger.head[STATE] & BROKEN


# Where the lock is a semaphore


def is_4711(pid: int) -> bool:
    return pid == 4711


@with_semaphore
def test_who_mends_already_is_left_to_it(parts: Parts) -> None:
    other = parts.join()
    parts.die_inside(other)
    parts.die(other)
    fd = try_hold(f"{parts.address.path}/mend")
    assert fd is not None
    assert not parts.maker.try_transact(0.01, lambda: None)
    assert parts.maker.ledger.head[HOLDER] == other.ledger.me
    os.close(fd)
    assert parts.maker.transact(int, "7") == 7


@with_semaphore
def test_what_was_mended_meanwhile_is_not_mended_again(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the holder and the taking over, somebody else did it."""
    mended = list[int]()
    other = parts.join()

    def mend_after(ledger: Ledger, holder: int) -> None:
        mended.append(holder)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "mend_after", mend_after)
        with held(other):
            parts.maker._mend(99)  # the holder is another one by now
        other.ledger.head[HOLDER] = other.ledger.me
        parts.maker._mend(other.ledger.me)  # the lock is free by now
        other.ledger.head[HOLDER] = 0
    assert mended == []


def nameless(parts: Parts) -> SharedCore:
    """The lock is taken, and nobody's name is on it."""
    other = parts.join()
    parts.die_inside(other, 0)
    return other


@with_semaphore
def test_a_lock_with_nobodys_name_on_it_is_mended_after_some_time(parts: Parts) -> None:
    other = nameless(parts)
    for _ in range(3):
        assert not parts.maker.try_transact(0.001, lambda: None)
    assert parts.maker._nameless_at > 0
    parts.die(other)
    began = time.monotonic()
    assert parts.maker.transact(int, "7") == 7
    assert time.monotonic() - began < 10
    assert parts.maker._nameless_at == 0.0


@with_semaphore
def test_one_that_is_just_busy_is_no_longer_suspected(parts: Parts) -> None:
    """The lock is had meanwhile, or somebody writes a name."""
    other = nameless(parts)
    parts.maker.try_transact(0.001, lambda: None)
    assert parts.maker._nameless_at > 0
    other.ledger.head[HOLDER] = other.ledger.me
    parts.maker.try_transact(0.001, lambda: None)
    assert parts.maker._nameless_at == 0.0
    other.ledger.head[HOLDER] = 0
    other._shared_runtime.unlock()
    assert not parts.maker._is_stuck()
    parts.die_inside(other)
    assert not parts.maker._is_stuck(), "it has a name"
    other.ledger.head[HOLDER] = 0
    assert parts.maker._is_stuck()
    other._shared_runtime.unlock()


@with_semaphore
def test_one_who_may_be_stopped_is_waited_for(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a dead process about, it must be the stopped one that has the lock."""
    other = nameless(parts)
    parts.maker.ledger.cells[other.ledger.me * SLOT_SIZE + NUMBER] = 4711
    monkeypatch.setattr(_shared, "may_be_stopped", is_4711)
    suspect(parts)
    assert not parts.maker.ledger.head[STATE] & BROKEN
    assert parts.maker._shared_runtime.is_locked()
    other._shared_runtime.unlock()


@with_semaphore
def test_a_dead_and_a_stopped_one_can_not_be_told_apart(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts.die(parts.join())
    other = nameless(parts)
    parts.maker.ledger.cells[other.ledger.me * SLOT_SIZE + NUMBER] = 4711
    monkeypatch.setattr(_shared, "may_be_stopped", is_4711)
    with pytest.raises(ChannelBroken, match="that can't be told apart"):
        suspect(parts)
    assert parts.maker.ledger.head[STATE] & BROKEN
    with pytest.raises(ChannelBroken, match="that can't be told apart"):
        parts.maker.transact(int, "7")
    other._shared_runtime.unlock()


# Processes inside the lock


def test_other_key_errors_are_no_busy_lock(parts: Parts) -> None:
    with pytest.raises(KeyError, match="mine"):
        parts.maker.lock_was_busy(KeyError("mine"))


def stay_inside(address: Address, inside: Path, signum: int, named: bool) -> None:
    """Be stopped or killed inside the lock, with one's name on it or not."""
    core = SharedCore(address)
    core.register()

    def stay() -> None:
        inside.touch()
        os.kill(os.getpid(), signum)

    if named:
        core.transact(stay)
    else:
        with core.runtime.lock:
            stay()


@FORKS
@pytest.mark.parametrize(
    ("either_lock", "named"),
    [
        pytest.param("mutex", True, marks=needed),
        pytest.param("mutex", False, marks=needed),
        ("semaphore", True),
    ],
    indirect=["either_lock"],
)
def test_a_process_is_killed_inside_the_lock(
    either_lock: str, parts: Parts, processes: Processes, tmp_path: Path, named: bool
) -> None:
    parts.maker.ledger.head[PRODUCERS] = 77 * named  # half done
    process = processes.start(
        FORK.Process(
            target=stay_inside, args=(parts.address, tmp_path / "inside", signal.SIGKILL, named)
        )
    )
    processes.join()
    assert process.exitcode == -signal.SIGKILL
    assert bool(parts.maker.ledger.head[HOLDER]) is named
    if either_lock == "mutex":
        assert parts.maker.try_transact(SLICE_S, lambda: None), "by the very next call"
    assert parts.maker.transact(int, "7") == 7
    assert parts.maker.ledger.head[HOLDER] == 0
    assert parts.maker.ledger.head[PRODUCERS] == 0
    parts.look()
    assert [view.slot for view in parts.maker.ledger.views(PROCESS)] == [1]


def stop_outside(address: Address) -> None:
    """Take part, and be stopped, without the lock."""
    core = SharedCore(address)
    core.register()
    os.kill(os.getpid(), signal.SIGSTOP)


@FORKS
@needed
def test_one_killed_without_a_name_beside_a_stopped_one_breaks_nothing(
    parts: Parts, processes: Processes, tmp_path: Path
) -> None:
    stopped = processes.start(FORK.Process(target=stop_outside, args=(parts.address,)))
    pid = stopped.pid or 0
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
    lost = processes.start(
        FORK.Process(
            target=stay_inside, args=(parts.address, tmp_path / "inside", signal.SIGKILL, False)
        )
    )
    wait_until(lambda: lost.exitcode is not None, "the killed one's end")
    suspect(parts)
    for _ in range(3):
        assert parts.maker.try_transact(SLICE_S, lambda: None)
    assert not parts.maker.ledger.head[STATE] & BROKEN
    os.kill(pid, signal.SIGCONT)
    assert processes.join() == [0, -signal.SIGKILL]


def die_closing(out: Any) -> None:
    """Be killed behind the first store of a close."""
    ledger = out._core.ledger

    def die() -> None:
        ledger.head[PRODUCERS] -= 1
        os.kill(os.getpid(), signal.SIGKILL)

    out._core.transact(die)


@FORKS
@needed
def test_join_does_not_go_by_what_a_dead_one_left_half_done(processes: Processes) -> None:
    queue = IterableQueue[int]()
    process = FORK.Process(target=die_closing, args=(queue.get_producer(),))
    queue.close()
    processes.start(process)
    assert processes.join() == [-signal.SIGKILL]
    assert not queue.join(0)
    with pytest.raises(ProducerFailed):
        queue.join(20)


@FORKS
def test_time_outs_hold_while_the_holder_is_stopped(processes: Processes, tmp_path: Path) -> None:
    queue = IterableQueue[int]()
    out, source = queue.get_producer(), queue.get_consumer()
    core = queue._core
    assert isinstance(core, SharedCore)
    out.put(1)
    assert source.get() == 1
    process = processes.start(
        FORK.Process(
            target=stay_inside, args=(core.address, tmp_path / "inside", signal.SIGSTOP, True)
        )
    )
    pid = process.pid or 0
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
    calls: tuple[Callable[[], object], ...] = (
        lambda: source.get(timeout=0.3),
        source.get_nowait,
        lambda: source.get(timeout=0),
    )
    for call in calls:
        began = time.monotonic()
        with pytest.raises(Empty):
            call()
        assert time.monotonic() - began < 5
    os.kill(pid, signal.SIGCONT)
    out.put(2)
    assert source.get(timeout=20) == 2
    assert processes.join() == [0]


# Seeing who has died


def test_a_dead_producer_has_failed(parts: Parts) -> None:
    other = parts.join()
    out, idle = parts.open(other, PRODUCER), parts.open(other, CONSUMER)
    made = parts.open(other, PRODUCER, used=False)
    parts.die(other)
    parts.look()
    ledger = parts.maker.ledger
    assert [ledger.is_open(*it) for it in (out, idle, made)] == [False] * 3
    first, second = parts.failures()
    assert first.startswith(f"producer 1, made at user.py:7 (pid {os.getpid()}), ")
    assert first.endswith("without close()")
    assert "was never taken: every process that could have held it has ended" in second
    assert parts.cell(3, KIND) == cells_.FREE
    assert "p3" not in parts.files()
    assert ledger.head[LOST] == 0


@pytest.mark.parametrize(("kind", "fails"), [(CONSUMER, False), (WORKER, True)])
def test_what_a_dead_one_had_in_hand_is_lost(parts: Parts, kind: int, fails: bool) -> None:
    other = parts.join()
    out, (slot, number) = parts.open(parts.maker, PRODUCER), parts.open(other, kind)
    for n in range(3):
        parts.maker.ledger.put(*out, pickle.dumps(n), False)
    hand = Hand(other.ledger.channel, False)
    other.ledger.hands[slot] = {0: hand}
    assert other.ledger.take(slot, hand, 2)
    parts.die(other)
    parts.look()
    assert parts.maker.ledger.head[LOST] == 2
    assert not parts.maker.ledger.is_open(slot, number)
    assert len(parts.failures()) == fails
    assert parts.maker.ledger.channel.size() == 1


@pytest.mark.parametrize("used", [True, False])
def test_a_dead_worker_that_never_asked_has_failed(parts: Parts, used: bool) -> None:
    other = parts.join()
    parts.open(other, WORKER, used=used)
    parts.die(other)
    parts.look()
    assert len(parts.failures()) == 1
    assert parts.maker.ledger.head[cells_.BUSY] == 0


@pytest.mark.parametrize("used", [True, False])
def test_with_redelivery_it_has_not(redelivering: Parts, used: bool) -> None:
    other = redelivering.join()
    slot, number = redelivering.open(other, WORKER, used=used)
    redelivering.die(other)
    redelivering.look()
    assert not redelivering.maker.ledger.is_open(slot, number)
    assert redelivering.failures() == []
    assert redelivering.maker.ledger.head[cells_.BUSY] == 0


def test_a_dead_worker_between_items_has_not(parts: Parts) -> None:
    other = parts.join()
    slot, _ = parts.open(other, WORKER)
    hand = Hand(other.ledger.channel, False)
    other.ledger.hands[slot] = {0: hand}
    other.ledger.take(slot, hand, 1)
    parts.die(other)
    parts.look()
    assert parts.failures() == []


def test_a_child_that_never_ran(parts: Parts) -> None:
    heir, fd = parts.maker.transact(parts.maker._make_heir)
    slot, number = parts.open(parts.maker, PRODUCER, used=False)
    parts.maker.transact(parts.maker.ledger.assign, slot, heir)
    parts.look()
    assert parts.maker.ledger.is_open(slot, number), "it may still come to life"
    os.close(fd)
    parts.look()
    (text,) = parts.failures()
    assert text.startswith(
        f"producer {number}, made at user.py:7, was given to a process that ended before it began "
        "to run"
    ), "it had no pid yet"
    assert "`if __name__ == '__main__':`" in text, "what is forgotten most often"


def test_the_dead_makers_queue_has_failed(parts: Parts) -> None:
    other = parts.join()
    parts.die(parts.maker)
    other._looked_at = 0.0
    other.look()
    assert other.ledger.state_name() == "failed"
    (error,) = other.runtime.errors.failures()
    assert str(error).startswith("the queue made at main.py:1")
    assert [view.slot for view in other.ledger.views(PROCESS)] == [other.ledger.me]
    parts.maker._left = True


def test_a_slot_that_was_given_away_meanwhile_is_left_alone(parts: Parts) -> None:
    """Found dead without the lock, buried under it: looked at again before."""
    other = parts.join()
    parts.maker.transact(parts.maker._look, [other.ledger.me, 2, 99 % 3])
    assert parts.maker.is_alive(other.ledger.me)
    assert parts.cell(other.ledger.me, KIND) == PROCESS


def test_looks_are_rare(parts: Parts) -> None:
    parts.maker._looked_at = time.monotonic()
    other = parts.join()
    parts.die(other)
    parts.maker.look()
    parts.maker.look_now_and_then()
    assert parts.cell(3, KIND) == PROCESS
    parts.maker._looked_at -= _shared.LOOK_S
    parts.maker.look_now_and_then()
    assert parts.cell(3, KIND) == cells_.FREE


def test_who_asks_how_the_queue_is_has_the_dead_found_first(parts: Parts) -> None:
    """Also where another has the lock just then, for longer than a sleeper's look would wait."""
    other = parts.join()
    parts.die(other)
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with parts.maker.runtime.lock:
            held.set()
            release.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(20)
    threading.Timer(0.1, release.set).start()
    parts.maker.look(ASKED_S)
    holder.join(20)
    assert parts.cell(3, KIND) == cells_.FREE


def test_a_look_that_comes_too_soon_settles_at_least(parts: Parts) -> None:
    parts.maker._looked_at = time.monotonic()
    parts.open(parts.maker, CONSUMER)
    parts.maker.transact(parts.maker.close_queue)
    parts.maker.runtime.items.announce()
    parts.maker.look()
    assert parts.maker.runtime.head[cells_.WAIT_ITEM] == 0


# Untaken endpoints


def untaken(parts: Parts, part: SharedCore, **fields: int) -> tuple[int, int]:
    slot, number = parts.open(part, PRODUCER, used=False)
    for name, value in fields.items():
        part.ledger.cells[slot * SLOT_SIZE + getattr(cells_, name)] = value
    return slot, number


def test_one_stays_while_somebody_may_hold_it(parts: Parts) -> None:
    other = parts.join()
    number = other.transact(other._add_lineage)
    held = [
        untaken(parts, parts.maker),
        untaken(parts, parts.maker, FLAGS=SENT | DROPPED_COPY, ROAD=other.ledger.me),
        untaken(parts, parts.maker, FLAGS=FORKED | DROPPED_COPY, LINEAGE=number),
    ]
    gone = [
        untaken(parts, parts.maker, FLAGS=DROPPED_COPY),
        untaken(parts, parts.maker, FLAGS=SENT, MAKER=0),
        untaken(parts, parts.maker, FLAGS=FORKED, MAKER=0, LINEAGE=99),
        untaken(parts, parts.maker, FLAGS=DROPPED_COPY, ROAD=other.ledger.me),
    ]
    parts.look()
    ledger = parts.maker.ledger
    assert [ledger.is_open(*it) for it in held] == [True] * 3
    assert [ledger.is_open(*it) for it in gone] == [False] * 4
    assert len(parts.failures()) == 4
    parts.die(other)
    parts.look()
    assert [ledger.is_open(*it) for it in held] == [True, False, False]
    parts.maker.transact(ledger.close, *held[0])


def test_dropping_what_others_may_hold_sets_it_adrift(parts: Parts) -> None:
    slot, number = untaken(parts, parts.maker, FLAGS=SENT, ROAD=1)
    parts.maker.drop(slot, number)
    assert parts.cell(slot, FLAGS) & DROPPED_COPY
    assert parts.cell(slot, OWNER) == 0
    parts.look()
    assert parts.maker.ledger.is_open(slot, number), "its sender lives"
    parts.maker.transact(parts.maker.ledger.close, slot, number)


# Redelivery


@pytest.fixture
def redelivering() -> Iterator[Parts]:
    parts = Parts(redeliver=True)
    yield parts
    parts.end()
    assert not os.path.exists(parts.address.path)


def in_hand(parts: Parts, payloads: list[bytes], limit: int = 9) -> tuple[SharedCore, int]:
    """Another part whose consumer holds what the maker put. Returns it, and the slot."""
    other = parts.join()
    out = parts.open(parts.maker, PRODUCER)
    slot, _ = parts.open(other, CONSUMER)
    for payload in payloads:
        parts.maker.ledger.put(*out, payload, False)
    hand = Hand(other.ledger.channel, False)
    other.ledger.hands[slot] = {0: hand}
    assert other.ledger.take(slot, hand, limit)
    hand.pending.clear()
    return other, slot


def drain(parts: Parts) -> list[tuple[bytes, int]]:
    found = list[tuple[bytes, int]]()
    channel, head = parts.maker.ledger.channel, parts.maker.ledger.head
    while channel.size():
        found.append(channel.peek())
        head[cells_.TAKEN] += 1
    return found


@pytest.mark.parametrize("has_put", [False, True])
def test_a_dead_worker_that_never_asked_has_failed_if_it_put(
    redelivering: Parts, has_put: bool
) -> None:
    """Its work is done by others, but nobody knows what else it was about to put."""
    other = redelivering.join()
    slot, number = redelivering.open(other, WORKER)
    if has_put:
        other.ledger.put(slot, number, b"root", True)
    redelivering.die(other)
    redelivering.look()
    assert len(redelivering.failures()) == has_put
    assert redelivering.maker.ledger.head[cells_.BUSY] == 0


def test_what_is_in_hand_is_written_to_a_file(redelivering: Parts) -> None:
    other, slot = in_hand(redelivering, [b"a", b"b"])
    with open(f"{redelivering.address.path}/h{slot}", "rb") as file:
        assert pickle.load(file) == [(b"a", 1), (b"b", 1)]
    assert not any(name.endswith(".new") for name in redelivering.files())
    second = Hand(other.ledger.channel, False)
    other.ledger.hands[slot][1] = second
    out = redelivering.open(redelivering.maker, PRODUCER)
    redelivering.maker.ledger.put(*out, b"c", False)
    other.ledger.take(slot, second, 1)
    second.pending.clear()
    with open(f"{redelivering.address.path}/h{slot}", "rb") as file:
        assert [payload for payload, _ in pickle.load(file)] == [b"a", b"b", b"c"]
    other.ledger.take(slot, other.ledger.hands[slot][0], 1)
    with open(f"{redelivering.address.path}/h{slot}", "rb") as file:
        assert [payload for payload, _ in pickle.load(file)] == [b"c"]


def test_nothing_comes_again_after_a_cancel(redelivering: Parts) -> None:
    other, _ = in_hand(redelivering, [b"a", b"b"])
    maker = redelivering.maker
    maker.transact(maker.ledger.cancel, None)
    redelivering.die(other)
    redelivering.look()
    assert maker.ledger.channel.size() == 0
    assert maker.ledger.head[cells_.LOST] == 2


def test_what_a_dead_one_had_in_hand_comes_again(redelivering: Parts) -> None:
    other, slot = in_hand(redelivering, [b"a", b"b"])
    redelivering.die(other)
    redelivering.look()
    head = redelivering.maker.ledger.head
    assert (head[LOST], head[REDELIVERED]) == (0, 2)
    assert drain(redelivering) == [(b"a", 1 | 1 << 48), (b"b", 1 | 1 << 48)]
    assert f"h{slot}" not in redelivering.files()


def test_an_item_has_so_many_tries(redelivering: Parts) -> None:
    """One more than that kills no more consumers."""
    parts = redelivering
    assert MAX_DELIVERIES == IterableQueue.MAX_DELIVERIES == 3
    other, _ = in_hand(parts, [b"deadly"])
    for tries in range(1, MAX_DELIVERIES):
        parts.die(other)
        parts.look()
        assert parts.maker.ledger.head[REDELIVERED] == tries
        other = parts.join()
        slot, _ = parts.open(other, CONSUMER)
        hand = Hand(other.ledger.channel, False)
        other.ledger.hands[slot] = {0: hand}
        assert other.ledger.take(slot, hand, 1)
        assert hand.pending == [(b"deadly", 1 | tries << 48)]
    parts.die(other)
    parts.look()
    head = parts.maker.ledger.head
    assert (head[REDELIVERED], head[LOST]) == (MAX_DELIVERIES - 1, 1)
    assert parts.maker.ledger.channel.size() == 0


@pytest.mark.parametrize("content", [None, b""])
def test_a_lease_that_was_never_written_is_a_loss(
    redelivering: Parts, content: bytes | None
) -> None:
    other, slot = in_hand(redelivering, [b"a", b"b"])
    path = Path(redelivering.address.path, f"h{slot}")
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    redelivering.die(other)
    redelivering.look()
    head = redelivering.maker.ledger.head
    assert (head[LOST], head[REDELIVERED]) == (2, 0)


def test_a_take_that_was_not_committed_is_left_out(redelivering: Parts) -> None:
    other, slot = in_hand(redelivering, [b"a", b"b", b"c"])
    other.ledger.cells[slot * SLOT_SIZE + IN_HAND] -= 1  # as if killed before the third counted
    redelivering.die(other)
    redelivering.look()
    assert [payload for payload, _ in drain(redelivering)] == [b"a", b"b"]


# Pickles


def test_a_pickle_is_noted(parts: Parts) -> None:
    queue = IterableQueue[int]()
    out: Any = queue.get_producer()
    core = queue._core
    data = pickle.dumps(out)
    view = core.ledger.view(out.slot)
    assert view.flags == SENT
    assert view.road == core.ledger.me
    assert pickle.loads(data) is out, "one endpoint for each process"
    assert core.ledger.view(out.slot).owner == core.ledger.me


def test_the_queue_itself_is_sent(parts: Parts) -> None:
    queue = IterableQueue[int]()
    core = queue._core
    assert core.ledger.head[HANDLE] == 1
    handle = pickle.loads(pickle.dumps(queue))
    assert core.ledger.head[HANDLE] == 0
    assert handle._core is core
    handle.close()
    assert queue.statistics().state == "done"


def test_closed_and_foreign_ones_can_not_be_sent(parts: Parts) -> None:
    closed = parts.open(parts.maker, PRODUCER, used=False)
    parts.maker.transact(parts.maker.ledger.close, *closed)
    with pytest.raises(EndpointElsewhere, match="can't be handed on"):
        parts.maker.transact(parts.maker._send, *closed, PRODUCER)
    foreign = parts.open(parts.join(), PRODUCER)
    with pytest.raises(EndpointElsewhere, match=f"belongs to process {os.getpid()}"):
        parts.maker.transact(parts.maker._send, *foreign, PRODUCER)


def test_one_that_a_process_is_being_started_with_can_not_be_sent(parts: Parts) -> None:
    """A pool hands its `initargs` to each of its processes."""
    slot, number = parts.open(parts.maker, WORKER, used=False)
    heir, life = parts.maker.transact(parts.maker._make_heir)
    parts.maker.transact(parts.maker.ledger.assign, slot, heir)
    text = (
        rf"worker {number} belongs to a process that was started with it, which .* of its own, "
        r"by get_worker\(\) or clone\(\)"
    )
    with pytest.raises(EndpointElsewhere, match=text):
        parts.maker.transact(parts.maker._send, slot, number, WORKER)
    os.close(life)


def test_opening_a_pickle_of_a_queue_that_is_gone(parts: Parts) -> None:
    queue = IterableQueue[int]()
    things: list[Any] = [queue, queue.get_producer(), queue.get_consumer(), queue.get_worker()]
    pickles = [pickle.dumps(thing) for thing in things]
    del things, queue
    gc.collect()
    for data in pickles:
        thing: Any = pickle.loads(data)
        text = f"can't be reached from process {os.getpid()}: .*No such file"
        with pytest.raises(ChannelBroken, match=text):
            thing.qsize()
        with pytest.raises(TypeError, match="can't be pickled"):
            pickle.dumps(thing)
        assert "out of reach" in repr(thing) or thing.closed


def test_opening_a_pickle_of_somebody_elses_queue(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(_shared._attached, parts.address.path)
    monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    thing: Any = attach(parts.address, CONSUMER, 5, 5, 0, 0, None)
    with pytest.raises(ChannelBroken, match="belongs to another user"):
        thing.get()
    monkeypatch.undo()


def in_two_threads(call: Callable[[], object]) -> list[object]:
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(call())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    return found


def test_two_threads_open_pickles_at_once(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process has one part in the queue all the same."""
    monkeypatch.delitem(_shared._attached, parts.address.path)
    both = threading.Barrier(2)

    class SlowlyMade(SharedCore):
        def __init__(self, address: Address) -> None:
            try:
                both.wait(0.5)  # for the other thread, which must not come so far
            except threading.BrokenBarrierError:
                pass
            super().__init__(address)

    monkeypatch.setattr(_shared, "SharedCore", SlowlyMade)
    found = in_two_threads(lambda: _shared._attach(parts.address, 0, None))
    monkeypatch.undo()
    assert found[0] is found[1]
    part = found[0]
    assert isinstance(part, SharedCore)
    parts.others.append(part)


def test_two_threads_take_part_at_once(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    part = SharedCore(parts.address)
    parts.others.append(part)
    both = threading.Barrier(2)
    transact = part.transact

    def slowly(*call: Any) -> Any:
        try:
            both.wait(0.5)  # for the other thread, which must not come so far
        except threading.BrokenBarrierError:
            pass
        return transact(*call)

    monkeypatch.setattr(part, "transact", slowly)
    in_two_threads(part.register)
    monkeypatch.undo()
    processes = [view.slot for view in parts.maker.ledger.views(cells_.PROCESS)]
    assert processes == [parts.maker.ledger.me, part.ledger.me]


# Forks


def slot_of(endpoint: Any) -> int:
    slot: int = endpoint.slot
    return slot


def heir_of(core: SharedCore) -> tuple[int, int] | None:
    return core._heir


def prepared(queue: IterableQueue[int], *arguments: object) -> SharedCore:
    core = queue._core
    assert isinstance(core, SharedCore)
    core.transact(core._before_fork, arguments)
    return core


def test_an_argument_of_the_child_is_given_to_it() -> None:
    queue = IterableQueue[int]()
    out, source = queue.get_producer(), queue.get_consumer()
    slots = [slot_of(out), slot_of(source)]
    core = prepared(queue, out, 7, source)
    made = heir_of(core)
    assert made is not None
    heir, fd = made
    views = [core.ledger.view(slot) for slot in slots]
    assert [view.owner for view in views] == [heir, heir]
    assert [view.flags for view in views] == [STARTED, STARTED]
    assert core.ledger.head[HANDLE] == 0
    core.after_fork_in_parent()
    assert heir_of(core) is None
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)
    assert not core.is_alive(heir), "there was no child"


def test_what_a_child_may_have_inherited_is_noted() -> None:
    queue = IterableQueue[int]()
    out: Any = queue.get_producer()
    used: Any = queue.get_producer()
    used.put(1)
    core = prepared(queue)
    assert core._heir is None
    view = core.ledger.view(out.slot)
    assert view.flags == FORKED
    assert view.lineage in core._lineages
    assert core.ledger.view(used.slot).lineage == 0
    first, second = core._lineages
    assert is_held(core._name("l", second))
    prepared(queue)
    assert core.ledger.view(out.slot).lineage == view.lineage == second, "once is enough"
    assert list(core._lineages) == [first, second]
    out.close()
    prepared(queue)
    assert list(core._lineages) == [first], "the queue's own stays"
    assert not is_held(core._name("l", second))
    prepared(queue)
    other: Any = queue.get_consumer()
    prepared(queue)
    assert not os.path.exists(core._name("l", second)), "its file goes with the next one made"
    assert core.ledger.view(other.slot).lineage == second + 1


@with_either_lock
def test_a_fork_does_not_wait_for_ever_for_the_lock(parts: Parts) -> None:
    with held(parts.join()):
        began = time.monotonic()
        parts.maker.before_fork(())
        assert time.monotonic() - began < 20
        assert parts.maker._lineages == {}


def test_a_part_without_a_slot_has_nothing_to_do_at_a_fork(parts: Parts) -> None:
    other = SharedCore(parts.address)
    other.before_fork(())
    other.after_fork_in_parent()
    assert other._lineages == {}
    assert other._heir is None
    other.leave("")


def consume(source: Consumer[int]) -> None:
    raise SystemExit(sum(source))


def produce(out: Producer[int], count: int) -> None:
    with out:
        out.put_many(range(count))


@FORKS
def test_a_child_closes_what_is_its_parents(processes: Processes) -> None:
    """Else the parent would seem to live as long as the child."""
    queue = IterableQueue[int]()
    kept = queue.get_producer()
    reader, writer = os.pipe()
    core = queue._core
    assert isinstance(core, SharedCore)
    life = core._life
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        try:
            os.fstat(life)
        except OSError:
            os.write(writer, b"closed")
        os.write(writer, str((core._life, core.ledger.me)).encode())
        os._exit(0)
    processes.watch(pid)
    os.close(writer)
    with os.fdopen(reader) as file:
        assert file.read() == "closed(-1, 0)"
    os.waitpid(pid, 0)
    kept.close()


# Processes being started


class Unstartable:
    """An argument whose pickling fails, after that of those before it."""

    def __reduce__(self) -> Any:
        raise ValueError("can't be started")


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_process_that_can_not_be_started_takes_nothing(method: str) -> None:
    queue = IterableQueue[int]()
    out: Any = queue.get_producer()
    core = queue._core
    assert isinstance(core, SharedCore)
    context: Any = multiprocessing.get_context(method)
    process = context.Process(target=produce, args=(out, Unstartable()))
    with pytest.raises(ValueError, match="can't be started"):
        process.start()
    del process
    gc.collect()
    assert core._launching == {}
    assert [view.slot for view in core.ledger.views(PROCESS)] == [1]
    out.put(1)
    out.close()
    queue.close()
    assert list(queue.get_consumer()) == [1]


def test_a_started_process_has_its_endpoints_before_it_runs(processes: Processes) -> None:
    queue = IterableQueue[int]()
    out: Any = queue.get_producer()
    core = queue._core
    assert isinstance(core, SharedCore)
    process = processes.start(SPAWN.Process(target=produce, args=(out, 3)))
    view = core.ledger.view(out.slot)
    if core.ledger.is_open(out.slot, out.number):  # else it is through already
        assert view.owner not in (0, core.ledger.me)
    assert core._launching == {}
    source = queue.get_consumer()
    queue.close()
    assert list(source) == [0, 1, 2]
    processes.join()
    assert process.exitcode == 0


def test_a_launch_outlived_by_its_queue_is_closed() -> None:
    closed = list[bool]()
    launch: Any = SimpleNamespace(close=lambda: closed.append(True))
    gone: Any = lambda: None  # noqa: E731 - a weak reference to a part that is gone
    _shared._launched(gone, launch)
    assert closed == [True]


def test_adopting_a_slot(parts: Parts) -> None:
    """A child takes part in the slot and with the lock that were made for it."""
    heir, fd = parts.maker.transact(parts.maker._make_heir)
    child = SharedCore(parts.address)
    os.set_inheritable(fd, True)
    child.adopt(heir, fd)
    parts.others.append(child)
    assert child.ledger.me == heir
    assert parts.cell(heir, NUMBER) == os.getpid()
    assert not os.get_inheritable(fd)
    child.adopt(heir, fd)
    assert os.fstat(fd)
    another, second = parts.maker.transact(parts.maker._make_heir)
    child.adopt(another, second)
    assert child.ledger.me == heir, "it took part already"
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(second)
    parts.look()
    assert parts.cell(another, KIND) == cells_.FREE


# Whole


@FORKS
def test_items_of_a_killed_consumer(processes: Processes) -> None:
    """At the latest two seconds after, `join` says that an item was lost."""
    queue = IterableQueue[int]()
    out, source = queue.get_producer(), queue.get_consumer()
    process = FORK.Process(target=take_and_stay, args=(source,))
    with out:
        out.put(1)
    processes.start(process)
    queue.close()
    wait_until(lambda: queue.statistics().taken == 1, "the taking")
    os.kill(process.pid or 0, signal.SIGKILL)
    with pytest.raises(ItemsLost, match=r"1 item\(s\) were in the hands"):
        queue.join(20)
    with pytest.raises(Done):
        queue.get_consumer().get()
    assert queue.statistics().open_consumers <= 1
    processes.join()


def take_and_stay(source: Consumer[int]) -> None:
    source.get()
    signal.pause()


def test_counts_of_parts_agree(parts: Parts) -> None:
    others = [parts.join() for _ in range(3)]
    for part in others:
        for kind in (PRODUCER, CONSUMER, WORKER):
            parts.open(part, kind)
    heads = [list(part.ledger.head[:32]) for part in (*others, parts.maker)]
    assert heads == [heads[0]] * 4
    assert (heads[0][PRODUCERS], heads[0][CONSUMERS], heads[0][EVER]) == (3, 3, 6)
    for part in others:
        part.leave("left")
    assert parts.maker.ledger.head[PRODUCERS] == 0
    assert len(parts.failures()) == 6
    with pytest.raises(ProducerFailed):
        raise parts.maker.ledger.failure()
    assert parts.cell(2, ROAD) == parts.cell(2, LINEAGE) == 0


# What comes at a bad time


def test_that_a_process_was_started_is_noted_later_if_it_is_told_inside_a_call(
    parts: Parts,
) -> None:
    """The collector may find the end of a launch anywhere."""
    maker = parts.maker
    slot, number = parts.open(maker, PRODUCER, used=False)
    heir, fd = maker.transact(maker._make_heir)
    launch: Any = SimpleNamespace(
        popen=SimpleNamespace(pid=os.getpid()),
        slot=heir,
        endpoints=[(slot, number)],
        close=lambda: None,
    )
    maker.transact(maker.launched, launch)
    assert maker.ledger.view(slot).owner == 0, "not inside another transition"
    maker.transact(lambda: None)
    assert maker.ledger.view(slot).owner == heir
    os.close(fd)


@with_either_lock
@pytest.mark.parametrize("call", ["transact", "try_transact", "attempt", "get_nowait"])
def test_a_busy_lock_keeps_no_callers_frame(parts: Parts, call: str) -> None:
    """What the end of a caller's frame sets free must not have to wait for the collector."""
    maker = parts.maker
    begun, over = threading.Event(), threading.Event()

    def hold() -> None:
        with maker.runtime.lock:
            begun.set()
            over.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    begun.wait(20)

    def try_it() -> weakref.ref[threading.Event]:
        marker = threading.Event()
        if call == "transact":
            threading.Timer(0.3, over.set).start()
            maker.transact(lambda: None)
        elif call == "try_transact":
            assert not maker.try_transact(0.02, lambda: None)
        elif call == "attempt":
            lock = maker.runtime.trylock
            assert not maker.attempt(lambda: True, Waiting(maker.runtime.items), lock)
        else:
            assert not maker._attempt_once(lambda: True)
        return weakref.ref(marker)

    gc.collect()
    gc.disable()
    try:
        assert try_it()() is None
    finally:
        gc.enable()
        over.set()
        holder.join(20)

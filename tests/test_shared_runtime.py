"""Cells in a file, lock and semaphores, errors in files: what processes see of each other.

The lock's tests run for each kind of it. Whether it is free is asked by another thread: a mutex is
its thread's, a semaphore that of the object it was taken by.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, cast

import pytest

from iterable_queue import _mutex
from iterable_queue._cells import (
    BROKEN,
    HEAD_SIZE,
    LOOP_END,
    LOOP_ITEM,
    LOOP_ROOM,
    SLOT_SIZE,
    STATE,
    WAIT_END,
    WAIT_ITEM,
    WAIT_ROOM,
)
from iterable_queue._directory import FIRST_SLOTS, Address, make_directory, remove
from iterable_queue._errors import ChannelBroken, RemoteTraceback
from iterable_queue._runtime import SLICE_S, is_lock_busy
from iterable_queue._shared_runtime import (
    ERRORS,
    PATIENCE,
    Fifo,
    SharedErrors,
    SharedRuntime,
    private,
)
from tests.conftest import FORKS, Processes


@pytest.fixture
def address() -> Iterator[Address]:
    address = make_directory(None)
    yield address
    remove(address)


needed = pytest.mark.skipif(not _mutex.is_supported(), reason="there are no robust mutexes here")

KINDS = (
    pytest.param(True, id="mutex", marks=needed),
    pytest.param(False, id="semaphore"),
)
"""Of lock: whether it is robust."""


@pytest.fixture(params=KINDS)
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Address]:
    """The address of a queue, with each kind of lock in turn."""
    robust: bool = request.param
    with monkeypatch.context() as patch:
        patch.setattr(_mutex, "is_supported", lambda: robust)
        address = make_directory(None)
    assert SharedRuntime(address).is_robust is robust, "whatever there is now"
    yield address
    remove(address)


def in_thread(call: Callable[[], object]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


def is_free(runtime: SharedRuntime) -> bool:
    """Whether another thread gets the lock at once, by that runtime."""
    found = list[bool]()

    def look() -> None:
        try:
            with runtime.trylock:
                found.append(True)
        except KeyError as error:
            if not is_lock_busy(error):
                raise
            found.append(False)

    in_thread(look)
    (free,) = found
    return free


# Cells


def test_two_processes_see_the_same_cells(address: Address) -> None:
    one, other = SharedRuntime(address), SharedRuntime(address)
    assert len(one.head) == HEAD_SIZE
    one.head[7] = -(1 << 63)
    one.cells(2 * SLOT_SIZE)[SLOT_SIZE] = (1 << 63) - 1
    assert other.head[7] == -(1 << 63)
    assert other.cells(2 * SLOT_SIZE)[SLOT_SIZE] == (1 << 63) - 1
    assert 7 not in list(other.head)


def test_the_head_and_the_slots_are_apart(address: Address) -> None:
    runtime = SharedRuntime(address)
    cells = runtime.cells(SLOT_SIZE)
    cells[0] = 5
    assert list(runtime.head) == [0] * HEAD_SIZE
    assert len(cells) == FIRST_SLOTS * SLOT_SIZE
    with pytest.raises((ValueError, TypeError, OverflowError)):
        runtime.head[0] = 1 << 63


def test_cells_grow_for_everybody(address: Address) -> None:
    one, other = SharedRuntime(address), SharedRuntime(address)
    old = one.cells(1)
    one.cells(1)[3] = 33
    first = FIRST_SLOTS * SLOT_SIZE
    assert len(one.cells(first)) == first, "there is room"
    grown = one.cells(first + 1)
    size = Path(address.path, "cells").stat().st_size
    assert size == 2 * (HEAD_SIZE + first) * 8, "by doubling"
    assert len(grown) == size // 8 - HEAD_SIZE
    grown[first] = 44
    assert grown[3] == 33
    assert other.cells(first + 1)[first] == 44
    assert Path(address.path, "cells").stat().st_size == size, "it had grown already"
    old[3] = 34
    assert grown[3] == 34, "the old view is of the same file"
    one.head[5] = 55
    assert other.head[5] == 55
    huge = 10 * first
    assert len(one.cells(huge)) == huge
    assert Path(address.path, "cells").stat().st_size == (HEAD_SIZE + huge) * 8


def test_no_descriptor_stays_open(either: Address) -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    runtime = SharedRuntime(either)
    runtime.cells(10 * FIRST_SLOTS * SLOT_SIZE)
    # A mapping has a descriptor of its own: one for each size that the file had, one of a mutex.
    assert len(os.listdir("/proc/self/fd")) - before <= 2 + runtime.is_robust
    del runtime
    assert len(os.listdir("/proc/self/fd")) == before


# The lock


def test_the_lock_is_everybodys(either: Address) -> None:
    one, other = SharedRuntime(either), SharedRuntime(either)
    assert is_free(one)
    with one.lock:
        assert not is_free(one)
        assert not is_free(other)
        with one.trylock, one.lock:
            pass  # by the same one, it may be taken again
        assert not is_free(other)
    assert is_free(other)
    with other.trylock:
        assert not is_free(one)
    assert is_free(one)


def test_the_lock_is_of_the_kind_that_its_maker_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever somebody else finds; so a queue can't have two locks."""
    for robust in (True, False) if _mutex.is_supported() else (False,):
        monkeypatch.setattr(_mutex, "is_supported", lambda robust=robust: robust)
        address = make_directory(None)
        monkeypatch.setattr(_mutex, "is_supported", lambda robust=robust: not robust)
        one, other = SharedRuntime(address), SharedRuntime(address)
        assert one.is_robust is other.is_robust is robust
        with one.lock:
            assert not is_free(other)
        remove(address)


@pytest.mark.parametrize(
    ("timeout", "patience"),
    [
        (0.0, 0.001),
        (0.001, 0.001),
        (0.009, 0.001),
        (0.01, 0.01),
        (0.049, 0.01),
        (0.05, 0.05),
        (SLICE_S, SLICE_S),
        (100.0, SLICE_S),
    ],
)
def test_the_lock_is_waited_for_no_longer_than_that(
    address: Address, timeout: float, patience: float
) -> None:
    runtime = SharedRuntime(address)
    assert PATIENCE[-1] == SLICE_S
    assert runtime.lock_within(timeout) is runtime._guards[PATIENCE.index(patience)]
    assert runtime.lock_within(timeout) is (
        runtime.lock if timeout >= SLICE_S else runtime.lock_within(timeout)
    )


@pytest.mark.parametrize("patience", PATIENCE)
def test_a_busy_lock_is_given_up(either: Address, patience: float) -> None:
    one, other = SharedRuntime(either), SharedRuntime(either)

    def look() -> None:
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(KeyError) as told, other.lock_within(patience):
                pytest.fail("inside")
            assert is_lock_busy(told.value)
            # A semaphore is waited for by a clock that may be set.
            assert time.monotonic() - began >= patience or not other.is_robust

    with one.lock:
        in_thread(look)
        assert not is_free(other)
    with other.lock_within(patience):
        assert not is_free(one)
    assert is_free(one)


def test_letting_go_what_one_has_not_changes_nothing(either: Address) -> None:
    """As where an interrupt comes between a `with` and its block."""
    one, other = SharedRuntime(either), SharedRuntime(either)

    def let_go() -> None:
        for runtime in (one, other):
            with suppress(AssertionError):
                runtime.lock.__exit__(None, None, None)

    with one.lock:
        in_thread(let_go)
        assert not is_free(one)
    let_go()
    with other.lock:
        assert not is_free(one), "there are never two of it"
    assert is_free(one)


def test_the_lock_can_be_let_go_for_a_dead_holder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is a semaphore, which its holder's death leaves as it is."""
    monkeypatch.setattr(_mutex, "is_supported", lambda: False)
    address = make_directory(None)
    one, other = SharedRuntime(address), SharedRuntime(address)
    assert not one.is_locked()
    in_thread(one.lock.__enter__)
    assert one.is_locked()
    assert other.is_locked()
    assert not is_free(other)
    other.unlock()
    assert not one.is_locked()
    assert is_free(other)
    with pytest.raises(ValueError, match="too many"):
        other.unlock()  # it is free: there are never two of it
    assert not one.is_locked()
    remove(address)


@needed
def test_the_lock_is_let_go_by_a_death(address: Address) -> None:
    """Where it is a mutex. Whose it was is in its holder's hands: see `Ledger`."""
    one, other = SharedRuntime(address), SharedRuntime(address)
    for _ in range(3):
        in_thread(one.lock.__enter__)
        with other.lock:
            assert not is_free(one)
        assert is_free(one)


def forked(processes: Processes, act: Callable[[], object]) -> int:
    """Run *act* in a forked child; returns its exit status, which is 7 if that raised."""

    def run() -> NoReturn:
        status = 7
        try:
            act()
            status = 0
        finally:
            os._exit(status)

    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        run()
    processes.watch(pid)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@FORKS
def test_a_child_forked_while_the_lock_was_held_does_not_think_that_it_has_it(
    either: Address, processes: Processes
) -> None:
    runtime = SharedRuntime(either)

    def child() -> None:
        runtime.after_fork_in_child()
        with suppress(AssertionError):  # as at the end of a block in which it was forked
            runtime.lock.__exit__(None, None, None)
        with pytest.raises(KeyError) as told, runtime.trylock:
            pytest.fail("inside")
        assert is_lock_busy(told.value)

    with runtime.lock:
        assert forked(processes, child) == 0
        assert not is_free(runtime)
    assert is_free(runtime)


@FORKS
def test_it_survives_a_fork(either: Address, processes: Processes) -> None:
    runtime = SharedRuntime(either)

    def child() -> None:
        runtime.after_fork_in_child()
        with runtime.lock:
            runtime.head[9] += 1
            runtime.items.announce()
            runtime.items.notify()

    assert forked(processes, child) == 0
    assert is_free(runtime)
    assert runtime.head[9] == 1
    assert runtime.items.sleep(0), "the child's token"


# Conditions


def test_each_condition_has_its_cell_and_its_semaphore(address: Address) -> None:
    one, other = SharedRuntime(address), SharedRuntime(address)
    one.items.announce()
    one.room.announce()
    one.room.announce()
    one.end.announce()
    assert [other.head[cell] for cell in (WAIT_ITEM, WAIT_ROOM, WAIT_END)] == [1, 2, 1]
    other.room.notify_all()
    other.end.notify_all()
    assert not one.items.sleep(0)
    assert one.room.sleep(0)
    assert other.room.sleep(0)
    assert not one.room.sleep(0)
    assert other.end.sleep(0)


def test_a_sleeper_is_woken_across(address: Address) -> None:
    one, other = SharedRuntime(address), SharedRuntime(address)
    woken = threading.Event()
    one.items.announce()

    def sleep() -> None:
        while not one.items.sleep(10):
            pass
        woken.set()

    sleeper = threading.Thread(target=sleep)
    sleeper.start()
    other.items.notify()
    assert woken.wait(20)
    sleeper.join()


# FIFOs


def bell_of(runtime: SharedRuntime) -> Fifo:
    bell = runtime.items.bell
    assert isinstance(bell, Fifo)
    return bell


def test_a_bell_that_nobody_listens_to_counts_nobody(address: Address) -> None:
    """Neither before there is a FIFO, nor once all are gone who had it open."""
    one, other = bell_of(SharedRuntime(address)), bell_of(SharedRuntime(address))
    for _ in range(2):
        one.count()
        one.count()
        assert other.waiting() == 2
        assert other.ring(1) == 0
        assert one.waiting() == 0
        os.close(one.open())


def test_a_bell_wakes_any_process(address: Address) -> None:
    one, other = bell_of(SharedRuntime(address)), bell_of(SharedRuntime(address))
    fds = [one.open(), other.open()]
    try:
        for _ in range(3):
            one.count()
        assert one.uncount()
        assert other.ring(2) == 2
        assert one.waiting() == 0
        assert not one.uncount()
        assert os.read(fds[0], 1) + os.read(fds[1], 9) == bytes(2)
        with pytest.raises(BlockingIOError):
            os.read(fds[0], 1)
    finally:
        for fd in fds:
            os.close(fd)


def test_each_condition_has_its_bell(address: Address) -> None:
    runtime = SharedRuntime(address)
    conditions = runtime.items, runtime.room, runtime.end
    bells = [condition.bell for condition in conditions]
    assert all(isinstance(bell, Fifo) for bell in bells)
    assert len({bell.path for bell in bells if isinstance(bell, Fifo)}) == 3
    for n, bell in enumerate(bells, 1):
        for _ in range(n):
            cast("Fifo", bell).count()
    assert [runtime.head[cell] for cell in (LOOP_ITEM, LOOP_ROOM, LOOP_END)] == [1, 2, 3]


def test_a_bell_that_has_been_rung_enough(address: Address) -> None:
    """A FIFO that is full holds tokens enough; where files run out, sleepers look by themselves."""
    bell = bell_of(SharedRuntime(address))
    fd = bell.open()
    try:
        for _ in range(30):
            for _ in range(4096):
                bell.count()
            assert bell.ring(4096) == 4096
        assert bell.waiting() == 0
        bell.count()
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (fd + 1, limit[1]))
        try:
            assert bell.ring(1) == 1
            assert bell.waiting() == 1, "who sleeps still counts"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    finally:
        os.close(fd)


def test_a_bell_in_a_directory_that_is_gone(address: Address) -> None:
    bell = Fifo(f"{address.path}/none/bell", [0] * HEAD_SIZE, LOOP_ITEM)
    with pytest.raises(ChannelBroken):
        bell.open()
    bell.count()
    assert bell.ring(1) == 0


def test_the_clock_is_the_same_everywhere(address: Address) -> None:
    one, other = SharedRuntime(address), SharedRuntime(address)
    moments = [one.now(), other.now(), one.now()]
    assert moments == sorted(moments)


# Errors


@pytest.fixture
def head() -> list[int]:
    return [0] * HEAD_SIZE


def caught(error: BaseException) -> BaseException:
    """*error* with a traceback, as one that was raised."""
    try:
        raise error
    except BaseException as raised:
        return raised


def keep(errors: SharedErrors, head: list[int], error: BaseException) -> None:
    for cell, value in errors.add_failure(errors.pack(error)):
        head[cell] = value


def test_no_errors_yet(tmp_path: Path, head: list[int]) -> None:
    errors = SharedErrors(str(tmp_path), head)
    assert (errors.count(), errors.failures(), errors.reason()) == (0, (), None)
    assert list(tmp_path.iterdir()) == []


def test_failures_come_in_their_order(tmp_path: Path, head: list[int]) -> None:
    one, other = SharedErrors(str(tmp_path), head), SharedErrors(str(tmp_path), head)
    for n in range(5):
        errors = (one, other)[n % 2]
        keep(errors, head, ValueError(n, "x" * 1000 * n))
        assert one.count() == other.count() == n + 1
    assert [error.args[0] for error in one.failures()] == list(range(5))
    assert {type(error) for error in other.failures()} == {ValueError}
    assert head[ERRORS] == (tmp_path / "errors").stat().st_size


def test_a_failure_brings_its_traceback(tmp_path: Path, head: list[int]) -> None:
    errors = SharedErrors(str(tmp_path), head)
    keep(errors, head, caught(KeyError("far away")))
    (error,) = errors.failures()
    assert isinstance(error, KeyError)
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "in caught" in str(error.__cause__)


def test_a_failure_that_was_not_finished_does_not_count(tmp_path: Path, head: list[int]) -> None:
    errors = SharedErrors(str(tmp_path), head)
    keep(errors, head, ValueError(1))
    errors.add_failure(errors.pack(ValueError("killed before the store, and longer")))
    assert [error.args for error in errors.failures()] == [(1,)]
    assert errors.count() == 1
    keep(errors, head, ValueError(2))
    assert [error.args for error in errors.failures()] == [(1,), (2,)]


def test_the_reason(tmp_path: Path, head: list[int]) -> None:
    one, other = SharedErrors(str(tmp_path), head), SharedErrors(str(tmp_path), head)
    one.set_reason(one.pack(OSError(5, "why")))
    reason = other.reason()
    assert isinstance(reason, OSError)
    assert reason.args == (5, "why")
    other.set_reason(other.pack(ValueError("again")))
    assert isinstance(one.reason(), ValueError)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["reason"]
    assert one.count() == 0


def test_files_are_private_and_links_not_followed(tmp_path: Path, head: list[int]) -> None:
    errors = SharedErrors(str(tmp_path), head)
    keep(errors, head, ValueError())
    errors.set_reason(errors.pack(ValueError()))
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}
    (tmp_path / "link").symlink_to(tmp_path / "errors")
    with pytest.raises(OSError, match="symbolic links"):
        private(str(tmp_path / "link"), os.O_RDWR, head)
    with pytest.raises(ChannelBroken, match="removed"):
        private(str(tmp_path / "gone" / "file"), os.O_RDWR, head)
    assert head[STATE] & BROKEN
    fd = private(str(tmp_path / "errors"), os.O_RDWR, head)
    assert not os.get_inheritable(fd)
    os.close(fd)

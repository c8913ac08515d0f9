"""What endpoints share in one process: the lock, waiting with one deadline, dropped endpoints."""

from __future__ import annotations

import errno
import gc
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import Queue, SimpleQueue
from typing import Any

import pytest

from iterable_queue import (
    ChannelBroken,
    Done,
    EndpointElsewhere,
    IterableQueue,
    ProducerFailed,
    WouldDeadlock,
)
from iterable_queue._cells import (
    BUSY,
    CONSUMER,
    CONSUMERS,
    DROPPED_COPY,
    FAILED,
    FLAGS,
    FORKED,
    HANDLE,
    HOLDER,
    OWNER,
    PRODUCER,
    PRODUCERS,
    QUEUE,
    SENT,
    SLOT_SIZE,
    STATE,
    USED,
    WAIT_ITEM,
    WORKER,
    WORKERS,
)
from iterable_queue._core import (
    BRIEFLY_S,
    Core,
    check_bool,
    check_exception,
    check_int,
    deadline_of,
    thread_core,
    user_line,
)
from iterable_queue._runtime import SLICE_S, guard
from iterable_queue._seams import Lock
from tests.conftest import wait_until


def made(maxsize: int = 0, *, simple: bool = False) -> Core:
    core = thread_core(SimpleQueue[Any]() if simple else Queue[Any](), maxsize)
    core.transact(core.ledger.open, QUEUE, "here")
    return core


@pytest.fixture
def core() -> Core:
    return made()


class BusyLock:
    """A lock that can't be had the first *times* times; counts how often it was asked for."""

    def __init__(self, times: float) -> None:
        self.asked = 0
        self._times = times
        self._lock = threading.RLock()
        self.lock: Lock = guard(self._acquire, self._lock.__exit__)

    def _acquire(self) -> bool:
        self.asked += 1
        return self.asked > self._times and self._lock.acquire()


def make_busy(core: Core, times: float) -> tuple[BusyLock, list[float]]:
    """The lock of *core* is busy so often. Returns it, and the time-outs that were asked for."""
    busy, patiences = BusyLock(times), list[float]()

    def lock_within(timeout_s: float) -> Lock:
        patiences.append(timeout_s)
        return busy.lock

    runtime: Any = core.runtime
    runtime.lock = runtime.trylock = busy.lock
    runtime.lock_within = lock_within
    return busy, patiences


# Arguments


def test_the_line_of_user_code() -> None:
    line = user_line()
    file, _, number = line.rpartition(":")
    assert file == __file__
    text = Path(file).read_text(encoding="utf-8").splitlines()[int(number) - 1]
    assert text.strip() == "line = user_line()"


def test_the_line_is_that_of_the_outermost_library_call() -> None:
    queue = IterableQueue[int].threaded()
    out = queue.get_producer().clone()
    assert f"producer 2, made at {__file__}:" in queue.explain()
    assert not out.closed


def test_a_deadline() -> None:
    assert deadline_of(True, None, time.monotonic) is None
    assert deadline_of(False, None, time.monotonic) == 0.0
    assert deadline_of(False, 5, time.monotonic) == 0.0
    before = time.monotonic()
    for timeout in (0, 2.5, True):
        deadline = deadline_of(True, timeout, time.monotonic)
        assert deadline is not None
        assert before + timeout <= deadline <= time.monotonic() + timeout


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan")])
def test_a_deadline_must_not_have_passed(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout must be 0 or more seconds, not"):
        deadline_of(True, timeout, time.monotonic)


@pytest.mark.parametrize("timeout", ["1", b"", [], 1j])
def test_a_deadline_must_be_a_number(timeout: Any) -> None:
    with pytest.raises(TypeError, match="timeout must be a number of seconds or None, not"):
        deadline_of(True, timeout, time.monotonic)


def check_limit(value: object) -> None:
    check_int(value, "limit")


def check_block(value: object) -> None:
    check_bool(value, "block")


@pytest.mark.parametrize(
    ("check", "good", "wrong", "text"),
    [
        (check_limit, 3, "3", "limit must be an int, not '3'"),
        (check_block, True, 1, "block must be a bool, not 1"),
        (check_exception, ValueError(), ValueError, "error must be an exception, not <class"),
    ],
)
def test_checks(check: Callable[[object], None], good: object, wrong: object, text: str) -> None:
    check(good)
    with pytest.raises(TypeError, match=text):
        check(wrong)


# The lock


def test_a_transition_waits_for_the_lock(core: Core) -> None:
    busy, _ = make_busy(core, 5)
    assert core.transact(divmod, 7, 2) == (3, 1)
    assert busy.asked == 6
    assert core.transact(int, "12", base=3) == 5


def test_a_transitions_own_key_error_is_no_busy_lock(core: Core) -> None:
    def fail() -> None:
        raise KeyError("mine")

    for call in (
        lambda: core.transact(fail),
        lambda: core.try_transact(1, fail),
        lambda: core.transact_until(None, fail),
        lambda: core.tidy(fail),
        lambda: core.wait(fail, core.runtime.items, 0.0),  # type: ignore[arg-type] # never returns
        lambda: core.wait(fail, core.runtime.items, None),  # type: ignore[arg-type]
    ):
        with pytest.raises(KeyError, match="mine"):
            call()


def test_trying_gives_up(core: Core) -> None:
    busy, patiences = make_busy(core, 1)
    done = list[int]()
    assert not core.try_transact(0.125, lambda: done.append(1))
    assert (busy.asked, patiences, done) == (1, [0.125], [])
    assert core.try_transact(0.125, lambda: done.append(1))
    assert done == [1]


def test_trying_until_a_deadline(core: Core) -> None:
    done = list[int]()
    busy, patiences = make_busy(core, 2)
    deadline = time.monotonic() + 20
    assert core.transact_until(deadline, lambda: done.append(1))
    left = deadline - time.monotonic()
    assert (busy.asked, done) == (3, [1])
    assert all(left <= patience <= 20 for patience in patiences)
    busy, patiences = make_busy(core, 2)
    assert not core.transact_until(time.monotonic() - 1, lambda: done.append(2))
    assert (busy.asked, patiences, done) == (1, [BRIEFLY_S], [1])
    busy, patiences = make_busy(core, 2)
    assert core.transact_until(None, lambda: done.append(3))
    assert (busy.asked, patiences, done) == (3, [], [1, 3])


def test_what_may_be_left_undone(core: Core) -> None:
    done = list[int]()
    busy, patiences = make_busy(core, 1)
    core.tidy(lambda: done.append(1))
    assert (busy.asked, patiences, done) == (1, [BRIEFLY_S], [])
    core.ledger.head[HOLDER] = 1  # as for a signal handler that interrupts a transition
    core.tidy(lambda: done.append(1))
    core.ledger.head[HOLDER] = 0
    assert done == []
    core.tidy(lambda: done.append(1))
    assert done == [1]


# Waiting


def test_a_wait_that_need_not(core: Core) -> None:
    for deadline in (None, 0.0, time.monotonic() + 9):
        assert core.wait(lambda: True, core.runtime.items, deadline)
    assert core.ledger.head[WAIT_ITEM] == 0


def test_a_call_that_must_not_wait(core: Core) -> None:
    asked = list[int]()

    def attempt() -> bool:
        asked.append(core.ledger.head[WAIT_ITEM])
        return False

    assert not core.wait(attempt, core.runtime.items, 0.0)
    assert asked == [0], "once, without being announced"
    _, patiences = make_busy(core, 1)
    assert not core.wait(attempt, core.runtime.items, 0.0)
    assert (asked, patiences) == ([0], [SLICE_S])


def test_a_wait_that_times_out(core: Core) -> None:
    asked = list[int]()

    def attempt() -> bool:
        asked.append(core.ledger.head[WAIT_ITEM])
        return False

    began = time.monotonic()
    assert not core.wait(attempt, core.runtime.items, began + 0.05)
    assert time.monotonic() >= began + 0.05
    assert asked[0] == 0
    assert set(asked[1:]) == {1}, "announced, once"
    assert core.ledger.head[WAIT_ITEM] == 0, "and taken back"


def test_a_wait_that_raises_takes_itself_back(core: Core) -> None:
    def attempt() -> bool:
        if core.ledger.head[WAIT_ITEM]:
            raise Done
        return False

    with pytest.raises(Done):
        core.wait(attempt, core.runtime.items, None)
    assert core.ledger.head[WAIT_ITEM] == 0


def test_a_sleeper_looks_again_when_it_is_woken(core: Core) -> None:
    tries = list[int]()

    def attempt() -> bool:
        tries.append(core.ledger.head[WAIT_ITEM])
        return len(tries) == 3

    over = list[bool]()
    waiting = threading.Thread(
        target=lambda: over.append(core.wait(attempt, core.runtime.items, None))
    )
    waiting.start()
    for count in (1, 2):
        wait_until(lambda: core.ledger.head[WAIT_ITEM] == 1, "the announcement")
        core.transact(core.runtime.items.notify)
        wait_until(lambda: len(tries) > count, "another try")  # noqa: B023 - called at once
    waiting.join()
    assert over == [True]
    assert core.ledger.head[WAIT_ITEM] == 0


def test_a_sleeper_whose_wake_up_was_lost_looks_after_a_slice(core: Core) -> None:
    ready = list[int]()
    over = threading.Event()

    def wait() -> None:
        core.wait(lambda: bool(ready), core.runtime.items, None)
        over.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    wait_until(lambda: core.ledger.head[WAIT_ITEM] == 1, "the announcement")
    ready.append(1)  # and nobody says so
    assert over.wait(20)
    waiting.join()
    assert core.ledger.head[WAIT_ITEM] == 0


def test_each_slice_makes_up_for_what_was_left_out(core: Core) -> None:
    """The sleeper settles the queue itself, and wakes by that."""
    out = core.transact(core.ledger.open, PRODUCER, "here")
    core.transact(core.ledger.close, *out)
    over = threading.Event()

    def wait() -> None:
        core.wait(core.ledger.drained, core.runtime.items, None)
        over.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    wait_until(lambda: core.ledger.head[WAIT_ITEM] == 1, "the announcement")
    core.ledger.head[STATE] |= 1  # closed, but interrupted before anybody was woken
    assert over.wait(20)
    waiting.join()


def test_while_the_lock_is_busy_it_is_not_announced(core: Core) -> None:
    busy, patiences = make_busy(core, 3)
    deadline = time.monotonic() + 20
    assert core.wait(lambda: busy.asked == 4, core.runtime.items, deadline)
    left = deadline - time.monotonic()
    assert busy.asked == 4
    assert all(left <= patience <= 20 for patience in patiences)
    assert core.ledger.head[WAIT_ITEM] == 0


def test_a_lock_that_stays_busy_counts_towards_the_deadline(core: Core) -> None:
    _, patiences = make_busy(core, math.inf)
    asked = list[int]()

    def attempt() -> bool:
        asked.append(1)
        return True

    assert not core.wait(attempt, core.runtime.items, time.monotonic() + 0.05)
    assert asked == []
    assert all(BRIEFLY_S <= patience <= 0.05 for patience in patiences)
    patiences.clear()
    assert not core.wait(attempt, core.runtime.items, time.monotonic() - 1)
    assert patiences == [BRIEFLY_S]


def test_an_atomic_channel_is_looked_at_again_after_the_announcement() -> None:
    """What was put without the lock looked for waiters too early."""
    tries = list[int]()
    for simple in (True, False):
        core = made(simple=simple)
        tries.clear()

        def attempt() -> bool:
            tries.append(core.ledger.head[WAIT_ITEM])  # noqa: B023 - called at once
            return len(tries) == 2

        assert core.wait(attempt, core.runtime.items, time.monotonic() + 20)
        assert tries == [0, 1]
        # Then it left without a token, though nobody had to wake it.
        assert core.ledger.head[WAIT_ITEM] == 0


# Dropped endpoints


class Ends:
    """Opens endpoints by number, without objects that could be dropped."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.ledger = core.ledger

    def open(self, kind: int, flags: int = 0, owner: int = 0) -> tuple[int, int]:
        slot, number = self.core.transact(self.ledger.open, kind, "there:1")
        self.ledger.cells[slot * SLOT_SIZE + FLAGS] |= flags
        self.ledger.cells[slot * SLOT_SIZE + OWNER] = owner
        return slot, number

    def failures(self) -> list[str]:
        return [str(error) for error in self.core.runtime.errors.failures()]


@pytest.mark.parametrize("kind", [PRODUCER, CONSUMER, WORKER])
def test_an_untouched_endpoint_that_is_dropped_is_closed(core: Core, kind: int) -> None:
    ends = Ends(core)
    slot, number = ends.open(kind)
    core.drop(slot, number)
    assert not core.ledger.is_open(slot, number)
    assert ends.failures() == []
    core.drop(slot, number)  # of a closed one, nothing is left to do


@pytest.mark.parametrize(("kind", "fails"), [(PRODUCER, True), (CONSUMER, False), (WORKER, True)])
def test_a_used_one_that_is_dropped_has_failed(core: Core, kind: int, fails: bool) -> None:
    ends = Ends(core)
    slot, number = ends.open(kind, USED, owner=1)
    core.drop(slot, number)
    assert not core.ledger.is_open(slot, number)
    names = {PRODUCER: "producer", WORKER: "worker"}
    assert ends.failures() == [
        f"{names[kind]} 1, made at there:1 (pid {os.getpid()}), was dropped without close()"
        for _ in range(fails)
    ]


def test_a_worker_with_nothing_to_do_is_closed(core: Core) -> None:
    ends = Ends(core)
    slot, number = ends.open(WORKER, USED, owner=1)
    core.ledger.cells[slot * SLOT_SIZE + FLAGS] = USED
    core.ledger.head[BUSY] -= 1
    core.drop(slot, number)
    assert ends.failures() == []
    assert core.ledger.head[WORKERS] == core.ledger.head[BUSY] == 0


def test_one_that_was_taken_and_not_used_has_failed_too(core: Core) -> None:
    ends = Ends(core)
    core.drop(*ends.open(PRODUCER, owner=1))
    (text,) = ends.failures()
    assert text.endswith("was dropped, without having been used, by the process that took it")


@pytest.mark.parametrize("flags", [SENT, FORKED, SENT | DROPPED_COPY])
def test_one_that_others_may_hold_stays(core: Core, flags: int) -> None:
    slot, number = Ends(core).open(PRODUCER, flags)
    core.drop(slot, number)
    assert core.ledger.is_open(slot, number)
    assert core.ledger.head[FAILED] == 0


@pytest.mark.parametrize(("owner", "maker"), [(9, 1), (0, 9), (9, 9)])
def test_one_of_another_process_stays(core: Core, owner: int, maker: int) -> None:
    ends = Ends(core)
    slot, number = ends.open(PRODUCER, USED, owner=owner)
    core.ledger.cells[slot * SLOT_SIZE + 5] = maker
    assert not core.is_mine(core.ledger.view(slot))
    core.drop(slot, number)
    assert core.ledger.is_open(slot, number)


def test_nothing_is_a_processes_own_that_takes_no_part(core: Core) -> None:
    slot, _ = Ends(core).open(PRODUCER)
    assert core.is_mine(core.ledger.view(slot))
    core.ledger.me = 0
    core.ledger.cells[slot * SLOT_SIZE + 5] = 0
    assert not core.is_mine(core.ledger.view(slot))


def test_inside_a_transition_it_is_put_off(core: Core) -> None:
    """`__del__` may run anywhere; the next one to hold the lock does what is to be done."""
    ends = Ends(core)
    dropped = ends.open(PRODUCER)
    core.transact(core.drop, *dropped)
    assert core.ledger.is_open(*dropped)
    core.transact(lambda: None)
    assert not core.ledger.is_open(*dropped)


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (OSError(errno.ENOSPC, "no room"), False),
        (ValueError("a bug"), False),
        (RecursionError("it was called deep down"), True),
        (ChannelBroken("for now"), True),
        (KeyboardInterrupt(), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_can_not_be_done_is_told_once(
    core: Core, monkeypatch: pytest.MonkeyPatch, error: BaseException, again: bool
) -> None:
    """To whoever comes upon it; what has nothing to do with the endpoint puts it off."""
    dropped = Ends(core).open(PRODUCER)

    def fail(slot: int, number: int) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(core, "_bury", fail)
        core.transact(core.drop, *dropped)
        with pytest.raises(type(error)):
            core.transact(lambda: None)
    core.transact(lambda: None)
    assert core.ledger.is_open(*dropped) != again


def test_what_a_signal_handler_raises_puts_it_off(core: Core) -> None:
    """Whatever it is: an error with a number as well."""
    dropped = Ends(core).open(PRODUCER)
    core.transact(core.drop, *dropped)

    def handle(signum: int, frame: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "from a handler")

    bury: Any = core._bury

    def interrupted(slot: int, number: int) -> None:
        signal.raise_signal(signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, handle)
    core._bury = interrupted  # type: ignore[method-assign]
    try:
        with pytest.raises(BrokenPipeError):
            core.transact(lambda: None)
        core._bury = bury  # type: ignore[method-assign]
        core.transact(lambda: None)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not core.ledger.is_open(*dropped)


def test_as_the_interpreter_ends_nothing_is_done(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exit hooks have done it, and modules may be gone."""
    dropped = Ends(core).open(PRODUCER)
    with monkeypatch.context() as patch:
        patch.setattr(core, "_is_finalizing", lambda: True)
        core.drop(*dropped)
    core.transact(lambda: None)
    assert core.ledger.is_open(*dropped)


def test_an_error_of_the_lock_itself_comes_through(core: Core) -> None:
    def acquire() -> bool:
        raise KeyError("mine")

    runtime: Any = core.runtime
    trylock, runtime.trylock = runtime.trylock, guard(acquire, acquire)
    with pytest.raises(KeyError, match="mine"):
        core.drop(*Ends(core).open(PRODUCER))
    runtime.trylock = trylock


@pytest.mark.parametrize("by", ["transact", "try_transact"])
def test_where_the_lock_is_busy_it_is_put_off(core: Core, by: str) -> None:
    dropped = Ends(core).open(PRODUCER)
    make_busy(core, 1)
    core.drop(*dropped)
    assert core.ledger.is_open(*dropped)
    if by == "transact":
        core.transact(lambda: None)
    else:
        core.try_transact(1, lambda: None)
    assert not core.ledger.is_open(*dropped)


def test_the_dropped_queue_is_closed(core: Core) -> None:
    core.transact(core.ledger.open, PRODUCER, "there:1")
    core.drop(core.queue_slot, 0)
    assert core.ledger.head[HANDLE] == 0
    assert core.ledger.state_name() == "abandoned"


def test_the_queue_is_dropped_when_a_process_that_is_started_has_its_slot(core: Core) -> None:
    core.transact(core.ledger.open, PRODUCER, "there:1")
    core.transact(core.close_queue)
    assert core.transact(core.ledger.open_process, 0, lambda slot: None) == core.queue_slot
    core.drop(core.queue_slot, 0)
    assert core.ledger.head[HANDLE] == 0
    assert core.ledger.state_name() == "abandoned"


def test_a_handle_that_is_not_the_only_one_is_no_end(core: Core) -> None:
    core.ledger.head[HANDLE] = 0
    core.drop(core.queue_slot, 0)
    assert core.ledger.state_name() == "open"


def test_closing_the_queue_twice(core: Core) -> None:
    core.transact(core.close_queue)
    assert core.ledger.state_name() == "done"
    slot, _ = core.transact(core.ledger.open, CONSUMER, "there:1")
    assert slot == core.queue_slot, "the slot has been given away"
    core.transact(core.close_queue)
    assert core.ledger.head[CONSUMERS] == 1


def test_a_dropped_queue_ends_its_endpoints() -> None:
    queue = IterableQueue[int].threaded()
    source = queue.get_consumer()
    queue.get_producer().put(1)  # dropped at once
    del queue
    gc.collect()
    assert source.get() == 1
    with pytest.raises(ProducerFailed, match="was dropped without close"):
        source.get()


# Where things are


def test_pids(core: Core) -> None:
    assert core.pid_of(1) == os.getpid()
    assert core.pid_of(0) == 0
    assert core.pid_of(-4711) == 4711
    assert core.pid_of(2) == 0, "the queue is no process"
    assert core.is_alive(1)


def test_what_threads_can_not_hand_on() -> None:
    queue = IterableQueue[int].threaded()
    for thing in (queue, queue.get_producer(), queue.get_consumer(), queue.get_worker()):
        with pytest.raises(TypeError, match="is for the threads of one process"):
            thing.__reduce__()


def test_elsewhere(core: Core) -> None:
    core.check_here()
    core.after_fork_in_child()
    with pytest.raises(EndpointElsewhere, match=f"the threads of process {os.getpid()}"):
        core.check_here()


def test_what_only_processes_do(core: Core) -> None:
    core.register()
    core.before_fork(())
    core.after_fork_in_parent()
    core.leave("was left")
    core.look_now_and_then()
    assert core.ledger.state_name() == "open"
    assert core.ledger.head[PRODUCERS] == 0


def test_a_nested_call_is_refused_and_told() -> None:
    """From `__del__` or a signal handler inside a transition of the same thread."""
    queue = IterableQueue[int].threaded(1)
    out = queue.get_producer()

    def nested() -> None:
        with pytest.raises(WouldDeadlock, match="nothing was changed"):
            out.put(1)

    queue._core.transact(nested)
    out.put(1)
    assert queue.qsize() == 1

"""What a fork does to the queues of a process: each is told before and after it, on both sides."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from iterable_queue import (
    Consumer,
    EndpointElsewhere,
    IterableQueue,
    Producer,
    ProducerFailed,
    _forks,
    _mutex,
)
from iterable_queue._cells import DROPPED_COPY, LINEAGE, SLOT_SIZE
from iterable_queue._directory import RECURSIVE, semaphore_names
from iterable_queue._errors import ChannelBroken
from iterable_queue._liveness import is_held
from iterable_queue._shared import SharedCore
from tests.conftest import FORKS, Processes, wait_until

FORK = multiprocessing.get_context("fork")


def run_python(code: str) -> str:
    """What a new interpreter prints that runs *code*."""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


class Told:
    """As much of a core as a fork has to do with: writes down what it is told."""

    leaks = None

    def __init__(self, error: type[Exception] | None = None) -> None:
        self.log: list[object] = []
        self.error = error

    def before_fork(self, arguments: tuple[object, ...]) -> None:
        self.log.append(arguments)
        if self.error is not None:
            raise self.error("told")

    def after_fork_in_parent(self) -> None:
        self.log.append("parent")

    def after_fork_in_child(self) -> None:
        self.log.append("child")

    def leave(self, how: str, cause: BaseException | None = None) -> None:
        """Children of multiprocessing leave all queues at their end."""


def track(told: Told) -> Told:
    core: Any = told
    _forks.track(core)
    return told


def fork_and_tell(processes: Processes, told: Told) -> list[object]:
    """Fork, and return what the child was told, as text."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        os.write(writer, repr(told.log).encode())
        os._exit(0)
    processes.watch(pid)
    os.close(writer)
    with os.fdopen(reader) as file:
        text = file.read()
    os.waitpid(pid, 0)
    found: list[object] = eval(text)
    return found


# Hooks


def test_importing_hooks_nothing() -> None:
    code = """
import os, sys
calls = []
def is_ours(hook):
    lock = getattr(sys.modules.get("iterable_queue._forks"), "_still", hook)
    owner = getattr(hook, "__self__", None)
    return owner is lock or (hook.__module__ or "").startswith("iterable_queue")
def register(**hooks):
    if any(map(is_ours, hooks.values())):
        calls.append(sorted(hooks))
os.register_at_fork = register
import iterable_queue, iterable_queue._forks, iterable_queue._endpoints, iterable_queue._queue
print(calls)
for _ in range(3):
    iterable_queue.IterableQueue.threaded()
    iterable_queue.IterableQueue()
print(calls)
"""
    assert run_python(code).splitlines() == [
        "[]",
        str([["after_in_child", "after_in_parent", "before"]] * 2),
    ]


def test_a_system_without_forks() -> None:
    code = """
import os
del os.register_at_fork
from iterable_queue import IterableQueue
iq = IterableQueue.threaded()
iq.close()
print(list(iq.get_consumer()))
"""
    assert run_python(code) == "[]\n"


@FORKS
def test_each_queue_is_told_of_each_fork(processes: Processes) -> None:
    told = [track(Told()) for _ in range(3)]
    assert fork_and_tell(processes, told[2]) == [(), "child"]
    assert [each.log for each in told] == [[(), "parent"]] * 3
    assert fork_and_tell(processes, told[0]) == [(), "parent", (), "child"]


@FORKS
@pytest.mark.parametrize("error", [ChannelBroken, EndpointElsewhere, OSError])
def test_a_broken_queue_does_not_keep_a_process_from_forking(
    error: type[Exception], processes: Processes
) -> None:
    """Nor the other queues from being told: OSError is of one that is out of descriptors, say."""
    broken, whole = track(Told(error)), track(Told())
    assert fork_and_tell(processes, whole) == [(), "child"]
    assert broken.log == whole.log == [(), "parent"]


def test_a_queue_that_is_gone_is_told_nothing() -> None:
    told: Any = Told()
    _forks.track(told)
    assert told in _forks.tracked()
    before = len(_forks.tracked())
    gone = weakref.ref(told)
    del told
    gc.collect()
    assert gone() is None
    assert len(_forks.tracked()) < before


# Arguments


def launch(process_obj: Any) -> tuple[object, ...]:
    """Where multiprocessing forks, there is a call of `_launch(process_obj)` on the stack."""

    def _launch(process_obj: Any) -> tuple[object, ...]:
        return _forks._arguments_of_child()

    return _launch(process_obj)


def test_the_arguments_of_the_child() -> None:
    one, two, three = object(), object(), object()
    process = FORK.Process(target=print, args=(one, [two]), kwargs={"key": three})
    assert launch(process) == (one, [two], three)
    assert launch(FORK.Process(target=print)) == ()
    assert launch(object()) == ()
    assert _forks._arguments_of_child() == ()


def test_the_launching_frame() -> None:
    def _launch(process_obj: object) -> FrameType | None:
        def deeper() -> FrameType | None:
            return _forks.launching_frame()

        return deeper()

    frame = _launch("what is started")
    assert frame is not None
    assert frame.f_locals["process_obj"] == "what is started"
    assert _forks.launching_frame() is None


def test_somebody_elses_launch_is_none() -> None:
    def _launch(rocket: object) -> FrameType | None:
        return _forks.launching_frame()

    assert _launch("rocket") is None


@FORKS
def test_multiprocessing_forks_with_its_arguments(processes: Processes) -> None:
    told, marker = track(Told()), object()
    processes.start(FORK.Process(target=id, args=(marker,)))
    assert processes.join() == [0]
    assert told.log == [(marker,), "parent"]


# Queues of threads


@FORKS
def test_a_threads_queue_stays_with_the_parent(processes: Processes) -> None:
    queue = IterableQueue[int].threaded()
    out, source = queue.get_producer(), queue.get_consumer()
    out.put(1)
    log = list[str]()

    def use() -> None:
        calls = (lambda: out.put(2), source.get, queue.get_producer, out.close, queue.close)
        for call in calls:
            try:
                call()
            except EndpointElsewhere as error:
                log.append(
                    (f"for the threads of process {os.getppid()}" in str(error) and "told") or ""
                )

    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        use()
        os.write(writer, repr(log).encode())
        os._exit(0)
    processes.watch(pid)
    os.close(writer)
    with os.fdopen(reader) as file:
        assert eval(file.read()) == ["told"] * 5
    os.waitpid(pid, 0)
    assert source.get() == 1
    out.close()
    queue.close()
    assert list(source) == []


# Queues of processes


def put_one(out: Producer[int]) -> None:
    with out:
        out.put(1)


def get_all(source: Consumer[int]) -> None:
    assert list(source) == [1]


@FORKS
def test_a_child_has_what_it_was_started_with_before_it_runs(processes: Processes) -> None:
    queue = IterableQueue[int]()
    out, source = queue.get_producer(), queue.get_consumer()
    processes.start(FORK.Process(target=put_one, args=(out,)))
    with pytest.raises(EndpointElsewhere):
        out.put(2)
    queue.close()
    assert list(source) == [1]
    assert processes.join() == [0]


@FORKS
def test_descriptors_do_not_add_up(processes: Processes) -> None:
    """However often a process forks and whatever it hands on."""
    queue = IterableQueue[int]()
    keeper = queue.get_producer()
    kept = None
    for n in range(6):
        out, source = queue.get_producer(), queue.get_consumer()
        adrift = queue.get_producer()
        processes.start(FORK.Process(target=put_one, args=(out,)))
        processes.start(FORK.Process(target=int))
        assert set(processes.join()) == {0}
        adrift.close()
        source.close()
        del out, source, adrift
        gc.collect()
        count = len(os.listdir("/proc/self/fd"))
        if n == 2:
            kept = count
    assert kept is not None
    # Each process object that is referred to has two descriptors of its own.
    assert len(os.listdir("/proc/self/fd")) - kept == 3 * 2 * 2
    keeper.close()


def put_pid(out: Producer[int]) -> None:
    with out:
        out.put(os.getpid())


@FORKS
def test_two_threads_fork_at_once(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each child has what it was started with, and not the other one's."""
    iq = IterableQueue[int]()
    outs = [iq.get_producer() for _ in range(2)]
    source = iq.get_consumer()
    iq.close()
    core = iq._core
    both = threading.Barrier(2)
    before_fork = core.before_fork

    def slowly(arguments: tuple[object, ...]) -> None:
        before_fork(arguments)
        try:
            both.wait(0.5)  # for the other thread, which must not come so far
        except threading.BrokenBarrierError:
            pass

    monkeypatch.setattr(core, "before_fork", slowly)
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=put_pid, args=(out,)) for out in outs]
    threads = [threading.Thread(target=child.start) for child in children]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for child in children:
        child.join(20)
    assert [child.exitcode for child in children] == [0, 0]
    assert sorted(source) == sorted(child.pid or 0 for child in children)


def die_at_once(endpoint: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def await_failure(source: Consumer[int]) -> None:
    try:
        source.get(timeout=30)
    except ProducerFailed:
        os._exit(0)
    os._exit(1)


@FORKS
def test_a_fork_waits_until_it_is_seen_that_who_has_the_lock_is_dead(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one that died between taking a semaphore and writing its name that takes a while."""
    monkeypatch.setattr(_mutex, "is_supported", lambda: False)
    iq = IterableQueue[int]()
    out, source = iq.get_producer(), iq.get_consumer()
    iq.close()
    core = iq._core
    assert isinstance(core, SharedCore)
    waiter = FORK.Process(target=await_failure, args=(source,))
    processes.start(waiter)  # it inherits the producer, and so may seem to have it
    wait_until(lambda: iq.statistics().blocked_consumers == 1, "the consumer waits")
    address = core.address
    pid = os.fork()
    if pid == 0:
        address.semlock._rebuild(0, RECURSIVE, 1, semaphore_names(address.token)[0]).acquire()
        os.kill(os.getpid(), signal.SIGKILL)
    processes.watch(pid)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    victim = FORK.Process(target=die_at_once, args=(out,))
    processes.start(victim)
    del out
    waiter.join(20)
    assert waiter.exitcode == 0


@FORKS
def test_a_child_shows_no_life_of_what_it_has_no_copy_of(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the lock could not be had before the fork, nor when the copy here was dropped."""
    iq = IterableQueue[int]()
    out = iq.get_producer()
    core = iq._core
    assert isinstance(core, SharedCore)
    [slot] = [endpoint.slot for endpoint in core.endpoints]
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    lineage = f"{core.address.path}/l{core.ledger.cells[slot * SLOT_SIZE + LINEAGE]}"
    assert is_held(lineage)

    def nothing(*_args: object) -> None:
        """What can't have the lock."""

    monkeypatch.setattr(core, "before_fork", nothing)
    monkeypatch.setattr(core, "drop", nothing)
    del out
    gc.collect()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    processes.watch(pid)
    core._drop_lineages()
    wait_until(lambda: not is_held(lineage), "the child has let go")
    os.close(reader)
    os.close(writer)
    os.waitpid(pid, 0)


@FORKS
def test_a_child_keeps_what_its_parent_has_dropped_since(processes: Processes) -> None:
    iq = IterableQueue[int]()
    out = iq.get_producer()
    core = iq._core
    assert isinstance(core, SharedCore)
    [slot] = [endpoint.slot for endpoint in core.endpoints]
    after_fork_in_child = core.after_fork_in_child
    reader, writer = os.pipe()
    over, end = os.pipe()

    def late() -> None:
        os.read(reader, 1)  # until the parent has dropped its copy
        after_fork_in_child()

    core.after_fork_in_child = late  # type: ignore[method-assign]
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        os.close(end)
        os.read(over, 1)
        os._exit(0)
    processes.watch(pid)
    del core.after_fork_in_child
    lineage = f"{core.address.path}/l{core.ledger.cells[slot * SLOT_SIZE + LINEAGE]}"
    del out
    gc.collect()
    assert core.ledger.view(slot).flags & DROPPED_COPY
    os.write(writer, b"x")
    wait_until(lambda: "adrift" in iq.explain(), "it is adrift")
    assert is_held(lineage)
    for fd in (reader, writer, over, end):
        os.close(fd)
    os.waitpid(pid, 0)
    wait_until(lambda: not is_held(lineage), "the child has ended")


def fork_and_wait(statuses: list[int]) -> None:
    """Fork a child that ends with 0 if another thread of it can have the lock of forks."""
    pid = os.fork()
    if pid == 0:
        try:
            free: list[bool] = []
            thread = threading.Thread(
                target=lambda: free.append(_forks.still().acquire(blocking=False))  # type: ignore[attr-defined]  # pyright: ignore
            )
            thread.start()
            thread.join(20)
            os._exit(0 if free == [True] else 1)
        finally:
            os._exit(2)
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


@FORKS
def test_a_fork_waits_for_the_thread_that_is_making_a_queue() -> None:
    statuses: list[int] = []
    forker = threading.Thread(target=fork_and_wait, args=(statuses,))
    with _forks.still():
        forker.start()
        forker.join(0.3)  # it must not come so far
        assert statuses == []
    forker.join(20)
    assert statuses == [0]


@FORKS
def test_a_signal_handler_that_raises_in_a_hook_leaves_the_lock_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a hook raises is told to `sys.unraisablehook`, and the fork goes on."""
    told: list[object] = []

    def interrupted() -> list[Any]:
        raise KeyboardInterrupt

    _forks.still()  # else nothing is hooked, if no test before has made a queue
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    monkeypatch.setattr(_forks, "tracked", interrupted)
    statuses: list[int] = []
    fork_and_wait(statuses)
    monkeypatch.undo()
    assert statuses == [0]
    assert told
    other = threading.Thread(target=fork_and_wait, args=(statuses,))
    other.start()
    other.join(20)
    assert statuses == [0, 0]


def test_what_can_not_wait_for_a_fork_is_done_all_the_same() -> None:
    done: list[int] = []
    thread = threading.Thread(target=_forks.undisturbed, args=(done.append, 1))
    with _forks.still():
        thread.start()
        thread.join(20)
        assert done == [1]
    _forks.undisturbed(done.append, 2)
    assert done == [1, 2]
    with pytest.raises(KeyError, match="mine"):
        _forks.undisturbed(dict[str, int]().__getitem__, "mine")


def test_a_queue_that_fails_to_hear_of_a_fork_does_not_keep_others_from_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = Told(), Told()

    def fail() -> None:
        raise OSError("told")

    first.after_fork_in_child = fail  # type: ignore[method-assign]
    monkeypatch.setattr(_forks, "tracked", lambda: [first, second])
    with pytest.raises(OSError, match="told"):
        _forks._after_in_child()
    assert second.log == ["child"]


def test_a_set_to_which_another_thread_adds() -> None:
    """As when a thread makes a queue, or an endpoint, while another one forks."""
    here = [Told(), Told(), Told()]
    found = weakref.WeakSet(here[:2])
    late = iter([here[2]])

    class Growing(weakref.WeakSet[Told]):
        def __iter__(self) -> Iterator[Told]:
            for told in super().__iter__():
                yield told
                self.update(late)

    assert len(_forks.members_of(Growing(found))) == 3


def test_a_set_is_not_asked_for_ever() -> None:
    class Deep(weakref.WeakSet[Told]):
        def __iter__(self) -> Iterator[Told]:
            raise RecursionError

    with pytest.raises(RecursionError):
        _forks.members_of(Deep())

"""How a process leaves its queues as it ends, and what the others are told of that."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iterable_queue import IterableQueue, Producer, ProducerFailed, _exits, _forks
from tests.conftest import FORKS, Context, Processes

FORK = multiprocessing.get_context("fork")


def run_python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    """A new interpreter that runs *code*."""
    return subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=30, check=False
    )


# Hooks


WATCH_HOOKS = """
import atexit, multiprocessing.util as util
ours = lambda f: getattr(f, "__module__", "").startswith("iterable_queue")
log = []
register, finalize, after = atexit.register, util.Finalize, util.register_after_fork
class Finalize(finalize):
    def __init__(self, obj, callback, *args, **kwargs):
        if ours(callback): log.append("finalizer")
        super().__init__(obj, callback, *args, **kwargs)
def watch_register(f, *args, **kwargs):
    if ours(f): log.append("atexit")
    return register(f, *args, **kwargs)
def watch_after(obj, f):
    if ours(f): log.append("after fork")
    after(obj, f)
atexit.register, util.Finalize, util.register_after_fork = watch_register, Finalize, watch_after
import iterable_queue
print(log)
iterable_queue.IterableQueue.threaded()
print(log)
queues = [iterable_queue.IterableQueue() for _ in range(3)]
print(sorted(log))
"""


def test_importing_hooks_nothing_and_queues_hook_once() -> None:
    """Threads' queues need no hook: nobody else is to be told."""
    lines = run_python(WATCH_HOOKS).stdout.splitlines()
    assert lines == ["[]", "[]", "['after fork', 'atexit', 'finalizer']"]


def test_a_package_that_comes_later_is_hooked_then() -> None:
    pytest.importorskip("billiard")
    code = """
from iterable_queue import IterableQueue, _exits
IterableQueue()
print(sorted(util.__name__ for util in _exits._hooked))
import billiard
IterableQueue(context=billiard)
print(sorted(util.__name__ for util in _exits._hooked))
"""
    assert run_python(code).stdout.splitlines() == [
        "['multiprocessing.util']",
        "['billiard.util', 'multiprocessing.util']",
    ]


def test_a_package_that_is_imported_anew_is_hooked_anew(tmp_path: Path) -> None:
    """As after a test that ran pytest inside itself, which restores `sys.modules`."""
    script = tmp_path / "anew.py"
    script.write_text("""
import multiprocessing, sys
from iterable_queue import IterableQueue, ProducerFailed
def work(out):
    out.put(1)
if __name__ == "__main__":
    for _ in range(2):
        queue = IterableQueue(context=multiprocessing.get_context("fork"))
        consumer, producer = queue.get_consumer(), queue.get_producer()
        queue.close()
        child = multiprocessing.get_context("fork").Process(target=work, args=(producer,))
        child.start()
        try:
            print(list(consumer))
        except ProducerFailed as error:
            print(error)
        child.join(20)
        for name in [name for name in sys.modules if name.startswith("multiprocessing.")]:
            del sys.modules[name]
        del sys.modules["multiprocessing"]
        import multiprocessing
""")
    found = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=60, check=False
    )
    assert not found.stderr
    lines = found.stdout.splitlines()
    assert len(lines) == 2
    assert all("was left open when its process returned" in line for line in lines)


# What is told


class Leaver:
    """As much of a core as an exit has to do with."""

    leaks = None

    def __init__(self) -> None:
        self.left: list[tuple[str, BaseException | None]] = []

    def leave(self, how: str, cause: BaseException | None = None) -> None:
        self.left.append((how, cause))

    def before_fork(self, arguments: tuple[object, ...]) -> None:
        pass

    def after_fork_in_parent(self) -> None:
        pass

    after_fork_in_child = after_fork_in_parent


@pytest.fixture
def leaver(monkeypatch: pytest.MonkeyPatch) -> Leaver:
    """The only one that is told when the exit hook is called here."""
    leaver = Leaver()
    monkeypatch.setattr(_forks, "tracked", lambda: [leaver])
    for name in ("last_exc", "last_value"):
        monkeypatch.delattr(sys, name, raising=False)
    return leaver


def test_it_returned(leaver: Leaver) -> None:
    _exits._leave_all()
    assert leaver.left == [("was left open when its process returned", None)]


@pytest.mark.parametrize("code", [None, 0])
def test_sys_exit_with_success_is_a_return(leaver: Leaver, code: int | None) -> None:
    try:
        sys.exit(code)
    except SystemExit:
        _exits._leave_all()
    assert leaver.left == [("was left open when its process returned", None)]


@pytest.mark.parametrize("code", [1, "wrong"])
def test_sys_exit_with_failure_is_an_error(leaver: Leaver, code: int | str) -> None:
    try:
        sys.exit(code)
    except SystemExit as error:
        _exits._leave_all()
        told = error
    assert leaver.left == [(f"was left open when its process ended by SystemExit: {code}", told)]


def test_an_error_in_the_last_function(leaver: Leaver) -> None:
    try:
        raise ValueError("too much")
    except ValueError as error:
        _exits._leave_all()
        told = error
    assert leaver.left == [("was left open when its process ended by ValueError: too much", told)]


def test_an_error_that_the_interpreter_printed(
    leaver: Leaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = KeyError("k")
    monkeypatch.setattr(sys, "last_value", error, raising=False)
    _exits._leave_all()
    assert leaver.left == [("was left open when its process ended by KeyError: 'k'", error)]


class Torn:
    """One that is interrupted while it is left."""

    leaks = None

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def leave(self, how: str, cause: BaseException | None = None) -> None:
        raise self._error


@pytest.mark.parametrize("error", [KeyboardInterrupt("first"), OSError("first")])
def test_a_queue_that_could_not_be_left_does_not_keep_the_others(
    leaver: Leaver, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    cores = [Torn(error), leaver, Torn(OSError("second"))]
    monkeypatch.setattr(_forks, "tracked", lambda: cores)
    with pytest.raises(type(error), match="first"):
        _exits._leave_all()
    assert leaver.left == [("was left open when its process returned", None)]


# In processes


def use_and(out: Producer[int], end: Callable[[], object]) -> None:
    out.put(1)
    end()


def raise_value_error() -> None:
    raise ValueError("too much")


def nothing() -> None:
    pass


def sys_exit_1() -> None:
    sys.exit(1)


def sys_exit_0() -> None:
    sys.exit(0)


def os_exit_3() -> None:
    os._exit(3)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_thread() -> None:
    """The main thread returns, another one goes on and raises later."""
    threading.Thread(target=nothing).start()


ENDS: dict[Callable[[], None], str] = {
    nothing: "was left open when its process returned",
    sys_exit_0: "was left open when its process returned",
    sys_exit_1: "was left open when its process ended by",
    raise_value_error: "was left open when its process ended by",
    os_exit_3: "ended by os._exit(3) without close()",
    kill: "was killed by SIGKILL without close()",
    in_thread: "was left open when its process returned",
}


@pytest.mark.parametrize("end", ENDS)
def test_how_a_producers_process_ended_is_told(
    context: Context, processes: Processes, end: Callable[[], None]
) -> None:
    queue = IterableQueue[int]()
    source = queue.get_consumer()
    process = processes.start(context.Process(target=use_and, args=(queue.get_producer(), end)))
    queue.close()
    assert source.get(timeout=20) == 1
    with pytest.raises(ProducerFailed) as told:
        source.get(timeout=20)
    (failure,) = told.value.failures
    text = str(failure)
    assert f"producer 2, made at {__file__}:" in text
    ways = [ENDS[end]]
    if "without" in ways[0] and context.get_start_method() == "forkserver":
        # The server has asked for the exit status, and nobody else can.
        ways.append("was killed by a signal, or called os._exit without close()")
    assert any(f"(pid {process.pid}), {way}" in text for way in ways)
    processes.join()


@FORKS
def test_an_uncaught_exception_is_told_with_its_traceback(processes: Processes) -> None:
    queue = IterableQueue[int]()
    source = queue.get_consumer()
    processes.start(FORK.Process(target=use_and, args=(queue.get_producer(), raise_value_error)))
    queue.close()
    source.get(timeout=20)
    with pytest.raises(ProducerFailed) as told:
        source.get(timeout=20)
    (failure,) = told.value.failures
    assert "ended by ValueError: too much" in str(failure)
    assert type(failure.__cause__) is ValueError
    assert "in raise_value_error" in str(failure.__cause__.__cause__)
    processes.join()


MAIN = """
import sys
from iterable_queue import IterableQueue
iq = IterableQueue()
out, source = iq.get_producer(), iq.get_consumer()
out.put(1)
print(iq._core.address.path, flush=True)
{end}
"""


@pytest.mark.parametrize("end", ["pass", "1 / 0", "sys.exit(3)", "iq.close(); out.close()"])
def test_a_main_program_leaves_nothing(end: str) -> None:
    """No directory, no semaphore, and no word of complaint but its own error's."""
    run = run_python(MAIN.format(end=end) + "\n")
    path = Path(run.stdout.strip())
    assert path.name.startswith("iterable_queue-")
    assert not path.exists()
    assert list(Path("/dev/shm").glob(f"sem.iq-{path.name.rpartition('-')[2]}-*")) == []
    assert ("ZeroDivisionError" in run.stderr) == (end == "1 / 0")
    assert (run.stderr == "") == (end != "1 / 0")


def test_a_shell_sees_that_it_was_interrupted() -> None:
    """By the signal of which the process dies in the end, as it would without a queue."""
    run = run_python(MAIN.format(end="raise KeyboardInterrupt") + "\n")
    assert run.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in run.stderr


def test_it_leaves_before_its_modules_are_gone() -> None:
    """Objects that live to the very end, in globals, classes and cycles, are no trouble."""
    code = """
from iterable_queue import IterableQueue
class Holder: pass
Holder.iq = IterableQueue()
Holder.out = Holder.iq.get_producer()
Holder.out.put(1)
cycle = [Holder]
cycle.append(cycle)
iterator = iter(Holder.iq.get_consumer())
next(iterator)
threads = IterableQueue.threaded()
out = threads.get_producer()
out.put(2)
"""
    run = run_python(code)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_atexit_functions_of_the_users_may_still_use_the_queue() -> None:
    """Those registered after the queue was made run before it is left."""
    code = """
import atexit
from iterable_queue import IterableQueue
iq = IterableQueue()
out, source = iq.get_producer(), iq.get_consumer()
@atexit.register
def last():
    out.put("last")
    print(source.get(timeout=5))
"""
    run = run_python(code)
    assert (run.returncode, run.stdout, run.stderr) == (0, "last\n", "")


def _put_at_exit(out: Producer[str]) -> None:
    @atexit.register
    def last() -> None:
        with out:
            out.put("last")


@pytest.mark.skipif(
    sys.version_info < (3, 13), reason="up to Python 3.12, only spawned children have such hooks"
)
def test_atexit_functions_of_any_child_may_put(context: Context, processes: Processes) -> None:
    check_puts_at_exit(context, processes)


def test_atexit_functions_of_a_spawned_child_may_put(processes: Processes) -> None:
    check_puts_at_exit(multiprocessing.get_context("spawn"), processes)


def check_puts_at_exit(context: Context, processes: Processes) -> None:
    iq = IterableQueue[str]()
    processes.start(context.Process(target=_put_at_exit, args=(iq.get_producer(),)))
    iq.close()
    with iq.get_consumer() as source:
        assert list(source) == ["last"]
    assert processes.join() == [0]


def _fail_in_a_forked_child(out: Producer[int]) -> None:
    child = FORK.Process(target=_fail, args=(out,))
    child.start()
    child.join(30)


def _fail(out: Producer[int]) -> None:
    out.put(1)
    raise ValueError("on purpose")


def test_a_forked_child_of_a_spawned_one_tells_how_it_ended(processes: Processes) -> None:
    """It runs no `atexit` hooks, though its stack is that of its parent, which does."""
    iq = IterableQueue[int]()
    spawn = multiprocessing.get_context("spawn")
    processes.start(spawn.Process(target=_fail_in_a_forked_child, args=(iq.get_producer(),)))
    iq.close()
    with iq.get_consumer() as source:
        assert source.get(timeout=30) == 1
        with pytest.raises(ProducerFailed, match="ended by ValueError: on purpose"):
            source.get(timeout=30)
    assert processes.join() == [0]


def test_after_leaving_calls_say_so() -> None:
    code = """
import atexit
from iterable_queue import IterableQueue
@atexit.register
def late():
    for call in (lambda: out.put(1), iq.get_producer, source.get):
        try:
            call()
        except Exception as error:
            print(type(error).__name__, "has left the queue" in str(error))
iq = IterableQueue()
out, source = iq.get_producer(), iq.get_consumer()
"""
    run = run_python(code)
    assert run.stderr == ""
    assert run.stdout.splitlines() == ["ChannelBroken True"] * 3


@FORKS
@pytest.mark.parametrize("package", ["multiprocess", "billiard"])
def test_each_package_runs_the_hook(processes: Processes, package: str) -> None:
    module: Any = pytest.importorskip(package)
    queue = IterableQueue[int](context=module)
    source = queue.get_consumer()
    context = module.get_context("fork")
    processes.start(context.Process(target=use_and, args=(queue.get_producer(), nothing)))
    queue.close()
    assert source.get(timeout=20) == 1
    with pytest.raises(ProducerFailed, match="was left open when its process returned"):
        source.get(timeout=20)
    assert processes.join() == [0]

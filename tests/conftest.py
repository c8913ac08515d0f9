"""What every test runs under, and the fixtures that they share.

Three things hold for every test, without asking:

- It ends. After `TIME_LIMIT_S` (or its marker `time_limit(seconds)`) it fails with the stacks of
  all threads. Should even that not end it, `faulthandler_timeout` ends the test process.
- It leaves nothing: no process below this one, no thread, no directory of a queue. Whatever is
  still on its way out is given `GRACE_S` to go. A test that failed anyway is not asked.
- Nothing that it left goes on: processes left are killed, so the next test starts clean.

Helpers for test modules (`from tests.conftest import ...`): `wait_until`, `lives`,
`START_METHODS`, `FORKS`. Fixtures: `processes`, `start_method`, `context`. A fixture of a wider
scope must start nothing: that would be taken for a leak of the first test that asks for it.

The processes of a test are found by walking `/proc` down from this process, which is made the one
that orphans fall to (a "child subreaper"): a grandchild whose parent was killed is found too.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.context import ForkContext, ForkServerContext, SpawnContext
from pathlib import Path
from types import FrameType
from typing import Any, Final, Protocol, TypeAlias, TypeVar
from zlib import crc32

import pytest

T = TypeVar("T")

TIME_LIMIT_S = 60.0
"""How long each phase of a test (set-up, call, tear-down) may take, unless its marker says else."""

GRACE_S = 5.0
"""How long that which a test started may take to be gone after it."""

_HARD_LIMIT_MARGIN_S = 60.0
"""How much longer a test process lives than a time limit that did not end its test."""

_FRAMES = 12
"""How many of the innermost frames of each thread are shown."""

_PR_SET_CHILD_SUBREAPER = 36
"""From Linux's <sys/prctl.h>."""


# Waiting


def wait_until(fact: Callable[[], T], what: str, timeout: float = 20.0) -> T:
    """Wait for *fact* to return something true, and return that; fail the test after *timeout* s.

    This is the way to wait for anything that can't wake the test itself. *what* names the fact in
    the failure's text.
    """
    deadline = time.monotonic() + timeout
    while not (found := fact()):
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {timeout:g} s")
        time.sleep(0.002)
    return found


def list_gate(cells: Any, index: int) -> Callable[[bool], bool]:
    """`_fence.gate` for cells that are a list."""

    def take(block: bool) -> bool:
        assert not block
        if not cells[index]:
            return False
        cells[index] -= 1
        return True

    return take


def lives(pid: int) -> bool:
    """True while process *pid* runs; False once it has ended, though nobody has waited for it."""
    return _parent_of(pid) is not None


# The time limit


@contextmanager
def _time_limit(item: pytest.Item, phase: str) -> Generator[None]:
    """Raise in the main thread once the limit is over, and again each second until it is out.

    The timer is not inherited by forked children. A test that uses SIGALRM itself disarms it; then
    only `faulthandler_timeout` is left.
    """
    marker = item.get_closest_marker("time_limit")
    limit = float(marker.args[0]) if marker else TIME_LIMIT_S
    owner = os.getpid()

    def expire(_signum: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            # Not an Exception: code under test that catches those must not swallow it.
            pytest.fail(f"time limit: {phase} took over {limit:g} s\n{_stacks(frame)}")

    previous = signal.signal(signal.SIGALRM, expire)
    if limit > TIME_LIMIT_S:
        # Beyond what `faulthandler_timeout` in the configuration allows for.
        margin = limit + _HARD_LIMIT_MARGIN_S
        faulthandler.dump_traceback_later(margin, exit=True, file=item.config.stash[_stderr])
    signal.setitimer(signal.ITIMER_REAL, limit, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, previous)


def _stacks(main: FrameType | None) -> str:
    """Where each thread is; *main* is the frame that the signal interrupted."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts: list[str] = []
    for ident, current in sys._current_frames().items():
        frame = main if ident == threading.main_thread().ident and main is not None else current
        stack = "".join(traceback.format_stack(frame)[-_FRAMES:])
        parts.append(f"thread {names.get(ident, ident)}:\n{stack}")
    return "\n".join(parts)


# What a test may not leave


class _World:
    """What could be left: the processes below this one, its threads, the queues' directories."""

    def __init__(self) -> None:
        self.processes = _descendants() - _helpers()
        self.threads = _threads()
        self.directories = _directories()

    def left_since(self, before: _World, pids: set[int]) -> list[str]:
        """What is here now and was not *before*; directories only those made by one of *pids*."""
        found = [f"process {_describe(pid)}" for pid in self.processes - before.processes]
        found += [f"thread {t.name}" for t in self.threads - before.threads]
        found += [
            f"directory {path}"
            for path in self.directories - before.directories
            if _maker_of(path) in pids
        ]
        return found


def _descendants() -> set[int]:
    """The pids of all processes below this one that live; the dead who wait for `join` do not."""
    found: set[int] = set()
    unseen = [os.getpid()]
    while unseen:
        more = {pid for pid in _children_of(unseen.pop()) if _parent_of(pid) is not None} - found
        found |= more
        unseen += more
    return found


def _children_of(pid: int) -> set[int]:
    """The pids of the children of *pid*, dead ones too that it has not waited for."""
    found: set[int] = set()
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                found.update(map(int, file.read().split()))
    except OSError:
        if not os.path.exists("/proc/thread-self/children"):
            # Not every kernel lists them.
            pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
            return {other for other in pids if _parent_of(other) == pid}
    return found


def _parent_of(pid: int) -> int | None:
    """The pid of the parent of *pid*, or None where no process of that pid lives."""
    try:
        # "pid (command) state parent ...", where the command may hold anything.
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:  # gone
        return None
    return None if fields[0] in {"Z", "X"} else int(fields[1])


KEPT: Final[set[int]] = set()
"""The pids of what a fixture of a whole module has started, and ends."""


def _helpers() -> set[int]:
    """The pids of that, and of what multiprocessing and its kin keep for the whole session."""
    found = {
        _internal(package, module, name, attribute)
        for package in ("multiprocessing", "multiprocess")
        for module, name, attribute in (
            ("forkserver", "_forkserver", "_forkserver_pid"),
            ("resource_tracker", "_resource_tracker", "_pid"),
        )
    }
    return KEPT | {pid for pid in found if isinstance(pid, int)} | _helpers_of_billiard()


def _helpers_of_billiard() -> set[int]:
    """Likewise; billiard does not keep their pids, so they are known by their command lines."""
    if "billiard" not in sys.modules:
        return set()
    return {
        pid
        for pid in _descendants()
        if _is_helper_of_billiard(pid)
        # What a fork server has forked has its command line as well.
        and not _is_helper_of_billiard(_parent_of(pid) or 0)
    }


def _is_helper_of_billiard(pid: int) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # gone
        return False
    return any(
        b"from billiard.%s import main" % module in command
        for module in (b"forkserver", b"semaphore_tracker")
    )


def _threads() -> set[threading.Thread]:
    """The living threads, but for those that pass on descriptors, which stay for the session."""
    kept = {
        _internal(package, "resource_sharer", "_resource_sharer", "_thread")
        for package in ("multiprocessing", "multiprocess", "billiard")
    }
    return {thread for thread in threading.enumerate() if thread not in kept}


def _internal(package: str, module: str, name: str, attribute: str) -> object:
    """What *package* keeps in a place of its own, or None where that was never made."""
    owner: object = getattr(sys.modules.get(f"{package}.{module}"), name, None)
    found: object = getattr(owner, attribute, None)
    return found


def _directories() -> set[Path]:
    bases = {Path("/dev/shm"), Path(tempfile.gettempdir())}
    start = f"iterable_queue-{os.getuid()}-"
    return {base / name for base in bases for name in os.listdir(base) if name.startswith(start)}


def _maker_of(directory: Path) -> int:
    """The pid in `iterable_queue-<uid>-<pid>-<random>`; 0 where the name has no pid."""
    fields = directory.name.split("-")
    return int(fields[2]) if len(fields) > 2 and fields[2].isdigit() else 0


def _describe(pid: int) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return f"{pid}, gone by now"
    return f"{pid}: {command.replace(bytes(1), b' ').decode(errors='replace').strip()}"


def _end(pids: set[int]) -> None:
    for pid in pids & _descendants():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


# The hooks

_before = pytest.StashKey[_World]()
_pids = pytest.StashKey[set[int]]()
_failed = pytest.StashKey[bool]()
_stderr = pytest.StashKey[int]()
_at_start = pytest.StashKey[set[int]]()


def pytest_xdist_auto_num_workers() -> int:
    """Most of these tests wait more than they compute."""
    return 3 * len(os.sched_getaffinity(0))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of tests under each start method, let half be run under spawn, the others under forkserver.

    Which it is depends on nothing but the test's name, so all workers agree. The rest has its turn
    with `-m second`.
    """
    for item in items:
        for method, turn in (("forkserver", 1), ("spawn", 0)):
            if method in item.name.partition("[")[2]:
                test = item.nodeid.replace(method, "")
                item.add_marker("first" if crc32(test.encode()) % 2 == turn else "second")
                break


def pytest_collection_finish() -> None:
    """Keep the collector from looking through thousands of tests whenever one leaves a cycle."""
    gc.collect()
    gc.freeze()


def pytest_configure(config: pytest.Config) -> None:
    """Let orphans fall to this process, where they are found."""
    config.stash[_stderr] = os.dup(2)  # not captured: for a last word
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    config.stash[_at_start] = _descendants()
    # What it forks has it then.
    multiprocessing.set_forkserver_preload(["pytest"])
    if hasattr(config, "workerinput"):
        _keep_from_children(_pipes())


def _pipes() -> list[int]:
    """The descriptors that are pipes: at this early time, those to xdist's controller."""
    opened = {fd: Path(f"/proc/self/fd/{fd}") for fd in map(int, os.listdir("/proc/self/fd"))}
    return [fd for fd, path in opened.items() if fd > 2 and path.is_fifo()]


def _keep_from_children(descriptors: list[int]) -> None:
    """Give forked children something else instead of *descriptors*.

    Else a child that outlives a test process that had to be ended would hide that end from the
    controller, which would wait for it for ever.
    """
    null = os.open(os.devnull, os.O_RDWR)

    def replace() -> None:
        for descriptor in descriptors:
            os.dup2(null, descriptor, inheritable=False)

    os.register_at_fork(after_in_child=replace)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End what a test process that had to be ended has left behind."""
    kept = config.stash[_at_start] | (_helpers() - KEPT)
    _end(_descendants() - kept)
    os.close(config.stash[_stderr])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    item.stash[_before] = _World()
    item.stash[_pids] = {os.getpid()}
    with _time_limit(item, "set-up"):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    with _time_limit(item, "the test"):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if not report.passed:
        item.stash[_failed] = True
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    with _time_limit(item, "tear-down"):
        try:
            return (yield)
        finally:
            _check_left(item)


def _check_left(item: pytest.Item) -> None:
    """Kill the processes that the test left; fail it for anything left, unless it has failed."""
    if isinstance(item, pytest.Function):
        item.funcargs.clear()  # a queue that a fixture gave is not held by pytest
    before, pids = item.stash[_before], item.stash[_pids]
    deadline = time.monotonic() + (0.0 if item.stash.get(_failed, False) else GRACE_S)
    pause = 0.001
    while left := (world := _World()).left_since(before, pids):
        if time.monotonic() > deadline:
            break
        gc.collect()  # what is in a cycle closes only now
        time.sleep(pause)
        pause = min(2 * pause, 0.1)
    _end(world.processes - before.processes)
    if left and not item.stash.get(_failed, False):
        where = [_stacks(None)] if world.threads - before.threads else []
        pytest.fail("\n".join(["the test left behind:", *sorted(left), *where]))


# Fixtures


class Process(Protocol):
    """What the `Process` classes of every context have in common."""

    def start(self) -> None: ...
    def join(self, timeout: float | None = None) -> None: ...
    @property
    def pid(self) -> int | None: ...
    @property
    def exitcode(self) -> int | None: ...


P = TypeVar("P", bound=Process)


class Processes:
    """Starts processes, waits for them, and ends at the test's end those that are left, by pid."""

    def __init__(self, pids: set[int]) -> None:
        self._pids = pids
        self._started: list[Process] = []

    def start(self, process: P) -> P:
        """Start *process* and return it."""
        process.start()
        self._started.append(process)
        self.watch(process.pid)
        return process

    def watch(self, pid: int | None) -> None:
        """Count *pid*, started in some other way, among the processes of this test."""
        assert pid is not None, "not started"
        self._pids.add(pid)

    def join(self, timeout: float = 30.0) -> list[int | None]:
        """Wait for all that were started and return their exit codes, in the order of starting."""

        def ended() -> bool:
            # Not `join(timeout)`: that waits for the end of a pipe, which never comes while a
            # process forked by this one has a copy of it.
            return all(process.exitcode is not None for process in self._started)

        wait_until(ended, f"the end of {[p.pid for p in self._started]}", timeout)
        return [process.exitcode for process in self._started]

    def end(self) -> None:
        """Kill what still runs, and wait until it is gone."""
        _end(self._pids)
        for process in self._started:
            with suppress(ValueError):  # the test closed it, so it has ended
                process.join(GRACE_S)


@pytest.fixture
def processes(request: pytest.FixtureRequest) -> Iterator[Processes]:
    """Starts the processes of a test; whatever still runs at its end is killed, by pid."""
    node: pytest.Item = request.node
    started = Processes(node.stash[_pids])
    try:
        yield started
    finally:
        started.end()


FORKS = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"
)
"""For tests that fork: under xdist there are always threads, of which 3.12 and later warn."""

START_METHODS = (pytest.param("fork", marks=FORKS), "spawn", "forkserver")
"""All start methods, as the parameters of a test or a fixture."""

Context: TypeAlias = ForkContext | SpawnContext | ForkServerContext


@pytest.fixture(params=START_METHODS)
def start_method(request: pytest.FixtureRequest) -> str:
    """Each start method in turn."""
    method: str = request.param
    return method


@pytest.fixture
def context(start_method: str) -> Context:
    """The standard library's context of each start method in turn."""
    match start_method:
        case "fork":
            return multiprocessing.get_context("fork")
        case "spawn":
            return multiprocessing.get_context("spawn")
        case _:
            return multiprocessing.get_context("forkserver")

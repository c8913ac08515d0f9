"""The mutex that the kernel lets go of when its holder dies: threads, processes, deaths, refusals.

A thread's death is a holder's death too: the kernel marks the mutex as that thread ends. Whether
the mutex is free is asked by another thread, since the one that has it may take it again.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import multiprocessing
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from iterable_queue import _mutex
from iterable_queue._channels import log
from iterable_queue._mutex import Mutex, is_supported, make
from iterable_queue._runtime import is_lock_busy
from iterable_queue._seams import Lock
from tests.conftest import FORKS, Process, Processes, wait_until

FORK = multiprocessing.get_context("fork")

needed = pytest.mark.skipif(not is_supported(), reason="there are no such mutexes here")

PATIENCE_S = 20.0
"""For what comes at once when all is well."""

WAITERS = 1 << 31
"""The bit of a mutex's first word, a futex, by which a thread says that it goes to sleep for it."""


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = str(tmp_path / "mutex")
    make(path)
    return path


def trying(path: str) -> Lock:
    return Mutex(path).trying()


def waiting(path: str) -> Lock:
    return Mutex(path).waiting(PATIENCE_S)


@pytest.fixture(params=[trying, waiting])
def way(request: pytest.FixtureRequest) -> Callable[[str], Lock]:
    """Each kind of guard in turn."""
    way: Callable[[str], Lock] = request.param
    return way


def in_thread(call: Callable[[], object]) -> None:
    """Do *call* in another thread, which has ended for the kernel as well."""
    tids = list[int]()

    def run() -> None:
        tids.append(threading.get_native_id())
        call()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    wait_until(lambda: not os.path.exists(f"/proc/self/task/{tids[0]}"), "the thread's end")


def is_free(path: str) -> bool:
    """Whether another thread gets it at once."""
    found = list[bool]()

    def look() -> None:
        try:
            with trying(path):
                found.append(True)
        except KeyError as error:
            if not is_lock_busy(error):
                raise
            found.append(False)

    in_thread(look)
    (free,) = found
    return free


def word(path: str) -> int:
    return int.from_bytes(Path(path).read_bytes()[:4], sys.byteorder)


# Processes that hold it


def stay_inside(path: str, inside: Path) -> None:
    """Take the mutex, make the file *inside*, and never come out."""
    with waiting(path):
        inside.touch()
        while True:
            signal.pause()


def stay_between(path: str, inside: Path) -> None:
    """Take the mutex of a dead holder, and never come to say that it is consistent."""
    library: Any = ctypes.CDLL(None)
    mutex = Mutex(path)
    assert library.pthread_mutex_trylock(mutex._at) == errno.EOWNERDEAD
    inside.touch()
    while True:
        signal.pause()


class Inside:
    """Processes inside the mutex at *path*, one at a time."""

    def __init__(self, path: str, processes: Processes, tmp_path: Path) -> None:
        self.path = path
        self._processes = processes
        self._files = tmp_path
        self._count = 0

    def start(self, act: Callable[[str, Path], None] = stay_inside) -> Process:
        """A process that does *act*, and is inside by now."""
        self._count += 1
        inside = self._files / f"inside.{self._count}"
        process = self._processes.start(FORK.Process(target=act, args=(self.path, inside)))
        wait_until(inside.exists, "the process is inside")
        return process

    def kill(self, process: Process) -> None:
        """Kill it, and wait until it has ended."""
        os.kill(process.pid or 0, signal.SIGKILL)
        wait_until(lambda: process.exitcode is not None, "the process's end")
        assert process.exitcode == -signal.SIGKILL


@pytest.fixture
def inside(path: str, processes: Processes, tmp_path: Path) -> Inside:
    return Inside(path, processes, tmp_path)


# Taking it and letting it go


@needed
def test_it_is_held_inside_the_block_only(path: str, way: Callable[[str], Lock]) -> None:
    guard = way(path)
    assert is_free(path)
    for _ in range(3):
        with guard:
            assert not is_free(path)
        assert is_free(path)


@needed
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyError, KeyboardInterrupt, SystemExit])
def test_it_is_let_go_by_an_error(
    path: str, way: Callable[[str], Lock], error: type[BaseException]
) -> None:
    guard = way(path)
    for _ in range(2):
        with pytest.raises(error), guard:
            raise error
        assert is_free(path)


@needed
def test_the_thread_that_has_it_may_take_it_again(path: str) -> None:
    """By any guard of any object; it is free once the outermost block is left."""
    one, other, third = trying(path), waiting(path), trying(path)
    with other:
        with one, other, third, one, other, third:
            assert not is_free(path)
        assert not is_free(path)
    assert is_free(path)


@needed
def test_taking_it_and_letting_it_go_runs_no_bytecode(
    path: str, way: Callable[[str], Lock]
) -> None:
    """Else a signal handler that raises could leave it held: after a death as well."""
    ran = list[str]()

    def profile(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            ran.append(frame.f_code.co_qualname)

    guard = way(path)
    for holder_died in (False, True):
        if holder_died:
            in_thread(trying(path).__enter__)
        before = sys.getprofile()
        sys.setprofile(profile)
        try:
            with guard:
                pass
        finally:
            sys.setprofile(before)
        assert is_free(path)
    assert ran == []


@needed
def test_who_has_not_got_it_lets_nothing_go(path: str, way: Callable[[str], Lock]) -> None:
    """As where an interrupt comes between a `with` and its block."""
    guard = way(path)

    def let_go() -> None:
        guard.__exit__(None, None, None)

    let_go()
    with guard:
        for _ in range(2):
            in_thread(let_go)
        assert not is_free(path)
    assert is_free(path)
    for _ in range(2):
        let_go()
    with guard:
        assert not is_free(path), "it is not free twice"
    assert is_free(path)


@needed
def test_an_error_is_raised_where_it_is_not_ones_own_any_more(
    path: str, way: Callable[[str], Lock]
) -> None:
    """As in a child that was forked inside the block, and leaves it by an error."""
    guard = way(path)

    def leave(error: type[BaseException]) -> None:
        with guard:
            guard.__exit__(None, None, None)
            raise error

    for error in (ZeroDivisionError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error):
            leave(error)


@needed
def test_a_guard_that_is_freed_lets_nothing_go(path: str, way: Callable[[str], Lock]) -> None:
    """Although it is an `_IOBase`, which is closed when it is freed."""
    with trying(path):
        way(path)
        gc.collect()
        assert not is_free(path)
    guard = way(path)
    guard.__enter__()
    del guard
    gc.collect()
    assert not is_free(path)
    trying(path).__exit__(None, None, None)
    assert is_free(path)


@needed
def test_the_mapping_stays_while_the_mutex_is_held(path: str) -> None:
    """Nothing but the block itself refers to it."""

    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count(path)

    with waiting(path):
        gc.collect()
        assert mappings() == 1
        assert not is_free(path)
    assert is_free(path)
    assert mappings() == 0


# Busy


def assert_busy(guard: Lock, code: int) -> None:
    with pytest.raises(KeyError) as told, guard:
        pytest.fail("inside")
    assert told.value.args == (code,)
    assert is_lock_busy(told.value)


@needed
def test_it_is_busy_for_other_threads(path: str) -> None:
    guards = trying(path), Mutex(path).waiting(0.01)
    with waiting(path):

        def look() -> None:
            for _ in range(2):  # and the next try is a try again
                assert_busy(guards[0], errno.EBUSY)
                assert_busy(guards[1], errno.ETIMEDOUT)

        in_thread(look)
        assert not is_free(path)
    for guard in guards:
        with guard:
            pass


@needed
@FORKS
def test_it_is_busy_for_other_processes(path: str, inside: Inside) -> None:
    inside.start()
    for _ in range(2):
        assert_busy(trying(path), errno.EBUSY)
        assert_busy(Mutex(path).waiting(0.01), errno.ETIMEDOUT)


@needed
@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.05, 1.1])
def test_it_is_waited_for_as_long_as_was_asked(path: str, seconds: float) -> None:
    guard = Mutex(path).waiting(seconds)
    with trying(path):

        def look() -> None:
            began = time.monotonic()
            assert_busy(guard, errno.ETIMEDOUT)
            assert time.monotonic() - began >= seconds

        in_thread(look)


@needed
def test_others_run_while_it_is_waited_for(path: str) -> None:
    """The thread that has it among them, which lets it go."""
    held, out = threading.Event(), threading.Event()

    def stay() -> None:
        with trying(path):
            held.set()
            wait_until(lambda: word(path) & WAITERS, "somebody sleeps for it")
        out.set()

    thread = threading.Thread(target=stay)
    thread.start()
    assert held.wait(PATIENCE_S)
    with waiting(path):
        assert out.wait(PATIENCE_S)
    thread.join(PATIENCE_S)


# Deaths


@needed
def test_a_thread_that_ends_inside_leaves_it_to_the_next(
    path: str, way: Callable[[str], Lock]
) -> None:
    for _ in range(3):
        in_thread(trying(path).__enter__)
        with way(path):
            assert not is_free(path)
        assert is_free(path)


@needed
@FORKS
def test_a_killed_holder_leaves_it_to_the_next(
    path: str, inside: Inside, way: Callable[[str], Lock]
) -> None:
    """And that one to the next, and so on."""
    guard = way(path)
    inside.kill(inside.start())
    for _ in range(3):
        with guard:
            assert not is_free(path)
        assert is_free(path)


@needed
@FORKS
def test_several_die_one_after_another(path: str, inside: Inside) -> None:
    """Each but the first has it from a dead one, and has not let it go."""
    for _ in range(3):
        inside.kill(inside.start())
    with trying(path):
        assert not is_free(path)
    assert is_free(path)
    inside.kill(inside.start())  # this one from one who let it go
    assert is_free(path)
    assert is_free(path)


@needed
@FORKS
def test_one_dies_before_it_says_that_it_is_consistent(path: str, inside: Inside) -> None:
    inside.kill(inside.start())
    inside.kill(inside.start(stay_between))
    for _ in range(2):
        with trying(path):
            assert not is_free(path)
        assert is_free(path)


@needed
def test_who_does_not_say_so_leaves_it_to_nobody(path: str) -> None:
    """So it must be said; and an error that is not that it is busy is told as it is."""
    library: Any = ctypes.CDLL(None)
    in_thread(trying(path).__enter__)
    mutex = Mutex(path)
    assert library.pthread_mutex_trylock(mutex._at) == errno.EOWNERDEAD
    assert library.pthread_mutex_unlock(mutex._at) == 0
    with pytest.raises(KeyError) as told, mutex.waiting(PATIENCE_S):
        pytest.fail("inside")
    assert told.value.args == (errno.ENOTRECOVERABLE,)
    assert not is_lock_busy(told.value)


@needed
@FORKS
def test_a_death_wakes_those_who_sleep_for_it(path: str, inside: Inside) -> None:
    """One at a time: each of them gets it."""
    process = inside.start()
    got = list[int]()

    def sleep(number: int) -> None:
        with Mutex(path).waiting(2 * PATIENCE_S):
            got.append(number)

    threads = [threading.Thread(target=sleep, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: word(path) & WAITERS, "somebody sleeps for it")
    assert got == []
    inside.kill(process)
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(got) == [0, 1, 2]
    assert is_free(path)


@needed
@FORKS
def test_a_forked_child_has_not_got_what_its_parent_has(path: str, processes: Processes) -> None:
    """Nor does it let that go, by leaving the block or by its end."""
    guard = trying(path)
    with guard:
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            status = 7
            try:
                guard.__exit__(None, None, None)
                assert_busy(guard, errno.EBUSY)
                status = 0
            finally:
                os._exit(status)
        processes.watch(pid)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert not is_free(path)
    assert is_free(path)


# Its file


@needed
def test_its_file_is_private(tmp_path: Path) -> None:
    path = str(tmp_path / "mutex")
    mask = os.umask(0)
    try:
        make(path)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert os.stat(path).st_blocks, "its room is reserved"


@needed
def test_one_that_nothing_refers_to_keeps_no_file_open(tmp_path: Path) -> None:
    """At once, and not only when garbage is collected."""
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    make(str(tmp_path / "mutex"))
    assert len(os.listdir("/proc/self/fd")) == before
    mutex = Mutex(str(tmp_path / "mutex"))
    guards = mutex.trying(), mutex.waiting(PATIENCE_S)
    assert len(os.listdir("/proc/self/fd")) == before + 1, "that of the mapping"
    with guards[0], guards[1]:
        pass
    del mutex, guards
    assert len(os.listdir("/proc/self/fd")) == before


@needed
def test_it_is_made_once(path: str) -> None:
    with pytest.raises(FileExistsError):
        make(path)
    assert is_free(path)


@needed
def test_a_planted_link_is_refused(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    link.symlink_to(real)
    with pytest.raises(FileExistsError):
        make(str(link))
    assert not real.exists()
    make(str(real))
    with pytest.raises(OSError, match="symbolic links") as told:
        Mutex(str(link))
    assert told.value.errno == errno.ELOOP


@needed
def test_one_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Mutex(str(tmp_path / "mutex"))


@needed
def test_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reserve(fd: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(log, "reserve", reserve)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="no room"):
        make(str(tmp_path / "mutex"))
    assert len(os.listdir("/proc/self/fd")) == before


@needed
@pytest.mark.parametrize(
    "name",
    [
        "pthread_mutexattr_settype",
        "pthread_mutexattr_setpshared",
        "pthread_mutexattr_setrobust",
        "pthread_mutex_init",
    ],
)
def test_there_is_none_where_the_c_library_refuses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    libraries = _mutex._libraries()
    assert libraries is not None

    keeping, letting_go = libraries

    class Refusing:
        def __getattr__(self, wanted: str) -> Any:
            return getattr(keeping, wanted)

    def refuse(*args: object) -> int:
        return errno.ENOTSUP

    refuse.__name__ = name
    refusing = Refusing()
    setattr(refusing, name, refuse)
    monkeypatch.setattr(_mutex, "_libraries", lambda: (refusing, letting_go))
    assert not make(str(tmp_path / "mutex"))
    assert list(tmp_path.iterdir()) == []


# Where there are such mutexes


@pytest.fixture
def unasked() -> Iterator[None]:
    """Nobody has asked yet whether there are any."""
    _mutex._libraries.cache_clear()
    yield
    _mutex._libraries.cache_clear()


@needed
@pytest.mark.usefixtures("unasked")
def test_there_are_some_here() -> None:
    assert is_supported()
    found = _mutex._libraries()
    assert found is _mutex._libraries(), "the same each time"
    assert found is not None
    assert [type(library) for library in found] == [ctypes.PyDLL, ctypes.CDLL]


@pytest.mark.usefixtures("unasked")
@pytest.mark.parametrize("platform", ["darwin", "win32", "freebsd14"])
def test_there_are_none_on_other_systems(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    monkeypatch.setattr(_mutex, "sys", SimpleNamespace(platform=platform))
    assert not is_supported()


@pytest.mark.usefixtures("unasked")
def test_there_are_none_without_ctypes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctypes", None)
    assert not is_supported()


@pytest.mark.usefixtures("unasked")
@pytest.mark.parametrize("missing", ["gnu_get_libc_version", "pthread_mutex_clocklock", "itself"])
def test_there_are_none_with_another_c_library(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """Not GNU's, or of a release before 2.30, or linked into the interpreter."""
    names = {"gnu_get_libc_version", "pthread_mutex_clocklock"} - {missing}

    def load(name: None) -> object:
        if missing == "itself":
            raise OSError("no dynamic loading")
        return SimpleNamespace(**dict.fromkeys(names, int))

    monkeypatch.setattr(_mutex, "sys", SimpleNamespace(platform="linux"))
    monkeypatch.setattr(ctypes, "PyDLL", load)
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert not is_supported()

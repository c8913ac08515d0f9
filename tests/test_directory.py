"""Directories and semaphores: private, complete or not there, swept when nobody lives."""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from iterable_queue import IterableQueue, _directory, _mutex
from iterable_queue._cells import HEAD_SIZE, SLOT_SIZE
from iterable_queue._directory import (
    FIRST_SLOTS,
    MAKING_S,
    PREFIX,
    ROOM,
    Address,
    lock_name,
    make_directory,
    remove,
    semaphore_names,
)
from iterable_queue._liveness import hold
from iterable_queue._mutex import Mutex

SHM = Path("/dev/shm")


def semaphores(token: str) -> set[str]:
    return {file.name for file in SHM.glob(f"sem.iq-{token}-*")}


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where queues are made in this test; nothing has been swept yet."""
    monkeypatch.setattr(_directory, "place_for_new", lambda: str(tmp_path))
    monkeypatch.setattr(_directory, "_swept_at", -1e9)
    return tmp_path


@pytest.fixture
def address(base: Path) -> Iterator[Address]:
    address = make_directory(None)
    yield address
    remove(address)


needed = pytest.mark.skipif(not _mutex.is_supported(), reason="there are no robust mutexes here")


@pytest.fixture(
    params=[pytest.param(True, id="mutex", marks=needed), pytest.param(False, id="semaphore")]
)
def robust(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the lock of queues made from now on is a robust mutex: each in turn."""
    robust: bool = request.param
    monkeypatch.setattr(_mutex, "is_supported", lambda: robust)
    return robust


# Making


def test_a_directory_is_private(robust: bool, address: Address, base: Path) -> None:
    path = Path(address.path)
    assert path.parent == base
    assert path.name == f"{PREFIX}{os.geteuid()}-{os.getpid()}-{address.token}"
    assert path.stat().st_mode & 0o777 == 0o700
    modes = {file.name: file.stat().st_mode & 0o777 for file in path.iterdir()}
    assert modes == dict.fromkeys(["cells", "mutex"] if robust else ["cells"], 0o600)


def test_a_umask_does_not_open_it(base: Path) -> None:
    before = os.umask(0)
    try:
        address = make_directory(None)
    finally:
        os.umask(before)
    assert Path(address.path).stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in Path(address.path).iterdir()} == {0o600}
    remove(address)


def test_with_a_umask_that_takes_all_rights_away_nothing_is_left(tmp_path: Path) -> None:
    program = (
        "import os; from iterable_queue import IterableQueue, _directory as d\n"
        "IterableQueue().close()\n"  # which imports what others may not be allowed to read
        "if not os.geteuid(): os.setuid(65534)\n"
        f"d.place_for_new = lambda: {str(tmp_path)!r}\n"
        "os.umask(0o777)\n"
        "try: IterableQueue()\n"
        "except PermissionError: print('refused')"
    )
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "refused\n", done.stderr
    assert not list(tmp_path.iterdir())


def test_its_cells_are_zero_and_fill_whole_pages(address: Address) -> None:
    cells = Path(address.path, "cells").read_bytes()
    assert len(cells) == (HEAD_SIZE + FIRST_SLOTS * SLOT_SIZE) * 8
    assert len(cells) % 4096 == 0
    assert not any(cells)


def test_its_semaphores(robust: bool, address: Address) -> None:
    """The lock is free, if it is one of them; the others hold no token."""
    lock, *conditions = names = semaphore_names(address.token)
    assert len(set(names)) == 4
    made = conditions if robust else names
    assert semaphores(address.token) == {f"sem.{name[1:]}" for name in made}
    rebuild = address.semlock._rebuild
    if not robust:
        semaphore = rebuild(0, _directory.RECURSIVE, 1, lock)
        assert semaphore.acquire(False)
        semaphore.release()
    for name in conditions:
        assert not rebuild(0, _directory.COUNTING, 10, name).acquire(False)


@needed
def test_its_mutex_is_free(address: Address) -> None:
    assert lock_name(address) == f"{address.path}/mutex"
    with Mutex(lock_name(address)).trying():
        pass


def test_two_have_nothing_in_common(address: Address) -> None:
    other = make_directory(None)
    assert other.token != address.token
    assert other.path != address.path
    remove(other)


@pytest.mark.parametrize("method", [None, "fork", "spawn", "forkserver"])
def test_the_standard_librarys_contexts(base: Path, method: str | None) -> None:
    address = make_directory(None if method is None else multiprocessing.get_context(method))
    assert address.package.partition(".")[0] == "multiprocessing"
    assert address.semlock is type(multiprocessing.RLock()._semlock)  # type: ignore[attr-defined]
    remove(address)


@pytest.mark.parametrize("package", ["multiprocess", "billiard"])
def test_another_packages_context(base: Path, package: str) -> None:
    module: Any = pytest.importorskip(package)
    address = make_directory(module)
    assert address.package == package
    assert address.semlock is type(module.get_context("fork").RLock()._semlock)
    remove(address)


def test_what_is_no_context_is_refused_by_name(base: Path) -> None:
    for wrong, text in (
        (SimpleNamespace(), r"context must have RLock\(\)"),
        (SimpleNamespace(RLock=7), r"context must have RLock\(\)"),
        (SimpleNamespace(RLock=object), "rests on a semaphore"),
        (__import__("threading"), "rests on a semaphore"),
    ):
        context: Any = wrong
        with pytest.raises(TypeError, match=text):
            make_directory(context)
    assert list(base.iterdir()) == []


@pytest.mark.parametrize("fails", ["reserve", "mutex", "semlock"])
def test_no_room_leaves_nothing(base: Path, fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if fails == "mutex" and not _mutex.is_supported():
        pytest.skip("there are no robust mutexes here")
    semlock, package = _directory.parts(None)
    made = list[str]()

    def no_room(*args: object) -> None:
        raise OSError(errno.ENOSPC, "no room")

    class Scarce:
        SEM_VALUE_MAX = 5
        __module__ = semlock.__module__

        def __init__(self, kind: int, value: int, most: int, name: str, unlink: bool) -> None:
            made.append(name)
            if len(made) == 3:
                no_room()
            semlock(kind, value, most, name, unlink)

    if fails == "reserve":
        monkeypatch.setattr(_directory, "reserve", no_room)
    if fails == "mutex":
        monkeypatch.setattr(Mutex, "begin", no_room)  # its file is there by then

    def parts(context: object) -> tuple[type, str]:
        return Scarce, package

    monkeypatch.setattr(_directory, "parts", parts)
    with pytest.raises(OSError, match="no room"):
        make_directory(None)
    assert list(base.iterdir()) == []
    assert len(made) == (3 if fails == "semlock" else 0)
    for name in made:
        assert not (SHM / f"sem.{name[1:]}").exists()


# Where


@pytest.mark.parametrize(
    ("room", "writable", "expected"),
    [
        (ROOM, True, "/dev/shm"),
        (ROOM - 4096, True, "tmp"),
        (None, True, "tmp"),
        (ROOM, False, "tmp"),
    ],
)
def test_shared_memory_if_it_has_room(
    room: int | None,
    writable: bool,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def statvfs(path: str) -> object:
        assert path == "/dev/shm"
        if room is None:
            raise FileNotFoundError
        return SimpleNamespace(f_bavail=room // 4096, f_frsize=4096, f_bfree=1 << 50)

    monkeypatch.setattr("os.statvfs", statvfs)

    def access(path: str, mode: int) -> bool:
        assert (path, mode) == ("/dev/shm", os.W_OK | os.X_OK)
        return writable

    monkeypatch.setattr("os.access", access)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert _directory.place_for_new() == (str(tmp_path) if expected == "tmp" else expected)


def test_a_queue_without_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: str) -> object:
        return SimpleNamespace(f_bavail=0, f_frsize=4096)

    monkeypatch.setattr("os.statvfs", full)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(_directory, "_swept_at", -1e9)
    queue = IterableQueue[int]()
    assert len(list(tmp_path.iterdir())) == 1
    with queue.get_producer() as out:
        out.put(1)
    source = queue.get_consumer()
    queue.close()
    assert list(source) == [1]
    del queue, out, source
    assert list(tmp_path.iterdir()) == []


# Removing


def test_removing(robust: bool, base: Path) -> None:
    address = make_directory(None)
    assert Path(lock_name(address)).exists() is robust
    Path(address.path, "s0").touch()
    remove(address)
    assert list(base.iterdir()) == []
    assert semaphores(address.token) == set()
    remove(address)  # again does nothing


def test_two_remove_at_once(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is gone already is gone."""
    address = make_directory(None)
    listdir = os.listdir

    def slow(path: str) -> list[str]:
        names = listdir(path)
        monkeypatch.setattr("os.listdir", listdir)
        remove(address)
        return names

    monkeypatch.setattr("os.listdir", slow)
    remove(address)
    assert list(base.iterdir()) == []


def test_it_can_be_told_what_is_left_of_one_that_was_half_removed(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each step of one that was killed midway, in whatever order its files are listed."""
    unlink, listdir = os.unlink, os.listdir
    for names in itertools.permutations(["cells", "p1", "p2", "l1"]):
        path = left_over(base, os.getpid(), "p1", "p2", "l1")
        others: list[bool] = []

        def look_first(name: str, path: Path = path, others: list[bool] = others) -> None:
            others.append(_directory.is_left(str(path)))
            unlink(name)

        def listed(name: str, names: tuple[str, ...] = names, path: Path = path) -> list[str]:
            found = listdir(name)
            return [each for each in names if each in found] if name == str(path) else found

        with monkeypatch.context() as patch:
            patch.setattr("os.unlink", look_first)
            patch.setattr("os.listdir", listed)
            _directory.remove_left(str(path), _directory.parts(None)[0])
        assert not path.exists()
        assert others == [True] * 4, names


def test_a_file_that_came_meanwhile_stays(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = make_directory(None)
    listdir = os.listdir

    def slow(path: str) -> list[str]:
        names = listdir(path)
        Path(path, "late").touch()
        return names

    with monkeypatch.context() as patch:
        patch.setattr("os.listdir", slow)
        remove(address)
    assert os.listdir(address.path) == ["late"]
    remove(address)
    assert list(base.iterdir()) == []


def test_what_can_not_be_removed_is_told(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = make_directory(None)

    def refuse(path: str) -> None:
        raise PermissionError(errno.EPERM, "not yours")

    with monkeypatch.context() as patch:
        patch.setattr("os.rmdir", refuse)
        with pytest.raises(PermissionError):
            remove(address)
    remove(address)


def test_without_sem_unlink_the_directory_goes_all_the_same(base: Path) -> None:
    address = make_directory(None)
    here = type("SemLock", (), {"__module__": __name__})
    remove(address._replace(semlock=here))
    assert list(base.iterdir()) == []
    remove(address)
    assert semaphores(address.token) == set()


# Sweeping


def ended_pid() -> int:
    """The pid of a process that is gone."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def left_over(base: Path, maker: int, *files: str) -> Path:
    path = base / f"{PREFIX}{os.geteuid()}-{maker}-{os.urandom(8).hex()}"
    path.mkdir(mode=0o700)
    for name in ("cells", *files):
        (path / name).touch()
    return path


def empty(base: Path, age: float) -> Path:
    """A directory that was made by this process, with nothing in it for *age* seconds."""
    path = base / f"{PREFIX}{os.geteuid()}-{os.getpid()}-{os.urandom(8).hex()}"
    path.mkdir(mode=0o700)
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def sweep() -> None:
    remove(make_directory(None))


def test_left_overs_go(base: Path) -> None:
    gone = ended_pid()
    lefts = [left_over(base, gone, "p1", "p3", "l1", "s0"), left_over(base, os.getpid(), "p1")]
    lefts.append(left_over(base, gone))  # its maker died before it took part
    sweep()
    assert not any(path.exists() for path in lefts)


def test_their_semaphores_go_too(robust: bool, base: Path) -> None:
    address = make_directory(None)
    Path(address.path, "p1").touch()
    _directory._swept_at = -1e9
    assert semaphores(address.token)
    sweep()
    assert not semaphores(address.token)


@pytest.mark.parametrize("held", ["p1", "p7", "l2"])
def test_what_somebody_holds_stays(base: Path, held: str) -> None:
    path = left_over(base, ended_pid(), "p1", "p7", "l2")
    fd = hold(str(path / held))
    sweep()
    assert path.exists()
    os.close(fd)
    sweep()
    assert path.exists(), "not before a minute has passed"
    _directory._swept_at -= 61
    sweep()
    assert not path.exists()


def test_what_is_just_being_made_stays(base: Path) -> None:
    path = left_over(base, os.getpid())
    odd = left_over(base, 0)
    odd = odd.rename(odd.with_name(f"{PREFIX}{os.geteuid()}-what-ever"))
    sweep()
    assert path.exists()
    assert odd.exists()


@pytest.mark.parametrize("age", [0.0, MAKING_S - 10])
def test_what_is_just_being_made_stays_while_it_is_empty(base: Path, age: float) -> None:
    path = empty(base, age)
    sweep()
    assert path.exists()


def test_what_was_left_empty_goes_though_its_maker_lives(base: Path) -> None:
    """By the last process, which was not its maker and was killed as it removed it."""
    path = empty(base, MAKING_S + 1)
    odd = empty(base, MAKING_S + 1)
    odd = odd.rename(odd.with_name(f"{PREFIX}{os.geteuid()}-what-ever"))
    sweep()
    assert not path.exists()
    assert odd.exists(), "that is no queue's name"


def test_what_is_just_being_joined_stays(base: Path) -> None:
    """By its maker: the lock's file is there, the lock is not yet, and it has no name yet."""
    path = left_over(base, os.getpid())
    (path / f"p1.{os.getpid()}").touch()
    sweep()
    assert path.exists()


def test_others_things_stay(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = ended_pid()
    another_user = base / f"{PREFIX}{os.geteuid() + 1}-{gone}-00"
    another_user.mkdir()
    something = base / "something"
    something.mkdir()
    mine = left_over(base, gone, "p1")
    lstat = os.lstat

    def not_mine(path: str) -> Any:
        return SimpleNamespace(st_uid=os.geteuid() + 1) if path == str(mine) else lstat(path)

    with monkeypatch.context() as patch:
        patch.setattr("os.lstat", not_mine)
        sweep()
    assert mine.exists()
    assert another_user.exists()
    assert something.exists()


def test_a_link_is_not_followed(base: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "p1").touch()
    link = base / f"{PREFIX}{os.geteuid()}-{ended_pid()}-00"
    link.symlink_to(elsewhere)
    with suppress(OSError):  # a link can't be removed as a directory
        sweep()
    assert (elsewhere / "p1").exists()


def test_one_that_others_sweep_at_the_same_time(base: Path) -> None:
    assert not _directory.is_left(str(base / "gone"))

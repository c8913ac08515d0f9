"""Who lives, as the kernel's locks tell it, and how those ended that don't."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from iterable_queue._liveness import (
    hold,
    how_it_ended,
    is_held,
    may_be_stopped,
    runs,
    try_hold,
)
from tests.conftest import FORKS, Processes, wait_until


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "p7")


@pytest.fixture
def fork(processes: Processes) -> Iterator[Callable[[Callable[[], object]], int]]:
    """Forks a child that runs a function and ends by `os._exit`; it is reaped at the end."""
    pids = list[int]()

    def start(act: Callable[[], object]) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                act()
            finally:
                os._exit(0)
        pids.append(pid)
        processes.watch(pid)
        return pid

    yield start
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass  # the test has waited for it


def wait_for_end(pid: int) -> None:
    """Wait until the child is a zombie, and leave it one."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def block() -> None:
    """Until a signal comes."""
    signal.pause()


# Locks


def test_held_while_the_descriptor_is_open(path: str) -> None:
    assert not is_held(path), "no file"
    fd = hold(path)
    assert is_held(path)
    assert not os.get_inheritable(fd)
    os.close(fd)
    assert not is_held(path)
    assert os.path.exists(path)


def test_the_file_is_private_and_the_only_one(path: str, tmp_path: Path) -> None:
    fd = hold(path)
    assert os.fstat(fd).st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["p7"]
    os.close(fd)


def test_a_file_has_its_name_only_once_it_is_locked(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever finds it free knows that its holder is gone."""
    flock = fcntl.flock
    seen = list[bool]()

    def watched(fd: int, operation: int) -> None:
        seen.append(os.path.exists(path))
        flock(fd, operation)

    with monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", watched)
        fd = hold(path)
    assert seen == [False]
    os.close(fd)


def test_holding_again_takes_the_name_over(path: str) -> None:
    """A slot that is used again has a new file."""
    os.close(hold(path))
    fd = hold(path)
    assert is_held(path)
    os.close(fd)


def test_a_hold_that_fails_leaves_no_descriptor(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.listdir("/proc/self/fd")

    def refuse(*args: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    with monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", refuse)
        with pytest.raises(OSError, match="no locks"):
            hold(path)
    assert os.listdir("/proc/self/fd") == before
    assert not is_held(path)


def test_trying_to_hold(path: str) -> None:
    fd = try_hold(path)
    assert fd is not None
    assert not os.get_inheritable(fd)
    assert os.fstat(fd).st_mode & 0o777 == 0o600
    before = os.listdir("/proc/self/fd")
    assert try_hold(path) is None
    assert os.listdir("/proc/self/fd") == before
    os.close(fd)
    again = try_hold(path)
    assert again is not None, "an old file does as well"
    os.close(again)


@pytest.mark.parametrize("call", [hold, try_hold, is_held])
def test_symlinks_are_not_followed(call: Callable[[str], Any], path: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.touch()
    link = f"{path}.{os.getpid()}" if call is hold else path
    os.symlink(target, link)
    with pytest.raises(OSError, match="symbolic links"):
        call(path)


def test_looking_does_not_disturb_other_lookers(path: str) -> None:
    """They ask for shared locks: two at once must not take each other for the holder."""
    os.close(hold(path))
    fd = os.open(path, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_SH)
    assert not is_held(path)
    os.close(fd)


def test_looking_leaves_no_descriptor(path: str) -> None:
    fd = hold(path)
    before = os.listdir("/proc/self/fd")
    for _ in range(10):
        assert is_held(path)
    os.close(fd)
    for _ in range(10):
        assert not is_held(path)
    assert len(os.listdir("/proc/self/fd")) == len(before) - 1


@FORKS
def test_a_forked_child_holds_it_as_long_as_it_has_the_descriptor(
    path: str, fork: Callable[[Callable[[], object]], int]
) -> None:
    fd = hold(path)
    child = fork(block)
    os.close(fd)
    assert is_held(path), "by the child"
    os.kill(child, signal.SIGKILL)
    wait_for_end(child)
    assert not is_held(path)


@FORKS
def test_a_child_that_closes_its_copy_leaves_the_parents(
    path: str, fork: Callable[[Callable[[], object]], int]
) -> None:
    fd = hold(path)
    child = fork(lambda: os.close(fd))
    wait_for_end(child)
    assert is_held(path)
    os.close(fd)
    assert not is_held(path)


@FORKS
@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGTERM, None])
def test_a_zombie_holds_nothing(
    path: str, fork: Callable[[Callable[[], object]], int], way: signal.Signals | None
) -> None:
    def child() -> None:
        hold(path)
        if way is not None:
            block()

    pid = fork(child)
    if way is not None:
        wait_until(lambda: is_held(path), "the child's lock")
        os.kill(pid, way)
    wait_for_end(pid)
    assert not is_held(path)
    assert not runs(pid)


def test_another_program_does_not_inherit_it(path: str) -> None:
    """Neither one that is run, nor the same process after an exec."""
    fd = hold(path)
    with subprocess.Popen(["sleep", "60"], close_fds=False) as other:
        os.close(fd)
        assert not is_held(path)
        other.kill()
    code = (
        "import os, sys; from iterable_queue._liveness import hold, is_held\n"
        "hold(sys.argv[1]); print(is_held(sys.argv[1]), flush=True)\n"
        "os.execlp('sh', 'sh', '-c', 'echo done; read line')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        assert process.stdout.readline() == "done\n"
        assert process.poll() is None, "it lives"
        assert not is_held(path)
        process.kill()


# Pids


def test_this_process_runs() -> None:
    assert runs(os.getpid())
    assert not may_be_stopped(os.getpid())


def test_a_pid_that_nobody_has() -> None:
    pid = int(Path("/proc/sys/kernel/pid_max").read_text()) + 1
    assert not runs(pid)
    assert not may_be_stopped(pid)


def test_a_process_of_somebody_else_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(pid: int, number: int) -> None:
        assert number == 0
        raise PermissionError

    monkeypatch.setattr("os.kill", kill)
    assert runs(1)


@FORKS
def test_a_stopped_process_runs(fork: Callable[[Callable[[], object]], int]) -> None:
    pid = fork(block)
    assert not may_be_stopped(pid)
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
    assert runs(pid)
    assert may_be_stopped(pid)
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)
    assert not may_be_stopped(pid), "a zombie"


def without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", refuse)


def test_without_proc_whoever_runs_may_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        without_proc(patch)
        running, stopped = runs(os.getpid()), may_be_stopped(os.getpid())
    assert (running, stopped) == (True, True)


# How it ended


def exit_with(status: int) -> Callable[[], object]:
    return lambda: os._exit(status)


def die_by(number: int) -> Callable[[], object]:
    def act() -> None:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    return act


ENDS: tuple[tuple[Callable[[], object], str], ...] = (
    (exit_with(0), "ended by os._exit(0)"),
    (exit_with(3), "ended by os._exit(3)"),
    (exit_with(255), "ended by os._exit(255)"),
    (die_by(signal.SIGTERM), "was killed by SIGTERM"),
    (die_by(signal.SIGUSR1), "was killed by SIGUSR1"),
    (die_by(signal.SIGRTMIN + 1), f"was killed by signal {signal.SIGRTMIN + 1}"),
)


@FORKS
@pytest.mark.parametrize(("act", "how"), ENDS)
def test_how_a_child_ended(
    fork: Callable[[Callable[[], object]], int], act: Callable[[], object], how: str
) -> None:
    pid = fork(act)
    wait_for_end(pid)
    assert how_it_ended(pid) == how
    assert how_it_ended(pid) == how, "looking takes nothing"
    os.waitpid(pid, 0)
    assert how_it_ended(pid) == "was killed by a signal, or called os._exit"


@FORKS
@pytest.mark.parametrize(("act", "how"), ENDS)
def test_how_somebody_elses_child_ended(
    fork: Callable[[Callable[[], object]], int],
    act: Callable[[], object],
    how: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Known while it is a zombie: its parent has not asked yet."""
    pid = fork(act)
    wait_for_end(pid)

    def waitid(*args: object) -> None:
        raise ChildProcessError

    monkeypatch.setattr("os.waitid", waitid)
    assert how_it_ended(pid) == how


@FORKS
def test_one_that_has_not_ended(
    fork: Callable[[Callable[[], object]], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = fork(block)
    assert how_it_ended(pid) == "was killed by a signal, or called os._exit"
    monkeypatch.delattr("os.waitid")
    assert how_it_ended(pid) == "was killed by a signal, or called os._exit"


@FORKS
@pytest.mark.parametrize(
    ("act", "how"), [(ENDS[1], ENDS[1][1]), (ENDS[3], ENDS[3][1])], ids=["exit", "signal"]
)
def test_multiprocessing_knows_of_those_that_it_has_waited_for(
    processes: Processes, act: tuple[Callable[[], object], str], how: str
) -> None:
    process = multiprocessing.get_context("fork").Process(target=act[0])
    processes.start(process)
    processes.join()
    assert process.pid is not None
    assert how_it_ended(process.pid) == how


def test_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a pid that is no child's, on a system without /proc."""
    with monkeypatch.context() as patch:
        without_proc(patch)
        how = how_it_ended(1)
    assert how == "was killed by a signal, or called os._exit"

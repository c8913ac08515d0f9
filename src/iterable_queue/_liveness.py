"""Who lives: locks that the kernel releases, and what is known of a process that has ended.

Each process that takes part in a queue holds an exclusive `flock` on a file of its own for as long
as it lives; anybody can ask for a shared one to see whether it does. The kernel releases it when
the last descriptor of that open file is gone: zombies, reused pids and processes of other parents
make no difference. A child inherits such a descriptor over a fork, so the child closes those that
are its parent's at once (`_forks`), and one that a process holds for a child that it is about to
start stays locked exactly as long as that child lives.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys


def hold(path: str) -> int:
    """Make the file and lock it. Returns the descriptor, which is the lock.

    The file gets its name once it is locked: whoever finds it free knows that its holder is gone.
    """
    new = f"{path}.{os.getpid()}"
    fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(new, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def try_hold(path: str) -> int | None:
    """Lock the file, old or new. Returns the descriptor, or None if somebody else has it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def is_held(path: str) -> bool:
    """Whether a living process holds the lock on the file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def runs(pid: int) -> bool:
    """Whether a process of that pid runs: for one that has no lock yet. A zombie does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _state(pid) not in (b"Z", b"X")


def may_be_stopped(pid: int) -> bool:
    """Whether it is stopped (by SIGSTOP, a terminal, a debugger), or that can't be told."""
    return _state(pid) in (b"T", b"t", None) and runs(pid)


def _state(pid: int) -> bytes | None:
    """The letter for the state that the process is in; None: it is gone, or not on this system."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()[0]
    except OSError:
        return None


def how_it_ended(pid: int) -> str:
    """How a process that left without a word ended, as far as that can be known from here.

    Its parent knows while it has not been waited for, or while multiprocessing's object for it is
    alive; others can see a zombie's status on Linux.
    """
    status = _exit_status(pid)
    if status is None:
        return "was killed by a signal, or called os._exit"
    if status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        return f"was killed by {name}"
    return f"ended by os._exit({status})"


def _exit_status(pid: int) -> int | None:
    """The exit status; negative: the signal that killed it; None: not known here."""
    try:
        info = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except (ChildProcessError, AttributeError):
        pass  # not a child of this process, or waited for already
    else:
        if info is not None:
            return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status
    for name in ("multiprocessing", "multiprocess", "billiard"):
        module = sys.modules.get(f"{name}.process")
        for process in list(getattr(module, "_dangling", ())):
            popen = getattr(process, "_popen", None)
            code = getattr(popen, "returncode", None)
            if getattr(popen, "pid", None) == pid and isinstance(code, int):
                # A fork server that could not tell how it ended says 255.
                unknown = code == 255 and getattr(popen, "method", "") == "forkserver"
                return None if unknown else code
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
    except OSError:
        return None
    if fields[0] not in (b"Z", b"X"):
        return None
    code = int(fields[49])
    return -(code & 0x7F) if code & 0x7F else code >> 8

"""`doctor`: whether queues can work here, and what to do about what is in their way."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import resource
import shutil
import signal
import sys
import tempfile
import textwrap
from argparse import Namespace
from collections.abc import Iterator
from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired
from typing import Final, NamedTuple

from iterable_queue import _directory, _fence, _mutex
from iterable_queue._command._find import left_overs

WELL, TO_DO, BROKEN = 0, 1, 2
"""How a check went: the exit status is the worst of all."""
WORDS: Final = ("well", "to do", "broken")

FEW_FILES: Final = 256
SMALL_FILE: Final = 64 << 20
"""A segment of items has up to 4 MiB, or the size of the largest item."""
FEW_INODES: Final = 1_000
NOTICED_S: Final = 2.0
"""A death is known within this time, in seconds."""
TRIAL_S: Final = 60.0
"""How long a trial may take in all."""


class Check(NamedTuple):
    """One thing that was looked at.

    Attributes:
        name: what.
        result: WELL, TO_DO or BROKEN.
        found: how it is.
        advice: what to do, if anything.
    """

    name: str
    result: int
    found: str
    advice: str = ""


def run(options: Namespace) -> int:
    """The command. Returns its exit status."""
    worst = WELL
    for check in checks(clean=options.clean, quick=options.quick):
        worst = max(worst, check.result)
        if options.json:
            print(json.dumps(check._asdict() | {"result": WORDS[check.result]}), flush=True)
        else:
            print("\n".join(as_text(check)), flush=True)
    if not options.json:
        print(
            (
                "All is well.",
                "Queues work here; see what there is to do.",
                "Queues do not work here as they should.",
            )[worst]
        )
    return worst


def as_text(check: Check) -> list[str]:
    """The lines for people."""
    lines = [f"[{WORDS[check.result]:^6}] {check.name}: {check.found}"]
    if check.advice:
        lines += textwrap.wrap(check.advice, 90, initial_indent=" " * 9, subsequent_indent=" " * 9)
    return lines


def checks(*, clean: bool, quick: bool) -> Iterator[Check]:
    """All checks, one after another; the left-overs first, since they take up room."""
    yield python()
    yield left_over(clean)
    yield from room()
    yield files()
    yield file_size()
    yield semaphores()
    yield lock()
    yield lockless()
    yield start_methods()
    if not quick:
        for method in multiprocessing.get_all_start_methods():
            yield trial(method)


def python() -> Check:
    """The interpreter and the system."""
    found = (
        f"{platform.python_implementation()} {platform.python_version()} on {platform.platform()}"
    )
    if sys.platform != "linux":
        return Check(
            "Python", TO_DO, found, "The library was tested on Linux only: try what you rely on."
        )
    return Check("Python", WELL, found)


def left_over(clean: bool) -> Check:
    """What is left of queues whose processes were all killed."""
    name = "left-overs"
    paths = left_overs()
    if not paths:
        return Check(name, WELL, "none")
    if not clean:
        return Check(
            name,
            TO_DO,
            f"{len(paths)} queue(s) all of whose processes were killed: {_listed(paths)}",
            "`python -m iterable_queue doctor --clean` removes them; so does the next queue that "
            "is made, of those in the same place.",
        )
    semlock, _ = _directory.parts(None)
    for path in paths:
        _directory.remove_left(path, semlock)
    return Check(name, WELL, f"{len(paths)} removed: {_listed(paths)}")


def _listed(paths: list[str]) -> str:
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(paths[:3]) + more


def room() -> Iterator[Check]:
    """Where queues are made, and how much they can hold."""
    place = _directory.place_for_new()
    for name, path in (
        ("shared memory", "/dev/shm"),
        ("temporary directory", tempfile.gettempdir()),
    ):
        try:
            usage = shutil.disk_usage(path)
            status = os.statvfs(path)
        except OSError as error:
            yield _no_room(name, path, f"{path}: {error.strerror}", place)
            continue
        here = "; queues are made here" if path == place else ""
        found = f"{path}: {_size(usage.free)} of {_size(usage.total)} free{here}"
        if not os.access(path, os.W_OK | os.X_OK):
            yield _no_room(name, path, f"{path} may not be written to", place)
        elif usage.free < _directory.ROOM:
            yield _no_room(name, path, found, place)
        elif status.f_files and status.f_favail < FEW_INODES:  # some systems count none
            few = f"{found}; room for {status.f_favail} more files"
            yield Check(name, TO_DO, few, "Each queue has some ten files there: remove others.")
        else:
            yield Check(name, WELL, found)


def _no_room(name: str, path: str, found: str, place: str) -> Check:
    if path == place:
        return Check(name, BROKEN, found, "There is no room for a queue anywhere: make some.")
    if path != "/dev/shm":
        return Check(name, WELL, f"{found}; not needed while there is shared memory")
    return Check(
        name,
        TO_DO,
        found,
        f"Queues are made in {place} instead, which is slower if that is a disk. Make shared "
        "memory larger (of a container: --shm-size=256m), or remove what fills it.",
    )


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def files() -> Check:
    """How many files a process may have open."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = "no limit" if limit == resource.RLIM_INFINITY else f"{limit} for each process"
    if limit != resource.RLIM_INFINITY and limit < FEW_FILES:
        return Check(
            "open files", TO_DO, found, f"Raise it: `ulimit -n {FEW_FILES}` or more in the shell."
        )
    return Check("open files", WELL, found)


def file_size() -> Check:
    """How large a file may be that a process writes."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit == resource.RLIM_INFINITY:
        return Check("file size", WELL, "no limit")
    found = f"at most {_size(limit)}"
    if limit < SMALL_FILE:
        return Check(
            "file size",
            TO_DO,
            found,
            "A put that needs a larger file raises OSError. Raise the limit: `ulimit -f unlimited` "
            "in the shell.",
        )
    return Check("file size", WELL, found)


def semaphores() -> Check:
    """Whether semaphores can be made, of which each queue has three or four."""
    try:
        limit = os.sysconf("SC_SEM_NSEMS_MAX")
        multiprocessing.get_context("fork").Lock()
    except (OSError, ImportError, ValueError) as error:
        return Check(
            "semaphores",
            BROKEN,
            f"none can be made: {error}",
            "They need /dev/shm, which must be mounted and writable.",
        )
    return Check("semaphores", WELL, "no limit" if limit < 0 else f"{limit} for each process")


def lock() -> Check:
    """Which kind of lock a queue has."""
    if _mutex.is_supported() and _has_robust_mutex():
        return Check("lock", WELL, "a robust mutex, which the kernel lets go of for the dead")
    return Check(
        "lock",
        TO_DO,
        "a semaphore, which has no owner",
        "A process that is killed in the few instructions around the lock delays the others by a "
        "second or two, and breaks the queue if another one is stopped then. Robust mutexes need "
        "Linux, the GNU C library 2.30 or newer, and ctypes.",
    )


def _has_robust_mutex() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        try:
            return _mutex.make(f"{folder}/mutex")
        except OSError:
            return False


def lockless() -> Check:
    """Whether items pass the lock by."""
    if _fence.is_supported():
        return Check("items", WELL, "put and taken without the lock")
    return Check(
        "items",
        TO_DO,
        "put and taken under the lock",
        "That is as safe, and slower. The quicker way needs CPython with its global lock, Linux "
        "on x86-64, and robust mutexes.",
    )


def start_methods() -> Check:
    """How multiprocessing starts processes here."""
    methods = multiprocessing.get_all_start_methods()
    default = multiprocessing.get_context().get_start_method()
    return Check("start methods", WELL, f"{', '.join(methods)}; {default} if nothing is said")


def trial(method: str) -> Check:
    """A queue tried with one process of that start method, which is killed in the end."""
    name = f"trial under {method}"
    command = [sys.executable, "-m", "iterable_queue._command._trial", method]
    # A session of its own: whatever it has started can be ended with it.
    with Popen(
        command,
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            printed, errors = process.communicate(timeout=TRIAL_S)
        except TimeoutExpired:
            _end(process.pid)
            return Check(name, BROKEN, f"not done within {TRIAL_S:g} s", _report("It hung."))
        except BaseException:
            _end(process.pid)
            raise
    if process.returncode:
        lines = errors.strip().splitlines() or [f"exit status {process.returncode}"]
        return Check(
            name, BROKEN, lines[-1], _report("`-m iterable_queue._command._trial` failed.")
        )
    took = float(printed)
    found = f"items went there and back; a killed process was noticed after {took:.1f} s"
    if took > NOTICED_S:
        return Check(
            name,
            TO_DO,
            found,
            f"That should be within {NOTICED_S:g} s: the machine is busy, or it was suspended.",
        )
    return Check(name, WELL, found)


def _report(what: str) -> str:
    return f"{what} See to what is said above first; if nothing is, please report it."


def _end(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass

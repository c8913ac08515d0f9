"""Killed before every store and every other effect, one after another: see `tests.store_sweep`.

`pytest -m soak tests/test_store_sweep.py -n 0 -s` kills at each and prints how many these were;
without the mark, one of each scene is tried.

That the scenes reach all that there is to be reached is found out by looking for what can be an
effect in the package's source: see `test_every_effect_of_the_package_is_reached`.
"""

from __future__ import annotations

import ast
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from iterable_queue import _fence, _mutex
from tests.conftest import FORKS
from tests.store_sweep import OS_CALLS, PACKAGE, SCENES, Board, Site, play_scene

pytestmark = [
    FORKS,
    pytest.mark.skipif(
        not (_fence.is_supported() and _mutex.is_supported()),
        reason="here all goes by a lock that is a semaphore",
    ),
]

SEED = 20260
PARTS = 4


@pytest.fixture
def board() -> Iterator[Board]:
    memory = "/dev/shm"
    folder = tempfile.mkdtemp(prefix="sweep-", dir=memory if os.path.isdir(memory) else None)
    try:
        yield Board(folder)
    finally:
        shutil.rmtree(folder)


@pytest.mark.time_limit(240)
@pytest.mark.parametrize("part", range(PARTS))
def test_one_death_in_each_scene(part: int, board: Board) -> None:
    seeded = random.Random(SEED)
    problems: list[str] = []
    for index, (name, scene) in enumerate(SCENES.items()):
        fatal = int(2 ** seeded.uniform(0, 8))  # early ones more often: not all have many
        if index % PARTS == part and not scene.slow:
            report = play_scene(scene, board, fatal)
            if report.problem:
                problems.append(f"{name}, killed before {fatal}: {report.problem}")
    assert not problems, "\n".join(problems)


@pytest.mark.soak
@pytest.mark.time_limit(1200)
@pytest.mark.parametrize("name", SCENES)
def test_every_effect(name: str, board: Board) -> None:
    whole = play_scene(SCENES[name], board, 0)
    assert not whole.problem, whole.problem
    problems: list[str] = []
    fatal = 0
    while True:
        fatal += 1
        report = play_scene(SCENES[name], board, fatal)
        if report.problem:
            problems.append(f"killed before {fatal}: {report.problem}")
        if report.finished:
            break
    print(f"{name}: {fatal - 1} effects, {len(problems)} problems")
    assert not problems, f"{len(problems)} of {fatal - 1}:\n" + "\n".join(problems[:5])
    assert fatal > whole.effects // 2, "it ended early"


# What can be an effect

CELLS = {"head", "_head", "cells", "_view", "map"}
"""What is shared, by the last part of its name."""
OWN = {
    "_attached",
    "_heads",
    "_inherited",
    "_launching",
    "_lineages",
    "_sleepers",
    "claim",
    "desks",
    "dropped",
    "ends",
    "hands",
    "items",
    "kept",
    "nexts",
    "old",
    "opened",
    "payloads",
    "pending",
    "starts",
    "stash",
    "state",
    "then",
}
"""Lists and dictionaries of one process."""
CALLS = {
    "acquire",
    "announce",
    "exhaust",
    "flock",
    "gate",
    "hold",
    "is_held",
    "notify",
    "notify_all",
    "open",
    "pack_large",
    "pack_small",
    "private",
    "release",
    "remove",
    "reserve",
    "retract",
    "semlock",
    "try_hold",
    "unlink",
    "unlock",
    "write",
    "_forget",
    "_unlink",
}
"""Functions that make an effect whatever they are called with, by the last part of their name."""
LOCKS = {"lock", "lock_within", "trylock"}
"""The queue's lock, likewise."""
HARMLESS = {
    "access",
    "chmod",  # of a directory that is removed in the next moment, and had no users
    "fstat",
    "geteuid",
    "getpid",
    "kill",  # by signal 0
    "listdir",
    "lstat",
    "register_at_fork",
    "statvfs",
    "strerror",
    "uname",
    "urandom",
    "waitid",
}
"""Functions of `os` that change nothing for anybody else."""

APART = {
    "testing/": "for tests",
    "_channels/threads.py": "for threads of one process",
    "_channels/redis/": "has nothing in common with others but a server, which runs scripts whole",
    "_command/": "uses queues as users do, looks at others', and removes these by `_directory`",
    "_look.py": "only reads",
    "_recorder.py": "writes a file of the user's",
    "_news.py": "tells the log of this process",
    "_leaks.py": "likewise, of what this process left open",
}
"""Modules that do nothing to a queue that others could come upon half done, and why that is so."""
THREADS = "a queue for threads of one process: nobody survives it"
UNREACHED = {
    ("_aio.py", "ThreadDesk.close", "self._bell.desks.remove(self)"): THREADS,
    ("_channels/log.py", "LogChannel.extend", "with lane.lock:"): "a lock of threads",
    ("_channels/log.py", "LogChannel._extend", "self._forget(lane.base, new.file)"): (
        "only if another thread closes meanwhile; `_forget` is reached otherwise"
    ),
    ("_channels/log.py", "reserve", "os.ftruncate(fd, size)"): "not on Linux",
    ("_endpoints.py", "_Putting.put", "self._ledger.cells[self._stamp_at] = self._now()"): THREADS,
    ("_endpoints.py", "_Getting._get_now", "self._ledger.cells[self._stamp_at] = self._now()"): (
        THREADS
    ),
    ("_ledger.py", "Ledger.give_back", "head[RETURNED] += 1"): THREADS,
    ("_ledger.py", "Ledger.give_back", "cells[base + IN_HAND] -= 1"): THREADS,
    ("_ledger.py", "Ledger.give_back", "head[BUSY] -= 1"): THREADS,
    ("_ledger.py", "Ledger.give_back", "self.items.notify()"): THREADS,
    ("_ledger.py", "Ledger._store", "self.head[cell] = value"): THREADS,
    ("_ledger.py", "Ledger._store", "self.cells[cell - HEAD_SIZE] = value"): THREADS,
    ("_ledger.py", "Ledger._take_lean", "self.room.notify(len(hand.pending))"): THREADS,
    ("_ledger.py", "Ledger.fold", "head[LEAN] += more"): THREADS,
    ("_ledger.py", "Ledger.fold", "cells[base + IN_HAND] += held"): THREADS,
    ("_ledger.py", "Ledger.fold", "head[HIGHEST] = max(head[HIGHEST], hand.peak)"): THREADS,
    ("_fence.py", "Fences._make", "semlock(1, 0, semlock.SEM_VALUE_MAX, name, True)"): (
        "a semaphore of its own, which has no name when this returns"
    ),
    ("_liveness.py", "_state", 'open(f"/proc/{pid}/stat", "rb")'): "reads the kernel's files",
    ("_liveness.py", "_exit_status", 'open(f"/proc/{pid}/stat", "rb")'): "likewise",
    ("_runtime.py", "TokenQueue.__init__", "self._some.acquire()"): THREADS,
    ("_runtime.py", "TokenQueue.acquire", "self._some.acquire(True"): THREADS,
    ("_runtime.py", "TokenQueue._tell", "self._some.release()"): THREADS,
    ("_shared.py", "SharedCore.watch", 'open(f"{self.address.path}/watcher", "rb")'): (
        "only where tests watch a queue"
    ),
}
"""What no scene comes to: file, function, and what the line has; and why."""


class Place(NamedTuple):
    """Something that can be an effect, and where its code says that it ends (a `with`: begins)."""

    file: str
    function: str
    text: str
    is_with: bool
    positions: list[tuple[str, int, int]]


@pytest.mark.soak
@pytest.mark.time_limit(1200)
def test_every_effect_of_the_package_is_reached(board: Board) -> None:
    sites: set[Site] = set()
    for name, scene in SCENES.items():
        report = play_scene(scene, board, 0)
        assert not report.problem, f"{name}: {report.problem}"
        sites |= {site for _, site in report.sites}
    ends = {(site.file, site.end_line, site.end_column) for site in sites}
    begins = {(site.file, site.line, site.column) for site in sites}
    places = [place for path in sorted(Path(PACKAGE).rglob("*.py")) for place in _places(path)]
    assert len(places) > 300
    missed: list[str] = []
    excused: set[tuple[str, str, str]] = set()
    for place in places:
        if not (begins if place.is_with else ends).isdisjoint(place.positions):
            continue
        excuses = {key for key in UNREACHED if key[:2] == place[:2] and key[2] in place.text}
        excused |= excuses
        if not excuses:
            missed.append(f"{place.file}, {place.function}: {place.text}")
    assert not missed, "\n".join(missed)
    assert excused == set(UNREACHED), f"reached after all: {set(UNREACHED) - excused}"
    assert Site("", 0, 0, 0, 0) in sites, "none of those that C functions make"


def _places(path: Path) -> Iterator[Place]:
    file = str(path.relative_to(PACKAGE))
    if file.startswith(tuple(APART)):
        return
    source = path.read_text()
    lines = source.splitlines()
    for function, node in _inside(ast.parse(source), ""):
        found: ast.AST | None = None
        positions: list[tuple[str, int, int]] = []
        if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            name = _last(node.value)
            assert (name in CELLS) != (name in OWN), f"{file}:{node.lineno}: what is {name!r}?"
            found = node if name in CELLS else None
        elif isinstance(node, ast.Call):
            assert _is_known(node), f"{file}:{node.lineno}: what does {ast.unparse(node)} do?"
            found = node if _is_effect(node) else None
        elif isinstance(node, ast.With):
            items = [item.context_expr for item in node.items]
            if any(_last(item) in LOCKS for item in items):
                found = node
                positions = [(file, item.lineno, item.col_offset) for item in items]
                positions.append((file, node.lineno, node.col_offset))
        if found is not None:
            assert isinstance(found, (ast.expr, ast.stmt))
            assert found.end_lineno is not None
            assert found.end_col_offset is not None
            positions = positions or [(file, found.end_lineno, found.end_col_offset)]
            text = lines[found.lineno - 1].strip()
            yield Place(file, function, text, isinstance(found, ast.With), positions)


def _inside(node: ast.AST, function: str) -> Iterator[tuple[str, ast.AST]]:
    """Each node below *node*, with the function that it is in."""
    for child in ast.iter_child_nodes(node):
        inner = function
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            inner = f"{function}.{child.name}".lstrip(".")
        yield inner, child
        yield from _inside(child, inner)


def _last(node: ast.expr) -> str:
    """The last part of a name."""
    if isinstance(node, ast.Call):
        return _last(node.func)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _of_os(call: ast.Call) -> str:
    """Which function of `os` is called, if it is one."""
    match call.func:
        case ast.Attribute(ast.Name("os"), name):
            return name
        case _:
            return ""


def _is_known(call: ast.Call) -> bool:
    name = _of_os(call)
    return not name or name in HARMLESS or name in OS_CALLS


def _is_effect(call: ast.Call) -> bool:
    return _of_os(call) in OS_CALLS or _last(call) in CALLS

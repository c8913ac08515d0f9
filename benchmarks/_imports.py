"""The cost of ``import iterable_queue``, each time in a fresh interpreter.

Whoever uses the library has imported ``multiprocessing``. So the cost that is held against the
bar is what our import takes once ``multiprocessing`` is there, with those of its submodules that
ours brings in. The cost of all of it, with nothing there before, is printed beside that of
``import multiprocessing`` and of the peers.

The clock is read inside the interpreter, so its own start is not counted. Interpreters run
isolated and without ``site`` (``-I -S``), because an environment may preload what is then missing
from the figure; ``os``, which ``site`` always imports, is there before the clock starts.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from benchmarks._harness import NOT_INSTALLED, Harness, Samples

_SCRIPT = """
import os, sys, time
sys.path[:0] = {paths!r}
{first}
before = set(sys.modules)
started = time.perf_counter_ns()
{timed}
taken = time.perf_counter_ns() - started
modules = [name for name in sys.modules if name not in before]
import json
print(json.dumps([taken, modules]))
"""
# One takes some 50 ms with the interpreter's start, so there can be more of them than of others.
_FACTOR = 5


class CannotImport(Exception):
    """The text is the last line of why."""


@dataclass(frozen=True)
class _Statement:
    """An import to time; ``first`` is done before the clock starts."""

    samples: Samples
    timed: str
    paths: tuple[str, ...] = ()
    first: str = ""

    def run(self) -> tuple[float, list[str]]:
        """Milliseconds taken, and the modules that it brought in."""
        script = _SCRIPT.format(paths=list(self.paths), first=self.first, timed=self.timed)
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", script],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise CannotImport(done.stderr.strip().splitlines()[-1])
        taken_ns, modules = cast("tuple[int, list[str]]", json.loads(done.stdout))
        return taken_ns / 1e6, modules


@dataclass(frozen=True)
class Imports:
    """What importing costs, in milliseconds.

    Attributes:
        over: ours where ``multiprocessing`` is there.
        ours: all of ours.
        others: ``import multiprocessing``, then each peer.
        notes: modules counted.
    """

    over: Samples
    ours: Samples
    others: list[Samples]
    notes: list[str]


def measure(harness: Harness) -> Imports:
    """All of it, interleaved."""
    own_paths = harness.paths("ours")
    ours = _Statement(Samples("ours", "ours"), "import iterable_queue", own_paths)
    modules = _modules(ours)
    needed = sorted({"multiprocessing"} | {name for name in modules if _is_multiprocessing(name)})
    baseline = "import " + ", ".join(needed)
    label = "ours, where multiprocessing is there"
    over = _Statement(Samples(label, "ours"), ours.timed, own_paths, baseline)
    others = [_Statement(Samples(baseline, "multiprocessing"), baseline)]
    environment = _site_directories()
    for label, side, name in (
        ("faster-fifo", "faster-fifo", "faster_fifo"),
        ("quick-queue", "quick-queue-put", "quick_queue"),
    ):
        paths = harness.paths(side) + environment
        others.append(_Statement(Samples(label, side), f"import {name}", paths))
    old = Samples("release 1.2.2", "release-1x")
    others.append(_Statement(old, "import iterable_queue", harness.paths("release-1x")))
    if harness.release_1x is None:
        old.missing = NOT_INSTALLED
    statements = [over, ours, *others]
    _interleave(statements, _FACTOR * harness.rounds)
    notes: list[str] = []
    if modules:
        notes.append(_note(modules, _modules(over)))
    return Imports(over.samples, ours.samples, [other.samples for other in others], notes)


def _interleave(statements: Sequence[_Statement], rounds: int) -> None:
    """Fill the samples. What can't be imported is missing and takes no part."""
    for statement in statements:
        samples = statement.samples
        if not samples.missing:
            try:
                statement.run()  # writes the byte code, warms the disk's cache
                samples.items = 1
            except CannotImport as error:
                samples.missing = str(error)
    for _ in range(rounds):
        for statement in statements:
            if not statement.samples.missing:
                statement.samples.by_round.append(statement.run()[0])


def _modules(statement: _Statement) -> list[str]:
    """What it brings in; nothing if it can't be imported."""
    try:
        return statement.run()[1]
    except CannotImport:
        return []


def _is_multiprocessing(module: str) -> bool:
    return module == "multiprocessing" or module.startswith("multiprocessing.")


def _note(modules: Sequence[str], over: Sequence[str]) -> str:
    own = [name for name in modules if name.partition(".")[0] == "iterable_queue"]
    needed = [name for name in modules if _is_multiprocessing(name)]
    beyond = sorted(set(over) - set(own))
    return (
        f"import iterable_queue brings in {len(modules)} modules: {len(own)} of its own, "
        f"{len(needed)} of multiprocessing, the others of the standard library. Where "
        f"multiprocessing is there it brings in {len(over)}; those not its own: "
        f"{', '.join(beyond) or 'none'}"
    )


def _site_directories() -> tuple[str, ...]:
    """Where the running environment keeps third parties: what ``-S`` leaves out."""
    return tuple(path for path in sys.path if Path(path).name in {"site-packages", "dist-packages"})

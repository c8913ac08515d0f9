"""Killed at every executed line of the package, one after another: nobody else may hang.

A child runs a script of calls on its endpoint under a trace function that sends SIGKILL at the nth
line of the package, inside the queue's lock as well as outside. Afterwards the survivors must pass
an item, come to an end within `SURVIVE_S`, and find counts that add up.

`pytest -m soak tests/test_kill_sweep.py -n 0 -s` kills at each line and prints how many these were;
without the mark one in so many (`STRIDES`) is tried.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

import iterable_queue
from iterable_queue import (
    Cancelled,
    Consumer,
    Done,
    ItemsLost,
    IterableQueue,
    Producer,
    ProducerFailed,
    Worker,
    _directory,
)
from tests.conftest import FORKS, lives

FORK = multiprocessing.get_context("fork")
PACKAGE = os.path.dirname(iterable_queue.__file__)
SURVIVE_S = 5.0
"""Well above the two seconds that are promised, for a machine that is busy with other things."""
MARK = 1_000_000
"""The survivors' item. A worker that lives long enough takes it and puts one less, and so on."""


def _kill_at(line: int) -> None:
    """From now on: SIGKILL this process as it begins the *line*-th line of the package."""
    left = line

    def trace(frame: FrameType, event: str, arg: Any) -> Callable[..., Any] | None:
        nonlocal left
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            left -= 1
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def _produce(out: Producer[int], line: int) -> None:
    _kill_at(line)
    with out:
        for n in range(3):
            out.put(n)
    sys.settrace(None)


def _consume(numbers: Consumer[int], line: int) -> None:
    _kill_at(line)
    with numbers:
        for _ in range(3):
            numbers.get()
    sys.settrace(None)


def _work(tree: Worker[int], line: int) -> None:
    _kill_at(line)
    with tree:
        for n in tree:
            if n:
                tree.put(n - 1)
    sys.settrace(None)


def _manage(queue: IterableQueue[int], line: int) -> None:
    """The queue's own calls, and endpoints that are made and end in the child."""
    _kill_at(line)
    with queue.get_producer() as out, queue.get_consumer():
        out.put(1)
        out.clone().close()
    queue.get_worker().fail(ValueError("on purpose"))
    queue.statistics()
    queue.explain()
    queue.cancel(ValueError("on purpose"))
    sys.settrace(None)


def _actor(queue: IterableQueue[int], script: str) -> Any:
    """What the script runs on, with what it needs to find on the queue."""
    if script == "manage":
        return queue
    if script == "produce":
        return queue.get_producer()
    with queue.get_producer() as out:
        for n in [2] if script == "work" else [10, 11, 12, 13]:
            out.put(n)
    return queue.get_consumer() if script == "consume" else queue.get_worker()


SCRIPTS: dict[str, Callable[[Any, int], None]] = {
    "produce": _produce,
    "consume": _consume,
    "work": _work,
    "manage": _manage,
}

STRIDES = {"produce": 41, "consume": 53, "work": 113, "manage": 353}


def _one_kill(script: str, line: int) -> str:
    """Kill at *line*; how it ended for the others, or `finished` if the script has fewer lines."""
    queue = IterableQueue[int]()
    endpoint = _actor(queue, script)
    others = queue.get_consumer()
    child = FORK.Process(target=SCRIPTS[script], args=(endpoint, line))
    child.start()
    del endpoint
    try:
        assert child.pid is not None
        return _survive(queue, others, child.pid, script)
    finally:
        child.join(10)
        finished = child.exitcode == 0
        child.kill()
        if finished:
            _Finished.yes = True


class _Finished:
    yes = False


def _survive(queue: IterableQueue[int], others: Consumer[int], child: int, script: str) -> str:
    outcome: list[str] = []

    def run() -> None:
        deadline = time.monotonic() + SURVIVE_S
        # What the child leaves is the survivors'.
        while script != "produce" and lives(child) and time.monotonic() < deadline:
            if script == "work" and queue.statistics().blocked_consumers:
                break
            time.sleep(0.001)
        try:
            seen: list[int] = []
            try:
                with queue.get_producer() as out:
                    out.put(MARK, timeout=SURVIVE_S)
                queue.close()
                for n in others:
                    seen.append(n)
            except (ProducerFailed, Cancelled):
                pass
            stats = queue.statistics()
            if max(seen, default=0) < MARK - 1000 and not stats.lost and stats.state != "cancelled":
                outcome.append(f"the survivors' item was lost: {seen}")
                return
            others.close()
            try:
                queue.join(SURVIVE_S)
            except (ProducerFailed, ItemsLost, Done, Cancelled):
                pass
            stats = queue.statistics()
            while (lives(child) or stats.open_workers) and time.monotonic() < deadline:
                time.sleep(0.001)
                stats = queue.statistics()
            if (
                stats.queued
                or stats.open_producers + stats.open_consumers + stats.open_workers
                or stats.put != stats.taken + stats.dropped
                or stats.taken != stats.finished + stats.lost
            ):
                outcome.append(f"the counts are wrong: {stats}")
            outcome.append("whole")
        except BaseException as error:
            outcome.append(f"unexpected {error!r}")

    # The survivors run in a thread, so that a hang is seen and not shared.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(4 * SURVIVE_S)
    return outcome[0] if outcome else f"HANG: {queue!r}"


def _sweep(script: str, first: int, stride: int) -> Counter[str]:
    counts: Counter[str] = Counter()
    _Finished.yes = False
    line = first
    while True:
        outcome = _one_kill(script, line)
        if _Finished.yes:
            # A child that was killed may have been the last that knew of an earlier queue, whose
            # directory is then left to the next queue that is made; it looks once a minute.
            _directory._swept_at = -1e9
            IterableQueue[int]().close()
            return counts
        counts[outcome if outcome == "whole" else f"line {line}: {outcome}"] += 1
        line += stride


@FORKS
@pytest.mark.time_limit(240)
@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("script", SCRIPTS)
def test_some_lines(script: str, half: int) -> None:
    counts = _sweep(script, 1 + half * STRIDES[script], 2 * STRIDES[script])
    assert set(counts) == {"whole"}, counts


@FORKS
@pytest.mark.soak
@pytest.mark.time_limit(3000)
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_line(script: str) -> None:
    counts = _sweep(script, 1, 1)
    print(f"{script}: {counts.total()} lines, {dict(counts)}")
    assert set(counts) == {"whole"}, counts

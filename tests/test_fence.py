"""Where cells may be shared without a lock, and the fence and the gate for it."""

from __future__ import annotations

import mmap
import os
import signal
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from iterable_queue import _fence, _mutex
from iterable_queue._fence import gate, is_supported
from tests.conftest import FORKS, Processes


def test_it_is_supported_where_it_was_tried() -> None:
    """So that what is skipped where it is not is never skipped there without a word."""
    here = (sys.implementation.name, sys.platform, os.uname().machine)
    free_threaded = not getattr(sys, "_is_gil_enabled", lambda: True)()
    assert _fence.is_supported() == (here == ("cpython", "linux", "x86_64") and not free_threaded)


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (sys, "implementation", SimpleNamespace(name="pypy")),
        (sys, "platform", "darwin"),
        (sys, "_is_gil_enabled", lambda: False),
        (os, "uname", lambda: SimpleNamespace(machine="aarch64")),
        (_mutex, "is_supported", lambda: False),
    ],
)
def test_it_is_not_supported_elsewhere(
    owner: object, name: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, value, raising=False)
    assert not _fence.is_supported()


def test_a_fence_is_renewed_before_it_is_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fence, "_MOST", 10)
    fences = _fence.Fences()
    first = fences.full
    for _ in range(10):
        fences.renew()()
    assert fences.full == first
    fences.full()
    assert fences.renew() != first


@pytest.mark.skipif(not is_supported(), reason="all goes by the lock here")
def test_a_gate_takes_from_a_cell_what_is_there() -> None:
    """And what others store there counts at once."""
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    cells: Any = memoryview(memory).cast("q")
    take = gate(cells[8:], 4)
    assert not take(False)
    cells[12] = 3
    assert [take(False) for _ in range(4)] == [True, True, True, False]
    assert cells.tolist() == [0] * len(cells)
    cells[12] = 1 << 30
    assert take(False)
    assert cells[12] == (1 << 30) - 1
    cells[12] = 0
    assert not take(False)


@FORKS
@pytest.mark.skipif(not is_supported(), reason="all goes by the lock here")
def test_of_what_a_gate_lets_through_none_is_taken_twice(processes: Processes) -> None:
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    cells: Any = memoryview(memory).cast("q")
    cells[0] = total = 100_000

    def count(at: int) -> None:
        take = gate(cells, 0)
        while not cells[8]:
            pass
        while take(False):
            cells[at] += 1

    pids = list[int]()
    for at in (16, 24):
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            try:
                count(at)
            finally:
                os._exit(0)
        processes.watch(pid)
        pids.append(pid)
    cells[8] = 1
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0]
    assert cells[16] + cells[24] == total
    assert cells[0] == 0

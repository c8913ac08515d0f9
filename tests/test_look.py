"""Looking at a queue from outside: what is seen is what is, and nothing is changed by it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from iterable_queue import IterableQueue, ProducerFailed, _fence, _look
from iterable_queue import _cells as cells_
from iterable_queue._cells import HEAD_SIZE, HOLDER, LAYOUT, PROCESS, SLOT_SIZE
from iterable_queue._channels import log
from iterable_queue._look import Look, NotThere, OtherLayout
from iterable_queue._shared import SharedCore

lockless = pytest.mark.skipif(not _fence.is_supported(), reason="all goes by the lock here")


def core_of(queue: IterableQueue[Any]) -> SharedCore:
    core = queue._core
    assert isinstance(core, SharedCore)
    return core


def path_of(queue: IterableQueue[Any]) -> str:
    return core_of(queue).address.path


def slot_of(endpoint: Any) -> int:
    slot: int = endpoint.slot
    return slot


def unbounded() -> IterableQueue[int]:
    return IterableQueue()


def bounded() -> IterableQueue[int]:
    return IterableQueue(50)


def redelivering() -> IterableQueue[int]:
    return IterableQueue(redeliver=True)


@pytest.fixture(params=[unbounded, bounded, redelivering])
def queue(request: pytest.FixtureRequest) -> IterableQueue[int]:
    make: Callable[[], IterableQueue[int]] = request.param
    return make()


def use(queue: IterableQueue[int]) -> list[object]:
    """Endpoints of each kind, some items in each state."""
    out, other, source, tree = (
        queue.get_producer(),
        queue.get_producer(),
        queue.get_consumer(),
        queue.get_worker(),
    )
    out.put_many(range(20))
    other.fail(ValueError("no more"))
    assert source.get_many(3) == [0, 1, 2]
    assert source.get() == 3
    assert tree.get() is not None
    tree.put(7)
    return [out, source, tree]


def without_ages(text: str) -> list[str]:
    return [line.partition(", last active")[0] for line in text.splitlines()]


# What is seen


def test_the_counts_are_those_of_the_queue(queue: IterableQueue[int]) -> None:
    ends = use(queue)
    statistics = queue.statistics()
    assert Look(path_of(queue)).statistics() == statistics
    assert (statistics.put, statistics.open_workers, statistics.failures) == (21, 1, 1)
    del ends


def test_the_explanation_is_that_of_the_queue(queue: IterableQueue[int]) -> None:
    ends = use(queue)
    pid = os.getpid()
    there = queue.explain().replace(f"this process (pid {pid})", f"pid {pid} (alive)")
    assert without_ages(Look(path_of(queue)).explain()) == without_ages(there)
    del ends


def test_every_state(queue: IterableQueue[int]) -> None:
    out, source = queue.get_producer(), queue.get_consumer()
    path = path_of(queue)
    assert Look(path).statistics().state == "open"
    queue.close()
    assert Look(path).statistics().state == "closed"
    assert not Look(path).is_over()
    out.put(1)
    out.close()
    assert source.get() == 1
    assert Look(path).statistics().state == queue.statistics().state
    assert not Look(path).is_over(), "it is in hand"
    source.close()
    assert Look(path).statistics().state == "done"
    assert Look(path).is_over()


def test_who_made_it_when_and_where(queue: IterableQueue[int]) -> None:
    look = Look(path_of(queue))
    assert look.maker == os.getpid()
    assert 0 <= time.time() - look.made_at < 60
    assert look.processes() == [(os.getpid(), True)]
    queue.close()
    again = [queue.get_consumer() for _ in range(3)]  # of which one has the queue's own slot
    name, _, line = Look(path_of(queue)).site.rpartition(":")
    assert name == __file__
    assert int(line) > 0
    del again


def test_what_is_bounded() -> None:
    queue, other = bounded(), unbounded()
    assert (Look(path_of(queue)).maxsize, Look(path_of(other)).maxsize) == (50, 0)


def test_a_queue_that_has_grown() -> None:
    queue = unbounded()
    ends = [queue.get_producer() for _ in range(200)]
    assert Look(path_of(queue)).statistics().open_producers == 200
    del ends


def test_the_dead_are_known() -> None:
    queue = unbounded()
    core = core_of(queue)
    other = SharedCore(core.address)
    other.register()
    os.close(other._life)
    other._life, other._left = -1, True
    assert sorted(Look(path_of(queue)).processes()) == [(os.getpid(), False), (os.getpid(), True)]


class Theirs(Exception):
    """An error of a program whose modules are not here."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, ()


def _opened() -> Theirs:
    if os.environ.get("LOOKING"):
        pytest.fail("an error of the program's was unpickled")
    return Theirs("tables are full")


def test_errors_are_told_and_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = unbounded()
    path = path_of(queue)
    out = queue.get_producer()
    out.fail(Theirs("disks are full"))
    monkeypatch.setenv("LOOKING", "1")
    failure = Look(path).ledger.failure()
    assert isinstance(failure, ProducerFailed)
    assert "disks are full" in str(failure)
    monkeypatch.delenv("LOOKING")
    queue.cancel(Theirs("tables are full"))
    monkeypatch.setenv("LOOKING", "1")
    assert "cancelled: the queue was cancelled" in Look(path).explain()
    assert "tables are full" in Look(path).explain()
    assert Look(path).is_over()


def test_errors_of_a_queue_that_goes() -> None:
    queue = unbounded()
    queue.get_producer().fail(ValueError())
    queue.cancel(ValueError("why"))
    look = Look(path_of(queue))
    for name in ("errors", "reason"):
        os.unlink(f"{look.path}/{name}")
    assert look.ledger.failure().failures
    assert "nobody said why" in look.explain()


@lockless
def test_when_a_producer_put_last() -> None:
    queue = unbounded()
    out, idle = queue.get_producer(), queue.get_producer()
    for n in range(3000):  # some files full
        out.put(n)
    slot = slot_of(out)
    claims, seen = core_of(queue).ledger.claims, Look(path_of(queue)).ledger.claims
    assert claims is not None
    assert seen is not None
    assert seen.last_put(slot) == claims.last_put(slot) > 0
    assert seen.last_put(slot_of(idle)) == 0


@lockless
@pytest.mark.parametrize("hindrance", ["gone", "many"])
def test_when_that_can_not_be_seen(hindrance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = unbounded()
    out = queue.get_producer()
    for n in range(100):
        out.put(n)
    look = Look(path_of(queue))
    if hindrance == "gone":
        for file in Path(look.path).glob("s*.*"):
            file.rename(file.with_name("z"))
    else:
        monkeypatch.setattr(_look, "MOST_RECORDS", 10)
    assert "producer 1" in look.explain()
    assert look.ledger.claims is not None
    assert look.ledger.claims.last_put(slot_of(out)) == 0


# Nothing is changed


def everything(path: str) -> dict[str, tuple[bytes, int]]:
    files = {file.name: file for file in Path(path).iterdir()}
    return {name: (file.read_bytes(), file.stat().st_mtime_ns) for name, file in files.items()}


def test_a_look_changes_nothing(queue: IterableQueue[int], monkeypatch: pytest.MonkeyPatch) -> None:
    ends = use(queue)
    before = everything(path_of(queue))
    opened: list[int] = []
    open_ = os.open

    def watched(path: str, flags: int, *args: Any, **kwargs: Any) -> int:
        opened.append(flags)
        return open_(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", watched)
    look = Look(path_of(queue))
    look.statistics()
    look.explain()
    look.processes()
    look.ledger.settle()
    monkeypatch.undo()
    assert everything(path_of(queue)) == before
    assert opened
    assert not [flags for flags in opened if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)]
    del ends


def test_it_waits_for_nobody_inside_the_lock(
    queue: IterableQueue[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    core = core_of(queue)
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    with core.runtime.lock:
        core.ledger.head[HOLDER] = core.ledger.me
        try:
            look = Look(path_of(queue))
        finally:
            core.ledger.head[HOLDER] = 0
    assert look.statistics().state == "open"
    assert waits == [_look.PAUSE_S] * _look.TRIES


def test_a_look_is_no_process(queue: IterableQueue[int]) -> None:
    Look(path_of(queue)).statistics()
    assert len(list(core_of(queue).ledger.views(PROCESS))) == 1


# A moment


def test_it_looks_again_if_something_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = unbounded()
    read, calls = _look._read, list[int]()
    ends: list[object] = []

    def disturbed(fd: int, count: int) -> list[int]:
        calls.append(count)
        cells = read(fd, count)
        if len(calls) == 3:  # between the copy of all and the second look at the head
            ends.append(queue.get_consumer())
        return cells

    monkeypatch.setattr(_look, "_read", disturbed)
    assert Look(path_of(queue)).statistics().open_consumers == 1
    assert len(calls) == 1 + 3 + 3 + 1


@lockless
def test_what_is_taken_was_put(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts pass the lock by, so they may come between the copies of two cells."""
    queue = unbounded()
    out, source = queue.get_producer(), queue.get_consumer()
    out.put(1)
    read = _look._read

    def disturbed(fd: int, count: int) -> list[int]:
        cells = read(fd, count)
        if count == HEAD_SIZE:
            out.put(2)
        return cells

    with monkeypatch.context() as patch:
        patch.setattr(_look, "_read", disturbed)
        seen = Look(path_of(queue)).statistics()
    assert seen.put == seen.queued == queue.statistics().put == 4
    assert source.get_many(4) == [1, 2, 2, 2]


# What is no queue to be looked at


@pytest.mark.parametrize("size", [0, 100, 8 * HEAD_SIZE, 8 * (HEAD_SIZE + 4 * SLOT_SIZE)])
def test_what_is_just_being_made(size: int, tmp_path: Path) -> None:
    (tmp_path / "cells").write_bytes(bytes(size))
    with pytest.raises(NotThere, match="being made"):
        Look(str(tmp_path))


def test_cells_cut_short() -> None:
    queue = unbounded()
    path = path_of(queue)
    raw = Path(path, "cells").read_bytes()[: 8 * (HEAD_SIZE + SLOT_SIZE)]
    os.rename(path, f"{path}-aside")
    os.mkdir(path)
    try:
        Path(path, "cells").write_bytes(raw)
        with pytest.raises(NotThere):
            Look(path)
    finally:
        os.unlink(f"{path}/cells")
        os.rmdir(path)
        os.rename(f"{path}-aside", path)


@pytest.mark.parametrize("layout", [0, cells_.LAYOUT_OF_THIS + 1])
def test_another_version_is_refused_by_name(layout: int) -> None:
    queue = unbounded()
    head = core_of(queue).ledger.head
    head[LAYOUT] = layout
    with pytest.raises(OtherLayout, match=f"another version.*layout {layout:x}"):
        Look(path_of(queue))


def test_what_has_gone_or_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("gone", "file", "."):
        with pytest.raises(NotThere):
            Look(str(tmp_path / name))


def test_another_users(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = unbounded()
    status = os.lstat(path_of(queue))
    theirs = SimpleNamespace(st_uid=os.geteuid() + 1, st_mode=status.st_mode)
    monkeypatch.setattr(os, "lstat", lambda path: theirs)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    with pytest.raises(NotThere, match="another user's"):
        Look(path_of(queue))


def test_the_slot_of_nobody_has_room_for_a_text() -> None:
    """Where a queue was made is written to cells of slot 0, beside those of lane 0."""
    text = range(cells_.SITE, cells_.SITE + SLOT_SIZE - cells_.TEXT)
    assert cells_.KIND not in text
    assert not set(text) & set(range(cells_.LANE_CELLS, SLOT_SIZE))
    assert log.OWNER == cells_.LANE_CELLS
    assert 0 < cells_.LAYOUT_OF_THIS < 1 << 63

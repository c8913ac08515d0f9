"""What is logged: seldom, never under a lock, and without trouble for who puts or gets."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import iterable_queue
from iterable_queue import ChannelBroken, Done, IterableQueue, ProducerFailed, _directory, _news
from iterable_queue._cells import CONSUMER, PRODUCER
from tests.test_shared import Parts

LOGGER = logging.getLogger("iterable_queue")


class Kept(logging.Handler):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def lines(self) -> list[tuple[str, str]]:
        return [(record.levelname, record.getMessage()) for record in self.records]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    """What is told in this test; left-overs of others are not looked for."""
    monkeypatch.setattr(_directory, "_swept_at", time.monotonic())
    handler = Kept()
    _news._notes.clear()
    with set_up(handler):
        yield handler


@contextmanager
def set_up(handler: logging.Handler) -> Generator[None]:
    """The logger with that handler, and what it was before afterwards."""
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(logging.NOTSET)


# Deaths


def test_a_dead_process_is_told(kept: Kept) -> None:
    parts = Parts()
    other = parts.join()
    opened = [other.transact(other.ledger.open, kind, "x.py:1") for kind in (PRODUCER, CONSUMER)]
    for slot, number in opened:
        other.transact(other.ledger.take_over, slot, number, None)
    parts.die(other)
    parts.maker.look()
    [(level, line)] = kept.lines
    assert level == "WARNING"
    assert line.startswith(f"process {os.getpid()} was killed")
    assert f"has ended: producer 1, consumer 2; queue {parts.address.path}" in line
    parts.maker._looked_at = 0.0
    parts.maker.look()
    assert len(kept.lines) == 1, "once"


def test_nothing_is_told_of_who_leaves(kept: Kept) -> None:
    parts = Parts()
    parts.join().leave("returned")
    parts.maker.look()
    assert kept.lines == []


def test_one_that_never_began(kept: Kept) -> None:
    parts = Parts()
    fd = parts.maker.transact(parts.maker._make_heir)[1]
    os.close(fd)
    parts.maker.look()
    [(level, line)] = kept.lines
    assert (level, line.partition(";")[0]) == (
        "WARNING",
        "a process ended before it began to run",
    )
    assert "has ended: nothing;" in line


def test_an_endpoint_that_nobody_took(kept: Kept) -> None:
    parts = Parts()
    other = parts.join()
    other.transact(other.ledger.open, PRODUCER, "x.py:1")
    parts.die(other)
    parts.maker.look()
    assert [level for level, _ in kept.lines] == ["WARNING", "WARNING"]
    assert kept.lines[1][1].startswith("producer 1 was never taken")


@pytest.mark.parametrize("redeliver", [False, True])
def test_what_was_in_hand_of_the_dead(redeliver: bool, kept: Kept) -> None:
    parts = Parts(redeliver=redeliver)
    other = parts.join()
    maker = parts.maker
    maker.transact(maker.ledger.channel.append, maker.dumps(1) if maker.dumps else b"", 1)
    slot, number = other.transact(other.ledger.open, CONSUMER, "x.py:1")
    other.transact(other.ledger.take_over, slot, number, None)
    other._begin()
    from iterable_queue._endpoints import ConsumerEndpoint

    source = ConsumerEndpoint[int](other, slot, number)
    assert source.get() == 1
    parts.die(other)
    maker.look()
    assert len(kept.lines) == 2
    level, line = kept.lines[1]
    told = "handed out again" if redeliver else "lost"
    assert (level, f"1 item(s) in hand of process {os.getpid()} are {told}" in line) == (
        "INFO" if redeliver else "WARNING",
        True,
    )


# Broken


def test_a_directory_that_somebody_removed(kept: Kept) -> None:
    parts = Parts()
    cells = Path(parts.address.path, "cells")
    aside = cells.rename(cells.with_name("aside"))
    for _ in range(2):
        parts.maker._looked_at = 0.0
        with pytest.raises(ChannelBroken):
            parts.maker.look()
    aside.rename(cells)
    [(level, line)] = kept.lines
    assert level == "ERROR"
    assert line == (
        "broken: its directory was removed by somebody else; queue " + parts.address.path
    )


# Left-overs


def test_left_overs_that_were_removed(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_directory, "place_for_new", lambda: str(tmp_path))
    monkeypatch.setattr(_directory, "_swept_at", -1e9)
    left = tmp_path / f"{_directory.PREFIX}{os.geteuid()}-{os.getpid()}-00"
    left.mkdir()
    (left / "p1").touch()
    IterableQueue[int]()
    assert kept.lines == [
        ("INFO", f"removed what was left when all processes of a queue were killed; queue {left}")
    ]


# Handlers


def kill_one(parts: Parts) -> None:
    parts.die(parts.join())
    parts.maker._looked_at = 0.0
    parts.maker.look()


def test_a_handler_that_raises_is_its_own_trouble() -> None:
    class Raising(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ValueError(record)

    with set_up(Raising()):
        kill_one(Parts())


def test_a_handler_may_use_the_same_queue() -> None:
    """It is called without the lock, so another thread could have that as well."""
    queue = IterableQueue[str]()
    out, source = queue.get_producer(), queue.get_consumer()
    core = queue._core

    class Putting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            thread = threading.Thread(target=queue.statistics)
            thread.start()
            thread.join(10)
            assert not thread.is_alive()
            out.put(record.getMessage())
            queue.explain()

    _news._notes.clear()
    with set_up(Putting()):
        _news.note(_news.WARNING, "item %d", 1)
        core._looked_at = 0.0  # type: ignore[attr-defined]
        core.look()
    assert source.get(timeout=0) == "item 1"


def test_a_handler_that_causes_news_is_given_them_too(kept: Kept) -> None:
    class Noting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == "first":
                _news.note(_news.INFO, "second")
                _news.tell()

    with set_up(Noting()):
        _news.note(_news.INFO, "first")
        _news.tell()
    assert sorted(line for _, line in kept.lines) == ["first", "second"]


def test_a_child_does_not_tell_its_parents_news(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    _news.note(_news.INFO, "of the parent")
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        _news.tell()
    assert kept.lines == []


def test_nobody_waits_for_what_another_thread_tells(kept: Kept) -> None:
    class Emptied:
        """As it is if another thread is faster."""

        def __len__(self) -> int:
            return 1

        def popleft(self) -> object:
            raise IndexError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_news, "_notes", Emptied())
        _news.tell()
    assert kept.lines == []


# Nothing by default

PROGRAM = """
import sys
from iterable_queue import IterableQueue, _news
if "logging" in sys.argv:
    import logging
queue = IterableQueue()
assert ("logging" in sys.modules) == ("logging" in sys.argv)
_news.note(_news.WARNING, "nobody %s", "listens")
queue._core._looked_at = 0.0
queue.statistics()
assert not _news._notes
assert ("logging" in sys.modules) == ("logging" in sys.argv)
"""


@pytest.mark.parametrize("argument", ["", "logging"])
def test_nothing_is_shown_or_imported_by_default(argument: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, argument],
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")},
            "PYTHONPATH": str(Path(iterable_queue.__file__).parents[1]),
        },
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_whole_story(kept: Kept) -> None:
    """What happens in good order is not told."""
    with IterableQueue[int]() as queue:
        out, source = queue.get_producer(), queue.get_consumer()
    out.put(1)
    out.fail(ValueError("told by the exception"))
    assert source.get() == 1
    with pytest.raises(ProducerFailed):
        source.get()
    source.close()
    other = IterableQueue[int]()
    other.close()
    with pytest.raises(Done):
        other.get_consumer().get()
    assert kept.lines == []

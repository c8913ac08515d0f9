"""Recordings: what is in the file, when they end, and that they hold nothing up."""

from __future__ import annotations

import gc
import json
import os
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest

from iterable_queue import IterableQueue, Recording, Statistics, WouldDeadlock
from iterable_queue.testing import FakeQueue, VirtualClock
from tests.conftest import FORKS, Processes, wait_until

MAKERS = {"threads": IterableQueue[int].threaded, "processes": IterableQueue[int]}
LONG_S = 1000.0


@pytest.fixture(params=MAKERS)
def queue(request: pytest.FixtureRequest) -> IterableQueue[int]:
    return MAKERS[request.param]()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.jsonl"


def lines_of(path: Path) -> list[dict[str, Any]]:
    text = path.read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def samples_of(path: Path) -> list[dict[str, Any]]:
    return [line for line in lines_of(path) if "state" in line]


def end_of(path: Path) -> str | None:
    """Why it ended; None: it has not."""
    if not path.read_text().endswith("\n"):
        return None  # in the middle of a line
    end: str | None = lines_of(path)[-1].get("end")
    return end


# What is in the file


def test_the_file(queue: IterableQueue[int], path: Path) -> None:
    out, source = queue.get_producer(), queue.get_consumer()
    with queue.record(path, interval=LONG_S) as recording:
        out.put_many(range(5))
        recording.sample()
        assert source.get_many(2) == [0, 1]
    head, *lines, end = lines_of(path)
    assert {key: head[key] for key in ("iterable_queue", "format", "maxsize", "interval")} == {
        "iterable_queue": "recording",
        "format": 1,
        "maxsize": 0,
        "interval": LONG_S,
    }
    assert head["made"].startswith(__file__)
    assert 0 <= time.time() - head["started"] < 60
    assert head["pid"] == os.getpid()
    times = [line.pop("t") for line in lines]
    assert times == sorted(times)
    assert times[0] >= 0
    assert [Statistics(**line).put for line in lines] == [0, 5, 5]
    assert [line["taken"] for line in lines] == [0, 0, 2]
    assert Statistics(**lines[-1]) == queue.statistics()
    assert end == {"t": end["t"], "end": "closed"}
    assert end["t"] >= times[-1]
    assert (recording.path, recording.error) == (str(path), None)


def test_a_bounded_queue(path: Path) -> None:
    queue = IterableQueue[int](7)
    queue.record(str(path), interval=None).close()
    assert lines_of(path)[0]["maxsize"] == 7
    assert lines_of(path)[0]["interval"] is None


def test_a_thread_takes_samples(queue: IterableQueue[int], path: Path) -> None:
    with queue.record(path, interval=0.001):
        wait_until(lambda: len(path.read_text().splitlines()) > 6, "some samples")
    times = [line["t"] for line in samples_of(path)]
    assert times == sorted(times)


def test_a_file_is_written_anew(queue: IterableQueue[int], path: Path) -> None:
    path.write_text("something\n" * 1000)
    queue.record(path, interval=None).close()
    assert len(lines_of(path)) == 4


# When it ends


def test_it_ends_with_the_queue(queue: IterableQueue[int], path: Path) -> None:
    out, source = queue.get_producer(), queue.get_consumer()
    recording = queue.record(path, interval=0.001)
    with queue, out:
        out.put(1)
    assert list(source) == [1]
    assert queue.join(timeout=10)
    wait_until(lambda: end_of(path), "the end")
    assert end_of(path) == "over"
    assert samples_of(path)[-1]["state"] == "done"
    before = path.read_text()
    recording.sample()
    recording.close()
    recording.close()
    assert path.read_text() == before


def test_it_ends_when_the_queue_is_cancelled(path: Path) -> None:
    queue = IterableQueue[int]()
    queue.record(path, interval=0.001)
    queue.cancel()
    wait_until(lambda: end_of(path), "the end")
    assert samples_of(path)[-1]["state"] == "cancelled"


@pytest.mark.parametrize("kind", MAKERS)
def test_it_does_not_keep_the_queue_alive(kind: str, path: Path) -> None:
    queue = MAKERS[kind]()
    core = weakref.ref(queue._core)
    recording = queue.record(path, interval=0.001)
    threads = set(threading.enumerate())
    del queue
    gc.collect()
    wait_until(lambda: end_of(path), "the end")
    assert core() is None
    assert end_of(path) in ("gone", "over")
    assert all(thread.daemon for thread in threads if thread.name.startswith("recording"))
    recording.close()


def test_sampling_by_hand_starts_no_thread(queue: IterableQueue[int], path: Path) -> None:
    before = threading.active_count()
    with queue.record(path, interval=None) as recording:
        assert threading.active_count() == before
        recording.sample()
    assert len(samples_of(path)) == 3


def record_in_child(recording: Recording) -> None:
    recording.sample()
    recording.close()


@FORKS
def test_a_forked_child_records_nothing(
    queue: IterableQueue[int], path: Path, processes: Processes
) -> None:
    import multiprocessing

    recording = queue.record(path, interval=None)
    fork = multiprocessing.get_context("fork")
    processes.start(fork.Process(target=record_in_child, args=(recording,)))
    assert processes.join() == [0]
    assert len(samples_of(path)) == 1
    recording.close()
    assert end_of(path) == "closed"


# What goes wrong


def test_a_full_disk_ends_the_recording_only(
    queue: IterableQueue[int], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = queue.record(path, interval=0.001)
    write = os.write

    def full(fd: int, data: bytes) -> int:
        return write(fd, data[:10])

    monkeypatch.setattr(os, "write", full)
    wait_until(lambda: recording.error, "an error")
    monkeypatch.undo()
    assert isinstance(recording.error, OSError)
    assert recording.error.filename == str(path)
    queue.get_producer().put(1)
    recording.close()


def test_a_full_disk_is_told_to_who_asks_for_a_sample(
    queue: IterableQueue[int], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = queue.record(path, interval=None)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: 0)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
        with pytest.raises(OSError, match="No space"):
            recording.sample()
        recording.close()
    assert isinstance(recording.error, OSError)


def test_no_file_no_recording(queue: IterableQueue[int], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        queue.record(tmp_path / "no" / "folder")


@pytest.mark.parametrize(
    ("interval", "error"), [(0, ValueError), (-1.0, ValueError), ("1", TypeError)]
)
def test_what_interval_can_not_be(
    interval: Any, error: type[Exception], queue: IterableQueue[int], path: Path
) -> None:
    with pytest.raises(error, match="interval"):
        queue.record(path, interval=interval)
    assert not path.exists()


def test_a_thread_that_can_not_be_started(
    queue: IterableQueue[int], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError):
        queue.record(path)
    assert end_of(path) == "failed"


def test_a_queue_that_is_broken(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = IterableQueue[int].threaded()
    recording = queue.record(path, interval=0.001)

    def nested(*args: object) -> None:
        raise WouldDeadlock

    monkeypatch.setattr(queue._core, "transact", nested)
    wait_until(lambda: end_of(path), "the end")
    assert end_of(path) == "gone"
    assert recording.error is None
    recording.close()


# Of the fake


def test_a_fake_is_recorded_by_hand_on_its_own_clock(path: Path) -> None:
    clock = VirtualClock()
    queue = FakeQueue[int](clock=clock)
    with queue.record(path) as recording:
        assert not any(thread.name.startswith("recording") for thread in threading.enumerate())
        clock.advance(2.5)
        queue.get_producer().put(1)
        recording.sample()
    assert [(line["t"], line["put"]) for line in samples_of(path)] == [(0, 0), (2.5, 1), (2.5, 1)]

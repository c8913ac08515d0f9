"""What Python's development mode tells of endpoints that were dropped without a close."""

from __future__ import annotations

import gc
import os
import pickle
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from iterable_queue import Done, IterableQueue
from iterable_queue._leaks import Leaks
from tests.test_readme import run

Make = Callable[[], IterableQueue[Any]]
Told = list[warnings.WarningMessage]


@pytest.fixture(params=[IterableQueue[Any].threaded, IterableQueue[Any]], ids=["threads", "log"])
def make(request: pytest.FixtureRequest) -> Make:
    """Makes queues as development mode has them."""

    def made() -> IterableQueue[Any]:
        queue: IterableQueue[Any] = request.param()
        queue._core.leaks = Leaks()
        return queue

    return made


@pytest.fixture
def iq(make: Make) -> Iterator[IterableQueue[Any]]:
    """One that is no leak itself."""
    queue = make()
    yield queue
    queue.close()


@pytest.fixture
def told() -> Iterator[Told]:
    gc.collect()  # what other tests have left in cycles
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def texts(told: Told) -> list[str]:
    assert {each.category for each in told} <= {ResourceWarning}
    return [re.sub(r"\d+(?=$)", "LINE", str(each.message)) for each in told]


def line_of(text: str) -> int:
    """The number of the line of this file that has *text* first."""
    with open(__file__) as file:
        return next(n for n, line in enumerate(file, 1) if text in line)


@pytest.mark.skipif(sys.flags.dev_mode, reason="this is development mode")
def test_nothing_is_told_otherwise(told: Told) -> None:
    iq = IterableQueue[int].threaded()
    assert iq._core.leaks is None
    iq.get_producer().put(1)
    del iq
    assert told == []


def test_a_used_producer(iq: IterableQueue[Any], told: Told) -> None:
    out = iq.get_producer()  # the line that is named
    out.put(1)
    del out
    [warning] = told
    assert (warning.filename, warning.lineno) == (__file__, line_of("the line that is named"))
    assert texts(told) == [
        f"producer 1 of process {os.getpid()} was dropped without close(); "
        f"it was made at {__file__}:LINE"
    ]
    assert iq.statistics().failures == 1


@pytest.mark.parametrize("kind", ["producer", "consumer", "worker"])
def test_each_kind_that_nobody_used(iq: IterableQueue[Any], told: Told, kind: str) -> None:
    getattr(iq, f"get_{kind}")()
    [text] = texts(told)
    assert text.startswith(f"{kind} 1 of process ")


def test_what_an_ending_thread_refers_to_alone(iq: IterableQueue[Any], told: Told) -> None:
    """It is dropped by the interpreter itself: no frame is above that of `__del__`."""
    own = threading.local()

    def work() -> None:
        own.out = iq.get_producer()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert [str(warning.message).split()[0] for warning in told] == ["producer"]


def test_each_of_a_ring(iq: IterableQueue[Any], told: Told) -> None:
    ring = list[Any]()
    ring += (ring, iq.get_producer(), iq.get_producer(), iq.get_producer())
    del ring
    gc.collect()
    assert len(told) == 3


def test_the_queue_itself(make: Make, told: Told) -> None:
    iq = make()
    source = iq.get_consumer()
    del iq
    assert texts(told) == [f"the queue was dropped without close(); it was made at {__file__}:LINE"]
    with pytest.raises(Done):
        source.get()


def test_what_is_closed_is_no_leak(iq: IterableQueue[Any], told: Told) -> None:
    with iq, iq.get_worker(), iq.get_producer() as out:
        out.fail(ValueError("why"))
    iq.get_consumer().close()
    del out
    assert told == []


def test_a_consumer_of_a_queue_that_is_done_is_no_leak(iq: IterableQueue[Any], told: Told) -> None:
    with iq, iq.get_producer() as out:
        out.put(1)
    assert list(iq.get_consumer()) == [1]
    for end in (iq.get_consumer(),):
        del end
    assert told == []


def test_after_a_cancel_there_are_no_leaks(iq: IterableQueue[Any], told: Told) -> None:
    ends = [iq.get_producer(), iq.get_consumer(), iq.get_worker()]
    iq.cancel()
    ends.clear()
    assert told == []


def test_what_was_handed_on_is_no_leak(told: Told) -> None:
    iq = IterableQueue[int]()
    iq._core.leaks = Leaks()
    out = iq.get_producer()
    data = pickle.dumps(out)
    del out
    assert told == []
    with pickle.loads(data) as out:
        out.put(1)
    pickle.dumps(iq)  # so that others may have it
    source = iq.get_consumer()
    del iq
    assert told == []
    source.close()


def test_what_a_queue_that_has_gone_left_is_no_leak(told: Told) -> None:
    iq = IterableQueue[int]()
    data = pickle.dumps(iq.get_producer())
    del iq
    gc.collect()
    told.clear()
    lost = pickle.loads(data)
    lost._core.leaks = Leaks()
    del lost
    assert told == []


def test_inside_a_transition_it_waits(iq: IterableQueue[Any]) -> None:
    """Whoever gets the warning may wait for a thread that waits for the queue."""
    asked: list[bool] = []

    def ask(*args: object, **kwargs: object) -> None:
        thread = threading.Thread(target=iq.statistics, daemon=True)
        thread.start()
        thread.join(5.0)
        asked.append(not thread.is_alive())

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = ask
        ends = [iq.get_producer()]
        iq._core.transact(ends.clear)
        assert asked == []
        iq.qsize()
        assert asked == [True]
        more = [iq.get_consumer(), iq.get_consumer()]
        for _ in range(2):
            iq._core.transact(more.__delitem__, 0)
        assert asked == [True]
        iq.get_worker()  # one that is dropped outside takes the others along
        assert asked == [True] * 4


def test_a_queue_asked_inside_a_transition_waits_too(iq: IterableQueue[Any], told: Told) -> None:
    """As in a signal handler that interrupts one: `qsize` needs no lock, so it works there."""
    ends = [iq.get_producer()]

    def interrupted() -> None:
        ends.clear()
        iq.qsize()

    iq._core.transact(interrupted)
    assert told == []
    iq.qsize()
    assert len(told) == 1


def test_as_an_error_it_stops_nothing(
    iq: IterableQueue[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[tuple[object, str]] = []

    def unraisable(args: Any) -> None:
        raised.append((args.exc_type, str(args.exc_value)[:10]))

    monkeypatch.setattr(sys, "unraisablehook", unraisable)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        out = iq.get_producer()
        out.put(1)
        del out
        ends = [iq.get_consumer()]
        iq._core.transact(ends.clear)
        iq.qsize()  # must not raise what is no fault of its own
    assert raised == [(ResourceWarning, "producer 1"), (ResourceWarning, "consumer 2")]
    stats = iq.statistics()
    assert (stats.open_producers, stats.open_consumers, stats.failures) == (0, 0, 1)


PROGRAM = """\
from iterable_queue import IterableQueue

queue = IterableQueue[int]()
shared = IterableQueue[int]()
queue.get_producer().put(1)
kept = queue.get_producer()
IterableQueue[int].threaded()
done = shared.get_consumer()
shared.close()
"""


def test_a_program_in_development_mode(tmp_path: Any) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    ended = run(sys.executable, "-X", "dev", str(program), cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (0, "")
    found = re.findall(
        r"program.py:(\d+): ResourceWarning: (.*) of process \d+ (.*);", ended.stderr
    )
    assert found == [
        ("5", "producer 1", "was dropped without close()"),
        ("6", "producer 2", "was left open when its process ended"),
    ]
    assert "program.py:7: ResourceWarning: the queue was dropped" in ended.stderr
    assert ended.stderr.count("ResourceWarning") == 3


def in_development_mode(program: str, folder: Path) -> tuple[str, int]:
    """What *program* wrote to standard error, with warnings as errors, and its status."""
    file = folder / "program.py"
    file.write_text(program)
    command = [sys.executable, "-X", "dev", "-W", "error", "-P", str(file)]
    done = run(*command, cwd=folder, timeout=60)
    return done.stderr, done.returncode


CHECK = """
import logging

from iterable_queue import IterableQueue
from iterable_queue.testing import check_queue

logging.getLogger("asyncio").setLevel(logging.ERROR)  # which says what was slow
check_queue(IterableQueue.threaded, fifo=True, deadline_s=40)
"""


@pytest.mark.time_limit(90)
def test_checks_leave_no_leaks(tmp_path: Path) -> None:
    """What a promise is done with is closed, and what it drops on purpose is no leak."""
    assert in_development_mode(CHECK, tmp_path) == ("", 0)


LATE = """
import builtins
from iterable_queue._leaks import _Leak

builtins.kept = _Leak("the queue was dropped", "file.py:1")  # modules go before builtins do
"""


def test_at_the_very_end_nobody_is_told(tmp_path: Path) -> None:
    assert in_development_mode(LATE, tmp_path) == ("", 0)

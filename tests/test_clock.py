"""The clock on which time-outs run goes on where a test suite has stopped that of the program."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
import time
from importlib import import_module

import iterable_queue
from iterable_queue import _clock

REAL = (time.monotonic, time.monotonic_ns)

STOPPED = """
import sys
import time

if "late" not in sys.argv:
    import iterable_queue

# As freezegun does, also in modules of the standard library, but for those of which it knows.
known = ("threading", "multiprocessing", "queue", "selectors", "subprocess")
for name in ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns"):
    real, stopped = getattr(time, name), lambda: 1
    for module in list(sys.modules.values()):
        if not module.__name__.startswith(known):
            for key, value in list(vars(module).items()):
                if value is real:
                    setattr(module, key, stopped)

from iterable_queue import Empty, Full, IterableQueue

for queue in (IterableQueue[int](1), IterableQueue[int].threaded(1)):
    out, source = queue.get_producer(), queue.get_consumer()
    try:
        source.get(timeout=0.1)
    except Empty:
        print("empty")
    out.put(1)
    try:
        out.put(2, timeout=0.1)
    except Full:
        print("full")
    out.close()
    queue.close()
    print(next(source), queue.join(0.1))
"""


def test_time_outs_hold_while_the_clock_stands_still() -> None:
    for when in ("early", "late"):
        done = subprocess.run(
            [sys.executable, "-c", STOPPED, when],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stdout.split() == ["empty", "full", "1", "False"] * 2, done.stderr


def test_no_module_has_a_clock_that_could_be_stopped() -> None:
    found = [iterable_queue]
    for each in pkgutil.walk_packages(iterable_queue.__path__, "iterable_queue."):
        if not each.name.endswith("__main__"):
            found.append(import_module(each.name))
    assert _clock in found
    assert len(found) > 50
    for module in found:
        for name, value in vars(module).items():
            assert value not in REAL, f"{module.__name__}.{name}"


def test_it_is_the_same_clock() -> None:
    before = time.monotonic_ns()
    now, now_s = _clock.monotonic_ns(), _clock.monotonic()
    assert before <= now <= time.monotonic_ns()
    assert before / 1e9 - 1e-3 <= now_s <= time.monotonic() + 1e-3  # floats are rounded

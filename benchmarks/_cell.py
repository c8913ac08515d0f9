"""One measurement in an interpreter of its own: ``python -m benchmarks._cell '<job>'``.

Prints one line, the `Outcome`. Whatever happens to the workers, this process ends: they have a
deadline, and what they or the side started is killed by process id before it exits.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module, metadata
from multiprocessing import active_children
from random import Random
from typing import Any, Protocol, cast, runtime_checkable

from benchmarks._crew import Crew, Gate, Hang, ProcessCrew, Report, ThreadCrew, WorkerFailed
from benchmarks._job import BLOB_BYTES, Job, Outcome, Payload
from benchmarks._ours import Ours
from benchmarks._peers import (
    BarePipe,
    FasterFifo,
    FasterFifoMany,
    MultiprocessingQueue,
    QuickQueue,
    Release1,
    ThreadQueue,
    ThreadSimpleQueue,
)
from benchmarks._sides import (
    TIMED,
    WARM_UP,
    Link,
    Phase,
    Receiver,
    Sender,
    Unavailable,
)


class Side(Protocol):
    """One way to pass items: a library with one of its calls."""

    @property
    def distribution(self) -> str:
        """Name of the distribution that it comes from, to say its version; empty if none."""
        ...

    def connect(self, crew: Crew, job: Job) -> Link:
        """A queue with the job's number of endpoints, made in this process."""
        ...

    def make_and_close(self, crew: Crew) -> None: ...


@runtime_checkable
class SideWithEndpoints(Protocol):
    """A side whose queue hands out endpoints."""

    def endpoint_maker(self, crew: Crew) -> Callable[[], None]: ...


SIDES: dict[str, Callable[[], Side]] = {
    "ours": lambda: Ours("default"),
    "ours-many": lambda: Ours("default", "put_many"),
    "ours-lists": lambda: Ours("default", "put_many, get_many"),
    "ours-context": lambda: Ours("context"),
    "ours-threaded": lambda: Ours("threaded"),
    "multiprocessing": MultiprocessingQueue,
    "queue": ThreadQueue,
    "simplequeue": ThreadSimpleQueue,
    "faster-fifo": FasterFifo,
    "faster-fifo-many": FasterFifoMany,
    "quick-queue-put": lambda: QuickQueue("put"),
    "quick-queue-iterable": lambda: QuickQueue("put_iterable"),
    "quick-queue-bucket": lambda: QuickQueue("put_bucket"),
    "release-1x": Release1,
    "pipe": BarePipe,
}
_OF_THREADS = {"ours-threaded", "queue", "simplequeue"}


class Wrong(Exception):
    """What arrived is not what was sent."""


# --- what is sent, and how it is checked ----------------------------------------------------------

_BLOBS = 8


def _blobs(payload: Payload) -> list[Any]:
    """Large items, each told from the others by its first and its last byte.

    Arrays are in tuples: peers compare what arrives with their sentinel.
    """
    ends = [bytes([index]) for index in range(_BLOBS)]
    blobs = [end + Random(end).randbytes(BLOB_BYTES - 2) + end for end in ends]
    if payload == "blobs":
        return blobs
    np: Any = import_module("numpy")
    return [(np.frombuffer(bytearray(blob), dtype=np.uint8),) for blob in blobs]


def _items(job: Job, total: int, index: int) -> Iterable[object]:
    """The share of producer number ``index``. Small ints are a range, the cheapest to iterate."""
    mine = range(index, total, job.producers)
    if job.payload == "ints":
        return mine
    blobs = _blobs(job.payload)
    return [blobs[number % _BLOBS] for number in mine]


def _expected(job: Job) -> tuple[int, int]:
    if job.payload == "ints":
        return job.items, job.items * (job.items - 1) // 2
    return job.items, sum(number % _BLOBS for number in range(job.items))


Check = Callable[[Iterator[Iterable[object]]], tuple[int, int]]


def _check_ints(runs: Iterator[Iterable[object]]) -> tuple[int, int]:
    """Count and sum. This loop is part of what is measured, so it does no more than that."""
    count = total = 0
    for run in runs:
        number = 0
        for number, item in enumerate(cast("Iterable[int]", run), 1):  # noqa: B007
            total += item
        count += number
    return count, total


def _are_equal(item: Any, sent: Any) -> bool:
    return item == sent if type(item) is bytes else bytes(item[0]) == bytes(sent[0])


def _check_blobs(
    blobs: list[Any], whole: bool, runs: Iterator[Iterable[object]]
) -> tuple[int, int]:
    """Count and the sum of first bytes.

    ``whole`` compares every byte: for the warm-up, since it takes longer than some sides need to
    deliver. Else the length and both ends are compared.
    """
    count = total = 0
    for run in runs:
        for item in cast("Iterable[Any]", run):
            blob = item if type(item) is bytes else item[0]
            index = int(blob[0])
            if whole and not _are_equal(item, blobs[index]):
                raise Wrong("an item arrived changed")
            if len(blob) != BLOB_BYTES or blob[-1] != index:
                raise Wrong("an item arrived cut or changed")
            total += index
            count += 1
    return count, total


# --- the workers ----------------------------------------------------------------------------------


def _produce(sender: Sender, job: Job, index: int, gate: Gate) -> Report:
    items = _items(job, job.items, index)
    sender.send(_items(job, job.warm_up, index))
    sender.end(WARM_UP)
    gate.wait()
    started = time.monotonic_ns()
    sender.send(items)
    sender.end(TIMED)
    return Report(started, time.monotonic_ns())


def _consume(receiver: Receiver, job: Job, gate: Gate) -> Report:
    warm: Check = _check_ints
    timed: Check = _check_ints
    if job.payload != "ints":
        blobs = _blobs(job.payload)
        warm, timed = partial(_check_blobs, blobs, True), partial(_check_blobs, blobs, False)
    share = job.warm_up // job.consumers

    def runs(phase: Phase) -> Iterator[Iterable[object]]:
        return receiver.runs(phase, share)

    warm(runs(WARM_UP))
    gate.wait()
    started = time.monotonic_ns()
    count, checksum = timed(runs(TIMED))
    return Report(started, time.monotonic_ns(), count, checksum)


def _ping(there: Sender, back: Receiver, job: Job, gate: Gate) -> Report:
    clock = time.monotonic_ns
    put, take = there.put_one, back.take_one
    for number in range(job.warm_up):
        put(number)
        take()
    gate.wait()
    started = clock()
    samples: list[int] = []
    for number in range(job.items):
        before = clock()
        put(number)
        answer = take()
        samples.append(clock() - before)
        if answer != number:
            raise Wrong(f"{number} was sent there, {answer!r} came back")
    ended = clock()
    there.end(TIMED)
    return Report(started, ended, job.items, median_ns=statistics.median(samples))


def _echo(there: Receiver, back: Sender, job: Job, gate: Gate) -> Report:
    put, take = back.put_one, there.take_one
    for _ in range(job.warm_up):
        put(take())
    gate.wait()
    started = time.monotonic_ns()
    for _ in range(job.items):
        put(take())
    ended = time.monotonic_ns()
    back.end(TIMED)
    return Report(started, ended)


# --- the measurements -----------------------------------------------------------------------------


def _throughput(side: Side, crew: Crew, job: Job) -> Outcome:
    link = side.connect(crew, job)
    producers = [
        (f"producer {index}", partial(_produce, link.sender(index), job, index))
        for index in range(job.producers)
    ]
    consumers = [
        (f"consumer {index}", partial(_consume, link.receiver(index), job))
        for index in range(job.consumers)
    ]
    reports = crew.run(producers + consumers, job.timeout_s)
    got = sum(report.count for report in reports), sum(report.checksum for report in reports)
    if got != _expected(job):
        count, checksum = _expected(job)
        raise Wrong(f"{got[0]} items with sum {got[1]} came of {count} with sum {checksum}")
    # A producer may still be busy after the last item arrived (closing, flushing): not counted.
    ended = max(report.ended_ns for report in reports if report.count or report.checksum)
    seconds = (ended - min(report.started_ns for report in reports)) / 1e9
    return Outcome("ok", job.items / seconds, job.items, seconds)


def _latency(side: Side, crew: Crew, job: Job) -> Outcome:
    there, back = side.connect(crew, job), side.connect(crew, job)
    bodies = [
        ("ping", partial(_ping, there.sender(0), back.receiver(0), job)),
        ("echo", partial(_echo, there.receiver(0), back.sender(0), job)),
    ]
    (report,) = (r for r in crew.run(bodies, job.timeout_s) if r.count)
    seconds = (report.ended_ns - report.started_ns) / 1e9
    return Outcome("ok", report.median_ns / 1e3, job.items, seconds)


def _repeated(make: Callable[[], None], job: Job) -> Outcome:
    """Mean of many, in one thread of this process."""
    for _ in range(job.warm_up):
        make()
    started = time.monotonic_ns()
    for _ in range(job.items):
        make()
    seconds = (time.monotonic_ns() - started) / 1e9
    return Outcome("ok", seconds / job.items * 1e6, job.items, seconds)


def measure(job: Job) -> Outcome:
    try:
        side = SIDES[job.side]()
        if job.payload == "arrays":
            import_module("numpy")
    except (ImportError, Unavailable) as error:
        return Outcome("missing", detail=str(error))
    crew: Crew = ThreadCrew() if job.side in _OF_THREADS else ProcessCrew(job.start_method)
    try:
        match job.work:
            case "throughput":
                outcome = _throughput(side, crew, job)
            case "latency":
                outcome = _latency(side, crew, job)
            case "make":
                outcome = _repeated(partial(side.make_and_close, crew), job)
            case "endpoint":
                if not isinstance(side, SideWithEndpoints):
                    return Outcome("missing", detail="it has no endpoints")
                outcome = _repeated(side.endpoint_maker(crew), job)
    except Unavailable as error:
        return Outcome("missing", detail=str(error))
    except Hang as error:
        return Outcome("hang", detail=f"{error} within {job.timeout_s:g} s")
    except Wrong as error:
        return Outcome("wrong", detail=str(error))
    except WorkerFailed as error:
        return Outcome("error", detail=str(error))
    except Exception as error:
        return Outcome("error", detail=f"{type(error).__name__}: {error}")
    return replace(outcome, version=_version(side))


def _version(side: Side) -> str:
    if not side.distribution:
        return ""
    try:
        return f"{side.distribution} {metadata.version(side.distribution)}"
    except metadata.PackageNotFoundError:  # found by path, without its metadata
        return ""


def main() -> None:
    job = Job.loads(sys.argv[1])
    sys.path[:0] = job.paths
    print(measure(job).dumps(), flush=True)
    for child in active_children():  # server processes of a side, workers it has lost
        child.kill()
        child.join(5)


if __name__ == "__main__":
    main()

"""The workers of a cell: threads or processes, a barrier, a deadline, and their reports."""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterable, MutableSequence, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkContext, ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Protocol, TypeAlias

from benchmarks._job import StartMethod

StdContext: TypeAlias = ForkContext | SpawnContext | ForkServerContext


class Hang(Exception):
    """The deadline passed; the text names the workers that had not reported."""


class WorkerFailed(Exception):
    """A worker raised or died; the text is the last line of why."""


@dataclass(frozen=True)
class Report:
    """What a worker says at its end. Times are of the monotonic clock, in nanoseconds."""

    started_ns: int
    """When it left the barrier."""
    ended_ns: int
    count: int = 0
    """Items it got and checked in the timed phase."""
    checksum: int = 0
    median_ns: float = 0.0
    """Median there and back, for the worker that measures it."""


class Gate(Protocol):
    """The barrier. Workers wait at it without a time-out: their parent has the deadline."""

    def wait(self) -> int: ...


Body = Callable[[Gate], Report]
"""A worker's work; must be picklable (a ``functools.partial`` of a module's function)."""


class Crew(Protocol):
    """Starts workers and collects their reports. Also what sides build locks and counters from."""

    def lock(self) -> AbstractContextManager[object]: ...

    def counters(self, number: int) -> MutableSequence[int]: ...

    def run(self, bodies: Sequence[tuple[str, Body]], timeout_s: float) -> list[Report]:
        """Run all to their end. Raises `Hang` or `WorkerFailed`; no worker process is left then."""
        ...


class ThreadCrew:
    """Threads of this process. One that hangs can't be ended: the cell's process is, then."""

    def lock(self) -> AbstractContextManager[object]:
        return threading.Lock()

    def counters(self, number: int) -> MutableSequence[int]:
        return [0] * number

    def run(self, bodies: Sequence[tuple[str, Body]], timeout_s: float) -> list[Report]:
        gate = threading.Barrier(len(bodies))
        answers: queue.SimpleQueue[tuple[str, Report | str]] = queue.SimpleQueue()

        def work(name: str, body: Body) -> None:
            answers.put((name, _outcome(body, gate)))

        for name, body in bodies:
            threading.Thread(target=work, args=(name, body), name=name, daemon=True).start()
        deadline = time.monotonic() + timeout_s
        missing = {name for name, _ in bodies}
        reports: list[Report] = []
        while missing:
            try:
                name, answer = answers.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise Hang(_silent(missing)) from None
            reports.append(_checked(name, answer))
            missing.discard(name)
        return reports


class ProcessCrew:
    """Processes of one start method."""

    def __init__(self, start_method: StartMethod) -> None:
        self.context = std_context(start_method)

    def lock(self) -> AbstractContextManager[object]:
        return self.context.Lock()

    def counters(self, number: int) -> MutableSequence[int]:
        counters: MutableSequence[int] = self.context.RawArray("q", number)
        return counters

    def run(self, bodies: Sequence[tuple[str, Body]], timeout_s: float) -> list[Report]:
        gate = self.context.Barrier(len(bodies))
        deadline = time.monotonic() + timeout_s
        workers: list[_Worker] = []
        try:
            for name, body in bodies:
                workers.append(self._start(name, body, gate))
            reports = [_checked(w.name, w.answer) for w in _finished(workers, deadline)]
            for worker in workers:
                # A peer's feeder thread may keep a producer alive until all of it is flushed.
                worker.process.join(max(0.0, deadline - time.monotonic()))
                if worker.process.is_alive():
                    raise Hang(f"{worker.name} reported but its process did not exit")
            return reports
        finally:
            for worker in workers:
                worker.process.kill()  # by pid; nothing to do for one that has ended
                worker.process.join()
                worker.pipe.close()

    def _start(self, name: str, body: Body, gate: Gate) -> _Worker:
        ours, theirs = self.context.Pipe(duplex=False)
        process = self.context.Process(
            target=_process_main, args=(body, gate, theirs), name=name, daemon=True
        )
        process.start()
        theirs.close()
        return _Worker(name, process, ours)


@dataclass
class _Worker:
    name: str
    process: BaseProcess
    pipe: Connection
    answer: Report | str | None = None


def std_context(start_method: StartMethod) -> StdContext:
    """The standard library's context, by name, with its exact type."""
    match start_method:
        case "fork":
            return get_context("fork")
        case "spawn":
            return get_context("spawn")
        case "forkserver":
            return get_context("forkserver")


def _process_main(body: Body, gate: Gate, pipe: Connection) -> None:
    pipe.send(_outcome(body, gate))


def _outcome(body: Body, gate: Gate) -> Report | str:
    """The body's report, or why there is none."""
    try:
        return body(gate)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        last_line = traceback.format_exception_only(error)[-1].strip()
        return f"{last_line} (line {frame.lineno} of {frame.filename.rpartition('/')[2]})"


def _finished(workers: Sequence[_Worker], deadline: float) -> Sequence[_Worker]:
    """The workers, once each has answered. A failure ends the wait: the others may never."""
    waiting = list(workers)
    while waiting:
        # The sentinel too: after a fork, siblings hold each other's pipes open.
        watched = [w.pipe for w in waiting] + [w.process.sentinel for w in waiting]
        if not wait(watched, max(0.0, deadline - time.monotonic())):
            raise Hang(_silent(w.name for w in waiting))
        for worker in list(waiting):
            alive = worker.process.is_alive()  # asked first: a report precedes the death
            if worker.pipe.poll():
                try:
                    worker.answer = worker.pipe.recv()
                except EOFError:
                    raise WorkerFailed(f"{worker.name} died without a report") from None
                _checked(worker.name, worker.answer)
                waiting.remove(worker)
            elif not alive:
                code = worker.process.exitcode
                raise WorkerFailed(f"{worker.name} died with exit code {code}")
    return workers


def _checked(name: str, answer: Report | str | None) -> Report:
    if isinstance(answer, Report):
        return answer
    raise WorkerFailed(f"{name}: {answer}")


def _silent(names: Iterable[str]) -> str:
    return "no report from " + ", ".join(sorted(names))

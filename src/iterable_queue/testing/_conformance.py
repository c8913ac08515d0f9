"""`check_queue`, `check_producer`, `check_consumer`: run promises, one by one, report by name.

What is promised is in `_promises`, one small function a promise. What such a function works with
(actors, facts to wait for, queues) is in `_stage`, and what actors do in `_actors`. Here is what
runs a promise to its end, whatever the queue does: in a daemon thread, which is given up when the
deadline has passed. Then the queues are asked to explain themselves and cancelled, and the
processes of that promise are ended by their pids.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol, TypeAlias

from iterable_queue._core import check_callable, check_seconds
from iterable_queue._protocols import Consumer, Producer, Statistics, Worker

if TYPE_CHECKING:
    from iterable_queue.testing._stage import Stage

Outcome: TypeAlias = Literal["passed", "failed", "not applicable"]

MadeProducer: TypeAlias = (
    tuple[Producer[Any], Callable[[], Iterable[Any]]]
    | tuple[Producer[Any], Callable[[], Iterable[Any]], Callable[[], BaseException | None]]
)
"""What is asked of the `make` of `check_producer`: a producer, what was put, why it failed."""

ITEMS: Final = (0, None, "", "three", (4, [5.0]), b"6")
"""What `check_producer` and `check_consumer` put and take: some that look like nothing."""


class QueueLike(Protocol):
    """What is used of a queue under test; `IterableQueue` has it."""

    def get_producer(self) -> Producer[Any]: ...
    def get_consumer(self) -> Consumer[Any]: ...
    def get_worker(self) -> Worker[Any]: ...
    def close(self) -> None: ...
    def cancel(self, error: BaseException | None = None) -> None: ...
    def join(self, timeout: float | None = None) -> bool: ...
    def statistics(self) -> Statistics: ...
    def explain(self) -> str: ...
    def qsize(self) -> int: ...
    def empty(self) -> bool: ...
    def full(self) -> bool: ...
    def __enter__(self) -> Any: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None: ...


class ProcessLike(Protocol):
    """What is used of a process object."""

    @property
    def pid(self) -> int | None: ...
    @property
    def exitcode(self) -> int | None: ...
    def start(self) -> None: ...
    def join(self, timeout: float | None = None) -> None: ...
    def is_alive(self) -> bool: ...


class ProcessContext(Protocol):
    """What is used of a multiprocessing-like context: its `Process`, and these.

    `Process` itself is not among them, since type checkers are told of it in different ways:
    multiprocessing's contexts have it as a class variable, the modules as a class, `BaseContext`
    not at all. A context that lacks one of these below is not refused: then endpoints are not sent
    by that road.
    """

    def Pipe(self, duplex: bool = ...) -> tuple[Any, Any]:
        """Two connected ends."""
        ...

    def Queue(self) -> Any:
        """A queue between processes."""
        ...

    def Pool(self, processes: int, initializer: Callable[..., object], initargs: Any) -> Any:
        """So many processes that take tasks."""
        ...


class Promise(NamedTuple):
    """One promise.

    Attributes:
        name: by which it is reported and selected.
        text: what is promised, in a sentence or two.
        needs: of what kind of check it is a part: `"processes"` of those between processes,
            `"pickling"` of those whose items are pickled (between processes, or where
            `pickled=True` was said), `"fifo"` of those where `fifo=True` was said, `""` of all.
        check: raises what is wrong.
    """

    name: str
    text: str
    needs: Literal["", "processes", "pickling", "fifo"]
    check: Callable[[Stage], None]


class Result(NamedTuple):
    """What became of one promise.

    Attributes:
        name, text: of the promise.
        outcome: whether it was kept.
        detail: what was expected and seen, or why it is not applicable; empty if it passed.
        seconds: how long that took.
    """

    name: str
    text: str
    outcome: Outcome
    detail: str
    seconds: float


class Report(NamedTuple):
    """What became of the promises, in their order. `str()` is for people."""

    results: tuple[Result, ...]

    def _with(self, outcome: Outcome) -> tuple[Result, ...]:
        return tuple(result for result in self.results if result.outcome == outcome)

    @property
    def passed(self) -> tuple[Result, ...]:
        """Those that were kept."""
        return self._with("passed")

    @property
    def failed(self) -> tuple[Result, ...]:
        """Those that were broken."""
        return self._with("failed")

    @property
    def not_applicable(self) -> tuple[Result, ...]:
        """Those that could not be asked of this queue; `detail` says why."""
        return self._with("not applicable")

    def __str__(self) -> str:
        seconds = sum(result.seconds for result in self.results)
        lines = [
            f"{len(self.results)} promises in {seconds:.1f} s: {len(self.passed)} kept, "
            f"{len(self.failed)} broken, {len(self.not_applicable)} not applicable"
        ]
        marks = {"passed": "kept", "failed": "BROKEN", "not applicable": "n/a"}
        for result in self.results:
            lines.append(f"  {marks[result.outcome]:7}{result.name} ({result.seconds:.2f} s)")
            if result.outcome == "failed":
                lines.append(f"         promised: {result.text}")
            lines += [f"         {line}" for line in result.detail.splitlines()]
        return "\n".join(lines)


class ConformanceError(AssertionError):
    """A queue or endpoint broke promises; the text says which, what was expected, what was seen.

    Attributes:
        report: what became of all promises, of those that were kept too.
    """

    __module__ = "iterable_queue.testing"

    def __init__(self, report: Report) -> None:
        super().__init__(report)
        self.report = report

    def __str__(self) -> str:
        return str(Report(self.report.failed))


def promises(of: Literal["queue", "producer", "consumer"] = "queue") -> tuple[Promise, ...]:
    """All promises of a queue, or of one endpoint by itself, in the order of their checks."""
    from iterable_queue.testing import _promises

    match of:
        case "queue":
            return _promises.PROMISES
        case "producer":
            return _promises.OF_PRODUCERS
        case "consumer":
            return _promises.OF_CONSUMERS
        case _:
            raise ValueError(f"of must be 'queue', 'producer' or 'consumer', not {of!r}")


def check_queue(
    make: Callable[..., QueueLike],
    *,
    processes: ProcessContext | None = None,
    fifo: bool = False,
    threads: bool = True,
    pickled: bool = False,
    clock: Callable[[], float] | None = None,
    only: Collection[str] | None = None,
    skip: Collection[str] = (),
    deadline_s: float = 20.0,
) -> Report:
    """Check the promises on queues that *make* makes.

    Args:
        make: returns a new queue. It is called without arguments, or with those of `maxsize`,
            `on_failure` and `redeliver`, by keyword, that a promise is about. Where it raises
            TypeError for one, that promise is not applicable.
        processes: a multiprocessing-like context in whose processes the actors run. None: they run
            in threads, and what is promised between processes is not applicable. Under spawn and
            forkserver the usual rule holds: call this below `if __name__ == "__main__"`, or in
            an imported module.
        fifo: whether the queue is strictly first in, first out, as `IterableQueue.threaded()` is.
            Otherwise each producer's items are expected in their order.
        threads: whether other threads may use the queue. False: for a double that serves one
            thread, and raises `WouldBlock` where it would wait for ever. Then each actor plays
            its whole part where it would be started, and a promise whose actors have to wait for
            each other is not applicable, which says who waited.
        pickled: whether items are pickled, as between processes, though *processes* is None.
        clock: the clock in seconds on which time-outs run; None: `time.monotonic`.
        only: the names of the promises to check; None: all.
        skip: the names of promises that are not checked and not reported.
        deadline_s: how long each promise may take, in seconds, before it counts as broken.

    Returns:
        The report, if nothing was broken.

    Raises:
        ConformanceError: promises were broken; it names all of them.
        ValueError: *only* or *skip* names no promise, or *deadline_s* is not above 0.
        TypeError: *processes* has no `Process`, or was given with `threads=False`; *make* is no
            function, or *only* or *skip* a text.
    """
    if processes is not None and not callable(getattr(processes, "Process", None)):
        raise TypeError(
            f"processes must have Process(), as multiprocessing has; {processes!r} has not"
        )
    if processes is not None and not threads:
        raise TypeError("processes= can't be had with threads=False: each is a thread or more")
    bounds = (processes, fifo, threads, pickled, clock)
    return _check(promises(), make, only, skip, deadline_s, ITEMS, *bounds)


def check_producer(
    make: Callable[..., MadeProducer],
    *,
    items: Sequence[Any] = ITEMS,
    only: Collection[str] | None = None,
    skip: Collection[str] = (),
    deadline_s: float = 5.0,
) -> Report:
    """Check what one producer promises by itself, on producers that *make* makes.

    Args:
        make: returns a new producer and a function that returns what has been put so far, in
            order: a list that a double keeps, what a consumer takes from the queue behind a
            wrapper. It may return a third thing, a function that returns the error by which the
            producer failed, or None as long as it has not; without it, what is promised of
            that error is not applicable. It is called without arguments, or with `maxsize=2`;
            where it raises TypeError for that, the promise is not applicable.
        items: what is put; at least 3 items, each different from the one before it.
        only: the names of the promises to check, of `promises("producer")`; None: all.
        skip: the names of promises that are not checked and not reported.
        deadline_s: how long each promise may take, in seconds, before it counts as broken.

    Returns:
        The report, if nothing was broken.

    Raises:
        ConformanceError: promises were broken; it names all of them.
        ValueError: *only* or *skip* names no promise, *items* are too few or alike, or
            *deadline_s* is not above 0.
    """
    return _check(promises("producer"), make, only, skip, deadline_s, items)


def check_consumer(
    make: Callable[..., Consumer[Any]],
    *,
    items: Sequence[Any] = ITEMS,
    only: Collection[str] | None = None,
    skip: Collection[str] = (),
    deadline_s: float = 5.0,
) -> Report:
    """Check what one consumer promises by itself, on consumers that *make* makes.

    Args:
        make: called with a sequence of items, returns a new consumer that hands out these, and
            then is done. It is also called with `done=False`: after the items more may come; and
            with `failure=error`: after the items a producer has failed by that. Where it raises
            TypeError for one of these, the promise is not applicable.
        items: what is taken; at least 3 items, each different from the one before it.
        only: the names of the promises to check, of `promises("consumer")`; None: all.
        skip: the names of promises that are not checked and not reported.
        deadline_s: how long each promise may take, in seconds, before it counts as broken.

    Returns:
        The report, if nothing was broken.

    Raises:
        ConformanceError: promises were broken; it names all of them.
        ValueError: *only* or *skip* names no promise, *items* are too few or alike, or
            *deadline_s* is not above 0.
    """
    return _check(promises("consumer"), make, only, skip, deadline_s, items)


def _check(
    known: tuple[Promise, ...],
    make: Callable[..., Any],
    only: Collection[str] | None,
    skip: Collection[str],
    deadline_s: float,
    items: Sequence[Any],
    processes: ProcessContext | None = None,
    fifo: bool = False,
    threads: bool = True,
    pickled: bool = False,
    clock: Callable[[], float] | None = None,
) -> Report:
    from iterable_queue.testing import _stage

    check_callable(make, "make")
    for names_given in (only, skip):
        if isinstance(names_given, str):
            raise TypeError(f"only and skip are collections of names, not the text {names_given!r}")
    names = {promise.name for promise in known}
    unknown = sorted({*(only or ()), *skip} - names)
    if unknown:
        raise ValueError(f"no promises: {unknown}; there are {sorted(names)}")
    check_seconds(deadline_s, "deadline_s")
    if not deadline_s > 0:
        raise ValueError(f"deadline_s must be above 0 seconds, not {deadline_s!r}")
    items = tuple(items)
    if len(items) < 3 or any(a == b for a, b in itertools.pairwise(items)):
        raise ValueError(
            f"items must be 3 or more, each different from the one before it, not {items!r}"
        )
    bounds = _stage.Bounds(processes, fifo, threads, pickled, clock, deadline_s, items)
    wanted = [
        promise
        for promise in known
        if (only is None or promise.name in only) and promise.name not in skip
    ]
    report = Report(tuple(_stage.run(promise, make, bounds) for promise in wanted))
    if report.failed:
        raise ConformanceError(report)
    return report

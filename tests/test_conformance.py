"""The conformance suite, over every channel and start method, and over queues that are wrong.

Each promise is a test of its own for `threaded()`, for `over()` and for processes of each start
method. For contexts given as `context=` the suite runs as a whole.

The second half keeps the suite honest: each of its doubles breaks one promise, on purpose, and
must be caught under the name of that promise.
"""

from __future__ import annotations

import copy
import importlib
import multiprocessing
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from types import TracebackType
from typing import Any, ClassVar, Self

import pytest

from iterable_queue import (
    Cancelled,
    ConsumersGone,
    Done,
    Empty,
    EndpointElsewhere,
    Full,
    IterableQueue,
    ProducerFailed,
    Statistics,
)
from iterable_queue.testing import (
    ConformanceError,
    ProcessContext,
    Promise,
    Report,
    check_consumer,
    check_producer,
    check_queue,
    promises,
)
from tests.conftest import FORKS, Context, lives
from tests.redis_server import Server, running_for_many

BETWEEN_THREADS = [p.name for p in promises() if p.needs in ("", "fifo")]
OVER_A_QUEUE = [name for name in BETWEEN_THREADS if name != "a_wrong_maxsize_raises_at_once"]
IN_ANY_ORDER = [p.name for p in promises() if p.needs in ("", "pickling")]
BETWEEN_PROCESSES = [p.name for p in promises() if p.needs != "fifo"]


def over_queue(maxsize: int = 0) -> IterableQueue[Any]:
    """Over a queue that the caller brings."""
    return IterableQueue[Any].over(queue.Queue(maxsize))


def over_lifo(maxsize: int = 0) -> IterableQueue[Any]:
    """Likewise, with the last one first."""
    return IterableQueue[Any].over(queue.LifoQueue(maxsize))


def kept(report: Report) -> None:
    """The one promise that was checked was kept, or can't be asked of this queue."""
    [result] = report.results
    if result.outcome == "not applicable":
        pytest.skip(result.detail)


# Over every channel


@pytest.mark.parametrize("name", BETWEEN_THREADS)
def test_threaded(name: str) -> None:
    kept(check_queue(IterableQueue.threaded, fifo=True, only=[name]))


@pytest.mark.parametrize("name", OVER_A_QUEUE)
def test_over(name: str) -> None:
    kept(check_queue(over_queue, fifo=True, only=[name]))


@pytest.mark.parametrize("name", BETWEEN_PROCESSES)
def test_processes(context: Context, name: str) -> None:
    kept(check_queue(IterableQueue, processes=context, only=[name]))


@pytest.mark.parametrize("name", IN_ANY_ORDER)
def test_a_queue_for_processes_between_threads(name: str) -> None:
    kept(check_queue(IterableQueue, pickled=True, only=[name]))


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from running_for_many(Server(tmp_path_factory.mktemp("server")))


ON_A_SERVER = {"a_wrong_maxsize_raises_at_once"}
"""What can't be asked of `connect()`, where a maxsize of None leaves it to others."""


@pytest.mark.parametrize("name", [name for name in IN_ANY_ORDER if name not in ON_A_SERVER])
def test_redis_between_threads(redis_server: Server, name: str) -> None:
    kept(check_queue(redis_server.maker(), pickled=True, only=[name], deadline_s=45.0))


@pytest.mark.parametrize("name", [p.name for p in promises() if p.needs == "processes"])
def test_redis_between_processes(redis_server: Server, context: Context, name: str) -> None:
    kept(check_queue(redis_server.maker(), processes=context, only=[name], deadline_s=45.0))


OF_PROCESSES = [
    promise.name for promise in promises() if promise.needs in ("processes", "pickling")
]
OF_ALL = [promise.name for promise in promises() if promise.name not in OF_PROCESSES]
SHARES = (
    *(pytest.param(OF_PROCESSES[n::3], id=f"processes-{n}") for n in range(3)),
    pytest.param(OF_ALL, id="others", marks=pytest.mark.soak),
)
"""What a context has a part in, in three tests for three workers; and all else."""
CONTEXTS = (
    # The standard library's crossed, as a queue need not be of its processes' start method.
    pytest.param("multiprocessing", "fork", "spawn"),
    pytest.param("multiprocess", "fork", "fork", marks=FORKS),
    pytest.param("billiard", "fork", "fork", marks=FORKS),
)


@pytest.mark.time_limit(240)
@pytest.mark.parametrize("names", SHARES)
@pytest.mark.parametrize(("package", "given", "used"), CONTEXTS)
def test_contexts(package: str, given: str, used: str, names: list[str]) -> None:
    """A queue of the *given* context, between processes that were started by the one *used*."""
    module = pytest.importorskip(package, reason=f"{package} is not installed")
    make = partial(IterableQueue[Any], context=module.get_context(given))
    report = check_queue(make, processes=module.get_context(used), only=names)
    only_here = {"items_are_first_in_first_out"}
    if package != "multiprocessing":
        only_here.add("endpoints_cross_as_executor_tasks")
    assert {result.name for result in report.not_applicable} == only_here.intersection(names)


# What it says


def test_the_report() -> None:
    names = ["items_arrive", "a_killed_process_has_failed", "redelivery_has_an_end"]
    report = check_queue(IterableQueue.threaded, only=names)
    assert [result.name for result in report.results] == sorted(
        names, key=[p.name for p in promises()].index
    ), "in the order of the promises, whatever the order of the names"
    assert [result.name for result in report.passed] == ["items_arrive"]
    assert report.failed == ()
    assert [result.name for result in report.not_applicable] == names[1:]
    assert {result.detail for result in report.not_applicable} == {"needs processes="}
    assert str(report).startswith("3 promises in ")
    for name in names:
        assert name in str(report)


def test_what_make_does_not_take_is_not_applicable() -> None:
    def make() -> IterableQueue[Any]:
        return IterableQueue[Any].threaded()

    report = check_queue(make, only=["items_arrive", "maxsize_is_exact", "a_failure_may_cancel"])
    assert [result.name for result in report.passed] == ["items_arrive"]
    about_maxsize, about_failures = report.not_applicable
    assert about_maxsize.detail.startswith("make can't be called with {'maxsize': 1}: ")
    assert about_failures.detail.startswith("make can't be called with {'on_failure': 'cancel'}: ")


def test_an_error_of_make_itself_is_reported() -> None:
    def make(maxsize: int = 0) -> IterableQueue[Any]:
        raise TypeError(f"out of queues of {maxsize}")

    error = broken(make, "items_arrive")
    assert "TypeError('out of queues of 0')" in str(error)


def test_selection() -> None:
    report = check_queue(IterableQueue.threaded, skip=IN_ANY_ORDER)
    assert {p.needs for p in promises() if p.name in {r.name for r in report.results}} == {
        "processes",
        "fifo",
    }
    with pytest.raises(ValueError, match=r"no promises: \['items_arive'\]"):
        check_queue(IterableQueue.threaded, only=["items_arive"])
    with pytest.raises(ValueError, match=r"no promises: \['nonsense'\]"):
        check_queue(IterableQueue.threaded, skip=["nonsense"])
    with pytest.raises(ValueError, match="deadline_s must be above 0 seconds, not 0"):
        check_queue(IterableQueue.threaded, deadline_s=0)
    with pytest.raises(TypeError, match="deadline_s must be a number of seconds, not '1'"):
        check_queue(IterableQueue.threaded, deadline_s="1")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="are collections of names, not the text 'items_arrive'"):
        check_queue(IterableQueue.threaded, only="items_arrive")
    for check in (check_queue, check_producer, check_consumer):
        with pytest.raises(TypeError, match="make must be a function, not None"):
            check(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("promise", promises(), ids=lambda promise: promise.name)
def test_each_promise_is_one_sentence_or_two(promise: Promise) -> None:
    assert promise.text.endswith(".")
    assert promise.name.isidentifier()
    assert promise.name.islower()
    assert 30 < len(promise.text) < 150


def test_names_are_unique() -> None:
    names = [promise.name for promise in promises()]
    assert len(set(names)) == len(names) > 100


def test_the_error_names_every_broken_promise() -> None:
    make: Any = WrongQueue.with_(consumer=DoneTooEarly)
    names = ["items_arrive", "items_left_come_before_the_end", "put_waits_for_room"]
    with pytest.raises(ConformanceError) as caught:
        check_queue(make, only=names)
    error = caught.value
    assert [result.name for result in error.report.failed] == names[:2]
    assert [result.name for result in error.report.passed] == ["put_waits_for_room"]
    text = str(error)
    assert "the items taken: expected [0, 1, 2], saw [0, 1]" in text
    assert "promised: What one producer puts, one consumer takes" in text
    assert "at items.py:" in text
    assert "put_waits_for_room" not in text, "what was kept is in the report only"
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == text
    assert again.report == error.report


def test_it_needs_no_test_runner_and_is_cheap_to_import() -> None:
    """What test runners have imported anyway, dataclasses and what these import, is not counted."""
    program = (
        "import sys, dataclasses, math, iterable_queue; before = set(sys.modules); "
        "import iterable_queue.testing; "
        "print(*sorted(set(sys.modules) - before)); "
        "from iterable_queue.testing import check_queue; "
        "check_queue(iterable_queue.IterableQueue.threaded, only=['items_arrive']); "
        "print({'pytest', 'multiprocessing'} & (set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    new, rest = done.stdout.splitlines()
    assert [name for name in new.split() if not name.startswith("iterable_queue.")] == []
    assert not any("_promises" in name or "_stage" in name for name in new.split())
    assert rest == "set()"


# Queues that are wrong


class Wrapper:
    """Passes everything on; what is wrong with it, a class derived from it says."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def clone(self) -> Any:
        return type(self)(self.inner.clone())

    def __enter__(self) -> Self:
        self.inner.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.inner.__exit__(exc_type, exc, tb)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        try:
            return self.get()
        except Done:
            raise StopIteration from None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        try:
            return await self.aget()
        except Done:
            raise StopAsyncIteration from None

    def __copy__(self) -> Any:
        return copy.copy(self.inner)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.inner, memo)

    def __repr__(self) -> str:
        return repr(self.inner)


class WrongQueue(Wrapper):
    """A queue whose endpoints are wrapped."""

    producer: type[Wrapper] = Wrapper
    consumer: type[Wrapper] = Wrapper
    worker: type[Wrapper] = Wrapper

    make: Any = IterableQueue.threaded

    def __init__(self, maxsize: int = 0, **kwargs: Any) -> None:
        super().__init__(type(self).make(maxsize, **kwargs))

    @classmethod
    def with_(cls, **members: Any) -> Any:
        """A class of such queues."""
        return type("WrongQueue", (cls,), members)

    def get_producer(self) -> Any:
        return self.producer(self.inner.get_producer())

    def get_consumer(self) -> Any:
        return self.consumer(self.inner.get_consumer())

    def get_worker(self) -> Any:
        return self.worker(self.inner.get_worker())


def broken(
    make: Any, *names: str, processes: ProcessContext | None = None, deadline_s: float = 2.0
) -> ConformanceError:
    """Each of *names* is reported as broken."""
    with pytest.raises(ConformanceError) as caught:
        check_queue(make, fifo=True, only=names, processes=processes, deadline_s=deadline_s)
    assert {result.name for result in caught.value.report.failed} == set(names)
    return caught.value


def test_a_wrapper_that_does_nothing_wrong_passes() -> None:
    report = check_queue(WrongQueue.with_(), fifo=True)
    assert {result.name for result in report.not_applicable} == {
        *(p.name for p in promises() if p.needs in ("processes", "pickling")),
        "a_failure_may_cancel",
        "a_wrong_on_failure_raises_at_once",
        "an_idle_worker_may_put_while_an_item_may_come_back",
    }


class DoneTooEarly(Wrapper):
    """Takes the last item for the end."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        item = self.inner.get(block, timeout)
        if self.inner.empty():
            try:
                self.inner.get_nowait()
            except Done:
                raise
            except Empty:
                pass
        return item


class DoneWhenEmpty(Wrapper):
    """Takes "empty for now" for "done"."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        try:
            return self.inner.get_nowait()
        except Empty:
            raise Done from None

    def get_nowait(self) -> Any:
        return self.get()


class NeverDone(Wrapper):
    """Goes on waiting when the end has come."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        try:
            return self.inner.get(block, timeout)
        except Done:
            if not block or timeout is not None:
                raise Empty from None
            over.wait(60)
            raise


over = threading.Event()
"""Set when what hangs here may end."""


class Loses(Wrapper):
    """Every seventh item of a producer is lost."""

    n = 0

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        self.n += 1
        if self.n % 7:
            self.inner.put(item, block, timeout)


class PutsTwice(Wrapper):
    """Every seventh item of a producer comes twice."""

    n = 0

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        self.n += 1
        for _ in range(1 if self.n % 7 else 2):
            self.inner.put(item, block, timeout)


class PutsLater(Wrapper):
    """An item stays behind until the next one, or the close."""

    kept: tuple[Any, ...] = ()

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        kept, self.kept = self.kept, (item,)
        for before in kept:
            self.inner.put(before, block, timeout)

    def close(self) -> None:
        kept, self.kept = self.kept, ()
        for before in kept:
            self.inner.put(before)
        self.inner.close()


class PutsLaterAndLeaves(PutsLater):
    """Likewise, `with` included."""

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        os._exit(0)


class Hoards(Wrapper):
    """Takes two items at a time, and sits on the second one."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.hoard: list[Any] = []

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if not self.hoard:
            self.hoard.append(self.inner.get(block, timeout))
            try:
                self.hoard.append(self.inner.get_nowait())
            except (Empty, Done):
                pass
        return self.hoard.pop(0)


class NeverTimesOut(Wrapper):
    """Ignores time-outs."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        return self.inner.get(block)

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        self.inner.put(item, block)


class TimesOutAtOnce(Wrapper):
    """Takes any time-out for none at all."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        return self.inner.get(block and timeout is None)

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        self.inner.put(item, block and timeout is None)


class TakesAnyTimeout(Wrapper):
    """Takes a negative time-out, or one that is no number, for 0."""

    def get(self, block: bool = True, timeout: Any = None) -> Any:
        sensible = timeout is None or (isinstance(timeout, float) and timeout >= 0)
        return self.inner.get(block, timeout if sensible else 0)

    def put(self, item: Any, block: bool = True, timeout: Any = None) -> None:
        sensible = timeout is None or (isinstance(timeout, float) and timeout >= 0)
        self.inner.put(item, block, timeout if sensible else 0)


class GathersFirst(Wrapper):
    """Asks for all items before it puts one."""

    def put_many(self, iterable: Any) -> None:
        self.inner.put_many(list(iterable))


class TakesTooMany(Wrapper):
    """Takes one more than it was asked for."""

    def get_many(self, limit: int) -> Any:
        return self.inner.get_many(limit + 1)


class EndsInCoroutines(Wrapper):
    """Its coroutines take a time-out for the end."""

    async def aget(self, timeout: float | None = None) -> Any:
        try:
            return await self.inner.aget(timeout)
        except Empty:
            raise Done from None


class ClosesOnce(Wrapper):
    """Can't be closed again."""

    def close(self) -> None:
        if self.inner.closed:
            raise RuntimeError("closed twice")
        self.inner.close()


class StaysOpen(Wrapper):
    """Leaving `with` doesn't close it."""

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        pass


class LooksBeforeItEnters(Wrapper):
    """Of a cancelled queue it can't be entered."""

    def __enter__(self) -> Self:
        self.inner.clone().close()
        return super().__enter__()


class FailsSilently(Wrapper):
    """A failure looks like a close."""

    def fail(self, error: BaseException) -> None:
        self.inner.close()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.inner.close()


class IsItsOwnClone(Wrapper):
    """Calls itself its clone, and counts once."""

    def clone(self) -> Any:
        return self


class CanBeCopied(Wrapper):
    """A copy of it is the same endpoint twice."""

    def __copy__(self) -> Any:
        return type(self)(self.inner)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return type(self)(self.inner)


class Anonymous(Wrapper):
    """Can't be told from others."""

    def __repr__(self) -> str:
        return "<endpoint>"


class WaitsForNobody(Wrapper):
    """Puts go nowhere once all consumers have gone."""

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        try:
            self.inner.put(item, block, timeout)
        except ConsumersGone:
            pass


class RefusesWorkers(Wrapper):
    """A worker's put waits for room like a producer's."""

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        while self.inner.full():
            if not block or over.wait(0.001):
                raise Full
        self.inner.put(item)


class HasNothingInHand(Wrapper):
    """Asks for the next item right away, so that it never is in the middle of one."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.ahead: list[Any] = []

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        item = self.ahead.pop() if self.ahead else self.inner.get(block, timeout)
        try:
            self.ahead.append(self.inner.get_nowait())
        except (Empty, Done):
            pass
        return item


class FinishesAtOnce(Wrapper):
    """Takes what it returns for finished."""

    def get_many(self, limit: int) -> Any:
        items = self.inner.get_many(limit)
        try:
            self.inner.get_nowait()
        except Empty:
            pass
        return items


class ClosesWhenDropped(Wrapper):
    """Takes a drop for a close."""

    def __del__(self) -> None:
        self.inner.close()


class LeavesSleepers(Wrapper):
    """Closes when it is next used."""

    closed = False

    def close(self) -> None:
        self.closed = True


class OneTooMany(WrongQueue):
    """Its maxsize is off by one."""

    def __init__(self, maxsize: int = 0) -> None:
        super().__init__(maxsize + 1 if maxsize else 0)


class JoinsAtOnce(WrongQueue):
    def join(self, timeout: float | None = None) -> bool:
        return True


class JoinsTooSoon(WrongQueue):
    """Does not wait."""

    def join(self, timeout: float | None = None) -> bool:
        return bool(self.inner.join(0 if timeout else timeout))


class JoinsWithItemsInHand(WrongQueue):
    def join(self, timeout: float | None = None) -> bool:
        return bool(self.inner.statistics().state == "done") or bool(self.inner.join(timeout))


class CancelsHalf(WrongQueue):
    """Cancelling closes it, and that is all."""

    def cancel(self, error: BaseException | None = None) -> None:
        self.inner.close()


class CancelsWithoutReason(WrongQueue):
    def cancel(self, error: BaseException | None = None) -> None:
        self.inner.cancel()


class OpensAfterClose(WrongQueue):
    """Hands out producers after the close: those of another queue."""

    def get_producer(self) -> Any:
        if self.inner.statistics().state != "open":
            self.other: IterableQueue[Any] = IterableQueue.threaded()
            return Wrapper(self.other.get_producer())
        return super().get_producer()


class CountsLate(WrongQueue):
    """Its statistics are those of a while ago."""

    def __init__(self, maxsize: int = 0) -> None:
        super().__init__(maxsize)
        self.before: Statistics = self.inner.statistics()

    def qsize(self) -> int:
        return self.before.queued

    def statistics(self) -> Statistics:
        before, self.before = self.before, self.inner.statistics()
        return before


class CountsBackwards(WrongQueue):
    n = 1_000_000

    def statistics(self) -> Statistics:
        self.n -= 1
        now: Statistics = self.inner.statistics()
        return now if now.state == "done" else now._replace(highest_queued=self.n)


class CountsOneByOne(WrongQueue):
    """What is taken between the look at one number and that at the next is in one of them only."""

    def statistics(self) -> Statistics:
        now: Statistics = self.inner.statistics()
        return now if now.state == "done" else now._replace(put=now.put + 1)


class ShowsWhatIs(WrongQueue):
    """Its snapshots are no snapshots."""

    def statistics(self) -> Any:
        queue = self.inner

        class Now:
            def __getattr__(self, name: str) -> Any:
                return getattr(queue.statistics(), name)

        return Now()


class LeavesDescriptors(WrongQueue):
    left: ClassVar[list[int]] = []

    def __init__(self, maxsize: int = 0) -> None:
        super().__init__(maxsize)
        self.left.append(os.dup(0))


class ExplainsNothing(WrongQueue):
    def explain(self) -> str:
        return "who knows?"


class Quiet(WrongQueue):
    """Leaving `with` by an exception is nothing special."""

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.inner.close()


class UnlikeErrors(Wrapper):
    """Raises an error that loses its attributes on the way to another process."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        try:
            return self.inner.get(block, timeout)
        except ProducerFailed as error:
            raise Forgetful(str(error), error) from error.__cause__
        except Cancelled:
            raise


class Forgetful(ProducerFailed):
    def __init__(self, text: str, error: ProducerFailed | None = None) -> None:
        super().__init__(text)
        self.failures = error.failures if error else ()

    def __reduce__(self) -> tuple[Any, ...]:
        return Forgetful, self.args


WRONG: list[tuple[Any, tuple[str, ...]]] = [
    (
        WrongQueue.with_(consumer=DoneTooEarly),
        ("items_arrive", "items_left_come_before_the_end", "done_is_final"),
    ),
    (
        WrongQueue.with_(consumer=DoneWhenEmpty),
        ("empty_is_not_done", "iteration_ends_in_every_order_of_closing", "get_waits_for_an_item"),
    ),
    (
        WrongQueue.with_(producer=Loses),
        ("each_item_is_handed_out_exactly_once", "items_of_one_producer_arrive_in_order"),
    ),
    (
        WrongQueue.with_(producer=PutsTwice),
        ("each_item_is_handed_out_exactly_once", "threads_may_share_an_endpoint"),
    ),
    (
        WrongQueue.with_(producer=PutsLater),
        ("an_item_is_there_when_put_returns", "put_waits_for_room"),
    ),
    (
        over_lifo,
        (
            "items_of_one_producer_arrive_in_order",
            "a_claim_begins_with_the_oldest_item",
            "items_are_first_in_first_out",
        ),
    ),
    (WrongQueue.with_(producer=GathersFirst), ("put_many_puts_as_it_goes",)),
    (WrongQueue.with_(consumer=TakesTooMany), ("get_many_takes_what_is_there",)),
    (WrongQueue.with_(consumer=EndsInCoroutines), ("coroutines_put_and_take",)),
    (
        WrongQueue.with_(consumer=TimesOutAtOnce, producer=TimesOutAtOnce),
        ("a_get_that_times_out_takes_its_time", "a_put_that_times_out_takes_its_time"),
    ),
    (
        WrongQueue.with_(consumer=TakesAnyTimeout, producer=TakesAnyTimeout),
        ("a_timeout_must_make_sense",),
    ),
    (OneTooMany, ("maxsize_is_exact", "maxsize_is_exact_whoever_asks", "sizes_are_exact")),
    (
        WrongQueue.with_(producer=ClosesOnce, consumer=ClosesOnce),
        ("closing_again_does_nothing",),
    ),
    (
        WrongQueue.with_(producer=StaysOpen, consumer=StaysOpen),
        ("a_closed_producer_refuses", "a_closed_consumer_refuses", "break_inside_with_closes"),
    ),
    (
        WrongQueue.with_(producer=FailsSilently),
        (
            "fail_replaces_done",
            "all_failures_are_told",
            "an_exception_that_leaves_with_is_a_failure",
            "what_a_failed_producer_put_is_delivered",
        ),
    ),
    (WrongQueue.with_(producer=IsItsOwnClone), ("a_clone_counts_by_itself",)),
    (WrongQueue.with_(consumer=CanBeCopied), ("an_endpoint_cannot_be_copied",)),
    (WrongQueue.with_(worker=Anonymous), ("endpoints_can_be_told_apart",)),
    (
        WrongQueue.with_(producer=WaitsForNobody),
        ("an_abandoned_queue_says_so", "a_queue_is_abandoned_with_its_last_consumer"),
    ),
    (
        WrongQueue.with_(worker=HasNothingInHand),
        ("a_worker_in_the_middle_of_an_item_counts_as_a_producer",),
    ),
    (
        JoinsAtOnce,
        (
            "join_waits_for_the_last_item_to_be_finished",
            "join_does_not_wait_for_itself",
            "no_consumer_ever",
        ),
    ),
    (JoinsTooSoon, ("a_join_that_times_out_takes_its_time",)),
    (ShowsWhatIs, ("a_snapshot_stays_as_it_is",)),
    (WrongQueue.with_(consumer=Hoards), ("taken_means_handed_out",)),
    (WrongQueue.with_(consumer=FinishesAtOnce), ("all_of_a_batch_is_in_hand",)),
    (
        WrongQueue.with_(worker=FailsSilently),
        ("a_worker_that_leaves_with_by_an_exception_has_failed",),
    ),
    (
        WrongQueue.with_(worker=ClosesWhenDropped),
        ("a_worker_dropped_in_the_middle_of_an_item_has_failed",),
    ),
    (JoinsWithItemsInHand, ("join_waits_for_the_last_item_to_be_finished",)),
    (CancelsHalf, ("cancel_stops_what_comes_later",)),
    (
        WrongQueue.with_(producer=LooksBeforeItEnters),
        ("who_comes_after_a_cancel_is_told_by_its_calls",),
    ),
    (CancelsWithoutReason, ("cancel_stops_what_comes_later", "cancel_wakes_everybody")),
    (OpensAfterClose, ("no_producers_after_close",)),
    (CountsLate, ("statistics_count", "an_item_is_there_when_put_returns")),
    (CountsBackwards, ("statistics_never_go_back",)),
    (CountsOneByOne, ("statistics_never_go_back", "statistics_count")),
    (ExplainsNothing, ("explain_names_what_is_open", "done_is_final")),
    (Quiet, ("leaving_with_closes_the_queue",)),
    (WrongQueue.with_(consumer=UnlikeErrors), ("errors_can_be_pickled",)),
]


def name_of(make: Any) -> str:
    wrong = [
        member.__name__
        for kind in ("producer", "consumer", "worker")
        if (member := getattr(make, kind, Wrapper)) is not Wrapper
    ]
    return wrong[0] if wrong else str(make.__name__)


@pytest.mark.parametrize(
    ("make", "names"), WRONG, ids=[f"{name_of(make)}-{names[0]}" for make, names in WRONG]
)
def test_what_is_wrong_is_caught(make: Any, names: tuple[str, ...]) -> None:
    try:
        broken(make, *names)
    finally:
        over.set()
        over.clear()


def test_descriptors_that_are_left_are_counted() -> None:
    try:
        broken(LeavesDescriptors, "queues_leave_no_descriptors")
    finally:
        while LeavesDescriptors.left:
            os.close(LeavesDescriptors.left.pop())


def test_sleepers_that_a_close_does_not_wake() -> None:
    make = WrongQueue.with_(consumer=LeavesSleepers)
    text = str(broken(make, "closing_wakes_the_calls_of_other_threads", deadline_s=0.5))
    assert "take_one-0 did not end" in text


# Queues that hang


HANGS: list[tuple[Any, str]] = [
    (WrongQueue.with_(consumer=NeverTimesOut), "a_get_that_times_out_takes_its_time"),
    (WrongQueue.with_(producer=NeverTimesOut), "a_put_that_times_out_takes_its_time"),
    (WrongQueue.with_(consumer=Hoards), "no_consumer_sits_on_work"),
]


@pytest.mark.parametrize(("make", "name"), HANGS, ids=["get", "put", "hoard"])
def test_a_hang_is_a_broken_promise(make: Any, name: str) -> None:
    text = str(broken(make, name, deadline_s=0.5))
    assert "explain(): " in text
    assert "did not end within 0.5 s" in text or "was waited for in vain: 'holds'" in text


def test_what_can_not_be_ended_is_said() -> None:
    """A thread that hangs for good is a daemon; a worker's put that is refused hangs like that."""
    make = WrongQueue.with_(consumer=NeverDone)
    try:
        text = str(broken(make, "items_arrive", deadline_s=0.5))
    finally:
        over.set()
    assert "it did not end within 0.5 s" in text
    assert "over.wait(60)" in text, "where it hangs"
    assert "explain(): done" in text
    assert "left behind: thread 'items_arrive' could not be ended; it is a daemon thread" in text
    for thread in threading.enumerate():
        if thread.name == "items_arrive":
            thread.join(10)
    over.clear()


def test_workers_that_wait_for_room(request: pytest.FixtureRequest) -> None:
    request.addfinalizer(over.clear)
    make = WrongQueue.with_(worker=RefusesWorkers)
    try:
        broken(make, "a_workers_put_is_never_refused_for_maxsize", deadline_s=0.5)
    finally:
        over.set()


# Queues that are wrong between processes


SharedQueue = WrongQueue.with_(make=IterableQueue)


class NeverReturns(Wrapper):
    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        threading.Event().wait(60)


@FORKS
def test_what_is_wrong_between_processes_is_caught() -> None:
    fork = multiprocessing.get_context("fork")
    later = SharedQueue.with_(producer=PutsLaterAndLeaves)
    broken(later, "what_was_put_survives_its_process", processes=fork)
    broken(
        SharedQueue.with_(producer=FailsSilently),
        "what_a_failed_producer_put_is_delivered",
        processes=fork,
    )
    broken(
        IterableQueue.threaded,
        "an_item_is_what_it_was_when_it_was_put",
        "an_item_that_cannot_be_pickled_raises_in_put",
        "endpoints_cross_as_arguments",
        "endpoints_cross_by_pipe",
        "a_killed_process_has_failed",
        processes=fork,
    )


class Feeds(Wrapper):
    """Leaves a thread behind that goes on when the process would end."""

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        self.inner.put(item, block, timeout)
        threading.Thread(target=over.wait, args=(60,), daemon=False).start()


class LocksItself(Wrapper):
    """Can't be called by what interrupts it."""

    lock = threading.Lock()

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        with self.lock:
            self.inner.put(item, block, timeout)


class ForgetsTheTraceback(Wrapper):
    """Fails by an error that was never raised."""

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if exc is not None:
            self.inner.fail(type(exc)(*exc.args))


class IsEmptyElsewhere(Wrapper):
    """Belongs to nobody."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        try:
            return self.inner.get(block, timeout)
        except EndpointElsewhere:
            raise Empty from None


class ClosedByDropping(WrongQueue):
    """Takes a drop for a close, whoever else has it."""

    make = IterableQueue

    def __reduce__(self) -> Any:
        return self.inner.__reduce__()

    def __del__(self) -> None:
        self.inner.close()


AMONG_PROCESSES: list[tuple[Any, str]] = [
    (SharedQueue.with_(producer=Feeds), "a_process_ends_whatever_it_has_put"),
    (SharedQueue.with_(producer=LocksItself), "a_put_from_a_signal_handler_never_hangs"),
    (SharedQueue.with_(producer=ForgetsTheTraceback), "a_failure_comes_with_its_traceback"),
    (
        SharedQueue.with_(consumer=IsEmptyElsewhere),
        "a_consumer_belongs_to_the_process_that_takes_it",
    ),
    (ClosedByDropping, "a_pickled_queue_is_not_closed_by_being_dropped"),
]


@FORKS
@pytest.mark.parametrize(
    ("make", "name"), AMONG_PROCESSES, ids=[name for _, name in AMONG_PROCESSES]
)
def test_what_only_processes_show_is_caught(make: Any, name: str) -> None:
    broken(make, name, processes=multiprocessing.get_context("fork"), deadline_s=1.0)


@FORKS
def test_processes_that_hang_are_ended() -> None:
    pids: list[int] = []

    class Watched:
        """A context that tells which processes were started."""

        def Process(self, **kwargs: Any) -> Any:
            process: Any = multiprocessing.get_context("fork").Process(**kwargs)
            start = process.start

            def started() -> None:
                start()
                pids.append(process.pid)

            process.start = started
            return process

    make = SharedQueue.with_(consumer=NeverReturns)
    watched: Any = Watched()
    text = str(broken(make, "get_waits_for_an_item", processes=watched, deadline_s=0.5))
    assert "waited in vain: 0 blocked producers and 1 blocked consumers" in text
    assert len(pids) == 1
    assert not any(lives(pid) for pid in pids)


def test_a_context_must_start_processes() -> None:
    nothing: Any = object()
    with pytest.raises(TypeError, match=r"^processes must have Process\(\), as multi"):
        check_queue(IterableQueue, processes=nothing)


def test_roads_that_a_context_does_not_have_are_not_applicable() -> None:
    class Bare:
        Process = multiprocessing.get_context("spawn").Process

    bare: Any = Bare()
    report = check_queue(
        IterableQueue,
        processes=bare,
        only=["endpoints_cross_by_pipe", "endpoints_cross_as_pool_tasks"],
    )
    details = [result.detail for result in report.not_applicable]
    assert len(details) == 2
    assert all("has no P" in detail for detail in details)


def test_make_that_does_not_pickle(context: Context) -> None:
    def make() -> IterableQueue[Any]:
        return IterableQueue()

    report = check_queue(
        make,
        processes=context,
        only=["a_maker_that_dies_counts_as_a_failed_producer"],
    )
    [result] = report.not_applicable
    assert result.detail.startswith("make can't be pickled: ")


def test_module_is_public() -> None:
    module = importlib.import_module("iterable_queue.testing")
    assert sorted(module.__all__) == module.__all__
    assert all(hasattr(module, name) for name in module.__all__)

"""`check_producer` and `check_consumer`, over the shipped endpoints, and over doubles.

The doubles are what a user writes for a test: a producer that keeps a list, a consumer that hands
one out. Each of those below that is wrong breaks a promise, and is caught under its name.
"""

from __future__ import annotations

import copy
import math
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import pytest

from iterable_queue import (
    Consumer,
    ConsumerClosed,
    Done,
    Empty,
    Full,
    IterableQueue,
    Producer,
    ProducerClosed,
    ProducerFailed,
)
from iterable_queue.testing import (
    ConformanceError,
    MadeProducer,
    Promise,
    check_consumer,
    check_producer,
    promises,
)

# The shipped endpoints


def real_producer(make: Callable[[int], IterableQueue[Any]], maxsize: int = 0) -> MadeProducer:
    """A producer of a real queue, and what a consumer takes from that."""
    iq = make(maxsize)
    source = iq.get_consumer()
    seen: list[Any] = []

    def put() -> list[Any]:
        try:
            while True:
                seen.append(source.get_nowait())
        except Empty:
            return seen

    def failure() -> BaseException | None:
        if not iq.statistics().failures:
            return None
        iq.close()
        with pytest.raises(ProducerFailed) as failed:
            list(iq.get_consumer())
        return failed.value.__cause__

    return iq.get_producer(), put, failure


def real_consumer(
    make: Callable[[], IterableQueue[Any]],
    items: Sequence[Any],
    *,
    done: bool = True,
    failure: Exception | None = None,
) -> Consumer[Any]:
    """A consumer of a real queue, on which the items are."""
    iq = make()
    out, source = iq.get_producer(), iq.get_consumer()
    out.put_many(items)
    if failure is not None:
        out.fail(failure)
    elif done:
        out.close()
    else:
        kept.append(out)
    iq.close()
    return source


kept: list[Producer[Any]] = []
"""Producers that stay open to the end of a test."""


@pytest.fixture(autouse=True)
def _close_what_was_kept() -> Iterator[None]:
    yield
    for out in kept:
        out.close()
    kept.clear()


@pytest.mark.parametrize("make", [IterableQueue.threaded, IterableQueue], ids=["threads", "shared"])
def test_the_shipped_endpoints(make: Any) -> None:
    for report in (
        check_producer(partial(real_producer, make)),
        check_consumer(partial(real_consumer, make)),
    ):
        assert (report.failed, report.not_applicable) == ((), ())
        assert len(report.passed) >= 15


# Doubles that are right


class ListProducer:
    """Keeps what is put in a list, which its clones share."""

    def __init__(self, maxsize: int = 0, items: list[Any] | None = None) -> None:
        self.maxsize = maxsize
        self.items: list[Any] = [] if items is None else items
        self.closed = False
        self.error: BaseException | None = None

    def check_open(self) -> None:
        if self.closed:
            raise ProducerClosed("closed")

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        check_timeout(block, timeout)
        self.check_open()
        if self.full():
            raise Full
        self.items.append(item)

    def put_nowait(self, item: Any) -> None:
        self.put(item, block=False)

    def put_many(self, iterable: Iterable[Any]) -> None:
        for item in iterable:
            self.put(item)

    async def aput(self, item: Any, timeout: float | None = None) -> None:
        self.put(item, timeout=timeout)

    def close(self) -> None:
        self.closed = True

    def fail(self, error: BaseException) -> None:
        check_type(error, BaseException)
        self.error = error
        self.close()

    def clone(self) -> ListProducer:
        self.check_open()
        return type(self)(self.maxsize, self.items)

    def qsize(self) -> int:
        return len(self.items)

    def empty(self) -> bool:
        return not self.items

    def full(self) -> bool:
        return 0 < self.maxsize <= len(self.items)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if not self.closed:
            self.close() if exc is None else self.fail(exc)


def check_type(value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise TypeError(value)


def check_timeout(block: bool, timeout: float | None) -> None:
    if block and timeout is not None and not timeout >= 0:
        raise ValueError(timeout)


def double(kind: type[ListProducer], maxsize: int = 0) -> MadeProducer:
    """What `check_producer` asks for, of a double."""
    made = kind(maxsize)
    return made, lambda: made.items, lambda: made.error


class ListConsumer:
    """Hands out the items of a list, which its clones share."""

    def __init__(
        self, items: Iterable[Any], *, done: bool = True, failure: Exception | None = None
    ) -> None:
        self.items = items if isinstance(items, list) else list(items)
        self.done = done
        self.failure = failure
        self.closed = False

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        check_timeout(block, timeout)
        self.check_open()
        if self.items:
            return self.items.pop(0)
        raise self.end()

    def check_open(self) -> None:
        if self.closed:
            raise ConsumerClosed("closed")

    def end(self) -> Exception:
        if self.failure is not None:
            failed = ProducerFailed("failed")
            failed.failures = (self.failure,)
            failed.__cause__ = self.failure
            return failed
        return Done("done") if self.done else Empty()

    def get_nowait(self) -> Any:
        return self.get(block=False)

    def get_many(self, limit: int) -> Sequence[Any]:
        check_type(limit, int)
        if limit < 1:
            raise ValueError(limit)
        return [self.get(), *(self.get() for _ in self.items[: limit - 1])]

    async def aget(self, timeout: float | None = None) -> Any:
        return self.get(timeout=timeout)

    async def aget_many(self, limit: int) -> Sequence[Any]:
        return self.get_many(limit)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        try:
            return await self.aget()
        except Done:
            raise StopAsyncIteration from None

    def close(self) -> None:
        self.closed = True

    def clone(self) -> ListConsumer:
        self.check_open()
        return type(self)(self.items, done=self.done, failure=self.failure)

    def qsize(self) -> int:
        return len(self.items)

    def empty(self) -> bool:
        return not self.items

    def full(self) -> bool:
        return False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return self.get()
        except Done:
            raise StopIteration from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


def test_doubles_that_are_right() -> None:
    report = check_producer(partial(double, ListProducer))
    assert (report.failed, report.not_applicable) == ((), ())
    report = check_consumer(ListConsumer)
    assert (report.failed, report.not_applicable) == ((), ())


# Doubles that are wrong


class PutsAfterClose(ListProducer):
    """What a double forgets first."""

    def check_open(self) -> None:
        pass


class ClosesOnce(ListProducer):
    def close(self) -> None:
        self.check_open()
        super().close()


class GathersFirst(ListProducer):
    def put_many(self, iterable: Iterable[Any]) -> None:
        self.items += list(iterable)


class PutsLaterInCoroutines(ListProducer):
    """What a coroutine puts arrives with the next item."""

    last: tuple[Any, ...] = ()

    async def aput(self, item: Any, timeout: float | None = None) -> None:
        self.check_open()
        self.put_many(self.last)
        self.last = (item,)


class PutsAll(ListProducer):
    """Takes back what it put before an error."""

    def put_many(self, iterable: Iterable[Any]) -> None:
        before = list(self.items)
        try:
            super().put_many(iterable)
        except LookupError:
            self.items[:] = before
            raise


class PutsMoreThanOnceLazily(ListProducer):
    """Takes what can't be iterated over for an item."""

    def put_many(self, iterable: Iterable[Any]) -> None:
        super().put_many(iterable if hasattr(iterable, "__iter__") else [iterable])


class SkipsWhatLooksLikeNothing(ListProducer):
    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        if item:
            super().put(item, block, timeout)


class PutsInFront(ListProducer):
    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        self.items.insert(0, self.items.pop())


class TakesAnyTimeout(ListProducer):
    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block)


class TakesNoTimeoutUnlessItWaits(ListProducer):
    """Refuses what is ignored where nothing waits."""

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        if timeout is not None and (not block or timeout == math.inf):
            raise ValueError(timeout)
        super().put(item, block, timeout)


class StaysOpen(ListProducer):
    def __exit__(self, *_exc: object) -> None:
        pass


class Swallows(ListProducer):
    """Leaving `with` by an exception ends that."""

    def __exit__(self, *_exc: object) -> bool:  # type: ignore[override]
        self.close()
        return True


class FailsSilently(ListProducer):
    """Takes a `with` that was left by an exception for one that was left in order."""

    def __exit__(self, *_exc: object) -> None:
        self.close()


class FailsAlways(ListProducer):
    """Takes a `with` that was left in order for a failure."""

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.fail(exc or RuntimeError("left"))


class GivesSomethingElse(ListProducer):
    def __enter__(self) -> Any:
        return self.clone()


class FailsAndStaysOpen(ListProducer):
    def fail(self, error: BaseException) -> None:
        check_type(error, BaseException)
        self.error = error


class ForgetsWhy(ListProducer):
    def fail(self, error: BaseException) -> None:
        super().fail(error)
        self.error = RuntimeError("something failed")


class FailsByAnything(ListProducer):
    def fail(self, error: Any) -> None:
        super().fail(error if isinstance(error, BaseException) else RuntimeError(error))


class IsItsOwnClone(ListProducer):
    def clone(self) -> ListProducer:
        self.check_open()
        return self


class ClonesAreStrangers(ListProducer):
    def clone(self) -> ListProducer:
        self.check_open()
        return type(self)(self.maxsize)


class CountsItsLookers(ListProducer):
    def qsize(self) -> int:
        return len(self.items) + 1


class IsAlwaysEmpty(ListProducer):
    def empty(self) -> bool:
        return True


class OneTooMany(ListProducer):
    def full(self) -> bool:
        return 0 < self.maxsize < len(self.items)


class RaisesFullWithRoom(ListProducer):
    def full(self) -> bool:
        return 0 < self.maxsize <= len(self.items) + 1


WRONG_PRODUCERS: list[tuple[type[ListProducer], set[str]]] = [
    (PutsLaterInCoroutines, {"coroutines_put_as_others_do"}),
    (
        PutsAfterClose,
        {
            "a_closed_producer_refuses",
            "leaving_with_closes",
            "an_exception_that_leaves_with_goes_on",
            "fail_closes",
            "a_clone_counts_by_itself",
        },
    ),
    (ClosesOnce, {"closing_again_does_nothing"}),
    (
        GathersFirst,
        {
            "put_many_puts_as_it_goes",
            "what_put_many_put_before_an_error_stays",
            "a_closed_producer_refuses",
        },
    ),
    (PutsAll, {"what_put_many_put_before_an_error_stays"}),
    (PutsMoreThanOnceLazily, {"put_many_takes_any_iterable"}),
    (SkipsWhatLooksLikeNothing, {"items_are_put_in_order"}),
    (PutsInFront, {"items_are_put_in_order", "maxsize_is_exact"}),
    (TakesAnyTimeout, {"a_timeout_must_make_sense"}),
    (TakesNoTimeoutUnlessItWaits, {"with_room_no_time_passes"}),
    (StaysOpen, {"leaving_with_closes", "an_exception_that_leaves_with_goes_on"}),
    (
        Swallows,
        {"an_exception_that_leaves_with_goes_on", "an_exception_that_leaves_with_is_a_failure"},
    ),
    (FailsSilently, {"an_exception_that_leaves_with_is_a_failure"}),
    (FailsAlways, {"an_exception_that_leaves_with_is_a_failure"}),
    (GivesSomethingElse, {"leaving_with_closes"}),
    (FailsAndStaysOpen, {"fail_closes", "an_exception_that_leaves_with_goes_on"}),
    (ForgetsWhy, {"fail_tells_why", "an_exception_that_leaves_with_is_a_failure"}),
    (FailsByAnything, {"fail_closes"}),
    (IsItsOwnClone, {"a_clone_counts_by_itself"}),
    (ClonesAreStrangers, {"a_clone_counts_by_itself"}),
    (CountsItsLookers, {"sizes_make_sense", "maxsize_is_exact"}),
    (IsAlwaysEmpty, {"sizes_make_sense"}),
    (OneTooMany, {"maxsize_is_exact"}),
    (RaisesFullWithRoom, {"maxsize_is_exact"}),
]


@pytest.mark.parametrize(
    ("kind", "names"), WRONG_PRODUCERS, ids=[kind.__name__ for kind, _ in WRONG_PRODUCERS]
)
def test_producers_that_are_wrong(kind: type[ListProducer], names: set[str]) -> None:
    with pytest.raises(ConformanceError) as caught:
        check_producer(partial(double, kind))
    assert names <= {result.name for result in caught.value.report.failed}


class GetsAfterClose(ListConsumer):
    """What a double forgets first."""

    def check_open(self) -> None:
        pass


class ClosesConsumerOnce(ListConsumer):
    def close(self) -> None:
        self.check_open()
        super().close()


class TakesNothingForTheEnd(ListConsumer):
    """Stops at the first item that looks like nothing."""

    def __next__(self) -> Any:
        if item := super().__next__():
            return item
        raise StopIteration


class LeaksDone(ListConsumer):
    """Its iteration ends by an error."""

    def __next__(self) -> Any:
        return self.get()


class GetEndsTheIteration(ListConsumer):
    """Its `get` ends as an iteration does."""

    def end(self) -> Exception:
        error = super().end()
        return StopIteration() if isinstance(error, Done) else error


class IsDoneOnce(ListConsumer):
    """Says once that it is done."""

    said = False

    def end(self) -> Exception:
        error = super().end()
        if self.said:
            return Empty()
        self.said = isinstance(error, Done)
        return error


class StartsAgain(ListConsumer):
    """Each iteration is one of its own."""

    def __iter__(self) -> Iterator[Any]:
        self.check_open()
        return iter(list(self.items))


class TakesTooMany(ListConsumer):
    def get_many(self, limit: int) -> Sequence[Any]:
        return [*super().get_many(limit), *(self.get() for _ in self.items[:1])]


class GivesAnIterator(ListConsumer):
    def get_many(self, limit: int) -> Any:
        return iter(super().get_many(limit))


class GoesOnWithoutEnd(ListConsumer):
    """Forgets the end where it is iterated over in a coroutine."""

    async def __anext__(self) -> Any:
        return await self.aget()


class TakesAnyLimit(ListConsumer):
    def get_many(self, limit: int) -> Sequence[Any]:
        return super().get_many(max(limit, 1))


class TakesAnyTimeoutToo(ListConsumer):
    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        return super().get(block)


class ConsumerStaysOpen(ListConsumer):
    def __exit__(self, *_exc: object) -> None:
        pass


class ConsumerSwallows(ListConsumer):
    def __exit__(self, *_exc: object) -> bool:  # type: ignore[override]
        self.close()
        return True


class ConsumerIsItsOwnClone(ListConsumer):
    def clone(self) -> ListConsumer:
        self.check_open()
        return self


class ClonesTakeACopy(ListConsumer):
    """A clone hands out what the original does, too; and closes it."""

    def clone(self) -> ListConsumer:
        self.check_open()
        self.closed = True
        return type(self)(tuple(self.items))


class CountsWhatWasTaken(ListConsumer):
    taken = 0

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        item = super().get(block, timeout)
        self.taken += 1
        return item

    def qsize(self) -> int:
        return len(self.items) + self.taken


class TakesEmptyForDone(ListConsumer):
    def end(self) -> Exception:
        error = super().end()
        return Done("done") if isinstance(error, Empty) else error


class TakesFailureForDone(ListConsumer):
    def end(self) -> Exception:
        error = super().end()
        return Done("done") if isinstance(error, ProducerFailed) else error


class FailsWithoutReason(ListConsumer):
    def end(self) -> Exception:
        error = super().end()
        return ProducerFailed("failed") if isinstance(error, ProducerFailed) else error


WRONG_CONSUMERS: list[tuple[type[ListConsumer], set[str]]] = [
    (GetsAfterClose, {"a_closed_consumer_refuses", "leaving_with_closes"}),
    (ClosesConsumerOnce, {"closing_again_does_nothing"}),
    (TakesNothingForTheEnd, {"iteration_gives_every_item_and_ends"}),
    (LeaksDone, {"iteration_gives_every_item_and_ends", "done_is_final"}),
    (GetEndsTheIteration, {"get_gives_every_item", "done_is_final"}),
    (IsDoneOnce, {"done_is_final"}),
    (StartsAgain, {"iteration_goes_on_where_it_stopped"}),
    (TakesTooMany, {"get_many_takes_what_is_there"}),
    (GivesAnIterator, {"get_many_takes_what_is_there"}),
    (GoesOnWithoutEnd, {"coroutines_take_as_others_do"}),
    (TakesAnyLimit, {"a_limit_must_make_sense"}),
    (TakesAnyTimeoutToo, {"a_timeout_must_make_sense"}),
    (ConsumerStaysOpen, {"leaving_with_closes", "an_exception_that_leaves_with_goes_on"}),
    (ConsumerSwallows, {"an_exception_that_leaves_with_goes_on"}),
    (ConsumerIsItsOwnClone, {"a_clone_counts_by_itself"}),
    (ClonesTakeACopy, {"a_clone_counts_by_itself"}),
    (CountsWhatWasTaken, {"sizes_make_sense"}),
    (TakesEmptyForDone, {"empty_is_not_done"}),
    (TakesFailureForDone, {"a_failure_replaces_done"}),
    (FailsWithoutReason, {"a_failure_replaces_done"}),
]


@pytest.mark.parametrize(
    ("kind", "names"), WRONG_CONSUMERS, ids=[kind.__name__ for kind, _ in WRONG_CONSUMERS]
)
def test_consumers_that_are_wrong(kind: type[ListConsumer], names: set[str]) -> None:
    with pytest.raises(ConformanceError) as caught:
        check_consumer(kind)
    assert names <= {result.name for result in caught.value.report.failed}


def test_every_promise_is_broken_by_a_double() -> None:
    for of, wrong in (("producer", WRONG_PRODUCERS), ("consumer", WRONG_CONSUMERS)):
        known: tuple[Promise, ...] = promises(of)  # type: ignore[arg-type]
        caught: set[str] = {name for _, names in wrong for name in names}
        assert {promise.name for promise in known} == caught


# What is asked of `make`


def test_what_make_does_not_take_or_give_is_not_applicable() -> None:
    def make() -> MadeProducer:
        out = ListProducer()
        return out, lambda: out.items

    report = check_producer(make)
    details = {result.name: result.detail for result in report.not_applicable}
    assert set(details) == {
        "an_exception_that_leaves_with_is_a_failure",
        "fail_tells_why",
        "maxsize_is_exact",
    }
    assert "make() returns no third thing" in details["fail_tells_why"]
    assert "make can't be called with {'maxsize': 2}: " in details["maxsize_is_exact"]

    def make_consumer(items: Sequence[Any]) -> Consumer[Any]:
        return ListConsumer(items)

    report = check_consumer(make_consumer)
    names = {result.name for result in report.not_applicable}
    assert names == {"empty_is_not_done", "a_failure_replaces_done"}


def test_a_make_that_returns_something_else_is_told_so() -> None:
    wrong: list[Any] = [ListProducer(), (ListProducer(), None), (ListProducer(),)]
    for made in wrong:
        with pytest.raises(ConformanceError, match="returns a producer and a function that ret"):
            check_producer(partial(copy.copy, made), only=["sizes_make_sense"])


def test_a_queue_that_make_alone_referred_to_is_kept() -> None:
    """A queue that is dropped is closed, and then its consumer raises Done."""

    def make() -> MadeProducer:
        return real_producer(IterableQueue.threaded)

    assert not check_producer(make, only=["a_closed_producer_refuses"]).failed


def test_an_endpoint_that_hangs_is_given_up_and_closed() -> None:
    iq = IterableQueue[Any].threaded(maxsize=1)

    def make() -> MadeProducer:
        return iq.get_producer(), list

    with pytest.raises(ConformanceError) as caught:
        check_producer(make, only=["put_many_takes_any_iterable"], deadline_s=0.2)
    text = str(caught.value)
    assert "did not end within 0.2 s" in text
    assert "out.put_many(many)" in text, "where it hangs"
    assert "left behind" not in text, "the close woke it"


def test_items_of_a_type() -> None:
    class OnlyText(ListProducer):
        def put(self, item: str, block: bool = True, timeout: float | None = None) -> None:
            super().put(item.upper().lower(), block, timeout)

    make = partial(double, OnlyText)
    assert not check_producer(make, items=["a", "b", "c"]).failed
    with pytest.raises(ConformanceError):
        check_producer(make, only=["items_are_put_in_order"])
    for items in (["a", "b"], ["a", "a", "b"]):
        with pytest.raises(ValueError, match=r"^items must be 3 or more, each different from"):
            check_producer(make, items=items)


def test_selection() -> None:
    report = check_consumer(ListConsumer, only=["done_is_final"])
    assert [result.name for result in report.results] == ["done_is_final"]
    everything = {promise.name for promise in promises("consumer")}
    report = check_consumer(ListConsumer, skip=["done_is_final"])
    assert {result.name for result in report.results} == everything - {"done_is_final"}
    with pytest.raises(ValueError, match=r"no promises: .'items_arrive'.; there are"):
        check_producer(partial(double, ListProducer), only=["items_arrive"])
    with pytest.raises(ValueError, match="of must be 'queue', 'producer' or 'consumer', not 'w"):
        promises("worker")  # type: ignore[arg-type]


def test_each_promise_is_one_sentence_or_two() -> None:
    for promise in (*promises("producer"), *promises("consumer")):
        assert promise.text.endswith("."), promise.name
        assert promise.name.isidentifier(), promise.name
        assert 30 < len(promise.text) < 150, promise.name

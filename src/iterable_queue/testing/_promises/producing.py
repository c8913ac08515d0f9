"""One producer by itself: what `check_producer` holds an implementation of `Producer` to.

Each check makes its own producer. `seen()` says what has been put so far, whoever made that up: a
list in a double, what a consumer took from the queue behind a wrapper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from queue import Full
from typing import Any, NamedTuple

from iterable_queue._errors import ProducerClosed
from iterable_queue._protocols import Producer
from iterable_queue.testing._stage import (
    Broken,
    NotApplicable,
    Stage,
    holds,
    promise,
    raises,
    raises_in_coroutine,
    same,
)


class _Made(NamedTuple):
    """What `make` returned."""

    out: Producer[Any]
    seen: Callable[[], list[Any]]
    failure: Callable[[], BaseException | None]


def _make(stage: Stage, **kwargs: Any) -> _Made:
    made = stage.make_endpoint(**kwargs)
    if not 2 <= len(made) <= 3 or not all(map(callable, made[1:])):
        raise Broken(
            "make() returns a producer and a function that returns what was put so far (and, if "
            f"it likes, one that returns the error by which it failed), not {made!r}"
        )
    out, seen, *told = made
    return _Made(out, lambda: list(seen()), told[0] if told else _not_told)


def _not_told() -> BaseException | None:
    raise NotApplicable(
        "make() returns no third thing, a function that returns the error by which it failed"
    )


@promise
def items_are_put_in_order(stage: Stage) -> None:
    """What is put arrives as it is, in order, and is there when the call returns."""
    out, seen, _ = _make(stage)
    same(seen(), [], "what was put before the first put")
    for n, item in enumerate(stage.items):
        (out.put, out.put_nowait)[n % 2](item)
        same(seen(), list(stage.items[: n + 1]), f"what was put, after {n + 1} puts")


@promise
def coroutines_put_as_others_do(stage: Stage) -> None:
    """`aput` puts in order, item by item, and raises ProducerClosed after a close: as `put`."""
    import asyncio

    out, seen, _ = _make(stage)
    first, *_ = stage.items

    async def put() -> None:
        for n, item in enumerate(stage.items):
            await out.aput(item, (None, 60.0)[n % 2])
            same(seen(), list(stage.items[: n + 1]), f"what was put, after {n + 1} calls of aput")
        out.close()
        await raises_in_coroutine(ProducerClosed, out.aput(first))

    asyncio.run(put())
    same(seen(), list(stage.items), "what was put")


@promise
def put_many_puts_as_it_goes(stage: Stage) -> None:
    """put_many takes items lazily: one is put before the next one is asked for."""
    out, seen, _ = _make(stage)
    early: list[int] = []

    def items() -> Generator[Any]:
        for item in stage.items:
            early.append(len(seen()))
            yield item

    out.put_many(items())
    same(early, list(range(len(stage.items))), "items put, each time that one was asked for")
    same(seen(), list(stage.items), "what was put")


@promise
def put_many_takes_any_iterable(stage: Stage) -> None:
    """put_many takes any iterable, an empty one too, and raises TypeError for what is none."""
    out, seen, _ = _make(stage)
    first, *rest = stage.items
    for many in ([], [first], tuple(rest), iter(()), iter([first])):
        out.put_many(many)
    same(seen(), [first, *rest, first], "what was put")
    raises(TypeError, out.put_many, 5)
    same(seen(), [first, *rest, first], "what was put, after a put_many of no iterable")
    same(out.closed, False, "closed, after a put_many of no iterable")


@promise
def what_put_many_put_before_an_error_stays(stage: Stage) -> None:
    """An error of the iterable comes out of put_many; what it gave before stays put."""
    out, seen, _ = _make(stage)
    first, second, *_ = stage.items

    def items() -> Generator[Any]:
        yield first
        raise LookupError("the iterable went wrong")

    raises(LookupError, out.put_many, items())
    same(seen(), [first], "what was put")
    out.put(second)
    same(seen(), [first, second], "what was put, after another put")


@promise
def a_closed_producer_refuses(stage: Stage) -> None:
    """After its close a producer raises ProducerClosed, and nothing more is put."""
    out, seen, _ = _make(stage)
    first, second, *_ = stage.items
    same(out.closed, False, "closed of a new producer")
    out.put(first)
    out.close()
    same(out.closed, True, "closed after close()")
    for call in (out.put, out.put_nowait):
        raises(ProducerClosed, call, second)
    raises(ProducerClosed, out.put, second, timeout=0)
    raises(ProducerClosed, out.put_many, [second])
    raises(ProducerClosed, out.clone)
    same(seen(), [first], "what was put")


@promise
def closing_again_does_nothing(stage: Stage) -> None:
    """To close is idempotent, used or not, after a fail() or a `with` too."""
    for end in ("close", "fail", "with"):
        out, seen, _ = _make(stage)
        out.put(stage.items[0])
        if end == "close":
            out.close()
        elif end == "fail":
            out.fail(LookupError("why"))
        else:
            with out:
                pass
        for _ in range(2):
            out.close()
            same(out.closed, True, f"closed after {end} and close()")
        same(seen(), [stage.items[0]], "what was put")
    unused, seen, _ = _make(stage)
    unused.close()
    unused.close()
    same(unused.closed, True, "closed of a producer that was not used")
    same(seen(), [], "what was put")


@promise
def leaving_with_closes(stage: Stage) -> None:
    """`with producer as x` gives the producer itself; leaving the block closes it."""
    out, seen, _ = _make(stage)
    with out as entered:
        holds(entered is out, "`with producer as x` gives the producer itself")
        out.put(stage.items[0])
        same(out.closed, False, "closed within `with`")
    same(out.closed, True, "closed after `with`")
    raises(ProducerClosed, out.put, stage.items[1])
    same(seen(), [stage.items[0]], "what was put")
    with _make(stage).out as out:
        out.close()
    same(out.closed, True, "closed after a `with` in which it was closed")


@promise
def an_exception_that_leaves_with_goes_on(stage: Stage) -> None:
    """`with producer:` left by an exception closes it, and lets the exception go on."""
    out, seen, _ = _make(stage)
    raises(LookupError, _fail_within_with, out, stage.items[0])
    same(out.closed, True, "closed")
    raises(ProducerClosed, out.put, stage.items[1])
    same(seen(), [stage.items[0]], "what was put")


def _fail_within_with(out: Producer[Any], item: Any) -> None:
    with out:
        out.put(item)
        raise LookupError("the source ran dry")


@promise
def an_exception_that_leaves_with_is_a_failure(stage: Stage) -> None:
    """`with producer:` left by an exception fails it with that; left in order, it does not."""
    out, _, failure = _make(stage)
    with out:
        out.put(stage.items[0])
    same(failure(), None, "the error of a producer that has closed")
    out, _, failure = _make(stage)
    raises(LookupError, _fail_within_with, out, stage.items[0])
    same(repr(failure()), "LookupError('the source ran dry')", "the error by which it failed")


@promise
def fail_closes(stage: Stage) -> None:
    """fail(error) closes the producer; what it had put stays. Only an exception is an error."""
    out, seen, _ = _make(stage)
    first, second, *_ = stage.items
    out.put(first)
    raises(TypeError, out.fail, "no exception")
    same(out.closed, False, "closed after fail() with no exception")
    out.fail(LookupError("why"))
    same(out.closed, True, "closed after fail()")
    raises(ProducerClosed, out.put, second)
    same(seen(), [first], "what was put")


@promise
def fail_tells_why(stage: Stage) -> None:
    """fail(error) tells why: that error comes out at the other end."""
    out, _, failure = _make(stage)
    same(failure(), None, "the error of a producer that has not failed")
    out.fail(LookupError("why"))
    same(repr(failure()), "LookupError('why')", "the error by which it failed")


@promise
def a_clone_counts_by_itself(stage: Stage) -> None:
    """clone() is another producer on the same queue; each is closed by itself."""
    for first_to_close in ("the clone", "the original"):
        out, seen, _ = _make(stage)
        first, second, third, *_ = stage.items
        clone = out.clone()
        holds(clone is not out, "clone() is another producer")
        same(clone.closed, False, "closed of a clone")
        out.put(first)
        clone.put(second)
        closes, stays = (clone, out) if first_to_close == "the clone" else (out, clone)
        closes.close()
        same((closes.closed, stays.closed), (True, False), f"closed, once {first_to_close} is")
        raises(ProducerClosed, closes.put, third)
        stays.put(third)
        same(seen(), [first, second, third], "what was put by both")
        stays.close()


@promise
def a_timeout_must_make_sense(stage: Stage) -> None:
    """A negative time-out, or one that is no number, raises at once and nothing is put."""
    out, seen, _ = _make(stage)
    for wrong in (-1, -0.001, math.nan, -math.inf):
        raises(ValueError, out.put, stage.items[0], timeout=wrong)
    raises(TypeError, out.put, stage.items[0], timeout="1")
    same(seen(), [], "what was put")
    same(out.closed, False, "closed")


@promise
def with_room_no_time_passes(stage: Stage) -> None:
    """With room, put takes any sensible time-out, by position too, and needs none of it."""
    out, seen, _ = _make(stage)
    item = stage.items[0]
    out.put(item, True, 60.0)
    out.put(item, False)
    out.put(item, False, 60.0)
    out.put(item, block=True, timeout=math.inf)
    out.put(item, timeout=0)
    out.put(item, timeout=None)
    same(seen(), [item] * 6, "what was put")


@promise
def sizes_make_sense(stage: Stage) -> None:
    """qsize() is a number of items, empty() says whether it is 0, full() whether it is maxsize."""
    out, _, _ = _make(stage)
    for n in range(3):
        size = out.qsize()
        same(type(size), int, "the type of qsize()")
        holds(0 <= size <= n, f"qsize() is 0 to {n} after {n} puts: {size}")
        same(out.empty(), size == 0, f"empty() with qsize() == {size}")
        same(out.full(), False, "full() with room for more")
        out.put(stage.items[n])


@promise
def maxsize_is_exact(stage: Stage) -> None:
    """With maxsize items put and not taken, put raises Full where it may not wait, or in time."""
    out, seen, _ = _make(stage, maxsize=2)
    first, second, third, *_ = stage.items
    same(out.full(), False, "full() of a new producer")
    out.put_nowait(first)
    same(out.full(), False, "full() with 1 of 2 items")
    out.put(second, timeout=60.0)
    same((out.full(), out.qsize()), (True, 2), "full() and qsize() with 2 of 2 items")
    raises(Full, out.put_nowait, third)
    raises(Full, out.put, third, False)
    raises(Full, out.put, third, False, 60.0)
    raises(Full, out.put, third, timeout=0)
    raises(Full, out.put, third, timeout=0.05)
    same(out.qsize(), 2, "qsize() after puts that raised Full")
    same(seen(), [first, second], "what was put")
    same(out.closed, False, "closed after puts that raised Full")

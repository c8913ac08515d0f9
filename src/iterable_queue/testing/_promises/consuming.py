"""One consumer by itself: what `check_consumer` holds an implementation of `Consumer` to.

Each check makes its own consumer, of the items that it is to hand out before it is done.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from queue import Empty
from typing import Any

from iterable_queue._errors import ConsumerClosed, Done, ProducerFailed
from iterable_queue._protocols import Consumer
from iterable_queue.testing._stage import (
    Stage,
    holds,
    promise,
    raises,
    raises_in_coroutine,
    same,
)


def _make(stage: Stage, items: Sequence[Any], **kwargs: Any) -> Consumer[Any]:
    source: Consumer[Any]
    (source,) = stage.make_endpoint(items, **kwargs)
    return source


def _is_over(source: Consumer[Any], error: type[Exception]) -> None:
    """Every call raises *error*; an iteration ends, if the error is `Done`."""
    for _ in range(2):
        raises(error, source.get)
        raises(error, source.get_nowait)
        raises(error, source.get, False)
        raises(error, source.get, timeout=0)
        raises(error, source.get, timeout=0.01)
        raises(error, source.get_many, 2)
        if error is Done:
            same(list(source), [], "what an iteration gives after the end")
            raises(StopIteration, next, source)
        else:
            raises(error, list, source)
            raises(error, next, source)


@promise
def iteration_gives_every_item_and_ends(stage: Stage) -> None:
    """Iterating gives the items as they are, in order, whatever they are, and then ends."""
    same(list(_make(stage, stage.items)), list(stage.items), "the items taken")
    same(list(_make(stage, ())), [], "the items taken of none")


@promise
def get_gives_every_item(stage: Stage) -> None:
    """`get` takes the items in order, in each of its forms, and raises Done after the last one."""
    items = [*stage.items, *stage.items]
    source = _make(stage, items)
    first, second, third, *rest = items
    same(source.get(), first, "get()")
    same(source.get_nowait(), second, "get_nowait()")
    same(source.get(True, 60.0), third, "get(True, 60.0)")
    forms: list[dict[str, Any]] = [{"block": False}, {"timeout": 0}, {"timeout": math.inf}, {}]
    for n, item in enumerate(rest):
        kwargs = forms[n % len(forms)]
        same(source.get(**kwargs), item, f"get({kwargs})")
    raises(Done, source.get)


@promise
def done_is_final(stage: Stage) -> None:
    """After the last item every call raises Done, again and again, and iterations are empty."""
    source = _make(stage, stage.items)
    same(list(source), list(stage.items), "the items taken")
    _is_over(source, Done)
    _is_over(_make(stage, ()), Done)


@promise
def iteration_goes_on_where_it_stopped(stage: Stage) -> None:
    """A consumer is its own position: after a `break`, iterating and get go on with the next."""
    first, second, third, fourth, *rest = items = [*stage.items, *stage.items]
    source = _make(stage, items)
    for item in source:
        same(item, first, "the first item")
        break
    same(next(source), second, "next() after a break")
    same(next(iter(source)), third, "next(iter(consumer)) after a break")
    same(source.get(), fourth, "get() after a break")
    same(list(source), rest, "what a second iteration gives")


@promise
def get_many_takes_what_is_there(stage: Stage) -> None:
    """get_many(limit) returns a sequence of 1 to limit items, in order, and Done at the end."""
    source = _make(stage, stage.items)
    taken: list[Any] = []
    while len(taken) < len(stage.items):
        batch: Any = source.get_many(2)
        holds(isinstance(batch, Sequence), f"get_many returns a sequence: {batch!r}")
        holds(1 <= len(batch) <= 2, f"get_many(2) returns 1 or 2 items: {batch!r}")
        taken += batch
    same(taken, list(stage.items), "the items taken")
    raises(Done, source.get_many, 1)


@promise
def coroutines_take_as_others_do(stage: Stage) -> None:
    """`aget`, `aget_many` and `async for` give, and raise, what `get`, `get_many` and `for` do."""
    import asyncio

    first, second, third, *rest = items = [*stage.items, *stage.items]
    source = _make(stage, items)

    async def take() -> None:
        same(await source.aget(), first, "aget()")
        same(await source.aget(60.0), second, "aget(60.0)")
        many: Any = await source.aget_many(1)
        same(list(many), [third], "aget_many(1)")
        same([item async for item in source], rest, "what `async for` gave")
        same([item async for item in source], [], "what an `async for` gave after the end")
        for call in (source.aget, partial(source.aget, 0), partial(source.aget_many, 2)):
            await raises_in_coroutine(Done, call())
        source.close()
        await raises_in_coroutine(ConsumerClosed, source.aget())

    asyncio.run(take())


@promise
def a_limit_must_make_sense(stage: Stage) -> None:
    """get_many raises for a limit below 1 or one that is no int, and takes nothing."""
    source = _make(stage, stage.items)
    for wrong in (0, -1):
        raises(ValueError, source.get_many, wrong)
    for no_int in ("2", 1.5, None):
        raises(TypeError, source.get_many, no_int)
    same(list(source), list(stage.items), "the items taken")


@promise
def a_timeout_must_make_sense(stage: Stage) -> None:
    """A negative time-out, or one that is no number, raises at once and nothing is taken."""
    source = _make(stage, stage.items)
    for wrong in (-1, -0.001, math.nan, -math.inf):
        raises(ValueError, source.get, timeout=wrong)
    raises(TypeError, source.get, timeout="1")
    same(list(source), list(stage.items), "the items taken")


@promise
def a_closed_consumer_refuses(stage: Stage) -> None:
    """After its close a consumer raises ConsumerClosed, whether items are left or not."""
    for taken in (0, 1, len(stage.items)):
        source = _make(stage, stage.items)
        same([source.get() for _ in range(taken)], list(stage.items[:taken]), "the items taken")
        if taken == len(stage.items):
            raises(Done, source.get)
        same(source.closed, False, f"closed before close(), with {taken} items taken")
        source.close()
        same(source.closed, True, "closed after close()")
        for call in (source.get, source.get_nowait, source.clone):
            raises(ConsumerClosed, call)
        raises(ConsumerClosed, source.get, timeout=0)
        raises(ConsumerClosed, source.get_many, 1)
        raises(ConsumerClosed, next, source)
        raises(ConsumerClosed, list, source)


@promise
def closing_again_does_nothing(stage: Stage) -> None:
    """To close is idempotent, used or not, after a `with` too."""
    for end in ("close", "with", "unused"):
        source = _make(stage, stage.items)
        if end != "unused":
            source.get()
        if end == "with":
            with source:
                pass
        for _ in range(2):
            source.close()
            same(source.closed, True, "closed after close()")


@promise
def leaving_with_closes(stage: Stage) -> None:
    """`with consumer as x` gives the consumer itself; leaving the block closes it."""
    source = _make(stage, stage.items)
    with source as entered:
        holds(entered is source, "`with consumer as x` gives the consumer itself")
        same(source.closed, False, "closed within `with`")
        for item in source:
            same(item, stage.items[0], "the first item")
            break
    same(source.closed, True, "closed after a `break` within `with`")
    raises(ConsumerClosed, source.get)
    with _make(stage, stage.items) as source:
        source.close()
    same(source.closed, True, "closed after a `with` in which it was closed")


@promise
def an_exception_that_leaves_with_goes_on(stage: Stage) -> None:
    """`with consumer:` left by an exception closes it, and lets the exception go on."""
    source = _make(stage, stage.items)
    raises(LookupError, _fail_within_with, source)
    same(source.closed, True, "closed")
    raises(ConsumerClosed, source.get)


def _fail_within_with(source: Consumer[Any]) -> None:
    with source:
        source.get()
        raise LookupError("the item was too much")


@promise
def a_clone_counts_by_itself(stage: Stage) -> None:
    """clone() is another consumer on the same queue: each item once, each closed by itself."""
    first, *rest = stage.items
    source = _make(stage, stage.items)
    clone = source.clone()
    holds(clone is not source, "clone() is another consumer")
    same(clone.closed, False, "closed of a clone")
    clone.close()
    same((clone.closed, source.closed), (True, False), "closed, once the clone is")
    raises(ConsumerClosed, clone.get)
    same(list(source), [first, *rest], "the items taken by the original")
    source = _make(stage, stage.items)
    same(source.get(), first, "the item taken by the original")
    clone = source.clone()
    source.close()
    same((clone.closed, source.closed), (False, True), "closed, once the original is")
    same(list(clone), rest, "the items left for the clone")


@promise
def sizes_make_sense(stage: Stage) -> None:
    """qsize() is a number of items, empty() says whether it is 0, full() whether it is maxsize."""
    source = _make(stage, stage.items)
    for taken in range(len(stage.items) + 1):
        left = len(stage.items) - taken
        size = source.qsize()
        same(type(size), int, "the type of qsize()")
        same(size, left, "qsize(), the number of items left")
        same(source.empty(), left == 0, f"empty() with {left} items left")
        same(source.full(), False, "full() without a maxsize")
        if left:
            source.get()


@promise
def empty_is_not_done(stage: Stage) -> None:
    """Where more may come, a call that may not wait raises Empty, in time, and never Done."""
    source = _make(stage, stage.items, done=False)
    same([source.get() for _ in stage.items], list(stage.items), "the items taken")
    for _ in range(2):
        raises(Empty, source.get_nowait)
        raises(Empty, source.get, False)
        raises(Empty, source.get, False, 60.0)
        raises(Empty, source.get, timeout=0)
        raises(Empty, source.get, timeout=0.05)
    same((source.empty(), source.qsize()), (True, 0), "empty() and qsize()")
    same(source.closed, False, "closed")
    source.close()
    raises(ConsumerClosed, source.get_nowait)


@promise
def a_failure_replaces_done(stage: Stage) -> None:
    """Where a producer failed, ProducerFailed from it takes the place of Done, for ever."""
    source = _make(stage, stage.items, failure=LookupError("why"))
    same([source.get() for _ in stage.items], list(stage.items), "the items put before")
    failed = raises(ProducerFailed, source.get)
    same(repr(failed.__cause__), "LookupError('why')", "the cause of ProducerFailed")
    same([repr(error) for error in failed.failures], ["LookupError('why')"], ".failures")
    _is_over(source, ProducerFailed)
    source.close()
    raises(ConsumerClosed, source.get)

"""Items: that each arrives, once, whole, in order and at once."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Generator
from queue import Empty
from typing import Any, NoReturn

from iterable_queue._errors import Done, ItemError
from iterable_queue.testing import _actors
from iterable_queue.testing._stage import (
    Stage,
    holds,
    promise,
    promise_between_processes,
    promise_of_fifo,
    promise_of_pickling,
    raises,
    raises_in_coroutine,
    same,
    same_items,
)


@promise
def items_arrive(stage: Stage) -> None:
    """What one producer puts, one consumer takes; then the iteration ends."""
    iq = stage.make()
    source = iq.get_consumer()
    with iq, iq.get_producer() as out:
        for n in range(3):
            out.put(n)
    same(list(source), [0, 1, 2], "the items taken")


@promise
def coroutines_put_and_take(stage: Stage) -> None:
    """What a coroutine puts, coroutines take; time-outs and the end are those of other calls."""
    import asyncio

    iq = stage.make()
    out, source = iq.get_producer(), iq.get_consumer()
    iq.close()

    async def cross() -> None:
        await raises_in_coroutine(Empty, source.aget(0))
        for n in range(6):
            await out.aput(n)
        same(await source.aget(), 0, "aget()")
        same([*await source.aget_many(1)], [1], "aget_many(1)")
        out.close()
        same([n async for n in source], [2, 3, 4, 5], "what `async for` gave")
        await raises_in_coroutine(Done, source.aget())

    asyncio.run(cross())


@promise
def each_item_is_handed_out_exactly_once(stage: Stage) -> None:
    """Without crashes no item is lost or handed out twice, with several on each side."""
    iq = stage.make()
    takers = [stage.start(_actors.consume, iq.get_consumer()) for _ in range(3)]
    makers = [
        stage.start(_actors.produce, iq.get_producer(), range(first, first + 300))
        for first in (0, 300, 600)
    ]
    iq.close()
    for maker in makers:
        maker.result()
    same_items([item for taker in takers for item in taker.result()], range(900))


@promise
def items_of_one_producer_arrive_in_order(stage: Stage) -> None:
    """A consumer that is the only one sees each producer's items in the order they were put in."""
    iq = stage.make()
    source = iq.get_consumer()
    for name in range(3):
        items = [(name, n) for n in range(200)]
        stage.start(_actors.produce, iq.get_producer(), items)
    iq.close()
    taken = list(source)
    for name in range(3):
        same([n for who, n in taken if who == name], list(range(200)), f"those of producer {name}")


@promise
def a_claim_begins_with_the_oldest_item(stage: Stage) -> None:
    """Of items on an idle queue, one whose put returned before another's began is taken first."""
    iq = stage.make()
    outs = [iq.get_producer() for _ in range(3)]
    source = iq.get_consumer()
    for round_ in range(30):
        for n in range(3):
            outs[(round_ * 2 + n) % 3].put((round_, n))
        same(source.get(), (round_, 0), "the first one taken")
        same_items([source.get(), source.get()], [(round_, 1), (round_, 2)])


@promise_of_fifo
def items_are_first_in_first_out(stage: Stage) -> None:
    """Items are taken in the order in which they were put, whoever put them."""
    iq = stage.make()
    outs = [iq.get_producer() for _ in range(3)]
    source = iq.get_consumer()
    for n in range(100):
        outs[n * n % 3].put(n)
    same([source.get() for _ in range(100)], list(range(100)), "the items taken")


@promise
def an_item_is_there_when_put_returns(stage: Stage) -> None:
    """When put returns, the item is visible to every consumer."""
    iq = stage.make()
    out, source, other = iq.get_producer(), iq.get_consumer(), iq.get_consumer()
    for n in range(50):
        out.put(n)
        same(iq.qsize(), 1, "qsize() after put")
        same(source.empty(), False, "empty() after put")
        same((source, other)[n % 2].get_nowait(), n, "get_nowait() after put")
        same(iq.qsize(), 0, "qsize() after get")
    actor = stage.start(_actors.produce_on_cue, iq.get_producer(), range(10))
    for n in range(10):
        actor.tell(f"put {n}")
        actor.wait(f"has put {n}")
        same(iq.qsize(), 1, "qsize() after an actor's put")
        same(source.get_nowait(), n, "get_nowait() after an actor's put")
    actor.result()


@promise
def any_value_is_an_item(stage: Stage) -> None:
    """None, zero, empty and exceptional values are items like others, and so are large ones."""
    iq = stage.make()
    out, source = iq.get_producer(), iq.get_consumer()
    values: list[Any] = [None, 0, "", b"", (), [], False, Ellipsis, Done, StopIteration]
    values += [{"a": [1.5, {"b": None}]}, b"x" * 3_000_000, "\ud800", 2**200, values[:3]]
    for value in values:
        out.put(value)
        same(source.get(), value, "the item taken")
    out.put_many(values)
    out.close()
    iq.close()
    same(list(source), values, "the items taken")


@promise
def put_many_puts_as_it_goes(stage: Stage) -> None:
    """put_many takes any iterable, lazily: an item is visible before the next one is asked for."""
    iq = stage.make()
    out, source = iq.get_producer(), iq.get_consumer()
    early: list[int] = []

    def items() -> Generator[int]:
        for n in range(100):
            early.append(iq.qsize())
            yield n

    out.put_many(items())
    same(early, list(range(100)), "qsize() each time that an item was asked for")
    same([source.get() for _ in range(100)], list(range(100)), "the items taken")
    for many in ([1, 2], (3,), range(4, 6), {6: None}, iter([7]), []):
        out.put_many(many)
    same([source.get() for _ in range(7)], [1, 2, 3, 4, 5, 6, 7], "the items taken")
    raises(TypeError, out.put_many, 5)
    same(iq.qsize(), 0, "qsize() after a put_many of no iterable")


@promise
def what_put_many_put_before_an_error_stays(stage: Stage) -> None:
    """An error of the iterable comes out of put_many; what it gave before stays put."""
    iq = stage.make()
    out, source = iq.get_producer(), iq.get_consumer()

    def items() -> Generator[int]:
        yield 1
        yield 2
        raise LookupError

    raises(LookupError, out.put_many, items())
    out.put(3)
    same([source.get() for _ in range(3)], [1, 2, 3], "the items taken")


@promise
def get_many_takes_what_is_there(stage: Stage) -> None:
    """get_many waits for one item, then takes up to its limit of those that are there."""
    iq = stage.make()
    out, source = iq.get_producer(), iq.get_consumer()
    out.put_many(range(5))
    first = list(source.get_many(3))
    holds(1 <= len(first) <= 3, f"between 1 and 3 items: {first}")
    rest: list[Any] = []
    while len(first) + len(rest) < 5:
        rest += source.get_many(100)
    same(first + rest, list(range(5)), "the items taken")
    actor = stage.start(_actors.take_from, iq.get_consumer(), 4)
    source.close()
    actor.wait("ready")
    out.put_many(range(10))
    out.close()
    iq.close()
    batches = actor.result()
    same([item for batch in batches for item in batch], list(range(10)), "the items taken")
    holds(all(1 <= len(batch) <= 4 for batch in batches), f"between 1 and 4 items: {batches}")
    late = iq.get_consumer()
    raises(Done, late.get_many, 1)
    for limit in (0, -1):
        raises(ValueError, late.get_many, limit)
    raises(TypeError, late.get_many, "2")


@promise
def taken_means_handed_out(stage: Stage) -> None:
    """Taken is what was handed out, by whatever call; what is claimed ahead counts as queued."""
    iq = stage.make()
    out, source, other = iq.get_producer(), iq.get_consumer(), iq.get_consumer()
    out.put_many(range(40))
    taken: list[Any] = []
    while len(taken) < 40:
        forms: list[Callable[[], list[Any]]] = [
            lambda: [source.get()],
            lambda: [next(source)],
            lambda: list(source.get_many(3)),
            lambda: [other.get(timeout=1.0)],
        ]
        for form in forms:
            taken += form()
            now = iq.statistics()
            same((now.taken, now.queued), (len(taken), 40 - len(taken)), "items taken, and queued")
            same(iq.qsize(), 40 - len(taken), "qsize()")
            if len(taken) == 40:
                break
    same_items(taken, range(40))


@promise
def all_of_a_batch_is_in_hand(stage: Stage) -> None:
    """All that get_many returned is in hand until that thread's next get, even one in vain."""
    iq = stage.make()
    out, source = iq.get_producer(), iq.get_consumer()
    out.put_many(range(8))
    batch = list(source.get_many(8))
    same(iq.statistics().finished, 0, "items finished, with the first batch in hand")
    while len(batch) < 8:
        more = source.get_many(8)
        same(iq.statistics().finished, len(batch), "items finished, with the next batch in hand")
        batch += more
    finished = iq.statistics().finished
    source.qsize()
    same(iq.statistics().finished, finished, "items finished, after a look at qsize()")
    raises(Empty, source.get_nowait)
    same(iq.statistics().finished, 8, "items finished, after a get_nowait() in vain")
    out.put("last")
    same(source.get(), "last", "the item taken")
    raises(Empty, source.get, timeout=0.01)
    same(iq.statistics().finished, 9, "items finished, after a get() that timed out")


@promise
def no_consumer_sits_on_work(stage: Stage) -> None:
    """Four items that meet at a barrier, with four consumers, always meet."""
    for waiting in (False, True):
        iq = stage.make()
        out = iq.get_producer()
        if not waiting:
            out.put_many(range(4))
        takers = [stage.start(_actors.take_and_hold, iq.get_consumer()) for _ in range(4)]
        if waiting:
            stage.until_blocked(iq, consumers=4)
            out.put_many(range(4))
        same_items([taker.wait("holds") for taker in takers], range(4))
        out.close()
        iq.close()
        for taker in takers:
            taker.tell("go")
        same_items([item for taker in takers for item in taker.result()], range(4))


class _NotToBePickled:
    def __reduce__(self) -> NoReturn:
        raise LookupError("this one can't be pickled")


class _NotToBeOpened:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _fail_to_open, ()


def _fail_to_open() -> NoReturn:
    raise LookupError("this one can't be opened")


@promise_of_pickling
def an_item_is_what_it_was_when_it_was_put(stage: Stage) -> None:
    """The item is pickled in the call; changing the object afterwards changes nothing."""
    iq = stage.make()
    out, source = iq.get_producer(), iq.get_consumer()
    item = [0]
    for n in range(20):
        item[0] = n
        out.put(item)
    item[0] = -1
    same([source.get() for _ in range(20)], [[n] for n in range(20)], "the items taken")


@promise_of_pickling
def an_item_that_cannot_be_pickled_raises_in_put(stage: Stage) -> None:
    """An item that can't be pickled raises there, in put, and nothing is half done."""
    iq = stage.make()
    out, source = iq.get_producer(), iq.get_consumer()
    out.put("before")
    before = iq.statistics()
    raises(LookupError, out.put, _NotToBePickled())
    raises(LookupError, out.put_nowait, _NotToBePickled())
    same(iq.statistics(), before, "statistics()")
    raises(LookupError, out.put_many, [1, [_NotToBePickled()], 3])
    out.put("after")
    same([source.get() for _ in range(3)], ["before", 1, "after"], "the items taken")
    same(iq.qsize(), 0, "qsize()")


@promise_of_pickling
def an_item_that_cannot_be_opened_raises_item_error(stage: Stage) -> None:
    """It raises ItemError in the consumer that took it, is counted, and the next get goes on."""
    iq = stage.make()
    out, source = iq.get_producer(), iq.get_consumer()
    out.put_many([1, _NotToBeOpened(), 2, 3, _NotToBeOpened(), 4])
    same(source.get(), 1, "the item before it")
    error = raises(ItemError, source.get)
    holds(isinstance(error.__cause__, LookupError), f"the cause is why: {error.__cause__!r}")
    holds(
        f"producer {error.producer}" in iq.explain(),
        f"explain() knows producer {error.producer}: {iq.explain()}",
    )
    raises(LookupError, pickle.loads, error.payload)
    same(iq.statistics().taken, 2, "the number of items taken")
    same(list(source.get_many(10)), [2, 3], "the items before the next one, by get_many")
    raises(ItemError, source.get_many, 10)
    same(source.get(), 4, "the item after it")
    out.close()
    iq.close()
    same(list(source), [], "what is left")
    same(iq.join(1.0), True, "join()")


@promise_between_processes
def what_was_put_survives_its_process(stage: Stage) -> None:
    """An item whose put has returned is delivered, however soon its process is gone."""
    iq = stage.make()
    source = iq.get_consumer()
    actor = stage.start(_actors.put_close_and_exit, iq.get_producer(), range(200))
    iq.close()
    actor.gone()
    same(list(source), list(range(200)), "the items taken")


@promise_between_processes
def a_process_ends_whatever_it_has_put(stage: Stage) -> None:
    """A process that has put more than any pipe holds ends, though nobody takes anything."""
    iq = stage.make()
    source = iq.get_consumer()
    items = [bytes([n]) * 10_000 for n in range(100)]
    actor = stage.start(_actors.produce, iq.get_producer(), items)
    iq.close()
    actor.result()
    actor.gone()
    same(iq.qsize(), 100, "qsize() once the process has ended")
    same(list(source), items, "the items taken")


@promise
def threads_may_share_an_endpoint(stage: Stage) -> None:
    """Threads of its process may share an endpoint; each call is atomic."""
    iq = stage.make()
    out, source = iq.get_producer(), iq.get_consumer()
    takers = [stage.thread(_actors.consume, source) for _ in range(3)]
    makers = [
        stage.thread(_actors.put_all, out, range(first, first + 200)) for first in (0, 200, 400)
    ]
    for maker in makers:
        maker.result()
    out.close()
    iq.close()
    same_items([item for taker in takers for item in taker.result()], range(600))
    same(iq.join(1.0), True, "join()")

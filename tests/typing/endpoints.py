"""What one can and can't do with each endpoint, and of what type it is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import assert_type

from iterable_queue import Consumer, Endpoint, Producer, Worker


def a_producer_takes_items(out: Producer[int]) -> None:
    out.put(1)
    out.put(1, False)
    out.put(1, block=True, timeout=None)
    out.put(1, timeout=2)
    out.put(1, timeout=0.5)
    out.put(True)
    out.put_nowait(1)
    out.put_many([1, 2])
    out.put_many(n for n in range(3))
    out.put_many({1: "one"})
    assert_type(out.clone(), Producer[int])
    out.fail(ValueError("why"))
    out.fail(KeyboardInterrupt())
    out.close()


def a_producer_takes_no_others(out: Producer[int]) -> None:
    out.put("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    out.put(None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    out.put()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    out.put(1, timeout="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    out.put_nowait("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    out.put_nowait(1, timeout=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    out.put_many(["1"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    out.put_many(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    out.clone().put("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    out.fail("why")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    out.fail(ValueError)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    out.fail()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def a_producer_gives_nothing(out: Producer[int]) -> None:
    out.get()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    out.get_nowait()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    out.get_many(2)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    next(out)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    iter(out)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


def a_consumer_gives_items(source: Consumer[int]) -> None:
    assert_type(source.get(), int)
    assert_type(source.get(False), int)
    assert_type(source.get(block=True, timeout=None), int)
    assert_type(source.get(timeout=2), int)
    assert_type(source.get(timeout=0.5), int)
    assert_type(source.get_nowait(), int)
    assert_type(source.get_many(10), Sequence[int])
    assert_type(next(source), int)
    assert_type(iter(source), Iterator[int])
    assert_type(list(source), list[int])
    assert_type(source.clone(), Consumer[int])
    for item in source:
        assert_type(item, int)
    for number, item in enumerate(source):
        assert_type((number, item), tuple[int, int])
    source.close()


def a_consumer_is_asked_rightly(source: Consumer[int]) -> None:
    source.get(timeout="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    source.get_nowait(timeout=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    source.get_many()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    source.get_many("2")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    source.get_many(None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    wrong: str = source.get()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    print(wrong)


def what_a_consumer_gives_by_the_many_is_for_reading(source: Consumer[int]) -> None:
    source.get_many(2).append(3)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


def a_consumer_takes_nothing(source: Consumer[int]) -> None:
    source.put(1)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    source.put_nowait(1)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    source.put_many([1])  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    source.fail(ValueError())  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


def a_consumer_has_no_length(source: Consumer[int]) -> None:
    """For what is left on a queue is not what is still to come."""
    len(source)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def a_worker_does_both(tree: Worker[int]) -> None:
    assert_type(tree.get(), int)
    assert_type(tree.get_nowait(), int)
    assert_type(tree.get_many(2), Sequence[int])
    assert_type(tree.clone(), Worker[int])
    for node in tree:
        assert_type(node, int)
        tree.put(node + 1)
        tree.put(node + 1, block=False, timeout=None)
        tree.put_nowait(node + 2)
        tree.put_many([node + 3])
    tree.fail(ValueError())
    tree.close()


def a_worker_takes_no_others(tree: Worker[int]) -> None:
    tree.put("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    tree.put_nowait("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    tree.put_many(["1"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    tree.fail("why")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def with_gives_the_endpoint_itself(
    out: Producer[int], source: Consumer[int], tree: Worker[int]
) -> None:
    with out as same_out:
        assert_type(same_out, Producer[int])
    with source as same_source, tree as same_tree:
        assert_type(same_source, Consumer[int])
        assert_type(same_tree, Worker[int])


def with_lets_exceptions_through(out: Producer[int], source: Consumer[int]) -> int:
    """So a function whose block always returns needs no `return` behind it."""
    with out, source:
        return source.get()


def an_endpoint_can_be_looked_at(
    end: Endpoint, out: Producer[int], source: Consumer[int], tree: Worker[int]
) -> None:
    assert_type(end.closed, bool)
    assert_type(end.qsize(), int)
    assert_type(end.empty(), bool)
    assert_type(end.full(), bool)
    with end as same_end:
        assert_type(same_end, Endpoint)
    ends: list[Endpoint] = [out, source, tree]
    for each in ends:
        each.close()
    assert_type((out.closed, source.closed, tree.closed), tuple[bool, bool, bool])
    assert_type((out.qsize(), source.empty(), tree.full()), tuple[int, bool, bool])


def whether_it_is_closed_can_only_be_read(out: Producer[int]) -> None:
    out.closed = True  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def protocols_can_not_be_made() -> None:
    Producer[int]()  # type: ignore[misc]  # pyright: ignore[reportAbstractUsage]
    Consumer[int]()  # type: ignore[misc]  # pyright: ignore[reportAbstractUsage]
    Worker[int]()  # type: ignore[misc]  # pyright: ignore[reportAbstractUsage]


def a_consumer_is_an_iterable(source: Consumer[int], tree: Worker[int]) -> None:
    items: Iterable[int] = source
    again: Iterator[int] = tree
    print(items, again)


async def a_producer_takes_items_of_coroutines(out: Producer[int], tree: Worker[int]) -> None:
    await out.aput(1)
    await out.aput(True, 0.5)
    await out.aput(1, timeout=None)
    await out.aput("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await out.aput(1, timeout="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await tree.aput(1)
    await tree.aput("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def a_consumer_gives_items_to_coroutines(source: Consumer[int], tree: Worker[int]) -> None:
    assert_type(await source.aget(), int)
    assert_type(await source.aget(0.5), int)
    assert_type(await source.aget(timeout=None), int)
    assert_type(await source.aget_many(10), Sequence[int])
    assert_type(aiter(source), AsyncIterator[int])
    assert_type(await anext(source), int)
    async for n in source:
        assert_type(n, int)
    assert_type(await tree.aget(), int)
    async for n in tree:
        assert_type(n, int)


async def the_ends_are_apart_in_coroutines(out: Producer[int], source: Consumer[int]) -> None:
    await out.aget()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    await source.aput(1)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]

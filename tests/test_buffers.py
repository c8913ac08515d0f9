"""Large buffers in items: copied once on each side, and whole whatever comes in between."""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import chain
from typing import Any, cast

import pytest

from iterable_queue import ItemError, IterableQueue, _endpoints, _fence
from iterable_queue._cells import NUMBER_MASK, RAW, WRITABLE
from iterable_queue._channel import PICKLED, Parts, pack_large
from iterable_queue._channels.log import LARGEST_SIZE
from iterable_queue._pickling import (
    ALIGNED,
    APART_LEAST,
    pickling,
    pickling_apart,
    put_together,
    take_apart,
)
from tests.actors import PATIENCE_S
from tests.conftest import FORKS

pytestmark = FORKS

np: Any = import_module("numpy")  # its own types are for newer Pythons than the oldest here

LARGE = 3 * APART_LEAST + 5


class Block:
    """Something that keeps its bytes in a buffer, as arrays do."""

    def __init__(self, *data: Any, note: Any = None) -> None:
        self.data = data
        self.note = note

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return Block._again, (self.note, *map(pickle.PickleBuffer, self.data))

    @classmethod
    def _again(cls, note: Any, *data: Any) -> Block:
        return cls(*data, note=note)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Block) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self.note)

    def _key(self) -> tuple[object, list[tuple[bool, bytes]]]:
        return self.note, [(memoryview(part).readonly, bytes(part)) for part in self.data]


def counted(length: int, *, step: int = 1) -> bytes:
    return (bytes(n * step % 251 for n in range(251)) * (length // 251 + 1))[:length]


BLOCKS = (
    Block(bytearray(counted(LARGE)), note=["a", {1: 2}]),
    Block(counted(LARGE)),
    Block(bytearray(counted(LARGE)), bytearray(b"few"), counted(APART_LEAST, step=3), b""),
    Block(bytearray(APART_LEAST - 1)),
    Block(*(bytearray(counted(APART_LEAST + n)) for n in range(2 * ALIGNED))),
    bytearray(),
    bytearray(b"x" * 40),
    bytearray(counted(41)),
    bytearray(counted(LARGE)),
    [bytearray(counted(LARGE)), counted(LARGE)],
)


@pytest.fixture(params=["fast", "slow"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fast, or as on a machine on which all goes by the lock."""
    if request.param == "slow":
        monkeypatch.setattr(_fence, "is_supported", lambda: False)


@pytest.mark.parametrize("maxsize", [0, 3])
def test_items_with_buffers_come_as_they_went(way: None, maxsize: int) -> None:
    iq = IterableQueue[Any](maxsize)
    out, source = iq.get_producer(), iq.get_consumer()
    for item in BLOCKS:
        out.put(item)
        got = source.get()
        assert type(got) is type(item)
        assert got == item
        out.put_many([item, item])
        assert source.get_many(2) == [item, item]
    with iq.get_worker() as tree:
        tree.put(BLOCKS[0])
        assert tree.get() == BLOCKS[0]


ARRAYS: dict[str, Callable[[], Any]] = {
    "plain": lambda: np.arange(10_000, dtype=np.float64),
    "columns": lambda: np.asfortranarray(np.arange(12_000).reshape(120, 100)),
    "in steps": lambda: np.arange(20_000)[::2],
    "read-only": lambda: np.frombuffer(counted(LARGE), dtype=np.uint8),
    "small": lambda: np.arange(3),
    "none": lambda: np.zeros((0, 3)),
    "records": lambda: np.zeros(9999, dtype=[("a", "i1"), ("b", "f8")]),
    "objects": lambda: np.array([{1}, "a", None] * 999, dtype=object),
    "views": lambda: np.arange(19_000)[1:-1].reshape(2, -1),
    "huge": lambda: np.ones(LARGEST_SIZE + 1, dtype=np.uint8),
}


@pytest.mark.parametrize("make", ARRAYS.values(), ids=ARRAYS)
def test_arrays_come_as_they_went(way: None, make: Callable[[], Any]) -> None:
    iq = IterableQueue[Any]()
    out, source = iq.get_producer(), iq.get_consumer()
    array = make()
    out.put(array)
    out.put({"first": array, "second": [array]})
    both = source.get(), source.get()
    for got in (both[0], both[1]["first"]):
        assert got.dtype == array.dtype
        assert got.shape == array.shape
        assert np.array_equal(got, array)
        assert got.flags.aligned
        assert got.flags.writeable == array.flags.writeable
        assert got.flags.f_contiguous == array.flags.f_contiguous or make is ARRAYS["in steps"]
    assert both[1]["second"][0] is both[1]["first"]


def test_what_was_put_changes_no_more(way: None) -> None:
    iq = IterableQueue[Any]()
    out, source = iq.get_producer(), iq.get_consumer()
    data = bytearray(counted(LARGE))
    array = np.frombuffer(data, dtype=np.uint8)
    out.put(array)
    out.put(data)
    array[:] = 0
    assert bytes(source.get()) == bytes(source.get()) == counted(LARGE)


def test_two_that_get_the_same_item_again_share_nothing(way: None) -> None:
    iq = IterableQueue[Any]()
    out, source = iq.get_producer(), iq.get_consumer()
    array = np.arange(10_000)
    out.put(array)
    out.put(array)
    first, second = source.get(), source.get()
    first[:] = 0
    assert np.array_equal(second, array)


@pytest.mark.parametrize("maxsize", [0, 3])
def test_nothing_of_an_item_is_kept_by_its_producer(way: None, maxsize: int) -> None:
    """It may be large, and what has lent its buffer can't be resized."""
    iq = IterableQueue[Any](maxsize)
    out = iq.get_producer()
    data = bytearray(counted(LARGE))
    references = sys.getrefcount(data)
    out.put(data)
    assert sys.getrefcount(data) == references
    out.put(Block(data))
    data.append(1)


@pytest.mark.parametrize("maxsize", [0, 9])
@pytest.mark.parametrize("when", ["entry", "copy"])
def test_another_put_in_the_middle_of_one(
    maxsize: int, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a signal handler or another thread: after its entry was written, after it was copied."""
    iq = IterableQueue[Any](maxsize)
    out, source = iq.get_producer(), iq.get_consumer()
    first, second = BLOCKS[0], Block(bytearray(counted(LARGE, step=7)))
    out.put(first)
    pack, stores = pack_large, Parts.stores
    left = 1

    def comes_in_between() -> None:
        nonlocal left
        if left:
            left -= 1
            out.put(second)

    def packing(*args: Any) -> None:
        pack(*args)
        comes_in_between()

    def storing(parts: Parts, target: Any, start: int) -> Iterator[None]:
        def interrupted() -> Iterator[None]:
            comes_in_between()
            yield

        return chain(stores(parts, target, start), interrupted())

    if when == "entry":
        monkeypatch.setattr(_endpoints, "pack_large", packing)
    else:
        monkeypatch.setattr(Parts, "stores", storing)
    out.put(first)
    assert not left
    out.close()
    iq.close()
    assert list(source) == [first, second, first]


def test_many_threads_put_by_one_producer() -> None:
    iq = IterableQueue[Any]()
    out, source = iq.get_producer(), iq.get_consumer()

    def put(number: int) -> None:
        for n in range(40):
            out.put(np.full(9000 + number, n))

    threads = [threading.Thread(target=put, args=(n,), daemon=True) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    out.close()
    iq.close()
    got: dict[int, list[int]] = {}
    for item in source:
        assert (item == item[0]).all()
        got.setdefault(len(item) - 9000, []).append(item[0])
    assert got == {number: list(range(40)) for number in range(4)}


def test_they_go_on_from_claim_to_claim() -> None:
    """Claimed by one, taken away by another who waits, and put again where they were copied to."""
    iq = IterableQueue[Any]()
    out, first, second = iq.get_producer(), iq.get_consumer(), iq.get_consumer()
    # Of so many bytes, a claim has a few.
    items = [Block(bytearray(APART_LEAST), note=n) for n in range(200)]
    for item in items:
        out.put(item)
    out.close()
    iq.close()
    got = [first.get() for _ in range(60)]
    hand = next(iter(cast("Any", first)._hands.values()))
    while not hand.claim:
        got.append(first.get())
    queued = iq.statistics().queued
    others = [second.get() for _ in range(queued)]
    assert sorted(item.note for item in got + others) == list(range(200))


def test_items_that_come_again(way: None) -> None:
    iq = IterableQueue[Any](redeliver=True)
    out, first = iq.get_producer(), iq.get_consumer()
    for item in BLOCKS:
        out.put(item)
    assert first.get() == BLOCKS[0]
    first.close()
    second = iq.get_consumer()
    assert [second.get() for _ in BLOCKS[1:]] == list(BLOCKS[1:])


def failing(*_: object) -> object:
    raise ValueError("not this one")


class Failing(Block):
    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return failing, tuple(map(pickle.PickleBuffer, self.data))


def test_one_that_can_not_be_opened(way: None) -> None:
    iq = IterableQueue[Any]()
    out, source = iq.get_producer(), iq.get_consumer()
    out.put(Failing(bytearray(LARGE)))
    out.put(1)
    with pytest.raises(ItemError, match="not this one") as caught:
        source.get()
    assert type(caught.value.payload) is bytes
    assert len(caught.value.payload) > LARGE
    assert source.get() == 1


def test_buffers_are_left_apart_from_a_size_on() -> None:
    dumps = pickling_apart("multiprocessing")
    _, loads = pickling("multiprocessing")
    for length in (APART_LEAST - 1, APART_LEAST):
        item = Block(bytearray(length))
        payload = dumps(item)
        assert isinstance(payload, Parts) == (length == APART_LEAST)
        if isinstance(payload, Parts):
            whole = bytearray(len(payload))
            assert not any(payload.stores(whole, 0))
            assert loads(whole) == item
            assert loads(bytes(whole)).data[0].readonly
    assert isinstance(dumps([1]), bytes)  # nothing is left over from the one before


def test_a_buffer_in_several_pieces_is_refused_by_the_pickler() -> None:
    with pytest.raises(pickle.PicklingError, match="contiguous"):
        pickling_apart("multiprocessing")(Block(memoryview(bytes(3 * LARGE))[::2]))


def test_a_pickler_in_python_leaves_nothing_apart() -> None:
    dumps = pickling_apart("multiprocess")
    assert isinstance(dumps(bytearray(LARGE)), bytes)


@pytest.mark.parametrize("sizes", [[], [0], [1], [ALIGNED, 3, 0, ALIGNED + 1]])
def test_what_is_put_together_is_taken_apart(sizes: list[int]) -> None:
    buffers = [memoryview(counted(size, step=size)) for size in sizes]
    parts = put_together(b"pickled", buffers)
    whole = bytearray(3 + len(parts))
    assert not any(parts.stores(whole, 3))
    pickled, again = take_apart(whole[3:])
    assert bytes(pickled) == b"pickled"
    assert list(map(bytes, again)) == list(map(bytes, buffers))
    assert whole[3] == PICKLED
    offsets = [at for at, _ in parts.parts]
    assert [at % ALIGNED for at in offsets[2:]] == [0] * len(sizes)
    assert len(whole) == 3 + max(at + len(part) for at, part in parts.parts)


def test_the_tag_has_room_for_all() -> None:
    assert WRITABLE & (RAW | NUMBER_MASK) == 0

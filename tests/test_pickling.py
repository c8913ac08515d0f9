"""How items are pickled: by each package's own pickler, in nested calls, after errors."""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from types import ModuleType
from typing import Any

import pytest

from iterable_queue import IterableQueue, Producer
from iterable_queue._pickling import pickling, spawning_popen
from tests.conftest import Context, Processes

PLAIN = (1, "text", b"bytes", 1.5, True, None, -(1 << 70), "")
OTHERS = ([1, [2]], (1, "a"), {"a": {1}}, 1j, range(3), Exception("x"), int)


@pytest.mark.parametrize("item", [*PLAIN, *OTHERS], ids=repr)
def test_items_come_as_they_went(item: object) -> None:
    dumps, loads = pickling("multiprocessing")
    payload = dumps(item)
    assert type(payload) is bytes
    assert repr(loads(payload)) == repr(item)
    assert loads(payload) == item or isinstance(item, Exception)


def test_the_pickler_is_used_again() -> None:
    """Nothing of one item is left in the next: neither bytes nor references."""
    dumps, loads = pickling("multiprocessing")
    shared = ["shared"]
    alone = [dumps([shared, n]) for n in range(3)]
    assert [loads(payload) for payload in alone] == [[["shared"], n] for n in range(3)]
    assert len({len(payload) for payload in alone}) == 1
    dumps(["x" * 10_000])
    assert dumps([shared, 0]) == alone[0]


class Refusing:
    def __reduce__(self) -> Any:
        raise ValueError("not this one")


def test_after_an_error_it_goes_on() -> None:
    dumps, loads = pickling("multiprocessing")
    before = dumps(["a"])
    for item in (["x" * 1000, Refusing()], [lambda: 1], [threading.Lock()]):
        with pytest.raises((ValueError, TypeError, AttributeError, pickle.PicklingError)):
            dumps(item)
        assert dumps(["a"]) == before
        assert loads(dumps(["b"])) == ["b"]


class Nested:
    """An item that is pickled by a call of the same pickler, and carries what that gave."""

    def __init__(self, dumps: Callable[[Any], bytes], depth: int) -> None:
        self.dumps = dumps
        self.depth = depth

    def __reduce__(self) -> Any:
        inner = Nested(self.dumps, self.depth - 1) if self.depth else [0]
        return bytes, (self.dumps([inner]),)


def test_a_call_inside_a_call() -> None:
    dumps, loads = pickling("multiprocessing")
    for _ in range(2):
        payload = loads(dumps(Nested(dumps, 5)))
        for _ in range(5):
            (payload,) = loads(payload)
        assert loads(payload) == [[0]]
    assert loads(dumps(["after"])) == ["after"]


def test_in_many_threads_at_once() -> None:
    dumps, loads = pickling("multiprocessing")
    start, wrong = threading.Barrier(8), list[object]()

    def work(number: int) -> None:
        start.wait(20)
        for n in range(300):
            item = [number, n, "x" * (n % 50)]
            if loads(dumps(item)) != item:
                wrong.append(item)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# Picklers of packages


class Marked:
    pass


def unmarked(text: str) -> str:
    return text


def reduce_marked(item: Marked) -> tuple[Callable[[str], str], tuple[str]]:
    return unmarked, ("reduced",)


@pytest.fixture
def registered() -> None:
    """`Marked` has a reducer of multiprocessing's; there is no way to take that back."""
    ForkingPickler.register(Marked, reduce_marked)


@pytest.mark.parametrize(
    "package", ["multiprocessing", "multiprocessing.context", "unknown", "no.such.package"]
)
def test_reducers_of_the_standard_library_are_honoured(package: str, registered: None) -> None:
    dumps, loads = pickling(package)
    assert loads(dumps(Marked())) == "reduced"
    assert loads(dumps([Marked(), Marked()])) == ["reduced", "reduced"]


def test_one_registered_later_is_honoured() -> None:
    class Late:
        pass

    dumps, loads = pickling("multiprocessing")
    dumps(["the pickler is made"])
    late: Any = Late
    ForkingPickler.register(late, reduce_marked)
    assert loads(dumps([Late()])) == ["reduced"]


@pytest.mark.parametrize("package", ["multiprocess", "multiprocess.context"])
def test_dill_is_used_where_the_package_does(package: str) -> None:
    pytest.importorskip("multiprocess")
    dumps, loads = pickling(package)

    def adder(n: int) -> Callable[[int], int]:
        return lambda x: x + n

    for n in range(3):
        assert loads(dumps(adder(n)))(10) == 10 + n


def test_billiard() -> None:
    pytest.importorskip("billiard")
    dumps, loads = pickling("billiard")
    assert loads(dumps({"a": [1]})) == {"a": [1]}


def test_a_pickler_that_is_no_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another package's, of which only `dumps` and perhaps `loads` are known."""

    class Strange:
        @staticmethod
        def dumps(item: object) -> bytearray:
            return bytearray(repr(item).encode())

    package = ModuleType("strange_package.reduction")
    package.ForkingPickler = Strange  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "strange_package.reduction", package)
    dumps, loads = pickling("strange_package.context")
    payload = dumps([1])
    assert type(payload) is bytes
    assert payload == b"[1]"
    assert loads is pickle.loads


# Whole items


def answer(out: Producer[Connection[str, str]]) -> None:
    mine, theirs = Pipe()
    with out:
        out.put(theirs)
        assert mine.recv() == "hello"
        mine.send("goodbye")
    mine.close()


def test_a_connection_is_an_item(context: Context, processes: Processes) -> None:
    """Its descriptor travels by the reducer of multiprocessing."""
    queue: IterableQueue[Connection[str, str]] = IterableQueue()
    source = queue.get_consumer()
    processes.start(context.Process(target=answer, args=(queue.get_producer(),)))
    queue.close()
    connection = source.get(timeout=20)
    connection.send("hello")
    assert connection.poll(20)
    assert connection.recv() == "goodbye"
    connection.close()
    assert list(source) == []
    assert processes.join() == [0]


class PutsMore:
    """Its pickling puts other items on the same queue."""

    out: Producer[Any]

    def __init__(self, depth: int) -> None:
        self.depth = depth

    def __reduce__(self) -> Any:
        if self.depth:
            type(self).out.put(PutsMore(self.depth - 1))
        type(self).out.put(f"before {self.depth}")
        return PutsMore, (self.depth,)


def test_an_item_that_puts_as_it_is_pickled() -> None:
    """What it puts comes before it: nothing is half done meanwhile."""
    queue = IterableQueue[Any]()
    source = queue.get_consumer()
    with queue.get_producer() as out:
        PutsMore.out = out
        out.put(PutsMore(2))
        out.put_many([PutsMore(0), "last"])
        del PutsMore.out
    queue.close()
    items = [item if isinstance(item, str) else item.depth for item in source]
    assert items == ["before 0", 0, "before 1", 1, "before 2", 2, "before 0", 0, "last"]


def test_an_item_that_can_not_be_pickled_is_not_put() -> None:
    queue = IterableQueue[Any]()
    source = queue.get_consumer()
    with queue.get_producer() as out:
        out.put("a")
        with pytest.raises(ValueError, match="not this one"):
            out.put(Refusing())
        with pytest.raises(ValueError, match="not this one"):
            out.put_many(["b", "c", Refusing(), "d"])
        out.put("e")
    queue.close()
    assert list(source) == ["a", "b", "c", "e"]


# Processes being started


def test_no_process_is_being_started() -> None:
    assert spawning_popen() is None


@pytest.mark.parametrize("package", ["multiprocessing", "multiprocess", "billiard"])
def test_a_process_is_being_started(package: str) -> None:
    context: Any = pytest.importorskip(f"{package}.context")
    popen = object()
    context.set_spawning_popen(popen)
    try:
        assert spawning_popen() is popen
    finally:
        context.set_spawning_popen(None)
    assert spawning_popen() is None


def test_a_package_that_was_not_imported_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("multiprocessing", "multiprocess", "billiard"):
        monkeypatch.delitem(sys.modules, f"{package}.context", raising=False)
    assert spawning_popen() is None

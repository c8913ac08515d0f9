"""Doubles that users write for their own tests: they need no base class, only every method."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Generic, Self, TypeVar

from iterable_queue import Consumer, Endpoint, Producer, Worker

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)


class End:
    """What every endpoint has."""

    closed = False

    def close(self) -> None:
        self.closed = True

    def qsize(self) -> int:
        return 0

    def empty(self) -> bool:
        return True

    def full(self) -> bool:
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


class Sink(End, Generic[T_contra]):
    """Keeps what is put."""

    def put(self, item: T_contra, block: bool = True, timeout: float | None = None) -> None:
        print(item)

    def put_nowait(self, item: T_contra) -> None:
        self.put(item)

    async def aput(self, item: T_contra, timeout: float | None = None) -> None:
        self.put(item)

    def put_many(self, iterable: Iterable[T_contra]) -> None:
        for item in iterable:
            self.put(item)

    def fail(self, error: BaseException) -> None:
        self.close()

    def clone(self) -> Sink[T_contra]:
        return Sink()


class Source(End, Generic[T_co]):
    """Gives what it was made with. A list is a sequence, and another `Source` a consumer."""

    def __init__(self, *items: T_co) -> None:
        self._items = iter(items)

    def get(self, block: bool = True, timeout: float | None = None) -> T_co:
        return next(self._items)

    def get_nowait(self) -> T_co:
        return self.get()

    def get_many(self, limit: int) -> list[T_co]:
        return [self.get()]

    async def aget(self, timeout: float | None = None) -> T_co:
        return self.get()

    async def aget_many(self, limit: int) -> list[T_co]:
        return self.get_many(limit)

    def clone(self) -> Source[T_co]:
        return Source()

    def __iter__(self) -> Iterator[T_co]:
        return self

    def __next__(self) -> T_co:
        return self.get()

    def __aiter__(self) -> AsyncIterator[T_co]:
        return self

    async def __anext__(self) -> T_co:
        return self.get()


class Loop(End, Generic[T]):
    """Gives what was put."""

    def __init__(self) -> None:
        self._items: list[T] = []

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        self._items.append(item)

    def put_nowait(self, item: T) -> None:
        self.put(item)

    async def aput(self, item: T, timeout: float | None = None) -> None:
        self.put(item)

    def put_many(self, iterable: Iterable[T]) -> None:
        self._items.extend(iterable)

    def fail(self, error: BaseException) -> None:
        self.close()

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        return self._items.pop()

    def get_nowait(self) -> T:
        return self.get()

    def get_many(self, limit: int) -> Sequence[T]:
        return (self.get(),)

    async def aget(self, timeout: float | None = None) -> T:
        return self.get()

    async def aget_many(self, limit: int) -> Sequence[T]:
        return self.get_many(limit)

    def clone(self) -> Self:
        return self

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        return self.get()

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        return self.get()


def they_serve() -> None:
    end: Endpoint = End()
    out: Producer[int] = Sink[int]()
    source: Consumer[int] = Source[int](1, 2)
    tree: Worker[int] = Loop[int]()
    print(end, out, source, tree)


def they_serve_as_the_real_ones_would() -> None:
    bools: Producer[bool] = Sink[int]()
    objects: Consumer[object] = Source[int](1, 2)
    out: Producer[int] = Loop[int]()
    source: Consumer[int] = Loop[int]()
    print(bools, objects, out, source)


def the_wrong_ones_do_not() -> None:
    out: Producer[int] = Sink[str]()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    source: Consumer[int] = Source[str]("1")  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    tree: Worker[int] = Loop[bool]()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    swapped: Producer[int] = Source[int](1)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    print(out, source, tree, swapped)


# `tests/test_typing.py` leaves out each of their members in turn. By hand, one of them:


class NoFail(End):
    """What could not tell the consumers that it is not all."""

    def put(self, item: int, block: bool = True, timeout: float | None = None) -> None: ...

    def put_nowait(self, item: int) -> None: ...

    def put_many(self, iterable: Iterable[int]) -> None: ...

    def clone(self) -> Producer[int]:
        return Sink()


class NoTimeout(Source[int]):
    """What would not wait when it is asked to."""

    def get(self, block: bool = True) -> int:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return 1


def what_lacks_something_does_not() -> None:
    out: Producer[int] = NoFail()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    source: Consumer[int] = NoTimeout()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    print(out, source)

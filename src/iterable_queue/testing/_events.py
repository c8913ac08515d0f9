"""What the history of a `FakeQueue` consists of: one frozen event for each thing that happened.

An event says to which endpoint it happened: its kind, and its number, which `explain()` and the
endpoint's `repr` have too. The queue itself is number 0. Events are equal if they are of one class
and all they say is equal; their `repr` is the call that makes an equal one, to be pasted into a
test. The ledger of a `FakeQueue` keeps the `Log`, from which the history is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Generic, Literal, TypeAlias, TypeVar, cast

from iterable_queue._cells import KIND_NAMES

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Kind: TypeAlias = Literal["queue", "producer", "consumer", "worker"]


@dataclass(frozen=True)
class Unreadable:
    """Stands in an event for an item that could not be unpickled.

    Attributes:
        payload: the pickle, as it was put.
    """

    payload: bytes


@dataclass(frozen=True, repr=False)
class _Event:
    """What all events have.

    Attributes:
        kind: of the endpoint: "queue", "producer", "consumer" or "worker".
        number: of the endpoint; 0: the queue itself.
    """

    kind: Kind
    number: int

    def __repr__(self) -> str:
        said = ", ".join(repr(getattr(self, field.name)) for field in fields(self))
        return f"{type(self).__name__}({said})"


@dataclass(frozen=True, repr=False)
class _OfAnItem(_Event, Generic[T_co]):
    """What events have that are about an item.

    Attributes:
        item: a copy of it where items are pickled, or else the item itself.
    """

    item: T_co | Unreadable


class Opened(_Event):
    """An endpoint was made, by the queue or as a clone; or the queue itself was."""


class Put(_OfAnItem[T_co]):
    """A producer or worker put the item."""


class Taken(_OfAnItem[T_co]):
    """A consumer or worker took the item."""


class Finished(_OfAnItem[T_co]):
    """A consumer or worker that had the item in hand asked for the next, or closed."""


class Returned(_OfAnItem[T_co]):
    """A consumer closed before the item that it had taken was handed to its caller.

    It is back on the queue, behind the others. This takes an item that could not be unpickled, with
    others taken behind it by the same `get_many`.
    """


class Redelivered(_OfAnItem[T_co]):
    """A consumer or worker was killed with the item in hand; it is back on the queue."""


class Lost(_OfAnItem[T_co]):
    """A consumer or worker was killed with the item in hand, and it is not handed out again."""


class Closed(_Event):
    """The endpoint, or the queue, was closed: by a call, by leaving `with`, or by being dropped."""


@dataclass(frozen=True, repr=False)
class Failed(_Event):
    """The producer or worker failed: by `fail`, by an exception in its `with`, or by being dropped.

    Attributes:
        error: why, as `repr` has it.
    """

    error: str


class Killed(_Event):
    """The endpoint was killed by `FakeQueue.kill`. What became of the items in its hand follows."""


@dataclass(frozen=True, repr=False)
class Stopped(_Event):
    """The queue was cancelled: by `cancel`, or by a failure with `on_failure="cancel"`.

    Attributes:
        error: why, as `repr` has it; None: nobody said.
    """

    error: str | None


@dataclass(frozen=True, repr=False)
class TimedOut(_Event):
    """A call of the endpoint gave up: with `Full`, with `Empty`, or `join` with False.

    Attributes:
        seconds: how long it waited, on the virtual clock; 0.0: it was not to wait.
    """

    seconds: float


@dataclass(frozen=True, repr=False)
class Ended(_Event):
    """A call of the endpoint was told of the queue's end, or `join` (number 0) was.

    Attributes:
        how: the name of what was raised, such as "Done" or "ProducerFailed"; "" where `join`
            returned True.
    """

    how: str


QueueEvent: TypeAlias = (
    Opened
    | Put[T]
    | Taken[T]
    | Finished[T]
    | Returned[T]
    | Redelivered[T]
    | Lost[T]
    | Closed
    | Failed
    | Killed
    | Stopped
    | TimedOut
    | Ended
)
"""Anything that a history consists of; `isinstance` tells which, and then what else it says."""


class Log:
    """What happened. An item is opened once, and not before somebody reads the history.

    Attributes:
        idle: how many calls have given up since the last change.
    """

    def __init__(self, loads: Callable[[Any], Any]) -> None:
        self.idle = 0
        self._loads = loads
        self._opened: dict[int, tuple[Any, Any]] = {}
        """By id of the payload, which is kept so that the id stays its own: it and its item."""
        self._unread: list[Callable[[], QueueEvent[Any]]] = []
        self._events: tuple[QueueEvent[Any], ...] = ()

    def add(
        self, event: Callable[..., QueueEvent[Any]], kind: int, number: int, *said: Any
    ) -> None:
        self._unread.append(partial(event, _name(kind), number, *said))
        self.idle = 0

    def add_item(
        self, event: Callable[..., QueueEvent[Any]], kind: int, number: int, payload: Any
    ) -> None:
        self._unread.append(lambda: event(_name(kind), number, self._open(payload)))
        self.idle = 0

    def add_timeout(self, kind: int, number: int, seconds: float) -> None:
        idle = self.idle + 1
        self.add(TimedOut, kind, number, seconds)
        self.idle = idle

    def _open(self, payload: Any) -> Any:
        if id(payload) not in self._opened:
            try:
                item = self._loads(payload)
            except Exception:
                item = Unreadable(bytes(payload))
            self._opened[id(payload)] = payload, item
        return self._opened[id(payload)][1]

    def read(self) -> tuple[QueueEvent[Any], ...]:
        if self._unread:
            self._events += tuple(make() for make in self._unread)
            self._unread.clear()
        return self._events


def _name(kind: int) -> Kind:
    return cast("Kind", KIND_NAMES[kind])

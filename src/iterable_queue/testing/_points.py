"""Points: the places in a program at which the races of a test can be decided.

A point is named from the side of the program under test: who (a producer, a consumer, a worker,
the queue itself), which call of theirs, and where in it. Each kind of actor has an object whose
properties are the points that it has, so that a type checker refuses a consumer's `before_put`,
and an editor lists what there is.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, TypeAlias

from iterable_queue._core import check_int

Side: TypeAlias = Literal["producer", "consumer", "worker", "queue"]
Operation: TypeAlias = Literal["put", "get", "close", "fail", "cancel", "join"]
Where: TypeAlias = Literal["before", "after", "blocked", "done"]

_WORDS: Final[dict[Where, str]] = {
    "before": "before {}",
    "after": "after {}",
    "blocked": "blocked in {}",
    "done": "Done from {}",
}


class Point(NamedTuple):
    """One place in one call, and the how manieth time that it is come to.

    Attributes:
        side: who makes the call.
        number: of the endpoint, as in its `repr` and in `explain()`; None: of any of that side,
            and for the queue.
        operation: the call.
        where: `before` it has done anything; `after` it has done all, as it is about to return;
            `blocked`: as it is about to sleep; `done`: as it is about to tell the end.
        time: 1 for the first time that it is come to in the block, and so on; 0: each time.
    """

    side: Side
    number: int | None
    operation: Operation
    where: Where
    time: int = 1

    def nth(self, time: int) -> Point:
        """The same place, the *time*-th time (1 or more) that it is come to.

        Where the point is of any endpoint of a side, the times of all of them count together.
        """
        check_int(time, "time")
        if time < 1:
            raise ValueError(f"time must be 1 or more, not {time}; `each` is every time")
        return self._replace(time=time)

    @property
    def each(self) -> Point:
        """The same place, each time that it is come to: for `Races.delay` alone."""
        return self._replace(time=0)

    def covers(self, other: Point) -> bool:
        """Whether *other* is the same place, whatever the time."""
        return (
            self.operation == other.operation
            and self.where == other.where
            and self.side == other.side
            and self.number in (None, other.number)
        )

    def __str__(self) -> str:
        where = _WORDS[self.where].format(self.operation)
        time = {0: " (each time)", 1: ""}.get(self.time, f" #{self.time}")
        who = f"any {self.side}" if self.number is None else f"{self.side} {self.number}"
        return f"{where}{time} of {'the queue' if self.side == 'queue' else who}"


class _Points:
    """The points of one actor."""

    __slots__ = ("_number", "_side")

    def __init__(self, side: Side, number: int | None) -> None:
        self._side: Side = side
        self._number = number

    def _point(self, operation: Operation, where: Where) -> Point:
        return Point(self._side, self._number, operation, where)

    @property
    def before_close(self) -> Point:
        """It is about to close: by `close()`, or on leaving its `with` block."""
        return self._point("close", "before")

    @property
    def after_close(self) -> Point:
        """It has closed, and everybody can know."""
        return self._point("close", "after")


class _FailPoints(_Points):
    __slots__ = ()

    @property
    def before_fail(self) -> Point:
        """It is about to fail: by `fail()`, or as an exception leaves its `with` block."""
        return self._point("fail", "before")

    @property
    def after_fail(self) -> Point:
        """It has failed, and everybody can know."""
        return self._point("fail", "after")


class _PutPoints(_FailPoints):
    __slots__ = ()

    @property
    def before_put(self) -> Point:
        """It was called to put an item, and nothing has happened yet.

        `put_nowait` comes here too, and `put_many` for each of its items.
        """
        return self._point("put", "before")

    @property
    def after_put(self) -> Point:
        """The item is on the queue, for everybody to take; `put` has not returned yet."""
        return self._point("put", "after")


class _GetPoints(_Points):
    __slots__ = ()

    @property
    def before_get(self) -> Point:
        """It was called for an item (by `get`, its kin, or iteration) and has not asked yet.

        What its thread was handed before is still in hand: the next item's `before_get` is the
        last point at which this one is not finished.
        """
        return self._point("get", "before")

    @property
    def after_get(self) -> Point:
        """It has taken the item, or items, and user code does not have them yet: they are in hand.

        Not reached by a `get` that raises.
        """
        return self._point("get", "after")

    @property
    def get_blocked(self) -> Point:
        """It found nothing, has said that it waits, and is about to sleep."""
        return self._point("get", "blocked")

    @property
    def done(self) -> Point:
        """It was told the end: `get` is about to raise `Done`, or iteration to end."""
        return self._point("get", "done")


class ProducerPoints(_PutPoints):
    """The points of one producer, or of any: see `Races.producer`."""

    __slots__ = ()

    @property
    def put_blocked(self) -> Point:
        """It found no room, has said that it waits, and is about to sleep."""
        return self._point("put", "blocked")


class ConsumerPoints(_GetPoints):
    """The points of one consumer, or of any: see `Races.consumer`."""

    __slots__ = ()


class WorkerPoints(_GetPoints, _PutPoints):
    """The points of one worker, or of any: see `Races.worker`."""

    __slots__ = ()


class QueuePoints(_Points):
    """The points of the queue itself, called by whom it may: see `Races.queue`.

    `before_close` and `after_close` are those of its own `close()`, or of leaving `with iq:`.
    """

    __slots__ = ()

    @property
    def before_cancel(self) -> Point:
        """`cancel()` was called, or an exception leaves `with iq:`."""
        return self._point("cancel", "before")

    @property
    def after_cancel(self) -> Point:
        """The queue is cancelled."""
        return self._point("cancel", "after")

    @property
    def before_join(self) -> Point:
        """`join()` was called and does not wait yet."""
        return self._point("join", "before")

    @property
    def after_join(self) -> Point:
        """`join()` is about to return."""
        return self._point("join", "after")

"""What the fixtures of the pytest plugin give to tests; annotate them with these."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

if TYPE_CHECKING:
    from iterable_queue import IterableQueue
    from iterable_queue.testing import FakeQueue, Races, VirtualClock

T = TypeVar("T")


class FakeQueues:
    """Makes the fake queues of one test, all of them on one virtual clock: `fake_queue`.

    Attributes:
        clock: that clock; the fixture `queue_clock` gives it as well.
        made: the queues made so far.
    """

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.made: list[FakeQueue[Any]] = []

    @overload
    def __call__(
        self,
        items: Iterable[T],
        *,
        maxsize: int = ...,
        pickled: bool = ...,
        on_failure: Literal["raise", "cancel"] = ...,
        redeliver: bool = ...,
        max_deliveries: int | None = ...,
    ) -> FakeQueue[T]: ...

    @overload
    def __call__(
        self,
        items: None = None,
        *,
        maxsize: int = ...,
        pickled: bool = ...,
        on_failure: Literal["raise", "cancel"] = ...,
        redeliver: bool = ...,
        max_deliveries: int | None = ...,
    ) -> FakeQueue[Any]: ...

    def __call__(
        self,
        items: Iterable[Any] | None = None,
        *,
        maxsize: int = 0,
        pickled: bool = True,
        on_failure: Literal["raise", "cancel"] = "raise",
        redeliver: bool = False,
        max_deliveries: int | None = None,
    ) -> FakeQueue[Any]:
        """A new `FakeQueue`, by the same arguments; without items, it takes those of any type."""
        from iterable_queue.testing import FakeQueue

        queue = FakeQueue(
            items,
            maxsize=maxsize,
            pickled=pickled,
            on_failure=on_failure,
            redeliver=redeliver,
            max_deliveries=max_deliveries,
            clock=self.clock,
        )
        self.made.append(queue)
        return queue


class OpenRaces:
    """`races` without `with`: what it opens is closed at the end of the test.

    Args:
        opened: closes it.
    """

    def __init__(self, opened: ExitStack) -> None:
        self._opened = opened

    def __call__(self, iq: IterableQueue[Any], *, timeout: float | None = None) -> Races:
        """The races on *iq*, from now to the end of the test; see `races`."""
        from iterable_queue.testing import races

        opened = races(iq) if timeout is None else races(iq, timeout=timeout)
        return self._opened.enter_context(opened)

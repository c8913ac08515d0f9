"""What the fixtures of the pytest plugin give to tests; annotate them with these."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
        named: those of them that `connect` made, by their names.
    """

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.made: list[FakeQueue[Any]] = []
        self.named: dict[str, FakeQueue[Any]] = {}
        self._asked: dict[str, dict[str, Any]] = {}

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

    def connect(
        self,
        server: str | Callable[[], Any],
        *,
        name: str,
        maxsize: int | None = None,
        on_failure: Literal["raise", "cancel"] | None = None,
        redeliver: bool | None = None,
        max_deliveries: int | None = None,
        serializer: tuple[Callable[[Any], bytes], Callable[[bytes], Any]] | None = None,
        sign: str | bytes | None = None,
        expiry_s: float = 15.0,
        retry_s: float = 30.0,
        keep_s: float = 86_400.0,
        create: bool = True,
    ) -> FakeQueue[Any]:
        """What to patch `IterableQueue.connect` with: no server is asked, nor looked for.

        All who give the same *name* get the same queue, until the test ends. Arguments are checked
        as there, also against those that the queue was made with; but items are pickled, whatever
        *serializer* and *sign* are.

        Raises:
            QueueClosed: with *create* False, where no queue of the name was made in this test.
            TypeError, ValueError: as `IterableQueue.connect`.
        """
        from iterable_queue import QueueClosed
        from iterable_queue._channels.redis.settings import check

        settings, options = check(
            server,
            name,
            maxsize=maxsize,
            on_failure=on_failure,
            redeliver=redeliver,
            max_deliveries=max_deliveries,
            serializer=serializer,
            sign=sign,
            expiry_s=expiry_s,
            retry_s=retry_s,
            keep_s=keep_s,
            create=create,
        )
        asked = {"maxsize": options.maxsize, "on_failure": on_failure or ""}
        asked |= {"redeliver": options.deliveries, "serializer": settings.format}
        if name in self.named:
            self._compare(name, asked)
            return self.named[name]
        if not create:
            raise QueueClosed(f"there is no queue {name!r}, and create=False makes none")
        queue = self(
            maxsize=maxsize or 0,
            on_failure=on_failure or "raise",
            redeliver=max_deliveries is not None if redeliver is None else redeliver,
            max_deliveries=max_deliveries,
        )
        self.named[name] = queue
        unsaid = {"maxsize": "0", "on_failure": "raise", "redeliver": "0"}
        self._asked[name] = unsaid | {option: value for option, value in asked.items() if value}
        return queue

    def _compare(self, name: str, asked: dict[str, Any]) -> None:
        for option, value in asked.items():
            had = self._asked[name][option]
            if value and value != had:
                raise ValueError(
                    f"{option}: the queue {name!r} exists already, with {had}; leave the argument "
                    "out, or give the same"
                )


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

"""What a side is, and the end of work by sentinels for all sides that don't know their own.

A *side* is one way to pass items: this library with one of its calls, or a peer with one of its
calls. Its ``send`` contains the loop over the items, so that each side is measured by its own
bound method called from the same loop, with no adapter in between.

Work has two phases on one and the same queue: the warm-up before the barrier, and the timed one.

Sentinels: each producer puts ``None`` after its last item. A consumer that gets one counts it; the
one that counts the last producer's knows that every item has been taken (each producer's sentinel
came after its items) and puts one more for each of the other consumers. With one producer and one
consumer that is the plain idiom: ``for item in iter(queue.get, None)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableSequence
from contextlib import AbstractContextManager
from typing import Literal, Protocol

from benchmarks._job import Job

Phase = Literal[0, 1]
WARM_UP: Phase = 0
TIMED: Phase = 1


class Unavailable(Exception):
    """The side can't run here; the text says why."""


class Sender(Protocol):
    """What a producing worker holds. Travels to the worker as a process argument."""

    def send(self, items: Iterable[object]) -> None:
        """Put all items."""
        ...

    def end(self, phase: Phase) -> None:
        """Nothing more comes from this sender in this phase."""
        ...

    def put_one(self, item: object) -> None:
        """Put one item so that it is delivered without waiting for another."""
        ...


class Receiver(Protocol):
    """What a consuming worker holds. Travels to the worker as a process argument."""

    def runs(self, phase: Phase, share: int) -> Iterator[Iterable[object]]:
        """The items of this phase, as runs: iterators or batches, whatever the side hands out.

        ``share`` is how many items of the warm-up each consumer should take, for sides that have
        no other way to tell where it ends.
        """
        ...

    def take_one(self) -> object:
        """Wait for one item."""
        ...


class Workshop(Protocol):
    """Where the workers are (threads or processes), and what a side may build from."""

    def lock(self) -> AbstractContextManager[object]: ...

    def counters(self, number: int) -> MutableSequence[int]: ...


class Link(Protocol):
    """One queue with its endpoints. Lives in the parent for as long as the cell runs."""

    def sender(self, index: int) -> Sender: ...

    def receiver(self, index: int) -> Receiver: ...


class Queueish(Protocol):
    """The two calls that every queue here has."""

    def put(self, item: object, /) -> object: ...

    def get(self) -> object: ...


def put_each(put: Callable[[object], object], items: Iterable[object]) -> None:
    """The loop in which ``put`` is measured, the same for every side."""
    for item in items:
        put(item)


class Ends:
    """Counts producers' sentinels for each phase.

    Attributes:
        producers, consumers: how many there are.
        seen: for each phase, how many sentinels were taken by anyone. Guarded by ``lock``.
    """

    def __init__(self, workshop: Workshop, job: Job) -> None:
        self.producers = job.producers
        self.consumers = job.consumers
        self.lock = workshop.lock()
        self.seen = workshop.counters(2)

    def reached(self, phase: Phase, number: int, stop: Callable[[], object]) -> bool:
        """Count ``number`` sentinels; True if the caller is done. ``stop`` ends one consumer."""
        with self.lock:
            before = self.seen[phase]
            after = self.seen[phase] = before + number
        if before < self.producers <= after:
            for _ in range(self.consumers - 1):
                stop()
        return after >= self.producers


class SentinelSender:
    """``put`` one by one, then ``None``."""

    def __init__(self, queue: Queueish) -> None:
        self._queue = queue

    def send(self, items: Iterable[object]) -> None:
        put_each(self._queue.put, items)

    def end(self, phase: Phase) -> None:
        self._queue.put(None)

    def put_one(self, item: object) -> None:
        self._queue.put(item)


class SentinelReceiver:
    """``iter(queue.get, None)``."""

    def __init__(self, queue: Queueish, ends: Ends) -> None:
        self._queue = queue
        self._ends = ends

    def runs(self, phase: Phase, share: int) -> Iterator[Iterable[object]]:
        while True:
            yield iter(self._queue.get, None)
            if self._ends.reached(phase, 1, self._stop):
                return

    def _stop(self) -> None:
        self._queue.put(None)

    def take_one(self) -> object:
        return self._queue.get()


class SentinelLink:
    """A queue whose users agree on sentinels."""

    def __init__(self, queue: Queueish, workshop: Workshop, job: Job) -> None:
        self._queue = queue
        self._ends = Ends(workshop, job)

    def sender(self, index: int) -> Sender:
        return SentinelSender(self._queue)

    def receiver(self, index: int) -> Receiver:
        return SentinelReceiver(self._queue, self._ends)

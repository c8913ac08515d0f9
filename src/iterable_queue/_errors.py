"""What can go wrong, by name.

Every class below derives from `IterableQueueError`; `Empty` and `Full` are the standard
library's own. Each error can be pickled with its cause and its attributes, so that it reads the
same in whichever process it is looked at.

The four names at the end are those of release 1.x, kept for code that catches them.
"""

from __future__ import annotations

import os
from typing import Any


class IterableQueueError(Exception):
    """The base of all errors that this library defines."""

    __module__ = "iterable_queue"

    def __init_subclass__(cls) -> None:
        # So that tracebacks call them by the name by which one imports them.
        if cls.__module__ == __name__:
            cls.__module__ = "iterable_queue"

    def __reduce__(self) -> tuple[Any, ...]:
        # BaseException's own __reduce__ drops the cause, which is half of what a reader needs.
        cause = self.__cause__
        return _rebuild, (
            type(self),
            self.args,
            self.__dict__.copy(),
            None if cause is None else pack_error(cause),
        )


class Done(IterableQueueError):
    """The queue is drained and can get no more: every producer has closed, and so has the queue."""


class ProducerClosed(IterableQueueError):
    """`put` on a producer that was closed, or on a worker after `Done`."""


class ConsumerClosed(IterableQueueError):
    """`get` on a consumer that its own user closed."""


class QueueClosed(IterableQueueError):
    """A producer or worker was asked for after `close()`: make endpoints before closing.

    Or `connect(..., create=False)` found no such queue: it is over, or not made yet.
    """


class ProducerFailed(IterableQueueError):
    """What was put has been delivered, but it is not all: a producer failed.

    Raised wherever `Done` would have been. Its cause is the first failure.

    Attributes:
        failures: every failure so far, oldest first: the error given to `fail()` or raised in the
            producer's `with` block (its own cause then shows the remote traceback), or, for a
            producer that ended without closing, a `ProducerFailed` that says how it ended.
    """

    failures: tuple[BaseException, ...] = ()


class ConsumersGone(IterableQueueError):
    """Nobody will take what is put: the queue is closed, and no consumer is left or can come."""


class Cancelled(IterableQueueError):
    """The queue was cancelled; its cause is the error that `cancel()` was given, if any."""


class ChannelBroken(IterableQueueError):
    """The shared state can't be trusted or reached any more; make a new queue.

    On the channel over multiprocessing's semaphores: a process died inside the lock, which took
    the lock with it. Also: the queue's directory was removed by somebody else.
    """


class ItemError(IterableQueueError):
    """An item could not be unpickled. It counts as taken; the next `get` goes on.

    Attributes:
        producer: the number of the endpoint that put it, as `explain()` shows it.
        payload: the pickle, as it was put.
    """

    producer: int = 0
    payload: bytes = b""


class ItemsLost(IterableQueueError):
    """Consumers were killed with items in hand, so not everything that was put was finished.

    Attributes:
        count: how many items.
    """

    count: int = 0


class EndpointElsewhere(IterableQueueError):
    """The endpoint (or the thread queue) belongs to another process; nothing was changed."""


class WouldDeadlock(IterableQueueError, RuntimeError):
    """The call would wait for the caller itself, so it was refused and nothing was changed.

    `join()` inside the queue's own `with` block, or a call from a signal handler or `__del__` that
    interrupted another call of the same thread on the same queue.
    """


REMOVED_BY_OTHERS = (
    "the queue's directory was removed by somebody else, with all that was on it; make a new queue"
)


class RemoteTraceback(Exception):
    """The traceback of an error in another process, as text: the cause of its copy here."""

    __module__ = "iterable_queue"

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class RemoteError(Exception):
    """Stands for an error of another process that could not be pickled: its type and text."""

    __module__ = "iterable_queue"


# Names of release 1.x.
IterableQueueException = IterableQueueError
ProducerQueueClosedException = ProducerClosed
ConsumerQueueClosedException = ConsumerClosed
IterableQueueIllegalStateException = QueueClosed


PackedError = tuple[bytes | None, str, str]
"""An error on its way to another process: its pickle if it has one, its text, its traceback."""


def missing(thing: object, name: str, remedies: dict[str, str]) -> AttributeError:
    """The error for an attribute that *thing* does not have, but that its users may look for."""
    text = f"{type(thing).__name__!r} object has no attribute {name!r}"
    remedy = remedies.get(name)
    return AttributeError(f"{text}: {remedy}" if remedy else text, name=name, obj=thing)


def not_iterable(thing: object) -> TypeError:
    """The error for a loop over *thing*, which has nothing to take."""
    return TypeError(
        f"{type(thing).__name__!r} object is not iterable: "
        "iterate over a consumer, which get_consumer() makes"
    )


def repr_of(error: object) -> str:
    """The error's `repr`, also where that raises: it may be anybody's code."""
    try:
        return repr(error)
    except Exception:
        return f"{type(error).__name__} (its repr() raises an error)"


def pack_error(error: BaseException) -> PackedError:
    """Make *error* fit to travel; never raises for an error that can't be pickled."""
    try:
        import pickle
        import traceback
    except Exception:  # without a file descriptor to be had, say: then this is all that can be told
        return None, repr_of(error), ""

    pickled: bytes | None
    try:
        pickled = pickle.dumps(error)
        pickle.loads(pickled)  # some pickle well and then can't be opened
    except Exception:
        pickled = None
    text = "".join(traceback.format_exception_only(error)).strip()
    trace = ""
    if error.__traceback__ is not None:
        trace = f"In process {os.getpid()}:\n{''.join(traceback.format_exception(error))}"
    elif isinstance(error.__cause__, RemoteTraceback):
        trace = error.__cause__.text  # on its way on, without having been raised here
    return pickled, text, trace


def unpack_error(packed: PackedError) -> BaseException:
    """The error again, with the other process's traceback as its cause."""
    import pickle

    pickled, text, trace = packed
    error: BaseException = RemoteError(text)
    if pickled is not None:
        try:
            loaded = pickle.loads(pickled)
            if isinstance(loaded, BaseException):
                error = loaded
        except Exception as why:
            error = RemoteError(f"{text} (it could not be unpickled here: {repr_of(why)})")
    if trace:
        error.__cause__ = RemoteTraceback(trace)
    return error


def _rebuild(
    cls: type[IterableQueueError],
    args: tuple[Any, ...],
    state: dict[str, Any],
    cause: PackedError | None,
) -> IterableQueueError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    if cause is not None:
        error.__cause__ = unpack_error(cause)
    return error

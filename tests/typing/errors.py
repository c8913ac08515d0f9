"""The exceptions, their attributes, and the names of release 1.x."""

from __future__ import annotations

from typing import assert_type

from iterable_queue import (
    Cancelled,
    ChannelBroken,
    ConsumerClosed,
    ConsumerQueueClosedException,
    ConsumersGone,
    Done,
    EndpointElsewhere,
    ItemError,
    ItemsLost,
    IterableQueue,
    IterableQueueError,
    IterableQueueException,
    IterableQueueIllegalStateException,
    ProducerClosed,
    ProducerFailed,
    ProducerQueueClosedException,
    QueueClosed,
    WouldDeadlock,
)


def all_have_one_base() -> list[type[IterableQueueError]]:
    return [
        Done,
        ProducerClosed,
        ConsumerClosed,
        QueueClosed,
        ProducerFailed,
        ConsumersGone,
        Cancelled,
        ChannelBroken,
        ItemError,
        ItemsLost,
        EndpointElsewhere,
        WouldDeadlock,
    ]


def what_the_standard_library_has_is_not_ours() -> list[type[IterableQueueError]]:
    return [IterableQueue.Empty, IterableQueue.Full]  # type: ignore[list-item]  # pyright: ignore[reportReturnType]


def attributes(failed: ProducerFailed, item: ItemError, lost: ItemsLost) -> None:
    assert_type(failed.failures, tuple[BaseException, ...])
    assert_type(item.producer, int)
    assert_type(item.payload, bytes)
    assert_type(lost.count, int)
    print(Done().failures)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownArgumentType]


def the_old_names_are_the_new_classes() -> None:
    try:
        pass
    except ProducerQueueClosedException as producer:
        assert_type(producer, ProducerClosed)
    except ConsumerQueueClosedException as consumer:
        assert_type(consumer, ConsumerClosed)
    except IterableQueueIllegalStateException as state:
        assert_type(state, QueueClosed)
    except IterableQueueException as base:
        assert_type(base, IterableQueueError)

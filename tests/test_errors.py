"""The exceptions: they travel with all that they have to say, and say what to do."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import queue
import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import pytest

import iterable_queue
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
    RemoteError,
    RemoteTraceback,
    WouldDeadlock,
)
from iterable_queue.testing import FakeQueue

OURS = [
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

ours = pytest.mark.parametrize("cls", OURS, ids=lambda cls: cls.__name__)

PROTOCOLS = range(2, pickle.HIGHEST_PROTOCOL + 1)


def there_and_back(error: BaseException, protocol: int = pickle.HIGHEST_PROTOCOL) -> Any:
    return pickle.loads(pickle.dumps(error, protocol))


def raised(call: Callable[[], object]) -> BaseException:
    """What *call* raises, with its traceback."""
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError("it raised nothing")


# Names


def test_these_are_all() -> None:
    public = [getattr(iterable_queue, name) for name in iterable_queue.__all__]
    found = {each for each in public if isinstance(each, type) and issubclass(each, Exception)}
    others = {IterableQueueError, RemoteError, RemoteTraceback, queue.Empty, queue.Full}
    assert found == {*OURS, *others}


@ours
def test_they_have_one_base(cls: type[Exception]) -> None:
    assert issubclass(cls, IterableQueueError)
    assert cls.__doc__
    assert cls.__module__ == "iterable_queue", "tracebacks show by what name to import it"


def test_empty_and_full_are_the_standard_librarys() -> None:
    assert iterable_queue.Empty is IterableQueue.Empty is queue.Empty
    assert iterable_queue.Full is IterableQueue.Full is queue.Full
    assert IterableQueue.Done is Done
    assert not issubclass(Done, queue.Empty)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (IterableQueueException, IterableQueueError),
        (ProducerQueueClosedException, ProducerClosed),
        (ConsumerQueueClosedException, ConsumerClosed),
        (IterableQueueIllegalStateException, QueueClosed),
    ],
)
def test_the_names_of_release_1_are_the_new_classes(old: type, new: type) -> None:
    assert old is new


def test_code_for_release_1_still_catches_them() -> None:
    iq = IterableQueue[int].threaded()
    out, source = iq.get_producer(), iq.get_consumer()
    out.close()
    with pytest.raises(ProducerQueueClosedException):
        out.put(1)
    source.close()
    with pytest.raises(ConsumerQueueClosedException):
        source.get()
    iq.close()
    with pytest.raises(IterableQueueIllegalStateException):
        iq.get_producer()


# Pickling


@pytest.mark.parametrize("protocol", PROTOCOLS)
@ours
def test_they_travel_with_their_text(cls: type[IterableQueueError], protocol: int) -> None:
    back = there_and_back(cls("what", 3), protocol)
    assert type(back) is cls
    assert back.args == ("what", 3)
    assert str(back) == str(cls("what", 3))
    assert back.__cause__ is None


@ours
def test_they_travel_with_their_cause(cls: type[IterableQueueError]) -> None:
    error = cls("what")
    error.__cause__ = raised(lambda: 1 // int("0"))
    cause = there_and_back(error).__cause__
    assert type(cause) is ZeroDivisionError
    assert "by zero" in str(cause)
    assert isinstance(cause.__cause__, RemoteTraceback)
    assert "raised(lambda: 1 // int" in str(cause.__cause__)  # the line that raised it


def test_they_travel_twice() -> None:
    error = IterableQueueError("what")
    error.__cause__ = raised(lambda: 1 // int("0"))
    cause = there_and_back(there_and_back(error)).__cause__
    assert type(cause) is ZeroDivisionError
    assert str(cause.__cause__).count("raised(lambda: 1 // int") == 1


def test_a_traceback_shows_the_other_process_first() -> None:
    iq = IterableQueue[int]()
    out = iq.get_producer()
    source = iq.get_consumer()
    out.fail(raised(lambda: 1 // int("0")))
    iq.close()
    text = "".join(traceback.format_exception(raised(source.get)))
    order = [
        f'iterable_queue.RemoteTraceback: \n"""\nIn process {os.getpid()}:\nTraceback',
        'out.fail(raised(lambda: 1 // int("0")))',
        "ZeroDivisionError: ",
        '"""\n\nThe above exception was the direct cause of the following exception:\n\n',
        "ZeroDivisionError: ",
        "\n\nThe above exception was the direct cause of the following exception:\n\nTraceback",
        "iterable_queue.ProducerFailed: a producer failed: ZeroDivisionError(",
    ]
    at = 0
    for part in order:
        assert part in text[at:], text
        at = text.index(part, at) + len(part)
    assert text.count("Traceback (most recent call last)") == 2


@ours
def test_they_can_be_copied(cls: type[IterableQueueError]) -> None:
    error = cls("what")
    error.__cause__ = ValueError("why")
    for back in (copy.copy(error), copy.deepcopy(error)):
        assert (type(back), back.args) == (cls, ("what",))
        assert repr(back.__cause__) == "ValueError('why')"


def test_they_travel_with_notes_and_whatever_else_was_set() -> None:
    error = Done("what")
    error.add_note("seen at noon")
    back = there_and_back(error)
    assert back.__notes__ == ["seen at noon"]


def test_attributes_have_values_from_the_start() -> None:
    assert ProducerFailed().failures == ()
    assert (ItemError().producer, ItemError().payload) == (0, b"")
    assert ItemsLost().count == 0


def test_attributes_travel() -> None:
    failed = ProducerFailed("what")
    inner = ProducerFailed("it was killed")
    failed.failures = (ValueError("why"), inner)
    back = there_and_back(failed)
    assert [repr(each) for each in back.failures] == [repr(each) for each in failed.failures]

    item = ItemError("what")
    item.producer, item.payload = 7, b"\x80\x04"
    back = there_and_back(item)
    assert (back.producer, back.payload) == (7, b"\x80\x04")

    lost = ItemsLost("what")
    lost.count = 3
    assert there_and_back(lost).count == 3


class Stubborn(Exception):
    """Can't be pickled."""

    def __reduce__(self) -> NoReturn:
        raise TypeError("no")


class Treacherous(Exception):
    """Can be pickled, and not be opened again: it takes two arguments and tells of one."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)
        self.two = two


@pytest.mark.parametrize("cause", [Stubborn("why"), Treacherous("why", "not")], ids=repr)
def test_a_cause_that_does_not_travel_is_told_in_words(cause: Exception) -> None:
    error = Cancelled("what")
    error.__cause__ = raised(lambda: throw(cause))
    back = there_and_back(error)
    assert type(back.__cause__) is RemoteError
    assert type(cause).__name__ in str(back.__cause__)
    assert "why" in str(back.__cause__)
    assert "throw(cause)" in str(back.__cause__.__cause__)


def throw(error: Exception) -> NoReturn:
    raise error


def test_a_remote_traceback_travels() -> None:
    trace = RemoteTraceback("Traceback: ...")
    back = there_and_back(trace)
    assert (type(back), back.text, str(back)) == (RemoteTraceback, trace.text, str(trace))
    assert "Traceback: ..." in str(trace)


# What they say: what happened, and what to do


def a_queue(kind: str) -> IterableQueue[Any]:
    return IterableQueue[Any].threaded() if kind == "threads" else IterableQueue[Any]()


@pytest.fixture(params=["threads", "processes"])
def iq(request: pytest.FixtureRequest) -> IterableQueue[Any]:
    return a_queue(request.param)


def test_producer_closed(iq: IterableQueue[Any]) -> None:
    out = iq.get_producer()
    out.close()
    with pytest.raises(ProducerClosed, match=r"producer 1 .*closed.*get another one") as caught:
        out.put(1)
    assert there_and_back(caught.value).args == caught.value.args


def test_consumer_closed(iq: IterableQueue[Any]) -> None:
    source = iq.get_consumer()
    source.close()
    with pytest.raises(ConsumerClosed, match=r"consumer 1 .*closed.*get another one"):
        source.get()


@pytest.mark.parametrize("kind", ["producer", "worker"])
def test_queue_closed(iq: IterableQueue[Any], kind: str) -> None:
    """The text says to make endpoints before the processes that use them are started."""
    iq.close()
    text = rf"no new {kind} after close\(\).*before.*starting the processes.*clone\(\)"
    with pytest.raises(QueueClosed, match=text):
        getattr(iq, f"get_{kind}")()


def test_done(iq: IterableQueue[Any]) -> None:
    source = iq.get_consumer()
    iq.close()
    with pytest.raises(Done, match=r"every producer has closed.*nothing is left"):
        source.get()


def test_producer_failed(iq: IterableQueue[Any]) -> None:
    source = iq.get_consumer()
    first, second = iq.get_producer(), iq.get_producer()
    iq.close()
    first.fail(raised(lambda: 1 // int("0")))
    second.fail(ValueError("also"))
    with pytest.raises(
        ProducerFailed, match=r"ZeroDivisionError.*1 more, see \.failures.*not all"
    ) as got:
        source.get()
    for error in (got.value, there_and_back(got.value)):
        assert isinstance(error, ProducerFailed)
        assert [type(each) for each in error.failures] == [ZeroDivisionError, ValueError]
        assert repr(error.__cause__) == repr(error.failures[0])
    if got.value.failures[0].__cause__ is not None:  # it came by way of the queue's files
        assert "raised(lambda: 1 // int" in str(got.value.failures[0].__cause__)


def test_a_producer_that_was_dropped_has_failed(iq: IterableQueue[Any]) -> None:
    source, out = iq.get_consumer(), iq.get_producer()
    out.put(1)
    del out
    iq.close()
    assert source.get() == 1
    text = r"producer 2, made at .*test_errors\.py:\d+ \(pid \d+\), was dropped without close\(\)"
    with pytest.raises(ProducerFailed, match=text) as caught:
        source.get()
    (failure,) = caught.value.failures
    assert isinstance(failure, ProducerFailed)
    assert failure is caught.value.__cause__


@pytest.mark.parametrize(
    "make",
    [
        IterableQueue[Any].threaded,
        IterableQueue[Any],
        partial(IterableQueue[Any], context=multiprocessing),
        FakeQueue[Any],
    ],
    ids=["threads", "log", "context", "fake"],
)
@pytest.mark.parametrize("closed", [False, True])
def test_consumers_that_can_never_come(
    make: Callable[[], IterableQueue[Any]], closed: bool
) -> None:
    """Nobody has closed one, and to keep one open is no remedy: there never was any."""
    queues = [make()]
    out = queues[0].get_producer()
    if closed:
        queues[0].close()
        out.put("a consumer may still come")
    queues.clear()
    text = (
        r"^the queue, made at .*test_errors\.py:\d+, was dropped before it had a consumer, so none "
        rf"can come, with {int(closed)} item\(s\) left.*; keep the queue in a variable"
    )
    for _ in range(2):
        with pytest.raises(ConsumersGone, match=text):
            out.put(1)
    out.close()


def test_consumers_gone(iq: IterableQueue[Any]) -> None:
    out, source = iq.get_producer(), iq.get_consumer()
    out.put(1)
    iq.close()
    source.close()
    text = r"no consumer is left, with 1 item\(s\) left.*keep a consumer open until Done"
    with pytest.raises(ConsumersGone, match=text):
        out.put(2)
    with pytest.raises(ConsumersGone, match=text):
        iq.get_consumer()
    with pytest.raises(ConsumersGone, match=text):
        iq.join(timeout=20)


def test_cancelled(iq: IterableQueue[Any]) -> None:
    source, out = iq.get_consumer(), iq.get_producer()
    iq.cancel(ValueError("enough"))
    for call in (source.get, lambda: out.put(1), iq.get_producer, iq.get_consumer, iq.join):
        with pytest.raises(Cancelled, match=r"cancelled: ValueError\('enough'\)") as caught:
            call()
        assert repr(caught.value.__cause__) == "ValueError('enough')"
        assert repr(there_and_back(caught.value).__cause__) == "ValueError('enough')"


def test_cancelled_for_no_reason(iq: IterableQueue[Any]) -> None:
    source = iq.get_consumer()
    iq.cancel()
    with pytest.raises(Cancelled, match="nobody said why") as caught:
        source.get()
    assert caught.value.__cause__ is None


def test_would_deadlock(iq: IterableQueue[Any]) -> None:
    with iq, pytest.raises(WouldDeadlock, match=r"join\(\) inside .*leave the block first"):
        iq.join()


class Unopenable:
    """Pickles well."""

    def __reduce__(self) -> tuple[Any, ...]:
        return throw, (ValueError("opened"),)


class Unreadable(Exception):
    """Whoever shows it gets another error."""

    def __str__(self) -> str:
        raise RuntimeError("can't be shown")

    __repr__ = __str__


@pytest.mark.parametrize("make", [IterableQueue[int], IterableQueue[int].threaded])
def test_an_error_that_can_not_be_shown(make: Callable[[], IterableQueue[int]]) -> None:
    iq = make()
    source = iq.get_consumer()
    iq.get_producer().fail(Unreadable())
    iq.close()
    calls: list[Callable[[], object]] = [source.get, iq.join]
    for call in calls:
        with pytest.raises(ProducerFailed, match=r"failed: Unreadable \(its repr\(\) raises"):
            call()
    assert "Unreadable" in iq.explain()
    iq = make()
    iq.cancel(Unreadable())
    for call in (iq.get_producer, iq.get_consumer):
        with pytest.raises(Cancelled, match=r"cancelled: Unreadable \(its repr\(\) raises"):
            call()


def test_what_can_be_told_without_an_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """None may be possible, for want of a file descriptor; then that is no second error."""
    iq = IterableQueue[int]()
    monkeypatch.setitem(sys.modules, "traceback", None)  # to import it raises ImportError
    iq.cancel(ValueError("the first"))
    monkeypatch.undo()
    with pytest.raises(Cancelled, match=r"cancelled: RemoteError\(.*ValueError\('the first'\)"):
        iq.join()


def test_item_error() -> None:
    iq = IterableQueue[Any]()
    source, out = iq.get_consumer(), iq.get_producer()
    out.put(Unopenable())
    with pytest.raises(ItemError, match=r"producer 2.*ValueError\('opened'\).*next get") as caught:
        source.get()
    for error in (caught.value, there_and_back(caught.value)):
        assert error.producer == 2
        assert repr(error.__cause__) == "ValueError('opened')"
        with pytest.raises(ValueError, match="opened"):
            pickle.loads(error.payload)


def test_empty_and_full(iq: IterableQueue[Any]) -> None:
    source = iq.get_consumer()
    with pytest.raises(queue.Empty, match=r"."):
        source.get_nowait()
    bounded = IterableQueue[int].threaded(1)
    out = bounded.get_producer()
    out.put(1)
    with pytest.raises(queue.Full, match="its maxsize is 1 item"):
        out.put_nowait(2)


def test_a_call_is_named_as_users_know_it(iq: IterableQueue[Any]) -> None:
    with pytest.raises(TypeError, match=r"^Consumer\.get_many\(\) missing"):
        iq.get_consumer().get_many()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^Producer\.put\(\) missing"):
        iq.get_producer().put()  # type: ignore[call-arg]


def test_a_worker_whose_item_another_task_has_finished(iq: IterableQueue[Any]) -> None:
    worker = iq.get_worker()
    worker.put(1)
    iq.close()
    worker.get()
    with pytest.raises(Done):
        worker.get()  # of another task of the same thread
    with pytest.raises(ProducerClosed, match=r"share this worker, give each a clone\(\)"):
        worker.put(2)

"""For the test suites of programs that use a queue.

`FakeQueue` stands in for a queue where one end of it is to be tested, in one thread. It never
blocks: where a real queue would wait for ever, it raises `WouldBlock`, which says for what:

    from iterable_queue import IterableQueue
    from iterable_queue.testing import FakeQueue

    def test_my_consumer() -> None:
        assert my_consumer(FakeQueue([1, 2, 3]).get_consumer()) == 6

    def test_my_producer() -> None:
        queue = FakeQueue[int]()
        my_producer(queue.get_producer())
        assert queue.put_items == [1, 2, 3]

`check_queue` runs the promises, each under its name, against queues that you make: of a channel,
a test double or a wrapper of your own. It needs no test runner and raises one `ConformanceError`
that names every promise that was broken, with what was expected and what was seen:

    from iterable_queue import IterableQueue
    from iterable_queue.testing import check_queue

    def test_my_queue() -> None:
        print(check_queue(MyQueue, fifo=True))

With a multiprocessing context the actors of each promise run in processes, and what is promised
between processes is checked as well:

    if __name__ == "__main__":
        check_queue(IterableQueue, processes=multiprocessing.get_context("spawn"))

`promises()` lists the names, so that each can be a test of its own (`only=[name]`).

An implementation of your own of one end, a double or a wrapper, is held by `check_producer` and
`check_consumer` to what one endpoint by itself promises:

    def make() -> tuple[Producer[str], Callable[[], list[str]]]:
        double = ListProducer()
        return double, lambda: double.items

    check_producer(make)

`races` decides, in real threads and processes, which of two calls comes first, who is slow, and
who is killed where:

    with races(iq) as race:
        race.order(race.producer(out).after_close, race.consumer(numbers).before_get)
        ...  # start the processes, and wait for their end

`explore` runs your own producers and consumers, unchanged, under every schedule that matters, and
shows the one that fails:

    from iterable_queue.testing import Simulation, explore

    def scenario(sim: Simulation) -> Callable[[], None]:
        iq = sim.queue(maxsize=1)
        results: list[int] = []
        sim.spawn(produce, iq.get_producer())
        sim.spawn(consume, iq.get_consumer(), results)
        iq.close()

        def check() -> None:
            assert sorted(results) == [1, 2, 3]

        return check

    def test_all_arrives() -> None:
        explore(scenario)
"""

import typing as _typing

from iterable_queue.testing._conformance import (
    ConformanceError,
    MadeProducer,
    Outcome,
    ProcessContext,
    ProcessLike,
    Promise,
    QueueLike,
    Report,
    Result,
    check_consumer,
    check_producer,
    check_queue,
    promises,
)

if _typing.TYPE_CHECKING:
    from iterable_queue.testing._events import (
        Closed,
        Ended,
        Failed,
        Finished,
        Killed,
        Lost,
        Opened,
        Put,
        QueueEvent,
        Redelivered,
        Returned,
        Stopped,
        Taken,
        TimedOut,
        Unreadable,
    )
    from iterable_queue.testing._explore import (
        Actor,
        Exploration,
        Injected,
        Nondeterministic,
        NothingInterleaved,
        ReplayError,
        ScheduleFailure,
        Simulation,
        checkpoint,
        explore,
    )
    from iterable_queue.testing._fake import (
        FakeQueue,
        VirtualClock,
        WouldBlock,
    )
    from iterable_queue.testing._fixtures import FakeQueues, OpenRaces
    from iterable_queue.testing._points import (
        ConsumerPoints,
        Point,
        ProducerPoints,
        QueuePoints,
        WorkerPoints,
    )
    from iterable_queue.testing._race_log import Passage
    from iterable_queue.testing._raced import RaceError
    from iterable_queue.testing._races import Gate, Races, races

__all__ = [
    "Actor",
    "Closed",
    "ConformanceError",
    "ConsumerPoints",
    "Ended",
    "Exploration",
    "Failed",
    "FakeQueue",
    "FakeQueues",
    "Finished",
    "Gate",
    "Injected",
    "Killed",
    "Lost",
    "MadeProducer",
    "Nondeterministic",
    "NothingInterleaved",
    "OpenRaces",
    "Opened",
    "Outcome",
    "Passage",
    "Point",
    "ProcessContext",
    "ProcessLike",
    "ProducerPoints",
    "Promise",
    "Put",
    "QueueEvent",
    "QueueLike",
    "QueuePoints",
    "RaceError",
    "Races",
    "Redelivered",
    "ReplayError",
    "Report",
    "Result",
    "Returned",
    "ScheduleFailure",
    "Simulation",
    "Stopped",
    "Taken",
    "TimedOut",
    "Unreadable",
    "VirtualClock",
    "WorkerPoints",
    "WouldBlock",
    "check_consumer",
    "check_producer",
    "check_queue",
    "checkpoint",
    "explore",
    "promises",
    "races",
]

if not _typing.TYPE_CHECKING:  # type checkers know the names above, and are to miss any other
    _ELSEWHERE = {
        **dict.fromkeys(("FakeQueue", "VirtualClock", "WouldBlock"), "_fake"),
        **dict.fromkeys(("FakeQueues", "OpenRaces"), "_fixtures"),
        **dict.fromkeys(("Gate", "Races", "races"), "_races"),
        **dict.fromkeys(("ConsumerPoints", "Point", "ProducerPoints"), "_points"),
        **dict.fromkeys(("QueuePoints", "WorkerPoints"), "_points"),
        **dict.fromkeys(("Closed", "Ended", "Failed", "Finished", "Killed", "Lost"), "_events"),
        **dict.fromkeys(("Opened", "Put", "QueueEvent", "Redelivered", "Returned"), "_events"),
        **dict.fromkeys(("Stopped", "Taken", "TimedOut", "Unreadable"), "_events"),
        "Passage": "_race_log",
        "RaceError": "_raced",
    }

    def __getattr__(name: str) -> object:
        """Import a tool when it is first asked for: few programs need more than one of them."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        module = import_module(f"{__name__}.{_ELSEWHERE.get(name, '_explore')}")
        return globals().setdefault(name, getattr(module, name))

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})

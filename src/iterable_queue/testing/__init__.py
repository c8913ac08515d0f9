"""For test suites: whether a queue keeps the promises of `IterableQueue`.

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

from iterable_queue.testing._conformance import (
    ConformanceError,
    Outcome,
    ProcessContext,
    ProcessLike,
    Promise,
    QueueLike,
    Report,
    Result,
    check_queue,
    promises,
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

__all__ = [
    "Actor",
    "ConformanceError",
    "Exploration",
    "Injected",
    "Nondeterministic",
    "NothingInterleaved",
    "Outcome",
    "ProcessContext",
    "ProcessLike",
    "Promise",
    "QueueLike",
    "ReplayError",
    "Report",
    "Result",
    "ScheduleFailure",
    "Simulation",
    "check_queue",
    "checkpoint",
    "explore",
    "promises",
]

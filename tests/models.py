"""Small pipelines for `explore`: what it tries the ledger, the endpoints and the channel with.

Each is a scenario whose actors are ordinary user code and whose check says what must hold at the
end, whatever the schedule. They use the public surface alone, but for the clock in `timed`, so they
find what a user could notice and nothing else. `MODELS` has them all by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from iterable_queue import (
    Cancelled,
    Consumer,
    ConsumersGone,
    Done,
    ItemsLost,
    IterableQueue,
    Producer,
    ProducerFailed,
    Worker,
)
from iterable_queue.testing._explore import Scenario, Simulation, checkpoint

Check = Callable[[], object]
Queue = IterableQueue[Any]

# What actors do


def produce(out: Producer[Any], items: Iterable[Any]) -> None:
    with out:
        for item in items:
            out.put(item)


def consume(source: Consumer[Any], got: list[Any]) -> None:
    with source:
        for item in source:
            got.append(item)


def record(source: Consumer[Any], recorded: list[Any], begun: list[Any]) -> None:
    """Work on each item for a while, and then write down that it is done."""
    with source:
        for item in source:
            begun.append(item)
            checkpoint("at work")
            recorded.append(item)


def until(error: type[Exception], call: Callable[..., object], *args: Any) -> None:
    """Make a call again and again, until it raises *error*."""
    try:
        while True:
            call(*args)
    except error:
        pass


def expand(worker: Worker[Any], seen: list[Any]) -> None:
    """Each item is a depth; one of the next depth follows from it."""
    with worker:
        for depth in worker:
            seen.append(depth)
            if depth:
                worker.put(depth - 1)


# What must hold at the end


def balanced(iq: Queue) -> Any:
    """No count has gone astray; returns the statistics."""
    now = iq.statistics()
    assert now.put == now.taken + now.queued + now.dropped, now
    assert (now.open_producers, now.open_consumers, now.open_workers) == (0, 0, 0), now
    assert (now.blocked_producers, now.blocked_consumers) == (0, 0), now
    return now


def done(iq: Queue, count: int) -> None:
    """All of *count* items were put, taken and finished, and the queue knows."""
    assert iq.join(1.0) is True
    now = balanced(iq)
    assert (now.put, now.finished, now.state) == (count, count, "done"), now


# Pipelines


def pipeline(
    producers: int, consumers: int, items: int = 1, *, maxsize: int = 0, threaded: bool = False
) -> Scenario:
    """Each producer puts so many items; the consumers take all of them."""

    def scenario(sim: Simulation) -> Check:
        iq = sim.queue(maxsize, threaded=threaded)
        got: list[Any] = []
        for n in range(producers):
            sim.spawn(produce, iq.get_producer(), range(n * items, (n + 1) * items), name=f"p{n}")
        for n in range(consumers):
            sim.spawn(consume, iq.get_consumer(), got, name=f"c{n}")
        iq.close()

        def check() -> None:
            assert sorted(got) == list(range(producers * items)), got
            done(iq, producers * items)
            assert not maxsize or iq.statistics().highest_queued <= maxsize

        return check

    return scenario


def closing(*, threaded: bool = False) -> Scenario:
    """The queue is closed while producer and consumer are at it, and somebody joins."""

    def scenario(sim: Simulation) -> Check:
        iq = sim.queue(threaded=threaded)
        got: list[Any] = []

        def join(queue: Queue) -> None:
            assert queue.join() is True
            now = queue.statistics()
            assert now.put == now.finished == 2, now

        sim.spawn(produce, iq.get_producer(), [0, 1])
        sim.spawn(consume, iq.get_consumer(), got)
        sim.spawn(join, iq)
        sim.spawn(lambda queue: queue.close(), iq, name="close")  # pyright: ignore
        return lambda: done(iq, 2)

    return scenario


def batches(sim: Simulation) -> Check:
    """A consumer that takes two at a time makes room for two that wait."""
    iq = sim.queue(2)
    got: list[Any] = []

    def take(source: Consumer[Any]) -> None:
        with source:
            until(Done, lambda: got.extend(source.get_many(2)))

    for n in range(3):
        sim.spawn(produce, iq.get_producer(), range(n * 2, n * 2 + (2 if n == 0 else 1)))
    sim.spawn(take, iq.get_consumer())
    iq.close()

    def check() -> None:
        assert sorted(got) == [0, 1, 2, 4]
        done(iq, 4)

    return check


def polling(sim: Simulation) -> Check:
    """One consumer polls, another waits."""
    from queue import Empty

    iq = sim.queue()
    got: list[Any] = []

    def poll(source: Consumer[Any]) -> None:
        with source:
            while True:
                try:
                    got.append(source.get_nowait())
                except Empty:
                    continue
                except Done:
                    return

    sim.spawn(produce, iq.get_producer(), [0, 1])
    sim.spawn(poll, iq.get_consumer())
    sim.spawn(consume, iq.get_consumer(), got)
    iq.close()

    def check() -> None:
        assert sorted(got) == [0, 1]
        done(iq, 2)

    return check


def observed(*, threaded: bool = False) -> Scenario:
    """Somebody looks at the counts meanwhile."""

    def scenario(sim: Simulation) -> Check:
        iq = sim.queue(threaded=threaded)
        got: list[Any] = []

        def observe(queue: Queue) -> None:
            for _ in range(2):
                now = queue.statistics()
                # Between leaving the queue and being returned, an item is neither.
                assert now.put == now.taken + now.queued or (threaded and now.put > now.taken), now
                assert 0 <= now.finished <= now.taken <= now.put <= 2, now
                assert now.queued <= now.highest_queued, now

        sim.spawn(produce, iq.get_producer(), [0, 1])
        sim.spawn(consume, iq.get_consumer(), got)
        sim.spawn(observe, iq)
        iq.close()
        return lambda: done(iq, 2)

    return scenario


def late_consumer(sim: Simulation) -> Check:
    """The first consumer is made after all has been put."""
    iq = sim.queue()
    got: list[Any] = []
    sim.spawn(produce, iq.get_producer(), [0])
    sim.spawn(lambda queue: consume(queue.get_consumer(), got), iq, name="consume")  # pyright: ignore
    iq.close()
    return lambda: done(iq, 1)


def late_producer(sim: Simulation) -> Check:
    """The first producer is made while a consumer waits already."""
    iq = sim.queue()
    got: list[Any] = []

    def begin(queue: Queue) -> None:
        with queue:
            produce(queue.get_producer(), [0])

    sim.spawn(consume, iq.get_consumer(), got)
    sim.spawn(begin, iq)

    def check() -> None:
        assert got == [0], got
        done(iq, 1)

    return check


def cloned(sim: Simulation) -> Check:
    """A producer hands over to its clone, after the queue's close."""
    iq = sim.queue()
    got: list[Any] = []

    def hand_over(out: Producer[Any]) -> None:
        with out:
            clone = out.clone()
        produce(clone, [0])

    sim.spawn(hand_over, iq.get_producer())
    sim.spawn(consume, iq.get_consumer(), got)
    iq.close()
    return lambda: done(iq, 1)


def timed(sim: Simulation) -> Check:
    """A time-out is one deadline for the whole call, however often the caller is woken."""
    from queue import Empty

    iq = sim.queue()
    got: list[Any] = []
    began: dict[str, float] = {}

    def clock(source: Any) -> float:
        now: float = source._core.runtime.monotonic()
        return now

    def hasty(source: Consumer[Any]) -> None:
        with source:
            began["hasty"] = clock(source)
            try:
                got.append(source.get(timeout=1.0))
            except Empty:
                try:
                    got.append(source.get_nowait())  # it may snatch what the other is woken for
                except Empty:
                    pass

    def patient(source: Consumer[Any]) -> None:
        with source:
            began["patient"] = clock(source)
            try:
                got.append(source.get(timeout=1.5))
            except Empty:
                took = clock(source) - began["patient"]
                assert took >= 1.5, took
                # Later only if somebody else's time was up meanwhile, and it was not its turn.
                assert took < 1.6 or began.get("hasty", 9.0) > began["patient"], took

    sim.spawn(hasty, iq.get_consumer())
    sim.spawn(patient, iq.get_consumer())
    sim.spawn(produce, iq.get_producer(), [0])

    def check() -> None:
        assert got in ([], [0]), got
        assert balanced(iq).taken == len(got)

    return check


def timed_out(sim: Simulation) -> Check:
    """One whose time is up just as it is woken leaves the others their wake-ups."""
    from queue import Empty

    iq = sim.queue()
    got: list[Any] = []

    def hasty(source: Consumer[Any]) -> None:
        with source:
            try:
                got.append(source.get(timeout=1.0))
            except (Empty, Done):
                pass

    sim.spawn(hasty, iq.get_consumer())
    sim.spawn(consume, iq.get_consumer(), got)
    sim.spawn(produce, iq.get_producer(), [0, 1])
    iq.close()

    def check() -> None:
        assert sorted(got) == [0, 1]
        done(iq, 2)

    return check


# Ends that come early


def cancelled(role: str, *, threaded: bool = False) -> Scenario:
    """Two that wait (for an item, for room, for the end) and one that cancels.

    Threads keep their endpoints open afterwards: no close of theirs tells the next one.
    """

    def scenario(sim: Simulation) -> Check:
        iq = sim.queue(1, threaded=threaded)
        put: list[Any] = []
        ends: list[Any] = []

        def wait(end: Any) -> None:
            if role == "join":
                until(Cancelled, end.join)
            elif role == "get":
                until(Cancelled, end.get)
            else:
                until(Cancelled, lambda: put.append(end.put(0)))

        for n in range(2):
            end: Any = iq
            if role == "put":
                end = iq.get_producer()
            elif role == "get":
                end = iq.get_consumer()
            sim.spawn(wait, end, name=f"{role}{n}")
            ends.append(end)
        sim.spawn(lambda queue: queue.cancel(), iq, name="cancel")  # pyright: ignore

        def check() -> None:
            if threaded and role != "join":
                for end in ends:
                    end.close()
            now = balanced(iq)
            assert (now.queued, now.state) == (0, "cancelled"), now
            assert now.put == now.dropped == len(put), (now, put)
            until(Cancelled, iq.join)

        return check

    return scenario


def abandoned(*, threaded: bool = False) -> Scenario:
    """The only consumer takes one item and goes; producers find out."""

    def scenario(sim: Simulation) -> Check:
        iq = sim.queue(1, threaded=threaded)

        def put(out: Producer[Any]) -> None:
            with out:
                until(ConsumersGone, out.put, 0)

        def take_one(source: Consumer[Any]) -> None:
            with source:
                source.get()

        sim.spawn(put, iq.get_producer(), name="p0")
        sim.spawn(put, iq.get_producer(), name="p1")
        sim.spawn(take_one, iq.get_consumer())
        iq.close()

        def check() -> None:
            now = balanced(iq)
            assert (now.state, now.finished) == ("abandoned" if now.queued else "done", 1), now
            assert now.failures == 0, now

        return check

    return scenario


def nothing_left(sim: Simulation) -> Check:
    """The only consumer goes early, but there never is anything: that is a good end."""
    iq = sim.queue()
    sim.spawn(produce, iq.get_producer(), [])
    sim.spawn(lambda source: source.close(), iq.get_consumer(), name="go")  # pyright: ignore
    iq.close()
    return lambda: done(iq, 0)


def failed(sim: Simulation) -> Check:
    """A producer fails; what it put is delivered, and both consumers are told."""
    iq = sim.queue()
    got: list[Any] = []

    def fail(out: Producer[Any]) -> None:
        try:
            with out:
                out.put(0)
                raise LookupError("the source ran dry")
        except LookupError:
            pass

    def take(source: Consumer[Any]) -> None:
        with source:
            until(ProducerFailed, lambda: got.append(source.get()))

    sim.spawn(fail, iq.get_producer())
    for n in range(2):
        sim.spawn(take, iq.get_consumer(), name=f"c{n}")
    iq.close()

    def check() -> None:
        now = balanced(iq)
        assert (got, now.state, now.finished) == ([0], "failed", 1), (got, now)
        until(ProducerFailed, iq.join)

    return check


def failure_cancels(sim: Simulation) -> Check:
    """With on_failure="cancel" a failure ends everything at once."""
    iq = sim.queue(on_failure="cancel")

    def fail(out: Producer[Any]) -> None:
        try:
            with out:
                raise LookupError("the source ran dry")
        except LookupError:
            pass

    sim.spawn(fail, iq.get_producer())
    source = iq.get_consumer()
    sim.spawn(lambda source: until(Cancelled, source.get), source, name="c0")  # pyright: ignore
    sim.spawn(lambda queue: until(Cancelled, queue.join), iq, name="join")  # pyright: ignore
    return lambda: None


# Workers


def workers(sim: Simulation) -> Check:
    """Two workers, and a root of depth 1."""
    iq = sim.queue()
    seen: list[Any] = []
    sim.spawn(produce, iq.get_producer(), [1])
    for n in range(2):
        sim.spawn(expand, iq.get_worker(), seen, name=f"w{n}")
    iq.close()

    def check() -> None:
        assert sorted(seen) == [0, 1], seen
        done(iq, 2)

    return check


def starting(sim: Simulation) -> Check:
    """Two workers; one puts the root before it asks for anything."""
    iq = sim.queue()
    seen: list[Any] = []

    def start(worker: Worker[Any]) -> None:
        worker.put(1)
        expand(worker, seen)

    sim.spawn(start, iq.get_worker())
    sim.spawn(expand, iq.get_worker(), seen)
    iq.close()

    def check() -> None:
        assert sorted(seen) == [0, 1], seen
        done(iq, 2)

    return check


def worker_batches(sim: Simulation) -> Check:
    """A worker takes two at a time, and counts as busy with both; another waits for the end."""
    iq = sim.queue()
    seen: list[Any] = []

    def take(worker: Worker[Any]) -> None:
        def batch() -> None:
            for depth in worker.get_many(2):
                seen.append(depth)
                if depth:
                    worker.put(depth - 1)

        with worker:
            until(Done, batch)

    sim.spawn(produce, iq.get_producer(), [1, 0])
    sim.spawn(take, iq.get_worker())
    sim.spawn(expand, iq.get_worker(), seen)
    iq.close()

    def check() -> None:
        assert sorted(seen) == [0, 0, 1], seen
        done(iq, 3)

    return check


def worker_closes(sim: Simulation) -> Check:
    """A worker goes with an item in hand: nobody waits for what it might have put."""
    iq = sim.queue()
    seen: list[Any] = []

    def take_one(worker: Worker[Any]) -> None:
        with worker:
            try:
                seen.append(worker.get())
            except Done:
                pass

    sim.spawn(produce, iq.get_producer(), [0, 0])
    sim.spawn(take_one, iq.get_worker())
    sim.spawn(expand, iq.get_worker(), seen)
    iq.close()

    def check() -> None:
        assert seen == [0, 0], seen
        done(iq, 2)

    return check


# Deaths


def killed_producer(*, inside: bool = False) -> Scenario:
    """A producer dies somewhere: unless it had closed, the consumer is told."""

    def scenario(sim: Simulation) -> Check:
        iq = sim.queue(1)
        got: list[Any] = []
        closed: list[bool] = []
        told: list[bool] = []

        def put(out: Producer[Any]) -> None:
            out.put(0)
            out.put(1)
            out.close()
            closed.append(True)

        def take(source: Consumer[Any]) -> None:
            with source:
                try:
                    for item in source:
                        got.append(item)
                except ProducerFailed:
                    told.append(True)

        sim.may_kill(sim.spawn(put, iq.get_producer()), inside=inside)
        sim.spawn(take, iq.get_consumer())
        iq.close()

        def check() -> None:
            assert got == list(range(len(got))), got
            now = balanced(iq)
            assert now.finished == now.put == len(got), now
            if closed:
                assert (len(got), told) == (2, [])
            elif not inside:  # else it may have been killed after it was closed
                assert told == [True]
            if told:
                until(ProducerFailed, iq.join)
            else:
                assert iq.join(1.0) is True

        return check

    return scenario


def killed_consumer(*, redeliver: bool = False, inside: bool = False) -> Scenario:
    """A consumer dies somewhere: what it had not recorded is lost, or handed out again."""

    def scenario(sim: Simulation) -> Check:
        iq = sim.queue(1, redeliver=redeliver)
        recorded: list[Any] = []
        begun: list[Any] = []
        sim.spawn(produce, iq.get_producer(), [0, 1])
        mortal = sim.spawn(record, iq.get_consumer(), recorded, begun, name="mortal")
        sim.may_kill(mortal, inside=inside)
        sim.spawn(record, iq.get_consumer(), recorded, [])
        iq.close()

        def check() -> None:
            now = iq.statistics()
            assert now.lost <= 1, now
            assert set(recorded) == {0, 1} or (now.lost == 1 and len(recorded) == 1), recorded
            assert len(recorded) <= 2 + now.redelivered, (recorded, now)
            assert (now.open_producers, now.open_consumers) == (0, 0), now
            assert (now.put, now.finished + now.lost) == (2, 2), now
            if redeliver:
                assert now.lost == 0, now
            if not begun:
                assert len(recorded) == 2 - now.lost, (recorded, now)
            if now.lost:
                until(ItemsLost, iq.join)
            else:
                assert iq.join(1.0) is True

        return check

    return scenario


def killed_worker(*, redeliver: bool = False, inside: bool = False) -> Scenario:
    """A worker dies somewhere: unless it had nothing to do, the others are told."""

    def scenario(sim: Simulation) -> Check:
        iq = sim.queue(redeliver=redeliver)
        seen: list[Any] = []
        told: list[bool] = []

        def survive(worker: Worker[Any]) -> None:
            try:
                expand(worker, seen)
            except ProducerFailed:
                told.append(True)

        sim.spawn(produce, iq.get_producer(), [1])
        sim.may_kill(sim.spawn(expand, iq.get_worker(), seen, name="mortal"), inside=inside)
        sim.spawn(survive, iq.get_worker())
        iq.close()

        def check() -> None:
            now = iq.statistics()
            assert (now.open_producers, now.open_workers) == (0, 0), now
            assert told or set(seen) == {0, 1}, (seen, now)
            assert now.queued == 0, now
            assert now.finished + now.lost + now.redelivered == now.taken, now
            if told:
                until(ProducerFailed, iq.join)

        return check

    return scenario


def killed_sleeper(sim: Simulation) -> Check:
    """A consumer dies, perhaps asleep, perhaps with a wake-up on its way: two others go on."""
    iq = sim.queue()
    got: list[Any] = []
    sim.may_kill(sim.spawn(consume, iq.get_consumer(), [], name="mortal"))
    sim.spawn(consume, iq.get_consumer(), got, name="c0")
    sim.spawn(consume, iq.get_consumer(), got, name="c1")
    sim.spawn(produce, iq.get_producer(), [0])
    iq.close()

    def check() -> None:
        now = iq.statistics()
        assert (now.state, now.queued, now.open_consumers) == ("done", 0, 0), now
        assert now.taken == 1, now
        assert len(got) + now.lost <= 1, now

    return check


# Threads of one process


def shared_endpoints(sim: Simulation) -> Check:
    """Two threads put by one producer, two take by one consumer; who comes last closes."""
    iq = sim.queue(threaded=True)
    out, source = iq.get_producer(), iq.get_consumer()
    put_by: list[Any] = []
    got: list[Any] = []
    gone: list[Any] = []

    def put(item: Any) -> None:
        out.put(item)
        put_by.append(item)
        if len(put_by) == 2:
            out.close()

    def take(name: int) -> None:
        for item in source:
            got.append(item)
        gone.append(name)
        if len(gone) == 2:
            source.close()

    for n in range(2):
        sim.spawn(put, n, name=f"put{n}")
        sim.spawn(take, n, name=f"take{n}")
    iq.close()

    def check() -> None:
        assert sorted(got) == [0, 1], got
        done(iq, 2)

    return check


def closed_twice(sim: Simulation) -> Check:
    """Two threads close one producer at once, and another one is still open."""
    iq = sim.queue(threaded=True)
    shared = iq.get_producer()
    got: list[Any] = []
    for n in range(2):
        sim.spawn(lambda: shared.close(), name=f"close{n}")  # noqa: PLW0108 - a thread's function
    sim.spawn(produce, iq.get_producer(), [0])
    sim.spawn(consume, iq.get_consumer(), got)
    iq.close()

    def check() -> None:
        assert got == [0], got
        done(iq, 1)

    return check


def closed_by_another(sim: Simulation) -> Check:
    """One thread waits in get, another closes its consumer."""
    from iterable_queue import ConsumerClosed

    iq = sim.queue(threaded=True)
    source = iq.get_consumer()
    out = iq.get_producer()
    sim.spawn(lambda: until(ConsumerClosed, source.get), name="get")
    sim.spawn(lambda: source.close(), name="close")  # noqa: PLW0108 - a thread's function

    def check() -> None:
        out.close()
        iq.close()
        balanced(iq)

    return check


def threads_working(sim: Simulation) -> Check:
    """Workers that find the end and don't close: each has to be told."""
    iq = sim.queue(threaded=True)
    workers = [iq.get_worker() for _ in range(2)]
    seen: list[Any] = []

    def work(worker: Worker[Any]) -> None:
        for depth in worker:
            seen.append(depth)
            if depth:
                worker.put(depth - 1)

    for worker in workers:
        sim.spawn(work, worker)
    with iq.get_producer() as out:
        out.put(1)
    iq.close()

    def check() -> None:
        for worker in workers:
            worker.close()
        assert sorted(seen) == [0, 1], seen
        done(iq, 2)

    return check


def interrupted(*, threaded: bool) -> Scenario:
    """An error is raised somewhere in a consumer: what it was not handed goes to the other."""

    def scenario(sim: Simulation) -> Check:
        iq = sim.queue(2, threaded=threaded)
        got: list[Any] = []
        sim.spawn(produce, iq.get_producer(), [0, 1])
        sim.may_fail(sim.spawn(consume, iq.get_consumer(), got, name="fails"))
        sim.spawn(consume, iq.get_consumer(), got)
        iq.close()

        def check() -> None:
            now = iq.statistics()
            if now.queued:  # it was given back after the other one had found the end
                until(ConsumersGone, iq.join)
            else:
                assert iq.join(1.0) is True
            assert len(got) + now.queued == 2, (got, now)
            assert (now.put, now.finished, now.lost) == (2, len(got), 0), now

        return check

    return scenario


MODELS: dict[str, Scenario] = {
    "2x1": pipeline(2, 1),
    "1x2": pipeline(1, 2, 2),
    "2x2": pipeline(2, 2),
    "2x1 maxsize 1": pipeline(2, 1, 2, maxsize=1),
    "1x2 maxsize 1": pipeline(1, 2, 3, maxsize=1),
    "closing": closing(),
    "batches": batches,
    "polling": polling,
    "observed": observed(),
    "late consumer": late_consumer,
    "late producer": late_producer,
    "cloned": cloned,
    "timed": timed,
    "timed out": timed_out,
    "cancelled get": cancelled("get"),
    "cancelled put": cancelled("put"),
    "cancelled join": cancelled("join"),
    "abandoned": abandoned(),
    "nothing left": nothing_left,
    "failed": failed,
    "failure cancels": failure_cancels,
    "workers": workers,
    "starting": starting,
    "worker batches": worker_batches,
    "worker closes": worker_closes,
    "killed producer": killed_producer(),
    "killed producer, inside": killed_producer(inside=True),
    "killed consumer": killed_consumer(),
    "killed consumer, inside": killed_consumer(inside=True),
    "killed consumer, redelivery": killed_consumer(redeliver=True),
    "killed consumer, redelivery, inside": killed_consumer(redeliver=True, inside=True),
    "killed worker": killed_worker(),
    "killed worker, inside": killed_worker(inside=True),
    "killed worker, redelivery": killed_worker(redeliver=True),
    "killed sleeper": killed_sleeper,
    "threads 2x1": pipeline(2, 1, threaded=True),
    "threads 1x2": pipeline(1, 2, threaded=True),
    "threads 2x1 maxsize 1": pipeline(2, 1, 2, maxsize=1, threaded=True),
    "threads, closing": closing(threaded=True),
    "threads, observed": observed(threaded=True),
    "threads, cancelled get": cancelled("get", threaded=True),
    "threads, cancelled put": cancelled("put", threaded=True),
    "threads, abandoned": abandoned(threaded=True),
    "threads, shared endpoints": shared_endpoints,
    "threads, closed twice": closed_twice,
    "threads, closed by another": closed_by_another,
    "threads, working": threads_working,
    "threads, interrupted": interrupted(threaded=True),
    "interrupted": interrupted(threaded=False),
}
"""Every model, by name."""

"""`statistics` and `explain`: what the ledger says, for programs and for people."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

import pytest

from iterable_queue import Empty, IterableQueue, Statistics
from iterable_queue import _cells as cells_
from iterable_queue._core import Core
from iterable_queue._explain import explain, statistics
from tests.conftest import wait_until

MAKERS: tuple[Callable[[], IterableQueue[int]], ...] = (
    IterableQueue[int].threaded,
    IterableQueue[int],
)


@pytest.fixture(params=MAKERS, ids=["threads", "processes"])
def queue(request: pytest.FixtureRequest) -> IterableQueue[int]:
    make: Callable[[], IterableQueue[int]] = request.param
    return make()


def core_of(queue: IterableQueue[int]) -> Core:
    return queue._core


def lines_of(queue: IterableQueue[int]) -> list[str]:
    return [line.strip() for line in queue.explain().splitlines()]


def store(queue: IterableQueue[int], slot: int, **fields: int) -> None:
    """Set cells of a slot to what others would have stored there."""
    core = core_of(queue)
    for name, value in fields.items():
        core.ledger.cells[slot * cells_.SLOT_SIZE + getattr(cells_, name)] = value


def slot_of(endpoint: Any) -> int:
    slot: int = endpoint.slot
    return slot


# Statistics


def test_a_new_queue(queue: IterableQueue[int]) -> None:
    *counts, state = queue.statistics()
    assert set(counts) == {0}
    assert state == "open"


def test_the_highest_count_is_kept_by_a_cancel(queue: IterableQueue[int]) -> None:
    queue.get_producer().put_many([1, 2, 3])
    queue.cancel()
    stats = queue.statistics()
    assert (stats.highest_queued, stats.dropped, stats.queued) == (3, 3, 0)


def test_every_count(queue: IterableQueue[int]) -> None:
    out, other = queue.get_producer(), queue.get_producer()
    source, more = queue.get_consumer(), queue.get_consumer()
    trees = [queue.get_worker() for _ in range(3)]
    out.put_many(range(7))
    other.fail(ValueError())
    more.close()
    assert source.get_many(3) == [0, 1, 2]
    assert source.get() == 3
    assert source.get_many(2) == [4, 5]
    assert queue.statistics() == Statistics(
        open_producers=1,
        open_consumers=1,
        open_workers=3,
        put=7,
        taken=6,
        finished=4,
        queued=1,
        lost=0,
        redelivered=0,
        dropped=0,
        blocked_producers=0,
        blocked_consumers=0,
        highest_queued=7,
        failures=1,
        state="open",
    )
    core = core_of(queue)
    core.ledger.head[cells_.LOST] = 1
    core.ledger.head[cells_.REDELIVERED] = 5
    queue.cancel()
    after = queue.statistics()
    assert (after.lost, after.redelivered, after.dropped) == (1, 5, 1)
    assert (after.finished, after.queued, after.put, after.state) == (3, 0, 7, "cancelled")
    assert len(trees) == 3


def test_the_blocked_are_counted_on_their_sides(queue: IterableQueue[int]) -> None:
    out, source, tree = queue.get_producer(), queue.get_consumer(), queue.get_worker()
    for endpoint, blocked in ((out, 2), (source, 3), (tree, 4)):
        store(queue, slot_of(endpoint), BLOCKED=blocked)
    found = queue.statistics()
    assert (found.blocked_producers, found.blocked_consumers) == (2, 7)


def test_a_thread_that_waits_is_counted_while_it_does(queue: IterableQueue[int]) -> None:
    source = queue.get_consumer()
    with pytest.raises(Empty):
        source.get(timeout=0.01)
    assert queue.statistics().blocked_consumers == 0
    got = list[int]()
    waiting = threading.Thread(target=lambda: got.append(source.get()))
    waiting.start()
    wait_until(lambda: queue.statistics().blocked_consumers == 1, "the waiting thread")
    assert "1 caller(s) wait in get for an item or the end" in lines_of(queue)
    queue.get_producer().put(5)
    waiting.join()
    assert got == [5]
    assert queue.statistics().blocked_consumers == 0


# What people read


def test_the_queue_is_open(queue: IterableQueue[int]) -> None:
    summary, items, itself = lines_of(queue)
    assert summary == "open, not done: the queue has not been closed"
    assert items == "items: 0 put, 0 taken, 0 finished, 0 queued, 0 lost"
    pid = core_of(queue).pid_of(1)
    assert re.fullmatch(
        rf"the queue, made at {re.escape(__file__)}:\d+, open in this process \(pid {pid}\): "
        r"close\(\) it, or leave its `with` block, last active \d+\.\d s ago",
        itself,
    )


def test_every_reason_is_named(queue: IterableQueue[int]) -> None:
    outs = [queue.get_producer() for _ in range(2)]
    tree = queue.get_worker()
    outs[0].put(1)
    outs[0].put(2)
    summary = lines_of(queue)[0]
    assert summary == (
        "open, not done: the queue has not been closed, 2 producer(s) are open, "
        "1 worker(s) may still put, 2 item(s) are left"
    )
    queue.close()
    assert tree.get() == 1
    for out in outs:
        out.close()
    assert lines_of(queue)[0] == ("closed, not done: 1 worker(s) may still put, 1 item(s) are left")


def test_nobody_is_there_to_take_what_is_left(queue: IterableQueue[int]) -> None:
    queue.get_producer().put(1)
    queue.close()
    assert lines_of(queue)[0].endswith("1 item(s) are left, no consumer is open to take them"), (
        lines_of(queue)
    )
    source = queue.get_consumer()
    assert lines_of(queue)[0].endswith("1 item(s) are left")
    assert source.get() == 1


def test_the_end(queue: IterableQueue[int]) -> None:
    source = queue.get_consumer()
    with queue.get_producer() as out:
        out.put(1)
    queue.close()
    assert source.get() == 1
    assert lines_of(queue)[0] == "done, but 1 item(s) are still in hand"
    assert list(source) == []
    assert lines_of(queue)[0] == "done"


def test_a_failed_end(queue: IterableQueue[int]) -> None:
    queue.get_producer().fail(ValueError("enough"))
    queue.get_producer().fail(ValueError())
    queue.close()
    assert lines_of(queue)[0].startswith(
        "failed: a producer failed: ValueError('enough') (and 1 more, see .failures); "
    )


def test_a_cancelled_queue_says_why(queue: IterableQueue[int]) -> None:
    queue.cancel(ValueError("enough"))
    assert lines_of(queue)[0] == "cancelled: the queue was cancelled: ValueError('enough')"


def test_an_abandoned_queue_says_so(queue: IterableQueue[int]) -> None:
    out = queue.get_producer()
    queue.get_consumer().close()
    queue.close()
    assert lines_of(queue)[0].startswith("abandoned: the queue is closed and no consumer is left")
    out.close()


def line(queue: IterableQueue[int], name: str) -> list[str]:
    """What is said of one endpoint: the parts of its line."""
    (found,) = [line for line in lines_of(queue) if line.startswith(f"{name}, ")]
    return found.split(", ")


def test_an_endpoint_that_nobody_has_taken(queue: IterableQueue[int]) -> None:
    out = queue.get_producer()
    pid = core_of(queue).pid_of(1)
    name, made, by, nobody, active = line(queue, "producer 1")
    assert name == "producer 1"
    assert re.fullmatch(rf"made at {re.escape(__file__)}:\d+", made)
    assert by == f"made by this process (pid {pid})"
    assert nobody.startswith("taken by nobody yet (use it or close() it; a function that failed ")
    assert re.fullmatch(r"last active \d+\.\d s ago", active)
    assert not out.closed


def test_an_endpoint_in_use(queue: IterableQueue[int]) -> None:
    source = queue.get_consumer()
    with queue.get_producer() as out:
        out.put_many([1, 2])
        pid = core_of(queue).pid_of(1)
        assert line(queue, "producer 2")[2] == f"taken by this process (pid {pid})"
        source.get_many(2)
        assert line(queue, "consumer 1")[3] == "2 in hand"
        store(queue, slot_of(source), BLOCKED=3)
        assert line(queue, "consumer 1")[4] == "3 thread(s) waiting in a call"
        assert "3 caller(s) wait in get for an item or the end" in lines_of(queue)
        store(queue, slot_of(out), BLOCKED=1)
        assert "1 caller(s) wait in put for room" in lines_of(queue)


def test_a_worker_that_has_not_asked(queue: IterableQueue[int]) -> None:
    tree = queue.get_worker()
    asks = "has not asked for its first item"
    assert asks in line(queue, "worker 1")
    with pytest.raises(Empty):
        tree.get_nowait()
    assert asks not in line(queue, "worker 1")


def test_how_long_it_is_idle(queue: IterableQueue[int]) -> None:
    out = queue.get_producer()
    now = core_of(queue).runtime.now()
    store(queue, slot_of(out), STAMP=now - 12_340_000_000)
    (active,) = re.findall(r"last active (\d+\.\d) s ago", line(queue, "producer 1")[-1])
    assert 12.3 <= float(active) < 30


def test_the_roads_of_an_endpoint(queue: IterableQueue[int]) -> None:
    out = queue.get_producer()
    slot, pid = slot_of(out), core_of(queue).pid_of(1)
    me = f"this process (pid {pid})"
    store(queue, slot, FLAGS=cells_.SENT, ROAD=1)
    assert f"pickled by {me}" in line(queue, "producer 1")
    store(queue, slot, FLAGS=cells_.SENT, ROAD=0)
    assert "pickled by a process that has ended" in line(queue, "producer 1")
    store(queue, slot, FLAGS=cells_.FORKED)
    assert "inherited by children forked since" in line(queue, "producer 1")
    store(queue, slot, FLAGS=cells_.STARTED | cells_.FORKED)
    assert (
        "given to a process as that was started and inherited by children forked since"
    ) in line(queue, "producer 1")
    store(queue, slot, FLAGS=cells_.FORKED | cells_.DROPPED_COPY)
    assert ("adrift: its maker's copy is gone; inherited by children forked since") in line(
        queue, "producer 1"
    )
    store(queue, slot, FLAGS=0)


def test_processes_that_live_and_that_do_not() -> None:
    queue = IterableQueue[int]()
    out = queue.get_producer()
    core, slot = core_of(queue), slot_of(out)
    held = list[int]()

    def prepare(process: int) -> None:
        held.append(process)

    other = core.transact(core.ledger.open_process, 4711, prepare)
    assert held == [other]
    store(queue, slot, OWNER=other)
    text = explain_of(core)
    assert "taken by pid 4711 (dead), which has not used it yet (use it or close() it;" in text
    store(queue, other, NUMBER=0)
    assert "taken by a process that is being started" in explain_of(core)
    store(queue, slot, OWNER=0, MAKER=0)
    assert "made by a process that has ended, taken by nobody yet" in explain_of(core)
    store(queue, slot, MAKER=core.ledger.me)
    core.transact(core.ledger.release_process, other)


def explain_of(core: Core) -> str:
    """`explain` without the look at who has died, which would bury them."""
    return core.transact(explain, core)


def test_both_are_of_one_moment(queue: IterableQueue[int]) -> None:
    core = core_of(queue)
    assert core.transact(statistics, core) == queue.statistics()


def test_what_is_in_hand_keeps_a_redelivering_queue_from_being_done() -> None:
    queue = IterableQueue[int](redeliver=True)
    out, source = queue.get_producer(), queue.get_consumer()
    out.put(1)
    out.close()
    queue.close()
    assert source.get() == 1
    (summary, *_) = lines_of(queue)
    assert summary.startswith("closed, not done: 1 item(s) are in hand, and come back if")
    source.close()
    assert lines_of(queue)[0] == "done"

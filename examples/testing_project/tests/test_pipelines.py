"""What an exploration says of each mistake; and the pipeline that passes the same exploration."""

from collections.abc import Callable

import pytest
from pipelines import (
    add_up,
    add_up_to_sentinel,
    bill,
    count_words,
    crawl,
    fetch,
    follow,
    greet_first,
    greet_once,
    read,
    read_and_forget,
    send,
    send_with_sentinel,
)

from iterable_queue import IterableQueue
from iterable_queue.testing import ScheduleFailure, Simulation, explore

Check = Callable[[], None]

LINES = ["one two", "three"]
SITE = {"home": ["a", "b", "c", "d"], "a": ["e"], "b": [], "c": [], "d": [], "e": []}


# 1. A forgotten close()


def test_a_forgotten_close_is_a_deadlock_between_threads() -> None:
    def scenario(sim: Simulation) -> None:
        iq: IterableQueue[str] = sim.queue(threaded=True)
        with iq:
            sim.spawn(read_and_forget, LINES, iq.get_producer())
            sim.spawn(count_words, iq.get_consumer(), [])

    with pytest.raises(ScheduleFailure) as failure:
        explore(scenario)
    text = str(failure.value)
    assert "deadlock" in text
    assert "count_words waits for an item in get" in text
    assert "closed, not done: 1 producer(s) are open" in text


def test_a_forgotten_close_is_a_failure_between_processes() -> None:
    def scenario(sim: Simulation) -> None:
        iq: IterableQueue[str] = sim.queue()
        with iq:
            sim.spawn(read_and_forget, LINES, iq.get_producer())
            sim.spawn(count_words, iq.get_consumer(), [])

    with pytest.raises(ScheduleFailure) as failure:
        explore(scenario)
    text = str(failure.value)
    assert "ProducerFailed" in text
    assert "was left open when its process returned" in text


@pytest.mark.explore
@pytest.mark.parametrize("threaded", [True, False])
def test_a_producer_that_closes(sim: Simulation, threaded: bool) -> Check:
    iq: IterableQueue[str] = sim.queue(threaded=threaded)
    totals: list[int] = []
    with iq:
        sim.spawn(read, LINES, iq.get_producer())
        sim.spawn(count_words, iq.get_consumer(), totals)

    def check() -> None:
        assert totals == [3]

    return check


# 2. A sentinel of one's own


def sentinels(sim: Simulation, producers: int) -> Check:
    iq: IterableQueue[int | None] = sim.queue()
    sums: list[int] = []
    with iq:
        for n in range(producers):
            sim.spawn(send_with_sentinel, [10**n], iq.get_producer(), name=f"sender {n}")
        sim.spawn(add_up_to_sentinel, iq.get_consumer(), sums)

    def check() -> None:
        assert sums == [sum(10**n for n in range(producers))], f"it added up to {sums}"

    return check


@pytest.mark.explore
def test_a_sentinel_serves_one_producer(sim: Simulation) -> Check:
    return sentinels(sim, 1)


def test_a_sentinel_breaks_with_two_producers() -> None:
    def scenario(sim: Simulation) -> Check:
        return sentinels(sim, 2)

    with pytest.raises(ScheduleFailure) as failure:
        explore(scenario)
    text = str(failure.value)
    assert "the end state is wrong: AssertionError: it added up to [1" in text
    assert "get -> None" in text, "the row after which nothing more is taken"


@pytest.mark.explore
def test_without_a_sentinel_there_may_be_two(sim: Simulation) -> Check:
    iq: IterableQueue[int] = sim.queue()
    sums: list[int] = []
    with iq:
        sim.spawn(send, [1], iq.get_producer(), name="sender 0")
        sim.spawn(send, [10], iq.get_producer(), name="sender 1")
        sim.spawn(add_up, iq.get_consumer(), sums)

    def check() -> None:
        assert sums == [11]

    return check


# 3. Two bounded stages in a cycle


def test_two_bounded_stages_in_a_cycle_deadlock() -> None:
    def scenario(sim: Simulation) -> None:
        links: IterableQueue[str] = sim.queue(maxsize=1)
        pages: IterableQueue[str] = sim.queue(maxsize=1)
        with links, pages:
            sim.spawn(send, ["home"], links.get_producer(), name="start")
            sim.spawn(fetch, links.get_consumer(), pages.get_producer())
            sim.spawn(follow, pages.get_consumer(), links.get_producer(), SITE)

    with pytest.raises(ScheduleFailure) as failure:
        explore(scenario)
    text = str(failure.value)
    assert "deadlock" in text
    assert "fetch waits for room in put" in text
    assert "follow waits for room in put" in text


@pytest.mark.explore
def test_workers_on_one_bounded_queue_do_not(sim: Simulation) -> Check:
    links: IterableQueue[str] = sim.queue(maxsize=1)
    seen: list[str] = []
    with links:
        sim.spawn(send, ["home"], links.get_producer(), name="start")
        for n in range(2):
            sim.spawn(crawl, links.get_worker(), SITE, seen, name=f"crawler {n}")

    def check() -> None:
        assert sorted(seen) == sorted(SITE)

    return check


# 4. Check, then act


def test_two_consumers_that_check_before_they_act() -> None:
    def scenario(sim: Simulation) -> Check:
        iq: IterableQueue[str] = sim.queue(threaded=True)
        greeted: set[str] = set()
        said: list[str] = []
        with iq:
            sim.spawn(read, ["Ada", "Ada"], iq.get_producer())
            for n in range(2):
                sim.spawn(greet_once, iq.get_consumer(), greeted, said.append, name=f"greeter {n}")

        def check() -> None:
            assert said == ["Ada"], f"said {said}"

        return check

    with pytest.raises(ScheduleFailure) as failure:
        explore(scenario)
    text = str(failure.value)
    assert "the end state is wrong: AssertionError: said ['Ada', 'Ada']" in text
    assert text.count("not greeted yet") == 2, "both were there before either went on"


@pytest.mark.explore
def test_two_consumers_that_claim(sim: Simulation) -> Check:
    iq: IterableQueue[str] = sim.queue(threaded=True)
    claims: dict[str, object] = {}
    said: list[str] = []
    with iq:
        sim.spawn(read, ["Ada", "Ada"], iq.get_producer())
        for n in range(2):
            sim.spawn(greet_first, iq.get_consumer(), claims, said.append, name=f"greeter {n}")

    def check() -> None:
        assert said == ["Ada"]

    return check


# 5. Work that is lost with the one who had it in hand


def billing(sim: Simulation, redeliver: bool) -> Check:
    iq: IterableQueue[int] = sim.queue(redeliver=redeliver)
    billed: list[int] = []
    with iq:
        sim.spawn(send, [1, 2], iq.get_producer())
        sim.may_kill(sim.spawn(bill, iq.get_consumer(), billed, name="mortal"))
        sim.spawn(bill, iq.get_consumer(), billed, name="survivor")

    def check() -> None:
        assert set(billed) == {1, 2}, f"billed {billed}"

    return check


def test_an_order_is_lost_with_the_process_that_had_it() -> None:
    def scenario(sim: Simulation) -> Check:
        return billing(sim, redeliver=False)

    with pytest.raises(ScheduleFailure) as failure:
        explore(scenario)
    text = str(failure.value)
    assert "the end state is wrong: AssertionError: billed [" in text
    assert "has the order, not billed yet" in text
    assert "killed" in text


@pytest.mark.explore
def test_an_order_that_is_redelivered_is_billed_at_least_once(sim: Simulation) -> Check:
    return billing(sim, redeliver=True)

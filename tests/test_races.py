"""Races on real queues: threads, and processes of every start method.

Actors are functions of this module, which spawned processes import. No test sleeps to let something
happen: they wait for a gate, for an actor's end, or for a fact with a limit.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty
from typing import Any, cast

import pytest

from iterable_queue import (
    Consumer,
    Done,
    ItemsLost,
    IterableQueue,
    Producer,
    ProducerFailed,
    Worker,
)
from iterable_queue._cells import WATCHED
from iterable_queue._endpoints import ConsumerEndpoint, ProducerEndpoint, WorkerEndpoint
from iterable_queue._shared import SharedCore
from iterable_queue.testing import (
    ConsumerPoints,
    FakeQueue,
    Gate,
    Passage,
    Point,
    ProducerPoints,
    RaceError,
    Races,
    races,
)
from iterable_queue.testing._race_log import RaceLog, Rule
from iterable_queue.testing._raced import Track, _tracks  # pyright: ignore[reportPrivateUsage]
from tests.conftest import FORKS, Context, Processes, lives, wait_until

PATIENCE_S = 20.0
"""For what is sure to come."""

pytestmark = FORKS


# Actors


def put_all(out: Producer[Any], items: list[Any]) -> None:
    """Put *items*, and close."""
    with out:
        for item in items:
            out.put(item)


def put_quietly(out: Producer[Any], items: list[Any]) -> None:
    """The same; a broken race ends it by an exit status instead of a traceback."""
    try:
        put_all(out, items)
    except RaceError:
        os._exit(7)


def take_quietly(source: Consumer[Any]) -> None:
    try:
        for _ in source:
            pass
    except RaceError:
        os._exit(7)


def take_all(source: Consumer[Any], results: str) -> None:
    """Take everything, and write it down."""
    with source, open(results, "a") as file:
        for item in source:
            file.write(f"{json.dumps(item)}\n")
            file.flush()


def take_forgivingly(source: Consumer[Any]) -> None:
    try:
        for _ in source:
            pass
    except ProducerFailed:
        pass


def put_by_clone(out: Producer[Any], items: list[Any]) -> None:
    clone = out.clone()
    out.close()
    put_all(clone, items)


def put_by_queue(iq: IterableQueue[Any], items: list[Any]) -> None:
    put_all(iq.get_producer(), items)


def close_queue(iq: IterableQueue[Any]) -> None:
    iq.close()


def receive_and_put(connection: Any) -> None:
    """Receive producers, one after another, and put an item by each; None ends it."""
    while (out := connection.recv()) is not None:
        put_all(out, [os.getpid()])
        connection.send("put")


def put_and_say(out: Producer[Any], results: str) -> None:
    put_all(out, [1])
    Path(results).write_text(str(os.getpid()))


def begin_and_be_gone(results: str) -> None:
    """Run a test of one's own, and end in the midst of it."""
    iq = IterableQueue[Any]()
    out = iq.get_producer()
    with races(iq, timeout=100.0) as race:
        gate = race.pause(race.producer(out).before_put)
        putter = multiprocessing.get_context("fork").Process(
            target=put_and_say, args=(out, results)
        )
        putter.start()
        assert gate.reached(PATIENCE_S)
        os.kill(os.getpid(), signal.SIGKILL)


class Actor(threading.Thread):
    """A thread whose error is kept."""

    def __init__(self, function: Callable[..., object], *args: Any) -> None:
        super().__init__(daemon=True)
        self._function = function
        self._args_of_it = args
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._function(*self._args_of_it)
        except BaseException as error:
            self.error = error

    def end(self) -> None:
        """Wait for its end, and raise what it raised."""
        self.join(PATIENCE_S)
        assert not self.is_alive()
        if self.error is not None:
            raise self.error


def act(function: Callable[..., object], *args: Any) -> Actor:
    actor = Actor(function, *args)
    actor.start()
    return actor


@pytest.fixture(params=["threaded", "processes"])
def make(request: pytest.FixtureRequest) -> Callable[..., IterableQueue[Any]]:
    """Makes queues whose actors are threads of this process."""
    if request.param == "threaded":
        return IterableQueue[Any].threaded
    return IterableQueue[Any]


class Breach:
    """Races that break, and the text of the error with which their block ended."""

    def __init__(self, race: Races) -> None:
        self.race = race
        self.text = ""


@contextmanager
def breach(iq: IterableQueue[Any], timeout: float = 10.0) -> Generator[Breach]:
    """A block of races that must end with RaceError."""
    found = Breach(races(iq, timeout=timeout))
    try:
        with found.race:
            yield found
    except RaceError as error:
        found.text = str(error)
    else:
        pytest.fail("no rule was broken")


def points(race: Races) -> list[str]:
    return [str(passage.point) for passage in race.history]


# Points


def test_points_say_where_they_are() -> None:
    assert str(ProducerPoints("producer", 3).before_put) == "before put of producer 3"
    assert str(ProducerPoints("producer", 3).before_put.nth(2)) == "before put #2 of producer 3"
    assert str(ConsumerPoints("consumer", None).done) == "Done from get of any consumer"
    assert str(ConsumerPoints("consumer", 1).get_blocked.each) == (
        "blocked in get (each time) of consumer 1"
    )


@pytest.mark.parametrize("time", [0, -1])
def test_a_time_is_counted_from_1(time: int) -> None:
    with pytest.raises(ValueError, match="1 or more"):
        ProducerPoints("producer", 3).before_put.nth(time)


def test_history(make: Callable[..., IterableQueue[Any]]) -> None:
    iq = make()
    out, source = iq.get_producer(), iq.get_consumer()
    with races(iq) as race:
        with iq, out:
            out.put(1)
            out.put_many(iter([2, 3]))
        assert source.get() == 1
        assert source.get_many(5) == [2, 3]
        assert list(source) == []
        source.close()
        source.close()
        assert iq.join()
    assert points(race) == [
        "before put of producer 1",
        "after put of producer 1",
        "before put #2 of producer 1",
        "after put #2 of producer 1",
        "before put #3 of producer 1",
        "after put #3 of producer 1",
        "before close of producer 1",
        "after close of producer 1",
        "before close of the queue",
        "after close of the queue",
        "before get of consumer 2",
        "after get of consumer 2",
        "before get #2 of consumer 2",
        "after get #2 of consumer 2",
        "before get #3 of consumer 2",
        "Done from get of consumer 2",
        "before close of consumer 2",
        "after close of consumer 2",
        "before join of the queue",
        "after join of the queue",
    ]
    assert race.history[0] == Passage(
        Point("producer", 1, "put", "before"), os.getpid(), threading.get_ident()
    )


def test_points_of_a_worker_a_failure_and_a_cancel(
    make: Callable[..., IterableQueue[Any]],
) -> None:
    iq = make()
    worker, out = iq.get_worker(), iq.get_producer()
    with races(iq) as race:
        worker.put(1)
        assert next(worker) == 1
        worker.fail(ValueError())
        out.fail(ValueError())
        iq.cancel()
    assert points(race) == [
        "before put of worker 1",
        "after put of worker 1",
        "before get of worker 1",
        "after get of worker 1",
        "before fail of worker 1",
        "after fail of worker 1",
        "before fail of producer 2",
        "after fail of producer 2",
        "before cancel of the queue",
        "after cancel of the queue",
    ]


def test_a_call_that_raises_has_no_point_after_it(make: Callable[..., IterableQueue[Any]]) -> None:
    iq = make(1)
    out, source = iq.get_producer(), iq.get_consumer()
    with races(iq) as race:
        with pytest.raises(Empty):
            source.get(timeout=0.001)
        out.put(1)
        with pytest.raises(IterableQueue.Full):
            out.put(2, timeout=0.001)
        out.close()
        with pytest.raises(Exception, match="closed"):
            out.put(3)
    # On a slow machine the time is over before it comes to that.
    assert [point for point in points(race) if not point.startswith("blocked")] == [
        "before get of consumer 2",
        "before put of producer 1",
        "after put of producer 1",
        "before put #2 of producer 1",
        "before close of producer 1",
        "after close of producer 1",
    ]


def test_whatever_there_is_has_points_until_the_block_ends(
    make: Callable[..., IterableQueue[Any]],
) -> None:
    class Mine(IterableQueue[Any]):
        __slots__ = ()

    iq = make()
    iq.__class__ = Mine
    ends = [iq.get_producer()]
    with races(iq) as race:
        ends += [iq.get_producer(), ends[0].clone()]
        for out in ends:
            out.put(1)
        iq.close()
        assert isinstance(iq, Mine)
    for out in ends:
        out.close()
    assert points(race) == [
        *(f"{where} put of producer {n}" for n in (1, 2, 3) for where in ("before", "after")),
        "before close of the queue",
        "after close of the queue",
    ]


def test_a_queue_may_be_raced_again(make: Callable[..., IterableQueue[Any]]) -> None:
    iq = make()
    out = iq.get_producer()
    for _ in range(2):
        with races(iq) as race:
            out.put(1)
        assert points(race) == ["before put of producer 1", "after put of producer 1"]


# Rules, over threads


@pytest.mark.parametrize("first", ["a", "b"])
def test_an_order_decides(make: Callable[..., IterableQueue[Any]], first: str) -> None:
    iq = make()
    ends = {"a": iq.get_producer(), "b": iq.get_producer()}
    source = iq.get_consumer()
    with races(iq) as race, iq:
        early, late = ends.pop(first), ends.popitem()[1]
        race.order(race.producer(early).after_close, race.producer(late).before_put)
        actors = [act(put_all, late, ["late"]), act(put_all, early, ["early"] * 3)]
        for actor in actors:
            actor.end()
    assert list(source) == ["early"] * 3 + ["late"]


def test_orders_make_a_chain(make: Callable[..., IterableQueue[Any]]) -> None:
    iq = make()
    a, b = iq.get_producer(), iq.get_producer()
    source = iq.get_consumer()
    with races(iq) as race, iq:
        of_a, of_b = race.producer(a), race.producer(b)
        race.order(of_b.after_put, of_a.before_put)
        race.order(of_a.after_put, of_b.before_put.nth(2))
        race.order(of_b.after_put.nth(2), of_a.before_put.nth(2))
        for actor in [act(put_all, a, [1, 3]), act(put_all, b, [0, 2])]:
            actor.end()
    assert list(source) == [0, 1, 2, 3]


def test_an_order_whose_first_has_happened_already(
    make: Callable[..., IterableQueue[Any]],
) -> None:
    iq = make()
    out, source = iq.get_producer(), iq.get_consumer()
    with races(iq) as race:
        out.put(1)
        race.order(race.producer(out).after_put, race.consumer(source).before_get)
        assert source.get() == 1


def test_any_producer_counts_all_of_them(make: Callable[..., IterableQueue[Any]]) -> None:
    iq = make()
    source = iq.get_consumer()
    with races(iq) as race, iq:
        outs = [iq.get_producer() for _ in range(3)]
        race.order(race.producer().after_put.nth(3), race.consumer(source).before_get)
        getter = act(source.get)
        for out in outs:
            put_all(out, [0])
        getter.end()
    assert points(race).index("before get of consumer 1") > points(race).index(
        "after put of producer 4"
    )


def test_a_pause_shows_a_bounded_put_that_waits(make: Callable[..., IterableQueue[Any]]) -> None:
    iq = make(2)
    out, source = iq.get_producer(), iq.get_consumer()
    with races(iq) as race, iq:
        gate = race.pause(race.producer(out).put_blocked)
        assert gate.passage() is None
        assert not gate.reached(0.0)
        actor = act(put_all, out, [1, 2, 3])
        assert gate.reached()
        passage = gate.passage()
        assert passage is not None
        assert passage.point.where == "blocked"
        assert (iq.qsize(), iq.statistics().blocked_producers) == (2, 1)
        assert source.get() == 1
        gate.release()
        gate.release()
        actor.end()
        assert repr(gate) == "<Gate at blocked in put of producer 1>"
    gate.release()
    assert list(source) == [2, 3]


def test_a_delay_takes_its_time() -> None:
    iq = IterableQueue[int].threaded()
    out = iq.get_producer()
    with races(iq) as race:
        race.delay(race.producer(out).before_put.nth(2), 0.1)
        out.put(1)
        started = time.monotonic()
        out.put(2)
        assert time.monotonic() - started >= 0.1


def test_a_drawn_delay_is_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[float] = []

    def note(self: Track, core: object, fact: object, timeout: float) -> bool:
        drawn.append(timeout)
        return False

    monkeypatch.setattr(Track, "wait", note)

    def draw(seed: int) -> list[float]:
        drawn.clear()
        iq = IterableQueue[int].threaded()
        out = iq.get_producer()
        with races(iq) as race:
            race.delay(race.producer().after_put.each, (2.0, 3.0), seed=seed)
            race.delay(race.producer(out).before_put.nth(2), 1.0)
            out.put_many(range(4))
        return drawn.copy()

    first = draw(1)
    assert first == draw(1)
    assert first != draw(2)
    assert [delay for delay in first if delay < 2.0] == [1.0]
    assert first[1] == 1.0
    assert len({*first}) == 5
    assert max(first) <= 3.0


def test_leaving_the_block_opens_every_gate(make: Callable[..., IterableQueue[Any]]) -> None:
    iq = make()
    out = iq.get_producer()
    with races(iq) as race:
        gate = race.pause(race.producer(out).before_put)
        actor = act(out.put, 1)
        assert gate.reached()
    actor.end()
    assert iq.qsize() == 1


def test_an_iterator_is_told_of_a_broken_rule_too() -> None:
    iq = IterableQueue[int].threaded()
    out, source = iq.get_producer(), iq.get_consumer()
    with breach(iq, 0.05) as broken:
        race = broken.race
        race.order(race.producer(out).after_put, race.consumer(source).before_get)
        with pytest.raises(RaceError):
            next(source)


# What can't be


def test_an_order_in_vain_names_who_waited_for_what(
    make: Callable[..., IterableQueue[Any]],
) -> None:
    iq = make()
    a, b = iq.get_producer(), iq.get_producer()
    with breach(iq, 0.2) as broken:
        race = broken.race
        race.order(race.producer(a).after_put.nth(2), race.producer(b).before_put)
        a.put(1)
        actor = act(b.put, 2)
        with pytest.raises(RaceError) as inside:
            actor.end()
    for text in (broken.text, str(inside.value)):
        pid = os.getpid()
        assert text.splitlines() == [
            f"before put of producer 2 (pid {pid}) waited for after put #2 of producer 1, "
            "0.2 s in vain",
            "the rule: order: after put #2 of producer 1, then before put of producer 2",
            "passed so far:",
            f"  before put of producer 1 (pid {pid})",
            f"  after put of producer 1 (pid {pid})",
            "at a point now:",
            f"  before put of producer 2 (pid {pid}), by the rule order: after put #2 of producer "
            "1, then before put of producer 2",
        ]
    assert iq.qsize() == 1


def test_a_gate_that_nobody_releases(make: Callable[..., IterableQueue[Any]]) -> None:
    iq = make()
    out = iq.get_producer()
    with breach(iq, 0.05) as broken:
        broken.race.pause(broken.race.producer(out).before_put)
        with pytest.raises(RaceError, match=r"its gate not released within 0\.05 s"):
            out.put(1)
    assert "its gate not released within 0.05 s" in broken.text
    assert iq.empty()


def test_a_broken_rule_frees_all_who_wait() -> None:
    iq = IterableQueue[int]()
    a, b = iq.get_producer(), iq.get_producer()
    with breach(iq, 100.0) as broken:
        race = broken.race
        gate = race.pause(race.producer(a).before_put)
        race.pause(race.producer(a).before_put.nth(2))
        race.kill(race.producer(b).before_put)
        actor = act(a.put, 1)
        assert gate.reached(PATIENCE_S)
        with pytest.raises(RaceError, match="the process of the test"):
            b.put(2)
        with pytest.raises(RaceError, match="the races are over, since a rule was broken"):
            actor.end()
        with pytest.raises(RaceError, match="the races are over, since a rule was broken"):
            race.pause(race.producer(a).after_fail).reached(PATIENCE_S)
        a.put(3)  # no rule counts any more
    assert "the process of the test" in broken.text
    assert iq.qsize() == 1


def test_a_rule_is_broken_just_as_another_one_comes_to_a_point(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever came there before is told, whether it waits there already or not."""
    iq = IterableQueue[int]()
    a, b = iq.get_producer(), iq.get_producer()
    arrive = RaceLog.arrive

    def overtaken(log: RaceLog, point: Any) -> int:
        at = arrive(log, point)
        if point.number == cast("Any", a).number:
            with pytest.raises(RaceError, match="the process of the test"):
                b.put(2)
        return at

    with breach(iq) as broken:
        broken.race.pause(broken.race.producer(a).before_put)
        broken.race.kill(broken.race.producer(b).before_put)
        monkeypatch.setattr(RaceLog, "arrive", overtaken)
        with pytest.raises(RaceError, match="the races are over, since a rule was broken"):
            a.put(1)
    assert iq.qsize() == 0


def test_a_kill_comes_after_all_else(tmp_path: Path) -> None:
    log = RaceLog(str(tmp_path / "log"))
    log.create()
    point = ProducerPoints("producer", 1).before_put
    log.add(Rule("kill", point))
    log.add(Rule("delay", point))
    log.add(Rule("pause", point))
    at = log.arrive(point)
    log.read()
    assert [rule.kind for rule in log.rules_for(at)] == ["delay", "pause", "kill"]


def test_a_line_that_is_not_whole_is_left_for_later(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = RaceLog(str(path))
    log.create()
    log.arrive(ProducerPoints("producer", 1).before_put)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    log.read()
    assert log.arrivals == {}
    path.write_bytes(whole)
    log.read()
    assert len(log.arrivals) == 1


def test_nothing_raced_is_an_error() -> None:
    iq = IterableQueue[int].threaded()
    out = iq.get_producer()
    with breach(iq) as broken:
        race = broken.race
        of_out = race.producer(out)
        race.order(of_out.after_put, race.consumer().before_get)
        race.pause(of_out.before_close)
        race.delay(of_out.before_fail.each, 1)
        race.delay(of_out.before_put, 0)
        race.pause(of_out.after_fail, optional=True)
        out.put(1)
    assert broken.text.splitlines() == [
        "the block ended before these were come to (join the actors inside it, or say "
        "optional=True):",
        "  order: after put of producer 1, then before get of any consumer",
        "  pause: before close of producer 1",
        "  delay of 1 to 1 s: before fail (each time) of producer 1",
        "passed so far:",
        f"  before put of producer 1 (pid {os.getpid()})",
        f"  after put of producer 1 (pid {os.getpid()})",
    ]


def test_an_order_that_is_still_waited_for_is_not_kept() -> None:
    iq = IterableQueue[int].threaded()
    out = iq.get_producer()
    with breach(iq) as broken:
        race = broken.race
        race.order(race.queue.after_close, race.producer(out).before_put)
        actor = act(out.put, 1)
        wait_until(lambda: "at a point now" in race.explain(), "it waits")
    actor.end()
    assert "order: after close of the queue, then before put of producer 1" in broken.text


def test_optional_rules_need_not_be_come_to() -> None:
    iq = IterableQueue[int]()
    with races(iq) as race:
        race.order(race.producer(1).after_put, race.producer(2).before_put, optional=True)
        race.pause(race.producer(1).before_put, optional=True)
        race.delay(race.producer(1).before_put, 1, optional=True)
        race.kill(race.producer(1).before_put, optional=True)


def test_an_error_of_the_block_goes_on_with_a_note() -> None:
    iq = IterableQueue[int].threaded()
    error = KeyError()
    try:
        with races(iq) as race:
            race.pause(race.producer().before_put)
            raise error
    except KeyError:
        [note] = error.__notes__
    else:
        pytest.fail("the error is gone")
    assert note.startswith("races: the block ended before these were come to")
    assert "pause: before put of any producer" in note


def test_a_rule_that_comes_too_late(make: Callable[..., IterableQueue[Any]]) -> None:
    iq = make()
    out = iq.get_producer()
    with races(iq) as race:
        out.put(1)
        late = race.producer(out).before_put
        for rule in (
            lambda: race.pause(late),
            lambda: race.delay(late, 0),
            lambda: race.order(race.producer(out).after_close, late),
        ):
            with pytest.raises(RaceError, match="has happened already"):
                rule()
        race.pause(late.nth(2)).release()
        out.put(2)


def test_orders_that_contradict_each_other() -> None:
    iq = IterableQueue[int].threaded()
    with races(iq) as race:
        a, b, c = (race.producer(n).before_put for n in (1, 2, 3))
        race.order(a, b, optional=True)
        race.order(b, c, optional=True)
        race.order(a, c, optional=True)
        with pytest.raises(ValueError, match="comes after"):
            race.order(c, a)
        with pytest.raises(ValueError, match="comes after"):
            race.order(a, a)


def test_what_is_no_rule() -> None:
    iq, other = IterableQueue[int].threaded(), IterableQueue[int].threaded()
    out, source, stranger = iq.get_producer(), iq.get_consumer(), other.get_producer()
    anything: Any = source
    with races(iq) as race:
        with pytest.raises(ValueError, match="a thread can't be killed"):
            race.kill(race.producer(out).before_put)
        with pytest.raises(ValueError, match="another queue"):
            race.producer(stranger)
        with pytest.raises(TypeError, match="not a producer"):
            race.producer(anything)
        with pytest.raises(ValueError, match="number 2 is a consumer"):
            race.producer(2)
        with pytest.raises(TypeError, match="by its number"):
            race.producer(True)
        anything = race.producer(out)
        with pytest.raises(TypeError, match="not a point"):
            race.pause(anything)
        each = race.producer(out).before_put.each
        with pytest.raises(ValueError, match="only a delay"):
            race.pause(each)
        with pytest.raises(ValueError, match="only a delay"):
            race.order(race.producer(out).after_put, each)
        for seconds in (-1, (2.0, 1.0)):
            with pytest.raises(ValueError, match="0 or more"):
                race.delay(race.producer(out).before_put, seconds)


def test_what_can_not_be_raced() -> None:
    anything: Any = object()
    for unreal in (anything, FakeQueue[int]()):
        with pytest.raises(TypeError, match="on an IterableQueue, not on <"):
            races(unreal)
    iq = IterableQueue[int].threaded()
    with pytest.raises(ValueError, match="above 0"):
        races(iq, timeout=0)
    with pytest.raises(TypeError, match="timeout must be a number of seconds, not '1'"):
        races(iq, timeout="1")  # type: ignore[arg-type]
    race = races(iq)
    with pytest.raises(RaceError, match="over"):
        _ = race.history
    with race:
        with pytest.raises(RaceError, match="already"), races(iq):
            pass
        assert race.history == ()
    with pytest.raises(RaceError, match="of its own"), race:
        pass
    with pytest.raises(RaceError, match="over"):
        race.pause(ProducerPoints("producer", 1).before_put)


# Processes


def files_of(iq: IterableQueue[Any]) -> set[str]:
    core = iq._core  # pyright: ignore[reportPrivateUsage]
    assert isinstance(core, SharedCore)
    return {name for name in os.listdir(core.address.path) if name[0] in "rw"}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    path = tmp_path / "results"
    path.touch()
    return path


def read(results: Path) -> list[Any]:
    return [json.loads(line) for line in results.read_text().splitlines()]


def test_a_put_after_a_close(context: Context, processes: Processes, results: Path) -> None:
    iq = IterableQueue[Any]()
    early, late, source = iq.get_producer(), iq.get_producer(), iq.get_consumer()
    with races(iq, timeout=PATIENCE_S) as race, iq:
        race.order(race.producer(early).after_close, race.producer(late).before_put)
        race.order(race.producer(late).after_close, race.consumer(source).before_get)
        processes.start(context.Process(target=take_all, args=(source, str(results))))
        processes.start(context.Process(target=put_all, args=(late, ["late"])))
        processes.start(context.Process(target=put_all, args=(early, ["early"] * 2)))
        iq.close()
        assert processes.join() == [0, 0, 0]
        assert files_of(iq) == {"race-1", "watcher"}
    assert read(results) == ["early", "early", "late"]
    assert len({passage.pid for passage in race.history}) == 4
    assert files_of(iq) == set()


def test_a_bounded_put_that_waits(context: Context, processes: Processes) -> None:
    iq = IterableQueue[Any](2)
    out, source = iq.get_producer(), iq.get_consumer()
    with races(iq, timeout=PATIENCE_S) as race:
        gate = race.pause(race.producer(out).put_blocked)
        process = processes.start(context.Process(target=put_all, args=(out, [1, 2, 3])))
        assert gate.reached()
        passage = gate.passage()
        assert passage is not None
        assert passage.pid == process.pid
        assert iq.qsize() == 2
        assert source.get() == 1
        gate.release()
        assert processes.join() == [0]
    iq.close()
    assert list(source) == [2, 3]


@pytest.mark.parametrize("redeliver", [False, True])
def test_a_kill_between_a_get_and_the_next(
    context: Context, processes: Processes, results: Path, redeliver: bool
) -> None:
    iq = IterableQueue[Any](redeliver=redeliver)
    out, doomed, heir = iq.get_producer(), iq.get_consumer(), iq.get_consumer()
    put_all(out, [1, 2, 3])
    iq.close()
    with races(iq, timeout=PATIENCE_S) as race:
        # Killed with 2 in hand; the other one begins only then.
        race.kill(race.consumer(doomed).after_get, nth=2)
        race.order(race.consumer(doomed).after_get.nth(2), race.consumer(heir).before_get)
        processes.start(context.Process(target=take_all, args=(doomed, str(results))))
        processes.start(context.Process(target=take_all, args=(heir, str(results))))
        assert processes.join() == [-signal.SIGKILL, 0]
    if redeliver:
        assert sorted(read(results)) == [1, 2, 3]
        assert iq.join(PATIENCE_S)
    else:
        assert read(results) == [1, 3]
        with pytest.raises(ItemsLost):
            iq.join(PATIENCE_S)


def test_a_kill_at_the_end_of_an_order(processes: Processes) -> None:
    iq = IterableQueue[Any]()
    out, source = iq.get_producer(), iq.get_consumer()
    with races(iq, timeout=PATIENCE_S) as race:
        doomed = race.consumer(source).before_get
        race.kill(doomed)
        race.order(race.producer(out).after_put, doomed)
        context = multiprocessing.get_context("fork")
        process = processes.start(context.Process(target=take_forgivingly, args=(source,)))
        wait_until(lambda: "at a point now" in race.explain(), "it waits")
        assert process.exitcode is None
        out.put(1)
        assert processes.join() == [-signal.SIGKILL]


def test_calls_of_the_queue_by_another_process(context: Context, processes: Processes) -> None:
    iq = IterableQueue[Any]()
    source = iq.get_consumer()
    with races(iq, timeout=PATIENCE_S) as race:
        race.order(race.queue.after_close, race.consumer(source).before_get)
        process = processes.start(context.Process(target=close_queue, args=(iq,)))
        assert list(source) == []
        assert processes.join() == [0]
    assert [str(passage.point) for passage in race.history if passage.pid == process.pid] == [
        "before close of the queue",
        "after close of the queue",
    ]


def test_a_producer_killed_after_its_second_put(context: Context, processes: Processes) -> None:
    iq = IterableQueue[Any]()
    out, source = iq.get_producer(), iq.get_consumer()
    iq.close()
    with races(iq, timeout=PATIENCE_S) as race:
        race.kill(race.producer(out).after_put.nth(2))
        processes.start(context.Process(target=put_all, args=(out, [1, 2, 3])))
        assert processes.join() == [-signal.SIGKILL]
    assert [source.get(), source.get()] == [1, 2]
    with pytest.raises(ProducerFailed, match="killed"):
        source.get()
    assert race.explain().count("killed there") == 1


def test_an_order_in_vain_breaks_on_both_sides(context: Context, processes: Processes) -> None:
    iq = IterableQueue[Any]()
    a, b = iq.get_producer(), iq.get_producer()
    with breach(iq, 1.0) as broken:
        race = broken.race
        race.order(race.producer(a).after_put, race.producer(b).before_put)
        process = processes.start(context.Process(target=put_quietly, args=(b, [1])))
        assert processes.join() == [7]
    text = broken.text
    assert (
        f"before put of producer 2 (pid {process.pid}) waited for after put of producer 1" in text
    )
    assert "1 s in vain" in text
    assert "nothing was passed so far" in text


def test_a_death_that_others_wait_for_is_found(context: Context, processes: Processes) -> None:
    iq = IterableQueue[Any]()
    out, source = iq.get_producer(), iq.get_consumer()
    started = time.monotonic()
    with breach(iq, 100.0) as broken:
        race = broken.race
        race.order(race.producer(out).after_close, race.consumer(source).before_get)
        gate = race.pause(race.producer(out).before_close)
        taker = processes.start(context.Process(target=take_quietly, args=(source,)))
        putter = processes.start(context.Process(target=put_all, args=(out, [1])))
        assert gate.reached(PATIENCE_S)
        assert putter.pid is not None
        os.kill(putter.pid, signal.SIGKILL)
        assert processes.join() == [7, -signal.SIGKILL]
        assert not race.pause(race.producer(out).after_close).reached()
    assert time.monotonic() - started < 30
    assert f"before get of consumer 2 (pid {taker.pid}) waited for" in broken.text
    assert f"the process of producer 1 (pid {putter.pid}) was killed" in broken.text
    assert f"before close of producer 1 (pid {putter.pid}), has ended" in broken.text


def test_what_is_made_in_other_processes_has_points(context: Context, processes: Processes) -> None:
    iq = IterableQueue[Any]()
    out, source = iq.get_producer(), iq.get_consumer()
    with races(iq, timeout=PATIENCE_S) as race:
        race.order(race.producer().after_put.nth(4), race.consumer(source).before_get)
        processes.start(context.Process(target=put_by_clone, args=(out, [1, 1])))
        processes.start(context.Process(target=put_by_queue, args=(iq, [1, 1])))
        assert source.get() == 1
        assert iq.qsize() == 3
        assert processes.join() == [0, 0]


def test_a_process_that_ran_before(context: Context, processes: Processes) -> None:
    iq = IterableQueue[Any]()
    mine, theirs = context.Pipe()
    before, out, later = iq.get_producer(), iq.get_producer(), iq.get_producer()
    processes.start(context.Process(target=receive_and_put, args=(theirs,)))
    mine.send(before)
    assert mine.poll(PATIENCE_S)
    assert mine.recv() == "put"
    for producer in (out, later):  # one block after another, and one process for all
        with races(iq, timeout=PATIENCE_S) as race:
            gate = race.pause(race.producer(producer).before_put)
            mine.send(producer)
            assert gate.reached()
            assert not mine.poll(0)
            gate.release()
            assert mine.poll(PATIENCE_S)
            assert mine.recv() == "put"
            assert len(race.history) == 4
    mine.send(None)
    assert processes.join() == [0]


def test_what_was_used_elsewhere_before_is_refused(context: Context, processes: Processes) -> None:
    iq = IterableQueue[Any]()
    out = iq.get_producer()
    source = iq.get_consumer()
    started = processes.start(context.Process(target=take_forgivingly, args=(source,)))
    wait_until(lambda: iq.statistics().blocked_consumers, "the consumer waits")
    with races(iq, timeout=PATIENCE_S) as race:
        for rule in (
            lambda: race.pause(race.consumer(2).before_get),
            lambda: race.order(race.consumer(2).before_get, race.producer(out).before_put),
        ):
            with pytest.raises(RaceError, match=rf"another process's \(pid {started.pid}\)"):
                rule()
    put_all(out, [])
    iq.close()
    assert processes.join() == [0]


def test_an_endpoint_of_another_process_has_no_points_here(processes: Processes) -> None:
    context = multiprocessing.get_context("fork")
    iq = IterableQueue[Any]()
    out = iq.get_producer()
    with races(iq, timeout=PATIENCE_S) as race:
        gate = race.pause(race.producer(out).before_close)
        processes.start(context.Process(target=put_all, args=(out, [1])))
        assert gate.reached()
        with pytest.raises(Exception, match="belongs to"):
            out.put(2)
        gate.release()
        assert processes.join() == [0]
    assert {passage.pid for passage in race.history} != {os.getpid()}
    assert points(race).count("before put of producer 1") == 1
    assert "before put #2 of producer 1" not in points(race)


def test_the_process_of_the_test_is_not_killed() -> None:
    iq = IterableQueue[Any]()
    out = iq.get_producer()
    with breach(iq) as broken:
        broken.race.kill(broken.race.producer(out).before_put)
        with pytest.raises(RaceError, match="the process of the test"):
            out.put(1)
    assert "is the process of the test" in broken.text
    assert iq.empty()


def test_a_fork_while_another_thread_reads_the_log(processes: Processes) -> None:
    iq = IterableQueue[Any]()
    out, other = iq.get_producer(), iq.get_producer()
    held, enough = threading.Event(), threading.Event()
    with races(iq) as race:
        other.put(1)
        core = iq._core  # pyright: ignore[reportPrivateUsage]
        lock = _tracks[core].log._lock  # pyright: ignore[reportPrivateUsage]

        def hold() -> None:
            with lock:
                held.set()
                enough.wait(PATIENCE_S)

        holder = act(hold)
        assert held.wait(PATIENCE_S)
        context = multiprocessing.get_context("fork")
        processes.start(context.Process(target=put_all, args=(out, [1])))
        assert processes.join(PATIENCE_S / 2) == [0]
        enough.set()
        holder.end()
    assert len(race.history) == 6


def test_a_block_left_in_a_forked_child_is_still_on_here(processes: Processes) -> None:
    iq = IterableQueue[Any]()
    out = iq.get_producer()
    with races(iq, timeout=PATIENCE_S) as race:
        pid = os.fork()
        if pid == 0:
            race.__exit__(None, None, None)
            os._exit(0)
        processes.watch(pid)
        assert os.waitpid(pid, 0)[1] == 0
        out.put(1)
        assert len(race.history) == 2


def test_nobody_waits_for_a_test_that_was_killed(processes: Processes, results: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes.start(context.Process(target=begin_and_be_gone, args=(str(results),)))
    assert processes.join() == [-signal.SIGKILL]
    wait_until(results.read_text, "the other process goes on")
    wait_until(lambda: not lives(int(results.read_text())), "and ends")


# Costs and left-overs


def test_nothing_is_left(make: Callable[..., IterableQueue[Any]]) -> None:
    def folders() -> set[str]:
        return {name for name in os.listdir(tempfile.gettempdir()) if "-races-" in name}

    before = folders()
    iq = make()
    with pytest.raises(KeyError), races(iq):
        raise KeyError
    with races(iq):
        pass
    core = iq._core  # pyright: ignore[reportPrivateUsage]
    assert (core.ledger.head[WATCHED], core.watcher) == (-2, None)
    if isinstance(core, SharedCore):
        assert files_of(iq) == set()
    assert folders() - before == set()


def test_without_races_no_call_is_another_one() -> None:
    """What runs in a queue without races is what would run if there were no races at all."""
    iq = IterableQueue[Any]()
    pickled = pickle.dumps(iq.get_consumer())
    assert type(pickle.loads(pickled)) is ConsumerEndpoint
    assert type(iq.get_producer()) is ProducerEndpoint
    assert type(iq.get_worker()) is WorkerEndpoint


def test_a_gate_and_a_worker_are_typed(make: Callable[..., IterableQueue[Any]]) -> None:
    iq = make()
    worker: Worker[Any] = iq.get_worker()
    with races(iq) as race, iq:
        gate: Gate = race.pause(race.worker(worker).done)
        worker.put(1)
        actor = act(take_forgivingly, worker)
        iq.close()
        assert gate.reached()
        gate.release()
        actor.end()
    with pytest.raises(Done):
        worker.get()

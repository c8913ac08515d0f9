"""How endpoints and queues travel between processes, and whose they are then.

An endpoint counts once, from the call that made it. It belongs to the first process that takes it,
whichever way it came.
"""

from __future__ import annotations

import copy
import gc
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import Pipe, get_context
from pathlib import Path
from typing import Any

import pytest

from iterable_queue import (
    ChannelBroken,
    Done,
    EndpointElsewhere,
    IterableQueue,
    IterableQueueError,
    ProducerClosed,
    ProducerFailed,
    _mutex,
)
from iterable_queue import _cells as cells_
from iterable_queue._shared import SharedCore
from tests import actors
from tests.actors import Puppet, Stage, context_of
from tests.conftest import FORKS, START_METHODS, Context, Processes, lives, wait_until

PATIENCE_S = actors.PATIENCE_S


@pytest.fixture
def stage(context: Context, processes: Processes) -> Iterator[Stage]:
    """Processes of each start method."""
    with Stage(context, processes) as stage:
        yield stage


def ends(iq: IterableQueue[Any]) -> str:
    """How the queue has ended, with nobody and nothing left."""
    stats = iq.statistics()
    assert (stats.open_producers, stats.open_workers, stats.queued) == (0, 0, 0)
    assert stats.put == stats.taken == stats.finished
    return stats.state


# Roads


Road = Callable[[Context, Processes, Any], object]
"""Brings something to another process, and returns what `actors.use` returned there."""


def _by_process(
    context: Context, processes: Processes, act: Callable[..., object], *args: Any, **kwargs: Any
) -> Callable[[], object]:
    here, there = Pipe()
    process = processes.start(
        context.Process(target=actors.answer, args=(there, act, *args), kwargs=kwargs)
    )

    def result() -> object:
        assert here.poll(PATIENCE_S), "no answer"
        value, error = here.recv()
        process.join(PATIENCE_S)
        assert process.exitcode == 0
        if error is not None:
            raise error
        return value

    return result


def by_argument(context: Context, processes: Processes, thing: Any) -> object:
    return _by_process(context, processes, actors.use, thing)()


def by_keyword(context: Context, processes: Processes, thing: Any) -> object:
    return _by_process(context, processes, actors.use, thing=thing)()


def by_list(context: Context, processes: Processes, thing: Any) -> object:
    return _by_process(context, processes, actors.use_first, [thing])()


@contextmanager
def _pool(context: Context, workers: int) -> Generator[Any]:
    """A pool that is closed in order: its own `with` kills the workers, whatever they do."""
    pool = context.Pool(workers)
    try:
        yield pool
    finally:
        pool.close()
        pool.join()


def by_apply(context: Context, processes: Processes, thing: Any) -> object:
    with _pool(context, 1) as pool:
        return pool.apply_async(actors.use, (thing,)).get(PATIENCE_S)


def by_map(context: Context, processes: Processes, thing: Any) -> object:
    with _pool(context, 2) as pool:
        return pool.map_async(actors.use, [thing]).get(PATIENCE_S)[0]


def by_executor(context: Context, processes: Processes, thing: Any) -> object:
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        return executor.submit(actors.use, thing).result(PATIENCE_S)


def by_pipe(context: Context, processes: Processes, thing: Any) -> object:
    here, there = Pipe()
    result = _by_process(context, processes, actors.use_what_comes, there)
    here.send(thing)
    del thing
    return result()


def by_queue(context: Context, processes: Processes, thing: Any) -> object:
    carrier = context.Queue()
    result = _by_process(context, processes, actors.use_what_comes, carrier)
    carrier.put(thing)
    try:
        return result()
    finally:
        carrier.close()
        carrier.join_thread()


def by_simple_queue(context: Context, processes: Processes, thing: Any) -> object:
    carrier = context.SimpleQueue()
    result = _by_process(context, processes, actors.use_what_comes, carrier)
    carrier.put(thing)
    return result()


def by_iterable_queue(context: Context, processes: Processes, thing: Any) -> object:
    with IterableQueue[Any](context=context) as carrier:
        result = _by_process(context, processes, actors.use_what_comes, carrier.get_consumer())
        with carrier.get_producer() as out:
            out.put(thing)
    return result()


ROADS: list[Road] = [
    by_argument,
    by_keyword,
    by_list,
    by_apply,
    by_map,
    by_executor,
    by_pipe,
    by_queue,
    by_simple_queue,
    by_iterable_queue,
]


@pytest.mark.parametrize("kind", ["producer", "consumer", "worker", "queue"])
@pytest.mark.parametrize("road", ROADS)
def test_it_travels(context: Context, processes: Processes, road: Road, kind: str) -> None:
    """The maker keeps no copy, and has nothing else open."""
    iq = IterableQueue[int](context=context)
    if kind == "queue":
        assert road(context, processes, iq) == "made a producer"
        iq.close()
    elif kind == "producer":
        assert road(context, processes, _closing(iq, iq.get_producer)) == "put"
    else:
        with iq.get_producer() as out:
            out.put_many([1, 2])
        del out
        thing = _closing(iq, iq.get_consumer if kind == "consumer" else iq.get_worker)
        assert road(context, processes, thing) == [1, 2]
    if kind in ("queue", "producer"):
        assert list(iq.get_consumer()) == [1, 2]
    wait_until(lambda: iq.join(0), "all is finished")
    assert ends(iq) == "done"


def _closing(iq: IterableQueue[int], make: Callable[[], Any]) -> Any:
    """The last endpoint that the queue makes."""
    endpoint = make()
    iq.close()
    return endpoint


@pytest.mark.parametrize("taker", START_METHODS)
@pytest.mark.parametrize("maker", ["fork", "spawn", "forkserver"])
def test_start_methods_do_not_matter(processes: Processes, maker: str, taker: str) -> None:
    """A queue of one context's parts serves processes of another."""
    iq = IterableQueue[int](maxsize=1, context=context_of(maker))
    producing = _by_process(context_of(taker), processes, actors.use, iq.get_producer())
    consuming = _by_process(context_of(taker), processes, actors.use, iq.get_consumer())
    iq.close()
    assert producing() == "put"
    assert consuming() == [1, 2]
    assert ends(iq) == "done"


@FORKS
def test_it_travels_by_plain_fork() -> None:
    iq = IterableQueue[int]()
    producer, consumer, worker = iq.get_producer(), iq.get_consumer(), iq.get_worker()
    back, there = Pipe(duplex=False)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            with producer:
                producer.put(1)
            with iq.get_producer() as made_there:
                made_there.put(2)
            with worker:
                assert worker.get() == 1
                worker.put(3)
            there.send([consumer.get() for _ in range(2)])
            consumer.close()
            status = 0
        finally:
            os._exit(status)
    assert back.poll(PATIENCE_S)
    assert back.recv() == [2, 3]
    assert os.waitpid(pid, 0) == (pid, 0)
    iq.close()
    for endpoint in (producer, consumer, worker):
        assert endpoint.closed
    assert ends(iq) == "done"
    assert iq.join(0)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_producer_for_each_of_many_tasks(context: Context, workers: int) -> None:
    """Slots and files are used again: nothing grows with the number of tasks."""
    tasks = 500 if workers == 1 else 100
    iq = IterableQueue[int](context=context)
    directory = Path(core_of(iq).address.path)
    with ProcessPoolExecutor(workers, mp_context=context) as executor:
        slots = 0
        for task in range(tasks):
            executor.submit(actors.put_and_close, iq.get_producer(), [task]).result(PATIENCE_S)
            if task == 20:
                slots = iq._core.ledger.head[cells_.SLOTS]
        assert iq._core.ledger.head[cells_.SLOTS] <= slots + 2
        assert len(list(directory.iterdir())) < 20
    iq.close()
    assert sorted(iq.get_consumer()) == list(range(tasks))
    assert ends(iq) == "done"


def test_many_tasks_at_once(context: Context) -> None:
    """Whose pickles wait for a free worker process."""
    with (
        IterableQueue[int](context=context) as iq,
        ProcessPoolExecutor(2, mp_context=context) as executor,
    ):
        futures = [
            executor.submit(actors.put_and_close, iq.get_producer(), [task]) for task in range(100)
        ]
        for future in futures:
            future.result(PATIENCE_S)
    assert sorted(iq.get_consumer()) == list(range(100))
    assert ends(iq) == "done"


def test_a_task_that_ends_before_it_uses_its_producer(context: Context) -> None:
    """The endpoint was there before the worker, so one that was forked has a copy of it as well."""
    iq = IterableQueue[int](context=context)
    source = iq.get_consumer()
    out = iq.get_producer()
    iq.close()
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        executor.submit(actors.nothing, out).result(PATIENCE_S)
        with pytest.raises(ProducerFailed, match="dropped, without having been used, by the proc"):
            source.get(timeout=PATIENCE_S)


@FORKS
def test_what_arrives_in_a_forked_process_is_not_the_copy_that_was_inherited() -> None:
    """Unless that was used before: then it is."""
    iq = IterableQueue[int]()
    source = iq.get_consumer()
    outs = [iq.get_producer(), iq.get_producer()]
    iq.close()
    sent = [pickle.dumps(out) for out in outs]
    back, there = Pipe(duplex=False)

    def child() -> Iterator[object]:
        copy, used = outs
        came = pickle.loads(sent[0])
        yield came is copy
        for call in (lambda: copy.put(1), copy.clone, copy.qsize):
            try:
                yield call()
            except EndpointElsewhere as refusal:
                yield str(refusal)
        copy.close()
        yield copy.closed
        came.put(2)
        came.close()
        used.put(3)
        yield pickle.loads(sent[1]) is used
        used.close()

    pid = os.fork()
    if pid == 0:
        try:
            there.send(list(child()))
        finally:
            os._exit(0)
    assert back.poll(PATIENCE_S)
    is_copy, *refusals, is_closed, is_used = back.recv()
    os.waitpid(pid, 0)
    assert (is_copy, is_closed, is_used) == (False, True, True)
    for refusal in refusals:
        assert refusal.startswith(f"producer 2 has come to process {pid} by a pickle as well, and")
    assert sorted(source) == [2, 3]
    assert ends(iq) == "done"


@FORKS
@pytest.mark.parametrize("kind", ["producer", "consumer"])
def test_what_a_forked_process_was_given_is_what_arrives_as_well(kind: str) -> None:
    iq = IterableQueue[int]()
    endpoint = getattr(iq, f"get_{kind}")()
    sent = pickle.dumps(endpoint)
    back, there = Pipe(duplex=False)

    def child(given: Any) -> None:
        there.send((pickle.loads(sent) is given, given.qsize()))

    process = get_context("fork").Process(target=child, args=(endpoint,))
    process.start()
    assert back.poll(PATIENCE_S)
    assert back.recv() == (True, 0)
    process.join(PATIENCE_S)


def test_a_thread_queue_does_not_travel() -> None:
    iq = IterableQueue[int].threaded()
    for thing in (iq, iq.get_producer(), iq.get_consumer(), iq.get_worker()):
        with pytest.raises(TypeError, match=r"IterableQueue\(\)"):
            pickle.dumps(thing)


@FORKS
def test_a_thread_queue_in_a_forked_child_says_so() -> None:
    iq = IterableQueue[int].threaded()
    producer = iq.get_producer()
    producer.put(1)
    back, there = Pipe(duplex=False)
    pid = os.fork()
    if pid == 0:
        for call in (lambda: producer.put(2), iq.get_consumer, iq.close, producer.close):
            try:
                there.send(repr(call()))
            except Exception as refusal:
                there.send(refusal)
        os._exit(0)
    for _ in range(4):
        assert back.poll(PATIENCE_S)
        error = back.recv()
        assert isinstance(error, EndpointElsewhere)
        assert str(os.getpid()) in str(error)
    os.waitpid(pid, 0)
    producer.close()
    iq.close()
    assert list(iq.get_consumer()) == [1]


# Whose it is


@pytest.mark.parametrize("kind", ["producer", "consumer", "worker"])
def test_the_first_process_that_takes_it_has_it(stage: Stage, kind: str) -> None:
    iq = stage.queue()
    endpoint = getattr(iq, f"get_{kind}")()
    owner = stage.cast(endpoint)
    owner.run(actors.nothing)
    calls: list[Callable[[], object]] = [
        endpoint.close,
        endpoint.clone,
        endpoint.qsize,
        endpoint.empty,
        endpoint.__enter__,
        lambda: pickle.dumps(endpoint),
    ]
    if kind != "consumer":
        calls += [lambda: endpoint.put(1), lambda: endpoint.fail(ValueError())]
    if kind != "producer":
        calls += [lambda: endpoint.get(timeout=1), endpoint.get_nowait, lambda: next(endpoint)]
    before = iq.statistics()
    for call in calls:
        with pytest.raises(EndpointElsewhere) as caught:
            call()
        assert str(owner.pid) in str(caught.value)
    assert iq.statistics() == before
    owner.run(actors.close)
    assert iq.statistics()[:3] == (0, 0, 0)


def test_the_first_to_open_a_pickle_has_it(stage: Stage) -> None:
    iq = stage.queue()
    producer = iq.get_producer()
    data = pickle.dumps(producer)
    first, second = stage.cast(None), stage.cast(None)
    for puppet in (first, second):
        assert "producer 1" in puppet.run(actors.open_pickle, data)  # never raises
    with pytest.raises(EndpointElsewhere, match=str(first.pid)):
        second.run(actors.on_opened, actors.put, 0)
    with pytest.raises(EndpointElsewhere, match=str(first.pid)):
        producer.put(0)
    first.run(actors.on_opened, actors.put, 1)
    second.run(actors.drop_opened)
    del producer
    gc.collect()
    first.run(actors.on_opened, actors.put_and_close, [2])
    iq.close()
    assert list(iq.get_consumer()) == [1, 2]
    assert ends(iq) == "done"


def test_opening_a_pickle_twice_in_one_process_gives_one_endpoint() -> None:
    iq = IterableQueue[int]()
    data = pickle.dumps(iq.get_producer())
    first, second = pickle.loads(data), pickle.loads(data)
    first.put(1)
    second.put(2)
    del first
    gc.collect()
    second.close()
    iq.close()
    assert list(iq.get_consumer()) == [1, 2]
    assert ends(iq) == "done"


def test_what_was_not_used_may_be_handed_on(stage: Stage) -> None:
    iq = stage.queue()
    producer = iq.get_producer()
    courier, writer = stage.cast(None), stage.cast(None)
    data = pickle.dumps(producer)
    courier.run(actors.open_pickle, data)
    onward = courier.run(actors.on_opened, actors.to_pickle)
    writer.run(actors.open_pickle, onward)
    with pytest.raises(EndpointElsewhere, match=str(writer.pid)):
        courier.run(actors.on_opened, actors.put, 0)
    courier.run(actors.drop_opened)
    writer.run(actors.on_opened, actors.put_and_close, [1])
    iq.close()
    assert list(iq.get_consumer()) == [1]
    assert ends(iq) == "done"


def test_the_maker_may_use_what_nobody_has_taken(stage: Stage) -> None:
    iq = stage.queue()
    used, closed, failed = (iq.get_producer() for _ in range(3))
    pickles = [pickle.dumps(endpoint) for endpoint in (used, closed, failed)]
    used.put(1)
    closed.close()
    failed.fail(ValueError("early"))
    for data in pickles:
        late = stage.cast(None)
        late.run(actors.open_pickle, data)
        with pytest.raises((EndpointElsewhere, ProducerClosed)):
            late.run(actors.on_opened, actors.put, 0)
    used.close()
    iq.close()
    consumer = iq.get_consumer()
    assert consumer.get() == 1
    with pytest.raises(ProducerFailed, match="early"):
        consumer.get()


@pytest.mark.parametrize("kind", ["producer", "consumer", "worker"])
def test_what_was_used_stays(context: Context, processes: Processes, kind: str) -> None:
    iq = IterableQueue[int](context=context)
    endpoint = getattr(iq, f"get_{kind}")()
    with endpoint:
        with pytest.raises(TypeError, match=r"clone\(\)"):
            pickle.dumps(endpoint)
        if context.get_start_method() != "fork":
            with pytest.raises(TypeError, match=r"clone\(\)"):
                context.Process(target=actors.nothing, args=(endpoint,)).start()
        twin = endpoint.clone()
        if kind == "producer":
            assert by_argument(context, processes, twin) == "put"
    iq.close()


@pytest.mark.parametrize("make", [IterableQueue[int], IterableQueue[int].threaded])
@pytest.mark.parametrize("copy_", [copy.copy, copy.deepcopy])
@pytest.mark.parametrize("kind", ["producer", "consumer", "worker"])
def test_it_can_not_be_copied(
    make: Callable[[], IterableQueue[int]], copy_: Callable[[Any], Any], kind: str
) -> None:
    endpoint = getattr(make(), f"get_{kind}")()
    with pytest.raises(TypeError, match=r"clone\(\)"):
        copy_(endpoint)


def test_opening_never_raises(stage: Stage, tmp_path: Path) -> None:
    """Neither when the queue is gone, nor when it is broken, or cancelled."""
    puppet = stage.cast(None)
    gone = IterableQueue[int]()
    things: list[object] = [gone.get_producer(), gone.get_consumer(), gone.get_worker(), gone]
    pickles = [pickle.dumps(thing) for thing in things]
    del gone, things
    gc.collect()
    for data in pickles:
        assert puppet.run(actors.open_pickle, data)
        act: Any = actors.make_producer_and_put if data is pickles[-1] else actors.put
        if data is not pickles[1]:
            with pytest.raises(ChannelBroken, match="can't be reached"):
                puppet.run(actors.on_opened, act, 1)
    cancelled = IterableQueue[int]()
    data = pickle.dumps(cancelled.get_producer())
    cancelled.cancel()
    puppet.run(actors.open_pickle, data)
    with pytest.raises(IterableQueueError):
        puppet.run(actors.on_opened, actors.put, 1)


def test_opening_after_a_kill_inside_the_lock(stage: Stage, tmp_path: Path) -> None:
    """Whoever opens a pickle first takes the lock over."""
    iq, inside = stage.queue(), tmp_path / "inside"
    things = [iq.get_producer(), iq.get_producer(), iq.get_producer(), iq]
    data, other, here, queue = (pickle.dumps(thing) for thing in things)
    early, late = stage.cast(None), stage.cast(None)
    early.run(actors.open_pickle, queue)  # takes part before
    lost = stage.cast(iq.get_consumer())
    lost.begin(actors.stay_inside, inside)
    wait_until(inside.exists, "the process is inside the lock")
    os.kill(lost.pid, signal.SIGKILL)
    wait_until(lambda: not lives(lost.pid), "it has been killed")
    early.run(actors.open_pickle, data)
    late.run(actors.open_pickle, other)
    opened = pickle.loads(here)
    for number, puppet in enumerate((early, late)):
        puppet.run(actors.on_opened, actors.put_and_close, [number])
    opened.close()
    iq.close()
    assert list(iq.get_consumer()) == [0, 1]
    assert ends(iq) == "done"


@pytest.mark.usefixtures("semaphore")
def test_opening_does_not_raise_on_a_broken_queue(stage: Stage, tmp_path: Path) -> None:
    iq = stage.queue()
    things = [iq.get_producer(), iq.get_producer(), iq]
    data, other, queue = (pickle.dumps(thing) for thing in things)
    early, late = stage.cast(None), stage.cast(None)
    early.run(actors.open_pickle, queue)  # takes part before
    break_channel(stage, iq, tmp_path / "inside")
    early.run(actors.open_pickle, data)
    late.run(actors.open_pickle, other)
    pickle.loads(data)
    for puppet in (early, late):
        with pytest.raises(ChannelBroken):
            puppet.run(actors.on_opened, actors.put, 1)


@pytest.fixture
def semaphore(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock of queues that are made here is a semaphore, as where there is no mutex for it."""
    monkeypatch.setattr(_mutex, "is_supported", lambda: False)


def break_channel(stage: Stage, iq: IterableQueue[int], inside: Path) -> Puppet[Any]:
    """Kill a process that has the lock before its name is on it, while another one is stopped.

    Returns that other one, which goes on afterwards.
    """
    lost, stopped = (stage.cast(iq.get_consumer()) for _ in range(2))
    stopped.run(actors.nothing)
    os.kill(stopped.pid, signal.SIGSTOP)
    lost.begin(actors.stay_inside, inside, False)
    wait_until(inside.exists, "the process is inside the lock")
    os.kill(lost.pid, signal.SIGKILL)
    wait_until(lambda: not lives(lost.pid), "it has been killed")
    with pytest.raises(ChannelBroken):
        iq.statistics()
    os.kill(stopped.pid, signal.SIGCONT)
    return stopped


# Adrift


def test_an_untouched_endpoint_that_is_dropped_is_closed() -> None:
    iq = IterableQueue[int]()
    iq.get_producer()
    iq.get_worker()
    iq.get_consumer()
    gc.collect()
    iq.close()
    assert ends(iq) == "done"
    with pytest.raises(Done):
        iq.get_consumer().get()


def test_a_pickle_on_its_way_stays_open_while_its_sender_lives(stage: Stage) -> None:
    iq = stage.queue()
    data = pickle.dumps(iq.get_producer())
    gc.collect()
    iq.close()
    reader = stage.cast(iq.get_consumer())
    assert isinstance(reader.begin(actors.get_within, 1.5).error(), iq.Empty)
    assert "adrift" in iq.explain()
    assert "pickled by" in iq.explain()
    finder = stage.cast(None)
    finder.run(actors.open_pickle, data)
    finder.run(actors.on_opened, actors.put_and_close, [1])
    assert reader.run(actors.drain) == [1]
    assert ends(iq) == "done"


@pytest.mark.parametrize("kind", ["producer", "worker", "consumer"])
def test_a_pickle_fails_with_its_sender(stage: Stage, kind: str) -> None:
    iq = stage.queue()
    sender = stage.cast(iq)
    sender.run(pickle_new, kind)
    gc.collect()
    reader = stage.cast(iq.get_consumer())
    iq.close()
    assert isinstance(
        reader.begin(actors.get_within, 1.0).error(), iq.Empty if kind != "consumer" else Done
    )
    if kind == "consumer":
        assert iq.statistics().open_consumers == 2
        os.kill(sender.pid, signal.SIGKILL)
        wait_until(lambda: iq.statistics().open_consumers == 1, "its end is known", 2.0)
        return
    waiting = reader.begin(actors.get)
    os.kill(sender.pid, signal.SIGKILL)
    error = waiting.error(timeout=3.0)
    assert isinstance(error, ProducerFailed)
    assert "never taken" in str(error)
    assert ends(iq) == "failed"


def pickle_new(iq: IterableQueue[int], kind: str) -> int:
    """Pickle a new endpoint, and drop it and its pickle."""
    return len(pickle.dumps(getattr(iq, f"get_{kind}")()))


@FORKS
def test_what_a_forked_child_may_hold_stays_open_while_it_lives(processes: Processes) -> None:
    iq = IterableQueue[int]()
    producer = iq.get_producer()
    here, there = Pipe()
    pid = os.fork()
    if pid == 0:
        there.recv()
        os._exit(0)
    processes.watch(pid)
    del producer
    gc.collect()
    iq.close()
    consumer = iq.get_consumer()
    with pytest.raises(iq.Empty):
        consumer.get(timeout=1.2)
    assert "inherited by children" in iq.explain()
    here.send(None)
    os.waitpid(pid, 0)
    with pytest.raises(ProducerFailed, match="never taken"):
        consumer.get(timeout=3.0)
    assert ends(iq) == "failed"


@FORKS
def test_an_unrelated_fork_does_not_hold_what_was_made_after_it(processes: Processes) -> None:
    iq = IterableQueue[int]()
    here, there = Pipe()
    pid = os.fork()
    if pid == 0:
        there.recv()
        os._exit(0)
    processes.watch(pid)
    iq.get_producer()
    gc.collect()
    iq.close()
    with pytest.raises(Done):
        iq.get_consumer().get(timeout=3.0)
    here.send(None)
    os.waitpid(pid, 0)


def test_one_in_a_list_fails_with_the_process_that_was_given_it(stage: Stage) -> None:
    """Which never looked for it there."""
    iq = stage.queue()
    lost = stage.cast([iq.get_producer()])
    lost.run(actors.nothing)
    gc.collect()
    reader = stage.cast(iq.get_consumer())
    iq.close()
    waiting = reader.begin(actors.get)
    os.kill(lost.pid, signal.SIGKILL)
    assert isinstance(waiting.error(timeout=3.0), ProducerFailed)
    assert ends(iq) == "failed"


NO_GUARD = """
    import multiprocessing
    from iterable_queue import IterableQueue, ProducerFailed

    def produce(out):
        with out:
            out.put(1)

    iq = IterableQueue()
    with iq:
        out = iq.get_producer()
        process = multiprocessing.get_context({method!r}).Process(target=produce, args=(out,))
        process.start()
        del out
    try:
        print(list(iq.get_consumer()))
    except ProducerFailed as error:
        print("ProducerFailed:", error)
    process.join()
    print("exit code", process.exitcode)
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_missing_main_guard_does_not_hang_the_others(tmp_path: Path, method: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(NO_GUARD).format(method=method))
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ProducerFailed: "), done.stdout
    assert done.stdout.endswith("exit code 1\n")
    assert "freeze_support" in done.stderr  # multiprocessing's own explanation


# What is left


def core_of(iq: IterableQueue[Any]) -> SharedCore:
    """This process's part in the queue."""
    assert isinstance(iq._core, SharedCore)
    return iq._core


def traces(iq: IterableQueue[Any]) -> list[Path]:
    """The queue's directory and its semaphores, those that are there."""
    address = core_of(iq).address
    semaphores = list(Path("/dev/shm").glob(f"sem.iq-{address.token}*"))
    return [path for path in (Path(address.path), *semaphores) if path.exists()]


def watcher(iq: IterableQueue[Any]) -> Callable[[], bool]:
    """Says, without holding the queue, whether nothing of it is left."""
    paths = traces(iq)
    assert len(paths) == 4 + (not _mutex.is_supported()), "a semaphore for the lock, if need be"
    return lambda: not any(path.exists() for path in paths)


def has_ended(pid: int) -> bool:
    """Whether that process has."""
    return not lives(pid)


@pytest.mark.parametrize("last", ["maker", "other"])
def test_the_last_one_out_leaves_nothing(stage: Stage, last: str) -> None:
    iq = stage.queue()
    gone = watcher(iq)
    producer, consumer = stage.cast(iq.get_producer()), stage.cast(iq.get_consumer())
    iq.close()
    producer.run(actors.put_and_close, [1])
    assert consumer.run(actors.drain_and_close) == [1]
    if last == "other":
        del iq
        gc.collect()
        assert not gone()
        producer.go()
        consumer.go()
    else:
        producer.go()
        consumer.go()
        assert not gone()
        del iq
        gc.collect()
    wait_until(gone, "nothing is left", 5.0)


def test_processes_that_leave_together_leave_nothing(stage: Stage) -> None:
    """The maker has gone, and all the others end at the same moment."""
    for _ in range(8 if stage.method == "fork" else 2):
        iq = stage.queue()
        gone = watcher(iq)
        crew = [stage.cast(iq.get_consumer()) for _ in range(4)]
        iq.close()
        for puppet in crew:
            puppet.run(actors.drain)
        del iq
        gc.collect()
        for puppet in crew:
            puppet.strings.send(None)
        for puppet in crew:
            puppet.process.join(PATIENCE_S)
        wait_until(gone, "nothing is left", 5.0)


@FORKS
def test_a_forked_child_that_never_took_part_leaves_nothing(processes: Processes) -> None:
    stage = Stage(context_of("fork"), processes)
    iq = stage.queue()
    gone = watcher(iq)
    bystander = stage.cast(None)
    bystander.run(actors.nothing)
    iq.close()
    del iq
    gc.collect()
    stage.end()
    wait_until(gone, "nothing is left", 5.0)


def test_the_survivor_of_kills_leaves_nothing(stage: Stage) -> None:
    iq = stage.queue()
    gone = watcher(iq)
    producer, consumer = stage.cast(iq.get_producer()), stage.cast(iq.get_consumer())
    producer.run(actors.put, 1)
    consumer.run(actors.get)
    crew: list[Puppet[Any]] = [producer, consumer]
    for puppet in crew:
        os.kill(puppet.pid, signal.SIGKILL)
        wait_until(partial(has_ended, puppet.pid), "it has been killed")
    del iq
    gc.collect()
    assert gone()


@pytest.mark.usefixtures("semaphore")
def test_a_broken_queue_leaves_nothing(stage: Stage, tmp_path: Path) -> None:
    iq = stage.queue()
    gone = watcher(iq)
    other = stage.cast(iq.get_consumer())
    continued = break_channel(stage, iq, tmp_path / "inside")
    assert isinstance(other.begin(actors.get).error(), ChannelBroken)
    with pytest.raises(ChannelBroken):
        iq.close()
    for puppet in (other, continued):
        puppet.go()
    del iq
    gc.collect()
    wait_until(gone, "nothing is left", 5.0)


@pytest.mark.parametrize("moment", ["named", "before its name is written"])
def test_a_queue_leaves_nothing_after_a_kill_inside_the_lock(
    stage: Stage, tmp_path: Path, moment: str
) -> None:
    """Nobody has found out before the last one leaves."""
    iq, inside = stage.queue(), tmp_path / "inside"
    gone = watcher(iq)
    lost = stage.cast(iq.get_consumer())
    lost.begin(actors.stay_inside, inside, moment == "named")
    wait_until(inside.exists, "the process is inside the lock")
    os.kill(lost.pid, signal.SIGKILL)
    wait_until(lambda: not lives(lost.pid), "it has been killed")
    del iq
    gc.collect()
    # What could not be removed without the lock is swept up.
    assert _run_new(stage.processes, make_queue_and_tell)
    wait_until(gone, "nothing is left", 5.0)


def test_the_next_queue_sweeps_up_after_a_massacre(stage: Stage) -> None:
    victims = [stage.cast(None) for _ in range(2)]
    paths = [Path(path) for victim in victims for path in victim.run(make_queue_and_tell)]
    assert all(path.exists() for path in paths)
    survivor = stage.cast(None)
    kept = [Path(path) for path in survivor.run(make_queue_and_tell)]
    for victim in victims:
        os.kill(victim.pid, signal.SIGKILL)
        wait_until(partial(has_ended, victim.pid), "it has been killed")
    # From here on any queue that is made, by another test too, may remove them.
    assert _run_new(stage.processes, make_queue_and_tell)
    assert not any(path.exists() for path in paths)
    assert all(path.exists() for path in kept)  # whose maker lives


def _run_new(processes: Processes, act: Callable[[None], Any]) -> Any:
    """What *act* returns in a process that has inherited nothing of this one's."""
    other = Stage(context_of("spawn"), processes)
    try:
        return other.cast(None).run(act)
    finally:
        other.end()


def make_queue_and_tell(held: None) -> list[str]:
    """A queue of this process's own, and where its parts are."""
    actors.make_queue(None)
    iq: IterableQueue[int] = actors._kept.iq
    return [str(path) for path in traces(iq)]


# Other packages in multiprocessing's way


@pytest.mark.parametrize("method", START_METHODS)
def test_lambdas_are_items_with_the_dill_based_multiprocess(
    method: str, processes: Processes
) -> None:
    package: Any = pytest.importorskip("multiprocess")
    context = package.get_context(method)
    iq: IterableQueue[Callable[[int], int]] = IterableQueue(context=context)
    process = processes.start(context.Process(target=put_lambdas, args=(iq.get_producer(),)))
    iq.close()
    assert [f(10) for f in iq.get_consumer()] == [11, 20]
    process.join(PATIENCE_S)
    assert process.exitcode == 0
    assert ends(iq) == "done"


def put_lambdas(out: Any) -> None:
    """Items that the standard library's pickle refuses."""
    with out:
        step: int = 1
        add: Callable[[int], int] = lambda n: n + step  # noqa: E731 - that is the point
        double: Callable[[int], int] = lambda n: n * 2  # noqa: E731
        out.put_many([add, double])


@pytest.mark.parametrize("method", START_METHODS)
def test_billiard(method: str, processes: Processes) -> None:
    package: Any = pytest.importorskip("billiard")
    context = package.get_context(method)
    iq: IterableQueue[int] = IterableQueue(maxsize=1, context=context)
    process = processes.start(
        context.Process(target=actors.put_and_close, args=(iq.get_producer(), [1, 2, 3]))
    )
    lost = processes.start(
        context.Process(target=actors.leave_by_exit, args=(iq.get_producer(), 3))
    )
    iq.close()
    consumer = iq.get_consumer()
    assert [consumer.get() for _ in range(3)] == [1, 2, 3]
    with pytest.raises(ProducerFailed):
        consumer.get()
    for ended in (process, lost):
        ended.join(PATIENCE_S)
    assert process.exitcode == 0
    assert ends(iq) == "failed"

"""Crossing: that endpoints and queues travel any road that pickles, and belong to one process."""

from __future__ import annotations

import pickle
from queue import Empty
from typing import Any

from iterable_queue._clock import monotonic
from iterable_queue._errors import Done, EndpointElsewhere, ProducerFailed
from iterable_queue.testing import _actors
from iterable_queue.testing._conformance import QueueLike
from iterable_queue.testing._stage import (
    DEATH_S,
    NotApplicable,
    Stage,
    dropping,
    holds,
    promise_between_processes,
    raises,
    same,
    same_items,
    starting,
    within,
)

ITEMS = [1, "two", [3.0]]
"""What is put and taken on the far side of each road."""


def _is_done(iq: QueueLike) -> None:
    """Both ends have travelled and closed, so the queue is done, and nothing was lost."""
    now = iq.statistics()
    seen = (now.open_producers, now.open_consumers, now.put, now.taken, now.finished, now.lost)
    n = len(ITEMS)
    same(seen, (0, 0, n, n, n, 0), "open producers, consumers; items put, taken, finished, lost")
    iq.close()
    same(iq.join(1.0), True, "join()")


@promise_between_processes
def endpoints_cross_as_arguments(stage: Stage) -> None:
    """Producers, consumers and workers can be handed to a process as its arguments."""
    iq = stage.make()
    takers = [
        stage.start(_actors.consume, iq.get_consumer()),
        stage.start(_actors.consume_with, iq.get_consumer()),
        stage.start(_actors.expand, iq.get_worker(), 0),
    ]
    makers = [
        stage.start(act, iq.get_producer(), range(first, first + 50))
        for first, act in ((0, _actors.produce), (50, _actors.produce_many))
    ]
    iq.close()
    for maker in makers:
        maker.result()
    same_items([item for taker in takers for item in taker.result()], range(100))


@promise_between_processes
def endpoints_cross_inside_other_arguments(stage: Stage) -> None:
    """Endpoints can be handed to a process inside any structure."""
    iq = stage.make()
    ends = {"producers": [iq.get_producer()], "consumers": [iq.get_consumer()]}
    actor = stage.start(_actors.use_nested, ends, ITEMS)
    same(actor.result(), ITEMS, "the items taken")
    _is_done(iq)


@promise_between_processes
def a_queue_crosses(stage: Stage) -> None:
    """The queue itself can be handed to a process, which makes endpoints of its own on it."""
    iq = stage.make()
    actor = stage.start(_actors.use_queue, iq, ITEMS)
    same(actor.result(), ITEMS, "the items taken")
    actor.gone()
    same(iq.statistics().state, "open", "the state, when a process that had a copy has ended")
    iq.get_producer().close()
    _is_done(iq)


@promise_between_processes
def endpoints_cross_by_pipe(stage: Stage) -> None:
    """Endpoints can be sent through a pipe."""
    iq = stage.make()
    here, there = stage.member("Pipe")()
    actor = stage.start(_actors.use_received, there)
    there.close()
    out, source = iq.get_producer(), iq.get_consumer()
    here.send((out, source, ITEMS))
    same(actor.result(), ITEMS, "the items taken")
    here.close()
    _is_done(iq)


@promise_between_processes
def endpoints_cross_by_another_queue(stage: Stage) -> None:
    """Endpoints can be put on another queue."""
    iq = stage.make()
    road = stage.member("Queue")()
    actor = stage.start(_actors.use_received, road)
    out, source = iq.get_producer(), iq.get_consumer()
    road.put((out, source, ITEMS))
    same(actor.result(), ITEMS, "the items taken")
    road.close()
    road.join_thread()
    _is_done(iq)


@promise_between_processes
def endpoints_cross_by_a_queue_of_the_same_kind(stage: Stage) -> None:
    """Endpoints can be items on a queue like their own."""
    iq, road = stage.make(), stage.make()
    actor = stage.start(_actors.receive_by_consumer, road.get_consumer())
    out, source = iq.get_producer(), iq.get_consumer()
    with road, road.get_producer() as sender:
        sender.put((out, source, ITEMS))
    same(actor.result(), ITEMS, "the items taken")
    _is_done(iq)


@promise_between_processes
def endpoints_cross_as_pool_tasks(stage: Stage) -> None:
    """Endpoints can be arguments of a task of a Pool."""
    iq = stage.make()
    pool = stage.member("Pool")
    with starting():
        started = pool(1, _actors.announce, (stage.path,))
    with started as members:
        task = members.apply_async(_actors.use_task, (iq.get_producer(), iq.get_consumer(), ITEMS))
        same(task.get(stage.deadline - monotonic()), ITEMS, "the items taken")
        members.close()
        members.join()
    stage.pool_ended()
    _is_done(iq)


@promise_between_processes
def endpoints_cross_as_executor_tasks(stage: Stage) -> None:
    """Endpoints can be arguments of a task of a ProcessPoolExecutor."""
    from concurrent.futures import ProcessPoolExecutor

    context: Any = stage.context
    module = getattr(context, "__name__", None) or type(context).__module__
    if module.partition(".")[0] != "multiprocessing":
        raise NotApplicable(f"ProcessPoolExecutor takes no contexts of {module}")
    iq = stage.make()
    with (
        starting(),
        ProcessPoolExecutor(
            1, mp_context=context, initializer=_actors.announce, initargs=(stage.path,)
        ) as executor,
    ):
        task = executor.submit(_actors.use_task, iq.get_producer(), iq.get_consumer(), ITEMS)
        same(task.result(stage.deadline - monotonic()), ITEMS, "the items taken")
    stage.pool_ended()
    _is_done(iq)


@promise_between_processes
def an_endpoint_belongs_to_the_process_that_takes_it(stage: Stage) -> None:
    """In any other process each call raises EndpointElsewhere, with the pid, and does nothing."""
    iq = stage.make()
    out, source = iq.get_producer(), iq.get_consumer()
    actor = stage.start(_actors.hold_open, out)
    pid = actor.wait("ready")
    same(source.get(), pid, "the item taken")
    before = iq.statistics()
    calls = (out.put_nowait, out.put)
    for error in (
        *[raises(EndpointElsewhere, call, 1) for call in calls],
        raises(EndpointElsewhere, out.put_many, [1]),
        raises(EndpointElsewhere, out.clone),
        raises(EndpointElsewhere, out.qsize),
        raises(EndpointElsewhere, out.__enter__),
        raises(EndpointElsewhere, out.fail, LookupError()),
        raises(EndpointElsewhere, out.close),
    ):
        holds(str(pid) in str(error), f"the text names process {pid}: {error}")
    same(iq.statistics()[:6], before[:6], "the open endpoints, and items put, taken and finished")
    actor.tell("go")
    actor.result()
    iq.close()
    same(list(source), ["still here"], "what the owner put afterwards")


@promise_between_processes
def a_consumer_belongs_to_the_process_that_takes_it(stage: Stage) -> None:
    """A consumer that another process uses raises EndpointElsewhere here, and takes nothing."""
    iq = stage.make()
    out, source = iq.get_producer(), iq.get_consumer()
    out.put_many(range(3))
    actor = stage.start(_actors.take_and_hold, source)
    same(actor.wait("holds"), 0, "the item taken by the other process")
    for call in (source.get, source.get_nowait, source.__next__, source.clone, source.close):
        error = raises(EndpointElsewhere, call)
        holds(str(actor.pid) in str(error), f"the text names process {actor.pid}: {error}")
    raises(EndpointElsewhere, source.get_many, 1)
    raises(EndpointElsewhere, source.qsize)
    raises(EndpointElsewhere, source.__enter__)
    same(iq.qsize(), 2, "qsize()")
    actor.tell("go")
    out.close()
    iq.close()
    same(actor.result(), [0, 1, 2], "the items taken by the other process")


@promise_between_processes
def an_endpoint_given_to_a_process_is_its_own(stage: Stage) -> None:
    """An endpoint belongs to the process that was started with it, before that has used it."""
    iq = stage.make()
    out, source, worker = iq.get_producer(), iq.get_consumer(), iq.get_worker()
    actor = stage.start(_actors.do_nothing, out, source, worker)
    actor.wait("ready")
    raises(EndpointElsewhere, out.put, 1)
    raises(EndpointElsewhere, source.get_nowait)
    raises(EndpointElsewhere, worker.get_nowait)
    now = iq.statistics()
    seen = (now.open_producers, now.open_consumers, now.open_workers)
    same(seen, (1, 1, 1), "the open producers, consumers and workers")
    actor.tell("go")
    actor.result()


@promise_between_processes
def copies_never_change_the_count(stage: Stage) -> None:
    """Copies by fork or by pickling never change the count, nor do they when they are dropped."""
    iq = stage.make()
    out, source, worker = iq.get_producer(), iq.get_consumer(), iq.get_worker()
    actor = stage.start(_actors.do_nothing)
    pickles = [pickle.dumps(end) for end in (out, source, worker, iq) for _ in range(3)]
    actor.wait("ready")
    actor.tell("go")
    actor.gone()
    now = iq.statistics()
    seen = (now.open_producers, now.open_consumers, now.open_workers)
    same((*seen, now.state), (1, 1, 1, "open"), "the open producers, consumers, workers; state")
    holds(pickles, "pickles")
    out.put(1)
    same(source.get(), 1, "the item taken")
    for end in (out, worker, source):
        end.close()
    now = iq.statistics()
    seen = (now.open_producers, now.open_consumers, now.open_workers)
    same(seen, (0, 0, 0), "the open producers, consumers and workers")


@promise_between_processes
def the_first_to_open_a_pickle_takes_it(stage: Stage) -> None:
    """Of the same pickle opened twice the first takes it; opening it never raises, calls do."""
    iq = stage.make()
    out, source = iq.get_producer(), iq.get_consumer()
    data = pickle.dumps(out)
    first = stage.start(_actors.open_pickle, data)
    same(first.result(), None, "why the first can't use it")
    second = stage.start(_actors.open_pickle, data)
    holds(second.result(), "the second can't use it")
    closed = iq.get_producer()
    data = pickle.dumps(closed)
    closed.close()
    third = stage.start(_actors.open_pickle, data)
    holds(third.result(), "one that was closed before can't be used")
    iq.close()
    same(list(source), [first.role.name], "the items taken")


@promise_between_processes
def a_used_endpoint_stays(stage: Stage) -> None:
    """Once used, an endpoint stays: pickling it raises TypeError that names clone()."""
    iq = stage.make()
    out, source, worker = iq.get_producer(), iq.get_consumer(), iq.get_worker()
    out.put(1)
    same(source.get(), 1, "the item taken")
    raises(Empty, worker.get_nowait)
    for end in (out, source, worker):
        error = raises(TypeError, pickle.dumps, end)
        holds("clone" in str(error), f"the text names clone(): {error}")
    actor = stage.start(_actors.open_pickle, pickle.dumps(out.clone()))
    same(actor.result(), None, "why a pickled clone can't be used")
    out.put("after")
    same_items([source.get(), source.get()], [actor.role.name, "after"])


@promise_between_processes
def an_unused_endpoint_may_be_handed_on(stage: Stage) -> None:
    """Until it has used it, a process that took an endpoint may hand it on."""
    iq = stage.make()
    source = iq.get_consumer()
    here, there = stage.member("Pipe")()
    actor = stage.start(_actors.send_back, there, iq.get_producer())
    there.close()
    out = here.recv()
    here.close()
    out.put("handed on")
    actor.tell("go")
    actor.result()
    actor.gone()
    out.put("still open")
    out.close()
    iq.close()
    same(list(source), ["handed on", "still open"], "the items taken")


@promise_between_processes
def an_endpoint_adrift_is_open_while_its_sender_lives(stage: Stage) -> None:
    """An endpoint that was pickled, dropped and not opened stays open until its sender's death."""
    iq = stage.make()
    source = iq.get_consumer()
    here, there = stage.member("Pipe")()
    actor = stage.start(_actors.send_new_producer, iq, there)
    there.close()
    actor.wait("sent")
    data = here.recv_bytes()
    here.close()
    iq.close()
    raises(Empty, source.get_nowait)
    same(iq.statistics().open_producers, 1, "the open producers")
    holds("adrift" in iq.explain(), f"explain() names it: {iq.explain()}")
    actor.tell("go")
    actor.gone()
    began = monotonic()
    raises(ProducerFailed, source.get)
    within(DEATH_S, monotonic() - began, "a consumer learns of the sender's death")
    late = pickle.loads(data)
    raises(EndpointElsewhere, late.put, 1)


@promise_between_processes
def the_maker_may_use_what_nobody_took(stage: Stage) -> None:
    """Until an endpoint is taken its maker may use it, close it or fail it, pickled or not."""
    iq = stage.make()
    used, closed, source = iq.get_producer(), iq.get_producer(), iq.get_consumer()
    data = pickle.dumps(used)
    pickle.dumps(closed)
    closed.close()
    used.put("by the maker")
    actor = stage.start(_actors.open_pickle, data)
    holds(actor.result(), "the pickle of one that its maker has used can't be used")
    used.close()
    iq.close()
    same(list(source), ["by the maker"], "the items taken")
    raises(Done, source.get)


@promise_between_processes
def a_pickled_queue_is_not_closed_by_being_dropped(stage: Stage) -> None:
    """Once the queue itself has been pickled, its maker no longer closes it by dropping it."""
    iq = stage.make()
    source = iq.get_consumer()
    data = pickle.dumps(iq)
    with dropping():
        del iq
    raises(Empty, source.get_nowait)
    again: QueueLike = pickle.loads(data)
    with again.get_producer() as out:
        out.put("by another handle")
    again.close()
    same(list(source), ["by another handle"], "the items taken")

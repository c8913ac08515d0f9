"""`statistics` and `explain`: what the ledger says, for programs and for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iterable_queue import _cells as cells_
from iterable_queue._cells import (
    CONSUMER,
    FORKED,
    KIND_NAMES,
    PRODUCER,
    QUEUE,
    SENT,
    STARTED,
    UNASKED,
    USED,
    WORKER,
    SlotView,
)
from iterable_queue._protocols import Statistics

if TYPE_CHECKING:
    from iterable_queue._core import Core


def statistics(core: Core) -> Statistics:
    """A snapshot. Called with the lock held."""
    head = core.ledger.head
    put, queued, taken, finished = core.ledger.totals()
    putting = getting = 0
    for view in core.ledger.views(PRODUCER, CONSUMER, WORKER):
        if view.kind == PRODUCER:
            putting += view.blocked
        else:
            getting += view.blocked
    return Statistics(
        open_producers=head[cells_.PRODUCERS],
        open_consumers=head[cells_.CONSUMERS],
        open_workers=head[cells_.WORKERS],
        put=put,
        taken=taken,
        finished=finished,
        queued=queued,
        lost=head[cells_.LOST],
        redelivered=head[cells_.REDELIVERED],
        dropped=head[cells_.DROPPED],
        blocked_producers=putting,
        blocked_consumers=getting,
        highest_queued=head[cells_.HIGHEST],
        failures=head[cells_.FAILED],
        state=core.ledger.state_name(),
    )


def explain(core: Core) -> str:
    """Why the queue is not done, one line for each reason and each endpoint. Lock held."""
    stats = statistics(core)
    views = list(core.ledger.views(QUEUE, PRODUCER, CONSUMER, WORKER))
    lines = [
        f"{_summary(core, stats, views)}",
        f"  items: {stats.put} put, {stats.taken} taken, {stats.finished} finished, "
        f"{stats.queued} queued, {stats.lost} lost",
    ]
    lines += [f"  {_line(core, view)}" for view in views]
    for count, what in (
        (stats.blocked_producers, "put for room"),
        (stats.blocked_consumers, "get for an item or the end"),
    ):
        if count:
            lines.append(f"  {count} caller(s) wait in {what}")
    lines += [f"  {remark}" for remark in core.remarks()]
    return "\n".join(lines)


def _summary(core: Core, stats: Statistics, views: list[SlotView]) -> str:
    if stats.state in ("done", "failed"):
        in_hand = core.ledger.in_hand()
        if in_hand:
            return f"{stats.state}, but {in_hand} item(s) are still in hand"
        return "done" if stats.state == "done" else f"failed: {core.ledger.failure()}"
    if stats.state in ("cancelled", "broken", "abandoned"):
        return f"{stats.state}: {core.ledger.refusal()}"
    reasons: list[str] = []
    if stats.state == "open":
        reasons.append("the queue has not been closed")
    if stats.open_producers:
        reasons.append(f"{stats.open_producers} producer(s) are open")
    busy = sum(view.kind == WORKER and _is_busy(view) for view in views)
    if busy:
        reasons.append(f"{busy} worker(s) may still put")
    held = core.ledger.in_hand()
    if held and core.ledger.head[cells_.REDELIVER]:
        reasons.append(
            f"{held} item(s) are in hand, and come back if their process is killed before the "
            "threads that took them ask for the next one, or close"
        )
    if stats.queued:
        reasons.append(f"{stats.queued} item(s) are left")
        if not stats.open_consumers and not stats.open_workers:
            reasons.append("no consumer is open to take them")
    return f"{stats.state}, not done: " + ", ".join(reasons)


def _is_busy(view: SlotView) -> bool:
    return bool(view.in_hand or view.flags & UNASKED)


def _line(core: Core, view: SlotView) -> str:
    name = "the queue" if view.kind == QUEUE else f"{KIND_NAMES[view.kind]} {view.number}"
    parts = [f"{name}, made at {view.text}"]
    if view.kind == QUEUE:
        parts.append(f"open in {_process(core, view.maker)}: close() it, or leave its `with` block")
    elif view.owner:
        used = "" if view.flags & USED else f", which has not used it yet{_unused(view)}"
        parts.append(f"taken by {_process(core, view.owner)}{used}")
    else:
        unused = "" if view.flags & cells_.DROPPED_COPY else _unused(view)
        parts.append(f"made by {_process(core, view.maker)}, taken by nobody yet{unused}")
        road = _road(core, view)
        if road:
            parts.append(road)
    if view.in_hand:
        parts.append(f"{view.in_hand} in hand")
    if view.kind == WORKER and view.flags & UNASKED:
        parts.append("has not asked for its first item")
    if view.blocked:
        parts.append(f"{view.blocked} thread(s) waiting in a call")
    claims = core.ledger.claims
    active = max(view.stamp, 0 if claims is None else claims.last_put(view.slot))
    idle_s = (core.runtime.now() - active) / 1e9
    parts.append(f"last active {idle_s:.1f} s ago")
    return ", ".join(parts)


def _unused(view: SlotView) -> str:
    """What to do about it: as long as it is not used, nobody can tell whether it will be."""
    if view.kind == CONSUMER:
        return ""  # the end does not wait for it
    return " (use it or close() it; a function that failed before its `with` may still refer to it)"


def _process(core: Core, slot: int) -> str:
    pid = core.pid_of(slot)
    if not slot:
        return "a process that has ended"
    if slot == core.ledger.me:
        return f"this process ({core.name_of(slot)})"
    if not pid:
        return "a process that is being started"
    return f"{core.name_of(slot)} ({'alive' if core.is_alive(slot) else 'dead'})"


def _road(core: Core, view: SlotView) -> str:
    """By which road a copy of an untaken endpoint may have left its maker."""
    roads: list[str] = []
    if view.flags & STARTED:
        roads.append("given to a process as that was started")
    if view.flags & SENT:
        roads.append(f"pickled by {_process(core, view.road)}")
    if view.flags & FORKED:
        roads.append("inherited by children forked since")
    if not roads:
        return ""
    adrift = "adrift: its maker's copy is gone; " if view.flags & cells_.DROPPED_COPY else ""
    return adrift + " and ".join(roads)

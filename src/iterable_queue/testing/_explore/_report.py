"""What a failing schedule looks like: one column for each actor, one row for each step."""

from __future__ import annotations

import re
from typing import Any

from iterable_queue._errors import repr_of
from iterable_queue._explain import explain
from iterable_queue._queue import IterableQueue
from iterable_queue.testing._explore._scheduler import (
    CHECKPOINT,
    FAIL,
    KILL,
    LOCK,
    LOOK,
    RUN,
    SLEEP,
    SPURIOUS,
    START,
    TIME_OUT,
    Actor,
    Kind,
    Schedule,
    Variant,
)
from iterable_queue.testing._explore._simulated import outermost_call

CELL = 44
"""No cell of the table is wider than this, in characters."""

ROWS = 60
"""A longer table is shown without its middle, in rows."""
_IDLE = re.compile(r", last active [0-9.]+ s ago")

VERBS = {
    "put_nowait": "put",
    "get_nowait": "get",
    "__next__": "get",
    "__enter__": "",
    "__exit__": "close",
    "transact": "ends",
}
"""What calls are named in the table, where that differs from their own names."""


class Call:
    """One call of the library by user code.

    Attributes:
        text: what is called, as in `put 3`.
        line: where from.
        frame: its frame, while it lasts: two calls are one if their frames are.
    """

    def __init__(self, frame: Any) -> None:
        self.frame = frame
        name = frame.f_code.co_name
        values = frame.f_locals
        verb = VERBS.get(name, name)
        if name in ("put", "put_nowait"):
            verb = f"put {repr_of(values.get('item'))}"
        elif name == "__exit__" and values.get("exc") is not None:
            verb = "cancel" if isinstance(values.get("self"), IterableQueue) else "fail"
        elif isinstance(values.get("self"), IterableQueue) and verb in ("close", "cancel"):
            verb = f"{verb} the queue"
        caller = frame.f_back
        self.text = verb
        self.line = "" if caller is None else f"{caller.f_code.co_filename}:{caller.f_lineno}"


class Row:
    """One step: what *actor* did from one point to its next."""

    __slots__ = ("actor", "call", "kind", "outcome", "target", "unfinished", "variant", "waits")

    def __init__(self, actor: Actor, variant: Variant, call: Call | None) -> None:
        self.actor = actor
        self.variant = variant
        self.kind: Kind = actor.kind
        self.target: Any = actor.target
        self.call = call
        self.outcome = ""
        self.waits = ""
        self.unfinished = False

    def key(self) -> tuple[object, ...]:
        """What must be the same when the same schedule runs again."""
        name = "" if self.call is None else str(self.call.text).partition(" ")[0]
        return self.actor.name, self.variant, self.kind, name

    def text(self) -> str:
        """The step in words; empty if there is nothing to say about it."""
        call = "" if self.call is None else self.call.text
        inside = f" in {call}" if call else ""
        if self.variant == KILL:
            return f"killed{inside or self._at()}"
        if self.variant == FAIL:
            return f"fails{inside}: {self.outcome}"
        if self.outcome.startswith("killed"):
            return f"{self.outcome}{inside}"
        prefix = {
            TIME_OUT: f"{call}: time is up",
            LOOK: f"{call}: looks who has died",
            SPURIOUS: f"{call}: wakes for nothing",
        }.get(self.variant, "")
        if self.kind == CHECKPOINT:
            return self._at().strip()
        if self.outcome.startswith("raises"):
            return self.outcome
        if self.kind == START and self.variant == RUN:
            return "begins"
        rest = f"{call} {self.outcome}".strip()
        if self.waits:
            rest = f"{call}: waits for {self.waits}"
        elif prefix:
            rest = self.outcome
        elif self.unfinished and not self.outcome:
            rest = f"{call}: wakes" if self.kind == SLEEP else f"{call} ..."
        if prefix and rest:
            return f"{prefix}, {rest.removeprefix(f'{call}: ')}"
        return prefix or rest

    def _at(self) -> str:
        if self.kind != CHECKPOINT:
            return ""
        return f" at {self.target!r}" if self.target else " at a checkpoint"

    def goes_with(self, other: Row) -> bool:
        """Whether *other*, the next row, only says how this one ended."""
        return (
            self.actor is other.actor
            and self.call is not None
            and self.call is other.call
            and self.variant == other.variant == RUN
            and CHECKPOINT not in (self.kind, other.kind)
            and not other.outcome.startswith("killed")
        )


class Rows:
    """The recorder: writes down what happens in one schedule."""

    def __init__(self) -> None:
        self.queues: list[Any] = []
        self.rows: list[Row] = []
        self._calls: dict[int, Call | None] = {}

    def pending(self, actor: Actor) -> None:
        """*actor* is at a point; its last step is complete."""
        frame = outermost_call(2)
        known = self._calls.get(actor.index)
        row = self._row_of(actor)
        if frame is None:
            self._calls[actor.index] = None
            return
        if known is not None and known.frame is frame:
            if row is not None and row.call is known:
                row.unfinished = True
                if actor.kind == SLEEP:
                    row.waits = actor.target.purpose
            return
        self._calls[actor.index] = Call(frame)
        if row is not None and actor.kind == SLEEP:
            row.waits = actor.target.purpose

    def begins(self, actor: Actor, variant: Variant) -> None:
        """The next step is *actor*'s."""
        row = Row(actor, variant, self._calls.get(actor.index))
        if variant == FAIL:
            row.outcome = repr_of(actor.fallible)
        self.rows.append(row)

    def note(self, actor: Actor, outcome: str) -> None:
        """What came of the step."""
        row = self._row_of(actor)
        if row is not None and (outcome or not row.outcome):
            row.outcome = outcome

    def ends(self, actor: Actor, error: BaseException | None) -> None:
        """The actor's function has ended."""
        self._calls[actor.index] = None
        if error is not None:
            row = Row(actor, RUN, None)
            row.outcome = f"raises {type(error).__name__}"
            self.rows.append(row)

    def _row_of(self, actor: Actor) -> Row | None:
        return self.rows[-1] if self.rows and self.rows[-1].actor is actor else None

    # -- where everybody stands ------------------------------------------------------------------

    def stuck(self, schedule: Schedule) -> str:
        """Who waits for what, and what the queues say."""
        lines = [""]
        for actor in schedule.live:
            call = self._calls.get(actor.index)
            where = "" if call is None else f" in {call.text}, called at {call.line}"
            if actor.kind == START:
                what = "has not begun"
            elif actor.kind == SLEEP:
                what = f"waits for {actor.target.purpose}{where}"
            elif actor.kind == LOCK and actor.target.holder is not None:
                what = f"waits for the lock that {actor.target.holder.name} holds{where}"
            else:
                what = f"is{where}" if where else f"is at {actor.target!r}"
            lines.append(f"  {actor.name} {what}")
        running, schedule.current = schedule.current, schedule.main
        for shared in self.queues:
            text = _IDLE.sub("", explain(shared.core)).replace("\n", "\n  ")
            name = f"queue {shared.index + 1}" if len(self.queues) > 1 else "the queue"
            lines.append(f"{name}: {text}")
        schedule.current = running
        return "\n".join(lines)

    def close(self) -> None:
        """Let go of frames, and of what they hold."""
        for row in self.rows:
            if row.call is not None:
                row.call.frame = None
        self._calls.clear()
        self.queues.clear()

    # -- the table -------------------------------------------------------------------------------

    def table(self, actors: list[Actor]) -> str:
        """The steps, one a row, each in the column of its actor."""
        merged: list[Row] = []
        for row in self.rows:
            before = merged[-1] if merged else None
            if before is not None and before.goes_with(row):
                row.outcome = row.outcome or before.outcome
                merged[-1] = row
            elif before is not None and before.kind == START and before.actor is row.actor:
                merged[-1] = row
            else:
                merged.append(row)
        merged = [row for row in merged if row.text()]
        cells = [(actors.index(row.actor), _fit(row.text())) for row in merged]
        widths = [
            max([len(actor.name), *(len(text) for column, text in cells if column == index)])
            for index, actor in enumerate(actors)
        ]
        number = len(str(len(cells)))
        lines = [
            " " * number + "  " + "  ".join(_pad([a.name for a in actors], widths)),
            " " * number + "  " + "  ".join("-" * width for width in widths),
        ]
        for step, (column, text) in enumerate(cells, 1):
            line = [text if column == index else "" for index in range(len(actors))]
            lines.append(f"{step:>{number}}  " + "  ".join(_pad(line, widths)))
        if len(cells) > ROWS:
            left_out = len(cells) - ROWS
            lines[2 + ROWS // 2 : -(ROWS // 2)] = [" " * number + f"  ({left_out} more steps)"]
        return "\n".join(line.rstrip() for line in lines)


def _fit(text: str) -> str:
    text = text.replace("\n", " ")
    return text if len(text) <= CELL else text[: CELL - 3] + "..."


def _pad(row: list[str], widths: list[int]) -> list[str]:
    return [text.ljust(width) for text, width in zip(row, widths, strict=True)]

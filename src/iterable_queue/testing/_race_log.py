"""What has happened in a race, and what is to happen: one file that all processes append to.

    ["rule", ...]     the test has made a rule
    ["at", ...]       somebody has come to a point
    ["past", at]      and goes on from there (`at`: which arrival)
    ["killed", at]    or is about to be killed there
    ["free", rule]    a gate was opened
    ["broken", text]  a rule could not be kept

Each line is written by one `write` to a file opened with O_APPEND, so the file puts everything in
one order, without a lock that somebody might be killed in. A line's end in the file is its name:
after such a write the descriptor's offset is just that. Everything else follows from the order;
the how manieth time a point is come to, say, is the count of arrivals up to that line. Whoever
appends an arrival and then reads up to it knows every rule that was made before.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_right, insort
from collections import Counter
from threading import RLock, get_ident
from typing import Any, Literal, NamedTuple, TypeAlias

from iterable_queue._liveness import runs
from iterable_queue.testing._points import Point

Kind: TypeAlias = Literal["order", "pause", "delay", "kill"]


class Passage(NamedTuple):
    """Somebody came to a point.

    Attributes:
        point: which, and the how manieth time in the block for this very endpoint.
        pid: the process.
        thread: the identifier of the thread in it (`threading.get_ident()`).
    """

    point: Point
    pid: int
    thread: int

    def __str__(self) -> str:
        return f"{self.point} (pid {self.pid})"


class Rule:
    """What the test wants at a point.

    Attributes:
        kind, point: what, and where. Of an order, the point that waits.
        first: of an order, the point that is waited for.
        seconds, seed: of a delay.
        optional: it need not be come to.
        name: its place in the log.
        released: of a pause, the gate is open.
        hits: arrivals at the point, by their places in the log.
        firsts: how often `first` was passed.
        first_killed: pids of those who were killed there.
    """

    def __init__(
        self,
        kind: Kind,
        point: Point,
        first: Point | None = None,
        *,
        seconds: tuple[float, float] = (0.0, 0.0),
        seed: int = 0,
        optional: bool = False,
        name: int = 0,
    ) -> None:
        self.kind: Kind = kind
        self.point = point
        self.first = first
        self.seconds = seconds
        self.seed = seed
        self.optional = optional
        self.name = name
        self.released = False
        self.hits: list[int] = []
        self.firsts = 0
        self.first_killed: list[int] = []

    def time_of(self, at: int) -> int:
        """The how manieth time at the point the arrival *at* is; 0: it is somewhere else."""
        index = bisect_right(self.hits, at)
        return index if index and self.hits[index - 1] == at else 0

    def is_for(self, at: int) -> bool:
        """Whether it says something about the arrival *at*."""
        time = self.time_of(at)
        return time > 0 and self.point.time in (0, time)

    def reached(self) -> bool:
        """Whether the point was come to, that time."""
        return len(self.hits) >= max(self.point.time, 1)

    def first_passed(self) -> bool:
        """Whether an order's first point is behind whoever came there: passed, or died there."""
        assert self.first is not None
        if self.firsts >= self.first.time:
            return True
        dead = sum(not runs(pid) for pid in self.first_killed)
        return self.firsts + dead >= self.first.time

    def __str__(self) -> str:
        match self.kind:
            case "order":
                return f"order: {self.first}, then {self.point}"
            case "delay":
                return f"delay of {self.seconds[0]:g} to {self.seconds[1]:g} s: {self.point}"
            case _:
                return f"{self.kind}: {self.point}"


class RaceLog:
    """One process's view of the log. Threads may share it.

    Attributes:
        rules: by their places in the log.
        arrivals: likewise.
        here: those of them that have not gone on.
        passed: places of those that have, in that order.
        broken: the texts of broken rules.
        over_at: the place of the first of these; 0: none was broken.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.rules: dict[int, Rule] = {}
        self.arrivals: dict[int, Passage] = {}
        self.here: dict[int, Passage] = {}
        self.passed: list[int] = []
        self.killed: list[int] = []
        self.broken: list[str] = []
        self.over_at = 0
        self._times: Counter[Point] = Counter()
        self._offset = 0
        self._lock = RLock()
        self._reading = False

    def create(self) -> None:
        """Make the file. Everything else here raises FileNotFoundError where there is none."""
        os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))

    def append(self, *record: object) -> int:
        """Append a record. Returns its place."""
        line = json.dumps(record).encode() + b"\n"
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.write(fd, line)
            return os.lseek(fd, 0, os.SEEK_CUR)
        finally:
            os.close(fd)

    def arrive(self, point: Point) -> int:
        """This thread has come to *point*."""
        return self.append(
            "at", point.side, point.number, point.operation, point.where, os.getpid(), get_ident()
        )

    def add(self, rule: Rule) -> Rule:
        """Make *rule* known. Returns it as it is kept here."""
        name = self.append(
            "rule", rule.kind, rule.point, rule.first, rule.seconds, rule.seed, rule.optional
        )
        self.read()
        return self.rules[name]

    def read(self) -> None:
        """Take in what was appended since."""
        with self._lock:
            if self._reading:
                return  # a signal handler, or `__del__`, that interrupted just this
            self._reading = True
            try:
                with open(self.path, "rb") as file:
                    file.seek(self._offset)
                    new = file.read()
                for line in new.splitlines(keepends=True):
                    if line.endswith(b"\n"):
                        self._offset += len(line)
                        self._take_in(self._offset, *json.loads(line))
            finally:
                self._reading = False

    def _take_in(self, place: int, what: str, *record: Any) -> None:
        match what:
            case "at":
                *point, pid, thread = record
                self._arrived(place, Point(*point), pid, thread)
            case "past":
                at = record[0]
                self.here.pop(at, None)
                self.passed.append(at)
                for rule in self.rules.values():
                    if rule.first is not None and rule.first.covers(self.arrivals[at].point):
                        rule.firsts += 1
            case "killed":
                at = record[0]
                self.killed.append(at)
                for rule in self.rules.values():
                    if rule.first is not None and rule.first.covers(self.arrivals[at].point):
                        rule.first_killed.append(self.arrivals[at].pid)
            case "rule":
                self._add(place, *record)
            case "free":
                self.rules[record[0]].released = True
            case _:
                self.over_at = self.over_at or place
                self.broken.append(record[0])

    def _arrived(self, place: int, point: Point, pid: int, thread: int) -> None:
        self._times[point] += 1
        arrival = Passage(point._replace(time=self._times[point]), pid, thread)
        self.arrivals[place] = self.here[place] = arrival
        for rule in self.rules.values():
            if rule.point.covers(point):
                rule.hits.append(place)

    def _add(
        self,
        place: int,
        kind: Kind,
        point: list[Any],
        first: list[Any] | None,
        seconds: tuple[float, float],
        seed: int,
        optional: bool,
    ) -> None:
        before = Point(*first) if first is not None else None
        low, high = seconds
        rule = Rule(
            kind,
            Point(*point),
            before,
            seconds=(low, high),
            seed=seed,
            optional=optional,
            name=place,
        )
        for at, arrival in self.arrivals.items():
            if rule.point.covers(arrival.point):
                insort(rule.hits, at)
        if before is not None:
            passed = [self.arrivals[at].point for at in self.passed]
            rule.firsts = sum(before.covers(point) for point in passed)
            killed = [self.arrivals[at] for at in self.killed]
            rule.first_killed = [arrival.pid for arrival in killed if before.covers(arrival.point)]
        self.rules[place] = rule

    def rules_for(self, at: int) -> list[Rule]:
        """The rules about the arrival *at*: kills last, since what else there is comes before."""
        with self._lock:
            rules = [rule for rule in self.rules.values() if rule.is_for(at)]
        return sorted(rules, key=lambda rule: rule.kind == "kill")

    def pid_at(self, point: Point) -> int:
        """The process in which the endpoint of *point* was last seen at any point, or 0."""
        with self._lock:
            for arrival in reversed(self.arrivals.values()):
                seen = arrival.point
                if (seen.side, seen.number) == (point.side, point.number):
                    return arrival.pid
        return 0

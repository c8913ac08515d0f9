"""`top`: this user's queues, as a table, again and again, or as JSON."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Iterable
from itertools import pairwise
from typing import Final, NamedTuple

from iterable_queue._clock import monotonic
from iterable_queue._command._find import Found, find
from iterable_queue._protocols import Statistics

INTERVAL_S: Final = 1.0
HOME, CLEAR_LINE, CLEAR_REST, CLEAR = "\x1b[H", "\x1b[K", "\x1b[J", "\x1b[2J\x1b[H"

HEADINGS: Final = (
    "PID",
    "PROGRAM",
    "MADE AT",
    "AGE",
    "STATE",
    "QUEUED",
    "PUT",
    "TAKEN",
    "PUT/S",
    "TAKEN/S",
    "OPEN",
    "WAITING",
    "LOST",
    "FAILED",
)
LEFT: Final = frozenset({"PROGRAM", "MADE AT", "STATE"})
"""Columns of text; numbers end at the right."""


class Seen(NamedTuple):
    """A queue that was found, with what is counted of it.

    Attributes:
        found: the queue.
        at: when it was looked at, in seconds on the monotonic clock.
        statistics: of a live queue.
        processes: of these, the pid, and whether that lives.
        put_per_s, taken_per_s: since the look before; None: there was none.
    """

    found: Found
    at: float
    statistics: Statistics | None
    processes: tuple[tuple[int, bool], ...] = ()
    put_per_s: float | None = None
    taken_per_s: float | None = None


def run(options: Namespace) -> int:
    """The command. Returns its exit status."""
    if options.json or options.once or not sys.stdout.isatty():
        _once(options)
        return 0
    try:
        _refresh(options)
    except KeyboardInterrupt:
        print()  # that is how one leaves
    return 0


def look(before: Iterable[Seen] = ()) -> list[Seen]:
    """All queues of this user, with rates since *before*."""
    last = {seen.found.path: seen for seen in before}
    return [_seen(found, last.get(found.path)) for found in find()]


def _seen(found: Found, before: Seen | None) -> Seen:
    at = monotonic()
    if found.look is None:
        return Seen(found, at, None)
    statistics = found.look.statistics()
    seen = Seen(found, at, statistics, tuple(found.look.processes()))
    if before is None or before.statistics is None:
        return seen
    passed = max(at - before.at, 1e-9)
    return seen._replace(
        put_per_s=(statistics.put - before.statistics.put) / passed,
        taken_per_s=(statistics.taken - before.statistics.taken) / passed,
    )


def _once(options: Namespace) -> None:
    seen = look()
    if options.interval is not None:
        time.sleep(options.interval)
        seen = look(seen)
    if options.json:
        for each in seen:
            print(json.dumps(as_json(each, options.explain)))
        return
    print("\n".join(table(seen)))
    if options.explain:
        print("\n".join(explanations(seen)))


def _refresh(options: Namespace) -> None:
    seen: list[Seen] = []
    sys.stdout.write(CLEAR)
    while True:
        seen = look(seen)
        size = shutil.get_terminal_size()
        lines = [*table(seen), "", "Ctrl-C ends this."]
        if options.explain:
            lines[-1:-1] = [*explanations(seen), ""]
        shown = (f"{line[: size.columns]}{CLEAR_LINE}" for line in lines[: size.lines - 1])
        sys.stdout.write(HOME + "\n".join(shown) + CLEAR_REST)
        sys.stdout.flush()
        time.sleep(options.interval or INTERVAL_S)


# As a table


def table(seen: list[Seen]) -> list[str]:
    """The lines for people."""
    live = [each for each in seen if each.found.status == "live"]
    lines = _aligned([HEADINGS, *map(_row, live)]) if live else ["No queue of yours is in use."]
    left = sum(each.found.status == "left over" for each in seen)
    if left:
        lines.append(
            f"{left} left over of processes that were killed: "
            "`python -m iterable_queue doctor --clean` removes them."
        )
    lines += [
        f"{each.found.path}: {each.found.why}"
        for each in seen
        if each.found.status == "other version"
    ]
    return lines


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if heading in LEFT else cell.rjust(width)
            for cell, width, heading in zip(row, widths, HEADINGS, strict=True)
        ).rstrip()
        for row in rows
    ]


def _row(seen: Seen) -> tuple[str, ...]:
    look, stats = seen.found.look, seen.statistics
    assert look is not None
    assert stats is not None
    alive = _is_alive(seen)
    ends = ((stats.open_producers, "p"), (stats.open_consumers, "c"), (stats.open_workers, "w"))
    waits = ((stats.blocked_producers, "put"), (stats.blocked_consumers, "get"))
    return (
        str(look.maker) if alive else f"({look.maker})",
        _program(look.maker) if alive else "",
        os.path.basename(look.site),
        duration(max(time.time() - look.made_at, 0.0)),
        stats.state,
        count(stats.queued) + (f"/{count(look.maxsize)}" if look.maxsize else ""),
        count(stats.put),
        count(stats.taken),
        "-" if seen.put_per_s is None else count(seen.put_per_s),
        "-" if seen.taken_per_s is None else count(seen.taken_per_s),
        " ".join(f"{n}{what}" for n, what in ends if n) or "-",
        " ".join(f"{n} {what}" for n, what in waits if n) or "-",
        count(stats.lost),
        count(stats.failures),
    )


def _is_alive(seen: Seen) -> bool:
    return (seen.found.pid, True) in seen.processes


def _program(pid: int) -> str:
    """What that process runs: the script or module of a Python, else the command."""
    words = _command(pid)
    if not words:
        return ""
    name = os.path.basename(words[0])
    if not name.startswith("python"):
        return name
    for before, word in pairwise(words):
        if before == "-m":
            return word
        if before == "-c":
            break
        if not word.startswith("-"):
            return os.path.basename(word)
    return name


def _command(pid: int) -> list[str]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []


def count(number: float) -> str:
    """A number in six characters at most: 12345, 123k, 1.23M."""
    number = round(number)
    if abs(number) < 100_000:
        return str(number)
    value = float(number)
    for unit in ("k", "M", "G", "T"):
        value /= 1000
        if abs(value) < 999.5 or unit == "T":
            break
    return f"{value:.3g}{unit}" if abs(value) < 999.5 else f"{value:.0f}{unit}"


def duration(seconds: float) -> str:
    """Seconds in two units at most: 7s, 3m07s, 2h05m, 4d03h."""
    whole = int(seconds)
    for size, unit, part, smaller in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // part:02}{smaller}"
    return f"{whole}s"


def explanations(seen: list[Seen]) -> list[str]:
    """What `explain()` says of each queue."""
    lines: list[str] = []
    for each in seen:
        if each.found.look is not None:
            lines += ["", *f"{each.found.path}: {each.found.look.explain()}".splitlines()]
    return lines


# As JSON


def as_json(seen: Seen, explain: bool) -> dict[str, object]:
    """The object of one queue; docs/seeing.md says what its keys mean."""
    look = seen.found.look
    keys: dict[str, object] = {
        "path": seen.found.path,
        "status": seen.found.status,
        "pid": seen.found.pid,
        "alive": _is_alive(seen),
        "command": _command(seen.found.pid) if _is_alive(seen) else None,
        "made": None if look is None else look.site,
        "made_at": None if look is None else look.made_at,
        "maxsize": None if look is None else look.maxsize,
        "processes": [pid for pid, alive in seen.processes if alive],
        "dead": [pid for pid, alive in seen.processes if not alive],
        "statistics": None if seen.statistics is None else seen.statistics._asdict(),
        "put_per_s": seen.put_per_s,
        "taken_per_s": seen.taken_per_s,
    }
    if explain:
        keys["explanation"] = None if look is None else look.explain()
    return keys

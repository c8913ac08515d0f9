"""`plot`: a recording, drawn as one SVG.

Four panels above one another share the time axis: items queued, rates, open endpoints, callers
waiting. Totals that only grow (items, time spent waiting) are read at evenly spaced times and
divided by the time between, so that however few points are drawn, the areas are right.
"""

from __future__ import annotations

import json
import math
import os
import sys
from argparse import Namespace
from bisect import bisect_right
from collections.abc import Callable, Sequence
from html import escape
from itertools import pairwise
from typing import Any, Final, NamedTuple, cast

from iterable_queue._protocols import Statistics

WIDTH: Final = 760
LEFT: Final = 62
RIGHT: Final = 18
TOP: Final = 58
HEADER: Final = 26
"""Of a panel: its title and legend."""
PANEL: Final = 96
GAP: Final = 16
BOTTOM: Final = 44
PLOT: Final = WIDTH - LEFT - RIGHT
"""Width of what is drawn on, in pixels."""
POINTS: Final = 240
"""Most points of a line."""
MOST_TICKS: Final = 9
"""Of the time axis, after that at 0."""
SOLID: Final = "\u2501\u2501"
DASHED: Final = "\u2501\u2009\u2501"
"""What stands for a line in a legend: as text, so that whatever the font is, it fits."""

STYLE: Final = """
svg { font: 12px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif }
.page { fill: #ffffff; stroke: #d1d9e0 }
.name { fill: #1f2328; font-size: 16px; font-weight: 600 }
.title { fill: #1f2328; font-weight: 600 }
.text { fill: #424a53 }
.tick { fill: #59636e; font-size: 11px }
.grid { stroke: #e3e7eb }
.axis { stroke: #818b98 }
.a, .b, .c, .limit { fill: none; stroke-width: 1.4; stroke-linejoin: round }
.a { stroke: #0969da; stroke-width: 3 }
.b { stroke: #bc4c00 }
.c { stroke: #1a7f37 }
.key-a { fill: #0969da }
.key-b { fill: #bc4c00 }
.key-c { fill: #1a7f37 }
.key-limit { fill: #818b98 }
.limit { stroke: #818b98; stroke-dasharray: 5 4 }
.area { fill: #0969da; fill-opacity: 0.14 }
@media (prefers-color-scheme: dark) {
  .page { fill: #0d1117; stroke: #3d444d }
  .name, .title { fill: #f0f6fc }
  .text { fill: #c3cad1 }
  .tick { fill: #9198a1 }
  .grid { stroke: #262c36 }
  .axis { stroke: #656c76 }
  .a { stroke: #58a6ff }
  .b { stroke: #f0883e }
  .c { stroke: #3fb950 }
  .key-a { fill: #58a6ff }
  .key-b { fill: #f0883e }
  .key-c { fill: #3fb950 }
  .area { fill: #58a6ff; fill-opacity: 0.2 }
}
"""


_OTHERS = {".gif", ".html", ".jpeg", ".jpg", ".pdf", ".png", ".webp"}
"""What a viewer would take by its name for something else."""


class Unreadable(Exception):
    """The file is not a recording that can be drawn."""


class Recorded(NamedTuple):
    """A recording.

    Attributes:
        made: the line of user code that made the queue.
        maxsize: 0: unbounded.
        times: of the samples, in seconds from the first one on, ascending.
        samples: as many.
    """

    made: str
    maxsize: int
    times: list[float]
    samples: list[Statistics]

    def column(self, name: str) -> list[int]:
        """One count, in all samples."""
        at = Statistics._fields.index(name)
        return [sample[at] for sample in self.samples]  # type: ignore[misc]


def run(options: Namespace) -> int:
    """The command. Returns its exit status."""
    output = options.output or os.path.splitext(options.file)[0] + ".svg"
    if os.path.splitext(output)[1].lower() in _OTHERS:
        print(f"plot: it draws SVG, which {output} does not say: name it .svg", file=sys.stderr)
        return 1
    try:
        recorded = read(options.file)
        drawn = draw(recorded, options.title)
        if output == "-":
            sys.stdout.write(drawn)
        else:
            with open(output, "w", encoding="utf-8") as file:
                file.write(drawn)
    except (OSError, Unreadable) as error:
        print(f"plot: {error}", file=sys.stderr)
        return 1
    return 0


def read(path: str) -> Recorded:
    """The recording in that file. Raises OSError, Unreadable."""
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = [_object(line) for line in file]
    head = lines[0] if lines else None
    if head is None or head.get("iterable_queue") != "recording":
        raise Unreadable(f"{path} is not a recording: IterableQueue.record() makes those")
    if head.get("format") != 1:
        raise Unreadable(f"{path} is of format {head.get('format')}, and this draws format 1")
    times: list[float] = []
    samples: list[Statistics] = []
    for line in lines[1:]:
        # One that is cut short is the last one of a process that was killed.
        if line is not None and line.keys() >= {"t", *Statistics._fields}:
            times.append(line["t"])
            samples.append(Statistics(*(line[name] for name in Statistics._fields)))
    if not samples:
        raise Unreadable(f"{path} has no sample")
    if len(samples) == 1:  # all was over by then
        times, samples = times * 2, samples * 2
    began = times[0]
    return Recorded(head["made"], head["maxsize"], [t - began for t in times], samples)


def _object(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return cast("dict[str, Any]", found) if isinstance(found, dict) else None


# What is drawn


class Line(NamedTuple):
    """One line of a panel.

    Attributes:
        style: its class. The first one of a panel is broad, to be seen below another.
        name: for the legend.
        points: times and values; nothing: it is only in the legend.
        stepped: a value holds until the next point.
        filled: the area below is shaded.
    """

    style: str
    name: str
    points: Sequence[tuple[float, float]]
    stepped: bool = False
    filled: bool = False


class Panel(NamedTuple):
    """One of the pictures above one another.

    Attributes:
        title: what is shown, and its unit.
        lines: drawn in this order.
        whole: it counts things, so its ticks are whole numbers.
    """

    title: str
    lines: list[Line]
    whole: bool = False


def panels(recorded: Recorded) -> list[Panel]:
    """All that is drawn of a recording."""
    return [_depth(recorded), _rates(recorded), _endpoints(recorded), _waiting(recorded)]


def _depth(recorded: Recorded) -> Panel:
    points = _highest(recorded.times, recorded.column("queued"))
    peak = max(value for _, value in points)
    lines = [Line("a", f"queued, at most {peak:,.0f}", points, filled=True)]
    if recorded.maxsize:
        # Where it is far above everything, it would only press the rest flat.
        near = recorded.maxsize <= 4 * peak
        ends = [(0.0, recorded.maxsize), (recorded.times[-1], recorded.maxsize)] if near else []
        lines.append(Line("limit", f"maxsize {recorded.maxsize:,}", ends))
    return Panel("Items queued", lines, whole=True)


def _rates(recorded: Recorded) -> Panel:
    lines: list[Line] = []
    length = recorded.times[-1]
    for style, name in (("a", "put"), ("b", "taken")):
        values = recorded.column(name)
        mean = (values[-1] - values[0]) / length if length else 0.0
        text = f"{name}, {mean:,.0f} on average"
        lines.append(Line(style, text, _slopes(recorded.times, values)))
    return Panel("Items per second", lines)


def _endpoints(recorded: Recorded) -> Panel:
    lines: list[Line] = []
    for style, name in (("a", "producers"), ("b", "consumers"), ("c", "workers")):
        values = recorded.column(f"open_{name}")
        if any(values):
            lines.append(Line(style, name, _changes(recorded.times, values), stepped=True))
    return Panel("Open endpoints", lines, whole=True)


def _waiting(recorded: Recorded) -> Panel:
    lines: list[Line] = []
    for style, name, what in (("a", "producers", "put"), ("b", "consumers", "get")):
        waited = _summed(recorded.times, recorded.column(f"blocked_{name}"))
        text = f"in {what}, {seconds(waited[-1])} in all"
        lines.append(Line(style, text, _slopes(recorded.times, waited)))
    return Panel("Callers waiting", lines, whole=True)


def _highest(times: list[float], values: Sequence[float]) -> list[tuple[float, float]]:
    """The samples, or of each run of them the highest."""
    size = math.ceil(len(times) / POINTS)
    runs = [range(at, min(at + size, len(times))) for at in range(0, len(times), size)]
    best = [max(run, key=values.__getitem__) for run in runs]
    return [(times[at], values[at]) for at in best]


def _slopes(times: list[float], totals: Sequence[float]) -> list[tuple[float, float]]:
    """How fast a total grew, between evenly spaced times: each value in their middle."""
    count = min(len(times) - 1, POINTS)
    edges = [times[-1] * n / count for n in range(count + 1)]
    read = [_between(times, totals, edge) for edge in edges]
    return [
        ((a + b) / 2, (later - sooner) / (b - a) if b > a else 0.0)
        for (a, b), (sooner, later) in zip(pairwise(edges), pairwise(read), strict=True)
    ]


def _between(times: list[float], values: Sequence[float], time: float) -> float:
    """The value at that time, on a straight line between the samples around it."""
    at = min(max(bisect_right(times, time), 1), len(times) - 1)
    t0, t1 = times[at - 1], times[at]
    if t1 <= t0:
        return values[at]
    part = min(max((time - t0) / (t1 - t0), 0.0), 1.0)
    return values[at - 1] + (values[at] - values[at - 1]) * part


def _summed(times: list[float], values: Sequence[float]) -> list[float]:
    """The area below *values* up to each sample."""
    total = 0.0
    sums = [total]
    for (t0, t1), (v0, v1) in zip(pairwise(times), pairwise(values), strict=True):
        total += (t1 - t0) * (v0 + v1) / 2
        sums.append(total)
    return sums


def _changes(times: list[float], values: Sequence[float]) -> list[tuple[float, float]]:
    """The first sample, those that differ from the one before, and the last."""
    last = len(times) - 1
    return [
        (times[at], values[at])
        for at in range(last + 1)
        if at in (0, last) or values[at] != values[at - 1]
    ]


# Numbers


def ticks(highest: float, most: int, *, whole: bool = False) -> list[float]:
    """Round numbers from 0 on, evenly spaced, of which the last is *highest* or above.

    At most *most* + 1 of them.
    """
    step = _step(max(highest, 1e-9) / most, whole)
    return [step * n for n in range(math.ceil(max(highest, 1e-9) / step - 1e-9) + 1)]


def _step(least: float, whole: bool) -> float:
    """The smallest of 1, 2 or 5 times a power of ten that is no less."""
    power = 10.0 ** math.floor(math.log10(least))
    step = next(power * n for n in (1, 2, 5, 10) if power * n >= least * (1 - 1e-9))
    return max(step, 1.0) if whole else step


def amount(value: float) -> str:
    """A tick's number: 0.5, 12, 1,500, 20k, 3M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if unit == 'k' else size):g}{unit}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"


def seconds(value: float) -> str:
    """A time spent: 0.35 s, 12 s, 3.5 min, 2 h."""
    for size, unit in ((7200, "h"), (120, "min")):
        if value >= size:
            return f"{value / (3600 if unit == 'h' else 60):.3g} {unit}"
    return f"{value:.0f} s" if value >= 100 else f"{value:.3g} s" if value >= 0.01 else "0 s"


def _time_ticks(length: float) -> tuple[list[float], Callable[[float], str], str]:
    """Ticks within *length* seconds, what is written at them, and the unit."""
    steps: tuple[float, ...] = ()
    if length >= 7200:
        size, unit, steps = 3600.0, "h", (0.25, 0.5, 1.0, 2.0, 6.0, 12.0, 24.0, 48.0)
    elif length >= 120:
        size, unit, steps = 60.0, "min", (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
    else:
        size, unit = 1.0, "s"
    fitting = (step for step in steps if length / size / step <= MOST_TICKS)
    step = next(fitting, _step(max(length, 1e-6) / size / MOST_TICKS, whole=False))
    at = [step * size * n for n in range(int(length / size / step + 1e-9) + 1)]
    return at, (lambda value: f"{value / size:g}"), unit


# The picture


def draw(recorded: Recorded, title: str | None = None) -> str:
    """The SVG."""
    shown = panels(recorded)
    height = TOP + len(shown) * (HEADER + PANEL + GAP) - GAP + BOTTOM
    length = max(recorded.times[-1], 1e-6)
    last = recorded.samples[-1]
    name = title or f"The queue made at {os.path.basename(recorded.made)}"
    said = (
        f"{last.put:,} items put, {last.taken:,} taken, {seconds(length)}; "
        f"{last.state} at the end" + (f"; {last.lost:,} lost" if last.lost else "")
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img">',
        f"<title>{escape(name)}</title>",
        f"<desc>{escape(said)}</desc>",
        f"<style>{STYLE}</style>",
        f'<rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
        _label(LEFT, 27, name, "name", "start"),
        _label(LEFT, 45, said, "text", "start"),
    ]
    top = TOP
    at, written, unit = _time_ticks(length)
    for panel in shown:
        top += HEADER
        parts += _panel(panel, top, length, at)
        top += PANEL + GAP
    base = top - GAP
    parts += [_label(_x(time, length), base + 16, written(time), "tick") for time in at]
    parts.append(_label(LEFT + PLOT / 2, base + 33, f"time ({unit})", "text"))
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, top: int, length: float, times: list[float]) -> list[str]:
    values = [value for line in panel.lines for _, value in line.points]
    rows = ticks(max(values, default=0.0) or 1.0, 4, whole=panel.whole)
    highest = rows[-1]
    base = top + PANEL

    def y(value: float) -> float:
        return base - PANEL * value / highest

    parts = [_label(LEFT, top - 9, panel.title, "title", "start")]
    parts += [_rule("grid", _x(time, length), top, _x(time, length), base) for time in times[1:]]
    for row in rows:
        parts.append(_rule("grid" if row else "axis", LEFT, y(row), LEFT + PLOT, y(row)))
        parts.append(_label(LEFT - 7, y(row) + 4, amount(row), "tick", "end"))
    for line in panel.lines:
        if line.points:
            path = _path(
                [(_x(time, length), y(value)) for time, value in line.points], line.stepped
            )
            if line.filled:
                ends = _x(line.points[0][0], length), _x(line.points[-1][0], length)
                parts.append(f'<path class="area" d="{path}V{base}H{ends[0]:.1f}Z"/>')
            parts.append(f'<path class="{line.style}" d="{path}"/>')
    return parts + _legend(panel.lines, top - 9)


def _legend(lines: list[Line], y: float) -> list[str]:
    """One text, which ends where the picture does."""
    parts = "\u2003".join(
        f'<tspan class="key-{line.style}">{DASHED if line.style == "limit" else SOLID}</tspan>'
        f"\u00a0{escape(line.name)}"
        for line in lines
    )
    return [f'<text class="text" x="{LEFT + PLOT}" y="{y}" text-anchor="end">{parts}</text>']


def _x(time: float, length: float) -> float:
    return LEFT + PLOT * time / length


def _path(points: list[tuple[float, float]], stepped: bool) -> str:
    (x, y), *rest = points
    path = [f"M{x:.1f} {y:.1f}"]
    for x, y in rest:
        path.append(f"H{x:.1f}V{y:.1f}" if stepped else f"L{x:.1f} {y:.1f}")
    return "".join(path)


def _rule(style: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path class="{style}" d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"/>'


def _label(x: float, y: float, text: str, style: str, anchor: str = "middle") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{style}" {place}>{escape(text)}</text>'

"""The ratios as a picture: ``python -m benchmarks.plot results.json -o docs/images/ratios.svg``.

``results.json`` is what ``python -m benchmarks --json`` wrote. Each bar is ours beside one peer at
one kind of work: how many times as fast, the median of the rounds, on a logarithmic scale that
begins at *as fast*. A small line marks the worst round.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

WIDTH = 550
_LEFT = 252  # where the labels of the bars end
_RIGHT = 496  # where the longest bar ends; its figure stands behind it
_BAR = 15
_STEP = 22
_TITLE = 34
_HEAD = 74
_FOOT = 20
_TIMES = "\N{MULTIPLICATION SIGN}"

_STYLE = """
svg { color-scheme: light dark; }
text { font: 13.5px system-ui, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2328; }
.head { font-size: 16px; font-weight: 600; }
.group { font-weight: 600; }
.label { font-size: 12.5px; }
.small { font-size: 12px; fill: #59636e; }
.paper { fill: #ffffff; stroke: #d1d9e0; }
.grid { stroke: #e3e8ed; }
.one { stroke: #59636e; }
.more { fill: #1f7a4d; }
.less { fill: #b35900; }
.worst { stroke: #1f2328; stroke-width: 1.5; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .small { fill: #9aa4ae; }
  .paper { fill: #131416; stroke: #3d444d; }
  .grid { stroke: #2a2f36; }
  .one { stroke: #9aa4ae; }
  .more { fill: #2ea36a; }
  .less { fill: #d9822b; }
  .worst { stroke: #e6edf3; }
}
"""


@dataclass(frozen=True)
class Bar:
    """Ours beside one peer.

    Attributes:
        label: the peer.
        times: how many times as fast ours is; below 1 it is slower. The median of the rounds.
        worst: the same of the round in which ours did worst.
    """

    label: str
    times: float
    worst: float


def bars(document: dict[str, Any], rows: Sequence[str] = ()) -> dict[str, list[Bar]]:
    """By kind of work, the bars of a benchmark's JSON document; of *rows* alone, if given."""
    found: dict[str, list[Bar]] = {}
    for row in document["rows"]:
        if rows and row["key"] not in rows:
            continue
        for line in row["lines"]:
            # Only lines with a peer have a ratio of two sides; "times" is a ratio of ours to ours.
            if line["beside"] is None or line["unit"] == "times" or not line["ratio"]:
                continue
            median, worst = line["ratio"], line["worst_ratio"]
            if line["unit"] != "items/s":  # a time: the smaller, the faster
                median, worst = 1 / median, 1 / worst
            label = line["beside"].removesuffix(" with sentinels")
            found.setdefault(line["work"], []).append(Bar(label, median, worst))
    return found


def draw(found: dict[str, list[Bar]], where: str) -> str:
    """The picture as SVG; *where* is said below its title. There must be a bar."""
    everything = [bar for group in found.values() for bar in group]
    low = min(0.8, *(bar.worst for bar in everything))
    high = max(2.0, *(bar.times for bar in everything))
    scale = (_RIGHT - _LEFT) / math.log(high / low)

    def x(times: float) -> float:
        return _LEFT + scale * math.log(times / low)

    height = _HEAD + sum(_TITLE + _STEP * len(group) for group in found.values()) + _FOOT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="t d">',
        '<title id="t">How many times as fast as other queues</title>',
        f'<desc id="d">{escape(_in_words(found))}</desc>',
        f"<style>{_STYLE}</style>",
        f'<rect class="paper" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
        '<text class="head" x="20" y="30">How many times as fast as …</text>',
        f'<text class="small" x="20" y="50">{escape(where)}</text>',
    ]
    for tick in _ticks(low, high):
        at = x(tick)
        kind = "one" if tick == 1 else "grid"
        parts.append(
            f'<line class="{kind}" x1="{at:.1f}" y1="{_HEAD}" x2="{at:.1f}" '
            f'y2="{height - _FOOT}"/><text class="small" x="{at:.1f}" y="{_HEAD - 6}" '
            f'text-anchor="middle">{tick:g}{_TIMES}</text>'
        )
    y = float(_HEAD)
    for work, group in found.items():
        y += _TITLE
        # On a strip of paper, since the grid would run through it.
        parts.append(
            f'<rect class="paper" style="stroke: none" x="16" y="{y - 26}" '
            f'width="{WIDTH - 32}" height="24"/>'
            f'<text class="group" x="20" y="{y - 9}">{escape(work)}</text>'
        )
        for bar in group:
            parts += _one(bar, y, x)
            y += _STEP
    parts.append("</svg>\n")
    return "\n".join(parts)


def _one(bar: Bar, y: float, x: Any) -> Iterator[str]:
    start, end = sorted((x(1), x(bar.times)))
    kind = "more" if bar.times >= 1 else "less"
    middle = y + _BAR / 2
    yield (
        f'<text class="label" x="{_LEFT - 12}" y="{y + 12}" text-anchor="end">'
        f"{escape(bar.label)}</text>"
        f'<rect class="{kind}" x="{start:.1f}" y="{y}" width="{max(end - start, 1):.1f}" '
        f'height="{_BAR}" rx="2"/>'
    )
    yield (
        f'<line class="worst" x1="{x(bar.worst):.1f}" y1="{middle - 4}" '
        f'x2="{x(bar.worst):.1f}" y2="{middle + 4}"/>'
        f'<text x="{end + 6:.1f}" y="{y + 12}">{_figure(bar.times)}</text>'
    )


def _figure(times: float) -> str:
    return f"{times:.{0 if times >= 20 else 1 if times >= 2 else 2}f}{_TIMES}"


def _in_words(found: dict[str, list[Bar]]) -> str:
    return " ".join(
        f"{work}: {', '.join(f'{_figure(bar.times)} {bar.label}' for bar in group)}."
        for work, group in found.items()
    )


def _ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
    shown = [tick for tick in ticks if low <= tick <= high]
    # More than eight would touch each other.
    return shown if len(shown) <= 8 else [t for t in shown if f"{t:.0e}".startswith("1")]


def main(argv: Sequence[str] | None = None) -> int:
    """Read the figures, write the picture; 2 if there is nothing to draw."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plot", description="Draw the ratios of a benchmark as SVG."
    )
    parser.add_argument("results", type=Path, help="what python -m benchmarks --json FILE wrote")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--rows", nargs="+", default=[], metavar="ROW", help="only these, by key")
    arguments = parser.parse_args(argv)
    document: dict[str, Any] = json.loads(arguments.results.read_text())
    found = bars(document, arguments.rows)
    if not found:
        print(f"{arguments.results}: no ratio of two sides in it", file=sys.stderr)
        return 2
    machine = document["machine"]
    where = (
        f"{machine['implementation']} {machine['python']}, {machine['platform']} on "
        f"{machine['machine']}, {machine['processors']} CPUs; "
        f"median, and | the worst, of {document['rounds']}"
    )
    arguments.output.write_text(draw(found, where))
    return 0


if __name__ == "__main__":
    sys.exit(main())

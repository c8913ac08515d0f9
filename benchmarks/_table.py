"""The table for people, the same as JSON for programs."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence

from benchmarks._harness import Samples
from benchmarks._rows import Line, RowResult, Unit

_HEADINGS = (
    "work",
    "ours: median (worst)",
    "beside",
    "its median (worst)",
    "ours / it: median (worst)",
    "bar",
    "met",
)


def figure(value: float, unit: Unit) -> str:
    """A value with its unit, to three digits."""
    match unit:
        case "items/s" if value >= 1e6:
            return f"{value / 1e6:.2f} M/s"
        case "items/s" if value >= 1e3:
            return f"{value / 1e3:.{0 if value >= 1e5 else 1}f} k/s"
        case "items/s":
            return f"{value:.0f} /s"
        case "µs" if value >= 1e3:
            return f"{value / 1e3:.3g} ms"
        case _:
            return f"{value:.3g} {unit}"


def cell(samples: Samples, unit: Unit) -> str:
    """Median and worst of one side, and whatever went wrong with it."""
    parts: list[str] = []
    if samples.median is not None:
        worst = min(samples.values) if unit == "items/s" else max(samples.values)
        parts.append(f"{figure(samples.median, unit)} ({figure(worst, unit)})")
    if samples.missing:
        parts.append(f"missing: {samples.missing}")
    if samples.failures:
        more = f", {len(samples.failures)} failures" if len(samples.failures) > 1 else ""
        parts.append(samples.failures[0] + more)
    return "; ".join(parts).replace("|", "/") or "no figure"


def _columns(line: Line) -> tuple[str, ...]:
    peer = line.peer
    ratio = "-"
    # A line that has no ratio of two sides holds its own figure against the bar.
    own_figure = peer is None or line.unit == "times"
    if not own_figure and line.ratio is not None and line.worst_ratio is not None:
        ratio = f"{line.ratio:.2f} ({line.worst_ratio:.2f})"
    bar = f"{line.bar}{' ' + line.unit if peer is None else ''}" if line.bar else "-"
    met = {True: "yes", False: "NO", None: "?" if line.bar else "-"}[line.met]
    return (
        line.work,
        cell(line.ours, line.unit),
        peer.label if peer else "-",
        cell(peer, line.unit) if peer else "-",
        ratio,
        bar,
        met,
    )


def render(results: Sequence[RowResult]) -> str:
    """A Markdown table, padded so that it can be read as it is, with the notes below it."""
    rows: list[tuple[str, ...]] = [_HEADINGS]
    for result in results:
        for number, line in enumerate(result.lines):
            columns = _columns(line)
            repeated = number > 0 and _columns(result.lines[number - 1])[:2] == columns[:2]
            rows.append(("", "", *columns[2:]) if repeated else columns)
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    lines += [f"\n{note}." for result in results for note in result.notes]
    versions = {
        samples.version for result in results for samples in result.samples if samples.version
    }
    if versions:
        lines.append(f"\nVersions: {', '.join(sorted(versions))}.")
    return "\n".join(lines)


def machine() -> dict[str, object]:
    """Where this was measured."""
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": sys.platform,
        "machine": platform.machine(),
        "processors": os.cpu_count(),
    }


def as_json(results: Sequence[RowResult]) -> list[dict[str, object]]:
    """Every figure of every round, and the lines with what was made of them."""
    return [
        {
            "key": result.key,
            "title": result.title,
            "unit": result.unit,
            "sides": [_samples_json(samples, result.unit) for samples in result.samples],
            "lines": [
                {
                    "work": line.work,
                    "unit": line.unit,
                    "ours": line.ours.label,
                    "beside": line.peer.label if line.peer else None,
                    "ratios": list(line.ratios),
                    "ratio": line.ratio,
                    "worst_ratio": line.worst_ratio,
                    "bar": str(line.bar) if line.bar else None,
                    "met": line.met,
                }
                for line in result.lines
            ],
            "notes": result.notes,
        }
        for result in results
    ]


def _samples_json(samples: Samples, unit: Unit) -> dict[str, object]:
    values = samples.values
    return {
        "label": samples.label,
        "side": samples.side,
        "version": samples.version,
        "items": samples.items,
        "rounds": samples.by_round,
        "median": samples.median,
        "worst": (min(values) if unit == "items/s" else max(values)) if values else None,
        "missing": samples.missing,
        "failures": samples.failures,
    }

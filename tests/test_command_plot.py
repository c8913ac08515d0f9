"""`python -m iterable_queue plot`: a recording becomes one SVG that says what happened."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from iterable_queue import IterableQueue, Statistics
from iterable_queue._command import _plot, main
from iterable_queue._command._plot import (
    LEFT,
    PANEL,
    PLOT,
    POINTS,
    WIDTH,
    Recorded,
    amount,
    draw,
    panels,
    seconds,
    ticks,
)

SVG = "{http://www.w3.org/2000/svg}"
NOTHING = Statistics._make([*[0] * 14, "open"])
Point = tuple[float, float]


def recorded(rows: Iterable[tuple[float, dict[str, Any]]], maxsize: int = 0) -> Recorded:
    times, samples = zip(*((t, NOTHING._replace(**counts)) for t, counts in rows), strict=True)
    return Recorded("/home/user/pipe.py:12", maxsize, list(times), list(samples))


def steady(seconds: int = 10, maxsize: int = 0) -> Recorded:
    """100 put and 80 taken in each second; a producer waits during the second half."""
    return recorded(
        (
            (
                t / 10,
                {
                    "put": 10 * t,
                    "taken": 8 * t,
                    "queued": 2 * t,
                    "open_producers": 2 if t < 5 * seconds else 1,
                    "open_consumers": 3,
                    "blocked_producers": int(t >= 5 * seconds),
                    "state": "open" if t < 10 * seconds else "failed",
                    "lost": 4,
                },
            )
            for t in range(10 * seconds + 1)
        ),
        maxsize,
    )


def drawn(of: Recorded, title: str | None = None) -> ElementTree.Element:
    return ElementTree.fromstring(draw(of, title))


def texts(svg: ElementTree.Element, style: str) -> list[str]:
    return ["".join(t.itertext()) for t in svg.iter(f"{SVG}text") if t.get("class") == style]


def paths(svg: ElementTree.Element, style: str) -> list[list[Point]]:
    """The corners of each line of that class, in pixels."""
    found: list[list[Point]] = []
    for element in svg.iter(f"{SVG}path"):
        if element.get("class") == style:
            found.append(corners(element.get("d", "")))
    return found


def corners(d: str) -> list[Point]:
    x = y = 0.0
    found: list[Point] = []
    for letter, numbers in re.findall(r"([MLHVZ])([^MLHVZ]*)", d):
        values = [float(number) for number in numbers.split()]
        if letter in "ML":
            x, y = values
        elif letter == "H":
            [x] = values
        elif letter == "V":
            [y] = values
        if letter != "Z":
            found.append((x, y))
    return found


def line(of: Recorded, panel: int, name: str) -> list[Point]:
    """The points of a line whose name begins so, as times and values."""
    return [
        point
        for line in panels(of)[panel].lines
        if line.name.startswith(name)
        for point in line.points
    ]


def near(value: float, other: float) -> bool:
    return math.isclose(value, other, rel_tol=1e-6)


# What the lines say


def test_the_depth() -> None:
    points = line(steady(), 0, "queued")
    assert len(points) == 101
    assert [points[0], points[-1]] == [(0, 0), (10, 200)]


def test_the_highest_of_many_samples_is_kept() -> None:
    depth = [0] * 10_000
    depth[4321] = 77
    points = line(recorded((t, {"queued": n}) for t, n in enumerate(depth)), 0, "queued")
    assert len(points) <= POINTS
    assert max(value for _, value in points) == 77
    assert (4321, 77) in points


def test_rates() -> None:
    put, taken = line(steady(), 1, "put"), line(steady(), 1, "taken")
    assert {round(value, 6) for _, value in put} == {100}
    assert {round(value, 6) for _, value in taken} == {80}


def test_the_area_below_a_rate_is_what_was_put() -> None:
    """However unevenly the samples were taken, and however many there are."""
    times = [0.0, 0.1, 0.5, 3.0, 3.1, *(4 + n / 1000 for n in range(3000))]
    totals = [int(1000 * math.sqrt(t)) for t in times]
    of = recorded((t, {"put": n}) for t, n in zip(times, totals, strict=True))
    points = line(of, 1, "put")
    width = times[-1] / len(points)
    assert near(sum(value * width for _, value in points), totals[-1])


def test_two_samples_at_the_same_time() -> None:
    of = recorded([(0, {}), (0, {"put": 5}), (1, {"put": 5}), (1, {"put": 6})])
    assert all(math.isfinite(value) for _, value in line(of, 1, "put"))
    assert math.isfinite(line(recorded([(0, {}), (0, {"put": 5})]), 1, "put")[0][1])


def test_open_endpoints_are_steps_where_something_changed() -> None:
    of = steady()
    assert line(of, 2, "producers") == [(0, 2), (5, 1), (10, 1)]
    assert line(of, 2, "consumers") == [(0, 3), (10, 3)]
    assert [line.name for line in panels(of)[2].lines] == ["producers", "consumers"], "no workers"


def test_blocked_time() -> None:
    of = steady()
    names = [line.name for line in panels(of)[3].lines]
    assert names == ["in put, 5.05 s in all", "in get, 0 s in all"]
    points = line(of, 3, "in put")
    assert {value for t, value in points if t < 4.9} == {0}
    assert all(near(value, 1) for t, value in points if t > 5)


def test_maxsize_is_drawn_where_it_is_near() -> None:
    near, far = panels(steady(maxsize=300))[0].lines, panels(steady(maxsize=30_000))[0].lines
    assert near[1].points == [(0, 300), (10, 300)]
    assert far[1].points == []
    assert far[1].name == "maxsize 30,000"


# The picture


@pytest.mark.parametrize("maxsize", [0, 250])
def test_all_is_within_the_picture(maxsize: int) -> None:
    svg = drawn(steady(maxsize=maxsize))
    _, _, width, height = map(float, svg.get("viewBox", "").split())
    assert width == WIDTH
    for style in ("a", "b", "c", "limit", "area", "grid", "axis"):
        for path in paths(svg, style):
            for x, y in path:
                assert LEFT <= x <= LEFT + PLOT
                assert 0 < y < height
    for text in svg.iter(f"{SVG}text"):
        x, length = float(text.get("x", "")), 6.5 * len("".join(text.itertext()))
        shift = {"start": 0, "middle": length / 2, "end": length}[text.get("text-anchor", "")]
        left = x - shift
        assert left >= 0
        assert left + length <= WIDTH


def test_the_top_of_a_panel_is_its_highest_tick() -> None:
    svg = drawn(steady())
    [area] = paths(svg, "area")
    ys = [y for _, y in area]
    assert near(max(ys) - min(ys), PANEL), "200 is a tick"
    assert area[0][0] == LEFT
    assert max(x for x, _ in area) == LEFT + PLOT


def test_it_says_what_is_shown() -> None:
    svg = drawn(steady())
    assert texts(svg, "title") == [
        "Items queued",
        "Items per second",
        "Open endpoints",
        "Callers waiting",
    ]
    assert texts(svg, "name") == ["The queue made at pipe.py:12"]
    said, *_ = texts(svg, "text")
    assert said == "1,000 items put, 800 taken, 10 s; failed at the end; 4 lost"
    assert "time (s)" in texts(svg, "text")
    assert [text.replace("\u00a0", " ") for text in texts(svg, "text") if "\u2501" in text] == [
        "\u2501\u2501 queued, at most 200",
        "\u2501\u2501 put, 100 on average\u2003\u2501\u2501 taken, 80 on average",
        "\u2501\u2501 producers\u2003\u2501\u2501 consumers",
        "\u2501\u2501 in put, 5.05 s in all\u2003\u2501\u2501 in get, 0 s in all",
    ]
    assert {"0", "2", "4", "10", "100"} <= set(texts(svg, "tick"))
    assert svg.get("role") == "img"
    assert svg.findtext(f"{SVG}title") == "The queue made at pipe.py:12"


def test_names_are_text_and_nothing_else() -> None:
    svg = drawn(steady(), "a < b & <script>")
    assert texts(svg, "name") == ["a < b & <script>"]


def test_it_has_both_themes_and_needs_nothing_else() -> None:
    text = draw(steady())
    light, dark = text.split("@media (prefers-color-scheme: dark)")
    for style in ("page", "name", "title", "text", "tick", "grid", "axis", "a", "b", "c", "area"):
        assert f".{style} " in light or f".{style}," in light
        assert f".{style} " in dark or f".{style}," in dark
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "<script" not in text
    assert "<image" not in text


def test_a_long_recording_makes_no_large_picture() -> None:
    of = recorded(
        (n / 10, {"put": n * n, "taken": n, "queued": n * 7919 % 1000, "open_workers": n % 7})
        for n in range(2000)
    )
    assert len(draw(of)) < 60_000


def test_nothing_happened() -> None:
    svg = drawn(recorded([(0, {}), (5, {})]))
    assert texts(svg, "title")
    assert "nan" not in draw(recorded([(0, {}), (0, {})]))


# Numbers


@pytest.mark.parametrize("highest", [0.001, 0.3, 1, 3, 7, 9.99, 10, 42, 1001, 123_456_789])
def test_ticks_are_round_and_reach_the_top(highest: float) -> None:
    found = ticks(highest, 4)
    assert found[0] == 0
    assert found[-1] >= highest
    assert found[-2] < highest
    assert 2 <= len(found) <= 5
    step = found[1]
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert round(mantissa, 6) in (1, 2, 5)


def test_ticks_of_things_that_are_counted_are_whole() -> None:
    assert ticks(1, 4, whole=True) == [0, 1]
    assert ticks(3, 4, whole=True) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (12, "12"),
        (1500, "1,500"),
        (20_000, "20k"),
        (3e6, "3M"),
        (2e9, "2G"),
    ],
)
def test_amounts(value: float, text: str) -> None:
    assert amount(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 s"), (0.346, "0.346 s"), (12, "12 s"), (100, "100 s"), (210, "3.5 min"), (7200, "2 h")],
)
def test_times(value: float, text: str) -> None:
    assert seconds(value) == text


@pytest.mark.parametrize(
    ("length", "unit", "last"),
    [(0.05, "s", "0.05"), (10, "s", "10"), (119, "s", "100"), (600, "min", "10"), (7200, "h", "2")],
)
def test_the_time_axis(length: float, unit: str, last: str) -> None:
    at, written, found = _plot._time_ticks(length)
    assert found == unit
    assert written(at[-1]) == last
    assert at[-1] <= length * (1 + 1e-9)
    assert 4 <= len(at) <= 10


@pytest.mark.parametrize("length", [1e-6, 3e5, 3e7])
def test_the_time_axis_of_what_is_very_short_or_long(length: float) -> None:
    assert 3 <= len(_plot._time_ticks(length)[0]) <= 10


# The command


def test_a_recording_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    queue = IterableQueue[int].threaded(5)
    with queue.record(path, interval=None) as recording:
        queue.get_producer().put(1)
        recording.sample()
    assert main(["plot", str(path)]) == 0
    svg = ElementTree.parse(tmp_path / "run.svg").getroot()
    assert any(text.endswith("maxsize 5") for text in texts(svg, "text"))
    assert main(["plot", str(path), "-o", str(tmp_path / "x.svg"), "--title", "Mine"]) == 0
    assert "Mine" in (tmp_path / "x.svg").read_text()


def test_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.jsonl"
    write(path, HEAD, SAMPLE, SAMPLE)
    assert main(["plot", str(path), "-o", "-"]) == 0
    assert capsys.readouterr().out.startswith("<svg")


HEAD = {"iterable_queue": "recording", "format": 1, "made": "x.py:1", "maxsize": 0}
SAMPLE = {"t": 0.5, **NOTHING._asdict()}


def write(path: Path, *lines: object) -> None:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def test_a_line_that_is_cut_short_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    write(path, HEAD, SAMPLE, {**SAMPLE, "t": 1.5}, {"t": 2, "end": "closed"}, 5)
    with path.open("a") as file:
        file.write('{"t":3,"pu')
    assert _plot.read(str(path)).times == [0, 1]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "not a recording"),
        ([{"some": "thing"}], "not a recording"),
        ([{**HEAD, "format": 2}, SAMPLE, SAMPLE], "of format 2"),
        ([HEAD], "no sample"),
    ],
)
def test_what_can_not_be_drawn(
    lines: list[object], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.jsonl"
    write(path, *lines)
    assert main(["plot", str(path)]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run.svg").exists()


def test_one_sample_is_a_picture_too(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    write(path, HEAD, SAMPLE)
    assert main(["plot", str(path)]) == 0
    ElementTree.parse(tmp_path / "run.svg")


def test_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", str(tmp_path / "no")]) == 1
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["plot.png", "PLOT.PDF"])
def test_what_would_be_taken_for_another_format_is_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    file = tmp_path / "run.jsonl"
    write(file, HEAD, SAMPLE, SAMPLE)
    assert main(["plot", str(file), "-o", str(tmp_path / name)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"plot: it draws SVG, which {tmp_path / name} does not say: name it .svg\n"
    assert not (tmp_path / name).exists()

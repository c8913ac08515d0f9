"""The benchmarks run, print what they promise, and hide neither a hang nor a wrong count.

How fast anything is, is not asked here: that is for `python -m benchmarks` on a quiet machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import _cell, plot
from benchmarks._crew import Body, Crew, Gate, Hang, ProcessCrew, Report, WorkerFailed
from benchmarks._harness import Samples
from benchmarks._job import Job
from benchmarks._peers import ThreadQueue
from benchmarks._rows import Bar, RowResult, compare
from benchmarks._sides import Link, Receiver, Sender, put_each
from benchmarks._table import render

CHECKOUT = Path(__file__).parents[1]


def run(json_file: Path, *rows: str) -> tuple[str, dict[str, dict[str, Any]]]:
    """The table, and by its key what the JSON says of each row."""
    command = [sys.executable, "-m", "benchmarks", "--rounds", "1", "--seconds", "0.02"]
    command += ["--timeout", "20", "--json", str(json_file), "--rows", *rows]
    done = subprocess.run(
        command, cwd=CHECKOUT, capture_output=True, text=True, timeout=55, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(json_file.read_text())
    assert found["machine"]["processors"] == os.cpu_count()
    return done.stdout, {row["key"]: row for row in found["rows"]}


@pytest.mark.parametrize(
    ("key", "beside", "bar"),
    [
        ("threads", {"queue", "simplequeue"}, "at least 1.5"),
        (
            "one-by-one",
            {"multiprocessing", "faster-fifo", "quick-queue-put", "release-1x"},
            "at least 5",
        ),
    ],
)
def test_a_row_gives_figures_for_ours_and_everyone_present(
    tmp_path: Path, key: str, beside: set[str], bar: str
) -> None:
    table, rows = run(tmp_path / "figures.json", key)
    (row,) = rows.values()
    ours, *peers = row["sides"]
    assert row["key"] == key
    assert ours["median"] > 0
    assert not ours["failures"]
    assert {peer["side"] for peer in peers} == beside
    for peer in peers:
        # Either a figure or a reason: none is left out.
        assert peer["label"] in table
        assert (peer["median"] or 0) > 0 or peer["missing"]
        assert peer["missing"] in table
    (with_bar,) = (line for line in row["lines"] if line["bar"])
    assert with_bar["bar"] == bar
    assert with_bar["ratios"]
    assert with_bar["met"] in {True, False}
    heading, rule, first, *_ = table.splitlines()
    assert heading.count("|") == rule.count("|") == first.count("|") == 8
    assert row["title"] in first
    assert bar in first


class Lossy(ThreadQueue):
    """A side that loses the first item of every sender."""

    def connect(self, crew: Crew, job: Job) -> Link:
        return LossyLink(super().connect(crew, job))


class LossyLink:
    def __init__(self, link: Link) -> None:
        self._link = link

    def sender(self, index: int) -> Sender:
        return LossySender(self._link.sender(index))

    def receiver(self, index: int) -> Receiver:
        return self._link.receiver(index)


class LossySender:
    def __init__(self, sender: Sender) -> None:
        self.end = sender.end
        self.put_one = sender.put_one

    def send(self, items: Iterable[object]) -> None:
        rest = iter(items)
        next(rest)
        put_each(self.put_one, rest)


def test_a_lost_item_is_reported_instead_of_a_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_cell.SIDES, "queue", Lossy)
    job = Job("queue", "throughput", 10, producers=2)
    outcome = _cell.measure(job)
    assert outcome.status == "wrong"
    assert outcome.detail == "8 items with sum 44 came of 10 with sum 45"
    monkeypatch.undo()
    assert _cell.measure(job).status == "ok"


def test_a_side_that_is_not_installed_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_fifo", None)
    outcome = _cell.measure(Job("faster-fifo", "throughput", 10, start_method="spawn"))
    assert outcome.status == "missing"
    assert "faster_fifo" in outcome.detail


def body_that_hangs(gate: Gate) -> Report:
    gate.wait()
    time.sleep(600)
    raise AssertionError("nobody ended this process")


def body_that_dies(gate: Gate) -> Report:
    gate.wait()
    os._exit(3)


def body_that_raises(gate: Gate) -> Report:
    gate.wait()
    raise LookupError("no such thing")


def body_that_reports(gate: Gate) -> Report:
    gate.wait()
    return Report(1, 2)


def test_a_hang_ends_with_the_deadline() -> None:
    bodies = [("good", body_that_reports), ("stuck", body_that_hangs)]
    # Spawn: what is started from a test process with threads must not fork. The check that no
    # process is left behind is every test's.
    with pytest.raises(Hang, match="no report from stuck"):
        ProcessCrew("spawn").run(bodies, timeout_s=4)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (body_that_dies, "bad died"),
        (body_that_raises, r"bad: LookupError: no such thing \(line \d+ of test_benchmarks.py\)"),
    ],
)
def test_a_worker_that_fails_ends_the_measurement(body: Body, text: str) -> None:
    bodies = [("bad", body), ("stuck", body_that_hangs)]
    with pytest.raises(WorkerFailed, match=text):
        ProcessCrew("spawn").run(bodies, timeout_s=30)


def test_the_table_shows_medians_worst_ratios_and_failures() -> None:
    ours = Samples("ours", "ours", by_round=[2e6, 4e6, 3e6])
    peer = Samples("slow", "slow", by_round=[1e6, 1e6, None], failures=["round 3: hangs: stuck"])
    absent = Samples("absent", "absent", missing="no such module")
    lines = [
        compare("work", "items/s", ours, peer, Bar(2.5)),
        compare("work", "items/s", ours, absent, Bar(2)),
    ]
    table = render([RowResult("key", "work", "items/s", [ours, peer, absent], lines)])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    failure = "1.00 M/s (1.00 M/s); round 3: hangs: stuck"
    assert rows == [
        ["work", "3.00 M/s (2.00 M/s)", "slow", failure, "3.00 (2.00)", "at least 2.5", "yes"],
        ["", "", "absent", "missing: no such module", "-", "at least 2", "?"],
    ]
    failed = replace(lines[0], ours=replace(ours, failures=["round 1: WRONG: 1 item of 2"]))
    assert failed.met is False


# The picture


def document(*lines: tuple[str, str | None, str, float | None, float | None]) -> dict[str, Any]:
    return {
        "machine": {
            "python": "3.11.7",
            "implementation": "CPython",
            "platform": "linux",
            "machine": "x86_64",
            "processors": 2,
        },
        "rounds": 5,
        "rows": [
            {
                "key": work.split()[0],
                "lines": [
                    {
                        "work": work,
                        "beside": beside,
                        "unit": unit,
                        "ratio": ratio,
                        "worst_ratio": worst,
                    }
                ],
            }
            for work, beside, unit, ratio, worst in lines
        ],
    }


FIGURES = document(
    ("fast <work>", "slow & old", "items/s", 8.0, 4.0),
    ("latency", "slow & old", "µs", 0.5, 0.8),
    ("lost", "quick", "items/s", 0.25, 0.2),
    ("to itself", "ours, 64 producers", "times", 1.5, 1.9),
    ("import", None, "ms", 3.0, 3.0),
    ("failed", "absent", "items/s", None, None),
)


def test_a_bar_says_how_many_times_as_fast() -> None:
    found = plot.bars(FIGURES)
    assert found == {
        "fast <work>": [plot.Bar("slow & old", 8.0, 4.0)],
        "latency": [plot.Bar("slow & old", 2.0, 1.25)],  # half the time is twice as fast
        "lost": [plot.Bar("quick", 0.25, 0.2)],
    }
    assert list(plot.bars(FIGURES, ["lost"])) == ["lost"]


def test_the_picture_is_to_scale(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(FIGURES))
    assert plot.main([str(tmp_path / "results.json"), "-o", str(tmp_path / "ratios.svg")]) == 0
    svg = "{http://www.w3.org/2000/svg}"
    root = ElementTree.parse(tmp_path / "ratios.svg").getroot()
    more = [
        float(bar.attrib["width"]) for bar in root.iter(f"{svg}rect") if bar.get("class") == "more"
    ]
    (less,) = (bar for bar in root.iter(f"{svg}rect") if bar.get("class") == "less")
    assert abs(more[0] - 3 * more[1]) < 0.2  # 8 is 2 times 2 times 2
    assert abs(float(less.attrib["width"]) - 2 * more[1]) < 0.2
    (one,) = (line for line in root.iter(f"{svg}line") if line.get("class") == "one")
    end = float(less.attrib["x"]) + float(less.attrib["width"])
    assert abs(end - float(one.attrib["x1"])) < 0.2
    texts = [text.text for text in root.iter(f"{svg}text")]
    assert {
        "slow & old",
        "fast <work>",
        *(f"{n}\N{MULTIPLICATION SIGN}" for n in ("8.0", "2.0", "0.25")),
    } <= set(texts)
    assert "prefers-color-scheme: dark" in (root.findtext(f"{svg}style") or "")
    rightmost = max(
        float(r.attrib["x"]) + float(r.attrib["width"]) for r in root.iter(f"{svg}rect")
    )
    assert rightmost <= float(root.attrib["width"])


def test_nothing_to_draw_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.json").write_text(json.dumps(document()))
    assert plot.main([str(tmp_path / "results.json"), "-o", str(tmp_path / "ratios.svg")]) == 2
    assert "no ratio" in capsys.readouterr().err
    assert not (tmp_path / "ratios.svg").exists()

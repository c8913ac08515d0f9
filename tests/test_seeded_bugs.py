"""Bugs that are put into the shipped code are found by exploring it.

Each bug of `seeded_bugs` is explored here by the one model and the one strategy that find it
fastest. `pytest -m soak tests/test_seeded_bugs.py -n 0 -s` tries every strategy, with several
seeds, and prints the table that is in `docs/testing.md`.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from tests.models import MODELS
from tests.seeded_bugs import BUGS, Bug, copy_with, seek_in
from tests.seek import Sought, seek

SCHEDULES = 1000
"""In so many each bug must be found."""
SOUND_SCHEDULES = 100
"""So many of each model pass without a bug, each time; `test_all_models_pass` runs more."""
SOAK_SCHEDULES = 2000
SEEDS = [1, 2, 3, 4, 5]

USED = sorted({(bug.model, bug.strategy) for bug in BUGS})
FOUND = [
    ("threads, closed twice", "random"),
    ("threads, closed by another", "exhaustive"),
    ("threads, observed", "random"),
    ("threads, working", "random"),
]
"""How bugs were found that nobody had seeded."""


@pytest.mark.parametrize("bug", BUGS, ids=[bug.name for bug in BUGS])
def test_bug_is_found(bug: Bug, tmp_path: Path) -> None:
    copy_with(bug, tmp_path)
    [sought] = seek_in(tmp_path, bug.model, bug.strategy, SCHEDULES, [1], 50)
    assert sought.found is not None, sought


@pytest.mark.parametrize(("model", "strategy"), [*USED, *FOUND])
def test_model_passes_without_a_bug(model: str, strategy: str) -> None:
    assert seek(model, strategy, SOUND_SCHEDULES, 1).why == ""


@pytest.mark.soak
@pytest.mark.time_limit(900)
def test_all_models_pass() -> None:
    for model in MODELS:
        for strategy in ("exhaustive", "random", "PCT"):
            assert seek(model, strategy, SOAK_SCHEDULES, 2).why == "", (model, strategy)


@pytest.mark.soak
@pytest.mark.time_limit(1800)
def test_table(tmp_path: Path) -> None:
    """In how many schedules each strategy finds each bug."""
    print("\n| bug | model | exhaustive | random | PCT |\n| --- | --- | ---: | ---: | ---: |")
    missed: list[str] = []
    for number, bug in enumerate(BUGS):
        folder = tmp_path / str(number)
        copy_with(bug, folder)
        cells: list[str] = []
        for strategy, seeds in (("exhaustive", [0]), ("random", SEEDS), ("PCT", SEEDS)):
            cells.append(_cell(seek_in(folder, bug.model, strategy, SOAK_SCHEDULES, seeds, 600)))
        print(f"| {bug.name} | {bug.model} | {' | '.join(cells)} |", flush=True)
        if not any(cell[0].isdigit() for cell in cells):
            missed.append(bug.name)
    assert not missed


def _cell(all_sought: list[Sought]) -> str:
    """The median of the schedules, or in how many of the runs it was found at all."""
    found = sorted(sought.found for sought in all_sought if sought.found is not None)
    if len(found) == len(all_sought):
        cell = str(int(statistics.median(found)))
        bound = all_sought[0].bound
        return cell if bound is None else f"{cell} ({bound + 1})"
    return f"{len(found)} of {len(all_sought)}" if found else "-"

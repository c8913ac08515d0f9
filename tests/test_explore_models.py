"""The shipped ledger, endpoints and channel, explored to completion in small models."""

from __future__ import annotations

import pytest

from benchmarks import models
from benchmarks.models import Model
from iterable_queue.testing import Exploration

TABLE = models.models()


@pytest.mark.parametrize("name", [name for name, model in TABLE.items() if model.quick])
def test_quick_models_hold(name: str) -> None:
    _explore(TABLE[name], 1)


@pytest.mark.soak
@pytest.mark.time_limit(1500)
@pytest.mark.parametrize("name", TABLE)
def test_all_models_hold(name: str) -> None:
    _explore(TABLE[name], models.PREEMPTIONS)


def _explore(model: Model, bound: int) -> None:
    found = models.run(model, bound)
    print(found)
    assert found.complete or found.bound == bound


def test_the_table_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["models", "--preemptions", "1", "a producer fails", "polling"])
    assert models.main() == 0
    head, line, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == [
        "model",
        "bound",
        "schedules",
        "given",
        "up",
        "seconds",
        "1/s",
        "result",
    ]
    assert line == "-" * len(line)
    assert [row.rsplit("  ", 1)[1] for row in rows] == ["no failure"] * 4


def test_one_that_does_not_come_to_its_bound_is_a_failure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_short = models.run(TABLE["polling"], 0)

    def run(model: Model, bound: int, *, reduction: bool = True) -> Exploration:
        return cut_short

    monkeypatch.setattr(models, "run", run)
    monkeypatch.setattr("sys.argv", ["models", "threads polling"])
    assert models.main() == 1
    assert capsys.readouterr().out.splitlines()[-1].endswith("  NOT EXPLORED to 2")

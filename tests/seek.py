"""In how many schedules one of the strategies that `explore` uses finds that a model fails.

`python -m tests.seek MODEL STRATEGY SCHEDULES SEED...` prints one line of JSON for each seed. It is
run with a changed copy of the package first on the path.
"""

from __future__ import annotations

import json
import random
import sys
from typing import NamedTuple

from iterable_queue.testing._explore._search import Budget, Priorities, Search, Taped, Walk
from tests.models import MODELS

STEPS = 1500
SECONDS = 60.0
PATIENCE_S = 10.0
PREEMPTIONS = 3


class Sought(NamedTuple):
    """What came of it.

    Attributes:
        found: at which schedule the model failed, from 1; None: in none of them.
        schedules: how many were run, or begun and given up as equivalent to others.
        bound: for an exhaustive search, the preemptions up to which it came to the end.
        why: the failure.
    """

    found: int | None
    schedules: int
    bound: int | None
    why: str


def seek(model: str, strategy: str, schedules: int, seed: int) -> Sought:
    """Look for a failure.

    *strategy*: `exhaustive`, by growing bound, which needs no seed; `random`; or `PCT`.
    """
    search = Search(MODELS[model], steps=STEPS, spurious=0, patience_s=PATIENCE_S, reduce=True)
    try:
        if strategy == "exhaustive":
            budget = Budget(schedules, SECONDS)
            found = search.exhaust(PREEMPTIONS, budget, 1.0)
            used = budget.used
            why = found.problem.text if found else ""
            return Sought(used if found else None, used, search.bound, why)
        rng = random.Random(seed)
        search.run(Taped())  # for its length
        for number in range(1, schedules + 1):
            chooser = Walk(rng) if strategy == "random" else Priorities(rng, search.longest)
            problem = search.run(chooser).problem
            if problem is not None:
                return Sought(number, number, None, problem.text)
        return Sought(None, schedules, None, "")
    finally:
        search.close()


def main(arguments: list[str]) -> None:
    model, strategy, schedules, *seeds = arguments
    for seed in seeds:
        print(json.dumps(seek(model, strategy, int(schedules), int(seed))))


if __name__ == "__main__":
    main(sys.argv[1:])

"""Every small change of the ledger, one at a time: does a model or a test notice?

    python -m tests.test_mutants [--jobs 2] [--minutes 10] [--only LINE]

makes each mutant of `_ledger.py` in a copy of the package, explores it with every model of
`tests.models` on a small budget, then, if none fails, runs `tests/test_ledger.py` on it, and prints
those that neither noticed. Here it is only tested that mutants are made as they should be.
"""

from __future__ import annotations

import argparse
import ast
import concurrent.futures
import itertools
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.seeded_bugs import LEDGER, PACKAGE, ROOT, Bug, copy_with, environment

SOURCE = (PACKAGE / LEDGER).read_text()
SCHEDULES = 40
"""Of each model."""
LATE = "no end in time"
CALLS = ("notify", "notify_all", "settle", "fold", "_wake_everybody", "give_back", "lease")
"""A call of one of these is left out."""
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}


class Mutant(NamedTuple):
    """One change: at which line, and of what into what."""

    line: int
    old: str
    new: str
    source: str


def mutants(source: str) -> Iterator[Mutant]:
    """Each of them, in the order of the file."""
    lines = source.splitlines(keepends=True)
    starts = [0, *itertools.accumulate(len(line) for line in lines)]
    for part in ast.walk(ast.parse(source)):
        for node, new in _changes(part):
            assert isinstance(node, (ast.expr, ast.stmt))
            assert node.end_lineno is not None
            assert node.end_col_offset is not None
            begin = starts[node.lineno - 1] + node.col_offset
            end = starts[node.end_lineno - 1] + node.end_col_offset
            text = f"({new})" if isinstance(node, ast.expr) else new
            yield Mutant(node.lineno, source[begin:end], new, source[:begin] + text + source[end:])


def _changes(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """What *node* (or a part of it) could wrongly be instead."""
    said = ast.unparse
    match node:
        case ast.Compare(left, [op], right):
            yield node, said(ast.Compare(left, [COMPARISONS[type(op)]()], right))
        case ast.BoolOp(op, values):
            yield node, said(ast.BoolOp(ast.And() if isinstance(op, ast.Or) else ast.Or(), values))
        case ast.UnaryOp(ast.Not(), operand):
            yield node, said(operand)
        case ast.AugAssign(target, ast.Add() | ast.Sub() as op, value):
            if isinstance(value, (ast.Tuple, ast.List)):
                return
            other = "-" if isinstance(op, ast.Add) else "+"
            yield node, f"{said(target)} {other}= {said(value)}"
            yield node, "pass"
        case ast.BinOp(left, ast.Add(), ast.Constant(1)):
            yield node, said(left)
        case ast.Expr(ast.Call(ast.Attribute(_, name))) if name in CALLS:
            yield node, "pass"
        case ast.Return(ast.Constant(bool(value))):
            yield node, f"return {not value}"
        case ast.If(test, [ast.Return() | ast.Raise() | ast.Continue() | ast.Break()], []):
            yield test, f"False and ({said(test)})"
        case _:
            pass


def notice(mutant: Mutant) -> str:
    """Who notices it: a model, by name; `test_ledger`; or nobody, an empty text."""
    with tempfile.TemporaryDirectory() as folder:
        copy_with(Bug("", LEDGER, SOURCE, mutant.source, ""), Path(folder))
        env = environment(Path(folder))
        explored = _run(["-c", _EXPLORE, str(SCHEDULES)], env, 120)
        if explored:
            return explored
        ledger = [
            "-m",
            "pytest",
            "tests/test_ledger.py",
            "-x",
            "-q",
            "-n0",
            "-p",
            "no:cacheprovider",
        ]
        failed = _run(ledger, env, 240)
        return failed if failed in ("", LATE) else "test_ledger"


_EXPLORE = """
import sys
from tests.models import MODELS
from tests.seek import seek
for model in MODELS:
    for strategy in ("exhaustive", "random"):
        why = seek(model, strategy, int(sys.argv[1]), 1).why
        if why:
            sys.exit(f"{model}, {strategy}: {why.splitlines()[0]}")
"""


def _run(command: list[str], env: dict[str, str], timeout_s: float) -> str:
    """How it failed, if it did."""
    try:
        run = subprocess.run(
            [sys.executable, *command],
            env=env,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return LATE
    return (run.stderr.strip().splitlines() or ["failed"])[-1] if run.returncode else ""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--only", type=int, nargs="*", default=[])
    options = parser.parse_args()
    unchanged = notice(Mutant(0, "", "", SOURCE))
    if unchanged:
        parser.error(f"the ledger fails as it is: {unchanged}")
    deadline = time.monotonic() + options.minutes * 60
    todo = [m for m in mutants(SOURCE) if not options.only or m.line in options.only]
    random.Random(1).shuffle(todo)  # so that what was done when the time is over is a fair sample
    by: dict[str, int] = {}
    done = 0

    def attempt(mutant: Mutant) -> str | None:
        return notice(mutant) if time.monotonic() < deadline else None

    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for mutant, who in zip(todo, pool.map(attempt, todo), strict=True):
            if who is None:
                continue
            done += 1
            kind = who if who in ("", LATE, "test_ledger") else "a model"
            by[kind] = by.get(kind, 0) + 1
            if not who or options.only:
                old, new = (text.splitlines()[0] for text in (mutant.old, mutant.new))
                print(f"{mutant.line}: {old}  ->  {new}: {who or 'SURVIVES'}", flush=True)
    print(f"{done} of {len(todo)} mutants; noticed by {by}")


def test_mutants_are_small_and_all_different() -> None:
    made = list(mutants(SOURCE))
    assert len({mutant.source for mutant in made}) == len(made)
    assert len(made) > 200
    for mutant in made:
        compile(mutant.source, LEDGER, "exec")


def test_each_kind_of_change() -> None:
    source = """\
if a > b or not c:
    return True
x.y += 1
self.settle()
n = m + 1
"""
    assert [f"{m.line}: {m.old} -> {m.new}" for m in mutants(source)] == [
        "1: a > b or not c -> False and (a > b or not c)",
        "3: x.y += 1 -> x.y -= 1",
        "3: x.y += 1 -> pass",
        "4: self.settle() -> pass",
        "1: a > b or not c -> a > b and (not c)",
        "2: return True -> return False",
        "5: m + 1 -> m",
        "1: a > b -> a >= b",
        "1: not c -> c",
    ]


if __name__ == "__main__":
    main()

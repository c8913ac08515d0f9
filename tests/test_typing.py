"""What type checkers accept and refuse of a user's code: the files in `tests/typing`.

Each line there that a checker must refuse carries the codes of its errors, mypy's as `type: ignore`
and pyright's as `pyright: ignore`. So the files are free of errors when they are checked with all
the rest. Here the comments are taken out, in a copy of the project's layout and configuration, and
the errors that come must be exactly those that the comments named.

Skipped where a checker isn't installed (`pip install --group types`).
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
CASES = ROOT / "tests" / "typing"

TIME_LIMIT_S = 240.0
"""For a checker that has nothing in its cache yet, on a machine that is busy."""

IGNORE = re.compile(r"  # (?P<checker>type|pyright): ignore\[(?P<codes>[^]]*)\]")


class Refused(NamedTuple):
    """An error of a checker."""

    file: str
    line: int
    code: str
    """The checker's name for the kind of error, or the whole message of one that has no such."""


def run(*command: str, cwd: Path) -> str:
    """What the checker prints. It fails where it finds errors (1), not where it can't run (2)."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MYPY", "COVERAGE_"))}
    finished = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S - 10,
        check=False,
    )
    assert finished.returncode in (0, 1), finished.stdout + finished.stderr
    return finished.stdout


def mypy(project: Path) -> Iterator[Refused]:
    """What mypy refuses in the tests of *project*."""
    printed = run("mypy", "--output=json", f"--cache-dir={project / 'cache'}", "tests", cwd=project)
    for line in printed.splitlines():
        if not line.startswith("{"):
            continue  # the summary
        found = json.loads(line)
        if found["severity"] == "error":
            yield Refused(Path(found["file"]).name, found["line"], found["code"] or line)


def pyright(project: Path) -> Iterator[Refused]:
    """What pyright refuses in the tests of *project*."""
    printed = run("pyright", "--outputjson", f"--pythonpath={sys.executable}", "tests", cwd=project)
    for found in json.loads(printed)["generalDiagnostics"]:
        line = found["range"]["start"]["line"] + 1
        yield Refused(Path(found["file"]).name, line, found.get("rule", found["message"]))


class Checker(NamedTuple):
    """One of the checkers, and how it says what the tests expect."""

    name: str
    check: Callable[[Path], Iterator[Refused]]
    ignore: str
    incompatible: str
    """Its code for a value assigned to a variable of another type."""


CHECKERS = [
    Checker("mypy", mypy, "type", "assignment"),
    Checker("pyright", pyright, "pyright", "reportAssignmentType"),
]


def without_comments(source: str) -> str:
    """What a checker is given: the lines stay where they are."""
    return IGNORE.sub("", source)


def expected(checker: Checker) -> Iterator[Refused]:
    """What the comments name."""
    for path in sorted(CASES.glob("*.py")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for comment in IGNORE.finditer(line):
                if comment["checker"] == checker.ignore:
                    for code in comment["codes"].split(","):
                        yield Refused(path.name, number, code.strip())


# Doubles of which each lacks one member

LACKING = "doubles_lacking_one_member.py"

HEADER = """\
# pyright: reportUnusedImport=false
from __future__ import annotations
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Generic, Self
from iterable_queue import Consumer, Producer, Worker
from tests.typing.doubles import Loop, Sink, Source, T, T_co, T_contra
"""

DOUBLES = {"Sink": "Producer", "Source": "Consumer", "Loop": "Worker"}

MEMBERS_OF_EVERY_END = {"closed", "close", "qsize", "empty", "full", "__enter__", "__exit__"}
MEMBERS_TO_PUT = {"put", "put_nowait", "put_many", "aput", "fail", "clone"}
MEMBERS_TO_GET = {
    *("get", "get_nowait", "get_many", "aget", "aget_many", "clone"),
    *("__iter__", "__next__", "__aiter__", "__anext__"),
}
MEMBERS = {
    "Sink": MEMBERS_OF_EVERY_END | MEMBERS_TO_PUT,
    "Source": MEMBERS_OF_EVERY_END | MEMBERS_TO_GET,
    "Loop": MEMBERS_OF_EVERY_END | MEMBERS_TO_PUT | MEMBERS_TO_GET,
}


def members(*classes: ast.ClassDef) -> dict[str, str]:
    """What is declared in the bodies of *classes*, without what it does."""
    found: dict[str, str] = {}
    for node in (node for each in classes for node in each.body):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) if name != "__init__":
                node.body = [ast.Raise(ast.Name("NotImplementedError"))]
                found[name] = ast.unparse(node)
            case ast.Assign(targets=[ast.Name(id=name)]):
                found[name] = ast.unparse(node)
            case _:
                pass
    return found


def doubles_lacking_one_member() -> tuple[str, list[int]]:
    """A module with a double for each member that one may lack, and the lines to be refused.

    Each protocol first gets one that lacks nothing, which is to be accepted.
    """
    tree = ast.parse((CASES / "doubles.py").read_text())
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    lines: list[str] = []
    lines += HEADER.splitlines()
    refused: list[int] = []
    for name, protocol in DOUBLES.items():
        has = members(classes["End"], classes[name])
        assert set(has) == MEMBERS[name]
        for lacks in [None, *has]:
            double = f"{name}Without_{lacks}"
            lines.append(f"class {double}({ast.unparse(classes[name].bases[1])}):")
            for member, text in has.items():
                if member != lacks:
                    lines += [f"    {line}" for line in text.splitlines()]
            lines.append(f"as_{double}: {protocol}[int] = {double}[int]()")
            if lacks is not None:
                refused.append(len(lines))
    return "\n".join(lines) + "\n", refused


# The test


@pytest.mark.time_limit(TIME_LIMIT_S)
@pytest.mark.parametrize("checker", CHECKERS, ids=lambda checker: checker.name)
def test_a_checker_refuses_exactly_what_it_must(checker: Checker, tmp_path: Path) -> None:
    if importlib.util.find_spec(checker.name) is None:
        pytest.skip(f"{checker.name} isn't installed")
    for name in ("pyproject.toml", "mypy.ini"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("src", "typings"):
        (tmp_path / name).symlink_to(ROOT / name)
    copies = tmp_path / "tests" / "typing"
    copies.mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "__init__.py", tmp_path / "tests")
    for path in CASES.glob("*.py"):
        (copies / path.name).write_text(without_comments(path.read_text()))
    source, lines = doubles_lacking_one_member()
    (copies / LACKING).write_text(source)

    must = {*expected(checker), *(Refused(LACKING, n, checker.incompatible) for n in lines)}
    does = set(checker.check(tmp_path))
    wrong = [f"accepts what it should refuse: {each}" for each in sorted(must - does)]
    wrong += [f"refuses what it should accept: {each}" for each in sorted(does - must)]
    assert not wrong, "\n".join(wrong)


def test_no_comment_is_overlooked() -> None:
    """Each names the codes that it is for, in the form that is looked for here."""
    ignores = re.compile(r"#\s*(?:type|pyright|mypy)\s*:")
    overlooked = [
        f"{path.name}:{number}: {line.strip()}"
        for path in CASES.glob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if ignores.search(without_comments(line))
    ]
    assert not overlooked

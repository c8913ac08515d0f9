"""What is public: the names that run time has and those that type checkers see, and what they say.

pyright is asked by way of its `--verifytypes`, and skipped where it isn't installed. mypy is asked
by `stubtest`, which is a check of its own, as it is for the stubs in `typings`. What can be said of
names without them is in `tests/test_packaging.py`.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import iterable_queue
import iterable_queue.testing
from iterable_queue import IterableQueue, Statistics

ROOT = Path(__file__).parents[1]
PACKAGE = Path(iterable_queue.__file__).parent

PUBLIC = [iterable_queue, iterable_queue.testing]

TIME_LIMIT_S = 240.0
"""For a checker that has nothing in its cache yet, on a machine that is busy."""

CALLS_OF_A_QUEUE = {
    "threaded",
    "over",
    "connect",
    "get_producer",
    "get_consumer",
    "get_worker",
    "close",
    "cancel",
    "join",
    "ajoin",
    "statistics",
    "explain",
    "record",
    "qsize",
    "empty",
    "full",
}
CONSTANTS_OF_A_QUEUE = {"Done", "Empty", "Full", "MAX_DELIVERIES"}

public_modules = pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)


def public_names(of: object) -> set[str]:
    return {name for name in vars(of) if not name.startswith("_")}


# At run time


@public_modules
def test_a_star_gives_what_is_public(module: ModuleType) -> None:
    given: dict[str, object] = {}
    exec(f"from {module.__name__} import *", given)
    del given["__builtins__"]
    assert set(given) == set(module.__all__)
    assert sorted(module.__all__) == module.__all__


@public_modules
def test_dir_shows_what_is_public(module: ModuleType) -> None:
    assert set(module.__all__) <= set(dir(module))


def test_a_queue_has_the_calls_that_it_should() -> None:
    assert public_names(IterableQueue) == CALLS_OF_A_QUEUE | CONSTANTS_OF_A_QUEUE


# Docstrings


def documented(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Every public class and function of *module*, and every public call of those classes."""
    for name in module.__all__:
        thing = getattr(module, name)
        if not inspect.getmodule(thing) or not thing.__module__.startswith("iterable_queue"):
            continue  # the standard library's, or an alias of a type
        yield name, thing
        if isinstance(thing, type):
            for member in public_names(thing):
                value: Any = inspect.getattr_static(thing, member)
                value = getattr(value, "__func__", value)  # of a classmethod
                if inspect.isfunction(value) or isinstance(value, property):
                    yield f"{name}.{member}", value


def own_text(thing: Any) -> str | None:
    """The docstring of *thing* itself, neither inherited nor made by `NamedTuple`."""
    if not isinstance(thing, type):
        said: str | None = thing.__doc__
        return said
    text: str | None = vars(thing).get("__doc__")
    return None if text and text.startswith(f"{thing.__name__}(") else text


@public_modules
def test_everything_public_says_what_it_is(module: ModuleType) -> None:
    things = dict(documented(module))
    assert len(things) > len(module.__all__) // 2
    silent = [name for name, thing in things.items() if not own_text(thing)]
    # Protocols that say which calls are used name these after what they do elsewhere.
    exempt = ("QueueLike.", "ProcessLike.")
    assert not [name for name in silent if not name.startswith(exempt)]


@public_modules
def test_modules_say_what_they_are(module: ModuleType) -> None:
    assert module.__doc__
    assert "    from iterable_queue import" in module.__doc__  # an example


def test_each_count_says_what_it_counts() -> None:
    source = ast.parse(inspect.getsource(Statistics)).body[0]
    assert isinstance(source, ast.ClassDef)
    said: list[str] = []
    for field, text in zip(source.body, source.body[1:], strict=False):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str())):
                said.append(name)
            case _:
                pass
    assert tuple(said) == Statistics._fields


# What type checkers see


def run(tool: str, *arguments: str, cwd: Path) -> str:
    """What the tool prints of the package from which this process imported it."""
    if importlib.util.find_spec(tool.partition(".")[0]) is None:
        pytest.skip(f"{tool} isn't installed")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MYPY", "COVERAGE_"))}
    environment["PYTHONPATH"] = environment["MYPYPATH"] = str(PACKAGE.parent)
    finished = subprocess.run(
        [sys.executable, "-m", tool, *arguments],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S - 10,
        check=False,
    )
    assert finished.returncode in (0, 1), finished.stdout + finished.stderr  # 2: it can't run
    return finished.stdout


@pytest.fixture(scope="module")
def verified(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What pyright says of the package's types."""
    printed = run(
        "pyright",
        "--verifytypes=iterable_queue",
        "--ignoreexternal",
        "--outputjson",
        f"--pythonpath={sys.executable}",
        cwd=tmp_path_factory.mktemp("elsewhere"),
    )
    result: dict[str, Any] = json.loads(printed)["typeCompleteness"]
    assert Path(result["packageRootDirectory"]) == PACKAGE
    return result


@pytest.mark.time_limit(TIME_LIMIT_S)
def test_pyright_sees_what_run_time_has(verified: dict[str, Any]) -> None:
    seen = {symbol["name"] for symbol in verified["symbols"] if symbol["isExported"]}
    assert seen == {f"{module.__name__}.{name}" for module in PUBLIC for name in module.__all__}
    of_a_queue = f"{IterableQueue.__module__}.{IterableQueue.__name__}."
    names = {symbol["name"] for symbol in verified["symbols"]}
    members = {name.removeprefix(of_a_queue) for name in names if name.startswith(of_a_queue)}
    assert {name for name in members if not name.startswith("_")} == public_names(IterableQueue)


@pytest.mark.time_limit(TIME_LIMIT_S)
def test_every_type_is_known(verified: dict[str, Any]) -> None:
    """Of what is exported, and of what that refers to."""
    unknown = [
        f"{symbol['name']}: {diagnostic['message']}"
        for symbol in verified["symbols"]
        for diagnostic in symbol.get("diagnostics", ())
        if diagnostic["severity"] == "error"
    ]
    assert not unknown, "\n".join(unknown)
    assert verified["completenessScore"] == 1


def test_errors_are_called_by_the_name_by_which_one_imports_them() -> None:
    for module in PUBLIC:
        for name in module.__all__:
            value = getattr(module, name)
            if isinstance(value, type) and issubclass(value, BaseException):
                standard = value.__module__ in ("queue", "_queue")
                assert standard or value.__module__ == module.__name__, name
                assert pickle.loads(pickle.dumps(value)) is value

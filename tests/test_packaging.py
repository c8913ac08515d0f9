"""What is promised about the package as such: its names, its weight, its metadata."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import iterable_queue

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "iterable_queue"

DISTRIBUTION = "iterable-queue"

PUBLIC_MODULES = ["iterable_queue", "iterable_queue.testing"]

PROMISED = {
    "IterableQueue",
    "Producer",
    "Consumer",
    "Worker",
    "Statistics",
    "Empty",
    "Full",
    "IterableQueueError",
    "Done",
    "ProducerClosed",
    "ConsumerClosed",
    "QueueClosed",
    "ProducerFailed",
    "ConsumersGone",
    "Cancelled",
    "ChannelBroken",
    "ItemError",
    "ItemsLost",
    "EndpointElsewhere",
    # the names of release 1.x
    "IterableQueueException",
    "ProducerQueueClosedException",
    "ConsumerQueueClosedException",
    "IterableQueueIllegalStateException",
}

# All that `import iterable_queue` may load: it is paid for in each process that is spawned.
LIGHT = {
    f"iterable_queue.{name}" if name else "iterable_queue"
    for name in (
        "",
        "_cells",
        "_channel",
        "_clock",
        "_core",
        "_endpoints",
        "_errors",
        "_forks",
        "_ledger",
        "_protocols",
        "_queue",
        "_runtime",
    )
} | {
    "__future__",
    "collections",
    "collections.abc",
    "copyreg",
    "enum",
    "errno",
    "functools",
    "genericpath",
    "heapq",
    "itertools",
    "keyword",
    "math",
    "operator",
    "os",
    "os.path",
    "posixpath",
    "queue",
    "reprlib",
    "signal",
    "stat",
    "struct",
    "threading",
    "types",
    "typing",
    "warnings",
    "weakref",
}
OLDER = {
    "contextlib",
    "re",
    "re._casefix",
    "re._compiler",
    "re._constants",
    "re._parser",
    "typing.io",
    "typing.re",
}
"""What `typing` loads before Python 3.13."""


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def sources() -> list[Path]:
    found = sorted(PACKAGE.rglob("*.py"))
    assert found
    return found


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# Names


@pytest.fixture(params=PUBLIC_MODULES)
def public(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(request.param)


def test_every_public_name_is_there(public: ModuleType) -> None:
    names: list[str] = public.__all__
    assert len(set(names)) == len(names)
    missing = [name for name in names if not hasattr(public, name)]
    assert not missing
    assert not [name for name in names if name.startswith("_")]


def test_nothing_else_looks_public(public: ModuleType) -> None:
    """Only submodules, which are attributes of their package from their first import on."""
    extra = set(vars(public)) - set(public.__all__) - {"annotations"}  # that of __future__
    # Other than identifiers are pytest's, which rewrites the package of an installed plugin.
    extra = {name for name in extra if name.isidentifier() and not name.startswith("_")}
    assert {n for n in extra if f"{public.__name__}.{n}" not in sys.modules} == set()


def test_type_checkers_see_the_names_that_run_time_has(public: ModuleType) -> None:
    """They read `__all__` as it is written, and take only what was imported or defined as such."""
    assert public.__file__
    tree = ast.parse(Path(public.__file__).read_text())
    written: list[str] = []
    bound: set[str] = set()
    for node in [
        *tree.body,
        *(later for n in tree.body if isinstance(n, ast.If) for later in n.body),
    ]:
        match node:
            case ast.ImportFrom() | ast.Import():
                bound |= {alias.asname or alias.name for alias in node.names}
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                bound.add(name)
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                written = ast.literal_eval(value)
            case _:
                pass
    assert written == public.__all__
    assert set(written) <= bound


def test_the_promised_names_are_public() -> None:
    assert set(iterable_queue.__all__) >= PROMISED


def test_every_other_module_starts_with_an_underscore() -> None:
    names = {module_name(path) for path in sources()} - set(PUBLIC_MODULES)
    assert not [name for name in names if "._" not in name]


def test_the_core_never_imports_testing() -> None:
    importers: list[str] = []
    for path in sources():
        if "testing" in path.relative_to(PACKAGE).parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.ImportFrom(module=str(module)):
                    imported = [module, *(f"{module}.{alias.name}" for alias in node.names)]
                case ast.Import():
                    imported = [alias.name for alias in node.names]
                case _:
                    continue
            if any(name.startswith("iterable_queue.testing") for name in imported):
                importers.append(f"{path.name}:{node.lineno}")
    assert not importers


# Importing

LOOK = """
import json, os, sys
def look():
    return {
        "modules": sorted(sys.modules),
        "threads": len(os.listdir("/proc/self/task")),
        "children": open(f"/proc/self/task/{os.getpid()}/children").read().split(),
        "descriptors": sorted(int(fd) for fd in os.listdir("/proc/self/fd")),
        "paths": sys.path,
        "environment": dict(os.environ),
    }
"""


@pytest.mark.parametrize("module", PUBLIC_MODULES)
def test_an_import_is_light_and_starts_nothing(module: str) -> None:
    program = f"{LOOK}\nbefore = look()\nimport {module}\nprint(json.dumps([before, look()]))"
    # Not measured: what measures imports modules of its own.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")}
    finished = subprocess.run(
        [sys.executable, "-I", "-c", program],
        capture_output=True,
        text=True,
        timeout=30,
        env=environment,
        check=False,
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    before, after = json.loads(finished.stdout)
    imported = set(after.pop("modules")) - set(before.pop("modules"))
    assert module in imported
    assert after == before  # no thread, no process, nothing opened
    if module == "iterable_queue":
        light = LIGHT if sys.version_info >= (3, 13) else LIGHT | OLDER
        private = re.compile(r"_[a-z]\w*")  # parts of those that are listed, in C for the most part
        assert not {name for name in imported - light if not private.fullmatch(name)}


COMPILED = """
import sys
compiled = []
def note(event, args):
    if event == "compile" and args[1] == "<string>":
        compiled.append(bytes(args[0]).decode())
import multiprocessing
sys.addaudithook(note)
from iterable_queue import IterableQueue
IterableQueue().close()
print(*compiled, sep="\\n")
"""


def test_an_import_compiles_no_annotations() -> None:
    """Of a NamedTuple `typing` does, if they are strings: a tenth of a millisecond for each."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", COMPILED],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    # What makes a NamedTuple does so for its own `__new__`.
    assert [line for line in done.stdout.splitlines() if not line.startswith("lambda _cls, ")] == []


# Metadata


def test_there_is_no_run_time_dependency() -> None:
    required = importlib.metadata.requires(DISTRIBUTION) or []
    assert [needs for needs in required if "; extra ==" not in needs] == []
    assert pyproject()["project"]["dependencies"] == []


def test_the_version_is_one() -> None:
    installed = importlib.metadata.version(DISTRIBUTION)
    assert installed == pyproject()["project"]["version"] == iterable_queue.__version__


def test_the_changelog_has_a_place_for_the_next_change() -> None:
    assert re.search(r"(?m)^## .*Unreleased", (ROOT / "CHANGELOG.md").read_text())


def test_type_checkers_are_told_to_look() -> None:
    assert (PACKAGE / "py.typed").is_file()
    assert (Path(iterable_queue.__file__).parent / "py.typed").is_file()


def test_only_pythons_that_are_tried_are_claimed() -> None:
    classifiers: list[str] = pyproject()["project"]["classifiers"]
    pattern = r"Programming Language :: Python :: (3\.\d+)"
    claimed = [m[1] for c in classifiers if (m := re.fullmatch(pattern, c))]
    tried = re.search(r"(?m)^PYTHONS=\((.*?)\)", (ROOT / ".ci" / "run").read_text())
    assert tried
    assert claimed == tried[1].split()
    typed = re.search(r"(?m)^mypy --python-version (.+)$", (ROOT / ".ci" / "run").read_text())
    assert typed
    assert typed[1] == claimed[0], "the oldest has the fewest names; pyright takes the newest"


def test_hooks_run_what_ci_runs() -> None:
    ci = (ROOT / ".ci" / "run").read_text().splitlines()
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    entries: list[str] = re.findall(r"(?m)^ +entry: (.+)$", hooks)
    assert entries
    assert [entry for entry in entries if entry not in ci] == []  # in the list of checks
    assert set(re.findall(r"(?m)^ +- repo: (.+)$", hooks)) == {"local"}
    assert set(re.findall(r"(?m)^ +language: (.+)$", hooks)) == {"system"}


# What is written down

PRAGMA = re.compile(r"#\s*pragma:\s*no\s*(?:cover|branch)(.*)")


def test_every_excluded_line_says_why() -> None:
    unexplained = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sources()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if (found := PRAGMA.search(line)) and not re.match(r" - \w.{8,}", found[1])
    ]
    assert not unexplained


def texts() -> Iterator[Path]:
    """All files of the project that people read or that run."""
    yield from (ROOT / ".ci").iterdir()
    yield from (path for path in ROOT.iterdir() if path.is_file())
    for folder in ("src", "tests", "typings", "examples", "benchmarks", "docs"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and not {"__pycache__", ".peers"} & set(path.parts):
                yield path


def test_no_text_names_the_machine_it_was_written_on() -> None:
    shared = {Path("/"), Path("/tmp"), Path(tempfile.gettempdir())}
    places = {Path.home(), ROOT, ROOT.parent} - shared
    pattern = re.compile("|".join(rf"(?<![\w.]){re.escape(f'{place}/')}" for place in places))
    found: list[str] = []
    for path in texts():
        content = path.read_bytes().decode(errors="replace")
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in pattern.finditer(content)]
    assert not found

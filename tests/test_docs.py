"""What the pages in `docs/` say, held to its word: programs run and are typed, links lead on.

A fence `python` opens a whole program; what it prints is compared with the block `text` behind it,
if there is one, else it must print nothing. Where it has no main guard, its tests are called. A
fence `py` opens a piece: a module of tests, for pytest, or something that is only shown. Marks,
each a comment in a line before the fence:

- `<!-- any order -->`, before a block of output: its lines may come in any order;
- `<!-- writes to stderr -->`: so it does, and what it is matters not;
- `<!-- on its own -->`: in an interpreter of its own, not with the others of the page;
- `<!-- untyped -->`: not looked at by type checkers;
- `<!-- needs Python 3.13 -->`: not run by an older one.

A program that imports what is in `OPTIONAL` is not run where that is not installed.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from itertools import pairwise
from pathlib import Path

import pytest

import iterable_queue
import iterable_queue.testing
from tests.conftest import FORKS
from tests.test_readme import ANY_ORDER, ROOT, Block, fenced_blocks, run

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
RUNNER = Path(__file__).with_name("run_documents.py")
LIMIT_S = 150.0
"""For all programs of a page."""
OPTIONAL = {"anyio", "joblib", "opentelemetry", "rich", "torch", "tqdm", "uvloop"}
LANGUAGES = {
    "",
    "console",
    "diff",
    "mermaid",
    "py",
    "python",
    "sh",
    "text",
    "toml",
    "{eval-rst}",
    "{toctree}",
}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))


@dataclass(frozen=True)
class Program:
    """A whole program of a page.

    Attributes:
        name: of the file that it is run from.
        printed: the block that says what it prints, if there is one.
    """

    name: str
    block: Block
    printed: Block | None

    def marked(self, mark: str) -> bool:
        return f"<!-- {mark} -->" in self.block.before.splitlines()[-3:]

    @property
    def missing(self) -> str | None:
        """What it needs and is not there."""
        for major, minor in re.findall(r"<!-- needs Python (\d+)\.(\d+) -->", self.block.before):
            if sys.version_info < (int(major), int(minor)):
                return f"Python {major}.{minor}"
        imported = re.findall(r"^\s*(?:from|import) (\w+)", self.block.text, re.MULTILINE)
        for name in OPTIONAL & set(imported):
            if importlib.util.find_spec(name) is None:
                return name
        return None


def followed(page: Path) -> Iterator[tuple[Block, Block | None]]:
    """Each block, with the next one."""
    blocks: list[Block | None] = [*fenced_blocks(page.read_text()), None]
    for block, after in pairwise(blocks):
        assert block is not None
        yield block, after


@cache
def programs(page: Path) -> list[Program]:
    found: list[Program] = []
    for block, after in followed(page):
        if block.language != "python":
            continue
        says = after and after.language == "text" and after.before in ("", ANY_ORDER)
        name = f"{page.stem.replace('-', '_')}_line_{block.line}.py"
        found.append(Program(name, block, after if says else None))
    return found


def steady(printed: str, name: str) -> str:
    """Without what differs from run to run; programs call themselves `example.py`."""
    printed = re.sub(r"made at \S+/", "made at ", printed).replace(name, "example.py")
    printed = re.sub(r"\d+\.\d s ago", "0.1 s ago", printed)
    printed = re.sub(r"\S*/iterable_queue-[\w-]+", "DIRECTORY", printed)
    return re.sub(r"\b(pid|process) \d+", r"\1 1234", printed)


@pages
def test_no_fence_is_overlooked(page: Path) -> None:
    text = page.read_text()
    blocks = fenced_blocks(text)
    assert text.count("```") == 2 * len(blocks)
    assert {block.language for block in blocks} <= LANGUAGES
    outputs = [block for block in blocks if block.language == "text" and not block.before]
    printed = [program.printed for program in programs(page)]
    assert [output for output in outputs if output not in printed] == []


@FORKS
@pytest.mark.time_limit(LIMIT_S + 20)
@pytest.mark.parametrize(
    "page", [p for p in PAGES if programs(p)], ids=lambda page: str(page.relative_to(DOCS))
)
def test_programs(page: Path, tmp_path: Path) -> None:
    runs: dict[bool, list[str]] = {False: [], True: []}
    ready = [program for program in programs(page) if not program.missing]
    for program in ready:
        (tmp_path / program.name).write_text(program.block.text)
        runs[program.marked("on its own")].append(program.name)
    for names in [runs[False], *([name] for name in runs[True])]:
        # -P: no module is looked for in the folder of the tests. -X dev: what a program leaves
        # open is told on its standard error; readers copy programs.
        # A fork beside the feeder thread of a program before it is deprecated, and not the page's.
        options = ["-X", "dev", "-W", "ignore::DeprecationWarning", "-P"]
        command = [sys.executable, *options, str(RUNNER), str(tmp_path), *names]
        done = run(*command, cwd=tmp_path, timeout=LIMIT_S)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), names
    wrong = [report for program in ready if (report := difference(program, tmp_path))]
    assert not wrong, "\n".join(wrong)


def difference(program: Program, folder: Path) -> str | None:
    """What *program* printed, if that is not what it should."""
    printed = steady((folder / f"{program.name}.out").read_text(), program.name)
    complaint = (folder / f"{program.name}.err").read_text()
    expected = steady(program.printed.text, program.name) if program.printed else ""
    if program.printed and program.printed.before == ANY_ORDER:
        same = sorted(printed.splitlines()) == sorted(expected.splitlines())
    else:
        same = printed == expected
    if same and bool(complaint) == program.marked("writes to stderr"):
        return None
    return (
        f"line {program.block.line} printed\n{printed}\nnot\n{expected}\n"
        f"and complained\n{complaint}"
    )


@pytest.mark.time_limit(LIMIT_S + 20)
def test_suites(tmp_path: Path) -> None:
    """Pieces with tests in them, run by pytest with the plugin; a failure prints what follows."""
    reports: dict[str, str] = {}
    for page in PAGES:
        for block, after in followed(page):
            if block.language == "py" and "\ndef test_" in block.text:
                name = f"test_{page.stem.replace('-', '_')}_{block.line}.py"
                (tmp_path / name).write_text(block.text)
                if after and after.language == "console" and not after.before:
                    reports[name] = after.text.replace("test_docs.py", name)
    # Of what is asked of every queue, some: all of it is in `tests.test_conformance`.
    command = ["-m", "pytest", "-rA", "-p", "no:cacheprovider", "-k", "not test_my_queue or order"]
    command = ["-X", "dev", *command, "-W", "error"]  # so a leak fails
    if not entry_points(group="pytest11", name="iterable_queue"):
        command += ["-p", "_iterable_queue_pytest"]
    done = run(sys.executable, *command, cwd=tmp_path, timeout=LIMIT_S)
    passed = set(re.findall(r"^PASSED (\w+\.py)", done.stdout, re.MULTILINE))
    assert {path.name for path in tmp_path.glob("test_*.py")} == passed | set(reports)
    printed = re.sub(r"(called|made) at \S+/", r"\1 at ", done.stdout)
    for name, report in reports.items():
        for line in filter(None, report.splitlines()):
            start, _, rest = line.partition("...")  # which stands for what differs
            assert start in printed, name
            assert rest in printed, name


def test_programs_are_typed(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    ready = [
        program
        for page in PAGES
        for program in programs(page)
        if not program.missing and not program.marked("untyped")
    ]
    for program in ready:
        (tmp_path / program.name).write_text(program.block.text)
    files = [str(tmp_path / program.name) for program in ready]
    assert len(set(files)) == len(files)
    done = run(sys.executable, "-m", "mypy", "--strict", *files, cwd=ROOT, timeout=LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Those of its headings, as code hosts make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings: list[str] = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        place, _, anchor = target.partition("#")
        if re.match(r"\w+:", place):
            continue
        path = (page.parent / place).resolve() if place else page
        assert path.is_file(), target
        assert not anchor or anchor in anchors(path), target


def test_every_page_is_in_a_table_of_contents() -> None:
    listed: set[str] = set()
    for block in fenced_blocks((DOCS / "index.md").read_text()):
        if block.language == "{toctree}":
            entries = [line for line in block.text.split() if not line.startswith(":")]
            for entry in entries:
                listed |= {str(path.relative_to(DOCS)) for path in DOCS.glob(f"{entry}.md")}
    assert {str(page.relative_to(DOCS)) for page in PAGES} == listed | {"index.md"}


@pytest.mark.parametrize(
    ("module", "page"),
    [
        (iterable_queue, "reference.md"),
        (iterable_queue.testing, "reference-testing.md"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_reference_has_every_public_name(module: object, page: str) -> None:
    text = (DOCS / page).read_text()
    prefix = f"{getattr(module, '__name__')}."  # noqa: B009
    named: list[str] = re.findall(r"^\.\. auto\w+:: (\S+)$", text, re.MULTILINE)
    names: list[str] = getattr(module, "__all__")  # noqa: B009
    assert sorted(name.removeprefix(prefix) for name in named) == sorted(names)

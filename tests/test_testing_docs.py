"""What the docs say of `iterable_queue.testing`, and of debugging, is run and typed.

A program's tests are called, and what it prints is compared with the block of text behind it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.test_readme import Block, fenced_blocks, run

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").glob("testing*.md")), ROOT / "docs" / "debugging.md"]
CALL_TESTS = (
    "import runpy, sys; names = runpy.run_path(sys.argv[1]); "
    "[call() for name, call in names.items() if name.startswith('test_')]"
)


def programs(page: Path) -> list[tuple[Block, str | None]]:
    """Each program, with what it is to print if that is said."""
    blocks = fenced_blocks(page.read_text())
    followed = zip(blocks, [*blocks[1:], None], strict=True)
    return [
        (block, after.text if after and after.language == "text" and not after.before else None)
        for block, after in followed
        if block.language == "python"
    ]


PROGRAMS = [
    pytest.param(*each, id=f"{page.stem} line {each[0].line}")
    for page in PAGES
    for each in programs(page)
]


def steady(printed: str) -> str:
    """Without what differs from run to run."""
    printed = re.sub(r"\b(pid|process) \d+", r"\1 1234", printed)
    return re.sub(r"made at \S+/", "made at ", printed)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_fence_is_overlooked(page: Path) -> None:
    text = page.read_text()
    blocks = fenced_blocks(text)
    assert text.count("```") == 2 * len(blocks)
    outputs = [block.text for block in blocks if block.language == "text"]
    assert outputs == [printed for _, printed in programs(page) if printed is not None]


@pytest.mark.parametrize(("program", "printed"), PROGRAMS)
def test_program(program: Block, printed: str | None, tmp_path: Path) -> None:
    path = tmp_path / "example.py"
    path.write_text(program.text)
    call_tests = [] if "__main__" in program.text else ["-c", CALL_TESTS]
    done = run(sys.executable, *call_tests, str(path), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert steady(done.stdout) == (printed or "")


@pytest.mark.parametrize(
    "page", [page for page in PAGES if programs(page)], ids=lambda page: page.name
)
def test_programs_are_typed(page: Path, tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    files: list[str] = []
    for n, (program, _) in enumerate(programs(page)):
        path = tmp_path / f"example_{n}.py"
        path.write_text(program.text)
        files.append(str(path))
    done = run(sys.executable, "-m", "mypy", "--strict", *files, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr

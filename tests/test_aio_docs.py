"""What docs/asyncio.md says, held to its word: programs are run and typed, as those of testing.md.

A program is left out where what it imports isn't installed.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from tests.test_readme import Block, fenced_blocks, run
from tests.test_testing_docs import CALL_TESTS, programs

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "asyncio.md"
PROGRAMS = programs(PAGE)


def missing(program: Block) -> list[str]:
    """What else it needs and isn't installed."""
    wanted = [name for name in ("anyio", "uvloop") if f"import {name}\n" in program.text]
    return [name for name in wanted if importlib.util.find_spec(name) is None]


def test_no_fence_is_overlooked() -> None:
    text = PAGE.read_text()
    blocks = fenced_blocks(text)
    assert text.count("```") == 2 * len(blocks)
    outputs = [block.text for block in blocks if block.language == "text"]
    assert outputs == [printed for _, printed in PROGRAMS if printed is not None]


@pytest.mark.parametrize(
    ("program", "printed"),
    [pytest.param(*each, id=f"line {each[0].line}") for each in PROGRAMS],
)
def test_program(program: Block, printed: str | None, tmp_path: Path) -> None:
    if missing(program):
        pytest.skip(f"{missing(program)[0]} isn't installed")
    path = tmp_path / "example.py"
    path.write_text(program.text)
    call_tests = ["-c", CALL_TESTS] if "def test_" in program.text else []
    done = run(sys.executable, *call_tests, str(path), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (printed or "")


def test_programs_are_typed(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    files: list[str] = []
    for n, (program, _) in enumerate(PROGRAMS):
        if not missing(program):
            path = tmp_path / f"example_{n}.py"
            path.write_text(program.text)
            files.append(str(path))
    done = run(sys.executable, "-m", "mypy", "--strict", *files, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr

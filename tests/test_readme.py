"""The README, held to its word: its programs are run and type-checked, its commands are there."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import iterable_queue

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
ANY_ORDER = "<!-- any order -->"
"""Stands before a block of output whose lines may come in any order."""


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: what follows its opening fence.
        line: number of that line in the README.
        text: what is between the fences.
        before: what is between the previous block, if any, and this one.
    """

    language: str
    line: int
    text: str
    before: str


def fenced_blocks(markdown: str) -> list[Block]:
    blocks: list[Block] = []
    end = 0
    for match in re.finditer(r"^```(\S*)\n(.*?)^```$", markdown, re.MULTILINE | re.DOTALL):
        line = markdown.count("\n", 0, match.start()) + 1
        before = markdown[end : match.start()].strip()
        blocks.append(Block(match[1], line, match[2], before))
        end = match.end()
    return blocks


BLOCKS = fenced_blocks(TEXT)
PROGRAMS = [block for block in BLOCKS if block.language == "python"]


def expected_output(program: Block) -> Block | None:
    """The block of output that follows, with nothing but a mark on it in between."""
    following = BLOCKS[BLOCKS.index(program) + 1 :][:1]
    for block in following:
        if block.language == "text" and block.before in ("", ANY_ORDER):
            return block
    return None


def saved(program: Block, folder: Path) -> Path:
    path = folder / f"readme_line_{program.line}.py"
    path.write_text(program.text)
    return path


def run(*command: str, cwd: Path, timeout: float = 40) -> subprocess.CompletedProcess[str]:
    sources = str(Path(iterable_queue.__file__).parents[1])
    # Unbuffered, a `print` would be two writes, and those of several processes would mix.
    environment = {**os.environ, "PYTHONPATH": sources, "PYTHONUNBUFFERED": ""}
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def test_every_fence_is_understood() -> None:
    assert TEXT.count("```") == 2 * len(BLOCKS)
    assert {block.language for block in BLOCKS} <= {"python", "sh", "text"}
    outputs = [block for block in BLOCKS if block.language == "text"]
    assert outputs == [out for program in PROGRAMS if (out := expected_output(program))]
    assert len(PROGRAMS) >= 3


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda block: f"line {block.line}")
def test_program(program: Block, tmp_path: Path) -> None:
    done = run(sys.executable, str(saved(program, tmp_path)), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    expected = expected_output(program)
    if expected is None:
        return
    if expected.before == ANY_ORDER:
        assert sorted(done.stdout.splitlines()) == sorted(expected.text.splitlines())
    else:
        assert done.stdout == expected.text


def test_programs_are_typed(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    files = [str(saved(program, tmp_path)) for program in PROGRAMS]
    done = run(sys.executable, "-m", "mypy", "--strict", *files, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_example_is_the_one_in_examples() -> None:
    quickstart = (ROOT / "examples" / "quickstart.py").read_text()
    assert quickstart in [program.text for program in PROGRAMS]


@pytest.mark.parametrize("mark", ["<!-- main job -->", "<!-- test command -->"])
def test_a_command_follows_its_mark(mark: str) -> None:
    [block] = (block for block in BLOCKS if block.before.endswith(mark))
    assert TEXT.count(mark) == 1
    assert block.language == "sh"
    bash = shutil.which("bash")
    assert bash is not None
    assert subprocess.run([bash, "-n", "-c", block.text], check=False).returncode == 0
    for path in re.findall(r"\bexamples/\S+", block.text):
        assert (ROOT / path).is_file()


def test_links_lead_somewhere() -> None:
    prose = re.sub(r"^```.*?^```$|`[^`]*`", "", TEXT, flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)#:]+)\)", prose)
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target

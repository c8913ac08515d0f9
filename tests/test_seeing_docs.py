"""What docs/seeing.md says, held to its word, beyond what `tests.test_docs` asks of every page.

Its commands are run after its programs, whose files they read.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import iterable_queue
from iterable_queue import Statistics
from iterable_queue._command import _doctor, _plot
from tests.conftest import FORKS
from tests.test_command import KEYS
from tests.test_readme import Block, fenced_blocks, run

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "seeing.md"
TEXT = PAGE.read_text()
BLOCKS = fenced_blocks(TEXT)
PICTURE = ROOT / "docs" / "images" / "hash-tree.svg"


def steady(printed: str) -> str:
    """Without what differs from run to run."""
    printed = re.sub(r"process \d+", "process 1234", printed)
    return re.sub(r"\S*/iterable_queue-[\w-]+", "DIRECTORY", printed)


def command(block: Block, folder: Path) -> list[str]:
    if block.language == "sh":
        bash = shutil.which("bash")
        assert bash is not None
        return [bash, "-e", "-c", f'python() {{ "{sys.executable}" "$@"; }}\n{block.text}']
    path = folder / f"line_{block.line}.py"
    path.write_text(block.text)
    return [sys.executable, str(path)]


def test_every_block(tmp_path: Path) -> None:
    """In one folder, since some read what others have written."""
    assert TEXT.count("```") == 2 * len(BLOCKS)
    tried = 0
    for block, after in zip(BLOCKS, [*BLOCKS[1:], None], strict=True):
        if block.language not in ("python", "sh"):
            continue
        done = run(*command(block, tmp_path), cwd=tmp_path)
        assert done.stderr == "", block.text
        assert done.returncode in ((0, 1) if "doctor" in block.text else (0,)), block.text
        if block.language == "python":
            said = after.text if after is not None and after.language == "text" else ""
            assert steady(done.stdout) == steady(said)
        tried += 1
    assert tried == 6
    for name in ("run.svg", "picture.svg"):
        ElementTree.parse(tmp_path / name)
    head, *samples, end = map(json.loads, (tmp_path / "run.jsonl").read_text().splitlines())
    assert [sample.keys() for sample in samples] == [{"t", *Statistics._fields}] * len(samples)
    first, _, last = re.findall(r"(?m)^\| (?:first|each sample|last) \| (.*) \|$", TEXT)
    assert set(head) <= set(re.findall(r"`(\w+)`", first))
    assert set(end) <= set(re.findall(r"`(\w+)`", last))


def test_the_keys_are_those_that_are_documented() -> None:
    rows = re.findall(r"(?m)^\| (`[^|]*) \|", TEXT)
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert documented >= KEYS | {"explanation"}
    assert all(f"`{word}`" in TEXT for word in _doctor.WORDS)
    assert set(_doctor.Check._fields) <= set(re.findall(r"`(\w+)`", TEXT))


def test_the_picture_is_one_that_plot_draws() -> None:
    svg = ElementTree.parse(PICTURE).getroot()
    assert svg.get("viewBox", "").split()[2] == str(_plot.WIDTH)
    assert _plot.STYLE.strip() in PICTURE.read_text()
    assert PICTURE.stat().st_size < 60_000
    assert "docs/images/hash-tree.svg" in (ROOT / "README.md").read_text()


@FORKS
def test_the_example_records(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    for n in range(20):
        (tmp_path / "tree" / f"{n}").write_text(str(n))
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "examples" / "hash_tree.py"),
            str(tmp_path / "tree"),
            *("--hashers", "1", "--walkers", "1", "--record", str(tmp_path / "run.jsonl")),
        ],
        env={**os.environ, "PYTHONPATH": str(Path(iterable_queue.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 20
    recorded = _plot.read(str(tmp_path / "run.jsonl"))
    assert recorded.samples[-1].finished == 20
    assert "hash_tree.py" in recorded.made

"""The suite of a project of its own, in `examples/testing_project`, run as its authors run it.

Its types are checked with all others, under the same strictness.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_plugin import LOAD

PROJECT = Path(__file__).parents[1] / "examples" / "testing_project"

QUICKLY = ["--iq-schedules=250"]
"""Enough for all that fails; what passes is explored for longer in no run but the authors' own."""


@pytest.mark.time_limit(180)
def test_its_suite_passes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *LOAD, "-p", "no:cacheprovider", "-rP", *QUICKLY],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed in", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 13
    explored = re.findall(r"^exhaustive.* schedules", done.stdout, re.MULTILINE)
    assert len(explored) >= 7, "each of the right ones was explored"

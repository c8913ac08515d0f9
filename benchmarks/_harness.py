"""Rounds: cells of several contenders, interleaved, each with a deadline of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks._job import Job, Outcome

CHECKOUT = Path(__file__).resolve().parents[1]
PEERS_DIR = Path(__file__).resolve().parent / ".peers"
RELEASE_1X_DIR = PEERS_DIR / "release-1x"
NOT_INSTALLED = "not installed (python -m benchmarks.peers, or --release-1x)"
# What a cell may take beyond its workers' deadline: start, imports, killing, exit.
_EXIT_S = 15.0


@dataclass(frozen=True)
class Contender:
    """One side in a row."""

    label: str
    job: Job
    """Its ``items`` are of no account: the harness chooses."""
    guess_per_s: float = 100_000
    """Expected rate. Sizes the discarded round, or all rounds where ``calibrated`` is False."""
    calibrated: bool = True
    """Whether the discarded round's rate sizes the others."""
    most_items: int = 5_000_000


@dataclass
class Samples:
    """What the rounds of one contender gave.

    Attributes:
        items: in each measured round.
        by_round: the value of each round, None where it failed or was not run.
        failures: what went wrong, in order.
        missing: why it was not measured at all, or empty.
    """

    label: str
    side: str
    items: int = 0
    version: str = ""
    missing: str = ""
    by_round: list[float | None] = field(default_factory=lambda: [])
    failures: list[str] = field(default_factory=lambda: [])

    @property
    def values(self) -> list[float]:
        return [value for value in self.by_round if value is not None]

    @property
    def median(self) -> float | None:
        return statistics.median(self.values) if self.values else None


@dataclass
class Harness:
    """How to run cells.

    Attributes:
        rounds: measured rounds of each row, after the discarded one.
        seconds: how long each measurement should last, about.
        timeout_s: deadline for the workers of one measurement.
        release_1x: directory with release 1.x of this package, if any.
    """

    rounds: int
    seconds: float
    timeout_s: float
    release_1x: Path | None

    def paths(self, side: str) -> tuple[str, ...]:
        """Where a side's modules are looked for first. Ours come from this checkout."""
        if side == "release-1x":
            return (str(self.release_1x),) if self.release_1x else ()
        if side.startswith("ours"):
            return (str(CHECKOUT / "src"),)
        return tuple(str(path) for path in sorted(PEERS_DIR.glob("*")) if path != RELEASE_1X_DIR)

    def run(self, contenders: Sequence[Contender]) -> list[Samples]:
        """All rounds of all contenders. One that is missing or hangs takes no further part."""
        running: list[tuple[Contender, Samples]] = []
        everyone: list[Samples] = []
        for contender in contenders:
            samples = Samples(contender.label, contender.job.side)
            everyone.append(samples)
            self._begin(contender, samples)
            if samples.items:
                running.append((contender, samples))
        for number in range(1, self.rounds + 1):
            for contender, samples in list(running):
                outcome = self.cell(replace(contender.job, items=samples.items))
                if outcome.status == "ok":
                    samples.by_round.append(outcome.value)
                    continue
                samples.by_round.append(None)
                samples.failures.append(f"round {number}: {_failure(outcome)}")
                if outcome.status == "hang":
                    running.remove((contender, samples))
        return everyone

    def _begin(self, contender: Contender, samples: Samples) -> None:
        """The discarded round; leaves ``samples.items`` at 0 if there are to be no others."""
        if contender.job.side == "release-1x" and self.release_1x is None:
            samples.missing = NOT_INSTALLED
            return
        job = contender.job
        least = 4 * (job.producers + job.consumers)
        share = 0.25 if contender.calibrated else 1.0
        first = int(contender.guess_per_s * self.seconds * share)
        first = max(least, min(contender.most_items, first))
        outcome = self.cell(replace(job, items=first))
        if outcome.status == "missing":
            samples.missing = outcome.detail
        elif outcome.status != "ok":
            samples.failures.append(f"first round: {_failure(outcome)}")
        else:
            samples.version = outcome.version
            samples.items = first
            if contender.calibrated:
                wanted = int(outcome.items / outcome.seconds * self.seconds)
                samples.items = max(least, min(contender.most_items, wanted))

    def cell(self, job: Job) -> Outcome:
        """Run one measurement in an interpreter of its own."""
        job = replace(job, timeout_s=self.timeout_s, paths=self.paths(job.side))
        # Files, not pipes: what a side leaves behind could hold a pipe open.
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            cell = subprocess.Popen(
                [sys.executable, "-m", "benchmarks._cell", job.dumps()],
                cwd=CHECKOUT,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
            try:
                code = cell.wait(job.timeout_s + _EXIT_S)
            except subprocess.TimeoutExpired:
                return Outcome("hang", detail="the measuring process did not exit")
            finally:
                if cell.poll() is None:
                    _end(cell)
            out.seek(0)
            err.seek(0)
            lines, complaints = out.read().splitlines(), err.read().strip().splitlines()
        if code == 0 and lines:
            return Outcome.loads(lines[-1])
        last = complaints[-1] if complaints else "and said nothing"
        return Outcome("error", detail=f"the measuring process exited with {code}: {last}")


def _failure(outcome: Outcome) -> str:
    words = {"hang": "hangs", "wrong": "WRONG", "error": "fails"}
    return f"{words.get(outcome.status, outcome.status)}: {outcome.detail}"


def _end(cell: subprocess.Popen[bytes]) -> None:
    """Kill a cell that is still there, with the processes of its session."""
    if sys.platform == "win32":
        cell.kill()
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(cell.pid, signal.SIGKILL)  # not reaped yet, so the id is still its own
    cell.wait()

"""The one command: ``python -m benchmarks``, from the checkout."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks._harness import RELEASE_1X_DIR, Harness
from benchmarks._rows import RowResult, all_rows
from benchmarks._table import as_json, machine, render


@dataclass(frozen=True)
class _Defaults:
    rounds: int
    seconds: float
    timeout_s: float


_FULL = _Defaults(rounds=5, seconds=1.0, timeout_s=60.0)
_QUICK = _Defaults(rounds=3, seconds=0.1, timeout_s=15.0)


class _Arguments(argparse.Namespace):
    quick: bool
    rows: list[str] | None
    rounds: int | None
    seconds: float | None
    timeout: float | None
    json: Path | None
    release_1x: Path | None


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < 3600:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 3600 seconds")
    return number


def _directory(text: str) -> Path:
    path = Path(text)
    if not (path / "iterable_queue").is_dir():
        raise argparse.ArgumentTypeError(f"there is no iterable_queue in {text}")
    return path.resolve()


def _arguments(argv: Sequence[str] | None) -> _Arguments:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure this library beside its peers and print the table.",
        epilog="Exit status: 1 if ours hung, failed or delivered wrong items, else 0, whether "
        "the bars are met or not.",
    )
    keys = [row.key for row in all_rows(quick=False)]
    parser.add_argument("--quick", action="store_true", help="shorter rounds, under two minutes")
    parser.add_argument("--rows", nargs="+", metavar="ROW", choices=keys, help=", ".join(keys))
    parser.add_argument(
        "--rounds", type=_count, help=f"measured rounds ({_FULL.rounds}; quick: {_QUICK.rounds})"
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        help=f"how long a measurement lasts, about ({_FULL.seconds:g}; quick: {_QUICK.seconds:g})",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help="deadline for the workers of one measurement "
        f"({_FULL.timeout_s:g}; quick: {_QUICK.timeout_s:g})",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there too")
    parser.add_argument(
        "--release-1x",
        type=_directory,
        metavar="DIR",
        help="where release 1.2.2 of this package and what it needs are installed, as by "
        "pip install --target (default: what python -m benchmarks.peers installed)",
    )
    return parser.parse_args(argv, namespace=_Arguments())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the rows asked for; print the table to stdout, progress to stderr."""
    arguments = _arguments(argv)
    defaults = _QUICK if arguments.quick else _FULL
    release_1x = arguments.release_1x
    if release_1x is None and RELEASE_1X_DIR.is_dir():
        release_1x = RELEASE_1X_DIR
    harness = Harness(
        rounds=arguments.rounds or defaults.rounds,
        seconds=arguments.seconds or defaults.seconds,
        timeout_s=arguments.timeout or defaults.timeout_s,
        release_1x=release_1x,
    )
    rows = [
        row
        for row in all_rows(arguments.quick)
        if arguments.rows is None or row.key in arguments.rows
    ]
    results: list[RowResult] = []
    began = time.monotonic()
    for number, row in enumerate(rows, 1):
        print(f"[{number}/{len(rows)}] {row.title}", file=sys.stderr, flush=True)
        results.append(row.measure(harness))
    took = time.monotonic() - began
    where = machine()
    print(render(results))
    print(
        f"\n{where['implementation']} {where['python']}, {where['platform']}, "
        f"{where['processors']} processors; {harness.rounds} rounds of about "
        f"{harness.seconds:g} s; {took:.0f} s in all."
    )
    if arguments.json is not None:
        document = {
            "machine": where,
            "rounds": harness.rounds,
            "seconds": harness.seconds,
            "rows": as_json(results),
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    ours_failed = any(
        samples.failures
        for result in results
        for samples in result.samples
        if samples.side.startswith("ours")
    )
    return 1 if ours_failed else 0


if __name__ == "__main__":
    sys.exit(main())

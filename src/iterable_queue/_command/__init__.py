"""The command line: `top`, `doctor` and `plot`, each in a module of its own."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Final

PIPE_CLOSED: Final = 141
"""The exit status if the reader of the output has gone, as a shell has it."""
USAGE: Final = 2
"""Argparse's, for wrong usage."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (None: those of the process). Returns its status."""
    options = _parser().parse_args(arguments)
    try:
        status = _run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # What is still buffered has nowhere to go; the interpreter would stumble over it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    return status


def _run(options: argparse.Namespace) -> int:
    if options.command == "top":
        from iterable_queue._command import _top

        return _top.run(options)
    if options.command == "doctor":
        from iterable_queue._command import _doctor

        return _doctor.run(options)
    from iterable_queue._command import _plot

    return _plot.run(options)


def _parser() -> argparse.ArgumentParser:
    from iterable_queue import __version__

    parser = argparse.ArgumentParser(
        prog="python -m iterable_queue",
        description="See what queues do, and whether they can work on this machine.",
        epilog="`COMMAND --help` says more, with examples.",
    )
    parser.add_argument("--version", action="version", version=f"iterable_queue {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_top(commands)
    _add_doctor(commands)
    _add_plot(commands)
    return parser


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],  # pyright: ignore[reportPrivateUsage]
    name: str,
    summary: str,
    description: str,
    examples: str,
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_top(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],  # pyright: ignore[reportPrivateUsage]
) -> None:
    parser = _add(
        commands,
        "top",
        "show this user's queues, and what they do",
        "Show the queues between processes that this user has on this machine: who made them, how\n"
        "much is put, taken and waiting, who is open. On a terminal the table is shown again and\n"
        "again, until Ctrl-C; elsewhere it is printed once. Looking changes nothing: no lock is\n"
        "taken and nothing is written, so the figures are those of a moment, without a lock.\n"
        "Queues for threads (`threaded`, `over`) can't be seen from outside.",
        "  python -m iterable_queue top\n"
        "  python -m iterable_queue top --once --explain\n"
        "  python -m iterable_queue top --json --interval 1   # with rates over one second",
    )
    parser.add_argument(
        "--once", action="store_true", help="print the table once, on a terminal too"
    )
    parser.add_argument(
        "--interval",
        type=_seconds,
        metavar="SECONDS",
        help="between two looks (default 1 on a terminal); where the table is printed once: look "
        "twice, so as to know rates",
    )
    parser.add_argument(
        "--explain", action="store_true", help="say of each queue why it is not done yet"
    )
    parser.add_argument(
        "--json", action="store_true", help="print a line of JSON for each queue, once"
    )


def _add_doctor(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],  # pyright: ignore[reportPrivateUsage]
) -> None:
    parser = _add(
        commands,
        "doctor",
        "check whether queues can work here, and say what to do",
        "Check this interpreter and machine: shared memory, limits, locks, left-overs of killed\n"
        "processes; and try a queue with a process of each start method, which is then killed.\n"
        "Exit status: 0 all is well, 1 there is something to do, 2 queues do not work here.",
        "  python -m iterable_queue doctor\n"
        "  python -m iterable_queue doctor --clean   # remove what killed processes left behind\n"
        "  python -m iterable_queue doctor --quick --json",
    )
    parser.add_argument(
        "--clean", action="store_true", help="remove what queues left whose processes were killed"
    )
    parser.add_argument(
        "--quick", action="store_true", help="start no process: leave the trial out"
    )
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each check")


def _add_plot(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],  # pyright: ignore[reportPrivateUsage]
) -> None:
    parser = _add(
        commands,
        "plot",
        "draw a recording as an SVG",
        "Draw what `IterableQueue.record` has written: items queued, rates, open endpoints, and\n"
        "who waited. The picture is one SVG file that needs nothing else, for light and dark\n"
        "pages.",
        "  python -m iterable_queue plot run.jsonl            # draws run.svg\n"
        "  python -m iterable_queue plot run.jsonl -o - --title 'Nightly run' > run.svg",
    )
    parser.add_argument("file", metavar="FILE", help="the recording")
    parser.add_argument(
        "-o",
        "--output",
        metavar="SVG",
        help="what to write; - is standard output (default: FILE with the ending .svg)",
    )
    parser.add_argument("--title", help="above the picture (default: where the queue was made)")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError(f"must be above 0 seconds, not {text}")
    return seconds

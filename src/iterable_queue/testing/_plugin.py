"""What the pytest plugin does once a test asks for it.

The plugin itself, `_iterable_queue_pytest`, stands beside the package, so that pytest can load it
in every run without importing any of this.

A test with the marker `explore` is called by `explore`, once a schedule; its other fixtures are
resolved once, as for any test. The arguments of `explore` come from, the first that has them: the
command line, the marker, the configuration file. The seed is the marker's, or else derived from
the base seed (`--iq-seed`, `iq_seed`, 0) and the test's id, by a hash that is the same everywhere:
so a test sees the same schedules alone, in any order, and in any process of pytest-xdist.
"""

from __future__ import annotations

import inspect
import os
import shlex
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from iterable_queue.testing._fixtures import FakeQueues, OpenRaces

if TYPE_CHECKING:
    from iterable_queue.testing import Simulation, VirtualClock

_fakes = pytest.StashKey[FakeQueues]()
_races = pytest.StashKey[ExitStack]()

# The marker


class NoSimulation:
    """What fixtures see of `sim`: there is one for each schedule, and none outside of them."""

    def __getattr__(self, name: str) -> NoReturn:
        raise RuntimeError(
            f"sim.{name} was used by a fixture: there is a Simulation only while the test's body "
            "runs, a new one for each schedule; fixtures are resolved once, before all of them"
        )


def explore_item(
    item: pytest.Function, options: Mapping[str, Any], flags: Mapping[str, Any]
) -> None:
    """Run the test's body as a scenario; *options* and *flags* are of file and command line."""
    from iterable_queue.testing import explore

    marker = item.get_closest_marker("explore")
    assert marker is not None
    _check(marker, [*inspect.signature(explore).parameters][1:])
    arguments = {**options, **marker.kwargs, **flags}
    if "seed" in marker.kwargs:
        arguments["seed"] = marker.kwargs["seed"]
    else:
        arguments["seed"] = seed_of(arguments.get("seed", 0), item.nodeid)
    explored = explore(_scenario(item), **arguments)
    item.add_report_section("call", "exploration", str(explored))
    item.user_properties.append(("exploration", str(explored)))


def _check(marker: pytest.Mark, takes: list[str]) -> None:
    wrong = [repr(value) for value in marker.args]
    wrong += [f"{name}=" for name in marker.kwargs if name not in takes]
    if wrong:
        pytest.fail(
            f"@pytest.mark.explore does not take {', '.join(wrong)}: its arguments are those of "
            f"explore(), by name: {', '.join(takes)}",
            pytrace=False,
        )


def seed_of(base: int, test_id: str) -> int:
    """The seed of a test: the same wherever and whenever it runs."""
    return int.from_bytes(blake2b(f"{base} {test_id}".encode(), digest_size=4).digest(), "big")


def _scenario(item: pytest.Function) -> Callable[[Simulation], Any]:
    function: Callable[..., Any] = item.obj
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        pytest.fail("an explored test is a plain function, not an async one", pytrace=False)
    takes = inspect.signature(function).parameters
    given = {name: value for name, value in item.funcargs.items() if name in takes}

    def scenario(sim: Simulation) -> Any:
        return function(**{**given, "sim": sim})

    scenario.__name__ = item.name
    scenario.__qualname__ = function.__qualname__
    scenario.__module__ = function.__module__
    return scenario


# Fixtures


def make_fakes(node: pytest.Item, clock: VirtualClock) -> Generator[FakeQueues]:
    """What the fixture gives, known to `show` as long as the test runs."""
    node.stash[_fakes] = FakeQueues(clock)
    yield node.stash[_fakes]
    del node.stash[_fakes]


def open_races(node: pytest.Item) -> Generator[OpenRaces]:
    """What the fixture gives, known to `end_races` as long as the test runs."""
    with ExitStack() as opened:
        node.stash[_races] = opened
        yield OpenRaces(opened)
        del node.stash[_races]


def end_races(item: pytest.Item, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
    """End the races of a test that has failed before the report is made.

    So they add to its error what has happened, rather than raise one of their own.
    """
    if _races in item.stash:
        item.stash[_races].__exit__(excinfo.type, excinfo.value, excinfo.tb)


# Failures


def show(
    item: pytest.Item, excinfo: pytest.ExceptionInfo[BaseException], report: pytest.TestReport
) -> None:
    """Put into the *report* of a failure all that is needed to understand it, and to repeat it."""
    if item.get_closest_marker("explore"):
        _show_failure(item, excinfo.value, report)
    if _fakes in item.stash:
        for number, queue in enumerate(item.stash[_fakes].made, 1):
            lines = [*map(repr, queue.history), queue.explain()]
            report.sections.append((f"fake queue {number}", "\n".join(lines)))


def _show_failure(item: pytest.Item, error: BaseException, report: pytest.TestReport) -> None:
    """Show what came of an exploration by its text alone, since what led to it is in that."""
    from iterable_queue.testing import (
        Nondeterministic,
        NothingInterleaved,
        ReplayError,
        ScheduleFailure,
    )

    shown: BaseException = error
    if isinstance(error, ScheduleFailure):
        # The last paragraph is how to replay it without pytest.
        told = str(error).rpartition("\n\nto run it again: explore(")[0] or str(error)
        # Its first paragraph says what went wrong, and the summary shows the first line.
        reason, _, rest = told.partition("\n\n")
        text = "\n\n".join(
            part for part in (reason, command(item.config, item.nodeid, error.replay), rest) if part
        )
        shown = AssertionError(text).with_traceback(error.__traceback__)
    elif not isinstance(error, (Nondeterministic, NothingInterleaved, ReplayError)):
        return
    report.longrepr = (
        pytest.ExceptionInfo[BaseException].from_exception(shown).getrepr(style="value")
    )


def command(config: pytest.Config, test_id: str, replay: str) -> str:
    """What to paste into a shell, in the directory where pytest was started."""
    path, colons, rest = str(test_id).partition("::")
    path = os.path.relpath(config.rootpath / path, config.invocation_params.dir)
    return f"python -m pytest {_quoted(path + colons + rest)} --iq-replay={_quoted(replay)}"


def _quoted(text: str) -> str:
    """Quoted where it must be, in the way that most shells understand."""
    plain = shlex.quote(text)
    if plain != text and not set(text) & set('"$`\\!'):
        return f'"{text}"'
    return plain

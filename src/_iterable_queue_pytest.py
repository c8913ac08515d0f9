"""The pytest plugin of iterable_queue: its options, its marker, its fixtures. PYTEST_DONT_REWRITE.

pytest imports this in every run of every environment in which the package is installed, before
coverage measurement has begun and whether it is used or not. So it stands beside the package, not
in it, and imports nothing of it until a test asks for something. What happens then is in
`iterable_queue.testing._plugin`.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Literal, NamedTuple

import pytest

if TYPE_CHECKING:
    from iterable_queue.testing import FakeQueues, OpenRaces, VirtualClock


# Options


class _Option(NamedTuple):
    """An option, which may be given on the command line and in the configuration file.

    Attributes:
        name: of the argument of `explore`.
        kind: of its values.
        least: the lowest value allowed; None: any. More than 0 is asked of seconds.
        meaning: for `pytest --help`.
    """

    name: str
    kind: type[int | float]
    least: int | None
    meaning: str

    @property
    def ini(self) -> str:
        """Its name in a configuration file."""
        return f"iq_{self.name}"

    @property
    def ini_kind(self) -> Literal["int", "float"]:
        """What pytest calls its kind there (since 8.4)."""
        return "int" if self.kind is int else "float"

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return f"--iq-{self.name}"

    def check(self, value: float) -> None:
        """Raises ValueError, which says what is wrong, for a value that makes no sense."""
        if self.kind is float and not 0 < value < float("inf"):
            raise ValueError(f"must be above 0 and finite, not {value}")
        if self.least is not None and value < self.least:
            raise ValueError(f"must be {self.least} or more, not {value}")

    def parse(self, text: str) -> float:
        """What argparse calls for the value given on the command line."""
        import argparse

        try:
            value = self.kind(text)
        except ValueError:
            what = "an int" if self.kind is int else "a number"
            raise argparse.ArgumentTypeError(f"must be {what}, not {text!r}") from None
        try:
            self.check(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return value


_OPTIONS = (
    _Option("seed", int, None, "base seed, of which that of each test is derived (default: 0)"),
    _Option("schedules", int, 1, "most schedules for each test"),
    _Option("seconds", float, None, "most seconds for each test"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--iq-seed` and its kin, and `iq_seed` and its kin for configuration files."""
    group = parser.getgroup("iterable_queue", "exploring schedules (iterable_queue)")
    for option in _OPTIONS:
        metavar = "N" if option.kind is int else "S"
        group.addoption(
            option.flag, type=option.parse, metavar=metavar, default=None, help=option.meaning
        )
        parser.addini(
            option.ini,
            f"{option.meaning}; {option.flag} and the marker come first",
            type=option.ini_kind,
            default=None,
        )
    group.addoption(
        "--iq-replay",
        type=_parse_replay,
        metavar="REPLAY",
        default=None,
        help="run the schedule that a failure printed, in each explored test that is selected",
    )


def _parse_replay(text: str) -> str:
    import argparse

    if not text.strip():
        raise argparse.ArgumentTypeError("must be the string that a failure printed, not empty")
    return text.strip()


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known, and refuse values in the configuration file that make no sense."""
    config.addinivalue_line(
        "markers",
        "explore(preemptions=..., schedules=..., seconds=..., steps=..., seed=..., replay=...): the"
        " body of the test, which takes `sim`, is a scenario for iterable_queue.testing.explore",
    )
    for option in _OPTIONS:
        try:
            value: float | None = config.getini(option.ini)
            if value is not None:
                option.check(value)
        except (TypeError, ValueError) as error:
            raise pytest.UsageError(f"{option.ini} in the configuration file: {error}") from None


def iq_options(config: pytest.Config) -> dict[str, float | str]:
    """The arguments of `explore` that were given in the configuration file; see `iq_flags`."""
    given = {option.name: config.getini(option.ini) for option in _OPTIONS}
    return {name: value for name, value in given.items() if value is not None}


def iq_flags(config: pytest.Config) -> dict[str, float | str]:
    """Those that were given on the command line."""
    given = {name: config.getoption(f"iq_{name}") for name in _FLAGS}
    return {name: value for name, value in given.items() if value is not None}


_FLAGS = (*(option.name for option in _OPTIONS), "replay")


# The marker


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Refuse the marker where it does nothing."""
    if item.get_closest_marker("explore") and "sim" not in getattr(item, "fixturenames", ()):
        pytest.fail(
            "@pytest.mark.explore is for test functions that take `sim`, the Simulation of each "
            "schedule, and this test does not",
            pytrace=False,
        )


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Call the body of a test with the marker once a schedule."""
    if pyfuncitem.get_closest_marker("explore") is None:
        return None
    from iterable_queue.testing import _plugin

    _plugin.explore_item(pyfuncitem, iq_options(pyfuncitem.config), iq_flags(pyfuncitem.config))
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what an exploration, races or fake queues have to say about a failure."""
    if call.excinfo is None or USED not in item.stash:
        return (yield)
    from iterable_queue.testing import _plugin

    _plugin.end_races(item, call.excinfo)
    report = yield
    if report.failed:
        _plugin.show(item, call.excinfo, report)
    return report


USED = pytest.StashKey[bool]()
"""A test that has used something of this plugin."""


# Fixtures


@pytest.fixture
def sim(request: pytest.FixtureRequest) -> object:
    """The `Simulation` of the schedule that runs, in a test with `@pytest.mark.explore`."""
    if request.node.get_closest_marker("explore") is None:
        pytest.fail(
            "`sim` is for tests with @pytest.mark.explore, whose bodies are run once a schedule",
            pytrace=False,
        )
    request.node.stash[USED] = True
    from iterable_queue.testing import _plugin

    return _plugin.NoSimulation()


@pytest.fixture
def queue_clock() -> VirtualClock:
    """The virtual clock of all queues that `fake_queue` makes in this test."""
    from iterable_queue.testing import VirtualClock

    return VirtualClock()


@pytest.fixture
def fake_queue(request: pytest.FixtureRequest, queue_clock: VirtualClock) -> Generator[FakeQueues]:
    """Makes `FakeQueue`s, by the same arguments. A failure shows what happened on each."""
    request.node.stash[USED] = True
    from iterable_queue.testing import _plugin

    yield from _plugin.make_fakes(request.node, queue_clock)


@pytest.fixture
def races(request: pytest.FixtureRequest) -> Generator[OpenRaces]:
    """`races` as a function: what it opens is closed at the end of the test, in reverse order."""
    request.node.stash[USED] = True
    from iterable_queue.testing import _plugin

    yield from _plugin.open_races(request.node)

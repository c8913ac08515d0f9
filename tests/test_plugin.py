"""The pytest plugin, run as users run it: by pytest, on suites of their own.

Most suites run in this process, with an `explore` in the place of the real one that writes down
with what it was called: what is tested is what the plugin makes of options, markers and ids. What
only a process of its own can show (pytest-xdist, what is imported) runs in one.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

import iterable_queue.testing
from iterable_queue.testing import NothingInterleaved
from iterable_queue.testing._plugin import seed_of

pytest_plugins = ["pytester"]

Run = Callable[..., pytest.RunResult]

IMPORTED = NothingInterleaved
"""A run in this process forgets what it was the first to import: errors would have two classes."""

INSTALLED = bool(entry_points(group="pytest11", name="iterable_queue"))
"""Whether pytest finds the plugin by itself."""

LOAD = [] if INSTALLED else ["-p", "_iterable_queue_pytest"]

STAND_IN = '''
from typing import Any, NamedTuple


class ScheduleFailure(AssertionError):
    def __init__(self, text: str, replay: str) -> None:
        super().__init__(text)
        self.replay = replay


class Simulation(NamedTuple):
    schedule: int


class Calls(NamedTuple):
    called: dict[str, Any]

    def __str__(self) -> str:
        return f"explored with {sorted(self.called.items())}"


def explore(
    scenario: Any,
    *,
    preemptions: Any = None,
    schedules: Any = None,
    seconds: Any = None,
    seed: Any = None,
    replay: Any = None,
    steps: Any = None,
) -> Calls:
    """Runs three schedules."""
    called = {name: value for name, value in vars().items() if value not in (None, scenario)}
    if called.get("replay") == "of another test":
        raise ValueError("the replay string does not fit this scenario")
    print(f"{scenario.__name__}: {sorted(called.items())}")
    for schedule in range(3):
        try:
            check = scenario(Simulation(schedule))
            if check is not None:
                check()
        except AssertionError as error:
            raise ScheduleFailure(
                f"{error!r} in schedule {schedule} of {sorted(called.items())}", f"v1:{schedule}"
            ) from error
    return Calls(called)
'''


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """An `explore` that is quick, and writes down with what it was called."""
    made: dict[str, Any] = {}
    exec(STAND_IN, made)
    for name in ("explore", "Simulation", "ScheduleFailure"):
        monkeypatch.setattr(iterable_queue.testing, name, made[name], raising=False)


@pytest.fixture
def run(pytester: pytest.Pytester, stand_in: None) -> Run:
    """Runs pytest in this process; returns what came of it."""

    def runs(*args: str) -> pytest.RunResult:
        return pytester.runpytest_inprocess("-p", "no:faulthandler", *LOAD, *args)

    return runs


@pytest.fixture
def run_apart(pytester: pytest.Pytester) -> Run:
    """Likewise in a process of its own, where the suite's conftest brings the stand-in."""
    pytester.makepyfile(stand_in=STAND_IN)
    pytester.makeconftest(
        """
        import pytest
        import stand_in
        import iterable_queue.testing

        def pytest_runtest_setup() -> None:
            for name in ("explore", "Simulation", "ScheduleFailure"):
                setattr(iterable_queue.testing, name, getattr(stand_in, name))
        """
    )

    def runs(*args: str) -> pytest.RunResult:
        return pytester.runpytest_subprocess(*LOAD, *args, timeout=50)

    return runs


PASSING = """
    import pytest

    @pytest.mark.explore{}
    def test_it(sim):
        pass
"""

FAILING = """
    import pytest

    @pytest.mark.explore
    def test_it(sim):
        assert sim.schedule < 1, "the second one"
"""


def called(result: pytest.RunResult) -> dict[str, Any]:
    """What the one test's exploration was called with (`-rP` shows it)."""
    (said,) = re.findall(r"^explored with (\[.*\])$", result.stdout.str(), re.MULTILINE)
    found: dict[str, Any] = dict(eval(said))
    return found


# The marker


def test_the_body_runs_once_a_schedule_and_fixtures_once_in_all(
    pytester: pytest.Pytester, run: Run
) -> None:
    pytester.makepyfile(
        """
        import pytest

        made = []
        ran = []

        @pytest.fixture
        def other(request):
            made.append("up")
            yield len(made)
            made.append("down")

        @pytest.mark.explore
        @pytest.mark.parametrize("number", [5, 6])
        def test_it(number, sim, other, tmp_path):
            (tmp_path / "file").touch()
            ran.append((number, sim.schedule, other))

        class TestClass:
            @pytest.mark.explore
            def test_method(self, other, sim):
                assert type(self) is TestClass
                ran.append(("method", sim.schedule, other))

                def check():
                    ran.append(("checked", sim.schedule, other))

                return check

        def test_afterwards():
            assert ran == [
                (5, 0, 1), (5, 1, 1), (5, 2, 1),
                (6, 0, 3), (6, 1, 3), (6, 2, 3),
                ("method", 0, 5), ("checked", 0, 5), ("method", 1, 5), ("checked", 1, 5),
                ("method", 2, 5), ("checked", 2, 5),
            ]
            assert made == ["up", "down"] * 3
        """
    )
    run("-W", "error").assert_outcomes(passed=4)


def test_what_was_explored_is_told(pytester: pytest.Pytester, run: Run) -> None:
    pytester.makepyfile(PASSING.format("(preemptions=1)"))
    result = run("--junit-xml=report.xml")
    result.assert_outcomes(passed=1)
    assert "explored with" not in result.stdout.str(), "not unless asked for"
    assert called(run("-rP"))["preemptions"] == 1
    assert "('preemptions', 1)" in (pytester.path / "report.xml").read_text()


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (
            """
            @pytest.mark.explore
            def test_it():
                pass
            """,
            "*@pytest.mark.explore is for test functions that take `sim`*",
        ),
        (
            """
            import unittest

            @pytest.mark.explore
            class TestIt(unittest.TestCase):
                def test_it(self):
                    pass
            """,
            "*@pytest.mark.explore is for test functions that take `sim`*",
        ),
        (
            """
            def test_it(sim):
                pass
            """,
            "*`sim` is for tests with @pytest.mark.explore*",
        ),
        (
            """
            @pytest.fixture
            def queue(sim):
                return sim.queue()

            @pytest.mark.explore
            def test_it(sim, queue):
                pass
            """,
            "*RuntimeError: sim.queue was used by a fixture: there is a Simulation only while*",
        ),
        (
            """
            @pytest.mark.explore(2, bound=3)
            def test_it(sim):
                pass
            """,
            "*@pytest.mark.explore does not take 2, bound=: its arguments are*preemptions, sch*",
        ),
        (
            """
            @pytest.mark.explore
            async def test_it(sim):
                pass
            """,
            "*an explored test is a plain function, not an async one*",
        ),
    ],
    ids=["no-sim", "unittest", "no-marker", "fixture", "arguments", "async"],
)
def test_wrong_uses_say_what_is_right(
    pytester: pytest.Pytester, run: Run, body: str, text: str
) -> None:
    pytester.makepyfile("import pytest\n\n" + _dedented(body))
    result = run()
    outcomes = result.parseoutcomes()
    assert outcomes in ({"failed": 1}, {"error": 1}, {"errors": 1}), outcomes
    result.stdout.fnmatch_lines([text])


def _dedented(text: str) -> str:
    return re.sub(r"(?m)^ {12}", "", text)


# Options


def test_the_command_line_comes_first_then_the_marker_then_the_file(
    pytester: pytest.Pytester, run: Run
) -> None:
    pytester.makepyfile(PASSING.format(""))
    seed = seed_of(0, "test_the_command_line_comes_first_then_the_marker_then_the_file.py::test_it")
    assert called(run("-rP")) == {"seed": seed}, "the defaults are those of explore"
    pytester.makepyprojecttoml(
        """
        [tool.pytest]
        iq_schedules = 30
        iq_seconds = 40
        """
    )
    file = {"schedules": 30, "seconds": 40}
    assert called(run("-rP")) == {**file, "seed": seed}
    pytester.makepyfile(PASSING.format("(schedules=50, steps=60)"))
    marker = {**file, "schedules": 50, "steps": 60, "seed": seed}
    assert called(run("-rP")) == marker
    flags = {"schedules": 1, "replay": "v1:1"}
    result = run("-rP", "--iq-schedules=1", "--iq-replay= v1:1 ")
    assert called(result) == {**marker, **flags}
    result = run("-rP", "--iq-seconds=0.5", "-o", "iq_schedules=9")
    assert called(result) == {**marker, "seconds": 0.5}


def test_a_file_in_ini_format(pytester: pytest.Pytester, run: Run) -> None:
    pytester.makepyfile(PASSING.format(""))
    pytester.makeini("[pytest]\niq_seconds = 2.5\niq_seed = 3\niq_schedules = 8")
    seed = seed_of(3, "test_a_file_in_ini_format.py::test_it")
    assert called(run("-rP")) == {"seconds": 2.5, "schedules": 8, "seed": seed}


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--iq-seed=x", "--iq-seed: must be an int, not 'x'"),
        ("--iq-seed=1.5", "--iq-seed: must be an int, not '1.5'"),
        ("--iq-schedules=0", "--iq-schedules: must be 1 or more, not 0"),
        ("--iq-schedules=", "--iq-schedules: must be an int, not ''"),
        ("--iq-seconds=0", "--iq-seconds: must be above 0 and finite, not 0.0"),
        ("--iq-seconds=-1", "--iq-seconds: must be above 0 and finite, not -1.0"),
        ("--iq-seconds=nan", "--iq-seconds: must be above 0 and finite, not nan"),
        ("--iq-seconds=inf", "--iq-seconds: must be above 0 and finite, not inf"),
        ("--iq-seconds=soon", "--iq-seconds: must be a number, not 'soon'"),
        ("--iq-replay=", "--iq-replay: must be the string that a failure printed, not empty"),
        ("-oiq_seed=x", "invalid literal for int()"),
        ("-oiq_schedules=0", "iq_schedules in the configuration file: must be 1 or more, not 0"),
        ("-oiq_seconds=x", "could not convert string to float"),
    ],
)
def test_a_bad_option_is_a_usage_error(
    pytester: pytest.Pytester, run: Run, option: str, text: str
) -> None:
    pytester.makepyfile(PASSING.format(""))
    result = run(option)
    assert result.ret is pytest.ExitCode.USAGE_ERROR
    assert text in result.stderr.str()


def test_a_bad_option_is_one_error_under_xdist_too(pytester: pytest.Pytester, run: Run) -> None:
    pytester.makepyfile(PASSING.format(""))
    pytester.makepyprojecttoml("[tool.pytest]\niq_seconds = -1.0")
    result = run("-n", "2")
    assert result.ret is pytest.ExitCode.USAGE_ERROR
    text = "iq_seconds in the configuration file: "
    assert result.stderr.str().count(text) == 1


def test_a_replay_that_does_not_fit_fails_that_test_alone(
    pytester: pytest.Pytester, run: Run
) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.explore(replay="of another test")
        def test_stale(sim):
            pass

        @pytest.mark.explore
        def test_it(sim):
            pass
        """
    )
    result = run()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*ValueError: the replay string does not fit this scenario*"])
    result = run("--iq-replay=of another test")
    result.assert_outcomes(failed=2)


# Seeds


def test_seeds_are_the_same_everywhere() -> None:
    assert seed_of(0, "tests/test_it.py::test_it[1]") == SEED
    assert seed_of(1, "tests/test_it.py::test_it[1]") != SEED
    assert seed_of(0, "tests/test_it.py::test_it[2]") != SEED
    assert seed_of(-1, "x") >= 0


SEED = 3368914710
"""For ever: or replayed seeds of old reports would mean something else."""


NAMES = [f"test_{n}" for n in range(4)]
SEEDS = {
    f"{file}.py::{name}": seed_of(11, f"{file}.py::{name}")
    for file in ("test_these", "test_those")
    for name in NAMES
}


def seeds(pytester: pytest.Pytester, run: Run, *args: str) -> dict[str, int]:
    """What each of the tests in `NAMES`, in two files, was called with."""
    body = "\n".join(f"@pytest.mark.explore\ndef {name}(sim): pass\n" for name in NAMES)
    pytester.makepyfile(**dict.fromkeys(("test_these", "test_those"), f"import pytest\n{body}"))
    pytester.makepyprojecttoml("[tool.pytest]\niq_seed = 11")
    result = run("--junit-xml=report.xml", "-o", "junit_family=xunit1", *args)
    assert result.ret == 0
    report = (pytester.path / "report.xml").read_text()
    found: list[tuple[str, str, str]] = re.findall(
        r'<testcase classname="(\w+)" name="(\w+)".*?\(\'seed\', (\d+)\)', report, re.DOTALL
    )
    return {f"{file}.py::{name}": int(seed) for file, name, seed in found}


def test_a_test_has_the_same_seed_alone_and_in_any_order(
    pytester: pytest.Pytester, run: Run
) -> None:
    assert len(set(SEEDS.values())) == len(SEEDS) == 8
    assert seeds(pytester, run) == SEEDS
    backwards = ["test_those.py", *(f"test_these.py::{name}" for name in reversed(NAMES))]
    assert seeds(pytester, run, *backwards) == SEEDS
    alone = "test_those.py::test_2"
    assert seeds(pytester, run, alone) == {alone: SEEDS[alone]}


def test_a_test_has_the_same_seed_under_xdist(pytester: pytest.Pytester, run_apart: Run) -> None:
    assert seeds(pytester, run_apart, "-n", "2") == SEEDS


def test_a_marker_may_give_the_seed_itself(pytester: pytest.Pytester, run: Run) -> None:
    pytester.makepyfile(PASSING.format("(seed=5)"))
    assert called(run("-rP"))["seed"] == 5
    assert called(run("-rP", "--iq-seed=6"))["seed"] == 5


# Failures


def test_a_failure_says_why_and_has_the_command_to_paste(
    pytester: pytest.Pytester, run: Run
) -> None:
    pytester.makepyfile(test_a=FAILING)
    result = run("--iq-schedules=5")
    result.assert_outcomes(failed=1)
    lines = result.stdout.lines
    at = next(n for n, line in enumerate(lines) if line.startswith("____"))
    assert lines[at + 1].startswith("AssertionError('the second one")
    assert "('schedules', 5)" in lines[at + 1]
    assert lines[at + 2] == ""
    assert lines[at + 3] == "python -m pytest test_a.py::test_it --iq-replay=v1:1"
    assert "_plugin" not in result.stdout.str(), "no traceback of how explore was called"
    assert any(
        line.startswith(
            "FAILED test_a.py::test_it - AssertionError: AssertionError('the second one"
        )
        for line in lines
    ), "the summary says why"


def test_the_command_runs_the_schedule_again_wherever_pytest_was_started(
    pytester: pytest.Pytester, run_apart: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyprojecttoml("[tool.pytest]\npythonpath = ['.']")
    pytester.makepyfile(
        **{
            "deep/test_a": """
                import pytest

                @pytest.mark.explore
                @pytest.mark.parametrize("value", ["a b", "it's \\"$HOME\\" `x`"])
                def test_it(sim, value):
                    assert sim.schedule < 1
            """
        }
    )
    (pytester.path / "elsewhere").mkdir()
    monkeypatch.chdir(pytester.path / "elsewhere")
    result = run_apart("../deep")
    result.assert_outcomes(failed=2)
    commands = [line for line in result.stdout.lines if line.startswith("python -m pytest ")]
    assert commands[0] == 'python -m pytest "../deep/test_a.py::test_it[a b]" --iq-replay=v1:1'
    for command in commands:
        told = shlex.join([sys.executable, "-m", "pytest", *LOAD])
        done = subprocess.run(
            ["sh", "-c", command.replace("python -m pytest", told)],
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert done.returncode == 1
        assert command in done.stdout, "it fails by the same schedule"
        assert "('replay', 'v1:1')" in done.stdout
        assert "1 failed in" in done.stdout


def test_a_failure_is_whole_under_xdist(pytester: pytest.Pytester, run_apart: Run) -> None:
    pytester.makepyfile(test_a=FAILING, test_b=PASSING.format(""))
    result = run_apart("-n", "2")
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(
        ["AssertionError('the second*", "", "python -m pytest test_a.py::test_it --iq-replay=v1:1"]
    )


def test_a_failure_can_be_expected(pytester: pytest.Pytester, run: Run) -> None:
    pytester.makepyfile(
        """
        import pytest
        from iterable_queue.testing import ScheduleFailure

        @pytest.mark.xfail(raises=ScheduleFailure, strict=True)
        @pytest.mark.explore
        def test_it(sim):
            assert sim.schedule < 1
        """
    )
    run().assert_outcomes(xfailed=1)


def test_other_errors_are_shown_as_ever(pytester: pytest.Pytester, run: Run) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.explore
        def test_it(sim):
            raise LookupError("not about schedules")
        """
    )
    result = run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([">*raise LookupError*", "E*LookupError: not about schedules"])


# With the real explorer

REAL = """
    import pytest
    from iterable_queue import Consumer, Producer
    from iterable_queue.testing import Simulation

    def produce(out: Producer[int]) -> None:
        out.put(1)  # and no close()

    def consume(numbers: Consumer[int], seen: list[int]) -> None:
        seen.extend(numbers)

    @pytest.mark.explore
    def test_it(sim: Simulation) -> None:
        iq = sim.queue(threaded=True)
        sim.spawn(produce, iq.get_producer())
        sim.spawn(consume, iq.get_consumer(), [])
        iq.close()

    def test_by_hand() -> None:
        pass
"""


@pytest.mark.parametrize("args", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_what_is_explored_is_shown_and_can_be_replayed(
    pytester: pytest.Pytester, args: tuple[str, ...]
) -> None:
    pytester.makepyfile(test_a=REAL)
    result = pytester.runpytest_subprocess(*LOAD, *args, timeout=50)
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.re_match_lines(
        [
            r"deadlock: nobody can go on",
            r"  consume waits for an item in get, called at .*test_a\.py:9",
            r".*1 producer\(s\) are open",
            r"python -m pytest test_a\.py::test_it --iq-replay=iq1-\S+$",
            r"$",
            r" +produce +consume",
            r"1 +put 1",
        ]
    )
    assert "to run it again: explore(" not in result.stdout.str(), "without pytest"
    (replay,) = {w for line in result.stdout.lines for w in line.split() if "--iq-replay=" in w}
    again = pytester.runpytest_subprocess(*LOAD, "test_a.py::test_it", replay, timeout=50)
    again.assert_outcomes(failed=1)
    assert f"python -m pytest test_a.py::test_it {replay}" in again.stdout.lines


def test_what_explore_itself_objects_to_is_said_in_short(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.explore
        def test_idle(sim):
            pass

        @pytest.mark.explore(replay="nonsense")
        def test_stale(sim):
            pass

        @pytest.mark.explore(preemptions=1, schedules=20, steps=100, spurious=0, patience=10)
        def test_it(sim):
            iq = sim.queue()
            for name in ("first", "second"):
                sim.spawn(lambda out: out.close(), iq.get_producer(), name=name)
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:faulthandler", *LOAD)
    result.assert_outcomes(failed=2, passed=1)
    text = result.stdout.str()
    assert "never more than one actor" in text
    assert "'nonsense' is not a replay string" in text
    assert "_plugin" not in text, "no traceback of how explore was called"


# Fixtures


def test_fake_queues_share_the_clock(pytester: pytest.Pytester, run: Run) -> None:
    pytester.makepyfile(
        """
        import gc
        import weakref
        import pytest
        from iterable_queue import Empty
        from iterable_queue.testing import FakeQueue, FakeQueues, VirtualClock

        made: list[weakref.ref[FakeQueue[int]]] = []

        def test_it(fake_queue: FakeQueues, queue_clock: VirtualClock) -> None:
            filled: FakeQueue[int] = fake_queue([1, 2])
            made.append(weakref.ref(filled))
            assert list(filled.get_consumer()) == [1, 2]
            bounded: FakeQueue[int] = fake_queue(maxsize=1, pickled=False)
            assert filled.clock is bounded.clock is queue_clock is fake_queue.clock
            with pytest.raises(Empty):
                bounded.get_consumer().get(timeout=60)
            assert queue_clock.now == 60
            bounded.get_producer().put(1)
            assert bounded.full()

        def test_another_one_has_its_own(queue_clock: VirtualClock) -> None:
            assert queue_clock.now == 0
            gc.collect()
            assert made[0]() is None, "what a test was given ends with it"
        """
    )
    result = run()
    result.assert_outcomes(passed=2)
    assert "fake queue" not in run("-rP").stdout.str()


def test_a_failure_shows_what_happened_on_each_fake_queue(
    pytester: pytest.Pytester, run: Run
) -> None:
    pytester.makepyfile(
        """
        def test_it(fake_queue):
            first, second = fake_queue(["an item"]), fake_queue()
            out = second.get_producer()
            out.put("another one")
            assert first.get_consumer().get() == "something else"
        """
    )
    result = run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*assert 'an item' == 'something else'",
            "*fake queue 1*",
            "*Put(*'an item'*",
            "*Taken(*'an item'*",
            "*fake queue 2*",
            "*Put(*'another one'*",
            "*producer 1*, taken by this process*",
        ]
    )


RACES = """
    from threading import Thread
    from iterable_queue import Consumer, IterableQueue
    from iterable_queue.testing import OpenRaces

    def test_it(races: OpenRaces) -> None:
        iq = IterableQueue[int].threaded()
        race = races(iq, timeout=5)
        assert race.timeout == 5
        out, numbers = iq.get_producer(), iq.get_consumer()
        gate = race.pause(race.producer(out).before_put)
        putter = Thread(target=out.put, args=(1,))
        putter.start()
        assert gate.reached(5)
        assert numbers.empty()
        gate.release()
        putter.join(5)
        {}
"""


def test_races_are_closed_at_the_end(pytester: pytest.Pytester, run: Run) -> None:
    after = """
    import pytest
    from iterable_queue.testing import races as races_on

    iq = IterableQueue[int].threaded()

    @pytest.mark.parametrize("time", [1, 2])
    def test_of_the_same_queue(races: OpenRaces, time: int) -> None:
        races(iq)  # two at a time are refused

    def test_afterwards() -> None:
        with races_on(iq):
            pass
    """
    pytester.makepyfile(RACES.format("assert numbers.get() == 1") + after)
    run("-W", "error").assert_outcomes(passed=4)


def test_races_that_did_not_come_to_pass_are_an_error(pytester: pytest.Pytester, run: Run) -> None:
    pytester.makepyfile(RACES.format("race.pause(race.consumer(numbers).before_get)"))
    result = run()
    result.assert_outcomes(passed=1, errors=1)
    assert "RaceError" in result.stdout.str()


def test_a_failure_tells_of_the_races(pytester: pytest.Pytester, run: Run) -> None:
    """And what it kept from coming to pass is no error of its own."""
    late = "race.pause(race.consumer(numbers).before_close); assert numbers.get() == 2"
    pytester.makepyfile(RACES.format(late))
    result = run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*assert 1 == 2", "E*races: the block ended before*"])


# Where it is not used


UNUSED = """
    import sys

    def test_it():
        assert not [name for name in sys.modules if name.startswith("iterable_queue")]
"""


def test_it_imports_nothing_until_it_is_used(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(UNUSED)
    result = pytester.runpytest_subprocess(*LOAD, "-W", "error", timeout=50)
    result.assert_outcomes(passed=1)
    assert result.stderr.str() == ""


def test_it_lives_in_strict_suites(pytester: pytest.Pytester) -> None:
    pytester.makepyprojecttoml(
        """
        [tool.pytest]
        strict = true
        filterwarnings = ["error"]
        iq_seconds = 1.0
        """
    )
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.explore(schedules=10)
        def test_not_selected(sim):
            pass

        def test_it(fake_queue, queue_clock):
            assert list(fake_queue("ab").get_consumer()) == ["a", "b"]
        """
    )
    result = pytester.runpytest_subprocess(*LOAD, "-m", "not explore", timeout=50)
    result.assert_outcomes(passed=1, deselected=1)


def test_it_is_in_the_help(run: Run) -> None:
    result = run("--help")
    result.stdout.fnmatch_lines(
        ["*exploring schedules (iterable_queue):*", "*--iq-seed=N*", "*--iq-replay=REPLAY*"]
    )
    result = run("--fixtures")
    result.stdout.fnmatch_lines_random(["fake_queue -- *", "races -- *", "queue_clock -- *"])
    run("--markers").stdout.fnmatch_lines(["@pytest.mark.explore(preemptions=*"])


@pytest.mark.skipif(not INSTALLED, reason="the package is not installed, so it has no entry point")
def test_it_is_found_by_its_entry_point(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(fake_queue): pass")
    pytester.runpytest_subprocess(timeout=50).assert_outcomes(passed=1)
    result = pytester.runpytest_subprocess("-p", "no:iterable_queue", timeout=50)
    result.assert_outcomes(errors=1)
    assert "fixture 'fake_queue' not found" in result.stdout.str()


def test_the_module_stands_where_the_entry_point_says() -> None:
    root = Path(__file__).parent.parent
    assert 'iterable_queue = "_iterable_queue_pytest"' in (root / "pyproject.toml").read_text()
    assert (root / "src" / "_iterable_queue_pytest.py").is_file()


# The docs

PAGES = sorted((Path(__file__).parents[1] / "docs").glob("testing*.md"))
SUITES = [
    pytest.param(suite, said, id=f"{page.stem}-{n}")
    for page in PAGES
    for n, (suite, said) in enumerate(
        re.findall(
            r"^```py\n(.*?)^```\n(?:```console\n(.*?)^```$)?",
            page.read_text(),
            re.MULTILINE | re.DOTALL,
        )
    )
]
"""Each block of tests, and, if they are to fail, with what lines."""


@pytest.mark.parametrize(("suite", "said"), SUITES)
def test_the_suites_in_the_docs(pytester: pytest.Pytester, suite: str, said: str) -> None:
    pytester.path.joinpath("test_docs.py").write_text(suite)
    result = pytester.runpytest_subprocess(*LOAD, "-W", "error", timeout=55)
    assert result.ret == (1 if said else 0)
    pattern = re.escape(said).replace(r"\.\.\.", r"\S+").replace("test_docs", r"\S*test_docs")
    assert re.search(pattern, result.stdout.str())


def test_the_suites_in_the_docs_are_typed(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    for n, suite in enumerate(SUITES):
        (tmp_path / f"suite_{n}.py").write_text(str(suite.values[0]))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(tmp_path)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert done.returncode == 0, done.stdout

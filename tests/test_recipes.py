"""The recipes in `examples/`, run as programs, and what `docs/recipes.md` shows of them."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import runpy
import signal
import textwrap
from collections.abc import Callable, Iterator
from operator import length_hint
from pathlib import Path
from typing import Any

import pytest

from iterable_queue import IterableQueue, ProducerFailed
from tests.conftest import wait_until
from tests.test_examples import EXAMPLES, Program, python, run
from tests.test_readme import Block, fenced_blocks

ROOT = Path(__file__).parents[1]
STRICT = ("-X", "dev", "-W", "error::ResourceWarning")
"""Under these no example may leave an endpoint open."""
SQUARES = f"sum of squares: {sum(n * n for n in range(30))}\n"
OUTPUTS = {
    "crawler": "81 addresses, 41 of them broken\n",
    "joblib_tasks": "sum of squares: 2470\n",
    "multiprocessing_pool": SQUARES,
    "pipeline": "sum: 19900; never more than 8 waiting: True\n",
    "process_pool_executor": SQUARES,
    "quickstart": None,
    "thread_pool": SQUARES,
    "torch_loading": "100 samples, each of them once: True\n",
}


def need(module: str) -> None:
    """Skip the test where *module* is not installed."""
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # nor the package that it is in
        found = None
    if found is None:
        pytest.skip(f"needs {module}")


def path_of(example: str) -> str:
    return str(EXAMPLES / f"{example}.py")


@pytest.mark.parametrize("name", OUTPUTS)
def test_recipe(name: str) -> None:
    if name == "joblib_tasks":
        need("joblib")
    strict = STRICT if name != "joblib_tasks" else ()  # which leaves things open itself
    interpreter, script = python(path_of(name))
    status, out, err = run(interpreter, *strict, script)
    assert (status, err) == (0, "")
    assert OUTPUTS[name] in (out.decode(), None)


# Ctrl-C


def squares(path: Path) -> list[int]:
    """The numbers whose squares are in the file, each in a whole line."""
    text = path.read_text()
    assert text.endswith("\n")
    pairs = [tuple(map(int, line.split(" "))) for line in text.splitlines()]
    assert all(squared == n * n for n, squared in pairs)
    return sorted(n for n, _ in pairs)


def test_without_ctrl_c(tmp_path: Path) -> None:
    done = tmp_path / "done"
    assert run(*python(path_of("ctrl_c"), str(done), "--limit", "50")) == (0, b"", "")
    assert squares(done) == list(range(50))


def test_ctrl_c(tmp_path: Path) -> None:
    done = tmp_path / "done"
    with Program(*python(path_of("ctrl_c"), str(done))) as program:
        wait_until(lambda: done.exists() and done.stat().st_size, "the first results")
        os.killpg(program.pid, signal.SIGINT)
        assert program.wait() == 130, "and every process has ended"
        assert (program.out, program.err) == (b"", f"interrupted: {done} has what was done\n")
    assert squares(done)


# Progress


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("", r"hashing: 100%\|.*\| 2000/2000 \["),
        ("tqdm --unknown", r"hashing: 2000name \["),
        ("rich", r"hashing .* 100% "),
    ],
)
def test_progress(command: str, shown: str) -> None:
    need(command.partition(" ")[0] or "tqdm")
    status, out, err = run(*python(path_of("progress"), *command.split()))
    assert (status, out) == (0, b"2000 digests\n")
    assert re.search(shown, err), err


Make = Callable[[], IterableQueue[int]]
Bar = Callable[[Any, int | None, io.StringIO], Iterator[int]]
each_kind = pytest.mark.parametrize(
    "make", [IterableQueue[int].threaded, IterableQueue[int]], ids=["threads", "log"]
)


@pytest.fixture(params=["tqdm", "rich"])
def bar(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Bar:
    """Puts a bar around an iterable, which ends with a line of its own in the file given."""
    need(request.param)
    if request.param == "tqdm":
        from tqdm import tqdm

        monkeypatch.setattr(tqdm, "monitor_interval", 0)  # else there is a thread
        return lambda items, total, file: iter(tqdm(items, total=total, file=file))
    from rich.console import Console
    from rich.progress import track

    def tracked(items: Any, total: int | None, file: io.StringIO) -> Iterator[int]:
        return iter(track(items, total=total, console=Console(file=file, width=80)))

    return tracked


@each_kind
@pytest.mark.parametrize("total", [3, None])
def test_a_bar_ends_with_the_queue(make: Make, bar: Bar, total: int | None) -> None:
    with make() as iq, iq.get_producer() as out:
        out.put_many([1, 2, 3])
    file = io.StringIO()
    assert list(bar(iq.get_consumer(), total, file)) == [1, 2, 3]
    assert file.getvalue().endswith("\n"), "it is closed"
    assert ("100%" in file.getvalue()) == (total is not None)


@each_kind
def test_a_bar_ends_with_the_failure(make: Make, bar: Bar) -> None:
    with make() as iq:
        out = iq.get_producer()
        out.put_many([1, 2])
        out.fail(ValueError("why"))
    got: list[int] = []
    file = io.StringIO()
    with pytest.raises(ProducerFailed):
        got.extend(bar(iq.get_consumer(), 4, file))
    assert got == [1, 2]
    assert file.getvalue().endswith("\n")
    assert re.search("50%", file.getvalue())


@each_kind
def test_nobody_takes_the_backlog_for_the_total(make: Make) -> None:
    with make() as iq, iq.get_producer() as out:
        out.put(1)
    consumer: Any = iq.get_consumer()
    assert length_hint(consumer, -1) == -1
    assert not hasattr(consumer, "__len__")
    assert consumer, "nor is an empty one false"


# Metrics


@pytest.fixture
def otel() -> Any:
    need("opentelemetry.sdk")
    return runpy.run_path(path_of("metrics_otel"))


Point = tuple[tuple[str, str], ...]


def points(reader: Any) -> dict[str, dict[Point, int]]:
    """By instrument, and by the attributes that are not those of all."""
    found: dict[str, dict[Point, int]] = {}
    data = reader.get_metrics_data()
    for resource in data.resource_metrics if data else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    own = dict(point.attributes)
                    assert own.pop("messaging.system") == "iterable_queue"
                    assert own.pop("messaging.destination.name") == "numbers"
                    found.setdefault(metric.name, {})[tuple(own.items())] = point.value
    return found


def test_metrics(otel: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    reader = otel["InMemoryMetricReader"]()
    provider = otel["MeterProvider"]([reader], shutdown_on_exit=False)
    iq = IterableQueue[int]()
    otel["observe"](iq, provider.get_meter("test"), "numbers")
    out, source = iq.get_producer(), iq.get_consumer()
    out.put_many([1, 2, 3])
    source.get()
    source.get()
    kind = "iterable_queue.endpoint.kind"
    expected: dict[str, dict[Point, int]] = {
        "messaging.client.sent.messages": {(("messaging.operation.name", "put"),): 3},
        "messaging.client.consumed.messages": {(("messaging.operation.name", "get"),): 2},
        "iterable_queue.finished.messages": {(): 1},
        "iterable_queue.lost.messages": {(): 0},
        "iterable_queue.redelivered.messages": {(): 0},
        "iterable_queue.failed.producers": {(): 0},
        "iterable_queue.queued.messages": {(): 1},
        "iterable_queue.open.endpoints": {
            ((kind, "producer"),): 1,
            ((kind, "consumer"),): 1,
            ((kind, "worker"),): 0,
        },
        "iterable_queue.blocked.callers": {((kind, "producer"),): 0, ((kind, "consumer"),): 0},
    }
    assert points(reader) == expected
    source.get()
    out.fail(ValueError("why"))
    later = points(reader)
    assert later["iterable_queue.queued.messages"] == {(): 0}
    assert later["iterable_queue.failed.producers"] == {(): 1}
    assert later["iterable_queue.open.endpoints"][((kind, "producer"),)] == 0
    source.close()
    provider.shutdown()

    otel["main"]()
    lines = capsys.readouterr().out.splitlines()
    assert "messaging.client.sent.messages  3" in lines
    assert "iterable_queue.open.endpoints consumer 1" in lines


def test_metrics_of_a_queue_that_is_broken(otel: dict[str, Any]) -> None:
    reader = otel["InMemoryMetricReader"]()
    provider = otel["MeterProvider"]([reader], shutdown_on_exit=False)
    iq = IterableQueue[int].threaded()
    iq._core.elsewhere = True  # as in a forked child
    otel["observe"](iq, provider.get_meter("test"), "numbers")
    assert points(reader) == {}
    provider.shutdown()


# Debugging


def test_a_dump_on_a_signal() -> None:
    status, out, err = run(*python(path_of("debugging")))
    assert (status, out) == (0, b"sum: 1\n")
    for pattern in (
        r"^Current thread 0x\w+.* \(most recent call first\):\n",
        r'^  File ".*/debugging.py", line \d+ in consume\n',
        r"^<IterableQueue closed, 0 queued, 1 producer, 1 consumer, made by process \d+>\n",
        r"^closed, not done: 1 producer\(s\) are open\n",
        r"^  producer 1, made at .*/debugging.py:\d+, .*taken by nobody yet",
        r"^  consumer 3, .* 1 thread\(s\) waiting in a call",
    ):
        assert re.search(pattern, err, re.MULTILINE), (pattern, err)


# The page

PAGE = ROOT / "docs" / "recipes.md"
SECTIONS = PAGE.read_text().split("\n## ")[1:]


def test_every_recipe_is_on_the_page() -> None:
    named = re.findall(r"\]\(\.\./examples/(\w+)\.py\)", PAGE.read_text())
    assert set(named) >= {path.stem for path in EXAMPLES.glob("*.py")}
    assert all((EXAMPLES / f"{name}.py").is_file() for name in named)


def test_every_recipe_is_on_the_page_of_whole_files() -> None:
    whole = re.findall(
        r":::\{literalinclude\} \.\./examples/(\w+)\.py\n:language: python\n:::",
        (ROOT / "docs" / "programs.md").read_text(),
    )
    assert sorted(whole) == sorted(path.stem for path in EXAMPLES.glob("*.py"))


def excerpts() -> Iterator[Any]:
    for section in SECTIONS:
        title = section.splitlines()[0]
        for block in fenced_blocks(section):
            if block.language == "py":
                yield pytest.param(section, block, id=f"{title}, line {block.line}")


@pytest.mark.parametrize(("section", "block"), list(excerpts()))
def test_the_page_shows_what_the_recipes_say(section: str, block: Block) -> None:
    """Each block of code is made of lines of the example that was named last before it."""
    before = section[: section.index(block.text)]
    name = re.findall(r"\]\(\.\./examples/(\w+)\.py\)", before)[-1]
    source = Path(path_of(name)).read_text()
    levels = {len(line) - len(line.lstrip()) for line in source.splitlines()}
    assert any(textwrap.indent(block.text, " " * level) in source for level in levels), name

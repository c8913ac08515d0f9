"""The stage on which one promise is checked, and `run`, which brings it up and clears it away.

A promise's function is called with a `Stage`. It makes queues there, starts actors, waits for
facts, and says by `same`, `holds` and `raises` what it expects. It may simply block: it runs in a
daemon thread, and `run` gives that up when the deadline has passed.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Coroutine, Generator, Iterable, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeVar

from iterable_queue._clock import monotonic
from iterable_queue.testing import _actors
from iterable_queue.testing._actors import OVER, POLL_S, Ending, Late, Role
from iterable_queue.testing._conformance import (
    Outcome,
    ProcessContext,
    ProcessLike,
    Promise,
    QueueLike,
    Result,
)
from iterable_queue.testing._fake import WouldBlock

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)

DEATH_S: Final = 2.0
"""How long the death of a process may stay unknown, in seconds."""

SLACK_S: Final = 1.0
"""What is allowed on top of any time that is promised, in seconds: see `within`."""

_GRACE_S: Final = 2.0
"""How long threads and processes are given to end after the end of their promise, in seconds."""


class Broken(AssertionError):
    """A promise was broken: what was expected, and what was seen."""


class NotApplicable(Exception):
    """The promise can't be asked of this queue, and why."""


# What promises expect


def same(seen: object, expected: object, what: str) -> None:
    """*what* is as expected."""
    if seen != expected:
        raise Broken(f"{what}: expected {_short(expected)}, saw {_short(seen)}")


def same_items(seen: Iterable[Any], put: Iterable[Any]) -> None:
    """The items *seen*, in any order, are those that were *put*."""
    taken, expected = Counter(seen), Counter(put)
    if taken == expected:
        return
    lost, more = expected - taken, taken - expected
    said = [f"{lost.total()} lost: {_short(sorted(lost, key=repr))}"] if lost else []
    if more:
        said.append(f"{more.total()} too many: {_short(sorted(more, key=repr))}")
    raise Broken(f"each of {expected.total()} items exactly once, but {' and '.join(said)}")


def holds(fact: object, what: str) -> None:
    """*what* is true."""
    if not fact:
        raise Broken(f"not so: {what}")


def raises(kind: type[E], call: Callable[..., object], *args: Any, **kwargs: Any) -> E:
    """*call* raises *kind*; returns the error, without its traceback, which holds frames."""
    name = getattr(call, "__name__", repr(call))
    said = ", ".join([*map(_short, args), *(f"{k}={_short(v)}" for k, v in kwargs.items())])
    try:
        value = call(*args, **kwargs)
    except kind as error:
        return error.with_traceback(None)
    except Exception as error:
        raise Broken(f"{name}({said}): expected {kind.__name__}, saw {error!r}") from None
    raise Broken(f"{name}({said}): expected {kind.__name__}, it returned {_short(value)}")


async def raises_in_coroutine(kind: type[E], call: Coroutine[Any, Any, object]) -> None:
    """*call* raises *kind* where it is awaited."""
    name = getattr(call, "__qualname__", repr(call))
    try:
        value = await call
    except kind:
        return
    except Exception as error:
        raise Broken(f"{name}: expected {kind.__name__}, saw {error!r}") from None
    raise Broken(f"{name}: expected {kind.__name__}, it returned {_short(value)}")


def within(limit_s: float, seconds: float, what: str) -> None:
    """*what* took no longer than promised, with `SLACK_S` on top.

    On a machine where several processes want each core, all of that takes as many times as long.
    """
    crowd = os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else 1.0
    if seconds > (limit_s + SLACK_S) * max(crowd, 1.0):
        raise Broken(f"{what}: expected within {limit_s:g} s, it took {seconds:.2f} s")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:200]} ... {text[-80:]}"


# Declaring promises


def promise(check: Callable[[Stage], None]) -> Promise:
    """A promise that holds for every queue."""
    return _declare(check, "")


def promise_between_processes(check: Callable[[Stage], None]) -> Promise:
    """A promise that says something about processes."""
    return _declare(check, "processes")


def promise_of_pickling(check: Callable[[Stage], None]) -> Promise:
    """A promise of queues whose items are pickled."""
    return _declare(check, "pickling")


def promise_of_fifo(check: Callable[[Stage], None]) -> Promise:
    """A promise of queues that are strictly first in, first out."""
    return _declare(check, "fifo")


def _declare(
    check: Callable[[Stage], None], needs: Literal["", "processes", "pickling", "fifo"]
) -> Promise:
    text = " ".join((check.__doc__ or "").split())
    return Promise(check.__name__, text, needs, check)


# Actors


class _Runner(Protocol):
    """What threads and processes have in common."""

    def join(self, timeout: float | None = None) -> None: ...
    def is_alive(self) -> bool: ...


class Actor:
    """A thread or process that plays a role.

    Attributes:
        role: its place on the board.
        process: the process object; None for a thread.
    """

    def __init__(self, role: Role, runner: _Runner, process: ProcessLike | None) -> None:
        self.role = role
        self.process = process
        self._runner = runner

    @property
    def pid(self) -> int:
        """The pid of the process that plays it."""
        pid = None if self.process is None else self.process.pid
        return pid or os.getpid()

    def tell(self, fact: str) -> None:
        """Let it know."""
        self.role.post(fact)

    def wait(self, fact: str) -> Any:
        """Wait until it has posted *fact*, and return the value posted with that."""
        while not self.role.has(fact):
            over = not self._runner.is_alive() or self.role.has("end")
            if over and not self.role.has(fact):  # in this order: the fact is posted before the end
                self.result()
                raise Broken(f"{self.role.name} ended without {fact!r}")
            if monotonic() > self.role.deadline:
                raise Late(f"{self.role.name} was waited for in vain: {fact!r}")
            time.sleep(POLL_S)
        return self.role.read(fact)

    def outcome(self) -> Ending:
        """How its function ended, once it has."""
        while not self.role.has("end"):
            alive = self._runner.is_alive()
            if not self.role.has("end") and not alive:
                code = None if self.process is None else self.process.exitcode
                raise Broken(f"{self.role.name} was gone too early, with exit code {code}")
            if monotonic() > self.role.deadline:
                raise Late(f"{self.role.name} did not end")
            time.sleep(POLL_S)
        outcome: Ending = self.role.read("end")
        return outcome

    def result(self) -> Any:
        """What its function returned, once it has."""
        outcome = self.outcome()
        if outcome.error is not None:
            raise Broken(f"{self.role.name} was to return, it raised {outcome.trace}")
        return outcome.value

    def error(self, kind: type[E]) -> E:
        """What its function raised, once it has: a *kind*."""
        outcome = self.outcome()
        if not isinstance(outcome.error, kind):
            said = outcome.trace or f"returned {_short(outcome.value)}"
            raise Broken(f"{self.role.name}: expected {kind.__name__}, it {said}")
        return outcome.error

    def gone(self) -> None:
        """Wait until its process or thread has ended."""
        while self._runner.is_alive():
            if monotonic() > self.role.deadline:
                raise Late(f"{self.role.name} did not end")
            time.sleep(POLL_S)

    def kill(self) -> None:
        """Kill its process, and wait until it is gone."""
        self.send(signal.SIGKILL)
        self.gone()

    def send(self, number: int) -> None:
        """Send a signal to its process."""
        if self.process is None or self.process.pid is None:
            raise NotApplicable("only processes can be sent signals")
        if self._runner.is_alive():
            _kill(self.process.pid, number)

    def clear(self, until: float) -> str | None:
        """Wait for its end, which a process is made to find. Returns what is left, if anything.

        A process that has done its part is given until *until* to leave its queues in order.
        """
        while self._runner.is_alive() and monotonic() < until:
            time.sleep(POLL_S)
        process = self.process
        if process is not None and process.pid is not None and process.is_alive():
            _kill(process.pid, signal.SIGKILL)
            until = monotonic() + _GRACE_S
            while process.is_alive() and monotonic() < until:
                time.sleep(POLL_S)
        if self._runner.is_alive():
            return f"{self.role.name} ({self._runner!r}) could not be ended"
        self._runner.join(_GRACE_S)
        return None


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # gone since, and waited for by its parent, which may be a fork server


@contextmanager
def starting() -> Generator[None]:
    """For what starts processes.

    Promises run in threads, so a fork here is that of a process with threads, of which Python
    warns from 3.12 on. Nothing that the children do waits for a lock of theirs.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
        yield


@contextmanager
def dropping() -> Generator[None]:
    """For what drops endpoints or queues while they are open: on purpose, so that is no leak."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()
        leaks = sys.modules.get("iterable_queue._leaks")
        if leaks is not None:  # a check is a call of this package: they would be told after it
            leaks.LEAKS.tell_now()


class Bounds(NamedTuple):
    """Within which promises are checked: the arguments of these names."""

    processes: ProcessContext | None
    fifo: bool
    threads: bool
    pickled: bool
    clock: Callable[[], float] | None
    deadline_s: float
    items: Sequence[Any]

    def rule_out(self, promise: Promise) -> str | None:
        """What *promise* needs, if that is not to be had."""
        if promise.needs == "processes" and self.processes is None:
            return "needs processes="
        if promise.needs == "pickling" and self.processes is None and not self.pickled:
            return "needs processes=, or pickled=True"
        if promise.needs == "fifo" and not self.fifo:
            return "needs fifo=True"
        return None


class _Played:
    """Runs no more: the part of an actor that was played where it would have been started."""

    def join(self, timeout: float | None = None) -> None:
        pass

    def is_alive(self) -> bool:
        return False


class Stage:
    """What a promise's function works with.

    Attributes:
        context: in whose processes actors run; None: in threads.
        path: the board's directory.
        deadline: of the promise, on the monotonic clock.
        clock: the clock of time-outs, in seconds.
        items: what is put and taken where endpoints are checked by themselves.
    """

    def __init__(
        self, make: Callable[..., Any], bounds: Bounds, path: str, deadline: float
    ) -> None:
        self.context = bounds.processes
        self.path = path
        self.deadline = deadline
        self.clock = bounds.clock or monotonic
        self.items = bounds.items
        self.maker = make
        self._threads = bounds.threads
        self._queues: list[Callable[[], QueueLike | None]] = []
        self._actors: list[Actor] = []
        self._kept: list[QueueLike] = []
        self._made: list[tuple[Any, ...]] = []
        self._frames: list[FrameType] = []
        self._handed: list[tuple[Any, ...]] = []

    # Queues

    def make(self, **kwargs: Any) -> QueueLike:
        """A new queue to be checked."""
        queue: QueueLike = self._call(**kwargs)
        self._queues.append(_reference(queue))
        self._keep_caller(sys._getframe(1))  # pyright: ignore[reportPrivateUsage]
        return queue

    def make_endpoint(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """A new endpoint to be checked, and what its maker gave with it.

        These are referred to until the end: a queue behind one must not be closed by being dropped.
        """
        made = self._call(*args, **kwargs)
        parts: tuple[Any, ...] = made if isinstance(made, tuple) else (made,)  # pyright: ignore[reportUnknownVariableType]
        self._made.append(parts)
        self._keep_caller(sys._getframe(1))  # pyright: ignore[reportPrivateUsage]
        return parts

    def _keep_caller(self, frame: FrameType) -> None:
        """Have what a promise's function still names outlive it, until `give_up` has been called.

        Else it would be dropped open when that returns, which are leaks in development mode. What
        the function itself drops is dropped there. The same goes for what threads were handed.
        """
        if frame not in self._frames:
            self._frames.append(frame)

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.maker(*args, **kwargs)
        except TypeError as error:
            if not kwargs:
                raise
            raise NotApplicable(f"make can't be called with {kwargs}: {error}") from None

    def queues(self) -> list[QueueLike]:
        """Those that are still referred to."""
        return [queue for refer in self._queues if (queue := refer()) is not None]

    def keep(self) -> None:
        """Refer to them until `clear`, so that they can be cancelled."""
        self._kept = self.queues()

    # Actors

    def start(self, function: Callable[..., object], *args: Any) -> Actor:
        """Start an actor in a process, or in a thread where the check is one of threads.

        In a check of one thread it plays its whole part now.
        """
        if not self._threads:
            return self._play(function, *args)
        if self.context is None:
            return self.thread(function, *args)
        role = self._role(function)
        return self.process(role, _actors.perform, role, function, *args)

    def thread(self, function: Callable[..., object], *args: Any) -> Actor:
        """Start an actor in a thread of this process."""
        if not self._threads:
            raise NotApplicable("needs a second thread")
        role = self._role(function)
        self._handed.append(args)
        thread = threading.Thread(
            target=_actors.perform, args=(role, function, *args), name=role.name, daemon=True
        )
        self._actors.append(Actor(role, thread, None))
        thread.start()
        return self._actors[-1]

    def _play(self, function: Callable[..., object], *args: Any) -> Actor:
        """Play an actor's part to its end, which it must come to without the help of others."""
        role = self._role(function)._replace(deadline=0.0)  # nobody will post what it waits for
        _actors.perform(role, function, *args)
        error = role.read("end").error
        if isinstance(error, (WouldBlock, Late)):
            waited = str(error).partition("\n")[0]
            raise NotApplicable(f"needs two actors at once: {function.__name__}: {waited}")
        self._actors.append(Actor(role, _Played(), None))
        return self._actors[-1]

    def process(self, role: Role, target: Callable[..., object], *args: Any) -> Actor:
        """Start a process with *target* as its own."""
        if self.context is None:
            raise NotApplicable("needs processes=")
        actor = (target, *args)
        process: ProcessLike = self.member("Process")(target=_actors.alone, args=actor)
        with starting():
            process.start()
        self._actors.append(Actor(role, process, process))
        return self._actors[-1]

    def _role(self, function: Callable[..., object]) -> Role:
        return self.role(f"{function.__name__}-{len(self._actors)}")

    def role(self, name: str) -> Role:
        """A place on the board."""
        return Role(self.path, name, self.deadline)

    def member(self, name: str) -> Callable[..., Any]:
        """That member of the context."""
        found = getattr(self.context, name, None)
        if not callable(found):
            raise NotApplicable(f"{self.context!r} has no {name}()")
        member: Callable[..., Any] = found
        return member

    def start_with_make(self, function: Callable[..., object], *args: Any) -> Actor:
        """Start an actor that is given `make`, where that can be sent to a process."""
        try:
            pickle.dumps(self.maker)
        except Exception as error:
            raise NotApplicable(f"make can't be pickled: {error}") from None
        return self.start(function, self.maker, *args)

    # Waiting

    def check_deadline(self, what: str) -> None:
        """Raises once the deadline has passed; for a loop that waits for *what*."""
        if monotonic() > self.deadline:
            raise Late(f"waited in vain: {what}")

    def until(self, fact: Callable[[], T], what: str) -> T:
        """Wait until *fact* returns something true, and return that."""
        while not (found := fact()):
            self.check_deadline(what)
            time.sleep(POLL_S)
        return found

    def until_blocked(self, queue: QueueLike, *, producers: int = 0, consumers: int = 0) -> None:
        """Wait until so many callers wait on each side."""

        def blocked() -> bool:
            now = queue.statistics()
            return now.blocked_producers >= producers and now.blocked_consumers >= consumers

        self.until(blocked, f"{producers} blocked producers and {consumers} blocked consumers")

    # The end

    def explain(self) -> str:
        """What the queues say about themselves; in a thread of its own, as they may hang."""
        said: list[str] = []

        def ask() -> None:
            for queue in self.queues():
                try:
                    said.append(f"explain(): {queue.explain()}")
                except Exception as error:
                    said.append(f"explain() raised {error!r}")

        thread = threading.Thread(target=ask, name="explain", daemon=True)
        thread.start()
        thread.join(_GRACE_S)
        if thread.is_alive():
            said.append("explain() did not return")
        return "\n".join(said)

    def give_up(self) -> None:
        """Cancel the queues and close the endpoints, which wakes whatever still waits on them."""

        def cancel() -> None:
            for queue in self.queues():
                try:
                    queue.cancel()
                except Exception:
                    pass
            for made in self._made:
                try:
                    made[0].close()
                except Exception:
                    pass

        thread = threading.Thread(target=cancel, name="cancel", daemon=True)
        thread.start()
        thread.join(_GRACE_S)

    def clear(self) -> list[str]:
        """End every actor, processes by their pids. Returns what could not be ended."""
        with open(f"{self.path}/{OVER}", "wb"):
            pass
        for name in os.listdir(self.path):  # the processes of a pool that was not brought down
            if name.startswith("pool-") and name.endswith(".pid"):
                _kill(int(name.removeprefix("pool-").removesuffix(".pid")), signal.SIGKILL)
        until = monotonic() + _GRACE_S
        left = [actor.clear(until) for actor in self._actors]
        self._actors.clear()
        self._kept.clear()
        self._made.clear()
        self._frames.clear()
        self._handed.clear()
        return [what for what in left if what is not None]

    def pool_ended(self) -> None:
        """A pool was brought down in order, so that its pids may be others' by now."""
        for name in os.listdir(self.path):
            if name.startswith("pool-"):
                os.unlink(f"{self.path}/{name}")


def _reference(queue: QueueLike) -> Callable[[], QueueLike | None]:
    try:
        return weakref.ref(queue)
    except TypeError:
        return lambda: queue


# Running a promise


def run(
    promise: Promise,
    make: Callable[..., Any],
    bounds: Bounds,
) -> Result:
    """Check one promise, whatever the queue does, and clear away what that left."""
    lacking = bounds.rule_out(promise)
    if lacking is not None:
        return _result(promise, "not applicable", lacking, 0.0)
    deadline_s = bounds.deadline_s
    began = monotonic()
    with tempfile.TemporaryDirectory(prefix="conformance-", ignore_cleanup_errors=True) as path:
        stage = Stage(make, bounds, path, began + deadline_s)
        ended: list[tuple[Outcome, str]] = []
        thread = threading.Thread(
            target=_play, args=(promise, stage, ended), name=promise.name, daemon=True
        )
        thread.start()
        try:
            # What waits on the board says better what it waited for, so it gets to speak first.
            thread.join(deadline_s + SLACK_S)
            if ended:
                outcome, detail = ended[0]
            else:
                detail = f"it did not end within {deadline_s:g} s\n{_where(thread)}"
                outcome, detail = "failed", f"{detail}\n{stage.explain()}"
        finally:
            stage.give_up()
            outcome_is_bad = not ended or ended[0][0] == "failed"
            left = stage.clear()
            thread.join(_GRACE_S)
            if outcome_is_bad:
                gc.collect()
    if thread.is_alive():
        left.append(f"thread {thread.name!r} could not be ended; it is a daemon thread")
    if left:
        outcome, detail = "failed", "\n".join([detail, *(f"left behind: {what}" for what in left)])
    return _result(promise, outcome, detail.strip(), monotonic() - began)


def _result(
    promise: Promise,
    outcome: Outcome,
    detail: str,
    seconds: float,
) -> Result:
    return Result(promise.name, promise.text, outcome, detail, seconds)


def _play(
    promise: Promise,
    stage: Stage,
    ended: list[tuple[Outcome, str]],
) -> None:
    """The thread of a promise."""
    try:
        promise.check(stage)
    except NotApplicable as why:
        ended.append(("not applicable", str(why)))
    except Late as error:
        stage.keep()
        ended.append(("failed", f"{error}\n{_line(error)}\n{stage.explain()}"))
    except Broken as error:
        stage.keep()
        ended.append(("failed", f"{error}\n{_line(error)}"))
    except BaseException as error:
        stage.keep()
        trace = "".join(traceback.format_exception(error)).strip()
        ended.append(("failed", f"unexpected {error!r}\n{trace}"))
    else:
        ended.append(("passed", ""))


def _line(error: BaseException) -> str:
    """The line of the promise's function at which *error* came up."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "_promises" in f.filename]
    return "\n".join(f"  at {os.path.basename(f.filename)}:{f.lineno}: {f.line}" for f in frames)


def _where(thread: threading.Thread) -> str:
    """Where *thread* is."""
    frame = sys._current_frames().get(thread.ident or 0)  # pyright: ignore[reportPrivateUsage]
    if frame is None:
        return ""
    return "  it hung here:\n" + "".join(traceback.format_stack(frame)[-8:]).rstrip()

"""Faults: what a queue on a server does when clients, connections or the server fail.

Items are accounted for from outside: producers and consumers write down what they have put, and
what they were handed, in files of their own.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import pytest

from iterable_queue import (
    ChannelBroken,
    Consumer,
    Done,
    Empty,
    Full,
    ItemsLost,
    IterableQueue,
    Producer,
    ProducerFailed,
)
from iterable_queue._channels.redis import claims, ledger
from iterable_queue._core import Core
from tests.conftest import FORKS, Processes, wait_until
from tests.redis_server import Proxy, Server, redis, running

DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    yield from running(Server(tmp_path))


@pytest.fixture
def durable(tmp_path: Path) -> Iterator[Server]:
    yield from running(Server(tmp_path, *DURABLE))


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    found = Proxy(server.port)
    try:
        yield found
    finally:
        gc.collect()
        found.close()


class Background:
    """Calls a function in a thread."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.error: BaseException | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._call()
        except BaseException as error:
            self.error = error

    def end(self, timeout: float = 40.0) -> None:
        self._thread.join(timeout)
        assert not self._thread.is_alive(), "it did not come to its end"
        if self.error is not None:
            raise self.error


# Clients that are killed


def note(fd: int, n: int) -> None:
    os.write(fd, b"%d\n" % n)


def put_and_note(out: Producer[int], path: str, first: int) -> None:
    """Put numbers; each is written down once its put has returned."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with out:
        for n in range(first, first + 400):
            out.put(n)
            note(fd, n)


def take_and_note(source: Consumer[int], path: str) -> None:
    """Take numbers; each is written down at once."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with suppress(ProducerFailed):
        for n in source:
            note(fd, n)


def keep(_: Consumer[int]) -> None:
    """Be a process that has one, until it is killed."""
    time.sleep(600)


def is_in(thread: threading.Thread, function: str) -> bool:
    """Whether the thread is in a call of it, just now."""
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None and frame.f_code.co_name != function:
        frame = frame.f_back
    return frame is not None


def until_all_listen(server: Server) -> None:
    """Wait until whoever listens sends nothing of itself for a while."""
    with server.client() as client:
        wait_until(lambda: any(found["cmd"] == "blpop" for found in client.client_list()), "so")


def noted(paths: list[Path]) -> list[int]:
    return [int(line) for path in paths if path.exists() for line in path.read_text().split()]


@pytest.mark.parametrize("redeliver", [False, True])
@pytest.mark.parametrize("seed", range(3))
@FORKS
def test_clients_killed_at_random(
    server: Server, processes: Processes, tmp_path: Path, seed: int, redeliver: bool
) -> None:
    kill_at_random(server, processes, tmp_path, seed, redeliver)


@pytest.mark.soak
@pytest.mark.time_limit(4200)
@FORKS
def test_clients_killed_at_random_for_an_hour(server: Server, tmp_path: Path) -> None:
    """Or `SOAK_SECONDS`, from the seed `SOAK_SEED` on: `pytest -m soak -n 0 -s` says how many."""
    first = int(os.environ.get("SOAK_SEED", random.SystemRandom().randrange(1 << 40)))
    end = time.monotonic() + float(os.environ.get("SOAK_SECONDS", "3600"))
    seed = first
    while time.monotonic() < end:
        directory = tmp_path / str(seed)
        directory.mkdir()
        processes = Processes(set())
        try:
            kill_at_random(server, processes, directory, seed, bool(seed % 2))
        except BaseException as error:
            error.add_note(f"SOAK_SEED={seed}")
            raise
        finally:
            processes.end()
        shutil.rmtree(directory)
        seed += 1
    print(f"\nclients killed: seeds {first} to {seed - 1}, {seed - first} rounds")


def kill_at_random(
    server: Server, processes: Processes, tmp_path: Path, seed: int, redeliver: bool
) -> None:
    """Of each kind one is killed, as soon as it has done so much; then all is accounted for."""
    rng = random.Random(seed)
    context = get_context("fork")
    # That a child was killed its parent tells, at once. A busy machine may be silent for long.
    iq = server.connect(redeliver=redeliver, maxsize=rng.choice((0, 0, 20)), expiry_s=30.0)
    puts = [tmp_path / f"put{n}" for n in range(3)]
    takes = [tmp_path / f"taken{n}" for n in range(3)]
    producers = [
        context.Process(target=put_and_note, args=(iq.get_producer(), str(path), 1000 * n))
        for n, path in enumerate(puts)
    ]
    consumers = [
        context.Process(target=take_and_note, args=(iq.get_consumer(), str(path))) for path in takes
    ]
    for process in (*producers, *consumers):
        processes.start(process)
    iq.close()
    for process, path in ((consumers[0], takes[0]), (producers[0], puts[0])):
        least = rng.randrange(1, 300)

        def has_come_so_far(path: Path = path, least: int = least, process: Any = process) -> bool:
            # Or the others have taken everything before this one came.
            done = path.stat().st_size if path.exists() else 0
            return done >= least or process.exitcode is not None

        wait_until(has_come_so_far, f"{path} has {least} bytes")
        assert process.pid is not None
        with suppress(ProcessLookupError):  # it has come to its end before
            os.kill(process.pid, signal.SIGKILL)
    processes.join(50.0)
    try:
        iq.join(10.0)
    except (ProducerFailed, ItemsLost):
        pass
    put, taken = noted(puts), noted(takes)
    now = iq.statistics()
    assert now.queued == 0
    twice = [n for n, count in Counter(taken).items() if count > 1]
    missing = set(put) - set(taken)
    # One put may have been done and not noted, one item taken and not noted.
    assert len(set(taken) - set(put)) <= 1
    if redeliver:
        assert not missing
        assert len(twice) <= 1
        assert (now.lost, now.redelivered) in ((0, 1), (0, 0))
    else:
        assert not twice
        assert len(missing) <= 1
        assert now.lost <= 1


def hand_out_rest(source: Any, path: str, go: int) -> None:
    """Take until a claim of many is begun; once told to, take the rest of that, and wait."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    left = 0
    while left < 400:
        note(fd, source.get())
        left = max(
            hand.own.claim.permits
            for hands in source._ledger.hands.values()
            for hand in hands.values()
        )
    os.write(fd, b"claimed\n")
    os.read(go, 1)
    for _ in range(left):
        note(fd, source.get())
    os.write(fd, b"taken\n")
    signal.pause()


@pytest.mark.parametrize("redeliver", [False, True])
@FORKS
def test_what_a_killed_client_handed_out_is_handed_out_once(
    server: Server,
    processes: Processes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    redeliver: bool,
) -> None:
    """The server reads what it was told of that, and what its parent says, in any order."""
    monkeypatch.setattr(claims, "SURE_S", 60.0)  # as if it took no time
    monkeypatch.setattr(ledger, "CLAIM_NS", 1_000_000_000)
    iq = server.connect(redeliver=redeliver, expiry_s=60.0)
    core: Any = iq._core
    path = tmp_path / "taken"
    go, end = os.pipe()
    with iq, iq.get_producer() as out:
        out.put_many(range(20_000))
        child = get_context("fork").Process(
            target=hand_out_rest, args=(iq.get_consumer(), str(path), go)
        )
        processes.start(child)
    source = iq.get_consumer()
    wait_until(lambda: path.exists() and b"claimed" in path.read_bytes(), "much is claimed")
    server.signal(signal.SIGSTOP)
    os.write(end, b"x")
    wait_until(lambda: b"taken" in path.read_bytes(), "it is handed out")
    links = core.link, core._listener._asking
    child.kill()
    wait_until(lambda: any(link.busy for link in links), "its parent has seen its end")
    server.signal(signal.SIGCONT)
    taken = [int(word) for word in path.read_text().split() if word.isdigit()]
    rest = list[int]()
    with suppress(ItemsLost):
        for n in source:
            rest += (n,)
    # The last one was still in hand.
    assert set(taken) & set(rest) <= set(taken[-1:] * redeliver)
    assert sorted({*taken, *rest}) == list(range(20_000))
    assert len(taken) + len(rest) <= 20_001
    for fd in (go, end):
        os.close(fd)
    source.close()


def test_who_was_taken_for_dead_is_told(server: Server) -> None:
    """A client that stood still for too long: its endpoints ended, and it can't go on."""
    iq = server.connect(name="q", expiry_s=1.0, maxsize=10)
    program = (
        "import sys; from iterable_queue import IterableQueue\n"
        "iq = IterableQueue.connect(sys.argv[1], name='q', expiry_s=1.0)\n"
        "out = iq.get_producer(); out.put(1); print('put', flush=True); sys.stdin.readline()\n"
        "for call in (out.put, iq.get_producer, iq.statistics):\n"
        "    try: call(*([2] if call == out.put else []))\n"
        "    except Exception as error: print(type(error).__name__, error, flush=True)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, server.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "put\n"
        child.send_signal(signal.SIGSTOP)
        wait_until(lambda: iq.statistics().failures, "it is taken for dead")
        child.send_signal(signal.SIGCONT)
        said, _ = child.communicate("go on\n", timeout=30)
    finally:
        child.kill()
        child.wait(20)
    assert said.count("ChannelBroken process") == 3
    assert "takes part in the queue 'q' no more" in said
    source = iq.get_consumer()
    iq.close()
    assert source.get() == 1
    with pytest.raises(ProducerFailed, match="no sign of life has reached the server for 1 s"):
        source.get()


def test_descriptors_that_the_listener_has_closed_are_not_used_again(
    server: Server, tmp_path: Path
) -> None:
    """They may be somebody else's by then: whoever drops the queue, or forks, wrote to them."""
    iq = server.connect(expiry_s=0.6)
    core: Any = iq._core
    listener = core._listener
    guarded, guarding = os.pipe()
    late, other = os.pipe()
    listener.guard(guarded, 1, 0)
    numbers = [listener._wake_end, listener._wake, guarded]
    with open(tmp_path / "mine", "w+b", buffering=0) as mine, server.client() as client:
        client.flushall()
        listener.thread.join(20)
        assert not listener.thread.is_alive()
        for number in numbers:
            os.dup2(mine.fileno(), number)
        core._guard(late, 1, 0)
        listener.stop()
        listener.forget()
        assert listener.ended() == []
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(late)  # nobody watches it, so it is closed
        for number in numbers:
            assert os.path.sameopenfile(number, mine.fileno())
            os.close(number)
        assert mine.read() == b""
    os.close(other)
    os.close(guarding)
    with pytest.raises(ChannelBroken):
        iq.qsize()


@FORKS
def test_who_drops_a_queue_is_not_kept_by_a_child_that_died_as_the_server_went(
    server: Server, processes: Processes
) -> None:
    """To tell the server of that child was tried for `retry_s`, by a thread that had the queue."""
    iq = server.connect(expiry_s=9.0)
    listener = cast("Any", iq._core)._listener
    source = iq.get_consumer()
    child = processes.start(get_context("fork").Process(target=keep, args=(source,)))
    wait_until(lambda: [pid for _, pid in listener.guarded.values() if pid], "it has begun")
    server.signal(signal.SIGSTOP)
    child.kill()
    child.join(20)
    wait_until(lambda: is_in(listener.thread, "child_ended"), "its end is to be told")
    try:
        del source, iq
        gc.collect()
        listener.thread.join(15)
        assert not listener.thread.is_alive()
    finally:
        server.signal(signal.SIGCONT)


# The server


def test_the_server_stands_still_for_five_seconds(server: Server) -> None:
    """Longer than anybody may be silent: nobody is taken for dead, and nothing is done twice."""
    iq = server.connect(name="q", expiry_s=2.0)
    # Whichever is the first to beat afterwards finds all others silent.
    others = [server.connect(name="q", expiry_s=2.0, url=f"{server.url}?db={db}") for db in "0"]
    others += [server.connect(name="q", expiry_s=2.0, url=f"unix://{server.path}")]
    kept = [other.get_producer() for other in others]
    for producer in kept:
        producer.put(-1)
    out, source = iq.get_producer(), iq.get_consumer()
    got: list[int] = []

    def put() -> None:
        with out:
            for n in range(300):
                out.put(n)

    putting = Background(put)
    wait_until(lambda: iq.statistics().put > 20, "it puts")
    server.signal(signal.SIGSTOP)
    stands_still = threading.Timer(5.0, server.signal, (signal.SIGCONT,))
    stands_still.start()
    taking = Background(lambda: got.extend(source))
    stands_still.join(20)
    putting.end()
    for producer in kept:
        producer.close()
    iq.close()
    taking.end()
    assert got == [-1, -1, *range(300)]
    assert iq.statistics().failures == 0


def test_timeouts_hold_while_the_server_stands_still(server: Server) -> None:
    """Also those of the calls that find the connection broken, and have to make it again."""
    iq = server.connect(expiry_s=60.0)
    out, source = iq.get_producer(), iq.get_consumer()
    out.put(1)
    assert source.get() == 1
    server.signal(signal.SIGSTOP)
    began = time.monotonic()
    for _ in range(3):
        with pytest.raises(Empty, match=r"gave no answer in time, .*; nothing was taken"):
            source.get(timeout=0.2)
        with pytest.raises(Empty, match=r"gave no answer in time, .*; nothing was taken"):
            source.get_nowait()
        # The connection has to be made, so nothing was sent.
        with pytest.raises(Full, match=r"gave no answer in time, .*; nothing was put"):
            out.put(2, timeout=0.2)
        assert iq.join(0.2) is False
    assert time.monotonic() - began < 30.0, "half a second each, and not five"
    server.signal(signal.SIGCONT)
    assert iq.join(0.0) is False
    with pytest.raises(Empty, match="nothing came in time"):
        source.get(timeout=0.1)
    iq.cancel()


@pytest.mark.parametrize("road", ["an argument", "inherited"])
@FORKS
def test_timeouts_hold_for_the_first_call_of_a_process(
    server: Server, processes: Processes, road: str
) -> None:
    context = get_context("fork")
    iq = server.connect(expiry_s=60.0)
    source = iq.get_consumer()
    go, (answers, say) = context.Event(), context.Pipe(False)

    def first(given: Consumer[int]) -> None:
        go.wait(20)
        began = time.monotonic()
        joined = iq.join(0.2)
        with pytest.raises(Empty, match="gave no answer in time"):
            given.get(timeout=0.2)
        go.clear()
        say.send((joined, time.monotonic() - began))
        go.wait(20)
        say.send(given.get(timeout=20))

    child = partial(first, source) if road == "inherited" else first
    args = () if road == "inherited" else (source,)
    processes.start(context.Process(target=child, args=args))
    server.signal(signal.SIGSTOP)
    go.set()
    assert answers.poll(40)
    joined, took_s = answers.recv()
    server.signal(signal.SIGCONT)
    assert joined is False
    assert took_s < 8.0, "half a second each, and not five or more"
    iq.get_producer().put(7)
    go.set()
    assert answers.poll(20)
    assert answers.recv() == 7
    processes.join()
    with server.client() as client:
        assert client.zcard("iq:{q1}:beats") <= 2, "it joined once"


def test_dropping_an_endpoint_leaves_no_deadline_of_another_thread(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would ever take it back: each later call would be given up at once."""
    core: Any = server.connect()._core
    inside, dropping, has_ended = threading.Event(), threading.Event(), threading.Event()

    def attempt() -> bool:
        assert core.link.deadline is not None
        inside.set()
        return dropping.wait(20)

    def drop(*_args: object) -> None:
        dropping.set()
        assert has_ended.wait(20)

    monkeypatch.setattr(Core, "drop", drop)
    timed = Background(lambda: core.wait(attempt, core.runtime.items, time.monotonic() + 20))
    assert inside.wait(20)
    dropped = Background(lambda: core.drop(99, 99))
    timed.end()
    has_ended.set()
    dropped.end()
    assert core.link.deadline is None


def test_a_look_that_takes_too_long_says_that_the_server_is_out_of_reach(server: Server) -> None:
    iq = server.connect(expiry_s=20.0)
    core: Any = iq._core
    producer: Any = iq.get_producer()
    server.signal(signal.SIGSTOP)
    with pytest.raises(ChannelBroken, match="no answer in time"):
        core.describe()
    with pytest.raises(ChannelBroken, match="the server at"):
        core.whose(producer.slot, producer.number)
    server.signal(signal.SIGCONT)
    assert "open" in repr(producer)


def test_what_a_get_that_was_given_up_has_taken_comes_back(server: Server) -> None:
    """The server makes the call after all, when nobody waits for its answer any more."""
    iq = server.connect(expiry_s=20.0)
    out, source = iq.get_producer(), iq.get_consumer()
    with out:
        out.put_many(range(4))
    iq.close()
    assert source.get() == 0
    with server.client() as client:
        before = client.hget("iq:{q1}:hands", "2:0")
        server.signal(signal.SIGSTOP)
        with pytest.raises(Empty):
            source.get(timeout=0.7)
        server.signal(signal.SIGCONT)
        # The one in hand was finished by that call, and the next one is in hand now.
        wait_until(lambda: client.hget("iq:{q1}:hands", "2:0") != before, "it is made")
    assert list(source) == [1, 2, 3]
    assert iq.join(10)
    assert iq.statistics().lost == 0


def with_a_claim(source: Any) -> list[int]:
    """Take items until some are claimed ahead, which the server is to be asked about first."""
    got: list[int] = []
    claim: Any = None
    while claim is None or claim.permits < 5:
        got.append(source.get())
        claim = next(iter(source._hands.values())).own.claim
    claim._sure_until = 0.0
    return got


def test_timeouts_hold_for_what_was_claimed_before(server: Server) -> None:
    """Nothing is taken by a call that was given up; the others get all, in order."""
    iq = server.connect(expiry_s=60.0, retry_s=50.0)
    with iq, iq.get_producer() as out:
        source = iq.get_consumer()
        out.put_many(range(4000))
    got = with_a_claim(source)
    server.signal(signal.SIGSTOP)
    began = time.monotonic()
    for call in (partial(source.get, timeout=0.2), source.get_nowait, source.get_nowait):
        with pytest.raises(Empty, match="gave no answer in time; nothing was taken"):
            call()
    assert time.monotonic() - began < 20.0
    server.signal(signal.SIGCONT)
    got += source
    assert got == list(range(4000))
    assert iq.join(10)
    assert iq.statistics().lost == 0


def test_who_asks_about_its_claim_is_named_as_elsewhere(server: Server) -> None:
    iq = server.connect(retry_s=0.5)
    iq.get_producer().put_many(range(4000))
    source = iq.get_consumer()
    with_a_claim(source)
    server.kill()
    with pytest.raises(ChannelBroken, match=r"^get of consumer 2: the server at"):
        source.get()


def test_what_put_returned_for_survives_the_server(durable: Server) -> None:
    """Killed and started again, with a log that is written before each answer."""
    iq = durable.connect(expiry_s=3.0)
    out, source = iq.get_producer(), iq.get_consumer()
    done: list[int] = []

    def put() -> None:
        with out:
            for n in range(400):
                out.put(n)
                done.append(n)

    putting = Background(put)
    for least in (50, 150, 250):
        wait_until(lambda least=least: len(done) > least, "it puts")  # type: ignore[misc]
        durable.kill()
        durable.start()
    putting.end()
    iq.close()
    assert list(source) == list(range(400))
    assert iq.join(10)


def test_that_the_server_is_out_of_reach_is_logged(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, though nobody calls anything."""
    iq = server.connect(name="q", expiry_s=0.3)
    server.kill()
    text = f"the server at 127.0.0.1:{server.port}/0 is out of reach: "

    def told() -> list[str]:
        return [message for message in caplog.messages if message.startswith(text)]

    wait_until(told, "it is logged")
    assert len(told()) == 1
    del iq  # and leave in peace


def test_a_server_that_stays_away_is_an_error_in_time(server: Server) -> None:
    iq = server.connect(retry_s=0.5)
    out, source = iq.get_producer(), iq.get_consumer()
    out.put(1)
    assert source.get() == 1
    server.kill()
    with pytest.raises(ChannelBroken, match=r"put of producer 1: the server at 127\.0\.0\.1:"):
        out.put(2)
    with pytest.raises(ChannelBroken, match="get of consumer 2: "):
        source.get()
    assert "out of reach" in repr(iq)


async def longest_turn(seconds: list[float]) -> None:
    """Note how long the event loop has nothing for this coroutine, the longest time first."""
    while True:
        before = time.monotonic()
        await asyncio.sleep(0.01)
        seconds[:] = [max(*seconds, time.monotonic() - before)]


def test_no_attempt_is_begun_later_than_it_is_tried_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:  # which never answers

        def client() -> Any:
            port = mute.getsockname()[1]
            return redis.Redis(port=port, socket_timeout=0.3, socket_connect_timeout=0.3)

        with pytest.raises(ChannelBroken, match=r"could not be reached for \d"):
            IterableQueue[int].connect(client, name="jobs", retry_s=0.2)
        mute.settimeout(0)
        mute.accept()[0].close()
        with pytest.raises(BlockingIOError):
            mute.accept()


def test_an_event_loop_goes_on_while_the_server_stands_still(server: Server) -> None:
    """A get that waits in it has it for a moment at a time; then it goes on where it was."""
    iq = server.connect(expiry_s=60.0)
    out, source = iq.get_producer(), iq.get_consumer()
    out.put(0)
    turns = [0.0]

    async def main() -> None:
        assert await source.aget() == 0
        ticking = asyncio.create_task(longest_turn(turns))
        server.signal(signal.SIGSTOP)
        for _ in range(2):
            with pytest.raises(Empty, match="gave no answer in time"):
                await source.aget(timeout=3.0)
            assert await iq.ajoin(3.0) is False
        waiting = asyncio.create_task(source.aget())
        await asyncio.sleep(0)
        server.signal(signal.SIGCONT)
        out.put_many([1, 2])
        assert await asyncio.wait_for(waiting, 30) == 1
        assert await source.aget(timeout=30) == 2
        ticking.cancel()

    asyncio.run(main())
    assert turns[0] < 3.0, "and not the five seconds that an answer is waited for"
    iq.cancel()


def test_an_event_loop_goes_on_while_a_put_is_not_answered(server: Server) -> None:
    """It is asked for again where it was, and before what others put meanwhile."""
    iq = server.connect(expiry_s=60.0)
    outs, source = [iq.get_producer() for _ in range(3)], iq.get_consumer()
    turns = [0.0]

    async def main() -> None:
        for n, out in enumerate(outs):
            await out.aput(n)
        ticking = asyncio.create_task(longest_turn(turns))
        server.signal(signal.SIGSTOP)
        putting = [asyncio.create_task(out.aput(10 + n)) for n, out in enumerate(outs)]
        await asyncio.sleep(0)  # the first is sent, by the connection that there is
        with pytest.raises(Empty, match="gave no answer in time"):
            await source.aget(timeout=3.0)
        assert not any(put.done() for put in putting)
        server.signal(signal.SIGCONT)
        await asyncio.wait_for(asyncio.gather(*putting), 30)
        ticking.cancel()

    asyncio.run(main())
    assert turns[0] < 3.0, "and not the five seconds that an answer is waited for"
    iq.close()
    for out in outs:
        out.close()
    assert sorted(source) == [0, 1, 2, 10, 11, 12]


@pytest.mark.parametrize("what", ["request", "answer"])
def test_a_coroutines_put_whose_connection_is_cut_is_made_once(
    server: Server, proxy: Proxy, what: str
) -> None:
    iq = server.connect(url=proxy.url, expiry_s=60.0)
    out, source = iq.get_producer(), iq.get_consumer()

    async def main() -> None:
        await out.aput(0)
        until_all_listen(server)
        is_request = what == "request"
        proxy.cut(request=0 if is_request else -1, answer=-1 if is_request else 0, refuse=True)
        putting = asyncio.create_task(out.aput(1))
        await asyncio.to_thread(wait_until, lambda: proxy.cuts, "it is cut")
        assert not putting.done()
        proxy.refuse(False)
        await asyncio.wait_for(putting, 30)

    asyncio.run(main())
    iq.close()
    out.close()
    assert list(source) == [0, 1]


def test_a_coroutines_put_that_is_given_up_says_what_is_known(server: Server, proxy: Proxy) -> None:
    iq = server.connect(url=proxy.url, expiry_s=60.0)
    out, source = iq.get_producer(), iq.get_consumer()
    core: Any = iq._core

    async def main() -> None:
        await out.aput(0)
        proxy.refuse(True)
        core.link.drop()  # or it would be sent before it is known that nobody is there
        with pytest.raises(Full, match=r"gave no answer in time.*; nothing was put"):
            await out.aput(1, timeout=0.2)
        proxy.refuse(False)
        await out.aput(2)
        server.signal(signal.SIGSTOP)
        with pytest.raises(ChannelBroken, match="whether the item was put is not known"):
            await out.aput(3, timeout=0.2)
        assert not core.link.owed
        putting = asyncio.create_task(out.aput(4))
        await asyncio.to_thread(wait_until, lambda: core.link.owed, "it is sent")
        putting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await putting
        assert not core.link.owed
        server.signal(signal.SIGCONT)
        await out.aput(5)

    asyncio.run(asyncio.wait_for(main(), 30))
    iq.close()
    out.close()
    got = list(source)
    assert [n for n in got if n not in {3, 4}] == [0, 2, 5]
    assert len(got) == len(set(got))


def test_a_coroutines_put_is_told_itself_that_there_is_no_memory(
    server: Server, proxy: Proxy
) -> None:
    """And not the one whose call has brought it to its end."""
    iq = server.connect(url=proxy.url, expiry_s=60.0)
    out = iq.get_producer()
    core: Any = iq._core

    async def main() -> None:
        await out.aput(0)
        with server.client() as client:
            client.config_set("maxmemory", client.info("memory")["used_memory"] // 2)
        proxy.refuse(True)
        putting = asyncio.create_task(out.aput(b"x" * 100_000))
        await asyncio.to_thread(wait_until, lambda: core.link.owed, "it is sent")
        proxy.refuse(False)
        assert iq.qsize() == 1
        with pytest.raises(OSError, match="nothing was changed by put of producer 1") as caught:
            await putting
        assert caught.value.errno == errno.ENOSPC
        with server.client() as client:
            client.config_set("maxmemory", 0)
        await out.aput(2)

    asyncio.run(asyncio.wait_for(main(), 30))
    assert iq.qsize() == 2
    iq.cancel()


def test_a_coroutine_is_told_that_the_server_stays_away(server: Server) -> None:
    iq = server.connect(retry_s=0.5)
    out, source = iq.get_producer(), iq.get_consumer()
    unused = iq.get_consumer()
    out.put(0)
    assert source.get() == 0

    async def main() -> None:
        with pytest.raises(Empty, match="nothing came in time"):
            await source.aget(timeout=0.1)
        server.kill()
        for consumer in (source, unused):
            with pytest.raises(ChannelBroken, match="gave no answer in time"):
                await consumer.aget()
        with pytest.raises(ChannelBroken, match=r"gave no answer in time.*refused"):
            await out.aput(1)

    asyncio.run(main())


def client_without_timeouts(port: int) -> Any:
    return redis.Redis(port=port, socket_timeout=None, socket_connect_timeout=None)


def test_a_client_without_a_time_out_does_not_wait_for_ever(server: Server) -> None:
    """Nor does it with retries of its own: they are not asked for."""
    iq = server.connect(url=partial(client_without_timeouts, server.port), retry_s=1.0)
    out = iq.get_producer()
    out.put(1)
    server.signal(signal.SIGSTOP)
    waiting = Background(lambda: out.put(2))
    with pytest.raises(
        ChannelBroken, match=r"put of producer 1: the server at .*was sent, and not"
    ):
        waiting.end()
    server.signal(signal.SIGCONT)
    with server.client() as client:
        wait_until(lambda: client.llen("iq:{q1}:items") >= 1, "it goes on")


def test_no_memory_left(server: Server) -> None:
    """The limit is an error in put, which changed nothing; taking makes room."""
    iq = server.connect()
    out, source = iq.get_producer(), iq.get_consumer()
    with server.client() as client:
        used = client.info("memory")["used_memory"]
        client.config_set("maxmemory", used + 4_000_000)
        item = b"x" * 100_000
        count = 0

        def put_all() -> None:
            nonlocal count
            while count < 1000:
                out.put(item)
                count += 1

        with pytest.raises(OSError, match="has reached its memory limit") as caught:
            put_all()
        assert caught.value.errno == errno.ENOSPC
        assert iq.qsize() == count
        with pytest.raises(OSError, match="put of producer 1"):
            out.put_many([item] * 10)
        assert iq.qsize() == count
        client.config_set("maxmemory", client.info("memory")["used_memory"] - 1)
        assert source.get() == item, "to take is never refused"
        late = iq.get_consumer()
        late.close()
        source.get_many(count - 5)
        client.config_set("maxmemory", 0)
    out.put("room again")
    out.close()
    iq.close()
    assert list(source)[-1] == "room again"
    with pytest.raises(Done):
        source.get()


def test_a_read_only_server_is_waited_for(server: Server) -> None:
    iq = server.connect(retry_s=20.0)
    out = iq.get_producer()
    out.put(1)
    with server.client() as client:
        client.replicaof("127.0.0.1", 1)
        waiting = Background(lambda: out.put(2))
        wait_until(lambda: "errorstat_READONLY" in client.info("errorstats"), "one is refused")
        client.replicaof("NO", "ONE")
    waiting.end()
    assert iq.qsize() == 2
    iq.cancel()


# Connections


@pytest.mark.parametrize("at", [0, 1, 7, 40, 90])
@pytest.mark.parametrize("what", ["request", "answer"])
def test_a_connection_cut_in_mid_command(server: Server, proxy: Proxy, what: str, at: int) -> None:
    """Each call is made once, whether the server has seen it or not."""
    iq = server.connect(url=proxy.url, expiry_s=10.0)
    out, source = iq.get_producer(), iq.get_consumer()
    cuts = 0

    def cut() -> None:
        nonlocal cuts
        proxy.cut(request=at if what == "request" else -1, answer=at if what == "answer" else -1)
        cuts += 1

    for n in range(8):
        cut()
        out.put(n)
        wait_until(lambda: proxy.cuts == cuts, "the connection is cut")
    cut()
    out.put_many(range(8, 12_008))
    assert iq.qsize() == 12_008
    got: list[int] = []
    for _ in range(4):
        cut()
        got.append(source.get())
    cut()
    got += source.get_many(10_000)  # more than Lua can have on its stack
    cut()
    clone = out.clone()
    cut()
    clone.close()
    cut()
    out.close()
    iq.close()
    got += source
    assert got == list(range(12_008))
    now = iq.statistics()
    assert (now.put, now.taken, now.lost, now.open_producers) == (12_008, 12_008, 0, 0)
    assert proxy.cuts >= 8


def test_hand_outs_told_on_a_connection_that_broke_are_told_again(
    server: Server, proxy: Proxy
) -> None:
    iq = server.connect(url=proxy.url, expiry_s=10.0)
    out, source = iq.get_producer(), iq.get_consumer()
    out.put_many(range(5000))
    got: list[int] = []
    for n in range(5000):
        if n % 700 == 699:
            proxy.cut(request=0)
        got.append(source.get())
    assert got == list(range(5000))
    assert iq.qsize() == 0
    now = iq.statistics()
    assert (now.taken, now.finished) == (5000, 4999)
    iq.cancel()


@pytest.mark.parametrize("then", ["get", "get_many", "close", "qsize"])
@pytest.mark.parametrize("what", ["request", "answer"])
def test_a_recall_that_is_not_answered_loses_nothing(
    server: Server, proxy: Proxy, what: str, then: str
) -> None:
    """Half of a claim is asked for, and the server is out of reach before it says that it has it.

    Whether it has, is found out before anything of that claim is handed out or given back.
    """
    # Nobody beats meanwhile, so the call that is cut is that which is meant.
    iq = server.connect(name="q", url=proxy.url, expiry_s=60.0, retry_s=20.0)
    far = server.connect(name="q", expiry_s=60.0)
    out, source, rest = far.get_producer(), iq.get_consumer(), far.get_consumer()
    out.put_many(range(4_000))
    got = [source.get()]
    endpoint: Any = source
    hand: Any = next(iter(endpoint._hands.values()))
    core: Any = iq._core
    while hand.own.claim.permits < 4:
        got.append(source.get())
    claim: Any = hand.own.claim
    claimed = claim.permits
    is_request = what == "request"
    proxy.cut(request=0 if is_request else -1, answer=-1 if is_request else 0, refuse=True)
    with core.runtime.lock:
        core.was_told(["c", *claim.hand.split(":"), str(claim.call)])
    assert proxy.cuts == 1
    proxy.refuse(False)
    if then == "get":
        got.append(source.get())
    elif then == "get_many":
        got += source.get_many(10)
    elif then == "qsize":
        iq.qsize()
    assert then == "close" or claim.permits <= claimed // 2
    source.close()
    out.close()
    far.close()
    got += rest
    assert sorted(got) == list(range(4_000))
    assert far.join(20)
    now = far.statistics()
    assert (now.put, now.taken, now.lost) == (4_000, 4_000, 0)


def test_cut_off_and_healed(server: Server, proxy: Proxy) -> None:
    """For less than the expiry, all goes on; for more, it is said."""
    here = server.connect(name="q", expiry_s=2.0)
    there = server.connect(name="q", url=proxy.url, expiry_s=2.0)
    out, source = there.get_producer(), here.get_consumer()
    out.put(1)
    proxy.refuse(True)
    proxy.refuse(False)
    out.put(2)
    assert [source.get(), source.get()] == [1, 2]
    proxy.refuse(True)
    wait_until(lambda: here.statistics().failures, "it is taken for dead")
    proxy.refuse(False)
    with pytest.raises(ChannelBroken, match="takes part in the queue 'q' no more"):
        out.put(3)
    here.close()
    with pytest.raises(ProducerFailed):
        source.get()

"""Faults: what a queue on a server does when clients, connections or the server fail.

Items are accounted for from outside: producers and consumers write down what they have put, and
what they were handed, in files of their own.
"""

from __future__ import annotations

import errno
import gc
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from iterable_queue import (
    ChannelBroken,
    Consumer,
    Done,
    Empty,
    Full,
    ItemsLost,
    Producer,
    ProducerFailed,
)
from tests.conftest import FORKS, Processes, wait_until
from tests.redis_server import Proxy, Server, running

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


def noted(paths: list[Path]) -> list[int]:
    return [int(line) for path in paths if path.exists() for line in path.read_text().split()]


@pytest.mark.parametrize("redeliver", [False, True])
@pytest.mark.parametrize("seed", range(3))
@FORKS
def test_clients_killed_at_random(
    server: Server, processes: Processes, tmp_path: Path, seed: int, redeliver: bool
) -> None:
    """Of each kind one is killed, as soon as it has done so much; then all is accounted for."""
    rng = random.Random(seed)
    context = get_context("fork")
    iq = server.connect(redeliver=redeliver, maxsize=rng.choice((0, 0, 20)), expiry_s=1.0)
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

        def has_done_so_much(path: Path = path, least: int = least) -> bool:
            return path.exists() and path.stat().st_size >= least

        # Or has ended before: others may have taken all the rest.
        wait_until(
            lambda is_far=has_done_so_much, process=process: is_far() or not process.is_alive(),  # type: ignore[misc]
            f"{path} has {least} bytes",
        )
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
    iq = server.connect(expiry_s=20.0)
    out, source = iq.get_producer(), iq.get_consumer()
    out.put(1)
    assert source.get() == 1
    server.signal(signal.SIGSTOP)
    with pytest.raises(Empty):
        source.get(timeout=0.7)
    with pytest.raises((Full, ChannelBroken)):
        out.put(2, timeout=0.7)
    server.signal(signal.SIGCONT)
    assert iq.join(0.0) is False
    iq.cancel()


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
        wait_until(lambda: iq._core.link.busy is not None, "it puts")  # type: ignore[attr-defined]
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
    out.put_many(range(20_000))
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
    assert sorted(got) == list(range(20_000))
    assert far.join(20)
    now = far.statistics()
    assert (now.put, now.taken, now.lost) == (20_000, 20_000, 0)


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

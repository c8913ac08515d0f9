"""Several hosts, as network namespaces of this machine, and one server that they all reach."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from iterable_queue import IterableQueue, ProducerFailed
from tests.conftest import Processes, wait_until
from tests.redis_server import Server, need_redis, running

_marks = itertools.count()
EXAMPLE = Path(__file__).parents[1] / "examples" / "hash_tree_hosts.py"


def ip(*command: str) -> None:
    subprocess.run(["ip", *command], check=True, capture_output=True, timeout=20)


class Hosts:
    """Two network namespaces, each with an address of its own and a cable to this one.

    Attributes:
        addresses: of this namespace, as each of them reaches it.
    """

    def __init__(self) -> None:
        # Names of their own: a cable goes only some time after its host.
        mark = next(_marks)
        self._net = 10 + (os.getpid() + mark) % 200
        self.names = [f"iq{os.getpid()}-{mark}-{n}" for n in range(2)]
        self._cables = [f"iq{os.getpid() % 100_000}-{mark}-{n}" for n in range(2)]
        self.addresses: list[str] = []

    def make(self) -> None:
        for n, name in enumerate(self.names):
            here, there = self._cables[n], "eth0"
            base = 16 * n
            ip("netns", "add", name)
            ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
            ip("addr", "add", f"10.213.{self._net}.{base + 1}/28", "dev", here)
            ip("link", "set", here, "up")
            ip("-n", name, "addr", "add", f"10.213.{self._net}.{base + 2}/28", "dev", there)
            ip("-n", name, "link", "set", there, "up")
            ip("-n", name, "link", "set", "lo", "up")
            self.addresses.append(f"10.213.{self._net}.{base + 1}")

    def run(self, n: int, *command: str) -> subprocess.Popen[str]:
        """Start *command* on that host."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self.names[n], *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def cable(self, n: int, state: str) -> None:
        """Pull the cable of that host (`down`), or plug it in (`up`)."""
        ip("-n", self.names[n], "link", "set", "eth0", state)

    def remove(self) -> None:
        for command in (
            *(("link", "del", cable) for cable in self._cables),
            *(("netns", "del", name) for name in self.names),
        ):
            with suppress(subprocess.CalledProcessError):  # it was not made, or has gone
                ip(*command)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    need_redis()
    found = Hosts()
    try:
        try:
            found.make()
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"network namespaces are not permitted here: {error}")
        yield found
    finally:
        found.remove()


@pytest.fixture
def server(hosts: Hosts, tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "server"
    folder.mkdir()
    yield from running(Server(folder, "--protected-mode", "no", host="0.0.0.0"))


def url(hosts: Hosts, server: Server, n: int) -> str:
    return f"redis://{hosts.addresses[n]}:{server.port}/0"


def has_both_pools(paths: IterableQueue[str]) -> bool:
    return paths.statistics().open_consumers == 1 + 2 * 2


def test_the_hash_tree_over_two_hosts(
    hosts: Hosts, server: Server, processes: Processes, tmp_path: Path
) -> None:
    """The same lines as those of sha256sum, with a pool on each host."""
    tree = tmp_path / "tree"
    for n in range(200):
        folder = tree / f"folder {n % 7}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file {n}").write_bytes(os.urandom(n * 50))
    listing = hosts.run(0, sys.executable, str(EXAMPLE), url(hosts, server, 0), "list", str(tree))
    processes.watch(listing.pid)
    paths, results = (f"hash-tree-{what}" for what in ("paths", "results"))
    wait_until(lambda: f"iq:{{{paths}}}:q" in server.names(), "the listing has begun")
    here = {"url": url(hosts, server, 0), "create": False}
    # Takes one path itself, which it has in hand until both pools are there: one of them alone may
    # be done with all of them before the other has started.
    queue = server.connect(name=paths, **here)
    source, out = queue.get_consumer(), server.connect(name=results, **here).get_producer()
    path = source.get(timeout=20)
    hashing = [
        hosts.run(n, sys.executable, str(EXAMPLE), url(hosts, server, n), "hash", "--processes=2")
        for n in range(2)
    ]
    for process in hashing:
        processes.watch(process.pid)
    wait_until(partial(has_both_pools, queue), "both pools are there")
    with out, source:
        out.put((hashlib.sha256(Path(path).read_bytes()).hexdigest(), path))
    listed, err = listing.communicate(timeout=50)
    assert (listing.returncode, err) == (0, "")
    for process in hashing:
        assert process.communicate(timeout=30) == ("", "")
        assert process.returncode == 0
    files = sorted(str(path) for path in tree.rglob("*") if path.is_file())
    expected = subprocess.run(
        ["sha256sum", *files], capture_output=True, text=True, timeout=30, check=True
    )
    assert listed == expected.stdout
    del queue, source, out  # the last part in them is that of this process
    wait_until(lambda: not server.names(), "the end of both queues has removed their keys")


PUTS = """
import sys
from iterable_queue import IterableQueue
iq = IterableQueue[int].connect(sys.argv[1], name="q", expiry_s=1.5, retry_s=20.0)
out = iq.get_producer()
for line in sys.stdin:
    try:
        out.put(int(line))
        print("put", flush=True)
    except Exception as error:
        print(type(error).__name__, error, flush=True)
"""


def test_a_host_cut_off_and_healed(hosts: Hosts, server: Server, processes: Processes) -> None:
    """For a moment: nothing is lost or doubled. For longer: it was taken for dead, and is told."""
    iq = server.connect(name="q", expiry_s=1.5, url=url(hosts, server, 0))
    source = iq.get_consumer()
    far = hosts.run(1, sys.executable, "-c", PUTS, url(hosts, server, 1))
    processes.watch(far.pid)
    assert far.stdin is not None
    assert far.stdout is not None

    def put(n: int) -> str:
        assert far.stdin is not None
        assert far.stdout is not None
        far.stdin.write(f"{n}\n")
        far.stdin.flush()
        return far.stdout.readline()

    assert put(1) == "put\n"
    hosts.cable(1, "down")
    hosts.cable(1, "up")
    assert put(2) == "put\n"
    assert [source.get(), source.get()] == [1, 2]
    hosts.cable(1, "down")
    wait_until(lambda: iq.statistics().failures, "the host is taken for dead")
    hosts.cable(1, "up")
    assert "ChannelBroken process" in put(3)
    assert iq.statistics().put == 2
    far.communicate(timeout=30)
    iq.close()
    with pytest.raises(ProducerFailed, match="no sign of life"):
        source.get()

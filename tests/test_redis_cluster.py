"""A queue in a cluster of several nodes: found by any of them, and gone on with by a replica."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from iterable_queue import Consumer, Done, IterableQueue, Producer
from iterable_queue._channels.redis.calls import as_text
from tests.conftest import Processes, wait_until
from tests.redis_server import Server, need_redis, redis

NODES = 3
SLOTS = 16_384
OPTIONS = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000")


class Cluster:
    """Three masters, each with a third of the slots; any further node is a replica of the last.

    Attributes:
        servers: in the order of their slots, then the replicas.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.servers: list[Server] = []

    def add(self) -> Server:
        """A further node, which knows of nobody."""
        directory = self._directory / str(len(self.servers))
        directory.mkdir()
        server = Server(directory, *OPTIONS)
        self.servers.append(server)
        server.start()
        return server

    def begin(self) -> None:
        """Make the masters, and wait until all of them serve."""
        for _ in range(NODES):
            self.add()
        for number, server in enumerate(self.servers):
            first, end = (SLOTS * n // NODES for n in (number, number + 1))
            self.ask(server, "CLUSTER", "ADDSLOTSRANGE", first, end - 1)
            self.ask(server, "CLUSTER", "MEET", "127.0.0.1", self.servers[0].port)
        for server in self.servers:
            wait_until(partial(self._serves, server), "the cluster is up")

    def _serves(self, server: Server) -> bool:
        return "cluster_state:ok" in as_text(self.ask(server, "CLUSTER", "INFO"))

    def ask(self, server: Server, *command: object) -> Any:
        with server.client() as client:
            return client.execute_command(*command)

    def replicate(self) -> Server:
        """A replica of the last master, which has all that the master has."""
        master = self.servers[-1]
        name = as_text(self.ask(master, "CLUSTER", "MYID"))
        replica = self.add()
        self.ask(replica, "CLUSTER", "MEET", "127.0.0.1", master.port)
        wait_until(lambda: self._knows(replica, name), "the replica knows its master")
        self.ask(replica, "CLUSTER", "REPLICATE", name)
        wait_until(lambda: self._serves(replica), "the replica knows the cluster")
        with replica.client() as client:
            wait_until(lambda: client.info()["master_link_status"] == "up", "the replica follows")
        # Else the others do not let it take over.
        number = as_text(self.ask(replica, "CLUSTER", "MYID"))
        for server in self.servers[:NODES]:
            wait_until(partial(self._is_replica, server, number), "all know of the replica")
        return replica

    def _knows(self, server: Server, name: str) -> bool:
        return name in as_text(self.ask(server, "CLUSTER", "NODES"))

    def _is_replica(self, server: Server, name: str) -> bool:
        lines = as_text(self.ask(server, "CLUSTER", "NODES")).splitlines()
        return any(line.startswith(name) and "slave" in line.split()[2] for line in lines)

    def name_on(self, number: int) -> str:
        """A queue's name whose keys are on that master."""
        for count in range(1000):
            name = f"q{count}"
            slot = self.ask(self.servers[0], "CLUSTER", "KEYSLOT", f"iq:{{{name}}}:q")
            if slot * NODES // SLOTS == number and slot not in (0, SLOTS - 1):
                return name
        raise AssertionError("no such name")

    def end(self) -> None:
        for server in self.servers:
            server.end()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    need_redis()
    cluster = Cluster(tmp_path)
    try:
        cluster.begin()
        yield cluster
    finally:
        cluster.end()


def square(source: Consumer[int], out: Producer[int]) -> None:
    with out:
        for n in source:
            out.put(n * n)


@pytest.mark.parametrize("number", range(NODES))
def test_whichever_node_is_asked(cluster: Cluster, number: int, processes: Processes) -> None:
    """A URL names one node, and the queue is on another."""
    name = cluster.name_on(number)
    other = cluster.name_on((number + 1) % NODES)
    numbers = IterableQueue[int].connect(cluster.servers[0].url, name=name)
    squares = IterableQueue[int].connect(cluster.servers[0].url, name=other)
    with numbers, squares:
        args = numbers.get_consumer(), squares.get_producer()
        spawn = multiprocessing.get_context("spawn")
        processes.start(spawn.Process(target=square, args=args))
        out, source = numbers.get_producer(), squares.get_consumer()
    with out:
        out.put_many(range(50))
    assert list(source) == [n * n for n in range(50)]
    assert processes.join() == [0]
    assert numbers.join(10)
    del numbers, squares, out, source, args
    for server in cluster.servers:
        wait_until(lambda server=server: server.names() == [], "all keys are removed")  # type: ignore[misc]


def by_client(ports: tuple[int, ...]) -> Any:
    """A client of a cluster, which any of these lead to."""
    nodes = [redis.cluster.ClusterNode("127.0.0.1", port) for port in ports]
    return redis.RedisCluster(startup_nodes=nodes)


@pytest.mark.parametrize("way", ["url", "client"])
def test_a_replica_takes_over(cluster: Cluster, way: str) -> None:
    """What had been copied goes on there, within what `retry_s` allows."""
    replica = cluster.replicate()
    ports = tuple(server.port for server in cluster.servers)
    server: Any = cluster.servers[0].url if way == "url" else partial(by_client, ports)
    name = cluster.name_on(NODES - 1)
    iq = IterableQueue[int].connect(server, name=name, expiry_s=20)
    out, source = iq.get_producer(), iq.get_consumer()
    with iq:
        out.put_many(range(100))
        assert [source.get() for _ in range(10)] == list(range(10))
    with cluster.servers[NODES - 1].client() as client:
        client.wait(1, 5000)  # until it is copied
    cluster.servers[NODES - 1].kill()
    began = time.monotonic()
    with out:
        out.put_many(range(100, 200))
    assert list(source) == list(range(10, 200))
    assert iq.join(20)
    with pytest.raises(Done):
        source.get()
    assert time.monotonic() - began < 40
    with replica.client() as client:
        assert client.role()[0] == b"master"

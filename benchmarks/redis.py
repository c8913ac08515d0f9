"""The channel over a Redis server, beside what one does with the same client by hand.

    python -m benchmarks.redis [--items N] [--rounds N] [--json FILE]

Starts a server of its own on a free port of this machine (without persistence), and two processes
for each row: one puts small ints, the other takes them. A row's rounds alternate with those of the
others, and the median counts. What counts is the time from the moment at which both processes are
ready to the end of the one that takes. So it includes that they connect, and that one leaves and
ends, which counts for little where there are enough items.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import pickle
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final, NamedTuple

from iterable_queue import IterableQueue

redis: Any = import_module("redis")

BATCH: Final = 1000
"""Items of one call, where batches are measured."""


class Row(NamedTuple):
    """What is measured.

    Attributes:
        name: for people.
        share: of the number of items that are put for the fastest rows.
        put, take: what the two processes do with the server's URL, a name, and that many items.
    """

    name: str
    share: float
    put: Callable[[str, str, int], None]
    take: Callable[[str, str, int], None]


def put_by_lpush(url: str, name: str, count: int) -> None:
    with redis.Redis.from_url(url) as client:
        for n in range(count):
            client.lpush(name, pickle.dumps(n, 5))


def take_by_brpop(url: str, name: str, count: int) -> None:
    # Taken at the other end, which is what LPUSH with BRPOP does: first in, first out.
    with redis.Redis.from_url(url) as client:
        for _ in range(count):
            found: Any = client.brpop([name], timeout=20)
            pickle.loads(found[1])


def put_by_many_lpush(url: str, name: str, count: int) -> None:
    with redis.Redis.from_url(url) as client:
        for first in range(0, count, BATCH):
            numbers = range(first, min(first + BATCH, count))
            client.lpush(name, *(pickle.dumps(n, 5) for n in numbers))


def take_by_many_rpop(url: str, name: str, count: int) -> None:
    with redis.Redis.from_url(url) as client:
        while count:
            found: Any = client.rpop(name, BATCH)
            if not found:
                one: Any = client.brpop([name], timeout=20)
                found = [one[1]]
            for data in found:
                pickle.loads(data)
            count -= len(found)


def _put_on_stream(url: str, name: str, count: int, batch: int) -> None:
    with redis.Redis.from_url(url) as client:
        for first in range(0, count, batch):
            with client.pipeline(transaction=False) as pipe:
                for n in range(first, min(first + batch, count)):
                    pipe.xadd(name, {"d": pickle.dumps(n, 5)})
                pipe.execute()


def put_by_xadd(url: str, name: str, count: int) -> None:
    with redis.Redis.from_url(url) as client:
        for n in range(count):
            client.xadd(name, {"d": pickle.dumps(n, 5)})


def put_by_many_xadd(url: str, name: str, count: int) -> None:
    _put_on_stream(url, name, count, BATCH)


def _take_from_group(url: str, name: str, count: int, batch: int) -> None:
    with redis.Redis.from_url(url, protocol=2) as client:
        try:
            client.xgroup_create(name, "group", "0", mkstream=True)
        except redis.ResponseError:
            pass  # it is there
        while count:
            found: Any = client.xreadgroup("group", "one", {name: ">"}, count=batch, block=20_000)
            for _, messages in found:
                for _, fields in messages:
                    pickle.loads(fields[b"d"])
                ids = [message for message, _ in messages]
                client.xack(name, "group", *ids)
                count -= len(ids)


def take_by_xreadgroup(url: str, name: str, count: int) -> None:
    _take_from_group(url, name, count, 1)


def take_by_many_xreadgroup(url: str, name: str, count: int) -> None:
    _take_from_group(url, name, count, BATCH)


def put_by_put(url: str, name: str, count: int) -> None:
    with IterableQueue[int].connect(url, name=name).get_producer() as out:
        for n in range(count):
            out.put(n)


def put_by_put_many(url: str, name: str, count: int) -> None:
    with IterableQueue[int].connect(url, name=name).get_producer() as out:
        out.put_many(range(count))


def take_by_iteration(url: str, name: str, count: int) -> None:
    with IterableQueue[int].connect(url, name=name).get_consumer() as source:
        for _ in source:
            count -= 1
            if not count:
                break


def take_by_get_many(url: str, name: str, count: int) -> None:
    with IterableQueue[int].connect(url, name=name).get_consumer() as source:
        while count:
            count -= len(source.get_many(BATCH))


ONE_BY_ONE: Final = "LPUSH and BRPOP, one by one"
ROWS: Final = (
    Row(ONE_BY_ONE, 0.1, put_by_lpush, take_by_brpop),
    Row("XADD and a consumer group, one by one", 0.1, put_by_xadd, take_by_xreadgroup),
    Row("put and iteration", 0.1, put_by_put, take_by_iteration),
    Row("LPUSH and RPOP of 1,000", 1.0, put_by_many_lpush, take_by_many_rpop),
    Row("XADD and a consumer group, 1,000", 1.0, put_by_many_xadd, take_by_many_xreadgroup),
    Row("put_many and iteration", 1.0, put_by_put_many, take_by_iteration),
    Row("put_many and get_many(1000)", 1.0, put_by_put_many, take_by_get_many),
)


def _play(call: Callable[[str, str, int], None], start: Any, url: str, name: str, n: int) -> None:
    start.wait(60)
    call(url, name, n)


def measure(row: Row, url: str, count: int) -> float:
    """Items a second of one round."""
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(3)
    name = f"bench-{os.getpid()}-{time.time_ns()}"
    # Held, so that the queue is there for both, and closed only at the end.
    holder = IterableQueue[int].connect(url, name=name)
    players = [
        context.Process(target=_play, args=(call, start, url, name, count))
        for call in (row.take, row.put)
    ]
    for player in players:
        player.start()
    start.wait(60)
    began = time.perf_counter()
    players[0].join(300)
    took = time.perf_counter() - began
    players[1].join(60)
    if any(player.exitcode for player in players):
        raise SystemExit(f"{row.name}: a process failed")
    holder.cancel()
    return count / took


def main() -> None:
    parser = argparse.ArgumentParser(description="The channel over a Redis server.")
    parser.add_argument("--items", type=int, default=100_000, help="of the fastest rows")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", default="", help="a file for the figures")
    options = parser.parse_args()
    command = shutil.which("redis-server") or shutil.which("valkey-server")
    if command is None:
        raise SystemExit("neither redis-server nor valkey-server is installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"redis://127.0.0.1:{port}/0"
    with tempfile.TemporaryDirectory() as directory:
        server = subprocess.Popen(
            [command, "--port", str(port), "--bind", "127.0.0.1", "--dir", directory, "--save", ""],
            stdout=subprocess.DEVNULL,
        )
        try:
            version = _await(url)
            found: dict[str, list[float]] = {row.name: [] for row in ROWS}
            for _ in range(options.rounds):
                for row in ROWS:
                    count = max(int(options.items * row.share), 10)
                    found[row.name].append(measure(row, url, count))
        finally:
            server.kill()
            server.wait(20)
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    print(
        f"Python {platform.python_version()}, redis-py {redis.__version__}, server {version}, "
        f"{os.cpu_count()} processors, {options.rounds} rounds"
    )
    base = medians[ONE_BY_ONE]
    for name, rate in medians.items():
        print(f"  {name:40} {rate:>10,.0f} items/s  {rate / base:6.2f} x")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"python": sys.version, "server": version, "rates": found}, file, indent=1)


def _await(url: str) -> str:
    """The version of the server, once it answers."""
    until = time.monotonic() + 20
    while True:
        try:
            with redis.Redis.from_url(url) as client:
                info: Any = client.info("server")
                return str(info["redis_version"])
        except redis.ConnectionError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)


if __name__ == "__main__":
    main()

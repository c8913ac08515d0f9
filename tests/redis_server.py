"""A Redis server for a test, and a proxy that cuts connections in the middle of a command."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from iterable_queue import IterableQueue
from tests.conftest import KEPT, wait_until

_PROGRAMS = (os.environ.get("REDIS_SERVER", ""), "redis-server", "valkey-server")
SERVER = next(filter(None, map(shutil.which, _PROGRAMS)), None)
try:
    redis: Any = import_module("redis")
except ImportError:
    redis = None


def need_redis() -> None:
    """Skip the test where there is no server to be started, or no client."""
    if SERVER is None:
        pytest.skip("neither redis-server nor valkey-server is installed")
    if redis is None:
        pytest.skip("the package redis is not installed")


def free_port(most: int = 65535) -> int:
    """A port that nobody listens to, no higher than that."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port <= most:
            return port


class NoServer(Exception):
    """It ended as soon as it was started; this is what it said."""


class Server:
    """A server of this test's own, in a directory of its own.

    Attributes:
        url: where it is.
    """

    def __init__(self, directory: Path, *options: str, host: str = "127.0.0.1") -> None:
        self._directory = directory
        self._options = options
        self._host = host
        self._process: subprocess.Popen[bytes] | None = None
        self._count = 0
        self.port = free_port(55_000)  # for a cluster, that plus 10,000 is one as well
        self.url = f"redis://{host}:{self.port}/0"
        self.path = f"{directory}/socket"

    def start(self, prefix: tuple[str, ...] = ()) -> None:
        """Start it, and wait until it answers. *prefix*: what runs the command.

        Raises `NoServer`.
        """
        assert SERVER is not None
        command = [*prefix, SERVER, "--port", str(self.port), "--bind", self._host]
        command += ["--dir", str(self._directory), "--save", "", "--unixsocket", self.path]
        with open(f"{self._directory}/log", "ab") as log:
            self._process = subprocess.Popen([*command, *self._options], stdout=log, stderr=log)
        wait_until(self._answers, "the server answers")

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise NoServer(Path(f"{self._directory}/log").read_text())
        with suppress(redis.ConnectionError), redis.Redis(unix_socket_path=self.path) as client:
            return bool(client.ping())
        return False

    def client(self) -> Any:
        """A client of it, for looking and meddling."""
        return redis.Redis(unix_socket_path=self.path)

    def names(self) -> list[str]:
        """All keys."""
        with self.client() as client:
            return sorted(key.decode() for key in client.keys("*"))

    def connect(self, **options: Any) -> IterableQueue[Any]:
        """A queue on it; with a name of its own, if none is given."""
        self._count += 1
        options.setdefault("name", f"q{self._count}")
        options.setdefault("expiry_s", 2.0)
        return IterableQueue[Any].connect(options.pop("url", self.url), **options)

    def maker(self, **options: Any) -> Callable[..., IterableQueue[Any]]:
        """What `check_queue` calls: one that can be called in other processes as well."""
        return Maker(self.url, options)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(20)

    def end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self.kill()


def running(server: Server) -> Iterator[Server]:
    """What a fixture yields from: starts *server*, and ends it. Skips where there is none."""
    need_redis()
    try:
        server.start()
        yield server
    finally:
        gc.collect()  # queues that tracebacks hold, while there is a server to say so to
        server.end()


def running_for_many(server: Server) -> Iterator[Server]:
    """The same for a fixture that more than one test uses."""
    for started in running(server):
        KEPT.add(started.pid)
        try:
            yield started
        finally:
            KEPT.discard(started.pid)


class Maker:
    """Makes queues; can be pickled."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self._url = url
        self._options = options
        self._count = 0
        self._name = f"made-{os.urandom(4).hex()}"

    def __call__(
        self,
        maxsize: int = 0,
        on_failure: Any = "raise",
        redeliver: bool = False,
    ) -> IterableQueue[Any]:
        self._count += 1
        options: dict[str, Any] = {"expiry_s": 1.0, **self._options}
        return IterableQueue[Any].connect(
            self._url,
            name=f"{self._name}-{os.getpid()}-{self._count}",
            maxsize=maxsize,
            on_failure=on_failure,
            redeliver=redeliver,
            **options,
        )


class Proxy:
    """Passes bytes between clients and a server on this machine, until it is told to cut.

    Attributes:
        url: what clients connect to.
        cuts: how many connections it has cut.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listening.getsockname()[1]}/0"
        self.cuts = 0
        self._lock = threading.Lock()
        self._cut_at = -1
        self._cuts_answers = False
        self._is_last_cut = False
        self._refuses = False
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut(self, *, request: int = -1, answer: int = -1, refuse: bool = False) -> None:
        """Cut the next command after so many of its bytes, or its answer after so many.

        *refuse*: from then on nobody new is let through.
        """
        with self._lock:
            self._cuts_answers = answer >= 0
            self._is_last_cut = refuse
            self._cut_at = max(request, answer)

    def refuse(self, refuses: bool) -> None:
        """Cut all, and let nobody through; or let them through again."""
        with self._lock:
            self._refuses = refuses
            opened = list(self._open) if refuses else []
        for end in opened:
            _shut(end)

    def close(self) -> None:
        self.refuse(True)
        _shut(self._listening)
        self._listening.close()
        for thread in self._threads:
            thread.join(20)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            with self._lock:
                refuses = self._refuses
            if refuses:
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self._port))
            with self._lock:
                self._open |= {client, server}
            for args in ((client, server, False), (server, client, True)):
                thread = threading.Thread(target=self._pass, args=args)
                thread.start()
                self._threads.append(thread)

    def _pass(self, source: socket.socket, target: socket.socket, is_answer: bool) -> None:
        try:
            while data := source.recv(1 << 16):
                # What waits for messages is left alone: the other connection is what is meant.
                with self._lock:
                    cuts = self._cut_at >= 0 and self._cuts_answers == is_answer
                    cuts = cuts and (is_answer or b"BLPOP" not in data)
                    if cuts:
                        data = data[: self._cut_at]
                        self._cut_at = -1
                        self._refuses = self._is_last_cut
                        self.cuts += 1
                target.sendall(data)
                if cuts:
                    break
        except OSError:
            pass
        for end in (source, target):
            _shut(end)
        if is_answer:
            with self._lock:
                self._open -= {source, target}
        source.close()


def _shut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)

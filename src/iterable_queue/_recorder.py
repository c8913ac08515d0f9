"""Recordings: a queue's statistics over time, as lines of JSON.

The first line says what is recorded, each further one is a sample, and the last one says why it
ended: docs/seeing.md has the keys. Each line is one write of its own, so that what is in the file
is whole whenever the process ends.

A queue between processes is looked at from outside (`_look`); one for threads, or on a server, is
asked, by a reference that does not keep it alive. So a recording holds nothing up, but where each
sample is a round trip to a server.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from iterable_queue import _cells as cells_
from iterable_queue import _news
from iterable_queue._clock import monotonic
from iterable_queue._core import check_seconds
from iterable_queue._errors import IterableQueueError
from iterable_queue._explain import statistics
from iterable_queue._protocols import Statistics

if TYPE_CHECKING:
    from iterable_queue._core import Core

FORMAT: Final = 1
"""Of the file; raised when a key changes its meaning."""
PATIENCE_S: Final = 5.0
"""How long `close` waits for a sample that is just being taken, in seconds."""


class _Sample(NamedTuple):
    statistics: Statistics
    is_over: bool


def _asked(reference: weakref.ref[Core]) -> _Sample | None:
    core = reference()
    if core is None:
        return None
    return core.transact(lambda: _Sample(statistics(core), core.ledger.settled()))


def _looked_at(path: str) -> _Sample | None:
    from iterable_queue._look import Look, NotThere

    try:
        look = Look(path)
    except NotThere:
        return None
    return _Sample(look.statistics(), look.is_over())


class FileRecording:
    """A recording of one queue into one file, made by `IterableQueue.record`.

    Attributes:
        path: the file.
        error: why it ended early, if it did.
    """

    def __init__(self, core: Core, path: str | os.PathLike[str], interval: float | None) -> None:
        if interval is not None:
            check_seconds(interval, "interval")
            if not interval > 0:
                raise ValueError(f"interval must be above 0 seconds or None, not {interval!r}")
        self.path = os.fspath(path)
        self.error: Exception | None = None
        place = core.place
        self._take: Callable[[], _Sample | None] = (
            partial(_asked, weakref.ref(core)) if place is None else partial(_looked_at, place)
        )
        self._now = core.runtime.monotonic
        self._interval = interval
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        mode = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._fd = os.open(self.path, mode, 0o666)
        self._began = self._now()
        try:
            self._write(
                iterable_queue="recording",
                format=FORMAT,
                made=core.ledger.site(),
                maxsize=core.ledger.head[cells_.MAXSIZE],
                interval=interval,
                started=time.time(),
                pid=self._pid,
            )
            self.sample()
            if interval is not None and core.others_may_look:
                self._thread = threading.Thread(
                    target=self._run, args=(interval,), name=f"recording {self.path}", daemon=True
                )
                self._thread.start()
        except BaseException:
            self._end("failed")
            raise

    def sample(self) -> None:
        """Take a sample now. Does nothing once the recording has ended, or in a forked child."""
        if os.getpid() == self._pid:
            self._sample()

    def _sample(self) -> bool:
        """False: that was the last one."""
        with self._lock:
            if self._fd < 0:
                return False
            found = self._take()
            if found is None:
                self._end("gone")
                return False
            self._write(t=self._time(), **found.statistics._asdict())
            if found.is_over:
                self._end("over")
        return not found.is_over

    def _time(self) -> float:
        return round(self._now() - self._began, 6)

    def _write(self, **keys: object) -> None:
        line = json.dumps(keys, separators=(",", ":")).encode() + b"\n"
        if os.write(self._fd, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)

    def _end(self, why: str) -> None:
        with self._lock:
            self._stop.set()
            if self._fd < 0:
                return
            try:
                self._write(t=self._time(), end=why)
            except OSError:
                pass  # the disk is full: a recording without an end
            finally:
                fd, self._fd = self._fd, -1
                os.close(fd)

    def _run(self, interval: float) -> None:
        """The thread. An error ends the recording, and nothing else."""
        due = monotonic() + interval
        try:
            while not self._stop.wait(max(due - monotonic(), 0.0)):
                if not self._sample():
                    return
                due = max(due + interval, monotonic())
        except IterableQueueError:
            self._end("gone")
        except Exception as error:
            self.error = error
            self._end("failed")
            _news.note(_news.WARNING, "the recording %s has ended: %r", self.path, error)
            _news.tell()

    def close(self) -> None:
        """Take a last sample and end. Closing again, or in a forked child, does nothing."""
        if os.getpid() != self._pid:
            return
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(PATIENCE_S)
        try:
            self._sample()
        except (OSError, IterableQueueError) as error:
            self.error = error
        self._end("closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

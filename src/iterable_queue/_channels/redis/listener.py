"""The thread that listens: for the messages of others, for the end of children; and it beats.

It has a connection of its own, in which it waits for a message nearly always. A heartbeat comes
from here and from nowhere else: so a process that computes for long, or waits, is known to live.
"""

from __future__ import annotations

import os
import select
import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from iterable_queue import _cells as cells_
from iterable_queue import _forks, _news
from iterable_queue._channels.redis.calls import AGAIN, BEAT, as_text
from iterable_queue._channels.redis.link import (
    ANSWER_S,
    LAST_WORDS_S,
    PAUSES_S,
    Late,
    Link,
    is_readable,
    let_go,
    said,
)
from iterable_queue._clock import monotonic
from iterable_queue._errors import ChannelBroken

if TYPE_CHECKING:
    from iterable_queue._channels.redis.core import RedisCore

SLEEPERS: Final = {"i": cells_.WAIT_ITEM, "r": cells_.WAIT_ROOM}
"""By the message that wakes one of them: the cell that counts who waits here for it."""


class Listener:
    """Waits for messages, beats, and watches the children that this process has started.

    It refers to its core weakly: a queue that nobody refers to is left, and this ends.

    Attributes:
        guarded: by the end of a pipe that a child has the other end of: the client that it is, and
            its pid once that is known.

    `_mutex` is held by whoever uses a descriptor that the thread closes when it ends: others may
    have a file of that number right after. It is re-entrant, since a `__del__` may stop this.
    """

    def __init__(self, core: RedisCore) -> None:
        self._core = weakref.ref(core)
        self._link = Link(core.settings)
        self._link.client = core.ledger.me
        self._asking = Link(core.settings)
        """For what is asked while a message is waited for; connected when it is used first."""
        self._key = b"%bw:%d" % (self._link.prefix(), core.ledger.me)
        self._expiry_ms = int(core.settings.expiry_s * 1000)
        self._beat_s = core.settings.expiry_s / 3
        self._mutex = threading.RLock()
        self._wake_end, self._wake = os.pipe()
        self._is_over = False
        self._due = 0.0
        self._has_missed = False
        self._todo: list[list[str]] = []
        self.guarded: dict[int, tuple[int, int]] = {}
        self.thread = threading.Thread(
            target=self._run, name=f"iterable_queue {core.settings.name}", daemon=True
        )
        self.thread.start()

    def guard(self, end: int, client: int, pid: int) -> None:
        """Watch a child by that end of a pipe; it is closed where nobody watches any more."""
        with self._mutex:
            if self._is_over:
                os.close(end)
                return
            self.guarded[end] = client, pid
            self._poke(b"g")

    def ended(self) -> list[tuple[int, int]]:
        """The children that have ended, and that the thread has not come to yet."""
        with self._mutex:
            return self._hung_up()

    def _hung_up(self) -> list[tuple[int, int]]:
        poll = select.poll()
        for end in self.guarded:
            poll.register(end, 0)
        return [self.guarded[end] for end, event in poll.poll(0) if event & select.POLLHUP]

    def stop(self) -> None:
        """End the thread, soon."""
        self._poke(b"x")

    def _poke(self, what: bytes) -> None:
        with self._mutex:
            if not self._is_over:
                with suppress(OSError):  # a program may have closed all that it does not know
                    os.write(self._wake, what)

    def forget(self) -> None:
        """In a forked child, which has no such thread, and none that could have the mutex."""
        self._link.drop()
        self._asking.drop()
        self._mutex = threading.RLock()
        self._close()

    def _close(self) -> None:
        """Let go of all descriptors, once."""
        with self._mutex:
            if self._is_over:
                return
            self._is_over = True  # before: what interrupts this must find it so
            ends = (self._wake, self._wake_end, *self.guarded)
            self.guarded.clear()
            for end in ends:
                with suppress(OSError):
                    os.close(end)

    def _run(self) -> None:
        pauses = iter(PAUSES_S)
        try:
            while True:
                try:
                    if not self._listen():
                        return
                    pauses = iter(PAUSES_S)
                except Exception as error:
                    if self._link.loss:
                        core = self._core()
                        if core is not None:
                            core.was_taken_for_dead(self._link.loss)
                        return
                    if not isinstance(error, (ChannelBroken, Late)) and not self._link.is_break(
                        error
                    ):
                        _news.note(_news.WARNING, "listening for messages: %r", error)
                    self._link.drop()
                    pause_s = next(pauses, PAUSES_S[-1])
                    if pause_s == PAUSES_S[1]:  # nobody answers who is asked a second time either
                        _news.note(
                            _news.WARNING,
                            "the server at %s is out of reach: %s; calls wait for it",
                            self._link.address,
                            said(error.__cause__ or error),
                        )
                        _news.tell()
                    let_go(error)
                    self._has_missed = True
                    if is_readable(self._wake_end, pause_s):
                        data = os.read(self._wake_end, 100)
                        if b"x" in data:
                            return
        finally:
            self._link.drop()
            self._asking.drop()
            # No fork in between: its child would take what is closed for its own, and close it.
            _forks.undisturbed(self._close)

    def _listen(self) -> bool:
        """Beat if it is time, then wait for a message or the next beat. False: it is over."""
        now = monotonic()
        if now >= self._due:
            clients = [client for client, _ in list(self.guarded.values())]
            state = self._link.call(BEAT, self._expiry_ms, *clients, patience_s=0.0)[1]
            self._due = monotonic() + self._beat_s
            self._todo.append(["s" if not self._has_missed else "a", str(state)])
            self._has_missed = False
        if self._todo and not self._do():
            return False
        timeout_s = max(self._due - monotonic(), 0.01)
        self._link.ask("BLPOP", self._key, f"{timeout_s:.3f}")
        until = monotonic() + timeout_s + ANSWER_S
        while True:
            sock = self._link.fileno()
            poll = select.poll()
            for fd in (sock, self._wake_end, *self.guarded):
                poll.register(fd, select.POLLIN)
            ready = {fd for fd, _ in poll.poll(max(until - monotonic(), 0.0) * 1000)}
            if not ready:
                raise TimeoutError("no answer to BLPOP")
            if self._wake_end in ready and b"x" in os.read(self._wake_end, 100):
                return False
            for end in ready & set(self.guarded):
                self._child_says(end)
            if sock in ready:
                break
        answer = self._link.answer()
        if isinstance(answer, Exception):
            raise answer
        if answer is not None:
            self._todo.append(as_text(answer[1]).split())
        return True

    def _child_says(self, end: int) -> None:
        """A child has written its pid, or has ended."""
        client, pid = self.guarded[end]
        data = os.read(end, 32)
        core = self._core()
        if data:
            self.guarded[end] = client, int(data)
            if core is not None:
                core.child_is(client, int(data))
            return
        self._asking.await_end(client, min(LAST_WORDS_S, self._beat_s))
        if core is not None:
            core.child_ended(client, pid)
        # It was guarded until here: who leaves the queue meanwhile must know of it, and where the
        # server did not answer, it is come upon again.
        _forks.undisturbed(self._let_go, end)

    def _let_go(self, end: int) -> None:
        with self._mutex:
            del self.guarded[end]
            os.close(end)

    def _do(self) -> bool:
        """What the messages say. False: the queue is gone."""
        core = self._core()
        if core is None:
            return False
        lock: Any = core.runtime.lock
        while self._todo:
            if not lock.acquire(timeout=self._beat_s / 2):
                return True  # a call is being made that takes long: later
            try:
                message = self._todo.pop(0)
                what = core.was_told(message)
            finally:
                lock.release()
            while what:
                # Others wait here, or nobody does: then it was meant for another client.
                waits = core.ledger.head[SLEEPERS[what]] > 0
                if not self._link.call(AGAIN, what, int(waits), patience_s=1.0):
                    break
                with core.runtime.lock:
                    core.was_told([what])
        return True

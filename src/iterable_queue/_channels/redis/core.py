"""One process's part in a queue on a server: all of it that is no transition of the ledger.

That is taking part and leaving, calls that wait, endpoints that are dropped, forks, and pickles.
An endpoint goes to another process as on one machine. But who has it is for the server to know,
as nobody here could end it once that process dies: so a process that is being started gets its
client, and the endpoints it is given, before it runs.
"""

from __future__ import annotations

import math
import os
import socket
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib import import_module
from queue import Empty, Full
from typing import TYPE_CHECKING, Any, Final, TypeVar

from iterable_queue import _cells as cells_
from iterable_queue import _forks, _news
from iterable_queue._cells import (
    CANCELLED,
    CONSUMER,
    FORKED,
    KIND_NAMES,
    MAXSIZE,
    PRODUCER,
    QUEUE,
    SENT,
    STATE,
    WORKER,
    SlotView,
)
from iterable_queue._channel import Hand
from iterable_queue._channels.redis.calls import (
    ADOPT,
    ADRIFT,
    ASSIGN,
    BYE,
    DEAD,
    HEIR,
    JOIN,
    MARK,
    QUIET,
    SEND,
    SHUT,
    as_text,
)
from iterable_queue._channels.redis.channel import RedisChannel
from iterable_queue._channels.redis.ledger import CHUNK, RedisLedger, Sending
from iterable_queue._channels.redis.link import BRIEFLY_S, LAST_WORDS_S, LOOP_S, Late, Link, unsure
from iterable_queue._channels.redis.listener import SLEEPERS, Listener
from iterable_queue._channels.redis.runtime import RedisRuntime
from iterable_queue._channels.redis.sealer import Sealer
from iterable_queue._channels.redis.settings import Address, Options, Settings
from iterable_queue._clock import monotonic
from iterable_queue._core import Core, Mark, leave_dropped, stays_here
from iterable_queue._errors import ChannelBroken, EndpointElsewhere, WouldDeadlock
from iterable_queue._exits import install_exit_hooks, watch
from iterable_queue._liveness import how_it_ended
from iterable_queue._pickling import spawning_popen
from iterable_queue._runtime import Condition

if TYPE_CHECKING:
    from iterable_queue._endpoints import Endpoint

R = TypeVar("R")

ANY: Final = "any"
"""In place of a queue's identity: whichever has the name; but there must be one."""
VERSION: Final = "iterable_queue 1"
"""What the keys mean; a queue of another one is refused."""
LOOP_SHARE: Final = 4
"""While the server is away, an event loop has so much more time than each attempt takes it."""
LEAVE_S: Final = 1.0
"""For how long a process tries to say that it leaves, or that a child has ended, in seconds."""


class RedisCore(Core):
    """One process's part in a queue on a server.

    Attributes:
        settings: how it takes part.
        address: where the queue is.
        made: this process has made it, just now.
    """

    gather = CHUNK
    queue_slot = 0
    ledger: RedisLedger  # type: ignore[mutable-override]  # it is set once, here

    def __init__(self, settings: Settings, options: Options, id_: str, site: str) -> None:
        sealer = Sealer(settings)
        runtime = RedisRuntime(sealer)
        channel = RedisChannel()
        self.link = Link(settings)
        ledger = RedisLedger(runtime, channel, self.link)
        runtime.redis_errors.link = self.link
        super().__init__(runtime, ledger)
        self.ledger = ledger
        self._redis_runtime = runtime
        runtime.show = ledger.report_blocked
        self.locks = self.put_locks = ()
        self.settings = settings
        self.dumps, self.loads = sealer.dumps, sealer.loads
        sealer.refused = partial(_tell_of_refused, weakref.ref(self))
        self._options = options
        self._site = site
        self._token = os.urandom(8).hex()
        """By which the server knows that it is joined again, after a call that was given up."""
        self._is_here = False
        self._left = False
        self._listener: Listener | None = None
        self._given: list[int] = []
        """During a fork: the numbers of the endpoints that are given to the child."""
        self._heir: tuple[int, int, int] | None = None
        """During a fork: the child's client, and both ends of the pipe that shows its life."""
        self._life = -1
        """The end of such a pipe that shows the life of this process."""
        self._launching: dict[int, _Launch] = {}
        self._late: deque[_Launch] = deque()
        """Launches that have ended, which is to be noted yet."""
        self._maker = 0, ""
        self._marked: set[int] = set()
        """The untaken endpoints that the server knows may be in a child."""
        self._may_be_held = False
        """It knows likewise that a child may hold the queue itself."""
        self.made = False
        self.address = Address(settings, id_)
        self.link.restore = ledger.claims_left
        self.link.is_shown = True
        # Which a process has that starts others, but not before it does: its hooks come first.
        import_module("multiprocessing.util")
        install_exit_hooks("multiprocessing")
        _forks.track(self)  # now that it is whole

    # -- taking part -----------------------------------------------------------------------------

    def check_here(self) -> None:
        if self._left:
            raise ChannelBroken(
                f"process {os.getpid()} is ending and has left the queue; close endpoints before"
            )
        if self.link.loss:
            raise ChannelBroken(self.link.loss)
        if not self._is_here:
            self.register()

    def register(self) -> None:
        watch()
        if not self._is_here:
            with self.runtime.lock:
                self.ledger.transact(self.join, handle=False)

    def arrive(self, deadline: float | None) -> bool:
        if deadline is None or self._is_here or not self.can_go_on():
            return True
        return self.transact_until(deadline, partial(self.join, handle=False))

    def join(self, *, handle: bool) -> None:
        """Take part. *handle*: by the queue's name, as others may as well."""
        if self._is_here:
            return  # another thread was faster
        link = self.link
        if self.ledger.me:
            link.client = self.ledger.me
            answer = link.call(ADOPT, os.getpid(), what="a child's first call")
        else:
            answer = self._call_join(self.settings, self._options, self.address.id, handle=handle)
            link.client = answer[0]
        head = self.ledger.head
        maxsize, state, deliveries, pid, host, found_id, how, site = answer[2]
        if as_text(how) != self.settings.format:
            raise ValueError(
                f"serializer, sign: the queue {self.settings.name!r} on the server at "
                f"{link.address} has items that are {as_text(how)}, not {self.settings.format}"
            )
        head[MAXSIZE], head[STATE], head[cells_.REDELIVER] = map(int, (maxsize, state, deliveries))
        if not head[MAXSIZE]:
            self.put_locks = (self.runtime.lock,)  # none waits, so none has to tell the server so
        self._maker = int(pid), as_text(host)
        self.ledger.made_at = as_text(site)
        self.made = bool(answer[1])
        self.ledger.made_by = "" if self.made else f"pid {int(pid)} on {as_text(host)}"
        self.address = Address(self.settings, as_text(found_id))
        self.ledger.me = link.client
        self._is_here = True
        if self._listener is None:
            self._listener = Listener(self)

    def _call_join(self, settings: Settings, options: Options, id_: str, *, handle: bool) -> Any:
        return self.link.call(
            JOIN,
            VERSION,
            os.getpid(),
            socket.gethostname(),
            self._token,
            *options,
            settings.format,
            self._site,
            int(settings.expiry_s * 1000),
            int(handle),
            id_,
            os.urandom(8).hex(),
            what="connect",
        )

    def was_taken_for_dead(self, loss: str) -> None:
        """The server knows this client no more."""
        self.link.loss = loss
        _news.note(_news.ERROR, "%s", loss)
        with self.runtime.lock:
            self.ledger.revoke()
            self.ledger.wake_everybody()
        _news.tell()

    def refused(self) -> None:
        """An item's signature was refused."""
        with self.runtime.lock:
            key = self.link.prefix() + b"q"
            data = b"*4\r\n$7\r\nHINCRBY\r\n$%d\r\n%b\r\n$2\r\nxs\r\n$1\r\n1\r\n"
            self.link.tell(QUIET + data % (len(key), key))
        _news.note(_news.WARNING, "an item whose signature is wrong or missing was refused")

    def remarks(self) -> list[str]:
        count = self.ledger.unsigned
        if not count:
            return []
        return [f"{count} item(s) were refused, whose signature was wrong or missing"]

    @property
    def maker_pid(self) -> int:
        return self._maker[0]

    def pid_of(self, process: int) -> int:
        if process < 0:
            return -process
        return self.ledger.owners.get(process, (0, ""))[0]

    def name_of(self, process: int) -> str:
        pid, host = self.ledger.owners.get(process, (0, ""))
        return f"pid {pid} on {host}" if pid else ""

    def is_alive(self, process: int) -> bool:
        silent = self.ledger.silent_ms.get(process)
        return silent is not None and silent <= self.settings.expiry_s * 1000

    @property
    def not_in_time(self) -> str:  # type: ignore[override]
        return f"the server at {self.link.address} gave no answer in time"

    @property
    def patience_s(self) -> float:  # type: ignore[override]
        return self.settings.retry_s

    def look(self, patience_s: float = 0.0) -> None:
        _news.tell()
        if self.gone or self._gone_before:
            self.tidy(lambda: None)

    def _may_bury_later(self, error: Exception) -> bool:
        return isinstance(error, Late) or super()._may_bury_later(error)

    def can_go_on(self) -> bool:
        """Whether calls can be made."""
        return not self._left and not self.link.loss and not sys.is_finalizing()

    def join_again(self, settings: Settings, options: Options) -> None:
        """For one more `connect` in this process. Raises ValueError where that asks for others.

        The server compares what it knows, and lets the longest times count, as for any who joins.
        It notes the further handle: to drop one of several does not close the queue.
        """
        had = self.settings
        for name, is_same, value in (
            ("serializer", settings.is_read_like(had), "other functions"),
            ("sign", settings.key == had.key, "another key" if had.key else "none"),
        ):
            if not is_same:
                raise ValueError(
                    f"{name}: this process takes part in the queue {had.name!r} already, "
                    f"with {value}; give the same"
                )
        self.link.keep_at_least(settings.keep_s)
        self._call_join(settings, options, self.address.id, handle=True)

    def abandon(self) -> None:
        """It was not possible to take part."""
        self._left = True
        self.link.drop()

    def receive(self, kind: int, slot: int, number: int, generation: int) -> Endpoint | None:
        ledger = self.ledger
        taken = ledger.take_over(number, number, generation)
        if ledger.is_open(number, number):
            ledger.know(number, kind, ledger.view(number).flags)
        return self.arrived(number, number, taken=taken)

    # -- what the listener hears -----------------------------------------------------------------

    def was_told(self, message: list[str]) -> str:
        """Do what *message* says. Lock held. Returns what it woke somebody for, if it did."""
        what, *rest = message
        runtime, ledger = self.runtime, self.ledger
        if what in SLEEPERS:
            waiting = ledger.head[SLEEPERS[what]]
            (runtime.items if what == "i" else runtime.room).notify()
            # One who waited alone needs nothing more.
            return "" if waiting == 1 else what
        if what == "c":
            try:
                ledger.recall(*map(int, rest))
            except (ChannelBroken, OSError, WouldDeadlock, Late):
                pass  # who waits asks again; what was begun is ended by the next call
            return ""
        changed = ledger.head[STATE] != int(rest[0])
        ledger.head[STATE] = int(rest[0])
        if ledger.head[STATE] & CANCELLED:
            ledger.revoke()
        if changed or what == "a":
            ledger.wake_everybody()
        return ""

    def child_is(self, client: int, pid: int) -> None:
        """A child that this process has forked has begun."""
        call = partial(self.link.call, ASSIGN, client, pid)
        with suppress(ChannelBroken, OSError):  # its first call says so as well
            self.transact_until(monotonic() + LEAVE_S, call)

    def child_ended(self, client: int, pid: int) -> None:
        """A child has ended; if it had not left, its endpoints end.

        Raises Late where the server does not answer soon. Who listens comes back to it, and
        meanwhile does not refer to this: who drops a queue may be the last who does.
        """
        call = partial(self.link.call, DEAD, client, self._how_ended(pid))
        with suppress(ChannelBroken, OSError):  # the others find out when it is not heard any more
            if not self.transact_until(monotonic() + LEAVE_S, call):
                raise Late(self.not_in_time)

    def _how_ended(self, pid: int) -> str:
        return (
            f"{how_it_ended(pid)} without close()"
            if pid
            else "was given to a process that ended before it began to run, for a reason that its "
            "stderr shows. Under spawn and forkserver, start processes below "
            "`if __name__ == '__main__':` only"
        )

    # -- calls that wait -------------------------------------------------------------------------

    def wait(
        self,
        attempt: Callable[[], bool],
        condition: Condition,
        deadline: float | None,
        endpoint: Endpoint | None = None,
    ) -> bool:
        if condition is self.runtime.items and endpoint is not None:
            hand: Hand | None = endpoint._hands.get(threading.get_ident())  # pyright: ignore[reportPrivateUsage]
            if hand is not None and hand.own is not None and deadline is None:
                hand.own.gather(hand, self.ledger.now())
        silence = [""]  # also of who had the lock until then
        trying = partial(self._tried, attempt, deadline, silence)
        if super().wait(trying, condition, deadline, endpoint):
            return True
        if silence and condition is self.runtime.items:
            raise Empty(f"{silence[0] or self.not_in_time}; nothing was taken")
        if silence and condition is self.runtime.room:
            raise Full(f"{silence[0] or self.not_in_time}; nothing was put")
        return False

    def awaiting(
        self,
        attempt: Callable[[], bool],
        condition: Condition,
        deadline: float | None,
        endpoint: Endpoint | None = None,
    ) -> Any:
        self.ledger.tells_at_once = True
        if condition is self.runtime.room:
            return self._putting(attempt, condition, deadline, endpoint)
        return self._awaiting(attempt, condition, deadline, endpoint)

    async def _putting(
        self,
        attempt: Callable[[], bool],
        condition: Condition,
        deadline: float | None,
        endpoint: Endpoint | None,
    ) -> bool:
        sending = Sending(self.link)
        try:
            return await self._awaiting(attempt, condition, deadline, endpoint, sending)
        finally:
            sending.give_up()

    async def _awaiting(
        self,
        attempt: Callable[[], bool],
        condition: Condition,
        deadline: float | None,
        endpoint: Endpoint | None,
        sending: Sending | None = None,
    ) -> bool:
        """One that may be given up: the event loop has its turn while the server is away.

        What a get that was given up has taken goes back with the next attempt.
        """
        from asyncio import sleep

        away_since = math.inf
        link = self.link
        # Over a long way, an answer takes longer than that.
        patience_s = min(max(LOOP_S, 4 * link.trip_s), BRIEFLY_S)

        def trying() -> bool:
            nonlocal away_since, patience_s
            done = self._tried_in_loop(attempt, patience_s, sending)
            away_since = math.inf
            patience_s = min(max(LOOP_S, 4 * link.trip_s), BRIEFLY_S)
            return done

        while True:
            try:
                return await super().awaiting(trying, condition, deadline, endpoint)
            except Late as error:
                said = str(error)
            now = monotonic()
            away_since = min(away_since, now)
            is_late = deadline is not None and now >= deadline
            if sending is not None and sending.is_unsure:
                said += unsure("the item was put")
                if is_late:
                    raise ChannelBroken(said)
            if is_late:
                if condition is self.runtime.items:
                    raise Empty(f"{said}; nothing was taken")
                if condition is self.runtime.room:
                    raise Full(f"{said}; nothing was put")
                return False
            if now - away_since >= self.settings.retry_s:
                raise ChannelBroken(
                    f"{said}. Call again once it is back; retry_s says how long a call tries"
                )
            pause_s = LOOP_SHARE * patience_s
            await sleep(pause_s if deadline is None else min(pause_s, deadline - now))
            # And a connection takes longer to be made than an answer takes.
            patience_s = min(2 * patience_s, BRIEFLY_S)

    def _tried_in_loop(
        self, attempt: Callable[[], bool], patience_s: float, sending: Sending | None
    ) -> bool:
        """*attempt*, as one of a coroutine's that waits. Lock held. Raises Late."""
        ledger = self.ledger
        before = ledger.waits, ledger.sending
        ledger.waits, ledger.sending = True, sending
        try:
            return self.link.until(monotonic() + patience_s, attempt)
        finally:
            ledger.waits, ledger.sending = before

    def _tried(
        self, attempt: Callable[[], bool], deadline: float | None, silence: list[str]
    ) -> bool:
        """*attempt*, as one of a call that waits until *deadline*. Lock held.

        *silence* has what is to be said of it then, if the server has given no answer to it.
        """
        ledger = self.ledger
        silence.clear()
        before, ledger.waits = ledger.waits, deadline != 0.0
        try:
            if deadline is None:
                return attempt()
            return self.link.until(max(deadline, monotonic() + BRIEFLY_S), attempt)
        except Late as error:
            silence.append(str(error))  # the error itself would keep frames, and these the queue
            return False
        finally:
            ledger.waits = before

    def transact_until(self, deadline: float | None, call: Callable[[], object]) -> bool:
        done: list[bool] = []

        def attempt() -> bool:
            call()
            done.append(True)
            return True

        while not done:
            if not super().transact_until(deadline, partial(self._tried, attempt, deadline, [])):
                return False
            if deadline is not None and monotonic() >= deadline:
                break
        return bool(done)

    # -- dropped endpoints -----------------------------------------------------------------------

    def drop(self, slot: int, number: int, mark: Mark | None = None) -> None:
        try:
            super().drop(slot, number, mark)
            if self.dropped:  # another thread has the lock, that which listens, say
                with self.runtime.lock_within(BRIEFLY_S):
                    self._bury_dropped()
        except Exception:
            pass  # out of reach, or busy: the next call goes on with it

    def _bury_dropped(self) -> None:
        if not self._is_here or not self._note_late():
            return  # nobody at the server would be meant
        unwanted = self.ledger.unwanted
        while unwanted and self.link.owed is None:  # so each has its answer, or there was none
            self.dropped += ((number, number) for number, _ in unwanted[0] if number > 0)
            del unwanted[0]
        while self.dropped and not self.ledger.head[cells_.HOLDER]:
            if self._left or self.link.loss:
                self.dropped.clear()
                return
            if not self._in_time(self._bury_first):
                return

    def _in_time(self, transition: Callable[[], object]) -> bool:
        """False: the server was out of reach; the next call goes on with it.

        The call that comes upon it is not kept for as long as it would try by itself.
        """
        transact = partial(self.ledger.transact, transition)
        try:
            self.link.until(monotonic() + 2 * BRIEFLY_S, transact)
        except Late:
            return False
        return True

    def _bury(self, slot: int, number: int) -> None:
        if number == 0:
            self.link.call(SHUT, "dropped")
        else:
            super()._bury(slot, number)

    def set_adrift(self, view: SlotView) -> None:
        self.link.call(ADRIFT, view.number)

    def close_queue(self) -> None:
        self.ledger.head[STATE] = self.link.call(SHUT, "", what="close")[1]

    # -- for people ------------------------------------------------------------------------------

    def whose(self, slot: int, number: int) -> tuple[str | None, int]:
        with self.runtime.lock_within(BRIEFLY_S):
            view = self._briefly(partial(self._view, slot, number))
        if view is None:
            return None, 0
        pid = self.pid_of(view.owner or view.maker)
        how = "of" if view.owner else "made by"
        return (f" {how} process {pid}" if pid else ""), view.blocked

    def _view(self, slot: int, number: int) -> SlotView | None:
        self.check_here()
        return self.ledger.view(slot) if self.ledger.is_open(slot, number) else None

    def describe(self) -> str:
        with self.runtime.lock_within(BRIEFLY_S):
            self._briefly(self.ledger.look)
            return self._described()

    def _briefly(self, call: Callable[[], R]) -> R:
        """`call()`, if that is not long in coming. Lock held."""
        try:
            return self.link.until(monotonic() + BRIEFLY_S, call)
        except Late as error:
            raise ChannelBroken(str(error)) from error

    def _described(self) -> str:
        head = self.ledger.head
        most = f" of {head[MAXSIZE]}" if head[MAXSIZE] else ""
        parts = [
            f"{self.settings.name!r} at {self.link.address}",
            self.ledger.state_name(fold=False),
            f"{self.ledger.queued}{most} queued",
        ]
        for cell, what in (
            (cells_.PRODUCERS, "producer"),
            (cells_.CONSUMERS, "consumer"),
            (cells_.WORKERS, "worker"),
        ):
            if head[cell] or cell != cells_.WORKERS:
                parts.append(f"{head[cell]} {what}{'' if head[cell] == 1 else 's'}")
        return ", ".join(parts)

    # -- forks -----------------------------------------------------------------------------------

    def before_fork(self, arguments: tuple[object, ...]) -> None:
        if not self._is_here or self._left or self.link.loss:
            return
        untaken = list(self._untaken())
        direct = {id(argument) for argument in arguments}
        patience = monotonic() + _forks.PATIENCE_S
        self.transact_until(patience, partial(self._before_fork, untaken, direct))

    def _untaken(self) -> Iterator[Endpoint]:
        """The endpoints here that this process may still hand on, as far as is known here."""
        for endpoint in _forks.members_of(self.endpoints):
            if not endpoint._ready and not endpoint._closed and endpoint._lost is None:  # pyright: ignore[reportPrivateUsage]
                yield endpoint

    def _before_fork(self, untaken: list[Endpoint], direct: set[int]) -> None:
        given = [endpoint.number for endpoint in untaken if id(endpoint) in direct]
        numbers = {endpoint.number for endpoint in untaken}
        # A mark stays, and what was given is not to be had here any more: so for many processes
        # in a row it is only said what is new.
        new = numbers - self._marked - set(given)
        if new or not self._may_be_held:
            self.link.call(MARK, *new)
            self._may_be_held = True
        if given:
            self._heir = self._make_heir()
            self.link.call(ASSIGN, self._heir[0], 0, *given)
        self._given = given
        self._marked = numbers

    def _make_heir(self) -> tuple[int, int, int]:
        client: int = self.link.call(HEIR, socket.gethostname())[0]
        return (client, *os.pipe())

    def after_fork_in_parent(self) -> None:
        if self._heir is not None:
            client, here, there = self._heir
            self._heir = None
            os.close(there)  # the child has it now, and it alone
            self._guard(here, client, 0)

    def _guard(self, end: int, client: int, pid: int) -> None:
        if self._listener is not None:
            self._listener.guard(end, client, pid)
        else:
            os.close(end)

    def after_fork_in_child(self) -> None:
        if self._life >= 0:
            os.close(self._life)  # else the parent would seem to live as long as this child
            self._life = -1
        for launch in self._launching.values():
            launch.close()
        self._launching = {}
        for launch in self._late:
            launch.close()
        self._late.clear()
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.forget()
        loss, address = self.link.loss, self.address
        self.link.drop()
        self._redis_runtime.after_fork_in_child()
        self.dropped.clear()
        self.leave_loops()
        ledger = self.ledger
        ledger.unwanted.clear()
        copies = _forks.members_of(self.endpoints)
        for endpoint in copies:
            endpoint.forget()
        self.copies = weakref.WeakSet(copy for copy in copies if copy.number not in self._given)
        ledger.forget_all()
        ledger.me = 0
        self._is_here = False
        self._token = os.urandom(8).hex()
        self.link = ledger.link = self._redis_runtime.redis_errors.link = Link(address.settings)
        self.link.loss = loss
        self.link.restore = ledger.claims_left
        self.link.is_shown = True
        self._options = Options()
        self._marked = set()
        self._may_be_held = False
        if self._heir is not None:
            client, here, self._life = self._heir
            self._heir = None
            os.close(here)
            ledger.me = client
            os.write(self._life, b"%d" % os.getpid())
            # From now on this process answers for itself, also before its first call.
            self._listener = Listener(self)

    # -- pickling --------------------------------------------------------------------------------

    def reduce(self, target: object, slot: int, number: int) -> tuple[Any, ...]:
        from iterable_queue._channels.redis.connect import attach  # which makes such cores

        self.register()
        kind: int = getattr(target, "kind", QUEUE)
        popen = spawning_popen()
        if popen is None:
            generation = self.transact(self._send, number, kind, SENT)
            return attach, (self.address, kind, number, generation, 0, None)
        launch = self._launching.get(id(popen))
        if launch is None:
            self.transact(_forks.undisturbed, self._begin_launch, popen)
            launch = self._launching[id(popen)]
        generation = self.transact(self._send, number, kind, 0)
        if kind != QUEUE:
            launch.numbers.append(number)
        return attach, (self.address, kind, number, generation, launch.client, launch.duplicate)

    def _send(self, number: int, kind: int, flag: int) -> int:
        """Note that a copy goes off. Returns the generation that makes it valid."""
        answer = self.link.call(SEND, number, flag, what=f"pickling endpoint {number}")
        name = f"{KIND_NAMES[kind]} {number}"
        if answer[0] == 0:
            raise EndpointElsewhere(
                f"{name} has been closed by the process that took it and can't be handed on; get "
                "another one from the queue"
            )
        if answer[0] == -1:
            view = self.ledger.is_open(number, number) and self.ledger.view(number)
            pid = self.pid_of(view.owner or view.maker) if view else 0
            raise EndpointElsewhere(
                f"{name} belongs to "
                f"{f'process {pid}' if pid else 'a process that was started with it'}, which alone "
                "can hand it on. Give every process one of its own, by "
                f"get_{KIND_NAMES[kind]}() or clone()"
            )
        if answer[0] == -2:
            raise stays_here(name)  # another thread used it, just now
        return int(answer[1])

    def _begin_launch(self, popen: Any) -> None:
        self._launching[id(popen)] = _Launch(self, popen, *self._make_heir())

    def launched(self, launch: _Launch) -> None:
        """Starting a process has come to its end, well or not."""
        _forks.undisturbed(self._end_launch, launch)
        try:
            self.transact(self._launched, launch)
        except (WouldDeadlock, Late):
            self._late.append(launch)  # the collector came upon it, inside another call

    def _end_launch(self, launch: _Launch) -> None:
        self._launching.pop(id(launch.popen), None)
        launch.close_copy()

    def _launched(self, launch: _Launch) -> None:
        pid: int | None = getattr(launch.popen, "pid", None)
        try:
            if pid is None:
                self.link.call(DEAD, launch.client, "")
            else:
                self.link.call(ASSIGN, launch.client, pid, *launch.numbers)
        except (ChannelBroken, OSError):
            pass  # the next call says so
        # Only now, or it could be told that the child has ended before what it was given is its.
        here, launch.here = launch.here, -1
        if pid is not None and here >= 0:
            self._guard(here, launch.client, pid)
        elif here >= 0:
            os.close(here)

    def _note_late(self) -> bool:
        """Note the launches of which this was told inside another call. False: out of reach."""
        while self._late and not self.ledger.head[cells_.HOLDER]:
            launch = self._late[0]
            if not self._in_time(partial(self._launched, launch)):
                return False
            self._late.popleft()
        return True

    def adopt(self, client: int, fd: int) -> None:
        """This process was started with a client made for it, and inherited a pipe's end."""
        if self._is_here or self.ledger.me:
            if self.ledger.me != client:
                os.close(fd)  # it took part already, by another road
            return
        os.set_inheritable(fd, False)
        self._life = fd
        self.ledger.me = client

    # -- leaving ---------------------------------------------------------------------------------

    def _leave_now(self, how: str, cause: BaseException | None) -> None:
        self._left = True
        self.ledger.keep_hands()  # which say what was handed out
        for endpoint in _forks.members_of(self.endpoints):
            endpoint.forget()
        try:
            if self._is_here and not self.link.loss:
                with self.runtime.lock_within(LEAVE_S):
                    self._note_late()
                    leave = partial(self._leave, how, cause)
                    transact = partial(self.ledger.transact, leave)
                    self.link.until(monotonic() + LEAVE_S, transact)
        except Exception:
            pass  # the others find out when it is not heard any more
        if self._listener is not None:
            self._listener.stop()
            self._listener = None
        self.link.drop()
        for launch in self._late:
            launch.close()
        self._late.clear()
        life, self._life = self._life, -1
        if life >= 0:
            os.close(life)

    def _leave(self, how: str, cause: BaseException | None) -> None:
        ledger, me = self.ledger, self.ledger.me
        ledger.look()
        alone = ledger.head[cells_.HANDLE] == me and cause is None
        for view in list(ledger.views(PRODUCER, CONSUMER, WORKER, QUEUE)):
            if not self.is_mine(view):
                continue
            if view.owner or (view.kind == QUEUE and not alone):
                self.end(view, how, cause)
            elif not view.flags & (SENT | FORKED):
                ledger.close(view.slot, view.number)
        if self._listener is not None:
            for client, pid in self._listener.ended():
                self.link.await_end(client, LAST_WORDS_S)
                self.link.call(DEAD, client, self._how_ended(pid))
        self.link.call(BYE, how)

    __del__ = leave_dropped


def _tell_of_refused(reference: weakref.ref[RedisCore]) -> None:
    core = reference()
    if core is not None:
        core.refused()


class _Launch:
    """A process that is being started by spawn or forkserver, and the endpoints it was given."""

    def __init__(self, core: RedisCore, popen: Any, client: int, here: int, there: int) -> None:
        self.popen = popen
        self.client = client
        self.here = here
        self.numbers: list[int] = []
        self._there = there
        # As in `_shared._Launch`: the copy here of what the child gets must go once it was started.
        self.duplicate = popen.DupFd(popen.duplicate_for_child(there))
        watched = _forks.end_of_launch(popen)
        weakref.finalize(watched, _launched, weakref.ref(core), self).atexit = False

    def close(self) -> None:
        """Let go of both ends."""
        self.close_copy()
        here, self.here = self.here, -1
        if here >= 0:
            os.close(here)

    def close_copy(self) -> None:
        """Let go of the child's end: where it was started, it has that now, and it alone."""
        there, self._there = self._there, -1
        if there >= 0:
            os.close(there)


def _launched(reference: weakref.ref[RedisCore], launch: _Launch) -> None:
    core = reference()
    if core is None:
        launch.close()
    else:
        core.launched(launch)

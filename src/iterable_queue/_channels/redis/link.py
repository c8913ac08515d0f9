"""The connection to the server: a call is made once, however often that breaks.

It is sent again with the number that it had, and the server replies as it did (see `scripts`). A
client knows nothing of that, so one that is made here makes no attempts of its own.

A link makes one call at a time. Those of endpoints are made with the runtime's lock held; the
thread that listens has a link of its own.

Only here the package `redis` is imported, when a queue is connected: it is an extra, and not light.
"""

from __future__ import annotations

import errno
import math
import os
import select
import socket
import time
import traceback
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from typing import Any, Final, TypeVar

from iterable_queue._channels.redis.calls import QUIET, SHOWN, Script, as_bytes
from iterable_queue._channels.redis.settings import Settings
from iterable_queue._clock import monotonic
from iterable_queue._errors import ChannelBroken, QueueClosed, WouldDeadlock

BRIEFLY_S: Final = 0.5
"""A call with a time-out, or one that does not wait, tries to reach the server for as long as this
at least, in seconds: less would be in vain where a connection must be made."""
LOOP_S: Final = 0.05
"""The same for a coroutine, at first: its event loop stands still meanwhile."""
PAUSES_S: Final = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Between two attempts to reach the server."""
CONNECT_S: Final = 3.0
"""How long a connection may take to be made, in seconds."""
ANSWER_S: Final = 5.0
"""How long one answer is waited for until the connection counts as broken, in seconds."""
NEAR_S: Final = 0.0003
"""If the last answer took no longer than this, in seconds, the next one is looked out for: to fall
asleep and be woken takes both processors up to half as long as the answer itself."""
LOOK_OUT_S: Final = 0.0002
"""For how long, in seconds. Where the server has too much to do, answers take longer than NEAR_S,
and it is left alone."""
LEAST_S: Final = 0.01
"""No time-out of a socket is shorter, in seconds: 0 would mean something else."""


R = TypeVar("R")


LAST_WORDS_S: Final = 1.0
"""How long it may take the server to hear all that a process sent before it ended, in seconds."""


class Late(Exception):
    """The deadline of a call has passed while the server was out of reach."""


class Owed:
    """A call that was begun, and is made before any other: see `Link.owe`.

    Attributes:
        sent: it may have been made, though it was not answered.
    """

    def __init__(
        self,
        script: Script,
        arguments: list[bytes],
        what: str,
        then: Callable[[Any], object],
        failed: Callable[[OSError], object] | None,
    ) -> None:
        self.script = script
        self.arguments = arguments
        self.what = what
        self.then = then
        self.failed = failed
        self.sent = False


class Link:
    """One connection to the server: a call at a time, made again where the connection breaks.

    Attributes:
        client: what the server calls this process; 0: not yet.
        loss: why no call can be made any more, if so.
        deadline: of the call that is being made, on the monotonic clock; None: `retry_s` from now.
            Set by `until`.
        is_unsure: the last call that was given up may have been made, or may yet be.
        trip_s: how long the last call took that was answered, in seconds.
        owed: what `owe` has begun and `repay` has not brought to its end.
        calls: how many were made; round trips, for the curious.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._key = f"iq:{{{settings.name}}}:q".encode()
        self._keep_ms = int(settings.keep_s * 1000)
        client: Any = _client_of(settings.source)
        self._cluster: Any = client if hasattr(client, "get_node_from_key") else None
        pool = self._node_of_key().redis_connection if self._cluster else client
        self._pool: Any = pool.connection_pool
        self._connection: Any = self._pool.make_connection()
        self._home = self._host_and_port()
        # A client of one's own may have no time-outs, or make attempts that nobody counts here.
        self._connect_s: float = (
            getattr(self._connection, "socket_connect_timeout", None) or CONNECT_S
        )
        self._answer_s: float = getattr(self._connection, "socket_timeout", None) or ANSWER_S
        self._connection.retry = _no_retries()
        # Where this is garbage with all that refers to it, its socket is closed before that is
        # collected as well, and warns.
        weakref.finalize(self, self._connection.disconnect).atexit = False
        self.client = 0
        self.loss = ""
        self.deadline: float | None = None
        self.is_unsure = False
        self.owed: Owed | None = None
        self.busy = False
        self.calls = 0
        self.trip_s = 0.0
        self.restore: Callable[[], Iterable[bytes]] = tuple
        """Commands to be made, unanswered, on a new connection before anything else."""
        self.is_shown = False
        """Whether others are to know the number of each new connection, for `await_end`."""
        self._number = 0
        self._is_new = True
        errors: Any = import_module("redis.exceptions")
        self._no_script: Any = errors.NoScriptError
        self._refusals: Any = errors.ResponseError
        self._moved: Any = errors.MovedError
        self._out_of_memory: Any = errors.OutOfMemoryError
        self._denials: Any = (errors.AuthenticationError, errors.AuthorizationError)
        """Of `redis`, these are ConnectionErrors; but to try again would change nothing."""
        self._breaks: Any = (
            errors.ConnectionError,
            errors.TimeoutError,
            errors.ReadOnlyError,
            errors.TryAgainError,
            errors.ClusterDownError,
            errors.MasterDownError,
            errors.MovedError,
            errors.AskError,
            OSError,
        )

    @property
    def address(self) -> str:
        """The server's, without what would be secret."""
        known: dict[str, Any] = self._pool.connection_kwargs
        path = known.get("path")
        if path:
            return f"unix://{path}"
        service = getattr(self._pool, "service_name", None)
        if service:
            return f"service {service}"
        host = getattr(self._connection, "host", None) or known.get("host", "localhost")
        port = getattr(self._connection, "port", None) or known.get("port", 6379)
        return f"{host}:{port}/{known.get('db') or 0}"

    @property
    def number(self) -> int:
        """Of the last call."""
        return self._number

    def prefix(self) -> bytes:
        """How all keys of the queue begin."""
        return self._key[:-1]

    def fileno(self) -> int:
        """Of the connection, to be polled; -1: there is none."""
        sock: socket.socket | None = getattr(self._connection, "_sock", None)
        return -1 if sock is None else sock.fileno()

    def arguments(self, args: Iterable[object], number: int) -> list[bytes]:
        """What ARGV is."""
        start = [b"%d" % self.client, b"%d" % number, b"%d" % self._keep_ms]
        return [*start, *map(as_bytes, args)]

    def keep_at_least(self, keep_s: float) -> None:
        """What this process asks for from now on."""
        self._keep_ms = max(self._keep_ms, int(keep_s * 1000))

    def call(self, script: Script, *args: object, what: str = "", patience_s: float = -1.0) -> Any:
        """Run *script* with these arguments, once, however often the connection breaks.

        Args:
            script: what is run.
            args: what follows in ARGV behind the client, the call's number and `keep_s`.
            what: who calls, for errors' texts.
            patience_s: how long to try, in seconds; below 0: `retry_s`, or until `deadline`.

        Raises:
            ChannelBroken: the server can't be reached, or takes this process for dead.
            OSError: the server has no memory left (ENOSPC); nothing was changed.
            Late: `deadline` has passed.
            WouldDeadlock: called by what interrupted a call of this thread.
        """
        self._check_usable()
        self.repay(what or script.name)
        self._number += 1
        arguments = self.arguments(args, self._number)
        return self._make(script, arguments, what or script.name, patience_s)

    def owe(
        self,
        script: Script,
        *args: object,
        then: Callable[[Any], object],
        what: str = "",
        failed: Callable[[OSError], object] | None = None,
    ) -> Owed:
        """Begin a call of *script*, which `repay` makes, once, and as often as that takes.

        Until it is answered, the server may have made it, or may yet, while nothing was changed
        here. So no other call is made before this one was made again, by the same number.

        Args:
            script: what is run.
            args: as of `call`.
            then: called with the answer: it makes the same change here.
            what: who calls, where that is not whoever calls `repay`.
            failed: called with the error where the server has no memory left and so has changed
                nothing; None: a script of which that can't be said.
        """
        self._check_usable()
        self.repay(what or script.name)
        self._number += 1
        self.owed = Owed(script, self.arguments(args, self._number), what, then, failed)
        return self.owed

    def repay(self, what: str, patience_s: float = -1.0) -> None:
        """Bring to its end what `owe` has begun, on behalf of the call *what*.

        To be called before what `then` changes is looked at.
        """
        owed = self.owed
        if owed is None:
            return
        self._check_usable()
        try:
            answer = self._make(owed.script, owed.arguments, what, patience_s, owed)
        except OSError:
            if owed.failed is None:
                raise
            self.owed = None
            owed.failed(self._no_memory(owed.what))
            return
        # Together.
        self.owed = None
        owed.then(answer)

    def _check_usable(self) -> None:
        if self.loss:
            raise ChannelBroken(self.loss)  # a new one each time: an old one has its traceback
        self._check_busy()

    def _make(
        self,
        script: Script,
        arguments: list[bytes],
        what: str,
        patience_s: float,
        owed: Owed | None = None,
    ) -> Any:
        data = script.packed(self._key, arguments)
        pauses = iter(PAUSES_S)
        since = monotonic()
        until = since + (self._settings.retry_s if patience_s < 0 else patience_s)
        self.is_unsure = False
        self.calls += 1
        while True:
            self.busy = True
            try:
                if self._is_new:
                    self._begin()
                connection = self._connection
                began = monotonic()
                connection.send_packed_command((data,), False)
                if owed is None:
                    self.is_unsure = True
                else:
                    owed.sent = True  # which says nothing of the call that waits for it
                if 0.0 < self.trip_s <= NEAR_S:
                    look_out(self.fileno(), LOOK_OUT_S)
                if self.deadline is not None:
                    self._await_answer()
                answer = connection.read_response(True)
                self.is_unsure = False
                self.trip_s = monotonic() - began
                return answer
            except self._no_script:
                data = script.packed(self._key, arguments, whole=True)
                continue
            except self._out_of_memory as error:
                raise self._no_memory(what) from error
            except self._denials as error:
                self.drop()
                raise ChannelBroken(
                    f"{what}: the server at {self.address} lets nobody in with "
                    f"this user and password: {error}{_remedy(str(error))}"
                ) from error
            except self._breaks as error:
                self.drop()
                self._turn_to(error)
                let_go(error)
                broken: Exception | None = error
            except self._refusals as error:
                raise self._refused(error) from error
            except BaseException:
                self.drop()
                raise
            finally:
                self.busy = False
            try:
                self._pause(next(pauses, PAUSES_S[-1]), since, until, broken, what)
            finally:
                broken = None  # or error, traceback and this frame would keep the queue alive

    def until(self, deadline: float, call: Callable[[], R]) -> R:
        """`call()`, whose calls of the server are given up at *deadline*. Raises Late.

        With the runtime's lock held. Only here the deadline is set: else that of another thread
        could be put back after that thread has gone, and stay.
        """
        before = self.deadline
        self.deadline = deadline if before is None else min(before, deadline)
        try:
            return call()
        finally:
            self.deadline = before

    def _no_memory(self, what: str) -> OSError:
        return OSError(
            errno.ENOSPC,
            f"the server at {self.address} has reached its memory limit (maxmemory): "
            f"nothing was changed by {what}",
        )

    def _check_busy(self) -> None:
        if self.busy:
            raise WouldDeadlock(
                "called from a signal handler or __del__ that interrupted another call of this "
                "thread on the same queue; nothing was changed. Set a flag there and act on it "
                "outside"
            )

    def _begin(self) -> None:
        """A new connection: what the old one may have swallowed goes first."""
        self._connect()
        commands = b"".join(self.restore())
        if self.is_shown and self.client:
            self.ask("CLIENT", "ID")
            args = self.arguments((self.answer(),), 0)
            commands = QUIET + SHOWN.packed(self._key, args, whole=True) + commands
        if commands:
            self._connection.send_packed_command((commands,), False)
        self._is_new = False

    def _connect(self) -> None:
        """Connect, if that is not so, within the deadline of the call that needs it.

        It is told to connect, which asks a Sentinel first; one that is just used does not ask.
        """
        connection = self._connection
        left = math.inf if self.deadline is None else self.deadline - monotonic()
        connection.socket_connect_timeout = max(min(self._connect_s, left), LEAST_S)
        connection.socket_timeout = max(min(self._answer_s, left), LEAST_S)
        connection.connect()
        connection.socket_timeout = self._answer_s
        sock: socket.socket | None = getattr(connection, "_sock", None)
        if sock is not None:
            sock.settimeout(self._answer_s)

    def _turn_to(self, error: Exception) -> None:
        """Choose the node of a cluster that is connected to next: the one that *error* names.

        If it names none, that where the search began: if the other one is gone, it knows who has
        the key now.
        """
        if isinstance(error, self._moved):
            node: Any = error
            host, port = node.host or self._connection.host, node.port
        elif self._cluster is not None:
            if self.deadline is not None:
                return  # its client asks one node after another, and knows no deadline
            try:
                self._cluster.nodes_manager.initialize()
                node = self._node_of_key()
            except Exception:
                return  # nobody answers; later
            host, port = node.host, node.port
        else:
            host, port = self._home
        if host is not None:
            self._connection.host, self._connection.port = host, port

    def _node_of_key(self) -> Any:
        return self._cluster.get_node_from_key(self._key.decode())

    def _host_and_port(self) -> tuple[Any, Any]:
        """None for what is no TCP connection, or asks a Sentinel where to go."""
        if getattr(self._pool, "service_name", None):
            return None, None
        return getattr(self._connection, "host", None), getattr(self._connection, "port", None)

    def _await_answer(self) -> None:
        assert self.deadline is not None
        left = self.deadline - monotonic()
        if left < self._answer_s and not is_readable(self.fileno(), max(left, 0.0)):
            raise TimeoutError("no answer in time")

    def _pause(
        self, pause_s: float, since: float, until: float, error: Exception | None, what: str
    ) -> None:
        """Before another attempt; raises where there is to be none."""
        now = monotonic()
        if self.deadline is not None and now + pause_s >= self.deadline:
            raise Late(
                f"the server at {self.address} gave no answer in time, the last time for "
                f"{said(error)}"
            ) from error
        if now + pause_s >= until:
            sure = unsure("the call was made") if self.is_unsure else ""
            raise ChannelBroken(
                f"{what}: the server at {self.address} could not be reached for "
                f"{now - since:.1f} s, the last time for {said(error)}"
                f"{sure}. Call again once it is back; retry_s says how long a call tries"
            ) from error
        if pause_s:
            time.sleep(pause_s)

    def _refused(self, error: Exception) -> Exception:
        text = str(error)
        name = self._settings.name
        if "IQEXPIRED" in text or "IQSTALE" in text:
            self.loss = (
                f"process {os.getpid()} takes part in the queue {name!r} no more: the server at "
                f"{self.address} has not heard from it for too long (expiry_s), or has lost its "
                "keys. Its endpoints have ended, and others may have what it had in hand: stop, "
                "or connect() again for new ones"
            )
            return ChannelBroken(self.loss)
        if "IQGONE" in text:
            self.loss = (
                f"the queue {name!r} is gone from the server at {self.address}: everybody had left"
            )
            return ChannelBroken(self.loss)
        if "IQNONE" in text:
            return QueueClosed(
                f"there is no queue {name!r} on the server at {self.address}, and create=False "
                "makes none: it is over, or nobody has made it yet. Whoever makes it must have "
                "started before"
            )
        for word, said in (
            ("IQFOREIGN ", "is in use for something else, which was left as it is: key "),
            ("IQVERSION ", "was made by another version of iterable_queue: "),
        ):
            if word in text:
                rest = text.partition(word)[2]
                return ChannelBroken(
                    f"the name {name!r} on the server at {self.address} {said}{rest}; "
                    "use another name"
                )
        if "IQOTHER " in text:
            option, _, had = text.partition("IQOTHER ")[2].partition(" ")
            if option == "serializer":
                return ValueError(
                    f"serializer, sign: the items of the queue {name!r} on the server at "
                    f"{self.address} are {had}; all who take part must give the same functions, "
                    "and the same key"
                )
            if option == "on_failure":
                had = "cancel" if had == "1" else "raise"
            if option == "redeliver":
                had = f"{had} deliveries of an item at most" if had != "0" else "False"
            return ValueError(
                f"{option}: the queue {name!r} on the server at {self.address} exists already, "
                f"with {had}; leave the argument out, or give the same"
            )
        return ChannelBroken(f"the server at {self.address} refused a call: {text}{_remedy(text)}")

    def tell(self, commands: bytes) -> None:
        """Send commands that are not answered, each behind QUIET. They may get lost."""
        if self.loss or self._is_new:
            return  # `restore` says it later
        self._check_busy()
        self.busy = True
        try:
            self._connection.send_packed_command((commands,), False)
        except self._breaks as error:
            self.drop()
            let_go(error)
        except BaseException:
            self.drop()
            raise
        finally:
            self.busy = False

    def post(self, script: Script, *args: object) -> None:
        """Run *script* without waiting for what comes of it."""
        # Numbered 0: such a script looks at no number. With its text, since an answer that it is
        # not known would not be heard.
        self.tell(QUIET + script.packed(self._key, self.arguments(args, 0), whole=True))

    def drop(self) -> None:
        """Let the connection go; the next call makes another one."""
        self._is_new = True
        try:
            self._connection.disconnect()
        except Exception:
            pass

    def await_end(self, client: int, patience_s: float) -> None:
        """Wait until the server has heard all that the *client*, which has ended, had sent.

        It reads its connections in no order. Before it has closed that of the dead, which it does
        when all was read, it may not have heard yet how far they handed out what they had claimed:
        those items would be handed out once more. No longer than *patience_s*, in seconds.
        """
        self.busy = True
        try:
            until = monotonic() + patience_s
            self.until(until, partial(self._await_end, client, until))
        except self._refusals:
            pass  # its user may not ask that
        except self._breaks as error:
            self.drop()
            let_go(error)
        finally:
            self.busy = False

    def _await_end(self, client: int, until: float) -> None:
        number = self._asked("HGET", b"%bk:%d" % (self.prefix(), client), "c")
        if number is None:
            return
        while self._asked("CLIENT", "LIST", "ID", number) and monotonic() < until:
            time.sleep(0.002)  # no command waits for that: it is asked again

    def _asked(self, *command: object) -> Any:
        """The answer to *command*, if it comes before the deadline."""
        self.ask(*command)
        self._await_answer()
        return self.answer()

    # For the thread that listens, which waits for messages itself.

    def ask(self, *command: object) -> None:
        """Send a command whose answer is read later, by `answer`."""
        parts = [as_bytes(part) for part in command]
        data = b"*%d\r\n" % len(parts)
        data += b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
        self._connect()
        self._connection.send_packed_command((data,), False)

    def answer(self) -> Any:
        return self._connection.read_response(True)

    def is_break(self, error: BaseException) -> bool:
        """Whether *error* says that the connection is broken."""
        return isinstance(error, self._breaks)


def _client_of(source: str | Callable[[], Any]) -> Any:
    """A client of the server. Raises ChannelBroken where there is no `redis` package."""
    try:
        redis: Any = import_module("redis")
    except ImportError as error:
        raise ChannelBroken(
            "a queue on a server needs the package redis: pip install 'iterable-queue[redis]'"
        ) from error
    if not isinstance(source, str):
        client: Any = source()
        if not hasattr(client, "connection_pool") and not hasattr(client, "get_node_from_key"):
            raise TypeError(f"server() must return a redis.Redis or RedisCluster, not {client!r}")
        return client
    # Retries are made here, where it is known that a call sent twice is made once. What the URL
    # says goes before these.
    return redis.Redis.from_url(
        source,
        retry=_no_retries(),
        socket_timeout=ANSWER_S,
        socket_connect_timeout=CONNECT_S,
        protocol=2,
    )


def _no_retries() -> Any:
    retry: Any = import_module("redis.retry")
    backoff: Any = import_module("redis.backoff")
    return retry.Retry(backoff.NoBackoff(), 0)


def _remedy(text: str) -> str:
    """What to do about a refusal of which Redis, or Valkey, says *text*."""
    if any(word in text for word in ("NOAUTH", "unauthenticated", "Authentication required")):
        return ". It wants a password: redis://user:password@host:port/db"
    if any(word in text for word in ("NOPERM", "can't run this command", "no permissions")):
        return (
            ". Its user may do less than a queue needs: ACL LOG, asked on the server, names the "
            "command or the key"
        )
    return ""


def unsure(what: str) -> str:
    """The end of an error's text: nobody can know whether *what*."""
    return f"; whether {what} is not known: it was sent, and not answered"


def said(error: BaseException | None) -> str:
    """The error with its text, which the `repr` of the client's has not."""
    return f"{type(error).__name__}: {error}".rstrip(".")


def let_go(error: BaseException) -> None:
    """Forget what the frames of a failed attempt held, which the client ties into knots.

    Else what called it, and so the queue and its connection, would wait for the collector.
    """
    found: BaseException | None = error
    while found is not None:
        traceback.clear_frames(found.__traceback__)
        found = found.__context__


def look_out(fd: int, timeout_s: float) -> None:
    """Wait without a sleep until there is something to read, or that time has passed."""
    if fd < 0:
        return
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    until = monotonic() + timeout_s
    while not poll.poll(0) and monotonic() < until:
        os.sched_yield()


def is_readable(fd: int, timeout_s: float) -> bool:
    if fd < 0:
        return True
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))
